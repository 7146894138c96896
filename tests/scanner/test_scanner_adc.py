"""ADC from diffusion images and scanners' maps: closed forms, vendors' quirks, bad input."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from conftest import ROOT
from scanner_cases import SECRET, Study
from scipy.spatial.transform import Rotation

from scripts.io.images import write
from scripts.runtime.errors import UserError
from scripts.scanner.adc import fit_adc, noise_of, write_adc
from scripts.scanner.dicom import read_folder
from scripts.scanner.inputs import read, scale_of, to_micro
from scripts.transforms.loading import LoadMapsd


def head(shape: tuple[int, int, int] = (30, 34, 6)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ADC (1e-6 mm²/s), signal at b = 0, and where there is a head."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = x**2 / 0.5 + y**2 / 0.6 + z**2 / 2 < 1
    adc = np.where(inside, 1300 + 500 * x + 300 * y * z, 0)
    return adc, np.where(inside, 800 + 100 * y, 0), inside


def affine_of(kind: str) -> np.ndarray:
    affine = np.diag([1.5, 1.7, 4.0, 1.0])
    if kind == "oblique":
        affine[:3, :3] = Rotation.from_euler("xyz", [9, -6, 14], degrees=True).as_matrix() @ affine[:3, :3]
    if kind == "head first":
        affine[:3, :3] = affine[:3, :3] @ np.diag([-1, -1, 1])
    affine[:3, 3] = [-20, 14, 33]
    return affine


def signal(adc: np.ndarray, s0: np.ndarray, b: float) -> np.ndarray:
    return s0 * np.exp(-1e-6 * b * adc)


@pytest.mark.parametrize("bs", [(0, 1000), (0, 500, 1000), (20, 700), (0, 1000, 1000, 1000), (0, 0, 400, 800, 800)])
def test_fit_gives_back_what_went_in(bs: tuple[float, ...]) -> None:
    adc, s0, inside = head()
    fit = fit_adc([signal(adc, s0, b) for b in bs], bs, noise=0)
    np.testing.assert_allclose(fit.adc[inside], adc[inside], rtol=1e-4)
    assert not fit.adc[~inside].any()
    assert not fit.floored.any()


def test_weighted_fit_is_weighted_least_squares() -> None:
    """Three noisy b-values: the line that NumPy fits to the logarithms with weights S (of residuals)."""
    rng = np.random.default_rng(0)
    bs = np.array([0.0, 400, 1200])
    images = [np.full((2, 2, 2), 900.0) * np.exp(-0.0012 * b) * rng.uniform(0.9, 1.1, (2, 2, 2)) for b in bs]
    fit = fit_adc(images, bs, noise=0)
    for index in np.ndindex(2, 2, 2):
        s = np.array([image[index] for image in images])
        slope = np.polyfit(bs, np.log(s), 1, w=s)[0]
        assert fit.adc[index] == pytest.approx(-1e6 * slope, rel=1e-4)


def test_directions_give_the_mean_diffusivity() -> None:
    ones = np.ones((4, 4, 2))
    tensor = (900.0, 1200.0, 1800.0)
    images = [1000 * ones] + [signal(d * ones, 1000 * ones, 800) for d in tensor]
    np.testing.assert_allclose(fit_adc(images, [0, 800, 800, 800], noise=0).adc, np.mean(tensor), rtol=1e-5)


def test_noise_is_that_of_the_air_and_its_floor_bounds_the_adc() -> None:
    rng = np.random.default_rng(1)
    adc, s0, inside = head((60, 60, 10))
    sigma = 25.0

    def rician(image: np.ndarray) -> np.ndarray:
        return np.hypot(image + rng.normal(0, sigma, image.shape), rng.normal(0, sigma, image.shape))

    images = [rician(signal(adc, s0, b)) for b in (0, 3000)]
    assert noise_of(images[1]) == pytest.approx(sigma, rel=0.05)
    fit = fit_adc(images, (0, 3000))
    assert fit.noise == pytest.approx(sigma, rel=0.05)
    assert (fit.floored & inside).sum() > 100
    bound = np.log(images[0] / (2 * fit.noise)) / 3000e-6
    np.testing.assert_allclose(fit.adc[fit.floored], bound[fit.floored], rtol=1e-3, atol=0.1)
    # with a third image that is above the floor, the one under it does not count
    middle = rician(signal(adc, s0, 600))
    three = fit_adc([images[0], middle, images[1]], (0, 600, 3000))
    under = inside & (images[1] <= 2 * three.noise)
    np.testing.assert_allclose(
        three.adc[under], (np.log(images[0] / middle) / 600e-6)[under].clip(0), rtol=1e-3, atol=0.1
    )
    masked = [np.where(inside, image, 0) for image in images]
    assert fit_adc(masked, (0, 3000)).noise == 0


@pytest.mark.parametrize("factor", [1.0, 1e-1, 1e-3, 1e-6, 1e-12])
def test_units_are_told(factor: float, caplog: pytest.LogCaptureFixture) -> None:
    adc, _, inside = head()
    with caplog.at_level(logging.INFO):
        np.testing.assert_allclose(to_micro(adc * factor), adc, rtol=1e-5)
    assert "mm²/s" in caplog.text or "m²/s" in caplog.text
    with pytest.raises(UserError, match="adc_scale"):
        scale_of(np.where(inside, 130, 0) * 0.0501)


@pytest.mark.parametrize(
    ("bs", "message"),
    [
        ((0, 40), "b-value"),
        ((500, 1000), "b = 0"),
        ((0,), "each image"),
        ((0, -5), "not valid b-values"),
        ((0, 1e7), "not valid b-values"),
    ],
)
def test_bad_b_values_are_named(bs: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_adc([np.ones((2, 2, 2))] * 2, bs)


@pytest.mark.parametrize("form", ["files", "4D", "BIDS", "mha"])
def test_files(form: str, tmp_path: Path) -> None:
    adc, s0, inside = head()
    affine = affine_of("oblique")
    volumes = [signal(adc, s0, b).astype(np.float32) for b in (0, 1000)]
    out = tmp_path / "adc.nii.gz"
    if form in ("files", "mha"):
        extension = "mha" if form == "mha" else "nii.gz"
        paths = [tmp_path / f"{name}.{extension}" for name in ("b0", "b1000")]
        for path, volume in zip(paths, volumes, strict=True):
            write(path, volume, affine)
        write_adc(paths, out, b_values=[0, 1000])
        with pytest.raises(UserError, match=r"b0\.bval"):
            write_adc(paths, tmp_path / "none.nii.gz")
        assert not (tmp_path / "none.nii.gz").exists()
    else:
        import nibabel

        name = tmp_path / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
        name.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(np.stack(volumes, -1), affine), name)
        name.with_name("sub-01_dwi.bval").write_text("0 1000\n")
        write_adc(tmp_path if form == "BIDS" else name, out)
        name.with_name("sub-01_dwi.bval").write_text("0 1000 1000\n")
        with pytest.raises(UserError, match="3 b-values for 2 images"):
            write_adc(name, out)
    result = read(out)
    np.testing.assert_allclose(result.array[inside], adc[inside], rtol=1e-3)
    np.testing.assert_allclose(result.affine, affine, atol=1e-4)


@pytest.mark.parametrize("grid", ["straight", "oblique", "head first"])
@pytest.mark.parametrize("vendor", ["SIEMENS", "GE MEDICAL SYSTEMS", "Philips Medical Systems", "Canon"])
def test_dicom_of_each_vendor(vendor: str, grid: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adc, s0, inside = head()
    affine = affine_of(grid)
    study = Study(tmp_path / "in", vendor)
    philips = vendor.startswith("Philips")
    for number, b in enumerate((0, 1000), start=3):
        values = signal(adc, s0, b) * 8
        # Philips: each series is rescaled for display by a slope of its own; what they have in common is private
        slope, scale = ((0.5, 4.0) if b else (0.25, 2.0)) if philips else (1.0, None)
        stored = values * (scale or 1.0)
        study.series(number, stored * slope, affine, b_value=b, slope=slope, scale=scale)
    with caplog.at_level(logging.DEBUG):
        write_adc(tmp_path / "in", tmp_path / "adc.nii.gz")
    result = read(tmp_path / "adc.nii.gz")
    np.testing.assert_allclose(result.affine, affine, atol=2e-4)
    assert np.abs(result.array[inside] - adc[inside]).max() < 5  # whole numbers in DICOM
    assert SECRET not in caplog.text


@pytest.mark.parametrize("unit", ["micro", "milli", "mapped"])
def test_scanners_own_map(unit: str, tmp_path: Path) -> None:
    from pydicom.dataset import Dataset

    adc, s0, inside = head()
    affine = affine_of("oblique")
    study = Study(tmp_path / "in")
    study.series(3, signal(adc, s0, 0), affine, b_value=0)
    study.series(4, signal(adc, s0, 1000), affine, b_value=1000)
    elements, slope = {}, 1.0
    if unit == "milli":
        slope = 1e-3
    if unit == "mapped":  # stored values say nothing by themselves
        code, mapping = Dataset(), Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "mm2/s", "UCUM", "mm2/s"
        mapping.MeasurementUnitsCodeSequence = [code]
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 5e-7, 0.0
        elements = {"RealWorldValueMappingSequence": [mapping]}
    values = adc * {"micro": 1.0, "milli": 1e-3, "mapped": 2.0}[unit]
    study.series(7, values, affine, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"), slope=slope, **elements)
    study.series(8, values, affine, ("DERIVED", "PRIMARY", "DIFFUSION", "EADC"), slope=slope)
    write_adc(tmp_path / "in", tmp_path / "adc.nii.gz")
    np.testing.assert_allclose(read(tmp_path / "adc.nii.gz").array[inside], adc[inside], atol=0.6)
    write_adc(tmp_path / "in", tmp_path / "fit.nii.gz", adc_source="fit")
    assert np.abs(read(tmp_path / "fit.nii.gz").array[inside] - adc[inside]).max() < 12


BAD = {
    "gap": "has a gap: slices 3 and 4 of 5 are 8.00 mm apart",
    "double": "slices are missing or duplicate",
    "frames": "its pixels are missing",
    "patients": "images of 2 patients",
    "studies": "images of 2 studies",
    "mixed": "mixes images of 2 orientations",
    "no b": "No b-value is stated by series 3",
    "no b0": "b = 0",
    "nothing": "contains no MR image in DICOM format",
    "maps": "several ADC maps",
    "damaged": "is damaged: its pixels are missing",
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_folders_are_refused_and_nothing_is_written(fault: str, tmp_path: Path) -> None:
    adc, s0, _ = head()
    affine, folder = affine_of("oblique"), tmp_path / "in"
    study = Study(folder)
    if fault == "nothing":
        (folder / "notes.txt").write_text("nothing here")
    elif fault == "maps":
        for number in (5, 6):
            study.series(number, adc, affine, ("DERIVED", "PRIMARY", "DIFFUSION", "ADC"))
    else:
        uid = study.series(3, signal(adc, s0, 0), affine, b_value=None if fault == "no b" else 0, shuffle=False)
        if fault != "no b0":
            extra = {"NumberOfFrames": 2} if fault == "frames" else {}
            study.series(4, signal(adc, s0, 1000), affine, b_value=1000, shuffle=False, **extra)
        else:
            for path in folder.glob("003_*"):
                path.unlink()
            study.series(4, signal(adc, s0, 1000), affine, b_value=1000)
        if fault in ("patients", "studies"):
            other = Study(folder, patient="ROE^JOHN" if fault == "patients" else SECRET)
            other.series(9, adc, affine, b_value=0)
        if fault == "gap":
            (folder / "003_003.dcm").unlink()
        if fault == "double":
            study.series(11, signal(adc, s0, 0)[:, :, :1], affine, b_value=0, uid=uid[0].SeriesInstanceUID)
        if fault == "mixed":
            turned = affine_of("straight")
            study.series(11, signal(adc, s0, 0), turned, b_value=0, uid=uid[0].SeriesInstanceUID)
        if fault == "damaged":
            path = folder / "003_001.dcm"
            path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=BAD[fault]) as error:
        write_adc(folder, tmp_path / "adc.nii.gz")
    assert SECRET not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_copies_are_taken_once(tmp_path: Path) -> None:
    adc, s0, _ = head()
    study = Study(tmp_path / "in")
    study.series(3, signal(adc, s0, 0), affine_of("oblique"), b_value=0)
    for path in list((tmp_path / "in").glob("*.dcm"))[:3]:
        (tmp_path / "in" / f"copy_{path.name}").write_bytes(path.read_bytes())
    found = read_folder(tmp_path / "in")
    assert [(one.b_values, one.array.shape, len(one.sources)) for one in found] == [((0,), (30, 34, 6, 1), 6)]


def test_a_volume_lies_where_gdcm_puts_it(tmp_path: Path) -> None:
    """Another reader of the same folder: SimpleITK's, with GDCM's order of slices."""
    adc, s0, _ = head()
    study = Study(tmp_path / "in")
    study.series(3, signal(adc, s0, 0), affine_of("oblique"), b_value=0)
    (one,) = read_folder(tmp_path / "in")
    volume = one.volume()
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in")))
    image = reader.Execute()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).T, volume.array)
    for index in ((0, 0, 0), (29, 33, 5), (3, 30, 1)):
        lps = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ volume.affine @ [*index, 1], [*lps, 1], atol=1e-3)


def test_values_that_would_not_be_read_are_refused(tmp_path: Path) -> None:
    adc, s0, _ = head()
    one, b0, out = tmp_path / "map.nii.gz", tmp_path / "b0.nii.gz", tmp_path / "out.nii.gz"
    write(one, adc.astype(np.float32), np.eye(4))
    write(b0, s0.astype(np.float32), np.eye(4))
    study = Study(tmp_path / "in")
    study.series(3, signal(adc, s0, 0), affine_of("oblique"), b_value=0)
    for images, given, message in [
        (one, {"output_file": one}, "is one of the images"),
        (one, {"b_values": [1000]}, "b = 0"),
        (one, {"series": [3]}, "for folders of DICOM"),
        ([b0, one], {"b_values": [0, 1000], "adc_scale": 10}, "for a scanner.s ADC map only"),
        (tmp_path / "in", {"b_values": [0]}, "DICOM headers contain the b-values"),
        (tmp_path / "in", {"adc_source": "both"}, "choose one of: map, fit"),
        (tmp_path / "in", {"series": [8]}, "There is no series 8; there are 3"),
        (tmp_path / "none", {}, "is missing"),
        (None, {}, "Name the images"),
    ]:
        with pytest.raises(UserError, match=message):
            write_adc(images, **{"output_file": out, **given})
    assert not out.exists()


def test_maps_load_quietly_where_pydicom_is_installed(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    LoadMapsd(["image"])
    assert [str(warning.message) for warning in recwarn if "pydicom" in str(warning.message).lower()] == []
    assert "pydicom" not in caplog.text


def test_command(tmp_path: Path) -> None:
    adc, s0, inside = head()
    study = Study(tmp_path / "in")
    for number, b in enumerate((0, 1000), start=3):
        study.series(number, signal(adc, s0, b) * 8, affine_of("oblique"), b_value=b)
    words = [sys.executable, "-m", "hie_bundle", "adc", "in", "-o", "adc.mha"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "ADC fitted from series 3 (dwi, b = 0), series 4 (dwi, b = 1000)" in found.stdout + found.stderr
    assert SECRET not in found.stdout + found.stderr
    assert np.abs(read(tmp_path / "adc.mha").array[inside] - adc[inside]).max() < 5
