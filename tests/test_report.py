"""Reports: the authors' numbers, the contents of a results file, tables that name their protocol, comparisons."""

import csv
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tyro
from sklearn.metrics import average_precision_score

from qks.core import QKSError
from qks.evaluate import metrics
from qks.evaluate.bootstrap import bootstrap_intervals
from qks.evaluate.metrics import evaluate_scores
from qks.evaluate.protocols import PROTOCOLS, Protocol
from qks.evaluate.report import (
    ReportConfig,
    build_report,
    build_report_from_streams,
    code_version,
    open_streams,
    pool_facts,
)
from qks.evaluate.tables import (
    compare_reports,
    draw_table,
    format_percent,
    load_report,
    published_report,
    report_breakdown,
    report_differences,
    report_notes,
    report_table,
    results_table,
    save_labels,
    save_report,
    summarise,
)
from qks.model.prompts import PromptPool

DATA = Path(__file__).parent / "data"
NAMES = ["cat", "dog", "bird", "harbour", "sky", "cow", "birds", "harbor", "sea", "lake"]
ALL = ReportConfig(tuple(PROTOCOLS), (1, 3))


def sample(images=150, seed=0, ternary=True):
    generator = np.random.default_rng(seed)
    shares = [0.5, 0.2, 0.3] if ternary else [0.7, 0, 0.3]  # of -1, 0, +1
    labels = generator.choice([-1, 0, 1], size=(images, 10), p=shares).astype(np.int8)
    labels[::9, 5:] = np.minimum(labels[::9, 5:], -1)  # images without an unseen label
    labels[:, 9] = np.minimum(labels[:, 9], 0)  # a label that nobody report
    labels[:, 4] = 0 if ternary else labels[:, 4]  # a label that nobody annotated
    return (0.7 * labels + generator.normal(size=labels.shape)).round(1).astype(np.float32), labels


def updated_streams(scores, labels, config):
    image, column = np.nonzero(labels)
    sparse = SimpleNamespace(
        offsets=np.searchsorted(image, np.arange(len(labels) + 1)), columns=column, values=labels[image, column]
    )
    streams = open_streams(sparse, 5, config, NAMES)
    for stream in streams.values():
        for start in range(0, len(scores), 40):
            stream.update(scores[start : start + 40])
    return streams


def streamed(scores, labels, config, *options):
    return build_report_from_streams({"QKS": updated_streams(scores, labels, config)}, config, NAMES, *options)


@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_the_authors_numbers(name):
    golden = np.load(DATA / f"metrics_{name}.npz")
    topk = tuple(golden["topk"].tolist())
    report = build_report({"QKS": golden["scores"]}, golden["labels"], int(golden["n_seen"]), ReportConfig(topk=topk))
    metrics = report["rows"]["QKS"]["official"]["metrics"]
    for part in ("seen", "zsl", "gzsl"):
        assert set(metrics[part]) == {"mAP", *(f"{kind}@{k}" for kind in ("P", "R", "F1") for k in topk)}
        for metric, value in metrics[part].items():
            assert value == pytest.approx(float(golden[f"{part}/{metric}"]), abs=1e-6), (part, metric)


def test_every_protocol_has_its_own_numbers_and_lists():
    scores, labels = sample()
    report = build_report({"QKS": scores}, labels, 5, ALL, NAMES)
    for protocol, row in report["rows"]["QKS"].items():
        assert row["metrics"] == evaluate_scores(scores, labels, 5, (1, 3), protocol, NAMES)
    sizes = {name: facts["parts"]["zsl"] for name, facts in report["protocols"].items()}
    shown = (labels[:, 5:] > 0).any(axis=1)
    assert sizes["official"] == {"images": int(shown.sum()), "labels": 5, "labels_in_mean": 5}
    assert sizes["all-images"] == {"images": 150, "labels": 5, "labels_in_mean": 5}
    assert sizes["annotated"] == {"images": int(shown.sum()), "labels": 5, "labels_in_mean": 4}
    shown_without_twins = (labels[:, [5, 8, 9]] > 0).any(axis=1)
    assert sizes["leak-free"] == {"images": int(shown_without_twins.sum()), "labels": 3, "labels_in_mean": 3}
    assert report["protocols"]["official"]["parts"]["seen"]["labels"] == 4  # one was never annotated
    assert {name: facts["rule"] for name, facts in report["protocols"].items()} == {
        name: protocol.rule for name, protocol in PROTOCOLS.items()
    }
    assert report["twins"] == {"birds": ["bird"], "harbor": ["harbour"]}


