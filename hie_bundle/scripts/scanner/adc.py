"""``run adc``: an ADC map from diffusion-weighted images by a mono-exponential fit, or from the scanner's map."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.checks import grid_difference
from ..io.images import write
from ..io.volumes import Volume, extension_of
from ..runtime.errors import UserError
from .dicom import Series, read_folder
from .inputs import B0_MAX, GRID_TOLERANCE_MM, paths_of, read, to_micro

logger = logging.getLogger(__name__)

Floats = NDArray[np.floating]
Paths = str | Path | Sequence[str | Path]

ECHO_MS = 1.0  # tolerance of the echo time, for equal T2 weighting
AGREEMENT = 0.93  # minimum correlation of two images with b = 0; lower with reversed phase encoding
RAYLEIGH_MEDIAN = np.sqrt(2 * np.log(2))  # in standard deviations of the noise


@dataclass(frozen=True)
class AdcFit:
    """A fitted map.

    Attributes:
        adc: 1e-6 mm²/s, 0 without signal at b = 0.
        noise: standard deviation of the noise in the images' unit; 0 if unknown.
        floored: voxels with signal at b = 0 and weighted signal below the floor: their ADC is a lower bound.
    """

    adc: NDArray[np.float32]
    noise: float
    floored: NDArray[np.bool_]


def noise_of(image: Floats) -> float:
    """Standard deviation of the noise in the real and imaginary channels, from the corners of a magnitude image.

    In air the magnitude has a Rayleigh distribution, with a median of 1.177 standard deviations.

    Args:
        image: (X, Y, Z); Z runs through the slices.

    Returns:
        Standard deviation; 0 if most corner voxels are exactly 0, because the scanner masked the air.
    """
    nx, ny = (max(1, n // 10) for n in image.shape[:2])
    corners = [image[x, y] for x in (slice(nx), slice(-nx, None)) for y in (slice(ny), slice(-ny, None))]
    air = np.concatenate([corner.ravel() for corner in corners])
    return float(np.median(air) / RAYLEIGH_MEDIAN) if np.mean(air > 0) > 0.5 else 0.0


def fit_adc(
    signals: Sequence[Floats], b_values: Sequence[float], noise: float | None = None, noise_floor: float = 2.0
) -> AdcFit:
    """Fit the mono-exponential model S(b) = S(0) exp(-b ADC) to the logarithms.

    Images with equal b-value are first averaged geometrically, so that several directions give mean diffusivity. The
    logarithm of a signal S with noise σ has the variance (σ/S)², so that three b-values or more are weighted by their
    squared signal (Salvador et al., Human Brain Mapping 24, 2005). Signals below the floor are noise: they are excluded
    from the fit if two b-values remain; else the floor replaces them.

    Args:
        signals: images of one shape (X, Y, Z), not negative.
        b_values: s/mm², one per image.
        noise: standard deviation of the noise; None to estimate it from the air, 0 for no floor.
        noise_floor: in standard deviations of the noise.

    Raises:
        UserError: no image with b ≤ 50 s/mm², none with at least 100 s/mm² more, or no signal.
    """
    values = np.asarray(b_values, dtype=float)
    if len(values) != len(signals):
        raise UserError(f"There are {len(signals)} images and {len(values)} b-values; each image needs its own.")
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 20000:
        raise UserError(f"{_listed(values)} are not valid b-values in s/mm².")
    if values.min() > B0_MAX or values.max() - values.min() < 100:
        raise UserError(
            f"An ADC map needs an image with b = 0 (at most {B0_MAX:g}) and one with a larger b-value; the b-values "
            f"are {_listed(values)} s/mm². Name them with --b_values."
        )
    finite = np.all([np.isfinite(image) for image in signals], axis=0)
    signals = [np.where(finite, image, 0) for image in signals]
    if noise is None:
        noise = noise_of(signals[int(values.argmax())])
    # The 99th percentile, so that outlier voxels do not raise the floor.
    least = max(noise_floor * noise, 1e-6 * max(float(np.percentile(image, 99)) for image in signals))
    if least <= 0:
        raise UserError("The images have no finite signal above the noise.")
    logs, weights, bs = [], [], []
    for members in _shells(values):
        images = np.stack([np.asarray(signals[i], dtype=np.float32) for i in members])
        mean = np.exp(np.log(np.maximum(images, least)).mean(0))
        logs.append(np.log(mean))
        # One direction below the floor biases the average.
        weights.append(np.where((images <= least).any(0), 0, mean.astype(np.float64) ** 2))
        bs.append(values[members].mean())
    head = (weights[0] > 0) & finite
    if not head.any():
        raise UserError("The image with b = 0 has no signal above the noise.")
    bright = head & (logs[0] > np.percentile(logs[0][head], 50))
    if (share := float((logs[-1] > logs[0])[bright].mean())) > 0.5:
        raise UserError(
            f"The image with b = {bs[-1]:g} is brighter than the image with b = {bs[0]:g} in {share:.0%} of the head: "
            "the b-values are swapped, or the images have different scales."
        )
    log, weight, b = np.stack(logs).astype(np.float64), np.stack(weights), np.array(bs)[:, None, None, None]
    enough = (weight > 0).sum(0) >= 2
    line = np.zeros_like(weight)
    line[:2] = 1  # through the two smallest b-values; signals are raised to the floor
    weight = np.where(enough & (len(bs) > 2), weight, line)
    total = weight.sum(0)
    b_mean, log_mean = (weight * b).sum(0) / total, (weight * log).sum(0) / total
    slope = (weight * (b - b_mean) * (log - log_mean)).sum(0) / (weight * (b - b_mean) ** 2).sum(0)
    adc = np.where(head, np.clip(-1e6 * slope, 0, None), 0).astype(np.float32)
    floored = head & ~enough
    logger.info(
        "ADC from b = %s s/mm²; noise %.3g, floor %.3g (%s). In %.1f %% of the voxels with signal, the weighted signal "
        "is below the floor, and ADC is a lower bound.",
        _listed([float(value) for value in bs]),
        noise,
        least if noise else 0,
        "from the air" if noise else "none: the air is masked, or the noise is given as 0",
        100 * floored.sum() / head.sum(),
    )
    return AdcFit(adc, noise, floored)


def _shells(b_values: NDArray[np.float64]) -> list[list[int]]:
    """Group images by ascending b-value; b-values within 5 % or 50 s/mm² of a shell's minimum join it, since scanners
    state slightly different values for the directions."""
    shells: list[list[int]] = []
    for i in np.argsort(b_values, kind="stable"):
        first = b_values[shells[-1][0]] if shells else -np.inf
        if b_values[i] > max(first * 1.05, first + B0_MAX):
            shells.append([])
        shells[-1].append(int(i))
    return shells


def _listed(values: Sequence[float] | NDArray[np.float64]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def write_adc(
    images: Paths | None,
    output_file: str | Path,
    b_values: Sequence[float] | None = None,
    noise: float | None = None,
    noise_floor: float = 2.0,
    adc_scale: float | None = None,
    series: Sequence[int] = (),
    adc_source: str | None = None,
) -> None:
    """Write an ADC map in 1e-6 mm²/s, float32, and log the assumptions.

    The arguments are keys of ``configs/scanner.yaml``, which explains them; for the noise see :func:`fit_adc`.

    Raises:
        UserError: images or b-values are invalid or missing.
    """
    if not images or not output_file:
        raise UserError("Name the images and the output file: --images FILES --output_file FILE.")
    paths = paths_of(images)
    if Path(output_file).resolve() in [path.resolve() for path in paths]:
        raise UserError(f"{output_file} is one of the images; nothing is overwritten.")
    if len(paths) == 1 and (root := paths[0]).is_dir():
        paths = [path for path in sorted(root.rglob("*_dwi.nii*")) if extension_of(path) and path.name[0] != "."]
        paths = [path for path in paths if "derivatives" not in path.relative_to(root).parts]
        if not paths:
            if b_values is not None:
                raise UserError(f"{root}: DICOM headers contain the b-values; remove --b_values.")
            adc, _ = adc_from_dicom(read_folder(root, series), noise, noise_floor, adc_scale, adc_source)
            write(output_file, adc.array, adc.affine)
            return
        if len(paths) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in paths[:3])
            raise UserError(f"{root} holds {len(paths)} diffusion images ({names} …); name one with --images.")
    if series or adc_source:
        raise UserError("--series and --adc_source are for folders of DICOM images.")
    first = read(paths[0])
    if len(paths) == 1 and first.array.ndim == 3 and b_values is None:
        write(output_file, to_micro(first.array, adc_scale), first.affine)
        return
    if adc_scale is not None:
        raise UserError("--adc_scale is for a scanner's ADC map only; remove it to fit ADC from images.")
    signals: list[Floats] = []
    stated: list[float] = []
    volumes = [first, *(read(path, grid=first, name=paths[0]) for path in paths[1:])]
    for path, volume in zip(paths, volumes, strict=True):
        parts = np.moveaxis(volume.array.reshape(*volume.array.shape[:3], -1), -1, 0)
        signals += list(parts)
        if b_values is None:
            stated += _bvals(path, len(parts))
    fit = fit_adc(signals, stated if b_values is None else b_values, noise, noise_floor)
    write(output_file, fit.adc, first.affine)


def adc_from_dicom(
    series: Sequence[Series],
    noise: float | None = None,
    noise_floor: float = 2.0,
    adc_scale: float | None = None,
    adc_source: str | None = None,
) -> tuple[Volume, Series]:
    """ADC map from DICOM series, 1e-6 mm²/s, and the series that defines its grid.

    ``series`` are from :func:`.read_folder`; for the other arguments see :func:`write_adc`.

    Raises:
        UserError: there are several maps, or neither a map nor images to fit.
    """
    if adc_source not in (None, "map", "fit"):
        raise UserError(f"adc_source '{adc_source}' is unknown; choose one of: map, fit.")
    maps = [one for one in series if one.kind == "adc"]
    if adc_source == "map" and not maps:
        raise UserError(f"There is no ADC map among the DICOM series.{_why(series)}")
    if maps and adc_source != "fit":
        if len(maps) > 1:
            names = ", ".join(one.name for one in maps)
            raise UserError(f"There are several ADC maps: {names}. Name one with --series, or give --adc_source fit.")
        logger.info("ADC map of the scanner: %s.", maps[0].name)
        return Volume(to_micro(maps[0].array[..., 0], adc_scale or maps[0].unit), maps[0].affine), maps[0]
    used = _fitted_from(series)
    logger.info("ADC fitted from %s.", ", ".join(one.name for one in used))
    signals = [image for one in used for image in np.moveaxis(one.array, -1, 0)]
    fit = fit_adc(signals, [float(b or 0) for one in used for b in one.b_values], noise, noise_floor)
    return Volume(fit.adc, used[0].affine), used[0]


def b0_of(series: Sequence[Series]) -> Series:
    """Images with b = 0 (at most 50 s/mm²); the ones for the fit if there are weighted images.

    Raises:
        UserError: an image with b = 0 is missing.
    """
    if _parts(series, ("dwi", "trace"), b0=False):
        return _fitted_from(series)[0]
    for one in _parts(series, ("dwi", "trace"), b0=True):
        return one
    raise UserError(f"There is no image with b = 0.{_why(series)}")


def _parts(series: Sequence[Series], kinds: Sequence[str], b0: bool) -> list[Series]:
    """Series of these kinds, reduced to volumes with b = 0 or to weighted volumes."""
    parts = [one.part(b0) for one in series if one.kind in kinds]
    return [one for one in parts if one.b_values]


def _fitted_from(series: Sequence[Series]) -> list[Series]:
    """Series for one fit, reduced to the volumes used, b = 0 first.

    A scanner's average over directions is used only if the directions are missing. Images with b = 0 from the series
    of the weighted images take precedence.

    Raises:
        UserError: images are missing, the weighted images differ in grid or echo time, or the images with b = 0 do not
            correlate.
    """
    directions, traces = (_parts(series, (kind,), b0=False) for kind in ("dwi", "trace"))
    chosen = directions or traces
    if not chosen:
        raise UserError(f"There is no ADC map among the DICOM series, and no diffusion-weighted image.{_why(series)}")
    first = chosen[0]
    for other in chosen[1:]:
        if difference := _difference(first, other):
            raise UserError(
                f"{first.name.capitalize()} and {other.name} do not match: {difference}. Name matching series with "
                "--series."
            )
    if directions and traces:
        logger.info("Excluded averages of directions that are present: %s.", ", ".join(o.name for o in traces))
    plain = _parts(series, ("dwi", "trace"), b0=True)
    own = [one for one in plain if one.number in {other.number for other in chosen}]
    plain = [one for one in own if one.kind == first.kind] or own or plain
    judged = [(one, _difference(first, one)) for one in plain]
    b0 = [one for one, why in judged if not why]
    excluded = [f"{one.name}: {why}" for one, why in judged if why]
    if not b0:
        reasons = "".join(f" {reason.capitalize()}." for reason in excluded)
        raise UserError(f"No image with b = 0 belongs to {first.name}.{reasons}{_why(series)}")
    for reason in excluded:
        logger.info("Excluded: %s.", reason)
    for other in b0[1:]:
        if (agreement := _agreement(b0[0].array.mean(-1), other.array.mean(-1))) < AGREEMENT:
            raise UserError(
                f"The correlation of {b0[0].name} and {other.name} is {agreement:.2f} (at least {AGREEMENT}): "
                "different phase encoding, motion or a different sequence. Name matching series with --series."
            )
    return [*b0, *chosen]


def _difference(first: Series, second: Series) -> str:
    """Why two series do not match; empty if they do."""
    if difference := grid_difference(first.volume(), second.volume(), GRID_TOLERANCE_MM):
        return difference
    if first.echo_ms and second.echo_ms and abs(first.echo_ms - second.echo_ms) > ECHO_MS:
        return f"echo time {second.echo_ms:g} ms, not {first.echo_ms:g} ms"
    if first.polarity and second.polarity and first.polarity != second.polarity:
        return f"phase encoding along {second.polarity}, not {first.polarity}"
    return ""


def _agreement(first: Floats, second: Floats) -> float:
    """Correlation of two images in the voxels where either has signal."""
    head = (first > 0.2 * np.percentile(first, 99)) | (second > 0.2 * np.percentile(second, 99))
    values = np.corrcoef(first[head], second[head])[0, 1] if head.sum() > 1 else 0.0
    return float(np.nan_to_num(values))


def _why(series: Sequence[Series]) -> str:
    """Hint for a message about missing images."""
    unstated = [one.name for one in series if one.kind in ("dwi", "trace") and None in one.b_values]
    excluded = dict.fromkeys(f"series {one.number}: {one.reason}" for one in series if one.reason)
    text = f" No b-value is stated by {', '.join(unstated)}." if unstated else ""
    return text + (f" Excluded: {'; '.join(excluded)}." if excluded else "")


def _bvals(path: Path, count: int) -> list[float]:
    """b-values of an image from FSL's ``.bval`` file."""
    file = path.with_name(path.name.removesuffix(extension_of(path)) + ".bval")
    if not file.exists():
        raise UserError(
            f"The b-values of {path} are unknown: its folder has no {file.name}. Give them with --b_values."
        )
    try:
        values = [float(word) for word in file.read_text(encoding="utf-8-sig").split()]
    except ValueError as error:
        raise UserError(f"{file} has a b-value that is not a number.") from error
    if len(values) != count:
        raise UserError(f"{file} has {len(values)} b-values for {count} images.")
    return values
