"""Results on disk: one table row a case, a summary, and a picture of a case."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

__all__ = ["comparison_table", "render_case", "summarise", "write_atomically", "write_results"]

GROUPING = ("case", "size_class")  # columns that are no numbers
TRUTH_COLOUR, PRED_COLOUR = "#56b4e9", "#e69f00"  # told apart by colour-blind readers (Okabe and Ito)


def write_results(rows: Sequence[Mapping[str, Any]], output_dir: Path, info: Mapping[str, Any]) -> None:
    """Write ``metrics.csv``, one row a case in the given order, and ``metrics.json``, their summary.

    Args:
        rows: equal keys in each; numbers may be NaN (undefined) or infinite.
        output_dir: created if needed; each file is complete or as it was before.
        info: what the results are of; goes into the summary as it is.

    Raises:
        ValueError: when there are no rows.
    """
    if not rows:
        raise ValueError("there are no results to write.")
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(output_dir / "metrics.csv", table.getvalue())
    summary = json.dumps({"info": dict(info), **summarise(rows)}, indent=2, allow_nan=False)
    write_atomically(output_dir / "metrics.json", summary + "\n")


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the cases where a metric is defined, and how many those are.

    Returns:
        ``cases``; ``empty``: how many cases have an empty truth, an empty prediction, both; ``metrics``: for each
        numeric column its ``mean``, ``median`` and ``std`` over the finite values (None when there are none), and the
        numbers of ``defined``, ``undefined`` (NaN) and ``infinite`` values; ``by_size_class``: the mean of each metric
        in each class of lesion size, with the number of its cases.
    """
    columns = [name for name in rows[0] if name not in GROUPING]
    truth_empty = np.array([row["lesion_ml"] == 0 for row in rows])
    pred_empty = np.array([row["predicted_ml"] == 0 for row in rows])
    classes = dict.fromkeys(str(row["size_class"]) for row in sorted(rows, key=lambda row: row["lesion_fraction"]))
    return {
        "cases": len(rows),
        "empty": {
            "truth": int(truth_empty.sum()),
            "prediction": int(pred_empty.sum()),
            "both": int((truth_empty & pred_empty).sum()),
        },
        "metrics": {name: _statistics([row[name] for row in rows]) for name in columns},
        "by_size_class": {
            name: {"cases": len(members)} | {c: _statistics([row[c] for row in members])["mean"] for c in columns}
            for name in classes
            if (members := [row for row in rows if row["size_class"] == name])
        },
    }


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The trained network against the baseline, as text: mean Dice on the native grid, overall and by lesion size."""
    summary = summarise(rows)
    lines = [f"{'lesion size':<12} {'cases':>5}  {'network':>8} {'ZADC < threshold':>17}   (mean Dice, native grid)"]
    groups = {**summary["by_size_class"], "all": None}
    for name, means in groups.items():
        network, baseline, count = (
            (means["native_dice"], means["baseline_dice"], means["cases"])
            if means
            else (*(summary["metrics"][c]["mean"] for c in ("native_dice", "baseline_dice")), summary["cases"])
        )
        lines.append(f"{name:<12} {count:>5}  {network:>8.3f} {baseline:>17.3f}")
    return "\n".join(lines)


def render_case(
    adc: NDArray[Any],
    zadc: NDArray[Any],
    truth: NDArray[np.bool_],
    pred: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    title: str,
) -> bytes:
    """The slice with most lesion of one case, in ADC and ZADC, with the outlines of truth and prediction.

    Args:
        adc: ADC map, 1e-6 mm²/s, shape (X, Y, Z) in RAS+ order, so that Z runs through the slices.
        zadc: ZADC map, same shape.
        truth: annotated lesion, same shape.
        pred: predicted lesion, same shape.
        spacing_mm: voxel size along each axis.
        title: printed above.

    Returns:
        A PNG image; the patient's right is on the left, as radiologists look at it.
    """
    counts = (truth.sum((0, 1)), pred.sum((0, 1)), (adc != 0).sum((0, 1)))
    z = int(next((c for c in counts if c.any()), counts[-1]).argmax())
    inside = np.nonzero((adc != 0).any(axis=2))
    x, y = (slice(max(i.min() - 3, 0), i.max() + 4) for i in inside) if len(inside[0]) else (slice(None),) * 2

    def axial(volume: NDArray[Any]) -> NDArray[Any]:
        return volume[x, y, z].T[::-1, ::-1]  # rows from anterior to posterior, columns from right to left

    figure = Figure(figsize=(8, 4.9), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    aspect = spacing_mm[1] / spacing_mm[0]
    for axes, volume, name, limits in zip(
        figure.subplots(1, 2), (adc, zadc), ("ADC (10⁻⁶ mm²/s)", "ZADC"), ((0, 2500), (-6, 6)), strict=True
    ):
        inside_brain = np.ma.masked_where(axial((adc == 0) & (zadc == 0)), axial(volume))  # black outside, also in ZADC
        shown = axes.imshow(inside_brain, cmap="gray", vmin=limits[0], vmax=limits[1], aspect=aspect)
        for mask, colour, style in ((truth, TRUTH_COLOUR, "-"), (pred, PRED_COLOUR, "--")):
            if axial(mask).any():
                axes.contour(axial(mask), [0.5], colors=colour, linewidths=1.4, linestyles=style)
        axes.set_axis_off()
        axes.set_title(name, color="white", fontsize=10)
        bar = figure.colorbar(shown, ax=axes, shrink=0.7, pad=0.02)
        bar.ax.tick_params(colors="white", labelsize=8)
        bar.outline.set_edgecolor("white")  # type: ignore[operator]
    figure.suptitle(f"{title}, slice {z + 1} of {adc.shape[2]}", color="white", fontsize=11)
    handles = [
        Line2D([], [], color=TRUTH_COLOUR, label="truth"),
        Line2D([], [], color=PRED_COLOUR, linestyle="--", label="prediction"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, labelcolor="white", fontsize=10)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120, facecolor="black")
    return png.getvalue()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write under a neighbouring name, then rename: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _statistics(values: Sequence[float]) -> dict[str, Any]:
    finite = [float(v) for v in values if math.isfinite(v)]
    return {
        "mean": float(np.mean(finite)) if finite else None,
        "median": float(np.median(finite)) if finite else None,
        "std": float(np.std(finite)) if finite else None,
        "defined": len(finite),
        "undefined": sum(math.isnan(v) for v in values),
        "infinite": sum(math.isinf(v) for v in values),
    }
