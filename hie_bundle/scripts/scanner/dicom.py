"""Folders of DICOM images as volumes. dcm2niix reads the pixels; pydicom says which images belong together.

Log and messages contain nothing that identifies the patient. They name a series by its number, not by its description.
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
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..data.checks import grid_difference
from ..io.files import hidden_folder
from ..io.volumes import Volume
from ..runtime.errors import UserError
from .inputs import B0_MAX, GRID_TOLERANCE_MM, unit_of

__all__ = ["Series", "left_out", "listed", "read_folder", "require_highdicom", "require_pydicom"]

logger = logging.getLogger(__name__)

Header = Any  # pydicom.Dataset; the package is an extra

POSITION = "ImagePositionPatient"
POSITION_MM = 0.05  # slices whose distances differ by more than this, or 2 %, are not one volume
MAX_BYTES = 1 << 31  # of the pixels of one series
TIMEOUT_S = 600
MR_IMAGES = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4")
DEFLATED = "1.2.840.10008.1.2.1.99"
NUMBERS = (
    "SeriesNumber", "InstanceNumber", "AcquisitionNumber", "ImagesInAcquisition", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "BitsAllocated", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "EchoTime",
    "RescaleSlope", "RescaleIntercept", "DiffusionBValue",
)  # fmt: skip
COUNTS = {"PixelSpacing": 2, "ImageOrientationPatient": 6, "ImagePositionPatient": 3}
TAGS: tuple[Any, ...] = (
    *NUMBERS, "SOPClassUID", "SOPInstanceUID", "Modality", "Manufacturer", "PatientID", "PatientName",
    "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SeriesDescription", "ProtocolName", "ImageType",
    "SequenceName", "ScanningSequence", "EchoPlanarPulseSequence", "DiffusionDirectionality", "MRDiffusionSequence",
    "MRImageFrameTypeSequence", "RealWorldValueMappingSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", 0x0019100C, 0x00431030, 0x00431039, 0x20011003, 0x20011004, 0x20011013,
    0x20011018, 0x00651009,
)  # fmt: skip
BINARY = {  # types of the vendors' own elements that are not text
    (0x0043, 0x1030): "<i2", (0x0065, 0x1009): "<f8", (0x2001, 0x1003): "<f4", (0x2001, 0x1013): "<i4",
    (0x2001, 0x1018): "<i4",
}  # fmt: skip
SEQUENCES = {  # of enhanced images
    "ImagePositionPatient": "PlanePositionSequence", "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}  # fmt: skip
UNITS = {"um2/s": 1.0, "10-6.mm2/s": 1.0, "10*-6.mm2/s": 1.0, "10-3.mm2/s": 1e3, "10*-3.mm2/s": 1e3, "mm2/s": 1e6}

# Values of ImageType (0008,0008) and of frame types, which the standard and the vendors define.
ADC_WORDS = {"ADC", "ADC_UNSPECIFIED", "DIFFUSIVITY", "AVDC", "DADC"}
TRACE_WORDS = {"TRACE", "TRACEW", "ISOTROPIC", "ISO"}
OTHER_WORDS = {
    "EADC", "EXP", "EXPONENTIAL", "FA", "COLFA", "TENSOR", "TENSOR_B0", "LOCALIZER", "PHASE", "PHASE MAP", "P",
    "CALC_BVALUE", "RA", "VR", "ATTENUATED", "PERFUSION", "MTT", "TTP", "CBF", "CBV", "FIELD_MAP", "FIELDMAP",
}  # fmt: skip
# Description of a derived ADC map without specific tags; its values must be plausible as ADC, too.
ADC_DESCRIPTION = re.compile(r"\bD?ADC\b|apparent diff|average dc|\bMD\b|mean diffusivity|diffusion coeff", re.I)
NOT_ADC_DESCRIPTION = re.compile(r"\beADC\b|expon", re.I)


@dataclass(frozen=True)
class Series:
    """One kind of image of a DICOM series.

    Attributes:
        kind: ``adc`` (a scanner's map), ``dwi`` (directions and b = 0), ``trace`` (averaged over the directions by the
            scanner), or ``other``.
        number: of the series.
        b_values: s/mm², one a volume; None where neither the header nor dcm2niix knows it.
        array: (X, Y, Z, N), float32, X along the rows, Y along the columns, Z along their cross product.
        affine: (4, 4) from voxel indices to millimetres, RAS+.
        sources: headers of the images of one volume with the least b-value in the order of Z; one multi-frame image
            or mosaic instead, if the scanner writes those.
        echo_ms: echo time; None if unknown.
        polarity: direction of phase encoding as dcm2niix states it (``j``, ``j-``); empty if unknown.
        unit: factor of an ADC map to 1e-6 mm²/s if the header states the unit.
        reason: why the series is not used; empty if it is.
    """

    kind: str
    number: int
    b_values: tuple[float | None, ...] = ()
    array: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.float32), repr=False)
    affine: NDArray[np.float64] = field(default_factory=lambda: np.eye(4), repr=False)
    sources: tuple[Header, ...] = field(default=(), repr=False)
    echo_ms: float | None = None
    polarity: str = ""
    unit: float | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        known = sorted({round(b) for b in self.b_values if b is not None})
        weighting = f", b = {', '.join(map(str, known))}" if known and self.kind != "adc" else ""
        return f"series {self.number} ({self.kind}{weighting})"

    def volume(self, index: int = 0) -> Volume:
        return Volume(self.array[..., index], self.affine)

    def of(self, indices: Sequence[int]) -> Series:
        """Some of the volumes."""
        return replace(self, b_values=tuple(self.b_values[i] for i in indices), array=self.array[..., list(indices)])

    def indices(self, b0: bool) -> list[int]:
        """The volumes with b = 0 (at most 50 s/mm²), or those with a larger b-value."""
        return [i for i, b in enumerate(self.b_values) if b is not None and (b <= B0_MAX) == b0]


def require_pydicom() -> Any:
    """Import pydicom, and check that dcm2niix is installed.

    Raises:
        UserError: where one of them is not installed.
    """
    try:
        import dcm2niix  # noqa: F401
        import pydicom
    except ImportError as error:
        raise UserError("DICOM needs pydicom and dcm2niix: pip install pydicom dcm2niix") from error
    return pydicom


def require_highdicom() -> Any:
    """Import highdicom, and stop it from logging UIDs.

    Raises:
        UserError: where it, pydicom or dcm2niix is not installed.
    """
    require_pydicom()
    try:
        import highdicom
    except ImportError as error:
        raise UserError("Writing DICOM needs highdicom: pip install highdicom") from error
    logging.getLogger("highdicom").setLevel(logging.WARNING)
    return highdicom


def read_folder(
    folder: str | Path, numbers: Sequence[int] = (), strict: bool = True, work: Path | None = None
) -> list[Series]:
    """Read all MR series below a folder. Series that are not used have kind ``other`` and a reason.

    Args:
        folder: with DICOM files of any name.
        numbers: of the series to read; all if empty.
        strict: raise an error for a damaged series; else exclude it with the reason.
        work: folder for dcm2niix's files; None for the system's temporary folder.

    Raises:
        UserError: without an MR image; for images of more than one patient or study; naming a series that is damaged,
            has gaps, missing or double slices, or more than one geometry.
    """
    root = Path(folder)
    headers, others = _headers(root)
    groups: dict[tuple[str, ...], list[Header]] = defaultdict(list)
    for header in headers:
        groups[_group(header)].append(header)
    there = sorted({_number(header) for header in headers})
    if unknown := set(numbers) - set(there):
        raise UserError(f"There is no series {sorted(unknown)[0]}; there are {', '.join(map(str, there))}.")
    found = [Series("other", number, reason=reason) for number, reason in others]
    with nullcontext(work) if work else hidden_folder(Path(tempfile.gettempdir()) / "hie_bundle") as place:
        for members in groups.values():
            if numbers and _number(members[0]) not in numbers:
                continue
            try:
                found.append(_read(members, place))
            except UserError as error:
                if strict:
                    raise
                found.append(Series("other", _number(members[0]), reason=str(error)))
    return sorted(found, key=lambda one: (one.number, one.kind))


def left_out(series: Sequence[Series]) -> str:
    """Text about the excluded series and their reasons; empty if there are none."""
    reasons = dict.fromkeys(f"series {one.number}: {one.reason}" for one in series if one.reason)
    return "; ".join(reasons)


def listed(series: Sequence[Series]) -> str:
    """A table for people: number, kind, b-values, size, voxels, unit, and the reason for an unused series."""
    rows = [("series", "kind", "b-values (s/mm²)", "size", "voxel (mm)", "unit", "excluded because")]
    for one in series:
        counts = Counter("unknown" if b is None else f"{b:g}" for b in one.b_values)
        b_values = "" if one.kind == "adc" else ", ".join(f"{b} ×{n}" if n > 1 else b for b, n in counts.items())
        size = "×".join(map(str, one.array.shape)) if one.array.size else ""
        voxel = "×".join(f"{v:.4g}" for v in one.volume().spacing_mm) if one.array.size else ""
        unit = ""
        if one.kind == "adc":
            stated = next((name for name, factor in UNITS.items() if factor == one.unit), "")
            unit = f"{stated} (stated)" if stated else unit_of(one.array) or "unknown"
        rows.append((str(one.number), one.kind, b_values, size, voxel, unit, one.reason))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _headers(root: Path) -> tuple[list[Header], list[tuple[int, str]]]:
    """Headers of the MR images without their pixels, each with its path as ``filename``; and the unused objects."""
    require_pydicom()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder.")
    found: dict[str, Header] = {}
    ignored: Counter[str] = Counter()
    others: set[tuple[int, str]] = set()
    for path in _files(root):
        header = _header(path)
        if header is None:
            ignored["files that are not DICOM"] += 1
            continue
        if reason := _no_image(header):
            if header.get("Modality") == "MR" and _number(header):
                others.add((_number(header), reason))
            ignored[reason] += 1
            continue
        if len(found) and str(header.get("SOPInstanceUID")) in found:
            first = found[str(header.SOPInstanceUID)]
            if _place(first) != _place(header):
                raise UserError(
                    f"Series {_number(header)}: different images have one SOP Instance UID. The export is damaged; "
                    "export the series again."
                )
            ignored["copies of an image"] += 1
            continue
        found[str(header.get("SOPInstanceUID") or path)] = header
    headers = [part for header in found.values() for part in _parts(header)]
    if not headers:
        raise UserError(
            f"{root} holds no DICOM image of MR." + "".join(f" Excluded: {n} {what}." for what, n in ignored.items())
        )
    for what, count in ignored.items():
        logger.info("%d excluded: %s.", count, what)
    for what, values in (
        ("patients", {(str(h.get("PatientID") or "").strip(), _person(h)) for h in headers}),
        ("studies", {str(h.get("StudyInstanceUID", "")) for h in headers}),
    ):
        if len(values) > 1:
            raise UserError(f"{root} holds images of {len(values)} {what}; each needs a folder of its own.")
    return headers, sorted(others)


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a broken link; the image that it stands for is missing.")
        if path.is_file() and not path.name.startswith(".") and path.name.upper() != "DICOMDIR":
            yield path


def _header(path: Path) -> Header | None:
    """None for a file that is not DICOM.

    Raises:
        UserError: for a damaged file.
    """
    pydicom = require_pydicom()
    try:
        if pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED:
            raise UserError(f"{path} is deflated DICOM, which is not read; export it without compression.")
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*TAGS])
    except (pydicom.errors.InvalidDicomError, EOFError):
        return None
    except UserError:
        raise
    except Exception as error:  # pydicom raises many types of error for damaged files
        raise UserError(f"{path} is damaged: it cannot be read as DICOM.") from error
    header.filename = str(path)
    for keyword in NUMBERS:
        try:
            values = header.get(keyword)
            numbers = [float(value) for value in ((values,) if isinstance(values, str | float | int) else values or ())]
        except Exception as error:  # pydicom converts a value at its first access
            raise UserError(f"{path} is damaged: its {keyword} is not a number.") from error
        if not np.isfinite(numbers).all():
            raise UserError(f"{path} is damaged: its {keyword} holds NaN or Inf.")
        if keyword == "RescaleSlope" and 0 in numbers:
            raise UserError(f"{path} is damaged: its RescaleSlope is 0.")
        if numbers and len(numbers) != COUNTS.get(keyword, len(numbers)):
            raise UserError(f"{path} is damaged: its {keyword} has {len(numbers)} values, not {COUNTS[keyword]}.")
    if header.get("SOPClassUID") in MR_IMAGES:
        bits = _int(header, "Rows") * _int(header, "Columns") * _int(header, "NumberOfFrames", 1)
        bits *= _int(header, "BitsAllocated", 16)
        packed = header.file_meta.TransferSyntaxUID.is_compressed
        stored = 0 if packed else len(pydicom.dcmread(path, specific_tags=["PixelData"]).get("PixelData") or b"")
        if not bits or (not packed and 8 * stored < bits):
            raise UserError(f"{path} is damaged: its pixels are missing.")
        if 8 * (stored - 1) > bits:  # to an odd number one byte is added
            raise UserError(f"{path} is damaged: it holds {stored} bytes of pixels, not {bits // 8}.")
    return header


def _parts(header: Header) -> list[Header]:
    """The volumes of an enhanced image, each with its ``frames``; any other image is one part.

    dcm2niix would mix averages with directions, and takes the standard's b-values of few vendors.

    Raises:
        UserError: where frames do not make up volumes.
    """
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) < 2 or not all("PlanePositionSequence" in group for group in groups):
        return [header]
    kinds: dict[Any, list[Header]] = defaultdict(list)
    for number in range(len(groups)):
        one = _of_frames(header, [number])
        directions = [d.get("DiffusionGradientDirectionSequence") for d in _element(one, "MRDiffusionSequence")]
        kinds[(tuple(sorted(_words(one))), _b_value(one), _is_trace(one), _echo_ms(one), str(directions))].append(one)
    parts = []
    for frames in kinds.values():
        for volume in zip(*_stack(frames, f"Series {_number(header)}").values(), strict=True):
            parts.append(_of_frames(header, [one.frames[0] for one in volume]))
    return parts if len(parts) > 1 else [header]


def _with(header: Header, **elements: Any) -> Header:
    """A copy of a header with some elements replaced; pydicom's own copy shares them."""
    copied = require_pydicom().Dataset(dict(header.items()))
    copied.file_meta, copied.filename = header.file_meta, header.filename
    for keyword, value in elements.items():
        if keyword in copied:
            del copied[keyword]
        setattr(copied, keyword, value)
    return copied


