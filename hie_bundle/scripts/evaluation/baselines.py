"""Baselines without a deep network: thresholds on Z, logistic regression, boosting.

A network is useful only if it beats the best of them. In the 2023 challenge a voxelwise regression on
ZADC alone reached Dice 0.56, above most networks; the challenge's own baseline, ``ZADC < -2``, is easy to beat.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy.special import expit

from ..data.checks import Limits
from ..data.layout import as_native, item_files
from ..data.training_voxels import draw_training_voxels, read_maps
from ..geometry.brain import brain_of
from ..io.files import read_json, write_json
from ..io.volumes import Volume, VolumeError
from ..runtime.errors import UserError
from ..transforms.masks import SaveMaskd
from ..transforms.voxel_features import features, local_means
from .calibration import dice_curve

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingClassifier

logger = logging.getLogger(__name__)

VOXELS, FOLDS, SEED = 5000, 3, 0  # sampled voxels per brain; cross-validation folds; random seed
PROBABILITIES = np.arange(1, 20) / 20
Z_THRESHOLDS = np.arange(-60, 1) / 10
SMOOTHING_MM = 2.0
UNTUNED_SMOOTHED = -2.0  # threshold of the smoothed map without a training split
ALL_VOXELS = 1 << 62
Floats = NDArray[np.float64]


def local_features(adc: NDArray[Any], zadc: NDArray[Any], spacing_mm: Sequence[float]) -> Floats:
    """ADC (1e-3 mm²/s) and ZADC of each brain voxel, raw and smoothed within the brain by 2 mm: (voxels, 4).

    ``adc`` is in 1e-6 mm²/s, 0 outside the brain; both maps have shape (X, Y, Z).
    """
    brain = brain_of(adc)
    maps = np.where(brain, np.stack([adc / 1000, zadc]), 0).astype(np.float32)
    means = local_means(maps, brain, spacing_mm, SMOOTHING_MM)
    return np.concatenate([maps[:, brain], means]).T.astype(np.float64)


@dataclass(frozen=True)
class FittedBaselines:
    """Baselines fitted on the training cases, or untuned without a usable training split."""

    cases: list[str]  # ids of the training cases
    problem: str = ""  # why the training split cannot be used; empty if it can
    threshold: float | None = None  # ZADC threshold with the best mean Dice on the training cases
    smoothed: float = UNTUNED_SMOOTHED  # the same for ZADC smoothed by 2 mm within the brain
    weights: list[float] | None = None  # logistic regression coefficients of the four `local_features`
    intercept: float = 0.0  # of the regression
    probability: float = 0.5  # operating point of the regression
    challenge: float = -2.0  # threshold of the challenge's baseline

    def masks(self, adc: NDArray[Any], zadc: NDArray[Any], spacing_mm: Sequence[float]) -> dict[str, NDArray[np.bool_]]:
        """Masks of a case, (X, Y, Z), by the column of their Dice."""
        brain = brain_of(adc)
        given = local_features(adc, zadc, spacing_mm)
        found = {"baseline_dice": zadc[brain] < self.challenge}
        if self.threshold is not None:
            found["threshold_dice"] = zadc[brain] < self.threshold
        found["smoothed_dice"] = given[:, 3] < self.smoothed
        if self.weights is not None:
            found["regression_dice"] = expit(given @ self.weights + self.intercept) > self.probability
        masks = {name: np.zeros(brain.shape, bool) for name in found}
        for name, lesion in found.items():
            masks[name][brain] = lesion
        return masks

    @property
    def labels(self) -> dict[str, str]:
        """Short names by column, with the thresholds."""
        return {
            "baseline_dice": f"Z < {self.challenge:g}",
            "threshold_dice": f"Z < {self.threshold:g} (tuned)" if self.threshold is not None else "",
            "smoothed_dice": f"Z, 2 mm < {self.smoothed:g}" + (" (tuned)" if self.cases else ""),
            "regression_dice": "regression",
        }

    def describe(self) -> str:
        """One sentence on the fit."""
        if not self.cases:
            return f"not fitted ({self.problem}); Z smoothed by 2 mm is thresholded at {self.smoothed:g}"
        return (
            f"fitted on {len(self.cases)} training cases: Z < {self.threshold:g}, Z smoothed by 2 mm < "
            f"{self.smoothed:g}, regression above {self.probability:.2f}"
        )


@dataclass
class Baselines:
    """Fit the baselines once for a training split; prepared cases are read from their original files."""

    items: Sequence[Mapping[str, Any]] = ()  # labelled training cases
    file: str | Path | None = None  # JSON cache of the fit, reused while files and options are the same
    limits: Limits | None = None  # on file sizes
    challenge: float = -2.0  # threshold of the challenge's baseline on ZADC

    def fitted(self) -> FittedBaselines:
        """The fitted baselines; untuned ones without a usable training split."""
        if not self.items:
            return FittedBaselines([], "there is no training split", challenge=self.challenge)
        try:
            files = [Path(file) for item in self.items for file in item_files(as_native(item)).values()]
            stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            state = json.dumps([stamps, (self.challenge, VOXELS, SEED)])
            key = hashlib.sha256(state.encode()).hexdigest()
            return self._kept(key) or self._fit(key)
        except (VolumeError, OSError, ValueError) as error:
            logger.warning("The baselines cannot be fitted: %s", error)
            return FittedBaselines([], str(error), challenge=self.challenge)

    def _kept(self, key: str) -> FittedBaselines | None:
        kept = read_json(self.file) if self.file else {}
        with suppress(KeyError, TypeError):
            if kept["key"] == key:
                return FittedBaselines(**kept["baselines"])
        return None

    def _fit(self, key: str) -> FittedBaselines:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        def described(adc: NDArray[Any], zadc: NDArray[Any], grid: Volume) -> Floats:
            return local_features(adc, zadc, tuple(grid.spacing_mm))

        drawn, curves = [], []
        # thresholds use all voxels; their order is random, so the first VOXELS are a random sample
        for case, truth in draw_training_voxels(self.items, self.limits or Limits(), described, ALL_VOXELS, SEED):
            curves.append([dice_curve(-case[:, column], truth, -Z_THRESHOLDS) for column in (1, 3)])
            drawn.append((case[:VOXELS].copy(), truth[:VOXELS].copy()))
        given, truth = _together(drawn)
        scaler = StandardScaler().fit(given)
        model = LogisticRegression(max_iter=500).fit(scaler.transform(given), truth)
        weights = model.coef_[0] / scaler.scale_
        intercept = float(model.intercept_[0] - weights @ scaler.mean_)
        raw, smoothed = np.mean(curves, axis=0).argmax(axis=1)
        fitted = FittedBaselines(
            cases=[str(item["case"]) for item in self.items],
            threshold=float(Z_THRESHOLDS[raw]),
            smoothed=float(Z_THRESHOLDS[smoothed]),
            weights=weights.tolist(),
            intercept=intercept,
            probability=_operating_point((expit(one @ weights + intercept), lesion) for one, lesion in drawn),
            challenge=self.challenge,
        )
        if self.file:
            write_json(self.file, {"key": key, "baselines": asdict(fitted)}, indent=1)
        return fitted


@dataclass(frozen=True)
class Boosting:
    """Gradient boosting on voxelwise :func:`.features`; lesion is a probability above ``threshold``."""

    model: HistGradientBoostingClassifier
    threshold: float

    def predict(self, adc: NDArray[Any], zadc: NDArray[Any], grid: Volume) -> NDArray[np.bool_]:
        """The mask, (X, Y, Z)."""
        mask = brain_of(adc)
        mask[mask] = self.model.predict_proba(features(adc, zadc, grid))[:, 1] > self.threshold
        return mask


def fit_boosting(items: Sequence[Mapping[str, Any]], limits: Limits | None = None, trees: int = 150) -> Boosting:
    """Fit gradient boosting on labelled cases, with the operating point chosen by cross-validation over the cases.

    Raises:
        UserError: with fewer than three cases, an unusable case, or no lesion in any case.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict

    if len(items) < FOLDS:
        raise UserError(
            f"Boosting needs at least {FOLDS} training cases to choose its threshold; there are {len(items)}."
        )
    try:
        drawn = list(draw_training_voxels(items, limits or Limits(), features, VOXELS, SEED))
        given, truth = _together(drawn)
    except (VolumeError, OSError, ValueError) as error:
        raise UserError(f"Boosting cannot be fitted: {error}") from error
    model = HistGradientBoostingClassifier(max_iter=trees, early_stopping=False, random_state=SEED)
    cases = np.repeat(np.arange(len(drawn)), [len(lesion) for _, lesion in drawn])
    held_out = cross_val_predict(model, given, truth, groups=cases, cv=GroupKFold(FOLDS), method="predict_proba")
    threshold = _operating_point((held_out[cases == n, 1], lesion) for n, (_, lesion) in enumerate(drawn))
    logger.info("Boosting: threshold %.2f, chosen by cross-validation", threshold)
    return Boosting(model.fit(given, truth), threshold)


