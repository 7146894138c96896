"""Normative ADC atlas of simulated healthy newborns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .acquisition import Scanner, fit_adc, signals
from .anatomy import BOX_CENTRE_MM, BOX_HALF_MM, FOLD_MM, FloatArray, RandomField, draw_subject, evaluate, sample

ATLAS_STREAM = 1  # first word of the healthy newborns' seed sequences; cases have 0


@dataclass(frozen=True)
class Atlas:
    """Mean and standard deviation over healthy newborns on a canonical grid (X, Y, Z); 1e-6 mm²/s."""

    mean: FloatArray
    std: FloatArray
    step_mm: float
    brain: NDArray[np.bool_]  # in more than half of the brains; maps outside repeat the border

    def __call__(self, points_mm: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation at canonical ``points_mm`` (3, N)."""
        index = (points_mm - (BOX_CENTRE_MM - BOX_HALF_MM)[:, None]) / np.float32(self.step_mm)
        return sample(self.mean, index), sample(self.std, index)


def common_folding(seed: int) -> RandomField:
    """The common folding of all newborns of a cohort."""
    return RandomField(np.random.default_rng([ATLAS_STREAM, seed, 0]), FOLD_MM, band_pass=True)


@lru_cache(maxsize=2)
def build_atlas(seed: int, num_healthy: int = 13, step_mm: float = 1.5, registration_mm: float = 1.0) -> Atlas:
    """Mean and standard deviation of simulated healthy newborns in canonical space.

    Cases with the same seed have the same common folding. ``registration_mm`` is the standard deviation of the
    misalignment along each axis.
    """
    common = common_folding(seed)
    axes = [
        np.arange(c - h, c + h + step_mm / 2, step_mm, dtype=np.float32)
        for c, h in zip(BOX_CENTRE_MM, BOX_HALF_MM, strict=True)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    shape = grid.shape[1:]
    points = grid.reshape(3, -1)
    scanner = Scanner(
        b_value=1000, noise=1 / 60, directions=12, blur_mm=0.7, bias=0, motion_mm=0, dropout=np.zeros(0, int)
    )
    blur = np.array([scanner.blur_mm, scanner.blur_mm, 1.0]) / step_mm  # slices of 3 to 4 mm
    adc = np.empty((num_healthy, *shape), dtype=np.float32)
    inside = np.empty((num_healthy, *shape), dtype=bool)
    for number in range(num_healthy):
        rng = np.random.default_rng([ATLAS_STREAM, seed, 1 + number])
        subject = draw_subject(rng, common, patient=False)
        error = np.float32(registration_mm) * RandomField(rng, 12.0, channels=3)(points)
        tissue = evaluate(subject, points + error, edge_mm=step_mm)
        plain, weighted = (
            ndimage.gaussian_filter(signal.reshape(shape), blur, truncate=3)
            for signal in signals(scanner, tissue, tissue.adc)
        )
        adc[number] = fit_adc(scanner, plain, weighted, rng)
        inside[number] = tissue.brain_depth_mm.reshape(shape) > 0
    count = inside.sum(0)
    enough = count > num_healthy // 2
    total = np.maximum(count, 2)
    mean = np.where(inside, adc, 0).sum(0) / total
    std = np.sqrt((np.where(inside, adc - mean, 0) ** 2).sum(0) / (total - 1))
    nearest = tuple(ndimage.distance_transform_edt(~enough, return_distances=False, return_indices=True))
    return Atlas(mean[nearest].astype(np.float32), std[nearest].astype(np.float32), step_mm, enough)
