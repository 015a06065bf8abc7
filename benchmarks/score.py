"""Official scoring at NUS-WIDE's size: `qks.evaluate.metrics.evaluate_scores` beside a textbook loop over labels.

    python benchmarks/score.py                                # 107,859 images, 1,006 labels
    python benchmarks/score.py --images 20000 --labels 300    # smaller
    python benchmarks/score.py --bootstrap 1000               # the intervals of 1,000 resamples as well
    python benchmarks/score.py --out benchmarks/results/score.json

Scores and labels are synthetic: most labels are rare, 81 are unseen. Every way runs in a process of its own, on the
same data, so that its peak memory is its own. Memory is given without the scores themselves: interpreter, libraries,
labels and everything else.
"""

import argparse
import json
import subprocess
import sys
import time

import numpy as np
import torch
from common import parser, peak_memory, settings, write

N_UNSEEN = 81
TOPK = (3, 5)


def synthetic(images, labels, seed=0):
    """Scores fp32 and labels int8 [images, labels], made row by row: the most frequent label has 3 % positives."""
    generator = np.random.default_rng(seed)
    unseen = min(N_UNSEEN, labels // 2)
    rank = np.concatenate([np.arange(1, labels - unseen + 1), np.arange(1, unseen + 1)])
    share = 0.03 * rank**-0.4
    scores = np.empty((images, labels), dtype=np.float32)
    truth = np.empty((images, labels), dtype=np.int8)
    for start in range(0, images, 1000):
        block = slice(start, min(start + 1000, images))
        shown = generator.random((block.stop - start, labels), dtype=np.float32) < share
        truth[block] = np.where(shown, 1, -1)
        scores[block] = generator.standard_normal(shown.shape, dtype=np.float32) + shown
    return scores, truth, labels - unseen


def textbook(scores, labels, n_seen, topk):
    """The same numbers, with one sort per label and one topk per k, in torch."""
    scores = torch.from_numpy(scores)
    labels = torch.from_numpy(labels)
    result = {}
    for part, columns in {"seen": slice(0, n_seen), "zsl": slice(n_seen, None), "gzsl": slice(None)}.items():
        shown = (labels[:, columns] > 0).any(dim=1)
        s = scores[shown][:, columns]
        y = labels[shown][:, columns] > 0
        place = torch.arange(1, len(s) + 1)
        precision = []
        for c in range(s.shape[1]):
            hit = y[s[:, c].sort(descending=True).indices, c]
            at_hit = (hit.cumsum(0) / place)[hit]
            precision.append(at_hit.mean().item() if len(at_hit) else 0.0)
        result[part] = {"mAP": float(np.mean(precision))}
        for k in topk:
            predicted = torch.zeros_like(y).scatter_(1, s.topk(k, dim=1).indices, True)
            correct = (predicted & y).sum().item()
            total = y.sum().item()
            result[part] |= {
                f"P@{k}": correct / (k * len(s)),
                f"R@{k}": correct / total,
                f"F1@{k}": 2 * correct / (k * len(s) + total),
            }
    return result


def ours(scores, labels, n_seen, topk):
    from qks.evaluate.metrics import evaluate_scores

    return evaluate_scores(scores, labels, n_seen, topk)


def intervals(scores, labels, n_seen, topk, resamples):
    from qks.evaluate.bootstrap import bootstrap_intervals

    return bootstrap_intervals(scores, labels, n_seen, topk, resamples=resamples)


def measure(way, images, labels, resamples):
    """Run one way in this process; print its seconds, processor seconds, memory above the scores, and result."""
    function = {"textbook": textbook, "ours": ours, "bootstrap": lambda *given: intervals(*given, resamples)}[way]
    function(*synthetic(50, 20), TOPK)  # so that imports do not count
    data = synthetic(images, labels)
    start = time.perf_counter()
    cpu = time.process_time()
    result = function(*data, TOPK)
    seconds = time.perf_counter() - start
    cpu = time.process_time() - cpu
    megabytes = (peak_memory() - data[0].nbytes) / 1e6
    print(json.dumps({"seconds": seconds, "cpu": cpu, "above": megabytes, "result": result}))


def main():
    quick = {"images": 200, "labels": 30, "bootstrap": 10}
    command = parser(__doc__, {"images": 107_859, "labels": 1_006, "bootstrap": 0}, quick)
    command.add_argument("--way", help=argparse.SUPPRESS)
    options = command.parse_args()
    sizes = settings(options)
    if options.way:
        return measure(options.way, options.images, options.labels, options.bootstrap)
    print(f"{options.images:,} images, {options.labels:,} labels, top-k {TOPK}, {torch.get_num_threads()} threads")
    done = {}
    for way in ("textbook", "ours", *(["bootstrap"] if options.bootstrap else [])):
        command = [sys.executable, __file__, "--way", way, "--images", options.images, "--labels", options.labels]
        command += ["--bootstrap", options.bootstrap, "--threads", torch.get_num_threads()]
        output = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True).stdout
        done[way] = json.loads(output.splitlines()[-1])
        print(
            f"{way:9} {done[way]['seconds']:8.2f} s ({done[way]['cpu']:.2f} s of processor), "
            f"peak memory {done[way]['above']:7,.0f} MB above the scores",
            flush=True,
        )
    expected = done["textbook"]["result"]
    result = done["ours"]["result"]
    differences = [abs(expected[part][name] - result[part][name]) for part in expected for name in expected[part]]
    furthest = max(differences)
    clock, cpu = (done["textbook"][name] / done["ours"][name] for name in ("seconds", "cpu"))
    print(
        f"ratio {clock:.1f} by the clock, {cpu:.1f} of processor; largest difference between the numbers {furthest:.1e}"
    )
    ways = {
        way: {
            "seconds": round(measured["seconds"], 2),
            "processor_seconds": round(measured["cpu"], 2),
            "megabytes_above_scores": round(measured["above"]),
        }
        for way, measured in done.items()
    }
    write(
        options.out,
        {"ways": ways, "ratio": round(clock, 1), "ratio_of_processor": round(cpu, 1), "largest_difference": furthest},
        {"images": options.images, "labels": options.labels, "topk": TOPK, "resamples": sizes["bootstrap"]},
    )


if __name__ == "__main__":
    main()
