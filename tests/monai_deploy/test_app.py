"""The application against the real MONAI Deploy App SDK, in an environment of its own (hie_bundle/docs/deploy.md):

python -m pytest tests/monai_deploy
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monai.deploy", reason="MONAI Deploy App SDK is not installed: hie_bundle/docs/deploy.md")

import highdicom
import nibabel as nib
import pydicom
from conftest import ROOT
from scanner_cases import Study

from hie_bundle import Segmenter
from scripts.bonbid import read_volume


def _run(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "integrations" / "monai_deploy" / "app.py"), "-i", str(folder), "-o", str(out)],
        capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize("with_zadc", [True, False])
def test_the_segmentation_is_that_of_the_same_maps_from_files(
    with_zadc: bool, tmp_path: Path, tiny_cohort: Path
) -> None:
    """Series in shuffled order, pixels that are not square, and a Z map whose first slice is empty."""
    file = next((tiny_cohort / "BONBID2023_Test").rglob("*-ADC_ss.mha"))
    other = next((tiny_cohort / "BONBID2023_Test").rglob(f"Zmap_{file.name.removesuffix('_ss.mha')}*"))
    adc, zadc = (np.asarray(read_volume(one).array, float) for one in (file, other))
    adc[:, :, 0] = zadc[:, :, 0] = 0
    angle = np.radians(12)
    turn = np.array([[-np.cos(angle), np.sin(angle), 0], [-np.sin(angle), -np.cos(angle), 0], [0, 0, 1]])
    affine = nib.affines.from_matvec(turn @ np.diag([2.6, 2.9, 4.0]), [40.0, 50.0, -20.0])
    study = Study(tmp_path / "dicom")
    study.series(4, adc, affine, SeriesDescription="ADC (10^-6 mm2/s)")
    if with_zadc:
        study.series(5, zadc + 10, affine, slope=0.001, RescaleIntercept=-10.0, SeriesDescription="Zmap of ADC")
    result = _run(tmp_path / "dicom", tmp_path / "out")
    assert result.returncode == 0, result.stderr[-3000:]
    (written,) = (tmp_path / "out").glob("*.dcm")

    maps = [np.round(adc).astype(np.float32), (np.round((zadc + 10) / 0.001) * 0.001 - 10).astype(np.float32)]
    images = [nib.Nifti1Image(one, affine) for one in maps[: 1 + with_zadc]]
    expected = np.asarray(Segmenter()(*images).dataobj)
    assert expected.any()

    segmentation = highdicom.seg.segread(written)
    assert segmentation.ContentQualification == "RESEARCH"
    found = np.zeros_like(expected)
    lps = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ affine)
    for frame, functional in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        position = [*functional.PlanePositionSequence[0].ImagePositionPatient, 1.0]
        found[:, :, round((lps @ position)[2])] = frame.T
    np.testing.assert_array_equal(found, expected)
    referred = {
        item.ReferencedSOPInstanceUID for item in segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referred == {pydicom.dcmread(one).SOPInstanceUID for one in (tmp_path / "dicom").glob("004_*.dcm")}


def test_a_missing_slice_ends_it_and_nothing_is_written(tmp_path: Path) -> None:
    study = Study(tmp_path / "dicom")
    study.series(4, np.full((20, 20, 8), 1000.0), np.diag([5.0, 5, 8, 1]), SeriesDescription="ADC")
    study.series(5, np.full((20, 20, 8), 10.0), np.diag([5.0, 5, 8, 1]), SeriesDescription="Zmap")
    next(one for one in (tmp_path / "dicom").glob("004_*") if pydicom.dcmread(one).InstanceNumber == 4).unlink()
    result = _run(tmp_path / "dicom", tmp_path / "out")
    assert "slices are missing or double" in result.stdout + result.stderr
    assert not list((tmp_path / "out").glob("*.dcm"))
