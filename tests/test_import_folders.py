"""`qks data import`: class folders, where the result goes, and what holds for every format."""

import json
import os

import pytest
from importing import check_test_part, import_and_prepare, labels_of, refused, run, write, write_pictures

from qks.commands.main import main
from qks.core import QKSError
from qks.data.splits import open_splits
from qks.formats.importing import Picture
from qks.formats.records import ImportOptions, Record
from qks.formats.registry import FORMATS
from qks.formats.source import REPORT
from qks.formats.writing import import_pictures, table_text


@pytest.fixture
def pets(tmp_path):
    names = [
        f"{split}/{kind}/{kind[0]}{n}.jpg" for split in ("train", "val") for kind in ("cat", "dog") for n in (1, 2)
    ]
    write_pictures(tmp_path / "pets", *names)
    return tmp_path / "pets"


def test_class_folders_in_splits(pets, tmp_path, capsys):
    train, test = import_and_prepare(pets, tmp_path / "out")
    assert train == {
        "train/cat/c1.jpg": ["cat"],
        "train/cat/c2.jpg": ["cat"],
        "train/dog/d1.jpg": ["dog"],
        "train/dog/d2.jpg": ["dog"],
    }
    assert list(test) == ["val/cat/c1.jpg", "val/cat/c2.jpg", "val/dog/d1.jpg", "val/dog/d2.jpg"]
    assert "val pictures (4) are to test on" in capsys.readouterr().out


def test_val_beside_a_test_chooses_the_epoch(pets, tmp_path):
    write_pictures(pets, "test/cat/c9.jpg", "test/dog/d9.jpg")
    train, test = import_and_prepare(pets, tmp_path / "out")
    assert list(test) == ["test/cat/c9.jpg", "test/dog/d9.jpg"]
    validation = open_splits(tmp_path / "out")["train"].validation
    assert sorted(validation) == sorted(f"pictures/{name}" for name in train if name.startswith("val"))


def test_val_can_be_kept_for_the_epoch(pets, tmp_path):
    train, test = import_and_prepare(pets, tmp_path / "out", "--val", "val")
    assert len(train) == 8 and not test


def test_a_test_is_drawn_from_all(pets, tmp_path):
    check_test_part(pets, tmp_path / "out", 8, "--splits", "ignore")
    train, test = import_and_prepare(pets, tmp_path / "two", "--test-part", "0.5")
    assert len(test) == 2 and all(name.startswith("train") for name in test)  # val stays for the epoch


def test_folders_without_splits_and_a_class_called_train(tmp_path):
    write_pictures(tmp_path / "rides", "bus/1.jpg", "car/2.jpg", "train/3.jpg", "car/4.jpg")
    train, _ = import_and_prepare(tmp_path / "rides", tmp_path / "out")
    assert train == {"bus/1.jpg": ["bus"], "car/2.jpg": ["car"], "car/4.jpg": ["car"], "train/3.jpg": ["train"]}


def test_wrappers_and_splits_inside_classes(tmp_path):
    write_pictures(tmp_path / "a", "images/train/cat/1.jpg", "images/test/cat/2.jpg")
    assert import_and_prepare(tmp_path / "a", tmp_path / "one") == (
        {"images/train/cat/1.jpg": ["cat"]},
        {"images/test/cat/2.jpg": ["cat"]},
    )
    write_pictures(tmp_path / "b", "cat/train/1.jpg", "cat/test/2.jpg", "dog/train/1.jpg")
    train, test = import_and_prepare(tmp_path / "b", tmp_path / "two")
    assert train == {"cat/train/1.jpg": ["cat"], "dog/train/1.jpg": ["dog"]} and list(test) == ["cat/test/2.jpg"]


@pytest.mark.parametrize("nested, expected", [("first", ["animal"]), ("last", ["dog"]), ("all", ["animal", "dog"])])
def test_folders_in_class_folders_are_asked_about(tmp_path, capsys, nested, expected):
    write_pictures(tmp_path / "tree", "animal/dog/1.jpg", "animal/cat/2.jpg", "boat/3.jpg")
    assert "--nested first, last or all" in refused(capsys, tmp_path / "tree", tmp_path / "out")
    train, _ = import_and_prepare(tmp_path / "tree", tmp_path / "out", "--nested", nested)
    assert train["animal/dog/1.jpg"] == expected and train["boat/3.jpg"] == ["boat"]


