"""``run brain``: a brain mask from the image with b = 0, by thresholds and morphology in millimetres; no weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

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
from .inputs import paths_of, read, refuse_other_grid, stem_of, to_micro
from .previews import outlines

__all__ = ["brain_mask", "brain_problem", "given_mask", "show_and_judge", "strip", "write_brain"]

logger = logging.getLogger(__name__)

Mask = NDArray[np.bool_]

FRACTION = 0.65  # of the brain's own level around; skull is under it
# Over which that level may change, first to last: the receive coils' is 15 mm, but so near to the neck it would be the
# muscle's own; the coarse ones leave muscle out of what the last is taken from.
LEVELS_MM = (40.0, 40.0, 15.0)
OPENING_MM = 6.0  # bridges thinner than twice this are cut: optic nerves, scalp that partial volume ties to the brain
CLOSING_MM = 5.0
STRIPPED = 0.9  # share of what is not 0 that the brain takes up; of a head with skull and scalp it is 0.6 to 0.7
CUT = 0.5  # of the largest section, at an end of the image


def brain_mask(image: Volume) -> Mask:
    """The brain with the fluid around it.

    Otsu's threshold gives tissue; its largest part after an opening gives the brain's level from place to place;
    what is above ``FRACTION`` of that, opened, gives the level anew, coarse to fine; at last a closing and filled holes
    give the mask. Where the image is 0 outside and the brain is nearly all that is left, it has been stripped already,
    and what is above 0 is taken as it is.

    Args:
        image: b = 0, (X, Y, Z), at least 0.

    Raises:
        UserError: when nothing in it is as thick as a brain.
    """
    values = np.nan_to_num(np.asarray(image.array, dtype=np.float32), posinf=0, neginf=0)
    spacing = image.spacing_mm
    if not (values > 0).any():
        raise UserError("The image is nowhere above 0.")
    across = int(np.argmax(spacing))  # slices are thick, and may be stored along any axis
    smooth = ndimage.median_filter(values, [1 if axis == across else 3 for axis in range(3)])
    smooth = np.minimum(smooth, np.percentile(smooth, 99))  # eyes would draw the threshold up
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(smooth))
    core, mask = _opened(smooth > otsu.GetThreshold(), spacing)
    for over_mm in LEVELS_MM:
        weight = _blurred(core, spacing, over_mm)
        level = np.where(
            weight > 0.01, _blurred(smooth * core, spacing, over_mm) / np.maximum(weight, 0.01), np.median(smooth[core])
        )
        core, mask = _opened(smooth > FRACTION * level, spacing)
    mask = _closed(mask, spacing)
    for slice_ in np.moveaxis(mask, across, 0):
        slice_[:] = ndimage.binary_fill_holes(slice_)
    shown = values > 0
    if (mask & shown).sum() >= STRIPPED * shown.sum():
        logger.info("The image is 0 outside the brain already: what is above 0 is taken for the brain.")
        return shown
    return mask


def brain_problem(mask: Mask, spacing_mm: NDArray[np.floating], limits: Limits, whole: bool = True) -> str:
    """Why a mask can be no newborn's brain; empty if it can.

    Args:
        mask: (X, Y, Z).
        spacing_mm: voxel size (3,).
        limits: ``brain_ml_range`` counts.
        whole: also look whether the image's end cuts the brain off.
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


def given_mask(path: str | Path, grid: Volume, name: str) -> Mask:
    """A mask that the user gives: what is above 0 in the file.

    Args:
        path: of a mask, or of a map that is 0 outside the brain.
        grid: that it must lie on.
        name: of ``grid``, for messages.

    Raises:
        UserError: for a bad file, one on another grid, or one that is nowhere or everywhere above 0.
    """
    volume = read(path, 3)
    refuse_other_grid(grid, volume, (name, str(path)))
    mask = np.asarray(volume.array > 0)
    if not mask.any() or mask.all():
        raise UserError(f"{path} is no brain mask: it is {'everywhere' if mask.any() else 'nowhere'} above 0.")
    return mask


def strip(adc: Volume, mask: Mask) -> Volume:
    """An ADC map in 1e-6 mm²/s, 0 outside the brain and at least 1 in it, which is how a brain is told from then on."""
    values = np.where(mask, np.maximum(adc.array, 1), 0).astype(np.float32)
    return Volume(values, adc.affine, adc.header_spacing_mm)


