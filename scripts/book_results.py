"""Make nbs/results/book.json: the running table of the book, and what its figures of training show.

    python scripts/book_results.py                     # all rows, three seeds: about an hour on two CPU cores
    python scripts/book_results.py --seeds 1           # a third of that
    python scripts/book_results.py --rows 'best patch' # these rows only; the others stay as they are
    python scripts/book_results.py --ablations         # chapter 13's table, the default changed in one thing at a time
    python scripts/book_results.py --tune              # nbs/results/learning_rates.json: the rate of each loss

What is finished is kept, so the script can be interrupted; delete a row, or the file, to make it again. Pocket-WIDE is
written and its image tokens are computed once. Every trained row then starts from the row before it and
changes one thing, as the chapters do. The rows of chapters 4 to 8 train for a few epochs only (the file says how many);
those from chapter 9 on train at full length. Numbers are on the test split, by the authors' protocol; the epoch is the
last one, so that nothing is chosen by looking.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from qks.data.pocket import PocketConfig, write_pocket
from qks.evaluate.baselines import SINGLE_PROMPT, best_patch_scores, zero_shot_scores
from qks.evaluate.metrics import evaluate_scores
from qks.experiment.training_data import load_training_data
from qks.model.config import HeadConfig
from qks.model.fast import extract
from qks.model.head import QKSHead, QKSOutput
from qks.model.losses import AsymmetricLoss, bce_loss, ranking_loss
from qks.model.prompts import PromptPool, embed_names
from qks.vlp.loading import load_vlp

FOLDER = Path(__file__).resolve().parent.parent / "nbs" / "results"
RESULTS = FOLDER / "book.json"
LEARNING_RATES = FOLDER / "learning_rates.json"
LOSSES = {"ranking": ranking_loss, "bce": bce_loss, "asl": AsymmetricLoss()}
SHORT = 5
FULL = 14  # epochs of the rows of chapters 4 to 8, and of the others
BATCH = 64
RATES = {"ranking": 1e-3, "asl": 8e-3, "bce": 4e-3}  # at its peak, for a few epochs: chosen on held-out images
LONGER = 0.5  # at full length, a part of that rate; for cross-entropy that is the recipe of `qks reproduce`
WARMUP = 100  # images, at its peak, steps: the recipe of `qks reproduce`

# name -> chapter and what the row trains with; each differs from the one before it in one thing
TRAINED = {
    "one query token": dict(
        chapter=4, n_queries=1, prompts="one", loss="ranking", train_projection=False, epochs=SHORT
    ),
    "twelve tokens, their mean": dict(
        chapter=5, pooling="mean", prompts="one", loss="ranking", train_projection=False, epochs=SHORT
    ),
    "twelve tokens, the best one": dict(chapter=5, prompts="one", loss="ranking", train_projection=False, epochs=SHORT),
    "with the prompt pool": dict(chapter=6, loss="ranking", train_projection=False, epochs=SHORT),
    "asymmetric loss": dict(chapter=7, loss="asl", train_projection=False, epochs=SHORT),
    "binary cross-entropy": dict(chapter=7, train_projection=False, epochs=SHORT),
    "with a trained projection": dict(chapter=8, epochs=SHORT),
    "trained at full length": dict(chapter=9),
    "the same with the ranking loss": dict(chapter=9, loss="ranking"),
    "in bf16": dict(chapter=10, precision="bf16"),
}


# what a learning rate is chosen for; the rates go on until the best one lies between two others
TUNED = {
    "ranking": dict(loss="ranking", train_projection=False, rates=(2.5e-4, 5e-4, 1e-3, 2e-3)),
    "asl": dict(loss="asl", train_projection=False, rates=(2e-3, 4e-3, 8e-3, 1.6e-2)),
    "bce": dict(loss="bce", train_projection=False, rates=(1e-3, 2e-3, 4e-3, 8e-3)),
    "bce, trained projection": dict(loss="bce", train_projection=True, rates=(1e-3, 2e-3, 4e-3, 8e-3)),
    "the same for 14 epochs": dict(loss="bce", train_projection=True, rates=(2e-3, 4e-3), epochs=FULL),
}

# group -> name -> what differs from the default: twelve tokens, two blocks, the maximum, unnormalised matching, the
# prompt pool, a trained projection, binary cross-entropy; five epochs each
ABLATIONS = {
    "query tokens": {f"{count}": dict(n_queries=count) for count in (1, 4, 12, 24)},
    "blocks": {f"{count}": dict(n_layers=count) for count in (1, 2, 4)},
    "each label takes": {
        "the best token": {},
        "the mean of the tokens": dict(pooling="mean"),
        "logsumexp of the tokens": dict(pooling="logsumexp"),
    },
    "matching": {"unnormalised": {}, "cosine, temperature learned": dict(cosine=True)},
    "a label is embedded as": {
        "its bare name": dict(prompts="bare"),
        "one sentence": dict(prompts="one"),
        "85 sentences": {},
    },
    "loss": {"binary cross-entropy": {}, "asymmetric": dict(loss="asl"), "ranking": dict(loss="ranking")},
    "projection": {"trained": {}, "frozen": dict(train_projection=False)},
    "dropout": {"0.1": {}, "none": dict(dropout=0.0)},
}


class VariantHead(QKSHead):
    "A head that can differ from the paper's in how labels and tokens are matched."

    def __init__(self, projection, config, pooling="max", cosine=False):
        super().__init__(projection, config)
        self.pooling = pooling
        self.temperature = torch.nn.Parameter(torch.tensor(3.0)) if cosine else None  # logarithm of the factor

    def forward(self, image_tokens, label_embeddings, return_attention=False):
        if self.pooling == "max" and self.temperature is None:
            return super().forward(image_tokens, label_embeddings, return_attention)
        features = extract(self.extractor, image_tokens) @ self.projection  # [B, K, E]
        if self.temperature is not None:
            features = normalize(features, dim=-1) * self.temperature.exp()
            label_embeddings = normalize(label_embeddings, dim=-1)
        scores = features @ label_embeddings.T  # [B, K, C]
        pools = {"max": scores.amax, "mean": scores.mean, "logsumexp": scores.logsumexp}
        return QKSOutput(pools[self.pooling](1), scores.argmax(1), None)


def new_head(vlp, seed, n_queries=12, n_layers=2, dropout=0.1, pooling="max", cosine=False, train_projection=True):
    "The head of a row, from its seed."
    torch.manual_seed(seed)
    config = HeadConfig(n_queries=n_queries, n_layers=n_layers, dropout=dropout)
    head = VariantHead(vlp.projection, config, pooling, cosine)
    head.projection.requires_grad_(train_projection)
    return head


def make_optimizer(head, steps, learning_rate):
    "AdamW, and a learning rate that rises for `WARMUP` steps and falls along a cosine."
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], learning_rate, weight_decay=1e-4)

    def rate(step):
        if step < WARMUP:
            return (step + 1) / WARMUP
        return 0.5 * (1 + np.cos(np.pi * (step - WARMUP) / (steps - WARMUP)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def nothing_after_epoch(epoch, losses):
    pass


def train(head, data, embeddings, loss, epochs, seed, learning_rate, precision="fp32", after_epoch=nothing_after_epoch):
    "The bare loop of chapter 9."
    tokens, labels = data.pair("train")
    seen = embeddings[: data.test.n_seen]
    loss_function = LOSSES[loss]
    steps = epochs * -(-len(labels) // BATCH)
    optimizer, schedule = make_optimizer(head, steps, learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        head.train()
        losses = []
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = head(tokens[rows].float(), seen).logits
            value = loss_function(logits.float(), labels[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            losses.append(value.item())
        after_epoch(epoch + 1, losses)
    return head.eval()


@torch.no_grad()
def score(head, tokens, embeddings):
    "Logits [n, C] and chosen tokens [n, C] of all images."
    head.eval()
    parts = [head(part.float(), embeddings) for part in tokens.split(256)]
    return torch.cat([part.logits for part in parts]), torch.cat([part.token_index for part in parts])


def measure(scores, data):
    "Metrics of the test split, by the authors' protocol."
    return evaluate_scores(scores, data.test.labels, data.test.n_seen, (3, 5))


def chance(data, draws=5):
    "Metrics of random scores, the mean of several draws."
    generator = np.random.default_rng(0)
    found = [measure(generator.random(data.test.labels.shape), data) for _ in range(draws)]
    return {
        part: {name: float(np.mean([run[part][name] for run in found])) for name in values}
        for part, values in found[0].items()
    }


def training_story(head, data, embeddings, seed):
    "What the figures of training show: after each epoch loss, metrics, token use, and one scene's tags."
    story = []
    positives = data.test.labels == 1  # [n, C]
    names = data.test.label_names

    def note(epoch, losses):
        validation, _ = score(head, data.tokens["validation"], embeddings[: data.test.n_seen])
        held_out = evaluate_scores(validation, data.validation.labels, data.test.n_seen, (3, 5))
        logits, chosen = score(head, data.tokens["test"], embeddings)
        use = np.bincount(chosen.numpy()[positives], minlength=head.config.n_queries) / positives.sum()
        best = logits[4].topk(6)
        story.append(
            {
                "epoch": epoch,
                "losses": [round(value, 5) for value in losses[:: max(1, len(losses) // 20)]],
                "loss": float(np.mean(losses)) if losses else None,
                "held out": held_out["seen"],
                "test": measure(logits, data),
                "token use": use.tolist(),
                "tags of scene 4": [[names[c], float(v)] for v, c in zip(best.values.sigmoid(), best.indices)],
            }
        )

    note(0, [])
    train(head, data, embeddings, "bce", FULL, seed, LONGER * RATES["bce"], after_epoch=note)
    return story


HEAD_OPTIONS = ("n_queries", "n_layers", "dropout", "pooling", "cosine", "train_projection")


def run_row(row, data, embeddings, seed):
    "Train and measure one row: its metrics and seconds."
    start = time.perf_counter()
    head = new_head(data.vlp, seed, **{name: row[name] for name in HEAD_OPTIONS if name in row})
    text = embeddings[row["prompts"]]
    precision = row.get("precision", "fp32")
    train(head, data, text, row["loss"], row["epochs"], seed, row["learning_rate"], precision)
    logits, _ = score(head, data.tokens["test"], text)
    return measure(logits, data) | {"seconds": round(time.perf_counter() - start, 1)}


def make_rows(found, data, embeddings, options, save):
    "The running table, row by row; finished runs with the same settings are kept."
    tokens = data.tokens["test"]
    untrained = {
        "chance": (1, lambda: chance(data)),
        "one vector": (1, lambda: measure(zero_shot_scores(data.vlp, tokens, embeddings["pool"]), data)),
        "best patch": (3, lambda: measure(best_patch_scores(data.vlp, tokens, embeddings["pool"]), data)),
    }
    wanted = options.rows or [*untrained, *TRAINED]
    for name, (chapter, make) in untrained.items():
        if name in wanted:
            found["rows"][name] = {"chapter": chapter, "runs": [make()]}
    for seed in range(options.seeds):
        for name, changes in TRAINED.items():
            if name not in wanted:
                continue
            row = {"prompts": "pool", "loss": "bce", "epochs": FULL} | changes
            if options.quick:
                row["epochs"] = 1
            row["learning_rate"] = RATES[row["loss"]] * (1 if row["epochs"] <= SHORT else LONGER)
            before = found["rows"].get(name, {})
            if {key: value for key, value in before.items() if key != "runs"} != row:
                found["rows"][name] = row | {"runs": []}
            runs = found["rows"][name]["runs"]
            if len(runs) > seed:
                continue
            runs.append(run_row(row, data, embeddings, seed))
            print(
                f"seed {seed}, {name}: ZSL mAP {100 * runs[-1]['zsl']['mAP']:.1f}, {runs[-1]['seconds']} s", flush=True
            )
            save()
    if options.rows is None:
        found["training"] = training_story(new_head(data.vlp, 0), data, data.embeddings, seed=0)


DEFAULTS = dict(
    n_queries=12,
    n_layers=2,
    dropout=0.1,
    pooling="max",
    cosine=False,
    train_projection=True,
    prompts="pool",
    loss="bce",
    precision="fp32",
)


def settings_of(row):
    "All settings of a row, those that it does not name included, as one string that can be compared."
    names = [*DEFAULTS, "epochs", "learning_rate"]
    return json.dumps([(DEFAULTS | row)[name] for name in names])


def make_ablations(found, data, embeddings, options, save):
    "Chapter 13's table, in which finished runs are kept. What a row of the running table has trained is not repeated."
    table = found.setdefault("ablations", {})
    epochs = 1 if options.quick else SHORT
    finished = {}
    for row in found["rows"].values():
        if "learning_rate" in row:
            finished |= {(seed, settings_of(row)): run for seed, run in enumerate(row["runs"])}
    for seed in range(options.seeds):
        for group, variants in ABLATIONS.items():
            for name, changes in variants.items():
                runs = table.setdefault(group, {}).setdefault(name, [])
                if len(runs) > seed:
                    continue
                row = DEFAULTS | {"epochs": epochs} | changes
                row["learning_rate"] = RATES[row["loss"]]
                key = (seed, settings_of(row))
                if key not in finished:
                    finished[key] = run_row(row, data, embeddings, seed)
                runs.append(finished[key])
                print(f"seed {seed}, {group}: {name}: ZSL mAP {100 * runs[-1]['zsl']['mAP']:.1f}", flush=True)
                save()


def make_tuning(found, data, embeddings, options, save):
    """Learning rates: every setting of `TUNED` at several rates, five epochs each; finished runs are kept.

    A rate is chosen by the mAP of the seen labels on the held-out images, which are neither trained on nor tested on.
    """
    table = found.setdefault("learning rates", {})
    for name in options.tune or TUNED:
        settings = TUNED[name]
        for rate in settings["rates"]:
            if str(rate) in table.setdefault(name, {}):
                continue
            head = new_head(data.vlp, 0, train_projection=settings["train_projection"])
            epochs = 1 if options.quick else settings.get("epochs", SHORT)
            train(head, data, embeddings["pool"], settings["loss"], epochs, 0, rate)
            seen, _ = score(head, data.tokens["validation"], embeddings["pool"][: data.test.n_seen])
            held_out = evaluate_scores(seen, data.validation.labels, data.test.n_seen, (3, 5))["seen"]
            logits, _ = score(head, data.tokens["test"], embeddings["pool"])
            table[name][str(rate)] = {"held out": held_out, "test": measure(logits, data)}
            print(f"{name}, {rate:g}: held-out mAP {100 * held_out['mAP']:.1f}", flush=True)
            save()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", help="names of the rows to make; the others stay as they are")
    parser.add_argument(
        "--ablations", action="store_true", help="make chapter 13's table instead; it can be interrupted"
    )
    parser.add_argument(
        "--tune", nargs="*", help="make the table of learning rates instead, of these settings or of all"
    )
    parser.add_argument("--out", type=Path, help="default: book.json or learning_rates.json in nbs/results")
    parser.add_argument("--quick", action="store_true", help="a few scenes and one epoch: does it run?")
    options = parser.parse_args()
    options.out = options.out or (RESULTS if options.tune is None else LEARNING_RATES)
    found = json.loads(options.out.read_text()) if options.out.exists() else {"rows": {}}

    def save():
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        config = PocketConfig(n_train=400, n_test=100) if options.quick else PocketConfig()
        data = load_training_data(write_pocket(Path(folder) / "pocket", config), load_vlp())
        names = data.test.label_names
        embeddings = {
            "pool": data.embeddings,
            "one": embed_names(PromptPool.single(SINGLE_PROMPT), data.vlp, names),
            "bare": embed_names(PromptPool.single("{}"), data.vlp, names),
        }
        make = make_ablations if options.ablations else make_rows
        if options.tune is not None:
            make = make_tuning
        make(found, data, embeddings, options, save)
    found["made"] = {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "scenes": {part: len(data.tokens[part]) for part in data.tokens},
    }
    save()


if __name__ == "__main__":
    main()
