"""What the tests of `qks data import` share: small sources, and an import followed to the prepared splits."""

import json
from pathlib import Path

from PIL import Image

from qks.commands.main import main
from qks.data.splits import open_splits


def write(root, name, content):
    "Write a file of text, bytes, or JSON."
    path = Path(root) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, (str, bytes)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_pictures(root, *names):
    "Write small pictures, no two the same."
    for number, name in enumerate(names):
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = (37 * number % 256, 91 * number % 256, len(name))
        Image.new("RGB", (24, 16), colour).save(path)


def run(*words):
    "The exit status of `qks data import`."
    return main(["data", "import", *map(str, words)])


def labels_of(root, split):
    "Picture -> sorted labels that are present, of a prepared folder; its file must be there."
    splits = open_splits(root)
    if split not in splits:
        return {}
    index = splits[split]
    matrix = index.labels()
    found = {}
    for row, image in enumerate(index.images):
        assert (Path(root) / image).is_file(), image
        name = image.removeprefix("pictures/")
        found[name] = sorted(label for label, value in zip(index.label_ids, matrix[row]) if value == 1)
    return found


def import_and_prepare(source, root, *words, prepare=()):
    "Import, prepare as the import proposes, and return training and test labels by picture."
    assert run(source, root, *words) == 0
    assert main(["data", "folder", "prepare", str(root), *prepare]) == 0
    return labels_of(root, "train"), labels_of(root, "test")


def check_test_part(source, root, n, *words, prepare=()):
    "Draw a test from a source of n pictures: both parts have some, none has another's, all are there."
    train, test = import_and_prepare(source, root, "--test-part", "0.4", *words, prepare=prepare)
    assert 0 < len(test) < n and not set(train) & set(test) and len(train) + len(test) == n


def refused(capsys, *words):
    "The one sentence with which an import is refused."
    capsys.readouterr()
    status = run(*words)
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "" and captured.err.count("\n") == 1, captured
    return captured.err