def test_labels_one_by_one():
    scores, labels = sample()
    report = build_report({"QKS": scores}, labels, 5, ALL, NAMES, [f"/m/{i}" for i in range(10)])
    assert report["label_names"] == {f"/m/{i}": name for i, name in enumerate(NAMES)}
    assert report["positives"] == {f"/m/{i}": int((labels[:, i] > 0).sum()) for i in range(10)}
    for protocol, row in report["rows"]["QKS"].items():
        ap = row["ap_per_label"]
        zsl = [value for label, value in list(ap.items())[5:] if value is not None]
        assert np.mean(zsl) == pytest.approx(row["metrics"]["zsl"]["mAP"], abs=1e-12)
        assert ap["/m/4"] is None  # not annotated
        assert (ap["/m/9"] is None) == (protocol in ("annotated", "own-data", "partial-labels"))
        assert (ap["/m/6"] is None) == (protocol == "leak-free")
    rows = (labels[:, 5:] > 0).any(axis=1) & (labels[:, 8] != 0)
    expected = average_precision_score(labels[rows, 8] > 0, scores[rows, 8])
    assert report["rows"]["QKS"]["official"]["ap_per_label"]["/m/8"] == pytest.approx(expected, abs=1e-6)


def test_streams_report_what_matrices_report():
    scores, labels = sample()
    config = ReportConfig(tuple(PROTOCOLS), (1, 3), resamples=20, seed=4)
    assert streamed(scores, labels, config) == build_report({"QKS": scores}, labels, 5, config, NAMES)


def test_intervals_only_where_asked_for():
    scores, labels = sample()
    assert (
        build_report({"QKS": scores}, labels, 5, ReportConfig(topk=(1, 3)))["rows"]["QKS"]["official"]["intervals"]
        is None
    )
    report = build_report({"QKS": scores}, labels, 5, ReportConfig(topk=(1, 3), resamples=30, seed=2))
    assert report["rows"]["QKS"]["official"]["intervals"] == bootstrap_intervals(
        scores, labels, 5, (1, 3), "official", 30, 2
    )
    assert report["bootstrap"] == {"resamples": 30, "seed": 2, "level": 0.95}


def test_names_that_repeat_and_names_that_are_not_known():
    scores, labels = sample()
    twice = ["bat", *NAMES[1:5], "bat", *NAMES[6:]]
    report = build_report({"QKS": scores}, labels, 5, ReportConfig(topk=(1,)), twice)
    assert list(report["label_names"]) == [str(i) for i in range(10)]
    assert report["label_names"]["5"] == "bat"
    assert report["twins"]["5"] == ["bat"]
    assert "0" not in report["twins"]  # the seen "bat"
    assert len(report["rows"]["QKS"]["official"]["ap_per_label"]) == 10
    assert list(build_report({"QKS": scores}, labels, 5, ReportConfig(topk=(1,)))["label_names"].values())[:2] == [
        "0",
        "1",
    ]
    for ids in (["a"] * 10, ["a", "b"]):
        with pytest.raises(QKSError, match="distinct ids"):
            build_report({"QKS": scores}, labels, 5, ReportConfig(topk=(1,)), NAMES, ids)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"protocols": "official"}, "give a tuple"),
        ({"protocols": ()}, "at least one name"),
        ({"protocols": ("mine",)}, "'mine' is not known"),
        ({"protocols": ("official", "official")}, "appears twice"),
        ({"topk": (0,)}, "topk"),
        ({"resamples": -1}, "resamples is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"resamples": 1.5}, "resamples is 1.5"),
    ],
)
def test_what_cannot_be_asked(options, words):
    with pytest.raises(QKSError, match=words) as caught:
        ReportConfig(**options)
    assert "\n" not in str(caught.value)


def test_settings_are_a_command_line(capsys):
    words = ["--protocols", "official", "leak-free", "--topk", "10", "20", "--resamples", "5"]
    assert tyro.cli(ReportConfig, args=words) == ReportConfig(("official", "leak-free"), (10, 20), resamples=5)
    with pytest.raises(SystemExit):
        tyro.cli(ReportConfig, args=["--help"])
    assert "bootstrap resamples for 95 % intervals" in capsys.readouterr().out


