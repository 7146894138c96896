"""The study's plots and its Figure 2: every variant's mask on the same slices."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..data.layout import item_files
from ..evaluation.measures import column
from ..geometry.brain import brain_of
from ..geometry.slices import axial, shown_box, upright
from ..io.volumes import read_volume
from ..report.drawing import BLUE, GREY, ORANGE, Plot, plot, set_height
from ..report.pictures import PRED_COLOUR, TRUTH_COLOUR
from ..report.plots import read_curves
from ..report.tables import read_rows
from .results import Results, describe_measure

__all__ = ["Panel", "Strip", "curve_plots", "figure_2", "mean_plot", "rank_plot", "strips"]

COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", GREY)  # Okabe and Ito
LINES = ("-", "--", ":", "-.")
PANELS_A_ROW = 7
PANEL_INCHES = 2.0


@dataclass(frozen=True)
class Panel:
    """One mask on one slice.

    Attributes:
        title: whose mask.
        note: how good it is.
        image: the slice as PNG, base64.
    """

    title: str
    note: str
    image: str


@dataclass(frozen=True)
class Strip:
    """One case of Figure 2.

    Attributes:
        title: what kind of lesion, and the case.
        note: which slice, and how large the lesion is.
        adc: the slice, values in the window as 0 to 1, rows from anterior to posterior, the patient's right first.
        truth: annotated lesion in the slice.
        masks: of each variant by label: its mask and the text below it.
        aspect: height of a pixel by its width.
    """

    title: str
    note: str
    adc: NDArray[np.float64]
    truth: NDArray[np.bool_]
    masks: Mapping[str, tuple[NDArray[np.bool_], str]]
    aspect: float

    @property
    def panels(self) -> list[Panel]:
        """The truth, then each variant."""
        drawn = [Panel("Truth", "", self._png(None))]
        return drawn + [Panel(label, note, self._png(mask)) for label, (mask, note) in self.masks.items()]

    def _png(self, mask: NDArray[np.bool_] | None) -> str:
        height, width = self.adc.shape
        figure = Figure(figsize=(2.4, 2.4 * height * self.aspect / width), facecolor="black")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        self.draw(axes, mask)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110, facecolor="black")
        return base64.b64encode(file.getvalue()).decode()

    def draw(self, axes: Axes, mask: NDArray[np.bool_] | None) -> None:
        """The slice with a variant's mask filled and the truth outlined; without a mask the truth filled."""
        axes.imshow(self.adc, cmap="gray", vmin=0, vmax=1, aspect=self.aspect)
        filled, colour = (self.truth, TRUTH_COLOUR) if mask is None else (mask, PRED_COLOUR)
        overlay = np.zeros((*filled.shape, 4))
        overlay[filled] = to_rgba(colour, 0.6)
        axes.imshow(overlay, aspect=self.aspect, interpolation="nearest")
        if filled.any():
            axes.contour(filled, [0.5], colors=colour, linewidths=0.8)
        if mask is not None and self.truth.any():
            axes.contour(self.truth, [0.5], colors=TRUTH_COLOUR, linewidths=1.0)
        axes.set_axis_off()


def strips(results: Results, items: Mapping[str, Mapping[str, Any]], adc_window: Sequence[float]) -> list[Strip]:
    """The slices with most lesion of the smallest and of the largest lesion, with every variant's mask.

    Args:
        results: of the study; the masks are those of the first run that evaluated the case.
        items: MONAI data items by case.
        adc_window: ADC shown as black and as white.

    Returns:
        Two strips, fewer where there are fewer lesions, none without figures on the native grid; variants without a
        saved mask are excluded.
    """
    rows = [row for row in next(iter(results.cases.values())) if row.get("lesion_fraction", 0) > 0]
    if not rows:
        return []
    rows.sort(key=lambda row: row["lesion_fraction"])
    kinds = [("Smallest lesion", rows[0])] + ([("Largest lesion", rows[-1])] if len(rows) > 1 else [])
    return [_strip(results, items[row["case"]], row, kind, adc_window) for kind, row in kinds]


