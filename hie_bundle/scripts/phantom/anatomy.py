"""Analytic anatomy of a newborn brain: tissues and their healthy apparent diffusion coefficient (ADC).

Positions are canonical RAS millimetres: x to the right, y to the front, z to the head's top, origin between the
thalami. Structures are approximate signed distances (positive inside), so a subject's anatomy can be evaluated at any
point and resolution; a subject differs from the canonical one by a smooth warp, by its folding and by its parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.float32]

# Half extent in mm of the box that holds the canonical brain with its cerebrospinal fluid, and the box's centre.
BOX_CENTRE_MM = np.array([0.0, -1.0, 0.0], dtype=np.float32)
BOX_HALF_MM = np.array([54.0, 66.0, 54.0], dtype=np.float32)


class RandomField:
    """Smooth Gaussian random field over the canonical box, zero mean and unit standard deviation.

    Args:
        rng: source of randomness.
        scale_mm: standard deviation of the Gaussian that smooths white noise.
        channels: number of independent components.
        band_pass: subtract the field smoothed at twice the scale, so that no slow variation is left.
    """

    def __init__(
        self, rng: np.random.Generator, scale_mm: float, channels: int = 1, *, band_pass: bool = False
    ) -> None:
        self.step_mm = max(scale_mm / 2.0, 1.0)
        shape = tuple(int(n) for n in np.ceil(2.3 * BOX_HALF_MM / self.step_mm).astype(int) + 1)
        self.values = np.empty((channels, *shape), dtype=np.float32)
        for channel in self.values:
            white = rng.standard_normal(shape, dtype=np.float32)
            smooth = ndimage.gaussian_filter(white, scale_mm / self.step_mm, mode="wrap")
            if band_pass:
                smooth -= ndimage.gaussian_filter(white, 2 * scale_mm / self.step_mm, mode="wrap")
            channel[...] = (smooth - smooth.mean()) / smooth.std()

    def __call__(self, points_mm: FloatArray) -> FloatArray:
        """Values at ``points_mm`` of shape (3, N); returns (channels, N)."""
        centre = (np.array(self.values.shape[1:], dtype=np.float32) - 1) / 2
        index = (points_mm - BOX_CENTRE_MM[:, None]) / np.float32(self.step_mm) + centre[:, None]
        return np.stack([sample(channel, index) for channel in self.values])


def sample(volume: FloatArray, index: FloatArray) -> FloatArray:
    """Linear interpolation of ``volume`` at ``index`` (3, N) in voxels, the border value beyond the border."""
    return ndimage.map_coordinates(volume, index, output=np.float32, order=1, mode="nearest")


def ramp(distance_mm: FloatArray, width_mm: float) -> FloatArray:
    """1 well inside, 0 well outside, linear over ``width_mm`` around distance zero."""
    return np.clip(distance_mm / np.float32(width_mm) + np.float32(0.5), 0, 1)


def ellipsoid(points_mm: FloatArray, centre: tuple[float, ...], radii: tuple[float, ...]) -> FloatArray:
    """Approximate signed distance to an ellipsoid, first order exact at its surface."""
    x, y, z = (points_mm[i] - np.float32(centre[i]) for i in range(3))
    a, b, c = (np.float32(r) for r in radii)
    x, y, z = x / a, y / b, z / c
    k0 = np.sqrt(x * x + y * y + z * z) + np.float32(1e-6)
    k1 = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2) + np.float32(1e-6)
    return k0 * (1 - k0) / k1


def tube(points_mm: FloatArray, nodes: tuple[tuple[float, float, float, float], ...]) -> FloatArray:
    """Signed distance to a chain of round cones; each node is (x, y, z, radius)."""
    best = np.full(points_mm.shape[1], -np.inf, dtype=np.float32)
    for a, b in zip(nodes[:-1], nodes[1:], strict=True):
        start, axis = np.array(a[:3], np.float32), np.array(b[:3], np.float32) - np.array(a[:3], np.float32)
        along = np.clip((axis @ (points_mm - start[:, None])) / (axis @ axis), 0, 1)
        offset = points_mm - start[:, None] - axis[:, None] * along
        radius = np.float32(a[3]) + np.float32(b[3] - a[3]) * along
        best = np.maximum(best, radius - np.sqrt((offset * offset).sum(0)))
    return best


def smooth_union(a: FloatArray, b: FloatArray, blend_mm: float) -> FloatArray:
    """Union of two signed distances whose crease is filled over ``blend_mm``."""
    h = np.clip(np.float32(0.5) + (a - b) / np.float32(2 * blend_mm), 0, 1)
    return b + (a - b) * h + np.float32(blend_mm) * h * (1 - h)


@dataclass(frozen=True)
class Folding:
    """Sulci as zero sheets of a band-pass random field: ``common`` to all newborns, plus the subject's ``own``."""

    common: RandomField
    own: RandomField
    own_weight: float
    depth: RandomField


