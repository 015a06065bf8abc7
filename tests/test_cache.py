"""The token cache: equal to computing in memory, right after any kill, and never used where it does not belong."""

import copy
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from qks.core import QKSError
from qks.data.index import LabelledImages
from qks.evaluate.baselines import best_patch_scores, zero_shot_scores
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import bce_loss
from qks.model.scoring import head_scores
from qks.tokens import cache, store as batchfile
from qks.tokens.augment import Augmentation, ImageViews
from qks.tokens.cache import (
    cache_ingredients,
    cache_key,
    cache_shape,
    cache_size,
    cache_tokens,
    list_caches,
    missing_bytes,
)
from qks.tokens.store import (
    BatchFile,
    DiskTokens,
    FinishedBatch,
    OpenFile,
    missing_batches,
    read_record,
    valid_batches,
)
from qks.tokens.stream import StoredTokens, token_digest
from qks.train.steps import train_epoch

TESTS = Path(__file__).parent
N_IMAGES = 9


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "data" / "Flickr" / "sub").mkdir(parents=True)
    names = tuple(f"sub/{i}.png" if i == 1 else f"{i}.png" for i in range(N_IMAGES))
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "data" / "Flickr" / name)
    return LabelledImages(tmp_path / "data", names, np.ones((N_IMAGES, 2), np.int8), ("cat", "dog"), 1)


@pytest.fixture
def cache_folder(tmp_path):
    return tmp_path / "caches"


@pytest.fixture
def counted(tiny_vlp, monkeypatch):
    "The tiny VLP, and the sizes of the batches that its tower was given (a black image only asks for the shape)."
    tower = tiny_vlp.image_tokens
    calls = []

    def image_tokens(images):
        if images.any():
            calls.append(len(images))
        return tower(images)

    monkeypatch.setattr(tiny_vlp, "image_tokens", image_tokens)
    return tiny_vlp, calls


def refused(match, function, *args, **kwargs):
    "Expect a QKSError whose message is a single line that matches."
    with pytest.raises(QKSError, match=match) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


def quietly(function, *args, **kwargs):
    "Call and expect no warning."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(*args, **kwargs)


def only_cache(cache_folder):
    return next(path for path in cache_folder.iterdir() if path.is_dir())


def flip(path, place):
    "Change one byte of a file and leave its time of change as it was."
    times = path.stat()
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


# ---- in memory, as before


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_tokens_in_memory_to_the_bit(tiny_vlp, pictures, batch_size, workers):
    if workers and batch_size != 2:
        pytest.skip("once is enough")
    images = torch.stack([tiny_vlp.preprocess(Image.open(pictures.path(i)).convert("RGB")) for i in range(N_IMAGES)])
    expected = torch.cat([tiny_vlp.image_tokens(images[i : i + batch_size]) for i in range(0, N_IMAGES, batch_size)])
    tokens = cache_tokens(tiny_vlp, pictures, batch_size, workers)
    assert tokens.shape == (N_IMAGES, 17, 64) and tokens.dtype == torch.float32 and not tokens.requires_grad
    assert torch.equal(tokens, expected)


def test_caching_leaves_the_random_numbers_alone(tiny_vlp, pictures, cache_folder):
    "A run that finds its tokens trains with the same dropout as one that has to make them."
    for arguments in ({}, {"folder": cache_folder}, {"folder": cache_folder}, {"folder": cache_folder, "views": 2}):
        torch.manual_seed(3)
        cache_tokens(tiny_vlp, pictures, **arguments)
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(3).get_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_caching_names_the_bad_file(tiny_vlp, pictures, workers):
    pictures.path(1).write_bytes(b"")
    refused("1.png is empty", cache_tokens, tiny_vlp, pictures, 2, workers)


def test_an_empty_split_has_no_tokens(tmp_path):
    nothing = LabelledImages(tmp_path, (), np.ones((0, 2), np.int8), ("cat", "dog"), 1)
    refused("no image in this split", cache_tokens, None, nothing)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"views": 0},
        {"views": 1.5},
        {"dtype": torch.int8},
        {"identify": "stat"},
        {"identify": None},
        {"views": 2, "seed": -1},
    ],
    ids=str,
)
def test_bad_arguments(tiny_vlp, pictures, cache_folder, wrong):
    refused("give", cache_tokens, tiny_vlp, pictures, folder=cache_folder, **wrong)


# ---- on disk


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("batch_size", [2, 64])
def test_disk_holds_the_rounded_tokens(tiny_vlp, pictures, cache_folder, dtype, batch_size):
    expected = cache_tokens(tiny_vlp, pictures, batch_size).to(dtype)
    tokens = cache_tokens(tiny_vlp, pictures, batch_size, folder=cache_folder, dtype=dtype)
    assert tokens.dtype == dtype and torch.equal(tokens.read(), expected)
    assert torch.equal(tokens[torch.tensor([4, 0])], expected[[4, 0]])
    assert [len(part) for part in tokens.split(4)] == [4, 4, 1]
    size = cache_size(tiny_vlp, N_IMAGES, dtype)
    assert (only_cache(cache_folder) / "tokens.bin").stat().st_size == size == expected.nbytes


def test_the_second_time_nothing_is_computed(counted, pictures, cache_folder):
    vlp, calls = counted
    first = cache_tokens(vlp, pictures, 4, folder=cache_folder).read()
    assert calls == [4, 4, 1]
    for arguments in ({}, {"verify": True}, {"batch_size": 64}):
        assert torch.equal(quietly(cache_tokens, vlp, pictures, folder=cache_folder, **arguments).read(), first)
    assert calls == [4, 4, 1]


