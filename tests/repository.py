"""What the tests of the repository itself share: where things are, and notebooks cell by cell."""

import ast
import json
import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
PACKAGE = ROOT / "qks"

# The workshop's folders in the order in which the README lists them; each is a package, guides and studies aside.
FOLDERS = (
    "core",
    "vlp",
    "model",
    "readouts",
    "data",
    "formats",
    "fetch",
    "tokens",
    "train",
    "evaluate",
    "calibrate",
    "explore",
    "answers",
    "experiment",
    "commands",
)
GUIDES = "guides"
STUDIES = "studies"

DIRECTIVE = re.compile(r"^\s*#\s*\|\s*(.*?)\s*$")


def is_ours(path):
    """Whether a file belongs to the repository, and not to an editor or to Python."""
    parts = path.relative_to(ROOT).parts
    return not any(part in ("__pycache__", "_proc") or part.startswith(".") for part in parts)


def files_under(folder, pattern="*"):
    return sorted(path for path in folder.rglob(pattern) if path.is_file() and is_ours(path))


NOTEBOOKS = files_under(NBS, "*.ipynb")
# Hand-written files (`__init__.py`, `__main__.py`) and nbdev's `_modidx.py` are no modules of a notebook.
MODULES = [path for path in files_under(PACKAGE, "*.py") if not path.name.startswith("_")]


def relative(path):
    """A path as it is read from the root."""
    return path.relative_to(ROOT).as_posix()


def each(name, paths):
    """Parametrize a test over files, named as they are read from the root."""
    return pytest.mark.parametrize(name, paths, ids=relative)


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def tracked_files():
    """The files that git tracks, or would track once they are added; skips the test outside a checkout."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("only a git checkout knows which files are tracked")
    paths = (ROOT / name for name in names.split("\0") if name)
    return [path for path in paths if path.is_file()]  # one that was just deleted is still listed


def is_typing_block(node):
    """Whether a statement is `if TYPE_CHECKING:`, which holds imports too."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


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
        words = {directive.partition(" ")[0] for directive in self.directives}
        self.exported = bool({"export", "exporti", "exports"} & words)
        self.hidden = "hide" in words
        self.runs = (
            not self.exported
            and "default_exp" not in words
            and "eval: false" not in self.directives
            and "nbdev_export(" not in source
        )

    @property
    def tree(self):
        """The parsed code; lines for IPython itself (`%`, `!`) become empty ones."""
        lines = ("" if line.lstrip().startswith(("%", "!")) else line for line in self.lines)
        return ast.parse("\n".join(lines))

    @property
    def imports_only(self):
        return all(isinstance(node, (ast.Import, ast.ImportFrom)) or is_typing_block(node) for node in self.tree.body)


def cells(notebook):
    """All cells of a notebook, parsed JSON."""
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


def code_cells(notebook):
    return [Cell(i, source(cell)) for i, cell in enumerate(cells(notebook)) if cell["cell_type"] == "code"]


def markdown_cells(notebook):
    """(number, text) of each Markdown cell."""
    return [(i, source(cell)) for i, cell in enumerate(cells(notebook)) if cell["cell_type"] == "markdown"]


def default_exp(notebook):
    """The module that a notebook exports, such as "data.coco", or None."""
    for cell in code_cells(notebook):
        for directive in cell.directives:
            if directive.startswith("default_exp "):
                return directive.split()[1]
    return None


def chapters():
    """The book: the numbered notebooks at the top of nbs/, in reading order."""
    return sorted(NBS.glob("[0-9]*.ipynb"))
