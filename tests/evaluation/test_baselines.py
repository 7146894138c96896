"""The voxelwise regression: what it sees, what it finds, when there is none, and what the report says of it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from test_evaluation import _item, _masks
from test_report_page import many_rows

from scripts import report
from scripts.evaluation import metrics
from scripts.evaluation.baselines import VoxelRegression, features
from scripts.report.case_evaluation import CaseEvaluation
from scripts.report.scoring import score

SHAPE, SPACING = (24, 22, 10), (2.0, 1.5, 4.0)


def _maps(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ADC and ZADC with a lesion in which both are low on average, but not in each voxel."""
    rng = np.random.default_rng(seed)
    brain = np.zeros(SHAPE, bool)
    brain[3:21, 3:19, 1:9] = True
    truth = np.zeros(SHAPE, bool)
    x, y = rng.integers(4, 12, 2)
    truth[x : x + 7, y : y + 6, 3:7] = True
    adc = np.where(brain, (1350 - 450 * truth + rng.normal(0, 250, SHAPE)).clip(50), 0)
    zadc = np.where(brain, 0.3 - 1.5 * truth + rng.normal(0, 1.5, SHAPE), 0)
    return adc, zadc, truth & brain


@pytest.fixture
def items(tmp_path: Path) -> list[dict[str, Any]]:
    result = []
    for number in range(6):
        files = [str(tmp_path / f"{number}_{part}.nii.gz") for part in ("adc", "zadc", "label")]
        for file, array in zip(files, _maps(number), strict=True):
            nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([*SPACING, 1])), file)
        result.append({"case": f"P{number}-1", "image": files[:2], "label": files[2]})
    return result


def test_it_finds_what_a_threshold_of_single_voxels_does_not(items: list[dict[str, Any]], tmp_path: Path) -> None:
    model, told = VoxelRegression(items[:4], tmp_path / "kept.json").fitted()
    assert model is not None
    assert told == f"fitted on 4 training cases, threshold {model.threshold:.2f}"
    adc, zadc, truth = _maps(99)
    found = model.predict(adc, zadc, SPACING)
    assert not (found & (adc == 0)).any()
    assert metrics.dice(found, truth) > metrics.dice((zadc < -2) & (adc > 0), truth) + 0.3


def test_surroundings_are_those_of_the_brain_in_millimetres() -> None:
    adc, zadc, _ = _maps(0)
    given = features(np.where(adc > 0, 1200, 0), zadc, SPACING, 2.0)
    assert given.shape == ((adc > 0).sum(), 4)
    np.testing.assert_allclose(given[:, 2], 1.2, rtol=1e-4)  # no dark rim where the brain ends
    brain = adc > 0
    mirrored = features(adc[::-1].copy(), zadc[::-1].copy(), SPACING, 2.0)
    whole = np.zeros((*SHAPE, 4))
    whole[brain[::-1]] = mirrored
    np.testing.assert_allclose(whole[::-1][brain], features(adc, zadc, SPACING, 2.0), atol=1e-4)


def test_it_is_fitted_once_for_the_same_files(
    items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = VoxelRegression(items, tmp_path / "kept.json").fitted()
    monkeypatch.setattr(VoxelRegression, "_fit", lambda *_: pytest.fail("fitted again"))
    assert VoxelRegression(items, tmp_path / "kept.json").fitted()[0] == first
    monkeypatch.undo()
    os.utime(items[0]["label"], (1, 1))
    fits = []
    fit = VoxelRegression._fit
    monkeypatch.setattr(VoxelRegression, "_fit", lambda self, key: fits.append(key) or fit(self, key))
    assert VoxelRegression(items, tmp_path / "kept.json").fitted()[0] == first  # equal voxels, looked at again
    assert len(fits) == 1


def test_without_a_usable_training_split_it_says_so(items: list[dict[str, Any]], tmp_path: Path) -> None:
    def reason(given: list[dict[str, Any]]) -> str:
        model, told = VoxelRegression(given, tmp_path / "kept.json").fitted()
        assert model is None
        return told

    assert reason([]) == "none: there is no training split to fit it on"
    assert "P1-1 has no label" in reason([items[0], {k: v for k, v in items[1].items() if k != "label"}])
    assert "No such file" in reason([{**items[0], "label": str(tmp_path / "gone.nii.gz")}])
    nothing = nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([*SPACING, 1]))
    nib.save(nothing, tmp_path / "nothing.nii.gz")
    assert "no lesion" in reason([{**items[0], "label": str(tmp_path / "nothing.nii.gz")}])


def test_scoring_reports_it(items: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for item in items[3:]:
        nib.save(nib.load(item["label"]), tmp_path / "masks" / f"{item['case']}_lesion.nii.gz")
    out = tmp_path / "out"
    regression = VoxelRegression(items[:3], out / "regression.json")
    score(items[3:], tmp_path / "masks", CaseEvaluation(str(out), regression=regression, overlays=False))
    rows = report.read_rows(out / "metrics.csv")
    model, told = regression.fitted()
    assert model is not None
    for number, row in enumerate(rows, 3):
        adc, zadc, truth = _maps(number)
        found = model.predict(adc.astype(np.float32), zadc.astype(np.float32), SPACING)
        assert row["regression_dice"] == pytest.approx(metrics.dice(found, truth))
    page = (out / "report.html").read_text()
    assert told in page
    assert "Dice of the voxelwise regression" in page


def test_without_one_there_is_no_column(tmp_path: Path) -> None:
    truth, pred, _ = _masks()
    evaluation = CaseEvaluation(str(tmp_path), regression=VoxelRegression([], tmp_path / "kept.json"))
    evaluation.started()
    assert "regression_dice" not in evaluation.measure(_item(truth, pred))
    assert evaluation.info["regression"].startswith("none")


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([0.1, 0.2, 0.15, 0.12, 0.18, 0.11], "The prediction beats the voxelwise regression (mean Dice +0.143"),
        ([-0.1, -0.2, -0.15, -0.12, -0.18, -0.11], "is worse than the voxelwise regression (mean Dice −0.143"),
        ([0.1, -0.2, 0.15, -0.12, 0.18, -0.11], "does not beat the voxelwise regression beyond chance (mean Dice"),
        ([0.1, 0.2], "Too few cases to say whether the prediction beats the voxelwise regression"),
    ],
)
def test_the_first_lines_say_whether_the_network_beats_it(gains: list[float], said: str, tmp_path: Path) -> None:
    rows = [
        row | {"native_dice": 0.5, "regression_dice": 0.5 - gain}
        for row, gain in zip(many_rows(len(gains)), gains, strict=True)
    ]
    assert said in report.verdicts(rows)[1]
    summary = report.write_results(rows, tmp_path, {})
    report.write_report(tmp_path / "report.html", rows, summary)
    page = (tmp_path / "report.html").read_text()
    assert page.index(said) < page.index('class="tiles"')
    assert "Dice gained over the voxelwise regression" in page
    assert not math.isnan(summary["metrics"]["regression_dice"]["mean"])