def test_an_equal_vlp_finds_it_too(make_vlp, pictures, cache_folder):
    first = cache_tokens(make_vlp(), pictures, folder=cache_folder).read()
    again = make_vlp()
    tower = again.image_tokens

    def only_the_shape(images):
        assert not images.any(), "computed again"
        return tower(images)

    again.image_tokens = only_the_shape
    assert torch.equal(cache_tokens(again, pictures, folder=cache_folder).read(), first)


def test_writing_to_the_tokens_never_reaches_the_file(tiny_vlp, pictures, cache_folder):
    first = cache_tokens(tiny_vlp, pictures, folder=cache_folder)
    before = (only_cache(cache_folder) / "tokens.bin").read_bytes()
    first[:].read().zero_()
    first[[0]].zero_()
    assert (only_cache(cache_folder) / "tokens.bin").read_bytes() == before
    assert cache_tokens(tiny_vlp, pictures, folder=cache_folder).read().any()


def test_meta_says_what_it_is(tiny_vlp, pictures, cache_folder):
    cache_tokens(tiny_vlp, pictures, folder=cache_folder)
    meta = json.loads((only_cache(cache_folder) / "meta.json").read_text())
    assert meta["shape"] == [N_IMAGES, 17, 64] and meta["dtype"] == "float16" and "bicubic" in meta["preprocess"]
    (row,) = list_caches(cache_folder)
    assert (
        row["images"] == N_IMAGES and row["finished"] == 1 and row["GB"] == pytest.approx(N_IMAGES * 17 * 64 * 2 / 1e9)
    )


def test_size_of_nuswide(make_vlp):
    pretend = SimpleNamespace(image_size=224, image_tokens=lambda images: torch.zeros(1, 197, 768))
    assert cache_shape(pretend, 161_789) == (161_789, 197, 768)
    assert cache_size(pretend, 161_789) == 161_789 * 197 * 768 * 2
    assert cache_size(pretend, 161_789, torch.float32, 4) == 161_789 * 4 * 197 * 768 * 4
    refused("n_images", cache_size, pretend, 0)


# ---- which cache it is


def key(vlp, data, dtype=torch.float16, views=1, seed=0):
    images = ImageViews(data, vlp.preprocess, views, Augmentation(vlp.preprocess, seed) if views > 1 else None)
    return cache_key(cache_ingredients(vlp, images, dtype))


def test_everything_that_matters_makes_another_key(make_vlp, tiny_vlp, pictures, tmp_path):
    elsewhere = tmp_path / "copy"
    shutil.copytree(pictures.root, elsewhere)
    moved = LabelledImages(elsewhere, pictures.images, pictures.labels, pictures.label_names, 1)
    other_size = make_vlp()
    other_size.preprocess = make_vlp(vision={"image_size": 64}).preprocess
    keys = [
        key(tiny_vlp, pictures),
        key(make_vlp(1), pictures),
        key(make_vlp(drop_cls=True), pictures),
        key(make_vlp(precision="bf16"), pictures),
        key(make_vlp(quick_gelu=False), pictures),
        key(other_size, pictures),
        key(tiny_vlp, pictures, torch.bfloat16),
        key(tiny_vlp, pictures, views=2),
        key(tiny_vlp, pictures, views=3),
        key(tiny_vlp, pictures, views=2, seed=1),
        key(tiny_vlp, pictures.subset([1, 0])),
        key(tiny_vlp, pictures.subset([0, 1])),
    ]
    assert len(set(keys)) == len(keys)
    assert key(make_vlp(), pictures) == keys[0]
    assert key(tiny_vlp, moved) == keys[0]


def test_the_key_holds_no_address(tiny_vlp, pictures, monkeypatch):
    monkeypatch.setattr(tiny_vlp, "preprocess", object())
    one = cache_ingredients(tiny_vlp, ImageViews(pictures, None), torch.float16)["preprocess"]
    assert "object" in one and "0x" not in one


class Silent:
    "A preprocessing that prints like any other of its kind."

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, image):
        return torch.from_numpy(np.asarray(image.resize((32, 32)), np.float32).transpose(2, 0, 1) * self.scale)


def test_preprocessings_that_look_alike(make_vlp, pictures, cache_folder):
    "Lambdas and objects without a repr differ in what they do; the same again has the same key."

    def keyed(preprocess):
        vlp = make_vlp()
        vlp.preprocess = preprocess
        return key(vlp, pictures), cache_tokens(vlp, pictures, folder=cache_folder, dtype=torch.float32).read()

    half = Silent(0.5 / 255)
    whole = Silent(1 / 255)
    found = [keyed(preprocess) for preprocess in (half, whole, lambda image: half(image), lambda image: whole(image))]
    assert len({name for name, _ in found}) == 4
    assert (
        torch.equal(found[0][1], found[2][1])
        and torch.equal(found[1][1], found[3][1])
        and not torch.equal(found[0][1], found[1][1])
    )
    assert keyed(Silent(0.5 / 255))[0] == found[0][0] and len(list(cache_folder.glob("tokens-*"))) == 4


def test_a_changed_image_costs_its_batch(counted, pictures, cache_folder):
    vlp, calls = counted
    cache_tokens(vlp, pictures, 3, folder=cache_folder)
    Image.new("RGB", (40, 40), (255, 0, 0)).save(pictures.path(4))
    calls.clear()
    with pytest.warns(UserWarning, match="1 of 3 batches .* of images that changed"):
        tokens = cache_tokens(vlp, pictures, 3, folder=cache_folder)
    assert calls == [3]
    assert torch.equal(tokens.read(), cache_tokens(vlp, pictures, 3).half())
    quietly(cache_tokens, vlp, pictures, 3, folder=cache_folder)


def labelled(root, pictures):
    return LabelledImages(root, pictures.images, pictures.labels, pictures.label_names, 1)


