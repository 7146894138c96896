"""Geometry, type and values are checked by one function, for files and for images in memory."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from scripts.io.images import metatensor_of, volume_of
from scripts.io.volumes import VolumeError, read_volume
from scripts.runtime.errors import UserError

SHAPE = (6, 5, 4)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])
SHEARED = AFFINE + np.array([[0, 0.4, 0, 0], [0] * 4, [0] * 4, [0] * 4])


def nifti(sform: Any = AFFINE, qform: Any = None, units: str = "mm", pixdim: Any = None) -> nib.Nifti1Image:
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), AFFINE)
    image.header.set_xyzt_units(units)
    image.header.set_sform(sform, code=0 if sform is None else 1)
    image.header.set_qform(qform, code=0 if qform is None else 1)
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    return image


def stored(image: nib.Nifti1Image, path: Path) -> None:
    """Write the header as it is: nibabel's own writer would mend it."""
    header = image.header.copy()
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + bytes(4) + np.ones(SHAPE, np.float32).tobytes())


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "no position": ({"sform": None}, "does not state the position"),
    "sform of another size, qform right": (
        {"sform": AFFINE @ np.diag([2, 2, 2, 1]), "qform": AFFINE},
        r"contradicts itself: voxels of 2 × 1.5 × 3 mm by pixdim, 4 × 3 × 6 mm by its sform",
    ),
    "metres": ({"units": "meter"}, "has lengths in meter"),
    "microns": ({"units": "micron"}, "has lengths in micron"),
    "shifted sform, qform right": (
        {"sform": AFFINE + np.eye(4, k=3) * 0.3, "qform": AFFINE},
        "contradicts itself: qform and sform have equal codes but differ by 0.3 mm",
    ),
    "sheared sform, qform right": ({"sform": SHEARED, "qform": AFFINE}, "right angles|contradicts itself"),
    "NaN in the sform, qform right": ({"sform": AFFINE * [[np.nan, 1, 1, 1]] * 1, "qform": AFFINE}, "NaN or infinite"),
}


@pytest.mark.parametrize("way", [".nii", "memory"])
@pytest.mark.parametrize("fault", HEADERS)
def test_a_nifti_header_is_refused_from_a_file_and_in_memory(fault: str, way: str, tmp_path: Path) -> None:
    arguments, message = HEADERS[fault]
    path = tmp_path / "a.nii"
    image = nifti(**arguments)
    image.header["pixdim"][1:4] = [2, 1.5, 3]
    stored(image, path)
    with pytest.raises((VolumeError, UserError), match=message):
        read_volume(path) if way == ".nii" else volume_of(nib.load(path))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(SHAPE, np.complex64), "type complex64"),
        (np.ma.masked_less(np.ones(SHAPE), 0), "masked array"),
        (np.full(SHAPE, "900"), "not real numbers"),
        (np.ones(SHAPE, object), "type object"),
        (np.zeros(SHAPE, [("adc", "f4"), ("z", "f4")]), "not real numbers"),
        (np.zeros(SHAPE, "M8[s]"), "not real numbers"),
        (torch.ones(SHAPE, dtype=torch.complex64), "type complex64"),
        (torch.ones(SHAPE).to_sparse(), "cannot be read as an array"),
        (np.ones((0, 5, 4)), "shape"),
    ],
)
def test_values_that_are_not_real_numbers_are_refused(array: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        volume_of(array, AFFINE)


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.full((4, 4), np.nan), "last row|NaN"),
        (AFFINE * np.array([[np.nan], [1], [1], [1]]), "NaN or infinite"),
        (np.zeros((4, 4)), "last row"),
        (np.diag([0.0, 1, 1, 1]), "voxel size of 0"),
        (SHEARED, "right angles"),
        (np.eye(3), "affine of shape"),
        ("somewhere", "does not hold numbers"),
    ],
)
def test_a_position_that_is_not_a_grid_is_refused(affine: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        volume_of(np.ones(SHAPE), affine)
    if isinstance(affine, np.ndarray) and affine.shape == (4, 4):
        with pytest.raises(UserError, match=message):
            volume_of(MetaTensor(torch.ones(SHAPE), affine=torch.as_tensor(affine)))


def test_arrays_that_pytorch_does_not_take_are_converted() -> None:
    values = np.arange(120, dtype=np.float32).reshape(SHAPE)
    bfloat16 = torch.from_numpy(values).to(torch.bfloat16)
    for given, expected in [
        (values[::-1, :, ::-1], values[::-1, :, ::-1]),
        (values.astype(">f4"), values),
        (bfloat16, bfloat16.float().numpy()),
        (torch.from_numpy(values).half(), values),
        (values.astype(np.longdouble), values),
    ]:
        np.testing.assert_array_equal(metatensor_of([volume_of(given, AFFINE)]).numpy(), expected)


def test_a_header_extension_of_any_size_is_read(tmp_path: Path) -> None:
    image = nifti()
    image.header.extensions.append(nib.nifti1.Nifti1Extension(4, b"<AFNI_attributes/>" * 3000))
    for name in ("a.nii", "a.nii.gz"):
        nib.save(image, tmp_path / name)
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("DistanceUnits = m", "DistanceUnits = m"),
        ("DistanceUnits = um", "DistanceUnits = um"),
        ("ElementToIntensityFunctionSlope = 2", "ElementToIntensityFunctionSlope = 2"),
        ("ElementToIntensityFunctionOffset = -5", "ElementToIntensityFunctionOffset = -5"),
        ("DistanceUnits = mm", ""),
        ("ElementToIntensityFunctionSlope = 1.0", ""),
    ],
)
def test_a_metaimage_with_a_scale_or_other_units_is_refused(line: str, message: str, tmp_path: Path) -> None:
    """ITK ignores both."""
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones(SHAPE, np.float32)), path, False)
    path.write_bytes(path.read_bytes().replace(b"NDims = 3\n", f"NDims = 3\n{line}\n".encode()))
    if not message:
        assert read_volume(path).array.shape == SHAPE[::-1]
        return
    with pytest.raises(VolumeError, match=message):
        read_volume(path)


def test_a_truncated_file_is_called_truncated(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(30, 30, 30)), AFFINE), tmp_path / "a.nii.gz")
    data = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(VolumeError, match=r"^is truncated$"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_size_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    stored(nifti(), path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<4h", data, 40, 3, 30000, 30000, 30000)
    path.write_bytes(data)
    with pytest.raises(VolumeError, match="is truncated: its header declares"):
        read_volume(path)
