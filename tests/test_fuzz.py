"""Mutated raw files: each reader gives the right index or one QKSError naming the file, and opens no file outside.

A run is the same each time. `WANTED` mutated files go through the readers; the last test counts them.
"""

import csv
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import unicodedata
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from qks.core import QKSError
from qks.data.coco import index_coco
from qks.data.folder import index_folder
from qks.data.index import load_index
from qks.data.nuswide import index_nuswide, read_nuswide
from qks.data.openimages import index_openimages
from qks.data.voc import VOC_CLASSES, index_voc

WANTED = 2000
SECONDS = 20  # mutated files in all; how long any of them may take
COUNT = {"files": 0, "read": 0, "refused": 0}
fuzz = settings(
    max_examples=340,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)

# --- small trees in the official formats ---

TAGS = ["sky", "bear", "sea", "tree"]
UNSEEN = ["bear", "sun"]
IMAGES = [rf"zoo\{i:04}_{i * 37}.jpg" for i in range(6)]
ROWS = ["0 1 0 0", "1 0 1 1", "0 0 0 0", "0 0 1 0", "0 0 0 1", "1 0 0 0"]
TRUTH = {"bear": "100010", "sun": "000001"}
OI_ROWS = [
    (1, "/m/01", 1),
    (1, "/m/02", 0),
    (1, "/m/04", 1),
    (2, "/m/05", 1),
    (2, "/m/03", 0),
    (2, "/m/06", 1),
    (3, "/m/03", 1),
    (3, "/m/03", 0),
    (3, "/m/01", 0),
]
COCO = dict(
    images=[dict(id=i, file_name=f"{i}.jpg") for i in (3, 1, 2)],
    categories=[dict(id=1, name="person"), dict(id=2, name="cat")],
    annotations=[dict(id=i, image_id=a, category_id=b) for i, (a, b) in enumerate([(1, 1), (1, 1), (2, 2), (2, 1)])],
)


def tree():
    "name -> bytes of every raw file of every format."
    files = {"Concepts81.txt": UNSEEN, "NUS_WID_Tags/TagList1k.txt": TAGS}
    for side in ("Train", "Test"):
        files[f"ImageList/{side}Imagelist.txt"] = IMAGES
        files[f"NUS_WID_Tags/{side}_Tags1k.dat"] = [row.replace(" ", "\t") + "\t" for row in ROWS]
        files |= {
            f"Groundtruth/TrainTestLabels/Labels_{name}_{side}.txt": list(column) for name, column in TRUTH.items()
        }
    files["class-descriptions.csv"] = [
        "/m/01,Jaguar",
        "/m/02,Jaguar",
        "/m/03,Bat",
        "/m/04,Bat",
        '/m/05,"Ducks, geese"',
        "/m/06,Tree",
    ]
    files |= {"classes-trainable.txt": ["/m/01", "/m/02", "/m/03"], "unseen_400.txt": ["/m/04", "/m/05"]}
    files["test/test-annotations-human-imagelabels.csv"] = [
        "ImageID,Source,LabelName,Confidence",
        *(f"{i:016x},verification,{mid},{v}" for i, mid, v in OI_ROWS),
    ]
    files["annotations/instances_val2017.json"] = json.dumps(COCO, indent=1).split("\n")
    files["ImageSets/Main/test.txt"] = ["000001", "000002"]
    files["Annotations/000001.xml"] = [
        "<annotation>",
        "<object><name>dog</name><difficult>1</difficult></object>",
        "<object>",
        "<name>cat</name>",
        "</object>",
        "</annotation>",
    ]
    files["Annotations/000002.xml"] = [
        "<annotation>",
        "<object><name>dog</name><part><name>head</name></part></object>",
        "</annotation>",
    ]
    files["labels.csv"] = ["image,labels", "a/1.jpg,sea|sand", '"b, c.jpg",sea', "d.jpg,", "e.jpg,dog|sea"]
    return {name: "".join(f"{line}\n" for line in lines).encode() for name, lines in files.items()}


