"""The trainer: parts, clipping, averages, precisions, sparse labels, resuming, and what happens when a part fails."""

import copy
import csv
import errno
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import stop_training
import torch

from qks.core import QKSError
from qks.data.index import Index, sort_entries
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import AsymmetricLoss, bce_loss
from qks.tokens.store import BatchFile
from qks.tokens.stream import ViewSampler, token_digest
from qks.train import checkpoint, loop as training, run_folder, trainer as engine
from qks.train.checkpoint import list_checkpoints, pack_state, read_checkpoint, unpack_state
from qks.train.config import RunConfig, TrainConfig
from qks.train.devices import make_accelerator, temporary_accelerator
from qks.train.logs import RunLog, check_trackers, csv_lines, drop_later_lines
from qks.train.loop import fit
from qks.train.signals import Interrupted, StopSignals
from qks.train.steps import check_finite, check_loss
from qks.train.targets import Targets
from qks.train.trainer import Trainer, compile_module, epoch_steps, restore_trainer, step_bytes, trainer_state

ROOT = Path(__file__).resolve().parent.parent
N = 30
M = 8
S = 6
E = 8
D = 64


def new_head(dropout=0.0):
    torch.manual_seed(1)
    return QKSHead(torch.randn(D, E) * 0.3, HeadConfig(n_queries=3, n_layers=1, dropout=dropout))


def config(**changes):
    return TrainConfig(**{"epochs": 2, "lr": 1e-3, "batch_size": 10, "topk": (1,)} | changes)


@pytest.fixture(scope="module")
def data():
    "Tokens [n, N, D], embeddings [S, E], labels [n, S]; the last M images are for validation."
    torch.manual_seed(0)
    return torch.randn(N + M, 4, D), torch.randn(S, E), torch.where(torch.rand(N + M, S) < 0.4, 1, -1)


def run(data, recipe, folder=None, head=None, tokens=None, labels=None, **kwargs):
    "Train; returns the history without its seconds, and the head."
    images, names, truth = data
    head = head or new_head()
    history = fit(
        head,
        (images[:N] if tokens is None else tokens, truth[:N] if labels is None else labels),
        names,
        (images[N:], truth[N:]),
        recipe,
        RunConfig(folder, **kwargs) if folder else None,
    )
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history], head


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def refused(match, function, *args, **kwargs):
    "Expect a QKSError whose message is a single line that matches."
    with pytest.raises(QKSError, match=match) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


def trainer(data, recipe, head=None):
    images, names, labels = data
    return Trainer(
        head or new_head(),
        images[:N],
        Targets(labels[:N]),
        names,
        recipe,
        make_accelerator(torch.device("cpu"), recipe.precision),
    )


# ---- one step


class Noted:
    "Stands for an optimiser: keeps the gradients it is given, and steps."

    def __init__(self, inner):
        self.inner = inner
        self.gradients = []
        self.rates = []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def step(self):
        self.rates.append(self.inner.param_groups[0]["lr"])
        self.gradients.append([weight.grad.clone() for group in self.inner.param_groups for weight in group["params"]])
        self.inner.step()


def gradients(data, recipe):
    "Of every step of the first epoch."
    found = trainer(data, recipe)
    found.optimizer = Noted(found.optimizer)
    for _ in epoch_steps(found):
        pass
    return found.optimizer.gradients


