"""``run scan``: from a folder of DICOM to a lesion mask and its DICOM segmentation."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..data.checks import Limits
from ..inference.segmenter import CAUTION, Segmenter
from ..io.files import whole_folder, write_atomically, write_json
from ..io.images import write
from ..io.volumes import Volume
from ..report.pictures import CaseSlices
from ..runtime.errors import UserError
from ..runtime.mixins import bundle_version
from ..scanner.adc import adc_from_dicom, b0_of
from ..scanner.brain_mask import brain_mask, given_mask, show_and_judge, strip
from ..scanner.dicom import Series, listed, read_folder, require_highdicom
from ..scanner.dicom_seg import capture_of, contours_of, segmentation_of, source_images
from ..scanner.inputs import paths_of, read, refuse_other_grid
from ..scanner.zscore import FitLimits, write_zscore

logger = logging.getLogger(__name__)


def write_scan(
    images: str | Path | Sequence[str | Path] | None,
    output_dir: str | Path | None,
    limits: Limits,
    fit_limits: FitLimits,
    atlas_mean: str | Path | None = None,
    atlas_std: str | Path | None = None,
    brain_file: str | Path | None = None,
    weights: str | Path | Sequence[str | Path] = "simulated",
    adc: dict[str, Any] | None = None,
    zscore: dict[str, Any] | None = None,
    series: Sequence[int] = (),
    secondary_capture: bool = False,
    rtstruct: bool = False,
    list: str | Path | bool | None = None,
) -> None:
    """Segment a scan. All files appear together at the end; after an error only the pictures do.

    The files are ``adc.nii.gz`` (skull-stripped), ``brain.nii.gz``, ``zadc.nii.gz`` with the other files of
    `run zscore` if there is an atlas, ``lesion.nii.gz``, ``lesion.dcm`` (DICOM SEG on the series of the ADC map),
    ``brain.png``, ``lesion.png`` and ``scan.json`` (measurements, weights, seconds). JSON, log and pictures do not
    identify the patient.

    Args:
        images: folder of DICOM with images with b = 0 and diffusion-weighted images, or the scanner's ADC map.
        output_dir: folder of the results; must not exist, unless it has only pictures of an earlier error.
        limits: provides the range of the brain's volume.
        fit_limits: acceptance limits of the atlas' fit.
        atlas_mean: mean of the atlas for a Z map; without an atlas, ADC alone is segmented.
        atlas_std: standard deviation of the atlas.
        brain_file: brain mask; None to compute it from the image with b = 0.
        weights: see :class:`scripts.inference.segmenter.Segmenter`; the file provides the recipe.
        adc: options of `run adc`.
        zscore: options of `run zscore`.
        series: numbers of the DICOM series to use; all if empty.
        list: folder of DICOM, or True for ``images``: only print its series, with reasons for exclusion.
        secondary_capture: also write ``lesion.png`` as DICOM Secondary Capture, ``lesion_picture.dcm``.
        rtstruct: also write the mask as DICOM RT Structure Set, ``lesion_contours.dcm``.

    Raises:
        UserError: a step fails, or files or options are wrong.
    """
    if list:
        print(listed(read_folder(paths_of(images)[0] if list is True and images else str(list), series, strict=False)))
        return
    start = time.monotonic()
    folders = paths_of(images)
    if len(folders) != 1 or not output_dir:
        raise UserError("Name the folder of DICOM and the output folder: --images DIR --output_dir DIR.")
    if (atlas_mean is None) != (atlas_std is None):
        raise UserError("Only one of --atlas_mean and --atlas_std is given; give both, or neither.")
    if Path(output_dir).resolve().is_relative_to(folders[0].resolve()):
        raise UserError(f"{output_dir} is inside the folder of images; choose another --output_dir.")
    require_highdicom()  # fail early
    with whole_folder(output_dir, left=".png") as work:
        segmenter = Segmenter(weights)
        found_series = read_folder(folders[0], series, work=work)
        found, source = adc_from_dicom(found_series, **(adc or {}))
        source_images(source)  # fail early
        if brain_file:
            mask, shown = given_mask(brain_file, found, source.name), found
        else:
            shown = _b0_on_grid(found_series, found, source.name)
            mask = brain_mask(shown)
        show_and_judge(mask, shown, work / "brain.png", limits, source.name, whole=brain_file is None)
        stripped = strip(found, mask)
        write(work / "brain.nii.gz", mask.astype(np.uint8), found.affine)
        write(work / "adc.nii.gz", stripped.array, found.affine)
        fit = None
        if atlas_mean:
            fit = write_zscore(
                work / "adc.nii.gz", atlas_mean, atlas_std, work / "zadc.nii.gz", fit_limits, adc_scale=1,
                name=f"the ADC map of {source.name}", **(zscore or {}),
            )  # fmt: skip
        zadc = read(work / "zadc.nii.gz").array if fit else None
        # Arrays instead of files, so that messages do not name files in the temporary `work`.
        result = segmenter.result(stripped.array, zadc, affine=found.affine, case="scan")
        write(work / "lesion.nii.gz", result.mask, result.affine)
        segmentation_of(result.mask, source).save_as(work / "lesion.dcm")
        maps = {"ADC": stripped.array} | ({} if zadc is None else {"ZADC": zadc})
        slices = CaseSlices(maps, {"pred": result.mask}, result.affine)
        write_atomically(work / "lesion.png", slices.spread_picture(result.line))
        if secondary_capture:
            capture_of(work / "lesion.png", source).save_as(work / "lesion_picture.dcm")
        if rtstruct:
            contours_of(result.mask, source).save_as(work / "lesion_contours.dcm", enforce_file_format=True)
        write_json(
            work / "scan.json",
            {
                "caution": CAUTION,
                "version": bundle_version(),
                "adc": source.name,
                "brain": "given" if brain_file else "made from b = 0",
                "atlas_fit": fit and asdict(fit),
                **segmenter.making,
                **result.figures,
                "seconds": round(time.monotonic() - start, 1),
            },
            indent=1,
        )
    files = f"{output_dir}: lesion.dcm, lesion.nii.gz, lesion.png, brain.png"
    for line in (result.line, result.plausibility.line, *result.notes, files):
        logger.info("%s", line)
    logger.info(CAUTION)


def _b0_on_grid(series: Sequence[Series], adc: Volume, name: str) -> Volume:
    """The image with b = 0 on the grid of the ADC map. A scanner's map may be on another grid than its images."""
    try:
        b0 = b0_of(series).volume()
        refuse_other_grid(adc, b0, (name, "the image with b = 0"))
    except UserError as error:
        raise UserError(
            f"No image with b = 0 is on the grid of {name}, so the brain cannot be found. {error} Give a brain mask: "
            "--brain_file FILE."
        ) from error
    return b0
