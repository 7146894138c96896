"""``run phantom_atlas``: the simulator's normative atlas with regions, for ``zscore`` and ``segment --regions``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..io.files import whole_folder, write_json
from ..io.images import write
from .anatomy import BOX_CENTRE_MM, BOX_HALF_MM, FloatArray, callosal_roof, ellipsoid, lobes
from .normative import build_atlas

LAYERS = [f"{lobe} {layer}" for lobe in ("frontal", "parietal", "temporal") for layer in ("gyri", "deep white matter")]
PAIRED = ("deep grey matter", *LAYERS, "occipital lobe", "cerebellum")
# region names by number in the label map
REGIONS = {
    **{number: f"left {name}" for number, name in enumerate(PAIRED, start=1)},
    **{number: f"right {name}" for number, name in enumerate(PAIRED, start=len(PAIRED) + 1)},
    2 * len(PAIRED) + 1: "brainstem",
}
GYRI_MM = 10  # depth below the hull and the interhemispheric fissure


def region_at(points_mm: FloatArray) -> NDArray[np.uint8]:
    """Region number (:data:`REGIONS`) at each canonical position (3, N) in mm, RAS.

    Deep grey matter includes the internal capsule. Planes divide the lobes, approximately at the central sulcus and the
    Sylvian fissure. The gyri of a lobe are its outer 10 mm, both cortex and white matter, which an atlas cannot
    separate because folding differs between newborns. The occipital lobe is not divided by depth.
    """
    x, y, z = points_mm
    mirrored = np.stack([np.abs(x), y, z])
    cerebrum, cerebellum, stem, _ = lobes(points_mm, mirrored)
    below_fissure = (z < -2 - 0.4 * (y - 4)) & (mirrored[0] > 14) & (y > -42)
    fissure = np.hypot(x, np.where(np.abs(y + 2) < 40, np.maximum(callosal_roof(y) - z, 0), 0))
    deep = (np.minimum(cerebrum, fissure) > GYRI_MM).astype(int)
    conditions = [
        (stem > np.maximum(cerebellum, -1)) & (z < -3), cerebellum > -1,
        ellipsoid(mirrored, (15, -3, 4), (12, 21, 12)) > 0, below_fissure, y > -6 - 0.2 * (z - 20), y > -42 - 0.2 * z,
    ]  # fmt: skip
    names = ["", "cerebellum", "deep grey matter", "temporal gyri", "frontal gyri", "parietal gyri"]
    first = [1 + PAIRED.index(name) if name else len(REGIONS) for name in names]
    numbers = [number + deep * name.endswith("gyri") for number, name in zip(first, names, strict=True)]
    found = np.select(conditions, numbers, 1 + PAIRED.index("occipital lobe"))
    return np.where((x > 0) & (found < len(REGIONS)), found + len(PAIRED), found).astype(np.uint8)


def write_phantom_atlas(output_dir: str | Path, seed: int = 0, num_healthy: int = 13, step_mm: float = 1.5) -> None:
    """Write ``mean.nii.gz`` and ``std.nii.gz`` (1e-6 mm²/s), ``regions.nii.gz`` and ``regions.json`` (region names) to
    a new folder, atomically. ``step_mm`` is the voxel size.
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