def show_and_judge(mask: Mask, image: Volume, picture: Path, limits: Limits, name: str, whole: bool = True) -> float:
    """Write the picture to check a mask by, then refuse a mask that can be no newborn's brain.

    Args:
        mask: (X, Y, Z).
        image: that is shown.
        picture: ``.png``.
        limits: see :func:`brain_problem`.
        name: of the image, for messages.
        whole: see there.

    Returns:
        The mask's volume, ml.

    Raises:
        UserError: naming the problem and the picture.
    """
    volume = _ml(mask, image.spacing_mm)
    outlines(picture, image, mask, f"{volume:.0f} ml", "brain")
    # A part that is empty is no part of the image.
    seen = ndimage.find_objects((image.array > 0).astype(np.uint8))[0] if whole else np.s_[:]
    if problem := brain_problem(mask[seen], image.spacing_mm, limits, whole):
        raise UserError(f"No newborn's brain was found in {name}: {problem}. See {picture}. No mask is written.")
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
    """Write a brain mask, uint8, and beside it a picture of the image with its outline (``.png``).

    Args:
        images: the image with b = 0: a file, or a folder of DICOM with one.
        output_file: ``.nii.gz``, ``.nii`` or ``.mha``.
        limits: of the brain's volume.
        brain_file: a mask that is taken instead of one that is made; see :func:`given_mask`.
        adc_file: ADC map on the same grid, to be stripped.
        stripped_file: where it goes then, in 1e-6 mm²/s.
        adc_scale: of the ADC map; see :func:`scripts.scanner.adc.to_micro`.
        series: numbers of DICOM series to take; all if empty.

    Raises:
        UserError: for bad files; and when the mask can be no newborn's brain, of which the picture alone is written.
    """
    files = paths_of(images)
    if len(files) != 1 or not output_file:
        raise UserError("Say which image has b = 0 and where the mask goes: --images FILE --output_file FILE.")
    if (adc_file is None) != (stripped_file is None):
        raise UserError("--adc_file and --stripped_file go together: the ADC map, and where it goes without its skull.")
    source, stem = files[0], stem_of(output_file)
    if stripped_file:
        stem_of(stripped_file)
    image = b0_of(read_folder(source, series)).volume() if source.is_dir() else read(source, 3)
    adc = read(adc_file, 3) if adc_file else None
    if adc:
        refuse_other_grid(image, adc, (str(source), str(adc_file)))
    mask = given_mask(brain_file, image, str(source)) if brain_file else brain_mask(image)
    picture = stem.with_name(stem.name + ".png")
    volume = show_and_judge(mask, image, picture, limits, str(source), whole=brain_file is None)
    if adc and stripped_file:
        stripped = strip(Volume(to_micro(adc.array, adc_scale, mask), adc.affine), mask)
        write(stripped_file, stripped.array, adc.affine)
    write(output_file, mask.astype(np.uint8), image.affine)
    logger.info("Brain mask of %.0f ml; look at %s.", volume, picture)


def _ml(mask: Mask, spacing_mm: NDArray[np.floating]) -> float:
    return float(mask.sum() * np.prod(spacing_mm)) / 1000


def _opened(tissue: Mask, spacing: NDArray[np.floating]) -> tuple[Mask, Mask]:
    """The largest part that is left ``OPENING_MM`` below the surface, and what of the tissue is that near to it."""
    core = _distance(tissue, spacing) > OPENING_MM
    if not core.any():
        raise UserError(f"Nothing in the image is thicker than {2 * OPENING_MM:g} mm; there is no brain in it.")
    labels, _ = components(core, connectivity=6)
    core = labels == np.bincount(labels[core]).argmax()
    # Along each axis the core may begin a voxel deeper than that: of thick slices the brain's last would be lost.
    reach = OPENING_MM + np.maximum(1.0, spacing)
    return core, tissue & (_distance(~core, spacing / reach) <= 1)


def _closed(mask: Mask, spacing: NDArray[np.floating]) -> Mask:
    margin = [int(n) for n in np.ceil(CLOSING_MM / spacing) + 1]  # else what is near the image's end closes with it
    padded = np.pad(mask, [(n, n) for n in margin])
    grown = _distance(~padded, spacing) <= CLOSING_MM
    closed = padded | (_distance(grown, spacing) > CLOSING_MM)
    return np.asarray(closed[tuple(slice(n, -n) for n in margin)])


def _distance(mask: Mask, spacing: NDArray[np.floating]) -> NDArray[np.float32]:
    """To the nearest voxel that is not in the mask, mm; the image's border is none."""
    return np.asarray(edt.edt(np.asfortranarray(mask), anisotropy=tuple(map(float, spacing)), black_border=False))


def _blurred(values: NDArray[np.floating] | Mask, spacing: NDArray[np.floating], over_mm: float) -> NDArray[np.float32]:
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T, dtype=np.float32))
    image.SetSpacing([float(size) for size in spacing])
    return np.asarray(sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, over_mm)).T)
