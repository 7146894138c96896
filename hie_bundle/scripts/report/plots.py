"""The report's plots: metrics by lesion size, volumes, probabilities, lesions, ensembles, training curves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..evaluation import calibration, lesions
from ..evaluation.calibration import CaseProbabilities
from ..evaluation.measures import Measure, column
from ..evaluation.statistics import describe
from .drawing import BLUE, GREY, ORANGE, Plot, legend, plot, set_height
from .tables import Rows, by_size_class, lead_grid, volume_agreement

__all__ = [
    "bland_altman", "dice_by_threshold", "dice_by_volume", "ensemble_gain", "lesion_f1", "lesion_recall",
    "metric_by_size", "read_curves", "reliability", "training_curves", "volumes",
]  # fmt: skip

SMALLEST_ML = 0.1  # below it, volume axes are linear, so that 0 has a place
DOTS: dict[str, Any] = {"s": 22, "color": BLUE, "alpha": 0.8}


@plot
def metric_by_size(axes: Axes, rows: Rows, name: str) -> tuple[str, str, str]:
    """Values of one column, a point a case, with a box for each class of lesion size of five cases or more."""
    known = column(name)
    rng = np.random.default_rng(0)  # of the jitter
    labels, medians = [], []
    for place, (label, members) in enumerate({**by_size_class(rows), "all": list(rows)}.items()):
        values = np.array([row[name] for row in members], dtype=float)
        finite = values[np.isfinite(values)]
        if len(finite) >= 5:
            grey = {"color": GREY}
            axes.boxplot(
                [finite], positions=[place], widths=0.6, showfliers=False, manage_ticks=False, boxprops=grey,
                whiskerprops=grey, capprops=grey, medianprops={"color": ORANGE, "linewidth": 1.8},
            )  # fmt: skip
        elif len(finite):
            axes.hlines(np.median(finite), place - 0.3, place + 0.3, color=ORANGE, linewidth=1.8)
        jitter = rng.uniform(-0.18, 0.18, len(finite)) if len(finite) > 1 else np.zeros(len(finite))
        colour = GREY if label == "all" else BLUE
        axes.scatter(place + jitter, finite, s=14, color=colour, alpha=0.65, linewidths=0, zorder=3)
        lines = [label, f"n = {len(values)}"]
        for sign, where in (("undef.", np.isnan(values)), ("× ∞", np.isinf(values))):
            lines += [f"{where.sum()} {sign}"] if where.any() else []
        labels.append("\n".join(lines))
        if len(finite):
            medians.append(f"{label}: {known.text(float(np.median(finite)))} ({len(finite)} cases)")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.tick_params(axis="x", length=0)
    _limits(axes, known, [row[name] for row in rows])
    alt = f"{known.heading} by lesion size, one point a case. Medians: {'; '.join(medians)}."
    return known.heading + {"higher": " ↑", "lower": " ↓"}.get(known.better, ""), "", alt


@plot
def dice_by_volume(axes: Axes, rows: Rows) -> tuple[str, str, str]:
    """Dice of the prediction and of the challenge's threshold against lesion volume."""
    volume = np.array([row["lesion_ml"] for row in rows])
    grid = lead_grid(rows)
    if "baseline_dice" in rows[0]:
        axes.scatter(
            volume, [row["baseline_dice"] for row in rows], s=22, marker="s", facecolors="none", edgecolors=GREY,
            linewidths=1, label="challenge’s threshold",
        )  # fmt: skip
    axes.scatter(volume, [row[f"{grid}_dice"] for row in rows], label="prediction", **DOTS)
    _volume_axis(axes, "x", volume)
    _labels(axes, "Lesion volume (ml)", "Dice", shares=True)
    caption = f"{grid.capitalize()} grid. The axis is linear below {SMALLEST_ML} ml, so that empty labels are at 0."
    return "Dice against lesion volume", caption, f"Dice against lesion volume of {len(rows)} cases."


