"""Calibration of probabilities, and the threshold with the best masks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ..io.files import write_json
from ..runtime.conditions import differences
from ..runtime.errors import UserError
from .measure import Measure, register

BINS = 15  # equal-width bins of the reliability curve and the calibration error (Guo et al. 2017)
FINE = 40 * BINS  # bins for fitting a calibration
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
        f"{BINS} probability bins, weighted by voxel count (Guo et al. 2017). It is small because most voxels are "
        "clearly healthy; the reliability curve shows more.",
        better="lower", digits=4, compared=False,
    ),
    Measure(
        "brier_calibrated", "Brier score, calibrated", "Brier score of calibrated probabilities (--calibration apply).",
        better="lower", digits=4, compared=False,
    ),
    Measure(
        "ece_calibrated", "Calibration error, calibrated", "Calibration error of calibrated probabilities.",
        better="lower", digits=4, compared=False,
    ),
    Measure(
        "dice_chosen", "Dice at the chosen threshold",
        "Dice of the probabilities at the threshold chosen on other cases (--threshold_from).",
        better="higher", compared=False,
    ),
)  # fmt: skip


def dice_curve(
    values: NDArray[Any], truth: NDArray[np.bool_], cuts: NDArray[Any], inclusive: bool = False
) -> NDArray[np.float64]:
    """Dice of ``values > cut`` (``inclusive``: ``>=``) at each cut against ``truth``, of the same shape."""
    side: Literal["left", "right"] = "left" if inclusive else "right"
    predicted, common = (one.size - np.searchsorted(np.sort(one, None), cuts, side) for one in (values, values[truth]))
    total = predicted + truth.sum()
    return np.where(total > 0, 2 * common / np.maximum(total, 1), 1.0)


@dataclass(frozen=True)
class CaseProbabilities:
    """Summary of the probabilities of a case.

    ``histogram``, (3, FINE), has three values for each of :data:`FINE` probability bins: brain voxels, lesion voxels,
    and sum of the probabilities.
    """

    brier: float  # mean squared error in the brain
    histogram: NDArray[np.float64]
    dice: NDArray[np.float64]  # at each of `THRESHOLDS`, over the whole volume

    @classmethod
    def of(cls, probability: NDArray[Any], truth: NDArray[np.bool_], brain: NDArray[np.bool_]) -> CaseProbabilities:
        """Summarise a lesion probability by the annotated mask and the brain, all of shape (X, Y, Z)."""
        p, t = probability[brain].astype(np.float64), truth[brain]
        place = np.minimum((p * FINE).astype(int), FINE - 1)
        histogram = np.stack([np.bincount(place, weights, FINE) for weights in (None, t.astype(np.float64), p)])
        # lesion: probability at least the threshold, as in AsDiscrete
        dice = dice_curve(probability, truth, THRESHOLDS.astype(probability.dtype), inclusive=True)
        return cls(float(((p - t) ** 2).mean()) if len(p) else math.nan, histogram.astype(np.float64), dice)

    @property
    def bins(self) -> NDArray[np.float64]:
        """The histogram in :data:`BINS` bins, (3, BINS)."""
        return self.histogram.reshape(3, BINS, -1).sum(-1)

    @property
    def ece(self) -> float:
        """Expected calibration error; NaN without a brain."""
        voxels, lesion, total = self.bins
        return float(np.abs(total - lesion).sum() / voxels.sum()) if voxels.any() else math.nan

    def dice_at(self, threshold: float) -> float:
        """Dice at the nearest of :data:`THRESHOLDS`."""
        return float(self.dice[np.abs(THRESHOLDS - threshold).argmin()])


def reliability(cases: Sequence[CaseProbabilities]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean probability and share of lesion of each non-empty bin, over the voxels of all cases."""
    voxels, lesion, total = np.sum([case.bins for case in cases], axis=0)
    some = voxels > 0
    return total[some] / voxels[some], lesion[some] / voxels[some]


