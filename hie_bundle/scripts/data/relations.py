"""Plausible values of a case: what an ADC map, a ZADC map of the same case, and a lesion label look like.

ZADC is (ADC - mean) / SD of healthy newborns, so three relations hold in every case. Within some millimetres ZADC
rises with ADC. ZADC is exactly 0 nowhere in the brain. The ADC where ZADC is about 0 is that of a healthy newborn. And
lesions have low ZADC. ``tests/benchmarks/map_relations.py`` measures false alarms and misses; the limits of refusal are
keys of ``limits``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

__all__ = ["agreement_of_maps", "label_faults", "map_faults", "mirroring_of_maps"]

ENOUGH_VOXELS = 1000
SMOOTH_MM = 15.0  # width of the local mean that is removed before maps are compared
SAMPLED_VOXELS = 20_000
DOUBTFUL_AGREEMENT = 0.4
DOUBTFUL_ZERO_SHARE = 0.02
NEAR_ZERO = 0.5  # |ZADC| that counts as about 0
LOW_P99 = 1600.0  # of ADC in the brain: cerebrospinal fluid has 3000
RIM_VOXELS = 2

Problems = list[tuple[str, str]]  # the part that is at fault, and what is wrong with it
Array = NDArray[Any]
Mask = NDArray[np.bool_]


def map_faults(
    adc: Array, zadc: Array | None, brain: Mask, spacing_mm: Sequence[float], normalised: bool, limits: Any
) -> tuple[Problems, list[str]]:
    """Problems and notes of a case's maps.

    Args:
        adc: (X, Y, Z), 1e-6 mm²/s.
        zadc: the same shape, or None.
        brain: where the brain is, by ``adc``.
        spacing_mm: voxel size along each axis.
        normalised: both maps have been normalised, so that their ranges mean nothing.
        limits: see :class:`scripts.data.checks.Limits`.
    """
    problems: Problems = []
    notes: list[str] = []
    if zadc is not None and normalised and _lowest_share(adc) < 0.02 and _lowest_share(zadc) > 0.2:
        text = "and the ADC map are swapped: the background is the lowest value here, as it is in ADC, and not there"
        return [("zadc", text)], notes
    if brain.sum() < ENOUGH_VOXELS:
        return problems, notes
    if zadc is not None:
        _relate(adc, zadc, brain, spacing_mm, normalised, limits, problems, notes)
    if normalised:
        return problems, notes
    below = adc < 0
    if below.any() and adc.min() < -500 and adc.max() <= 2047:
        text = f"has {int(below.sum())} voxels below 0 and none above 2047: values overflowed 12 bits"
        problems.append(("adc", text))
    elif below.sum() > 0.005 * brain.sum():
        notes.append(f"ADC is below 0 in {int(below.sum())} voxels, which do not count as brain")
    if (p99 := float(np.percentile(adc[brain], 99))) < LOW_P99:
        notes.append(f"99 % of the brain has an ADC below {p99:.0f}: no cerebrospinal fluid, or another unit?")
    core = ndimage.binary_erosion(brain, np.ones((3, 3, 1)), iterations=RIM_VOXELS)
    if core.any():
        rim, inside = float(np.median(adc[brain & ~core])), float(np.median(adc[core]))
        if rim < 0.8 * inside:
            notes.append(f"ADC is {rim:.0f} at the brain's rim and {inside:.0f} inside: is it skull-stripped?")
    return problems, notes


def _relate(
    adc: Array, zadc: Array, brain: Mask, spacing_mm: Sequence[float], normalised: bool, limits: Any,
    problems: Problems, notes: list[str],
) -> None:  # fmt: skip
    agreement = agreement_of_maps(adc, zadc, brain, spacing_mm)
    if normalised:  # resampled to a network's grid as a rule, which may be coarser than what agrees
        if agreement < -DOUBTFUL_AGREEMENT:
            text = f"falls where ADC rises: its sign is inverted (local correlation {agreement:.2f})"
            problems.append(("zadc", text))
        return
    if agreement < max(limits.map_agreement, DOUBTFUL_AGREEMENT):
        text = f"local correlation with ADC in the brain is {agreement:.2f}, as a rule above 0.8"
        reason = mirroring_of_maps(adc, zadc, brain, spacing_mm, agreement)
        if agreement < limits.map_agreement or reason:
            reason = reason or "another case's map, or shifted?"
            problems.append(("zadc", f"does not belong to the ADC map: {reason} ({text}; limits#map_agreement)"))
            return
        notes.append(f"ZADC: {text}")
    zero = float((zadc[brain] == 0).mean())
    text = f"{100 * zero:.0f} % of the brain has a ZADC of exactly 0"
    if zero > limits.zadc_zero_fraction:
        why = "skull in the ADC map, or another position? (limits#zadc_zero_fraction)"
        problems.append(("zadc", f"is not a Z map of this brain: {text}; {why}"))
    elif zero > DOUBTFUL_ZERO_SHARE:
        notes.append(text)
    healthy = adc[brain & (np.abs(zadc) < NEAR_ZERO) & (zadc != 0)]
    least, greatest = limits.healthy_adc_range
    if healthy.size >= ENOUGH_VOXELS // 10 and not least <= (median := float(np.median(healthy))) <= greatest:
        message = f"has a median of {median:.0f} where ZADC is about 0, not between {least:g} and {greatest:g}: "
        problems.append(("adc", message + "one of the two maps is scaled (limits#healthy_adc_range)"))


def agreement_of_maps(adc: Array, zadc: Array, brain: Mask, spacing_mm: Sequence[float]) -> float:
    """Spearman's correlation in the brain of both maps less their local means; 0 where one is constant."""
    every = max(1, int(brain.sum()) // SAMPLED_VOXELS)
    details = [_without_trend(values, brain, spacing_mm)[::every] for values in (adc, zadc)]
    return _spearman(*details)


def mirroring_of_maps(adc: Array, zadc: Array, brain: Mask, spacing_mm: Sequence[float], agreement: float) -> str:
    """What was done to a ZADC map that does not agree with its ADC map, if it is known; empty otherwise."""
    if agreement < -DOUBTFUL_AGREEMENT / 2:
        return "its sign is inverted"
    names = ("first", "second", "third")
    found = {
        f"it is mirrored along the {name} axis": agreement_of_maps(adc, np.flip(zadc, axis), brain, spacing_mm)
        for axis, name in enumerate(names)
    }
    best = max(found, key=lambda reason: found[reason])
    return best if found[best] > max(DOUBTFUL_AGREEMENT, agreement + 0.15) else ""


def label_faults(lesion: Mask, zadc: Array | None, brain: Mask, affine: Array) -> tuple[list[str], list[str]]:
    """Problems and notes of a label by the ZADC of its voxels: lesions have low ZADC.

    Args:
        lesion: (X, Y, Z); ``zadc`` (not normalised, or None) and ``brain`` likewise.
        zadc: see there.
        brain: see there.
        affine: (4, 4) from voxel indices to millimetres, RAS+.
    """
    inside = lesion & brain
    if zadc is None or inside.sum() < 20:
        return [], []
    level = float(np.median(zadc[inside]))
    share = inside.sum() / brain.sum()
    if share > 0.9:
        text = f"covers {100 * share:.0f} % of the brain"
        doubt = [f"{text}, with a median ZADC of {level:.1f}: is it a brain mask?"]
        return (doubt, []) if level > -1.5 else ([], [text])
    axis = int(np.argmax(np.abs(affine[0, :3])))
    mirrored = _mirrored_about_brain(lesion, brain, axis) & brain
    if mirrored.sum() >= 20 and level > -1 and (other := float(np.median(zadc[mirrored]))) < level - 2:
        text = f"is flipped from left to right: the median ZADC is {level:.1f} in it, {other:.1f} in its mirror image"
        return [text], []
    return [], [f"median ZADC in the label is {level:.1f}: is it in the right place?"] if level > -0.5 else []


def _mirrored_about_brain(mask: Mask, brain: Mask, axis: int) -> Mask:
    ends = np.flatnonzero(brain.any(tuple(other for other in range(3) if other != axis)))[[0, -1]]
    return np.roll(np.flip(mask, axis), int(ends.sum()) - (mask.shape[axis] - 1), axis)


def _without_trend(values: Array, brain: Mask, spacing_mm: Sequence[float]) -> Array:
    """Values in the brain less the mean of their neighbours in the brain."""
    size = [2 * round(SMOOTH_MM / 2 / step) + 1 for step in spacing_mm]
    weight = ndimage.uniform_filter(brain.astype(np.float32), size)
    mean = ndimage.uniform_filter(np.where(brain, values, 0).astype(np.float32), size)
    return np.asarray(values[brain] - mean[brain] / weight[brain])


def _spearman(first: Array, second: Array) -> float:
    if first.min() == first.max() or second.min() == second.max():
        return 0.0
    return float(stats.spearmanr(first, second).statistic)


def _lowest_share(array: Array) -> float:
    return float((array <= array.min() + 1e-6).mean())
