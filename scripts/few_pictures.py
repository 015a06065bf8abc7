"""Make nbs/results/few_pictures.json: what a head learns from 5, 20 and 100 pictures of each label, and from all.

    python scripts/few_pictures.py                     # both readouts, 3 seeds: half an hour on one CPU core
    python scripts/few_pictures.py --seeds 1           # a third of that
    python scripts/few_pictures.py --data FOLDER       # keep Pocket-WIDE and its tokens there for the next time

What is finished is kept, so the script can be interrupted; delete a row, or the file, to make it again. For each seed
other pictures of Pocket-WIDE's training split are drawn, until every label has as many as asked for where there are
so many. A tenth of them chooses the epoch. Both readouts get the same pictures, the recipe of `qks train` for their
number (qks.experiment.recipe), and the same test split, by the authors' protocol. The rows without training are the
frozen model's scores that a residual head can begin with.
"""

import argparse
import json
import platform
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from qks.data.index import holdout
from qks.data.pocket import PocketConfig, write_pocket
from qks.evaluate.metrics import evaluate_scores
from qks.experiment.recipe import pictures_per_label, recipe_by_size
from qks.experiment.training_data import load_training_data
from qks.experiment.training_run import train_head
from qks.model.config import SCORE_KINDS, HeadConfig
from qks.model.scoring import head_scores
from qks.model.training_free import training_free_score
from qks.train.config import TrainConfig
from qks.vlp.loading import load_vlp

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "results" / "few_pictures.json"
SIZES = (5, 20, 100, None)  # pictures of each label; None: all
READOUTS = ("paper", "residual")
TOPK = (3, 5)
HELD_OUT = 0.1


def load_all(folder):
    "Pocket-WIDE with all training images in one part, and their tokens."
    root = folder / "pocket-wide"
    if not (root / "ImageList" / "TestImagelist.txt").exists():
        write_pocket(root, PocketConfig())
    data = load_training_data(root, load_vlp(), selection="last", cache=folder / "tokens")
    tokens = {name: data.tokens[name][torch.arange(len(data.tokens[name]))] for name in ("train", "test")}
    return replace(data, tokens=tokens, selection=None)


def draw_pictures(labels, n_each, seed):
    "Picture numbers, in a random order, each of a label that still has too few; all of them where `n_each` is None."
    order = np.random.default_rng(seed).permutation(len(labels))
    if n_each is None:
        return np.sort(order)
    counts = np.zeros(labels.shape[1], int)
    chosen = []
    for row in order:
        shown = labels[row] > 0
        if (counts[shown] < n_each).any():
            counts[shown] += 1
            chosen.append(row)
    return np.sort(chosen)


def few(data, n_each, seed):
    "The data set with only some of its training pictures, a tenth of them held out."
    rows = draw_pictures(data.train.labels, n_each, seed)
    part = data.train.subset(rows)
    train, validation = holdout(part, HELD_OUT, seed)
    number = {image: row for row, image in zip(rows.tolist(), part.images)}
    tokens = {
        name: data.tokens["train"][torch.tensor([number[image] for image in images.images])]
        for name, images in (("train", train), ("validation", validation))
    }
    return replace(data, train=train, validation=validation, tokens=data.tokens | tokens)


def measure(data, scores):
    "The numbers of the table, as fractions."
    metrics = evaluate_scores(scores, data.test.labels, data.test.n_seen, TOPK)
    return {part: {name: values[name] for name in ("mAP", "F1@3", "F1@5")} for part, values in metrics.items()}


def without_training(data, kind):
    "One of the frozen model's scores."
    vlp = data.vlp
    inputs = vlp.projection, data.embeddings, vlp.n_prefix, kind
    return torch.cat([training_free_score(tokens, *inputs) for tokens in data.tokens["test"].float().split(500)])


def train(data, n_each, readout, seed):
    "One training: what it was, and what it gave."
    part = few(data, n_each, seed)
    recipe = recipe_by_size(len(part.train), pictures_per_label(part.train), HeadConfig(), TrainConfig())
    config = replace(recipe.train, seed=seed, topk=TOPK)
    start = time.time()
    head, history = train_head(part, replace(recipe.head, readout=readout), config)
    logits, _ = head_scores(head, data.tokens["test"].float(), data.embeddings)
    best = max(history, key=lambda row: row["score"])
    return {
        "pictures per label": n_each,
        "readout": readout,
        "seed": seed,
        "pictures": len(part.train),
        "held out": len(part.validation),
        "pictures of a label": pictures_per_label(part.train),
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "lr": config.lr,
        "epoch kept": best["epoch"],
        "loss": history[-1]["loss"],
        "held-out mAP": best["mAP"],
        "seconds": round(time.time() - start, 1),
        "test": measure(data, logits),
    }


def save(results):
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="folder to keep Pocket-WIDE and its image tokens in")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"frozen": {}, "runs": []}
    done = {(run["pictures per label"], run["readout"], run["seed"]) for run in results["runs"]}
    with tempfile.TemporaryDirectory() if args.data is None else nullcontext(args.data) as folder:
        data = load_all(Path(folder))
        for kind in SCORE_KINDS:
            results["frozen"][kind] = measure(data, without_training(data, kind))
        for seed in range(args.seeds):
            for n_each in SIZES:
                for readout in READOUTS:
                    if (n_each, readout, seed) in done:
                        continue
                    run = train(data, n_each, readout, seed)
                    results["runs"].append(run)
                    print(n_each, readout, seed, run["seconds"], run["test"], flush=True)
                    results["made"] = {"torch": torch.__version__, "processor": platform.machine()}
                    save(results)


if __name__ == "__main__":
    main()
