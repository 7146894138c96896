"""Analytic anatomy of a newborn brain: tissues and their healthy apparent diffusion coefficient (ADC).

Positions are canonical RAS millimetres with the origin between the thalami. Structures are approximate signed distances
(positive inside), so anatomy can be evaluated at any point. Subjects differ by a smooth warp, folding and parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.floating[Any]]  # float32 throughout

# box around the canonical brain with its cerebrospinal fluid
BOX_CENTRE_MM = np.array([0.0, -1.0, 0.0], dtype=np.float32)
BOX_HALF_MM = np.array([54.0, 66.0, 54.0], dtype=np.float32)
FOLD_MM = 3.9  # scale of the folding field; gyri are about three times as wide
WATER = 1.03  # ADC of patients' uninjured tissue, relative to healthy newborns


class RandomField:
    """Gaussian random field over the canonical box with zero mean and unit standard deviation: white noise smoothed at
    ``scale_mm``, with ``band_pass`` minus the noise smoothed at twice the scale."""

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

    def index(self, points_mm: FloatArray) -> FloatArray:
        """Positions (3, N) in voxels of ``values`` for canonical ``points_mm`` (3, N)."""
        centre = (np.array(self.values.shape[1:], dtype=np.float32) - 1) / 2
        return (points_mm - BOX_CENTRE_MM[:, None]) / np.float32(self.step_mm) + centre[:, None]

    def __call__(self, points_mm: FloatArray) -> FloatArray:
        """Values at canonical ``points_mm`` (3, N); returns (channels, N)."""
        index = self.index(points_mm)
        return np.stack([sample(channel, index) for channel in self.values])


def sample(volume: FloatArray, index: FloatArray) -> FloatArray:
    """Linear interpolation at ``index`` (3, N) in voxels, with the border value outside."""
    return ndimage.map_coordinates(volume, index, output=np.float32, order=1, mode="nearest")


def ramp(distance_mm: FloatArray, width_mm: float) -> FloatArray:
    """1 inside, 0 outside, with a linear transition of ``width_mm`` around distance 0."""
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
    for a, b in pairwise(nodes):
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
    """Sulci: zero level sets of a band-pass random field that is partly common to all newborns."""

    common: RandomField
    own: RandomField
    own_weight: float
    depth: RandomField

    def distance(self, points_mm: FloatArray) -> FloatArray:
        """Approximate distance in mm to the nearest zero level set of the field F: |F| / |grad F|."""
        own = np.float32(self.own_weight)
        field = np.sqrt(1 - own**2) * self.common.values[0] + own * self.own.values[0]
        step_mm = self.common.step_mm
        slope = np.sqrt(np.square(np.gradient(field, step_mm)).sum(0) + np.float32(0.04 / step_mm**2))
        return np.abs(sample(field / slope, self.common.index(points_mm)))


# ADC of healthy term newborns by tissue (1e-6 mm²/s); docs/phantom.md compares them with published values.
ADC = {
    "white": 1410, "cortex": 1050, "callosum": 1260, "optic_radiation": 1250, "caudate": 1180, "putamen": 1150,
    "pallidum": 1080, "thalamus": 1080, "ventrolateral": 1010, "capsule": 1030, "anterior_capsule": 1120,
    "hippocampus": 1180, "hypothalamus": 1180, "cerebellum": 1110, "dentate": 1130, "vermis": 960, "brainstem": 1020,
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """Anatomy of one newborn. ADC values in 1e-6 mm²/s, lengths in mm."""

    folding: Folding
    texture: RandomField
    adc: Mapping[str, float]  # by tissue, as in ADC
    adc_gain: float
    adc_csf: float
    extra_axial_mm: float
    fissure_mm: float  # half width of the interhemispheric and Sylvian fissures
    sulcal_depth_mm: float
    sulcal_width_mm: float  # half width
    ventricle_mm: float  # added to the ventricles' radius
    cavum_mm: float  # half width of the cavum septi pellucidi
    cortex_mm: float
    nuclei: float  # size of the deep nuclei


def draw_subject(rng: np.random.Generator, common: RandomField, *, patient: bool) -> Subject:
    """Draw a newborn; with maturity the ADC of white matter decreases and folding deepens.

    Patients vary more than the healthy newborns of an atlas in age and fluid spaces. Their tissue has more water
    (fitted to the mean ZADC of the real cohort); some are cooled to 33.5 °C (ADC decreases by about 2 % per degree).
    """
    spread = 1.4 if patient else 0.9
    maturity = spread * rng.normal()
    fluid = abs(rng.normal()) if patient else 0.0
    temperature = -0.045 if patient and rng.random() < 0.25 else 0.0
    water = WATER if patient else 1.0

    def level(mean: float, fall: float) -> float:
        return water * mean * (1 - fall * maturity + 0.014 * spread * rng.normal())

    return Subject(
        folding=Folding(
            common, RandomField(rng, FOLD_MM, band_pass=True), 0.35 if patient else 0.3, RandomField(rng, 9.0)
        ),
        texture=RandomField(rng, 3.0, channels=2),
        adc={tissue: level(mean, 0.02 if tissue == "white" else 0.012) for tissue, mean in ADC.items()},
        adc_gain=1 + 0.013 * spread * rng.normal() + temperature,
        adc_csf=2750 + 60 * rng.normal(),
        extra_axial_mm=float(np.clip(rng.normal(0.8, 0.3) + 0.7 * fluid, 0.4, 3.5)),
        fissure_mm=float(np.clip(rng.normal(0.4, 0.2) + 0.35 * fluid, 0.1, 2.0)),
        sulcal_depth_mm=float(np.clip(12 + maturity + rng.normal(), 8, 16)),
        sulcal_width_mm=float(np.clip(rng.normal(0.14, 0.05) + 0.14 * fluid, 0.02, 0.7)),
        ventricle_mm=float(np.clip(rng.normal(-0.1, 0.5) + 1.2 * fluid, -1.2, 3.5)),
        cavum_mm=float(np.clip(rng.normal(0.8, 0.8), 0, 3)),
        cortex_mm=float(np.clip(rng.normal(2.3, 0.2), 1.8, 3.0)),
        nuclei=float(np.clip(rng.normal(1.0, 0.06), 0.85, 1.15)),
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
    """Tissue at canonical positions (3, N); ``edge_mm``: width of tissue borders, about the sampling distance."""
    _, y, z = points_mm
    side = np.abs(points_mm[0])
    mirrored = np.stack([side, y, z])
    cerebrum, cerebellum, stem, brain = lobes(points_mm, mirrored)
    brain = brain + np.float32(subject.extra_axial_mm)
    cistern = smooth_union(ellipsoid(points_mm, (0, 5, -19), (11, 9, 10)), stem + np.float32(0.8), 2.0)
    cistern -= 3 * np.maximum(z + 7, 0)
    cerebrum = np.minimum(cerebrum, -np.maximum(cerebellum + np.float32(1.2), cistern))
    pial, fluid = clefts(subject, points_mm, side, cerebrum, edge_mm)

    # White matter: ADC is higher in front and behind, lower around the central sulcus.
    level = subject.adc
    ends = np.clip((np.abs(y + 6) - 20) / 25, -0.5, 1)
    corona = np.exp(-(((y + 8) / 15) ** 2) - ((side - 20) / 9) ** 2)
    adc = np.float32(level["white"]) * (1 + np.float32(0.06) * ends - np.float32(0.13) * corona)
    white = np.ones_like(adc)

    def paint(distance: FloatArray, tissue: str, soft_mm: float = 1.0) -> None:
        weight = ramp(distance, edge_mm + soft_mm)
        np.add(adc, weight * (np.float32(level[tissue]) - adc), out=adc)
        np.multiply(white, 1 - weight, out=white)

    def nucleus(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> FloatArray:
        a, b, c = (subject.nuclei * radius for radius in radii)
        return ellipsoid(mirrored, centre, (a, b, c))

    arch = 15 - np.float32(0.009) * (y + 4) ** 2  # height of the corpus callosum along the midline
    paint(2.2 - np.abs(z - arch) - 0.5 * np.maximum(side - 9, 0), "callosum")
    paint(tube(mirrored, ((24, -14, 4, 2.0), (26, -30, 3, 2.2), (14, -46, 2, 2.2))), "optic_radiation", 2.0)
    paint(tube(mirrored, ((10, 19, 5, 3.8), (12, 10, 12, 3.6), (15, -6, 16, 2.2))), "caudate")
    paint(np.minimum(nucleus((22, 3, 2), (4.6, 11.5, 8)), side - np.float32(17.5)), "putamen")
    paint(nucleus((17.5, 1, 0), (3.2, 7, 5.5)), "pallidum")
    paint(nucleus((8.5, -11, 5), (7, 11, 7.5)), "thalamus")
    paint(nucleus((12, -9, 4), (3.2, 5, 5)), "ventrolateral", 3.0)
    paint(tube(mirrored, ((20, 0, -13, 4.0), (24, -14, -10, 3.2), (19, -28, -1, 2.6))), "hippocampus")
    paint(ellipsoid(points_mm, (0, 3, -6), (11, 8, 4)), "hypothalamus", 2.0)
    paint(tube(mirrored, ((13, 4, 6, 1.4), (16, 12, 7, 1.5), (18, 18, 8, 1.5))), "anterior_capsule")
    # posterior limb of the internal capsule, continued through the peduncles
    capsule = ((13, 2, 8, 1.0), (15.5, -2, 8, 1.4), (20, -12, 7, 1.6), (24, -10, 18, 1.5), (22, -8, 30, 1.5))
    peduncle = ((18, -8, 6, 1.8), (15, -9, -4, 2.2), (9, -8, -14, 3.0), (5, -6, -26, 3.0))
    paint(np.maximum(tube(mirrored, capsule), tube(mirrored, peduncle)), "capsule")

    # Cortex: lowest around the central and calcarine sulci and along the midline.
    cortex = 1 - ramp(pial - np.float32(subject.cortex_mm), edge_mm)
    primary = np.exp(-(((y + 6) / 10) ** 2)) + np.exp(-(((y + 50) / 10) ** 2) - ((z - 2) / 8) ** 2)
    primary = primary + np.float32(0.5) * np.exp(-((side / 8) ** 2))
    adc += cortex * (np.float32(level["cortex"]) * (1 - np.float32(0.05) * primary) - adc)
    white *= 1 - cortex
    csf = np.maximum(fluid, ramp(ventricles(subject, points_mm, mirrored), edge_mm))

    # Cerebellum with folia, vermis and brainstem replace the fluid around the cerebrum.
    inside = np.maximum(ramp(cerebellum, edge_mm), ramp(stem, edge_mm) * ramp(-z, 6.0))
    folia = np.sin(np.float32(1.3) * np.sqrt((y + 18) ** 2 + (z + 16) ** 2) + np.float32(0.25) * side)
    rim = np.clip((7 - cerebellum) / 5, 0, 1)
    middle = np.exp(-((side / 5) ** 2))
    hemisphere = level["cerebellum"] + middle * np.float32(level["vermis"] - level["cerebellum"])
    hemisphere = hemisphere * (1 + rim * np.float32(0.1) * np.clip(folia, -0.6, 1))
    behind = np.where(cerebellum > stem, hemisphere, np.float32(level["brainstem"]))
    adc += inside * (behind - adc)
    csf *= 1 - inside
    white *= 1 - inside
    paint(tube(mirrored, ((7, -12, -22, 2.5), (13, -25, -24, 3.0), (15, -33, -26, 3.0))), "dentate")
    csf = np.maximum(csf, ramp(ellipsoid(points_mm, (0, -22, -24), (4, 2.2, 7)), edge_mm))  # fourth ventricle

    fine, coarse = subject.texture(points_mm)[0], subject.texture(points_mm / 3)[1]
    adc *= 1 + np.float32(0.02) * fine + np.float32(0.02) * coarse
    adc += csf * (np.float32(subject.adc_csf) - adc)
    adc *= np.float32(subject.adc_gain)
    return Tissue(adc=adc, csf=csf, white=white * (1 - csf), cerebrum_depth_mm=cerebrum, brain_depth_mm=brain)


def lobes(points_mm: FloatArray, mirrored: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Signed distances of the unfolded cerebrum, cerebellum, brainstem, and their union with the cisterns."""
    x, y, z = points_mm
    # Widest over the parietal lobes, narrower in front, flatter below than above.
    width = 1.0 - np.float32(0.0014) * (y + 12) - np.float32(0.00001) * (y + 12) ** 2
    below = np.where(z < 4, np.float32(1.62), np.float32(1.0))
    hull = ellipsoid(np.stack([x / width, y, (z - 4) * below]), (0, 0, 0), (46, 57, 41))
    temporal = tube(mirrored, ((24, 22, -14, 10), (28, 6, -18, 13), (29, -20, -12, 14)))
    cerebellum = smooth_union(
        ellipsoid(mirrored, (11.5, -36, -26), (16, 15, 14)), ellipsoid(points_mm, (0, -34, -24), (9, 14, 15)), 2.0
    )
    stem = tube(points_mm, ((0, -8, -4, 10), (0, -9, -15, 9), (0, -8, -24, 11.5), (0, -15, -36, 7.5), (0, -18, -50, 6)))
    cerebrum = smooth_union(hull, temporal, 3.0)
    brain = smooth_union(smooth_union(cerebrum, cerebellum, 6.0), stem, 7.0)
    return cerebrum, cerebellum, stem, brain


