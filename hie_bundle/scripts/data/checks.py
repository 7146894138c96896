"""Check of one case: read its files, measure them and list all problems.

ZADC is (ADC - mean) / SD of healthy newborns. Four relations follow: ZADC correlates locally with ADC; it is nowhere
exactly 0 in the brain; where ZADC is about 0, ADC is a healthy newborn's; lesions have low ZADC.
``tests/benchmarks/map_relations.py`` measures false alarms and misses of these checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from ..geometry.brain import are_normalised, brain_of, clear_background
from ..io.files import is_expected
from ..io.volumes import Volume, VolumeError, corner_shift_mm, read_volume
from ..runtime.errors import DatasetError, UserError
from .adc_level import adc_level
from .layout import case_of, item_files

# replaces the file name of a volume in memory
IN_MEMORY = {"adc": "the ADC map", "zadc": "the ZADC map", "stacked": "the image", "label": "the label"}
ENOUGH_VOXELS = 1000
SMOOTH_MM = 15.0  # width of the local mean, subtracted before maps are compared
SAMPLED_VOXELS = 20_000
DOUBTFUL_AGREEMENT = 0.4
DOUBTFUL_ZERO_SHARE = 0.02
NEAR_ZERO = 0.5  # |ZADC| that counts as about 0
LOW_P99 = 1600.0  # 99th percentile of ADC in the brain; cerebrospinal fluid has 3000
RIM_VOXELS = 2

Array = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Limits:
    """Limits of a usable case; values of another type raise a DatasetError."""

    grid_tolerance_mm: float = 0.1  # between corners of two grids; allows for a rounded quaternion
    adc_range: tuple[float, float] = (200.0, 4000.0)  # of the median of ADC in the brain, 1e-6 mm²/s
    adc_limit: float = 30000.0  # largest absolute value of ADC, 1e-6 mm²/s; free water has 3000
    zadc_limit: float = 100.0  # largest absolute value of ZADC; BONBID-HIE's are clipped at 10
    spacing_range_mm: tuple[float, float] = (0.1, 20.0)  # of the voxel size along each axis
    outside_fraction: float = 0.5  # largest share of a lesion's voxels outside the brain
    max_bytes: int = 1 << 31  # maximum size of a volume in memory
    brain_ml_range: tuple[float, float] | None = None  # of the brain's volume; None: any
    map_agreement: float = 0.1  # minimum local correlation of ZADC and ADC in the brain
    zadc_zero_fraction: float = 0.1  # largest share of the brain with a ZADC of exactly 0
    healthy_adc_range: tuple[float, float] = (800.0, 2200.0)  # of the median of ADC where ZADC is about 0, 1e-6 mm²/s
    zadc: Literal["required", "optional"] = "required"  # optional: the ZADC map may be missing, see LoadMapsd

    def __post_init__(self) -> None:
        if self.zadc not in ("required", "optional"):
            raise DatasetError(f"limits#zadc must be 'required' or 'optional', not {self.zadc!r}.")
        require_numbers(self, "limits")


def require_numbers(limits: Any, id: str) -> None:
    """Raise a DatasetError unless each limit is a number, or an ordered pair if its type is a tuple."""
    for one in fields(limits):
        value = getattr(limits, one.name)
        if "Literal" in str(one.type) or (value is None and one.default is None):
            continue
        pair = "tuple" in str(one.type)
        numbers = list(value) if pair and isinstance(value, list | tuple) else [value]
        right = all(isinstance(n, int | float) and not isinstance(n, bool) and n == n for n in numbers)
        if not right or len(numbers) != 1 + pair or numbers != sorted(numbers):
            what = "two numbers, minimum and maximum" if pair else "a number"
            raise DatasetError(f"{id}#{one.name} must be {what}, not {value!r}.")


@dataclass(frozen=True)
class Problem:
    """A reason why a case is unusable, and its file."""

    file: str
    message: str


@dataclass
class CaseReport:
    """Problems and measurements of a case; a missing measurement is None."""

    case: str
    files: dict[str, str]  # by part: adc and zadc, or stacked; label
    problems: list[Problem] = field(default_factory=list)  # empty for a usable case
    notes: list[str] = field(default_factory=list)  # unusual, but allowed
    shape: list[int] | None = None
    spacing_mm: list[float] | None = None
    orientation: str | None = None  # of the voxel axes, e.g. LPS; "oblique" is appended above 0.1°
    adc_range: list[float] | None = None  # minimum and maximum, 1e-6 mm²/s
    zadc_range: list[float] | None = None
    adc_mean: float | None = None  # in the brain (where ADC > 0)
    adc_std: float | None = None
    brain_ml: float | None = None
    lesion_voxels: int | None = None
    lesion_ml: float | None = None
    lesion_fraction: float | None = None  # lesion volume / brain volume, 0..1
    normalised: bool = False  # the maps are already normalised, so value ranges are not checked

    @property
    def usable(self) -> bool:
        return not self.problems

    def file(self, part: str) -> str:
        """File of a part; the first file for ``maps`` and for parts of a stacked file."""
        return self.files.get(part) or self.files.get("stacked") or next(iter(self.files.values()))

    def add(self, part: str, message: str) -> None:
        """Add a problem of a part's file."""
        self.problems.append(Problem(self.file(part), message))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CaseReport:
        return cls(**{**data, "problems": [Problem(**problem) for problem in data["problems"]]})


