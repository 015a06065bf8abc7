"""`qks train`: tokens from three places, a run that goes on with --resume, and every mistake in one sentence."""
import argparse
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from qks import cache as tokens_cache
from qks import engine
from qks.checkpoint import list_checkpoints
from qks.cli import main
from qks.core import QKSError
from qks.prompts import PromptPool
from qks.recipe import TrainConfig
from qks.reproduce import load_benchmark
from qks.train_command import add_training_arguments, claim_folder, flat, read_recipe, training_tokens

TESTS = Path(__file__).parent
OPTIONS = ["--epochs", "2", "--lr", "1e-3", "--layers", "1", "--queries", "2", "--batch-size", "12", "--save-steps", "2"]


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
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in results["runs"][0]["history"]]
    return history, results["rows"], (out / "model" / "head.safetensors").read_bytes()


def said(capsys):
    captured = capsys.readouterr()
    assert captured.err.startswith("qks: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    return parser.parse_args(["data", "--out", "run", *words])


def test_the_defaults_are_the_papers():
    assert read_recipe(parsed()) == TrainConfig()


def test_every_choice_reaches_the_recipe():
    words = "--epochs 3 --batch-size 5 --lr 0.1 --accumulate 2 --clip 1.5 --ema 0.9 --loss bce --schedule cosine --precision bf16 --selection official --seed 4 --warmup 7 --topk 1 2 --fused --compile"
    assert read_recipe(parsed(*words.split())) == TrainConfig(epochs=3, batch_size=5, lr=0.1, accumulate=2, clip=1.5, ema=0.9, loss="bce", schedule="cosine", precision="bf16",
                                                              selection="official", seed=4, warmup=7, topk=(1, 2), fused=True, compile=True)


def test_interrupted_and_resumed(pocket, tmp_path, monkeypatch, capsys):
    "Stopped by Ctrl-C in the middle of the second epoch: status 130, a sentence, and with --resume the run that was never stopped."
    monkeypatch.setattr("qks.reproduce.save_figures", lambda *args: None)  # takes seconds, and is tested elsewhere
    monkeypatch.setattr("qks.train_command.load_benchmark", partial(load_benchmark, pool=PromptPool.single("a photo of {}")))
    assert train(pocket, tmp_path / "whole") == 0
    step, calls, out = engine.train_step, [], tmp_path / "run"

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5: os.kill(os.getpid(), signal.SIGINT)
        return step(*args, **kwargs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "train_step", interrupted)
        capsys.readouterr()
        assert train(pocket, out) == 130
    assert "training was stopped after step 5" in (told := said(capsys)) and "--resume" in told
    assert max(list_checkpoints(out / "training" / "seed0")) == 5 and not (out / "results.json").exists()
    assert train(pocket, out) == 2 and "not finished: pass --resume to go on, or --force to replace it" in said(capsys)
    assert train(pocket, out, "--resume", "--clip", "1") == 2 and "another configuration (clip 0.0 there, 1.0 here)" in said(capsys)
    with monkeypatch.context() as patch:
        patch.setattr("qks.train_command.fingerprint", lambda vlp: "another")  # other weights under the same name
        assert train(pocket, out, "--resume") == 2 and "there, another here" in said(capsys)
    assert train(pocket, out, "--resume") == 0
    assert numbers(out) == numbers(tmp_path / "whole")
    capsys.readouterr()
    assert train(pocket, out, "--resume") == 2 and "is finished" in said(capsys)


@pytest.mark.parametrize("cache", [True, False])
def test_stopped_while_tokens_are_cached(pocket, tmp_path, monkeypatch, capsys, cache):
    "Ctrl-C in the third split: one sentence says what is kept and how to go on; what was finished is not computed again."
    monkeypatch.setattr("qks.reproduce.save_figures", lambda *args: None)
    monkeypatch.setattr("qks.train_command.load_benchmark", partial(load_benchmark, pool=PromptPool.single("a photo of {}")))
    loaded, load, more = [], tokens_cache.load_batches, ["--cache", str(tmp_path / "tokens")] if cache else []

    def stops(*args):
        loaded.append(len(args[0]))
        if len(loaded) == 3: raise KeyboardInterrupt
        yield from load(*args)
    monkeypatch.setattr(tokens_cache, "load_batches", stops)
    assert train(pocket, tmp_path / "run", *more) == 130
    kept = f"{tmp_path / 'tokens'} keeps what is finished" if cache else "none of them is kept without --cache"
    assert said(capsys) == f"qks: stopped while image tokens were computed, and {kept}: run the same with --resume to go on\n"
    assert train(pocket, tmp_path / "run", "--resume", *more) == 0
    assert sum(loaded[3:]) == (loaded[2] if cache else sum(loaded[:3]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_while_results_are_written(tmp_path):
    "Killed before any file of the results is opened, written or renamed: the run is never taken for finished, and --resume ends with the same files."
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(TESTS / "kill_results.py"), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 6 and found["same"]  # table, head, its configuration, a figure, results and their name
    assert not any(found["finished"])


@pytest.mark.parametrize("words, told", [(["--log-with", "nothing"], "tracker 'nothing' is not known"), (["--views", "2", "--no-cache"], "leave one of them out"),
                                         (["--ema", "2"], "ema is 2.0"), (["--keep", "0"], "keep"),
                                         (["--warmup", "3"], "warmup belongs to the cosine schedule")], ids=str)
def test_mistakes(pocket, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.setattr("qks.train_command.load_benchmark", lambda root, vlp, train_tokens, **kwargs: train_tokens(vlp, None))  # what costs seconds
    assert main(["train", str(pocket), "--out", str(tmp_path / "new"), "--device", "cpu", *words]) == 2
    assert told in said(capsys)


# ---- the folder

def test_claiming_a_folder(tmp_path):
    config, folder = {"train": {"lr": 0.1, "topk": (3, 5)}, "seeds": 1}, tmp_path / "run"
    assert claim_folder(folder, config) == folder and json.loads((folder / "config.json").read_text()) == {"train": {"lr": 0.1, "topk": [3, 5]}, "seeds": 1}
    assert claim_folder(folder, config, resume=True) == folder
    (folder / "config.json").write_text("{")
    with pytest.raises(QKSError, match="config.json is damaged: pass --force to begin again"): claim_folder(folder, config, resume=True)
    written = json.dumps({"train": {"lr": 0.1, "topk": [3, 5]}, "seeds": 1}, indent=1) + "\n"
    for empty in ("{}", "", "{}\n"):  # killed before anything began
        (folder / "config.json").write_text(empty)
        assert claim_folder(folder, config, resume=True) == folder and (folder / "config.json").read_text() == written
    with pytest.raises(QKSError, match="pass one of the two"): claim_folder(folder, config, force=True, resume=True)
    assert (folder / "config.json").read_text() == written
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".config.json.123.part").write_text('{"tra')  # killed while the very first file was written
    assert claim_folder(tmp_path / "begun", config) == tmp_path / "begun"
    assert claim_folder(tmp_path / "new", config, resume=True) == tmp_path / "new"  # nothing there yet: a run begins
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for force in (False, True):
        with pytest.raises(QKSError): claim_folder(tmp_path / "mine", config, force=force)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_flat():
    assert flat({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "c": [2], "e": None}


def test_tokens_come_from_three_places(tiny_vlp, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("qks.train_command.cache_tokens", lambda vlp, data, **kwargs: made.append(kwargs) or torch.zeros(4, kwargs["views"], 3, 64)[:, 0 if kwargs["views"] == 1 else slice(None)])
    assert training_tokens(tiny_vlp, None).shape == (4, 3, 64)
    assert len(training_tokens(tiny_vlp, None, cache=tmp_path, views=2)) == 4
    assert [kwargs["folder"] for kwargs in made] == [None, tmp_path]
    with pytest.raises(QKSError, match="leave one of them out"): training_tokens(tiny_vlp, None, views=2, live=True)
