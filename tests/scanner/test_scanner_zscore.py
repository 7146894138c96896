"""Z maps against an atlas: on simulated newborns, whose true Z, positions and healthy scan are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from head_cases import affine_of

from scripts.io.images import write
from scripts.io.volumes import Volume, to_itk
from scripts.phantom.anatomy import BOX_CENTRE_MM, BOX_HALF_MM
from scripts.phantom.case import Case, simulate_case
from scripts.phantom.normative import Atlas, build_atlas
from scripts.phantom.settings import Settings
from scripts.runtime.errors import UserError
from scripts.scanner.inputs import read, resample
from scripts.scanner.registration import register
from scripts.scanner.zscore import FitLimits, read_atlas, write_zscore, zscore

SEED, CASE = 0, 0  # a watershed injury of an eighth of the brain
SETTINGS = Settings(
    matrix_sizes=(96,), slice_range=(24, 28), fine_mm=2.5, atlas_step_mm=2.5, num_healthy=6, registration_mm=0.0
)


def atlas_affine(atlas: Atlas) -> np.ndarray:
    affine = np.diag([atlas.step_mm] * 3 + [1.0])
    affine[:3, 3] = BOX_CENTRE_MM - BOX_HALF_MM
    return affine


@pytest.fixture(scope="module")
def case() -> Case:
    """Without the error that the simulator puts into a cohort's Z maps: ``zadc`` is what perfect registration gives."""
    return simulate_case(SEED, CASE, SETTINGS, counterfactual=True)


