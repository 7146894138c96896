"""The report as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import math
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
from .columns import GROUPS, Group, case_columns, grouped
from .pictures import PRED_COLOUR, TRUTH_COLOUR, SliceView
from .table import Cell, Table, figures_cell, heading_cell
from .tables import BASELINES, best_baseline, gain_over, readers_sentence, verdict

__all__ = ["lesion_table", "provenance", "render_page", "write_report"]

HERE = Path(__file__).parent
HEADLINE = ("dice", "masd_mm", "nsd")
MOST_LESIONS = 500  # rows of the page's table; lesions.csv has all


def provenance(checkpoints: Sequence[str | Path] = (), folder: str | Path = ".") -> dict[str, Any]:
    """What a result came from, for the summary and the page.

    Args:
        checkpoints: files with weights.
        folder: that their paths are seen from (:func:`scripts.io.files.seen_from`).

    Returns:
        ``date`` (local time with its offset), ``checkpoints`` (``path`` and ``sha256`` of each), ``versions`` of Python
        and the packages that measure, as far as they are installed.
    """
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
    curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    windows: Mapping[str, Sequence[float]] | None = None,
    probabilities: Sequence[CaseProbabilities] = (),
    lesions: tables.Rows = (),
    after: Sequence[CaseProbabilities] = (),
) -> None:
    """Write ``report.html``.

    Args:
        path: of the page.
        rows: one a case.
        summary: of the same rows, as :func:`scripts.report.tables.write_results` returns it.
        views: the slices of each case; cases without any are in the table only.
        curves: of the training, as :func:`scripts.report.plots.read_curves` returns them.
        windows: what is black and what is white in the slices, by map, for the legend.
        probabilities: of the cases, where there are any.
        lesions: rows of ``lesions.csv``.
        after: as ``probabilities``, calibrated.
    """
    order = tables.worst_first(rows)
    views = views or {}
    page = render_page(
        "report.html.jinja",
        summary=summary,
        verdict=" ".join([verdict(rows), readers_sentence(summary)]).strip(),
        headline=_headline(summary, rows),
        lead_grid=tables.lead_grid(rows),
        facts=_facts(summary["info"]),
        tables=[
            *_site_table(summary, tables.lead_grid(rows)),
            *(_summary_table(group, members, summary) for group, members in grouped(rows[0])),
        ],
        classes={name: part["cases"] for name, part in summary["by_size_class"].items()},
        metric_plots=_metric_plots(rows),
        volume_plots=[plots.dice_by_volume(rows), plots.volumes(rows), plots.bland_altman(rows)],
        probability_plots=[plots.reliability(probabilities, after), plots.dice_by_threshold(probabilities)]
        if probabilities
        else [],
        lesion_plots=[plots.lesion_recall(lesions), plots.lesion_f1(lesions, len(rows))] if lesions else [],
        lesions=lesion_table(lesions),
        training_plots=plots.training_curves(curves or {}),
        ensemble_plot=plots.ensemble_gain(rows),
        case_columns=case_columns(rows[0]),
        cases=[_case(n, rows[i], views.get(str(rows[i]["case"]), ())) for n, i in enumerate(order, 1)],
        glossary={known.bare: known.meaning for known in [column(name) for name in rows[0] if name != "case"]},
        windows=windows or {},
    )
    write_atomically(path, page)


def render_page(template: str | Path, **context: Any) -> str:
    """Render a Jinja2 template, everything that comes from data escaped.

    The page's policy allows no script but ``page.js``, whose hash it names, and nothing from any other place.

    Args:
        template: its file name in this folder, or the path of another, which may include those of this folder.
        context: what it shows; it may also use ``style``, ``script`` and ``script_hash``.
    """
    path = HERE / template
    environment = Environment(
        loader=FileSystemLoader([path.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return environment.get_template(path.name).render(
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        truth_colour=TRUTH_COLOUR,
        pred_colour=PRED_COLOUR,
        **context,
    )


def _headline(summary: Mapping[str, Any], rows: tables.Rows) -> list[dict[str, str]]:
    """The headline figures: label, value, interval."""
    tiles = []
    grid = tables.lead_grid(rows)
    for name in (f"{grid}_{name}" for name in HEADLINE):
        if figures := summary["metrics"].get(name):
            known = column(name)
            unit = f" {known.unit}" if known.unit else ""
            tiles.append(
                {
                    "label": f"mean {known.label}",
                    "value": known.text(figures["mean"]) + (unit if figures["mean"] is not None else ""),
                    "interval": known.interval(figures),
                    "note": _share(figures, summary["cases"]),
                }
            )
    best = best_baseline(rows)
    gain = gain_over(rows, best) if best else None
    if best and gain and gain["mean"] is not None:
        baseline, signed = BASELINES[best], Measure("gain", "gain", "")
        unsure = "; the interval includes 0" if gain["low"] is not None and gain["low"] <= 0 <= gain["high"] else ""
        tiles.append(
            {
                "label": f"Dice gained over {baseline}",
                "value": ("+" if gain["mean"] > 0 else "") + signed.text(gain["mean"]),
                "interval": signed.interval(gain),
                "note": f"best without a deep network: {signed.text(summary['metrics'][best]['mean'])}{unsure}",
            }
        )
    return tiles


def _summary_table(group: Group, members: Sequence[Measure], summary: Mapping[str, Any]) -> Table:
    """Means of a group of measures, over all cases and by lesion size."""
    parts = {"All": summary, **summary["by_size_class"]}
    header = [Cell("Measure"), *(Cell(size, [_count(part["cases"])]) for size, part in parts.items())]
    header += [Cell("Median"), Cell("As printed"), Cell("Defined", ["/ undefined / ∞"])]
    rows = []
    for known in members:
        overall = summary["metrics"][known.name]
        row = [heading_cell(known), figures_cell(known, overall, style="overall")]
        for part in summary["by_size_class"].values():
            figures = part["metrics"][known.name]
            row.append(figures_cell(known, figures, _share(figures, part["cases"])))
        counts = " / ".join(str(overall[name]) for name in ("defined", "undefined", "infinite"))
        rows.append([*row, Cell(known.text(overall["median"])), Cell(overall["mean_as_printed"]), Cell(counts)])
    return Table(group.title, header, rows, group.explanation, group.folded)


def _site_table(summary: Mapping[str, Any], grid: str) -> list[Table]:
    """The headline measures by hospital; nothing where there is one."""
    if not (sites := summary["by_site"]):
        return []
    header = [Cell("Measure"), *(Cell(site, [_count(part["cases"])]) for site, part in sites.items())]
    rows = []
    for known in (column(f"{grid}_{name}") for name in HEADLINE):
        cells = [figures_cell(known, part["metrics"][known.name]) for part in sites.values()]
        rows.append([heading_cell(known), *cells])
    return [Table("By hospital", header, rows)]


def _count(cases: int) -> str:
    return f"{cases} case{'s' * (cases != 1)}"


def _share(figures: Mapping[str, Any], cases: int) -> str:
    return "" if figures["defined"] == cases else f"{figures['defined']} of {cases} defined"


def _metric_plots(rows: tables.Rows) -> list[tuple[str, list[plots.Plot]]]:
    """The plots of each group of measures that say how good a prediction is, each measure once."""
    seen: set[str] = set()
    result = []
    for group, members in grouped(rows[0]):
        if group in GROUPS[:4]:  # not the same again on the other grid
            names = [known.name for known in members if known.better in ("higher", "lower") and known.name not in seen]
            seen.update(names)
            result.append((group.title, [plots.metric_by_size(rows, name) for name in names]))
    return result


def _case(number: int, row: Mapping[str, Any], views: Sequence[SliceView]) -> dict[str, Any]:
    def sortable(value: Any) -> Any:
        return "" if isinstance(value, float) and math.isnan(value) else value

    cells = []
    for known in case_columns(row):
        value = row[known.name]
        text = value if isinstance(value, str) else known.text(value)
        size = row.get("lesion_fraction", 0.0)
        cells.append({"text": text, "value": sortable(size if known.name == "size_class" else value)})
    grid = tables.lead_grid([row])
    measures = {
        f"{grid}_dice": "Dice",
        f"{grid}_masd_mm": "MASD",
        f"{grid}_nsd": "NSD",
        "baseline_dice": "threshold’s Dice",
    }
    facts = [f"{label} {_with_unit(name, row[name])}" for name, label in measures.items() if name in row]
    facts.append(f"lesion {_with_unit('lesion_ml', row['lesion_ml'])}")
    facts.append(f"predicted {_with_unit('predicted_ml', row['predicted_ml'])}")
    return {
        "number": number,
        "name": str(row["case"]),
        "size_class": row["size_class"],
        "cells": cells,
        "facts": facts,
        "views": views,
    }


def lesion_table(rows: tables.Rows) -> dict[str, Any]:
    """Headings and cells (text, sort key) of a table of lesions, the largest first; ``count``: of all ``rows``."""

    def cells(row: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
        def cell(name: str, digits: int) -> tuple[str, Any]:
            value = row.get(name)
            return ("–", "") if value is None else (f"{value:.{digits}f}".replace("-", "−"), value)

        slices = "–".join(dict.fromkeys([str(row["first_slice"]), str(row["last_slice"])]))
        found = {
            "Case": (str(row["case"]), str(row["case"])), "Mask": (row.get("mask", ""), row.get("mask")),
            "No.": (str(row["lesion"]), row["lesion"]), "Volume (ml)": cell("volume_ml", 2),
            "Centre (mm)": (", ".join(cell(f"{axis}_mm", 0)[0] for axis in "xyz"), row["z_mm"]),
            "Slices": (slices, row["first_slice"]), "Mean ADC": cell("mean_adc", 0),
            "Lowest ADC": cell("lowest_adc", 0), "Mean Z": cell("mean_z", 1), "Lowest Z": cell("lowest_z", 1),
            "Mean prob.": cell("mean_probability", 2), "Real": cell("real_probability", 2),
        }  # fmt: skip
        if not calibrated:
            del found["Real"]
        if "mask" not in row:  # without a truth, of one case
            return {heading: value for heading, value in found.items() if heading not in ("Case", "Mask")}
        match = f"{row['match']}" if row["matched"] else f"({row['match']})" if row["match"] else "–"
        return {
            **found,
            "Partner": (match, row["match"] or ""),
            "Dice with it": cell("dice", 2) if row["match"] else ("–", ""),
        }

    calibrated = any(row.get("real_probability") is not None for row in rows)
    shown = [cells(row) for row in sorted(rows, key=lambda row: -row["volume_ml"])[:MOST_LESIONS]]
    return {
        "count": len(rows),
        "headings": list(shown[0]) if shown else [],
        "rows": [list(one.values()) for one in shown],
    }


def _with_unit(name: str, value: float) -> str:
    known = column(name)
    text = known.text(value)
    return f"{text} {known.unit}" if known.unit and text not in "–∞" else text


def _facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was evaluated, as pairs of words; nested values one a line, what was left open not at all."""
    facts = []
    for key, value in info.items():
        if key in ("checkpoints", "versions", "date"):
            continue
        pairs = value.items() if isinstance(value, Mapping) else [("", value)]
        for name, one in pairs:
            label = f"{key.replace('_', ' ')} {name}".strip() if name else key.replace("_", " ")
            if one is not None:
                facts.append((label, str(one)))
    return facts
