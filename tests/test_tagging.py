"""Which labels are the tags, against sorting all of them; which files are the pictures."""

import pytest
import torch
from PIL import Image

from qks.core import QKSError
from qks.model.tagger import find_pictures, rank_labels, read_labels, read_pictures, write_labels


def plain_ranking(labels, logits, token_index, top_k, threshold):
    "Every label sorted, then cut."
    order = logits.argsort(descending=True, stable=True)[:top_k].tolist()
    probabilities = logits.sigmoid()
    return [
        (labels[c], probabilities[c].item(), token_index[c].item())
        for c in order
        if threshold is None or probabilities[c] >= threshold
    ]


@pytest.mark.parametrize("top_k", [None, 1, 2, 7, 59, 60])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["distinct", "ties", "all equal", "sure"])
def test_ranking_equals_sorting_everything(top_k, threshold, kind):
    "Of equal labels the first comes first, also where top_k cuts between them."
    torch.manual_seed(0)
    logits = {
        "distinct": torch.randn(60),
        "ties": torch.randint(-2, 3, (60,)).float(),
        "all equal": torch.zeros(60),
        "sure": torch.randn(60) + 40,
    }[kind]
    labels = [f"label {c}" for c in range(60)]
    token_index = torch.randint(5, (60,))
    tags = rank_labels(labels, logits, token_index, top_k, threshold)
    expected = plain_ranking(labels, logits, token_index, top_k, threshold)
    assert [(tag.label, tag.token) for tag in tags] == [(label, token) for label, _, token in expected]
    assert [tag.probability for tag in tags] == pytest.approx([p for _, p, _ in expected], rel=1e-6)


@pytest.mark.parametrize(
    "text, labels",
    [
        ("cat, dog,", ["cat", "dog"]),
        ('"salt, pepper",cat', ["salt, pepper", "cat"]),
        ("cat | dog", ["cat", "dog"]),
        ("['cat', 'dog']", ["cat", "dog"]),
        ("", []),
        ("cat\ndog\n", ["cat", "dog"]),
        ("a, b\nc", ["a", "b", "c"]),
    ],
)
def test_labels_as_a_user_types_them(text, labels):
    assert read_labels(text) == labels


@pytest.mark.parametrize(
    "labels", [["cat", "dog"], ["salt, pepper", 'a "b"', "cat"], ["a|b", "[c]", "'n"], ["crème brûlée"]], ids=str
)
def test_labels_come_back(labels):
    assert read_labels(write_labels(labels)) == labels


def test_labels_that_cannot_be_read():
    with pytest.raises(QKSError, match="is too long"):
        read_labels("x" * 200_000)
    with pytest.raises(QKSError, match="label '' is empty in 'a,,b'"):
        read_labels("a,,b")


@pytest.fixture
def folder(tmp_path):
    for name in ("b.PNG", "a.jpg", "deep/c.webp", "deep/notes.txt", ".hidden.png", ".cache/d.png", "deep/._a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(tmp_path / name, "PNG")
    return tmp_path


def test_a_folder_is_searched_for_pictures(folder):
    Image.new("RGB", (4, 4)).save(folder / "film.mpg", "PNG")  # an ending that Pillow knows, of what it cannot show
    files = find_pictures([str(folder / "b.PNG"), folder, f"{folder}/deep/../b.PNG"])
    expected = [str(folder / name) for name in ("b.PNG", "a.jpg", "deep/c.webp")]
    assert files.pictures == expected  # each once, in the order in which they are named
    assert files.others == [str(folder / "deep/notes.txt"), str(folder / "film.mpg")]


def test_a_file_that_is_named_counts_whatever_its_ending(folder):
    assert find_pictures([folder / "deep/notes.txt", folder / ".hidden.png"]) == (
        [str(folder / "deep/notes.txt"), str(folder / ".hidden.png")],
        [],
    )


def test_where_there_is_no_picture(folder):
    with pytest.raises(QKSError, match="gone.png does not exist"):
        find_pictures([folder / "a.jpg", folder / "gone.png"])
    (folder / "empty").mkdir()
    with pytest.raises(QKSError, match="no picture is in .*empty: name picture files, or folders that hold some"):
        find_pictures([folder / "empty"])


def test_unreadable_pictures_are_reported(folder):
    (folder / "a.jpg").write_text("no picture")
    unreadable = []

    def report(image, error):
        unreadable.append((image, error))

    read = list(read_pictures([folder / "a.jpg", folder / "b.PNG"], report))
    assert [image for image, _ in read] == [folder / "b.PNG"] and read[0][1].size == (4, 4)
    assert [image for image, _ in unreadable] == [folder / "a.jpg"] and isinstance(unreadable[0][1], QKSError)
    with pytest.raises(QKSError, match="a.jpg is not an image"):
        next(read_pictures([folder / "a.jpg"]))
