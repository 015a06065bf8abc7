"""MS-COCO, PASCAL VOC and a user's own folder: small files in the official formats, and every way to break them."""

import json

import numpy as np
import pytest

from qks.core import QKSError
from qks.data.coco import COCO_SEEN_48, COCO_UNSEEN_15, COCO_UNSEEN_17, index_coco
from qks.data.folder import index_folder
from qks.data.index import Index
from qks.data.voc import VOC_CLASSES, index_voc

COCO_REST = (
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "sports ball",
    "baseball bat",
    "baseball glove",
    "tennis racket",
    "wine glass",
    "hot dog",
    "potted plant",
    "dining table",
    "cell phone",
    "teddy bear",
    "hair drier",
)
CLASSES = [*COCO_SEEN_48, *COCO_UNSEEN_17, *COCO_REST]


def coco(
    images=((3, "c.jpg"), (1, "a.jpg"), (2, "b.jpg")),
    objects=((1, "person"), (1, "person"), (1, "cat"), (2, "person"), (2, "hot dog")),
    classes=CLASSES,
):
    ids = {name: 10 + number for number, name in enumerate(classes)}
    return dict(
        info={},
        images=[dict(id=i, file_name=name, width=9) for i, name in images],
        categories=[dict(id=i, name=name, supercategory="x") for name, i in ids.items()],
        annotations=[
            dict(id=n, image_id=i, category_id=ids.get(name, name), segmentation=[[0.5] * 6], iscrowd=n % 2)
            for n, (i, name) in enumerate(objects)
        ],
    )


def write_coco(root, content, name="val2017"):
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{name}.json").write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )
    return root


def write_images(folder, *names):
    "Files that are there; nobody decodes them."
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"an image")


def test_coco_divisions():
    assert len(set(COCO_SEEN_48)) == 48 and len(set(COCO_UNSEEN_17)) == 17 and len(set(COCO_UNSEEN_15)) == 15
    assert not set(COCO_SEEN_48) & set(COCO_UNSEEN_17)
    assert len(set(CLASSES)) == 80
    assert set(COCO_UNSEEN_15) < set(CLASSES)


def test_coco_without_a_division(tmp_path):
    index = index_coco(write_coco(tmp_path, coco()), "val2017")
    assert index.images == ("c.jpg", "a.jpg", "b.jpg")
    assert index.label_ids == tuple(CLASSES)
    assert index.n_seen == 80
    assert index.absent == -1
    assert [[CLASSES[c] for c in np.flatnonzero(row == 1)] for row in index.labels()] == [
        [],
        ["person", "cat"],
        ["person", "hot dog"],
    ]
    assert set(np.unique(index.labels())) == {-1, 1} and index.path(1) == tmp_path / "val2017/a.jpg"
    again = Index.load(index.save(tmp_path / "coco.npz"))
    assert np.array_equal(again.labels(), index.labels()) and again.dense().label_names == index.label_names


