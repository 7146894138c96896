"""Regions of an atlas on simulated cases: where they are known, how large the injured share is, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scripts.io.volumes import LPS_TO_RAS, Volume
from scripts.phantom import Settings, simulate_case, write_phantom_atlas
from scripts.phantom.atlas_files import REGIONS, region_at
from scripts.runtime.errors import UserError
from scripts.scanner.regions import RegionAtlas, shares

SEED = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("atlas") / "regions"
    write_phantom_atlas(path, SEED, num_healthy=4, step_mm=3.0)
    return path


def test_regions_on_a_case_are_those_of_its_anatomy(folder: Path) -> None:
    """The simulator knows which region each voxel is of."""
    settings = Settings(matrix_sizes=(96,), slice_range=(30, 34), fine_mm=3.0, num_healthy=4, atlas_step_mm=4.0)
    case = simulate_case(5, 17, settings, counterfactual=True)  # another population than the atlas'
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = case.direction.reshape(3, 3) * case.spacing_mm, case.origin_mm
    adc = Volume(case.adc.astype(float), LPS_TO_RAS @ affine)
    atlas = RegionAtlas(folder)
    found, rows, note = atlas.injured(adc, case.label)
    assert found is not None, note
    assert case.canonical_mm is not None
    assert ((found > 0) == case.brain).all()
    known = case.brain & np.isfinite(case.canonical_mm).all(0)
    truth = np.zeros_like(found)
    truth[known] = region_at(case.canonical_mm[:, known])
    dice = [2 * ((found == n) & (truth == n)).sum() / ((found == n).sum() + (truth == n).sum()) for n in REGIONS]
    assert np.median(dice) > 0.85
    assert min(dice) > 0.6
    expected = {row["region"]: row for row in shares(truth, REGIONS, case.label, 1.0)}
    for row in rows:
        assert row["share"] == pytest.approx(expected[row["region"]]["share"], abs=0.05)
    assert sum(row["injured_ml"] for row in rows) * 1000 == pytest.approx(case.label.sum() * np.prod(case.spacing_mm))
    assert "region_left_cerebellum_share" in atlas.figures(rows)


def test_sides_and_names() -> None:
    points = np.array([[-15, -3, 4], [15, -3, 4], [-20, 40, 20], [20, -40, 30], [0, -10, -30], [12, -38, -28]]).T
    names = [REGIONS[n] for n in region_at(points.astype(np.float32))]
    assert names == ["left deep grey matter", "right deep grey matter", "left frontal lobe", "right parietal lobe",
                     "brainstem", "right cerebellum"]  # fmt: skip


def test_nothing_where_the_atlas_does_not_fit(folder: Path) -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij"))
    ball = (grid**2).sum(0) < 0.8
    noise = np.random.default_rng(0).uniform(600, 1800, ball.shape)
    labels, rows, note = RegionAtlas(folder).injured(Volume(np.where(ball, noise, 0), np.diag([2, 2, 2, 1.0])), ball)
    assert labels is None
    assert rows == []
    assert note.startswith("no regions: ")


def test_an_atlas_without_names_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "regions.json").write_text(json.dumps({"1": "left deep grey matter"}))
    with pytest.raises(UserError, match=r"does not name the regions \[2, 3"):
        RegionAtlas(tmp_path / "copy")
    (tmp_path / "copy" / "regions.json").unlink()
    with pytest.raises(UserError, match="does not name regions by number"):
        RegionAtlas(tmp_path / "copy")
