"""Sharing: every label takes its best token, by an inner product in which magnitude counts."""

import pytest
import torch

from qks.core import QKSError
from qks.model import many_labels
from qks.model.many_labels import best_token, share_in_parts
from qks.model.sharing import share


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return torch.randn(4, 5, 8), torch.randn(7, 8)  # [B, K, E], [C, E]


def test_by_hand():
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # [1, 2, 2]
    labels = torch.tensor([[3.0, 1.0], [1.0, 3.0], [-1.0, -1.0]])  # [3, 2]
    scores = share(tokens, labels)
    assert scores.logits.tolist() == [[3.0, 6.0, -1.0]]
    assert scores.token_index.tolist() == [[0, 1, 0]]


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


@pytest.mark.parametrize("factors", [(2, 1), (1, 2)], ids=["tokens", "labels"])
def test_magnitude_takes_part(tensors, factors):
    tokens, labels = tensors
    scaled = share(factors[0] * tokens, factors[1] * labels).logits
    torch.testing.assert_close(scaled, 2 * share(tokens, labels).logits)


def test_a_longer_token_wins():
    direction = torch.tensor([[1.0, 0.0]])
    short_first = torch.tensor([[[1.0, 0.0], [3.0, 9.0]]])  # the second is at a larger angle, but longer
    assert share(short_first, direction).token_index.item() == 1


def test_other_labels_do_not_matter(tensors):
    tokens, labels = tensors
    together = share(tokens, labels)
    alone = share(tokens, labels[2:3])
    torch.testing.assert_close(alone.logits, together.logits[:, 2:3])
    assert torch.equal(alone.token_index, together.token_index[:, 2:3])


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


# ---- many labels, in parts


@pytest.mark.parametrize("max_scores", [1, 19, 20, 21, 59, 140, None])
def test_parts_equal_the_readable_form(tensors, max_scores):
    tokens = tensors[0].requires_grad_()
    labels = tensors[1].requires_grad_()
    logits, index = share_in_parts(tokens, labels, max_scores)
    expected = share(tokens, labels)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-6, atol=1e-6)
    assert torch.equal(index, expected.token_index)
    gradients = torch.autograd.grad(logits.pow(3).sum(), [tokens, labels])
    expected_gradients = torch.autograd.grad(expected.logits.pow(3).sum(), [tokens, labels])
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        logits, index = share_in_parts(tokens, labels, max_scores)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-6, atol=1e-6)
    assert torch.equal(index, expected.token_index)


@pytest.mark.parametrize("max_scores", [1, 40, None])
def test_of_equal_tokens_the_first_is_taken(max_scores):
    torch.manual_seed(0)
    tokens = torch.randint(-2, 3, (4, 6, 3)).float()
    labels = torch.randint(-2, 3, (50, 3)).float()  # whole numbers: many ties
    tokens[:, 5] = tokens[:, 2]
    scores = tokens @ labels.T  # [B, K, C]
    first = (scores == scores.amax(1, keepdim=True)).int().argmax(1)  # [B, C]
    for logits, index in (share(tokens, labels), share_in_parts(tokens, labels, max_scores)):
        assert torch.equal(logits, scores.amax(1)) and torch.equal(index, first) and (index != 5).all()


def spy_on_scores(monkeypatch):
    "A list that receives the number of scores of each part."
    sizes = []

    def spy(scores):
        sizes.append(scores.numel())
        return best_token(scores)

    monkeypatch.setattr(many_labels, "best_token", spy)
    return sizes


def test_never_more_scores_than_allowed(tensors, monkeypatch):
    sizes = spy_on_scores(monkeypatch)
    share_in_parts(*tensors, max_scores=45)
    assert sizes == [40, 40, 40, 20]
    sizes.clear()
    share_in_parts(*tensors)
    assert sizes == [4 * 5 * 7]  # few labels: one part


def test_only_many_labels_are_shared_in_parts(tensors, monkeypatch):
    sizes = spy_on_scores(monkeypatch)
    share(*tensors)
    assert sizes == []
    tokens = torch.randn(4, 12, 8)
    labels = torch.randn(100_000, 8)
    scores = share(tokens, labels)  # 4.8 million scores
    assert len(sizes) == 2 and max(sizes) <= many_labels.MAX_SCORES and sum(sizes) == 4 * 12 * 100_000
    expected = (tokens @ labels.T).max(dim=1)
    torch.testing.assert_close(scores.logits, expected.values)
    assert torch.equal(scores.token_index, expected.indices)


@pytest.mark.parametrize("n_images, n_labels", [(0, 7), (4, 0), (0, 0)])
def test_nothing_to_share(n_images, n_labels):
    tokens = torch.zeros(n_images, 5, 8)
    labels = torch.zeros(n_labels, 8)
    for logits, index in (share(tokens, labels), share_in_parts(tokens, labels, max_scores=3)):
        assert logits.shape == index.shape == (n_images, n_labels)


@pytest.mark.parametrize("shape", [(2, 12, 50_000), (1, 1, 2_000_000), (3, 300, 1200)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_scores_are_compared_token_by_token_with_the_same_answer(shape, dtype, monkeypatch):
    torch.manual_seed(0)
    scores = torch.randn(shape).mul(4).round().to(dtype)  # many ties
    expected = scores.max(dim=1)
    monkeypatch.setattr(torch.Tensor, "max", None)  # a call would fail
    logits, index = best_token(scores)
    assert torch.equal(logits, expected.values) and torch.equal(index, expected.indices)
    assert (logits.dtype, index.dtype) == (dtype, torch.int64)


def test_few_scores_and_those_with_gradients_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(torch, "gt", None)  # a call would fail
    best_token(torch.randn(2, 3, 4))
    best_token(torch.randn(2, 12, 50_000, requires_grad=True))[0].sum().backward()


@pytest.mark.parametrize("places", [[0], [3], [11], [2, 7], [0, 11]], ids=str)
def test_a_nan_keeps_its_place(places):
    "As in torch's own call: the first token that has one, with infinities about, in one part or many."
    scores = torch.randn(2, 12, 50_000, generator=torch.Generator().manual_seed(0))
    scores[1, 5, 7] = float("inf")
    scores[:, 4, 9] = -float("inf")
    for place in places:
        scores[1, place, 7] = float("nan")
    expected = scores.max(dim=1)
    logits, index = best_token(scores)
    assert torch.equal(index, expected.indices) and index[1, 7] == places[0] and logits[1, 7].isnan()
    assert torch.equal(logits.nan_to_num(), expected.values.nan_to_num())


def test_a_nan_keeps_its_place_in_many_parts():
    tokens = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.randn(100_000, 8, generator=torch.Generator().manual_seed(1))
    tokens[1, 3] = float("nan")
    for logits, index in (share(tokens, labels), share_in_parts(tokens, labels, 2**21)):
        assert (index[1] == 3).all() and logits[1].isnan().all() and not logits[0].isnan().any()
