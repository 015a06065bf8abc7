"""The prompt pool, its mean, and the cache of label embeddings, which is never wrong and never an obstacle."""

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from qks.core import QKSError
from qks.model.label_embeddings import LabelCache
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


def count_rows(folder):
    with closing(sqlite3.connect(folder / "labels.sqlite")) as database:
        return database.execute("SELECT COUNT(*) FROM embeddings").fetchone()[0]


def change_numbers(path, change="embedding = zeroblob(length(embedding))"):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"UPDATE embeddings SET {change}")


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
    assert len(calls) == 2 and files(tmp_path) == ["labels.sqlite"]
    assert torch.equal(pool.embed(tiny_vlp, ["cat", "dog"], cache=str(tmp_path)), first) and len(calls) == 2
    same_pool = PromptPool(list(pool.templates))
    assert torch.equal(same_pool.embed(tiny_vlp, ("cat", "dog"), cache=tmp_path), first) and len(calls) == 2


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


@pytest.mark.parametrize("other", ["labels", "templates", "template order", "weights", "activation", "precision"])
def test_the_key_depends_on(make_vlp, tiny_vlp, pool, calls, tmp_path, other):
    pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path)
    vlp = tiny_vlp
    labels = ["cat", "dog"]
    templates = pool.templates
    if other == "labels":
        labels = ["cats", "dog "]
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
    assert len(calls) == 6 and count_rows(tmp_path) == 4


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
    assert not torch.equal(pool.embed(other, ["cat", "dog"], cache=tmp_path), first) and count_rows(tmp_path) == 4


def test_swapped_labels_swap_rows_and_nothing_is_computed(tiny_vlp, pool, calls, tmp_path):
    straight = pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path)
    calls.clear()
    assert torch.equal(pool.embed(tiny_vlp, ["dog", "cat"], cache=tmp_path), straight.flip(0)) and calls == []


def test_only_new_labels_are_embedded(tiny_vlp, pool, calls, tmp_path):
    "Three lists that share labels: one row per label, in one file, with the numbers of a list alone."
    lists = (["cat", "dog", "bridge"], ["bridge", "cat", "bus"], ["tree", "dog", "bus"])
    for labels in lists:
        alone = pool.embed(tiny_vlp, labels, cache=False)
        assert torch.equal(pool.embed(tiny_vlp, labels, cache=tmp_path), alone)
    assert len(calls) == 9 + 5 and count_rows(tmp_path) == 5 and files(tmp_path) == ["labels.sqlite"]


def test_a_label_has_the_same_embedding_in_any_list(tiny_vlp, pool):
    many = [f"thing number {index}" * (index % 3 + 1) for index in range(20)]
    whole = pool.embed(tiny_vlp, ["cat", *many], cache=False)
    assert torch.equal(pool.embed(tiny_vlp, ["cat"], cache=False)[0], whole[0])
    assert torch.equal(pool.embed(tiny_vlp, many[::-1], cache=False).flip(0), whole[1:])


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_embedded_before_an_interruption_stays(tiny_vlp, pool, calls, tmp_path, monkeypatch, error):
    labels = [f"label {index}" for index in range(9)]
    tower = tiny_vlp.text_features

    def fails_at_the_sixth(ids):
        if len(calls) == 5:
            raise error
        return tower(ids)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_vlp, "text_features", fails_at_the_sixth)
        with pytest.raises(error):
            pool.embed(tiny_vlp, labels, cache=tmp_path)
    assert count_rows(tmp_path) == 5
    pool.embed(tiny_vlp, labels, cache=tmp_path)
    assert len(calls) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_killed_process_keeps_what_it_wrote(tiny_vlp, pool, calls, tmp_path, monkeypatch):
    monkeypatch.setattr("qks.model.label_embeddings.SECONDS_BETWEEN_WRITES", -1)
    labels = [f"label {index}" for index in range(9)]
    tower = tiny_vlp.text_features

    def dies_at_the_sixth(ids):
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return tower(ids)

    child = os.fork()
    if child == 0:
        tiny_vlp.text_features = dies_at_the_sixth
        pool.embed(tiny_vlp, labels, cache=tmp_path)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert count_rows(tmp_path) == 5
    expected = pool.embed(tiny_vlp, labels, cache=False)
    assert torch.equal(pool.embed(tiny_vlp, labels, cache=tmp_path), expected)


