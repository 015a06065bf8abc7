"""How near a step comes to what the processor can do: its matrix products, each measured alone, beside the whole step.

    python benchmarks/roofline.py                       # paper's sizes and Pocket-WIDE's, fp32, forward and training
    python benchmarks/roofline.py --out benchmarks/results/roofline.json

Every product of a step (linear maps, batched products, attention) is recorded with the shapes of its factors. Then each
is repeated alone on fresh numbers that lie in order, by its own operator and, for a linear map, by torch's and
oneDNN's; the fastest counts. The sum of these times is what the step's products would take if nothing came between
them. "share" is that sum divided by the time of the step: 1 would be a step that is nothing but products. "rate" is the
rate of these products alone, in billions of operations a second, and "square" that of a product of 768 by 768, the same
numbers that every benchmark writes down.
"""

import statistics
import time
from collections import Counter
from functools import partial

import torch
from common import machine, parser, settings, write
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from qks.core.system import keep_freed_memory
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.train.config import TrainConfig
from qks.train.optimizer import make_loss, make_optimizer
from qks.train.steps import HeadLoss

SIZES = {  # images, tokens, width, embedding, labels, blocks
    "ViT-B/16, the paper's head": (16, 197, 768, 512, 925, 7),
    "Pocket-WIDE": (64, 36, 192, 128, 276, 2),
}
QUICK = {"tiny": (4, 9, 64, 32, 20, 1)}
N_QUERIES = 12


def dimensions(tensor):
    return tuple(tensor.shape)


class ProductRecorder(TorchDispatchMode):
    """Counts the products that run inside `with`: operator and shapes of its factors."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).rsplit(".", 1)[0]
        factors = [argument for argument in args if isinstance(argument, torch.Tensor)]
        if name in ("aten.mm", "aten.bmm"):
            self.counts[name, dimensions(factors[0]), dimensions(factors[1])] += 1
        elif name in ("aten.addmm", "aten.baddbmm"):
            self.counts[name.replace("add", ""), dimensions(factors[1]), dimensions(factors[2])] += 1
        elif name == "mkldnn._linear_pointwise":
            rows = factors[0].shape[:-1].numel()
            self.counts["linear", (rows, factors[0].shape[-1]), dimensions(factors[1])] += 1
        elif "scaled_dot_product" in name:
            direction = "backward" if "backward" in name else "forward"
            q, k = factors[1:3] if direction == "backward" else factors[:2]
            self.counts[f"attention {direction}", dimensions(q), dimensions(k)] += 1
        return func(*args, **(kwargs or {}))


def operations(kind, first, second):
    """Additions and multiplications of one product."""
    if kind == "linear":
        return 2 * first[0] * first[1] * second[0]
    if kind.startswith("attention"):
        batch, heads, queries, channels = first
        passes = 2 if kind.endswith("forward") else 5
        return passes * 2 * batch * heads * queries * second[2] * channels
    *batch, rows, inner = first
    return 2 * torch.Size(batch).numel() * rows * inner * second[-1]


def best_seconds(function, repeats):
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def ways_alone(kind, first, second):
    """The ways to compute one product on numbers that lie in order."""
    a = torch.randn(first)
    b = torch.randn(second)
    if kind == "linear":
        return [partial(F.linear, a, b), partial(torch.ops.mkldnn._linear_pointwise, a, b, None, "none", [], "")]
    if kind.startswith("attention"):
        if kind.endswith("forward"):
            return [partial(F.scaled_dot_product_attention, a, b, b)]
        q, k, v = (torch.randn(shape, requires_grad=True) for shape in (first, second, second))
        out = F.scaled_dot_product_attention(q, k, v)
        return [partial(torch.autograd.grad, out, (q, k, v), torch.ones_like(out), retain_graph=True)]
    if len(first) == 3:
        return [partial(torch.bmm, a, b)]
    return [
        partial(torch.mm, a, b),
        partial(torch.ops.mkldnn._linear_pointwise, a, b.T.contiguous(), None, "none", [], ""),
    ]


def measure(step, rounds):
    """Operations of a step, what its products take alone, and what the step takes: medians of rounds that alternate."""
    step()
    with ProductRecorder() as recorder:
        step()
    total = sum(count * operations(*product) for product, count in recorder.counts.items())
    alone = []
    whole = []
    for _ in range(rounds):
        with torch.no_grad():
            seconds = {
                product: min(best_seconds(way, 5) for way in ways_alone_with_grad(product))
                for product in recorder.counts
            }
        alone.append(sum(count * seconds[product] for product, count in recorder.counts.items()))
        whole.append(best_seconds(step, 5))
    return total, statistics.median(alone), statistics.median(whole)


def ways_alone_with_grad(product):
    with torch.enable_grad() if product[0].endswith("backward") else torch.no_grad():
        return ways_alone(*product)


def steps(sizes, loss):
    """The functions that are measured: a forward pass without gradients, and a step of training."""
    images, tokens, width, embedding, labels, blocks = sizes
    torch.manual_seed(0)
    head = QKSHead(torch.randn(width, embedding) / width**0.5, HeadConfig(N_QUERIES, blocks))
    config = TrainConfig(loss=loss, fused=True)
    model = HeadLoss(head, make_loss(config))
    optimizer = make_optimizer(head.parameters(), config)
    image_tokens = torch.randn(images, tokens, width)
    embeddings = torch.randn(labels, embedding)
    targets = torch.where(torch.rand(images, labels) < 0.02, 1.0, -1.0)

    def forward():
        head.eval()
        with torch.no_grad():
            head(image_tokens, embeddings)

    def train():
        head.train()
        optimizer.zero_grad(set_to_none=True)
        model(image_tokens, embeddings, targets).backward()
        optimizer.step()

    return {"forward": forward, "training": train}


def main():
    args = parser(__doc__, {"rounds": 7}, {"rounds": 1}).parse_args()
    sizes = settings(args)
    keep_freed_memory()
    rows = []
    for name, dims in (QUICK if args.quick else SIZES).items():
        loss = "bce" if name == "Pocket-WIDE" else "asl"
        for mode, step in steps(dims, loss).items():
            total, alone, whole = measure(step, args.rounds)
            rows.append(
                {
                    "sizes": name,
                    "mode": mode,
                    "gigaoperations": round(total / 1e9, 3),
                    "rate": round(total / alone / 1e9, 1),
                    "milliseconds": round(1000 * whole, 2),
                    "products_milliseconds": round(1000 * alone, 2),
                    "share": round(alone / whole, 3),
                    "square": machine()["billion_operations_a_second"]["float32"],
                }
            )
            row = rows[-1]
            print(
                f"{name:27} {mode:9} {row['gigaoperations']:8.2f} billion operations, products alone "
                f"{row['products_milliseconds']:8.1f} ms ({row['rate']:.0f} billion a second; square: {row['square']})"
                f", step {row['milliseconds']:8.1f} ms, share {row['share']:.2f}",
                flush=True,
            )
    write(args.out, {"rows": rows}, sizes)


if __name__ == "__main__":
    main()
