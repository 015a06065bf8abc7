"""Two processes do what one does: the same images in the same order, the same losses, metrics and files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import spread_training
import torch

from qks.commands.main import main
from qks.core import QKSError
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.scoring import head_scores
from qks.model.tagger import QKS
from qks.train import devices
from qks.train.config import RunConfig, TrainConfig
from qks.train.devices import (
    batch_pieces,
    gather_rows,
    make_accelerator,
    process_state,
    rank_by_rank,
    score_images,
    temporary_accelerator,
)
from qks.train.loop import fit

TESTS = Path(__file__).parent
TOLERANCE = 1e-5  # relative: the same sums in fp32, added up in another order


TORCHRUN = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
ACCELERATE = (
    "-m",
    "accelerate.commands.accelerate_cli",
    "launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--main_process_port",
    "0",
)


def launch(launcher, *arguments, path=()):
    "Start two processes and wait for them; returns what they printed."
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [*path, TESTS.parent, TESTS])),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "yes",
    }
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    "The same small run in one process and in two: their folders."
    alone = tmp_path_factory.mktemp("alone")
    pair = tmp_path_factory.mktemp("pair")
    spread_training.main(alone)
    launch(TORCHRUN, TESTS / "spread_training.py", pair)
    return alone, pair


def results(folder):
    return json.loads((folder / "results.json").read_text())


def asked(folder, process):
    return json.loads((folder / f"asked{process}.json").read_text())


def test_two_processes_were_there(spread):
    alone, pair = spread
    assert (results(alone)["processes"], results(pair)["processes"]) == (1, 2)
    assert (pair / "turns.txt").read_text() == "0\n1\n"  # the first one first


def test_the_same_images_in_the_same_order(spread):
    alone, pair = spread
    whole = asked(alone, 0)
    shares = [asked(pair, 0), asked(pair, 1)]
    assert len(whole) == len(shares[0]) == len(shares[1]) == 3 * 6
    for batch, *pieces in zip(whole, *shares):
        if len(batch) > 1:
            assert pieces[0] + pieces[1] == batch
        else:
            assert pieces == [batch, batch]  # the second process's copy weighs nothing, as the losses show
    for epoch in range(3):
        assert sorted(sum(whole[6 * epoch : 6 * epoch + 6], [])) == list(range(spread_training.N))


def test_the_same_losses_and_metrics(spread):
    alone, pair = (results(folder)["history"] for folder in spread)
    assert [list(row) for row in alone] == [list(row) for row in pair] and len(alone) == 3
    for one, two in zip(alone, pair):
        for name in one.keys() - {"seconds"}:
            assert two[name] == pytest.approx(one[name], rel=TOLERANCE), name


def test_the_same_losses_step_by_step(spread):
    alone, pair = (list(csv.DictReader((folder / "run" / "steps.csv").open())) for folder in spread)
    assert [row["step"] for row in alone] == [row["step"] for row in pair] == [str(step) for step in range(2, 19, 2)]
    for one, two in zip(alone, pair):
        assert float(two["loss"]) == pytest.approx(float(one["loss"]), rel=TOLERANCE)


def test_the_same_weights(spread):
    alone, pair = (results(folder)["weights"] for folder in spread)
    for (
        name
    ) in alone:  # keys' biases have no effect: their gradient is rounding alone, of which AdamW makes whole steps
        if not name.endswith("key.bias"):
            torch.testing.assert_close(torch.tensor(pair[name]), torch.tensor(alone[name]), rtol=1e-3, atol=1e-4)


def near(one, two):
    "Histories and weights of two runs that added up the same sums in another order."
    for a, b in zip(one["history"], two["history"], strict=True):
        for name in a.keys() - {"seconds"}:
            assert b[name] == pytest.approx(a[name], rel=TOLERANCE), name
    for name in one["weights"]:
        if not name.endswith("key.bias"):
            torch.testing.assert_close(
                torch.tensor(two["weights"][name]), torch.tensor(one["weights"][name]), rtol=1e-3, atol=1e-4
            )


def test_shares_in_parts(spread):
    "Two processes, two parts each: gradients are averaged with the last part only, and are those of the whole batch."
    alone, pair = map(results, spread)
    for run in (alone["parts"], pair["parts"], pair):
        near(alone, run)


def test_stopped_in_two_processes(spread):
    "A signal that one process received stops both after the same step, and they resume to the same bits."
    for found in map(results, spread):
        for name, value in found["stopped"]["weights"].items():
            assert value == found["weights"][name], name
        for a, b in zip(found["history"], found["stopped"]["history"], strict=True):
            assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_dropout_goes_on_where_it_was_in_every_process(spread):
    alone, pair = map(results, spread)
    for found in (alone, pair):
        whole, again = (
            [{**row, "seconds": 0} for row in found[name]["history"]] for name in ("noise", "noise stopped")
        )
        assert (
            whole == again
            and found["noise"]["weights"] == found["noise stopped"]["weights"]
            and whole != [{**row, "seconds": 0} for row in found["history"]]
        )


def of(folder, process):
    return json.loads((folder / f"of{process}.json").read_text())


def test_every_process_draws_its_own_dropout(spread):
    assert (
        of(spread[1], 0)["drawn"] != of(spread[1], 1)["drawn"]
        and of(spread[1], 0)["drawn"] == of(spread[0], 0)["drawn"]
    )


def test_the_gradient_is_as_long_as_in_one_process(spread):
    "Steps along the plain gradient, which a wrong factor would lengthen; AdamW and clipping would hide it."
    alone, pair = (results(folder)["plain"]["weights"] for folder in spread)
    for name, weights in alone.items():
        torch.testing.assert_close(torch.tensor(pair[name]), torch.tensor(weights), rtol=1e-4, atol=1e-6)


def test_where_one_process_fails_all_stop_and_one_tells(spread):
    alone, pair = spread
    assert of(alone, 0)["failure"] == of(pair, 0)["failure"] == ["QKSError", "the disk is full"]
    assert of(pair, 1)["failure"] == ["OtherProcessFailed", "the disk is full"]


def test_another_number_of_processes(spread):
    torch.manual_seed(0)
    tokens = torch.randn(28, 4, 64)
    names = torch.randn(9, 8)
    labels = torch.where(torch.rand(28, 9) < 0.4, 1, -1)
    config = TrainConfig(epochs=3, lr=1e-3, batch_size=4, topk=(1, 2), schedule="cosine", ema=0.5, clip=50.0)
    with pytest.raises(
        QKSError, match="another configuration .processes 2 there, 1 here.: use the same one to resume it"
    ) as caught:
        fit(
            QKSHead(torch.randn(64, 8), HeadConfig(n_queries=3, n_layers=1, dropout=0.0)),
            (tokens[:21], labels[:21, :6]),
            names,
            (tokens[21:], labels[21:, :6]),
            config,
            RunConfig(spread[1] / "run"),
        )
    assert "\n" not in str(caught.value)


def test_every_image_is_scored_once_and_in_its_place(spread):
    alone, pair = map(results, spread)
    for name, images in (("scores", spread_training.M), ("two", 2)):
        assert len(pair[name]) == images
        torch.testing.assert_close(torch.tensor(pair[name]), torch.tensor(alone[name]), rtol=1e-3, atol=1e-3)
    assert alone["rows"] == pair["rows"] == list(range(5))


def test_only_the_first_process_writes(spread):
    alone, pair = ({path.name for path in (folder / "run").iterdir()} for folder in spread)
    assert (
        alone
        == pair
        == {".lock", "epochs.csv", "steps.csv", *(f"step-{step:012d}.safetensors" for step in (6, 16, 18))}
    )


# ---- the command

NO_DROPOUT = """import torch
make = torch.nn.Dropout.__init__
torch.nn.Dropout.__init__ = lambda module, p=0.5, inplace=False: make(module, 0.0, inplace)
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """`qks train` in one process and, by accelerate's launcher, in two: their folders, and what the two printed.

    There is no dropout: its noise would differ.
    """
    folder = tmp_path_factory.mktemp("command")
    options = [
        "--epochs",
        "2",
        "--lr",
        "1e-3",
        "--n-layers",
        "1",
        "--n-queries",
        "3",
        "--batch-size",
        "16",
        "--schedule",
        "cosine",
        "--log-steps",
        "1",
    ]
    assert main(["data", "pocket", str(folder / "data"), "--n-train", "60", "--n-test", "30"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        make = torch.nn.Dropout.__init__
        patch.setattr(torch.nn.Dropout, "__init__", lambda module, p=0.5, inplace=False: make(module, 0.0, inplace))
        assert (
            main(
                [
                    "train",
                    str(folder / "data"),
                    "--out",
                    str(folder / "one"),
                    "--cache",
                    str(folder / "one" / "tokens"),
                    *options,
                ]
            )
            == 0
        )
    (folder / "sitecustomize.py").write_text(NO_DROPOUT)  # Python runs it at its start, whatever it is asked to do then
    return (
        folder / "one",
        folder / "two",
        launch(
            ACCELERATE,
            "-m",
            "qks",
            "train",
            folder / "data",
            "--out",
            folder / "two",
            *options,
            path=[folder],
        ),
    )


def test_the_command_prints_and_writes_once(commands):
    one, two, printed = commands
    assert (
        printed.count("| QKS ") == 1
        and printed.count("was kept, the best by the rule 'seen'; protocol 'official'") == 1
    )
    names = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} for folder in (one, two)
    ]
    assert names[0] == names[1]
    assert len((two / "training" / "seed0" / "epochs.csv").read_text().splitlines()) == 3


