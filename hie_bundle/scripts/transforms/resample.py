"""Resampling every case to voxels of one size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, Resize
from nibabel.affines import voxel_sizes

from .pipeline import Eachd

__all__ = ["ResizeToSpacingd"]


class ResizeToSpacingd(Eachd, InvertibleTransform):
    """``monai.transforms.Resized`` to as many voxels as give them a certain size; ``Invertd`` undoes it.

    What is covered stays, so that the voxels are of that size up to rounding: for 100 of them within half a percent.
    The affine says what they are. Where voxels become larger, the volume is smoothed before (MONAI's
    ``anti_aliasing``), so that a lesion of a few voxels is not skipped.

    ``monai.transforms.Spacingd`` does not smooth, and fails in MONAI Label, whose items hold strings under names that
    it takes for metadata.

    Args:
        keys: images of shape (C, X, Y, Z) with their affine.
        spacing_mm: size of a voxel along each axis of the arrays, > 0.
        mode: of ``torch.nn.functional.interpolate``. Labels become shares of a voxel, from 0 to 1.

    Raises:
        ValueError: when a size is not positive; when an image does not carry its affine.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing_mm: Sequence[float],
        mode: str = "trilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if min(spacing_mm) <= 0:
            raise ValueError(f"spacing_mm must be positive, got {list(spacing_mm)}.")
        self.spacing_mm = np.asarray(spacing_mm, dtype=float)
        self.mode = mode

    def change(self, image: MetaTensor) -> torch.Tensor:
        if not isinstance(image, MetaTensor):
            raise ValueError("only an image with its affine can be resampled to a spacing.")
        extent = np.asarray(image.shape[1:]) * voxel_sizes(image.affine.cpu().numpy())
        return self._resize(np.maximum(1, np.rint(extent / self.spacing_mm)).astype(int).tolist())(image)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Back to the voxels before."""
        result, resize = dict(data), self._resize(-1)
        for key in self.key_iterator(result):
            result[key] = resize.inverse_transform(result[key], resize.pop_transform(result[key], check=False))
        return result

    def _resize(self, size: Sequence[int] | int) -> Resize:
        return Resize(size, mode=self.mode, anti_aliasing=True, dtype=torch.float32)
