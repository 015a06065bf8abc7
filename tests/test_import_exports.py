"""`qks data import`: VOC, YOLO, CVAT, Label Studio, FiftyOne, LabelMe and mirrors of NUS-WIDE."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from importing import check_test_part, import_and_prepare, refused, run, write, write_pictures

from qks.data.splits import open_splits

TESTS = Path(__file__).parent

# --- PASCAL VOC ---


def voc(name, *objects, more=""):
    "An annotation; an object is a label, or a label and whether it is difficult."
    parts = []
    for item in objects:
        label, difficult = item if isinstance(item, tuple) else (item, 0)
        part = "<part><name>head</name></part>"
        parts.append(f"<object><name>{label}</name><difficult>{difficult}</difficult>{part}</object>")
    return f"<annotation><folder>VOC</folder><filename>{name}</filename>{more}{''.join(parts)}</annotation>"


@pytest.fixture
def voc2012(tmp_path):
    root = tmp_path / "VOCtrainval/VOCdevkit/VOC2012"
    for stem, objects in {
        "2007_1": ["dog", "dog"],
        "2007_2": [("cat", 1)],
        "2008_3": ["dog", ("cat", 1)],
        "2008_4": ["cat"],
        "2008_9": ["cat"],
    }.items():
        write(root, f"Annotations/{stem}.xml", voc(f"{stem}.jpg", *objects))
        write_pictures(root, f"JPEGImages/{stem}.jpg")
    write(root, "ImageSets/Main/train.txt", "2007_1\n2007_2\n2008_4\n")
    write(root, "ImageSets/Main/val.txt", "2008_3\n")
    write(root, "ImageSets/Main/trainval.txt", "2007_1\n2007_2\n2008_3\n2008_4\n")
    write(root, "ImageSets/Main/dog_val.txt", "2008_3  1\n")
    return tmp_path / "VOCtrainval"


def test_voc2012_with_val_as_test(voc2012, tmp_path, capsys):
    train, test = import_and_prepare(voc2012, tmp_path / "out")
    base = "VOCdevkit/VOC2012/JPEGImages"
    assert train == {
        f"{base}/{stem}.jpg": [label] for stem, label in (("2007_1", "dog"), ("2007_2", "cat"), ("2008_4", "cat"))
    }
    assert test == {f"{base}/2008_3.jpg": ["cat", "dog"]}
    said = capsys.readouterr().out
    assert "annotations that no list of ImageSets/Main names (1): VOCdevkit/VOC2012/Annotations/2008_9.xml" in said
    assert "2 labels of a picture have difficult objects only, and count as present" in said
    check_test_part(voc2012, tmp_path / "two", 4, "--splits", "ignore")


def test_difficult_objects_may_be_unknown(voc2012, tmp_path):
    words = ("--difficult", "unknown")
    import_and_prepare(voc2012, tmp_path / "out", *words, "--splits", "ignore", prepare=("--not-annotated", "blank"))
    index = open_splits(tmp_path / "out")["train"]
    labels = dict(zip((Path(image).stem for image in index.images), index.labels().tolist()))
    assert index.label_ids == ("dog", "cat")
    assert labels == {"2007_1": [1, -1], "2007_2": [-1, 0], "2008_3": [1, 0], "2008_4": [-1, 1]}


def test_labelimg_beside_the_pictures_of_any_class(tmp_path, capsys):
    root = tmp_path / "label me"
    path = "<path>C:\\Users\\me\\bilder\\Traktor 1.JPG</path>"
    write(root, "Traktor 1.xml", ("\ufeff" + voc("Traktor 1.JPG", "Grüner Traktor", "häck", more=path)).encode())
    write(root, "renamed.xml", voc("IMG_0001.jpg", "plough"))
    write(root, "empty.xml", voc("empty.png"))
    write(root, "blank.xml", voc("blank.png", " ", "plough"))
    write(root, "gone.xml", voc("gone.jpg", "plough"))
    write_pictures(root, "Traktor 1.jpg", "renamed.jpg", "empty.png", "blank.png", "none.jpg")
    train, _ = import_and_prepare(root, tmp_path / "out")
    assert train == {
        "Traktor 1.jpg": ["Grüner Traktor", "häck"],
        "renamed.jpg": ["plough"],
        "empty.png": [],
        "blank.png": ["plough"],
    }
    said = capsys.readouterr().out
    for part in (
        "1 picture is found by the name of their annotation file, such as IMG_0001.jpg as renamed.jpg",
        "objects without a name (1): blank.xml: object 1",
        "annotated pictures without a file (1): gone.jpg",
        "pictures without annotation (--unannotated negative takes them as showing none of the labels) (1): none.jpg",
        "1 annotation has no object",
    ):
        assert part in said
    train, _ = import_and_prepare(root, tmp_path / "two", "--unannotated", "negative")
    assert train["none.jpg"] == []


def test_roboflow_writes_voc_per_split(tmp_path):
    for split, label in (("train", "cat"), ("valid", "dog"), ("test", "cat"), ("train", "dog")):
        write(tmp_path / "export", f"{split}/{label}.xml", voc(f"{label}.jpg", label))
        write_pictures(tmp_path / "export", f"{split}/{label}.jpg")
    train, test = import_and_prepare(tmp_path / "export", tmp_path / "out")
    assert train == {"train/cat.jpg": ["cat"], "train/dog.jpg": ["dog"], "valid/dog.jpg": ["dog"]}
    assert test == {"test/cat.jpg": ["cat"]}


def test_an_annotation_that_may_be_about_two_pictures_is_refused(tmp_path, capsys):
    write(tmp_path / "set", "a.xml", voc("b.jpg", "cat"))
    write_pictures(tmp_path / "set", "a.jpg", "b.jpg")
    assert "a.xml is about 'b.jpg', and a.jpg" in refused(capsys, tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize("text", ["<annotation><object>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'])
def test_damaged_xml(tmp_path, capsys, text):
    write(tmp_path / "set", "1.xml", voc("1.jpg", "cat"))
    write(tmp_path / "set", "2.xml", text)
    write_pictures(tmp_path / "set", "1.jpg", "2.jpg")
    assert "2.xml" in refused(capsys, tmp_path / "set", tmp_path / "out")


# --- YOLO ---


@pytest.fixture
def yolo(tmp_path):
    root = tmp_path / "yard"
    write(
        root,
        "data.yaml",
        "path: D:\\data\\yard\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: no\n  2: owl\n",
    )
    write(root, "labels/train/1.txt", "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.1 0.1\n0 0.3 0.3 0.1 0.1\n")
    write(root, "labels/train/2.txt", "")
    write(root, "labels/val/1.txt", "1 0.1 0.1 0.5 0.1 0.5 0.5\r\n")
    write(root, "labels/val/9.txt", "1 0.1 0.1 0.5 0.1\n")
    write_pictures(root, "images/train/1.jpg", "images/train/2.PNG", "images/val/1.jpg", "images/val/3.jpg")
    return root


def test_yolo_with_data_yaml(yolo, tmp_path, capsys):
    "Class 1 is called no, which YAML would make a truth value."
    train, test = import_and_prepare(yolo, tmp_path / "out")
    assert train == {"images/train/1.jpg": ["cat", "no"], "images/train/2.PNG": []}
    assert test == {"images/val/1.jpg": ["no"]}
    said = capsys.readouterr().out
    for part in (
        "annotated pictures without a file (1): 9",
        "1 label file is empty, such as that of images/train/2.PNG",
        "takes them as showing none of the labels) (1): images/val/3.jpg",
        "labels that no picture shows (1): owl",
    ):
        assert part in said
    check_test_part(yolo, tmp_path / "two", 3, "--splits", "ignore")
    assert import_and_prepare(yolo / "data.yaml", tmp_path / "three") == (train, test)


def test_roboflow_writes_yolo_per_split(tmp_path):
    root = tmp_path / "export"
    write(
        root,
        "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n",
    )
    for split, stem, number in (("train", "1", 0), ("train", "2", 1), ("valid", "1", 1), ("test", "1", 0)):
        write(root, f"{split}/labels/{stem}.txt", f"{number} 0.5 0.5 0.1 0.1\n")
        write_pictures(root, f"{split}/images/{stem}.jpg")
    train, test = import_and_prepare(root, tmp_path / "out")
    assert train == {"train/images/1.jpg": ["cat"], "train/images/2.jpg": ["dog"], "valid/images/1.jpg": ["dog"]}
    assert test == {"test/images/1.jpg": ["cat"]}


def test_labelimg_and_label_studio_write_classes_txt(tmp_path):
    write(tmp_path / "a", "classes.txt", "cat\r\nhot dog\r\n")
    write(tmp_path / "a", "1.txt", "1 0.5 0.5 0.1 0.1\n")
    write_pictures(tmp_path / "a", "1.jpg")
    assert import_and_prepare(tmp_path / "a", tmp_path / "one")[0] == {"1.jpg": ["hot dog"]}
    write(tmp_path / "b", "classes.txt", "cat\nhot dog\n")
    write(tmp_path / "b", "notes.json", {"categories": [{"id": 0, "name": "cat"}], "info": {}})
    write(tmp_path / "b", "labels/1a2b3c4d-1.txt", "0 0.5 0.5 0.1 0.1\n")
    write_pictures(tmp_path / "b", "images/1a2b3c4d-1.jpg")
    assert import_and_prepare(tmp_path / "b", tmp_path / "two")[0] == {"images/1a2b3c4d-1.jpg": ["cat"]}


def test_yolo_lists_and_one_folder_for_train_and_val(tmp_path, capsys):
    root = tmp_path / "set"
    write(root, "data.yaml", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    write(root, "train.txt", "./images/1.jpg\n/somewhere/else/set/images/2.jpg\n")
    write(root, "val.txt", "./images/3.jpg\n")
    for number in (1, 2, 3):
        write(root, f"labels/{number}.txt", f"{number % 2} 0.5 0.5 0.1 0.1\n")
    write_pictures(root, *(f"images/{n}.jpg" for n in (1, 2, 3)))
    train, test = import_and_prepare(root, tmp_path / "out")
    assert (list(train), list(test)) == (["images/1.jpg", "images/2.jpg"], ["images/3.jpg"])
    write(root, "data.yaml", "train: images\nval: images\nnames: [cat, dog]\n")
    train, test = import_and_prepare(root, tmp_path / "two")
    assert len(train) == 3 and not test
    assert "val has the pictures of train" in capsys.readouterr().out


def test_cvat_writes_darknet_with_lists(tmp_path):
    "obj.names, and a list per subset whose paths begin with a folder of its own."
    root = tmp_path / "export"
    write(root, "obj.names", "cat\ndog\n")
    write(root, "obj.data", "classes = 2\ntrain = data/Train.txt\nnames = data/obj.names\nbackup = backup/\n")
    for subset, stem, number in (("Train", "1", 0), ("Train", "2", 1), ("Test", "1", 1)):
        write(root, f"obj_{subset}_data/{stem}.txt", f"{number} 0.5 0.5 0.1 0.1\n")
        write_pictures(root, f"obj_{subset}_data/{stem}.jpg")
    write(root, "Train.txt", "data/obj_Train_data/1.jpg\ndata/obj_Train_data/2.jpg\n")
    write(root, "Test.txt", "data/obj_Test_data/1.jpg\n")
    train, test = import_and_prepare(root, tmp_path / "out")
    assert train == {"obj_Train_data/1.jpg": ["cat"], "obj_Train_data/2.jpg": ["dog"]}
    assert test == {"obj_Test_data/1.jpg": ["dog"]}


def test_yolo_numbers_without_names(tmp_path, capsys):
    write(tmp_path / "set", "labels/1.txt", "1 0.5 0.5 0.1 0.1\n")
    write_pictures(tmp_path / "set", "images/1.jpg")
    assert "--classes FILE" in refused(capsys, tmp_path / "set", tmp_path / "out")
    names = write(tmp_path, "names.txt", "cat\ndog\n")
    assert import_and_prepare(tmp_path / "set", tmp_path / "out", "--classes", names)[0] == {"images/1.jpg": ["dog"]}
    names.write_text("cat\n")
    said = refused(capsys, tmp_path / "set", tmp_path / "two", "--classes", names)
    assert "1.txt line 1: class 1" in said


# --- CVAT ---

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><size>3</size><labels><label><name>cat</name></label><label><name>fog</name></label></labels></task></meta>
<image id="0" name="yard/1.jpg" subset="Train" width="9" height="9">
<tag label="night" source="manual"><attribute name="moon">true</attribute></tag>
<box label="cat" source="manual" occluded="0" xtl="1.0" ytl="1.0" xbr="5.0" ybr="5.0"></box>
<polygon label="cat" points="1,1;2,2;3,3"></polygon>
<mask label="rug" rle="1, 2"/></image>
<image id="1" name="yard\\2.JPG" subset="Train"><skeleton label="cat"><points label="ear"/></skeleton></image>
<image id="2" name="3.jpg" subset="Validation"></image>
<image id="3" name="gone.jpg" subset="Validation"><tag label="night"/></image></annotations>"""


