"""Axial slices in radiological convention: the patient's right on the left, anterior at the top."""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
MARGIN = 3  # voxels around the brain


def shown_box(shown: Mask) -> tuple[slice, slice]:
    """The extent of a mask along X and Y with a margin; the whole plane for an empty mask."""
    x, y = (np.flatnonzero(shown.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    if not len(x):
        return slice(None), slice(None)
    return slice(max(x[0] - MARGIN, 0), x[-1] + MARGIN + 1), slice(max(y[0] - MARGIN, 0), y[-1] + MARGIN + 1)


def upright(array: NDArray[Any], affine: NDArray[Any]) -> tuple[NDArray[Any], tuple[float, ...]]:
    """A volume (X, Y, Z) in the orientation closest to RAS, without resampling, and its voxel size in mm."""
    orientation = io_orientation(affine)
    sizes = voxel_sizes(affine)[np.argsort(orientation[:, 0])]
    return apply_orientation(array, orientation), tuple(float(size) for size in sizes)


def axial(volume: NDArray[Any], box: tuple[slice, slice], z: int) -> NDArray[Any]:
    """Rows from anterior to posterior, columns from the patient's right to left."""
    return volume[(*box, z)].T[::-1, ::-1]
