"""A baseline that needs no deep network: a voxelwise logistic regression on ADC and ZADC, fitted on the training split.

In the 2023 challenge such a regression on ZADC alone reached Dice 0.56, above most networks.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from ..data.checks import Limits, item_files
from ..data.listfiles import as_native
from ..data.training_voxels import draw_training_voxels
from ..geometry.brain import brain_of
from ..io.files import write_atomically
from ..io.volumes import Volume, VolumeError
from .metrics import dice

__all__ = ["Regression", "VoxelRegression", "features"]

logger = logging.getLogger(__name__)

THRESHOLDS = np.arange(1, 20) / 20
Floats = NDArray[np.float64]


def features(adc: NDArray[Any], zadc: NDArray[Any], spacing_mm: Sequence[float], smoothing_mm: float) -> Floats:
    """What the regression sees of each voxel of the brain: ADC (1e-3 mm²/s), ZADC, and both smoothed.

    Args:
        adc: (X, Y, Z), 1e-6 mm²/s, 0 outside the brain.
        zadc: of the same shape.
        spacing_mm: voxel size along each axis.
        smoothing_mm: standard deviation of the Gaussian. Only the brain counts: its border is no dark rim.

    Returns:
        (voxels of the brain, 4).
    """
    brain = brain_of(adc)
    sigma = [smoothing_mm / step for step in spacing_mm]
    weight = gaussian_filter(brain.astype(np.float32), sigma, mode="constant")[brain]
    maps = [np.where(brain, values, 0).astype(np.float32) for values in (adc / 1000, zadc)]
    smooth = [gaussian_filter(values, sigma, mode="constant")[brain] / weight for values in maps]
    return np.stack([*(values[brain] for values in maps), *smooth], axis=1).astype(np.float64)


@dataclass(frozen=True)
class Regression:
    """A fitted regression.

    Attributes:
        weights: of the four :func:`features`.
        intercept: added to them.
        threshold: a voxel is lesion where the probability is above it; the best mean Dice of the training's voxels.
        smoothing_mm: see :func:`features`.
        cases: ids of those that it was fitted on.
    """

    weights: list[float]
    intercept: float
    threshold: float
    smoothing_mm: float
    cases: list[str]

    def predict(self, adc: NDArray[Any], zadc: NDArray[Any], spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
        """The mask, (X, Y, Z)."""
        mask = brain_of(adc)
        given = features(adc, zadc, spacing_mm, self.smoothing_mm)
        mask[mask] = expit(given @ self.weights + self.intercept) > self.threshold
        return mask


class VoxelRegression:
    """Fits the regression, once for a training split and its files.

    Args:
        items: of the training split; of prepared cases the files that they were made from are taken.
        file: JSON file that keeps what was fitted; taken again while the training's files and the options are the same.
        limits: of the sizes of files; the defaults if None.
        smoothing_mm: see :func:`features`.
        voxels: how many of each case's brain are drawn.
        seed: of the draw.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        file: str | Path,
        limits: Limits | None = None,
        smoothing_mm: float = 2.0,
        voxels: int = 5000,
        seed: int = 0,
    ) -> None:
        self.items = [as_native(item) for item in items]
        self.file = Path(file)
        self.limits = limits or Limits()
        self.smoothing_mm = smoothing_mm
        self.voxels = voxels
        self.seed = seed

    def fitted(self) -> tuple[Regression | None, str]:
        """The regression, and a sentence on it; without a usable training split None, and why."""
        if not self.items:
            return None, "none: there is no training split to fit it on"
        try:
            key = self._key()
            model = self._remembered(key) or self._fit(key)
        except (VolumeError, OSError, ValueError) as error:
            logger.warning("No voxelwise regression to compare with: %s", error)
            return None, f"none: {error}"
        return model, f"fitted on {len(model.cases)} training cases, threshold {model.threshold:.2f}"

    def _key(self) -> str:
        """Changes with the files, and with how they are used."""
        files = [Path(file) for item in self.items for file in item_files(item).values()]
        stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        options = (self.smoothing_mm, self.voxels, self.seed)
        return hashlib.sha256(json.dumps([stamps, options]).encode()).hexdigest()

    def _remembered(self, key: str) -> Regression | None:
        try:
            kept = json.loads(self.file.read_text())
            return Regression(**kept["regression"]) if kept["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _fit(self, key: str) -> Regression:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        given, lesion = zip(
            *draw_training_voxels(self.items, self.limits, self._describe, self.voxels, self.seed), strict=True
        )
        truth = np.concatenate(lesion)
        if truth.all() or not truth.any():
            raise ValueError("the training split has no lesion and healthy brain to tell apart")
        scaler = StandardScaler().fit(np.concatenate(given))
        model = LogisticRegression(max_iter=500).fit(scaler.transform(np.concatenate(given)), truth)
        weights = model.coef_[0] / scaler.scale_
        intercept = float(model.intercept_[0] - weights @ scaler.mean_)
        chance = [expit(one @ weights + intercept) for one in given]
        scores = [
            np.mean([dice(p > threshold, t) for p, t in zip(chance, lesion, strict=True)]) for threshold in THRESHOLDS
        ]
        fitted = Regression(
            [float(weight) for weight in weights], intercept, float(THRESHOLDS[int(np.argmax(scores))]),
            self.smoothing_mm, [str(item["case"]) for item in self.items],
        )  # fmt: skip
        write_atomically(self.file, json.dumps({"key": key, "regression": asdict(fitted)}, indent=1) + "\n")
        return fitted

    def _describe(self, adc: NDArray[Any], zadc: NDArray[Any], grid: Volume) -> Floats:
        return features(adc, zadc, tuple(grid.spacing_mm), self.smoothing_mm)
