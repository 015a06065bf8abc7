"""Tables of images as people and programs write them: the right labels, or a sentence that asks; no silent guess."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from test_formats import annotation, coco, write_coco, write_images, write_voc

from qks.commands.main import main
from qks.commands.tag import read_label_arguments
from qks.core import QKSError
from qks.data.folder import FolderOptions, index_folder, index_folder_splits
from qks.data.label_text import read_label_cells, read_label_text, twin_key, write_label_text
from qks.data.splits import open_split, prepare
from qks.data.table import TableOptions, read_label_file, read_table
from qks.data.voc import VOCOptions, index_voc_splits


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QKS_CACHE", str(tmp_path / "cache"))


def write_table(folder, *lines, encoding="utf-8", end="\n"):
    path = Path(folder) / "labels.csv"
    path.write_bytes("".join(line + end for line in lines).encode(encoding))
    return path


def present(table):
    "image -> the labels that it has."
    return {row.image: {label for label, value in row.labels.items() if value == 1} for row in table.rows}


def cells(*texts, **options):
    "The labels of a column, and what was understood."
    return read_label_cells(texts, [f"line {line}" for line in range(2, 2 + len(texts))], **options)


# --- separators ---


@pytest.mark.parametrize(
    "texts, labels",
    [
        (["dog|cat", "dog", ""], [("dog", "cat"), ("dog",), ()]),
        (["dog, cat", "dog", "cat", "bee", "bee"], [("dog", "cat"), ("dog",), ("cat",), ("bee",), ("bee",)]),
        (["dog;cat", "cat", "dog", "dog"], [("dog", "cat"), ("cat",), ("dog",), ("dog",)]),
        (["dog\tcat", "cow"], [("dog", "cat"), ("cow",)]),
        (["dog\ncat", "cow"], [("dog", "cat"), ("cow",)]),
        (["dog, cat", "bee, fly"], [("dog", "cat"), ("bee", "fly")]),  # the whole column is written so
        (["dog,cat,", "cow,", "cat,"], [("dog", "cat"), ("cow",), ("cat",)]),
        (["dog, cat", "dog, cow", "dog, pig", "dog"], [("dog", "cat"), ("dog", "cow"), ("dog", "pig"), ("dog",)]),
        (["Dog, cat", "dog", "Cat"], [("Dog", "cat"), ("dog",), ("Cat",)]),
        (["dog|cat", "cat, dog"], [("dog", "cat"), ("cat", "dog")]),  # two hands wrote one table
        (["dog, cat", "dog; cat", "dog", "cat"], [("dog", "cat"), ("dog", "cat"), ("dog",), ("cat",)]),
        (["dog", "cat", "salt, pepper"], [("dog",), ("cat",), ("salt, pepper",)]),
        (["dog|salt, pepper", "cat"], [("dog", "salt, pepper"), ("cat",)]),
        (["dog|salt, pepper", "salt"], [("dog", "salt, pepper"), ("salt",)]),
        (['"salt, pepper", dog', "dog", "dog"], [("salt, pepper", "dog"), ("dog",), ("dog",)]),
        (["'salt, pepper'; dog", "dog", "salt, pepper"], [("salt, pepper", "dog"), ("dog",), ("salt, pepper",)]),
        (['"a;b", dog', "dog", "cow"], [("a;b", "dog"), ("dog",), ("cow",)]),
        (["rock 'n' roll", "jazz"], [("rock 'n' roll",), ("jazz",)]),
        (["dog, dog", "dog"], [("dog",), ("dog",)]),
    ],
    ids=str,
)
def test_separators(texts, labels):
    assert cells(*texts).labels == labels


@pytest.mark.parametrize(
    "cell, labels",
    [
        ("['dog', 'cat']", ("dog", "cat")),
        ('["dog", "cat"]', ("dog", "cat")),
        ("('dog',)", ("dog",)),
        ("{'dog', 'cat'}", ("dog", "cat")),
        ("['dog' 'cat']", ("dog", "cat")),  # NumPy
        ("['dog'\n 'cat']", ("dog", "cat")),
        ('{"choices": ["dog", "cat"]}', ("dog", "cat")),
        ("{'choices': ['dog']}", ("dog",)),
        ('{"choices": []}', ()),
        ('[{"id": 28, "name": "dog"}, {"id": 2, "name": "cat"}]', ("dog", "cat")),
        ('[{"x": 1.5, "rectanglelabels": ["dog"]}]', ("dog",)),
        ('{"dog": true, "cat": false}', ("dog",)),
        ("['salt, pepper', \"it's\"]", ("salt, pepper", "it's")),
        (r"['it\'s', 'caf\u00e9']", ("it's", "café")),
        ('["salt|pepper"]', ("salt|pepper",)),
        ("[1, 2]", ("1", "2")),
        ("array(['dog', 'cat'], dtype=object)", ("dog", "cat")),
        ("frozenset({'dog'})", ("dog",)),
        ("set()", ()),
        ("[]", ()),
        ("()", ()),
        ("{}", ()),
        ("[null]", ()),
        ("[None]", ()),
        ("[nan]", ()),
        ("nan", ()),
        ("NaN", ()),
        ("None", ()),
        ("null", ()),
        ("<NA>", ()),
        ("  ", ()),
    ],
)
def test_a_list_in_a_cell(cell, labels):
    "Read as a list, whatever the rest of the column is."
    result = cells(cell, "bee", "fly")
    assert result.labels == [labels, ("bee",), ("fly",)]
    assert bool(result.remarks) == bool(cell.strip())  # and said, unless the cell was blank


@pytest.mark.parametrize(
    "texts, labels",
    [
        (["[dog, cat]", "[cow]"], [("dog", "cat"), ("cow",)]),
        (['{dog,"hot dog"}', "{cow}", "{}"], [("dog", "hot dog"), ("cow",), ()]),  # PostgreSQL
        (["[dog, cat]", "dog", "cat"], [("dog", "cat"), ("dog",), ("cat",)]),
        (["dog", "cat", "(unknown)"], [("dog",), ("cat",), ("(unknown)",)]),
        (["dog (brown)", "cat"], [("dog (brown)",), ("cat",)]),
    ],
    ids=str,
)
def test_brackets_without_quotes(texts, labels):
    assert cells(*texts).labels == labels


@pytest.mark.parametrize(
    "texts, words",
    [
        (["dog", "cat", "bee", "dog, cow"], "line 5: 'dog, cow' may be one label or several with ',' between them"),
        (["dog;cow", "dog", "cat"], "line 2: 'dog;cow' may be one label or several with ';'"),
        (["dog", "cow, pig", "hen, duck"], "line 3: 'cow, pig' may be one label or several"),
        (["dog, cat", "dog", "cat", "salt, pepper"], "line 5: 'salt, pepper' may be one label or several"),
        (["['dog', 'cat']", "dog, cow", "cat"], "line 3: 'dog, cow' may be one label or several"),
        (["dog|cat", "dog, cow", "cat"], "line 3: 'dog, cow' may be one label or several"),
        (["[dog, cow]", "dog", "cat"], "line 2: 'dog, cow' may be|line 2: '.dog, cow.' may be one label or several"),
        (["dog||cat"], "line 2: label '' is empty"),
        (["|dog"], "line 2: label '' is empty"),
        (["['dog' ... 'cat']"], "line 2: .* begins like a list, but it is neither JSON nor Python"),
        (['{"a": 1.5, "b": 2}'], "line 2: .* without one key for labels"),
        (['[["a", "b"]]'], "line 2: .* list of lists"),
    ],
    ids=str,
)
def test_what_is_unclear_is_asked(texts, words):
    with pytest.raises(QKSError, match=words):
        cells(*texts)


@pytest.mark.parametrize(
    "texts, separator, labels",
    [
        (["dog", "dog, cow"], ",", [("dog",), ("dog", "cow")]),
        (["dog", "dog, cow"], "none", [("dog",), ("dog, cow",)]),
        (["['dog']", "nan"], "none", [("['dog']",), ()]),
        (["dog cat", "hot_dog"], "space", [("dog", "cat"), ("hot_dog",)]),
        (["dog / cat", "cow"], "/", [("dog", "cat"), ("cow",)]),
        (["dog and cat", "sand"], " and ", [("dog", "cat"), ("sand",)]),
        (["dog\\tcat".replace("\\t", "\t"), "a|b"], "tab", [("dog", "cat"), ("a|b",)]),
        (["[dog, cow]", "dog"], "list", [("dog", "cow"), ("dog",)]),
        (["['a', 'b']", "c;d"], ";", [("a", "b"), ("c", "d")]),
        (["dog,cat", "cow"], ", ", [("dog", "cat"), ("cow",)]),
    ],
    ids=str,
)
def test_a_separator_that_is_asked_for(texts, separator, labels):
    assert cells(*texts, separator=separator).labels == labels


@pytest.mark.parametrize("separator", ["", "x", "comma or so", '"'])
def test_a_separator_that_is_none(separator):
    if separator == "comma or so":
        assert cells("a comma or so b", separator=separator).labels == [("a", "b")]
        return
    with pytest.raises(QKSError, match="label_separator is"):
        cells("dog", separator=separator)


def test_words_for_nothing_can_be_labels():
    assert cells("nan", "None").labels == [(), ()]
    assert cells("nan", "None", no_label="None").labels == [("nan",), ()]
    assert cells("no finding", "mass", no_label="no finding").labels == [(), ("mass",)]


@pytest.mark.parametrize(
    "text, labels",
    [
        ("dog\ncat\n", ["dog", "cat"]),
        ("dog, cat, bee\n", ["dog", "cat", "bee"]),
        ("dog|cat\n", ["dog", "cat"]),
        ('["dog", "cat"]', ["dog", "cat"]),
        ("dog\n\nsalt, pepper\n\n", ["dog", "salt, pepper"]),
        ('"salt, pepper"\ndog\n', ["salt, pepper", "dog"]),
        ("dog,\ncat,\n", ["dog", "cat"]),
        ('[\n "dog",\n "cat"\n]\n', ["dog", "cat"]),
        ("- dog\n- cat\n", ["dog", "cat"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_label_files_follow_the_rule(tmp_path, text, labels, encoding):
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode(encoding))
    assert read_label_file(path).labels == labels
    assert read_label_arguments(None, path) == labels
    if "\n\n" not in text:
        path.write_bytes(text.replace("\n", "\r").encode(encoding))
        assert read_label_file(path).labels == labels


def test_a_label_file_that_is_unclear_is_asked(tmp_path):
    (tmp_path / "labels.txt").write_text("dog\ncat\ndog, cow\nbee\n")
    with pytest.raises(QKSError, match="labels.txt line 3: 'dog, cow' may be one label or several"):
        read_label_arguments(None, tmp_path / "labels.txt")
    assert read_label_arguments(None, tmp_path / "labels.txt", "none") == ["dog", "cat", "dog, cow", "bee"]


@pytest.mark.parametrize(
    "text", ["cat,dog", "cat, dog,", "cat;dog", "cat|dog", "cat\tdog", "['cat', 'dog']", '["cat","dog"]', "[cat, dog]"]
)
def test_labels_of_a_command_line_follow_the_rule(text):
    assert read_label_arguments(text, None) == ["cat", "dog"]


def test_a_command_line_says_what_it_understood(caplog):
    read_label_arguments("cat,dog", None)
    assert not caplog.messages
    read_label_arguments("cat; dog; Dog", None)
    assert "split at ';'" in caplog.text and "labels 'dog' and 'Dog' differ in capitals only" in caplog.text
    assert read_label_arguments("salt, pepper", None, "none") == ["salt, pepper"]


# --- the summary ---


def test_the_summary_names_counts_and_everything_odd(tmp_path):
    rows = [f"{number}.jpg,{chr(97 + number % 12)}" for number in range(100)]
    path = write_table(tmp_path, "image,labels,note", *(f"{row},x" for row in rows), '"z.jpg","salt, pepper",x')
    remarks = read_table(path).remarks
    assert remarks[0] == "101 images"
    assert "columns are separated by ','" in remarks[1] and "not used: note" in remarks[1]
    assert remarks[2].startswith("13 labels; most frequent: a 9, b 9, c 9, d 9, e 8; least frequent: ")
    assert remarks[2].endswith("i 8, j 8, k 8, l 8, salt, pepper 1")
    assert remarks[3] == "odd labels (1), which contain a separator, a bracket or a quote: 'salt, pepper'"


@pytest.mark.parametrize(
    "name, words",
    [
        ("none", "no label"),
        ("7", "are numbers"),
        ("cafÃ©", "wrong encoding"),
        ("label", "name of a column"),
        ("dog cat", "fall into other labels"),
        ("dog · cat", "fall into other labels"),
        ("# animals", "begin with '#'"),
        ("dog/cat", "fall into other labels"),
        ("[dog", "bracket"),
        ("'dog", "quote"),
    ],
)
def test_odd_names_are_named(tmp_path, name, words):
    path = write_table(tmp_path, "image,labels", "1.jpg,dog", "2.jpg,cat", f"3.jpg,{name}")
    odd = [remark for remark in read_table(path).remarks if words in remark]
    assert len(odd) == 1 and repr(name) in odd[0]


def test_prepare_prints_what_was_understood(tmp_path, capsys):
    write_images(tmp_path, *(f"{number}.jpg" for number in range(8)))
    lines = ["image,labels,split", '0.jpg,"dog, cat",train', "1.jpg,dog,train", "2.jpg,cat,val", "3.jpg,dog,test"]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    assert main(["data", "folder", "prepare", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for words in (
        "train.csv: 4 images",
        "split from 'split' (rows: 2 train, 1 val, 1 test)",
        "1 cell is split at ',', such as 'dog, cat', because every part is a label elsewhere; --label-separator none",
        "2 labels by frequency: dog 3, cat 2",
    ):
        assert out.count(words) == 1, words
    assert main(["data", "folder", "prepare", str(tmp_path), "--label-separator", "none"]) == 0
    assert "3 labels" in capsys.readouterr().out
    train = open_split(tmp_path, "train")
    assert train.images == ("0.jpg", "1.jpg", "2.jpg") and train.validation == ("2.jpg",)
    assert open_split(tmp_path, "test").images == ("3.jpg",)


# --- columns ---

IMAGE_NAMES = ["image", "file_name", "filename", "filepath", "path", "image_path", "File Name", "imagePath", "IMG"]


@pytest.mark.parametrize("image", IMAGE_NAMES)
@pytest.mark.parametrize("label", ["labels", "label", "tags", "categories", "Tag"])
def test_columns_by_their_usual_names(tmp_path, image, label):
    path = write_table(tmp_path, f"id,{label},note,{image}", "0,dog|cat,x,1.jpg", "1,,y,2.jpg")
    assert present(read_table(path)) == {"1.jpg": {"dog", "cat"}, "2.jpg": set()}


def test_other_columns_are_named(tmp_path):
    path = write_table(tmp_path, "Image Index,Finding Labels,Patient", "1.png,Mass|Edema,7", "2.png,No Finding,8")
    with pytest.raises(QKSError, match="line 1 is .*name the column of the images with --image-column"):
        read_table(path)
    with pytest.raises(QKSError, match="name the column of the labels with --label-column"):
        read_table(path, TableOptions(image_column="Image Index"))
    options = TableOptions(image_column="image index", label_column="Finding Labels", no_label="No Finding")
    assert present(read_table(path, options)) == {"1.png": {"Mass", "Edema"}, "2.png": set()}
    with pytest.raises(QKSError, match="has no column 'Labels': --label-column names one of 'Image Index', 'Finding"):
        read_table(path, TableOptions(image_column="Image Index", label_column="Labels"))


def test_two_columns_of_labels_are_asked_about(tmp_path):
    path = write_table(tmp_path, "image,label,tags", "1.jpg,dog,nice", "2.jpg,cat,old")
    with pytest.raises(QKSError, match="line 1 has the columns 'label' and 'tags': name the one to use"):
        read_table(path)
    assert present(read_table(path, TableOptions(label_column="tags"))) == {"1.jpg": {"nice"}, "2.jpg": {"old"}}
    both = present(read_table(path, TableOptions(label_column="label,tags")))
    assert both == {"1.jpg": {"dog", "nice"}, "2.jpg": {"cat", "old"}}


def test_two_columns_of_images_are_told_apart(tmp_path):
    path = write_table(tmp_path, "image,filename,labels", "17,1.jpg,dog", "18,2.jpg,cat")
    table = read_table(path)
    assert present(table) == {"1.jpg": {"dog"}, "2.jpg": {"cat"}} and "not used: image" in table.remarks[1]
    path = write_table(tmp_path, "image,filename,labels", "a/1.jpg,1.jpg,dog")
    with pytest.raises(QKSError, match="line 1 has the columns 'image' and 'filename': name the images' one"):
        read_table(path)
    assert present(read_table(path, TableOptions(image_column="image"))) == {"a/1.jpg": {"dog"}}


def test_numbered_columns_of_labels_are_one(tmp_path):
    path = write_table(tmp_path, "image,label_1,label_2,label_3", "1.jpg,dog,cat,", "2.jpg,cow,,")
    assert present(read_table(path)) == {"1.jpg": {"dog", "cat"}, "2.jpg": {"cow"}}


WORDS = {
    "train": ["train", "Train", "TRAINING", "train2017", "trn"],
    "val": ["val", "Valid", "validation", "dev", "val2014"],
    "test": ["test", "Testing", "TEST "],
}


@pytest.mark.parametrize("column", ["split", "split_name", "subset", "fold", "Set", "partition"])
def test_a_column_of_the_split_is_used(tmp_path, column):
    rows = [(f"{part}{number}.jpg", word, part) for part in WORDS for number, word in enumerate(WORDS[part])]
    lines = [f"image,labels,{column}", *(f"{image},dog,{word}" for image, word, _ in rows)]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    indexes = index_folder_splits(tmp_path, ("train", "test"), FolderOptions())
    by_part = {part: tuple(image for image, _, of in rows if of == part) for part in WORDS}
    assert indexes["test"].images == by_part["test"]
    assert indexes["train"].images == (*by_part["train"], *by_part["val"])
    assert indexes["train"].validation == by_part["val"]


@pytest.mark.parametrize(
    "header, values, parts",
    [
        ("is_valid", ("False", "True"), ("train", "val")),
        ("is_test", ("0", "1"), ("train", "test")),
        ("is_train", ("1", "0"), ("train", "test")),
    ],
)
def test_a_flag_of_the_split_is_used(tmp_path, header, values, parts):
    path = write_table(tmp_path, f"image,labels,{header}", f"1.jpg,dog,{values[0]}", f"2.jpg,dog,{values[1]}")
    assert tuple(row.part for row in read_table(path).rows) == parts


@pytest.mark.parametrize(
    "column, values, words",
    [
        ("split", ["train", "extra"], "line 3: column 'split' has 'extra': expected train, val or test"),
        ("split", ["train", ""], "line 3: column 'split' has ''"),
        ("fold", ["train", "3"], "line 3: column 'fold' has '3'"),
        ("partition", ["0", "2"], "line 2: column 'partition' has '0'"),
    ],
)
def test_a_split_that_is_unclear_is_asked(tmp_path, column, values, words):
    path = write_table(tmp_path, f"image,labels,{column}", *(f"{n}.jpg,dog,{value}" for n, value in enumerate(values)))
    with pytest.raises(QKSError, match=words):
        read_table(path)
    assert [row.part for row in read_table(path, TableOptions(split_column="none")).rows] == [None, None]


@pytest.mark.parametrize("column", ["dataset", "data_type", "Group", "purpose"])
def test_a_column_of_any_name_that_says_train_and_test_is_used(tmp_path, column):
    lines = [f"image,labels,{column}", "1.jpg,dog,Train", "2.jpg,dog,val", "3.jpg,dog,test"]
    path = write_table(tmp_path, *lines)
    table = read_table(path)
    assert [row.part for row in table.rows] == ["train", "val", "test"]
    assert any(f"split from '{column}' (rows: 1 train, 1 val, 1 test)" in remark for remark in table.remarks)
    assert not read_table(path, TableOptions(split_column="none")).parts


def test_a_column_that_says_the_same_everywhere_or_names_labels_is_no_split(tmp_path):
    path = write_table(tmp_path, "image,labels,source", "1.jpg,train,train", "2.jpg,test,train")
    table = read_table(path)
    assert not table.parts and table.label_names == ("train", "test")


def test_rows_that_deny_a_label_are_pointed_out(tmp_path):
    path = write_table(tmp_path, "image,label,confidence", "1.jpg,dog,1", "1.jpg,cat,0", "2.jpg,cat,1")
    (remark,) = [remark for remark in read_table(path).remarks if "is not used: the rows" in remark]
    assert remark.startswith("column 'confidence' is not used: the rows where it is 0 (1) count as showing their label")
    path = write_table(tmp_path, "image,label,confidence", "1.jpg,dog,1", "2.jpg,cat,1")
    assert not any("is not used: the rows" in remark for remark in read_table(path).remarks)


def test_folds_are_no_split_and_that_is_said(tmp_path):
    path = write_table(tmp_path, "image,labels,fold", "1.jpg,dog,0", "2.jpg,dog,1")
    table = read_table(path)
    assert table.parts == {}
    assert "column 'fold' has the values 0, 1, which are not train, val and test: it is not used" in table.remarks


def test_a_split_and_another_source_of_test_images_contradict(tmp_path):
    (tmp_path / "train.csv").write_text("image,labels,split\n1.jpg,dog,train\n2.jpg,dog,test\n")
    with pytest.raises(QKSError, match="has images of the part test .* there is also --test-part"):
        index_folder_splits(tmp_path, ("train", "test"), FolderOptions(test_part=0.5))
    (tmp_path / "test.csv").write_text("image,labels\n3.jpg,dog\n")
    with pytest.raises(QKSError, match="there is also the test table test.csv"):
        index_folder_splits(tmp_path, ("train", "test"), FolderOptions())
    indexes = index_folder_splits(tmp_path, ("train", "test"), FolderOptions(split_column="none"))
    assert [len(indexes[split]) for split in ("train", "test")] == [2, 1]


def test_no_validation_image_is_drawn_for_testing(tmp_path):
    rows = [f"{number}.jpg,dog,{'val' if number % 2 else 'train'}" for number in range(20)]
    (tmp_path / "train.csv").write_text("\n".join(["image,labels,split", *rows]))
    indexes = index_folder_splits(tmp_path, ("train", "test"), FolderOptions(test_part=0.5))
    assert len(indexes["test"]) == 5 and len(indexes["train"]) == 15 and len(indexes["train"].validation) == 10
    assert not {*indexes["test"].images} & {*indexes["train"].images}


def test_a_label_that_only_test_images_have_is_asked_about(tmp_path):
    (tmp_path / "train.csv").write_text("image,labels,split\n1.jpg,dog,train\n2.jpg,cat,test\n")
    with pytest.raises(QKSError, match="train.csv line 3: label 'cat' is neither in seen nor in unseen"):
        index_folder_splits(tmp_path, ("train", "test"), FolderOptions())
    (tmp_path / "unseen.txt").write_text("cat\n")
    indexes = index_folder_splits(tmp_path, ("train", "test"), FolderOptions(unseen="unseen.txt"))
    assert indexes["test"].label_names == ("dog", "cat") and indexes["test"].n_seen == 1


@pytest.mark.parametrize(
    "rows, options, expected",
    [
        (["1,0", "0,1"], {}, [[1, -1], [-1, 1]]),
        (["1,", ",1"], {}, [[1, -1], [-1, 1]]),
        (["1.0,0.0", "0.0,1.0"], {}, [[1, -1], [-1, 1]]),
        (["True,False", "FALSE,TRUE"], {}, [[1, -1], [-1, 1]]),
        (['"1,0","0,0"', '"0,0","1,0"'], {}, [[1, -1], [-1, 1]]),
        (["x,", ",x"], {}, [[1, -1], [-1, 1]]),
        (["1,-1", "-1,1"], {}, [[1, -1], [-1, 1]]),
        (["1,-1", "0,1"], {}, [[1, -1], [-1, 1]]),
        (["1,-1", "0,1"], {"not_annotated": "-1"}, [[1, 0], [-1, 1]]),
        (["1,-1", "0,1"], {"not_annotated": "0"}, [[1, -1], [0, 1]]),
        (["1,", "0,1"], {"not_annotated": "blank"}, [[1, 0], [-1, 1]]),
        (["1,nan", "0,-1"], {"not_annotated": "blank,-1"}, [[1, 0], [-1, 0]]),
    ],
    ids=str,
)
def test_columns_of_zeros_and_ones(tmp_path, rows, options, expected):
    lines = ["id,filename,dog,hot dog,note", *(f"{n},{n}.jpg,{row},text" for n, row in enumerate(rows))]
    write_table(tmp_path, *lines)
    index = index_folder(tmp_path, options=TableOptions(**options))
    assert index.label_names == ("dog", "hot dog")
    assert index.labels().tolist() == expected
    assert any("not used: id, note" in note for note in index.notes)


@pytest.mark.parametrize(
    "rows, options, words",
    [
        (["1,0", "0,2"], {}, "line 3: column 'cat' has 0 and 1, and here '2'"),
        (["1,0", "0,1"], {"not_annotated": "2"}, "not_annotated is '2'"),
    ],
)
def test_columns_of_zeros_and_ones_that_are_refused(tmp_path, rows, options, words):
    path = write_table(tmp_path, "filename,dog,cat", *(f"{n}.jpg,{row}" for n, row in enumerate(rows)))
    with pytest.raises(QKSError, match=words):
        read_table(path, TableOptions(**options))


def test_some_columns_of_zeros_and_ones_are_chosen(tmp_path):
    path = write_table(tmp_path, "filename,dog,cat,blurred", "1.jpg,1,0,1", "2.jpg,0,1,0")
    assert read_table(path, TableOptions(label_column="dog,cat")).label_names == ("dog", "cat")
    assert present(read_table(path, TableOptions(label_column="dog"))) == {"1.jpg": {"dog"}, "2.jpg": set()}


def test_a_row_per_pair_is_merged(tmp_path):
    lines = ["image,label", "1.jpg,dog", "2.jpg,cat", "1.jpg,cat", "1.jpg,dog", "3.jpg,", "./2.jpg,cow"]
    write_table(tmp_path, *lines)
    index = index_folder(tmp_path)
    assert index.images == ("1.jpg", "2.jpg", "3.jpg")
    assert index.label_names == ("dog", "cat", "cow")
    assert index.labels().tolist() == [[1, 1, -1], [-1, 1, 1], [-1, -1, -1]]
    assert index.notes[0] == "labels.csv: 6 rows of 3 images, whose labels are merged; 1 has no label"


def test_rows_that_contradict_each_other(tmp_path):
    write_table(tmp_path, "image,dog,cat", "1.jpg,1,0", "1.jpg,0,0")
    index = index_folder(tmp_path)
    assert index.labels().tolist() == [[0, -1]] and index.conflicts == 1
    write_table(tmp_path, "image,labels,split", "1.jpg,dog,train", "1.jpg,cat,test")
    with pytest.raises(QKSError, match="line 3: image '1.jpg' is in the part test, and in line 2 in train"):
        index_folder(tmp_path)


# --- paths ---


@pytest.mark.parametrize(
    "name, path, words",
    [
        ("/srv/ann/data/beach/1.jpg", "beach/1.jpg", "by the end of the path"),
        ("/data/upload/7/1.jpg", "beach/1.jpg", "by the end of the path"),
        ("/data/upload/7/3f2a1b9c-1.jpg", "beach/1.jpg", "by the end of the path"),
        ("/data/local-files/?d=pics/beach%2F1.jpg", "beach/1.jpg", "by the end of the path"),
        (r"C:\Users\ann\beach\1.jpg", "beach/1.jpg", "by the end of the path"),
        (r"\\server\share\street\2.jpg", "street/2.jpg", "by the end of the path"),
        ("https://host/a/b/1.jpg?size=3", "beach/1.jpg", "by the end of the path"),
        ("../beach/1.jpg", "beach/1.jpg", "by the end of the path"),
        (r"beach\1.jpg", "beach/1.jpg", ""),
        ("beach/1", "beach/1.jpg", "without the ending"),
        ("Beach/1.JPG", "beach/1.jpg", "in another spelling"),
        ("cafe\u0301.png", "caf\u00e9.png", "in another spelling"),
        ("1.jpg", "beach/1.jpg", "in another folder"),
        ("pictures/beach/1.jpg", "beach/1.jpg", "by the end of the path"),
        ("set-v1/beach/1.jpg", "beach/1.jpg", "by the end of the path"),
        ("my%20photo.jpg", "my photo.jpg", "in another spelling"),
        ("\u200bbeach/1.jpg", "beach/1.jpg", "in another spelling"),
    ],
)
def test_a_picture_is_found_and_that_is_said(tmp_path, name, path, words):
    write_images(tmp_path / "pictures", "beach/1.jpg", "beach/2.jpg", "street/2.jpg", "caf\u00e9.png", "my photo.jpg")
    write_table(tmp_path, "image,labels", f"{name},dog")
    index = index_folder(tmp_path, image_folder="pictures")
    assert index.images == (path,)
    assert not words or any(words in note and path in note for note in index.notes)


@pytest.mark.parametrize("name", ["/etc/2.jpg", r"C:\2.jpg", "/data/train/9.jpg", "../nowhere.jpg"])
def test_a_path_that_fits_no_file_or_several_is_refused(tmp_path, name):
    write_images(tmp_path, "beach/2.jpg", "street/2.jpg", "test/9.jpg")
    write_table(tmp_path, "image,labels", f"{name},dog")
    with pytest.raises(QKSError, match="labels.csv line 2: .* leaves the image folder"):
        index_folder(tmp_path)


def test_one_missing_picture_among_absolute_paths(tmp_path):
    write_images(tmp_path, "a/1.jpg", "a/2.jpg")
    paths = [rf"C:\Users\ann\pics\a\{number}.jpg" for number in (1, 2, 3)]
    (tmp_path / "test.csv").write_text("image,labels\n" + "".join(f"{path},dog\n" for path in paths))
    prepared = prepare(tmp_path, "folder", ["test"])
    assert prepared.splits["test"].images == ("a/1.jpg", "a/2.jpg", "a/3.jpg")
    assert prepared.missing == {"test": ["a/3.jpg"]}


def test_two_paths_with_one_end_are_refused(tmp_path):
    write_images(tmp_path, "1.jpg")
    write_table(tmp_path, "image,labels", "/a/1.jpg,dog", "/b/1.jpg,cat")
    with pytest.raises(QKSError, match="line 3: '/b/1.jpg' and '/a/1.jpg' both end like 1.jpg"):
        index_folder(tmp_path)


def test_a_missing_picture_names_its_neighbour(tmp_path):
    write_images(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg", "colour.png")
    (tmp_path / "test.csv").write_text("image,labels\na/1.jpg,dog\na/3.jpg,dog\n")
    prepared = str(prepare(tmp_path, "folder", ["test"]))
    assert "1 images are missing or empty, the first: a/3.jpg (there is b/3.jpg); training needs them" in prepared
    (tmp_path / "test.csv").write_text("image,labels\na/1.jpg,dog\ncolor.png,dog\n")
    assert "the first: color.png (there is colour.png)" in str(prepare(tmp_path, "folder", ["test"]))


def test_no_picture_at_all_is_an_error(tmp_path):
    write_images(tmp_path, "b/1.jpg", "b/2.jpg")
    (tmp_path / "test.csv").write_text("image,labels\na/1.jpg,dog\na/2.jpg,dog\n")
    words = r"none of the 2 test images is in .*, the first is a/1.jpg \(there is b/1.jpg\): .*correct the paths"
    with pytest.raises(QKSError, match=words):
        prepare(tmp_path, "folder", ["test"])
    assert not list(tmp_path.glob("*.npz"))


def test_unseen_labels_that_no_table_has_are_said(tmp_path):
    (tmp_path / "train.csv").write_text("image,labels\n1.jpg,bee\n2.jpg,dog\n")
    (tmp_path / "unseen.txt").write_text("bees\ndog\n")
    index = index_folder_splits(tmp_path, ("train",), FolderOptions(unseen="unseen.txt"))["train"]
    expected = "unseen.txt: 1 label of it is in no row of train.csv, such as 'bees'; is it 'bee', which is trained on?"
    assert expected in index.notes


@pytest.mark.parametrize("text", ["cat, dog", "['cat', 'dog']", "cat\n\ndog\n", "\ufeffcat\r\ndog"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_unseen_classes_of_voc_follow_the_rule(tmp_path, text, encoding):
    write_voc(tmp_path, _000001=annotation())
    path = tmp_path / "ImageSets/Main/test.txt"
    path.write_text("000001\n")
    (tmp_path / "unseen.txt").write_bytes(text.encode(encoding))
    index = index_voc_splits(tmp_path, ("test",), VOCOptions(unseen="unseen.txt"))["test"]
    assert index.label_names[index.n_seen :] == ("cat", "dog")


@pytest.mark.parametrize("options", [{}, {"min_bytes": 1}])
def test_coco_without_a_picture_is_an_error(tmp_path, options):
    write_coco(tmp_path, coco(objects=[(1, "person")]), "val2014")
    with pytest.raises(QKSError, match="none of the 3 test images is in .*val2014"):
        prepare(tmp_path, "coco", ["test"], division="all", **options)
    write_images(tmp_path / "val2014", "a.jpg")
    prepared = str(prepare(tmp_path, "coco", ["test"], division="all", **options))
    assert "2 images are missing" in prepared


def test_voc_without_a_picture_is_an_error(tmp_path):
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/test.txt").write_text("000001\n")
    (tmp_path / "Annotations/000001.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    with pytest.raises(QKSError, match="none of the 1 test images is in "):
        prepare(tmp_path, "voc", ["test"])


# --- encodings and dialects ---

ROWS = {"1.jpg": {"dog", "café"}, "2.jpg": {"dog"}, "3.jpg": set(), "4.jpg": {"café"}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings(tmp_path, encoding, end):
    lines = ["image,labels", *(f"{image},{'|'.join(sorted(labels))}" for image, labels in ROWS.items())]
    if encoding == "utf-32":
        (tmp_path / "labels.csv").write_bytes(end.join(lines).encode(encoding))
        path = tmp_path / "labels.csv"
    else:
        path = write_table(tmp_path, *lines, encoding=encoding, end=end)
    table = read_table(path)
    assert present(table) == ROWS
    said = [remark for remark in table.remarks if "is read as" in remark]
    assert bool(said) == (not encoding.startswith("utf-8"))
    if encoding == "cp1252":
        assert "such as 'café'" in said[0]


def test_an_encoding_is_given(tmp_path):
    path = write_table(tmp_path, "image,labels", "1.jpg,собака", encoding="cp1251")
    assert present(read_table(path)) != {"1.jpg": {"собака"}}  # taken for cp1252, which is said
    assert present(read_table(path, TableOptions(encoding="cp1251"))) == {"1.jpg": {"собака"}}
    with pytest.raises(QKSError, match="encoding is 'cp9'"):
        read_table(path, TableOptions(encoding="cp9"))
    with pytest.raises(QKSError, match="labels.csv line 2 is no text in utf-8"):
        read_table(path, TableOptions(encoding="utf-8"))


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"image,labels\n1.jpg,caf\xe9\n2.jpg,caf\xc3\xa9\n", "line 2 is no text in utf-8"),
        (b"PK\x03\x04rest", "line 1: the file is a workbook"),
        (b"image,labels\n1.jpg,d\0og\n", "line 2 holds the control character"),
        (b"image,labels\n1.jpg,d\x07og\n", "line 2 holds the control character"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (
            b'image,labels,note\n1.jpg,dog,"a\n2.jpg,cat,b\n3.jpg,cow,c"\n',
            "line 2 opens a quote that another line closes",
        ),
        (b'image,labels\n1.jpg,"dog\n2.jpg,cat\n3.jpg,cow"\n', "line 2 opens a quote that another line closes"),
        (b"image,labels\n1.jpg,dog,cat\n", "line 2 has 3 values: expected 2, image,labels; quote a value"),
        (b"image,labels\n1.jpg\n", "line 2 has 1 values"),
        (b'[{"image": "1.jpg", "labels": ["dog"]}]', "line 1 begins like JSON"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, raw, words):
    (tmp_path / "labels.csv").write_bytes(raw)
    with pytest.raises(QKSError, match="labels.csv " + words):
        read_table(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    "lines",
    [
        ["image\tlabels", "1.jpg\tdog|café", "2.jpg\tdog", "3.jpg\t", "4.jpg\tcafé"],
        ["sep=;", "image;labels", "1.jpg;dog|café", "2.jpg;dog", "3.jpg;", "4.jpg;café"],
        ["image;labels;;", "1.jpg;dog,café;;", "2.jpg;dog;;", "3.jpg;;;", "4.jpg;café;;"],
        ["image,labels,", '1.jpg,"dog,café",', "2.jpg,dog,", "3.jpg,,", "4.jpg,café,"],
        ["", "image,labels", "", "1.jpg,dog|café", "2.jpg,dog", " ", "3.jpg,", "4.jpg,café", "", ""],
        ["note,image,labels", '"two', 'lines, one row",1.jpg,dog|café', "x,2.jpg,dog", "y,3.jpg,", "z,4.jpg,café"],
        ['"image", "labels"', '"1.jpg", "dog, café"', '"2.jpg", "dog"', '"3.jpg", ""', '"4.jpg", "café"'],
        ["image|labels", "1.jpg|dog,café", "2.jpg|dog", "3.jpg|", "4.jpg|café"],
        ["image;labels", "1.jpg;['dog', 'café']", "2.jpg;['dog']", "3.jpg;[]", "4.jpg;['café']"],
        ["image;labels", '1.jpg;["dog", "café"]', '2.jpg;["dog"]', "3.jpg;nan", '4.jpg;["café"]'],
        ["image;labels", '1.jpg;"dog", café', '2.jpg;"dog"', "3.jpg;", "4.jpg;café"],
        ["image,labels", "1.jpg,['dog', 'café']", "2.jpg,['dog']", "3.jpg,[]", "4.jpg,['café']"],
        ["# by hand", "image,labels", "1.jpg,dog|café", "2.jpg,dog", "3.jpg,", "4.jpg,café"],
        ["image,labels  ", "1.jpg,dog|café  ", '2.jpg,"dog" ', "3.jpg, ", "4.jpg,café\t"],
    ],
    ids=str,
)
def test_dialects(tmp_path, lines):
    assert present(read_table(write_table(tmp_path, *lines))) == ROWS


def test_further_labels_in_further_cells(tmp_path):
    path = write_table(tmp_path, "image,labels", "1.jpg,dog,café", "2.jpg,dog", "3.jpg,", "4.jpg,café")
    assert present(read_table(path, TableOptions(label_separator=","))) == ROWS


def test_the_separator_of_columns_is_given(tmp_path):
    path = write_table(tmp_path, "image:labels", "1.jpg:dog|café", "2.jpg:dog", "3.jpg:", "4.jpg:café")
    assert present(read_table(path, TableOptions(column_separator=":"))) == ROWS
    with pytest.raises(QKSError, match="column_separator is 'ab'"):
        read_table(path, TableOptions(column_separator="ab"))


# --- twins ---


@pytest.mark.parametrize(
    "one, other",
    [
        ("hot dog", "hot\u00a0dog"),
        ("hot dog", "hot\u2009dog"),
        ("hot dog", "hot  dog"),
        ("hot dog", "\u200bhot dog"),
        ("hotdog", "hot\u200bdog"),
        ("hot dog", "hot dog\ufeff"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_names_that_look_the_same_are_one_label(tmp_path, one, other):
    path = write_table(tmp_path, "image,labels", f"1.jpg,{one}|sea", f"2.jpg,{other}")
    table = read_table(path)
    assert table.label_names == (one, "sea")
    (tmp_path / "unseen.txt").write_text(f"{other}\n")
    path.rename(tmp_path / "test.csv")
    index = index_folder_splits(tmp_path, ("test",), FolderOptions(unseen="unseen.txt"))["test"]
    assert index.label_names == ("sea", one) and index.n_seen == 1


@pytest.mark.parametrize(
    "other", ["hot_dog", "hot-dog", "Hot dog", "HOT_DOG", "hot \u2013 dog", "\uff28ot dog", "hot\u200d dog"]
)
def test_names_that_are_nearly_the_same_are_two_and_that_is_said(tmp_path, other):
    path = write_table(tmp_path, "image,labels", "1.jpg,hot dog", "2.jpg,hot dog", f"3.jpg,{other}")
    table = read_table(path)
    assert table.label_names == ("hot dog", other)
    assert any(repr(other) in remark and "--merge-twins" in remark for remark in table.remarks)
    merged = read_table(path, TableOptions(merge_twins=True))
    assert merged.label_names == ("hot dog",) and len(merged.rows) == 3
    assert any(f"{other!r} into 'hot dog'" in remark for remark in merged.remarks)


def test_twins_in_a_list_and_in_the_other_table(tmp_path):
    (tmp_path / "train.csv").write_text("image,labels\n1.jpg,Hot_Dog|sea\n")
    (tmp_path / "test.csv").write_text("image,labels\n2.jpg,hot dog|sea\n")
    with pytest.raises(QKSError, match="test.csv line 2: label 'hot dog' .* differs from 'Hot_Dog' .*--merge-twins"):
        index_folder_splits(tmp_path, ("train", "test"), FolderOptions())
    indexes = index_folder_splits(tmp_path, ("train", "test"), FolderOptions(merge_twins=True))
    assert indexes["test"].label_names == ("Hot_Dog", "sea") and indexes["test"].labels().tolist() == [[1, 1]]
    (tmp_path / "unseen.txt").write_text("hot dog\n")
    options = FolderOptions(unseen="unseen.txt", test="train.csv")
    notes = index_folder_splits(tmp_path, ("test",), options)["test"].notes
    assert any("'hot dog'" in note and "'Hot_Dog'" in note for note in notes)


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("a_b", "A b", True),
        ("a-b", "a\u2014b", True),
        ("ab", "a b", False),
        ("caf\u00e9", "cafe", False),
        ("_", "-", False),
    ],
)
def test_twin_keys(one, other, same):
    assert (twin_key(one) == twin_key(other)) == same


# --- any table, in any dialect ---

NAMES = ["dog", "cat", "hot dog", "café", "T-shirt", "it's", "New York", "Ärger", "bee", "sea (rough)", "a/b"]
CELLS = {
    "pipe": "|".join,
    "semicolon": "; ".join,
    "comma": ", ".join,
    "tab": "\t".join,
    "json": json.dumps,
    "utf-8 json": lambda labels: json.dumps(labels, ensure_ascii=False),
    "python": repr,
    "numpy": lambda labels: "[" + " ".join(map(repr, labels)) + "]",
    "choices": lambda labels: json.dumps({"choices": labels}),
    "text": write_label_text,
}


def write_cells(rows, column_separator, quote_all):
    "A table as a spreadsheet writes it."
    lines = []
    for row in rows:
        cells = []
        for cell in row:
            is_special = (
                quote_all or any(mark in cell for mark in (column_separator, '"', "\n")) or cell != cell.strip()
            )
            escaped = cell.replace('"', '""')
            cells.append(f'"{escaped}"' if is_special else cell)
        lines.append(column_separator.join(cells))
    return lines


@settings(max_examples=300, deadline=None)
@given(
    labels=st.lists(st.lists(st.sampled_from(NAMES), max_size=3, unique=True), min_size=1, max_size=8),
    dialect=st.sampled_from(sorted(CELLS)),
    column_separator=st.sampled_from([",", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quote_all=st.booleans(),
    layout=st.sampled_from(["rows", "flags", "pairs"]),
    names=st.sampled_from([("image", "labels"), ("File Name", "Tags"), ("path", "categories")]),
    seed=st.integers(0, 1000),
)
def test_any_table_in_any_dialect(
    tmp_path_factory, labels, dialect, column_separator, encoding, end, quote_all, layout, names, seed
):
    "Every name also stands alone once, so that no separator is in doubt; the labels that come back are the same."
    rng = random.Random(seed)
    content = {f"{number}.jpg": labels_of for number, labels_of in enumerate(labels)}
    content |= {f"alone {number}.jpg": [name] for number, name in enumerate(NAMES)}
    images = rng.sample(list(content), len(content))
    if layout == "flags":
        rows = [[names[0], *NAMES]] + [[image, *(str(int(n in content[image])) for n in NAMES)] for image in images]
    elif layout == "pairs":
        pairs = [(image, label) for image in images for label in content[image] or [""]]
        rows = [[names[0], names[1]], *map(list, rng.sample(pairs, len(pairs)))]
    else:
        rows = [["note", names[1], names[0]]]
        rows += [["x", CELLS[dialect](content[image]) if content[image] else "", image] for image in images]
    path = tmp_path_factory.mktemp("table") / "labels.csv"
    path.write_bytes("".join(line + end for line in write_cells(rows, column_separator, quote_all)).encode(encoding))
    assert present(read_table(path)) == {image: set(content[image]) for image in content}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1), min_size=1, unique=True)
)
def test_labels_written_are_labels_read(names):
    cleaned = [name for name in dict.fromkeys(names) if name.strip() == name and len(read_label_text('"x"').labels)]
    expected = list(read_label_cells(cleaned, ["line"] * len(cleaned), "none", "").labels)
    expected = [label for labels in expected for label in labels]
    if len(set(expected)) == len(expected):
        assert list(read_label_text(write_label_text(expected)).labels[0]) == expected


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_sentence(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("bytes") / "labels.csv"
    path.write_bytes(b"image,labels\n1.jpg,dog\n2.jpg,cat\n" + raw)
    try:
        assert present(read_table(path))["1.jpg"] >= {"dog"}
    except QKSError as error:
        assert str(error).startswith(f"{path} ") or "labels.csv" in str(error)


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--not-annotated", "-1"], [[1, 0], [-1, 1]]),
        (["--not-annotated", "-1,blank"], [[1, 0], [-1, 1]]),
        (["--not-annotated=-1"], [[1, 0], [-1, 1]]),
        (["--label-column", "dog"], [[1], [-1]]),
    ],
)
def test_options_of_the_command_line(tmp_path, words, expected):
    write_images(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "test.csv").write_text("image,dog,cat\n1.jpg,1,-1\n2.jpg,0,1\n")
    assert main(["data", "folder", "prepare", str(tmp_path), "--splits", "test", *words]) == 0
    assert open_split(tmp_path, "test").labels().tolist() == expected


@pytest.mark.parametrize(
    "separator, cell",
    [
        (";", "dog;cow"),
        ("|", "dog|cow"),
        (",", "dog, cow"),
        ("-", "dog-cow"),
        ("tab", "dog\tcow"),
        ("space", "dog cow"),
    ],
)
def test_separators_of_the_command_line(tmp_path, separator, cell):
    write_images(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "test.csv").write_text(f'image,labels\n1.jpg,"{cell}"\n2.jpg,dog\n')
    words = ["--splits", "test", "--label-separator", separator]
    assert main(["data", "folder", "prepare", str(tmp_path), *words]) == 0
    assert open_split(tmp_path, "test").label_names == ("dog", "cow")


MORE_NAMES = [*NAMES, "salt, pepper", "pepper", "a;b", "Washington, D.C."]


@settings(max_examples=600, deadline=None)
@given(
    labels=st.lists(st.lists(st.sampled_from(MORE_NAMES), max_size=3, unique=True), min_size=1, max_size=6),
    separator=st.sampled_from([", ", ",", ";", "; ", "|"]),
)
def test_no_label_is_changed_silently(tmp_path_factory, labels, separator):
    "Read as they were meant, or asked about, or split with a remark that says so, or listed as odd."
    rows = [[f"{number}.jpg", separator.join(labels_of)] for number, labels_of in enumerate(labels)]
    path = tmp_path_factory.mktemp("table") / "labels.csv"
    lines = write_cells([["image", "labels"], *rows], ",", quote_all=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    try:
        table = read_table(path)
    except QKSError as error:
        assert "--label-separator" in str(error)
        return
    meant = {f"{number}.jpg": set(labels_of) for number, labels_of in enumerate(labels)}
    if present(table) != meant:
        assert any("--label-separator" in remark or "contain a separator" in remark for remark in table.remarks)
