"""`qks data import`: one-hot and other tables, one or one per split, with pictures anywhere."""

import pytest
from importing import check_test_part, import_and_prepare, refused, write, write_pictures

ROBOFLOW = {
    "train/_classes.csv": "filename, cat, dog, hot dog\n1.jpg, 1, 0, 0\n2.jpg, 1, 1, 0\n3.jpg, 0, 0, 0\n",
    "valid/_classes.csv": "filename, cat, dog, hot dog\n1.jpg, 0, 1, 0\n",
    "test/_classes.csv": "filename, cat, dog, hot dog\n1.jpg, 1, 0, 0\n4.jpg, 0, 1, 0\n",
}


@pytest.fixture
def roboflow(tmp_path):
    root = tmp_path / "export"
    for name, text in ROBOFLOW.items():
        write(root, name, text)
    write_pictures(
        root, *(f"train/{n}.jpg" for n in (1, 2, 3)), "valid/1.jpg", "test/1.jpg", "test/4.jpg", "test/5.jpg"
    )
    return root


def test_one_hot_tables_per_split(roboflow, tmp_path, capsys):
    train, test = import_and_prepare(roboflow, tmp_path / "out")
    assert train == {
        "train/1.jpg": ["cat"],
        "train/2.jpg": ["cat", "dog"],
        "train/3.jpg": [],
        "valid/1.jpg": ["dog"],
    }
    assert test == {"test/1.jpg": ["cat"], "test/4.jpg": ["dog"]}
    said = capsys.readouterr().out
    assert "pictures that no annotation names (1): test/5.jpg" in said
    assert "labels that no picture shows (1): hot dog" in said
    check_test_part(roboflow, tmp_path / "two", 6, "--splits", "ignore")


def test_not_annotated_stays_not_annotated(tmp_path, capsys):
    write(tmp_path / "set", "labels.csv", "image,cat,dog\n1,1,-1\n2,0,1\n3,-1,1\n")
    write_pictures(tmp_path / "set", "img/1.JPG", "img/2.png", "img/3.jpg")
    words = ("--not-annotated", "-1")
    train, _ = import_and_prepare(tmp_path / "set", tmp_path / "out", *words, prepare=("--not-annotated", "blank"))
    assert train == {"img/1.JPG": ["cat"], "img/2.png": ["dog"], "img/3.jpg": ["dog"]}
    assert (tmp_path / "out/train.csv").read_text() == (
        "image,cat,dog\npictures/img/1.JPG,1,\npictures/img/2.png,0,1\npictures/img/3.jpg,,1\n"
    )
    assert "prepare " in capsys.readouterr().out


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings_backslashes_and_missing_pictures(tmp_path, capsys, encoding):
    text = "Bild;Labels\r\nimg\\Müll.jpg;küche|bad\r\nimg\\fort.jpg;bad\r\nimg\\1.JPG;\r\n"
    write(tmp_path / "set", "labels.csv", text.encode(encoding))
    write_pictures(tmp_path / "set", "img/Müll.jpg", "img/1.jpg")
    train, _ = import_and_prepare(tmp_path / "set", tmp_path / "out", "--image-column", "Bild")
    assert train == {"img/Müll.jpg": ["bad", "küche"], "img/1.jpg": []}
    assert "annotated pictures without a file (1): img\\fort.jpg" in capsys.readouterr().out


def test_the_csv_of_asl_and_ml_decoder(tmp_path):
    "nus_wid_data.csv: lists of Python, train and val; flat images/."
    rows = [
        "images/0001_1.jpg,\"['sky', 'clouds']\",train",
        "images/0002_2.jpg,\"['person']\",train",
        'images/0003_3.jpg,"[]",train',
        "images/0004_4.jpg,\"['sky']\",val",
    ]
    write(tmp_path / "nus", "nus_wid_data.csv", "filepath,label,split_name\n" + "\n".join(rows) + "\n")
    write_pictures(tmp_path / "nus", *(f"images/000{n}_{n}.jpg" for n in (1, 2, 3, 4)))
    train, test = import_and_prepare(tmp_path / "nus", tmp_path / "out")
    assert train == {"images/0001_1.jpg": ["clouds", "sky"], "images/0002_2.jpg": ["person"], "images/0003_3.jpg": []}
    assert test == {"images/0004_4.jpg": ["sky"]}
    check_test_part(tmp_path / "nus", tmp_path / "two", 4, "--splits", "ignore")


def test_several_tables_without_splits_are_asked_about(tmp_path, capsys):
    write(tmp_path / "set", "a.csv", "image,labels\n1.jpg,cat\n")
    write(tmp_path / "set", "b.csv", "image,labels\n1.jpg,dog\n")
    write_pictures(tmp_path / "set", "img/1.jpg")
    assert "a.csv, b.csv" in refused(capsys, tmp_path / "set", tmp_path / "out")
    train, _ = import_and_prepare(tmp_path / "set/b.csv", tmp_path / "out")
    assert train == {"img/1.jpg": ["dog"]}


def test_pictures_elsewhere(tmp_path, capsys):
    write(tmp_path / "tables", "labels.csv", "image,labels\n1.jpg,cat\n")
    write_pictures(tmp_path / "disk", "a/1.jpg")
    assert "--images" in refused(capsys, tmp_path / "tables", tmp_path / "out")
    train, _ = import_and_prepare(tmp_path / "tables", tmp_path / "out", "--images", tmp_path / "disk")
    assert train == {"a/1.jpg": ["cat"]}


def test_a_picture_in_two_splits_is_refused(tmp_path, capsys):
    write(tmp_path / "set", "train.csv", "image,labels\n1.jpg,cat\n2.jpg,dog\n")
    write(tmp_path / "set", "test.csv", "image,labels\n1.jpg,cat\n")
    write_pictures(tmp_path / "set", "1.jpg", "2.jpg")
    said = refused(capsys, tmp_path / "set", tmp_path / "out")
    assert "test.csv line 2" not in said or "train.csv line 2" in said
    assert "is for train" in said or "for train in train.csv line 2" in said
    train, _ = import_and_prepare(tmp_path / "set", tmp_path / "out", "--splits", "ignore")
    assert len(train) == 2
