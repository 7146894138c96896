"""``run brain``: a brain mask from the image with b = 0, by thresholds and morphology, without a network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edt
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from ..data.checks import Limits
from ..geometry.components import components
from ..io.images import write
from ..io.volumes import Volume
from ..runtime.errors import UserError
from .adc import b0_of
from .dicom import read_folder
from .inputs import beside, paths_of, read, resample, to_micro
from .previews import outlines

logger = logging.getLogger(__name__)

Mask = NDArray[np.bool_]

# Smoothing sigma of the brain's local level (mm), and threshold relative to it. Skull is below 0.1, muscle 0.5.
STRICT = ((40.0, 0.65), (40.0, 0.65), (15.0, 0.65))
LOOSE = ((40.0, 0.5), (25.0, 0.55), (15.0, 0.6))  # keeps a centre three times as dark (receive field), adds muscle
FIRST = 0.7  # maximum initial threshold, relative to the median; Otsu's is too high for an image of brain alone
WITHIN_MM = 20.0  # radius of the strict mask's closing, which limits the loose mask
OPENING_MM = 6.0  # cuts bridges thinner than 12 mm: optic nerves, scalp joined to the brain by partial volume
CLOSING_MM = 5.0
FIELD_GRID_MM = 6.0  # voxel size for the coils' receive field
# N4's full width at half maximum: ITK's 0.15 leaves a strong field; 0.5 makes muscle as bright as brain.
FIELD_WIDTH = 0.3
STRIPPED = 0.9  # brain's share of the voxels above 0; 0.6 to 0.7 in a head with skull and scalp
CUT = 0.5  # maximum area of the first and last sections, relative to the largest
MEDIAN_MM = 8.0  # median radius of the reference method, DIPY's four voxels of 2 mm
AGREEMENT = 0.8  # minimum Dice of the two methods
SHARE = 0.4  # minimum share of the tissue in the image; a bright lesion alone has 0.1
SOLID = 0.75  # minimum volume relative to the ellipsoid with the same moments; a hollow brain has less


def brain_mask(image: Volume) -> Mask:
    """Segment the brain with the fluid around it.

    N4 removes the coils' receive field, which may darken the centre to a third. Otsu's threshold of the logarithms
    gives tissue, even with a bright lesion. The largest component after an opening gives the brain's local level. A
    threshold relative to this level, or to the median, refines mask and level from coarse to fine. A lower threshold
    applies inside a wide closing of the mask. A final closing and hole filling give the result. If the image is already
    0 outside the brain, the mask is all voxels above 0.

    Args:
        image: b = 0, (X, Y, Z), at least 0.

    Raises:
        UserError: no component is as thick as a brain.
    """
    values, spacing = _finite(image), image.spacing_mm
    across = int(np.argmax(spacing))  # the slice axis: the largest spacing
    widths = [1 if axis == across else 1 + 2 * max(1, int(2 / size)) for axis, size in enumerate(spacing)]  # about 5 mm
    smooth = ndimage.median_filter(values, widths)
    logs = _logs(smooth)
    core, _ = _opened(logs > _otsu(logs), spacing)
    logs = logs - _receive_field(logs, core, spacing)
    tissue = logs > _otsu(logs)
    core, _ = _opened(tissue, spacing)
    middle = float(np.median(logs[core]))
    known = np.minimum(logs[core], middle)  # clipped, so that bright voxels do not raise the threshold
    strict = _refined(logs > min(_otsu(known[None]), middle + np.log(FIRST)), logs, spacing, STRICT)
    loose = _refined(tissue, logs, spacing, LOOSE)
    mask = _filled(_closed(strict | loose & _filled(_closed(strict, spacing, WITHIN_MM)), spacing, CLOSING_MM))
    return values > 0 if _is_stripped(values, mask) else mask


def median_otsu(image: Volume) -> Mask:
    """Tissue by median filter and Otsu's threshold, as in DIPY's ``median_otsu`` with one pass, on a 4 mm grid."""
    values, spacing = _finite(image), image.spacing_mm
    full = _in_itk(values, spacing)
    small = sitk.Shrink(full, [max(1, round(4 / size)) for size in spacing])
    smooth = sitk.Median(small, [max(1, round(MEDIAN_MM / size)) for size in small.GetSpacing()])
    tissue = resample(sitk.OtsuThreshold(smooth, 0, 1), full, nearest=True)
    return np.asarray(sitk.GetArrayFromImage(tissue).T > 0)


def brain_problem(mask: Mask, spacing_mm: NDArray[np.floating], limits: Limits, whole: bool = True) -> str:
    """Why a mask cannot be a newborn's brain; empty if it can.

    Args:
        mask: (X, Y, Z).
        spacing_mm: voxel size (3,).
        limits: provides ``brain_ml_range``.
        whole: also check that the image's border does not cut the brain.
    """
    volume = _ml(mask, spacing_mm)
    if limits.brain_ml_range and not limits.brain_ml_range[0] <= volume <= limits.brain_ml_range[1]:
        low, high = limits.brain_ml_range
        return f"it has {volume:.0f} ml, not {low:g} to {high:g}"
    for axis in range(3) if whole else ():
        areas = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        if max(areas[0], areas[-1]) > CUT * areas.max():
            return "the image ends within it"
    return ""


def mask_doubt(mask: Mask, image: Volume, reference: Mask) -> str:
    """Why a computed mask is doubtful; empty if it passes all checks.

    Args:
        mask: from :func:`brain_mask`, (X, Y, Z).
        image: b = 0.
        reference: from :func:`median_otsu`.
    """
    values = _finite(image)
    if _is_stripped(values, mask):
        return ""
    agreement = 2 * (mask & reference).sum() / (mask.sum() + reference.sum())
    logs = _logs(values)
    tissue = logs > _otsu(logs)
    share = (mask & tissue).sum() / tissue.sum()
    points = np.argwhere(mask) * image.spacing_mm
    ellipsoid = 4 / 3 * np.pi * np.sqrt(5.0**3 * np.linalg.det(np.cov(points.T)))
    solid = mask.sum() * np.prod(image.spacing_mm) / ellipsoid
    if agreement < AGREEMENT:
        return f"median and Otsu's threshold give another mask (Dice {agreement:.2f}, at least {AGREEMENT:g})"
    if share < SHARE:
        return f"it contains {share:.0%} of the tissue in the image (at least {SHARE:.0%})"
    if solid < SOLID:
        return f"it is hollow or irregular: {solid:.0%} of an ellipsoid (at least {SOLID:.0%})"
    return ""


def given_mask(path: str | Path, grid: Volume, name: str) -> Mask:
    """Read the user's mask: voxels above 0.

    Args:
        path: file of a mask, or of a map that is 0 outside the brain.
        grid: volume with the required grid.
        name: name of ``grid``, for messages.

    Raises:
        UserError: the file is invalid, on another grid, or above 0 in all voxels or in none.
    """
    mask = np.asarray(read(path, 3, grid, name).array > 0)
    if not mask.any() or mask.all():
        raise UserError(f"{path} is not a brain mask: {'all' if mask.any() else 'none'} of its voxels are above 0.")
    return mask


def strip(adc: Volume, mask: Mask) -> Volume:
    """Skull-strip an ADC map in 1e-6 mm²/s: 0 outside the brain, at least 1 inside, since later steps use ADC > 0."""
    values = np.where(mask, np.maximum(adc.array, 1), 0).astype(np.float32)
    return Volume(values, adc.affine, adc.header_spacing_mm)


def show_and_judge(mask: Mask, image: Volume, picture: Path, limits: Limits, name: str, whole: bool = True) -> float:
    """Write a picture of the mask, then check that it can be a newborn's brain.

    Args:
        mask: (X, Y, Z).
        image: background of the picture.
        picture: ``.png``.
        limits: see :func:`brain_problem`.
        name: name of the image, for messages.
        whole: see :func:`brain_problem`.

    Returns:
        The mask's volume, ml.

    Raises:
        UserError: the mask fails a check; names the picture.
    """
    volume = _ml(mask, image.spacing_mm)
    reference = {"median and Otsu's threshold": median_otsu(image)} if whole else {}
    outlines(picture, image, {"brain": mask} | reference, f"{volume:.0f} ml")
    # Crop empty borders.
    seen = ndimage.find_objects((image.array > 0).astype(np.uint8))[0] if whole else np.s_[:]
    problem = brain_problem(mask[seen], image.spacing_mm, limits, whole)
    for other in reference.values():
        problem = problem or mask_doubt(mask, image, other)
    if problem:
        raise UserError(
            f"No newborn's brain was found in {name}: {problem}. See {picture}. No mask was written; "
            "give your own with --brain_file."
        )
    return volume


def write_brain(
    images: str | Path | Sequence[str | Path] | None,
    output_file: str | Path | None,
    limits: Limits,
    brain_file: str | Path | None = None,
    adc_file: str | Path | None = None,
    stripped_file: str | Path | None = None,
    adc_scale: float | None = None,
    series: Sequence[int] = (),
) -> None:
    """Write a brain mask (uint8) and a picture of its outline on the image (``.png``, in the same folder).

    The arguments are keys of ``configs/scanner.yaml``, which explains them; ``images`` has the image with b = 0.

    Raises:
        UserError: a file is invalid, or the mask cannot be a newborn's brain; then only the picture is written.
    """
    files = paths_of(images)
    if len(files) != 1 or not output_file:
        raise UserError("Name the image with b = 0 and the output file: --images FILE --output_file FILE.")
    if (adc_file is None) != (stripped_file is None):
        raise UserError(
            "Only one of --adc_file (ADC map) and --stripped_file (its skull-stripped copy) is given; give both."
        )
    source, picture = files[0], beside(output_file, ".png")
    if stripped_file:
        beside(stripped_file, "")
    image = b0_of(read_folder(source, series)).volume() if source.is_dir() else read(source, 3)
    adc = read(adc_file, 3, image, source) if adc_file else None
    mask = given_mask(brain_file, image, str(source)) if brain_file else brain_mask(image)
    volume = show_and_judge(mask, image, picture, limits, str(source), whole=brain_file is None)
    if adc and stripped_file:
        stripped = strip(Volume(to_micro(adc.array, adc_scale, mask), adc.affine), mask)
        write(stripped_file, stripped.array, adc.affine)
    write(output_file, mask.astype(np.uint8), image.affine)
    logger.info("Brain mask of %.0f ml; look at %s.", volume, picture)


def _ml(mask: Mask, spacing_mm: NDArray[np.floating]) -> float:
    return float(mask.sum() * np.prod(spacing_mm)) / 1000


def _finite(image: Volume) -> NDArray[np.float32]:
    values = np.nan_to_num(np.asarray(image.array, dtype=np.float32), posinf=0, neginf=0)
    if not (values > 0).any():
        raise UserError("The image has no voxel above 0.")
    return values


def _is_stripped(values: NDArray[np.float32], mask: Mask) -> bool:
    """Whether the image is already skull-stripped: nearly all voxels above 0 are brain."""
    shown = values > 0
    stripped = bool((mask & shown).sum() >= STRIPPED * shown.sum())
    if stripped:
        logger.info("The image is already skull-stripped: the mask is all voxels above 0.")
    return stripped


def _logs(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithms, clipped to the 1st and 99th percentile of the values above 0."""
    known = values[values > 0]
    if not known.size:  # the median filter removed single voxels
        raise UserError(f"Nothing in the image is thicker than {2 * OPENING_MM:g} mm; there is no brain in it.")
    return np.asarray(np.log(np.clip(values, *np.percentile(known, [1, 99]))), dtype=np.float32)


