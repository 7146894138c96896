"""``run dicom_seg``: a lesion mask as DICOM segmentation on the series that it was made from."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.checks import grid_difference
from ..io.files import atomic_path
from ..runtime.errors import UserError
from ..runtime.mixins import bundle_version
from .dicom import Stack, require_highdicom, scan, stacks_of
from .dicom_capture import capture_of
from .inputs import GRID_TOLERANCE_MM, read
from .previews import outlines

__all__ = ["segmentation_of", "write_dicom_seg"]

logger = logging.getLogger(__name__)

ALGORITHM = "hie_bundle"
RESEARCH = "Research use only; not for diagnosis"


def write_dicom_seg(
    mask_file: str | Path | None,
    images: str | Path | None,
    output_file: str | Path | None,
    series: Sequence[int] = (),
    capture_file: str | Path | None = None,
) -> None:
    """Write a mask as DICOM SEG that refers to the images of its series; the log says which.

    Args:
        mask_file: 0 and 1, on the grid of one of the series, as `run adc` writes it and segmentation keeps it.
        images: folder of DICOM with that series. Of several on the mask's grid the ADC map is taken, else the image
            with the least b-value.
        output_file: ``.dcm``.
        series: numbers of series to look at; all if empty.
        capture_file: ``.dcm``; where a picture of the series with the mask's outline and volume goes, as DICOM
            Secondary Capture.

    Raises:
        UserError: for bad files, or when no series lies on the mask's grid.
    """
    if not mask_file or not images or not output_file:
        raise UserError("Say which mask, where its series is and where it goes: --mask_file --images --output_file.")
    folder = Path(images)
    for file in (output_file, capture_file) if capture_file else (output_file,):
        if not str(file).lower().endswith(".dcm"):
            raise UserError(f"{file}: a DICOM segmentation is written as .dcm.")
        if Path(file).exists() and Path(file).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{file} is among the images; nothing is overwritten there.")
    if capture_file and Path(capture_file).resolve() == Path(output_file).resolve():
        raise UserError(f"{output_file} is to hold the segmentation and the picture; give them two names.")
    mask = read(mask_file, 3)
    if not np.isin(mask.array, (0, 1)).all():
        raise UserError(f"{mask_file} has other values than 0 and 1; it is no mask.")
    stacks = sorted(
        stacks_of(scan(folder), series),
        key=lambda stack: (stack.kind != "adc", np.inf if stack.b_value is None else stack.b_value),
    )
    differences = [grid_difference(stack.grid(), mask, GRID_TOLERANCE_MM) for stack in stacks]
    if "" not in differences:
        reasons = "; ".join(f"{stack.name}: {why}" for stack, why in zip(stacks, differences, strict=True))
        raise UserError(f"{mask_file} lies on the grid of no series in {folder} ({reasons or 'none of diffusion'}).")
    stack = stacks[differences.index("")]
    segmentation = segmentation_of(mask.array, stack)
    if capture_file:
        with tempfile.TemporaryDirectory() as place, atomic_path(capture_file) as temporary:
            volume_ml = float(mask.array.sum() * np.prod(mask.spacing_mm)) / 1000
            picture = Path(place) / "lesion.png"
            outlines(picture, stack.volumes()[0], mask.array, f"{volume_ml:.2f} ml", "lesion")
            capture_of(picture, stack).save_as(temporary)
    with atomic_path(output_file) as temporary:
        segmentation.save_as(temporary)
    logger.info("DICOM segmentation of %d voxels on %s.", int(mask.array.sum()), stack.name)


def segmentation_of(mask: NDArray[Any], stack: Stack) -> Any:
    """A binary DICOM segmentation, the source images referenced slice by slice.

    Category, type and region are SNOMED CT's: morphologically abnormal structure (49755003), lesion (52988006), brain
    (12738006). An empty mask keeps all its frames: it says "nothing found", not "not looked at".
    ``ContentQualification`` is RESEARCH. Patient and study are those of the source.

    Args:
        mask: (X, Y, Z), 0 and 1, on the stack's grid.
        stack: its first volume is referred to.

    Returns:
        ``highdicom.seg.Segmentation``.

    Raises:
        UserError: if DICOM's packages are not installed, or the images lack what a DICOM object must state.
    """
    highdicom = require_highdicom()
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    version = bundle_version()
    sources = stack.slices[0]
    family = Code("123109", "DCM", "Artificial Intelligence")
    description = highdicom.seg.SegmentDescription(
        1,
        "HIE lesion",
        Code("49755003", "SCT", "Morphologically Abnormal Structure"),
        Code("52988006", "SCT", "Lesion"),
        highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        highdicom.AlgorithmIdentificationSequence(ALGORITHM, family, version),
        anatomic_regions=[Code("12738006", "SCT", "Brain")],
        display_color=highdicom.color.CIELabColor(70.0, 30.0, 70.0),  # orange
    )
    try:
        segmentation = highdicom.seg.Segmentation(
            list(sources),
            np.ascontiguousarray(mask.astype(np.uint8).T),  # frames, rows, columns
            highdicom.seg.SegmentationTypeValues.BINARY,
            [description],
            series_instance_uid=generate_uid(),
            series_number=1000 + stack.series,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=ALGORITHM,
            manufacturer_model_name=ALGORITHM,
            software_versions=version,
            device_serial_number="0",
            content_label="HIE_LESION",
            content_description=RESEARCH,
            omit_empty_frames=False,
            series_description=f"HIE lesion. {RESEARCH}",
        )
    except AttributeError as error:  # an element of the source that has to be carried over; its name, not its value
        raise UserError(
            f"{stack.name.capitalize()}: an image lacks what a segmentation must carry: {error}."
        ) from error
    segmentation.ContentQualification = "RESEARCH"
    return segmentation
