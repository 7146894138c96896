"""``run dicom_seg``: a lesion mask as DICOM segmentation, contours (RTSTRUCT) and picture (Secondary Capture)."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..data.checks import grid_difference
from ..io.files import atomic_path
from ..io.volumes import LPS_TO_RAS, Volume
from ..runtime.errors import UserError
from ..runtime.mixins import bundle_version
from .dicom import Series, read_folder, require_highdicom, require_pydicom
from .dicom_sr import anatomy_of, report_of
from .inputs import GRID_TOLERANCE_MM, read, refuse_other_grid
from .previews import outlines
from .regions import RegionAtlas

__all__ = ["BURNT_IN", "capture_of", "contours_of", "segmentation_of", "source_images", "write_dicom_seg"]

logger = logging.getLogger(__name__)

ALGORITHM = "hie_bundle"
RESEARCH = "Research use only; not for diagnosis"
BURNT_IN = "RESEARCH USE ONLY - not a medical device, not for diagnosis or treatment"
BAND = 0.03  # height of the burnt-in line, as a share of the picture's width
UTF8 = "ISO_IR 192"
REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip


def write_dicom_seg(
    mask_file: str | Path | None,
    images: str | Path | None,
    output_file: str | Path | None,
    series: Sequence[int] = (),
    capture_file: str | Path | None = None,
    rtstruct_file: str | Path | None = None,
    regions: str | Path | None = None,
    adc_file: str | Path | None = None,
    report_file: str | Path | None = None,
) -> None:
    """Write a mask as DICOM SEG that refers to the images of its series, which is logged.

    Args:
        mask_file: 0 and 1, on the grid of one of the series, as `run adc` writes it and segmentation keeps it.
        images: folder of DICOM with that series. Of several on the mask's grid the ADC map is taken, else the image
            with the least b-value.
        output_file: ``.dcm``.
        series: numbers of the series to consider; all if empty.
        capture_file: ``.dcm``; where a picture of the series with the mask's outline and volume goes, as DICOM
            Secondary Capture.
        rtstruct_file: ``.dcm``; where the mask's contours go, as DICOM RT Structure Set.
        regions: folder of an atlas (:class:`.RegionAtlas`); the lesion's part in each region becomes a segment.
        adc_file: skull-stripped ADC map on the mask's grid, which the atlas is registered to.
        report_file: ``.dcm``; where volume and injured share of each region go, as DICOM structured report.

    Raises:
        UserError: for bad files, when no series has the mask's grid, or the atlas does not fit.
    """
    if not mask_file or not images or not output_file:
        raise UserError(
            "Name the mask, the folder of its series and the output file: --mask_file --images --output_file."
        )
    folder = Path(images)
    if bool(regions) != bool(adc_file) or (report_file and not regions):
        raise UserError("Regions need an atlas and the ADC map that was segmented: --regions ATLAS --adc_file FILE.")
    files = [file for file in (output_file, capture_file, rtstruct_file, report_file) if file]
    for file in files:
        if not str(file).lower().endswith(".dcm"):
            raise UserError(f"{file}: a DICOM segmentation is written as .dcm.")
        if Path(file).exists() and Path(file).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{file} is inside the folder of images; choose another output file.")
    if len({Path(file).resolve() for file in files}) < len(files):
        raise UserError(f"{output_file} is named for the segmentation and another file; give two names.")
    mask = read(mask_file, 3)
    if not np.isin(mask.array, (0, 1)).all():
        raise UserError(f"{mask_file} is not a mask: it has other values than 0 and 1.")
    found = sorted(
        (one for one in read_folder(folder, series) if one.kind != "other"),
        key=lambda one: (one.kind != "adc", min((np.inf if b is None else b for b in one.b_values), default=np.inf)),
    )
    differences = [grid_difference(one.volume(), mask, GRID_TOLERANCE_MM) for one in found]
    if "" not in differences:
        reasons = "; ".join(f"{one.name}: {why}" for one, why in zip(found, differences, strict=True))
        raise UserError(
            f"{mask_file} is not on the grid of any series in {folder} ({reasons or 'none is of diffusion'})."
        )
    source = found[differences.index("")]
    parts, rows = _in_regions(mask, mask_file, adc_file, regions) if regions and adc_file else ({}, [])
    segmentation = segmentation_of(mask.array, source, parts)
    if report_file:
        report = report_of(rows, segmentation, source_images(source))
        with atomic_path(report_file) as temporary:
            report.save_as(temporary)
    if capture_file:
        with tempfile.TemporaryDirectory() as place, atomic_path(capture_file) as temporary:
            volume_ml = float(mask.array.sum() * np.prod(mask.spacing_mm)) / 1000
            picture = Path(place) / "lesion.png"
            outlines(picture, source.volume(), mask.array, f"{volume_ml:.2f} ml", "lesion")
            capture_of(picture, source).save_as(temporary)
    if rtstruct_file:
        contours = contours_of(mask.array, source)
        with atomic_path(rtstruct_file) as temporary:
            contours.save_as(temporary, enforce_file_format=True)
    with atomic_path(output_file) as temporary:
        segmentation.save_as(temporary)
    logger.info("DICOM segmentation of %d voxels on %s.", int(mask.array.sum()), source.name)


def _in_regions(
    mask: Volume, mask_file: str | Path, adc_file: str | Path, regions: str | Path
) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
    """The part of a mask in each region, and the rows of :meth:`.RegionAtlas.injured`."""
    adc = read(adc_file, 3)
    refuse_other_grid(mask, adc, (str(mask_file), str(adc_file)))
    labels, rows, note = RegionAtlas(regions).injured(adc, mask.array)
    if labels is None:
        raise UserError(f"{adc_file}: {note}. Remove --regions, or use another atlas.")
    return {row["region"]: (labels == row["number"]) & (mask.array > 0) for row in rows}, rows


def segmentation_of(mask: NDArray[Any], source: Series, parts: Mapping[str, NDArray[Any]] | None = None) -> Any:
    """A binary DICOM segmentation that refers to the source images, slice by slice if each slice is a file.

    Category, type and region are SNOMED CT's: morphologically abnormal structure (49755003), lesion (52988006), brain
    (12738006). An empty mask keeps all its frames: it says "nothing found", not "not looked at".
    ``ContentQualification`` is RESEARCH. Patient and study are those of the source.

    Args:
        mask: (X, Y, Z), 0 and 1, on the series' grid.
        source: the series that is referred to.
        parts: of the mask by region, same shape; each is a further segment with the region's code.

    Returns:
        ``highdicom.seg.Segmentation``.

    Raises:
        UserError: if DICOM's packages are not installed, or the images lack what a DICOM object must state.
    """
    highdicom = require_highdicom()
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    version = bundle_version()
    images = source_images(source)
    family = Code("123109", "DCM", "Artificial Intelligence")
    named = {"HIE lesion": mask} | {f"HIE lesion, {region}": part for region, part in (parts or {}).items()}
    descriptions = [
        highdicom.seg.SegmentDescription(
            number,
            name[:64],  # a DICOM label's length
            Code("49755003", "SCT", "Morphologically Abnormal Structure"),
            Code("52988006", "SCT", "Lesion"),
            highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            highdicom.AlgorithmIdentificationSequence(ALGORITHM, family, version),
            tracking_uid=generate_uid(),
            tracking_id=name,
            anatomic_regions=anatomy_of(name)[0],
            display_color=highdicom.color.CIELabColor(70.0, 30.0, 70.0),  # orange
        )
        for number, name in enumerate(named, start=1)
    ]
    for description, name in zip(descriptions, named, strict=True):
        if side := anatomy_of(name)[1]:
            for place in description.AnatomicRegionSequence:
                place.AnatomicRegionModifierSequence = [highdicom.sr.CodedConcept.from_code(side)]
    # frames, rows, columns, segments
    pixels: Any = np.stack([np.ascontiguousarray(part.astype(np.uint8).T) for part in named.values()], axis=-1)
    if len(images) != len(pixels):  # a mosaic or an enhanced image, whose frames are not the mask's
        lps = (LPS_TO_RAS @ source.affine)[:, [2, 1, 0, 3]]
        frame = images[0].FrameOfReferenceUID
        channels = {"SegmentNumber": list(range(1, len(named) + 1))}
        pixels = highdicom.Volume(pixels, lps, "PATIENT", frame_of_reference_uid=frame, channels=channels)
    with _named_faults(source, "segmentation"):
        segmentation = highdicom.seg.Segmentation(
            images,
            pixels,
            highdicom.seg.SegmentationTypeValues.BINARY,
            descriptions,
            series_instance_uid=generate_uid(),
            series_number=1000 + source.number,
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
    segmentation.ContentQualification = "RESEARCH"
    segmentation.SpecificCharacterSet = UTF8
    return segmentation


def contours_of(mask: NDArray[Any], source: Series) -> Any:
    """A mask as DICOM RT Structure Set: closed contours midway between voxels in and out, in the slices of the source.

    A hole is a contour within another one; readers take what is within an odd number of them (XOR). rt-utils would draw
    through the voxels' centres, so that a lesion of one voxel has no area, and takes no enhanced images.

    Args:
        mask: (X, Y, Z), 0 and 1, on the series' grid.
        source: the series that is referred to.

    Returns:
        ``pydicom.Dataset``; without contours if the mask is empty.

    Raises:
        UserError: as :func:`segmentation_of`.
    """
    pydicom = require_pydicom()
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    images, to_patient = source_images(source), LPS_TO_RAS @ source.affine
    first = images[0]
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword in (*EMPTY, "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(made, keyword, first[keyword].value)
    made.SpecificCharacterSet, made.Modality, made.SeriesInstanceUID = UTF8, "RTSTRUCT", generate_uid()
    made.SeriesNumber, made.InstanceNumber = 3000 + source.number, 1
    made.Manufacturer = made.ManufacturerModelName = ALGORITHM
    made.SoftwareVersions, made.SeriesDescription = bundle_version(), f"HIE lesion. {RESEARCH}"
    made.StructureSetLabel, made.StructureSetDescription = "HIE_LESION", RESEARCH
    made.OperatorsName = made.StructureSetDate = made.StructureSetTime = ""
    made.ApprovalStatus = "UNAPPROVED"

    def item(**elements: Any) -> Any:
        one = pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(one, keyword, value)
        return one

    referred = [item(ReferencedSOPClassUID=i.SOPClassUID, ReferencedSOPInstanceUID=i.SOPInstanceUID) for i in images]
    series = item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=referred)
    study = item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1", ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )  # fmt: skip
    frame = first.FrameOfReferenceUID
    made.ReferencedFrameOfReferenceSequence = [item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])]
    contours = []
    for z in range(mask.shape[2]):
        lines = contour_generator(z=np.pad(mask[..., z], 1).T).lines(0.5)  # closed, as the border is 0
        for line in lines:
            points = np.c_[np.asarray(line)[:-1] - 1, np.full(len(line) - 1, z), np.ones(len(line) - 1)]
            contours.append(
                item(
                    ContourImageSequence=[referred[z if len(referred) == mask.shape[2] else 0]],
                    ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=len(points),
                    ContourData=[f"{value:.4f}" for value in (to_patient @ points.T)[:3].T.ravel()],
                )
            )  # fmt: skip
    made.StructureSetROISequence = [
        item(ROINumber=1, ReferencedFrameOfReferenceUID=frame, ROIName="HIE lesion", ROIGenerationAlgorithm="AUTOMATIC")
    ]
    made.ROIContourSequence = [item(ReferencedROINumber=1, ROIDisplayColor=[230, 159, 0])]
    if contours:
        made.ROIContourSequence[0].ContourSequence = contours
    made.RTROIObservationsSequence = [
        item(ObservationNumber=1, ReferencedROINumber=1, RTROIInterpretedType="", ROIInterpreter="")
    ]
    return made


def source_images(source: Series) -> list[Any]:
    """Whole headers of a series' source images, in the order of Z, as highdicom accepts them.

    Optional elements that break the standard are emptied (sex, dates, times), text is decoded.

    Raises:
        UserError: an element that a DICOM object must refer to is missing, or there are two frames of reference.
    """
    pydicom = require_pydicom()
    images = []
    for known in source.sources:
        try:
            image = pydicom.dcmread(known.filename, stop_before_pixels=True)
            image.decode()
        except Exception as error:  # the file has been read before
            raise UserError(f"{source.name.capitalize()}: an image cannot be read any more.") from error
        for keyword in REQUIRED:
            if not image.get(keyword):
                raise UserError(
                    f"{source.name.capitalize()}: an image has no {keyword}, by which a DICOM object refers to it."
                )
        for keyword in EMPTY:
            if keyword not in image:
                setattr(image, keyword, "")
        if image.PatientSex not in ("M", "F", "O"):
            image.PatientSex = ""
        for element in image:
            kind = {"DA": pydicom.valuerep.DA, "TM": pydicom.valuerep.TM, "DT": pydicom.valuerep.DT}.get(element.VR)
            try:
                _ = kind and element.value and kind(element.value)
            except ValueError:
                element.value = ""
        image.SpecificCharacterSet = UTF8
        images.append(image)
    if len({image.FrameOfReferenceUID for image in images}) > 1:
        raise UserError(
            f"{source.name.capitalize()}: its images have more than one FrameOfReferenceUID; they are not one volume."
        )
    return images


@contextmanager
def _named_faults(source: Series, what: str) -> Iterator[None]:
    """Raise highdicom's error about a source image without its values, which may identify the patient."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        named = f": {error}" if isinstance(error, AttributeError) else ""
        raise UserError(
            f"{source.name.capitalize()}: an image lacks what a {what} must carry, or breaks the standard{named}."
        ) from error


def capture_of(picture: str | Path, source: Series) -> Any:
    """A picture as DICOM Secondary Capture in the study of its source, ``BURNT_IN`` in a band below it.

    Args:
        picture: PNG of axial slices, the patient's right on the left, the face above. It must not name the patient.
        source: whose patient and study it belongs to.

    Returns:
        ``highdicom.sc.SCImage``, RGB.

    Raises:
        UserError: if DICOM's packages are not installed, or the images lack what a DICOM object must state.
    """
    highdicom = require_highdicom()
    from pydicom.uid import generate_uid

    version = bundle_version()
    with _named_faults(source, "picture"):
        capture = highdicom.sc.SCImage.from_ref_dataset(
            source_images(source)[0],
            _with_band(picture),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            series_instance_uid=generate_uid(),
            series_number=2000 + source.number,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=ALGORITHM,
            patient_orientation=("L", "P"),
            manufacturer_model_name=ALGORITHM,
            software_versions=version,
            series_description="HIE lesion, picture. Research use only; not for diagnosis",
        )
    capture.SpecificCharacterSet = UTF8
    capture.ConversionType = "WSD"  # made by a workstation
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.BurnedInAnnotation = "NO"  # nothing burnt in identifies the patient
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
