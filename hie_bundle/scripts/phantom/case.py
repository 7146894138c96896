"""One simulated case: anatomy, disease, acquisition, Z map and label put together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import UserError
from .acquisition import OUTSIDE_SIGNAL, FineGrid, draw_grid, draw_scanner, measure, refine, signals
from .anatomy import FloatArray, RandomField, Tissue, draw_subject, evaluate
from .disease import draw_disease, most_susceptible, outline, susceptibility
from .normative import build_atlas, common_folding, z_map

CASE_STREAM = 0
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
    spacing_mm: NDArray[np.float64]
    origin_mm: NDArray[np.float64]
    direction: NDArray[np.float64]
    kind: str


@dataclass(frozen=True)
class Settings:
    """How the cases of a cohort are scanned and compared with the norm.

    Attributes:
        matrix_sizes: in-plane sizes to draw from, in voxels.
        slice_range: least and greatest number of slices.
        spacing_range_mm: least and greatest in-plane voxel size; exceeded where the matrix is too small for a brain.
        slice_thickness_range_mm: least and greatest slice thickness; exceeded where there are too few slices.
        fine_mm: sampling distance of the anatomy; partial volume is averaged from it.
        artefact_probability: of motion, of signal loss and of a strong bias, each.
        registration_mm: standard deviation along each axis of a case's misalignment with the atlas.
        num_healthy: number of healthy newborns in the normative atlas.
        atlas_step_mm: voxel size of the atlas.

    Raises:
        UserError: when there is no matrix of 16 voxels or more to draw from, or a range is empty.
    """

    matrix_sizes: tuple[int, ...] = (128, 160, 192, 256)
    slice_range: tuple[int, int] = (16, 64)
    spacing_range_mm: tuple[float, float] = (0.9, 2.0)
    slice_thickness_range_mm: tuple[float, float] = (2.0, 5.0)
    fine_mm: float = 1.2
    artefact_probability: float = 0.08
    registration_mm: float = 1.35
    num_healthy: int = 13
    atlas_step_mm: float = 1.5

    def __post_init__(self) -> None:
        if not self.matrix_sizes or min(self.matrix_sizes) < 16:
            raise UserError(f"matrix_sizes must be 16 or more, got {list(self.matrix_sizes)}.")
        for name in ("slice_range", "spacing_range_mm", "slice_thickness_range_mm"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"{name} is a range (least, greatest), both positive; got ({low}, {high}).")
        for field in fields(self):  # as they are written down: equal settings have equal manifests
            value, default = getattr(self, field.name), field.default
            kind: Any = type(default[0] if isinstance(default, tuple) else default)
            plain = tuple(map(kind, value)) if isinstance(default, tuple) else kind(value)
            object.__setattr__(self, field.name, plain)


def simulate_case(
    seed: int, case_number: int, settings: Settings | None = None, *, counterfactual: bool = False
) -> Case:
    """Simulate case ``case_number`` of the cohort ``seed``; equal arguments give equal arrays.

    Args:
        seed: of the cohort.
        case_number: from 0 on.
        settings: the defaults if None.
        counterfactual: also scan the newborn without the injury, with the same noise.
    """
    settings = settings or Settings()
    *streams, noise_seed = np.random.SeedSequence([CASE_STREAM, seed, case_number]).spawn(7)
    scan_rng, subject_rng, disease_rng, strip_rng, align_rng, annotator_rng = map(np.random.default_rng, streams)
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
    warp = RandomField(subject_rng, 22.0, channels=3)

    def warped(points_mm: FloatArray) -> FloatArray:
        return points_mm + np.float32(2.5) * warp(points_mm)

    points = warped(fine.points_mm)
    tissue = evaluate(subject, points, edge_mm=settings.fine_mm)
    in_head = tissue.brain_depth_mm > 0

    # A low-discrepancy sequence over the case numbers keeps the mix of severities right in every cohort.
    rank = (np.random.default_rng([CASE_STREAM, seed]).random() + case_number * GOLDEN) % 1
    disease = draw_disease(disease_rng, rank)
    extent = np.zeros(fine.fine_shape, dtype=np.float32)
    reduction = np.zeros(1, dtype=np.float32)
    if disease.fraction:
        score = susceptibility(disease.kind, disease_rng, points, tissue)
        least = 24 * int(np.prod(fine.factors))
        core = most_susceptible(score, disease.fraction, int(in_head.sum()), least)
        softness = 0.8 / (grid.spacing_mm / fine.factors)
        extent = ndimage.gaussian_filter(fine.scatter(core.astype(np.float32)), softness, truncate=3)
        extent *= 1 - fine.scatter(tissue.csf)
        variation = RandomField(disease_rng, 5.0)(points)[0]
        reduction = np.float32(disease.reduction) * np.clip(1 + np.float32(0.15) * variation, 0.4, 1.4)

    injured = tissue.adc * (1 - reduction * fine.gather(extent))
    brain = skull_strip(fine, tissue, strip_rng)

    def scan(adc: FloatArray) -> NDArray[np.int16]:
        plain, weighted = (fine.average(fine.scatter(s, OUTSIDE_SIGNAL)) for s in signals(scanner, tissue, adc))
        measured = measure(scanner, fine, grid.spacing_mm, (plain, weighted), noise_seed)
        # 0 is kept for the background, as a brain mask is commonly taken from ADC > 0.
        return np.where(brain, np.maximum(np.round(measured), 1), 0).astype(np.int16)

    atlas = build_atlas(seed, settings.num_healthy, settings.atlas_step_mm)
    error = np.float32(settings.registration_mm) * RandomField(align_rng, 12.0, channels=3)(fine.voxel_points_mm)
    aligned = warped(fine.voxel_points_mm) + error
    mean, std = (values.reshape(fine.shape) for values in atlas(aligned))
    adc = scan(injured)
    zadc = z_map(adc, brain, mean, std, grid.spacing_mm)
    voxel_extent = fine.average(extent)
    label = outline(voxel_extent * brain, grid.spacing_mm, annotator_rng) & brain

    def whole(values: NDArray[Any], dtype: type) -> NDArray[Any]:
        volume: NDArray[Any] = np.zeros(grid.size, dtype=dtype)
        volume[fine.window] = values
        return volume

    return Case(
        adc=whole(adc, np.int16),
        zadc=whole(zadc, np.float32),
        label=whole(label, np.uint8),
        brain=whole(brain, np.bool_),
        extent=whole(voxel_extent, np.float32),
        healthy_adc=whole(scan(tissue.adc), np.int16) if counterfactual else None,
        spacing_mm=grid.spacing_mm,
        origin_mm=grid.origin_mm,
        direction=grid.direction,
        kind=disease.kind,
    )


def skull_strip(fine: FineGrid, tissue: Tissue, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Brain mask of the covered voxels, its border off by about half a millimetre either way."""
    error = 0.6 + 0.5 * RandomField(rng, 8.0)(fine.voxel_points_mm)[0].reshape(fine.shape)
    mask = fine.average(fine.scatter(tissue.brain_depth_mm, -5)) > error
    labels, count = ndimage.label(mask)
    return np.asarray(labels == np.bincount(labels.ravel())[1:].argmax() + 1) if count > 1 else mask
