"""Which package may import which, by import-linter (the contracts are in .importlinter), and what a package offers."""

import ast
import importlib
import subprocess
import sys
from types import ModuleType

import pytest
from repository import FOLDERS, ROOT

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


# --- the public names of a package, in its __init__.pyi ---

PACKAGES = ["qks", *(f"qks.{folder}" for folder in FOLDERS)]


def public_names(package):
    """Pairs of a module and a name that the package's stub takes from it."""
    stub = ROOT.joinpath(*package.split(".")) / "__init__.pyi"
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            yield from ((f"{package}.{node.module}", alias) for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_can_be_imported(package):
    names = {}
    exec(f"from {package} import *", names)
    for module, alias in public_names(package):
        value = getattr(importlib.import_module(module), alias.name)
        assert names[alias.asname] is value, f"{package}.{alias.asname} is not that of {module}"
        assert not isinstance(value, ModuleType), f"{package}.{alias.asname} is a module"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_public_in_their_modules(package):
    for module, alias in public_names(package):
        public = importlib.import_module(module).__all__
        assert alias.name == alias.asname, f"{package}: import {alias.name} as {alias.name}, so that it is public"
        assert alias.name in public, f"{package} offers {alias.name}, which {module} keeps private"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_hides_a_module(package):
    folder = ROOT.joinpath(*package.split("."))
    modules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    names = [alias.asname for _, alias in public_names(package)]
    assert not modules & set(names), "a name that is both is a function or a module, by the order of imports"
    assert len(names) == len(set(names)) > 0
