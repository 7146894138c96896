"""Results of a study on disk: tables, Figure 2 and the HTML page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.checks import Limits
from ..data.layout import item_files
from ..data.training_voxels import read_maps
from ..evaluation.measure import printed
from ..evaluation.measures import column
from ..evaluation.statistics import smallest_p
from ..io.files import seen_from, write_atomically
from ..io.panels import panels_png
from ..io.volumes import read_volume
from ..report.groups import Group
from ..report.page import provenance, render_page
from ..report.pictures import PRED_COLOUR, TRUTH_COLOUR, CaseSlices
from ..report.plots import Plot, curves, intervals, read_curves
from ..report.tables import read_rows
from ..runtime.text import csv_table
from .results import Results
from .variants import PUBLISHED

PANELS_A_ROW = 7
MANY = 8  # with more variants only tests against the best one are shown


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
    write_atomically(folder / "study_cases.csv", cases_csv(results))
    write_atomically(folder / "study_tests.csv", tests_csv(results))
    write_atomically(folder / "study.csv", study_csv(results))
    write_atomically(folder / "study.md", markdown(results, failed))
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
        tables=all_groups(results),
        known=column(results.lead),
        lead=column(results.lead).title,
        ranking=ranking_table(results, results.measures),
        plots=[draw(results, measure) for draw in (_means, _ranks) for measure in native],
        pairs=pairs,
        smallest_p=smallest_p(results.classes["all"], pairs),
        tests=[tests_table(results, measure) for measure in results.measures],
        many=len(results.variants) > MANY,
        curves=_curves(results),
        strips=strips,
        adc_window=adc_window,
        report_of=lambda run: Path(os.path.relpath(run.folder / "report.html", folder)).as_posix(),
    )
    write_atomically(folder / "study.html", page)


def _tiles(results: Results) -> list[dict[str, Any]]:
    """The best variant (or tied variants), its mean, and its share of first places."""
    known, ranks = column(results.lead), results.ranks[results.lead]
    order = results.by_rank(results.lead)
    first = [variant for variant in order if ranks[variant.name]["rank"] == ranks[order[0].name]["rank"]]
    figures = results.summary[order[0].name]["all"][results.lead]
    share = sum(ranks[variant.name]["share_of_draws_first"] for variant in first)
    return [
        {"label": f"first by {column(results.lead).title}", "wide": True,
         "value": " and ".join(variant.label for variant in first) or "–"},
        {"label": "its mean", "value": known.text(figures["mean"]), "interval": known.interval(figures)},
        {"label": "first in resampled cases", "note": "of 10 000 bootstrap samples",
         "value": "–" if math.isnan(share) else f"{100 * share:.0f} %"},
    ]  # fmt: skip


def _means(results: Results, measure: str) -> Plot:
    """Each variant's values of a measure with their mean and interval, best first."""
    figures = {
        variant.label: {**results.summary[variant.name]["all"][measure],
                        "values": [row[measure] for row in results.cases[variant.name]]}
        for variant in results.by_rank(measure)
    }  # fmt: skip
    return intervals(figures, f"{column(measure).title} {column(measure).arrow}", column(measure).heading)


def _ranks(results: Results, measure: str) -> Plot:
    """Each variant's rank with its bootstrap interval."""
    figures = {}
    for variant in results.by_rank(measure):
        rank = results.ranks[measure][variant.name]
        label = f"{variant.label} ({100 * rank['share_of_draws_first']:.0f} %)"
        figures[label] = {**rank, "mean": None if math.isnan(rank["rank"]) else rank["rank"]}
    return intervals(figures, f"Rank by {column(measure).title}", "Rank (1 is best)")


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
    """One case of Figure 2: maps and masks, slice index, and the masks of each panel (by title and note)."""

    title: str
    slices: CaseSlices
    z: int
    panels: Mapping[tuple[str, str], list[str]]


def _strips(results: Results, items: Mapping[str, Mapping[str, Any]], adc_window: Sequence[float]) -> list[Strip]:
    """The slices with most lesion of the smallest and largest lesion, with the mask of each variant's first run."""
    rows = [row for row in next(iter(results.cases.values())) if row.get("lesion_fraction", 0) > 0]
    rows.sort(key=lambda row: row["lesion_fraction"])
    strips = []
    for kind, row in zip(("Smallest lesion", "Largest lesion"), rows[:1] + rows[1:][-1:], strict=False):
        (adc, _), grid = read_maps(items[row["case"]], Limits())
        masks = {"truth": read_volume(item_files(items[row["case"]])["label"]).array}
        panels = {("Truth", ""): ["truth"]}
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
            slices = CaseSlices({"ADC": adc}, masks, grid.affine, {"ADC": adc_window})
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


class Cell(NamedTuple):
    """One cell: main line, further lines, whether the main line is bold, whether the cell is left-aligned."""

    text: str
    small: Sequence[str] = ()
    bold: bool = False
    left: bool = False

    @property
    def markdown(self) -> str:
        """The cell in one line."""
        main = f"**{self.text}**" if self.bold else self.text
        return (f"{main} ({', '.join(self.small)})" if self.small else main).replace("|", "\\|")


