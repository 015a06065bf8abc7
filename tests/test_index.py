"""The sparse index against a slow plain reader, its blocks against whole files, and its file against damage."""

import os
import shutil
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from qks.core import QKSError
from qks.data import files
from qks.data.files import MAX_LINE_BYTES, read_image_list, read_names, read_table, table_blocks, text_lines
from qks.data.index import Index, LabelledImages, _read_arrays, load_index, sort_entries, without_unseen
from qks.data.nuswide import index_nuswide, read_nuswide

GOLDEN = Path(__file__).parent / "data/nuswide_tiny"


def plain_nuswide(root, split):
    "Images and labels of one split, read value by value."
    side = split.title()

    def words(name):
        return [line.strip() for line in (root / name).read_text().split("\n") if line.strip()]

    tags = words("NUS_WID_Tags/TagList1k.txt")
    unseen = words("Concepts81.txt")
    seen = [tag for tag in tags if tag not in unseen]
    images = [line.replace("\\", "/") for line in words(f"ImageList/{side}Imagelist.txt")]
    rows = [[int(value) for value in line.split()] for line in words(f"NUS_WID_Tags/{side}_Tags1k.dat")]
    labels = [[row[tags.index(tag)] for tag in seen] for row in rows]
    if split == "test":
        truth = [words(f"Groundtruth/TrainTestLabels/Labels_{concept}_{side}.txt") for concept in unseen]
        labels = [row + [int(column[i]) for column in truth] for i, row in enumerate(labels)]
    kept = [i for i, row in enumerate(labels) if any(row)]
    return [images[i] for i in kept], np.array([labels[i] for i in kept]) * 2 - 1


@pytest.fixture
def raw(tmp_path):
    return Path(shutil.copytree(GOLDEN / "raw", tmp_path / "raw"))


@pytest.fixture
def small(tmp_path):
    "An index of three images with a label of each kind."
    (tmp_path / "raw.txt").write_text("0 1\n")
    return Index(
        tmp_path,
        ("a/1.jpg", "é.jpg", "3.jpg"),
        np.array([0, 2, 2, 5]),
        np.array([0, 2, 0, 1, 2], np.int32),
        np.array([1, -1, 1, 0, 1], np.int8),
        ("/m/1", "/m/2", "/m/3"),
        ("cat", "cat", "dög"),
        n_seen=2,
        absent=0,
        image_folder="test",
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_index_equals_a_plain_reader(split):
    index = index_nuswide(GOLDEN / "raw", split)
    data = read_nuswide(GOLDEN / "raw", split)
    images, labels = plain_nuswide(GOLDEN / "raw", split)
    assert list(index.images) == images == list(data.images)
    assert np.array_equal(index.labels(), labels)
    assert np.array_equal(data.labels, labels)
    assert index.labels().dtype == np.int8
    assert index.label_ids == index.label_names == data.label_names and index.n_seen == data.n_seen == 925
    assert np.array_equal(index.positives(), (labels == 1).sum(axis=0)) and (index.values == 1).all()
    assert index.path(0) == data.path(0)


@pytest.mark.parametrize("size", [1, 7, 2001, 2002, 4003, 1 << 20])
def test_blocks_of_any_size_give_one_table(size):
    path = GOLDEN / "raw/NUS_WID_Tags/Train_Tags1k.dat"
    parts = []
    first = 0
    for rows, row, column in table_blocks(path, 1000, size):
        parts += list(zip((row + first).tolist(), column.tolist()))
        first += rows
    assert first == 40 and parts == [tuple(place) for place in np.argwhere(read_table(path, 1000)).tolist()]


@pytest.mark.parametrize(
    "raw, expected",
    [
        (b"0 1\n1 1\n", [[0, 1], [1, 1]]),
        (b"0 1\r\n1 1\r\n", [[0, 1], [1, 1]]),
        (b"0\t1\t\n1\t1\t\n\n \n", [[0, 1], [1, 1]]),
        (b"0 1\n1  1\n0 0", [[0, 1], [1, 1], [0, 0]]),
        (b"0 1 \n1 1\r\n", [[0, 1], [1, 1]]),
    ],
)
@pytest.mark.parametrize("size", [1, 5, 100])
def test_small_tables(tmp_path, monkeypatch, raw, expected, size):
    (tmp_path / "t.dat").write_bytes(raw)
    monkeypatch.setattr(files.table_blocks, "__defaults__", (size,))
    assert read_table(tmp_path / "t.dat", 2).tolist() == expected


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"0 1\n\n1 1\n", "line 2"),
        (b"0 1\n0 1\n0 1 1\n", "line 3 has 3 values: expected 2"),
        (b"0 1\n0 1\n0 x\n", "line 3 holds 'x'"),
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"0 1\n1\xff\n", "line 2 has 1 values"),
        (b"0 1\n\xff 1\n", "line 2 holds"),
        (b"\x00 1\n", "line 1 holds"),
        (b"0 1\n0!1\n", "line 2 has 1 values"),
        (b"0 1 \n0 1!\n", "line 2 holds '1!'"),
        (b"0\t1\t\t\n0\t1\t\x08\n", "line 2 has 3 values"),
    ],
)  # one bit from a blank
@pytest.mark.parametrize("size", [1, 5, 100])
def test_broken_tables_name_the_line_whatever_the_block(tmp_path, monkeypatch, raw, message, size):
    (tmp_path / "t.dat").write_bytes(raw)
    monkeypatch.setattr(files.table_blocks, "__defaults__", (size,))
    with pytest.raises(QKSError, match=f"t.dat {message}"):
        read_table(tmp_path / "t.dat", 2)


