"""What the library leaves behind in the program around it: nothing."""

import random
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from qks.core import QKSError
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.scoring import eval_mode, score_batches
from qks.model.tagger import QKS
from qks.train.checkpoint import keep_random_states
from qks.train.config import RunConfig, TrainConfig
from qks.train.devices import process_state, score_images, temporary_accelerator
from qks.train.loop import fit
from qks.train.signals import StopSignals
from qks.train.steps import train_epoch
from qks.vlp.loading import load_vlp

STATES = (PartialState, AcceleratorState, GradientState)


@pytest.fixture(autouse=True)
def no_accelerator():
    for kind in STATES:
        kind._shared_state.clear()
    yield
    for kind in STATES:
        kind._shared_state.clear()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(12, 5, 64, generator=generator)
    labels = torch.where(torch.rand(12, 6, generator=generator) < 0.5, 1, -1)
    return tokens, labels, torch.randn(6, 8, generator=generator)


def new_head():
    with keep_random_states():
        torch.manual_seed(0)
        return QKSHead(torch.randn(64, 8), HeadConfig(2, 1))


def train(data, head=None, run=None, **settings):
    tokens, labels, embeddings = data
    config = TrainConfig(**{"epochs": 1, "batch_size": 4, "topk": (1,), **settings})
    return fit(head or new_head(), (tokens, labels), embeddings, (tokens, labels), config, run)


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"epochs": 2, "accumulate": 2}], ids=str)
def test_the_callers_accelerator_works_on(data, settings):
    mine = Accelerator(cpu=True, mixed_precision="no", gradient_accumulation_steps=4)
    layer = torch.nn.Linear(2, 1)
    model, optimizer = mine.prepare(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    mine.gradient_state._set_sync_gradients(False)  # in the middle of accumulating
    before = [dict(kind._shared_state) for kind in STATES]
    history = train(data, **settings)
    assert [dict(kind._shared_state) for kind in STATES] == before
    assert mine.num_processes == 1 and mine.mixed_precision == "no" and mine.gradient_accumulation_steps == 4
    assert not mine.sync_gradients
    mine.gradient_state._set_sync_gradients(True)
    weight = layer.weight.clone()
    mine.backward(model(torch.ones(3, 2)).sum())
    optimizer.step()
    mine.wait_for_everyone()
    assert not torch.equal(weight, layer.weight)
    for kind in STATES:
        kind._shared_state.clear()
    without = train(data, **settings)
    assert [row["loss"] for row in without] == [row["loss"] for row in history]  # its state did not reach ours


def test_a_program_without_accelerator_may_still_choose(data):
    train(data)
    score_images(new_head(), data[0], data[2])
    process_state()
    head = new_head()
    train_epoch(
        head,
        *data,
        lambda logits, targets: logits.sum(),
        torch.optim.SGD(head.parameters(), lr=1e-3),
        4,
        torch.Generator().manual_seed(0),
    )
    assert not any(kind._shared_state for kind in STATES)
    with pytest.raises(RuntimeError, match="stop"), temporary_accelerator(torch.device("cpu")):
        raise RuntimeError("stop")
    assert not any(kind._shared_state for kind in STATES)
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"


def draws():
    return random.random(), np.random.random(), torch.rand(3).tolist()


@pytest.mark.parametrize("fails", [False, True])
def test_random_numbers_go_on_as_if_nothing_was_trained(data, tmp_path, fails):
    def seed():
        random.seed(5)
        np.random.seed(6)
        torch.manual_seed(7)

    seed()
    expected = [draws(), draws()]
    seed()
    assert draws() == expected[0]
    if fails:
        with pytest.raises(QKSError):
            train((data[0] * float("nan"), *data[1:]))
    else:
        train(data, run=RunConfig(tmp_path))
        train(data, run=RunConfig(tmp_path), epochs=1)  # resumes
    assert draws() == expected[1] and torch.initial_seed() == 7


def test_a_loop_over_seeds_draws_other_numbers_each_time(data):
    drawn = []
    torch.manual_seed(1)
    for _ in range(3):
        train(data)
        drawn.append(torch.rand(1).item())
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("training", [True, False])
def test_a_head_that_is_handed_over_stays_as_it_is(data, training):
    vlp = load_vlp()
    head = QKSHead(vlp.projection, HeadConfig(2, 1)).train(training)
    head.extractor.blocks[0].eval()
    modes = [part.training for part in head.modules()]
    model = QKS(vlp, head)
    assert model.head is head
    picture = np.full((64, 64, 3), 90, np.uint8)
    first = model.tag(picture, ["cat", "dog"])
    assert first == model.tag(picture, ["cat", "dog"])  # no dropout
    model.predict([picture], model.pool.embed(vlp, ["cat"]))
    assert [part.training for part in head.modules()] == modes


def test_a_head_on_another_device_is_copied_not_moved():
    vlp = load_vlp()
    head = QKSHead(vlp.projection, HeadConfig(2, 1)).to("meta")
    with pytest.raises(NotImplementedError):  # a head without numbers cannot be copied to where they are
        QKS(vlp, head)
    assert head.projection.device.type == "meta"


def test_saved_models_are_ready_to_use():
    model = QKS.from_pretrained("pocket", device="cpu")
    assert not model.head.training
    assert not QKSHead.from_state(model.head.state_dict(), 3).training


def fail_at_second(tokens):
    yield tokens[:4]
    raise OSError("the disk is away")


def test_scoring_that_fails_leaves_the_modes(data):
    tokens, _, embeddings = data
    head = new_head()
    head.extractor.blocks[0].eval()
    modes = [part.training for part in head.modules()]
    for batches, error in ((fail_at_second(tokens), OSError), ([tokens[:, :, :3]], Exception)):
        with pytest.raises(error):
            score_batches(head, batches, embeddings, 12)
        assert [part.training for part in head.modules()] == modes
    with pytest.raises(KeyboardInterrupt), eval_mode(head):
        raise KeyboardInterrupt
    assert [part.training for part in head.modules()] == modes


@pytest.mark.parametrize("training", [True, False])
def test_a_training_that_fails_leaves_the_mode(data, training):
    head = new_head().train(training)
    with pytest.raises(QKSError, match="loss is nan"):
        train((data[0] * float("nan"), *data[1:]), head)
    assert head.training == training


@pytest.mark.parametrize("handed, n_images", [([4, 4], 12), ([4, 4, 4], 11), ([], 3), ([12], 0), ([12], 13)], ids=str)
def test_scores_are_those_of_all_images_or_none(data, handed, n_images):
    "Fewer rows were uninitialised memory."
    tokens, _, embeddings = data
    batches = [tokens[:size] for size in handed]
    with pytest.raises(QKSError, match=f"the batches hold {sum(handed)} images.*n_images is {n_images}"):
        score_batches(new_head(), batches, embeddings, n_images)
    assert score_batches(new_head(), [tokens], embeddings, 12).logits.shape == (12, 6)


def test_a_signal_that_the_host_handles_outside_python_keeps_its_handler(monkeypatch):
    "Python shows such a handler as None, and cannot put it back."
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else before)
    replaced = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: replaced.append((number, handler)))
    with StopSignals() as signals:
        assert [number for number, _ in replaced] == [signal.SIGINT] and not signals.received
    assert [number for number, _ in replaced] == [signal.SIGINT, signal.SIGINT] and replaced[-1][1] is before


def test_an_ignored_signal_stays_ignored(data, tmp_path):
    "As under nohup: a hang-up or Ctrl-C that the host ignores stops no training."
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received is None
        train(data, run=RunConfig(tmp_path))
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
