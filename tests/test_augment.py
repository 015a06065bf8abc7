"""Augmentation: what the paper does to an image, and that a view is the same view whenever and wherever it is made."""

import multiprocessing
import os
import pickle
import signal
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader
from torchvision.transforms import Compose

from qks.core import QKSError
from qks.data.index import LabelledImages
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import bce_loss
from qks.tokens.augment import (
    Augmentation,
    ImageViews,
    LiveTokens,
    cutout,
    load_batches,
    preprocess_digest,
    split_preprocess,
    stack_images,
    worker_errors,
)
from qks.tokens.cache import cache_tokens
from qks.train.checkpoint import list_checkpoints
from qks.train.config import RunConfig, TrainConfig
from qks.train.loop import fit
from qks.train.steps import train_epoch


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "Flickr").mkdir()
    names = tuple(f"{i}.png" for i in range(5))
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "Flickr" / name)
    return LabelledImages(tmp_path, names, np.ones((5, 2), np.int8), ("cat", "dog"), 1)


@pytest.fixture
def augmentation(tiny_vlp):
    return Augmentation(tiny_vlp.preprocess)


def picture(data, index):
    return Image.open(data.path(index)).convert("RGB")


def test_cutout_is_one_rectangle_of_half_the_side():
    grey = Image.new("RGB", (20, 12), (128,) * 3)
    areas = set()
    colours = set()
    for seed in range(300):
        changed = np.asarray(cutout(grey, np.random.default_rng(seed)))
        mask = (changed != 128).any(2)
        if not mask.any():
            continue  # the colour may be the very same grey
        rows = np.flatnonzero(mask.any(1))
        columns = np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all() and mask.sum() == len(rows) * len(
            columns
        )
        assert len(rows) <= 6 and len(columns) <= 10 and mask.sum() >= 15
        assert len(np.unique(changed[mask], axis=0)) == 1
        areas.add(int(mask.sum()))
        colours.add(tuple(changed[mask][0]))
    assert max(areas) == 60 and len(areas) > 5 and len(colours) > 250
    assert (np.asarray(grey) == 128).all()


def test_the_steps_come_in_the_authors_order(tiny_vlp, augmentation, monkeypatch):
    "Cutout and flip on the cropped picture, then RandAugment, then the VLP's own normalisation."
    image = Image.new("RGB", (50, 40), (10, 20, 30))
    seen = []

    def record(shown):
        seen.append(shown)
        return shown

    monkeypatch.setattr(augmentation, "randaugment", record)
    pixels = augmentation(image, 0, 0)
    assert seen[0].size == (32, 32) and len(seen[0].getcolors()) == 2  # the plain picture and the rectangle
    assert torch.equal(pixels, split_preprocess(tiny_vlp.preprocess)[1](seen[0]))


def test_half_of_the_views_are_flipped(augmentation, monkeypatch):
    monkeypatch.setattr(augmentation, "randaugment", lambda image: image)
    monkeypatch.setattr("qks.tokens.augment.cutout", lambda image, rng: image)
    ramp = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))).convert("RGB")
    flipped = [np.asarray(augmentation.picture(ramp, 0, view))[0, 0, 0] > 100 for view in range(400)]
    assert 150 < sum(flipped) < 250


def test_a_view_depends_on_seed_image_and_view_alone(tiny_vlp, augmentation, pictures):
    image = picture(pictures, 0)
    first = augmentation(image, 2, 3)
    torch.manual_seed(99)
    np.random.seed(99)
    torch.rand(7)
    assert torch.equal(Augmentation(tiny_vlp.preprocess)(image, 2, 3), first)
    others = [augmentation(image, 3, 2), augmentation(image, 2, 4), Augmentation(tiny_vlp.preprocess, 1)(image, 2, 3)]
    assert not any(torch.equal(other, first) for other in others)


def test_global_random_numbers_stay_as_they_are(augmentation, pictures):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    augmentation(picture(pictures, 0), 0, 0)
    list(load_batches(ImageViews(pictures, None, 2, augmentation), [[0, 1], [2]]))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_is_in_the_name(tiny_vlp):
    names = {repr(Augmentation(tiny_vlp.preprocess, seed)) for seed in (0, 1)}
    assert len(names) == 2 and "RandAugment" in min(names) and "0x" not in min(names)


@pytest.mark.parametrize("seed", [-1, 1.5, None, "0", True])
def test_bad_seeds(tiny_vlp, seed):
    with pytest.raises(QKSError, match="seed"):
        Augmentation(tiny_vlp.preprocess, seed)


