"""What is shipped, and the house style of the notebooks it is made from."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "qks" / "assets"
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
MODULES = sorted(path for path in (ROOT / "qks").glob("*.py") if not path.name.startswith("_"))
MEGABYTE = 1_000_000

MODULE_LINES = 250
EXPORTED_CELL_LINES = 45
CELL_LINES = 15
HIDDEN_CELL_LINES = 45

ASSET_LIMITS = {"pocket_wide": 8 * MEGABYTE, "pocket_vlp": 12 * MEGABYTE}

# Names of packages that differ from the names they are imported by.
PACKAGES = {"PIL": "pillow", "open_clip": "open_clip_torch", "sklearn": "scikit-learn"}

DIRECTIVE = re.compile(r"^\s*#\s*\|\s*(.*?)\s*$")
# A path starts a word, or a line inside a JSON string; the path part of a web address does not count.
MACHINE_PATH = re.compile(r"(?:(?<![\w.:/+-])|(?<=\\n))/(?:work|root|tmp|home|Users)/")

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def files_under(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- what is shipped ---


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel's and the sdist's file names, and the wheel's metadata; the wheel is built from the sdist alone."""
    folder = tmp_path_factory.mktemp("build")
    tree = folder / "tree"
    out = folder / "out"
    skip = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    shutil.copytree(ROOT / "qks", tree / "qks", ignore=skip)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, tree)

    def build(kind, cwd):
        code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
        done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return out / done.stdout.splitlines()[-1]

    out.mkdir()
    with tarfile.open(build("sdist", tree)) as archive:
        archive.extractall(folder, filter="data")
        top = archive.getnames()[0]
        sdist = archive.getnames()
    with zipfile.ZipFile(build("wheel", folder / top)) as archive:
        info = {name.rpartition("/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
        text = {name: archive.read(info[name]).decode() for name in ("METADATA", "entry_points.txt")}
        return {
            "sdist": {name.removeprefix(f"{top}/") for name in sdist},
            "wheel": set(archive.namelist()),
            "info": set(info),
            **text,
        }


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_every_module_and_asset_is_shipped(built, kind):
    wanted = {path.relative_to(ROOT).as_posix() for path in MODULES + files_under(ASSETS)}
    missing = sorted(wanted - built[kind])
    assert not missing, f"not in the {kind} (see package_data in setup.py and MANIFEST.in): {missing}"


def test_wheel_says_what_settings_say(built):
    config = settings()
    for line in (
        f"Name: {config['lib_name']}",
        f"Version: {config['version']}",
        f"Requires-Python: >={config['min_python']}",
        "License-Expression: Apache-2.0 AND CC-BY-4.0 AND MIT AND Unicode-3.0",
        'Requires-Dist: nbdev==2.4.14; extra == "dev"',
    ):
        assert line in built["METADATA"].splitlines(), f"the wheel's METADATA has no line {line!r}"
    assert "qks = qks.commands.main:main" in built["entry_points.txt"].splitlines()
    assert "LICENSE" in built["info"]


@pytest.mark.parametrize("folder, limit", ASSET_LIMITS.items())
def test_assets_stay_small(folder, limit):
    sizes = {path.name: path.stat().st_size for path in files_under(ASSETS / folder)}
    assert sizes, f"qks/assets/{folder} is missing or empty"
    total = sum(sizes.values())
    largest = max(sizes, key=sizes.get)
    assert total <= limit, f"qks/assets/{folder}: {total:,} bytes, limit {limit:,}; the largest file is {largest}"


def test_settings_pyproject_and_init_agree():
    config = settings()
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    init = (ROOT / "qks" / "__init__.py").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f'name="{config["lib_name"]}"' in pyproject
    assert f'requires-python=">={config["min_python"]}"' in pyproject
    assert f'__version__ = "{config["version"]}"' in init, "run nbdev_export"
    assert f"\nversion: {config['version']}\n" in citation, "CITATION.cff names another version"
    assert f"## [{config['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_import_is_a_requirement():
    required = {re.split(r"[<>=!~\[]", name)[0] for name in settings()["requirements"].split()}
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for name in (name.partition(".")[0] for name in names):
                known = name == "qks" or name in sys.stdlib_module_names or PACKAGES.get(name, name) in required
                assert known, f"{module.name} imports {name}, which settings.ini does not list in requirements"


def test_no_machine_paths():
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("only a git checkout knows which files are tracked")
    found = []
    for name in filter(None, names.split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a drawing, a tensor, or a file that was just deleted
        lines = (i + 1 for i, line in enumerate(text.split("\n")) if MACHINE_PATH.search(line))
        found += [f"{name}:{line}" for line in lines]
    assert not found, f"paths of one machine, use relative ones: {found}"


# --- the house style ---


class Cell:
    """A code cell: its directives, and its code below them."""

    def __init__(self, number, source):
        lines = source.split("\n")
        self.number = number
        self.directives = []
        while lines and (match := DIRECTIVE.match(lines[0])):
            self.directives.append(re.sub(r"\s*:\s*", ": ", match.group(1)))
            lines.pop(0)
        self.lines = "\n".join(lines).strip("\n").split("\n")
        words = [directive.partition(" ")[0] for directive in self.directives]
        self.exported = bool({"export", "exporti", "exports"} & set(words))
        self.hidden = "hide" in words
        self.runs = (
            not self.exported
            and "default_exp" not in words
            and "eval: false" not in self.directives
            and "nbdev_export(" not in source
        )

    @property
    def tree(self):
        """The parsed code; lines for IPython itself (`%`, `!`) are left out."""
        return ast.parse("\n".join(line for line in self.lines if not line.lstrip().startswith(("%", "!"))))

    @property
    def imports_only(self):
        return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in self.tree.body)


def code_cells(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [Cell(i, "".join(cell["source"])) for i, cell in enumerate(cells) if cell["cell_type"] == "code"]


def default_exp(notebook):
    """The module that a notebook exports, or None."""
    for cell in code_cells(notebook):
        for directive in cell.directives:
            if directive.startswith("default_exp "):
                return directive.split()[1]
    return None


def test_notebooks_and_modules_pair_up():
    exported = {}
    for notebook in NOTEBOOKS:
        if (module := default_exp(notebook)) is not None:
            stem = re.sub(r"^\d+_", "", notebook.stem)
            assert module == stem, f"{notebook.name} exports {module}, but its stem is {stem}"
            exported[stem] = notebook.name
    modules = {module.stem for module in MODULES}
    assert not set(exported) - modules, f"notebooks without a module (run nbdev_export): {set(exported) - modules}"
    assert not modules - set(exported), f"modules without a notebook (delete them): {modules - set(exported)}"


@each_notebook
def test_notebook_is_light(notebook):
    assert notebook.stat().st_size < MEGABYTE, f"{notebook.name} has {notebook.stat().st_size:,} bytes, limit 1 MB"
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert "widgets" not in content["metadata"], f"{notebook.name} carries widget state: run it without widgets"
    for i, cell in enumerate(content["cells"]):
        for output in cell.get("outputs", []):
            where = f"{notebook.name}, cell {i}"
            assert output["output_type"] != "error", f"{where} ends in an error: run the notebook again"
            assert not any("widget" in mime for mime in output.get("data", {})), f"{where} shows a widget"


@each_notebook
def test_notebook_starts_with_title_and_sentence(notebook):
    first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]
    lines = "".join(first["source"]).split("\n")
    ok = first["cell_type"] == "markdown" and lines[0].startswith("# ")
    ok = ok and any(line.startswith("> ") for line in lines)
    assert ok, f"{notebook.name}, cell 0 should be '# Title' and '> one sentence'"


@each_notebook
def test_cells_are_short(notebook):
    for cell in code_cells(notebook):
        kind = "code cell"
        limit = CELL_LINES
        if cell.exported:
            kind = "exported cell"
            limit = EXPORTED_CELL_LINES
        elif cell.hidden:
            kind = "hidden cell"
            limit = HIDDEN_CELL_LINES
        count = len(cell.lines)
        assert count <= limit, f"{notebook.name}, cell {cell.number}: {kind} of {count} lines, limit {limit}"


@each_notebook
def test_directives_come_first_in_their_cell(notebook):
    for cell in code_cells(notebook):
        late = [line for line in cell.lines if re.match(r"#\s*\|", line)]
        assert not late, f"{notebook.name}, cell {cell.number}: nbdev ignores {late[0]!r} below other lines"


@each_notebook
def test_exported_cells_hold_one_thing(notebook):
    for cell in code_cells(notebook):
        where = f"{notebook.name}, cell {cell.number}"
        body = cell.tree.body
        stars = [node for node in body if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
        assert cell.hidden or not stars, f"{where}: name what is imported instead of *"
        if cell.exported:
            defined = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
            assert len(defined) <= 1, f"{where} defines {', '.join(defined)}: one class or function a cell"


@each_notebook
def test_every_exported_cell_is_run(notebook):
    waiting = None
    for cell in code_cells(notebook):
        if cell.exported and not cell.imports_only:
            assert waiting is None, f"{notebook.name}, cell {waiting}: nothing runs it before cell {cell.number}"
            waiting = cell.number
        elif cell.runs:
            waiting = None
    assert waiting is None, f"{notebook.name}, cell {waiting}: nothing runs it before the end"


@each_module
def test_modules_are_short(module):
    count = len(module.read_text(encoding="utf-8").splitlines())
    assert count <= MODULE_LINES, f"{module.name} has {count} lines, limit {MODULE_LINES}: split its notebook"
