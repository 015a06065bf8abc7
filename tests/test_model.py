"""The head against the authors' numbers and gradients; saving, loading and tagging under good and bad input."""

import json
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from qks.core import QKSError
from qks.model.authors import rename_authors_weights
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import AsymmetricLoss
from qks.model.prompts import PromptPool
from qks.model.scoring import head_scores, score_batches
from qks.model.tagger import QKS
from qks.vlp.frozen import VLP, fingerprint
from qks.vlp.loading import load_vlp

GOLDEN = {
    key: torch.from_numpy(np.asarray(value))
    for key, value in np.load(Path(__file__).parent / "data" / "model.npz").items()
}
WEIGHTS = {key.removeprefix("weights/"): value for key, value in GOLDEN.items() if key.startswith("weights/")}
GRADIENTS = rename_authors_weights(
    {key.removeprefix("grad/"): value for key, value in GOLDEN.items() if key.startswith("grad/")}
)
BATCH = GOLDEN["image_tokens"], GOLDEN["text_features"]
LABELS = ["cat", "dog", "bridge", "tree", "house"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8))


def close(actual, expected, rtol=1e-5, scale=None):
    # Sums of many terms lose what cancels in them, so an entry near zero is off by rounding of the tensor's large
    # entries: the tolerance is relative to the entry, plus as much relative to the largest entry of the tensor.
    scale = expected.abs().max().item() if scale is None else scale
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol * scale)


def refused(match, function, *args, **kwargs):
    "Expect a QKSError whose message is a single line that matches."
    with pytest.raises(QKSError, match=match) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- the authors' numbers


@pytest.fixture(scope="module")
def golden_head():
    return QKSHead.from_official(WEIGHTS, n_heads=4).eval()


@pytest.fixture(scope="module")
def golden_output(golden_head):
    with torch.no_grad():
        return golden_head(*BATCH, return_attention=True)


def test_sizes_are_read_off_the_weights(golden_head):
    config = golden_head.config
    assert (config.n_queries, config.n_layers, config.n_heads, config.ffn_width) == (5, 3, 4, 128)
    assert config.dropout == 0.1


def test_golden_logits(golden_output):
    close(golden_output.logits, GOLDEN["logits"])
    assert torch.equal(golden_output.token_index, GOLDEN["token_index"])


def test_golden_token_softmax(golden_head):
    with torch.no_grad():
        scores = (golden_head.extractor(BATCH[0]) @ golden_head.projection) @ BATCH[1].T  # [B, K, C]
    close(scores.softmax(1).transpose(1, 2), GOLDEN["token_softmax"])


@pytest.mark.parametrize("block", range(3))
def test_golden_attention(golden_output, block):
    assert len(golden_output.attention) == 3
    close(golden_output.attention[block], GOLDEN[f"attention/{block}"])


@pytest.fixture(scope="module")
def golden_backward():
    head = QKSHead.from_official(WEIGHTS, n_heads=4).eval()  # eval: no dropout, gradients all the same
    loss = AsymmetricLoss()(head(*BATCH).logits, GOLDEN["targets"])
    loss.backward()
    return loss.detach(), dict(head.named_parameters())


def test_golden_loss(golden_backward):
    np.testing.assert_allclose(golden_backward[0].item(), GOLDEN["asl_loss"].item(), rtol=1e-5)


def test_every_weight_has_a_golden_gradient(golden_backward):
    assert GRADIENTS.keys() == golden_backward[1].keys()


@pytest.mark.parametrize("name", GRADIENTS)
def test_golden_gradient(golden_backward, name):
    # Softmax ignores a shift common to all keys, so the gradient of a key bias is zero and what either side reports is
    # rounding (1e-5 of 50): it is measured on the scale of the query bias beside it.
    scale = GRADIENTS[name.replace(".key.bias", ".query.bias")].abs().max().item()
    close(golden_backward[1][name].grad, GRADIENTS[name], scale=scale)


