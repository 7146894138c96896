"""The voxel size of an image that a network or a metric sees, in mm."""

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

    The file's own voxel size where the affine says the same up to rounding: from the affine a size of 2 mm may come as
    2.0000000000000004, and surfaces exactly 2 mm apart would be beyond a tolerance of 2 mm.

    Raises:
        ValueError: when the tensor carries no affine, being no MetaTensor.
    """
    if not isinstance(tensor, MetaTensor):
        raise ValueError("there is no affine to take the voxel size from; give spacing_mm.")
    affine = tensor.affine.cpu().numpy()
    of_affine = voxel_sizes(affine if affine.ndim == 2 else affine[item])
    stated = _stated_sizes(tensor.meta)
    same = len(stated) == len(of_affine) and np.allclose(stated, of_affine, rtol=1e-5, atol=0)
    return tuple(float(size) for size in (stated if same else of_affine))


def _stated_sizes(meta: Mapping[str, Any]) -> list[float]:
    """The voxel sizes in the header of the file that an image was loaded from; none if it does not come from one."""
    for key, sizes in (("spacing", slice(0, 3)), ("pixdim", slice(1, 4))):  # ITK's readers; nibabel's
        if key in meta:
            values = np.asarray(meta[key], dtype=np.float64)
            if values.ndim == 1:  # not of a whole batch
                return [float(value) for value in values[sizes]]
    return []
