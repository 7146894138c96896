"""Evidence of the Z map: two soft thresholds on ZADC, averaged with the network's probability."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy.special import expit

from ..geometry.brain import are_normalised, brain_of
from ..transforms.pipeline import Keyed
from ..transforms.voxel_features import local_means

LEVEL, WIDTH = -3.0, 0.7  # sigmoid on ZADC
SMOOTHED_LEVEL, SMOOTHED_WIDTH, SIGMA_MM = -2.2, 0.6, 1.5  # sigmoid on ZADC smoothed within the brain


def z_evidence(zadc: NDArray[Any], brain: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """Mean of two soft thresholds: σ(−(Z + 3) / 0.7) and σ(−(Z smoothed by 1.5 mm + 2.2) / 0.6).

    Map, mask and result have the shape (X, Y, Z). NaN in ``zadc`` counts as 0. The result is float32 in [0, 1], 0
    outside the brain. ``spacing_mm`` is the voxel size along each axis.
    """
    result, z = np.zeros(brain.shape, np.float32), np.nan_to_num(zadc)
    (smoothed,) = local_means(z[None], brain, spacing_mm, SIGMA_MM)
    result[brain] = (expit((LEVEL - z[brain]) / WIDTH) + expit((SMOOTHED_LEVEL - smoothed) / SMOOTHED_WIDTH)) / 2
    return result


@dataclass(eq=False)
class AddZEvidenced(Keyed):
    """Average the network's probability with :func:`z_evidence` and map the operating point to 0.5.

    ``keys`` are lesion probabilities on the native grid, shape (C, X, Y, Z); ``native_image`` holds ADC and ZADC there,
    shape (2, X, Y, Z). Cases without native maps, without a Z map, or with normalised maps are not changed.
    """

    weight: float = 0.5  # of the evidence in the mean, from 0 to 1; 0 disables the transform
    level: float = 0.33  # operating point, above 0 and below 1: its odds are scaled to 1

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        if self.weight == 0 or "native_image" not in data:
            return result
        maps = data["native_image"]
        adc, zadc = maps[:2].cpu().numpy()
        if np.isnan(zadc).all() or are_normalised(adc, zadc):
            return result
        evidence = z_evidence(zadc, brain_of(adc), list(voxel_sizes(maps.affine.cpu().numpy())))
        for key in self.key_iterator(result):
            mean = (1 - self.weight) * result[key] + self.weight * torch.as_tensor(evidence[None]).to(result[key])
            lesion, healthy = mean * (1 - self.level), (1 - mean) * self.level
            result[key] = lesion / (lesion + healthy)
        return result
