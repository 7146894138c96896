"""One registration a measure: tables, plots, pages, the study and the MONAI metric follow from it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report_page import many_rows
from test_study import _write_run

from scripts import report
from scripts.evaluation import metrics
from scripts.evaluation.measure import DIRECTIONS, FAMILIES, GROUPS, MEASURES, Measure, measured_by, register
from scripts.evaluation.measures import column
from scripts.report.groups import grouped
from scripts.study.results import collect
from scripts.study.study_page import markdown
from scripts.study.variants import Variant

RNG = np.random.default_rng(3)
PRED, TRUTH = RNG.random((2, 9, 8, 7)) > 0.6


@pytest.fixture
def extra() -> Iterator[str]:
    """A measure that somebody adds, gone again after the test."""

    @measured_by(Measure("jaccard", "Jaccard", "|P∩T| / |P∪T|; 1 when both masks are empty.", better="higher"))
    def overlap(pred: Any, truth: Any) -> dict[str, float]:
        union = int((pred | truth).sum())
        return {"jaccard": int((pred & truth).sum()) / union if union else 1.0}

    yield "jaccard"
    FAMILIES.pop()
    del MEASURES["jaccard"]


def _expected(pred: np.ndarray, truth: np.ndarray) -> float:
    dice = metrics.dice(pred, truth)
    return dice / (2 - dice)


def test_a_new_measure_is_everywhere(extra: str, tmp_path: Path) -> None:
    measured = metrics.case_metrics(PRED, TRUTH, (1, 1, 1))
    assert measured[extra] == pytest.approx(_expected(PRED, TRUTH))

    rows = [row | {f"native_{extra}": 0.1 * i} for i, row in enumerate(many_rows(6))]
    summary = report.write_results(rows, tmp_path, {})
    assert f"native_{extra}" in next(csv.reader((tmp_path / "metrics.csv").open()))
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"][f"native_{extra}"]["mean"] == 0.25
    (group,) = [group for group, members in grouped(rows[0]) if f"native_{extra}" in [one.name for one in members]]
    assert group.title.startswith("Further")
    report.write_report(tmp_path / "report.html", rows, summary, {})
    page = (tmp_path / "report.html").read_text()
    assert "|P∩T| / |P∪T|" in page  # its definition
    assert page.count("Jaccard") >= 3  # a line in a table, a plot, the glossary

    variants = [Variant(name, name, {}, {}) for name in "ab"]
    runs = []
    for number, variant in enumerate(variants):
        run = _write_run(tmp_path, variant, 0, np.random.default_rng(number).random((5, 6)))
        lines = (run.folder / "metrics.csv").read_text().splitlines()
        lines = [f"{lines[0]},native_{extra}", *(f"{line},{0.2 + number / 10}" for line in lines[1:])]
        (run.folder / "metrics.csv").write_text("\n".join(lines) + "\n")
        runs.append(run)
    results = collect(variants, runs)
    assert f"native_{extra}" in results.measures
    assert results.best(f"native_{extra}") == {"b"}  # it knows the direction
    assert "Jaccard ↑" in markdown(results)


def test_every_measure_is_told_whole() -> None:
    measured = metrics.case_metrics(PRED, TRUTH, (1, 1, 1))
    assert set(measured) == {name for family in FAMILIES for name in family.names} <= set(MEASURES)
    for name, measure in MEASURES.items():
        assert name == measure.name
        assert measure.label
        assert measure.meaning.endswith(".")
        assert measure.better in DIRECTIONS
        assert measure.group in GROUPS


def test_a_registration_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="measure 'dice' is already registered"):
        register(Measure("dice", "Dice", "Again."))
    with pytest.raises(ValueError, match="better or group is unknown"):
        register(Measure("odd", "Odd", "Odd.", better="bigger"))
    with pytest.raises(ValueError, match="is not registered"):
        column("native_unheard_of")

    @measured_by(Measure("promised", "Promised", "Never given."))
    def breaks_its_word(pred: Any, truth: Any) -> dict[str, float]:
        return {"other": 0.0}

    try:
        with pytest.raises(ValueError, match="returns other measures than registered: other, promised"):
            metrics.case_metrics(PRED, TRUTH, (1, 1, 1))
    finally:
        FAMILIES.pop()
        del MEASURES["promised"]
