"""Memory that is kept, work for several processes, and one line of progress for a command of several stages."""

import io
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from qks.core import QKSError, progress, system as system_module
from qks.core.processes import available_cores, map_in_processes
from qks.core.stages import LOG_INTERVAL, Loop, Stage, StageProgress, duration, seconds_left
from qks.core.system import keep_freed_memory

# ---- memory that is kept

PAGES = """
import resource, torch
from qks.core.system import keep_freed_memory
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5): torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages(), int(keep_freed_memory()), pages() - pages(), pages())
"""


def test_memory_is_kept_where_the_c_library_can():
    run = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    before, is_kept, _, after = map(int, run.stdout.split())
    if not is_kept:
        pytest.skip("another C library")
    assert before > 1000 and after < 100


@pytest.mark.parametrize(
    "system, library",
    [("darwin", None), ("linux", SimpleNamespace()), ("linux", SimpleNamespace(mallopt=lambda name, value: 0))],
)
def test_with_another_c_library_nothing_happens(monkeypatch, system, library):
    monkeypatch.setattr(system_module.sys, "platform", system)
    monkeypatch.setattr(system_module.ctypes, "CDLL", lambda name: library)
    assert keep_freed_memory() is False


# ---- work for several processes


def leave(code):
    os._exit(code)


def test_results_come_in_the_order_of_the_tasks():
    tasks = list(range(20))
    assert list(map_in_processes(math.factorial, tasks, 2)) == [math.factorial(task) for task in tasks]
    assert list(map_in_processes(math.factorial, tasks, 0)) == [math.factorial(task) for task in tasks]


def test_one_core_at_least():
    assert available_cores() >= 1


def test_an_error_in_a_process_is_raised_here():
    with pytest.raises(ValueError, match="math domain"):
        list(map_in_processes(math.sqrt, [1.0, -1.0], 2))


def test_a_process_that_dies_is_one_sentence():
    with pytest.raises(QKSError, match="one of 2 processes died.*--workers"):
        list(map_in_processes(leave, [1, 2, 3], 2))


@pytest.mark.parametrize("workers", [-1, 1.5, True])
def test_a_number_of_processes_is_whole(workers):
    with pytest.raises(QKSError, match="workers"):
        list(map_in_processes(abs, [1, 2], workers))


# ---- stages


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make_stages():
    return [Stage("drawing", [Loop("Pocket", 30.0, 10)], 10.0), Stage("training", [Loop("Training", 60.0, 6)])]


def test_the_first_line_is_the_guess():
    stages = make_stages()
    overall = StageProgress(stages, io.StringIO())
    overall.begin(stages[0])
    assert overall.stream.getvalue() == "[1/2] drawing: 0 % of all, about 1 min 40 s left\n"


def test_loops_inside_a_stage_report_to_it(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("qks.core.stages.time.monotonic", lambda: float(next(clock)))
    stages = make_stages()
    overall = StageProgress(stages, io.StringIO())
    with overall.stage(stages[0]):
        for _ in progress(range(4), "Pocket-WIDE train"):
            pass
        with progress(range(6), "another loop") as bar:
            bar.update(6)  # not listed: it changes nothing
        assert stages[0].seconds_done == 12.0
    assert stages[0].seconds > 0 and stages[0].seconds_done == 40.0
    with overall.stage(stages[1]):
        bar = progress(range(6), "Training")
        bar.update(3)
        bar.set_postfix(loss=1)
        bar.close()
        assert "[2/2] training: 70 % of all" in overall.line
    assert set(overall.seconds) == {"drawing", "training"} and "training" in overall.summary
    assert isinstance(progress(range(3)), tqdm)  # outside of stages: a bar of its own


def test_a_loop_that_is_longer_than_guessed_stays_below_its_share():
    stage = Stage("drawing", [Loop("Pocket", 30.0, 10)])
    overall = StageProgress([stage], io.StringIO())
    with overall.stage(stage):
        overall.advance("Pocket", 50)
        assert stage.seconds_done == 30.0


def test_the_time_left_follows_what_was_measured():
    assert seconds_left(100, 0, 0) == 100
    assert seconds_left(100, 50, 110) == 50 * 120 / 60
    assert seconds_left(100, 100, 500) == 0


def test_a_log_gets_a_line_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("qks.core.stages.time.monotonic", lambda: now[0])
    stage = Stage("drawing", [Loop("Pocket", 600.0, 600)])
    overall = StageProgress([stage], io.StringIO())
    with overall.stage(stage):
        for _ in progress(range(600), "Pocket"):
            now[0] += 1.0
    lines = overall.stream.getvalue().splitlines()
    assert len(lines) == 600 / LOG_INTERVAL + 1 and "\r" not in overall.stream.getvalue()
    assert lines[5].endswith("about 5 min left")


def test_a_terminal_keeps_one_line():
    stage = Stage("drawing", [Loop("Pocket", 600.0, 600)])
    overall = StageProgress([stage], Terminal())
    with overall.stage(stage):
        pass
    text = overall.stream.getvalue()
    assert "\n" not in text and text.endswith("\r\x1b[K")  # nothing is left of it


def test_only_the_first_of_many_processes_shows_it(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    stage = Stage("drawing")
    overall = StageProgress([stage], Terminal())
    with overall.stage(stage):
        pass
    assert overall.stream.getvalue() == ""


def test_a_failed_stage_has_no_time():
    stage = Stage("drawing")
    overall = StageProgress([stage], io.StringIO())
    with pytest.raises(ZeroDivisionError), overall.stage(stage):
        raise ZeroDivisionError
    assert stage.seconds is None and overall.seconds == {}


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3599.9, "1 h"), (3661, "1 h 1 min")],
)
def test_durations_as_people_say_them(seconds, words):
    assert duration(seconds) == words
