"""Injured share of each region as DICOM structured report (TID 1500), beside the segmentation that it refers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..runtime.mixins import bundle_version
from .dicom import require_highdicom

__all__ = ["anatomy_of", "report_of"]

# SNOMED CT's structures of a region, by pydicom's keywords, by a word of its name; other regions: brain
ANATOMY = {
    "frontal": ["FrontalLobe"], "parietal": ["ParietalLobe"], "temporal": ["TemporalLobe"],
    "occipital": ["OccipitalLobe"], "cerebell": ["Cerebellum"], "brainstem": ["BrainStem"], "thalam": ["Thalamus"],
    "deep grey": ["CorpusStriatum", "Thalamus", "InternalCapsule"],
}  # fmt: skip
SCHEME = "99HIE"  # of codes that no public scheme has


def anatomy_of(name: str) -> tuple[list[Any], Any]:
    """Codes of a region's structures and of its side (None without one) by its name."""
    from pydicom.sr.codedict import codes

    keywords = next((found for word, found in ANATOMY.items() if word in name.lower()), ["Brain"])
    side = next((word for word in ("Left", "Right") if word.lower() in name.lower().split()), None)
    return [getattr(codes.SCT, keyword) for keyword in keywords], side and getattr(codes.SCT, side)


def report_of(regions: Sequence[Mapping[str, Any]], segmentation: Any, images: Sequence[Any]) -> Any:
    """A measurement report with a group a region: volume of the lesion in it, of the region, and the injured share.

    Args:
        regions: rows of :meth:`.RegionAtlas.injured`.
        segmentation: of :func:`.segmentation_of`, with a segment of each region after that of the whole lesion.
        images: of the series that the segmentation refers to.

    Returns:
        ``highdicom.sr.Comprehensive3DSR``.
    """
    highdicom = require_highdicom()
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    sr, version = highdicom.sr, bundle_version()
    device = sr.DeviceObserverIdentifyingAttributes(uid=generate_uid(), name="hie_bundle", model_name=version)
    observer = sr.ObserverContext(codes.DCM.Device, device)
    groups = []
    for description, row in zip(segmentation.SegmentSequence[1:], regions, strict=True):
        places, side = anatomy_of(row["region"])
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
                algorithm_id=sr.AlgorithmIdentification("hie_bundle", version),
                measurements=[sr.Measurement(name, float(f"{value:.6g}"), unit) for name, value, unit in values],
            )
        )
    document = sr.Comprehensive3DSR(
        [segmentation, *images],
        sr.MeasurementReport(sr.ObservationContext(observer), codes.LN.BrainMRI, groups),
        series_instance_uid=generate_uid(),
        series_number=3000 + segmentation.SeriesNumber,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="hie_bundle",
        series_description="HIE lesion by region. Research use only; not for diagnosis",
    )
    document.SpecificCharacterSet = segmentation.SpecificCharacterSet
    return document
