"""Folders that transformers wrote: the same features as transformers gives, from random weights in its own format."""

import json
import sys

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from qks.core import QKSError
from qks.vlp import fingerprint, load_vlp
from qks.vlp.folder_tokenizer import canonicalize, folder_tokenizer
from qks.vlp.transformers_layout import load_transformers_folder, read_config, read_preprocessing

transformers = pytest.importorskip("transformers", reason="the reference (dev extra)")

VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXTS = ["a photo of a cat", "a drawing of a bridge."]


def randomised(model):
    "Random weights of a size at which every part shows: norms, biases, scale."
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.2
    return model.eval()


def clip_model(**changes):
    config = transformers.CLIPConfig(
        text_config=TEXT | {"vocab_size": 49408, "max_position_embeddings": 24} | changes.pop("text", {}),
        vision_config=VISION | changes.pop("vision", {}),
        projection_dim=32,
    )
    return randomised(transformers.CLIPModel(config))


def siglip_model():
    text = TEXT | {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 60, "max_position_embeddings": 16}
    return randomised(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION)))


def write_clip_vocabulary(folder):
    vocabulary = open_clip.SimpleTokenizer().encoder
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    model = clip_model()
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    write_clip_vocabulary(folder)
    return folder, model


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    sentencepiece = pytest.importorskip("sentencepiece", reason="the tokenizer of SigLIP (dev extra)")
    folder = tmp_path_factory.mktemp("siglip")
    model = siglip_model()
    model.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    (folder / "texts.txt").write_text("\n".join([*TEXTS, "the dogs in the scene"] * 20))
    settings = {"vocab_size": 50, "hard_vocab_limit": False, "pad_id": -1, "minloglevel": 2}
    prefix = str(folder / "spiece")
    sentencepiece.SentencePieceTrainer.train(input=str(folder / "texts.txt"), model_prefix=prefix, **settings)
    return folder, model


@pytest.fixture(scope="module")
def photograph():
    "Of other proportions than the model's square."
    return Image.linear_gradient("L").resize((90, 60)).convert("RGB")


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def features(output):
    "Of transformers, which gives a tensor or an object with it."
    return output if isinstance(output, torch.Tensor) else output.pooler_output


@torch.no_grad()
def expected_image(model, images):
    return features(model.get_image_features(pixel_values=images))


@torch.no_grad()
def expected_text(model, ids):
    return features(model.get_text_features(input_ids=ids))


# ---- equal to transformers


def test_clip_has_the_features_of_transformers(clip, photograph):
    folder, model = clip
    vlp = load_vlp(pretrained=folder)
    images = vlp.preprocess(photograph)[None]
    tokens = vlp.image_tokens(images)
    close(vlp.image_features(tokens), expected_image(model, images))
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=images).last_hidden_state
        close(tokens, model.vision_model.post_layernorm(hidden))
    ids = vlp.tokenizer(TEXTS)
    close(vlp.text_features(TEXTS), expected_text(model, ids))
    assert vlp.logit_scale == pytest.approx(model.logit_scale.exp().item()) and vlp.logit_bias is None


def test_clip_prepares_pictures_as_transformers_does(clip, photograph):
    folder, _ = clip
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    expected = processor(photograph, return_tensors="pt").pixel_values
    found = load_vlp(pretrained=folder).preprocess(photograph)[None]
    assert (found - expected).abs().max() < 0.1  # two libraries resize it: some numbers of 0 to 255 differ by a few


def test_siglip_has_the_features_of_transformers(siglip, photograph):
    folder, model = siglip
    vlp = load_vlp(pretrained=folder)
    images = torch.cat([vlp.preprocess(photograph)[None], torch.randn(1, 3, 32, 32)])
    close(vlp.image_features(vlp.image_tokens(images)), expected_image(model, images))
    close(vlp.text_features(TEXTS), expected_text(model, vlp.tokenizer(TEXTS)))
    assert vlp.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert vlp.logit_bias == pytest.approx(model.logit_bias.item())


def test_siglip_prepares_pictures_as_transformers_does(siglip, photograph):
    folder, _ = siglip
    expected = transformers.AutoImageProcessor.from_pretrained(folder)(photograph, return_tensors="pt").pixel_values
    found = load_vlp(pretrained=folder).preprocess(photograph)[None]
    assert found.shape == expected.shape and (found - expected).abs().max() < 0.1  # squashed, not cropped