def close(found, expected):
    "Compare gradients relative to the largest one, because those of the keys' biases are zero up to rounding."
    largest = max(gradient.abs().max().item() for gradient in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("parts", [2, 3, 16])
@pytest.mark.parametrize("batch_size", [15, 13])  # 13: the last batch holds 4 images
def test_parts_give_the_gradients_of_the_whole(data, parts, batch_size):
    "AdamW would amplify rounding, so the gradients themselves are compared, at a learning rate that changes nothing."
    whole, pieces = (gradients(data, config(batch_size=batch_size, accumulate=n, lr=1e-12)) for n in (1, parts))
    assert len(whole) == len(pieces) == -(-N // batch_size)
    for one, two in zip(whole, pieces):
        close(two, one)


def test_the_gradient_is_that_of_a_plain_loop(data):
    images, names, labels = data
    found = gradients(data, config(batch_size=N, lr=1e-12))
    head = new_head()
    AsymmetricLoss()(head(images[:N], names).logits, labels[:N].float()).backward()
    close(found[0], [weight.grad for weight in head.parameters()])


@pytest.mark.parametrize("parts", [1, 3])
def test_clipping(data, parts):
    "The gradient of the whole batch is clipped, once, however many parts it comes in."
    free = gradients(data, config(lr=1e-12, accumulate=parts))
    norms = [torch.cat([gradient.flatten() for gradient in step]).norm().item() for step in free]
    limit = sum(sorted(norms)[:2]) / 2  # between the shortest and the next
    clipped = gradients(data, config(lr=1e-12, clip=limit, accumulate=parts))
    for one, two, norm in zip(free, clipped, norms):
        for a, b in zip(one, two):
            torch.testing.assert_close(b, a * min(1, limit / norm), rtol=1e-4, atol=1e-7)


def test_the_loss_of_a_step_holds_no_graph(data):
    "Losses wait on a GPU until they are read: with their graphs, each would keep a step's activations in memory."
    found = trainer(data, config(accumulate=2))
    losses = []
    add = engine._add_losses
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            engine, "_add_losses", lambda trainer, unchecked: (losses.extend(unchecked), add(trainer, unchecked))
        )
        list(epoch_steps(found))
    assert len(losses) == 3 and not any(loss.requires_grad for loss, _ in losses)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_of_an_epoch_is_the_mean_over_its_images(data, tmp_path, parts):
    "The last batch holds 4 of 30 images, and counts for 4. The last line of the log says the same."
    images, names, labels = data
    history, head = run(data, config(epochs=1, batch_size=13, lr=1e-12, accumulate=parts), tmp_path, log_steps=1)
    expected = AsymmetricLoss()(head(images[:N], names).logits, labels[:N].float()).item()
    assert history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    lines = list(csv.DictReader((tmp_path / "steps.csv").open()))
    assert [int(line["step"]) for line in lines] == [1, 2, 3]
    assert float(lines[-1]["loss"]) == pytest.approx(expected, rel=1e-5)


def test_each_step_has_its_learning_rate(data):
    "The cosine schedule moves after a step, not before."
    found = trainer(data, config(schedule="cosine", lr=0.5, warmup=2))
    found.optimizer = Noted(found.optimizer)
    list(epoch_steps(found))
    fall = [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(3)]  # 2 epochs of 3 steps
    assert found.optimizer.rates == pytest.approx([0.5 * 0.5 * fall[0], 0.5 * fall[1], 0.5 * fall[2]])


def test_the_memory_of_a_step(data, monkeypatch):
    "Seven numbers of four bytes per weight, fifty per block, query, channel and image of this process and part."
    head = new_head()
    weights = 28 * sum(weight.numel() for weight in head.parameters())
    activations = 50 * 1 * 3 * D  # of an image: one block, three queries
    for changes, processes, images, size in [
        ({}, 1, 10, 4),
        ({"precision": "bf16"}, 1, 10, 2),
        ({"accumulate": 3}, 1, 4, 4),
        ({}, 4, 3, 4),
    ]:
        assert step_bytes(head, config(**changes), processes) == weights + images * activations * size
    asked = []
    monkeypatch.setattr(engine, "to_device_if_it_fits", lambda tokens, device, needed: asked.append(needed) or tokens)
    trainer(data, config(), head)
    assert asked == [weights + 10 * activations * 4]


def test_averaged_weights(data):
    found = trainer(data, config(ema=0.8))
    decay = 0.8
    expected = None
    for _ in epoch_steps(found):
        now = [weight.detach().clone() for weight in found.head.parameters()]
        expected = now if expected is None else [decay * a + (1 - decay) * b for a, b in zip(expected, now)]
        for weight, average in zip(found.eval_head.parameters(), expected):
            torch.testing.assert_close(weight, average, rtol=1e-5, atol=1e-6)
    assert found.eval_head is not found.head and not same(found.eval_head, found.head)


def test_averaged_weights_are_scored_and_kept(data, monkeypatch):
    scored = []

    def rising_score(head, *args):
        scored.append(copy.deepcopy(head.state_dict()))
        return {"mAP": 0.0, "score": float(len(scored))}

    monkeypatch.setattr(training, "selection_score", rising_score)
    _, head = run(data, config(ema=0.9))
    assert all(torch.equal(value, scored[-1][name]) for name, value in head.state_dict().items())


# ---- precision


def test_bf16_stays_close(data):
    full, half = (run(data, config(epochs=4, batch_size=N, precision=precision)) for precision in ("fp32", "bf16"))
    assert half[1].projection.dtype == torch.float32
    assert half[0][0]["loss"] != full[0][0]["loss"] and half[0][0]["loss"] == pytest.approx(
        full[0][0]["loss"], rel=0.01
    )
    for one, two in zip(full[0], half[0]):
        assert two["loss"] == pytest.approx(one["loss"], rel=0.1)  # AdamW makes much of small differences


def test_fp16_needs_a_gpu(data):
    refused("fp16.*GPU", run, data, config(precision="fp16"))


def test_half_precision_tokens_are_widened(data):
    half = data[0][:N].half()
    one = run(data, config(), tokens=half)
    two = run(data, config(), tokens=half.float())
    assert one[0] == two[0] and same(one[1], two[1])


def test_a_fused_optimiser_gives_the_same(data):
    one = run(data, config())
    two = run(data, config(fused=True))
    for a, b in zip(one[0], two[0]):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


def test_no_compiler(monkeypatch):
    def missing(*args, **kwargs):
        raise RuntimeError("no compiler\nwas found")

    monkeypatch.setattr(torch, "compile", missing)
    refused(
        "torch.compile is not possible here .RuntimeError: no compiler.: leave compile out",
        compile_module,
        torch.nn.Linear(1, 1),
    )


def test_the_compiler_is_tried_where_the_head_is(data, monkeypatch):
    tried = []
    monkeypatch.setattr(
        torch,
        "compile",
        lambda model, **settings: (
            (lambda x: tried.append(x.device.type)) if not isinstance(model, torch.nn.Module) else model
        ),
    )
    compile_module(torch.nn.Linear(1, 1), torch.device("meta"))
    trainer(data, config(compile=True))
    assert tried == ["meta", "cpu"]


# ---- labels


def index_of(labels, absent):
    "The index that holds these labels [n, C], of which the first S are seen; what equals `absent` is not stored."
    rows, columns = (labels != absent).nonzero(as_tuple=True)
    names = tuple(f"label {i}" for i in range(labels.shape[1]))
    entries = sort_entries(rows.numpy(), columns.numpy(), labels[rows, columns].numpy(), len(labels), len(names))
    return Index(
        Path("x"),
        tuple(f"{i}.jpg" for i in range(len(labels))),
        **entries,
        label_ids=names,
        label_names=names,
        n_seen=S,
        absent=absent,
    )


@pytest.mark.parametrize("absent", [-1, 0])
def test_labels_of_an_index(data, absent):
    "Only the seen columns train, from whichever of both, bit for bit."
    more = torch.cat([data[2][:N], -data[2][:N, :2]], 1)  # [n, S+U]
    if absent == 0:
        more = torch.where(torch.rand(more.shape, generator=torch.Generator().manual_seed(0)) < 0.3, 0, more)
    one = run(data, config(), labels=more[:, :S])
    two = run(data, config(), labels=index_of(more, absent))
    assert one[0] == two[0] and same(one[1], two[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["dense", "index"])
def test_a_gpu_gives_the_same(data, kind):
    labels = index_of(data[2][:N], -1) if kind == "index" else data[2][:N]
    one = run(data, config())
    two = run(data, config(), head=new_head().cuda(), labels=labels)
    for a, b in zip(one[0], two[0]):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-2)


@pytest.mark.parametrize("rows", [torch.tensor([3, 0]), torch.tensor([], dtype=torch.long)])
def test_labels_lie_where_the_tokens_do(data, rows):
    targets = Targets(data[2])
    assert targets.to("cpu") is targets and torch.equal(targets[rows], data[2][rows].float())
    assert Targets(data[2]).to("meta").labels.device.type == "meta"  # stands for a GPU
    assert Targets(index_of(data[2], -1)).to("meta").n_seen == S


# ---- resuming


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
@pytest.mark.parametrize("recipe", [{}, {"schedule": "cosine", "ema": 0.9, "accumulate": 2}], ids=["plateau", "cosine"])
def test_a_restored_trainer_takes_the_same_steps(data, stop, recipe):
    recipe = config(epochs=3, **recipe)

    def steps(found, n):
        losses = []
        while len(losses) < n:
            for _ in epoch_steps(found):
                losses.append(found.loss_sum)
                if len(losses) == n:
                    break
            if found.step == found.steps_per_epoch:
                engine.close_epoch(found, {"score": 1.0 / found.epoch})
        return losses

    whole = trainer(data, recipe, new_head(0.1))
    expected = steps(whole, 9)
    weights = copy.deepcopy(whole.head.state_dict())
    first = trainer(data, recipe, new_head(0.1))
    begun = steps(first, stop)
    tensors = {}
    state = unpack_state(pack_state(trainer_state(first), tensors), tensors)
    torch.manual_seed(99)  # what happens in between does not matter
    second = trainer(data, recipe, new_head(0.1))
    restore_trainer(second, state)
    assert begun + steps(second, 9 - stop) == expected
    assert all(torch.equal(value, weights[name]) for name, value in second.head.state_dict().items())


def test_a_smaller_batch_makes_no_graph_general(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **settings: asked.append(settings) or model)
    compile_module(torch.nn.Linear(1, 1))
    assert asked == [{}, {"dynamic": False}]


@pytest.mark.parametrize(
    "wrong, message",
    [(2, r"targets\[3, 1\] is 2.0: use \+1"), (float("nan"), r"targets\[3, 1\] is nan"), (None, "targets are boolean")],
)
def test_labels_are_looked_at_once_when_training_begins(wrong, message):
    matrix = torch.ones(5, 2)
    if wrong is None:
        matrix = matrix > 0
    else:
        matrix[3, 1] = wrong
    with pytest.raises(QKSError, match=message):
        Targets(matrix)


def test_compiled(data, monkeypatch):
    "The same losses and weights through torch.compile, up to rounding, with a backend that needs no compiler."
    plain = run(data, config())
    compiles = torch.compile
    made = []
    monkeypatch.setattr(
        torch,
        "compile",
        lambda model, **settings: made.append(model) or compiles(model, backend="aot_eager", **settings),
    )
    found = run(data, config(compile=True))
    assert any(isinstance(model, engine.HeadLoss) for model in made)
    for a, b in zip(plain[0], found[0], strict=True):
        assert {name: pytest.approx(value, rel=1e-4) for name, value in a.items()} == b
    for name, value in plain[1].state_dict().items():
        if not name.endswith("key.bias"):
            torch.testing.assert_close(found[1].state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_a_finished_run_is_told_again(data, tmp_path):
    one, two = (run(data, config(), tmp_path) for _ in range(2))
    assert one[0] == two[0] and same(one[1], two[1])


def test_keeping_changes_nothing(data, tmp_path):
    one = run(data, config())
    two = run(data, config(), tmp_path, save_steps=1, log_steps=1)
    assert one[0] == two[0] and same(one[1], two[1])


def test_the_best_outlives_the_last(data, tmp_path, monkeypatch):
    scores = iter([3.0, 1.0, 2.0, 1.0, 1.0])
    monkeypatch.setattr(training, "selection_score", lambda *args: {"mAP": 0.0, "score": next(scores)})
    _, head = run(data, config(epochs=5), tmp_path, keep=2)
    assert [*list_checkpoints(tmp_path)] == [3, 12, 15]
    best = read_checkpoint(list_checkpoints(tmp_path)[3])["trainer"]["head"]
    assert all(torch.equal(value, best[name]) for name, value in head.state_dict().items())


@pytest.mark.parametrize("damage", ["one bit", "gone"])
@pytest.mark.parametrize("left, kept", [([3, 12, 15], 12), ([3, 14], None)], ids=str)
def test_the_best_checkpoint_is_damaged(data, tmp_path, monkeypatch, caplog, damage, left, kept):
    "The run resumes with a warning, trains on as before, and keeps the best of what is left, or of what comes."
    given = [9.0, 1.0, 2.0, 1.0, 3.0, 2.0, 4.0, 1.0]  # after the damage, 4 is the best that can be had

    def script_scores(scores):
        remaining = iter(scores)
        monkeypatch.setattr(training, "selection_score", lambda *args: {"mAP": 0.0, "score": next(remaining)})

    script_scores(given)
    expected = run(data, config(epochs=8, seed=4), tmp_path / "whole", keep=9)
    script_scores(given)
    begun = engine.train_step
    step = []
    stopped_after = max(left)

    def stops(*args, **kwargs):
        step.append(1)
        if len(step) == stopped_after:
            os.kill(os.getpid(), signal.SIGINT)
        return begun(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_step", stops)
        with pytest.raises(Interrupted):
            run(data, config(epochs=8, seed=4), tmp_path / "run", keep=2)
    for number, path in list_checkpoints(tmp_path / "run").items():
        if number not in left:
            path.unlink()
    best = list_checkpoints(tmp_path / "run")[3]
    if damage == "gone":
        best.unlink()
    else:
        best.write_bytes(best.read_bytes()[:-3] + bytes([best.read_bytes()[-3] ^ 1]) + best.read_bytes()[-2:])
    script_scores(given[4:])  # four epochs are scored, of the fifth the steps are done at most
    found = run(data, config(epochs=8, seed=4), tmp_path / "run", keep=2)
    replacement = f"the one of step {kept}" if kept else "the next epoch"
    warned = [message for message in caplog.messages if "best epoch (step 3)" in message]
    assert len(warned) == 1 and warned[0].endswith(f"is damaged or missing: {replacement} replaces it")
    assert found[0] == expected[0]
    good = read_checkpoint(list_checkpoints(tmp_path / "whole")[21])["trainer"]["head"]  # the epoch of 4
    assert all(torch.equal(value, good[name]) for name, value in found[1].state_dict().items())
    assert best.with_suffix(".damaged").exists() == (damage == "one bit")
    again = run(data, config(epochs=8, seed=4), tmp_path / "run", keep=2)  # finished: the same history
    assert again[0] == found[0] and same(again[1], found[1])


def test_a_damaged_checkpoint_that_cannot_be_renamed(tmp_path, monkeypatch, caplog):
    path = tmp_path / checkpoint.CHECKPOINT_NAME.format(3)
    path.write_bytes(b"x")
    monkeypatch.setattr(Path, "replace", full)
    message = "cannot be renamed .No space left on device.: rename or delete it"
    refused(message, checkpoint.read_last_checkpoint, tmp_path)
    assert "is damaged" in caplog.text


def test_machines_without_a_common_disk(data, tmp_path, monkeypatch):
    "One process finds a checkpoint and another none: all stop with one sentence, instead of waiting for one another."
    run(data, config(), tmp_path)
    monkeypatch.setattr(run_folder, "gather_object", lambda mine: [*mine, None])
    refused(
        f"not every process finds the same checkpoints in {tmp_path}: name a folder on a disk that all machines share",
        run,
        data,
        config(),
        tmp_path,
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": 2e-3}, "lr 0.001 there, 0.002 here"),
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"epochs": 3}, "epochs 2 there, 3 here"),
    ],
    ids=str,
)
def test_another_recipe(data, tmp_path, change, message):
    run(data, config(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refused(
        f"{tmp_path.name} holds a run of another configuration .{message}.: "
        "use the same one to resume it, or name another folder",
        run,
        data,
        config(**change),
        tmp_path,
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_labels_and_another_head(data, tmp_path):
    run(data, config(), tmp_path)
    refused("another configuration .labels", run, data, config(), tmp_path, labels=-data[2][:N])
    refused(
        "another configuration .head dropout 0.0 there, 0.1 here", run, data, config(), tmp_path, head=new_head(0.1)
    )


@pytest.mark.parametrize("kind", ["tensor", "mapped", "views"])
def test_other_tokens(data, tmp_path, kind):
    "The same folder with other tokens is refused; the same numbers in another type or place are the same tokens."
    half = data[0][:N].half()
    if kind == "mapped":
        (tmp_path / "tokens.bin").write_bytes(half.numpy().tobytes())
    given = {
        "tensor": half,
        "mapped": torch.from_file(str(tmp_path / "tokens.bin"), size=half.numel(), dtype=half.dtype).view(half.shape)
        if kind == "mapped"
        else None,
        "views": ViewSampler(half[:, None]),
    }[kind]
    other, same_numbers = (
        ViewSampler(tokens[:, None]) if kind == "views" else tokens for tokens in (half * -5, half.float())
    )
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert token_digest(given) == token_digest(same_numbers) != token_digest(other) and torch.equal(
        torch.rand(1), drawn
    )
    first = run(data, config(), tmp_path / "run", tokens=given)
    refused(
        "another configuration .tokens [0-9a-f]{16}.* there, [0-9a-f]{16}.* here.",
        run,
        data,
        config(),
        tmp_path / "run",
        tokens=other,
    )
    assert run(data, config(), tmp_path / "run", tokens=same_numbers)[0] == first[0]
    if kind == "views":
        refused(
            "another configuration .tokens .*, seed 0 there, .*, seed 1 here.",
            run,
            data,
            config(),
            tmp_path / "run",
            tokens=ViewSampler(half[:, None], seed=1),
        )


@pytest.mark.parametrize("n", [2, 7, 8, 9, 1000])
def test_rows_of_a_digest(n):
    "The first and the last row are among them, and the number of rows counts; what must be computed is left alone."
    tokens = torch.arange(n * 2.0).view(n, 2)
    others = tokens, torch.cat([tokens[:-1], tokens[:1]]), torch.cat([tokens[1:2], tokens[1:]]), tokens[:-1]
    assert len({token_digest(given) for given in others}) == 4 and len(token_digest(tokens[:1])) == 16
    assert token_digest(Failing(tokens)) is None


# ---- trouble


@pytest.mark.parametrize("step", [1, 5])
def test_a_loss_that_is_nan(data, tmp_path, monkeypatch, step):
    "The step is named, the weights are those before it, and the folder keeps the last good state."
    calls = []
    kept = []

    def loss(logits, targets):
        calls.append(1)
        return bce_loss(logits, targets) * (float("nan") if len(calls) == step else 1.0)

    monkeypatch.setattr(engine, "make_loss", lambda config: loss)
    head = new_head()
    monkeypatch.setattr(
        training,
        "epoch_steps",
        lambda found, hurry: (kept.append(copy.deepcopy(head.state_dict())) or done for done in epoch_steps(found)),
    )
    place = f"the loss is nan at step {(step - 1) % 3 + 1} of epoch {(step - 1) // 3 + 1}"
    refused(
        place + (f".*keeps the run up to step {step - 1}" if step > 1 else ": lower the learning rate"),
        run,
        data,
        config(),
        tmp_path,
        head=head,
        save_steps=1,
    )
    assert len(kept) == step - 1 and all(weight.isfinite().all() for weight in head.parameters())
    assert step == 1 or all(torch.equal(value, kept[-1][name]) for name, value in head.state_dict().items())
    assert max(list_checkpoints(tmp_path), default=0) == step - 1


@pytest.mark.parametrize("step", [1, 5, 6])  # 6: the last of an epoch, after which only the scores would show it
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_nan(data, tmp_path, monkeypatch, step, clip):
    "The loss is finite and its gradient is not: the step is named, and the weights are those before it."
    calls = []
    kept = []

    def loss(logits, targets):
        calls.append(1)
        return bce_loss(logits, targets) + ((logits * 0).sum().sqrt() * 0 if len(calls) == step else 0)

    monkeypatch.setattr(engine, "make_loss", lambda config: loss)
    head = new_head()
    monkeypatch.setattr(
        training,
        "epoch_steps",
        lambda found, hurry: (kept.append(copy.deepcopy(head.state_dict())) or done for done in epoch_steps(found)),
    )
    refused(
        f"the gradient is not finite at step {(step - 1) % 3 + 1} of epoch {(step - 1) // 3 + 1}: "
        "lower the learning rate",
        run,
        data,
        config(clip=clip),
        tmp_path,
        head=head,
        save_steps=1,
    )
    assert len(kept) == step - 1 and all(weight.isfinite().all() for weight in head.parameters())
    assert step == 1 or all(torch.equal(value, kept[-1][name]) for name, value in head.state_dict().items())
    assert max(list_checkpoints(tmp_path), default=0) == step - 1


def test_weights_that_are_not_finite_after_an_epoch(data, monkeypatch):
    "On a GPU the weights are checked before they are scored, not the gradients. A mock device plays the GPU."

    class OtherProcessFailed:
        type = "cuda"

    head = new_head()
    found = trainer(data, config())
    found.head = head
    found.device = OtherProcessFailed
    before = copy.deepcopy(head.state_dict())

    def spoilt(trainer, hurry):
        trainer.step = 3
        with torch.no_grad():
            head.projection.fill_(float("nan"))
        yield 3

    monkeypatch.setattr(training, "epoch_steps", spoilt)
    refused(
        "the weights are not finite at step 3 of epoch 1",
        training.train_epochs,
        found,
        None,
        data[1],
        run_folder.Checkpointing(None, found, StopSignals()),
    )
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


# ---- fp16's scaler, on the processor


def scaled(data, start, **changes):
    (images, names, labels) = data
    accelerator = make_accelerator(torch.device("cpu"))
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=start, growth_interval=3)
    return Trainer(new_head(), images[:N], Targets(labels[:N]), names, config(epochs=3, **changes), accelerator)


@pytest.fixture
def overflowing(monkeypatch):
    monkeypatch.setattr("qks.train.steps.check_finite", lambda *args: None)  # as on a GPU


@pytest.mark.parametrize(
    "options", [{"schedule": "cosine", "clip": 5.0, "accumulate": 2, "ema": 0.8}, {}], ids=["all", "plain"]
)
def test_the_scale_goes_on_where_it_was(data, overflowing, options):
    "The scale begins where gradients overflow: steps are skipped until it has come down; resuming gives the same bits."
    whole, again = (scaled(data, 2.0**120, **options) for _ in range(2))
    skipped = [whole.optimizer.step_was_skipped for _ in epoch_steps(whole)]
    assert skipped[0] and 1 < whole.accelerator.scaler.get_scale() < 2.0**120
    stopped = scaled(data, 2.0**120, **options)
    for _ in epoch_steps(stopped):
        if stopped.step == 2:
            break
    tensors = {}
    state = pack_state(trainer_state(stopped), tensors)
    restore_trainer(again, unpack_state(state, tensors))
    assert again.accelerator.scaler.get_scale() == stopped.accelerator.scaler.get_scale() != 2.0**120
    for _ in epoch_steps(again):
        pass
    assert same(whole.eval_head, again.eval_head)
    assert whole.accelerator.scaler.get_scale() == again.accelerator.scaler.get_scale()


def test_the_rate_waits_while_steps_are_left_out(data, overflowing):
    found = scaled(data, 2.0**120, schedule="cosine", warmup=2)
    before = found.optimizer.param_groups[0]["lr"]
    next(epoch_steps(found))
    assert found.optimizer.step_was_skipped and found.optimizer.param_groups[0]["lr"] == before


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_that_are_never_finite_are_told(data, overflowing, monkeypatch, fused):
    forward = engine.HeadLoss.forward
    monkeypatch.setattr(
        engine.HeadLoss, "forward", lambda self, *args: forward(self, *args) + (self.head.projection.sum() * 0).sqrt()
    )
    found = scaled(data, 2.0**2, fused=fused)
    refused(
        "in fp16 the gradient was not finite in so many steps up to step [0-9]+ of epoch 1.*use precision bf16 or fp32",
        list,
        epoch_steps(found),
    )


# ---- losses on a GPU


def test_on_a_device_losses_are_looked_at_when_somebody_waits(data, monkeypatch):
    found = trainer(data, config(batch_size=2))
    asked = []
    found.device = torch.device("meta")  # stands for a GPU in the one comparison that counts
    monkeypatch.setattr(engine, "train_step", lambda *args, **kwargs: torch.tensor(1.0))
    monkeypatch.setattr(engine, "read_ahead", lambda *args: iter([]))
    assert list(epoch_steps(found)) == [found.steps_per_epoch] and found.steps_per_epoch < engine.LOSS_CHECK_STEPS
    found.step = 0
    assert next(epoch_steps(found, lambda: asked.append(1) or len(asked) == 3)) == 3


# ---- one run a folder


def test_two_trainings_do_not_share_a_folder(data, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from filelock import FileLock; lock = FileLock({str(tmp_path / '.lock')!r}); lock.acquire(); "
            "print('held', flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    refused(
        "another process trains in .*: wait until it is done, or stop it, or name another folder",
        run,
        data,
        config(),
        tmp_path,
    )
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    other.kill()  # however it dies, the folder is free
    other.wait()
    run(data, config(), tmp_path)


def test_another_judge_is_another_run(data, tmp_path):
    run(data, config(epochs=1), tmp_path)
    tokens, names, labels = data
    for name, changed in (
        ("labels", (tokens, torch.cat([labels[:N], -labels[N:]]))),
        ("tokens", (torch.cat([tokens[:N], tokens[N:] + 1]), labels)),
    ):
        refused(
            f"another configuration .validation {name}",
            run,
            (changed[0], names, changed[1]),
            config(epochs=1),
            tmp_path,
        )


def test_an_old_checkpoint_that_cannot_be_deleted_costs_only_room(data, tmp_path, monkeypatch, caplog):
    unlink = Path.unlink

    def kept(path, missing_ok=False):
        if path.name.startswith("step-"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", kept)
    history, _ = run(data, config(epochs=4), tmp_path, keep=1)
    assert re.search("old checkpoint .* cannot be deleted .*, and takes up space", caplog.text)
    assert len(history) == 4 and len(list(tmp_path.glob("step-*"))) == 4


@pytest.mark.parametrize(
    "tensors, fine",
    [
        ([], True),
        ([torch.tensor([3e38, -3e38])], True),
        ([torch.zeros(2), torch.tensor([1.0, float("nan"), 2.0])], False),
        ([torch.tensor([float("-inf"), 0.0])], False),
        ([torch.tensor([float("nan")], dtype=torch.bfloat16)], False),
    ],
    ids=str,
)
def test_finite_numbers(tensors, fine):
    if fine:
        check_finite(tensors, "they are", 2, 3)
    else:
        refused("they are not finite at step 3 of epoch 2", check_finite, tensors, "they are", 2, 3)


def test_the_words_for_a_loss_that_is_not_finite():
    refused("the loss is inf at step 3 of epoch 2: lower the learning rate", check_loss, float("inf"), 2, 3)
    check_loss(1e30, 1, 1)


def log_on_full_disk(log):
    with log._file_errors():
        full()


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up(data, tmp_path, monkeypatch):
    "The run stops with one sentence, keeps what it had, and resumes to the same weights when there is room."
    expected = run(data, config(), tmp_path / "whole", save_steps=1)
    written = []
    save = checkpoint.save_file

    def fills_up(*args):
        written.append(1)
        (save if len(written) < 4 else full)(*args)

    monkeypatch.setattr(checkpoint, "save_file", fills_up)
    refused(
        "step-000000000004.safetensors cannot be written .No space left on device.*keeps the run up to step 3",
        run,
        data,
        config(),
        tmp_path / "full",
        save_steps=1,
    )
    monkeypatch.undo()
    found = run(data, config(), tmp_path / "full", save_steps=1)
    assert found[0] == expected[0] and same(found[1], expected[1])


def test_a_disk_that_fills_up_under_the_log(data, tmp_path, monkeypatch):
    expected = run(data, config())
    write = run_folder.RunLog.write_step
    monkeypatch.setattr(
        run_folder.RunLog, "write_step", lambda log, row: log_on_full_disk(log) if row["step"] == 4 else write(log, row)
    )
    refused(
        "the log in .* cannot be written .No space left on device.*keeps the run up to step 3",
        run,
        data,
        config(),
        tmp_path,
        save_steps=1,
        log_steps=1,
    )
    monkeypatch.undo()
    found = run(data, config(), tmp_path, save_steps=1, log_steps=1)
    assert found[0] == expected[0] and same(found[1], expected[1])
    assert [row["step"] for row in csv.DictReader((tmp_path / "steps.csv").open())] == [
        str(step) for step in range(1, 7)
    ]


def test_a_log_disk_that_fills_up_costs_no_epoch(data, tmp_path, monkeypatch):
    expected = run(data, config(), tmp_path / "whole")
    monkeypatch.setattr("qks.train.logs.write_atomic", full)
    refused(
        "the log in .* cannot be written .No space left on device.*keeps the run up to step 3",
        run,
        data,
        config(),
        tmp_path / "run",
    )
    monkeypatch.undo()
    found = run(data, config(), tmp_path / "run")
    assert found[0] == expected[0] and same(found[1], expected[1])
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "run" / "epochs.csv").open())] == ["1", "2"]