@pytest.mark.parametrize("source", ["prefix", "pt", "safetensors", "nested"])
def test_other_ways_to_the_same_head(tmp_path, golden_head, source):
    state = tmp_path / f"qks.{'safetensors' if source == 'safetensors' else 'pt'}"
    if source == "prefix":
        state = {f"module.{key}": value for key, value in WEIGHTS.items()}
    if source == "pt":
        torch.save(WEIGHTS, state)
    if source == "nested":
        torch.save({"state_dict": WEIGHTS, "epoch": 3}, state)
    if source == "safetensors":
        save_file(WEIGHTS, state)
    head = QKSHead.from_official(state, n_heads=4)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), golden_head.parameters(), strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "clip_model.visual.proj",
        "clip_model.logit_scale",
        "net.embeddings.word_embeddings.weight",
        "net.embeddings.position_ids",
        "net.encoder.layer.0.intermediate.dense.weight",
        "net.encoder.layer.1.output.LayerNorm.bias",
        "module.clip_model.positional_embedding",
    ],
)
def test_unused_names_are_ignored(golden_head, name):
    head = QKSHead.from_official(WEIGHTS | {name: torch.zeros(3)}, n_heads=4)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), golden_head.parameters(), strict=True))


def test_loading_does_not_share_memory_with_the_state():
    head = QKSHead.from_official(WEIGHTS, n_heads=4)
    with torch.no_grad():
        head.projection.add_(1)
    assert not torch.equal(head.projection, WEIGHTS["proj"])


@pytest.mark.parametrize(
    "name",
    [
        "surprise",
        "net.head.weight",
        "net.encoder.layer.0.attention.self.gate.weight",
        "visual.proj",
        "net.encoder.layer.0",
        "net.encoder.layer.0.weight",
        "net.embeddings.LayerNorm.gamma",
        "net.encoder.layer.3.attention.self.query.weight",
    ],
)
def test_unknown_names_are_refused(name):
    refused(".", QKSHead.from_official, WEIGHTS | {name: torch.zeros(3)}, n_heads=4)


@pytest.mark.parametrize("name", [key for key in WEIGHTS if rename_authors_weights({key: 0})])
def test_missing_names_are_refused(name):
    refused(
        "not those of a QKS head",
        QKSHead.from_official,
        {key: value for key, value in WEIGHTS.items() if key != name},
        n_heads=4,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"proj": torch.zeros(48, 32)},
        {"proj": torch.zeros(64)},
        {"query_tokens": torch.zeros(5, 64)},
        {"net.encoder.layer.1.attention.self.query.weight": torch.zeros(64, 48)},
        {"net.encoder.layer.2.intermediate_query.dense.weight": torch.zeros(256, 64)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_architecture_is_refused(change):
    refused("not those of a QKS head", QKSHead.from_official, WEIGHTS | change, n_heads=4)


def test_heads_that_do_not_divide():
    refused("5 heads", QKSHead.from_official, WEIGHTS, n_heads=5)


def test_an_empty_state_and_a_missing_file(tmp_path):
    refused("not those of a QKS head", QKSHead.from_official, {})
    refused("does not exist", QKSHead.from_official, tmp_path / "nowhere.pt")


# ---- the head


def test_the_projection_starts_as_a_trainable_copy(tiny_vlp):
    head = QKSHead(tiny_vlp.projection, HeadConfig(3, 1))
    assert torch.equal(head.projection, tiny_vlp.projection) and head.projection.requires_grad
    with torch.no_grad():
        head.projection.add_(1)
    assert torch.equal(tiny_vlp.projection, tiny_vlp.model.visual.proj)


def test_output_shapes(golden_head):
    output = golden_head(*BATCH)
    assert output.logits.shape == output.token_index.shape == (3, 10) and output.attention is None
    assert ((0 <= output.token_index) & (output.token_index < 5)).all()


@pytest.mark.parametrize("seen", [1, 4, 9])
def test_new_labels_leave_the_others_alone(golden_head, golden_output, seen):
    with torch.no_grad():
        alone = golden_head(BATCH[0], BATCH[1][:seen])
    close(alone.logits, golden_output.logits[:, :seen], rtol=1e-6)
    assert torch.equal(alone.token_index, golden_output.token_index[:, :seen])


def test_scores_leave_the_device_batch_by_batch():
    events = []
    head = QKSHead(torch.randn(64, 8), HeadConfig(2, 1))
    head.register_forward_hook(lambda head, inputs, output: events.append((weakref.ref(output.logits), len(inputs[0]))))

    def batches():
        for tokens in torch.randn(5, 4, 64).split(2):
            assert all(logits() is None for logits, _ in events)  # of earlier batches nothing is left
            yield tokens

    scores = score_batches(head, batches(), torch.randn(3, 8), 5)
    assert scores.logits.shape == scores.token_index.shape == (5, 3)
    assert (scores.logits.dtype, scores.token_index.dtype) == (torch.float32, torch.int32)
    assert [size for _, size in events] == [2, 2, 1]


@pytest.mark.parametrize("batch_size", [1, 2, 256])
@pytest.mark.parametrize("training", [True, False])
def test_head_scores(golden_output, batch_size, training):
    head = QKSHead.from_official(WEIGHTS, n_heads=4).train(training)
    logits, index = head_scores(head, *BATCH, batch_size)
    close(logits, golden_output.logits)
    assert torch.equal(index, golden_output.token_index) and head.training == training and not logits.requires_grad


def test_a_head_is_on_the_device_of_its_projection():
    head = QKSHead(torch.empty(64, 8, device="meta"), HeadConfig(2, 1))  # in place of a GPU
    assert {weight.device.type for weight in head.parameters()} == {"meta"}


def test_zero_heads_are_refused():
    with pytest.raises(QKSError, match="n_heads is 0"):
        QKSHead.from_official(WEIGHTS, n_heads=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_queries": 0},
        {"n_layers": 0},
        {"n_queries": -3},
        {"n_heads": 0},
        {"ffn_width": 1.5},
        {"dropout": 1},
        {"dropout": -0.1},
        {"dropout": float("nan")},
        {"dropout": "0.1"},
        {"n_queries": "12"},
        {"n_layers": True},
    ],
    ids=str,
)
def test_impossible_sizes(wrong):
    (name,) = wrong
    refused(f"^{name} is .*: give", HeadConfig, **wrong)


