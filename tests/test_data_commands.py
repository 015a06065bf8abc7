"""`qks data`: every command on small folders, its exit status, its help, and every mistake in one sentence."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_formats import coco, write_coco, write_images
from test_openimages import write_tree

from qks.commands.data import COMMANDS
from qks.commands.main import find_command, main, parse
from qks.data.splits import open_split, open_splits

TINY = Path(__file__).parent / "data/nuswide_tiny/raw"


def data(*arguments):
    return main(["data", *map(str, arguments)])


def qks(*arguments, **kwargs):
    return [sys.executable, "-m", "qks", "data", *map(str, arguments)]


def said(capsys):
    "What a failed command printed: exactly one line, on the error stream."
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("qks: ") and captured.err.count("\n") == 1, captured
    return captured.err


def photograph(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def nuswide(tmp_path):
    return Path(shutil.copytree(TINY, tmp_path / "nuswide"))


@pytest.fixture
def complete(nuswide):
    "A tree with all its images."
    names = [
        name
        for side in ("Train", "Test")
        for name in (nuswide / f"ImageList/{side}Imagelist.txt").read_text().replace("\\", "/").split()
    ]
    for seed, name in enumerate(names):
        (nuswide / "Flickr" / name).parent.mkdir(parents=True, exist_ok=True)
        (nuswide / "Flickr" / name).write_bytes(photograph(seed))
    return nuswide


@pytest.fixture
def openimages(tmp_path):
    root = write_tree(tmp_path / "openimages", [(1, "/m/01", 1), (1, "/m/02", 0), (1, "/m/02", 1)], split="train")
    return write_tree(root, [(11, "/m/01", 1), (11, "/m/04", 1)], split="test")


@pytest.fixture
def own(tmp_path):
    root = tmp_path / "own"
    root.mkdir()
    (root / "train.csv").write_text("image,labels\na.jpg,sea|sand\nb.jpg,\n")
    (root / "test.csv").write_text("image,labels\nc.jpg,sea|dog\n")
    (root / "unseen.txt").write_text("dog\n")
    write_images(root / "pictures", "a.jpg", "b.jpg", "c.jpg")
    return root


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        kind, _, name = self.path[1:].partition("/")
        if kind == "slow":
            self.server.release.wait(60)
        body = b"" if kind == "missing" else photograph(int(name or 0))
        self.send_response(404 if kind == "missing" else 200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            pass


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.release = threading.Event()
    server.daemon_threads = True
    server.site = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def address_list(tmp_path, site, *pages):
    rows = [
        rf"C:\ImageData\Flickr\zoo\000{i}_{i}.jpg {i} {site}/photo/9{i} {site}/{page} null null"
        for i, page in enumerate(pages)
    ]
    (tmp_path / "urls.txt").write_text(
        "\n".join(["Photo_file Photo_id url_Large url_Middle url_Small url_Original", *rows])
    )
    return tmp_path / "urls.txt"


# --- fetch ---


def test_fetch_nuswide(server, nuswide, tmp_path, capsys):
    urls = address_list(tmp_path, server.site, "photo/1", "photo/2")
    assert data("nuswide", "fetch", nuswide, "--urls", urls, "--delay", 0) == 0
    assert "2 images listed, 2 in place" in capsys.readouterr().out
    assert (nuswide / "Flickr/zoo/0001_1.jpg").read_bytes() == photograph(2) and (
        nuswide / "fetch-report.csv"
    ).is_file()
    assert data("nuswide", "fetch", nuswide, "--urls", urls, "--delay", 0) == 0 and len(server.asked) == 2
    assert data("nuswide", "fetch", tmp_path / "large", "--urls", urls, "--size", "large", "--delay", 0) == 0
    assert (tmp_path / "large/Flickr/zoo/0001_1.jpg").read_bytes() == photograph(91)


def test_a_fetch_that_is_not_complete_ends_with_1(server, nuswide, tmp_path, capsys):
    urls = address_list(tmp_path, server.site, "photo/1", "missing")
    assert data("nuswide", "fetch", nuswide, "--urls", urls, "--delay", 0, "--workers", 1, "--retries", 0) == 1
    assert re.search(r"dead +1  404", capsys.readouterr().out)
    assert data("nuswide", "fetch", nuswide, "--urls", urls) == 1 and server.asked.count("/missing") == 1
    assert (
        data("nuswide", "fetch", nuswide, "--urls", urls, "--retry-dead") == 1 and server.asked.count("/missing") == 2
    )


def test_fetch_openimages(server, tmp_path, capsys):
    ids = ["000026e7ee790996", "000062a39995e348"]
    rows = "".join(f"{name},test,{server.site}/photo/{i},{server.site}/photo/{i + 10}\n" for i, name in enumerate(ids))
    (tmp_path / "images.csv").write_text("ImageID,Subset,OriginalURL,Thumbnail300KURL\n" + rows)
    (tmp_path / "only.txt").write_text(ids[1] + "\n")
    assert (
        data(
            "openimages",
            "fetch",
            tmp_path / "oi",
            "--images",
            tmp_path / "images.csv",
            "--only",
            tmp_path / "only.txt",
            "--source",
            "original",
        )
        == 0
    )
    assert server.asked == ["/photo/1"] and (tmp_path / f"oi/test/{ids[1]}.jpg").is_file()
    assert data("openimages", "fetch", tmp_path / "oi", "--images", tmp_path / "images.csv") == 0
    assert server.asked == ["/photo/1", "/photo/10"] and "2 images listed, 2 in place" in capsys.readouterr().out


# --- check ---


def test_check_of_a_complete_tree(complete, capsys):
    assert data("nuswide", "check", complete, "--decode", "--workers", 2, "--min-bytes", 100) == 0
    printed = capsys.readouterr().out
    assert (
        "70 of 70 images are there and decode" in printed
        and printed.endswith("No problem found.\n")
        and printed.count("\n") < 10
    )


def test_check_that_finds_something_ends_with_1(complete, capsys):
    (broken := next((complete / "Flickr").rglob("*.jpg"))).write_bytes(photograph(0)[:1000])
    assert data("nuswide", "check", complete, "--min-bytes", 100) == 0
    assert data("nuswide", "check", complete, "--min-bytes", 100, "--decode") == 1
    assert broken.name in capsys.readouterr().out
    assert data("nuswide", "check", complete) == 1  # by default, files of 4,000 bytes or less are placeholders
    assert re.search(r"[0-9]+ of 70 images in .* are smaller than 4,001 bytes", capsys.readouterr().out)


def test_check_openimages(openimages, capsys):
    assert data("openimages", "check", openimages) == 1
    printed = capsys.readouterr().out
    assert "1 of 1 images in" in printed and "1 entries of train are marked both ways" in printed
    for split, number in (("train", 1), ("test", 11)):
        (openimages / f"{split}/{number:016x}.jpg").write_bytes(photograph(number))
    assert data("openimages", "check", openimages, "--min-bytes", 100, "--decode") == 0
    (openimages / "unseen_400.txt").rename(openimages / "others.txt")
    assert data("openimages", "check", openimages, "--min-bytes", 100) == 1
    assert data("openimages", "check", openimages, "--min-bytes", 100, "--unseen", "others.txt") == 0


# --- prepare ---


def test_prepare_nuswide(nuswide, capsys):
    assert data("nuswide", "prepare", nuswide) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0]
        == "train: 31 images, 925 labels (925 seen, 0 unseen), 119 entries, 0 conflicts; other entries count as absent"
    )
    assert (
        lines[3] == "test: 30 images, 1,006 labels (925 seen, 81 unseen), 111 entries, 0 conflicts; "
        "other entries count as absent"
    )
    size = (nuswide / "qks-index-train.npz").stat().st_size
    assert lines[1].startswith("  31 images are missing or empty, the first: ")
    assert lines[2] == f"  {size:,} bytes in {nuswide / 'qks-index-train.npz'}" and re.fullmatch(
        r"read and saved in \d+\.\d s", lines[-1]
    )


def test_prepare_without_what_is_missing(complete, capsys):
    "What check tells to type leaves out what check found."
    first, second, _ = names = [
        path
        for split in ("Train", "Test")
        for path in (complete / f"ImageList/{split}Imagelist.txt").read_text().replace("\\", "/").split()
    ][:3]
    (complete / "Flickr" / first).unlink()
    (complete / "Flickr" / second).write_bytes(b"x" * 500)  # a placeholder
    assert data("nuswide", "check", complete, "--min-bytes", 600) == 1
    told = capsys.readouterr().out
    assert (
        "absent" in told
        and "or leave them out by preparing with --leave-out-missing\n" in told
        and "preparing with --leave-out-missing --min-bytes 600" in told
    )
    for options, left in (
        (["--leave-out-missing"], 1),
        (["--leave-out-missing", "--min-bytes", 600], 2),
        (["--min-bytes", 600], 2),
        ([], 0),
    ):
        assert data("nuswide", "prepare", complete, *options) == 0
        gone = set(names) - {image for index in open_splits(complete).values() for image in index.images}
        assert len(gone & {first, second}) == left
        assert ("missing or too small, and left out" in capsys.readouterr().out) == bool(options)
    assert data("nuswide", "prepare", complete, "--min-bytes", 0) == 2 and "min_bytes is 0" in said(capsys)


def test_prepare_openimages(openimages, capsys):
    assert data("openimages", "prepare", openimages) == 0
    printed = capsys.readouterr().out
    assert (
        "1 conflicts; other entries count as not annotated" in printed
        and "the first: train/train-annotations-human-imagelabels.csv lines 3 and 4" in printed
    )
    (openimages / "others.txt").write_text("/m/04\n")
    assert data("openimages", "prepare", openimages, "--unseen", "others.txt", "--splits", "test") == 0
    assert len(open_split(openimages, "test").label_ids) == 4


@pytest.mark.parametrize(
    "options, labels", [([], (48, 65)), (["--division", "65/15"], (65, 80)), (["--division", "all"], (80, 80))]
)
def test_prepare_coco(tmp_path, options, labels):
    for name, number in (("train2014", 1), ("val2017", 2)):
        write_coco(tmp_path, coco(images=[(number, f"{number}.jpg")], objects=[(number, "person")]), name)
        write_images(tmp_path / name, f"{number}.jpg")
    assert data("coco", "prepare", tmp_path, "--test", "val2017", *options) == 0
    assert tuple(len(index.label_ids) for index in open_splits(tmp_path).values()) == labels


def test_prepare_voc(tmp_path):
    for name in ("Annotations", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    for split, name in (("trainval", "000001"), ("test", "000002")):
        (tmp_path / f"ImageSets/Main/{split}.txt").write_text(f"{name}\n")
        (tmp_path / f"Annotations/{name}.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    (tmp_path / "unseen.txt").write_text("cat\n")
    write_images(tmp_path / "JPEGImages", "000001.jpg", "000002.jpg")
    assert data("voc", "prepare", tmp_path, "--unseen", "unseen.txt") == 0
    assert open_splits(tmp_path)["test"].label_ids[-1] == "cat"


def test_prepare_a_folder(own, capsys):
    assert data("folder", "prepare", own) == 2
    assert "test.csv line 2: label 'dog' is neither in seen nor in unseen" in said(capsys)
    assert data("folder", "prepare", own, "--unseen", "unseen.txt", "--image-folder", "pictures") == 0
    assert open_split(own, "test").path(0) == own / "pictures/c.jpg"
    (own / "seen.txt").write_text("sand\nsea\n")
    (own / "train.csv").rename(own / "fit.csv")
    assert (
        data(
            "folder",
            "prepare",
            own,
            "--train",
            "fit.csv",
            "--test",
            "test.csv",
            "--seen",
            "seen.txt",
            "--unseen",
            "unseen.txt",
        )
        == 0
    )
    assert open_split(own, "test").label_ids == ("sand", "sea", "dog")


def test_train_and_evaluate_read_what_was_prepared(tmp_path, capsys):
    root = tmp_path / "pocket"
    small = ["--n-train", 30, "--n-test", 15]
    assert data("pocket", root, *small) == 0
    assert data("pocket", root, *small) == 2 and "already holds" in capsys.readouterr().err
    assert data("pocket", root, *small, "--force") == 0
    recipe = ["--epochs", "1", "--n-layers", "1", "--n-queries", "2", "--schedule", "cosine", "--lr", "1e-3"]
    assert main(["train", str(root), "--out", str(tmp_path / "raw"), *recipe]) == 0
    table = (tmp_path / "raw/table.md").read_text()
    assert data("nuswide", "prepare", root) == 0
    assert main(["train", str(root), "--out", str(tmp_path / "prepared"), *recipe]) == 0
    assert (tmp_path / "prepared/table.md").read_text() == table
    assert main(["evaluate", str(tmp_path / "prepared/model"), str(root)]) == 0
    names = (root / "ImageList/TestImagelist.txt").read_text().splitlines()
    (root / "ImageList/TestImagelist.txt").write_text("\n".join(reversed(names)) + "\n")
    capsys.readouterr()
    for line in (["train", str(root), "--out", str(tmp_path / "new")], ["evaluate", "pocket", str(root)]):
        assert (
            main(line) == 2
            and f"is stale: the raw files in {root} have changed" in (words := said(capsys))
            and f"`qks data nuswide prepare {root}`" in words
        )
    assert not (tmp_path / "new").exists()
    (root / "qks-index-test.npz").write_bytes(b"junk")
    assert main(["evaluate", "pocket", str(root)]) == 2 and "damaged" in said(capsys)
    assert data("nuswide", "prepare", root) == 0 and main(["evaluate", str(tmp_path / "raw/model"), str(root)]) == 0


# --- mistakes, help, an end by force ---


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nuswide", "fetch", "ROOT", "--urls", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["nuswide", "fetch", "ROOT", "--urls", "ROOT/Concepts81.txt"], "Concepts81.txt line 1 is not the header"),
        (["nuswide", "fetch", "ROOT", "--urls", "ROOT/Concepts81.txt", "--workers", "0"], "workers is 0"),
        (["nuswide", "fetch", "ROOT/Concepts81.txt", "--urls", "URLS"], "Concepts81.txt"),
        (["openimages", "fetch", "ROOT", "--images", "ROOT"], "cannot be read"),
        (["openimages", "fetch", "ROOT", "--images", "URLS", "--only", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["nuswide", "check", "nowhere"], "nowhere is no folder"),
        (["openimages", "check", "nowhere"], "nowhere is no folder"),
        (["nuswide", "check", "ROOT", "--workers", "0"], "workers is 0"),
        (["nuswide", "prepare", "nowhere"], "nowhere is no folder"),
        (["nuswide", "prepare", "ROOT/ImageList"], "TagList1k.txt is missing"),
        (["openimages", "prepare", "ROOT"], "is missing"),
        (["voc", "prepare", "ROOT", "--unseen", "../x.txt"], "x.txt is missing: looked for it at"),
        (["coco", "prepare", "ROOT"], "instances_train2014.json is missing"),
        (["coco", "prepare", "ROOT", "--train", "../x"], "relative"),
        (["voc", "prepare", "ROOT"], "trainval.txt is missing"),
        (["folder", "prepare", "ROOT"], "train.csv is missing"),
        (["folder", "prepare", "ROOT", "--unseen", "nowhere.txt"], "nowhere.txt is missing"),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments, words, nuswide, tmp_path, capsys):
    places = {"ROOT": str(nuswide), "URLS": str(address_list(tmp_path, "http://127.0.0.1:1", "photo/1"))}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    assert data(*arguments) == 2
    assert words in said(capsys)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["nuswide81", "check", "x"], "did you mean 'nuswide'?"),
        (["nuswide", "prepare"], "ROOT"),
        (["nuswide", "prepare", "x", "--splits", "val"], "--splits"),
        (["nuswide", "fetch", "x"], "--urls"),
        (["nuswide", "fetch", "x", "--urls", "y", "--size", "huge"], "--size"),
        (["openimages", "fetch", "x", "--images", "y", "--source", "z"], "--source"),
        (["coco", "prepare", "x", "--division", "50/30"], "--division"),
        (["nuswide", "check", "x", "--workers", "many"], "--workers"),
        (["coco", "fetch", "x"], "give one of check, prepare"),
        (["nuswide"], "give one of fetch, check, prepare"),
        ([], "give one of nuswide, openimages"),
    ],
)
def test_what_the_parser_refuses_ends_with_2(arguments, expected, capsys):
    assert data(*arguments) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.out == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_arguments_defaults_and_one_example(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example:\n  qks {command} data/" in text
    assert ("DIR" if command == "data pocket" else "ROOT") in text and "default: " in text
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_each_help_is_understood(command):
    words = f"{command} {COMMANDS[command].example}".split()
    request = find_command(words)
    assert request.name == command and type(parse(words)) is request.command.options


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_does(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    options = re.findall(r"(?<!\S)--[a-z-]+(?: (?!--)\S+)* \((?:default|required)", text)
    assert len(options) >= 3
    for option in options:
        assert len(option.split()) > 3, option


@pytest.mark.parametrize("command", ["data", "data nuswide", "data openimages", "data coco", "data voc", "data folder"])
def test_help_of_the_data_sets(command, capsys):
    assert main([*command.split(), "--help"]) == 0
    assert "prepare" in capsys.readouterr().out


def test_the_shell_sees_the_status(nuswide, own):
    for arguments, status in (
        (["nuswide", "check", nuswide], 1),
        (["nuswide", "prepare", nuswide], 0),
        (["nuswide", "prepare", "nowhere"], 2),
    ):
        done = subprocess.run(qks(*arguments), capture_output=True, text=True)
        assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
        assert (done.stderr.count("\n") == 1 and done.stderr.startswith("qks: ")) if status == 2 else done.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")
def test_ctrl_c_ends_a_fetch_in_one_sentence(server, nuswide, tmp_path):
    urls = address_list(tmp_path, server.site, "photo/1", "slow/2", "slow/3")
    process = subprocess.Popen(
        qks("nuswide", "fetch", nuswide, "--urls", urls, "--delay", 0),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ends = time.monotonic() + 60
        while time.monotonic() < ends and not (len(server.asked) >= 3 and (nuswide / "Flickr/zoo/0000_0.jpg").exists()):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        server.release.set()
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err and err.rstrip().endswith("qks: stopped by the user"), (
        err
    )
    assert not list((nuswide / "Flickr/zoo").glob(".*"))
    assert data("nuswide", "fetch", nuswide, "--urls", urls, "--delay", 0) == 0


def test_ctrl_c_ends_a_preparation_with_130(nuswide, monkeypatch, capsys):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("qks.data.index.np.savez_compressed", stopped)
    assert data("nuswide", "prepare", nuswide) == 130 and said(capsys) == "qks: stopped by the user\n"
    assert not list(nuswide.glob("*qks-index*")) and not list(nuswide.glob(".*"))


# --- data/README.md ---

README = (Path(__file__).parent.parent / "data/README.md").read_text(encoding="utf-8")


def test_the_commands_of_the_readme_run(server, tmp_path, monkeypatch, nuswide, openimages):
    monkeypatch.chdir(tmp_path)
    for name in ("nuswide", "openimages"):
        shutil.move(tmp_path / name, tmp_path / "data" / name)
    address_list(tmp_path, server.site, "photo/1", "missing").rename("NUS-WIDE-urls.txt")
    Path("test-images-with-rotation.csv").write_text(
        f"ImageID,Subset,OriginalURL,Thumbnail300KURL\n{11:016x},test,{server.site}/photo/1,\n"
    )
    for folder in ("coco", "voc/Annotations", "voc/ImageSets/Main", "folder"):
        Path("data", folder).mkdir(parents=True)
    for number, name in ((1, "train2014"), (2, "val2014")):
        write_coco(Path("data/coco"), coco(images=[(number, f"{number}.jpg")], objects=[(number, "person")]), name)
        write_images(Path("data/coco") / name, f"{number}.jpg")
    for name, split in (("000001", "trainval"), ("000002", "test")):
        Path(f"data/voc/ImageSets/Main/{split}.txt").write_text(f"{name}\n")
        Path(f"data/voc/Annotations/{name}.xml").write_text(
            "<annotation><object><name>dog</name></object></annotation>"
        )
    write_images(Path("data/voc/JPEGImages"), "000001.jpg", "000002.jpg")
    Path("data/voc/unseen.txt").write_text("cat\n")
    table = README.partition("```\nimage,labels\n")[2].partition("```")[0]
    for split in ("train", "test"):
        Path(f"data/folder/{split}.csv").write_text(
            "image,labels\n" + "".join(table.replace("/", f"/{split}{number}-") for number in range(4))
        )
        for line in Path(f"data/folder/{split}.csv").read_text().splitlines()[1:]:
            write_images(Path("data/folder"), line.split(",")[0])
    Path("data/folder/unseen.txt").write_text("dog\n")
    for name in ("cat", "dog"):
        write_images(Path("my-export") / name, *(f"{number}.jpg" for number in range(8)))
    lines = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    lines += re.findall(r"`(qks data [^`]* --min-bytes 1)`", README)
    assert len(lines) > 9
    for line in lines:
        words = line.split()
        assert words[:2] == ["qks", "data"]
        if words[2] == "pocket":
            words += ["--n-train", "20", "--n-test", "10"]
        table = Path("data/folder/test.csv")
        aside = Path("data/folder/aside")
        if "--test-part" in words:
            table.rename(aside)  # one table, then two
        status = data(*words[2:])
        if "--test-part" in words:
            aside.rename(table)
        assert status == 0 or status == 1 and words[3] in ("fetch", "check") and "pocket" not in line, line
    assert [
        len(open_splits(f"data/{name}")["test"].label_ids)
        for name in ("nuswide", "openimages", "coco", "voc", "folder", "pocket")
    ] == [1006, 5, 80, 20, 3, 326]


def test_every_command_that_the_readme_names_exists(capsys):
    named = set(re.findall(r"qks (data \w+ (?:fetch|check|prepare)|data pocket)", README))
    assert {"data nuswide fetch", "data coco prepare", "data folder prepare"} <= named <= set(COMMANDS)
    helps = ""
    for command in COMMANDS:
        assert main([*command.split(), "--help"]) == 0
        helps += capsys.readouterr().out
    for option in set(re.findall(r"`(--[a-z-]+)", README)):
        assert f"{option} " in helps, option


def test_a_folder_of_ones_own_is_checked(tmp_path, capsys):
    "A missing picture, one that cannot be decoded, a label in two spellings, an unseen label that nothing shows."
    for split in ("train", "test"):
        for number in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / f"{split}{number}.png")
        rows = [
            f"{split}{number}.png,{'moon' if number % 2 else 'sun'}|{'Sky' if number else 'sky'}" for number in range(4)
        ]
        (tmp_path / f"{split}.csv").write_text("\n".join(["image,labels", *rows]) + "\n")
    (tmp_path / "unseen.txt").write_text("moom\n")
    (tmp_path / "train3.png").unlink()
    assert data("folder", "prepare", tmp_path, "--unseen", "unseen.txt") == 0
    told = capsys.readouterr().out
    assert (
        "1 images are missing or empty, the first: train3.png; training needs them, or leave them out with "
        "--leave-out-missing" in told
    )
    assert (
        "  no test image shows the unseen label 'moom': is it 'moon'?\n"
        "  labels 'sky' and 'Sky' differ in capitals only\n" in told
    )
    (tmp_path / "test1.png").write_bytes(b"no picture")
    assert (
        data("folder", "check", tmp_path) == 1
        and "1 of 4 images in" in (told := capsys.readouterr().out)
        and "train3.png" in told
        and "test1.png" not in told
        and "is it 'moon'?" in told
    )
    assert (
        data("folder", "check", tmp_path, "--decode") == 1
        and "no images that can be decoded, the first: test1.png" in capsys.readouterr().out
    )
    for name in ("train3.png", "test1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert (
        data("folder", "check", tmp_path, "--decode") == 0
        and "test images   4 of 4 images are there and decode" in capsys.readouterr().out
    )


def test_splits_that_were_prepared_apart_are_checked_together(tmp_path, capsys):
    rows = [f"{number}.png,{'sun' if number % 2 else 'moon'}" for number in range(10)]
    for number in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "train.csv").write_text("\n".join(["image,labels", *rows]) + "\n")
    (tmp_path / "all.txt").write_text("sun\nmoon\n")
    assert data("folder", "prepare", tmp_path, "--splits", "train") == 0
    assert data("folder", "check", tmp_path) == 0 and "the test split was not prepared" in capsys.readouterr().out
    assert data("folder", "prepare", tmp_path, "--splits", "test", "--test-part", "0.2") == 0
    assert data("folder", "check", tmp_path) == 1 and "are in both splits" in capsys.readouterr().out
    (tmp_path / "qks-index-train.npz").unlink()
    assert (
        data("folder", "prepare", tmp_path, "--splits", "test", "--test-part", "0.2", "--unseen", "all.txt") == 2
    )  # of one table, the training images need labels, too
    (tmp_path / "train.csv").rename(tmp_path / "test.csv")
    assert (
        data("folder", "prepare", tmp_path, "--splits", "test", "--unseen", "all.txt")
        == data("folder", "check", tmp_path)
        == 0
    )
