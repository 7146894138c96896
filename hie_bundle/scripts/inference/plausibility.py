"""Plausibility of a mask, from its input alone: where to look first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry.brain import are_normalised, brain_of
from ..io.volumes import Volume
from ..transforms.voxel_features import local_means

NOT_LOW, LOW, SIGMA_MM = -1.0, -2.0, 2.0  # ZADC thresholds (LOW for smoothed ZADC) and smoothing
# limits of a plausible mask; false alarm rates: docs/segment.md
MOST_NOT_LOW = 0.2  # share of the mask
MOST_LOW_OUTSIDE_ML, MOST_LOW_OUTSIDE = 2.0, 0.1  # volume, plus a share of the mask
LEAST_AGREEMENT = 0.5


@dataclass(frozen=True)
class Plausibility:
    """Plausibility of a mask, judged by its input."""

    not_low_ml: float | None  # volume of the mask with ZADC above −1; None without a Z map
    low_outside_ml: float | None  # brain volume outside the mask with smoothed ZADC below −2; None without a Z map
    agreement: float | None  # intersection over union of flipped and per-member masks; None for a single mask
    lesion_ml: float
    low_z_ml: float | None = None  # brain volume with ZADC below −2; None without a Z map

    @property
    def doubts(self) -> list[str]:
        """One phrase per doubt; none for a plausible mask."""
        found = []
        if self.not_low_ml and self.not_low_ml > MOST_NOT_LOW * self.lesion_ml:
            found.append(f"{_ml(self.not_low_ml)} marked where Z is not low")
        if self.low_outside_ml and self.low_outside_ml > MOST_LOW_OUTSIDE_ML + MOST_LOW_OUTSIDE * self.lesion_ml:
            found.append(f"{_ml(self.low_outside_ml)} of low Z not marked")
        if self.agreement is not None and self.agreement < LEAST_AGREEMENT:
            found.append(f"flipped predictions share {100 * self.agreement:.0f} % of their lesions")
        return found

    @property
    def line(self) -> str:
        """One-line summary."""
        return f"look: {'; '.join(self.doubts)}" if self.doubts else "plausible"

    @property
    def figures(self) -> dict[str, Any]:
        """Values for JSON and tables."""
        values = {
            "not_low_ml": self.not_low_ml, "low_outside_ml": self.low_outside_ml, "agreement": self.agreement,
            "low_z_ml": self.low_z_ml,
        }  # fmt: skip
        return {**{name: v if v is None else round(v, 4) for name, v in values.items()}, "plausibility": self.line}


def plausibility_of(
    mask: NDArray[Any], adc: Volume, zadc: NDArray[Any] | None, agreement: float | None
) -> Plausibility:
    """Compare a mask (X, Y, Z) of 0 and 1 with its ADC map and, if there is one, Z map of the same shape.

    ``agreement`` is from :class:`scripts.inference.inferers.EnsembleInferer`.
    """
    voxel_ml = float(np.prod(adc.spacing_mm)) / 1000
    lesion, brain = mask > 0, brain_of(adc.array)
    lesion_ml = float(lesion.sum()) * voxel_ml
    if zadc is None or np.isnan(zadc).all() or are_normalised(adc.array, zadc):
        return Plausibility(None, None, agreement, lesion_ml)
    (smoothed,) = local_means(np.nan_to_num(zadc)[None], brain, list(adc.spacing_mm), SIGMA_MM)
    not_low = float((zadc[lesion] > NOT_LOW).sum()) * voxel_ml
    low_outside = float(((smoothed < LOW) & ~lesion[brain]).sum()) * voxel_ml
    low_z = float((zadc[brain] < LOW).sum()) * voxel_ml
    return Plausibility(not_low, low_outside, agreement, lesion_ml, low_z)


def _ml(volume: float) -> str:
    return f"{volume:.1f} ml" if volume >= 0.1 else f"{volume:.2f} ml"
