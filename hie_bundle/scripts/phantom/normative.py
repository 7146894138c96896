"""Normative ADC atlas of simulated healthy newborns, and the Z map of a case against it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..scanner.inputs import z_map
from .acquisition import Scanner, fit_adc, signals
from .anatomy import BOX_CENTRE_MM, BOX_HALF_MM, FOLD_MM, FloatArray, RandomField, draw_subject, evaluate, sample

__all__ = ["ATLAS_STREAM", "Atlas", "build_atlas", "common_folding", "z_map"]

ATLAS_STREAM = 1  # first word of the population's seed sequences; cases have 0


@dataclass(frozen=True)
class Atlas:
    """Mean and standard deviation over healthy newborns on a canonical grid (X, Y, Z); 1e-6 mm²/s."""

    mean: FloatArray
    std: FloatArray
    step_mm: float
    brain: NDArray[np.bool_]  # inside more than half of the newborns' brains; beyond, the maps repeat their border

    def __call__(self, points_mm: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation at canonical ``points_mm`` (3, N)."""
        index = (points_mm - (BOX_CENTRE_MM - BOX_HALF_MM)[:, None]) / np.float32(self.step_mm)
        return sample(self.mean, index), sample(self.std, index)


def common_folding(seed: int) -> RandomField:
    """The folding that all newborns of a cohort share."""
    return RandomField(np.random.default_rng([ATLAS_STREAM, seed, 0]), FOLD_MM, band_pass=True)


@lru_cache(maxsize=2)
def build_atlas(seed: int, num_healthy: int = 13, step_mm: float = 1.5, registration_mm: float = 1.0) -> Atlas:
    """Simulate healthy newborns and take their mean and standard deviation in canonical space.

    The folding is that of the cases with the same seed; ``registration_mm`` is the standard deviation along each axis
    of a newborn's misalignment.
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


# Structure: position (canonical mm, right side) and mean ADC of term newborns as published; docs/phantom.md has the
# sources.
REGIONS: dict[str, tuple[tuple[float, float, float], str]] = {
    "frontal white matter": ((17, 34, 16), "to 1480"),
    "parietal white matter": ((19, -30, 26), "to 1480"),
    "occipital white matter": ((20, -44, 10), "to 1480"),
    "perirolandic white matter": ((20, -8, 30), "1150"),
    "caudate head": ((10, 18, 6), "1230-1260"),
    "lentiform nucleus": ((21, 3, 2), "1230-1260"),
    "thalamus": ((8, -12, 5), "1150-1170"),
    "posterior limb of the internal capsule": ((17, -7, 7), "1100-1180"),
    "splenium": ((2, -36, 7), ""),
    "hippocampus": ((22, -13, -11), ""),
    "cerebellar hemisphere": ((14, -38, -26), "1115"),
    "vermis": ((0, -40, -22), "859-1260"),
    "pons": ((0, -6, -24), ""),
}


def print_regions(seed: int = 0, num_healthy: int = 13, atlas_step_mm: float = 1.5, radius_mm: float = 3.0) -> None:
    """Print the atlas' mean ADC within ``radius_mm`` of a point of each structure, and the published values."""
    atlas = build_atlas(seed, num_healthy, atlas_step_mm)
    ball = np.stack(np.meshgrid(*[np.arange(-radius_mm, radius_mm + 0.5)] * 3)).reshape(3, -1)
    ball = ball[:, np.square(ball).sum(0) <= radius_mm**2].astype(np.float32)
    width = max(map(len, REGIONS))
    print(f"{'ADC of healthy newborns (1e-6 mm²/s)':<{width}}  {'here':>6}  published")
    for name, (centre, published) in REGIONS.items():
        sides = [ball + np.array([[sign * centre[0]], [centre[1]], [centre[2]]], np.float32) for sign in (-1, 1)]
        print(f"{name:<{width}}  {np.mean([atlas(points)[0].mean() for points in sides]):6.0f}  {published}".rstrip())
