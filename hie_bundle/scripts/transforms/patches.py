"""Where training patches are taken from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.transforms import RandCropByPosNegLabeld
from monai.transforms.utils import map_binary_to_indices

from ..components import components

__all__ = ["RandCropByLesiond"]


class RandCropByLesiond(RandCropByPosNegLabeld):
    """``monai.transforms.RandCropByPosNegLabeld`` that centres patches on lesions, not on lesion voxels.

    A patch that lies on lesion lies on a connected part of it that was drawn first, so that small ones are seen as
    often as large ones; the parent draws a voxel, and sees the largest ones alone.

    Arguments are the parent's. Labels, shape (1, X, Y, Z), are above 0 where there is lesion.
    """

    def randomize(
        self,
        label: torch.Tensor | None = None,
        fg_indices: Any = None,
        bg_indices: Any = None,
        image: torch.Tensor | None = None,
    ) -> None:
        """See the parent class."""
        assert label is not None
        _, outside = map_binary_to_indices(label, image, self.cropper.image_threshold)
        parts, count = components(torch.as_tensor(label)[0].cpu().numpy() > 0)
        # without any, all patches lie elsewhere; the parent would warn of each
        inside = np.flatnonzero(parts == self.cropper.R.randint(1, count + 1)) if count else outside
        super().randomize(label, inside, outside, image)
