"""Volumes between files, SimpleITK and arrays; what is wrong with them is said in terms of what the user typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk

from ..bonbid import Volume, VolumeError, read_volume
from ..bonbid.checks import grid_difference
from ..errors import UserError

__all__ = ["read", "refuse_other_grid", "resample"]


def read(path: str | Path, dimensions: int | None = None) -> Volume:
    """Read a NIfTI or MetaImage file.

    Args:
        path: the file.
        dimensions: that it must have, 3 or 4; None for either.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    try:
        volume = read_volume(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except VolumeError as error:
        raise UserError(f"{path} {error}.") from error
    if dimensions and volume.array.ndim != dimensions:
        shape = "×".join(map(str, volume.array.shape))
        raise UserError(f"{path} has shape {shape}; {dimensions} dimensions are needed.")
    return volume


def refuse_other_grid(one: Volume, other: Volume, names: Sequence[str], tolerance_mm: float = 0.1) -> None:
    """Stop where two volumes are not on one grid.

    Raises:
        UserError: naming both, and the difference.
    """
    if difference := grid_difference(one, other, tolerance_mm):
        raise UserError(f"{names[0]} and {names[1]} are not on one grid: {difference}.")


def resample(
    image: sitk.Image, grid: sitk.Image, transform: sitk.Transform | None = None, nearest: bool = False
) -> sitk.Image:
    """``image`` at the voxels of ``grid``, moved by ``transform`` (points of ``grid`` to points of ``image``); 0
    outside."""
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    return sitk.Resample(image, grid, transform or sitk.Transform(), how, 0.0, image.GetPixelID())
