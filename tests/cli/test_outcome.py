"""Lesion volumes against outcomes: areas as scikit-learn has them, intervals that hold a planted area, the command."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from scripts.cli.outcome import write_outcome
from scripts.evaluation.statistics import auc, auc_difference
from scripts.runtime.errors import UserError

SHIFT = 1.1  # of the logarithm of the volume in the region that decides, in standard deviations
PLANTED = float(stats.norm.cdf(SHIFT / math.sqrt(2)))  # 0.78


def _cohort(rng: np.random.Generator, children: int = 156, adverse: int = 73) -> tuple[np.ndarray, ...]:
    """Volumes in the deciding region, elsewhere, and the outcome, as many of each as in part II of BONBID-HIE."""
    bad = np.arange(children) < adverse
    region = np.exp(rng.normal(0, 1, children) + SHIFT * bad)
    return region, np.exp(rng.normal(2, 1, children)), bad


def test_area_and_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, bad = rng.integers(0, 6, 30), rng.random(30) < 0.4
        area, low, high = auc(values, bad)
        assert area == pytest.approx(roc_auc_score(bad, values))
        assert 0 <= low <= area <= high <= 1
        others = rng.normal(size=30)
        difference, low, high = auc_difference(values, others, bad)
        assert difference == pytest.approx(roc_auc_score(bad, values) - roc_auc_score(bad, others))
        assert low <= difference <= high
    assert auc_difference(values, values, bad) == (0, 0, 0)
    assert math.isnan(auc([1, 2, 3], [True, False, False])[0])
    area, low, high = auc([1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1])  # separated, which six children do not prove
    assert (area, high) == (1, 1)
    assert low < 0.9


def test_intervals_hold_the_planted_area() -> None:
    """In 95 of the first 100 cohorts, and about as often in a thousand."""
    rng = np.random.default_rng(31)
    held = []
    for _ in range(1000):
        region, _, bad = _cohort(rng)
        _, low, high = auc(region, bad)
        held.append(low <= PLANTED <= high)
    assert sum(held[:100]) >= 95
    assert 0.935 <= np.mean(held) <= 0.975


def test_intervals_of_the_difference_hold_the_planted_one() -> None:
    """The region that decides against one that does not: the difference of the areas is that from one half."""
    rng = np.random.default_rng(32)
    held = []
    for _ in range(1000):
        region, elsewhere, bad = _cohort(rng)
        _, low, high = auc_difference(region, elsewhere, bad)
        held.append(low <= PLANTED - 0.5 <= high)
    assert 0.935 <= np.mean(held) <= 0.975


@pytest.fixture
def tables(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Files of a simulated cohort of two hospitals; the outcome depends on the deep region alone."""

    def write(ending: str) -> dict[str, Any]:
        region, elsewhere, bad = _cohort(np.random.default_rng(5))
        order = np.random.default_rng(6).permutation(len(bad))
        cases, children = [], []
        for number, place in enumerate(order):
            child = f"{('MGH', 'BCH')[number % 2]}NICU_{number:03d}"
            volume = float(region[place] + elsewhere[place])
            cases.append({"case": f"{child}-VISIT_01", "lesion_ml": volume, "lesion_fraction": volume / 400,
                          "low_z_ml": volume * 1.1, "region_deep_ml": float(region[place])})  # fmt: skip
            children.append({"Patient": child, "Outcome": int(bad[place]), "Name": f"secret {number}"})
        cases += [{**cases[0], "case": cases[0]["case"].replace("_01", "_02")}, {"case": "MGHNICU_900", "error": "x"}]
        children[3]["Outcome"] = None
        (tmp_path / "cases.json").write_text(json.dumps({"cases": cases}))
        lines = [list(children[0]), *(list(child.values()) for child in children)]
        if ending == ".xlsx":
            book = openpyxl.Workbook()
            for line in lines:
                book.active.append(line)  # type: ignore[union-attr]
            book.save(tmp_path / "c.xlsx")
        else:
            with (tmp_path / "c.csv").open("w", newline="") as stream:
                csv.writer(stream).writerows(lines)
        return {"segmented": tmp_path / "cases.json", "outcomes": tmp_path / f"c{ending}", "id_column": "Patient",
                "outcome_column": "Outcome", "adverse": [1], "output_file": tmp_path / "auc.csv"}  # fmt: skip

    return write


@pytest.mark.parametrize("ending", [".csv", ".xlsx"])
def test_where_the_injury_lies_decides(
    ending: str, tables: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    given = tables(ending)
    write_outcome(**given)
    text = given["output_file"].read_text()
    rows = {(row["site"], row["volume"]): row for row in csv.DictReader(text.splitlines())}
    assert {site for site, _ in rows} == {"all", "MGH", "BCH"}
    deep, whole = rows["all", "region_deep_ml"], rows["all", "lesion_ml"]
    assert (deep["children"], whole["children"]) == ("155", "155")  # one has no outcome, one scan is a second
    assert float(deep["low"]) <= PLANTED <= float(deep["high"])
    assert float(deep["gain_low"]) > 0
    assert float(whole["gain"]) == 0  # as many ml of low Z, in proportion
    out = capsys.readouterr().out
    assert f"{float(deep['auc']):.3f}" in out
    assert "secret" not in text + out
    assert "NICU" not in text + out


def test_what_does_not_fit_is_named(tables: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    given = tables(".csv")
    for change, message in (
        ({"id_column": "Id"}, "column 'Id' is unknown; choose one of: .*Patient"),
        ({"volumes": ["region_x"]}, "column 'region_x' is unknown"),
        ({"id_column": "Name"}, "No case id matches the column Name"),
        ({"outcomes": tmp_path / "no.csv"}, "cannot be read as a table"),
        ({"adverse": []}, "Name tables and columns"),
    ):
        with pytest.raises(UserError, match=message):
            write_outcome(**{**given, **change})
