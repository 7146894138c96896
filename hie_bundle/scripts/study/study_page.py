"""The study's results on disk: tables, Figure 2 and the page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.measures import column
from ..evaluation.statistics import smallest_p
from ..io.files import seen_from, write_atomically
from ..report.page import provenance, render_page
from .figures import curve_plots, figure_2, mean_plot, rank_plot, strips
from .results import Results, describe_measure, lead_measure, results_groups
from .study_tables import GAINED, cases_csv, gained, markdown, printed, study_csv, tests_csv
from .variants import PUBLISHED, Variant

__all__ = ["write_study"]

TEMPLATE = Path(__file__).with_name("study.html.jinja")
MANY = 8  # variants, from which on the page shows tests against the best one only


def write_study(
    results: Results,
    items: Mapping[str, Mapping[str, Any]],
    folder: Path,
    info: Mapping[str, Any],
    adc_window: Sequence[float] = (0, 2500),
) -> None:
    """Write ``study.csv``, ``study.md``, ``study_cases.csv``, ``study_tests.csv``, ``figure_2.png``, ``study.html``.

    Args:
        results: of the study.
        items: the MONAI data items of the evaluated cases, by case id, for the pictures.
        folder: where they go; each file is complete or as it was before.
        info: what the study was made with, for the page.
        adc_window: ADC shown as black and as white.
    """
    write_atomically(folder / "study_cases.csv", cases_csv(results))
    write_atomically(folder / "study_tests.csv", tests_csv(results))
    write_atomically(folder / "study.csv", study_csv(results))
    write_atomically(folder / "study.md", markdown(results, info.get("failed") or {}))
    shown = [strip for strip in strips(results, items, adc_window) if strip.masks]
    if shown:
        write_atomically(folder / "figure_2.png", figure_2(shown))
    lead = lead_measure(results)
    leader = results.by_rank(lead)[0]
    page = render_page(
        TEMPLATE,
        info={**info, **_near_paths(info, folder), **provenance()},
        cases=results.classes["all"],
        runs=sum(len(members) for members in results.runs.values()),
        leader=_leader(results, lead),
        verdict=results.verdict(),
        failed=info.get("failed") or {},
        gains={baseline: [gained(of[v.name]) for v in results.variants] for baseline, of in results.gains.items()},
        gained=GAINED,
        tables=[_table_1(results, group, measures) for group, measures in results_groups(results)],
        sizes=_by_size(results, lead),
        size_measure=describe_measure(column(lead)),
        classes=results.classes,
        rankings=[_ranking(results, measure) for measure in results.measures],
        plots=[draw(results, measure) for draw in (mean_plot, rank_plot) for measure in _plotted(results)],
        pairs=(pairs := len(results.variants) * (len(results.variants) - 1) // 2),
        smallest_p=smallest_p(results.classes["all"], pairs),
        tests=[_tests(results, measure, leader) for measure in results.measures],
        many=len(results.variants) > MANY,
        curves=curve_plots(results),
        strips=shown,
        adc_window=adc_window,
        variants=[_variant(variant, results, folder) for variant in results.variants],
    )
    write_atomically(folder / "study.html", page)


def _near_paths(info: Mapping[str, Any], folder: Path) -> dict[str, str]:
    return {name: seen_from(info[name], folder) for name in ("dataset_dir", "datalist") if info.get(name) is not None}


def _plotted(results: Results) -> list[str]:
    """The native grid's Dice and surface measures."""
    return [name for name in results.measures if name.startswith("native_")] or results.measures


def _leader(results: Results, measure: str) -> dict[str, str]:
    """Who is first, and how surely; of several that share the place, all."""
    known = column(measure)
    ranks = results.ranks[measure]
    order = results.by_rank(measure)
    first = [variant for variant in order if ranks[variant.name]["rank"] == ranks[order[0].name]["rank"]]
    figures = results.summary[order[0].name]["all"][measure]
    shares = sum(ranks[variant.name]["share_of_draws_first"] for variant in first)
    return {
        "label": " and ".join(variant.label for variant in first) or "–",
        "measure": describe_measure(known),
        "mean": known.text(figures["mean"]),
        "interval": known.interval(figures),
        "share": "–" if math.isnan(shares) else f"{100 * shares:.0f} %",
    }


