"""Axial slices of a case with outlines of masks, as SVG for pages and as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from ..geometry.brain import brain_of
from ..geometry.slices import axial, shown_box, upright
from ..io.panels import BLUE, ORANGE, Panel, grey_slice, panels_png

TRUTH_COLOUR, PRED_COLOUR = BLUE, ORANGE
WINDOWS: Mapping[str, Sequence[float]] = {"ADC": (0, 2500), "ZADC": (-6, 6)}  # as in evaluate.yaml
MOST_SLICES = 8
# colours at an injured share of 0 and 1; pixel size of a diagram; smallest depth of a region with a number
NO_INJURY, ALL_INJURED, PIXEL_MM, MARK_MM = np.array([0.94, 0.95, 0.96]), np.array([0.84, 0.37, 0.0]), 0.4, 4.0


@dataclass(frozen=True)
class SliceView:
    """One axial slice for a page."""

    slice: int  # from 1 at the feet
    slices: int
    reasons: Sequence[str]  # why it is shown: `most lesion`, `worst error`
    size_mm: tuple[float, float]  # width and height
    pictures: Mapping[str, str]  # PNG as base64, by map
    outlines: Mapping[str, str]  # data of an SVG path in mm, by mask; empty without lesion
    area_mm2: Mapping[str, float]  # by mask; also `missed` and `added` voxels


class CaseSlices:
    """Maps and masks of one case, turned so that the patient's right is on the left and anterior above.

    Args:
        maps: ``ADC`` (1e-6 mm²/s) and perhaps ``ZADC``, shape (X, Y, Z) as stored.
        masks: ``truth`` and others, same shape.
        affine: (4, 4) from voxel indices to millimetres, RAS+.
        windows: values shown as black and as white, by map.
    """

    def __init__(
        self,
        maps: Mapping[str, NDArray[Any]],
        masks: Mapping[str, NDArray[Any]],
        affine: NDArray[Any],
        windows: Mapping[str, Sequence[float]] = WINDOWS,
    ) -> None:
        self.windows = windows
        self.maps = {name: upright(volume, affine)[0] for name, volume in maps.items()}
        self.masks = {name: upright(mask > 0, affine)[0] for name, mask in masks.items()}
        self.spacing_mm = upright(maps["ADC"], affine)[1]
        self.brain = brain_of(self.maps["ADC"])
        self.box = shown_box(np.logical_or.reduce([self.brain, *self.masks.values()]))

    def view(self, z: int, reasons: Sequence[str] = (), masks: Sequence[str] | None = None) -> SliceView:
        """One slice for a page, with all masks or those named."""
        pixel_mm = self.spacing_mm[0], self.spacing_mm[1]
        shown = {name: axial(self.masks[name], self.box, z) for name in masks or self.masks}
        areas = dict(shown)
        if {"truth", "pred"} <= shown.keys():
            truth, pred = shown["truth"], shown["pred"]
            areas |= {"missed": truth & ~pred, "added": pred & ~truth}
        greys = {name: self._grey(name, z) for name in self.maps}
        height, width = greys["ADC"].shape
        return SliceView(
            slice=z + 1,
            slices=self.brain.shape[2],
            reasons=reasons,
            size_mm=(width * pixel_mm[0], height * pixel_mm[1]),
            pictures={name: _png(grey) for name, grey in greys.items()},
            outlines={name: _outline(mask, pixel_mm) for name, mask in shown.items()},
            area_mm2={name: float(mask.sum()) * pixel_mm[0] * pixel_mm[1] for name, mask in areas.items()},
        )

    def panel(self, name: str, z: int, title: str, masks: Sequence[str] | None = None) -> Panel:
        """One slice of a map for a PNG picture."""
        colours = {mask: TRUTH_COLOUR if mask == "truth" else PRED_COLOUR for mask in masks or self.masks}
        shown = {colour: axial(self.masks[mask], self.box, z) for mask, colour in colours.items()}
        return Panel(self._grey(name, z), title, self.spacing_mm[1] / self.spacing_mm[0], shown)

    def views_of_errors(self) -> list[SliceView]:
        """The slice with most lesion and the one with most wrong voxels; one view where they coincide."""
        z, what = self.fullest()
        reasons = {z: [f"most {what}"]}
        errors = (self.masks["truth"] != self.masks["pred"]).sum((0, 1))
        if errors.any():
            worst = z if errors[z] == errors.max() else int(errors.argmax())
            reasons.setdefault(worst, []).append("worst error")
        return [self.view(number, why) for number, why in reasons.items()]

    def overlay(self, title: str) -> bytes:
        """The slice with most lesion in every map, with the outlines of truth and prediction, as PNG."""
        z, _ = self.fullest()
        row = [self.panel(name, z, f"{name}, {low:g} to {high:g}") for name, (low, high) in self.windows.items()]
        key = {TRUTH_COLOUR: "truth", PRED_COLOUR: "prediction"}
        return panels_png([row], f"{title}, slice {z + 1} of {self.brain.shape[2]}", key, 3.9)

    def spread_picture(self, title: str) -> bytes:
        """The slices of :meth:`spread`, one row per map, as PNG."""
        rows = [[self.panel(name, z, f"{name}, slice {z + 1}") for z in self.spread()] for name in self.maps]
        return panels_png(rows, title)

    def fullest(self) -> tuple[int, str]:
        """The slice with most lesion, else most prediction, else most brain; and the one used."""
        volumes = {"lesion": self.masks.get("truth"), "prediction": self.masks.get("pred"), "brain": self.brain}
        counts = {name: volume.sum((0, 1)) for name, volume in volumes.items() if volume is not None}
        what = next((name for name, count in counts.items() if count.any()), "brain")
        return int(counts[what].argmax()), what

    def spread(self) -> list[int]:
        """Slices that show the prediction.

        Slices with lesion, evenly spaced if there are more than eight, including the largest area; for an empty mask
        three slices through the brain.
        """
        areas = self.masks["pred"].sum((0, 1))
        found = np.flatnonzero(areas)
        if not len(found):
            inside = np.flatnonzero(self.brain.sum((0, 1)))
            return sorted({int(inside[len(inside) * n // 4]) for n in (1, 2, 3)}) if len(inside) else [len(areas) // 2]
        chosen = {int(found[round(i)]) for i in np.linspace(0, len(found) - 1, min(MOST_SLICES, len(found)))}
        if (most := int(areas.argmax())) not in chosen:
            chosen.remove(min(chosen, key=lambda z: areas[z]))
            chosen.add(most)
        return sorted(chosen)

    def _grey(self, name: str, z: int) -> NDArray[np.float64]:
        return grey_slice(self.maps[name], self.windows[name], self.box, z, self.brain)


def region_slices(
    labels: NDArray[np.uint8], regions: Sequence[Mapping[str, Any]], affine: NDArray[Any]
) -> list[dict[str, Any]]:
    """Four axial slices of an atlas' regions, coloured by the injured share, from the feet up.

    Args:
        labels: number of each voxel's region, 0 outside the brain.
        regions: ``number`` and ``share`` of each.
        affine: (4, 4) from voxel indices to millimetres, RAS+.

    Returns:
        For each slice ``number``, ``picture`` (PNG in base64), ``size_mm`` and ``marks``: number and position in mm
        of each region that has room for its number.
    """
    shown, spacing_mm = upright(labels, affine)
    box, inside = shown_box(shown > 0), np.flatnonzero(shown.any((0, 1)))
    colours = np.ones((256, 3))
    for row in regions:
        colours[row["number"]] = NO_INJURY + np.sqrt(row["share"]) * (ALL_INJURED - NO_INJURY)  # root: small shares
    slices = []
    for z in (int(inside[round(part * (len(inside) - 1))]) for part in (0.2, 0.4, 0.55, 0.75)):
        area = axial(shown, box, z)
        pixel_mm = np.array([spacing_mm[0], spacing_mm[1]])
        factor = np.maximum(np.round(pixel_mm / PIXEL_MM).astype(int), 1)  # for thin lines between regions
        fine = np.kron(area, np.ones((factor[1], factor[0]), np.uint8))
        edge = (fine != np.roll(fine, 1, 0)) | (fine != np.roll(fine, 1, 1))
        marks = []
        for number in np.unique(area[area > 0]).tolist():
            depth = ndimage.distance_transform_edt(np.pad(area == number, 1), pixel_mm[::-1])[1:-1, 1:-1]
            place = np.unravel_index(int(depth.argmax()), depth.shape)
            if depth[place] > MARK_MM:
                marks.append({"number": number, "at": ((np.array(place)[::-1] + 0.5) * pixel_mm).round(1).tolist()})
        size_mm = (np.array(area.shape[::-1]) * pixel_mm).tolist()
        picture = _png(np.where(edge[..., None], 0.55, colours[fine]))
        slices.append({"number": z + 1, "picture": picture, "size_mm": size_mm, "marks": marks})
    return slices


def _png(values: NDArray[np.float64]) -> str:
    """PNG as base64 of grey values or colours in [0, 1]."""
    file = io.BytesIO()
    Image.fromarray(np.round(values * 255).astype(np.uint8)).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _outline(mask: NDArray[np.bool_], pixel_mm: tuple[float, float]) -> str:
    """The border of a mask as SVG path data, in mm from the upper left corner."""
    if not mask.any():
        return ""
    lines = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    # minus one pixel of padding, plus half a pixel to its centre
    polygons = [(np.asarray(line) - 0.5) * pixel_mm for line in lines]
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points[:-1]) + "Z" for points in polygons)
