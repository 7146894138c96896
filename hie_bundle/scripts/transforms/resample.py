"""Resampling to voxels of one size, or to the grid of another image."""

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
    """An image, (C, X, Y, Z), resampled to the grid of another one, unless it is on it."""
    same = torch.allclose(image.affine, target.affine.to(image.affine), atol=1e-3)
    if image.shape[1:] == target.shape[1:] and same:
        return image
    resampled: Any = ResampleToMatch(mode=mode, padding_mode=padding_mode)(image, target)
    return resampled


@dataclass(eq=False)
class ResizeToSpacingd(EachImaged, InvertibleTransform):
    """``monai.transforms.Resized`` to the number of voxels that gives a voxel size; ``Invertd`` inverts it.

    The extent of the volume stays, so the voxel size is met up to rounding. Before downsampling the volume is smoothed
    (``anti_aliasing``), so that a lesion of a few voxels is kept. ``monai.transforms.Spacingd`` does not smooth, and
    fails in MONAI Label, whose items hold strings under keys that it takes for metadata.

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
        """Return to the original voxels."""
        result, resize = dict(data), self._resize(-1)
        for key in self.key_iterator(result):
            result[key] = resize.inverse_transform(result[key], resize.pop_transform(result[key], check=False))
        return result

    def _resize(self, size: Sequence[int] | int) -> Resize:
        return Resize(size, mode=self.mode, anti_aliasing=True, dtype=torch.float32)