def test_cvat_for_images(tmp_path, capsys):
    write(tmp_path / "task", "annotations.xml", CVAT)
    write_pictures(tmp_path / "task", "images/Train/yard/1.jpg", "images/Train/yard/2.jpg", "images/Validation/3.jpg")
    train, test = import_and_prepare(tmp_path / "task", tmp_path / "out")
    assert train == {"images/Train/yard/1.jpg": ["cat", "night", "rug"], "images/Train/yard/2.jpg": ["cat"]}
    assert test == {"images/Validation/3.jpg": []}
    said = capsys.readouterr().out
    for part in (
        "annotated pictures without a file (1): gone.jpg",
        "labels that no picture shows (1): fog",
        "1 listed picture has no tag and no shape, such as 3.jpg",
        "1 attributes are no labels",
    ):
        assert part in said
    check_test_part(tmp_path / "task", tmp_path / "two", 3, "--splits", "ignore")


VIDEO = """<annotations><version>1.1</version><meta><task><size>4</size><start_frame>0</start_frame></task></meta>
<track id="0" label="dog"><box frame="0" outside="0" keyframe="1"/><box frame="1" outside="0" keyframe="0"/>
<box frame="2" outside="1" keyframe="1"/></track>
<track id="1" label="cat"><polygon frame="1" outside="0"/></track></annotations>"""