def test_sizes_are_known_without_torch():
    "The command line reads them for its help, and must answer at once."
    program = "import sys, qks.model.config; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- the tagger: saving and loading


@pytest.fixture(scope="module")
def qks(tiny_vlp):
    torch.manual_seed(3)
    head = QKSHead(tiny_vlp.projection, HeadConfig(n_queries=4, n_layers=2, n_heads=2, ffn_width=96, dropout=0.2))
    return QKS(tiny_vlp, head, PromptPool(("a {}.", "the {} in the scene.")))


@pytest.fixture
def saved(qks, tmp_path):
    qks.save_pretrained(tmp_path / "deep" / "model")
    return tmp_path / "deep" / "model"


def test_round_trip_is_bit_equal(qks, saved, tiny_vlp):
    assert {path.name for path in saved.iterdir()} == {"config.json", "head.safetensors"}
    again = QKS.from_pretrained(saved, vlp=tiny_vlp)
    assert again.head.state_dict().keys() == qks.head.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.head.state_dict().values(), qks.head.state_dict().values()))
    assert again.pool.templates == qks.pool.templates and again.head.config == qks.head.config
    assert again.tag(PICTURE, LABELS) == qks.tag(PICTURE, LABELS)


def test_saving_again_gives_the_same_files(saved, tiny_vlp, tmp_path):
    QKS.from_pretrained(str(saved), vlp=tiny_vlp).save_pretrained(tmp_path / "again")
    for name in ("config.json", "head.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_loading_finds_the_vlp_by_itself(make_clip, tmp_path):
    torch.save(make_clip(text={"context_length": 12, "vocab_size": 49408}).state_dict(), tmp_path / "clip.pt")
    vlp = load_vlp(pretrained=tmp_path / "clip.pt")
    qks = QKS(vlp, QKSHead(vlp.projection, HeadConfig(3, 1)), PromptPool.single("a {}"))
    qks.save_pretrained(tmp_path / "model")
    again = QKS.from_pretrained(tmp_path / "model", device="cpu")
    assert fingerprint(again.vlp) == fingerprint(vlp) and again.tag(PICTURE, LABELS) == qks.tag(PICTURE, LABELS)


def test_another_vlp_is_refused(saved, make_vlp):
    refused("trained on another VLP than tiny-1", QKS.from_pretrained, saved, vlp=make_vlp(seed=1))


def test_another_activation_is_another_vlp(saved, make_vlp):
    refused("trained on another VLP", QKS.from_pretrained, saved, vlp=make_vlp(quick_gelu=False))


def test_a_head_of_another_width_is_refused(tiny_vlp):
    refused(r"\[64, 16\].*\[64, 32\]", QKS, tiny_vlp, QKSHead(torch.zeros(64, 16), HeadConfig(2, 1)))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b"{}", b"\xff\xfe", b'{"head": {}, "templates": ["a {}"], "vlp": {}}'],
    ids=repr,
)
def test_corrupt_config(saved, tiny_vlp, content):
    (saved / "config.json").write_bytes(content)
    refused("config.json is damaged", QKS.from_pretrained, saved, vlp=tiny_vlp)


