"""Time the index of NUS-WIDE against numpy.loadtxt, and the index of Open Images, on synthetic files in the real formats.

    python benchmarks/index.py                 # full size: about 0.6 GB of files, and minutes for numpy.loadtxt
    python benchmarks/index.py --scale 0.01    # a hundredth of the images
    python benchmarks/index.py --openimages 10000000    # also that many rows of Open Images annotations

Each side runs in a process of its own, so that the peak memory is its own; imports are not timed, and the files are read
once before, so that both sides find them in the system's cache. Indexing takes every file of the tree: lists, tags, and 81
concepts on both sides. numpy.loadtxt takes the two tag files alone, as it comes (floats) and told that they are integers,
which is several times faster. Exits with 1 where indexing is not 4 times faster than the faster of the two, or where its
peak memory is 1.5 GB or more.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

N_IMAGES = {"Train": 161_789, "Test": 107_859}
N_TAGS = 1000
N_CONCEPTS = 81
N_SHARED = 75
N_CLASSES = 19_995
N_SEEN = 7_186
N_UNSEEN = 400  # Open Images
TIMES_FASTER = 4
MOST_MEMORY = 1.5e9


def write_table(path, n, columns, density, rng, end):
    """A 0/1 table, its values separated by tabs, written in blocks of rows."""
    with open(path, "wb") as file:
        for first in range(0, n, 5_000):
            rows = min(5_000, n - first)
            table = np.full((rows, 2 * columns), ord("\t"), np.uint8)
            table[:, ::2] = ord("0") + (rng.random((rows, columns), np.float32) < density)
            ends = np.tile(np.frombuffer(end, np.uint8), (rows, 1))
            file.write(np.concatenate([table if columns > 1 else table[:, :1], ends], axis=1).tobytes())


def write_nuswide(root, scale, seed=0):
    """A tree in NUS-WIDE's layout: lines of the training side end in CRLF, those of the test side in LF."""
    rng = np.random.default_rng(seed)
    for folder in ("ImageList", "NUS_WID_Tags", "Groundtruth/TrainTestLabels"):
        (root / folder).mkdir(parents=True)
    concepts = [f"concept{c}" for c in range(N_CONCEPTS)]
    tags = [f"tag{t}" for t in range(N_TAGS - N_SHARED)] + concepts[:N_SHARED]
    (root / "Concepts81.txt").write_text("\n".join(concepts) + "\n")
    (root / "NUS_WID_Tags/TagList1k.txt").write_text("\r\n".join(tags) + "\r\n")
    for side, end in (("Train", b"\r\n"), ("Test", b"\n")):
        n = max(2, round(N_IMAGES[side] * scale))
        lines = "".join(f"{side.lower()}\\{i:06}_{i * 7919:010}.jpg\r\n" for i in range(n))
        (root / f"ImageList/{side}Imagelist.txt").write_bytes(lines.encode())
        write_table(root / f"NUS_WID_Tags/{side}_Tags1k.dat", n, N_TAGS, 0.006, rng, end)
        for concept in concepts:
            write_table(root / f"Groundtruth/TrainTestLabels/Labels_{concept}_{side}.txt", n, 1, 0.02, rng, end)


def write_openimages(root, rows, seed=0):
    """Label lists and training annotations in Open Images' formats, about nine rows an image, grouped by image."""
    rng = np.random.default_rng(seed)
    (root / "train").mkdir(parents=True)
    mids = [f"/m/0{c:06}" for c in range(N_CLASSES)]
    (root / "class-descriptions.csv").write_text("".join(f"{mid},Name {c % 19_000}\n" for c, mid in enumerate(mids)))
    (root / "classes-trainable.txt").write_text("\n".join(mids[:N_SEEN]) + "\n")
    (root / "unseen_400.txt").write_text("\n".join(mids[N_SEEN : N_SEEN + N_UNSEEN]) + "\n")
    with open(root / "train/train-annotations-human-imagelabels.csv", "w") as file:
        file.write("ImageID,Source,LabelName,Confidence\n")
        for first in range(0, rows, 100_000):
            numbers = np.arange(first, min(first + 100_000, rows)) // 9
            classes = rng.integers(0, N_SEEN + 2_000, len(numbers))
            verdicts = rng.integers(0, 2, len(numbers))
            lines = zip(numbers.tolist(), classes.tolist(), verdicts.tolist())
            file.write("".join(f"{i * 2654435761 % 2**64:016x},verification,{mids[c]},{v}\n" for i, c, v in lines))