def test_a_report_is_json(tmp_path):
    scores, labels = sample()
    report = build_report({"QKS": scores}, labels, 5, ALL, NAMES)
    save_report(tmp_path / "report.json", report)
    assert "NaN" not in (tmp_path / "report.json").read_text()
    assert load_report(tmp_path / "report.json") == report
    with pytest.raises(QKSError, match="exists already"):
        save_report(tmp_path / "report.json", {})
    assert load_report(tmp_path / "report.json") == report
    (tmp_path / "results.json").write_text(json.dumps({"report": report, "rows": {}}))
    assert load_report(tmp_path / "results.json") == report


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": {}}', '{"report": 3}', "\udcff", None])
def test_files_that_hold_no_report(tmp_path, content):
    if content is not None:
        (tmp_path / "r.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(QKSError, match="r.json") as caught:
        load_report(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_no_line_without_its_protocol():
    scores, labels = sample()
    report = build_report(
        {"QKS": scores, "other": -scores}, labels, 5, ReportConfig(tuple(PROTOCOLS), (1, 3), resamples=10), NAMES
    )
    lines = report_table(report).splitlines()[2:]
    assert len(lines) == 2 * len(PROTOCOLS) * 3
    for line in lines:
        method, protocol, part = (cell.strip() for cell in line.split("|")[1:4])
        row = report["rows"][method][protocol]
        assert format_percent(row["metrics"][part]["mAP"], row["intervals"][part]["mAP"]) in line
    for line in report_breakdown(report, "QKS", "all-images").splitlines()[2:]:
        assert line.startswith("| all-images |")
    notes = "\n".join(report_notes(report))
    for words in ("do not compare", "birds (bird), harbor (harbour)", "2 of 5", *map(repr, PROTOCOLS)):
        assert words in notes
    official = "\n".join(report_notes(build_report({"QKS": scores}, labels, 5, ReportConfig(topk=(1,)), NAMES)))
    assert "do not compare" not in official
    assert "protocol 'official'" in official
    assert "2 of 5 unseen labels have a seen twin" in official


def test_the_breakdown_adds_up(monkeypatch):
    monkeypatch.setattr("qks.evaluate.breakdown.SCENE_LABELS", frozenset(["sky", "lake"]))
    scores, labels = sample()
    row = build_report({"QKS": scores}, labels, 5, ReportConfig(topk=(1,)), NAMES)["rows"]["QKS"]["official"]
    for split in ("frequency", "twin", "concept"):
        kinds = row["breakdown"]["zsl"][split].values()
        assert sum(kind["mAP"] * kind["labels"] for kind in kinds) / 5 == pytest.approx(row["metrics"]["zsl"]["mAP"])


def test_numbers_in_print():
    assert format_percent(0.5963, {"low": 0.589, "high": 0.6031}) == "59.6 [58.9, 60.3]"
    assert format_percent(0.5, {"low": None, "high": None}) == "50.0 [–, –]" and format_percent(None) == "–"
    assert draw_table([("a", "bcd"), ("ef", "1")], 1).splitlines() == ["| a  | bcd |", "| -- | --: |", "| ef |   1 |"]


def test_means_over_seeds():
    one = summarise([{"zsl": {"mAP": 0.2}}])
    two = summarise([{"zsl": {"mAP": 0.2}}, {"zsl": {"mAP": 0.4}}])
    assert one == {"zsl": {"mAP": {"mean": 0.2, "std": 0.0}}}
    assert two["zsl"]["mAP"] == pytest.approx({"mean": 0.3, "std": 0.02**0.5})
    lines = results_table({"one": one, "two": two}, topk=()).splitlines()
    assert [line.split("|")[2].strip() for line in lines] == ["ZSL mAP", "----------:", "20.0", "30.0 ± 14.1"]


def test_side_by_side():
    scores, labels = sample()
    full = build_report({"QKS": scores}, labels, 5, ALL, NAMES)
    assert report_differences({"a": full, "b": full}) == []
    assert "are the same" in compare_reports({"a": full, "b": full})
    part = build_report({"QKS": scores[:100]}, labels[:100], 5, ReportConfig(("all-images",), (2, 3)), NAMES)
    text = compare_reports({"full": full, "part": part})
    for words in (
        f"Protocols differ (full: {', '.join(PROTOCOLS)}; part: all-images)",
        "List sizes differ under all-images, part zsl (full: 150 images, 5 labels; part: 100 images, 5 labels)",
        "topk differs (full: [1, 3]; part: [2, 3])",
    ):
        assert words in text
    cells = {
        tuple(cell.strip() for cell in line.split("|")[1:4]): [cell.strip() for cell in line.split("|")[4:6]]
        for line in text.splitlines()
        if line.startswith("|")
    }
    assert cells["official", "zsl", "mAP"] == [
        format_percent(full["rows"]["QKS"]["official"]["metrics"]["zsl"]["mAP"]),
        "–",
    ]
    assert cells["all-images", "zsl", "F1@3"] == [
        format_percent(one["rows"]["QKS"]["all-images"]["metrics"]["zsl"]["F1@3"]) for one in (full, part)
    ]
    assert cells["all-images", "seen", "F1@2"][0] == "–"
    assert not any(metric.startswith(("P@", "R@")) for _, _, metric in cells)
    parts = [part for protocol, part, _ in cells if protocol == "all-images"]
    assert parts == sorted(parts, key=("seen", "zsl", "gzsl").index)  # one part after the other
    renamed = build_report({"QKS": scores}, labels, 5, ALL, [*NAMES[:-1], "pond"])
    assert any("Labels differ" in sentence for sentence in report_differences({"a": full, "b": renamed}))


def test_one_name_for_two_rules():
    scores, labels = sample()
    own_protocol = Protocol("official", "my own rules", keep_all_images=True)
    mine = build_report({"QKS": scores}, labels, 5, ReportConfig((own_protocol,), (1, 3)), NAMES)
    theirs = build_report({"QKS": scores}, labels, 5, ReportConfig(topk=(1, 3)), NAMES)
    assert any("more than one rule" in sentence for sentence in report_differences({"mine": mine, "theirs": theirs}))


def test_published_numbers():
    scores, labels = sample()
    report = build_report({"QKS": scores}, labels, 5, ReportConfig(topk=(1, 3)), NAMES)
    text = compare_reports({"paper": published_report({"zsl": {"mAP": 0.435}}), "ours": report})
    assert "The lists behind 'paper' are not known" in text and "43.5" in text and "topk differs" not in text
    with pytest.raises(QKSError, match="not known"):
        published_report({}, "theirs")


def test_a_table_of_labels(tmp_path):
    scores, labels = sample()
    config = ReportConfig(("official", "leak-free"), (1,))
    report = build_report({"QKS": scores, "a, b": -scores}, labels, 5, config, ["1,000 cats", *NAMES[1:]])
    save_labels(tmp_path / "labels.csv", report)
    with open(tmp_path / "labels.csv", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == [
        "id",
        "name",
        "part",
        "positives",
        "twins among seen",
        "AP QKS (official)",
        "AP QKS (leak-free)",
        "AP a, b (official)",
        "AP a, b (leak-free)",
    ]
    assert [row[2] for row in rows] == ["seen"] * 5 + ["zsl"] * 5
    assert rows[0][:2] == ["1,000 cats"] * 2
    birds = rows[6]
    assert birds[4] == "bird"
    assert float(birds[5]) == report["rows"]["QKS"]["official"]["ap_per_label"]["birds"]
    assert birds[6] == ""  # leak-free
    with pytest.raises(QKSError, match="exists already"):
        save_labels(tmp_path / "labels.csv", report)


def test_versions_and_prompts(monkeypatch):
    assert len(code_version()["qks"]) >= 5
    monkeypatch.setenv("PATH", "")  # no git
    assert code_version()["commit"] is None
    one = pool_facts(PromptPool(["a {}.", "the {}."]))
    other = pool_facts(PromptPool(["the {}.", "a {}."]))
    assert one["templates"] == 2
    assert one["digest"] != other["digest"]
    assert one == pool_facts(PromptPool(["a {}.", "the {}."]))


def test_numbers_of_a_report_may_be_0_and_not_below():
    for name in ("seed", "resamples"):
        with pytest.raises(QKSError, match=f"{name} is -1: give a whole number, 0 or more"):
            ReportConfig(**{name: -1})
    assert ReportConfig(seed=0, resamples=0).seed == 0
    with pytest.raises(QKSError, match="there are no scores to report on"):
        build_report({}, np.ones((2, 2)), 1)


@pytest.mark.parametrize("way", ["scores", "stream"])
def test_a_report_sorts_every_score_once(monkeypatch, way):
    "Metrics, AP of each label and intervals all need the order of a label's scores."
    sorts = []
    sort = metrics.sorted_annotated

    def counted(scores, labels):
        sorts.append(len(scores))
        return sort(scores, labels)

    monkeypatch.setattr(metrics, "sorted_annotated", counted)
    scores, labels = sample()
    config = ReportConfig(topk=(3,), resamples=5)
    if way == "scores":
        report = build_report({"QKS": scores}, labels, 5, config, NAMES)
        measure_alone = partial(evaluate_scores, scores, labels, 5, (3,))
    else:
        report = streamed(scores, labels, config)
        measure_alone = updated_streams(scores, labels, config)["official"].result
    assert report["rows"]["QKS"]["official"]["intervals"] is not None
    n_sorted = sum(sorts)
    sorts.clear()
    measure_alone()
    assert n_sorted == sum(sorts) > 0
