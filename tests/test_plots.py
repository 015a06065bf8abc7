"""The plotting helpers: what is drawn, not only that something is."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from qks.core import QKSError
from qks.explore.overlay import resize_map
from qks.explore.plots import (
    CORRECT_TEXT,
    best_and_worst,
    draw_attention,
    draw_tags,
    plot_history,
    plot_label_ap,
    plot_scene_rows,
    plot_tags,
    plot_token_use,
    token_attention,
    token_use,
)

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (8, 8, 3), np.uint8), Image.fromarray(RNG.integers(0, 256, (10, 20, 3), np.uint8))]
TRUE = [["dog", "bus"], ["cat", "hat"]]
TAGS = [[("dog", 0.9, 1), ("cat", 0.6, 0), ("bus", 0.3, 2)], [("dog", 0.5, 0)]]
ATTENTION = [
    torch.softmax(torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(seed)), -1) for seed in range(2)
]  # [B, heads, K, N]


@pytest.fixture(autouse=True)
def nothing_left_open():
    plt.close("all")
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert left == [], "a plotting function left its figure with pyplot"


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    plt.close(figure)
    return axis


def texts(axis):
    return {text.get_text(): text for text in axis.texts}


def axes_titled(figure, title):
    return [axis for axis in figure.axes if axis.get_title() == title]


DOLLARS = ["$$", "100%$ & $", "a_$b", "$x^2$", "plain", "$_$"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_tags(
            PICTURES,
            [DOLLARS, DOLLARS[:2]],
            [[(label, 0.5, 0) for label in DOLLARS]] * 2,
            ATTENTION,
            (2, 2),
            unseen=DOLLARS[:1],
        ),
        lambda: plot_scene_rows(
            PICTURES, [DOLLARS] * 2, [[(label, 0.5, 0) for label in DOLLARS]] * 2, ATTENTION, (2, 2)
        ),
        lambda: plot_tags(PICTURES, [DOLLARS, DOLLARS[:2]], [[(label, 0.5, 0) for label in DOLLARS]] * 2),
        lambda: plot_token_use(
            np.zeros((2, 6), int), np.ones((2, 6), int), {label: [i] for i, label in enumerate(DOLLARS)}, 2
        ),
        lambda: plot_label_ap(np.linspace(0, 1, 6), DOLLARS, 2),
    ],
    ids=["with panels", "in rows", "without", "token use", "AP"],
)
def test_labels_are_no_formulas(draw, tmp_path):
    figure = draw()
    figure.savefig(tmp_path / "figure.png")  # where matplotlib reads its texts
    drawn = {text.get_text() for text in figure.findobj(plt.Text)}
    assert any("$" in text for text in drawn) and not any(
        text.get_parse_math() for text in figure.findobj(plt.Text) if "$" in text.get_text()
    )


# --- attention ---


def test_map_is_the_mean_over_heads_of_the_last_block_without_prefix():
    got = token_attention(ATTENTION, image=1, token=2, grid=(2, 2), n_prefix=1)
    expected = ATTENTION[1][1, :, 2].mean(0)[1:].reshape(2, 2)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got[1, 0] == pytest.approx(ATTENTION[1][1, :, 2, 3].mean().item())  # row 1, column 0 is patch 2


def test_map_of_a_grid_that_is_not_square():
    weights = np.arange(6.0)[None, None, None]  # [1, 1, 1, 6]
    np.testing.assert_array_equal(token_attention([weights], 0, 0, (2, 3)), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("kind", [lambda a: a.numpy(), lambda a: a.clone().requires_grad_(), lambda a: a.bfloat16()])
def test_map_from_any_kind_of_array(kind):
    got = token_attention([kind(block) for block in ATTENTION], 0, 1, (2, 2), 1)
    np.testing.assert_allclose(got, token_attention(ATTENTION, 0, 1, (2, 2), 1), rtol=1e-2)


@pytest.mark.parametrize("grid, n_prefix", [((2, 2), 0), ((2, 3), 0), ((2, 3), -1), ((5, 1), 1)])
def test_grid_that_does_not_fit_is_refused(grid, n_prefix):
    with pytest.raises(QKSError, match="attention to 5 image tokens"):
        token_attention(ATTENTION, 0, 0, grid, n_prefix)


@pytest.mark.parametrize("image, token", [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_image_and_token_must_exist(image, token):
    with pytest.raises(QKSError, match="holds 2 images and 3 tokens"):
        token_attention(ATTENTION, image, token, (2, 2), 1)


def test_colour_is_clear_at_the_lowest_weight_and_strongest_at_the_peak(axis):
    weights = np.array([[0.4, 0.2], [0.0, 0.1]])
    draw_attention(axis, PICTURES[0], weights)
    picture, heat = axis.images
    np.testing.assert_array_equal(picture.get_array(), PICTURES[0])  # as bright as it was
    np.testing.assert_allclose(heat.get_array(), resize_map(weights, 8))
    assert heat.get_extent() == [-0.5, 7.5, 7.5, -0.5] and heat.get_clim() == (0, 1)
    opacity = heat.cmap(heat.norm(heat.get_array()))[..., 3]
    assert opacity[0, 0] == opacity.max() > 0.6 and opacity[7, 0] == 0
    outlines = [line for line in axis.collections if len(line.get_paths()[0].vertices)]
    assert len(outlines) == 2
    np.testing.assert_array_less(outlines[0].get_paths()[0].vertices[:, 1], 4)  # around the peak, in the upper half


def test_even_weights_and_all_zero_weights(axis):
    for weight in (0.25, 0.0):
        draw_attention(axis, PICTURES[0], np.full((2, 2), weight))
        heat = axis.images[-1]
        assert (heat.cmap(heat.norm(heat.get_array()))[..., 3] == 0).all()  # nothing is coloured
    assert not axis.collections  # nor outlined


def test_a_map_on_a_photograph_is_coarser_than_the_photograph(axis):
    draw_attention(axis, np.zeros((1000, 1200, 3), np.uint8), np.eye(3))
    picture, heat = axis.images
    assert picture.get_array().shape[:2] == (1000, 1000) and heat.get_array().shape == (256, 256)
    assert heat.get_extent() == picture.get_extent()
    outline = np.concatenate([path.vertices for path in axis.collections[0].get_paths()])
    assert 0 <= outline.min() < 10 and 990 < outline.max() <= 1000  # the line is where the colour is


def test_the_centre_square_is_shown(axis):
    wide = np.asarray(PICTURES[1])  # [10, 20, 3]
    draw_attention(axis, wide)
    draw_attention(axis, wide.swapaxes(0, 1))
    np.testing.assert_array_equal(axis.images[0].get_array(), wide[:, 5:15])
    np.testing.assert_array_equal(axis.images[1].get_array(), wide[:, 5:15].swapaxes(0, 1))


# --- tags ---


def test_right_labels_carry_tick_bold_and_colour(axis):
    draw_tags(axis, TAGS[0], TRUE[0], unseen=["cat"])
    written = texts(axis)
    assert set(written) == {"✓ dog", "cat*", "✓ bus", "0.90", "0.60", "0.30"}
    assert written["✓ dog"].get_weight() == "bold" and written["cat*"].get_weight() == "normal"
    assert written["✓ dog"].get_color() == CORRECT_TEXT != written["cat*"].get_color()
    assert [bar.get_width() for bar in axis.patches] == [0.9, 0.6, 0.3]
    assert axis.get_xlabel() == "probability"
    heights = [axis.transData.transform((0, bar.get_y()))[1] for bar in axis.patches]
    assert heights == sorted(heights, reverse=True)  # the most probable stands on top


def test_scenes_with_attention():
    figure = plot_tags(PICTURES, TRUE, TAGS, ATTENTION, grid=(2, 2), unseen=["dog"])
    assert len(axes_titled(figure, "dog, bus")) == 1 and len(axes_titled(figure, "✓ cat")) == 0
    (cat,) = axes_titled(figure, "cat")
    (right_dog,) = axes_titled(figure, "✓ dog*")
    (wrong_dog,) = axes_titled(figure, "dog*")
    for axis, image, token in ((right_dog, 0, 1), (cat, 0, 0), (wrong_dog, 1, 0)):  # the token that the label chose
        weights = token_attention(ATTENTION, image, token, (2, 2), n_prefix=1)
        side = min(np.asarray(PICTURES[image]).shape[:2])
        np.testing.assert_allclose(axis.images[1].get_array(), resize_map(weights, side), rtol=1e-6)
        assert f"token {token}, peak {weights.max():.0%}" in texts(axis)
    assert "* not among the training labels" in figure.get_supxlabel()
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 2 + 4  # two pictures, four tags


def test_scene_rows():
    figure = plot_scene_rows(PICTURES, TRUE, TAGS, ATTENTION, (2, 2), ["dog"], ["A success.", "A failure."])
    first, second = figure.subfigs
    assert first.get_suptitle() == "A success. In the picture: dog, bus"
    assert second.get_suptitle() == "A failure. In the picture: cat, hat"
    assert [axis.get_title() for axis in first.axes] == ["", "", "✓ dog*", "cat", "✓ bus"]
    assert [axis.get_title() for axis in second.axes] == ["", "", "dog*", "", ""]
    weights = token_attention(ATTENTION, 1, 0, (2, 2), n_prefix=1)
    np.testing.assert_allclose(second.axes[2].images[1].get_array(), resize_map(weights, 10), rtol=1e-6)
    assert f"token 0, peak {weights.max():.0%}" in texts(second.axes[2])
    figure.canvas.draw()


def test_panels_have_one_size_even_where_a_scene_has_fewer_tags():
    figure = plot_tags(PICTURES, TRUE, TAGS, ATTENTION, grid=(2, 2))
    figure.canvas.draw()
    sizes = [axis.get_position().bounds[2:] for axis in figure.axes if len(axis.images) == 2]
    np.testing.assert_allclose(sizes, [sizes[0]] * 4, rtol=0.02)


def test_scenes_without_attention_have_no_panels():
    figure = plot_tags(PICTURES, TRUE, TAGS)
    assert len(figure.axes) == 4 and sum(len(axis.images) for axis in figure.axes) == 2
    assert "*" not in figure.get_supxlabel()


def test_a_scene_where_nothing_was_found():
    for attention in (None, ATTENTION):
        figure = plot_tags(PICTURES, TRUE, [[], []], attention, (2, 2))
        figure.canvas.draw()
        assert sum(len(axis.images) for axis in figure.axes) == 2 and not any(axis.patches for axis in figure.axes)


@pytest.mark.parametrize(
    "arguments",
    [
        ([], [], []),
        (PICTURES, TRUE[:1], TAGS),
        (PICTURES, TRUE, TAGS[:1]),
        (PICTURES, TRUE, TAGS, ATTENTION),
        (PICTURES[:1], TRUE[:1], TAGS[:1], ATTENTION, (2, 2)),
    ],
)
def test_scenes_that_do_not_fit_are_refused(arguments):
    with pytest.raises(QKSError, match="one of each per image"):
        plot_tags(*arguments)


def test_a_token_outside_the_attention_is_refused():
    with pytest.raises(QKSError, match="token 9"):
        plot_tags(PICTURES, TRUE, [[("dog", 0.9, 9)], []], ATTENTION, (2, 2))


# --- token use ---

LABELS = np.array([[1, -1, 0, -1], [1, 1, -1, -1], [-1, 0, 1, -1]])  # [B, C]
CHOSEN = np.array([[0, 2, 2, 3], [0, 1, 2, 3], [2, 2, 3, 3]])
GROUPS = {"animal": [0, 1], "food": [2], "nobody": [3]}


def test_shares_by_hand():
    shares, positives = token_use(CHOSEN, LABELS, GROUPS, n_tokens=5)
    np.testing.assert_allclose(shares, [[2 / 3, 1 / 3, 0, 0, 0], [0, 0, 0, 1, 0], [np.nan] * 5])
    assert positives.tolist() == [3, 1, 0]


def test_shares_take_ranges_and_tensors():
    expected = token_use(CHOSEN, LABELS, {"all": [0, 1, 2, 3]})[0]
    got = token_use(torch.from_numpy(CHOSEN), torch.from_numpy(LABELS), {"all": range(4)}, n_tokens=1)[
        0
    ]  # 1 is too few: widened
    np.testing.assert_array_equal(got, expected)
    assert expected.shape == (1, 4) and expected.sum() == pytest.approx(1)


def test_heat_map_shows_the_shares():
    figure = plot_token_use(CHOSEN, LABELS, GROUPS, n_tokens=5)
    axis = figure.axes[0]
    shares = token_use(CHOSEN, LABELS, GROUPS, n_tokens=5)[0]
    np.testing.assert_allclose(np.ma.filled(axis.images[0].get_array(), np.nan), 100 * shares)
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["animal (3)", "food (1)", "nobody (0)"]
    assert {(text.get_text(), text.get_position()) for text in axis.texts} == {
        ("67", (0, 0)),
        ("33", (1, 0)),
        ("100", (3, 1)),
    }
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("query token", "labels (positives)")
    assert figure.axes[1].get_ylabel() == "share of the row, %"


def test_heat_map_without_any_positive():
    plot_token_use(CHOSEN, -np.ones_like(LABELS), GROUPS).canvas.draw()


@pytest.mark.parametrize("chosen, groups", [(CHOSEN[:2], GROUPS), (CHOSEN, {})])
def test_token_use_refuses_what_does_not_fit(chosen, groups):
    with pytest.raises(QKSError, match="give both as"):
        plot_token_use(chosen, LABELS, groups)


# --- history ---


def history(scores):
    return [
        {
            "epoch": i,
            "loss": 10 - i,
            "lr": 1e-3,
            "seconds": 1.0,
            "mAP": 0.1 * i,
            "F1@10": 0.05 * i,
            "F1@20": 0.04 * i,
            "score": score,
        }
        for i, score in enumerate(scores, 1)
    ]


def test_history_draws_loss_left_metrics_right_and_marks_the_first_best():
    figure = plot_history(history([0.2, 0.9, 0.9, 0.4]))
    left, right = figure.axes
    (loss,) = left.get_lines()
    np.testing.assert_array_equal(loss.get_xydata(), [[1, 9], [2, 8], [3, 7], [4, 6]])
    lines = {line.get_label(): line for line in right.get_lines()}
    assert set(lines) == {"mAP (right)", "F1@10 (right)", "F1@20 (right)", "best epoch: 2"}
    np.testing.assert_allclose(lines["F1@10 (right)"].get_ydata(), [0.05, 0.1, 0.15, 0.2])
    assert lines["best epoch: 2"].get_xdata() == [2, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "loss",
        *(line.get_label() for line in right.get_lines()),
    ]
    assert left.get_xlabel() == "epoch" and left.get_ylabel() == "training loss" and "mAP" in right.get_ylabel()


def test_history_of_one_epoch_is_visible():
    left, right = plot_history(history([0.3])).axes
    assert left.get_lines()[0].get_marker() == "o" and right.get_lines()[0].get_marker() == "s"


def test_empty_history_is_refused():
    with pytest.raises(QKSError, match="empty"):
        plot_history([])


# --- average precision ---

AP = np.array([0.9, np.nan, 0.5, 0.2, 0.8, np.nan, 0.4, 0.6])
NAMES = list("abcdefgh")


def test_best_and_worst_never_share_a_label():
    assert best_and_worst(AP[3:], n_each=1) == ([1], [0])
    assert best_and_worst(AP[3:], n_each=3) == ([1, 4, 3], [0])
    assert best_and_worst(AP[3:], n_each=9) == ([1, 4, 3, 0], [])
    assert best_and_worst(np.array([np.nan]), n_each=2) == ([], [])


def test_curves_hold_the_sorted_values_and_the_means():
    left = plot_label_ap(torch.from_numpy(AP), NAMES, n_seen=3).axes[0]
    seen, seen_mean, unseen, unseen_mean = left.get_lines()
    np.testing.assert_allclose(seen.get_ydata(), [0.9, 0.5])
    np.testing.assert_allclose(seen.get_xdata(), [25, 75])
    np.testing.assert_allclose(unseen.get_ydata(), [0.8, 0.6, 0.4, 0.2])
    assert seen_mean.get_ydata()[0] == pytest.approx(0.7) and unseen_mean.get_ydata()[0] == pytest.approx(0.5)
    assert seen.get_label() == "seen, 2 labels" and unseen_mean.get_label() == "their mean, 0.500"
    assert seen.get_linestyle() != unseen.get_linestyle()  # not told apart by colour alone


def bars(figure):
    axis = figure.axes[1]
    names = {round(at): text.get_text() for at, text in zip(axis.get_yticks(), axis.get_yticklabels())}
    return (
        {names[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in axis.patches},
        list(names),
        axis.get_title(),
    )


def test_best_and_worst_are_named_with_a_gap_between():
    drawn, rows, title = bars(plot_label_ap(AP, NAMES, n_seen=3, n_each=1))
    assert drawn == {"e": 0.8, "d": 0.2} and rows == [0, 2] and title == "Best and worst unseen labels"


def test_few_unseen_labels_are_all_named_without_a_gap():
    drawn, rows, title = bars(plot_label_ap(AP, NAMES, n_seen=3, n_each=2))
    assert drawn == {"e": 0.8, "h": 0.6, "g": 0.4, "d": 0.2} and list(drawn) == ["e", "h", "g", "d"]
    assert rows == [0, 1, 2, 3] and title == "Unseen labels, best first"


def test_without_an_unseen_label_the_seen_ones_are_named():
    figure = plot_label_ap(AP, NAMES, n_seen=8, n_each=1)
    drawn, rows, title = bars(figure)
    assert drawn == {"a": 0.9, "d": 0.2} and rows == [0, 2] and title == "Best and worst seen labels"
    assert figure.axes[0].get_title() == "All labels" and len(figure.axes[0].get_lines()) == 2


def test_labels_without_any_annotation():
    plot_label_ap(np.full(4, np.nan), NAMES[:4], n_seen=2).canvas.draw()


@pytest.mark.parametrize("names, n_seen", [(NAMES[:5], 3), (NAMES, 9), (NAMES, -1)])
def test_average_precision_refuses_what_does_not_fit(names, n_seen):
    with pytest.raises(QKSError, match="one value per name"):
        plot_label_ap(AP, names, n_seen)
