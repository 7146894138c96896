"""Results as HTML pages without other files or network access."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..evaluation.calibration import CaseProbabilities
from ..evaluation.measures import Measure, column
from ..io.files import seen_from, sha256_of, write_atomically
from ..runtime.environment import versions
from . import plots, tables
from .pictures import PRED_COLOUR, TRUTH_COLOUR, WINDOWS, CaseSlices, SliceView
from .table import GROUPS, Cell, Group, Table, case_columns, figures_cell, grouped, heading_cell

__all__ = ["GAIN", "cases_text", "provenance", "render_page", "write_case_page", "write_report"]

HERE = Path(__file__).parent
HEADLINE = ("dice", "masd_mm", "nsd")
MOST_LESIONS = 500  # rows of the page's table; lesions.csv has all
GAIN = Measure("gain", "gain", "")


def provenance(checkpoints: Sequence[str | Path] = (), folder: str | Path = ".") -> dict[str, Any]:
    """What a result came from: ``date`` (local time with its offset), ``checkpoints`` (``sha256`` and ``path``, as seen
    from ``folder``), ``versions`` of Python and the packages that measure."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "checkpoints": [{"path": seen_from(path, folder), "sha256": sha256_of(path)} for path in checkpoints],
        "versions": versions(),
    }


def write_report(
    path: Path,
    rows: tables.Rows,
    summary: Mapping[str, Any],
    views: Mapping[str, Sequence[SliceView]] | None = None,
    curves: Mapping[str, Mapping[int, float]] | None = None,
    windows: Mapping[str, Sequence[float]] = WINDOWS,
    probabilities: Sequence[CaseProbabilities] = (),
    lesions: tables.Rows = (),
    after: Sequence[CaseProbabilities] = (),
    regions: tables.Rows = (),
) -> None:
    """Write ``report.html``.

    Args:
        path: of the page.
        rows: one a case.
        summary: of the same rows, by :func:`.write_results`.
        views: the slices of each case; cases without any are in the table only.
        curves: of the training, by :func:`.read_curves`.
        windows: values shown as black and as white in the slices, by map.
        probabilities: of the cases, where there are any.
        lesions: rows of ``lesions.csv``.
        after: as ``probabilities``, calibrated.
        regions: rows of ``regions.csv``.
    """
    probability_plots = []
    if probabilities:
        probability_plots = [plots.reliability(probabilities, after), plots.dice_by_threshold(probabilities)]
    page = render_page(
        "report.html.jinja",
        summary=summary,
        verdict=f"{tables.verdict(rows)} {tables.readers_sentence(summary)}".strip(),
        tiles=_tiles(summary, tables.lead_grid(rows)),
        lead_grid=tables.lead_grid(rows),
        tables=[
            *_site_tables(summary, tables.lead_grid(rows)),
            *(_summary_table(group, members, summary) for group, members in grouped(rows[0])),
            *_region_tables(regions),
        ],
        metric_plots=_metric_plots(rows),
        volume_plots=[draw(rows) for draw in (plots.dice_by_volume, plots.bland_altman)],
        probability_plots=probability_plots,
        lesion_plots=[plots.lesion_recall(lesions), plots.lesion_f1(lesions, len(rows))] if lesions else [],
        lesions=_largest(lesions),
        lesion_count=len(lesions),
        training_plots=plots.training_curves(curves or {}),
        ensemble_plot=plots.ensemble_gain(rows),
        case_columns=case_columns(rows[0]),
        cases=tables.worst_first(rows),
        views=views or {},
        glossary={known.bare: known.meaning for known in [column(name) for name in rows[0] if name != "case"]},
        windows=windows,
    )
    write_atomically(path, page)


def write_case_page(
    path: Path,
    slices: CaseSlices,
    title: str,
    tiles: Sequence[tuple[str, str]],
    notes: Sequence[str],
    facts: Mapping[str, str],
    lesions: tables.Rows = (),
    regions: tables.Rows = (),
    diagram: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the page of a segmented case: its figures, slices of its maps, where it all came from.

    Args:
        path: of the page.
        slices: of the maps, with the mask ``pred``.
        title: the case.
        tiles: label and value of each figure.
        notes: remarks on the input.
        facts: files, weights, versions.
        lesions: rows of :func:`.lesions_of`.
        regions: of an atlas, if there is one: ``region``, ``number``, ``volume_ml``, ``injured_ml`` and ``share``.
        diagram: of :func:`.region_slices`.
    """
    header = [Cell(name) for name in ("Region", "Injured", "Injured (ml)", "Volume (ml)")]
    parts = [
        list(map(Cell, (f"{row['number']} {row['region']}", f"{100 * row['share']:.1f} %",
                        f"{row['injured_ml']:.2f}", f"{row['volume_ml']:.2f}")))
        for row in regions
    ]  # fmt: skip
    views = [slices.view(z) for z in slices.spread()]
    shown = [{"label": label, "value": value} for label, value in tiles]
    page = render_page(
        "segmented.html.jinja", title=title, tiles=shown, notes=notes, facts=facts, views=views,
        windows=slices.windows, lesions=_largest(lesions), lesion_count=len(lesions),
        regions=Table("Share of each region that is injured", header, parts),
        diagram=diagram,
    )  # fmt: skip
    write_atomically(path, page)


def render_page(template: str, folder: Path = HERE, **context: Any) -> str:
    """Render a Jinja2 template of a folder, which may extend and import those of this one.

    What comes from data is escaped. The page's policy allows no script but ``page.js``, whose hash it names, and
    nothing from any other place.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"decimals": _decimals, "sort_key": _sort_key}
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    always = {"style": style, "script": script, "script_hash": f"sha256-{digest}", "column": column,
              "truth_colour": TRUTH_COLOUR, "pred_colour": PRED_COLOUR}  # fmt: skip
    return environment.get_template(template).render(**always, **context)


