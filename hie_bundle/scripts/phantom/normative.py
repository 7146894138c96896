"""Normative ADC atlas of simulated healthy newborns, and the Z map of a case against it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .anatomy import BOX_CENTRE_MM, BOX_HALF_MM, FloatArray, RandomField, draw_subject, evaluate, sample

ATLAS_STREAM = 1  # first word of the seed sequences that draw the population, 0 being the cases


@dataclass(frozen=True)
class Atlas:
    """Mean and standard deviation over healthy newborns on a canonical grid (X, Y, Z); 1e-6 mm²/s."""

    mean: FloatArray
    std: FloatArray
    step_mm: float

    def __call__(self, points_mm: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation at canonical ``points_mm`` (3, N)."""
        index = (points_mm - (BOX_CENTRE_MM - BOX_HALF_MM)[:, None]) / np.float32(self.step_mm)
        return sample(self.mean, index), sample(self.std, index)


def common_folding(seed: int) -> RandomField:
    """The folding that all newborns of a cohort share."""
    return RandomField(np.random.default_rng([ATLAS_STREAM, seed, 0]), 3.0, band_pass=True)


@lru_cache(maxsize=2)
def build_atlas(seed: int, num_healthy: int = 13, step_mm: float = 1.5, registration_mm: float = 1.2) -> Atlas:
    """Simulate ``num_healthy`` newborns, aligned to the canonical space up to ``registration_mm`` along each axis."""
    common = common_folding(seed)
    axes = [
        np.arange(c - h, c + h + step_mm / 2, step_mm, dtype=np.float32)
        for c, h in zip(BOX_CENTRE_MM, BOX_HALF_MM, strict=True)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    shape = grid.shape[1:]
    points = grid.reshape(3, -1)
    stack = np.empty((num_healthy, *shape), dtype=np.float32)
    for number in range(num_healthy):
        rng = np.random.default_rng([ATLAS_STREAM, seed, 1 + number])
        subject = draw_subject(rng, common)
        error = np.float32(registration_mm) * RandomField(rng, 12.0, channels=3)(points)
        tissue = evaluate(subject, points + error, edge_mm=step_mm)
        adc = np.where(tissue.brain_depth_mm > 0, tissue.adc, np.nan).reshape(shape)
        stack[number] = adc
    present = np.isfinite(stack).sum(0)
    enough = present >= num_healthy // 2 + 1
    blurred = np.stack([blur(volume, step_mm) for volume in stack])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(enough, np.nansum(blurred, 0) / present, np.nan)
        std = np.where(enough, np.sqrt(np.nansum((blurred - mean) ** 2, 0) / (present - 1)), np.nan)
    # Beyond the healthy brains the atlas repeats its border.
    nearest = ndimage.distance_transform_edt(~enough, return_distances=False, return_indices=True)
    return Atlas(mean[tuple(nearest)].astype(np.float32), std[tuple(nearest)].astype(np.float32), step_mm)


def blur(volume: FloatArray, step_mm: float, in_plane_mm: float = 0.8, through_plane_mm: float = 1.2) -> FloatArray:
    """Gaussian blur of an acquisition of thick slices; NaN is background and takes no part."""
    inside = np.isfinite(volume)
    sigma = np.array([in_plane_mm, in_plane_mm, through_plane_mm]) / step_mm
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma, truncate=3)
    total = ndimage.gaussian_filter(np.where(inside, volume, 0), sigma, truncate=3)
    return np.where(inside, total / np.maximum(weight, 1e-6), np.nan).astype(np.float32)


def z_map(
    adc: FloatArray,
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
