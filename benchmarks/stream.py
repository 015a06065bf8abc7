"""Scoring at Open Images' size, where the scores never exist at once: time and peak memory of `qks.evaluate.streaming`.

    python benchmarks/stream.py                                                  # 125,456 images, 7,186 + 400 labels
    python benchmarks/stream.py --images 5000 --seen 600 --unseen 100            # smaller
    python benchmarks/stream.py --out benchmarks/results/stream.json

Scores and sparse labels are synthetic; making them is not counted in the time, but it is in the memory.
"""

import time
from types import SimpleNamespace

import numpy as np
import torch
from common import parser, peak_memory, settings, write

from qks.evaluate.streaming import StreamingScores

TOPK = (10, 20)


def sparse_labels(images, n_labels, entries, seed=0):
    """Sparse labels: `entries` draws per image, four in ten positive, frequent labels first."""
    generator = np.random.default_rng(seed)
    columns = (n_labels * generator.random((images, entries)) ** 2).astype(np.int32)  # [images, entries]
    key = np.unique(np.arange(images)[:, None] * n_labels + columns)
    image, column = np.divmod(key, n_labels)
    values = np.where(generator.random(len(key)) < 0.4, 1, -1).astype(np.int8)
    return SimpleNamespace(
        offsets=np.searchsorted(image, np.arange(images + 1)), columns=column.astype(np.int32), values=values
    )


def main():
    sizes = {"images": 125_456, "seen": 7_186, "unseen": 400, "entries": 12, "batch": 256}
    options = parser(__doc__, sizes, {"images": 500, "seen": 60, "unseen": 20}).parse_args()
    sizes = settings(options)
    n_labels = options.seen + options.unseen
    generator = np.random.default_rng(1)
    labels = sparse_labels(options.images, n_labels, options.entries)
    print(
        f"{options.images:,} images, {n_labels:,} labels, {len(labels.values):,} annotations, top-k {TOPK}, "
        f"{torch.get_num_threads()} threads; dense scores would take {4e-6 * options.images * n_labels:,.0f} MB"
    )
    start = time.perf_counter()
    stream = StreamingScores(labels, options.seen, TOPK)
    making = 0.0
    for first in range(0, options.images, options.batch):
        begun = time.perf_counter()
        scores = generator.standard_normal((min(options.batch, options.images - first), n_labels), dtype=np.float32)
        making += time.perf_counter() - begun
        stream.update(scores)
    result = stream.result()
    seconds = time.perf_counter() - start - making
    peak = peak_memory()
    print(f"{seconds:.1f} s, and {making:.1f} s for making the scores; peak memory of the process {peak / 1e6:,.0f} MB")
    for part, metrics in result.items():
        print(f"{part:5}", "  ".join(f"{name} {100 * value:.2f}" for name, value in metrics.items()))
    write(
        options.out,
        {
            "seconds": round(seconds, 1),
            "seconds_for_making_scores": round(making, 1),
            "peak_megabytes": round(peak / 1e6),
            "megabytes_of_dense_scores": round(4e-6 * options.images * n_labels),
        },
        sizes | {"topk": TOPK, "annotations": len(labels.values)},
    )


if __name__ == "__main__":
    main()
