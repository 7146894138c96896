"""Tables of the report and of the study: built once, shown as HTML (macros.jinja) and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.measures import Measure

__all__ = ["Cell", "Table", "figures_cell", "heading_cell"]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: main line.
        small: further lines.
        bold: whether the main line is bold.
        style: CSS class; ``paper`` are published figures, which Markdown puts into the cell before.
        better: of a heading: ``higher`` or ``lower``, shown as an arrow.
    """

    text: str
    small: Sequence[str] = ()
    bold: bool = False
    style: str = ""
    better: str = ""

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")

    @property
    def markdown(self) -> str:
        """The cell in one line."""
        main = f"**{self.text}**" if self.bold else f"{self.text} {self.arrow}".rstrip()
        return f"{main} ({', '.join(self.small)})" if self.small else main


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        title: what it shows.
        header: a cell a column.
        rows: as many cells each.
        note: explanation above it.
        folded: whether the page folds it.
    """

    title: str
    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    folded: bool = False

    @property
    def markdown(self) -> list[str]:
        """Lines of a Markdown table."""
        lines = [self.header, [Cell("---")] * len(self.header), *self.rows]
        return [self._line(cells) for cells in lines]

    def _line(self, cells: Sequence[Cell]) -> str:
        texts: list[str] = []
        for cell, heading in zip(cells, self.header, strict=True):
            if heading.style != "paper":
                texts.append(cell.markdown)
            elif cell is heading and cell.small[-1].startswith("("):  # what the paper leaves open
                texts[-1] += f"; paper: {cell.small[-1][1:-1]}"
            elif cell is not heading and cell.text not in ("–", "---"):
                texts[-1] += f"; paper: {cell.text}"
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def heading_cell(known: Measure, *small: str) -> Cell:
    """The heading of a measure's column."""
    return Cell(known.heading, small, better=known.better if known.better in ("higher", "lower") else "")


def figures_cell(known: Measure, figures: Mapping[str, Any], *notes: str, bold: bool = False, style: str = "") -> Cell:
    """Mean and interval of :func:`.describe`."""
    interval = known.interval(figures)
    return Cell(known.text(figures["mean"]), [one for one in (interval, *notes) if one], bold, style)