@pytest.mark.parametrize("key", ["head", "templates", "vlp", "vlp_fingerprint"])
@pytest.mark.parametrize("how", ["missing", "null"])
def test_config_that_lacks_something(saved, tiny_vlp, key, how):
    config = json.loads((saved / "config.json").read_text())
    if how == "missing":
        del config[key]
    else:
        config[key] = None
    (saved / "config.json").write_text(json.dumps(config))
    refused(".", QKS.from_pretrained, saved, vlp=None if key == "vlp" else tiny_vlp)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"head": {"n_heads": 5, "dropout": 0.1}}, "5 heads"),
        ({"head": {"n_heads": 2, "dropout": 7}}, "."),
        ({"templates": ["no place"]}, "exactly one"),
        ({"vlp": {"name": "nonsense", "pretrained": "x"}}, "unknown model"),
        ({"vlp": {"surprise": 1}}, "."),
    ],
    ids=str,
)
def test_config_with_something_wrong(saved, tiny_vlp, change, match):
    config = json.loads((saved / "config.json").read_text()) | change
    (saved / "config.json").write_text(json.dumps(config))
    refused(match, QKS.from_pretrained, saved, vlp=None if "vlp" in change else tiny_vlp)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: save_file({"a": torch.zeros(2)}, path),
    ],
    ids=["missing", "empty", "cut", "other"],
)
def test_damaged_head(saved, tiny_vlp, damage):
    damage(saved / "head.safetensors")
    refused(".", QKS.from_pretrained, saved, vlp=tiny_vlp)


def test_no_saved_model(tmp_path):
    refused("not a saved QKS", QKS.from_pretrained, tmp_path)
    refused("not a saved QKS", QKS.from_pretrained, tmp_path / "nowhere")


# ---- the tagger: tagging


def test_an_answer_is_label_probability_token_most_probable_first(qks):
    (answer,) = qks.tag([PICTURE], LABELS)
    labels, probabilities, tokens = zip(*answer)
    assert sorted(labels) == sorted(LABELS) and list(probabilities) == sorted(probabilities, reverse=True)
    assert all(isinstance(p, float) and 0 <= p <= 1 for p in probabilities)
    assert all(isinstance(token, int) and 0 <= token < 4 for token in tokens)


def test_tag_is_the_sigmoid_of_the_logits(qks):
    output = qks.predict([PICTURE], qks.pool.embed(qks.vlp, LABELS))
    for label, probability, token in qks.tag(PICTURE, LABELS)[0]:
        c = LABELS.index(label)
        assert (
            probability == pytest.approx(output.logits[0, c].sigmoid().item(), rel=1e-6)
            and token == output.token_index[0, c]
        )


def test_order_survives_probabilities_that_round_to_one(qks, monkeypatch):
    "Logits are not normalised: 30 and 40 are both a probability of 1 in fp32, and 40 is still the better label."
    answer = qks.predict([PICTURE], qks.pool.embed(qks.vlp, LABELS))
    logits = torch.tensor([[30.0, -200.0, 40.0, 35.0, -150.0]])
    monkeypatch.setattr(qks, "predict", lambda *args, **kwargs: answer._replace(logits=logits))
    assert [row[0] for row in qks.tag(PICTURE, LABELS)[0]] == ["bridge", "tree", "cat", "house", "dog"]


@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_top_k(qks, top_k):
    assert qks.tag(PICTURE, LABELS, top_k=top_k)[0] == qks.tag(PICTURE, LABELS)[0][:top_k]


def test_threshold(qks):
    everything = qks.tag(PICTURE, LABELS)[0]
    middle = everything[2][1]
    assert qks.tag(PICTURE, LABELS, threshold=middle)[0] == everything[:3]  # at least this probable
    assert qks.tag(PICTURE, LABELS, threshold=middle, top_k=2)[0] == everything[:2]
    assert qks.tag(PICTURE, LABELS, threshold=0)[0] == everything and qks.tag(PICTURE, LABELS, threshold=1) == [[]]


