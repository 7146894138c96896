"""``run atlas``: a site's own normative ADC atlas from its healthy newborns' maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..data.checks import Limits
from ..geometry.brain import brain_of
from ..io.files import whole_folder, write_json
from ..io.images import write
from ..io.volumes import Volume, extension_of
from ..runtime.errors import UserError
from ..runtime.mixins import bundle_version
from .adc import to_micro
from .atlas import build_atlas
from .brain_mask import brain_problem
from .inputs import paths_of, read
from .previews import outlines
from .zscore import FitLimits

__all__ = ["write_atlas"]

logger = logging.getLogger(__name__)


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
    """Build an atlas: ``mean.nii.gz`` and ``std.nii.gz``, as `run zscore` takes them, ``atlas.json`` and ``atlas.png``.

    All files appear at the end, or none; of maps that do not fit the others, a picture of each. How many newborns of
    which age the atlas is of stands in the JSON: NIfTI's header has 80 letters of free text, which most tools replace,
    and MetaImage's has none that they keep. It does not name the files.

    Args:
        images: folder with one skull-stripped ADC map a newborn (``.nii.gz``, ``.nii``, ``.mha``), or the files. Each
            map's unit is told by its median.
        output_dir: must not be there yet.
        limits: of a brain's volume and of its median ADC.
        fit_limits: of a map's fit to the mean of all.
        age_days: least and greatest age at the scan, days.
        least_cases: that an atlas is built from.
        step_mm: see :func:`scripts.scanner.atlas.build_atlas`.
        rounds: see there.
        least_std: floor of the standard deviation in the judgement of a fit, 1e-6 mm²/s.
        adc_scale: of all maps, factor to 1e-6 mm²/s; None to tell it by each map's median.

    Raises:
        UserError: naming every map that cannot be used, and why; for too few maps; when no age is given.
    """
    if not images or not output_dir:
        raise UserError("Say which ADC maps and where the atlas goes: --images FOLDER --output_dir DIR.")
    ages = [float(age) for age in age_days or ()]
    if len(ages) != 2 or not 0 <= ages[0] <= ages[1]:
        raise UserError("Say how old the newborns were at the scan, least and greatest age in days: --age_days [1,7].")
    if step_mm <= 0 or rounds < 0:
        raise UserError(f"step_mm must be above 0 and rounds not below, got {step_mm:g} and {rounds}.")
    paths = paths_of(images)
    if len(paths) == 1 and paths[0].is_dir():
        paths = sorted(path for path in paths[0].iterdir() if extension_of(path) and not path.name.startswith("."))
    if len(paths) < max(2, least_cases):
        raise UserError(
            f"{len(paths)} ADC maps are too few for an atlas, which needs at least {max(2, least_cases)} "
            "(--least_cases): the standard deviation would be chance."
        )
    with whole_folder(output_dir, left=".png") as work:
        cases = _usable(paths, limits, adc_scale)
        atlas = build_atlas(cases, step_mm, rounds, least_std)
        problems = []
        for path, case, fit in zip(paths, cases, atlas.fits, strict=True):
            found = fit_limits.problems(fit)
            if fit.median_z < -fit_limits.median_z:
                found.append(f"half of its brain is below Z = {fit.median_z:.1f} (at least {-fit_limits.median_z:g})")
            if found:
                problems.append(f"{path.name}: {'; '.join(found)}")
                picture = work / f"{path.name.removesuffix(extension_of(path))}.png"
                outlines(picture, case, brain_of(case.array), path.name, "brain")
        if problems:
            first = f"{len(problems)} of {len(paths)} maps do not fit the others; see {work}:"
            last = "No atlas is written. Leave them out, or widen --fit_limits."
            raise UserError("\n".join([first, *problems, last]))
        inside = atlas.mean > 0
        write(work / "mean.nii.gz", atlas.mean, atlas.affine)
        write(work / "std.nii.gz", atlas.std, atlas.affine)
        title = f"mean ADC of {len(cases)} newborns of {ages[0]:g} to {ages[1]:g} days"
        outlines(work / "atlas.png", Volume(atlas.mean, atlas.affine), inside, title, "more than half of the brains")
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
    """The maps in 1e-6 mm²/s.

    Raises:
        UserError: naming every map that is none of a newborn's brain.
    """
    cases: list[Volume] = []
    problems = []
    for path in paths:
        try:
            volume = read(path, 3)
            values = to_micro(volume.array, adc_scale)
            case = Volume(values, volume.affine, volume.header_spacing_mm)
            if problem := _problem(case, limits):
                raise UserError(f"{path} {problem}.")
            twin = next((n for n, other in enumerate(cases) if np.array_equal(other.array, values)), None)
            if twin is not None:
                raise UserError(f"{path} holds the same map as another file; each newborn counts once.")
            cases.append(case)
        except UserError as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    if problems:
        raise UserError("\n".join([f"{len(problems)} of {len(paths)} maps cannot be used:", *problems]))
    return cases


def _problem(case: Volume, limits: Limits) -> str:
    brain = brain_of(case.array)
    if not brain.any():
        return "is nowhere above 0"
    if brain.mean() > 0.98:
        return "is not skull-stripped: it is above 0 everywhere"
    if problem := brain_problem(brain, case.spacing_mm, limits, whole=False):
        return f"holds no newborn's brain, or is not skull-stripped: {problem}"
    median = float(np.median(case.array[brain]))
    low, high = limits.adc_range
    if not low <= median <= high:
        return f"has a median of {median:.0f} · 1e-6 mm²/s in the brain, not {low:g} to {high:g}"
    return ""
