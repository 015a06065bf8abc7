"""A head that begins at the labels' frequency: the right logits, the same choice of tokens, and less to unlearn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from qks.core import QKSError
from qks.experiment.spec import RunOptions, RunSpec
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import bce_loss
from qks.train.config import TrainConfig
from qks.train.loop import fit
from qks.train.prior import prior_log_odds, start_at_prior
from qks.train.targets import Targets

N_LABELS = 30


def make_head(n_layers=2):
    torch.manual_seed(0)
    return QKSHead(torch.randn(64, 16) / 40, HeadConfig(n_queries=4, n_layers=n_layers))


@pytest.fixture
def embeddings():
    torch.manual_seed(1)
    return 0.2 * torch.randn(N_LABELS, 16) + 1  # with a direction in common, as sentences have


@pytest.fixture
def tokens():
    torch.manual_seed(2)
    return torch.randn(60, 9, 64)


@pytest.fixture
def labels():
    torch.manual_seed(3)
    return torch.where(torch.rand(60, N_LABELS) < 0.05, 1.0, -1.0)


def test_the_odds_of_a_known_frequency():
    labels = -torch.ones(40, 10)
    labels[:10, :2] = 1  # 20 of 400
    assert prior_log_odds(Targets(labels)) == pytest.approx(math.log(20 / 380))


def test_what_is_not_annotated_counts_as_absent():
    labels = -torch.ones(4, 10)
    labels[:, 0] = 1
    labels[:, 5:] = 0
    assert prior_log_odds(Targets(labels)) == pytest.approx(math.log(1 / 9))


@pytest.mark.parametrize("value", [-1, 1])
def test_labels_without_odds_are_refused(value):
    with pytest.raises(QKSError, match="prior_init"):
        prior_log_odds(Targets(torch.full((5, 3), float(value))))


def test_a_sample_of_many_images_gives_the_same_odds():
    labels = np.where(np.random.default_rng(0).random((20_000, 8)) < 0.1, 1, -1)
    assert prior_log_odds(Targets(labels)) == pytest.approx(
        math.log((labels > 0).mean() / (labels < 0).mean()), abs=0.05
    )


def test_the_bias_solves_the_ridge_regression(embeddings):
    head = make_head()
    start_at_prior(head, embeddings, -3.0)
    maps = (embeddings @ head.projection.T).double().detach().numpy()  # [S, D]
    ridge = 1e-3 * np.mean(maps**2, axis=0).sum() * len(maps) / maps.shape[1]
    stacked = np.vstack([maps, math.sqrt(ridge) * np.eye(maps.shape[1])])
    expected, *_ = np.linalg.lstsq(stacked, np.r_[np.full(len(maps), -3.0), np.zeros(maps.shape[1])], rcond=None)
    np.testing.assert_allclose(head.extractor.blocks[-1].ffn_norm.bias.detach(), expected, rtol=1e-3, atol=1e-4)


def test_every_logit_moves_by_the_odds_and_no_label_changes_its_token(embeddings, tokens):
    head = make_head().eval()
    before = head(tokens, embeddings)
    start_at_prior(head, embeddings, -4.0)
    after = head(tokens, embeddings)
    torch.testing.assert_close(after.logits, before.logits - 4.0, atol=0.5, rtol=0)
    assert (after.token_index == before.token_index).float().mean() > 0.999


def test_labels_that_are_never_trained_on_begin_there_too(embeddings, tokens):
    head = make_head().eval()
    others = 0.2 * torch.randn(20, 16) + 1
    before = head(tokens, others).logits
    start_at_prior(head, embeddings, -4.0)
    assert (head(tokens, others).logits - before).mean().item() == pytest.approx(-4.0, abs=0.5)


def test_only_one_bias_changes(embeddings):
    head = make_head()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    start_at_prior(head, embeddings, -4.0)
    changed = {name for name, value in head.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"extractor.blocks.1.ffn_norm.bias"}


def test_training_begins_with_it_where_the_settings_say_so(embeddings, tokens, labels):
    losses = {}
    for prior_init in (False, True):
        config = TrainConfig(epochs=1, lr=1e-12, loss="bce", schedule="cosine", selection="last", prior_init=prior_init)
        losses[prior_init] = fit(make_head(), (tokens, labels), embeddings, None, config)[0]["loss"]
    assert losses[True] < 0.5 < losses[False]


def test_a_resumed_training_is_not_begun_again(embeddings, tokens, labels, tmp_path):
    config = TrainConfig(
        epochs=2, batch_size=16, lr=1e-3, loss="bce", schedule="cosine", selection="last", prior_init=True
    )
    whole = make_head()
    fit(whole, (tokens, labels), embeddings, None, config)
    run = RunOptions(tmp_path / "run").for_seed(0)
    first = make_head()
    fit(first, (tokens, labels), embeddings, None, config, run)
    again = make_head()
    history = fit(again, (tokens, labels), embeddings, None, config, run)  # finished: it is only read
    assert len(history) == 2
    for one, other in zip(whole.parameters(), again.parameters()):
        assert torch.equal(one, other)


def test_a_head_that_is_continued_is_not_begun_again(tmp_path):
    with pytest.raises(QKSError, match="--prior-init is for a new head"):
        RunSpec(tmp_path, RunOptions(tmp_path / "run"), init="pocket", train=TrainConfig(prior_init=True))


def test_cross_entropy_has_less_to_unlearn(embeddings, tokens, labels):
    head = make_head().eval()
    first = bce_loss(head(tokens, embeddings).logits, labels).item()
    start_at_prior(head, embeddings, prior_log_odds(Targets(labels)))
    frequency = (labels > 0).float().mean().item()
    entropy = -(frequency * math.log(frequency) + (1 - frequency) * math.log(1 - frequency))
    begun = bce_loss(head(tokens, embeddings).logits, labels).item()
    assert entropy < begun < first / 2


def test_the_recipe_of_qks_reproduce_uses_it():
    from qks.experiment.reproduction import ReproduceConfig

    recipe = ReproduceConfig().train
    assert recipe.prior_init and recipe.fused and not replace(recipe, prior_init=False).prior_init
