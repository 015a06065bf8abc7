"""Training-free readouts: against the tower's own output, cases worked out by hand, and real layouts."""

import inspect
import json
from types import SimpleNamespace

import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from qks.commands.main import main
from qks.core import QKSError, load_image
from qks.data.pocket import PocketConfig, write_pocket
from qks.data.splits import open_splits
from qks.evaluate.baselines import best_patch_scores, readout_rows, zero_shot_scores
from qks.evaluate.metrics import evaluate_scores
from qks.model.prompts import PromptPool
from qks.model.tagger import QKS, Tagger
from qks.readouts.block import ATTENTIONS, LastBlock, attention_weights, read_states
from qks.readouts.local_global import LocalGlobalReadout
from qks.readouts.patches import PatchReadout, mean_of_best
from qks.readouts.readout import NO_TOKEN
from qks.readouts.registry import READOUT_NAMES, READOUTS, available_readouts, choose_readout, find_readout
from qks.readouts.self_attention import SelfAttentionReadout
from qks.readouts.standardised import standardise
from qks.readouts.tagger import ZeroShotTagger, load
from qks.readouts.windows import WindowReadout, crop_boxes
from qks.vlp.loading import load_vlp
from qks.vlp.towers import find_tower

OPEN_BLOCK = ["vv", "qq-kk", "clear"]  # these need the last block


@pytest.fixture(scope="module")
def pocket():
    return load_vlp("pocket", device="cpu")


@pytest.fixture(params=["pocket", "tiny", "without CLS"])
def vlp(request, pocket, make_vlp):
    return pocket if request.param == "pocket" else make_vlp(drop_cls=request.param == "without CLS")


def noise(vlp, count=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, vlp.image_size, vlp.image_size, generator=generator)


def labels_of(vlp):
    return vlp.text_features(["a cat", "a red bus", "the sun", "a house"])


# --- attention, by hand ---


def test_two_tokens_by_hand():
    "One channel: products of the values are 9 and -3 in the first row, so its weights are 1 and e to the -12."
    q = torch.tensor([[1.0], [0.0]])
    k = torch.tensor([[0.0], [2.0]])
    v = torch.tensor([[3.0], [-1.0]])
    e = torch.exp(torch.tensor([-12.0, -4.0, 1.0, 2.0, 4.0]))
    one = torch.ones(())
    expected = {
        "vv": [[one, e[0]], [e[1], one]],  # 9 against -3; -3 against 1
        "qq": [[e[2], one], [one, one]],  # 1 against 0; 0 against 0
        "qk": [[one, e[3]], [one, one]],  # 0 against 2; 0 against 0
    }
    for kind, rows in expected.items():
        rows = torch.stack([torch.stack(row) for row in rows])
        torch.testing.assert_close(attention_weights(kind, q, k, v), rows / rows.sum(1, keepdim=True))
    kk = torch.stack([torch.stack([one, one]), torch.stack([one, e[4]])])  # 0 against 0; 0 against 4
    both = attention_weights("qq", q, k, v) + kk / kk.sum(1, keepdim=True)
    torch.testing.assert_close(attention_weights("qq+kk", q, k, v), both)


def test_the_scale_is_that_of_the_heads_width():
    q = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    weights = attention_weights("qq", q, q, q)
    assert weights[0, 0].item() == pytest.approx(torch.tensor(2.0).sigmoid().item())  # 4 / sqrt(4) against 0


# --- the last block ---


def test_queries_and_keys_give_back_the_tower(vlp):
    images = noise(vlp)
    states = read_states(vlp, images, with_block=True)
    assert torch.equal(states.tokens, vlp.image_tokens(images))
    again = LastBlock(vlp).tokens(states.block_inputs, "qk")[:, vlp.first_token :]
    torch.testing.assert_close(again, states.tokens, rtol=1e-4, atol=1e-4)
    for attention in ATTENTIONS[1:]:
        other = LastBlock(vlp).tokens(states.block_inputs, attention)[:, vlp.first_token :]
        assert (other - states.tokens).abs().max() > 1e-3


