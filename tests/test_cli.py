"""The command line: every command on small data, and every mistake in one sentence."""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qks.commands import options as command_options
from qks.commands.main import find_command, main, parse
from qks.commands.tag import read_label_arguments
from qks.core import QKSError
from qks.model.tagger import QKS

POCKET = ["--model", "pocket", "--no-thresholds"]  # its best labels, however improbable
SMALL = ["--n-train", "60", "--n-test", "30"]


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "pocket"
    assert main(["data", "pocket", str(root), *SMALL]) == 0
    return root


@pytest.fixture(scope="module")
def run(pocket, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--epochs", "1", "--lr", "1e-3", "--n-layers", "1", "--n-queries", "3", "--schedule", "cosine"]
    assert main(["train", str(pocket), "--out", str(out), *arguments]) == 0
    return out


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)).save(path)
    return path


def said(capsys):
    """What a failed command printed: exactly one line, on the error stream."""
    captured = capsys.readouterr()
    assert captured.err.startswith("qks: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def test_train_leaves_table_results_model_and_figures(run):
    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "config.json",
        "qks-run.json",
        "results.json",
        "table.md",
        "model",
        "figures",
        "training",
    }
    results = json.loads((run / "results.json").read_text())
    assert results["protocol"] == "official" and results["selection"] == "seen" and results["seeds"] == [0]
    assert list(results["rows"]) == ["VLP zero-shot, one prompt", "VLP zero-shot, prompt pool", "VLP best patch", "QKS"]
    assert set(results["rows"]["QKS"]["zsl"]) == {"mAP", "P@3", "R@3", "F1@3", "P@5", "R@5", "F1@5"}
    assert len(list((run / "figures").glob("*.png"))) == 4
    for key in ("versions", "vlp", "machine", "templates", "ap_per_label", "images"):
        assert results[key]


def test_evaluate_repeats_the_run(run, pocket, capsys, tmp_path):
    report = tmp_path / "metrics.json"
    assert main(["evaluate", str(run / "model"), str(pocket), "--json", str(report)]) == 0
    ours = json.loads((run / "results.json").read_text())["runs"][0]["metrics"]
    again = json.loads(report.read_text())["rows"]["QKS"]["official"]["metrics"]
    assert again["zsl"]["mAP"] == pytest.approx(ours["zsl"]["mAP"], abs=1e-6)
    assert "protocol 'official'" in capsys.readouterr().out
    report.write_text("mine")
    assert main(["evaluate", str(run / "model"), str(pocket), "--json", str(report)]) == 2
    assert report.read_text() == "mine" and "exists already" in said(capsys)
    assert main(["evaluate", str(run / "model"), str(pocket), "--json", str(report), "--force"]) == 0
    assert json.loads(report.read_text())["rows"]["QKS"]["official"]["metrics"] == again


def test_a_quick_reproduction(tmp_path, capsys):
    out = tmp_path / "quick"
    assert main(["reproduce", "--quick", "--out", str(out)]) == 0
    images = json.loads((out / "results.json").read_text())["images"]
    assert (
        images["test"] == 200 and 380 < images["train"] + images["validation"] <= 400
    )  # scenes without a seen label leave
    assert "QKS" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["pocket", "own"])
def test_tag_any_labels(model, run, picture, capsys):
    model = model if model == "pocket" else str(run / "model")
    assert (
        main(
            [
                "tag",
                str(picture),
                "--labels",
                "cat, submarine,tree",
                "--top-k",
                "2",
                "--threshold",
                "0",
                "--model",
                model,
                "--json",
            ]
        )
        == 0
    )
    [answer] = json.loads(capsys.readouterr().out)
    tags = answer["tags"]
    assert answer["image"] == str(picture)
    assert len(tags) == 2 and {tag["label"] for tag in tags} <= {"cat", "submarine", "tree"}
    assert tags[0]["probability"] >= tags[1]["probability"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_labels_file_with_and_without_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "labels.txt").write_text("cat\r\n\nice cream\n", encoding=encoding)
    assert read_label_arguments(None, tmp_path / "labels.txt") == ["cat", "ice cream"]


def test_a_labels_file_of_one_line_with_commas(tmp_path):
    (tmp_path / "labels.txt").write_text("cat, dog\n")
    assert read_label_arguments(None, tmp_path / "labels.txt") == ["cat", "dog"]
    assert read_label_arguments(None, tmp_path / "labels.txt", "none") == ["cat, dog"]


