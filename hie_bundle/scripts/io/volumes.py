"""Volumes: reading untrusted files, checks, and writing.

MONAI loads files through ITK and nibabel, which may return wrong values from a truncated, overlong or contradictory
file, or allocate terabytes. This module checks a file before it allocates memory.
"""

from __future__ import annotations

import errno
import gzip
import math
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import one_line
from .files import refuse_changed

EXTENSIONS = (".nii.gz", ".nii", ".mha")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MAX_HEADER_BYTES = 1 << 24  # header extensions of dcmstack hold the whole DICOM header
DEFLATE_RATIO = 1032  # deflate cannot compress better, so a larger declared size is false
MAX_BYTES = 1 << 31  # maximum size of a volume in memory

# element types of MetaImage that ITK's Python package can read
META_TYPES = {
    "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FLAG = "True|False"
# fields of a MetaImage's header, as regular expressions; other fields may have any value
_META_REQUIRED = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "DimSize": r"[1-9]\d*(?: +[1-9]\d*){2}",
    "ElementType": "|".join(META_TYPES),
    "ElementSpacing": rf"{_NUMBER}(?: +{_NUMBER}){{2}}",
    "Offset": rf"{_NUMBER}(?: +{_NUMBER}){{2}}",
    "TransformMatrix": rf"{_NUMBER}(?: +{_NUMBER}){{8}}",
    "ElementDataFile": "LOCAL|Local|local",
}
_META_OPTIONAL = {
    "CompressedData": _FLAG,
    "CompressedDataSize": r"\d+",
    "BinaryDataByteOrderMSB": _FLAG,
    "ElementByteOrderMSB": _FLAG,
    "ElementNumberOfChannels": "1",
    "HeaderSize": "0",
    "DistanceUnits": "mm",
    "ElementToIntensityFunctionSlope": r"1(?:\.0*)?",
    "ElementToIntensityFunctionOffset": r"[-+]?0(?:\.0*)?",
    **dict.fromkeys(("Position", "Origin", "Rotation", "Orientation"), "(?!)"),  # synonyms of the geometry
}


class VolumeError(ValueError):
    """An unusable volume. The message gives the reason without the file's name."""


@dataclass(frozen=True)
class Volume:
    """A volume and its position."""

    array: NDArray[Any]  # (X, Y, Z), or (X, Y, Z, C) for a stacked file; rescaled by the file's slope and intercept
    affine: NDArray[np.float64]  # (4, 4) from voxel indices to RAS+ millimetres, as in nibabel
    header_spacing_mm: tuple[float, ...] | None = None  # along each axis, from the header; None without a file

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each axis: the header's, which has no rounding error, if it matches the affine's."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        if self.header_spacing_mm is None:
            return sizes
        return np.where(np.isclose(self.header_spacing_mm, sizes, rtol=1e-5, atol=0), self.header_spacing_mm, sizes)


