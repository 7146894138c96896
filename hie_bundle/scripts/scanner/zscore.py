"""``run zscore``: the Z map of an ADC map against an atlas of healthy newborns."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..data.checks import require_numbers
from ..geometry.brain import brain_of
from ..io.files import atomic_path, seen_from, write_json
from ..io.images import write
from ..io.volumes import Volume, to_itk
from ..runtime.errors import UserError
from .inputs import beside, read, read_stripped, resample, to_micro, z_map
from .previews import outlines
from .registration import Fit, register, repeat_border

logger = logging.getLogger(__name__)

SPREAD = (0.01, 0.5)  # plausible std/mean of an atlas, typically 0.05; else the floor of std would hide a wrong unit


@dataclass(frozen=True)
class FitLimits:
    """Acceptance limits for the fit of the atlas; see :class:`.Fit`.

    Attributes:
        correlation: minimum.
        doubtful: correlation below which an accepted fit logs a warning.
        overlap: minimum.
        scale: minimum and maximum.
        median_z: maximum; exceeded with an atlas of adults, whose ADC is lower than a newborn's.
        damage: maximum; above it too little brain remains to assess the fit.

    Raises:
        DatasetError: a limit is not a number, or ``scale`` is not a pair of numbers.
    """

    correlation: float = 0.4
    doubtful: float = 0.6
    overlap: float = 0.9
    scale: tuple[float, float] = (0.55, 1.8)
    median_z: float = 3.0
    damage: float = 0.95

    def __post_init__(self) -> None:
        require_numbers(self, "fit_limits")

    def problems(self, fit: Fit) -> list[str]:
        """Violated limits of a fit; empty if it is usable."""
        low, high = self.scale
        judged = {
            f"correlation of ADC and atlas is {fit.correlation:.2f} (at least {self.correlation:g})":
                fit.correlation < self.correlation,
            f"Dice of the two brains is {fit.overlap:.2f} (at least {self.overlap:g})": fit.overlap < self.overlap,
            f"the atlas' brain is {fit.scale:.2f} times as large as the case's ({low:g} to {high:g})":
                not low <= fit.scale <= high,
            f"median Z of the brain is {fit.median_z:.1f} (at most {self.median_z:g})":
                fit.median_z > self.median_z,
            f"{fit.damage:.0%} of the brain counts as damage (at most {self.damage:.0%})": fit.damage > self.damage,
        }  # fmt: skip
        return [problem for problem, wrong in judged.items() if wrong]


def read_atlas(mean_file: str | Path, std_file: str | Path) -> tuple[sitk.Image, sitk.Image]:
    """Mean and standard deviation of an atlas in 1e-6 mm²/s, 0 outside its brain.

    The mean determines the unit of both (:func:`.scale_of`).

    Raises:
        UserError: a file is invalid, or the pair is not plausible.
    """
    mean = read(mean_file, 3)
    std = read(std_file, 3, mean, mean_file)
    inside = np.isfinite(mean.array) & (mean.array > 0) & np.isfinite(std.array) & (std.array > 0)
    if not inside.any():
        raise UserError(
            f"{std_file} and {mean_file} have no common voxel above 0; give mean and standard deviation of one atlas."
        )
    ratio = float(np.median(std.array[inside] / mean.array[inside]))
    if not SPREAD[0] <= ratio <= SPREAD[1]:
        raise UserError(
            f"{std_file} is not the standard deviation of {mean_file}: its median is {ratio:.2g} times the mean, not "
            f"{SPREAD[0]:g} to {SPREAD[1]:g} times. Check their units, and whether they are swapped."
        )
    values = to_micro(mean.array)
    scale = float(np.median(values[inside] / mean.array[inside]))
    return (
        to_itk(np.where(inside, values, 0).astype(np.float32), mean.affine),
        to_itk(np.where(inside, std.array * scale, 0).astype(np.float32), mean.affine),
    )


def zscore(
    adc: Volume,
    atlas: tuple[sitk.Image, sitk.Image],
    deformable: bool = True,
    least_std: float = 20.0,
    smoothing_mm: float = 2.0,
    clip: float = 10.0,
) -> tuple[NDArray[np.float32], sitk.Transform, Fit, NDArray[np.bool_]]:
    """Z map of one skull-stripped ADC map.

    Args:
        adc: (X, Y, Z), 1e-6 mm²/s, 0 outside the brain.
        atlas: from :func:`read_atlas`.
        deformable: add deformable registration after the affine one.
        least_std: floor of the atlas' standard deviation, 1e-6 mm²/s.
        smoothing_mm: full width at half maximum of the Gaussian that smooths Z inside the brain.
        clip: bound of |Z|.

    Returns:
        Z (X, Y, Z), 0 outside the brain; the transform from case to atlas points (LPS mm); the fit; the atlas' brain
        on the case's grid.

    Raises:
        UserError: the brain is empty.
    """
    image = to_itk(adc.array.astype(np.float32), adc.affine)
    found = register(image, *atlas, deformable=deformable, least_std=least_std)
    # The atlas is extrapolated beyond its brain.
    mean, std = (sitk.GetArrayFromImage(resample(repeat_border(part), image, found.transform)).T for part in atlas)
    covered = sitk.GetArrayFromImage(resample(atlas[0], image, found.transform, nearest=True)).T > 0
    known = brain_of(adc.array) & (std > 0)  # std is 0 outside the atlas' image: Z is set to 0 there
    z = z_map(adc.array, known, mean, std, adc.spacing_mm, smoothing_mm, clip, least_std)
    return z.astype(np.float32), found.transform, found.fit, covered


def write_zscore(
    adc_file: str | Path | None,
    atlas_mean: str | Path | None,
    atlas_std: str | Path | None,
    output_file: str | Path | None,
    limits: FitLimits | None = None,
    deformable: bool = True,
    least_std: float = 20.0,
    smoothing_mm: float = 2.0,
    clip: float = 10.0,
    adc_scale: float | None = None,
    name: str | None = None,
) -> Fit:
    """Write a Z map, the transform (``.tfm.h5``), a picture (``.png``) and the quality of the fit (``.json``).

    The arguments are keys of ``configs/scanner.yaml``, which explains them. ``limits`` are ``fit_limits`` there;
    ``name`` replaces the path of the ADC map in messages.

    Raises:
        UserError: a file is invalid, or the fit is poor; for a poor fit, only the picture is written.
    """
    if not (adc_file and atlas_mean and atlas_std and output_file):
        raise UserError("Name the maps and the output file: --adc_file --atlas_mean --atlas_std --output_file.")
    limits = limits or FitLimits()
    name = name or str(adc_file)
    picture = beside(output_file, ".png")
    adc = read_stripped(adc_file, adc_scale, name)
    atlas = read_atlas(atlas_mean, atlas_std)
    z, transform, fit, covered = zscore(adc, atlas, deformable, least_std, smoothing_mm, clip)
    title = f"atlas on ADC, correlation {fit.correlation:.2f}, overlap {fit.overlap:.2f}"
    outlines(picture, adc, {"atlas": covered}, title)
    if problems := limits.problems(fit):
        raise UserError(f"The atlas does not fit {name}: {'; '.join(problems)}. See {picture}. No Z map is written.")
    files = {"adc_file": adc_file, "atlas_mean": atlas_mean, "atlas_std": atlas_std}
    settings = {
        **{name: seen_from(path, picture.parent) for name, path in files.items()}, "deformable": deformable,
        "least_std": least_std, "smoothing_mm": smoothing_mm, "clip": clip,
    }  # fmt: skip
    with atomic_path(beside(output_file, ".tfm.h5")) as temporary:
        sitk.WriteTransform(transform, str(temporary))
    write_json(beside(output_file, ".json"), {"fit": asdict(fit), **settings}, indent=1)
    write(output_file, z, adc.affine)
    logger.info(
        "Z map: correlation with the atlas %.3f, overlap %.3f, %.1f %% of the brain excluded as damage.",
        fit.correlation, fit.overlap, 100 * fit.damage,
    )  # fmt: skip
    if fit.correlation < limits.doubtful:
        logger.warning("The fit of the atlas is poor: check %s before you use the Z map.", picture.name)
    return fit