@dataclass(frozen=True)
class Subject:
    """What distinguishes one newborn. ADC values in 1e-6 mm²/s, lengths in mm."""

    folding: Folding
    texture: RandomField
    texture_strength: float
    adc_gain: float  # body temperature and scanner: ADC rises by about 2.4 % for each degree
    adc_white: float
    adc_cortex: float
    adc_deep: float
    adc_csf: float
    extra_axial_mm: float
    sulcal_depth_mm: float
    sulcal_width_mm: float
    ventricle_mm: float  # added to the ventricles' radius
    cortex_mm: float


def draw_subject(rng: np.random.Generator, common: RandomField) -> Subject:
    """Draw a newborn of 37 to 42 weeks; white matter ADC falls and folding deepens with maturity."""
    maturity = rng.normal()
    return Subject(
        folding=Folding(common, RandomField(rng, 3.0, band_pass=True), 0.5, RandomField(rng, 9.0)),
        texture=RandomField(rng, 4.0),
        texture_strength=0.03,
        adc_gain=1.0 + 0.02 * rng.normal(),
        adc_white=1600 - 35 * maturity + 25 * rng.normal(),
        adc_cortex=1150 - 15 * maturity + 20 * rng.normal(),
        adc_deep=1080 - 15 * maturity + 15 * rng.normal(),
        adc_csf=2850 + 60 * rng.normal(),
        extra_axial_mm=float(np.clip(rng.normal(2.0, 0.5), 0.8, 4.0)),
        sulcal_depth_mm=float(np.clip(11 + 1.0 * maturity + rng.normal(), 7, 15)),
        sulcal_width_mm=float(np.clip(rng.normal(0.5, 0.12), 0.25, 1.0)),
        ventricle_mm=float(np.clip(rng.normal(0.0, 0.5), -1.0, 2.0)),
        cortex_mm=float(rng.normal(2.1, 0.1)),
    )


@dataclass(frozen=True)
class Tissue:
    """Anatomy at N points, each array of shape (N,) and type float32."""

    adc: FloatArray  # healthy ADC, 1e-6 mm²/s
    csf: FloatArray  # share of cerebrospinal fluid, 0..1
    white: FloatArray  # share of cerebral white matter, 0..1
    cerebrum_depth_mm: FloatArray  # below the cerebral hull, positive inside
    brain_depth_mm: FloatArray  # below the outer border of the extra-axial fluid, positive inside


