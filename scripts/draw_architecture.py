"""Draw the picture of the architecture, nbs/images/architecture.svg and .png.

    python scripts/draw_architecture.py [FOLDER]

The same matplotlib and fonts give the same bytes.
"""

import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image

from qks.data.drawings import Drawings, compose_scene, read_concepts

WIDTH = 9.0  # inches; 900 pixels at 100 dpi
HEIGHT = 5.4
INK = "#1f2328"
SOFT = "#59636e"
# Fill and edge of the boxes.
FROZEN = ("#dbeafe", "#1d4ed8")
TRAINED = ("#ffe8cc", "#c2410c")
PLAIN = ("#f3f4f6", "#8c959f")
TOKENS = ("#7c3aed", "#0d9488", "#db2777", "#ca8a04")  # one colour per query token
LABELS = ("dog", "pizza", "tree", "whale")
SCORES = np.array(
    [[0.95, 0.25, 0.10, 0.20], [0.15, 0.90, 0.20, 0.10], [0.10, 0.20, 0.15, 0.25], [0.20, 0.10, 0.85, 0.15]]
)  # [K, C], made up


def box(axis, x, y, width, height, text, colours, size=10, **style):
    """A rounded box around its centre, with a text."""
    corner = x - width / 2, y - height / 2
    shape = "round,pad=0,rounding_size=0.07"
    fill, edge = colours
    patch = FancyBboxPatch(corner, width, height, boxstyle=shape, facecolor=fill, edgecolor=edge, linewidth=1.3)
    axis.add_patch(patch)
    axis.text(x, y, text, ha="center", va="center", size=size, color=INK, linespacing=1.25, **style)


def note(axis, x, y, text, size=8.5, colour=SOFT, **style):
    """A remark beside a part."""
    axis.text(x, y, text, **({"ha": "center", "va": "center", "linespacing": 1.25} | style), size=size, color=colour)


def arrow(axis, *points, colour=INK):
    """A line through the points with a head at the last."""
    for start, end in zip(points[:-2], points[1:-1]):
        axis.plot(*zip(start, end), color=colour, linewidth=1.3, solid_capstyle="round")
    style = dict(arrowstyle="-|>", mutation_scale=11, shrinkA=0, shrinkB=0, linewidth=1.3, color=colour)
    axis.add_patch(FancyArrowPatch(points[-2], points[-1], **style))


def cells(axis, x, y, colours, size=0.19, step=(0, -0.24)):
    """Small squares, one per token; the first is centred at (x, y)."""
    for i, colour in enumerate(colours):
        corner = x + i * step[0] - size / 2, y + i * step[1] - size / 2
        axis.add_patch(Rectangle(corner, size, size, facecolor=colour, edgecolor="white", linewidth=0.8))


def scene():
    """A small picture with three of the labels in it, on a calm background."""
    concepts = [concept.label for concept in read_concepts()]
    chosen = [concepts.index(label) for label in LABELS[:3]]
    ramp = np.linspace(0, 1, 128, dtype=np.float32)[:, None, None]
    colours = (1 - ramp) * np.float32([196, 226, 255]) + ramp * np.float32([214, 240, 205])  # [128, 1, 3]
    canvas = np.broadcast_to(colours, (128, 128, 3)).copy()
    rng = np.random.default_rng(7)
    return compose_scene(Drawings(), rng, chosen, [0, 0, 0], 128, (50, 58), max_overlap=0, canvas=canvas).image


def image_side(axis, y):
    """Images to image tokens."""
    axis.imshow(scene(), extent=(0.15, 1.25, y - 0.55, y + 0.55), interpolation="lanczos", zorder=2)
    note(axis, 0.7, y - 0.71, "images")
    arrow(axis, (1.3, y), (1.54, y))
    box(axis, 2.02, y, 0.94, 1.1, "image\ntower\n", FROZEN, weight="bold")
    note(axis, 2.02, y - 0.33, "❄ frozen", colour=FROZEN[1], size=9)
    arrow(axis, (2.51, y), (2.75, y))
    for column in range(2):
        cells(axis, 2.88 + 0.21 * column, y + 0.525, ["#60a5fa"] * 6, size=0.18, step=(0, -0.21))
    note(axis, 2.985, y - 0.85, "image tokens\n[B, N, D]")


def extractor(axis, x, y):
    """Query tokens through L blocks; the image tokens enter the middle of each."""
    cells(axis, x - 0.36, y + 1.36, TOKENS, step=(0.24, 0))
    note(axis, x + 0.56, y + 1.36, "K query tokens,\nlearned", ha="left")
    for shift in (0.12, 0.06, 0):
        box(axis, x + shift, y + shift, 1.66, 1.9, "", ("#fff7ed", TRAINED[1]))
    for height, text in ((0.52, "self-attention"), (0, "cross-attention"), (-0.52, "feed-forward")):
        box(axis, x, y + height, 1.34, 0.32, text, TRAINED, size=9.5)
    arrow(axis, (x, y + 1.24), (x, y + 0.69))
    arrow(axis, (x, y + 0.35), (x, y + 0.17))
    arrow(axis, (x, y - 0.17), (x, y - 0.35))
    arrow(axis, (3.22, y), (x - 0.68, y))
    note(axis, 3.39, y + 0.12, "keys,", size=8)
    note(axis, 3.39, y - 0.13, "values", size=8)
    note(axis, x, y - 0.81, "× L blocks", size=8.5)
    note(axis, x, y - 1.12, "query extractor", size=10, colour=INK, weight="bold")


