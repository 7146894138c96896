"""Atlases from healthy newborns' maps: by hand on ellipsoids, and on simulated newborns before their injury."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from head_cases import NEWBORN, affine_of
from scipy.spatial import cKDTree
from test_scanner_zscore import SETTINGS

from scripts.io.images import write
from scripts.io.volumes import Volume
from scripts.phantom.case import Case, simulate_case
from scripts.phantom.normative import build_atlas
from scripts.runtime.errors import UserError
from scripts.scanner import atlas as module
from scripts.scanner.atlas import hampel_mean_and_std, write_atlas
from scripts.scanner.inputs import read
from scripts.scanner.zscore import FitLimits, write_zscore, zscore

LEVELS = np.linspace(-70, 70, 8)
SCALES = np.array([0.92, 1.08, 0.96, 1.04, 1.0, 1.0, 0.98, 1.02])


def brain(level: float, scale: float = 1.0, shift: Sequence[float] = (0, 0, 0)) -> Volume:
    """An ellipsoid of 240 ml with a gradient and two bright spaces; (44, 48, 40) voxels of 2.5 mm."""
    affine = np.diag([2.5, 2.5, 2.5, 1.0])
    affine[:3, 3] = np.array([-54, -59, -49]) + shift
    x, y, z = (np.stack(np.meshgrid(*map(np.arange, (44, 48, 40)), indexing="ij")) * 2.5).astype(float) + affine[
        :3, 3
    ].reshape(3, 1, 1, 1)
    x, y, z = (np.stack([x, y, z]) - np.reshape(shift, (3, 1, 1, 1))) / scale
    inside = (x / 36) ** 2 + (y / 44) ** 2 + (z / 35) ** 2 < 1
    fluid = np.exp(-((np.abs(x) - 9) ** 2 + (y / 2.5) ** 2 + (z - 4) ** 2) / 60)
    values = 1200 + level + 3 * y + 2 * z + 1100 * fluid
    return Volume(np.where(inside, values, 0).astype(np.float32), affine)


def store(folder: Path, volumes: Sequence[Volume]) -> Path:
    folder.mkdir(parents=True)
    for number, volume in enumerate(volumes):
        write(folder / f"newborn{number}.nii.gz", volume.array, volume.affine)
    return folder


def build(folder: Any, out: Path, **changed: Any) -> None:
    given = {"limits": NEWBORN, "fit_limits": FitLimits(), "age_days": [1, 6], "rounds": 0, "step_mm": 2.5}
    write_atlas(folder, out, **given | changed)


def cohort() -> list[Volume]:
    shifts = np.random.default_rng(0).uniform(-12, 12, (8, 3))
    return [brain(level, scale, shift) for level, scale, shift in zip(LEVELS, SCALES, shifts, strict=True)]


def test_outliers_do_not_count() -> None:
    values = np.random.default_rng(1).normal(1200, 60, (12, 500)).astype(np.float32)
    inside = np.ones(values.shape, dtype=bool)
    inside[:, 0] = np.arange(12) < 6  # half of them is not enough
    inside[:5, 1] = False
    mean, std = hampel_mean_and_std(values, inside)
    assert mean[0] == std[0] == 0
    assert mean[1] == pytest.approx(values[5:, 1].mean(), abs=15)
    assert np.corrcoef(mean[2:], values[:, 2:].mean(0))[0, 1] > 0.95
    assert np.median(std[2:]) == pytest.approx(60, rel=0.06)
    values[3] -= 700  # a lesion
    robust, spread = hampel_mean_and_std(values, inside)
    assert np.abs(robust[2:] - np.delete(values, 3, 0)[:, 2:].mean(0)).mean() < 5
    assert np.median(spread[2:]) == pytest.approx(60, rel=0.06)  # 205 with it


@pytest.fixture(scope="module")
def ellipsoids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    build(store(folder / "in", cohort()), folder / "out")
    return folder


def test_ellipsoids_by_hand(ellipsoids: Path) -> None:
    """Gradient, spaces, the levels' mean and standard deviation, and the mean of the sizes."""
    mean, std = (read(ellipsoids / "out" / f"{name}.nii.gz") for name in ("mean", "std"))
    inside = mean.array > 0
    assert inside.sum() * 2.5**3 == pytest.approx(4 / 3 * np.pi * 36 * 44 * 35, rel=0.04)
    index = np.argwhere(inside)
    centre = np.array(mean.affine[:3, :3] @ index.mean(0) + mean.affine[:3, 3])
    x, y, z = np.abs(
        np.indices(mean.array.shape).reshape(3, -1).T @ mean.affine[:3, :3].T + mean.affine[:3, 3] - centre
    ).T
    core = (inside.ravel() & (x < 20) & (y < 25) & (z < 18)).reshape(inside.shape)
    assert np.median(std.array[core]) == pytest.approx(LEVELS.std(ddof=1), rel=0.08)
    expected = brain(0.0, shift=centre)
    there = (np.linalg.inv(expected.affine) @ mean.affine @ np.c_[np.argwhere(core), np.ones(core.sum())].T)[:3]
    at = expected.array[tuple(there.round().astype(int))]
    assert np.corrcoef(mean.array[core], at)[0, 1] > 0.97
    assert np.median(mean.array[core] - at) == pytest.approx(0, abs=12)
    kept = json.loads((ellipsoids / "out" / "atlas.json").read_text())
    assert (kept["cases"], kept["age_days"], len(kept["fits"])) == (8, [1, 6], 8)
    assert "newborn" not in json.dumps(kept)  # files' names may be names
    assert {path.name for path in (ellipsoids / "out").iterdir()} == {
        "mean.nii.gz", "std.nii.gz", "atlas.json", "atlas.png",
    }  # fmt: skip


