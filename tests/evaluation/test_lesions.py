"""Lesion by lesion: the rows by hand, and the matching against panoptica's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from scripts.evaluation.lesions import case_lesions, detection, match, recall_by_volume
from scripts.geometry.components import components

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 0, 4.0, -20], [0, -1.5, 0, 30], [0, 0, 0, 1]])  # the second axis runs down


def _masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(6, 24, 3))
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 2)) for _ in range(2)]
    mix = rng.uniform(0, 1)
    fields[1] = mix * fields[0] + (1 - mix) * fields[1]
    share = rng.uniform(0.7, 0.99) if seed % 10 else 1.0  # some are empty
    truth, pred = (field > np.quantile(field, share) for field in fields)
    return truth, pred


def test_rows_by_hand() -> None:
    truth, pred = np.zeros((2, 12, 14, 10), bool)
    truth[2:4, 3:6, 4] = pred[2:4, 4:7, 4] = True  # 6 voxels each, 4 in common
    truth[8, 10, 1] = True  # missed
    pred[10, 1, 8] = True  # invented
    adc = np.arange(truth.size, dtype=float).reshape(truth.shape)
    rows = case_lesions("A", pred, truth, AFFINE, {"adc": adc, "probability": np.ones(adc.shape)}, min_iou=0.4)
    assert [(row["mask"], row["lesion"], row["match"], row["matched"]) for row in rows] == [
        ("truth", 1, 1, True), ("truth", 2, 0, False), ("prediction", 1, 1, True), ("prediction", 2, 0, False),
    ]  # fmt: skip
    first = rows[0]
    assert first["volume_ml"] == pytest.approx(6 * 12 / 1000)
    assert [first[name] for name in ("x_mm", "y_mm", "z_mm")] == pytest.approx([10 - 5, -20 + 16, 30 - 6])
    assert (first["first_slice"], first["last_slice"]) == (14 - 5, 14 - 3)
    assert (first["mean_adc"], first["lowest_adc"]) == (adc[2:4, 3:6, 4].mean(), adc[2, 3, 4])
    assert "lowest_probability" not in first
    assert first["iou"] == pytest.approx(4 / 8)
    assert first["dice"] == pytest.approx(2 * 4 / 12)
    assert [row["touches"] for row in rows] == [True, False, True, False]
    found = detection(rows, cases=2, min_iou=0.4)
    assert found == {
        "lesions": 2, "predicted": 2, "matched": 1, "recall": 0.5, "precision": 0.5, "f1": 0.5,
        "false_positives_a_case": 0.5, "min_iou": 0.4,
    }  # fmt: skip
    assert detection(rows, cases=2, min_iou=0.6)["matched"] == 0
    assert recall_by_volume(rows) == [("0–0.1", 2, 1)]


def test_nothing_is_no_row() -> None:
    empty = np.zeros((4, 5, 6), bool)
    assert case_lesions("A", empty, empty, AFFINE, {"adc": np.ones(empty.shape)}) == []
    assert detection([], cases=3, min_iou=0.1)["f1"] is None


def test_each_component_is_matched_once() -> None:
    for seed in range(50):
        truth, pred = (components(mask)[0] for mask in _masks(seed))
        pairs = match(truth, pred)
        assert len({lesion for lesion, *_ in pairs}) == len({found for _, found, _ in pairs}) == len(pairs)
        assert [iou for *_, iou in pairs] == sorted((iou for *_, iou in pairs), reverse=True)
        for lesion, found, iou in pairs:
            a, b = truth == lesion, pred == found
            assert iou == pytest.approx((a & b).sum() / (a | b).sum())


PANOPTICA = """
import sys
import numpy as np
from panoptica import InputType, NaiveThresholdMatching, Panoptica_Evaluator, ConnectedComponentsInstanceApproximator
from panoptica.metrics import Metric
masks = np.load(sys.argv[1])
for seed in range(int(sys.argv[2])):
    for threshold in (0.1, 0.5):
        evaluator = Panoptica_Evaluator(
            expected_input=InputType.SEMANTIC, instance_approximator=ConnectedComponentsInstanceApproximator(),
            instance_matcher=NaiveThresholdMatching(Metric.IOU, threshold), instance_metrics=[Metric.DSC, Metric.IOU],
            global_metrics=[],
        )
        truth, pred = (masks[f"{name}{seed}"].astype(np.uint8) for name in ("truth", "pred"))
        found = evaluator.evaluate(pred, truth, verbose=False)["ungrouped"]
        dice = sorted(found.get_list_metric(Metric.DSC, mode=__import__("panoptica").metrics.MetricMode.ALL))
        print(seed, threshold, found.tp, found.fp, found.fn, *dice)
"""


@pytest.mark.skipif("PANOPTICA_PYTHON" not in os.environ, reason="needs panoptica: make test-panoptica")
def test_matching_equals_panoptica_s(tmp_path: Path) -> None:
    """On 200 random pairs; panoptica has an environment of its own, since it needs an older NumPy."""
    count = 200
    masks = {seed: _masks(seed) for seed in range(count)}
    arrays = {f"{name}{seed}": mask for seed, pair in masks.items() for name, mask in zip(("truth", "pred"), pair)}  # noqa: B905
    np.savez(tmp_path / "masks.npz", **arrays)
    environment = {**os.environ, "PYTHONPATH": "", "PANOPTICA_CITATION_REMINDER": "false"}
    command = [os.environ["PANOPTICA_PYTHON"], "-c", PANOPTICA, str(tmp_path / "masks.npz"), str(count)]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    lines = [line.split() for line in output.splitlines() if line[:1].isdigit()]
    assert len(lines) == 2 * count
    for seed, threshold, tp, fp, fn, *dice in lines:
        truth, pred = masks[int(seed)]
        rows = case_lesions("A", pred, truth, np.eye(4), {}, float(threshold))
        found = detection(rows, 1, float(threshold))
        expected = (int(tp), int(tp) + int(fp), int(tp) + int(fn))
        assert (found["matched"], found["predicted"], found["lesions"]) == expected, seed
        ours = sorted(row["dice"] for row in rows if row["mask"] == "truth" and row["matched"])
        assert ours == pytest.approx([float(value) for value in dice]), seed
