"""Pictures to check a step by: slices of an ADC map or another image with the outline of a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..geometry.slices import axial, shown_box, upright
from ..io.files import atomic_path
from ..io.volumes import Volume

__all__ = ["outlines"]

COLOUR = "#e69f00"  # Okabe and Ito's orange
SECOND_COLOUR = "#56b4e9"  # and sky blue
PANELS = 8


def outlines(
    path: str | Path,
    image: Volume,
    mask: NDArray[Any],
    title: str,
    label: str,
    other: NDArray[Any] | None = None,
    other_label: str = "",
) -> None:
    """Write a PNG of eight axial slices with a mask's outline; the patient's right is on the left.

    Args:
        path: of the picture.
        image: shown in grey, from 0 to its 99th percentile where it is above 0.
        mask: of the same shape.
        title: printed above.
        label: what the outline is.
        other: a second mask, thin and blue; None for none.
        other_label: what it is.
    """
    values, spacing = upright(np.asarray(image.array, dtype=np.float32), image.affine)
    drawn, _ = upright(np.asarray(mask, dtype=np.uint8), image.affine)
    second = None if other is None else upright(np.asarray(other, dtype=np.uint8), image.affine)[0]
    box = shown_box((values > 0) | (drawn > 0))
    rows = np.flatnonzero((drawn > 0).any((0, 1)))
    first, last = (rows[0], rows[-1]) if len(rows) else (0, values.shape[2] - 1)
    chosen = np.unique(np.linspace(first, last, PANELS + 2)[1:-1].round().astype(int))
    white = float(np.percentile(values[values > 0], 99)) if (values > 0).any() else 1.0
    figure = Figure(figsize=(11, 6.2), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    cells = figure.subplots(2, PANELS // 2).ravel()
    for cell in cells:
        cell.set_axis_off()
    for cell, z in zip(cells, chosen, strict=False):
        cell.imshow(axial(values, box, z), cmap="gray", vmin=0, vmax=white, aspect=spacing[1] / spacing[0])
        if (outline := axial(drawn, box, z)).any() and not outline.all():
            cell.contour(outline, [0.5], colors=COLOUR, linewidths=1.0)
        if second is not None and (outline := axial(second, box, z)).any() and not outline.all():
            cell.contour(outline, [0.5], colors=SECOND_COLOUR, linewidths=0.6)
        cell.set_title(f"slice {z + 1}", color="white", fontsize=8)
    key = f"outline: {label}" + (f"; blue: {other_label}" if other is not None else "")
    figure.suptitle(f"{title} ({key})", color="white", fontsize=11, parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, facecolor="black", format="png")
