"""Volumes between files, SimpleITK and arrays; what is wrong with them is said in terms of what the user typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..data.checks import grid_difference
from ..io.volumes import EXTENSIONS, Volume, VolumeError, extension_of, read_volume
from ..runtime.errors import UserError

__all__ = ["GRID_TOLERANCE_MM", "on_grid", "paths_of", "read", "refuse_other_grid", "resample", "stem_of"]

GRID_TOLERANCE_MM = 0.1  # between the corners of what is called one grid


def on_grid(values: NDArray[np.float32], grid: sitk.Image) -> sitk.Image:
    """Values, shape (Z, Y, X), as an image that lies where another one does."""
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(grid)
    return image


def paths_of(given: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """What an option names, which may be one path, several or none."""
    return [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given or ()]


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


def refuse_other_grid(one: Volume, other: Volume, names: Sequence[str]) -> None:
    """Stop where two volumes are not on one grid.

    Raises:
        UserError: naming both, and the difference.
    """
    if difference := grid_difference(one, other, GRID_TOLERANCE_MM):
        raise UserError(f"{names[0]} and {names[1]} are not on one grid: {difference}.")


def resample(
    image: sitk.Image, grid: sitk.Image, transform: sitk.Transform | None = None, nearest: bool = False
) -> sitk.Image:
    """``image`` at the voxels of ``grid``, moved by ``transform`` (points of ``grid`` to points of ``image``); 0
    outside."""
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    return sitk.Resample(image, grid, transform or sitk.Transform(), how, 0.0, image.GetPixelID())


def stem_of(path: str | Path) -> Path:
    """A volume's path without its extension.

    Raises:
        UserError: when it has another than volumes have.
    """
    path = Path(path)
    if not (extension := extension_of(path)):
        raise UserError(f"{path}: a volume is written as one of {', '.join(EXTENSIONS)}.")
    return path.with_name(path.name.removesuffix(extension))