def test_several_processes_share_the_cache(tiny_vlp, pool, tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    lists = [[f"label {index}" for index in range(start, start + 12)] for start in (0, 4, 8, 12)]
    children = []
    for labels in lists:
        child = os.fork()
        if child == 0:
            same = False
            try:
                same = torch.equal(
                    pool.embed(tiny_vlp, labels, cache=tmp_path), pool.embed(tiny_vlp, labels, cache=False)
                )
            finally:
                os._exit(0 if same else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert count_rows(tmp_path) == 24


def test_the_size_is_bounded_and_recent_labels_stay(tmp_path):
    store = LabelCache(tmp_path, max_bytes=100_000)
    keys = [index.to_bytes(16, "big") for index in range(2000)]
    for start in range(0, 2000, 50):
        store.write({key: torch.full((16,), float(start)) for key in keys[start : start + 50]})
    assert store.path.stat().st_size < 200_000
    found = store.read(keys, 16)
    assert 200 < len(found) < 1100 and set(keys[-50:]) <= set(found)
    assert all(torch.equal(found[key], torch.full((16,), 1950.0)) for key in keys[-50:])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:-4096]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"SQLite", b"NoLite")),
        lambda path: change_numbers(path),
        lambda path: change_numbers(path, "embedding = x'00'"),
    ],
    ids=["empty", "garbage", "truncated", "header", "other", "numbers", "short"],
)
def test_a_damaged_cache_is_computed_again_and_replaced(tiny_vlp, pool, calls, tmp_path, damage):
    first = pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path)
    damage(tmp_path / "labels.sqlite")
    for _ in range(3):
        assert torch.equal(pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path), first)
    assert len(calls) == 4  # the first time, and once after the damage


def test_files_of_older_versions_are_not_read(tiny_vlp, pool, tmp_path):
    save_file({"embeddings": torch.zeros(2, 32)}, tmp_path / "labels-0123456789abcdef01234567.safetensors")
    assert pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path).any()


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_is_read(tiny_vlp, pool, calls, tmp_path):
    first = pool.embed(tiny_vlp, ["cat"], cache=tmp_path)
    (tmp_path / "labels.sqlite").chmod(0o400)
    tmp_path.chmod(0o500)
    assert torch.equal(pool.embed(tiny_vlp, ["cat", "dog"], cache=tmp_path)[:1], first) and len(calls) == 2


def test_a_locked_cache_costs_computing(tiny_vlp, pool, tmp_path, monkeypatch):
    monkeypatch.setattr("qks.model.label_embeddings._LOCK_SECONDS", 0.05)
    first = pool.embed(tiny_vlp, ["cat"], cache=tmp_path)
    with closing(sqlite3.connect(tmp_path / "labels.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert torch.equal(pool.embed(tiny_vlp, ["cat"], cache=tmp_path), first)


def test_a_label_that_is_too_long_is_named_before_any_is_embedded(tiny_vlp, pool, calls):
    with pytest.raises(QKSError, match="shorten the label"):
        pool.embed(tiny_vlp, ["cat", "dog", "cat " * 30], cache=False)
    assert calls == []


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


def test_no_other_file_stays(tiny_vlp, pool, tmp_path):
    pool.embed(tiny_vlp, ["cat"], cache=tmp_path)
    assert files(tmp_path) == ["labels.sqlite"]


@pytest.mark.parametrize("templates", [None, 3, {"a {}": 1}, iter(["a {}"])], ids=lambda value: type(value).__name__)
def test_templates_must_be_a_list(templates):
    with pytest.raises(QKSError, match="templates must be a list"):
        PromptPool(templates)


@pytest.mark.parametrize("batch_size", [0, -3, 2.5])
def test_bad_batch_size(pool, batch_size):
    with pytest.raises(QKSError, match="batch_size is"):
        pool.embed(None, ["cat"], batch_size=batch_size)
