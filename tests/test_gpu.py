"""What a GPU would meet, on tensors without numbers that say they lie on one.

Every tensor must be where the others are, and no value may be read: that would make the CPU wait for the device.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from qks.evaluate.baselines import best_patch_scores
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import AsymmetricLoss, bce_loss
from qks.model.sharing import share
from qks.train.steps import HeadLoss

B = 6
N = 17
D = 128
E = 32
S = 40
pytestmark = pytest.mark.skipif(torch.__version__ < (2, 11), reason="an older torch asks for the GPU even so")


@contextmanager
def pretended(dtype=torch.float32):
    "New tensors are on a GPU that is not there; autocast as on one."
    before = (
        torch.is_autocast_enabled("cuda"),
        torch.get_autocast_dtype("cuda"),
    )  # torch.autocast itself looks for the GPU
    torch.set_autocast_enabled("cuda", dtype != torch.float32)
    torch.set_autocast_dtype("cuda", dtype if dtype != torch.float32 else before[1])
    try:
        with (
            patch.object(torch.nn.Module, "to", lambda self, *args: self),
            FakeTensorMode(allow_non_fake_inputs=False),
            torch.device("cuda"),
        ):
            yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def batch(dtype=torch.float32):
    "A head in training, and what a step gives it."
    return (
        QKSHead(torch.randn(D, E), HeadConfig(n_queries=3, n_layers=2)).train(),
        torch.randn(B, N, D, dtype=dtype),
        torch.randn(S, E),
        torch.ones(B, S),
    )


@pytest.mark.parametrize("loss", [AsymmetricLoss(), bce_loss], ids=["asl", "bce"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_step_never_waits(loss, dtype):
    with pretended(dtype):
        head, tokens, labels, targets = batch(dtype)
        found = HeadLoss(head, loss)(tokens, labels, targets)
        assert found.device.type == "cuda" and found.dtype == torch.float32 and found.requires_grad
        logits = head(tokens, labels).logits
        assert logits.shape == (B, S) and logits.dtype == dtype


def test_this_would_notice_a_question():
    with pretended(), pytest.raises(DataDependentOutputException):
        if batch()[1].isfinite().all():
            pass


@pytest.mark.parametrize("training", [True, False])
def test_attention_maps_and_very_many_labels(training):
    with pretended(), nullcontext() if training else torch.no_grad():
        head, tokens, *_ = batch()
        head.train(training)
        output = head(tokens, torch.randn(30_000, E), return_attention=True)
        assert output.logits.shape == (B, 30_000) and {
            part.device.type for part in (output.logits, output.token_index, *output.attention)
        } == {"cuda"}
        assert share(torch.randn(B, 3, E), torch.randn(30_000, E))[0].device.type == "cuda"


def test_the_best_patch_is_looked_for_on_the_gpu():
    "Tokens come from memory, labels from wherever they were embedded; the scores are back on the processor."
    with pretended():
        vlp = SimpleNamespace(device=torch.device("cuda"), projection=torch.randn(D, E), n_prefix=1)
        scores = best_patch_scores(
            vlp, torch.randn(B, N, D, device="cpu"), torch.randn(S, E, device="cpu"), batch_size=4
        )
        assert scores.shape == (B, S) and scores.device.type == "cpu"
