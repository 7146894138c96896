"""Tables of the report and of the study: which columns they have, and one form for HTML (macros.jinja) and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.measures import Measure, column

__all__ = ["GROUPS", "Cell", "Group", "Table", "case_columns", "figures_cell", "grouped", "heading_cell"]


@dataclass(frozen=True)
class Cell:
    """One cell: the main line, further lines, whether the main line is bold, and a CSS class."""

    text: str
    small: Sequence[str] = ()
    bold: bool = False
    style: str = ""

    @property
    def markdown(self) -> str:
        """The cell in one line."""
        main = f"**{self.text}**" if self.bold else self.text
        return (f"{main} ({', '.join(self.small)})" if self.small else main).replace("|", "\\|")


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows; ``note``: text above it; ``folded``: collapsed on the page."""

    title: str
    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    folded: bool = False

    @property
    def markdown(self) -> list[str]:
        """Lines of a Markdown table."""
        lines = [self.header, [Cell("---")] * len(self.header), *self.rows]
        return [f"| {' | '.join(cell.markdown for cell in cells)} |" for cells in lines]


def heading_cell(known: Measure, *small: str) -> Cell:
    """The heading of a measure's column."""
    return Cell(f"{known.heading} {known.arrow}".strip(), small)


def figures_cell(known: Measure, figures: Mapping[str, Any], *notes: str, bold: bool = False, style: str = "") -> Cell:
    """Mean and interval of :func:`.describe`."""
    return Cell(known.text(figures["mean"]), [*filter(None, (known.interval(figures), *notes))], bold, style)


@dataclass(frozen=True)
class Group:
    """Columns of one table: measures of one grid (``native`` or ``resampled``) and of some ``measure.GROUPS``.

    ``compared``: whether the study has this table, too, with its measures for comparison; ``folded``: collapsed on the
    page.
    """

    title: str
    explanation: str
    grid: str
    definitions: tuple[str, ...]
    compared: bool = False
    folded: bool = False

    def takes(self, known: Measure) -> bool:
        """Whether a column belongs to the group."""
        grid = "resampled" if known.name.startswith("resampled_") else "native"
        return grid == self.grid and known.group in self.definitions


PAPER = Group(
    "Paper’s protocol, resampled grid",
    "The paper’s definitions on the grid that the network works on, with the label resampled to it. Its Table 1 has "
    "figures of four real validation cases and an unstated tolerance of the NSD. Its distances were probably counted "
    "in voxels, as its preprocessing lost the voxel size (inferred, as are MONAI’s calls): compare the Dice, and the "
    "distances by the columns in voxels; an order of magnitude, no more.",
    "resampled",
    ("shared", "paper"),
    compared=True,
)
GROUPS = (
    Group(
        "Challenge’s definitions, native grid",
        "Masks compared on the grid of the label file; surfaces are weighted by their area. The numbers of the "
        "BONBID-HIE challenge.",
        "native",
        ("shared", "challenge"),
        compared=True,
    ),
    Group(
        "Paper’s definitions, native grid",
        "The same masks, measured with MONAI’s metrics as in the paper, which count border voxels.",
        "native",
        ("shared", "paper"),
    ),
    PAPER,
    Group(
        "Further measures, native grid",
        "Largest surface distances, and missed and false-positive volumes and lesions.",
        "native",
        ("further",),
        compared=True,
    ),
    Group(
        "Readers, native grid",
        "The label is reader 1; the others are those of --readers. The only published agreement of readers on such "
        "lesions is a median F1 of 0.56 (Murphy et al. 2017).",
        "native",
        ("readers",),
    ),
    Group(
        "Baselines and single models, native grid",
        "Dice of methods without a deep network: thresholds on ZADC and on smoothed ZADC, and a voxelwise logistic "
        "regression, fitted on the training cases; of an ensemble also each member alone.",
        "native",
        ("shared", "baseline"),
    ),
    Group(
        "Challenge’s and further measures, resampled grid",
        "For completeness; no published figure uses these definitions on this grid.",
        "resampled",
        ("challenge", "further"),
        folded=True,
    ),
)


def grouped(names: Iterable[str]) -> list[tuple[Group, list[Measure]]]:
    """The columns of a table in the groups of the report, without empty groups.

    Args:
        names: of the columns; each is in at least one group, unless it describes the case itself.

    Raises:
        ValueError: when nobody registered a column.
    """
    columns = [column(name) for name in names if name != "case"]
    result, seen = [], set()
    for group in GROUPS:
        members = sorted(filter(group.takes, columns), key=lambda known: group.definitions.index(known.group))
        if any(known.name not in seen for known in members):
            result.append((group, members))
            seen |= {known.name for known in members}
    return result


def case_columns(names: Iterable[str]) -> list[Measure]:
    """Columns of the report's table of cases: size class, shared measures, baselines, volumes, other native measures,
    and
    the shared measures on the resampled grid.

    Raises:
        ValueError: when nobody registered a column.
    """

    def place(known: Measure) -> int:
        if known.name.startswith("resampled_"):
            return 5
        return 0 if known.name == "size_class" else {"shared": 1, "baseline": 2, "case": 3}.get(known.group, 4)

    columns = [column(name) for name in names if name != "case"]
    shown = [known for known in columns if known.in_cases and (place(known) < 5 or known.group == "shared")]
    return sorted(shown, key=place)
