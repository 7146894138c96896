"""Whether the two maps of a case belong together, by their values: ZADC falls where ADC falls."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pair_problem"]

INVERTED_BELOW = -0.15  # correlation in the brain; ZADC is (ADC - mean) / SD, so that it is positive where all is well
MIRRORED_FROM = 0.4  # of one map with the other mirrored, to call it mirrored ...
MIRRORED_BY = 0.15  # ... and by how much that exceeds the correlation as the maps are
ENOUGH_VOXELS = 1000
BACKGROUND, NO_BACKGROUND = 0.2, 0.02  # share of the volume at its lowest value


def pair_problem(adc: NDArray[Any], zadc: NDArray[Any], brain: NDArray[np.bool_], normalised: bool) -> str:
    """What is wrong with a ZADC map beside its ADC map; empty if nothing is seen.

    The limits are wide: a pair is called wrong only where it can hardly be right. Maps with too little in common to
    tell are let pass.

    Args:
        adc: (X, Y, Z).
        zadc: the same shape.
        brain: where the brain is, by ``adc``.
        normalised: both have been normalised, so that their ranges say nothing.
    """
    if normalised and _lowest_share(adc) < NO_BACKGROUND and _lowest_share(zadc) > BACKGROUND:
        return "and the ADC map are swapped: the background is the lowest value here, as it is in ADC, and not there"
    if brain.sum() < ENOUGH_VOXELS:
        return ""
    direct = _correlation(adc, zadc, brain)
    if direct < INVERTED_BELOW:
        return f"rises where ADC falls (correlation in the brain {direct:.2f}): is its sign inverted?"
    for axis, name in enumerate(("first", "second", "third")):
        mirrored = _correlation(adc, np.flip(zadc, axis), brain)
        if mirrored > MIRRORED_FROM and mirrored > direct + MIRRORED_BY:
            return (
                f"is mirrored along the {name} axis: it goes with ADC better that way (correlation in the brain "
                f"{mirrored:.2f}, as it is {direct:.2f})"
            )
    return ""


def _lowest_share(array: NDArray[Any]) -> float:
    return float((array <= array.min() + 1e-6).mean())


def _correlation(first: NDArray[Any], second: NDArray[Any], where: NDArray[np.bool_]) -> float:
    """Pearson's; 0 where one is constant."""
    a, b = first[where].astype(np.float64), second[where].astype(np.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0
