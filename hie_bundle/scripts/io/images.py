"""Images in memory: conversion to volumes, and conversion of results back to the image's type."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import MetaKeys
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import UserError
from .files import atomic_path
from .volumes import (
    EXTENSIONS,
    Volume,
    VolumeError,
    affine_from_lps,
    checked_volume,
    extension_of,
    nifti_grid,
    to_nifti,
    write_volume,
)  # fmt: skip


def volume_of(image: Any, affine: ArrayLike | None = None) -> Volume:
    """Convert an image in memory to a volume, with the checks of files.

    Args:
        image: image of nibabel, SimpleITK or ITK, or a MetaTensor; or a tensor or array with ``affine``. Shape
            (X, Y, Z); tensors and arrays also (1, X, Y, Z).
        affine: (4, 4) from voxel indices to millimetres, RAS+; None for images with a position.

    Raises:
        UserError: type, shape or position is invalid, or ``affine`` is missing or redundant.
    """
    name = type(image).__name__
    try:
        array, own, spacing_mm = _read(image)
        if own is not None and affine is not None:
            raise UserError(f"A {name} has its own position; omit `affine`.")
        if own is None and affine is None:
            raise UserError(
                f"A {name} does not state the position of its voxels: pass `affine`, (4, 4), from voxel indices to "
                "millimetres in RAS+."
            )
        position: Any = affine if own is None else own
        return checked_volume(array, position, spacing_mm)
    except VolumeError as error:
        raise UserError(f"The {name} {error}.") from error


def metatensor_of(volumes: Sequence[Volume], file: str = "") -> MetaTensor:
    """Volumes on one grid as MONAI's loader returns them: float32; a new first axis stacks several volumes."""
    arrays = [torch.from_numpy(np.array(volume.array, np.float32, order="C")) for volume in volumes]
    image = torch.stack(arrays) if len(arrays) > 1 else arrays[0]
    channels = 0 if len(arrays) > 1 else -1 if image.ndim == 4 else float("nan")
    meta: dict[str, Any] = {
        MetaKeys.ORIGINAL_CHANNEL_DIM: channels,
        MetaKeys.SPATIAL_SHAPE: np.array(volumes[0].array.shape[:3]),
        MetaKeys.ORIGINAL_AFFINE: volumes[0].affine,
        "spacing": volumes[0].spacing_mm,  # from the header; the affine may give 1.2000000000000002
    }
    return MetaTensor(
        image, affine=torch.as_tensor(volumes[0].affine), meta=meta | ({"filename_or_obj": file} if file else {})
    )


def same_type_as(image: Any, array: NDArray[Any], affine: NDArray[np.float64]) -> Any:
    """Convert a result (X, Y, Z) to the type of ``image`` (see :func:`volume_of`), or for a path to nibabel's."""
    package = _package(image)
    if isinstance(image, torch.Tensor):
        tensor = torch.from_numpy(array)[(None,) * (image.ndim - 3)].to(image.device)
        return MetaTensor(tensor, affine=image.affine.clone()) if isinstance(image, MetaTensor) else tensor
    if isinstance(image, np.ndarray):
        return array.reshape(image.shape)
    if package in ("SimpleITK", "itk"):
        result = sys.modules[package].GetImageFromArray(np.ascontiguousarray(array.T))
        result.CopyInformation(image)
        return result
    import nibabel as nib

    if package != "nibabel":
        return to_nifti(array, affine)
    if not isinstance(image, nib.Nifti1Image):
        return type(image)(array, image.affine)
    header = image.header.copy()
    header.set_data_dtype(array.dtype)
    header["cal_min"] = header["cal_max"] = 0  # the window of a map's values
    return type(image)(array, image.affine, header)


def write(path: str | Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Call :func:`scripts.io.volumes.write_volume` atomically; raise a UserError on failure."""
    path = Path(path)
    if extension_of(path) not in EXTENSIONS:  # ITK writes X.MHA as X.mhd and X.raw
        raise UserError(f"{path}: the extension of a volume must be one of {', '.join(EXTENSIONS)}.")
    try:
        with atomic_path(path) as temporary:
            write_volume(temporary, array, affine)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written ({getattr(error, 'strerror', None) or error}).") from error


def _package(image: Any) -> str:
    """The package (nibabel, SimpleITK, itk) of the image's first known base class; empty for others."""
    names = [base.__module__.split(".")[0] for base in type(image).__mro__]
    return next((name for name in names if name in ("nibabel", "SimpleITK", "itk")), "")


def _read(image: Any) -> tuple[Any, Any, tuple[float, ...] | None]:
    """Array (X, Y, Z), affine and voxel size; None if the image has none."""
    package = _package(image)
    if package == "nibabel":
        return _three(np.asanyarray(image.dataobj), image, axis=3), *nifti_grid(image)
    if package in ("SimpleITK", "itk"):
        array = _three(sys.modules[package].GetArrayFromImage(image).T, image)
        spacing = tuple(float(size) for size in image.GetSpacing())
        return array, affine_from_lps(spacing, np.asarray(image.GetDirection()), tuple(image.GetOrigin())), spacing
    if isinstance(image, torch.Tensor):
        affine = image.affine.cpu().numpy() if isinstance(image, MetaTensor) else None
        try:
            tensor = image.detach().cpu().as_subclass(torch.Tensor)
            if tensor.is_floating_point() and tensor.dtype != torch.float64:  # NumPy has no bfloat16
                tensor = tensor.float()
            array = tensor.numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantised
            raise VolumeError(f"cannot be read as an array ({error})") from error
        return _three(array, image), affine, None
    if isinstance(image, np.ndarray):
        return _three(image, image), None, None
    raise UserError(
        f"A {type(image).__name__} is not an image of a known type: pass a file's path, an image of nibabel, SimpleITK "
        "or ITK, a MetaTensor, or an array or tensor with its affine."
    )


def _three(array: Any, image: Any, axis: int = 0) -> Any:
    if array.ndim == 4 and array.shape[axis] == 1:
        array = array[(slice(None),) * axis + (0,)]
    if array.ndim != 3:
        raise UserError(f"A {type(image).__name__} of shape {array.shape} is not a map; a map has three dimensions.")
    return array
