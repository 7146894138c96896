"""What changes ADC without being an acute injury, and is never labelled; and what the head does to the field."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .anatomy import FloatArray, RandomField, Subject, Tissue, ramp
from .variety import CaseSettings

# Canonical RAS mm: above the nasal cavity and the frontal sinus' place, and above both ears.
NEAR_AIR = ((0.0, 46.0, -12.0), (32.0, -4.0, -26.0), (-32.0, -4.0, -26.0))


def vary_subject(subject: Subject, look: CaseSettings) -> Subject:
    """The newborn with the case's maturity, fluid spaces, folding and level of ADC."""
    grey = look.grey_level
    return replace(
        subject,
        folding=replace(subject.folding, own_weight=look.own_folding),
        adc_gain=subject.adc_gain * look.adc_level,
        adc_white=subject.adc_white * look.white_level,
        adc_cortex=subject.adc_cortex * grey,
        adc_deep=subject.adc_deep * grey,
        adc_cerebellum=subject.adc_cerebellum * grey,
        extra_axial_mm=float(np.clip(subject.extra_axial_mm + look.fluid_mm, 0.3, 5.0)),
        ventricle_mm=float(np.clip(subject.ventricle_mm + look.ventricle_mm, -1.2, 5.0)),
        cortex_mm=look.cortex_mm,
        tract=look.tract_level,
    )


def near_air(points_mm: FloatArray) -> FloatArray:
    """How close points (3, N) lie to air in the skull's base, 0..1."""
    best = np.zeros(points_mm.shape[1], dtype=np.float32)
    for place in NEAR_AIR:
        offset = (points_mm - np.array(place, np.float32)[:, None]) / np.float32(13)
        np.maximum(best, np.exp(-(offset * offset).sum(0)), out=best)
    return best


def reshape(points_mm: FloatArray, look: CaseSettings) -> FloatArray:
    """Positions (3, N) in the canonical head for positions in a head of another aspect, with unlike halves."""
    wide = np.float32(1 + look.aspect)
    half = 1 + np.float32(look.asymmetry) * np.tanh(points_mm[:1] / 12)
    return np.concatenate([points_mm[:1] * wide * half, points_mm[1:2] / wide, points_mm[2:]])


def distort(points_mm: FloatArray, look: CaseSettings) -> FloatArray:
    """Positions (3, N) that the scan shows at ``points_mm``: shifted front to back near air."""
    if not look.distortion_mm:
        return points_mm
    shift = np.float32(look.distortion_mm) * near_air(points_mm)
    return np.stack([points_mm[0], points_mm[1] + shift, points_mm[2]])


def add_confounders(
    tissue: Tissue,
    points_mm: FloatArray,
    look: CaseSettings,
    injured: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[Tissue, FloatArray]:
    """Old injuries, haemorrhages, a low rim along the skull strip and signal lost near air.

    Args:
        tissue: of the newborn at the points.
        points_mm: canonical positions (3, N).
        look: the case's settings.
        injured: acute injury (N,): no old injury or haemorrhage lies there, as it would belong into the label.
        rng: source of randomness.

    Returns:
        The tissue with its ADC changed, and the share of signal that is left (N,).
    """
    adc = tissue.adc.copy()
    left: FloatArray = 1 - np.float32(look.dropout) * np.minimum(np.float32(1.3) * near_air(points_mm), 1)
    free = ~injured & (tissue.brain_depth_mm > 1)
    roughness = RandomField(rng, 4.0)(points_mm)[0]

    def blob(among: NDArray[np.bool_], low_mm: float, high_mm: float) -> FloatArray:
        candidates = np.flatnonzero(among)
        if not len(candidates):
            return np.zeros_like(adc)
        centre = points_mm[:, rng.choice(candidates)][:, None]
        radii = (np.exp(rng.uniform(np.log(low_mm), np.log(high_mm))) * rng.uniform(0.7, 1.4, 3)).astype(np.float32)
        offset = (points_mm - centre) / radii[:, None]
        inside = 1 - np.sqrt((offset * offset).sum(0)) + np.float32(0.2) * roughness
        return np.clip(3 * inside, 0, 1) * free

    white = tissue.white > 0.5
    for _ in range(round(look.old_injuries)):
        weight: FloatArray = blob(white, 2.0, 12.0) * (1 - tissue.csf)
        value = np.float32(rng.uniform(1.2, 1.75))
        adc *= 1 + weight * (value - 1)
    for _ in range(round(look.haemorrhages)):
        place = rng.integers(3)  # in tissue, beside or in the ventricles, or over the surface
        inner = np.square(points_mm[0] / 20) + np.square((points_mm[1] + 4) / 32) + np.square((points_mm[2] - 9) / 14)
        among = (white, (inner < 1) & free, (tissue.brain_depth_mm < 4) & free)[place]
        weight = blob(among, 1.5, 9.0)
        # Blood takes signal away, by its iron, and restricts diffusion at its age.
        left = left * (1 - weight * np.float32(rng.uniform(0.4, 0.93)))
        adc *= 1 - weight * np.float32(rng.uniform(0.0, 0.45))
        adc -= weight * tissue.csf * (adc - np.float32(rng.uniform(900, 1900)))
    if look.low_rim_mm:
        patches = np.clip(RandomField(rng, 9.0)(points_mm)[0], 0, 1)
        rim = ramp(np.float32(look.low_rim_mm + look.strip_mm) - tissue.brain_depth_mm, 1.5) * patches
        adc += rim * (np.float32(rng.uniform(450, 900)) - adc)
    return replace(tissue, adc=adc), left
