"""Plots of the report and of the study's page, as SVG: metrics, volumes, probabilities, lesions, ensembles, curves."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluation import calibration, lesions
from ..evaluation.calibration import CaseProbabilities
from ..evaluation.measures import column
from ..evaluation.statistics import describe
from ..io.curves import curves_in
from .tables import Rows, by_size_class, lead_grid, volume_agreement

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#767676"  # Okabe and Ito, on white
COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", "#000000", GREY)
LINES = ("-", "--", ":", "-.")
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "legend.fontsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "svg.fonttype": "none",  # text instead of paths
    "svg.hashsalt": "report",  # the same data give the same file
}
P = ParamSpec("P")
SMALLEST_ML = 0.1  # volume axes are linear below it, to show 0
SHARES = (-0.04, 1.04)  # axis limits
DOTS: dict[str, Any] = {"s": 22, "color": BLUE, "alpha": 0.8}


@dataclass(frozen=True)
class Plot:
    """A plot for a page: title, SVG image as data URI, caption, alternative text."""

    title: str
    image: str
    caption: str
    alt: str


def plot(draw: Callable[Concatenate[Axes, P], tuple[str, str]]) -> Callable[P, Plot]:
    """Make a function that draws on axes and returns title and caption return a :class:`Plot`."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Plot:
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(4.2, 3.0), layout="constrained")
            FigureCanvasSVG(figure)
            axes = figure.subplots()
            title, caption = draw(axes, *args, **kwargs)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handletextpad=0.4)
            file = io.BytesIO()
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        image = "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
        what = " by ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
        return Plot(title, image, caption, f"{title}. Plot of {what}. {caption}".strip())

    return drawn


@plot
def metric_by_size(axes: Axes, rows: Rows, name: str) -> tuple[str, str]:
    """One column's values: a point per case, and a box plot per lesion size class of at least five cases."""
    known, grey = column(name), {"color": GREY}
    rng = np.random.default_rng(0)  # for jitter
    labels = []
    for place, (label, members) in enumerate({**by_size_class(rows), "all": rows}.items()):
        values = np.array([row[name] for row in members], dtype=float)
        finite = values[np.isfinite(values)]
        if len(finite) >= 5:
            axes.boxplot(
                [finite], positions=[place], widths=0.6, showfliers=False, manage_ticks=False, boxprops=grey,
                whiskerprops=grey, capprops=grey, medianprops={"color": ORANGE, "linewidth": 1.8},
            )  # fmt: skip
        elif len(finite):
            axes.hlines(np.median(finite), place - 0.3, place + 0.3, color=ORANGE, linewidth=1.8)
        jitter = rng.uniform(-0.18, 0.18, len(finite)) if len(finite) > 1 else np.zeros(len(finite))
        axes.scatter(place + jitter, finite, s=14, color=GREY if label == "all" else BLUE, alpha=0.65, zorder=3)
        counts = {"n = {}": len(values), "{} undef.": np.isnan(values).sum(), "{} × ∞": np.isinf(values).sum()}
        labels.append("\n".join([label, *(text.format(count) for text, count in counts.items() if count)]))
    axes.set_xticks(range(len(labels)), labels)
    finite_top = max((row[name] for row in rows if math.isfinite(row[name])), default=1.0) or 1.0
    top = 1.0 if known.bounds == (0, 1) else finite_top
    axes.set(xlim=(-0.6, len(labels) - 0.4), ylim=(-0.04 * top, 1.04 * top), xlabel="Lesion by brain volume")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=known.digits == 1))
    return f"{known.heading} {known.arrow}".strip(), ""


@plot
def dice_by_volume(axes: Axes, rows: Rows) -> tuple[str, str]:
    """Dice of the prediction and of the challenge's threshold against lesion volume."""
    volume = np.array([row["lesion_ml"] for row in rows])
    grid = lead_grid(rows)
    if "baseline_dice" in rows[0]:
        dice = [row["baseline_dice"] for row in rows]
        axes.scatter(volume, dice, s=22, marker="s", facecolors="none", edgecolors=GREY, label="challenge’s threshold")
    axes.scatter(volume, [row[f"{grid}_dice"] for row in rows], label="prediction", **DOTS)
    _volume_axis(axes, volume)
    axes.set(xlabel="Lesion volume (ml)", ylabel="Dice", ylim=SHARES)
    caption = f"{grid.capitalize()} grid. The axis is linear below {SMALLEST_ML} ml, so that empty labels are at 0."
    return "Dice against lesion volume", caption