FILES = tree()
READERS = {
    "nuswide": (
        lambda root: index_nuswide(root, "test"),
        [
            n
            for n in FILES
            if n.startswith(("Concepts", "NUS", "Image", "Ground"))
            and "ImageSets" not in n
            and "Train_" not in n
            and "Train." not in n
            and "TrainImage" not in n
        ],
    ),
    "nuswide train": (
        lambda root: index_nuswide(root, "train"),
        [
            "Concepts81.txt",
            "NUS_WID_Tags/TagList1k.txt",
            "ImageList/TrainImagelist.txt",
            "NUS_WID_Tags/Train_Tags1k.dat",
        ],
    ),
    "openimages": (
        lambda root: index_openimages(root, "test"),
        [
            "class-descriptions.csv",
            "classes-trainable.txt",
            "unseen_400.txt",
            "test/test-annotations-human-imagelabels.csv",
        ],
    ),
    "coco": (lambda root: index_coco(root, "val2017"), ["annotations/instances_val2017.json"]),
    "voc": (
        lambda root: index_voc(root, "test"),
        ["ImageSets/Main/test.txt", "Annotations/000001.xml", "Annotations/000002.xml"],
    ),
    "folder": (lambda root: index_folder(root, unseen=["dog"]), ["labels.csv"]),
}

# --- slow, plain readers: what a well-formed file means; they may fail in any way on another ---


def words(raw):
    return [line.strip() for line in raw.decode("utf-8-sig").rstrip().split("\n")]


def inside(name):
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    assert not name.replace("\\", "/").startswith("/") and ".." not in parts and parts and ":" not in name[:2]
    return "/".join(parts)


def facts(images, verdicts, labels, absent=-1):
    "verdicts: (image, label) -> value"
    return images, {key: value for key, value in verdicts.items() if value != absent and key[1] in labels}, labels


def plain_nuswide(files, side="Test"):
    tags = words(files["NUS_WID_Tags/TagList1k.txt"])
    unseen = words(files["Concepts81.txt"])
    seen = [tag for tag in tags if tag not in unseen]
    images = [inside(name) for name in words(files[f"ImageList/{side}Imagelist.txt"])]
    table = [line.split() for line in files[f"NUS_WID_Tags/{side}_Tags1k.dat"].decode().rstrip().split("\n")]
    columns = dict(zip(tags, zip(*table, strict=True), strict=True)) if table else {}
    truth = (
        {
            name: [
                line.strip()
                for line in files[f"Groundtruth/TrainTestLabels/Labels_{name}_{side}.txt"].decode().rstrip().split("\n")
            ]
            for name in unseen
        }
        if side == "Test"
        else {}
    )
    labels = seen + (unseen if side == "Test" else [])
    verdicts = {}
    for label in labels:
        column = truth[label] if label in truth else columns[label]
        assert set(column) <= {"0", "1"} and len(column) == len(images)
        verdicts |= {(image, label): 1 for image, value in zip(images, column) if value == "1"}
    return facts([image for image in images if any(key[0] == image for key in verdicts)], verdicts, labels)


def plain_csv(raw):
    return list(csv.reader(words(raw)))


def plain_openimages(files):
    seen = words(files["classes-trainable.txt"])
    unseen = words(files["unseen_400.txt"])
    known = dict(plain_csv(files["class-descriptions.csv"]))
    verdicts = {}
    order = {}
    for image, _, mid, value in plain_csv(files["test/test-annotations-human-imagelabels.csv"])[1:]:
        assert mid in known and value in ("0", "1", "0.0", "1.0")
        order[f"{image}.jpg"] = None
        verdicts.setdefault((f"{image}.jpg", mid), set()).add(int(float(value)) * 2 - 1)
    verdicts = {key: min(values) for key, values in verdicts.items() if len(values) == 1 and key[1] in seen + unseen}
    return facts(
        [image for image in order if any(key[0] == image for key in verdicts)], verdicts, seen + unseen, absent=0
    )


def plain_coco(files):
    content = json.loads(files["annotations/instances_val2017.json"])
    names = {c["id"]: c["name"] for c in content["categories"]}
    images = {i["id"]: inside(i["file_name"]) for i in content["images"]}
    return facts(
        list(images.values()),
        {(images[a["image_id"]], names[a["category_id"]]): 1 for a in content["annotations"]},
        list(names.values()),
    )