def read_case(
    case: str, files: Mapping[str, str | Volume], limits: Limits | None = None
) -> tuple[CaseReport, dict[str, Volume]]:
    """Read and check one case; invalid data does not raise an error.

    Args:
        case: case id.
        files: paths or volumes in memory by part: ``adc`` and ``zadc``, or ``stacked``; optional ``label``.
        limits: limits of a usable case; None for the defaults.

    Returns:
        The report, and the volumes by part: ``adc``, ``zadc``, ``label``.
    """
    limits = limits or Limits()
    named = {part: IN_MEMORY.get(part, part) if isinstance(file, Volume) else file for part, file in files.items()}
    report, volumes = CaseReport(case, named), dict[str, Volume]()
    for part, given in files.items():
        try:
            volumes[part] = given if isinstance(given, Volume) else read_volume(given, limits.max_bytes)
        except FileNotFoundError:
            report.add(part, "is missing")
        except (VolumeError, MemoryError) as error:
            report.add(part, str(error) or "does not fit in memory")
    if stacked := volumes.pop("stacked", None):
        _unstack(report, stacked, volumes, limits)
    for part in [part for part, volume in volumes.items() if volume.array.ndim != 3]:
        shape = volumes.pop(part).array.shape
        report.add(part, f"has shape {_sizes(shape)}; three dimensions are needed")
    maps = [part for part in ("adc", "zadc") if part in volumes]
    sound = [_check_map(report, part, volumes) for part in maps]
    if maps:
        _describe_grid(report, maps[0], volumes[maps[0]], limits)
    first, *others = list(volumes) or [""]
    for part in (part for part in others if report.file(part) != report.file(first)):
        if difference := grid_difference(volumes[first], volumes[part], limits.grid_tolerance_mm):
            report.add(part, f"is on another grid than {Path(report.file(first)).name}: {difference}")
    if len(maps) == 2 or (maps == ["adc"] and report.files.keys().isdisjoint(("zadc", "stacked"))):
        _check_values(report, volumes, limits, judge=all(sound))
    if "label" in volumes:
        _check_label(report, volumes, limits)
    return report, volumes


def require_checked(item: Mapping[str, Any], limits: Limits) -> None:
    """Check a data item unless :func:`.require_usable` did: some tools call transforms without a workflow."""
    files = item_files(item)
    if not all(map(is_expected, files.values())):
        require_no_problems(read_case(case_of(item), files, limits)[0], "used")


def require_no_problems(report: CaseReport, purpose: str) -> None:
    """Raise a UserError that lists a case's problems, if there are any."""
    if report.problems:
        lines = [f"  {problem.file} {problem.message}" for problem in report.problems]
        raise UserError("\n".join([f"{report.case} cannot be {purpose}:", *lines]))