@plot
def volumes(axes: Axes, rows: Rows) -> tuple[str, str, str]:
    """Predicted against true volume."""
    truth, pred = (np.array([row[name] for row in rows]) for name in ("lesion_ml", "predicted_ml"))
    both = np.array([0, max(float(truth.max()), float(pred.max()), 2 * SMALLEST_ML)])
    axes.plot(both, both, color=GREY, linewidth=1, linestyle="--", label="equal volumes")
    axes.scatter(truth, pred, label="case", **DOTS)
    _volume_axis(axes, "x", both)
    _volume_axis(axes, "y", both)
    _labels(axes, "Lesion volume, truth (ml)", "Lesion volume, predicted (ml)")
    over, under = int((pred > truth).sum()), int((pred < truth).sum())
    caption = f"{over} of {len(rows)} volumes are predicted too large, {under} too small."
    return "Predicted against true volume", caption, f"Predicted against true volume. {caption}"


@plot
def bland_altman(axes: Axes, rows: Rows) -> tuple[str, str, str]:
    """Difference of predicted and true volume against their mean, with the limits of agreement."""
    truth, pred = (np.array([row[name] for row in rows]) for name in ("lesion_ml", "predicted_ml"))
    limits = volume_agreement(rows)
    axes.axhline(0, color="#bbbbbb", linewidth=0.8)
    names = {"high": "+1.96 SD", "bias": "mean", "low": "−1.96 SD"}
    drawn = [(name, value) for name in names if (value := limits[name]) is not None]
    for name, value in drawn:
        axes.axhline(value, color=ORANGE, linewidth=1.2, linestyle="-" if name == "bias" else "--")
    axes.scatter((truth + pred) / 2, pred - truth, zorder=3, **DOTS)
    _volume_axis(axes, "x", (truth + pred) / 2)
    _labels(axes, "Mean of predicted and true volume (ml)", "Predicted − true (ml)")
    bottom, top = axes.get_ylim()
    places = np.array([(value - bottom) / (top - bottom) for _, value in drawn])
    gap = 0.15  # of the axis, that two labels of two lines need
    if len(places) > 1:
        places = places[1] + np.array([1, 0, -1]) * np.maximum(np.abs(places - places[1]), gap)
    for place, (name, value) in zip(places, drawn, strict=True):
        label = f"{names[name]}\n{_ml(value)}"
        axes.text(1.02, place, label, color=ORANGE, fontsize=9, va="center", transform=axes.transAxes)
    caption = f"Mean difference {_ml(limits['bias'])} ml"
    if limits["low"] is not None:
        caption += f", limits of agreement {_ml(limits['low'])} to {_ml(limits['high'])} ml (mean ∓ 1.96 SD)"
    return "Bland–Altman: agreement of volumes", f"{caption}.", f"Bland–Altman plot of volumes. {caption}."


@plot
def reliability(
    axes: Axes, cases: Sequence[CaseProbabilities], after: Sequence[CaseProbabilities] = ()
) -> tuple[str, str, str]:
    """Share of lesion against predicted probability, over all cases' brains, before and after calibration."""
    predicted, observed = calibration.reliability(cases)
    voxels = np.sum([case.bins[0] for case in cases], axis=0)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    axes.plot(predicted, observed, color=BLUE, linewidth=1.4, marker="o", markersize=4, label="observed")
    if after:
        axes.plot(*calibration.reliability(after), color=ORANGE, linewidth=1.4, marker="o", markersize=4,
                  label="after calibration")  # fmt: skip
    axes.set_xlim(-0.03, 1.03)
    _labels(axes, "Lesion probability, mean of a bin", "Share of lesion", shares=True)
    inner = 1 - float(voxels[0] + voxels[-1]) / float(voxels.sum())
    caption = (
        f"{calibration.BINS} bins of equal width; {100 * inner:.1f} % of the brain’s voxels are in the inner ones."
    )
    if after:
        errors = [np.mean([case.ece for case in which]) for which in (cases, after)]
        caption += f" Calibration error, mean of the cases: {errors[0]:.4f}, calibrated {errors[1]:.4f}."
    shares = ", ".join(f"{p:.2f}: {share:.2f}" for p, share in zip(predicted, observed, strict=True))
    return "Reliability of the probabilities", caption, f"Share of lesion by probability. {shares}."