def test_cvat_video_is_read_by_frame_or_refused(tmp_path, capsys):
    write(tmp_path / "clip", "annotations.xml", VIDEO)
    write_pictures(tmp_path / "clip", "1.jpg", "2.jpg")
    assert "tracks of a video" in refused(capsys, tmp_path / "clip", tmp_path / "out")
    write_pictures(tmp_path / "clip", *(f"images/frame_00000{n}.PNG" for n in range(4)))
    train, _ = import_and_prepare(tmp_path / "clip", tmp_path / "out")
    assert list(train.values()) == [["dog"], ["cat", "dog"], [], []]
    assert "read by frame, 4 in all" in capsys.readouterr().out


# --- Label Studio ---


def result(kind, *names):
    return {"from_name": "x", "to_name": "image", "type": kind, "value": {"rle": [1, 2], kind: list(names)}}


def task(number, image, *answers, **more):
    "A task; an answer is a list of results, or None where the annotator skipped it."
    annotations = [
        {"id": n, "completed_by": n, "was_cancelled": answer is None, "ground_truth": False, "result": answer or []}
        for n, answer in enumerate(answers)
    ]
    return {"id": number, "data": {"image": image}, "annotations": annotations, "predictions": [], **more}


TASKS = [
    task(
        1, "/data/upload/1/1a2b3c4d-K%C3%BCche.jpg", [result("choices", "cat", "indoors"), result("brushlabels", "rug")]
    ),
    task(2, "/data/local-files/?d=pets/2.jpg", [result("rectanglelabels", "cat")], [result("rectanglelabels", "dog")]),
    task(3, "s3://bucket/pets/3.jpg", [result("polygonlabels", "cat")], None),
    task(4, "/data/upload/1/00000000-4.jpg", None),
    task(5, "/data/upload/1/11111111-5.jpg", []),
    task(6, "/data/upload/1/22222222-6.jpg", predictions=[{"result": [result("choices", "cat")]}]),
    task(7, "/data/upload/1/33333333-gone.jpg", [result("choices", "cat")]),
]


