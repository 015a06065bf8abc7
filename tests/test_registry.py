"""A data set is one entry of the registry: prepared, opened and checked without a change elsewhere."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from PIL import Image

from qks.core import QKSError
from qks.data import DATASETS, Dataset, Index, check_dataset, open_split, open_splits, prepare
from qks.data.files import locate_list, text_lines
from qks.data.index import index_pairs, source_digest, without_unseen
from qks.data.registry import detect_dataset, find_dataset
from qks.data.table import read_label_file


@dataclass(frozen=True)
class ToyOptions:
    "What can be chosen about the toy data set."

    unseen: str | None = None  # list of the unseen labels, one per line, relative to ROOT


def index_toy(root, splits, options) -> dict[str, Index]:
    "Index files such as toy-train.txt, each line an image and its label."
    unseen = read_label_file(locate_list(root, options.unseen)).labels if options.unseen else []
    rows = {split: [line.split() for line in text_lines(Path(root) / f"toy-{split}.txt")] for split in splits}
    seen = sorted({label for _, label in sum(rows.values(), [])} - set(unseen))
    indexes = {}
    for split in splits:
        images = [image for image, _ in rows[split]]
        pairs = [(number, label, 1) for number, (_, label) in enumerate(rows[split])]
        sources = (f"toy-{split}.txt",)
        digest = source_digest(root, sources)
        index = index_pairs(root, images, pairs, seen, unseen, image_folder="", sources=sources, digest=digest)
        indexes[split] = without_unseen(index) if split == "train" else index
    return indexes


TOY = Dataset("toy", "A toy data set", ("toy-*.txt",), ToyOptions, index_toy)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("QKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(DATASETS, "toy", TOY)
    root = tmp_path / "toy"
    root.mkdir()
    (root / "toy-train.txt").write_text("1.png sea\n2.png dog\n3.png sand\n")
    (root / "toy-test.txt").write_text("4.png sea\n5.png dog\n")
    (root / "unseen.txt").write_text("dog\n")
    for number in range(1, 6):
        Image.new("RGB", (8, 8)).save(root / f"{number}.png")
    return root


def test_a_registered_data_set_is_prepared_and_opened(root):
    assert detect_dataset(root) is TOY
    with pytest.raises(QKSError, match="no index of its train split: run `qks data toy prepare .*` first$"):
        open_split(root, "train")
    assert "1 unseen" in str(prepare(root, "toy", unseen="unseen.txt"))
    splits = open_splits(root)
    assert splits["train"].images == ("1.png", "3.png")
    assert splits["train"].label_ids == ("sand", "sea")
    assert splits["test"].label_ids == ("sand", "sea", "dog")
    assert splits["test"].labels().tolist() == [[-1, 1, -1], [-1, -1, 1]]


def test_a_registered_data_set_goes_stale(root):
    prepare(root, "toy")
    (root / "toy-test.txt").write_text("4.png sea\n")
    with pytest.raises(QKSError, match="is stale: .* build it again .`qks data toy prepare"):
        open_split(root, "test")


def test_a_registered_data_set_is_checked(root):
    prepare(root, "toy", unseen="unseen.txt")
    assert check_dataset(root, "toy", decode=True, workers=1).ok
    (root / "4.png").write_bytes(b"no image")
    report = check_dataset(root, "toy", decode=True, workers=1)
    assert len(report.problems) == 1 and "1 of 2 images" in report.problems[0] and "4.png" in report.problems[0]


def test_options_are_checked(root):
    with pytest.raises(QKSError, match="A toy data set has no option 'seen': expected unseen"):
        prepare(root, "toy", seen="seen.txt")
    with pytest.raises(QKSError, match="unseen is 3: give text or None"):
        prepare(root, "toy", unseen=3)
    with pytest.raises(QKSError, match="NUS-WIDE has no option 'unseen': there are none"):
        check_dataset(root, "nuswide", unseen="unseen.txt")
    with pytest.raises(QKSError, match="min_bytes is 0"):
        check_dataset(root, "toy", min_bytes=0)
    with pytest.raises(QKSError, match="data set is 'other': expected nuswide, .*, toy"):
        find_dataset("other")


@pytest.mark.parametrize("entry", DATASETS.values(), ids=DATASETS.keys())
def test_entries_are_complete(entry):
    "What the command line needs of each: plain types, a default for every option, and options that cannot change."
    assert entry is DATASETS[entry.name] and entry.title and entry.marks
    assert is_dataclass(entry.options) and entry.options.__doc__
    options = entry.make_options()
    for field in fields(options):
        assert field.name in get_type_hints(entry.options)
        with pytest.raises(FrozenInstanceError):
            setattr(options, field.name, None)


def test_the_default_check_needs_no_files(tmp_path):
    report = check_dataset(tmp_path / "nowhere", "folder")
    assert not report.ok and "is no folder" in report.problems[0]


def test_the_registry_does_not_load_torch():
    code = "import sys, qks.data.registry, qks.data.splits; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
