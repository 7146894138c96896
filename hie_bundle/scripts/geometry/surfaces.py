"""Distances between the surfaces of two masks on one grid.

Surface elements are border voxels (MONAI) or surfels: grid corners with a surface area
(google-deepmind/surface-distance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree
from surface_distance.lookup_tables import (
    ENCODE_NEIGHBOURHOOD_3D_KERNEL,
    create_table_neighbour_code_to_surface_area,
)

Mask = NDArray[np.bool_]


def cropped(pred: Mask, truth: Mask, spacing_mm: Sequence[float]) -> tuple[Mask, Mask]:
    """Crop two masks to the box around both, with a border of background.

    Raises:
        ValueError: when the masks are not 3D and of one shape, or a spacing is not positive.
    """
    if pred.shape != truth.shape or pred.ndim != 3:
        raise ValueError(f"the masks must be three-dimensional and of one shape, got {pred.shape} and {truth.shape}.")
    if len(spacing_mm) != 3 or not all(0 < s < math.inf for s in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive numbers, not {tuple(spacing_mm)}.")
    boxes = find_objects((pred | truth).view(np.uint8))
    if not boxes:
        return pred[:1, :1, :1], truth[:1, :1, :1]
    return np.pad(pred[boxes[0]], 1), np.pad(truth[boxes[0]], 1)


def surfel_distances(pred: Mask, truth: Mask, spacing_mm: tuple[float, ...]) -> dict[str, NDArray[Any]]:
    """``surface_distance.compute_surface_distances``, from the surfels alone instead of distance maps.

    Masks are bool, (X, Y, Z), not empty; ``spacing_mm`` is the voxel size along each axis.

    Returns:
        ``distances_gt_to_pred`` and ``distances_pred_to_gt``, in mm and ascending; ``surfel_areas_gt`` and
        ``surfel_areas_pred`` in mm².
    """
    surfels = {"gt": _surfels(truth, spacing_mm), "pred": _surfels(pred, spacing_mm)}
    surfaces: dict[str, NDArray[Any]] = {}
    for here, there in (("gt", "pred"), ("pred", "gt")):
        (points, areas), (others, _) = surfels[here], surfels[there]
        nearest = _tree(others, spacing_mm).query(points * spacing_mm, workers=torch.get_num_threads())[1]
        # computed from integer offsets, as in a distance transform: a distance equal to the tolerance stays exact
        distances = np.sqrt((((points - others[nearest]) * spacing_mm) ** 2).sum(axis=1))
        order = np.argsort(distances)
        surfaces[f"distances_{here}_to_{there}"] = distances[order]
        surfaces[f"surfel_areas_{here}"] = areas[order]
    return surfaces


def border_distances(
    pred: Mask, truth: Mask, spacing_mm: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances from each border voxel of the prediction to the nearest of the truth, and back, as in MONAI.

    Masks are bool, (X, Y, Z), not empty; a ``spacing_mm`` of ones gives distances in voxels.
    """
    borders = [np.argwhere(mask & ~binary_erosion(mask)) for mask in (pred, truth)]
    there, back = (
        _tree(others, spacing_mm).query(here * spacing_mm, workers=torch.get_num_threads())[0].astype(np.float32)
        for here, others in (borders, borders[::-1])
    )
    return there, back


def share_within(directed: Sequence[NDArray[np.float32]], tolerance: float) -> float:
    """Share of border voxels within ``tolerance`` of the other mask's border."""
    return sum(int((distances <= tolerance).sum()) for distances in directed) / sum(map(len, directed))


def _tree(points: NDArray[np.int64], spacing_mm: tuple[float, ...]) -> KDTree:
    # for grid points an unbalanced tree is built in half the time, and queries are as fast
    return KDTree(points * spacing_mm, balanced_tree=False, compact_nodes=False)


def _surfels(mask: Mask, spacing_mm: tuple[float, ...]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Grid corners through which the surface passes, (N, 3) in steps of the grid, and the area in mm² at each, (N,)."""
    padded = np.pad(mask, 1).view(np.uint8)
    corners = tuple(n + 1 for n in mask.shape)
    code = np.zeros(corners, np.uint8)  # which of the eight voxels around a corner belong to the mask
    for offset in np.ndindex(2, 2, 2):
        around = tuple(slice(o, o + n) for o, n in zip(offset, corners, strict=True))
        code += padded[around] * np.uint8(ENCODE_NEIGHBOURHOOD_3D_KERNEL[offset])
    surface = (code != 0) & (code != 255)
    return np.argwhere(surface), _surfel_areas(spacing_mm)[code[surface]]


@lru_cache(maxsize=8)
def _surfel_areas(spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    return create_table_neighbour_code_to_surface_area(spacing_mm)