class Table(NamedTuple):
    """A table whose first column names the rows; ``note``: text above it."""

    title: str
    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    @property
    def markdown(self) -> list[str]:
        """Lines of a Markdown table."""
        lines = [self.header, [Cell("---")] * len(self.header), *self.rows]
        return [f"| {' | '.join(cell.markdown for cell in cells)} |" for cells in lines]


def all_groups(results: Results) -> list[Table]:
    """Table 1 of each group of measures, and the gains over baselines, if any."""
    tables = [table_1(results, group, measures) for group, measures in results.groups.items()]
    return [*tables, *([gains_table(results)] if results.gains else [])]


def table_1(results: Results, group: Group, measures: Sequence[str]) -> Table:
    """Means of a group of measures by variant, with published figures and epochs."""
    paper = group.grid == "resampled" and any(variant.published for variant in results.variants)
    published = {measure: key for measure in measures if paper and (key := column(measure).published)}
    best = {measure: results.best(measure) for measure in measures}
    header = [Cell("Variant")]
    for measure in measures:
        known, left_open = column(measure), PUBLISHED[published[measure]] if measure in published else ""
        header.append(Cell(f"{known.heading} {known.arrow}".strip(), [f"paper: {left_open}"] if left_open else []))
    rows = []
    for variant in results.variants:
        row = [Cell(variant.label)]
        for measure in measures:
            known, figures = column(measure), results.summary[variant.name]["all"][measure]
            notes = [known.interval(figures)] if figures["low"] is not None else []
            if figures["mean_as_printed"] == "Inf":
                notes.append(f"as printed: Inf ({figures['infinite']} of {results.classes['all']} infinite)")
            if figures["undefined"]:
                notes.append(f"{figures['undefined']} of {results.classes['all']} undefined")
            if (value := variant.published.get(published.get(measure, ""))) is not None:
                notes.append(f"paper: {'Inf' if math.isinf(value) else f'{value:.4f}'}")
            row.append(Cell(known.text(figures["mean"]), notes, variant.name in best[measure]))
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
        intervals = [
            [] if one["low"] is None else [f"{printed(one['low'], 3)} to {printed(one['high'], 3)}"] for one in gains
        ]
        means = [printed(one["mean"], 3, signed=True) for one in gains]
        rows.append([Cell(variant.label), *map(Cell, means, intervals)])
    note = "Gain in Dice over each, native grid: mean paired difference with its 95 % confidence interval."
    return Table("Against methods without a deep network", header, rows, note)


def ranking_table(results: Results, measures: Sequence[str]) -> Table:
    """Ranks by each measure, with their interval and the share of first places."""
    header, rows = [Cell("Variant")], [[Cell(variant.label)] for variant in results.variants]
    for measure in measures:
        values = results.compared[measure].values()
        count = sum(all(map(math.isfinite, of_case)) for of_case in zip(*values, strict=True))
        known = column(measure)
        header.append(Cell(known.label, [f"{known.grid} grid", f"{count} of {results.classes['all']} cases"]))
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
    header = [Cell("A"), Cell("B", left=True)]
    header += map(Cell, ("Cases", f"Median of A − B{unit}", "p", "p (Holm)", "Effect size"))
    shown = [row for row in results.tests[measure] if len(labels) <= MANY or leader in (row["a"], row["b"])]
    rows = [
        [
            Cell(labels[row["a"]]), Cell(labels[row["b"]], left=True), Cell(str(row["cases"])),
            Cell(known.text(row["median_difference"])), Cell(_p(row["p"])),
            Cell(_p(row["p_holm"]), bold=row["p_holm"] < 0.05), Cell(printed(row["effect_size"], 2, signed=True)),
        ]
        for row in shown
    ]  # fmt: skip
    return Table(known.title, header, rows)


def markdown(results: Results, failed: Mapping[str, str] | None = None) -> str:
    """Markdown of failed variants, verdict, Table 1, ranking by Dice and tests of Dice."""
    text = [f"Failed, not in the tables: {', '.join(failed)}.", ""] if failed else []
    text += [verdict, ""] if (verdict := results.verdict()) else []
    for table in all_groups(results):
        text += [f"## {table.title}", "", *([table.note, ""] if table.note else []), *table.markdown, ""]
    what = column(results.lead).title
    text += [f"## Ranking by {what}", "", *ranking_table(results, [results.lead]).markdown, ""]
    text += [f"## Paired tests of {what}", ""]
    least = smallest_p(results.classes["all"], len(results.tests[results.lead]))
    if least > 0.05:
        text += [f"With so few cases the smallest p after Holm's correction is {least:.2g}.", ""]
    return "\n".join([*text, *tests_table(results, results.lead).markdown]) + "\n"


def study_csv(results: Results) -> str:
    """Table 1 as CSV: one row per variant and lesion size class, ``all`` first.

    Each measure has its mean over the finite values, the 95 % confidence interval (``_low``, ``_high``), the mean in
    the paper's notation (``_mean_as_printed``) and the number of finite values (``_defined``).
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
    """CSV of every variant's values in every case."""
    return csv_table([{"variant": name, **row} for name, rows in results.cases.items() for row in rows])


def tests_csv(results: Results) -> str:
    """CSV of the paired tests of all measures."""
    return csv_table([{"measure": measure, **row} for measure, rows in results.tests.items() for row in rows])


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
