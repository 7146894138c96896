"""Folders of DICOM images as volumes.

pydicom reads all headers into one table of frames: a frame is a classic image, a frame of an enhanced image, or an
image of many slices (a mosaic or a vendor's grid). Position and b-value assign frames to volumes. dcm2niix reads the
pixels of each volume. Log and messages do not identify the patient: they name a series by its number, not by its
description.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray

from ..data.checks import grid_difference
from ..io.files import hidden_folder
from ..io.volumes import Volume
from ..runtime.errors import UserError
from .inputs import B0_MAX, GRID_TOLERANCE_MM, unit_of

logger = logging.getLogger(__name__)

Header = Any  # pydicom.Dataset; the package is an extra

POSITION_MM = 0.05  # tolerance of the slice distance, or 2 %
SHEAR_MM = 0.5  # tolerance of in-plane shifts between slices
MAX_BYTES = 1 << 31  # maximum size of a series in memory
TIMEOUT_S = 600
DEFER_BYTES = 1 << 14  # longer elements are read on first use
MR_IMAGES = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
DEFLATED = "1.2.840.10008.1.2.1.99"
NUMBERS = (
    "SeriesNumber", "InstanceNumber", "AcquisitionNumber", "ImagesInAcquisition", "NumberOfFrames", "Rows", "Columns",
    "EchoTime", "EffectiveEchoTime", "RescaleSlope", "RescaleIntercept", "DiffusionBValue", "RealWorldValueSlope",
    "RealWorldValueIntercept", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient",
)  # fmt: skip
COUNTS = {"PixelSpacing": 2, "ImageOrientationPatient": 6, "ImagePositionPatient": 3}
GROUPS = (  # functional groups of enhanced images; classic images may have some of them
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence",
    "RealWorldValueMappingSequence", "MREchoSequence", "MRDiffusionSequence", "MRImageFrameTypeSequence",
)  # fmt: skip
PRIVATE = {  # private elements: word in the manufacturer's name, tag, and binary type (empty: text)
    "SiemensBValue": ("SIEMENS", 0x0019100C, ""),
    "GEBValue": ("GE", 0x00431039, ""),
    "PhilipsBValue": ("PHILIPS", 0x20011003, "<f4"),
    "UIHBValue": ("UIH", 0x00651009, "<f8"),
    "GEImageKind": ("GE", 0x00431030, "<i2"),
    "PhilipsDirection": ("PHILIPS", 0x20011004, ""),
    "PhilipsEPIFactor": ("PHILIPS", 0x20011013, "<i4"),
    "PhilipsSlices": ("PHILIPS", 0x20011018, "<i4"),
}
UNITS = {"um2/s": 1.0, "10-6.mm2/s": 1.0, "10*-6.mm2/s": 1.0, "10-3.mm2/s": 1e3, "10*-3.mm2/s": 1e3, "mm2/s": 1e6}

# Values of ImageType (0008,0008) and FrameType, as the standard and the vendors define them.
ADC_WORDS = {"ADC", "ADC_UNSPECIFIED", "DIFFUSIVITY", "AVDC", "DADC"}
TRACE_WORDS = {"TRACE", "TRACEW", "ISOTROPIC", "ISO"}
OTHER_WORDS = {
    "EADC", "EXP", "EXPONENTIAL", "FA", "COLFA", "TENSOR", "TENSOR_B0", "LOCALIZER", "PHASE", "PHASE MAP", "P",
    "CALC_BVALUE", "RA", "VR", "ATTENUATED", "PERFUSION", "MTT", "TTP", "CBF", "CBV", "FIELD_MAP", "FIELDMAP",
}  # fmt: skip
# Description of a derived ADC map without specific tags; its values must also be plausible as ADC.
ADC_DESCRIPTION = re.compile(r"\bD?ADC\b|apparent diff|average dc|\bMD\b|mean diffusivity|diffusion coeff", re.I)
NOT_ADC_DESCRIPTION = re.compile(r"\beADC\b|expon", re.I)


@dataclass(frozen=True, eq=False)
class Frame:
    """Row of the table: one image as described in its file."""

    path: str
    index: int | None  # in an enhanced file; None for the whole file
    uid: str  # of the image; without one, the path
    patient: tuple[str, str]
    study: str
    series: str
    number: int  # of the series
    order: tuple[int, int, int]  # InstanceNumber, AcquisitionNumber, index
    position: tuple[float, ...]  # (3,), mm; position, orientation and spacing are empty if unknown
    orientation: tuple[float, ...]  # (6,)
    spacing: tuple[float, ...]  # (2,), mm
    shape: tuple[int, int, int]  # rows, columns, frames
    b_value: float | None  # s/mm²
    words: frozenset[str]  # ImageType and FrameType
    trace: bool  # averaged over the directions by the scanner
    echo_planar: bool  # may be the b = 0 of a diffusion sequence
    echo_ms: float
    description: str
    protocol: str
    rescale: tuple[float, float]  # slope and intercept
    mapping: tuple[float, float, float] | None  # real world slope and intercept, factor from their unit to 1e-6 mm²/s
    stated: tuple[float, int]  # number of slices (Philips) and number of images in the header; 0 if unknown
    manufacturer: str

    @property
    def packed(self) -> bool:
        """Whether the frame contains several slices: a mosaic, a vendor's grid, frames without functional groups."""
        return bool(self.words & {"MOSAIC", "VFRAME"}) or self.shape[2] > 1

    @property
    def group(self) -> tuple[Any, ...]:
        """Key that groups frames into a :class:`Series`: dcm2niix would mix traces with directions."""
        known = sorted(self.words & (ADC_WORDS | TRACE_WORDS | OTHER_WORDS))
        return self.series, *known, self.trace, self.echo_ms

    @property
    def identity(self) -> tuple[Any, ...]:
        """Key by which two files are copies of one image."""
        return self.series, self.position, self.order, self.echo_ms, self.b_value


