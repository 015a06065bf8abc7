"""Write README.md from nbs/index.ipynb. Needs nothing but Python's standard library.

Markdown cells are kept word for word, code cells become fenced blocks and are followed by their text outputs.
Cells that start with `#| hide` and the front matter are left out. Links that are relative to the notebook are
rewritten to work from README.md. With --check nothing is written; the exit code says whether README.md is in step.
"""

import argparse
import json
import os
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "<!-- generated from nbs/index.ipynb by scripts/build_readme.py -->"

DIRECTIVE = re.compile(r"^#\s*\|\s*(.*\S)\s*$")
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\s*\Z", re.DOTALL)
CODE = re.compile(r"(^```.*?^```[ \t]*$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"""(\]\(\s*<?|\b(?:src|href)=["']|^\[[^\]\n]+\]:[ \t]+)([^\s)"'>]+)""", re.MULTILINE)
ABSOLUTE = re.compile(r"^([a-z][a-z0-9+.-]*:|//|/|#)", re.IGNORECASE)


class ReadmeError(ValueError):
    """The notebook holds something that README.md cannot show."""


def joined(text):
    """Notebooks store a text as one string or as a list of lines."""
    return "".join(text)


def relink(markdown, folder):
    """Make the links of a text written in `folder` work from the root; code is left as it is."""

    def rewrite(match):
        before, target = match.groups()
        if ABSOLUTE.match(target):
            return match.group(0)
        return before + posixpath.normpath(posixpath.join(folder, target))

    parts = CODE.split(markdown)  # odd parts are code
    return "".join(part if i % 2 else LINK.sub(rewrite, part) for i, part in enumerate(parts))


def fenced(text, language=""):
    """A fenced block, with a fence longer than any inside it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"^`{3,}", text, re.MULTILINE)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def output_block(output, cell_number, folder):
    """One output of a code cell as markdown, or None for one that a reader does not need."""
    kind = output["output_type"]
    if kind == "error":
        raise ReadmeError(f"cell {cell_number} ends in {output['ename']}: run the notebook again without errors")
    if kind == "stream":
        text = joined(output["text"]) if output["name"] == "stdout" else ""
        return fenced(text.strip("\n")) if text.strip() else None
    data = output["data"]
    if any(mime.startswith("image/") for mime in data):
        raise ReadmeError(
            f"cell {cell_number} shows an image: save it under nbs/images/, refer to it from a markdown cell, "
            "and end the cell with ';' or `#| hide` it"
        )
    if "text/markdown" in data:
        return relink(joined(data["text/markdown"]).strip("\n"), folder)
    return fenced(joined(data["text/plain"]).strip("\n")) if "text/plain" in data else None


def split_directives(source):
    """The directives that start a cell, and the rest of it."""
    lines = source.split("\n")
    directives = []
    while lines and (match := DIRECTIVE.match(lines[0])):
        directives.append(re.sub(r"\s*:\s*", ": ", match.group(1)))
        lines.pop(0)
    return directives, "\n".join(lines).strip("\n")


def cell_blocks(cell, number, folder):
    """The markdown blocks that one cell gives."""
    source = joined(cell["source"])
    if cell["cell_type"] == "markdown":
        return [] if FRONT_MATTER.match(source) else [relink(source.strip("\n"), folder)]
    if cell["cell_type"] != "code":
        return []
    directives, code = split_directives(source)
    if "hide" in directives or "include: false" in directives:
        return []
    blocks = [fenced(code, "python")] if code and not {"hide_input", "echo: false"} & set(directives) else []
    if not {"hide_output", "output: false"} & set(directives):
        blocks += [output_block(output, number, folder) for output in cell["outputs"]]
    return [block for block in blocks if block]


def build(notebook, folder="nbs"):
    """README.md's text for a notebook (parsed JSON) that lies in `folder`, seen from README.md."""
    blocks = [HEADER]
    for number, cell in enumerate(notebook["cells"]):
        blocks += cell_blocks(cell, number, folder)
    return "\n\n".join(blocks) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Write README.md from nbs/index.ipynb.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if README.md is out of step")
    parser.add_argument("--notebook", type=Path, default=ROOT / "nbs" / "index.ipynb")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(arguments)

    notebook = json.loads(options.notebook.read_text(encoding="utf-8"))
    folder = Path(os.path.relpath(options.notebook.parent, options.readme.parent)).as_posix()
    try:
        text = build(notebook, folder)
    except ReadmeError as error:
        print(f"{options.notebook.name}: {error}", file=sys.stderr)
        return 1
    if options.check:
        if options.readme.exists() and options.readme.read_text(encoding="utf-8") == text:
            return 0
        print(f"{options.readme.name} is out of step: run python scripts/build_readme.py", file=sys.stderr)
        return 1
    options.readme.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
