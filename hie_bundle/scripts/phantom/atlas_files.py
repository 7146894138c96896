"""``run phantom_atlas``: the simulator's normative atlas with regions, for ``zscore`` and ``segment --regions``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..io.files import whole_folder, write_json
from ..io.images import write
from .anatomy import BOX_CENTRE_MM, BOX_HALF_MM, FloatArray, ellipsoid, lobes
from .normative import build_atlas

__all__ = ["REGIONS", "region_at", "write_phantom_atlas"]

PAIRED = ("deep grey matter", "frontal lobe", "parietal lobe", "temporal lobe", "occipital lobe", "cerebellum")
# number in the label map: name
REGIONS = {
    **{number: f"left {name}" for number, name in enumerate(PAIRED, start=1)},
    **{number: f"right {name}" for number, name in enumerate(PAIRED, start=len(PAIRED) + 1)},
    2 * len(PAIRED) + 1: "brainstem",
}


def region_at(points_mm: FloatArray) -> NDArray[np.uint8]:
    """The number of the region (:data:`REGIONS`) at each canonical position (3, N) in mm, RAS; of a brain's hull.

    Deep grey matter holds basal ganglia, thalami and the internal capsule between them; a lobe its cortex and white
    matter. Planes divide the lobes: the front by the central sulcus, the temporal lobe by the Sylvian fissure.
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
    """Write ``mean.nii.gz`` and ``std.nii.gz`` (1e-6 mm²/s), ``regions.nii.gz`` and the regions' names in
    ``regions.json``; all or none.

    Args:
        output_dir: must not be there yet.
        seed: of the population.
        num_healthy: number of newborns.
        step_mm: voxel size.
    """
    atlas = build_atlas(seed, num_healthy, step_mm)
    affine = np.diag([step_mm, step_mm, step_mm, 1.0])
    affine[:3, 3] = BOX_CENTRE_MM - BOX_HALF_MM
    points = affine[:3, :3] @ np.indices(atlas.brain.shape).reshape(3, -1) + affine[:3, 3:]
    regions = region_at(points.astype(np.float32)).reshape(atlas.brain.shape)
    with whole_folder(output_dir, left=".png") as work:
        for name, values in (("mean", atlas.mean), ("std", atlas.std), ("regions", regions)):
            write(work / f"{name}.nii.gz", np.where(atlas.brain, values, 0).astype(values.dtype), affine)
        write_json(work / "regions.json", REGIONS, indent=1)
