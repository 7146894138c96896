"""Results as tables on disk: one row per case, and a summary with confidence intervals."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.measures import MEASURES, column
from ..evaluation.statistics import describe
from ..io.files import write_atomically
from ..runtime.text import csv_table, csv_value

NO_NUMBERS = ("case", "site", "size_class")
# methods without a deep network, by the column of their Dice
BASELINES = {one.name: one.label.removeprefix("Dice of ") for one in MEASURES.values() if one.group == "baseline"}

Rows = Sequence[Mapping[str, Any]]


def write_results(
    rows: Rows, output_dir: Path, info: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``metrics.csv``, one row per case in the given order, and the summary as ``metrics.json``; return it.

    Args:
        rows: with equal keys; numbers may be NaN (undefined) or infinite.
        output_dir: created if needed; files are written atomically.
        info: data, weights, settings …; repeated in the summary.
        more: further entries of the summary.

    Raises:
        ValueError: when there are no rows.
    """
    if not rows:
        raise ValueError("there are no results to write.")
    write_atomically(output_dir / "metrics.csv", csv_table(rows))
    summary = {"info": dict(info), **summarise(rows), **(more or {})}
    write_atomically(output_dir / "metrics.json", json.dumps(summary, indent=2, allow_nan=False, default=str) + "\n")
    return summary


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.csv``, with numbers as floats."""
    with path.open(newline="", encoding="utf-8") as stream:
        return [
            {name: csv_value(value) if name in NO_NUMBERS else float(value) for name, value in row.items()}
            for row in csv.DictReader(stream)
        ]


def summarise(rows: Rows) -> dict[str, Any]:
    """Means, confidence intervals and numbers of defined cases of all metrics.

    Returns:
        ``cases``; ``empty``: number of cases with an empty truth, an empty prediction, both; ``metrics``: for each
        numeric column :func:`.describe` with its defaults (10 000 seeded resamples, 95 %); ``by_size_class``: ``cases``
        and ``metrics`` of each lesion size class; ``by_site``: the same for each hospital, if there are several;
        ``volume_agreement_ml`` as in :func:`volume_agreement`.
    """
    columns = [name for name in rows[0] if name not in NO_NUMBERS]

    def part(members: Rows) -> dict[str, Any]:
        described = {name: describe([row[name] for row in members], bounds=column(name).bounds) for name in columns}
        return {"cases": len(members), "metrics": described}

    empty = {
        "truth": sum(row["lesion_ml"] == 0 for row in rows),
        "prediction": sum(row["predicted_ml"] == 0 for row in rows),
        "both": sum(row["lesion_ml"] == row["predicted_ml"] == 0 for row in rows),
    }
    return {
        "cases": len(rows),
        "empty": empty,
        "metrics": part(rows)["metrics"],
        "by_size_class": {name: part(members) for name, members in by_size_class(rows).items()},
        "by_site": {site: part(members) for site, members in by_site(rows).items()},
        "volume_agreement_ml": volume_agreement(rows),
    }


def lead_grid(rows: Rows) -> str:
    """The grid of the main results: ``native`` if cases were measured on it, else ``resampled``."""
    return "native" if "native_dice" in rows[0] else "resampled"


def by_size_class(rows: Rows) -> dict[str, Rows]:
    """The rows of each lesion size class, classes from small to large, rows in their order."""
    order = dict.fromkeys(row["size_class"] for row in sorted(rows, key=lambda row: row.get("lesion_fraction", 0.0)))
    return {name: [row for row in rows if row["size_class"] == name] for name in order}


def by_site(rows: Rows) -> dict[str, Rows]:
    """The rows of each hospital; empty for fewer than two hospitals."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row.get("site") or "unknown", []).append(row)
    return dict(sorted(found.items())) if len(found) > 1 else {}


def volume_agreement(rows: Rows) -> dict[str, float | None]:
    """Bland and Altman's (1986) limits of agreement of predicted and true volume.

    Returns:
        ``bias``, the mean of prediction − truth in ml, and ``low`` and ``high``, bias ∓ 1.96 standard deviations
        (n − 1), which contain 95 % of normal differences; None for a single case.
    """
    differences = np.array([row["predicted_ml"] - row["lesion_ml"] for row in rows])
    bias = float(differences.mean())
    if len(differences) < 2:
        return {"bias": bias, "low": None, "high": None}
    spread = 1.96 * float(differences.std(ddof=1))
    return {"bias": bias, "low": bias - spread, "high": bias + spread}


