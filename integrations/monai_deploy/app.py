"""A MONAI Deploy application: a study's ADC and Z map as DICOM in, the lesion mask as DICOM segmentation out.

    python app.py -i DICOM_DIR -o OUT

See hie_bundle/docs/deploy.md.
"""

from __future__ import annotations

import json
from typing import Any

import nibabel as nib
import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, ConditionType, Fragment, Image, Operator, OperatorSpec
from monai.deploy.operators import (
    DICOMDataLoaderOperator,
    DICOMSegmentationWriterOperator,
    DICOMSeriesSelectorOperator,
)
from monai.deploy.operators.dicom_seg_writer_operator import SegmentDescription
from pydicom.sr.coding import Code

import hie_bundle

scanner = hie_bundle.scripts_module("scanner.dicom")


class HIESegmentationOperator(Operator):
    """The lesion mask of one study, from the series that two selectors have chosen.

    The SDK's own bundle operator takes one image, without channels; and its conversion of a series to a volume gives
    all slices the number type of the first, so that a Z map with an empty first slice is cut to whole numbers, and is
    right about voxel sizes only where pixels are square. So series are read here, by the bundle.

    Named inputs:
        adc: list of StudySelectedSeries; the first is the skull-stripped ADC map, 1e-6 mm²/s.
        zadc: list of StudySelectedSeries; the first is its Z map on the same grid. Empty: by ADC alone.
    Named output:
        seg_image: Image, uint8, 1 is lesion; a frame for each image of the ADC series, in its order.

    Args:
        fragment: the application.
        segmenter: options of :class:`hie_bundle.Segmenter`: ``weights``, ``threshold`` …
    """

    def __init__(self, fragment: Fragment, *args: Any, segmenter: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.segmenter = hie_bundle.Segmenter(**(segmenter or {}))
        super().__init__(fragment, *args, **kwargs)  # after what setup() needs, as the SDK asks

    def setup(self, spec: OperatorSpec) -> None:
        """The ports."""
        spec.input("adc")
        spec.input("zadc")
        spec.output("seg_image").condition(ConditionType.NONE)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Segment; what is wrong with a series is raised as ``hie_bundle.UserError``."""
        adc, zadc = (images_of(op_input.receive(name)) for name in ("adc", "zadc"))
        if not adc:
            raise hie_bundle.UserError("No series was selected as ADC map; does the selection fit its description?")
        order = np.argsort([place(one) for one in adc])
        mask = self.segmenter(volume(adc), volume(zadc) if zadc else None)
        frames = np.empty((len(adc), *mask.shape[1::-1]), np.uint8)
        frames[order] = np.asarray(mask.dataobj).T
        op_output.emit(Image(frames), "seg_image")


def images_of(selected: Any) -> list[Any]:
    """The pydicom datasets of the first selected series; none if there is none."""
    series = [one.series for study in selected or [] for one in study.selected_series]
    return [one.get_native_sop_instance() for one in series[0].get_sop_instances()] if series else []


def place(image: Any) -> float:
    """Of a slice along the normal of its plane, in mm."""
    row, column = np.array(image.ImageOrientationPatient, dtype=float).reshape(2, 3)
    return float(np.cross(row, column) @ np.array(image.ImagePositionPatient, dtype=float))


def volume(images: list[Any]) -> nib.Nifti1Image:
    """The slices of a series as one image, from the first position to the last.

    Raises:
        UserError: when slices are missing or double.
    """
    images = sorted(images, key=place)
    steps = np.diff([place(one) for one in images])
    if not len(steps) or np.ptp(steps) > 0.05 or steps[0] <= 0.05:
        raise hie_bundle.UserError(f"Series {images[0].SeriesNumber}: slices are missing or double.")
    found = scanner.Stack("adc", int(images[0].SeriesNumber), None, [images]).volumes()[0]
    return nib.Nifti1Image(np.asarray(found.array, np.float32), found.affine)


class HIEApplication(Application):
    """From a folder of DICOM to a segmentation on the ADC series.

    Args:
        adc: regular expression for the ADC map's series description.
        zadc: the same for the Z map's.
        segmenter: options of :class:`hie_bundle.Segmenter`.
    """

    def __init__(
        self,
        *args: Any,
        adc: str = r"(?i)^(?!.*z).*adc",
        zadc: str = r"(?i).*z.?(map|adc|score)",
        segmenter: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.descriptions, self.segmenter = {"adc": adc, "zadc": zadc}, segmenter
        super().__init__(*args, **kwargs)

    def compose(self) -> None:
        """Loader → a selector for each map → the operator above → the SDK's writer."""
        context: AppContext = Application.init_app_context(self.argv)
        loader = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=context.input_path, name="loader")
        segmentation = HIESegmentationOperator(self, segmenter=self.segmenter, name="segmentation")
        writer = DICOMSegmentationWriterOperator(
            self,
            segment_descriptions=[
                SegmentDescription(
                    segment_label="HIE lesion",
                    segmented_property_category=Code("49755003", "SCT", "Morphologically Abnormal Structure"),
                    segmented_property_type=Code("52988006", "SCT", "Lesion"),
                    anatomic_regions=[Code("12738006", "SCT", "Brain")],
                    algorithm_name="hie_bundle",
                    algorithm_version=hie_bundle.scripts_module("mixins").bundle_version(),
                )
            ],
            output_folder=context.output_path,
            custom_tags={"ContentQualification": "RESEARCH"},
            omit_empty_frames=False,  # an empty mask says "nothing found"
            name="writer",
        )
        for name, description in self.descriptions.items():
            conditions = {"Modality": "(?i)MR", "SeriesDescription": description}
            rules = json.dumps({"selections": [{"name": name, "conditions": conditions}]})
            selector = DICOMSeriesSelectorOperator(self, rules=rules, name=f"{name}_selector")
            self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
            self.add_flow(selector, segmentation, {("study_selected_series_list", name)})
            if name == "adc":
                self.add_flow(selector, writer, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(segmentation, writer, {("seg_image", "seg_image")})


if __name__ == "__main__":
    HIEApplication().run()
