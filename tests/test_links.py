"""Every relative link leads somewhere: in notebooks, README.md and the other documents, anchors too."""

import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from repository import MODULES, NOTEBOOKS, PACKAGE, ROOT, each, markdown_cells, relative, tracked_files

DOCUMENTS = [*sorted(ROOT.glob("*.md")), ROOT / "data" / "README.md", *sorted((ROOT / ".github").rglob("*.md"))]

CODE = re.compile(r"^(```|~~~).*?^\1[ \t]*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"""\]\(\s*<?([^\s)>]+)|\b(?:src|href)=["']([^"']+)|^\[[^\]\n]+\]:[ \t]+(\S+)""", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
ABSOLUTE = re.compile(r"^([a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
NOTEBOOK_PATH = re.compile(r"\bnbs/[\w./-]+\.ipynb\b")


def markdown(path):
    """The Markdown of a notebook or document."""
    if path.suffix == ".ipynb":
        return "\n\n".join(text for _, text in markdown_cells(path))
    return path.read_text(encoding="utf-8")


def links(text):
    """The targets of all links outside code."""
    return [next(filter(None, match)) for match in LINK.findall(CODE.sub("", text))]


def plain(heading):
    """A heading's text without links and marks."""
    return re.sub(r"[`*]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading))


def jupyter_anchor(heading):
    return plain(heading).replace(" ", "-")


def github_anchor(heading):
    return re.sub(r"[^\w\- ]", "", plain(heading).lower()).replace(" ", "-")


@cache
def anchors(path):
    """What may follow `#`: in a notebook as JupyterLab names headings, in a document as GitHub does."""
    headings = HEADING.findall(re.sub(r"^(```|~~~).*?^\1[ \t]*$", "", markdown(path), flags=re.DOTALL | re.MULTILINE))
    names = set()
    if path.suffix == ".ipynb":
        names |= {jupyter_anchor(heading) for heading in headings}
    if path.suffix == ".md" or path.name == "index.ipynb":  # README.md shows the text of index.ipynb
        names |= {github_anchor(heading) for heading in headings}
    return names


def broken_links(path, text):
    """Links that lead nowhere, each with the reason."""
    for link in links(text):
        if ABSOLUTE.match(link):
            continue
        target, _, anchor = unquote(link).partition("#")
        place = Path(path.parent / target).resolve() if target else path
        if not place.exists():
            yield f"{link}: there is no {target}"
        elif not place.is_relative_to(ROOT):
            yield f"{link} leads out of the repository"
        elif anchor and anchor not in anchors(place):
            yield f"{link}: {relative(place)} has no heading {anchor!r}"


@each("path", NOTEBOOKS + DOCUMENTS)
def test_links_lead_somewhere(path):
    broken = list(broken_links(path, markdown(path)))
    assert not broken, "\n".join([f"{relative(path)} has links that lead nowhere:", *broken])


def test_notebooks_that_files_name_are_there():
    this = Path(__file__)
    wrong = []
    for path in tracked_files():
        if path.suffix not in {".py", ".md", ".ini", ".toml", ".yml", ".yaml"} or path.parent == this.parent:
            continue
        named = NOTEBOOK_PATH.findall(path.read_text(encoding="utf-8"))
        names = {name for name in named if "/NN_" not in name}  # NN_module.ipynb: any
        wrong += [f"{relative(path)}: {name}" for name in sorted(names) if not (ROOT / name).exists()]
    assert not wrong, "\n".join(["files name notebooks that are not there:", *wrong])


@pytest.mark.parametrize(
    "text, n_broken",
    [
        ("[a](README.md)", 0),
        ("[a](nbs/index.ipynb) and ![b](nbs/images/architecture.png)", 0),
        ("[a](nbs/nothing.ipynb)", 1),
        ("[a](../outside.md)", 1),
        ("[a](README.md#quick-start)", 0),
        ("[a](README.md#slow-start)", 1),
        ("`[a](nothing)`\n\n```\n[a](nothing)\n```", 0),
        ('<img src="nothing.png">', 1),
        ("[a]: nothing.md", 1),
        ("[a](https://arxiv.org/abs/2401.01181)", 0),
    ],
)
def test_broken_links_are_seen(text, n_broken):
    assert len(list(broken_links(ROOT / "CHANGELOG.md", text))) == n_broken


def test_contributing_says_where_every_module_is():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text[text.index("| looking for | open |") :].partition("\n\n")[0]
    named = set(re.findall(r"`qks\.([a-z_.]+)`", table))
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in MODULES}
    assert not named - modules, f"CONTRIBUTING.md names modules that are not there: {sorted(named - modules)}"
    assert not modules - named, f"modules missing in CONTRIBUTING.md, 'Where things are': {sorted(modules - named)}"


def test_contributing_draws_the_order_of_the_linter():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawing = text[text.index("```mermaid") :].partition("```\n")[0]
    drawn = list(dict.fromkeys(re.findall(r"\b(?!flowchart|mermaid)[a-z]+\b", drawing)))
    rules = (ROOT / ".importlinter").read_text(encoding="utf-8")
    layers = rules.partition("layers =\n")[2].partition("exhaustive")[0].split()
    assert drawn == layers[1:], "the drawing in CONTRIBUTING.md and the layers in .importlinter differ"
