"""One kind of error, and loading that survives bad files."""

import io
import itertools
import logging
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from qks.core import (
    ASSETS,
    DamagedImage,
    QKSError,
    UnreadableImage,
    atomic_file,
    available_memory,
    cache_folder,
    check_count,
    check_labels,
    load_image,
    progress,
    read_tensors,
    system,
    temporary_folder,
    write_atomic,
)

rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (12, 10, 3), np.uint8)  # [H, W, 3]


def refused(match, function, *args, **kwargs):
    "Expect a QKSError whose message is a single line that matches."
    with pytest.raises(QKSError, match=match) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png_header(width, height):
    "A PNG of a few bytes that claims to be `width` x `height`."

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


# ---- images


@pytest.mark.parametrize("kind", [str, Path, Image.open, lambda path: np.asarray(Image.open(path))])
def test_every_source_gives_the_same_pixels(tmp_path, kind):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    image = load_image(kind(tmp_path / "a.png"))
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("behind", [0, 255])
def test_what_is_transparent_lies_on_white(tmp_path, mode, behind):
    "Whatever colour an editor left behind it."
    clear = Image.new("RGBA", (2, 1), (behind, behind, behind, 0))
    clear.putpixel((1, 0), (40, 40, 40, 255))
    image = clear.quantize(4) if mode == "P" else clear.convert(mode)
    image.save(tmp_path / "clear.png")
    assert [load_image(tmp_path / "clear.png").getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (40,) * 3]


def test_a_transparent_shade_of_sixteen_bit_grey(tmp_path):
    Image.fromarray(np.array([[30_000, 7]], np.uint16)).save(tmp_path / "deep.png", transparency=7)
    assert [load_image(tmp_path / "deep.png").getpixel((x, 0))[0] for x in (0, 1)] == [30_000 >> 8, 255]


@pytest.mark.parametrize(
    "values, dtype, shown",
    [
        ([0, 128, 255], np.int32, [0, 128, 255]),
        ([0, 32_768, 65_535], np.int32, [0, 128, 255]),
        ([0, 0.5, 1], np.float32, [0, 127, 255]),
        ([0, 128, 255], np.float32, [0, 128, 255]),
        ([0, 32_768, 65_535], np.uint16, [0, 128, 255]),
    ],
    ids=str,
)
def test_deep_grey_is_scaled_not_cut_off(values, dtype, shown):
    image = load_image(Image.fromarray(np.array([values], dtype)))
    assert np.asarray(image).tolist() == [[[value] * 3 for value in shown]]


@pytest.mark.parametrize("values", [[-1, 5], [0, 70_000], [0.0, float("nan")]], ids=str)
def test_grey_of_unknown_range(values, tmp_path):
    image = Image.fromarray(np.array([values], np.float32 if isinstance(values[0], float) else np.int32))
    image.save(tmp_path / "deep.tif")
    refused("deep.tif has grey values from .*: save it with 8 or 16 bits", load_image, tmp_path / "deep.tif")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr", "HSV", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    assert load_image(Image.fromarray(PIXELS).convert(mode)).mode == "RGB"


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_array_shapes(shape):
    array = np.full(shape, 7, np.uint8)
    if shape[2:] == (4,):
        array[..., 3] = 255  # opaque
    image = load_image(array)
    assert image.size == (6, 4) and image.getpixel((0, 0)) == (7, 7, 7)


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    shades = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    grey = np.asarray(load_image(tmp_path / "deep.png"))[..., 0]
    assert abs(grey.astype(int) - (shades >> 8)).max() <= 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0), np.uint8),
        np.zeros((5, 5), bool),
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5, 2), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_that_are_no_image(array):
    refused(r"array.*\[", load_image, array)