@pytest.mark.parametrize("preprocess", [None, lambda image: image, Compose([])])
def test_a_preprocessing_that_cannot_be_parted(preprocess):
    with pytest.raises(QKSError, match="use views=1"):
        Augmentation(preprocess)


def test_a_preprocessing_is_known_by_what_it_does(tiny_vlp, make_vlp):
    (before, after) = split_preprocess(tiny_vlp.preprocess)
    again = make_vlp(3).preprocess
    torch.manual_seed(5)
    state = torch.get_rng_state()
    digest = preprocess_digest(tiny_vlp.preprocess)
    assert (
        digest == preprocess_digest(again) == preprocess_digest(lambda image: after(before(image)))
        and len(digest) == 32
    )
    others = [
        lambda image: after(before(image)) * (1 + 1e-6),
        lambda image: after(before(image))[[2, 1, 0]],
        lambda image: after(image.crop((0, 0, 32, 32))),
        lambda image: after(before(ImageOps.mirror(image))),
        lambda image: after(image.resize((32, 32))),
        lambda image: after(before(image)).double(),
        lambda image: after(before(image)).bfloat16(),
        lambda image: after(before(image)) + torch.rand(1),
        lambda image: after(before(ImageOps.mirror(image) if image.width > image.height else image)),
    ]
    digests = [preprocess_digest(other) for other in others]
    assert len({digest, *digests}) == 10 and digests == [preprocess_digest(other) for other in others]
    assert torch.equal(torch.get_rng_state(), state) and preprocess_digest(object()) == preprocess_digest(None) == ""


