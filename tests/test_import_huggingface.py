"""`qks data import`: imagefolder metadata, Parquet and Arrow with the pictures inside."""

import builtins
import io
import json

import pytest
from importing import check_test_part, import_and_prepare, refused, write, write_pictures
from PIL import Image

pa = pytest.importorskip("pyarrow", reason="Parquet and Arrow need pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def picture(number, kind="JPEG"):
    "The bytes of a small picture."
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, 9, 9)).save(stream, kind)
    return stream.getvalue()


IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
CLASS = {"names": ["cat", "dog", "hot dog"], "_type": "ClassLabel"}


def table(labels, kind=None, feature=CLASS, paths=True, first=0):
    "Rows as the datasets library writes them, with the description of their columns."
    cells = [{"bytes": picture(first + n), "path": f"{first + n}.jpg" if paths else None} for n in range(len(labels))]
    schema = pa.schema([("image", IMAGE), ("label", kind or pa.int64()), ("width", pa.int64())])
    features = {"image": {"_type": "Image"}, "label": feature, "width": {"dtype": "int64", "_type": "Value"}}
    if feature is not None:
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return pa.table({"image": cells, "label": labels, "width": [16] * len(labels)}, schema=schema)


def write_parquet(root, name, rows, **options):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, root / name, **options)


