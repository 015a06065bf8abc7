"""Every resample is exact: measuring the drawn rows themselves gives the same numbers."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import qks.evaluate.bootstrap
from qks.core import QKSError
from qks.evaluate.bootstrap import (
    bootstrap_intervals,
    bootstrap_intervals_from_stream,
    percentile_intervals,
    resample_weights,
    resampled_precision,
)
from qks.evaluate.metrics import average_precision_per_label, evaluate_scores
from qks.evaluate.protocols import PROTOCOLS
from qks.evaluate.report import ReportConfig, build_report
from qks.evaluate.streaming import ScoredEntries, StreamingScores
from qks.evaluate.tables import report_table

NAMES = ["cat", "dog", "bird", "cow", "fish", "car", "birds", "sky", "sea"]


def sample(images=120, decimals=1, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.choice([-1, 0, 1], size=(images, 9), p=[0.5, 0.2, 0.3]).astype(np.int8)
    labels[::10] = np.minimum(labels[::10], 0)  # images that some protocols set aside
    return (labels * 0.5 + generator.normal(size=labels.shape)).round(decimals).astype(np.float32), labels


def explicit(scores, labels, resamples, seed, *options):
    "The same intervals from resamples that are really built."
    generator = np.random.default_rng(seed)
    results = []
    for _ in range(resamples):
        rows = generator.integers(0, len(scores), len(scores))
        results.append(evaluate_scores(scores[rows], labels[rows], 5, (1, 3), *options))
    point = evaluate_scores(scores, labels, 5, (1, 3), *options)

    def interval(part, name):
        values = [result[part][name] for result in results]
        low, high = np.percentile(values, [2.5, 97.5]) + point[part][name] - np.mean(values)
        return {"low": max(0, low), "high": min(1, high)}

    return {part: {name: interval(part, name) for name in results[0][part]} for part in results[0]}


def agree(ours, expected):
    assert list(ours) == list(expected)
    for part in ours:
        assert list(ours[part]) == list(expected[part])
        for name in ours[part]:
            assert ours[part][name] == pytest.approx(expected[part][name], abs=1e-9), (part, name)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("decimals", [0, 1, 9], ids=["many ties", "some ties", "no ties"])
def test_equal_to_resampling_the_rows(protocol, decimals):
    scores, labels = sample(decimals=decimals)
    agree(
        bootstrap_intervals(scores, labels, 5, (1, 3), protocol, 20, 3, NAMES),
        explicit(scores, labels, 20, 3, protocol, NAMES),
    )


def test_a_label_without_a_positive_counts_as_zero_in_every_resample():
    scores, labels = sample()
    labels[:, 8] = np.minimum(labels[:, 8], 0)
    for protocol in ("official", "annotated"):
        agree(bootstrap_intervals(scores, labels, 5, (1, 3), protocol, 20), explicit(scores, labels, 20, 0, protocol))


def test_a_label_that_loses_its_positives_leaves_the_mean(monkeypatch):
    scores, labels = sample()
    labels[:, 8] = np.minimum(labels[:, 8], 0)
    labels[7, 8] = 1  # one positive: about a third of the resamples lose it
    scores[7, 8] = 99  # where it is there, its AP is 1
    values = []
    original = qks.evaluate.bootstrap.percentile_intervals

    def keep_values(resampled, measured):
        values.append(resampled)
        return original(resampled, measured)

    monkeypatch.setattr(qks.evaluate.bootstrap, "percentile_intervals", keep_values)
    bootstrap_intervals(scores, labels, 5, (1, 3), resamples=30)
    generator = np.random.default_rng(0)
    expected = []
    lost = 0
    for _ in range(30):
        rows = generator.integers(0, 120, 120)
        rows = rows[(labels[rows, 5:] > 0).any(axis=1)]
        ap = average_precision_per_label(scores[rows, 5:], labels[rows, 5:])
        there = (labels[rows, 5:] > 0).any(axis=0)
        expected.append(ap[there].mean())
        lost += not there[-1]
    assert 0 < lost < 30
    np.testing.assert_allclose(values[0]["zsl"]["mAP"], expected, atol=1e-9)


def test_one_label_with_long_gaps_and_more_than_one_matrix(monkeypatch):
    generator = np.random.default_rng(2)
    labels = np.where(np.isin(np.arange(20_000), [5, 9_000, 19_000]), 1, -1)
    scores = generator.normal(size=20_000).astype(np.float32)
    monkeypatch.setattr(qks.evaluate.bootstrap, "RESAMPLES_PER_MATRIX", 3)
    weights = resample_weights(20_000, 5, 0)
    assert [matrix.shape[1] for matrix in weights] == [3, 2]
    inner = np.arange(20_000) != 17
    found = resampled_precision(ScoredEntries(np.arange(20_000), scores, labels), inner, weights)
    for r, weight in enumerate(np.concatenate(weights, axis=1).T):
        for row, chosen in ((0, inner), (1, inner | True)):
            rows = np.repeat(np.arange(20_000), np.where(chosen, weight, 0).astype(int))
            if (labels[rows] > 0).any():
                assert found[row, r] == pytest.approx(
                    average_precision_per_label(scores[rows, None], labels[rows, None])[0], abs=1e-9
                )
            else:
                assert np.isnan(found[row, r])


def test_a_stream_has_the_same_intervals():
    scores, labels = sample()
    image, column = np.nonzero(labels)
    sparse = SimpleNamespace(
        offsets=np.searchsorted(image, np.arange(121)), columns=column, values=labels[image, column]
    )
    stream = StreamingScores(sparse, 5, (1, 3))
    with pytest.raises(QKSError, match="only 0 of 120"):
        bootstrap_intervals_from_stream(stream)
    stream.update(scores)
    assert bootstrap_intervals_from_stream(stream, 25, 4) == bootstrap_intervals(
        scores, labels, 5, (1, 3), resamples=25, seed=4
    )


def test_zeros_that_a_stream_lists_do_not_count():
    scores, labels = sample()
    columns = np.tile(np.arange(9), 120)
    every_entry = SimpleNamespace(offsets=np.arange(121) * 9, columns=columns, values=labels.ravel())
    stream = StreamingScores(every_entry, 5, (1, 3))
    stream.update(scores)
    expected = bootstrap_intervals(scores, labels, 5, (1, 3), resamples=25)
    assert bootstrap_intervals_from_stream(stream, 25) == expected


def test_intervals_stay_between_0_and_1():
    resampled = {"zsl": {"mAP": np.linspace(0.2, 0.8, 101)}}
    assert percentile_intervals(resampled, {"zsl": {"mAP": 0.1}})["zsl"]["mAP"]["low"] == 0
    assert percentile_intervals(resampled, {"zsl": {"mAP": 0.9}})["zsl"]["mAP"]["high"] == 1


@pytest.mark.parametrize(
    "resampled, number",
    [
        (np.full(50, np.nan), 0.5),
        (np.full(1, np.nan), 0.5),
        (np.array([]), 0.5),
        (np.linspace(0, 1, 50), np.nan),
        (np.r_[np.full(30, np.nan), np.linspace(0, 1, 20)], 0.5),
        (np.full(5, np.inf), 0.5),
    ],
    ids=["none", "one", "empty", "number", "most", "infinite"],
)
def test_what_is_not_defined_has_no_interval(resampled, number):
    "It had the interval from 0 to 1."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = percentile_intervals({"zsl": {"mAP": resampled}}, {"zsl": {"mAP": number}})
    assert found == {"zsl": {"mAP": None}}


def test_a_few_undefined_resamples_are_left_out():
    values = np.linspace(0.2, 0.8, 101)
    with_gaps = np.r_[values, np.full(50, np.nan)]
    expected = percentile_intervals({"zsl": {"mAP": values}}, {"zsl": {"mAP": 0.5}})
    found = percentile_intervals({"zsl": {"mAP": with_gaps}}, {"zsl": {"mAP": 0.5}})
    assert found["zsl"]["mAP"] == pytest.approx(expected["zsl"]["mAP"])


def test_one_picture_has_no_interval_in_report_and_table():
    "Seven in ten resamples of two pictures lack a negative or a positive picture of the only label that counts."
    labels = np.array([[1, -1], [-1, 1]], np.int8)
    report = build_report(
        {"A": np.array([[0.9, 0.1], [0.2, 0.8]])}, labels, 1, ReportConfig(("annotated",), (1,), resamples=40)
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert "nan" not in report_table(report)


def test_seeds_and_order():
    scores, labels = sample()
    first = bootstrap_intervals(scores, labels, 5, (1, 3), resamples=50)
    assert first == bootstrap_intervals(scores, labels, 5, (1, 3), resamples=50)
    assert first != bootstrap_intervals(scores, labels, 5, (1, 3), resamples=50, seed=1)
    point = evaluate_scores(scores, labels, 5, (1, 3))
    for part, metrics in first.items():
        for name, interval in metrics.items():
            assert interval["low"] < point[part][name] < interval["high"]


def test_rare_labels_do_not_push_the_interval_off_the_number():
    generator = np.random.default_rng(0)
    labels = np.where(generator.random((200, 60)) < 0.01, 1, -1).astype(np.int8)  # two positives a label
    scores = generator.normal(size=labels.shape) + 1.5 * (labels > 0)
    point = evaluate_scores(scores, labels, 40, (1,))
    found = bootstrap_intervals(scores, labels, 40, (1,), resamples=200)
    for part in point:
        assert found[part]["mAP"]["low"] < point[part]["mAP"] < found[part]["mAP"]["high"]


@pytest.mark.parametrize("resamples", [0, -1, 2.5, True])
def test_bad_number_of_resamples(resamples):
    with pytest.raises(QKSError, match="resamples is"):
        bootstrap_intervals(*sample(), 5, (1, 3), resamples=resamples)
