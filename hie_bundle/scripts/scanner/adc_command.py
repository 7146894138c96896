"""``run adc``: an ADC map from whatever a site has."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..io.images import write
from ..io.volumes import Volume, extension_of
from ..runtime.errors import UserError
from .adc import B0_MAX, fit_adc, to_micro
from .dicom import Stack, adc_of, scan, stacks_of
from .inputs import paths_of, read, refuse_other_grid

__all__ = ["adc_from_dicom", "b0_of", "without_b", "write_adc"]

logger = logging.getLogger(__name__)

Paths = str | Path | Sequence[str | Path]


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

    Args:
        images: several files with one image each; one 4D file with a ``.bval`` beside it or ``b_values``; a BIDS folder
            with one ``*_dwi`` file; a folder of DICOM images; or one 3D file, which is taken for a scanner's ADC map.
        output_file: ``.nii.gz``, ``.nii`` or ``.mha``.
        b_values: s/mm², one an image.
        noise: see :func:`scripts.scanner.adc.fit_adc`.
        noise_floor: see there.
        adc_scale: of a scanner's map; see :func:`scripts.scanner.adc.to_micro`.
        series: numbers of DICOM series to take; all if empty.
        adc_source: of DICOM: ``map``, the scanner's; ``fit``, from the diffusion images; None: the map if there is one.

    Raises:
        UserError: for bad or missing images or b-values.
    """
    if not images or not output_file:
        raise UserError("Say which images and where the map goes: --images FILES --output_file FILE.")
    paths = paths_of(images)
    if Path(output_file).resolve() in [path.resolve() for path in paths]:
        raise UserError(f"{output_file} is one of the images; nothing is overwritten.")
    if len(paths) == 1 and paths[0].is_dir():
        root = paths[0]
        paths = sorted(p for p in root.rglob("*_dwi.nii*") if "derivatives" not in p.relative_to(root).parts)
        if not paths:
            if b_values is not None:
                raise UserError(f"{root}: the b-values of DICOM images are those of their headers; drop --b_values.")
            adc, _ = adc_from_dicom(stacks_of(scan(root), series), noise, noise_floor, adc_scale, adc_source)
            write(output_file, adc.array, adc.affine)
            return
        if len(paths) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in paths[:3])
            raise UserError(f"{root} holds {len(paths)} diffusion images ({names} …); name one with --images.")
    if series or adc_source:
        raise UserError("--series and --adc_source are for folders of DICOM images.")
    volumes = [read(path) for path in paths]
    if len(paths) == 1 and volumes[0].array.ndim == 3 and b_values is None:
        write(output_file, to_micro(volumes[0].array, adc_scale), volumes[0].affine)
        return
    if adc_scale is not None:
        raise UserError("--adc_scale is of a scanner's own map; ADC fitted from images needs none.")
    signals: list[NDArray[np.floating]] = []
    found: list[float] = []
    for path, volume in zip(paths, volumes, strict=True):
        refuse_other_grid(volumes[0], volume, (str(paths[0]), str(path)))
        parts = [volume.array] if volume.array.ndim == 3 else list(np.moveaxis(volume.array, -1, 0))
        signals += parts
        if b_values is None:
            found += _bvals(path, len(parts))
    fit = fit_adc(signals, found if b_values is None else b_values, noise, noise_floor)
    write(output_file, fit.adc, volumes[0].affine)


def adc_from_dicom(
    stacks: Sequence[Stack],
    noise: float | None = None,
    noise_floor: float = 2.0,
    adc_scale: float | None = None,
    adc_source: str | None = None,
) -> tuple[Volume, Stack]:
    """The ADC map among DICOM series, 1e-6 mm²/s, and the series that lies on its grid.

    Args:
        stacks: of :func:`scripts.scanner.dicom.stacks_of`.
        noise: see :func:`write_adc`.
        noise_floor: see there.
        adc_scale: see there.
        adc_source: see there.

    Raises:
        UserError: if there is not exactly one map, and no images to fit one from.
    """
    if adc_source not in (None, "map", "fit"):
        raise UserError(f"adc_source '{adc_source}' is unknown; choose one of: map, fit.")
    maps = [stack for stack in stacks if stack.kind == "adc"]
    diffusion = [stack for stack in stacks if stack.kind == "dwi"]
    if len(maps) > 1 and adc_source != "fit":
        names = ", ".join(stack.name for stack in maps)
        raise UserError(f"There are several ADC maps: {names}. Name one with --series, or take --adc_source fit.")
    if maps and adc_source != "fit":
        volume, scale = adc_of(maps[0])
        logger.info("ADC map of the scanner: %s.", maps[0].name)
        values = to_micro(volume.array, adc_scale or scale)
        return Volume(values, volume.affine), maps[0]
    if adc_source == "map" or not diffusion:
        raise UserError(
            "There is no ADC map among the DICOM series" + ("." if diffusion else ", and no diffusion image.")
        )
    if unknown := [stack for stack in diffusion if stack.b_value is None]:
        raise UserError(
            f"{unknown[0].name.capitalize()} does not state its b-value; convert it to NIfTI and name its b-values "
            "(--b_values)."
        )
    signals, b_values = [], []
    first = diffusion[0].volumes()[0]
    for stack in diffusion:
        for volume in stack.volumes():
            refuse_other_grid(first, volume, (diffusion[0].name, stack.name))
            signals.append(volume.array)
            b_values.append(float(stack.b_value or 0))
    logger.info("ADC fitted from %s.", ", ".join(stack.name for stack in diffusion))
    fit = fit_adc(signals, b_values, noise, noise_floor)
    return Volume(fit.adc, first.affine), b0_of(diffusion) or diffusion[0]


def b0_of(stacks: Sequence[Stack]) -> Stack | None:
    """The first series that states b = 0 (at most 50 s/mm²) among DICOM series; None if there is none."""
    stated = (stack for stack in stacks if stack.kind == "dwi" and stack.b_value is not None)
    return next((stack for stack in stated if (stack.b_value or 0) <= B0_MAX), None)


def without_b(stacks: Sequence[Stack]) -> str:
    """What to add to a message that b = 0 is missing: the series that may be it but do not say so; empty without."""
    names = [stack.name for stack in stacks if stack.kind == "dwi" and stack.b_value is None]
    return f" No b-value is stated by {', '.join(names)}." if names else ""


def _bvals(path: Path, count: int) -> list[float]:
    """b-values of FSL's text file beside an image."""
    file = path.with_name(path.name.removesuffix(extension_of(path)) + ".bval")
    if not file.exists():
        raise UserError(
            f"The b-values of {path} are not known: there is no {file.name} beside it. Name them: --b_values."
        )
    try:
        values = [float(word) for word in file.read_text().split()]
    except ValueError as error:
        raise UserError(f"{file} holds something that is no number.") from error
    if len(values) != count:
        raise UserError(f"{file} has {len(values)} b-values for {count} images.")
    return values
