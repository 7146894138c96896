"""Hypoxic-ischaemic lesions: location, ADC reduction, and the annotator's outline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from .anatomy import FloatArray, RandomField, Tissue

DRAWN_AT = (0.38, 0.5)  # share of injury at the annotator's outline
OUTLINE_SMOOTHING_MM = (0.6, 1.2)


@dataclass(frozen=True)
class Disease:
    """Kind and size of one newborn's injury, independent of the anatomy."""

    kind: str  # none, or the kind of injury
    fraction: float  # of the brain's volume, 0..1
    reduction: float  # relative ADC reduction in the core, 0..1


def draw_disease(rng: np.random.Generator, rank: float) -> Disease:
    """Draw the kind, extent and severity of an injury of rank 0..1 in the severity distribution."""
    if rank < 0.075:
        return Disease("none", 0.0, 0.0)
    if rank < 0.575:
        fraction = max(0.0085 * np.exp(-abs(rng.normal(0, 1.2))), 0.0002)
        odds = {
            "focal": 0.25, "multifocal": 0.2, "basal_ganglia_thalamus": 0.2, "watershed": 0.15, "cortical": 0.1,
            "patches": 0.1,
        }  # fmt: skip
    elif rank < 0.925:
        fraction = np.exp(rng.uniform(np.log(0.015), np.log(0.18)))
        if fraction < 0.06:
            odds = {"multifocal": 0.25, "basal_ganglia_thalamus": 0.25, "watershed": 0.3, "territorial": 0.2}
        else:
            odds = {"watershed": 0.6, "territorial": 0.4}
    else:
        fraction = rng.uniform(0.23, 0.75)
        odds = {"watershed": 0.3, "near_total": 0.7}
    weights = np.array(list(odds.values()))
    kind = str(rng.choice(list(odds), p=weights / weights.sum()))
    reduction = 0.15 + 0.6 * rng.beta(2.2, 1.6)
    return Disease(kind, float(fraction), float(reduction))


