"""The training benchmarks run with --quick and write their numbers; the committed ones support what is claimed."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qks.model.losses import AsymmetricLoss

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LATEST = {"train": "second/train"}  # where a benchmark was measured last, if not on the first machine


def run_quickly(name, out, *options):
    """What a benchmark writes with --quick, on the processor."""
    script = str(ROOT / "benchmarks" / f"{name}.py")
    command = [sys.executable, script, "--quick", "--threads", "1", "--out", str(out), *options]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", ["train", "quality", "few"])
def test_runs_quickly(name, tmp_path):
    quick = run_quickly(name, tmp_path / "numbers.json")
    assert {"settings", "machine", "ways"} <= quick.keys() and quick["ways"]
    newest = LATEST.get(name, name)
    committed = json.loads((RESULTS / f"{newest}.json").read_text())
    outdated = "the committed numbers are of another version of the benchmark: run it again"
    assert quick.keys() == committed.keys(), outdated
    assert quick["ways"][0].keys() == committed["ways"][0].keys(), outdated
    if name == "train":
        rates = quick["machine"]["billion_operations_a_second"]
        assert quick["promise"] in (6, 8) and rates.keys() == {"float32", "bfloat16"}
        assert [row["precision"] for row in quick["roofline"]] == ["fp32", "bf16"]
        assert all(0 < row["share"] and row["speedup_of_products_alone"] > 0 for row in quick["roofline"])


GPU_ROWS = [
    "golden head, fp32",
    "golden head, bf16",
    "golden losses",
    "reference, fp32",
    "reference, bf16",
    "token caching, bf16",
    "token caching, fp32",
    "prompts, fp32",
    "prompts, bf16",
    "ours, fp32, batch 4",
    "ours, bf16, batch 4",
    "ours, bf16, batch 16",
    "scoring, head",
    "scoring, metrics",
]
COMPILED_ROWS = ["ours, bf16, compiled, batch 4", "ours, bf16, compiled, batch 16"]


def test_the_gpu_script_measures_every_row(tmp_path):
    quick = run_quickly("gpu", tmp_path / "gpu.json")
    assert {"device", "peak_tflops", "settings", "machine"} < quick.keys()
    rows = {row["row"]: row for row in quick["rows"]}
    assert list(rows) == GPU_ROWS and list(quick["left_out"]) == COMPILED_ROWS
    assert all(row["peak_gigabytes"] > 0 for row in rows.values())
    golden = [rows[name] for name in GPU_ROWS[:3]]
    assert all(row["passes"] and max(row["apart"].values()) <= row["tolerance"] for row in golden)
    assert golden[0]["apart"].keys() == {"logits", "loss", "gradients"} and golden[0]["same_tokens_chosen"]
    assert max(golden[0]["apart"].values()) < 1e-5 and len(golden[2]["apart"]) == 2 * (4 + 8)
    assert max(golden[2]["apart"].values()) < 1e-5
    for name in GPU_ROWS[9:12]:
        reference = rows["reference, fp32"]["images/s"]
        ratio = rows[name]["images/s"] / reference
        assert rows[name]["over"]["reference, fp32"] == pytest.approx(ratio, abs=0.01)
        assert rows[name]["epoch_seconds"] == pytest.approx(161_789 / rows[name]["images/s"], rel=0.01)


def test_the_gpu_script_leaves_out_what_does_not_fit(tmp_path):
    quick = run_quickly("gpu", tmp_path / "gpu.json", "--minutes", "0")
    assert quick["rows"] == [] and list(quick["left_out"]) == GPU_ROWS + COMPILED_ROWS
    assert quick["left_out"]["scoring, metrics"] == "0 s were left, it may need 45 s"


def test_the_golden_check_notices_a_wrong_head(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu, "DEVICE", torch.device("cpu"))
    assert gpu.golden_head("fp32")["passes"]
    monkeypatch.setattr(
        gpu, "AsymmetricLoss", lambda: lambda logits, targets: 1.001 * AsymmetricLoss()(logits, targets)
    )
    wrong = gpu.golden_head("fp32")
    assert not wrong["passes"] and wrong["apart"]["loss"] == pytest.approx(1e-3, rel=0.01)


def committed(name):
    return {way["way"]: way for way in json.loads((RESULTS / f"{name}.json").read_text())["ways"]}


def test_the_cache_changes_speed_not_numbers():
    ways = committed("train")
    assert ways["ours, fp32"]["apart"] < 1e-4 and ways["ours, bf16, fused AdamW"]["apart"] < 1e-2
    assert ways["ours, fp32"]["speedup"] > ways["cache, plain head"]["speedup"] * 0.9 > 1


@pytest.mark.parametrize("name, promise", [("train", 6), ("second/train", 8)])
def test_training_keeps_the_promise_of_each_processor(name, promise):
    rates = json.loads((RESULTS / f"{name}.json").read_text())["machine"]["billion_operations_a_second"]
    assert promise == (8 if rates["bfloat16"] >= rates["float32"] else 6)
    assert max(way["speedup"] for way in committed(name).values()) >= promise


def test_the_committed_training_names_its_limit():
    measured = json.loads((RESULTS / "second/train.json").read_text())
    assert measured["promise"] == 8 and [row["precision"] for row in measured["roofline"]] == ["fp32", "bf16"]
    fastest = max(way["speedup"] for way in measured["ways"])
    assert all(0 < row["share"] <= 1 for row in measured["roofline"])
    assert fastest < max(row["speedup_of_products_alone"] for row in measured["roofline"])


def test_quality_does_not_pay_for_speed():
    plain, *fast = (row["zsl"] for row in committed("quality").values())
    assert len(fast) == 3 and all(abs(row["mean"] - plain["mean"]) <= plain["std"] for row in fast)


def test_few_pictures_need_a_higher_rate():
    ways = committed("few")
    assert 2 * ways["1e-5, plateau (the paper's)"]["seen"]["mean"] < ways["1e-4, cosine"]["seen"]["mean"]
