"""Check of one case: read its files, measure them and list everything wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..geometry.brain import are_normalised, brain_of, clear_background
from ..io.volumes import Volume, VolumeError, read_volume
from ..runtime.errors import DatasetError
from .adc_level import adc_level
from .relations import label_faults, map_faults

__all__ = ["CaseReport", "Limits", "Problem", "check_case", "grid_difference", "require_numbers"]


# what stands for the file's name of a volume in memory
IN_MEMORY = {"adc": "the ADC map", "zadc": "the ZADC map", "stacked": "the image", "label": "the label"}


@dataclass(frozen=True)
class Limits:
    """What a case may look like.

    Attributes:
        grid_tolerance_mm: largest distance between the corners of a map's and its label's grid; well under a voxel,
            and over what rounded quaternions in NIfTI headers move a corner.
        adc_range: least and greatest median of the ADC in the brain, 1e-6 mm²/s.
        adc_limit: largest absolute value of ADC, 1e-6 mm²/s; free water has 3000.
        zadc_limit: largest absolute value of ZADC (BONBID-HIE's are clipped at 10).
        spacing_range_mm: least and greatest voxel size along each axis.
        outside_fraction: largest share of a lesion's voxels outside the brain.
        max_bytes: largest size of one volume in memory.
        brain_ml_range: least and greatest volume of the brain; None: any.
        map_agreement: least local correlation of ZADC and ADC in the brain (:mod:`scripts.data.relations`).
        zadc_zero_fraction: largest share of the brain with a ZADC of exactly 0.
        healthy_adc_range: least and greatest median of the ADC where ZADC is about 0, 1e-6 mm²/s.
        zadc: ``required``, or ``optional``: a case may have an ADC map alone, see
            :class:`scripts.transforms.loading.LoadMapsd`. For recipes that fill in what is missing.

    Raises:
        DatasetError: when ``zadc`` is neither, or another value is not a number or a pair of numbers.
    """

    grid_tolerance_mm: float = 0.1
    adc_range: tuple[float, float] = (200.0, 4000.0)
    adc_limit: float = 30000.0
    zadc_limit: float = 100.0
    spacing_range_mm: tuple[float, float] = (0.1, 20.0)
    outside_fraction: float = 0.5
    max_bytes: int = 1 << 31
    brain_ml_range: tuple[float, float] | None = None
    map_agreement: float = 0.1
    zadc_zero_fraction: float = 0.1
    healthy_adc_range: tuple[float, float] = (800.0, 2200.0)
    zadc: Literal["required", "optional"] = "required"

    def __post_init__(self) -> None:
        if self.zadc not in ("required", "optional"):
            raise DatasetError(f"limits#zadc is 'required' or 'optional', not {self.zadc!r}.")
        require_numbers(self, "limits")


def require_numbers(limits: Any, id: str) -> None:
    """Raise an error where a limit is not a number, or not a pair (least, greatest) where its default is one.

    Args:
        limits: the dataclass; texts, and None as a default, are skipped.
        id: that the config has for it, for the message.

    Raises:
        DatasetError: naming the value.
    """
    for one in fields(limits):
        value = getattr(limits, one.name)
        if "Literal" in str(one.type) or (value is None and one.default is None):
            continue
        pair = "tuple" in str(one.type)
        numbers = list(value) if pair and isinstance(value, list | tuple) else [value]
        right = all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
        right = right and not any(map(math.isnan, numbers))
        if not right or len(numbers) != 1 + pair or numbers != sorted(numbers):
            what = "two numbers, the least and the greatest" if pair else "a number"
            raise DatasetError(f"{id}#{one.name} is {what}, not {value!r}.")


@dataclass(frozen=True)
class Problem:
    """Something that makes a case unusable: which file, and what is wrong with it."""

    file: str
    message: str


@dataclass
class CaseReport:
    """What a case's files hold. Figures that could not be measured are None.

    Attributes:
        case: the case id.
        files: the files by part: ``adc`` and ``zadc``, or ``stacked``; ``label``.
        problems: what makes the case unusable; none if it is usable.
        notes: what is unusual, but allowed.
        shape: voxels along each axis.
        spacing_mm: voxel size along each axis.
        orientation: direction of each voxel axis, e.g. ``LPS``; ``oblique`` is appended when it is off by over 0.1°.
        adc_range: least and greatest ADC, 1e-6 mm²/s.
        zadc_range: least and greatest ZADC.
        adc_mean: mean ADC in the brain (where ADC > 0).
        adc_std: its standard deviation.
        brain_ml: volume of the brain.
        lesion_voxels: voxels of the label that are 1.
        lesion_ml: their volume.
        lesion_fraction: lesion by brain volume, 0..1.
        normalised: the maps have been normalised already, so that their value ranges say nothing.
    """

    case: str
    files: dict[str, str]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shape: list[int] | None = None
    spacing_mm: list[float] | None = None
    orientation: str | None = None
    adc_range: list[float] | None = None
    zadc_range: list[float] | None = None
    adc_mean: float | None = None
    adc_std: float | None = None
    brain_ml: float | None = None
    lesion_voxels: int | None = None
    lesion_ml: float | None = None
    lesion_fraction: float | None = None
    normalised: bool = False

    @property
    def usable(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseReport:
        return cls(**{**data, "problems": [Problem(**problem) for problem in data["problems"]]})


def check_case(case: str, files: Mapping[str, str | Volume], limits: Limits | None = None) -> CaseReport:
    """The report of :func:`read_case`."""
    return read_case(case, files, limits)[0]


def read_case(
    case: str, files: Mapping[str, str | Volume], limits: Limits | None = None
) -> tuple[CaseReport, dict[str, Volume]]:
    """Read and check one case.

    Args:
        case: its id.
        files: paths, or volumes in memory, by part: ``adc`` and ``zadc``, or ``stacked``; ``label`` may be absent.
        limits: what is allowed; the defaults if None.

    Returns:
        The report, and the volumes that it is about by part: ``adc``, ``zadc``, ``label``. Bad data never raises.
    """
    limits = limits or Limits()
    named = {part: IN_MEMORY.get(part, part) if isinstance(file, Volume) else file for part, file in files.items()}
    report = CaseReport(case, named)
    volumes: dict[str, Volume] = {}
    for part, path in named.items():
        given = files[part]
        try:
            volumes[part] = given if isinstance(given, Volume) else read_volume(path, limits.max_bytes)
        except FileNotFoundError:
            report.problems.append(Problem(path, "is missing"))
        except VolumeError as error:
            report.problems.append(Problem(path, str(error)))
        except MemoryError:
            report.problems.append(Problem(path, "does not fit in memory"))
    if "stacked" in volumes:
        _unstack(report, volumes, limits)
    for part in list(volumes):
        if volumes[part].array.ndim != 3:
            shape = volumes.pop(part).array.shape
            report.problems.append(Problem(named[part], f"has shape {_sizes(shape)}; three dimensions are needed"))
    maps = [part for part in ("adc", "zadc") if part in volumes]
    sound = [_check_map(report, part, volumes) for part in maps]
    if maps:
        _describe_grid(report, volumes[maps[0]])
        _check_spacing(report, maps[0], limits)
    _check_grids(report, volumes, limits)
    alone = maps == ["adc"] and report.files.keys().isdisjoint(("zadc", "stacked"))
    if len(maps) == 2 or alone:
        _check_values(report, volumes, limits, judge=all(sound))
    if "label" in volumes:
        _check_label(report, volumes, limits)
    return report, volumes


def _file(report: CaseReport, part: str) -> str:
    return report.files[part] if part in report.files else report.files["stacked"]


def _unstack(report: CaseReport, volumes: dict[str, Volume], limits: Limits) -> None:
    stacked = volumes.pop("stacked")
    channels = stacked.array.shape[3] if stacked.array.ndim == 4 else 1
    if channels == 1 and limits.zadc == "optional":
        report.files = {"adc" if part == "stacked" else part: file for part, file in report.files.items()}
        report.notes.append("no ZADC map")
        array = stacked.array[..., 0] if stacked.array.ndim == 4 else stacked.array
        volumes["adc"] = Volume(array, stacked.affine, stacked.header_spacing_mm)
        return
    if channels != 2:
        message = f"has {channels} channel{'s'[: channels > 1]}; a stacked file has two, ADC and ZADC"
        if channels == 1:
            message += ", and this recipe does not take an ADC map alone (limits#zadc)"
        report.problems.append(Problem(report.files["stacked"], message))
        return
    for channel, part in enumerate(("adc", "zadc")):
        volumes[part] = Volume(stacked.array[..., channel], stacked.affine)


def _check_map(report: CaseReport, part: str, volumes: dict[str, Volume]) -> bool:
    """Is the map finite and not constant, in the float32 that a network sees? What is not becomes 0 from here on."""
    with np.errstate(over="ignore"):
        array = np.asarray(volumes[part].array, np.float32)
    bad = int(np.size(array) - np.isfinite(array).sum())
    where = f"{part.upper()} " if part not in report.files else ""
    if bad:
        message = f"{where}has {bad} voxel{'s'[: bad > 1]} that {'are' if bad > 1 else 'is'} NaN or infinite"
        report.problems.append(Problem(_file(report, part), message))
    elif array.min() == array.max():
        report.problems.append(Problem(_file(report, part), f"{where}is constant: every voxel is {array.min():.6g}"))
    else:
        return True
    volumes[part] = Volume(np.nan_to_num(array, posinf=0, neginf=0), volumes[part].affine)
    return False


def _describe_grid(report: CaseReport, volume: Volume) -> None:
    import nibabel as nib

    report.shape = [int(n) for n in volume.array.shape]
    report.spacing_mm = [float(value) for value in volume.spacing_mm]
    axes = volume.affine[:3, :3] / volume.spacing_mm
    oblique = np.degrees(np.arccos(np.clip(np.abs(axes).max(0), 0, 1))).max() > 0.1
    report.orientation = "".join(nib.aff2axcodes(volume.affine)) + (" oblique" if oblique else "")


def _check_spacing(report: CaseReport, part: str, limits: Limits) -> None:
    assert report.spacing_mm is not None
    least, greatest = limits.spacing_range_mm
    if not all(least <= size <= greatest for size in report.spacing_mm):
        sizes = " × ".join(f"{size:.4g}" for size in report.spacing_mm)
        message = f"has voxels of {sizes} mm; limits#spacing_range_mm goes from {least:g} to {greatest:g}"
        report.problems.append(Problem(_file(report, part), message))


def _check_grids(report: CaseReport, volumes: dict[str, Volume], limits: Limits) -> None:
    """Every other volume of the case against the first."""
    parts = list(volumes)
    for part in parts[1:]:
        if _file(report, part) == _file(report, parts[0]):
            continue
        difference = grid_difference(volumes[parts[0]], volumes[part], limits.grid_tolerance_mm)
        if difference:
            other = Path(_file(report, parts[0])).name
            report.problems.append(Problem(_file(report, part), f"is on another grid than {other}: {difference}"))


def grid_difference(first: Volume, second: Volume, tolerance_mm: float) -> str:
    """How the second grid differs from the first, in numbers; empty if they agree.

    Args:
        first: the reference.
        second: the other volume.
        tolerance_mm: largest distance between corresponding corners that counts as agreement.
    """
    shapes = first.array.shape[:3], second.array.shape[:3]
    if shapes[0] != shapes[1]:
        return f"{_sizes(shapes[1])} voxels, not {_sizes(shapes[0])}"
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in shapes[0]], indexing="ij")).reshape(3, -1)
    corners = np.vstack([ends, np.ones(8)])
    shift = np.linalg.norm(((second.affine - first.affine) @ corners)[:3], axis=0).max()
    if shift <= tolerance_mm:
        return ""
    differences = []
    if np.abs(second.spacing_mm - first.spacing_mm).max() > 1e-6:
        differences.append(f"spacing {_values(second.spacing_mm)} mm, not {_values(first.spacing_mm)} mm")
    axes = [volume.affine[:3, :3] / volume.spacing_mm for volume in (first, second)]
    angle = np.degrees(np.arccos(np.clip((axes[0] * axes[1]).sum(0), -1, 1))).max()
    if angle > 1e-3:
        differences.append(f"directions {angle:.3g}° apart")
    origins = first.affine[:3, 3], second.affine[:3, 3]
    if np.abs(origins[1] - origins[0]).max() > 1e-6:
        differences.append(f"origin {_values(origins[1])} mm, not {_values(origins[0])} mm (RAS)")
    return f"{', '.join(differences) or 'affines differ'}; corners up to {shift:.3g} mm apart"


def _check_values(report: CaseReport, volumes: dict[str, Volume], limits: Limits, judge: bool) -> None:
    """Measure the maps and, if asked to judge, say whether they can be what they are called."""
    adc = np.asarray(volumes["adc"].array, np.float64)
    zadc = np.array(volumes["zadc"].array, np.float64) if "zadc" in volumes else None
    if zadc is not None and zadc.shape != adc.shape:  # of which a problem is known
        zadc = None
    report.adc_range = [float(adc.min()), float(adc.max())]
    report.normalised = are_normalised(adc, zadc)
    brain = brain_of(adc, report.normalised)
    if zadc is not None:
        clear_background(adc, zadc)
        report.zadc_range = [float(zadc.min()), float(zadc.max())]
    voxel_ml = float(np.prod(volumes["adc"].spacing_mm)) / 1000
    report.brain_ml = float(brain.sum()) * voxel_ml
    if brain.any():
        report.adc_mean, report.adc_std = float(adc[brain].mean()), float(adc[brain].std())
    if not judge:
        return
    if report.normalised:
        _add_map_faults(report, adc, zadc, brain, limits)
        return

    if zadc is not None and are_swapped(adc, zadc, limits):
        ranges = f"ADC {_span([adc.min(), adc.max()])}, ZADC {_span([zadc.min(), zadc.max()])}"
        report.problems.append(Problem(_file(report, "adc"), f"and the ZADC map are swapped (values: {ranges})"))
        return
    if abs(max(report.adc_range, key=abs)) > limits.adc_limit:
        message = f"has ADC values from {_span(report.adc_range)}, beyond ±{limits.adc_limit:g} (limits#adc_limit)"
        report.problems.append(Problem(_file(report, "adc"), message))
    if not like_adc(adc, limits):
        median = float(np.median(adc[brain])) if brain.any() else 0.0
        message = f"is not an ADC map in 1e-6 mm²/s: the median of its positive voxels is {median:.4g}, not between "
        message += f"{limits.adc_range[0]:g} and {limits.adc_range[1]:g}"
        for factor in (1e3, 1e6):
            if limits.adc_range[0] <= median * factor <= limits.adc_range[1]:
                message += f" (multiply it by {factor:g})"
        report.problems.append(Problem(_file(report, "adc"), message))
    elif limits.brain_ml_range and not limits.brain_ml_range[0] <= report.brain_ml <= limits.brain_ml_range[1]:
        message = f"is not a newborn's brain: {report.brain_ml:.0f} ml are above 0, not between "
        message += f"{limits.brain_ml_range[0]:g} and {limits.brain_ml_range[1]:g} "
        big = report.brain_ml > limits.brain_ml_range[1]
        message += "(an adult's, another part of the body, or not skull-stripped)" if big else "(a part of one?)"
        report.problems.append(Problem(_file(report, "adc"), message))
    if zadc is not None and not like_zadc(zadc, limits):
        message = f"is not a Z map: its values go from {_span([zadc.min(), zadc.max()])}, beyond ±{limits.zadc_limit:g}"
        report.problems.append(Problem(_file(report, "zadc"), message))
    if zadc is None and not report.problems and (note := adc_level(adc, volumes["adc"].spacing_mm).note):
        report.notes.append(note)
    if not report.problems:  # of a map in another unit it is known what is wrong
        _add_map_faults(report, adc, zadc, brain, limits)


def _add_map_faults(
    report: CaseReport, adc: NDArray[Any], zadc: NDArray[Any] | None, brain: NDArray[np.bool_], limits: Limits
) -> None:
    assert report.spacing_mm is not None
    faults, notes = map_faults(adc, zadc, brain, report.spacing_mm, report.normalised, limits)
    report.problems += [Problem(_file(report, part), message) for part, message in faults]
    report.notes += notes


def like_adc(array: NDArray[Any], limits: Limits) -> bool:
    """Whether the values can be those of an ADC map in 1e-6 mm²/s."""
    positive = array[brain_of(array)]
    return positive.size > 0 and limits.adc_range[0] <= float(np.median(positive)) <= limits.adc_range[1]


def like_zadc(array: NDArray[Any], limits: Limits) -> bool:
    """Whether the values can be those of a ZADC map."""
    return bool(np.abs(array).max() <= limits.zadc_limit)


def are_swapped(adc: NDArray[Any], zadc: NDArray[Any], limits: Limits) -> bool:
    """Whether each of the maps can only be the other."""
    if like_adc(adc, limits) and like_zadc(zadc, limits):
        return False
    return like_adc(zadc, limits) and like_zadc(adc, limits)


def _check_label(report: CaseReport, volumes: dict[str, Volume], limits: Limits) -> None:
    label, file = volumes["label"].array, report.files["label"]
    if label.dtype.kind == "f" and label.size and abs(float(label.max()) - 1) < 1e-6:  # 255 × 1/255
        label = np.where(np.abs(label - 1) < 1e-6, 1, label)
    lesion = label == 1
    others = int(label.size - lesion.sum() - (label == 0).sum())
    if others:
        values = np.unique(label[(label != 0) & ~lesion])[:4]
        message = f"has {others} voxels with values other than 0 and 1 ({', '.join(f'{v:g}' for v in values)}"
        report.problems.append(Problem(file, message + (", …)" if values.size == 4 else ")")))
        return
    report.lesion_voxels = int(lesion.sum())
    report.lesion_ml = report.lesion_voxels * float(np.prod(volumes["label"].spacing_mm)) / 1000
    if report.lesion_voxels == 0:
        report.notes.append("empty label")
    if "adc" not in volumes or volumes["adc"].array.shape != label.shape or not report.brain_ml:
        return
    brain = brain_of(volumes["adc"].array, report.normalised)
    report.lesion_fraction = report.lesion_voxels / int(brain.sum())
    outside = int((lesion & ~brain).sum())
    if outside and not report.usable:  # the brain is found in maps that are wrong
        return
    if outside > limits.outside_fraction * report.lesion_voxels:
        message = f"has {outside} of {report.lesion_voxels} lesion voxels outside the brain (ADC not above 0)"
        report.problems.append(Problem(file, message))
    elif outside:
        report.notes.append(f"{outside} of {report.lesion_voxels} lesion voxels outside the brain")
    if report.usable and not report.normalised:
        zadc = volumes["zadc"].array if "zadc" in volumes else None
        faults, notes = label_faults(lesion, zadc, brain, volumes["label"].affine)
        report.problems += [Problem(file, message) for message in faults]
        report.notes += notes


def _sizes(shape: Sequence[int]) -> str:
    return " × ".join(str(int(n)) for n in shape)


def _values(values: NDArray[np.float64]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _span(values: Sequence[float]) -> str:
    return f"{values[0]:.4g} to {values[1]:.4g}"
