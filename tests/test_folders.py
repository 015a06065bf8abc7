"""Folders and repositories with a model in them: open_clip's layout, local-dir:, hf-hub:, attention pooling."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from qks.core import ASSETS, QKSError
from qks.readouts.block import LastBlock, read_states
from qks.vlp import fingerprint, load_vlp
from qks.vlp.frozen import VLP
from qks.vlp.sources import needed_files
from qks.vlp.towers import pool_alone

POCKET = ASSETS / "pocket_vlp"
IMAGES = torch.linspace(-2, 2, 3 * 96 * 96).sin().reshape(1, 3, 96, 96)


@pytest.fixture(scope="module")
def pocket():
    return load_vlp()


@pytest.fixture
def folder(tmp_path, make_clip):
    "A tiny CLIP with QuickGELU in open_clip's layout, whose pictures are squashed."
    model = make_clip()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    text = {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    vision = {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32}
    config = {
        "model_cfg": {"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "resize_mode": "squash"},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    return tmp_path


def change_config(folder, **changes):
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"] |= changes
    path.write_text(json.dumps(config))


# ---- open_clip's layout


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: {"pretrained": folder},
        lambda folder: {"pretrained": str(folder)},
        lambda folder: {"name": str(folder)},
        lambda folder: {"name": f"local-dir:{folder}"},
        lambda folder: {"name": "tiny", "pretrained": f"local-dir:{folder}"},
    ],
)
def test_a_folder_says_everything(folder, make_vlp, caplog, ask):
    vlp = load_vlp(**ask(folder))
    assert fingerprint(vlp) == fingerprint(make_vlp())  # the same weights, with QuickGELU
    assert vlp.preprocess.transforms[-1].mean == [0.1, 0.2, 0.3]
    assert "open_clip's CLIP with a VisionTransformer of 32 px, quick_gelu, pictures squash" in caplog.text
    assert "image tokens: CLS and patches" in caplog.text and len(caplog.records) == 1
    assert fingerprint(load_vlp(**vlp.source)) == fingerprint(vlp)
    json.dumps(vlp.source)


def test_a_folder_named_from_here_is_found_from_elsewhere(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(folder.parent)
    source = load_vlp(folder.name if "." in folder.name else f"local-dir:{folder.name}").source
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_vlp(**source).n_tokens == 17


def test_the_pocket_model_as_a_folder(pocket):
    assert fingerprint(load_vlp(pretrained=POCKET)) == fingerprint(pocket)


def test_openclips_training_checkpoint(folder, make_vlp):
    "As its trainer saves it: under 'state_dict', with the prefix of a parallel training."
    state = {f"module.{name}": value for name, value in make_vlp().model.state_dict().items()}
    checkpoint = {"epoch": 3, "name": "run", "state_dict": state}
    torch.save(checkpoint, folder / "epoch_3.pt")
    assert fingerprint(load_vlp("tiny-quickgelu", folder / "epoch_3.pt")) == fingerprint(make_vlp())
    (folder / "model.safetensors").unlink()
    (folder / "epoch_3.pt").rename(folder / "open_clip_pytorch_model.bin")
    assert fingerprint(load_vlp(pretrained=folder)) == fingerprint(make_vlp())


def refused(match, **arguments):
    with pytest.raises(QKSError, match=match) as caught:
        load_vlp(**arguments)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_no_model(tmp_path):
    refused("holds no model: expected open_clip_config.json or config.json", pretrained=tmp_path)
    refused("folder .*nowhere does not exist", name=f"local-dir:{tmp_path / 'nowhere'}")
    (tmp_path / "open_clip_config.json").write_text("{}")
    refused("describes no model: expected model_cfg", pretrained=tmp_path)


def test_a_folder_whose_files_do_not_fit(folder):
    change_config(folder, embed_dim=48)
    refused(r"does not hold the weights of .* is \[64, 32\] there, and \[64, 48\] in", pretrained=folder)
    (folder / "model.safetensors").unlink()
    refused("holds no weights: put open_clip_model.safetensors", pretrained=folder)
    change_config(folder, vision_cfg={"layers": 2, "depth": 3})
    refused("open_clip cannot build the model in", pretrained=folder)


def test_what_contradicts_a_folder(folder):
    refused("says it itself: leave it out", pretrained=folder, quick_gelu=False)
    refused("brings its own weights, and pretrained='openai'", name=f"local-dir:{folder}", pretrained="openai")
    refused(r"does not hold the weights of golden \(", name="golden", pretrained=folder)
    refused("unknown model 'ViT-Z'", name="ViT-Z", pretrained=folder)


def test_a_tokenizer_of_the_folder(folder):
    change_config(
        folder,
        text_cfg={
            "context_length": 24,
            "vocab_size": 49408,
            "width": 64,
            "heads": 1,
            "layers": 1,
            "hf_tokenizer_name": "me/words",
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
    )
    refused("has no tokenizer: put tokenizer.json", pretrained=folder)
    tokenizers = pytest.importorskip("tokenizers", reason="reads tokenizer.json (dev extra)")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "a": 1, "cat": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    assert load_vlp(pretrained=folder).tokenizer(["A cat!"])[0].tolist() == [1, 2] + [0] * 22


# ---- repositories


@pytest.fixture
def hub(monkeypatch, folder):
    "A stand-in of the hub with one repository, and a record of what was fetched."
    fetched = []

    def model_info(self, repository, files_metadata, timeout):
        if repository != "me/tiny":
            raise huggingface_hub.errors.RepositoryNotFoundError("no such repository", response=SimpleNamespace())
        names = ["open_clip_config.json", "model.safetensors", "flax_model.msgpack", "README.md"]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=250_000_000) for name in names])

    def snapshot_download(repository, allow_patterns):
        fetched.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return fetched


@pytest.mark.parametrize("ask", [{"name": "hf-hub:me/tiny"}, {"pretrained": "hf-hub:me/tiny"}])
def test_a_repository_is_a_folder(hub, make_vlp, caplog, ask):
    vlp = load_vlp(**ask)
    assert hub == [["open_clip_config.json", "model.safetensors"]]
    assert "fetching me/tiny, 500 MB, once" in caplog.text
    assert fingerprint(vlp) == fingerprint(make_vlp()) and vlp.source["name"] == "hf-hub:me/tiny"
    assert vlp.name == "hf-hub:me/tiny"


def test_a_repository_that_is_here_is_not_fetched(hub, folder, monkeypatch, caplog):
    found = str(folder / "open_clip_config.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: found)
    assert load_vlp("hf-hub:me/tiny").n_tokens == 17
    assert hub == [] and "fetching" not in caplog.text


def test_a_repository_that_cannot_be_fetched(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    refused(
        r"hf-hub:me/tiny could not be fetched \(OSError\).*https://huggingface.co/me/tiny.*--vlp local-dir:FOLDER",
        name="hf-hub:me/tiny",
    )


def test_only_what_a_model_needs_is_fetched():
    listed = ["config.json", "vocab.json", "pytorch_model.bin", "model.safetensors", "tf_model.h5", "onnx/model.onnx"]
    assert needed_files(listed) == ["config.json", "vocab.json", "model.safetensors"]
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert needed_files(["config.json", "spiece.model", *parts]) == ["config.json", "spiece.model", *parts]
    assert needed_files(["pytorch_model.bin", "open_clip_pytorch_model.bin"]) == ["open_clip_pytorch_model.bin"]


# ---- attention pooling


@pytest.fixture(scope="module", params=["SigLIP", "with CLS and a linear head"])
def pooled_by_attention(request):
    "A small tower of timm's in open_clip, pooled by attention, with random weights."
    torch.manual_seed(0)
    is_siglip = request.param == "SigLIP"
    vision = open_clip.CLIPVisionCfg(timm_model_name="test_vit", timm_pool="", timm_proj="linear", image_size=160)
    text = open_clip.CLIPTextCfg(context_length=16, vocab_size=128, width=64, heads=1, layers=1)
    model = open_clip.CLIP(64, vision, text, init_logit_bias=-10)
    model.visual.image_size = 64
    model.visual.trunk = VisionTransformer(
        64, 16, embed_dim=64, depth=2, num_heads=2, class_token=not is_siglip, global_pool="map", num_classes=0
    )
    if is_siglip:
        model.visual.head = torch.nn.Sequential()
    return model


def test_attention_pooling_gives_the_picture_and_each_patch_alone(pooled_by_attention):
    model = pooled_by_attention
    vlp = VLP(model, None, None, "map")
    images = torch.randn(2, 3, 64, 64)
    tokens = vlp.image_tokens(images)
    assert tokens.shape == (2, 17, 64) and vlp.n_prefix == 1 and vlp.grid == (4, 4)
    trunk = model.visual.trunk
    with torch.no_grad():
        whole = model.encode_image(images)
        features = trunk.forward_features(images)  # with the trunk's CLS token, where it has one
        patches = features[:, trunk.num_prefix_tokens :]
        alone = torch.stack([trunk.attn_pool(patches[:, i : i + 1]) for i in range(16)], 1)
    torch.testing.assert_close(vlp.image_features(tokens), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[:, :1] @ vlp.projection, whole[:, None], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[:, 1:], alone, rtol=1e-4, atol=1e-5)
    assert "attention pooling" in vlp.tower.description
    assert vlp.logit_bias == pytest.approx(-10)


def test_an_opened_last_block_goes_through_the_pooling_too(pooled_by_attention):
    "With the tower's own attention, the opened block gives the tower's own tokens."
    vlp = VLP(pooled_by_attention, None, None, "map")
    states = read_states(vlp, torch.randn(2, 3, 64, 64), with_block=True)
    found = LastBlock(vlp).tokens(states.block_inputs)
    torch.testing.assert_close(found, states.tokens, rtol=1e-4, atol=1e-5)


def test_a_token_alone_gets_all_attention(pooled_by_attention):
    pool = pooled_by_attention.visual.trunk.attn_pool.eval()
    token = torch.randn(1, 1, 64)
    with torch.no_grad():
        torch.testing.assert_close(pool_alone(pool, token)[:, 0], pool(token))


def test_without_the_pooled_picture(pooled_by_attention):
    vlp = VLP(pooled_by_attention, None, None, "map", drop_cls=True)
    assert vlp.image_tokens(torch.randn(1, 3, 64, 64)).shape == (1, 16, 64) and vlp.n_prefix == 0


def test_scale_and_bias_are_the_models_own(pocket, make_vlp):
    assert pocket.logit_bias is None
    vlp = make_vlp()
    assert vlp.logit_scale == pytest.approx(1 / 0.07)


def test_a_head_of_a_folders_vlp_is_loaded_again(folder, tmp_path_factory):
    from qks.model.config import HeadConfig
    from qks.model.head import QKSHead
    from qks.model.tagger import QKS

    vlp = load_vlp(pretrained=folder)
    model = QKS(vlp, QKSHead(vlp.projection, HeadConfig(n_queries=2, n_layers=1)))
    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    again = QKS.from_pretrained(place)
    torch.testing.assert_close(again.vlp.image_tokens(IMAGES[..., :32, :32]), vlp.image_tokens(IMAGES[..., :32, :32]))
    shutil.rmtree(folder)
    with pytest.raises(QKSError, match="the VLP that .*config.json names cannot be loaded: folder .* does not exist"):
        QKS.from_pretrained(place)
