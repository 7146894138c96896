"""Enhanced multi-frame images of every vendor, as the standard has them: one file or several, frames in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from scanner_cases import Study
from test_scanner_adc import affine_of, head, signal

from scripts.runtime.errors import UserError
from scripts.scanner.adc import write_adc
from scripts.scanner.dicom import read_folder
from scripts.scanner.inputs import read

ADC, S0, INSIDE = head()
DIRECTIONS = (0, 1000, 1000, 1000)
ADC_TYPE = ("DERIVED", "PRIMARY", "DIFFUSION", "ADC")
SAGITTAL = np.array([[0, 0, 4.0, -10], [1.5, 0, 0, -20], [0, 1.5, 0, -30], [0, 0, 0, 1]])
GRIDS = {"oblique": affine_of("oblique"), "sagittal": SAGITTAL}


def volumes(*b_values: float) -> list[np.ndarray]:
    return [signal(ADC, S0, b) * 8 for b in b_values]


def error(folder: Path, affine: np.ndarray) -> float:
    write_adc(folder, folder.parent / "adc.nii.gz")
    found = read(folder.parent / "adc.nii.gz")
    np.testing.assert_allclose(found.affine, affine, atol=1e-3)
    return float(np.abs(found.array[INSIDE] - ADC[INSIDE]).max())


@pytest.mark.parametrize(
    ("vendor", "grid"),
    [
        ("SIEMENS", "oblique"), ("Siemens Healthineers", "sagittal"), ("Philips", "oblique"), ("UIH", "sagittal"),
        ("Canon Medical Systems", "sagittal"), ("GE MEDICAL SYSTEMS", "oblique"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "form",
    ["volumes", "slices", "average", "trace", "files", "series", "map", "both", "slopes", "compressed", "single"],
)
def test_enhanced_images(form: str, vendor: str, grid: str, tmp_path: Path) -> None:
    study, affine = Study(tmp_path / "in", vendor), GRIDS[grid]
    if form in ("volumes", "slices", "compressed"):
        path = study.enhanced(5, volumes(*DIRECTIONS), affine, DIRECTIONS, slice_by_slice=form == "slices")
        if form == "compressed":
            image = pydicom.dcmread(path)
            image.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
            image.save_as(path)
    if form == "average":  # the scanner's, which is another one than that of the directions
        biased = [*volumes(*DIRECTIONS), signal(ADC * 0.7, S0, 1000) * 8]
        kinds = ["NONE", *["DIRECTIONAL"] * 3, "ISOTROPIC"]
        study.enhanced(5, biased, affine, (*DIRECTIONS, 1000), kinds)
    if form == "trace":
        study.enhanced(5, volumes(0, 1000), affine, (0, 1000), ["NONE", "ISOTROPIC"])
    if form in ("files", "series"):
        uid = pydicom.uid.generate_uid()
        for i, b in enumerate((0, 1000)):
            study.enhanced(5 + i * (form == "series"), volumes(b), affine, [b], uid=None if form == "series" else uid)
    if form == "both":
        study.enhanced(5, volumes(0, 1000), affine, (0, 1000))
    if form in ("map", "both"):
        study.enhanced(6, [ADC], affine, [None], image_type=ADC_TYPE)
    if form == "slopes":
        study.enhanced(5, volumes(0, 1000, 1000), affine, (0, 1000, 1000), slopes=(1.0, 0.25, 0.5))
    if form == "single":  # an image a slice, as some archives cut them
        uid = pydicom.uid.generate_uid()
        for at in [(v, k) for v in range(2) for k in range(ADC.shape[2])]:
            path = study.enhanced(5, volumes(0, 1000), affine, (0, 1000), uid=uid, frames=[at])
            image = pydicom.dcmread(path)
            del image.NumberOfFrames  # then it is 1
            image.save_as(path)
    assert error(tmp_path / "in", affine) < 6
    assert all(b is not None for one in read_folder(tmp_path / "in") if one.kind == "dwi" for b in one.b_values)


def test_frames_that_make_up_no_volume_are_refused(tmp_path: Path) -> None:
    study = Study(tmp_path / "in", "Philips")
    at = [(v, k) for v in range(2) for k in range(ADC.shape[2])]
    study.enhanced(5, volumes(0, 1000), GRIDS["oblique"], (0, 1000), frames=[*at, at[3]])
    with pytest.raises(
        UserError, match=r"Series 5 has 3 images at slice 4 of 6, and 2 at .* slices are missing or duplicate"
    ):
        read_folder(tmp_path / "in")


def test_two_maps_in_one_image_are_refused(tmp_path: Path) -> None:
    Study(tmp_path / "in").enhanced(5, [ADC, ADC * 0.9], GRIDS["oblique"], [None] * 2, image_type=ADC_TYPE)
    with pytest.raises(UserError, match=r"has 2 images of each slice"):
        read_folder(tmp_path / "in")


def test_a_frame_missing_in_the_middle_is_a_gap(tmp_path: Path) -> None:
    study = Study(tmp_path / "in", "Canon Medical Systems")
    at = [(v, k) for v in range(2) for k in range(ADC.shape[2]) if k != 2]
    study.enhanced(5, volumes(0, 1000), GRIDS["oblique"], (0, 1000), frames=at)
    with pytest.raises(UserError, match="gap"):
        read_folder(tmp_path / "in")


def test_frames_that_the_header_does_not_describe_are_refused(tmp_path: Path) -> None:
    path = Study(tmp_path / "in").enhanced(5, volumes(0, 1000), GRIDS["oblique"], (0, 1000))
    image = pydicom.dcmread(path)
    del image.PerFrameFunctionalGroupsSequence[-1]
    image.save_as(path)
    with pytest.raises(UserError, match="has 12 frames, and describes 11"):
        read_folder(tmp_path / "in")
