"""Kill a process that trains, at steps of its work chosen at random and at random moments; run by test_checkpoint.py.

    python kill_training.py FOLDER    # prints one line of JSON: kill points, and what was found after each

The parent imports everything once and forks a child per kill. The child ends itself with SIGKILL at the k-th event
(before and after a step of the optimiser, before and after an epoch is scored, before, half-way through and after the
writing of a checkpoint, around each fsync, rename and deletion), or is killed by the parent at a random moment. After
each kill, every file with a checkpoint's name must be complete. Then the run resumes, some are killed again, and its
weights, history and logs are compared with those of an uninterrupted one, bit by bit.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from kill_child import in_child

from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.train import checkpoint, loop as training, trainer as engine
from qks.train.checkpoint import list_checkpoints, read_checkpoint
from qks.train.config import RunConfig, TrainConfig

N = 26
S = 5
E = 8
D = 64
EVENTS = 18
MOMENTS = 5  # how many kills of each kind


class Events:
    "Counts what a process does, and kills it at one of the events."

    def __init__(self):
        self.names = []
        self.kill_at = None

    def reach(self, name, partly=None):
        if len(self.names) == self.kill_at:
            if partly:
                partly()
            os.kill(os.getpid(), signal.SIGKILL)
        self.names.append(name)

    def around(self, function, name, partly=None):
        def watched(*args, **kwargs):
            self.reach(f"before {name}")
            if partly:
                self.reach(f"inside {name}", lambda: partly(*args))
            result = function(*args, **kwargs)
            self.reach(f"after {name}")
            return result

        return watched


def write_half(tensors, path, header):
    "What is on the disk when a process dies half-way through a checkpoint."
    whole = checkpoint.safetensors_save(tensors, header)
    Path(path).write_bytes(whole[: len(whole) // 2])


def watch(events):
    "Make every step, scoring, write, fsync, rename and deletion an event."
    import safetensors.torch

    checkpoint.safetensors_save = safetensors.torch.save
    checkpoint.save_file = events.around(checkpoint.save_file, "checkpoint", write_half)
    os.fsync = events.around(os.fsync, "fsync")
    os.replace = events.around(os.replace, "rename")
    Path.unlink = events.around(Path.unlink, "deletion")
    engine.train_step = events.around(engine.train_step, "step")
    training.selection_score = events.around(training.selection_score, "scoring")


def train(folder):
    "A small run with dropout, averaged weights, clipping, a checkpoint every second step: its weights and history."
    torch.manual_seed(0)
    tokens = torch.randn(N, 4, D)
    names = torch.randn(S, E)
    labels = torch.where(torch.rand(N, S) < 0.4, 1, -1)
    head = QKSHead(torch.randn(D, E) * 0.3, HeadConfig(n_queries=2, n_layers=1))
    config = TrainConfig(epochs=3, lr=1e-3, batch_size=4, topk=(1,), schedule="cosine", ema=0.8, clip=5.0)
    history = training.fit(
        head,
        (tokens[:20], labels[:20]),
        names,
        (tokens[20:], labels[20:]),
        config,
        RunConfig(folder, save_steps=2, log_steps=1),
    )
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in history]
    steps = [line.split(",")[:4] for line in (folder / "steps.csv").read_text().splitlines()]
    return {name: tensor.numpy().tobytes().hex() for name, tensor in head.state_dict().items()}, rows, steps


def main(root):
    torch.set_num_threads(1)

    def silent_progress(items, description, total=None):
        return Silent(items)

    training.progress = silent_progress  # tqdm's lock is shared with a killed child, and would stay locked
    import qks.model.scoring

    qks.model.scoring.progress = training.progress
    events = Events()
    runs = []
    rng = random.Random(0)

    def watched(folder):
        watch(events)
        train(folder)

    def finish(folder):
        (folder.with_suffix(".json")).write_text(json.dumps(train(folder)))

    def result(folder):
        in_child(lambda: finish(folder))
        return json.loads(folder.with_suffix(".json").read_text())

    expected = result(root / "whole")

    def count():
        watched(root / "count")
        (root / "events.json").write_text(json.dumps(events.names))

    in_child(count)
    names = json.loads((root / "events.json").read_text())

    def examine(folder, kind):
        "What a killed process left; then resume and compare."
        found = list_checkpoints(folder)
        for path in found.values():
            read_checkpoint(path)  # raises for one that is not complete
        hidden = len(list(folder.glob(".*.part")))
        runs.append(
            {
                "kind": kind,
                "checkpoints": len(found),
                "half_written": hidden,
                "same": result(folder) == expected,
                "left_over": len(list(folder.glob(".*.part"))),
            }
        )

    inside, steps = ([k for k, name in enumerate(names) if word in name] for word in ("inside", "step"))
    chosen = rng.sample(inside, 6) + rng.sample(steps, 6) + rng.sample(range(len(names)), EVENTS - 12)
    for number, k in enumerate(chosen):
        folder = root / f"event{number}"
        events.kill_at = k
        assert in_child(lambda: watched(folder))
        if number % 4 == 0:  # killed a second time, before it has caught up or later
            events.kill_at = rng.randrange(len(names) // 2)
            in_child(lambda: watched(folder))
        examine(folder, names[k])
    events.kill_at = None
    seconds = 1e9
    for k in range(2):
        start = time.perf_counter()
        in_child(lambda: train(root / f"timed{k}"))
        seconds = min(seconds, time.perf_counter() - start)
    for k in range(MOMENTS):
        in_child(lambda: train(root / f"moment{k}"), rng.uniform(0, seconds))
        examine(root / f"moment{k}", "moment")
    print(json.dumps({"events": len(names), "seconds": seconds, "runs": runs}))


class Silent:
    "A progress bar that shows nothing."

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, count):
        pass

    def set_postfix(self, **values):
        pass

    def close(self):
        pass


if __name__ == "__main__":
    main(Path(sys.argv[1]))
