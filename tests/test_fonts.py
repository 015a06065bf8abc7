"""Labels of any script in figures: fallback fonts, and numbers for what no font has."""

import io
import logging
import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, pyplot as plt
from PIL import Image

from qks.explore import fonts
from qks.explore.fonts import choose_fonts, show_any_script
from qks.explore.plots import plot_label_ap, plot_tags


def make_font(path, name, characters):
    """A font in which each of some characters is a black square."""
    glyphs = [".notdef", *(f"g{number}" for number in range(len(characters)))]
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(character): glyph for character, glyph in zip(characters, glyphs[1:])})
    builder.setupGlyf(dict.fromkeys(glyphs, square))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    font_manager.fontManager.addfont(path)


@pytest.fixture
def only_dejavu(monkeypatch):
    """The fonts that matplotlib brings, and none of this machine."""
    own = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    fonts._characters_of.cache_clear()


@pytest.fixture
def two_fonts(only_dejavu, tmp_path):
    make_font(tmp_path / "cats.ttf", "Cats Sans", "猫犬")
    make_font(tmp_path / "trees.ttf", "Trees Sans", "木猫犬")


def drawn(figure):
    """What matplotlib complains of while it draws, and the picture."""
    file = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(file, dpi=60)
    glyphs = [str(warning.message) for warning in caught if "Glyph" in str(warning.message)]
    return glyphs, np.asarray(Image.open(file).convert("L"))


def test_what_the_usual_font_has_needs_no_other(two_fonts):
    assert choose_fonts(["dog", "café", "собака", "σκύλος", "✓ x*", "a\u200db\n"]) == ([], set())


def test_as_few_fonts_as_possible(two_fonts):
    assert choose_fonts(["猫", "木 dog"]) == (["Trees Sans"], set())
    assert choose_fonts(["犬"]).families == ["Cats Sans"]  # of equally good ones the first by name
    assert choose_fonts(["猫", "水"]) == (["Cats Sans"], {"水"})


def test_figures_write_labels_with_a_fallback_font(two_fonts, caplog):
    caplog.set_level(logging.INFO, logger="qks.explore.fonts")
    figure = plot_label_ap([0.5, 0.25, 0.75], ["dog", "猫", "木"], 1)
    assert "figures write what matplotlib's font lacks with Trees Sans" in caplog.text
    glyphs, _ = drawn(figure)
    assert not glyphs
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert "猫" in labels and "木" in labels
    picture = np.zeros((32, 32, 3), np.uint8)
    tags = [[("猫", 0.5, 0), ("dog", 0.25, 1)]]
    glyphs, pixels = drawn(plot_tags([picture], [["猫", "犬"]], tags))
    assert not glyphs and (pixels < 60).any()


def test_what_no_font_has_is_spelled_out(only_dejavu, caplog):
    figure = plot_label_ap([0.5, 0.25, 0.75], ["dog", "猫 x", "一二三四五"], 1)
    glyphs, _ = drawn(figure)
    assert not glyphs  # no box is drawn
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert sorted(labels) == ["U+4E00 U+4E8C U+4E09…", "U+732B x"]
    assert "no installed font has 6 of the characters in this figure, such as 一 三 二 五 四 猫" in caplog.text
    caplog.clear()
    glyphs, _ = drawn(plot_tags([np.zeros((32, 32, 3), np.uint8)], [["猫"]], [[("猫", 0.5, 0)]]))
    assert not glyphs and len(caplog.messages) == 1


def test_a_figure_of_ones_own(only_dejavu):
    figure, axis = plt.subplots()
    plt.close(figure)
    axis.set_title("猫")
    axis.barh(["犬", "dog"], [1, 2])
    assert show_any_script(figure).missing == {"猫", "犬"}
    assert axis.get_title() == "U+732B"
    assert drawn(figure)[0] == []
    assert [label.get_text() for label in axis.get_yticklabels()] == ["U+72AC", "dog"]
