"""From a folder of DICOM to the mask on its series, on whole simulated heads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from head_cases import NEWBORN, Head, head_of
from PIL import Image
from scanner_cases import SECRET, Study

from scripts.cli.scan import write_scan
from scripts.data.checks import Limits
from scripts.evaluation.metrics import dice
from scripts.inference.segmenter import Segmenter
from scripts.io.images import write
from scripts.phantom.anatomy import BOX_CENTRE_MM, BOX_HALF_MM
from scripts.phantom.case import simulate_case
from scripts.phantom.normative import build_atlas
from scripts.phantom.settings import Settings
from scripts.runtime.errors import UserError
from scripts.scanner.inputs import read
from scripts.scanner.zscore import FitLimits

SETTINGS = Settings(
    matrix_sizes=(96,), slice_range=(28, 28), fine_mm=2.5, atlas_step_mm=2.5, num_healthy=6, registration_mm=0.0
)


@pytest.fixture(scope="module")
def head() -> Head:
    """An eighth of the brain is injured."""
    return head_of(simulate_case(0, 0, SETTINGS, counterfactual=True))


@pytest.fixture(scope="module")
def folder(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dicom") / "in"
    study = Study(path, "Philips Medical Systems")
    for number, (b, image) in enumerate({0: head.b0, 1000: head.b1000}.items(), start=3):
        study.series(number, image * 2.0, head.affine, b_value=b, slope=0.5, scale=4.0)
    return path


def check(out: Path, head: Head, expected: np.ndarray) -> None:
    """The mask against what the same weights make of the original maps, and the segmentation against the mask."""
    mask = read(out / "lesion.nii.gz")
    np.testing.assert_allclose(mask.affine, head.affine, atol=1e-3)
    found, truth = mask.array > 0, head.label > 0
    assert found.sum() == pytest.approx(expected.sum(), rel=0.05)
    assert abs(dice(found, truth) - dice(expected, truth)) < 0.03
    assert dice(found, expected) > 0.9
    seg, there = (sitk.ReadImage(str(out / f"lesion.{ending}")) for ending in ("dcm", "nii.gz"))
    on_grid = sitk.GetArrayFromImage(sitk.Resample(seg, there, sitk.Transform(), sitk.sitkNearestNeighbor)).T
    np.testing.assert_array_equal(on_grid > 0, found)


def test_from_dicom_to_the_segmentation(
    head: Head, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    caplog.set_level("DEBUG")
    write_scan(folder, out, NEWBORN, FitLimits(), secondary_capture=True, rtstruct=True)
    check(out, head, Segmenter().result(head.adc.astype(np.float32), affine=head.affine).mask > 0)
    assert {path.name for path in out.iterdir()} == {
        "adc.nii.gz", "brain.nii.gz", "brain.png", "lesion.dcm", "lesion.nii.gz", "lesion.png",
        "lesion_contours.dcm", "lesion_picture.dcm", "scan.json",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    kept = json.loads((out / "scan.json").read_text())
    assert kept["atlas_fit"] is None
    assert "no ZADC map" in kept["notes"][0]  # said, not silent
    assert "no ZADC map" in caplog.text
    voxel_ml = np.abs(np.linalg.det(head.affine[:3, :3])) / 1000
    assert kept["lesion_ml"] == pytest.approx((read(out / "lesion.nii.gz").array > 0).sum() * voxel_ml, rel=1e-3)
    seg = pydicom.dcmread(out / "lesion.dcm")
    source = pydicom.dcmread(folder / "003_000.dcm")
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert seg.StudyInstanceUID == source.StudyInstanceUID
    picture = pydicom.dcmread(out / "lesion_picture.dcm")
    assert (picture.StudyInstanceUID, picture.PatientID) == (source.StudyInstanceUID, source.PatientID)
    with Image.open(out / "lesion.png") as shown:
        np.testing.assert_array_equal(picture.pixel_array[: shown.height], np.asarray(shown.convert("RGB")))
        assert picture.Rows > shown.height  # what it is for stands below
    assert SECRET not in caplog.text + (out / "scan.json").read_text()
    with pytest.raises(UserError, match="already exists"):
        write_scan(folder, out, NEWBORN, FitLimits())


def test_a_missing_package_is_missed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UserError, match="pip install highdicom"):
        write_scan(tmp_path / "none", tmp_path / "out", NEWBORN, FitLimits())


def test_nothing_is_written_halfway(head: Head, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mine = tmp_path / "mine.nii.gz"
    write(mine, head.brain[:-1].astype(np.uint8), head.affine)
    maps = tmp_path / "map"
    unstated, half, unit, two = (tmp_path / name for name in ("unstated", "half", "unit", "two"))
    adc, kind = head.adc.astype(float), ("DERIVED", "PRIMARY", "DIFFUSION", "ADC")
    Study(maps).series(5, adc, head.affine, kind)
    study = Study(unstated)
    study.series(5, adc, head.affine, kind)
    study.series(3, head.b0, head.affine)
    Study(unit).series(5, adc * 0.25, head.affine, kind)
    study = Study(half)  # the lower half of the head
    for number, image in {3: head.b0, 4: head.b1000}.items():
        study.series(number, image[:, :, : image.shape[2] // 2], head.affine, b_value=1000 * (number - 3))
    Study(two).series(3, head.b0, head.affine, b_value=0)
    Study(two, patient="ROE^JOHN").series(4, head.b1000, head.affine, b_value=1000)
    refused: list[tuple[dict[str, Any], str, set[str]]] = [
        ({"brain_file": mine}, "on different grids", set()),
        ({"limits": Limits(brain_ml_range=(100, 200))}, r"ml, not 100 to 200. See .*/out/brain.png", {"brain.png"}),
        ({"images": maps}, "No image with b = 0 is on the grid of series 5", {"brain.png"}),
        ({"atlas_mean": mine}, "give both, or neither", {"brain.png"}),
        ({"images": unstated}, r"on the grid of series 5 \(adc\).* No b-value is stated by series 3", {"brain.png"}),
        ({"images": half}, "the image ends within it. See .*/out/brain.png", {"brain.png"}),
        ({"images": unit}, "adc_scale", {"brain.png"}),
        ({"images": two}, "images of 2 patients", {"brain.png"}),
        ({"output_dir": folder / "out"}, "inside the folder of images", {"brain.png"}),
        ({"weights": tmp_path / "none.pt"}, "none.pt", {"brain.png"}),
    ]
    for changed, message, pictures in refused:
        given = {"images": folder, "output_dir": out, "limits": NEWBORN, "fit_limits": FitLimits(), **changed}
        with pytest.raises(UserError, match=message):
            write_scan(**given)
        assert {path.name for path in out.glob("*")} == pictures
        assert {path.name for path in tmp_path.iterdir()} - {"out"} == {
            "mine.nii.gz", "map", "unstated", "half", "unit", "two",
        }  # fmt: skip


def test_a_bad_fit_is_refused_with_a_picture_that_is_there(head: Head, folder: Path, tmp_path: Path) -> None:
    """The head's own map as the atlas, at the level of an adult's: what the message names must exist."""
    write(tmp_path / "mean.nii.gz", (head.adc * 0.55).astype(np.float32), head.affine)
    write(tmp_path / "std.nii.gz", np.where(head.brain, 60, 0).astype(np.float32), head.affine)
    out = tmp_path / "out"
    with pytest.raises(
        UserError, match=r"does not fit the ADC map of series 3.* median Z of the brain is \d"
    ) as caught:
        write_scan(
            folder, out, NEWBORN, FitLimits(), tmp_path / "mean.nii.gz", tmp_path / "std.nii.gz",
            zscore={"deformable": False},
        )  # fmt: skip
    named = re.findall(r"/\S+\.(?:png|json|nii\.gz)", str(caught.value))
    assert named == [str(out / "zadc.png")]
    assert Path(named[0]).read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in out.iterdir()} == {"brain.png", "zadc.png"}


def test_a_map_that_cannot_be_segmented_is_named_by_what_it_is(
    head: Head, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = Segmenter()
    fine.limits = replace(fine.limits, spacing_range_mm=(0.1, 0.2))
    monkeypatch.setattr("scripts.cli.scan.Segmenter", lambda weights: fine)
    with pytest.raises(UserError, match="the image has voxels of") as caught:
        write_scan(folder, tmp_path / "out", NEWBORN, FitLimits())
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.slow
def test_with_an_atlas_by_the_command(
    head: Head, folder: Path, tmp_path: Path, monai_bundle: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    atlas = build_atlas(0, SETTINGS.num_healthy, SETTINGS.atlas_step_mm)
    affine = np.diag([atlas.step_mm] * 3 + [1.0])
    affine[:3, 3] = BOX_CENTRE_MM - BOX_HALF_MM
    for name in ("mean", "std"):
        write(tmp_path / f"{name}.nii.gz", np.where(atlas.brain, getattr(atlas, name), 0), affine)
    write(tmp_path / "mine.nii.gz", head.brain.astype(np.uint8), head.affine)
    out = tmp_path / "out"
    ran = monai_bundle(
        "run", "scan", config_file="hie_bundle/configs/scanner.yaml", images=folder, output_dir=out,
        atlas_mean=tmp_path / "mean.nii.gz", atlas_std=tmp_path / "std.nii.gz", brain_file=tmp_path / "mine.nii.gz",
    )  # fmt: skip
    assert SECRET not in ran.stdout + ran.stderr
    np.testing.assert_array_equal(read(out / "brain.nii.gz").array > 0, head.brain)
    maps = (head.adc.astype(np.float32), head.zadc.astype(np.float32))
    check(out, head, Segmenter().result(*maps, affine=head.affine).mask > 0)
    assert json.loads((out / "scan.json").read_text())["atlas_fit"]["correlation"] > 0.5
    kept = json.loads((out / "zadc.json").read_text())  # no name of the folder that it was made in
    assert (kept["adc_file"], kept["atlas_mean"]) == ("adc.nii.gz", "../mean.nii.gz")
    z = read(out / "zadc.nii.gz").array
    assert np.corrcoef(z[head.brain], head.zadc[head.brain])[0, 1] > 0.8
