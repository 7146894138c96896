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
from ..io.volumes import Volume, VolumeError, corner_shift_mm, read_volume
from ..runtime.errors import DatasetError
from .adc_level import adc_level
from .relations import label_faults, map_faults

__all__ = ["CaseReport", "Limits", "Problem", "check_case", "grid_difference", "require_numbers"]


# what stands for the file's name of a volume in memory
IN_MEMORY = {"adc": "the ADC map", "zadc": "the ZADC map", "stacked": "the image", "label": "the label"}


@dataclass(frozen=True)
class Limits:
    """What a case may look like.

    Raises:
        DatasetError: when ``zadc`` is another text, or another value is not a number or a pair of numbers.
    """

    grid_tolerance_mm: float = 0.1  # between corners of two grids: under a voxel, above a rounded quaternion's effect
    adc_range: tuple[float, float] = (200.0, 4000.0)  # of the median of ADC in the brain, 1e-6 mm²/s
    adc_limit: float = 30000.0  # largest absolute value of ADC, 1e-6 mm²/s; free water has 3000
    zadc_limit: float = 100.0  # largest absolute value of ZADC; BONBID-HIE's are clipped at 10
    spacing_range_mm: tuple[float, float] = (0.1, 20.0)  # of the voxel size along each axis
    outside_fraction: float = 0.5  # largest share of a lesion's voxels outside the brain
    max_bytes: int = 1 << 31  # of one volume in memory
    brain_ml_range: tuple[float, float] | None = None  # of the brain's volume; None: any
    map_agreement: float = 0.1  # least local correlation of ZADC and ADC in the brain, see scripts.data.relations
    zadc_zero_fraction: float = 0.1  # largest share of the brain with a ZADC of exactly 0
    healthy_adc_range: tuple[float, float] = (800.0, 2200.0)  # of the median of ADC where ZADC is about 0, 1e-6 mm²/s
    zadc: Literal["required", "optional"] = "required"  # optional: an ADC map alone is enough, see LoadMapsd

    def __post_init__(self) -> None:
        if self.zadc not in ("required", "optional"):
            raise DatasetError(f"limits#zadc is 'required' or 'optional', not {self.zadc!r}.")
        require_numbers(self, "limits")


