"""``run dicom_seg``: a lesion mask as DICOM segmentation, RT Structure Set, Secondary Capture and structured report."""

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
from ..io.volumes import LPS_TO_RAS
from ..runtime.errors import UserError
from ..runtime.mixins import bundle_version
from .dicom import Series, read_folder, require_highdicom
from .inputs import GRID_TOLERANCE_MM, read
from .previews import outlines
from .regions import RegionAtlas

logger = logging.getLogger(__name__)

# SNOMED CT structures (pydicom's keywords) by a word in the region's name; the default is the brain
ANATOMY = {
    "frontal": ["FrontalLobe"], "parietal": ["ParietalLobe"], "temporal": ["TemporalLobe"],
    "occipital": ["OccipitalLobe"], "cerebell": ["Cerebellum"], "brainstem": ["BrainStem"], "thalam": ["Thalamus"],
    "deep grey": ["CorpusStriatum", "Thalamus", "InternalCapsule"],
}  # fmt: skip
SCHEME = "99HIE"  # for codes that no public scheme defines
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
    """Write a mask as DICOM SEG that refers to the images of a series; log the series.

    The arguments are keys of ``configs/scanner.yaml``, which explains them. If several series have the mask's grid, the
    ADC map takes precedence, then the smallest b-value.

    Raises:
        UserError: a file is invalid, no series has the mask's grid, or the atlas does not fit.
    """
    if not mask_file or not images or not output_file:
        raise UserError(
            "Name the mask, the folder of its series and the output file: --mask_file --images --output_file."
        )
    if bool(regions) != bool(adc_file) or (report_file and not regions):
        raise UserError("Regions need an atlas and the segmented ADC map: --regions ATLAS --adc_file FILE.")
    paths = [Path(file).resolve() for file in (output_file, capture_file, rtstruct_file, report_file) if file]
    for path in paths:
        if path.suffix.lower() != ".dcm":
            raise UserError(f"{path}: the extension of a DICOM object must be .dcm.")
        if path.exists() and path.is_relative_to(Path(images).resolve()):
            raise UserError(f"{path} is inside the folder of images; choose another output file.")
    if len(set(paths)) < len(paths):
        raise UserError("--output_file, --capture_file, --rtstruct_file and --report_file must be different files.")
    mask = read(mask_file, 3)
    if not np.isin(mask.array, (0, 1)).all():
        raise UserError(f"{mask_file} is not a mask: it has other values than 0 and 1.")
    found = sorted(
        (one for one in read_folder(images, series) if one.kind != "other"),
        key=lambda one: (one.kind != "adc", min((np.inf if b is None else b for b in one.b_values), default=np.inf)),
    )
    differences = [grid_difference(one.volume(), mask, GRID_TOLERANCE_MM) for one in found]
    if "" not in differences:
        reasons = "; ".join(f"{one.name}: {why}" for one, why in zip(found, differences, strict=True))
        raise UserError(
            f"{mask_file} is not on the grid of any series in {images} ({reasons or 'no diffusion series'})."
        )
    source = found[differences.index("")]
    parts: dict[str, NDArray[Any]] = {}
    rows: list[dict[str, Any]] = []
    if regions and adc_file:
        labels, rows, note = RegionAtlas(regions).injured(read(adc_file, 3, mask, mask_file), mask.array)
        if labels is None:
            raise UserError(f"{adc_file}: {note}. Remove --regions, or use another atlas.")
        parts = {row["region"]: (labels == row["number"]) & (mask.array > 0) for row in rows}
    segmentation = segmentation_of(mask.array, source, parts)
    made = {output_file: segmentation}
    if report_file:
        made[report_file] = report_of(rows, segmentation, source_images(source))
    if capture_file:
        with tempfile.TemporaryDirectory() as place:
            volume_ml = float(mask.array.sum() * np.prod(mask.spacing_mm)) / 1000
            picture = Path(place) / "lesion.png"
            outlines(picture, source.volume(), {"lesion": mask.array}, f"{volume_ml:.2f} ml")
            made[capture_file] = capture_of(picture, source)
    if rtstruct_file:
        made[rtstruct_file] = contours_of(mask.array, source)
    for file, document in made.items():
        with atomic_path(file) as temporary:
            document.save_as(temporary, enforce_file_format=True)
    logger.info("DICOM segmentation of %d voxels on %s.", int(mask.array.sum()), source.name)


