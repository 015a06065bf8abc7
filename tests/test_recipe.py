"""The recipe by size: enough steps for any number of pictures, what the user gives stays, and the readout that won."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from qks.commands.main import parse
from qks.data.index import LabelledImages, index_pairs
from qks.experiment.recipe import (
    FEWEST_EPOCHS,
    MOST_EPOCHS,
    PICTURES_TO_SHOW,
    batch_and_epochs,
    pictures_per_label,
    readout_by_size,
    recipe_by_size,
)
from qks.experiment.spec import RunOptions, RunSpec, spec_values
from qks.experiment.training_run import prepare_run
from qks.model.config import HeadConfig
from qks.train.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("n_images", [30, 300, 999, 1000, 3000, 12_000, 200_000])
def test_every_size_gets_enough_steps(n_images):
    "Where the paper's recipe takes 300 steps of 300 pictures; and no more epochs than are of use."
    batch_size, epochs = batch_and_epochs(n_images)
    steps = math.ceil(n_images / batch_size) * epochs
    assert FEWEST_EPOCHS <= epochs <= MOST_EPOCHS
    assert steps >= 150 and (epochs == MOST_EPOCHS or n_images * epochs >= PICTURES_TO_SHOW)


def test_the_median_of_labels_with_pictures():
    labels = np.full((20, 5), -1, np.int8)
    for column, count in enumerate((12, 5, 2, 0, 20)):  # the last one is unseen
        labels[:count, column] = 1
    names = tuple("abcde")
    pictures = LabelledImages(Path("x"), tuple(map(str, range(20))), labels, names, 4)
    assert pictures_per_label(pictures) == 5
    pairs = [(row, names[column], 1) for row, column in np.argwhere(labels > 0).tolist()]
    assert pictures_per_label(index_pairs("x", pictures.images, pairs, names[:4], names[4:])) == 5


def test_what_the_user_gives_stays_and_what_belongs_to_it():
    head = HeadConfig(n_layers=7)
    train = TrainConfig(lr=1e-5, epochs=60)
    recipe = recipe_by_size(300, 8, head, train, given=("lr", "n_layers"))
    assert recipe.train.lr == 1e-5 and recipe.head.n_layers == 7 and recipe.train.epochs != 60
    assert "--lr" not in recipe.remarks[0] and "--epochs 67 --batch-size 16" in recipe.remarks[0]
    plateau = recipe_by_size(300, 8, head, TrainConfig(plateau_patience=3), given=("plateau_patience",))
    assert plateau.train.schedule == "plateau" and plateau.train.plateau_patience == 3
    asl = recipe_by_size(300, 8, head, TrainConfig(asl_margin=0.1), given=("asl_margin",))
    assert asl.train.loss == "asl"
    score = HeadConfig(readout="residual", frozen_score="local-global")
    assert recipe_by_size(10**6, 10**5, score, train, given=("frozen_score", "readout")).head.readout == "residual"


def test_a_head_that_is_continued_keeps_its_sizes_and_its_start():
    recipe = recipe_by_size(300, 8, HeadConfig(), TrainConfig(), is_new=False)
    assert recipe.head == HeadConfig() and not recipe.train.prior_init and recipe.train.lr > 1e-4


def test_flags_are_told_from_defaults(tmp_path):
    "Also a flag whose value is the default, with = or an underscore; a file of settings gives all of its own."
    words = ["train", "photos", "--out", "run", "--lr=1e-5", "--batch_size", "64", "--fused"]
    assert {"lr", "batch_size", "fused", "out"} == set(parse(words).given)
    assert parse(words).recipe == "by-size" and RunSpec(Path("photos"), RunOptions(Path("run"))).recipe == "paper"
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"recipe": "paper", "train": {"epochs": 60}, "head": {"n_layers": 7}}))
    parsed = parse(["train", "photos", "--out", "run", "--config", str(file)])
    assert {"epochs", "n_layers"} <= set(parsed.given) and parsed.recipe == "paper"
    assert "given" not in spec_values(parsed.spec)


@pytest.fixture
def own(tmp_path):
    "A folder of the user's own with 40 pictures, and a published layout of as many."
    from PIL import Image

    from qks.commands.main import main

    root = tmp_path / "photos"
    root.mkdir()
    lines = ["image,labels"]
    for number in range(40):
        Image.new("RGB", (8, 8), (6 * number, 0, 0)).save(root / f"{number}.png")
        lines.append(f"{number}.png,{'dark' if number < 20 else 'red'}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    assert main(["data", "folder", "prepare", str(root), "--test-part", "0.2"]) == 0
    return root


def prepared(root, tmp_path, *words):
    options = parse(["train", str(root), "--out", str(tmp_path / "run"), *words])
    return prepare_run(options.spec)


def test_a_folder_of_ones_own_gets_it_and_is_told(own, tmp_path):
    run = prepared(own, tmp_path, "--epochs", "3")
    assert (run.spec.train.epochs, run.spec.train.schedule, run.spec.train.loss) == (3, "cosine", "bce")
    assert run.spec.head.readout == readout_by_size(16) and run.spec.train.lr > 1e-4
    told = "\n".join(run.remarks)
    assert "32 training pictures" in told and "the paper's recipe would make 60 at a rate of 1e-05" in told
    assert "--recipe paper" in told


def test_the_papers_recipe_on_demand_and_for_published_data(own, tmp_path, tmp_path_factory):
    from qks.commands.main import main

    run = prepared(own, tmp_path, "--recipe", "paper")
    assert run.spec.head == HeadConfig() and (run.spec.train.lr, run.spec.train.loss) == (1e-5, "asl")
    root = tmp_path_factory.mktemp("data") / "pocket"
    assert main(["data", "pocket", str(root), "--n-train", "40", "--n-test", "20"]) == 0
    published = prepared(root, tmp_path)
    assert published.spec.head == HeadConfig() and (published.spec.train.lr, published.spec.train.epochs) == (1e-5, 60)
    assert not any("recipe" in remark for remark in published.remarks)


def test_qks_reproduce_keeps_the_papers_readout():
    from qks.experiment.reproduction import ReproduceConfig

    assert ReproduceConfig().head.readout == "paper"


def test_wider_heads_take_a_lower_rate():
    rates = [recipe_by_size(300, 8, HeadConfig(), TrainConfig(), width=width).train.lr for width in (192, 384, 768)]
    assert rates == [2e-3, 1e-3, 5e-4]


def committed_runs():
    return json.loads((ROOT / "nbs" / "results" / "few_pictures.json").read_text())["runs"]


@pytest.mark.parametrize("size", [5, 20, 100, None])
def test_the_default_at_each_size_is_the_winner_of_the_committed_runs(size):
    runs = [run for run in committed_runs() if run["pictures per label"] == size]
    assert sorted((run["readout"], run["seed"]) for run in runs) == [
        (readout, seed) for readout in ("paper", "residual") for seed in range(3)
    ]
    means = {
        readout: np.mean([run["test"]["gzsl"]["mAP"] for run in runs if run["readout"] == readout])
        for readout in ("paper", "residual")
    }
    winner = max(means, key=means.get)
    for run in runs:
        chosen = recipe_by_size(run["pictures"], run["pictures of a label"], HeadConfig(), TrainConfig())
        assert chosen.head.readout == winner
        if run["readout"] == winner:
            assert (chosen.train.epochs, chosen.train.lr) == (run["epochs"], run["lr"]), "run scripts/few_pictures.py"