@pytest.fixture
def pets(tmp_path):
    write_pictures(tmp_path / "pets", "Küche.jpg", "pets/2.jpg", "pets/3.jpg", "4.jpg", "5.jpg", "6.jpg")
    return tmp_path / "pets"


@pytest.mark.parametrize("rule, second", [("any", ["cat", "dog"]), ("majority", []), ("all", [])])
def test_label_studio_json(pets, tmp_path, capsys, rule, second):
    write(pets, "project-1.json", TASKS)
    train, _ = import_and_prepare(pets, tmp_path / "out", "--annotators", rule)
    assert train == {"Küche.jpg": ["cat", "indoors", "rug"], "pets/2.jpg": second, "pets/3.jpg": ["cat"], "5.jpg": []}
    said = capsys.readouterr().out
    for part in (
        "tasks that every annotator skipped (1): /data/upload/1/00000000-4.jpg",
        "takes them as showing none of the labels) (1): /data/upload/1/22222222-6.jpg",
        "annotated pictures without a file (1): /data/upload/1/33333333-gone.jpg",
        "1 pictures have several annotators, who differ on 1",
        "predictions of a model are no annotations, and not used (1 tasks)",
    ):
        assert part in said


def test_label_studio_draws_a_test_and_knows_the_truth(pets, tmp_path):
    second = TASKS[1] | {
        "annotations": [entry | {"ground_truth": n == 1} for n, entry in enumerate(TASKS[1]["annotations"])]
    }
    path = write(pets, "project-1.json", [TASKS[0], second, *TASKS[2:]])
    train, _ = import_and_prepare(path, tmp_path / "out")
    assert train["pets/2.jpg"] == ["dog"]
    check_test_part(pets, tmp_path / "two", 4)


