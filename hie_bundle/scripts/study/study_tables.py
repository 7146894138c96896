"""The study's tables, shown on the page and in Markdown, and its CSV files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.measures import Measure, column
from ..evaluation.statistics import smallest_p
from ..report.table import Cell, Table, figures_cell, heading_cell
from ..runtime.text import csv_table
from .results import Group, Results, describe_measure, lead_measure, results_groups
from .variants import PUBLISHED

__all__ = [
    "cases_csv", "gains_table", "markdown", "ranking_table", "size_table", "study_csv", "table_1", "tests_csv",
    "tests_table",
]  # fmt: skip

MANY = 8  # variants, above which only the tests against the first one are shown
GAIN = Measure("gain", "gain", "")


def table_1(results: Results, group: Group, measures: Sequence[str]) -> Table:
    """Means of a group of measures by variant, with published figures and epochs."""
    published = {measure: key for measure in measures if (key := group.figure(measure))}
    beside = bool(published) and any(variant.published for variant in results.variants)
    best = {measure: results.best(measure) for measure in measures}
    best_published = {measure: _best_published(results, measure, key) for measure, key in published.items()}
    header = [Cell("Variant")]
    for measure in measures:
        header.append(heading_cell(column(measure)))
        if beside:
            left_open = PUBLISHED.get(published.get(measure, ""), "")
            lines = (column(measure).label, *([f"({left_open})"] if left_open else []))
            header.append(Cell("Paper’s", lines, style="paper"))
    header += [Cell("Epochs"), *([Cell("Paper’s", ("epochs",), style="paper")] if beside else [])]
    rows = []
    for variant in results.variants:
        row = [Cell(variant.label)]
        for measure in measures:
            figures = results.summary[variant.name]["all"][measure]
            notes = _undefined(figures, results.classes["all"])
            row.append(figures_cell(column(measure), figures, *notes, bold=variant.name in best[measure]))
            if beside:
                value = variant.published.get(published.get(measure, ""))
                row.append(_paper(value, ".4f", variant.name in best_published.get(measure, ())))
        trained, chosen = results.epochs[variant.name]
        row.append(Cell(f"{trained:.4g}", [f"best: {chosen:.4g}"]))
        rows.append([*row, *([_paper(variant.published.get("epochs"), "g")] if beside else [])])
    note = group.explanation if beside or not published else ""
    return Table(group.title, header, rows, note)


def gains_table(results: Results) -> Table:
    """Dice gained over each baseline."""
    header = [Cell("Variant"), *(Cell(baseline.removeprefix("the ")) for baseline in results.gains)]
    rows = []
    for variant in results.variants:
        gains = [of[variant.name] for of in results.gains.values()]
        cells = [Cell(("+" if one["mean"] > 0 else "") + GAIN.text(one["mean"]), _some(GAIN.interval(one)))
                 for one in gains]  # fmt: skip
        rows.append([Cell(variant.label), *cells])
    note = "Dice gained over each, native grid: mean difference, case by case, with its 95 % confidence interval."
    return Table("Against methods without a deep network", header, rows, note)


def size_table(results: Results, measure: str) -> Table:
    """Means of one measure by class of lesion size."""
    known = column(measure)
    header = [Cell("Variant")]
    header += [Cell(size, [f"{count} case{'s' * (count != 1)}"]) for size, count in results.classes.items()]
    best = {size: results.best(measure, size) for size in results.classes}
    rows = [
        [Cell(variant.label)]
        + [
            figures_cell(known, results.summary[variant.name][size][measure], bold=variant.name in best[size])
            for size in results.classes
        ]
        for variant in results.variants
    ]
    return Table(f"{describe_measure(known)} by lesion size", header, rows)


def ranking_table(results: Results, measures: Sequence[str]) -> Table:
    """Ranks by each measure, with their interval and the share of the draws that a variant wins."""
    header = [Cell("Variant")]
    for measure in measures:
        used = [results.compared[measure][variant.name] for variant in results.variants]
        count = sum(all(map(math.isfinite, values)) for values in zip(*used, strict=True))
        known = column(measure)
        grid = describe_measure(known).removeprefix(f"{known.label} ")
        header.append(Cell(known.label, [grid, f"{count} of {results.classes['all']} cases"]))
    rows = []
    for variant in results.variants:
        row = [Cell(variant.label)]
        for measure in measures:
            rank = results.ranks[measure][variant.name]
            lines = [f"{rank['low']:g} to {rank['high']:g}", f"first in {100 * rank['share_of_draws_first']:.0f} %"]
            row.append(Cell("–") if math.isnan(rank["rank"]) else Cell(f"{rank['rank']:g}", lines))
        rows.append(row)
    return Table("Ranking", header, rows)


def tests_table(results: Results, measure: str) -> Table:
    """Paired tests of one measure; of many variants those of the first one."""
    known = column(measure)
    labels = {variant.name: variant.label for variant in results.variants}
    leader = results.by_rank(lead_measure(results))[0].name
    unit = f" ({known.unit})" if known.unit else ""
    header = [Cell("A"), Cell("B", style="left")]
    header += map(Cell, ("Cases", f"Median of A − B{unit}", "p", "p (Holm)", "Effect size"))
    rows = []
    for row in results.tests[measure]:
        if len(labels) <= MANY or leader in (row["a"], row["b"]):
            effect = "–" if math.isnan(row["effect_size"]) else f"{row['effect_size']:+.2f}".replace("-", "−")
            rows.append(
                [
                    Cell(labels[row["a"]]), Cell(labels[row["b"]], style="left"), Cell(str(row["cases"])),
                    Cell(known.text(row["median_difference"])), Cell(_p(row["p"])),
                    Cell(_p(row["p_holm"]), bold=row["p_holm"] < 0.05), Cell(effect),
                ]
            )  # fmt: skip
    return Table(describe_measure(known), header, rows)


def markdown(results: Results, failed: Mapping[str, str] | None = None) -> str:
    """Failed variants, the verdict, Table 1, the ranking by Dice and the tests of Dice as Markdown."""
    text = [f"Failed, not in the tables: {', '.join(failed)}.", ""] if failed else []
    text += [verdict, ""] if (verdict := results.verdict()) else []
    tables = [table_1(results, group, measures) for group, measures in results_groups(results)]
    if results.gains:
        tables.append(gains_table(results))
    for table in tables:
        text += [f"## {table.title}", "", *_some(table.note, ""), *table.markdown, ""]
    if results.measures:
        measure = lead_measure(results)
        what = describe_measure(column(measure))
        text += [f"## Ranking by {what}", "", *ranking_table(results, [measure]).markdown, ""]
        text += [f"## Paired tests of {what}", ""]
        least = smallest_p(results.classes["all"], len(results.tests[measure]))
        if least > 0.05:
            text += [f"With so few cases the smallest p after Holm's correction is {least:.2g}.", ""]
        text += tests_table(results, measure).markdown
    return "\n".join(text) + "\n"


def study_csv(results: Results) -> str:
    """Table 1 as CSV: a row for each variant and class of lesion size, ``all`` first.

    Of each measure its mean over the finite values, the ends of the 95 % confidence interval (``_low``, ``_high``),
    the mean as the paper would print it and the number of finite values; ``published_*`` are published figures of the
    variant, which has none by size.
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
    """Every variant's values in every case as CSV: what all statistics are computed from."""
    return csv_table([{"variant": name, **row} for name, rows in results.cases.items() for row in rows])


def tests_csv(results: Results) -> str:
    """The paired tests of all measures as CSV."""
    return csv_table([{"measure": measure, **row} for measure, rows in results.tests.items() for row in rows])


def _best_published(results: Results, measure: str, key: str) -> set[str]:
    values = {v.name: v.published[key] for v in results.variants if key in v.published}
    if len(values) < 2:
        return set()
    end = max(values.values()) if column(measure).better == "higher" else min(values.values())
    return {name for name, value in values.items() if value == end}


def _undefined(figures: Mapping[str, Any], cases: int) -> list[str]:
    notes = []
    if figures["mean_as_printed"] == "Inf":
        notes.append(f"as printed: Inf ({figures['infinite']} of {cases} infinite)")
    if figures["undefined"]:
        notes.append(f"{figures['undefined']} of {cases} undefined")
    return notes


def _paper(value: float | None, form: str, bold: bool = False) -> Cell:
    """A figure as the paper prints it."""
    text = "–" if value is None else "Inf" if math.isinf(value) else f"{value:{form}}"
    return Cell(text, bold=bold, style="paper")


def _some(text: str, *more: str) -> list[str]:
    return [text, *more] if text else []


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
