"""Z map of an ADC map against a normative mean and standard deviation on the same grid, as published for BONBID-HIE."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["z_map"]

FloatArray = NDArray[np.floating[Any]]


def z_map(
    adc: NDArray[Any],
    brain: NDArray[np.bool_],
    mean: FloatArray,
    std: FloatArray,
    spacing_mm: NDArray[np.floating],
    smoothing_mm: float = 2.0,
    clip: float = 10.0,
    least_std: float = 20.0,
) -> FloatArray:
    """Z-scored ADC: (adc - mean) / std, smoothed by a Gaussian of full width ``smoothing_mm``, clipped at ±``clip``.

    Args:
        adc: ADC map (X, Y, Z), 1e-6 mm²/s.
        brain: skull-strip mask; the result is 0 outside, and smoothing does not reach across its border.
        mean: normative mean on the same grid.
        std: normative standard deviation on the same grid, raised to ``least_std`` where smaller.
        spacing_mm: voxel size (3,).
        smoothing_mm: full width at half maximum.
        clip: bound.
        least_std: 1e-6 mm²/s.
    """
    z = np.where(brain, (adc - mean) / np.maximum(std, np.float32(least_std)), 0).astype(np.float32)
    sigma = smoothing_mm / np.sqrt(8 * np.log(2)) / np.asarray(spacing_mm)
    weight = ndimage.gaussian_filter(brain.astype(np.float32), sigma, truncate=3)
    smooth = ndimage.gaussian_filter(z, sigma, truncate=3) / np.maximum(weight, 1e-6)
    return np.where(brain, np.clip(smooth, -clip, clip), 0).astype(np.float32)