def test_alone_leaves_the_sums_out(pocket):
    "By torch's own attention layer: its output for the normed input, and nothing added to it."
    states = read_states(pocket, noise(pocket), with_block=True)
    block = pocket.tower.visual.trunk.blocks[-1]
    with torch.no_grad():
        normed = block.norm1(states.block_inputs)
        expected = pocket.tower.visual.trunk.norm(block.self_attn(normed, normed, normed, need_weights=False)[0])
    torch.testing.assert_close(
        LastBlock(pocket).tokens(states.block_inputs, "qk", alone=True), expected, rtol=1e-4, atol=1e-4
    )


def test_a_block_that_computes_something_else_is_refused(make_vlp):
    vlp = make_vlp()
    block = vlp.model.visual.transformer.resblocks[-1]
    block.ls_2 = torch.nn.Threshold(0.0, 0.0)
    LastBlock(vlp)  # a layer scale of another kind is called like its own
    plain = block.forward

    def another(x, **kwargs):
        return plain(x, **kwargs) + 1

    block.forward = another
    with pytest.raises(QKSError, match="computes something else than attention and MLP"):
        LastBlock(vlp)


def test_nothing_is_left_on_the_tower(make_vlp):
    vlp = make_vlp()
    block = vlp.model.visual.transformer.resblocks[-1]
    read_states(vlp, noise(vlp), with_block=True)
    with pytest.raises(RuntimeError):
        read_states(vlp, torch.zeros(1, 3, 5, 5), with_block=True)
    assert not block._forward_pre_hooks


# --- each readout ---


def test_cls_is_the_models_own_answer(pocket, make_vlp):
    for vlp in (pocket, make_vlp()):
        images = noise(vlp)
        labels = labels_of(vlp)
        with torch.no_grad():
            own = normalize(vlp.model.encode_image(images), dim=-1) @ normalize(labels, dim=-1).T
        states = read_states(vlp, images)
        found = READOUTS["cls"].score_states(vlp, states, labels)
        torch.testing.assert_close(found.scores, own, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.scores, zero_shot_scores(vlp, states.tokens, labels))
        assert (found.token_index == NO_TOKEN).all()


def test_best_patch_is_that_of_the_baselines(vlp):
    states = read_states(vlp, noise(vlp))
    labels = labels_of(vlp)
    found = READOUTS["best-patch"].score_states(vlp, states, labels)
    torch.testing.assert_close(found.scores, best_patch_scores(vlp, states.tokens, labels))
    embedded = normalize(states.tokens @ vlp.projection, dim=-1)  # [B, N, E]
    scores = embedded @ normalize(labels, dim=-1).T  # [B, N, C]
    torch.testing.assert_close(scores.gather(1, found.token_index[:, None])[:, 0], found.scores)
    assert (found.token_index >= vlp.n_prefix).all()


def test_the_mean_of_the_best_by_hand():
    scores = torch.tensor([[[0.1], [0.7], [0.4], [0.6]]])  # [B, P, C]
    for m, expected in ((1, 0.7), (2, 0.65), (3, 1.7 / 3), (4, 0.45), (16, 0.45)):
        assert mean_of_best(scores, m).item() == pytest.approx(expected)


def test_many_labels_are_read_a_few_images_at_a_time(pocket, monkeypatch):
    states = read_states(pocket, noise(pocket, 5), with_block=True)
    labels = labels_of(pocket)
    whole = {name: READOUTS[name].score_states(pocket, states, labels) for name in ("top-patches", "vv")}
    monkeypatch.setattr("qks.readouts.patches.MAX_PATCH_SCORES", 2 * 36 * len(labels))
    for name, expected in whole.items():
        found = READOUTS[name].score_states(pocket, states, labels)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
        assert torch.equal(found.token_index, expected.token_index)