def figure_2(shown: Sequence[Strip]) -> bytes:
    """All strips in one PNG, below each other."""
    rows = [(strip, start) for strip in shown for start in range(0, 1 + len(strip.masks), PANELS_A_ROW)]
    columns = min(PANELS_A_ROW, max(1 + len(strip.masks) for strip in shown))
    heights = [strip.adc.shape[0] * strip.aspect / strip.adc.shape[1] for strip, _ in rows]
    size = (PANEL_INCHES * columns, PANEL_INCHES * sum(heights) + 0.75 * len(rows))
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=[h * PANEL_INCHES + 0.75 for h in heights])
    for part, (strip, start) in zip(parts[:, 0], rows, strict=True):
        masks: list[tuple[str, NDArray[np.bool_] | None, str]] = [("Truth", None, "")]
        masks += [(label, mask, note) for label, (mask, note) in strip.masks.items()]
        part.suptitle(f"{strip.title}; {strip.note}", fontsize=9, x=0.01, ha="left", parse_math=False)
        all_axes = part.subplots(1, columns, squeeze=False)[0]
        for axes in all_axes:
            axes.set_axis_off()
        for axes, (label, mask, note) in zip(all_axes, masks[start : start + PANELS_A_ROW], strict=False):
            strip.draw(axes, mask)
            axes.set_title(f"{label}\n{note}" if note else label, fontsize=7.5, parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


@plot
def mean_plot(axes: Axes, results: Results, measure: str) -> tuple[str, str, str]:
    """Mean of one measure with its interval for each variant, best first, over the single cases."""
    known = column(measure)
    order = results.by_rank(measure)
    rng = np.random.default_rng(0)  # of the jitter
    means = []
    for place, variant in enumerate(order):
        values = np.array([row[measure] for row in results.cases[variant.name]], dtype=float)
        finite = values[np.isfinite(values)]
        jitter = rng.uniform(-0.16, 0.16, len(finite))
        axes.scatter(finite, place + jitter, s=9, color=GREY, alpha=0.5, linewidths=0)
        figures = results.summary[variant.name]["all"][measure]
        if figures["mean"] is None:
            continue
        if figures["low"] is not None:
            axes.hlines(place, figures["low"], figures["high"], color=BLUE, linewidth=2.4)
        axes.scatter([figures["mean"]], [place], s=42, color=BLUE, zorder=3)
        means.append(f"{variant.label} {known.text(figures['mean'])}")
    _variant_axis(axes, [variant.label for variant in order])
    axes.set_xlabel(known.heading)
    title = f"{describe_measure(known)}{' ↑' if known.better == 'higher' else ' ↓'}"
    return title, "", f"Means of {title}: {'; '.join(means)}."


@plot
def rank_plot(axes: Axes, results: Results, measure: str) -> tuple[str, str, str]:
    """Each variant's rank, and its interval when the cases are drawn again."""
    order = results.by_rank(measure)
    ranks = []
    for place, variant in enumerate(order):
        rank = results.ranks[measure][variant.name]
        if np.isnan(rank["rank"]):
            continue
        axes.hlines(place, rank["low"], rank["high"], color=ORANGE, linewidth=2.4)
        axes.scatter([rank["rank"]], [place], s=42, color=ORANGE, zorder=3)
        share = f"{100 * rank['share_of_draws_first']:.0f} %"
        axes.text(1.02, place, share, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
        ranks.append(f"{variant.label} rank {rank['rank']:g}, best in {share}")
    axes.text(1.02, -0.75, "best in", transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    _variant_axis(axes, [variant.label for variant in order])
    axes.set_xlim(0.6, len(order) + 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("Rank (1 is best)")
    title = f"Rank by {describe_measure(column(measure))}"
    return title, "", f"{title}: {'; '.join(ranks)}."


def curve_plots(results: Results) -> list[Plot]:
    """Validation and training Dice by epoch, all variants in one plot: the mean of a variant's runs, each run thin."""
    curves = {
        name: [read_curves(run.folder / "tensorboard") for run in members] for name, members in results.runs.items()
    }
    found = []
    for tag, title in (("val_mean_dice", "Validation Dice"), ("train_mean_dice", "Training Dice")):
        runs = {v.label: [dict(one[tag]) for one in curves[v.name] if one.get(tag)] for v in results.variants}
        if any(runs.values()):
            found.append(_curves(title, runs))
    return found


@plot
def _curves(axes: Axes, title: str, curves: Mapping[str, Sequence[Mapping[int, float]]]) -> tuple[str, str, str]:
    best = []
    for place, (label, runs) in enumerate(curves.items()):
        if not runs:
            continue
        line = LINES[(place // len(COLOURS) + place) % len(LINES)]
        look: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "linestyle": line}
        epochs = sorted(set().union(*runs))
        mean = [float(np.mean([run[epoch] for run in runs if epoch in run])) for epoch in epochs]
        axes.plot(epochs, mean, linewidth=1.7, label=label, **look)
        for run in runs if len(runs) > 1 else []:
            axes.plot(list(run), list(run.values()), linewidth=0.5, alpha=0.4, **look)
        best.append(f"{label} up to {max(mean):.3f}")
    set_height(axes, 3.0 + 0.2 * ((len(curves) + 1) // 2))
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Mean Dice, resampled grid")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.1, 1), ncols=2, borderaxespad=0, fontsize=8.5)
    return title, "", f"{title} by epoch: {'; '.join(best)}."


def _variant_axis(axes: Axes, labels: Sequence[str]) -> None:
    set_height(axes, 1.1 + 0.36 * len(labels))
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -1.1 if len(labels) > 1 else -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    for label in axes.get_yticklabels():
        label.set_parse_math(False)


def _strip(
    results: Results, item: Mapping[str, Any], row: Mapping[str, Any], kind: str, adc_window: Sequence[float]
) -> Strip:
    files = item_files(item)
    image, label = read_volume(files.get("adc") or files["stacked"]), read_volume(files["label"])
    adc = image.array if image.array.ndim == 3 else image.array[..., 0]
    adc, spacing_mm = upright(adc, image.affine)
    truth = upright(label.array, label.affine)[0] > 0.5
    z = int(truth.sum((0, 1)).argmax())
    box = shown_box(brain_of(adc) | truth)

    masks = {}
    for variant in results.variants:
        for run in results.runs[variant.name]:
            path = run.folder / "masks" / f"{row['case']}_lesion.nii.gz"
            if not path.is_file():
                continue
            saved = read_volume(path)
            mask = upright(saved.array, saved.affine)[0] > 0.5
            dice = next(r["native_dice"] for r in read_rows(run.folder / "metrics.csv") if r["case"] == row["case"])
            masks[variant.label] = (axial(mask, box, z), f"Dice {column('native_dice').text(dice)}")
            break
    low, high = adc_window
    return Strip(
        title=f"{kind}: {row['case']}",
        note=f"{100 * row['lesion_fraction']:.2g} % of the brain, slice {z + 1} of {truth.shape[2]}",
        adc=np.clip((axial(adc, box, z) - low) / (high - low), 0, 1),
        truth=axial(truth, box, z),
        masks=masks,
        aspect=float(spacing_mm[1] / spacing_mm[0]),
    )
