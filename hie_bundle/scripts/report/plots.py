"""The report's plots, as SVG: metrics by lesion size, volumes, training curves, the gain of an ensemble."""

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

from ..evaluation import calibration
from ..evaluation.calibration import CaseProbabilities
from ..evaluation.measures import Measure, column
from ..evaluation.statistics import describe
from .drawing import BLUE, GREY, ORANGE, Plot, house_style, new_figure, svg_of
from .tables import Rows, by_size_class, lead_grid, volume_agreement

__all__ = [
    "bland_altman",
    "dice_by_threshold",
    "dice_by_volume",
    "ensemble_gain",
    "metric_by_size",
    "read_curves",
    "reliability",
    "training_curves",
    "volumes",
]

SMALLEST_ML = 0.1  # below it, volume axes are linear, so that 0 has a place


def metric_by_size(rows: Rows, name: str) -> Plot:
    """Every case's value of one metric, with a box a class of lesion size (five cases or more).

    Args:
        rows: one a case.
        name: the column.
    """
    known = column(name)
    classes = {**by_size_class(rows), "all": list(rows)}
    rng = np.random.default_rng(0)  # of the jitter
    labels, told = [], []
    with house_style():
        figure, axes = new_figure()
        for place, (label, members) in enumerate(classes.items()):
            values = np.array([row[name] for row in members], dtype=float)
            finite = values[np.isfinite(values)]
            colour = GREY if label == "all" else BLUE
            if len(finite) >= 5:
                axes.boxplot(
                    [finite], positions=[place], widths=0.6, showfliers=False, manage_ticks=False,
                    medianprops={"color": ORANGE, "linewidth": 1.8}, boxprops={"color": GREY},
                    whiskerprops={"color": GREY}, capprops={"color": GREY},
                )  # fmt: skip
            elif len(finite):
                axes.hlines(np.median(finite), place - 0.3, place + 0.3, color=ORANGE, linewidth=1.8)
            jitter = rng.uniform(-0.18, 0.18, len(finite)) if len(finite) > 1 else np.zeros(len(finite))
            axes.scatter(place + jitter, finite, s=14, color=colour, alpha=0.65, linewidths=0, zorder=3)
            lines = [label, f"n = {len(values)}"]
            for sign, where in (("undef.", np.isnan(values)), ("× ∞", np.isinf(values))):
                lines += [f"{where.sum()} {sign}"] if where.any() else []
            labels.append("\n".join(lines))
            if len(finite):
                told.append(f"{label}: {known.text(float(np.median(finite)))} ({len(finite)} cases)")
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.6, len(labels) - 0.4)
        axes.tick_params(axis="x", length=0)
        _limits(axes, known, [row[name] for row in rows])
        image = svg_of(figure)
    told_all = f"{known.heading} by lesion size, one point a case. Medians: {'; '.join(told)}."
    return Plot(known.heading + {"higher": " ↑", "lower": " ↓"}.get(known.better, ""), image, "", told_all)


def dice_by_volume(rows: Rows) -> Plot:
    """Dice of the prediction and of the threshold against the lesion's volume."""
    volume = np.array([row["lesion_ml"] for row in rows])
    grid = lead_grid(rows)
    with house_style():
        figure, axes = new_figure()
        if "baseline_dice" in rows[0]:
            axes.scatter(
                volume, [row["baseline_dice"] for row in rows], s=22, marker="s", facecolors="none", edgecolors=GREY,
                linewidths=1, label="ZADC threshold",
            )  # fmt: skip
        axes.scatter(volume, [row[f"{grid}_dice"] for row in rows], s=22, color=BLUE, alpha=0.8, label="prediction")
        _volume_axis(axes, "x", volume)
        axes.set_xlabel("Lesion volume (ml)")
        axes.set_ylabel("Dice")
        axes.set_ylim(-0.04, 1.04)
        _legend(axes)
        image = svg_of(figure)
    return Plot(
        "Dice against lesion volume",
        image,
        f"{grid.capitalize()} grid. The axis is linear below {SMALLEST_ML} ml, so that empty labels stand at 0.",
        f"Dice against lesion volume of {len(rows)} cases.",
    )


