"""The head against its sizes, one at a time: time, multiplications, and bytes kept for the backward pass, plain and fast.

    python benchmarks/sizes.py                          # around B=16, N=197, K=12, L=4, C=925 at D=768; 5 minutes
    python benchmarks/sizes.py --out benchmarks/results/sizes.json

Both ways run in this one process, which keeps freed memory.
"""

from statistics import median
from types import SimpleNamespace

import torch
from common import in_turn, parser, settings, write
from head import WAYS, head_operations
from torch import nn
from torch.nn import functional as F

from qks.core.arithmetic import keep_freed_memory
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


def kept_bytes(function):
    """Bytes of the different tensors that one forward pass keeps for the backward pass; weights and inputs that it points to count too."""
    seen = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (seen.update({x.untyped_storage().data_ptr(): x}), x)[1], lambda x: x
    ):
        result = function()
    total = sum(x.untyped_storage().nbytes() for x in seen.values())
    del result
    return total


def measure(args, rounds):
    """One row a way: seconds of a training step, multiplications of it, bytes kept."""
    torch.manual_seed(0)
    extractor = QueryExtractor(args.width, args.queries, args.layers)
    projection = nn.Parameter(torch.randn(args.width, args.embedding))
    embeddings = F.normalize(torch.randn(args.labels, args.embedding))
    tokens = torch.randn(args.images, args.tokens, args.width)
    targets = torch.where(torch.rand(args.images, args.labels) < 0.01, 1.0, -1.0)
    loss_function = AsymmetricLoss()

    def forward(way):
        return loss_function(share(WAYS[way][0](extractor, tokens) @ projection, embeddings)[0], targets)

    def step(way):
        extractor.zero_grad(set_to_none=True)
        projection.grad = None
        forward(way).backward()

    ways = ("plain", "fast")
    times = in_turn({way: lambda way=way: step(way) for way in ways}, rounds)
    return {
        way: {
            "seconds": round(median(times[way]), 4),
            "bytes_kept": kept_bytes(lambda: forward(way)),  # noqa: B023 used at once
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
    args = parser(
        __doc__,
        base,
        {"images": 2, "tokens": 9, "queries": 3, "layers": 1, "labels": 10, "width": 64, "embedding": 16, "rounds": 1},
    ).parse_args()
    sizes = settings(args)
    rows = []
    keep_freed_memory()
    for axis, values in AXES.items():
        for value in values[:2] if args.quick else values:
            rows.append(
                {"axis": axis, "value": value} | measure(SimpleNamespace(**(sizes | {axis: value})), args.rounds)
            )
            print(
                axis,
                value,
                *(
                    f"{way}: {rows[-1][way]['seconds']:.3f} s, {rows[-1][way]['multiplications'] / 1e9:.2f} billion multiplications, "
                    f"{rows[-1][way]['bytes_kept'] / 1e6:.0f} MB kept"
                    for way in ("plain", "fast")
                ),
                sep="  ",
                flush=True,
            )
    write(args.out, {"rows": rows}, sizes)


if __name__ == "__main__":
    main()