def test_the_same_file_in_two_class_folders_is_one_picture_of_two_labels(tmp_path, capsys):
    write_pictures(tmp_path / "both", "cat/1.jpg", "dog/2.jpg", "dog/3.jpg")
    write(tmp_path / "both", "dog/1.jpg", (tmp_path / "both/cat/1.jpg").read_bytes())
    write(tmp_path / "both", "dog/Thumbs.db", "x")
    (tmp_path / "both/owl").mkdir()
    write_pictures(tmp_path / "both", "loose.png")
    train, _ = import_and_prepare(tmp_path / "both", tmp_path / "out")
    assert train == {"cat/1.jpg": ["cat", "dog"], "dog/2.jpg": ["dog"], "dog/3.jpg": ["dog"]}
    said = capsys.readouterr().out
    for part in (
        "copies of a picture in another class folder, which gets their labels too (1): dog/1.jpg",
        "pictures in no class folder (1): loose.png",
        "files that are no pictures (1): dog/Thumbs.db",
        "labels that no picture shows (1): owl",
    ):
        assert part in said


def test_two_pictures_of_one_name_stay_two(tmp_path):
    write_pictures(tmp_path / "two", "cat/1.jpg", "dog/1.jpg")
    train, _ = import_and_prepare(tmp_path / "two", tmp_path / "out")
    assert train == {"cat/1.jpg": ["cat"], "dog/1.jpg": ["dog"]}


# --- where it goes ---


def test_links_by_default_and_copies_where_asked(pets, tmp_path):
    assert run(pets, tmp_path / "links") == 0
    assert run(pets, tmp_path / "copies", "--copy") == 0
    name = "pictures/train/cat/c1.jpg"
    assert (tmp_path / "links" / name).is_symlink() and not (tmp_path / "copies" / name).is_symlink()
    original = pets / "train/cat/c1.jpg"
    assert (
        (tmp_path / "copies" / name).read_bytes() == (tmp_path / "links" / name).read_bytes() == original.read_bytes()
    )


def test_a_root_that_is_in_use_is_refused_and_nothing_is_touched(pets, tmp_path, capsys):
    out = tmp_path / "out"
    write(out, "notes.txt", "mine")
    assert "files of its own" in refused(capsys, pets, out)
    assert "files of its own" in refused(capsys, pets, out, "--force")
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert "is a file" in refused(capsys, pets, out / "notes.txt")
    assert not list(tmp_path.glob(".*"))