@plot
def bland_altman(axes: Axes, rows: Rows) -> tuple[str, str]:
    """Difference of predicted and true volume against their mean, with the limits of agreement."""
    truth, pred = (np.array([row[name] for row in rows]) for name in ("lesion_ml", "predicted_ml"))
    limits = volume_agreement(rows)
    axes.axhline(0, color="#bbbbbb", linewidth=0.8)
    for name, value in limits.items():
        if value is not None:
            axes.axhline(value, color=ORANGE, linewidth=1.2, linestyle="-" if name == "bias" else "--")
    axes.scatter((truth + pred) / 2, pred - truth, zorder=3, **DOTS)
    _volume_axis(axes, (truth + pred) / 2)
    axes.set(xlabel="Mean of predicted and true volume (ml)", ylabel="Predicted − true (ml)")
    over, under = int((pred > truth).sum()), int((pred < truth).sum())
    caption = f"Mean difference {limits['bias']:+.1f} ml"
    if limits["low"] is not None:
        caption += f", limits of agreement {limits['low']:+.1f} to {limits['high']:+.1f} ml (mean ∓ 1.96 SD)"
    caption += f"; {over} of {len(rows)} volumes are predicted too large, {under} too small."
    return "Bland–Altman: agreement of volumes", caption.replace("-", "−")


def reliability(cases: Sequence[CaseProbabilities], after: Sequence[CaseProbabilities] = ()) -> Plot:
    """Reliability diagram over the brain voxels of all cases, before and after calibration."""
    lines = {"before calibration": cases, "after": after} if after else {"observed": cases}
    found = {label: [dict(zip(*calibration.reliability(of), strict=True))] for label, of in lines.items()}
    voxels = np.sum([case.bins[0] for case in cases], axis=0)
    inner = 100 * (1 - float(voxels[0] + voxels[-1]) / float(voxels.sum()))
    caption = f"{calibration.BINS} bins of equal width; {inner:.1f} % of the brain’s voxels are in the inner ones."
    if after:
        before, now = (np.mean([case.ece for case in which]) for which in (cases, after))
        caption += f" Calibration error, mean of the cases: {before:.4f}, calibrated {now:.4f}."
    x, y = "Lesion probability, mean of a bin", "Share of lesion"
    return curves("Reliability of the probabilities", x, y, found | {"ideal": [{0: 0, 1: 1}]}, caption, SHARES)


def dice_by_threshold(cases: Sequence[CaseProbabilities]) -> Plot:
    """Mean Dice of the cases at each threshold."""
    means = np.mean([case.dice for case in cases], axis=0)
    threshold, best = calibration.best_threshold(cases)
    caption = (
        f"Best {best:.3f} at {threshold:.2f}, {means[49]:.3f} at 0.50. The best is optimistic on these cases: "
        "apply it to other cases with --threshold_from."
    )
    lines = {"mean over the cases": [dict(zip(calibration.THRESHOLDS, means, strict=True))]}
    x, y = "Threshold of the probability", "Mean Dice, native grid"
    return curves("Dice against threshold", x, y, lines, caption, SHARES)


def lesion_recall(rows: Rows) -> Plot:
    """Lesion recall by lesion volume."""
    found = {f"{label}\nn = {count}": matched / count for label, count, matched in lesions.recall_by_volume(rows)}
    return curves("Lesions found, by volume", "Lesion volume (ml)", "Recall", {"recall": [found]}, limits=SHARES)


def lesion_f1(rows: Rows, cases: int) -> Plot:
    """Lesion F1, recall and precision against the IoU threshold of a match."""
    found = {iou: lesions.detection(rows, cases, iou) for iou in lesions.IOU_THRESHOLDS}
    lines = {
        name: [{iou: math.nan if (value := one[name]) is None else value for iou, one in found.items()}]
        for name in ("f1", "recall", "precision")
    }
    return curves("Detection against overlap", "IoU of a match, at least", "All lesions together", lines, limits=SHARES)