def test_the_command_gives_the_same_numbers(commands):
    one, two = (json.loads((folder / "results.json").read_text()) for folder in commands[:2])
    for a, b in zip(one["runs"][0]["history"], two["runs"][0]["history"]):
        for name in a.keys() - {"seconds"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4), name
    for row in one["rows"]:
        for part, numbers in one["rows"][row].items():
            for name in numbers:
                assert two["rows"][row][part][name]["mean"] == pytest.approx(numbers[name]["mean"], abs=1e-6), (
                    row,
                    part,
                    name,
                )
    one, two = (QKS.from_pretrained(folder / "model").head.eval() for folder in commands[:2])
    (width, embed_dim) = one.projection.shape
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(8, 37, width, generator=generator)
    names = torch.randn(50, embed_dim, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(two(tokens, names).logits, one(tokens, names).logits, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "words",
    [["reproduce"], ["evaluate", "pocket", "data"], ["tag", "x.jpg", "--labels", "cat"], ["data", "pocket", "data"]],
    ids=str,
)
@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_commands_are_not_for_many(monkeypatch, capsys, words, rank):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told == (
        ""
        if rank
        else "qks: only qks train shares its work out, and a launcher started 2 processes: "
        "start this command without a launcher\n"
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_is_told_once(monkeypatch, capsys, rank):
    def stop(*args):
        raise KeyboardInterrupt("stopped after step 5")

    monkeypatch.setattr("qks.commands.train.TrainCommand.execute", stop)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    assert main(["train", "data", "--out", "run"]) == 130 and capsys.readouterr().err == (
        "" if rank else "qks: stopped after step 5\n"
    )


# ---- one process


@pytest.mark.parametrize("images", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_pieces_cover_a_batch_once(images, processes, parts):
    rows = torch.randperm(images)
    pieces = [piece for process in range(processes) for piece in batch_pieces(rows, process, processes, parts)]
    assert len(pieces) == processes * parts and sum(weight for _, weight in pieces) == pytest.approx(1)
    assert torch.equal(torch.cat([piece for piece, weight in pieces if weight]), rows)
    assert all(len(piece) for piece, _ in pieces)  # each process has one: gradients are awaited from all
    errors = torch.rand(images)
    assert sum(weight * errors[piece].mean().item() for piece, weight in pieces) == pytest.approx(
        errors[rows].mean().item()
    )


@pytest.mark.parametrize("error", [QKSError("wrong"), OSError(28, "No space left on device")], ids=["mistake", "disk"])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_what_fails_in_one_of_three(monkeypatch, error, index):
    "The second fails: it raises its own error, the others that of another process; where none fails, all get results."
    monkeypatch.setattr(devices, "process_state", lambda: Meeting(index))
    monkeypatch.setattr(devices, "gather_object", lambda mine: [None, str(error), None])

    def work():
        if index == 1:
            raise error
        return index

    with pytest.raises(type(error) if index == 1 else devices.OtherProcessFailed) as caught:
        devices.collective_call(work)
    assert str(caught.value) == str(error) and (caught.value is error) == (index == 1)
    monkeypatch.setattr(devices, "gather_object", lambda mine: [None] * 3)
    assert devices.collective_call(lambda: index) == index


def test_a_process_without_a_place(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(
        QKSError,
        match="WORLD_SIZE is 4, but LOCAL_RANK does not say .*start through accelerate launch or torchrun, "
        "or unset WORLD_SIZE",
    ):
        process_state()


def test_more_processes_than_gpus(monkeypatch):
    for name, value in {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(QKSError, match="3 processes were started for 2 GPUs of this machine: start one per GPU"):
        process_state()


def test_alone():
    state = process_state()
    assert (state.num_processes, state.process_index, state.is_main_process) == (1, 0, True)
    assert rank_by_rank(lambda: 7) == 7 and torch.equal(gather_rows(torch.arange(3), 3), torch.arange(3))


@pytest.mark.parametrize("images", [1, 5])
def test_scores_as_head_scores(images):
    head = QKSHead(torch.randn(64, 8), HeadConfig(2, 1))
    tokens = torch.randn(images, 4, 64)
    names = torch.randn(3, 8)
    for given in (tokens, spread_training.Watched(tokens)):  # a tensor, and what can only be asked for rows
        for found, expected in zip(score_images(head, given, names, 2), head_scores(head, tokens, names, 2)):
            torch.testing.assert_close(found, expected)


class Meeting:
    "Stands for accelerate's state where three processes meet: this one among them."

    def __init__(self, index):
        self.num_processes = 3
        self.process_index = index
        self.device = torch.device("cpu")


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7, 9])
def test_shares_of_three_come_back_in_order(monkeypatch, n):
    rows = torch.arange(n * 2).view(n, 2) + 1
    sent = []
    for index, share in enumerate(rows.tensor_split(3)):
        monkeypatch.setattr(devices, "process_state", lambda: Meeting(index))
        monkeypatch.setattr(devices, "gather", lambda filled: (sent.append(filled), filled.repeat(3, 1))[1])
        gather_rows(share, n)
    monkeypatch.setattr(devices, "gather", lambda filled: torch.cat(sent))
    assert torch.equal(gather_rows(rows[:0], n), rows)


def test_precisions():
    with pytest.raises(QKSError, match="fp16.*GPU"):
        make_accelerator(torch.device("cpu"), "fp16")
    for precision, expected in (("bf16", "bf16"), ("fp32", "no")):  # each run chooses anew
        with temporary_accelerator(torch.device("cpu"), precision) as accelerator:
            assert accelerator.mixed_precision == expected


def test_a_mistake_is_told_once(commands, tmp_path):
    "Both processes find it: one sentence, no traceback of ours, nothing written."
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "yes"}
    words = [
        "-m",
        "qks",
        "train",
        str(commands[0].parent / "data"),
        "--out",
        str(tmp_path / "new"),
        "--topk",
        "3",
        "60",
    ]
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0 and done.stderr.count("qks: ") == 1 and "topk asks for 60 labels" in done.stderr, (
        done.stderr
    )
    assert "qks/commands/main.py" not in done.stderr and not (tmp_path / "new").exists()