def test_siglip_reads_texts_as_transformers_does(siglip):
    folder, _ = siglip
    pytest.importorskip("google.protobuf", reason="transformers' tokenizer of SigLIP needs it")
    from transformers.models.siglip.tokenization_siglip import SiglipTokenizer

    theirs = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)
    ours = folder_tokenizer(folder, 16)
    texts = ["a photo of a cat", "A Drawing, of a  BRIDGE!", "the dog's", ""]
    for text in texts:
        ids = theirs(text, padding="max_length", truncation=True, max_length=16).input_ids
        assert ours([text])[0].tolist() == ids, text


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_the_activation_is_that_of_the_config(tmp_path, activation):
    model = clip_model(text={"hidden_act": activation}, vision={"hidden_act": activation})
    model.save_pretrained(tmp_path)
    write_clip_vocabulary(tmp_path)
    vlp = load_vlp(pretrained=tmp_path)
    images = torch.randn(1, 3, 32, 32)
    close(vlp.image_features(vlp.image_tokens(images)), expected_image(model, images))
    close(vlp.text_features(TEXTS), expected_text(model, vlp.tokenizer(TEXTS)))


def test_an_end_token_that_is_not_the_largest_id(tmp_path):
    "Where a vocabulary goes on behind the end token, the largest id of a text is not its end."
    model = clip_model(text={"vocab_size": 49500, "eos_token_id": 49407})
    model.save_pretrained(tmp_path)
    write_clip_vocabulary(tmp_path)
    vlp = load_vlp(pretrained=tmp_path)
    ids = torch.tensor([[49406, 320, 49450, 49407] + [0] * 20])
    close(vlp.text_features(ids), expected_text(model, ids))


def test_weights_in_several_files(clip, tmp_path):
    folder, _ = clip
    state = load_file(folder / "model.safetensors")
    parts = {"a.safetensors": list(state)[::2], "b.safetensors": list(state)[1::2]}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, tmp_path / name)
    weight_map = {key: name for name, keys in parts.items() for key in keys}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    write_clip_vocabulary(tmp_path)
    assert fingerprint(load_vlp(pretrained=tmp_path)) == fingerprint(load_vlp(pretrained=folder))


def test_transformers_is_not_imported(clip, siglip, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for folder, _ in (clip, siglip):
        assert load_vlp(pretrained=folder).text_features("a cat").shape[0] == 1


# ---- what the files say


def write_config(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_defaults_are_those_of_transformers(tmp_path):
    "A config.json that says nothing means a full-sized model."
    for kind, theirs in (("clip", transformers.CLIPConfig()), ("siglip", transformers.SiglipConfig())):
        config = read_config(write_config(tmp_path, model_type=kind))
        for part in ("vision", "text"):
            expected = getattr(theirs, f"{part}_config").to_dict()
            for name, value in getattr(config, part).items():
                assert expected.get(name, value) == value, (kind, part, name)
    assert read_config(write_config(tmp_path, model_type="clip")).embed_dim == 512


@pytest.mark.parametrize(
    "config, match",
    [
        ({"model_type": "blip"}, "of type 'blip': transformers' models of the types clip and siglip"),
        ({}, "of type None"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "without its pooling head"),
        ({"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}, "gelu in the image tower and quick_gelu"),
    ],
)
def test_a_config_that_is_not_understood(tmp_path, config, match):
    write_config(tmp_path, **config)
    with pytest.raises(QKSError, match=match):
        load_vlp(pretrained=tmp_path)


def test_an_unknown_activation(tmp_path):
    write_config(tmp_path, model_type="clip", vision_config={"hidden_act": "silu"}, text_config={"hidden_act": "silu"})
    save_file({"logit_scale": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(QKSError, match="has the activation 'silu': gelu, quick_gelu"):
        load_vlp(pretrained=tmp_path)


@pytest.mark.parametrize(
    "kind, processor, expected",
    [
        ("clip", None, ("bicubic", "shortest")),
        ("siglip", None, ("bicubic", "squash")),
        ("clip", {"size": 224, "crop_size": 224, "resample": 2}, ("bilinear", "shortest")),
        ("clip", {"do_center_crop": False, "size": {"height": 224, "width": 224}}, ("bicubic", "squash")),
        ("siglip", {"size": {"height": 224, "width": 224}, "resample": 2}, ("bilinear", "squash")),
    ],
)
def test_preprocessing_is_read(tmp_path, kind, processor, expected):
    config = read_config(write_config(tmp_path, model_type=kind))
    if processor is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor | {"image_mean": [0.1, 0.2, 0.3]}))
    settings, remarks = read_preprocessing(tmp_path, config)
    assert (settings["interpolation"], settings["resize_mode"]) == expected
    assert (settings["mean"] == (0.1, 0.2, 0.3)) == (processor is not None) == (not remarks)


def test_a_crop_that_is_smaller_than_the_resize_is_said(tmp_path):
    config = read_config(write_config(tmp_path, model_type="clip"))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 256}, "crop_size": 224}))
    assert "resized to 256 px before a crop of 224 px" in read_preprocessing(tmp_path, config).remarks[0]


