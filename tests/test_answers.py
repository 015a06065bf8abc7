"""Answers of `qks tag`: which pictures, in which order, in every format, and whole wherever they end."""

import csv
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from qks.answers.answer import Answer, AnswerInfo, answer_pictures
from qks.answers.formats import WRITERS, open_writer
from qks.answers.stopping import SignalGate, Terminated
from qks.commands.main import main
from qks.core import QKSError
from qks.data.table import read_table
from qks.model.tagger import QKS

LABELS = ["--labels", "cat,dog", "--device", "cpu", "--model", "pocket", "--no-thresholds"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def trip(picture, tmp_path, monkeypatch):
    "The current folder: two pictures, one that is cut, an empty one."
    for name in ("a.png", "c.png"):
        shutil.copyfile(picture, tmp_path / name)
    (tmp_path / "b.png").write_bytes(picture.read_bytes()[:100])
    (tmp_path / "d.png").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- which pictures, in which order ---


def asked_json(capsys, *words, status):
    assert main(["tag", *words, *LABELS, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def test_every_name_that_was_asked_is_answered_in_order(trip, capsys):
    "Twice if asked twice; damaged, empty and missing ones in their place."
    asked = ["d.png", "a.png", "lost.png", "./a.png", "b.png", "a.png", "d.png"]
    answers = asked_json(capsys, *asked, status=1)
    assert [answer["image"] for answer in answers] == asked
    reasons = {"d.png": "is empty", "lost.png": "does not exist", "b.png": "is damaged or truncated"}
    for answer in answers:
        if answer["image"] in reasons:
            assert reasons[answer["image"]] in answer["error"] and "tags" not in answer
        else:
            assert answer["tags"] == answers[1]["tags"] and len(answer["tags"]) == 2 and "error" not in answer


def test_errors_keep_their_place_across_batches():
    "The model reads a batch ahead, in which nothing, something or everything can be read."
    generator = np.random.default_rng(0)
    for _ in range(20):
        pictures = [f"{number}.png" for number in generator.integers(0, 4, 30)]
        bad = {f"{number}.png" for number in range(4) if generator.random() < 0.5}

        def tag_each(images, unreadable, bad=bad):
            batch = []
            for image in images:
                if image in bad:
                    unreadable(image, QKSError(f"no {image}"))
                else:
                    batch.append(image)
                if len(batch) == 4:
                    yield from ((image, [image]) for image in batch)
                    batch = []
            yield from ((image, [image]) for image in batch)

        expected = [Answer(name, error=f"no {name}") if name in bad else Answer(name, [name]) for name in pictures]
        assert list(answer_pictures(tag_each, pictures)) == expected


@pytest.mark.parametrize(
    "content, names",
    [
        (b"a.png\nc.png\n", ["a.png", "c.png"]),
        (b"\xef\xbb\xbfa.png\r\n\r\nc.png", ["a.png", "c.png"]),
        (b"c.png\0a.png\0", ["c.png", "a.png"]),
        ("c.png\r\na.png\r\n".encode("utf-16"), ["c.png", "a.png"]),
    ],
    ids=["lines", "Windows", "zero bytes", "UTF-16"],
)
@pytest.mark.parametrize("from_pipe", [False, True])
def test_names_from_a_list(trip, capsys, monkeypatch, content, names, from_pipe):
    Path("list.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    source = "-" if from_pipe else "list.txt"
    answers = asked_json(capsys, "c.png", "--images-from", source, status=0)
    assert [answer["image"] for answer in answers] == ["c.png", *names]
    assert asked_json(capsys, "--images-from", "list.txt", status=0)[0]["image"] == names[0]


def test_zero_bytes_that_were_not_announced_are_said(trip, capsys):
    Path("list.txt").write_bytes(b"a.png\0")
    assert main(["tag", "--images-from", "list.txt", *LABELS]) == 0
    assert "list.txt: names are separated by zero bytes" in capsys.readouterr().err
    assert main(["tag", "--images-from", "list.txt", "-0", *LABELS]) == 0
    assert capsys.readouterr().err == ""


def test_a_pattern_is_expanded_unless_a_file_is_called_so(trip, capsys):
    shutil.copyfile("a.png", "[ac].png")
    assert [answer["image"] for answer in asked_json(capsys, "[ac].png", status=0)] == ["[ac].png"]
    assert [answer["image"] for answer in asked_json(capsys, "?.png", status=1)] == ["a.png", "b.png", "c.png", "d.png"]
    Path("deep").mkdir()
    shutil.copyfile("a.png", "deep/e.png")
    assert [answer["image"] for answer in asked_json(capsys, "**/[e-z].png", status=0)] == [str(Path("deep/e.png"))]


@pytest.mark.parametrize(
    "words, told",
    [
        (
            ["https://example.org/cat.jpg"],
            "https://example.org/cat.jpg is an address, and pictures are read from files",
        ),
        (["S3://bucket/cat.jpg"], "fetch it first"),
        (["data:image/png;base64," + "A" * 500], "data:image/png;base64,AAAA"),
        (["file:///my%20cat.jpg"], "pass the path itself, /my cat.jpg"),
        (["--images-from", "list.txt"], "list.txt line 2: ftp://example.org/b.jpg is an address"),
        (["*.jpeg"], "no file matches *.jpeg"),
        (["lost.png"], "image lost.png does not exist: check the path"),
        (["lost.png", "gone.png"], "none of the 2 pictures exists, such as lost.png"),
        (["--images-from", "lost.txt"], "the list of pictures lost.txt cannot be read"),
        (["--images-from", "empty.txt"], "empty.txt names no picture"),
        ([], "no picture is named"),
        (["a.png", "-0"], "--null (-0) says how --images-from is written"),
        (["a.png", "--json", "--format", "csv"], "contradict each other"),
        (["a.png", "--out", "tags"], "the ending of tags says no format"),
        (["a.png", "--out", "lost/tags.csv"], "the folder lost does not exist"),
        (["a.png", "--out", "list.txt"], "--out: list.txt exists already"),
        (["a.png", "--out", ".", "--format", "csv"], "--out . is a folder"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_said_before_anything_is_loaded(trip, capsys, monkeypatch, words, told):
    monkeypatch.setattr("qks.experiment.loading.load_tagger", lambda *args, **kwargs: pytest.fail("began to work"))
    Path("list.txt").write_text("a.png\nftp://example.org/b.jpg\n")
    Path("empty.txt").write_text("\n\n")
    assert main(["tag", *words, *LABELS]) == 2
    captured = capsys.readouterr()
    assert told in captured.err and captured.err.count("\n") == 1 and len(captured.err) < 400 and captured.out == ""


# --- formats ---

THREE = [
    Answer("a.png", [("cat", 0.93, 4), ("a, b", 0.5, 1)]),
    Answer("b.png", []),
    Answer("sub/c.png", error='image sub/c.png is "empty"'),
]
INFO = AnswerInfo(("cat", "a, b", "dog"), n_pictures=3)


def write_three(name, out, info=INFO, answers=THREE):
    with open_writer(name, info, out) as writer:
        for answer in answers:
            writer.write(answer)
    return writer


def test_text(tmp_path):
    write_three("text", tmp_path / "tags.txt")
    assert (tmp_path / "tags.txt").read_text() == (
        "a.png\n   93.0 %  cat  (token 4)\n   50.0 %  a, b  (token 1)\n"
        "b.png  (no label reaches its threshold)\nsub/c.png  (cannot be read)\n"
    )


ENTRIES = [
    {
        "image": "a.png",
        "tags": [
            {"label": "cat", "probability": 0.93, "token": 4},
            {"label": "a, b", "probability": 0.5, "token": 1},
        ],
    },
    {"image": "b.png", "tags": []},
    {"image": "sub/c.png", "error": 'image sub/c.png is "empty"'},
]


def test_json_and_json_lines(tmp_path):
    write_three("json", tmp_path / "tags.json")
    assert json.loads((tmp_path / "tags.json").read_text()) == ENTRIES
    write_three("jsonl", tmp_path / "tags.jsonl")
    assert [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()] == ENTRIES
    write_three("json", tmp_path / "none.json", answers=[])
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_csv(tmp_path):
    write_three("csv", tmp_path / "tags.csv")
    with open(tmp_path / "tags.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"image": "a.png", "labels": '["cat", "a, b"]', "probabilities": "[0.93, 0.5]", "error": ""},
        {"image": "b.png", "labels": "", "probabilities": "", "error": ""},
        {"image": "sub/c.png", "labels": "", "probabilities": "", "error": 'image sub/c.png is "empty"'},
    ]
    plain = [Answer("a.png", [("cat", 0.93, 4), ("dog", 1e-9, 1)])]
    write_three("csv", tmp_path / "plain.csv", AnswerInfo(("cat", "dog")), plain)
    assert (tmp_path / "plain.csv").read_text().splitlines()[1] == "a.png,cat|dog,0.93|1e-09,"


def test_csv_is_a_table_of_ours(tmp_path):
    "What was tagged can be corrected by hand and trained on."
    write_three("csv", tmp_path / "tags.csv", answers=THREE[:2])
    table = read_table(tmp_path / "tags.csv")
    assert [(row.image, row.labels) for row in table.rows] == [("a.png", {"cat": 1, "a, b": 1}), ("b.png", {})]


def test_scores_are_called_scores_and_have_no_token(tmp_path):
    info = AnswerInfo(("cat",), number="score")
    answers = [Answer("a.png", [("cat", 0.25, -1)])]
    write_three("jsonl", tmp_path / "tags.jsonl", info, answers)
    assert json.loads((tmp_path / "tags.jsonl").read_text())["tags"] == [{"label": "cat", "score": 0.25}]
    write_three("csv", tmp_path / "tags.csv", info, answers)
    assert (tmp_path / "tags.csv").read_text() == "image,labels,scores,error\na.png,cat,0.25,\n"
    write_three("text", tmp_path / "tags.txt", info, answers)
    assert (tmp_path / "tags.txt").read_text() == "a.png\n   0.250  cat\n"


@pytest.mark.parametrize("name", ["text", "json", "jsonl", "csv"])
def test_a_name_that_is_no_text_costs_nothing(tmp_path, name):
    odd = os.fsdecode(b"caf\xe9.png")
    write_three(name, tmp_path / "tags", answers=[Answer(odd, [("cat", 0.5, 1)])])
    content = (tmp_path / "tags").read_bytes().decode("utf-8")
    assert "cat" in content and "caf" in content
    if name == "json":
        assert json.loads(content)[0]["image"] == odd


def test_format_by_the_ending_of_the_file(trip, capsys):
    assert main(["tag", "a.png", *LABELS, "--out", "tags.jsonl"]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(Path("tags.jsonl").read_text())["image"] == "a.png"
    assert main(["tag", "c.png", *LABELS, "--out", "tags.jsonl", "--force"]) == 0
    assert json.loads(Path("tags.jsonl").read_text())["image"] == "c.png"
    assert main(["tag", "c.png", *LABELS, "--out", "-", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("image,labels")


# --- files for other programs ---


@pytest.fixture
def two(tmp_path):
    "A folder with two pictures in folders, one of them turned by its EXIF data, and their answers."
    root = tmp_path / "trip"
    (root / "sub").mkdir(parents=True)
    Image.new("RGB", (64, 48), "red").save(root / "a.png")
    turned = Image.new("RGB", (64, 48), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(root / "sub" / "b.jpg", exif=exif)
    answers = [
        Answer(str(root / "a.png"), [("cat", 0.75, 4), ("a, b", 0.5, 1)]),
        Answer(str(root / "c.png"), error="image c.png is empty"),
        Answer(str(root / "sub" / "b.jpg"), [("dog", 0.25, 2)]),
        Answer(str(root / "a.png"), [("cat", 0.75, 4), ("a, b", 0.5, 1)]),
    ]
    return answers, AnswerInfo(("cat", "a, b", "dog"), root, "pocket", n_pictures=4)


def test_coco(two, tmp_path):
    answers, info = two
    writer = write_three("coco", tmp_path / "coco.json", info, answers)
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert coco["images"] == [
        {"id": 1, "file_name": "a.png", "width": 64, "height": 48},
        {"id": 2, "file_name": "sub/b.jpg", "width": 48, "height": 64},
    ]
    assert [(entry["id"], entry["name"]) for entry in coco["categories"]] == [(1, "cat"), (2, "a, b"), (3, "dog")]
    rows = [(entry["image_id"], entry["category_id"], entry["score"]) for entry in coco["annotations"]]
    assert rows == [(1, 1, 0.75), (1, 2, 0.5), (2, 3, 0.25)]
    assert [entry["bbox"] for entry in coco["annotations"]] == [[0, 0, 64, 48]] * 2 + [[0, 0, 48, 64]]
    assert [entry["area"] for entry in coco["annotations"]] == [64 * 48] * 3
    assert coco["info"]["unreadable"] == [{"file_name": "c.png", "error": "image c.png is empty"}]
    assert coco["info"]["folder"] == str(info.root) and "whole picture" in coco["info"]["description"]
    assert any("in the file once" in remark for remark in writer.remarks)


def test_fiftyone(two, tmp_path):
    answers, info = two
    Image.new("RGB", (4, 4)).save(info.root / "a.jpg")
    answers = [*answers, Answer(str(info.root / "a.jpg"), [])]
    writer = write_three("fiftyone", tmp_path / "fiftyone", info, answers)
    labels = json.loads((tmp_path / "fiftyone" / "labels.json").read_text())
    files = json.loads((tmp_path / "fiftyone" / "data.json").read_text())
    assert labels["classes"] == ["cat", "a, b", "dog"]
    assert labels["labels"] == {
        "a": [{"label": "cat", "confidence": 0.75}, {"label": "a, b", "confidence": 0.5}],
        "sub/b": [{"label": "dog", "confidence": 0.25}],
        "a-2": [],
    }
    by_name = {os.path.splitext(name)[0]: path for name, path in files.items()}  # as FiftyOne's importer joins them
    expected = {"a": "a.png", "sub/b": "sub/b.jpg", "a-2": "a.jpg"}
    assert by_name == {name: str(info.root / path) for name, path in expected.items()}
    assert any('data_path="data.json"' in remark for remark in writer.remarks)


def test_label_studio(two, tmp_path):
    answers, info = two
    writer = write_three("label-studio", tmp_path / "tasks.json", info, answers)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=trip/a.png",
        "/data/local-files/?d=trip/sub/b.jpg",
    ]
    [prediction] = tasks[0]["predictions"]
    assert prediction["score"] == 0.75
    [result] = prediction["result"]
    assert result["value"] == {"choices": ["cat", "a, b"]} and result["type"] == "choices"
    view = ElementTree.parse(tmp_path / "tasks.xml").getroot()
    choices = view.find("Choices")
    assert (result["from_name"], result["to_name"]) == (choices.get("name"), choices.get("toName"))
    assert choices.get("toName") == view.find("Image").get("name") and choices.get("choice") == "multiple"
    assert [choice.get("value") for choice in choices] == ["cat", "a, b", "dog"]
    assert any(f"DOCUMENT_ROOT is {tmp_path}" in remark for remark in writer.remarks)


def test_parquet(two, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("qks.answers.documents.ROWS_AT_A_TIME", 3)  # two groups of rows
    answers, info = two
    write_three("parquet", tmp_path / "tags.parquet", info, answers)
    rows = parquet.read_table(tmp_path / "tags.parquet").to_pylist()
    assert [row["image"] for row in rows] == [answer.image for answer in answers]
    assert rows[0]["labels"] == ["cat", "a, b"] and rows[0]["probabilities"] == [0.75, 0.5]
    assert rows[0]["tokens"] == [4, 1] and rows[0]["error"] is None
    assert rows[1]["labels"] == [] and rows[1]["error"] == "image c.png is empty"
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_parquet_without_pyarrow(trip, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["tag", "a.png", *LABELS, "--out", "tags.parquet"]) == 2
    assert "--format parquet needs pyarrow: pip install 'qks[parquet]'" in capsys.readouterr().err
    assert not Path("tags.parquet").exists()


SIDECAR = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 <r:Description r:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"><!-- mine -->
  <d:subject xmlns:d="http://purl.org/dc/elements/1.1/"><r:Bag><r:li>holiday</r:li><r:li>cat</r:li></r:Bag></d:subject>
 </r:Description></r:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
WITHOUT_SUBJECT = SIDECAR[: SIDECAR.index("  <d:subject")] + SIDECAR[SIDECAR.index(" </r:Description>") :]


def keywords_in(path):
    "By another parser than ours."
    space = {"r": "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "d": "http://purl.org/dc/elements/1.1/"}
    items = ElementTree.parse(path).getroot().iterfind(".//r:Description/d:subject/r:Bag/r:li", space)
    return [item.text for item in items]


def test_sidecars(two, capsys):
    answers, info = two
    with open_writer("xmp", info, None) as writer:
        for answer in answers[:3]:
            writer.write(answer)
    shown = capsys.readouterr().out.splitlines()
    assert shown == [str(info.root / "a.xmp"), str(info.root / "sub" / "b.xmp")]
    assert keywords_in(info.root / "a.xmp") == ["cat", "a, b"]
    assert keywords_in(info.root / "sub" / "b.xmp") == ["dog"]


@pytest.mark.parametrize("before, kept", [(SIDECAR, ["holiday", "cat"]), (WITHOUT_SUBJECT, [])])
def test_a_sidecar_keeps_what_it_holds(two, before, kept):
    answers, info = two
    path = info.root / "a.png.xmp"  # as darktable calls it
    path.write_text(before)
    for _ in range(2):  # the second time adds nothing
        with open_writer("xmp", info, None) as writer:
            writer.write(answers[0])
    assert keywords_in(path) == [*kept, *(label for label in ("cat", "a, b") if label not in kept)]
    after = path.read_text()
    assert all(part in after for part in ('xmp:Rating="4"', "<!-- mine -->", "<?xpacket begin", '<?xpacket end="w"?>'))
    assert not (info.root / "a.xmp").exists()


def test_a_damaged_sidecar_costs_only_itself(trip, capsys):
    Path("a.xmp").write_text("<x:xmpmeta")
    assert main(["tag", "a.png", "c.png", *LABELS, "--format", "xmp"]) == 1
    captured = capsys.readouterr()
    assert "a.xmp is no XMP" in captured.err and captured.out == "c.xmp\n"
    assert Path("a.xmp").read_text() == "<x:xmpmeta" and len(keywords_in("c.xmp")) == 2


def test_sidecars_in_a_folder_of_their_own(trip, capsys):
    for place in ("one/a.png", "two/a.png", "two/a.jpg"):
        Path(place).parent.mkdir(exist_ok=True)
        shutil.copyfile("c.png", place)
    assert main(["tag", "one", "two", *LABELS, "--format", "xmp", "--out", "keywords"]) == 0
    found = sorted(path.relative_to("keywords").as_posix() for path in Path("keywords").rglob("*.xmp"))
    assert found == ["one/a.xmp", "two/a.png.xmp", "two/a.xmp"]
    assert not list(Path("one").glob("*.xmp"))


def test_entities_in_a_sidecar_are_not_expanded(trip, capsys):
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&a;</x:xmpmeta>'
    Path("a.xmp").write_text(bomb)
    assert main(["tag", "a.png", *LABELS, "--format", "xmp"]) == 1
    assert "a.xmp is no XMP" in capsys.readouterr().err


# --- stopped ---


def test_a_signal_waits_for_the_end_of_an_answer():
    for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)):
        before = signal.getsignal(number)
        done = []
        with pytest.raises(KeyboardInterrupt) as stopped, SignalGate() as gate:
            with gate.held():
                signal.raise_signal(number)
                done.append("written")
            done.append("never")
        assert stopped.type is kind and done == ["written"] and signal.getsignal(number) == before


def test_a_second_signal_does_not_wait():
    with pytest.raises(KeyboardInterrupt), SignalGate() as gate, gate.held():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it waited")


def stop_in_second_batch(monkeypatch, number):
    "The signal comes while the second batch of 32 pictures is computed."
    original = QKS.predict

    def predict(self, images, embeddings):
        if len(images) < 32:
            signal.raise_signal(number)
        return original(self, images, embeddings)

    monkeypatch.setattr(QKS, "predict", predict)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", sorted(WRITERS))
def test_stopped_in_the_middle(picture, tmp_path, monkeypatch, capsys, name, number, status):
    "What was done is there, and whole."
    (folder := tmp_path / "trip").mkdir()
    for index in range(40):
        shutil.copyfile(picture, folder / f"{index:02}.png")
    (folder / "00.png").write_text("damaged")
    stop_in_second_batch(monkeypatch, number)
    out = tmp_path / "tags"
    assert main(["tag", str(folder), *LABELS, "--format", name, "--out", str(out)]) == status
    assert "stopped after 33 of 40 pictures" in capsys.readouterr().err
    names = [str(folder / f"{index:02}.png") for index in range(33)]
    if name in ("coco", "fiftyone", "label-studio", "xmp"):
        names = names[1:]  # the damaged one is not in the file
    assert READERS[name](out) == names


def in_folder(path, names):
    return [str(path.parent / "trip" / name) for name in names]


def lines_of(path, form):
    return [form(line) for line in path.read_text().splitlines()]


READERS = {  # the pictures that a file answers for
    "text": lambda path: [line.partition("  ")[0] for line in lines_of(path, str) if not line.startswith(" ")],
    "json": lambda path: [entry["image"] for entry in json.loads(path.read_text())],
    "jsonl": lambda path: [json.loads(line)["image"] for line in lines_of(path, str)],
    "csv": lambda path: [row["image"] for row in csv.DictReader(io.StringIO(path.read_text()))],
    "parquet": lambda path: pytest.importorskip("pyarrow.parquet").read_table(path)["image"].to_pylist(),
    "coco": lambda path: in_folder(path, [entry["file_name"] for entry in json.loads(path.read_text())["images"]]),
    "fiftyone": lambda path: list(json.loads((path / "data.json").read_text()).values()),
    "label-studio": lambda path: in_folder(
        path, [task["data"]["image"].rpartition("/")[2] for task in json.loads(path.read_text())]
    ),
    "xmp": lambda path: in_folder(path, sorted(f"{file.stem}.png" for file in path.iterdir())),
}


def test_sigterm_from_outside(picture, tmp_path):
    "A process of its own, ended after its first answers."
    (folder := tmp_path / "trip").mkdir()
    for index in range(400):
        os.link(picture, folder / f"{index:03}.png")
    command = [sys.executable, "-m", "qks", "tag", str(folder), *LABELS, "--format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline() + process.stdout.readline()
        process.terminate()
        out = process.stdout.read()  # communicate would lose what readline has read ahead
        err = process.stderr.read()
    assert process.returncode == 143 and "stopped after" in err and "Traceback" not in err
    entries = json.loads(first + out)
    assert 0 < len(entries) < 400 and entries[0]["image"] == str(folder / "000.png")


# --- messages ---


def test_a_library_that_sets_up_logging_doubles_no_message(trip, capsys):
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        assert main(["tag", "a.png", "lost.png", *LABELS]) == 1
    finally:
        logging.getLogger().removeHandler(handler)
    assert capsys.readouterr().err.count("lost.png does not exist") == 1


def test_a_photograph_is_none_of_the_pocket_models_kind(tmp_path, capsys):
    Image.new("RGB", (96, 96)).save(tmp_path / "scene.png")
    Image.new("RGB", (640, 480)).save(tmp_path / "photo.jpg")
    assert main(["tag", str(tmp_path / "scene.png"), *LABELS]) == 0
    assert capsys.readouterr().err == ""
    assert main(["tag", str(tmp_path / "scene.png"), str(tmp_path / "photo.jpg"), *LABELS]) == 0
    told = capsys.readouterr().err
    assert "photo.jpg is none of the emoji scenes" in told and told.count("\n") == 1
    assert main(["tag", str(tmp_path / "photo.jpg"), *LABELS, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


# --- read back by `qks data import` ---


@pytest.mark.parametrize("name", ["coco.json", "tags.csv"])
def test_what_was_written_can_be_imported(tmp_path, name):
    root = tmp_path / "trip"
    (root / "sub").mkdir(parents=True)
    for place in ("a.png", "sub/b.png"):
        Image.new("RGB", (96, 96), "red").save(root / place)
    answers = [
        Answer(str(root / "a.png"), [("cat", 0.75, 4), ("red car", 0.5, 1)]),
        Answer(str(root / "sub" / "b.png"), [("red car", 0.5, 1)]),
    ]
    kind = {"coco.json": "coco", "tags.csv": "csv"}[name]
    write_three(kind, root / name, AnswerInfo(("cat", "red car", "dog"), root), answers)
    assert main(["data", "import", str(root), str(tmp_path / "mine"), "--format", kind]) == 0
    [table] = (tmp_path / "mine").glob("*.csv")
    rows = {Path(row.image).name: set(row.labels) for row in read_table(table).rows}
    assert rows == {"a.png": {"cat", "red car"}, "b.png": {"red car"}}
