"""The head with its loss: plain, with one product for all blocks, with keys and values absorbed, and as in the library.

    python benchmarks/head.py         # ViT-B/16 sizes: B=16, N=197, D=768, L=7, K=12, 925 labels; 3 minutes
    python benchmarks/head.py --out benchmarks/results/head.json

The ways take turns on the same image tokens, fp32. Training is forward and backward with dropout 0.1, inference is
forward alone. The plain way has a process of its own; that of the others keeps freed memory, as `qks train` does. A
speedup is the median over rounds of the ratio to the plain way within the round; beside it, how many times fewer
multiplications the way needs. At the end, by `roofline.py`, the machine's limit: the share of the library's own forward
pass, and of its training step with AdamW, that their matrix products would take alone.
"""

from functools import partial
from statistics import median
from unittest.mock import patch

import roofline
import torch
from common import SeparateProcess, parser, serve, settings, speedups, time_in_turn, write
from torch import nn
from torch.nn import functional as F

from qks.core import arithmetic as linear
from qks.model import fast as fast_query
from qks.model.fast import block_operations, extract, self_attention
from qks.model.losses import AsymmetricLoss
from qks.model.query import QueryExtractor
from qks.model.sharing import share


def exchanged(**parts):
    """The absorbed way with some of its parts exchanged."""

    def way(extractor, tokens):
        with patch.multiple(fast_query, **parts):
            return extract(extractor, tokens)

    return way


def one_product(extractor, tokens):
    """Keys and values of all blocks in one product, torch's fused attention."""
    layers = [layer for block in extractor.blocks for layer in (block.cross_attention.key, block.cross_attention.value)]
    weight = torch.cat([layer.weight for layer in layers])  # [2·L·D, D]
    bias = torch.cat([layer.bias for layer in layers])  # [2·L·D]
    n_heads = extractor.blocks[0].cross_attention.n_heads
    products = F.linear(tokens, weight, bias)  # [B, N, 2·L·D]
    products = products.unflatten(-1, (len(extractor.blocks), 2, n_heads, -1))  # [B, N, L, 2, h, d]
    products = products.permute(2, 3, 0, 4, 1, 5)  # [L, 2, B, h, N, d]
    x = extractor.dropout(extractor.norm(extractor.query_tokens)).expand(len(tokens), -1, -1)  # [B, K, D]
    for block, (keys, values) in zip(extractor.blocks, products):  # [B, h, N, d]
        x = block.self_norm(x + block.dropout(self_attention(block.self_attention, x, len(tokens))))
        attention = block.cross_attention
        queries = attention.split_heads(attention.query(x))  # [B, h, K, d]
        p = attention.dropout.p if attention.training else 0.0
        gathered = F.scaled_dot_product_attention(queries, keys, values, dropout_p=p)  # [B, h, K, d]
        x = block.cross_norm(x + block.dropout(attention.output(gathered.transpose(1, 2).flatten(2))))
        x = block.ffn_norm(x + block.dropout(block.contract(block.activation(block.expand(x)))))
    return x


WAYS = {
    "plain": (lambda extractor, tokens: extractor(tokens), "projected"),
    "one product for all blocks": (one_product, "projected"),
    "absorbed, torch's own parts": (
        exchanged(linear=F.linear, fast_dropout=lambda x, dropout: F.dropout(x, dropout.p, dropout.training)),
        "absorbed",
    ),
    "absorbed, autograd's layouts": (exchanged(uses_own_layouts=lambda context: False), "absorbed"),
    "fast": (extract, "absorbed"),
}


def head_operations(args, order, backward):
    """Multiplications of the head for one image: blocks, projection, sharing."""
    cost = block_operations(args.tokens, args.queries, args.width, args.width // 64, 4 * args.width, backward=backward)
    passes = 3 if backward else 1
    projection = passes * args.queries * args.width * args.embedding
    sharing = (2 if backward else 1) * args.queries * args.embedding * args.labels
    return args.layers * (cost[order] + cost["rest"]) + projection + sharing


def functions(args):
    """The scores of each way without gradients, and for each mode and way the function that is timed."""
    torch.manual_seed(0)
    extractor = QueryExtractor(args.width, args.queries, args.layers)
    projection = nn.Parameter(torch.randn(args.width, args.embedding) / args.width**0.5)
    embeddings = torch.randn(args.labels, args.embedding)
    tokens = torch.randn(args.images, args.tokens, args.width)
    loss_function = AsymmetricLoss()
    targets = torch.where(torch.rand(args.images, args.labels) < 0.01, 1.0, -1.0)

    def forward(way):
        extract_features, _ = WAYS[way]
        return share(extract_features(extractor, tokens) @ projection, embeddings).logits

    def step(way):
        extractor.train().zero_grad(set_to_none=True)
        loss_function(forward(way), targets).backward()

    def infer(way):
        extractor.eval()
        with torch.no_grad():
            return forward(way)

    timed = {f"training {way}": partial(step, way) for way in WAYS}
    timed |= {f"inference {way}": partial(infer, way) for way in WAYS}
    return infer, timed


def main():
    sizes = {
        "images": 16,
        "tokens": 197,
        "width": 768,
        "layers": 7,
        "queries": 12,
        "labels": 925,
        "embedding": 512,
        "rounds": 12,
    }
    quick = {"images": 2, "tokens": 17, "width": 128, "layers": 2, "labels": 20, "embedding": 32, "rounds": 2}
    args = parser(__doc__, sizes, quick).parse_args()
    sizes = settings(args)
    infer, timed = functions(args)
    if args.group:
        return serve(timed)
    expected = infer("plain")
    apart = {way: ((infer(way) - expected).abs().max() / expected.abs().max()).item() for way in WAYS}
    rows = {way: {"way": way, "apart": apart[way]} for way in WAYS}
    textbook = SeparateProcess("textbook")
    ours = SeparateProcess("ours")
    for mode in ("training", "inference"):
        processes = {way: textbook if way == "plain" else ours for way in WAYS}
        times = time_in_turn({way: process.way(f"{mode} {way}") for way, process in processes.items()}, args.rounds)
        for way, speedup in speedups(times, "plain").items():
            rate = args.images / median(times[way])
            count = head_operations(args, WAYS[way][1], mode == "training")
            fewer = head_operations(args, "projected", mode == "training") / count
            rows[way][mode] = {
                "images/s": round(rate, 2),
                "speedup": round(speedup, 3),
                "multiplications": count,
                "fewer_operations": round(fewer, 3),
            }
            print(
                f"{mode:9s} {way:28s} {rate:8.2f} images/s, {speedup:5.2f} times plain "
                f"(by multiplications {fewer:.2f}), apart by {apart[way]:.0e}",
                flush=True,
            )
    uses_onednn = linear.can_use_onednn(torch.zeros(1, 1), torch.zeros(1, 1))
    print("library of the fast way:", "oneDNN" if uses_onednn else "MKL, or torch's own")
    dimensions = (args.images, args.tokens, args.width, args.embedding, args.labels, args.layers, args.queries)
    limits = [roofline.limit(roofline.Sizes(*dimensions), mode) for mode in ("forward", "training")]
    write(args.out, {"ways": list(rows.values()), "roofline": limits}, sizes)


if __name__ == "__main__":
    main()