def test_self_attention_with_queries_and_keys_is_the_best_patch(vlp):
    states = read_states(vlp, noise(vlp), with_block=True)
    labels = labels_of(vlp)
    same = SelfAttentionReadout(attention="qk").score_states(vlp, states, labels)
    own = PatchReadout().score_states(vlp, states, labels)
    torch.testing.assert_close(same.scores, own.scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(same.token_index, own.token_index)


# --- which model has which ---


def test_towers_without_a_block_say_what_they_have(make_vlp):
    resnet = make_vlp(vision={"layers": (1, 1, 1, 1), "width": 8, "head_width": 8, "image_size": 64})
    has = available_readouts(resnet)
    assert not set(OPEN_BLOCK) & set(has) and {"cls", "best-patch", "top-patches"} <= set(has)
    for name in OPEN_BLOCK:
        with pytest.raises(QKSError) as error:
            choose_readout(resnet, name)
        assert repr(name) in str(error.value) and f"it has {', '.join(has)}" in str(error.value)
    choose_readout(resnet).check(resnet)


def test_without_its_cls_token_a_vit_has_patches(make_vlp):
    vlp = make_vlp(drop_cls=True)
    assert "cls" not in available_readouts(vlp) and {"best-patch", *OPEN_BLOCK} <= set(available_readouts(vlp))


@pytest.mark.parametrize("name", ["best patch", "CLS", 7, ""])
def test_unknown_readouts(name, pocket):
    with pytest.raises(QKSError, match="there is no readout"):
        find_readout(name)


# --- the tagger ---


def test_one_interface():
    "Whatever can be asked of a trained model can be asked without training, with the same arguments."
    for name in ("tag", "tag_each", "embed", "predict"):
        signatures = [
            [(p.name, p.default) for p in inspect.signature(getattr(kind, name)).parameters.values()]
            for kind in (QKS, ZeroShotTagger)
        ]
        assert signatures[0] == signatures[1], name
    assert issubclass(QKS, Tagger) and issubclass(ZeroShotTagger, Tagger)


def test_the_score_is_clips_choice_between_label_and_object(pocket):
    "By CLIP's own formula: a softmax over two texts, with its own scale."
    tagger = ZeroShotTagger(pocket, "cls")
    picture = Image.effect_noise((96, 96), 80).convert("RGB")
    tags = tagger.tag(picture, ["cat", "bus"])[0]
    texts = tagger.pool.embed(pocket, ["cat", "bus", "object"])
    image = pocket.image_features(pocket.image_tokens(pocket.preprocess(picture)[None]))
    cosines = normalize(image, dim=-1) @ normalize(texts, dim=-1).T
    scale = pocket.model.logit_scale.exp()
    for tag in tags:
        column = ["cat", "bus"].index(tag.label)
        pair = (scale * cosines[0, [column, 2]]).softmax(0)
        assert tag.score == pytest.approx(pair[0].item(), rel=1e-3)
    assert [tag.score for tag in tags] == sorted((tag.score for tag in tags), reverse=True)


def test_a_score_does_not_depend_on_the_other_labels(pocket):
    picture = Image.effect_noise((96, 96), 80).convert("RGB")
    tagger = ZeroShotTagger(pocket, "best-patch")
    alone = tagger.tag(picture, ["cat"])[0][0]
    among = {tag.label: tag for tag in tagger.tag(picture, ["sun", "cat", "bus", "house"])[0]}
    assert among["cat"].score == pytest.approx(alone.score, rel=1e-4)


def test_a_model_with_a_bias_knows_its_own_zero(make_vlp):
    vlp = make_vlp()
    vlp.logit_bias = -10.0
    tagger = ZeroShotTagger(vlp, "cls")
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    logits = tagger.predict(picture, tagger.embed(["cat", "bus"])).logits
    image = vlp.image_features(vlp.image_tokens(vlp.preprocess(picture)[None]))
    cosines = normalize(image, dim=-1) @ normalize(tagger.embed(["cat", "bus"]), dim=-1).T
    torch.testing.assert_close(logits, vlp.model.logit_scale.exp().item() * cosines - 10, rtol=1e-4, atol=1e-4)


def test_temperature_and_bias_are_for_calibration(pocket):
    tagger = ZeroShotTagger(pocket, "cls")
    picture = Image.effect_noise((96, 96), 80).convert("RGB")
    labels = tagger.embed(["cat", "bus"])
    before = tagger.predict(picture, labels).logits
    tagger.temperature = 4.0
    tagger.bias = 1.5
    torch.testing.assert_close(tagger.predict(picture, labels).logits, before / 4 + 1.5)


def test_weights_by_name_without_training(tmp_path):
    "CLIP's real layout with random weights: every readout answers, and a threshold of 0 keeps all labels."
    tagger = load("ViT-B-16-quickgelu", False, readout="vv", device="cpu")
    assert tagger.vlp.n_tokens == 197 and set(OPEN_BLOCK) <= set(available_readouts(tagger.vlp))
    picture = Image.effect_noise((240, 200), 80).convert("RGB")
    tags = tagger.tag(picture, ["cat", "dog"], threshold=0.0)[0]
    assert len(tags) == 2 and all(1 <= tag.token < 197 for tag in tags)
    images = tagger.vlp.preprocess(picture)[None]
    states = read_states(tagger.vlp, images, with_block=True)
    again = LastBlock(tagger.vlp).tokens(states.block_inputs)
    torch.testing.assert_close(again, tagger.vlp.image_tokens(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name, opens", [("ViT-B-16-SigLIP", True), ("EVA02-B-16", False), ("RN50-quickgelu", False)])
def test_other_layouts_with_random_weights(name, opens):
    "A timm ViT opens as CLIP's does; one with rotary positions, and a ResNet, say that they do not."
    visual = open_clip.create_model(name, load_weights=False).visual.eval()
    tower = find_tower(visual) if opens else SimpleNamespace(visual=visual)
    vlp = SimpleNamespace(tower=tower, width=768, device=torch.device("cpu"), precision="fp32", name=name)
    if not opens:
        with pytest.raises(QKSError, match=f"the image tower of {name} .* has no last block that can be opened"):
            LastBlock(vlp)
        return
    tokens = torch.randn(1, 9, 768)
    with torch.no_grad():
        expected = tower.finish(visual.trunk.norm(visual.trunk.blocks[-1](tokens)))  # pooled by attention
    torch.testing.assert_close(LastBlock(vlp).tokens(tokens), expected, rtol=1e-4, atol=1e-4)


# --- the command ---


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_noise((96, 96), 80).convert("RGB").save(path)
    return path


def test_tags_without_a_model(picture, capsys):
    words = ["tag", str(picture), "--labels", "cat,bus,sun", "--vlp", "pocket"]
    assert main([*words, "--readout", "cls", "--json"]) == 0
    told = capsys.readouterr()
    tags = json.loads(told.out)[0]["tags"]
    assert [tag["score"] for tag in tags] == sorted((tag["score"] for tag in tags), reverse=True) and len(tags) == 3
    assert "without training" in told.err and "no probabilities" in told.err
    assert main(words) == 0
    assert "%" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, told",
    [
        (["--labels", "a,b", "--readout", "clss"], "there is no readout 'clss': did you mean 'cls'?"),
        (["--labels", "a,b", "--readout", "cls", "--model", "pocket"], "leave --readout or --model out"),
        (["--labels", "a,b", "--threshold", "2"], "threshold is 2"),
        (["--labels", "a,b", "--vlp", "RN50"], "needs weights"),
        (["--labels", "a,b", "--pretrained", "nonsense"], "neither an existing file nor a weight tag of ViT-B-16"),
    ],
)
def test_mistakes_without_a_model(picture, capsys, words, told):
    assert main(["tag", str(picture), *words]) == 2
    assert told in capsys.readouterr().err


def test_without_a_connection_the_file_to_bring_is_named_at_once(picture, capsys, monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **kwargs: pytest.fail("tried to fetch"))
    monkeypatch.setattr("qks.vlp.sources.weight_bytes", lambda name: 598_000_000)
    assert main(["tag", str(picture), "--labels", "cat,dog"]) == 2
    told = capsys.readouterr().err
    for part in (
        "the weights 'openai' of ViT-B-16 are not on this machine",
        "timm/vit_base_patch16_clip_224.openai/resolve/main/open_clip_model.safetensors",
        "--vlp ViT-B-16-quickgelu --pretrained PATH",
    ):
        assert part in told


def test_the_file_that_was_brought_works_as_the_sentence_says(picture, tmp_path, capsys, make_clip):
    "A weight file beside its model's name, through the whole command."
    model = open_clip.create_model("tiny-quickgelu", load_weights=False)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    words = ["tag", str(picture), "--labels", "cat,dog", "--vlp", "tiny-quickgelu"]
    assert main([*words, "--pretrained", str(tmp_path / "weights.pt"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["tags"]) == 2


# --- local + global, windows, standardised scores ---


def test_local_and_global_by_hand(pocket):
    "Each part at length one over the labels; the unit brings the mean of both lengths back."
    states = read_states(pocket, noise(pocket))
    labels = labels_of(pocket)
    whole = READOUTS["cls"].score_states(pocket, states, labels).scores
    local = READOUTS["top-patches"].score_states(pocket, states, labels).scores
    found = READOUTS["local-global"].score_states(pocket, states, labels)
    for row in range(len(whole)):
        expected = (whole[row] / whole[row].norm() + local[row] / local[row].norm()) / 2
        torch.testing.assert_close(found.scores[row], expected)
        assert found.unit[row].item() == pytest.approx((whole[row].norm() + local[row].norm()).item() / 2)


class VectorInPlaceOfPatches(PatchReadout):
    "The VLP's own vector as the local part, too."

    def score_states(self, vlp, states, label_embeddings):
        return READOUTS["cls"].score_states(vlp, states, label_embeddings)


def test_a_tagger_reads_local_and_global_on_the_scale_of_cosines(pocket):
    "With the VLP's own vector as both parts the answer is that of the vector alone."
    picture = Image.effect_noise((96, 96), 80).convert("RGB")
    logits = []
    for readout in ("cls", LocalGlobalReadout(VectorInPlaceOfPatches())):
        tagger = ZeroShotTagger(pocket, readout)
        logits.append(tagger.predict(picture, tagger.embed(["cat", "bus", "sun"])).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (31, 7), (640, 480), (480, 640), (1, 50)])
@pytest.mark.parametrize("part, overlap", [(0.5, 0.5), (1.0, 0.0), (0.3, 0.25)])
def test_crops_cover_the_picture(size, part, overlap):
    width, height = size
    boxes = crop_boxes(width, height, part, overlap)
    covered = torch.zeros(height, width, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height and right - left == bottom - top
        covered[top:bottom, left:right] = True
    assert len(set(boxes)) == len(boxes)
    if overlap:
        assert covered.all()


def test_windows_take_the_best_view_of_each_picture(pocket):
    "By a loop over views, for pictures of different shapes in one batch."
    labels = labels_of(pocket)
    pictures = [Image.effect_noise(size, 80).convert("RGB") for size in ((96, 96), (200, 96), (50, 120))]
    windows = WindowReadout(READOUTS["cls"])
    found = windows.score_pictures(pocket, pictures, labels).scores
    for picture, row in zip(pictures, found):
        views = [picture, *(picture.crop(box) for box in crop_boxes(*picture.size))]
        expected = torch.stack([READOUTS["cls"].score_pictures(pocket, [view], labels).scores[0] for view in views])
        torch.testing.assert_close(row, expected.amax(0), rtol=1e-4, atol=1e-5)


def test_standardised_scores_by_hand():
    scores = torch.tensor([[0.0, 1.0, 5.0], [2.0, 1.0, 3.0], [4.0, 4.0, 1.0]])
    expected = (scores - scores.mean(0)) / scores.std(0, correction=0)
    torch.testing.assert_close(standardise(scores), expected)
    with pytest.raises(QKSError, match="only one"):
        standardise(scores[:1])


def test_a_transductive_tagger_sees_all_pictures_before_the_first_answer(pocket):
    "The same tags in batches of one and of all; the sigmoid of a label's standardised score."
    pictures = [Image.effect_noise((96, 96), sigma).convert("RGB") for sigma in (10, 60, 120, 200)]
    tagger = ZeroShotTagger(pocket, "standardised:cls")
    by_one = tagger.tag(pictures, ["cat", "bus"], batch_size=1)
    assert [len(tags) for tags in by_one] == [2] * 4
    raw = READOUTS["cls"].score_pictures(pocket, pictures, tagger.embed(["cat", "bus"])).scores
    z = (raw - raw.mean(0)) / raw.std(0, correction=0)
    for tags, row in zip(by_one, z):
        found = {tag.label: tag.score for tag in tags}
        for label, value in zip(["cat", "bus"], row):
            assert found[label] == pytest.approx(value.sigmoid().item(), abs=1e-3)
    with pytest.raises(QKSError, match="only one"):
        tagger.tag(pictures[:1], ["cat", "bus"])


# --- rows of `qks evaluate --baselines` ---


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_pocket(tmp_path_factory.mktemp("scenes") / "pocket-wide", PocketConfig(n_train=1, n_test=12))


def test_readouts_are_rows_of_an_evaluation(scenes, tmp_path, pocket, capsys):
    words = ["evaluate", "pocket", str(scenes), "--device", "cpu", "--json", str(tmp_path / "report.json")]
    assert main([*words, "--baselines", "vv", "windows:cls", "standardised:cls"]) == 0
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert list(rows) == [
        "QKS",
        "VLP zero-shot, one prompt",
        "VLP zero-shot, prompt pool",
        "VLP best patch",
        "VLP v-v attention",
        "VLP windows, zero-shot, prompt pool",
        "VLP standardised scores (transductive), zero-shot, prompt pool",
    ]
    metrics = {row: next(iter(protocols.values()))["metrics"] for row, protocols in rows.items()}
    zero_shot = metrics["VLP zero-shot, prompt pool"]
    transductive = metrics["VLP standardised scores (transductive), zero-shot, prompt pool"]
    assert transductive["seen"]["mAP"] == pytest.approx(zero_shot["seen"]["mAP"])  # within a label no order changes
    index = open_splits(scenes)["test"]
    labels = index.dense().labels
    images = torch.stack([pocket.preprocess(load_image(index.path(row))) for row in range(len(index))])
    embeddings = PromptPool().embed(pocket, index.label_names)
    states = read_states(pocket, images, with_block=True)
    scores = READOUTS["vv"].score_states(pocket, states, embeddings).scores
    expected = evaluate_scores(scores, labels, index.n_seen, (3, 5))
    assert metrics["VLP v-v attention"]["gzsl"]["mAP"] == pytest.approx(expected["gzsl"]["mAP"], abs=1e-4)


def test_all_readouts_are_rows(pocket):
    rows = readout_rows(pocket, ["all"])
    assert len(rows) == len(READOUT_NAMES) - 2  # cls and best patch are rows anyway
    assert list(readout_rows(pocket, ["vv", "all"]))[0] == "VLP v-v attention"


def test_a_row_that_nobody_knows(scenes, capsys):
    assert main(["evaluate", "pocket", str(scenes), "--baselines", "vvv"]) == 2
    assert "there is no readout 'vvv'" in capsys.readouterr().err
