"""Checkpoints: complete or absent, never used when damaged; a run killed at any moment resumes to the same bits."""

import errno
import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from qks.core import QKSError
from qks.train import checkpoint
from qks.train.checkpoint import (
    list_checkpoints,
    pack_state,
    prune_checkpoints,
    random_states,
    read_checkpoint,
    read_last_checkpoint,
    save_checkpoint,
    set_random_states,
    unpack_state,
)

TESTS = Path(__file__).parent


def state(step=0):
    return {
        "step": step,
        "weights": {"a": torch.arange(6.0).view(2, 3) + step, "b": torch.tensor([True, False])},
        "nothing": None,
        "pair": (1, [2.5, "x"]),
    }


def equal(one, two):
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return list(one) == list(two) and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def refused(match, function, *args, **kwargs):
    "Expect a QKSError whose message is a single line that matches."
    with pytest.raises(QKSError, match=match) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.fixture
def count_warnings(caplog):
    "What a function returned, and how often it logged a warning."

    def call(function, *args):
        caplog.clear()
        result = function(*args)
        return result, len([record for record in caplog.records if record.name == "qks.train"])

    return call


# ---- killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_killed_at_any_moment(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(TESTS / "kill_training.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout.splitlines()[-1])["runs"]
    kinds = [run["kind"] for run in runs]
    assert kinds.count("inside checkpoint") >= 6 and kinds.count("moment") == 5 and len(runs) == 23
    assert sum(kind.endswith(" step") for kind in kinds) >= 6  # in the middle of an epoch
    for run in runs:
        assert run["same"] and not run["left_over"], run  # weights, history and logs, bit for bit; no half-written file
    halves = [run for run in runs if run["half_written"]]
    assert len(halves) >= 5 and min(run["checkpoints"] for run in runs) == 0  # some had nothing yet to resume from


# ---- one file


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    path = save_checkpoint(tmp_path / "new", 7, state(7), 3)
    assert equal(read_checkpoint(path), state(7)) and [*list_checkpoints(tmp_path / "new")] == [7]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["step-000000000007.safetensors"]


SIMPLE = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text()


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        SIMPLE,
        lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=12,
    )
)
def test_any_state_comes_back(value):
    assert equal(unpack_state(json.loads(json.dumps(pack_state(value, {}))), {}), value)


def test_what_a_checkpoint_cannot_hold():
    refused("cannot hold set", pack_state, {"a": {1, 2}}, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_not_saved(tmp_path, value):
    weights = {"a": torch.ones(2), "b": torch.tensor([1.0, value])}  # one tensor of several is enough
    refused("after step 3 .* not finite", save_checkpoint, tmp_path, 3, weights)
    assert not list(tmp_path.iterdir())


def test_random_states_come_back():
    def draw():
        return random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()

    before = random_states()
    tensors = {}
    saved = json.loads(json.dumps(pack_state(before, tensors)))
    first = draw()
    assert draw() != first
    set_random_states(unpack_state(saved, tensors))
    assert draw() == first


@pytest.mark.parametrize("visible", [0, 1, 2, 3])
def test_another_number_of_graphics_cards(monkeypatch, visible):
    "The states of two cards, where fewer or more are visible now: each card that is there goes back to its own."
    given = {}
    states = random_states() | {"cuda": [torch.tensor([1]), torch.tensor([2])]}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, number: given.update({number: state.item()}))
    set_random_states(states)
    assert given == {number: number + 1 for number in range(min(visible, 2))}


# ---- damaged

