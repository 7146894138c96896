"""Whether probabilities are what they say, and which threshold gives the best masks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..io.files import write_json
from ..runtime.errors import UserError
from .measure import Measure, register

__all__ = [
    "BINS",
    "THRESHOLDS",
    "CaseProbabilities",
    "best_threshold",
    "read_threshold",
    "reliability",
    "write_thresholds",
]

BINS = 15  # of equal width, of the reliability curve and the calibration error (Guo et al. 2017)
THRESHOLDS = np.arange(1, 100) / 100

register(
    Measure(
        "brier", "Brier score",
        "Mean over the brain's voxels of the squared difference of probability and truth (0 or 1).",
        better="lower", digits=4, compared=False,
    ),
    Measure(
        "ece", "Calibration error",
        "Expected calibration error over the brain's voxels: the difference of mean probability and share of lesion in "
        f"{BINS} bins of probability, averaged by their voxels (Guo et al. 2017). Most voxels are surely healthy, so "
        "it is small; the reliability curve shows more.",
        better="lower", digits=4, compared=False,
    ),
    Measure(
        "dice_chosen", "Dice at the chosen threshold",
        "Dice of the probabilities at the threshold that other cases chose (--threshold_from).",
        better="higher", compared=False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class CaseProbabilities:
    """What is kept of the probabilities of a case.

    Attributes:
        brier: mean squared error in the brain.
        voxels: of the brain in each of :data:`BINS` bins of probability.
        lesion: those of them that are lesion.
        total: sum of the probabilities in each bin.
        dice: at each of :data:`THRESHOLDS`, over the whole volume.
    """

    brier: float
    voxels: NDArray[np.float64]
    lesion: NDArray[np.float64]
    total: NDArray[np.float64]
    dice: NDArray[np.float64]

    @classmethod
    def of(cls, probability: NDArray[Any], truth: NDArray[np.bool_], brain: NDArray[np.bool_]) -> CaseProbabilities:
        """
        Args:
            probability: of lesion, in [0, 1], shape (X, Y, Z).
            truth: annotated mask, same shape.
            brain: same shape.
        """
        p, t = probability[brain].astype(np.float64), truth[brain]
        place = np.minimum((p * BINS).astype(int), BINS - 1)
        voxels, lesion, total = (
            np.bincount(place, weights, BINS).astype(np.float64) for weights in (None, t.astype(np.float64), p)
        )
        # a voxel is lesion where its probability is at least the threshold, as AsDiscrete has it
        passed = np.searchsorted(THRESHOLDS.astype(probability.dtype), probability.ravel(), side="right")
        predicted, common = (
            counts[::-1].cumsum()[::-1][1:]
            for counts in (np.bincount(part, minlength=100) for part in (passed, passed[truth.ravel()]))
        )
        size = predicted + truth.sum()
        dice = np.where(size > 0, 2 * common / np.maximum(size, 1), 1.0)
        brier = float(((p - t) ** 2).mean()) if len(p) else float("nan")
        return cls(brier, voxels, lesion, total, dice)

    @property
    def ece(self) -> float:
        """Expected calibration error; NaN without a brain."""
        if not self.voxels.sum():
            return float("nan")
        return float(np.abs(self.total - self.lesion).sum() / self.voxels.sum())

    def dice_at(self, threshold: float) -> float:
        """Dice at the nearest of :data:`THRESHOLDS`."""
        return float(self.dice[np.abs(THRESHOLDS - threshold).argmin()])


def reliability(cases: Sequence[CaseProbabilities]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean probability and share of lesion among all cases' voxels, for each bin that has any."""
    voxels, lesion, total = (sum(getattr(case, name) for case in cases) for name in ("voxels", "lesion", "total"))
    some = voxels > 0
    return total[some] / voxels[some], lesion[some] / voxels[some]


def best_threshold(cases: Sequence[CaseProbabilities]) -> tuple[float, float]:
    """The threshold with the best mean Dice over the cases (of several the middle one), and that Dice."""
    means = np.mean([case.dice for case in cases], axis=0).round(12)
    best = np.flatnonzero(means == means.max())
    return float(THRESHOLDS[best[len(best) // 2]]), float(means.max())


def write_thresholds(path: Path, cases: Sequence[CaseProbabilities], info: Mapping[str, Any]) -> None:
    """Write a JSON file that an evaluation of other cases can take its threshold from.

    Args:
        path: of the file.
        cases: all of the evaluation.
        info: what they are.
    """
    threshold, dice = best_threshold(cases)
    curve = {
        f"{t:.2f}": round(float(m), 6) for t, m in zip(THRESHOLDS, np.mean([c.dice for c in cases], 0), strict=True)
    }
    write_json(
        path,
        {"threshold": threshold, "mean_dice": dice, "cases": len(cases), "of": dict(info), "mean_dice_at": curve},
        indent=1,
    )


def read_threshold(path: str | Path) -> float:
    """The best threshold in a file of :func:`write_thresholds`.

    Raises:
        UserError: when there is none to be read.
    """
    try:
        threshold = float(json.loads(Path(path).read_text())["threshold"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--threshold_from {path} is no thresholds.json that an evaluation wrote ({type(error).__name__}: {error})."
        ) from error
    return threshold
