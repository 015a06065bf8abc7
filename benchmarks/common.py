"""What the benchmarks share: fair timing, a description of the machine, and the JSON file at the end."""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from qks.core.arithmetic import product_rate  # noqa: E402
from qks.core.system import keep_freed_memory  # noqa: E402


def parser(doc, sizes, quick):
    """A command line with one whole number per size; --quick uses those of `quick` instead, for tests."""
    command = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, default in sizes.items():
        command.add_argument(f"--{name}", type=int, help=f"default: {default}, with --quick {quick.get(name, default)}")
    command.add_argument("--threads", type=int, help="default: torch's choice")
    command.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    command.add_argument("--out", type=Path, help="JSON file for the numbers")
    command.add_argument("--group", help=argparse.SUPPRESS)  # passed by `SeparateProcess`
    command.set_defaults(sizes=sizes, small=quick)
    return command


def settings(args):
    """Fill in the sizes that were not given, and keep freed memory in the process of "ours"; returns the sizes."""
    if args.group == "ours":
        keep_freed_memory()
    sizes = {}
    for option, default in args.sizes.items():
        name = option.replace("-", "_")
        if getattr(args, name) is None:
            setattr(args, name, args.small.get(option, default) if args.quick else default)
        sizes[name] = getattr(args, name)
    if args.threads:
        torch.set_num_threads(args.threads)
    return sizes


def seconds(function):
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_memory():
    """The most memory this process ever held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def time_in_turn(ways, rounds):
    """Seconds of each way in each round; the ways take turns, so that other load on the machine affects all alike."""
    for function in ways.values():  # once unmeasured
        function()
    rows = [{name: seconds(function) for name, function in ways.items()} for _ in range(rounds)]
    return {name: [row[name] for row in rows] for name in ways}


class SeparateProcess:
    """The ways of one group, run by this script in a process of its own, so that groups do not share memory."""

    def __init__(self, group):
        self.process = subprocess.Popen(
            [sys.executable, *sys.argv, "--group", group], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def way(self, name):
        """A function that runs the way in that process, and waits for it."""

        def run():
            print(name, file=self.process.stdin, flush=True)
            if self.process.stdout.readline() != "done\n":
                sys.exit(f"{name}: its process has failed")

        return run


def serve(ways):
    """What a `SeparateProcess` does: run the ways whose names it reads, until there are no more."""
    for name in sys.stdin:
        ways[name.rstrip()]()
        print("done", flush=True)


def speedups(times, reference):
    """How many times faster than the reference each way is: the median over rounds of the ratio within a round."""
    return {
        name: statistics.median(slow / fast for slow, fast in zip(times[reference], own)) for name, own in times.items()
    }


def machine():
    """What decides the speed: processor, threads, torch, and the rate of products in fp32 and bf16."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    processor = {key.strip(): value.strip() for key, value in fields.items()}
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    rates = {name: round(product_rate(dtype) / 1e9) for name, dtype in dtypes.items()}
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "maker": processor.get("vendor_id", platform.processor()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "billion_operations_a_second": rates,
    }


def write(path, results, sizes):
    """Numbers, settings and the kind of machine, as JSON."""
    results = results | {"settings": sizes, "machine": machine()}
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
