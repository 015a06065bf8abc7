"""A check goes on after a mistake: every kind of damage, alone and together, is in the report."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qks.core import QKSError
from qks.data.check import (
    MAX_SHOWN,
    Report,
    _image_fault,
    check_images,
)
from qks.data.files import read_image_list
from qks.data.splits import check_dataset, prepare

GOLDEN = Path(__file__).parent / "data/nuswide_tiny"
LABELS = "Groundtruth/TrainTestLabels"


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 60, 3), np.uint8)).save(path, quality=95)
    assert path.stat().st_size > 5000


@pytest.fixture
def root(tmp_path):
    "The small tree, with a picture for every listed image."
    root = Path(shutil.copytree(GOLDEN / "raw", tmp_path / "raw"))
    picture(tmp_path / "one.jpg")
    for side in ("Train", "Test"):
        for image in read_image_list(root / f"ImageList/{side}Imagelist.txt"):
            (root / "Flickr" / image).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tmp_path / "one.jpg", root / "Flickr" / image)
    return root


def edit(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("decode", [False, True])
def test_a_whole_folder(root, decode):
    report = check_dataset(root, "nuswide", decode, workers=2)
    assert report.ok and report.problems == [] and str(report).endswith("No problem found.")
    for message in (
        "1,000 tags, 925 of them seen labels; 81 unseen labels",
        "40 images listed, tag table agrees, 81 of 81",
        "70 of 70 images are there",
    ):
        assert message in str(report)


def cut(root):
    edit(root / "Flickr/zebra/0001_398236329.jpg", lambda raw: raw[:4500])


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: (root / "Concepts81.txt").unlink(), "Concepts81.txt is missing"),
        (lambda root: (root / "NUS_WID_Tags/Train_Tags1k.dat").unlink(), "Train_Tags1k.dat is missing"),
        (lambda root: (root / "ImageList/TestImagelist.txt").unlink(), "TestImagelist.txt is missing"),
        (
            lambda root: edit(root / "NUS_WID_Tags/Train_Tags1k.dat", lambda raw: raw[:-2001]),
            "Train_Tags1k.dat has 39 rows, but the image list has 40",
        ),
        (
            lambda root: edit(root / "NUS_WID_Tags/Train_Tags1k.dat", lambda raw: raw[:9000] + b"x" + raw[9001:]),
            "Train_Tags1k.dat line 5",
        ),
        (
            lambda root: edit(root / f"{LABELS}/Labels_bear_Train.txt", lambda raw: raw + b"1\n"),
            "Labels_bear_Train.txt has 41 rows, but the image list has 40",
        ),
        (
            lambda root: (root / f"{LABELS}/Labels_bear_Test.txt").rename(root / f"{LABELS}/Labels_bears_Test.txt"),
            "Labels_bear_Test.txt is missing",
        ),
        (
            lambda root: shutil.copyfile(
                root / f"{LABELS}/Labels_bear_Test.txt", root / f"{LABELS}/Labels_yak_Test.txt"
            ),
            "Labels_yak_Test.txt is for a concept that is not in Concepts81.txt",
        ),
        (
            lambda root: edit(
                root / "ImageList/TestImagelist.txt", lambda raw: raw.replace(raw.split(b"\n")[3], raw.split(b"\n")[1])
            ),
            "is already in line 2",
        ),
        (
            lambda root: edit(
                root / "ImageList/TestImagelist.txt",
                lambda raw: (
                    (root / "ImageList/TrainImagelist.txt").read_bytes().split(b"\n")[0]
                    + b"\n"
                    + raw.split(b"\n", 1)[1]
                ),
            ),
            "1 images are in both image lists",
        ),
        (
            lambda root: (root / "Flickr/zebra/0001_398236329.jpg").unlink(),
            "1 of 70 images in .* are absent, the first: zebra/0001_398236329.jpg",
        ),
        (
            lambda root: (root / "Flickr/zebra/0001_398236329.jpg").write_bytes(b"x" * 4000),
            "1 of 70 images in .* are smaller than 4,001 bytes",
        ),
        (cut, "1 of 70 images in .* are no images that can be decoded"),
    ],
)
def test_each_kind_of_damage(root, damage, message):
    damage(root)
    report = check_dataset(root, "nuswide", decode=True, workers=2)
    assert not report.ok
    with pytest.raises(QKSError, match=message):
        raise QKSError("\n".join(report.problems))


def test_all_damage_is_collected(root):
    (root / "NUS_WID_Tags/Train_Tags1k.dat").unlink()
    edit(root / "NUS_WID_Tags/Test_Tags1k.dat", lambda raw: raw[:-2001])
    for path in (root / LABELS).glob("Labels_s*_Train.txt"):
        path.unlink()
    shutil.rmtree(root / "Flickr/zebra")
    report = check_dataset(root, "nuswide")
    lost = len(list((GOLDEN / "raw" / LABELS).glob("Labels_s*_Train.txt")))
    assert len(report.problems) == 3 + lost > MAX_SHOWN
    assert f"{lost + 3} problems:" in str(report) and f"… and {lost + 3 - MAX_SHOWN} more" in str(report)
    assert len(str(report).split("\n")) < 30


def test_a_folder_that_is_not_there(tmp_path):
    assert len(check_dataset(tmp_path / "nowhere", "nuswide").problems) == 5
    assert len(check_dataset(tmp_path / "nowhere", "openimages").problems) == 3


def test__image_faults(tmp_path):
    picture(tmp_path / "a.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "text.jpg").write_bytes(b"no image" * 1000)
    assert _image_fault(tmp_path / "a.jpg", 4001, True) is None
    assert _image_fault(tmp_path / "folder.jpg", 1, True) == "absent"
    assert _image_fault(tmp_path / "text.jpg", 4001, False) is None
    assert _image_fault(tmp_path / "text.jpg", 4001, True) == "unreadable"
    assert _image_fault(tmp_path / ("x" * 300 + ".jpg"), 1, True) == "absent"
    with pytest.raises(QKSError, match="workers is 0"):
        check_images(Report("x"), tmp_path, ["a.jpg"], workers=0)


def test_more_images_than_a_batch(tmp_path):
    picture(tmp_path / "a.jpg")
    report = Report("x")
    check_images(report, tmp_path, ["a.jpg"] * 1500 + ["b.jpg", "c.jpg"], workers=2)
    assert "1,500 of 1,502 images are there" in str(report)
    assert "2 of 1,502 images" in report.problems[0]
    assert "b.jpg, c.jpg" in report.problems[0]


def test_openimages(tmp_path):
    image = "{:016x}".format
    (tmp_path / "class-descriptions.csv").write_text("/m/01,Jaguar\n/m/02,Jaguar\n/m/03,Jaguar\n")
    (tmp_path / "classes-trainable.txt").write_text("/m/01\n/m/02\n")
    (tmp_path / "unseen_400.txt").write_text("/m/03\n")
    for split, rows in {
        "train": [(1, "/m/01", 1), (2, "/m/02", 0)],
        "test": [(3, "/m/03", 1), (3, "/m/01", 1), (3, "/m/01", 0)],
    }.items():
        (tmp_path / split).mkdir()
        lines = ["ImageID,Source,LabelName,Confidence", *(f"{image(i)},v,{mid},{value}" for i, mid, value in rows)]
        (tmp_path / split / f"{split}-annotations-human-imagelabels.csv").write_text("\n".join(lines))
        for i, _, _ in rows:
            picture(tmp_path / split / f"{image(i)}.jpg")
    report = check_dataset(tmp_path, "openimages", decode=True, workers=2)
    assert report.ok and len(report.notes) == 1 and f"lines 3 and 4: image {image(3)}, label /m/01" in report.notes[0]
    for message in (
        "2 seen and 1 unseen of 3 classes; 1 seen names repeat, 1 unseen",
        "2 images, 1 labels present, 1 absent",
        "2 of 2 images are there and decode",
    ):
        assert message in str(report)
    (tmp_path / "train" / f"{image(1)}.jpg").unlink()
    (tmp_path / "unseen_400.txt").write_text("/m/02\n")
    report = check_dataset(tmp_path, "openimages")
    assert not report.ok and "/m/02 is also in classes-trainable.txt" in report.problems[0]


def test_a_split_without_an_image_is_a_problem(tmp_path):
    (tmp_path / "train.csv").write_text("image,labels\na.jpg,dog\n")
    (tmp_path / "test.csv").write_text("image,labels\nb.jpg,cat\n")
    for name, label in (("seen.txt", "cat"), ("unseen.txt", "dog")):
        (tmp_path / name).write_text(label + "\n")
    picture(tmp_path / "a.jpg"), picture(tmp_path / "b.jpg")
    prepare(tmp_path, "folder", seen="seen.txt", unseen="unseen.txt")
    report = check_dataset(tmp_path, "folder")
    assert not report.ok and "the train split has no image" in str(report)
