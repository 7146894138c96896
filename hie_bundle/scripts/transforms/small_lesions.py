"""What a mask holds that is too small to be a lesion."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from nibabel.affines import voxel_sizes

from ..geometry.components import without_small

__all__ = ["RemoveSmallLesionsd"]


class RemoveSmallLesionsd(MapTransform):
    """Take lesions out of masks that are smaller than a volume.

    What a network finds that is a few voxels large is more often a speck than a lesion, and a speck in a case without a
    lesion costs all of its Dice. MONAI's ``RemoveSmallObjectsd`` would need scikit-image.

    Args:
        keys: masks of 0 and 1 with their affine, (C, X, Y, Z), each channel by itself.
        smallest_mm3: volume in mm³ under which a lesion (26 neighbours) is removed; 0: none is.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(self, keys: KeysCollection, smallest_mm3: float = 0.0, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.smallest_mm3 = smallest_mm3

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result) if self.smallest_mm3 > 0 else ():
            mask = result[key]
            voxels = self.smallest_mm3 / float(np.prod(voxel_sizes(mask.affine.cpu().numpy())))
            kept = [without_small(channel > 0, voxels) for channel in mask.cpu().numpy()]
            result[key] = mask * torch.as_tensor(np.stack(kept)).to(mask)
        return result
