"""The frozen model against the authors' numbers and open_clip's: every kind of tower, every kind of bad file."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from qks.core import ASSETS, QKSError, arithmetic
from qks.evaluate.baselines import baseline_methods
from qks.vlp import frozen, loading, towers
from qks.vlp.frozen import VLP, VisionLanguageModel, fingerprint, preprocess_images, tokenize
from qks.vlp.loading import _text_config, _vision_config, load_vlp
from qks.vlp.towers import ImageTower, find_tower, register_tower

GOLDEN = {
    key: torch.from_numpy(np.asarray(value))
    for key, value in np.load(Path(__file__).parent / "data" / "clip.npz").items()
}
WEIGHTS = {key.removeprefix("weights/"): value for key, value in GOLDEN.items() if key.startswith("weights/")}
SAVERS = {"pt": torch.save, "safetensors": save_file}
IMAGES = torch.linspace(-2, 2, 2 * 3 * 32 * 32).sin().reshape(2, 3, 32, 32)


def close(actual, expected, rtol=1e-5):
    # Sums of many terms lose what cancels in them, so an entry near zero is off by rounding of the tensor's large
    # entries: the tolerance is relative to the entry, plus as much relative to the largest entry of the tensor.
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


def refused(match, function, *args, **kwargs):
    "Expect a QKSError whose message is a single line that matches."
    with pytest.raises(QKSError, match=match) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def encoded(vlp, images):
    with torch.no_grad():
        return vlp.model.encode_image(images)


@pytest.fixture(scope="module", params=SAVERS)
def golden_file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / f"clip.{request.param}"
    SAVERS[request.param](WEIGHTS, path)
    return path


@pytest.fixture(scope="module")
def golden_vlp(golden_file):
    return load_vlp(pretrained=golden_file)


# ---- the authors' numbers


def test_golden_image_tokens(golden_vlp):
    close(golden_vlp.image_tokens(GOLDEN["image"]), GOLDEN["image_tokens"])


def test_golden_projection(golden_vlp):
    assert torch.equal(golden_vlp.projection, GOLDEN["projection"])
    assert (golden_vlp.width, golden_vlp.embed_dim) == (64, 32)


def test_golden_text_features(golden_vlp):
    features = golden_vlp.text_features(GOLDEN["token_ids"])
    close(features, GOLDEN["text_features"])
    assert not torch.allclose(features.norm(dim=1), torch.ones(3), atol=0.1)  # not normalised


def test_golden_sizes(golden_vlp):
    assert golden_vlp.image_size == 32 and golden_vlp.grid == (4, 4) and golden_vlp.n_prefix == 1


def test_prefix_of_a_parallel_run(tmp_path, golden_vlp):
    torch.save({f"module.{key}": value for key, value in WEIGHTS.items()}, tmp_path / "w.pt")
    assert fingerprint(load_vlp(pretrained=str(tmp_path / "w.pt"))) == fingerprint(golden_vlp)


def test_quick_gelu_matters(tmp_path):
    weights = {key: value for key, value in WEIGHTS.items() if key not in loading.OPENAI_SCALARS}
    torch.save(weights, tmp_path / "w.pt")
    other = load_vlp(pretrained=tmp_path / "w.pt", quick_gelu=False)
    assert (other.image_tokens(GOLDEN["image"]) - GOLDEN["image_tokens"]).abs().max() > 1e-3
    assert (other.text_features(GOLDEN["token_ids"]) - GOLDEN["text_features"]).abs().max() > 1e-3


def test_fp32_weights_are_not_rounded(golden_vlp):
    state = golden_vlp.model.state_dict()
    for key, value in WEIGHTS.items():
        if key in state:
            assert state[key].dtype == torch.float32 and torch.equal(state[key], value), key
    assert not torch.equal(WEIGHTS["visual.proj"].half().float(), WEIGHTS["visual.proj"])  # rounding would show


def test_fp16_weights_become_fp32(tmp_path):
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in WEIGHTS.items()},
        tmp_path / "w.safetensors",
    )
    vlp = load_vlp(pretrained=tmp_path / "w.safetensors")
    assert {weight.dtype for weight in vlp.model.parameters()} == {torch.float32}
    assert torch.equal(vlp.projection, WEIGHTS["visual.proj"].half().float())


# ---- frozen


def test_no_gradients(tiny_vlp):
    assert not any(weight.requires_grad for weight in tiny_vlp.model.parameters())
    assert not tiny_vlp.projection.requires_grad
    images = IMAGES.clone().requires_grad_()
    assert not tiny_vlp.image_tokens(images).requires_grad and not tiny_vlp.text_features("cat").requires_grad


def test_projection_is_a_copy(make_vlp):
    vlp = make_vlp()
    vlp.projection += 1
    assert not torch.equal(vlp.projection, vlp.model.visual.proj)


def timm_clip(name, size=64, pool="avg", proj="linear", embed_dim=32):
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(timm_model_name=name, timm_pool=pool, timm_proj=proj, image_size=size)
    return open_clip.CLIP(
        embed_dim, vision, open_clip.CLIPTextCfg(context_length=16, vocab_size=128, width=64, heads=1, layers=1)
    )


def resnet_clip():
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=64)
    text = open_clip.CLIPTextCfg(context_length=16, vocab_size=128, width=64, heads=1, layers=1)
    return open_clip.CLIP(32, vision, text, quick_gelu=True)


def test_training_mode_does_not_leak_in():
    vlp = VLP(timm_clip("test_resnet"), None, None, "resnet")  # has batch norm
    images = torch.randn(2, 3, 64, 64)
    before = vlp.image_tokens(images)
    weights = fingerprint(vlp)
    vlp.model.train()
    assert torch.equal(vlp.image_tokens(images), before)
    assert fingerprint(vlp) == weights  # running statistics included
    assert not vlp.model.training


# ---- towers


def check_tower(vlp, size, n_tokens, width, n_prefix):
    images = torch.randn(2, 3, size, size)
    tokens = vlp.image_tokens(images)
    assert tokens.shape == (2, n_tokens, width) == (2, n_tokens, vlp.width) and vlp.image_size == size
    assert vlp.projection.shape == (vlp.width, vlp.embed_dim) and vlp.n_prefix == n_prefix
    assert vlp.grid[0] * vlp.grid[1] + n_prefix == n_tokens
    close(vlp.image_features(tokens), encoded(vlp, images))


def test_vit_tower(tiny_vlp):
    check_tower(tiny_vlp, 32, 17, 64, 1)
    # A ViT's own embedding is the projected CLS token: what QKS's projection copies.
    close(tiny_vlp.image_tokens(IMAGES)[:, 0] @ tiny_vlp.projection, encoded(tiny_vlp, IMAGES))


def test_resnet_tower():
    vlp = VLP(resnet_clip(), None, None, "RN")
    check_tower(vlp, 64, 4, 256, 0)
    attnpool = vlp.model.visual.attnpool  # one token attends to itself alone: the pool is then its linear map
    token = torch.randn(1, 256)
    linear = attnpool.c_proj(attnpool.v_proj(token)) - attnpool.c_proj(attnpool.v_proj(token * 0))
    close(token @ vlp.projection, linear.detach(), 1e-4)


@pytest.mark.parametrize(
    "name, size, n_tokens, width, n_prefix",
    [
        ("test_vit", 64, 17, 64, 1),
        ("test_vit2", 64, 17, 64, 1),
        ("test_vit3", 160, 101, 96, 1),
        ("test_vit4", 64, 17, 96, 1),
        ("test_vit_relpos", 160, 100, 96, 0),
        ("test_resnet", 64, 4, 96, 0),
        ("test_convnext", 64, 4, 64, 0),
        ("test_efficientnet", 64, 4, 256, 0),
        ("test_byobnet", 64, 4, 256, 0),
        ("test_nfnet", 64, 4, 192, 0),
        ("test_coatnet", 160, 25, 128, 0),
        ("test_maxvit", 160, 25, 128, 0),
    ],
)
def test_timm_towers(name, size, n_tokens, width, n_prefix):
    check_tower(VLP(timm_clip(name, size), None, None, name), size, n_tokens, width, n_prefix)


@pytest.mark.parametrize("name, pool", [("test_vit", "token"), ("test_vit", ""), ("test_vit3", "map")])
def test_timm_poolings(name, pool):
    size = 160 if name == "test_vit3" else 64
    vlp = VLP(timm_clip(name, size, pool), None, None, name)
    images = torch.randn(1, 3, size, size)
    close(vlp.image_features(vlp.image_tokens(images)), encoded(vlp, images))


def test_tower_without_projection():
    vlp = VLP(timm_clip("test_resnet", proj="none", embed_dim=96), None, None, "resnet")
    assert torch.equal(vlp.projection, torch.eye(96))
    check_tower(vlp, 64, 4, 96, 0)


class PatchMeans(torch.nn.Module):
    "An image tower of no library: every patch of 8 x 8 pixels is a token of its mean colour."

    image_size = 32

    def __init__(self, embed_dim=32):
        super().__init__()
        self.linear = torch.nn.Linear(3, embed_dim, bias=False)


class PatchMeansTower(ImageTower):
    def tokens(self, images):
        return torch.nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)

    @property
    def projection(self):
        return self.visual.linear.weight.T

    def pooled(self, tokens, grid):
        assert grid == (4, 4)
        return self.visual.linear(tokens.mean(1))


def test_a_new_tower_is_one_class(make_clip, monkeypatch):
    model = make_clip()
    model.visual = PatchMeans()
    monkeypatch.setattr(towers, "TOWER_CLASSES", dict(towers.TOWER_CLASSES))  # leave the library's as they are
    register_tower(PatchMeans)(PatchMeansTower)
    vlp = VLP(model, None, open_clip.SimpleTokenizer(context_length=24), "means")
    tokens = vlp.image_tokens(IMAGES)
    assert tokens.shape == (2, 16, 3) and (vlp.n_tokens, vlp.width, vlp.embed_dim) == (16, 3, 32)
    assert vlp.n_prefix == 0 and vlp.grid == (4, 4) and vlp.image_size == 32
    close(tokens[1, 5], IMAGES[1, :, 8:16, 8:16].mean((1, 2)))
    assert torch.equal(vlp.projection, model.visual.linear.weight.T)
    close(vlp.image_features(tokens), tokens.mean(1) @ vlp.projection)
    assert vlp.text_features("cat").shape == (1, 32) and fingerprint(vlp)


def test_an_unknown_tower_is_refused_with_the_way_out(make_clip):
    model = make_clip()
    model.visual = PatchMeans()
    message = refused("image towers of class PatchMeans are not supported", VLP, model, None, None, "means")
    for part in ("ModifiedResNet", "TimmModel", "VisionTransformer", "qks.vlp.ImageTower", "qks.vlp.register_tower"):
        assert part in message


def test_an_entry_for_a_subclass_wins(make_clip, monkeypatch):
    class Special(open_clip.transformer.VisionTransformer):
        pass

    class SpecialTower(towers.ViTTower):
        pass

    visual = make_clip().visual
    visual.__class__ = Special
    assert type(find_tower(visual)) is towers.ViTTower
    monkeypatch.setattr(towers, "TOWER_CLASSES", dict(towers.TOWER_CLASSES))
    register_tower(Special)(SpecialTower)
    assert type(find_tower(visual)) is SpecialTower


def test_a_vlp_offers_what_the_library_asks_of_it(tiny_vlp):
    assert isinstance(tiny_vlp, VisionLanguageModel) and not isinstance(tiny_vlp.model, VisionLanguageModel)


def test_nonlinear_projection_is_refused():
    refused("no linear visual projection", VLP, timm_clip("test_resnet", proj="mlp"), None, None, "resnet")


def test_attentional_pooling_is_refused(make_clip):
    refused(".", VLP, make_clip(vision={"attentional_pool": True}), None, None, "coca")


@pytest.mark.parametrize(
    "build, size, dropped",
    [
        (lambda clip: clip(), 32, 1),
        (lambda clip: timm_clip("test_vit"), 64, 1),
        (lambda clip: timm_clip("test_resnet"), 64, 0),
        (lambda clip: resnet_clip(), 64, 0),
    ],
    ids=["ViT", "timm ViT", "timm ResNet", "ResNet"],
)
def test_drop_cls(make_clip, build, size, dropped):
    model = build(make_clip)
    images = torch.randn(2, 3, size, size)
    whole = VLP(model, None, None, "whole")
    cut = VLP(model, None, None, "cut", drop_cls=True)
    assert torch.equal(cut.image_tokens(images), whole.image_tokens(images)[:, dropped:])
    assert cut.grid == whole.grid and cut.n_prefix == 0
    if dropped:
        refused("drop_cls=False", cut.image_features, cut.image_tokens(images))
    else:
        close(cut.image_features(cut.image_tokens(images)), encoded(cut, images))


def test_mean_pooled_vit_has_tokens_but_no_embedding_from_them(make_clip):
    vlp = VLP(make_clip(vision={"pool_type": "avg"}), None, None, "avg")
    tokens = vlp.image_tokens(IMAGES)
    assert tokens.shape == (2, 17, 64)
    refused("does not pool by its CLS", vlp.image_features, tokens)


def test_tokens_are_those_after_the_last_norm(tiny_vlp):
    tokens = tiny_vlp.image_tokens(IMAGES)
    norm = tiny_vlp.model.visual.ln_post
    back = (tokens - norm.bias) / norm.weight
    np.testing.assert_allclose(back.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(back.var(-1, unbiased=False), 1, rtol=1e-3)


# ---- texts


def test_texts_and_their_ids_agree(tiny_vlp):
    texts = ["cat", "a photo of a dog."]
    assert torch.equal(tiny_vlp.text_features(texts), tiny_vlp.text_features(tiny_vlp.tokenizer(texts)))
    assert torch.equal(tiny_vlp.text_features("cat"), tiny_vlp.text_features(["cat"]))


def test_text_features_are_encode_text(tiny_vlp):
    ids = tiny_vlp.tokenizer(["cat", "dog"])
    with torch.no_grad():
        expected = tiny_vlp.model.encode_text(ids)
    torch.testing.assert_close(tiny_vlp.text_features(ids), expected, rtol=1e-5, atol=1e-5)


def test_a_text_that_just_fits_and_one_that_does_not(tiny_vlp):
    assert tiny_vlp.text_features("cat " * 22).shape == (1, 32)  # and a start and an end: 24
    refused("25 tokens, but .* reads 24: shorten", tiny_vlp.text_features, ["dog", "cat " * 23])
    refused("202 tokens", tiny_vlp.text_features, "cat " * 200)


# ---- precision, device, fingerprint


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_gives_fp32_close_to_fp32(make_vlp, tiny_vlp, precision):
    half = make_vlp(precision=precision)
    for one, other in (
        (half.image_tokens(IMAGES), tiny_vlp.image_tokens(IMAGES)),
        (half.text_features("cat"), tiny_vlp.text_features("cat")),
    ):
        assert one.dtype == torch.float32 and not torch.equal(one, other)
        close(one, other, 0.05)


def test_fp32_is_exact(make_vlp, tiny_vlp):
    assert torch.equal(make_vlp().image_tokens(IMAGES), tiny_vlp.image_tokens(IMAGES))


@pytest.mark.parametrize("precision", ["fp64", "half", "", None, "FP32"])
def test_unknown_precision(precision):
    refused("give 'fp32', 'bf16' or 'fp16'", load_vlp, precision=precision)


def test_fingerprint(make_vlp, tiny_vlp):
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(tiny_vlp)) and fingerprint(make_vlp()) == fingerprint(tiny_vlp)
    assert fingerprint(make_vlp(seed=1)) != fingerprint(tiny_vlp)
    changed = make_vlp()
    changed.model.ln_final.bias.data[0] += 1e-6
    assert fingerprint(changed) != fingerprint(tiny_vlp)


def test_fingerprint_tells_activations_apart(make_vlp, tiny_vlp):
    "Equal weights under another activation are another model: caches and heads must not mix them up."
    assert fingerprint(make_vlp(quick_gelu=False)) != fingerprint(tiny_vlp)


def test_fingerprint_tells_heads_apart(make_vlp, tiny_vlp):
    "Equal weights in heads of another width give other tokens."
    one = make_vlp(vision={"head_width": 16})
    other = make_vlp(vision={"head_width": 64})
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name])
    assert fingerprint(one) != fingerprint(other)


def attention_heads(model):
    modules = model.visual.modules()
    return {module.num_heads for module in modules if isinstance(module, torch.nn.MultiheadAttention)}


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-g-14"])
def test_a_weight_file_has_the_heads_of_its_model(name):
    "Sizes read off weights, on no memory: a file of ViT-H has 16 heads of 80 channels, not 20 of 64."
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.CLIP(
            config["embed_dim"],
            open_clip.CLIPVisionCfg(**config["vision_cfg"]),
            open_clip.CLIPTextCfg(**config["text_cfg"]),
        )
    state = model.state_dict()
    vision = _vision_config(state)
    text = _text_config(state)
    with torch.device("meta"):
        again = open_clip.CLIP(config["embed_dim"], vision, text)
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in state.items()
    }
    assert attention_heads(again) == attention_heads(model)
    assert text.heads == config["text_cfg"]["heads"] and vision.image_size == config["vision_cfg"]["image_size"]


# ---- loading that fails


def test_unknown_model():
    refused("unknown model 'ViT-Z-99'.*list_models", load_vlp, "ViT-Z-99", "openai")


def test_unknown_tag():
    message = refused(
        "pretrained='nonsense' is neither an existing file nor a weight tag", load_vlp, "ViT-B-16", "nonsense"
    )
    assert "openai" in message  # one that exists


def test_a_model_without_weights():
    refused("'ViT-B-16' needs weights", load_vlp, "ViT-B-16")


def test_pocket_knows_no_other_weights():
    for pretrained in ("openai", False):
        assert "give 'pocket'" not in refused(".", load_vlp, "pocket", pretrained)


@pytest.mark.parametrize("name", ["nowhere.pt", "nowhere.safetensors", "nowhere.pth", "nowhere.bin"])
def test_missing_file(tmp_path, name):
    refused(f"{name} does not exist", load_vlp, "ViT-B-16", tmp_path / name)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>", b"\x00" * 64])
def test_damaged_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(name, load_vlp, pretrained=tmp_path / name)


def test_truncated_file(tmp_path, golden_file):
    cut = tmp_path / golden_file.name
    cut.write_bytes(golden_file.read_bytes()[:-1000])
    refused("is damaged", load_vlp, pretrained=cut)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {"a": torch.zeros(2)},
        lambda state: {},
        lambda state: state | {"extra.weight": torch.zeros(2)},
        lambda state: {key: value for key, value in state.items() if key != "visual.ln_post.bias"},
        lambda state: {key: value for key, value in state.items() if not key.startswith("visual.")},
        lambda state: state | {"visual.proj": torch.zeros(48, 32)},
        lambda state: state | {"visual.conv1.weight": torch.zeros(32, 3, 8, 8)},
        lambda state: state | {"ln_final.weight": torch.zeros(32)},
        lambda state: state | {"text_projection": torch.zeros(64)},
    ],
    ids=["other", "empty", "extra", "missing", "no tower", "projection", "narrow tower", "narrow text", "flat"],
)
def test_checkpoint_of_another_architecture(tmp_path, change):
    torch.save(change(WEIGHTS), tmp_path / "other.pt")
    refused("other.pt is not a CLIP in OpenAI's layout", load_vlp, pretrained=tmp_path / "other.pt")


class Evil:
    "Unpickling it would make a folder."

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_would_run_code(tmp_path):
    torch.save(WEIGHTS | {"extra": Evil(tmp_path / "it ran")}, tmp_path / "evil.pt")
    refused("could run code", load_vlp, pretrained=tmp_path / "evil.pt")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    "error", [OSError("no route"), RuntimeError("failed to download"), ValueError("offline\nsecond line")], ids=repr
)
@pytest.mark.parametrize(
    "name, tag, file, file_name",
    [
        ("ViT-B-16", "openai", "vit_base_patch16_clip_224.openai", "ViT-B-16-quickgelu"),
        ("RN50", "openai", "resnet50_clip.openai", "RN50-quickgelu"),
        ("ViT-B-16", "laion2b_s34b_b88k", "CLIP-ViT-B-16-laion2B-s34B-b88K", "ViT-B-16"),
    ],
)
def test_weights_that_cannot_be_fetched(monkeypatch, name, tag, file, file_name, error):
    def offline(*args, **kwargs):
        raise error

    monkeypatch.setattr(open_clip, "create_model", offline)
    message = refused(rf"load_vlp\('{file_name}', pretrained=PATH\)", load_vlp, name, tag)
    assert file in message and name in message and tag in message


# ---- the embedded model


@pytest.fixture(scope="module")
def pocket():
    return load_vlp()


def test_pocket(pocket):
    size = pocket.image_size
    tokens = pocket.image_tokens(torch.rand(2, 3, size, size))
    assert tokens.shape[1] - pocket.n_prefix >= 36 and tokens.shape[2] == pocket.width
    assert tokens.isfinite().all()
    assert pocket.text_features(["cat", "a photo of a bridge."]).shape == (2, pocket.embed_dim)


def test_a_large_batch_goes_through_the_tower_in_parts(pocket, monkeypatch):
    images = torch.rand(11, 3, pocket.image_size, pocket.image_size)
    expected = pocket.image_tokens(images)
    monkeypatch.setattr(arithmetic, "CPU_TOKENS", 4 * pocket.n_tokens)
    sizes = []
    trunk = pocket.model.visual.trunk
    forward = trunk.forward_features

    def spy(chunk):
        sizes.append(len(chunk))
        return forward(chunk)

    monkeypatch.setattr(trunk, "forward_features", spy)
    close(pocket.image_tokens(images), expected)
    assert sizes == [4, 4, 3] and pocket.n_tokens == expected.shape[1]


def test_pocket_is_what_open_clip_builds(pocket):
    model = open_clip.create_model(f"local-dir:{ASSETS / 'pocket_vlp'}").eval()
    images = torch.rand(2, 3, pocket.image_size, pocket.image_size)
    with torch.no_grad():
        expected = model.encode_image(images)
    close(pocket.image_features(pocket.image_tokens(images)), expected)


def test_pocket_preprocesses_as_its_config_says(pocket):
    config = json.loads((ASSETS / "pocket_vlp" / "open_clip_config.json").read_text())["preprocess_cfg"]
    grey = preprocess_images(pocket, [Image.new("RGB", (200, 120), (128, 128, 128))])
    assert grey.shape == (1, 3, pocket.image_size, pocket.image_size)
    expected = (128 / 255 - torch.tensor(config["mean"])) / torch.tensor(config["std"])
    torch.testing.assert_close(grey[0, :, 0, 0], expected)


def test_preprocessing_crops_the_centre(tiny_vlp):
    picture = np.zeros((32, 96, 3), np.uint8)
    picture[:, 32:64] = 255
    batch = preprocess_images(tiny_vlp, [Image.fromarray(picture), Image.new("RGB", (64, 64), "white")])
    assert batch.shape == (2, 3, 32, 32) and (batch[0] > 0).all()


def test_source_loads_it_again(golden_file, golden_vlp):
    assert fingerprint(load_vlp(**golden_vlp.source)) == fingerprint(golden_vlp)


PLAIN = {key: value for key, value in WEIGHTS.items() if key not in loading.OPENAI_SCALARS}  # as others save them


def has_quick_gelu(vlp):
    return any(isinstance(module, open_clip.transformer.QuickGELU) for module in vlp.model.modules())


@pytest.fixture
def plain_file(tmp_path):
    torch.save(PLAIN, tmp_path / "plain.pt")
    return tmp_path / "plain.pt"


@pytest.mark.parametrize(
    "name, quick_gelu, expected",
    [
        ("golden", None, False),
        ("golden", False, False),
        ("golden", True, True),
        ("golden-quickgelu", None, True),
        ("golden-quickgelu", True, True),
        (None, True, True),
        (None, False, False),
    ],
)
def test_the_name_decides_on_the_activation(plain_file, caplog, name, quick_gelu, expected):
    vlp = load_vlp(name, plain_file, quick_gelu=quick_gelu)
    assert has_quick_gelu(vlp) is expected and vlp.source["quick_gelu"] is expected and not caplog.text
    again = load_vlp(**vlp.source)
    assert fingerprint(again) == fingerprint(vlp)
    images = vlp.image_tokens(GOLDEN["image"])
    assert torch.allclose(images, GOLDEN["image_tokens"], atol=1e-4) is expected


@pytest.mark.parametrize("name", [None, "golden", "golden-quickgelu"])
def test_openais_own_files_have_quick_gelu_under_any_name(golden_file, caplog, name):
    assert has_quick_gelu(load_vlp(name, golden_file)) and not caplog.text
    refused("OpenAI's own, trained with QuickGELU", load_vlp, name, golden_file, quick_gelu=False)


def test_an_assumption_about_the_activation_is_said(plain_file, caplog, monkeypatch):
    assert has_quick_gelu(load_vlp(pretrained=plain_file))
    assert "plain.pt does not say its activation: QuickGELU is assumed" in caplog.text
    caplog.clear()
    tags = {"openai": {"quick_gelu": True, "mean": (0.1,) * 3}, "laion": {"mean": (0.5,) * 3}}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: list(tags))
    monkeypatch.setattr(loading, "get_pretrained_cfg", lambda name, tag: tags[tag])
    assert not has_quick_gelu(load_vlp("golden", plain_file))
    assert "assumed for golden: GELU as activation" in caplog.text and "name golden-quickgelu" in caplog.text
    assert "pictures prepared as CLIP's" in caplog.text
    caplog.clear()
    load_vlp("golden-quickgelu", plain_file)
    assert "GELU as activation" not in caplog.text


def test_a_name_and_the_opposite_activation_are_refused(plain_file):
    refused(
        "golden-quickgelu is a model with QuickGELU.*or name golden$",
        load_vlp,
        "golden-quickgelu",
        plain_file,
        quick_gelu=False,
    )


@pytest.mark.parametrize("name", ["no-such-model", "vit-b-32", "ViT-B-32 ", "", "golden/x"])
def test_an_unknown_name_is_an_error_with_a_file_too(plain_file, name):
    refused("unknown model|embedded model", load_vlp, name or "-", plain_file)


@pytest.mark.parametrize("name", ["tiny", "RN50", "ViT-B-32", "ViT-B-16-SigLIP"])
def test_a_file_of_another_model_is_refused(plain_file, name):
    message = refused(f"plain.pt does not hold the weights of {name} .*--vlp|cannot build", load_vlp, name, plain_file)
    assert " there, and " in message or "missing" in message or "cannot build" in message


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda state: state | {"extra.weight": torch.zeros(2)}, "golden has no extra.weight"),
        (lambda state: {key: value for key, value in state.items() if key != "ln_final.bias"}, "ln_final.bias is miss"),
        (lambda state: state | {"visual.proj": torch.zeros(48, 32)}, r"visual.proj is \[48, 32\] there"),
        (lambda state: {}, "missing"),
    ],
)
def test_a_named_file_that_is_not_whole(tmp_path, change, match):
    torch.save(change(PLAIN), tmp_path / "w.pt")
    refused(match, load_vlp, "golden", tmp_path / "w.pt")


def test_the_embedded_model_takes_no_file(plain_file):
    refused("does not go with the embedded model.*name the model", load_vlp, "pocket", plain_file)


@pytest.mark.parametrize(
    "arguments",
    [{"name": 3}, {"name": True}, {"pretrained": 3}, {"pretrained": True}, {"quick_gelu": "no"}, {"quick_gelu": 1}],
    ids=str,
)
def test_arguments_of_another_type(arguments):
    refused(f"^{next(iter(arguments))} is .*: give", load_vlp, **arguments)


def test_a_link_stays_a_link(golden_vlp, tmp_path):
    "As in a hub's cache: the link has the suffix that tells the format, the file behind it has none."
    (tmp_path / "blobs").mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in golden_vlp.model.state_dict().items()},
        tmp_path / "blobs" / "0a1b",
    )
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "0a1b")
    source = load_vlp(pretrained=tmp_path / "model.safetensors").source
    assert fingerprint(load_vlp(**source)) == fingerprint(golden_vlp)


def test_a_text_too_long_for_any_tokenizer(golden_vlp):
    "One that has no `encode`, pads with another number and takes the context as an argument, as those of SigLIP do."

    class Words:
        context_length = 6

        def __call__(self, texts, context_length=None):
            length = context_length or self.context_length
            rows = [[5 + len(word) for word in text.split()][: length - 1] + [2] for text in texts]
            return torch.tensor([row + [1] * (length - len(row)) for row in rows])

    vlp = SimpleNamespace(tokenizer=Words(), name="words")
    assert tokenize(vlp, ["a b c d e", "a"]).tolist() == [[6, 6, 6, 6, 6, 2], [6, 2, 1, 1, 1, 1]]
    with pytest.raises(QKSError, match="text 'a b c d e f g' has 8 tokens, but the text tower of words reads 6"):
        tokenize(vlp, ["a", "a b c d e f g"])


def test_weights_named_from_here_are_found_from_elsewhere(golden_file, golden_vlp, tmp_path, monkeypatch):
    monkeypatch.chdir(golden_file.parent)
    source = load_vlp(pretrained=golden_file.name).source
    monkeypatch.chdir(tmp_path)
    assert fingerprint(load_vlp(**source)) == fingerprint(golden_vlp)
    json.dumps(golden_vlp.source)  # a head's configuration keeps it


def test_a_folder_named_like_a_tag_is_no_weight_file(tmp_path, monkeypatch):
    (tmp_path / "nonsense").mkdir()
    monkeypatch.chdir(tmp_path)
    refused("neither an existing file nor a weight tag", load_vlp, "ViT-B-16", "nonsense")


def test_a_copy_elsewhere_is_the_same(tmp_path, golden_file, golden_vlp):
    shutil.copy(golden_file, tmp_path / golden_file.name)
    assert fingerprint(load_vlp("golden", str(tmp_path / golden_file.name))) == fingerprint(golden_vlp)


@pytest.mark.parametrize("texts, match", [([3], "text 3 is a int"), (["cat", None], "text None"), ([], "no text")])
def test_things_that_are_no_texts(tiny_vlp, texts, match):
    refused(match, tiny_vlp.text_features, texts)


@pytest.mark.parametrize("shape", [(24,), (1, 23), (1, 77), (1, 1, 24)])
def test_ids_of_another_context(tiny_vlp, shape):
    refused(r"token ids have shape .* reads \[T, 24\]", tiny_vlp.text_features, torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    "noted, size",
    [({}, "crop"), ({"resize_mode": "squash", "interpolation": "bilinear"}, "squash")],
    ids=["CLIP's own", "squashed"],
)
def test_pictures_are_resized_as_the_weights_want_it(monkeypatch, make_clip, noted, size):
    "A wide picture, white in the middle third: cropped it is white, squashed it keeps its black sides."
    model = make_clip()
    model.visual.preprocess_cfg = noted
    loaded = loading.LoadedClip(model, open_clip.SimpleTokenizer(context_length=24))
    monkeypatch.setattr(loading, "_load_by_name", lambda name, pretrained: loaded)
    vlp = load_vlp("ViT-B-32", "some-tag", device="cpu")
    picture = np.zeros((32, 96, 3), np.uint8)
    picture[:, 32:64] = 255
    red = preprocess_images(vlp, [Image.fromarray(picture)])[0, 0]  # [H, W]
    assert (red[:, 0] > 0).all() == (size == "crop") and (red[:, 16] > 0).all()


def test_a_tower_that_pools_otherwise_has_one_baseline(make_vlp):
    "Its head can be trained, and the report at the end does not fail for what such a tower cannot do."
    for vlp, methods in (
        (make_vlp(vision={"pool_type": "avg"}), ["VLP best patch"]),
        (make_vlp(), ["VLP zero-shot, one prompt", "VLP zero-shot, prompt pool", "VLP best patch"]),
    ):
        baselines = baseline_methods(vlp, ["cat", "dog"], vlp.text_features(["cat", "dog"]))
        assert list(baselines) == methods
        assert all(score(vlp.image_tokens(IMAGES)).shape == (2, 2) for score in baselines.values())


def test_weights_are_hashed_once_unless_they_change(make_vlp, monkeypatch):
    vlp = make_vlp()
    made = []
    sha256 = frozen.hashlib.sha256

    def spy(*args):
        made.append(args)
        return sha256(*args)

    monkeypatch.setattr(frozen.hashlib, "sha256", spy)
    first = fingerprint(vlp)
    assert fingerprint(vlp) == first and len(made) == 1
    with torch.no_grad():
        vlp.model.visual.proj += 1
    assert fingerprint(vlp) != first and len(made) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda vlp: vlp.model.visual.proj.data.add_(1),
        lambda vlp: vlp.model.visual.proj.data[0, :2].copy_(vlp.model.visual.proj.data[0, :2].flip(0).clone()),
        lambda vlp: setattr(vlp.model.visual.proj, "data", vlp.model.visual.proj.data * 2),
        lambda vlp: vlp.model.visual.proj.data[5, 3:4].view(torch.int32).bitwise_xor_(1),
        lambda vlp: vlp.model.visual.proj.detach().numpy().fill(0.5),
        lambda vlp: vlp.model.logit_scale.data.mul_(1.5),
        lambda vlp: vlp.model.load_state_dict(
            {name: tensor.flip(0) if tensor.ndim == 1 else tensor for name, tensor in vlp.model.state_dict().items()}
        ),
    ],
    ids=["data", "swap", "other data", "one bit", "numpy", "a number", "state"],
)
def test_a_fingerprint_sees_every_change(make_vlp, change):
    "Also those that torch's count of writes does not see: caches and heads rely on it."
    vlp = make_vlp()
    first = fingerprint(vlp)
    before = {name: tensor.clone() for name, tensor in vlp.model.state_dict().items()}
    change(vlp)
    fresh = make_vlp()
    fresh.model.load_state_dict(vlp.model.state_dict())
    assert fingerprint(vlp) == fingerprint(fresh) != first
    vlp.model.load_state_dict(before)
    assert fingerprint(vlp) == first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool], ids=str)
@pytest.mark.parametrize("size", [0, 1, 3, 8, 1001])
def test_checksums_of_any_type_and_size(dtype, size):
    module = torch.nn.Module()
    module.register_buffer("values", torch.zeros(size + 1, dtype=dtype)[1:])  # at an odd place in memory
    before = frozen.weight_checksums(module)
    assert before == frozen.weight_checksums(module)
    if size:
        module.values[-1] = 1
        assert frozen.weight_checksums(module) != before


@pytest.mark.parametrize("device", ["meta", "abacus", "cuda:99", "hpu", "mps:7", 3.5, ["cpu"]])
def test_a_device_that_cannot_compute(device):
    refused("device .* is not available .*: use cpu, or a device that torch sees", load_vlp, device=device)


def test_devices_that_people_call_otherwise():
    refused("device 'gpu' is called cuda by torch: pass 'cuda', or 'cpu' without a card", load_vlp, device="gpu")
    refused("device 'GPU:1' is called cuda by torch: pass 'cuda:1'", load_vlp, device="GPU:1")
    refused("'meta' is not available .it holds shapes without numbers.", load_vlp, device="meta")