def test_without_labels_the_models_own(picture, run, capsys):
    assert (
        main(["tag", str(picture), "--model", str(run), "--top-k", "1000", "--json"]) == 0
    )  # the run's folder stands for its model
    tags = json.loads(capsys.readouterr().out)[0]["tags"]
    assert (
        len(tags) == 276 and "pizza" in {tag["label"] for tag in tags} and "dog" not in {tag["label"] for tag in tags}
    )  # dog is an unseen one


def test_a_reader_that_has_enough_is_no_mistake(picture, tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    (folder := tmp_path / "trip").mkdir()
    for number in range(100):
        shutil.copyfile(picture, folder / f"{number}.png")
    tag = shlex.join([sys.executable, "-m", "qks", "tag", str(folder), "--labels", "cat,dog", *POCKET])
    command = f"{tag} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.stdout.splitlines()[1:] == ["0"] and "qks:" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["tag", "PICTURE", "--labels", "cat", "--vlp", "ViT-B-16", "--pretrained", "clip.pt"],
        ["evaluate", "pocket", "POCKET", "--vlp", "ViT-B-16", "--pretrained", "clip.pt"],
        ["train", "POCKET", "--out", "NEW", "--vlp", "ViT-B-16", "--pretrained", "clip.pt"],
        ["tag", "PICTURE", "--model", "RUN", "--pretrained", "moved.pt"],
    ],
    ids=lambda words: words[0],
)
def test_weights_of_other_activations_and_in_other_places(words, picture, pocket, run, tmp_path, monkeypatch):
    asked = []

    def load(name, pretrained, *args, quick_gelu, **kwargs):
        asked.append((name, pretrained, quick_gelu))
        raise QKSError("enough")

    for module in ("experiment.training_run", "experiment.loading", "readouts.tagger"):
        monkeypatch.setattr(f"qks.{module}.load_vlp", load)
    for place, path in {"PICTURE": picture, "POCKET": pocket, "RUN": run, "NEW": tmp_path / "new"}.items():
        words = [word.replace(place, str(path)) for word in words]
    assert main(words) == main([*words, "--gelu"]) == 2
    assert asked == [
        ("pocket" if "moved.pt" in words else "ViT-B-16", "moved.pt" if "moved.pt" in words else "clip.pt", quick_gelu)
        for quick_gelu in (None, False)
    ]


def test_gelu_is_for_weight_files_only(picture, run, capsys):
    for words, told in (
        (["--model", str(run)], "knows its VLP and how its weights were trained: leave --gelu out"),
        (["--vlp", "ViT-B-16", "--pretrained", "openai"], "says how a weight file was trained"),
    ):
        assert main(["tag", str(picture), "--labels", "cat", "--gelu", *words]) == 2 and told in said(capsys)


class Ending:
    "A command that ends with an error."

    messages = command_options.MessageOptions()

    def __init__(self, error):
        self.error = error

    def execute(self):
        raise self.error


@pytest.mark.parametrize("command, status", [("train", 1), ("reproduce", 1), ("tag", 0), ("evaluate", 0)])
def test_a_pipe_that_breaks_in_a_training_is_no_success(monkeypatch, command, status):
    monkeypatch.setattr("os.dup2", lambda *descriptors: None)
    monkeypatch.setattr("qks.commands.main.parse", lambda words: Ending(BrokenPipeError(32, "Broken pipe")))
    assert main([command]) == status


@pytest.mark.parametrize(
    "command, advice",
    [
        ("train", "pass a smaller --batch-size, or --accumulate 2 or more"),
        ("tag", "see what else uses it, or pass --device cpu"),
    ],
)
def test_a_gpu_whose_memory_is_full(monkeypatch, capsys, command, advice):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    monkeypatch.setattr("qks.commands.main.parse", lambda words: Ending(error))
    assert main([command]) == 2 and capsys.readouterr().err.startswith(f"qks: the GPU's memory is full: {advice}")


@pytest.mark.parametrize(
    "words, shown",
    [
        ([], ["a warning", "an error"]),
        (["--quiet"], ["an error"]),
        (["--verbose"], ["a step", "a warning", "an error"]),
    ],
    ids=str,
)
def test_messages_of_the_library(picture, monkeypatch, capsys, words, shown):
    def execute(self):
        logger = logging.getLogger("qks.tokens.cache")
        logger.info("a step")
        logger.warning("a warning")
        logger.error("an error")
        return 0

    monkeypatch.setattr("qks.commands.tag.TagCommand.execute", execute)
    for _ in range(2):  # no handler is left behind
        assert main(["tag", str(picture), *words]) == 0
        assert capsys.readouterr().err.splitlines() == [f"qks: {message}" for message in shown]
    assert not logging.getLogger("qks").handlers