def test_the_line_of_an_epoch_that_a_kill_left_out(data, tmp_path):
    "Killed between the last checkpoint and its line: the line is written when the run is taken up."
    run(data, config(), tmp_path)
    lines = (tmp_path / "epochs.csv").read_text()
    (tmp_path / "epochs.csv").write_text("".join(lines.splitlines(keepends=True)[:2]))
    run(data, config(), tmp_path)
    assert (tmp_path / "epochs.csv").read_text() == lines


@pytest.mark.parametrize("where", ["init_trackers", "log"])
@pytest.mark.parametrize(
    "trouble, message",
    [
        (full, "the log in .* cannot be written .No space left on device."),
        (lambda *args, **kwargs: 1 / 0, "a tracker cannot be written .ZeroDivisionError.*leave it out of log_with"),
    ],
    ids=["disk", "else"],
)
def test_a_tracker_that_fails(data, tmp_path, monkeypatch, where, trouble, message):
    "A tracker's failure is reported as its own, not as that of the training data; no error hides another."
    monkeypatch.setattr("accelerate.Accelerator." + where, trouble)
    monkeypatch.setattr(training, "check_trackers", lambda names: None)
    if where == "log":
        monkeypatch.setattr("accelerate.Accelerator.init_trackers", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        training, "temporary_accelerator", lambda device, precision, **kwargs: temporary_accelerator(device, precision)
    )
    refused(message, run, data, config(), tmp_path, log_with=("tensorboard",))


