"""Registration of a normative atlas to a case: affine, then a smooth displacement field, without the case's damage.

The border of a brain mask is not anatomy: masks differ, and so does the fluid around the brain. With 0 outside, this
border is the strongest edge of the image and pulls the atlas off the gyri. Here both brains are surrounded by fluid,
so that the outer edge is the edge of the cortex. The affine metric is mutual information. The deformable metric is
local correlation (Avants et al., Med Image Anal 12, 2008), which is invariant to the level of white matter.

A deformable registration of damaged tissue would pull dark structures of the atlas over it, and the Z map would lose
the lesion. Therefore a first Z map detects the damage, and the atlas' mean fills it: no force acts there, and the
field continues smoothly from its surroundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from ..runtime.errors import UserError
from .inputs import on_grid, resample, z_map

STEP_MM = 2.0  # voxel size of the registration grid
MARGIN_MM = 8.0  # around the brain
BEYOND_MM = 4.0  # margin around the atlas' brain; farther parts of a brain mask, muscle and cord, attract the atlas
DAMAGE_Z = -2.5  # a smoothed Z below this counts as damage
DAMAGE_SMOOTHING_MM = 5.0
PASSES = 2  # deformable registrations; the second continues the first with a better estimate of the damage
FLUID = 2000.0  # 1e-6 mm²/s; upper bound, and value outside the brain; contrast in fluid would dominate the metrics
SHRINK = 2  # shrink factor of the grid, deformable registration
BLUR_MM = 2.0  # sigma of the images' smoothing, deformable registration
RADIUS = 2  # of the local correlation, voxels of the shrunk grid
FIELD_VARIANCE = 25.0  # of each update's Gaussian smoothing, squared voxels of the shrunk grid: sigma = 20 mm
ITERATIONS = 60
UPDATE_MM = 1.0  # maximum step; ITK's default of one voxel oscillates


@dataclass(frozen=True)
class Fit:
    """Quality of the registration of an atlas to a case.

    Attributes:
        correlation: of ADC with the atlas' mean in the brain, without damage and voxels far outside the atlas.
        overlap: Dice of the two brains.
        scale: determinant of the affine transform, the atlas' volume relative to the case's.
        median_z: in the brain, without damage.
        damage: fraction of the brain excluded as damage.
        mean_shift_mm: mean length of the displacement field in the brain.
    """

    correlation: float
    overlap: float
    scale: float
    median_z: float
    damage: float
    mean_shift_mm: float


@dataclass(frozen=True)
class Registration:
    """Result of a registration; ``transform`` maps case points to atlas points (LPS mm)."""

    transform: sitk.Transform
    fit: Fit


def register(
    adc: sitk.Image,
    mean: sitk.Image,
    std: sitk.Image,
    deformable: bool = True,
    least_std: float = 20.0,
) -> Registration:
    """Register an atlas to a case; the caller checks the fit.

    Args:
        adc: ADC map of the case, 1e-6 mm²/s, 0 outside the brain, float32.
        mean: mean of the atlas, 1e-6 mm²/s, 0 outside its brain, float32.
        std: standard deviation of the atlas.
        deformable: add deformable registration after the affine one.
        least_std: floor of ``std``, 1e-6 mm²/s.

    Raises:
        UserError: the brain is empty.
    """
    brain = adc > 0
    grid = _grid(brain)
    inside = resample(brain, grid, nearest=True)
    b = sitk.GetArrayFromImage(inside) > 0
    # Extrapolation beyond the brain: interpolated with zeros, a brain's border would look like damage. A voxel outside
    # the atlas is compared with the nearest atlas voxel.
    full_adc, full_mean, full_std = (repeat_border(image) for image in (adc, mean, std))
    values = np.where(b, sitk.GetArrayFromImage(resample(full_adc, grid)), 0).astype(np.float32)
    fixed = on_grid(values, grid)
    affine = _affine(fixed, inside, mean)
    near = sitk.BinaryDilate(resample(mean, grid, affine, nearest=True) > 0, [round(BEYOND_MM / STEP_MM)] * 3)
    whole, kept = b, b & (sitk.GetArrayFromImage(near) > 0)
    if kept.any() and (kept != whole).any():
        fixed, inside, b = sitk.Mask(fixed, near), sitk.Mask(inside, near), kept
        values = sitk.GetArrayFromImage(fixed)
        affine = _affine(fixed, inside, mean)

    def at(transform: sitk.Transform) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        expected, spread = (sitk.GetArrayFromImage(resample(im, grid, transform)) for im in (full_mean, full_std))
        return expected, spread, sitk.GetArrayFromImage(resample(mean, grid, transform, nearest=True)) > 0

    transform: sitk.Transform = affine
    expected, spread, covered = at(affine)
    moving = on_grid(np.where(covered, expected, 0).astype(np.float32), grid)
    damage = _damage(values, b, expected, spread, least_std)
    field = sitk.Image(grid.GetSize(), sitk.sitkVectorFloat64, 3)
    field.CopyInformation(grid)
    for _ in range(PASSES if deformable else 0):
        filled = np.where(b, np.where(damage, expected, values), 0).astype(np.float32)
        field = _field(on_grid(filled, grid), moving, field)
        transform = sitk.CompositeTransform([affine, sitk.DisplacementFieldTransform(sitk.Image(field))])
        expected, spread, covered = at(transform)
        damage = _damage(values, b, expected, spread, least_std)
    sound = b & ~damage
    if sound.sum() < 2:
        sound = b  # all of the brain is damage; ``fit.damage`` shows it
    z = (values - expected) / np.maximum(spread, least_std)
    correlation = np.corrcoef(values[sound], expected[sound])[0, 1] if values[sound].std() > 0 else 0.0
    fit = Fit(
        correlation=float(np.nan_to_num(correlation)),
        overlap=float(2 * (whole & covered).sum() / (whole.sum() + covered.sum())),
        scale=float(abs(np.linalg.det(np.array(affine.GetMatrix()).reshape(3, 3)))),
        median_z=float(np.median(z[sound])),
        damage=float((damage & b).sum() / b.sum()),
        mean_shift_mm=float(np.linalg.norm(sitk.GetArrayViewFromImage(field), axis=-1)[b].mean()),
    )
    return Registration(transform, fit)


def _grid(brain: sitk.Image) -> sitk.Image:
    """Grid with cubic voxels along a mask's axes, cropped to the foreground plus a margin."""
    b = sitk.GetArrayViewFromImage(brain) > 0
    if not b.any():
        raise UserError("The ADC map has no voxel above 0.")
    ends = [np.flatnonzero(b.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in (2, 1, 0)]
    spacing, direction = np.array(brain.GetSpacing()), np.array(brain.GetDirection()).reshape(3, 3)
    low = np.array([end[0] for end in ends]) * spacing - MARGIN_MM
    high = np.array([end[1] for end in ends]) * spacing + MARGIN_MM
    size = np.ceil((high - low) / STEP_MM).astype(int) + 1
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetSpacing([STEP_MM] * 3)
    grid.SetDirection(brain.GetDirection())
    grid.SetOrigin((np.array(brain.GetOrigin()) + direction @ low).tolist())
    return grid


def repeat_border(image: sitk.Image) -> sitk.Image:
    """Extrapolate a map beyond its brain by the nearest voxel, so that interpolation does not mix in zeros."""
    values = sitk.GetArrayFromImage(image)
    nearest = tuple(ndimage.distance_transform_edt(values <= 0, return_distances=False, return_indices=True))
    return on_grid(values[nearest], image)


def _affine(fixed: sitk.Image, inside: sitk.Image, mean: sitk.Image) -> sitk.AffineTransform:
    start = sitk.CenteredTransformInitializer(
        sitk.Cast(inside, sitk.sitkFloat32), sitk.Cast(mean > 0, sitk.sitkFloat32), sitk.Euler3DTransform(),
        sitk.CenteredTransformInitializerFilter.MOMENTS,
    )  # fmt: skip
    centred = sitk.Euler3DTransform(start)
    first = sitk.AffineTransform(3)
    first.SetCenter(centred.GetCenter())
    first.SetTranslation(centred.GetTranslation())
    affine = sitk.AffineTransform(first)
    method = _method(affine, [3, 2], [3, 1.5])
    method.SetMetricFixedMask(sitk.BinaryDilate(inside, [2] * 3))
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 120, relaxationFactor=0.6)
    try:
        method.SetMetricAsCorrelation()  # coarse alignment of the whole brains
        method.Execute(fixed, mean)
        method.SetMetricAsMattesMutualInformation()
        method.Execute(_in_fluid(fixed), _in_fluid(mean))
    except RuntimeError:  # ITK: the images do not overlap; the caller checks the fit of the centred brains
        return first
    return affine