def plain_voc(files):
    verdicts = {}
    ids = words(files["ImageSets/Main/test.txt"])
    for name in ids:
        for found in ElementTree.fromstring(files[f"Annotations/{name}.xml"]).findall("object"):
            key = f"{name}.jpg", found.findtext("name").strip()
            verdicts[key] = max(verdicts.get(key, 0), 0 if found.findtext("difficult", "0").strip() == "1" else 1)
    return facts([f"{name}.jpg" for name in ids], verdicts, list(VOC_CLASSES))


def plain_text(raw):
    "A file as text, whatever its encoding."
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if raw.startswith(mark):
            return raw.decode(encoding)
    if raw[1::2].count(0) > len(raw) / 4:
        return raw.decode("utf-16-le")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252")


def plain_name(text):
    return " ".join(unicodedata.normalize("NFC", re.sub("[\xad\u200b\u200e\u200f\u2060\ufeff]", "", text)).split())


def plain_folder(files):
    "A table with '|' between labels; None where another mark may separate them, which tests/test_tables.py is about."
    text = plain_text(files["labels.csv"]).removeprefix("\ufeff")
    lines = [line.rstrip() for line in re.split("\r\n|\r|\n", text)]
    rows = [
        row for row in csv.reader([line + "\n" for line in lines], skipinitialspace=True) if any(map(str.strip, row))
    ]
    header = [re.sub(r"[\s_.-]", "", name).casefold().rstrip("0123456789") for name in rows[0]]
    image_column = next(column for column, name in enumerate(header) if name == "image")
    label_column = next(column for column, name in enumerate(header) if name in ("label", "labels"))
    labels_of = {}
    for row in rows[1:]:
        cell = row[label_column].strip()
        if re.search(r"[][(){};,\"']", cell):
            return None
        labels = [] if cell in ("nan", "") else [plain_name(label) for label in re.split(r"[|\t\n]", cell)]
        labels_of.setdefault(inside(row[image_column].strip()), {}).update(
            dict.fromkeys(label for label in labels if label)
        )
    labels = list(dict.fromkeys(label for of in labels_of.values() for label in of if label != "dog")) + ["dog"]
    return facts(list(labels_of), {(image, label): 1 for image, of in labels_of.items() for label in of}, labels)


PLAIN = {
    "nuswide": plain_nuswide,
    "nuswide train": lambda files: plain_nuswide(files, "Train"),
    "openimages": plain_openimages,
    "coco": plain_coco,
    "voc": plain_voc,
    "folder": plain_folder,
}


def content(index):
    "An index as the plain readers tell it."
    labels = index.labels()
    return facts(
        list(index.images),
        {(index.images[i], index.label_ids[c]): labels[i, c] for i, c in np.argwhere(labels != index.absent).tolist()},
        list(index.label_ids),
        index.absent,
    )


# --- mutations ---


PIECES = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\x80",
    "é".encode(),
    "é".encode("latin-1"),
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\t",
    b" ",
    b"2",
    b"-1",
    b"1",
    b"0 1",
    b",",
    b"|",
    b'"',
    b"..",
    b"/",
    b"\\",
    b"C:",
    b"../../etc/passwd",
    b"/etc/passwd",
    b"\\\\host\\x",
    b"..\\x.jpg",
    b"C:\\x.jpg",
    b"\xef\xbb\xbf",
    b"&x;",
    b"<a>",
    b"]",
    b"{",
    b"nan",
    b"1e999",
    b"0.7",
    b"\x1a",
    "\u2028".encode(),
    b"x" * 300,
]


