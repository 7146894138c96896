"""What is written as DICOM, read back by other programs, for sources of every form.

highdicom and SimpleITK (GDCM) here; `make test-readers` adds dcmqi (DCMTK), which brings its own programs.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from matplotlib.path import Path as Polygon
from scanner_cases import Study
from test_scanner_adc import affine_of, head, signal
from test_scanner_enhanced import SAGITTAL

from scripts.io.images import write
from scripts.scanner.dicom_seg import write_dicom_seg

ADC, S0, _ = head()
GRIDS = {**{name: affine_of(name) for name in ("straight", "oblique", "head first")}, "sagittal": SAGITTAL}
STANDARD = Path(highdicom.__file__).parent / "_standard"
SHARED, FRAMES = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
DCMQI = os.environ.get("DCMQI")  # its segimage2itkimage


def lesion() -> np.ndarray:
    """Not symmetric in any axis; with a hole, a single voxel and voxels that touch at a corner."""
    mask = np.zeros(ADC.shape, dtype=np.uint8)
    mask[4:11, 18:25, 1:4] = 1
    mask[6:8, 20:23, 2] = 0
    mask[17, 5, 4] = mask[20, 8, 3] = mask[21, 9, 3] = 1
    mask[0, 30:, 0] = 1
    return mask


@pytest.fixture(params=[(grid, form) for grid in GRIDS for form in ("classic", "enhanced", "enhanced map")], ids=str)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Folder with mask.nii.gz, seg.dcm, contours.dcm and the source; the affine."""
    grid, form = request.param
    affine, study = GRIDS[grid], Study(tmp_path / "in", "Canon")
    if form == "classic":
        study.series(7, ADC, affine, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    elif form == "enhanced":
        study.enhanced(7, [signal(ADC, S0, b) for b in (0, 1000)], affine, (0, 1000))
    else:
        study.enhanced(7, [ADC], affine, [None], image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    write(tmp_path / "mask.nii.gz", lesion(), affine)
    write_dicom_seg(
        tmp_path / "mask.nii.gz", tmp_path / "in", tmp_path / "seg.dcm", rtstruct_file=tmp_path / "contours.dcm"
    )
    return tmp_path, affine


def test_segmentation_read_by_highdicom(written: tuple[Path, np.ndarray]) -> None:
    folder, affine = written
    volume = highdicom.seg.segread(folder / "seg.dcm").get_volume(combine_segments=True)
    to_voxel = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ affine)
    at = np.c_[np.argwhere(volume.array), np.ones(int(volume.array.sum()))]
    found = (to_voxel @ volume.affine @ at.T)[:3].T
    np.testing.assert_allclose(found, found.round(), atol=0.01)
    np.testing.assert_array_equal(np.unique(found.round().astype(int), axis=0), np.argwhere(lesion()))


def test_segmentation_read_by_gdcm(written: tuple[Path, np.ndarray]) -> None:
    folder, _ = written
    same(sitk.ReadImage(str(folder / "seg.dcm")), folder)


@pytest.mark.skipif(not DCMQI, reason="make test-readers")
def test_segmentation_read_by_dcmqi(written: tuple[Path, np.ndarray]) -> None:
    folder, _ = written
    words = [str(DCMQI), "--inputDICOM", folder / "seg.dcm", "--outputDirectory", folder, "-t", "nii", "-p", "read"]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
    same(sitk.ReadImage(str(folder / "read-1.nii.gz")), folder)


def same(image: sitk.Image, folder: Path) -> None:
    there = sitk.ReadImage(str(folder / "mask.nii.gz"))
    on_grid = sitk.Resample(image, there, sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(on_grid).T > 0, lesion() > 0)


def test_contours_hold_the_centres_of_the_masks_voxels(written: tuple[Path, np.ndarray]) -> None:
    folder, affine = written
    found = pydicom.dcmread(folder / "contours.dcm")
    source = pydicom.dcmread(next((folder / "in").iterdir()))
    assert found.SOPClassUID == pydicom.uid.RTStructureSetStorage
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert found[name].value == source[name].value
    assert found.StructureSetROISequence[0].ROIName == "HIE lesion"
    to_voxel = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ affine)
    back = np.zeros(ADC.shape, dtype=np.uint8)
    centres = np.argwhere(np.ones(ADC.shape[:2]))
    images = {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in (folder / "in").iterdir()}
    for contour in found.ROIContourSequence[0].ContourSequence:
        points = np.reshape(np.array(contour.ContourData, dtype=float), (-1, 3))
        assert len(points) == contour.NumberOfContourPoints >= 3
        at = (to_voxel @ np.c_[points, np.ones(len(points))].T)[:3].T
        (z,) = set(at[:, 2].round().astype(int))
        np.testing.assert_allclose(at[:, 2], z, atol=0.01)
        inside = Polygon(at[:, :2], closed=False).contains_points(centres).reshape(ADC.shape[:2])
        back[..., z] ^= inside.astype(np.uint8)
        assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID in images
    np.testing.assert_array_equal(back, lesion())