def best_threshold(cases: Sequence[CaseProbabilities]) -> tuple[float, float]:
    """The threshold with the best mean Dice over the cases (ties: the middle one), and that Dice."""
    means = np.mean([case.dice for case in cases], axis=0).round(12)
    best = np.flatnonzero(means == means.max())
    return float(THRESHOLDS[best[len(best) // 2]]), float(means.max())


@dataclass(frozen=True)
class Calibration:
    """Calibration of the probabilities of weights, fitted on validation cases.

    ``lesions`` is a logistic regression of whether a predicted lesion touches a true one: coefficients of log volume
    (ml) and of mean probability, and the intercept; None if all predicted lesions were real, or none.
    """

    of: Mapping[str, Any]  # hash of the weights and the settings that change masks
    cases: int  # number of cases in the fit
    voxels: tuple[list[float], list[float]]  # isotonic regression: probabilities, and the share of lesion at each
    lesions: list[float] | None

    @classmethod
    def fit(
        cls, of: Mapping[str, Any], cases: Sequence[CaseProbabilities], lesions: Sequence[Mapping[str, Any]]
    ) -> Calibration:
        """Fit a calibration on validation cases: their probabilities and their rows of :func:`.case_lesions`."""
        from sklearn.isotonic import IsotonicRegression
        from sklearn.linear_model import LogisticRegression

        voxels, lesion, total = np.sum([case.histogram for case in cases], axis=0)
        some = voxels > 0
        curve = IsotonicRegression(y_min=0, y_max=1).fit(
            total[some] / voxels[some], lesion[some] / voxels[some], sample_weight=voxels[some]
        )
        drawn = [row for row in lesions if row["mask"] == "prediction"]
        real, model = [bool(row["touches"]) for row in drawn], None
        if len(set(real)) == 2:
            fitted = LogisticRegression().fit(_features(drawn), real)
            model = [*map(float, fitted.coef_[0]), float(fitted.intercept_[0])]
        points = (curve.X_thresholds_.astype(float).tolist(), curve.y_thresholds_.astype(float).tolist())
        return cls(of, len(cases), points, model)

    def __call__(self, probability: NDArray[Any]) -> NDArray[np.float32]:
        """Calibrated probabilities of voxels, same shape."""
        return np.interp(probability, *self.voxels).astype(np.float32)

    def real(self, lesions: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """The probability that each predicted lesion (a row of :func:`.lesions_of`) is real; None without a fit."""
        if self.lesions is None or not lesions:
            return [None] * len(lesions)
        return [float(p) for p in expit(_features(lesions) @ self.lesions[:2] + self.lesions[2])]

    @classmethod
    def read(cls, file: Path, of: Mapping[str, Any]) -> Calibration:
        """
        Raises:
            UserError: when the file is not a calibration, or belongs to other weights or settings.
        """
        remedy = "Fit one on validation cases: run evaluating --split val --calibration fit."
        try:
            found = cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{file} is not a calibration ({type(error).__name__}: {error}). {remedy}") from error
        if other := differences(found.of, json.loads(json.dumps(of))):
            name, (there, here) = next(iter(other.items()))
            raise UserError(f"{file} was fitted with {name} {there}, not {here}. {remedy}")
        return found


def calibration_file(checkpoints: Sequence[str | Path]) -> Path:
    """Path of the calibration of weights: ``model.calibration.json`` next to the first checkpoint, ``model.pt``."""
    return Path(checkpoints[0]).with_suffix(".calibration.json")


def _features(lesions: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    return np.array([[np.log(row["volume_ml"]), row["mean_probability"]] for row in lesions])


def write_thresholds(path: Path, cases: Sequence[CaseProbabilities], info: Mapping[str, Any]) -> None:
    """Write the best threshold as JSON for evaluations of other cases; ``info`` describes ``cases``."""
    threshold, dice = best_threshold(cases)
    means = np.mean([case.dice for case in cases], axis=0)
    curve = {f"{t:.2f}": round(float(mean), 6) for t, mean in zip(THRESHOLDS, means, strict=True)}
    found = {"threshold": threshold, "mean_dice": dice, "cases": len(cases), "of": dict(info), "mean_dice_at": curve}
    write_json(path, found, indent=1)


def read_threshold(path: str | Path) -> float:
    """The best threshold in a file of :func:`write_thresholds`.

    Raises:
        UserError: when the file has no threshold.
    """
    try:
        return float(json.loads(Path(path).read_text(encoding="utf-8"))["threshold"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--threshold_from {path} is not a thresholds.json of an evaluation ({type(error).__name__}: {error})."
        ) from error