def susceptibility(kind: str, rng: np.random.Generator, points_mm: FloatArray, tissue: Tissue) -> FloatArray:
    """Susceptibility of each point (3, N): the highest scores are injured first, -inf never."""
    x, _, z = points_mm
    side = np.abs(x)
    mirrored = np.stack([side, points_mm[1], z])
    parenchyma = tissue.csf < 0.5
    cerebral = parenchyma & (tissue.cerebrum_depth_mm > 0.5)
    candidates = np.flatnonzero(cerebral)
    noise = RandomField(rng, 3.0)(points_mm)[0]

    def blob(centre: ArrayLike, radii: ArrayLike, where: FloatArray = points_mm) -> FloatArray:
        offset = (where - np.asarray(centre, np.float32)[:, None]) / np.asarray(radii, np.float32)[:, None]
        return -np.sqrt((offset * offset).sum(0))

    def places(count: int) -> NDArray[np.floating]:
        return points_mm[:, rng.choice(candidates, count)].T

    def distance_from(place: NDArray[np.floating]) -> FloatArray:
        return -blob(place, np.ones(3))

    allowed = cerebral
    if kind in ("focal", "multifocal"):
        # Periventricular and centrum semiovale white matter.
        candidates = np.flatnonzero((tissue.white > 0.6) & (z > -5) & (tissue.cerebrum_depth_mm > 6))
        score = np.full(side.shape, -np.inf, dtype=np.float32)
        for seed in places(int(rng.integers(1, 3) if kind == "focal" else rng.integers(4, 12))):
            size = rng.uniform(0.6, 1.4)
            score = np.maximum(score, blob(seed, size * rng.uniform(0.7, 1.4, 3) * 10))
        score += 0.08 * noise
        allowed = cerebral & (tissue.white > 0.25)
    elif kind == "basal_ganglia_thalamus":
        balance = rng.normal(0, 0.15) * np.sign(x)
        putamen = blob((22, -2, 3), (5, 9, 8), mirrored) + rng.normal(0, 0.25)
        thalamus = blob((11, -11, 5), (7, 8, 7), mirrored) + rng.normal(0, 0.25)
        tract = blob((18, -9, 5), (3, 6, 10), mirrored) + rng.normal(-0.2, 0.25)
        score = np.maximum(np.maximum(putamen, thalamus), tract) + balance + 0.25 * noise
        allowed = parenchyma & (z > -12)
    elif kind == "watershed":
        balance = rng.normal(0, 0.4) * np.sign(x)
        frontal = blob((20, 32, 26), (11, 16, 13), mirrored) + rng.normal(0, 0.3)
        parietal = blob((24, -34, 24), (12, 16, 14), mirrored) + rng.normal(0, 0.3)
        between = blob((17, 0, 36), (9, 25, 8), mirrored) + rng.normal(-0.6, 0.3)
        score = np.maximum(np.maximum(frontal, parietal), between) + balance + 0.3 * noise
        score = score - 0.02 * np.maximum(tissue.cerebrum_depth_mm - 8, 0)
    elif kind == "territorial":
        hemisphere = rng.choice([-1.0, 1.0])
        score = blob((hemisphere * 36, rng.uniform(-18, 16), rng.uniform(0, 18)), (20, 22, 20)) + 0.15 * noise
        score = score - 0.06 * np.maximum(14 - x * hemisphere, 0)
        allowed = cerebral & (x * hemisphere > 1)
    elif kind == "near_total":
        # Perinatal total asphyxia injures the cerebrum first; cerebellum and brainstem are spared.
        score = 0.5 * RandomField(rng, 14.0)(points_mm)[0] + 0.25 * noise + 0.015 * z
        score = score + 0.25 * (np.sign(x) * rng.normal())
    elif kind == "patches":  # a random field around a focus
        score = RandomField(rng, float(rng.uniform(5, 12)))(points_mm)[0] + np.float32(0.2) * noise
        score = score - np.float32(rng.uniform(0.01, 0.05)) * distance_from(places(1)[0])
    else:  # cortical: some gyri
        layer = np.abs(tissue.cerebrum_depth_mm - np.float32(rng.uniform(1.5, 3.5))) * np.float32(0.35)
        score = -layer - np.float32(0.06) * distance_from(places(1)[0]) + np.float32(0.4) * noise
        score = score - np.float32(3) * tissue.white
    return np.where(allowed, score, -np.inf).astype(np.float32)


def most_susceptible(score: FloatArray, fraction: float, brain_points: int, least_points: int) -> NDArray[np.bool_]:
    """The points with the highest scores: ``fraction`` of ``brain_points``, at least ``least_points``."""
    allowed = int(np.isfinite(score).sum())
    count = int(np.clip(round(fraction * brain_points), least_points, max(allowed - 1, 1)))
    threshold = np.partition(score, -count)[-count]
    return (score >= threshold) & np.isfinite(score)


def outline(
    extent: FloatArray, spacing_mm: NDArray[np.floating], rng: np.random.Generator, least_voxels: int = 3
) -> NDArray[np.bool_]:
    """Annotation (X, Y, Z): slice by slice, slightly too smooth and shifted.

    ``extent`` is the share of injured tissue in each voxel, 0..1; smaller components than ``least_voxels`` are removed.
    """
    drawn = np.zeros(extent.shape, dtype=bool)
    for k in np.flatnonzero((extent > 0.2).any((0, 1))):
        smoothing_mm = rng.uniform(*OUTLINE_SMOOTHING_MM)
        shift_voxels = rng.normal(0, 0.25, 2) / spacing_mm[:2]
        smooth = ndimage.gaussian_filter(extent[:, :, k], smoothing_mm / spacing_mm[:2], truncate=3)
        labels, _ = ndimage.label(ndimage.shift(smooth, shift_voxels, order=1) > rng.uniform(*DRAWN_AT))
        keep = np.bincount(labels.ravel()) >= least_voxels
        keep[0] = False
        drawn[:, :, k] = keep[labels]
    if not drawn.any() and extent.any():
        drawn = extent >= min(0.5, float(np.sort(extent, axis=None)[-least_voxels]))
    return drawn
