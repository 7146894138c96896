"""Methods without a deep network: features, fits, missing training splits, and the verdict of the report."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from test_evaluation import _item, _masks
from test_report_page import many_rows

from scripts import report
from scripts.evaluation import metrics
from scripts.evaluation.baselines import Z_THRESHOLDS, Baselines, local_features
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


def test_the_regression_finds_what_a_threshold_of_single_voxels_does_not(
    items: list[dict[str, Any]], tmp_path: Path
) -> None:
    fitted = Baselines(items[:4], tmp_path / "kept.json").fitted()
    assert fitted.describe().startswith("fitted on 4 training cases: Z < ")
    adc, zadc, truth = _maps(99)
    masks = fitted.masks(adc, zadc, SPACING)
    assert list(masks) == ["baseline_dice", "threshold_dice", "smoothed_dice", "regression_dice"]
    assert not any((mask & (adc == 0)).any() for mask in masks.values())
    scores = {name: metrics.dice(mask, truth) for name, mask in masks.items()}
    assert scores["baseline_dice"] == metrics.dice((zadc < -2) & (adc > 0), truth)
    assert scores["regression_dice"] > scores["baseline_dice"] + 0.3


def test_thresholds_are_the_best_of_the_training_cases(items: list[dict[str, Any]]) -> None:
    """Against every threshold tried by hand, on masks smoothed by SciPy within the brain."""
    fitted = Baselines(items).fitted()
    scores: dict[str, list[list[float]]] = {"raw": [], "smoothed": []}
    for number in range(len(items)):
        adc, zadc, truth = (np.asarray(one, np.float32) for one in _maps(number))
        brain = adc > 0
        sigma = [2.0 / step for step in SPACING]
        smooth, weight = (ndimage.gaussian_filter(v.astype(float), sigma, mode="constant") for v in (zadc, brain))
        smoothed = smooth / np.maximum(weight, 1e-9)
        for name, values in (("raw", zadc), ("smoothed", smoothed)):
            scores[name].append([metrics.dice(brain & (values < cut), truth > 0) for cut in Z_THRESHOLDS])
    for name, chosen in (("raw", fitted.threshold), ("smoothed", fitted.smoothed)):
        means = np.mean(scores[name], axis=0)
        assert chosen is not None
        assert means[np.flatnonzero(np.isclose(Z_THRESHOLDS, chosen))[0]] == pytest.approx(means.max(), abs=1e-3)


def test_surroundings_are_those_of_the_brain_in_millimetres() -> None:
    adc, zadc, _ = _maps(0)
    given = local_features(np.where(adc > 0, 1200, 0), zadc, SPACING)
    assert given.shape == ((adc > 0).sum(), 4)
    np.testing.assert_allclose(given[:, 2], 1.2, rtol=1e-4)  # no dark rim where the brain ends
    brain = adc > 0
    mirrored = local_features(adc[::-1].copy(), zadc[::-1].copy(), SPACING)
    whole = np.zeros((*SHAPE, 4))
    whole[brain[::-1]] = mirrored
    np.testing.assert_allclose(whole[::-1][brain], local_features(adc, zadc, SPACING), atol=1e-4)


def test_they_are_fitted_once_for_the_same_files(
    items: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Baselines(items, tmp_path / "kept.json").fitted()
    monkeypatch.setattr(Baselines, "_fit", lambda *_: pytest.fail("fitted again"))
    assert Baselines(items, tmp_path / "kept.json").fitted() == first
    monkeypatch.undo()
    os.utime(items[0]["label"], (1, 1))
    fits = []
    fit = Baselines._fit
    monkeypatch.setattr(Baselines, "_fit", lambda self, key: fits.append(key) or fit(self, key))
    assert Baselines(items, tmp_path / "kept.json").fitted() == first  # equal voxels, looked at again
    assert len(fits) == 1


def test_without_a_usable_training_split_smoothing_is_left(items: list[dict[str, Any]], tmp_path: Path) -> None:
    def reason(given: list[dict[str, Any]]) -> str:
        fitted = Baselines(given, tmp_path / "kept.json").fitted()
        adc, zadc, _ = _maps(3)
        masks = fitted.masks(adc, zadc, SPACING)
        assert list(masks) == ["baseline_dice", "smoothed_dice"]
        smoothed = local_features(adc, zadc, SPACING)[:, 3]
        np.testing.assert_array_equal(masks["smoothed_dice"][adc > 0], smoothed < -2)
        assert fitted.describe().endswith("Z smoothed by 2 mm is thresholded at -2")
        return fitted.problem

    assert reason([]) == "there is no training split"
    assert "P1-1 has no label" in reason([items[0], {k: v for k, v in items[1].items() if k != "label"}])
    assert "No such file" in reason([{**items[0], "label": str(tmp_path / "gone.nii.gz")}])
    nothing = nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([*SPACING, 1]))
    nib.save(nothing, tmp_path / "nothing.nii.gz")
    assert "no lesion" in reason([{**items[0], "label": str(tmp_path / "nothing.nii.gz")}])


def test_scoring_reports_them(items: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for item in items[3:]:
        nib.save(nib.load(item["label"]), tmp_path / "masks" / f"{item['case']}_lesion.nii.gz")
    out = tmp_path / "out"
    baselines = Baselines(items[:3], out / "baselines.json")
    score(items[3:], tmp_path / "masks", CaseEvaluation(str(out), baselines=baselines, overlays=False))
    rows = report.read_rows(out / "metrics.csv")
    fitted = baselines.fitted()
    for number, row in enumerate(rows, 3):
        adc, zadc, truth = _maps(number)
        masks = fitted.masks(adc.astype(np.float32), zadc.astype(np.float32), SPACING)
        for name, mask in masks.items():
            assert row[name] == pytest.approx(metrics.dice(mask, truth))
    page, table = (out / "report.html").read_text(), (out / "comparison.txt").read_text()
    assert fitted.describe().replace("<", "&lt;") in page
    assert "Dice of the voxelwise regression" in page
    assert f"Z &lt; {fitted.threshold:g} (tuned)".replace("&lt;", "<") in table
    assert "Too few cases to say whether the prediction beats" in table


def test_without_a_training_split_there_is_no_column(tmp_path: Path) -> None:
    truth, pred, _ = _masks()
    evaluation = CaseEvaluation(str(tmp_path), baselines=Baselines([], tmp_path / "kept.json"))
    evaluation.started()
    row = evaluation.measure(_item(truth, pred)).row
    assert {"regression_dice", "threshold_dice"} & set(row) == set()
    assert evaluation.info["baselines"].startswith("not fitted")


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([0.1, 0.2, 0.15, 0.12, 0.18, 0.11], "The prediction beats the smoothed threshold, the best method without"),
        ([-0.1, -0.2, -0.15, -0.12, -0.18, -0.11], "The prediction is worse than the smoothed threshold, the best"),
        ([0.1, -0.2, 0.15, -0.12, 0.19, -0.11], "The prediction does not beat the smoothed threshold, the best"),
        ([0.1, 0.2], "Too few cases to say whether the prediction beats the smoothed threshold, the best method"),
    ],
)
def test_the_first_lines_say_whether_the_network_beats_the_best(gains: list[float], said: str, tmp_path: Path) -> None:
    weak = {"baseline_dice": 0.0, "threshold_dice": 0.1, "regression_dice": 0.2}
    rows = [
        row | {"native_dice": 0.5, **weak, "smoothed_dice": 0.5 - gain}
        for row, gain in zip(many_rows(len(gains)), gains, strict=True)
    ]
    assert report.verdict(rows).startswith(said)
    assert f"{np.mean(gains):+.3f}".replace("-", "−") in report.verdict(rows)
    summary = report.write_results(rows, tmp_path, {})
    report.write_report(tmp_path / "report.html", rows, summary)
    page = (tmp_path / "report.html").read_text()
    assert page.index(said) < page.index('class="tiles"')
    assert not math.isnan(summary["metrics"]["regression_dice"]["mean"])