def test_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"qks \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_where_no_picture_exists_nothing_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr("qks.experiment.loading.load_model", lambda *args, **kwargs: pytest.fail("began to work"))
    assert main(["tag", "nowhere.jpg", "lost.jpg", "--labels", "cat", "--device", "cpu"]) == 2
    assert "none of the 2 pictures exists, such as nowhere.jpg" in said(capsys)


def test_one_damaged_picture_costs_no_others(picture, tmp_path, capsys):
    "A folder with a damaged picture and a text: the others are tagged, and what was left out is told."
    (folder := tmp_path / "trip").mkdir()
    for name in ("a.png", "c.png"):
        shutil.copyfile(picture, folder / name)
    (folder / "b.png").write_bytes(picture.read_bytes()[:100])
    (folder / "notes.txt").write_text("no picture")
    for words, read in (
        ([], lambda out: [line.partition("  ")[0] for line in out.splitlines() if not line.startswith(" ")]),
        (["--json"], lambda out: [answer["image"] for answer in json.loads(out)]),
    ):
        assert main(["tag", str(folder), "--labels", "cat,dog", *POCKET, *words]) == 1
        captured = capsys.readouterr()
        assert read(captured.out) == [str(folder / name) for name in ("a.png", "b.png", "c.png")]
        lines = [line for line in captured.err.splitlines() if line.startswith("qks: ")]
        assert (
            len(lines) == 3
            and "notes.txt" in lines[0]
            and "b.png is damaged" in lines[1]
            and lines[2] == "qks: 1 of 3 pictures could not be read and have no tags"
        )
    assert main(["tag", str(folder / "b.png"), "--labels", "cat,dog", *POCKET, "--json"]) == 1
    captured = capsys.readouterr()
    [answer] = json.loads(captured.out)
    assert "b.png is damaged" in answer["error"] and captured.err == f"qks: {answer['error']}\n"


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_what_is_tagged_is_printed_before_the_next(picture, tmp_path, monkeypatch, capsys, words):
    "Ctrl-C in the second batch: the first one's tags are there, and the JSON is whole."
    (folder := tmp_path / "trip").mkdir()
    for number in range(40):
        shutil.copyfile(picture, folder / f"{number:02}.png")
    original = QKS.predict

    def predict(self, images, embeddings):
        if len(images) < 32:
            raise KeyboardInterrupt
        return original(self, images, embeddings)

    monkeypatch.setattr(QKS, "predict", predict)
    assert main(["tag", str(folder), "--labels", "cat,dog", *POCKET, *words]) == 130
    out = capsys.readouterr().out
    assert (len(json.loads(out)) if words else out.count(".png\n")) == 32


def test_a_terminal_that_cannot_show_a_name_costs_no_tags(picture, tmp_path):
    "A file name in an old encoding, a terminal that speaks ASCII: the tags are printed all the same."
    try:
        odd = tmp_path / os.fsdecode(b"caf\xe9.jpg")
        shutil.copyfile(picture, odd)
    except (OSError, UnicodeDecodeError):
        pytest.skip("this system has no such names")
    done = subprocess.run(
        [sys.executable, "-m", "qks", "tag", odd, "--labels", "crème,cat", *POCKET],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
    )
    assert done.returncode == 0 and b"cat" in done.stdout and b"Traceback" not in done.stderr


