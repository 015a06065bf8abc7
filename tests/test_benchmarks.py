"""Every benchmark runs with --quick and writes its numbers; the committed numbers support what is claimed."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from qks.model.fast import block_operations

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def committed(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize(
    "name", ["head", "sizes", "labels", "prompts", "evaluate", "cache", "views", "score", "stream"]
)
def test_runs_quickly(name, tmp_path):
    out = tmp_path / "numbers.json"
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    quick = json.loads(out.read_text())
    newest = "second/head" if name == "head" else name
    assert {"settings", "machine"} < quick.keys()
    assert quick.keys() == committed(newest).keys(), f"{newest}.json is of another version of the benchmark"
    if name == "head":
        assert [row["mode"] for row in quick["roofline"]] == ["forward", "training"]
        assert all(0 < row["share"] <= 1 for row in quick["roofline"])


def test_peak_memory_of_every_command(tmp_path):
    out = tmp_path / "memory.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = json.loads(out.read_text())
    assert [row["command"] for row in numbers["rows"]] == [
        "qks reproduce --quick",
        "qks data pocket",
        "qks train",
        "qks evaluate",
        "qks tag",
        "scoring, NUS-WIDE's size",
        "scoring, Open Images' size",
    ]
    assert all(50 < row["peak_megabytes"] < 4_000 for row in numbers["rows"])


@pytest.fixture
def benchmark(monkeypatch):
    """A benchmark as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_the_peak_is_that_of_a_command_with_its_children(benchmark):
    memory = benchmark("memory")
    hold = "import time; block = bytearray(200_000_000); time.sleep(2)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    peak, seconds = memory.peak_of([sys.executable, "-c", child])
    assert 200e6 < peak < 400e6 and seconds >= 2


def test_a_command_that_fails_ends_the_memory_benchmark(benchmark):
    with pytest.raises(SystemExit, match="status 3:\nno room"):
        benchmark("memory").peak_of([sys.executable, "-c", "print('no room'); raise SystemExit(3)"])


