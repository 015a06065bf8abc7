"""What augmented views cost and bring: training on plain tokens, on V cached views of each image, and without a cache.

    python benchmarks/views.py       # Pocket-WIDE with 4,000 training scenes, 3 seeds; 20 minutes
    python benchmarks/views.py --out benchmarks/results/views.json

Only the training tokens differ. The scenes, the recipe of `qks reproduce`, and the validation and test tokens (plain)
are the same.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from common import parser, settings, write

from qks.core import progress
from qks.data.pocket import PocketConfig, write_pocket
from qks.evaluate.baselines import evaluate_head
from qks.evaluate.tables import summarise
from qks.experiment.reproduction import ReproduceConfig
from qks.experiment.training_data import load_training_data
from qks.experiment.training_run import train_head
from qks.tokens.augment import Augmentation, LiveTokens
from qks.tokens.cache import cache_size, cache_tokens
from qks.tokens.stream import ViewSampler
from qks.vlp.loading import load_vlp


def training_tokens(kind, benchmark, folder):
    """The tokens of one way to train, and what they cost: bytes and seconds before the first step."""
    vlp = benchmark.vlp
    train = benchmark.train
    start = time.perf_counter()
    if kind == "live":
        return LiveTokens(vlp, train, Augmentation(vlp.preprocess)), 0, 0.0
    views = 1 if kind == "plain" else int(kind.removeprefix("V="))
    tokens = cache_tokens(vlp, train, folder=folder, views=views)
    size = cache_size(vlp, len(train), views=views)
    seconds = time.perf_counter() - start
    return ViewSampler(tokens) if views > 1 else tokens, size, seconds


def main():
    sizes = {"train": 4000, "test": 2000, "seeds": 3, "epochs": 14}
    command = parser(__doc__, sizes, {"train": 40, "test": 40, "seeds": 1, "epochs": 1})
    command.add_argument(
        "--kinds", nargs="+", default=["plain", "V=2", "V=8", "live"], help="ways to train (default: %(default)s)"
    )
    args = command.parse_args()
    sizes = settings(args)
    config = ReproduceConfig()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = write_pocket(Path(folder) / "pocket", PocketConfig(n_train=args.train, n_test=args.test))
        benchmark = load_training_data(root, load_vlp())
        for kind in args.kinds:
            tokens, size, seconds = training_tokens(kind, benchmark, Path(folder) / "caches")
            trained = replace(benchmark, tokens=benchmark.tokens | {"train": tokens})
            start = time.perf_counter()
            runs = []
            for seed in progress(range(args.seeds), kind):
                head, _ = train_head(trained, config.head, replace(config.train, epochs=args.epochs, seed=seed))
                tokens = benchmark.tokens["test"]
                test = benchmark.test
                runs.append(
                    evaluate_head(head, tokens, test.labels, benchmark.embeddings, test.n_seen, config.train.topk)
                )
            epoch_seconds = round((time.perf_counter() - start) / args.seeds / args.epochs, 2)
            metrics = summarise(runs)
            row = {
                "kind": kind,
                "bytes": size,
                "seconds_to_cache": round(seconds, 1),
                "seconds_an_epoch": epoch_seconds,
            }
            row |= {part: metrics[part]["mAP"] for part in ("seen", "zsl")}
            rows.append(row)
            means = [f"{part} {100 * row[part]['mean']:.1f} ± {100 * row[part]['std']:.1f}" for part in ("seen", "zsl")]
            print(
                f"{kind:6s} {size / 1e6:7.1f} MB, {seconds:6.1f} s to cache, {epoch_seconds:6.2f} s per epoch; "
                f"mAP {', '.join(means)}",
                flush=True,
            )
    write(args.out, {"rows": rows}, sizes)


if __name__ == "__main__":
    main()
