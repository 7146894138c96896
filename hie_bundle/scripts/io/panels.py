"""Slices with outlines of masks, as one PNG picture."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ..geometry.slices import axial

BLUE, ORANGE = "#56b4e9", "#e69f00"  # colour-blind safe (Okabe and Ito)
TITLE_INCHES = 0.45
LETTERS_AN_INCH = 10  # maximum, in the title


@dataclass(frozen=True)
class Panel:
    """One slice.

    Attributes:
        grey: 0 (black) to 1 (white), rows from anterior to posterior, columns from the patient's right to left.
        title: title above the slice.
        aspect: height / width of a pixel.
        outlines: masks of the same shape, by colour.
    """

    grey: NDArray[Any]
    title: str
    aspect: float
    outlines: Mapping[str, NDArray[Any]]


def grey_slice(
    volume: NDArray[Any], window: Sequence[float], box: tuple[slice, slice], z: int, inside: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    """Scale an axial slice to 0..1; voxels outside the brain, and missing maps, become 0.

    Args:
        volume: (X, Y, Z), RAS+.
        window: values shown as black and white.
        box: see :func:`.shown_box`.
        z: index of the slice.
        inside: brain mask of the same shape; None for the whole slice.
    """
    grey = (axial(volume, box, z) - window[0]) / (window[1] - window[0])
    shown = grey if inside is None else np.where(axial(inside, box, z), grey, 0)
    return np.nan_to_num(shown).clip(0, 1)


def panels_png(
    rows: Sequence[Sequence[Panel]], title: str, key: Mapping[str, str] | None = None, inches: float = 2.1
) -> bytes:
    """Draw rows of panels (the last may be shorter) on black, with a title and a legend of the colours (``key``)."""
    columns, first = max(map(len, rows)), rows[0][0]
    height = inches * first.grey.shape[0] * first.aspect / first.grey.shape[1] + 0.3
    width = inches * columns + 0.4
    lines = textwrap.wrap(title, int(LETTERS_AN_INCH * width))  # one slice is narrower than most titles
    size = width, height * len(rows) + TITLE_INCHES * (len(lines) + bool(key)) / 1.5
    figure = Figure(figsize=size, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    for place, axes in np.ndenumerate(figure.subplots(len(rows), columns, squeeze=False)):
        axes.set_axis_off()
        if place[1] >= len(rows[place[0]]):
            continue
        panel = rows[place[0]][place[1]]
        axes.imshow(panel.grey, cmap="gray", vmin=0, vmax=1, aspect=panel.aspect)
        for number, (colour, mask) in enumerate(panel.outlines.items()):
            if mask.any() and not mask.all():
                axes.contour(mask, [0.5], colors=colour, linewidths=1.4, linestyles="--" if number else "-")
        axes.set_title(panel.title, color="white", fontsize=8, parse_math=False)
    figure.suptitle("\n".join(lines), color="white", fontsize=11, parse_math=False)
    if key:
        handles = [Line2D([], [], color=c, label=key[c], linestyle="--" if n else "-") for n, c in enumerate(key)]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, labelcolor="white")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, facecolor="black")
    return file.getvalue()
