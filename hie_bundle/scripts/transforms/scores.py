"""Voxel scores without an atlas: ADC relative to the same brain, and depth below the surface."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes
from scipy import ndimage

from ..geometry.brain import brain_of
from .pipeline import Eachd

__all__ = ["BrainDepthd", "ScanScored", "ZeroBackgroundd"]

MAD_OF_NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


class ZeroBackgroundd(Eachd):
    """Set all channels to 0 where ADC is not above 0; a missing ZADC map (NaN) is 0 everywhere.

    Args:
        keys: images of shape (C, X, Y, Z) with ADC as the first channel.
    """

    def change(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nan_to_num(image) * (image[:1] > 0)


class ScanScored(Eachd):
    """Append ADC's robust score within the scan: (ADC − median) / (1.4826 · median absolute deviation).

    Both are over the brain's voxels, so a small lesion or fluid does not move them, and they cancel what multiplies all
    of a scan's ADC: the scanner's calibration, or a cooled newborn's temperature. Outside the brain the score is 0.

    Args:
        keys: images of shape (C, X, Y, Z) with ADC in 1e-6 mm²/s as the first channel, 0 outside of the brain.

    Raises:
        ValueError: when called, if there is no brain.
    """

    def change(self, image: torch.Tensor) -> torch.Tensor:
        adc = image.as_tensor()[:1] if isinstance(image, MetaTensor) else image[:1]
        brain = brain_of(adc)
        if not brain.any():
            raise ValueError("there is no brain in the map: no voxel is above 0.")
        values = adc[brain].float()
        deviation = values - values.median()
        scale = MAD_OF_NORMAL * deviation.abs().median()
        score = torch.zeros_like(adc, dtype=torch.float32)
        score[brain] = deviation / scale.clamp_min(1.0)  # a map of one value has no spread
        return torch.cat([image, score.to(image.dtype)])


class BrainDepthd(Eachd):
    """Append each voxel's distance to the brain's border, in mm; 0 outside of the brain.

    Maps are unreliable at the skull strip, and depth separates cortex from white matter.

    Args:
        keys: images of shape (C, X, Y, Z) with ADC as the first channel, 0 outside of the brain, with their affine.
    """

    def change(self, image: MetaTensor) -> torch.Tensor:
        spacing = voxel_sizes(image.affine.cpu().numpy())
        brain = np.pad(brain_of(image[0].cpu().numpy()), 1)  # beyond the volume there is no brain
        depth = ndimage.distance_transform_edt(brain, sampling=spacing)[1:-1, 1:-1, 1:-1]
        return torch.cat([image, torch.as_tensor(depth[None]).to(image)])