def _unstack(report: CaseReport, stacked: Volume, volumes: dict[str, Volume], limits: Limits) -> None:
    maps = channels_of(stacked)
    if len(maps) == 1 and limits.zadc == "optional":
        report.files = {"adc" if part == "stacked" else part: file for part, file in report.files.items()}
        report.notes.append("no ZADC map")
    elif len(maps) != 2:
        message = f"has {len(maps)} channel{'s'[: len(maps) > 1]}; a stacked file has two, ADC and ZADC"
        if len(maps) == 1:
            message += ", and this recipe does not accept an ADC map alone (limits#zadc)"
        report.add("stacked", message)
        return
    for part, array in zip(("adc", "zadc"), maps, strict=False):
        volumes[part] = Volume(array, stacked.affine, stacked.header_spacing_mm)


def channels_of(volume: Volume) -> list[NDArray[Any]]:
    """The maps of a stacked file, each (X, Y, Z)."""
    return list(np.moveaxis(volume.array, -1, 0)) if volume.array.ndim == 4 else [volume.array]


def _check_map(report: CaseReport, part: str, volumes: dict[str, Volume]) -> bool:
    """Whether the map is finite and not constant as float32; NaN and Inf become 0."""
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


def grid_difference(first: Volume, second: Volume, tolerance_mm: float) -> str:
    """Describe how two grids differ; empty if all corners agree within the tolerance."""
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
    """Measure the maps and, with ``judge``, check that they are ADC and ZADC of the same brain."""
    adc = np.asarray(volumes["adc"].array, np.float64)
    zadc = np.array(volumes["zadc"].array, np.float64) if "zadc" in volumes else None
    if zadc is not None and zadc.shape != adc.shape:  # already a problem
        zadc = None
    report.adc_range = [float(adc.min()), float(adc.max())]
    report.normalised = are_normalised(adc, zadc)
    brain, spacing_mm = brain_of(adc, report.normalised), volumes["adc"].spacing_mm
    if zadc is not None:
        clear_background(adc, zadc)
        report.zadc_range = [float(zadc.min()), float(zadc.max())]
    report.brain_ml = float(brain.sum()) * float(np.prod(spacing_mm)) / 1000
    if brain.any():
        report.adc_mean, report.adc_std = float(adc[brain].mean()), float(adc[brain].std())
    if not judge:
        return
    if not report.normalised:
        _judge_ranges(report, adc, zadc, limits)
        if zadc is None and not report.problems and (note := adc_level(adc, spacing_mm).note):
            report.notes.append(note)
    elif zadc is not None:
        background = [float((array <= array.min() + 1e-6).mean()) for array in (adc, zadc)]
        if background[0] < 0.02 and background[1] > 0.2:
            report.add("zadc", "and the ADC map are swapped: the background has the lowest value, as in ADC")
    if report.problems or brain.sum() < ENOUGH_VOXELS:  # a wrong unit would fail the next checks as well
        return
    if zadc is not None:
        _judge_relation(report, adc, zadc, brain, spacing_mm, limits)
    if not report.normalised:
        _judge_adc(report, adc, brain)