@pytest.mark.parametrize(
    "labels",
    [["zeppelin"], ("a red car", "猫"), ["Cat", "cat"], (name for name in ("x", "y"))],
    ids=["one", "any text", "case", "generator"],
)
def test_any_labels(qks, labels):
    assert all(len(row) == 3 for row in qks.tag(PICTURE, labels)[0])


def test_more_labels_leave_the_probabilities_of_the_others(qks):
    few = {row[0]: row[1:] for row in qks.tag(PICTURE, LABELS[:2])[0]}
    many = {row[0]: row[1:] for row in qks.tag(PICTURE, LABELS + ["zeppelin", "a thing never trained"])[0]}
    for label in few:
        assert many[label][0] == pytest.approx(few[label][0], rel=1e-5) and many[label][1] == few[label][1]


@pytest.mark.parametrize(
    "kind", [str, Path, Image.open, lambda path: np.asarray(Image.open(path))], ids=["str", "Path", "PIL", "array"]
)
def test_kinds_of_image_agree(qks, tmp_path, kind):
    PICTURE.save(tmp_path / "a.png")
    assert qks.tag(kind(tmp_path / "a.png"), LABELS) == qks.tag([PICTURE], LABELS)


def test_any_iterable_of_images(qks):
    together = qks.tag([PICTURE, PICTURE.rotate(90)], LABELS)
    for images in (
        (picture for picture in (PICTURE, PICTURE.rotate(90))),
        {0: PICTURE, 1: PICTURE.rotate(90)}.values(),
    ):
        assert qks.tag(images, LABELS) == together


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA"])
def test_modes_of_image(qks, mode):
    image = PICTURE.convert(mode)
    assert qks.tag(image, LABELS) == qks.tag(image.convert("RGB"), LABELS)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3), (20, 30, 4), (1, 1, 3), (3, 200, 3)], ids=str)
def test_shapes_of_array(qks, shape):
    assert len(qks.tag(np.full(shape, 90, np.uint8), LABELS)[0]) == 5


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_list_of_images(qks, batch_size):
    images = [PICTURE, PICTURE.rotate(90), Image.new("RGB", (64, 32), "blue")]
    together = qks.tag(images, LABELS, batch_size=batch_size)
    assert len(together) == 3 and qks.tag(tuple(images), LABELS, batch_size=batch_size) == together
    for image, answer in zip(images, together):
        alone = {row[0]: row[1] for row in qks.tag(image, LABELS)[0]}
        assert {row[0]: pytest.approx(row[1], rel=1e-5) for row in answer} == alone


def test_tags_come_one_image_after_another(qks, tmp_path):
    "From an endless iterable, one batch ahead at most; an image that cannot be read is reported, or ends the run."
    (tmp_path / "broken.jpg").write_text("no picture")
    sources = [PICTURE, tmp_path / "broken.jpg", PICTURE.rotate(90), "gone.jpg", "gone too.jpg"] + [PICTURE] * 100
    taken = []
    unreadable = []

    def images():
        for number, image in enumerate(sources):
            taken.append(number)
            yield image

    def report(image, error):
        unreadable.append((image, str(error)))

    tagged = qks.tag_each(images(), LABELS, top_k=2, batch_size=2, unreadable=report)
    assert not taken
    first, second, third = (next(tagged) for _ in range(3))  # the first batch is images 0 and 2, the second 5 and 6
    assert first[0] is PICTURE and len(second[1]) == 2 and third[0] is PICTURE and taken == list(range(7))
    assert [tag.label for tag in first[1]] == [tag.label for tag in qks.tag(PICTURE, LABELS, top_k=2)[0]]
    assert [image for image, _ in unreadable] == [tmp_path / "broken.jpg", "gone.jpg", "gone too.jpg"]
    assert "broken.jpg is not an image" in unreadable[0][1]
    refused("broken.jpg is not an image", list, qks.tag_each([PICTURE, tmp_path / "broken.jpg"], LABELS))
    refused("top_k is 9", qks.tag_each, [PICTURE], LABELS, 9)


def test_tagging_twice_is_the_same_even_after_training_mode(qks):
    first = qks.tag(PICTURE, LABELS)
    qks.head.train()
    assert qks.tag(PICTURE, LABELS) == first