def by_move(root, target):
    shutil.move(root, target)


def by_copy(root, target):
    shutil.copytree(root, target, copy_function=shutil.copyfile)


def by_zip(root, target):
    archive = shutil.make_archive(str(target), "zip", root)
    shutil.unpack_archive(archive, target)


@pytest.fixture
def reads(monkeypatch):
    "The image files that were read to compare them."
    paths = []
    read_bytes = Path.read_bytes

    def noted(path):
        if path.suffix == ".png":
            paths.append(path.name)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    return paths


@pytest.mark.parametrize("transport", [by_move, by_copy, by_zip])
@pytest.mark.parametrize("identify", ["time", "content", "size"])
def test_a_moved_or_copied_data_set_keeps_its_cache(
    counted, pictures, cache_folder, tmp_path, transport, identify, reads
):
    vlp, calls = counted
    first = cache_tokens(vlp, pictures, 3, folder=cache_folder, identify=identify).read()
    transport(pictures.root, tmp_path / "mount" / "deep")
    moved = labelled(tmp_path / "mount" / "deep", pictures)
    calls.clear()
    assert missing_bytes(vlp, moved, cache_folder, identify=identify) == 0
    reads.clear()
    assert torch.equal(quietly(cache_tokens, vlp, moved, 3, folder=cache_folder, identify=identify).read(), first)
    assert calls == [] and sorted(set(reads)) == sorted({path.split("/")[-1] for path in pictures.images})
    assert len(list(cache_folder.iterdir())) == 1
    reads.clear()
    quietly(cache_tokens, vlp, moved, 3, folder=cache_folder)
    assert reads == []  # compared once
    Image.new("RGB", (40, 40), (255, 0, 0)).save(moved.path(8))
    with pytest.warns(UserWarning, match="1 of 3"):
        tokens = cache_tokens(vlp, moved, 3, folder=cache_folder, identify=identify)
    assert calls == [3] and torch.equal(tokens.read(), cache_tokens(vlp, moved, 3).half())


def test_images_of_another_time_are_read_and_not_computed_again(counted, pictures, cache_folder, reads):
    vlp, calls = counted
    cache_tokens(vlp, pictures, 3, folder=cache_folder)
    os.utime(pictures.path(4), ns=(1, 1))
    calls.clear()
    reads.clear()
    quietly(cache_tokens, vlp, pictures, 3, folder=cache_folder)
    assert calls == [] and reads == ["4.png"]


