"""The list of deliberate mistakes is up to date, and scripts/mutate.py tells a killed one from a survivor."""

import importlib
import subprocess
import sys

import pytest
from repository import ROOT

SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def mutate():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("mutate")
        sys.modules.pop("mutate")


def is_a_test(name):
    "Whether tests/ has a file, or with `file::test` a function in it."
    file, _, function = name.partition("::")
    path = ROOT / "tests" / file
    return path.is_file() and f"def {function}" in path.read_text(encoding="utf-8")


def run_in_this_process(command, cwd, **options):
    "Takes the place of pytest, whose start takes seconds: runs the library's file, then that of the test."
    names = {}
    library, test = (cwd / name for name in ("qks/sums.py", command[-1]))
    exec(library.read_text(), names)
    try:
        exec(test.read_text(), names)
    except AssertionError:
        return subprocess.CompletedProcess(command, 1)
    return subprocess.CompletedProcess(command, 0)


def test_every_mutant_is_applicable(mutate):
    wrong = []
    for mutant in mutate.MUTANTS:
        path = ROOT / mutant.file
        count = path.read_text(encoding="utf-8").count(mutant.old) if path.exists() else 0
        if count != 1:
            wrong.append(f"{mutant.file}: {mutant.old!r} is there {count} times")
        wrong += [f"{mutant.file}: there is no tests/{name}" for name in mutant.tests if not is_a_test(name)]
    assert not wrong, "\n".join(["scripts/mutants.py is out of date:", *wrong])


def test_mutants_differ(mutate):
    assert len(set(mutate.MUTANTS)) == len(mutate.MUTANTS)
    assert all(mutant.old != mutant.new for mutant in mutate.MUTANTS)


@pytest.mark.parametrize(
    "old, new, test, outcome",
    [
        ("a + b", "a - b", "assert add(1, 2) == 3", "killed"),
        ("a + b", "b + a", "assert add(1, 2) == 3", "survived"),
        ("a * b", "a / b", "assert add(1, 2) == 3", "not applicable"),
        ("a + b", "a - b", "assert add(1, 2) == 4", "broken"),
    ],
)
def test_outcomes(mutate, tmp_path, monkeypatch, capsys, old, new, test, outcome):
    for name in ("qks/assets", "tests/data"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("pyproject.toml", "settings.ini", "qks/__init__.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "qks" / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tests" / "test_sums.py").write_text(test)
    mutant = type(mutate.MUTANTS[0])("qks/sums.py", old, new, ("test_sums.py",))
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    monkeypatch.setattr(mutate, "MUTANTS", [mutant])
    monkeypatch.setattr(mutate.subprocess, "run", run_in_this_process)
    assert mutate.main([]) == int(outcome != "killed")
    assert f"1 {outcome}" in capsys.readouterr().out
    assert (tmp_path / "qks" / "sums.py").read_text().endswith("return a + b\n")
