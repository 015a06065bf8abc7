"""What is said before a download, and what to do without a connection; nothing here asks a network."""

import logging
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import open_clip
import pytest

from qks.core import QKSError
from qks.vlp import sources
from qks.vlp.loading import load_vlp
from qks.vlp.sources import WeightsSource, announce_download, exact_size, find_cached, offline_advice, weights_source


@pytest.fixture
def source():
    return WeightsSource("ViT-X", "mine", "me/vit-x", ("a.safetensors", "a.bin"), 1_500_000_000, None, "ViT-X")


def test_the_weights_of_the_paper():
    source = weights_source()
    assert (source.name, source.tag) == ("ViT-B-16", "openai")
    assert source.repository == "timm/vit_base_patch16_clip_224.openai"
    assert source.address == (
        "https://huggingface.co/timm/vit_base_patch16_clip_224.openai/resolve/main/open_clip_model.safetensors"
    )
    assert source.n_bytes == 4 * 149_620_737  # parameters of ViT-B/16, as open_clip's model profile lists them
    assert source.file_name == "ViT-B-16-quickgelu"  # OpenAI's weights in a file without its three numbers


def test_weights_that_need_no_other_name():
    assert weights_source("ViT-B-16", "laion2b_s34b_b88k").file_name == "ViT-B-16"
    assert weights_source("ViT-B-16-quickgelu", "openai").file_name == "ViT-B-16-quickgelu"


def test_every_tag_of_open_clip_has_a_source(monkeypatch):
    monkeypatch.setattr(sources, "weight_bytes", lambda name: None)
    for name, tag in open_clip.list_pretrained():
        source = weights_source(name, tag)
        assert source.repository.count("/") == 1 and all(source.files), (name, tag)


def test_no_such_weights():
    with pytest.raises(QKSError, match="no weights 'best' of 'ViT-B-16': its tags of that model are openai, "):
        weights_source("ViT-B-16", "best")
    with pytest.raises(QKSError, match="no weights 'openai' of 'ViT-Z'.*none"):
        weights_source("ViT-Z", "openai")


def test_a_file_in_the_hubs_cache_is_found(source, monkeypatch, caplog):
    here = {"a.bin": "/cache/a.bin"}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: here.get(file))
    assert find_cached(source.repository, source.files) == Path("/cache/a.bin")
    assert find_cached(source.repository, ("b.bin",)) is None
    announce_download(source._replace(path=Path("/cache/a.bin")))
    assert not caplog.text


def test_the_hub_tells_the_size_of_the_first_file_that_is_there(source, monkeypatch):
    def metadata(url, timeout):
        if url.endswith("a.safetensors"):
            raise OSError("404")
        return SimpleNamespace(size=700_000_000)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    assert exact_size(source) == 700_000_000


@pytest.mark.parametrize(
    "told, known, expected",
    [(700_000_000, 1_500_000_000, "700 MB"), (None, 1_500_000_000, "1.5 GB"), (None, None, "does not tell")],
)
def test_the_size_is_said_before_a_download(source, monkeypatch, caplog, told, known, expected):
    monkeypatch.setattr(sources, "exact_size", lambda source: told)
    with caplog.at_level(logging.WARNING, "qks"):
        announce_download(source._replace(n_bytes=known))
    assert expected in caplog.text and "me/vit-x" in caplog.text and "ViT-X (mine)" in caplog.text


def test_what_to_bring_where(source):
    advice = offline_advice(source._replace(file_name="ViT-X-quickgelu"))
    assert "https://huggingface.co/me/vit-x/resolve/main/a.safetensors (1.5 GB)" in advice
    assert "--vlp ViT-X-quickgelu --pretrained PATH" in advice
    assert "\n" not in advice


def test_the_size_is_said_before_open_clip_fetches(monkeypatch, caplog):
    said = []
    monkeypatch.setattr(sources, "exact_size", lambda source: None)

    def create_model(*args, **kwargs):
        said.append(caplog.text)
        raise OSError("no route")

    monkeypatch.setattr(sources, "weight_bytes", lambda name: 598_482_948)
    monkeypatch.setattr(open_clip, "create_model", create_model)
    with pytest.raises(QKSError, match="could not be fetched .OSError.: fetch https.*598 MB.*bring it here"):
        load_vlp("ViT-B-16", "openai")
    assert "598 MB, once" in said[0]
