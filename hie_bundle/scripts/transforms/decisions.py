"""Postprocessing of probabilities to masks: thresholds, brain mask, removal of small lesions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from nibabel.affines import voxel_sizes
from scipy import ndimage

from ..geometry.brain import are_normalised, brain_of
from ..geometry.components import components, without_small
from .pipeline import EachImaged
from .resample import on_grid_of


@dataclass(eq=False)
class ThresholdLesionsd(EachImaged):
    """Threshold probabilities and keep the lesions that reach a second, higher threshold (hysteresis).

    ``keys`` are probabilities, (C, X, Y, Z); channels are independent.
    """

    threshold: float = 0.5  # for lesion voxels
    peak: float = 0.0  # for the maximum of a lesion (26-neighbourhood); 0: not applied

    def change(self, image: torch.Tensor) -> torch.Tensor:
        mask = (image >= self.threshold).to(image.dtype)
        return mask * _each_channel(image, self._with_peak) if self.peak > self.threshold else mask

    def _with_peak(self, probability: np.ndarray) -> np.ndarray:
        mask = probability >= self.threshold
        labels, count = components(mask)
        peaks = ndimage.maximum(probability[mask], labels[mask], range(1, count + 1)) if count else []
        return np.array([False, *(np.asarray(peaks) >= self.peak)])[labels]


@dataclass(eq=False)
class RemoveSmallLesionsd(EachImaged):
    """Remove lesions (26-neighbourhood) below a volume in mm³. (MONAI's ``RemoveSmallObjectsd`` needs scikit-image.)

    ``keys`` are masks of 0 and 1 with their affine, (C, X, Y, Z); channels are independent.
    """

    smallest_mm3: float = 0.0

    def change(self, image: MetaTensor) -> torch.Tensor:
        if self.smallest_mm3 <= 0:
            return image
        voxels = self.smallest_mm3 / float(np.prod(voxel_sizes(image.affine.cpu().numpy())))
        return image * _each_channel(image, lambda channel: without_small(channel > 0, voxels))


def _each_channel(image: torch.Tensor, change: Callable[[np.ndarray], np.ndarray]) -> torch.Tensor:
    return torch.as_tensor(np.stack([change(channel) for channel in image.cpu().numpy()])).to(image)


@dataclass(eq=False)
class KeepBraind(Transform):
    """Add ``brain``, the mask of ADC above 0 on the native grid, for :class:`LimitToBraind`, if ``wanted``.

    Put it directly after loading; ``native_image`` is used if the item has it.
    """

    wanted: bool = True

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if not self.wanted:
            return dict(data)
        maps = data.get("native_image", data["image"])
        adc, zadc = maps[:2].as_tensor().numpy()
        brain = brain_of(adc, are_normalised(adc, zadc))
        return {**data, "brain": MetaTensor(torch.as_tensor(brain[None], dtype=torch.uint8), affine=maps.affine)}


class LimitToBraind(MapTransform):
    """Remove voxels outside of ``brain``, if the item has it (:class:`KeepBraind`).

    ``keys`` are masks of 0 and 1 with their affine, (C, X, Y, Z), on any grid.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result) if "brain" in result else ():
            mask = result[key]
            brain = on_grid_of(mask, result["brain"], mode="nearest", padding_mode="zeros")
            result[key] = mask * torch.as_tensor(brain.as_tensor()).to(mask)
        return result