def _of_frames(header: Header, frames: Sequence[int]) -> Header:
    groups = [header.PerFrameFunctionalGroupsSequence[i] for i in frames]
    part = _with(header, PerFrameFunctionalGroupsSequence=groups, NumberOfFrames=len(frames))
    part.frames = list(frames)
    return part


def _cut(header: Header, path: Path) -> None:
    """Write the frames of a part of an enhanced image as an image of their own."""
    pydicom = require_pydicom()
    whole = pydicom.dcmread(header.filename)
    count, packed = int(whole.NumberOfFrames), whole.file_meta.TransferSyntaxUID.is_compressed
    if packed:
        pixels = list(pydicom.encaps.generate_frames(whole.PixelData, number_of_frames=count))
        chosen = pydicom.encaps.encapsulate([pixels[i] for i in header.frames])
    else:
        size = len(whole.PixelData) // count
        chosen = b"".join(whole.PixelData[i * size : (i + 1) * size] for i in header.frames)
    one = _of_frames(whole, header.frames)
    del one.PixelData
    one.add_new("PixelData", "OB" if packed else "OW", chosen)
    one["PixelData"].is_undefined_length = packed
    one.save_as(path, enforce_file_format=True)


def _no_image(header: Header) -> str:
    """Why a DICOM object is no MR image; empty if it is one."""
    if header.get("Modality") != "MR":
        return "objects of another modality"
    if header.get("SOPClassUID") not in MR_IMAGES:
        return "an object that is no MR image (a screenshot, a report, a spectrum)"
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return "a colour picture, whose values are not a measurement"
    return ""