def run_loadtxt(root, dtype=float):
    """The tag files alone, through numpy."""
    for side in N_IMAGES:
        yield f"{side} tags", list(np.loadtxt(root / f"NUS_WID_Tags/{side}_Tags1k.dat", dtype=dtype).shape)


def run_loadtxt_int(root):
    """The same, told that the values are integers."""
    return run_loadtxt(root, np.int64)


def run_index(root):
    """Every file of the tree, through the library."""
    from qks.data.nuswide import index_nuswide, read_concept_labels, read_vocabulary

    for split in ("train", "test"):
        index = index_nuswide(root, split)
        yield split, [len(index), len(index.label_ids), len(index.values)]
    yield "Train concepts", list(read_concept_labels(root, read_vocabulary(root)[2], "Train").shape)


def run_openimages(root):
    """One split of Open Images, through the library."""
    from qks.data.openimages import index_openimages

    index = index_openimages(root, "train")
    yield "train", [len(index), len(index.label_ids), len(index.values), index.conflicts]


JOBS = {"loadtxt": run_loadtxt, "loadtxt-int": run_loadtxt_int, "index": run_index, "openimages": run_openimages}


def measure(job, root):
    """Run a job in a process of its own: what it found, its seconds and its peak memory in bytes."""
    for path in root.rglob("*"):
        if path.is_file():
            path.read_bytes()
    done = subprocess.run([sys.executable, __file__, "--job", job, "--root", str(root)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{job} failed: {done.stderr}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="part of NUS-WIDE's images, default 1")
    parser.add_argument(
        "--openimages", type=int, default=0, metavar="ROWS", help="also index that many rows of Open Images"
    )
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        if not args.job.startswith("loadtxt"):
            import qks.data.nuswide  # noqa: E401, F401 (importing takes time and reads no data)
        clock = time.perf_counter()
        found = dict(JOBS[args.job](args.root))
        seconds = time.perf_counter() - clock
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return print(json.dumps(dict(found=found, seconds=seconds, peak=peak)))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "nuswide"
        write_nuswide(root, args.scale)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        print(
            f"NUS-WIDE at scale {args.scale:g}: {size / 1e6:,.0f} MB in {sum(p.is_file() for p in root.rglob('*'))} files",
            flush=True,
        )
        results = {job: measure(job, root) for job in ("index", "loadtxt-int", "loadtxt")}
        ratios = {}
        peak = results["index"]["peak"]
        for job, result in results.items():
            ratios[job] = result["seconds"] / results["index"]["seconds"]
            print(
                f"{job:11} {result['seconds']:7.2f} s ({ratios[job]:5.1f}), peak {result['peak'] / 1e6:6,.0f} MB, {result['found']}"
            )
        ratio = min(ratios["loadtxt"], ratios["loadtxt-int"])
        print(
            f"indexing all files is {ratio:.1f} times faster than numpy.loadtxt over the two tag files alone (wanted: {TIMES_FASTER})"
        )
        print(f"its peak memory is {peak / 1e9:.2f} GB (wanted: under {MOST_MEMORY / 1e9:g})")
        if args.openimages:
            root = Path(folder) / "openimages"
            write_openimages(root, args.openimages)
            result = measure("openimages", root)
            rate = args.openimages / result["seconds"]
            print(
                f"Open Images: {args.openimages:,} rows in {result['seconds']:.1f} s ({rate:,.0f} rows/s), peak {result['peak'] / 1e6:,.0f} MB, {result['found']}"
            )
    sys.exit(ratio < TIMES_FASTER or peak >= MOST_MEMORY)


if __name__ == "__main__":
    main()
