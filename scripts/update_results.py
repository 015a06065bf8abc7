"""Copy a run's results, figures and model to where the notebooks and the library have them.

Then draw the first page's figures with the new model: python scripts/draw_readme_figures.py.

qks reproduce --seeds 3 --out runs/three
python scripts/update_results.py runs/three
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
ASSET = ROOT / "qks" / "assets" / "pocket_qks"
FIGURES = ("token_use", "history", "label_ap")


def main(run):
    """Copy results.json, the figures and, in half precision, the model of the run in folder `run`."""
    run = Path(run)
    wanted = [
        run / "results.json",
        run / "model" / "config.json",
        run / "model" / "head.safetensors",
        *(run / "figures" / f"{name}.png" for name in FIGURES),
    ]
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        sys.exit(f"{run} is no finished run: {', '.join(missing)} missing; make one with qks reproduce")
    (NBS / "results").mkdir(exist_ok=True)
    shutil.copyfile(wanted[0], NBS / "results" / "pocket_wide.json")
    for path in wanted[3:]:
        shutil.copyfile(path, NBS / "images" / f"pocket_{path.name}")
    ASSET.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(wanted[1], ASSET / "config.json")
    head = {name: tensor.half() for name, tensor in load_file(wanted[2]).items()}
    save_file(head, ASSET / "head.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: update_results.py RUN_FOLDER")
    main(sys.argv[1])