def _read(members: list[Header], work: Path) -> Series:
    """The volumes of the images of one group; dcm2niix writes in ``work``."""
    first = members[0]
    kind, reason = _kind(members)
    number = _number(first)
    if kind == "other":
        return Series("other", number, reason=reason)
    name = f"Series {number}"
    pixels = sum(int(h.Rows) * int(h.Columns) * _int(h, "NumberOfFrames", 1) for h in members)
    if 4 * pixels > MAX_BYTES:
        raise UserError(f"{name} declares {4 * pixels / 1e9:.0f} GB of voxels, more than the limit.")
    if "MOSAIC" in _words(first) and not first.get("Manufacturer"):  # dcm2niix would leave the mosaic's own corner
        raise UserError(f"{name}: its mosaics name no Manufacturer, so their position is unknown. Export it again.")
    packed = _packed(first)
    if not packed and len({tuple(_element(h, SEQUENCES[POSITION], POSITION)) for h in members}) < 2:
        return Series("other", number, reason="one slice only")
    volumes = [[header] for header in sorted(members, key=_order)] if packed else _volumes(members, name)
    if kind == "adc" and len(volumes) > 1:
        raise UserError(f"{name} (adc) has {len(volumes)} images of each slice; one is needed.")
    found = [_converted(volume, name, work) for volume in volumes]
    if not packed and any(part[0].shape[2:] != (len(volume), 1) for part, volume in zip(found, volumes, strict=True)):
        raise UserError(f"{name}: dcm2niix does not take all of its slices for one volume. Convert them to NIfTI.")
    array, affine, side, _ = found[0]
    for other in found[1:]:
        if difference := grid_difference(Volume(array, affine), Volume(other[0], other[1]), GRID_TOLERANCE_MM):
            raise UserError(f"{name} mixes volumes of different grids: {difference}.")
    weighted = any((b or 0) > B0_MAX for *_, values in found for b in values)
    b_values: list[float | None] = []
    for volume, (*_, known) in zip(volumes, found, strict=True):
        # For GE's b = 0 the header may state the b-value of the directions: dcm2niix looks at the gradient.
        values = known if weighted else [_b_value(volume[0])] * len(known)
        b_values += [0.0 if b is None and weighted else b for b in values]
    sources = min(volumes, key=lambda volume: _b_value(volume[0]) or 0)
    one = Series(
        kind, number, tuple(b_values), np.concatenate([part[0] for part in found], axis=-1), affine, tuple(sources),
        1e3 * side["EchoTime"] if "EchoTime" in side else None, str(side.get("PhaseEncodingDirection", "")),
    )  # fmt: skip
    if kind == "adc":
        return _mapped(one, side)
    if kind == "derived":
        return _judged(one, first)
    if not one.indices(b0=False):
        plain = any(b is not None for b in one.b_values)
        if not (_is_echo_planar(first) if plain else _says_diffusion(first)):
            return replace(one, kind="other", reason="no diffusion weighting")
    return one