def test_items_are_views_of_images_in_order(tiny_vlp, augmentation, pictures):
    images = ImageViews(pictures, tiny_vlp.preprocess, 3, augmentation)
    assert len(images) == 15
    for item in (7, 0, 14, 7):
        assert torch.equal(images[item], augmentation(picture(pictures, item // 3), item // 3, item % 3))
    plain = ImageViews(pictures, tiny_vlp.preprocess)
    assert len(plain) == 5 and torch.equal(plain[4], tiny_vlp.preprocess(picture(pictures, 4)))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order(tiny_vlp, pictures, workers):
    images = ImageViews(pictures, tiny_vlp.preprocess)
    wanted = [[3, 1], [0], [4, 2, 2]]
    for found, batch in zip(load_batches(images, wanted, workers), wanted, strict=True):
        assert torch.equal(found, torch.stack([tiny_vlp.preprocess(picture(pictures, i)) for i in batch]))


def test_a_spawned_worker_gets_paths_without_labels(tiny_vlp, augmentation, pictures):
    sizes = set()
    for n_labels in (2, 5_000):
        labels = np.ones((5, n_labels), np.int8)
        many = replace(pictures, labels=labels, label_names=tuple(f"label {number}" for number in range(n_labels)))
        views = ImageViews(many, tiny_vlp.preprocess, 2, augmentation, first_view=3)
        expected = views[7]  # keeps the decoded picture, which is not pickled either
        copied = pickle.dumps(views)
        sizes.add(len(copied))
        assert torch.equal(pickle.loads(copied)[7], expected) and views.data is many
    assert len(sizes) == 1 and max(sizes) < 20_000


def test_batches_from_spawned_workers(tiny_vlp, pictures, monkeypatch):
    monkeypatch.setattr("qks.tokens.augment.DataLoader", partial(DataLoader, multiprocessing_context="spawn"))
    images = ImageViews(pictures, tiny_vlp.preprocess)
    (found,) = load_batches(images, [[3, 1]], workers=1)
    assert torch.equal(found, torch.stack([images[3], images[1]]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_one_sentence(tiny_vlp, pictures, workers):
    pictures.path(2).write_bytes(b"")
    batches = load_batches(ImageViews(pictures, tiny_vlp.preprocess), [[0, 1], [2, 3], [4]], workers)
    found = []
    with pytest.raises(QKSError, match="2.png is empty") as caught:
        for batch in batches:
            found.append(batch)
    assert len(found) == 1 and "\n" not in str(caught.value)
    assert isinstance(stack_images([torch.ones(1), caught.value]), QKSError)


class Deadly:
    "A preprocessing that kills its process."

    def __call__(self, image):
        import os

        os._exit(1)


def test_a_dead_worker_is_one_sentence(pictures):
    with pytest.raises(QKSError, match="processes that read images failed.*fewer workers") as caught:
        list(load_batches(ImageViews(pictures, Deadly()), [[0]], 1))
    assert "\n" not in str(caught.value)


def kill_a_reader():
    "A worker dies while the main thread computes, far from the loader's queue: a signal interrupts this computation."
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    deadline = time.time() + 5
    while time.time() < deadline:
        torch.ones(50, 50) @ torch.ones(50, 50)
    raise AssertionError("the death of a worker was not noticed")


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="needs SIGCHLD")
@pytest.mark.parametrize("folder", [None, "kept"], ids=["in memory", "on disk"])
def test_a_worker_killed_while_the_tower_computes(tiny_vlp, pictures, tmp_path, monkeypatch, folder):
    tower = tiny_vlp.image_tokens
    monkeypatch.setattr(tiny_vlp, "image_tokens", lambda images: kill_a_reader() if len(images) == 2 else tower(images))
    with pytest.raises(
        QKSError,
        match="processes that read images failed .DataLoader worker .* killed by signal: Killed.*fewer workers",
    ) as caught:
        cache_tokens(tiny_vlp, pictures, 2, 1, folder and tmp_path / folder)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="needs SIGCHLD")
def test_a_worker_killed_while_the_head_computes(tiny_vlp, augmentation, pictures, tmp_path, monkeypatch):
    head = QKSHead(tiny_vlp.projection, HeadConfig(2, 1))
    labels = torch.ones(5, 3)
    calls = []
    labels[0] = -1
    labels[1, 0] = -1

    def counted(self, *args):
        calls.append(len(args))
        if len(calls) == 3:
            kill_a_reader()

    head.register_forward_pre_hook(counted)
    tokens = LiveTokens(tiny_vlp, pictures, augmentation, workers=1)
    with pytest.raises(
        QKSError, match="processes that read images failed .*fewer workers.*; .* keeps the run up to step 2"
    ) as caught:
        fit(
            head,
            (tokens, labels),
            torch.randn(3, 32),
            (torch.randn(5, 17, 64), labels),
            TrainConfig(epochs=1, batch_size=1, topk=(1,)),
            RunConfig(tmp_path / "run", save_steps=1),
        )
    assert "\n" not in str(caught.value) and max(list_checkpoints(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    "words",
    [
        "unable to open shared memory object </torch_71_1> in read-write mode: Too many open files (24)",
        "unable to mmap 64 bytes from file </torch_71_1>: Cannot allocate memory (12)",
        "unable to write to file </torch_71_1>: No space left on device (28)",
        "received 0 items of ancdata",
        "Caught RuntimeError in DataLoader worker process 0.\n"
        "Original Traceback:\n  File x\nRuntimeError: unable to mmap 64 bytes",
    ],
)
def test_shared_memory_that_is_too_small(words):
    with pytest.raises(QKSError, match="use fewer workers") as caught:
        with worker_errors():
            raise RuntimeError(words)
    assert "\n" not in str(caught.value) and words.splitlines()[-1][:60] in str(caught.value)


def test_other_errors_stay_what_they_are():
    for error in (
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(5, "Input/output error"),
        QKSError("1.png is empty"),
    ):
        with pytest.raises(type(error)) as caught:
            with worker_errors():
                raise error
        assert caught.value is error


def test_live_tokens_are_the_papers_pipeline(tiny_vlp, augmentation, pictures):
    live = LiveTokens(tiny_vlp, pictures, augmentation)
    rows = torch.tensor([4, 1])
    live.set_epoch(6)
    images = torch.stack([augmentation(picture(pictures, i), i, 6) for i in (4, 1)])
    assert len(live) == 5 and torch.equal(live[rows], tiny_vlp.image_tokens(images))
    plain = torch.stack([tiny_vlp.preprocess(picture(pictures, i)) for i in (4, 1)])
    read = next(LiveTokens(tiny_vlp, pictures, workers=2).read_batches([rows]))
    assert torch.equal(read, tiny_vlp.image_tokens(plain))


def test_a_head_trains_on_live_tokens(tiny_vlp, augmentation, pictures):
    head = QKSHead(tiny_vlp.projection, HeadConfig(2, 1))
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-3)
    tokens = LiveTokens(tiny_vlp, pictures, augmentation)
    loss = train_epoch(head, tokens, torch.ones(5, 3), torch.randn(3, 32), bce_loss, optimizer, 2, torch.Generator())
    assert np.isfinite(loss)
