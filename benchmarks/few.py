"""Which learning rate suits few pictures: the paper's recipe, made for 160,000, and others, on a few hundred.

    python benchmarks/few.py       # Pocket-WIDE with 300 training scenes, 3 seeds; 12 minutes
    python benchmarks/few.py --out benchmarks/results/few.json

Head and recipe are the paper's for NUS-WIDE (L=7, K=12, ASL, batch 64, 60 epochs), except for learning rate and
schedule. "VLP best patch" is the frozen model without a head.
"""

import tempfile
from pathlib import Path

from common import parser, settings, write

from qks.core import progress
from qks.data.pocket import PocketConfig, write_pocket
from qks.evaluate.baselines import best_patch_scores, evaluate_head
from qks.evaluate.metrics import evaluate_scores
from qks.evaluate.tables import summarise
from qks.experiment.training_data import load_training_data
from qks.experiment.training_run import train_head
from qks.model.config import HeadConfig
from qks.train.config import TrainConfig
from qks.vlp.loading import load_vlp

WAYS = {
    "1e-5, plateau (the paper's)": (1e-5, "plateau"),
    "1e-5, cosine": (1e-5, "cosine"),
    "1e-4, plateau": (1e-4, "plateau"),
    "1e-4, cosine": (1e-4, "cosine"),
    "1e-3, cosine": (1e-3, "cosine"),
}


def main():
    sizes = {"train": 300, "test": 2000, "seeds": 3, "epochs": 60}
    args = parser(__doc__, sizes, {"train": 40, "test": 40, "seeds": 1, "epochs": 1}).parse_args()
    sizes = settings(args)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        benchmark = load_training_data(
            write_pocket(Path(folder) / "pocket", PocketConfig(n_train=args.train, n_test=args.test)), load_vlp()
        )
    tokens = benchmark.tokens["test"]
    labels = benchmark.test.labels
    names = benchmark.embeddings
    n_seen = benchmark.test.n_seen
    topk = TrainConfig.topk

    def record(way, runs, best_epochs=None):
        metrics = summarise(runs)
        row = {"way": way, "epochs_kept": best_epochs, **{part: metrics[part]["mAP"] for part in ("seen", "zsl")}}
        rows.append(row)
        means = [f"{part} mAP {100 * row[part]['mean']:.1f} ± {100 * row[part]['std']:.1f}" for part in ("seen", "zsl")]
        print(f"{way:30s} {', '.join(means)}", flush=True)

    record("VLP best patch", [evaluate_scores(best_patch_scores(benchmark.vlp, tokens, names), labels, n_seen, topk)])
    for way, (lr, schedule) in WAYS.items():
        runs = []
        best_epochs = []
        for seed in progress(range(args.seeds), way):
            recipe = TrainConfig(epochs=args.epochs, lr=lr, schedule=schedule, seed=seed)
            head, history = train_head(benchmark, HeadConfig(), recipe)
            runs.append(evaluate_head(head, tokens, labels, names, n_seen, topk))
            best_epochs.append(max(history, key=lambda row: row["score"])["epoch"])
        record(way, runs, best_epochs)
    write(args.out, {"ways": rows}, sizes)


if __name__ == "__main__":
    main()
