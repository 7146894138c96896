"""Diffusion-weighted acquisition: sampling geometry, partial volume, Rician noise, artefacts, ADC fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from .anatomy import FloatArray, RandomField, Tissue
from .settings import Settings

FloatVector = NDArray[np.float64]

OUTSIDE_SIGNAL = 0.12  # signal of skull and air, relative to white matter at b = 0
OUTSIDE_ADC = 700.0  # 1e-6 mm²/s
BIAS_SCALE_MM = 30.0  # smoothness of the scanner's ADC bias


@dataclass(frozen=True)
class Grid:
    """A sampling grid in LPS millimetres as in ITK; arrays are indexed (x, y, z)."""

    size: tuple[int, int, int]
    spacing_mm: FloatVector
    origin_mm: FloatVector
    direction: FloatVector  # (3, 3), columns are the axes


@dataclass(frozen=True)
class Pose:
    """The head in the scanner: canonical RAS = ``scale * rotation @ RAS(LPS - centre)``."""

    rotation: FloatVector
    centre_mm: FloatVector
    scale: FloatVector

    def canonical(self, lps_mm: FloatVector) -> FloatVector:
        """Canonical positions (3, N) of scanner positions (3, N)."""
        ras = (lps_mm - self.centre_mm[:, None]) * np.array([[-1.0], [-1.0], [1.0]])
        return (self.rotation @ ras) * self.scale[:, None]


def draw_grid(rng: np.random.Generator, settings: Settings) -> tuple[Grid, Pose]:
    """Draw matrix, spacing, direction and origin of a scan, and the head's pose and size.

    Voxels may exceed the ranges so that the brain fits.
    """
    matrix = int(rng.choice(np.asarray(settings.matrix_sizes)))
    in_plane = float(np.clip(rng.uniform(165, 230) / matrix, *settings.spacing_range_mm))
    in_plane = max(in_plane, 140.0 / matrix)
    low, high = settings.slice_thickness_range_mm
    thickness = low + (high - low) * rng.beta(1.2, 2.2)
    slices = int(np.clip(round(rng.uniform(104, 125) / thickness), *settings.slice_range))
    thickness = max(thickness, 104.0 / slices)
    spacing = np.round(np.array([in_plane, in_plane, thickness]), 4)

    head = Rotation.from_euler("xyz", rng.normal(0, 5, 3), degrees=True)
    oblique = rng.random() < 0.6
    tilt = rng.normal(0, (9, 4, 4), 3) if oblique else np.zeros(3)
    direction = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix()
    if rng.random() < 0.4:
        direction = direction * rng.choice([-1.0, 1.0], 3)
    centre = rng.normal(0, (8, 15, 20))
    off_centre = rng.normal(0, 2.0, 3)
    size = (matrix, matrix, slices)
    origin = centre + off_centre - direction @ (spacing * (np.array(size) - 1) / 2)
    scale = 1 / np.clip(rng.normal(1.0, 0.04) * (1 + rng.normal(0, 0.02, 3)), 0.88, 1.1)
    return Grid(size, spacing, origin, direction), Pose(head.as_matrix(), centre, scale)


@dataclass(frozen=True)
class FineGrid:
    """The voxels of a grid around the head, each split into ``factors`` sub-voxels."""

    start: tuple[int, ...]  # first covered voxel of the grid
    shape: tuple[int, ...]  # covered voxels
    factors: tuple[int, ...]
    index: NDArray[np.intp]  # flat position of the N sub-voxels in and near the head
    points_mm: FloatArray  # their canonical positions (3, N) before the subject's warp
    voxel_points_mm: FloatArray  # the same for all covered voxels (3, M)

    @property
    def fine_shape(self) -> tuple[int, ...]:
        return tuple(n * f for n, f in zip(self.shape, self.factors, strict=True))

    @property
    def window(self) -> tuple[slice, ...]:
        """Slices of the covered voxels in the grid."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.shape, strict=True))

    def scatter(self, values: FloatArray, elsewhere: float = 0.0) -> FloatArray:
        """Values (N,) as a volume of ``fine_shape``."""
        volume = np.full(self.fine_shape, elsewhere, dtype=np.float32)
        volume.reshape(-1)[self.index] = values
        return volume

    def gather(self, volume: FloatArray) -> FloatArray:
        """The inverse of :meth:`scatter`."""
        return volume.reshape(-1)[self.index]

    def average(self, volume: FloatArray) -> FloatArray:
        """Mean over the sub-voxels of each voxel: ``fine_shape`` to ``shape``."""
        (nx, ny, nz), (fx, fy, fz) = self.shape, self.factors
        return volume.reshape(nx, fx, ny, fy, nz, fz).mean((1, 3, 5), dtype=np.float32)


