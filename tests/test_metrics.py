"""The metrics against the authors' numbers, a plain reference, scikit-learn, and hand arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

import qks.evaluate.metrics
import qks.evaluate.protocols
from qks.core import QKSError
from qks.evaluate.metrics import (
    average_precision_per_label,
    best_labels,
    check_scores,
    evaluate_part,
    evaluate_scores,
    topk_hits,
)
from qks.evaluate.protocols import Part

GOLDEN = {kind: dict(np.load(Path(__file__).parent / "data" / f"metrics_{kind}.npz")) for kind in ("binary", "ternary")}


def evaluate_golden(kind, **options):
    golden = GOLDEN[kind]
    return evaluate_scores(golden["scores"], golden["labels"], int(golden["n_seen"]), golden["topk"], **options)


@pytest.fixture
def sample():
    generator = np.random.default_rng(3)
    labels = generator.choice([-1, 0, 1], size=(60, 14), p=[0.6, 0.2, 0.2])
    return generator.normal(size=(60, 14)), labels


@pytest.mark.parametrize("kind", GOLDEN)
def test_equal_to_the_authors(kind):
    result = evaluate_golden(kind, protocol="official")
    golden = GOLDEN[kind]
    keys = [key for key in golden if "/" in key]
    assert sorted(keys) == sorted(f"{part}/{name}" for part in result for name in result[part])
    for key in keys:
        part, name = key.split("/")
        assert type(result[part][name]) is float
        assert result[part][name] == pytest.approx(float(golden[key]), abs=1e-6), key


def plain_reference(scores, labels, k):
    "The rules once more, one image and one label at a time."
    rows = [i for i in range(len(scores)) if any(labels[i] > 0)]
    columns = [c for c in range(scores.shape[1]) if any(labels[i, c] != 0 for i in rows)]
    precisions = []
    hits = 0
    for c in columns:
        given = [i for i in rows if labels[i, c] != 0]
        positives = [i for i in given if labels[i, c] > 0]

        def at_least(images, i):
            return sum(scores[j, c] >= scores[i, c] for j in images)

        precision = [at_least(positives, i) / at_least(given, i) for i in positives]
        precisions.append(sum(precision) / len(positives) if positives else 0)
    for i in rows:
        hits += sum(labels[i, c] > 0 for c in sorted(columns, key=lambda c: -scores[i, c])[:k])
    precision = hits / k / len(rows)
    recall = hits / (labels > 0).sum()
    return {
        "mAP": sum(precisions) / len(precisions),
        f"P@{k}": precision,
        f"R@{k}": recall,
        f"F1@{k}": 2 * precision * recall / (precision + recall) if hits else 0,
    }


@pytest.mark.parametrize("decimals", [0, 1, 9], ids=["many ties", "some ties", "no ties"])
def test_equal_to_a_plain_reference(sample, decimals):
    scores = sample[0].round(decimals)
    labels = sample[1]
    labels[:, 2], labels[:, 12] = 0, np.minimum(labels[:, 12], 0)  # one without annotation, one without a positive
    labels[5] = np.minimum(labels[5], 0)
    result = evaluate_scores(scores, labels, 9, topk=(3,))
    for part, columns in {"seen": slice(9), "zsl": slice(9, None), "gzsl": slice(None)}.items():
        assert result[part] == pytest.approx(plain_reference(scores[:, columns], labels[:, columns], 3), abs=1e-12)


@pytest.mark.parametrize("decimals", [0, 9], ids=["ties", "no ties"])
def test_scikit_learn_agrees(sample, decimals):
    scores = sample[0].round(decimals)
    labels = sample[1]
    expected = []
    for c in range(scores.shape[1]):
        annotated = labels[:, c] != 0
        expected.append(average_precision_score(labels[annotated, c] > 0, scores[annotated, c]))
    np.testing.assert_allclose(average_precision_per_label(scores, labels), expected, atol=1e-12)


def test_average_precision_by_hand():
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.2]]).T
    assert average_precision_per_label(scores, np.array([[1, -1, 0, 1, -1]]).T) == pytest.approx([5 / 6])
    assert average_precision_per_label(scores, np.array([[-1, -1, 0, -1, -1]]).T).tolist() == [0]
    assert np.isnan(average_precision_per_label(scores, np.zeros((5, 1)))).tolist() == [True]


def test_tied_images_enter_together():
    for place in range(3):
        assert average_precision_per_label(np.zeros((3, 1)), np.where(np.arange(3) == place, 1, -1)[:, None]) == [1 / 3]
    scores = np.array([[3, 2, 2, 2, 1]]).T  # precision 1/1, then 2/4 for both positives of the tie: never 2/2 or 3/3
    assert average_precision_per_label(scores, np.array([[1, -1, 1, -1, -1]]).T) == pytest.approx([(1 + 2 / 4) / 2])
    assert average_precision_per_label(scores, np.array([[1, 1, 1, -1, -1]]).T) == pytest.approx([(1 + 2 * 3 / 4) / 3])


def test_tied_labels_keep_their_order():
    part = Part(np.ones(1, dtype=bool), np.arange(3))
    assert topk_hits(np.zeros((1, 3)), np.array([[-1, 1, -1]]), part, 3).tolist() == [[False, True, False]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("decimals", [0, 1, 3])
def test_the_order_of_rows_changes_no_bit(sample, dtype, decimals):
    scores = sample[0].round(decimals).astype(dtype)
    labels = sample[1]
    expected = evaluate_scores(scores, labels, 9)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(scores))
        assert evaluate_scores(scores[order], labels[order], 9) == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("width", [1, 7, 256, 257, 600])
def test_best_labels_are_those_of_a_stable_sort(dtype, width):
    generator = np.random.default_rng(width)
    for values in (2, 30, 10**6):  # many ties, some, hardly any
        scores = (generator.integers(0, values, (40, width)) / values).astype(dtype)
        scores[0] = 0
        scores[1] = np.where(np.arange(width) % 2, 0.0, -0.0)
        for k in {1, min(6, width), width}:
            np.testing.assert_array_equal(best_labels(scores, k), np.argsort(-scores, axis=1, kind="stable")[:, :k])


def test_micro_counts_by_hand():
    scores = np.array([[0.9, 0.8, 0.3, 0.1], [0.2, 0.6, 0.1, 0.7]])
    labels = np.array([[1, -1, 1, -1], [-1, 1, 1, 1]])
    both = evaluate_scores(scores, labels, 2, topk=(1, 2))["gzsl"]
    assert [both[f"{name}@2"] for name in ("P", "R", "F1")] == pytest.approx([3 / 4, 3 / 5, 2 / 3])
    assert [both[f"{name}@1"] for name in ("P", "R", "F1")] == pytest.approx([1, 2 / 5, 4 / 7])


def test_unannotated_predictions_fill_places_but_hit_nothing():
    result = evaluate_scores(
        np.array([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]]), np.array([[1, 0, 1], [1, -1, -1]]), 2, topk=(1,)
    )
    assert result["seen"]["P@1"] == 1 / 2 and result["seen"]["R@1"] == 1 / 2


def test_a_kept_label_without_a_positive_is_zero_and_stays():
    scores = np.array([[0.9, 0.1, 0.3], [0.8, 0.2, 0.1]])
    absent = np.array([[1, -1, 1], [1, -1, -1]])
    unannotated = np.array([[1, 0, 1], [1, 0, -1]])
    assert evaluate_scores(scores, absent, 2, topk=(1,))["seen"]["mAP"] == 0.5
    assert evaluate_scores(scores, unannotated, 2, topk=(1,))["seen"]["mAP"] == 1


def test_a_label_annotated_only_on_images_set_aside_is_dropped():
    scores = np.array([[0.9, 0.1, 0.3], [0.8, 0.2, 0.1]])
    labels = np.array([[1, 0, 1], [-1, -1, 1]])
    assert evaluate_scores(scores, labels, 2, topk=(1,))["seen"]["mAP"] == 1


def test_images_are_kept_by_the_positives_of_their_part():
    scores = np.array([[0.1, 0.9], [0.9, 0.2]])
    result = evaluate_scores(scores, np.array([[1, -1], [-1, 1]]), 1, topk=(1,))
    assert result["seen"]["mAP"] == result["zsl"]["mAP"] == 1  # the other image would have come first
    assert result["gzsl"]["mAP"] == 0.5


def test_no_hit_gives_zero_not_nan():
    result = evaluate_scores(np.array([[0.1, 0.9, 0.1, 0.9]]), np.array([[1, -1, 1, -1]]), 2, topk=(1,))
    assert result["seen"]["F1@1"] == result["seen"]["P@1"] == 0


@pytest.mark.parametrize("values", [1, 40, 100])
def test_blocks_and_threads_do_not_change_the_result(sample, monkeypatch, values):
    whole = evaluate_scores(*sample, 9)
    monkeypatch.setattr(qks.evaluate.protocols, "VALUES_PER_BLOCK", values)
    monkeypatch.setattr(qks.evaluate.metrics.torch, "get_num_threads", lambda: 3)
    assert evaluate_scores(*sample, 9) == whole


def test_memory_order_does_not_change_the_result(sample):
    scores, labels = (np.asfortranarray(array) for array in sample)
    assert evaluate_scores(scores, labels, 9) == evaluate_scores(*sample, 9)
    assert evaluate_scores(scores[::-1], labels[::-1], 9) == evaluate_scores(*sample, 9)


def test_one_part_alone(sample):
    scores, labels = sample
    for part, columns in {"seen": slice(9), "zsl": slice(9, None), "gzsl": slice(None)}.items():
        assert evaluate_part(scores[:, columns], labels[:, columns], (3, 5), part) == evaluate_scores(*sample, 9)[part]


def test_what_fits_is_not_copied(sample):
    scores = sample[0].astype(np.float32)
    labels = sample[1].astype(np.int8)
    checked = check_scores(scores, labels)
    assert checked[0] is scores and checked[1] is labels


@pytest.mark.parametrize(
    "convert", [torch.tensor, lambda a: torch.tensor(a, requires_grad=a.dtype.kind == "f"), np.ndarray.tolist]
)
def test_tensors_and_lists_give_the_same(sample, convert):
    assert evaluate_scores(convert(sample[0]), convert(sample[1]), 9) == evaluate_scores(*sample, 9)


def test_bf16_scores(sample):
    rounded = torch.tensor(sample[0] * 1e6).bfloat16()  # beyond the range of fp16
    assert evaluate_scores(rounded, sample[1], 9) == evaluate_scores(rounded.float().numpy(), sample[1], 9)


def test_whole_numbers_as_scores(sample):
    scores = 10_000 + np.random.default_rng(0).permutation(60 * 14).reshape(60, 14)  # in fp16 many would be equal
    assert evaluate_scores(scores, sample[1], 9) == evaluate_scores(scores.astype(np.float64), sample[1], 9)


def test_inputs_are_left_as_they_were(sample):
    before = [array.copy() for array in sample]
    evaluate_scores(*sample, 9)
    for array, copy in zip(sample, before):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite(sample, bad):
    scores, labels = sample
    scores[4, 7] = scores[9, 1] = bad
    for function in (lambda: evaluate_scores(scores, labels, 9), lambda: average_precision_per_label(scores, labels)):
        with pytest.raises(QKSError, match=f"2 values.*{bad} at image 4, label 7"):
            function()


def test_the_first_bad_value_may_lie_in_a_later_block(sample, monkeypatch):
    scores, labels = sample
    scores[40, 7] = scores[50, 1] = np.nan
    monkeypatch.setattr(qks.evaluate.protocols, "VALUES_PER_BLOCK", 28)  # two images
    with pytest.raises(QKSError, match="2 values.*nan at image 40, label 7"):
        evaluate_scores(scores, labels, 9)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(protocol="mine"), "'mine'.*official"),
        (dict(n_seen=-1), "n_seen is -1.*0 to 14"),
        (dict(n_seen=15), "n_seen is 15"),
        (dict(topk=(3, 6)), "6 labels.*part zsl has only 5"),
        (dict(topk=()), "at least one"),
        (dict(topk=(0,)), "1 or more"),
        (dict(topk=(1.5,)), "whole number"),
    ],
)
def test_bad_options(sample, options, message):
    with pytest.raises(QKSError, match=message):
        evaluate_scores(*sample, **{"n_seen": 9, **options})


def test_bad_labels(sample):
    scores, labels = sample
    with pytest.raises(QKSError, match=r"\[60, 14\].*\[60, 13\]"):
        evaluate_scores(scores, labels[:, :13], 9)
    with pytest.raises(QKSError, match=r"\[0, 14\] are empty"):
        evaluate_scores(scores[:0], labels[:0], 9)
    with pytest.raises(QKSError, match="no image has a positive label in the part zsl"):
        evaluate_scores(scores, np.where(np.arange(14) < 9, labels, np.minimum(labels, 0)), 9)
    with pytest.raises(QKSError, match="no -1"):
        evaluate_scores(scores, np.abs(labels), 9)
    with pytest.raises(QKSError, match="boolean"):
        evaluate_scores(scores, labels > 0, 9)
    labels[2, 3] = 5
    with pytest.raises(QKSError, match=r"labels\[2, 3\] is 5"):
        evaluate_scores(scores, labels, 9)


@pytest.mark.parametrize("value", [-2, 2, 0.5, -0.5, np.nan, np.inf])
def test_a_label_is_one_of_three_values(sample, value):
    scores, labels = sample
    labels = labels.astype(np.float64)
    labels[2, 3] = value
    with pytest.raises(QKSError, match=rf"labels\[2, 3\] is {value}"):
        check_scores(scores, labels)


def test_one_positive_is_enough_for_the_mean_without_absent_labels():
    labels = np.array([[1, -1, -1], [1, 1, -1]])  # two positives, one, none
    scores = np.array([[0.9, 0.8, 0.1], [0.8, 0.3, 0.2]])
    assert evaluate_part(scores, labels, (1,), "seen", "annotated")["mAP"] == (1 + 1 / 2) / 2
    assert evaluate_part(scores, labels, (1,), "seen", "official")["mAP"] == (1 + 1 / 2 + 0) / 3


def test_the_dropped_label_counts_when_topk_is_too_large(sample):
    scores, labels = sample
    labels[:, 10] = 0
    with pytest.raises(QKSError, match="part zsl has only 4 annotated"):
        evaluate_scores(scores, labels, 9, topk=(5,))