def _judge_ranges(report: CaseReport, adc: Array, zadc: Array | None, limits: Limits) -> None:
    """Check the values of maps that are not normalised."""
    assert report.brain_ml is not None
    maps = [adc] if zadc is None else [adc, zadc]
    spans = [f"{array.min():.4g} to {array.max():.4g}" for array in maps]
    medians = [float(np.median(array[array > 0])) if (array > 0).any() else 0.0 for array in maps]
    low, high = limits.adc_range
    like_adc = [low <= median <= high for median in medians]
    like_zadc = [float(np.abs(array).max()) <= limits.zadc_limit for array in maps]
    if zadc is not None and like_adc[1] and like_zadc[0] and not (like_adc[0] and like_zadc[1]):
        report.add("adc", f"and the ZADC map are swapped (values: ADC {spans[0]}, ZADC {spans[1]})")
        return
    if np.abs(adc).max() > limits.adc_limit:
        report.add("adc", f"has ADC values from {spans[0]}, beyond ±{limits.adc_limit:g} (limits#adc_limit)")
    least, greatest = limits.brain_ml_range or (0.0, np.inf)
    if not like_adc[0]:
        message = f"is not an ADC map in 1e-6 mm²/s: the median of its positive voxels is {medians[0]:.4g}, "
        fits = "".join(f" (multiply it by {by:g})" for by in (1e3, 1e6) if low <= medians[0] * by <= high)
        report.add("adc", f"{message}not between {low:g} and {high:g}{fits}")
    elif not least <= report.brain_ml <= greatest:
        why = "an adult's, another part of the body, or not skull-stripped" if report.brain_ml > greatest else "a part"
        message = f"is not a newborn's brain: {report.brain_ml:.0f} ml are above 0, not between {least:g} and "
        report.add("adc", f"{message}{greatest:g} ({why}?)")
    if zadc is not None and not like_zadc[1]:
        report.add("zadc", f"is not a Z map: its values go from {spans[1]}, beyond ±{limits.zadc_limit:g}")


def _judge_adc(report: CaseReport, adc: Array, brain: Mask) -> None:
    """Check for overflow, another unit and skull."""
    below = adc < 0
    if below.any() and adc.min() < -500 and adc.max() <= 2047:
        text = f"has {int(below.sum())} voxels below 0 and none above 2047: values overflowed 12 bits"
        report.add("adc", text)
    elif below.sum() > 0.005 * brain.sum():
        report.notes.append(f"ADC is below 0 in {int(below.sum())} voxels, which do not count as brain")
    if (p99 := float(np.percentile(adc[brain], 99))) < LOW_P99:
        report.notes.append(f"99 % of the brain has an ADC below {p99:.0f}: no cerebrospinal fluid, or another unit?")
    core = ndimage.binary_erosion(brain, np.ones((3, 3, 1)), iterations=RIM_VOXELS)
    if core.any():
        rim, inside = float(np.median(adc[brain & ~core])), float(np.median(adc[core]))
        if rim < 0.8 * inside:
            report.notes.append(f"ADC is {rim:.0f} at the brain's rim and {inside:.0f} inside: is it skull-stripped?")


def _judge_relation(
    report: CaseReport, adc: Array, zadc: Array, brain: Mask, spacing_mm: Array, limits: Limits
) -> None:
    """Check the relations of ZADC and ADC."""
    agreement = agreement_of_maps(adc, zadc, brain, spacing_mm)
    if report.normalised:  # usually resampled, perhaps too coarsely for a local correlation
        if agreement < -DOUBTFUL_AGREEMENT:
            report.add("zadc", f"falls where ADC rises: its sign is inverted (local correlation {agreement:.2f})")
        return
    if agreement < max(limits.map_agreement, DOUBTFUL_AGREEMENT):
        text = f"local correlation with ADC in the brain is {agreement:.2f}, usually above 0.8"
        reason = _mirroring(adc, zadc, brain, spacing_mm, agreement)
        if agreement < limits.map_agreement or reason:
            reason = reason or "another case's map, or shifted?"
            report.add("zadc", f"does not belong to the ADC map: {reason} ({text}; limits#map_agreement)")
            return
        report.notes.append(f"ZADC: {text}")
    zero = float((zadc[brain] == 0).mean())
    text = f"{100 * zero:.0f} % of the brain has a ZADC of exactly 0"
    if zero > limits.zadc_zero_fraction:
        why = "skull in the ADC map, or another position? (limits#zadc_zero_fraction)"
        report.add("zadc", f"is not a Z map of this brain: {text}; {why}")
    elif zero > DOUBTFUL_ZERO_SHARE:
        report.notes.append(text)
    healthy = adc[brain & (np.abs(zadc) < NEAR_ZERO) & (zadc != 0)]
    least, greatest = limits.healthy_adc_range
    if healthy.size >= ENOUGH_VOXELS // 10 and not least <= (median := float(np.median(healthy))) <= greatest:
        message = f"has a median of {median:.0f} where ZADC is about 0, not between {least:g} and {greatest:g}: "
        report.add("adc", message + "one of the two maps is scaled (limits#healthy_adc_range)")


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
    if outside and not report.usable:  # the brain mask of faulty maps is unreliable
        return
    message = f"{outside} of {voxels} lesion voxels outside the brain"
    if outside > limits.outside_fraction * voxels:
        report.add("label", f"has {message} (ADC not above 0)")
    elif outside:
        report.notes.append(message)
    if report.usable and not report.normalised and "zadc" in volumes:
        _judge_label(report, lesion, volumes["zadc"].array, brain, volumes["label"].affine)


