"""Masks that end where the brain does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, ResampleToMatch, Transform

from ..geometry.brain import are_normalised, brain_of

__all__ = ["KeepBraind", "LimitToBraind"]


class KeepBraind(Transform):
    """Add ``brain``, the mask of ADC above 0 on the native grid, for :class:`LimitToBraind`.

    Put it directly after loading. It is the brain of ``native_image`` where that exists.

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
        allow_missing_keys: do not raise when a key is missing.
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
