"""`qks reproduce` as a user runs it: how long each stage takes, the most memory it needs, and the row of its table.

    python benchmarks/reproduce.py --out benchmarks/results/reproduce.json      # one seed; minutes
    python benchmarks/reproduce.py --seeds 3                                    # three trainings on the same tokens

Two-core machines differ, so the seconds are also given for one whose fp32 products run at 100 billion operations a
second: seconds times the measured rate (the mean of a look before and one after), divided by 100. Other limits, such as
memory, do not scale that way, so take the figure for what it is. To imitate a processor with AVX2 only:

    ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/reproduce.py
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from common import machine, parser, settings, write

INSTRUCTION_FLAGS = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY")
REFERENCE_RATE = 100  # billion operations a second


def memory_of_family(process):
    """Bytes that a process and its children hold; memory that they share counts once for each."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            pass
    return total


def watch_memory(process, peak):
    """Keep the largest total in `peak` until the process ends."""
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        try:
            peak[0] = max(peak[0], memory_of_family(process))
        except psutil.NoSuchProcess:
            return
        time.sleep(0.1)


def run(words):
    """Run a command of qks; its seconds and its peak of memory."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "qks", *words])
    peak = [0]
    watcher = threading.Thread(target=watch_memory, args=(psutil.Process(process.pid), peak))
    watcher.start()
    status = process.wait()
    watcher.join()
    if status:
        sys.exit(f"qks {' '.join(words)} ended with status {status}")
    return time.perf_counter() - started, peak[0]


def main():
    args = parser(__doc__, {"seeds": 1}, {"seeds": 1}).parse_args()
    sizes = settings(args)
    rate_before = machine()["billion_operations_a_second"]["float32"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        quick = ["--quick"] if args.quick else []
        seconds, peak = run(["reproduce", "--out", str(out), "--seeds", str(args.seeds), *quick])
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    rate_after = machine()["billion_operations_a_second"]["float32"]
    rate = (rate_before + rate_after) / 2
    row = {
        "seconds": round(seconds, 1),
        "stages": results["seconds"],
        "peak_memory_GB": round(peak / 1e9, 2),
        "rates": [rate_before, rate_after],
        f"seconds_at_{REFERENCE_RATE}": round(seconds * rate / REFERENCE_RATE, 1),
        "flags": {name: os.environ[name] for name in INSTRUCTION_FLAGS if name in os.environ},
        "table": results["rows"]["QKS"],
    }
    print(
        f"{row['seconds']:.0f} s, {row['peak_memory_GB']:.2f} GB at most; at {REFERENCE_RATE} billion operations a "
        f"second (here {rate_before} before, {rate_after} after): {row[f'seconds_at_{REFERENCE_RATE}']:.0f} s"
    )
    write(args.out, {"reproduce": row}, sizes)


if __name__ == "__main__":
    main()
