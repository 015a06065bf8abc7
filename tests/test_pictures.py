"""Pictures as phones, cameras and broken disks give them, each in its real format."""

import io
import json
import logging
import os
import re
import socket
import struct
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from qks.commands.main import main
from qks.core import (
    DamagedImage,
    QKSError,
    UnreadableImage,
    accept_truncated_images,
    check_image_exists,
    images as module,
    load_image,
)
from qks.data.check import damaged_images
from qks.data.splits import open_split
from qks.model.tagger import _walk, find_pictures

NOISE = np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8)


@pytest.fixture(autouse=True)
def says_again(monkeypatch):
    """What is said once per process is said again in each test."""
    module._say_once.cache_clear()
    monkeypatch.setattr(module, "_DEPTH_SAID", threading.Event())


# --- phones ---

HEIC_START = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(60)


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "phone.jpg"])
@pytest.mark.parametrize("turn", [1, 6])
def test_heic_is_read_by_its_content(tmp_path, name, turn):
    pillow_heif = pytest.importorskip("pillow_heif")
    smooth = np.zeros((32, 48, 3), np.uint8)
    smooth[:, :24] = (250, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = turn
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(tmp_path / name, quality=100, exif=exif.tobytes())
    image = load_image(tmp_path / name)
    assert image.mode == "RGB" and image.size == ((48, 32) if turn == 1 else (32, 48))
    red = image.getpixel((4, 4))
    assert red[0] > 235 and max(red[1:]) < 20  # the left, turned clockwise, is on top
    assert max(image.getpixel((image.width - 4, image.height - 4))) < 20


def test_heic_without_the_extra_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.setattr(Image, "OPEN", {name: value for name, value in Image.OPEN.items() if name != "HEIF"})
    (tmp_path / "IMG_1.HEIC").write_bytes(HEIC_START)
    Image.fromarray(NOISE).save(tmp_path / "b.png")
    message = r"IMG_1.HEIC is a HEIC picture, as phones take them: pip install 'qks\[heif\]' to read such pictures"
    with pytest.raises(UnreadableImage, match=message):
        load_image(tmp_path / "IMG_1.HEIC")
    assert (
        main(["tag", str(tmp_path), "--labels", "cat", "--device", "cpu", "--model", "pocket"]) == 1
    )  # in a folder, too, it is a picture
    captured = capsys.readouterr()
    assert "pip install 'qks[heif]'" in captured.err and "b.png" in captured.out


def test_avif_by_pillow_and_without_it(tmp_path, monkeypatch):
    if features.check("avif"):
        Image.new("RGB", (40, 30), (0, 0, 250)).save(tmp_path / "a.avif")
        assert load_image(tmp_path / "a.avif").getpixel((20, 15))[2] > 230
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    (tmp_path / "b.avif").write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf" + bytes(60))
    with pytest.raises(UnreadableImage, match="b.avif is an AVIF picture, which Pillow reads from version 11.3 on"):
        load_image(tmp_path / "b.avif")


def test_other_files_of_its_kind_are_no_pictures(tmp_path):
    (tmp_path / "film.jpg").write_bytes(b"\0\0\0\x1cftypisom\0\0\0\0isomiso2avc1" + bytes(60))
    with pytest.raises(DamagedImage, match="film.jpg is not an image that Pillow can read"):
        load_image(tmp_path / "film.jpg")


# --- 12 bits in 16 ---


def png16(values):
    """A PNG of 16 bits per value, from [H, W, 3 or 4]; Pillow writes none."""
    height, width, channels = values.shape
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    "values, shown, said",
    [
        ([0, 2048, 4095], [0, 127, 255], True),
        ([0, 500, 1000], [0, 127, 255], True),
        ([0, 100, 255], [0, 100, 255], False),  # 8 bits in 16
        ([0, 2048, 4096], [0, 8, 16], False),  # 13 bits: a dark picture of 16
        ([0, 32_768, 65_535], [0, 128, 255], False),
        ([0, 0, 0], [0, 0, 0], False),
    ],
)
def test_twelve_bits_of_grey(tmp_path, caplog, suffix, values, shown, said):
    for name in ("a", "b"):
        Image.fromarray(np.array([values], np.uint16)).save(tmp_path / f"{name}.{suffix}")
        assert np.asarray(load_image(tmp_path / f"{name}.{suffix}"))[0, :, 0].tolist() == shown
    lines = [message for message in caplog.messages if "uses 12 or fewer" in message]
    assert len(lines) == said  # one line, for the first of the two
    if said:
        assert f"a.{suffix} has 16 bits" in lines[0] and f"its own maximum, {max(values):,}, becomes white" in lines[0]


