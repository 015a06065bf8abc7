"""The house style: how notebooks are cut into cells, how code is written, and how prose is.

The rules for code are checked where the code is written: in notebooks, and in the files that are written by hand. The
modules in qks/ are exported from the notebooks.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass

import pytest
from repository import (
    NOTEBOOKS,
    PACKAGE,
    ROOT,
    cells,
    code_cells,
    each,
    files_under,
    markdown_cells,
    relative,
    source,
)

MEGABYTE = 1_000_000
LINE_WIDTH = 120
EXPORTED_CELL_LINES = 60
EXPORTED_CLASS_LINES = 100  # the formatter gives each parameter of each method a line
CELL_LINES = 30
HIDDEN_CELL_LINES = 60
FUNCTION_LINES = 40
SCRIPT_FUNCTION_LINES = 70  # in tests and benchmarks, whose main tells a whole experiment

# "file::function" -> why it is longer than FUNCTION_LINES all the same
LONG_FUNCTIONS: dict[str, str] = {}

HAND_WRITTEN = [
    path
    for folder in ("qks", "tests", "scripts", "benchmarks")
    for path in files_under(ROOT / folder, "*.py")
    if folder != "qks" or (path.name.startswith("__") and path.suffix == ".py")
]
PROSE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "data/README.md")]

# --- notebooks ---


@each("notebook", NOTEBOOKS)
def test_notebook_is_light(notebook):
    size = notebook.stat().st_size
    assert size < MEGABYTE, f"{relative(notebook)} has {size:,} bytes, limit 1 MB"
    for i, cell in enumerate(cells(notebook)):
        for output in cell.get("outputs", []):
            where = f"{relative(notebook)}, cell {i}"
            assert output["output_type"] != "error", f"{where} ends in an error: run the notebook again"
            assert not any("widget" in mime for mime in output.get("data", {})), f"{where} shows a widget"


@each("notebook", NOTEBOOKS)
def test_notebook_starts_with_title_and_sentence(notebook):
    first = cells(notebook)[0]
    lines = source(first).split("\n")
    has_title = first["cell_type"] == "markdown" and lines[0].startswith("# ")
    has_sentence = any(line.startswith("> ") for line in lines)
    assert has_title and has_sentence, f"{relative(notebook)}, cell 0 should be '# Title' and '> one sentence'"


@each("notebook", NOTEBOOKS)
def test_cells_are_short(notebook):
    found = []
    for cell in code_cells(notebook):
        kind = "code cell"
        limit = CELL_LINES
        if cell.exported:
            kind = "exported cell"
            limit = EXPORTED_CELL_LINES
            if any(isinstance(node, ast.ClassDef) for node in cell.tree.body):
                kind = "exported class"
                limit = EXPORTED_CLASS_LINES
        elif cell.hidden:
            kind = "hidden cell"
            limit = HIDDEN_CELL_LINES
        if len(cell.lines) > limit:
            found.append(f"{relative(notebook)}, cell {cell.number}: {kind} of {len(cell.lines)} lines, limit {limit}")
    assert not found, "\n".join(found)


@each("notebook", NOTEBOOKS)
def test_directives_come_first_in_their_cell(notebook):
    for cell in code_cells(notebook):
        late = [line for line in cell.lines if re.match(r"#\s*\|", line)]
        assert not late, f"{relative(notebook)}, cell {cell.number}: nbdev ignores {late[0]!r} below other lines"


@each("notebook", NOTEBOOKS)
def test_exported_cells_hold_one_thing(notebook):
    for cell in code_cells(notebook):
        where = f"{relative(notebook)}, cell {cell.number}"
        body = cell.tree.body
        stars = [node for node in body if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
        assert cell.hidden or not stars, f"{where}: name what is imported instead of *"
        if cell.exported:
            defined = [node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
            assert len(defined) <= 1, f"{where} defines {', '.join(defined)}: one class or function per cell"
            imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
            assert cell.imports_only or not imports, f"{where}: exported imports have a cell of their own"


@each("notebook", NOTEBOOKS)
def test_every_exported_cell_is_run(notebook):
    waiting = None
    for cell in code_cells(notebook):
        if cell.exported and not cell.imports_only:
            assert waiting is None, f"{relative(notebook)}, cell {waiting}: nothing runs it before cell {cell.number}"
            waiting = cell.number
        elif cell.runs:
            waiting = None
    assert waiting is None, f"{relative(notebook)}, cell {waiting}: nothing runs it before the end"


# --- code ---


@dataclass
class Code:
    """A piece of code: where it is, and its lines, the first of which is line `first_line` of its place."""

    where: str
    text: str
    first_line: int = 1

    @property
    def tree(self):
        lines = ("" if line.lstrip().startswith(("%", "!")) else line for line in self.text.split("\n"))
        return ast.parse("\n".join(lines))

    def at(self, line):
        return f"{self.where}, line {line + self.first_line - 1}"


def pieces(path):
    """The code in a notebook, cell by cell, or in a Python file."""
    if path.suffix != ".ipynb":
        return [Code(relative(path), path.read_text(encoding="utf-8"))]
    return [
        Code(f"{relative(path)}, cell {cell.number}", "\n".join(cell.lines), 1 + len(cell.directives))
        for cell in code_cells(path)
    ]


def long_lines(code):
    """Lines that are wider than a screen."""
    for number, line in enumerate(code.text.split("\n"), 1):
        if len(line) > LINE_WIDTH:
            yield number, f"{len(line)} columns, limit {LINE_WIDTH}"


def counted_lines(code, function):
    """How many lines of a function's body hold code: no docstring, no comment, no blank line."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    if not body:
        return 0
    inside = set()
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    text = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in code.text.split("\n"))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            inside.update(range(token.start[0], token.end[0] + 1))
    first = min([body[0].lineno, *(node.lineno for node in getattr(body[0], "decorator_list", []))])
    return len(inside & set(range(first, function.end_lineno + 1)))


