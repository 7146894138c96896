"""The level of an ADC map without a Z map: a wrong scale is found, injury and wide fluid spaces are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import as_checked

from scripts.data.adc_level import FLUID, TISSUE, adc_level
from scripts.data.checks import Limits, read_case
from scripts.io.images import write
from scripts.phantom.case import simulate_case
from scripts.phantom.settings import Settings
from scripts.transforms.loading import LoadMapsd

SPACING = np.array([2.0, 2.0, 4.0])
OPTIONAL = Limits(zadc="optional")


def brain(injured: float = 0.0, fluid: float = FLUID, size: int = 48) -> np.ndarray:
    """Tissue around a ventricle; the lower part of the tissue is injured."""
    at = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (size, size, size // 2)], indexing="ij"))
    radius = np.sqrt((at**2).sum(0))
    adc = np.where(radius < 0.9, TISSUE, 0) + np.random.default_rng(0).normal(0, 60, radius.shape) * (radius < 0.9)
    adc[(at[2] < 2 * injured - 1) & (radius < 0.9)] *= 0.5
    adc[radius < 0.35] = fluid
    return adc.astype(np.float32)


@pytest.mark.parametrize("scale", [0.8, 0.85, 1.0, 1.15, 1.2])
@pytest.mark.parametrize("injured", [0.0, 0.4])
def test_a_wrong_scale_is_found(scale: float, injured: float) -> None:
    level = adc_level(brain(injured) * scale, SPACING)
    assert level.factor * scale == pytest.approx(1, abs=0.03)
    assert (level.note != "") == (scale != 1)
    if scale != 1:
        assert f"fluid {level.fluid:.0f}" in level.note
        assert f"multiplication by {level.factor:.2f}" in level.note


@pytest.mark.parametrize(
    "adc", [brain(0.6), brain(0.9), brain(fluid=1.25 * FLUID), brain(fluid=0.85 * FLUID), brain() * 1.03]
)
def test_what_is_no_scale_changes_nothing(adc: np.ndarray) -> None:
    assert adc_level(adc, SPACING).factor == 1


@pytest.mark.parametrize("adc", [brain(fluid=TISSUE), brain() * 0, np.ones((4, 4, 4), np.float32)])
def test_maps_without_fluid_or_brain_are_left_as_they_are(adc: np.ndarray) -> None:
    assert (adc_level(adc, SPACING).factor, adc_level(adc, SPACING).note) == (1.0, "")


def test_an_adults_tissue_is_told_by_size_and_fluid() -> None:
    adult = np.where(brain() > 2000, FLUID, brain() * 0.6)
    small, large = adc_level(adult, SPACING), adc_level(adult, 2 * SPACING)
    assert "an adult's brain, or extensive injury" in small.note
    assert small.factor == 1  # a newborn's may be injured
    assert large.factor == pytest.approx(1 / 0.6, rel=0.03)


def test_simulated_newborns_are_on_the_level() -> None:
    settings = Settings(matrix_sizes=(64,), slice_range=(18, 22), fine_mm=2.5, atlas_step_mm=2.5, num_healthy=2)
    for number in range(4):
        case = simulate_case(13, number, settings)
        for scale in (0.85, 1.0, 1.15):
            found = adc_level(case.adc * np.float32(scale), case.spacing_mm).factor * scale
            assert found == pytest.approx(1, abs=0.1 if scale <= 1 else 0.16)


def test_the_network_sees_the_level_and_the_report_states_it(tmp_path: Path) -> None:
    affine = np.diag([*SPACING, 1.0])
    write(tmp_path / "adc.nii.gz", brain() * np.float32(0.85), affine)
    loaded = LoadMapsd("image", limits=OPTIONAL)({"image": [str(tmp_path / "adc.nii.gz")]})["image"]
    seen = loaded[0].numpy()
    assert np.median(seen[seen > 0]) == pytest.approx(TISSUE, rel=0.03)
    report, maps = read_case("x", {"adc": str(tmp_path / "adc.nii.gz")}, OPTIONAL)
    assert any(note.startswith("ADC level: fluid 2") for note in report.notes)
    np.testing.assert_array_equal(maps["adc"].array, brain() * np.float32(0.85))  # figures are those of the file
    zadc = np.where(brain() > 0, -0.5, 0).astype(np.float32)
    write(tmp_path / "zadc.nii.gz", zadc, affine)
    files = [str(tmp_path / f"{name}.nii.gz") for name in ("adc", "zadc")]
    as_checked(*files)
    both = LoadMapsd("image")({"image": files})["image"]
    np.testing.assert_allclose(both[0].numpy(), brain() * np.float32(0.85))  # with a Z map ADC is left as it is