def segmentation_of(mask: NDArray[Any], source: Series, parts: Mapping[str, NDArray[Any]] | None = None) -> Any:
    """A binary DICOM segmentation that refers to the source images, slice by slice if each slice is a file.

    Category, type and region are SNOMED CT codes: morphologically abnormal structure (49755003), lesion (52988006),
    brain (12738006). An empty mask keeps all its frames: "nothing found" differs from "not examined".
    ``ContentQualification`` is RESEARCH. Patient and study are copied from the source.

    Args:
        mask: (X, Y, Z), 0 and 1, on the series' grid.
        source: the referenced series.
        parts: the mask within each region, by name, same shape; each becomes a segment with the region's code.

    Returns:
        ``highdicom.seg.Segmentation``.

    Raises:
        UserError: a DICOM package is not installed, or the images lack a required attribute.
    """
    highdicom = require_highdicom()
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    images = source_images(source)
    family = Code("123109", "DCM", "Artificial Intelligence")
    named = {"HIE lesion": mask} | {f"HIE lesion, {region}": part for region, part in (parts or {}).items()}
    descriptions = []
    for number, name in enumerate(named, start=1):
        places, side = _anatomy_of(name)
        description = highdicom.seg.SegmentDescription(
            number,
            name[:64],  # a DICOM label's length
            Code("49755003", "SCT", "Morphologically Abnormal Structure"),
            Code("52988006", "SCT", "Lesion"),
            highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            highdicom.AlgorithmIdentificationSequence(ALGORITHM, family, bundle_version()),
            tracking_uid=generate_uid(),
            tracking_id=name,
            anatomic_regions=places,
            display_color=highdicom.color.CIELabColor(70.0, 30.0, 70.0),  # orange
        )
        for place in description.AnatomicRegionSequence if side else ():
            place.AnatomicRegionModifierSequence = [highdicom.sr.CodedConcept.from_code(side)]
        descriptions.append(description)
    # frames, rows, columns, segments
    pixels: Any = np.stack([np.ascontiguousarray(part.astype(np.uint8).T) for part in named.values()], axis=-1)
    if len(images) != len(pixels):  # a mosaic or an enhanced image; its frames do not match the mask's slices
        lps = (LPS_TO_RAS @ source.affine)[:, [2, 1, 0, 3]]
        frame = images[0].FrameOfReferenceUID
        channels = {"SegmentNumber": list(range(1, len(named) + 1))}
        pixels = highdicom.Volume(pixels, lps, "PATIENT", frame_of_reference_uid=frame, channels=channels)
    with _named_faults(source, "segmentation"):
        return highdicom.seg.Segmentation(
            images,
            pixels,
            highdicom.seg.SegmentationTypeValues.BINARY,
            descriptions,
            device_serial_number="0",
            content_label="HIE_LESION",
            content_description=RESEARCH,
            content_qualification="RESEARCH",
            omit_empty_frames=False,
            **_origin(1000 + source.number, "HIE lesion"),
        )


def _anatomy_of(name: str) -> tuple[list[Any], Any]:
    """Codes of a region's structures and of its side (None if the name has none)."""
    from pydicom.sr.codedict import codes

    keywords = next((found for word, found in ANATOMY.items() if word in name.lower()), ["Brain"])
    side = next((word for word in ("Left", "Right") if word.lower() in name.lower().split()), None)
    return [getattr(codes.SCT, keyword) for keyword in keywords], side and getattr(codes.SCT, side)