@plot
def dice_by_threshold(axes: Axes, cases: Sequence[CaseProbabilities]) -> tuple[str, str, str]:
    """Mean Dice of the cases at each threshold."""
    means = np.mean([case.dice for case in cases], axis=0)
    threshold, best = calibration.best_threshold(cases)
    axes.plot(calibration.THRESHOLDS, means, color=BLUE, linewidth=1.6)
    axes.plot(threshold, best, "*", color=ORANGE, markersize=11, label="best")
    axes.set_xlim(0, 1)
    _labels(axes, "Threshold of the probability", "Mean Dice, native grid", shares=True)
    caption = (
        f"Best {best:.3f} at {threshold:.2f}, {means[49]:.3f} at 0.50. Chosen on these cases, the best is optimistic: "
        "take it to other cases by --threshold_from."
    )
    return "Dice against threshold", caption, f"Mean Dice by threshold. {caption}"


@plot
def lesion_recall(axes: Axes, rows: Rows) -> tuple[str, str, str]:
    """Share of lesions that are matched, by their volume."""
    bins = lesions.recall_by_volume(rows)
    places = np.arange(len(bins))
    axes.plot(places, [found / count for _, count, found in bins], color=BLUE, linewidth=1.4, marker="o", markersize=4)
    axes.set_xticks(places, [f"{label}\nn = {count}" for label, count, _ in bins], fontsize=8)
    axes.set_xlim(-0.5, max(len(bins), 1) - 0.5)
    _labels(axes, "Lesion volume (ml)", "Recall", shares=True)
    alt = "; ".join(f"{label} ml: {found} of {count}" for label, count, found in bins)
    return "Lesions found, by volume", "", f"Recall of lesions by volume. {alt}."


@plot
def lesion_f1(axes: Axes, rows: Rows, cases: int) -> tuple[str, str, str]:
    """F1 of lesions against the IoU from which on a pair counts as a match."""
    found = [lesions.detection(rows, cases, iou) for iou in lesions.IOU_THRESHOLDS]
    for name, colour in (("f1", BLUE), ("recall", ORANGE), ("precision", GREY)):
        label = name.upper() if name == "f1" else name
        values = np.array([one[name] for one in found], dtype=float)  # None becomes NaN
        axes.plot(lesions.IOU_THRESHOLDS, values, color=colour, linewidth=1.5, label=label)
    axes.set_xlim(0, 1)
    _labels(axes, "IoU of a match, at least", "All lesions together", shares=True)
    alt = ", ".join(f"{iou:.2f}: {one['f1'] or 0:.2f}" for iou, one in zip(lesions.IOU_THRESHOLDS, found, strict=True))
    return "Detection against overlap", "", f"F1 of lesions by IoU threshold. {alt}."


def ensemble_gain(rows: Rows) -> Plot | None:
    """Mean Dice of the ensemble (or of the mean over flips) and of each model alone; None without ``member_*_dice``."""
    members = [name for name in rows[0] if re.fullmatch(r"member_\d+_dice", name)]
    return _ensemble_gain(rows, members) if members else None