def _judge_label(report: CaseReport, lesion: Mask, zadc: Array, brain: Mask, affine: Array) -> None:
    """Check a label by the ZADC of its voxels: lesions have low ZADC."""
    inside = lesion & brain
    if inside.sum() < 20:
        return
    level = float(np.median(zadc[inside]))
    share = inside.sum() / brain.sum()
    if share > 0.9:
        text = f"covers {100 * share:.0f} % of the brain"
        if level > -1.5:
            report.add("label", f"{text}, with a median ZADC of {level:.1f}: is it a brain mask?")
        else:
            report.notes.append(text)
        return
    axis = int(np.argmax(np.abs(affine[0, :3])))
    ends = np.flatnonzero(brain.any(tuple(other for other in range(3) if other != axis)))[[0, -1]]
    mirrored = np.roll(np.flip(lesion, axis), int(ends.sum()) - (lesion.shape[axis] - 1), axis) & brain
    if mirrored.sum() >= 20 and level > -1 and (other := float(np.median(zadc[mirrored]))) < level - 2:
        message = (
            f"is flipped from left to right: the median ZADC is {level:.1f} inside, {other:.1f} in its mirror image"
        )
        report.add("label", message)
    elif level > -0.5:
        report.notes.append(f"median ZADC in the label is {level:.1f}: is it in the right place?")


def agreement_of_maps(adc: Array, zadc: Array, brain: Mask, spacing_mm: Array) -> float:
    """Spearman's correlation, in the brain, of both maps minus their local means; 0 if one is constant."""
    every = max(1, int(brain.sum()) // SAMPLED_VOXELS)
    details = [_without_trend(values, brain, spacing_mm)[::every] for values in (adc, zadc)]
    if any(values.min() == values.max() for values in details):
        return 0.0
    return float(stats.spearmanr(*details).statistic)


def _mirroring(adc: Array, zadc: Array, brain: Mask, spacing_mm: Array, agreement: float) -> str:
    """Name an inverted sign or a flip of the ZADC map; empty if neither explains the disagreement."""
    if agreement < -DOUBTFUL_AGREEMENT / 2:
        return "its sign is inverted"
    names = ("first", "second", "third")
    found = {
        f"it is mirrored along the {name} axis": agreement_of_maps(adc, np.flip(zadc, axis), brain, spacing_mm)
        for axis, name in enumerate(names)
    }
    best = max(found, key=lambda reason: found[reason])
    return best if found[best] > max(DOUBTFUL_AGREEMENT, agreement + 0.15) else ""


def _without_trend(values: Array, brain: Mask, spacing_mm: Array) -> Array:
    """Values in the brain minus their local mean in the brain."""
    size = [2 * round(SMOOTH_MM / 2 / step) + 1 for step in spacing_mm]
    weight = ndimage.uniform_filter(brain.astype(np.float32), size)
    mean = ndimage.uniform_filter(np.where(brain, values, 0).astype(np.float32), size)
    return np.asarray(values[brain] - mean[brain] / weight[brain])


def _sizes(shape: Sequence[int]) -> str:
    return " × ".join(str(int(n)) for n in shape)


def _values(values: NDArray[np.float64]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