def test_zero_size_pil_image():
    refused("0 x 5.*no pixel", load_image, Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("source", [None, 3, b"bytes", [PIXELS]], ids=repr)
def test_things_that_are_no_image(source):
    refused("must be a path, a PIL image or a uint8 array", load_image, source)


def test_missing_and_folder_and_empty(tmp_path):
    (tmp_path / "empty.jpg").touch()
    refused("nowhere.jpg does not exist", load_image, tmp_path / "nowhere.jpg")
    refused("is a folder", load_image, tmp_path)
    refused(r"empty.jpg is empty \(0 bytes\)", load_image, str(tmp_path / "empty.jpg"))


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x00" * 500, "ä".encode()])
def test_files_that_are_no_image(tmp_path, content):
    (tmp_path / "page.jpg").write_bytes(content)
    refused("page.jpg is not an image", load_image, tmp_path / "page.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_truncated_files(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "cut." in refused("damaged|truncated|not an image", load_image, path)


def test_pixel_limit_is_exact():
    assert load_image(PIXELS, max_pixels=120).size == (10, 12)
    refused("120 pixels, over the limit of 119", load_image, PIXELS, max_pixels=119)
    refused("over the limit", load_image, Image.fromarray(PIXELS), max_pixels=119)


@pytest.mark.parametrize("width, height", [(60000, 60000), (13_400, 13_400), (178_956_971, 1)])
def test_a_bomb_is_refused_by_its_header(tmp_path, width, height, recwarn):
    (tmp_path / "bomb.png").write_bytes(png_header(width, height))
    refused("bomb.png.*limit of 178,956,970", load_image, tmp_path / "bomb.png")
    assert not [warning for warning in recwarn.list if issubclass(warning.category, Image.DecompressionBombWarning)]


# ---- weight files

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor(3),
    "half": torch.ones(2, dtype=torch.float16),
}


def same(state):
    if state.keys() != TENSORS.keys():
        return False
    return all(
        torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )


@pytest.mark.parametrize(
    "name, write",
    [
        ("w.safetensors", save_file),
        ("w.pt", torch.save),
        ("w.bin", torch.save),
        ("noname", torch.save),
        ("old.pth", lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)),
        ("nested.pt", lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path)),
    ],
)
def test_tensors_round_trip(tmp_path, name, write):
    write(TENSORS, tmp_path / name)
    assert same(read_tensors(tmp_path / name)) and same(read_tensors(str(tmp_path / name)))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_archive(tmp_path):
    module = torch.nn.Linear(2, 3)
    torch.jit.trace(module, torch.zeros(1, 2)).save(tmp_path / "scripted.pt")
    state = read_tensors(tmp_path / "scripted.pt")
    assert state.keys() == {"weight", "bias"} and torch.equal(state["weight"], module.weight)


class Evil:
    "Unpickling it would make a folder."

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    "write",
    [
        lambda evil, path: torch.save({"a": torch.zeros(2), "b": evil}, path),
        lambda evil, path: torch.save(evil, path, _use_new_zipfile_serialization=False),
        lambda evil, path: path.write_bytes(pickle.dumps(evil)),
    ],
    ids=["zip", "legacy", "bare pickle"],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_code_in_a_weight_file_does_not_run(tmp_path, write, suffix):
    write(Evil(tmp_path / "it ran"), tmp_path / f"evil.{suffix}")
    refused("evil.*(refused|damaged)", read_tensors, tmp_path / f"evil.{suffix}")
    assert not (tmp_path / "it ran").exists()


def test_the_refusal_says_why(tmp_path):
    torch.save({"b": Evil(tmp_path / "it ran")}, tmp_path / "evil.pt")
    refused("could run code.*safetensors", read_tensors, tmp_path / "evil.pt")


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1", b"hello", b"\x80\x02garbage", b"PK\x03\x04cut"]
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damaged_weight_files(tmp_path, content, suffix):
    (tmp_path / f"w.{suffix}").write_bytes(content)
    refused(f"w.{suffix} (is damaged|was refused)", read_tensors, tmp_path / f"w.{suffix}")


