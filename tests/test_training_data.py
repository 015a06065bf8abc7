"""Training data: images to train, validate and test on, and what is checked before the first token is computed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qks.core import QKSError
from qks.data.index import LabelledImages
from qks.data.pocket import PocketConfig, write_pocket
from qks.data.splits import open_splits
from qks.experiment import training_data as module
from qks.experiment.training_data import (
    TrainingData,
    check_measurable,
    check_scores_fit,
    load_training_data,
    token_bytes,
    training_splits,
)
from qks.experiment.training_run import train_head
from qks.model.config import HeadConfig
from qks.model.prompts import PromptPool
from qks.tokens.cache import cache_size
from qks.train.config import TrainConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_pocket(tmp_path_factory.mktemp("data") / "pocket", PocketConfig(n_train=40, n_test=20))


def split(n, labels, n_seen, root="data"):
    "A split of n images whose labels repeat those given."
    matrix = np.resize(np.array(labels, np.int8), (n, len(labels[0])))
    return LabelledImages(
        root, tuple(f"{i}.png" for i in range(n)), matrix, tuple("abcdefgh"[: matrix.shape[1]]), n_seen
    )


def test_a_tenth_is_held_out(root):
    splits = open_splits(root)
    parts = training_splits(splits)
    assert {name: len(data) for name, data in parts.items()} == {"train": 36, "validation": 4, "test": 20}
    assert sorted(parts["train"].images + parts["validation"].images) == sorted(splits["train"].images)


def test_of_very_many_images_few_are_held_out(root, monkeypatch):
    monkeypatch.setattr(module, "VALIDATION_IMAGES", 3)
    assert {name: len(data) for name, data in training_splits(open_splits(root)).items()} == {
        "train": 37,
        "validation": 3,
        "test": 20,
    }


def test_by_the_authors_rule_nothing_is_held_out(root, tiny_vlp):
    splits = open_splits(root)
    parts = training_splits(splits, "official")
    assert list(parts) == ["train", "test"] and parts["train"].images == splits["train"].images
    data = load_training_data(root, tiny_vlp, PromptPool.single("a {}"), selection="official")
    assert data.validation is None and {name: len(tokens) for name, tokens in data.tokens.items()} == {
        "train": 40,
        "test": 20,
    }
    recipe = TrainConfig(epochs=1, topk=(1,), selection="official")
    assert len(train_head(data, HeadConfig(2, 1), recipe)[1]) == 1
    with pytest.raises(QKSError, match="no images in the part 'validation': load them with selection='seen'"):
        train_head(data, HeadConfig(2, 1), replace(recipe, selection="seen"))


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_missing_image_is_told_before_anything_is_computed(root, tiny_vlp, monkeypatch, name):
    gone = training_splits(open_splits(root))[name].path(1)
    content = gone.read_bytes()
    monkeypatch.setattr(module, "cache_tokens", lambda *args, **kwargs: pytest.fail("began to compute"))
    try:
        gone.write_bytes(b"")
        with pytest.raises(
            QKSError, match=rf"1 of \d+ {name} images are missing or empty in .*{gone.name}: fetch them"
        ):
            load_training_data(root, tiny_vlp)
    finally:
        gone.write_bytes(content)


def test_what_can_be_measured():
    parts = {
        "train": None,
        "validation": split(6, [[1, -1], [-1, 1]], 2),
        "test": split(6, [[1, -1, 1], [-1, 1, -1]], 2),
    }
    check_measurable(parts, (1,))
    check_measurable(parts | {"test": split(6, [[1, -1], [-1, 1]], 2)}, (1,))  # all labels seen
    check_measurable({name: data for name, data in parts.items() if name != "validation"}, (1,))
    with pytest.raises(QKSError, match="the rule 'official' chooses the epoch by unseen labels, and data has none"):
        check_measurable({"train": None, "test": split(6, [[1, -1], [-1, 1]], 2)}, (1,))
    for change, topk, told in (
        ({}, (1, 2), "the part zsl has only 1 annotated labels"),
        ({}, (0,), "topk is"),
        (
            {"validation": split(6, [[-1, -1]], 2)},
            (1,),
            "no image has a positive label in the part seen of the images held out for choosing the epoch",
        ),
        ({"test": split(6, [[1, -1, -1]], 2)}, (1,), "no image has a positive label in the part zsl"),
    ):
        with pytest.raises(QKSError, match=told):
            check_measurable(parts | change, topk)


@pytest.mark.parametrize("views, items", [(1, 60), (3, 36 * 3 + 24), (0, 24)])
def test_bytes_of_all_parts(root, tiny_vlp, tmp_path, views, items):
    parts = training_splits(open_splits(root))
    assert token_bytes(tiny_vlp, parts, train_views=views) == cache_size(tiny_vlp, items, torch.float32)
    assert token_bytes(tiny_vlp, parts, tmp_path, torch.bfloat16, views) == cache_size(tiny_vlp, items, torch.bfloat16)


def test_room_is_asked_for_before_anything_is_computed(root, tiny_vlp, monkeypatch):
    need = cache_size(tiny_vlp, 60, torch.float32)
    monkeypatch.setattr(module, "cache_tokens", lambda *args, **kwargs: pytest.fail("began to compute"))
    monkeypatch.setattr("qks.tokens.cache.available_memory", lambda: need - 1)
    with pytest.raises(QKSError, match="the tokens need"):
        load_training_data(root, tiny_vlp)


def test_an_unknown_rule(root):
    with pytest.raises(QKSError, match="selection 'sen' is unknown: give one of seen, official"):
        training_splits(open_splits(root), "sen")


@pytest.mark.parametrize("seeds", [1, 3])
def test_room_for_the_scores(monkeypatch, seeds):
    parts = {"test": split(10, [[1, -1, 1]], 2)}
    need = 10 * 3 * (8 * (seeds + 1) + 13) + 500  # two processes, and tokens in memory
    monkeypatch.setattr(module, "available_memory", lambda: need)
    check_scores_fit(parts, seeds, 2, 500)
    monkeypatch.setattr(module, "available_memory", lambda: need - 1)
    with pytest.raises(
        QKSError,
        match="the scores of 10 test images and 3 labels, and the tokens will need .* GB of memory.*fewer --seeds",
    ):
        check_scores_fit(parts, seeds, 2, 500)
    check_scores_fit(parts, seeds)


def test_room_for_the_scores_of_the_images_held_out(monkeypatch):
    parts = {"validation": split(100, [[1, -1]], 2), "test": split(10, [[1, -1, 1]], 2)}
    need = 10 * 3 * 8 * 2 + 100 * 2 * (
        8 * 2 + 1
    )  # of two seeds that are done; of the third in two processes, and labels
    monkeypatch.setattr(module, "available_memory", lambda: need)
    check_scores_fit(parts, 3, 2)
    monkeypatch.setattr(module, "available_memory", lambda: need - 1)
    with pytest.raises(QKSError, match="the scores of 100 held-out images and 2 labels will need"):
        check_scores_fit(parts, 3, 2)


def test_pairs_of_tokens_and_labels(tiny_vlp):
    images = split(4, [[1, -1, 0]], 2)
    tokens = {"train": torch.zeros(4, 2, 64), "test": torch.zeros(4, 2, 64)}
    data = TrainingData(tiny_vlp, PromptPool(), torch.zeros(3, 16), images, None, images, tokens)
    train_tokens, labels = data.pair("train")
    assert train_tokens is tokens["train"] and labels.tolist() == images.labels.tolist()
