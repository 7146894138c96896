"""Voxel size of an image in mm."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes


def spacing_of(tensor: torch.Tensor, item: int = 0) -> tuple[float, ...]:
    """Voxel size in mm along each axis of an image (C, X, Y, Z), or of one item of a batch (B, C, X, Y, Z).

    Return the size stated in the file if the affine agrees up to rounding: an affine may give 2.0000000000000004 mm,
    and surfaces 2 mm apart would exceed a tolerance of 2 mm.

    Raises:
        ValueError: for a tensor without an affine.
    """
    if not isinstance(tensor, MetaTensor):
        raise ValueError("the tensor has no affine for the voxel size; give spacing_mm.")
    affine = tensor.affine.cpu().numpy()
    of_affine = voxel_sizes(affine if affine.ndim == 2 else affine[item])
    meta = tensor.meta  # from ITK's readers or nibabel's
    stated = np.asarray(meta["spacing"][:3] if "spacing" in meta else meta.get("pixdim", ())[1:4], dtype=np.float64)
    same = stated.shape == of_affine.shape and np.allclose(stated, of_affine, rtol=1e-5, atol=0)
    return tuple(float(size) for size in (stated if same else of_affine))
