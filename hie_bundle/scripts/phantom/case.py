"""One simulated case: anatomy, disease, acquisition, Z map and label put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .acquisition import FineGrid, draw_grid, draw_scanner, measure, refine
from .anatomy import FloatArray, RandomField, draw_subject, evaluate
from .disease import draw_disease, most_susceptible, outline, susceptibility
from .normative import build_atlas, common_folding, z_map

CASE_STREAM = 0
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Case:
    """Maps and truth of one newborn, arrays indexed (x, y, z) on one grid; geometry in LPS mm as in ITK."""

    adc: NDArray[np.int16]  # 1e-6 mm²/s, 0 outside the brain
    zadc: NDArray[np.float32]  # within ±10, 0 outside the brain
    label: NDArray[np.uint8]  # 1 in the annotated lesion
    brain: NDArray[np.bool_]  # skull-strip mask
    extent: NDArray[np.float32]  # true share of injured tissue, 0..1
    healthy_adc: NDArray[np.int16] | None  # the same scan had there been no injury
    spacing_mm: NDArray[np.float64]
    origin_mm: NDArray[np.float64]
    direction: NDArray[np.float64]
    kind: str


def simulate_case(
    seed: int,
    case_number: int,
    *,
    matrix_sizes: Sequence[int] = (128, 160, 192, 256),
    slice_range: tuple[int, int] = (16, 64),
    spacing_range_mm: tuple[float, float] = (0.9, 2.0),
    slice_thickness_range_mm: tuple[float, float] = (2.0, 5.0),
    fine_mm: float = 1.2,
    artefact_probability: float = 0.08,
    registration_mm: float = 1.6,
    num_healthy: int = 13,
    atlas_step_mm: float = 1.5,
    counterfactual: bool = False,
) -> Case:
    """Simulate case ``case_number`` of the cohort ``seed``; equal arguments give equal arrays."""
    streams = np.random.SeedSequence([CASE_STREAM, seed, case_number]).spawn(7)
    scan_rng, subject_rng, disease_rng, noise_seed, strip_rng, align_rng, annotator_rng = (
        stream if i == 3 else np.random.default_rng(stream) for i, stream in enumerate(streams)
    )
    grid, pose = draw_grid(scan_rng, matrix_sizes, slice_range, spacing_range_mm, slice_thickness_range_mm)
    scanner = draw_scanner(scan_rng, grid.size[2], artefact_probability)
    fine = refine(grid, pose, fine_mm, (58.0, 70.0, 58.0))

    subject = draw_subject(subject_rng, common_folding(seed))
    warp = RandomField(subject_rng, 16.0, channels=3)
    points = fine.points_mm + 2.5 * warp(fine.points_mm)
    tissue = evaluate(subject, points, edge_mm=fine_mm)
    in_head = tissue.brain_depth_mm > 0

    rank = (np.random.default_rng([CASE_STREAM, seed]).random() + case_number * GOLDEN) % 1
    disease = draw_disease(disease_rng, rank)
    extent = np.zeros(fine.fine_shape, dtype=np.float32)
    reduction = np.float32(0)
    if disease.fraction:
        score = susceptibility(disease.kind, disease_rng, points, tissue)
        least = 24 * int(np.prod(fine.factors))
        core = most_susceptible(score, disease.fraction, int(in_head.sum()), least).reshape(fine.fine_shape)
        fine_spacing = grid.spacing_mm / fine.factors
        extent = ndimage.gaussian_filter(core.astype(np.float32), 1.0 / fine_spacing, truncate=3)
        extent *= (1 - tissue.csf).reshape(extent.shape)
        variation = RandomField(disease_rng, 5.0)(points)[0]
        reduction = disease.reduction * np.clip(1 + 0.15 * variation, 0.4, 1.4)

    # Relative signal at b = 0 is T2-weighted: fluid is bright; skull and air outside give little.
    signal = np.where(in_head, 1 + np.float32(0.7) * tissue.csf - np.float32(0.12) * (1 - tissue.white), 0.12)
    healthy = np.where(in_head, tissue.adc, np.float32(700))
    injured = healthy * (1 - reduction * extent.reshape(-1))
    brain = skull_strip(fine, tissue.brain_depth_mm, strip_rng)

    atlas = build_atlas(seed, num_healthy, atlas_step_mm)
    shift = RandomField(align_rng, 12.0, channels=3)(fine.voxel_points_mm) * np.float32(registration_mm)
    aligned = fine.voxel_points_mm + 2.5 * warp(fine.voxel_points_mm) + shift
    mean, std = (values.reshape(fine.shape) for values in atlas(aligned))

    def scan(adc: FloatArray) -> NDArray[np.int16]:
        measured = measure(scanner, fine, grid.spacing_mm, adc, signal, noise_seed)
        return np.where(brain, np.round(measured), 0).astype(np.int16)

    adc = scan(injured)
    zadc = z_map(adc, brain, mean, std, grid.spacing_mm)
    voxel_extent = fine.average(extent)
    label = outline(voxel_extent, grid.spacing_mm, annotator_rng, 3) & brain
    window = tuple(slice(a, a + n) for a, n in zip(fine.start, fine.shape, strict=True))

    def whole(values: NDArray, dtype: type) -> NDArray:
        volume = np.zeros(grid.size, dtype=dtype)
        volume[window] = values
        return volume

    return Case(
        adc=whole(adc, np.int16),
        zadc=whole(zadc, np.float32),
        label=whole(label, np.uint8),
        brain=whole(brain, np.bool_),
        extent=whole(voxel_extent, np.float32),
        healthy_adc=whole(scan(healthy), np.int16) if counterfactual else None,
        spacing_mm=grid.spacing_mm,
        origin_mm=grid.origin_mm,
        direction=grid.direction,
        kind=disease.kind,
    )


def skull_strip(fine: FineGrid, depth_mm: FloatArray, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Brain mask of the covered voxels, its border off by about half a millimetre either way."""
    error = 0.3 + 0.5 * RandomField(rng, 8.0)(fine.voxel_points_mm)[0].reshape(fine.shape)
    mask = fine.average(depth_mm) > error
    labels, count = ndimage.label(mask)
    if count > 1:
        mask = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return mask
