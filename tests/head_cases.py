"""Whole heads: a simulated newborn's brain with skull, scalp, neck and eyes around it, as diffusion images see them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from scripts.data.checks import Limits
from scripts.phantom.case import Case

NEWBORN = Limits(brain_ml_range=(100, 800))
LEVEL = 400.0  # of white matter at b = 0
# signal at b = 0, white matter being 1, and ADC in 1e-6 mm²/s
AIR, SKULL, SCALP, MUSCLE, EYE, NERVE = (0, 0), (0.08, 900), (0.65, 900), (0.5, 1300), (2.0, 2900), (0.9, 1200)


@dataclass(frozen=True)
class Head:
    """Images at b = 0 and 1000 s/mm², (X, Y, Z); ``case``'s maps on the same grid, which is wider than theirs was."""

    b0: np.ndarray
    b1000: np.ndarray
    brain: np.ndarray
    adc: np.ndarray
    zadc: np.ndarray
    label: np.ndarray
    affine: np.ndarray


def affine_of(case: Case) -> np.ndarray:
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = case.direction * case.spacing_mm, case.origin_mm
    return np.diag([-1.0, -1, 1, 1]) @ lps


def head_of(case: Case, seed: int = 0, noise: float = 0.03, bias: float = 0.2, skull_mm: float = 2.5) -> Head:
    """Wrap a case's brain.

    Args:
        case: simulated with ``counterfactual=True``, which says where its voxels lie.
        seed: of noise, of the layers' thickness and of the receive field.
        noise: standard deviation, white matter at b = 0 being 1.
        bias: standard deviation of the receive field's logarithm.
        skull_mm: mean thickness of skull.
    """
    rng = np.random.default_rng(seed)
    spacing = case.spacing_mm
    pad = [(int(np.ceil(m / s)),) * 2 for m, s in zip((20, 20, 9), spacing, strict=True)]
    affine = affine_of(case)
    affine[:3, 3] -= affine[:3, :3] @ [before for before, _ in pad]
    adc, zadc, label, brain = (np.pad(a, pad) for a in (case.adc, case.zadc, case.label, case.brain))
    # Where a voxel lies in the canonical head: the case's positions, carried on linearly.
    inside = np.argwhere(case.brain)[::7]
    known = case.canonical_mm[(slice(None), *inside.T)].T
    shifted = np.c_[inside + [before for before, _ in pad], np.ones(len(inside))]
    where = np.linalg.lstsq(shifted, known, rcond=None)[0]
    grid = np.stack([*np.indices(adc.shape), np.ones(adc.shape)], -1) @ where
    step = np.linalg.norm(spacing) / 2  # half a voxel: the layers' borders are soft

    def field(scale_mm: float) -> np.ndarray:
        values = ndimage.gaussian_filter(rng.standard_normal(adc.shape), scale_mm / spacing, mode="wrap")
        return (values - values.mean()) / values.std()

    def within(distance: np.ndarray) -> np.ndarray:
        return np.clip(0.5 - distance / step, 0, 1)

    depth = ndimage.distance_transform_edt(~brain, sampling=spacing) - 0.6  # the mask ends 0.6 mm inside
    skull = skull_mm + 0.4 * field(15)
    s0, d = np.zeros(adc.shape), np.full(adc.shape, 900.0)

    def paint(share: np.ndarray, tissue: tuple[float, float]) -> None:
        share = np.where(brain, 0, share)
        s0[...] += share * (tissue[0] - s0)
        d[...] += share * (tissue[1] - d)

    neck = np.hypot(grid[..., 0], grid[..., 1] + 25) - 24
    paint(within(np.maximum(neck, grid[..., 2] + 30)), MUSCLE)
    paint(within(depth - skull - 4 - field(15)), SCALP)
    paint(within(depth - skull), SKULL)
    for side in (-1, 1):
        eye, end = np.array([19.0 * side, 58, -30]), np.array([6.0 * side, 20, -22])
        along = np.clip(((grid - end) @ (eye - end)) / ((eye - end) @ (eye - end)), 0, 1)
        nerve = np.linalg.norm(grid - end - along[..., None] * (eye - end), axis=-1) - 2
        paint(within(nerve), NERVE)
        paint(within(np.linalg.norm(grid - eye, axis=-1) - 8), EYE)
    cord = np.hypot(grid[..., 0], grid[..., 1] + 20) - 4
    paint(within(np.maximum(cord, grid[..., 2] + 25)), NERVE)
    s0 = np.where(brain, 1 + 0.7 * np.clip((adc - 1700.0) / 1000, 0, 1), s0)
    d = np.where(brain, adc, d)
    receive = np.exp(bias * field(40)) * LEVEL

    def measured(image: np.ndarray) -> np.ndarray:
        real, imaginary = noise * LEVEL * rng.standard_normal((2, *adc.shape))
        return np.hypot(image * receive + real, imaginary).astype(np.float32)

    return Head(measured(s0), measured(s0 * np.exp(-1e-3 * d)), brain, adc, zadc, label, affine)
