"""``run adc``: an ADC map from diffusion-weighted images by the mono-exponential fit, or from a scanner's own map."""

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

ECHO_MS = 1.0  # images whose echo times differ by more have another T2 weighting
AGREEMENT = 0.93  # least correlation of two images with b = 0; reversed phase encoding distorts them apart
RAYLEIGH_MEDIAN = np.sqrt(2 * np.log(2))  # of the noise's standard deviation


@dataclass(frozen=True)
class AdcFit:
    """A fitted map.

    Attributes:
        adc: 1e-6 mm²/s, 0 where there is no signal at b = 0.
        noise: standard deviation of the noise in the images' own unit; 0 if it is not known.
        floored: voxels with signal whose weighted signal is under the floor: their ADC is a lower bound.
    """

    adc: NDArray[np.float32]
    noise: float
    floored: NDArray[np.bool_]


def noise_of(image: Floats) -> float:
    """Standard deviation of the noise of each of a magnitude image's two channels, from the corners of its slices.

    In air a magnitude is Rayleigh distributed, with a median of 1.177 standard deviations.

    Args:
        image: (X, Y, Z); Z runs through the slices.

    Returns:
        0 where most of the corners is exactly 0: the scanner has masked the air.
    """
    nx, ny = (max(1, n // 10) for n in image.shape[:2])
    corners = [image[x, y] for x in (slice(nx), slice(-nx, None)) for y in (slice(ny), slice(-ny, None))]
    air = np.concatenate([corner.ravel() for corner in corners])
    return float(np.median(air) / RAYLEIGH_MEDIAN) if np.mean(air > 0) > 0.5 else 0.0


def fit_adc(
    signals: Sequence[Floats], b_values: Sequence[float], noise: float | None = None, noise_floor: float = 2.0
) -> AdcFit:
    """ADC by the mono-exponential model S(b) = S(0) exp(-b ADC), fitted to the logarithms.

    Images of one b-value are averaged geometrically first, so that those of several directions give the mean
    diffusivity. Of the logarithm of a signal S with noise σ the variance is (σ/S)², so that with three b-values or more
    each counts with its squared signal (Salvador et al., Human Brain Mapping 24, 2005). Signals under the floor carry
    the noise's own magnitude: they are excluded from the fit where two b-values remain, else the floor replaces them.

    Args:
        signals: images of one shape (X, Y, Z), not negative.
        b_values: s/mm², one for each.
        noise: standard deviation of the noise; None to estimate it from the air, 0 for no floor.
        noise_floor: in standard deviations of the noise.

    Raises:
        UserError: without one image of b ≤ 50 s/mm² and one with at least 100 s/mm² more; or without any signal.
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
    # Single voxels of any value must not raise the floor.
    least = max(noise_floor * noise, 1e-6 * max(float(np.percentile(image, 99)) for image in signals))
    if least <= 0:
        raise UserError("The images have no finite signal above the noise.")
    logs, weights, bs = [], [], []
    for members in _shells(values):
        images = np.stack([np.asarray(signals[i], dtype=np.float32) for i in members])
        mean = np.exp(np.log(np.maximum(images, least)).mean(0))
        logs.append(np.log(mean))
        # A direction under the floor taints its average.
        weights.append(np.where((images <= least).any(0), 0, mean.astype(np.float64) ** 2))
        bs.append(values[members].mean())
    head = (weights[0] > 0) & finite
    if not head.any():
        raise UserError("The image with b = 0 has no signal above the noise.")
    bright = head & (logs[0] > np.percentile(logs[0][head], 50))
    if (share := float((logs[-1] > logs[0])[bright].mean())) > 0.5:
        raise UserError(
            f"The image with b = {bs[-1]:g} is brighter than that with b = {bs[0]:g} in {share:.0%} of the head: the "
            "b-values are exchanged, or the images are not on one scale."
        )
    log, weight, b = np.stack(logs).astype(np.float64), np.stack(weights), np.array(bs)[:, None, None, None]
    enough = (weight > 0).sum(0) >= 2
    line = np.zeros_like(weight)
    line[:2] = 1  # through the two least b-values; the floor replaces signals under it
    weight = np.where(enough & (len(bs) > 2), weight, line)
    total = weight.sum(0)
    b_mean, log_mean = (weight * b).sum(0) / total, (weight * log).sum(0) / total
    slope = (weight * (b - b_mean) * (log - log_mean)).sum(0) / (weight * (b - b_mean) ** 2).sum(0)
    adc = np.where(head, np.clip(-1e6 * slope, 0, None), 0).astype(np.float32)
    floored = head & ~enough
    logger.info(
        "ADC from b = %s s/mm²; noise %.3g, floor %.3g (%s); the weighted signal is under it in %.1f %% of the voxels "
        "with signal, where ADC is a lower bound.",
        _listed([float(value) for value in bs]),
        noise,
        least if noise else 0,
        "of the air" if noise else "unknown: the air is masked, or no floor was asked for",
        100 * floored.sum() / head.sum(),
    )
    return AdcFit(adc, noise, floored)


def _shells(b_values: NDArray[np.float64]) -> list[list[int]]:
    """Images by b-value, least first; those within 5 % or 50 s/mm² of a shell's least are one (what scanners state
    for the directions of one b-value differs a little)."""
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
    """Write an ADC map in 1e-6 mm²/s, float32; what was assumed goes to the log.

    The arguments are keys of ``configs/scanner.yaml``, which explains them; for the noise see :func:`fit_adc`.

    Raises:
        UserError: for bad or missing images or b-values.
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
                raise UserError(f"{root}: the b-values of DICOM images are those of their headers; drop --b_values.")
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
    """The ADC map among DICOM series, 1e-6 mm²/s, and the series on whose grid it is.

    The arguments are those of :func:`write_adc`, and the series of :func:`.read_folder`.

    Raises:
        UserError: if there is not exactly one map, and no images to fit one from.
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
    """The images with b = 0 (at most 50 s/mm²): those of the fit if there are weighted ones.

    Raises:
        UserError: if there is none.
    """
    if _parts(series, ("dwi", "trace"), b0=False):
        return _fitted_from(series)[0]
    for one in _parts(series, ("dwi", "trace"), b0=True):
        return one
    raise UserError(f"There is no image with b = 0.{_why(series)}")


def _parts(series: Sequence[Series], kinds: Sequence[str], b0: bool) -> list[Series]:
    """Of series of these kinds the volumes with b = 0, or the weighted ones."""
    parts = [one.part(b0) for one in series if one.kind in kinds]
    return [one for one in parts if one.b_values]


def _fitted_from(series: Sequence[Series]) -> list[Series]:
    """Series that belong to one fit, each cut to the volumes that count, those with b = 0 first.

    A scanner's average over directions counts only where the directions are not there. Images with b = 0 of the
    weighted images' own series are preferred to those of others.

    Raises:
        UserError: without such; for weighted images of different grids or echo times; for images with b = 0 that do
            not agree.
    """
    directions, traces = (_parts(series, (kind,), b0=False) for kind in ("dwi", "trace"))
    chosen = directions or traces
    if not chosen:
        raise UserError(f"There is no ADC map among the DICOM series, and no diffusion-weighted image.{_why(series)}")
    first = chosen[0]
    for other in chosen[1:]:
        if difference := _difference(first, other):
            raise UserError(
                f"{first.name.capitalize()} and {other.name} do not belong to one fit: {difference}. Name the series "
                "that belong together with --series."
            )
    if directions and traces:
        logger.info("Excluded, as averages of directions that are also present: %s.", ", ".join(o.name for o in traces))
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
                f"{b0[0].name.capitalize()} and {other.name} correlate by {agreement:.2f} only (at least {AGREEMENT}): "
                "another phase encoding, motion or another sequence. Name those that belong together with --series."
            )
    return [*b0, *chosen]


def _difference(first: Series, second: Series) -> str:
    """Why two series cannot be of one fit; empty if they can."""
    if difference := grid_difference(first.volume(), second.volume(), GRID_TOLERANCE_MM):
        return difference
    if first.echo_ms and second.echo_ms and abs(first.echo_ms - second.echo_ms) > ECHO_MS:
        return f"echo time {second.echo_ms:g} ms, not {first.echo_ms:g} ms"
    if first.polarity and second.polarity and first.polarity != second.polarity:
        return f"phase encoding along {second.polarity}, not {first.polarity}"
    return ""


def _agreement(first: Floats, second: Floats) -> float:
    """Correlation of two images where either has signal."""
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
    """b-values of FSL's text file beside an image."""
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
