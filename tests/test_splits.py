"""From a folder to its splits, prepared or raw; stale, damaged, missing and unwritable files end in one sentence."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_formats import coco, write_coco, write_images
from test_openimages import write_tree

from qks.core import QKSError
from qks.data.index import LabelledImages, without_unseen
from qks.data.nuswide import index_nuswide, read_nuswide
from qks.data.pocket import PocketConfig, write_pocket
from qks.data.registry import DATASETS, detect_dataset
from qks.data.splits import (
    SPLITS,
    check_splits,
    index_paths,
    index_splits,
    open_split,
    open_splits,
    prepare,
)
from qks.data.voc import VOC_CLASSES
from qks.experiment.training_data import load_training_data, training_splits
from qks.model.prompts import PromptPool

TINY = Path(__file__).parent / "data/nuswide_tiny/raw"


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QKS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def nuswide(tmp_path):
    return Path(shutil.copytree(TINY, tmp_path / "nuswide"))


@pytest.fixture
def openimages(tmp_path):
    rows = [(1, "/m/01", 1), (1, "/m/02", 0), (2, "/m/03", 1), (2, "/m/03", 0), (3, "/m/02", 1)]
    root = write_tree(tmp_path / "openimages", rows, split="train")
    return write_tree(root, [(11, "/m/01", 1), (11, "/m/04", 1), (12, "/m/05", 0)], split="test")


@pytest.fixture
def own(tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    (root / "train.csv").write_text("image,labels\na.jpg,sea|dog\nb.jpg,dog\nc.jpg,\nd.jpg,sand\n")
    (root / "test.csv").write_text("image,labels\ne.jpg,sand|dog\nf.jpg,sea\n")
    (root / "unseen.txt").write_text("dog\n")
    write_images(root, *(f"{name}.jpg" for name in "abcdef"))
    return root


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "voc"
    for name in ("Annotations", "ImageSets/Main"):
        (root / "VOCdevkit/VOC2007" / name).mkdir(parents=True)
    for split, objects in (
        ("trainval", {"000001": ["dog"], "000002": ["cat", "dog"], "000003": ["cat"], "000004": []}),
        ("test", {"000005": ["cat"]}),
    ):
        (root / f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in objects))
        for name, found in objects.items():
            write_images(root, f"VOCdevkit/VOC2007/JPEGImages/{name}.jpg")
            (root / f"VOCdevkit/VOC2007/Annotations/{name}.xml").write_text(
                "<annotation>" + "".join(f"<object><name>{n}</name></object>" for n in found) + "</annotation>"
            )
    (root / "unseen.txt").write_text("cat\n")
    return root


def content(index):
    return (
        index.images,
        index.label_ids,
        index.label_names,
        index.n_seen,
        index.labels().tolist(),
        index.image_folder,
        index.conflicts,
    )


def files(root):
    return sorted(path.name for path in root.rglob("*") if "index" in path.name)


# --- each data set ---


def test_nuswide_needs_no_preparation(nuswide):
    raw = {split: open_split(nuswide, split) for split in SPLITS}
    assert files(nuswide) == []
    for split in SPLITS:
        assert content(raw[split]) == content(index_nuswide(nuswide, split))
    prepared = prepare(str(nuswide), "nuswide")
    assert prepared.files == {split: nuswide / f"qks-index-{split}.npz" for split in SPLITS}
    assert files(nuswide) == [
        "qks-index-test.npz",
        "qks-index-train.npz",
    ]
    for split in SPLITS:
        assert content(open_split(str(nuswide), split)) == content(raw[split]) == content(prepared.splits[split])


def test_a_saved_index_is_read_and_the_tables_are_not(nuswide, monkeypatch):
    prepare(nuswide, "nuswide")
    entry = replace(DATASETS["nuswide"], index=lambda *_: pytest.fail("the raw files were read"))
    monkeypatch.setitem(DATASETS, "nuswide", entry)
    assert len(open_split(nuswide, "test")) == 30
    assert len(open_splits(nuswide)["train"]) == 31


def test_dense_is_what_the_raw_reader_gives(nuswide):
    prepare(nuswide, "nuswide")
    for split in SPLITS:
        data = open_split(nuswide, split).dense()
        expected = read_nuswide(nuswide, split)
        assert isinstance(data, LabelledImages)
        assert data.images == expected.images
        assert data.label_names == expected.label_names
        assert np.array_equal(data.labels, expected.labels)
        assert data.labels.dtype == expected.labels.dtype
        assert data.n_seen == expected.n_seen
        assert data.path(0) == expected.path(0)


def test_training_sees_the_same_numbers_prepared_or_not(tmp_path, tiny_vlp):
    root = write_pocket(tmp_path / "pocket", PocketConfig(n_train=40, n_test=20))
    pool = PromptPool.single("a {}")
    raw = load_training_data(root, tiny_vlp, pool)
    prepare(root, "nuswide")
    saved = load_training_data(root, tiny_vlp, pool)
    given = load_training_data("nowhere", tiny_vlp, pool, parts=training_splits(open_splits(root)))
    for split in ("train", "validation", "test"):
        for benchmark in (saved, given):
            a = getattr(raw, split)
            b = getattr(benchmark, split)
            assert a.images == b.images
            assert a.label_names == b.label_names
            assert np.array_equal(a.labels, b.labels)
            assert a.n_seen == b.n_seen
            assert raw.tokens[split].equal(benchmark.tokens[split])
    assert raw.embeddings.equal(saved.embeddings)


def test_openimages(openimages):
    prepared = prepare(openimages, "openimages")
    train, test = (open_split(openimages, split) for split in SPLITS)
    assert train.label_ids == ("/m/01", "/m/02", "/m/03") and test.label_ids == (*train.label_ids, "/m/04", "/m/05")
    assert train.labels().tolist() == [[1, -1, 0], [0, 1, 0]]
    assert train.conflicts == 1
    assert "lines 4 and 5" in train.first_conflict
    assert "1 conflicts" in str(prepared)
    assert train.first_conflict in str(prepared)
    assert "count as not annotated" in str(prepared)
    (openimages / "fewer.txt").write_text("/m/04\n")
    prepare(openimages, "openimages", unseen="fewer.txt")
    assert len(open_split(openimages, "test").label_ids) == 4


def test_coco_divisions(tmp_path):
    root = tmp_path / "coco"
    root.mkdir()
    objects = [(1, "person"), (2, "person"), (2, "cat"), (3, "hot dog")]
    for name in ("train2014", "val2014", "minival"):
        write_coco(root, coco(objects=objects), name)
        write_images(root / name, "a.jpg", "b.jpg", "c.jpg")
    prepare(root, "coco")
    assert [(open_split(root, split).images, len(open_split(root, split).label_ids)) for split in SPLITS] == [
        (("a.jpg",), 48),
        (("b.jpg",), 65),
    ]
    prepare(root, "coco", division="65/15")
    assert [(open_split(root, split).images, len(open_split(root, split).label_ids)) for split in SPLITS] == [
        (("a.jpg",), 65),
        (("c.jpg", "b.jpg"), 80),
    ]
    prepare(root, "coco", splits=["test"], test="minival", division="48/17")
    assert open_split(root, "test").image_folder == "minival"
    with pytest.raises(
        QKSError, match="65 labels to train on are not the 48 seen labels .*prepare both splits at once"
    ):
        open_splits(root)
    with pytest.raises(QKSError, match="images that are in both splits"):
        prepare(root, "coco", division="all", train="val2014")
    with pytest.raises(QKSError, match="division is '50/30'"):
        prepare(root, "coco", division="50/30")


def test_voc_with_unseen_classes(voc):
    assert "no label is unseen" not in str(prepare(voc, "voc", unseen="unseen.txt"))
    train, test = (open_split(voc, split) for split in SPLITS)
    assert train.images == ("000001.jpg", "000002.jpg", "000004.jpg")
    assert len(train.label_ids) == 19
    assert "cat" not in train.label_ids
    assert test.label_ids == (*train.label_ids, "cat")
    assert test.labels()[0, -1] == 1
    assert test.image_folder == "VOCdevkit/VOC2007/JPEGImages"
    assert "no label is unseen" in str(prepare(voc, "voc"))
    assert [len(open_split(voc, split)) for split in SPLITS] == [4, 1]
    assert open_split(voc, "train").label_ids == VOC_CLASSES
    (voc / "unseen.txt").write_text("zebra\n")
    with pytest.raises(QKSError, match="'zebra' is no class"):
        prepare(voc, "voc", unseen="unseen.txt")


def test_folder(own):
    prepare(own, "folder", unseen="unseen.txt")
    train, test = (open_split(own, split) for split in SPLITS)
    assert train.images == ("a.jpg", "c.jpg", "d.jpg")
    assert train.label_ids == ("sea", "sand")
    assert train.labels().tolist() == [[1, -1], [-1, -1], [-1, 1]]
    assert test.label_ids == ("sea", "sand", "dog")
    assert test.n_seen == 2
    assert test.labels().tolist() == [[-1, 1, 1], [1, -1, -1]]


def test_folder_by_lists_and_other_names(own):
    (own / "seen.txt").write_text("sand\nsea\nsky\n")
    (own / "lists").mkdir()
    write_images(own / "pictures", "a.jpg", "e.jpg")
    (own / "train.csv").rename(own / "lists/train.csv")
    prepare(own, "folder", train="lists/train.csv", seen="seen.txt", unseen="unseen.txt", image_folder="pictures")
    train = open_split(own, "train")
    assert train.label_ids == ("sand", "sea") and train.path(0) == own / "pictures/a.jpg"
    assert "label 'sky' has no training images and no test images: it is left out" in open_split(own, "test").notes


def test_folder_to_test_only(own):
    (own / "train.csv").unlink()
    prepare(own, "folder", ["test"], unseen="unseen.txt")
    assert open_split(own, "test").label_ids == ("sand", "sea", "dog")
    with pytest.raises(QKSError, match="no index of its train split: run `qks data folder prepare"):
        open_split(own, "train")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("test.csv", "image,labels\ne.jpg,sky\n", "test.csv line 2: label 'sky' is neither in seen nor in unseen"),
        ("test.csv", "image,labels\na.jpg,sea\n", "are in both splits, 1 in all, such as a.jpg"),
        ("unseen.txt", "dog\n\ndog\n", "unseen.txt line 3: 'dog' is already in line 1"),
        ("test.csv", "thing,labels\ne.jpg,sky\n", "test.csv line 1 is .*expected a header"),
    ],
)
def test_a_mistake_in_the_second_split_saves_neither(own, name, text, message):
    (own / name).write_text(text)
    with pytest.raises(QKSError, match=message):
        prepare(own, "folder", unseen="unseen.txt")
    assert files(own) == []


def test_one_table_for_both_splits(tmp_path):
    "A fifth of the images to test on, the same every time; an unseen label leaves training, and stays in the test."
    rows = [
        f"{number}.jpg,{'sea' if number % 2 else 'sand'}|{'dog' if number % 3 == 0 else 'sky'}" for number in range(30)
    ]
    (tmp_path / "train.csv").write_text("\n".join(["image,labels", *rows]))
    (tmp_path / "unseen.txt").write_text("dog\n")
    one, again = (index_splits(tmp_path, "folder", test_part=0.2, unseen="unseen.txt") for _ in range(2))
    assert len(one["test"]) == 6 and len(one["train"]) == 24 and not set(one["train"].images) & set(one["test"].images)
    assert one["test"].images == again["test"].images
    assert one["test"].label_ids == ("sand", "sea", "sky", "dog")
    assert one["train"].label_ids == ("sand", "sea", "sky")
    assert list(index_splits(tmp_path, "folder", ["test"], test_part=0.2)) == ["test"]
    for test in ("other.csv", "test.csv"):
        if test == "test.csv":
            (tmp_path / test).write_text("image,labels\nx.jpg,sea\n")
        with pytest.raises(QKSError, match="leave out --test-part, or remove the table"):
            index_splits(tmp_path, "folder", test_part=0.2, test=test)
    (tmp_path / "test.csv").unlink()
    for part in (0, 1.5, 0.001):
        with pytest.raises(QKSError, match="leaves one part empty|give a part of the images between 0 and 1"):
            index_splits(tmp_path, "folder", test_part=part)


def test_images_do_not_leave_the_folder(own):
    with pytest.raises(QKSError, match="relative, without '..'"):
        prepare(own, "folder", image_folder="../x")


@pytest.mark.parametrize(
    "options",
    [{"unseen": "../no.txt"}, {"seen": "/no/such.txt"}, {"validation": "no.csv"}, {"train": "../no.csv"}],
)
def test_a_list_that_is_nowhere_is_refused_with_its_places(own, options):
    with pytest.raises(QKSError, match=r"(no|such)\.(txt|csv) is missing: .*"):
        prepare(own, "folder", **options)


def test_without_unseen_leaves_every_seen_entry(openimages):
    index = index_splits(openimages, "openimages", ["test"])["test"]
    left = without_unseen(index)
    assert left.label_ids == index.label_ids[:3]
    assert left.images == index.images[:1]
    assert left.labels().tolist() == index.labels()[:1, :3].tolist()


# --- what is refused ---


def test_unknown_names(nuswide):
    with pytest.raises(QKSError, match="data set is 'nuswide81': expected nuswide, openimages, coco, voc, folder"):
        prepare(nuswide, "nuswide81")
    with pytest.raises(QKSError, match="split is 'val': expected 'train' or 'test'"):
        prepare(nuswide, "nuswide", ["train", "val"])
    with pytest.raises(QKSError, match="split is 'val': expected 'train' or 'test'"):
        open_split(nuswide, "val")
    for function in (
        lambda: prepare("nowhere", "nuswide"),
        lambda: open_split("nowhere", "test"),
        lambda: open_split(nuswide / "Concepts81.txt", "test"),
    ):
        with pytest.raises(QKSError, match="is no folder: name the data set's folder"):
            function()


@pytest.mark.parametrize("dataset, mark", [(entry.name, mark) for entry in DATASETS.values() for mark in entry.marks])
def test_a_folder_without_an_index_names_the_command(tmp_path, dataset, mark):
    path = tmp_path / "a folder" / mark.replace("*", "x")
    path.parent.mkdir(parents=True)
    path.touch() if path.suffix else path.mkdir()
    assert detect_dataset(tmp_path / "a folder").name == dataset
    message = re.escape(f"run `qks data {dataset} prepare '{tmp_path}/a folder'` first")
    if DATASETS[dataset].is_ready:
        message = "is missing: expected it at"
    with pytest.raises(QKSError, match=message):
        open_split(tmp_path / "a folder", "test")


def test_an_empty_folder_names_all_commands(tmp_path):
    with pytest.raises(
        QKSError, match="run `qks data DATASET prepare .*` first, DATASET being one of nuswide, openimages"
    ):
        open_split(tmp_path, "test")


@pytest.mark.parametrize(
    "source",
    ["ImageList/TestImagelist.txt", "NUS_WID_Tags/Test_Tags1k.dat", "Groundtruth/TrainTestLabels/Labels_bear_Test.txt"],
)
def test_a_stale_index_is_not_used(nuswide, source):
    prepare(nuswide, "nuswide")
    content = (nuswide / source).read_bytes()
    (nuswide / source).write_bytes(b"\n" + content)
    expected = (
        f"is stale: the raw files in {nuswide} have changed since it was built; build it again "
        f"(`qks data nuswide prepare {nuswide}`, with the options of the first time)"
    )
    with pytest.raises(QKSError, match=re.escape(expected)):
        open_split(nuswide, "test")
    assert len(open_split(nuswide, "train")) == 31
    (nuswide / source).write_bytes(content)  # at another time
    assert len(open_split(nuswide, "test")) == 30


def test_a_copied_data_set_is_not_stale(own, tmp_path):
    prepare(own, "folder", unseen="unseen.txt")
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(own, copy, copy_function=shutil.copy)  # without the times
    for name in ("train.csv", "test.csv", "unseen.txt"):
        os.utime(copy / name, (1, 1))
    for split in SPLITS:
        assert open_split(copy, split).images == open_split(own, split).images
    content = (copy / "test.csv").read_text()
    (copy / "test.csv").write_text(content.swapcase())  # of the same size
    with pytest.raises(QKSError, match="is stale"):
        open_split(copy, "test")


def test_an_index_without_its_sources_is_not_used(nuswide):
    prepare(nuswide, "nuswide")
    (nuswide / "ImageList/TestImagelist.txt").unlink()
    with pytest.raises(
        QKSError,
        match="TestImagelist.txt cannot be read .* put it back, or build the index again .`qks data nuswide prepare",
    ):
        open_split(nuswide, "test")


@pytest.mark.parametrize(
    "name, split",
    [
        ("unseen.txt", "train"),
        ("unseen.txt", "test"),
        ("train.csv", "train"),
        ("train.csv", "test"),
        ("test.csv", "test"),
    ],
)
def test_an_index_is_stale_when_a_list_of_labels_changes(own, name, split):
    prepare(own, "folder", unseen="unseen.txt")
    (own / name).write_text((own / name).read_text() + "\n")
    with pytest.raises(QKSError, match="is stale.*prepare .*, with the options of the first time"):
        open_split(own, split)


def test_voc_is_stale_when_the_list_of_unseen_classes_changes(voc):
    prepare(voc, "voc", unseen="unseen.txt")
    (voc / "unseen.txt").write_text("dog\n")
    for split in SPLITS:
        with pytest.raises(QKSError, match="is stale"):
            open_split(voc, split)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-100],
        lambda raw: raw[:200] + b"\x00" * 50 + raw[250:],
        lambda raw: b"PK\x03\x04 no archive",
        lambda raw: json.dumps({}).encode(),
    ],
)
def test_a_damaged_index_is_not_used(nuswide, damage):
    path = prepare(nuswide, "nuswide").files["test"]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(QKSError, match=r"damaged.*build it again from the raw files \(`qks data nuswide prepare"):
        open_split(nuswide, "test")


def test_splits_that_do_not_fit(own, nuswide):
    first = index_splits(own, "folder", unseen="unseen.txt")
    second = index_splits(nuswide, "nuswide")
    assert check_splits(first) is first and check_splits({"test": first["test"]})
    with pytest.raises(QKSError, match="2 labels to train on are not the 925 seen labels"):
        check_splits({"train": first["train"], "test": second["test"]})
    swapped = replace(first["train"], label_ids=first["train"].label_ids[::-1])
    with pytest.raises(QKSError, match="are not the 2 seen labels"):
        check_splits({"train": swapped, "test": first["test"]})


def test_a_matrix_that_is_too_large_is_the_indexs_own_error(nuswide, monkeypatch):
    index = open_split(nuswide, "test")
    with pytest.raises(QKSError, match="30 images x 1,006 labels .*in batches with labels"):
        index.dense(max_bytes=1000)


# --- folders that may not be written ---


@pytest.fixture
def read_only(nuswide):
    "A folder that this process may only read, beside a cache that it may write; a superuser becomes another user."
    paths = [nuswide, *nuswide.rglob("*")]
    above = {path: path.stat().st_mode for path in nuswide.parents if "pytest" in path.as_posix()}
    (nuswide.parent / "cache").mkdir()
    (nuswide.parent / "cache").chmod(0o777)
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path, mode in above.items():
        path.chmod(mode | 0o011)  # to be passed through
    if superuser := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield nuswide
    finally:
        if superuser:
            os.seteuid(0)
        for path, mode in above.items():
            path.chmod(mode)
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_read_only_folder_is_prepared_in_the_cache(read_only, tmp_path):
    prepared = prepare(read_only, "nuswide")
    assert files(read_only) == []
    assert set(prepared.files.values()) == set((tmp_path / "cache/indexes").glob("*/qks-index-*.npz"))
    assert (
        content(open_split(read_only, "test"))
        == content(prepared.splits["test"])
        == content(index_nuswide(read_only, "test"))
    )
    assert open_split(read_only, "test").path(0).is_relative_to(read_only)


def test_where_neither_place_can_be_written(read_only, monkeypatch):
    monkeypatch.setenv("QKS_CACHE", str(read_only / "cache"))
    with pytest.raises(
        QKSError, match="neither .* nor .* can be written .*set QKS_CACHE to a folder that you can write to"
    ):
        prepare(read_only, "nuswide")
    assert len(open_split(read_only, "test")) == 30  # NUS-WIDE needs no index


def test_a_full_disk_is_no_reason_to_write_elsewhere(nuswide, tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qks.core.files.os.fsync", full)
    with pytest.raises(QKSError, match="qks-index-train.npz cannot be written .No space left"):
        prepare(nuswide, "nuswide")
    assert not (tmp_path / "cache").exists() and files(nuswide) == []
    assert not [path.name for path in nuswide.iterdir() if path.name.startswith(".")]


def test_missing_images_are_left_out_where_asked_for(nuswide):
    "They are counted, the others are the split; images that are fetched later come back with the next prepare."
    train, test = (index_nuswide(nuswide, split) for split in SPLITS)
    for index, n_present in ((train, 5), (test, 3)):
        for number in range(n_present):
            index.path(number).parent.mkdir(parents=True, exist_ok=True)
            index.path(number).write_bytes(b"x" * (10 + number))
    prepared = prepare(nuswide, "nuswide", min_bytes=1)
    assert prepared.left_out == {
        "train": len(train) - 5,
        "test": len(test) - 3,
    }
    assert f"{len(test) - 3:,} images are missing or too small, and left out" in str(prepared)
    splits = open_splits(nuswide)
    assert splits["train"].images == train.images[:5]
    assert content(splits["test"]) == content(test.subset(range(3)))
    assert prepare(nuswide, "nuswide", min_bytes=12).left_out == {"train": len(train) - 3, "test": len(test) - 1}
    assert prepare(nuswide, "nuswide").left_out == {} and len(open_split(nuswide, "test")) == len(test)
    with pytest.raises(QKSError, match="none of the .* train images is in .*: fetch them first"):
        prepare(nuswide, "nuswide", min_bytes=100)
    with pytest.raises(QKSError, match="min_bytes is 0"):
        prepare(nuswide, "nuswide", min_bytes=0)
    assert len(open_split(nuswide, "test")) == len(test)  # nothing was changed


def test_the_index_written_last_counts(nuswide):
    place, other = index_paths(nuswide, "test")
    other.parent.mkdir(parents=True)
    index = index_nuswide(nuswide, "test")
    index.save(place), index.subset([0]).save(other)
    os.utime(place, (100, 100))
    assert len(open_split(nuswide, "test")) == 1
    os.utime(other, (50, 50))
    assert len(open_split(nuswide, "test")) == 30


def test_a_folder_is_the_same_by_any_of_its_names(nuswide, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(nuswide)
    monkeypatch.chdir(tmp_path)
    assert len({index_paths(root, "test")[1] for root in (nuswide, "nuswide", "./nuswide/", tmp_path / "link")}) == 1


def test_a_prepare_that_is_stopped_leaves_the_old_index(nuswide, monkeypatch):
    before = prepare(nuswide, "nuswide").files["train"].read_bytes()

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("qks.data.index.np.savez_compressed", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(nuswide, "nuswide")
    assert (nuswide / "qks-index-train.npz").read_bytes() == before
    assert not [path.name for path in nuswide.iterdir() if path.name.startswith(".")]


def test_a_list_named_with_dots_is_the_same_list(own, voc):
    "What prepare takes, the saved index knows again."
    prepare(own, "folder", train="./train.csv", test="test.csv", unseen="./unseen.txt")
    assert open_splits(own)["test"].label_ids[-1] == "dog"
    prepare(voc, "voc", unseen="./unseen.txt")
    assert open_splits(voc)["test"].label_ids[-1] == "cat"


def test_an_invalid_size_is_refused_before_anything_is_read(own, monkeypatch):
    monkeypatch.setattr("qks.data.splits.index_splits", lambda *args, **kwargs: pytest.fail("began to read"))
    with pytest.raises(QKSError, match="min_bytes is 0: give a whole number, 1 or more"):
        prepare(own, "folder", min_bytes=0)
