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
from .study_tables import (
    MANY,
    cases_csv,
    gains_table,
    markdown,
    ranking_table,
    size_table,
    study_csv,
    table_1,
    tests_csv,
    tests_table,
)
from .variants import Variant

__all__ = ["write_study"]

TEMPLATE = Path(__file__).with_name("study.html.jinja")


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
        info: what the study was made with, for the page; ``failed``: messages of failed variants by label.
        adc_window: ADC shown as black and as white.
    """
    failed = info.get("failed") or {}
    write_atomically(folder / "study_cases.csv", cases_csv(results))
    write_atomically(folder / "study_tests.csv", tests_csv(results))
    write_atomically(folder / "study.csv", study_csv(results))
    write_atomically(folder / "study.md", markdown(results, failed))
    shown = [strip for strip in strips(results, items, adc_window) if strip.masks]
    if shown:
        write_atomically(folder / "figure_2.png", figure_2(shown))
    lead = lead_measure(results)
    near = {name: seen_from(info[name], folder) for name in ("dataset_dir", "datalist") if info.get(name) is not None}
    native = [name for name in results.measures if name.startswith("native_")] or results.measures
    pairs = len(results.variants) * (len(results.variants) - 1) // 2
    page = render_page(
        TEMPLATE,
        info={**info, **near, **provenance()},
        cases=results.classes["all"],
        runs=sum(len(members) for members in results.runs.values()),
        leader=_leader(results, lead),
        verdict=results.verdict(),
        failed=failed,
        tables=[table_1(results, group, measures) for group, measures in results_groups(results)]
        + ([gains_table(results)] if results.gains else []),
        sizes=size_table(results, lead),
        size_measure=describe_measure(column(lead)),
        ranking=ranking_table(results, results.measures),
        plots=[draw(results, measure) for draw in (mean_plot, rank_plot) for measure in native],
        pairs=pairs,
        smallest_p=smallest_p(results.classes["all"], pairs),
        tests=[tests_table(results, measure) for measure in results.measures],
        many=len(results.variants) > MANY,
        curves=curve_plots(results),
        strips=shown,
        adc_window=adc_window,
        variants=[_variant(variant, results, folder) for variant in results.variants],
    )
    write_atomically(folder / "study.html", page)


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


def _variant(variant: Variant, results: Results, folder: Path) -> dict[str, Any]:
    return {
        "label": variant.label,
        "overrides": ", ".join(f"{key}: {value}" for key, value in variant.overrides.items()) or "nothing",
        "runs": [
            (str(run), Path(os.path.relpath(run.folder / "report.html", folder)).as_posix())
            for run in results.runs[variant.name]
        ],
    }
