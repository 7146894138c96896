"""``run atlas``: a site's normative ADC atlas, by groupwise registration of healthy newborns' maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..data.checks import Limits
from ..geometry.brain import brain_of
from ..io.files import whole_folder, write_json
from ..io.images import write
from ..io.volumes import LPS_TO_RAS, Volume, affine_from_lps, extension_of, to_itk
from ..runtime.errors import UserError
from ..runtime.mixins import bundle_version
from .brain_mask import brain_problem
from .inputs import on_grid, paths_of, read_stripped, resample
from .previews import outlines
from .registration import Fit, register, repeat_border
from .zscore import FitLimits

logger = logging.getLogger(__name__)

Stack = NDArray[np.float32]

OUTLYING = 3.5  # outlier limit in robust standard deviations from the median (Hampel)
MAD_TO_STD = 1.4826  # for a normal distribution
LEAST_MAD = 10.0  # 1e-6 mm²/s; floor, since the MAD of few cases may be 0 by chance
NO_DAMAGE = 1e6  # 1e-6 mm²/s; a standard deviation so large that no voxel counts as damage
MARGIN_MM = 15.0  # around the first template, whose brain may be smaller than others
SHAPE_STEP_MM = 4.0  # voxel size of the mean displacement field, which is smooth


@dataclass(frozen=True)
class Atlas:
    """ADC of healthy newborns on one grid.

    Attributes:
        mean: (X, Y, Z), 1e-6 mm²/s, 0 outside the brain.
        std: same shape and unit.
        affine: (4, 4) from voxel indices to millimetres, RAS+.
        fits: registration quality of each case; ``median_z`` is relative to mean and standard deviation.
        transforms: from atlas to case points (LPS mm), one per case.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    affine: NDArray[np.float64]
    fits: list[Fit]
    transforms: Sequence[sitk.Transform]