@pytest.mark.parametrize("name, write", [("w.safetensors", save_file), ("w.pt", torch.save)])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_truncated_weight_files(tmp_path, name, write, share):
    path = tmp_path / name
    write(TENSORS, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(f"{name} is damaged", read_tensors, tmp_path / name)


@pytest.mark.parametrize("content", [torch.zeros(2), [torch.zeros(2)], {"a": {"b": torch.zeros(2)}}, {"a": 3}], ids=str)
def test_weight_files_that_are_no_flat_dictionary(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    refused("flat dictionary of tensors", read_tensors, tmp_path / "w.pt")


def test_missing_weight_file(tmp_path):
    refused("nowhere.pt does not exist", read_tensors, tmp_path / "nowhere.pt")
    refused("does not exist", read_tensors, tmp_path)


# ---- labels


@pytest.mark.parametrize(
    "labels", [["cat"], ("cat", "dog"), (label for label in ("a", "b")), ["Cat", "cat"], ["a b", "猫"]]
)
def test_good_labels(labels):
    assert all(isinstance(label, str) for label in check_labels(labels))


def test_labels_keep_their_order_and_spelling():
    assert check_labels((" Zebra", "ant")) == [" Zebra", "ant"]


@pytest.mark.parametrize(
    "labels, match",
    [
        ([], "empty"),
        ((), "empty"),
        ("cat", "list of strings, not str"),
        (None, "not NoneType"),
        (3, "not int"),
        (["cat", ""], "label 1 is blank"),
        (["cat", " \t"], "label 1 is blank"),
        (["cat", 3], "label 1 is 3, of type int"),
        (["cat", None], "label 1 is None"),
        ([b"cat"], "type bytes"),
        (["cat", "dog", "cat"], "'cat' appears twice, at positions 0 and 2"),
    ],
)
def test_bad_labels(labels, match):
    refused(match, check_labels, labels)


# ---- the rest


def test_a_mistake_is_a_value_error():
    assert issubclass(QKSError, ValueError)


@pytest.mark.parametrize("source", [range(5), list("abc")])
def test_progress_is_silent_when_quick(capsys, source):
    items = list(source)
    for iterable in (source, iter(items)):
        assert list(progress(iterable, "Working")) == items
    out, err = capsys.readouterr()
    assert out == "" and err.strip() == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def slow_clock(monkeypatch, seconds):
    "Every look at the clock is so many seconds later."
    clock = itertools.count(0, seconds)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))


def test_a_terminal_gets_a_bar_that_is_drawn_over_and_taken_away(monkeypatch):
    slow_clock(monkeypatch, 3)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(progress(range(3), "Working"))
    shown = terminal.getvalue()
    assert "Working" in shown and "\n" not in shown and shown.endswith("\r")


def test_a_log_gets_a_line_a_minute(capsys, monkeypatch):
    slow_clock(monkeypatch, 1)
    list(progress(range(200), "Working"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("Working:") for line in lines)
    assert "60/200" in lines[0] and "\r" not in "".join(lines)


def test_quiet_means_no_progress(capsys, monkeypatch):
    slow_clock(monkeypatch, 100)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = logging.getLogger("qks")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        list(progress(range(9), "Working"))
    finally:
        logger.setLevel(before)
    assert terminal.getvalue() == ""


def test_bars_of_a_log_start_no_thread():
    before = threading.active_count()
    bars = [progress(range(3), "Working") for _ in range(5)]
    assert len({type(bar) for bar in bars}) == 1 and threading.active_count() == before
    for bar in bars:
        assert list(bar) == [0, 1, 2]


# --- a home that cannot be written


def in_a_bad_home(tmp_path, code, **variables):
    "Run code where the home is below a file: not even root can write there."
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "QKS_", "MPL", "HF_"))
    }
    environment |= {"HOME": f"{os.devnull}/home", "TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


BAD_HOMES = pytest.mark.skipif(os.name == "nt", reason="homes are elsewhere on Windows")


@BAD_HOMES
def test_a_bad_home_costs_no_warning_and_is_spared_once(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (96, 96), "red").save(picture)
    words = ["tag", str(picture), "--labels", "cat,dog", "--model", "pocket", "--device", "cpu", "--threshold", "0"]
    code = f"from qks.commands.main import main; assert main({words}) == 0; import matplotlib.pyplot"
    assert in_a_bad_home(tmp_path, code).stderr == ""
    [cache] = tmp_path.glob("qks-*/cache/labels.sqlite")
    [fonts] = tmp_path.glob("qks-*/matplotlib/fontlist*.json")
    times = [path.stat().st_mtime_ns for path in (cache, fonts)]
    assert in_a_bad_home(tmp_path, code).stderr == ""
    assert [path.stat().st_mtime_ns for path in (cache, fonts)] == times  # computed once


@BAD_HOMES
def test_a_folder_that_somebody_else_made_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    open_to_all = tmp_path / f"qks-{os.getuid()}"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert temporary_folder("cache").parent != open_to_all


def test_assets_are_shipped():
    assert (ASSETS / "pocket_vlp" / "open_clip_config.json").is_file()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, orientation):
    "EXIF's eight orientations, each against the turn that undoes it."
    upright = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "phone.png"))[..., 0], upright)