def _method(transform: sitk.Transform, shrink: Sequence[int], blur_mm: Sequence[float]) -> sitk.ImageRegistrationMethod:
    """Optimization of a transform in place, coarse to fine."""
    method = sitk.ImageRegistrationMethod()
    method.SetInitialTransform(transform, inPlace=True)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel(blur_mm)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method


def _damage(
    adc: NDArray[np.float32],
    brain: NDArray[np.bool_],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    least_std: float,
) -> NDArray[np.bool_]:
    z = z_map(adc, brain, mean, std, np.full(3, STEP_MM), DAMAGE_SMOOTHING_MM, least_std=least_std)
    low = ndimage.binary_opening(brain & (z < DAMAGE_Z))  # a single voxel is more likely misregistered than damaged
    return np.asarray(ndimage.binary_dilation(low) & brain)


def _in_fluid(image: sitk.Image) -> sitk.Image:
    """A map clipped at ``FLUID``, with ``FLUID`` as background."""
    return sitk.Clamp(image, sitk.sitkFloat32, 0, FLUID) + sitk.Cast(image <= 0, sitk.sitkFloat32) * FLUID


def _field(fixed: sitk.Image, moving: sitk.Image, start: sitk.Image) -> sitk.Image:
    """Displacement field on the grid of ``fixed``, initialised with ``start``; a global difference in ADC (a cooled
    newborn, a scanner) is removed."""
    a, b = sitk.GetArrayViewFromImage(fixed), sitk.GetArrayViewFromImage(moving)
    both = (a > 0) & (b > 0)
    level = float(np.median(b[both]) / np.median(a[both])) if both.any() else 1.0
    transform = sitk.DisplacementFieldTransform(sitk.Image(start))
    transform.SetSmoothingGaussianOnUpdate(varianceForUpdateField=FIELD_VARIANCE, varianceForTotalField=0.0)
    method = _method(transform, [SHRINK], [BLUR_MM])
    method.SetMetricAsANTSNeighborhoodCorrelation(RADIUS)
    method.SetOptimizerAsGradientDescent(
        1.0, ITERATIONS, estimateLearningRate=method.EachIteration, maximumStepSizeInPhysicalUnits=UPDATE_MM
    )
    method.Execute(_in_fluid(fixed * level), _in_fluid(moving))
    return sitk.Resample(transform.GetDisplacementField(), fixed, sitk.Transform(), sitk.sitkLinear, 0.0)