def test_an_earlier_import_is_replaced_only_with_force(pets, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(pets, out, "--copy") == 0
    write(out, "notes.txt", "mine")
    assert "--force" in refused(capsys, pets, out)
    write_pictures(pets, "train/owl/o1.jpg")
    (pets / "train/cat/c1.jpg").unlink()
    train, _ = import_and_prepare(pets, out, "--force")
    assert train["train/owl/o1.jpg"] == ["owl"] and "train/cat/c1.jpg" not in train
    assert not (out / "pictures/train/cat/c1.jpg").exists() and (out / "notes.txt").read_text() == "mine"
    write_pictures(out, "pictures/own.jpg")
    assert "was not written by an import" in refused(capsys, pets, out, "--force")
    assert (out / "pictures/own.jpg").is_file()


def test_in_place(pets, tmp_path, capsys):
    train, test = import_and_prepare(pets, pets)
    assert (len(train), len(test)) == (4, 4) and not (pets / "pictures").exists()
    assert "earlier import" in refused(capsys, pets, pets)
    assert run(pets, pets, "--force") == 0
    assert "read as imagefolder" in capsys.readouterr().out
    assert labels_of(pets, "train") == train


def test_a_root_inside_its_source_is_no_source_itself(pets, tmp_path, monkeypatch):
    monkeypatch.chdir(pets)
    first = import_and_prepare(".", "out", "--copy")
    assert first == import_and_prepare(".", "more/out") and len(first[0]) == 4
    write(pets, "labels.csv", "image,labels\ntrain/cat/c1.jpg,tom\n")
    assert import_and_prepare("labels.csv", "third")[0] == {"train/cat/c1.jpg": ["tom"]}


def test_twins_are_merged_in_every_format(tmp_path, capsys):
    write_pictures(tmp_path / "set", "hot dog/1.jpg", "hot dog/2.jpg", "Hot_Dog/3.jpg", "cat/4.jpg")
    train, _ = import_and_prepare(tmp_path / "set", tmp_path / "out", "--merge-twins")
    assert sorted(label for labels in train.values() for label in labels) == ["cat", "hot dog", "hot dog", "hot dog"]
    assert "'Hot_Dog' into 'hot dog'" in capsys.readouterr().out


def test_a_table_of_ones_own_is_never_replaced(tmp_path, capsys):
    write_pictures(tmp_path / "own", "1.jpg", "2.jpg")
    table = write(tmp_path / "own", "train.csv", "image,labels\n1.jpg,cat\n2.jpg,dog\n")
    for words in ((), ("--force",)):
        assert "train.csv, which no import wrote" in refused(capsys, tmp_path / "own", tmp_path / "own", *words)
    assert table.read_text() == "image,labels\n1.jpg,cat\n2.jpg,dog\n"


def test_a_failed_import_leaves_nothing(pets, tmp_path, monkeypatch, capsys):
    def no_links(*args):
        raise OSError("not permitted")

    monkeypatch.setattr(os, "symlink", no_links)
    assert "--copy" in refused(capsys, pets, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_the_report_has_every_name(tmp_path, capsys):
    names = [f"loose{n}.jpg" for n in range(9)]
    write_pictures(tmp_path / "set", "cat/1.jpg", "dog/2.jpg", *names)
    assert run(tmp_path / "set", tmp_path / "out") == 0
    assert "loose8.jpg" not in capsys.readouterr().out
    report = (tmp_path / "out" / REPORT).read_text()
    assert all(name in report for name in names) and "pictures in no class folder (9)" in report


def test_names_that_no_table_holds(tmp_path):
    write_pictures(
        tmp_path / "odd", "cat/a\\b.jpg", "cat/a_b.jpg", "dog/new\nline.jpg", "dog/c, d|e.jpg", "dog/ f .jpg"
    )
    train, _ = import_and_prepare(tmp_path / "odd", tmp_path / "out")
    assert len(train) == 5 and train["dog/c, d|e.jpg"] == ["dog"] and train["dog/new_line.jpg"] == ["dog"]


def test_labels_that_look_like_marks_stay_whole(tmp_path):
    names = ["hat, cowboy", "a|b", "None", "[x]", "it's", '5" nail', "semi;colon", "{y}", "plain"]
    write_pictures(tmp_path / "odd", *(f"{name}/{n}.jpg" for n, name in enumerate(names)))
    train, _ = import_and_prepare(tmp_path / "odd", tmp_path / "out")
    assert sorted(label for labels in train.values() for label in labels) == sorted(names)


def test_not_annotated_labels_get_a_table_of_flags():
    pictures = [Picture("1.jpg", Record("", "", {"dog": 1, "cat": 0})), Picture("2.jpg", Record("", "", {"cat": 1}))]
    assert table_text(pictures, ["train"] * 2, ["dog", "cat"], True) == "image,dog,cat\n1.jpg,1,\n2.jpg,0,1\n"


# --- what is no source ---


def test_what_shows_no_format(tmp_path, capsys):
    write_pictures(tmp_path / "flat", "1.jpg", "2.jpg")
    assert "shows none of the known formats" in refused(capsys, tmp_path / "flat", tmp_path / "out")
    write(tmp_path / "flat", "export.zip", b"PK")
    assert "unpack it" in refused(capsys, tmp_path / "flat", tmp_path / "out")
    assert "unpack it" in refused(capsys, tmp_path / "flat/export.zip", tmp_path / "out")
    write(tmp_path / "flat", "labels.xlsx", b"PK\x03\x04 rows")
    assert "save it as CSV" in refused(capsys, tmp_path / "flat/labels.xlsx", tmp_path / "out", "--format", "csv")
    assert "does not exist" in refused(capsys, tmp_path / "nothing", tmp_path / "out")


def test_options_of_other_formats_are_refused(pets, tmp_path, capsys):
    assert "--same-name means nothing" in refused(capsys, pets, tmp_path / "out", "--same-name", "merge")
    assert "--label-column is for tables" in refused(capsys, pets, tmp_path / "out", "--label-column", "x")
    with pytest.raises(QKSError, match="test_part is 2"):
        import_pictures(pets, tmp_path / "out", ImportOptions(test_part=2.0))


def test_every_format_has_its_name_on_the_command_line():
    names = ImportOptions.__annotations__["format"]
    assert set(FORMATS) <= set(names.__args__[0].__args__)


def test_an_import_trains(pets, tmp_path):
    out = tmp_path / "out"
    import_and_prepare(pets, out)
    small = "--epochs 1 --n-layers 1 --n-queries 2 --batch-size 4 --device cpu".split()
    assert main(["train", str(out), "--out", str(tmp_path / "run"), *small]) == 0
    rows = json.loads((tmp_path / "run/results.json").read_text())["rows"]
    assert rows