@dataclass(frozen=True)
class Series:
    """The images of a DICOM series that have the same kind.

    Attributes:
        kind: ``adc`` (a scanner's map), ``dwi`` (directions and b = 0), ``trace`` (averaged over the directions by the
            scanner), or ``other``.
        number: series number.
        b_values: s/mm², one per volume; None if unknown.
        array: (X, Y, Z, N), float32, X along the rows, Y along the columns, Z along their cross product.
        affine: (4, 4) from voxel indices to millimetres, RAS+.
        sources: frames of the volume with the smallest b-value, in the order of Z; or its one image of many slices.
        echo_ms: echo time; None if unknown.
        polarity: phase encoding direction from dcm2niix (``j``, ``j-``); empty if unknown.
        unit: factor of an ADC map to 1e-6 mm²/s if the header states the unit.
        reason: reason for an excluded series; else empty.
    """

    kind: str
    number: int
    b_values: tuple[float | None, ...] = ()
    array: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.float32), repr=False)
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4), repr=False)
    sources: tuple[Frame, ...] = field(default=(), repr=False)
    echo_ms: float | None = None
    polarity: str = ""
    unit: float | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        known = sorted({round(b) for b in self.b_values if b is not None})
        weighting = f", b = {', '.join(map(str, known))}" if known and self.kind != "adc" else ""
        return f"series {self.number} ({self.kind}{weighting})"

    def volume(self) -> Volume:
        """The first volume."""
        return Volume(self.array[..., 0], self.affine)

    def part(self, b0: bool) -> Series:
        """The volumes with b = 0 (at most 50 s/mm²), or those with a larger b-value."""
        chosen = [i for i, b in enumerate(self.b_values) if b is not None and (b <= B0_MAX) == b0]
        return replace(self, b_values=tuple(self.b_values[i] for i in chosen), array=self.array[..., chosen])


def require_pydicom(*more: str) -> None:
    """Check that pydicom, dcm2niix and other packages are installed.

    Raises:
        UserError: a package is missing.
    """
    for name in ("pydicom", "dcm2niix", *more):
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(f"DICOM needs {name}: pip install {name}") from error


def require_highdicom() -> Any:
    """Import highdicom, and stop it from logging UIDs.

    Raises:
        UserError: highdicom, pydicom or dcm2niix is not installed.
    """
    require_pydicom("highdicom")
    logging.getLogger("highdicom").setLevel(logging.WARNING)
    return import_module("highdicom")