def _judged(one: Series, header: Header) -> Series:
    """A derived image without specific tags: an ADC map if description and values say so, else unused."""
    words = f"{header.get('SeriesDescription', '')} {header.get('ProtocolName', '')}"
    if ADC_DESCRIPTION.search(words) and not NOT_ADC_DESCRIPTION.search(words) and unit_of(one.array):
        return replace(one, kind="adc", b_values=(None,) * one.array.shape[-1])
    reason = "derived from other images, and its tags do not say how"
    return replace(one, kind="other", reason=reason)


def _group(header: Header) -> tuple[str, ...]:
    """Key of the images of one conversion: dcm2niix would mix traces with directions."""
    words = sorted(_words(header) & (ADC_WORDS | TRACE_WORDS | OTHER_WORDS))
    trace = _is_trace(header)
    return (str(header.get("SeriesInstanceUID", "")), *words, str(trace), str(_echo_ms(header)))


def _kind(members: Sequence[Header]) -> tuple[str, str]:
    """Kind of a group, and the reason if that is ``other``; ``derived`` is to be judged by its values."""
    header = members[0]
    words = _words(header)
    if not words:
        return "other", "it has no ImageType, which states whether an image is measured or calculated"
    if found := words & OTHER_WORDS:
        return "other", f"a derived image of another kind ({sorted(found)[0]})"
    if words & ADC_WORDS:
        return "adc", ""
    if _is_trace(header):
        return "trace", ""
    if "DERIVED" in words and not words & {"DIFFUSION", "DWI"}:
        weighted = any((_b_value(one) or 0) > B0_MAX for one in members)
        if "SECONDARY" in words or not weighted:
            return "derived", ""
        words_of = f"{header.get('SeriesDescription', '')}"
        return ("derived", "") if ADC_DESCRIPTION.search(words_of) else ("trace", "")
    if "DERIVED" in words and ADC_DESCRIPTION.search(str(header.get("SeriesDescription", ""))):
        return "derived", ""
    return "dwi", ""


