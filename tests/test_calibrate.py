"""Calibration and thresholds: numbers worked by hand, by brute force, and by scikit-learn."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from repository import NBS
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression

from qks.calibrate import (
    Criterion,
    assess,
    choose_least_spread,
    choose_threshold,
    fit_calibration,
    fit_platt,
    plain_pictures,
    reliability_curve,
)
from qks.calibrate.fit import probabilities_by_label
from qks.calibrate.platt import sigmoid
from qks.commands.main import main
from qks.core import QKSError
from qks.data.pocket import PocketConfig, write_pocket
from qks.explore.scenes import draw_scenes
from qks.model.tagger import QKS
from qks.model.thresholds import (
    THRESHOLDS_FILE,
    background_thresholds,
    load_thresholds,
    matched_offsets,
    token_spread,
)

SCENE = NBS / "images" / "scene.png"
ASKED = ["helicopter", "window", "tomato", "bird", "guitar"]


def plain_and_noise():
    rng = np.random.default_rng(7)
    red = np.zeros((96, 96, 3), np.uint8)
    red[:, :, 0] = 255
    return [red, np.zeros_like(red), np.full_like(red, 255), rng.integers(0, 256, red.shape, dtype=np.uint8)]


@pytest.fixture(scope="module")
def pocket():
    return QKS.from_pretrained("pocket", device="cpu")


@pytest.fixture
def raw(pocket):
    "The packaged model without its thresholds."
    return QKS(pocket.vlp, pocket.head, pocket.pool, pocket.labels)


# --- reliability ---


def test_calibration_error_of_a_small_table():
    "Bins 0–0.1: mean 0.05, none of one; 0.1–0.2: 0.15, one of two; 0.9–1: 0.95, one of one; a pair without a truth."
    probabilities = [[0.05, 0.15, 0.15, 0.95, 0.5]]
    labels = [[-1, -1, 1, 1, 0]]
    curve = reliability_curve(probabilities, labels)
    assert curve.counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert curve.error == pytest.approx((0.05 + 2 * 0.35 + 0.05) / 4)
    assert reliability_curve(probabilities, labels, least=0.1).error == pytest.approx((2 * 0.35 + 0.05) / 3)
    assert reliability_curve(probabilities, labels, n_bins=1).error == pytest.approx(abs(1.3 / 4 - 2 / 4))


def test_certain_probabilities_lie_in_the_outer_bins():
    curve = reliability_curve([[0.0, 1.0]], [[-1, 1]])
    assert curve.counts[[0, 9]].tolist() == [1, 1] and curve.error == 0


@pytest.mark.parametrize(
    "probabilities, labels, match",
    [
        ([[0.5, 1.5]], [[1, -1]], "reach from 0.5 to 1.5"),
        ([[0.5]], [[0]], "no label of any picture is annotated"),
        ([[0.5]], [[1, 1]], "both must have the same shape"),
        ([[float("nan")]], [[1]], "not finite"),
    ],
)
def test_probabilities_that_are_none_are_refused(probabilities, labels, match):
    with pytest.raises(QKSError, match=match):
        reliability_curve(probabilities, labels)


# --- the choice ---


def brute_force(probabilities, labels):
    "Precision, recall and F1 of every threshold that makes a difference."
    rows = []
    for threshold in np.unique(probabilities):
        shown = probabilities >= threshold
        hits = (shown & (labels > 0)).sum()
        shown_and_annotated = (shown & (labels != 0)).sum()
        present = (labels > 0).sum()
        precision = hits / max(1, shown_and_annotated)
        rows.append((threshold, precision, hits / present, 2 * hits / (shown_and_annotated + present)))
    return np.array(rows)


@pytest.mark.parametrize("seed", range(8))
def test_thresholds_are_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    probabilities = rng.random((15, 8)).round(1 if seed % 2 else 4)  # with and without equal ones
    labels = np.where(rng.random((15, 8)) < probabilities, 1, -1) * (rng.random((15, 8)) < 0.8)
    tried = brute_force(probabilities, labels)
    assert choose_threshold(probabilities, labels).f1 == pytest.approx(tried[:, 3].max())
    precise = choose_threshold(probabilities, labels, Criterion("precision", 0.7))
    assert precise.recall == pytest.approx(tried[tried[:, 1] >= 0.7, 2].max()) and precise.precision >= 0.7
    complete = choose_threshold(probabilities, labels, Criterion("recall", 0.9))
    enough = tried[tried[:, 2] >= 0.9]
    assert complete.precision == pytest.approx(enough[enough[:, 0].argmax(), 1]) and complete.recall >= 0.9
    for choice in (precise, complete):
        given = assess(probabilities, labels, choice.threshold)
        assert (given.precision, given.recall, given.f1) == pytest.approx(choice[1:])


def test_criteria_that_cannot_be_are_refused():
    with pytest.raises(QKSError, match="the highest is 0.5"):
        choose_threshold([[0.9, 0.1]], [[-1, 1]], Criterion("precision", 0.6))
    with pytest.raises(QKSError, match="no label is present"):
        choose_threshold([[0.9, 0.1]], [[-1, -1]])
    for name, at in (("precision", None), ("recall", 1.2), ("recall", float("nan")), ("f1", 0.5), ("map", None)):
        with pytest.raises(QKSError):
            Criterion(name, at)


# --- probabilities ---


def drawn(n, offsets, slope, seed=0):
    "Scores, and labels drawn with the probabilities of a known calibration."
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 1.5, (n, len(offsets)))
    truth = sigmoid(slope * scores + offsets)
    return scores, np.where(rng.random(truth.shape) < truth, 1, -1), truth


def test_one_label_is_logistic_regression():
    scores, labels, _ = drawn(500, np.array([-1.0]), 0.6)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(scores, labels[:, 0])
    model = fit_platt(scores, labels)
    assert model.slope == pytest.approx(reference.coef_[0, 0], abs=1e-3)
    assert model.offsets[0] == pytest.approx(reference.intercept_[0], abs=1e-3)


def test_offsets_of_rare_labels_stay_near_the_others():
    "A label that is on none of its pictures would have an offset of minus infinity by itself."
    scores, labels, _ = drawn(300, np.full(40, -3.0), 1.0)
    labels[:, 0] = -1
    offsets = fit_platt(scores, labels).offsets
    assert offsets[0] < offsets[1:].min() and offsets[0] > -6


def test_pairs_without_annotation_have_no_say():
    scores, labels, _ = drawn(200, np.full(10, -1.0), 1.0)
    hidden = labels * (np.random.default_rng(1).random(labels.shape) < 0.5)
    wild = np.where(hidden == 0, 50.0, scores)
    shown = fit_platt(wild, hidden)
    assert shown.slope == pytest.approx(fit_platt(scores, hidden).slope)


def test_matched_offsets_give_the_wanted_mean():
    logits = torch.randn(200, 6) * torch.tensor([0.1, 1, 2, 5, 10, 30]) + torch.tensor([-40.0, 3, 0, -2, 1, 100])
    for share in (0.001, 0.02, 0.5, 0.9):
        offsets = matched_offsets(logits, 1.3, share)
        means = (1.3 * logits.double() + offsets).sigmoid().mean(0)
        torch.testing.assert_close(means, torch.full((6,), share, dtype=torch.float64), rtol=1e-6, atol=0)


def test_annotations_of_a_label_that_is_left_out_have_no_say():
    scores, labels, _ = drawn(150, np.linspace(-3, -1, 12), 1.0)
    before = probabilities_by_label(scores, labels)
    for column in (0, 5):
        changed = labels.copy()
        changed[:, column] *= -1
        np.testing.assert_array_equal(probabilities_by_label(scores, changed)[:, column], before[:, column])


def test_a_fit_is_better_than_what_was_there():
    scores, labels, truth = drawn(800, np.random.default_rng(3).normal(-3, 0.8, 50), 1.4)
    fit = fit_calibration(scores, labels)
    assert fit.after["trained labels"].error < 0.01 < fit.before.error
    assert fit.after["trained labels"].f1 > fit.before.f1
    probabilities = sigmoid(fit.model.slope * scores + fit.model.offsets)
    assert np.abs(probabilities - truth).mean() < 0.02
    precise = fit_calibration(scores, labels, Criterion("precision", 0.8))
    assert all(row.precision >= 0.8 for row in precise.after.values())


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda scores, labels: (-scores, labels), "learned nothing"),
        (lambda scores, labels: (scores[:, :1], labels[:, :1]), "1 labels are too few"),
        (lambda scores, labels: (scores[:4], labels[:4]), "4 pictures"),
        (lambda scores, labels: (scores, -abs(labels)), "no label is present|present on some pictures"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(change, match):
    scores, labels, _ = drawn(100, np.full(5, -1.0), 1.0)
    with pytest.raises(QKSError, match=match):
        fit_calibration(*change(scores, labels))


# --- plain pictures, backgrounds ---


def test_spread_by_hand():
    tokens = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 3.0]], [[9.0, 9.0], [2.0, 2.0], [5.0, 5.0]]])
    spread = token_spread(tokens, torch.eye(2), n_prefix=1)
    torch.testing.assert_close(spread, torch.tensor([0.5, 0.0]), atol=1e-6, rtol=0)


def test_the_line_lies_between_plain_pictures_and_others():
    assert choose_least_spread([0.01] * 30, [0.04] * 30) == pytest.approx(0.02)
    assert choose_least_spread([0.01] * 30 + [0.05] * 30, [0.04] * 30) == 0
    assert len(plain_pictures(7, 16)) == 7 and plain_pictures(7, 16)[6].shape == (16, 16, 3)


def test_background_thresholds_by_hand():
    scores = torch.tensor([[0.0, -5.0], [4.0, -1.0], [1.0, -9.0], [2.0, -2.0]])
    assert background_thresholds(scores, 0.25).tolist() == [3.0, -1.5]
    assert background_thresholds(scores, 0.5).tolist() == [1.5, -3.5]
    assert ((scores >= background_thresholds(scores, 0.5)).sum(0) == 2).all()


@pytest.mark.parametrize(
    "scores, rate, match",
    [
        (torch.zeros(49, 2), 0.02, "49 background pictures are too few for a rate of 0.02: give at least 50"),
        (torch.zeros(9), 0.5, r"shape \[9\]"),
        (torch.zeros(9, 1), 1.0, "between 0 and 1"),
        (torch.zeros(9, 1), float("nan"), "between 0 and 1"),
        (torch.full((9, 1), float("nan")), 0.5, "not a finite number"),
    ],
)
def test_backgrounds_that_say_nothing_are_refused(scores, rate, match):
    with pytest.raises(QKSError, match=match):
        background_thresholds(scores, rate)


# --- the packaged model ---


def test_a_plain_picture_gets_no_tag(pocket, raw):
    pictures = plain_and_noise()
    names = [*pocket.labels, "bird", "plant", "flower"]
    assert pocket.tag(pictures, names) == [[]] * len(pictures)
    assert raw.tag(pictures[-1:], names, top_k=1)[0][0].probability > 0.9  # noise, before: fireworks


def test_a_scene_gets_its_tags_and_no_bird(pocket):
    assert [tag.label for tag in pocket.tag(SCENE, ASKED)[0]] == ["window", "helicopter"]


def test_a_threshold_that_is_given_wins(pocket):
    everything = pocket.tag(SCENE, ASKED, threshold=0)[0]
    assert len(everything) == 5
    assert pocket.tag(SCENE, ASKED, threshold=everything[2].probability)[0] == everything[:3]
    only_bird = [0.0 if label == "bird" else 1.0 for label in ASKED]
    assert [tag.label for tag in pocket.tag(SCENE, ASKED, threshold=only_bird)[0]] == ["bird"]
    assert len(pocket.tag(plain_and_noise()[0], ASKED, threshold=0)[0]) == 5
    with pytest.raises(QKSError, match="threshold has 2 numbers for 5 labels"):
        pocket.tag(SCENE, ASKED, threshold=[0.1, 0.2])


def test_a_label_below_its_threshold_takes_no_place(pocket):
    "With a threshold of its own the best label may be hidden; the second then is the first."
    limits = [1.0 if label == "window" else 0.0 for label in ASKED]
    assert [tag.label for tag in pocket.tag(SCENE, ASKED, top_k=1, threshold=limits)[0]] == ["helicopter"]


def test_probabilities_are_calibrated(pocket, raw):
    "Of a label trained on by the fitted line; of another so that its mean on the kept pictures is the share."
    kept = pocket.thresholds
    logits = raw.predict([SCENE], raw.pool.embed(raw.vlp, ASKED)).logits[0]
    shown = {tag.label: tag.probability for tag in pocket.tag(SCENE, ASKED, threshold=0)[0]}
    column = kept.labels.index("helicopter")
    log_odds = kept.slope * logits[0].item() + kept.offsets[column].item()
    assert shown["helicopter"] == pytest.approx(sigmoid(log_odds), abs=1e-5)
    embedding = raw.pool.embed(raw.vlp, ["window"])
    on_kept = (kept.pictures.float() @ embedding.T).amax(1)  # [m, 1]
    offset = matched_offsets(on_kept, kept.slope, kept.share).item()
    assert shown["window"] == pytest.approx(sigmoid(kept.slope * logits[1].item() + offset), abs=1e-4)


def test_without_thresholds_probabilities_are_the_heads(raw):
    logits = raw.predict([SCENE], raw.pool.embed(raw.vlp, ASKED)).logits[0]
    assert {tag.label: tag.probability for tag in raw.tag(SCENE, ASKED)[0]} == {
        label: pytest.approx(probability) for label, probability in zip(ASKED, logits.sigmoid().tolist())
    }


def test_committed_results_are_those_of_the_packaged_thresholds(pocket):
    results = json.loads((NBS / "results" / "calibration.json").read_text())
    assert results["thresholds"]["trained on"] == pocket.thresholds.trained
    assert results["slope"] == pocket.thresholds.slope
    test = results["test"]
    for part in ("trained on", "never trained on"):
        assert test[f"{part}, after"]["f1"] > test[f"{part}, before"]["f1"]
        assert test[f"{part}, after"]["error"] < test[f"{part}, before"]["error"]


# --- the file ---


@pytest.fixture
def saved(pocket, tmp_path):
    pocket.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_thresholds_are_saved_with_the_model(pocket, saved, raw):
    again = QKS.from_pretrained(saved, pocket.vlp)
    assert again.tag([SCENE, *plain_and_noise()], ASKED) == pocket.tag([SCENE, *plain_and_noise()], ASKED)
    assert QKS.from_pretrained(saved, pocket.vlp, use_thresholds=False).thresholds is None
    raw.save_pretrained(saved)  # a model without thresholds leaves none behind
    assert QKS.from_pretrained(saved, pocket.vlp).thresholds is None


def test_thresholds_of_another_head_are_refused(pocket, saved):
    weights = load_file(saved / "head.safetensors")
    weights["projection"][0, 0] += 1e-3
    save_file(weights, saved / "head.safetensors")
    with pytest.raises(QKSError, match="thresholds.safetensors belongs to another model"):
        QKS.from_pretrained(saved, pocket.vlp)


def damage(name, value):
    def change(path):
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        facts = json.loads(header["__metadata__"]["qks"])
        facts[name] = value
        save_file(load_file(path), path, {"qks": json.dumps(facts)})

    return change


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: save_file({"w": torch.ones(2)}, path), "holds no thresholds"),
        (lambda path: save_file(load_file(path), path, {"qks": "[1]"}), "holds no thresholds"),
        (lambda path: save_file(load_file(path), path, {"qks": "{"}), "is damaged"),
        (damage("version", 2), "is of version 2"),
        (damage("slope", float("nan")), r"is damaged \(slope is nan\)"),
        (damage("slope", "steep"), "is damaged"),
        (damage("trained", 1.5), r"is damaged \(trained is 1.5\)"),
        (damage("labels", ["cat"]), r"is damaged \(offsets have shape \[276\] for 1 labels\)"),
        (damage("picture_kind", "pixels"), "is damaged"),
    ],
)
def test_damaged_and_foreign_files_are_refused(saved, change, match):
    change(saved / THRESHOLDS_FILE)
    with pytest.raises(QKSError, match=match) as refused:
        load_thresholds(saved)
    assert "\n" not in str(refused.value) and THRESHOLDS_FILE in str(refused.value)


# --- the commands ---


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pocket(tmp_path_factory.mktemp("data") / "pocket", PocketConfig(n_train=400, n_test=60))


def save_pictures(pictures, folder):
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(np.asarray(picture)).save(folder / f"{number:03}.png")
    return folder


def test_tag_says_what_it_shows_by(tmp_path, capsys):
    folder = save_pictures(plain_and_noise()[:1], tmp_path / "plain")
    assert main(["tag", str(folder / "000.png"), "--model", "pocket"]) == 0
    printed = capsys.readouterr()
    assert "no label reaches its threshold" in printed.out
    assert "the model's own thresholds" in printed.err and "best F1" in printed.err
    assert main(["tag", str(folder / "000.png"), "--model", "pocket", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["tags"] == []
    assert main(["tag", str(folder / "000.png"), "--model", "pocket", "--no-thresholds"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(" %  ") == 5 and not printed.err
    assert main(["tag", str(SCENE), "--labels", "bird,window", "--model", "pocket", "--threshold", "0"]) == 0
    assert capsys.readouterr().out.count(" %  ") == 2


def test_tag_by_a_background(pocket, tmp_path, capsys):
    folder = save_pictures(draw_scenes(60, 3, seed=1).images, tmp_path / "background")
    words = ["tag", str(SCENE), "--labels", ",".join(ASKED), "--model", "pocket", "--background", str(folder)]
    for more in ([], ["--no-thresholds"]):
        assert main([*words, *more]) == 0
        printed = capsys.readouterr()
        assert "on 2 % of the 60 background pictures" in printed.err
        shown = [label for label in ASKED if f"%  {label} " in printed.out]
        scores = pocket.predict(sorted(folder.iterdir()), pocket.pool.embed(pocket.vlp, ASKED)).logits
        limits = scores.sort(descending=True, dim=0).values[:2].mean(0)  # 2 % of 60: the best one is above
        logits = pocket.predict(SCENE, pocket.pool.embed(pocket.vlp, ASKED)).logits[0]
        assert shown == [label for label, logit, limit in zip(ASKED, logits, limits) if logit >= limit]
    for file in sorted(folder.iterdir())[:20]:
        file.unlink()
    assert main(words) == 2
    assert "40 background pictures are too few" in capsys.readouterr().err
    assert main([*words, "--background-rate", "0.1"]) == 0


def test_calibrate_saves_and_reports(data, pocket, tmp_path, capsys):
    out = tmp_path / "calibrated"
    words = ["calibrate", "pocket", str(data), "--criterion", "precision", "--at", "0.5", "--device", "cpu"]
    files = ["--json", str(tmp_path / "numbers.json"), "--figure", str(tmp_path / "figure.png")]
    assert main([*words, "--out", str(out), *files]) == 0
    printed = capsys.readouterr().out
    assert "| trained labels |" in printed and "| labels left out |" in printed and "40 held-out pictures" in printed
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["criterion"] == "precision at least 0.5"
    assert all(numbers["rows"][name]["precision"] >= 0.5 for name in ("trained labels", "labels left out"))
    assert Image.open(tmp_path / "figure.png").width > 300
    again = QKS.from_pretrained(out, pocket.vlp)
    assert again.thresholds.trained == numbers["thresholds"]["trained"] and again.thresholds.data == "pocket"
    assert again.tag(plain_and_noise(), again.labels) == [[]] * 4
    # thresholds beside the model are replaced, and a damaged file is no obstacle
    (out / THRESHOLDS_FILE).write_bytes(b"damaged")
    assert main(["calibrate", str(out), str(data), "--part", "test", "--device", "cpu"]) == 0
    assert "60 test pictures" in capsys.readouterr().out
    assert "best F1" in str(QKS.from_pretrained(out, pocket.vlp).thresholds)


@pytest.mark.parametrize(
    "words, match",
    [
        (["pocket", "DATA"], "the packaged model stays as it is: name a folder"),
        (["pocket", "DATA", "--out", "NEW", "--at", "0.5"], "pass --criterion precision or recall"),
        (["pocket", "DATA", "--out", "NEW", "--criterion", "recall"], "needs --at"),
        (["pocket", "DATA", "--out", "NEW", "--criterion", "recall", "--at", "2"], "needs --at"),
        (["pocket", "nowhere", "--out", "NEW"], "nowhere"),
        (["nowhere", "DATA"], "nowhere"),
    ],
)
def test_calibrate_refuses_in_a_sentence(data, tmp_path, capsys, words, match):
    places = {"DATA": str(data), "NEW": str(tmp_path / "new")}
    assert main(["calibrate", *(places.get(word, word) for word in words)]) == 2
    error = capsys.readouterr().err.strip()
    assert match in error and "Traceback" not in error
    assert not (tmp_path / "new").exists()


def test_labels_of_other_data_are_said(pocket, data, tmp_path, capsys):
    "Labels of the model that are not annotated here count as never trained on."
    model = QKS(pocket.vlp, pocket.head, pocket.pool, [*pocket.labels, "zeppelin"])
    model.save_pretrained(tmp_path / "more")
    assert main(["calibrate", str(tmp_path / "more"), str(data), "--device", "cpu"]) == 0
    assert "1 of the 277 labels that the model was trained on are not annotated here" in capsys.readouterr().out
    none = QKS(pocket.vlp, pocket.head, pocket.pool)
    none.save_pretrained(tmp_path / "none")
    assert main(["calibrate", str(tmp_path / "none"), str(data), "--device", "cpu"]) == 2
    assert "does not say which labels it was trained on" in capsys.readouterr().err