def test_tag_labels_file_and_threshold(picture, tmp_path, capsys):
    (tmp_path / "labels.txt").write_text("cat\n\nbridge\n")
    labels = ["--labels-file", str(tmp_path / "labels.txt")]
    assert main(["tag", str(picture), *labels, "--threshold", "1", "--model", "pocket"]) == 0
    assert "no label reaches its threshold" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["tag", "missing.jpg", "--labels", "cat"], "missing.jpg"),
        (["tag", "PICTURE", "--labels", "cat,cat"], "'cat' appears twice"),
        (["tag", "PICTURE", "--labels", " "], "label list is empty"),
        (["tag", "PICTURE", "--labels", "cat,,dog"], "label '' is empty in 'cat,,dog'"),
        (["tag", "PICTURE", "--labels", "cat", "--top-k", "0"], "top_k is 0"),
        (["tag", "PICTURE", "--labels", "cat", "--device", "abacus"], "qks: device 'abacus' is not available"),
        (["tag", "PICTURE", "--labels", "cat", "--pretrained", "openai", "--model", "nowhere"], "pass --vlp as well"),
        (["tag", "PICTURE", "--labels", "cat", "--threshold", "2"], "threshold is 2"),
        (["tag", "PICTURE", "--labels", "cat", "--model", "nowhere"], "nowhere"),
        (["tag", "PICTURE", "--labels-file", "nowhere.txt"], "nowhere.txt"),
        (["evaluate", "pocket", "nowhere"], "nowhere"),
        (["evaluate", "pocket", "POCKET", "--protocol", "mine"], "mine"),
        (["train", "nowhere", "--out", "NEW"], "nowhere"),
        (["train", "POCKET", "--out", "RUN"], "exists already"),
        (["train", "POCKET", "--out", "NEW", "--vlp", "ViT-Z"], "ViT-Z"),
        (["train", "POCKET", "--out", "NEW", "--epochs", "0"], "epochs is 0"),
        (["data", "pocket", "POCKET"], "already holds"),
        (["train", "POCKET", "--out", "PICTURE/run"], "picture.png"),
        (["evaluate", "pocket", "POCKET", "--json", "PICTURE/report.json"], "report.json"),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments, words, picture, pocket, run, tmp_path, capsys):
    places = {"PICTURE": picture, "POCKET": pocket, "RUN": run, "NEW": tmp_path / "new"}
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    assert main(arguments) == 2
    assert words in said(capsys)


def test_nothing_is_overwritten_without_force(run, pocket, capsys):
    before = (run / "results.json").read_bytes()
    assert main(["train", str(pocket), "--out", str(run), "--epochs", "1"]) == 2
    assert (run / "results.json").read_bytes() == before


