"""README.md is built from nbs/index.ipynb by scripts/build_readme.py."""

import importlib.util
import json
import re
import shlex

import pytest
from repository import (
    FOLDERS,
    GUIDES,
    NBS,
    NOTEBOOKS,
    ROOT,
    STUDIES,
    cells,
    chapters,
    markdown_cells,
    relative,
    source,
)

from qks.commands.main import main as qks_main

TEST_COMMAND = "pip install -e '.[dev]' && nbdev_test --n_workers 2 && pytest -q"

spec = importlib.util.spec_from_file_location("build_readme", ROOT / "scripts" / "build_readme.py")
build_readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_readme)


def markdown(source):
    return {"cell_type": "markdown", "metadata": {}, "source": source.splitlines(keepends=True)}


def code(source, *outputs):
    return {"cell_type": "code", "metadata": {}, "source": source.splitlines(keepends=True), "outputs": list(outputs)}


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text.splitlines(keepends=True)}


def result(**data):
    mimes = {"plain": "text/plain", "markdown": "text/markdown", "png": "image/png"}
    return {"output_type": "execute_result", "data": {mimes[k]: [v] for k, v in data.items()}, "metadata": {}}


def body(*cells):
    """The README of these cells, without its first line."""
    header, _, text = build_readme.build({"cells": list(cells)}).partition("\n\n")
    assert header == build_readme.HEADER
    return text


def test_whole_notebook():
    text = body(
        {"cell_type": "raw", "metadata": {}, "source": "---\ntitle: qks\n---"},
        markdown("# Title\n> One sentence."),
        code("#| hide\nimport secret", stream("secret")),
        code("#| eval: false\nprint(1 + 1)\nx", stream("2\n"), stream("a warning", "stderr"), result(plain="3")),
        markdown("The end."),
    )
    assert text == (
        "# Title\n> One sentence.\n\n```python\nprint(1 + 1)\nx\n```\n\n```\n2\n```\n\n```\n3\n```\n\nThe end.\n"
    )


def test_front_matter_in_a_markdown_cell_is_left_out():
    assert body(markdown("---\ntitle: qks\n---\n"), markdown("Text.")) == "Text.\n"


@pytest.mark.parametrize(
    "written, expected",
    [
        ("![x](images/x.png)", "![x](nbs/images/x.png)"),
        ("[`qks.vlp.frozen`](vlp/03_frozen.ipynb)", "[`qks.vlp.frozen`](nbs/vlp/03_frozen.ipynb)"),
        ("[loss](07_losses.ipynb#asl 'ASL')", "[loss](nbs/07_losses.ipynb#asl 'ASL')"),
        ("[licence](../LICENSE)", "[licence](LICENSE)"),
        ('<img src="images/x.png" width="400">', '<img src="nbs/images/x.png" width="400">'),
        ("[vlp]: vlp/03_frozen.ipynb", "[vlp]: nbs/vlp/03_frozen.ipynb"),
        ("[paper](https://arxiv.org/abs/2401.01181)", "[paper](https://arxiv.org/abs/2401.01181)"),
        ("[below](#results)", "[below](#results)"),
        ("`[a](b)` and [c](d)", "`[a](b)` and [c](nbs/d)"),
        ("```\n[a](b)\n```", "```\n[a](b)\n```"),
    ],
)
def test_links_work_from_the_root(written, expected):
    assert body(markdown(written)) == expected + "\n"


def test_hidden_input_and_output():
    assert body(code("#| echo: false\nx", result(plain="3"))) == "```\n3\n```\n"
    assert body(code("#| output: false\nx", result(plain="3"))) == "```python\nx\n```\n"


def test_markdown_output_is_shown_as_markdown():
    assert body(code("#| echo: false\ntable", result(plain="<Markdown>", markdown="| a |\n|---|"))) == "| a |\n|---|\n"


def test_image_outputs_and_errors_are_refused():
    with pytest.raises(build_readme.ReadmeError, match="cell 0 shows an image: save it under nbs/images/"):
        body(code("plot()", result(plain="<Figure>", png="aGk=")))
    error = {"output_type": "error", "ename": "NameError", "evalue": "x", "traceback": []}
    with pytest.raises(build_readme.ReadmeError, match="cell 0 ends in NameError"):
        body(code("x", error))


