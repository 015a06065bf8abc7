"""How near a step comes to what the processor can do: its matrix products, each measured alone, beside the whole step.

    python benchmarks/roofline.py                       # paper's sizes and Pocket-WIDE's, fp32, forward and training
    python benchmarks/roofline.py --out benchmarks/results/roofline.json

Every product of a step (linear maps, batched products, attention) is recorded with the shapes of its factors. Then each
is repeated alone on fresh numbers that lie in order, by its own operator and, for a linear map, by torch's and
oneDNN's; the fastest counts. The sum of these times is what the step's products would take if nothing came between
them. "share" is that sum divided by the time of the step: 1 would be a step that is nothing but products. "rate" is the
rate of these products alone, in billions of operations a second, and "square" that of a product of 768 by 768, the same
numbers that every benchmark writes down. `train.py` and `head.py` write the share for their sizes.
"""

import statistics
import time
from collections import Counter
from functools import partial
from typing import NamedTuple

import torch
from common import parser, settings, write
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from qks.core.arithmetic import PRECISIONS, onednn_agrees, product_rate
from qks.core.system import keep_freed_memory
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.train.config import TrainConfig
from qks.train.optimizer import make_loss, make_optimizer
from qks.train.steps import HeadLoss


class Sizes(NamedTuple):
    """What decides how many operations a step of the head takes."""

    images: int
    tokens: int
    width: int
    embedding: int
    labels: int
    layers: int
    queries: int = 12
    loss: str = "asl"


SIZES = {
    "ViT-B/16, the paper's head": Sizes(16, 197, 768, 512, 925, layers=7),
    "Pocket-WIDE": Sizes(64, 36, 192, 128, 276, layers=2, loss="bce"),
}
QUICK = {"tiny": Sizes(4, 9, 64, 32, 20, layers=1)}
REPEATS = 5  # the best of which counts


class Product(NamedTuple):
    """A matrix product by its operator and the shapes of its factors."""

    kind: str
    first: tuple[int, ...]
    second: tuple[int, ...]
    dtype: torch.dtype

    @property
    def operations(self):
        """Additions and multiplications."""
        if self.kind == "linear":
            return 2 * self.first[0] * self.first[1] * self.second[0]
        if self.kind.startswith("attention"):
            batch, heads, queries, channels = self.first
            n_products = 2 if self.kind == "attention forward" else 5
            return n_products * 2 * batch * heads * queries * self.second[2] * channels
        *batch, rows, inner = self.first
        return 2 * torch.Size(batch).numel() * rows * inner * self.second[-1]


def recognize(name, factors):
    """The product that an operator computes from its tensors; None for what is no product."""

    def product(kind, first, second, shape=None):
        return Product(kind, tuple(shape or first.shape), tuple(second.shape), first.dtype)

    if name in ("aten.mm", "aten.bmm"):
        return product(name, *factors[:2])
    if name in ("aten.addmm", "aten.baddbmm"):
        return product(name.replace("add", ""), *factors[1:3])
    if name == "mkldnn._linear_pointwise":
        rows = factors[0].shape[:-1].numel()
        return product("linear", *factors[:2], shape=(rows, factors[0].shape[-1]))
    if "scaled_dot_product" in name:
        if "backward" in name:
            return product("attention backward", *factors[1:3])
        return product("attention forward", *factors[:2])
    return None


class ProductRecorder(TorchDispatchMode):
    """Counts the products that run inside `with`."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        factors = [argument for argument in args if isinstance(argument, torch.Tensor)]
        product = recognize(str(func).rsplit(".", 1)[0], factors)
        if product is not None:
            self.counts[product] += 1
        return func(*args, **(kwargs or {}))

    @property
    def operations(self):
        return sum(count * product.operations for product, count in self.counts.items())


def record(step):
    """The products of one step."""
    with ProductRecorder() as recorder:
        step()
    return recorder


def best_seconds(function):
    """Seconds of one call: the best of some, after one that does not count."""
    function()
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def attention_backward(q, k, v):
    """A function that computes the gradients of torch's attention."""
    with torch.enable_grad():
        factors = [factor.requires_grad_() for factor in (q, k, v)]
        out = F.scaled_dot_product_attention(*factors)
    return partial(torch.autograd.grad, out, factors, torch.ones_like(out), retain_graph=True)