@st.composite
def mutations(draw, names):
    "(file name, function of its bytes, what was done)"
    name = draw(st.sampled_from(names))
    kind = draw(
        st.sampled_from(
            [
                "cut",
                "insert",
                "replace",
                "drop line",
                "repeat line",
                "swap lines",
                "append",
                "recode",
                "ends",
                "blanks",
                "junk",
                "long",
                "value",
                "empty",
            ]
        )
    )
    a = draw(st.integers(0, 10_000))
    b = draw(st.integers(0, 10_000))
    piece = draw(st.sampled_from(PIECES))
    junk = draw(st.binary(max_size=40))

    def change(raw):
        lines = raw.splitlines(keepends=True)
        at = a % (len(raw) + 1)
        row = a % len(lines)
        other = b % len(lines)
        if kind == "cut":
            return raw[:at]
        if kind == "insert":
            return raw[:at] + piece + raw[at:]
        if kind == "replace":
            return raw[:at] + piece + raw[at + 1 + b % 5 :]
        if kind == "drop line":
            return b"".join(lines[:row] + lines[row + 1 :])
        if kind == "repeat line":
            return b"".join(lines[:other] + [lines[row]] + lines[other:])
        if kind == "swap lines":
            lines[row], lines[other] = lines[other], lines[row]
        if kind == "append":
            return raw + piece
        if kind == "recode":
            return raw.decode().encode(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp500")[a % 5])
        if kind == "ends":
            return raw.replace(b"\n", (b"\r\n", b"\r", b" \t\n", b"\n\n", b"\r\r\n")[a % 5])
        if kind == "blanks":
            return raw.replace(b"\t", (b" ", b"  ", b"", b"\t\t")[a % 4])
        if kind == "junk":
            return raw[:at] + junk + raw[at:]
        if kind == "long":
            return b"".join(
                lines[:row]
                + [(b"x", b" ", b"0 ", b"a/", b'"')[b % 5] * (1_000_000 // (1 + b % 2)), b"\n" * (a % 2)]
                + lines[row:]
            )
        if kind == "value":
            return b"".join(
                lines[:row]
                + [re.sub(rb"[01]", (b"2", b"-1", b"01", b"1.0", b"x")[b % 5], lines[row], count=1)]
                + lines[row + 1 :]
            )
        return b"" if kind == "empty" else b"".join(lines)

    return name, change, f"{kind} of {name}"


# --- what must hold ---


WATCH = {"root": None, "outside": []}


def hook(event, arguments):
    if WATCH and WATCH["root"] and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith((WATCH["root"], sys.prefix, sys.base_prefix)) and not path.endswith((".py", ".pyc")):
            WATCH["outside"].append(path)


# a hook cannot be removed; it does nothing while there is no root, nor when the interpreter is shutting down
sys.addaudithook(hook)


@contextmanager
def watched(root):
    "Fail where a file outside root is opened, or where it takes too long."

    def late(*_):
        raise AssertionError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    WATCH.update(root=os.path.abspath(root), outside=[])
    try:
        yield
    finally:
        WATCH["root"] = None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert not WATCH["outside"], f"opened outside the folder: {WATCH['outside']}"


def write(root, files):
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)


@pytest.fixture(scope="module")
def root():
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), FILES)
        yield Path(folder)


@pytest.mark.parametrize("reader", READERS)
def test_untouched_files_agree_with_the_plain_readers(root, reader):
    index = content(READERS[reader][0](root))
    plain = PLAIN[reader](FILES)
    assert index == plain and len(index[0]) >= 2 and index[1]


@pytest.mark.parametrize("reader", READERS)
def test_mutated_files(root, reader):
    read, names = READERS[reader]

    @fuzz
    @given(mutations(names))
    def run(mutation):
        name, change, done = mutation
        files = FILES | {name: change(FILES[name])}
        (root / name).write_bytes(files[name])
        COUNT["files"] += 1
        try:
            with watched(root):
                index = content(read(root))
        except QKSError as error:
            COUNT["refused"] += 1
            text = str(error)
            assert "\n" not in text and len(text) < 2000, f"{done}: not one sentence: {text[:200]!r}"
            assert any(Path(part).name in text for part in names) or "TrainTestLabels" in text, (
                f"{done}: names no file: {text}"
            )
            if files[name] == FILES[name]:
                raise AssertionError(f"{done}: an untouched file was refused: {text}") from error
        else:
            COUNT["read"] += 1
            plain = PLAIN[reader](files)
            assert plain is None or index == plain, f"{done}: another index than the plain reader's"
        finally:
            (root / name).write_bytes(FILES[name])

    run()


