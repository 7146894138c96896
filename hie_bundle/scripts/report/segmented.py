"""One segmented case without a truth: a picture of its slices, and a page with the figures."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..geometry.brain import brain_of
from ..geometry.slices import axial, shown_box, upright
from ..io.files import write_atomically
from .page import lesion_table, render_page
from .pictures import PRED_COLOUR, outline_path, png_of

__all__ = ["slices_to_show", "write_case_page", "write_case_picture"]

MOST_SLICES = 8
WINDOWS = {"ADC": (0.0, 2500.0), "ZADC": (-6.0, 6.0)}  # as in evaluate.yaml
LETTERS_AN_INCH = 10  # of the title, at most


def slices_to_show(mask: NDArray[Any], brain: NDArray[Any]) -> list[int]:
    """Axial slices that show a mask: those with lesion, evenly spaced where there are more than eight, and among them
    the one with most; without lesion three through the brain.

    Args:
        mask: shape (X, Y, Z).
        brain: same shape.
    """
    areas = mask.sum((0, 1))
    found = np.flatnonzero(areas)
    if not len(found):
        inside = np.flatnonzero(brain.sum((0, 1)))
        return sorted({int(inside[len(inside) * n // 4]) for n in (1, 2, 3)}) if len(inside) else [mask.shape[2] // 2]
    chosen = {int(found[round(i)]) for i in np.linspace(0, len(found) - 1, min(MOST_SLICES, len(found)))}
    if (most := int(areas.argmax())) not in chosen:
        chosen.remove(min(chosen, key=lambda z: areas[z]))
        chosen.add(most)
    return sorted(chosen)


def write_case_picture(
    path: Path, maps: Mapping[str, NDArray[Any]], mask: NDArray[Any], affine: NDArray[Any], title: str
) -> None:
    """Write a PNG: a row a map, a column a slice, the mask's outline on each; the patient's right is on the left.

    Args:
        path: of the picture.
        maps: ``ADC`` and perhaps ``ZADC``, shape (X, Y, Z) as they are stored.
        mask: same shape.
        affine: (4, 4) from voxel indices to millimetres, RAS+.
        title: above.
    """
    shown, lesion, spacing_mm = _upright(maps, mask, affine)
    brain = brain_of(shown["ADC"])
    box, chosen = shown_box(brain | lesion), slices_to_show(lesion, brain)
    figure = Figure(figsize=(2.1 * len(chosen) + 0.4, 2.5 * len(shown) + 0.5), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), len(chosen), squeeze=False)
    for row, (name, volume) in zip(axes, shown.items(), strict=True):
        for place, z in zip(row, chosen, strict=True):
            low, high = WINDOWS[name]
            inside = np.ma.masked_where(~axial(brain, box, z), axial(volume, box, z))  # black outside, also in ZADC
            place.imshow(inside, cmap="gray", vmin=low, vmax=high, aspect=spacing_mm[1] / spacing_mm[0])
            if axial(lesion, box, z).any():
                place.contour(axial(lesion, box, z), [0.5], colors=PRED_COLOUR, linewidths=1.4)
            place.set_axis_off()
            place.set_title(f"{name}, slice {z + 1}", color="white", fontsize=9)
    lines = textwrap.fill(title, int(LETTERS_AN_INCH * figure.get_figwidth()))  # one slice is narrower than most titles
    figure.suptitle(lines, color="white", fontsize=11, parse_math=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, facecolor="black")
    write_atomically(path, png.getvalue())


def write_case_page(
    path: Path,
    maps: Mapping[str, NDArray[Any]],
    mask: NDArray[Any],
    affine: NDArray[Any],
    title: str,
    figures: Sequence[tuple[str, str]],
    notes: Sequence[str],
    facts: Mapping[str, str],
    lesions: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a page that needs nothing else: the figures as tiles, the slices of both maps, where it all came from.

    Args:
        path: of the page.
        maps: as for :func:`write_case_picture`, like the next two.
        mask: see there.
        affine: see there.
        title: the case.
        figures: label and value of each tile.
        notes: what is to be known of the input.
        facts: files, weights, versions.
        lesions: rows of :func:`scripts.evaluation.lesions.lesions_of`.
    """
    shown, lesion, spacing_mm = _upright(maps, mask, affine)
    brain = brain_of(shown["ADC"])
    box = shown_box(brain | lesion)
    pixel_mm = spacing_mm[0], spacing_mm[1]
    slices = []
    for z in slices_to_show(lesion, brain):
        area = axial(lesion, box, z)
        pictures = {}
        for name, volume in shown.items():
            low, high = WINDOWS[name]
            grey = (axial(volume, box, z) - low) / (high - low)
            pictures[name] = png_of(np.where(axial(brain, box, z), grey, 0))
        size_mm = (area.shape[1] * pixel_mm[0], area.shape[0] * pixel_mm[1])
        slices.append({"number": z + 1, "pictures": pictures, "outline": outline_path(area, pixel_mm),
                       "size_mm": size_mm, "area_mm2": float(area.sum()) * pixel_mm[0] * pixel_mm[1]})  # fmt: skip
    page = render_page(
        "segmented.html.jinja", title=title, figures=figures, notes=notes, facts=facts, slices=slices,
        count=lesion.shape[2], windows=WINDOWS, lesions=lesion_table(lesions),
    )  # fmt: skip
    write_atomically(path, page)


def _upright(
    maps: Mapping[str, NDArray[Any]], mask: NDArray[Any], affine: NDArray[Any]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_], tuple[float, ...]]:
    lesion, spacing_mm = upright(mask > 0, affine)
    return {name: upright(volume, affine)[0] for name, volume in maps.items()}, lesion, spacing_mm
