"""`qks train`: tokens from three places, a run that goes on with --resume, and every mistake in one sentence."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

from qks.commands.main import main, parse
from qks.core import QKSError, load_image
from qks.experiment.results import closing_remarks
from qks.experiment.run_folder import claim_run_folder
from qks.experiment.spec import RunOptions, RunSpec, TokenConfig, VLPSource, spec_values
from qks.experiment.training_data import load_training_data
from qks.experiment.training_run import load_initial_head, prepare_run, training_tokens
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.prompts import PromptPool
from qks.tokens import cache as tokens_cache
from qks.tokens.augment import LiveTokens
from qks.tokens.cache import cache_size, list_caches
from qks.train import trainer as engine
from qks.train.checkpoint import CHECKPOINT_NAME, list_checkpoints
from qks.train.config import TrainConfig
from qks.train.optimizer import make_schedule
from qks.vlp.frozen import VLP
from qks.vlp.loading import load_vlp

TESTS = Path(__file__).parent
OPTIONS = [
    "--epochs",
    "2",
    "--lr",
    "1e-3",
    "--n-layers",
    "1",
    "--n-queries",
    "2",
    "--batch-size",
    "12",
    "--save-steps",
    "2",
]


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "pocket"
    assert main(["data", "pocket", str(root), "--n-train", "40", "--n-test", "20"]) == 0
    return root


def train(pocket, out, *more):
    return main(["train", str(pocket), "--out", str(out), *OPTIONS, *more])


def numbers(out):
    "All that a run says of itself, but for its clock."
    results = json.loads((out / "results.json").read_text())
    history = [
        {name: value for name, value in row.items() if name != "seconds"} for row in results["runs"][0]["history"]
    ]
    return history, results["rows"], (out / "model" / "head.safetensors").read_bytes()


def said(capsys):
    captured = capsys.readouterr()
    assert captured.err.startswith("qks: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def parsed(*words):
    return parse(["train", "data", "--out", "run", *words])


def test_the_defaults_are_the_papers():
    options = parsed()
    assert options.train == TrainConfig() and options.head == HeadConfig()
    assert options.spec == RunSpec(Path("data"), RunOptions(Path("run")), recipe="by-size", given=("out",))


RECIPE = {
    "epochs": 3,
    "batch_size": 5,
    "lr": 0.1,
    "weight_decay": 0.5,
    "betas": (0.8, 0.9),
    "accumulate": 2,
    "clip": 1.5,
    "ema": 0.9,
    "loss": "bce",
    "schedule": "cosine",
    "precision": "bf16",
    "selection": "official",
    "seed": 4,
    "warmup": 7,
    "topk": (1, 2),
}


def flags(settings):
    "Settings as they are typed."
    for name, value in settings.items():
        yield f"--{name.replace('_', '-')}"
        if value is not True:
            yield from map(str, value if isinstance(value, tuple) else [value])


def test_every_setting_has_a_flag():
    sizes = {"n_queries": 2, "n_layers": 3, "n_heads": 4, "ffn_width": 5, "dropout": 0.2}
    writing = {"keep": 4, "save_steps": 6, "log_steps": 7, "log_with": ("tensorboard", "wandb")}
    options = parsed(*flags(RECIPE), "--fused", "--compile", *flags(sizes), *flags(writing))
    assert options.train == TrainConfig(**RECIPE, fused=True, compile=True)
    assert options.head == HeadConfig(**sizes)
    assert options.run == RunOptions(Path("run"), **writing)
    assert {field.name for field in fields(TrainConfig)} <= flag_names()
    assert {field.name for field in fields(HeadConfig)} <= flag_names()


def flag_names():
    "Every flag in the help of `qks train`, as a field's name."
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["train", "--help"]) == 0
    return {flag.replace("-", "_") for flag in re.findall(r"^\W*?--([a-z-]+)", printed.getvalue(), re.MULTILINE)}


def test_a_runs_own_config_gives_the_same_run(pocket, tmp_path, monkeypatch):
    monkeypatch.setattr("qks.experiment.results.save_figures", lambda *args: None)
    assert train(pocket, tmp_path / "one", "--clip", "1", "--weight-decay", "0.1") == 0
    config = tmp_path / "one" / "config.json"
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "two")]) == 0
    assert numbers(tmp_path / "two") == numbers(tmp_path / "one")
    assert (tmp_path / "two" / "config.json").read_bytes() == config.read_bytes()
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "three"), "--clip", "0.5"]) == 0
    settings = json.loads((tmp_path / "three" / "config.json").read_text())["train"]
    assert settings["clip"] == 0.5 and settings["weight_decay"] == 0.1


@pytest.mark.parametrize(
    "content, expected",
    [
        ('{"train": {"epcohs": 3}}', "config.json: setting 'train.epcohs' is unknown: give one of epochs, batch_size"),
        ('{"train": {"epochs": "3"}}', "config.json: setting 'train.epochs' is '3': give a whole number"),
        ('{"train": {"loss": "hinge"}}', "config.json: setting 'train.loss' is 'hinge': give one of asl, bce, ranking"),
        ('{"train": {"lr": -1}}', "lr is -1"),
        ('{"train": 3}', "config.json: train is 3: give an object with settings"),
        ('{"seeds": 1.5}', "config.json: setting 'seeds' is 1.5: give a whole number"),
        ("[]", "config.json holds no settings"),
        ("{", "config.json is not a JSON file of settings"),
        (None, "config.json cannot be read"),
    ],
)
def test_a_mistake_in_a_config_names_file_and_setting(tmp_path, capsys, content, expected):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    assert main(["train", "data", "--out", str(tmp_path / "run"), "--config", str(file)]) == 2
    assert expected in said(capsys) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words", [[], ["--no-cache"], ["--cache", "tokens", "--views", "2"]], ids=["in memory", "no cache", "views on disk"]
)
def test_interrupted_and_resumed(pocket, tmp_path, monkeypatch, capsys, words):
    "Ctrl-C in the middle of the second epoch: status 130, a sentence; --resume gives the run that was never stopped."

    def train(pocket, out, *more):
        return main(["train", str(pocket), "--out", str(out), *OPTIONS, *words, *more])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "qks.experiment.results.save_figures", lambda *args: None
    )  # takes seconds, and is tested elsewhere
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data",
        partial(load_training_data, pool=PromptPool.single("a photo of {}")),
    )
    assert train(pocket, tmp_path / "whole") == 0
    step = engine.train_step
    calls = []
    out = tmp_path / "run"

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "train_step", interrupted)
        capsys.readouterr()
        assert train(pocket, out) == 130
    assert "training was stopped after step 5" in (told := said(capsys)) and "--resume" in told
    assert max(list_checkpoints(out / "training" / "seed0")) == 5 and not (out / "results.json").exists()
    assert train(pocket, out) == 2 and "not finished: pass --resume to continue, or --force to replace it" in said(
        capsys
    )
    assert train(
        pocket, out, "--resume", "--clip", "1"
    ) == 2 and "another configuration (clip 0.0 there, 1.0 here)" in said(capsys)
    with monkeypatch.context() as patch:
        patch.setattr(
            "qks.experiment.training_run.fingerprint", lambda vlp: "another"
        )  # other weights under the same name
        assert train(pocket, out, "--resume") == 2 and "there, another here" in said(capsys)
    assert train(pocket, out, "--resume") == 0
    assert numbers(out) == numbers(tmp_path / "whole")
    tokens = json.loads((out / "config.json").read_text())["tokens"]
    assert tokens["no_cache"] == ("--no-cache" in words) and (tokens["cache"] is not None) == ("--cache" in words)
    capsys.readouterr()
    assert train(pocket, out, "--resume") == 2 and "is finished" in said(capsys)


@pytest.mark.parametrize("cache", [True, False])
def test_stopped_while_tokens_are_cached(pocket, tmp_path, monkeypatch, capsys, cache):
    "Ctrl-C in the third split: one sentence says what is kept and how to continue; nothing is computed twice."
    monkeypatch.setattr("qks.experiment.results.save_figures", lambda *args: None)
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data",
        partial(load_training_data, pool=PromptPool.single("a photo of {}")),
    )
    loaded = []
    load = tokens_cache.load_batches
    more = ["--cache", str(tmp_path / "tokens")] if cache else []

    def stops(*args):
        loaded.append(len(args[0]))
        if len(loaded) == 3:
            raise KeyboardInterrupt
        yield from load(*args)

    monkeypatch.setattr(tokens_cache, "load_batches", stops)
    assert train(pocket, tmp_path / "run", *more) == 130
    kept = f"{tmp_path / 'tokens'} keeps what is finished" if cache else "none of them is kept without --cache"
    assert (
        said(capsys)
        == f"qks: stopped while image tokens were computed, and {kept}: run the same with --resume to continue\n"
    )
    assert train(pocket, tmp_path / "run", "--resume", *more) == 0
    assert sum(loaded[3:]) == (loaded[2] if cache else sum(loaded[:3]))


def test_stopped_while_the_test_images_are_scored(pocket, tmp_path, monkeypatch, capsys):
    "Ctrl-C after the last epoch: one sentence says how to get the results, and --resume gives the same ones."
    monkeypatch.setattr("qks.experiment.results.save_figures", lambda *args: None)
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data",
        partial(load_training_data, pool=PromptPool.single("a photo of {}")),
    )
    assert train(pocket, tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(
            "qks.experiment.training_run.score_images", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        capsys.readouterr()
        assert train(pocket, tmp_path / "run") == 130
    training = tmp_path / "run" / "training"
    expected = f"qks: stopped, and {training} keeps what is trained: run the same with --resume to continue\n"
    assert said(capsys) == expected
    assert train(pocket, tmp_path / "run", "--resume") == 0 and numbers(tmp_path / "run") == numbers(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_while_results_are_written(tmp_path):
    "Killed before any file of the results is opened, written or renamed: never taken for finished, and resumed."
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(TESTS / "kill_results.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 6 and found["same"]  # table, head, its configuration, a figure, results and their name
    assert not any(found["finished"])


@pytest.mark.parametrize(
    "words, told",
    [
        (["--log-with", "nothing"], "tracker 'nothing' is not known"),
        (["--views", "2", "--no-cache"], "leave one of them out"),
        (["--ema", "2"], "ema is 2.0"),
        (["--cache-dtype", "bf16"], "name its folder with --cache"),
        (["--keep", "0"], "keep"),
        (["--warmup", "3"], "warmup belongs to the cosine schedule"),
        (["--seeds", "0"], "seeds is 0"),
        (["--views", "0"], "views is 0"),
        (["--n-queries", "0"], "n_queries is 0"),
        (["--n-layers", "-1"], "n_layers is -1"),
        (["--workers", "-1"], "workers is -1: give a whole number, 0 or more"),
        (["--topk", "3", "60"], "the part zsl has only 50 annotated labels"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_anything_is_written(pocket, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data", lambda *args, **kwargs: pytest.fail("began to compute")
    )
    assert main(["train", str(pocket), "--out", str(tmp_path / "new"), "--device", "cpu", *words]) == 2
    assert told in said(capsys) and not (tmp_path / "new").exists()


def test_data_that_cannot_be_measured(tmp_path, monkeypatch, capsys):
    "A folder of one's own without an unseen label, and one whose test image is gone: told at once, with what to do."
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data", lambda *args, **kwargs: pytest.fail("began to compute")
    )
    root = tmp_path / "own"
    root.mkdir()
    for number in range(40):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / f"{number}.png")
    labels = ["cat", "dog", "cat|dog"]
    for split, rows in (("train", range(20)), ("test", range(20, 40))):
        (root / f"{split}.csv").write_text("image,labels\n" + "".join(f"{i}.png,{labels[i % 3]}\n" for i in rows))
    assert main(["data", "folder", "prepare", str(root)]) == 0
    capsys.readouterr()
    assert train(root, tmp_path / "run", "--topk", "1", "--selection", "official") == 2
    assert (
        said(capsys)
        == f"qks: the rule 'official' chooses the epoch by unseen labels, and {root} has none: leave it out\n"
    )
    (root / "unseen.txt").write_text("dog\n")
    assert main(["data", "folder", "prepare", str(root), "--unseen", "unseen.txt"]) == 0
    (root / "33.png").unlink()
    capsys.readouterr()
    assert train(root, tmp_path / "run", "--topk", "1") == 2
    assert "1 of 20 test images are missing or empty" in (told := said(capsys)) and "33.png: fetch them" in told
    assert not (tmp_path / "run").exists()


def test_open_images_where_names_repeat(tmp_path, monkeypatch, capsys):
    "Two jaguars, one seen and one not, and labels mostly not annotated: MIDs keep them apart."
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data",
        partial(load_training_data, pool=PromptPool.single("a photo of {}")),
    )
    names = {"/m/01": "Jaguar", "/m/02": "Bat", "/m/03": "Bat", "/m/04": "Tree", "/m/05": "Jaguar", "/m/06": "Lake"}
    root = tmp_path / "oi"
    generator = np.random.default_rng(3)
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        rows = ["ImageID,Source,LabelName,Confidence"]
        for number in range(40):
            image = f"{number + 100 * (split == 'test'):016x}"
            Image.fromarray(generator.integers(0, 256, (40, 48, 3), np.uint8)).save(root / split / f"{image}.jpg")
            rows += [f"{image},verification,{mid},{generator.integers(2)}" for mid in names if generator.random() < 0.6]
        (root / split / f"{split}-annotations-human-imagelabels.csv").write_text("\n".join(rows) + "\n")
    (root / "class-descriptions.csv").write_text("".join(f"{mid},{name}\n" for mid, name in names.items()))
    (root / "classes-trainable.txt").write_text("\n".join(list(names)[:4]) + "\n")
    (root / "unseen_400.txt").write_text("\n".join(list(names)[4:]) + "\n")
    assert main(["data", "openimages", "prepare", str(root)]) == 0
    assert train(root, tmp_path / "run", "--topk", "1", "2", "--device", "cpu") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["ap_per_label"]) == list(names) and results["labels"] == {"seen": 4, "unseen": 2}
    assert (tmp_path / "run" / "figures" / "scenes.png").is_file()


def test_a_label_too_long_is_told_before_any_image_is_read(pocket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("qks.tokens.cache.load_batches", lambda *args: pytest.fail("began to compute"))
    monkeypatch.setenv("QKS_CACHE", str(tmp_path / "cache"))  # nothing is known from before
    monkeypatch.setattr(
        "qks.vlp.frozen.VLP.text_features",
        lambda self, texts: (_ for _ in ()).throw(QKSError("text is too long: shorten the label")),
    )
    assert train(pocket, tmp_path / "run") == 2 and "shorten the label" in said(capsys)


@pytest.mark.parametrize(
    "words, n_tokens", [([], 36 + 4 + 20), (["--no-cache"], 4 + 20)], ids=["all three splits", "no-cache: two"]
)
def test_too_little_memory_is_told_before_anything_is_computed(pocket, tmp_path, monkeypatch, capsys, words, n_tokens):
    need = cache_size(load_vlp("pocket", device="cpu"), n_tokens, torch.float32)
    monkeypatch.setattr("qks.tokens.cache.available_memory", lambda: need - 1)
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data",
        partial(load_training_data, pool=PromptPool.single("a photo of {}")),
    )
    monkeypatch.setattr("qks.tokens.cache.load_batches", lambda *args: pytest.fail("began to compute"))
    assert train(pocket, tmp_path / "new", *words) == 2
    assert "the tokens need" in (told := said(capsys)) and "--cache FOLDER" in told and not (tmp_path / "new").exists()
    monkeypatch.setattr("qks.tokens.cache.available_memory", lambda: need)
    monkeypatch.setattr(
        "qks.experiment.training_data.cache_tokens",
        lambda *args, **kwargs: (_ for _ in ()).throw(QKSError("there is room")),
    )
    monkeypatch.setattr(
        "qks.experiment.training_run.cache_tokens",
        lambda *args, **kwargs: (_ for _ in ()).throw(QKSError("there is room")),
    )
    assert train(pocket, tmp_path / "new", *words) == 2 and "there is room" in said(capsys)


def test_too_little_memory_for_the_scores_is_told_before_anything_is_computed(pocket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "qks.experiment.training_data.available_memory",
        lambda: 20 * 326 * 21 + cache_size(load_vlp("pocket", device="cpu"), 60, torch.float32) - 1,
    )
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data", lambda *args, **kwargs: pytest.fail("began to compute")
    )
    assert train(pocket, tmp_path / "new") == 2
    assert (
        "the scores of 20 test images and 326 labels, and the tokens will need" in said(capsys)
        and not (tmp_path / "new").exists()
    )
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data",
        lambda *args, **kwargs: (_ for _ in ()).throw(QKSError("there is room")),
    )
    assert (
        train(pocket, tmp_path / "new", "--cache", str(tmp_path / "tokens")) == 2
        and said(capsys) == "qks: there is room\n"
    )


def test_too_small_a_disk_is_told_before_anything_is_computed(pocket, tmp_path, monkeypatch, capsys):
    need = cache_size(load_vlp("pocket", device="cpu"), 2 * 36 + 4 + 20)
    monkeypatch.setattr("qks.tokens.cache.shutil.disk_usage", lambda folder: SimpleNamespace(free=need - 1))
    monkeypatch.setattr("qks.tokens.cache.load_batches", lambda *args: pytest.fail("began to compute"))
    assert train(pocket, tmp_path / "new", "--views", "2", "--cache", str(tmp_path / "tokens")) == 2
    assert "the token cache needs" in said(capsys)


@pytest.mark.parametrize("views", ["1", "2"])
def test_other_numbers_in_the_cache(pocket, tmp_path, monkeypatch, capsys, views):
    "Tokens beyond half precision: the sentence names an option, and with it all three splits are kept."
    tower = VLP.image_tokens
    stop = QKSError("all is cached")
    monkeypatch.setattr(VLP, "image_tokens", lambda self, images: tower(self, images) + 70_000.0)
    monkeypatch.setattr("qks.experiment.training_run.train_and_score", lambda *args: (_ for _ in ()).throw(stop))
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data",
        partial(load_training_data, pool=PromptPool.single("a photo of {}")),
    )
    words = ["--cache", str(tmp_path / "tokens"), "--views", views]
    assert train(pocket, tmp_path / "one", *words) == 2 and "--cache-dtype bf16" in said(capsys)
    assert train(pocket, tmp_path / "one", *words, "--cache-dtype", "bf16") == 2 and "pass --resume" in said(capsys)
    assert (
        train(pocket, tmp_path / "one", *words, "--cache-dtype", "bf16", "--resume") == 2
        and said(capsys) == f"qks: {stop}\n"
    )
    kept = [row for row in list_caches(tmp_path / "tokens") if row["finished"] == 1]
    assert sorted((row["images"], row["views"], row["dtype"]) for row in kept) == [
        (4, 1, "bfloat16"),
        (20, 1, "bfloat16"),
        (36, int(views), "bfloat16"),
    ]
    assert json.loads((tmp_path / "one" / "config.json").read_text())["tokens"]["cache_dtype"] == "bf16"


# ---- the folder


def test_a_run_in_the_making_is_not_replaced(pocket, tmp_path, monkeypatch, capsys):
    "Another command holds the folder: neither --force nor --resume gets it, and nothing is deleted."
    monkeypatch.setattr("qks.train.run_folder.LOCK_SECONDS", 0.1)
    assert train(pocket, tmp_path / "run") == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from filelock import FileLock; lock = FileLock({str(tmp_path / 'run' / '.lock')!r}); "
            "lock.acquire(); print('held', flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    capsys.readouterr()
    assert train(pocket, tmp_path / "run", "--force") == 2 and "another process trains in" in said(capsys)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == kept
    other.kill()
    other.wait()


def test_what_cannot_be_claimed_is_told_before_anything_is_computed(pocket, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data", lambda *args, **kwargs: pytest.fail("began to compute")
    )
    claim_run_folder(RunSpec(pocket, RunOptions(tmp_path / "begun")))
    for out, words, told in (
        ("begun", ["--force", "--resume"], "pass one of the two"),
        ("begun", [], "was not finished"),
        ("new", ["--cache", str(tmp_path / "new" / "training" / "t")], "is among what --force deletes"),
    ):
        assert train(pocket, tmp_path / out, *words) == 2 and told in said(capsys)
    assert not (tmp_path / "new").exists() and {path.name for path in (tmp_path / "begun").iterdir()} == {
        "config.json",
        "qks-run.json",
    }


def test_each_of_many_processes_has_a_device_of_its_own(pocket, tmp_path):
    spec = RunSpec(pocket, RunOptions(tmp_path / "run"))
    with pytest.raises(QKSError, match="each of the processes has its own device: leave out --device cuda:0"):
        prepare_run(spec, device="cuda:0", n_processes=2)


@pytest.mark.parametrize("cache", [".", "deep/tokens-of-mine", "tokens"])
def test_no_force_deletes_image_tokens(tmp_path, cache):
    "Hours of computing, in whatever folder of the run they lie."
    spec = RunSpec(Path("data"), RunOptions(tmp_path / "run"), tokens=TokenConfig(tmp_path / "run" / cache))
    run = claim_run_folder(spec)
    numbers = run / cache / "tokens-0123" / "tokens.bin"
    numbers.parent.mkdir(parents=True)
    numbers.write_text("numbers")
    (run / "table.md").write_text("old")
    assert claim_run_folder(replace(spec, seeds=2), force=True) == run
    assert numbers.read_text() == "numbers" and not (run / "table.md").exists()
    assert json.loads((run / "config.json").read_text())["seeds"] == 2


def test_a_run_is_replaced_when_every_image_was_read(pocket, tmp_path, capsys):
    "A damaged picture in the new data: the finished run is still there, and is replaced once the picture is mended."
    shutil.copytree(pocket, tmp_path / "data")
    run = tmp_path / "run"
    damaged = next((tmp_path / "data" / "Flickr").rglob("*.jpg"), None) or next(
        (tmp_path / "data" / "Flickr").rglob("*.png")
    )
    assert train(pocket, run) == 0
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    content = damaged.read_bytes()
    damaged.write_bytes(content[:200])
    capsys.readouterr()
    assert train(tmp_path / "data", run, "--force", "--lr", "2e-3") == 2 and "damaged or truncated" in said(capsys)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == kept
    damaged.write_bytes(content)
    assert train(tmp_path / "data", run, "--force", "--lr", "2e-3") == 0
    assert json.loads((run / "config.json").read_text())["train"]["lr"] == 2e-3


def test_a_training_begins_with_another_heads_weights(pocket, tmp_path, capsys):
    "At a rate that changes nothing the head is the one it began with; what it began with is part of the configuration."
    assert train(pocket, tmp_path / "one") == 0
    words = ["--init", str(tmp_path / "one"), "--lr", "1e-12", "--n-queries", "7", "--clip", "1"]
    assert train(pocket, tmp_path / "two", *words) == 0
    one, two = (
        QKSHead.from_state(load_file(tmp_path / name / "model" / "head.safetensors"), 3).state_dict()
        for name in ("one", "two")
    )
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-8)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two")]
    assert (
        configs[0]["init_digest"] is None
        and len(configs[1]["init_digest"]) == 32
        and [config["head"]["n_queries"] for config in configs] == [2, 2]
    )
    capsys.readouterr()
    (tmp_path / "two" / "results.json").unlink()
    assert train(
        pocket, tmp_path / "two", "--resume", "--lr", "1e-12", "--clip", "1", "--n-queries", "2"
    ) == 2 and "; init " in said(capsys)
    for wrong, told in (
        (str(tmp_path / "nowhere"), "nowhere is not a saved QKS"),
        (str(pocket / "ImageList" / "TrainImagelist.txt"), "TrainImagelist.txt"),
    ):
        assert train(pocket, tmp_path / "three", "--init", wrong) == 2 and told in said(capsys)
    assert not (tmp_path / "three").exists()


def test_the_authors_head_to_begin_with(tmp_path, tiny_vlp):
    weights = {"proj": tiny_vlp.projection.clone()} | {
        key.removeprefix("weights/"): torch.from_numpy(value)
        for key, value in np.load(TESTS / "data" / "model.npz").items()
        if key.startswith("weights/") and key != "weights/proj"
    }
    torch.save(weights, tmp_path / "authors.pth")
    head = load_initial_head(tmp_path / "authors.pth", tiny_vlp)
    assert (
        torch.equal(head.projection, tiny_vlp.projection) and head.config.n_layers == 3 and head.config.n_queries == 5
    )
    torch.save(weights | {"proj": torch.zeros(64, 7)}, tmp_path / "other.pth")
    with pytest.raises(QKSError, match="use the VLP that the head was trained with"):
        load_initial_head(tmp_path / "other.pth", tiny_vlp)


def row(mAP):
    return {"seen": {"mAP": {"mean": mAP}}}


@pytest.mark.parametrize("lr", [1e-5, 1e-4, 2e-5, 3e-5, 1e-3])
@pytest.mark.parametrize(
    "schedule, falls, frozen, words",
    [("plateau", 0, 0.2, 1), ("plateau", 2, 0.2, 2), ("cosine", 2, 0.2, 1), ("plateau", 2, 0.9, 3)],
)
def test_what_is_said_at_the_end(lr, schedule, falls, frozen, words):
    "Rates as the schedule itself makes them: a tenth of a tenth is no exact hundredth."
    recipe = TrainConfig(lr=lr, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    plateau = make_schedule(optimizer, TrainConfig(lr=lr), 1)
    history = []
    for epoch in range(1, 2 + 2 * falls + 1):
        history.append({"epoch": epoch, "lr": optimizer.param_groups[0]["lr"], "score": -abs(epoch - 2)})
        plateau.step(0.0)
    told = closing_remarks(
        {
            "rows": {"VLP best patch": row(frozen), "VLP zero-shot": row(0.1), "QKS": row(0.5)},
            "runs": [{"history": history}],
        },
        recipe,
    )
    assert len(told) == words and told[0].startswith(f"Epoch 2 of {len(history)} was kept, the best")
    assert (f"By epoch {len(history)}" in " ".join(told)) == (words > 1), (history, told)
    assert ("(50.0 seen mAP) is no better than the frozen model without it ('VLP best patch', 90.0)" in told[-1]) == (
        frozen > 0.5
    ) and ("--lr 1e-4" in told[-1]) == (frozen > 0.5 and lr < 1e-4)
    assert (
        "of the first seed"
        in closing_remarks({"rows": {"VLP": row(0.1), "QKS": row(0.5)}, "runs": [{"history": history}] * 2}, recipe)[0]
    )


def test_few_labels_have_fewer_places(pocket, tmp_path, capsys):
    "Two unseen labels: F1 at 1 where nobody says which k, and what was asked for where somebody does."
    root = tmp_path / "own"
    root.mkdir()
    for split in ("train", "test"):
        for number in range(20):
            Image.new("RGB", (8, 8), (12 * number, 0, 0)).save(root / f"{split}{number}.png")
        (root / f"{split}.csv").write_text(
            "image,labels\n" + "".join(f"{split}{i}.png,{'abcde'[i % 5]}|{'fg'[i % 2]}\n" for i in range(20))
        )
    (root / "unseen.txt").write_text("f\ng\n")
    assert (
        main(["data", "folder", "prepare", str(root), "--unseen", "unseen.txt"]) == train(root, tmp_path / "run") == 0
    )
    assert main(["evaluate", str(tmp_path / "run"), str(root)]) == 0 and "F1@1" in capsys.readouterr().out
    assert main(
        ["evaluate", str(tmp_path / "run"), str(root), "--topk", "5"]
    ) == 2 and "the part zsl has only 2 annotated labels" in said(capsys)


def test_another_spelling_of_the_same_place(pocket, tmp_path, monkeypatch, capsys):
    "Stopped with one spelling of the data's place, gone on with another."
    monkeypatch.setattr(
        "qks.experiment.training_run.save_run",
        lambda *args, **kwargs: (_ for _ in ()).throw(QKSError("stopped before the results")),
    )
    assert train(pocket, tmp_path / "run", "--topk", "1") == 2
    monkeypatch.undo()
    monkeypatch.chdir(pocket.parent)
    assert train("pocket", tmp_path / "run", "--topk", "1", "--resume") == 0


def claimed(tmp_path, name, **settings):
    "A run's folder and its specification."
    spec = RunSpec(Path("data"), RunOptions(tmp_path / name), **settings)
    return claim_run_folder(spec), spec


def train_a_step(folder):
    checkpoint = folder / "training" / "seed0" / CHECKPOINT_NAME.format(3)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("a checkpoint")


def test_claiming_a_folder_again(tmp_path):
    folder, spec = claimed(tmp_path, "run", train=TrainConfig(lr=0.1))
    written = (folder / "config.json").read_text()
    assert json.loads(written) == spec_values(spec) and "folder" not in json.loads(written)["run"]
    assert claim_run_folder(spec, resume=True) == folder
    (folder / "config.json").write_text("{")
    with pytest.raises(QKSError, match="config.json is damaged .*: pass --force to begin again"):
        claim_run_folder(spec, resume=True)
    for empty in ("{}", "", "{}\n"):  # killed before anything began
        (folder / "config.json").write_text(empty)
        assert claim_run_folder(spec, resume=True) == folder and (folder / "config.json").read_text() == written
    assert claim_run_folder(replace(spec, seeds=2), resume=True) == folder  # nothing is trained yet
    assert json.loads((folder / "config.json").read_text())["seeds"] == 2
    assert claim_run_folder(spec, resume=True) == folder
    train_a_step(folder)
    with pytest.raises(QKSError, match="another configuration .seeds 1 there, 2 here"):
        claim_run_folder(replace(spec, seeds=2), resume=True)
    with pytest.raises(QKSError, match="pass one of the two"):
        claim_run_folder(spec, force=True, resume=True)
    assert (folder / "config.json").read_text() == written


def test_claiming_a_folder_that_holds_no_run(tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".qks-run.json.123.part").write_text('{"pro')  # killed while the very first file was written
    assert claimed(tmp_path, "begun")[0] == tmp_path / "begun"
    spec = RunSpec(Path("data"), RunOptions(tmp_path / "new"))
    assert claim_run_folder(spec, resume=True) == tmp_path / "new"  # nothing there yet: a run begins
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for force in (False, True):
        with pytest.raises(QKSError):
            claim_run_folder(replace(spec, run=RunOptions(tmp_path / "mine")), force=force)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_the_same_weights_wherever_they_are(tmp_path):
    folder, spec = claimed(tmp_path, "run", vlp=VLPSource("ViT-B-16", "clip.pt"), vlp_fingerprint="12")
    train_a_step(folder)
    moved = replace(spec, vlp=VLPSource("ViT-B-16", "elsewhere/clip.pt"))
    assert claim_run_folder(moved, resume=True)
    with pytest.raises(QKSError, match="fingerprint 12 there, 34 here"):
        claim_run_folder(replace(moved, vlp_fingerprint="34"), resume=True)


def test_tokens_come_from_three_places(tiny_vlp, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "qks.experiment.training_run.cache_tokens",
        lambda vlp, data, **kwargs: (
            made.append(kwargs) or torch.zeros(4, kwargs["views"], 3, 64)[:, 0 if kwargs["views"] == 1 else slice(None)]
        ),
    )
    assert training_tokens(tiny_vlp, None, TokenConfig()).shape == (4, 3, 64)
    assert len(training_tokens(tiny_vlp, None, TokenConfig(tmp_path, views=2))) == 4
    assert [kwargs["folder"] for kwargs in made] == [None, tmp_path]


# ---- no cache: the paper's pipeline, written down a second time


class Photographs:
    "Five pictures of changing shape, of colours that no rectangle hits by chance."

    def __init__(self, folder):
        self.folder = folder
        rng = np.random.default_rng(0)
        for i, size in enumerate([(40, 50), (50, 40), (64, 64), (33, 90), (32, 41)]):
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(self.path(i))

    def __len__(self):
        return 5

    def path(self, index):
        return self.folder / f"{index}.png"


def papers_pipeline(image, index, epoch, side):
    "Resize, centre crop, cutout, flip, RandAugment, normalise: by PIL and numpy, with the same random numbers."
    short = min(image.size)
    image = image.resize(tuple(side * length // short for length in image.size), Image.BICUBIC)
    left, top = (round((length - side) / 2) for length in image.size)
    pixels = np.array(image.crop((left, top, left + side, top + side)))
    rng = np.random.default_rng([0, index, epoch])
    x = int(rng.integers(side)) - side // 4
    y = int(rng.integers(side)) - side // 4
    pixels[max(y, 0) : max(y + side // 2, 0), max(x, 0) : max(x + side // 2, 0)] = rng.integers(256, size=3)
    flipped = rng.random() < 0.5
    if flipped:
        pixels = pixels[:, ::-1].copy()
    torch.manual_seed(int(rng.integers(2**63)))
    pixels = np.asarray(
        torchvision.transforms.v2.RandAugment(num_ops=2, magnitude=9, num_magnitude_bins=31)(Image.fromarray(pixels))
    )
    mean = np.float32([0.48145466, 0.4578275, 0.40821073])
    std = np.float32([0.26862954, 0.26130258, 0.27577711])  # CLIP's
    return flipped, torch.from_numpy(((np.float32(pixels) / 255 - mean) / std).transpose(2, 0, 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_no_cache_feeds_the_tower_the_papers_pipeline(tiny_vlp, tmp_path, monkeypatch, workers):
    data = Photographs(tmp_path)
    tower = tiny_vlp.image_tokens
    fed = []
    monkeypatch.setattr(tiny_vlp, "image_tokens", lambda images: fed.append(images) or tower(images))
    tokens = training_tokens(tiny_vlp, data, TokenConfig(no_cache=True), workers)
    flips = []
    for epoch in (1, 7):
        tokens.set_epoch(epoch)
        rows = torch.tensor([4, 1, 0, 3, 2])
        found = torch.cat(list(tokens.read_batches(rows.split(3))))
        flipped, expected = zip(*(papers_pipeline(Image.open(data.path(i)), i, epoch, 32) for i in rows.tolist()))
        torch.testing.assert_close(torch.cat(fed), torch.stack(expected), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            found, torch.cat([tower(part) for part in torch.stack(expected).split(3)]), rtol=1e-4, atol=1e-4
        )
        flips += flipped
        fed.clear()
    assert set(flips) == {False, True}


def test_no_cache_trains_on_other_pixels_every_epoch(pocket, tmp_path, monkeypatch):
    "In the command, too: each training image once per epoch, never the same twice, and never as it is in the file."
    monkeypatch.setattr("qks.experiment.results.save_figures", lambda *args: None)
    monkeypatch.setattr(
        "qks.experiment.training_run.load_training_data",
        partial(load_training_data, pool=PromptPool.single("a photo of {}")),
    )
    fed = []
    plain = set()
    live = LiveTokens._tokens

    def watched(self, batches, workers):
        tower = self.vlp.image_tokens
        images = []
        plain.update(
            self.vlp.preprocess(load_image(self.images.data.path(i))).numpy().tobytes() for i in range(len(self))
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.vlp, "image_tokens", lambda pixels: images.append(pixels) or tower(pixels))
            for tokens in live(self, batches, workers):
                fed.extend(images.pop())
                yield tokens

    monkeypatch.setattr(LiveTokens, "_tokens", watched)
    assert train(pocket, tmp_path / "run", "--no-cache", "--seeds", "2") == 0
    seen = {pixels.numpy().tobytes() for pixels in fed}
    assert len(fed) == len(seen) == 2 * 2 * 36 and len(plain) == 36 and not seen & plain
