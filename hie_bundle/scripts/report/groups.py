"""Groups of measures: the tables of the report and of the study, and their columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..evaluation.measures import Measure, column


@dataclass(frozen=True)
class Group:
    """Columns of one table: measures of one grid and of some kinds (``measure.GROUPS``).

    ``compared``: whether the study has this table, too, with its measures for comparison; ``folded``: collapsed on the
    page.
    """

    title: str
    explanation: str
    grid: str
    kinds: tuple[str, ...]
    compared: bool = False
    folded: bool = False


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
        members = [one for kind in group.kinds for one in columns if (one.grid, one.group) == (group.grid, kind)]
        if any(known.name not in seen for known in members):
            result.append((group, members))
            seen |= {known.name for known in members}
    return result


def case_columns(names: Iterable[str]) -> list[Measure]:
    """Columns of the report's table of cases.

    In order: size class, shared measures, baselines, volumes, other native measures, and the shared measures on the
    resampled grid.

    Raises:
        ValueError: when nobody registered a column.
    """

    def place(known: Measure) -> int:
        if known.grid == "resampled":
            return 5
        return 0 if known.name == "size_class" else {"shared": 1, "baseline": 2, "case": 3}.get(known.group, 4)

    columns = [column(name) for name in names if name != "case"]
    shown = [known for known in columns if known.in_cases and (place(known) < 5 or known.group == "shared")]
    return sorted(shown, key=place)
