"""Scores that come in batches give the numbers of the dense way, to the last bit; what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import qks.evaluate.metrics
import qks.evaluate.protocols
from qks.core import QKSError
from qks.evaluate.metrics import evaluate_scores
from qks.evaluate.protocols import PROTOCOLS
from qks.evaluate.streaming import SparseLabels, StreamingScores

NAMES = [
    *(f"word{'abcdefghijklmnopqrst'[i]}" for i in range(20)),
    "worda",
    *(f"other{'abcdefghijklmnopqrs'[i]}" for i in range(19)),
]


def sparse(labels):
    image, column = np.nonzero(labels)
    return SimpleNamespace(
        offsets=np.searchsorted(image, np.arange(len(labels) + 1)), columns=column, values=labels[image, column]
    )


def stream(scores, labels, batch, *options):
    streaming = StreamingScores(sparse(labels), 20, (2, 7), *options)
    for start in range(0, len(scores), batch):
        streaming.update(scores[start : start + batch])
    return streaming.result()


@pytest.fixture
def labels():
    labels = np.random.default_rng(5).choice([-1, 0, 1], size=(150, 40), p=[0.2, 0.7, 0.1])
    labels[:, 3] = labels[:, 25] = 0  # nobody annotated these
    labels[:, 7] = labels[:, 28] = np.minimum(labels[:, 28], 0)  # nobody found these
    labels[10:14] = 0  # images without annotation
    labels[20, 20:] = labels[21, :20] = -1
    return labels


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("decimals", [0, 1, 9], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bits_of_the_dense_way(labels, protocol, decimals, dtype):
    scores = np.random.default_rng(6).normal(size=labels.shape).round(decimals).astype(dtype)
    assert stream(scores, labels, 64, protocol, NAMES) == evaluate_scores(scores, labels, 20, (2, 7), protocol, NAMES)


@pytest.mark.parametrize("batch", [1, 7, 150])
def test_batches_do_not_matter(labels, batch, monkeypatch):
    scores = np.random.default_rng(7).normal(size=labels.shape).round(1)
    expected = evaluate_scores(scores, labels, 20, (2, 7))
    assert stream(scores, labels, batch) == expected
    monkeypatch.setattr(qks.evaluate.protocols, "VALUES_PER_BLOCK", 100)
    monkeypatch.setattr(qks.evaluate.metrics.torch, "get_num_threads", lambda: 3)
    assert stream(torch.tensor(scores), labels, batch) == expected


def test_order_of_entries_and_zeros_do_not_matter(labels):
    scores = np.random.default_rng(8).normal(size=labels.shape)
    listed = sparse(labels)
    columns = []
    values = []
    offsets = [0]
    for i, row in enumerate(labels):
        every = np.random.default_rng(i).permutation(40)  # zeros are listed too, in any order
        columns = [*columns, *every]
        values = [*values, *row[every]]
        offsets = [*offsets, offsets[-1] + 40]
    streaming = StreamingScores(SimpleNamespace(offsets=offsets, columns=columns, values=values), 20, (2, 7))
    streaming.update(scores)
    assert len(listed.values) < len(values) and streaming.result() == evaluate_scores(scores, labels, 20, (2, 7))


def test_labels_that_nobody_annotated_at_the_end(labels):
    labels[:, 30:] = 0
    scores = np.random.default_rng(9).normal(size=labels.shape)
    assert stream(scores, labels, 64) == evaluate_scores(scores, labels, 20, (2, 7))


def test_sparse_labels_unfold(labels):
    np.testing.assert_array_equal(SparseLabels(sparse(labels), 40).dense(0, 150, 40), labels)
    dense = qks.evaluate.protocols.DenseLabels(labels.astype(np.int8))
    few = SparseLabels(sparse(labels), 40)
    for columns in (np.arange(20), np.array([3, 22, 25])):
        np.testing.assert_array_equal(few.positive_counts(columns), dense.positive_counts(columns))
        np.testing.assert_array_equal(few.positive_images(columns), dense.positive_images(columns))
    for images in (np.arange(150) < 14, np.arange(150) == 11):
        np.testing.assert_array_equal(few.annotated_labels(images), dense.annotated_labels(images))


@pytest.mark.parametrize(
    "offsets, columns, values, message",
    [
        ([0, 2], [1, 1], [1, -1], "image 0 has two entries for label 1"),
        ([0, 1, 3], [1, 4, 4], [1, -1, 1], "image 1 has two entries for label 4"),
        ([0, 3], [4, 1, 4], [1, -1, 1], "image 0 has two entries for label 4"),
        ([0, 1, 2], [1, 1], [1, 3], r"entry 1 of sparse labels \(image 1\) has label 1 and value 3"),
        ([0, 1, 2], [1, -1], [1, 1], r"entry 1 of sparse labels \(image 1\) has label -1"),
        ([0, 0, 0, 1], [1], [5], r"entry 0 of sparse labels \(image 2\)"),
        ([0, 3], [1, 2], [1, 1], "rise from 0 to the 2 entries"),
        ([1, 2], [1, 2], [1, 1], "rise from 0"),
        ([0, 2, 1, 2], [1, 2], [1, 1], "rise from 0"),
        ([0], [], [], "rise from 0"),
        ([0, 2], [1, 2], [1], "and 1 of values"),
        ([0, 2], [1.0, 2.0], [1, 1], "columns of sparse labels are float64"),
        ([[0, 2]], [1, 2], [1, 1], "offsets of sparse labels are int64 \\[1, 2\\]"),
    ],
)
def test_bad_sparse_labels(offsets, columns, values, message):
    with pytest.raises(QKSError, match=message):
        SparseLabels(SimpleNamespace(offsets=offsets, columns=columns, values=values))


def test_bad_batches(labels):
    scores = np.random.default_rng(10).normal(size=labels.shape)
    streaming = StreamingScores(sparse(labels), 20, (2, 7))
    for bad, message in ((scores[:5, :39], r"\[5, 39\].*40 labels or more"), (scores[0], r"shape \[40\]")):
        with pytest.raises(QKSError, match=message):
            streaming.update(bad)
    streaming.update(scores[:100])
    with pytest.raises(QKSError, match=r"expected \[images, 40\]"):
        streaming.update(np.ones((2, 41)))
    with pytest.raises(QKSError, match="got 160 images, but the labels are for 150"):
        streaming.update(scores[:60])
    with pytest.raises(QKSError, match="only 100 of 150 images"):
        streaming.result()
    scores[120, 4] = np.nan
    with pytest.raises(QKSError, match="nan at image 120, label 4"):
        streaming.update(scores[100:])
    scores[120, 4] = 0
    streaming.update(scores[100:])  # what was refused has left nothing behind
    assert streaming.result() == evaluate_scores(scores, labels, 20, (2, 7))


def test_what_no_protocol_can_measure(labels):
    with pytest.raises(QKSError, match="no image has a positive label in the part zsl"):
        StreamingScores(sparse(np.where(np.arange(40) < 20, labels, np.minimum(labels, 0))), 20, (2,))
    with pytest.raises(QKSError, match="no -1"):
        StreamingScores(sparse(np.abs(labels)), 20, (2,))
    with pytest.raises(QKSError, match="label 39, but there are 39 labels"):
        StreamingScores(sparse(labels), 20, (2,), "leak-free", NAMES[:39])