def read_folder(
    folder: str | Path, numbers: Sequence[int] = (), strict: bool = True, work: Path | None = None
) -> list[Series]:
    """Read all MR series below a folder. Excluded series have kind ``other`` and a reason.

    Args:
        folder: folder of DICOM files with any names.
        numbers: numbers of the series to read; all if empty.
        strict: raise an error for a damaged series; else exclude it with the reason.
        work: folder for dcm2niix's files; None for the system's temporary folder.

    Raises:
        UserError: the folder has no MR image, or more than one patient or study; or a series is damaged, has gaps,
            missing or duplicate slices, or more than one geometry.
    """
    frames, found = _table(Path(folder))
    groups: dict[tuple[Any, ...], list[Frame]] = defaultdict(list)
    for frame in frames:
        groups[frame.group].append(frame)
    there = {frame.number for frame in frames}
    if unknown := set(numbers) - there:
        raise UserError(f"There is no series {min(unknown)}; there are {', '.join(map(str, sorted(there)))}.")
    with nullcontext(work) if work else hidden_folder(Path(tempfile.gettempdir()) / "hie_bundle") as place:
        for members in groups.values():
            if numbers and members[0].number not in numbers:
                continue
            try:
                found.append(_read(members, place))
            except UserError as error:
                if strict:
                    raise
                found.append(Series("other", members[0].number, reason=str(error)))
    return sorted(found, key=lambda one: (one.number, one.kind))


def listed(series: Sequence[Series]) -> str:
    """Format series as a text table: number, kind, b-values, size, voxel size, unit, and reason for exclusion."""
    rows = [("series", "kind", "b-values (s/mm²)", "size", "voxel (mm)", "unit", "excluded because")]
    for one in series:
        counts = Counter("unknown" if b is None else f"{b:g}" for b in one.b_values if one.kind != "adc")
        b_values = ", ".join(f"{b} ×{n}" if n > 1 else b for b, n in counts.items())
        size = "×".join(map(str, one.array.shape)) if one.array.size else ""
        voxel = "×".join(f"{v:.4g}" for v in one.volume().spacing_mm) if one.array.size else ""
        unit = ""
        if one.kind == "adc":
            stated = next((name for name, factor in UNITS.items() if factor == one.unit), "")
            unit = f"{stated} (stated)" if stated else unit_of(one.array) or "unknown"
        rows.append((str(one.number), one.kind, b_values, size, voxel, unit, one.reason))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _table(root: Path) -> tuple[list[Frame], list[Series]]:
    """Frames of all MR images below a folder; other MR objects as excluded series."""
    require_pydicom()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder.")
    frames: dict[tuple[str, int], Frame] = {}
    excluded: Counter[tuple[int, str]] = Counter()  # by series number (0 if unknown) and reason
    for path in _files(root):
        header = _header(path)
        if reason := _no_image(header):
            is_mr = header is not None and header.get("Modality") == "MR"
            excluded[_int(header, "SeriesNumber") if is_mr else 0, reason] += 1
            continue
        for frame in _frames(header):
            first = frames.setdefault((frame.uid, frame.order[-1]), frame)
            if first.identity != frame.identity:
                raise UserError(
                    f"Series {frame.number}: different images have one SOP Instance UID. The export is damaged; "
                    "export the series again."
                )
            if first is not frame:
                excluded[0, "copies of an image"] += 1
    if not frames:
        reasons = "".join(f" Excluded: {n} {reason}." for (_, reason), n in excluded.items())
        raise UserError(f"{root} contains no MR image in DICOM format.{reasons}")
    for (_, reason), n in excluded.items():
        logger.info("%d excluded: %s.", n, reason)
    for what, values in (
        ("patients", {frame.patient for frame in frames.values()}),
        ("studies", {frame.study for frame in frames.values()}),
    ):
        if len(values) > 1:
            raise UserError(f"{root} holds images of {len(values)} {what}; each needs its own folder.")
    return list(frames.values()), [Series("other", number, reason=reason) for number, reason in excluded if number]


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a broken link; its image is missing.")
        if path.is_file() and not path.name.startswith(".") and path.name.upper() != "DICOMDIR":
            yield path


