"""What `--force` may delete: files that a run, or a Pocket-WIDE, wrote, and nothing else."""

import json
from pathlib import Path

import pytest

from qks.core import QKSError, remove_files
from qks.data.pocket import PocketConfig, write_pocket
from qks.experiment.run_folder import RUN_FILES, check_run_folder, claim_run_folder, create_run_folder, is_run_folder
from qks.experiment.spec import RunOptions, RunSpec


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": '{"model_type": "clip"}', "model.safetensors": "weights", "results.json": "{}"},
        {"config.json": "{}", "src/index.js": "code"},
        {"qks-run.json": '{"program": "another"}', "model/head.safetensors": "weights"},
        {"qks-run.json": "[]", "table.md": "mine"},
        {"qks-run.json": "", "table.md": "mine"},
        {"head.safetensors": "weights", "config.json": '{"head": {}, "vlp": {}}'},  # a model alone
        {".model.part": "a download"},
    ],
    ids=lambda files: " ".join(files),
)
@pytest.mark.parametrize("words", [{"force": True}, {"resume": True}, {}], ids=str)
def test_a_folder_without_the_mark_is_never_touched(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    spec = RunSpec(Path("data"), RunOptions(tmp_path))
    with pytest.raises(QKSError, match="holds no run of qks .*name a new folder"):
        claim_run_folder(spec, **words)
    with pytest.raises(QKSError, match="holds no run of qks"):
        check_run_folder(tmp_path, **words)
    with pytest.raises(QKSError, match="holds no run of qks"):
        create_run_folder(tmp_path, words.get("force", False))
    assert contents(tmp_path) == before and not is_run_folder(tmp_path)


def test_force_deletes_the_files_of_a_run_and_keeps_all_others(tmp_path, caplog):
    run = create_run_folder(tmp_path / "run", config={"a": 1})
    step = "training/seed0/step-000000000003.safetensors"
    written = ["results.json", "table.md", "model/head.safetensors", "model/config.json", "figures/scenes.png"]
    written += [step, "training/seed1/steps.csv", "training/seed1/.lock", ".results.json.0a1b.part"]
    own = ["notes.txt", "model/notes.txt", "figures/poster.png", "training/seed0/step-by-step.txt", "src/results.json"]
    own += ["tokens/tokens-01/tokens.bin", "deep/tokens-02/tokens.bin"]
    fill(run, written + own)
    create_run_folder(run, force=True, config={"a": 2})
    assert set(contents(run)) == {"qks-run.json", "config.json", *own}
    assert all(contents(run)[name].decode() == f"content of {name}" for name in own)
    assert not (run / "training" / "seed1").exists() and json.loads((run / "config.json").read_text()) == {"a": 2}
    assert "5 files that no run of qks wrote" in caplog.text


def test_links_are_deleted_and_never_followed(tmp_path):
    fill(tmp_path / "elsewhere", ["head.safetensors", "config.json"])
    fill(tmp_path / "disk", ["step-000000000003.safetensors"])
    run = create_run_folder(tmp_path / "run")
    (run / "model").symlink_to(tmp_path / "elsewhere")
    (run / "training").mkdir()
    (run / "training" / "seed0").symlink_to(tmp_path / "disk")
    (run / "table.md").symlink_to(tmp_path / "elsewhere" / "config.json")
    create_run_folder(run, force=True)
    assert set(contents(tmp_path / "elsewhere")) == {"head.safetensors", "config.json"}
    assert set(contents(tmp_path / "disk")) == {"step-000000000003.safetensors"}
    assert {path.name for path in run.iterdir()} == {"qks-run.json", "config.json"}


def test_a_pocket_wide_is_recognised_by_its_settings_and_loses_its_own_files_only(tmp_path):
    fill(tmp_path / "other", ["Flickr/train00/000000.jpg"])
    for text in ('{"name": "app"}', "[]", "", '{"seed": 0}'):
        (tmp_path / "other" / "pocket.json").write_text(text)
        before = contents(tmp_path / "other")
        with pytest.raises(QKSError, match="holds no Pocket-WIDE"):
            write_pocket(tmp_path / "other", PocketConfig(n_train=1, n_test=1), force=True)
        assert contents(tmp_path / "other") == before
    root = write_pocket(tmp_path / "pocket", PocketConfig(n_train=3, n_test=2))
    fill(root, ["Flickr/mine.jpg", "Boxes/notes.txt", "src/pocket.json"])
    write_pocket(root, PocketConfig(n_train=1, n_test=1), force=True)
    pictures = {name for name in contents(root) if name.endswith(".jpg")}
    assert pictures == {"Flickr/mine.jpg", "Flickr/train00/000000.jpg", "Flickr/test00/000000.jpg"}
    assert {"Boxes/notes.txt", "src/pocket.json"} <= set(contents(root))


def test_every_pattern_is_a_name_below_the_folder(tmp_path):
    assert not any(name.startswith("/") or ".." in name or name.startswith("*") for name in RUN_FILES)
    fill(tmp_path, ["a/b.png", "b.png", "a/c/b.png"])
    assert {path.relative_to(tmp_path).as_posix() for path in remove_files(tmp_path, ["a/*.png"])} == {
        "b.png",
        "a/c/b.png",
    }
