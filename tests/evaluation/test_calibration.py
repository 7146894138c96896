"""Calibration and thresholds against scikit-learn and brute force; chosen on some cases, told of others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss
from test_evaluation import SHAPE, _item, _masks
from torch import nn

from scripts import report
from scripts.evaluation import metrics
from scripts.evaluation.calibration import (
    BINS,
    THRESHOLDS,
    Calibration,
    CaseProbabilities,
    best_threshold,
    read_threshold,
    reliability,
)
from scripts.io.weights import save_weights
from scripts.report.case_evaluation import CaseEvaluation
from scripts.runtime.errors import UserError


def _case(seed: int, power: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities that are right for power 1, truth drawn from them, and a brain."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(0.4, 1.2, SHAPE)
    truth = rng.random(SHAPE) < chance
    brain = np.zeros(SHAPE, bool)
    brain[2:18, 2:16, 1:7] = True
    return np.where(brain, chance**power, 0).astype(np.float32), truth & brain, brain


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_equal_to_scikit_learn(power: float) -> None:
    cases = [CaseProbabilities.of(*_case(seed, power)) for seed in range(3)]
    for seed, case in enumerate(cases):
        p, t, brain = _case(seed, power)
        assert case.brier == pytest.approx(brier_score_loss(t[brain], p[brain]), rel=1e-6)
        for at in (0, 24, 49, 98):
            expected = metrics.dice(p >= np.float32(THRESHOLDS[at]), t)
            assert case.dice[at] == pytest.approx(expected)
    p, t = (np.concatenate([_case(seed, power)[i][_case(seed)[2]] for seed in range(3)]) for i in (0, 1))
    found, given = calibration_curve(t, p, n_bins=BINS)
    np.testing.assert_allclose(reliability(cases), (given, found), rtol=1e-5)
    error = np.average([case.ece for case in cases])
    assert (error < 0.05) == (power == 1.0)


def test_the_best_threshold_is_that_of_all_masks() -> None:
    cases = [_case(seed, 2.0) for seed in range(4)]
    threshold, dice = best_threshold([CaseProbabilities.of(*case) for case in cases])
    means = [np.mean([metrics.dice(p >= np.float32(at), t) for p, t, _ in cases]) for at in THRESHOLDS]
    assert dice == pytest.approx(max(means))
    assert means[round(threshold * 100) - 1] == pytest.approx(max(means))
    nothing = np.zeros(SHAPE, np.float32)
    assert CaseProbabilities.of(nothing, nothing > 0, nothing == 0).dice.tolist() == [1.0] * 99


def test_a_threshold_chosen_on_some_cases_is_told_of_others(tmp_path: Path) -> None:
    def evaluate(folder: str, threshold_from: str | None = None) -> CaseEvaluation:
        evaluation = CaseEvaluation(str(tmp_path / folder), overlays=False, threshold_from=threshold_from)
        evaluation.started()
        for number in range(2):
            truth, _, brain = _masks()
            rng = np.random.default_rng(number)
            p = np.where(brain, np.where(truth, rng.uniform(0.2, 0.9, SHAPE), rng.uniform(0, 0.3, SHAPE)), 0)
            item = _item(truth, p >= 0.5, case=f"A-{number}")
            item["native_probability"] = MetaTensor(
                torch.as_tensor(p[None], dtype=torch.float32), affine=item["native_label"].affine
            )
            evaluation.add(item)
        evaluation.completed()
        return evaluation

    evaluate("val")
    written = json.loads((tmp_path / "val" / "thresholds.json").read_text())
    assert 0.2 < written["threshold"] < 0.5
    assert written["mean_dice_at"]["0.50"] < written["mean_dice"]
    evaluation = evaluate("test", str(tmp_path / "val" / "thresholds.json"))
    rows = report.read_rows(tmp_path / "test" / "metrics.csv")
    for row, case in zip(rows, evaluation.cases, strict=True):
        assert case.probabilities is not None
        assert row["native_dice_chosen"] == pytest.approx(case.probabilities.dice_at(written["threshold"]))
        assert row["native_dice_chosen"] > row["native_dice"]
        assert row["native_brier"] > 0
    page = (tmp_path / "test" / "report.html").read_text()
    for words in (
        "Dice at the chosen threshold",
        "Reliability of the probabilities",
        "Dice against threshold",
        "Brier",
    ):
        assert words in page


def test_a_calibration_of_some_cases_halves_the_error_of_others(tmp_path: Path) -> None:
    """Kept with the weights, refused for others or other settings; lesions that are mostly false are said to be."""
    weights = tmp_path / "model.pt"
    save_weights(nn.Linear(1, 1), weights, recipe={}, training={})

    def evaluate(folder: str, seeds: range, calibration: str | None, **settings: float) -> CaseEvaluation:
        evaluation = CaseEvaluation(
            str(tmp_path / folder), settings, str(weights), overlays=False, calibration=calibration
        )
        evaluation.started()
        for seed in seeds:
            p, truth, _ = _case(seed, power=2.0)
            truth = truth & (ndimage.gaussian_filter(truth.astype(float), 1) > 0.2)
            item = _item(truth, p >= 0.8, case=f"A-{seed}")
            item["native_probability"] = MetaTensor(torch.as_tensor(p[None]), affine=item["native_label"].affine)
            evaluation.add(item)
        evaluation.completed()
        return evaluation

    with pytest.raises(UserError, match=r"model\.calibration\.json is not a calibration"):
        evaluate("test", range(1), "apply")
    evaluate("val", range(6), "fit", threshold=0.8)
    found = evaluate("test", range(6, 12), "apply", threshold=0.8)
    before, after = ([getattr(case, name).ece for case in found.cases] for name in ("probabilities", "calibrated"))
    assert np.mean(after) < np.mean(before) / 2
    rows = report.read_rows(tmp_path / "test" / "metrics.csv")
    assert [row["native_ece_calibrated"] for row in rows] == pytest.approx(after)
    assert "Calibration error, mean of the cases" in (tmp_path / "test" / "report.html").read_text()
    drawn = [row for case in found.cases for row in case.lesions if row["mask"] == "prediction"]
    assert all(0 < row["real_probability"] < 1 for row in drawn)
    with pytest.raises(UserError, match=r"fitted with threshold 0\.8, not 0\.5"):
        evaluate("test", range(1), "apply", threshold=0.5)
    save_weights(nn.Linear(1, 1), weights, recipe={}, training={})
    with pytest.raises(UserError, match="fitted with weights_sha256"):
        evaluate("test", range(1), "apply", threshold=0.8)


def chance(volume_ml: float, mean_probability: float) -> float:
    """That a lesion is real, in a world of logistic regression."""
    return float(expit(np.log(volume_ml) + 3 * mean_probability - 2))


def test_isotonic_regression_of_bins_is_that_of_voxels() -> None:
    cases = [_case(seed, 2.0) for seed in range(3)]
    fitted = Calibration.fit({}, [CaseProbabilities.of(*case) for case in cases], [])
    p, t = (np.concatenate([case[i][case[2]] for case in cases]) for i in (0, 1))
    expected = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, t)
    at = np.linspace(0.02, 0.98, 200)
    assert np.abs(fitted(at) - expected.predict(at)).mean() < 0.02
    rng = np.random.default_rng(0)
    lesions = [{"mask": "prediction", "volume_ml": v, "mean_probability": m, "touches": rng.random() < chance(v, m)}
               for v, m in zip(np.exp(rng.normal(0, 2, 2000)), rng.uniform(0.5, 1, 2000), strict=True)]  # fmt: skip
    real = Calibration.fit({}, [CaseProbabilities.of(*cases[0])], lesions).real(lesions)
    truth = [chance(row["volume_ml"], row["mean_probability"]) for row in lesions]
    assert np.abs(np.subtract(real, truth)).mean() < 0.03
    assert fitted.real([]) == []
    assert fitted.real([{}]) == [None]  # no lesion was drawn


def test_what_is_no_such_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for name in ("absent.json", "other.json"):
        with pytest.raises(UserError, match=r"--threshold_from .* is not a thresholds\.json"):
            read_threshold(tmp_path / name)