def _receive_field(logs: NDArray[np.float32], core: Mask, spacing: NDArray[np.floating]) -> NDArray[np.float32]:
    """The coils' receive field as a logarithm, by N4 on a coarse grid."""
    full, inside = _in_itk(np.exp(logs), spacing), _in_itk(core.astype(np.uint8), spacing)
    factors = [max(1, round(FIELD_GRID_MM / size)) for size in spacing]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)  # reproducible sums
    n4.SetMaximumNumberOfIterations([50, 50])
    n4.SetConvergenceThreshold(1e-7)
    n4.SetNumberOfControlPoints([4, 4, 4])
    n4.SetBiasFieldFullWidthAtHalfMaximum(FIELD_WIDTH)
    n4.Execute(sitk.Shrink(full, factors), sitk.Shrink(inside, factors))
    return np.asarray(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(full)).T, dtype=np.float32)


def _otsu(values: NDArray[np.float32]) -> float:
    found = sitk.OtsuThresholdImageFilter()
    found.SetNumberOfHistogramBins(256)
    found.Execute(sitk.GetImageFromArray(values))
    return float(found.GetThreshold())


def _opened(tissue: Mask, spacing: NDArray[np.floating]) -> tuple[Mask, Mask]:
    """The largest component after erosion by ``OPENING_MM``, and its dilation within the tissue."""
    core = _distance(tissue, spacing) > OPENING_MM
    if not core.any():
        raise UserError(f"Nothing in the image is thicker than {2 * OPENING_MM:g} mm; there is no brain in it.")
    labels, _ = components(core, connectivity=6)
    core = labels == np.bincount(labels[core]).argmax()
    # Dilation by up to one voxel more, since with thick slices the brain's last slice would be lost.
    reach = OPENING_MM + np.maximum(1.0, spacing)
    return core, tissue & (_distance(~core, spacing / reach) <= 1)