def _largest(lesions: tables.Rows) -> tables.Rows:
    return sorted(lesions, key=lambda row: -row["volume_ml"])[:MOST_LESIONS]


def _decimals(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _sort_key(value: Any) -> Any:
    """Undefined values are last in page.js if they are empty."""
    return "" if value is None or value != value else value


def _tiles(summary: Mapping[str, Any], grid: str) -> list[dict[str, str]]:
    """The headline figures."""
    tiles = []
    for name in (f"{grid}_{name}" for name in HEADLINE):
        if figures := summary["metrics"].get(name):
            known = column(name)
            tiles.append(
                {"label": f"mean {known.label}", "value": known.with_unit(figures["mean"]),
                 "interval": known.interval(figures), "note": _share(figures, summary["cases"])}
            )  # fmt: skip
    return tiles


def _summary_table(group: Group, members: Sequence[Measure], summary: Mapping[str, Any]) -> Table:
    """Means of a group of measures, over all cases and by lesion size."""
    sizes = summary["by_size_class"]
    header = [Cell("Measure"), Cell("All", [cases_text(summary["cases"])])]
    header += [Cell(size, [cases_text(part["cases"])]) for size, part in sizes.items()]
    header += [Cell("Median"), Cell("As printed"), Cell("Defined", ["/ undefined / ∞"])]
    rows = []
    for known in members:
        overall = summary["metrics"][known.name]
        row = [heading_cell(known), figures_cell(known, overall, style="overall")]
        for part in sizes.values():
            figures = part["metrics"][known.name]
            row.append(figures_cell(known, figures, _share(figures, part["cases"])))
        counts = " / ".join(str(overall[name]) for name in ("defined", "undefined", "infinite"))
        rows.append([*row, Cell(known.text(overall["median"])), Cell(overall["mean_as_printed"]), Cell(counts)])
    return Table(group.title, header, rows, group.explanation, group.folded)


def _site_tables(summary: Mapping[str, Any], grid: str) -> list[Table]:
    """The headline measures by hospital; nothing where there is one."""
    if not (sites := summary["by_site"]):
        return []
    header = [Cell("Measure"), *(Cell(site, [cases_text(part["cases"])]) for site, part in sites.items())]
    rows = [
        [heading_cell(known), *(figures_cell(known, part["metrics"][known.name]) for part in sites.values())]
        for known in (column(f"{grid}_{name}") for name in HEADLINE)
    ]
    return [Table("By hospital", header, rows)]


def _region_tables(regions: tables.Rows) -> list[Table]:
    """Injury by region, summed over the cases; nothing without an atlas."""
    if not regions:
        return []
    header = [Cell(n) for n in ("Region", "Cases injured", "Lesion (ml)", "Predicted (ml)", "Error of the share")]
    rows = []
    for name in dict.fromkeys(row["region"] for row in regions):
        cases = [row for row in regions if row["region"] == name]
        hurt = sum(row["lesion_ml"] > 0 for row in cases)
        lesion, pred = (sum(row[part] for row in cases) for part in ("lesion_ml", "predicted_ml"))
        error = 100 * sum(abs(row["predicted_share"] - row["share"]) for row in cases) / len(cases)
        texts = (name, f"{hurt} of {len(cases)}", f"{lesion:.2f}", f"{pred:.2f}", f"{error:.1f} %")
        rows.append(list(map(Cell, texts)))
    note = "Volumes of all cases together, mean error; cases that the atlas does not fit are excluded."
    return [Table("Injured regions", header, rows, note)]


def cases_text(count: int) -> str:
    """Their number."""
    return f"{count} case{'s' * (count != 1)}"


def _share(figures: Mapping[str, Any], cases: int) -> str:
    return "" if figures["defined"] == cases else f"{figures['defined']} of {cases} defined"


def _metric_plots(rows: tables.Rows) -> list[tuple[str, list[plots.Plot]]]:
    """The plots of each group of measures that say how good a prediction is, each measure once."""
    seen: set[str] = set()
    result = []
    for group, members in grouped(rows[0]):
        if group in GROUPS[:4]:  # not the same again on the other grid
            names = [known.name for known in members if known.arrow and known.name not in seen]
            seen.update(names)
            result += [(group.title, [plots.metric_by_size(rows, name) for name in names])] if names else []
    return result
