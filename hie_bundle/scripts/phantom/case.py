"""One simulated case: anatomy, disease, acquisition, Z map and label put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..runtime.errors import choose
from ..scanner.zmap import z_map
from .acquisition import (
    OUTSIDE_SIGNAL,
    FineGrid,
    draw_grid,
    draw_scanner,
    lay_grid,
    measure,
    refine,
    signals,
    varied_scanner,
)
from .anatomy import FloatArray, RandomField, Tissue, draw_subject, evaluate
from .confounders import add_confounders, distort, reshape, vary_subject
from .disease import Annotator, Disease, draw_disease, most_susceptible, outline, susceptibility
from .normative import build_atlas, common_folding
from .settings import Settings
from .shapes import SHAPES, shape_score
from .variety import SIZES, CaseSettings, Rule, draw_settings

CASE_STREAM, VARIETY_STREAM = 0, 2
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Case:
    """Maps and truth of one newborn, arrays indexed (x, y, z) on one grid; geometry in LPS mm as in ITK."""

    adc: NDArray[np.int16]  # 1e-6 mm²/s, 0 outside the brain
    zadc: FloatArray  # within ±10, 0 outside the brain
    label: NDArray[np.uint8]  # 1 in the annotated lesion
    brain: NDArray[np.bool_]  # skull-strip mask
    extent: FloatArray  # true share of injured tissue, 0..1
    healthy_adc: NDArray[np.int16] | None  # the same scan had there been no injury
    canonical_mm: FloatArray | None  # (3, x, y, z) where each voxel lies in the atlas' space, NaN far from the head
    spacing_mm: NDArray[np.float64]
    origin_mm: NDArray[np.float64]
    direction: NDArray[np.float64]
    kind: str
    settings: CaseSettings | None = None  # what was drawn, if the case has settings of its own


def simulate_case(
    seed: int,
    case_number: int,
    settings: Settings | None = None,
    family: Mapping[str, Rule] | None = None,
    *,
    counterfactual: bool = False,
) -> Case:
    """Simulate case ``case_number`` of the cohort ``seed``; equal arguments give equal arrays.

    Args:
        seed: of the cohort.
        case_number: counted from 0.
        settings: of the cohort; None for the defaults.
        family: ranges that the case's own settings are drawn from, as :func:`draw_settings` takes them; of
            ``settings``, only the atlas and ``fine_mm`` count then. None for a plain case.
        counterfactual: also scan the newborn without the injury, with the same noise, and say where each voxel lies.
    """
    settings = settings or Settings()
    *streams, noise_seed = np.random.SeedSequence([CASE_STREAM, seed, case_number]).spawn(7)
    scan_rng, subject_rng, disease_rng, strip_rng, align_rng, annotator_rng = map(np.random.default_rng, streams)
    look = None
    if family is not None:
        look_seed, confounder_seed = np.random.SeedSequence([VARIETY_STREAM, seed, case_number]).spawn(2)
        look = draw_settings(family, np.random.default_rng(look_seed))
    if look:
        grid, pose = lay_grid(scan_rng, look)
        scanner = varied_scanner(scan_rng, grid.size[2], look)
        fine = refine(grid, pose, settings.fine_mm, look.gap, reach=1.08)
    else:
        grid, pose = draw_grid(
            scan_rng,
            settings.matrix_sizes,
            settings.slice_range,
            settings.spacing_range_mm,
            settings.slice_thickness_range_mm,
        )
        scanner = draw_scanner(scan_rng, grid.size[2], settings.artefact_probability)
        fine = refine(grid, pose, settings.fine_mm)

    subject = draw_subject(subject_rng, common_folding(seed), patient=True)
    if look:
        subject = vary_subject(subject, look)
    warp = RandomField(subject_rng, look.warp_scale_mm if look else 22.0, channels=3)
    warp_mm = np.float32(look.warp_mm if look else 2.5)

    def warped(points_mm: FloatArray) -> FloatArray:
        moved = points_mm + warp_mm * warp(points_mm)
        return reshape(moved, look) if look else moved

    points = warped(distort(fine.points_mm, look) if look else fine.points_mm)
    tissue = evaluate(subject, points, edge_mm=settings.fine_mm)
    in_head = tissue.brain_depth_mm > 0

    # A low-discrepancy sequence over the case numbers keeps the mix of severities right in every cohort.
    rank = (np.random.default_rng([CASE_STREAM, seed]).random() + case_number * GOLDEN) % 1
    disease = vary_disease(disease_rng, look) if look else draw_disease(disease_rng, rank)
    extent = np.zeros(fine.fine_shape, dtype=np.float32)
    reduction = np.zeros(1, dtype=np.float32)
    if disease.fraction:
        step_mm = grid.spacing_mm / fine.factors
        volume_mm3 = disease.fraction * int(in_head.sum()) * float(np.prod(step_mm))
        if disease.kind in SHAPES:
            score = shape_score(disease.kind, disease_rng, points, tissue, volume_mm3)
        else:
            score = susceptibility(disease.kind, disease_rng, points, tissue)
        least = (4 if look else 24) * int(np.prod(fine.factors))
        core = most_susceptible(score, disease.fraction, int(in_head.sum()), least)
        # A border as soft as a large injury's would wash a small one out.
        softness_mm = look.softness_mm * min(1.0, volume_mm3 ** (1 / 3) / 10) if look else 0.8
        extent = ndimage.gaussian_filter(fine.scatter(core.astype(np.float32)), softness_mm / step_mm, truncate=3)
        extent *= 1 - fine.scatter(tissue.csf)
        variation = RandomField(disease_rng, 5.0)(points)[0]
        patchiness = np.float32(look.patchiness if look else 0.15)
        # What is as small as a few voxels is annotated only where it stands out.
        fall = max(disease.reduction, 0.35) if look and volume_mm3 < 1000 else disease.reduction
        reduction = np.float32(fall) * np.clip(1 + patchiness * variation, 0.4, 1.4)

    left: FloatArray = np.ones(1, dtype=np.float32)
    if look:
        confounder_rng = np.random.default_rng(confounder_seed)
        tissue, left = add_confounders(tissue, points, look, fine.gather(extent) > 0.02, confounder_rng)
    injured = tissue.adc * (1 - reduction * fine.gather(extent))
    brain = skull_strip(fine, tissue, strip_rng, *((look.strip_mm, look.strip_error_mm) if look else ()))

    def scan(adc: FloatArray) -> NDArray[np.int16]:
        images = (signal * left for signal in signals(scanner, tissue, adc))
        plain, weighted = (fine.average(fine.scatter(signal, OUTSIDE_SIGNAL)) for signal in images)
        measured = measure(scanner, fine, grid.spacing_mm, (plain, weighted), noise_seed)
        # 0 is kept for the background, as a brain mask is commonly taken from ADC > 0.
        return np.where(brain, np.maximum(np.round(measured), 1), 0).astype(np.int16)

    atlas = build_atlas(seed, settings.num_healthy, settings.atlas_step_mm)
    aligned_by = RandomField(align_rng, look.registration_scale_mm if look else 12.0, channels=3)
    error_mm = look.registration_mm if look else settings.registration_mm
    error = np.float32(error_mm) * aligned_by(fine.voxel_points_mm)
    positions = warped(fine.voxel_points_mm)
    mean, std = atlas(positions + error)
    if look:
        uneven = np.float32(look.atlas_shift_local) * RandomField(align_rng, 15.0)(fine.voxel_points_mm)[0]
        mean = mean * (1 + np.float32(look.atlas_shift) + uneven)
        std = std * np.float32(look.atlas_width)
    adc = scan(injured)
    zadc = z_map(
        adc,
        brain,
        mean.reshape(fine.shape),
        std.reshape(fine.shape),
        grid.spacing_mm,
        *((look.z_smoothing_mm, look.z_clip) if look else ()),
    )
    voxel_extent = fine.average(extent)
    habits = vary_annotator(look) if look else None
    label = outline(voxel_extent * brain, grid.spacing_mm, annotator_rng, annotator=habits) & brain

    def whole(values: NDArray[Any], dtype: type) -> NDArray[Any]:
        volume: NDArray[Any] = np.zeros(grid.size, dtype=dtype)
        volume[fine.window] = values
        return volume

    def whole_positions() -> FloatArray:
        volume: FloatArray = np.full((3, *grid.size), np.nan, dtype=np.float32)
        volume[(slice(None), *fine.window)] = positions.reshape(3, *fine.shape)
        return volume

    return Case(
        adc=whole(adc, np.int16),
        zadc=whole(zadc, np.float32),
        label=whole(label, np.uint8),
        brain=whole(brain, np.bool_),
        extent=whole(voxel_extent, np.float32),
        healthy_adc=whole(scan(tissue.adc), np.int16) if counterfactual else None,
        canonical_mm=whole_positions() if counterfactual else None,
        spacing_mm=grid.spacing_mm,
        origin_mm=grid.origin_mm,
        direction=grid.direction,
        kind=disease.kind,
        settings=look,
    )


def vary_disease(rng: np.random.Generator, look: CaseSettings) -> Disease:
    """The injury of a case with settings of its own; its extent is drawn within its class."""
    low, high = choose(SIZES, look.size_class, "size_class")
    if not high:
        return Disease("none", 0.0, 0.0)
    return Disease(look.kind, float(np.exp(rng.uniform(np.log(low), np.log(high)))), look.reduction)


def vary_annotator(look: CaseSettings) -> Annotator:
    """The annotator of a case with settings of its own; slices differ by a tenth of the share and a quarter."""
    return Annotator(
        smoothing_mm=(0.75 * look.outline_smoothing_mm, 1.25 * look.outline_smoothing_mm),
        drawn_at=(look.outline_at - 0.05, look.outline_at + 0.05),
        shift_mm=look.outline_shift_mm,
        missed_slices=look.missed_slices,
        ignored_voxels=round(look.ignored_voxels),
        whole=look.drawn_whole > 0.5,
    )


def skull_strip(
    fine: FineGrid, tissue: Tissue, rng: np.random.Generator, inside_mm: float = 0.6, error_mm: float = 0.5
) -> NDArray[np.bool_]:
    """Brain mask of the covered voxels, its border ``inside_mm`` inside the brain's, give or take ``error_mm``."""
    error = inside_mm + error_mm * RandomField(rng, 8.0)(fine.voxel_points_mm)[0].reshape(fine.shape)
    mask = fine.average(fine.scatter(tissue.brain_depth_mm, -5)) > error
    labels, count = ndimage.label(mask)
    return np.asarray(labels == np.bincount(labels.ravel())[1:].argmax() + 1) if count > 1 else mask