ROWS = [
    ("/data/upload/1/1a2b3c4d-K%C3%BCche.jpg", 1, {"choices": ["cat", "indoors"]}, None, "anna"),
    ("/data/local-files/?d=pets/2.jpg", 2, "cat", [{"x": 1, "rectanglelabels": ["rug"]}], "anna"),
    ("/data/local-files/?d=pets/2.jpg", 2, "dog", None, "ben"),
    ("/data/upload/1/11111111-5.jpg", 5, None, None, "anna"),
]


@pytest.mark.parametrize("kind", ["json", "csv", "tsv"])
def test_label_studio_small_exports(pets, tmp_path, kind):
    rows = []
    for number, (image, ident, choice, box, annotator) in enumerate(ROWS):
        row = {"image": image, "id": ident, "kind": choice, "box": box, "annotator": annotator, "annotation_id": number}
        row = {key: value for key, value in row.items() if value is not None} | {"lead_time": 1.5}
        rows.append(row)
    if kind == "json":
        write(pets, "export.json", rows)
    else:
        stream = io.StringIO()
        columns = ["annotation_id", "annotator", "box", "id", "image", "kind", "lead_time"]
        table = csv.DictWriter(stream, columns, delimiter="," if kind == "csv" else "\t")
        table.writeheader()
        for row in rows:
            table.writerow({key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()})
        write(pets, f"export.{kind}", stream.getvalue())
    train, _ = import_and_prepare(pets, tmp_path / "out")
    assert train == {"Küche.jpg": ["cat", "indoors"], "pets/2.jpg": ["cat", "dog", "rug"], "5.jpg": []}


