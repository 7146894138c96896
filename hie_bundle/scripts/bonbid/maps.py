"""The two maps of a case as arrays, and the truth of its brain's voxels, for what needs no transforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .brain import are_normalised, brain_of
from .checks import Limits, item_files
from .volumes import Volume, read_volume

__all__ = ["read_maps", "read_training_case"]


def read_maps(item: Mapping[str, Any], limits: Limits) -> tuple[NDArray[Any], Volume]:
    """ADC and ZADC of an item of a data list, (2, X, Y, Z) as in its files, and the volume that they lie on.

    A ZADC map that is missing is NaN.
    """
    files = [file for part, file in item_files(item).items() if part != "label"]
    maps = [read_volume(file, limits.max_bytes) for file in files]
    arrays = [one.array for one in maps]
    if len(maps) == 1:
        first = maps[0].array
        arrays = list(np.moveaxis(first, -1, 0)) if first.ndim == 4 else [first]
    if len(arrays) == 1:
        arrays.append(np.full(arrays[0].shape, np.nan))
    return np.stack(arrays), maps[0]


def read_training_case(
    item: Mapping[str, Any], limits: Limits
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_], Volume]:
    """ADC and ZADC (X, Y, Z) of a labelled case, the truth of its brain's voxels, and the volume that the maps lie on.

    Raises:
        ValueError: when the case cannot be learnt from.
    """
    case = item.get("case", item["image"])
    if "label" not in item:
        raise ValueError(f"training case {case} has no label")
    (adc, zadc), grid = read_maps(item, limits)
    if np.isnan(zadc).all():
        raise ValueError(f"training case {case} has no ZADC map")
    if are_normalised(adc, zadc):
        raise ValueError(f"the maps of training case {case} are normalised")
    truth = read_volume(item["label"], limits.max_bytes).array[brain_of(adc)] > 0.5
    return adc, zadc, truth, grid