@fuzz
@given(
    a=st.integers(0, 10**6),
    b=st.integers(0, 10**6),
    junk=st.binary(max_size=30),
    kind=st.sampled_from(["cut", "flip", "insert", "drop"]),
)
def test_mutated_index_files(a, b, junk, kind):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write(folder, {name: FILES[name] for name in READERS["folder"][1]})
        index = READERS["folder"][0](folder)
        raw = index.save(folder / "index.npz").read_bytes()
        at = a % len(raw)
        raw = {
            "cut": raw[:at],
            "flip": raw[:at] + bytes([raw[at] ^ (1 + b % 255)]) + raw[at + 1 :],
            "insert": raw[:at] + junk + raw[at:],
            "drop": raw[:at] + raw[at + 1 + b % 50 :],
        }[kind]
        (folder / "index.npz").write_bytes(raw)
        COUNT["files"] += 1
        try:
            with watched(folder):
                again = load_index(folder / "index.npz")
        except QKSError as error:
            assert "index.npz" in str(error) and "\n" not in str(error)
        else:
            assert content(again) == content(index)


@pytest.mark.parametrize(
    "reader, name, old, new, message",
    [
        (
            "nuswide",
            "ImageList/TestImagelist.txt",
            IMAGES[4].encode(),
            IMAGES[1].replace("\\", "/").encode(),
            "line 5: 'zoo/0001_37.jpg' is already in line 2",
        ),
        ("voc", "ImageSets/Main/test.txt", b"000002", b"000001", "line 2: '000001' is already in line 1"),
        (
            "coco",
            "annotations/instances_val2017.json",
            b'"2.jpg"',
            b'"1.jpg"',
            r"images[2]: '1.jpg' is already at 1",
        ),
    ],
)
def test_duplicate_images_name_both_places(root, reader, name, old, new, message):
    (root / name).write_bytes(FILES[name].replace(old, new, 1))
    try:
        with pytest.raises(QKSError) as error:
            READERS[reader][0](root)
        assert message in str(error.value) and Path(name).name in str(error.value)
    finally:
        (root / name).write_bytes(FILES[name])


def test_paths_that_leave_are_refused_and_links_are_not(root, tmp_path):
    write(tmp_path, FILES)
    expected = content(index_nuswide(root, "test"))
    shutil.move(tmp_path / "NUS_WID_Tags", tmp_path.parent / (tmp_path.name + "_tags"))
    (tmp_path / "NUS_WID_Tags").symlink_to(tmp_path.parent / (tmp_path.name + "_tags"))
    assert content(index_nuswide(tmp_path, "test")) == expected
    assert read_nuswide(tmp_path, "test").images == tuple(expected[0])
    for name in (
        b"/etc/passwd",
        b"../x.jpg",
        b"a/../../x.jpg",
        rb"..\x.jpg",
        rb"C:\x.jpg",
        b"c:x.jpg",
        rb"\\host\share\x.jpg",
        b"a/.. /x.jpg",
    ):
        (tmp_path / "ImageList/TestImagelist.txt").write_bytes(
            FILES["ImageList/TestImagelist.txt"].replace(IMAGES[2].encode(), name)
        )
        with pytest.raises(QKSError, match="TestImagelist.txt line 3: .* leaves the image folder"):
            index_nuswide(tmp_path, "test")
        (tmp_path / "labels.csv").write_bytes(b"image,labels\n" + name + b",sea\n")
        with pytest.raises(QKSError, match="labels.csv line 2: .* leaves the image folder"):
            index_folder(tmp_path)
    (tmp_path / "Concepts81.txt").write_text("bear\n../../../secret\n")
    with watched(tmp_path), pytest.raises(QKSError, match="Concepts81.txt line 2"):
        index_nuswide(tmp_path, "test")


def test_enough_files_were_tried():
    if COUNT["files"] == 0:
        pytest.skip("the mutations did not run")
    assert COUNT["files"] >= WANTED and COUNT["read"] > 100 and COUNT["refused"] > 500, COUNT