def build_atlas(cases: Sequence[Volume], step_mm: float = 1.5, rounds: int = 2, least_std: float = 20.0) -> Atlas:
    """Register cases to their mean shape, and compute mean and standard deviation there.

    The first template is the case with the median brain volume. Each round registers every case to the template, first
    affine, then deformable. The mean of the cases, warped to the mean shape by the mean displacement, is the next
    template (Guimond et al., CVIU 77, 2000; Avants et al., NeuroImage 49, 2010). Mean and standard deviation of the
    last round exclude outliers, and cover voxels that are brain in more than half of the cases.

    Args:
        cases: skull-stripped ADC maps, 1e-6 mm²/s, 0 outside the brain.
        step_mm: voxel size of the atlas; its axes are the world axes.
        rounds: rounds of deformable registration; 0 for affine registration only.
        least_std: floor of the standard deviation for Z, 1e-6 mm²/s.
    """
    images = [to_itk(case.array.astype(np.float32), case.affine) for case in cases]
    full = [repeat_border(image) for image in images]
    undamaged = [image * 0 + NO_DAMAGE for image in images]
    volumes = [float(brain_of(case.array).sum() * np.prod(case.spacing_mm)) for case in cases]
    first = int(np.argsort(volumes)[len(volumes) // 2])
    grid = _grid(cases[first], step_mm)
    start = _values(resample(full[first], grid)) * (_values(resample(images[first], grid, nearest=True)) > 0)
    template = on_grid(start, grid)
    for number in range(rounds + 1):
        found = [register(template, image, std, number > 0) for image, std in zip(images, undamaged, strict=True)]
        back = _from_mean_shape([one.transform for one in found], template > 0)
        transforms = [sitk.CompositeTransform([one.transform, back]) for one in found]
        values, inside = (
            np.stack([_values(resample(image, grid, t, nearest)) for image, t in zip(which, transforms, strict=True)])
            for which, nearest in ((full, False), (images, True))
        )
        mean, std = hampel_mean_and_std(values, inside > 0)
        template = on_grid(mean, grid)
        correlations = [one.fit.correlation for one in found]
        logger.info(
            "Round %d of %d: correlation of the maps with the template: mean %.3f, minimum %.3f.", number + 1,
            rounds + 1, np.mean(correlations), min(correlations),
        )  # fmt: skip
    fits = []
    for one, value, there in zip(found, values, inside > 0, strict=True):
        both = there & (mean > 0)
        z = (value - mean)[both] / np.maximum(std, least_std)[both]
        fits.append(replace(one.fit, median_z=float(np.median(z)) if z.size else 0.0))
    affine = affine_from_lps(grid.GetSpacing(), grid.GetDirection(), grid.GetOrigin())
    return Atlas(mean.T, std.T, affine, fits, transforms)


def hampel_mean_and_std(values: Stack, inside: NDArray[np.bool_]) -> tuple[Stack, Stack]:
    """Mean and standard deviation over cases, without values far from the median: missed lesions or artefacts.

    Args:
        values: (N, …).
        inside: same shape; mask of valid values.

    Returns:
        Mean and sample standard deviation, shape (…); 0 where at most half of the cases are valid.
    """
    known = np.where(inside, values, np.nan)
    enough = inside.sum(0) > len(values) // 2
    known = known[:, enough]
    median = np.nanmedian(known, axis=0)
    spread = np.maximum(MAD_TO_STD * np.nanmedian(np.abs(known - median), axis=0), LEAST_MAD)
    known = np.where(np.abs(known - median) <= OUTLYING * spread, known, np.nan)
    mean, std = (np.zeros(values.shape[1:], dtype=np.float32) for _ in range(2))
    mean[enough], std[enough] = np.nanmean(known, axis=0), np.nanstd(known, axis=0, ddof=1)
    return mean, std


def _grid(case: Volume, step_mm: float) -> sitk.Image:
    """Grid with cubic voxels along the world axes around a case's brain."""
    index = np.argwhere(brain_of(case.array))
    points = (LPS_TO_RAS @ case.affine @ np.c_[index, np.ones(len(index))].T)[:3]
    low, high = points.min(1) - MARGIN_MM, points.max(1) + MARGIN_MM
    grid = sitk.Image([int(n) for n in np.ceil((high - low) / step_mm) + 1], sitk.sitkFloat32)
    grid.SetSpacing([step_mm] * 3)
    grid.SetOrigin(low.tolist())
    return grid


def _from_mean_shape(transforms: Sequence[sitk.Transform], brain: sitk.Image) -> sitk.Transform:
    """Transform from the mean shape to the template, given the transforms from the template to the cases.

    The mean translation is removed, since head positions are arbitrary.
    """
    coarse = sitk.Shrink(brain, [max(1, round(SHAPE_STEP_MM / size)) for size in brain.GetSpacing()])
    shift = np.mean(
        [
            sitk.GetArrayFromImage(
                sitk.TransformToDisplacementField(
                    one, sitk.sitkVectorFloat64, coarse.GetSize(), coarse.GetOrigin(), coarse.GetSpacing()
                )
            )
            for one in transforms
        ],
        axis=0,
    )
    shift -= shift[_values(coarse) > 0].mean(0)
    field = sitk.GetImageFromArray(shift, isVector=True)
    field.CopyInformation(coarse)
    return sitk.DisplacementFieldTransform(sitk.InvertDisplacementField(field, maximumNumberOfIterations=30))


def _values(image: sitk.Image) -> NDArray[np.float32]:
    return np.asarray(sitk.GetArrayFromImage(image), dtype=np.float32)


def write_atlas(
    images: str | Path | Sequence[str | Path] | None,
    output_dir: str | Path | None,
    limits: Limits,
    fit_limits: FitLimits,
    age_days: Sequence[float] | None,
    least_cases: int = 8,
    step_mm: float = 1.5,
    rounds: int = 2,
    least_std: float = 20.0,
    adc_scale: float | None = None,
) -> None:
    """Build an atlas for `run zscore`: ``mean.nii.gz``, ``std.nii.gz``, ``atlas.json`` and ``atlas.png``.

    All files appear at the end, or none; only pictures of poorly fitting maps remain on failure. The JSON has the
    number of newborns and their age range, but no file names. The arguments are keys of ``configs/scanner.yaml``, which
    explains them; ``images`` is a folder with one skull-stripped ADC map per newborn, or the files.

    Raises:
        UserError: maps are unusable (lists all with reasons) or too few, or no age is given.
    """
    if not images or not output_dir:
        raise UserError("Name the ADC maps and the output folder: --images FOLDER --output_dir DIR.")
    ages = [float(age) for age in age_days or ()]
    if len(ages) != 2 or not 0 <= ages[0] <= ages[1]:
        raise UserError("Give the range of the newborns' age at the scan in days: --age_days [1,7].")
    if step_mm <= 0 or rounds < 0:
        raise UserError(f"step_mm must be above 0 and rounds at least 0; they are {step_mm:g} and {rounds}.")
    paths = paths_of(images)
    if len(paths) == 1 and paths[0].is_dir():
        paths = sorted(path for path in paths[0].iterdir() if extension_of(path) and not path.name.startswith("."))
    if len(paths) < max(2, least_cases):
        raise UserError(
            f"{len(paths)} ADC maps are too few for an atlas, which needs at least {max(2, least_cases)} "
            "(--least_cases) for a reliable standard deviation."
        )
    with whole_folder(output_dir, left=".png") as work:
        cases = _usable(paths, limits, adc_scale)
        atlas = build_atlas(cases, step_mm, rounds, least_std)
        problems = []
        for path, case, fit in zip(paths, cases, atlas.fits, strict=True):
            found = fit_limits.problems(fit)
            if fit.median_z < -fit_limits.median_z:
                found.append(f"median Z of the brain is {fit.median_z:.1f} (at least {-fit_limits.median_z:g})")
            if found:
                problems.append(f"{path.name}: {'; '.join(found)}")
                picture = work / f"{path.name.removesuffix(extension_of(path))}.png"
                outlines(picture, case, {"brain": brain_of(case.array)}, path.name)
        if problems:
            first = f"{len(problems)} of {len(paths)} maps do not fit the others; see {work}:"
            last = "No atlas is written. Remove these maps, or widen --fit_limits."
            raise UserError("\n".join([first, *problems, last]))
        inside = atlas.mean > 0
        write(work / "mean.nii.gz", atlas.mean, atlas.affine)
        write(work / "std.nii.gz", atlas.std, atlas.affine)
        title = f"mean ADC of {len(cases)} newborns of {ages[0]:g} to {ages[1]:g} days"
        outlines(work / "atlas.png", Volume(atlas.mean, atlas.affine), {"more than half of the brains": inside}, title)
        write_json(
            work / "atlas.json",
            {
                "cases": len(cases),
                "age_days": ages,
                "unit": "1e-6 mm²/s",
                "version": bundle_version(),
                "step_mm": step_mm,
                "rounds": rounds,
                "median_mean": round(float(np.median(atlas.mean[inside])), 1),
                "median_std": round(float(np.median(atlas.std[inside])), 1),
                "fits": [asdict(fit) for fit in atlas.fits],
            },
            indent=1,
        )
    logger.info("Atlas of %d newborns: %s; look at atlas.png.", len(cases), output_dir)


def _usable(paths: Sequence[Path], limits: Limits, adc_scale: float | None) -> list[Volume]:
    """Read the maps in 1e-6 mm²/s.

    Raises:
        UserError: lists every map that does not show a newborn's brain.
    """
    cases: list[Volume] = []
    problems = []
    for path in paths:
        try:
            case = read_stripped(path, adc_scale)
            brain = brain_of(case.array)
            median, (low, high) = float(np.median(case.array[brain])), limits.adc_range
            if problem := brain_problem(brain, case.spacing_mm, limits, whole=False):
                raise UserError(f"{path} is not a skull-stripped newborn's brain: {problem}.")
            if not low <= median <= high:
                raise UserError(
                    f"{path} has a median ADC of {median:.0f} · 1e-6 mm²/s in the brain, not {low:g} to {high:g}."
                )
            if any(np.array_equal(other.array, case.array) for other in cases):
                raise UserError(f"{path} is a duplicate of another map; each newborn counts once.")
            cases.append(case)
        except UserError as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    if problems:
        raise UserError("\n".join([f"{len(problems)} of {len(paths)} maps cannot be used:", *problems]))
    return cases