def volumes(rows: Rows) -> Plot:
    """Predicted against true volume."""
    truth, pred = (np.array([row[name] for row in rows]) for name in ("lesion_ml", "predicted_ml"))
    with house_style():
        figure, axes = new_figure()
        largest = max(float(truth.max()), float(pred.max()), 2 * SMALLEST_ML)
        axes.plot([0, largest], [0, largest], color=GREY, linewidth=1, linestyle="--", label="equal volumes")
        axes.scatter(truth, pred, s=22, color=BLUE, alpha=0.8, label="case")
        both = np.array([0, largest])
        _volume_axis(axes, "x", both)
        _volume_axis(axes, "y", both)
        axes.set_xlabel("Lesion volume, truth (ml)")
        axes.set_ylabel("Lesion volume, predicted (ml)")
        _legend(axes)
        image = svg_of(figure)
    over = int((pred > truth).sum())
    caption = f"{over} of {len(rows)} volumes are predicted too large, {int((pred < truth).sum())} too small."
    return Plot("Predicted against true volume", image, caption, f"Predicted against true volume. {caption}")


def bland_altman(rows: Rows) -> Plot:
    """Difference of predicted and true volume against their mean, with the limits of agreement."""
    truth, pred = (np.array([row[name] for row in rows]) for name in ("lesion_ml", "predicted_ml"))
    limits = volume_agreement(rows)
    with house_style():
        figure, axes = new_figure()
        axes.axhline(0, color="#bbbbbb", linewidth=0.8)
        names = {"high": "+1.96 SD", "bias": "mean", "low": "−1.96 SD"}
        drawn = [(name, value) for name in names if (value := limits[name]) is not None]
        for name, value in drawn:
            axes.axhline(value, color=ORANGE, linewidth=1.2, linestyle="-" if name == "bias" else "--")
        axes.scatter((truth + pred) / 2, pred - truth, s=22, color=BLUE, alpha=0.8, zorder=3)
        _volume_axis(axes, "x", (truth + pred) / 2)
        axes.set_xlabel("Mean of predicted and true volume (ml)")
        axes.set_ylabel("Predicted − true (ml)")
        bottom, top = axes.get_ylim()
        places = np.array([(value - bottom) / (top - bottom) for _, value in drawn])
        gap = 0.15  # of the axis, that two labels of two lines need
        if len(places) > 1:
            places = places[1] + np.array([1, 0, -1]) * np.maximum(np.abs(places - places[1]), gap)
        for place, (name, value) in zip(places, drawn, strict=True):
            label = f"{names[name]}\n{_ml(value)}"
            axes.text(1.02, place, label, color=ORANGE, fontsize=9, va="center", transform=axes.transAxes)
        image = svg_of(figure)
    caption = f"Mean difference {_ml(limits['bias'])} ml"
    if limits["low"] is not None:
        caption += f", limits of agreement {_ml(limits['low'])} to {_ml(limits['high'])} ml (mean ∓ 1.96 SD)"
    return Plot("Bland–Altman: agreement of volumes", image, f"{caption}.", f"Bland–Altman plot of volumes. {caption}.")


def reliability(cases: Sequence[CaseProbabilities]) -> Plot:
    """Share of lesion against the probability that was given, over all cases' brain voxels."""
    given, found = calibration.reliability(cases)
    voxels = np.sum([case.voxels for case in cases], axis=0)
    with house_style():
        figure, axes = new_figure()
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="as said")
        axes.plot(given, found, color=BLUE, linewidth=1.4, marker="o", markersize=4, label="found")
        axes.set_xlabel("Lesion probability, mean of a bin")
        axes.set_ylabel("Share of lesion")
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        _legend(axes)
        image = svg_of(figure)
    unsure = 1 - float(voxels[0] + voxels[-1]) / float(voxels.sum())
    outer = f"{100 * unsure:.1f} % of the brain’s voxels are in none of the outermost two"
    caption = f"{calibration.BINS} bins of equal width; {outer}."
    told = ", ".join(f"{p:.2f}: {share:.2f}" for p, share in zip(given, found, strict=True))
    return Plot("Reliability of the probabilities", image, caption, f"Share of lesion by probability. {told}.")


def dice_by_threshold(cases: Sequence[CaseProbabilities]) -> Plot:
    """Mean Dice of the cases at each threshold."""
    means = np.mean([case.dice for case in cases], axis=0)
    threshold, best = calibration.best_threshold(cases)
    with house_style():
        figure, axes = new_figure()
        axes.plot(calibration.THRESHOLDS, means, color=BLUE, linewidth=1.6)
        axes.plot(threshold, best, "*", color=ORANGE, markersize=11, label="best")
        axes.set_xlabel("Threshold of the probability")
        axes.set_ylabel("Mean Dice, native grid")
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.04, 1.04)
        _legend(axes)
        image = svg_of(figure)
    caption = (
        f"Best {best:.3f} at {threshold:.2f}, {means[49]:.3f} at 0.50. Found on these cases, it says too much of them: "
        "take it to others by --threshold_from."
    )
    return Plot("Dice against threshold", image, caption, f"Mean Dice by threshold. {caption}")