def test_a_line_without_end_is_refused(tmp_path):
    path = tmp_path / "t.dat"
    path.write_bytes(b"0 1\n" + b" " * (MAX_LINE_BYTES + 1))
    with pytest.raises(QKSError, match="line 2 has more than 1,000,000 bytes"):
        list(table_blocks(path, 2, size=1000))
    with pytest.raises(QKSError, match="line 2 has more than"):
        list(text_lines(path))
    path.write_bytes(b"ok\n" + b"x" * 5000)
    with pytest.raises(QKSError, match="line 2 has 5,000 characters"):
        read_names(path)
    with pytest.raises(QKSError, match="line 2: .* has 5,000 characters"):
        read_image_list(path)


@pytest.mark.parametrize(
    "line, message",
    [
        (b"/etc/passwd", "leaves"),
        (b"..\\x.jpg", "leaves"),
        (b"a/../../x.jpg", "leaves"),
        (b"C:\\x.jpg", "leaves"),
        (b"c:x.jpg", "leaves"),
        (b"\\\\server\\x.jpg", "leaves"),
        (b"a/.. /x.jpg", "leaves"),
        (b".", "leaves"),
        (b"a\x00.jpg", "control character"),
        (b"a\rb.jpg", "control character"),
        (b"caf\xe9.jpg", "line 3 is not UTF-8 text"),
        (b"a\\1.jpg", "'a/1.jpg' is already in line 1"),
        (b"./a//1.jpg", "is already in line 1"),
    ],
)
def test_image_lists_that_are_refused(tmp_path, line, message):
    (tmp_path / "list.txt").write_bytes(b"a/1.jpg\na/2.jpg\n" + line + b"\nb.jpg\n")
    with pytest.raises(QKSError, match="list.txt") as error:
        read_image_list(tmp_path / "list.txt")
    assert message in str(error.value) and "line 3" in str(error.value)


def test_concepts_cannot_name_files_elsewhere(raw):
    (raw / "Concepts81.txt").write_text("bear\n../../secret\n")
    with pytest.raises(QKSError, match="Concepts81.txt line 2: '../../secret' cannot be part of a file name"):
        index_nuswide(raw, "test")


