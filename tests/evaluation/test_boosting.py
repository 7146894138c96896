"""Gradient boosting: what it sees of a voxel, what it finds, and what its workflow leaves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import BUNDLE
from monai.bundle import ConfigWorkflow
from test_baselines import SHAPE, SPACING, _maps, items  # noqa: F401 -- a fixture

from scripts.evaluation import metrics
from scripts.evaluation.baselines import fit_boosting as fit
from scripts.io.volumes import Volume
from scripts.runtime.errors import UserError
from scripts.transforms.voxel_features import MINIMA_MM, SCALES_MM, features

AFFINE = np.diag([*SPACING, 1])


def test_it_finds_what_a_threshold_does_not(items: list[dict[str, Any]]) -> None:  # noqa: F811
    fitted = fit(items, trees=30)
    adc, zadc, truth = _maps(99)
    found = fitted.predict(adc, zadc, Volume(adc, AFFINE))
    assert not (found & (adc == 0)).any()
    assert metrics.dice(found, truth) > metrics.dice((zadc < -2) & (adc > 0), truth) + 0.3
    assert 0 < fitted.threshold < 1


def test_a_voxel_s_features_by_hand() -> None:
    """A brain of one ADC and Z but for one voxel: what each feature is there, and at the mirrored place."""
    brain = np.zeros((21, 19, 11), bool)
    brain[2:19, 2:17, 1:10] = True  # x from 2 to 18: the plane of symmetry is x = 10
    adc = np.where(brain, 1200.0, 0)
    zadc = np.zeros(brain.shape)
    place, other = (6, 9, 5), (14, 9, 5)
    adc[place], zadc[place] = 600, -5
    found = features(adc, zadc, Volume(adc, np.diag([1.0, 1, 2, 1])))
    assert found.shape == (brain.sum(), 33)
    assert found.dtype == np.float32
    here, there = (found[np.flatnonzero((np.argwhere(brain) == at).all(axis=1))[0]] for at in (place, other))
    np.testing.assert_allclose(here[:2], [0.6, -5])
    np.testing.assert_allclose(there[:2], [1.2, 0])
    smooth = 2 + 2 + 4 * (len(SCALES_MM) - 1)  # raw; the first scale; value and difference of both maps at the others
    assert here[3] < -0.1  # ZADC smoothed by 1 mm
    np.testing.assert_allclose(
        [here[7], there[7]], [-there[7], -here[7]], atol=1e-3
    )  # its difference to the other side
    assert here[7] < -0.01
    minima = here[smooth : smooth + 2 * len(MINIMA_MM)]
    np.testing.assert_allclose(minima, [0.6, -5, 0.6, -5])
    np.testing.assert_allclose(here[smooth + 4], 4, atol=0.3)  # mm from the plane of symmetry
    np.testing.assert_allclose(there[smooth + 4], 4, atol=0.3)
    np.testing.assert_allclose(here[smooth + 8], 5)  # mm to the nearest voxel outside, along x
    np.testing.assert_allclose(here[-8:], [1.2] * 4 + [0] * 4)  # quantiles of the case


@pytest.mark.parametrize(("change", "message"), [("few", "at least 3 training cases"), ("label", "has no label")])
def test_what_it_cannot_be_fitted_on_is_named(
    change: str,
    message: str,
    items: list[dict[str, Any]],  # noqa: F811
) -> None:
    if change == "label":
        del items[1]["label"]
    with pytest.raises(UserError, match=message):
        fit(items[:2] if change == "few" else items, trees=2)


def test_the_workflow_leaves_masks_and_their_measures(tiny_cohort: Path, tmp_path: Path) -> None:
    workflow = ConfigWorkflow(
        [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "evaluate")], workflow_type="train",
        meta_file=str(BUNDLE / "configs" / "metadata.json"), logging_file=False, run_id="boosting", split="val",
        dataset_dir=str(tiny_cohort), output_dir=str(tmp_path), device="cpu", num_workers=0,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    masks = sorted((tmp_path / "masks").glob("*_lesion.nii.gz"))
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(masks) == len(rows) == 2
    labels = {path.name.split("_lesion")[0]: path for path in tiny_cohort.glob("BONBID2023_Val/3LABEL/*")}
    for mask, row in zip(masks, rows, strict=True):
        assert row["case"] in labels
        found = np.asarray(nib.load(mask).dataobj)
        assert found.dtype == np.uint8
        assert float(row["predicted_ml"]) == pytest.approx(
            found.sum() * np.prod(nib.load(mask).header.get_zooms()) / 1000, rel=1e-4
        )
    assert (tmp_path / "report.html").is_file()
