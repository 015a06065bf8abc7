"""Who takes part under each protocol: by hand, against plain references, and what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from qks.core import QKSError
from qks.data.nuswide import read_nuswide
from qks.evaluate.metrics import evaluate_scores
from qks.evaluate.protocols import (
    PROTOCOLS,
    DenseLabels,
    Protocol,
    default_topk,
    find_protocol,
    find_twins,
    part_columns,
    plan_parts,
)

NAMES = ["sky", "bird", "harbour", "dog", "car", "birds", "harbor", "castle", "zebra", "lake"]
PARTS = {"seen": slice(5), "zsl": slice(5, None), "gzsl": slice(None)}


@pytest.fixture
def sample():
    generator = np.random.default_rng(7)
    labels = generator.choice([-1, 0, 1], size=(80, 10), p=[0.75, 0.15, 0.1])
    labels[:, 8] = np.minimum(labels[:, 8], 0)  # zebra: annotated, never there
    return generator.normal(size=(80, 10)).round(1), labels


def sklearn_mean(scores, labels, keep_absent):
    values = []
    for c in range(scores.shape[1]):
        given = labels[:, c] != 0
        if (labels[:, c] > 0).any():
            values.append(average_precision_score(labels[given, c] > 0, scores[given, c]))
        elif given.any() and keep_absent:
            values.append(0)
    return np.mean(values)


@pytest.mark.parametrize(
    "protocol, all_images, keep_absent",
    [("official", False, True), ("all-images", True, True), ("annotated", False, False)],
)
def test_means_are_scikit_learns(sample, protocol, all_images, keep_absent):
    result = evaluate_scores(*sample, 5, topk=(2,), protocol=protocol)
    for part, columns in PARTS.items():
        scores = sample[0][:, columns]
        labels = sample[1][:, columns]
        rows = (labels > 0).any(axis=1) | all_images
        assert result[part]["mAP"] == pytest.approx(sklearn_mean(scores[rows], labels[rows], keep_absent), abs=1e-12)


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "partial-labels"])
def test_counts_at_k(sample, protocol):
    scores, labels = sample
    parts = plan_parts(DenseLabels(labels), 5, (2,), protocol, NAMES)
    for part, metrics in evaluate_scores(scores, labels, 5, (2,), protocol, NAMES).items():
        kept = np.ix_(parts[part].images, parts[part].labels)
        best = np.argsort(-scores[kept], axis=1, kind="stable")[:, :2]
        hits = (np.take_along_axis(labels[kept], best, axis=1) > 0).sum()
        assert metrics["P@2"] == hits / 2 / parts[part].images.sum()
        assert metrics["R@2"] == hits / (labels[kept] > 0).sum()


def test_leak_free_is_official_without_the_twins(sample):
    scores, labels = sample
    free = [0, 1, 2, 3, 4, 7, 8, 9]
    expected = evaluate_scores(scores[:, free], labels[:, free], 5, (2,))
    assert evaluate_scores(scores, labels, 5, (2,), "leak-free", NAMES) == expected
    assert expected["seen"] == evaluate_scores(scores, labels, 5, (2,))["seen"]


def test_twins_are_listed():
    assert find_twins(NAMES[:5], NAMES[5:]) == {"birds": ["bird"], "harbor": ["harbour"]}
    assert find_twins(("dog",), ("cat",)) == {}


def test_all_images_keeps_images_without_a_label_at_all():
    labels = np.array([[1, -1, 1], [-1, 1, 1], [0, 0, 0]])
    scores = np.array([[0.9, 0.2, 0.3], [0.1, 0.8, 0.4], [1.0, 1.0, 1.0]])
    result = evaluate_scores(scores, labels, 2, (1,), "all-images")
    assert result["seen"]["P@1"] == 2 / 3 and result["seen"]["mAP"] == 1  # no annotation, no place in a ranking


def test_annotated_only_changes_the_mean(sample):
    official, annotated = (evaluate_scores(*sample, 5, (2,), name) for name in ("official", "annotated"))
    assert annotated["zsl"]["mAP"] == pytest.approx(official["zsl"]["mAP"] * 5 / 4)
    assert {**annotated["zsl"], "mAP": 0} == {**official["zsl"], "mAP": 0}


def test_a_protocol_of_ones_own(sample):
    mine = Protocol("mine", "every image, no absent label", keep_all_images=True, count_absent_labels=False)
    assert find_protocol(mine) is mine
    assert evaluate_scores(*sample, 5, (2,), mine)["zsl"]["mAP"] == pytest.approx(
        sklearn_mean(sample[0][:, 5:], sample[1][:, 5:], False)
    )


def test_names_and_rules():
    assert list(PROTOCOLS) == ["official", "all-images", "annotated", "leak-free", "own-data", "partial-labels"]
    assert all(name == protocol.name and protocol.rule for name, protocol in PROTOCOLS.items())
    with pytest.raises(AttributeError):
        PROTOCOLS["official"].name = "other"


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(protocol="biam"), "'biam' is not known: use one of official, all-images, annotated, leak-free, own-data"),
        (dict(protocol="leak-free"), "give label_names"),
        (dict(protocol="leak-free", label_names=NAMES[:9]), "9 label names for 10 labels"),
        (
            dict(protocol="leak-free", label_names=[*NAMES[:5], "skies", "dogs", "cars", "birds", "harbors"]),
            "every unseen label has a twin",
        ),
        (dict(n_seen=5.0), "n_seen is 5.0"),
    ],
)
def test_what_is_refused(sample, options, message):
    with pytest.raises(QKSError, match=message):
        evaluate_scores(*sample, **{"n_seen": 5, "topk": (2,), **options})


def test_too_few_labels_left_by_leak_free(sample):
    with pytest.raises(QKSError, match="part zsl has only 3 annotated"):
        evaluate_scores(*sample, 5, (4,), "leak-free", NAMES)


def test_parts_hold_rising_columns():
    columns = part_columns(10, 5, PROTOCOLS["leak-free"], NAMES)
    assert columns["gzsl"].tolist() == [0, 1, 2, 3, 4, 7, 8, 9] and columns["zsl"].tolist() == [7, 8, 9]


def test_leaks():
    assert find_twins(
        ["bird", "harbour", "cities", "boxes", "Polar Bears"], ["birds", "harbor", "city", "box", "bear", "dog"]
    ) == {"birds": ["bird"], "harbor": ["harbour"], "city": ["cities"], "box": ["boxes"], "bear": ["Polar Bears"]}
    assert find_twins(["sunflower", "snowman", "plane"], ["sun", "flower", "snow", "airplane"]) == {}
    data = read_nuswide(Path(__file__).parent / "data/nuswide_tiny/raw", "test")
    assert len(find_twins(data.label_names[:925], data.label_names[925:])) == 31


def test_twins_by_colour_but_not_by_two_letters():
    assert find_twins(["grey", "gas"], ["gray", "ga"]) == {"gray": ["grey"]}


@pytest.mark.parametrize(
    "n_labels, n_seen, topk",
    [(1006, 925, (3, 5)), (12, 8, (3,)), (10, 5, (3, 5)), (6, 3, (3,)), (8, 8, (3, 5)), (8, 6, (1,)), (5, 0, (3, 5))],
)
def test_default_topk_fits_the_smaller_part(n_labels, n_seen, topk):
    assert default_topk(n_labels, n_seen) == topk


def test_protocols_do_without_torch():
    code = "import sys, qks.evaluate.protocols; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
