"""Texts cut to their length: equal to the uncut tower where it is causal, and left alone where it is not."""

import open_clip
import pytest
import torch

from qks.model.label_embeddings import sorted_features
from qks.model.prompts import DEFAULT_TEMPLATES, PromptPool
from qks.vlp.loading import load_vlp
from qks.vlp.text import encode_text, end_of_text_positions, is_causal

SMALL = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 1, "layers": 2}
VISION = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16}


def custom(**text):
    torch.manual_seed(0)
    return open_clip.CustomTextCLIP(32, open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**SMALL | text)).eval()


def plain(**text):
    torch.manual_seed(0)
    return open_clip.CLIP(32, open_clip.CLIPVisionCfg(**VISION), open_clip.CLIPTextCfg(**SMALL | text)).eval()


def ids(*lengths, end=99):
    "Random texts of so many tokens, the last of them the end token, in a context of 16."
    torch.manual_seed(1)
    rows = torch.zeros(len(lengths), 16, dtype=torch.long)
    for row, length in zip(rows, lengths):
        row[:length] = torch.randint(3, 90, (length,))
        row[length - 1] = end
    return rows


@pytest.fixture
def seen(monkeypatch):
    "How many tokens per text the transformer ran on, at each call."
    lengths = []
    original = open_clip.transformer.Transformer.forward

    def spy(self, x, *args, **kwargs):
        lengths.append(x.shape[1])
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(open_clip.transformer.Transformer, "forward", spy)
    return lengths


def check(model, token_ids, seen, tokens):
    with torch.no_grad():
        actual = encode_text(model, token_ids)
        expected = model.encode_text(token_ids)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert seen == [tokens, 16]


@pytest.mark.parametrize("make", [plain, custom])
@pytest.mark.parametrize("lengths", [(3,), (2, 5, 9), (16, 3), (1,)], ids=str)
def test_equals_the_uncut_tower(make, lengths, seen):
    check(make(), ids(*lengths), seen, max(lengths))


def test_an_end_token_by_its_number(seen):
    model = custom(pool_type="eos", eos_id=2)
    check(model, ids(4, 7, end=2), seen, 7)
    seen.clear()
    check(model, ids(4, 7), seen, 1)  # without the end token the tower takes the first place, cut or not


def test_a_projection_with_a_bias(seen):
    check(custom(proj_bias=True), ids(3, 6), seen, 6)


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True},
        {"pool_type": "last"},
        {"pool_type": "first"},
        {"embed_cls": True},
        {"no_causal_mask": True, "pool_type": "eos", "eos_id": 2},
    ],
    ids=str,
)
def test_other_towers_are_left_alone(text, seen):
    model = custom(**text)
    assert end_of_text_positions(model, ids(3)) is None
    with torch.no_grad():
        assert torch.equal(encode_text(model, ids(3, 5)), model.encode_text(ids(3, 5)))
    assert min(seen) >= 16


def test_a_tower_of_another_library_is_left_alone():
    class Foreign(torch.nn.Module):
        def encode_text(self, token_ids):
            return token_ids.float()

    assert end_of_text_positions(Foreign(), ids(3)) is None
    assert torch.equal(encode_text(Foreign(), ids(3)), ids(3).float())


def test_a_mask_that_looks_right_is_not_causal(seen):
    model = plain()
    model.attn_mask[0, 1] = 0
    check(model, ids(3, 6), seen, 16)


@pytest.mark.parametrize(
    "mask, causal",
    [
        (torch.full((4, 4), -torch.inf).triu_(1), True),
        (torch.zeros(1, 1), True),
        (None, False),
        (torch.zeros(4, 4), False),
        (torch.full((4, 4), -torch.inf).tril_(-1), False),
        (torch.full((4, 4), -1e4).triu_(1), False),
        (torch.full((4, 5), -torch.inf).triu_(1), False),
        (torch.full((1, 4, 4), -torch.inf).triu_(1), False),
    ],
)
def test_causal_masks(mask, causal):
    assert is_causal(mask) is causal


def test_equals_the_uncut_tower_of_the_papers_size():
    "ViT-B/16's text tower, random weights: short and long texts, a full context, and scribbles behind the end."
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16").eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    token_ids = tokenizer(["a cat", "a photo of a very tall ship with three masts.", "cat " * 90])
    assert end_of_text_positions(model, token_ids).tolist() == [3, 13, 76]
    for rows in (token_ids[:1], token_ids[:2], token_ids):
        with torch.no_grad():
            actual = encode_text(model, rows)
            expected = model.encode_text(rows)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    scribbled = token_ids[:2].clone()
    scribbled[:, 14:] = 320  # "a": numbers below that of the end token
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_text(scribbled), encode_text(model, token_ids[:2]), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("make", ["pocket", "ViT-B-32", "tiny"])
def test_the_pool_equals_the_uncut_way(make, tiny_vlp):
    torch.manual_seed(0)
    pretrained = None if make == "pocket" else False  # False: random weights
    vlp = tiny_vlp if make == "tiny" else load_vlp(make, pretrained)
    labels = ["cat", "a very tall ship with three masts", "x"] if make != "tiny" else ["cat", "red ship"]
    pool = PromptPool(DEFAULT_TEMPLATES[::17] if make == "ViT-B-32" else DEFAULT_TEMPLATES)
    actual = pool.embed(vlp, labels, batch_size=32, cache=False)
    with torch.no_grad():
        expected = torch.stack([vlp.model.encode_text(vlp.tokenizer(pool.prompts(label))).mean(0) for label in labels])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_batches_hold_sentences_of_one_length(tiny_vlp, monkeypatch):
    from qks.vlp.frozen import VLP

    batches = []
    original = VLP.text_features

    def spy(self, token_ids):
        batches.append(token_ids.argmax(-1).tolist())
        return original(self, token_ids)

    monkeypatch.setattr(VLP, "text_features", spy)
    sentences = ["cat " * n + tail for tail in ("a", "b", "c", "d") for n in (1, 5, 9, 3)]
    features = sorted_features(tiny_vlp, sentences, batch_size=4)
    assert len(batches) == 4 and all(len(set(batch)) == 1 for batch in batches)
    torch.testing.assert_close(features, torch.cat([original(tiny_vlp, [s]) for s in sentences]), rtol=1e-5, atol=1e-5)


def test_the_sentences_of_a_label_are_embedded_in_parts(tiny_vlp, monkeypatch):
    labels = [f"thing {i}" for i in range(11)]
    pool = PromptPool(("a {}.", "the {} in the scene.", "{}"))
    whole = pool.embed(tiny_vlp, labels, cache=False)
    for at_once in (1, 2):
        monkeypatch.setattr("qks.model.label_embeddings.SENTENCES_AT_ONCE_CPU", at_once)
        torch.testing.assert_close(pool.embed(tiny_vlp, labels, cache=False), whole, rtol=1e-5, atol=1e-5)
