"""The whole path on a tiny Pocket-WIDE: same seed, same numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qks.commands.main import main, parse
from qks.core import QKSError
from qks.data.pocket import PocketConfig
from qks.experiment.reproduction import ReproduceConfig, reproduce, reproduction_stages
from qks.experiment.run_folder import create_run_folder
from qks.model.config import HeadConfig
from qks.model.tagger import QKS
from qks.train.config import TrainConfig

TINY = ReproduceConfig(
    seeds=2,
    data=PocketConfig(n_train=60, n_test=30),
    head=HeadConfig(n_queries=3, n_layers=1),
    train=TrainConfig(epochs=2, lr=1e-3, schedule="cosine"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [(folder / name, reproduce(folder / name, TINY)) for name in ("one", "two")]


def numbers(folder):
    results = json.loads((folder / "results.json").read_text())
    return results["rows"], [run["metrics"] for run in results["runs"]], results["ap_per_label"]


def test_same_seed_same_numbers(runs):
    (one, table), (two, again) = runs
    assert table == again and numbers(one) == numbers(two)


def test_seeds_differ_and_are_summarised(runs):
    rows, metrics, _ = numbers(runs[0][0])
    values = [run["zsl"]["mAP"] for run in metrics]
    assert values[0] != values[1]
    assert rows["QKS"]["zsl"]["mAP"]["mean"] == pytest.approx(sum(values) / 2)
    assert rows["QKS"]["zsl"]["mAP"]["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert rows["VLP best patch"]["zsl"]["mAP"]["std"] == 0


def test_the_saved_model_and_config(runs):
    folder = runs[0][0]
    model = QKS.from_pretrained(folder / "model")
    picture = next((folder / "pocket-wide" / "Flickr").rglob("*.jpg"))
    assert len(model.tag(picture, ["cat", "submarine"])[0]) == 2
    config = json.loads((folder / "config.json").read_text())
    assert config["seeds"] == 2 and config["data"]["n_train"] == 60 and config["train"]["epochs"] == 2


def test_official_selection_is_labelled(tmp_path):
    reproduce(tmp_path / "run", replace(TINY, seeds=1, train=replace(TINY.train, selection="official", epochs=1)))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["selection"] == "official"


def test_run_folders_are_safe(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(QKSError, match="mine"):
            create_run_folder(tmp_path / "mine", force)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(QKSError, match="is a file"):
        create_run_folder(tmp_path / "file")


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seeds": 0}, {"seed": 1.5}], ids=str)
def test_a_bad_number_costs_no_earlier_run(wrong):
    with pytest.raises(QKSError, match="seed"):
        ReproduceConfig(**wrong)


def test_a_bad_seed_on_the_command_line_costs_no_earlier_run(tmp_path, capsys):
    run = create_run_folder(tmp_path / "run", config={"a": 1})
    (run / "results.json").write_text("days of work")
    assert main(["reproduce", "--quick", "--out", str(run), "--seed", "-1", "--force"]) == 2
    assert "seed" in capsys.readouterr().err and (run / "results.json").read_text() == "days of work"


def test_a_replaced_run_keeps_its_tokens(tmp_path, monkeypatch):
    "Hours of caching outlive --force; a kill during the deletion leaves a folder that can be replaced again."
    run = create_run_folder(tmp_path / "run", config={"a": 1})
    for name in ("tokens", "model", "training"):
        (run / name).mkdir()
    for name in ("results.json", "tokens/tokens.bin", "model/head.safetensors"):
        (run / name).write_text("x")
    remove = Path.unlink
    removed = []

    def unlink(path, missing_ok=False):
        removed.append(path)
        if path.name == "head.safetensors":
            raise ZeroDivisionError
        remove(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(ZeroDivisionError):
        create_run_folder(run, force=True)  # killed
    assert (run / "config.json").is_file() and not (run / "results.json").exists()
    monkeypatch.undo()
    create_run_folder(run, force=True, config={"a": 2})
    assert {path.name for path in run.iterdir()} == {"config.json", "qks-run.json", "tokens"}
    assert (run / "tokens" / "tokens.bin").is_file()
    assert json.loads((run / "config.json").read_text()) == {"a": 2}


def test_its_own_config_gives_the_same_numbers(runs, tmp_path, capsys):
    folder, table = runs[0]
    words = ["reproduce", "--config", str(folder / "config.json"), "--out", str(tmp_path / "again")]
    assert main(words) == 0 and table in capsys.readouterr().out
    assert numbers(tmp_path / "again") == numbers(folder)


def test_every_setting_of_data_head_and_recipe_has_a_flag():
    words = "--n-train 70 --tag-drop 0.1 --n-heads 2 --dropout 0 --weight-decay 0.5 --seed 3".split()
    settings = parse(["reproduce", *words]).settings
    assert (settings.data.n_train, settings.data.tag_drop, settings.head.n_heads) == (70, 0.1, 2)
    assert (settings.head.dropout, settings.train.weight_decay, settings.seed) == (0, 0.5, 3)
    assert settings.train.epochs == ReproduceConfig().train.epochs


def test_stages_are_named_before_they_begin_and_timed_at_the_end(tmp_path, capsys):
    reproduce(tmp_path / "run", replace(TINY, seeds=1))
    shown = capsys.readouterr()
    stages = [line.split("] ")[1].split(":")[0] for line in shown.err.splitlines() if line.startswith("[")]
    assert stages == [
        "drawing 90 scenes",
        "embedding labels and images",
        "training a head for 2 epochs",
        "scoring, drawing figures, saving",
    ]
    assert "0 % of all, about" in shown.err.splitlines()[0]
    assert shown.out.splitlines()[-1].startswith(tuple("0123456789")) and "in all: drawing 90 scenes" in shown.out
    seconds = json.loads((tmp_path / "run" / "results.json").read_text())["seconds"]
    assert list(seconds) == stages[:3] and all(value >= 0 for value in seconds.values())


def test_scenes_drawn_by_processes_are_the_same(runs, tmp_path):
    reproduce(tmp_path / "run", TINY, workers=2)
    assert numbers(tmp_path / "run") == numbers(runs[0][0])


def test_the_guess_grows_with_the_work():
    def guess(**changes):
        return sum(stage.expected_seconds for stage in reproduction_stages(replace(ReproduceConfig(), **changes)))

    assert guess(seeds=3) > guess() > guess(data=PocketConfig(n_train=400, n_test=200))
    assert 60 < guess() < 600
