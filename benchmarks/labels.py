"""Tagging with very many labels: peak memory, and time beside that of the bare matrix product.

    python benchmarks/labels.py                         # 1,000,000 labels, 32 images, E=512, K=12; 2 minutes
    python benchmarks/labels.py --out benchmarks/results/labels.json

Label embeddings are random, so no text tower runs, and the image tower is a tiny one. All of `QKS.tag` runs: images in,
the ten best labels of each out. The bare product multiplies the same query features with the same label embeddings,
part by part into one buffer, and keeps nothing. Peak memory is that of the process with the interpreter, the names and
the embeddings, read before the bare product runs.
"""

import time
from statistics import median

import numpy as np
import open_clip
import torch
from common import parser, peak_memory, settings, speedups, time_in_turn, write
from PIL import Image

from qks.model.config import HeadConfig
from qks.model.fast import extract
from qks.model.head import QKSHead
from qks.model.many_labels import MAX_SCORES
from qks.model.prompts import PromptPool
from qks.model.sharing import share
from qks.model.tagger import QKS
from qks.vlp.frozen import VLP, preprocess_images


class RandomPool(PromptPool):
    """A prompt pool whose embeddings are random."""

    def embed(self, vlp, labels, **_):
        if not hasattr(self, "embeddings"):
            generator = torch.Generator().manual_seed(0)
            self.embeddings = torch.randn(len(labels), vlp.embed_dim, generator=generator)
        return self.embeddings


def tiny_qks(embedding, queries):
    """A QKS with an image tower of one block, whose joint embedding is E wide."""
    vision = open_clip.CLIPVisionCfg(layers=1, width=64, patch_size=16, image_size=96)
    clip = open_clip.CLIP(embedding, vision, open_clip.CLIPTextCfg(context_length=16, width=64, heads=1, layers=1))
    vlp = VLP(clip, open_clip.image_transform(96, is_train=False), open_clip.SimpleTokenizer(context_length=16), "tiny")
    return QKS(vlp, QKSHead(vlp.projection, HeadConfig(queries, 1)), RandomPool())


def main():
    sizes = {"labels": 1_000_000, "images": 32, "embedding": 512, "queries": 12, "top": 10, "rounds": 5}
    args = parser(__doc__, sizes, {"labels": 3000, "images": 3, "embedding": 32, "rounds": 2}).parse_args()
    sizes = settings(args)
    torch.manual_seed(0)
    model = tiny_qks(args.embedding, args.queries)
    names = [f"label {i}" for i in range(args.labels)]
    images = list(np.random.default_rng(0).integers(256, size=(args.images, 96, 96, 3), dtype=np.uint8))

    def tag():
        return model.tag(images, names, top_k=args.top, batch_size=args.images)

    start = time.perf_counter()
    tag()
    peak_bytes = peak_memory()
    seconds = time.perf_counter() - start
    print(f"first call {seconds:.1f} s; peak memory of the process {peak_bytes / 1e9:.2f} GB", flush=True)
    embeddings = model.pool.embeddings
    with torch.no_grad():
        tokens = model.vlp.image_tokens(preprocess_images(model.vlp, [Image.fromarray(image) for image in images]))
        features = extract(model.head.extractor, tokens) @ model.head.projection  # [B, K, E]
        rows = features.flatten(0, 1)  # [B·K, E]
        part = max(1, MAX_SCORES // len(rows))
        buffer = torch.empty(len(rows) * min(part, args.labels))

        def product():
            for block in embeddings.split(part):
                torch.mm(rows, block.T, out=buffer[: len(rows) * len(block)].view(len(rows), len(block)))

        ways = {"bare product": product, "sharing": lambda: share(features, embeddings), "tagging": tag}
        times = time_in_turn(ways, args.rounds)
    ratios = {name: 1 / ratio for name, ratio in speedups(times, "bare product").items()}
    for name, ratio in ratios.items():
        print(f"{name:13s} {median(times[name]):7.3f} s, {ratio:5.2f} times the bare product", flush=True)
    all_gigabytes = 4e-9 * len(rows) * args.labels
    print(f"all scores at once would take {all_gigabytes:.2f} GB, a part takes {4e-9 * buffer.numel():.2f} GB")
    write(
        args.out,
        {
            "peak_gigabytes": round(peak_bytes / 1e9, 2),
            "embeddings_gigabytes": round(embeddings.nbytes / 1e9, 2),
            "all_scores_gigabytes": round(all_gigabytes, 3),
            "multiplications": len(rows) * args.labels * args.embedding,
            "seconds": {name: round(median(own), 3) for name, own in times.items()},
            "ratio_to_bare_product": {name: round(ratio, 3) for name, ratio in ratios.items()},
        },
        sizes,
    )


if __name__ == "__main__":
    main()
