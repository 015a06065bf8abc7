"""Make small mistakes in the library, one at a time, and see whether a test notices each.

    python scripts/mutate.py                        # all, one after another
    python scripts/mutate.py --only losses          # those whose file or change holds this text
    python scripts/mutate.py --workers 2

The mistakes are listed in scripts/mutants.py. Each is made in a temporary copy of qks/ and tests/, where only the named
tests run, up to the first failure; those that kill processes take minutes and are left out. "killed": a test failed, as
it should. "survived": all passed, so a test is missing. "not applicable": the text to replace is not there exactly
once, so the list is out of date. "broken": a test fails without any mistake. The exit status is 0 when all are killed.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("qks/assets", "tests/data", "benchmarks/results")  # nothing changes them
COPIED = ("qks", "tests", "pyproject.toml", "settings.ini")


class Tree:
    """A copy of the library and its tests, for one mistake at a time."""

    def __init__(self, folder):
        self.folder = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.folder / name, ignore=self._left_out)
            else:
                shutil.copy(ROOT / name, self.folder / name)
        for name in LINKED:
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).symlink_to(ROOT / name, target_is_directory=True)

    def _left_out(self, folder, names):
        here = Path(folder).relative_to(ROOT).as_posix()
        return {name for name in names if name == "__pycache__" or f"{here}/{name}" in LINKED}

    def run_tests(self, tests, timeout):
        """Run test files up to the first failure; returns pytest's status, or None when the time is over."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # a change within one second and of the same length would go unnoticed
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        files = [f"tests/{name}" for name in tests]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", "not killed", *files]
        try:
            done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return None
        return done.returncode

    def try_mutant(self, mutant, timeout):
        """Make the mistake, run its tests, and undo it; returns "killed", "survived" or "not applicable"."""
        path = self.folder / mutant.file
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text.count(mutant.old) != 1:
            return "not applicable"
        changed = text.replace(mutant.old, mutant.new)
        compile(changed, mutant.file, "exec")  # a syntax error would be noticed by any test
        path.write_text(changed, encoding="utf-8")
        try:
            status = self.run_tests(mutant.tests, timeout)
        finally:
            path.write_text(text, encoding="utf-8")
        return "survived" if status == 0 else "killed"


def check_tests(tree, mutants, timeout):
    """Run each set of test files without a mistake; returns those that fail, which can prove nothing."""
    broken = set()
    for tests in dict.fromkeys(mutant.tests for mutant in mutants):
        if tree.run_tests(tests, timeout) != 0:
            broken.add(tests)
    return broken


def run_mutants(mutants, workers, timeout):
    """Try all mutants, in copies of the library; yields (mutant, outcome, seconds) in their order."""
    with tempfile.TemporaryDirectory() as scratch:
        trees = queue.Queue()
        for number in range(workers):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            trees.put(Tree(folder))
        tree = trees.get()
        broken = check_tests(tree, mutants, timeout)
        trees.put(tree)

        def try_one(mutant):
            if mutant.tests in broken:
                return mutant, "broken", 0.0
            tree = trees.get()
            begin = time.perf_counter()
            try:
                return mutant, tree.try_mutant(mutant, timeout), time.perf_counter() - begin
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(try_one, mutants)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Make small mistakes in the library and see whether tests notice.")
    parser.add_argument("--only", default="", metavar="TEXT", help="only mutants whose file or change holds this text")
    parser.add_argument("--workers", type=int, default=1, help="mutants tried at a time (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=600, help="seconds for the tests of one (default: %(default)s)"
    )
    options = parser.parse_args(arguments)

    chosen = [mutant for mutant in MUTANTS if options.only in f"{mutant.file} {mutant.old} {mutant.new}"]
    if not chosen:
        parser.error(f"no mutant has {options.only!r} in it")
    outcomes = []
    for mutant, outcome, seconds in run_mutants(chosen, options.workers, options.timeout):
        outcomes.append(outcome)
        print(f"{outcome:14} {seconds:6.1f} s  {mutant.file}: {mutant.old!r} -> {mutant.new!r}", flush=True)
    counts = {outcome: outcomes.count(outcome) for outcome in ("killed", "survived", "not applicable", "broken")}
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    return int(counts["killed"] < len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