def test_metadata_jsonl(tmp_path, capsys):
    rows = [
        {"file_name": "1.jpg", "labels": ["cat", "sofa"]},
        {"file_name": "sub\\2.JPG", "labels": []},
        {"file_name": "3.jpg", "labels": None},
        {"file_name": "gone.jpg", "labels": ["cat"]},
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    write(tmp_path / "set", "train/metadata.jsonl", "\ufeff" + text)
    write(tmp_path / "set", "test/metadata.jsonl", json.dumps({"file_name": "1.jpg", "labels": ["cat"]}))
    write_pictures(tmp_path / "set", "train/1.jpg", "train/sub/2.jpg", "train/3.jpg", "test/1.jpg", "test/4.jpg")
    train, test = import_and_prepare(tmp_path / "set", tmp_path / "out")
    assert train == {"train/1.jpg": ["cat", "sofa"], "train/sub/2.jpg": []} and test == {"test/1.jpg": ["cat"]}
    said = capsys.readouterr().out
    assert "(1): gone.jpg" in said and "pictures that no annotation names (1): test/4.jpg" in said
    assert "takes them as showing none of the labels) (1): 3.jpg" in said
    check_test_part(tmp_path / "set", tmp_path / "two", 3, "--splits", "ignore")


def test_metadata_csv_objects_and_captions(tmp_path, capsys):
    write(tmp_path / "a", "metadata.csv", "file_name,label\n1.jpg,cat\n2.jpg,dog\n")
    write_pictures(tmp_path / "a", "1.jpg", "2.jpg")
    assert import_and_prepare(tmp_path / "a", tmp_path / "one")[0] == {"1.jpg": ["cat"], "2.jpg": ["dog"]}
    objects = {"bbox": [[0, 0, 1, 1], [1, 1, 2, 2]], "category": ["cat", "dog"]}
    write(tmp_path / "b", "metadata.jsonl", json.dumps({"file_name": "1.jpg", "objects": objects, "text": "a cat"}))
    write_pictures(tmp_path / "b", "1.jpg")
    assert import_and_prepare(tmp_path / "b", tmp_path / "two")[0] == {"1.jpg": ["cat", "dog"]}
    assert "not used: text" in capsys.readouterr().out
    write(tmp_path / "b", "metadata.jsonl", json.dumps({"file_name": "1.jpg", "text": "a cat"}))
    assert "no column of labels (text)" in refused(capsys, tmp_path / "b", tmp_path / "three")


@pytest.mark.parametrize("paths", [True, False])
def test_parquet_with_pictures_inside(tmp_path, paths, capsys):
    root = tmp_path / "set"
    write_parquet(root, "data/train-00000-of-00002.parquet", table([0, 1, -1], paths=paths), row_group_size=2)
    write_parquet(root, "data/train-00001-of-00002.parquet", table([2, 0, 1], paths=paths, first=50), row_group_size=2)
    write_parquet(root, "data/test-00000-of-00001.parquet", table([1, 0], paths=paths, first=90))
    train, test = import_and_prepare(root, tmp_path / "out")
    assert list(train.values()) == [["cat"], ["dog"], ["hot dog"], ["cat"], ["dog"]]
    assert list(test.values()) == [["dog"], ["cat"]]
    written = [(tmp_path / "out/pictures" / name).read_bytes() for name in (*train, *test)]
    assert written == [picture(n) for n in (0, 1, 50, 51, 52, 90, 91)]
    assert all(name.endswith(".jpg") for name in (*train, *test))
    assert "without annotation" in capsys.readouterr().out
    check_test_part(root, tmp_path / "two", 7, "--splits", "ignore")


def test_parquet_with_several_labels(tmp_path):
    many = {"feature": CLASS, "_type": "Sequence"}
    write_parquet(tmp_path / "a", "train.parquet", table([[0, 2], [], None], pa.list_(pa.int64()), many))
    assert list(import_and_prepare(tmp_path / "a", tmp_path / "one")[0].values()) == [["cat", "hot dog"], []]
    write_parquet(tmp_path / "b", "train.parquet", table(["cat", "dog, brown"], pa.string(), None))
    assert list(import_and_prepare(tmp_path / "b", tmp_path / "two")[0].values()) == [["cat"], ["dog, brown"]]


def test_names_from_the_card_or_a_list(tmp_path, capsys):
    root = tmp_path / "set"
    write_parquet(root, "data/train-0.parquet", table([0, 1], feature=None))
    assert "--classes FILE" in refused(capsys, root, tmp_path / "out")
    names = write(tmp_path, "names.txt", "owl\nfox\n")
    assert list(import_and_prepare(root, tmp_path / "a", "--classes", names)[0].values()) == [["owl"], ["fox"]]
    lines = [
        "---",
        "dataset_info:",
        "  features:",
        "  - name: label",
        "    dtype:",
        "      class_label:",
        "        names:",
    ]
    write(root, "README.md", "\n".join([*lines, "          '0': yes", "          '1': no", "---", "# Pets"]))
    assert list(import_and_prepare(root, tmp_path / "b")[0].values()) == [["yes"], ["no"]]


def test_a_saved_arrow_folder(tmp_path):
    "As `DatasetDict.save_to_disk` leaves it: the classes are in dataset_info.json."
    root = tmp_path / "saved"
    write(root, "dataset_dict.json", {"splits": ["train", "test"]})
    for split, labels in (("train", [0, 1, 2]), ("test", [2, 0])):
        rows = table(labels, feature=None, paths=False, first=len(labels))
        write(root, f"{split}/dataset_info.json", {"features": {"label": CLASS}})
        write(root, f"{split}/state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
        path = root / split / "data-00000-of-00001.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as stream:
            stream.write_table(rows, max_chunksize=2)
    train, test = import_and_prepare(root, tmp_path / "out")
    assert list(train.values()) == [["cat"], ["dog"], ["hot dog"]] and list(test.values()) == [["hot dog"], ["cat"]]
    assert (tmp_path / "out/pictures" / list(test)[1]).read_bytes() == picture(3)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch, capsys):
    write_parquet(tmp_path / "set", "train.parquet", table([0, 1]))
    found = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'qks[parquet]'" in refused(capsys, tmp_path / "set", tmp_path / "out")


def test_damaged_and_strange_files(tmp_path, capsys):
    write(tmp_path / "a", "train.parquet", b"PAR1 and nothing else")
    assert "cannot be read" in refused(capsys, tmp_path / "a", tmp_path / "out")
    write_parquet(tmp_path / "b", "train.parquet", pa.table({"text": ["a"], "label": [0]}))
    assert "expected one column of pictures" in refused(capsys, tmp_path / "b", tmp_path / "out")
    write(tmp_path / "c", "metadata.jsonl", '{"file_name": "1.jpg"}\n{"file_name":')
    assert "metadata.jsonl line 2 is not JSON" in refused(capsys, tmp_path / "c", tmp_path / "out")
