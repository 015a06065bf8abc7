"""The explorer's widget, with its controls set by code."""

import io
from datetime import datetime, timezone

import numpy as np
import pytest
from PIL import Image

from qks.core import QKSError
from qks.explore.explorer import Explorer, plot_image_tags, plot_token_blocks, read_uploads
from qks.model.tagger import QKS

PICTURES = {
    name: Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8))
    for seed, name in enumerate(("one", "two"))
}
LABELS = ["cat", "dog", "bus"]


def brought(name, content):  # as ipywidgets hands it over
    return {
        "name": name,
        "type": "image/png",
        "size": len(content),
        "content": memoryview(content),
        "last_modified": datetime.now(timezone.utc),
    }


def png(name="mine.png"):
    PICTURES["one"].save(file := io.BytesIO(), "PNG")
    return brought(name, file.getvalue())


@pytest.fixture(scope="module")
def model():
    return QKS.from_pretrained("pocket", device="cpu")


@pytest.fixture
def explorer(model):
    return Explorer(model, PICTURES, LABELS, top_k=2, unseen=["dog"])


def figures(explorer):
    return explorer.tags_figure.value, explorer.token_figure.value


def test_it_begins_with_an_answer(explorer, model):
    assert [tag[:1] + tag[2:] for tag in explorer.tags] == [
        tag[:1] + tag[2:] for tag in model.tag(PICTURES["one"], LABELS)[0]
    ]
    assert explorer.token.value == explorer.tags[0][2] and explorer.token.max == model.head.config.n_queries - 1
    assert all(Image.open(io.BytesIO(figure)).width > 300 for figure in figures(explorer)) and explorer.message.value == ""


def test_every_control_draws_what_depends_on_it(explorer):
    answer, look = figures(explorer)
    explorer.token.value = (explorer.token.value + 1) % (explorer.token.max + 1)
    assert figures(explorer)[0] == answer and figures(explorer)[1] != look
    explorer.labels.value = "tree , a red car"
    assert {label for label, _, _ in explorer.tags} == {"tree", "a red car"} and figures(explorer)[0] != answer
    answer = figures(explorer)[0]
    explorer.picture.value = "two"
    assert figures(explorer)[0] != answer


@pytest.mark.parametrize(
    "words, told",
    [("cat, cat", "twice"), ("", "label list is empty"), ("cat,,dog", "blank"), ("<i>,<i>", "&lt;i&gt;")],
)
def test_a_mistake_is_told_and_the_figures_stay(explorer, words, told):
    before = figures(explorer)
    explorer.labels.value = words
    assert told in explorer.message.value and figures(explorer) == before
    explorer.labels.value = "cat"
    assert explorer.message.value == "" and figures(explorer) != before


def test_pictures_of_ones_own(explorer):
    explorer.upload.value = (png(), png("folder/other.png"))
    assert (
        list(explorer.picture.options) == ["one", "two", "mine.png", "other.png"]
        and explorer.picture.value == "other.png"
    )
    before = figures(explorer)
    explorer.upload.value = (brought("text.png", b"no picture"),)
    assert "image text.png is not an image" in explorer.message.value and figures(explorer) == before
    assert read_uploads([]) == {}


def test_the_token_shown_is_of_the_picture_shown(explorer):
    "With a mistake in the labels another picture is chosen: the figures stay with the old one, and so do the token's looks."
    explorer.token.value = 0
    looks = {}
    for token in (0, 1):
        explorer.token.value = token
        looks[token] = explorer.token_figure.value
    explorer.labels.value = "cat, cat"
    explorer.picture.value = "two"
    explorer.token.value = 0
    assert explorer.token_figure.value == looks[0]


def test_the_same_name_again_is_another_picture(explorer):
    explorer.upload.value = (png(),)
    before = figures(explorer)
    PICTURES["two"].save(file := io.BytesIO(), "PNG")
    explorer.upload.value = (brought("mine.png", file.getvalue()),)
    assert figures(explorer) != before


@pytest.mark.parametrize(
    "pictures, labels, told",
    [
        ({}, LABELS, "no picture to begin with"),
        (PICTURES, ["cat", "cat"], "twice"),
        (PICTURES, [], "label list is empty"),
    ],
)
def test_nothing_to_begin_with(model, pictures, labels, told):
    with pytest.raises(QKSError, match=told):
        Explorer(model, pictures, labels)


def test_labels_with_a_comma(model):
    assert {label for label, _, _ in Explorer(model, PICTURES, ["salt, pepper", "dog"]).tags} == {"salt, pepper", "dog"}


def test_figures_refuse_what_does_not_fit(model):
    attention = model.predict([PICTURES["one"]], model.pool.embed(model.vlp, LABELS), return_attention=True).attention
    plot_image_tags(PICTURES["one"], [], attention, model.vlp.grid).canvas.draw()
    assert len(plot_token_blocks(PICTURES["one"], attention, 0, model.vlp.grid, ["$5", "$6"]).axes) == 1 + len(attention)
    with pytest.raises(QKSError, match="token 99"):
        plot_token_blocks(PICTURES["one"], attention, 99, model.vlp.grid)


def test_a_label_that_is_too_long_is_told(explorer):
    before = figures(explorer)
    explorer.labels.value = "word " * 100
    assert "shorten the label" in explorer.message.value and figures(explorer) == before
