"""Completion in the shell: valid scripts, and what bash proposes."""

import shutil
import subprocess

import pytest

from qks.commands.completion import completion_script
from qks.commands.main import main

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

PROPOSE = """
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_tyro_qks
echo "${COMPREPLY[*]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "qks.bash"
    path.write_text(completion_script("bash"))
    return path


@needs_bash
def test_the_script_is_valid(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0


@needs_bash
@pytest.mark.parametrize(
    "words, proposed",
    [
        (["t"], {"tag", "train"}),
        (["data", "nus"], {"nuswide"}),
        (["data", "nuswide", ""], {"fetch", "check", "prepare"}),
        (["tag", "--images-f"], {"--images-from"}),
        (["tag", "a.jpg", "--format", "c"], {"csv", "coco"}),
    ],
    ids=str,
)
def test_bash_proposes(script, words, proposed):
    done = subprocess.run(
        ["bash", "-c", f"source {script}{PROPOSE}", "bash", "qks", *words], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) - {"-h", "--help"} == proposed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(shell, capsys):
    assert main(["completion", shell]) == 0
    captured = capsys.readouterr()
    assert "nuswide" in captured.out and captured.err == ""


def test_another_shell_is_refused(capsys):
    assert main(["completion", "csh"]) == 2
    assert "fish" in capsys.readouterr().err
