"""Maps and labels of brain voxels as arrays, without transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..geometry.brain import are_normalised, brain_of, clear_background
from ..io.volumes import Volume, read_checked
from ..runtime.cores import available_cores
from .checks import Limits, channels_of
from .layout import as_native, case_of, item_files

MOST_AT_A_TIME = 4  # cases; the features of a case take several hundred megabytes
Floating = TypeVar("Floating", np.float32, np.float64)


def read_maps(item: Mapping[str, Any], limits: Limits) -> tuple[NDArray[Any], Volume]:
    """ADC and ZADC (NaN if missing) of a data item, (2, X, Y, Z), and the first volume, which has the grid."""
    volumes = [read_checked(file, limits.max_bytes) for part, file in item_files(item).items() if part != "label"]
    arrays = [array for volume in volumes for array in channels_of(volume)]
    if len(arrays) == 1:
        return np.stack([arrays[0], np.full(arrays[0].shape, np.nan)]), volumes[0]
    stacked = np.stack(arrays)
    clear_background(*stacked)
    return stacked, volumes[0]


def draw_training_voxels(
    items: Sequence[Mapping[str, Any]],
    limits: Limits,
    describe: Callable[[NDArray[Any], NDArray[Any], Volume], NDArray[Floating]],
    voxels: int,
    seed: int,
) -> Iterator[tuple[NDArray[Floating], NDArray[np.bool_]]]:
    """Features and truth of random brain voxels, case by case; independent of the number of cores.

    Args:
        items: labelled data items; native files are read for prepared cases.
        limits: provides the size limit of files.
        describe: computes features (brain voxels, N) from ADC, ZADC (X, Y, Z) and the first volume.
        voxels: maximum number per case.
        seed: seed of the sampling.

    Raises:
        ValueError: a case is unusable for training, or a file is unreadable (also OSError).
    """

    def described(item: Mapping[str, Any]) -> tuple[NDArray[Floating], NDArray[np.bool_]]:
        item = as_native(item)
        if "label" not in item:
            raise ValueError(f"training case {case_of(item)} has no label")
        (adc, zadc), grid = read_maps(item, limits)
        if np.isnan(zadc).all():
            raise ValueError(f"training case {case_of(item)} has no ZADC map")
        if are_normalised(adc, zadc):
            raise ValueError(f"the maps of training case {case_of(item)} are normalised")
        truth = read_checked(item["label"], limits.max_bytes).array[brain_of(adc)] > 0.5
        return describe(adc, zadc, grid), truth

    rng = np.random.default_rng(seed)
    threads = min(MOST_AT_A_TIME, available_cores())  # SciPy's filters release the GIL
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(items), threads):
            for given, truth in pool.map(described, items[start : start + threads]):
                drawn = rng.permutation(len(truth))[:voxels]
                yield given[drawn], truth[drawn]
