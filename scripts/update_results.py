"""Copy a run's results and figures to where the first page shows them.

    qks reproduce --seeds 3 --out runs/three
    python scripts/update_results.py runs/three
"""

import shutil
import sys
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / "nbs"
FIGURES = ("scenes", "token_use", "history", "label_ap")


def main(run):
    """Copy results.json and the figures of the run in folder `run`."""
    run = Path(run)
    wanted = [run / "results.json", *(run / "figures" / f"{name}.png" for name in FIGURES)]
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        sys.exit(f"{run} is no finished run: {', '.join(missing)} missing; make one with qks reproduce")
    (NBS / "results").mkdir(exist_ok=True)
    shutil.copyfile(wanted[0], NBS / "results" / "pocket_wide.json")
    for path in wanted[1:]:
        shutil.copyfile(path, NBS / "images" / f"pocket_{path.name}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: update_results.py RUN_FOLDER")
    main(sys.argv[1])
