"""Resampling every case to voxels of one size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Resize
from monai.transforms.spatial.functional import resize
from nibabel.affines import voxel_sizes

__all__ = ["ResizeToSpacing", "ResizeToSpacingd"]


class ResizeToSpacing(Resize):
    """``monai.transforms.Resize`` to as many voxels as give them a certain size.

    What is covered stays what it was, so the voxels are of that size up to rounding: for 100 of them within half a
    percent. The affine says what they are. Where voxels become larger, the volume is smoothed before (MONAI's
    ``anti_aliasing``), so that each stands for what it covers: thin slices and fine pixels lose their noise, and a
    lesion of a few voxels is not skipped over.

    Args:
        spacing_mm: size of a voxel along each axis of the array.
        mode: of ``torch.nn.functional.interpolate``.

    Raises:
        ValueError: when a size is not positive; when an image does not carry its affine.
    """

    def __init__(self, spacing_mm: Sequence[float], mode: str = "trilinear") -> None:
        if min(spacing_mm) <= 0:
            raise ValueError(f"spacing_mm must be positive, got {list(spacing_mm)}.")
        super().__init__(spatial_size=-1, mode=mode, anti_aliasing=True, dtype=torch.float32)
        self.spacing_mm = np.asarray(spacing_mm, dtype=float)

    def __call__(self, img: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """
        Args:
            img: shape (C, X, Y, Z), a MetaTensor.
        """
        if not isinstance(img, MetaTensor):
            raise ValueError("only an image with its affine can be resampled to a spacing.")
        voxels = np.asarray(img.shape[1:])
        spacing = voxel_sizes(img.affine.cpu().numpy())
        size = np.maximum(1, np.rint(voxels * spacing / self.spacing_mm)).astype(int)
        # the parent takes its size from an attribute, which threads that load cases side by side would share
        return resize(
            img, tuple(size.tolist()), self.mode, self.align_corners, torch.float32, 3, self.anti_aliasing,
            self.anti_aliasing_sigma, False, self.get_transform_info(),
        )  # fmt: skip


class ResizeToSpacingd(MapTransform, InvertibleTransform):
    """Dictionary form of :class:`ResizeToSpacing`; ``Invertd`` undoes it.

    ``monai.transforms.Spacingd`` does not smooth, and fails in MONAI Label, whose items hold strings under names that
    it takes for metadata.

    Args:
        keys: images of shape (C, X, Y, Z).
        spacing_mm: size of a voxel along each axis of the arrays.
        mode: of ``torch.nn.functional.interpolate``. Labels become shares of a voxel, from 0 to 1.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing_mm: Sequence[float],
        mode: str = "trilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.resizer = ResizeToSpacing(spacing_mm, mode)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.resizer(result[key])
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Back to the voxels before."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.resizer.inverse(result[key])
        return result
