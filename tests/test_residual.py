"""A head that begins as the frozen model's own score: the formula, its start, its gradients, epoch 0, and its files."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from qks.commands.main import main
from qks.core import QKSError
from qks.evaluate.baselines import best_patch_scores
from qks.evaluate.metrics import evaluate_scores
from qks.experiment.training_run import suit_labels
from qks.model import training_free as training_free_module
from qks.model.config import SCORE_KINDS, HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import bce_loss
from qks.model.prompts import PromptPool
from qks.model.residual import ResidualHead, head_from_state, make_head, own_scale_and_bias
from qks.model.scoring import head_scores
from qks.model.tagger import QKS
from qks.model.training_free import TOP_PATCHES, training_free_score
from qks.train.checkpoint import list_checkpoints
from qks.train.config import RunConfig, TrainConfig
from qks.train.loop import fit
from qks.train.prior import LEAST_COMMON, fit_scale_and_bias, mean_cosine, start_head
from qks.train.targets import Targets

SMALL = HeadConfig(n_queries=3, n_layers=1, readout="residual")
D = 64
E = 16
S = 12


def make(config=SMALL, n_prefix=0):
    torch.manual_seed(0)
    return ResidualHead(torch.randn(D, E) / 8, config, n_prefix)


@pytest.fixture
def data():
    "Tokens [n, N, D], labels [n, S] that the best patch knows something about, and embeddings [S, E]."
    torch.manual_seed(1)
    tokens = torch.randn(80, 9, D)
    embeddings = torch.randn(S, E) + 1
    score = training_free_score(tokens, make().projection.detach(), embeddings)
    labels = torch.where(score + 0.1 * torch.randn(80, S) > score.quantile(0.85), 1.0, -1.0)
    return tokens, labels, embeddings


# the training-free score


def plain_score(tokens, projection, labels, n_prefix, kind):
    "Each kind in a line of plain PyTorch, for one picture and one label."
    patches = tokens[n_prefix:] @ projection
    cosines = torch.stack([torch.cosine_similarity(patch, labels, dim=0) for patch in patches])
    if kind == "top-patches":
        return cosines.sort(descending=True).values[:TOP_PATCHES].mean()
    whole = (tokens[0] if n_prefix else tokens.mean(0)) @ projection
    if kind == "local-global":
        return (cosines.max() + torch.cosine_similarity(whole, labels, dim=0)) / 2
    return cosines.max()


@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize("n_prefix", [0, 1])
@pytest.mark.parametrize("max_scores", [2**22, 100])
def test_scores_are_those_of_the_plain_formula(monkeypatch, kind, n_prefix, max_scores):
    "Also where labels are taken a few at a time."
    monkeypatch.setattr(training_free_module, "MAX_SCORES", max_scores)
    torch.manual_seed(0)
    tokens = torch.randn(2, 21, D)
    projection = torch.randn(D, E)
    labels = torch.randn(5, E)
    scores = training_free_score(tokens, projection, labels, n_prefix, kind)
    expected = [[plain_score(image, projection, label, n_prefix, kind) for label in labels] for image in tokens]
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_the_precision_of_the_head_is_not_that_of_the_score():
    torch.manual_seed(0)
    tokens = torch.randn(2, 9, D)
    projection = torch.randn(D, E)
    labels = torch.randn(5, E)
    expected = training_free_score(tokens, projection, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = training_free_score(tokens, projection, labels)
    assert scores.dtype == torch.float32 and torch.equal(scores, expected)


# the head


def test_the_formula(data):
    tokens, _, embeddings = data
    head = make().eval()
    with torch.no_grad():
        head.log_scale.fill_(math.log(7.0))
        head.gate.fill_(0.5)
        head.bias.fill_(-2.0)
        paper = QKSHead(head.projection.detach(), HeadConfig(n_queries=3, n_layers=1)).eval()
        paper.load_state_dict({name: value for name, value in head.state_dict().items() if name in paper.state_dict()})
        output = head(tokens, embeddings)
        expected = paper(tokens, embeddings)
    score = training_free_score(tokens, head.projection.detach(), embeddings)
    torch.testing.assert_close(output.logits, 7 * score + 0.5 * expected.logits - 2)
    assert torch.equal(output.token_index, expected.token_index)


def test_untrained_it_ranks_as_the_best_patch_does(tiny_vlp):
    "With a CLS token, which is no patch; at any scale and bias."
    torch.manual_seed(0)
    tokens = tiny_vlp.image_tokens(torch.randn(30, 3, tiny_vlp.image_size, tiny_vlp.image_size))
    embeddings = torch.randn(8, tiny_vlp.embed_dim)
    labels = torch.where(torch.rand(30, 8) < 0.3, 1, -1)
    head = make_head(tiny_vlp, SMALL)
    start_head(head, tokens, Targets(labels.float()), embeddings)
    frozen = best_patch_scores(tiny_vlp, tokens, embeddings)
    assert torch.equal(head_scores(head, tokens, embeddings).logits.argsort(1), frozen.argsort(1))
    ours, theirs = (
        evaluate_scores(scores, labels, 5, (1, 3))
        for scores in (head_scores(head, tokens, embeddings).logits.double(), frozen)
    )
    for part in theirs:
        assert ours[part] == pytest.approx(theirs[part])


def gradients(head, data):
    tokens, labels, embeddings = data
    head.zero_grad()
    bce_loss(head(tokens, embeddings).logits, labels).backward()
    return {
        name: 0.0 if weight.grad is None else weight.grad.abs().max().item() for name, weight in head.named_parameters()
    }


def test_gradients_reach_the_queries_from_the_second_step_on(data):
    head = make().eval()
    own = {"log_scale", "gate", "bias", "projection"}  # the score goes through the projection, too
    first = gradients(head, data)
    assert {name for name, size in first.items() if size} == own
    with torch.no_grad():
        head.gate -= 1e-3 * head.gate.grad.sign()
    second = gradients(head, data)
    unused = {name for name, size in second.items() if not size}
    assert all("key.bias" in name for name in unused)  # softmax does not see them


def test_a_scale_stays_positive():
    head = make()
    with torch.no_grad():
        head.log_scale.fill_(-50.0)
    assert head.log_scale.exp() > 0


def test_what_clip_and_siglip_bring(tiny_vlp):
    scale, bias = own_scale_and_bias(tiny_vlp)
    assert scale == pytest.approx(tiny_vlp.model.logit_scale.exp().item()) and bias == 0
    head = make_head(tiny_vlp, SMALL)
    assert head.log_scale.exp().item() == pytest.approx(scale) and head.n_prefix == tiny_vlp.n_prefix == 1
    tiny_vlp.logit_bias = -10.0
    try:
        assert make_head(tiny_vlp, SMALL).bias.item() == -10
    finally:
        tiny_vlp.logit_bias = None


@pytest.mark.parametrize(
    "sizes, told",
    [
        ({"frozen_score": "top-patches"}, "belongs to readout 'residual'"),
        ({"readout": "residual", "bias": True}, "a learned bias of its own"),
        ({"readout": "mine"}, "readout is 'mine'"),
    ],
)
def test_configurations_that_contradict_themselves(sizes, told):
    with pytest.raises(QKSError, match=told):
        HeadConfig(**sizes)


# the start


def test_at_the_start_the_loss_cannot_be_lower_by_scale_or_bias(data):
    tokens, labels, embeddings = data
    head = make().eval()
    start_head(head, tokens, Targets(labels), embeddings)
    logits = head(tokens, embeddings).logits
    assert logits.sigmoid().mean().item() == pytest.approx((labels > 0).float().mean().item(), abs=1e-4)
    gradient = gradients(head, data)
    assert gradient["bias"] < 1e-5 and gradient["log_scale"] < 1e-2  # the pull on the slope is weak
    best = bce_loss(logits, labels).item()
    for name, change in (("log_scale", 0.3), ("log_scale", -0.3), ("bias", 0.5), ("bias", -0.5)):
        with torch.no_grad():
            getattr(head, name).add_(change)
        assert bce_loss(head(tokens, embeddings).logits, labels).item() > best
        with torch.no_grad():
            getattr(head, name).sub_(change)


def test_the_fit_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    scores = 0.25 + 0.03 * torch.randn(5000, generator=generator, dtype=torch.double)
    present = torch.rand(5000, generator=generator) < torch.sigmoid(50 * scores - 15)
    fitted = fit_scale_and_bias(scores, present)
    standard = (scores - scores.mean()) / scores.std()
    reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(standard[:, None].numpy(), present.numpy())
    slope = reference.coef_[0, 0] / scores.std().item()
    assert fitted.scale == pytest.approx(slope, rel=1e-4)
    assert fitted.bias == pytest.approx(reference.intercept_[0] - slope * scores.mean().item(), rel=1e-4)


def test_scores_against_the_labels_keep_their_order():
    fitted = fit_scale_and_bias(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([True, True, False, False]))
    assert fitted.scale > 0


# epoch 0


def train(head, data, run=None, **changes):
    tokens, labels, embeddings = data
    settings = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "loss": "bce", "schedule": "cosine", "prior_init": True}
    config = TrainConfig(**settings | {"topk": (1,)} | changes)
    return fit(head, (tokens[:60], labels[:60]), embeddings, (tokens[60:], labels[60:]), config, run)


def test_a_training_that_makes_it_worse_keeps_the_start(data):
    head = make()
    history = train(head, data, lr=0.3, warmup=1)
    assert [row["epoch"] for row in history] == [0, 1, 2]
    assert max(row["score"] for row in history[1:]) <= history[0]["score"]
    assert head.gate.item() == 0
    tokens, labels, embeddings = data
    start = make().eval()
    start_head(start, tokens[:60], Targets(labels[:60]), embeddings)
    assert torch.equal(head(tokens, embeddings).logits, start(tokens, embeddings).logits)
    assert history[0]["loss"] == pytest.approx(
        bce_loss(start(tokens[:60], embeddings).logits, labels[:60]).item(), rel=1e-4
    )


def test_a_training_that_helps_is_kept():
    "Labels that the best patch shows through another projection than the VLP's own."
    torch.manual_seed(2)
    tokens = torch.randn(400, 9, D)
    embeddings = torch.randn(S, E) + 1
    head = make()
    true_projection = head.projection.detach() + torch.randn(D, E) / 16
    score = training_free_score(tokens, true_projection, embeddings)
    labels = torch.where(score > score.quantile(0.85, dim=0), 1.0, -1.0)
    config = TrainConfig(epochs=10, batch_size=16, lr=3e-3, loss="bce", schedule="cosine", prior_init=True, topk=(1,))
    history = fit(head, (tokens[:300], labels[:300]), embeddings, (tokens[300:], labels[300:]), config)
    best = max(history, key=lambda row: row["score"])
    assert best["epoch"] > 0 and best["mAP"] > history[0]["mAP"] + 0.05
    assert head.gate.item() != 0 and best["loss"] < history[0]["loss"]


def test_the_last_epoch_is_kept_where_nothing_chooses(data):
    head = make()
    history = train(head, data, selection="last")
    assert [row["epoch"] for row in history] == [1, 2] and head.gate.item() != 0


def test_the_papers_head_has_no_epoch_0_unless_asked(data):
    history = train(QKSHead(make().projection.detach(), HeadConfig(n_queries=3, n_layers=1)), data)
    assert [row["epoch"] for row in history] == [1, 2]
    history = train(QKSHead(make().projection.detach(), HeadConfig(n_queries=3, n_layers=1)), data, keep_start=True)
    assert [row["epoch"] for row in history] == [0, 1, 2]


def test_a_run_whose_best_epoch_is_0_is_resumed_to_the_same_bits(data, tmp_path):
    whole = make()
    expected = train(whole, data, lr=0.3, warmup=1)
    run = RunConfig(tmp_path / "run", keep=1)
    train(make(), data, run, lr=0.3, warmup=1)
    assert 0 in list_checkpoints(run.folder)  # kept beside the newest, because it is the best
    list(list_checkpoints(run.folder).values())[-1].unlink()  # as if it had been killed before the end
    again = make()
    history = train(again, data, run, lr=0.3, warmup=1)
    for one, other in zip(history, expected):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    rows = (run.folder / "epochs.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in rows] == ["epoch", "0", "1", "2"]


# files, and the command line


def test_saved_and_loaded_it_is_the_same(tiny_vlp, tmp_path):
    config = HeadConfig(n_queries=3, n_layers=1, n_heads=2, readout="residual", frozen_score="local-global")
    head = make_head(tiny_vlp, config).eval()
    with torch.no_grad():
        head.gate.fill_(0.7)
        head.bias.fill_(-3.0)
    QKS(tiny_vlp, head, labels=["cat"]).save_pretrained(tmp_path)
    again = QKS.from_pretrained(tmp_path, tiny_vlp).head
    assert type(again) is ResidualHead and again.n_prefix == tiny_vlp.n_prefix
    assert again.config == replace(config, ffn_width=again.config.ffn_width)  # which the weights show
    tokens = tiny_vlp.image_tokens(torch.randn(2, 3, tiny_vlp.image_size, tiny_vlp.image_size))
    embeddings = torch.randn(5, tiny_vlp.embed_dim)
    with torch.no_grad():
        assert torch.equal(again(tokens, embeddings).logits, head(tokens, embeddings).logits)


def test_weights_of_one_kind_are_not_those_of_the_other():
    state = make().state_dict()
    with pytest.raises(QKSError, match="not those of a QKS head"):
        QKSHead.from_state(state)
    assert type(head_from_state(state)) is ResidualHead
    del state["bias"]
    with pytest.raises(QKSError, match="not those of a residual head"):
        head_from_state(state)


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "pocket"
    assert main(["data", "pocket", str(root), "--n-train", "60", "--n-test", "30"]) == 0
    return root


@pytest.fixture(scope="module")
def run(pocket, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "residual"
    words = ["--readout", "residual", "--epochs", "2", "--lr", "1e-3", "--n-layers", "1", "--n-queries", "3"]
    assert main(["train", str(pocket), "--out", str(out), *words, "--loss", "bce", "--schedule", "cosine"]) == 0
    return out


def test_a_run_from_the_command_line(run, pocket, tmp_path, capsys):
    results = json.loads((run / "results.json").read_text())
    assert [row["epoch"] for row in results["runs"][0]["history"]] == [0, 1, 2]
    assert json.loads((run / "model" / "config.json").read_text())["head"]["readout"] == "residual"
    report = tmp_path / "report.json"
    assert main(["evaluate", str(run), str(pocket), "--json", str(report)]) == 0
    measured = json.loads(report.read_text())["rows"]["QKS"]["official"]["metrics"]
    for part, metrics in results["runs"][0]["metrics"].items():
        assert measured[part] == pytest.approx(metrics, abs=1e-3)


def test_new_labels_cost_an_embedding(run, tmp_path, capsys):
    "Labels that the run never saw; and the maps of what their tokens look at."
    picture = tmp_path / "picture.png"
    Image.new("RGB", (96, 96), (200, 30, 30)).save(picture)
    capsys.readouterr()
    assert main(["tag", str(picture), "--model", str(run), "--labels", "zeppelin,quokka,samovar"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("zeppelin", "quokka", "samovar"))
    model = QKS.from_pretrained(run)
    output = model.predict(picture, model.pool.embed(model.vlp, ["zeppelin", "quokka"]), return_attention=True)
    assert output.logits.shape == (1, 2) and output.attention[0].shape[2:] == (3, model.vlp.n_tokens)


def test_a_run_is_continued_with_more_pictures(run, pocket, tmp_path):
    "It begins with the earlier head, of its readout, and that head is epoch 0."
    words = ["--init", str(run), "--epochs", "1", "--lr", "1e-12", "--loss", "bce", "--clip", "1"]
    assert main(["train", str(pocket), "--out", str(tmp_path / "more"), *words]) == 0
    before, after = (QKS.from_pretrained(folder).head for folder in (run, tmp_path / "more"))
    assert type(after) is ResidualHead
    for name, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], value, rtol=0, atol=1e-6)
    history = json.loads((tmp_path / "more" / "results.json").read_text())["runs"][0]["history"]
    assert [row["epoch"] for row in history] == [0, 1]


# labels without a direction in common


def test_the_mean_cosine_by_hand():
    assert mean_cosine(torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])) == pytest.approx(1 / 3)
    assert mean_cosine(torch.eye(4)) == pytest.approx(0)
    assert mean_cosine(torch.ones(1, 3)) == 1


def learn(data, embeddings, bias):
    tokens, labels, _ = data
    torch.manual_seed(0)
    head = QKSHead(torch.randn(D, E) / 8, HeadConfig(n_queries=3, n_layers=1, dropout=0.0, bias=bias))
    config = TrainConfig(
        epochs=20, batch_size=16, lr=2e-3, loss="bce", schedule="cosine", selection="last", prior_init=True
    )
    history = fit(head, (tokens, labels), embeddings, None, config)
    return history[-1]["loss"]


def test_centred_labels_need_the_bias(data):
    "One label in seven applies; without the bias the loss stays where every label has probability one half."
    tokens, labels, embeddings = data
    torch.manual_seed(5)
    centred = normalize(torch.randn(S, E), dim=1)
    centred = torch.cat([centred, -centred])  # no vector is negative against both of a pair
    labels = torch.cat([labels, -torch.ones_like(labels)], dim=1)
    labels = labels[:, torch.randperm(2 * S)]
    frequency = (labels > 0).float().mean().item()
    prior = -(frequency * math.log(frequency) + (1 - frequency) * math.log(1 - frequency))
    assert mean_cosine(centred) < LEAST_COMMON < mean_cosine(embeddings)
    without, with_bias = (learn((tokens, labels, centred), centred, bias) for bias in (False, True))
    assert without == pytest.approx(math.log(2), abs=0.1) and with_bias < prior < 0.5 * without


def test_a_run_adds_the_bias_by_itself_and_says_so(pocket, tmp_path, monkeypatch, caplog):
    from qks.experiment import training_data

    embed = training_data.embed_names

    def centred(*inputs):
        embeddings = embed(*inputs)
        return embeddings - embeddings.mean(0)

    monkeypatch.setattr(training_data, "embed_names", centred)
    words = ["--epochs", "1", "--lr", "1e-9", "--n-layers", "1", "--n-queries", "2", "--loss", "bce"]
    assert main(["train", str(pocket), "--out", str(tmp_path / "run"), *words]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert any("no direction in common" in remark and "learned bias" in remark for remark in results["remarks"])
    head = QKS.from_pretrained(tmp_path / "run").head
    assert head.config.bias and head.bias.item() < -1
    assert results["runs"][0]["history"][0]["loss"] < 0.4  # and not ln 2


def test_text_towers_have_a_direction_in_common(tiny_vlp):
    config, remarks = suit_labels(HeadConfig(), PromptPool().embed(tiny_vlp, ["cat", "dog", "boat"]))
    assert config == HeadConfig() and not remarks