@plot
def _ensemble_gain(axes: Axes, rows: Rows, members: Sequence[str]) -> tuple[str, str, str]:
    alone = [np.array([row[name] for row in rows]) for name in members]
    together = np.array([row["native_dice"] for row in rows])
    several = len(members) > 1
    names = [f"model {i}" for i in range(1, len(members) + 1)] if several else ["without flips"]
    names.append("ensemble" if several else "with flips")
    means = []
    for place, (label, values) in enumerate(zip(names, [*alone, together], strict=True)):
        figures = describe(list(values))
        colour = ORANGE if values is together else BLUE
        if figures["low"] is not None:
            axes.hlines(place, figures["low"], figures["high"], color=colour, linewidth=2)
        axes.scatter([figures["mean"]], [place], s=40, color=colour, zorder=3)
        means.append(f"{label} {figures['mean']:.3f}")
    set_height(axes, 1.2 + 0.35 * len(names))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("Mean Dice with 95 % confidence interval")
    gain = describe(list(together - np.mean(alone, axis=0)))
    caption = f"Native grid. Gain over {'the mean of the models' if several else 'the same model'}"
    caption += f"{', each alone and' if several else ''} without flips: {gain['mean']:+.3f} Dice"
    caption += f" (95 % CI {gain['low']:+.3f} to {gain['high']:+.3f})." if gain["low"] is not None else "."
    title = "Ensemble and its models" if several else "Flips at test time"
    return title, caption.replace("-", "−"), f"Mean Dice: {', '.join(means)}."


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of a run's TensorBoard event files.

    Args:
        folder: with the files; need not exist.

    Returns:
        For each tag (step, value), sorted by step; of a step that was logged twice, the later value.
    """
    files = sorted(folder.glob("events.out.tfevents.*")) if folder.is_dir() else []
    if not files:
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, dict[int, tuple[float, float]]] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            points = curves.setdefault(tag, {})
            for event in events.Scalars(tag):
                if event.step not in points or points[event.step][0] <= event.wall_time:
                    points[event.step] = event.wall_time, event.value
    return {tag: [(step, points[step][1]) for step in sorted(points)] for tag, points in curves.items()}


def training_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> list[Plot]:
    """Loss by iteration and Dice by epoch, those that were logged.

    Args:
        curves: as from :func:`read_curves`, with the tags ``loss``, ``train_mean_dice`` and ``val_mean_dice``.
    """
    dice = {tag: curves[f"{tag}_mean_dice"] for tag in ("train", "val") if curves.get(f"{tag}_mean_dice")}
    return [_loss(points) for points in [curves.get("loss")] if points] + ([_dice_by_epoch(dice)] if dice else [])


@plot
def _loss(axes: Axes, points: Sequence[tuple[int, float]]) -> tuple[str, str, str]:
    steps, values = np.array(points, dtype=float).T
    window = max(1, len(values) // 30)
    axes.plot(steps, values, color=BLUE, linewidth=0.6, alpha=0.45, label="each batch")
    if window > 1:
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=BLUE, linewidth=1.8, label=f"mean of {window} batches")
    _labels(axes, "Iteration", "Loss", whole=True)
    return "Training loss", "", f"Loss over {len(values)} iterations: {values[0]:.3g} to {values[-1]:.3g}."


@plot
def _dice_by_epoch(axes: Axes, dice: Mapping[str, Sequence[tuple[int, float]]]) -> tuple[str, str, str]:
    caption = ""
    for tag, label, colour in (("train", "training", BLUE), ("val", "validation", ORANGE)):
        if tag not in dice:
            continue
        epochs, values = np.array(dice[tag], dtype=float).T
        axes.plot(epochs, values, "-", color=colour, linewidth=1.6, marker="o", markersize=2.5, label=label)
        if tag == "val":
            best = int(np.nanargmax(values)) if np.isfinite(values).any() else 0
            axes.plot(epochs[best], values[best], "*", color=ORANGE, markersize=11, label="best")
            caption = f"Best validation Dice {values[best]:.3f} after epoch {int(epochs[best])}."
    _labels(axes, "Epoch", "Mean Dice, resampled grid", whole=True)
    return "Dice during training", caption, f"Mean Dice by epoch. {caption}"


def _labels(axes: Axes, x: str, y: str, shares: bool = False, whole: bool = False) -> None:
    """Labels and the legend; ``shares``: y from 0 to 1; ``whole``: whole numbers along x."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if shares:
        axes.set_ylim(-0.04, 1.04)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if axes.get_legend_handles_labels()[1]:
        legend(axes)


def _volume_axis(axes: Axes, which: str, values: Any) -> None:
    """Logarithmic, with a place for 0; ticks at powers of ten."""
    largest = max(float(np.max(values)), SMALLEST_ML)
    top = math.ceil(math.log10(largest * 1.05))
    ticks = [0.0, *(10.0**power for power in range(round(math.log10(SMALLEST_ML)), top + 1))]
    scale: Callable[..., None] = axes.set_xscale if which == "x" else axes.set_yscale
    scale("symlog", linthresh=SMALLEST_ML, linscale=0.5)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks([t for t in ticks if t <= largest * 1.6], [f"{t:g}" for t in ticks if t <= largest * 1.6])
    axis.set_minor_locator(mpl.ticker.NullLocator())
    (axes.set_xlim if which == "x" else axes.set_ylim)(-SMALLEST_ML * 0.3, largest * 1.6)


def _limits(axes: Axes, known: Measure, values: Sequence[float]) -> None:
    """Shares from 0 to 1, everything else from 0."""
    top = max((value for value in values if math.isfinite(value)), default=1.0)
    if known.better == "higher" and not known.unit and top <= 1:
        top = 1.0
    axes.set_ylim(-0.04 * (top or 1), 1.04 * (top or 1))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=known.digits == 1))


def _ml(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}".replace("-", "−")