@pytest.mark.parametrize("identify", ["time", "content"])
def test_a_picture_of_the_same_size_and_time_is_noticed(counted, pictures, cache_folder, identify):
    "An editor, or `touch -r`, may set back what a program can set: not the system's own time of the change."
    vlp, calls = counted
    for index in range(N_IMAGES):  # all files of one size
        Image.fromarray(np.full((8, 8, 3), index * 20, np.uint8)).save(pictures.path(index), "BMP")
    cache_tokens(vlp, pictures, 3, folder=cache_folder, identify=identify)
    before = pictures.path(4).stat()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(pictures.path(4), "BMP")
    os.utime(pictures.path(4), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pictures.path(4).stat().st_size == before.st_size
    calls.clear()
    with pytest.warns(UserWarning, match="1 of 3"):
        tokens = cache_tokens(vlp, pictures, 3, folder=cache_folder, identify=identify)
    assert calls == [3] and torch.equal(tokens.read(), cache_tokens(vlp, pictures, 3).half())


def test_two_pictures_that_change_names_are_noticed(counted, pictures, cache_folder):
    vlp, calls = counted
    cache_tokens(vlp, pictures, 3, folder=cache_folder)
    first = pictures.path(0)
    second = pictures.path(8)
    other = first.with_name("other")
    first.rename(other)
    second.rename(first)
    other.rename(second)
    with pytest.warns(UserWarning, match="2 of 3"):
        tokens = cache_tokens(vlp, pictures, 3, folder=cache_folder)
    assert torch.equal(tokens.read(), cache_tokens(vlp, pictures, 3).half())


@pytest.mark.parametrize("identify", ["time", "content", "size"])
def test_splits_whose_images_have_the_same_names_and_sizes(counted, tmp_path, cache_folder, identify):
    "train/0.bmp and test/0.bmp, unpacked with the same time: each has its own tokens, also while both are open."
    vlp, calls = counted
    splits = []
    for split, shade in (("train", 0), ("test", 90)):
        root = tmp_path / split
        (root / "Flickr").mkdir(parents=True)
        names = tuple(f"{index}.bmp" for index in range(4))
        for index, name in enumerate(names):
            picture = np.full((9, 9, 3), shade + 10 * index, np.uint8)
            Image.fromarray(picture).save(root / "Flickr" / name)
            os.utime(root / "Flickr" / name, ns=(10**18, 10**18))
        splits.append(LabelledImages(root, names, np.ones((4, 2), np.int8), ("cat", "dog"), 1))
    expected = [cache_tokens(vlp, split).half() for split in splits]
    for _ in range(2):
        found = [quietly(cache_tokens, vlp, split, folder=cache_folder, identify=identify) for split in splits]
        assert all(torch.equal(tokens.read(), right) for tokens, right in zip(found, expected))
    assert calls == [4] * 4  # in memory, and once on the disk


def test_images_that_change_meanwhile_are_an_error(counted, pictures, cache_folder, monkeypatch):
    vlp, calls = counted
    tower = vlp.image_tokens

    def image_tokens(images):
        if images.any():
            pictures.path(0).write_bytes(pictures.path(8).read_bytes())
        return tower(images)

    monkeypatch.setattr(vlp, "image_tokens", image_tokens)
    refused("0.png changed while its tokens were computed: run again", cache_tokens, vlp, pictures, folder=cache_folder)


@pytest.mark.parametrize("damage", [b"", b"no table", None], ids=str)
def test_a_lost_table_of_images_costs_reading_them(counted, pictures, cache_folder, damage):
    vlp, calls = counted
    first = cache_tokens(vlp, pictures, 3, folder=cache_folder).read()
    table = only_cache(cache_folder) / "images.npy"
    table.unlink() if damage is None else table.write_bytes(damage)
    calls.clear()
    assert torch.equal(quietly(cache_tokens, vlp, pictures, 3, folder=cache_folder).read(), first) and calls == []
    assert table.is_file()


def test_a_missing_image_is_named_before_anything_is_computed(counted, pictures, cache_folder):
    vlp, calls = counted
    pictures.path(7).unlink()
    refused("7.png cannot be read .No such file", cache_tokens, vlp, pictures, folder=cache_folder)
    assert calls == []


def test_meta_of_another_cache_is_refused(tiny_vlp, pictures, cache_folder):
    cache_tokens(tiny_vlp, pictures, folder=cache_folder)
    path = only_cache(cache_folder) / "meta.json"
    good = path.read_text()
    path.write_text(good.replace('"views": 1', '"views": 2'))
    refused(
        "not that of the token cache wanted here .views.: delete", cache_tokens, tiny_vlp, pictures, folder=cache_folder
    )
    path.write_text(good[:30])
    refused("it cannot be read", cache_tokens, tiny_vlp, pictures, folder=cache_folder)


def test_numbers_without_meta_do_not_count(counted, pictures, cache_folder):
    vlp, calls = counted
    cache_tokens(vlp, pictures, 3, folder=cache_folder)
    (only_cache(cache_folder) / "meta.json").unlink()
    calls.clear()
    cache_tokens(vlp, pictures, 3, folder=cache_folder)
    assert calls == [3, 3, 3]


# ---- damage


def damaged(counted, pictures, cache_folder, damage, again, **arguments):
    "Damage a cache of nine batches; expect a warning, so many batches computed again, and right tokens."
    vlp, calls = counted
    expected = cache_tokens(vlp, pictures, 1, folder=cache_folder).read()
    damage(only_cache(cache_folder))
    calls.clear()
    if again:
        with pytest.warns(UserWarning, match="computed again"):
            tokens = cache_tokens(vlp, pictures, 1, folder=cache_folder, **arguments)
    else:
        tokens = quietly(cache_tokens, vlp, pictures, 1, folder=cache_folder, **arguments)
    assert calls == [1] * again
    assert torch.equal(tokens.read(), expected)
    calls.clear()
    quietly(cache_tokens, vlp, pictures, 1, folder=cache_folder, verify=True)
    assert calls == []


ITEM = 17 * 64 * 2  # bytes


@pytest.mark.parametrize("size, again", [(9 * ITEM - 1, 1), (5 * ITEM, 4), (5 * ITEM - 1, 5), (1, 9), (0, 9)])
def test_a_truncated_cache(counted, pictures, cache_folder, size, again):
    damaged(counted, pictures, cache_folder, lambda folder: os.truncate(folder / "tokens.bin", size), again)


def test_a_lost_file(counted, pictures, cache_folder):
    damaged(counted, pictures, cache_folder, lambda folder: (folder / "tokens.bin").unlink(), 9)


def test_a_longer_file_is_cut(counted, pictures, cache_folder):
    def longer(folder):
        with open(folder / "tokens.bin", "ab") as file:
            file.write(b"x" * 100)

    damaged(counted, pictures, cache_folder, longer, 0)
    assert (only_cache(cache_folder) / "tokens.bin").stat().st_size == 9 * ITEM


@pytest.mark.parametrize("batch", [0, 8])
def test_a_changed_byte_where_a_sample_is_read(counted, pictures, cache_folder, batch):
    damaged(counted, pictures, cache_folder, lambda folder: flip(folder / "tokens.bin", batch * ITEM + 5), 1)


def test_changed_bytes_anywhere_with_verify(counted, pictures, cache_folder):
    def two(folder):
        for batch in (3, 4):
            flip(folder / "tokens.bin", batch * ITEM)

    damaged(counted, pictures, cache_folder, two, 2, verify=True)


def test_where_the_sample_finds_damage_all_is_read(counted, pictures, cache_folder):
    def everywhere(folder):
        for batch in range(9):
            flip(folder / "tokens.bin", batch * ITEM + batch)

    damaged(counted, pictures, cache_folder, everywhere, 9)


def test_a_touched_file_is_read_in_full(counted, pictures, cache_folder):
    unread = next(batch for batch in range(9) if batch not in np.linspace(0, 8, 8).astype(int))

    def touched(folder):
        flip(folder / "tokens.bin", unread * ITEM)
        os.utime(folder / "tokens.bin")

    damaged(counted, pictures, cache_folder, touched, 1)


@pytest.mark.parametrize("place", [0, 2, 4, 40, 68, 75, 78], ids=str)
def test_a_changed_byte_in_the_record(counted, pictures, cache_folder, place):
    vlp, calls = counted
    expected = cache_tokens(vlp, pictures, 1, folder=cache_folder).read()
    flip(only_cache(cache_folder) / "finished.txt", place)
    calls.clear()
    assert torch.equal(cache_tokens(vlp, pictures, 1, folder=cache_folder).read(), expected)
    assert 1 <= len(calls) <= 2  # a lost line end costs the next line too


def test_a_lost_record(counted, pictures, cache_folder):
    vlp, calls = counted
    cache_tokens(vlp, pictures, 1, folder=cache_folder)
    (only_cache(cache_folder) / "finished.txt").unlink()
    calls.clear()
    cache_tokens(vlp, pictures, 1, folder=cache_folder)
    assert len(calls) == 9


def test_overlapping_lines_do_not_count(tmp_path):
    spans = [(0, 5), (1, 2), (3, 4), (6, 8), (8, 8), (9, 7)]
    lines = [FinishedBatch(*span, "a" * 32, "b" * 32).line() for span in spans]
    (tmp_path / "finished.txt").write_text("".join(lines))
    assert [batch[:2] for batch in read_record(tmp_path / "finished.txt")] == [(0, 5), (6, 8)]


# ---- what is missing


@pytest.mark.parametrize(
    "finished", [[], [(0, 3)], [(3, 5)], [(0, 2), (5, 9)], [(0, 9)], [(2, 3), (4, 5), (6, 7)]], ids=str
)
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_missing_batches_cover_exactly_what_is_missing(finished, batch_size):
    batches = missing_batches([FinishedBatch(*span, "", "") for span in finished], 9, batch_size)
    done = [i for span in finished for i in range(*span)]
    assert sorted(done + [i for batch in batches for i in batch]) == list(range(9))
    assert all(0 < len(batch) <= batch_size for batch in batches) and batches == sorted(
        batches, key=lambda batch: batch.start
    )


def test_going_on_with_another_batch_size(counted, pictures, cache_folder):
    vlp, calls = counted
    expected = cache_tokens(vlp, pictures, 9).half()
    bad = pictures.path(6).read_bytes()
    pictures.path(6).write_bytes(bad[:50])
    refused("6.png", cache_tokens, vlp, pictures, 4, folder=cache_folder)
    pictures.path(6).write_bytes(bad)
    calls.clear()
    torch.testing.assert_close(
        cache_tokens(vlp, pictures, 3, folder=cache_folder).read(), expected, rtol=1e-2, atol=1e-3
    )
    assert calls == [3, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_in_the_middle(counted, pictures, cache_folder, workers):
    vlp, calls = counted
    whole = pictures.path(5).read_bytes()
    pictures.path(5).write_bytes(whole[: len(whole) // 2])
    refused("5.png is damaged or truncated", cache_tokens, vlp, pictures, 2, workers, folder=cache_folder)
    assert calls == [2, 2] and list_caches(cache_folder)[0]["finished"] == pytest.approx(4 / 9)
    pictures.path(5).write_bytes(whole)
    tokens = quietly(cache_tokens, vlp, pictures, 2, folder=cache_folder)
    assert calls == [2, 2, 2, 2, 1]
    assert torch.equal(tokens.read(), cache_tokens(vlp, pictures, 2).half())


# ---- disk and numbers


def test_too_little_memory_is_reported_beforehand(counted, pictures, monkeypatch):
    vlp, calls = counted
    need = cache_size(vlp, N_IMAGES, torch.float32, 2)
    monkeypatch.setattr(cache, "available_memory", lambda: need - 1)
    refused(
        r"need 0.00 GB of memory, but 0.00 GB are available: keep them on disk .*--cache FOLDER",
        cache_tokens,
        vlp,
        pictures,
        views=2,
    )
    assert calls == [] and len(cache_tokens(vlp, pictures)) == N_IMAGES
    nuswide = SimpleNamespace(image_size=224, preprocess=None, image_tokens=lambda images: torch.zeros(1, 197, 768))
    monkeypatch.setattr(cache, "available_memory", lambda: 32e9)
    refused("need 97.91 GB of memory, but 32.00 GB are available", cache_tokens, nuswide, range(161_789))


@pytest.mark.parametrize("arguments", [{}, {"views": 3}, {"dtype": torch.float32}, {"identify": "content"}], ids=str)
def test_room_that_is_still_needed(tiny_vlp, pictures, cache_folder, arguments):
    whole = cache_size(tiny_vlp, N_IMAGES, arguments.get("dtype", torch.float16), arguments.get("views", 1))
    assert missing_bytes(tiny_vlp, pictures, cache_folder, **arguments) == whole
    cache_tokens(tiny_vlp, pictures, folder=cache_folder, **arguments)
    assert missing_bytes(tiny_vlp, pictures, cache_folder, **arguments) == 0
    os.truncate(only_cache(cache_folder) / "tokens.bin", ITEM)
    assert missing_bytes(tiny_vlp, pictures, cache_folder, **arguments) == whole - ITEM
    assert (
        missing_bytes(tiny_vlp, pictures) == cache_size(tiny_vlp, N_IMAGES, torch.float32)
        and missing_bytes(tiny_vlp, pictures.subset([]), cache_folder) == 0
    )


def test_too_little_room_is_reported_beforehand(counted, pictures, cache_folder, monkeypatch):
    vlp, calls = counted
    need = cache_size(vlp, N_IMAGES)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=need - 1))
    monkeypatch.setattr(cache, "progress", lambda *args: pytest.fail("began to write"))
    refused(
        r"needs 0.00 GB more in .* but 0.00 GB are free: make room", cache_tokens, vlp, pictures, folder=cache_folder
    )
    assert calls == []
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3e9))
    refused("needs 12.50 GB more in .* but 3.00 GB are free", cache.check_room, cache_folder, 12_500_000_000)


