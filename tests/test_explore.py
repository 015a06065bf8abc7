"""The explorer's widget, with its controls set by code."""

import io
from datetime import datetime, timezone

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image
from repository import NBS, cells, source

from qks.core import QKSError
from qks.explore.explorer import Explorer, plot_image_tags, plot_token_blocks, read_uploads
from qks.model.tagger import QKS

PICTURES = {
    name: Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8))
    for seed, name in enumerate(("one", "two"))
}
LABELS = ["cat", "dog", "bus"]


def uploaded(name, content):  # as ipywidgets hands it over
    return {
        "name": name,
        "type": "image/png",
        "size": len(content),
        "content": memoryview(content),
        "last_modified": datetime.now(timezone.utc),
    }


def png(name="mine.png"):
    file = io.BytesIO()
    PICTURES["one"].save(file, "PNG")
    return uploaded(name, file.getvalue())


@pytest.fixture(scope="module")
def model():
    return QKS.from_pretrained("pocket", device="cpu")


@pytest.fixture
def explorer(model):
    return Explorer(model, PICTURES, LABELS, top_k=2, unseen=["dog"])


def figures(explorer):
    return explorer.tags_figure.value, explorer.token_figure.value


def test_it_begins_with_tags_and_figures(explorer, model):
    expected = model.tag(PICTURES["one"], LABELS, threshold=0)[0]
    assert [(label, token) for label, _, token in explorer.tags] == [(label, token) for label, _, token in expected]
    assert explorer.token.value == explorer.tags[0][2]
    assert explorer.token.max == model.head.config.n_queries - 1
    assert all(Image.open(io.BytesIO(figure)).width > 300 for figure in figures(explorer))
    assert explorer.message.value == ""


def test_after_run_all_the_notebook_shows_a_result():
    "The widget that a reader gets is not the one in which the notebook makes mistakes."
    namespace = {"__name__": "notebook"}
    notebook = cells(NBS / "explore" / "02_explorer.ipynb")
    sources = [source(cell) for cell in notebook if cell["cell_type"] == "code"]
    for text in sources[:-1]:
        exec(text, namespace)
    plt.close("all")
    _, _, message, tags_figure, _, token_figure = eval(sources[-1], namespace).children
    assert message.value == ""
    assert all(Image.open(io.BytesIO(figure.value)).width > 300 for figure in (tags_figure, token_figure))


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
    "words, message",
    [("cat, cat", "appears twice"), ("", "label list is empty"), ("cat,,dog", "is empty"), ("<i>,<i>", "&lt;i&gt;")],
)
def test_a_mistake_shows_a_message_and_the_figures_stay(explorer, words, message):
    before = figures(explorer)
    explorer.labels.value = words
    assert message in explorer.message.value and figures(explorer) == before
    explorer.labels.value = "cat"
    assert explorer.message.value == "" and figures(explorer) != before


def test_uploaded_pictures(explorer):
    explorer.upload.value = (png(), png("folder/other.png"))
    assert list(explorer.picture.options) == ["one", "two", "mine.png", "other.png"]
    assert explorer.picture.value == "other.png"
    before = figures(explorer)
    explorer.upload.value = (uploaded("text.png", b"no picture"),)
    assert "image text.png is not an image" in explorer.message.value and figures(explorer) == before
    assert read_uploads([]) == {}


def test_the_token_shown_is_of_the_picture_shown(explorer):
    "With a mistake in the labels another picture is chosen: both figures stay with the old one."
    explorer.token.value = 0
    token_figures = {}
    for token in (0, 1):
        explorer.token.value = token
        token_figures[token] = explorer.token_figure.value
    explorer.labels.value = "cat, cat"
    explorer.picture.value = "two"
    explorer.token.value = 0
    assert explorer.token_figure.value == token_figures[0]


def test_the_same_name_again_is_another_picture(explorer):
    explorer.upload.value = (png(),)
    before = figures(explorer)
    file = io.BytesIO()
    PICTURES["two"].save(file, "PNG")
    explorer.upload.value = (uploaded("mine.png", file.getvalue()),)
    assert figures(explorer) != before


@pytest.mark.parametrize(
    "pictures, labels, message",
    [
        ({}, LABELS, "no picture to begin with"),
        (PICTURES, ["cat", "cat"], "twice"),
        (PICTURES, [], "label list is empty"),
    ],
)
def test_bad_pictures_or_labels_are_refused(model, pictures, labels, message):
    with pytest.raises(QKSError, match=message):
        Explorer(model, pictures, labels)


def test_labels_with_a_comma(model):
    assert {label for label, _, _ in Explorer(model, PICTURES, ["salt, pepper", "dog"]).tags} == {"salt, pepper", "dog"}


def test_figures_refuse_what_does_not_fit(model):
    attention = model.predict([PICTURES["one"]], model.pool.embed(model.vlp, LABELS), return_attention=True).attention
    plot_image_tags(PICTURES["one"], [], attention, model.vlp.grid).canvas.draw()
    figure = plot_token_blocks(PICTURES["one"], attention, 0, model.vlp.grid, ["$5", "$6"])
    assert len(figure.axes) == 1 + len(attention)
    with pytest.raises(QKSError, match="token 99"):
        plot_token_blocks(PICTURES["one"], attention, 99, model.vlp.grid)


def test_a_label_that_is_too_long_shows_a_message(explorer):
    before = figures(explorer)
    explorer.labels.value = "word " * 100
    assert "shorten the label" in explorer.message.value and figures(explorer) == before
