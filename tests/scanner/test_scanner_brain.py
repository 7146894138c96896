"""Brain masks, on whole heads made around simulated brains."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_cases import NEWBORN, Head, affine_of, head_of
from scanner_cases import Study

from scripts.evaluation.metrics import dice
from scripts.io.images import write
from scripts.io.volumes import Volume
from scripts.phantom.case import simulate_case
from scripts.phantom.settings import Settings
from scripts.runtime.errors import UserError
from scripts.scanner.adc import fit_adc
from scripts.scanner.brain_mask import brain_mask, brain_problem, write_brain
from scripts.scanner.inputs import read

# matrix, slices, slice thickness
GRIDS = {"usual": (96, 28, 3.5), "thick slices": (96, 20, 5.0), "fine": (144, 40, 2.5)}


def simulated(grid: str) -> Head:
    matrix, slices, thickness = GRIDS[grid]
    settings = Settings(
        matrix_sizes=(matrix,), slice_range=(slices, slices), slice_thickness_range_mm=(thickness, thickness),
        fine_mm=3.0, atlas_step_mm=4.0, num_healthy=2,
    )  # fmt: skip
    number = list(GRIDS).index(grid)
    return head_of(simulate_case(1, number, settings, counterfactual=True), seed=number)


@pytest.fixture(scope="module")
def head() -> Head:
    return simulated("usual")


@pytest.mark.parametrize("grid", GRIDS)
def test_the_brain_is_found_in_a_head(grid: str) -> None:
    found = simulated(grid)
    mask = brain_mask(Volume(found.b0, found.affine))
    assert dice(mask, found.brain) > (0.92 if grid == "thick slices" else 0.97)
    assert (found.brain & ~mask).sum() < 0.01 * found.brain.sum()  # rather skull than no brain
    assert not brain_problem(mask, Volume(found.b0, found.affine).spacing_mm, NEWBORN)


@pytest.mark.parametrize("slice_mm", [2.0, 4.0, 5.0])
def test_the_last_slice_is_not_lost(slice_mm: float) -> None:
    """An ellipsoid whose last slice has a radius of 6 mm."""
    spacing = np.array([1.2, 1.2, slice_mm])
    shape = np.array([100, 110, int(90 / slice_mm)])
    affine = np.diag([*spacing, 1.0])
    x, y, z = (np.indices(shape) - shape.reshape(3, 1, 1, 1) // 2) * spacing.reshape(3, 1, 1, 1)
    top = z.max() - 2 * slice_mm
    inside = (x / 45) ** 2 + (y / 50) ** 2 + ((z - top) / 38 + np.sqrt(1 - (6 / 47) ** 2)) ** 2 < 1
    mask = brain_mask(Volume(np.where(inside, 400.0, 40.0).astype(np.float32), affine))
    assert inside[..., -3].any()
    assert not inside[..., -2].any()
    np.testing.assert_array_equal(mask.any((0, 1)), inside.any((0, 1)))
    assert dice(mask, inside) > 0.99


def test_the_brainstem_is_kept() -> None:
    """An ellipsoid with a stem of 6.3 mm radius, 25 mm long."""
    spacing = np.array([0.8, 0.8, 2.5])
    x, y, z = (np.indices((110, 130, 40)) - np.reshape([55, 65, 22], (3, 1, 1, 1))) * spacing.reshape(3, 1, 1, 1)
    inside = (x / 38) ** 2 + (y / 46) ** 2 + (z / 28) ** 2 < 1
    inside |= (x**2 + y**2 < 6.3**2) & (z < 0) & (z > -50)
    mask = brain_mask(Volume(np.where(inside, 400.0, 40.0).astype(np.float32), np.diag([*spacing, 1.0])))
    assert inside.any((0, 1)).sum() - mask.any((0, 1)).sum() <= 1
    assert (inside & ~mask).sum() < 0.001 * inside.sum()


def test_muscle_that_reaches_the_brain_is_left_out() -> None:
    """An ellipsoid on a neck of half its signal, as wide as in newborns, with nothing between: the level that muscle
    far below the brain has of itself must not count."""
    spacing = np.array([1.3, 1.3, 4.0])
    x, y, z = (np.indices((90, 96, 34)) - np.reshape([45, 48, 21], (3, 1, 1, 1))) * spacing.reshape(3, 1, 1, 1)
    inside = (x / 38) ** 2 + (y / 48) ** 2 + (z / 36) ** 2 < 1
    neck = (x**2 + (y + 12) ** 2 < 25**2) & (z < -15) & ~inside
    image = np.select([inside, neck], [400.0, 210.0], 40.0).astype(np.float32)
    mask = brain_mask(Volume(image, np.diag([*spacing, 1.0])))
    assert (mask & neck).sum() < 0.01 * inside.sum()
    assert dice(mask, inside) > 0.98


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_however_it_is_stored(head: Head, axes: tuple[int, ...]) -> None:
    image = head.b0[::-1].transpose(axes)
    affine = head.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (head.b0.shape[0] - 1)
    affine[:3, 0] *= -1
    affine[:, :3] = affine[:, axes]
    mask = brain_mask(Volume(image, affine))
    assert dice(mask, head.brain[::-1].transpose(axes)) > 0.97


def test_what_is_stripped_already_is_taken_as_it_is(head: Head, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    mask = brain_mask(Volume(np.where(head.brain, head.b0, 0), head.affine))
    np.testing.assert_array_equal(mask, head.brain)
    assert "already skull-stripped" in caplog.text
    caplog.clear()
    # A scanner that masks the air does not strip the head.
    mask = brain_mask(Volume(np.where(head.b0 > 50, head.b0, 0), head.affine))
    assert dice(mask, head.brain) > 0.97
    assert not caplog.text


def test_the_adc_map_is_stripped(head: Head, tmp_path: Path) -> None:
    adc = fit_adc([head.b0, head.b1000], [0, 1000]).adc
    write(tmp_path / "b0.mha", head.b0, head.affine)
    write(tmp_path / "adc.nii.gz", adc * 1e-3, head.affine)  # in 1e-3 mm²/s
    write_brain(
        tmp_path / "b0.mha", tmp_path / "brain.nii.gz", NEWBORN, adc_file=tmp_path / "adc.nii.gz",
        stripped_file=tmp_path / "adc_ss.nii.gz",
    )  # fmt: skip
    mask, stripped = read(tmp_path / "brain.nii.gz"), read(tmp_path / "adc_ss.nii.gz")
    np.testing.assert_array_equal(stripped.array > 0, mask.array > 0)
    inside = mask.array > 0
    np.testing.assert_allclose(stripped.array[inside], np.maximum(adc[inside], 1), rtol=1e-3)
    assert (tmp_path / "brain.png").read_bytes().startswith(b"\x89PNG")


def test_a_mask_of_the_users_wins(head: Head, tmp_path: Path) -> None:
    write(tmp_path / "b0.nii.gz", head.b0, head.affine)
    mine = head.brain.copy()
    mine[: mine.shape[0] // 2] = False  # what a computed mask would never be
    write(tmp_path / "mine.nii.gz", mine.astype(np.uint8), head.affine)
    out = tmp_path / "brain.nii.gz"
    write_brain(tmp_path / "b0.nii.gz", out, NEWBORN, brain_file=tmp_path / "mine.nii.gz")
    np.testing.assert_array_equal(read(out).array, mine)
    out.unlink()
    for values, affine, message in [
        (mine[:-1], head.affine, "on different grids"),
        (mine & False, head.affine, "none of its voxels"),
        (mine | True, head.affine, "all of its voxels"),
    ]:
        write(tmp_path / "mine.nii.gz", values.astype(np.uint8), affine)
        with pytest.raises(UserError, match=message):
            write_brain(tmp_path / "b0.nii.gz", out, NEWBORN, brain_file=tmp_path / "mine.nii.gz")
    assert not out.exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("adult", "has .* ml, not 100 to 800"),
        ("cut", "ends within it"),
        ("empty", "ends within it"),
        ("phantom", "thicker"),
    ],
)
def test_what_is_no_newborns_brain_is_refused_with_its_picture(
    fault: str, message: str, head: Head, tmp_path: Path
) -> None:
    image, affine = head.b0, head.affine.copy()
    if fault == "adult":
        affine[:3, :3] *= 1.5
    if fault == "cut":
        image = image[: image.shape[0] // 2]
    if fault == "empty":
        image = np.where(np.arange(image.shape[0])[:, None, None] < image.shape[0] // 2, image, 0)
    if fault == "phantom":  # tubes of water
        image = np.zeros_like(image)
        image[::20, ::20] = 500
    write(tmp_path / "b0.nii.gz", image, affine)
    with pytest.raises(UserError, match=message):
        write_brain(tmp_path / "b0.nii.gz", tmp_path / "out" / "brain.nii.gz", NEWBORN)
    written = {path.name for path in (tmp_path / "out").glob("*")}
    assert written == (set() if fault == "phantom" else {"brain.png"})


def test_a_series_without_b_value_is_not_taken_for_b0(head: Head, tmp_path: Path) -> None:
    study = Study(tmp_path / "in")
    study.series(3, head.b1000, head.affine)  # weighted, whatever it does not say
    with pytest.raises(UserError, match=r"no image with b = 0\. No b-value is stated by series 3 \(dwi\)"):
        write_brain(tmp_path / "in", tmp_path / "brain.nii.gz", NEWBORN)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.slow
def test_command(head: Head, tmp_path: Path, monai_bundle: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    study = Study(tmp_path / "in")
    study.series(3, head.b0, head.affine, b_value=0)
    study.series(4, head.b1000, head.affine, b_value=1000)
    options: dict[str, Any] = {"images": tmp_path / "in", "output_file": tmp_path / "brain.mha"}
    monai_bundle("run", "brain", config_file="hie_bundle/configs/scanner.yaml", **options)
    assert dice(read(tmp_path / "brain.mha").array > 0, head.brain) > 0.97


def test_heads_lie_where_their_brains_lay() -> None:
    """The test's own heads: the case's voxels keep their positions on the wider grid."""
    settings = Settings(matrix_sizes=(64,), slice_range=(12, 12), fine_mm=4.0, atlas_step_mm=5.0, num_healthy=2)
    case = simulate_case(1, 0, settings, counterfactual=True)
    head = head_of(case)
    old, new = np.argwhere(case.label > 0), np.argwhere(head.label > 0)
    where = [a[:, :3] @ affine[:3, :3].T + affine[:3, 3] for a, affine in ((old, affine_of(case)), (new, head.affine))]
    np.testing.assert_allclose(where[0], where[1], atol=1e-6)
