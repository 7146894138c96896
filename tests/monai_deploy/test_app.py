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
from scanner_cases import SECRET, Study

from hie_bundle import Segmenter


def _run(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "integrations" / "monai_deploy" / "app.py"), "-i", str(folder), "-o", str(out)],
        capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize("with_zadc", [True, False])
def test_the_segmentation_is_that_of_the_same_maps_in_memory(with_zadc: bool, tmp_path: Path) -> None:
    """Series in shuffled order, pixels that are not square, and a Z map whose first slice is empty."""
    x, y, z = np.mgrid[-1:1:32j, -1:1:36j, -1.3:1.3:12j]  # type: ignore[misc]
    brain, rng = x**2 + y**2 + z**2 < 0.9, np.random.default_rng(0)
    lesion = brain & ((x - 0.4) ** 2 + (y + 0.2) ** 2 + z**2 < 0.08)
    adc = np.where(brain, np.where(lesion, 700, 1350) + rng.normal(0, 40, x.shape), 0).round()
    zadc = np.where(brain, np.where(lesion, -4.3, 0) + rng.normal(0, 0.4, x.shape), 0)
    angle = np.radians(12)
    turn = np.array([[-np.cos(angle), np.sin(angle), 0], [-np.sin(angle), -np.cos(angle), 0], [0, 0, 1]])
    affine = nib.affines.from_matvec(turn @ np.diag([2.8, 3.1, 7.0]), [40.0, 50.0, -20.0])
    study = Study(tmp_path / "dicom")
    study.series(4, adc, affine, SeriesDescription="ADC (10^-6 mm2/s)")
    if with_zadc:
        study.series(5, zadc + 10, affine, slope=0.001, RescaleIntercept=-10.0, SeriesDescription="Zmap of ADC")
    result = _run(tmp_path / "dicom", tmp_path / "out")
    assert result.returncode == 0, result.stderr[-3000:]
    assert SECRET not in result.stdout + result.stderr
    (written,) = (tmp_path / "out").glob("*.dcm")

    maps = [adc.astype(np.float32), (np.round((zadc + 10) / 0.001) * 0.001 - 10).astype(np.float32)]
    images = [nib.Nifti1Image(one, affine) for one in maps[: 1 + with_zadc]]
    expected = np.asarray(Segmenter()(*images).dataobj)
    assert 2 * (expected.astype(bool) & lesion).sum() / (expected.sum() + lesion.sum()) > 0.8

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
    assert "slices are missing or duplicate" in result.stdout + result.stderr
    assert not list((tmp_path / "out").glob("*.dcm"))