def ensemble_gain(rows: Rows) -> Plot | None:
    """Mean Dice of the ensemble (or of the mean over flips) and of each model alone; None without such columns.

    Args:
        rows: with the columns ``member_1_dice``, ``member_2_dice``, …
    """
    members = [name for name in rows[0] if re.fullmatch(r"member_\d+_dice", name)]
    if not members:
        return None
    alone = [np.array([row[name] for row in rows]) for name in members]
    together = np.array([row["native_dice"] for row in rows])
    names = [f"model {i}" for i in range(1, len(members) + 1)] if len(members) > 1 else ["without flips"]
    names.append("ensemble" if len(members) > 1 else "with flips")
    told = []
    with house_style():
        figure, axes = new_figure(height=1.2 + 0.35 * len(names))
        for place, (label, values) in enumerate(zip(names, [*alone, together], strict=True)):
            figures = describe(list(values))
            colour = ORANGE if values is together else BLUE
            if figures["low"] is not None:
                axes.hlines(place, figures["low"], figures["high"], color=colour, linewidth=2)
            axes.scatter([figures["mean"]], [place], s=40, color=colour, zorder=3)
            told.append(f"{label} {figures['mean']:.3f}")
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel("Mean Dice with 95 % confidence interval")
        image = svg_of(figure)
    gain = describe(list(together - np.mean(alone, axis=0)))
    caption = f"Native grid. Gain over {'the mean of the models' if len(members) > 1 else 'the same model'}"
    caption += f"{', each alone and' if len(members) > 1 else ''} without flips: {gain['mean']:+.3f} Dice"
    caption += f" (95 % CI {gain['low']:+.3f} to {gain['high']:+.3f})." if gain["low"] is not None else "."
    title = "Ensemble and its models" if len(members) > 1 else "Flips at test time"
    return Plot(title, image, caption.replace("-", "−"), f"Mean Dice: {', '.join(told)}.")


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
    plots = []
    if curves.get("loss"):
        steps, values = np.array(curves["loss"], dtype=float).T
        window = max(1, len(values) // 30)
        with house_style():
            figure, axes = new_figure()
            axes.plot(steps, values, color=BLUE, linewidth=0.6, alpha=0.45, label="each batch")
            if window > 1:
                smooth = np.convolve(values, np.ones(window) / window, mode="valid")
                axes.plot(steps[window - 1 :], smooth, color=BLUE, linewidth=1.8, label=f"mean of {window} batches")
                _legend(axes)
            axes.set_xlabel("Iteration")
            axes.set_ylabel("Loss")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            image = svg_of(figure)
        plots.append(
            Plot(
                "Training loss", image, "", f"Loss over {len(values)} iterations: {values[0]:.3g} to {values[-1]:.3g}."
            )
        )
    dice = {tag: curves[f"{tag}_mean_dice"] for tag in ("train", "val") if curves.get(f"{tag}_mean_dice")}
    if dice:
        caption = ""
        with house_style():
            figure, axes = new_figure()
            looks = {"train": ("training", BLUE, "-"), "val": ("validation", ORANGE, "-")}
            for tag, points in dice.items():
                epochs, values = np.array(points, dtype=float).T
                label, colour, line = looks[tag]
                axes.plot(epochs, values, line, color=colour, linewidth=1.6, marker="o", markersize=2.5, label=label)
                if tag == "val":
                    best = int(np.nanargmax(values)) if np.isfinite(values).any() else 0
                    axes.plot(epochs[best], values[best], "*", color=ORANGE, markersize=11, label="best")
                    caption = f"Best validation Dice {values[best]:.3f} after epoch {int(epochs[best])}."
            axes.set_xlabel("Epoch")
            axes.set_ylabel("Mean Dice, resampled grid")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            _legend(axes)
            image = svg_of(figure)
        plots.append(Plot("Dice during training", image, caption, f"Mean Dice by epoch. {caption}"))
    return plots


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


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0, handletextpad=0.4)


def _ml(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}".replace("-", "−")
