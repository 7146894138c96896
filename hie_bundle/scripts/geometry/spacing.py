"""Voxel size of an image in mm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes

__all__ = ["spacing_of"]


def spacing_of(tensor: torch.Tensor, item: int = 0) -> tuple[float, ...]:
    """Voxel size in mm along each axis of an image (C, X, Y, Z), or of one item of a batch (B, C, X, Y, Z).

    The size stated in the file, if it equals that of the affine up to rounding: an affine may give
    2.0000000000000004 mm, and surfaces 2 mm apart would exceed a tolerance of 2 mm.

    Raises:
        ValueError: for a tensor without an affine.
    """
    if not isinstance(tensor, MetaTensor):
        raise ValueError("there is no affine to take the voxel size from; give spacing_mm.")
    affine = tensor.affine.cpu().numpy()
    of_affine = voxel_sizes(affine if affine.ndim == 2 else affine[item])
    stated = _stated_sizes(tensor.meta)
    same = len(stated) == len(of_affine) and np.allclose(stated, of_affine, rtol=1e-5, atol=0)
    return tuple(float(size) for size in (stated if same else of_affine))


def _stated_sizes(meta: Mapping[str, Any]) -> list[float]:
    """The voxel sizes in the header of an image's file; none without a file."""
    for key, sizes in (("spacing", slice(0, 3)), ("pixdim", slice(1, 4))):  # ITK's readers; nibabel's
        if key in meta:
            values = np.asarray(meta[key], dtype=np.float64)
            if values.ndim == 1:  # not of a whole batch
                return [float(value) for value in values[sizes]]
    return []
