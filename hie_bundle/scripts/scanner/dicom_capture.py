"""A picture of a result as DICOM Secondary Capture, for viewers that do not show segmentations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..runtime.errors import UserError
from ..runtime.mixins import bundle_version
from .dicom import Stack, require_highdicom

__all__ = ["BURNT_IN", "capture_of"]

BURNT_IN = "RESEARCH USE ONLY - not a medical device, not for diagnosis or treatment"
BAND = 0.03  # of the picture's width, the height of the line that is burnt in


def capture_of(picture: str | Path, stack: Stack) -> Any:
    """A picture as DICOM Secondary Capture in the study of its source, ``BURNT_IN`` in a band below it.

    Args:
        picture: PNG of axial slices, the patient's right on the left, the face above. It must not name the patient.
        stack: whose patient and study it belongs to.

    Returns:
        ``highdicom.sc.SCImage``, RGB.

    Raises:
        UserError: if DICOM's packages are not installed, or the images lack what a DICOM object must state.
    """
    highdicom = require_highdicom()
    from pydicom.uid import generate_uid

    version = bundle_version()
    try:
        capture = highdicom.sc.SCImage.from_ref_dataset(
            stack.slices[0][0],
            _with_band(picture),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            series_instance_uid=generate_uid(),
            series_number=2000 + stack.series,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="hie_bundle",
            patient_orientation=("L", "P"),
            manufacturer_model_name="hie_bundle",
            software_versions=version,
            series_description="HIE lesion, picture. Research use only; not for diagnosis",
        )
    except AttributeError as error:  # an element of the source that has to be carried over; its name, not its value
        raise UserError(f"{stack.name.capitalize()}: an image lacks what a picture must carry: {error}.") from error
    capture.ConversionType = "WSD"  # made by a workstation
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "NO"  # which means: nothing that tells who the patient is
    return capture


def _with_band(picture: str | Path) -> np.ndarray:
    """RGB values (rows, columns, 3) of a PNG with ``BURNT_IN`` below it."""
    with Image.open(picture) as image:
        shown = image.convert("RGB")
    width, height = shown.size
    band = max(16, round(BAND * width))
    whole = Image.new("RGB", (width, height + band), "black")
    whole.paste(shown, (0, 0))
    size = 0.7 * band
    font = ImageFont.load_default(size)
    size *= min(1.0, 0.95 * width / font.getlength(BURNT_IN))
    ImageDraw.Draw(whole).text(
        (width / 2, height + band / 2), BURNT_IN, "white", ImageFont.load_default(size), anchor="mm"
    )
    return np.asarray(whole)
