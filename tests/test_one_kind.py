"""Labels of one kind: a training on all that there are, and a test of labels that are all new to the head."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from qks.commands.main import main
from qks.evaluate.bootstrap import bootstrap_intervals, bootstrap_intervals_from_stream
from qks.evaluate.breakdown import breakdown_by_kind, precision_per_label, precision_per_label_from_stream
from qks.evaluate.metrics import evaluate_part, evaluate_scores
from qks.evaluate.report import ReportConfig, build_report
from qks.evaluate.streaming import StreamingScores
from qks.evaluate.tables import report_table, results_table, summarise

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220)}
NAMES = ["sky", "bird", "dog", "birds", "lake"]


@pytest.fixture
def root(tmp_path):
    "Pictures of one or two colours, in two tables."
    (root := tmp_path / "own").mkdir()
    generator = np.random.default_rng(5)
    for split in ("train", "test"):
        with open(root / f"{split}.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["image", "labels"])
            for number in range(24):
                first, second = generator.choice(list(COLOURS), 2, replace=False)
                image = Image.new("RGB", (64, 48), COLOURS[first])
                if number % 2:
                    image.paste(COLOURS[second], (0, 0, 32, 48))
                image.save(root / f"{split}-{number}.png")
                table.writerow([f"{split}-{number}.png", f"{first}|{second}" if number % 2 else first])
    return root


@pytest.mark.parametrize("n_seen, part", [(5, "seen"), (0, "zsl")])
def test_one_part_however_it_is_measured(n_seen, part):
    "The numbers that these labels have by themselves: dense or streamed, label by label, in resamples and in tables."
    generator = np.random.default_rng(7)
    labels = generator.choice([-1, 0, 1], size=(80, 5), p=[0.7, 0.15, 0.15])  # [B, C]
    scores = generator.normal(size=labels.shape)
    whole = evaluate_part(scores, labels, (2,), "whole")
    assert evaluate_scores(scores, labels, n_seen, (2,)) == {part: whole}
    image, column = np.nonzero(labels)
    sparse = SimpleNamespace(
        offsets=np.searchsorted(image, np.arange(81)), columns=column, values=labels[image, column]
    )
    stream = StreamingScores(sparse, n_seen, (2,), label_names=NAMES)
    stream.update(scores)
    assert stream.result() == {part: whole}
    ap, positives = precision_per_label(scores, labels, n_seen)
    assert (
        ap.mean() == pytest.approx(whole["mAP"]) and precision_per_label_from_stream(stream)[0].tolist() == ap.tolist()
    )
    assert list(breakdown_by_kind(ap, positives, n_seen, NAMES)) == [part]
    told = bootstrap_intervals(scores, labels, n_seen, (2,), resamples=40)
    assert list(told) == [part] and told[part]["mAP"]["low"] < whole["mAP"] < told[part]["mAP"]["high"]
    for name, interval in bootstrap_intervals_from_stream(stream, 40)[part].items():
        assert interval == pytest.approx(told[part][name])
    found = build_report({"QKS": scores}, labels, n_seen, ReportConfig(("official", "leak-free"), (2,)), NAMES)
    width = part.ljust(4)
    assert [line.split(" | ")[1:3] for line in report_table(found).splitlines()[2:]] == [
        ["official ", width],
        ["leak-free", width],
    ]
    assert results_table({"QKS": summarise([{part: whole}])}, (2,)).count("mAP") == 1


def test_all_labels_seen(root, tmp_path, capsys):
    assert main(["data", "folder", "prepare", str(root)]) == 0
    assert "no label is unseen" in capsys.readouterr().out
    assert (
        main(
            [
                "train",
                str(root),
                "--out",
                str(tmp_path / "run"),
                "--epochs",
                "2",
                "--n-layers",
                "1",
                "--n-queries",
                "2",
                "--topk",
                "1",
            ]
        )
        == 0
    )
    table = capsys.readouterr().out
    assert "seen mAP" in table and "ZSL" not in table and "QKS" in table
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["labels"] == {"seen": 3, "unseen": 0} and list(results["rows"]["QKS"]) == ["seen"]
    assert len(list((tmp_path / "run/figures").glob("*.png"))) == 4
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "run/model"),
                str(root),
                "--topk",
                "1",
                "--protocol",
                "all",
                "--per-label",
                str(tmp_path / "ap.csv"),
            ]
        )
        == 0
    )
    assert "3 seen and 0 unseen labels" in capsys.readouterr().out
    assert [row["part"] for row in csv.DictReader(open(tmp_path / "ap.csv"))] == ["seen"] * 3


def test_all_labels_unseen(root, tmp_path, capsys):
    "Another data set's pictures test a head zero-shot; there is nothing to train on."
    (root / "unseen.txt").write_text("\n".join(COLOURS))
    words = ["data", "folder", "prepare", str(root), "--unseen", "unseen.txt"]
    assert main(words) == 2 and "prepare the test split alone (--splits test)" in capsys.readouterr().err
    assert main([*words, "--splits", "test"]) == 0
    assert main(["evaluate", "pocket", str(root), "--topk", "1", "--bootstrap", "20", "--baselines"]) == 0
    out = capsys.readouterr().out
    assert "0 seen and 3 unseen labels" in out and "| zsl " in out and "seen |" not in out
    assert main(["train", str(root), "--out", str(tmp_path / "run"), "--topk", "1"]) == 2
    assert "no index of its train split" in capsys.readouterr().err and not (tmp_path / "run").exists()