def test_room_is_asked_for_what_is_missing_only(counted, pictures, cache_folder, monkeypatch):
    vlp, calls = counted
    cache_tokens(vlp, pictures, 1, folder=cache_folder)
    os.truncate(only_cache(cache_folder) / "tokens.bin", 8 * ITEM)
    asked = []
    monkeypatch.setattr(cache, "check_room", lambda folder, n_bytes: asked.append(n_bytes))
    with pytest.warns(UserWarning):
        cache_tokens(vlp, pictures, 1, folder=cache_folder)
    assert asked == [ITEM]


@pytest.mark.parametrize("call", range(1, 7))
def test_a_full_disk_in_the_middle(counted, pictures, cache_folder, monkeypatch, call):
    "The disk is full at one of the flushes to it: what was finished before stays."
    vlp, calls = counted
    fsync = os.fsync
    count = [0]
    with monkeypatch.context() as patch:

        def full(number):
            count[0] += 1
            if count[0] > 3 + call:
                raise OSError(errno.ENOSPC, "No space left on device")  # 3: meta.json, images.npy, the emptied record
            fsync(number)

        patch.setattr(batchfile.os, "fsync", full)
        refused(
            "No space left on device.*items are finished and kept", cache_tokens, vlp, pictures, 1, folder=cache_folder
        )
    assert len(calls) == call // 2 + 1
    calls.clear()
    tokens = quietly(cache_tokens, vlp, pictures, 1, folder=cache_folder)
    assert len(calls) == 9 - (call + 1) // 2  # two flushes a batch: its numbers, its line
    assert torch.equal(tokens.read(), cache_tokens(vlp, pictures, 1).half())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit of file sizes")
