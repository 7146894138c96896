"""Calibration on cases that chose nothing, before and after:

    python tests/benchmarks/calibration.py DATASET_DIR [WEIGHTS]

The cases of the test split are segmented. Printed is the expected calibration error without a calibration, with the one
stored with the weights, and with one that is fitted on every other case and applied to the rest, both halves in turn:
of voxels in the brain, as the mean over the cases and pooled, in 15 bins; of drawn lesions (whether each touches a true
one), in 10 bins, where the lesion's mean probability stands for "before".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "hie_bundle"))

from scripts.data.layout import find_cases  # noqa: E402
from scripts.evaluation.calibration import Calibration, CaseProbabilities, calibration_file  # noqa: E402
from scripts.evaluation.lesions import case_lesions  # noqa: E402
from scripts.geometry.brain import brain_of  # noqa: E402
from scripts.inference.segmenter import Segmenter  # noqa: E402
from scripts.io.volumes import read_volume  # noqa: E402

Case = tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[dict[str, Any]]]  # probability, truth, brain, lesions
LESION_BINS = 10


def main(dataset_dir: str, weights: str = "simulated") -> None:
    """See the module."""
    segmenter, cases = Segmenter(weights), []
    for one in find_cases(dataset_dir):
        if one.split == "test" and one.label:
            found = segmenter.result(one.adc or one.stacked, one.zadc)
            truth = read_volume(one.label).array > 0.5
            maps = {"adc": found.maps["ADC"], "probability": found.probability}
            lesions = case_lesions(one.case, found.mask > 0, truth, found.affine, maps)
            drawn = [row for row in lesions if row["mask"] == "prediction"]
            cases.append((found.probability, truth, brain_of(found.maps["ADC"]), drawn))
            print(f"{one.case}: {len(drawn)} lesions", flush=True)
    before = voxels_of(cases)
    real = np.array([row["touches"] for case in cases for row in case[3]])
    mean = np.array([row["mean_probability"] for case in cases for row in case[3]])
    show("before", before, mean, real)
    shipped = Calibration.read(calibration_file(segmenter.checkpoints), segmenter.making)
    show("stored with the weights", *applied(shipped, cases), real)
    after, order, sure = [], [], []
    for half in (0, 1):
        there, here = cases[1 - half :: 2], cases[half::2]
        fitted = Calibration.fit({}, voxels_of(there), [row for case in there for row in case[3]])
        voxels, probabilities = applied(fitted, here)
        after += voxels
        sure.append(probabilities)
        order += [row["touches"] for case in here for row in case[3]]
    show("fitted on the other half", after, np.concatenate(sure), np.array(order))


def voxels_of(cases: Sequence[Case], calibration: Any = np.asarray) -> list[CaseProbabilities]:
    """What is kept of each case's voxels."""
    return [CaseProbabilities.of(calibration(probability), truth, brain) for probability, truth, brain, _ in cases]


def applied(calibration: Calibration, cases: Sequence[Case]) -> tuple[list[CaseProbabilities], NDArray[np.float64]]:
    """Voxels and drawn lesions after a calibration."""
    lesions = [p for case in cases for p in calibration.real(case[3])]
    return voxels_of(cases, calibration), np.array(lesions, float)


def show(name: str, voxels: Sequence[CaseProbabilities], lesions: NDArray[Any], real: NDArray[np.bool_]) -> None:
    """Print one row."""
    counts, lesion, total = np.sum([case.bins for case in voxels], axis=0)
    pooled = np.abs(total - lesion).sum() / counts.sum()
    place = np.minimum((lesions * LESION_BINS).astype(int), LESION_BINS - 1)
    gaps = [np.abs((lesions - real)[place == n].sum()) for n in range(LESION_BINS)]
    print(
        f"{name:<26} voxels {np.mean([case.ece for case in voxels]):.4f} (mean of {len(voxels)} cases), {pooled:.4f} "
        f"(pooled), Brier {np.mean([case.brier for case in voxels]):.4f}; lesions {sum(gaps) / len(real):.3f}, Brier "
        f"{np.mean((lesions - real) ** 2):.3f} ({real.sum()} of {len(real)} real)"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
