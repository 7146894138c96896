"""Masks of trainings with data_on host and device, beside what a seed moves:

    python tests/benchmarks/placements.py [--steps 160] [--seeds 0,1] [--output DIR]

The strong recipe, at a small size and without evidence of ZADC, is trained on simulated newborns for each placement and
seed, both placements on the CPU. Prints the mean Dice over the test cases of each network's masks with the truth, and
of the masks of two networks with each other. Trainings that exist are not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from peers import CONFIGS, train

sys.path.insert(0, str(CONFIGS.parent))
FILES = ("strong.yaml", "strong_cpu.yaml")
SMALL: dict[str, Any] = {
    "features": [8, 16, 32, 64], "spacing_mm": [2.4, 2.4, 3.6], "patch_size": [32, 40, 16], "z_evidence_weight": 0,
    "lesion_peak": 0, "training_precision": "float32",
}  # fmt: skip
RECIPE = {name: SMALL[name] for name in ("features", "spacing_mm", "z_evidence_weight", "lesion_peak")}
CASES = {"num_train": 10, "num_val": 1, "num_test": 10}
SCANS: dict[str, Any] = {
    "matrix_sizes": [80], "slice_range": [20, 24], "fine_mm": 3.0, "atlas_step_mm": 4.0, "num_healthy": 4,
}  # fmt: skip


def main() -> None:
    """See the module."""
    from scripts.data.layout import find_cases
    from scripts.evaluation.metrics import dice
    from scripts.inference.segmenter import Segmenter
    from scripts.io.volumes import read_volume
    from scripts.phantom import write_cohort

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--output", type=Path, default=Path("runs/placements"))
    arguments = parser.parse_args()
    out = arguments.output.resolve()
    os.environ["OMP_NUM_THREADS"] = "1"
    write_cohort(out / "cohort", **CASES, num_workers=1, progress=False, **SCANS)
    tests = [case for case in find_cases(out / "cohort") if case.split == "test"]
    masks = {"truth": [read_volume(case.label).array > 0 for case in tests]}
    for seed in arguments.seeds.split(","):
        for place in ("host", "device"):
            run = out / f"{place}_{seed}_{arguments.steps}"
            train(
                run, [CONFIGS / file for file in ("train.yaml", *FILES)], data_on=place, seed=seed, device="cpu",
                dataset_dir=out / "cohort", steps=arguments.steps, validations=1, **SMALL,
            )  # fmt: skip
            segmenter = Segmenter(run / "model.pt", recipe="strong_cpu", device="cpu", **RECIPE)
            masks[f"{place} {seed}"] = [segmenter.result(case.adc, case.zadc).mask > 0 for case in tests]
    print(f"Mean Dice of {len(tests)} simulated test cases, {arguments.steps} steps")
    agreement: dict[str, list[float]] = {}
    for a, b in combinations(masks, 2):
        score = fmean(dice(one, other) for one, other in zip(masks[a], masks[b], strict=True))
        print(f"{a:>10} {b:>10}: {score:.3f}")
        if a != "truth":
            names = zip(("placement", "seed"), a.split(), b.split(), strict=True)
            differ = " and ".join(what for what, one, other in names if one != other)
            agreement.setdefault(differ, []).append(score)
    for differ, values in agreement.items():
        print(f"networks that differ in {differ}: {', '.join(f'{value:.3f}' for value in values)}")


if __name__ == "__main__":
    main()