@plot
def intervals(
    axes: Axes, figures: Mapping[str, Mapping[str, Any]], title: str, x: str, caption: str = "", better: str = ""
) -> tuple[str, str]:
    """Means with their intervals, one below the other.

    ``figures`` maps each label to ``mean`` (not drawn if None), ``low`` and ``high``, as :func:`.describe`, and
    optionally single ``values``; the label ``better`` is orange.
    """
    rng = np.random.default_rng(0)  # for jitter
    for place, (label, one) in enumerate(figures.items()):
        values = np.asarray(one.get("values", ()), dtype=float)
        values = values[np.isfinite(values)]
        axes.scatter(values, place + rng.uniform(-0.16, 0.16, len(values)), s=9, color=GREY, alpha=0.5, linewidths=0)
        if one["mean"] is None:
            continue
        colour = ORANGE if label == better else BLUE
        if one["low"] is not None:
            axes.hlines(place, one["low"], one["high"], color=colour, linewidth=2.4)
        axes.scatter([one["mean"]], [place], s=42, color=colour, zorder=3)
    axes.get_figure(root=True).set_figheight(1.1 + 0.36 * len(figures))  # type: ignore[union-attr]
    axes.set_yticks(range(len(figures)), list(figures), parse_math=False)
    axes.set_ylim(len(figures) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    axes.set_xlabel(x)
    return title, caption


def ensemble_gain(rows: Rows) -> Plot | None:
    """Mean Dice of the ensemble (or of the mean over flips) and of each model alone; None without ``member_*_dice``."""
    members = [name for name in rows[0] if re.fullmatch(r"member_\d+_dice", name)]
    if not members:
        return None
    alone = np.array([[row[name] for row in rows] for name in members])
    together = np.array([row["native_dice"] for row in rows])
    if len(members) > 1:
        names, title = [*(f"model {i}" for i in range(1, len(members) + 1)), "ensemble"], "Ensemble and its models"
        over = "the mean of the models, each alone and without flips"
    else:
        names, title, over = ["without flips", "with flips"], "Flips at test time", "the same model without flips"
    gain = describe((together - alone.mean(axis=0)).tolist())
    ends = "" if gain["low"] is None else f" (95 % CI {gain['low']:+.3f} to {gain['high']:+.3f})"
    caption = f"Native grid. Gain over {over}: {gain['mean']:+.3f} Dice{ends}.".replace("-", "−")
    figures = {label: describe(list(of)) for label, of in zip(names, [*alone, together], strict=True)}
    return intervals(figures, title, "Mean Dice with 95 % confidence interval", caption, names[-1])


def read_curves(folder: Path) -> dict[str, dict[int, float]]:
    """The scalars of a run's TensorBoard event files: for each tag, the last value logged at each step, sorted by
    step. The folder need not exist."""
    events = sorted((event for of in curves_in(folder).values() for event in of), key=lambda event: event.wall_time)
    found: dict[str, dict[int, float]] = {}
    for event in events:
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return {tag: dict(sorted(points.items())) for tag, points in found.items()}


def training_curves(found: Mapping[str, Mapping[int, float]]) -> list[Plot]:
    """Loss by iteration and Dice by epoch, where they were logged."""
    shown = []
    if loss := found.get("loss"):
        lines = {"each batch": [loss]}
        if (window := len(loss) // 30) > 1:
            smooth = np.convolve(list(loss.values()), np.ones(window) / window, mode="valid")
            lines[f"mean of {window} batches"] = [dict(zip(list(loss)[window - 1 :], smooth, strict=True))]
        shown.append(curves("Training loss", "Iteration", "Loss", lines))
    dice = {"training": found.get("train_mean_dice", {}), "validation": found.get("val_mean_dice", {})}
    if lines := {label: [points] for label, points in dice.items() if points}:
        finite = {epoch: value for epoch, value in dice["validation"].items() if math.isfinite(value)}
        best = max(finite, key=lambda epoch: finite[epoch], default=None)
        caption = "" if best is None else f"Best validation Dice {finite[best]:.3f} after epoch {best}."
        shown.append(curves("Dice during training", "Epoch", "Mean Dice, resampled grid", lines, caption))
    return shown


@plot
def curves(
    axes: Axes,
    title: str,
    x: str,
    y: str,
    lines: Mapping[str, Sequence[Mapping[Any, float]]],
    caption: str = "",
    limits: tuple[float, float] | None = None,
) -> tuple[str, str]:
    """Values by step: one line per label, the mean of its runs; several runs are also drawn as thin lines."""
    for place, (label, runs) in enumerate(lines.items()):
        colour, line = COLOURS[place % len(COLOURS)], LINES[(place // len(COLOURS) + place) % len(LINES)]
        steps = sorted(set().union(*runs)) if len(runs) > 1 else list(runs[0])
        mean = [float(np.mean([run[step] for run in runs if step in run])) for step in steps]
        axes.plot(steps, mean, linewidth=1.7 if len(steps) < 1000 else 0.8, label=label, color=colour, linestyle=line)
        for run in runs if len(runs) > 1 else ():
            axes.plot(list(run), list(run.values()), linewidth=0.5, alpha=0.4, color=colour, linestyle=line)
    axes.get_figure(root=True).set_figheight(2.8 + 0.2 * math.ceil(len(lines) / 3))  # type: ignore[union-attr]
    axes.set(xlabel=x, ylabel=y, ylim=limits)
    if all(isinstance(step, int) for runs in lines.values() for run in runs for step in run):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return title, caption


def _volume_axis(axes: Axes, values: Any) -> None:
    """Make the x axis symlog, with ticks at 0 and powers of ten."""
    largest = max(float(np.max(values)), SMALLEST_ML)
    axes.set_xscale("symlog", linthresh=SMALLEST_ML, linscale=0.5)
    ticks = [0.0, *(tick for power in range(-1, 6) if (tick := 10.0**power) <= largest * 1.6)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.set_xlim(-SMALLEST_ML * 0.3, largest * 1.6)
