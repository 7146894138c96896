"""The study's tables, for the page and Markdown, and its CSV files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.measures import Measure, column
from ..evaluation.statistics import smallest_p
from ..report.page import GAIN, cases_text
from ..report.table import Cell, Group, Table, figures_cell, heading_cell
from ..runtime.text import csv_table
from .results import Results, measure_text
from .variants import PUBLISHED

__all__ = [
    "all_groups", "cases_csv", "markdown", "ranking_table", "size_table", "study_csv", "tests_csv", "tests_table",
]  # fmt: skip

EFFECT = Measure("effect", "Effect size", "", digits=2)
MANY = 8  # with more variants only the tests against the first one are shown


def all_groups(results: Results) -> list[Table]:
    """Table 1 of each group of measures, and the gains over baselines where there are any."""
    tables = [table_1(results, group, measures) for group, measures in results.groups.items()]
    return [*tables, *([gains_table(results)] if results.gains else [])]


def table_1(results: Results, group: Group, measures: Sequence[str]) -> Table:
    """Means of a group of measures by variant, with published figures and epochs."""
    paper = group.grid == "resampled" and any(variant.published for variant in results.variants)
    published = {measure: key for measure in measures if paper and (key := column(measure).published)}
    best = {measure: results.best(measure) for measure in measures}
    header = [Cell("Variant")]
    for measure in measures:
        left_open = PUBLISHED[published[measure]] if measure in published else ""
        header.append(heading_cell(column(measure), *([f"paper: {left_open}"] if left_open else [])))
    rows = []
    for variant in results.variants:
        row = [Cell(variant.label)]
        for measure in measures:
            figures = results.summary[variant.name]["all"][measure]
            notes = []
            if figures["mean_as_printed"] == "Inf":
                notes.append(f"as printed: Inf ({figures['infinite']} of {results.classes['all']} infinite)")
            if figures["undefined"]:
                notes.append(f"{figures['undefined']} of {results.classes['all']} undefined")
            if (value := variant.published.get(published.get(measure, ""))) is not None:
                notes.append(f"paper: {'Inf' if math.isinf(value) else f'{value:.4f}'}")
            row.append(figures_cell(column(measure), figures, *notes, bold=variant.name in best[measure]))
        trained, chosen = results.epochs[variant.name]
        notes = [f"best: {chosen:.4g}"]
        if paper and (epochs := variant.published.get("epochs")):
            notes.append(f"paper: {epochs:g}")
        rows.append([*row, Cell(f"{trained:.4g}", notes)])
    return Table(group.title, [*header, Cell("Epochs")], rows, group.explanation)


def gains_table(results: Results) -> Table:
    """Dice gained over each baseline."""
    header = [Cell("Variant"), *(Cell(baseline.removeprefix("the ")) for baseline in results.gains)]
    rows = []
    for variant in results.variants:
        gains = [of[variant.name] for of in results.gains.values()]
        cells = [Cell(GAIN.signed(one["mean"]), list(filter(None, [GAIN.interval(one)]))) for one in gains]
        rows.append([Cell(variant.label), *cells])
    note = "Dice gained over each, native grid: mean difference, case by case, with its 95 % confidence interval."
    return Table("Against methods without a deep network", header, rows, note)


def size_table(results: Results) -> Table:
    """Means of the lead measure by class of lesion size."""
    known = column(results.lead)
    best = {size: results.best(results.lead, size) for size in results.classes}
    header = [Cell("Variant"), *(Cell(size, [cases_text(count)]) for size, count in results.classes.items())]
    rows = []
    for variant in results.variants:
        figures = results.summary[variant.name]
        cells = [figures_cell(known, figures[size][results.lead], bold=variant.name in best[size]) for size in best]
        rows.append([Cell(variant.label), *cells])
    return Table(f"{measure_text(results.lead)} by lesion size", header, rows)


def ranking_table(results: Results, measures: Sequence[str]) -> Table:
    """Ranks by each measure, with their interval and the share of first places."""
    header, rows = [Cell("Variant")], [[Cell(variant.label)] for variant in results.variants]
    for measure in measures:
        values = results.compared[measure].values()
        count = sum(all(map(math.isfinite, of_case)) for of_case in zip(*values, strict=True))
        grid = "resampled grid" if measure.startswith("resampled_") else "native grid"
        header.append(Cell(column(measure).label, [grid, f"{count} of {results.classes['all']} cases"]))
        for row, rank in zip(rows, results.ranks[measure].values(), strict=True):
            lines = [f"{rank['low']:g} to {rank['high']:g}", f"first in {100 * rank['share_of_draws_first']:.0f} %"]
            row.append(Cell("–") if math.isnan(rank["rank"]) else Cell(f"{rank['rank']:g}", lines))
    return Table("Ranking", header, rows)


def tests_table(results: Results, measure: str) -> Table:
    """Paired tests of one measure."""
    known = column(measure)
    labels = {variant.name: variant.label for variant in results.variants}
    leader = results.by_rank(results.lead)[0].name
    unit = f" ({known.unit})" if known.unit else ""
    header = [Cell("A"), Cell("B", style="left")]
    header += map(Cell, ("Cases", f"Median of A − B{unit}", "p", "p (Holm)", "Effect size"))
    shown = [row for row in results.tests[measure] if len(labels) <= MANY or leader in (row["a"], row["b"])]
    rows = [
        [
            Cell(labels[row["a"]]), Cell(labels[row["b"]], style="left"), Cell(str(row["cases"])),
            Cell(known.text(row["median_difference"])), Cell(_p(row["p"])),
            Cell(_p(row["p_holm"]), bold=row["p_holm"] < 0.05), Cell(EFFECT.signed(row["effect_size"])),
        ]
        for row in shown
    ]  # fmt: skip
    return Table(measure_text(measure), header, rows)


def markdown(results: Results, failed: Mapping[str, str] | None = None) -> str:
    """Failed variants, the verdict, Table 1, the ranking by Dice and the tests of Dice as Markdown."""
    text = [f"Failed, not in the tables: {', '.join(failed)}.", ""] if failed else []
    text += [verdict, ""] if (verdict := results.verdict()) else []
    for table in all_groups(results):
        text += [f"## {table.title}", "", *([table.note, ""] if table.note else []), *table.markdown, ""]
    what = measure_text(results.lead)
    text += [f"## Ranking by {what}", "", *ranking_table(results, [results.lead]).markdown, ""]
    text += [f"## Paired tests of {what}", ""]
    least = smallest_p(results.classes["all"], len(results.tests[results.lead]))
    if least > 0.05:
        text += [f"With so few cases the smallest p after Holm's correction is {least:.2g}.", ""]
    return "\n".join([*text, *tests_table(results, results.lead).markdown]) + "\n"


def study_csv(results: Results) -> str:
    """Table 1 as CSV: a row for each variant and class of lesion size, ``all`` first.

    Each measure has its mean over the finite values, the 95 % confidence interval (``_low``, ``_high``), the mean as
    the paper would print it and the number of finite values.
    """
    keys = [key for key in PUBLISHED if any(key in variant.published for variant in results.variants)]
    lines = []
    for variant in results.variants:
        for size, count in results.classes.items():
            line: dict[str, Any] = {"variant": variant.name, "size_class": size, "cases": count}
            line["runs"] = len(results.runs[variant.name])
            line["epochs"], line["best_epoch"] = results.epochs[variant.name]
            for measure in results.measures:
                figures = results.summary[variant.name][size][measure]
                line[measure] = figures["mean"]
                line |= {f"{measure}_{end}": figures[end] for end in ("low", "high", "mean_as_printed", "defined")}
            line |= {f"published_{key}": variant.published.get(key) if size == "all" else None for key in keys}
            lines.append(line)
    return csv_table(lines)


def cases_csv(results: Results) -> str:
    """Every variant's values in every case as CSV."""
    return csv_table([{"variant": name, **row} for name, rows in results.cases.items() for row in rows])


def tests_csv(results: Results) -> str:
    """The paired tests of all measures as CSV."""
    return csv_table([{"measure": measure, **row} for measure, rows in results.tests.items() for row in rows])


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
