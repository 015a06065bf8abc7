"""README.md is built from nbs/index.ipynb by scripts/build_readme.py."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
        ("[`qks.vlp.frozen`](02_vlp.ipynb)", "[`qks.vlp.frozen`](nbs/02_vlp.ipynb)"),
        ("[loss](06_losses.ipynb#asl 'ASL')", "[loss](nbs/06_losses.ipynb#asl 'ASL')"),
        ("[licence](../LICENSE)", "[licence](LICENSE)"),
        ('<img src="images/x.png" width="400">', '<img src="nbs/images/x.png" width="400">'),
        ("[vlp]: 02_vlp.ipynb", "[vlp]: nbs/02_vlp.ipynb"),
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


def test_the_site_shows_the_notebooks_in_reading_order():
    text = "\n".join(
        "".join(cell["source"]) for cell in json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]
    )
    table = text[text.index("| notebook |") : text.index("Read them in JupyterLab")]
    order = ["index.ipynb", *re.findall(r"\]\((\w+\.ipynb)\)", table)]
    assert sorted(order) == sorted(path.name for path in (ROOT / "nbs").glob("*.ipynb"))
    assert re.findall(r"- (\S+)", (ROOT / "nbs/sidebar.yml").read_text(encoding="utf-8")) == order


def test_each_notebook_leads_to_the_next_one():
    order = re.findall(r"- (\S+)", (ROOT / "nbs/sidebar.yml").read_text(encoding="utf-8"))
    for here, following in zip(order[1:], order[2:]):
        last = "".join(json.loads((ROOT / "nbs" / here).read_text(encoding="utf-8"))["cells"][-1]["source"])
        assert f"]({following})" in last[last.index("Next:") :], f"{here} should end by leading to {following}"
