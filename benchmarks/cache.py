"""What the token cache costs and brings on this machine: writing it, and reading it back in shuffled order.

    python benchmarks/cache.py                          # ViT-B/16 sizes, 1,000 synthetic images, 300 MB of disk
    python benchmarks/cache.py --out benchmarks/results/cache.json

Reading is measured from memory (fp32), from a file whose pages are in memory (warm) and from one whose pages were given
back to the system (cold), each with and without the thread that reads ahead. There are three cases: the reader alone; a
device that computes while the processor waits (a pause of --pause milliseconds per batch); and a head that trains on
the processor. Every number is the best of --repeats, in images per second.
"""

import itertools
import os
import tempfile
import time
from pathlib import Path

import common
import torch

from qks.data.nuswide import read_nuswide
from qks.data.pocket import PocketConfig, write_pocket
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import AsymmetricLoss
from qks.tokens.cache import cache_tokens
from qks.tokens.store import BatchFile, missing_batches, valid_batches
from qks.tokens.stream import read_batches
from qks.vlp.loading import load_vlp


def timed(function, images, repeats):
    """Images per second, the best of some runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return round(images / best, 1)


def write(folder, images, tokens, width, batch_size):
    """Write random tokens as the cache does; returns the file and images per second."""
    batch = torch.randn(batch_size, tokens, width).half()
    start = time.perf_counter()
    file = BatchFile(folder, (images, tokens, width), torch.float16, [i.to_bytes(16, "big") for i in range(images)])
    file.numbers.touch()
    for rows in missing_batches([], images, batch_size):
        file.write(rows.start, batch[: len(rows)])
    return file, round(images / (time.perf_counter() - start), 1)


def forget(path):
    """Give a file's pages back to the system, so that the next reading comes from the disk."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def consumers(args):
    """What uses a batch: nothing, a pause, a training step."""
    torch.manual_seed(0)
    head = QKSHead(torch.randn(args.width, 512) * 0.02, HeadConfig(args.queries, args.layers))
    embeddings = torch.randn(args.labels, 512)
    loss_function = AsymmetricLoss()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-5)
    targets = torch.where(torch.rand(args.batch_size, args.labels) < 0.01, 1.0, -1.0)

    def train(tokens):
        optimizer.zero_grad(set_to_none=True)
        loss_function(head(tokens, embeddings).logits, targets[: len(tokens)]).backward()
        optimizer.step()

    return {
        "reader alone": lambda tokens: None,
        f"device, {args.pause:g} ms a batch": lambda tokens: time.sleep(args.pause / 1000),
        f"head on the processor, L={args.layers}": train,
    }


def epoch(file, tokens, batches, ahead, consume):
    """One pass over tokens in memory, or (None) over the file with its pages given back to the system."""
    if tokens is None:
        forget(file.numbers)
        tokens = file.tensor()
    for batch in read_batches(tokens, batches, ahead):
        consume(batch.float())


def read(args, file):
    """A row for each case: consumer, where the tokens are, how many batches are read ahead, images per second."""
    rows = []
    order = torch.randperm(args.images, generator=torch.Generator().manual_seed(0))
    for place in ("memory, fp32", "disk, warm", "disk, cold"):
        tokens = None  # read anew in each pass
        if place != "disk, cold":
            tokens = file.tensor().read().float() if place == "memory, fp32" else file.tensor()
            tokens[torch.arange(len(tokens))].sum()  # reads every page
        for consumer, consume in consumers(args).items():
            training = consumer.startswith("head")
            batches = (order[: args.train_images] if training else order).split(args.batch_size)
            n_images = sum(len(batch) for batch in batches)
            for ahead in (0, 2):
                speed = timed(lambda: epoch(file, tokens, batches, ahead, consume), n_images, args.repeats)
                rows.append({"consumer": consumer, "tokens": place, "ahead": ahead, "images/s": speed})
                print(f"{consumer:32s} {place:14s} ahead {ahead}: {speed:10,.1f} images/s", flush=True)
    return rows


def pocket(folder, images, repeats):
    """The pocket VLP over Pocket-WIDE's scenes: into memory, into a cache, out of the cache."""
    vlp = load_vlp()
    scenes = read_nuswide(write_pocket(folder / "pocket", PocketConfig(n_train=images, n_test=10)), "train")
    runs = itertools.count()
    ways = {
        "into memory": lambda: cache_tokens(vlp, scenes),
        "into a cache": lambda: cache_tokens(vlp, scenes, folder=folder / f"run{next(runs)}"),
        "out of the cache": lambda: cache_tokens(vlp, scenes, folder=folder / "run0").read().float(),
    }
    speeds = {name: timed(way, len(scenes), repeats) for name, way in ways.items()}
    for name, speed in speeds.items():
        print(f"pocket VLP, {len(scenes)} scenes, {name}: {speed:,.1f} images/s", flush=True)
    return speeds


def main():
    sizes = {
        "images": 1000,
        "tokens": 197,
        "width": 768,
        "batch-size": 64,
        "queries": 12,
        "layers": 7,
        "labels": 925,
        "repeats": 3,
        "train-images": 64,
        "pocket-images": 256,
        "pause": 10,
    }
    quick = {"images": 8, "tokens": 9, "width": 64, "batch-size": 4, "queries": 2, "layers": 1, "labels": 20}
    quick |= {"repeats": 1, "train-images": 8, "pocket-images": 8, "pause": 1}
    command = common.parser(__doc__, sizes, quick)
    command.add_argument("--folder", type=Path, help="for the files, while it runs (default: the temporary folder)")
    args = command.parse_args()
    sizes = common.settings(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        folder = Path(folder)
        (folder / "synthetic").mkdir()
        file, speed = write(folder / "synthetic", args.images, args.tokens, args.width, args.batch_size)
        gigabytes = file.n_bytes / 1e9
        rate = speed * file.item_bytes / 1e6
        print(f"writing and flushing {gigabytes:.2f} GB: {speed:,.1f} images/s, {rate:,.0f} MB/s", flush=True)
        start = time.perf_counter()
        assert len(valid_batches(file, verify=True)) == len(missing_batches([], args.images, args.batch_size))
        checked = round(args.images / (time.perf_counter() - start), 1)
        rate = checked * file.item_bytes / 1e6
        print(f"comparing every digest: {checked:,.1f} images/s, {rate:,.0f} MB/s", flush=True)
        results = {
            "write": speed,
            "verify": checked,
            "read": read(args, file),
            "pocket": pocket(folder, args.pocket_images, args.repeats),
        }
    common.write(args.out, results, sizes)


if __name__ == "__main__":
    main()