def test_a_filter_that_is_not_known(tmp_path):
    config = read_config(write_config(tmp_path, model_type="clip"))
    (tmp_path / "preprocessor_config.json").write_text('{"resample": 1}')
    with pytest.raises(QKSError, match="by Pillow's filter 1"):
        read_preprocessing(tmp_path, config)


# ---- folders that are not whole


def test_weights_of_another_model(clip, tmp_path):
    folder, _ = clip
    state = load_file(folder / "model.safetensors")
    write_clip_vocabulary(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(QKSError, match=r"holds no weights: put model.safetensors"):
        load_vlp(pretrained=tmp_path)
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(QKSError, match="are not those that its config.json describes .KeyError: 'visual_projection"):
        load_vlp(pretrained=tmp_path)
    save_file(state | {"visual_projection.weight": torch.zeros(3, 64)}, tmp_path / "model.safetensors")
    with pytest.raises(QKSError, match="are not those that its config.json describes .RuntimeError"):
        load_vlp(pretrained=tmp_path)


def test_a_folder_without_a_tokenizer(clip, tmp_path):
    folder, _ = clip
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(QKSError, match="has no tokenizer: put tokenizer.json, vocab.json or spiece.model"):
        load_vlp(pretrained=tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_damaged_config(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(QKSError, match="config.json .*copy the model's folder again"):
        load_vlp(pretrained=tmp_path)


# ---- tokenizers


def fast_tokenizer(folder):
    tokenizers = pytest.importorskip("tokenizers", reason="reads tokenizer.json (dev extra)")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "a": 1, "cat": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))


def test_a_fast_tokenizer_needs_no_transformers(tmp_path, monkeypatch):
    fast_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "?"}}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert folder_tokenizer(tmp_path, 4)(["a cat", "a a a a a cat"]).tolist() == [[1, 2, 3, 3], [1, 1, 1, 2]]


@pytest.mark.parametrize("package, file", [("tokenizers", "tokenizer.json"), ("sentencepiece", "spiece.model")])
def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch, package, file):
    (tmp_path / file).write_text('{"model": {}}')
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(QKSError, match=rf"{file} is read with {package}, .*pip install 'qks\[transformers\]'"):
        folder_tokenizer(tmp_path, 4)


def test_a_damaged_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(QKSError, match="no tokenizer that can be read"):
        folder_tokenizer(tmp_path, 4)


def test_clips_vocabulary_is_open_clips_tokenizer(tmp_path):
    write_clip_vocabulary(tmp_path)
    assert isinstance(folder_tokenizer(tmp_path, 12), open_clip.SimpleTokenizer)
    assert folder_tokenizer(tmp_path, 12)(TEXTS).shape == (2, 12)


def test_canonicalize_is_open_clips():
    for text in ("A Photo, of a cat.", " two\n lines ", "don't", "", "a_b - c"):
        assert canonicalize(text) == open_clip.tokenizer.canonicalize_text(text.replace("_", "")), text


def test_what_was_understood_is_said(clip, siglip):
    assert "transformers' CLIP, 2 blocks of width 64, patches of 8 px in 32 px, quick_gelu, pictures shortest" in (
        load_transformers_folder(clip[0]).description
    )
    assert "transformers' SigLIP, 2 blocks of width 64" in load_transformers_folder(siglip[0]).description