def test_a_failed_start_leaves_no_run_folder_behind(tmp_path, capsys):
    assert main(["train", str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", [[], ["reproduce"], ["tag"], ["train"], ["evaluate"], ["data"], ["data", "pocket"]])
def test_help(command, capsys):
    assert main([*command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert len(printed) > 200 and f"usage: qks {' '.join(command)}".strip() in printed


@pytest.mark.parametrize("command", ["", "reproduce", "tag", "train", "evaluate", "data", "data nuswide fetch"])
def test_help_imports_nothing_heavy(command):
    "What computes takes seconds to import; help needs none of it."
    code = (
        "import sys; from qks.commands.main import main; "
        f"assert main({[*command.split(), '--help']}) == 0; "
        "heavy = [name for name in ('torch', 'open_clip', 'timm', 'matplotlib') if name in sys.modules]; "
        "print(*heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "\n", done.stderr


def test_help_of_train_does_without_numpy():
    code = "import sys; from qks.commands.main import main; main(['train', '--help']); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "words, expected",
    [
        (["trian", "data"], "did you mean 'train'? Give one of reproduce, tag, train, evaluate, calibrate, data"),
        (["data", "nuswid", "check"], "did you mean 'nuswide'?"),
        (["data", "coco", "fetch", "x"], "give one of check, prepare"),
        ([], "needs a command: give one of reproduce, tag"),
    ],
)
def test_a_wrong_command_proposes_others(words, expected, capsys):
    assert main(words) == 2 and expected in said(capsys)


@pytest.mark.parametrize(
    "words, expected",
    [
        (["train", "data", "--out", "run", "--epcohs", "3"], "--epcohs"),
        (["train", "data", "--out", "run", "--epochs", "three"], "--epochs"),
        (["train", "data", "--out", "run", "--loss", "hinge"], "--loss"),
        (["train", "data"], "--out"),
        (["tag", "a.jpg", "--top-k"], "--top-k"),
    ],
)
def test_a_wrong_flag_is_named(words, expected, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert expected in captured.err and captured.out == ""


DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "data/README.md")
SHELL_BLOCK = r"^[ ]*```(?:sh|bash|shell|console)\n(.*?)^[ ]*```"


def shown_commands():
    "Pairs of a place and the words after `qks`, from the shell blocks of documents and notebooks."
    root = Path(__file__).parent.parent
    texts = {name: [(root / name).read_text(encoding="utf-8")] for name in DOCUMENTS}
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        markdown = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        texts[path.relative_to(root).as_posix()] = markdown
    for place, parts in texts.items():
        for block in re.findall(SHELL_BLOCK, "\n\n".join(parts), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                for command in line.partition(" #")[0].split("&&"):
                    words = words_of_qks(shlex.split(command))
                    if words is not None:
                        yield place, words


def words_of_qks(words):
    "What follows `qks`, `python -m qks` or `accelerate launch … -m qks` in a command; None for another command."
    if words[:1] == ["$"]:
        words = words[1:]
    if words[:1] == ["qks"]:
        return words[1:]
    launched = words[:1] in (["python"], ["python3"], ["torchrun"]) or words[:2] == ["accelerate", "launch"]
    if not launched or "-m" not in words:
        return None
    module = words.index("-m") + 1
    assert not words[module].startswith("qks."), f"{words}: the command is the module qks itself"
    return words[module + 1 :] if words[module] == "qks" else None


def test_every_command_that_is_shown_can_be_typed():
    "Those of the first page, of the page about data sets and of the notebooks: the parser takes each."
    shown = list(shown_commands())
    for place, words in shown:
        request = find_command(words)
        assert request.command.options is type(parse(words)), (place, words)  # exits where it does not understand
    places = {place for place, _ in shown}
    assert {"README.md", "data/README.md", "nbs/index.ipynb"} <= places
    assert any(place.count("/") == 2 for place in places), "no notebook in a folder shows a command"
    assert len(shown) > 15
    assert {words[0] for _, words in shown} == {"reproduce", "tag", "train", "evaluate", "calibrate", "data"}


@pytest.mark.parametrize(
    "command, expected",
    [
        ("qks tag a.jpg", ["tag", "a.jpg"]),
        ("python -m qks tag a.jpg", ["tag", "a.jpg"]),
        ("accelerate launch --num_processes 2 -m qks train data", ["train", "data"]),
        ("python scripts/build_readme.py", None),
        ("pytest -q", None),
        ("", None),
    ],
)
def test_commands_that_are_shown_are_found(command, expected):
    assert words_of_qks(shlex.split(command)) == expected


def test_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "qks", "tag", "missing.jpg", "--labels", "cat"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "missing.jpg" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("device, warned", [("cpu", True), ("cuda", False)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_slow_half_precision_is_reported(device, warned, precision, rate, monkeypatch, caplog):
    kept = []
    monkeypatch.setattr("qks.commands.options.keep_freed_memory", lambda: kept.append(1))
    monkeypatch.setattr("qks.core.arithmetic.product_rate", lambda dtype: rate if dtype == torch.bfloat16 else 1.0)
    command_options.prepare_processor(device, {"--precision": precision})
    expected = warned and precision == "bf16" and rate < 1
    assert kept and ("--precision fp32 is faster here" in caplog.text) is expected


@pytest.mark.parametrize(
    "words, prepared",
    [
        (
            ["train", "data", "--out", "run", "--precision", "bf16", "--device", "cpu"],
            [("cpu", {"--precision": "bf16", "--vlp-precision": "fp32"})],
        ),
        (
            ["evaluate", "pocket", "data", "--vlp-precision", "bf16", "--device", "cpu"],
            [("cpu", {"--vlp-precision": "bf16"})],
        ),
        (["reproduce"], [(None,)]),
        (["tag", "missing.jpg", "--labels", "cat"], []),
    ],
)
def test_long_commands_prepare_the_processor(words, prepared, monkeypatch):
    calls = []

    def prepare(*args):
        calls.append(args)
        raise QKSError("enough")

    for module in ("train", "evaluate", "reproduce"):
        monkeypatch.setattr(f"qks.commands.{module}.prepare_processor", prepare)
    assert main(words) == 2 and calls == prepared


@pytest.mark.parametrize(
    "into, status, told",
    [("| true", 1, ""), ("> /dev/full", 2, "qks: a file cannot be used (No space left on device)")],
)
def test_output_that_cannot_be_written(tmp_path, into, status, told):
    "Buffered, as in a user's shell: it shows while the command runs, and not when Python ends."
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = f"set -o pipefail; {sys.executable} -m qks data folder check {tmp_path} {into}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONUNBUFFERED": ""}
    )
    assert done.returncode == status and done.stderr.startswith(told) and "Exception" not in done.stderr
