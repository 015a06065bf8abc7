"""The scripts that keep notebooks and the first page up to date."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from repository import ROOT
from safetensors.torch import load_file, save_file


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
    assert "42" in json.dumps(first)
    assert left_out == [[], []]
    assert (tmp_path / "ran").exists()
    assert not (tmp_path / "slow").exists()
    assert not (tmp_path / "eval").exists()


def test_run_notebooks_drops_bars_and_keeps_warnings(tmp_path):
    path = notebook(
        tmp_path / "c.ipynb",
        "import sys; sys.stderr.write('10 %\\r20 %\\r')",
        "sys.stderr.write('look out'); None",
    )
    assert run(path).returncode == 0
    bar, warning = outputs(path)
    assert bar == [] or "20 %" not in json.dumps(bar)
    assert "look out" in json.dumps(warning)


def test_run_notebooks_leaves_a_failing_notebook_as_it_was(tmp_path):
    path = notebook(tmp_path / "b.ipynb", "1/0", "print('never')")
    before = path.read_text()
    done = run(path)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert path.read_text() == before


@pytest.fixture
def update_results(tmp_path, monkeypatch):
    """The script, which writes to folders of the test."""
    script = load("update_results")
    monkeypatch.setattr(script, "NBS", tmp_path / "nbs")
    monkeypatch.setattr(script, "ASSET", tmp_path / "asset")
    (tmp_path / "nbs" / "images").mkdir(parents=True)
    return script


@pytest.fixture
def finished_run(tmp_path, update_results):
    """A run's folder with all the files that the script copies."""
    folder = tmp_path / "run"
    for name in ("figures", "model"):
        (folder / name).mkdir(parents=True)
    (folder / "results.json").write_text("{}")
    (folder / "model" / "config.json").write_text("{}")
    save_file({"a": torch.full((2,), 0.5)}, folder / "model" / "head.safetensors")
    for name in update_results.FIGURES:
        (folder / "figures" / f"{name}.png").write_bytes(b"png")
    return folder


def test_update_results_names_what_a_run_lacks(update_results, finished_run, tmp_path):
    (finished_run / "results.json").unlink()
    with pytest.raises(SystemExit, match="results.json"):
        update_results.main(finished_run)
    assert not (tmp_path / "asset").exists()


def test_update_results_copies_and_halves(update_results, finished_run, tmp_path):
    update_results.main(finished_run)
    assert (tmp_path / "nbs" / "results" / "pocket_wide.json").read_text() == "{}"
    assert len(list((tmp_path / "nbs" / "images").glob("pocket_*.png"))) == len(update_results.FIGURES)
    assert load_file(tmp_path / "asset" / "head.safetensors")["a"].dtype == torch.float16


def test_readme_figures_are_drawn(tmp_path, capsys):
    load("draw_readme_figures").main(["--count", "2", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"recall.png", "scene.png", "scenes.png"}
    drawn = np.asarray(Image.open(tmp_path / "scene.png"))
    committed = np.asarray(Image.open(ROOT / "nbs" / "images" / "scene.png"))
    np.testing.assert_array_equal(drawn, committed)
    assert "labels never trained on" in capsys.readouterr().out
