"""The recipe: what it refuses, and schedules computed by hand."""

import math

import pytest
import torch

from qks.core import QKSError
from qks.train.config import TrainConfig, make_optimizer, make_schedule


def weight():
    return torch.nn.Parameter(torch.ones(1))


def rates(recipe, steps_per_epoch, scores=None):
    "The learning rate of every step (cosine), or of every epoch (plateau, by these scores)."
    optimizer = make_optimizer([weight()], recipe)
    schedule = make_schedule(optimizer, recipe, steps_per_epoch)
    found = []
    for score in scores or [None] * (recipe.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(*([] if score is None else [score]))
    return found


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"precision": "fp64"}, "precision 'fp64' is unknown: give one of fp32, bf16, fp16"),
        ({"accumulate": 0}, "accumulate"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"clip": float("nan")}, "clip is nan"),
        ({"ema": 1.0}, "ema is 1.0: give a decay below 1"),
        ({"ema": -0.1}, "ema"),
        ({"warmup": 0, "schedule": "cosine"}, "warmup"),
        ({"warmup": 5}, "warmup belongs to the cosine schedule"),
    ],
    ids=str,
)
def test_bad_settings(wrong, told):
    with pytest.raises(QKSError, match=told) as caught:
        TrainConfig(**wrong)
    assert "\n" not in str(caught.value)


def test_what_is_off_by_default():
    recipe = TrainConfig()
    assert (
        recipe.precision,
        recipe.accumulate,
        recipe.clip,
        recipe.ema,
        recipe.warmup,
        recipe.fused,
        recipe.compile,
    ) == ("fp32", 1, 0.0, 0.0, None, False, False)


@pytest.mark.parametrize("warmup, rise", [(None, 8), (3, 3), (20, 20)])
def test_cosine_by_hand(warmup, rise):
    found = rates(TrainConfig(epochs=4, lr=0.5, schedule="cosine", warmup=warmup), 8)
    assert found == pytest.approx(
        [0.5 * min(1, (step + 1) / rise) * (1 + math.cos(math.pi * step / 32)) / 2 for step in range(32)]
    )


def test_a_long_epoch_rises_for_a_hundred_steps():
    found = rates(TrainConfig(epochs=2, lr=1.0, schedule="cosine"), 400)
    assert found[0] == pytest.approx(0.01) and max(range(800), key=found.__getitem__) == 99


def test_plateau_by_hand():
    found = rates(TrainConfig(epochs=8, lr=1.0), 5, scores=[0.1, 0.2, 0.2, 0.1, 0.1, 0.3, 0.3, 0.3])
    assert found == pytest.approx(
        [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1]
    )  # the second epoch in a row without gain is the fourth
    assert rates(TrainConfig(epochs=4, lr=1.0), 5, scores=[4.0, 3.0, 2.0, 1.0]) == pytest.approx([1.0, 1.0, 1.0, 0.1])


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_by_hand(fused):
    "The first step of AdamW: weight decay, then a step of lr against the gradient's sign."
    given = weight()
    optimizer = make_optimizer([given], TrainConfig(lr=0.1, weight_decay=0.5, fused=fused))
    (given * 3.0).sum().backward()
    optimizer.step()
    assert given.item() == pytest.approx(1 * (1 - 0.1 * 0.5) - 0.1)


def test_no_fused_optimiser_here(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("`fused=True` requires something else\nlong story")

    monkeypatch.setattr(torch.optim, "AdamW", refuse)
    with pytest.raises(QKSError, match="a fused AdamW is not possible here .*something else.: leave fused out$"):
        make_optimizer([weight()], TrainConfig(fused=True))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_weight_decay_that_is_none(value):
    with pytest.raises(QKSError, match="weight_decay is .*: give 0 or more"):
        TrainConfig(weight_decay=value)