def test_contours_of_an_empty_mask(tmp_path: Path) -> None:
    Study(tmp_path / "in").series(7, ADC, GRIDS["oblique"], ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    write(tmp_path / "mask.nii.gz", lesion() * 0, GRIDS["oblique"])
    write_dicom_seg(tmp_path / "mask.nii.gz", tmp_path / "in", tmp_path / "s.dcm", rtstruct_file=tmp_path / "c.dcm")
    found = pydicom.dcmread(tmp_path / "c.dcm")
    assert "ContourSequence" not in found.ROIContourSequence[0]


def faults(path: Path) -> list[str]:
    """Elements that the standard demands (types 1 and 2 of the mandatory modules, in sequences, too) and a file lacks.

    By PS3.3's tables, which highdicom has from the standard's own files (`dicom-validator` has to download them).
    """
    names = ("sop_class_iod_map", "iod_module_map")
    classes, modules = (json.loads((STANDARD / f"{name}.json").read_text()) for name in names)
    attributes = module_attributes()
    image = pydicom.dcmread(path)
    found = []
    for module in modules[classes[image.SOPClassUID]]:
        if module["usage"] != "M":
            continue
        for attribute in attributes[module["key"]]:
            keyword, kind = attribute["keyword"], attribute["type"]
            if kind not in ("1", "2") or attribute["path"] in ([SHARED], [FRAMES]):  # a group is in one of the two
                continue
            for item in items(image, attribute["path"]):
                empty = keyword in item and kind == "1" and item[keyword].VM == 0 and item[keyword].VR != "OB"
                if keyword not in item or empty:
                    found.append(f"{module['key']}: {'/'.join([*attribute['path'], keyword])} (type {kind})")
    return sorted(set(found))


@functools.cache
def module_attributes() -> Any:
    return json.loads((STANDARD / "module_attribute_map.json").read_text())


def items(item: Any, path: list[str]) -> list[Any]:
    for keyword in path[:1]:
        return [below for one in item.get(keyword) or [] for below in items(one, path[1:])]
    return [item]


@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_what_is_written_has_what_the_standard_demands(form: str, tmp_path: Path) -> None:
    study, affine = Study(tmp_path / "in"), GRIDS["oblique"]
    if form == "classic":
        study.series(7, ADC, affine, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    else:
        study.enhanced(7, [ADC], affine, [None], image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    write(tmp_path / "mask.nii.gz", lesion(), affine)
    files = {name: tmp_path / f"{name}.dcm" for name in ("seg", "capture", "contours")}
    write_dicom_seg(tmp_path / "mask.nii.gz", tmp_path / "in", files["seg"], (), files["capture"], files["contours"])
    assert {name: faults(path) for name, path in files.items()} == {"seg": [], "capture": [], "contours": []}
    broken = pydicom.dcmread(files["contours"])
    del broken.StructureSetLabel, broken.ROIContourSequence[0].ReferencedROINumber
    broken.save_as(tmp_path / "broken.dcm")
    assert len(faults(tmp_path / "broken.dcm")) == 2
