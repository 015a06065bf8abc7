"""Find the thresholds of the packaged model, and measure them on Pocket-WIDE's test part.

    python -c "from qks import write_pocket; write_pocket('data/pocket')"
    python scripts/calibrate_pocket.py data/pocket

Writes qks/assets/pocket_qks/thresholds.safetensors (found on the held-out part of the training scenes) and
nbs/results/calibration.json. Takes about a minute.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from qks.calibrate.choice import choose_threshold
from qks.calibrate.fit import assess, folds, label_share
from qks.calibrate.plain import PLAIN_KINDS, plain_pictures
from qks.calibrate.platt import fit_platt, sigmoid
from qks.calibrate.reliability import reliability_curve
from qks.data.splits import open_splits
from qks.evaluate.report import to_json
from qks.experiment.calibration import calibrate_model, calibration_images, score_held_out
from qks.model.tagger import QKS
from qks.model.thresholds import background_thresholds, matched_offsets, save_thresholds

ROOT = Path(__file__).resolve().parent.parent
ASSET = ROOT / "qks" / "assets" / "pocket_qks"
RESULTS = ROOT / "nbs" / "results" / "calibration.json"
PLAIN_SEED = 1  # other plain pictures than those that thresholds are found with


def curve(probabilities, labels):
    """A reliability curve for JSON."""
    found = reliability_curve(probabilities, labels)
    return {"counts": found.counts, "confidence": found.confidence, "frequency": found.frequency}


def row(probabilities, labels, threshold):
    """What a threshold gives, and the best that one could have given."""
    best = choose_threshold(probabilities, labels)
    return assess(probabilities, labels, threshold)._asdict() | {"best threshold": best.threshold, "best f1": best.f1}


def shown_row(shown, labels):
    """Precision, recall and F1 of labels that are shown or not."""
    hits = (shown & (labels > 0)).sum()
    n_shown = shown.sum()
    n_present = (labels > 0).sum()
    return {
        "precision": hits / n_shown if n_shown else None,
        "recall": hits / n_present,
        "f1": 2 * hits / (n_shown + n_present),
    }


def main_rows(logits, labels, calibrated, thresholds, n_seen):
    """Before and after, for labels trained on and for others."""
    rows = {}
    curves = {}
    parts = {
        "trained on": (slice(0, n_seen), thresholds.trained),
        "never trained on": (slice(n_seen, None), thresholds.untrained),
    }
    for name, (columns, threshold) in parts.items():
        raw = sigmoid(logits[:, columns].astype(np.float64))
        rows[f"{name}, before"] = row(raw, labels[:, columns], 0.5)
        rows[f"{name}, after"] = row(calibrated[:, columns], labels[:, columns], threshold)
        curves[f"{name}, before"] = curve(raw, labels[:, columns])
        curves[f"{name}, after"] = curve(calibrated[:, columns], labels[:, columns])
    return rows, curves


def label_features(embeddings, mean_scores, n_seen):
    """What is known of any label: text norm, similarity to another label trained on, mean score without labels."""
    directions = normalize(embeddings.double(), dim=-1)
    similarity = directions @ directions[:n_seen].T  # [C, S]
    similarity[range(n_seen), range(n_seen)] = -1.0  # the label itself
    return {
        "text norm": embeddings.norm(dim=-1).double().numpy(),
        "similarity to the nearest label trained on": similarity.amax(1).numpy(),
        "mean score on unlabelled pictures": mean_scores.astype(np.float64),
    }


def left_out_f1(scores, labels, features):
    """The best F1 of labels trained on that are left out, with offsets by a regression on features."""
    probabilities = np.empty(scores.shape)
    for kept, left_out in folds(scores.shape[1]):
        model = fit_platt(scores[:, kept], labels[:, kept], features[kept])
        log_odds = model.slope * scores[:, left_out] + model.expected_offsets(features[left_out])
        probabilities[:, left_out] = sigmoid(model.caution * log_odds)
    return choose_threshold(probabilities, labels).f1


def ways_for_others(held_out, held_out_labels, logits, labels, embeddings, n_seen):
    """Ways to the offset of a label that was never trained on, all measured at their own best threshold."""
    truth = labels[:, n_seen:]
    trained = held_out[:, :n_seen]
    plain = fit_platt(trained, held_out_labels)
    features = label_features(embeddings, held_out.mean(0), n_seen)
    sets = {"one offset for all": [], **{f"regression on {name}": [name] for name in features}}
    sets["regression on all three"] = list(features)
    rows = {}
    for way, names in sets.items():
        matrix = np.stack([features[name] for name in names], 1) if names else np.zeros((len(embeddings), 0))
        model = fit_platt(trained, held_out_labels, matrix[:n_seen])
        log_odds = model.slope * logits[:, n_seen:] + model.expected_offsets(matrix[n_seen:])
        rows[way] = row(sigmoid(model.caution * log_odds), truth, 0.5)
    share = label_share(held_out_labels)
    for m in (32, 64, 128, 256, len(held_out)):
        some = np.unique(np.linspace(0, len(held_out) - 1, m).round().astype(int))
        offsets = matched_offsets(torch.from_numpy(held_out[some, n_seen:]), plain.slope, share).numpy()
        rows[f"matched on {m} pictures"] = row(sigmoid(plain.slope * logits[:, n_seen:] + offsets), truth, 0.5)
    return rows


def background_rows(held_out, logits, labels, n_seen):
    """Thresholds without any label: rates, and the numbers of background pictures."""
    rows = {}
    for m in (100, len(held_out)):
        some = np.unique(np.linspace(0, len(held_out) - 1, m).round().astype(int))
        for rate in (0.01, 0.02, 0.05, 0.1):
            limits = background_thresholds(torch.from_numpy(held_out[some]), rate).numpy()
            shown = logits >= limits
            rows[f"rate {rate:g}, {m} pictures"] = {
                "trained on": shown_row(shown[:, :n_seen], labels[:, :n_seen]),
                "never trained on": shown_row(shown[:, n_seen:], labels[:, n_seen:]),
            }
    return rows


def plain_rows(qks, names):
    """How many plain pictures of each kind get a tag: from one half on, and with thresholds."""
    pictures = plain_pictures(150, seed=PLAIN_SEED)
    thresholds = qks.thresholds
    with_thresholds = qks.tag(pictures, names)
    qks.thresholds = None
    before = qks.tag(pictures, names, threshold=0.5)
    qks.thresholds = thresholds
    kinds = len(PLAIN_KINDS)
    return {
        kind: {
            "pictures": len(pictures[i::kinds]),
            "with a tag, before": sum(bool(tags) for tags in before[i::kinds]),
            "with a tag, after": sum(bool(tags) for tags in with_thresholds[i::kinds]),
        }
        for i, kind in enumerate(PLAIN_KINDS)
    }


def main(data):
    """Find and save thresholds, then measure them."""
    qks = QKS.from_pretrained("pocket", use_thresholds=False)
    validation = calibration_images(data, "pocket")
    result = calibrate_model(qks, validation)
    qks.thresholds = result.thresholds
    save_thresholds(result.thresholds, ASSET)

    test = open_splits(data)["test"]
    names = list(test.label_names)
    n_seen = test.n_seen
    labels = test.dense().labels  # [t, C]
    embeddings = qks.pool.embed(qks.vlp, names)  # [C, E]
    on_test = score_held_out(qks, test, embeddings)
    on_validation = score_held_out(qks, validation, embeddings)
    calibrated = qks.label_thresholds(names, embeddings).calibrate(torch.from_numpy(on_test.logits))
    probabilities = sigmoid(calibrated.numpy().astype(np.float64))  # [t, C]
    rows, curves = main_rows(on_test.logits, labels, probabilities, result.thresholds, n_seen)
    is_plain = on_test.spread < result.thresholds.least_spread
    held_out_labels = validation.dense().labels
    features = label_features(embeddings, on_validation.logits.mean(0), n_seen)
    known = np.stack(list(features.values()), 1)[:n_seen]
    facts = {
        "pictures": {"held out": len(validation), "test": len(test), "kept": len(result.thresholds.pictures)},
        "labels": {"trained on": n_seen, "never trained on": len(names) - n_seen},
        "criterion": result.thresholds.criterion,
        "thresholds": {"trained on": result.thresholds.trained, "others": result.thresholds.untrained},
        "slope": result.thresholds.slope,
        "least spread": result.thresholds.least_spread,
        "test pictures too plain": int(is_plain.sum()),
        "held out": {"before": result.fit.before._asdict()} | {k: v._asdict() for k, v in result.fit.after.items()},
        "test": rows,
        "curves": curves,
        "ways": ways_for_others(on_validation.logits, held_out_labels, on_test.logits, labels, embeddings, n_seen),
        "left out, best f1": {
            "regression": left_out_f1(on_validation.logits[:, :n_seen], held_out_labels, known),
            "matching": result.fit.left_out.f1,
        },
        "background": background_rows(on_validation.logits, on_test.logits, labels, n_seen),
        "plain pictures": plain_rows(qks, names),
    }
    RESULTS.write_text(json.dumps(to_json(facts), indent=1) + "\n", encoding="utf-8")
    print(f"{ASSET.relative_to(ROOT)}: {result.thresholds}; {RESULTS.relative_to(ROOT)} written")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: calibrate_pocket.py POCKET_WIDE")
    main(Path(sys.argv[1]))
