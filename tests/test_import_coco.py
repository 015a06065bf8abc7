"""`qks data import`: COCO's JSON of any names, as Roboflow, CVAT and others write it."""

import json

import pytest
from importing import check_test_part, import_and_prepare, refused, write, write_pictures


def coco(files, categories, objects, **more):
    "A COCO file; pictures have their position as id, objects are pairs of picture and category."
    return {
        "images": [{"id": n, "file_name": name, "width": 24, "height": 16} for n, name in enumerate(files)],
        "categories": [{"id": n, "name": name, "supercategory": "x"} for n, name in enumerate(categories)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": [0, 0, 9, 9], "segmentation": [[0, 0, 9, 9]]}
            for n, (image, category) in enumerate(objects)
        ],
        **more,
    }


def test_roboflow(tmp_path, capsys):
    "A file per split beside its pictures; category 0 repeats the name of the set and has no object."
    categories = [
        {"id": 0, "name": "cow", "supercategory": "none"},
        {"id": 1, "name": "cow", "supercategory": "cow"},
        {"id": 2, "name": "hen", "supercategory": "cow"},
    ]
    for split in ("train", "valid", "test"):
        content = coco([f"{split}_1_jpg.rf.abc.jpg", "2.jpg", "3.jpg"], [], [(0, 1), (0, 2), (1, 2), (1, 2)])
        write(tmp_path / "farm", f"{split}/_annotations.coco.json", content | {"categories": categories})
        write_pictures(
            tmp_path / "farm", *(f"{split}/{name}" for name in (f"{split}_1_jpg.rf.abc.jpg", "2.jpg", "3.jpg"))
        )
    train, test = import_and_prepare(tmp_path / "farm", tmp_path / "out")
    assert train["train/train_1_jpg.rf.abc.jpg"] == ["cow", "hen"] and train["train/3.jpg"] == []
    assert len(train) == 6 and test["test/2.jpg"] == ["hen"] and len(test) == 3
    said = capsys.readouterr().out
    assert "not more than one is used" in said and "1 listed picture has no annotation" in said
    check_test_part(tmp_path / "farm", tmp_path / "two", 9, "--splits", "ignore")


def test_official_folders_and_val_as_test(tmp_path, capsys):
    for split in ("train2017", "val2017"):
        write(
            tmp_path / "coco",
            f"annotations/instances_{split}.json",
            coco(["1.jpg"], ["cat", "dog"], [(0, int(split[0] == "t"))]),
        )
        captions = {"images": [{"id": 0, "file_name": "1.jpg"}], "annotations": [{"image_id": 0, "caption": "a cat"}]}
        write(tmp_path / "coco", f"annotations/captions_{split}.json", captions)
        write_pictures(tmp_path / "coco", f"{split}/1.jpg")
    train, test = import_and_prepare(tmp_path / "coco", tmp_path / "out", prepare=("--unseen", "unseen.txt"))
    assert (train, test) == ({"train2017/1.jpg": ["dog"]}, {"val2017/1.jpg": ["cat"]})
    said = capsys.readouterr().out
    assert "not read: annotations/captions_train2017.json" in said
    assert "1 label is shown by test pictures only, such as 'cat'" in said and "--unseen unseen.txt" in said
    train, _ = import_and_prepare(tmp_path / "coco/annotations/instances_val2017.json", tmp_path / "one")
    assert train == {"val2017/1.jpg": ["cat"]}


def test_cvat_writes_a_subset_called_default(tmp_path):
    content = coco(["a/1.jpg", "b/1.jpg"], ["cat", "dog"], [(0, 0), (1, 1)], licenses=[], info={})
    write(tmp_path / "task", "annotations/instances_default.json", content)
    write_pictures(tmp_path / "task", "images/default/a/1.jpg", "images/default/b/1.jpg")
    train, _ = import_and_prepare(tmp_path / "task", tmp_path / "out")
    assert train == {"images/default/a/1.jpg": ["cat"], "images/default/b/1.jpg": ["dog"]}


