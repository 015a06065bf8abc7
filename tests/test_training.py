"""Training: the authors' twenty steps, what trains and what does not, and which epoch is kept on which evidence."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qks.core import QKSError
from qks.evaluate.protocols import default_topk
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.losses import AsymmetricLoss, bce_loss, ranking_loss
from qks.model.scoring import head_scores
from qks.train import loop as training
from qks.train.config import TrainConfig
from qks.train.loop import fit, selection_score
from qks.train.optimizer import make_loss, make_schedule
from qks.train.steps import train_epoch
from qks.vlp.frozen import fingerprint

DATA = Path(__file__).parent / "data"
GOLDEN = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(DATA / "model.npz").items()}
LOSS_CURVE = np.load(DATA / "trajectory.npz")["losses"]
S = 6
U = 4
E = 8
D = 64


def golden_head():
    "The head that the authors' twenty steps start from, without dropout."
    head = QKSHead.from_official(
        {key.removeprefix("weights/"): value for key, value in GOLDEN.items() if key.startswith("weights/")}, n_heads=4
    )
    for module in head.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return head


def new_head(dropout=0.1, seed=1):
    torch.manual_seed(seed)
    return QKSHead(torch.randn(D, E) * 0.3, HeadConfig(n_queries=3, n_layers=1, dropout=dropout))


def config(**changes):
    return TrainConfig(**{"epochs": 3, "lr": 1e-3, "batch_size": 10, "topk": (1, 2)} | changes)


@pytest.fixture
def toy():
    "Training split, label embeddings and validation split of a rule to find."
    torch.manual_seed(0)
    projection = new_head().projection.detach()
    names = torch.randn(S + U, E)
    meaning = torch.randn(60, 1, D)
    tokens = meaning + 0.3 * torch.randn(60, 4, D)  # [n, N, D]
    labels = torch.where((meaning[:, 0] @ projection) @ names.T > 3, 1, -1)  # [n, S+U]
    return (tokens[:40], labels[:40, :S]), names, (tokens[40:], labels[40:])


def scripted(monkeypatch, scores, states=None):
    "Let the epochs have these scores, one after the other; collects the weights that were scored."
    remaining = iter(scores)

    def next_score(head, *args):
        if states is not None:
            states.append({name: tensor.clone() for name, tensor in head.state_dict().items()})
        return {"mAP": 0.0, "score": next(remaining)}

    monkeypatch.setattr(training, "selection_score", next_score)
    monkeypatch.setattr(training, "validation_labels", lambda *args: None)  # what it judges by is looked at elsewhere


def rows(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def refused(match, function, *args, **kwargs):
    "Expect a QKSError whose message is a single line that matches."
    with pytest.raises(QKSError, match=match) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


# ---- the authors' steps


GOLDEN_BATCH = GOLDEN["image_tokens"], GOLDEN["targets"], GOLDEN["text_features"]


def golden_steps(head, image_tokens, labels, label_embeddings):
    "The losses of the authors' twenty steps."
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    arguments = head, image_tokens, labels, label_embeddings, AsymmetricLoss(), optimizer, len(labels), generator
    return [train_epoch(*arguments) for _ in range(20)]


def test_twenty_golden_steps():
    """In float64: AdamW's first step is the sign of the gradient, and in fp32 a gradient that is rounding noise may
    have either sign, depending on the CPU. One such weight changes the losses by 3e-4 within twenty steps."""
    image_tokens, labels, label_embeddings = GOLDEN_BATCH
    losses = golden_steps(golden_head().double(), image_tokens.double(), labels, label_embeddings.double())
    np.testing.assert_allclose(losses, LOSS_CURVE, rtol=1e-5)


def test_fit_takes_the_golden_steps_too(monkeypatch):
    "`fit` computes in fp32, so it is compared with the same steps in fp32: to the bit."
    scripted(monkeypatch, range(20))  # always better: the plateau never lowers the learning rate
    image_tokens, labels, label_embeddings = GOLDEN_BATCH
    head = golden_head()
    expected_head = golden_head()
    history = fit(
        head,
        (image_tokens, labels),
        label_embeddings,
        (image_tokens, labels),
        TrainConfig(epochs=20, lr=1e-3, batch_size=64),
    )
    assert [row["loss"] for row in history] == golden_steps(expected_head, *GOLDEN_BATCH)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), expected_head.parameters(), strict=True))


def test_paper_recipe():
    recipe = TrainConfig()
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay, recipe.seed) == (60, 64, 1e-5, 1e-4, 0)
    assert (recipe.loss, recipe.schedule, recipe.selection, recipe.topk) == ("asl", "plateau", "seen", None)
    assert default_topk(1006, 925) == (3, 5)
    asl = make_loss(recipe)
    assert isinstance(asl, AsymmetricLoss)
    assert (asl.gamma_neg, asl.gamma_pos, asl.margin, asl.masked) == (4, 0, 0, False)
    assert make_loss(TrainConfig(loss="bce")) is bce_loss and make_loss(TrainConfig(loss="ranking")) is ranking_loss


# ---- learning


@pytest.mark.parametrize("loss", ["asl", "bce", "ranking"])
def test_every_loss_learns(toy, loss):
    history = fit(new_head(0.0), *toy, config(epochs=8, loss=loss, schedule="cosine"))
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


def test_history(toy):
    history = fit(new_head(), *toy, config())
    assert [row["epoch"] for row in history] == [1, 2, 3]
    for row in history:
        assert {"epoch", "loss", "lr", "seconds", "mAP", "F1@1", "F1@2", "score"} <= row.keys()
        assert row["score"] == pytest.approx(row["mAP"] + row["F1@1"] + row["F1@2"])


def test_the_same_seed_gives_the_same_weights(toy):
    results = []
    for _ in range(2):
        head = new_head()
        torch.manual_seed(len(results))  # what happened before does not matter
        results.append((rows(fit(head, *toy, config())), head.state_dict()))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_another_seed_gives_others(toy):
    assert rows(fit(new_head(), *toy, config(seed=0))) != rows(fit(new_head(), *toy, config(seed=1)))


def test_only_the_head_trains(toy, tiny_vlp):
    torch.manual_seed(0)
    images = torch.randn(12, 3, 32, 32)
    tokens = tiny_vlp.image_tokens(images)
    names = tiny_vlp.text_features([f"thing {i}" for i in range(3)])
    before = fingerprint(tiny_vlp)
    labels = torch.where(torch.rand(12, 3) < 0.5, 1, -1)
    head = QKSHead(tiny_vlp.projection, HeadConfig(2, 1))
    start = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    kept = tokens.clone(), labels.clone(), names.clone(), tiny_vlp.projection.clone()
    fit(head, (tokens, labels), names, (tokens, labels), config(topk=(1,)))
    unmoved = {name for name, tensor in head.state_dict().items() if torch.equal(tensor, start[name])}
    assert unmoved == {"extractor.blocks.0.cross_attention.key.bias"}  # softmax ignores it, so it has no gradient
    assert fingerprint(tiny_vlp) == before and not any(
        weight.grad is not None for weight in tiny_vlp.model.parameters()
    )
    assert all(torch.equal(a, b) for a, b in zip(kept, (tokens, labels, names, tiny_vlp.projection)))


def test_training_never_sees_an_unseen_label(toy):
    train, names, validation = toy
    other = names.clone()
    other[S:] = 1e6
    one = new_head()
    two = new_head()
    assert rows(fit(one, train, names, validation, config())) == rows(fit(two, train, other, validation, config()))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


@pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
def test_every_image_once_an_epoch(toy, batch_size):
    train, names, _ = toy
    seen = []

    class Watched:
        def __getitem__(self, chosen):
            seen.append(chosen)
            return train[0][chosen]

    head = new_head(0.0)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.0)
    loss = train_epoch(
        head,
        Watched(),
        train[1].float(),
        names[:S],
        bce_loss,
        optimizer,
        batch_size,
        torch.Generator().manual_seed(0),
    )
    order = torch.cat(seen)
    assert sorted(order.tolist()) == list(range(40)) and order.tolist() != list(range(40))
    assert max(len(chosen) for chosen in seen) == min(batch_size, 40)
    expected = bce_loss(head_scores(head, train[0], names[:S])[0], train[1].float()).item()
    assert loss == pytest.approx(expected, rel=1e-5)  # the mean over images, whatever the last batch's size


# ---- the epoch that is kept


@pytest.mark.parametrize(
    "scores, best", [([1.0, 3.0, 2.0], 1), ([3.0, 2.0, 1.0], 0), ([1.0, 2.0, 3.0], 2), ([2.0, 2.0, 2.0], 0)], ids=str
)
def test_the_best_epoch_is_kept(toy, monkeypatch, scores, best):
    states = []
    head = new_head()
    scripted(monkeypatch, scores, states)
    history = fit(head, *toy, config())
    assert [row["score"] for row in history] == scores
    assert all(torch.equal(tensor, states[best][name]) for name, tensor in head.state_dict().items())
    assert not head.training and not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_the_kept_weights_score_what_the_history_says(toy):
    head = new_head()
    recipe = config(epochs=5)
    history = fit(head, *toy, recipe)
    score = selection_score(head, toy[2], toy[1], S, recipe)["score"]
    assert score == pytest.approx(max(row["score"] for row in history), abs=1e-9)


@pytest.fixture
def changed(toy):
    "The same validation split with every unseen label and embedding changed."
    train, names, (tokens, labels) = toy
    other = names.clone()
    labels = labels.clone()
    other[S:] = names[S:].flip(0) * 3
    labels[:, S:] *= -1
    return train, other, (tokens, labels)


def test_selection_by_seen_labels_never_looks_at_unseen_ones(toy, changed):
    assert rows(fit(new_head(), *toy, config())) == rows(fit(new_head(), *changed, config()))


def test_selection_by_seen_labels_needs_no_unseen_ones(toy):
    train, names, (tokens, labels) = toy
    expected = rows(fit(new_head(), *toy, config()))
    assert rows(fit(new_head(), train, names[:S], (tokens, labels[:, :S]), config())) == expected


def test_selection_by_the_authors_rule_does(toy, changed):
    one, two = (rows(fit(new_head(), *data, config(selection="official"))) for data in (toy, changed))
    assert [row["loss"] for row in one] == [row["loss"] for row in two]  # they do not train, they only choose
    assert [row["score"] for row in one] != [row["score"] for row in two]


def test_the_authors_rule_measures_unseen_labels_alone(toy):
    train, names, (tokens, labels) = toy
    other = labels.clone()
    other[:, :S] *= -1
    recipe = config(selection="official")
    assert selection_score(new_head(), (tokens, labels), names, S, recipe) == selection_score(
        new_head(), (tokens, other), names, S, recipe
    )


def test_the_authors_rule_needs_unseen_labels(toy):
    train, names, (tokens, labels) = toy
    refused(
        "official.*10 columns, but they have 6",
        fit,
        new_head(),
        train,
        names,
        (tokens, labels[:, :S]),
        config(selection="official"),
    )
    refused("official", fit, new_head(), train, names[:S], (tokens, labels[:, :S]), config(selection="official"))


def test_validation_labels_of_zero_and_one_are_refused(toy):
    "0 means not annotated: with no -1 at all, every label would have an average precision of 1."
    train, names, (tokens, labels) = toy
    for selection in ("seen", "official"):
        refused("-1", selection_score, new_head(), (tokens, (labels > 0).int()), names, S, config(selection=selection))


@pytest.mark.parametrize(
    "selection, change, message",
    [
        ("seen", lambda tokens, labels: (tokens, (labels > 0).int()), "hold no -1"),
        ("official", lambda tokens, labels: (tokens, (labels > 0).int()), "hold no -1"),
        (
            "seen",
            lambda tokens, labels: (tokens, labels[:, : S - 1]),
            "needs validation labels of 6 columns, but they have 5",
        ),
        ("seen", lambda tokens, labels: (tokens[1:], labels), "validation images but"),
        ("seen", lambda tokens, labels: (tokens, labels * 2), "use .1"),
        ("seen", lambda tokens, labels: (tokens, -labels.abs()), "no image has a positive label in the part seen"),
        (
            "official",
            lambda tokens, labels: (tokens, torch.cat([labels[:, :S], -labels[:, S:].abs()], 1)),
            "no image has a positive label in the part zsl",
        ),
    ],
    ids=str,
)
def test_validation_is_looked_at_before_the_first_step(toy, monkeypatch, selection, change, message):
    train, names, validation = toy
    monkeypatch.setattr(training, "epoch_steps", lambda trainer: pytest.fail("a step was taken"))
    refused(message, fit, new_head(), train, names, change(*validation), config(selection=selection))


def test_too_many_labels_an_image_are_told_before_the_first_step(toy, monkeypatch):
    monkeypatch.setattr(training, "epoch_steps", lambda trainer: pytest.fail("a step was taken"))
    refused(
        "topk asks for 7 labels per image, but the part seen has only 6", fit, new_head(), *toy, config(topk=(1, 7))
    )


# ---- learning rate


def test_plateau_steps_down_after_two_epochs_without_gain(toy, monkeypatch):
    scripted(monkeypatch, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    history = fit(new_head(), *toy, config(epochs=8))
    np.testing.assert_allclose([row["lr"] for row in history], [1e-3] * 3 + [1e-4] * 4 + [1e-5])


def test_plateau_is_judged_by_a_maximum(toy, monkeypatch):
    scripted(monkeypatch, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert {row["lr"] for row in fit(new_head(), *toy, config(epochs=5))} == {1e-3}


def test_cosine_warms_up_and_falls_to_nothing(toy):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = make_schedule(optimizer, config(epochs=10, schedule="cosine"), 50)
    rates = []
    for _ in range(500):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1 / 50) and np.all(np.diff(rates[:25]) > 0) and np.all(np.diff(rates[60:]) < 0)
    assert max(rates) <= 1 and max(rates) > 0.9 and rates[-1] < 1e-4
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_cosine_steps_in_fit(toy, monkeypatch):
    scripted(monkeypatch, [0.0] * 5)  # no plateau interferes
    rates = [row["lr"] for row in fit(new_head(), *toy, config(epochs=5, schedule="cosine"))]
    expected = [
        1e-3 * min(1, (step + 1) / 4) * 0.5 * (1 + np.cos(np.pi * step / 20)) for step in range(0, 20, 4)
    ]  # 4 steps an epoch
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


# ---- bad input


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(toy, value):
    (tokens, labels), names, validation = toy
    tokens = tokens.clone()
    tokens[3, 0, 0] = value
    refused("the loss is .* at step", fit, new_head(), (tokens, labels), names, validation, config())


def test_rows_that_do_not_match(toy):
    (tokens, labels), names, validation = toy
    refused("39 images but 40 rows", fit, new_head(), (tokens[:39], labels), names, validation, config())
    refused(
        "6 label columns but 5 label embeddings", fit, new_head(), (tokens, labels), names[:5], validation, config()
    )


@pytest.mark.parametrize("selection", ["seen", "official"])
def test_validation_rows_that_do_not_match(toy, selection):
    train, names, (tokens, labels) = toy
    refused(".", fit, new_head(), train, names, (tokens[:-1], labels), config(selection=selection))


def test_too_few_validation_columns(toy):
    train, names, (tokens, labels) = toy
    refused("6 columns, but they have 5", fit, new_head(), train, names, (tokens, labels[:, : S - 1]), config())


def test_no_image_at_all(toy):
    (tokens, labels), names, validation = toy
    refused(".", fit, new_head(), (tokens[:0], labels[:0]), names, validation, config())
    refused(".", fit, new_head(), (tokens, labels), names, (tokens[:0], validation[1][:0]), config())


def test_labels_that_are_none(toy):
    (tokens, labels), names, validation = toy
    refused("use .1 .present.", fit, new_head(), (tokens, labels * 2), names, validation, config())


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "hinge"},
        {"schedule": "step"},
        {"selection": "test"},
        {"selection": None},
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0},
        {"lr": -1e-3},
        {"lr": float("nan")},
        {"topk": (0,)},
        {"topk": ()},
    ],
    ids=str,
)
def test_bad_settings(wrong):
    refused(next(iter(wrong)), TrainConfig, **wrong)


def test_a_topk_above_the_number_of_labels(toy):
    refused("topk asks for 7", fit, new_head(), *toy, config(topk=(7,)))


def test_quick_training_is_silent(toy, capsys):
    fit(new_head(), *toy, config())
    out, err = capsys.readouterr()
    assert out == "" and err.strip() == ""


@pytest.mark.parametrize("shape", [(8,), (2, 2, 2)])
def test_labels_that_are_no_table(toy, shape):
    labels = torch.ones(shape)
    refused("expected .images, labels.", fit, new_head(), (toy[0][0][: len(labels)], labels), *toy[1:], config())
