"""The scripts that keep notebooks and the first page up to date."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def notebook(path, *sources):
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
        for i, source in enumerate(sources)
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def run(path):
    return subprocess.run([sys.executable, ROOT / "scripts" / "run_notebooks.py", path], capture_output=True, text=True)


def outputs(path):
    return [cell["outputs"] for cell in json.loads(path.read_text())["cells"]]


def test_run_notebooks_keeps_outputs_and_leaves_slow_cells_out(tmp_path):
    path = notebook(
        tmp_path / "a.ipynb",
        "from pathlib import Path; 6*7",
        "#| slow\nPath('slow').write_text('')",
        "#| eval: false\nPath('eval').write_text('')",
        "Path('ran').write_text('')",
    )
    done = run(path)
    assert done.returncode == 0, done.stderr
    first, *left_out, _ = outputs(path)
    assert "42" in json.dumps(first) and left_out == [[], []]
    assert [(tmp_path / name).exists() for name in ("ran", "slow", "eval")] == [True, False, False]


def test_run_notebooks_drops_bars_and_keeps_warnings(tmp_path):
    path = notebook(
        tmp_path / "c.ipynb", "import sys; sys.stderr.write('10 %\\r20 %\\r')", "sys.stderr.write('look out'); None"
    )
    assert run(path).returncode == 0
    bar, warning = outputs(path)
    assert bar == [] or "20 %" not in json.dumps(bar)
    assert "look out" in json.dumps(warning)


def test_run_notebooks_leaves_a_failing_notebook_as_it_was(tmp_path):
    path = notebook(tmp_path / "b.ipynb", "1/0", "print('never')")
    before = path.read_text()
    done = run(path)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and path.read_text() == before


def test_update_results_copies_and_halves(tmp_path, monkeypatch):
    script = load("update_results")
    monkeypatch.setattr(script, "NBS", tmp_path / "nbs")
    monkeypatch.setattr(script, "ASSET", tmp_path / "asset")
    (tmp_path / "nbs" / "images").mkdir(parents=True)
    made = tmp_path / "run"
    for folder in ("figures", "model"):
        (made / folder).mkdir(parents=True)
    with pytest.raises(SystemExit, match="results.json"):
        script.main(made)
    (made / "results.json").write_text("{}")
    (made / "model" / "config.json").write_text("{}")
    save_file({"a": torch.full((2,), 0.5)}, made / "model" / "head.safetensors")
    for name in script.FIGURES:
        (made / "figures" / f"{name}.png").write_bytes(b"png")
    script.main(made)
    assert (tmp_path / "nbs" / "results" / "pocket_wide.json").read_text() == "{}"
    assert len(list((tmp_path / "nbs" / "images").glob("pocket_*.png"))) == len(script.FIGURES)
    assert load_file(tmp_path / "asset" / "head.safetensors")["a"].dtype == torch.float16
