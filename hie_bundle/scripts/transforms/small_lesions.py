"""From probabilities to lesions: threshold, uncertain lesions, small lesions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from nibabel.affines import voxel_sizes
from scipy import ndimage

from ..geometry.components import components, without_small

__all__ = ["RemoveSmallLesionsd", "ThresholdLesionsd"]


class ThresholdLesionsd(MapTransform):
    """Threshold probabilities and keep the lesions that reach a second, higher threshold (hysteresis).

    Args:
        keys: probabilities, (C, X, Y, Z); each channel by itself.
        threshold: a voxel with at least this probability is lesion.
        peak: a lesion (26-neighbourhood) whose highest probability is below this is removed; 0: none is.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(
        self, keys: KeysCollection, threshold: float = 0.5, peak: float = 0.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.threshold = threshold
        self.peak = peak

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            mask = (result[key] >= self.threshold).to(result[key].dtype)
            if self.peak > self.threshold:
                kept = [_with_peak(channel, self.threshold, self.peak) for channel in result[key].cpu().numpy()]
                mask = mask * torch.as_tensor(np.stack(kept)).to(mask)
            result[key] = mask
        return result


def _with_peak(probability: np.ndarray, threshold: float, peak: float) -> np.ndarray:
    mask = probability >= threshold
    labels, count = components(mask)
    peaks = ndimage.maximum(probability[mask], labels[mask], range(1, count + 1)) if count else []
    return np.array([False, *(np.asarray(peaks) >= peak)])[labels]


class RemoveSmallLesionsd(MapTransform):
    """Remove lesions below a volume. (MONAI's ``RemoveSmallObjectsd`` needs scikit-image.)

    Args:
        keys: masks of 0 and 1 with their affine, (C, X, Y, Z); each channel by itself.
        smallest_mm3: smallest volume of a lesion (26-neighbourhood) in mm³; 0: none is removed.
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