def callosal_roof(y: FloatArray) -> FloatArray:
    """Height in mm of the upper side of the corpus callosum; the interhemispheric fissure is above."""
    return 17 - np.float32(0.009) * (y + 4) ** 2


def clefts(
    subject: Subject, points_mm: FloatArray, side: FloatArray, cerebrum: FloatArray, edge_mm: float
) -> tuple[FloatArray, FloatArray]:
    """Depth below the pia in mm, and fluid share in sulci, in fissures and around the brain."""
    x, y, z = points_mm

    # sulci run inwards: the folding field is sampled at points moved towards the surface
    radius = np.sqrt((x / 46) ** 2 + (y / 57) ** 2 + ((z - 2) / 38) ** 2)
    stretch = np.clip(radius, 0.3, 1.3) ** np.float32(0.7)
    drawn_out = points_mm / stretch
    meander = subject.folding.depth(drawn_out)[0]
    depth = np.float32(subject.sulcal_depth_mm) * (1 + np.float32(0.3) * meander)
    sheet = subject.folding.distance(drawn_out) * stretch
    sulcus = np.sqrt(sheet**2 + np.maximum(cerebrum - depth, 0) ** 2)
    # Around the deep nuclei the surface is smooth.
    sulcus = np.maximum(sulcus, ellipsoid(points_mm, (0, -4, 4), (31, 29, 17)))

    def strip(offset: FloatArray, *beyond: FloatArray) -> FloatArray:
        return np.sqrt(offset**2 + sum(np.maximum(b, 0) ** 2 for b in beyond))

    roof = callosal_roof(y)
    midline = strip(x + np.float32(0.6) * meander, np.where(np.abs(y + 2) < 40, roof - z, np.float32(-1)))
    cingulate = strip(z - roof - 11 + 4 * meander, side - 10, np.abs(y - 6) - 38)
    calcarine = strip(z - 4 + np.float32(0.25) * (y + 50) + 4 * meander, side - 15, y + 36)
    insula = strip(side - 34 + 3 * meander + np.float32(0.006) * (y - 2) ** 2, np.abs(y - 2) - 17, np.abs(z - 2) - 8)
    rise = -2 - np.float32(0.4) * (y - 4) + np.float32(0.5) * (side - 38)
    sylvian = np.minimum(insula, strip(z - rise + 4 * meander, 33 - side, np.abs(y - 4) - 20))

    narrow = np.float32(subject.sulcal_width_mm) * np.exp(np.float32(0.6) * meander)
    wide = narrow + np.float32(subject.fissure_mm) * np.exp(np.float32(0.5) * meander)
    pial, fluid = cerebrum, 1 - ramp(cerebrum, edge_mm)
    sulcus = np.minimum.reduce([sulcus, cingulate, calcarine])
    for distance, half_mm in ((sulcus, narrow), (midline, wide), (sylvian, (narrow + wide) / 2)):
        pial = np.minimum(pial, distance - half_mm)
        reach = [np.clip(distance + end, -half_mm, half_mm) for end in (-edge_mm / 2, edge_mm / 2)]
        fluid = np.maximum(fluid, (reach[1] - reach[0]) / np.float32(edge_mm))
    return pial, fluid


