"""Kill a process that fills a token cache, at every step of its writing and at random moments; run by test_cache.py.

    python kill_cache.py FOLDER    # prints one line of JSON: kill points, and what was on the disk after each

The parent imports everything once and forks a child per kill. The child ends itself with SIGKILL at the k-th step of
writing (before a write, half-way through it, before and after each fsync and each rename), or is killed by the parent
at a random moment; once it has a worker process that outlives it.
After each kill the parent looks at what counts as finished, resumes, and compares all bytes with an uninterrupted
cache.
"""

import builtins
import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import open_clip
import torch
from conftest import random_clip
from kill_child import in_child
from PIL import Image

from qks.data.index import LabelledImages
from qks.tokens import cache, store as batchfile
from qks.tokens.store import read_record
from qks.vlp.frozen import VLP

N_IMAGES = 7
BATCH = 2
N_BATCHES = -(-N_IMAGES // BATCH)


class Steps:
    "Counts the steps of writing in this process, and kills it at one of them."

    def __init__(self):
        self.count = 0
        self.kill_at = None

    def reach(self, partly=None):
        if self.count == self.kill_at:
            if partly:
                partly()
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


class WatchedFile:
    "A file whose writes are steps."

    def __init__(self, file, steps):
        self._file = file
        self._steps = steps

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def write(self, data):
        def half():
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._steps.reach()
        self._steps.reach(half)
        return self._file.write(data)


def watch(steps):
    "Make every write, fsync and rename of the cache a step."

    def around(function):
        def watched(*args):
            steps.reach()
            function(*args)
            steps.reach()

        return watched

    def watched_open(path, mode="r", *args, **kwargs):
        file = builtins.open(path, mode, *args, **kwargs)
        return file if mode == "rb" else WatchedFile(file, steps)

    os.fsync = around(os.fsync)
    os.replace = around(os.replace)
    batchfile.open = watched_open


def make_data(root):
    (root / "Flickr").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = tuple(f"{i}.png" for i in range(N_IMAGES))
    for name in names:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(root / "Flickr" / name)
    return LabelledImages(root, names, np.ones((N_IMAGES, 1), np.int8), ("cat",), 1)


def counted(vlp):
    "Record the size of every batch that the VLP computes; a black image only asks for the shape."
    tower = vlp.image_tokens
    calls = []

    def image_tokens(images):
        if images.any():
            calls.append(len(images))
        return tower(images)

    vlp.image_tokens = image_tokens
    return calls


class Kills:
    "Fills caches in children that are killed, and collects what each kill left."

    def __init__(self, root):
        self.root = root
        self.data = make_data(root)
        self.vlp = VLP(random_clip(), open_clip.image_transform(32, is_train=False), None, "tiny")
        self.calls = counted(self.vlp)
        self.steps = Steps()
        self.runs = []
        self.expected = self.fill(root / "uninterrupted")
        self.expected_bytes = next((root / "uninterrupted").glob("*/tokens.bin")).read_bytes()

    def fill(self, folder, workers=0):
        return cache.cache_tokens(self.vlp, self.data, BATCH, workers, folder=folder)

    def watched_fill(self, folder, workers=0):
        "Fill in a child that counts its steps, and dies at `steps.kill_at`."
        watch(self.steps)
        self.fill(folder, workers)

    def count_steps(self):
        def count():
            self.watched_fill(self.root / "count")
            (self.root / "count.txt").write_text(str(self.steps.count))

        in_child(count)
        return int((self.root / "count.txt").read_text())

    def fastest(self):
        "Seconds of an uninterrupted child."
        seconds = []
        for k in range(3):
            start = time.perf_counter()
            in_child(lambda: self.fill(self.root / f"timed{k}"))
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    def finished_are_right(self, path, batches):
        "Whether the bytes of the finished batches are those of the uninterrupted cache."
        content = path.read_bytes()
        item = len(self.expected_bytes) // N_IMAGES
        parts = [slice(start * item, stop * item) for start, stop, *_ in batches]
        return all(content[part] == self.expected_bytes[part] for part in parts)

    def examine(self, folder, kind):
        "Look at what a killed process left, then resume and compare."
        files = list(folder.glob("*/tokens.bin"))
        finished = read_record(files[0].with_name("finished.txt")) if files else []
        right = not files or self.finished_are_right(files[0], finished)
        self.calls.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tokens = self.fill(folder)
        computed = len(self.calls)
        same = torch.equal(tokens.read(), self.expected.read())
        same = same and next(folder.glob("*/tokens.bin")).read_bytes() == self.expected_bytes
        same = same and torch.equal(self.fill(folder).read(), self.expected.read())
        self.runs.append(
            {
                "kind": kind,
                "finished": len(finished),
                "finished_are_right": right,
                "warnings": len(caught),
                "computed": computed,
                "computed_again": len(self.calls) - computed,
                "same": same,
            }
        )


def without_progress(items, description):
    return items


def main(root):
    torch.set_num_threads(1)
    # tqdm's lock is shared with a killed child, and would stay locked
    cache.progress = without_progress
    batchfile.progress = without_progress
    kills = Kills(root)
    for k in range(kills.count_steps()):
        kills.steps.kill_at = k
        assert in_child(lambda: kills.watched_fill(root / f"step{k}"))
        kills.examine(root / f"step{k}", "step")
    kills.steps.kill_at = None
    seconds = kills.fastest()
    rng = random.Random(0)
    for k in range(20):
        in_child(lambda: kills.fill(root / f"random{k}"), rng.uniform(0, seconds))
        kills.examine(root / f"random{k}", "random")
    # The workers of a killed process hold its lock a few seconds longer: the next one waits for them.
    kills.steps.kill_at = 20
    assert in_child(lambda: kills.watched_fill(root / "workers", workers=1))
    kills.examine(root / "workers", "workers")
    print(json.dumps({"batches": N_BATCHES, "runs": kills.runs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
