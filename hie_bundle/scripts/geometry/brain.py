"""Brain mask of a skull-stripped ADC map, and recognition of normalised maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@overload
def brain_of(adc: NDArray[Any], normalised: bool = False) -> NDArray[np.bool_]: ...
@overload
def brain_of(adc: torch.Tensor, normalised: bool = False) -> torch.Tensor: ...


def brain_of(adc: Any, normalised: bool = False) -> Any:
    """Brain mask of a skull-stripped ADC map: ADC above 0.

    Args:
        adc: array or tensor of any shape, 1e-6 mm²/s.
        normalised: whether the map is normalised (:func:`are_normalised`); its background is then the minimum.
    """
    return adc > (adc.min() + 1e-6 if normalised else 0)


def are_normalised(adc: NDArray[Any], zadc: NDArray[Any] | None = None) -> bool:
    """Whether both maps (ADC alone if ZADC is missing) have mean 0 and standard deviation 1, as after preprocessing.

    Normalised maps have no units, and their background is not 0. A missing ZADC map is None or NaN everywhere.
    """
    maps = [adc] if zadc is None or np.isnan(zadc).all() else [adc, zadc]
    return all(abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01 for values in maps)


def clear_background(adc: NDArray[Any], zadc: NDArray[Any]) -> None:
    """Set ZADC outside the brain to 0, in place, since some tools write a marker such as -99.

    Args:
        adc: any shape, 1e-6 mm²/s.
        zadc: the same shape; unchanged if both maps are normalised.
    """
    if not are_normalised(adc, zadc):
        zadc[~brain_of(adc)] = 0