@pytest.mark.parametrize("channels", [3, 4])
def test_twelve_bits_of_colour(tmp_path, caplog, channels):
    values = np.zeros((1, 3, channels), np.uint16)
    values[0, :, :3] = [[0, 0, 4095], [2048, 0, 0], [0, 1024, 4095]]
    values[..., 3:] = 65_535
    (tmp_path / "deep.png").write_bytes(png16(values))
    shown = np.asarray(load_image(tmp_path / "deep.png"))
    assert shown[0].tolist() == [[0, 0, 255], [127, 0, 0], [0, 63, 255]] and "uses 12 or fewer" in caplog.text
    caplog.clear()
    values[0, 0, 0] = 65_535
    (tmp_path / "deep.png").write_bytes(png16(values))
    assert np.asarray(load_image(tmp_path / "deep.png"))[0].tolist() == [[255, 0, 15], [8, 0, 0], [0, 4, 15]]
    assert not caplog.text


# --- pictures cut short ---


def encoded(array, kind):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


CUTS = [("BMP", 60), ("PPM", 60), ("PNG", 150), ("JPEG", 60), ("TGA", 60)]


@pytest.mark.parametrize("kind, n_bytes", CUTS)
def test_a_last_line_that_is_missing_is_accepted_when_asked(tmp_path, caplog, kind, n_bytes):
    whole = tmp_path / f"whole.{kind.lower()}"
    whole.write_bytes(encoded(NOISE, kind))
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(whole.read_bytes()[:-n_bytes])
    with pytest.raises(DamagedImage, match="cut.*truncated"):
        load_image(path)
    with accept_truncated_images():
        image = np.asarray(load_image(path))
        load_image(path)
    expected = np.asarray(load_image(whole))
    assert image.shape == expected.shape
    (line,) = [message for message in caplog.messages if "is truncated, and accepted: " in message]
    n_missing = int(re.search(r"accepted: (\d+) lines? (?:is|are) missing of 60", line)[1])
    if kind in ("BMP", "TGA"):  # from the bottom up
        image = image[::-1]
        expected = expected[::-1]
    if kind == "JPEG":
        assert (image[:40] == expected[:40]).all()  # its lines come in blocks
    else:
        assert 1 <= n_missing <= 3 and (image[:-n_missing] == expected[:-n_missing]).all()
        assert (image[-n_missing:] == image[-n_missing - 1]).all()  # the last line that is there
    with pytest.raises(DamagedImage):
        load_image(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "PPM"])