def projection(axis, x, y):
    """Extractor output to projected tokens, in the colours of their query tokens."""
    arrow(axis, (5.2, y), (x - 0.86, y))
    cells(axis, x - 0.74, y + 0.36, TOKENS)
    note(axis, x - 0.74, y - 0.64, "[B, K, D]")
    arrow(axis, (x - 0.62, y), (x - 0.41, y))
    box(axis, x, y, 0.8, 0.62, "projection\n[D, E]", TRAINED, size=9)
    note(axis, x + 0.05, y + 0.52, "begins as\nthe VLP’s own", size=8)
    arrow(axis, (x + 0.41, y), (x + 0.62, y))


def label_side(axis, y):
    """Labels to label embeddings."""
    for i, label in enumerate(LABELS):
        box(axis, 0.75, y + 0.45 - 0.3 * i, 0.8, 0.24, label, PLAIN, size=9)
    note(axis, 0.75, y - 0.73, "labels, any words")
    arrow(axis, (1.22, y), (1.64, y))
    box(axis, 2.52, y, 1.72, 1.1, "prompt pool\n\n\n", PLAIN, weight="bold")
    note(axis, 2.52, y - 0.12, "“a photo of a {}.”\n“a drawing of a {}.”\n… 85 templates", colour=INK)
    arrow(axis, (3.42, y), (3.84, y))
    box(axis, 4.36, y, 1.0, 1.1, "text\ntower\n", FROZEN, weight="bold")
    note(axis, 4.36, y - 0.33, "❄ frozen", colour=FROZEN[1], size=9)
    arrow(axis, (4.9, y), (5.3, y))
    box(axis, 5.78, y, 0.92, 0.66, "mean over\ntemplates", PLAIN, size=9)
    arrow(axis, (6.28, y), (7.45, y))
    note(axis, 6.83, y + 0.27, "label\nembeddings")
    note(axis, 6.83, y - 0.16, "[C, E]")


def score_cell(axis, corner, step, token, score, is_best):
    """One score of the matrix; the largest of its label is in the colour of its token."""
    fill, alpha = (TOKENS[token], score) if is_best else (INK, 0.6 * score)
    edge = dict(edgecolor=INK, linewidth=1.6, zorder=3) if is_best else dict(edgecolor="white", linewidth=0.8, zorder=2)
    axis.add_patch(Rectangle(corner, step, step, facecolor=fill, alpha=alpha))
    axis.add_patch(Rectangle(corner, step, step, fill=False, **edge))


def sharing(axis, x, y, bottom, step=0.31):
    """Scores of every token with every label, the largest of each label, and what becomes of it."""
    best = SCORES.argmax(0)  # [C]
    cells(axis, x - 0.34, y + 1.5 * step, TOKENS, step=(0, -step))
    for k, c in np.ndindex(SCORES.shape):
        corner = (x + (c - 0.5) * step, y + (1 - k) * step)
        score_cell(axis, corner, step, k, SCORES[k, c], k == best[c])
    slanted = dict(rotation=45, rotation_mode="anchor", ha="left", va="bottom", size=8.5, color=INK)
    for c, label in enumerate(LABELS):
        column = x + c * step
        cells(axis, column, bottom + 0.32, ["#60a5fa"] * 4, size=0.18, step=(0, -0.21))
        arrow(axis, (column, bottom + 0.46), (column, y - 2 * step - 0.05))
        arrow(axis, (column, y + 2 * step + 0.05), (column, y + 2 * step + 0.4))
        axis.add_patch(Rectangle((column - 0.1, y + 1.08), 0.2, 0.62 * SCORES[best[c], c], facecolor=TOKENS[best[c]]))
        axis.text(column - 0.03, y + 1.76, label, **slanted)
    note(axis, x - 0.42, y - 2 * step - 0.12, "[B, K, E]")
    note(axis, x - 0.24, y + 1.44, "logits\n[B, C]", ha="right")
    note(axis, x - 0.24, y + 2 * step + 0.18, "max over tokens", ha="right")
    note(axis, x - 0.24, y + 2 * step + 0.4, "knowledge sharing", size=10, colour=INK, weight="bold", ha="right")


def legend(axis, y):
    """What the colours mean."""
    for x, colours, text in (
        (0.3, FROZEN, "❄ frozen: the vision-language model (VLP)"),
        (3.85, TRAINED, "trained, on the seen labels"),
        (6.35, PLAIN, "nothing to train"),
    ):
        box(axis, x, y, 0.3, 0.18, "", colours)
        note(axis, x + 0.23, y, text, size=9, colour=INK, ha="left")


def draw():
    """The complete figure."""
    figure = plt.figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    axis = figure.add_axes((0, 0, 1, 1))
    image_side(axis, 3.65)
    extractor(axis, 4.48, 3.65)
    projection(axis, 6.5, 3.13)
    label_side(axis, 1.3)
    sharing(axis, 7.68, 3.13, bottom=1.3)
    legend(axis, 0.17)
    axis.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    axis.axis("off")
    return figure


def save(figure, folder):
    """Write SVG, and PNG of 256 colours, which takes a third of the bytes."""
    figure.savefig(folder / "architecture.svg", metadata={"Date": None})
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    Image.open(buffer).convert("RGB").quantize(256).save(folder / "architecture.png", optimize=True)


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent.parent / "nbs" / "images"
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams |= {"svg.hashsalt": "qks", "font.family": "DejaVu Sans"}
    save(draw(), folder)