def _header(path: Path) -> Header | None:
    """Header of a DICOM file without pixels; None for a file that is not DICOM.

    Raises:
        UserError: the file is damaged.
    """
    import pydicom

    try:
        deflated = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED
        header = None if deflated else pydicom.dcmread(path, defer_size=DEFER_BYTES)
    except (pydicom.errors.InvalidDicomError, EOFError):
        return None
    except Exception as error:  # pydicom raises many types of error for damaged files
        raise UserError(f"{path} is damaged: it cannot be read as DICOM.") from error
    if header is None:
        raise UserError(f"{path} is deflated DICOM, which is not supported; export it without compression.")
    if not len(header) and header.file_meta.get("MediaStorageSOPClassUID") in MR_IMAGES:
        raise UserError(f"{path} is damaged: it is cut off.")  # pydicom reads nothing of a compressed one
    if header.get("SOPClassUID") in MR_IMAGES:
        rows, columns, frames, bits = (
            _int(header, keyword, default)
            for keyword, default in (("Rows", 0), ("Columns", 0), ("NumberOfFrames", 1), ("BitsAllocated", 16))
        )
        pixels: Any = header.get_item("PixelData", keep_deferred=True)
        packed = header.file_meta.TransferSyntaxUID.is_compressed
        needed = rows * columns * frames * bits
        stored = min(pixels.length, path.stat().st_size - pixels.value_tell) if pixels and not packed else 0
        if not pixels or not needed or (not packed and 8 * stored < needed):
            raise UserError(f"{path} is damaged: its pixels are missing.")
        if 8 * (stored - 1) > needed:  # an odd length is padded by one byte
            raise UserError(f"{path} is damaged: it holds {stored} bytes of pixels, not {needed // 8}.")
    return header


def _no_image(header: Header | None) -> str:
    """Why a file is not an MR image; empty if it is."""
    if header is None:
        return "files that are not DICOM"
    if header.get("Modality") != "MR":
        return "objects of another modality"
    if header.get("SOPClassUID") not in MR_IMAGES:
        return "an object that is not an MR image (a screenshot, a report, a spectrum)"
    if _int(header, "SamplesPerPixel", 1) != 1:
        return "a colour image, whose values are not measurements"
    return ""


def _frames(header: Header) -> list[Frame]:
    """Rows of a file: one per frame of an enhanced image, else one."""
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    if groups and len(groups) != (number := _int(header, "NumberOfFrames", 1)):
        raise UserError(f"{header.filename} is damaged: it has {number} frames, and describes {len(groups)}.")
    frames = []
    for index, group in enumerate(groups or [header]):
        places = [place[name].value[0] for place in (group, *shared, header) for name in GROUPS if place.get(name)]
        frames.append(_frame([*places, header], index if groups else None))
    return frames


def _frame(places: Sequence[Header], index: int | None) -> Frame:
    """Row of the table.

    Args:
        places: functional groups of the frame, then the file's header.
        index: frame index; None for the whole file.
    """
    header = places[-1]
    numbers = {keyword: _numbers(header.filename, places, keyword) for keyword in NUMBERS}
    first = {keyword: found[0] if found else 0.0 for keyword, found in numbers.items()}
    if numbers["RescaleSlope"] and not first["RescaleSlope"]:
        raise UserError(f"{header.filename} is damaged: its RescaleSlope is 0.")
    words = {word.upper() for keyword in ("ImageType", "FrameType") for word in _words(places, keyword)}
    words |= {word.split("_")[0] for word in words if word.startswith(("ADC_", "TRACE_"))}  # ADC_SE counts as ADC
    b_value = first["DiffusionBValue"] if numbers["DiffusionBValue"] else _private_b_value(header)
    directionality = _text(places, "DiffusionDirectionality").upper()
    isotropic = (
        directionality == "ISOTROPIC"
        or str(_private(header, "PhilipsDirection")).strip().upper() == "I"
        or str(_private(header, "GEImageKind")) in ("15", "16")
    )
    units = _value(places, "MeasurementUnitsCodeSequence")
    scale = UNITS.get(str(units[0].get("CodeValue", ""))) if units else None
    mapping = None
    if scale and numbers["RealWorldValueSlope"]:
        mapping = (first["RealWorldValueSlope"], first["RealWorldValueIntercept"], scale)
    name = re.sub(r"[\s^=]+", "^", _text(places, "PatientName")).strip("^").upper()  # DOE^JANE^^^ is DOE^JANE
    return Frame(
        path=str(header.filename),
        index=index,
        uid=str(header.get("SOPInstanceUID") or header.filename),
        patient=(_text(places, "PatientID").strip(), name),
        study=_text(places, "StudyInstanceUID"),
        series=_text(places, "SeriesInstanceUID"),
        number=int(first["SeriesNumber"]),
        order=(int(first["InstanceNumber"]), int(first["AcquisitionNumber"]), index or 0),
        position=numbers["ImagePositionPatient"],
        orientation=numbers["ImageOrientationPatient"],
        spacing=numbers["PixelSpacing"],
        shape=(int(first["Rows"]), int(first["Columns"]), int(first["NumberOfFrames"] or 1) if index is None else 1),
        b_value=b_value,
        words=frozenset(words),
        trace=bool(words & TRACE_WORDS) or (isotropic and (b_value or 0) > B0_MAX),
        # Philips and GE write b = 0 to every image.
        echo_planar="EP" in _words(places, "ScanningSequence")
        or "ep" in _text(places, "SequenceName").lower()
        or _text(places, "EchoPlanarPulseSequence") == "YES"
        or (_first_number(_private(header, "PhilipsEPIFactor")) or 0) > 1
        or bool(numbers["DiffusionBValue"] or directionality),
        echo_ms=first["EffectiveEchoTime"] or first["EchoTime"],
        description=_text(places, "SeriesDescription"),
        protocol=_text(places, "ProtocolName"),
        rescale=(first["RescaleSlope"] or 1.0, first["RescaleIntercept"]),
        mapping=mapping,
        stated=(_first_number(_private(header, "PhilipsSlices")) or 0.0, int(first["ImagesInAcquisition"])),
        manufacturer=_text(places, "Manufacturer"),
    )


