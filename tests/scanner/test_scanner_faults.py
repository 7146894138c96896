"""What scanners, archives and users do to images: each fault is read rightly, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from scanner_cases import SECRET, Study
from test_scanner_adc import affine_of, head, signal
from test_scanner_seg import lesion

from scripts.cli.scan import write_scan
from scripts.data.checks import Limits
from scripts.io.images import write
from scripts.runtime.errors import UserError
from scripts.scanner.adc import fit_adc, write_adc
from scripts.scanner.dicom import read_folder
from scripts.scanner.dicom_seg import write_dicom_seg
from scripts.scanner.inputs import read
from scripts.scanner.zscore import FitLimits

ADC, S0, INSIDE = head()
AFFINE = affine_of("oblique")
DERIVED = ("DERIVED", "SECONDARY", "PROCESSED")


def pair(folder: Path, vendor: str = "SIEMENS", **second: Any) -> Study:
    """b = 0 and 1000 as series 3 and 4."""
    study = Study(folder, vendor)
    study.series(3, signal(ADC, S0, 0) * 8, AFFINE, b_value=0, shuffle=False)
    study.series(4, signal(ADC, S0, 1000) * 8, AFFINE, b_value=1000, shuffle=False, **second)
    return study


def change(folder: Path, pattern: str = "*.dcm", **elements: Any) -> None:
    for path in sorted(folder.glob(pattern)):
        header = pydicom.dcmread(path)
        for keyword, value in elements.items():
            if value is None:
                delattr(header, keyword)
            else:
                setattr(header, keyword, value)
        header.save_as(path)


def fitted(folder: Path, **options: Any) -> float:
    out = folder.parent / "adc.nii.gz"
    write_adc(folder, out, **options)
    return float(np.abs(read(out).array[INSIDE] - ADC[INSIDE]).max())


@pytest.mark.parametrize("words", ["Apparent Diffusion Coefficient (mm2/s)", "dADC", "Average DC", "MD"])
def test_a_derived_adc_map_is_no_diffusion_image(words: str, tmp_path: Path) -> None:
    study = pair(tmp_path / "in", "GE MEDICAL SYSTEMS")
    study.series(7, ADC, AFFINE, DERIVED, b_value=1000, SeriesDescription=words)
    kinds = {one.number: one.kind for one in read_folder(tmp_path / "in")}
    assert kinds == {3: "dwi", 4: "dwi", 7: "adc"}
    assert fitted(tmp_path / "in", adc_source="fit") < 5
    assert fitted(tmp_path / "in") < 1


@pytest.mark.parametrize("words", ["eADC", "Ax DWI"])
def test_a_derived_image_that_does_not_say_how_is_left_out(words: str, tmp_path: Path) -> None:
    study = pair(tmp_path / "in", "GE MEDICAL SYSTEMS")
    study.series(7, signal(ADC, S0, 1000) * 3, AFFINE, DERIVED, b_value=1000, SeriesDescription=words)
    (other,) = (one for one in read_folder(tmp_path / "in") if one.number == 7)
    assert (other.kind, "derived from other images" in other.reason) == ("other", True)
    assert fitted(tmp_path / "in") < 5


@pytest.mark.parametrize("words", ["Ax DWI TENSOR", "DTI FA prep", "ADC exp"])
def test_a_description_alone_decides_nothing(words: str, tmp_path: Path) -> None:
    pair(tmp_path / "in")
    change(tmp_path / "in", SeriesDescription=words)
    assert fitted(tmp_path / "in") < 5


def test_philips_private_scale_is_not_of_an_adc_map(tmp_path: Path) -> None:
    study = Study(tmp_path / "in", "Philips Medical Systems")
    study.series(7, ADC, AFFINE, ("DERIVED", "PRIMARY", "ADC_SE", "ADC", "SE"), slope=0.5, scale=0.013)
    assert fitted(tmp_path / "in") < 1


@pytest.mark.parametrize("vendor", ["Philips Medical Systems", None])
def test_private_elements_keep_their_values_in_implicit_vr(vendor: str | None, tmp_path: Path) -> None:
    """The bytes of Philips' b = 1000 are the letters zD: a real isotropic volume was averaged with the directions."""
    study = pair(tmp_path / "in", "Philips Medical Systems")
    study.series(5, signal(ADC, S0, 1000) * 9, AFFINE, b_value=1000)
    for path in (tmp_path / "in").iterdir():
        header = pydicom.dcmread(path)
        header.add_new((0x2001, 0x1004), "CS", "I" if header.SeriesNumber == 5 else "S")
        header.Manufacturer = vendor
        header.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        pydicom.dcmwrite(path, header, implicit_vr=True, little_endian=True)
    found = {one.number: (one.kind, set(one.b_values)) for one in read_folder(tmp_path / "in")}
    assert found == {3: ("dwi", {0}), 4: ("dwi", {1000}), 5: ("trace", {1000})}