def ways_alone(product):
    """The ways to compute one product on numbers that lie in order."""
    a = torch.randn(product.first, dtype=product.dtype)
    b = torch.randn(product.second, dtype=product.dtype)
    if product.kind == "attention backward":
        return [attention_backward(a, b, torch.randn_like(b))]
    if product.kind == "attention forward":
        return [partial(F.scaled_dot_product_attention, a, b, b)]
    if product.kind == "aten.bmm":
        return [partial(torch.bmm, a, b)]
    is_linear = product.kind == "linear"
    ways = [partial(F.linear if is_linear else torch.mm, a, b)]
    if product.dtype == torch.float32 and onednn_agrees():
        weight = b if is_linear else b.T.contiguous()
        ways.append(partial(torch.ops.mkldnn._linear_pointwise, a, weight, None, "none", [], ""))
    return ways


@torch.no_grad()
def seconds_alone(recorder):
    """What all recorded products take, each by its fastest way."""
    return sum(
        count * min(best_seconds(way) for way in ways_alone(product)) for product, count in recorder.counts.items()
    )


def measure(step, rounds):
    """Operations of a step, what its products take alone, and what the step takes: medians of rounds that alternate."""
    step()
    recorder = record(step)
    alone = []
    whole = []
    for _ in range(rounds):
        alone.append(seconds_alone(recorder))
        whole.append(best_seconds(step))
    products = statistics.median(alone)
    seconds = statistics.median(whole)
    return {
        "gigaoperations": round(recorder.operations / 1e9, 3),
        "rate": round(recorder.operations / products / 1e9, 1),
        "milliseconds": round(1000 * seconds, 2),
        "products_milliseconds": round(1000 * products, 2),
        "share": round(products / seconds, 3),
    }


def steps(sizes, precision="fp32"):
    """The functions that are measured: a forward pass without gradients, and a step of training."""
    torch.manual_seed(0)
    projection = torch.randn(sizes.width, sizes.embedding) / sizes.width**0.5
    head = QKSHead(projection, HeadConfig(sizes.queries, sizes.layers))
    config = TrainConfig(loss=sizes.loss, fused=True)
    model = HeadLoss(head, make_loss(config))
    optimizer = make_optimizer(head.parameters(), config)
    image_tokens = torch.randn(sizes.images, sizes.tokens, sizes.width)
    embeddings = torch.randn(sizes.labels, sizes.embedding)
    targets = torch.where(torch.rand(sizes.images, sizes.labels) < 0.02, 1.0, -1.0)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")

    def forward():
        head.eval()
        with torch.no_grad(), autocast():
            head(image_tokens, embeddings)

    def train():
        head.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = model(image_tokens, embeddings, targets)
        loss.backward()
        optimizer.step()

    return {"forward": forward, "training": train}


def limit(sizes, mode, precision="fp32", rounds=3):
    """The row of one kind of step, printed: what the processor could do at most, and the share of it that it does."""
    keep_freed_memory()
    row = {"mode": mode, "precision": precision} | measure(steps(sizes, precision)[mode], rounds)
    row["square"] = round(product_rate(PRECISIONS[precision]) / 1e9)
    print(
        f"{mode:9} {precision} {row['gigaoperations']:8.2f} billion operations; products alone "
        f"{row['products_milliseconds']:8.1f} ms ({row['rate']:.0f} billion a second; square: {row['square']}); "
        f"step {row['milliseconds']:8.1f} ms; share {row['share']:.2f}",
        flush=True,
    )
    return row


def main():
    args = parser(__doc__, {"rounds": 7}, {"rounds": 1}).parse_args()
    sizes = settings(args)
    rows = []
    for name, dimensions in (QUICK if args.quick else SIZES).items():
        print(name)
        for mode in ("forward", "training"):
            rows.append({"sizes": name} | limit(dimensions, mode, rounds=args.rounds))
    write(args.out, {"rows": rows}, sizes)


if __name__ == "__main__":
    main()