def test_ids_of_text_folders_backslashes_and_case(tmp_path):
    content = {
        "images": [{"id": "x1", "file_name": "Barn\\1.JPG"}, {"id": 7, "file_name": "/data/set/barn/2.jpg"}],
        "categories": [{"id": "c", "name": "cow"}, {"id": "9", "name": "hen"}],
        "annotations": [{"image_id": "x1", "category_id": "c"}, {"image_id": "7", "category_id": 9}],
    }
    write(tmp_path / "farm", "labels.json", json.dumps(content).encode("utf-16"))
    write_pictures(tmp_path / "farm", "barn/1.jpg", "barn/2.jpg")
    train, _ = import_and_prepare(tmp_path / "farm", tmp_path / "out")
    assert train == {"barn/1.jpg": ["cow"], "barn/2.jpg": ["hen"]}


MICE = [
    {"id": 1, "name": "mouse", "supercategory": "animal"},
    {"id": 2, "name": "mouse", "supercategory": "device"},
]


@pytest.mark.parametrize(
    "choice, labels", [("merge", [["mouse"]] * 2), ("apart", [["mouse (animal)"], ["mouse (device)"]])]
)
def test_two_categories_of_one_name(tmp_path, capsys, choice, labels):
    content = coco(["1.jpg", "2.jpg"], [], [(0, 1), (1, 2)]) | {"categories": MICE}
    write(tmp_path / "mice", "labels.json", content)
    write_pictures(tmp_path / "mice", "1.jpg", "2.jpg")
    assert "--same-name merge, or two with --same-name apart" in refused(capsys, tmp_path / "mice", tmp_path / "out")
    train, _ = import_and_prepare(tmp_path / "mice", tmp_path / "out", "--same-name", choice)
    assert list(train.values()) == labels


def test_captions_only_are_refused(tmp_path, capsys):
    content = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}],
    }
    write(tmp_path / "set", "captions_val2017.json", content)
    write_pictures(tmp_path / "set", "1.jpg")
    assert "captions" in refused(capsys, tmp_path / "set", tmp_path / "out")


def test_what_does_not_fit_is_named(tmp_path, capsys):
    content = coco(["1.jpg", "2.jpg", "gone.jpg"], ["cat", "dog"], [(0, 0), (1, 0), (9, 0), (1, 7), (2, 1)])
    write(tmp_path / "set", "labels.json", content)
    write_pictures(tmp_path / "set", "1.jpg", "2.jpg", "more.jpg")
    train, _ = import_and_prepare(tmp_path / "set", tmp_path / "out")
    assert train == {"1.jpg": ["cat"], "2.jpg": ["cat"]}
    said = capsys.readouterr().out
    for part in (
        "annotations of a picture that is not listed (1): labels.json: annotations[2]",
        "annotations of a category that is not listed (1): labels.json: annotations[3]",
        "annotated pictures without a file (1): gone.jpg",
        "labels that no picture shows (1): dog",
        "pictures that no annotation names (1): more.jpg",
    ):
        assert part in said


def test_without_categories_the_reason_is_given(tmp_path, capsys):
    content = coco(["1.jpg"], [], [(0, 5)])
    write(tmp_path / "set", "labels.json", content)
    write_pictures(tmp_path / "set", "1.jpg")
    said = refused(capsys, tmp_path / "set", tmp_path / "out")
    assert "no picture shows a label (left out: annotations of a category that is not listed (1))" in said


def test_panoptic_segments_are_labels(tmp_path):
    content = coco(["1.jpg"], ["cat", "dog", "sky"], [])
    content["annotations"] = [{"image_id": 0, "segments_info": [{"category_id": 0}, {"category_id": 2}]}]
    write(tmp_path / "set", "panoptic_val2017.json", content)
    write_pictures(tmp_path / "set", "val2017/1.jpg")
    assert import_and_prepare(tmp_path / "set", tmp_path / "out")[0] == {"val2017/1.jpg": ["cat", "sky"]}


@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"images": [}', "line 1 is not JSON"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "images[0] has no file_name"),
        ('{"images": [{"file_name": "1.jpg"}], "annotations": []}', "images[0] has no id"),
        (
            '{"images": [{"id": 1, "file_name": "1.jpg"}, {"id": 1, "file_name": "2.jpg"}], "annotations": []}',
            "the same id 1",
        ),
    ],
)
def test_damaged_files(tmp_path, capsys, text, expected):
    path = write(tmp_path / "set", "labels.json", text)
    write_pictures(tmp_path / "set", "1.jpg")
    assert expected in refused(capsys, path, tmp_path / "out", "--format", "coco")
