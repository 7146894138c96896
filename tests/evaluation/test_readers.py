"""Several readers: closed forms, STAPLE against its equations, and an evaluation with two of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from conftest import BUNDLE
from monai.bundle import ConfigWorkflow
from scipy import ndimage

from scripts import data, report
from scripts.data.mask_files import Readers
from scripts.evaluation.metrics import reader_metrics, staple
from scripts.report.case_evaluation import CaseEvaluation
from scripts.report.scoring import score
from scripts.runtime.errors import UserError


def test_a_prediction_between_two_readers() -> None:
    line = np.zeros((1, 1, 12), bool)
    first, second, pred = line.copy(), line.copy(), line.copy()
    first[..., 0:4], second[..., 2:6], pred[..., 1:5] = True, True, True
    found = reader_metrics(pred, [first, second])
    assert found["readers_dice"] == pytest.approx(0.5)
    assert (found["reader_1_dice"], found["reader_2_dice"]) == (pytest.approx(0.75), pytest.approx(0.75))
    assert found["to_readers_dice"] - found["readers_dice"] == found["readers_gap"] == pytest.approx(0.25)
    assert reader_metrics(line, [line, line])["staple_dice"] == 1  # nothing to find, for three of three


def _warfield(masks: np.ndarray, rounds: int = 200) -> np.ndarray:
    """Expectation maximisation as in Warfield et al. 2004, section III."""
    prior = masks.mean()
    p = q = np.full(len(masks), 0.99999)
    for _ in range(rounds):
        a = prior * np.prod(np.where(masks, p[:, None], 1 - p[:, None]), 0)
        b = (1 - prior) * np.prod(np.where(masks, 1 - q[:, None], q[:, None]), 0)
        w = a / (a + b)
        p, q = (masks * w).sum(1) / w.sum(), (~masks * (1 - w)).sum(1) / (1 - w).sum()
    return w > 0.5


def test_consensus_is_that_of_its_equations() -> None:
    rng = np.random.default_rng(1)
    field = ndimage.gaussian_filter(rng.normal(size=(16, 14, 10)), 2)
    fields = [field + 0.6 * ndimage.gaussian_filter(rng.normal(size=field.shape), 2) for _ in range(4)]
    masks = [one > np.quantile(one, 0.85) for one in fields]
    np.testing.assert_array_equal(staple(masks).ravel(), _warfield(np.stack([mask.ravel() for mask in masks])))


def test_an_evaluation_with_a_second_reader(tiny_cohort: Path, tmp_path: Path) -> None:
    items = data.datalist(tiny_cohort, "test")
    for name in ("masks", "reader"):
        (tmp_path / name).mkdir()
        for item in items:
            shutil.copy(item["label"], tmp_path / name / f"{item['case']}_lesion.mha")
    evaluation = CaseEvaluation(str(tmp_path / "out"), readers=Readers([str(tmp_path / "reader")], items))
    score(items, tmp_path / "masks", evaluation)
    rows = report.read_rows(tmp_path / "out" / "metrics.csv")
    assert [(row["readers_dice"], row["reader_2_dice"], row["readers_gap"]) for row in rows] == [(1, 1, 0)] * 3
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "and a reader 1.000" in report.readers_sentence(summary)
    assert report.readers_sentence(summary) in (tmp_path / "out" / "report.html").read_text()
    min((tmp_path / "reader").iterdir()).unlink()
    with pytest.raises(UserError, match="1 of 3 masks"):
        score(items, tmp_path / "masks", evaluation)


def test_a_training_on_the_mean_of_two_readers(tiny_cohort: Path, tmp_path: Path) -> None:
    """The paper's recipe would round the mean away; the strong one keeps it."""
    items = data.datalist(tiny_cohort, "train")
    for item in items:
        label = SimpleITK.ReadImage(item["label"])
        (tmp_path / "reader").mkdir(exist_ok=True)
        SimpleITK.WriteImage(label * 0, str(tmp_path / "reader" / f"{item['case']}_lesion.mha"))
    configs = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "strong", "strong_cpu", "soft_labels")]
    workflow = ConfigWorkflow(
        configs, workflow_type="train", logging_file=False, dataset_dir=str(tiny_cohort), num_workers=0, device="cpu",
        readers=[str(tmp_path / "reader")], ckpt_dir=str(tmp_path), output_dir=str(tmp_path), augment={},
    )  # fmt: skip
    workflow.initialize()
    item = next(item for item in workflow.parser.get_parsed_content("train#dataset") if item["label"].max() > 0)
    assert 0.4 < float(item["label"].max()) <= 0.5  # half of the label, resampled
