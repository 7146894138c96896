"""What counts as brain, and whether maps are as they were acquired: one definition for everything that measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = ["are_normalised", "brain_of", "clear_background"]


@overload
def brain_of(adc: NDArray[Any], normalised: bool = False) -> NDArray[np.bool_]: ...
@overload
def brain_of(adc: torch.Tensor, normalised: bool = False) -> torch.Tensor: ...


def brain_of(adc: Any, normalised: bool = False) -> Any:
    """Brain mask of a skull-stripped ADC map: where it is above 0.

    Args:
        adc: array or tensor of any shape, 1e-6 mm²/s.
        normalised: the map has been normalised since (:func:`are_normalised`): then where it is above its lowest value,
            which is the background's.
    """
    return adc > (adc.min() + 1e-6 if normalised else 0)


def are_normalised(adc: NDArray[Any], zadc: NDArray[Any] | None = None) -> bool:
    """Whether both maps, or the ADC map where there is no other, have mean 0 and standard deviation 1 over the volume,
    as preprocessing leaves them.

    Their values then say nothing about ADC, Z-scores or the brain's volume.
    """
    maps = [adc] if zadc is None else [adc, zadc]
    return all(abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01 for values in maps)


def clear_background(adc: NDArray[Any], zadc: NDArray[Any]) -> None:
    """Set ZADC outside the brain to 0, in place: some tools write a marker such as -99 there.

    Args:
        adc: any shape, 1e-6 mm²/s.
        zadc: the same shape; left as it is where both maps are normalised.
    """
    if not are_normalised(adc, zadc):
        zadc[~brain_of(adc)] = 0
