"""Voxel scores without an atlas: ADC relative to the same brain, and depth below the surface."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from nibabel.affines import voxel_sizes
from scipy import ndimage

from ..geometry.brain import brain_of

__all__ = ["BrainDepthd", "ScanScored"]

MAD_OF_NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


class ScanScored(MapTransform):
    """Append ADC's robust score within the scan: (ADC − median) / (1.4826 · median absolute deviation).

    Median and deviation are those of the brain's voxels, so they move neither with a small lesion nor with fluid, and
    they take out what multiplies all of a scan's ADC: the scanner's calibration, or a cooled newborn's temperature.
    Unlike ZADC, the score does not depend on the place. Outside the brain it is 0.

    Args:
        keys: images of shape (C, X, Y, Z) with ADC in 1e-6 mm²/s as the first channel, 0 outside of the brain.
        allow_missing_keys: do not raise when a key is missing.

    Raises:
        ValueError: when called, if there is no brain.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            result[key] = torch.cat([image, _score(image)])
        return result


class BrainDepthd(MapTransform):
    """Append each voxel's distance to the brain's border, in mm; 0 outside of the brain.

    Maps are unreliable at the skull strip, and depth separates cortex from white matter.

    Args:
        keys: images of shape (C, X, Y, Z) with ADC as the first channel, 0 outside of the brain, with their affine.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            spacing = voxel_sizes(image.affine.cpu().numpy())
            brain = np.pad(brain_of(image[0].cpu().numpy()), 1)  # beyond the volume there is no brain
            depth = ndimage.distance_transform_edt(brain, sampling=spacing)[1:-1, 1:-1, 1:-1]
            result[key] = torch.cat([image, torch.as_tensor(depth[None]).to(image)])
        return result


def _score(image: torch.Tensor) -> torch.Tensor:
    adc = image.as_tensor()[:1] if isinstance(image, MetaTensor) else image[:1]
    brain = brain_of(adc)
    if not brain.any():
        raise ValueError("there is no brain in the map: no voxel is above 0.")
    values = adc[brain].float()
    deviation = values - values.median()
    scale = MAD_OF_NORMAL * deviation.abs().median()
    score = torch.zeros_like(adc, dtype=torch.float32)
    score[brain] = deviation / scale.clamp_min(1.0)  # a map of one value has no spread
    return score.to(image.dtype)
