"""DICOM segmentations, read back by pydicom frame by frame and by SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from scanner_cases import SECRET, Study
from test_scanner_adc import affine_of, head, signal

from scripts.io.images import write
from scripts.runtime.errors import UserError
from scripts.scanner.adc import write_adc
from scripts.scanner.dicom import read_folder
from scripts.scanner.dicom_seg import capture_of, write_dicom_seg

FLIP = np.diag([-1.0, -1, 1, 1])


def lesion(shape: tuple[int, ...]) -> np.ndarray:
    """Not symmetric in any axis."""
    mask = np.zeros(shape, dtype=np.uint8)
    mask[4:9, 20:22, 1:3] = 1
    mask[17, 5, 4] = 1
    return mask


@pytest.mark.parametrize("grid", ["straight", "oblique", "head first"])
def test_every_voxel_lies_where_the_mask_has_it(grid: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adc, s0, _ = head()
    study, affine = Study(tmp_path / "in"), affine_of(grid)
    sources = study.series(3, signal(adc, s0, 0), affine, b_value=0)
    study.series(4, signal(adc, s0, 1000), affine, b_value=1000)
    write_adc(tmp_path / "in", tmp_path / "adc.nii.gz")  # what is segmented: its grid is the mask's
    mask = lesion(adc.shape)
    write(tmp_path / "mask.nii.gz", mask, affine)
    caplog.set_level("INFO")
    write_dicom_seg(tmp_path / "mask.nii.gz", tmp_path / "in", tmp_path / "mask.dcm")
    assert "21 voxels on series 3 (dwi, b = 0)" in caplog.text
    assert SECRET not in caplog.text
    assert not any(source.SOPInstanceUID in caplog.text for source in sources)

    found = pydicom.dcmread(tmp_path / "mask.dcm")
    assert found.SOPClassUID == pydicom.uid.SegmentationStorage
    assert found.FrameOfReferenceUID == study.frame
    assert (found.StudyInstanceUID, str(found.PatientID)) == (study.study, SECRET)
    assert found.ContentQualification == "RESEARCH"
    (segment,) = found.SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "hie_bundle"
    # Every frame by its own position, orientation and source image, as a viewer has to.
    shared = found.SharedFunctionalGroupsSequence[0]
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    down, right = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    to_voxel = np.linalg.inv(FLIP @ affine)
    by_uid = {source.SOPInstanceUID: source for source in sources}
    back = np.zeros_like(mask)
    pixels = found.pixel_array
    assert pixels.shape == adc.shape[::-1]
    for frame, group in zip(pixels, found.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        np.testing.assert_allclose(by_uid[source.ReferencedSOPInstanceUID].ImagePositionPatient, position, atol=1e-4)
        for r, c in np.argwhere(frame):
            index = to_voxel @ [*(position + c * right * row + r * down * column), 1]
            np.testing.assert_allclose(index, index.round(), atol=0.01)
            back[tuple(index[:3].round().astype(int))] = 1
    np.testing.assert_array_equal(back, mask)
    # and by GDCM, which puts the frames in an order of its own
    seg, there = (sitk.ReadImage(str(tmp_path / name)) for name in ("mask.dcm", "mask.nii.gz"))
    on_grid = sitk.Resample(seg, there, sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(on_grid).T > 0, mask > 0)


def test_an_empty_mask_says_that_it_looked(tmp_path: Path) -> None:
    adc, _, _ = head()
    affine = affine_of("oblique")
    Study(tmp_path / "in").series(7, adc, affine, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    write(tmp_path / "mask.mha", np.zeros(adc.shape, np.uint8), affine)
    write_dicom_seg(tmp_path / "mask.mha", tmp_path / "in", tmp_path / "mask.dcm")
    found = pydicom.dcmread(tmp_path / "mask.dcm")
    assert found.NumberOfFrames == adc.shape[2]
    assert not found.pixel_array.any()


@pytest.mark.parametrize("pixels", [(300, 40), (1170, 620)])
def test_a_picture_is_in_the_patients_study_and_says_what_it_is_for(pixels: tuple[int, int], tmp_path: Path) -> None:
    adc, _, _ = head()
    study = Study(tmp_path / "in")
    source = study.series(7, adc, affine_of("oblique"), ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))[0]
    shown = np.random.default_rng(0).integers(0, 256, (*pixels[::-1], 3), dtype=np.uint8)
    Image.fromarray(shown).save(tmp_path / "shown.png")
    (stack,) = read_folder(tmp_path / "in")
    capture_of(tmp_path / "shown.png", stack).save_as(tmp_path / "picture.dcm")
    found = pydicom.dcmread(tmp_path / "picture.dcm")
    assert found.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    for name in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "StudyID", "AccessionNumber"):
        assert found[name].value == source[name].value
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert found.BurnedInAnnotation == "NO"
    assert found.PatientOrientation == ["L", "P"]
    # every pixel of the picture, and below it a band with writing from one side to the other
    np.testing.assert_array_equal(found.pixel_array[: pixels[1]], shown)
    band = found.pixel_array[pixels[1] :].max(-1)
    written = np.flatnonzero((band > 100).any(0))
    assert len(band) >= 16
    assert written[-1] - written[0] > 0.5 * pixels[0]
    assert not band[[0, -1]].any()  # no letter is cut
    # and by GDCM
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "picture.dcm")))[0]
    np.testing.assert_array_equal(image, found.pixel_array)


def test_a_picture_beside_the_segmentation(tmp_path: Path) -> None:
    adc, _, _ = head()
    affine = affine_of("oblique")
    Study(tmp_path / "in").series(7, adc, affine, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    write(tmp_path / "mask.nii.gz", lesion(adc.shape), affine)
    given = (tmp_path / "mask.nii.gz", tmp_path / "in", tmp_path / "mask.dcm")
    with pytest.raises(UserError, match="must be different files"):
        write_dicom_seg(*given, capture_file=tmp_path / "mask.dcm")
    write_dicom_seg(*given, capture_file=tmp_path / "picture.dcm")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "mask.nii.gz", "mask.dcm", "picture.dcm"}
    shown = pydicom.dcmread(tmp_path / "picture.dcm").pixel_array.astype(int)
    orange = (abs(shown - [230, 159, 0]) < 30).all(-1)
    assert orange.sum() > 20  # the outline


def test_bad_masks_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    adc, _, _ = head()
    affine, mask = affine_of("oblique"), lesion(adc.shape)
    Study(tmp_path / "in").series(7, adc, affine, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    there, out = tmp_path / "mask.nii.gz", tmp_path / "mask.dcm"
    for values, where, message in [
        (mask * 2, affine, "other values than 0 and 1"),
        (mask[:-1], affine, "any series .*series 7 .adc.: 29 × 34 × 6 voxels, not 30 × 34 × 6"),
        (mask, affine_of("straight"), "any series .*directions"),
    ]:
        write(there, values, where)
        with pytest.raises(UserError, match=message):
            write_dicom_seg(there, tmp_path / "in", out)
    write(there, mask, affine)
    for given, message in [
        ((None, tmp_path / "in", out), "Name the mask"),
        ((there, tmp_path / "in", tmp_path / "mask.nii"), "object must be .dcm"),
        ((there, tmp_path / "in", tmp_path / "in" / "007_000.dcm"), "inside the folder of images"),
        ((there, tmp_path / "none", out), "not a folder"),
    ]:
        with pytest.raises(UserError, match=message):
            write_dicom_seg(*given)
    assert not out.exists()