def long_functions(code):
    """Functions that do not fit on a screen."""
    for node in ast.walk(code.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            count = counted_lines(code, node)
            excused = f"{code.where.partition(',')[0]}::{node.name}" in LONG_FUNCTIONS
            in_script = code.where.startswith(("tests/", "benchmarks/"))
            limit = SCRIPT_FUNCTION_LINES if in_script else FUNCTION_LINES
            if count > limit and not excused:
                yield node.lineno, f"{node.name} has {count} lines of code, limit {limit}"


def walruses_in_calls(code):
    """Assignments hidden in the arguments of a call, or in an f-string."""
    for node in ast.walk(code.tree):
        if isinstance(node, ast.Call):
            inside = [*node.args, *(keyword.value for keyword in node.keywords)]
        elif isinstance(node, ast.FormattedValue):
            inside = [node.value]
        else:
            continue
        for value in inside:
            for found in ast.walk(value):
                if isinstance(found, ast.NamedExpr):
                    yield found.lineno, f"{found.target.id} is assigned inside an argument: give it a line"


def nested_conditionals(code):
    """A conditional expression inside another."""
    for node in ast.walk(code.tree):
        if isinstance(node, ast.IfExp):
            inside = [found for found in ast.walk(node) if isinstance(found, ast.IfExp) and found is not node]
            if inside:
                yield node.lineno, "a conditional expression inside another: use if statements or names"


def joined_assignments(code):
    """`a, b = 1, 2`: statements joined by commas. A swap, where a target is read on the right, may stay."""
    for node in ast.walk(code.tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, (ast.Tuple, ast.List)):
            continue
        read = {ast.unparse(found) for found in ast.walk(node.value) if isinstance(found, ast.expr)}
        for target in node.targets:
            if not isinstance(target, (ast.Tuple, ast.List)):
                continue
            if not any(ast.unparse(part) in read for part in target.elts):
                yield node.lineno, f"{ast.unparse(target)} = … joins {len(target.elts)} assignments: one a line"


def is_text_or_list(node):
    is_text = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    return is_text or isinstance(node, (ast.List, ast.Tuple))


def is_truth(node):
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "bool"
    is_not = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    is_constant = isinstance(node, ast.Constant) and isinstance(node.value, bool)
    return is_not or is_constant or isinstance(node, (ast.Compare, ast.BoolOp))


def texts_times_truths(code):
    """`"s" * (n > 1)` in place of a conditional."""
    for node in ast.walk(code.tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            sides = (node.left, node.right)
            if any(map(is_text_or_list, sides)) and any(map(is_truth, sides)):
                yield node.lineno, f"{ast.unparse(node)}: write a conditional"


def named_lambdas(code):
    """Lambdas that are given a name."""
    for node in ast.walk(code.tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Lambda):
            yield node.lineno, "a lambda that is given a name: write a function"


def settings_of_the_process(code):
    """What outlives a notebook: `nbdev_test` runs many of them in one process, and the next one would find it set."""
    for node in ast.walk(code.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.disable":
            yield node.lineno, "silences every logger of the process: set the level of one logger"


RULES = (
    settings_of_the_process,
    long_lines,
    long_functions,
    walruses_in_calls,
    nested_conditionals,
    joined_assignments,
    texts_times_truths,
    named_lambdas,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@each("path", NOTEBOOKS + HAND_WRITTEN)
def test_code_is_plain(path, rule):
    found = [f"{code.at(line)}: {message}" for code in pieces(path) for line, message in rule(code)]
    assert not found, "\n".join(["", *found])


def test_exceptions_are_still_needed(monkeypatch):
    wanted = set(LONG_FUNCTIONS)
    monkeypatch.setitem(globals(), "LONG_FUNCTIONS", {})
    long = set()
    for path in {ROOT / name.partition("::")[0] for name in wanted}:
        for code in pieces(path):
            long |= {f"{relative(path)}::{message.split()[0]}" for _, message in long_functions(code)}
    assert wanted <= long, f"short enough now, or gone; take them off the list: {sorted(wanted - long)}"


@pytest.mark.parametrize(
    "rule, bad, good",
    [
        (long_lines, "x = " + "1" * 117, "x = " + "1" * 116),
        (
            long_functions,
            "def f():\n" + "    x = 1\n" * 41,
            "def f():\n    'Text.'\n    # why\n\n" + "    x = 1\n" * 40,
        ),
        (walruses_in_calls, "f(g for g in gs if (n := g))", "if n := f(g):\n    pass"),
        (walruses_in_calls, "f'{(n := 1)}'", "n = 1"),
        (nested_conditionals, "x = 1 if a else 2 if b else 3", "x = [1 if a else 2, 3 if b else 4]"),
        (joined_assignments, "a, b = 1, 2", "a, b = b, a"),
        (joined_assignments, "(a, b) = (1, 2)", "a, b = pair"),
        (texts_times_truths, "'s' * (n > 1)", "'-' * 20"),
        (texts_times_truths, "[more] * bool(more)", "[0] * n"),
        (settings_of_the_process, "logging.disable(logging.WARNING)", "logging.getLogger().setLevel(logging.ERROR)"),
        (named_lambdas, "f = lambda x: x", "f(key=lambda x: x)"),
        (named_lambdas, "module.f = lambda x: x", "module.f = g"),
    ],
)
def test_rules_see_what_they_should(rule, bad, good):
    assert len(list(rule(Code("bad", bad)))) == 1
    assert not list(rule(Code("good", good)))


# --- prose ---

THINGS = (
    "batch call cell class concept core epoch file head host image label line network part picture pixel process "
    "query row run second seed sentence split step template token training word worker"
).split()
THING = f"(?:{'|'.join(THINGS)})"
SINGULAR = f"(?:{THING}|column|entry|ID|MID|name|number|path|prompt|score|sort|value|vector|view)"
PLURAL = r"(?!(?:is|was|has|draws|finds|gives|holds|makes|needs|reads|shows|takes)\b)\w+s"
ONE = "(?:an?|one|1)"
SEVERAL = r"(?:two|three|four|five|six|seven|eight|nine|ten|twelve|\d[\d,]*)"
UNNATURAL = {
    r"\bstands?\b(?! (?:between|for|in for|out)\b|-)": "is, are, appears: 'label cat appears twice'",
    r"\b(?:is|are|was|were|be|been|being|ever|never) told\b(?! (?:apart|from)\b)": "is reported, is given",
    r"\bsaid of\b": "refers to, applies to",
    r"\bwhoever\b": "if you …; the person who",
    r"\bbut for\b": "up to, except for",
    r"\bin vain\b": "without effect, for nothing",
    r"\bone's own\b": "your own",
    r"\b(?:an?|of) open_clip's\b": "an open_clip model",
    r"\b(?:can|could|to) be had\b": "is available",
    r"\b(?:is|are|was|were) to be\b": "should be, will be, must be",
    rf"\b{ONE} {SINGULAR} an? {THING}\b(?!['’]s)": "per: 'one row per image'",
    rf"\b{SEVERAL} {PLURAL} an? {THING}\b(?!['’]s)": "per: '85 sentences per label'",
}


def texts(path):
    """(place, text) of what a reader reads: Markdown, and code with its docstrings, comments and messages."""
    if path.suffix != ".ipynb":
        return [(relative(path), path.read_text(encoding="utf-8"))]
    prose = [(f"{relative(path)}, cell {number}", text) for number, text in markdown_cells(path)]
    code = [(f"{relative(path)}, cell {cell.number}", "\n".join(cell.lines)) for cell in code_cells(path)]
    return prose + code


def unnatural(text):
    """(excerpt, what to write instead) of each phrase that a native engineer would not write."""
    for pattern, instead in UNNATURAL.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            excerpt = text[max(0, match.start() - 30) : match.end() + 30].replace("\n", " ")
            yield excerpt.strip(), instead


@each("path", NOTEBOOKS + [path for path in PROSE if path.exists()] + files_under(PACKAGE, "__*.py"))
def test_english_is_natural(path):
    found = [f"{where}: “{excerpt}”: {hint}" for where, text in texts(path) for excerpt, hint in unnatural(text)]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    "text",
    [
        "label 'cat' stands twice",
        "the text stands on line 3",
        "the user is told why",
        "Whoever trains",
        "equal but for rounding",
        "that more epochs would be in vain",
        "a folder of one's own",
        "a model of open_clip's",
        "85 sentences a label",
        "1,000 rows an image",
        "one row an image",
        "a line an image",
        "a label a line",
    ],
)
def test_unnatural_english_is_seen(text):
    assert len(list(unnatural(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "B stands for the batch, and no column stands out",
        "about 0.06. Whatever a token looks at",
        "it stands in for all images, and can be told from any other",
        "One turns a picture into a vector",
        "1 where a picture cannot be read",
        "one is a label, the other an image",
        "cell 0 shows an image",
        "five of a label's tokens",
        "per image, a label has one row",
        "your own pictures",
    ],
)
def test_natural_english_is_let_through(text):
    assert not list(unnatural(text))
