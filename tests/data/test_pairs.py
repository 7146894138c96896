"""Values and grids that no case has, and maps that do not belong together: named before anything runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bonbid_cases import image
from scipy import ndimage

from scripts.data.checks import CaseReport, Limits, read_case
from scripts.data.layout import find_cases
from scripts.io.volumes import Volume, read_volume
from scripts.transforms.loading import LoadMapsd

Maps = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def maps(tiny_cohort: Path) -> list[Maps]:
    """ADC and ZADC of each simulated case."""
    return [
        (read_volume(str(case.adc)).array.astype(float), read_volume(str(case.zadc)).array.astype(float))
        for case in find_cases(tiny_cohort)
    ]


def _problems(folder: Path, adc: np.ndarray, zadc: np.ndarray, spacing: tuple[float, ...] = (1.1, 1.2, 3.0)) -> str:
    files = {"adc": str(folder / "a-ADC_ss.mha"), "zadc": str(folder / "Zmap_a-ADC_smooth2mm_clipped10.mha")}
    for part, array in (("adc", adc), ("zadc", zadc)):
        sitk.WriteImage(image(np.ascontiguousarray(array), spacing=spacing), files[part])  # type: ignore[arg-type]
    return " | ".join(problem.message for problem in read_case("a", files, Limits())[0].problems)


def _normalised(array: np.ndarray) -> np.ndarray:
    return (array - array.mean()) / array.std()


def test_the_simulated_cases_are_let_pass(maps: list[Maps], tmp_path: Path) -> None:
    for adc, zadc in maps:
        assert _problems(tmp_path, adc, zadc) == ""
        assert _problems(tmp_path, _normalised(adc), _normalised(zadc)) == ""


def test_an_inverted_sign_is_seen_in_every_case(maps: list[Maps], tmp_path: Path) -> None:
    for adc, zadc in maps:
        assert "its sign is inverted" in _problems(tmp_path, adc, -zadc)
        assert "its sign is inverted" in _problems(tmp_path, _normalised(adc), _normalised(-zadc))


@pytest.mark.parametrize(("axis", "name"), [(0, "first"), (1, "second"), (2, "third")])
def test_a_mirrored_map_is_seen_in_most_cases(maps: list[Maps], tmp_path: Path, axis: int, name: str) -> None:
    found = [_problems(tmp_path, adc, np.flip(zadc, axis)) for adc, zadc in maps]
    assert sum(f"mirrored along the {name} axis" in problem for problem in found) >= 0.7 * len(maps)


def test_swapped_maps_that_were_normalised_are_seen(maps: list[Maps], tmp_path: Path) -> None:
    for adc, zadc in maps:
        assert "are swapped" in _problems(tmp_path, _normalised(zadc), _normalised(adc))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e308, "1 voxel that is NaN or infinite"),  # in float32
        (1e39, "1 voxel that is NaN or infinite"),
        (1e30, "beyond ±30000"),
        (-1e30, "beyond ±30000"),
        (4e4, "beyond ±30000"),
    ],
)
def test_extreme_values_are_seen_as_the_network_sees_them(
    maps: list[Maps], tmp_path: Path, value: float, message: str
) -> None:
    adc, zadc = maps[0]
    adc = adc.copy()
    adc[5, 5, 5] = value
    assert message in _problems(tmp_path, adc, zadc)


@pytest.mark.parametrize("size", [1e-6, 0.05, 25.0, 1e6])
def test_voxel_sizes_that_no_scan_has(maps: list[Maps], tmp_path: Path, size: float) -> None:
    assert f"{size:.4g} × 1.2 × 3 mm" in _problems(tmp_path, *maps[0], spacing=(size, 1.2, 3.0))
    assert "limits#spacing_range_mm" in _problems(tmp_path, *maps[0], spacing=(1.2, 1.2, size))


# --- wrong maps that look like right ones -------------------------------------------------------------------------


def _big(maps: list[Maps]) -> list[Maps]:
    return [pair for pair in maps if (pair[0] > 0).sum() >= 1000]


@pytest.mark.parametrize("fault", ["noise", "another case", "shifted by three slices"])
def test_a_map_that_does_not_belong_to_the_other_is_refused(fault: str, maps: list[Maps], tmp_path: Path) -> None:
    (adc, zadc), (_, other) = maps[:2]
    wrong = {
        "noise": np.where(adc > 0, np.random.default_rng(0).normal(0, 2, adc.shape), 0),
        "another case": np.resize(other, adc.shape),
        "shifted by three slices": np.roll(zadc, 3, 2),
    }[fault]
    assert "does not belong to the ADC map" in _problems(tmp_path, adc, wrong)


@pytest.mark.parametrize(("factor", "word"), [(0.5, "scaled"), (2.0, "scaled")])
def test_a_scaled_map_is_refused(factor: float, word: str, maps: list[Maps], tmp_path: Path) -> None:
    for adc, zadc in _big(maps):
        assert word in _problems(tmp_path, adc * factor, zadc)


def test_values_that_overflowed_are_refused(maps: list[Maps], tmp_path: Path) -> None:
    adc, zadc = next(pair for pair in maps if pair[0].max() > 2047)
    assert "overflowed 12 bits" in _problems(tmp_path, np.where(adc > 2047, adc - 4096, adc), zadc)


def test_skull_in_the_adc_map_is_refused(maps: list[Maps], tmp_path: Path) -> None:
    adc, zadc = _big(maps)[0]
    ring = ndimage.binary_dilation(adc > 0, np.ones((3, 3, 1)), iterations=3) & (adc <= 0)
    assert "has a ZADC of exactly 0" in _problems(tmp_path, np.where(ring, 800, adc), zadc)


@pytest.mark.parametrize("background", [-999.0, -99.0, 50.0])
def test_zadc_outside_the_brain_does_not_count(background: float, maps: list[Maps], tmp_path: Path) -> None:
    adc, zadc = maps[0]
    marked = np.where(adc > 0, zadc, background)
    assert _problems(tmp_path, adc, marked) == ""
    files = [str(next(tmp_path.glob(name))) for name in ("a-ADC*", "Zmap*")]
    loaded = LoadMapsd("image")({"image": files})["image"]
    np.testing.assert_array_equal(loaded[1], np.where(adc > 0, zadc, 0).astype(np.float32))


def _label_report(adc: np.ndarray, zadc: np.ndarray, label: np.ndarray) -> CaseReport:
    affine = np.diag([1.5, 1.5, 4.0, 1.0])
    arrays = {"adc": adc, "zadc": zadc, "label": label.astype(np.uint8)}
    return read_case("a", {name: Volume(array, affine) for name, array in arrays.items()})[0]


def test_a_label_that_is_flipped_or_the_brain_is_refused(maps: list[Maps]) -> None:
    adc, zadc = (array.copy() for array in _big(maps)[0])
    brain = adc > 0
    left = np.flatnonzero(brain.any((1, 2)))[:3].max() + 2
    label = brain.copy()
    label[left:] = False
    zadc[label] -= 8
    adc[label] *= 0.6
    assert label.sum() >= 20
    assert _label_report(adc, zadc, label).usable
    ends = np.flatnonzero(brain.any((1, 2)))[[0, -1]]
    flipped = np.roll(label[::-1], int(ends.sum()) - (len(label) - 1), 0)
    messages = [problem.message for problem in _label_report(adc, zadc, flipped).problems]
    assert any("flipped from left to right" in message for message in messages), messages
    (problem,) = _label_report(adc, zadc, brain).problems
    assert "covers 100 % of the brain" in problem.message