@pytest.fixture(scope="module")
def files(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zscore")
    atlas = build_atlas(SEED, SETTINGS.num_healthy, SETTINGS.atlas_step_mm)
    write(folder / "mean.nii.gz", np.where(atlas.brain, atlas.mean, 0), atlas_affine(atlas))
    write(folder / "std.nii.gz", np.where(atlas.brain, atlas.std, 0), atlas_affine(atlas))
    write(folder / "adc.nii.gz", case.adc, affine_of(case))
    return folder


def command(folder: Path, out: Path, **changed: Any) -> None:
    given = {"adc_file": "adc.nii.gz", "atlas_mean": "mean.nii.gz", "atlas_std": "std.nii.gz"} | changed
    write_zscore(**{k: folder / v for k, v in given.items()}, output_file=out / "z.nii.gz")


@pytest.fixture(scope="module")
def result(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    command(files, out)
    return out


@pytest.mark.slow
def test_z_is_nearly_the_true_one(case: Case, result: Path) -> None:
    z = read(result / "z.nii.gz")
    np.testing.assert_allclose(z.affine, affine_of(case), atol=1e-3)
    assert not z.array[~case.brain].any()
    assert np.abs(z.array).max() <= 10
    assert np.corrcoef(z.array[case.brain], case.zadc[case.brain])[0, 1] > 0.8
    lesion = case.label > 0
    assert z.array[lesion].mean() == pytest.approx(case.zadc[lesion].mean(), rel=0.1)
    kept = (z.array[lesion] < -2).sum() / (case.zadc[lesion] < -2).sum()
    assert 0.93 < kept < 1.07  # the damage has not been pulled small


@pytest.mark.slow
def test_what_is_kept_beside_it(case: Case, files: Path, result: Path) -> None:
    assert (result / "z.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((result / "z.json").read_text())
    assert kept["fit"]["overlap"] > 0.9
    assert kept["smoothing_mm"] == 2.0
    transform = sitk.ReadTransform(str(result / "z.tfm.h5"))
    errors = []
    affine = np.diag([-1.0, -1, 1, 1]) @ affine_of(case)
    for index in np.argwhere(case.brain)[::97]:
        point = transform.TransformPoint((affine @ [*index, 1.0])[:3].tolist())
        errors.append(np.linalg.norm(np.array(point) * [-1, -1, 1] - case.canonical_mm[(slice(None), *index)]))
    assert np.mean(errors) < 1.9  # mm; 5.5 before registration, centres on each other; 2.2 with the atlas moved
    mean, _ = read_atlas(files / "mean.nii.gz", files / "std.nii.gz")
    image = to_itk(case.adc.astype(np.float32), affine_of(case))
    covered = sitk.GetArrayFromImage(resample(mean, image, transform, nearest=True)).transpose(2, 1, 0) > 0
    overlap = 2 * (covered & case.brain).sum() / (covered.sum() + case.brain.sum())
    assert overlap == pytest.approx(kept["fit"]["overlap"], abs=0.03)


@pytest.mark.slow
def test_damage_does_not_steer_the_registration(case: Case, files: Path) -> None:
    """Atlas on the injured brain and on the same brain before the injury: the same positions inside the damage."""
    atlas = read_atlas(files / "mean.nii.gz", files / "std.nii.gz")
    assert case.healthy_adc is not None
    found = [
        register(to_itk(adc.astype(np.float32), affine_of(case)), *atlas).transform
        for adc in (case.adc, case.healthy_adc)
    ]
    affine = np.diag([-1.0, -1, 1, 1]) @ affine_of(case)
    points = [(affine @ [*index, 1.0])[:3].tolist() for index in np.argwhere(case.label > 0)[::41]]
    apart = [np.linalg.norm(np.subtract(*(one.TransformPoint(point) for one in found))) for point in points]
    assert np.mean(apart) < 1.5


def _spoil(case: Case, files: Path, folder: Path, fault: str) -> dict[str, Any]:
    mean, std = read(files / "mean.nii.gz"), read(files / "std.nii.gz")
    adc, affine = case.adc.copy(), affine_of(case)
    if fault == "adult atlas":  # white matter and cortex of adults: 800 instead of 1300
        write(folder / "mean.nii.gz", mean.array * 0.62, mean.affine)
        write(folder / "std.nii.gz", std.array * 0.62, std.affine)
    if fault == "half a brain":
        adc[: adc.shape[0] // 2] = 0
    if fault == "upside down":
        adc = adc[:, :, ::-1]
    if fault == "not stripped":
        adc = np.maximum(adc, 1)
    if fault == "no brain":
        adc[:] = 0
    if fault == "unit unknown":
        adc = (adc * 0.25).astype(np.int16)  # between two units
    if fault == "other grid":
        write(folder / "std.nii.gz", std.array[:-1], std.affine)
    write(folder / "adc.nii.gz", adc, affine)
    names = {"adc_file": "adc.nii.gz", "atlas_mean": "mean.nii.gz", "atlas_std": "std.nii.gz"}
    return {key: folder / name if (folder / name).exists() else files / name for key, name in names.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("adult atlas", "does not fit"),
        ("half a brain", "does not fit"),
        ("upside down", "does not fit"),
        ("not stripped", "not skull-stripped"),
        ("no brain", "no voxel above 0"),
        ("unit unknown", "adc_scale"),
        ("other grid", "on different grids"),
    ],
)
def test_what_cannot_fit_is_refused(fault: str, message: str, case: Case, files: Path, tmp_path: Path) -> None:
    given = _spoil(case, files, tmp_path, fault)
    with pytest.raises(UserError, match=message):
        write_zscore(**given, output_file=tmp_path / "out" / "z.nii.gz")
    written = {path.name for path in (tmp_path / "out").glob("*")}
    assert written == ({"z.png"} if message == "does not fit" else set())


def test_all_files_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Name the maps"):
        write_zscore(tmp_path / "adc.nii.gz", None, None, tmp_path / "z.nii.gz")


@pytest.mark.parametrize("factor", [1e-3, 1e3, 0.0])
def test_a_standard_deviation_in_another_unit_is_refused(factor: float, tmp_path: Path) -> None:
    """Its floor would take its place without a word; 0 stands for the two files exchanged."""
    level = np.full((4, 4, 4), 1200, dtype=np.float32)
    parts = {"mean": level, "std": level * 0.05 * factor} if factor else {"mean": level * 0.05, "std": level}
    paths = [tmp_path / f"{name}.nii.gz" for name in parts]
    for path, values in zip(paths, parts.values(), strict=True):
        write(path, values, np.eye(4))
    with pytest.raises(UserError, match=r"std.nii.gz is not the standard deviation of .*mean.nii.gz"):
        read_atlas(*paths)
    write(paths[0], level * 1e-3, np.eye(4))
    write(paths[1], level * 0.05e-3, np.eye(4))
    mean, std = read_atlas(*paths)  # both in 1e-3 mm²/s
    assert np.allclose(sitk.GetArrayFromImage(mean), 1200)
    assert np.allclose(sitk.GetArrayFromImage(std), 60)


def test_limits_are_named() -> None:
    from scripts.scanner.registration import Fit

    assert not FitLimits().problems(Fit(0.9, 0.95, 1.0, 0.2, 0.1, 1.0))
    assert len(FitLimits().problems(Fit(0.1, 0.5, 3.0, 9.0, 0.99, 1.0))) == 5


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("two halves far apart", r"Dice of the two brains is 0\.00"),
        ("far brighter", "counts as damage"),
        ("no affine", "Dice of the two brains"),
    ],
)
def test_an_atlas_that_does_not_come_to_lie_on_the_case_is_refused_with_a_picture(
    fault: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    x, y, z = np.meshgrid(*map(np.arange, (96, 40, 40)), indexing="ij")
    brain = (x - 48) ** 2 / 200 + (y - 20) ** 2 / 260 + (z - 19) ** 2 / 150 < 1
    level = 1000 + 8.0 * (y - 20)
    affine = np.diag([2.0, 2, 2, 1])
    inside = brain
    if fault == "two halves far apart":
        inside = ((np.abs(x - 48) - 40) ** 2 + (y - 20) ** 2 + (z - 19) ** 2) < 36
    if fault == "far brighter":
        level = level + 1200
    if fault == "no affine":
        inside = (np.abs(y - 20) < 2) & brain
        monkeypatch.setattr(sitk.ImageRegistrationMethod, "SetMetricAsCorrelation", fail)
    write(tmp_path / "adc.nii.gz", np.where(brain, 1000 + 8.0 * (y - 20), 0).astype(np.float32), affine)
    write(tmp_path / "mean.nii.gz", np.where(inside, level, 0).astype(np.float32), affine)
    write(tmp_path / "std.nii.gz", np.where(inside, 40, 0).astype(np.float32), affine)
    with pytest.raises(UserError, match=message):
        command(tmp_path, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"z.png"}


def test_z_by_hand() -> None:
    """One tissue, no bending: Z is (ADC - mean) / max(sd, floor) inside, whatever the atlas' unit."""
    x, y, z = np.meshgrid(*[np.arange(40)] * 3, indexing="ij")
    brain = (x - 20) ** 2 / 200 + (y - 20) ** 2 / 260 + (z - 19) ** 2 / 150 < 1
    mean = np.where(brain, 1200 + 8 * (x - 20) + 6.0 * (y - 20) * (z > 19), 0).astype(np.float32)
    adc = Volume(np.where(brain, mean - 90, 0).astype(np.float32), np.diag([2.0, 2, 2, 1]))
    atlas = [to_itk(values.astype(np.float32), adc.affine) for values in (mean, np.where(brain, 60, 0))]
    values, _, fit, _ = zscore(adc, (atlas[0], atlas[1]), deformable=False)
    assert np.median(values[brain]) == pytest.approx(-1.5, abs=0.05)
    assert fit.overlap > 0.97
    low = [atlas[0], to_itk(np.where(brain, 5, 0).astype(np.float32), adc.affine)]
    values, *_ = zscore(adc, (low[0], low[1]), deformable=False, least_std=60.0)
    assert np.median(values[brain]) == pytest.approx(-1.5, abs=0.05)


@pytest.mark.parametrize("neck", [False, True])
def test_neither_border_nor_neck_is_misfit(neck: bool) -> None:
    """Thick slices of what the atlas is of, from a mask that may have taken in muscle below: Z is 0 in the brain."""

    def maps(spacing: float, slice_mm: float, neck: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        sizes = np.array([spacing, spacing, slice_mm])
        x, y, z = (axis * s - 46 for axis, s in zip(np.indices([int(92 / s) for s in sizes]), sizes, strict=True))
        brain = (x / 36) ** 2 + (y / 42) ** 2 + (z / 28) ** 2 < 1
        muscle = neck & ~brain & ((x / 16) ** 2 + ((y + 8) / 16) ** 2 < 1) & (z < -15)
        return np.select([brain, muscle], [1200 + 4 * x + 6 * y + 8 * z, 1300], 0), brain, np.diag([*sizes, 1.0])

    (adc, brain, affine), (mean, _, fine) = maps(1.3, 4.4, neck), maps(1.5, 1.5, False)
    atlas = [to_itk(values.astype(np.float32), fine) for values in (mean, np.where(mean > 0, 60, 0))]
    z, _, fit, _ = zscore(Volume(adc.astype(np.float32), affine), (atlas[0], atlas[1]), deformable=False)
    assert np.abs(z[brain]).mean() < 0.3
    assert fit.damage < 0.01
    assert fit.correlation > 0.9


@pytest.mark.slow
def test_command(files: Path, tmp_path: Path, monai_bundle: Callable[..., Any]) -> None:
    config = "hie_bundle/configs/scanner.yaml"
    out = tmp_path / "z.mha"
    monai_bundle(
        "run", "zscore", config_file=config, adc_file=files / "adc.nii.gz", atlas_mean=files / "mean.nii.gz",
        atlas_std=files / "std.nii.gz", output_file=out, deformable=False,
    )  # fmt: skip
    assert read(out).array.any()
    assert {path.name for path in tmp_path.iterdir()} == {"z.mha", "z.json", "z.png", "z.tfm.h5"}
