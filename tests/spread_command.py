"""Run `qks train` in every process that a launcher starts, without dropout, whose noise would differ between the processes; run by test_devices.py.

    python -m torch.distributed.run --standalone --nproc-per-node 2 spread_command.py train DATA --out RUN …
"""
import runpy

import torch

make = torch.nn.Dropout.__init__
torch.nn.Dropout.__init__ = lambda module, p=0.5, inplace=False: make(module, 0.0, inplace)
runpy.run_module("qks.cli", run_name="__main__")  # as python -m qks.cli
