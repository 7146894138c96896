"""Normative ADC atlas of simulated healthy newborns, its regions, and its files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..io.files import whole_folder, write_json
from ..io.images import write
from .acquisition import Scanner, fit_adc, signals
from .anatomy import (
    BOX_CENTRE_MM,
    BOX_HALF_MM,
    FOLD_MM,
    FloatArray,
    RandomField,
    draw_subject,
    ellipsoid,
    evaluate,
    lobes,
    sample,
)

__all__ = ["REGIONS", "Atlas", "build_atlas", "common_folding", "region_at", "write_phantom_atlas"]

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
    """Mean and standard deviation of simulated healthy newborns in canonical space.

    The cases with the same seed have the same folding. ``registration_mm`` is the standard deviation of the
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


PAIRED = ("deep grey matter", "frontal lobe", "parietal lobe", "temporal lobe", "occipital lobe", "cerebellum")
# number in the label map: name
REGIONS = {
    **{number: f"left {name}" for number, name in enumerate(PAIRED, start=1)},
    **{number: f"right {name}" for number, name in enumerate(PAIRED, start=len(PAIRED) + 1)},
    2 * len(PAIRED) + 1: "brainstem",
}


def region_at(points_mm: FloatArray) -> NDArray[np.uint8]:
    """The region's number (:data:`REGIONS`) at each canonical position (3, N) in mm, RAS.

    Deep grey matter includes the internal capsule. Planes divide the lobes, approximately at the central sulcus and the
    Sylvian fissure.
    """
    x, y, z = points_mm
    mirrored = np.stack([np.abs(x), y, z])
    _, cerebellum, stem, _ = lobes(points_mm, mirrored)
    below_fissure = (z < -2 - 0.4 * (y - 4)) & (mirrored[0] > 14) & (y > -42)
    conditions = [
        (stem > np.maximum(cerebellum, -1)) & (z < -3), cerebellum > -1,
        ellipsoid(mirrored, (15, -3, 4), (12, 21, 12)) > 0, below_fissure, y > -6 - 0.2 * (z - 20), y > -42 - 0.2 * z,
    ]  # fmt: skip
    names = ["brainstem", "cerebellum", "deep grey matter", "temporal lobe", "frontal lobe", "parietal lobe"]
    numbers = [1 + PAIRED.index(name) if name in PAIRED else len(REGIONS) for name in names]
    found = np.select(conditions, numbers, 1 + PAIRED.index("occipital lobe"))
    return np.where((x > 0) & (found < len(REGIONS)), found + len(PAIRED), found).astype(np.uint8)


def write_phantom_atlas(output_dir: str | Path, seed: int = 0, num_healthy: int = 13, step_mm: float = 1.5) -> None:
    """Write ``mean.nii.gz`` and ``std.nii.gz`` (1e-6 mm²/s), ``regions.nii.gz`` and ``regions.json`` with the regions'
    names to a new folder."""
    atlas = build_atlas(seed, num_healthy, step_mm)
    affine = np.diag([step_mm, step_mm, step_mm, 1.0])
    affine[:3, 3] = BOX_CENTRE_MM - BOX_HALF_MM
    points = affine[:3, :3] @ np.indices(atlas.brain.shape).reshape(3, -1) + affine[:3, 3:]
    regions = region_at(points.astype(np.float32)).reshape(atlas.brain.shape)
    with whole_folder(output_dir, left=".png") as work:
        for name, values in (("mean", atlas.mean), ("std", atlas.std), ("regions", regions)):
            write(work / f"{name}.nii.gz", np.where(atlas.brain, values, 0).astype(values.dtype), affine)
        write_json(work / "regions.json", REGIONS, indent=1)