def test_half_a_picture_is_never_accepted(tmp_path, kind):
    content = encoded(NOISE, kind)
    (tmp_path / "half.img").write_bytes(content[: len(content) // 2])
    with (
        accept_truncated_images(),
        pytest.raises(DamagedImage, match=r"half.img is truncated, and \d+ of its 60 lines"),
    ):
        load_image(tmp_path / "half.img")
    (tmp_path / "text.img").write_text("no picture")
    with accept_truncated_images(), pytest.raises(DamagedImage, match="is not an image"):
        load_image(tmp_path / "text.img")


def test_one_threads_leniency_is_no_others(tmp_path):
    content = encoded(NOISE, "PPM")[:-60]
    with module._cut_short():
        found = []
        worker = threading.Thread(target=lambda: found.append(bool(ImageFile.LOAD_TRUNCATED_IMAGES)))
        worker.start()
        worker.join()
        assert found == [False] and ImageFile.LOAD_TRUNCATED_IMAGES
        Image.open(io.BytesIO(content)).load()
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(content)).load()


def test_the_setting_ends_with_its_block(monkeypatch):
    monkeypatch.delenv("QKS_ACCEPT_TRUNCATED", raising=False)
    with accept_truncated_images(False):
        assert "QKS_ACCEPT_TRUNCATED" not in os.environ
    with pytest.raises(ZeroDivisionError), accept_truncated_images():
        assert os.environ["QKS_ACCEPT_TRUNCATED"] == "1"
        raise ZeroDivisionError
    assert "QKS_ACCEPT_TRUNCATED" not in os.environ


QUICK = "--recipe paper --epochs 1 --n-layers 1 --n-queries 2 --batch-size 4 --selection last".split()


def write_folder(root):
    """Pictures with a table; one lacks its last line."""
    (root / "images").mkdir()
    for name in "abcdefgh":
        Image.fromarray(np.roll(NOISE, ord(name), 0)).save(root / f"{name}.png")
    (root / "c.png").write_bytes((root / "c.png").read_bytes()[:-100])
    rows = [f"{name}.png,{'cat' if name in 'abcd' else 'dog'}" for name in "abcdefgh"]
    (root / "train.csv").write_text("image,labels\n" + "\n".join(rows))


def test_commands_accept_truncated_pictures(tmp_path, capsys):
    write_folder(tmp_path)
    tag = [
        "tag",
        str(tmp_path / "c.png"),
        str(tmp_path / "a.png"),
        "--labels",
        "cat",
        "--device",
        "cpu",
        "--model",
        "pocket",
        "--threshold",
        "0",
        "--json",
    ]
    assert main(tag) == 1
    assert "c.png is damaged or truncated" in capsys.readouterr().err
    assert main([*tag, "--accept-truncated"]) == 0
    captured = capsys.readouterr()
    assert [answer["image"] for answer in json.loads(captured.out) if answer["tags"]] == tag[1:3]
    assert "c.png is truncated, and accepted" in captured.err
    prepare = ["data", "folder", "prepare", str(tmp_path), "--leave-out-damaged"]
    assert main(prepare) == 0
    assert len(open_split(tmp_path, "train")) == 7
    assert main([*prepare, "--accept-truncated"]) == 0
    assert len(open_split(tmp_path, "train")) == 8
    assert "c.png is truncated, and accepted" in capsys.readouterr().err
    assert main(["data", "folder", "check", str(tmp_path), "--decode"]) == 1
    assert main(["data", "folder", "check", str(tmp_path), "--decode", "--accept-truncated"]) == 0
    capsys.readouterr()
    train = ["train", str(tmp_path), "--out", str(tmp_path / "run"), *QUICK]
    assert main(train) == 2
    assert "c.png is damaged or truncated" in capsys.readouterr().err
    assert main([*train, "--accept-truncated", "--force"]) == 0


# --- files that are none ---


def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero", "/dev/null"):
        for read in (check_image_exists, load_image):
            with pytest.raises(QKSError, match="is a pipe, a socket or a device, and not opened: name a file"):
                read(path)
    (tmp_path / "dangling.png").symlink_to("gone.png")
    with pytest.raises(QKSError, match="dangling.png is a link to gone.png, which does not exist"):
        check_image_exists(tmp_path / "dangling.png")


def test_a_folder_of_all_kinds(tmp_path, caplog):
    (tmp_path / "sub").mkdir()
    Image.fromarray(NOISE).save(tmp_path / "sub" / "a.png")
    Image.fromarray(NOISE).save(tmp_path / "b.heic", "PNG")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "there.png").symlink_to("sub/a.png")
    (tmp_path / "folder").symlink_to("sub")
    (tmp_path / ".hidden.jpg").symlink_to("nowhere.jpg")
    server = socket.socket(socket.AF_UNIX)
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path)  # the name of a socket is short
        server.bind("socket.jpg")
    finally:
        os.fchdir(here)
        os.close(here)
        server.close()
    found = find_pictures([tmp_path])
    names = ("b.heic", "sub/a.png", "there.png")  # a link is a name of its own
    assert found.pictures == [str(tmp_path / name) for name in names]
    assert [message.partition(" has ")[2].partition(",")[0] for message in caplog.messages] == [
        "links that lead nowhere (1)",
        "links to folders",
        "pipes",
    ]
    assert "pipes, sockets or devices (2)" in caplog.text