def test_a_file_that_may_not_grow(counted, pictures, cache_folder):
    "A real refusal by the system in the middle of a batch: a part of its bytes is written, then no more."
    import resource

    vlp, calls = counted
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 2 * ITEM + ITEM // 2, before[1]))
    try:
        refused(
            "tokens.bin cannot be written .File too large.; 6 of 9 items are finished and kept",
            cache_tokens,
            vlp,
            pictures,
            2,
            folder=cache_folder,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert calls == [2] * 4
    again = quietly(cache_tokens, vlp, pictures, 2, folder=cache_folder)
    assert torch.equal(again.read(), cache_tokens(vlp, pictures, 2).half())
    assert calls[4:6] == [2, 1]


def test_a_place_that_is_no_folder(tiny_vlp, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    refused("cannot be used as a token cache", cache_tokens, tiny_vlp, pictures, folder=tmp_path / "file")


def test_numbers_beyond_half_precision(tiny_vlp, pictures, cache_folder, monkeypatch):
    tower = tiny_vlp.image_tokens
    monkeypatch.setattr(tiny_vlp, "image_tokens", lambda images: tower(images) + 70_000.0)
    refused(
        "0.png .* not finite in float16: use dtype=torch.bfloat16",
        cache_tokens,
        tiny_vlp,
        pictures,
        folder=cache_folder,
    )
    assert cache_tokens(tiny_vlp, pictures, folder=cache_folder, dtype=torch.bfloat16).read().isfinite().all()


def test_of_several_views_the_image_with_infinite_tokens_is_named(counted, pictures, cache_folder, monkeypatch):
    vlp, calls = counted
    tower = vlp.image_tokens

    def image_tokens(images):
        tokens = tower(images)
        return tokens / 0 if len(calls) == 3 else tokens

    monkeypatch.setattr(vlp, "image_tokens", image_tokens)
    refused(
        "2.png or one of the 1 items after it are not finite", cache_tokens, vlp, pictures, 2, 0, cache_folder, views=2
    )


# ---- two processes


def test_a_second_writer_is_refused(counted, pictures, cache_folder, monkeypatch):
    vlp, calls = counted
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.05)
    cache_tokens(vlp, pictures, 3, folder=cache_folder)
    with FileLock(only_cache(cache_folder) / "lock"):
        quietly(cache_tokens, vlp, pictures, 3, folder=cache_folder)  # a complete cache is read without the lock
        os.truncate(only_cache(cache_folder) / "tokens.bin", ITEM)
        refused("another process is writing the token cache", cache_tokens, vlp, pictures, 3, folder=cache_folder)
    with pytest.warns(UserWarning):
        cache_tokens(vlp, pictures, 3, folder=cache_folder)


def test_the_lock_of_a_cache_is_its_own(tiny_vlp, pictures, cache_folder):
    "An image that cannot be read, a refusal: the lock is free afterwards."
    good = pictures.path(8).read_bytes()
    pictures.path(8).write_bytes(b"no image")
    refused("8.png", cache_tokens, tiny_vlp, pictures, 2, folder=cache_folder)
    with FileLock(only_cache(cache_folder) / "lock", timeout=0):
        pass
    pictures.path(8).write_bytes(good)
    cache_tokens(tiny_vlp, pictures, 2, folder=cache_folder)


# ---- killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_at_any_moment(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(TESTS / "kill_cache.py"), str(tmp_path / "work")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    at_steps = [run for run in found["runs"] if run["kind"] == "step"]
    assert len(at_steps) > 20 and len(found["runs"]) == len(at_steps) + 20 + 1
    for run in found["runs"]:
        assert run["finished_are_right"] and run["same"] and not run["warnings"] and not run["computed_again"], run
        assert run["computed"] == found["batches"] - run["finished"], run  # what was finished is not computed again
    finished = [run["finished"] for run in at_steps]
    assert finished == sorted(finished)
    assert set(finished) == set(range(found["batches"] + 1))  # a kill costs one batch, never two


# ---- views


def test_views_are_the_same_whatever_the_order(tiny_vlp, pictures, cache_folder, tmp_path):
    expected = cache_tokens(tiny_vlp, pictures, 4, views=3)  # in memory
    assert expected.shape == (N_IMAGES, 3, 17, 64)
    assert torch.equal(cache_tokens(tiny_vlp, pictures, 4, folder=cache_folder, views=3).read(), expected.half())
    for arguments in ({"workers": 2}, {"batch_size": 5}):
        again = cache_tokens(
            tiny_vlp, pictures, **{"batch_size": 4, "views": 3, "folder": tmp_path / "-".join(arguments)} | arguments
        )
        torch.testing.assert_close(again.read().float(), expected, rtol=1e-2, atol=2e-3)
    flat = expected.flatten(0, 1)
    assert not any(torch.equal(flat[i], flat[j]) for i in range(len(flat)) for j in range(i))
    assert not torch.equal(cache_tokens(tiny_vlp, pictures, 4, views=3, seed=1), expected)


def test_a_view_is_the_augmentation_of_its_image(tiny_vlp, pictures, cache_folder):
    views = cache_tokens(tiny_vlp, pictures, folder=cache_folder, views=2, dtype=torch.float32)
    image = Augmentation(tiny_vlp.preprocess, 0)(Image.open(pictures.path(3)).convert("RGB"), 3, 1)
    torch.testing.assert_close(views[3, 1], tiny_vlp.image_tokens(image[None])[0], rtol=1e-4, atol=1e-5)


def test_views_go_on_in_the_middle_of_an_image(counted, pictures, cache_folder):
    vlp, calls = counted
    expected = cache_tokens(vlp, pictures, 2, folder=cache_folder, views=3).read()
    os.truncate(
        only_cache(cache_folder) / "tokens.bin", 14 * ITEM
    )  # 14 of 27 items: image 4 has two of its three views
    calls.clear()
    with pytest.warns(UserWarning, match="7 of 14"):
        tokens = cache_tokens(vlp, pictures, 2, folder=cache_folder, views=3)
    assert torch.equal(tokens.read(), expected) and calls == [2] * 6 + [1]
    Image.new("RGB", (40, 40), (255, 0, 0)).save(pictures.path(8))  # items 24 to 26, in the last two batches
    calls.clear()
    with pytest.warns(UserWarning, match="2 of 14"):
        cache_tokens(vlp, pictures, 2, folder=cache_folder, views=3)
    assert calls == [2, 1]


# ---- those who use the tokens


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_widened_by_everyone(tiny_vlp, pictures, cache_folder, dtype):
    half = cache_tokens(tiny_vlp, pictures, folder=cache_folder, dtype=dtype)
    names = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for tokens in (half, half.read().float()):
        torch.manual_seed(0)
        head = QKSHead(tiny_vlp.projection, HeadConfig(2, 1))
        optimizer = torch.optim.SGD(head.parameters(), lr=1e-3)
        loss = train_epoch(
            head, tokens, torch.ones(N_IMAGES, 4), names, bce_loss, optimizer, 4, torch.Generator().manual_seed(0)
        )
        results.append(
            [
                torch.tensor(loss),
                head.projection.detach(),
                *head_scores(head, tokens, names, 4),
                zero_shot_scores(tiny_vlp, tokens, names, 4),
                best_patch_scores(tiny_vlp, tokens, names, 4),
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*results)) and results[0][2].dtype == torch.float32


def test_a_batch_file_alone(tmp_path):
    "Any tensor, any order of batches."
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(10, 2, 3, generator=rng).half()
    file = BatchFile(tmp_path, (10, 2, 3), torch.float16, [bytes([i]) for i in range(5)])
    file.numbers.touch()
    for start in (6, 0, 8, 3):
        file.write(start, values[start : {6: 8, 0: 3, 8: 10, 3: 6}[start]])
    assert [batch[:2] for batch in valid_batches(file, verify=True)] == [(0, 3), (3, 6), (6, 8), (8, 10)]
    assert torch.equal(file.tensor().read(), values)


# ---- tokens on disk look like a tensor


@pytest.fixture
def stored(tmp_path):
    "The same numbers [10, 3, 4] in a file, behind eight other bytes, and in memory."
    values = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    (tmp_path / "tokens").write_bytes(bytes(8) + values.view(torch.uint8).numpy().tobytes())
    return DiskTokens(OpenFile(tmp_path / "tokens"), values.shape, values.dtype, 8), values


@pytest.mark.parametrize(
    "rows",
    [
        3,
        -1,
        [4, 0, 4],
        [],
        torch.tensor([9, 2]),
        torch.tensor(5),
        torch.arange(10) > 6,
        np.array([1, 8]),
        slice(2, 7),
        slice(None),
        slice(7, 2),
        slice(-3, 99),
        slice(None, None, 3),
        (slice(None), 0),
        (slice(1, 3), slice(1, None)),
        (torch.tensor([1, 0]), torch.tensor([2, 0])),
        (4, 1),
    ],
    ids=str,
)
def test_rows_of_a_file(stored, rows):
    tokens, values = stored
    found = tokens[rows]
    if isinstance(found, DiskTokens):  # a slice reads nothing
        found = found.read()
    assert found.shape == values[rows].shape and found.dtype == values.dtype and torch.equal(found, values[rows])


def test_parts_and_copies(stored, monkeypatch):
    tokens, values = stored
    monkeypatch.setattr(batchfile, "ITEMS_AT_ONCE", 4)
    assert (len(tokens), tokens.ndim, tokens.shape) == (10, 3, values.shape)
    assert (tokens.nbytes, tokens.device) == (values.nbytes, values.device)
    assert torch.equal(tokens.to("cpu", torch.float64), values.double())
    assert torch.equal(tokens.to("cpu"), values) and torch.equal(tokens.read(), values)
    assert [len(part) for part in tokens.split(4)] == [4, 4, 2]
    assert torch.equal(torch.cat([part.read() for part in tokens.split(4)]), values)
    for wrong in (10, -11, [0, 10], (10, 0)):
        with pytest.raises(IndexError):
            tokens[wrong]
    assert [torch.equal(a, b) for a, b in zip(tokens, values, strict=True)] == [True] * 10
    assert not hasattr(tokens, "read_batches") and not hasattr(tokens, "set_epoch")


def test_no_question_reads_the_file(stored, monkeypatch):
    """`hasattr(tokens, "is_cuda")` once read all of it, 82 GB for NUS-WIDE."""
    tokens, values = stored
    monkeypatch.setattr(DiskTokens, "read_items", lambda *args: pytest.fail("the file is read"))
    names = [name for name in dir(torch.Tensor) if not name.startswith("__")]
    own = {"shape", "dtype", "ndim", "nbytes", "device", "split", "to"}
    assert {name for name in names if hasattr(tokens, name)} == own
    for name in ("is_cuda", "T", "data", "real", "grad", "numpy", "float", "no_such_thing"):
        with pytest.raises(AttributeError, match=f"DiskTokens has no '{name}'"):
            getattr(tokens, name)
    with pytest.raises(AttributeError, match="tokens.read.. reads all of them into a tensor"):
        _ = tokens.mean
    for function in (copy.copy, pickle.dumps, repr, bool):
        function(tokens)
    for function in (lambda: torch.equal(tokens, values), lambda: torch.stack([tokens]), lambda: tokens + 1):
        with pytest.raises(TypeError):
            function()
    assert isinstance(tokens, (torch.utils.data.Dataset, StoredTokens)) and not torch.is_tensor(tokens)
    copy.copy(tokens), pickle.dumps(tokens), repr(tokens), bool(tokens)


def test_of_rows_and_more_only_the_rows_are_read(stored, monkeypatch):
    tokens, values = stored
    read = []
    read_items = DiskTokens.read_items
    monkeypatch.setattr(
        DiskTokens, "read_items", lambda self, rows, axes=1: read.append(rows.tolist()) or read_items(self, rows, axes)
    )
    assert torch.equal(tokens[2:4, 1:], values[2:4, 1:]) and torch.equal(tokens[-1, :, 0], values[-1, :, 0])
    assert read == [[2, 3], 9]


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_own_loader_takes_them(stored, workers):
    tokens, values = stored
    loader = torch.utils.data.DataLoader(tokens, batch_size=4, num_workers=workers)
    assert torch.equal(torch.cat(list(loader)), values)
    subset = torch.utils.data.Subset(tokens, [7, 2])
    assert torch.equal(subset[0], values[7]) and torch.equal(torch.stack(subset.__getitems__([1, 0])), values[[2, 7]])


def test_views_in_a_file(stored):
    tokens, values = stored
    views = DiskTokens(tokens.file, (5, 2, 3, 4), tokens.dtype, 8)
    rows = torch.tensor([4, 0, 1])
    drawn = torch.tensor([1, 1, 0])
    whole = values.unflatten(0, (5, 2))
    assert torch.equal(views[rows, drawn], whole[rows, drawn]) and torch.equal(views[1:][2, 1], values[7])
    for pair in (
        (torch.tensor([-1, 0]), torch.tensor([-2, -1])),
        (torch.tensor([True, False, False, True, False]), torch.tensor([False, True])),
    ):
        assert torch.equal(views[pair], whole[pair])
    for wrong in (
        (torch.tensor([0]), torch.tensor([2])),
        (torch.tensor([5]), torch.tensor([0])),
        (torch.tensor([0]), torch.tensor([-3])),
    ):
        with pytest.raises(IndexError):
            views[wrong]
    with pytest.raises(IndexError):
        views[1:3][torch.tensor([2]), torch.tensor([0])]  # not what lies behind it in the file


def test_an_open_file(stored, tmp_path, monkeypatch):
    """It outlives its name, is opened anew in another process, and is closed in the end.

    It is read in full, also where the system gives a few bytes at a time.
    """
    tokens, values = stored
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, place: preadv(file, [buffers[0][:7]], place))
    assert torch.equal(tokens.read(), values)
    again = pickle.loads(pickle.dumps(tokens))
    descriptor = again.file.descriptor
    assert descriptor != tokens.file.descriptor and torch.equal(again[[2]], values[[2]])
    part = again[3:]
    (tmp_path / "tokens").unlink()
    del again
    assert torch.equal(part.read(), values[3:])
    del part
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_where_the_system_reads_at_no_place_of_its_own(stored, monkeypatch):
    tokens, values = stored
    monkeypatch.delattr(os, "preadv")
    assert torch.equal(tokens.read(), values) and torch.equal(tokens[[7, 2]], values[[7, 2]])
    os.truncate(tokens.file.path, 8 + 24)
    with pytest.raises(OSError, match="the file ends"):
        tokens[[0, 1]]


def test_a_run_knows_tokens_on_disk_by_their_digest(stored):
    tokens, values = stored
    assert token_digest(tokens) == token_digest(values) != token_digest(-values)


def test_reading_touches_what_was_asked_for(stored, monkeypatch):
    tokens, values = stored
    read = []
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, buffers, place: read.append((place - 8) // 24) or preadv(file, buffers, place)
    )
    tokens[2:8], tokens.split(3), tokens.shape, hasattr(tokens, "read_batches")
    assert read == []
    tokens[2:8][[5, 0]]
    assert read == [7, 2]


def test_no_such_drive(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(QKSError, match="cannot be kept in Z:.*there is no such drive"):
        cache.check_room("Z:/tokens", 1)


def test_a_folder_with_a_strange_meta_file(tmp_path):
    (tmp_path / "tokens-1").mkdir()
    for content in ("[]", "3", "[1]"):
        (tmp_path / "tokens-1" / "meta.json").write_text(content)
        assert list_caches(tmp_path) == [
            {"name": "tokens-1", "images": None, "views": None, "dtype": None, "vlp": None, "GB": 0, "finished": 0}
        ]
