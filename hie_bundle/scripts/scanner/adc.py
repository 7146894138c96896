"""ADC maps from diffusion-weighted images: the mono-exponential fit, its noise floor, and the scales of ADC maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import UserError

__all__ = ["AdcFit", "fit_adc", "noise_of", "scale_of", "to_micro"]

logger = logging.getLogger(__name__)

Floats = NDArray[np.floating]

B0_MAX = 50.0  # s/mm²; what scanners store as b = 0 is often b = 5 or 20
HEAD_MEDIAN = (400.0, 2600.0)  # 1e-6 mm²/s; of a newborn's head, with and without skull
# What an ADC of 1e-6 mm²/s is in files: scanners and converters differ by powers of ten.
SCALES = {1.0: "1e-6 mm²/s", 10.0: "1e-5 mm²/s", 1e3: "1e-3 mm²/s", 1e6: "mm²/s", 1e12: "m²/s"}
RAYLEIGH_MEDIAN = np.sqrt(2 * np.log(2))  # of the noise's standard deviation


@dataclass(frozen=True)
class AdcFit:
    """A fitted map.

    Attributes:
        adc: 1e-6 mm²/s, 0 where there is no signal at b = 0.
        s0: the fitted signal at b = 0.
        noise: standard deviation of the noise in the images' own unit; 0 if it is not known.
        floored: voxels with signal whose weighted signal is under the floor: their ADC is a lower bound.
    """

    adc: NDArray[np.float32]
    s0: NDArray[np.float32]
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
    the noise's own magnitude: they are left out of the fit where two b-values remain, else the floor stands for them.

    Args:
        signals: images of one shape (X, Y, Z), not negative.
        b_values: s/mm², one for each.
        noise: standard deviation of the noise; None to take it from the air, 0 for no floor.
        noise_floor: in standard deviations of the noise.

    Raises:
        UserError: without one image of b ≤ 50 s/mm² and one with at least 100 s/mm² more; or without any signal.
    """
    values = np.asarray(b_values, dtype=float)
    if len(values) != len(signals):
        raise UserError(f"There are {len(signals)} images and {len(values)} b-values; each image needs its own.")
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 20000:
        raise UserError(f"The b-values {_listed(values)} are no b-values in s/mm².")
    if values.min() > B0_MAX or values.max() - values.min() < 100:
        raise UserError(
            f"An ADC map needs an image with b = 0 (at most {B0_MAX:g}) and one with a larger b-value; the b-values "
            f"are {_listed(values)} s/mm². Name them with --b_values."
        )
    shells = _shells(values)
    if noise is None:
        noise = noise_of(signals[int(values.argmax())])
    least = max(noise_floor * noise, 1e-6 * max(float(np.max(image)) for image in signals))
    logs, weights, bs = [], [], []
    for members in shells:
        images = np.stack([np.asarray(signals[i], dtype=np.float32) for i in members])
        mean = np.exp(np.log(np.maximum(images, least)).mean(0))
        logs.append(np.log(mean))
        # A direction under the floor taints its average.
        weights.append(np.where((images <= least).any(0), 0, mean.astype(np.float64) ** 2))
        bs.append(values[members].mean())
    head = weights[0] > 0
    if not head.any():
        raise UserError("The image with b = 0 has no signal above the noise.")
    log, weight, b = np.stack(logs).astype(np.float64), np.stack(weights), np.array(bs)[:, None, None, None]
    enough = (weight > 0).sum(0) >= 2
    if len(bs) == 2:
        weight = np.ones_like(weight)  # a line through two points
    else:
        last = np.zeros_like(weight)
        last[:2] = 1  # the two least b-values, the floor standing for what is under it
        weight = np.where(enough, weight, last)
    total = weight.sum(0)
    b_mean, log_mean = (weight * b).sum(0) / total, (weight * log).sum(0) / total
    slope = (weight * (b - b_mean) * (log - log_mean)).sum(0) / (weight * (b - b_mean) ** 2).sum(0)
    adc = np.where(head, np.clip(-1e6 * slope, 0, None), 0).astype(np.float32)
    s0 = np.where(head, np.exp(log_mean - slope * b_mean), 0).astype(np.float32)
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
    return AdcFit(adc, s0, noise, floored)


def scale_of(adc: Floats, brain: NDArray[np.bool_] | None = None) -> tuple[float, str]:
    """The factor that brings an ADC map of unknown unit to 1e-6 mm²/s, told by its median.

    The units that occur are powers of ten apart by more than the medians of heads are.

    Args:
        adc: (X, Y, Z); 0 and below count as background.
        brain: where to look; everything above 0 if None.

    Returns:
        The factor, and the unit's name.

    Raises:
        UserError: when no unit gives a plausible newborn's head.
    """
    values = adc[(adc > 0) & np.isfinite(adc) if brain is None else brain & (adc > 0)]
    median = float(np.median(values)) if values.size else 0.0
    for scale, unit in SCALES.items():
        if HEAD_MEDIAN[0] <= median * scale <= HEAD_MEDIAN[1]:
            return scale, unit
    raise UserError(
        f"The median of the ADC map is {median:.4g}, which is an ADC of a newborn's head in none of the units "
        f"{', '.join(SCALES.values())}. Is it an ADC map? If so, name the factor to 1e-6 mm²/s with --adc_scale."
    )


def to_micro(adc: Floats, scale: float | None = None, brain: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """An ADC map in 1e-6 mm²/s; what was assumed goes to the log.

    Args:
        adc: in any unit; values that are not finite, or below 0, become 0.
        scale: factor to 1e-6 mm²/s; None to tell it by :func:`scale_of`.
        brain: see there.

    Raises:
        UserError: see there.
    """
    if scale is None:
        scale, unit = scale_of(adc, brain)
        logger.info("The ADC map's values are taken to be in %s: factor %g to 1e-6 mm²/s.", unit, scale)
    else:
        logger.info("The ADC map's values are multiplied by %g, as told, to 1e-6 mm²/s.", scale)
    return (np.where(np.isfinite(adc) & (adc > 0), adc, 0) * scale).astype(np.float32)


def _shells(b_values: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Images by b-value, least first; those within 5 % or 50 s/mm² of a shell's least are one (what scanners state
    for the directions of one b-value differs a little)."""
    order = np.argsort(b_values, kind="stable")
    shells: list[list[int]] = []
    for i in order:
        first = b_values[shells[-1][0]] if shells else -np.inf
        if b_values[i] <= max(first * 1.05, first + B0_MAX):
            shells[-1].append(int(i))
        else:
            shells.append([int(i)])
    return [np.array(shell) for shell in shells]


def _listed(values: Sequence[float] | NDArray[np.float64]) -> str:
    return ", ".join(f"{value:g}" for value in values)