def _words(header: Header) -> set[str]:
    """Values of ImageType and of the first frame's type; ``ADC_SE`` counts as ``ADC``."""
    values = [str(word).upper() for word in header.get("ImageType") or []]
    for group in _functional_groups(header):
        for sequence in group.get("MRImageFrameTypeSequence") or []:
            values += [str(word).upper() for word in sequence.get("FrameType") or []]
    return {*values, *(value.split("_")[0] for value in values if value.startswith(("ADC_", "TRACE_")))}


def _functional_groups(header: Header) -> list[Header]:
    """Shared and first frame's groups of an enhanced image."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    return [*shared, *(header.get("PerFrameFunctionalGroupsSequence") or [])[:1]]


def _echo_ms(header: Header) -> float | None:
    echo = _element(header, "MREchoSequence", "EffectiveEchoTime") or None
    return _first_number(header.get("EchoTime") if echo is None else echo)


def _is_trace(header: Header) -> bool:
    """Whether a scanner has averaged the directions.

    According to ImageType, DiffusionDirectionality (0018,9075), Philips (2001,1004), or GE (0043,1030).
    """
    if _words(header) & TRACE_WORDS:
        return True
    if (_b_value(header) or 0) <= B0_MAX:
        return False
    directionality = str(_element(header, "MRDiffusionSequence", "DiffusionDirectionality") or "")
    philips = str(_private(header, "PHILIPS", 0x2001, 0x1004) or "")
    ge = str(_private(header, "GE", 0x0043, 0x1030) or "")
    return directionality.upper() == "ISOTROPIC" or philips.strip().upper() == "I" or ge in ("15", "16")


def _says_diffusion(header: Header) -> bool:
    return bool(_words(header) & {"DIFFUSION", "DWI", "TRACEW"})


def _is_echo_planar(header: Header) -> bool:
    """Whether an image without diffusion weighting may belong to a diffusion sequence: Philips and GE write b = 0 into
    every image."""
    words = header.get("ScanningSequence") or []
    words = [words] if isinstance(words, str) else list(words)
    factor = _first_number(_private(header, "PHILIPS", 0x2001, 0x1013))
    name = str(header.get("SequenceName") or "").lower()
    planar = str(header.get("EchoPlanarPulseSequence") or "") == "YES"
    standard = any(g.get("MRDiffusionSequence") for g in _functional_groups(header)) or "DiffusionBValue" in header
    return _says_diffusion(header) or "EP" in words or (factor or 0) > 1 or "ep" in name or planar or standard


def _b_value(header: Header) -> float | None:
    """The b-value of an image in s/mm²: the standard's, or the vendors' own elements.

    Siemens (0019,100C), GE (0043,1039), whose first number may have 1e9 added, Philips (2001,1003), United Imaging
    (0065,1009); or else Siemens' sequence name.
    """
    stated = [header.get("DiffusionBValue")]
    for group in (header, *_functional_groups(header)):
        stated += [sequence.get("DiffusionBValue") for sequence in group.get("MRDiffusionSequence") or []]
    if numbers := [value for value in map(_first_number, stated) if value is not None]:
        return min(numbers)
    for vendor, tag in (
        ("SIEMENS", (0x0019, 0x100C)),
        ("GE", (0x0043, 0x1039)),
        ("PHILIPS", (0x2001, 0x1003)),
        ("UIH", (0x0065, 0x1009)),
    ):
        if (number := _first_number(_private(header, vendor, *tag))) is not None:
            return number % 1e9 if vendor == "GE" else number
    match = re.search(r"ep_b(\d+)", str(header.get("SequenceName", "")))
    return float(match[1]) if match else None


def _private(header: Header, vendor: str, group: int, element: int) -> Any:
    """The value of a vendor's own element; None if the image names another vendor."""
    maker = str(header.get("Manufacturer") or vendor).upper()
    if vendor not in maker or (group, element) not in header:
        return None
    value = header[group, element].value
    if not isinstance(value, bytes):
        return value
    # An element of unknown type, in implicit VR or after anonymisation.
    kind = BINARY.get((group, element))
    if kind and len(value) == np.dtype(kind).itemsize:
        return np.frombuffer(value, kind)[0].item()
    return value.decode("ascii", "replace").strip(" \0")


