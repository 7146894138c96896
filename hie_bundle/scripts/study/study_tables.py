"""The study's figures as files: CSV for other programs, Markdown for people."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..evaluation.measures import Measure, column
from ..evaluation.statistics import smallest_p
from .results import Group, Results, describe_measure, lead_measure, results_groups
from .variants import PUBLISHED, Variant

__all__ = ["GAINED", "cases_csv", "gained", "markdown", "printed", "study_csv", "tests_csv"]

GAINED = "Mean difference of Dice on the native grid, case by case, with its 95 % confidence interval."


def study_csv(results: Results) -> str:
    """Table 1 as CSV: a row for each variant and class of lesion size, ``all`` first.

    Of each measure its mean over the finite values, the ends of the 95 % confidence interval (``_low``, ``_high``),
    the mean as the paper would print it and the number of finite values; ``published_*`` are the figures that others
    printed for the variant.
    """
    lines = []
    for variant in results.variants:
        for size, count in results.classes.items():
            line: dict[str, Any] = {"variant": variant.name, "size_class": size, "cases": count}
            line["runs"] = len(results.runs[variant.name])
            line["epochs"], line["best_epoch"] = results.epochs[variant.name]
            for measure in results.measures:
                figures = results.summary[variant.name][size][measure]
                line[measure] = figures["mean"]
                for end in ("low", "high", "mean_as_printed", "defined"):
                    line[f"{measure}_{end}"] = figures[end]
            whole = size == "all"  # the paper has no figures by size
            line |= {f"published_{key}": variant.published.get(key) if whole else None for key in _published(results)}
            lines.append(line)
    return _csv(lines)


def cases_csv(results: Results) -> str:
    """Every variant's values in every case as CSV: what all statistics are computed from."""
    return _csv([{"variant": name, **row} for name, rows in results.cases.items() for row in rows])


def tests_csv(results: Results) -> str:
    """The paired tests of all measures as CSV."""
    return _csv([{"measure": measure, **row} for measure, rows in results.tests.items() for row in rows])


def markdown(results: Results, failed: Mapping[str, str] | None = None) -> str:
    """Failed variants, the verdict, Table 1, the ranking by Dice and the tests of Dice as Markdown."""
    text = [f"Failed, not in the tables: {', '.join(failed)}.", ""] if failed else []
    text += [verdict, ""] if (verdict := results.verdict()) else []
    for group, measures in results_groups(results):
        text += [f"## {group.title}", "", group.explanation, ""]
        names = [column(measure) for measure in measures]
        header = ["Variant", *(_heading(known, group.figure(known.name)) for known in names), "Epochs"]
        lines = []
        for variant in results.variants:
            cells = [_cell(results, variant, measure, group.figure(measure)) for measure in measures]
            lines.append([variant.label, *cells, _epochs_cell(results, variant, group)])
        text += [*_table(header, lines), ""]
    if gains := results.gains:
        text += ["## Against methods without a deep network", "", GAINED, ""]
        lines = [[v.label, *(gained(of[v.name]) for of in gains.values())] for v in results.variants]
        text += [*_table(["Variant", *(f"Dice gained over {baseline}" for baseline in gains)], lines), ""]
    if results.measures:
        measure = lead_measure(results)
        known = column(measure)
        text += [f"## Ranking by {describe_measure(known)}", ""]
        lines = []
        for variant in results.by_rank(measure):
            rank = results.ranks[measure][variant.name]
            lines.append(
                [
                    variant.label,
                    f"{rank['rank']:g}",
                    f"{rank['low']:g} to {rank['high']:g}",
                    f"{rank['share_of_draws_first']:.2f}",
                ]
            )
        text += [*_table(["Variant", "Rank", "95 % interval", "Share of draws first"], lines), ""]
        text += [f"## Paired tests of {describe_measure(known)}", ""]
        least = smallest_p(results.classes["all"], len(results.tests[measure]))
        if least > 0.05:
            text += [
                f"With so few cases the smallest p that could come out after Holm's correction is {least:.2g}.",
                "",
            ]
        labels = {variant.name: variant.label for variant in results.variants}
        lines = [
            [
                labels[row["a"]], labels[row["b"]], str(row["cases"]), known.text(row["median_difference"]),
                f"{row['p']:.3g}", f"{row['p_holm']:.3g}", f"{row['effect_size']:+.2f}",
            ]
            for row in results.tests[measure]
        ]  # fmt: skip
        text += _table(["A", "B", "Cases", "Median of A − B", "p", "p (Holm)", "Effect size"], lines)
    return "\n".join(text) + "\n"


def _published(results: Results) -> list[str]:
    return [key for key in PUBLISHED if any(key in v.published for v in results.variants)]


def _heading(known: Measure, published: str) -> str:
    left_open = PUBLISHED.get(published)
    return f"{known.heading} {'↑' if known.better == 'higher' else '↓'}{f'; paper: {left_open}' if left_open else ''}"


def _cell(results: Results, variant: Variant, measure: str, published: str) -> str:
    figures = results.summary[variant.name]["all"][measure]
    known = column(measure)
    text = known.text(figures["mean"])
    if variant.name in results.best(measure):
        text = f"**{text}**"
    if figures["low"] is not None:
        text += f" [{known.text(figures['low'])}, {known.text(figures['high'])}]"
    if figures["mean_as_printed"] == "Inf":
        text += f"; as printed: Inf ({figures['infinite']} of {results.classes['all']} infinite)"
    if figures["undefined"]:
        text += f"; undefined in {figures['undefined']}"
    if published in variant.published:
        text += f"; paper: {printed(variant.published[published])}"
    return text


def _epochs_cell(results: Results, variant: Variant, group: Group) -> str:
    text = f"{results.epochs[variant.name][0]:g}"
    if group.published and "epochs" in variant.published:
        text += f"; paper: {variant.published['epochs']:g}"
    return text


def gained(gain: Mapping[str, Any]) -> str:
    """A difference of Dice with its interval."""
    signed = Measure("gain", "gain", "")
    text = ("+" if gain["mean"] > 0 else "") + signed.text(gain["mean"])
    return text if gain["low"] is None else f"{text} [{signed.interval(gain).replace(' to ', ', ')}]"


def printed(value: float) -> str:
    """A figure as the paper's Table 1 prints it."""
    return "Inf" if math.isinf(value) else f"{value:.4f}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), line("---" for _ in header), *map(line, lines)]


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    table = io.StringIO()
    if lines:
        writer = csv.DictWriter(table, list(lines[0]), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    return table.getvalue()
