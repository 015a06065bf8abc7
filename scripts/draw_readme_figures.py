"""Draw the first page's figures with the packaged model: recall.png, scenes.png and scene.png in nbs/images.

Run it after the packaged model changed (scripts/update_results.py), look at them, and see that the captions in
nbs/index.ipynb still say what is there. It takes about a minute.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn.functional import normalize

from qks import QKS
from qks.data.drawings import Drawings, read_concepts
from qks.data.pocket import PocketConfig, draw_scene
from qks.evaluate.baselines import best_patch_scores, zero_shot_scores
from qks.explore.plots import plot_scene_rows
from qks.explore.scenes import draw_scenes, hits_among_best, plot_recall, pocket_labels, recall
from qks.model.tagger import rank_labels

IMAGES = Path(__file__).resolve().parent.parent / "nbs" / "images"
SUCCESS = 213
FAILURE = 210  # numbers of test scenes of Pocket-WIDE, chosen among the first 300 to show one of each
TAGS = 3
DPI = 180  # twice the pixels at which the page shows them


def recall_figure(model: QKS, count: int) -> Figure:
    "Chapter 1's last plot: recall against the number of objects, `count` scenes for each."
    labels = pocket_labels()
    embeddings = model.pool.embed(model.vlp, labels.narrow)  # [C, E]
    unit = normalize(embeddings, dim=-1)
    curves: dict[str, list[float]] = {"one vector": [], "best patch": [], "QKS": [], "QKS, labels never trained on": []}
    for n_objects in range(1, 7):
        scenes = draw_scenes(count, n_objects=n_objects)
        pictures = torch.stack([model.vlp.preprocess(image) for image in scenes.images])  # [B, 3, H, W]
        tokens = model.vlp.image_tokens(pictures)  # [B, N, D]
        scores = {
            "one vector": torch.as_tensor(zero_shot_scores(model.vlp, tokens, unit)),
            "best patch": torch.as_tensor(best_patch_scores(model.vlp, tokens, unit)),
            "QKS": model.predict(scenes.images, embeddings).logits,
        }
        hits = {name: hits_among_best(values, labels.narrow, scenes.labels) for name, values in scores.items()}
        for name in scores:
            curves[name].append(recall(hits[name]))
        curves["QKS, labels never trained on"].append(recall(hits["QKS"], labels.unseen))
    for name, values in curves.items():
        print(f"{name:30}", *(f"{100 * value:4.0f}" for value in values))
    figure = plot_recall(curves, dotted=["QKS, labels never trained on"])
    figure.set_size_inches(6.4, 3.4)
    return figure


def test_scene(index: int) -> tuple[Image.Image, list[str]]:
    "A test scene of Pocket-WIDE, and its true labels, narrow ones first."
    concepts = read_concepts()
    scene = draw_scene(Drawings(), PocketConfig(), "test", index, len(concepts))
    present = [concepts[number] for number in scene.concepts]
    narrow = [concept.label for concept in present]
    broad = sorted({word for concept in present for word in concept.broader} - set(narrow))
    return Image.fromarray(scene.image), narrow + broad


def scenes_figure(model: QKS) -> Figure:
    "One test scene that the model tags well, and one that it does not."
    labels = pocket_labels()
    images, truth = zip(test_scene(SUCCESS), test_scene(FAILURE))
    output = model.predict(images, model.pool.embed(model.vlp, labels.all), return_attention=True)
    tags = [rank_labels(labels.all, *answers, TAGS, None) for answers in zip(output.logits, output.token_index)]
    headings = ["A success.", "A failure."]
    return plot_scene_rows(images, truth, tags, output.attention, model.vlp.grid, labels.unseen, headings)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder for the files")
    parser.add_argument("--count", type=int, default=200, help="scenes for each number of objects")
    options = parser.parse_args(arguments)
    model = QKS.from_pretrained("pocket", device="cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    test_scene(SUCCESS)[0].save(options.out / "scene.png")
    for name, figure in (("scenes", scenes_figure(model)), ("recall", recall_figure(model, options.count))):
        figure.savefig(options.out / f"{name}.png", dpi=DPI)


if __name__ == "__main__":
    main()
