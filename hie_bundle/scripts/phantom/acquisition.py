"""Diffusion-weighted acquisition: sampling geometry, partial volume, Rician noise, artefacts, ADC fit, skull strip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from .anatomy import BOX_CENTRE_MM, FloatArray, RandomField

FloatVector = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """A volume's sampling grid; origin and direction in LPS millimetres as in ITK, arrays indexed (x, y, z)."""

    size: tuple[int, int, int]
    spacing_mm: FloatVector
    origin_mm: FloatVector
    direction: FloatVector  # (3, 3), columns are the axes


@dataclass(frozen=True)
class Pose:
    """The head in the scanner: canonical RAS = ``scale * rotation @ (LPS - centre)`` with LPS turned into RAS."""

    rotation: FloatVector
    centre_mm: FloatVector
    scale: FloatVector

    def canonical(self, lps_mm: FloatVector) -> FloatVector:
        """Canonical positions (3, N) of scanner positions (3, N)."""
        ras = (lps_mm - self.centre_mm[:, None]) * np.array([[-1.0], [-1.0], [1.0]])
        return (self.rotation @ ras) * self.scale[:, None]


def draw_grid(
    rng: np.random.Generator,
    matrix_sizes: Sequence[int],
    slice_range: tuple[int, int],
    spacing_range_mm: tuple[float, float],
    slice_thickness_range_mm: tuple[float, float],
    head_rotation_degrees: float = 7.0,
) -> tuple[Grid, Pose]:
    """Draw a scan: matrix, spacing, direction, origin, and the head's pose and size in it.

    A matrix or slice count too small to cover the brain within the spacing ranges gets larger voxels instead.
    """
    matrix = int(rng.choice(np.asarray(matrix_sizes)))
    in_plane = float(np.clip(rng.uniform(165, 230) / matrix, *spacing_range_mm))
    in_plane = max(in_plane, 140.0 / matrix)
    low, high = slice_thickness_range_mm
    thickness = low + (high - low) * rng.beta(1.2, 2.2)
    slices = int(np.clip(round(rng.uniform(104, 125) / thickness), *slice_range))
    thickness = max(thickness, 104.0 / slices)
    size = (matrix, matrix, slices)
    spacing = np.round(np.array([in_plane, in_plane, thickness]), 4)

    head = Rotation.from_euler("xyz", rng.normal(0, head_rotation_degrees, 3), degrees=True)
    oblique = rng.random() < 0.6
    tilt = rng.normal(0, (12, 5, 5), 3) if oblique else np.zeros(3)
    direction = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix()
    if rng.random() < 0.4:
        direction = direction * rng.choice([-1.0, 1.0], 3)
    centre = rng.normal(0, (8, 15, 20))
    off_centre = rng.normal(0, 2.0, 3)
    half = (np.array(size) - 1) / 2
    origin = centre + off_centre - direction @ (spacing * half)
    # Half follows the head, as technicians tilt the slices to it.
    rotation = head.as_matrix()
    scale = 1 / np.clip(rng.normal(1.0, 0.04) * (1 + rng.normal(0, 0.02, 3)), 0.88, 1.1)
    return Grid(size, spacing, origin, direction), Pose(rotation, centre, scale)


@dataclass(frozen=True)
class FineGrid:
    """The part of a grid around the head, each voxel split into ``factors`` sub-voxels."""

    start: tuple[int, int, int]  # first voxel of the grid that is covered
    shape: tuple[int, int, int]  # covered voxels
    factors: tuple[int, int, int]
    points_mm: FloatArray  # canonical positions of the sub-voxels (3, N), before the subject's warp
    voxel_points_mm: FloatArray  # canonical positions of the covered voxels (3, M)

    @property
    def fine_shape(self) -> tuple[int, int, int]:
        return tuple(n * f for n, f in zip(self.shape, self.factors, strict=True))  # type: ignore[return-value]

    def average(self, fine: FloatArray) -> FloatArray:
        """Mean over the sub-voxels of each voxel: (N,) or the fine shape to ``shape``."""
        (nx, ny, nz), (fx, fy, fz) = self.shape, self.factors
        return fine.reshape(nx, fx, ny, fy, nz, fz).mean((1, 3, 5), dtype=np.float32)


