"""A run that says each step and takes its time, to be stopped by Ctrl-C; run by test_trainer.py.

python stop_training.py FOLDER
"""

import sys
import time
from pathlib import Path

import torch

from qks.commands import main as cli
from qks.commands.train import TrainCommand
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.train import loop as training
from qks.train.config import RunConfig, TrainConfig


def train(folder):
    "Forty steps; returns history and weights."
    torch.manual_seed(0)
    tokens = torch.randn(38, 4, 64)
    names = torch.randn(6, 8)
    labels = torch.where(torch.rand(38, 6) < 0.4, 1, -1)
    head = QKSHead(torch.randn(64, 8), HeadConfig(2, 1))
    history = training.fit(
        head,
        (tokens[:30], labels[:30]),
        names,
        (tokens[30:], labels[30:]),
        TrainConfig(epochs=4, lr=1e-3, batch_size=3, topk=(1,)),
        RunConfig(folder),
    )
    return [row["loss"] for row in history], head


def main(folder):
    torch.set_num_threads(1)
    steps = training.epoch_steps

    def slowly(trainer, hurry):
        for done in steps(trainer, hurry):
            print("step", flush=True)
            time.sleep(0.02)
            yield done

    training.epoch_steps = slowly

    def execute(options):
        train(folder)
        return 0

    TrainCommand.execute = execute  # with the command's own handling of Ctrl-C
    return cli.main(["train", "data", "--out", str(folder)])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
