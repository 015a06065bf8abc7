"""Peak memory of the commands, each in a process of its own, with all processes that it starts.

    python benchmarks/memory.py         # Pocket-WIDE, scoring at NUS-WIDE's and Open Images' sizes; half an hour
    python benchmarks/memory.py --out benchmarks/results/memory.json

Ten times a second the resident memory of a command and of its workers is added up; memory that they share counts in
each of them, so the sum is rather too large. "largest_process_megabytes" is the peak of the largest process of all, as
the system keeps it.
The scores of the two data sets' sizes are synthetic, by `score.py` and `stream.py`. The file is written anew after
every command.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from common import parser, settings, write

HERE = Path(__file__).resolve().parent
INTERVAL = 0.1  # seconds between two looks


def resident(process):
    """Bytes in memory of a process and of those that it started; one that has just ended counts as nothing."""
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            try:
                total += member.memory_info().rss
            except psutil.NoSuchProcess:
                pass
    except psutil.NoSuchProcess:
        pass
    return total


def largest_child():
    """The peak of the largest process that this one ever waited for, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def peak_of(command):
    """Run a command; its peak in bytes and its seconds. A command that fails ends the benchmark."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        running = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        process = psutil.Process(running.pid)
        peak = 0
        while running.poll() is None:
            peak = max(peak, resident(process))
            try:
                running.wait(INTERVAL)
            except subprocess.TimeoutExpired:
                pass
        if running.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)} ended with status {running.returncode}:\n{said.read()}")
    return peak, time.perf_counter() - start


def commands(args, folder):
    """Name -> words; later ones use the files of earlier ones."""
    qks = [sys.executable, "-m", "qks"]
    pocket = folder / "pocket"
    run = folder / "run"
    scenes = ["--n-train", args.train, "--n-test", args.test]
    small = ["--quick"] if args.quick else []
    reproduce = {} if args.quick else {"qks reproduce": [*qks, "reproduce", "--out", folder / "reproduction"]}
    every = {
        **reproduce,
        "qks reproduce --quick": [*qks, "reproduce", "--quick", "--out", folder / "quick"],
        "qks data pocket": [*qks, "data", "pocket", pocket, *scenes],
        "qks train": [*qks, "train", pocket, "--epochs", args.epochs, "--out", run],
        "qks evaluate": [*qks, "evaluate", run / "model", pocket, "--baselines"],
        "qks tag": [*qks, "tag", pocket / "Flickr", "--model", run / "model"],
        "scoring, NUS-WIDE's size": [sys.executable, HERE / "score.py", "--way", "ours", *small],
        "scoring, Open Images' size": [sys.executable, HERE / "stream.py", *small],
    }
    return {name: [str(word) for word in words] for name, words in every.items()}


def main():
    sizes = {"train": 16_000, "test": 4_000, "epochs": 1}
    args = parser(__doc__, sizes, {"train": 48, "test": 24}).parse_args()
    sizes = settings(args)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, words in commands(args, Path(folder)).items():
            peak, seconds = peak_of(words)
            rows.append({"command": name, "peak_megabytes": round(peak / 1e6), "seconds": round(seconds, 1)})
            print(f"{name:28s} {rows[-1]['peak_megabytes']:7,d} MB, {seconds:7.1f} s", flush=True)
            largest = round(largest_child() / 1e6)
            write(args.out, {"rows": rows, "largest_process_megabytes": largest}, sizes)


if __name__ == "__main__":
    main()
