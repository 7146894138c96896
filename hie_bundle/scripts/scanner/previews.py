"""Pictures for quality control: slices of an ADC map or another image with outlines of masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry.slices import axial, shown_box, upright
from ..io.files import write_atomically
from ..io.panels import BLUE, ORANGE, Panel, grey_slice, panels_png
from ..io.volumes import Volume

PANELS = 8


def outlines(path: str | Path, image: Volume, masks: Mapping[str, NDArray[Any]], title: str) -> None:
    """Write a PNG of eight axial slices with masks' outlines; the patient's right is on the left.

    Args:
        path: output file.
        image: shown in grey, from 0 to the 99th percentile of its values above 0.
        masks: one or two masks of the same shape by name; the first is orange, the second blue.
        title: title above the slices.
    """
    values, spacing = upright(np.asarray(image.array, dtype=np.float32), image.affine)
    drawn = {
        colour: upright(np.asarray(mask) > 0, image.affine)[0]
        for colour, mask in zip((ORANGE, BLUE), masks.values(), strict=False)
    }
    box = shown_box((values > 0) | drawn[ORANGE])
    rows = np.flatnonzero(drawn[ORANGE].any((0, 1)))
    first, last = (rows[0], rows[-1]) if len(rows) else (0, values.shape[2] - 1)
    chosen = np.unique(np.linspace(first, last, PANELS + 2)[1:-1].round().astype(int))
    white = float(np.percentile(values[values > 0], 99)) if (values > 0).any() else 1.0
    panels = [
        Panel(grey_slice(values, (0, white), box, z, None), f"slice {z + 1}", spacing[1] / spacing[0],
              {colour: axial(one, box, z) for colour, one in drawn.items()})
        for z in map(int, chosen)
    ]  # fmt: skip
    rows_of_panels = [panels[:4], panels[4:]] if panels[4:] else [panels]
    write_atomically(path, panels_png(rows_of_panels, title, dict(zip(drawn, masks, strict=True)), 2.7))
