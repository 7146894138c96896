"""Reading and resampling of volumes, units of ADC, and Z maps; error messages name the user's input."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from ..data.checks import grid_difference
from ..geometry.brain import brain_of
from ..io.volumes import EXTENSIONS, Volume, VolumeError, extension_of, read_volume
from ..runtime.errors import UserError

logger = logging.getLogger(__name__)

Floats = NDArray[np.floating]

B0_MAX = 50.0  # s/mm²; the image called b = 0 often has b = 5 or 20
HEAD_MEDIAN = (400.0, 2600.0)  # 1e-6 mm²/s; median ADC of a newborn's head, with and without skull
# Factors to 1e-6 mm²/s by unit: scanners and converters differ by powers of ten.
SCALES = {1.0: "1e-6 mm²/s", 10.0: "1e-5 mm²/s", 1e3: "1e-3 mm²/s", 1e6: "mm²/s", 1e12: "m²/s"}
GRID_TOLERANCE_MM = 0.1  # largest distance between the corners of equal grids
WHOLE = 0.98  # share of voxels above 0; a skull-stripped map has less


def on_grid(values: NDArray[np.float32], grid: sitk.Image) -> sitk.Image:
    """Values, shape (Z, Y, X), as an image on a given grid."""
    image = sitk.GetImageFromArray(values)
    image.CopyInformation(grid)
    return image


def paths_of(given: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """The paths of an option with one path, several or none."""
    return [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given or ()]


def read(path: str | Path, dimensions: int | None = None, grid: Volume | None = None, name: str | Path = "") -> Volume:
    """Read a NIfTI or MetaImage file.

    Args:
        path: the file.
        dimensions: required number of dimensions, 3 or 4; None for either.
        grid: volume with the required grid; None for any grid.
        name: name of ``grid``, for messages.

    Raises:
        UserError: the file is missing or invalid, or differs in dimensions or grid.
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
    if grid:
        refuse_other_grid(grid, volume, (name, path))
    return volume


def refuse_other_grid(one: Volume, other: Volume, names: Sequence[str | Path]) -> None:
    """Raise a UserError with the difference if two volumes are on different grids."""
    if difference := grid_difference(one, other, GRID_TOLERANCE_MM):
        raise UserError(f"{names[0]} and {names[1]} are on different grids: {difference}.")


def read_stripped(path: str | Path, scale: float | None, name: str = "") -> Volume:
    """Read a skull-stripped ADC map, in 1e-6 mm²/s.

    Args:
        path: the file.
        scale: factor to 1e-6 mm²/s; None to infer it (:func:`scale_of`).
        name: name of the map, for messages; its path if empty.

    Raises:
        UserError: the file is invalid, or the map is empty, has a skull, or has an unknown unit.
    """
    name = name or str(path)
    volume = read(path, 3)
    share = brain_of(volume.array).mean()
    if not share:
        raise UserError(f"{name} has no voxel above 0.")
    if share > WHOLE:
        raise UserError(f"{name} is not skull-stripped: it is above 0 everywhere.")
    return Volume(to_micro(volume.array, scale), volume.affine, volume.header_spacing_mm)


def resample(
    image: sitk.Image, grid: sitk.Image, transform: sitk.Transform | None = None, nearest: bool = False
) -> sitk.Image:
    """Resample to ``grid``; ``transform`` maps points of ``grid`` to points of ``image``. 0 outside the image."""
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    return sitk.Resample(image, grid, transform or sitk.Transform(), how, 0.0, image.GetPixelID())


def beside(path: str | Path, ending: str) -> Path:
    """Replace the extension of a volume's path; raise a UserError if it is not a volume's extension."""
    path = Path(path)
    if not (extension := extension_of(path)):
        raise UserError(f"{path}: the extension of a volume must be one of {', '.join(EXTENSIONS)}.")
    return path.with_name(path.name.removesuffix(extension) + ending)


def scale_of(adc: Floats, brain: NDArray[np.bool_] | None = None) -> tuple[float, str]:
    """Infer an ADC map's unit from its median: factor to 1e-6 mm²/s and name of the unit.

    The ratio between two units is larger than the range of medians of heads.

    Args:
        adc: array of any shape; 0 and below count as background.
        brain: voxels for the median; all voxels above 0 if None.

    Raises:
        UserError: no unit gives a plausible newborn's head.
    """
    values = adc[(adc > 0) & np.isfinite(adc) if brain is None else brain & (adc > 0)]
    median = float(np.median(values)) if values.size else 0.0
    for scale, unit in SCALES.items():
        if HEAD_MEDIAN[0] <= median * scale <= HEAD_MEDIAN[1]:
            return scale, unit
    raise UserError(
        f"The median of the ADC map is {median:.4g}, which is implausible for a newborn's head in each of the units "
        f"{', '.join(SCALES.values())}. Is it an ADC map? If so, name the factor to 1e-6 mm²/s with --adc_scale."
    )


def unit_of(adc: Floats) -> str:
    """Name of the unit in which the values are plausible as ADC; empty if there is none."""
    try:
        return scale_of(adc)[1]
    except UserError:
        return ""


def to_micro(adc: Floats, scale: float | None = None, brain: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Convert an ADC map to 1e-6 mm²/s, and log the factor.

    Args:
        adc: in any unit; negative values, NaN and Inf become 0.
        scale: factor to 1e-6 mm²/s; None to infer it (:func:`scale_of`).
        brain: see :func:`scale_of`.
    """
    if scale is None:
        scale, unit = scale_of(adc, brain)
        logger.info("Unit of the ADC map, inferred from its median: %s (factor %g to 1e-6 mm²/s).", unit, scale)
    else:
        logger.info("Factor of the ADC map to 1e-6 mm²/s, from --adc_scale: %g.", scale)
    return (np.where(np.isfinite(adc) & (adc > 0), adc, 0) * scale).astype(np.float32)


def z_map(
    adc: NDArray[Any],
    brain: NDArray[np.bool_],
    mean: Floats,
    std: Floats,
    spacing_mm: NDArray[np.floating],
    smoothing_mm: float = 2.0,
    clip: float = 10.0,
    least_std: float = 20.0,
) -> Floats:
    """Z-scored ADC: (adc - mean) / std, smoothed by a Gaussian of full width ``smoothing_mm``, clipped at ±``clip``.

    Args:
        adc: ADC map (X, Y, Z), 1e-6 mm²/s.
        brain: skull-strip mask; the result is 0 outside, and smoothing does not cross its border.
        mean: normative mean on the same grid.
        std: normative standard deviation on the same grid.
        spacing_mm: voxel size (3,).
        smoothing_mm: full width at half maximum.
        clip: bound of |Z|.
        least_std: floor of ``std``, 1e-6 mm²/s.
    """
    z = np.where(brain, (adc - mean) / np.maximum(std, np.float32(least_std)), 0).astype(np.float32)
    sigma = smoothing_mm / np.sqrt(8 * np.log(2)) / np.asarray(spacing_mm)
    weight = ndimage.gaussian_filter(brain.astype(np.float32), sigma, truncate=3)
    smooth = ndimage.gaussian_filter(z, sigma, truncate=3) / np.maximum(weight, 1e-6)
    return np.where(brain, np.clip(smooth, -clip, clip), 0).astype(np.float32)