def report_of(regions: Sequence[Mapping[str, Any]], segmentation: Any, images: Sequence[Any]) -> Any:
    """A measurement report with one group per region: lesion volume, region volume, and injured share.

    Args:
        regions: rows of :meth:`.RegionAtlas.injured`.
        segmentation: from :func:`segmentation_of`, with a segment per region after the whole lesion.
        images: source images of the segmentation.

    Returns:
        ``highdicom.sr.Comprehensive3DSR``.
    """
    highdicom = require_highdicom()
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    sr, version = highdicom.sr, bundle_version()
    device = sr.DeviceObserverIdentifyingAttributes(uid=generate_uid(), name=ALGORITHM, model_name=version)
    observer = sr.ObserverContext(codes.DCM.Device, device)
    groups = []
    for description, row in zip(segmentation.SegmentSequence[1:], regions, strict=True):
        places, side = _anatomy_of(row["region"])
        ml = codes.UCUM.CubicCentimeter
        values = [
            (codes.SCT.Volume, row["injured_ml"], ml),
            (Code("region_volume", SCHEME, "Volume of region"), row["volume_ml"], ml),
            (Code("injured_share", SCHEME, "Injured share of region"), 100 * row["share"], codes.UCUM.Percent),
        ]
        groups.append(
            sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                sr.TrackingIdentifier(description.TrackingUID, row["region"]),
                referenced_segment=sr.ReferencedSegment.from_segmentation(segmentation, description.SegmentNumber),
                finding_type=codes.SCT.Lesion,
                finding_sites=[sr.FindingSite(place, laterality=side) for place in places],
                algorithm_id=sr.AlgorithmIdentification(ALGORITHM, version),
                measurements=[sr.Measurement(name, float(f"{value:.6g}"), unit) for name, value, unit in values],
            )
        )
    return sr.Comprehensive3DSR(
        [segmentation, *images],
        sr.MeasurementReport(sr.ObservationContext(observer), codes.LN.BrainMRI, groups),
        **_origin(3000 + segmentation.SeriesNumber, "HIE lesion by region"),
    )


