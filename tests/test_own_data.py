"""Folders of the user's own: every picture counts, held-out parts are drawn by label, and what was decided is said."""

import json
import logging
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from qks.commands.main import main
from qks.core import QKSError, load_image
from qks.data import index as index_module
from qks.data.own_splits import add_validation, split_validation, stratified_holdout, stratified_mask
from qks.data.splits import check_dataset, index_splits, open_split, open_splits, prepare
from qks.evaluate.metrics import evaluate_scores
from qks.evaluate.protocols import PROTOCOLS, default_topk
from qks.evaluate.report import ReportConfig, build_report
from qks.evaluate.tables import report_breakdown, report_table, unmeasured_notes
from qks.experiment.evaluation import evaluate_model, group_by_training, select_images, select_labels
from qks.experiment.spec import HoldoutConfig
from qks.experiment.training_data import plan_training
from qks.model.prompts import embed_names
from qks.model.tagger import QKS
from qks.train import config as train_config
from qks.train.config import TrainConfig

QUICK = ["--recipe", "paper", "--epochs", "2", "--n-layers", "1", "--n-queries", "2", "--batch-size", "16"]


def write_table(root, name, cells, prefix="", pictures=True):
    "A table of small random pictures, one per cell; an empty cell is a picture without a label."
    root.mkdir(exist_ok=True, parents=True)
    generator = np.random.default_rng(len(cells))
    lines = ["image,labels"]
    for number, cell in enumerate(cells):
        image = f"{prefix or name}{number:03d}.png"
        if pictures:
            pixels = generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / image)
        lines.append(f"{image},{cell}")
    (root / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return root


def defects(n, every):
    return ["defect" if number % every == 0 else "" for number in range(n)]


def index_of(cells, root, **options):
    write_table(root, "train", cells, pictures=False)
    return index_splits(root, "folder", ["train"], **options)["train"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Defect or no defect, half of the cells empty: prepared, trained on, and the run's results."
    root = write_table(tmp_path_factory.mktemp("defects") / "data", "train", defects(60, 5))
    write_table(root, "test", defects(30, 2))
    out = root.parent / "run"
    prepare(root, "folder")
    assert main(["train", str(root), "--out", str(out), *QUICK]) == 0
    return root, out, json.loads((out / "results.json").read_text())


# pictures without a label


def test_names_of_protocols_agree():
    assert tuple(PROTOCOLS) == get_args(index_module.ProtocolName) == get_args(train_config.ProtocolName)


def test_a_model_at_chance_is_not_perfect():
    labels = np.where(np.arange(200) % 2, 1, -1)[:, None]
    scores = np.random.default_rng(0).random((200, 1))
    expected = average_precision_score(labels[:, 0] > 0, scores[:, 0])
    assert 0.4 < expected < 0.6
    assert evaluate_scores(scores, labels, 1, (1,), "own-data")["seen"]["mAP"] == pytest.approx(expected)


def test_every_image_counts_and_only_measurable_labels_are_in_the_mean():
    labels = np.array([[1, -1, 1, -1], [-1, -1, 1, -1], [1, -1, 1, 1], [-1, -1, 1, -1]])  # none, all, one image
    scores = np.random.default_rng(1).random((4, 4))
    ap = [average_precision_score(labels[:, column] > 0, scores[:, column]) for column in (0, 3)]
    report = build_report({"any": scores}, labels, 4, ReportConfig(("own-data",), (1, 4)), list("abcd"))
    row = report["rows"]["any"]["own-data"]
    assert row["metrics"]["seen"]["mAP"] == pytest.approx(np.mean(ap))
    assert row["ap_per_label"] == {"a": pytest.approx(ap[0]), "b": None, "c": None, "d": pytest.approx(ap[1])}
    assert report["protocols"]["own-data"]["parts"]["seen"] == {"images": 4, "labels": 4, "labels_in_mean": 2}
    kinds = row["breakdown"]["seen"]["frequency"].values()
    assert sum(kind["mAP"] * kind["labels"] for kind in kinds) / 2 == pytest.approx(np.mean(ap))
    notes = "\n".join(unmeasured_notes(report))
    assert "1 of 4 seen labels are in no mean, because no test image shows them: b." in notes
    assert "because every test image shows them: c." in notes
    assert "F1@4 predicts all labels (4) for every image, and so is the same for every model" in notes


@pytest.mark.parametrize("protocol", ["official", "all-images", "annotated", "own-data"])
def test_where_no_negative_takes_part_there_is_no_number(protocol):
    labels = np.array([[1, -1], [-1, 1], [1, -1]]) if protocol != "all-images" else np.array([[1, 1], [1, -1], [1, 1]])
    scores = np.random.default_rng(2).random((3, 2))
    if protocol == "own-data":
        labels = np.array([[1, 1], [1, -1], [1, 1]])
    report = build_report({"any": scores}, labels, 1, ReportConfig((protocol,), (1,), resamples=10), ["a", "b"])
    metrics = report["rows"]["any"][protocol]["metrics"]
    assert set(metrics["seen"].values()) == {None}
    line = next(line for line in report_table(report).splitlines() if "| seen" in line)
    assert line.count("–") == 2 and "100.0" not in line and "[" not in line
    assert f"protocol {protocol!r}, part seen: no label is on some of the images" in "\n".join(unmeasured_notes(report))
    assert "seen" not in report_breakdown(report, "any", protocol)


def test_nothing_to_measure_is_refused():
    for labels in (np.ones((3, 2)), np.array([[1, -1], [1, -1]]), -np.ones((3, 2))):
        with pytest.raises(QKSError, match="nothing (to measure|can be measured)"):
            evaluate_scores(labels, labels, 2, (1,), "own-data")


def test_k_stays_below_the_number_of_labels():
    assert [default_topk(count, count, "own-data") for count in (1, 2, 3, 4, 6)] == [(1,), (1,), (1,), (3,), (3, 5)]
    assert default_topk(3, 3) == (3,)


def test_the_number_of_a_run_is_that_of_all_test_images(trained):
    root, out, results = trained
    test = open_split(root, "test")
    model = QKS.from_pretrained(out / "model")
    images = [load_image(test.path(row)) for row in range(len(test))]
    scores = model.predict(images, embed_names(model.pool, model.vlp, ["defect"])).logits[:, 0].numpy()
    expected = average_precision_score(test.labels()[:, 0] > 0, scores)
    assert results["protocol"] == "own-data"
    assert results["runs"][0]["metrics"]["seen"]["mAP"] == pytest.approx(expected, abs=1e-6)
    assert results["report"]["protocols"]["own-data"]["parts"]["seen"]["images"] == 30
    report = evaluate_model(model, test)
    assert report["rows"]["QKS"]["own-data"]["metrics"]["seen"]["mAP"] == pytest.approx(expected, abs=1e-6)


def test_protocol_is_an_option_of_prepare_train_and_evaluate(trained, tmp_path, capsys):
    root, out, _ = trained
    assert main(["train", str(root), "--out", str(tmp_path / "run"), *QUICK, "--protocol", "official"]) == 0
    assert "100.0" not in capsys.readouterr().out
    assert json.loads((tmp_path / "run/results.json").read_text())["protocol"] == "official"
    own = write_table(tmp_path / "own", "train", defects(20, 2))
    assert main(["data", "folder", "prepare", str(own), "--protocol", "all-images"]) == 0
    assert open_split(own, "train").protocol == "all-images"
    assert main(["evaluate", str(out), str(root), "--protocol", "own-data", "official"]) == 0
    text = capsys.readouterr().out
    assert "own-data" in text and "100.0" not in text


def test_the_epoch_is_chosen_by_all_held_out_images(trained, tmp_path):
    root, _, _ = trained
    out = tmp_path / "run"
    options = ["--validation-part", "0.4", "--min-positives", "0"]
    assert main(["train", str(root), "--out", str(out), *QUICK, *options]) == 0
    results = json.loads((out / "results.json").read_text())
    history = results["runs"][0]["history"]
    assert results["images"] == {"train": 36, "validation": 24, "test": 30}
    assert len({row["mAP"] for row in history} | {1.0}) > 1 and all(row["mAP"] < 1 for row in history)


# held-out images


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_every_label_gets_its_share(tmp_path, seed, fraction):
    generator = np.random.default_rng(seed)
    names = np.array(["a", "b", "c", "rare"])
    present = generator.random((400, 4)) < [0.5, 0.2, 0.1, 0.04]
    index = index_of(["|".join(names[row]) for row in present], tmp_path)
    mask = stratified_mask(index, fraction, seed)
    labels = index.labels() > 0
    assert abs(mask.sum() - 400 * fraction) <= 4
    assert (abs(labels[mask].sum(axis=0) - fraction * labels.sum(axis=0)) <= 3).all()
    assert (mask == stratified_mask(index, fraction, seed)).all()
    assert (mask != stratified_mask(index, fraction, seed + 1)).any()


def test_the_rarest_label_goes_where_it_is_wanted_most(tmp_path):
    index = index_of(["one", "two", "two", *["many"] * 20], tmp_path)
    fit, held_out = stratified_holdout(index, 0.2, 0)
    assert dict(zip(index.label_ids, held_out.positives().tolist())) == {"one": 0, "two": 0, "many": 4}
    fit, held_out = stratified_holdout(index, 0.5, 0)
    assert dict(zip(index.label_ids, held_out.positives().tolist()))["two"] == 1
    assert sorted(fit.images + held_out.images) == sorted(index.images)
    for fraction in (0, 1, -1, 0.001):
        with pytest.raises(QKSError, match="leaves one part empty"):
            stratified_holdout(index, fraction, 0)


def test_images_without_labels_are_shared_out_as_well(tmp_path):
    mask = stratified_mask(index_of(["a", *[""] * 99], tmp_path), 0.3, 0)
    assert mask.sum() == 30


def test_test_images_are_drawn_by_label(tmp_path):
    write_table(tmp_path, "train", defects(60, 5))
    splits = index_splits(tmp_path, "folder", test_part=0.25)
    assert {name: (len(index), index.positives()[0]) for name, index in splits.items()} == {
        "train": (45, 9),
        "test": (15, 3),
    }
    other = index_splits(tmp_path, "folder", test_part=0.25, test_seed=1)
    assert other["test"].images != splits["test"].images
    with pytest.raises(QKSError, match="test_part is 0: give a part of the images between 0 and 1"):
        index_splits(tmp_path, "folder", test_part=0)


def test_twelve_defects_in_sixty_pictures_can_be_trained(trained):
    root, out, results = trained
    assert results["selection"] == "last" and results["images"] == {"train": 60, "test": 30}
    assert results["remarks"] == [
        "the 6 held-out images hold only 1 positive label, fewer than 30: too few to choose an epoch by, so all "
        "training images are trained on and the last epoch is kept (--validation-part holds out more, "
        "--min-positives 0 chooses all the same)"
    ]


def test_the_draw_for_the_epoch_has_size_seed_and_threshold(tmp_path):
    train = index_of(["a", "b", "a|b", ""] * 100, tmp_path)
    plan = plan_training({"train": train})
    assert plan.selection == "seen" and not plan.remarks
    assert {name: len(images) for name, images in plan.parts.items()} == {"train": 360, "validation": 40}
    assert (plan.parts["validation"].labels > 0).sum(axis=0).tolist() == [20, 20]
    larger = plan_training({"train": train}, "seen", HoldoutConfig(validation_part=0.25, validation_seed=3))
    assert len(larger.parts["validation"]) == 100
    few = plan_training({"train": train}, "seen", HoldoutConfig(min_positives=41))
    assert few.selection == "last" and "validation" not in few.parts and "hold only 40" in few.remarks[0]
    assert plan_training({"train": train}, "last").parts.keys() == {"train"}


def test_published_data_keep_their_draw(tmp_path):
    from qks.data.index import holdout
    from qks.data.pocket import PocketConfig, write_pocket

    splits = open_splits(write_pocket(tmp_path / "pocket", PocketConfig(n_train=40, n_test=20)))
    plan = plan_training(splits)
    fit, validation = holdout(splits["train"], 0.1, seed=0)
    assert plan.selection == "seen" and not plan.remarks and plan.parts["test"].protocol == "official"
    assert (plan.parts["train"].images, plan.parts["validation"].images) == (fit.images, validation.images)


@pytest.mark.parametrize("kind", ["list", "table"])
def test_the_users_own_validation_images(tmp_path, monkeypatch, kind):
    root = write_table(tmp_path / "own", "train", ["a", "b", "a|b", ""] * 20)
    where = tmp_path / "here"
    where.mkdir()
    monkeypatch.chdir(where)
    if kind == "list":
        Path("val.txt").write_text("train004.png\ntrain001.png\n")
        name = "val.txt"
        expected = ("train001.png", "train004.png")
    else:
        write_table(root, "val", ["a", "b"], prefix="new")
        (root / "val.csv").rename("val.csv")
        name = "val.csv"
        expected = ("new000.png", "new001.png")
    prepared = prepare(root, "folder", validation=name)
    assert f"2 images of the {kind} {name} are for choosing the epoch, and not trained on" in str(prepared)
    assert "is outside the folder: prepare again when it changes" in str(prepared)
    plan = plan_training(open_splits(root))
    assert plan.parts["validation"].images == expected and plan.selection == "last"
    assert not set(expected) & set(plan.parts["train"].images)
    assert "hold only 2 positive labels" in plan.remarks[1]
    chosen = plan_training(open_splits(root), "seen", HoldoutConfig(min_positives=0))
    assert chosen.selection == "seen" and chosen.parts["validation"].labels.tolist()[1] == (
        [1, -1] if kind == "list" else [-1, 1]
    )


def test_validation_images_that_are_given_when_training(tmp_path):
    root = write_table(tmp_path / "own", "train", ["a", "b"] * 20)
    prepare(root, "folder")
    (root / "val.txt").write_text("train003.png\n")
    (tmp_path / "bad.txt").write_text("train003.png\nelse.png\n")
    plan = plan_training(open_splits(root), "seen", HoldoutConfig(validation=Path("val.txt")))
    assert plan.parts["validation"].images == ("train003.png",)
    with pytest.raises(QKSError, match="image 'else.png' is not in the training table"):
        plan_training(open_splits(root), "seen", HoldoutConfig(validation=tmp_path / "bad.txt"))
    with pytest.raises(QKSError, match="pass one"):
        HoldoutConfig(validation=Path("val.txt"), validation_part=0.1)


def test_an_image_of_both_tables_is_held_out(tmp_path):
    train = index_of(["a", "b", "a"], tmp_path)
    more = train.subset([1])
    fit, validation = split_validation(add_validation(train, more, "val.csv"))
    assert validation.images == ("train001.png",) and len(fit) == 2


# labels that miss a side


def test_labels_that_miss_a_side_are_said_with_their_counts(tmp_path):
    write_table(tmp_path, "train", ["cat", "cat|bird", "dog", "bird"] * 10)
    write_table(tmp_path, "test", ["cat", "dog", "zebra"] * 4)
    (tmp_path / "seen.txt").write_text("zebra\ncat\ndog\nbird\ngnu\n")
    prepared = prepare(tmp_path, "folder", seen=str(tmp_path / "seen.txt"))
    for sentence in (
        "label 'bird' has 20 training images and no test images: no table has a number for it",
        "label 'zebra' has no training images and 4 test images: it is not trained on, and counts as unseen",
        "label 'gnu' has no training images and no test images: it is left out",
    ):
        assert sentence in str(prepared)
    splits = open_splits(tmp_path)
    assert splits["train"].label_ids == ("cat", "dog", "bird") and splits["train"].n_seen == 3
    assert splits["test"].label_ids == ("cat", "dog", "bird", "zebra") and splits["test"].n_seen == 3
    assert splits["test"].positives().tolist() == [4, 4, 0, 4]
    assert splits["train"].positives().tolist() == [20, 10, 20]


def test_a_label_whose_images_are_all_held_out_is_not_trained_on(tmp_path):
    write_table(tmp_path, "train", ["cat", "dog", "cat", "bird"] * 10)
    write_table(tmp_path, "test", ["cat", "bird", "dog"])
    (tmp_path / "val.txt").write_text("".join(f"train{number:03d}.png\n" for number in range(3, 40, 4)))
    prepare(tmp_path, "folder", validation="val.txt")
    splits = open_splits(tmp_path)
    assert splits["train"].label_ids == ("cat", "dog") and splits["test"].label_ids == ("cat", "dog", "bird")
    plan = plan_training(splits, "last")
    assert plan.parts["train"].label_names == ("cat", "dog") and plan.labels.n_seen == 2


def test_validation_that_lacks_a_label_is_said(tmp_path):
    train = index_of(["a", "b", "a|b", ""] * 100 + ["rare"] * 3, tmp_path)
    plan = plan_training({"train": train})
    assert plan.remarks == ["no validation image shows rare (3 for training): the epoch is chosen by the other labels"]


def test_without_any_positive_training_is_refused(tmp_path):
    (tmp_path / "seen.txt").write_text("a\n")
    train = index_of(["", ""] * 20, tmp_path, seen="seen.txt")
    with pytest.raises(QKSError, match="none of the 40 training images in .* shows a label: add some that do"):
        plan_training({"train": train})


def test_labels_are_seen_where_the_model_was_trained_on_them(tmp_path):
    index = index_of(["a", "b", "c"], tmp_path)
    grouped, remarks = group_by_training(index, ["c", "x"])
    assert grouped.label_ids == ("c", "a", "b") and grouped.n_seen == 1 and "for a, b." in remarks[0]
    assert group_by_training(index, ["a", "b", "c"]) == (index, []) and group_by_training(index, []) == (index, [])


# the last epoch, a training set alone, a part of the test images


def test_the_last_epoch_is_kept_on_demand(trained, tmp_path):
    root, _, _ = trained
    out = tmp_path / "run"
    assert main(["train", str(root), "--out", str(out), *QUICK, "--selection", "last"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["selection"] == "last" and results["remarks"] == [] and "validation" not in results["images"]
    assert json.loads((out / "config.json").read_text())["train"]["selection"] == "last"
    assert TrainConfig(selection="last").selection == "last"


def test_a_training_set_alone(tmp_path, capsys):
    root = write_table(tmp_path / "own", "train", ["a", "b", "a|b", ""] * 8)
    out = tmp_path / "run"
    assert main(["data", "folder", "prepare", str(root)]) == 0
    assert "there is no test table test.csv: training works" in capsys.readouterr().out
    assert main(["train", str(root), "--out", str(out), *QUICK]) == 0
    assert "There are no test images, so there is no test table." in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert results["images"] == {"train": 32} and results["report"] is None and not (out / "table.md").exists()
    assert QKS.from_pretrained(out / "model").labels == ("a", "b")
    assert main(["evaluate", str(out), str(root)]) == 2
    assert main(["train", str(root), "--out", str(tmp_path / "b"), *QUICK, "--selection", "official"]) == 2
    assert "has none: leave it out" in capsys.readouterr().err


def test_without_test_images_evaluating_says_how_to_get_some(tmp_path, capsys):
    root = write_table(tmp_path / "data", "train", defects(8, 2))
    prepare(root, "folder")
    assert main(["evaluate", "pocket", str(root)]) == 2
    words = " ".join(capsys.readouterr().err.split())
    assert "was prepared without test images: write a table of them" in words and "--test-part 0.2" in words


def test_a_test_table_that_is_gone_is_not_measured_from_memory(tmp_path):
    write_table(tmp_path, "train", ["a", "b"] * 5)
    write_table(tmp_path, "test", ["a", "b"])
    prepare(tmp_path, "folder")
    (tmp_path / "test.csv").unlink()
    prepare(tmp_path, "folder")
    assert list(open_splits(tmp_path)) == ["train"]


def test_some_labels_and_some_images(trained, tmp_path, capsys, monkeypatch):
    root, out, _ = trained
    (root / "some.txt").write_text("test003.png\ntest000.png\ntest002.png\n")
    monkeypatch.chdir(tmp_path)
    assert (
        main(["evaluate", str(out), str(root), "--images", "some.txt", "--labels", "defect", "--json", "r.json"]) == 0
    )
    assert "3 of 30 test images and 1 of 1 labels were measured" in capsys.readouterr().out
    report = json.loads(Path("r.json").read_text())
    assert report["images"] == 3 and report["positives"] == {"defect": 2}
    index = open_split(root, "test")
    assert select_images(index, "some.txt").images == ("test000.png", "test002.png", "test003.png")
    Path("wrong.txt").write_text("test000.png\nother.png\n")
    with pytest.raises(QKSError, match="1 of its 2 images are not in the test split of .*, the first is other.png"):
        select_images(index, "wrong.txt")
    with pytest.raises(QKSError, match="label 'defcet' is not among the 1 of the test split: did you mean 'defect'"):
        select_labels(index, ["defcet"])


def test_labels_of_a_part_keep_their_columns(tmp_path):
    index = index_of(["a|c", "b", "c"], tmp_path)
    some = select_labels(index, ["c", "a"])
    assert some.label_names == ("a", "c") and some.labels().tolist() == [[1, 1], [-1, -1], [-1, 1]]


# damaged pictures


@pytest.fixture
def damaged(tmp_path):
    root = write_table(tmp_path / "own", "train", ["a", "b", "a|b", ""] * 8)
    write_table(root, "test", ["a", "b", ""] * 3)
    (root / "train003.png").write_bytes(b"")
    (root / "train005.png").write_bytes(b"no image")
    content = (root / "test001.png").read_bytes()
    (root / "test001.png").write_bytes(content[: len(content) // 2])
    return root


def test_damaged_images_are_left_out_when_preparing(damaged, capsys):
    assert main(["data", "folder", "prepare", str(damaged), "--leave-out-damaged"]) == 0
    text = capsys.readouterr().out
    assert "2 damaged images are left out: train003.png, train005.png" in text and "test001.png" in text
    splits = open_splits(damaged)
    assert (len(splits["train"]), len(splits["test"])) == (30, 8)
    assert check_dataset(damaged, "folder", decode=True).ok


def test_check_lists_all_of_them(damaged, tmp_path):
    prepare(damaged, "folder")
    file = tmp_path / "faulty.txt"
    arguments = ["data", "folder", "check", str(damaged), "--decode", "--list", str(file)]
    assert main(arguments) == 1
    assert sorted(file.read_text().split()) == ["test001.png", "train003.png", "train005.png"]
    assert main(arguments) == 2  # the file is not replaced
    assert main([*arguments, "--force"]) == 1


def test_training_goes_on_without_them_only_when_told_to(damaged, tmp_path, capsys):
    (damaged / "train003.png").write_bytes(b"no image either")
    prepare(damaged, "folder")
    arguments = ["train", str(damaged), "--out", str(tmp_path / "run"), *QUICK]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "train003.png is not an image" in message and "--leave-out-damaged goes on without them" in message
    assert main([*arguments, "--force", "--leave-out-damaged"]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["images"] == {"train": 30, "test": 8}
    assert results["remarks"][0] == "2 damaged train images are left out: train003.png, train005.png"


# lists by path


def test_lists_are_looked_for_where_the_user_stands_first(tmp_path, monkeypatch, caplog):
    root = write_table(tmp_path / "own", "train", ["a", "b", "c"], pictures=False)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (root / "unseen.txt").write_text("a\n")
    assert index_splits(root, "folder", ["train"], unseen="unseen.txt")["train"].label_ids == ("b", "c")
    (here / "unseen.txt").write_text("b\n")
    with caplog.at_level(logging.WARNING, "qks"):
        assert index_splits(root, "folder", ["train"], unseen="unseen.txt")["train"].label_ids == ("a", "c")
    assert "the one in the current folder is read" in caplog.text
    for name in (here / "unseen.txt", "../here/unseen.txt"):
        assert index_splits(root, "folder", ["train"], unseen=str(name))["train"].label_ids == ("a", "c")
    with pytest.raises(QKSError, match="no.txt is missing: looked for it at .*here/no.txt and .*own/no.txt"):
        index_splits(root, "folder", ["train"], unseen="no.txt")


def test_a_list_inside_is_watched_and_one_outside_is_said(tmp_path, monkeypatch):
    root = write_table(tmp_path / "own", "train", ["a", "b", "c"], pictures=False)
    monkeypatch.chdir(tmp_path)
    (root / "unseen.txt").write_text("a\n")
    (tmp_path / "outside.txt").write_text("a\n")
    inside = index_splits(root, "folder", ["train"], unseen="own/unseen.txt")["train"]
    assert "unseen.txt" in inside.sources and not any("outside" in note for note in inside.notes)
    outside = index_splits(root, "folder", ["train"], unseen="outside.txt")["train"]
    assert outside.sources == ("train.csv",) and "outside.txt is outside the folder" in outside.notes[0]


def test_a_table_by_path(tmp_path, monkeypatch):
    root = write_table(tmp_path / "own", "train", ["a", "b"], pictures=False)
    (root / "train.csv").rename(tmp_path / "mine.csv")
    monkeypatch.chdir(tmp_path)
    for name in ("mine.csv", str(tmp_path / "mine.csv")):
        assert len(index_splits(root, "folder", ["train"], train=name)["train"]) == 2
    (tmp_path / "train.csv").write_text("image,labels\nx.jpg,x\n")  # of another data set
    with pytest.raises(QKSError, match="train.csv is missing"):
        index_splits(root, "folder", ["train"])


def test_a_table_of_images_to_measure_needs_no_labels(tmp_path, capsys):
    root = write_table(tmp_path / "data" / "pictures", "test", defects(8, 2)).parent
    (root / "pictures/test.csv").rename(root / "test.csv")
    prepare(root, "folder", ["test"], image_folder="pictures")
    listed = tmp_path / "images.csv"
    listed.write_text("file_name\ntest000.png\ntest001.png\ntest000.png\n")
    chosen = select_images(open_split(root, "test"), listed)
    assert chosen.images == ("test000.png", "test001.png")
    assert main(["evaluate", "pocket", str(root), "--images", str(listed)]) == 0
    assert "2 of 8 test images and 1 of 1 labels were measured" in capsys.readouterr().out


def test_labels_to_measure_are_read_as_asked(tmp_path, capsys):
    root = write_table(tmp_path / "data", "test", ['"salt, pepper"', "dog", "", "salt|dog"])
    prepare(root, "folder", ["test"], label_separator="|")
    words = ["evaluate", "pocket", str(root), "--labels", "salt, pepper"]
    assert main(words) == 2 and "label 'pepper' is not among the 3" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "--label-separator", "none"]) == 0
    assert "1 of 3 labels were measured" in capsys.readouterr().out
    assert main(["evaluate", "pocket", str(root), "--labels", ""]) == 2
    assert "the list of labels to measure is empty" in " ".join(capsys.readouterr().err.split())


def test_a_label_that_only_validation_images_show_is_said(tmp_path):
    root = write_table(tmp_path / "data", "train", ["dog", "", "dog", "", "bee", ""], pictures=False)
    write_table(root, "test", ["dog", ""], pictures=False)
    (root / "validation.txt").write_text("train002.png\ntrain003.png\ntrain004.png\n")
    splits = index_splits(root, "folder", validation="validation.txt")
    assert splits["train"].label_ids == ("dog",)
    assert splits["test"].label_ids == ("dog", "bee") and splits["test"].n_seen == 1
    expected = (
        "label 'bee' has no training images and 1 validation image and no test images: "
        "it is not trained on, and counts as unseen; no table has a number for it"
    )
    assert expected in splits["test"].notes


def test_a_table_without_any_label_is_refused(tmp_path):
    write_table(tmp_path, "train", ["", "", ""], pictures=False)
    with pytest.raises(QKSError, match="no training image in .* has a label, so there is none to train on"):
        index_splits(tmp_path, "folder")