def test_labels_subset_and_dense(small):
    expected = np.array([[1, 0, -1], [0, 0, 0], [1, 0, 1]])
    assert len(small) == 3 and np.array_equal(small.labels(), expected)
    for rows in ([2, 0], [1], [], np.array([2, 2, 1])):
        assert np.array_equal(small.labels(rows), expected[np.asarray(rows, int)])
        part = small.subset(rows)
        assert np.array_equal(part.labels(), expected[np.asarray(rows, int)])
        assert part.images == tuple(small.images[i] for i in rows)
    assert small.positives().tolist() == [2, 0, 1] and small.path(1) == small.root / "test/é.jpg"
    data = small.dense()
    assert isinstance(data, LabelledImages)
    assert np.array_equal(data.labels, expected)
    assert data.label_names == ("cat", "cat", "dög")
    assert data.n_seen == 2 and data.image_folder == "test" and data.images == small.images
    with pytest.raises(QKSError, match="over the limit"):
        small.dense(max_bytes=8)


def test_entries_in_any_order():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 20, 300)
    columns = rng.integers(0, 7, 300)
    values = rng.choice([-1, 1], 300)
    packed = sort_entries(rows, columns, values, 20, 7)
    expected = np.zeros((20, 7), int)
    for r, c, v in zip(rows, columns, values):
        expected[r, c] = v if expected[r, c] == 0 else max(v, expected[r, c])
    index = Index(
        Path("x"),
        tuple(f"{i}.jpg" for i in range(20)),
        **packed,
        label_ids=tuple("abcdefg"),
        label_names=tuple("abcdefg"),
        n_seen=3,
        absent=0,
    )
    assert np.array_equal(index.labels(), expected)


@pytest.mark.parametrize(
    "change",
    [
        dict(offsets=np.array([0, 2, 2])),
        dict(offsets=np.array([0, 2, 1, 5])),
        dict(offsets=np.array([1, 2, 2, 5])),
        dict(offsets=np.array([0, 2, 2, 5], np.int32)),
        dict(columns=np.array([0, 2, 0, 1, 3], np.int32)),
        dict(columns=np.array([0, 2, 0, 0, 2], np.int32)),
        dict(columns=np.array([-1, 2, 0, 1, 2], np.int32)),
        dict(offsets=np.array([0, 0, 2, 5]), columns=np.array([0, 2, 0, 2, 1], np.int32)),  # the first has no entry
        dict(values=np.array([1, 2, 1, 1, 1], np.int8)),
        dict(values=np.array([1, 1], np.int8)),
        dict(label_ids=("a", "a", "b")),
        dict(label_names=("a",)),
        dict(n_seen=4),
        dict(absent=1),
    ],
)
def test_arrays_that_disagree_are_refused(small, change):
    with pytest.raises(QKSError, match="does not fit together"):
        replace(small, **change)


def test_images_of_unseen_labels_alone_are_not_trained_on(small):
    index = replace(
        small,
        offsets=np.array([0, 1, 1, 3]),
        columns=np.array([2, 0, 2], np.int32),
        values=np.array([1, 1, 1], np.int8),
    )
    seen = without_unseen(index)
    assert seen.images == small.images[1:]  # one without any entry stays: what is not stored has a value too
    assert seen.labels().tolist() == [[0, 0], [1, 0]]


def same(a, b):
    for field in fields(Index):
        one = getattr(a, field.name)
        two = getattr(b, field.name)
        assert np.array_equal(one, two) and one.dtype == two.dtype if isinstance(one, np.ndarray) else one == two, (
            field.name
        )


def test_saved_and_loaded(small, tmp_path):
    small = replace(small, conflicts=2, first_conflict="a.csv lines 3 and 4")
    assert small.save(tmp_path / "index.npz") == tmp_path / "index.npz"
    assert sorted(os.listdir(tmp_path)) == [
        "index.npz",
        "raw.txt",
    ]
    same(Index.load(tmp_path / "index.npz"), small)
    elsewhere = Path(shutil.copytree(tmp_path, tmp_path.parent / (tmp_path.name + "_moved")))
    assert Index.load(elsewhere / "index.npz").path(0) == elsewhere / "test/a/1.jpg"
    assert Index.load(elsewhere / "index.npz", root="other").path(0) == Path("other/test/a/1.jpg")
    nothing = small.subset([])
    same(load_index(nothing.save(tmp_path / "nothing.npz")), nothing)


