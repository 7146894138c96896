"""Groups of measures: the tables of the report and of the study, and their columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..evaluation.measures import Measure, column


@dataclass(frozen=True)
class Group:
    """Columns of one table: measures of one grid and of some kinds (``measure.GROUPS``).

    ``compared``: whether the study also has this table, with its compared measures; ``folded``: collapsed on the page.
    """

    title: str
    explanation: str
    grid: str
    kinds: tuple[str, ...]
    compared: bool = False
    folded: bool = False


PAPER = Group(
    "Paper’s protocol, resampled grid",
    "The paper’s definitions on the network’s grid, with the label resampled to it. The paper’s Table 1 is on four "
    "real validation cases, with an unstated NSD tolerance. Its distances were probably measured in voxels, because "
    "its preprocessing lost the voxel size (inferred, as are its MONAI calls). Compare the Dice, and the columns in "
    "voxels; expect the same order of magnitude only.",
    "resampled",
    ("shared", "paper"),
    compared=True,
)
GROUPS = (
    Group(
        "Challenge’s definitions, native grid",
        "Metrics of the BONBID-HIE challenge, on the grid of the label file; surface elements are weighted by area.",
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
        "Reader 1 is the label; further readers are set by --readers. The only published agreement of readers on such "
        "lesions is a median F1 of 0.56 (Murphy et al. 2017).",
        "native",
        ("readers",),
    ),
    Group(
        "Baselines and single models, native grid",
        "Dice of methods without a deep network: thresholds on ZADC and on smoothed ZADC, and a voxelwise logistic "
        "regression, fitted on the training cases; also of each member of an ensemble.",
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
        ValueError: when a column is not registered.
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
        ValueError: when a column is not registered.
    """

    def place(known: Measure) -> int:
        if known.grid == "resampled":
            return 5
        return 0 if known.name == "size_class" else {"shared": 1, "baseline": 2, "case": 3}.get(known.group, 4)

    columns = [column(name) for name in names if name != "case"]
    shown = [known for known in columns if known.in_cases and (place(known) < 5 or known.group == "shared")]
    return sorted(shown, key=place)