def test_a_limit_above_pillows_own_names_both(tmp_path):
    (tmp_path / "wide.png").write_bytes(png_header(20_000, 20_000))
    message = refused("over the limit", load_image, tmp_path / "wide.png", max_pixels=10**9)
    assert f"{2 * Image.MAX_IMAGE_PIXELS:,}" in message and "PIL.Image.MAX_IMAGE_PIXELS" in message


@pytest.mark.parametrize("value", [1, 7, np.int64(3)])
def test_good_counts(value):
    assert check_count("k", value) == value and type(check_count("k", value)) is int


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None, float("nan")], ids=repr)
def test_bad_counts(value):
    assert "1 or more" in refused("^k of topk is ", check_count, "k of topk", value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError, None])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, stop):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    try:
        with atomic_file(path) as file:
            file.write(b"new")
            assert path.read_bytes() == b"old"
            if stop:
                raise stop
    except (KeyboardInterrupt, OSError):
        pass
    assert path.read_bytes() == (b"old" if stop else b"new") and list(tmp_path.iterdir()) == [path]


EXIF = {
    "a header cut short": b"Exif\0\0II*\0",
    "no TIFF": b"Exif\0\0hello there",
    "nothing": b"Exif\0\0",
    "a place beyond the end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "turned, and a tag of no sense": (
        b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x69\x87\x04\0\x01\0\0\0\xff\xff\0\0\0\0\0\0"
    ),
}


@pytest.mark.parametrize("exif", EXIF)
@pytest.mark.parametrize("dpi", [None, (72, 72)])
def test_damaged_exif_data_cost_no_picture(tmp_path, exif, dpi):
    "They say nothing of the pixels."
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))
    options = {"dpi": dpi} if dpi else {}
    picture.save(tmp_path / "a.jpg", exif=EXIF[exif], **options)
    assert sorted(load_image(tmp_path / "a.jpg").size) == [6, 9]