def refine(grid: Grid, pose: Pose, fine_mm: float) -> FineGrid:
    """Split the voxels around the head into sub-voxels of about ``fine_mm``."""
    head_centre, head_radii_mm = np.array([0.0, -2.0, -4.0]), np.array([58.0, 68.0, 58.0])
    index_to_lps = grid.direction * grid.spacing_mm
    canonical = pose.scale[:, None] * (pose.rotation @ (np.array([[-1.0], [-1.0], [1.0]]) * index_to_lps))
    offset = pose.canonical(grid.origin_mm[:, None])[:, 0]
    # bounding box of a linearly mapped ellipsoid: norms of the map's rows, scaled by the radii
    inverse = np.linalg.inv(canonical)
    centre = inverse @ (head_centre - offset)
    reach = np.linalg.norm(inverse * head_radii_mm, axis=1)
    start = np.clip(np.floor(centre - reach), 0, np.array(grid.size) - 1).astype(int)
    stop = np.clip(np.ceil(centre + reach) + 1, start + 1, grid.size).astype(int)
    factors = np.maximum(1, np.round(grid.spacing_mm / fine_mm)).astype(int)

    def positions(split: NDArray[np.int_]) -> FloatArray:
        total = offset.astype(np.float32)[:, None, None, None]
        for i, (a, b, f) in enumerate(zip(start, stop, split, strict=True)):
            axis = (np.arange((b - a) * f) + 0.5) / f - 0.5 + a
            shape = [3, 1, 1, 1]
            shape[i + 1] = len(axis)
            total = total + (canonical[:, i, None] * axis).astype(np.float32).reshape(shape)
        return total.reshape(3, -1)

    points = positions(factors)
    scaled = [(p - np.float32(c)) / np.float32(r) for p, c, r in zip(points, head_centre, head_radii_mm, strict=True)]
    index = np.flatnonzero(np.square(scaled).sum(0) < 1)
    return FineGrid(
        start=tuple(start.tolist()),
        shape=tuple((stop - start).tolist()),
        factors=tuple(factors.tolist()),
        index=index,
        points_mm=points[:, index],
        voxel_points_mm=positions(np.ones(3, dtype=int)),
    )


@dataclass(frozen=True)
class Scanner:
    """Properties of one scan."""

    b_value: float  # s/mm²
    noise: float  # standard deviation of each channel, relative to white matter at b = 0
    directions: int
    blur_mm: float  # in-plane point spread, standard deviation
    bias: float  # amplitude of the relative ADC error from gradient non-linearity
    motion_mm: float  # in-plane shift between the b = 0 and the diffusion-weighted images
    dropout: NDArray[np.int_]  # slices whose diffusion-weighted signal is partly lost


def draw_scanner(rng: np.random.Generator, slices: int, settings: Settings) -> Scanner:
    """Draw a scanner; motion, signal loss and a strong bias have the probability ``artefact_probability`` each."""
    artefact_probability = settings.artefact_probability
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
    images: tuple[FloatArray, FloatArray],
    seed: np.random.SeedSequence,
) -> FloatArray:
    """ADC map (1e-6 mm²/s) of the covered voxels.

    ``images`` are the noiseless signals without and with diffusion weighting, relative to white matter at b = 0. The
    noise depends on ``seed`` only, not on the anatomy.
    """
    rng = np.random.default_rng(seed)
    bias = RandomField(rng, BIAS_SCALE_MM)(fine.voxel_points_mm)[0].reshape(fine.shape)
    blur = (*(scanner.blur_mm / spacing_mm[:2]), 0)
    plain, weighted = (ndimage.gaussian_filter(image, blur, truncate=3) for image in images)
    if scanner.motion_mm:
        angle = rng.uniform(0, 2 * np.pi)
        shift = scanner.motion_mm * np.array([np.cos(angle), np.sin(angle)]) / spacing_mm[:2]
        weighted = ndimage.shift(weighted, (*shift, 0), order=1, mode="nearest")
    for k in scanner.dropout - fine.start[2]:
        if 0 <= k < fine.shape[2]:
            weighted[:, :, k] *= np.float32(rng.uniform(0.75, 0.92))
    return fit_adc(scanner, plain, weighted, rng) * (1 + np.float32(scanner.bias) * bias)


def fit_adc(scanner: Scanner, plain: FloatArray, weighted: FloatArray, rng: np.random.Generator) -> FloatArray:
    """ADC (1e-6 mm²/s, 0..4095) of two noiseless signals, with Rician noise."""

    def rician(image: FloatArray, averages: int) -> FloatArray:
        # the mean of n magnitudes has the same bias and 1/sqrt(n) of the standard deviation
        real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(scanner.noise)
        root = np.float32(averages**-0.5)
        floor = np.float32(scanner.noise**2 * (1 - 1 / averages))
        return np.sqrt((image + root * real) ** 2 + (root * imaginary) ** 2 + floor)

    ratio = rician(weighted, scanner.directions) / np.maximum(rician(plain, 2), 1e-3)
    return np.clip(-np.log(np.clip(ratio, 1e-3, 1)) / np.float32(1e-6 * scanner.b_value), 0, 4095)


def signals(scanner: Scanner, tissue: Tissue, adc: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Signals (N,) without (T2-weighted) and with diffusion weighting, relative to healthy white matter at b = 0."""
    inside = tissue.brain_depth_mm > 0
    plain = np.where(inside, 1 + np.float32(0.7) * tissue.csf - np.float32(0.12) * (1 - tissue.white), OUTSIDE_SIGNAL)
    return plain, plain * np.exp(np.float32(-1e-6 * scanner.b_value) * np.where(inside, adc, np.float32(OUTSIDE_ADC)))
