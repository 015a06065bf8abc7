"""The scripts that keep notebooks and the first page up to date."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

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


def test_run_notebooks_keeps_what_a_quiet_cell_prints_and_nothing_old(tmp_path):
    path = notebook(tmp_path / "quiet.ipynb", "print('printed')\n1;", "x = 1")
    found = json.loads(path.read_text())
    found["cells"][1]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": ["of an earlier run\n"]}]
    path.write_text(json.dumps(found))
    assert run(path).returncode == 0
    assert ["".join(output["text"]) for output in outputs(path)[0]] == ["printed\n"]
    assert outputs(path)[1] == []
    assert json.loads(path.read_text())["cells"][0]["source"][-1] == "1;"


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


def test_run_notebooks_shows_no_temporary_folder(tmp_path):
    code = "import tempfile\nfolder = tempfile.mkdtemp()\nprint(f'written to {folder}/a.png')\nfolder"
    path = notebook(tmp_path / "d.ipynb", code)
    assert run(path).returncode == 0
    printed, last = outputs(path)[0]
    assert "".join(printed["text"]) == "written to …/a.png\n"
    assert "".join(last["data"]["text/plain"]) == "'…'"


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


@pytest.fixture
def book_results(tmp_path, monkeypatch):
    """The script without data, and with trainings that are only counted."""
    script = load("book_results")
    trained = []
    data = SimpleNamespace(test=SimpleNamespace(label_names=[]), tokens={"test": []}, embeddings=None, vlp=None)
    monkeypatch.setattr(script, "write_pocket", lambda *_: None)
    monkeypatch.setattr(script, "load_training_data", lambda *_: data)
    monkeypatch.setattr(script, "embed_names", lambda *_: None)

    def run_row(row, data, embeddings, seed):
        trained.append((row["learning_rate"], row["epochs"], seed))
        return {part: {"mAP": 0.5} for part in ("seen", "zsl", "gzsl")} | {"seconds": 0.0}

    monkeypatch.setattr(script, "run_row", run_row)

    def main(*words):
        monkeypatch.setattr(sys, "argv", ["book_results.py", "--quick", "--out", str(tmp_path / "book.json"), *words])
        script.main()
        return json.loads((tmp_path / "book.json").read_text())

    return script, trained, main


def test_book_results_keeps_what_is_finished(book_results):
    script, trained, main = book_results
    rows = ["one query token", "in bf16"]
    main("--seeds", "1", "--rows", *rows)
    found = main("--seeds", "2", "--rows", *rows)
    assert [seed for _, _, seed in trained] == [0, 0, 1, 1]
    assert [len(found["rows"][name]["runs"]) for name in rows] == [2, 2]
    assert [rate for rate, _, _ in trained[:2]] == [script.RATES["ranking"], script.RATES["bce"]]


def test_book_ablations_reuse_the_rows(book_results):
    script, trained, main = book_results
    main("--seeds", "1", "--rows", "with a trained projection", "binary cross-entropy")
    trained.clear()
    found = main("--seeds", "1", "--ablations")["ablations"]
    variants = [name for group in script.ABLATIONS.values() for name in group]
    defaults = len(script.ABLATIONS)  # one in each group; it and the frozen projection are rows already
    assert len(trained) == len(variants) - defaults - 1
    assert {group: list(names) for group, names in found.items()} == {
        group: list(names) for group, names in script.ABLATIONS.items()
    }


def test_rates_of_the_book_are_the_best_on_held_out_images():
    script = load("book_results")
    tried = json.loads(script.LEARNING_RATES.read_text())["learning rates"]
    for name, chosen in script.RATES.items():
        held_out = {float(rate): run["held out"]["mAP"] for rate, run in tried[name].items()}
        assert max(held_out, key=held_out.get) == chosen, name
        assert min(held_out) < chosen < max(held_out), f"{name}: try rates on both sides of {chosen}"
