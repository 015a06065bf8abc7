"""Labels that nobody knows all of: an entry without annotation changes no loss, no metric and no choice."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from qks.commands.main import main
from qks.data.splits import open_splits
from qks.evaluate.bootstrap import bootstrap_intervals
from qks.evaluate.metrics import evaluate_part, evaluate_scores
from qks.experiment.training_run import suit_annotation
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.train.config import TrainConfig
from qks.train.loop import fit
from qks.train.optimizer import make_loss
from qks.train.prior import prior_log_odds
from qks.train.selection import selection_score
from qks.train.targets import Targets

# three pictures, three labels; 0: nobody looked
LABELS = np.array([[1, 0, -1], [0, 1, -1], [-1, 1, 1]], np.int8)
SCORES = np.array([[0.5, 0.9, 0.7], [0.9, 0.6, 0.8], [0.4, 0.3, 0.2]])


# by hand


def test_metrics_by_hand():
    """Of each picture only annotated labels are ranked.

    AP: the first label is annotated on pictures 1 (0.5, present) and 3 (0.4, absent): 1. The second on 2 and 3, both
    present, so it is in no mean. The third on all: 0.8 and 0.7 absent, 0.2 present: 1/3. The mean is 2/3.
    At k = 1 the best annotated labels are the third (absent), the third (absent) and the first (absent): no hit of 3.
    At k = 2: picture 1 has third and first (a hit), picture 2 third and second (a hit), picture 3 first and second (a
    hit): 3 of 6, and 4 labels are present. At k = 3 pictures 1 and 2 have two predictions only: 4 of 7.
    """
    metrics = evaluate_part(SCORES, LABELS, (1, 2, 3), "seen", "partial-labels")
    assert metrics["mAP"] == pytest.approx(2 / 3)
    assert (metrics["P@1"], metrics["R@1"], metrics["F1@1"]) == (0, 0, 0)
    assert [metrics[name] for name in ("P@2", "R@2", "F1@2")] == pytest.approx([3 / 6, 3 / 4, 6 / 10])
    assert [metrics[name] for name in ("P@3", "R@3", "F1@3")] == pytest.approx([4 / 7, 4 / 4, 8 / 11])


def test_losses_by_hand():
    logits = torch.tensor([[0.0, 5.0], [-7.0, math.log(3)]])
    targets = torch.tensor([[1.0, 0.0], [0.0, -1.0]])  # probabilities 1/2, present; 3/4, absent
    bce = make_loss(TrainConfig(loss="bce", partial_labels=True))(logits, targets).item()
    assert bce == pytest.approx((math.log(2) + math.log(4)) / 2)
    asl = make_loss(TrainConfig(partial_labels=True))(logits, targets).item()
    assert asl == pytest.approx((math.log(2) + 0.75**4 * math.log(4)) / 2)


def test_the_frequency_by_hand():
    targets = Targets(torch.from_numpy(LABELS).float())
    assert prior_log_odds(targets, partial_labels=True) == pytest.approx(math.log(4 / 3))  # 4 of 7 annotated
    assert prior_log_odds(targets) == pytest.approx(math.log(4 / 5))


def random_labels(n=60, C=6, unknown=0.4, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.where(generator.random((n, C)) < 0.3, 1, -1).astype(np.int8)
    labels[generator.random((n, C)) < unknown] = 0
    return labels, generator.normal(size=(n, C)) + 0.5 * labels


def test_scores_of_unknown_entries_change_nothing():
    labels, scores = random_labels()
    other = np.where(labels == 0, 1e6 * np.random.default_rng(1).normal(size=scores.shape), scores)
    assert evaluate_scores(scores, labels, 4, (1, 2), "partial-labels") == evaluate_scores(
        other, labels, 4, (1, 2), "partial-labels"
    )
    assert evaluate_scores(scores, labels, 4, (1, 2), "own-data") != evaluate_scores(
        other, labels, 4, (1, 2), "own-data"
    )


def test_where_all_is_annotated_the_protocol_is_own_data():
    labels, scores = random_labels(unknown=0)
    expected = evaluate_scores(scores, labels, 4, (1, 2), "own-data")
    assert evaluate_scores(scores, labels, 4, (1, 2), "partial-labels") == expected


def test_intervals_are_around_the_same_numbers():
    labels, scores = random_labels(400)
    point = evaluate_scores(scores, labels, 4, (2,), "partial-labels")
    intervals = bootstrap_intervals(scores, labels, 4, (2,), "partial-labels", resamples=200, seed=0)
    for name in ("mAP", "P@2", "R@2", "F1@2"):
        low, high = (intervals["seen"][name][end] for end in ("low", "high"))
        assert low < point["seen"][name] < high


# training


@pytest.fixture
def toy():
    torch.manual_seed(0)
    labels, _ = random_labels(40, 5)
    return torch.randn(40, 6, 64), torch.from_numpy(labels).float(), torch.randn(5, 8) + 1


def train(toy, labels, **changes):
    tokens, _, embeddings = toy
    torch.manual_seed(1)
    head = QKSHead(torch.randn(64, 8) * 0.3, HeadConfig(n_queries=3, n_layers=1, dropout=0.0))
    settings = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "schedule": "cosine", "selection": "last"}
    fit(head, (tokens, labels), embeddings, None, TrainConfig(**settings | changes))
    return head.state_dict()


@pytest.mark.parametrize("loss", ["bce", "asl"])
def test_an_unknown_entry_teaches_nothing(toy, loss):
    "A label that is unknown everywhere: with the option it is as if it were not there; without, it is absent."
    tokens, labels, embeddings = toy
    labels = labels.clone()
    labels[:, 4] = 0
    without = (tokens, labels[:, :4], embeddings[:4])
    whole = train((tokens, labels, embeddings), labels, loss=loss, partial_labels=True)
    smaller = train(without, labels[:, :4], loss=loss, partial_labels=True)
    for name, value in whole.items():
        torch.testing.assert_close(value, smaller[name])
    absent = labels.clone()
    absent[:, 4] = -1
    counted = train((tokens, labels, embeddings), labels, loss=loss)
    assert any(not torch.equal(value, counted[name]) for name, value in whole.items())
    for name, value in train((tokens, absent, embeddings), absent, loss=loss).items():
        torch.testing.assert_close(value, counted[name])


def test_the_choice_of_an_epoch_ignores_them(toy):
    tokens, labels, embeddings = toy
    head = QKSHead(torch.randn(64, 8) * 0.3, HeadConfig(n_queries=3, n_layers=1)).eval()
    config = TrainConfig(protocol="partial-labels", topk=(2,))
    score = selection_score(head, (tokens, labels), embeddings, 5, config)
    with torch.no_grad():
        logits = head(tokens, embeddings).logits
    expected = evaluate_part(logits, labels, (2,), "seen", "partial-labels")
    assert score["score"] == pytest.approx(expected["mAP"] + expected["F1@2"])


def test_option_and_data_settle_loss_and_protocol():
    asked = suit_annotation(TrainConfig(partial_labels=True), "own-data")
    known = suit_annotation(TrainConfig(), "partial-labels")
    assert asked == known and known.partial_labels and known.protocol == "partial-labels"
    assert suit_annotation(TrainConfig(partial_labels=True), "official").protocol == "official"
    assert suit_annotation(TrainConfig(), "own-data") == TrainConfig(protocol="own-data")


# from a table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    "60 pictures; colours as 1, -1, and what nobody looked at as 0 or a blank."
    root = tmp_path_factory.mktemp("data") / "photos"
    root.mkdir()
    generator = np.random.default_rng(0)
    lines = ["image,red,green,blue"]
    for number in range(60):
        present = generator.random(3) < 0.5
        pixels = (255 * present).astype(np.uint8)
        Image.new("RGB", (16, 16), tuple(pixels.tolist())).save(root / f"{number:02d}.png")
        cells = ["1" if shown else "-1" for shown in present]
        cells[number % 3] = "" if number % 2 else "0"
        lines.append(f"{number:02d}.png,{','.join(cells)}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


def test_prepare_train_and_evaluate(table, tmp_path, capsys):
    words = ["--test-part", "0.3", "--partial-labels"]
    assert main(["data", "folder", "prepare", str(table), *words]) == 0
    assert "1 means present, -1 absent, 0 and blank not annotated" in capsys.readouterr().out
    train_split = open_splits(table)["train"]
    labels = train_split.labels()
    assert train_split.protocol == "partial-labels" and ((labels == 0).sum(1) == 1).all()
    out = tmp_path / "run"
    words = ["--epochs", "1", "--n-queries", "2", "--min-positives", "0"]
    assert main(["train", str(table), "--out", str(out), *words]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["train"]["partial_labels"] and config["train"]["protocol"] == "partial-labels"
    results = json.loads((out / "results.json").read_text())
    assert results["protocol"] == "partial-labels"
    report = tmp_path / "report.json"
    assert main(["evaluate", str(out), str(table), "--json", str(report)]) == 0
    measured = json.loads(report.read_text())["rows"]["QKS"]["partial-labels"]["metrics"]["seen"]
    assert measured == pytest.approx(results["runs"][0]["metrics"]["seen"], abs=1e-4)


def test_evaluate_has_the_option_for_any_data(table, tmp_path, capsys):
    assert main(["data", "folder", "prepare", str(table), "--test-part", "0.3", "--not-annotated", "0,blank"]) == 0
    report = tmp_path / "report.json"
    assert main(["evaluate", "pocket", str(table), "--partial-labels", "--json", str(report)]) == 0
    assert list(json.loads(report.read_text())["protocols"]) == ["partial-labels"]
    capsys.readouterr()
    assert main(["evaluate", "pocket", str(table), "--partial-labels", "--protocol", "official"]) == 2
    assert "pass one" in capsys.readouterr().err


def test_options_that_contradict_each_other(table, tmp_path, capsys):
    words = ["--partial-labels", "--not-annotated", "-1"]
    assert main(["data", "folder", "prepare", str(table), *words]) == 2
    assert "give one only" in capsys.readouterr().err
    root = tmp_path / "lists"
    root.mkdir()
    Image.new("RGB", (8, 8)).save(root / "a.png")
    (root / "train.csv").write_text("image,labels\na.png,cat\n")
    assert main(["data", "folder", "prepare", str(root), "--partial-labels"]) == 2
    assert "partial_labels is for tables with a column of 0 and 1 for each label" in capsys.readouterr().err
