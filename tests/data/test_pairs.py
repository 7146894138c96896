"""Values and grids that no case has, and maps that do not belong together: named before anything runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bonbid_cases import image

from scripts.data.checks import Limits, check_case
from scripts.data.layout import find_cases
from scripts.io.volumes import read_volume

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
    return " | ".join(problem.message for problem in check_case("a", files, Limits()).problems)


def _normalised(array: np.ndarray) -> np.ndarray:
    return (array - array.mean()) / array.std()


def test_the_simulated_cases_are_let_pass(maps: list[Maps], tmp_path: Path) -> None:
    for adc, zadc in maps:
        assert _problems(tmp_path, adc, zadc) == ""
        assert _problems(tmp_path, _normalised(adc), _normalised(zadc)) == ""


def test_an_inverted_sign_is_seen_in_every_case(maps: list[Maps], tmp_path: Path) -> None:
    for adc, zadc in maps:
        assert "is its sign inverted?" in _problems(tmp_path, adc, -zadc)
        assert "is its sign inverted?" in _problems(tmp_path, _normalised(adc), _normalised(-zadc))


@pytest.mark.parametrize(("axis", "name"), [(0, "first"), (1, "second"), (2, "third")])
def test_a_mirrored_map_is_seen_in_most_cases(maps: list[Maps], tmp_path: Path, axis: int, name: str) -> None:
    found = [_problems(tmp_path, adc, np.flip(zadc, axis)) for adc, zadc in maps]
    assert sum(f"is mirrored along the {name} axis" in problem for problem in found) >= 0.7 * len(maps)


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
