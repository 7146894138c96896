"""The study's results on disk: tables, Figure 2 and the page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.layout import item_files
from ..evaluation.measures import column
from ..evaluation.statistics import smallest_p
from ..io.files import seen_from, write_atomically
from ..io.panels import panels_png
from ..io.volumes import read_volume
from ..report.page import provenance, render_page
from ..report.pictures import PRED_COLOUR, TRUTH_COLOUR, CaseSlices
from ..report.plots import Plot, curves, intervals, read_curves
from ..report.tables import read_rows
from . import study_tables as tables
from .results import Results, measure_text

__all__ = ["write_study"]

PANELS_A_ROW = 7


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
        items: MONAI data items of the evaluated cases, by case id.
        folder: of these files; each is written atomically.
        info: facts for the page; ``failed``: messages of failed variants by label.
        adc_window: ADC shown as black and as white.
    """
    failed = info.get("failed") or {}
    write_atomically(folder / "study_cases.csv", tables.cases_csv(results))
    write_atomically(folder / "study_tests.csv", tables.tests_csv(results))
    write_atomically(folder / "study.csv", tables.study_csv(results))
    write_atomically(folder / "study.md", tables.markdown(results, failed))
    strips = _strips(results, items, adc_window)
    if strips:
        write_atomically(folder / "figure_2.png", _figure_2(strips))
    near = {name: seen_from(info[name], folder) for name in ("dataset_dir", "datalist") if info.get(name) is not None}
    native = [name for name in results.measures if name.startswith("native_")] or results.measures
    pairs = len(results.variants) * (len(results.variants) - 1) // 2
    page = render_page(
        "study.html.jinja",
        Path(__file__).parent,
        info={**info, **near, **provenance()},
        results=results,
        cases=results.classes["all"],
        runs=sum(len(members) for members in results.runs.values()),
        tiles=_tiles(results),
        failed=failed,
        tables=tables.all_groups(results),
        sizes=tables.size_table(results),
        lead=measure_text(results.lead),
        ranking=tables.ranking_table(results, results.measures),
        plots=[draw(results, measure) for draw in (_means, _ranks) for measure in native],
        pairs=pairs,
        smallest_p=smallest_p(results.classes["all"], pairs),
        tests=[tables.tests_table(results, measure) for measure in results.measures],
        many=len(results.variants) > tables.MANY,
        curves=_curves(results),
        strips=strips,
        adc_window=adc_window,
        report_of=lambda run: Path(os.path.relpath(run.folder / "report.html", folder)).as_posix(),
    )
    write_atomically(folder / "study.html", page)


def _tiles(results: Results) -> list[dict[str, Any]]:
    """The first variant (all that share the place), its mean, and its share of first places."""
    known, ranks = column(results.lead), results.ranks[results.lead]
    order = results.by_rank(results.lead)
    first = [variant for variant in order if ranks[variant.name]["rank"] == ranks[order[0].name]["rank"]]
    figures = results.summary[order[0].name]["all"][results.lead]
    share = sum(ranks[variant.name]["share_of_draws_first"] for variant in first)
    return [
        {"label": f"first by {measure_text(results.lead)}", "wide": True,
         "value": " and ".join(variant.label for variant in first) or "–"},
        {"label": "its mean", "value": known.text(figures["mean"]), "interval": known.interval(figures)},
        {"label": "first again in other draws of the cases", "note": "of 10 000 bootstrap samples",
         "value": "–" if math.isnan(share) else f"{100 * share:.0f} %"},
    ]  # fmt: skip


def _means(results: Results, measure: str) -> Plot:
    """Each variant's values of a measure with their mean and interval, best first."""
    figures = {
        variant.label: {**results.summary[variant.name]["all"][measure],
                        "values": [row[measure] for row in results.cases[variant.name]]}
        for variant in results.by_rank(measure)
    }  # fmt: skip
    return intervals(figures, f"{measure_text(measure)} {column(measure).arrow}", column(measure).heading)


def _ranks(results: Results, measure: str) -> Plot:
    """Each variant's rank with its bootstrap interval."""
    figures = {}
    for variant in results.by_rank(measure):
        rank = results.ranks[measure][variant.name]
        label = f"{variant.label} ({100 * rank['share_of_draws_first']:.0f} %)"
        figures[label] = {**rank, "mean": None if math.isnan(rank["rank"]) else rank["rank"]}
    return intervals(figures, f"Rank by {measure_text(measure)}", "Rank (1 is best)")


def _curves(results: Results) -> list[Plot]:
    """Validation and training Dice by epoch, all variants in one plot."""
    labels = {variant.name: variant.label for variant in results.variants}
    found = {labels[of]: [read_curves(run.folder / "tensorboard") for run in runs] for of, runs in results.runs.items()}
    shown = []
    for tag, title in (("val_mean_dice", "Validation Dice"), ("train_mean_dice", "Training Dice")):
        lines = {label: [run[tag] for run in runs if tag in run] for label, runs in found.items()}
        if lines := {label: runs for label, runs in lines.items() if runs}:
            shown.append(curves(title, "Epoch", "Mean Dice, resampled grid", lines))
    return shown


class Strip(NamedTuple):
    """One case of Figure 2: maps and masks, the slice, and the masks of each panel (title, note)."""

    title: str
    slices: CaseSlices
    z: int
    panels: Mapping[tuple[str, str], list[str]]


def _strips(results: Results, items: Mapping[str, Mapping[str, Any]], adc_window: Sequence[float]) -> list[Strip]:
    """The fullest slices of the smallest and of the largest lesion, with the mask of each variant's first run."""
    rows = [row for row in next(iter(results.cases.values())) if row.get("lesion_fraction", 0) > 0]
    rows.sort(key=lambda row: row["lesion_fraction"])
    strips = []
    for kind, row in zip(("Smallest lesion", "Largest lesion"), rows[:1] + rows[1:][-1:], strict=False):
        files = item_files(items[row["case"]])
        image, label = read_volume(files.get("adc") or files["stacked"]), read_volume(files["label"])
        adc = image.array if image.array.ndim == 3 else image.array[..., 0]
        masks, panels = {"truth": label.array}, {("Truth", ""): ["truth"]}
        for variant in results.variants:
            mask = f"masks/{row['case']}_lesion.nii.gz"
            run = next((run for run in results.runs[variant.name] if (run.folder / mask).is_file()), None)
            if run is not None:
                key = f"mask of {variant.name}"  # a variant's name has no space
                masks[key] = read_volume(run.folder / mask).array
                found = next(one for one in read_rows(run.folder / "metrics.csv") if one["case"] == row["case"])
                note = f"Dice {column('native_dice').text(found['native_dice'])}"
                panels[variant.label, note] = ["truth", key]
        if len(panels) > 1:
            slices = CaseSlices({"ADC": adc}, masks, image.affine, {"ADC": adc_window})
            z, _ = slices.fullest()
            size = f"{100 * row['lesion_fraction']:.2g} % of the brain, slice {z + 1} of {slices.brain.shape[2]}"
            strips.append(Strip(f"{kind}: {row['case']}, {size}", slices, z, panels))
    return strips


def _figure_2(strips: Sequence[Strip]) -> bytes:
    rows = []
    for _, slices, z, masks in strips:
        panels = [slices.panel("ADC", z, "\n".join(title).strip(), shown) for title, shown in masks.items()]
        rows += [panels[start : start + PANELS_A_ROW] for start in range(0, len(panels), PANELS_A_ROW)]
    return panels_png(rows, "; ".join(strip.title for strip in strips), {TRUTH_COLOUR: "truth", PRED_COLOUR: "mask"})