def ventricles(subject: Subject, points_mm: FloatArray, mirrored: FloatArray) -> FloatArray:
    """Signed distance of the lateral and third ventricles and the cavum septi pellucidi."""
    lateral = tube(
        mirrored, ((5, 26, 5, 1.6), (6, 17, 11, 2.4), (8, -4, 16, 2.0), (17, -24, 10, 3.6), (16, -40, 4, 2.0))
    )
    horn = tube(mirrored, ((17, -24, 10, 2.6), (27, -16, -9, 1.6), (28, 2, -16, 1.3)))
    third = ellipsoid(points_mm, (0, -4, 0), (1.4, 12, 9)) + np.float32(0.5 * subject.ventricle_mm)
    cavum = ellipsoid(points_mm, (0, 12, 10), (subject.cavum_mm + 0.1, 9, 4))
    return np.maximum(np.maximum(lateral, horn) + np.float32(subject.ventricle_mm), np.maximum(third, cavum))


class KnownStructures:
    """Healthy structures of random shape and low ADC, also in the normative atlas, so that their Z is normal.

    They substitute for structures missing in this anatomy, so that low ADC alone does not mean injury.
    """

    def __init__(self, rng: np.random.Generator, mean_number: float) -> None:
        self.number = int(rng.poisson(mean_number))
        self.roughness = RandomField(rng, 4.0)
        place = rng.uniform(-1, 1, (self.number, 3)) * (40, 52, 34)
        self.centres_mm = (place + np.array([0, -4, 4])).astype(np.float32)
        self.radii_mm = np.exp(rng.uniform(0.9, 2.6, (self.number, 1))) * rng.uniform(0.6, 1.5, (self.number, 3))
        self.turns = [np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32) for _ in range(self.number)]
        self.levels = rng.uniform(0.62, 0.92, self.number)
        self.border_mm = np.exp(rng.uniform(-0.7, 1.1, self.number))

    def __call__(self, points_mm: FloatArray, csf: FloatArray) -> FloatArray:
        """Factor on ADC at canonical ``points_mm`` (3, N); 1 in pure fluid (``csf`` is the fluid share)."""
        factor = np.ones(points_mm.shape[1], dtype=np.float32)
        for centre, radii, turn, level, border_mm in zip(
            self.centres_mm, self.radii_mm, self.turns, self.levels, self.border_mm, strict=True
        ):
            distance = ellipsoid(turn @ (points_mm - centre[:, None]), (0, 0, 0), tuple(radii))
            distance += np.float32(0.2 * radii.mean()) * self.roughness(points_mm)[0]
            np.minimum(factor, 1 - np.float32(1 - level) * ramp(distance, float(border_mm)) * (1 - csf), out=factor)
        return factor
