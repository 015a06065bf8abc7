"""The prompt pool, its mean, and the cache of label embeddings, which is never wrong and never an obstacle."""

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from qks.core import QKSError
from qks.model.prompts import DEFAULT_TEMPLATES, SCENE_TEMPLATES, PromptPool
from qks.vlp.frozen import VLP


@pytest.fixture
def pool():
    return PromptPool(("a {}.", "the {} in the scene."))


@pytest.fixture
def calls(monkeypatch):
    "How many times the text tower ran."
    counted = []
    original = VLP.text_features

    def spy(self, texts):
        counted.append(texts)
        return original(self, texts)

    monkeypatch.setattr(VLP, "text_features", spy)
    return counted


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- templates


def test_the_papers_pool():
    assert len(DEFAULT_TEMPLATES) == len(set(DEFAULT_TEMPLATES)) == 85
    assert DEFAULT_TEMPLATES[:80] == tuple(t("{}") for t in open_clip.OPENAI_IMAGENET_TEMPLATES)
    scene_templates = (
        "there is a {} in the scene.",
        "there is the {} in the scene.",
        "this is a {} in the scene.",
        "this is the {} in the scene.",
        "this is one {} in the scene.",
    )
    assert DEFAULT_TEMPLATES[80:] == SCENE_TEMPLATES == scene_templates
    assert PromptPool().templates == DEFAULT_TEMPLATES


def test_prompts_keep_the_spelling_of_a_label(pool):
    assert pool.prompts("Sea-Lion {0}") == ["a Sea-Lion {0}.", "the Sea-Lion {0} in the scene."]
    assert PromptPool.single("x {} y").prompts("{}") == ["x {} y"]


def test_a_single_template():
    assert PromptPool.single("a {}").templates == PromptPool("a {}").templates == ("a {}",)


@pytest.mark.parametrize(
    "templates", [["a photo"], ["a {}", "b"], ["{} {}"], [""], [3], [lambda label: label], "no place", [None]], ids=repr
)
def test_templates_without_a_place_for_the_label(templates):
    with pytest.raises(QKSError, match=r"exactly one \{\}"):
        PromptPool(templates)


@pytest.mark.parametrize("templates", [[], ()])
def test_an_empty_pool(templates):
    with pytest.raises(QKSError, match="pool is empty"):
        PromptPool(templates)


# ---- embedding


def test_embedding_is_the_mean_of_unnormalised_features(tiny_vlp, pool):
    embeddings = pool.embed(tiny_vlp, ["cat", "dog"], cache=False)
    features = torch.stack([tiny_vlp.text_features(pool.prompts(label)) for label in ("cat", "dog")])  # [C, P, E]
    torch.testing.assert_close(embeddings, features.mean(1))
    normalised = torch.nn.functional.normalize(features, dim=-1).mean(1)
    assert (embeddings - normalised).abs().max() > 1e-2
    assert (embeddings.norm(dim=1) - 1).abs().min() > 1e-2  # nor is the mean normalised afterwards


def test_one_template_is_that_text(tiny_vlp):
    embedding = PromptPool.single("a {}").embed(tiny_vlp, ["cat"], cache=False)
    torch.testing.assert_close(embedding, tiny_vlp.text_features("a cat"))
    assert embedding.shape == (1, 32) and embedding.dtype == torch.float32 and embedding.device.type == "cpu"


@pytest.mark.parametrize("batch_size", [1, 3, 4, 256])
def test_batch_size_does_not_matter(tiny_vlp, pool, batch_size):
    labels = ["cat", "dog", "bridge"]
    expected = pool.embed(tiny_vlp, labels, cache=False)
    torch.testing.assert_close(pool.embed(tiny_vlp, labels, batch_size, cache=False), expected, rtol=1e-5, atol=1e-5)


def test_bad_labels(tiny_vlp, pool):
    for labels in ([], ["cat", "cat"], "cat", [3], [" "]):
        with pytest.raises(QKSError):
            pool.embed(tiny_vlp, labels)
    with pytest.raises(QKSError, match="shorten the label"):
        pool.embed(tiny_vlp, ["cat " * 30])


# ---- cache


def test_a_hit_does_not_call_the_text_tower(tiny_vlp, pool, calls, tmp_path):
    first = pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path)
    assert len(calls) == 1 and len(files(tmp_path)) == 1 and files(tmp_path)[0].endswith(".safetensors")
    assert torch.equal(pool.embed(tiny_vlp, ["cat", "dog"], cache=str(tmp_path)), first) and len(calls) == 1
    same_pool = PromptPool(list(pool.templates))
    assert torch.equal(same_pool.embed(tiny_vlp, ("cat", "dog"), cache=tmp_path), first) and len(calls) == 1


def test_no_cache(tiny_vlp, pool, calls, tmp_path, monkeypatch):
    monkeypatch.setenv("QKS_CACHE", str(tmp_path))
    for _ in range(2):
        pool.embed(tiny_vlp, ["cat"], cache=False)
    assert len(calls) == 2 and not files(tmp_path)