def test_mixed_echo_times_are_refused(tmp_path: Path) -> None:
    pair(tmp_path / "in")
    change(tmp_path / "in", "003*", EchoTime=60)
    change(tmp_path / "in", "004*", EchoTime=90)
    with pytest.raises(UserError, match=r"Series 3 .*echo time 60 ms, not 90 ms"):
        fitted(tmp_path / "in")


def test_a_distorted_second_b0_is_refused(tmp_path: Path) -> None:
    study = pair(tmp_path / "in")
    study.series(5, np.roll(signal(ADC, S0, 0) * 8, 4, 1), AFFINE, b_value=0)
    with pytest.raises(UserError, match=r"correlation of series 3 .* and series 5 .* is"):
        fitted(tmp_path / "in")
    assert fitted(tmp_path / "in", series=[3, 4]) < 5


def test_one_uid_for_different_images_is_refused(tmp_path: Path) -> None:
    pair(tmp_path / "in")
    paths = sorted((tmp_path / "in").glob("003*"))
    for first, second in zip(paths[::2], paths[1::2], strict=True):
        change(tmp_path / "in", second.name, SOPInstanceUID=pydicom.dcmread(first).SOPInstanceUID)
    with pytest.raises(UserError, match="Series 3: different images have one SOP Instance UID"):
        fitted(tmp_path / "in")


def test_missing_images_are_noticed(tmp_path: Path) -> None:
    pair(tmp_path / "in")
    change(tmp_path / "in", ImagesInAcquisition=6)
    assert fitted(tmp_path / "in") < 5
    for number in ("003", "004"):
        (tmp_path / "in" / f"{number}_005.dcm").unlink()
    with pytest.raises(UserError, match="has 5 images of 5 slices, and its header states 6"):
        fitted(tmp_path / "in")
    (tmp_path / "in" / "x.dcm").symlink_to(tmp_path / "gone.dcm")
    with pytest.raises(UserError, match="broken link"):
        fitted(tmp_path / "in")


def test_missing_slices_of_philips_are_noticed(tmp_path: Path) -> None:
    pair(tmp_path / "in", "Philips Medical Systems")
    for path in (tmp_path / "in").iterdir():
        header = pydicom.dcmread(path)
        header.add_new((0x2001, 0x1018), "SL", 6)
        header.save_as(path)
    assert fitted(tmp_path / "in") < 5
    for number in ("003", "004"):
        (tmp_path / "in" / f"{number}_005.dcm").unlink()
    with pytest.raises(UserError, match="has 5 slices, and its header states 6"):
        fitted(tmp_path / "in")


@pytest.mark.parametrize("words", ["ADC", "mosaic"])
def test_images_without_an_image_type_are_left_out(words: str, tmp_path: Path) -> None:
    """A real GE ADC map (b = 500 in its header) was a diffusion image; a real Siemens mosaic was one slice."""
    study = pair(tmp_path / "in", "GE MEDICAL SYSTEMS")
    study.series(7, ADC[..., :1] if words == "mosaic" else ADC, AFFINE, b_value=500, SeriesDescription=words)
    change(tmp_path / "in", "007*", ImageType=None)
    (other,) = (one for one in read_folder(tmp_path / "in") if one.number == 7)
    assert (other.kind, "no ImageType" in other.reason) == ("other", True)
    assert fitted(tmp_path / "in") < 5


