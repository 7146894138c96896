"""Evidence of the Z map beside the network: two soft thresholds on ZADC, averaged with the network's probability."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit

from ..geometry.brain import are_normalised, brain_of
from ..transforms.voxel_features import local_means

__all__ = ["AddZEvidenced", "z_evidence"]

LEVEL, WIDTH = -3.0, 0.7  # of the sigmoid on ZADC
SMOOTHED_LEVEL, SMOOTHED_WIDTH, SIGMA_MM = -2.2, 0.6, 1.5  # of the sigmoid on ZADC smoothed within the brain


def z_evidence(zadc: NDArray[Any], brain: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """Mean of two soft thresholds: σ(−(Z + 3) / 0.7) and σ(−(Z smoothed by 1.5 mm + 2.2) / 0.6).

    Args:
        zadc: shape (X, Y, Z); NaN counts as 0.
        brain: same shape; the result is 0 outside.
        spacing_mm: voxel size along each axis.

    Returns:
        float32 in [0, 1], same shape.
    """
    result = np.zeros(brain.shape, np.float32)
    (box,) = ndimage.find_objects(brain.astype(np.uint8)) or [None]
    if box is None:
        return result
    inside = brain[box]
    z = np.where(inside, np.nan_to_num(zadc[box]), 0)
    (smoothed,) = local_means(z[None], inside, spacing_mm, SIGMA_MM)
    sharp = expit((LEVEL - z[inside]) / WIDTH)
    result[box][inside] = (sharp + expit((SMOOTHED_LEVEL - smoothed) / SMOOTHED_WIDTH)) / 2
    return result


class AddZEvidenced(MapTransform):
    """Average the network's probability with :func:`z_evidence` and map the operating point to 0.5.

    Unchanged: cases without a Z map, and cases without native maps or with normalised ones.

    Args:
        keys: lesion probabilities on the native grid, shape (C, X, Y, Z).
        weight: of the evidence in the mean, from 0 to 1; 0 disables the transform.
        level: operating point, above 0 and below 1: a mean of this becomes 0.5, by its odds.
        native_key: ADC and ZADC on the native grid, shape (2, X, Y, Z), with their affine.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        weight: float = 0.5,
        level: float = 0.33,
        native_key: str = "native_image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.weight = weight
        self.level = level
        self.native_key = native_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        if self.weight == 0 or self.native_key not in data:
            return result
        maps = data[self.native_key]
        adc, zadc = maps[:2].cpu().numpy()
        if np.isnan(zadc).all() or are_normalised(adc, zadc):
            return result
        evidence = z_evidence(zadc, brain_of(adc), list(voxel_sizes(maps.affine.cpu().numpy())))
        for key in self.key_iterator(result):
            mean = (1 - self.weight) * result[key] + self.weight * torch.as_tensor(evidence[None]).to(result[key])
            lesion, healthy = mean * (1 - self.level), (1 - mean) * self.level
            result[key] = lesion / (lesion + healthy)
        return result