def test_a_folder_that_is_a_file(data, tmp_path):
    (tmp_path / "file").write_text("")
    refused("file cannot hold a run", run, data, config(), tmp_path / "file")


class Failing:
    "Tokens of which one cannot be read."

    def __init__(self, tokens):
        self.tokens = tokens

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, rows):
        if 7 in rows:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.tokens[rows]


def test_tokens_that_cannot_be_read(data, tmp_path):
    expected = run(data, config())
    refused(
        "the training data cannot be read .Input/output error.: check the disk they are on",
        run,
        data,
        config(),
        tokens=Failing(data[0][:N]),
    )
    head = new_head()
    refused(
        "cannot be read",
        run,
        data,
        config(batch_size=1),
        tmp_path,
        tokens=Failing(data[0][:N]),
        save_steps=1,
        head=head,
    )
    assert list_checkpoints(tmp_path)  # what was done before stays
    found = run(data, config(batch_size=1), tmp_path, save_steps=1)
    again = run(data, config(batch_size=1))
    assert found[0] == again[0] and same(found[1], again[1]) and len(expected[0]) == 2


@pytest.fixture
def on_disk(data, tmp_path):
    "The training tokens in a file, as the token cache keeps them."
    file = BatchFile(tmp_path, (N, 4, D), torch.float32, [bytes(16)] * N)
    file.numbers.touch()
    file.write(0, data[0][:N])
    return file