def refine(grid: Grid, pose: Pose, fine_mm: float, reach_mm: tuple[float, float, float]) -> FineGrid:
    """Sub-voxels of at most about ``fine_mm`` covering the canonical box of half extent ``reach_mm``."""
    index_to_lps = grid.direction * grid.spacing_mm
    canonical = pose.rotation @ (np.array([[-1.0], [-1.0], [1.0]]) * index_to_lps) * pose.scale[:, None]
    offset = pose.canonical(grid.origin_mm[:, None])[:, 0]
    corners = BOX_CENTRE_MM[:, None] + np.array(np.meshgrid(*((-r, r) for r in reach_mm))).reshape(3, -1)
    index = np.linalg.solve(canonical, corners - offset[:, None])
    start = np.clip(np.floor(index.min(1)), 0, np.array(grid.size) - 1).astype(int)
    stop = np.clip(np.ceil(index.max(1)) + 1, start + 1, grid.size).astype(int)
    factors = np.maximum(1, np.round(grid.spacing_mm / fine_mm)).astype(int)

    def positions(split: NDArray[np.int_]) -> FloatArray:
        axes = [(np.arange((b - a) * f) + 0.5) / f - 0.5 + a for a, b, f in zip(start, stop, split, strict=True)]
        parts = [
            (canonical[:, i, None] * axis).astype(np.float32).reshape(3, *(-1 if j == i else 1 for j in range(3)))
            for i, axis in enumerate(axes)
        ]
        return (parts[0] + parts[1] + parts[2] + offset.astype(np.float32)[:, None, None, None]).reshape(3, -1)

    return FineGrid(
        tuple(int(v) for v in start),  # type: ignore[arg-type]
        tuple(int(v) for v in stop - start),  # type: ignore[arg-type]
        tuple(int(v) for v in factors),  # type: ignore[arg-type]
        positions(factors),
        positions(np.ones(3, dtype=int)),
    )


@dataclass(frozen=True)
class Scanner:
    """How one scan measures, drawn once a case."""

    b_value: float  # s/mm²
    noise: float  # standard deviation of each channel, relative to the white matter's signal at b = 0
    directions: int
    blur_mm: float  # in-plane point spread, standard deviation
    bias: float  # amplitude of the relative ADC error from gradient non-linearity
    motion_mm: float  # in-plane shift between the b = 0 and the diffusion-weighted images
    dropout: NDArray[np.int_]  # slices whose diffusion-weighted signal is partly lost


def draw_scanner(rng: np.random.Generator, slices: int, artefact_probability: float) -> Scanner:
    """Draw scanner and patient behaviour; motion and signal loss come each with ``artefact_probability``."""
    moves = rng.random() < artefact_probability
    loses = rng.random() < artefact_probability
    biased = rng.random() < artefact_probability
    return Scanner(
        b_value=float(rng.choice([700.0, 800.0, 1000.0])),
        noise=1 / rng.uniform(25, 60),
        directions=int(rng.choice([3, 6, 12])),
        blur_mm=float(rng.uniform(0.5, 0.9)),
        bias=float(rng.uniform(0.03, 0.06)) if biased else 0.01,
        motion_mm=float(rng.uniform(1.0, 2.5)) if moves else 0.0,
        dropout=rng.choice(slices, max(1, slices // 12), replace=False) if loses else np.zeros(0, int),
    )


def measure(
    scanner: Scanner,
    fine: FineGrid,
    spacing_mm: FloatVector,
    adc: FloatArray,
    signal: FloatArray,
    seed: np.random.SeedSequence,
) -> FloatArray:
    """ADC map (1e-6 mm²/s) of the covered voxels as the scanner reconstructs it.

    Args:
        scanner: scanner parameters.
        fine: sampling.
        spacing_mm: voxel size.
        adc: true ADC of the sub-voxels (N,), 1e-6 mm²/s.
        signal: their signal at b = 0 (N,), white matter = 1.
        seed: of the noise; one seed gives one noise realisation whatever the anatomy.
    """
    rng = np.random.default_rng(seed)
    bias = RandomField(rng, 30.0)(fine.voxel_points_mm)[0].reshape(fine.shape)
    exponent = np.float32(-scanner.b_value * 1e-6)
    plain = fine.average(signal)
    weighted = fine.average(signal * np.exp(exponent * adc))
    blur = (*(scanner.blur_mm / spacing_mm[:2]), 0)
    plain, weighted = (ndimage.gaussian_filter(image, blur, truncate=3) for image in (plain, weighted))
    if scanner.motion_mm:
        angle = rng.uniform(0, 2 * np.pi)
        shift = scanner.motion_mm * np.array([np.cos(angle), np.sin(angle)]) / spacing_mm[:2]
        weighted = ndimage.shift(weighted, (*shift, 0), order=1, mode="nearest")
    for k in scanner.dropout - fine.start[2]:
        if 0 <= k < fine.shape[2]:
            weighted[:, :, k] *= np.float32(rng.uniform(0.75, 0.92))

    def rician(image: FloatArray, averages: int) -> FloatArray:
        # The mean of n magnitudes has their bias and 1/sqrt(n) of their spread.
        real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(scanner.noise)
        root = np.float32(averages**-0.5)
        floor = np.float32(scanner.noise**2 * (1 - 1 / averages))
        return np.sqrt((image + root * real) ** 2 + (root * imaginary) ** 2 + floor)

    ratio = rician(weighted, scanner.directions) / np.maximum(rician(plain, 2), 1e-3)
    fitted = np.log(np.clip(ratio, 1e-3, 1)) / exponent
    return np.clip(fitted * (1 + np.float32(scanner.bias) * bias), 0, 4095)
