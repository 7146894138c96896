"""Resampling to a voxel size or to the grid of another image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, ResampleToMatch, Resize
from nibabel.affines import voxel_sizes

from .pipeline import EachImaged


def on_grid_of(target: MetaTensor, image: MetaTensor, mode: str, padding_mode: str) -> MetaTensor:
    """Resample an image, (C, X, Y, Z), to the grid of another, unless the grids are equal."""
    same = torch.allclose(image.affine, target.affine.to(image.affine), atol=1e-3)
    if image.shape[1:] == target.shape[1:] and same:
        return image
    resampled: Any = ResampleToMatch(mode=mode, padding_mode=padding_mode)(image, target)
    return resampled


@dataclass(eq=False)
class ResizeToSpacingd(EachImaged, InvertibleTransform):
    """``monai.transforms.Resized`` by voxel size instead of shape; ``Invertd`` inverts it.

    The extent of the volume is kept, so the voxel size is approximate. The volume is smoothed before downsampling
    (``anti_aliasing``), to keep lesions of a few voxels. ``monai.transforms.Spacingd`` does not smooth, and fails in
    MONAI Label, where strings are stored under its metadata keys.

    ``keys`` are images (C, X, Y, Z) with their affine.

    Raises:
        ValueError: when a size is not positive, or an image has no affine.
    """

    spacing_mm: Sequence[float]  # voxel size along each array axis, > 0
    mode: str = "trilinear"  # of ``torch.nn.functional.interpolate``; labels become fractions from 0 to 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm must be positive, got {list(self.spacing_mm)}.")

    def change(self, image: MetaTensor) -> torch.Tensor:
        if not isinstance(image, MetaTensor):
            raise ValueError("only an image with its affine can be resampled to a spacing.")
        extent = np.asarray(image.shape[1:]) * voxel_sizes(image.affine.cpu().numpy())
        return self._resize(np.maximum(1, np.rint(extent / self.spacing_mm)).astype(int).tolist())(image)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resize to the original shape."""
        result, resize = dict(data), self._resize(-1)
        for key in self.key_iterator(result):
            result[key] = resize.inverse_transform(result[key], resize.pop_transform(result[key], check=False))
        return result

    def _resize(self, size: Sequence[int] | int) -> Resize:
        return Resize(size, mode=self.mode, anti_aliasing=True, dtype=torch.float32)
