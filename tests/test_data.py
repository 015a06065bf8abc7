"""qks.data.nuswide against the authors' lists, and against every way in which a raw tree can be broken."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from qks.core import QKSError
from qks.data.check import missing_images
from qks.data.files import _parse_regular_rows, read_image_list, read_table
from qks.data.index import LabelledImages, holdout
from qks.data.nuswide import read_nuswide, write_lists

GOLDEN = Path(__file__).parent / "data/nuswide_tiny"
TAGS = "NUS_WID_Tags/Train_Tags1k.dat"
LABELS = "Groundtruth/TrainTestLabels"


@pytest.fixture
def raw(tmp_path):
    "A copy of the small raw tree, to be broken."
    return Path(shutil.copytree(GOLDEN / "raw", tmp_path / "raw"))


def edit(path, change):
    "Rewrite a file through a function of its lines."
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def test_lists_equal_the_authors(tmp_path):
    write_lists(GOLDEN / "raw", tmp_path / "lists")
    for expected in (GOLDEN / "expected").iterdir():
        assert (tmp_path / "lists" / expected.name).read_bytes() == expected.read_bytes(), expected.name


def test_splits():
    train = read_nuswide(GOLDEN / "raw", "train")
    test = read_nuswide(str(GOLDEN / "raw"), "test")
    assert train.labels.shape == (31, 925) and test.labels.shape == (30, 1006)
    assert train.n_seen == test.n_seen == 925 and train.label_names == test.label_names[:925]
    for data in (train, test):
        assert data.labels.dtype == np.int8 and set(np.unique(data.labels)) == {-1, 1}
        assert (data.labels == 1).any(axis=1).all()
        assert all("\\" not in image for image in data.images)
    assert test.path(0) == GOLDEN / "raw/Flickr/actor/0000_430416021.jpg"


def test_train_needs_no_ground_truth(raw):
    shutil.rmtree(raw / "Groundtruth")
    assert len(read_nuswide(raw, "train")) == 31
    with pytest.raises(QKSError, match="Labels_airport_Test.txt is missing"):
        read_nuswide(raw, "test")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [line.rstrip(b"\n") + b"\r\n" for line in lines],  # CRLF
        lambda lines: [line.rstrip() + b"\n" for line in lines],  # no tab at the end
        lambda lines: [line.replace(b"\t", b" ") for line in lines],  # blanks for tabs
        lambda lines: lines[:-1] + [lines[-1].rstrip(b"\n")],  # no final line end
        lambda lines: [line.rstrip() + b"\n" if i % 2 else line for i, line in enumerate(lines)],  # irregular
        lambda lines: lines + [b"\n"],  # a blank line at the end
    ],
)
def test_tables_in_other_dress(raw, change):
    expected = read_nuswide(raw, "train")
    edit(raw / TAGS, change)
    data = read_nuswide(raw, "train")
    assert data.images == expected.images and np.array_equal(data.labels, expected.labels)


def test_lists_in_other_places_and_dress(raw):
    expected = read_nuswide(raw, "test")
    (raw / "ConceptsList").mkdir()
    (raw / "Concepts81.txt").rename(raw / "ConceptsList/Concepts81.txt")
    (raw / "NUS_WID_Tags/TagList1k.txt").rename(raw / "TagList1k.txt")
    edit(
        raw / "ImageList/TestImagelist.txt",
        lambda lines: [line.replace(b"\\", b"/").replace(b"\n", b"\r\n") for line in lines],
    )
    data = read_nuswide(raw, "test")
    assert data.images == expected.images and data.label_names == expected.label_names
    assert np.array_equal(data.labels, expected.labels)


def test_regular_table_is_strict():
    rows, row, column = _parse_regular_rows(b"0\t1\n1\t1\n", 2)
    assert rows == 2 and list(zip(row.tolist(), column.tolist())) == [(0, 1), (1, 0), (1, 1)]
    for raw in (
        b"0\t1\n1\t2\n",
        b"01\n10\n",
        b"0\t1\n1\t1\t\n",
        b"0\t1\t1\n",
        b"",
        b"0\n1\n",
        b"0\t1\n101\n",
        b"0\t1x\n1\t1x\n",
    ):
        assert _parse_regular_rows(raw, 2) is None, raw


@pytest.mark.parametrize(
    "name, change, message",
    [
        (TAGS, lambda lines: lines[:-1], r"Train_Tags1k.dat has 39 rows but .*TrainImagelist.txt lists 40 images"),
        (
            "ImageList/TrainImagelist.txt",
            lambda lines: lines[1:],
            r"Train_Tags1k.dat has 40 rows but .*TrainImagelist.txt lists 39 images",
        ),
        (
            TAGS,
            lambda lines: lines[:4] + [b"2" + lines[4][1:]] + lines[5:],
            r"Train_Tags1k.dat line 5 holds '2': expected 0 or 1",
        ),
        (
            TAGS,
            lambda lines: lines[:6] + [lines[6][2:]] + lines[7:],
            r"Train_Tags1k.dat line 7 has 999 values: expected 1000",
        ),
        (TAGS, lambda lines: [], r"Train_Tags1k.dat is empty"),
        (TAGS, lambda lines: [b"\n"], r"Train_Tags1k.dat is empty"),
        ("ImageList/TrainImagelist.txt", lambda lines: [], r"TrainImagelist.txt is empty"),
        (
            "ImageList/TrainImagelist.txt",
            lambda lines: [b"a\\..\\..\\b.jpg\n"] + lines[1:],
            r"line 1: 'a/../../b.jpg' leaves the image folder",
        ),
        (
            "ImageList/TrainImagelist.txt",
            lambda lines: lines[:2] + [b"/etc/b.jpg\n"] + lines[3:],
            r"line 3: '/etc/b.jpg' leaves",
        ),
        ("ImageList/TrainImagelist.txt", lambda lines: [b"C:\\b.jpg\n"] + lines[1:], r"line 1: 'C:/b.jpg' leaves"),
        (
            "ImageList/TrainImagelist.txt",
            lambda lines: lines[:1] + [b"\n"] + lines[1:],
            r"TrainImagelist.txt line 2 is blank",
        ),
        (
            "ImageList/TrainImagelist.txt",
            lambda lines: [b"caf\xe9.jpg\n"] + lines[1:],
            r"TrainImagelist.txt line 1 is not UTF-8",
        ),
        (
            "NUS_WID_Tags/TagList1k.txt",
            lambda lines: lines[:-1] + [lines[0]],
            r"TagList1k.txt line 1000: 'nature' is already in line 1",
        ),
        (
            "NUS_WID_Tags/TagList1k.txt",
            lambda lines: lines[:-1],
            r"Train_Tags1k.dat line 1 has 1000 values: expected 999",
        ),
        ("NUS_WID_Tags/TagList1k.txt", lambda lines: [b"\xff\xfe"] + lines, r"TagList1k.txt line 1 is not UTF-8"),
        (
            "Concepts81.txt",
            lambda lines: lines + [lines[3]],
            r"Concepts81.txt line 82: 'bear' is already in line 4",
        ),
        ("Concepts81.txt", lambda lines: [], r"Concepts81.txt is empty"),
    ],
)
def test_broken_train_files(raw, name, change, message):
    edit(raw / name, change)
    with pytest.raises(QKSError, match=message):
        read_nuswide(raw, "train")


@pytest.mark.parametrize(
    "name, change, message",
    [
        (
            f"{LABELS}/Labels_bear_Test.txt",
            lambda lines: lines[:-1],
            r"Labels_bear_Test.txt has 29 rows but Labels_airport_Test.txt has 30",
        ),
        (
            f"{LABELS}/Labels_bear_Test.txt",
            lambda lines: lines[:2] + [b"-1\n"] + lines[3:],
            r"Labels_bear_Test.txt line 3 holds '-1'",
        ),
        (f"{LABELS}/Labels_bear_Test.txt", lambda lines: [], r"Labels_bear_Test.txt is empty"),
        (
            "Concepts81.txt",
            lambda lines: lines[:-1],
            r"Labels_zebra_Test.txt is for a concept that is not in Concepts81.txt",
        ),
        (
            "Concepts81.txt",
            lambda lines: lines + [b"yak\n"],
            r"Labels_yak_Test.txt is missing: expected it at .*Groundtruth",
        ),
    ],
)
def test_broken_ground_truth(raw, name, change, message):
    edit(raw / name, change)
    with pytest.raises(QKSError, match=message):
        read_nuswide(raw, "test")


@pytest.mark.parametrize("name", ["ImageList/TrainImagelist.txt", TAGS, "NUS_WID_Tags/TagList1k.txt", "Concepts81.txt"])
def test_missing_files(raw, name):
    (raw / name).unlink()
    with pytest.raises(QKSError) as error:
        read_nuswide(raw, "train")
    assert f"{Path(name).name} is missing: expected it at {raw / name}" in str(error.value)


def test_all_ground_truth_files_short(raw):
    for path in (raw / LABELS).glob("*_Test.txt"):
        edit(path, lambda lines: lines[:-2])
    with pytest.raises(QKSError, match="TrainTestLabels has 28 rows but .* lists 30 images"):
        read_nuswide(raw, "test")


def test_no_seen_label_left(raw):
    shutil.copyfile(raw / "NUS_WID_Tags/TagList1k.txt", raw / "Concepts81.txt")
    with pytest.raises(QKSError, match="no seen label is left"):
        read_nuswide(raw, "train")


def test_split_name():
    with pytest.raises(QKSError, match="'train' or 'test'"):
        read_nuswide(GOLDEN / "raw", "val")


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("NUS_WID_Tags/TagList1k.txt", b"nature\r\n", b"nature,wild\r\n"),
        ("NUS_WID_Tags/TagList1k.txt", b"nature\r\n", b"nature|wild\r\n"),
        ("NUS_WID_Tags/TagList1k.txt", b"nature\r\n", b'"nature"\r\n'),
        ("ImageList/TestImagelist.txt", b"beach\\", b"beach,sea\\"),
    ],
)
def test_names_that_lists_cannot_hold(raw, tmp_path, name, old, new):
    (raw / name).write_bytes((raw / name).read_bytes().replace(old, new, 1))
    with pytest.raises(QKSError, match="cannot quote"):
        write_lists(raw, tmp_path / "lists")
    assert not (tmp_path / "lists").exists()


def test_image_list_keeps_unicode(tmp_path):
    (tmp_path / "list.txt").write_text("é\\1.jpg\nb..c/2.jpg\n", encoding="utf-8")
    assert read_image_list(tmp_path / "list.txt") == ("é/1.jpg", "b..c/2.jpg")


def test_read_table_single_row(tmp_path):
    (tmp_path / "one.dat").write_bytes(b"1\t0\t1")
    assert read_table(tmp_path / "one.dat", 3).tolist() == [[1, 0, 1]]


def make(n=10):
    return LabelledImages(
        Path("x"), tuple(f"{i}.jpg" for i in range(n)), np.ones((n, 2), np.int8), ("a", "b"), n_seen=1
    )


def test_labelled_images_checks_its_shapes():
    with pytest.raises(QKSError, match=r"int8 \[1, 2\]"):
        LabelledImages(Path("x"), ("1.jpg",), np.ones((1, 3), np.int8), ("a", "b"), 1)
    with pytest.raises(QKSError, match="int8"):
        LabelledImages(Path("x"), ("1.jpg",), np.ones((1, 2)), ("a", "b"), 1)
    with pytest.raises(QKSError, match="n_seen"):
        LabelledImages(Path("x"), ("1.jpg",), np.ones((1, 2), np.int8), ("a", "b"), 3)
    assert make().subset([3, 1]).images == ("3.jpg", "1.jpg") and len(make().subset([])) == 0


def test_holdout():
    fit, validation = holdout(make(), 0.3, seed=1)
    assert len(validation) == 3 and sorted(fit.images + validation.images) == sorted(make().images)
    assert list(fit.images) == sorted(fit.images)
    assert holdout(make(), 0.3, seed=1)[1].images == validation.images != holdout(make(), 0.3, seed=2)[1].images
    for fraction in (0, 1, -1, 2, 0.01, float("nan")):
        with pytest.raises(QKSError, match="leaves one part empty"):
            holdout(make(), fraction, seed=0)


def test_missing_images(tmp_path):
    data = LabelledImages(tmp_path, ("a.jpg", "b.jpg", "c.jpg", "d"), np.ones((4, 1), np.int8), ("x",), 1)
    (tmp_path / "Flickr/d").mkdir(parents=True)
    (tmp_path / "Flickr/a.jpg").write_bytes(b"1234")
    (tmp_path / "Flickr/b.jpg").write_bytes(b"")
    assert missing_images(data) == ["b.jpg", "c.jpg", "d"]
    assert missing_images(data, min_bytes=5) == ["a.jpg", "b.jpg", "c.jpg", "d"]
