"""What every test shares: no network, one thread, a cache of its own, and a tiny vision-language model."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the hub's client is imported: before any other import

import open_clip
import pytest
import torch

from qks.vlp.frozen import VLP


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QKS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


TINY_MODELS = {  # architectures of the tests' weight files, as open_clip's model configurations
    "tiny": {"context_length": 24, "vocab_size": 49408, "layers": 1},
    "golden": {"context_length": 77, "vocab_size": 128, "layers": 2},
}


@pytest.fixture(scope="session", autouse=True)
def named_models(tmp_path_factory):
    "open_clip knows the tests' models by name, with GELU, and with QuickGELU as `NAME-quickgelu`."
    folder = tmp_path_factory.mktemp("models")
    vision = {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32}
    for name, text in TINY_MODELS.items():
        config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": {"width": 64, "heads": 1, **text}}
        (folder / f"{name}.json").write_text(json.dumps(config))
        (folder / f"{name}-quickgelu.json").write_text(json.dumps(config | {"quick_gelu": True}))
    open_clip.add_model_config(folder)


def random_clip(seed=0, quick_gelu=True, vision=None, text=None):
    "A CLIP with random weights: ViT of 2 blocks on 32 px in patches of 8 (17 tokens), D = 64, E = 32."
    torch.manual_seed(seed)
    vision = open_clip.CLIPVisionCfg(**{"layers": 2, "width": 64, "patch_size": 8, "image_size": 32} | (vision or {}))
    text = open_clip.CLIPTextCfg(**{"context_length": 24, "width": 64, "heads": 1, "layers": 1} | (text or {}))
    return open_clip.CLIP(32, vision, text, quick_gelu=quick_gelu)


@pytest.fixture(scope="session")
def make_clip():
    return random_clip


@pytest.fixture(scope="session")
def make_vlp():
    "Build a VLP from `random_clip`'s arguments; seed 0 is the tiny VLP."

    def make(seed=0, drop_cls=False, precision="fp32", **kwargs):
        model = random_clip(seed, **kwargs)
        tokenizer = open_clip.SimpleTokenizer(context_length=model.positional_embedding.shape[0])
        preprocess = open_clip.image_transform(model.visual.image_size, is_train=False)
        return VLP(model, preprocess, tokenizer, f"tiny-{seed}", precision, drop_cls)

    return make


@pytest.fixture(scope="session")
def tiny_vlp(make_vlp):
    return make_vlp()
