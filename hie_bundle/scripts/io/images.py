"""Images as users hand them in, and results as images of the same kind; files of masks and probabilities."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import ArrayLike, NDArray

from ..runtime.errors import UserError
from .files import atomic_path
from .volumes import EXTENSIONS, LPS_TO_RAS, Volume, extension_of, to_nifti, write_volume

__all__ = ["like", "volume_of", "write"]


def volume_of(image: Any, affine: ArrayLike | None = None) -> Volume:
    """An image in memory as an array with its affine.

    Args:
        image: of nibabel, SimpleITK or ITK; a MetaTensor; or a tensor or an array with ``affine``. Shape (X, Y, Z), of
            the last three also (1, X, Y, Z).
        affine: (4, 4) from voxel indices to millimetres, RAS+; of images that carry theirs it must be None.

    Raises:
        UserError: when it is none of these, or has another shape, or an affine too few or too many.
    """
    array, own, spacing_mm = _read(image)
    if own is not None and affine is not None:
        raise UserError(f"A {type(image).__name__} knows where its voxels lie; leave `affine` out.")
    if own is None and affine is None:
        raise UserError(
            f"A {type(image).__name__} does not say where its voxels lie: give `affine`, (4, 4), from voxel indices to "
            "millimetres in RAS+."
        )
    where = np.asarray(affine if own is None else own, dtype=np.float64)
    if where.shape != (4, 4):
        raise UserError(f"An affine has shape (4, 4), not {where.shape}.")
    return Volume(array, where, spacing_mm)


def like(mask: NDArray[Any], image: Any, affine: NDArray[np.float64]) -> Any:
    """A result as an image of the kind of another, on its grid.

    Args:
        mask: (X, Y, Z).
        image: what :func:`volume_of` took, or a file's path, for which a nibabel image comes back.
        affine: of the grid, (4, 4), RAS+.
    """
    kind = _package(image)
    if isinstance(image, torch.Tensor):
        tensor = torch.from_numpy(mask)[(None,) * (image.ndim - 3)].to(image.device)
        return MetaTensor(tensor, affine=image.affine.clone()) if isinstance(image, MetaTensor) else tensor
    if isinstance(image, np.ndarray):
        return mask.reshape(image.shape)
    if kind == "SimpleITK":
        import SimpleITK as sitk

        result = sitk.GetImageFromArray(np.ascontiguousarray(mask.T))
        result.CopyInformation(image)
        return result
    if kind == "itk":
        import itk

        result = itk.image_from_array(np.ascontiguousarray(mask.T))
        result.SetSpacing(image.GetSpacing())
        result.SetOrigin(image.GetOrigin())
        result.SetDirection(image.GetDirection())
        return result
    import nibabel as nib

    if kind != "nibabel":
        return to_nifti(mask, affine)
    if not isinstance(image, nib.Nifti1Image):
        return type(image)(mask, image.affine)
    header = image.header.copy()
    header.set_data_dtype(mask.dtype)
    header["cal_min"] = header["cal_max"] = 0  # the window of a map's values
    return type(image)(mask, image.affine, header)


def write(path: str | Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write a volume whole or not at all.

    Args:
        path: with one of :data:`scripts.io.volumes.EXTENSIONS`.
        array: (X, Y, Z).
        affine: (4, 4) from voxel indices to millimetres, RAS+.

    Raises:
        UserError: when the extension is another, or the file cannot be written.
    """
    path = Path(path)
    if extension_of(path) not in EXTENSIONS:  # ITK writes X.MHA as X.mhd and X.raw
        raise UserError(f"{path}: a volume is written as one of {', '.join(EXTENSIONS)}.")
    try:
        with atomic_path(path) as temporary:
            write_volume(temporary, array, affine)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} cannot be written ({getattr(error, 'strerror', None) or error}).") from error


def _package(image: Any) -> str:
    """Where the image's class comes from; that of a subclass is its first known ancestor's."""
    names = [kind.__module__.split(".")[0] for kind in type(image).__mro__]
    return next((name for name in names if name in ("nibabel", "SimpleITK", "itk")), "")


def _read(image: Any) -> tuple[NDArray[Any], NDArray[np.float64] | None, tuple[float, ...] | None]:
    """Array (X, Y, Z), affine and voxel size, as far as the image says."""
    kind = _package(image)
    if kind == "nibabel":
        spacing = tuple(float(size) for size in image.header.get_zooms()[:3])
        return _three(np.asanyarray(image.dataobj), image, last=True), image.affine, spacing
    if kind == "SimpleITK":
        sitk = sys.modules["SimpleITK"]
        spacing, direction = image.GetSpacing(), np.array(image.GetDirection())
        return _three(sitk.GetArrayFromImage(image).T, image), *_from_lps(spacing, direction, image.GetOrigin())
    if kind == "itk":
        itk = sys.modules["itk"]
        spacing, direction = tuple(image.GetSpacing()), itk.array_from_matrix(image.GetDirection())
        return _three(itk.array_from_image(image).T, image), *_from_lps(spacing, direction, tuple(image.GetOrigin()))
    if isinstance(image, torch.Tensor):
        affine = image.affine.cpu().numpy() if isinstance(image, MetaTensor) else None
        return _three(image.detach().cpu().as_subclass(torch.Tensor).numpy(), image), affine, None
    if isinstance(image, np.ndarray):
        return _three(image, image), None, None
    raise UserError(
        f"A {type(image).__name__} is no image that is known here: give a file's path, an image of nibabel, SimpleITK "
        "or ITK, a MetaTensor, or an array or tensor with its affine."
    )


def _three(array: NDArray[Any], image: Any, last: bool = False) -> NDArray[Any]:
    if array.ndim == 4 and array.shape[-1 if last else 0] == 1:
        array = array[..., 0] if last else array[0]
    if array.ndim != 3:
        raise UserError(f"A {type(image).__name__} of shape {array.shape} is no map; a map has three dimensions.")
    return array


def _from_lps(
    spacing: tuple[float, ...], direction: NDArray[Any], origin: tuple[float, ...]
) -> tuple[NDArray[np.float64] | None, tuple[float, ...]]:
    affine = np.eye(4)
    if len(spacing) == 3:  # of others the shape is refused
        affine[:3, :3] = np.asarray(direction, dtype=float).reshape(3, 3) * spacing
        affine[:3, 3] = origin
    return LPS_TO_RAS @ affine, tuple(float(size) for size in spacing)
