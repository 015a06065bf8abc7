"""The extraction network against torch's own attention, its symmetries, and where its gradients go."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qks.core import QKSError
from qks.model.query import Attention, ExtractionBlock, QueryExtractor


@pytest.fixture
def image_tokens():
    torch.manual_seed(0)
    return torch.randn(2, 9, 64)  # [B, N, D]


@pytest.fixture
def extractor():
    torch.manual_seed(1)
    return QueryExtractor(64, n_queries=5, n_layers=2, n_heads=4).eval()


@pytest.mark.parametrize("context_width", [64, 48])
def test_attention_equals_torch(context_width):
    torch.manual_seed(0)
    ours = Attention(64, context_width, 4, 0.0)
    theirs = nn.MultiheadAttention(64, 4, kdim=context_width, vdim=context_width, batch_first=True)
    with torch.no_grad():
        parts = ours.query, ours.key, ours.value
        if context_width == 64:
            theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        else:
            for name, part in zip("qkv", parts):
                getattr(theirs, f"{name}_proj_weight").copy_(part.weight)
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.out_proj = ours.output
    queries = torch.randn(2, 5, 64)
    context = torch.randn(2, 9, context_width)
    expected, weights = theirs(queries, context, context, average_attn_weights=False)
    result, attention = ours(queries, context)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attention, weights, rtol=1e-5, atol=1e-7)


def test_a_block_is_post_norm_in_the_order_self_cross_feed_forward(image_tokens):
    torch.manual_seed(0)
    block = ExtractionBlock(64, 64, 4, 128, 0.0)
    x = torch.randn(2, 5, 64)
    y = block.self_norm(x + block.self_attention(x, x)[0])
    y = block.cross_norm(y + block.cross_attention(y, image_tokens)[0])
    y = block.ffn_norm(y + block.contract(F.gelu(block.expand(y))))  # exact GELU
    torch.testing.assert_close(block(x, image_tokens)[0], y)


class Doubling(nn.Module):
    "In the place of a dropout: it shows in the result what passed through."

    def forward(self, x):
        return 2 * x


def test_dropout_acts_on_attention_weights_but_not_on_the_returned_map(image_tokens):
    torch.manual_seed(0)
    attention = Attention(64, 64, 4, 0.0)
    queries = torch.randn(2, 5, 64)
    result, weights = attention(queries, image_tokens)
    attention.dropout = Doubling()
    doubled, same_weights = attention(queries, image_tokens)
    bias = attention.output.bias
    torch.testing.assert_close(doubled - bias, 2 * (result - bias), rtol=1e-5, atol=1e-6)
    assert torch.equal(same_weights, weights)


def test_dropout_acts_on_every_update_of_a_block(image_tokens):
    torch.manual_seed(0)
    block = ExtractionBlock(64, 64, 4, 128, 0.0)
    block.dropout = Doubling()
    x = torch.randn(2, 5, 64)
    y = block.self_norm(x + 2 * block.self_attention(x, x)[0])
    y = block.cross_norm(y + 2 * block.cross_attention(y, image_tokens)[0])
    y = block.ffn_norm(y + 2 * block.contract(F.gelu(block.expand(y))))
    torch.testing.assert_close(block(x, image_tokens)[0], y)


@pytest.mark.parametrize("width, heads, ffn", [(64, 1, 256), (192, 3, 768), (32, 1, 128)])
def test_default_sizes(width, heads, ffn):
    block = QueryExtractor(width, n_layers=1).blocks[0]
    assert block.self_attention.n_heads == block.cross_attention.n_heads == heads
    assert block.expand.out_features == block.contract.in_features == ffn


def test_paper_defaults():
    extractor = QueryExtractor(64)
    assert extractor.query_tokens.shape == (1, 12, 64) and len(extractor.blocks) == 7
    assert {module.p for module in extractor.modules() if isinstance(module, nn.Dropout)} == {0.1}
    assert {module.eps for module in extractor.modules() if isinstance(module, nn.LayerNorm)} == {1e-12}


def test_initial_weights():
    torch.manual_seed(0)
    extractor = QueryExtractor(256, n_queries=64, n_layers=1)
    assert extractor.query_tokens.std().item() == pytest.approx(0.02, rel=0.05)
    for module in extractor.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any()


def test_shapes(extractor, image_tokens):
    out, attention = extractor(image_tokens, return_attention=True)
    assert out.shape == (2, 5, 64)
    assert [a.shape for a in attention] == [(2, 4, 5, 9)] * 2
    for weights in attention:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    assert torch.equal(extractor(image_tokens), out)


def test_image_tokens_of_another_width():
    torch.manual_seed(0)
    extractor = QueryExtractor(64, n_queries=3, n_layers=1, context_width=40)
    assert extractor(torch.randn(2, 9, 40)).shape == (2, 3, 64)
    with pytest.raises(QKSError, match="40"):
        extractor(torch.randn(2, 9, 64))


def test_no_block_leaves_the_normalised_queries(image_tokens):
    extractor = QueryExtractor(64, n_queries=3, n_layers=0).eval()
    expected = F.layer_norm(extractor.query_tokens, (64,), eps=1e-12).expand(2, -1, -1)
    torch.testing.assert_close(extractor(image_tokens), expected)


def test_order_of_image_tokens_does_not_matter(extractor, image_tokens):
    order = torch.randperm(9)
    out, attention = extractor(image_tokens, return_attention=True)
    shuffled, attention_shuffled = extractor(image_tokens[:, order], return_attention=True)
    torch.testing.assert_close(shuffled, out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(attention_shuffled[1], attention[1][..., order], rtol=1e-5, atol=1e-6)


def test_images_do_not_mix(extractor, image_tokens):
    torch.testing.assert_close(extractor(image_tokens)[1:], extractor(image_tokens[1:]), rtol=1e-5, atol=1e-5)


def test_dropout_only_in_training(extractor, image_tokens):
    assert torch.equal(extractor(image_tokens), extractor(image_tokens))
    extractor.train()
    assert not torch.equal(extractor(image_tokens), extractor(image_tokens))
    extractor = QueryExtractor(64, n_queries=5, n_layers=2, dropout=0.0).train()
    assert torch.equal(extractor(image_tokens), extractor(image_tokens))


def test_gradients_reach_every_weight_and_not_the_image(extractor, image_tokens):
    (extractor(image_tokens) ** 3).sum().backward()  # cubed: the sum of a layer norm's output is constant
    assert all(weight.grad is not None for weight in extractor.parameters())
    still = {name for name, weight in extractor.named_parameters() if weight.grad.abs().max() < 1e-9}
    assert not {name for name in still if not name.endswith("key.bias")}  # softmax ignores a shift of all keys
    assert image_tokens.grad is None


@pytest.mark.parametrize("shape", [(9, 64), (2, 9, 63), (2, 3, 9, 64)])
def test_shapes_that_do_not_fit(extractor, shape):
    with pytest.raises(QKSError, match=r"expected \[B, N, 64\]"):
        extractor(torch.zeros(shape))


def test_width_must_divide_into_heads():
    with pytest.raises(QKSError, match="64 cannot be cut into 5 heads"):
        QueryExtractor(64, n_heads=5)
