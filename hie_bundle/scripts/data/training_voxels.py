"""The two maps of a case as arrays, and the truth of its brain's voxels, for what needs no transforms."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..geometry.brain import are_normalised, brain_of, clear_background
from ..io.volumes import Volume, VolumeError, read_volume
from ..runtime.cores import available_cores
from .checks import Limits
from .layout import as_native, item_files

__all__ = ["draw_training_voxels", "read_maps", "read_training_case"]

MOST_AT_A_TIME = 4  # cases, since the features of one take some hundred megabytes
Floating = TypeVar("Floating", np.float32, np.float64)


def read_maps(item: Mapping[str, Any], limits: Limits) -> tuple[NDArray[Any], Volume]:
    """ADC and ZADC of an item of a data list, (2, X, Y, Z) as in its files, and the first volume, for the grid.

    A ZADC map that is missing is NaN.
    """
    files = [file for part, file in item_files(item).items() if part != "label"]
    maps = [read_volume(file, limits.max_bytes) for file in files]
    arrays = [one.array for one in maps]
    if len(maps) == 1:
        first = maps[0].array
        arrays = list(np.moveaxis(first, -1, 0)) if first.ndim == 4 else [first]
    if len(arrays) == 1:
        return np.stack([arrays[0], np.full(arrays[0].shape, np.nan)]), maps[0]
    stacked = np.stack(arrays)
    clear_background(*stacked)
    return stacked, maps[0]


def read_training_case(
    item: Mapping[str, Any], limits: Limits
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_], Volume]:
    """ADC and ZADC (X, Y, Z) of a labelled case, the truth of its brain's voxels, and the volume of their grid.

    Raises:
        ValueError: when the case cannot be used for training.
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


def draw_training_voxels(
    items: Sequence[Mapping[str, Any]],
    limits: Limits,
    describe: Callable[[NDArray[Any], NDArray[Any], Volume], NDArray[Floating]],
    voxels: int,
    seed: int,
    skip: Callable[[Exception], None] | None = None,
) -> Iterator[tuple[NDArray[Floating], NDArray[np.bool_]]]:
    """Features and truth of some voxels of each labelled case's brain, case by case; the same for any number of cores.

    Args:
        items: of a data list; of prepared cases the files that they were made from are taken.
        limits: of the sizes of files.
        describe: ADC, ZADC (X, Y, Z) and the first volume, for the grid, to features of shape (voxels of the brain, N).
            Four cases at a time, or as many as there are cores, in threads: SciPy's filters let others work.
        voxels: how many of each case, at most.
        seed: of the draw.
        skip: called with the error of an unusable case, which is then excluded; None: the error is raised.

    Raises:
        ValueError: when a case cannot be used for training.
        VolumeError: when a file cannot be read.
        OSError: likewise.
    """

    def described(item: Mapping[str, Any]) -> tuple[NDArray[Floating], NDArray[np.bool_]]:
        adc, zadc, truth, grid = read_training_case(as_native(item), limits)
        return describe(adc, zadc, grid), truth

    rng = np.random.default_rng(seed)
    threads = min(MOST_AT_A_TIME, available_cores())
    with ThreadPoolExecutor(threads) as pool:
        for future in _few_ahead(pool, described, items, threads):
            try:
                given, truth = future.result()
            except (VolumeError, OSError, ValueError) as error:
                if skip is None:
                    raise
                skip(error)
                continue
            drawn = rng.permutation(len(truth))[:voxels]
            yield given[drawn], truth[drawn]


def _few_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Sequence[Any], few: int
) -> Iterator[Future[Any]]:
    """What becomes of each item, in order; no more than that many of them wait to be taken."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > few:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