def test_zscore_takes_it_as_it_is(ellipsoids: Path, tmp_path: Path) -> None:
    case = brain(-100, 1.03, (5, 5, -5))
    write(tmp_path / "adc.nii.gz", case.array * 1e-3, case.affine)
    out = ellipsoids / "out"
    write_zscore(
        tmp_path / "adc.nii.gz",
        out / "mean.nii.gz",
        out / "std.nii.gz",
        tmp_path / "made" / "z.nii.gz",
        deformable=False,
    )
    z = read(tmp_path / "made" / "z.nii.gz").array
    assert np.median(z[case.array > 0]) == pytest.approx(-100 / LEVELS.std(ddof=1), rel=0.15)
    kept = json.loads((tmp_path / "made" / "z.json").read_text())
    assert kept["adc_file"] == "../adc.nii.gz"
    assert kept["atlas_mean"] == "mean.nii.gz"  # no whole path


BAD = {
    "few": "7 ADC maps are too few .* at least 8",
    "age": "age at the scan in days",
    "backwards": "age at the scan in days",
    "adult": r"newborn2.nii.gz is not a skull-stripped newborn's brain: .* has 1\d\d\d ml",
    "unit": "newborn2.nii.gz: The median of the ADC map is",
    "not stripped": "newborn2.nii.gz is not skull-stripped",
    "empty": "newborn2.nii.gz",
    "unreadable": "newborn2.nii.gz",
    "four dimensions": "newborn2.nii.gz has shape",
    "twice": "newborn2.nii.gz is a duplicate of another map",
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_maps_are_named_and_nothing_is_written(fault: str, tmp_path: Path) -> None:
    volumes = [brain(level) for level in LEVELS]
    one = volumes[2]
    if fault == "adult":
        volumes[2] = Volume(one.array, one.affine @ np.diag([1.8, 1.8, 1.8, 1]))
    if fault == "unit":
        volumes[2] = Volume(one.array * 0.25, one.affine)
    if fault == "not stripped":
        volumes[2] = Volume(np.maximum(one.array, 700), one.affine)
    if fault == "empty":
        volumes[2] = Volume(one.array * 0, one.affine)
    if fault == "four dimensions":
        volumes[2] = Volume(np.stack([one.array] * 2, -1), one.affine)
    if fault == "twice":
        volumes[2] = volumes[0]
    folder = store(tmp_path / "in", volumes[: 7 if fault == "few" else 8])
    if fault == "unreadable":
        (folder / "newborn2.nii.gz").write_bytes(b"no image")
    ages = {"age": None, "backwards": [7, 1]}.get(fault, [1, 6])
    with pytest.raises(UserError, match=BAD[fault]):
        build(folder, tmp_path / "out", age_days=ages)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_all_bad_maps_are_named_at_once(tmp_path: Path) -> None:
    volumes = [brain(level) for level in LEVELS]
    for number in (1, 4):
        volumes[number] = Volume(volumes[number].array * 0.25, volumes[number].affine)
    with pytest.raises(UserError, match=r"(?s)2 of 8 maps cannot be used:.*newborn1.*newborn4"):
        build(store(tmp_path / "in", volumes), tmp_path / "out")


@pytest.mark.parametrize(
    ("fault", "message"), [("level", r"median Z of the brain is -"), ("half", "Dice of the two brains")]
)
def test_what_does_not_fit_the_others_is_named_with_its_picture(fault: str, message: str, tmp_path: Path) -> None:
    volumes = cohort()
    one = volumes[3]
    values = one.array * 0.6 if fault == "level" else one.array.copy()  # 0.6: an adult's ADC by a newborn's
    if fault == "half":
        values[:22] = 0
    volumes[3] = Volume(values, one.affine)
    with pytest.raises(UserError, match=rf"(?s)1 of 8 maps do not fit.*newborn3.nii.gz: .*{message}"):
        build(store(tmp_path / "in", volumes), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"newborn3.png"}


@pytest.mark.slow
def test_command(tmp_path: Path) -> None:
    store(tmp_path / "in", cohort())
    words = [sys.executable, "-m", "hie_bundle", "atlas", "in", "-o", "out", "--age_days", "[1,6]", "--rounds", "0",
             "--step_mm", "2.5"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "Atlas of 8 newborns: out" in found.stdout + found.stderr
    assert read(tmp_path / "out" / "mean.nii.gz").array.any()


@pytest.fixture(scope="module")
def healthy() -> list[Case]:
    return [simulate_case(0, number, SETTINGS, counterfactual=True) for number in range(20, 28)]


@pytest.mark.slow
def test_simulated_newborns(healthy: list[Case]) -> None:
    """Where cases lie on each other, the mean against the simulator's atlas, and Z against the true Z.

    The simulator's atlas is of thirteen other newborns, whose gyri differ: even the mean at the true positions has a
    correlation of 0.8 with it, which is the bound.
    """
    found = module.build_atlas([Volume(case.healthy_adc, affine_of(case)) for case in healthy], step_mm=2.5)
    index = np.argwhere(found.mean > 0)[::23]
    points = (np.diag([-1.0, -1, 1, 1]) @ found.affine @ np.c_[index, np.ones(len(index))].T)[:3].T
    places = []  # of the atlas' points in the canonical head, by each case
    for case, transform in zip(healthy, found.transforms, strict=True):
        to_voxel = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ affine_of(case))
        at = np.array([transform.TransformPoint(point) for point in points])
        voxel = (to_voxel @ np.c_[at, np.ones(len(at))].T)[:3].round().astype(int).T
        voxel = voxel.clip(0, np.array(case.brain.shape) - 1)
        places.append(
            np.where(case.brain[tuple(voxel.T)][:, None], case.canonical_mm[(slice(None), *voxel.T)].T, np.nan)
        )
    middle = np.nanmean(places, 0)
    apart = np.linalg.norm(places - middle, axis=-1)
    known = build_atlas(0, SETTINGS.num_healthy, SETTINGS.atlas_step_mm)
    truth, _ = known(middle.T.astype(np.float32))
    mean = found.mean[tuple(index.T)]
    nearest = [cKDTree(case.canonical_mm[:, case.brain].T).query(middle)[1] for case in healthy]
    aligned = np.mean([case.healthy_adc[case.brain][at] for case, at in zip(healthy, nearest, strict=True)], 0)
    r_aligned = np.corrcoef(aligned, truth)[0, 1]
    figures = (np.nanmean(apart), np.corrcoef(mean, truth)[0, 1], np.median(mean / truth), mean.std() / truth.std())
    print(
        "apart mm {:.2f}, r of the means {:.3f}, level {:.3f}, contrast {:.2f}".format(*figures), f"r {r_aligned:.3f}"
    )
    case = simulate_case(0, 0, SETTINGS, counterfactual=True)
    from scripts.io.volumes import to_itk

    images = tuple(to_itk(values, found.affine) for values in (found.mean, found.std))
    z, *_ = zscore(Volume(case.adc.astype(np.float32), affine_of(case)), images)  # type: ignore[arg-type]
    r = np.corrcoef(z[case.brain], case.zadc[case.brain])[0, 1]
    print(f"Z by the built atlas, r with the true Z {r:.3f}")
    assert figures[0] < 2.2
    assert figures[1] > r_aligned - 0.01
    assert r > 0.85
