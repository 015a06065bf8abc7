"""Scoring at Open Images' size, where the scores never exist at once: time and peak memory of `qks.streaming`.

    python benchmarks/stream.py                                                  # 125,456 images, 7,186 + 400 labels
    python benchmarks/stream.py --images 5000 --seen 600 --unseen 100            # smaller
    python benchmarks/stream.py --out benchmarks/results/stream.json

Scores and sparse labels are synthetic; making them is not counted in the time, but it is in the memory.
"""
import argparse
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from qks.streaming import StreamingScores

TOPK = (10, 20)


def sparse_labels(images, n_labels, entries, seed=0):
    """Sparse labels: `entries` draws an image, four in ten positive, frequent labels first in both halves."""
    generator = np.random.default_rng(seed)
    columns = (n_labels * generator.random((images, entries)) ** 2).astype(np.int32)  # [images, entries]
    key = np.unique(np.arange(images)[:, None] * n_labels + columns)
    image, column = np.divmod(key, n_labels)
    values = np.where(generator.random(len(key)) < 0.4, 1, -1).astype(np.int8)
    return SimpleNamespace(offsets=np.searchsorted(image, np.arange(images + 1)), columns=column.astype(np.int32), values=values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("images", 125_456), ("seen", 7_186), ("unseen", 400), ("entries", 12), ("batch", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    options = parser.parse_args()
    n_labels = options.seen + options.unseen
    generator, labels = np.random.default_rng(1), sparse_labels(options.images, n_labels, options.entries)
    print(f"{options.images:,} images, {n_labels:,} labels, {len(labels.values):,} annotations, top-k {TOPK}, "
          f"{torch.get_num_threads()} threads; dense scores would take {4e-6 * options.images * n_labels:,.0f} MB")
    start = time.perf_counter()
    stream, making = StreamingScores(labels, options.seen, TOPK), 0.0
    for first in range(0, options.images, options.batch):
        begun = time.perf_counter()
        scores = generator.standard_normal((min(options.batch, options.images - first), n_labels), dtype=np.float32)
        making += time.perf_counter() - begun
        stream.update(scores)
    result = stream.result()
    seconds = time.perf_counter() - start - making
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{seconds:.1f} s, and {making:.1f} s for making the scores; peak memory of the process {peak / 1e6:,.0f} MB")
    for part, metrics in result.items():
        print(f"{part:5}", "  ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items()))
    if options.out:
        sizes = {name: getattr(options, name) for name in ("images", "seen", "unseen", "entries", "batch")}
        results = {"settings": sizes | {"topk": TOPK, "annotations": len(labels.values)}, "seconds": round(seconds, 1),
                   "seconds_for_making_scores": round(making, 1), "peak_megabytes": round(peak / 1e6),
                   "megabytes_of_dense_scores": round(4e-6 * options.images * n_labels),
                   "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count(),
                               "threads": torch.get_num_threads(), "torch": torch.__version__}}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
