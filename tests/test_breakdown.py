"""Means over kinds of labels."""

from types import SimpleNamespace

import numpy as np
import pytest

from qks.core import QKSError
from qks.evaluate.breakdown import (
    SCENE_LABELS,
    breakdown_by_kind,
    frequency_decades,
    label_kinds,
    precision_per_label,
    precision_per_label_from_stream,
)
from qks.evaluate.metrics import average_precision_per_label, evaluate_scores
from qks.evaluate.protocols import PROTOCOLS
from qks.evaluate.streaming import StreamingScores

NAMES = ["cat", "dog", "bird", "cow", "fish", "car", "birds", "sky", "sea"]


@pytest.fixture
def sample():
    generator = np.random.default_rng(0)
    labels = generator.choice([-1, 0, 1], size=(90, 9), p=[0.6, 0.3, 0.1]).astype(np.int8)
    labels[:, 8] = np.minimum(labels[:, 8], 0)
    return generator.normal(size=labels.shape).round(1), labels


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_labels_make_up_the_mean(sample, protocol):
    ap, positives = precision_per_label(*sample, 5, protocol, NAMES)
    result = evaluate_scores(*sample, 5, (2,), protocol, NAMES)
    assert np.nanmean(ap[:5]) == pytest.approx(result["seen"]["mAP"]) and np.nanmean(ap[5:]) == pytest.approx(
        result["zsl"]["mAP"]
    )
    parts = breakdown_by_kind(ap, positives, 5, NAMES)
    for part, mean in (("seen", result["seen"]["mAP"]), ("zsl", result["zsl"]["mAP"])):
        for split in parts[part].values():
            total = sum(kind["labels"] for kind in split.values())
            assert sum(kind["labels"] * kind["mAP"] for kind in split.values()) / total == pytest.approx(mean)


def test_within_the_part(sample):
    scores, labels = sample
    ap, positives = precision_per_label(scores, labels, 5)
    for columns in (slice(5), slice(5, None)):
        kept = (labels[:, columns] > 0).any(axis=1)
        np.testing.assert_array_equal(
            ap[columns], average_precision_per_label(scores[kept][:, columns], labels[kept][:, columns])
        )
    np.testing.assert_array_equal(positives, (labels > 0).sum(axis=0))


def test_a_stream_gives_the_same(sample):
    scores, labels = sample
    image, column = np.nonzero(labels)
    sparse = SimpleNamespace(
        offsets=np.searchsorted(image, np.arange(91)), columns=column, values=labels[image, column]
    )
    stream = StreamingScores(sparse, 5, (2,))
    stream.update(scores)
    for ours, expected in zip(precision_per_label_from_stream(stream), precision_per_label(scores, labels, 5)):
        np.testing.assert_array_equal(ours, expected)


def test_kinds_of_labels(monkeypatch):
    monkeypatch.setattr("qks.evaluate.breakdown.SCENE_LABELS", frozenset(["sky"]))
    split = label_kinds(np.array([1, 2, 30, 4, 5, 600, 7, 8000, 0]), 5, NAMES)
    assert list(split["seen"]) == ["frequency"], "no seen label is a scene"
    assert split["zsl"]["twin"] == ["without a twin", "with a twin", "without a twin", "without a twin"]
    assert split["zsl"]["concept"] == ["object or other", "object or other", "scene", "object or other"]
    assert split["zsl"]["frequency"] == ["100 to 999", "1 to 9", "1,000 to 9,999", "none"]
    assert list(label_kinds(np.ones(9, dtype=int), 5)["zsl"]) == ["frequency"]
    with pytest.raises(QKSError, match="8 label names for 9 labels"):
        label_kinds(np.ones(9, dtype=int), 5, NAMES[:8])


def test_decades():
    assert frequency_decades(np.array([9, 10, 9999, 10000, 10**7])) == [
        "1 to 9",
        "10 to 99",
        "1,000 to 9,999",
        "10,000 and more",
        "10,000 and more",
    ]
    assert len(SCENE_LABELS) == 33


def test_scenes_are_told_apart_among_nus_wides_labels_only():
    "A house of one's own is perhaps no scene."
    assert list(label_kinds(np.ones(4, dtype=int), 1, ["dog", "house", "moon", "cat"])["zsl"]) == ["frequency", "twin"]
    assert (
        label_kinds(np.ones(35, dtype=int), 1, ["dog", "cat", *sorted(SCENE_LABELS)])["zsl"]["concept"]
        == ["object or other"] + ["scene"] * 33
    )


def test_by_hand(monkeypatch):
    monkeypatch.setattr("qks.evaluate.breakdown.SCENE_LABELS", frozenset(["sky"]))
    ap = np.array([0.2, 0.4, np.nan, 0.6, 1.0])
    positives = np.array([5, 50, 0, 20, 30])
    parts = breakdown_by_kind(ap, positives, 2, ["bird", "car", "birds", "sky", "sea"])
    assert parts["seen"] == {"frequency": {"1 to 9": {"mAP": 0.2, "labels": 1}, "10 to 99": {"mAP": 0.4, "labels": 1}}}
    assert parts["zsl"]["frequency"] == {"10 to 99": {"mAP": 0.8, "labels": 2}}
    assert parts["zsl"]["twin"] == {"without a twin": {"mAP": 0.8, "labels": 2}}
    assert parts["zsl"]["concept"] == {"object or other": {"mAP": 1.0, "labels": 1}, "scene": {"mAP": 0.6, "labels": 1}}