def checked_volume(array: Any, affine: ArrayLike, header_spacing_mm: tuple[float, ...] | None = None) -> Volume:
    """Check an array (3D or 4D, real numbers or booleans) and its affine.

    Raises:
        VolumeError: the array is masked or not numeric, or the affine is sheared or invalid.
    """
    if np.ma.isMaskedArray(array):
        raise VolumeError("is a masked array; replace the masked voxels with array.filled(0)")
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise VolumeError(f"has voxels of type {array.dtype}, not real numbers")
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise VolumeError(f"has shape {array.shape}; three or four dimensions are needed")
    if min(array.strides) < 0:  # PyTorch rejects negative strides
        array = array.copy()
    try:
        affine = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise VolumeError("has an affine that does not hold numbers") from error
    if affine.shape != (4, 4) or not np.array_equal(affine[3], [0, 0, 0, 1]):
        raise VolumeError(f"has an affine of shape {affine.shape} or with a last row other than 0 0 0 1")
    if not np.isfinite(affine).all():
        raise VolumeError("has a position that is NaN or infinite")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() <= 0:
        raise VolumeError(f"has a voxel size of {_mm(spacing)}")
    axes = affine[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        raise VolumeError("has axes that are not at right angles (sheared)")
    return Volume(array, affine, header_spacing_mm)


def _require_size(declared: int, possible: int, max_bytes: int) -> None:
    """Reject a declared size in bytes above ``max_bytes``, or above the maximum for the stored data (``possible``)."""
    if declared > possible:
        raise VolumeError(
            f"is truncated: its header declares {declared} bytes of voxels, the file has at most {possible}"
        )
    if declared > max_bytes:
        raise VolumeError(f"declares {declared} bytes of voxels, more than the limit of {max_bytes}")


def read_volume(path: str | Path, max_bytes: int = MAX_BYTES) -> Volume:
    """Read a ``.mha``, ``.nii`` or ``.nii.gz`` file whose voxels take at most ``max_bytes`` in memory.

    Raises:
        FileNotFoundError: there is no such file.
        VolumeError: the file has another format, is damaged, or contradicts itself.
    """
    path = Path(path)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # ITK would end the program when it reads the mask of this name
        remedy = "rename it" if sys.getfilesystemencoding() == "utf-8" else "rename it or set PYTHONUTF8=1"
        raise VolumeError(f"has a name that is not UTF-8; {remedy}") from error
    try:
        path.stat()
        extension = extension_of(path).lower()
        if not extension:
            raise VolumeError("is not a .mha, .nii or .nii.gz file")
        if not path.is_file():
            raise VolumeError("is not a regular file")
        return (_read_meta_image if extension == ".mha" else _read_nifti)(path, max_bytes)
    except (VolumeError, FileNotFoundError, MemoryError):
        raise
    except EOFError as error:
        raise VolumeError("is truncated") from error
    except Exception as error:  # permissions, a faulty disk, damaged compression, various errors of nibabel
        raise VolumeError(f"cannot be read ({getattr(error, 'strerror', None) or one_line(error)})") from error


def read_checked(path: str | Path, max_bytes: int = MAX_BYTES) -> Volume:
    """Call :func:`read_volume`; raise a UserError if the file changed after its check."""
    refuse_changed(path)
    volume = read_volume(path, max_bytes)
    refuse_changed(path)  # during the read
    return volume


def _read_meta_image(path: Path, max_bytes: int) -> Volume:
    """Read without ITK, which ignores truncation, scale and units."""
    with path.open("rb") as file:
        header = _meta_header(file)
        shape = _numbers(header["DimSize"], int)
        msb = "True" in (header.get("BinaryDataByteOrderMSB"), header.get("ElementByteOrderMSB"))
        dtype = np.dtype((">" if msb else "<") + META_TYPES[header["ElementType"]])
        declared = math.prod(shape) * dtype.itemsize
        stored = path.stat().st_size - file.tell()
        packed = header.get("CompressedData") == "True"
        if packed and int(header.get("CompressedDataSize", -1)) != stored:  # ITK returns a wrong array if it is absent
            size = header.get("CompressedDataSize", "an unknown number of")
            raise VolumeError(f"is truncated or overlong: it holds {stored} of {size} compressed bytes")
        _require_size(declared, stored * (DEFLATE_RATIO if packed else 1), max_bytes)
        if not packed and stored != declared:
            raise VolumeError(f"holds {stored - declared} bytes more than its header declares")
        data = file.read()
    if packed:
        stream = zlib.decompressobj()
        data = stream.decompress(data, declared + 1)
        if stream.unused_data or not stream.eof or len(data) != declared:
            raise VolumeError(f"holds {len(data)} bytes of voxels; its header declares {declared}")
    array = np.frombuffer(data, dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="))
    spacing = _numbers(header["ElementSpacing"])
    axes = np.array(_numbers(header["TransformMatrix"])).reshape(3, 3).T  # the file has one axis per row
    return checked_volume(array, affine_from_lps(spacing, axes, _numbers(header["Offset"])), spacing)


def _meta_header(file: BinaryIO) -> dict[str, str]:
    """The header's fields; leaves ``file`` at the first voxel."""
    header: dict[str, str] = {}
    while "ElementDataFile" not in header:
        line = file.readline(1 << 16)
        if not line.endswith(b"\n") or file.tell() > MAX_HEADER_BYTES:
            raise VolumeError("has no complete MetaImage header")
        key, equals, value = (part.strip() for part in line.decode("ascii", "replace").partition("="))
        if not equals or not key or key in header:
            raise VolumeError(f"has a header line that is repeated or not 'key = value': {line[:60]!r}")
        header[key] = value
    if missing := [key for key in _META_REQUIRED if key not in header]:
        raise VolumeError(f"has no {', '.join(missing)} in its header")
    if header["ElementType"] not in META_TYPES:
        raise VolumeError(f"has ElementType {header['ElementType'][:60]}; convert it to one of {', '.join(META_TYPES)}")
    for key, allowed in {**_META_REQUIRED, **_META_OPTIONAL}.items():
        if key in header and not re.fullmatch(allowed, header[key], re.ASCII):
            raise VolumeError(f"has {key} = {header[key][:60]} in its header, which is not supported")
    if len({header[key] for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB") if key in header}) > 1:
        raise VolumeError("contradicts itself in BinaryDataByteOrderMSB and ElementByteOrderMSB")
    if min(_numbers(header["ElementSpacing"])) <= 0:
        raise VolumeError(f"has ElementSpacing {header['ElementSpacing']}")
    return header


def _numbers(text: str, kind: Any = float) -> tuple[Any, ...]:
    return tuple(map(kind, text.split()))


def affine_from_lps(spacing: ArrayLike, direction: ArrayLike, origin: ArrayLike) -> NDArray[np.float64]:
    """Affine (RAS+) from ITK's voxel size, direction cosines (3, 3; one axis per column) and origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction, dtype=float).reshape(3, 3) * np.asarray(spacing, dtype=float)
    affine[:3, 3] = origin
    return LPS_TO_RAS @ affine


def _read_nifti(path: Path, max_bytes: int) -> Volume:
    import nibabel as nib

    size = path.stat().st_size
    packed = path.name.lower().endswith(".gz")
    with gzip.open(path) if packed else path.open("rb") as file:
        start = file.read(540)
        image_class: Any = nib.Nifti2Image if start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
        fields = image_class.header_class.template_dtype.itemsize
        raw = image_class.header_class(start[:fields], check=False)
        header = image_class.header_class(start[:fields])
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        if header["magic"].item() not in (b"n+1", b"n+2"):
            raise VolumeError("is not a single-file NIfTI")
        if len(shape) not in (3, 4) or min(shape) < 1:
            raise VolumeError(f"has dimensions {tuple(int(n) for n in shape)}, not 3 or 4")
        stated = raw["pixdim"][1:4]
        if not (np.isfinite(stated) & (stated != 0)).all():  # nibabel replaces 0 with 1 mm
            raise VolumeError(f"has a voxel size of {_mm(stated)} in its header (pixdim)")
        offset = float(header["vox_offset"])
        if not (math.isfinite(offset) and 0 <= offset <= MAX_HEADER_BYTES):
            raise VolumeError(f"has an impossible voxel offset in its header (vox_offset {offset})")
        declared = int(offset) + math.prod(int(n) for n in shape) * dtype.itemsize
        _require_size(declared, size * (DEFLATE_RATIO if packed else 1), max_bytes)
        data = start + file.read(max(0, declared + 1 - len(start)))  # + 1, so that gzip verifies its checksum
    if len(data) != declared:
        wrong = "is truncated" if len(data) < declared else "is longer than its header declares"
        raise VolumeError(f"{wrong}: {len(data)} of {declared} bytes")
    image = image_class.from_bytes(data)
    return checked_volume(np.asanyarray(image.dataobj), *nifti_grid(image))


def nifti_grid(image: Any) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """Affine and voxel size of a nibabel image.

    Raises:
        VolumeError: the header has no position, two positions, a unit other than mm, or another voxel size than the
            affine.
    """
    header, affine = image.header, image.affine
    nifti = "qform_code" in getattr(header, "keys", dict)()
    if nifti:
        if header.get_xyzt_units()[0] not in ("mm", "unknown"):
            raise VolumeError(f"has lengths in {header.get_xyzt_units()[0]}, not mm")
        if not header["qform_code"] > 0 and not header["sform_code"] > 0:
            raise VolumeError("does not state the position of its voxels (qform and sform codes are 0)")
    elif affine is None or type(header).__name__.endswith("AnalyzeHeader"):
        raise VolumeError("does not state the position of its voxels")
    spacing = tuple(float(size) for size in header.get_zooms()[:3])
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if np.isfinite(sizes).all() and not np.allclose(sizes, spacing, rtol=1e-3, atol=0):
        raise VolumeError(f"contradicts itself: voxels of {_mm(spacing)} by pixdim, {_mm(sizes)} by its sform or qform")
    if nifti and header["qform_code"] == header["sform_code"]:  # two positions in one space: readers differ
        shift = corner_shift_mm(header.get_qform(), affine, image.shape[:3])
        if shift > 0.1:
            raise VolumeError(f"contradicts itself: qform and sform have equal codes but differ by {shift:.3g} mm")
    return affine, spacing


def corner_shift_mm(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """Largest distance in mm between the corner voxels of two grids of equal shape."""
    ends = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(shape)[:, None] - 1)
    return float(np.linalg.norm(((other - one) @ np.vstack([ends, np.ones(8)]))[:3], axis=0).max())


def extension_of(path: str | Path) -> str:
    """The file's extension if it is one of :data:`EXTENSIONS`, with its case preserved; else empty."""
    name = Path(path).name
    return next((name[-len(known) :] for known in EXTENSIONS if name.lower().endswith(known)), "")


def write_volume(path: str | Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write an array (X, Y, Z), or (X, Y, Z, C) as NIfTI, with an unambiguous geometry."""
    if extension_of(path).lower() == ".mha":
        write_itk(to_itk(array, affine), path)
        return
    import nibabel as nib

    nib.save(to_nifti(array, affine), path)


def write_itk(image: Any, path: str | Path, **options: Any) -> None:
    """Write a SimpleITK image, compressed; raise an OSError with the file's name on failure."""
    import SimpleITK as sitk

    try:
        sitk.WriteImage(image, str(path), useCompression=True, **options)
    except RuntimeError as error:  # ITK's message ends with the system's reason
        raise OSError(errno.EIO, str(error).rpartition("Reason: ")[2].strip(), str(path)) from error


def to_itk(array: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """An array (X, Y, Z) with its affine, (4, 4) to RAS+ mm, as a SimpleITK image; bool becomes uint8."""
    import SimpleITK as sitk

    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def to_nifti(array: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """An array (X, Y, Z) or (X, Y, Z, C) with its affine, (4, 4) to RAS+ mm, as a nibabel image."""
    import nibabel as nib

    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def _mm(values: ArrayLike) -> str:
    return " × ".join(f"{value:.4g}" for value in np.asarray(values)) + " mm"
