"""`qks evaluate` from end to end: streams and matrices, the authors' checkpoint, the results file, mistakes."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qks.commands.evaluate import protocol_names
from qks.commands.main import main
from qks.core import QKSError
from qks.data.index import sort_entries
from qks.data.nuswide import index_nuswide
from qks.data.pocket import PocketConfig, write_pocket
from qks.data.splits import open_split, prepare
from qks.evaluate.baselines import best_patch_scores, zero_shot_scores
from qks.evaluate.metrics import evaluate_scores
from qks.evaluate.protocols import PROTOCOLS
from qks.evaluate.report import ReportConfig, pool_facts
from qks.evaluate.tables import compare_reports, load_report
from qks.experiment.evaluation import ScoreMatrix, evaluate_model, make_scorers, token_batches, training_facts
from qks.experiment.loading import load_model
from qks.experiment.reproduction import ReproduceConfig, reproduce
from qks.experiment.spec import VLPSource
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.model.prompts import PromptPool, embed_names
from qks.model.scoring import head_scores
from qks.model.tagger import QKS
from qks.tokens.cache import list_caches
from qks.train.loop import TrainConfig
from qks.vlp.loading import load_vlp

GOLDEN = np.load(Path(__file__).parent / "data" / "model.npz")
WEIGHTS = {
    key.removeprefix("weights/"): torch.from_numpy(GOLDEN[key]) for key in GOLDEN.files if key.startswith("weights/")
}
NAMES = {
    "/m/01": "Jaguar",
    "/m/02": "Jaguar",
    "/m/03": "Bat",
    "/m/04": "Tree",
    "/m/05": "Bat",
    "/m/06": "Duck",
    "/m/07": "Trees",
    "/m/08": "Lake",
}


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    return write_pocket(tmp_path_factory.mktemp("data") / "pocket", PocketConfig(n_train=60, n_test=40))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of two seeds from 5 on, tiny, with its own Pocket-WIDE."
    folder = tmp_path_factory.mktemp("runs") / "run"
    reproduce(
        folder,
        ReproduceConfig(
            seed=5,
            data=PocketConfig(n_train=60, n_test=40),
            head=HeadConfig(n_queries=3, n_layers=1),
            train=TrainConfig(epochs=1, lr=1e-3, schedule="cosine"),
        ),
    )
    return folder


@pytest.fixture(scope="module")
def open_images(tmp_path_factory):
    "Open Images' files in small: 5 seen and 3 unseen labels, 30 images, ternary labels."
    root = tmp_path_factory.mktemp("data") / "oi"
    (root / "test").mkdir(parents=True)
    mids = list(NAMES)
    generator = np.random.default_rng(3)
    (root / "class-descriptions.csv").write_text("".join(f"{mid},{name}\n" for mid, name in NAMES.items()))
    (root / "classes-trainable.txt").write_text("\n".join(mids[:5]) + "\n")
    (root / "unseen_400.txt").write_text("\n".join(mids[5:]) + "\n")
    rows = ["ImageID,Source,LabelName,Confidence"]
    for i in range(30):
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), np.uint8)).save(root / "test" / f"{i:016x}.jpg")
        rows += [f"{i:016x},verification,{mid},{generator.integers(2)}" for mid in mids if generator.random() < 0.6]
    (root / "test" / "test-annotations-human-imagelabels.csv").write_text("\n".join(rows) + "\n")
    prepare(root, "openimages", ("test",))
    return root


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory, make_clip):
    "A CLIP of the sizes of the golden head, as a weight file in OpenAI's layout."
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(make_clip().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    "The authors' checkpoint, as they saved it."
    path = tmp_path_factory.mktemp("authors") / "best.pth"
    torch.save({f"module.{name}": tensor for name, tensor in WEIGHTS.items()}, path)
    return path


def said(capsys):
    "What a failed command printed: exactly one line, on the error stream."
    captured = capsys.readouterr()
    assert captured.err.startswith("qks: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


def evaluate(*words):
    return main(["evaluate", *map(str, words)])


def test_the_report_of_a_run_is_that_of_the_command(run, tmp_path, capsys):
    assert (
        evaluate(run / "model", run / "pocket-wide", "--json", tmp_path / "r.json", "--baselines", "--device", "cpu")
        == 0
    )
    again = load_report(tmp_path / "r.json")
    before = load_report(run / "results.json")
    for method, row in before["rows"].items():
        for part, metrics in row["official"]["metrics"].items():
            assert again["rows"][method]["official"]["metrics"][part] == pytest.approx(metrics, abs=1e-6), (
                method,
                part,
            )
    assert again["protocols"] == before["protocols"] and again["twins"] == before["twins"]
    assert "are the same" in compare_reports({"before": before, "again": again})
    results = json.loads((run / "results.json").read_text())
    assert (
        results["protocols"] == before["protocols"] and results["code"]["qks"] and results["prompts"]["templates"] == 85
    )
    assert results["ap_per_label"] == before["rows"]["QKS"]["official"]["ap_per_label"]


def test_a_results_file_says_how_it_came_about(run, tmp_path, capsys):
    words = [run / "model", run / "pocket-wide", "--protocol", "all", "--bootstrap", 20, "--seed", 3, "--topk", 2, 4]
    assert evaluate(*words, "--json", tmp_path / "r.json", "--per-label", tmp_path / "labels.csv") == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert list(found["protocols"]) == list(found["rows"]["QKS"]) == list(PROTOCOLS)
    for name, facts in found["protocols"].items():
        assert facts["rule"] == PROTOCOLS[name].rule and set(facts["parts"]) == {"seen", "zsl", "gzsl"}
        assert all(set(sizes) == {"images", "labels", "labels_in_mean"} for sizes in facts["parts"].values())
    assert found["protocols"]["all-images"]["parts"]["zsl"]["images"] == found["images"]
    assert (
        found["selection"] == "seen" and found["seed"] == 5 and found["topk"] == [2, 4] and found["tokens"] == "float32"
    )
    assert found["bootstrap"] == {"resamples": 20, "seed": 3, "level": 0.95} and found["prompts"] == pool_facts(
        PromptPool()
    )
    assert set(found["vlp"]) >= {"name", "pretrained", "fingerprint", "precision"} and set(found["code"]) == {
        "qks",
        "commit",
        "changed",
    }
    assert (
        found["labels"] == {"seen": 276, "unseen": 50}
        and len(found["label_names"]) == 326
        and found["machine"]
        and found["versions"]["torch"]
    )
    printed = capsys.readouterr().out
    for line in (line for line in printed.splitlines() if line.startswith("| QKS")):
        assert line.split("|")[2].strip() in PROTOCOLS
    assert "do not compare" in printed and "chosen by: seen" in printed and "20 resamples, seed 3" in printed
    with open(tmp_path / "labels.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 327


def test_a_matrix_and_a_stream_agree(open_images, tiny_vlp):
    index = open_split(open_images, "test")
    model = QKS(tiny_vlp, QKSHead.from_official(WEIGHTS, 4))
    config = ReportConfig(("official", "all-images", "annotated"), (1, 2), resamples=20)
    streamed = evaluate_model(model, index, config, baselines=True)
    assert streamed == evaluate_model(model, index, config, baselines=True, streamed=False)
    labels = index.labels()
    assert (labels == 0).any() and list(streamed["rows"]) == [
        "QKS",
        "VLP zero-shot, one prompt",
        "VLP zero-shot, prompt pool",
        "VLP best patch",
    ]
    tokens = torch.cat(list(token_batches(tiny_vlp, index, 7)))
    scores = head_scores(model.head, tokens, embed_names(model.pool, tiny_vlp, index.label_names))[0]
    expected = evaluate_scores(scores, labels, 5, (1, 2))
    for part, metrics in expected.items():
        assert streamed["rows"]["QKS"]["official"]["metrics"][part] == pytest.approx(metrics, abs=1e-6)


def test_leak_free_looks_at_names_and_tells_ids(open_images, tiny_vlp):
    found = evaluate_model(
        QKS(tiny_vlp, QKSHead.from_official(WEIGHTS, 4)),
        open_split(open_images, "test"),
        ReportConfig(("leak-free",), (1,)),
    )
    assert found["twins"] == {"/m/07": ["Tree"]} and found["protocols"]["leak-free"]["parts"]["zsl"]["labels"] == 2


def test_open_images_through_the_command(open_images, checkpoint, clip_file, tmp_path, capsys):
    words = [
        checkpoint,
        open_images,
        "--vlp",
        "tiny-quickgelu",
        "--pretrained",
        clip_file,
        "--n-heads",
        4,
        "--topk",
        1,
        3,
    ]
    assert evaluate(*words, "--json", tmp_path / "r.json", "--protocol", "official", "annotated", "official") == 0
    found = load_report(tmp_path / "r.json")
    model = QKS(load_vlp("tiny-quickgelu", str(clip_file), "cpu"), QKSHead.from_official(WEIGHTS, 4))
    index = open_split(open_images, "test")
    tokens = torch.cat(list(token_batches(model.vlp, index)))
    scores = head_scores(model.head, tokens, embed_names(model.pool, model.vlp, index.label_names))[0]
    for protocol in ("official", "annotated"):
        for part, metrics in evaluate_scores(scores, index.labels(), 5, (1, 3), protocol).items():
            assert found["rows"]["QKS"][protocol]["metrics"][part] == pytest.approx(metrics, abs=1e-6)
    assert (
        found["selection"] == found["seed"] == "unknown"
        and found["head"]["n_heads"] == 4
        and found["label_names"]["/m/02"] == "Jaguar"
    )


def test_the_authors_checkpoint(checkpoint, clip_file):
    model = load_model(checkpoint, VLPSource("tiny-quickgelu", str(clip_file)), n_heads=4, device="cpu")
    output = model.head(torch.from_numpy(GOLDEN["image_tokens"]), torch.from_numpy(GOLDEN["text_features"]))
    torch.testing.assert_close(output.logits, torch.from_numpy(GOLDEN["logits"]), rtol=1e-5, atol=1e-5)
    other = load_model(
        checkpoint, VLPSource("tiny-quickgelu", str(clip_file)), device="cpu"
    )  # one head per 64 channels: other numbers
    assert not torch.allclose(
        other.head(torch.from_numpy(GOLDEN["image_tokens"]), torch.from_numpy(GOLDEN["text_features"])).logits,
        output.logits,
        atol=1e-3,
    )


@pytest.mark.parametrize("name, dtype", [("bf16", "bfloat16"), ("fp32", "float32")])
def test_other_numbers_in_the_cache(pocket, tmp_path, capsys, name, dtype):
    assert (
        evaluate(
            "pocket",
            pocket,
            "--cache",
            tmp_path / "cache",
            "--cache-dtype",
            name,
            "--device",
            "cpu",
            "--json",
            tmp_path / "one.json",
        )
        == 0
    )
    assert load_report(tmp_path / "one.json")["tokens"] == f"{dtype}, from a cache" and [
        row["dtype"] for row in list_caches(tmp_path / "cache")
    ] == [dtype]


def test_tokens_from_a_cache(pocket, tmp_path, capsys):
    words = ["pocket", pocket, "--cache", tmp_path / "cache", "--device", "cpu"]
    assert evaluate(*words, "--json", tmp_path / "one.json") == 0
    (kept,) = (tmp_path / "cache").glob("tokens-*/tokens.bin")
    changed = kept.stat().st_mtime_ns
    assert evaluate(*words, "--json", tmp_path / "two.json") == 0 and kept.stat().st_mtime_ns == changed
    one, two = (load_report(tmp_path / f"{name}.json") for name in ("one", "two"))
    assert one == two and one["tokens"] == "float16, from a cache"
    index = open_split(pocket, "test")
    model = load_model("pocket", device="cpu")
    fresh = evaluate_model(model, index)["rows"]["QKS"]["official"]["metrics"]["zsl"]
    assert one["rows"]["QKS"]["official"]["metrics"]["zsl"] == pytest.approx(fresh, abs=0.03)


def test_baselines_are_those_of_evaluation(pocket):
    model = load_model("pocket", device="cpu")
    index = open_split(pocket, "test")
    tokens = torch.cat(list(token_batches(model.vlp, index, 16)))
    scorers = make_scorers(model, index.label_names, True)
    pooled = model.pool.embed(model.vlp, index.label_names)
    torch.testing.assert_close(
        scorers["VLP zero-shot, prompt pool"](tokens), zero_shot_scores(model.vlp, tokens, pooled)
    )
    torch.testing.assert_close(scorers["VLP best patch"](tokens), best_patch_scores(model.vlp, tokens, pooled))
    assert list(make_scorers(model, index.label_names)) == ["QKS"]


def test_few_images_at_once_do_not_matter(pocket, monkeypatch):
    model = load_model("pocket", device="cpu")
    index = open_split(pocket, "test")
    scorer = make_scorers(model, index.label_names, True)["VLP best patch"]
    tokens = next(token_batches(model.vlp, index, 16))
    whole = scorer(tokens)
    monkeypatch.setattr("qks.evaluate.baselines.MAX_PATCH_SCORES", 1)
    torch.testing.assert_close(scorer(tokens), whole)


def test_precision_is_told(pocket, tmp_path, capsys):
    assert evaluate("pocket", pocket, "--vlp-precision", "bf16", "--device", "cpu", "--json", tmp_path / "r.json") == 0
    assert load_report(tmp_path / "r.json")["vlp"]["precision"] == "bf16"


def test_nothing_is_overwritten_unasked(pocket, tmp_path, capsys, monkeypatch):
    (tmp_path / "r.json").write_text("mine")
    (tmp_path / "l.csv").write_text("mine too")
    monkeypatch.setattr(
        "qks.experiment.loading.load_model",
        lambda *_: pytest.fail("the file is looked at before the model is loaded"),
    )
    for option in ("--json", "--per-label"):
        assert evaluate("pocket", pocket, option, tmp_path / {"--json": "r.json", "--per-label": "l.csv"}[option]) == 2
        assert "exists already" in said(capsys)
    assert (tmp_path / "r.json").read_text() == "mine" and (tmp_path / "l.csv").read_text() == "mine too"
    monkeypatch.undo()
    assert evaluate("pocket", pocket, "--json", tmp_path / "r.json", "--per-label", tmp_path / "l.csv", "--force") == 0
    assert load_report(tmp_path / "r.json")["images"] == 40


@pytest.mark.parametrize(
    "words, expected",
    [
        (["pocket", "POCKET", "--protocol", "official", "mine"], "'mine' is not known"),
        (["pocket", "POCKET", "--topk", "0"], "topk"),
        (["pocket", "POCKET", "--topk", "60"], "60 labels per image"),
        (["pocket", "POCKET", "--bootstrap", "-5"], "resamples is -5"),
        (["pocket", "POCKET", "--seed", "-1"], "seed is -1"),
        (["pocket", "POCKET", "--n-heads", "4"], "leave --n-heads out"),
        (["pocket", "POCKET", "--pretrained", "openai"], "pass --vlp"),
        (["pocket", "POCKET", "--vlp", "tiny-quickgelu", "--pretrained", "CLIP"], "another VLP"),
        (["pocket", "POCKET", "--json", "NEW/deep/r.json"], "is not a folder"),
        (["pocket", "POCKET", "--per-label", "NEW"], "is a folder"),
        (["pocket", "POCKET", "--cache", "CHECKPOINT"], "cannot be used as a token cache"),
        (["pocket", "POCKET", "--cache-dtype", "bf16"], "name its folder with --cache"),
        (["pocket", "NEW"], "has no index of its test split"),
        (["CHECKPOINT", "POCKET"], "pass --vlp and --pretrained"),
        (["CHECKPOINT", "POCKET", "--vlp", "pocket"], "use the VLP that the head was trained with"),
        (["CHECKPOINT", "POCKET", "--vlp", "tiny-quickgelu", "--pretrained", "CLIP", "--n-heads", "7"], "head"),
        (["CLIP", "POCKET", "--vlp", "tiny-quickgelu", "--pretrained", "CLIP"], "no QKS checkpoint"),
        (["NEW", "POCKET"], "is not a saved QKS"),
        (["nowhere.pth", "POCKET"], "nowhere.pth"),
    ],
)
def test_a_mistake_ends_in_one_sentence(words, expected, pocket, checkpoint, clip_file, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    for name, place in {"POCKET": pocket, "CHECKPOINT": checkpoint, "CLIP": clip_file, "NEW": tmp_path / "new"}.items():
        words = [word.replace(name, str(place)) for word in words]
    assert evaluate(*words) == 2
    assert expected in said(capsys)


def test_missing_images_are_told_before_the_first_batch(pocket, tmp_path, capsys, monkeypatch):
    root = tmp_path / "copy"
    shutil.copytree(pocket, root)
    index = index_nuswide(root, "test")
    index.path(7).unlink()
    index.path(9).write_bytes(b"")
    monkeypatch.setattr(
        "qks.experiment.evaluation.make_scorers",
        lambda *_: pytest.fail("images are looked for before anything is computed"),
    )
    assert evaluate("pocket", root) == 2
    message = said(capsys)
    assert "2 of 40 test images" in message and index.images[7] in message


def test_labels_that_cannot_be_measured_are_told_before_the_first_batch(open_images, tiny_vlp, monkeypatch):
    index = open_split(open_images, "test")
    monkeypatch.setattr("qks.experiment.evaluation.make_scorers", lambda *_: pytest.fail("too late"))
    model = QKS(tiny_vlp, QKSHead.from_official(WEIGHTS, 4))
    for options in ({}, {"streamed": False}):
        with pytest.raises(QKSError, match="topk asks for 4"):
            evaluate_model(model, index, ReportConfig(topk=(4,)), **options)
    full = replace(
        index,
        absent=-1,
        **sort_entries(*np.nonzero(index.labels() > 0), np.ones((index.labels() > 0).sum(), np.int8), len(index), 8),
    )
    with pytest.raises(QKSError, match="streamed=True"):
        evaluate_model(model, full, streamed=True)


def test_protocol_words():
    assert protocol_names(("official",)) == ("official",) and protocol_names(("all",)) == tuple(PROTOCOLS)
    assert protocol_names(("annotated", "official", "official")) == ("annotated", "official")
    with pytest.raises(QKSError, match="'' is not known"):
        ReportConfig(protocol_names(("official", "")))


def test_what_is_not_written_down_is_unknown(tmp_path):
    for content in (None, "", "[]", "{}", '{"train": {}}', '{"train": 3}'):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        assert training_facts(tmp_path / "model") == {"selection": "unknown", "seed": "unknown"}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "head.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text('{"train": {"selection": "official", "seed": 2}}')
    assert training_facts(tmp_path / "model") == {"selection": "official", "seed": 2}


def test_a_matrix_takes_batches_of_any_kind():
    matrix = ScoreMatrix(3, 2)
    matrix.update(torch.ones(1, 2, dtype=torch.bfloat16))
    matrix.update(np.full((2, 2), 3.0))
    assert matrix.scores.tolist() == [[1, 1], [3, 3], [3, 3]] and matrix.done == 3


@pytest.mark.parametrize(
    "words", [["--json", "r", "--per-label", "r"], ["--json", "r", "--per-label", "./r", "--force"]], ids=str
)
def test_two_results_do_not_go_into_one_file(run, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "qks.experiment.evaluation.evaluate_model", lambda *args, **kwargs: pytest.fail("began to compute")
    )
    assert evaluate(run / "model", run / "pocket-wide", *words, "--device", "cpu") == 2
    assert said(capsys) == "qks: --json and --per-label both name r: give each a file of its own\n"


def test_a_folder_that_may_not_be_written_is_told_first(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "qks.experiment.evaluation.evaluate_model", lambda *args, **kwargs: pytest.fail("began to compute")
    )
    monkeypatch.setattr("qks.evaluate.tables.os.access", lambda path, mode: Path(path) != tmp_path)
    assert evaluate(run / "model", run / "pocket-wide", "--json", tmp_path / "r.json", "--device", "cpu") == 2
    assert said(capsys) == (
        f"qks: {tmp_path / 'r.json'} cannot be written because the folder {tmp_path} is read-only: "
        "change its permissions, or name another file\n"
    )


def test_results_are_saved_before_they_are_printed(run, tmp_path, monkeypatch):
    def broken(*args):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("qks.commands.evaluate.print_report", broken)
    evaluate(
        run / "model",
        run / "pocket-wide",
        "--json",
        tmp_path / "r.json",
        "--per-label",
        tmp_path / "l.csv",
        "--device",
        "cpu",
    )
    assert load_report(tmp_path / "r.json")["rows"] and (tmp_path / "l.csv").stat().st_size


def test_what_cannot_be_saved_is_printed(run, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device", "r.json")

    monkeypatch.setattr("qks.evaluate.tables.save_report", full)
    assert evaluate(run / "model", run / "pocket-wide", "--json", tmp_path / "r.json", "--device", "cpu") == 2
    told = capsys.readouterr()
    assert "| QKS" in told.out and "r.json cannot be used (No space left on device)" in told.err


def test_a_checkpoint_of_the_authors_tags_pictures(checkpoint, clip_file, open_images, capsys):
    picture = next((open_images / "test").glob("*.jpg"))
    assert (
        main(
            [
                "tag",
                str(picture),
                "--labels",
                "cat,dog",
                "--model",
                str(checkpoint),
                "--vlp",
                "tiny-quickgelu",
                "--pretrained",
                str(clip_file),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert "cat" in (told := capsys.readouterr().out) and "dog" in told and str(picture) in told


def test_a_models_own_vlp_from_another_place(tmp_path, monkeypatch):
    "Its weight file has moved: the name and the kind of activation are read from the model."
    asked = []

    def load(name, pretrained, *args, quick_gelu):
        asked.append((name, pretrained, quick_gelu)) or (_ for _ in ()).throw(QKSError("enough"))

    monkeypatch.setattr("qks.experiment.loading.load_vlp", load)
    for quick_gelu in (True, None, False):
        (tmp_path / "config.json").write_text(
            json.dumps({"vlp": {"name": "ViT-B-16", "pretrained": "old.pt", "quick_gelu": quick_gelu}})
        )
        with pytest.raises(QKSError, match="enough"):
            load_model(tmp_path, VLPSource(pretrained="moved.pt"))
    assert asked == [("ViT-B-16", "moved.pt", None)] * 2 + [("ViT-B-16", "moved.pt", False)]


def test_facts_come_from_the_models_own_run(tmp_path, monkeypatch):
    "Not from a run that happens to be the current folder; a model named from inside its run is that run's."
    (tmp_path / "config.json").write_text('{"train": {"selection": "official", "seed": 2}}')
    (tmp_path / "authors.pth").write_bytes(b"")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "head.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for model in ("pocket", "authors.pth"):
        assert training_facts(model) == {"selection": "unknown", "seed": "unknown"}
    monkeypatch.chdir("model")
    assert training_facts(".") == {"selection": "official", "seed": 2}


def test_a_precision_that_is_none():
    with pytest.raises(QKSError, match="precision is 'bf8': give one of fp32, bf16, fp16"):
        load_model("pocket", VLPSource(precision="bf8"))


def test_scores_of_all_images_or_none():
    matrix = ScoreMatrix(3, 2)
    matrix.update(torch.ones(2, 2))
    with pytest.raises(QKSError, match="scores of 2 of 3 images came"):
        matrix.result()
    matrix.update(torch.zeros(1, 2))
    assert matrix.result().tolist() == [[1, 1], [1, 1], [0, 0]]
    with pytest.raises(QKSError, match="scores of more than 3 images came"):
        matrix.update(torch.ones(1, 2))


@pytest.mark.parametrize("check", ["time", "size", "content"])
def test_the_cache_check_is_an_option(pocket, tmp_path, capsys, check):
    words = ["pocket", pocket, "--cache", tmp_path / "tokens", "--cache-check", check, "--device", "cpu"]
    assert evaluate(*words) == 0
    first = capsys.readouterr().out
    assert evaluate(*words) == 0 and capsys.readouterr().out == first
