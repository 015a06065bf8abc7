"""Small files as those of Open Images: MIDs and names, three kinds of entry, contradictions, every kind of damage."""

import re
from pathlib import Path

import numpy as np
import pytest

from qks.core import QKSError
from qks.data.index import Index
from qks.data.openimages import index_openimages, read_openimages_labels

NAMES = {
    "/m/01": "Jaguar",
    "/m/02": "Jaguar",
    "/m/03": "Bat",
    "/m/04": "Bat",
    "/m/05": "Ducks, geese and swans",
    "/m/06": "Tree",
}
SEEN = ["/m/01", "/m/02", "/m/03"]
UNSEEN = ["/m/04", "/m/05"]
HEADER = "ImageID,Source,LabelName,Confidence"
TEST = "test/test-annotations-human-imagelabels.csv"
image = "{:016x}".format


def write_tree(root, rows, split="test", names=NAMES, end="\n"):
    "rows: (image number, MID, confidence)"
    (root / split).mkdir(parents=True, exist_ok=True)

    def put(name, lines):
        (root / name).write_bytes("".join(line + end for line in lines).encode())

    put(
        "class-descriptions.csv", [f'{mid},"{name}"' if "," in name else f"{mid},{name}" for mid, name in names.items()]
    )
    put("classes-trainable.txt", SEEN)
    put("unseen_400.txt", UNSEEN)
    put(
        f"{split}/{split}-annotations-human-imagelabels.csv",
        [HEADER, *(f"{image(i)},verification,{mid},{value}" for i, mid, value in rows)],
    )
    return root


def edit(path, old, new):
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1))


