"""The training benchmarks run with --quick and write their numbers; the committed ones support what is claimed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("name", ["train", "quality", "few", "gpu"])
def test_runs_quickly(name, tmp_path):
    out = tmp_path / "numbers.json"
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--threads", "1", "--out", str(out)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    quick = json.loads(out.read_text())
    assert {"settings", "machine", "ways"} <= quick.keys() and quick["ways"]
    if (RESULTS / f"{name}.json").exists():
        committed = json.loads((RESULTS / f"{name}.json").read_text())
        outdated = "the committed numbers are of another version of the benchmark: run it again"
        assert quick.keys() == committed.keys(), outdated
        assert quick["ways"][0].keys() == committed["ways"][0].keys(), outdated


def committed(name):
    return {way["way"]: way for way in json.loads((RESULTS / f"{name}.json").read_text())["ways"]}


def test_the_cache_changes_speed_not_numbers():
    ways = committed("train")
    assert ways["ours, fp32"]["apart"] < 1e-4 and ways["ours, bf16, fused AdamW"]["apart"] < 1e-2
    assert ways["ours, fp32"]["speedup"] > ways["cache, plain head"]["speedup"] * 0.9 > 1


def test_training_is_eight_times_faster_where_half_precision_pays():
    assert committed("second/train")["ours, bf16, fused AdamW"]["speedup"] >= 8


def test_quality_does_not_pay_for_speed():
    plain, *fast = (row["zsl"] for row in committed("quality").values())
    assert len(fast) == 3 and all(abs(row["mean"] - plain["mean"]) <= plain["std"] for row in fast)


def test_few_pictures_need_a_higher_rate():
    ways = committed("few")
    assert 2 * ways["1e-5, plateau (the paper's)"]["seen"]["mean"] < ways["1e-4, cosine"]["seen"]["mean"]