def test_tagging_embeds_labels_once(qks, monkeypatch):
    labels = [f"thing {i}" for i in range(7)]
    calls = []
    original = VLP.text_features
    monkeypatch.setattr(VLP, "text_features", lambda self, texts: (calls.append(1), original(self, texts))[1])
    for _ in range(3):
        qks.tag([PICTURE] * 5, labels, batch_size=2)
    assert len(calls) == len(labels)


@pytest.mark.parametrize("labels", [[], ["cat", ""], ["cat", "cat"], ["cat", 3], "cat", [None]], ids=repr)
def test_bad_labels(qks, labels):
    refused("label", qks.tag, PICTURE, labels)


@pytest.mark.parametrize("top_k", [0, -1, 6, 2.5, "3"])
def test_bad_top_k(qks, top_k):
    refused("top_k is .*from 1 to 5", qks.tag, PICTURE, LABELS, top_k=top_k)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf"), "half"])
def test_bad_threshold(qks, threshold):
    refused("threshold is ", qks.tag, PICTURE, LABELS, threshold=threshold)


def test_all_files_are_checked_before_the_first_is_tagged(qks, tmp_path, monkeypatch):
    PICTURE.save(tmp_path / "a.png")
    monkeypatch.setattr(qks, "predict", None)  # a call would fail
    images = [tmp_path / "a.png"] * 3 + [tmp_path / "nowhere.jpg"]
    refused("nowhere.jpg does not exist", qks.tag, images, LABELS, batch_size=1)


def test_no_image_and_bad_images(qks, tmp_path):
    refused("no image was given", qks.tag, [], LABELS)
    refused("nowhere.jpg does not exist", qks.tag, [PICTURE, tmp_path / "nowhere.jpg"], LABELS)
    for wrong in (None, 3, b""):
        refused("must be a path, a PIL image or a uint8 array", qks.tag, wrong, LABELS)


def test_predict_returns_attention_on_request(qks):
    embeddings = qks.pool.embed(qks.vlp, LABELS)
    output = qks.predict([PICTURE, PICTURE], embeddings, return_attention=True)
    assert [weights.shape for weights in output.attention] == [(2, 2, 4, 17)] * 2
    assert qks.predict([PICTURE], embeddings).attention is None
    assert not output.logits.requires_grad


@pytest.mark.parametrize("batch_size", [0, 1.5])
def test_bad_batch_size(qks, batch_size):
    refused("batch_size is", qks.tag, PICTURE, LABELS, batch_size=batch_size)


def test_a_run_can_be_given_for_its_model(qks, tmp_path):
    qks.save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text("{}")  # of the run
    assert QKS.from_pretrained(tmp_path / "run", qks.vlp).tag(PICTURE, LABELS) == qks.tag(PICTURE, LABELS)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text('{"train": {}}')
    refused("the run in .*begun has no model yet: continue it", QKS.from_pretrained, tmp_path / "begun", qks.vlp)
    refused("empty is not a saved QKS", QKS.from_pretrained, tmp_path / "empty", qks.vlp)


def test_a_model_knows_its_labels(qks, tmp_path):
    QKS(qks.vlp, qks.head, qks.pool, ["sea", "sand", "sea"]).save_pretrained(tmp_path)
    assert QKS.from_pretrained(tmp_path, qks.vlp).labels == ("sea", "sand")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["labels"]  # written by an older version
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert QKS.from_pretrained(tmp_path, qks.vlp).labels == ()


def test_something_other_than_a_vlp_is_refused(qks, tmp_path):
    qks.save_pretrained(tmp_path)
    refused("vlp is 'ViT-B-16': pass a VLP", QKS.from_pretrained, tmp_path, "ViT-B-16")
    refused("vlp is 'ViT-B-16': pass a VLP", QKS, "ViT-B-16", qks.head)


def test_a_missing_device_is_reported_as_such(qks, tmp_path):
    qks.save_pretrained(tmp_path)
    refused("^device 'abacus' is not available", QKS.from_pretrained, tmp_path, None, "abacus")


def test_a_run_without_a_model_says_how_to_continue(tmp_path):
    for name, config, remedy in (
        ("trained", {"train": {}}, "qks train … --resume"),
        ("reproduced", {"train": {}, "data": {}}, "run qks reproduce --force --out .*reproduced again"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        with pytest.raises(QKSError, match=remedy):
            QKS.from_pretrained(tmp_path / name)
