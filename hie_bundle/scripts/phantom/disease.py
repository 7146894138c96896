"""Hypoxic-ischaemic lesions: where they lie, how deep the ADC falls, and how an annotator outlines them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from .anatomy import FloatArray, RandomField, Tissue


@dataclass(frozen=True)
class Disease:
    """One newborn's injury before it is laid into the anatomy."""

    kind: str  # none, focal, multifocal, basal_ganglia_thalamus, watershed, territorial or near_total
    fraction: float  # of the brain's volume, 0..1
    reduction: float  # relative fall of ADC in the core, 0..1


def draw_disease(rng: np.random.Generator, rank: float) -> Disease:
    """Draw the kind, extent and severity of the injury.

    Args:
        rng: source of randomness.
        rank: position of the case in the severity distribution, 0..1. Taking it from a low-discrepancy sequence
            over the case numbers keeps the mix right in every cohort, also a small one.
    """
    if rank < 0.075:
        return Disease("none", 0.0, 0.0)
    odds: dict[str, float]
    if rank < 0.575:
        fraction = max(0.0085 * np.exp(-abs(rng.normal(0, 1.2))), 0.0002)
        odds = {"focal": 0.35, "multifocal": 0.3, "basal_ganglia_thalamus": 0.2, "watershed": 0.15}
    elif rank < 0.925:
        fraction = np.exp(rng.uniform(np.log(0.015), np.log(0.18)))
        if fraction < 0.06:
            odds = {"multifocal": 0.25, "basal_ganglia_thalamus": 0.25, "watershed": 0.3, "territorial": 0.2}
        else:
            odds = {"watershed": 0.6, "territorial": 0.4}
    else:
        fraction = rng.uniform(0.23, 0.75)
        odds = {"watershed": 0.3, "near_total": 0.7}
    kind = str(rng.choice(list(odds), p=list(odds.values())))
    reduction = 0.15 + 0.6 * rng.beta(2.2, 1.6)
    return Disease(kind, float(fraction), float(reduction))


def susceptibility(kind: str, rng: np.random.Generator, points_mm: FloatArray, tissue: Tissue) -> FloatArray:
    """Score of every point (N,), higher where injury of this kind comes first; -inf where it never comes.

    Args:
        kind: of the injury, as in :class:`Disease`, but none.
        rng: source of randomness.
        points_mm: canonical positions (3, N).
        tissue: anatomy at these points.
    """
    side = np.abs(points_mm[0])
    noise = RandomField(rng, 3.0)(points_mm)[0]
    parenchyma = tissue.csf < 0.5
    cerebral = parenchyma & (tissue.cerebrum_depth_mm > 0.5)
    mirrored = np.stack([side, points_mm[1], points_mm[2]])

    def blob(centre: ArrayLike, radii: ArrayLike, where: FloatArray = points_mm) -> FloatArray:
        offset = (where - np.asarray(centre, np.float32)[:, None]) / np.asarray(radii, np.float32)[:, None]
        return -np.sqrt((offset * offset).sum(0))

    if kind in ("focal", "multifocal"):
        # Periventricular and centrum semiovale white matter.
        candidates = np.flatnonzero((tissue.white > 0.6) & (points_mm[2] > -5) & (tissue.cerebrum_depth_mm > 6))
        count = int(rng.integers(1, 3) if kind == "focal" else rng.integers(4, 12))
        score = np.full(side.shape, -np.inf, dtype=np.float32)
        for seed in points_mm[:, rng.choice(candidates, count)].T:
            size = rng.uniform(0.6, 1.4)
            score = np.maximum(score, blob(seed, size * rng.uniform(0.7, 1.4, 3) * 10))
        score += 0.08 * noise
        allowed = cerebral & (tissue.white > 0.25)
    elif kind == "basal_ganglia_thalamus":
        balance = rng.normal(0, 0.15) * np.sign(points_mm[0])
        putamen = blob((22, -2, 3), (5, 9, 8), mirrored) + rng.normal(0, 0.25)
        thalamus = blob((11, -11, 5), (7, 8, 7), mirrored) + rng.normal(0, 0.25)
        tract = blob((18, -9, 5), (3, 6, 10), mirrored) + rng.normal(-0.2, 0.25)
        score = np.maximum(np.maximum(putamen, thalamus), tract) + balance + 0.25 * noise
        allowed = parenchyma & (points_mm[2] > -12)
    elif kind == "watershed":
        balance = rng.normal(0, 0.4) * np.sign(points_mm[0])
        frontal = blob((20, 32, 26), (11, 16, 13), mirrored) + rng.normal(0, 0.3)
        parietal = blob((24, -34, 24), (12, 16, 14), mirrored) + rng.normal(0, 0.3)
        between = blob((17, 0, 36), (9, 25, 8), mirrored) + rng.normal(-0.6, 0.3)
        score = np.maximum(np.maximum(frontal, parietal), between) + balance + 0.3 * noise
        score = score - 0.02 * np.maximum(tissue.cerebrum_depth_mm - 8, 0)
        allowed = cerebral
    elif kind == "territorial":
        hemisphere = rng.choice([-1.0, 1.0])
        centre = (hemisphere * 36, rng.uniform(-18, 16), rng.uniform(0, 18))
        score = blob(centre, (20, 22, 20)) + 0.15 * noise
        score = score - 0.06 * np.maximum(14 - points_mm[0] * hemisphere, 0)
        allowed = cerebral & (points_mm[0] * hemisphere > 1)
    else:
        # Perinatal total asphyxia: the cerebrum first; cerebellum and brainstem are spared.
        score = 0.5 * RandomField(rng, 14.0)(points_mm)[0] + 0.25 * noise + 0.015 * points_mm[2]
        score = score + 0.25 * (np.sign(points_mm[0]) * rng.normal())
        allowed = cerebral
    return np.where(allowed, score, -np.inf).astype(np.float32)