def _value(places: Sequence[Header], keyword: str) -> Any:
    """Value of an element, from the frame's functional groups or else from the file; None without a value."""
    return next((value for place in places if (value := place.get(keyword)) not in (None, "")), None)


def _text(places: Sequence[Header], keyword: str) -> str:
    return str(_value(places, keyword) or "")


def _words(places: Sequence[Header], keyword: str) -> list[str]:
    value = _value(places, keyword)
    return [value] if isinstance(value, str) else [str(word) for word in value or ()]


def _numbers(path: str, places: Sequence[Header], keyword: str) -> tuple[float, ...]:
    """The numbers of an element; empty without a value.

    Raises:
        UserError: a value is not numeric, NaN or Inf, or the count differs from ``COUNTS``.
    """
    try:
        value = _value(places, keyword)
        numbers = tuple(float(one) for one in ((value,) if isinstance(value, str | float | int) else value or ()))
    except Exception as error:  # pydicom converts a value on first access
        raise UserError(f"{path} is damaged: its {keyword} is not a number.") from error
    if not np.isfinite(numbers).all():
        raise UserError(f"{path} is damaged: its {keyword} holds NaN or Inf.")
    if numbers and len(numbers) != COUNTS.get(keyword, len(numbers)):
        raise UserError(f"{path} is damaged: its {keyword} has {len(numbers)} values, not {COUNTS[keyword]}.")
    return numbers


def _int(header: Header, keyword: str, default: int = 0) -> int:
    return int((_numbers(header.filename, [header], keyword) or (0,))[0]) or default  # some scanners write 0


def _first_number(value: Any) -> float | None:
    if not isinstance(value, str | int | float) and hasattr(value, "__iter__"):
        value = next(iter(value), None)
    try:
        number = float(str(value).split("\\")[0])
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _private_b_value(header: Header) -> float | None:
    """b-value of the private elements (GE may add 1e9), or else of Siemens' sequence name."""
    for keyword in ("SiemensBValue", "GEBValue", "PhilipsBValue", "UIHBValue"):
        if (number := _first_number(_private(header, keyword))) is not None:
            return number % 1e9 if keyword == "GEBValue" else number
    match = re.search(r"ep_b(\d+)", str(header.get("SequenceName", "")))
    return float(match[1]) if match else None


def _private(header: Header, keyword: str) -> Any:
    """Value of an element of ``PRIVATE``; None for other vendors."""
    vendor, tag, binary = PRIVATE[keyword]
    maker = str(header.get("Manufacturer") or vendor).upper()
    if vendor not in maker or tag not in header:
        return None
    value = header[tag].value
    if not isinstance(value, bytes):
        return value
    # The type is unknown in implicit VR or after anonymisation.
    if binary and len(value) == np.dtype(binary).itemsize:
        return np.frombuffer(value, binary)[0].item()
    return value.decode("ascii", "replace").strip(" \0")


