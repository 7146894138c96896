"""Volumes from files with the dataset's checks, in terms of what the user typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..bonbid import Volume, VolumeError, read_volume
from ..bonbid.checks import grid_difference
from ..errors import UserError

__all__ = ["read", "refuse_other_grid"]


def read(path: str | Path) -> Volume:
    """Read a NIfTI or MetaImage file of three or four dimensions.

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    try:
        return read_volume(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except VolumeError as error:
        raise UserError(f"{path} {error}.") from error


def refuse_other_grid(one: Volume, other: Volume, names: Sequence[str], tolerance_mm: float = 0.1) -> None:
    """Stop where two volumes are not on one grid.

    Raises:
        UserError: naming both, and the difference.
    """
    if difference := grid_difference(one, other, tolerance_mm):
        raise UserError(f"{names[0]} and {names[1]} are not on one grid: {difference}.")