def _table_1(results: Results, group: Any, measures: Sequence[str]) -> dict[str, Any]:
    best = {measure: results.best(measure) for measure in measures}
    published = {measure: group.figure(measure) for measure in measures if group.figure(measure)}
    best_published = {measure: _best_published(results, measure, key) for measure, key in published.items()}
    lines = []
    for variant in results.variants:
        cells = []
        for measure in measures:
            known = column(measure)
            figures = results.summary[variant.name]["all"][measure]
            key = published.get(measure, "")
            cells.append(
                {
                    "mean": known.text(figures["mean"]),
                    "best": variant.name in best[measure],
                    "interval": known.interval(figures),
                    "notes": _undefined(figures, results.classes["all"]),
                    "paper": printed(variant.published[key]) if key in variant.published else "",
                    "paper_best": variant.name in best_published.get(measure, ()),
                }
            )
        trained, chosen = results.epochs[variant.name]
        lines.append(
            {
                "label": variant.label,
                "cells": cells,
                "epochs": f"{trained:.4g}",
                "best_epoch": f"{chosen:.4g}",
                "paper_epochs": f"{variant.published['epochs']:g}"
                if published and "epochs" in variant.published
                else "",
            }
        )
    return {
        "title": group.title,
        "explanation": group.explanation if any(v.published for v in results.variants) or not published else "",
        "columns": [column(measure) for measure in measures],
        "left_open": {measure: PUBLISHED[key] for measure, key in published.items()},
        "lines": lines,
    }


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


def _by_size(results: Results, measure: str) -> list[dict[str, Any]]:
    known = column(measure)
    best = {size: results.best(measure, size) for size in results.classes}
    return [
        {
            "label": variant.label,
            "cells": [
                {
                    "mean": known.text(results.summary[variant.name][size][measure]["mean"]),
                    "interval": known.interval(results.summary[variant.name][size][measure]),
                    "best": variant.name in best[size],
                }
                for size in results.classes
            ],
        }
        for variant in results.variants
    ]


def _ranking(results: Results, measure: str) -> dict[str, Any]:
    cells = {}
    for variant in results.variants:
        rank = results.ranks[measure][variant.name]
        missing = math.isnan(rank["rank"])
        cells[variant.label] = {
            "rank": "–" if missing else f"{rank['rank']:g}",
            "interval": "" if missing else f"{rank['low']:g} to {rank['high']:g}",
            "share": "" if missing else f"first in {100 * rank['share_of_draws_first']:.0f} %",
        }
    rows = [results.compared[measure][variant.name] for variant in results.variants]
    used = sum(all(math.isfinite(value) for value in values) for values in zip(*rows, strict=True))
    known = column(measure)
    return {"label": known.label, "measure": describe_measure(known), "cases": used, "cells": cells}


def _tests(results: Results, measure: str, leader: Variant) -> dict[str, Any]:
    known = column(measure)
    labels = {variant.name: variant.label for variant in results.variants}
    lines = []
    for row in results.tests[measure]:
        if len(labels) > MANY and leader.name not in (row["a"], row["b"]):
            continue
        lines.append(
            {
                "a": labels[row["a"]],
                "b": labels[row["b"]],
                "cases": row["cases"],
                "difference": known.text(row["median_difference"]),
                "p": _p(row["p"]),
                "p_holm": _p(row["p_holm"]),
                "significant": row["p_holm"] < 0.05,
                "effect": "–" if math.isnan(row["effect_size"]) else f"{row['effect_size']:+.2f}".replace("-", "−"),
            }
        )
    return {"measure": describe_measure(known), "unit": known.unit, "lines": lines}


def _variant(variant: Variant, results: Results, folder: Path) -> dict[str, Any]:
    return {
        "label": variant.label,
        "overrides": ", ".join(f"{key}: {value}" for key, value in variant.overrides.items()) or "nothing",
        "runs": [
            (str(run), Path(os.path.relpath(run.folder / "report.html", folder)).as_posix())
            for run in results.runs[variant.name]
        ],
    }


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