def comparison_table(rows: Rows, labels: Mapping[str, str] | None = None) -> str:
    """Text table of mean Dice with 95 % confidence intervals of prediction and baselines, by lesion size.

    The grid is that of :func:`lead_grid`. ``labels`` are names of the baselines, by column.
    """
    grid = lead_grid(rows)
    names = {name: (labels or {}).get(name) or label for name, label in BASELINES.items() if name in rows[0]}
    shown = {f"{grid}_dice": "prediction", **names}

    def cell(name: str, members: Rows) -> str:
        figures = describe([row[name] for row in members], bounds=(0, 1))
        interval = "" if figures["low"] is None else f" [{figures['low']:.3f}, {figures['high']:.3f}]"
        return "-" if figures["mean"] is None else f"{figures['mean']:.3f}{interval}"

    heading = " ".join(f"{label:<22}" for label in shown.values())
    lines = [f"{'lesion size':<12} {'cases':>5}   {heading} (mean Dice, {grid} grid)"]
    for size, members in {**by_size_class(rows), "all": rows}.items():
        cells = " ".join(f"{cell(name, members):<22}" for name in shown)
        lines.append(f"{size:<12} {len(members):>5}   {cells}".rstrip())
    return "\n".join(lines)


def gain_over(rows: Rows, baseline: str, repeats: Sequence[float] = ()) -> dict[str, Any] | None:
    """:func:`.describe` the Dice of the prediction minus that of a baseline, a column of :data:`BASELINES`; None
    without the column. ``repeats`` is passed on."""
    if baseline not in rows[0] or "native_dice" not in rows[0]:
        return None
    return describe([row["native_dice"] - row[baseline] for row in rows], bounds=(-1, 1), repeats=repeats)


def best_baseline(rows: Rows) -> str | None:
    """The column of the baseline with the highest mean Dice on these cases; None without baselines.

    It is chosen on the evaluated cases, so the comparison favours the baseline.
    """
    values = {name: np.array([row[name] for row in rows]) for name in BASELINES if name in rows[0]}
    means = {name: of[np.isfinite(of)].mean() for name, of in values.items() if np.isfinite(of).any()}
    return max(means, key=lambda name: means[name], default=None)


def verdict(rows: Rows) -> str:
    """A sentence that says whether the prediction beats the best baseline, by the interval of the Dice difference."""
    if (best := best_baseline(rows)) is None or (gain := gain_over(rows, best)) is None:
        return ""
    name = f"{BASELINES[best]}, the best method without a deep network"
    by = f"mean Dice {gain['mean']:+.3f}"
    if gain["low"] is None:
        sentence = f"Too few cases to say whether the prediction beats {name} ({by})."
    else:
        by += f", 95 % CI {gain['low']:.3f} to {gain['high']:.3f}"
        beats = "beats" if gain["low"] > 0 else "is worse than" if gain["high"] < 0 else "does not beat"
        chance = ", beyond chance" if beats == "does not beat" else ""
        sentence = f"The prediction {beats} {name}{chance} ({by})."
    return sentence.replace("-", "−")


def readers_sentence(summary: Mapping[str, Any]) -> str:
    """A sentence that compares reader-reader and prediction-reader agreement; empty with one reader."""
    if not (gap := summary["metrics"].get("readers_gap")):
        return ""
    among, against = (summary["metrics"][name]["mean"] for name in ("readers_dice", "to_readers_dice"))
    interval = "" if gap["low"] is None else f", 95 % CI {gap['low']:+.3f} to {gap['high']:+.3f}"
    sentence = f"The mean Dice between two readers is {among:.3f}, and between the prediction and a reader"
    return f"{sentence} {against:.3f} (difference {gap['mean']:+.3f}{interval}).".replace("-", "−")


def worst_first(rows: Rows) -> Rows:
    """Sort rows by Dice, undefined and lowest first; ties by volume error, largest first."""
    dice = f"{lead_grid(rows)}_dice"

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        value = row[dice] if math.isfinite(row[dice]) else -1.0
        return value, -abs(row["predicted_ml"] - row["lesion_ml"])

    return sorted(rows, key=place)