def test_the_environment_names_the_folder(tiny_vlp, pool, tmp_path, monkeypatch):
    monkeypatch.setenv("QKS_CACHE", str(tmp_path / "new" / "folder"))
    pool.embed(tiny_vlp, ["cat"])
    assert len(files(tmp_path / "new" / "folder")) == 1


def test_the_home_folder_is_the_default(tiny_vlp, pool, tmp_path, monkeypatch):
    monkeypatch.delenv("QKS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    pool.embed(tiny_vlp, ["cat"])
    assert len(files(tmp_path / ".cache" / "qks")) == 1


@pytest.mark.parametrize(
    "other", ["order", "labels", "templates", "template order", "weights", "activation", "precision"]
)
def test_the_key_depends_on(make_vlp, tiny_vlp, pool, calls, tmp_path, other):
    pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path)
    vlp = tiny_vlp
    labels = ["cat", "dog"]
    templates = pool.templates
    if other == "order":
        labels = ["dog", "cat"]
    if other == "labels":
        labels = ["cat", "dog "]
    if other == "templates":
        templates = ("a {}.",)
    if other == "template order":
        templates = templates[::-1]
    if other == "weights":
        vlp = make_vlp(seed=1)
    if other == "activation":
        vlp = make_vlp(quick_gelu=False)
    if other == "precision":
        vlp = make_vlp(precision="bf16")
    fresh = PromptPool(templates).embed(vlp, labels, cache=False)
    assert torch.equal(PromptPool(templates).embed(vlp, labels, cache=tmp_path), fresh)
    assert len(calls) == 3 and len(files(tmp_path)) == 2


def test_another_tokenizer_is_another_key(tiny_vlp, make_vlp, pool, tmp_path):
    "The same weights, with a tokenizer that reads words differently."
    other = make_vlp()
    read = tiny_vlp.tokenizer

    class Capitals:
        context_length = read.context_length

        def __call__(self, texts, **options):
            return read([text.replace("a", "b") for text in texts], **options)

    first = pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path)
    other.tokenizer = Capitals()
    assert not torch.equal(pool.embed(other, ["cat", "dog"], cache=tmp_path), first) and len(files(tmp_path)) == 2


def test_swapped_labels_swap_rows(tiny_vlp, pool, tmp_path):
    straight = pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path)
    swapped = pool.embed(tiny_vlp, ["dog", "cat"], cache=tmp_path)
    torch.testing.assert_close(swapped, straight.flip(0))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage"),
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
    ],
    ids=["empty", "garbage", "truncated", "header"],
)
def test_a_damaged_cache_is_computed_again_and_replaced(tiny_vlp, pool, calls, tmp_path, damage):
    first = pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path)
    damage(next(tmp_path.iterdir()))
    for _ in range(2):
        assert torch.equal(pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path), first)
    assert len(calls) == 2  # the first time, and once after the damage


def test_a_cache_of_another_shape_is_not_used(tiny_vlp, pool, tmp_path):
    first = pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path)
    path = next(tmp_path.iterdir())
    for wrong in ({"embeddings": torch.zeros(3, 32)}, {"other": torch.zeros(2, 32)}):
        save_file(wrong, path)
        assert torch.equal(pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path), first)


def test_a_cache_folder_that_cannot_be_made(tiny_vlp, pool, tmp_path):
    (tmp_path / "file").touch()
    expected = pool.embed(tiny_vlp, ["cat"], cache=False)
    assert torch.equal(pool.embed(tiny_vlp, ["cat"], cache=tmp_path / "file" / "cache"), expected)
    assert torch.equal(pool.embed(tiny_vlp, ["cat"], cache=tmp_path / "file"), expected)


def test_a_cache_folder_that_cannot_be_written(tiny_vlp, pool, tmp_path, monkeypatch):
    "A folder that exists but refuses files: safetensors then raises an error of its own, which is no OSError."
    expected = pool.embed(tiny_vlp, ["cat"], cache=False)
    # the folder "exists", but nothing can be put there
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: None)
    assert torch.equal(pool.embed(tiny_vlp, ["cat"], cache=tmp_path / "gone"), expected)


def test_no_half_written_file_stays(tiny_vlp, pool, tmp_path):
    pool.embed(tiny_vlp, ["cat"], cache=tmp_path)
    assert [name for name in files(tmp_path) if not name.endswith(".safetensors")] == []


@pytest.mark.parametrize("templates", [None, 3, {"a {}": 1}, iter(["a {}"])], ids=lambda value: type(value).__name__)
def test_templates_must_be_a_list(templates):
    with pytest.raises(QKSError, match="templates must be a list"):
        PromptPool(templates)


@pytest.mark.parametrize("batch_size", [0, -3, 2.5])
def test_bad_batch_size(pool, batch_size):
    with pytest.raises(QKSError, match="batch_size is"):
        pool.embed(None, ["cat"], batch_size=batch_size)