def segment_split(
    training: Sequence[Mapping[str, Any]],
    items: Sequence[Mapping[str, Any]],
    output_dir: str | Path,
    limits: Limits | None = None,
) -> None:
    """Fit boosting on the cases ``training`` and write the masks of ``items``, as ``<case>_lesion.nii.gz``.

    Raises:
        UserError: see :func:`fit_boosting`; and when a case has no Z map.
    """
    limits = limits or Limits()
    fitted = fit_boosting(training, limits)
    save = SaveMaskd("mask", output_dir, print_log=False)
    for item in map(as_native, items):
        (adc, zadc), grid = read_maps(item, limits)
        if np.isnan(zadc).all():
            raise UserError(f"{item['case']} has no ZADC map, which boosting needs.")
        mask = torch.as_tensor(fitted.predict(adc, zadc, grid)[None])
        save({"case": item["case"], "mask": MetaTensor(mask, affine=torch.as_tensor(grid.affine))})


def _together(drawn: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Concatenate features and truth of all cases; ValueError without both lesion and healthy brain."""
    truth = np.concatenate([lesion for _, lesion in drawn])
    if truth.all() or not truth.any():
        raise ValueError("the training split has no lesion and healthy brain to tell apart")
    return np.concatenate([given for given, _ in drawn]), truth


def _operating_point(cases: Iterable[tuple[NDArray[Any], NDArray[np.bool_]]]) -> float:
    """The threshold with the best mean Dice over ``cases`` (probabilities and truth of each)."""
    curves = [dice_curve(given, lesion, PROBABILITIES) for given, lesion in cases]
    return float(PROBABILITIES[np.mean(curves, axis=0).argmax()])
