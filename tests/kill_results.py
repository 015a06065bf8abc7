"""Kill `qks train` while it writes its results, before each file is opened, written or renamed.

    python kill_results.py FOLDER

Run by test_train_command.py. Prints one line of JSON: the number of kills, whether the run was taken for finished after
each, and whether the end is the same.

The parent trains once to the end, and once up to the results. One child per kill then writes the results and ends
itself with SIGKILL at the k-th event. After each kill the folder must be one that can be resumed; after the last one,
`--resume` must end with the files of the run that was never killed.
"""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from kill_child import in_child
from tqdm import tqdm

from qks.commands.main import main
from qks.core import QKSError
from qks.experiment import results, training_data, training_run
from qks.experiment.run_folder import claim_run_folder
from qks.experiment.spec import read_spec
from qks.model.prompts import PromptPool

OPTIONS = "--epochs 2 --lr 1e-3 --n-layers 1 --n-queries 2 --batch-size 12 --save-steps 2".split()


def draw(folder, *args):
    "Stands for the figures, which take seconds."
    folder.mkdir(exist_ok=True)
    (folder / "scenes.png").write_bytes(b"drawn")


def written(run):
    "All that a run leaves besides its clock and its logs."
    results = json.loads((run / "results.json").read_text())
    for row in results["runs"][0]["history"]:
        row.pop("seconds")
    return {
        "results": {name: value for name, value in results.items() if name not in ("seconds", "code")},
        "files": {
            name: (run / name).read_bytes().hex()
            for name in ("config.json", "table.md", "model/config.json", "model/head.safetensors", "figures/scenes.png")
        },
        "names": sorted(path.name for folder in (run, run / "model") for path in folder.iterdir()),
    }


def killed_at(number, folder, save):
    "Write results until the event of that number."
    seen = []

    def reach(event, path, mode=""):
        if str(folder) in str(path) and (event == "os.rename" or (event == "open" and "r" not in str(mode))):
            seen.append(event)
            if len(seen) > number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(lambda event, given: reach(event, *given[:2]) if event in ("open", "os.rename") else None)
    save()


def run(root):
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread beside the one that forks
    results.save_figures = draw
    pool = PromptPool.single("a photo of {}")
    training_run.load_training_data = partial(training_data.load_training_data, pool=pool)
    saved = []
    save = results.save_run
    out = root / "run"

    def train(folder, *more):
        return main(["train", str(root / "data"), "--out", str(folder), *OPTIONS, *more])

    assert (
        main(["data", "pocket", str(root / "data"), "--n-train", "40", "--n-test", "20"]) == train(root / "whole") == 0
    )

    def not_yet(*args):
        saved.append(args)
        raise QKSError("not yet")

    training_run.save_run = not_yet
    assert train(out) == 2
    spec = read_spec(out)
    finished = []
    number = 0
    while in_child(lambda: killed_at(number, out, lambda: save(*saved[0]))):
        finished.append((out / "results.json").exists())
        claim_run_folder(spec, resume=True)  # raises where there is nothing to go on with
        number += 1
    (out / "results.json").unlink()  # as if the last kill had come before its name was there
    (out / ".results.json.1.part").write_text('{"proto')
    training_run.save_run = save
    assert train(out, "--resume") == 0
    print(json.dumps({"kills": number, "finished": finished, "same": written(out) == written(root / "whole")}))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
