"""The settings of a training: what they refuse, and the loss, optimiser and schedules that they make."""

import dataclasses
import inspect
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qks.core import QKSError
from qks.train.config import RunConfig, TrainConfig
from qks.train.optimizer import make_loss, make_optimizer, make_schedule


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
    "wrong, message",
    [
        ({"precision": "fp64"}, "precision is 'fp64': give one of fp32, bf16, fp16"),
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
def test_bad_settings(wrong, message):
    with pytest.raises(QKSError, match=message) as caught:
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
    with pytest.raises(
        QKSError, match="a fused AdamW is not possible on this device .*something else.: leave fused out$"
    ):
        make_optimizer([weight()], TrainConfig(fused=True))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_weight_decay_that_is_none(value):
    with pytest.raises(QKSError, match="weight_decay is .*: give 0 or more"):
        TrainConfig(weight_decay=value)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"lr": "1e-4"}, "^lr is '1e-4': give a number$"),
        ({"lr": float("nan")}, "^lr is nan: give a number above 0$"),
        ({"lr": True}, "^lr is True: give a number$"),
        ({"topk": 3}, "^topk is 3: give a tuple, each of its items a whole number, or None$"),
        ({"topk": ()}, "^topk is empty"),
        ({"topk": (0,)}, "^k of topk is 0"),
        ({"epochs": 1.5}, "^epochs is 1.5: give a whole number$"),
        ({"seed": 2**63}, "^seed is 9223372036854775808: give a smaller one, below 2.63$"),
        ({"loss": "focal"}, "^loss is 'focal': give one of asl, bce, ranking$"),
        ({"fused": 1}, "^fused is 1: give True or False$"),
        ({"betas": (0.9,)}, "^betas is .0.9,.: give two numbers"),
        ({"betas": (0.9, 1.0)}, "^betas is .0.9, 1.0.: give two numbers"),
        ({"eps": -1e-8}, "^eps is -1e-08: give 0 or more"),
        ({"asl_gamma_neg": -1.0}, "^asl_gamma_neg is -1.0: give 0 or more$"),
        ({"asl_margin": 1.0}, "^asl_margin is 1.0: give 0 or more and below 1$"),
        ({"plateau_factor": 1.0}, "^plateau_factor is 1.0: give a number between 0 and 1$"),
        ({"plateau_patience": -1}, "^plateau_patience is -1"),
        ({"plateau_patience": 3, "schedule": "cosine"}, "^plateau_patience belongs to the plateau schedule"),
        ({"asl_gamma_pos": 1.0, "loss": "bce"}, "^asl_gamma_pos belongs to the asl loss, and the loss is 'bce'"),
    ],
    ids=str,
)
def test_settings_of_a_wrong_type_or_range(wrong, message):
    with pytest.raises(QKSError, match=message):
        TrainConfig(**wrong)


def test_settings_reach_loss_optimiser_and_schedule():
    config = TrainConfig(
        betas=(0.8, 0.99), eps=1e-6, asl_gamma_neg=2.0, asl_gamma_pos=1.0, asl_margin=0.05, plateau_patience=3,
        plateau_factor=0.5,
    )  # fmt: skip
    loss = make_loss(config)
    optimizer = make_optimizer([weight()], config)
    schedule = make_schedule(optimizer, config, 5)
    assert (loss.gamma_neg, loss.gamma_pos, loss.margin) == (2.0, 1.0, 0.05)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.99), 1e-6)
    assert (schedule.patience, schedule.factor) == (3, 0.5)


def test_the_defaults_of_adamw_are_those_of_torch():
    plain = torch.optim.AdamW([weight()])
    ours = make_optimizer([weight()], TrainConfig())
    for name in ("betas", "eps", "amsgrad", "maximize"):
        assert ours.defaults[name] == plain.defaults[name]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"folder": 3}, "folder is 3: give a Path"),
        ({"keep": 0}, "keep is 0"),
        ({"save_steps": 0}, "save_steps is 0"),
        ({"log_steps": "9"}, "log_steps is '9': give a whole number"),
        ({"log_with": "tensorboard"}, "log_with is 'tensorboard': give a tuple, each of its items text"),
    ],
    ids=str,
)
def test_run_settings_of_a_wrong_type_or_range(wrong, message):
    with pytest.raises(QKSError, match=message):
        RunConfig(**{"folder": Path("run")} | wrong)


def test_a_run_folder_may_be_text():
    assert RunConfig("runs/a").folder == Path("runs/a")


def test_settings_import_no_heavy_library():
    "The command line reads these dataclasses for its help."
    code = "import sys, qks.train.config; print(sorted({'torch', 'numpy', 'accelerate'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_each_setting_has_a_comment_for_the_help():
    lines = inspect.getsource(TrainConfig).splitlines() + inspect.getsource(RunConfig).splitlines()
    fields = [line for line in lines if re.match(r"    \w+: ", line)]
    assert len(fields) == len(dataclasses.fields(TrainConfig)) + len(dataclasses.fields(RunConfig))
    assert all("  # " in line for line in fields)