def _first_number(value: Any) -> float | None:
    if not isinstance(value, str | int | float) and hasattr(value, "__iter__"):
        value = next(iter(value), None)
    try:
        number = float(str(value).split("\\")[0])
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _packed(header: Header) -> bool:
    """Whether one image holds several slices: a mosaic, a vendor's grid, an enhanced image."""
    return bool(_words(header) & {"MOSAIC", "VFRAME"}) or _int(header, "NumberOfFrames", 1) > 1


def _place(header: Header) -> list[str]:
    """Identity and position of an image, by which copies are recognised."""
    keywords = ("SeriesInstanceUID", "ImagePositionPatient", "InstanceNumber", "AcquisitionNumber", "EchoTime")
    return [*(str(header.get(keyword, "")) for keyword in keywords), str(_b_value(header))]


def _person(header: Header) -> str:
    """A name by its letters: ``DOE^JANE^^^`` is ``DOE^JANE``."""
    return re.sub(r"[\s^=]+", "^", str(header.get("PatientName") or "")).strip("^").upper()


def _int(header: Header, keyword: str, default: int = 0) -> int:
    return int(header.get(keyword) or default)


def _number(header: Header) -> int:
    return _int(header, "SeriesNumber")


def _numbers(header: Header, keyword: str, count: int) -> NDArray[np.float64]:
    """An element of several numbers.

    Raises:
        UserError: naming the series, if it is missing or has another count.
    """
    values = np.array([float(value) for value in _element(header, SEQUENCES[keyword], keyword)])
    if len(values) != count:
        what = f"has no {keyword}" if not len(values) else f"has a {keyword} that is not {count} numbers"
        raise UserError(f"Series {_number(header)}: an image {what}.")
    return values


def _normal(header: Header) -> NDArray[np.float64]:
    row, column = _numbers(header, "ImageOrientationPatient", 6).reshape(2, 3)
    return np.cross(row, column)


def _stack(members: Sequence[Header], name: str) -> dict[float, list[Header]]:
    """Single slices by their place along the normal (mm), least first.

    Raises:
        UserError: a slice is missing or occurs twice.
    """
    normal = _normal(members[0])
    found: dict[float, list[Header]] = {}
    for header in members:
        at = float(np.dot(normal, _numbers(header, POSITION, 3)))
        near = next((known for known in found if abs(known - at) < POSITION_MM), at)
        found.setdefault(near, []).append(header)
    order = sorted(found)
    counts = [len(found[at]) for at in order]
    usual = Counter(counts).most_common(1)[0][0]
    if odd := [i for i, count in enumerate(counts) if count != usual]:
        raise UserError(
            f"{name} has {counts[odd[0]]} images at slice {odd[0] + 1} of {len(order)}, and {usual} at others: slices "
            "are missing or double."
        )
    steps = np.diff(order)
    step = float(np.median(steps)) if len(steps) else 0.0
    if (off := np.abs(steps - step) > max(POSITION_MM, 0.02 * step)).any():
        where = int(off.argmax())
        raise UserError(
            f"{name} has a gap: slices {where + 1} and {where + 2} of {len(order)} are {steps[where]:.2f} mm apart, "
            f"others {step:.2f} mm. An image is missing."
        )
    return {at: found[at] for at in order}


