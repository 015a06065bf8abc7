"""Evaluation from image files: `qks evaluate`'s way beside the textbook pipeline and beside the vision tower alone.

    python benchmarks/evaluate.py       # ViT-B/16 of random weights, L=7, K=12, 925 labels, batch 64; 9 minutes
    python benchmarks/evaluate.py --out benchmarks/results/evaluate.json

The images are JPEG files of noise, the batch is that of `qks evaluate`. The reference reads a batch, runs open_clip's
tower, the plain head and sharing, all in fp32. Ours is `token_batches` and `head_scores`, in fp32 and with the towers
in bf16. The tower alone is open_clip's as it is, on images that are read already, in each of the two precisions; "our
tower alone" is `VLP.image_tokens` on the same, then with the whole batch at once. Ours runs in a process that keeps
freed memory, as `qks evaluate` does, the others in one that does not. The ways take turns on the same images.
"""

import tempfile
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import torch
from common import SeparateProcess, parser, serve, settings, speedups, time_in_turn, write
from PIL import Image

from qks.core import arithmetic as linear, load_image
from qks.experiment.evaluation import token_batches
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.scoring import head_scores
from qks.model.sharing import share
from qks.vlp.frozen import preprocess_images
from qks.vlp.loading import load_vlp


class Folder:
    """Image files of noise, smoothed by enlarging."""

    def __init__(self, folder, n, side):
        generator = np.random.default_rng(0)
        self.paths = [Path(folder) / f"{i}.jpg" for i in range(n)]
        for path in self.paths:
            noise = Image.fromarray(generator.integers(256, size=(12, 12, 3), dtype=np.uint8))
            noise.resize((side, side), Image.Resampling.BICUBIC).save(path)

    def __len__(self):
        return len(self.paths)

    def path(self, index):
        return self.paths[index]


def ways(args, folder):
    """For each way a function that gives the scores, or the tokens, of all images."""
    torch.manual_seed(0)
    vlp = load_vlp() if args.quick else load_vlp("ViT-B-16", False)
    head = QKSHead(vlp.projection, HeadConfig(args.queries, args.layers)).eval()
    embeddings = torch.randn(args.labels, vlp.embed_dim)
    data = Folder(folder, args.images, args.side)
    batches = [data.paths[start : start + args.batch_size] for start in range(0, len(data), args.batch_size)]

    def read(paths):
        return preprocess_images(vlp, [load_image(path) for path in paths])  # [B, 3, height, width]

    ready = [read(batch) for batch in batches]

    def reference():
        scores = []
        for batch in batches:
            tokens = vlp.tower.tokens(read(batch))  # [B, N, D]
            scores.append(share(head.extractor(tokens) @ head.projection, embeddings).logits)
        return torch.cat(scores)

    def ours(precision):
        vlp.precision = precision
        batches = token_batches(vlp, data, args.batch_size)
        return torch.cat([head_scores(head, tokens, embeddings).logits for tokens in batches])

    def tower(precision):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return [vlp.tower.tokens(images) for images in ready]

    def our_tower(max_tokens=linear.CPU_TOKENS):
        vlp.precision = "fp32"
        with patch.object(linear, "CPU_TOKENS", max_tokens):
            return [vlp.image_tokens(images) for images in ready]

    return {
        "reference": reference,
        "ours, fp32": lambda: ours("fp32"),
        "ours, bf16": lambda: ours("bf16"),
        "tower alone, fp32": lambda: tower("fp32"),
        "tower alone, bf16": lambda: tower("bf16"),
        "our tower alone, fp32": our_tower,
        "our tower, batch at once": lambda: our_tower(args.batch_size * vlp.n_tokens),
        "reading alone": lambda: [read(batch) for batch in batches],
    }


def main():
    sizes = {"images": 64, "side": 96, "batch-size": 64, "layers": 7, "queries": 12, "labels": 925, "rounds": 4}
    args = parser(__doc__, sizes, {"images": 4, "batch-size": 2, "layers": 1, "labels": 20, "rounds": 1}).parse_args()
    sizes = settings(args)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        functions = ways(args, folder)
        if args.group:
            return serve(functions)
        expected = functions["reference"]()
        apart = {}
        for precision in ("fp32", "bf16"):
            difference = functions[f"ours, {precision}"]() - expected
            apart[precision] = (difference.abs().max() / expected.abs().max()).item()
        textbook = SeparateProcess("textbook")
        ours = SeparateProcess("ours")
        processes = {name: ours if name.startswith("our") else textbook for name in functions}
        times = time_in_turn({name: process.way(name) for name, process in processes.items()}, args.rounds)
    bases = {
        "ours, fp32": ("reference", "tower alone, fp32", "our tower alone, fp32"),
        "ours, bf16": ("reference", "tower alone, bf16"),
        "our tower alone, fp32": ("tower alone, fp32", "our tower, batch at once"),
    }
    over = {name: {base: round(speedups(times, base)[name], 3) for base in own} for name, own in bases.items()}
    for name, own in times.items():
        print(
            f"{name:25s} {args.images / median(own):8.2f} images/s",
            *(f"{ratio:.2f} of {base}" for base, ratio in over.get(name, {}).items()),
            sep="  ",
        )
    print("scores apart from the reference:", {name: f"{value:.0e}" for name, value in apart.items()})
    write(
        args.out,
        {
            "images/s": {name: round(args.images / median(own), 2) for name, own in times.items()},
            "over": over,
            "apart": apart,
        },
        sizes,
    )


if __name__ == "__main__":
    main()