DAMAGE = {
    "half": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
    "empty": lambda content: b"",
    "no checkpoint": lambda content: b"hello" * 30,
    "one bit of a tensor": lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    "another number in the text": lambda content: content.replace(b'\\"step\\", 2', b'\\"step\\", 3'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_never_taken(tmp_path, count_warnings, damage):
    save_checkpoint(tmp_path, 1, state(1))
    path = save_checkpoint(tmp_path, 2, state(2))
    content = DAMAGE[damage](path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    refused("step-000000000002.safetensors is damaged", read_checkpoint, path)
    found, warned = count_warnings(read_last_checkpoint, tmp_path)
    assert equal(found, state(1)) and warned == 1
    assert [*list_checkpoints(tmp_path)] == [1] and path.with_suffix(".damaged").exists()  # nothing is deleted
    assert count_warnings(read_last_checkpoint, tmp_path)[1] == 0


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_checkpoint_that_cannot_be_opened_is_not_damaged(tmp_path, monkeypatch, number):
    "Of another user, too many open files, a disk that is away: the run stops, and no file gets another name."
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step))

    def refuse(path, *args):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "open", refuse, raising=False)
        refused(
            f"step-000000000002.safetensors cannot be read .{os.strerror(number)}.: solve that, and run again; "
            "nothing was changed",
            read_last_checkpoint,
            tmp_path,
        )
    assert [*list_checkpoints(tmp_path)] == [1, 2] and equal(read_last_checkpoint(tmp_path), state(2))


def test_any_altered_byte_is_noticed(tmp_path):
    path = save_checkpoint(tmp_path, 1, state(1), 1)
    rng = random.Random(0)
    content = path.read_bytes()
    for place in rng.sample(range(len(content)), 80):
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :])
        try:
            assert equal(
                read_checkpoint(path), state(1)
            )  # a byte that says nothing of the state, such as that of the best
        except QKSError:
            pass


def test_no_checkpoint_left(tmp_path, count_warnings):
    assert count_warnings(read_last_checkpoint, tmp_path / "nowhere") == (None, 0)
    save_checkpoint(tmp_path, 1, state()).write_bytes(b"")
    assert count_warnings(read_last_checkpoint, tmp_path) == (None, 1)


def test_what_is_half_written_has_another_name(tmp_path, count_warnings):
    (tmp_path / ".step-000000000005.safetensors.part").write_bytes(b"half")
    (tmp_path / "step-5.safetensors").write_bytes(b"mine")
    assert list_checkpoints(tmp_path) == {} and count_warnings(read_last_checkpoint, tmp_path) == (None, 0)


# ---- the disk


@pytest.mark.parametrize("where", ["save_file", "fsync", "replace"])
def test_a_full_disk(tmp_path, monkeypatch, where):
    save_checkpoint(tmp_path, 1, state(1))

    def full(*args, **kwargs):
        if where == "save_file":
            Path(args[1]).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint if where == "save_file" else os, where, full)
    refused(
        "step-000000000002.safetensors cannot be written .No space left on device.: make room",
        save_checkpoint,
        tmp_path,
        2,
        state(2),
    )
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001.safetensors"]
    assert equal(read_last_checkpoint(tmp_path), state(1))


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    refused("cannot be written", save_checkpoint, tmp_path / "file", 1, state())


# ---- which stay


@pytest.mark.parametrize(
    "keep, best, stay",
    [(1, 9, [9]), (2, 9, [8, 9]), (2, 3, [3, 8, 9]), (1, 1, [1, 9]), (20, 1, list(range(1, 10)))],
    ids=str,
)
def test_the_last_and_the_best_stay(tmp_path, keep, best, stay):
    for step in range(1, 10):
        save_checkpoint(tmp_path, step, state(step), best if step >= best else None)
    (tmp_path / ".step-000000000010.safetensors.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    prune_checkpoints(tmp_path, keep)
    assert [*list_checkpoints(tmp_path)] == stay
    assert {path.name for path in tmp_path.iterdir()} == {f"step-{step:012d}.safetensors" for step in stay} | {
        "notes.txt"
    }


def test_pruning_steps_over_damage(tmp_path):
    for step in range(1, 5):
        save_checkpoint(tmp_path, step, state(step), 1)
    list_checkpoints(tmp_path)[4].write_bytes(b"x")
    prune_checkpoints(tmp_path, 2)
    assert [*list_checkpoints(tmp_path)] == [1, 3, 4]


@pytest.mark.parametrize("number, fine", [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_that_flushes_no_folders(tmp_path, monkeypatch, number, fine):
    fsync = os.fsync
    opened = len(os.listdir("/dev/fd")) if Path("/dev/fd").exists() else None

    def flush(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    if fine:
        assert save_checkpoint(tmp_path, 1, state(1)).is_file()
    else:
        refused("cannot be written", save_checkpoint, tmp_path, 1, state(1))
    if opened:
        assert len(os.listdir("/dev/fd")) == opened
