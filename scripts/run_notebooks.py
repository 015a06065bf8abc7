"""Run notebooks from top to bottom and keep their outputs, as the committed ones must carry them.

    python scripts/run_notebooks.py                  # all of nbs/
    python scripts/run_notebooks.py nbs/04_query.ipynb nbs/data/06_coco.ipynb

Cells marked `#| slow` or `#| eval: false` are skipped, as in `nbdev_test`. Each notebook runs in a process of its own,
in its own folder. A notebook whose run fails is left as it was, and the exit status is 1.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell

NBS = Path(__file__).resolve().parent.parent / "nbs"
LEFT_OUT = {"#|slow", "#|eval:false"}


def is_left_out(cell):
    """Whether a cell is marked as not to be run."""
    return any(line.replace(" ", "") in LEFT_OUT for line in cell.source.splitlines()[:4])


def is_progress_bar(output):
    """Whether an output is a progress bar, which helps while a notebook runs and not when it is read."""
    return output.get("name") == "stderr" and "\r" in "".join(output["text"])


def is_widget(output):
    """Whether an output is a widget, which works only while the notebook runs."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def without_temporary_folders(output):
    """An output with `…` for folders that were made for this run, which are of no use to a reader."""
    folder = re.compile(re.escape(tempfile.gettempdir()) + r"/tmp\w+")

    def shorten(value):
        if isinstance(value, str):
            return folder.sub("…", value)
        if isinstance(value, list):
            return [shorten(part) for part in value]
        if isinstance(value, dict):
            return {key: shorten(part) for key, part in value.items()}
        return value

    return {key: shorten(value) for key, value in output.items()}


def run_cell(shell, cell):
    """Run a cell and keep its outputs, those of a cell that ends in a semicolon as well, which execnb leaves out."""
    source = cell.source
    if source.rstrip().endswith(";"):
        cell.source = source.rstrip().rstrip(";") + "\nNone"  # the last value is not shown, as the semicolon asks
    cell.outputs = []  # execnb leaves those of an earlier run where there are no new ones
    shell.cell(cell)
    cell.source = source


def run(path):
    """Run one notebook in this process and write it back with its outputs; exits with what failed."""
    notebook = read_nb(path)
    os.chdir(path.parent)
    shell = CaptureShell()
    shell.run_cell("%matplotlib inline")
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        if is_left_out(cell):
            cell.outputs = []
            continue
        run_cell(shell, cell)
        if shell.exc:
            sys.exit(f"{path.name}, cell {number}: {type(shell.exc).__name__}: {shell.exc}")
        kept = [output for output in cell.outputs if not is_progress_bar(output) and not is_widget(output)]
        cell.outputs = [without_temporary_folders(output) for output in kept]
    write_nb(notebook, path)


def all_notebooks():
    """The notebooks of the repository, without the copies that Jupyter keeps."""
    return sorted(path for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def main(names):
    """Run the named notebooks, or all, one process each."""
    if len(names) == 2 and names[0] == "--one":
        return run(Path(names[1]).resolve())
    failed = False
    for path in [Path(name) for name in names] or all_notebooks():
        done = subprocess.run([sys.executable, __file__, "--one", str(path)])
        shown = path.relative_to(NBS) if path.is_relative_to(NBS) else path.name
        print(shown, "failed" if done.returncode else "ok", flush=True)
        failed = failed or done.returncode != 0
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1:])
