"""Pictures of a case: ADC and ZADC slices with the outlines of truth and prediction."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from contourpy import contour_generator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from ..geometry.brain import brain_of
from ..geometry.slices import axial, shown_box

__all__ = [
    "PRED_COLOUR", "TRUTH_COLOUR", "SliceView", "case_views", "outline_path", "png_of", "render_case",
]  # fmt: skip

TRUTH_COLOUR, PRED_COLOUR = "#56b4e9", "#e69f00"  # told apart by colour-blind readers (Okabe and Ito)

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SliceView:
    """One axial slice, ready for a page: the patient's right on the left, anterior above.

    Attributes:
        slice: its number, from 1 at the feet.
        slices: how many there are.
        reasons: why it is shown: ``most lesion``, ``worst error``.
        size_mm: width and height.
        truth: outline of the annotated lesion as the data of an SVG path, in mm; empty without lesion.
        pred: that of the prediction.
        adc: the ADC map as a greyscale PNG, base64.
        zadc: the ZADC map.
        lesion_mm2: annotated area.
        predicted_mm2: predicted area.
        missed_mm2: lesion that is not predicted.
        added_mm2: prediction that is no lesion.
    """

    slice: int
    slices: int
    reasons: tuple[str, ...]
    size_mm: tuple[float, float]
    truth: str
    pred: str
    adc: str
    zadc: str
    lesion_mm2: float
    predicted_mm2: float
    missed_mm2: float
    added_mm2: float


def case_views(
    adc: NDArray[Any],
    zadc: NDArray[Any],
    truth: Mask,
    pred: Mask,
    spacing_mm: Sequence[float],
    adc_window: Sequence[float] = (0, 2500),
    zadc_window: Sequence[float] = (-6, 6),
) -> list[SliceView]:
    """The slices of one case that matter: the one with most lesion and the one with most wrong voxels.

    Args:
        adc: ADC map, 1e-6 mm²/s, shape (X, Y, Z) in RAS+ order, so that Z runs through the slices.
        zadc: ZADC map, same shape.
        truth: annotated lesion, same shape.
        pred: predicted lesion, same shape.
        spacing_mm: voxel size along each axis.
        adc_window: ADC shown as black and as white.
        zadc_window: ZADC shown as black and as white.

    Returns:
        One view where the two slices coincide or nothing is wrong, else two. Without annotated lesion the first is the
        slice with most prediction, without that the one with most brain.
    """
    brain = brain_of(adc)
    reasons: dict[int, tuple[str, ...]] = {}
    z, what = _fullest_slice(truth, pred, brain)
    reasons[z] = (f"most {what}",)
    errors = (truth != pred).sum((0, 1))
    if errors.any():
        worst = z if errors[z] == errors.max() else int(errors.argmax())
        reasons[worst] = (*reasons.get(worst, ()), "worst error")
    box = shown_box(brain | truth | pred)
    pixel_mm = float(spacing_mm[0]), float(spacing_mm[1])
    views = []
    for z, why in reasons.items():
        t, p, inside = (axial(volume, box, z) for volume in (truth, pred, brain))
        pictures = []
        for volume, window in ((adc, adc_window), (zadc, zadc_window)):
            grey = (axial(volume, box, z) - window[0]) / (window[1] - window[0])
            pictures.append(png_of(np.where(inside, grey, 0)))  # black outside the brain, also in ZADC
        area = pixel_mm[0] * pixel_mm[1]
        views.append(
            SliceView(
                slice=z + 1,
                slices=adc.shape[2],
                reasons=why,
                size_mm=(t.shape[1] * pixel_mm[0], t.shape[0] * pixel_mm[1]),
                truth=outline_path(t, pixel_mm),
                pred=outline_path(p, pixel_mm),
                adc=pictures[0],
                zadc=pictures[1],
                lesion_mm2=float(t.sum()) * area,
                predicted_mm2=float(p.sum()) * area,
                missed_mm2=float((t & ~p).sum()) * area,
                added_mm2=float((p & ~t).sum()) * area,
            )
        )
    return views


def render_case(
    adc: NDArray[Any],
    zadc: NDArray[Any],
    truth: Mask,
    pred: Mask,
    spacing_mm: Sequence[float],
    title: str,
    adc_window: Sequence[float] = (0, 2500),
    zadc_window: Sequence[float] = (-6, 6),
) -> bytes:
    """The slice with most lesion of one case, in ADC and ZADC, with the outlines of truth and prediction.

    Args:
        adc: ADC map, 1e-6 mm²/s, shape (X, Y, Z) in RAS+ order, so that Z runs through the slices.
        zadc: ZADC map, same shape.
        truth: annotated lesion, same shape.
        pred: predicted lesion, same shape.
        spacing_mm: voxel size along each axis.
        title: printed above.
        adc_window: ADC shown as black and as white.
        zadc_window: ZADC shown as black and as white.

    Returns:
        A PNG image; the patient's right is on the left, as radiologists look at it.
    """
    brain = brain_of(adc)
    z, _ = _fullest_slice(truth, pred, brain)
    box = shown_box(brain | truth | pred)
    figure = Figure(figsize=(8, 4.9), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    aspect = spacing_mm[1] / spacing_mm[0]
    outside = ~axial(brain, box, z)
    for axes, volume, name, window in zip(
        figure.subplots(1, 2), (adc, zadc), ("ADC (10⁻⁶ mm²/s)", "ZADC"), (adc_window, zadc_window), strict=True
    ):
        inside_brain = np.ma.masked_where(outside, axial(volume, box, z))  # black outside, also in ZADC
        shown = axes.imshow(inside_brain, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
        for mask, colour, style in ((truth, TRUTH_COLOUR, "-"), (pred, PRED_COLOUR, "--")):
            if axial(mask, box, z).any():
                axes.contour(axial(mask, box, z), [0.5], colors=colour, linewidths=1.4, linestyles=style)
        axes.set_axis_off()
        axes.set_title(name, color="white", fontsize=10)
        bar = figure.colorbar(shown, ax=axes, shrink=0.7, pad=0.02)
        bar.ax.tick_params(colors="white", labelsize=8)
        bar.outline.set_edgecolor("white")  # type: ignore[operator]
    figure.suptitle(f"{title}, slice {z + 1} of {adc.shape[2]}", color="white", fontsize=11, parse_math=False)
    handles = [
        Line2D([], [], color=TRUTH_COLOUR, label="truth"),
        Line2D([], [], color=PRED_COLOUR, linestyle="--", label="prediction"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, labelcolor="white", fontsize=10)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120, facecolor="black")
    return png.getvalue()


def _fullest_slice(truth: Mask, pred: Mask, brain: Mask) -> tuple[int, str]:
    """The slice with most lesion, else most prediction, else most brain; and which it was."""
    counts = {"lesion": truth.sum((0, 1)), "prediction": pred.sum((0, 1)), "brain": brain.sum((0, 1))}
    what = next((name for name, count in counts.items() if count.any()), "brain")
    return int(counts[what].argmax()), what


def png_of(grey: NDArray[Any]) -> str:
    levels = np.round(np.clip(np.nan_to_num(grey), 0, 1) * 255).astype(np.uint8)  # black where a map is missing
    file = io.BytesIO()
    Image.fromarray(levels).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def outline_path(mask: Mask, pixel_mm: tuple[float, float]) -> str:
    """The border of a mask as SVG path data, in mm from the upper left corner."""
    if not mask.any():
        return ""
    lines = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    paths = []
    for line in lines:
        points = (np.asarray(line) - 0.5) * pixel_mm  # one pixel of padding, but a pixel's centre is at its half
        paths.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points[:-1]) + "Z")
    return "".join(paths)