@pytest.mark.parametrize(
    "division, split, images, S, C",
    [
        ("48/17", "train", ("b.jpg",), 48, 48),
        ("48/17", "test", ("a.jpg",), 48, 65),
        ("65/15", "train", (), 65, 65),
        ("65/15", "test", ("a.jpg", "b.jpg"), 65, 80),
    ],
)
def test_coco_zero_shot(tmp_path, division, split, images, S, C):
    index = index_coco(write_coco(tmp_path, coco()), "val2017", division, split)
    assert index.images == images and index.n_seen == S and index.labels().shape == (len(images), C)
    unseen = COCO_UNSEEN_17 if division == "48/17" else COCO_UNSEEN_15
    assert split == "train" or index.label_names[S:] == unseen
    assert not set(index.label_names[:S]) & set(unseen)


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"images": [\n{"id": 1,', "line 2 is not JSON"),
        (b"", "line 1 is not JSON"),
        (b"\xff\xfe{}", "not UTF-8 text in line 1"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"images": ' + b"9" * 6000 + b"}", "is not JSON"),
        (b"[]", "there is no list 'images'"),
        (b'{"images": {}}', "there is no list 'images'"),
        (b'{"images": [], "images": [], "categories": [], "annotations": []}', "a key that appears twice"),
        (coco(images=((1, "a.jpg"), (1, "b.jpg"))), r"images\[1\]: '1' is already at 0"),
        (coco(images=((1, "a.jpg"), (2, "./a.jpg"))), r"images\[1\]: 'a.jpg' is already at 0"),
        (coco(images=((1, "../a.jpg"),)), r"images\[0\]: '../a.jpg' leaves"),
        (coco(images=((1, "/a.jpg"),)), "leaves"),
        (coco(images=((1, "C:\\a.jpg"),)), "leaves"),
        (coco(images=((1, "a\0.jpg"),)), r"images\[0\] is called"),
        (coco(images=((1, "a\ud800.jpg"),)), r"images\[0\] is called"),
        (coco(images=((1, 5),)), r"images\[0\] has no 'file_name' of type str"),
        (coco(images=((1.5, "a.jpg"),)), r"images\[0\] has no 'id' of type int"),
        (coco(images=((True, "a.jpg"),)), r"has no 'id' of type int"),
        (coco(objects=((9, "person"),)), r"annotations\[0\] is about image 9"),
        (coco(objects=((1, 999),)), r"annotations\[0\] is about image 1 and category 999"),
        (coco(objects=((1, None),)), r"annotations\[0\] has no 'category_id'"),
        (coco(classes=[*CLASSES, " cat"]), r"categories\[80\]: 'cat' is already at"),
        (coco(classes=[*CLASSES, ""]), r"categories\[80\] has the name ''"),
    ],
)
def test_coco_files_that_are_refused(tmp_path, content, message):
    with pytest.raises(QKSError, match="instances_val2017.json.*" + message):
        index_coco(write_coco(tmp_path, content), "val2017")


def test_coco_arguments(tmp_path):
    write_coco(tmp_path, coco(classes=CLASSES[:-1]))
    with pytest.raises(QKSError, match="no category 'hair drier'"):
        index_coco(tmp_path, "val2017", "65/15")
    with pytest.raises(QKSError, match="division is '50/30'"):
        index_coco(tmp_path, "val2017", "50/30")
    with pytest.raises(QKSError, match="split is 'val'"):
        index_coco(tmp_path, "val2017", "48/17", "val")
    with pytest.raises(QKSError, match="instances_train2017.json is missing"):
        index_coco(tmp_path, "train2017")
    with pytest.raises(QKSError, match="leaves"):
        index_coco(tmp_path, "../val2017")


def annotation(*objects, name="x"):
    parts = "".join(
        f"<object>\n<name>{label}</name><pose>Left</pose><difficult>{hard}</difficult>"
        "<part><name>head</name></part></object>\n"
        for label, hard in objects
    )
    return f"<annotation>\n<filename>{name}.jpg</filename>\n{parts}</annotation>\n"


def write_voc(root, base="", **files):
    for place in ("ImageSets/Main", "Annotations"):
        (root / base / place).mkdir(parents=True, exist_ok=True)
    (root / base / "ImageSets/Main/test.txt").write_text("".join(f"{name[1:]}\n" for name in files))
    for name, text in files.items():
        (root / base / f"Annotations/{name[1:]}.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


@pytest.mark.parametrize("base", ["", "VOC2007", "VOCdevkit/VOC2007"])
def test_voc(tmp_path, base):
    write_voc(
        tmp_path,
        base,
        _000002=annotation(("dog", 1), ("dog", 0), ("person", 1)),
        _000001=annotation(),
        _000003=annotation(("cat", 0), ("cat", 0)),
    )
    index = index_voc(tmp_path, "test", unseen=["person", "cat"])
    assert index.images == ("000002.jpg", "000001.jpg", "000003.jpg")
    assert index.path(0) == tmp_path / base / "JPEGImages/000002.jpg"
    assert index.n_seen == 18
    assert index.label_names[18:] == ("cat", "person")
    assert set(index.label_names) == set(VOC_CLASSES)
    labels = {name: index.labels()[:, column].tolist() for column, name in enumerate(index.label_names)}
    assert labels.pop("dog") == [1, -1, -1] and labels.pop("person") == [0, -1, -1] and labels.pop("cat") == [-1, -1, 1]
    assert all(column == [-1] * 3 for column in labels.values()) and len(labels) == 17
    for rule in (1, -1):
        assert index_voc(tmp_path, "test", ["person", "cat"], difficult=rule).labels()[0, 19] == rule
    assert len(Index.load(index.save(tmp_path / "voc.npz")).sources) == 4


@pytest.mark.parametrize(
    "text, message",
    [
        (annotation(("dog", 0))[:-40], "is not XML"),
        ("", "is not XML"),
        (b"\xff\xfe\x00", "is not XML"),
        (annotation(("wolf", 0)), "object 1 is 'wolf'"),
        (annotation(("dog", "yes")), "with difficult 'yes'"),
        (annotation(("", 0)), "object 1 is ''"),
        ("<html></html>", "begins with <html>"),
        (
            '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY x "y">]>\n' + annotation(("dog", 0)),
            "declares a document type",
        ),
        (
            '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE annotation><annotation/>'.encode("utf-16"),
            "declares a document type",
        ),
        ('<?xml version="1.0" encoding="klingon"?>' + annotation(), "is not XML"),
        ('<?xml version="1.0" encoding="shift-jis"?>' + annotation(), "is not XML"),
        (annotation() + " " * 1_000_000, "has more than 1,000,000 bytes"),
        ('<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>', "declares a document type"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///x">]><annotation>&x;</annotation>', "declares a document type"),
        ("<!DOCTYPE a SYSTEM 'http://localhost/a.dtd'><annotation/>", "declares a document type"),
        ("<annotation>" + "<a>" * 100_000, "is not XML"),
        (
            annotation(("dog", 0)).replace("<name>dog</name>", "<name>dog</name><name>cat</name>"),
            "object 1 is 'dogcat'",
        ),
        (annotation(("dog", 0)).replace("dog", "&x;"), "is not XML"),
    ],
)
def test_voc_annotations_that_are_refused(tmp_path, text, message):
    with pytest.raises(QKSError, match="000001.xml.*" + message):
        index_voc(write_voc(tmp_path, _000001=text), "test")


def test_voc_arguments(tmp_path):
    write_voc(tmp_path, _000001=annotation())
    with pytest.raises(QKSError, match="split is 'all'"):
        index_voc(tmp_path, "all")
    with pytest.raises(QKSError, match="'wolf' is no class"):
        index_voc(tmp_path, "test", ["wolf"])
    with pytest.raises(QKSError, match="difficult is 2"):
        index_voc(tmp_path, "test", difficult=2)
    with pytest.raises(QKSError, match="trainval.txt is missing"):
        index_voc(tmp_path, "trainval")
    (tmp_path / "ImageSets/Main/test.txt").write_text("000001\n../../secret\n")
    with pytest.raises(QKSError, match="test.txt line 2: '../../secret' is no image id"):
        index_voc(tmp_path, "test")
    (tmp_path / "ImageSets/Main/test.txt").write_text("000001\n000009\n")
    with pytest.raises(QKSError, match="test.txt line 2: .*000009.xml is missing"):
        index_voc(tmp_path, "test")


def own(root, *lines, end="\n"):
    (root / "labels.csv").write_bytes("".join(line + end for line in lines).encode())
    return root


@pytest.mark.parametrize("end", ["\n", "\r\n", " \t\r\n"])
def test_a_folder_of_ones_own(tmp_path, end):
    own(
        tmp_path,
        "\ufeffimage,labels",
        "b/1.jpg,sea|sand",
        '"a, b.jpg", sea | dog ',
        "c\\2.jpg,",
        '3.jpg,"café, terrace"',
        end=end,
    )
    index = index_folder(tmp_path, unseen=["dog"])
    assert index.images == ("b/1.jpg", "a, b.jpg", "c/2.jpg", "3.jpg") and index.path(0) == tmp_path / "b/1.jpg"
    assert index.label_names == ("sea", "sand", "café, terrace", "dog") and index.n_seen == 3
    assert index.labels().tolist() == [[1, 1, -1, -1], [1, -1, -1, 1], [-1] * 4, [-1, -1, 1, -1]]
    other = index_folder(
        tmp_path, seen=["café, terrace", "sea", "sand", "rain"], unseen=["dog"], image_folder="pictures"
    )
    assert other.labels()[0].tolist() == [-1, 1, 1, -1, -1] and other.path(0) == tmp_path / "pictures/b/1.jpg"
    assert np.array_equal(Index.load(index.save(tmp_path / "own.npz")).labels(), index.labels())


@pytest.mark.parametrize(
    "lines, message",
    [
        (["thing,labels"], "line 1 is 'thing,labels': expected a header such as image,labels"),
        (["image,image,labels"], "line 1 has the columns 'image' and 'image'"),
        (["image,labels"], "has no row below its header"),
        (["image,labels", "1.jpg,a,b"], "line 2 has 3 values: expected 2"),
        (["image,labels", "1.jpg"], "line 2 has 1 values"),
        (["image,labels", "1.jpg,a", "2.jpg,a||b"], "line 3: label '' is empty"),
        (["image,labels", "../1.jpg,a"], "line 2: '../1.jpg' leaves"),
        (["image,labels", ",a"], "line 2 names no image"),
        (
            ["image,labels", "1.jpg,a;b", "2.jpg,a"],
            "line 2: 'a;b' may be one label or several with ';' between them: pass --label-separator ';'",
        ),
        (["image,labels", '"1.jpg,a', '2.jpg",b'], "line 2 opens a quote that another line closes"),
        (["image,labels", "1.jpg," + "x" * 200_000], "line 2 is no row of cells with ',' between them"),
        (["image,labels", "1.jpg," + "x" * 2_000], r"line 2: label 'x{40,80}… \(2,000 characters\)' is too long"),
    ],
)
def test_tables_that_are_refused(tmp_path, lines, message):
    with pytest.raises(QKSError, match="labels.csv " + message.replace("|", r"\|")):
        index_folder(own(tmp_path, *lines))


@pytest.mark.parametrize(
    "lines",
    [
        ["Image,Labels", "1.jpg,a|b", "2.jpg,"],
        ["labels,note,image", "a|b,nice,1.jpg", ",,2.jpg"],
        ["image;labels", "1.jpg;a|b", "2.jpg;"],
        ["image,labels", "1.jpg,a|b", "2.jpg,", ",", ","],
        ['"image","labels","a,b"', '"1.jpg","a|b",x', '"2.jpg","",'],
        ['"image","labels"', '"1.jpg","a|b"', '"2.jpg",""'],
        ["\ufeffimage,labels", "1.jpg,a | b", " 2.jpg , "],
        ["image,labels", "", "1.jpg,a|b|a", "", "./2.jpg,", "2.jpg,"],
    ],
    ids=str,
)
def test_tables_as_spreadsheets_save_them(tmp_path, lines):
    index = index_folder(own(tmp_path, *lines))
    assert index.images == ("1.jpg", "2.jpg")
    assert index.label_names == ("a", "b")
    assert index.labels().tolist() == [[1, 1], [-1, -1]]


def test_a_label_may_hold_a_comma(tmp_path):
    index = index_folder(own(tmp_path, "image,labels", '1.jpg,"salt, pepper"', "2.jpg,sea", "3.jpg,b;c", "4.jpg,sea"))
    assert index.label_names == ("salt, pepper", "sea", "b;c")


def test_folder_arguments(tmp_path):
    own(tmp_path, "image,labels", "1.jpg,a|b")
    with pytest.raises(QKSError, match="line 2: label 'b' is neither in seen nor in unseen"):
        index_folder(tmp_path, seen=["a"])
    with pytest.raises(QKSError, match="label 'a' is in seen and in unseen"):
        index_folder(tmp_path, seen=["a", "b"], unseen=["a"])
    with pytest.raises(QKSError, match="must be a list of strings"):
        index_folder(tmp_path, unseen="a")
    with pytest.raises(QKSError, match="labels.csv is missing: expected it at"):
        index_folder(tmp_path, "../labels.csv")
    with pytest.raises(QKSError, match="leaves"):
        index_folder(tmp_path, image_folder="/tmp")