@pytest.fixture
def cache_places(tmp_path, monkeypatch):
    "The system's place for the cache and the former one, neither of which exists yet."
    default = tmp_path / "system" / "qks"
    former = tmp_path / "home" / ".cache" / "qks"
    monkeypatch.delenv("QKS_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "system" / name))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return default, former


def test_the_cache_is_where_the_user_says(cache_places, tmp_path, monkeypatch):
    default, former = cache_places
    default.mkdir(parents=True)
    former.mkdir(parents=True)
    monkeypatch.setenv("QKS_CACHE", str(tmp_path / "chosen"))
    assert cache_folder() == tmp_path / "chosen"
    assert cache_folder("argument") == Path("argument")


def test_the_cache_is_in_the_systems_place(cache_places):
    default, former = cache_places
    assert cache_folder() == default
    default.mkdir(parents=True)
    former.mkdir(parents=True)
    assert cache_folder() == default


@BAD_HOMES
def test_a_cache_that_can_only_be_read_is_read(cache_places, tmp_path, monkeypatch):
    default, _ = cache_places
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr("qks.core.files.can_write", lambda folder: False)
    assert cache_folder() == tmp_path / "temporary" / f"qks-{os.getuid()}" / "cache"
    default.mkdir(parents=True)
    assert cache_folder() == default


def test_a_cache_in_the_former_place_stays_in_use(cache_places):
    default, former = cache_places
    former.mkdir(parents=True)
    assert cache_folder() == former


LIGHT_IMPORTS = """
import sys
import qks.core
from qks.core import QKSError, check_count, check_fields, check_labels
from qks.core import atomic_file, cache_folder, progress, write_atomic
heavy = {"torch", "numpy", "PIL", "safetensors", "psutil"} & set(sys.modules)
assert not heavy, heavy
from qks.core import load_image, read_tensors
assert {"torch", "numpy", "PIL", "safetensors"} <= set(sys.modules)
"""


def test_the_checks_import_no_large_library():
    "A command that prints its help, or refuses its input, answers at once."
    subprocess.run([sys.executable, "-c", LIGHT_IMPORTS], check=True)


@pytest.mark.parametrize(
    "limit, used, stat, expected",
    [
        (None, None, None, 8_000),  # no container
        ("max\n", "1000\n", "active_file 0\ninactive_file 0\n", 8_000),
        ("9000\n", "4000\n", "anon 4000\nactive_file 0\ninactive_file 0\n", 5_000),
        # Copies of files can be given up.
        ("9000\n", "8500\n", "anon 2000\nactive_file 4000\ninactive_file 500\n", 5_000),
        ("9000\n", "9500\n", "active_file 0\ninactive_file 100\n", 0),
        ("9000\n", "500\n", "active_file 0\ninactive_file 0\n", 8_000),  # the machine has less than the limit
        ("9000\n", "4000\n", "anon 4000\n", 5_000),
        ("9000\n", "4000\n", None, 5_000),
    ],
    ids=str,
)
def test_available_memory(tmp_path, monkeypatch, limit, used, stat, expected):
    "In a container what is left of its limit counts; a file that says 'max', or none, is no limit."
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8_000))
    for name, text in (("memory.max", limit), ("memory.current", used), ("memory.stat", stat)):
        if text:
            (tmp_path / name).write_text(text)
    files = (str(tmp_path / "memory.max"), str(tmp_path / "memory.current"))
    monkeypatch.setattr(system, "CONTAINER_MEMORY_FILES", (files,))
    assert available_memory() == expected


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError) as raised:
        with atomic_file(tmp_path / "head"):
            raise OSError(28, "No space left on device")
    assert raised.value.filename == str(tmp_path / "head") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (RuntimeError("Failed to decode frame"), DamagedImage, "is damaged or truncated .Failed to decode frame."),
        (NotImplementedError("a format"), DamagedImage, "is damaged"),
        (OSError("image file is truncated"), DamagedImage, "is damaged"),
        (
            OSError(24, "Too many open files"),
            UnreadableImage,
            "cannot be read .Too many open files.: check the path, its permissions and the disk",
        ),
        (MemoryError(), UnreadableImage, "does not fit into memory"),
    ],
    ids=["library", "format", "truncated", "system", "memory"],
)
def test_any_failure_of_an_image_is_one_sentence(tmp_path, monkeypatch, error, kind, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def fail(*args):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(QKSError, match=message) as caught:
        load_image(tmp_path / "a.png")
    assert type(caught.value) is kind


def test_a_name_that_no_system_takes():
    with pytest.raises(UnreadableImage, match="cannot be read .File name too long."):
        load_image("a" * 300)


def test_strips_are_refused():
    with pytest.raises(QKSError, match="is 2000 x 3, over 500 times as long as wide: cut it into pieces"):
        load_image(Image.new("RGB", (2000, 3)))
    assert load_image(Image.new("RGB", (3, 1500))).size == (3, 1500)


@pytest.mark.parametrize("links", [1, 2])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_stays_and_its_file_is_replaced(tmp_path, links, relative):
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").mkdir()
    real = tmp_path / "disk" / "report.json"
    real.write_text("old")
    real.chmod(0o640)
    path = real
    for number in range(links):
        target = path
        path = tmp_path / "home" / f"link{number}.json"
        path.symlink_to(os.path.relpath(target, path.parent) if relative else target)
    write_atomic(path, "new")
    assert path.is_symlink() and real.read_text() == "new" and real.stat().st_mode & 0o777 == 0o640
    assert len(list(tmp_path.rglob("*"))) == 3 + links


def test_a_link_to_nothing_gets_a_file(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new")
    write_atomic(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "new").read_text() == "text"


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755, 0o444])
def test_a_replaced_file_keeps_its_mode(tmp_path, mode):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(mode)
    write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode and (tmp_path / "a").read_text() == "new"


def test_a_new_file_has_the_usual_mode(tmp_path):
    (tmp_path / "usual").write_text("")
    write_atomic(tmp_path / "new", "")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_two_writers_of_one_file(tmp_path):
    with atomic_file(tmp_path / "a") as outer:
        outer.write(b"outer")
        with atomic_file(tmp_path / "a") as inner:
            inner.write(b"inner")
    assert (tmp_path / "a").read_bytes() == b"outer" and [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "value, least, fine",
    [(0, 0, True), (-1, 0, False), (0, 1, False), (np.int64(3), 0, True), (True, 0, False), (1.0, 0, False)],
    ids=str,
)
def test_whole_numbers(value, least, fine):
    if fine:
        assert check_count("n", value, least) == value
    else:
        with pytest.raises(QKSError, match=f"n is .*: give a whole number, {least} or more"):
            check_count("n", value, least)
