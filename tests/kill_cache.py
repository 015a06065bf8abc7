"""Kill a process that fills a token cache, at every step of its writing and at random moments; run by test_cache.py.

    python kill_cache.py FOLDER    # prints one line of JSON: kill points, and what was found after each

The parent imports everything once and forks a child per kill. The child ends itself with SIGKILL at the k-th step of writing
(before a write, half-way through it, before and after each fsync and each rename), or is killed by the parent at a random moment;
once it has a worker process that outlives it.
After each kill the parent looks at what counts as finished, goes on, and compares all bytes with an uninterrupted cache.
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
from qks.tokens.store import read_batches
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


def main(root):
    torch.set_num_threads(1)
    cache.progress = batchfile.progress = lambda items, description: (
        items
    )  # tqdm's lock is shared with a killed child, and would stay locked
    model = random_clip()
    vlp = VLP(model, open_clip.image_transform(32, is_train=False), None, "tiny")
    data = make_data(root)
    runs = []
    tower = vlp.image_tokens
    calls = []

    def counted(images):
        if images.any():
            calls.append(len(images))  # a black image only asks for the shape
        return tower(images)

    vlp.image_tokens = counted

    def fill(folder, workers=0):
        return cache.cache_tokens(vlp, data, BATCH, workers, folder=folder)

    whole = fill(root / "whole")
    expected = next((root / "whole").glob("*/tokens.bin")).read_bytes()
    item = len(expected) // N_IMAGES

    def examine(folder, kind):
        "What a killed process left; then go on and compare."
        files = list(folder.glob("*/tokens.bin"))
        found = read_batches(files[0].with_name("finished.txt")) if files else []
        held = files[0].read_bytes() if files else b""
        right = all(held[a * item : b * item] == expected[a * item : b * item] for a, b, *_ in found)
        calls.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tokens = fill(folder)
        same = torch.equal(tokens, whole) and next(folder.glob("*/tokens.bin")).read_bytes() == expected
        computed = len(calls)
        same = same and torch.equal(fill(folder), whole)
        runs.append(
            {
                "kind": kind,
                "finished": len(found),
                "finished_are_right": right,
                "warnings": len(caught),
                "computed": computed,
                "computed_again": len(calls) - computed,
                "same": same,
            }
        )

    steps = Steps()

    def watched_fill(folder):
        watch(steps)
        fill(folder)

    def count():
        watched_fill(root / "count")
        (root / "count.txt").write_text(str(steps.count))

    in_child(count)
    for k in range(int((root / "count.txt").read_text())):
        steps.kill_at = k
        assert in_child(lambda: watched_fill(root / f"step{k}"))
        examine(root / f"step{k}", "step")
    steps.kill_at = None
    seconds = 1e9
    rng = random.Random(0)
    for k in range(3):
        start = time.perf_counter()
        in_child(lambda: fill(root / f"timed{k}"))
        seconds = min(seconds, time.perf_counter() - start)
    for k in range(20):
        in_child(lambda: fill(root / f"random{k}"), rng.uniform(0, seconds))
        examine(root / f"random{k}", "random")
    # a killed process's workers hold its lock a few seconds longer: the next one waits for them
    steps.kill_at = 20
    assert in_child(lambda: (watch(steps), fill(root / "workers", 1)))
    examine(root / "workers", "workers")
    print(json.dumps({"batches": N_BATCHES, "runs": runs}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
