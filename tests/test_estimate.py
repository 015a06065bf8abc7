"""Estimates against reckoning by hand, and against a run that really takes place."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from qks.core import QKSError
from qks.experiment.estimate import (
    PEAKS,
    ForwardCost,
    Machine,
    Workload,
    count_operations,
    estimate_stages,
    estimate_table,
    format_duration,
    forward_cost,
    machine_from_peak,
    measure_machine,
)
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.scoring import head_scores
from qks.vlp.loading import load_vlp

TOY = Machine("toy", decode=50, tower=100, prompts=200, train=1000, score=2000, read=1e8, memory=1e9, measured=True)
WORK = Workload(n_train=1000, n_test=200, n_labels=30, n_seen=20, n_tokens=10, width=8, epochs=3)


def test_by_hand():
    stages = {stage.name: stage for stage in estimate_stages(WORK, TOY)}
    assert [stage.seconds for stage in stages.values()] == [30 * 85 / 200, 1200 / 50, 3 * 1000 / 1000, 200 / 2000]
    assert stages["image tokens"].disk == 1200 * 10 * 8 * 2
    assert stages["training"].memory == 1000 * 10 * 8 * 2
    assert stages["scoring"].memory == 200 * 30 * 21
    assert {stage.limit for stage in estimate_stages(replace(WORK, dense_scores=False), replace(TOY, tower=10))} == {
        "prompts",
        "tower",
        "train",
        "score",
    }
    assert estimate_stages(replace(WORK, dense_scores=False), TOY)[-1].memory == 0


@pytest.mark.parametrize(
    "memory, read, limit", [(160_000, 1, "train"), (159_999, 1e4, "read"), (159_999, 1e9, "train")]
)
def test_the_disk_limits_training_where_tokens_do_not_fit(memory, read, limit):
    training = estimate_stages(WORK, replace(TOY, memory=memory, read=read))[2]
    assert (training.limit, training.memory) == (limit, 160_000 if memory == 160_000 else 0)
    if limit == "read":
        assert training.seconds == pytest.approx(3 * 1000 * 160 / 1e4)


def test_operations_of_attention_are_counted_with_and_without_fused_kernels():
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    n = 6
    d = 16
    f = 32
    assert count_operations(lambda: layer(torch.zeros(1, n, d))) == 2 * (4 * n * d * d + 2 * n * n * d + 2 * n * d * f)
    assert torch.backends.mha.get_fastpath_enabled()


def test_operations_grow_with_the_labels():
    vlp = load_vlp()
    head = QKSHead(vlp.projection, HeadConfig(n_layers=1))
    few = forward_cost(vlp, head, 10)
    many = forward_cost(vlp, head, 20)
    assert many.head - few.head == 2 * 10 * 12 * vlp.embed_dim
    assert few.tower == many.tower > 1e8 and few.prompt > 1e6


def test_measured_rates_predict_a_run():
    vlp = load_vlp()
    head = QKSHead(vlp.projection, HeadConfig(n_layers=1))
    before = {name: value.clone() for name, value in head.state_dict().items()}
    machine = measure_machine(vlp, head, 5, [np.zeros((64, 64, 3), np.uint8)])
    assert machine.measured and all(
        getattr(machine, rate) > 0 for rate in ("decode", "tower", "prompts", "train", "score")
    )
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    tokens = torch.zeros(256, vlp.grid[0] * vlp.grid[1] + vlp.n_prefix, vlp.width)
    start = time.perf_counter()
    head_scores(head, tokens, torch.zeros(5, vlp.embed_dim))
    assert (
        0.02 < (time.perf_counter() - start) * machine.score / 256 < 50
    )  # the right order of magnitude, not a timed test


def test_a_machine_that_is_not_here_is_marked():
    cost = ForwardCost(tower=35e9, head=2e9, prompt=6e9)
    machine = machine_from_peak("H200 (141 GB)", cost, decode_per_core=100, utilisation=0.5)
    assert not machine.measured and machine.tower == pytest.approx(0.5 * 989e12 / 35e9) and machine.decode == 1600
    table = estimate_table(WORK, [TOY, machine])
    assert "H200 (141 GB) *" in table and "toy |" in table and "not measured" in table
    assert "not measured" not in estimate_table(WORK, [TOY])
    with pytest.raises(QKSError, match="consumer GPU"):
        machine_from_peak("abacus", cost, 1)
    assert set(PEAKS) == {"consumer GPU (24 GB)", "H200 (141 GB)"}


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "1.5 min"),
        (720, "12 min"),
        (5400, "1.5 h"),
        (86400, "24 h"),
        (172800, "2.0 days"),
    ],
)
def test_duration(seconds, text):
    assert format_duration(seconds) == text


def test_nothing_to_measure_with():
    vlp = load_vlp()
    with pytest.raises(QKSError, match="at least one"):
        measure_machine(vlp, QKSHead(vlp.projection, HeadConfig(n_layers=1)), 5, [])