def evaluate(subject: Subject, points_mm: FloatArray, edge_mm: float = 1.0) -> Tissue:
    """Tissue of ``subject`` at canonical ``points_mm`` (3, N).

    Args:
        subject: the newborn.
        points_mm: canonical positions.
        edge_mm: width of tissue borders; about the sampling distance.
    """
    x, y, z = points_mm
    side = np.abs(x)
    mirrored = np.stack([side, y, z])

    # Cerebral hull: widest over the parietal lobes, narrower in front, flatter below than above.
    width = 1.0 - np.float32(0.0016) * (y + 12) - np.float32(0.00003) * (y + 12) ** 2
    below = np.where(z < 4, np.float32(1.62), np.float32(1.0))
    hull = ellipsoid(np.stack([x / width, y, (z - 4) * below]), (0, 0, 0), (46, 57, 41))
    temporal = ellipsoid(mirrored, (29, 6, -18), (14, 27, 13))
    cerebellum = np.maximum(
        ellipsoid(mirrored, (13, -36, -27), (17, 16, 14)), ellipsoid(mirrored, (0, -34, -24), (9, 15, 15))
    )
    stem = tube(points_mm, ((0, -7, -4, 10), (0, -9, -22, 11.5), (0, -15, -34, 8), (0, -18, -50, 6)))
    cerebrum = smooth_union(hull, temporal, 3.0)
    brain = smooth_union(smooth_union(cerebrum, cerebellum, 5.0), stem, 6.0) + np.float32(subject.extra_axial_mm)
    cerebrum = np.minimum(cerebrum, -cerebellum - np.float32(1.5))

    # Grey matter lies along the pial surface: the hull, the sulci, the fissures between the lobes and hemispheres.
    radius = np.sqrt((x / 46) ** 2 + (y / 57) ** 2 + ((z - 2) / 38) ** 2) + np.float32(1e-3)
    stretch = np.clip(radius, 0.25, 1.3) ** np.float32(0.7)
    fold_points = points_mm / stretch
    sheet = fold_distance(subject.folding, fold_points) * stretch
    depth = np.float32(subject.sulcal_depth_mm) * (1 + np.float32(0.3) * subject.folding.depth(fold_points)[0])
    sulcus = np.sqrt(sheet**2 + np.maximum(cerebrum - depth, 0) ** 2) - np.float32(subject.sulcal_width_mm)
    callosum_top = 17 - np.float32(0.008) * (y + 4) ** 2
    midline = np.sqrt(side**2 + np.maximum(callosum_top - z, 0) ** 2 * (np.abs(y) < 42)) - np.float32(0.8)
    sylvian_height = -5 - np.float32(0.28) * (y - 10)
    sylvian = np.sqrt(
        (z - sylvian_height) ** 2 + np.maximum(29 - side, 0) ** 2 + np.maximum(np.abs(y - 2) - 22, 0) ** 2
    ) - np.float32(0.9 + 0.5 * subject.sulcal_width_mm)
    pial = np.minimum(np.minimum(cerebrum, sulcus), np.minimum(midline, sylvian))

    # White matter: watery in front and behind, denser around the central sulcus and in the tracts.
    adc = np.full(x.shape, subject.adc_white, dtype=np.float32)
    adc += 90 * np.clip((np.abs(y + 6) - 18) / 25, -1, 1) - 100 * np.exp(
        -(((y + 8) / 14) ** 2 + ((side - 20) / 12) ** 2)
    )
    white = np.ones_like(adc)

    def paint(distance: FloatArray, value: float, share: float = 1.0) -> None:
        weight = ramp(distance, edge_mm + 1.0) * np.float32(share)
        np.add(adc, weight * (np.float32(value) - adc), out=adc)
        np.multiply(white, 1 - weight, out=white)

    deep = subject.adc_deep
    paint(ellipsoid(mirrored, (0, 2, 14), (14, 32, 3.5)), 0.82 * subject.adc_white)  # corpus callosum
    paint(ellipsoid(mirrored, (11, 16, 8), (4.5, 9, 8)), deep * 1.06)  # caudate head
    paint(ellipsoid(mirrored, (22, 3, 2), (6.5, 14, 9.5)), deep * 1.03)  # putamen
    paint(ellipsoid(mirrored, (16, 1, 1), (4.5, 8, 6.5)), deep)  # pallidum
    paint(ellipsoid(mirrored, (10, -12, 5), (9, 13, 9)), deep * 0.98)  # thalamus
    paint(
        tube(mirrored, ((14, 1, 8, 1.8), (19.5, -10, 6, 2.2), (17, -10, -4, 2.0), (9, -8, -12, 2.5))), deep * 0.88
    )  # PLIC
    cortex_adc = subject.adc_cortex - 70 * np.exp(-(((y + 4) / 12) ** 2))
    cortex = 1 - ramp(pial - np.float32(subject.cortex_mm), edge_mm)
    adc += cortex * (cortex_adc - adc)
    white *= 1 - cortex

    csf = 1 - ramp(pial, edge_mm)
    ventricle = tube(
        mirrored,
        ((5, 26, 6, 2.6), (7, 16, 12, 2.8), (9, -4, 16, 2.4), (17, -24, 10, 4.0), (16, -38, 5, 2.2)),
    )
    horn = tube(mirrored, ((17, -24, 10, 3.0), (26, -16, -8, 1.8), (27, 2, -16, 1.5)))
    ventricle = np.maximum(ventricle, horn) + np.float32(subject.ventricle_mm)
    third = ellipsoid(points_mm, (0, -4, 0), (1.6, 12, 9)) + np.float32(0.5 * subject.ventricle_mm)
    csf = np.maximum(csf, ramp(np.maximum(ventricle, third), edge_mm))

    # Cerebellum with folia and brainstem lie outside the cerebrum, and are painted over its fluid.
    folia = np.sin(np.float32(1.5) * np.sqrt((y + 22) ** 2 + (z + 20) ** 2)) * np.clip((6 - cerebellum) / 6, 0, 1)
    inside = ramp(cerebellum, edge_mm)
    cerebellar_adc = 1180 - 130 * np.clip(cerebellum / 8, 0, 1) + 120 * np.clip(folia - 0.2, 0, 1)
    adc += inside * (cerebellar_adc - adc)
    csf *= 1 - inside
    inside = ramp(stem, edge_mm + 0.5) * (z < 0)
    adc += inside * (np.float32(deep * 0.96) - adc)
    csf *= 1 - inside
    white *= 1 - np.maximum(inside, ramp(cerebellum, edge_mm))
    peduncle = ramp(tube(mirrored, ((8, -12, -22, 3), (15, -28, -24, 3.5))), 2.0)
    adc += peduncle * (np.float32(deep * 0.9) - adc)
    fourth = ramp(ellipsoid(points_mm, (0, -22, -24), (4, 2.6, 6)), edge_mm)
    csf = np.maximum(csf, fourth)

    adc *= 1 + np.float32(subject.texture_strength) * subject.texture(points_mm)[0]
    adc += csf * (np.float32(subject.adc_csf) - adc)
    adc *= np.float32(subject.adc_gain)
    return Tissue(adc=adc, csf=csf, white=white * (1 - csf), cerebrum_depth_mm=cerebrum, brain_depth_mm=brain)


def fold_distance(folding: Folding, points_mm: FloatArray) -> FloatArray:
    """Approximate distance in mm to the nearest sulcal sheet, |F| / |grad F| of the folding field F."""
    own = np.float32(folding.own_weight)
    field = np.sqrt(1 - own**2) * folding.common.values[0] + own * folding.own.values[0]
    slopes = np.gradient(field, folding.common.step_mm)
    slope = np.sqrt(sum(s * s for s in slopes) + 0.04 / folding.common.step_mm**2)
    blended = RandomField.__new__(RandomField)
    blended.step_mm, blended.values = folding.common.step_mm, (field / slope)[None].astype(np.float32)
    return np.abs(blended(points_mm)[0])
