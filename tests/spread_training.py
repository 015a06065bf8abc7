"""Train a small head in every process that a launcher starts; run by test_devices.py.

    python -m torch.distributed.run --standalone --nproc-per-node 2 spread_training.py FOLDER

Each process notes which images it was asked for; the first one writes losses, metrics, scores and weights. There is no
dropout: its noise would differ between the processes. The same is trained again in other ways: with every share in two
parts; with plain gradient steps, which show the gradient's length; and stopped in the middle by a signal that only the
last process receives, without dropout and with it. At last the first process cannot write its checkpoint.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from qks.core import QKSError
from qks.model.config import HeadConfig
from qks.model.head import QKSHead
from qks.train import run_folder, trainer as engine
from qks.train.config import RunConfig, TrainConfig
from qks.train.devices import gather_rows, make_accelerator, process_state, rank_by_rank, score_images
from qks.train.loop import fit
from qks.train.signals import Interrupted
from qks.train.targets import Targets

N = 21
M = 7
S = 6
U = 3
E = 8
D = 64  # 21 images in batches of 4: the last batch is a single image


class Watched:
    "Tokens that note which rows were asked for."

    def __init__(self, tokens):
        self.tokens = tokens
        self.asked = []

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, rows):
        self.asked.append(rows.tolist())
        return self.tokens[rows]


def stopped(train, process):
    "Train until a signal comes in the eighth step of one process, and resume."
    step = engine.train_step
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 8 and process:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args, **kwargs)

    engine.train_step = interrupted
    try:
        train()
    except Interrupted:
        return train()
    finally:
        engine.train_step = step


def failed(train):
    "The error of each process when the first one's disk is full."
    save = run_folder.save_checkpoint

    def full(*args):
        raise QKSError("the disk is full")

    run_folder.save_checkpoint = full
    try:
        train()
    except QKSError as error:
        return [type(error).__name__, str(error)]
    finally:
        run_folder.save_checkpoint = save


def main(folder):
    torch.set_num_threads(1)
    state = process_state()
    process = state.process_index
    processes = state.num_processes
    torch.manual_seed(0)
    tokens = torch.randn(N + M, 4, D)
    names = torch.randn(S + U, E)
    labels = torch.where(torch.rand(N + M, S + U) < 0.4, 1, -1)
    torch.manual_seed(state.process_index)  # the processes begin with different weights: those of the first count
    head = QKSHead(torch.randn(D, E) * 0.3, HeadConfig(n_queries=3, n_layers=1, dropout=0.0))
    watched = Watched(tokens[:N])
    results = {}
    config = TrainConfig(epochs=3, lr=1e-3, batch_size=4, topk=(1, 2), schedule="cosine", ema=0.5, clip=50.0)
    results["history"] = fit(
        head,
        (watched, labels[:N, :S]),
        names,
        (tokens[N:], labels[N:, :S]),
        config,
        RunConfig(folder / "run", save_steps=4, log_steps=2),
    )
    results["scores"] = score_images(head, tokens[N:], names)[0].tolist()
    results["two"] = score_images(head, tokens[N : N + 2], names)[0].tolist()  # perhaps fewer images than processes
    results["rows"] = gather_rows(torch.arange(5).tensor_split(state.num_processes)[state.process_index], 5).tolist()
    results["weights"] = {name: tensor.tolist() for name, tensor in head.state_dict().items()}
    data = (tokens[:N], labels[:N, :S]), names, (tokens[N:], labels[N:, :S])

    def again(name=None, dropout=0.0, **changes):
        torch.manual_seed(process)
        head = QKSHead(torch.randn(D, E) * 0.3, HeadConfig(n_queries=3, n_layers=1, dropout=dropout))
        history = fit(
            head, *data, replace(config, **changes), name and RunConfig(folder / name, save_steps=4, log_steps=2)
        )
        return {"history": history, "weights": {name: tensor.tolist() for name, tensor in head.state_dict().items()}}

    results["parts"] = again(accumulate=2)
    results["stopped"] = stopped(lambda: again("stopped"), process == processes - 1)
    results["noise"] = again(dropout=0.3)
    results["noise stopped"] = stopped(lambda: again("noise", 0.3), process == processes - 1)
    make = engine.make_optimizer

    def make_sgd(weights, config):
        return torch.optim.SGD(weights, config.lr)

    engine.make_optimizer = make_sgd
    results["plain"] = again(clip=0.0, ema=0.0)
    engine.make_optimizer = make
    engine.Trainer(head, tokens[:N], Targets(labels[:N, :S]), names[:S], config, make_accelerator(torch.device("cpu")))
    drawn = torch.rand(4).tolist()
    failure = failed(lambda: again("failed"))
    state = process_state()
    (folder / f"asked{state.process_index}.json").write_text(json.dumps(watched.asked))
    (folder / f"of{state.process_index}.json").write_text(json.dumps({"drawn": drawn, "failure": failure}))
    rank_by_rank(lambda: (folder / "turns.txt").open("a").write(f"{state.process_index}\n"))
    print(f"process {state.process_index} is done")
    if state.is_main_process:
        (folder / "results.json").write_text(json.dumps(results | {"processes": state.num_processes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