def _kind(frames: Sequence[Frame]) -> tuple[str, str]:
    """Kind of a group, and the reason for ``other``; the values decide about ``derived``."""
    first = frames[0]
    words = first.words
    says_adc = bool(ADC_DESCRIPTION.search(first.description))
    if not words:
        return "other", "no ImageType, so it is unknown whether it was measured or derived"
    if found := words & OTHER_WORDS:
        return "other", f"a derived image of another kind ({min(found)})"
    if words & ADC_WORDS:
        return "adc", ""
    if first.trace:
        return "trace", ""
    if "DERIVED" not in words:
        return "dwi", ""
    if words & {"DIFFUSION", "DWI"}:
        return ("derived" if says_adc else "dwi"), ""
    weighted = any((frame.b_value or 0) > B0_MAX for frame in frames)
    return ("derived" if says_adc or "SECONDARY" in words or not weighted else "trace"), ""


def _read(frames: Sequence[Frame], work: Path) -> Series:
    """Read the volumes of one group of frames; dcm2niix writes to ``work``."""
    first = frames[0]
    number = first.number
    name = f"Series {number}"
    kind, reason = _kind(frames)
    if kind == "other":
        return Series("other", number, reason=reason)
    size = 4 * sum(int(np.prod(frame.shape)) for frame in frames)
    if size > MAX_BYTES:
        raise UserError(f"{name} declares {size / 1e9:.0f} GB of voxels, more than the limit.")
    if "MOSAIC" in first.words and not first.manufacturer:  # dcm2niix would use the mosaic's corner
        raise UserError(f"{name}: its mosaics lack Manufacturer, so their position is unknown. Export it again.")
    if not first.packed and len({frame.position for frame in frames}) < 2:
        return Series("other", number, reason="one slice only")
    volumes = _volumes(frames, name)
    if kind == "adc" and len(volumes) > 1:
        raise UserError(f"{name} (adc) has {len(volumes)} images of each slice; one is needed.")
    found = [_converted(volume, name, work) for volume in volumes]
    array, affine, side, _ = found[0]
    for other in found[1:]:
        if difference := grid_difference(Volume(array, affine), Volume(*other[:2]), GRID_TOLERANCE_MM):
            raise UserError(f"{name} mixes volumes of different grids: {difference}.")
    weighted = any((b or 0) > B0_MAX for *_, known in found for b in known)
    b_values: list[float | None] = []
    for volume, (*_, known) in zip(volumes, found, strict=True):
        # GE's header may state the b-value of the directions for b = 0; dcm2niix checks the gradient.
        b_values += [b or 0.0 for b in known] if weighted else [volume[0].b_value] * len(known)
    one = Series(
        kind, number, tuple(b_values), np.concatenate([part[0] for part in found], axis=-1), affine,
        min(map(tuple, volumes), key=lambda volume: volume[0].b_value or 0),
        1e3 * side["EchoTime"] if "EchoTime" in side else None, str(side.get("PhaseEncodingDirection", "")),
    )  # fmt: skip
    if kind == "adc":
        return _mapped(one, side)
    if kind == "derived":
        words = f"{first.description} {first.protocol}"
        if ADC_DESCRIPTION.search(words) and not NOT_ADC_DESCRIPTION.search(words) and unit_of(one.array):
            return replace(one, kind="adc", b_values=(None,) * len(b_values))
        return replace(one, kind="other", reason="derived from other images; its tags do not state the method")
    if not one.part(b0=False).b_values:
        stated = any(b is not None for b in b_values)
        if not first.words & {"DIFFUSION", "DWI", "TRACEW"} and not (stated and first.echo_planar):
            return replace(one, kind="other", reason="no diffusion weighting")
    return one