def test_check_compares_and_writes_nothing(tmp_path, capsys):
    notebook = tmp_path / "nbs" / "index.ipynb"
    readme = tmp_path / "README.md"
    notebook.parent.mkdir()
    notebook.write_text(json.dumps({"cells": [markdown("[a](b)")]}), encoding="utf-8")
    options = ["--notebook", str(notebook), "--readme", str(readme)]

    assert build_readme.main([*options, "--check"]) == 1
    assert "run python scripts/build_readme.py" in capsys.readouterr().err
    assert not readme.exists()
    assert build_readme.main(options) == 0
    assert readme.read_text(encoding="utf-8") == f"{build_readme.HEADER}\n\n[a](nbs/b)\n"
    assert build_readme.main([*options, "--check"]) == 0
    readme.write_text("changed by hand", encoding="utf-8")
    assert build_readme.main([*options, "--check"]) == 1


def test_this_readme_is_in_step():
    assert build_readme.main(["--check"]) == 0, "run python scripts/build_readme.py"


def test_ci_runs_the_test_command_of_the_readme():
    for name in ("README.md", ".ci/run"):
        assert TEST_COMMAND in (ROOT / name).read_text(encoding="utf-8"), f"{name} should hold: {TEST_COMMAND}"


def test_the_first_command_of_the_readme_answers_as_shown(monkeypatch, capsys):
    "The same labels with the same tokens, in the same order; probabilities may differ in the last digits."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"^pip install \. && qks (tag .*)$", readme, re.MULTILINE).group(1)
    shown = readme[readme.index(command) :].split("```")[2]
    monkeypatch.chdir(ROOT)
    assert qks_main(shlex.split(command)) == 0
    answer = re.compile(r"([\d.]+) %  (.+)  \(token (\d+)\)")
    expected = answer.findall(shown)
    given = answer.findall(capsys.readouterr().out)
    assert [line[1:] for line in given] == [line[1:] for line in expected] and len(expected) == 2
    differences = [abs(float(one[0]) - float(other[0])) for one, other in zip(given, expected)]
    assert max(differences) < 0.5


INDEX = NBS / "index.ipynb"


def readme_tables():
    """The links in the first column of the README's tables of the book and of the workshop, relative to nbs/."""
    text = "\n".join(text for _, text in markdown_cells(INDEX))
    start = text.index("| chapter |")
    middle = text.index("| folder |")
    first_links = re.compile(r"^\| \[[^\]]+\]\(([^)]+)\)", re.MULTILINE)
    return first_links.findall(text[start:middle]), first_links.findall(text[middle:])


def rooms():
    """The notebooks that are read one after another: the book, then folder by folder."""
    folders = [sorted((NBS / folder).glob("*.ipynb")) for folder in (GUIDES, *FOLDERS, STUDIES)]
    return [chapters(), *folders]


def test_readme_lists_the_chapters_in_order():
    book, _ = readme_tables()
    assert book == [path.name for path in chapters()]


def test_readme_lists_the_folders_in_order():
    _, workshop = readme_tables()
    assert workshop == [notebooks[0].relative_to(NBS).as_posix() for notebooks in rooms()[1:]]


def test_every_notebook_has_its_place():
    placed = {path for notebooks in rooms() for path in notebooks}
    others = [path.relative_to(NBS).as_posix() for path in NOTEBOOKS if path not in placed and path != INDEX]
    lost = [name for name in others if not name.startswith("solutions/") and name != "library.ipynb"]
    assert not lost, f"in none of the folders that tests/repository.py lists: {lost}"


@pytest.mark.parametrize("notebooks", rooms(), ids=lambda notebooks: notebooks[0].parent.name)
def test_each_notebook_leads_to_the_next_of_its_folder(notebooks):
    numbers = [int(path.name.partition("_")[0]) for path in notebooks]
    assert numbers == sorted(set(numbers)), f"two notebooks have one number: {[path.name for path in notebooks]}"
    first_page = "index.ipynb" if notebooks[0].parent == NBS else "../index.ipynb"
    for notebook, following in zip(notebooks, [*notebooks[1:], None]):
        target = following.name if following else first_page
        last = source(cells(notebook)[-1]).strip().split("\n")[-1]
        begin = "Next: " if following else "Back to "
        leads = begin in last and f"]({target})" in last[last.index(begin) :]
        assert leads, f"{relative(notebook)} should end with '{begin}[…]({target})'; its last line is {last!r}"
