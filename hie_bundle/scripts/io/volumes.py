"""Reading one volume from an untrusted file: everything is checked before memory is allocated for it. And writing one.

ITK and nibabel, by which MONAI loads these files, are lenient: a truncated, overlong or contradictory file may give
an array with wrong values, or a request for terabytes. What is accepted here loads there with the same values and
the same geometry.
"""

from __future__ import annotations

import gzip
import io
import math
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import one_line

__all__ = [
    "EXTENSIONS",
    "LPS_TO_RAS",
    "Volume",
    "VolumeError",
    "extension_of",
    "read_grid",
    "read_volume",
    "to_itk",
    "to_nifti",
    "write_volume",
]

EXTENSIONS = (".nii.gz", ".nii", ".mha")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Cases are checked, and kept in memory, by several threads. Two runs have died within std::map, in such a thread, most
# likely where ITK or SimpleITK is first used by two of them at once. So one file is read by them at a time.
READING = threading.Lock()
MAX_HEADER_BYTES = 1 << 20
DEFLATE_RATIO = 1032  # deflate cannot compress better, so a larger declared size is a lie

_BYTE_ORDERS = ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
# Those of MetaImage's element types that ITK's Python package can read.
META_TYPES: dict[str, str] = {
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


class VolumeError(ValueError):
    """A file is no volume that can be read with certainty. The message says why; it does not name the file."""


@dataclass(frozen=True)
class Volume:
    """A volume and where it lies.

    Attributes:
        array: (X, Y, Z), or (X, Y, Z, C) for a stacked file; as stored, rescaled by the file's slope and intercept.
        affine: (4, 4) from voxel indices to millimetres, in nibabel's RAS+ convention.
        header_spacing_mm: voxel size along each axis as the file states it; None where there is no file.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    header_spacing_mm: tuple[float, ...] | None = None

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """Voxel size along each axis: the affine's; the file's own, which is free of rounding, where they agree."""
        from nibabel.affines import voxel_sizes

        sizes = voxel_sizes(self.affine)
        if self.header_spacing_mm is None:
            return sizes
        return np.where(np.isclose(self.header_spacing_mm, sizes, rtol=1e-5, atol=0), self.header_spacing_mm, sizes)


def read_volume(path: str | Path, max_bytes: int = 1 << 31) -> Volume:
    """Read a ``.mha``, ``.nii`` or ``.nii.gz`` file.

    Args:
        path: the file.
        max_bytes: refuse volumes whose voxels take more memory than this.

    Raises:
        FileNotFoundError: there is no such file.
        VolumeError: the file is not of a known kind, damaged, or contradicts itself.
    """
    path = Path(path)
    _require_utf8(path)
    if not path.exists():
        raise FileNotFoundError(path)
    if not path.is_file():
        raise VolumeError("is not a regular file")
    name = path.name.lower()
    try:
        if name.endswith(".mha"):
            with READING:
                return _read_meta_image(path, max_bytes)
        if name.endswith((".nii", ".nii.gz")):
            return _read_nifti(path, max_bytes)
    except OSError as error:  # permissions, a broken disk
        raise VolumeError(f"cannot be read ({error.strerror or one_line(error)})") from error
    raise VolumeError("is not a .mha, .nii or .nii.gz file")


def read_grid(path: str | Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine (RAS+) of a file that :func:`read_volume` accepts, without its voxels.

    Raises:
        VolumeError: the file is of another kind, or cannot be read.
    """
    import nibabel as nib
    import SimpleITK as sitk
    from monai.data.utils import correct_nifti_header_if_necessary

    path = Path(path)
    _require_utf8(path)
    name = path.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            image = correct_nifti_header_if_necessary(nib.load(path))
            return tuple(int(n) for n in image.shape), np.array(image.affine, dtype=np.float64)
        if name.endswith(".mha"):
            with READING:
                reader = sitk.ImageFileReader()
                reader.SetImageIO("MetaImageIO")
                reader.SetFileName(str(path))
                reader.ReadImageInformation()
                return tuple(int(n) for n in reader.GetSize()), _ras_affine(reader)
    except Exception as error:  # either library raises what it happens to meet
        raise VolumeError(f"cannot be read ({one_line(error)})") from error
    raise VolumeError("is not a .mha, .nii or .nii.gz file")


def _require_utf8(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:  # ITK would end the program
        raise VolumeError("has a name that is no UTF-8; rename it") from error


def write_volume(path: str | Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a volume so that every reader finds it in the same place.

    Args:
        path: ends in ``.nii``, ``.nii.gz`` or ``.mha``; replaced where it is (see :func:`.atomic_path`).
        array: (X, Y, Z); of NIfTI also (X, Y, Z, C).
        affine: (4, 4) from voxel indices to millimetres, RAS+.

    Raises:
        OSError: or RuntimeError, when it cannot be written.
    """
    if extension_of(path).lower() == ".mha":
        import SimpleITK as sitk

        sitk.WriteImage(to_itk(array, affine), str(path), useCompression=True)
        return
    import nibabel as nib

    nib.save(to_nifti(array, affine), path)


def to_itk(array: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """An array (X, Y, Z) with its affine, (4, 4) to RAS+ mm, as a SimpleITK image; of a bool array, uint8."""
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


def extension_of(path: str | Path) -> str:
    """The one of :data:`EXTENSIONS` that a file has, as it is written there; empty if it has another."""
    name = Path(path).name
    return next((name[-len(known) :] for known in EXTENSIONS if name.lower().endswith(known)), "")


def _read_meta_image(path: Path, max_bytes: int) -> Volume:
    import SimpleITK as sitk

    with path.open("rb") as file:
        header = _meta_header(file)
        shape = _numbers(header, "DimSize", 3, whole=True)
        if min(shape) < 1:
            raise VolumeError(f"has DimSize {header['DimSize']}")
        kind = header["ElementType"]
        if kind not in META_TYPES:
            raise VolumeError(f"has ElementType {kind}; convert it to one of {', '.join(META_TYPES)}")
        declared = math.prod(int(n) for n in shape) * np.dtype(META_TYPES[kind]).itemsize
        present = path.stat().st_size - file.tell()
        if _flag(header, "CompressedData", default=False):
            if "CompressedDataSize" not in header:  # without it, ITK fails to decompress, but returns an array
                raise VolumeError("has no CompressedDataSize in its header")
            if _numbers(header, "CompressedDataSize", 1, whole=True)[0] != present:
                raise VolumeError(f"declares {header['CompressedDataSize']} compressed bytes, but holds {present}")
            _refuse_size(declared, present * DEFLATE_RATIO, max_bytes)
            checksum = _check_deflated(file, declared)
        else:
            _refuse_size(declared, present, max_bytes)
            if present != declared:
                raise VolumeError(f"holds {present - declared} bytes more than its header declares")
            checksum = zlib.crc32(file.read())
    try:
        image = sitk.ReadImage(str(path), imageIO="MetaImageIO")
    except RuntimeError as error:
        raise VolumeError(f"cannot be read ({one_line(error)})") from error
    array = sitk.GetArrayFromImage(image)
    order = ">" if any(_flag(header, key, default=False) for key in _BYTE_ORDERS) else "<"
    if array.T.shape != tuple(shape) or zlib.crc32(array.astype(order + META_TYPES[kind]).tobytes()) != checksum:
        raise VolumeError("is read by ITK as something else than it holds")
    affine = _ras_affine(image)
    _check_affine(affine)
    return Volume(array.T, affine, image.GetSpacing())


def _ras_affine(image: Any) -> NDArray[np.float64]:
    """The affine of a SimpleITK image or reader, from LPS to RAS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def _meta_header(file: io.BufferedReader) -> dict[str, str]:
    """The header's fields; leaves ``file`` at the first voxel."""
    header: dict[str, str] = {}
    while "ElementDataFile" not in header:
        line = file.readline(MAX_HEADER_BYTES)
        if not line.endswith(b"\n") or file.tell() > MAX_HEADER_BYTES:
            raise VolumeError("has no complete MetaImage header")
        try:
            key, equals, value = line.decode("ascii").partition("=")
        except UnicodeDecodeError:
            raise VolumeError("has no MetaImage header") from None
        key, value = key.strip(), value.strip()
        if not equals or not key:
            raise VolumeError(f"has a header line that is not 'key = value': {line[:60]!r}")
        if key in header:
            raise VolumeError(f"has {key} twice in its header")
        header[key] = value
    needed = ("ObjectType", "NDims", "DimSize", "ElementType", "ElementSpacing", "Offset", "TransformMatrix")
    missing = [key for key in needed if key not in header]
    if missing:
        raise VolumeError(f"has no {', '.join(missing)} in its header")
    for key, allowed in (
        ("ObjectType", ("Image",)),
        ("NDims", ("3",)),
        ("ElementNumberOfChannels", ("1",)),
        ("ElementDataFile", ("LOCAL", "Local", "local")),
        ("HeaderSize", ("0",)),
    ):
        if header.get(key, allowed[0]) not in allowed:
            raise VolumeError(f"has {key} = {header[key][:60]} in its header; only {allowed[0]} is supported")
    if not _flag(header, "BinaryData", default=False):
        raise VolumeError("stores its voxels as text (BinaryData is not True)")
    orders = [key for key in _BYTE_ORDERS if key in header]
    if len({_flag(header, key, default=False) for key in orders}) > 1:
        raise VolumeError(f"contradicts itself in {' and '.join(orders)}")
    if min(_numbers(header, "ElementSpacing", 3)) <= 0:
        raise VolumeError(f"has ElementSpacing {header['ElementSpacing']}")
    _numbers(header, "Offset", 3)
    _numbers(header, "TransformMatrix", 9)
    for key in ("Position", "Origin", "Rotation", "Orientation"):
        if key in header:
            raise VolumeError(f"has {key} beside Offset and TransformMatrix in its header")
    return header


def _numbers(header: dict[str, str], key: str, count: int, whole: bool = False) -> list[float]:
    try:
        values = [int(word) if whole else float(word) for word in header[key].split()]
    except ValueError:
        values = []
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise VolumeError(f"has {key} = {header[key][:60]} in its header, not {count} number{'s'[: count > 1]}")
    return values


def _flag(header: dict[str, str], key: str, default: bool) -> bool:
    text = header.get(key, str(default))
    if text not in ("True", "False"):
        raise VolumeError(f"has {key} = {text[:60]} in its header, not True or False")
    return text == "True"


def _refuse_size(declared: int, possible: int, max_bytes: int) -> None:
    if declared > possible:
        raise VolumeError(f"is truncated: its header declares {declared} bytes of voxels, at most {possible} are there")
    if declared > max_bytes:
        raise VolumeError(f"declares {declared} bytes of voxels; at most {max_bytes} are read")


def _check_deflated(file: io.BufferedReader, declared: int) -> int:
    """Decompress to the end, keeping nothing: the right length, the right checksum and nothing behind it.

    Returns:
        The CRC-32 of the decompressed bytes.
    """
    stream, length, checksum = zlib.decompressobj(), 0, 0
    try:
        while chunk := file.read(1 << 20):
            while chunk and not stream.eof:
                voxels = stream.decompress(chunk, 1 << 20)
                length, checksum = length + len(voxels), zlib.crc32(voxels, checksum)
                if length > declared:
                    raise VolumeError("decompresses to more bytes than its header declares")
                chunk = stream.unconsumed_tail
            if stream.unused_data or (stream.eof and file.peek(1)):
                raise VolumeError("has bytes behind its compressed voxels")
    except zlib.error as error:
        raise VolumeError(f"has damaged compressed voxels ({error})") from error
    if not stream.eof or length != declared:
        raise VolumeError(f"is truncated: {length} of {declared} bytes of voxels are there")
    return checksum


def _read_nifti(path: Path, max_bytes: int) -> Volume:
    import nibabel as nib
    from monai.data.utils import correct_nifti_header_if_necessary

    size = path.stat().st_size
    packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            start = file.read(540)
            kind: type[Any] = nib.Nifti2Image if start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
            header = kind.header_class.from_fileobj(io.BytesIO(start))
            shape, dtype = header.get_data_shape(), header.get_data_dtype()
            if header["magic"].item() not in (b"n+1", b"n+2"):
                raise VolumeError("is not a single-file NIfTI")
            if len(shape) not in (3, 4) or min(shape) < 1:
                raise VolumeError(f"has dimensions {tuple(int(n) for n in shape)}, not 3 or 4")
            if dtype.kind not in "iuf":
                raise VolumeError(f"has voxels of type {dtype}")
            if header.get_xyzt_units()[0] not in ("mm", "unknown"):
                raise VolumeError(f"has lengths in {header.get_xyzt_units()[0]}, not mm")
            if not header["qform_code"] > 0 and not header["sform_code"] > 0:
                raise VolumeError("does not say where its voxels lie (qform and sform codes are 0)")
            stated = kind.header_class.from_fileobj(io.BytesIO(start), check=False)["pixdim"][1:4]
            if not (np.isfinite(stated) & (stated != 0)).all():  # nibabel takes 0 for 1 mm
                raise VolumeError(f"has a voxel size of {_mm(stated)} in its header (pixdim)")
            offset = float(header["vox_offset"])
            if not (math.isfinite(offset) and len(start) <= size * DEFLATE_RATIO and 0 <= offset <= MAX_HEADER_BYTES):
                raise VolumeError(f"has its voxels at offset {offset}")
            declared = int(offset) + math.prod(int(n) for n in shape) * dtype.itemsize
            _refuse_size(declared, size * DEFLATE_RATIO if packed else size, max_bytes)
            data = start + file.read(declared + 1 - len(start))  # one byte more: reads on to gzip's checksum
        if len(data) != declared:
            wrong = "is truncated" if len(data) < declared else "is longer than its header declares"
            raise VolumeError(f"{wrong}: {len(data)} of {declared} bytes")
        # MONAI's reader takes the qform where the sform does not agree with the voxel size
        image = correct_nifti_header_if_necessary(kind.from_bytes(data))
        array, affine = np.asanyarray(image.dataobj), np.array(image.affine, dtype=np.float64)
        spacing = tuple(float(size) for size in image.header["pixdim"][1:4])
    except VolumeError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VolumeError(f"is damaged or truncated ({one_line(error)})") from error
    except Exception as error:  # nibabel raises what it happens to meet
        raise VolumeError(f"cannot be read as NIfTI ({one_line(error)})") from error
    _check_affine(affine)
    return Volume(array, affine, spacing)


def _check_affine(affine: NDArray[np.float64]) -> None:
    if not np.isfinite(affine).all():
        raise VolumeError("has a position that is not finite")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() <= 0:
        raise VolumeError(f"has a voxel size of {_mm(spacing)}")
    axes = affine[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3:
        raise VolumeError("has axes that are not at right angles")


def _mm(values: NDArray[np.float64]) -> str:
    return " × ".join(f"{value:.4g}" for value in values) + " mm"