def _volumes(frames: Sequence[Frame], name: str) -> list[list[Frame]]:
    """Group frames into volumes of one b-value, each in the order of Z.

    dcm2niix would use the instance numbers, which may be missing, duplicate, or in another order at each slice.

    Raises:
        UserError: the frames do not form complete volumes.
    """
    if frames[0].packed:
        return [[frame] for frame in sorted(frames, key=lambda frame: frame.order)]
    if not all(frame.position and frame.orientation and frame.spacing for frame in frames):
        raise UserError(f"{name}: an image has no position, orientation or pixel spacing.")
    geometry = np.array([(*frame.orientation, *frame.spacing, *frame.shape) for frame in frames])
    if (kinds := len(np.unique(np.round(geometry / 2e-3), axis=0))) > 1 and (np.ptp(geometry, axis=0) > 1e-3).any():
        raise UserError(f"{name} mixes images of {kinds} orientations, sizes or spacings; they are not one volume.")
    normal = np.cross(*np.reshape(frames[0].orientation, (2, 3)))
    heights = np.array([frame.position for frame in frames]) @ normal
    order = np.argsort(heights, kind="stable")
    ends = np.flatnonzero(np.diff(heights[order]) > POSITION_MM) + 1
    rows = [sorted((frames[i] for i in one), key=lambda frame: frame.order) for one in np.split(order, ends)]
    if problem := _problem(rows, normal):
        raise UserError(f"{name} {problem}")
    double = any(len({frame.order for frame in row}) < len(row) for row in rows)
    if double or not _of_one_b_value(rows):
        # A volume may mix directions, since images with equal b-value are averaged.
        rows = [sorted(row, key=lambda frame: (frame.b_value or 0, frame.order)) for row in rows]
        known = {frame.b_value for frame in frames}
        if not _of_one_b_value(rows) or (double and (None in known or len(known) < 2)):
            raise UserError(
                f"{name} has {len(rows[0])} images of each slice, and neither InstanceNumber nor the b-values tell "
                "which of them are one volume. Export the series again, or convert it to NIfTI."
            )
    return [list(volume) for volume in zip(*rows, strict=True)]


def _problem(slices: Sequence[Sequence[Frame]], normal: NDArray[np.float64]) -> str:
    """Why the frames of each slice, in the order of Z, do not form complete volumes; empty if they do."""
    number = len(slices)
    counts = [len(frames) for frames in slices]
    usual = Counter(counts).most_common(1)[0][0]
    if odd := [i for i, count in enumerate(counts) if count != usual]:
        return (
            f"has {counts[odd[0]]} images at slice {odd[0] + 1} of {number}, and {usual} at others: slices are missing "
            "or duplicate."
        )
    shifts = np.array([frames[0].position for frames in slices]) - slices[0][0].position
    steps = np.diff(shifts @ normal)
    step = float(np.median(steps)) if len(steps) else 0.0
    if len(gaps := np.flatnonzero(np.abs(steps - step) > max(POSITION_MM, 0.02 * step))):
        return (
            f"has a gap: slices {gaps[0] + 1} and {gaps[0] + 2} of {number} are {steps[gaps[0]]:.2f} mm apart, others "
            f"{step:.2f} mm. An image is missing."
        )
    if np.linalg.norm(shifts - np.outer(shifts @ normal, normal), axis=1).max() > SHEAR_MM:
        return "is sheared (gantry tilt): its slices are shifted in plane. Export or resample it without tilt."
    if "ORIGINAL" not in slices[0][0].words:
        return ""
    stated_slices, stated_images = slices[0][0].stated
    stated = ""
    if stated_slices > number:
        stated = f"{number} slices, and its header states {stated_slices:g}"
    elif stated_images > sum(counts) and stated_images % number:
        stated = f"{sum(counts)} images of {number} slices, and its header states {stated_images} images"
    return f"has {stated}. The first or last slices are missing; export the series again." if stated else ""


def _of_one_b_value(rows: Sequence[Sequence[Frame]]) -> bool:
    """Whether the images of each column have one b-value, within the scanners' variation."""
    stated = np.array([[-1e3 if frame.b_value is None else frame.b_value for frame in row] for row in rows])
    return bool((np.ptp(stated, axis=0) <= np.maximum(B0_MAX, 0.05 * stated.max(0))).all())


