"""One row a case, from what an evaluator hands over, and the files at the end."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from torch import nn

from scripts import report
from scripts.evaluation import metrics
from scripts.io.weights import save_weights
from scripts.report.case_evaluation import CaseEvaluation
from scripts.runtime.errors import UserError
from scripts.scanner.regions import shares

SPACING = np.array([1.5, 1.0, 4.0])
SHAPE = (20, 18, 8)


def _item(
    truth: np.ndarray, pred: np.ndarray, members: tuple[np.ndarray, ...] = (), case: str = "A-1", resampled: bool = True
) -> dict[str, Any]:
    affine = torch.diag(torch.tensor([-1.5, 1.0, 4.0, 1.0], dtype=torch.float64))

    def tensor(*channels: np.ndarray) -> MetaTensor:
        return MetaTensor(torch.as_tensor(np.stack(channels), dtype=torch.float32), affine=affine)

    rng = np.random.default_rng(0)
    brain = np.zeros(SHAPE, bool)
    brain[2:18, 2:16, 1:7] = True
    adc, zadc = rng.uniform(500, 2000, SHAPE) * brain, rng.normal(-1.5, 1, SHAPE) * brain
    item = {
        "case": case,
        "native_image": tensor(adc, zadc),
        "native_label": tensor(truth),
        "native_pred": tensor(pred),
        **({"native_members": tensor(*members)} if members else {}),
    }
    if resampled:
        item |= {"pred": tensor(pred)[:, ::2], "label": tensor(truth)[:, ::2]}
    return item


def _masks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth, pred, brain = (np.zeros(SHAPE, bool) for _ in range(3))
    truth[5:9, 5:9, 3:5] = pred[6:10, 5:9, 3:5] = brain[2:18, 2:16, 1:7] = True
    return truth, pred, brain


def test_a_row_says_what_was_measured(tmp_path: Path) -> None:
    truth, pred, brain = _masks()
    item = _item(truth, pred)
    row = CaseEvaluation(str(tmp_path), lesion_overlap=0.8).measure(item).row
    assert row["lesion_ml"] == pytest.approx(32 * 6 / 1000)
    assert row["brain_ml"] == pytest.approx(brain.sum() * 6 / 1000)
    assert row["volume_difference_ml"] == row["relative_volume_difference"] == 0
    assert row["lesion_fraction"] == pytest.approx(32 / brain.sum())
    assert row["size_class"] == "1–5 %"
    expected = metrics.case_metrics(pred, truth, SPACING, 2.0, 0.8, "native")
    assert {name: row[f"native_{name}"] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert row["native_lesion_sensitivity"] == 0  # three quarters are met, less than asked for
    halves = metrics.case_metrics(pred[::2], truth[::2], SPACING, 2.0, 0.8)
    assert row["resampled_paper_nsd_voxels"] == 1
    assert "native_paper_msd_voxels" not in row
    assert row["resampled_dice"] == pytest.approx(halves["dice"])
    zadc = item["native_image"][1].numpy()
    assert row["baseline_dice"] == pytest.approx(metrics.dice((zadc < -2) & brain, truth))
    assert not any(name.startswith("member_") for name in row)
    assert not any(
        name.startswith("resampled_")
        for name in CaseEvaluation(str(tmp_path)).measure(_item(truth, pred, resampled=False)).row
    )


def test_members_of_an_ensemble(tmp_path: Path) -> None:
    truth, pred, _ = _masks()
    row = CaseEvaluation(str(tmp_path)).measure(_item(truth, pred, (truth, np.zeros_like(truth)))).row
    assert row["native_dice"] == pytest.approx(0.75)
    assert (row["member_1_dice"], row["member_2_dice"]) == (1.0, 0.0)


def test_a_second_channel_of_a_prediction_is_refused(tmp_path: Path) -> None:
    truth, pred, _ = _masks()
    item = _item(truth, pred)
    item["native_pred"] = torch.cat([item["native_pred"], item["native_pred"]])
    with pytest.raises(UserError, match="one channel, not 2"):
        CaseEvaluation(str(tmp_path)).measure(item)


@pytest.mark.parametrize(
    ("true", "predicted", "expected"), [(0, 0, 0.0), (0, 1, math.inf), (1, 0, -1.0), (2, 1, -0.5), (1, 3, 2.0)]
)
def test_relative_difference_of_volumes(true: int, predicted: int, expected: float, tmp_path: Path) -> None:
    masks = [np.zeros(SHAPE, bool) for _ in range(2)]
    for mask, voxels in zip(masks, (true, predicted), strict=True):
        mask[5, 5 : 5 + voxels, 4] = True
    row = CaseEvaluation(str(tmp_path)).measure(_item(*masks)).row
    assert row["relative_volume_difference"] == pytest.approx(expected)
    assert row["volume_difference_ml"] == pytest.approx((predicted - true) * 6 / 1000)


def _engine(items: list[dict[str, Any]]) -> Engine:
    """An engine that yields what an evaluator leaves in its state: the batch's items, and its outputs' as well."""

    def step(_: Engine, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{name: item[name] for name in item if "pred" in name} for item in batch]

    engine = Engine(step)
    engine.data = [items[:2], items[2:]]  # type: ignore[attr-defined]
    return engine


@pytest.mark.parametrize("overlays", [True, False])
def test_files_at_the_end(overlays: bool, tmp_path: Path) -> None:
    truth, pred, _ = _masks()
    items = [_item(truth, pred, case="A-1"), _item(truth, truth, case="B/2"), _item(pred & truth, pred, case="C 3")]
    training = {"loss": "dice", "seed": 7, "epoch": 12, "val_mean_dice": 0.43}
    save_weights(nn.Linear(1, 1), tmp_path / "model.pt", recipe={}, training=training)
    evaluation = CaseEvaluation(
        str(tmp_path / "out"), {"split": "test", "fold": None}, str(tmp_path / "model.pt"), overlays=overlays
    )
    engine = _engine(items)
    evaluation.attach(engine)  # type: ignore[arg-type]
    for _ in range(2):  # a second run starts anew
        engine.run(engine.data)  # type: ignore[attr-defined]
    rows = report.read_rows(tmp_path / "out" / "metrics.csv")
    assert [row["case"] for row in rows] == ["A-1", "B/2", "C 3"]
    assert [row["native_dice"] for row in rows] == [pytest.approx(metrics.dice(pred, truth)), 1.0, pytest.approx(6 / 7)]
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert summary["info"]["split"] == "test"
    assert [entry["path"] for entry in summary["info"]["checkpoints"]] == ["../model.pt"]
    pictures = sorted(path.name for path in tmp_path.glob("out/overlays/*"))
    assert pictures == (["A-1.png", "B%2F2.png", "C 3.png"] if overlays else [])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<article") == (3 if overlays else 0)
    assert summary["info"]["checkpoints"][0]["sha256"] in page
    assert summary["info"]["training"] == ["loss dice, seed 7, epoch 12, val_mean_dice 0.43"]
    assert "loss dice, seed 7, epoch 12, val_mean_dice 0.43" in page


@pytest.mark.parametrize("inner_folds", [None, 4])
def test_the_report_says_whether_the_cases_chose_the_weights(inner_folds: int | None, tmp_path: Path) -> None:
    truth, pred, _ = _masks()
    training = {"loss": "dice", "fold": 0, "num_folds": 5, "inner_folds": inner_folds}
    save_weights(nn.Linear(1, 1), tmp_path / "model.pt", recipe={}, training=training)
    where = {"split": "val", "fold": 0, "num_folds": 5}
    evaluation = CaseEvaluation(str(tmp_path / "out"), where, str(tmp_path / "model.pt"), overlays=False)
    evaluation.add(_item(truth, pred))
    evaluation.completed()
    said = json.loads((tmp_path / "out" / "metrics.json").read_text())["info"]["held_out"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert said.startswith("yes: the weights were chosen on 1/4" if inner_folds else "no: they chose the weights")
    assert ("Not held out: these cases chose the weights" in page) == (inner_folds is None)


def test_the_injured_share_of_regions(tmp_path: Path) -> None:
    """By truth and prediction, on one registration; a case that the atlas does not fit has no row."""

    class Halves:
        def on(self, adc: Any) -> tuple[np.ndarray | None, str]:
            return (None, "bad") if adc.array[5, 5, 3] == 0 else (np.where(adc.array > 0, 1, 0).astype(np.uint8), "")

        def rows(self, labels: np.ndarray, mask: np.ndarray, spacing_mm: Any) -> list[dict[str, Any]]:
            return shares(labels, {1: "brain"}, mask, float(np.prod(spacing_mm)) / 1000)

    truth, pred, brain = _masks()
    evaluation = CaseEvaluation(str(tmp_path), overlays=False, regions=Halves())
    evaluation.started()
    evaluation.add(_item(truth, truth & pred, case="A"))
    unfit = _item(truth, pred, case="B")
    unfit["native_image"][0] = 0
    evaluation.add(unfit)
    evaluation.completed()
    (row,) = csv.DictReader((tmp_path / "regions.csv").read_text().splitlines())
    assert (row["case"], row["region"]) == ("A", "brain")
    assert float(row["share"]) == pytest.approx(truth.sum() / brain.sum())
    assert float(row["predicted_share"]) == pytest.approx((truth & pred).sum() / brain.sum())
    page = (tmp_path / "report.html").read_text()
    table = page[page.index("<h3>Injured regions</h3>") :]
    assert "1 of 1" in table
    assert f"{100 * (truth & ~pred).sum() / brain.sum():.1f} %" in table