@pytest.fixture
def root(tmp_path):
    return write_tree(
        tmp_path / "oi",
        [
            (1, "/m/01", 1),
            (1, "/m/02", 0),
            (1, "/m/04", 1),
            (2, "/m/05", 1),
            (2, "/m/03", 0),
            (2, "/m/06", 1),
            (1, "/m/05", 0),
        ],
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\t \r\n"])
def test_positive_negative_and_not_annotated(tmp_path, end):
    root = write_tree(
        tmp_path,
        [(9, "/m/01", 1), (9, "/m/02", 0), (9, "/m/04", "1.0"), (5, "/m/05", 1), (5, "/m/03", "0.0"), (9, "/m/05", 0)],
        end=end,
    )
    index = index_openimages(root, "test")
    assert index.images == (f"{image(9)}.jpg", f"{image(5)}.jpg")
    assert index.absent == 0
    assert index.path(0) == root / "test" / f"{image(9)}.jpg"
    assert index.labels().tolist() == [[1, -1, 0, 1, -1], [0, 0, -1, 0, 1]]
    assert index.n_seen == 3 and index.conflicts == 0 and index.first_conflict == ""


def test_labels_are_keyed_by_mid(root):
    index = index_openimages(root, "test")
    assert index.label_ids == tuple(SEEN + UNSEEN)
    assert index.label_names == ("Jaguar", "Jaguar", "Bat", "Bat", "Ducks, geese and swans")
    assert index.positives().tolist() == [1, 0, 0, 1, 1]
    data = index.dense()
    assert data.label_names == index.label_names and np.array_equal(data.labels, index.labels())


def test_training_sees_no_unseen_label(tmp_path):
    root = write_tree(tmp_path, [(1, "/m/04", 1), (2, "/m/03", 1), (2, "/m/04", 1), (3, "/m/06", 1)], split="train")
    index = index_openimages(root, "train")
    assert index.label_ids == tuple(SEEN)
    assert index.images == (f"{image(2)}.jpg",)
    assert index.labels().tolist() == [[0, 0, 1]]


def test_contradictions_are_counted_and_located(tmp_path):
    rows = [
        (1, "/m/01", 1),
        (2, "/m/03", 0),
        (1, "/m/02", 1),
        (2, "/m/03", 1),
        (1, "/m/01", 1),
        (2, "/m/01", 1),
        (1, "/m/01", 0),
        (3, "/m/06", 1),
        (3, "/m/06", 0),
    ]
    index = index_openimages(write_tree(tmp_path, rows), "test")
    assert index.conflicts == 2 and index.labels().tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert index.first_conflict == f"{TEST} lines 2 and 8: image {image(1)}, label /m/01"
    again = Index.load(index.save(tmp_path / "test.npz"))
    assert again.conflicts == 2 and again.first_conflict == index.first_conflict


def test_against_a_plain_dictionary(tmp_path):
    rng = np.random.default_rng(3)
    rows = [
        (int(i), str(mid), int(value))
        for i, mid, value in zip(rng.integers(0, 40, 400), rng.choice(list(NAMES), 400), rng.integers(0, 2, 400))
    ]
    index = index_openimages(write_tree(tmp_path, rows), "test")
    verdicts = {}
    order = []
    for i, mid, value in rows:
        order += [i] if i not in order else []
        if mid in SEEN + UNSEEN:
            verdicts.setdefault((i, mid), set()).add(value)
    agreed = {key: min(values) * 2 - 1 for key, values in verdicts.items() if len(values) == 1}
    kept = [i for i in order if any(key[0] == i for key in agreed)]
    assert index.images == tuple(f"{image(i)}.jpg" for i in kept) and index.conflicts == len(verdicts) - len(agreed) > 0
    assert index.labels().tolist() == [[agreed.get((i, mid), 0) for mid in SEEN + UNSEEN] for i in kept]


def test_lists_may_lie_in_the_version_folder(root):
    expected = index_openimages(root, "test")
    (root / "2018_04").mkdir()
    for name in ("class-descriptions.csv", "classes-trainable.txt", "unseen_400.txt", "test"):
        (root / name).rename(root / "2018_04" / name)
    index = index_openimages(root, "test")
    assert np.array_equal(index.labels(), expected.labels()) and index.sources[0] == f"2018_04/{TEST}"


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        (TEST, b"ImageID,", b"Image,", "line 1 is 'Image,Source,LabelName,Confidence': expected the header"),
        (TEST, b"0001,verification,/m/02,0", b"0001,verification,/m/02", "line 3 has 3 values: expected 4"),
        (TEST, b"0001,verification,/m/02,0", b"0001,verification,/m/02,0,0", "line 3 has 5 values: expected 4"),
        (TEST, b"/m/02,0", b"/m/02,0.7", "line 3: confidence is '0.7': expected 1 or 0"),
        (TEST, b"/m/02,0", b"/m/77,0", "line 3: '/m/77' is no class of class-descriptions.csv"),
        (TEST, b"0000000000000002", b"../../0000000002", "line 5: '../../0000000002' is no image id"),
        (TEST, b"0000000000000002,", b"\n0000000000000002,", "line 5 is blank"),
        (TEST, b"0000000000000002,", b'"0000000000000002,', "line 5"),
        (TEST, b"verification,/m/02,0", b'"verification,/m/02,0', "line 3"),
        (TEST, b"/m/02", b"/m/\xff02", "line 3 is not UTF-8 text"),
        (TEST, b"/m/02", b"/m/\x0002", "line 3 holds the control character"),
        ("class-descriptions.csv", b"/m/02", b"/m/01", "line 2: /m/01 is already in line 1"),
        ("class-descriptions.csv", b"/m/02,Jaguar", b"/m/02, ", "line 2"),
        ("class-descriptions.csv", b"/m/02,", b"Jaguar,", "line 2: 'Jaguar' is no MID"),
        (
            "class-descriptions.csv",
            b'"Ducks, geese and swans"',
            b"Ducks, geese and swans",
            "line 5 has 3 values: expected 2",
        ),
        ("classes-trainable.txt", b"/m/02", b"/m/01", "line 2: '/m/01' is already in line 1"),
        ("classes-trainable.txt", b"/m/02", b"/m/99", "line 2: '/m/99' is not in class-descriptions.csv"),
        ("unseen_400.txt", b"/m/05", b"/m/01", "line 2: /m/01 is also in classes-trainable.txt"),
        ("unseen_400.txt", b"/m/05", b"399", "line 2: '399' is not in class-descriptions.csv"),
    ],
)
def test_broken_files(root, name, old, new, message):
    edit(root / name, old, new)
    with pytest.raises(QKSError, match=re.escape(Path(name).name) + ".*" + re.escape(message)):
        index_openimages(root, "test")


@pytest.mark.parametrize("name", ["class-descriptions.csv", "classes-trainable.txt", "unseen_400.txt", TEST])
def test_missing_and_empty_files(root, name):
    (root / name).write_bytes(b"")
    with pytest.raises(QKSError, match=f"{Path(name).name} is empty"):
        index_openimages(root, "test")
    (root / name).unlink()
    with pytest.raises(QKSError, match=f"{Path(name).name} is missing: expected it at"):
        index_openimages(root, "test")


def test_a_header_alone(root):
    (root / TEST).write_text(HEADER + "\n")
    with pytest.raises(QKSError, match="no row below its header"):
        index_openimages(root, "test")


def test_another_list_of_unseen_labels(root):
    (root / "two.txt").write_text("/m/06\n")
    assert read_openimages_labels(root, "two.txt")[1] == ["/m/06"]
    with pytest.raises(QKSError, match="two.txt is missing: looked for it at"):
        read_openimages_labels(root, "../two.txt")
