"""Files of real scanners, which are not in the repository: `make test-real DIR=../shared/real`.

One assertion a vendor, against what dcm2niix makes of the whole folder, and the brain mask against a drawn one.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT

from scripts.evaluation.metrics import dice
from scripts.io.volumes import Volume
from scripts.scanner.adc import adc_from_dicom, b0_of
from scripts.scanner.brain_mask import brain_mask, mask_doubt, median_otsu
from scripts.scanner.dicom import read_folder

REAL = Path(os.environ.get("HIE_REAL") or Path(os.environ.get("HIE_SHARED") or ROOT.parent / "shared") / "real")
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")

# folder: b-values, and the least and greatest volume of the brain that the scan holds (ml)
SCANS = {
    "canon_v6_dti": ([0, *[1500] * 12], (1350, 1600)),
    "philips_achieva_2008_dti": ([0, *[1000] * 4], (1350, 1550)),
    "siemens_prisma_mosaic_dti": ([0, *[2000] * 7], (1250, 1500)),
    "siemens_xa30_dwi_enhanced": ([0, *[2500] * 5], (1350, 1550)),
    "toshiba_galan_v5_dti": ([0, *[1500] * 4], (1280, 1450)),
    "uih_umr770_dti_vframe": ([1.25194, *[928.289] * 16], (920, 1080)),
}


@pytest.mark.parametrize("scan", SCANS)
def test_each_vendor(scan: str, tmp_path: Path) -> None:
    import dcm2niix

    expected, volume_ml = SCANS[scan]
    series = read_folder(REAL / scan)
    (found,) = (one for one in series if one.kind == "dwi")
    np.testing.assert_allclose(found.b_values, expected, atol=0.01)
    subprocess.run([dcm2niix.bin, "-z", "n", "-b", "n", "-f", "v", "-o", tmp_path, REAL / scan], check=True, stdout=-3)
    image = nib.load(tmp_path / "v.nii")
    corner = found.affine @ [0, found.array.shape[1] - 1, 0, 1]  # dcm2niix reverses the rows
    np.testing.assert_allclose(image.affine[:, 3], corner, atol=1e-3)
    stored = np.asarray(image.dataobj, dtype=np.float32)[:, ::-1]
    np.testing.assert_allclose(found.array, stored, rtol=1e-5, atol=1e-4)

    b0 = b0_of(series).volume()
    mask = brain_mask(b0)
    assert volume_ml[0] < mask.sum() * np.prod(b0.spacing_mm) / 1000 < volume_ml[1]
    assert not mask_doubt(mask, b0, median_otsu(b0))
    plain = np.log(np.maximum(stored[mask], 1e-6 * stored.max()))
    b = np.array(found.b_values)
    slope = (plain[:, b > 50].mean(1) - plain[:, b <= 50].mean(1)) / (b[b <= 50].mean() - b[b > 50].mean())
    adc = adc_from_dicom(series, noise=0)[0].array[mask]
    usable = (stored[mask] > 0).all(1) & (slope > 1e-4)
    np.testing.assert_allclose(adc[usable], 1e6 * slope[usable], rtol=0.01)


def test_a_scanners_adc_map_is_one() -> None:
    adc, source = adc_from_dicom(read_folder(REAL / "ge_signa_hdxt_adc"))
    assert (source.kind, adc.array.shape) == ("adc", (256, 256, 20))
    assert 900 < np.median(adc.array[adc.array > 0]) < 1300


def test_a_brain_with_an_infarct() -> None:
    image, drawn = (nib.load(REAL / "stroke_b0" / f"{name}.nii.gz") for name in ("b0", "brain_mask"))
    affine = image.affine @ np.diag([2, 2, 1, 1])  # every other pixel, for time
    b0 = Volume(np.asarray(image.dataobj, dtype=np.float32)[::2, ::2], affine)
    mask, truth = brain_mask(b0), np.asarray(drawn.dataobj)[::2, ::2] > 0
    assert dice(mask, truth) >= 0.93
    assert not mask_doubt(mask, b0, median_otsu(b0))
    infarct = truth & (b0.array > np.percentile(b0.array[truth], 90))  # what version 0.9.1 took for the brain
    assert "give another mask" in mask_doubt(infarct, b0, median_otsu(b0))
