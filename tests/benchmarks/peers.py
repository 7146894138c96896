"""nnU-Net v2 on a dataset's cases for a given time, its masks measured as the bundle's own: ``make bench-peers``, or

    python tests/benchmarks/peers.py --nnunet PYTHON --dataset_dir DIR [--test_dir DIR] [--minutes 30] [--output DIR]

PYTHON is that of an environment with nnunetv2. The training cases are written in nnU-Net's layout, planned for and
trained on (3d_fullres, all of them, CPU); the test cases, of --test_dir if they lie apart, are predicted as nnU-Net
does by default, mirrored, and their masks go through ``run scoring``. Started again it goes on where it was. Figures to
put beside them: ``run evaluating`` with the same split and folder.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "hie_bundle" / "configs"
EPOCHS = 10  # in which nnU-Net's learning rate falls to 0
TRIAL_STEPS, TRIAL_EPOCHS = 3, 2  # the first one waits for processes to start
RUN = ["1", "3d_fullres", "all", "-tr", "nnUNetTrainerSteps", "-device", "cpu"]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nnunet", type=Path, required=True, help="the Python of an environment with nnunetv2")
    parser.add_argument("--dataset_dir", type=Path, required=True)
    parser.add_argument("--test_dir", type=Path, help="dataset_dir by default")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--output", type=Path, default=Path("runs/peers"))
    arguments = parser.parse_args()
    out, test_dir = arguments.output.resolve(), arguments.test_dir or arguments.dataset_dir
    tool = arguments.nnunet.parent / "nnUNetv2_"  # not resolved: an environment's Python is a link
    for name, source in {"raw": arguments.dataset_dir, "test": test_dir}.items():
        if not list(out.glob(f"{name}/Dataset001*/preprocessing.json")):
            bundle("preprocessing", [CONFIGS / "data.yaml"], dataset_dir=source, format="nnunet", output_dir=out / name)
    environment = {
        **os.environ,
        **{f"nnUNet_{name}": str(out / name) for name in ("raw", "preprocessed", "results")},
        "nnUNet_extTrainer": str(HERE / "nnunet"), "nnUNet_compile": "f", "PEER_EPOCHS": str(TRIAL_EPOCHS),
        "PEER_STEPS": str(TRIAL_STEPS),
    }  # fmt: skip

    def nnunet(command: str, *words: str | Path) -> str:
        done = subprocess.run(
            [f"{tool}{command}", *map(str, words)], env=environment, stdout=subprocess.PIPE, text=True
        )
        print(done.stdout[-2000:])
        done.check_returncode()
        return done.stdout

    if not list(out.glob("preprocessed/*/nnUNetPlans_3d_fullres")):
        nnunet("plan_and_preprocess", "-d", "1", "-c", "3d_fullres")
    trained, steps = out / "trained", out / "steps"
    if not steps.is_file():
        text = nnunet("train", *RUN)
        shutil.rmtree(out / "results")
        steps.write_text(str(steps_for(arguments.minutes, text)))
    environment |= {"PEER_EPOCHS": str(EPOCHS), "PEER_STEPS": steps.read_text()}
    if not trained.is_file():
        nnunet("train", *RUN, *(["--c"] if list(out.glob("results/**/checkpoint_latest.pth")) else []))
        trained.touch()
    (cases,) = out.glob("test/Dataset001*/imagesTs")
    nnunet(
        "predict",
        "-i",
        cases,
        "-o",
        out / "masks",
        "-d",
        *RUN[:1],
        "-c",
        RUN[1],
        "-f",
        *RUN[2:],
        "--continue_prediction",
    )
    files = [CONFIGS / "train.yaml", CONFIGS / "evaluate.yaml"]
    bundle(
        "scoring", files, dataset_dir=test_dir, split="test", predictions_dir=out / "masks", output_dir=out / "scores"
    )
    print((out / "scores" / "comparison.txt").read_text())


def steps_for(minutes: float, log: str) -> int:
    """Steps an epoch that fit into the time, by a trial's log: of its last epoch, whose validation is one step more.

    Raises:
        ValueError: when there is no time in the log.
    """
    found = re.findall(r"Epoch time: ([\d.]+) s", log)
    if not found:
        raise ValueError("nnU-Net's log has no time of an epoch.")
    return max(1, round(60 * minutes / EPOCHS / (float(found[-1]) / (TRIAL_STEPS + 1)) - 1))


def bundle(run_id: str, files: list[Path], **options: object) -> None:
    """One of the bundle's workflows, as its users start it."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    listed = "[" + ",".join(f"'{file}'" for file in files) + "]"
    subprocess.run([sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", listed, *words], check=True)


def train(folder: Path, files: list[Path], **options: object) -> None:
    """Train into a folder; go on with a training that was stopped, and leave one that has ended."""
    if not (folder / "trained").is_file():
        resume = (folder / "resume_state.pt").is_file()
        bundle("training", files, output_dir=folder, ckpt_dir=folder, num_workers=0, resume=resume, **options)
        (folder / "trained").touch()


def dice_by_size(file: Path, column: str = "native_dice") -> dict[str, dict[str, float]]:
    """Dice of each case of an evaluation (metrics.csv), by lesion size class, all cases and those from 1 % on."""
    found: dict[str, dict[str, float]] = {}
    with file.open(encoding="utf-8", newline="") as text:
        for row in csv.DictReader(text):
            larger = [] if row["size_class"] in ("empty", "<1 %") else [">=1 %"]
            for size in (row["size_class"], "all", *larger):
                found.setdefault(size, {})[row["case"]] = float(row[column])
    return found


if __name__ == "__main__":
    main()