def operations_by_hand(sizes, training):
    """Of a step: twice the multiplications, less what the first block saves where all images are still the same."""
    K = sizes.queries
    D = sizes.width
    passes = 3 if training else 1
    cost = block_operations(sizes.tokens, K, D, D // 64, 4 * D, backward=training)
    blocks = sizes.layers * (min(cost["absorbed"], cost["projected"]) + cost["rest"])
    projection = passes * K * D * sizes.embedding
    sharing = (2 if training else 1) * K * sizes.embedding * sizes.labels
    once = 3 * K * D**2 + K**2 * D  # queries, keys, values, their scores; dropout makes the rest differ by image
    if not training:
        once += 2 * K * D**2 + K**2 * D  # gathered values, output, queries of the cross-attention
    return 2 * (sizes.images * (blocks + projection + sharing) - passes * (sizes.images - 1) * once)


@pytest.mark.parametrize("mode", ["forward", "training"])
def test_the_roofline_counts_the_operations_of_a_step(benchmark, mode):
    roofline = benchmark("roofline")
    sizes = roofline.QUICK["tiny"]
    step = roofline.steps(sizes)[mode]
    counted = roofline.record(step).operations
    assert counted == pytest.approx(operations_by_hand(sizes, mode == "training"), rel=0.01)


def test_the_roofline_gives_shares(tmp_path):
    out = tmp_path / "roofline.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "roofline.py"), "--quick", "--threads", "1", "--out", str(out)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    numbers = json.loads(out.read_text())
    assert {"rows", "settings", "machine"} == numbers.keys()
    assert [(row["sizes"], row["mode"]) for row in numbers["rows"]] == [("tiny", "forward"), ("tiny", "training")]
    for row in numbers["rows"]:
        assert 0 < row["share"] <= 1 and row["rate"] > 0
        assert row["share"] == pytest.approx(row["products_milliseconds"] / row["milliseconds"], abs=0.1)


@pytest.mark.parametrize("name", ["reproduce", "avx2/reproduce"])
def test_the_first_command_takes_five_minutes(name):
    measured = committed(name)["reproduce"]
    assert measured["seconds"] <= 300 and measured["seconds_at_100"] <= 300
    assert measured["peak_memory_GB"] <= 2
    mean_rate = sum(measured["rates"]) / 2
    assert measured["seconds_at_100"] == pytest.approx(measured["seconds"] * mean_rate / 100, rel=1e-3)


@pytest.mark.parametrize("name", ["roofline", "avx2/roofline"])
def test_the_paper_s_head_is_near_the_machine_s_limit(name):
    shares = {row["mode"]: row["share"] for row in committed(name)["rows"] if "ViT-B/16" in row["sizes"]}
    assert 0.7 <= shares["forward"] <= 1 and 0.6 <= shares["training"] <= 1


@pytest.mark.parametrize("name", ["labels", "second/labels"])
def test_a_million_labels_fit(name):
    numbers = committed(name)
    assert numbers["settings"]["labels"] == 1_000_000
    assert numbers["peak_gigabytes"] < 6
    assert numbers["ratio_to_bare_product"]["tagging"] <= 2


@pytest.mark.parametrize("name", ["prompts", "second/prompts"])
def test_prompts_are_seven_times_faster(name):
    assert committed(name)["ratio"] >= 7
    assert committed(name)["apart"] < 1e-5


@pytest.mark.parametrize("name", ["evaluate", "second/evaluate"])
def test_evaluation_pays_for_its_tower_and_little_else(name):
    over = committed(name)["over"]
    for precision in ("fp32", "bf16"):
        assert over[f"ours, {precision}"][f"tower alone, {precision}"] >= 0.95


def test_half_precision_that_pays_makes_evaluation_faster():
    assert committed("second/evaluate")["over"]["ours, bf16"]["reference"] >= 1.3


def shown(notebook):
    """All text that a committed notebook's cells printed, and the tables that they show."""
    cells = json.loads((ROOT / "nbs" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    printed = ["".join(output.get("text", "")) for output in outputs]
    tables = ["".join(output.get("data", {}).get("text/markdown", "")) for output in outputs]
    return "".join(printed + tables)


def percent(row, digits=2):
    return f"{100 * row['mean']:.{digits}f} ± {100 * row['std']:.{digits}f}"


def pocket_metrics():
    rows = json.loads((ROOT / "nbs" / "results" / "pocket_wide.json").read_text())["rows"]["QKS"]
    return [
        percent(value, digits=1)
        for part in rows.values()
        for name, value in part.items()
        if name == "mAP" or name.startswith("F1")
    ]


def head_speedups():
    return [f"{way['training']['speedup']:.2f}" for way in committed("head")["ways"]]


def views_metrics():
    parts = ("seen", "zsl")
    return [f"{part} mAP {percent(row[part], digits=1)}" for row in committed("views")["rows"] for part in parts]


def cache_rates():
    return [f"{row['images/s']:10,.1f}" for row in committed("cache")["read"]]


def training_rates():
    return [f"{row['images/s']:6.2f} images a second" for row in committed("train")["ways"]]


def quality_metrics():
    return [percent(row[part]) for row in committed("quality")["ways"] for part in ("seen", "zsl", "gzsl")]


def evaluation_ratios():
    return [f"{ratio} of {base}" for over in committed("evaluate")["over"].values() for base, ratio in over.items()]


def prompt_ratio():
    return [f"{committed('prompts')['ratio']} times"]


def streaming_seconds():
    return [f"streamed: {committed('stream')['seconds']} s"]


@pytest.mark.parametrize(
    "notebook, numbers",
    [
        ("index", pocket_metrics),
        ("model/02_fast", head_speedups),
        ("tokens/04_stream", views_metrics),
        ("tokens/04_stream", cache_rates),
        ("studies/02_benchmarks", training_rates),
        ("studies/02_benchmarks", quality_metrics),
        ("studies/02_benchmarks", evaluation_ratios),
        ("studies/02_benchmarks", prompt_ratio),
        ("studies/02_benchmarks", cache_rates),
        ("studies/02_benchmarks", streaming_seconds),
    ],
)
def test_notebooks_show_the_committed_numbers(notebook, numbers):
    text = shown(notebook)
    missing = [number for number in numbers() if number not in text]
    assert not missing, f"{notebook} was run with other results: run it again ({missing})"