def test_a_shard_that_was_cut_short(on_disk):
    "A file that is too short is not opened."
    os.truncate(on_disk.numbers, on_disk.n_bytes - 1)
    refused(
        f"tokens.bin holds {on_disk.n_bytes - 1:,} of {on_disk.n_bytes:,} bytes: compute its tokens again",
        on_disk.tensor,
    )


@pytest.mark.parametrize("size", [0, N // 2 * 4 * D * 4 + 3], ids=["nothing is left", "half is left"])
def test_a_file_cut_short_in_the_middle_of_an_epoch(data, on_disk, tmp_path, monkeypatch, size):
    "Had the file been mapped into memory, the process would die of SIGBUS."

    def cut(keeper, after=run_folder.Checkpointing.after_step):
        after(keeper)
        if keeper.trainer.steps_done == 3:
            os.truncate(on_disk.numbers, size)

    monkeypatch.setattr(run_folder.Checkpointing, "after_step", cut)
    refused(
        r"the training data cannot be read \(.*tokens.bin: the file ends at byte .*\): check the disk they are on; "
        ".* keeps the run up to step",
        run,
        data,
        config(batch_size=1),
        tmp_path / "run",
        tokens=on_disk.tensor(),
        save_steps=1,
    )
    kept = list_checkpoints(tmp_path / "run")
    assert kept and max(kept) >= 3
    monkeypatch.undo()
    expected = run(data, config(batch_size=1))
    on_disk.write(0, data[0][:N])  # the disk is repaired: the run resumes to the same bits
    found = run(data, config(batch_size=1), tmp_path / "run", tokens=on_disk.tensor(), save_steps=1)
    assert found[0] == expected[0] and same(found[1], expected[1])


def test_a_disk_that_fails_in_the_middle_of_an_epoch(data, on_disk, monkeypatch):
    tokens = on_disk.tensor()
    calls = []
    preadv = os.preadv

    def failing(*args):
        calls.append(args)
        if len(calls) == 13:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(*args)

    monkeypatch.setattr(os, "preadv", failing)
    refused(
        "the training data cannot be read .*tokens.bin: Input/output error.: check the disk they are on$",
        run,
        data,
        config(),
        tokens=tokens,
    )


def test_tokens_that_cannot_be_brought_to_the_device(data, on_disk, monkeypatch):
    "The first read may be before the first step."

    def unreadable(tokens, device, step):
        return tokens[:].read()

    monkeypatch.setattr(engine, "to_device_if_it_fits", unreadable)
    tokens = on_disk.tensor()
    os.truncate(on_disk.numbers, 0)
    refused("the training data cannot be read", run, data, config(), tokens=tokens)


# ---- signals


def test_ctrl_c(tmp_path):
    "A real process and signal: status 130, a checkpoint, a sentence on how to resume; resumed, the same weights."
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "stop_training.py"), str(tmp_path / "run")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(14):
        assert child.stdout.readline() == "step\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert err.startswith("qks: training was stopped after step ") and err.count("\n") == 1 and "--resume" in err
    step = int(err.split("after step ")[1].split(",")[0])
    assert max(list_checkpoints(tmp_path / "run")) == step and 14 <= step < 40
    (losses, head) = stop_training.train(tmp_path / "run")
    (expected, whole) = stop_training.train(tmp_path / "whole")
    assert losses == expected and same(head, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_heeded_after_the_step(data, tmp_path, monkeypatch, number):
    expected = run(data, config())
    step = engine.train_step
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return step(*args, **kwargs)

    monkeypatch.setattr(engine, "train_step", interrupted)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after step 2, .*--resume"):
        run(data, config(), tmp_path)
    assert signal.getsignal(number) is before and [*list_checkpoints(tmp_path)] == [2]
    found = run(data, config(), tmp_path)
    assert found[0] == expected[0] and same(found[1], expected[1])


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignals():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_signals_elsewhere():
    before = signal.getsignal(signal.SIGINT)
    found = []
    with StopSignals(False):
        assert signal.getsignal(signal.SIGINT) is before
    thread = threading.Thread(
        target=lambda: found.append(StopSignals().__enter__().previous_handlers)
    )  # a notebook's thread, say
    thread.start()
    thread.join()
    assert found == [{}] and signal.getsignal(signal.SIGINT) is before


# ---- the log


def test_lines_a_kill_left(tmp_path):
    path = tmp_path / "steps.csv"
    rows = [{"step": step, "loss": step / 3} for step in range(1, 6)]
    path.write_text(csv_lines(rows) + "6,0.12")
    drop_later_lines(path, 3)
    assert path.read_text() == csv_lines(rows[:3])
    drop_later_lines(tmp_path / "none.csv", 3)
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize(
    "left, stays",
    [
        ("step,epoch,lo", False),
        ("", False),
        ("\0" * 40, False),
        ("\0" * 40 + "\n", False),
        ("{rows}" + "\0" * 40 + "\n", True),
        ("{rows}" + "\0" * 40, True),
        ("{rows}4,0.54,0.5\n", True),
        ("{rows}4,\n", True),
        ("{rows}4\n", True),
        ("{rows}\n", True),
        ("{rows}\udcff,1\n", True),
        ("{rows}2.5,1.0\n", True),
    ],
    ids=repr,
)
def test_a_log_after_a_power_cut(data, tmp_path, left, stays):
    "A torn header, a stretch of zeros, two rows in one: a run resumes, and its log is complete."
    rows = csv_lines([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    path = tmp_path / "steps.csv"
    path.write_bytes(left.replace("{rows}", rows).encode("utf-8", "surrogateescape"))
    drop_later_lines(path, 9)
    assert path.read_text() == (rows if stays else "")
    log = RunLog(RunConfig(tmp_path), make_accelerator(torch.device("cpu")), {}, step=2)
    log.write_step({"step": 3, "loss": 0.125})
    found = list(csv.DictReader(path.open()))
    assert [row["step"] for row in found] == (["1", "2", "3"] if stays else ["3"]) and float(found[-1]["loss"]) == 0.125


def test_trackers(data, tmp_path, monkeypatch):
    refused("tracker 'tensorbored' is not known: give one of .*tensorboard", check_trackers, ["tensorbored"])
    monkeypatch.setattr("qks.train.logs.get_available_trackers", lambda: [])
    refused(
        "tracker 'wandb' is not installed: install it, or leave it out",
        run,
        data,
        config(),
        tmp_path,
        log_with=("wandb",),
    )


@pytest.mark.parametrize("stopped", [False, True])
def test_events_of_tensorboard(data, tmp_path, monkeypatch, stopped):
    "Real events, read back: those of every step up to the last one, after Ctrl-C too."
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    step = engine.train_step
    calls = []

    def stops(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5 and stopped:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args, **kwargs)

    monkeypatch.setattr(engine, "train_step", stops)
    finish = TensorBoardTracker.finish
    closed = []
    monkeypatch.setattr(TensorBoardTracker, "finish", lambda tracker: closed.append(1) or finish(tracker))
    try:
        run(data, config(), tmp_path, log_steps=1, log_with=("tensorboard",))
    except Interrupted:
        assert stopped
    assert closed == [1]
    last = 5 if stopped else 6
    lines = {int(row["step"]): row for row in csv.DictReader((tmp_path / "steps.csv").open())}
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("loss")}
    assert [*found] == [*lines] == list(range(1, last + 1))
    for number, value in found.items():
        assert value == pytest.approx(float(lines[number]["loss"]), rel=1e-6)
    assert [event.step for event in events.Scalars("epoch/mAP")] == ([3] if stopped else [3, 6])


def test_events_of_a_killed_run_are_not_shown_twice(data, tmp_path, monkeypatch):
    "Killed after its last checkpoint and resumed: TensorBoard shows every step once, as the CSV file does."
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    save = run_folder.save_checkpoint
    saved = []

    def dies(*args):
        if len(saved) == 1:
            raise MemoryError
        saved.append(1)
        return save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_checkpoint", dies)
        with pytest.raises(MemoryError):
            run(data, config(), tmp_path, log_steps=1, log_with=("tensorboard",))
    assert [*list_checkpoints(tmp_path)] == [3] and (tmp_path / "steps.csv").read_text().splitlines()[-1].startswith(
        "6,"
    )
    time.sleep(1.1)  # the names of event files count seconds
    run(data, config(), tmp_path, log_steps=1, log_with=("tensorboard",))
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*")).parent))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 7))
    assert [event.step for event in events.Scalars("epoch/mAP")] == [3, 6]


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"save_steps": 0}, {"log_steps": 0}], ids=str)
def test_bad_numbers(tmp_path, wrong):
    refused(next(iter(wrong)), RunConfig, tmp_path, **wrong)


@pytest.mark.parametrize("fails", [False, True])
def test_a_tracker_that_cannot_be_closed(data, tmp_path, monkeypatch, fails):
    "Its error is reported at the end of training; after another error, that one is."
    monkeypatch.setattr(run_folder.RunLog, "close", lambda log: refuse("a tracker cannot be written"))
    if fails:
        monkeypatch.setattr(training, "selection_score", lambda *args: refuse("the scores are lost"))
        refused("^the scores are lost$", run, data, config(), tmp_path)
    else:
        refused("a tracker cannot be written; .* keeps the run up to step 6", run, data, config(), tmp_path)


def refuse(message):
    raise QKSError(message)
