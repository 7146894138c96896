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
from ..evaluation.measure import printed
from ..evaluation.measures import column
from ..io.files import seen_from, sha256_of, write_atomically
from ..runtime.environment import versions
from . import plots, tables
from .groups import GROUPS, case_columns, grouped
from .pictures import PRED_COLOUR, TRUTH_COLOUR, WINDOWS, CaseSlices, SliceView

HERE = Path(__file__).parent
HEADLINE = ("dice", "masd_mm", "nsd")
MOST_LESIONS = 500  # rows of the page's table; lesions.csv has all


def provenance(checkpoints: Sequence[str | Path] = (), folder: str | Path = ".") -> dict[str, Any]:
    """Provenance of a result: ``date`` (local time with its offset), ``checkpoints`` (``sha256``, and ``path`` relative
    to ``folder``), ``versions`` of Python and packages."""
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
    """Write ``report.html`` from the rows of ``metrics.csv`` and their summary (:func:`.write_results`).

    Args:
        path: of the page.
        rows: one per case.
        summary: of the same rows.
        views: the slices of each case; cases without slices are in the table only.
        curves: of the training, by :func:`.read_curves`.
        windows: values shown as black and as white in the slices, by map.
        probabilities: of the cases.
        lesions: rows of ``lesions.csv``.
        after: calibrated probabilities of the cases.
        regions: rows of ``regions.csv``.
    """
    grid = tables.lead_grid(rows)
    names = [name for name in rows[0] if name != "case"]
    page = render_page(
        "report.html.jinja",
        summary=summary,
        verdict=f"{tables.verdict(rows)} {tables.readers_sentence(summary)}".strip(),
        lead_grid=grid,
        headline=[column(f"{grid}_{name}") for name in HEADLINE],
        groups=grouped(rows[0]),
        regions=regions,
        metric_plots=_metric_plots(rows),
        volume_plots=[plots.dice_by_volume(rows), plots.bland_altman(rows)],
        probability_plots=[plots.reliability(probabilities, after), plots.dice_by_threshold(probabilities)]
        if probabilities
        else [],
        lesion_plots=[plots.lesion_recall(lesions), plots.lesion_f1(lesions, len(rows))] if lesions else [],
        lesions=_largest(lesions),
        lesion_count=len(lesions),
        training_plots=plots.training_curves(curves or {}),
        ensemble_plot=plots.ensemble_gain(rows),
        case_columns=case_columns(rows[0]),
        cases=tables.worst_first(rows),
        views=views or {},
        glossary={name.removeprefix("native_").removeprefix("resampled_"): column(name).meaning for name in names},
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
    """Write the page of a segmented case: its figures, slices of its maps, and provenance.

    Args:
        path: of the page.
        slices: of the maps, with the mask ``pred``.
        title: the case.
        tiles: label and value of each figure.
        notes: remarks on the input.
        facts: files, weights, versions.
        lesions: rows of :func:`.lesions_of`.
        regions: injury of each region of an atlas, by :class:`scripts.scanner.regions.RegionAtlas`.
        diagram: of :func:`.region_slices`.
    """
    page = render_page(
        "segmented.html.jinja", title=title, tiles=tiles, notes=notes, facts=facts,
        views=[slices.view(z) for z in slices.spread()], windows=slices.windows, lesions=_largest(lesions),
        lesion_count=len(lesions), regions=regions, diagram=diagram,
    )  # fmt: skip
    write_atomically(path, page)


def render_page(template: str, folder: Path = HERE, **context: Any) -> str:
    """Render a Jinja2 template of a folder; it may extend and import the templates of this package.

    Data are escaped. The page's content security policy allows only the script ``page.js``, by its hash, and no
    external resources.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["decimals"] = printed
    # page.js sorts empty values last
    environment.filters["sort_key"] = lambda value: "" if value is None or value != value else value
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    always = {"style": style, "script": script, "script_hash": f"sha256-{digest}", "column": column,
              "truth_colour": TRUTH_COLOUR, "pred_colour": PRED_COLOUR}  # fmt: skip
    return environment.get_template(template).render(**always, **context)


def _largest(lesions: tables.Rows) -> tables.Rows:
    return sorted(lesions, key=lambda row: -row["volume_ml"])[:MOST_LESIONS]


def _metric_plots(rows: tables.Rows) -> list[tuple[str, list[plots.Plot]]]:
    """The plots of each group's measures with a direction of better values, each measure once."""
    seen: set[str] = set()
    result = []
    for group, members in grouped(rows[0]):
        names = [known.name for known in members if known.arrow and known.name not in seen]
        if names and group in GROUPS[:4]:  # skip measures repeated on the resampled grid
            seen.update(names)
            result.append((group.title, [plots.metric_by_size(rows, name) for name in names]))
    return result