def _refined(
    mask: Mask, logs: NDArray[np.float32], spacing: NDArray[np.floating], levels: Sequence[tuple[float, float]]
) -> Mask:
    """Refine a mask by thresholds relative to the brain's local level, coarse to fine."""
    core, mask = _opened(mask, spacing)
    for over_mm, fraction in levels:
        weight, middle = _blurred(core, spacing, over_mm), np.median(logs[core])
        level = np.where(weight > 0.01, _blurred(logs * core, spacing, over_mm) / np.maximum(weight, 0.01), middle)
        core, mask = _opened(logs > np.minimum(level, middle) + np.log(fraction), spacing)
    return mask


def _closed(mask: Mask, spacing: NDArray[np.floating], radius_mm: float) -> Mask:
    margin = [int(n) for n in np.ceil(radius_mm / spacing) + 1]  # else the mask closes with the image's border
    padded = np.pad(mask, [(n, n) for n in margin])
    grown = _distance(~padded, spacing) <= radius_mm
    closed = padded | (_distance(grown, spacing) > radius_mm)
    return np.asarray(closed[tuple(slice(n, -n) for n in margin)])


def _filled(mask: Mask) -> Mask:
    """Fill holes in the sections along each axis, in place."""
    for axis in range(3):
        for section in np.moveaxis(mask, axis, 0):
            section[:] = ndimage.binary_fill_holes(section)
    return mask


def _distance(mask: Mask, spacing: NDArray[np.floating]) -> NDArray[np.float32]:
    """Distance to the nearest voxel outside the mask, mm; the image's border does not count as outside."""
    return np.asarray(edt.edt(np.asfortranarray(mask), anisotropy=tuple(map(float, spacing)), black_border=False))


def _blurred(values: NDArray[np.floating] | Mask, spacing: NDArray[np.floating], over_mm: float) -> NDArray[np.float32]:
    image = _in_itk(values.astype(np.float32), spacing)
    return np.asarray(sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, over_mm)).T)


def _in_itk(values: NDArray[Any], spacing: NDArray[np.floating]) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing(spacing.tolist())
    return image
