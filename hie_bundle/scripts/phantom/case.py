"""One simulated case: anatomy, disease, acquisition, skull strip, Z map and label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..scanner.inputs import z_map
from .acquisition import OUTSIDE_SIGNAL, FineGrid, draw_grid, draw_scanner, measure, refine, signals
from .anatomy import FloatArray, KnownStructures, RandomField, Tissue, draw_subject, evaluate
from .disease import draw_disease, most_susceptible, outline, susceptibility
from .normative import build_atlas, common_folding
from .settings import Settings

CASE_STREAM = 0
GOLDEN = (5**0.5 - 1) / 2
WARP_MM, WARP_SCALE_MM = 2.2, 22.0  # amplitude and smoothness of the head's shape variation
REGISTRATION_SCALE_MM = 12.0  # smoothness of the misalignment with the atlas
SOFTNESS_MM = 0.8  # standard deviation of the blur at an injury's border
Z_SMOOTHING_MM, Z_CLIP = 2.0, 10.0  # full width at half maximum; both as in BONBID-HIE


@dataclass(frozen=True)
class Case:
    """Maps and truth of one newborn, arrays indexed (x, y, z) on one grid; geometry in LPS mm as in ITK."""

    adc: NDArray[np.int16]  # 1e-6 mm²/s, 0 outside the brain
    zadc: FloatArray  # within ±z_clip, 0 outside the brain
    label: NDArray[np.uint8]  # 1 in the annotated lesion
    brain: NDArray[np.bool_]  # skull-strip mask
    extent: FloatArray  # true share of injured tissue, 0..1
    healthy_adc: NDArray[np.int16] | None  # the same scan without the injury
    canonical_mm: FloatArray | None  # (3, x, y, z) position of each voxel in atlas space, NaN far from the head
    spacing_mm: NDArray[np.float64]
    origin_mm: NDArray[np.float64]
    direction: NDArray[np.float64]
    kind: str


def simulate_case(
    seed: int, case_number: int, settings: Settings | None = None, *, counterfactual: bool = False
) -> Case:
    """Simulate case ``case_number`` (from 0) of the cohort ``seed``; equal arguments give equal arrays.

    ``counterfactual`` adds the same scan without the injury and the position of each voxel in atlas space.
    """
    settings = settings or Settings()
    *streams, noise_seed = np.random.SeedSequence([CASE_STREAM, seed, case_number]).spawn(8)
    scan_rng, subject_rng, disease_rng, strip_rng, align_rng, annotator_rng, known_rng = map(
        np.random.default_rng, streams
    )
    grid, pose = draw_grid(scan_rng, settings)
    scanner = draw_scanner(scan_rng, grid.size[2], settings)
    fine = refine(grid, pose, settings.fine_mm)

    subject = draw_subject(subject_rng, common_folding(seed), patient=True)
    warp = RandomField(subject_rng, WARP_SCALE_MM, channels=3)

    def warped(points_mm: FloatArray) -> FloatArray:
        return points_mm + np.float32(WARP_MM) * warp(points_mm)

    points, positions = warped(fine.points_mm), warped(fine.voxel_points_mm)
    tissue = evaluate(subject, points, edge_mm=settings.fine_mm)
    known = KnownStructures(known_rng, settings.known_structures)
    healthy = tissue.adc * known(points, tissue.csf)
    in_head = tissue.brain_depth_mm > 0

    # a low-discrepancy sequence gives every cohort about the same mix of severities
    rank = (np.random.default_rng([CASE_STREAM, seed]).random() + case_number * GOLDEN) % 1
    disease = draw_disease(disease_rng, rank)
    extent = np.zeros(fine.fine_shape, dtype=np.float32)
    reduction = np.zeros(1, dtype=np.float32)
    if disease.fraction:
        step_mm = grid.spacing_mm / fine.factors
        volume_mm3 = disease.fraction * int(in_head.sum()) * float(np.prod(step_mm))
        score = susceptibility(disease.kind, disease_rng, points, tissue)
        core = most_susceptible(score, disease.fraction, int(in_head.sum()), 24 * int(np.prod(fine.factors)))
        softness_mm = SOFTNESS_MM * min(1.0, volume_mm3 ** (1 / 3) / 8)  # a wide blur would erase a small core
        extent = ndimage.gaussian_filter(fine.scatter(core.astype(np.float32)), softness_mm / step_mm, truncate=3)
        extent *= 1 - fine.scatter(tissue.csf)
        variation = RandomField(disease_rng, 5.0)(points)[0]
        reduction = np.float32(disease.reduction) * np.clip(1 + np.float32(0.15) * variation, 0.4, 1.4)
    brain = skull_strip(fine, tissue, strip_rng)

    def scan(adc: FloatArray) -> NDArray[np.int16]:
        plain, weighted = (fine.average(fine.scatter(s, OUTSIDE_SIGNAL)) for s in signals(scanner, tissue, adc))
        measured = measure(scanner, fine, grid.spacing_mm, (plain, weighted), noise_seed)
        # 0 is reserved for the background, since brain masks are commonly ADC > 0
        return np.where(brain, np.maximum(np.round(measured), 1), 0).astype(np.int16)

    adc = scan(healthy * (1 - reduction * fine.gather(extent)))
    atlas = build_atlas(seed, settings.num_healthy, settings.atlas_step_mm)
    aligned_by = RandomField(align_rng, REGISTRATION_SCALE_MM, channels=3)
    registered = positions + np.float32(settings.registration_mm) * aligned_by(fine.voxel_points_mm)
    mean, std = atlas(registered)
    mean = mean * known(registered, np.zeros_like(mean))
    mean, std = mean.reshape(fine.shape), std.reshape(fine.shape)
    zadc = z_map(adc, brain, mean, std, grid.spacing_mm, Z_SMOOTHING_MM, Z_CLIP)
    voxel_extent = fine.average(extent)
    label = outline(voxel_extent * brain, grid.spacing_mm, annotator_rng) & brain

    def whole(values: NDArray[Any], dtype: type, elsewhere: float = 0) -> NDArray[Any]:
        volume: NDArray[Any] = np.full((*values.shape[:-3], *grid.size), elsewhere, dtype=dtype)
        volume[(slice(None),) * (values.ndim - 3) + fine.window] = values
        return volume

    return Case(
        adc=whole(adc, np.int16),
        zadc=whole(zadc, np.float32),
        label=whole(label, np.uint8),
        brain=whole(brain, np.bool_),
        extent=whole(voxel_extent, np.float32),
        healthy_adc=whole(scan(healthy), np.int16) if counterfactual else None,
        canonical_mm=whole(positions.reshape(3, *fine.shape), np.float32, np.nan) if counterfactual else None,
        spacing_mm=grid.spacing_mm,
        origin_mm=grid.origin_mm,
        direction=grid.direction,
        kind=disease.kind,
    )


def skull_strip(
    fine: FineGrid, tissue: Tissue, rng: np.random.Generator, inside_mm: float = 0.6, error_mm: float = 0.5
) -> NDArray[np.bool_]:
    """Brain mask of the covered voxels; its border is ``inside_mm`` inside the brain, with a random ``error_mm``."""
    error = inside_mm + error_mm * RandomField(rng, 8.0)(fine.voxel_points_mm)[0].reshape(fine.shape)
    mask = fine.average(fine.scatter(tissue.brain_depth_mm, -5)) > error
    labels, count = ndimage.label(mask)
    return np.asarray(labels == np.bincount(labels.ravel())[1:].argmax() + 1) if count > 1 else mask