@pytest.fixture
def nobody():
    """The rights of a user who owns nothing; root can read what is locked."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked(tmp_path):
    (tmp_path / "closed").mkdir()
    for name in ("closed/a.png", "b.png", "c.png"):
        Image.fromarray(NOISE).save(tmp_path / name)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    (tmp_path / "b.png").chmod(0)
    (tmp_path / "closed").chmod(0)
    yield tmp_path
    (tmp_path / "closed").chmod(0o755)


def test_what_is_locked_is_counted_and_costs_only_itself(locked, nobody):
    if not os.access(locked, os.R_OK, effective_ids=True):
        pytest.skip("temporary folders are closed to other users")
    walk = _walk(locked)
    assert walk.skipped == {"folders that cannot be opened": [str(locked / "closed")]}
    assert walk.files == [locked / "b.png", locked / "c.png"]
    for path in (locked / "b.png", locked / "closed" / "a.png"):
        with pytest.raises(UnreadableImage, match=f"{path.name} cannot be read .Permission denied"):
            load_image(path)
    assert load_image(locked / "c.png").size == (40, 60)


def test_one_bad_file_among_named_ones_costs_only_itself(tmp_path, capsys):
    Image.fromarray(NOISE).save(tmp_path / "good.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("good.png")
    names = ["good.png", "empty.jpg", "gone.jpg", "text.jpg", "pipe.png", "link.png"]
    paths = [str(tmp_path / name) for name in names]
    assert (
        main(["tag", *paths, "--labels", "cat", "--device", "cpu", "--model", "pocket", "--threshold", "0", "--json"])
        == 1
    )
    captured = capsys.readouterr()
    answers = json.loads(captured.out)
    assert [answer["image"] for answer in answers] == paths  # each one that is asked about
    tagged = [answer["image"] for answer in answers if [tag["label"] for tag in answer.get("tags") or ()] == ["cat"]]
    assert tagged == [paths[0], paths[-1]]  # two names of one file
    for name, words in (
        ("empty.jpg", "is empty"),
        ("gone.jpg", "does not exist"),
        ("text.jpg", "is not an image"),
        ("pipe.png", "is a pipe"),
    ):
        assert any(name in line and words in line for line in captured.err.split("\n")), name
    assert "4 of 6 pictures could not be read" in captured.err


def test_damaged_files_are_listed_and_pipes_are_not_waited_for(tmp_path):
    class Split:
        root = tmp_path
        image_folder = "."
        images = ("a.png", "pipe.png", "cut.png")

    Image.fromarray(NOISE).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-100])
    logging.getLogger("qks").setLevel(logging.WARNING)
    assert damaged_images(Split(), workers=2) == ["cut.png"]


# --- colours stay as good as they are ---


def test_cmyk_palette_and_transparency(tmp_path):
    Image.new("RGB", (8, 8), (200, 30, 40)).convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    assert np.abs(np.asarray(load_image(tmp_path / "print.jpg")).astype(int) - (200, 30, 40)).max() <= 4
    palette = Image.new("P", (8, 8))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((3, 3), 1)
    palette.save(tmp_path / "palette.png")
    image = load_image(tmp_path / "palette.png")
    assert (image.getpixel((0, 0)), image.getpixel((3, 3))) == ((10, 20, 30), (200, 100, 50))
    palette.save(tmp_path / "clear.png", transparency=0)
    image = load_image(tmp_path / "clear.png")
    assert (image.getpixel((0, 0)), image.getpixel((3, 3))) == ((255, 255, 255), (200, 100, 50))


def test_a_link_beside_its_file_is_another_picture(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "t.jpg")
    (tmp_path / "same.jpg").symlink_to(tmp_path / "t.jpg")
    found = find_pictures([tmp_path, f"{tmp_path}/../{tmp_path.name}/t.jpg"])
    assert found.pictures == [str(tmp_path / "same.jpg"), str(tmp_path / "t.jpg")]


def test_a_truncated_picture_is_told_the_way_on(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-400])
    with pytest.raises(QKSError, match="export it again, or take what is there with --accept-truncated"):
        load_image(tmp_path / "cut.jpg")
