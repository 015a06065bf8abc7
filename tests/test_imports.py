"""Which package may import which, by import-linter; the contracts are in .importlinter."""

import subprocess
import sys

import pytest
from repository import ROOT

LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]


def lint(folder):
    return subprocess.run([*LINT, "--no-cache"], cwd=folder, capture_output=True, text=True)


def test_no_package_imports_one_above_it_and_no_module_itself():
    done = lint(ROOT)
    assert done.returncode == 0, f"imports against .importlinter:\n{done.stdout}{done.stderr}"


@pytest.fixture
def small(tmp_path):
    """Two packages under the same contracts; returns a function that writes a module there."""
    text = (ROOT / ".importlinter").read_text(encoding="utf-8")
    start = text.index("    __main__\n")
    text = text[:start] + "    model\n    core\n" + text[text.index("exhaustive = true") :]
    (tmp_path / ".importlinter").write_text(text, encoding="utf-8")

    def write(module, code=""):
        path = tmp_path / "qks" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")

    for package in (".", "core", "model"):
        write(f"{package}/__init__")
    write("core/errors")
    write("model/head", "from ..core.errors import QKSError\n")
    return write


def test_contracts_hold_for_imports_from_below(small, tmp_path):
    done = lint(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module, code",
    [
        ("core/errors", "from ..model import head\n"),  # up
        ("core/errors", "def late():\n    from ..model.head import QKSHead\n"),  # up, hidden in a function
        ("data/coco", ""),  # a package without a place in the order
    ],
)
def test_contracts_break(small, tmp_path, module, code):
    if module.startswith("data"):
        small("data/__init__")
    small(module, code)
    assert lint(tmp_path).returncode == 1


def test_contracts_break_on_a_circle_inside_a_package(small, tmp_path):
    small("model/query", "from .head import QKSHead\n")
    small("model/head", "from .query import QueryExtractor\n")
    assert lint(tmp_path).returncode == 1