# --- FiftyOne, LabelMe ---


def test_fiftyone_labels_json(tmp_path, capsys):
    labels = {"a": 0, "b": [0, 1], "sub/c": {"label": 1, "confidence": 0.5}, "d": None, "e": [], "gone": 1}
    write(tmp_path / "set", "labels.json", {"classes": ["cat", "dog", "owl"], "labels": labels})
    write_pictures(tmp_path / "set", "data/a.jpg", "data/b.png", "data/sub/c.jpg", "data/d.jpg", "data/e.jpg")
    train, _ = import_and_prepare(tmp_path / "set", tmp_path / "out")
    assert train == {"data/a.jpg": ["cat"], "data/b.png": ["cat", "dog"], "data/sub/c.jpg": ["dog"], "data/e.jpg": []}
    said = capsys.readouterr().out
    assert "(1): gone" in said and "labels that no picture shows (1): owl" in said and "(1): d\n" in said
    check_test_part(tmp_path / "set", tmp_path / "two", 4)


def test_fiftyone_names_and_detections(tmp_path, capsys):
    write(tmp_path / "set", "labels.json", {"classes": None, "labels": {"a": "cat", "b": [{"label": "dog"}]}})
    write_pictures(tmp_path / "set", "data/a.jpg", "data/b.jpg")
    assert import_and_prepare(tmp_path / "set", tmp_path / "out")[0] == {"data/a.jpg": ["cat"], "data/b.jpg": ["dog"]}
    write(tmp_path / "set", "labels.json", {"classes": ["cat"], "labels": {"a": 3}})
    assert "class 3" in refused(capsys, tmp_path / "set", tmp_path / "two")


def test_fiftyone_samples_json(tmp_path, capsys):
    def sample(name, *labels, tags=()):
        truth = {"_cls": "Classifications", "classifications": [{"label": label} for label in labels]}
        guess = {"_cls": "Classification", "label": "dog"}
        return {"filepath": f"data/{name}", "tags": list(tags), "ground_truth": truth, "guess": guess}

    samples = [
        sample("1.jpg", "cat", "dog", tags=["train"]),
        sample("2.jpg", tags=["train"]),
        sample("3.jpg", "cat", tags=["test"]),
    ]
    write(tmp_path / "set", "samples.json", {"samples": samples})
    write(tmp_path / "set", "metadata.json", {"name": "x"})
    write_pictures(tmp_path / "set", "data/1.jpg", "data/2.jpg", "data/3.jpg")
    assert "ground_truth, guess" in refused(capsys, tmp_path / "set", tmp_path / "out")
    train, test = import_and_prepare(tmp_path / "set", tmp_path / "out", "--label-column", "ground_truth")
    assert (train, test) == ({"data/1.jpg": ["cat", "dog"], "data/2.jpg": []}, {"data/3.jpg": ["cat"]})


