"""What is of the wrong type, or means two things, ends in one sentence and not in a traceback from inside."""

import dataclasses
import importlib
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

from qks.core import QKSError
from qks.core.errors import matches_type
from qks.experiment.spec import RunOptions
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.scoring import score_batches
from qks.model.tagger import QKS, rank_labels
from qks.train.config import RunConfig, TrainConfig
from qks.train.loop import fit
from qks.train.targets import Targets

SETTINGS = {  # dataclass -> what it needs
    "qks.model.config.HeadConfig": {},
    "qks.train.config.TrainConfig": {},
    "qks.train.config.RunConfig": {"folder": Path("run")},
    "qks.evaluate.report.ReportConfig": {},
    "qks.experiment.spec.VLPSource": {},
    "qks.experiment.spec.TokenConfig": {},
    "qks.experiment.spec.RunOptions": {"folder": Path("run")},
    "qks.experiment.spec.RunSpec": {"root": Path("data"), "run": RunOptions(Path("run"))},
    "qks.experiment.reproduction.ReproduceConfig": {},
    "qks.data.pocket.PocketConfig": {},
    "qks.data.coco.COCOOptions": {},
    "qks.data.table.TableOptions": {},
    "qks.data.folder.FolderOptions": {},
    "qks.evaluate.protocols.Protocol": {"name": "mine", "rule": "any"},
    "qks.experiment.spec.HoldoutConfig": {},
    "qks.data.voc.VOCOptions": {},
    "qks.data.openimages.OpenImagesOptions": {},
    "qks.fetch.policy.FetchPolicy": {},
    "qks.fetch.datasets.NUSWideFetchOptions": {"urls": Path("urls.txt")},
    "qks.fetch.datasets.OpenImagesFetchOptions": {"images": Path("images.csv")},
    "qks.commands.evaluate.EvaluateCommand": {"model": "pocket", "root": Path("data")},
    "qks.commands.tag.TagCommand": {"images": ("a.jpg",)},
    "qks.commands.reproduce.ReproduceCommand": {},
    "qks.commands.options.MessageOptions": {},
}
WRONG = (None, True, 3, -1, 1.5, "1e-4", "x", (), (1,), ("a",), [1], {}, b"x", float("nan"), object())
FIELDS = []
for qualified in SETTINGS:
    module, name = qualified.rsplit(".", 1)
    FIELDS += [(qualified, field.name) for field in dataclasses.fields(getattr(importlib.import_module(module), name))]


@pytest.mark.parametrize("qualified, field", FIELDS)
def test_every_setting_is_checked_for_its_type(qualified, field):
    module, name = qualified.rsplit(".", 1)
    settings = getattr(importlib.import_module(module), name)
    hint = typing.get_type_hints(settings)[field]
    for value in WRONG:
        if matches_type(value, hint) or (hint is Path and isinstance(value, str) and issubclass(settings, RunConfig)):
            continue
        with pytest.raises(QKSError, match="give") as caught:
            settings(**SETTINGS[qualified] | {field: value})
        assert field in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: TrainConfig(topk=3), "topk is 3: give a tuple"),
        (lambda: TrainConfig(lr="1e-4"), "lr is '1e-4': give a number"),
        (lambda: HeadConfig(dropout="0.1"), "dropout is '0.1': give a number"),
        (lambda: HeadConfig(dropout=True), "dropout is True: give a number"),
    ],
)
def test_settings_of_the_report(call, match):
    with pytest.raises(QKSError, match=match):
        call()


@pytest.fixture(scope="module")
def model():
    return QKS.from_pretrained("pocket", device="cpu")


PICTURE = np.full((40, 40, 3), 99, np.uint8)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"top_k": True}, "top_k is True, but there are 2 labels: give a number from 1 to 2"),
        ({"top_k": False}, "top_k is False"),
        ({"top_k": "1"}, "top_k is '1'"),
        ({"top_k": 1.0}, "top_k is 1.0"),
        ({"threshold": True}, "threshold is True, but probabilities"),
        ({"threshold": "0.5"}, "threshold is '0.5'"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"batch_size": True}, "batch_size is True"),
        ({"batch_size": "8"}, "batch_size is '8'"),
    ],
    ids=str,
)
def test_tagging(model, arguments, match):
    with pytest.raises(QKSError, match=match):
        model.tag(PICTURE, ["cat", "dog"], **arguments)


def test_predicting(model):
    embeddings = model.pool.embed(model.vlp, ["cat", "dog"])
    for nothing in ([], (), iter([])):
        with pytest.raises(QKSError, match="no image was given"):
            model.predict(nothing, embeddings)
    with pytest.raises(QKSError, match="label embeddings are a list: pass the tensor"):
        model.predict([PICTURE], ["cat", "dog"])
    with pytest.raises(QKSError, match="do not fit"):
        model.predict([PICTURE], embeddings[0])
    with pytest.raises(QKSError, match="an image must be a path"):
        model.predict([None], embeddings)
    assert model.predict(PICTURE, embeddings).logits.shape == (1, 2)


def test_a_score_that_is_no_number_is_not_ranked():
    with pytest.raises(QKSError, match="the score of label 'dog' is not a number"):
        rank_labels(["cat", "dog"], torch.tensor([1.0, float("nan")]), torch.tensor([0, 0]), 1)