def most_susceptible(score: FloatArray, fraction: float, brain_points: int, least_points: int) -> NDArray[np.bool_]:
    """The ``fraction`` of ``brain_points``, but at least ``least_points``, with the highest score."""
    allowed = int(np.isfinite(score).sum())
    count = int(np.clip(round(fraction * brain_points), least_points, max(allowed - 1, 1)))
    threshold = np.partition(score, -count)[-count]
    return (score >= threshold) & np.isfinite(score)


@dataclass(frozen=True)
class Annotator:
    """How an annotator draws."""

    smoothing_mm: tuple[float, float] = (0.6, 1.2)  # least and greatest, drawn per slice
    drawn_at: tuple[float, float] = (0.38, 0.5)  # share of injured tissue that is still drawn, per slice
    shift_mm: float = 0.25  # standard deviation along each axis in plane
    missed_slices: float = 0.0  # share of the lesion's slices that is left out
    ignored_voxels: int = 0  # connected lesions smaller than this are left out where a larger one is drawn
    whole: bool = False  # in three dimensions at once


def outline(
    extent: FloatArray,
    spacing_mm: NDArray[np.floating],
    rng: np.random.Generator,
    least_voxels: int = 3,
    annotator: Annotator | None = None,
) -> NDArray[np.bool_]:
    """What an annotator draws, slice by slice and slightly too smooth, around the visible lesion.

    Args:
        extent: share of injured tissue in each voxel (X, Y, Z), 0..1.
        spacing_mm: voxel size (3,).
        rng: source of randomness.
        least_voxels: size in one slice below which nothing is drawn.
        annotator: habits; None for the usual ones.
    """
    annotator = annotator or Annotator()
    drawn = np.zeros(extent.shape, dtype=bool)
    slices = np.flatnonzero((extent > min(0.2, annotator.drawn_at[0])).any((0, 1)))
    if annotator.whole:
        smooth = ndimage.gaussian_filter(extent, rng.uniform(*annotator.smoothing_mm) / spacing_mm, truncate=3)
        drawn, slices = smooth > rng.uniform(*annotator.drawn_at), slices[:0]
    for k in slices:
        smoothing_mm = rng.uniform(*annotator.smoothing_mm)
        shift_voxels = rng.normal(0, annotator.shift_mm, 2) / spacing_mm[:2]
        smooth = ndimage.gaussian_filter(extent[:, :, k], smoothing_mm / spacing_mm[:2], truncate=3)
        smooth = ndimage.shift(smooth, shift_voxels, order=1)
        labels, count = ndimage.label(smooth > rng.uniform(*annotator.drawn_at))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        keep = sizes >= least_voxels
        keep[0] = False
        drawn[:, :, k] = keep[labels]
    if annotator.missed_slices:
        shown = np.flatnonzero(drawn.any((0, 1)))
        missed = shown[rng.random(len(shown)) < annotator.missed_slices]
        if len(missed) < len(shown):
            drawn[:, :, missed] = False
    if annotator.ignored_voxels:
        labels, count = ndimage.label(drawn)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        keep = sizes >= annotator.ignored_voxels
        keep[0] = False
        if keep.any():
            drawn = keep[labels]
    if not drawn.any() and extent.any():
        drawn = extent >= min(0.5, float(np.sort(extent, axis=None)[-least_voxels]))
    return drawn