def _converted(
    frames: Sequence[Frame], name: str, work: Path
) -> tuple[NDArray[np.float32], NDArray[np.float64], dict[str, Any], Sequence[float | None]]:
    """Convert a volume with dcm2niix: values (X, Y, Z, N), affine, sidecar, b-values (None if unknown)."""
    import dcm2niix

    if len(offsets := {frame.rescale[1] for frame in frames}) > 1:
        raise UserError(f"{name}: the images of one volume have different rescale intercepts ({sorted(offsets)}).")
    with tempfile.TemporaryDirectory(dir=work) as place:
        into, out = Path(place) / "in", Path(place) / "out"
        into.mkdir()
        out.mkdir()
        _write_images(frames, into)
        options = "-g i -b y -ba y -z n -w 2 -f volume -o".split()  # noqa: SIM905
        command = [dcm2niix.bin, *options, str(out), str(into)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{name}: dcm2niix was stopped after {TIMEOUT_S} s.") from error
        loaded: list[Any] = [nib.load(path) for path in sorted(out.glob("*.nii")) if path.with_suffix(".json").exists()]
        images = [image for image in loaded if image.ndim in (3, 4) and image.shape[2] > 1]
        if len(images) != 1:
            raise UserError(
                f"{name}: dcm2niix converts one volume to {len(images)} (exit code {done.returncode}). The files are "
                "damaged, of different types, or in an unsupported compression; a mosaic or a grid of slices "
                "needs the vendor's private elements. Export them again, or convert them to NIfTI."
            )
        file = Path(images[0].get_filename())
        values = np.asarray(images[0].dataobj, dtype=np.float32)
        affine = np.array(images[0].affine, dtype=np.float64)
        try:
            side = json.loads(file.with_suffix(".json").read_text(encoding="utf-8", errors="replace"))
        except ValueError as error:
            raise UserError(f"{name}: dcm2niix's sidecar cannot be read; the headers are damaged.") from error
        stated = file.with_suffix(".bval")
        b_values = [float(word) for word in stated.read_text(encoding="utf-8").split()] if stated.exists() else []
    if not np.isfinite(affine).all():
        raise UserError(f"{name}: dcm2niix finds no geometry in the images.")
    values = values.reshape(*values.shape[:3], -1)
    # dcm2niix reverses the rows, and may reverse the slices.
    flips = np.array([[0, 1], [1, -1], [2, -1 if np.linalg.det(affine[:3, :3]) > 0 else 1]])
    affine = affine @ inv_ornt_aff(flips, values.shape[:3])
    values = apply_orientation(values, flips)
    if b_values and len(b_values) != values.shape[-1]:
        raise UserError(f"{name}: dcm2niix finds {len(b_values)} b-values for {values.shape[-1]} volumes.")
    if not frames[0].packed and values.shape[2:] != (len(frames), 1):
        raise UserError(f"{name}: dcm2niix does not combine all slices into one volume. Convert them to NIfTI.")
    return values, affine, side, b_values or [None] * values.shape[-1]


def _write_images(frames: Sequence[Frame], folder: Path) -> None:
    """Write the images of a volume as files that dcm2niix combines into one volume.

    Instance numbers ascend or descend with Z: dcm2niix splits or drops Siemens' slices by number. Frames of other
    volumes are excluded.
    """
    import pydicom

    files: dict[str, list[int]] = {}
    for frame in frames:
        files.setdefault(frame.path, []).extend([] if frame.index is None else [frame.index])
    numbers = [frame.order[0] for frame in frames]
    in_order = numbers in (sorted(set(numbers)), sorted(set(numbers), reverse=True))
    for number, (path, chosen) in enumerate(files.items(), start=1):
        file = folder / f"{number:06d}.dcm"
        if in_order and not chosen:
            shutil.copyfile(path, file)
            continue
        image = pydicom.dcmread(path)
        image.InstanceNumber = number
        if chosen:
            count = int(image.get("NumberOfFrames") or 1)
            data = image["PixelData"]
            if image.file_meta.TransferSyntaxUID.is_compressed:
                pixels = list(pydicom.encaps.generate_frames(data.value, number_of_frames=count))
                data.value = pydicom.encaps.encapsulate([pixels[i] for i in chosen])
            else:
                size = len(data.value) // count
                data.value = b"".join(data.value[i * size : (i + 1) * size] for i in chosen)
            groups = image.PerFrameFunctionalGroupsSequence
            image.PerFrameFunctionalGroupsSequence = [groups[i] for i in chosen]
            image.NumberOfFrames = len(chosen)
        image.save_as(file)


def _mapped(one: Series, side: dict[str, Any]) -> Series:
    """Rescale an ADC map to displayed values, or to a real world value mapping with a stated unit (UCUM).

    dcm2niix scales all Philips images alike, which is wrong for an ADC map.
    """
    array = one.array
    if side.get("UsePhilipsFloatNotDisplayScaling") and side.get("PhilipsScaleSlope"):
        array = array * (side["PhilipsRescaleSlope"] * side["PhilipsScaleSlope"])
    if not all(frame.mapping for frame in one.sources):
        return replace(one, array=array)
    slope, intercept, unit = np.array([frame.mapping for frame in one.sources]).T
    stored_slope, stored_intercept = np.array([frame.rescale for frame in one.sources]).T
    factor = slope / stored_slope
    offset = intercept - factor * stored_intercept
    factors, offsets = np.array([factor, offset], dtype=np.float32)[:, :, None]
    return replace(one, array=array * factors + offsets, unit=float(unit[0]))