def test_nuswide_index_survives_saving(raw):
    index = index_nuswide(raw, "test")
    assert len(index.sources) == 4 + 81 and not any(source.startswith("/") for source in index.sources)
    same(Index.load(index.save(raw / "test.npz")), index)
    assert str(raw).encode() not in b"".join(array.tobytes() for array in _read_arrays(raw / "test.npz").values())


@pytest.mark.parametrize(
    "name", ["ImageList/TestImagelist.txt", "Concepts81.txt", "Groundtruth/TrainTestLabels/Labels_bear_Test.txt"]
)
def test_a_stale_index_is_noticed(raw, name):
    path = index_nuswide(raw, "test").save(raw / "test.npz")
    Index.load(path)
    content = (raw / name).read_bytes()
    (raw / name).write_bytes(content.swapcase() if content.swapcase() != content else content.replace(b"0", b"1"))
    with pytest.raises(QKSError, match="is stale"):
        Index.load(path)
    (raw / name).unlink()
    with pytest.raises(QKSError, match=f"{Path(name).name} cannot be read .* the index was made from it"):
        Index.load(path)


def test_a_damaged_index_is_refused(small, tmp_path):
    path = small.save(tmp_path / "index.npz")
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):  # cut anywhere
        path.write_bytes(whole[: rng.integers(len(whole))])
        with pytest.raises(QKSError, match="index.npz"):
            Index.load(path)
    for _ in range(60):  # one byte changed: refused, or without effect (a time stamp inside the archive)
        raw = bytearray(whole)
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        path.write_bytes(raw)
        try:
            same(Index.load(path), small)
        except QKSError as error:
            assert "index.npz" in str(error)
    for raw in (b"", b"no zip", np.zeros(3).tobytes()):
        path.write_bytes(raw)
        with pytest.raises(QKSError, match="damaged"):
            Index.load(path)
    with pytest.raises(QKSError, match="cannot be read"):
        Index.load(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.update(numbers=np.append(3, a["numbers"][1:])), "format 3"),
        (lambda a: a.update(numbers=a["numbers"][:2]), "damaged"),
        (lambda a: a.update(numbers=a["numbers"].astype(float)), "damaged"),
        (lambda a: a.pop("images_at"), "damaged"),
        (lambda a: a.update(images_at=a["images_at"][:-1]), "damaged"),
        (lambda a: a.update(images_at=a["images_at"][::-1]), "damaged"),
        (lambda a: a.update(label_ids=a["label_ids"] | 128), "damaged"),
        (lambda a: a.update(columns=a["columns"].astype(object)), "damaged"),
        (lambda a: a.update(columns=a["columns"] + 1), "damaged"),
        (lambda a: a.update(images=np.frombuffer(a["images"].tobytes().replace(b"a/1", b"/11"), np.uint8)), "leaves"),
        (lambda a: a.update(images=np.frombuffer(a["images"].tobytes().replace(b"a/1.", b"../."), np.uint8)), "leaves"),
        (
            lambda a: a.update(images=np.frombuffer(a["images"].tobytes().replace(b"a/1", b"a\0001"), np.uint8)),
            "no plain path",
        ),
        (lambda a: a.update(words=np.frombuffer(a["words"].tobytes().replace(b"test", b"/etc"), np.uint8)), "leaves"),
    ],
)
def test_a_forged_index_is_refused(small, tmp_path, change, message):
    path = small.save(tmp_path / "index.npz")
    arrays = _read_arrays(path)
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(QKSError, match=message):
        Index.load(path)


def test_saving_fails_whole(small, tmp_path, monkeypatch):
    path = small.save(tmp_path / "index.npz")
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(QKSError, match="No space left"):
        small.save(path)
    assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["index.npz", "raw.txt"]