# ---- one meaning of 0 in labels, and of topk that is left out


def toy(n_labels, n_images=12):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(n_images, 5, 64, generator=generator)
    labels = torch.where(torch.rand(n_images, n_labels, generator=generator) < 0.5, 1, -1)
    return tokens, labels, torch.randn(n_labels, 8, generator=generator)


@pytest.mark.parametrize("zero_one", [torch.tensor([[0, 1], [1, 0]]), np.array([[0, 1.0]]), [[0, 1]], np.zeros((2, 2))])
def test_zeros_that_can_only_mean_absent_are_refused_in_training_as_in_validation(zero_one):
    with pytest.raises(QKSError, match="hold 0 and no -1: 0 means not annotated, so write absent labels as -1"):
        Targets(zero_one)
    tokens, labels, embeddings = toy(6)
    head = QKSHead(torch.randn(64, 8), HeadConfig(2, 1))
    for train, validation in ((labels > 0, labels), (labels, labels > 0)):
        with pytest.raises(QKSError, match="0 means not annotated, so write absent labels as -1"):
            fit(head, (tokens, train.int()), embeddings, (tokens, validation.int()), TrainConfig(epochs=1))


@pytest.mark.parametrize("labels", [[[1, 1]], [[0, -1]], [[1, -1], [0, 1]], [[-1, -1]]], ids=str)
def test_labels_that_are_clear_are_taken(labels):
    assert len(Targets(torch.tensor(labels))) == len(labels)


@pytest.mark.parametrize(
    "n_labels, protocol, topk",
    [
        (1, "own-data", {1}),
        (2, None, {1}),
        (3, None, {3}),
        (3, "own-data", {1}),
        (4, None, {3}),
        (5, None, {3, 5}),
        (9, None, {3, 5}),
    ],
)
def test_few_labels_train_with_the_default_topk(n_labels, protocol, topk):
    tokens, labels, embeddings = toy(n_labels)
    head = QKSHead(torch.randn(64, 8), HeadConfig(2, 1))
    config = TrainConfig(epochs=1, batch_size=4, protocol=protocol)
    (row,) = fit(head, (tokens, labels), embeddings, (tokens, labels), config)
    assert {int(name.removeprefix("F1@")) for name in row if name.startswith("F1@")} == topk


def test_one_label_needs_images_without_it():
    "Under the official protocol images without a label do not take part, so that nothing could choose the epoch."
    tokens, labels, embeddings = toy(1)
    head = QKSHead(torch.randn(64, 8), HeadConfig(2, 1))
    with pytest.raises(QKSError, match="not one validation image lacks a label .* choose another protocol"):
        fit(head, (tokens, labels), embeddings, (tokens, labels), TrainConfig(epochs=1))


def test_a_topk_that_is_given_is_kept():
    tokens, labels, embeddings = toy(3)
    head = QKSHead(torch.randn(64, 8), HeadConfig(2, 1))
    with pytest.raises(QKSError, match="5 labels per image.*at most 3"):
        fit(head, (tokens, labels), embeddings, (tokens, labels), TrainConfig(epochs=1, topk=(3, 5)))


# ---- other arguments of another type


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"train": 3}, "train is a int: give a pair, image tokens and labels"),
        (
            {"train": (np.zeros((12, 5, 64)), np.ones((12, 4)))},
            "the image tokens of train are a ndarray: give a tensor",
        ),
        ({"train": (torch.zeros(12, 5, 64), [[1, -1]] * 12)}, "the labels of train are a list: give a tensor"),
        ({"validation": (torch.zeros(2, 5, 64), None)}, "the labels of validation are a NoneType"),
        ({"label_embeddings": np.zeros((4, 8))}, "label_embeddings are a ndarray: give a tensor"),
        ({"config": {"epochs": 1}}, "config is a dict: give a TrainConfig"),
        ({"run": "folder"}, "run is a str: give a RunConfig"),
    ],
    ids=str,
)
def test_arguments_of_fit(changes, match):
    tokens, labels, embeddings = toy(4)
    arguments = {
        "train": (tokens, labels),
        "label_embeddings": embeddings,
        "validation": (tokens, labels),
        "config": TrainConfig(epochs=1),
        "run": None,
    }
    with pytest.raises(QKSError, match=match):
        fit(QKSHead(torch.randn(64, 8), HeadConfig(2, 1)), **arguments | changes)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_computes_gradients_wherever_it_is_called(mode):
    tokens, labels, embeddings = toy(4)
    head = QKSHead(torch.randn(64, 8), HeadConfig(2, 1))
    before = [weight.clone() for weight in head.parameters()]
    with mode():
        fit(head, (tokens, labels), embeddings, (tokens, labels), TrainConfig(epochs=1, lr=1e-2, batch_size=4))
        assert not torch.is_grad_enabled()
    assert any(not torch.equal(weight, old) for weight, old in zip(head.parameters(), before))


@pytest.mark.parametrize("n_images", [-1, "4", 4.0, None, True])
def test_a_number_of_images_that_is_none(n_images):
    head = QKSHead(torch.randn(64, 8), HeadConfig(2, 1))
    with pytest.raises(QKSError, match="n_images is .*: give a whole number"):
        score_batches(head, [torch.zeros(4, 5, 64)], torch.randn(3, 8), n_images)
