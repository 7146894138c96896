"""Images of one series in any order of InstanceNumber: the ADC is right, or the series is refused."""

from __future__ import annotations

from collections.abc import Callable
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
AFFINE = affine_of("oblique")
N = ADC.shape[2]
B_VALUES = (0, 1000, 1000)
DRAWN = np.random.default_rng(0)
ANY = DRAWN.permutation(len(B_VALUES) * N)
SLICES = [DRAWN.permutation(N) for _ in B_VALUES]
ROWS = [DRAWN.permutation(len(B_VALUES)) for _ in range(N)]

# the InstanceNumber of slice k of volume v
ORDERS: dict[str, Callable[[int, int], int | None]] = {
    "volume by volume": lambda v, k: v * N + k + 1,
    "last slice first": lambda v, k: v * N + N - k,
    "slice by slice": lambda v, k: k * len(B_VALUES) + v + 1,
    "restarts": lambda v, k: k + 1,
    "number of the volume": lambda v, k: v + 1,
    "all the same": lambda v, k: 1,
    "none": lambda v, k: None,
    "random": lambda v, k: int(ANY[v * N + k]) + 1,
    "order of acquisition": lambda v, k: v * N + int(SLICES[0][k]) + 1,
    "another order in each volume": lambda v, k: v * N + int(SLICES[v][k]) + 1,
    "another order at each slice": lambda v, k: k * len(B_VALUES) + int(ROWS[k][v]) + 1,
    "two of one number": lambda v, k: v * N + k // 2 + 1,
    "volumes overlap": lambda v, k: v * (N - 1) + k + 1,
}  # fmt: skip


def one_series(
    folder: Path, vendor: str, number: Callable[[int, int], int | None], stated: tuple[float | None, ...] = B_VALUES
) -> None:
    study, uid = Study(folder, vendor), pydicom.uid.generate_uid()
    for v, b in enumerate(B_VALUES):
        for k, one in enumerate(study.series(3, signal(ADC, S0, b) * 8, AFFINE, b_value=stated[v], uid=uid)):
            one.InstanceNumber = number(v, k)
            if one.InstanceNumber is None:
                del one.InstanceNumber
            pydicom.dcmwrite(folder / f"{v}_{k}.dcm", one, enforce_file_format=True)
        for path in folder.glob("003_*"):
            path.unlink()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("vendor", ["SIEMENS", "Philips Medical Systems", "Canon", "GE MEDICAL SYSTEMS"])
def test_adc_is_right_in_any_order(vendor: str, order: str, tmp_path: Path) -> None:
    one_series(tmp_path / "in", vendor, ORDERS[order])
    write_adc(tmp_path / "in", tmp_path / "adc.nii.gz")
    found = read(tmp_path / "adc.nii.gz")
    assert np.abs(found.array[INSIDE] - ADC[INSIDE]).max() < 5
    np.testing.assert_allclose(found.affine, AFFINE, atol=2e-4)


@pytest.mark.parametrize("order", ["restarts", "all the same", "none"])
@pytest.mark.parametrize("stated", [(1000, 1000, 1000), (None, 1000, 1000)])
def test_images_that_nothing_tells_apart_are_refused(
    order: str, stated: tuple[float | None, ...], tmp_path: Path
) -> None:
    """Of GE's b = 0 the header may state the directions' b-value; Toshiba's states none."""
    one_series(tmp_path / "in", "GE MEDICAL SYSTEMS", ORDERS[order], stated)
    with pytest.raises(UserError, match="neither InstanceNumber nor the b-values tell"):
        read_folder(tmp_path / "in")


@pytest.mark.parametrize("nominal", [True, False])
def test_ges_b0_may_state_the_directions_b_value(nominal: bool, tmp_path: Path) -> None:
    """The gradient tells: 0 in all three of GE's elements."""
    study, uid = Study(tmp_path / "in", "GE MEDICAL SYSTEMS"), pydicom.uid.generate_uid()
    for v, gradient in enumerate(((0, 0, 0), (1, 0, 0), (0, 1, 0))):
        stated = 1000 if nominal else B_VALUES[v]
        for k, one in enumerate(study.series(3, signal(ADC, S0, B_VALUES[v]) * 8, AFFINE, b_value=stated, uid=uid)):
            one.InstanceNumber, one.ScanningSequence = v * N + k + 1, ["EP", "RM"]
            one.add_new((0x0019, 0x0010), "LO", "GEMS_ACQU_01")
            for element, value in zip((0x10BB, 0x10BC, 0x10BD, 0x10E0), (*gradient, 2), strict=True):
                one.add_new((0x0019, element), "DS", value)
            pydicom.dcmwrite(tmp_path / "in" / f"{v}_{k}.dcm", one, enforce_file_format=True)
        for path in (tmp_path / "in").glob("003_*"):
            path.unlink()
    (found,) = read_folder(tmp_path / "in")
    assert found.b_values == B_VALUES


@pytest.mark.parametrize(
    "missing",
    ["SeriesNumber", "InstanceNumber", "ImageType", "Manufacturer", "PatientID", "PatientName", "SeriesDescription",
     "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "RescaleSlope", "SliceThickness", "StudyDate",
     "Modality", "ImagePositionPatient", "ImageOrientationPatient",
     "PixelSpacing", "Rows", "BitsAllocated", "SamplesPerPixel"],
)  # fmt: skip
def test_missing_elements_are_no_matter_or_named(missing: str, tmp_path: Path) -> None:
    """And whatever is split over folders."""
    one_series(tmp_path / "in", "Canon", ORDERS["volume by volume"])
    (tmp_path / "in" / "rest").mkdir()
    for number, path in enumerate(sorted((tmp_path / "in").glob("*.dcm"))):
        image = pydicom.dcmread(path)
        delattr(image, missing)
        image.save_as(path.parent / "rest" / path.name if number % 2 else path)
        if number % 2:
            path.unlink()
    try:
        write_adc(tmp_path / "in", tmp_path / "adc.nii.gz")
    except UserError:
        assert not (tmp_path / "adc.nii.gz").exists()
    else:
        assert np.abs(read(tmp_path / "adc.nii.gz").array[INSIDE] - ADC[INSIDE]).max() < 5
