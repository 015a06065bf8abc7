"""Run `qks train` in every process that a launcher starts, without dropout, whose noise would differ between the processes; run by test_devices.py.

    python -m torch.distributed.run --standalone --nproc-per-node 2 spread_command.py train DATA --out RUN …
"""
import runpy

import torch

torch.nn.functional.dropout = lambda x, *args, **kwargs: x
runpy.run_module("qks.cli", run_name="__main__")  # as python -m qks.cli