@pytest.mark.parametrize("fault", ["screenshot", "colour", "one slice"])
def test_pictures_called_adc_block_nothing(fault: str, tmp_path: Path) -> None:
    study = pair(tmp_path / "in")
    study.series(7, ADC, AFFINE, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    volume = ADC[..., :1] if fault == "one slice" else ADC
    study.series(8, volume, AFFINE, ("DERIVED", "SECONDARY", "ADC"), SeriesDescription="ADC")
    if fault == "screenshot":
        change(tmp_path / "in", "008*", SOPClassUID=pydicom.uid.SecondaryCaptureImageStorage)
    if fault == "colour":
        change(tmp_path / "in", "008*", SamplesPerPixel=3, PhotometricInterpretation="RGB")
    assert fitted(tmp_path / "in") < 1


def test_mosaics_of_no_manufacturer_are_refused(tmp_path: Path) -> None:
    """dcm2niix puts them half a metre away: of a Siemens Prisma by 540 mm."""
    Study(tmp_path / "in").series(3, S0, AFFINE, ("ORIGINAL", "PRIMARY", "DIFFUSION", "NONE", "MOSAIC"), b_value=0)
    change(tmp_path / "in", Manufacturer=None)
    with pytest.raises(UserError, match="Series 3: its mosaics lack Manufacturer"):
        read_folder(tmp_path / "in")


def test_a_name_is_one_however_it_is_padded(tmp_path: Path) -> None:
    pair(tmp_path / "in")
    change(tmp_path / "in", "004*", PatientName=f"{SECRET}^^^")
    assert fitted(tmp_path / "in") < 5


def test_orientations_may_differ_in_the_sixth_decimal(tmp_path: Path) -> None:
    pair(tmp_path / "in")
    for path in sorted((tmp_path / "in").glob("*.dcm"))[::2]:
        header = pydicom.dcmread(path)
        header.ImageOrientationPatient = [round(float(v) + 2e-6, 8) for v in header.ImageOrientationPatient]
        header.save_as(path)
    assert fitted(tmp_path / "in") < 5


@pytest.mark.parametrize(
    ("keyword", "value"), [("SeriesNumber", b"x1"), ("InstanceNumber", b"?!"), ("PixelSpacing", b"a\\b "),
                           ("ImageOrientationPatient", b"1\\0\\0 "), ("RescaleSlope", b"nan "), ("EchoTime", b"TE")],
)  # fmt: skip
def test_numbers_that_are_none_are_named(keyword: str, value: bytes, tmp_path: Path) -> None:
    pair(tmp_path / "in")
    change(tmp_path / "in", EchoTime=77)
    path = tmp_path / "in" / "003_002.dcm"
    header = pydicom.dcmread(path)
    data = path.read_bytes()
    tag = header[keyword].tag
    where = data.index(tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little"))
    length = int.from_bytes(data[where + 6 : where + 8], "little")
    path.write_bytes(data[: where + 8] + value.ljust(length)[:length] + data[where + 8 + length :])
    with pytest.raises(UserError, match=keyword):
        fitted(tmp_path / "in")


def test_deflated_dicom_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    pair(tmp_path / "in")
    path = tmp_path / "in" / "003_002.dcm"
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    header.save_as(path)
    with pytest.raises(UserError, match="deflated DICOM"):
        fitted(tmp_path / "in")


def test_an_image_cut_off_after_a_long_header_is_refused(tmp_path: Path) -> None:
    pair(tmp_path / "in")
    path = tmp_path / "in" / "003_002.dcm"
    change(tmp_path / "in", path.name, ImageComments="x" * 9000)
    data = path.read_bytes()
    path.write_bytes(data[:-1500])
    with pytest.raises(UserError, match=r"003_002.dcm is damaged: its pixels are missing"):
        fitted(tmp_path / "in")


def test_a_compressed_image_cut_off_in_its_pixels_is_refused(tmp_path: Path) -> None:
    Study(tmp_path / "in").series(7, ADC, AFFINE, image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC"), shuffle=False)
    files = sorted((tmp_path / "in").glob("*.dcm"))
    for file in files:
        image = pydicom.dcmread(file)
        image.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        image.save_as(file)
    assert read_folder(tmp_path / "in")[0].array.shape[:3] == ADC.shape
    files[-1].write_bytes(files[-1].read_bytes()[:-200])
    with pytest.raises(UserError, match="is cut off"):
        read_folder(tmp_path / "in")


def test_a_number_of_frames_of_0_is_not_stated(tmp_path: Path) -> None:
    pair(tmp_path / "in")
    change(tmp_path / "in", NumberOfFrames=0)
    assert {one.kind for one in read_folder(tmp_path / "in")} == {"dwi"}


def test_a_grid_without_its_private_elements_is_refused(tmp_path: Path) -> None:
    words = ("ORIGINAL", "PRIMARY", "M", "VFRAME")
    Study(tmp_path / "in", "UIH").series(3, S0[..., :1], AFFINE, words, b_value=0)
    with pytest.raises(UserError, match=r"Series 3: .* needs the vendor's private elements"):
        read_folder(tmp_path / "in")


def test_swapped_b_values_are_refused() -> None:
    with pytest.raises(UserError, match="b-values are swapped"):
        fit_adc([signal(ADC, S0, 1000), S0], (0, 1000))


@pytest.mark.parametrize("value", [5e8, np.inf, np.nan, -np.inf])
def test_one_voxel_changes_itself_only(value: float) -> None:
    images = [signal(ADC, S0, b) for b in (0, 1000)]
    expected = fit_adc(images, (0, 1000))
    images[0][15, 17, 3] = value
    found = fit_adc(images, (0, 1000))
    assert np.isfinite(found.adc).all()
    found.adc[15, 17, 3] = expected.adc[15, 17, 3]
    np.testing.assert_allclose(found.adc, expected.adc, rtol=1e-4, atol=0.1)


def test_other_files_beside_an_image_are_no_images(tmp_path: Path) -> None:
    folder = tmp_path / "bids"
    image = np.stack([signal(ADC, S0, b) for b in (0, 1000)], -1).astype(np.float32)
    write(folder / "sub_dwi.nii.gz", image, AFFINE)
    (folder / "sub_dwi.bval").write_text("0 1000\n", encoding="utf-8-sig")  # Windows' byte-order mark
    for name in ("._sub_dwi.nii.gz", "sub_dwi.nii.gz.md5"):
        (folder / name).write_text("something else")
    assert fitted(folder) < 1


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"FrameOfReferenceUID": None}, "no FrameOfReferenceUID"),
        ({"PatientSex": "female"}, ""),
        ({"StudyDate": "***", "PatientBirthDate": "unknown"}, ""),
        ({"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"}, ""),
        ({"StudyID": None, "AccessionNumber": None}, ""),
    ],
)
def test_segmentations_of_headers_that_break_the_standard(
    elements: dict[str, Any], message: str, tmp_path: Path
) -> None:
    Study(tmp_path / "in").series(7, ADC, AFFINE, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    change(tmp_path / "in", **elements)
    write(tmp_path / "mask.nii.gz", lesion(ADC.shape), AFFINE)
    given = (tmp_path / "mask.nii.gz", tmp_path / "in", tmp_path / "mask.dcm")
    if message:
        with pytest.raises(UserError, match=message):
            write_dicom_seg(*given)
        return
    write_dicom_seg(*given)
    assert pydicom.dcmread(tmp_path / "mask.dcm").pixel_array.sum() == 21


def test_two_frames_of_reference_are_refused(tmp_path: Path) -> None:
    Study(tmp_path / "in").series(7, ADC, AFFINE, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    change(tmp_path / "in", "007_00[12]*", FrameOfReferenceUID=pydicom.uid.generate_uid())
    write(tmp_path / "mask.nii.gz", lesion(ADC.shape), AFFINE)
    with pytest.raises(UserError, match="more than one FrameOfReferenceUID"):
        write_dicom_seg(tmp_path / "mask.nii.gz", tmp_path / "in", tmp_path / "mask.dcm")


def test_a_list_shows_what_is_there_and_why_it_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = pair(tmp_path / "in")
    study.series(7, ADC, AFFINE, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    study.series(8, ADC, AFFINE, ("DERIVED", "PRIMARY", "DIFFUSION", "FA"))
    study.series(9, ADC[..., [0, 1, 3, 4]], AFFINE, b_value=0, shuffle=False)
    change(tmp_path / "in", "009_002*", ImagePositionPatient=[0, 0, 100])
    write_scan(None, None, Limits(), FitLimits(), list=tmp_path / "in")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["3", "dwi"], ["4", "dwi"], ["7", "adc"], ["8", "other"], ["9", "other"],
    ]  # fmt: skip
    assert "30×34×6×1" in lines[1]
    assert "1e-6 mm²/s" in lines[3]
    assert "FA" in lines[4]
    assert "gap" in lines[5] or "sheared" in lines[5]
    assert SECRET not in "".join(lines)


@pytest.mark.parametrize(
    ("pattern", "elements", "message"),
    [
        ("*.dcm", {"Rows": 3}, "bytes of pixels, not"),
        ("003_002.dcm", {"ImageOrientationPatient": 1.0}, "ImageOrientationPatient has 1 values, not 6"),
        ("*.dcm", {"ImagePositionPatient": [1.0, 2.0]}, "ImagePositionPatient has 2 values, not 3"),
        ("004_001.dcm", {"RescaleSlope": 0}, "RescaleSlope is 0"),
        ("004_001.dcm", {"RescaleIntercept": 70}, "different rescale intercepts"),
    ],
)
def test_headers_that_contradict_their_pixels_or_each_other(
    pattern: str, elements: dict[str, Any], message: str, tmp_path: Path
) -> None:
    pair(tmp_path / "in")
    change(tmp_path / "in", pattern, **elements)
    with pytest.raises(UserError, match=message):
        fitted(tmp_path / "in")
