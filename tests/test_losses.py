"""The losses against the authors' numbers, against hand arithmetic, and on extreme inputs."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from qks.core import QKSError
from qks.model.losses import AsymmetricLoss, asymmetric_terms, bce_loss, ranking_loss

GOLDEN = dict(np.load(Path(__file__).parent / "data" / "losses.npz"))
ASL_KEYS = sorted(key for key in GOLDEN if "asl_" in key and not key.endswith("_grad"))


def masked_bce(logits, targets):
    return bce_loss(logits, targets, masked=True)


LOSSES = {
    "ranking": ranking_loss,
    "bce": bce_loss,
    "masked_bce": masked_bce,
    "asl": AsymmetricLoss(),
    "masked_asl": AsymmetricLoss(masked=True),
    "asl_margin": AsymmetricLoss(2, 1, 0.05),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def value_and_gradient(loss, logits, targets):
    logits = torch.as_tensor(logits).clone().requires_grad_()
    value = loss(logits, torch.as_tensor(targets))
    value.backward()
    return value.detach(), logits.grad


def agrees(loss, labels, key):
    value, gradient = value_and_gradient(loss, GOLDEN["logits"], GOLDEN[labels])
    expected = GOLDEN[f"{key}_grad"]
    np.testing.assert_allclose(value, GOLDEN[key], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    "loss, labels, key",
    [
        (bce_loss, "binary", "bce"),
        (masked_bce, "ternary", "masked_bce"),
        (ranking_loss, "binary", "ranking_binary"),
        (ranking_loss, "ternary", "ranking_ternary"),
    ],
)
def test_bce_and_ranking_equal_the_authors(loss, labels, key):
    agrees(loss, labels, key)


@pytest.mark.parametrize("key", ASL_KEYS)
def test_asymmetric_loss_equals_the_authors(key):
    gammas_and_margin = re.fullmatch(r"(?:masked_)?asl_gn([\d.]+)_gp([\d.]+)_c([\d.]+)", key).groups()
    masked = key.startswith("masked")
    agrees(AsymmetricLoss(*map(float, gammas_and_margin), masked=masked), "ternary" if masked else "binary", key)


def test_the_golden_file_covers_eight_asymmetric_losses():
    assert len(ASL_KEYS) == 8


def test_absent_annotations_count_as_negative_unless_masked():
    logits = torch.from_numpy(GOLDEN["logits"])
    ternary = torch.from_numpy(GOLDEN["ternary"])
    binary = torch.where(ternary > 0, 1, -1)
    for loss in (bce_loss, AsymmetricLoss()):
        assert loss(logits, ternary) == loss(logits, binary)
    assert masked_bce(logits, ternary) != masked_bce(logits, binary)


def test_ranking_by_hand():
    # pairs: 1 + 1.5 - 2 = 0.5, 1 + 2.5 - 2 = 1.5, 1 - 3 - 2 < 0; two of them violate
    value, gradient = value_and_gradient(ranking_loss, [[2.0, 1.5, 2.5, -3.0]], [[1, -1, -1, -1]])
    assert value == pytest.approx(1.0)
    assert gradient.tolist() == [[-1.0, 0.5, 0.5, 0.0]]


def test_ranking_means_over_all_images_and_skips_what_has_no_pair():
    logits = torch.tensor([[2.0, 1.5], [0.0, 9.0], [0.0, 9.0], [0.0, 9.0]])
    targets = torch.tensor([[1, -1], [-1, -1], [1, 1], [1, 0]])
    value, gradient = value_and_gradient(ranking_loss, logits, targets)
    assert value == pytest.approx(0.5 / 4)
    assert gradient[1:].abs().sum() == 0


def test_ranking_sees_only_differences_and_bce_the_level():
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.ones(3, 8)
    targets[:, ::2] = -1
    torch.testing.assert_close(ranking_loss(logits + 5, targets), ranking_loss(logits, targets))
    assert bce_loss(logits + 5, targets) > bce_loss(logits, targets) + 1
    assert ranking_loss(logits, -torch.ones(3, 8)) == 0 < bce_loss(logits, -torch.ones(3, 8))


def test_asymmetric_terms_by_hand():
    logit = torch.tensor([math.log(3.0)])  # probability 3/4
    yes = torch.tensor([True])
    no = torch.tensor([False])
    assert asymmetric_terms(logit, yes, gamma_pos=2).item() == pytest.approx(-(0.25**2) * math.log(0.75))
    assert asymmetric_terms(logit, no, gamma_neg=4).item() == pytest.approx(-(0.75**4) * math.log(0.25))
    assert asymmetric_terms(logit, no, gamma_neg=1, margin=0.25).item() == pytest.approx(-0.5 * math.log(0.5))
    assert asymmetric_terms(logit, no, margin=0.8).item() == 0


@pytest.mark.parametrize("masked, scale", [(False, 1000), (True, 1)])
def test_asl_without_asymmetry_is_bce(masked, scale):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 9, generator=generator) * 2
    targets = torch.randint(-1, 2, (5, 9), generator=generator)
    plain = AsymmetricLoss(0, 0, 0, masked=masked)
    value, gradient = value_and_gradient(plain, logits, targets)
    expected, expected_gradient = value_and_gradient(lambda x, y: bce_loss(x, y, masked), logits, targets)
    torch.testing.assert_close(value, expected * scale)
    torch.testing.assert_close(gradient, expected_gradient * scale)


def test_no_gradient_through_the_focusing_weight():
    _, gradient = value_and_gradient(AsymmetricLoss(gamma_neg=4), [[math.log(3.0)]], [[-1]])
    assert gradient.item() == pytest.approx(1000 * 0.75**4 * 0.75, rel=1e-5)


def test_the_log_floor_caps_the_loss_and_ends_the_gradient():
    value, gradient = value_and_gradient(AsymmetricLoss(0, 0, 0), [[11.4, 11.6, -30.0]], [[-1, -1, 1]])
    below = math.log1p(math.exp(11.4))
    assert value.item() == pytest.approx(1000 * (below - 2 * math.log(1e-5)) / 3, rel=1e-4)
    assert gradient[0, 0] > 300 and gradient[0, 1] == 0 and gradient[0, 2] == 0


@pytest.mark.parametrize("loss", [ranking_loss, masked_bce, LOSSES["masked_asl"]], ids=["ranking", "bce", "asl"])
def test_masked_entries_change_neither_value_nor_gradient(loss):
    logits = [[1.0, 0.5, 2.0]]
    targets = [[1, -1, 0]]
    value, gradient = value_and_gradient(loss, logits, targets)
    changed, changed_gradient = value_and_gradient(loss, [[1.0, 0.5, float("nan")]], targets)
    assert value == changed and torch.equal(gradient, changed_gradient) and gradient[0, 2] == 0


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_for_huge_logits_in_any_precision(loss, dtype):
    logits = torch.tensor([[1e4, -1e4, 90.0, -90.0, 0.0, 1e4, -1e4]], dtype=dtype)
    for targets in ([[1, 1, 1, 1, 1, -1, -1]], [[-1, -1, -1, -1, -1, 1, 1]], [[1, 1, -1, -1, 0, 0, 0]]):
        value, gradient = value_and_gradient(loss, logits, targets)
        assert value.dtype == torch.float32 and gradient.dtype == dtype
        assert value.isfinite() and gradient.isfinite().all()


@every_loss
def test_half_precision_is_computed_in_fp32(loss):
    logits = torch.from_numpy(GOLDEN["logits"]).bfloat16()
    targets = torch.from_numpy(GOLDEN["ternary"])
    assert loss(logits, targets) == loss(logits.float(), targets)


@every_loss
def test_gradient_is_the_derivative(loss):
    if loss in (LOSSES["asl"], LOSSES["masked_asl"], LOSSES["asl_margin"]):
        loss = AsymmetricLoss(0, 0, 0.05, masked=loss.masked)  # a focusing weight is no part of the derivative
    logits = torch.from_numpy(GOLDEN["logits"][:3, :12]).double() * 0.7
    targets = torch.from_numpy(GOLDEN["ternary"][:3, :12])
    assert torch.autograd.gradcheck(lambda x: loss(x, targets), logits.requires_grad_())


@every_loss
def test_a_batch_without_annotation_or_without_images(loss):
    value, gradient = value_and_gradient(loss, torch.randn(2, 3) * 5, torch.zeros(2, 3))
    assert value.isfinite() and gradient.isfinite().all()
    if loss in (ranking_loss, masked_bce, LOSSES["masked_asl"]):
        assert value == 0 and gradient.abs().sum() == 0
    value, _ = value_and_gradient(loss, torch.zeros(0, 3), torch.zeros(0, 3))
    assert value == 0


@every_loss
def test_nan_is_not_hidden(loss):
    assert loss(torch.tensor([[float("nan"), 1.0]]), torch.tensor([[1, -1]])).isnan()


@every_loss
def test_bad_targets_are_refused_by_name(loss):
    with pytest.raises(QKSError, match=r"targets\[1, 2\] is 3"):
        loss(torch.zeros(2, 3), torch.tensor([[1, -1, 0], [1, -1, 3]]))
    with pytest.raises(QKSError, match="0.5"):
        loss(torch.zeros(1, 2), torch.tensor([[1, 0.5]]))
    with pytest.raises(QKSError, match="nan"):
        loss(torch.zeros(1, 2), torch.tensor([[1, float("nan")]]))
    with pytest.raises(QKSError, match="boolean"):
        loss(torch.zeros(1, 2), torch.tensor([[True, False]]))
    with pytest.raises(QKSError, match=r"\[2, 3\].*\[2, 1\]"):
        loss(torch.zeros(2, 3), torch.ones(2, 1))


@pytest.mark.parametrize("loss", [bce_loss, AsymmetricLoss()], ids=["bce", "asl"])
def test_a_device_is_not_waited_for_and_a_graph_not_broken(loss):
    "On a device and in a compiled graph values are not looked at: the processor would have to wait for the answer."
    assert loss(torch.zeros(2, 3, device="meta"), torch.ones(2, 3, device="meta")).device.type == "meta"
    with pytest.raises(QKSError, match="shape"):
        loss(torch.zeros(2, 3, device="meta"), torch.ones(2, 1, device="meta"))
    logits = torch.randn(2, 3)
    targets = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]])
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, targets), loss(logits, targets))


@pytest.mark.parametrize("options", [dict(gamma_neg=-1), dict(gamma_pos=-0.5), dict(margin=1), dict(margin=-0.1)])
def test_bad_settings_are_refused(options):
    with pytest.raises(QKSError, match="gammas"):
        AsymmetricLoss(**options)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32])
def test_targets_may_be_of_any_number_type(dtype):
    targets = torch.from_numpy(GOLDEN["ternary"])
    logits = torch.from_numpy(GOLDEN["logits"])
    for loss in LOSSES.values():
        assert loss(logits, targets.to(dtype)) == loss(logits, targets)