def test_labelme(tmp_path, capsys):
    def labelme(path, *labels, **flags):
        shapes = [
            {"label": label, "points": [[1, 2], [3, 4]], "shape_type": "polygon", "flags": {}} for label in labels
        ]
        return {"version": "5.4.1", "flags": flags, "shapes": shapes, "imagePath": path, "imageData": "aGVsbG8="}

    write(tmp_path / "set", "1.json", labelme("1.jpg", "cat", "cat", "", night=True, fog=False))
    write(tmp_path / "set", "json/2.json", json.dumps(labelme("..\\img\\2.JPG", "dog")).encode("utf-16"))
    write(tmp_path / "set", "json/3.json", labelme("../img/3.jpg"))
    write_pictures(tmp_path / "set", "1.jpg", "img/2.jpg", "img/3.jpg", "img/4.jpg")
    train, _ = import_and_prepare(tmp_path / "set", tmp_path / "out")
    assert train == {"1.jpg": ["cat", "night"], "img/2.jpg": ["dog"], "img/3.jpg": []}
    said = capsys.readouterr().out
    assert "shapes without a label (1): 1.json: shapes[2]" in said and "(1): img/4.jpg" in said
    check_test_part(tmp_path / "set", tmp_path / "two", 3)


# --- NUS-WIDE ---


def test_a_mirror_of_nuswide_with_flat_images(tmp_path, capsys):
    root = Path(shutil.copytree(TESTS / "data/nuswide_tiny/raw", tmp_path / "nus"))
    names = []
    for side in ("Train", "Test"):
        names += (root / f"ImageList/{side}Imagelist.txt").read_text().replace("\\", "/").split()
    write_pictures(root, *(f"images/{name.rpartition('/')[2]}" for name in names))
    assert run(root, tmp_path / "out") == 0
    assert "--unseen unseen.txt --protocol official" in capsys.readouterr().out
    words = ("--unseen", "unseen.txt", "--protocol", "official")
    train, test = import_and_prepare(root, tmp_path / "two", prepare=words)
    splits = open_splits(root)
    expected = splits["train"].labels(), splits["test"].labels()
    assert (len(train), len(test)) == (len(expected[0]), len(expected[1]))
    n_present = [sum(map(len, part.values())) for part in (train, test)]
    assert n_present[1] == (expected[1] == 1).sum() and n_present[0] == (expected[0] == 1).sum()


# --- what shows two formats ---


def test_two_formats_are_asked_about(tmp_path, capsys):
    root = tmp_path / "both"
    write(root, "1.xml", voc("1.jpg", "cat"))
    content = {"images": [{"id": 1, "file_name": "1.jpg"}], "categories": [{"id": 1, "name": "dog"}]}
    write(root, "coco.json", content | {"annotations": [{"image_id": 1, "category_id": 1}]})
    write_pictures(root, "1.jpg")
    assert "--format coco or voc" in refused(capsys, root, tmp_path / "out")
    assert import_and_prepare(root, tmp_path / "a", "--format", "voc")[0] == {"1.jpg": ["cat"]}
    assert import_and_prepare(root, tmp_path / "b", "--format", "coco")[0] == {"1.jpg": ["dog"]}


@pytest.mark.parametrize(
    "name, content",
    [
        ("labels.json", {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [None, 3], "categories": []}),
        ("labels.json", {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": [{"id": 1}]}),
        ("labels.json", {"images": [3], "annotations": [{"image_id": 1, "category_id": 1}], "categories": []}),
        ("tasks.json", [{"data": {"image": "1.jpg"}, "annotations": [{"result": [{"value": {"choices": 3}}]}]}]),
        ("tasks.json", [{"data": {"image": ["1.jpg", "2.jpg"]}, "annotations": []}]),
        ("labels.json", {"classes": 3, "labels": {"1": 0}}),
        ("labels.json", {"classes": ["cat"], "labels": {"1": True}}),
        ("1.json", {"shapes": [3], "imagePath": None}),
        ("metadata.jsonl", {"file_name": "1.jpg", "label": {"x": 1}}),
    ],
)
def test_what_no_tool_writes_ends_in_a_sentence(tmp_path, capsys, name, content):
    write(tmp_path / "set", name, content)
    write_pictures(tmp_path / "set", "1.jpg")
    refused(capsys, tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()
