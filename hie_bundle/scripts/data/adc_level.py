"""Level of an ADC map without a Z map: scanners and protocols scale ADC by up to 15 %."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from ..geometry.brain import brain_of

FLUID, TISSUE = 2800.0, 1290.0  # 1e-6 mm²/s, newborns at correct scale: tests/benchmarks/adc_level.py
TISSUE_RANGE = (0.35, 0.75)  # uninjured tissue of newborns, relative to fluid
PLAUSIBLE = (0.15, 0.6)  # tissue / fluid; outside this range the map lacks fluid or brain
OLD_OR_INJURED = 0.34  # tissue / fluid; newborns have 0.46, adults 0.25
NEWBORN_ML = 800.0
UNCHANGED = 0.05  # smaller corrections are within the spread of healthy newborns


@dataclass(frozen=True)
class AdcLevel:
    """Scale of an ADC map, estimated from its values."""

    fluid: float  # 99.9th percentile in the brain, 1e-6 mm²/s
    tissue: float  # median of uninjured tissue, 1e-6 mm²/s
    factor: float  # correction factor to a newborn's level; 1 if not needed
    note: str  # description for users


def adc_level(adc: NDArray[Any], spacing_mm: ArrayLike) -> AdcLevel:
    """Estimate levels of cerebrospinal fluid and tissue, and a common factor, in a skull-stripped ADC map (X, Y, Z).

    Injury changes the tissue, wide or narrow spaces change the fluid; a wrong scale changes both. Therefore the scale
    is the median of 1 and both ratios to a newborn's level: it is 1 unless both deviate in the same direction. A brain
    above 800 ml is not a newborn's; for it only the tissue counts.
    """
    spacing, brain = np.asarray(spacing_mm, dtype=float), brain_of(adc)
    if not brain.any():
        return AdcLevel(0.0, 0.0, 1.0, "")
    across = int(np.argmax(spacing))
    smooth = ndimage.median_filter(np.asarray(adc, np.float32), [1 if axis == across else 3 for axis in range(3)])
    values = smooth[brain]
    fluid = float(np.percentile(values, 99.9))
    low, high = TISSUE_RANGE[0] * fluid, TISSUE_RANGE[1] * fluid
    every = float(np.median(values[values < high])) if (values < high).any() else 0.0
    inside = (values > low) & (values < high)
    old = float(brain.sum() * spacing.prod()) / 1000 > NEWBORN_ML
    tissue = float(np.median(values[inside])) if inside.any() and not old else every
    if not (fluid > 0 and PLAUSIBLE[0] <= every / fluid and tissue / fluid <= PLAUSIBLE[1]):
        return AdcLevel(fluid, tissue, 1.0, "")
    scale = tissue / TISSUE if old else float(np.median([1.0, fluid / FLUID, tissue / TISSUE]))
    factor = 1.0 if abs(scale - 1) < UNCHANGED else 1 / scale
    found = f"fluid {fluid:.0f}, tissue {tissue:.0f} (newborns: {FLUID:.0f}, {TISSUE:.0f} · 1e-6 mm²/s)"
    notes = [] if factor == 1 else [f"ADC level: {found}; segmented after multiplication by {factor:.2f}"]
    if every < OLD_OR_INJURED * fluid:
        notes.append(
            f"tissue has {every / fluid:.0%} of the fluid's ADC (newborns: {TISSUE / FLUID:.0%}): an adult's brain, or "
            "extensive injury"
        )
    return AdcLevel(fluid, tissue, factor, ". ".join(notes))