def contours_of(mask: NDArray[Any], source: Series) -> Any:
    """A mask as DICOM RT Structure Set: closed contours along voxel borders, in the slices of the source.

    A hole is a contour inside another; readers combine contours by XOR. rt-utils draws through voxel centres, so that a
    lesion of one voxel has no area, and does not support enhanced images.

    Args:
        mask: (X, Y, Z), 0 and 1, on the series' grid.
        source: the referenced series.

    Returns:
        ``pydicom.Dataset``; without contours if the mask is empty.

    Raises:
        UserError: as :func:`segmentation_of`.
    """
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    def item(**elements: Any) -> Any:
        made = pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(made, keyword, value)
        return made

    images = source_images(source)
    to_patient = LPS_TO_RAS @ source.affine
    first = images[0]
    frame = first.FrameOfReferenceUID
    referred = [item(ReferencedSOPClassUID=i.SOPClassUID, ReferencedSOPInstanceUID=i.SOPInstanceUID) for i in images]
    contours = []
    for z in range(mask.shape[2]):
        for line in contour_generator(z=np.pad(mask[..., z], 1).T).lines(0.5):  # closed, as the border is 0
            points = np.c_[np.asarray(line)[:-1] - 1, np.full(len(line) - 1, z), np.ones(len(line) - 1)]
            contours.append(
                item(
                    ContourImageSequence=[referred[z if len(referred) == mask.shape[2] else 0]],
                    ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=len(points),
                    ContourData=[f"{value:.4f}" for value in (to_patient @ points.T)[:3].T.ravel()],
                )
            )  # fmt: skip
    series = item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=referred)
    study = item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1", ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )  # fmt: skip
    made = item(
        **{keyword: first[keyword].value for keyword in (*EMPTY, "StudyInstanceUID", "FrameOfReferenceUID")},
        SpecificCharacterSet=UTF8, Modality="RTSTRUCT", SOPClassUID=RTStructureSetStorage,
        SOPInstanceUID=generate_uid(), InstanceNumber=1, SeriesInstanceUID=generate_uid(),
        SeriesNumber=3000 + source.number, SeriesDescription=f"HIE lesion. {RESEARCH}", Manufacturer=ALGORITHM,
        ManufacturerModelName=ALGORITHM, SoftwareVersions=bundle_version(), OperatorsName="",
        ApprovalStatus="UNAPPROVED",
        StructureSetLabel="HIE_LESION", StructureSetDescription=RESEARCH, StructureSetDate="", StructureSetTime="",
        ReferencedFrameOfReferenceSequence=[item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])],
        StructureSetROISequence=[
            item(ROINumber=1, ReferencedFrameOfReferenceUID=frame, ROIName="HIE lesion",
                 ROIGenerationAlgorithm="AUTOMATIC"),
        ],
        ROIContourSequence=[item(ReferencedROINumber=1, ROIDisplayColor=[230, 159, 0])],
        RTROIObservationsSequence=[
            item(ObservationNumber=1, ReferencedROINumber=1, RTROIInterpretedType="", ROIInterpreter=""),
        ],
    )  # fmt: skip
    if contours:
        made.ROIContourSequence[0].ContourSequence = contours
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def source_images(source: Series) -> list[Any]:
    """Full headers of a series' source images, in the order of Z, cleaned for highdicom.

    Invalid optional elements (sex, dates, times) are emptied; text is decoded.

    Raises:
        UserError: a required element is missing, or there are two frames of reference.
    """
    import pydicom

    images = []
    for path in dict.fromkeys(frame.path for frame in source.sources):
        try:
            image = pydicom.dcmread(path, stop_before_pixels=True)
            image.decode()
        except Exception as error:  # the file was readable before
            raise UserError(f"{source.name.capitalize()}: an image is no longer readable.") from error
        if missing := [keyword for keyword in REQUIRED if not image.get(keyword)]:
            raise UserError(
                f"{source.name.capitalize()}: an image has no {missing[0]}, which a DICOM object must refer to."
            )
        for keyword in EMPTY:
            image.setdefault(keyword, "")
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


def _origin(series_number: int, what: str) -> dict[str, Any]:
    """Arguments of highdicom's objects: a new series with one object, and its manufacturer."""
    from pydicom.uid import generate_uid

    return {
        "series_instance_uid": generate_uid(), "series_number": series_number, "sop_instance_uid": generate_uid(),
        "instance_number": 1, "manufacturer": ALGORITHM, "manufacturer_model_name": ALGORITHM,
        "software_versions": bundle_version(), "series_description": f"{what}. {RESEARCH}",
        "specific_character_set": UTF8,
    }  # fmt: skip


@contextmanager
def _named_faults(source: Series, what: str) -> Iterator[None]:
    """Turn highdicom's errors into UserErrors without values, which may identify the patient."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        named = f": {error}" if isinstance(error, AttributeError) else ""
        raise UserError(
            f"{source.name.capitalize()}: an image lacks an attribute required for a {what}, or breaks the standard"
            f"{named}."
        ) from error


def capture_of(picture: str | Path, source: Series) -> Any:
    """A picture as DICOM Secondary Capture in the study of its source, with ``BURNT_IN`` in a band below.

    Args:
        picture: PNG of axial slices, the patient's right on the left, anterior at the top. It must not name the
            patient.
        source: series that provides patient and study.

    Returns:
        ``highdicom.sc.SCImage``, RGB.

    Raises:
        UserError: a DICOM package is not installed, or the images lack a required attribute.
    """
    highdicom = require_highdicom()
    with _named_faults(source, "picture"):
        capture = highdicom.sc.SCImage.from_ref_dataset(
            source_images(source)[0],
            _with_band(picture),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),
            **_origin(2000 + source.number, "HIE lesion, picture"),
        )
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
