"""From probabilities to masks: threshold, uncertain lesions, the brain's border, small lesions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResampleToMatch, Transform
from nibabel.affines import voxel_sizes
from scipy import ndimage

from ..geometry.brain import are_normalised, brain_of
from ..geometry.components import components, without_small
from .pipeline import Eachd

__all__ = ["KeepBraind", "LimitToBraind", "RemoveSmallLesionsd", "ThresholdLesionsd"]


class ThresholdLesionsd(Eachd):
    """Threshold probabilities and keep the lesions that reach a second, higher threshold (hysteresis).

    Args:
        keys: probabilities, (C, X, Y, Z); each channel separately.
        threshold: a voxel with at least this probability is lesion.
        peak: a lesion (26-neighbourhood) whose highest probability is below this is removed; 0 removes none.
    """

    def __init__(
        self, keys: KeysCollection, threshold: float = 0.5, peak: float = 0.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.threshold = threshold
        self.peak = peak

    def change(self, image: torch.Tensor) -> torch.Tensor:
        mask = (image >= self.threshold).to(image.dtype)
        return mask * _each_channel(image, self._with_peak) if self.peak > self.threshold else mask

    def _with_peak(self, probability: np.ndarray) -> np.ndarray:
        mask = probability >= self.threshold
        labels, count = components(mask)
        peaks = ndimage.maximum(probability[mask], labels[mask], range(1, count + 1)) if count else []
        return np.array([False, *(np.asarray(peaks) >= self.peak)])[labels]


class RemoveSmallLesionsd(Eachd):
    """Remove lesions below a volume. (MONAI's ``RemoveSmallObjectsd`` needs scikit-image.)

    Args:
        keys: masks of 0 and 1 with their affine, (C, X, Y, Z); each channel separately.
        smallest_mm3: smallest volume of a lesion (26-neighbourhood) in mm³; 0: none is removed.
    """

    def __init__(self, keys: KeysCollection, smallest_mm3: float = 0.0, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.smallest_mm3 = smallest_mm3

    def change(self, image: MetaTensor) -> torch.Tensor:
        if self.smallest_mm3 <= 0:
            return image
        voxels = self.smallest_mm3 / float(np.prod(voxel_sizes(image.affine.cpu().numpy())))
        return image * _each_channel(image, lambda channel: without_small(channel > 0, voxels))


def _each_channel(image: torch.Tensor, change: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    return torch.as_tensor(np.stack([change(channel) for channel in image.cpu().numpy()])).to(image)


class KeepBraind(Transform):
    """Add ``brain``, the mask of ADC above 0 on the native grid, for :class:`LimitToBraind`.

    Put it directly after loading. If the item has ``native_image``, that is used.

    Args:
        wanted: False adds nothing.
    """

    def __init__(self, wanted: bool = True) -> None:
        self.wanted = wanted

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if not self.wanted:
            return dict(data)
        maps = data.get("native_image", data["image"])
        adc, zadc = maps[:2].as_tensor().numpy()
        brain = brain_of(adc, are_normalised(adc, None if np.isnan(zadc).all() else zadc))
        return {**data, "brain": MetaTensor(torch.as_tensor(brain[None], dtype=torch.uint8), affine=maps.affine)}


class LimitToBraind(MapTransform):
    """Remove mask voxels outside of ``brain``, if the item has it (:class:`KeepBraind`).

    Args:
        keys: masks of 0 and 1 with their affine, (C, X, Y, Z), on the brain's grid or any other.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self._resample = ResampleToMatch(mode="nearest", padding_mode="zeros")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result) if "brain" in result else ():
            mask, brain = result[key], result["brain"]
            if brain.shape[1:] != mask.shape[1:] or not torch.allclose(
                brain.affine, mask.affine.to(brain.affine), atol=1e-3
            ):
                brain = self._resample(brain, mask)
            result[key] = mask * torch.as_tensor(brain.as_tensor()).to(mask)
        return result
