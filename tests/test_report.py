"""Tables that can be recomputed, files that are whole, pictures that show what they should."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from scripts import report

ROWS = [
    {"case": "a", "size_class": "empty", "lesion_fraction": 0.0, "lesion_ml": 0.0, "predicted_ml": 0.0,
     "native_dice": 1.0, "native_masd_mm": 0.0, "baseline_dice": 0.0},
    {"case": 'b,"<x>', "size_class": "< 1 %", "lesion_fraction": 0.004, "lesion_ml": 2.0, "predicted_ml": 0.0,
     "native_dice": 0.0, "native_masd_mm": math.nan, "baseline_dice": 0.2},
    {"case": "c", "size_class": "< 1 %", "lesion_fraction": 0.006, "lesion_ml": 3.0, "predicted_ml": 2.5,
     "native_dice": 0.5, "native_masd_mm": math.inf, "baseline_dice": 0.3},
]  # fmt: skip


def test_summary_can_be_recomputed_from_the_table(tmp_path: Path) -> None:
    report.write_results(ROWS, tmp_path / "new", {"split": "test"})
    with (tmp_path / "new" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == ["a", 'b,"<x>', "c"]
    summary = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert summary["info"] == {"split": "test"}
    assert summary["cases"] == 3
    assert summary["empty"] == {"truth": 1, "prediction": 2, "both": 1}
    for name, statistics in summary["metrics"].items():
        values = np.array([float(row[name]) for row in rows])
        finite = values[np.isfinite(values)]
        assert statistics["mean"] == pytest.approx(finite.mean())
        assert statistics["median"] == pytest.approx(np.median(finite))
        assert statistics["std"] == pytest.approx(finite.std())
        assert statistics["defined"] == len(finite)
    assert summary["metrics"]["native_masd_mm"]["undefined"] == 1
    assert summary["metrics"]["native_masd_mm"]["infinite"] == 1
    assert list(summary["by_size_class"]) == ["empty", "< 1 %"]
    assert summary["by_size_class"]["< 1 %"]["metrics"]["native_dice"]["mean"] == pytest.approx(0.25)


def test_a_column_without_defined_values_has_no_mean(tmp_path: Path) -> None:
    statistics = report.summarise([ROWS[1]])["metrics"]["native_masd_mm"]
    assert statistics["mean"] is None
    assert statistics["undefined"] == 1


def test_comparison_table_shows_network_and_baseline() -> None:
    lines = report.comparison_table(ROWS).splitlines()
    assert lines[1].split() == ["empty", "1", "1.000", "0.000"]
    assert lines[-1].split() == ["all", "3", "0.500", "[0.000,", "1.000]", "0.167", "[0.000,", "0.300]"]


def test_no_results_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no results"):
        report.write_results([], tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    report.write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def _picture(truth_at: tuple[int, int] | None, pred_at: tuple[int, int] | None) -> np.ndarray:
    adc = np.zeros((40, 60, 10))
    adc[5:35, 5:55, 1:9] = 1200
    masks = []
    for place in (truth_at, pred_at):
        mask = np.zeros(adc.shape, bool)
        if place:
            mask[place[0] - 3 : place[0] + 3, place[1] - 3 : place[1] + 3, 6] = True
        masks.append(mask)
    png = report.render_case(adc, np.where(adc > 0, -1.0, 0), *masks, (2.0, 2.0, 4.0), "case <1>")
    return imread(io.BytesIO(png))[..., :3]


def _centre(picture: np.ndarray, colour: str) -> tuple[float, float] | None:
    """Mean position (row, column) of a colour within the left image."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    rows, columns = np.nonzero((np.abs(picture - wanted) < 0.06).all(axis=2))
    inside = (columns < picture.shape[1] / 2) & (rows < picture.shape[0] * 0.85)  # not the legend below
    return (rows[inside].mean(), columns[inside].mean()) if inside.any() else None


def test_picture_has_both_outlines_the_right_way_up() -> None:
    # in RAS+ the first index grows towards the patient's right, which stands on the left, and the second to the front
    picture = _picture((30, 45), (12, 15))
    truth, pred = _centre(picture, report.TRUTH_COLOUR), _centre(picture, report.PRED_COLOUR)
    assert truth is not None
    assert pred is not None
    assert truth[1] < pred[1]
    assert truth[0] < pred[0]


def test_picture_without_a_lesion_has_no_outline() -> None:
    assert _centre(_picture(None, None), report.TRUTH_COLOUR) is None
    assert _centre(_picture(None, None), report.PRED_COLOUR) is None