def _order(header: Header) -> tuple[int, int]:
    return _int(header, "InstanceNumber"), _int(header, "AcquisitionNumber")


def _volumes(members: Sequence[Header], name: str) -> list[list[Header]]:
    """Single slices as volumes of one b-value, each in the order of Z. dcm2niix would go by the instance numbers, which
    may be missing, double, or in another order at each slice.

    Raises:
        UserError: where slices do not make up volumes.
    """
    geometry = np.array(
        [
            (*_numbers(h, "ImageOrientationPatient", 6), *_numbers(h, "PixelSpacing", 2), int(h.Rows), int(h.Columns))
            for h in members
        ]
    )
    if (kinds := len(np.unique(np.round(geometry / 2e-3), axis=0))) > 1 and (np.ptp(geometry, axis=0) > 1e-3).any():
        raise UserError(f"{name} mixes images of {kinds} orientations, sizes or spacings; they are not one volume.")
    places = _stack(members, name)
    order, usual = list(places), len(next(iter(places.values())))
    slices = _first_number(_private(members[0], "PHILIPS", 0x2001, 0x1018)) or 0
    if slices > len(order) and "ORIGINAL" in _words(members[0]):
        raise UserError(
            f"{name} has {len(order)} slices, and its header states {slices:g}. Slices are missing at an end; export "
            "the series again."
        )
    stated = _int(members[0], "ImagesInAcquisition")
    if stated > len(members) and stated % len(order) and "ORIGINAL" in _words(members[0]):
        raise UserError(
            f"{name} has {len(members)} images of {len(order)} slices, and its header states {stated} images. Slices "
            "are missing at an end; export the series again."
        )
    normal, origin = _normal(members[0]), _numbers(places[order[0]][0], "ImagePositionPatient", 3)
    for at in order:
        shift = _numbers(places[at][0], "ImagePositionPatient", 3) - origin
        if np.linalg.norm(shift - normal * np.dot(normal, shift)) > 0.5:
            raise UserError(
                f"{name} is sheared (a gantry tilt): its slices are shifted against each other. "
                "Export or resample it without tilt."
            )
    rows = [sorted(places[at], key=_order) for at in order]
    double = any(len({_order(header) for header in row}) < usual for row in rows)
    if double or not _of_one_b_value(rows):
        # Which direction an image has does not matter: those of one b-value are averaged.
        rows = [sorted(row, key=lambda header: (_b_value(header) or 0, *_order(header))) for row in rows]
        known = {_b_value(header) for row in rows for header in row}
        if not _of_one_b_value(rows) or (double and (None in known or len(known) < 2)):
            raise UserError(
                f"{name} has {usual} images of each slice, and neither InstanceNumber nor the b-values tell which of "
                "them are one volume. Export the series again, or convert it to NIfTI."
            )
    return [list(volume) for volume in zip(*rows, strict=True)]


def _of_one_b_value(rows: Sequence[Sequence[Header]]) -> bool:
    """Whether the images of each column have one b-value, as far as scanners state it."""
    stated = np.array([[-1e3 if (b := _b_value(header)) is None else b for header in row] for row in rows])
    return bool((np.ptp(stated, axis=0) <= np.maximum(B0_MAX, 0.05 * stated.max(0))).all())


