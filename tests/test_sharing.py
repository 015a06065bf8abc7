"""Sharing: every label takes its best token, by an inner product in which magnitude counts."""

import pytest
import torch

from qks.core import QKSError
from qks.model import sharing
from qks.model.sharing import share


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return torch.randn(4, 5, 8), torch.randn(7, 8)  # [B, K, E], [C, E]


def test_by_hand():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # [1, 2, 2]
    labels = torch.tensor([[3.0, 1.0], [1.0, 3.0], [-1.0, -1.0]])  # [3, 2]
    logits, index = share(tokens, labels)
    assert logits.tolist() == [[3.0, 6.0, -1.0]]
    assert index.tolist() == [[0, 1, 0]]


def test_equals_a_loop(tensors):
    tokens, labels = tensors
    logits, index = share(tokens, labels)
    for b in range(4):
        for c in range(7):
            scores = [float(tokens[b, k] @ labels[c]) for k in range(5)]
            assert logits[b, c].item() == pytest.approx(max(scores), rel=1e-5)
            assert index[b, c].item() == scores.index(max(scores))


def test_one_token_is_a_linear_classifier(tensors):
    tokens, labels = tensors
    logits, index = share(tokens[:, :1], labels)
    torch.testing.assert_close(logits, tokens[:, 0] @ labels.T)
    assert (index == 0).all()


@pytest.mark.parametrize("side", ["tokens", "labels"])
def test_magnitude_takes_part(tensors, side):
    tokens, labels = tensors
    doubled = share(*(2 * t if name == side else t for name, t in zip(("tokens", "labels"), tensors)))[0]
    torch.testing.assert_close(doubled, 2 * share(tokens, labels)[0])


def test_a_louder_token_wins():
    direction = torch.tensor([[1.0, 0.0]])
    quiet_first = torch.tensor([[[1.0, 0.0], [3.0, 9.0]]])  # the second is further off, but longer
    assert share(quiet_first, direction)[1].item() == 1


def test_other_labels_do_not_matter(tensors):
    tokens, labels = tensors
    all_of_them, index = share(tokens, labels)
    alone, index_alone = share(tokens, labels[2:3])
    torch.testing.assert_close(alone, all_of_them[:, 2:3])
    assert torch.equal(index_alone, index[:, 2:3])


def test_gradient_reaches_only_the_chosen_token(tensors):
    tokens = tensors[0].requires_grad_()
    labels = tensors[1]
    logits, index = share(tokens, labels)
    logits[:, 3].sum().backward()
    reached = tokens.grad.abs().sum(-1) > 0  # [B, K]
    assert torch.equal(reached, torch.nn.functional.one_hot(index[:, 3], 5).bool())


@pytest.mark.parametrize(
    "tokens, labels", [((4, 5, 8), (7, 9)), ((5, 8), (7, 8)), ((4, 5, 8), (8,)), ((1, 4, 5, 8), (7, 8))]
)
def test_shapes_that_do_not_fit(tokens, labels):
    with pytest.raises(QKSError, match=r"do not fit.*\[B, K, E\] and \[C, E\]"):
        share(torch.zeros(tokens), torch.zeros(labels))


# ---- in parts


def plain(tokens, labels):
    "All scores at once: [B, K, C] -> [B, C], [B, C]."
    return torch.max(tokens @ labels.T, dim=1)


@pytest.mark.parametrize("at_once", [1, 19, 20, 21, 59, 140, 2**24])
def test_parts_equal_the_whole(tensors, at_once):
    tokens = tensors[0].requires_grad_()
    labels = tensors[1].requires_grad_()
    found = share(tokens, labels, at_once)
    expected = plain(tokens, labels)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(found[1], expected[1])
    ours, theirs = (torch.autograd.grad(logits.pow(3).sum(), [tokens, labels]) for logits in (found[0], expected[0]))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 40, 2**24])
def test_of_equal_tokens_the_first_is_taken(at_once):
    torch.manual_seed(0)
    tokens = torch.randint(-2, 3, (4, 6, 3)).float()
    labels = torch.randint(-2, 3, (50, 3)).float()  # whole numbers: many ties
    tokens[:, 5] = tokens[:, 2]
    scores = tokens @ labels.T
    first = (scores == scores.amax(1, keepdim=True)).int().argmax(1)
    logits, index = share(tokens, labels, at_once)
    assert torch.equal(logits, scores.amax(1)) and torch.equal(index, first) and (index != 5).all()


def test_never_more_scores_than_allowed(tensors, monkeypatch):
    sizes = []
    original = torch.max
    monkeypatch.setattr(torch, "max", lambda x, dim: (sizes.append(x.numel()), original(x, dim=dim))[1])
    share(*tensors, at_once=45)
    assert sizes == [40, 40, 40, 20]
    sizes.clear()
    share(*tensors)
    assert sizes == [4 * 5 * 7]  # few labels: one part


@pytest.mark.parametrize("n_images, n_labels", [(0, 7), (4, 0), (0, 0)])
def test_nothing_to_share(n_images, n_labels):
    logits, index = share(torch.zeros(n_images, 5, 8), torch.zeros(n_labels, 8), at_once=3)
    assert logits.shape == index.shape == (n_images, n_labels)


@pytest.mark.parametrize("shape", [(2, 12, 50_000), (1, 1, 2_000_000), (3, 300, 1200)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_scores_are_compared_token_by_token_with_the_same_answer(shape, dtype, monkeypatch):
    torch.manual_seed(0)
    scores = torch.randn(shape).mul(4).round().to(dtype)  # many ties
    best, token = torch.max(scores, dim=1)
    monkeypatch.setattr(torch, "max", None)  # not asked
    found = sharing.best_token(scores)
    assert torch.equal(found[0], best) and torch.equal(found[1], token)
    assert (found[0].dtype, found[1].dtype) == (dtype, torch.int64)


def test_few_scores_and_those_with_gradients_are_torchs(monkeypatch):
    monkeypatch.setattr(sharing.torch, "gt", None)
    sharing.best_token(torch.randn(2, 3, 4))
    sharing.best_token(torch.randn(2, 12, 50_000, requires_grad=True))[0].sum().backward()