def require_numbers(limits: Any, id: str) -> None:
    """Raise a DatasetError where a limit is not a number, or a pair (least, greatest) where its default is one."""
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
    """What a case's files hold. Figures that could not be measured are None."""

    case: str
    files: dict[str, str]  # by part: adc and zadc, or stacked; label
    problems: list[Problem] = field(default_factory=list)  # none: the case is usable
    notes: list[str] = field(default_factory=list)  # what is unusual, but allowed
    shape: list[int] | None = None
    spacing_mm: list[float] | None = None
    orientation: str | None = None  # of the voxel axes, e.g. LPS; "oblique" is appended when it is off by over 0.1°
    adc_range: list[float] | None = None  # least and greatest, 1e-6 mm²/s
    zadc_range: list[float] | None = None
    adc_mean: float | None = None  # in the brain (where ADC > 0)
    adc_std: float | None = None
    brain_ml: float | None = None
    lesion_voxels: int | None = None
    lesion_ml: float | None = None
    lesion_fraction: float | None = None  # lesion by brain volume, 0..1
    normalised: bool = False  # the maps have been normalised already, so that their value ranges say nothing

    @property
    def usable(self) -> bool:
        return not self.problems

    def file(self, part: str) -> str:
        """The file that a part is in."""
        return self.files[part] if part in self.files else self.files["stacked"]

    def add(self, part: str, message: str) -> None:
        """Add a problem of the file that a part is in."""
        self.problems.append(Problem(self.file(part), message))

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
    """Read and check one case; bad data never raises.

    Args:
        case: its id.
        files: paths, or volumes in memory, by part: ``adc`` and ``zadc``, or ``stacked``; ``label`` may be absent.
        limits: what is allowed; the defaults if None.

    Returns:
        The report, and the volumes that it is about by part: ``adc``, ``zadc``, ``label``.
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
        except (VolumeError, MemoryError) as error:
            report.problems.append(Problem(path, str(error) or "does not fit in memory"))
    if "stacked" in volumes:
        _unstack(report, volumes, limits)
    for part in [part for part, volume in volumes.items() if volume.array.ndim != 3]:
        shape = volumes.pop(part).array.shape
        report.add(part, f"has shape {_sizes(shape)}; three dimensions are needed")
    maps = [part for part in ("adc", "zadc") if part in volumes]
    sound = [_check_map(report, part, volumes) for part in maps]
    if maps:
        _describe_grid(report, maps[0], volumes[maps[0]], limits)
    _check_grids(report, volumes, limits)
    alone = maps == ["adc"] and report.files.keys().isdisjoint(("zadc", "stacked"))
    if len(maps) == 2 or alone:
        _check_values(report, volumes, limits, judge=all(sound))
    if "label" in volumes:
        _check_label(report, volumes, limits)
    return report, volumes


def _unstack(report: CaseReport, volumes: dict[str, Volume], limits: Limits) -> None:
    stacked = volumes.pop("stacked")
    maps = channels_of(stacked)
    if len(maps) == 1 and limits.zadc == "optional":
        report.files = {"adc" if part == "stacked" else part: file for part, file in report.files.items()}
        report.notes.append("no ZADC map")
    elif len(maps) != 2:
        message = f"has {len(maps)} channel{'s'[: len(maps) > 1]}; a stacked file has two, ADC and ZADC"
        if len(maps) == 1:
            message += ", and this recipe does not take an ADC map alone (limits#zadc)"
        report.add("stacked", message)
        return
    for part, array in zip(("adc", "zadc"), maps, strict=False):
        volumes[part] = Volume(array, stacked.affine, stacked.header_spacing_mm)


def channels_of(volume: Volume) -> list[NDArray[Any]]:
    """The maps of a stacked file, each (X, Y, Z)."""
    return list(np.moveaxis(volume.array, -1, 0)) if volume.array.ndim == 4 else [volume.array]


def _check_map(report: CaseReport, part: str, volumes: dict[str, Volume]) -> bool:
    """Is the map finite and not constant, in the float32 that a network sees? What is not becomes 0 from here on."""
    with np.errstate(over="ignore"):
        array = np.asarray(volumes[part].array, np.float32)
    where = f"{part.upper()} " if part not in report.files else ""
    if bad := int(np.size(array) - np.isfinite(array).sum()):
        message = f"{where}has {bad} voxel{'s'[: bad > 1]} that {'are' if bad > 1 else 'is'} NaN or infinite"
        report.add(part, message)
    elif array.min() == array.max():
        report.add(part, f"{where}is constant: every voxel is {array.min():.6g}")
    else:
        return True
    volumes[part] = Volume(np.nan_to_num(array, posinf=0, neginf=0), volumes[part].affine)
    return False


def _describe_grid(report: CaseReport, part: str, volume: Volume, limits: Limits) -> None:
    import nibabel as nib

    report.shape = [int(n) for n in volume.array.shape]
    report.spacing_mm = [float(value) for value in volume.spacing_mm]
    axes = volume.affine[:3, :3] / volume.spacing_mm
    oblique = np.degrees(np.arccos(np.clip(np.abs(axes).max(0), 0, 1))).max() > 0.1
    report.orientation = "".join(nib.aff2axcodes(volume.affine)) + (" oblique" if oblique else "")
    least, greatest = limits.spacing_range_mm
    if not all(least <= size <= greatest for size in report.spacing_mm):
        sizes = " × ".join(f"{size:.4g}" for size in report.spacing_mm)
        report.add(part, f"has voxels of {sizes} mm; limits#spacing_range_mm goes from {least:g} to {greatest:g}")


def _check_grids(report: CaseReport, volumes: dict[str, Volume], limits: Limits) -> None:
    """Every other volume of the case against the first."""
    first, *others = list(volumes) or [""]
    for part in (part for part in others if report.file(part) != report.file(first)):
        if difference := grid_difference(volumes[first], volumes[part], limits.grid_tolerance_mm):
            report.add(part, f"is on another grid than {Path(report.file(first)).name}: {difference}")


def grid_difference(first: Volume, second: Volume, tolerance_mm: float) -> str:
    """How the second grid differs from the first, in numbers; empty if no corner is farther away than the tolerance."""
    shapes = first.array.shape[:3], second.array.shape[:3]
    if shapes[0] != shapes[1]:
        return f"{_sizes(shapes[1])} voxels, not {_sizes(shapes[0])}"
    shift = corner_shift_mm(first.affine, second.affine, shapes[0])
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
    if judge and not report.normalised:
        _judge_values(report, adc, zadc, brain, limits)
    if judge and not report.problems:  # of a map in another unit it is known what is wrong
        assert report.spacing_mm is not None
        faults, notes = map_faults(adc, zadc, brain, report.spacing_mm, report.normalised, limits)
        for part, message in faults:
            report.add(part, message)
        report.notes += notes


def _judge_values(
    report: CaseReport, adc: NDArray[Any], zadc: NDArray[Any] | None, brain: NDArray[np.bool_], limits: Limits
) -> None:
    """Whether maps in their units can be what they are called."""
    assert report.adc_range is not None and report.brain_ml is not None  # noqa: PT018
    if zadc is not None and are_swapped(adc, zadc, limits):
        ranges = f"ADC {_span([adc.min(), adc.max()])}, ZADC {_span([zadc.min(), zadc.max()])}"
        report.add("adc", f"and the ZADC map are swapped (values: {ranges})")
        return
    if abs(max(report.adc_range, key=abs)) > limits.adc_limit:
        span = _span(report.adc_range)
        report.add("adc", f"has ADC values from {span}, beyond ±{limits.adc_limit:g} (limits#adc_limit)")
    least, greatest = limits.brain_ml_range or (0.0, np.inf)
    if not like_adc(adc, limits):
        median = float(np.median(adc[brain])) if brain.any() else 0.0
        message = f"is not an ADC map in 1e-6 mm²/s: the median of its positive voxels is {median:.4g}, not between "
        message += f"{limits.adc_range[0]:g} and {limits.adc_range[1]:g}"
        fits = [factor for factor in (1e3, 1e6) if limits.adc_range[0] <= median * factor <= limits.adc_range[1]]
        report.add("adc", message + "".join(f" (multiply it by {factor:g})" for factor in fits))
    elif not least <= report.brain_ml <= greatest:
        why = "an adult's, another part of the body, or not skull-stripped" if report.brain_ml > greatest else "a part"
        message = f"is not a newborn's brain: {report.brain_ml:.0f} ml are above 0, not between {least:g} and "
        report.add("adc", f"{message}{greatest:g} ({why}?)")
    if zadc is not None and not like_zadc(zadc, limits):
        span = _span([zadc.min(), zadc.max()])
        report.add("zadc", f"is not a Z map: its values go from {span}, beyond ±{limits.zadc_limit:g}")
    if zadc is None and not report.problems and (note := adc_level(adc, report.spacing_mm or ()).note):
        report.notes.append(note)


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
    label = volumes["label"].array
    if label.dtype.kind == "f" and label.size and abs(float(label.max()) - 1) < 1e-6:  # 255 × 1/255
        label = np.where(np.abs(label - 1) < 1e-6, 1, label)
    lesion = label == 1
    if others := int(label.size - lesion.sum() - (label == 0).sum()):
        values = np.unique(label[(label != 0) & ~lesion])[:4]
        shown = ", ".join(f"{v:g}" for v in values) + ", …" * (values.size == 4)
        report.add("label", f"has {others} voxels with values other than 0 and 1 ({shown})")
        return
    report.lesion_voxels = voxels = int(lesion.sum())
    report.lesion_ml = voxels * float(np.prod(volumes["label"].spacing_mm)) / 1000
    if voxels == 0:
        report.notes.append("empty label")
    if "adc" not in volumes or volumes["adc"].array.shape != label.shape or not report.brain_ml:
        return
    brain = brain_of(volumes["adc"].array, report.normalised)
    report.lesion_fraction = voxels / int(brain.sum())
    outside = int((lesion & ~brain).sum())
    if outside and not report.usable:  # the brain is found in maps that are wrong
        return
    message = f"{outside} of {voxels} lesion voxels outside the brain"
    if outside > limits.outside_fraction * voxels:
        report.add("label", f"has {message} (ADC not above 0)")
    elif outside:
        report.notes.append(message)
    if report.usable and not report.normalised:
        zadc = volumes["zadc"].array if "zadc" in volumes else None
        faults, notes = label_faults(lesion, zadc, brain, volumes["label"].affine)
        for fault in faults:
            report.add("label", fault)
        report.notes += notes


def _sizes(shape: Sequence[int]) -> str:
    return " × ".join(str(int(n)) for n in shape)


def _values(values: NDArray[np.float64]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _span(values: Sequence[float]) -> str:
    return f"{values[0]:.4g} to {values[1]:.4g}"
