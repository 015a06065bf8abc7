"""Make nbs/results/readouts.json: every training-free readout on the test part of Pocket-WIDE.

    python scripts/readout_results.py                # all readouts: about ten minutes on two CPU cores
    python scripts/readout_results.py --windows 500  # windows, which cost ten times as much, on the first 500 scenes
    python scripts/readout_results.py --limit 200    # the first 200 scenes only, written nowhere

Numbers are by the authors' protocol, over all labels at once. Nothing is chosen by them but the default readout.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import torch

from qks.core import load_image
from qks.data.pocket import write_pocket
from qks.data.splits import open_splits
from qks.evaluate.metrics import evaluate_scores
from qks.model.prompts import PromptPool, embed_names
from qks.readouts.block import read_states
from qks.readouts.registry import READOUTS, find_readout
from qks.vlp.frozen import preprocess_images
from qks.vlp.loading import load_vlp

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "results" / "readouts.json"
BATCH = 64
OTHERS = (
    "windows:cls",
    "windows:qq-kk",
    "standardised:cls",
    "standardised:best-patch",
    "standardised:qq-kk",
)


def add_scores(vlp, pictures, embeddings, readouts, found, seconds):
    "Score one batch by each readout; the tower runs once for those that read tokens."
    start = time.perf_counter()
    states = read_states(vlp, preprocess_images(vlp, pictures), with_block=True)
    tower_seconds = time.perf_counter() - start
    for name, readout in readouts.items():
        start = time.perf_counter()
        if readout.reads_pictures:
            scores = readout.score_pictures(vlp, pictures, embeddings).scores
            seconds[name] += time.perf_counter() - start
        else:
            scores = readout.score_states(vlp, states, embeddings).scores
            seconds[name] += time.perf_counter() - start + tower_seconds
        found[name].append(scores)


def row_of(readout, scores, seconds, test):
    "What is kept of a readout's scores of the first scenes."
    return {
        "title": readout.title,
        "images": len(scores),
        "transductive": readout.is_transductive,
        "seconds_per_1000": 1000 * seconds / len(scores),
        "metrics": evaluate_scores(scores, test.labels[: len(scores)], test.n_seen, (3, 5)),
    }


def measure(root, limit=None, windows=None):
    "Row name -> title, scenes, metrics, seconds per 1,000 scenes."
    test = open_splits(root)["test"].dense()
    count = min(limit or len(test), len(test))
    vlp = load_vlp("pocket", device="cpu")
    embeddings = embed_names(PromptPool(), vlp, test.label_names)  # [C, E]
    readouts = READOUTS | {name: find_readout(name) for name in OTHERS}
    plain = {name: readout for name, readout in readouts.items() if not readout.is_transductive}
    found = {name: [] for name in plain}
    seconds = dict.fromkeys(plain, 0.0)
    n_windows = min(windows or count, count)
    for begin in range(0, count, BATCH):
        pictures = [load_image(test.path(index)) for index in range(begin, min(begin + BATCH, count))]
        wanted = {name: readout for name, readout in plain.items() if begin < n_windows or not readout.reads_pictures}
        add_scores(vlp, pictures, embeddings, wanted, found, seconds)
        print(f"{begin + len(pictures):,} of {count:,} scenes", flush=True)
    rows = {}
    for name, readout in readouts.items():
        read = name.removeprefix("standardised:")
        scores = readout.over_images(torch.cat(found[read]))  # [n, C]
        rows[name] = row_of(readout, scores, seconds[read], test)
        if readout.reads_pictures and len(scores) < count:  # what it is compared with, on the same scenes
            inner = name.removeprefix("windows:")
            same = torch.cat(found[inner])[: len(scores)]
            rows[f"{inner} on {len(scores):,} scenes"] = row_of(
                readouts[inner], same, seconds[inner] * len(same) / count, test
            )
    return {"images": count, "seen": test.n_seen, "unseen": len(test.label_names) - test.n_seen, "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with Pocket-WIDE; it is drawn where none is named")
    parser.add_argument("--limit", type=int, help="so many scenes only; the results are printed and not written")
    parser.add_argument("--windows", type=int, help="measure windows on so many scenes only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.data or write_pocket(Path(folder) / "pocket-wide")
        results = measure(root, options.limit, options.windows)
    results["machine"] = {"processor": platform.machine(), "threads": torch.get_num_threads()}
    for name, row in results["rows"].items():
        zsl = row["metrics"]["zsl"]
        print(f"{name:26} ZSL mAP {100 * zsl['mAP']:5.1f}  F1@3 {100 * zsl['F1@3']:5.1f}")
    if options.limit is None:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
