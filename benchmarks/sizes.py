"""The head against its sizes, one at a time: time, multiplications, and bytes saved for backward, plain and fast.

    python benchmarks/sizes.py                          # around B=16, N=197, K=12, L=4, C=925 at D=768; 5 minutes
    python benchmarks/sizes.py --out benchmarks/results/sizes.json

Both ways run in this one process, which keeps freed memory.
"""

from statistics import median
from types import SimpleNamespace

import torch
from common import parser, settings, time_in_turn, write
from head import WAYS, head_operations
from torch import nn
from torch.nn import functional as F

from qks.core.system import keep_freed_memory
from qks.model.losses import AsymmetricLoss
from qks.model.query import QueryExtractor
from qks.model.sharing import share

AXES = {
    "images": (4, 8, 16, 32),
    "tokens": (50, 100, 197, 394),
    "queries": (6, 12, 24, 36),
    "layers": (1, 2, 4, 8),
    "labels": (100, 925, 5000, 20000),
}


def saved_bytes(function):
    """Bytes of the tensors that one forward pass saves for the backward pass, including weights and inputs."""
    saved = {}  # by storage, so that each counts once

    def save(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        result = function()  # holds the graph until the bytes are counted
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    del result
    return total


def measure(args, rounds):
    """For each way the seconds of a training step, its multiplications, and the bytes saved for backward."""
    torch.manual_seed(0)
    extractor = QueryExtractor(args.width, args.queries, args.layers)
    projection = nn.Parameter(torch.randn(args.width, args.embedding))
    embeddings = F.normalize(torch.randn(args.labels, args.embedding))
    tokens = torch.randn(args.images, args.tokens, args.width)
    targets = torch.where(torch.rand(args.images, args.labels) < 0.01, 1.0, -1.0)
    loss_function = AsymmetricLoss()

    def forward(way):
        extract_features, _ = WAYS[way]
        features = extract_features(extractor, tokens) @ projection  # [B, K, E]
        return loss_function(share(features, embeddings).logits, targets)

    def step(way):
        extractor.zero_grad(set_to_none=True)
        projection.grad = None
        forward(way).backward()

    ways = ("plain", "fast")
    times = time_in_turn({way: lambda way=way: step(way) for way in ways}, rounds)
    return {
        way: {
            "seconds": round(median(times[way]), 4),
            "bytes_kept": saved_bytes(lambda: forward(way)),  # noqa: B023 used at once
            "multiplications": args.images * head_operations(args, WAYS[way][1], True),
        }
        for way in ways
    }


def main():
    base = {
        "images": 16,
        "tokens": 197,
        "queries": 12,
        "layers": 4,
        "labels": 925,
        "width": 768,
        "embedding": 512,
        "rounds": 7,
    }
    quick = {
        "images": 2,
        "tokens": 9,
        "queries": 3,
        "layers": 1,
        "labels": 10,
        "width": 64,
        "embedding": 16,
        "rounds": 1,
    }
    args = parser(__doc__, base, quick).parse_args()
    sizes = settings(args)
    rows = []
    keep_freed_memory()
    for axis, values in AXES.items():
        for value in values[:2] if args.quick else values:
            measured = measure(SimpleNamespace(**(sizes | {axis: value})), args.rounds)
            rows.append({"axis": axis, "value": value} | measured)
            for way, row in measured.items():
                billions = row["multiplications"] / 1e9
                megabytes = row["bytes_kept"] / 1e6
                print(
                    f"{axis} {value}, {way}: {row['seconds']:.3f} s, {billions:.2f} billion multiplications, "
                    f"{megabytes:.0f} MB saved",
                    flush=True,
                )
    write(args.out, {"rows": rows}, sizes)


if __name__ == "__main__":
    main()