def _converted(
    members: Sequence[Header], name: str, work: Path
) -> tuple[NDArray[np.float32], NDArray[np.float64], dict[str, Any], list[float | None]]:
    """Result of dcm2niix for a volume or a file: values (X, Y, Z, N), affine, sidecar, b-values (None if unknown)."""
    import dcm2niix

    if len(offsets := {float(header.get("RescaleIntercept") or 0) for header in members}) > 1:
        raise UserError(f"{name}: the images of one volume have different rescale intercepts ({sorted(offsets)}).")
    with tempfile.TemporaryDirectory(dir=work) as place:
        into, out = Path(place) / "in", Path(place) / "out"
        into.mkdir()
        out.mkdir()
        steps = np.diff([_int(header, "InstanceNumber") for header in members])
        for number, header in enumerate(members):
            source, link = Path(header.filename).resolve(), into / f"{number:06d}.dcm"
            if hasattr(header, "frames"):
                _cut(header, link)
                continue
            if not ((steps > 0).all() or (steps < 0).all()):  # dcm2niix splits or drops Siemens' slices by it
                image = require_pydicom().dcmread(source)
                image.InstanceNumber = number + 1
                image.save_as(link)
                continue
            try:
                link.symlink_to(source)
            except OSError:  # Windows without the privilege
                shutil.copyfile(source, link)
        options = "-g i -b y -ba y -z n -w 2 -f volume -o".split()  # noqa: SIM905
        command = [dcm2niix.bin, *options, str(out), str(into)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{name}: dcm2niix was stopped after {TIMEOUT_S} s.") from error
        files = sorted(path for path in out.glob("*.nii") if path.with_suffix(".json").exists())
        if not files:
            raise UserError(
                f"{name}: dcm2niix makes no volume of its images (exit code {done.returncode}). The files are damaged, "
                "or compressed in a way that it does not know."
            )
        loaded: dict[Path, Any] = {path: nib.load(path) for path in files}
        stacks = {path: image for path, image in loaded.items() if image.ndim in (3, 4) and image.shape[2] > 1}
        if not stacks:
            raise UserError(
                f"{name}: dcm2niix finds no volume of several slices. A mosaic or a grid of slices needs the vendor's "
                "private elements: export it with them."
            )
        if len(stacks) > 1:
            raise UserError(
                f"{name}: dcm2niix makes {len(stacks)} volumes of different kinds. Convert them to NIfTI and choose."
            )
        ((path, image),) = stacks.items()
        values = np.asarray(image.dataobj, dtype=np.float32)
        affine = np.array(image.affine, dtype=np.float64)
        try:
            side = json.loads(path.with_suffix(".json").read_text(encoding="utf-8", errors="replace"))
        except ValueError as error:
            raise UserError(f"{name}: dcm2niix's description cannot be read; the headers are damaged.") from error
        file = path.with_suffix(".bval")
        b_values: list[float | None] = (
            [float(word) for word in file.read_text(encoding="utf-8").split()] if file.exists() else []
        )
    if not np.isfinite(affine).all():
        raise UserError(f"{name}: dcm2niix finds no geometry in its images.")
    values = values.reshape(*values.shape[:3], -1)
    values, affine = _flipped(values, affine, 1)  # dcm2niix reverses the rows
    if np.linalg.det(affine[:3, :3]) < 0:
        values, affine = _flipped(values, affine, 2)
    if b_values and len(b_values) != values.shape[-1]:
        raise UserError(f"{name}: dcm2niix finds {len(b_values)} b-values for {values.shape[-1]} volumes.")
    return values, affine, side, b_values or [None] * values.shape[-1]


def _flipped(values: NDArray[Any], affine: NDArray[np.float64], axis: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    turned = affine.copy()
    turned[:3, 3] += affine[:3, axis] * (values.shape[axis] - 1)
    turned[:3, axis] *= -1
    return np.flip(values, axis), turned


def _mapped(one: Series, side: dict[str, Any]) -> Series:
    """An ADC map in the displayed values, or in those of a real world value mapping that states its unit (UCUM).

    dcm2niix scales Philips' values to a scale common to all images, which is not that of an ADC map.
    """
    array = one.array
    if side.get("UsePhilipsFloatNotDisplayScaling") and side.get("PhilipsScaleSlope"):
        array = array * (side["PhilipsRescaleSlope"] * side["PhilipsScaleSlope"])
    mappings = [_element(source, "RealWorldValueMappingSequence") for source in one.sources]
    first = mappings[0][0] if mappings[0] else {}
    units = first.get("MeasurementUnitsCodeSequence")
    scale = UNITS.get(str(units[0].get("CodeValue", ""))) if units else None
    if scale is None or "RealWorldValueSlope" not in first or not all(mappings):
        return replace(one, array=array)
    layers = []
    for source, mapping in zip(one.sources, mappings, strict=True):  # one for all slices of an enhanced image
        transform = (_element(source, "PixelValueTransformationSequence") or [source])[0]
        slope, intercept = float(transform.get("RescaleSlope") or 1), float(transform.get("RescaleIntercept") or 0)
        factor = float(mapping[0].RealWorldValueSlope) / slope
        layers.append((factor, float(mapping[0].get("RealWorldValueIntercept") or 0) - factor * intercept))
    factors, offsets = np.array(layers, dtype=np.float32).T[:, :, None]
    return replace(one, array=array * factors + offsets, unit=scale)


def _element(header: Header, sequence: str, keyword: str = "") -> Any:
    """A sequence of an image or of its functional groups, or an element there; empty if there is none."""
    if keyword and header.get(keyword):
        return header[keyword].value
    found: Any = next(
        (group[sequence].value for group in (header, *_functional_groups(header)) if group.get(sequence)), []
    )
    return found[0].get(keyword) or () if keyword and found else found
