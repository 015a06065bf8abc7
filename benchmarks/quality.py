"""Does quality pay for speed? One head trained the plain way, and the ways that are fast, on the same scenes and seeds.

    python benchmarks/quality.py       # Pocket-WIDE with 4,000 training scenes, 6 seeds; 40 minutes
    python benchmarks/quality.py --out benchmarks/results/quality.json

The plain way reads images and runs the image tower in every step, without augmentation, and computes the head in the
plain order, all in fp32. The fast ways read tokens from a cache on disk (fp16). Validation and test tokens are the same
for all, and every trained head is tested in fp32.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from common import parser, settings, write

from qks.core import progress
from qks.data.pocket import PocketConfig, write_pocket
from qks.evaluate.baselines import evaluate_head
from qks.evaluate.tables import summarise
from qks.experiment.reproduction import ReproduceConfig
from qks.experiment.training_data import load_training_data
from qks.model.head import QKSHead, QKSOutput
from qks.model.sharing import share
from qks.tokens.augment import LiveTokens
from qks.tokens.cache import cache_tokens
from qks.train.loop import fit
from qks.vlp.loading import load_vlp

PLAIN = "plain: fp32, tower in every step"
FAST = {
    "cache, fp32": {},
    "cache, bf16": {"precision": "bf16", "fused": True},
    "cache, bf16, compiled": {"precision": "bf16", "fused": True, "compile": True},
}


class PlainHead(QKSHead):
    """The head as the book explains it: one block after the other, keys and values projected in each."""

    def forward(self, image_tokens, label_embeddings):
        features = self.extractor(image_tokens) @ self.projection  # [B, K, E]
        return QKSOutput(*share(features, label_embeddings))


def run(make, tokens, benchmark, config, recipe):
    """Train one head and test it; returns its metrics."""
    torch.manual_seed(recipe.seed)
    head = make(benchmark.vlp.projection, config.head)
    fit(head, (tokens, benchmark.pair("train")[1]), benchmark.embeddings, benchmark.pair("validation"), recipe)
    return evaluate_head(
        head, benchmark.tokens["test"], benchmark.test.labels, benchmark.embeddings, benchmark.test.n_seen, recipe.topk
    )


def main():
    sizes = {"train": 4000, "test": 2000, "seeds": 6, "epochs": 14}
    args = parser(__doc__, sizes, {"train": 40, "test": 40, "seeds": 1, "epochs": 1}).parse_args()
    sizes = settings(args)
    config = ReproduceConfig()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = write_pocket(Path(folder) / "pocket", PocketConfig(n_train=args.train, n_test=args.test))
        benchmark = load_training_data(root, load_vlp())
        cached = cache_tokens(benchmark.vlp, benchmark.train, folder=Path(folder) / "cache")
        for way, options in {PLAIN: {}, **FAST}.items():
            if args.quick and options.get("compile"):  # compiling alone takes a minute
                continue
            make = QKSHead
            tokens = cached
            if way == PLAIN:
                make = PlainHead
                tokens = LiveTokens(benchmark.vlp, benchmark.train)
            recipes = [replace(config.train, epochs=args.epochs, seed=seed, **options) for seed in range(args.seeds)]
            metrics = summarise([run(make, tokens, benchmark, config, recipe) for recipe in progress(recipes, way)])
            rows.append({"way": way, **{part: metrics[part]["mAP"] for part in ("seen", "zsl", "gzsl")}})
    for row in rows:
        zsl, seen = (f"{100 * row[part]['mean']:.2f} ± {100 * row[part]['std']:.2f}" for part in ("zsl", "seen"))
        print(f"{row['way']:34s} ZSL mAP {zsl}, seen {seen}")
    write(args.out, {"ways": rows}, sizes)


if __name__ == "__main__":
    main()
