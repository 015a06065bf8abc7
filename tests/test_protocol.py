"""What a vision-language model must offer: the smallest one works, and each broken promise is named."""

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from qks.core import QKSError
from qks.evaluate.baselines import best_patch_scores
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.prompts import DEFAULT_TEMPLATES, PromptPool
from qks.model.tagger import QKS
from qks.vlp import VisionLanguageModel, check_vlp, fingerprint, load_vlp, protocol, register_vlp
from qks.vlp.frozen import tokenize
from qks.vlp.protocol import missing_names

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class Places:
    "Of a colour in the list."

    context_length = 1

    def __call__(self, texts, context_length=None):
        return torch.tensor([[list(COLOURS).index(text) if text in COLOURS else -1] for text in texts])


class Colours(VisionLanguageModel):
    "Patches are mean colours; pictures and texts meet in the space of red, green and blue."

    name = "colours"
    source = {"name": "colours"}
    image_size = 32
    width = 3
    embed_dim = 3
    n_tokens = 16
    grid = (4, 4)
    templates = ("{}",)

    def __init__(self):
        self.model = torch.nn.Module()
        self.model.register_buffer("colours", torch.tensor(list(COLOURS.values())))
        self.tokenizer = Places()
        self.projection = torch.eye(3)

    def preprocess(self, image):
        return pil_to_tensor(image.convert("RGB").resize((32, 32))).float() / 255

    def image_tokens(self, images):
        return torch.nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)

    def image_features(self, image_tokens):
        return image_tokens.mean(1)

    def text_features(self, texts):
        ids = tokenize(self, texts)
        return self.model.colours[ids[:, 0]]


def flag():
    "Blue, and red in the upper left quarter."
    picture = Image.new("RGB", (32, 32), "blue")
    picture.paste("red", (0, 0, 16, 16))
    return picture


def test_the_smallest_model_is_one():
    vlp = Colours()
    assert isinstance(vlp, VisionLanguageModel) and missing_names(vlp) == []
    check_vlp(vlp, ["red", "blue"])
    tokens = vlp.image_tokens(vlp.preprocess(flag())[None])
    scores = best_patch_scores(vlp, tokens, vlp.text_features(list(COLOURS)))
    assert scores.tolist() == [[1.0, 0.0, 1.0]]
    assert fingerprint(vlp) == fingerprint(Colours())


def test_a_model_of_open_clips_keeps_the_promises(make_vlp, tiny_vlp):
    check_vlp(tiny_vlp)
    check_vlp(make_vlp(vision={"pool_type": "avg"}))
    check_vlp(make_vlp(drop_cls=True))
    check_vlp(load_vlp())


def test_a_head_on_it_tags_and_is_loaded_again(tmp_path, monkeypatch):
    monkeypatch.setitem(protocol.REGISTERED_VLPS, "colours", None)  # removed behind the test

    @register_vlp("colours")
    def load_colours(device=None, precision="fp32"):
        return Colours()

    model = QKS(load_vlp("colours"), QKSHead(torch.eye(3), HeadConfig(n_queries=2, n_layers=1, n_heads=1)))
    assert model.pool.templates == ("{}",)
    tags = model.tag(flag(), ["red", "green"])
    model.save_pretrained(tmp_path)
    assert QKS.from_pretrained(tmp_path).tag(flag(), ["red", "green"]) == tags
    assert QKS.from_pretrained(tmp_path, vlp=Colours()).tag(flag(), ["red", "green"]) == tags


def test_a_registered_model_has_weights_of_its_own(monkeypatch):
    monkeypatch.setitem(protocol.REGISTERED_VLPS, "colours", lambda device, precision: Colours())
    for arguments in ({"pretrained": "openai"}, {"drop_cls": True}, {"quick_gelu": False}):
        with pytest.raises(QKSError, match="colours is a registered model, which brings its own weights"):
            load_vlp("colours", **arguments)


def test_the_pool_that_a_model_asks_for(tiny_vlp):
    assert PromptPool.of(Colours()).templates == ("{}",)
    assert PromptPool.of(tiny_vlp).templates == DEFAULT_TEMPLATES


def test_what_is_missing_is_named(tiny_vlp):
    class Half:
        name = "half"
        model = torch.nn.Module()

    assert not isinstance(Half(), VisionLanguageModel)
    assert missing_names(Half())[:3] == ["source", "preprocess", "tokenizer"]
    with pytest.raises(QKSError, match="Half is no vision-language model: it lacks source, preprocess"):
        check_vlp(Half())
    with pytest.raises(QKSError, match="pass a VLP, as load_vlp.*lacks source, preprocess, tokenizer; see"):
        QKS(Half(), QKSHead(tiny_vlp.projection, HeadConfig(n_layers=1)))


def with_(**changes):
    vlp = Colours()
    for name, value in changes.items():
        setattr(vlp, name, value)
    return vlp


def training_norm(images):
    "Batch normalisation that was left in training mode: a picture sees its neighbours."
    tokens = Colours().image_tokens(images)
    return tokens - tokens.mean(0, keepdim=True)


@pytest.mark.parametrize(
    "vlp, match",
    [
        (with_(n_tokens=17, grid=(4, 4)), r"the shape of image_tokens is \[2, 16, 3\], and the protocol says \[2, 17"),
        (with_(grid=(4, 5)), "n_tokens is 16, and the protocol says 20"),
        (with_(n_prefix=1), "n_tokens is 16, and the protocol says 17"),
        (with_(image_size=64), r"preprocessed images is \[2, 3, 32, 32\]"),
        (with_(image_tokens=lambda images: Colours().image_tokens(images).double()), "the type of image_tokens"),
        (with_(image_tokens=lambda images: Colours().image_tokens(images).requires_grad_()), "the gradient"),
        (with_(image_tokens=training_norm), "an image's tokens equal alone and in a batch is False"),
        (with_(projection=torch.eye(3, 4)), r"the shape of projection is \[3, 4\]"),
        (with_(image_features=lambda tokens: tokens), r"the shape of image_features is \[2, 16, 3\]"),
        (with_(text_features=lambda texts: torch.zeros(2, 4)), r"the shape of text_features is \[2, 4\]"),
        (with_(text_features=lambda texts: torch.full((2, 3), torch.nan)), "free of NaN"),
        (with_(text_features=lambda texts: torch.rand(2, 3)), "equal to those of their ids"),
        (with_(templates=("a photo",)), "the number of {} in the template 'a photo' is 0"),
        (with_(model=torch.nn.Identity()), "without weights and buffers"),
        (with_(model=torch.nn.Linear(2, 2)), "a weight that trains is True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_promise_is_named(vlp, match):
    with pytest.raises(QKSError, match=match) as caught:
        check_vlp(vlp, ["red", "blue"])
    assert str(caught.value).startswith("colours: ") and "\n" not in str(caught.value)
