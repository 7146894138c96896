"""Folders of DICOM images as volumes: sorted by series, b-value and position; what cannot be a volume is refused.

Nothing that tells who a patient is, descriptions included, goes to the log or into a message: series are named by their
numbers.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..io.volumes import LPS_TO_RAS, Volume
from ..runtime.errors import UserError

__all__ = ["Stack", "require_highdicom", "require_pydicom", "scan", "stacks_of"]

logger = logging.getLogger(__name__)

POSITION_MM = 0.05  # slices whose distances differ by more than this, or 2 %, are not one volume
Header = Any  # pydicom.Dataset; the package is an extra


@dataclass(frozen=True)
class Stack:
    """Slices that make up one volume, or several of one kind over the same positions.

    Attributes:
        kind: ``adc`` (a scanner's map), or ``dwi`` (an image with or without diffusion weighting).
        series: its number.
        b_value: s/mm² as the header states it; None where it says nothing.
        slices: headers with pixels by volume, each in the order of the volume's Z.
    """

    kind: str
    series: int
    b_value: float | None
    slices: list[list[Header]] = field(repr=False)

    @property
    def name(self) -> str:
        weighting = "" if self.kind == "adc" or self.b_value is None else f", b = {self.b_value:g}"
        return f"series {self.series} ({self.kind}{weighting})"

    def grid(self) -> Volume:
        """Where the voxels lie; the values are all 0."""
        first, count = self.slices[0][0], len(self.slices[0])
        shape = (int(first.Columns), int(first.Rows), count)
        return Volume(np.broadcast_to(np.uint8(0), shape), _affine(self.slices[0]))

    def volumes(self) -> list[Volume]:
        """The volumes in the unit of the scanner's own values.

        Raises:
            UserError: if pixels cannot be decoded.
        """
        affine = _affine(self.slices[0])
        return [Volume(np.stack([_pixels(one, self.name) for one in slices], -1), affine) for slices in self.slices]


def require_pydicom() -> Any:
    """pydicom.

    Raises:
        UserError: where it is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise UserError("DICOM needs pydicom: pip install pydicom") from error
    return pydicom


def require_highdicom() -> Any:
    """highdicom, which writes DICOM, kept from logging the images' UIDs.

    Raises:
        UserError: where it or pydicom is not installed.
    """
    require_pydicom()
    try:
        import highdicom
    except ImportError as error:
        raise UserError("Writing DICOM needs highdicom: pip install highdicom") from error
    logging.getLogger("highdicom").setLevel(logging.WARNING)
    return highdicom


def scan(folder: str | Path) -> list[Header]:
    """All MR images below a folder; an image that is there twice is taken once.

    Args:
        folder: with DICOM files of any name; other files are passed over.

    Raises:
        UserError: without an MR image, for images of more than one patient or study, and for what this bundle does not
            read: several frames a file, mosaics.
    """
    pydicom = require_pydicom()
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder.")
    headers: dict[str, Header] = {}
    others: Counter[str] = Counter()
    for path in sorted(path for path in root.rglob("*") if path.is_file() and path.name.upper() != "DICOMDIR"):
        try:
            header = pydicom.dcmread(path)
        except pydicom.errors.InvalidDicomError:
            others["files that are not DICOM"] += 1
            continue
        except Exception as error:  # pydicom raises what a damaged file makes it meet
            raise UserError(f"{path} is damaged: it cannot be read as DICOM.") from error
        image = header.get("SOPClassUID") in (pydicom.uid.MRImageStorage, pydicom.uid.EnhancedMRImageStorage)
        if image and "PixelData" not in header:
            raise UserError(f"{path} is damaged: its pixels are missing.")
        if header.get("Modality") != "MR" or "PixelData" not in header:
            others["objects that are no MR image"] += 1
            continue
        uid = str(header.get("SOPInstanceUID", path))
        if uid in headers:
            others["copies of an image"] += 1
        headers.setdefault(uid, header)
    found = list(headers.values())
    if not found:
        raise UserError(f"{root} holds no DICOM image of MR.")
    for what, count in others.items():
        logger.info("%d %s left out.", count, what)
    _refuse_mixed(found, root)
    _refuse_packed(found)
    return found


def stacks_of(headers: Sequence[Header], series: Sequence[int] = ()) -> list[Stack]:
    """Volumes among the images: ADC maps, and diffusion images by b-value; other series are left out.

    Args:
        headers: of :func:`scan`.
        series: numbers of the series to take; empty for all.

    Raises:
        UserError: naming a series with gaps, missing or double slices, or with more than one geometry.
    """
    if unknown := set(series) - {_number(header) for header in headers}:
        there = sorted({_number(header) for header in headers})
        raise UserError(f"There is no series {sorted(unknown)[0]}; there are {', '.join(map(str, there))}.")
    groups: dict[tuple[str, str, float | None], list[Header]] = {}
    passed: set[int] = set()
    for header in headers:
        kind = _kind(header)
        if (series and _number(header) not in series) or kind == "other":
            passed.add(_number(header))
            continue
        b_value = None if kind == "adc" else b_value_of(header)
        groups.setdefault((str(header.get("SeriesInstanceUID", "")), kind, b_value), []).append(header)
    if passed:
        logger.info("Series left out: %s.", ", ".join(map(str, sorted(passed))))
    stacks = []
    for (_, kind, b_value), members in groups.items():
        stack = Stack(kind, _number(members[0]), b_value, [])
        stack.slices.extend(_sorted(members, stack.name))
        if kind == "adc" and len(stack.slices) > 1:
            raise UserError(f"{stack.name.capitalize()} has {len(stack.slices)} images of each slice; one is needed.")
        stacks.append(stack)
    return sorted(stacks, key=lambda stack: (stack.series, stack.b_value or 0))


def b_value_of(header: Header) -> float | None:
    """The b-value of an image in s/mm²: the standard's, or the vendors' own elements.

    Siemens (0019,100C), GE (0043,1039), whose first number may carry 1e9 on top, Philips (2001,1003), United Imaging
    (0065,1009); at last Siemens' sequence name.
    """
    if (value := header.get("DiffusionBValue")) is not None:
        return float(value)
    for sequence in header.get("MRDiffusionSequence") or []:
        if sequence.get("DiffusionBValue") is not None:
            return float(sequence.DiffusionBValue)
    vendor = str(header.get("Manufacturer", "")).upper()
    for name, tag in (
        ("SIEMENS", (0x0019, 0x100C)),
        ("GE", (0x0043, 0x1039)),
        ("PHILIPS", (0x2001, 0x1003)),
        ("UIH", (0x0065, 0x1009)),
    ):
        if name in vendor and tag in header and (number := _first_number(header[tag].value)) is not None:
            return number % 1e9 if name == "GE" else number
    match = re.search(r"ep_b(\d+)", str(header.get("SequenceName", "")))
    return float(match[1]) if match else None


def adc_of(stack: Stack) -> tuple[Volume, float | None]:
    """A scanner's ADC map, and the factor to 1e-6 mm²/s if the header states the unit.

    A real world value mapping with a unit (UCUM) counts before the rescaled values.

    Raises:
        UserError: if pixels cannot be decoded.
    """
    first = stack.slices[0][0]
    mapping = next(iter(first.get("RealWorldValueMappingSequence") or []), None)
    units = next(iter(mapping.get("MeasurementUnitsCodeSequence") or []), None) if mapping else None
    code = str(units.get("CodeValue", "")) if units else ""
    scale = {"um2/s": 1.0, "10-6.mm2/s": 1.0, "10-3.mm2/s": 1e3, "mm2/s": 1e6, "10*-6.mm2/s": 1.0}.get(code)
    if mapping is None or scale is None or "RealWorldValueSlope" not in mapping:
        return stack.volumes()[0], None
    layers = []
    for header in stack.slices[0]:
        own = header.RealWorldValueMappingSequence[0]
        stored = _stored(header, stack.name)
        layers.append(stored * float(own.RealWorldValueSlope) + float(own.get("RealWorldValueIntercept", 0)))
    logger.info("The ADC map's unit is stated: %s.", code)
    return Volume(np.stack(layers, -1), _affine(stack.slices[0])), scale


def _kind(header: Header) -> str:
    """``adc``, ``dwi`` or ``other``."""
    words = {str(word).upper() for word in header.get("ImageType") or []}
    words |= set(re.findall(r"[A-Z]+", str(header.get("SeriesDescription", "")).upper()))
    if words & {"EADC", "EXPONENTIAL", "FA", "TENSOR", "COLFA", "LOCALIZER", "PHASE"}:
        return "other"
    if words & {"ADC", "ADC_UNSPECIFIED", "DIFFUSIVITY"}:
        return "adc"
    diffusion = words & {"DIFFUSION", "TRACEW", "DWI", "TRACE", "DIFF"} or b_value_of(header) is not None
    return "dwi" if diffusion else "other"


def _refuse_mixed(headers: Iterable[Header], root: Path) -> None:
    patients = {(str(h.get("PatientID", "")), str(h.get("PatientName", ""))) for h in headers}
    if len(patients) > 1:
        raise UserError(f"{root} holds images of {len(patients)} patients; each needs a folder of its own.")
    studies = {str(header.get("StudyInstanceUID", "")) for header in headers}
    if len(studies) > 1:
        raise UserError(f"{root} holds images of {len(studies)} studies; each needs a folder of its own.")


def _refuse_packed(headers: Iterable[Header]) -> None:
    for header in headers:
        if "MOSAIC" in [str(word).upper() for word in header.get("ImageType") or []]:
            raise UserError(
                f"Series {_number(header)} is a mosaic: all slices in one image. Convert it to NIfTI with dcm2niix, or "
                "export it from the scanner as single slices."
            )
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise UserError(
                f"Series {_number(header)} has several frames in a file (enhanced DICOM). Export it as classic single "
                "slices, or convert it to NIfTI with dcm2niix."
            )


def _sorted(headers: Sequence[Header], name: str) -> list[list[Header]]:
    """Slices by volume, each from the first position to the last along the slices' normal."""
    for header in headers:
        missing = [
            word for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing") if not header.get(word)
        ]
        if missing:
            raise UserError(f"{name.capitalize()}: an image has no {missing[0]}.")
    geometries = {
        (*(round(float(v), 3) for v in (*h.ImageOrientationPatient, *h.PixelSpacing)), int(h.Rows), int(h.Columns))
        for h in headers
    }
    if len(geometries) > 1:
        raise UserError(
            f"{name.capitalize()} mixes images of {len(geometries)} orientations, sizes or spacings; they are not one "
            "volume."
        )
    normal = _normal(headers[0])
    positions: dict[float, list[Header]] = {}
    for header in headers:
        at = float(np.dot(normal, np.array(header.ImagePositionPatient, dtype=float)))
        near = next((known for known in positions if abs(known - at) < POSITION_MM), at)
        positions.setdefault(near, []).append(header)
    for there in positions.values():
        there.sort(key=lambda header: int(header.get("InstanceNumber") or 0))
    order = sorted(positions)
    counts = Counter(len(positions[at]) for at in order)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = next(i for i, at in enumerate(order) if len(positions[at]) != usual)
        raise UserError(
            f"{name.capitalize()} has {len(positions[order[odd]])} images at slice {odd + 1} of {len(order)}, and "
            f"{usual} at others: slices are missing or double."
        )
    if len(order) < 2:
        raise UserError(f"{name.capitalize()} has one slice only.")
    steps = np.diff(order)
    step = float(np.median(steps))
    if (off := np.abs(steps - step) > max(POSITION_MM, 0.02 * step)).any():
        where = int(off.argmax())
        raise UserError(
            f"{name.capitalize()} has a gap: slices {where + 1} and {where + 2} of {len(order)} are {steps[where]:.2f} "
            f"mm apart, others {step:.2f} mm. An image is missing."
        )
    origin = np.array(positions[order[0]][0].ImagePositionPatient, dtype=float)
    for at in order:
        shift = np.array(positions[at][0].ImagePositionPatient, dtype=float) - origin
        if np.linalg.norm(shift - normal * np.dot(normal, shift)) > 0.5:
            raise UserError(f"{name.capitalize()} is sheared (a gantry tilt): its slices do not lie above each other.")
    return [[positions[at][i] for at in order] for i in range(next(iter(counts)))]


def _normal(header: Header) -> NDArray[np.float64]:
    row, column = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
    return np.cross(row, column)


def _affine(slices: Sequence[Header]) -> NDArray[np.float64]:
    """From voxel indices (column, row, slice) to RAS+ mm."""
    first, last = slices[0], slices[-1]
    row, column = np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
    origin = np.array(first.ImagePositionPatient, dtype=float)
    distance = np.dot(_normal(first), np.array(last.ImagePositionPatient, dtype=float) - origin) / (len(slices) - 1)
    lps = np.eye(4)
    lps[:3, 0] = row * float(first.PixelSpacing[1])
    lps[:3, 1] = column * float(first.PixelSpacing[0])
    lps[:3, 2] = _normal(first) * distance
    lps[:3, 3] = origin
    return LPS_TO_RAS @ lps


def _stored(header: Header, name: str) -> NDArray[np.float32]:
    try:
        return np.asarray(header.pixel_array, dtype=np.float32).T
    except Exception as error:  # decoders raise what they meet
        raise UserError(
            f"{name.capitalize()}: the pixels of an image cannot be decoded. A compressed series needs a decoder for "
            "pydicom (pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg), or export it without compression."
        ) from error


def _pixels(header: Header, name: str) -> NDArray[np.float32]:
    """Values of one slice (X, Y): rescaled; Philips' on the scale that its images have in common."""
    stored = _stored(header, name)
    slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
    values = stored * slope + intercept
    if "PHILIPS" in str(header.get("Manufacturer", "")).upper() and (0x2005, 0x100E) in header:
        # The rescaled values are for display, with a slope of each image's own.
        scale = _first_number(header[0x2005, 0x100E].value)
        if scale:
            values = values / (slope * scale)
    return np.asarray(values, dtype=np.float32)


def _first_number(value: Any) -> float | None:
    if isinstance(value, bytes):  # an element of unknown type, in implicit VR or after anonymisation
        text = value.decode("latin-1").strip(" \0")
        try:
            return float(text.split("\\")[0])
        except ValueError:
            return float(np.frombuffer(value, "<f8" if len(value) == 8 else "<f4")[0]) if len(value) in (4, 8) else None
    if isinstance(value, list | tuple) or (hasattr(value, "__iter__") and not isinstance(value, str)):
        value = next(iter(value), None)
    try:
        return None if value is None else float(str(value).split("\\")[0])
    except ValueError:
        return None


def _number(header: Header) -> int:
    return int(header.get("SeriesNumber") or 0)
