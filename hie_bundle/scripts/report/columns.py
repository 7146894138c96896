"""Which columns of the table of cases stand together, under which heading, as their registrations say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..evaluation.measures import Measure, column

__all__ = ["GROUPS", "NO_NUMBERS", "Group", "case_columns", "grouped"]

NO_NUMBERS = ("case", "site", "size_class")


@dataclass(frozen=True)
class Group:
    """Columns of one table.

    Attributes:
        title: its heading.
        explanation: how they were measured.
        grid: of the columns: ``native`` or ``resampled``.
        definitions: whose; see :data:`scripts.evaluation.measure.GROUPS`.
        folded: whether the page folds it.
    """

    title: str
    explanation: str
    grid: str
    definitions: tuple[str, ...]
    folded: bool = False

    def takes(self, known: Measure) -> bool:
        """Whether a column is in it."""
        grid = "resampled" if known.name.startswith("resampled_") else "native"
        return grid == self.grid and known.group in self.definitions


GROUPS = (
    Group(
        "Challenge’s definitions, native grid",
        "Masks compared on the grid of the label file; surfaces are weighted by their area. The numbers of the "
        "BONBID-HIE challenge.",
        "native",
        ("shared", "challenge"),
    ),
    Group(
        "Paper’s definitions, native grid",
        "The same masks, measured with MONAI’s metrics as in the paper, which count border voxels.",
        "native",
        ("shared", "paper"),
    ),
    Group(
        "Paper’s protocol, resampled grid",
        "The paper’s definitions on the grid that the network works on, with the label resampled to it. Of these, Dice "
        "compares with the paper’s Table 1. Its distances were probably counted in voxels, as its preprocessing lost "
        "the voxel size; that, and which of MONAI’s calls gave them, is inferred, so all three stand here. Its "
        "tolerance is not stated.",
        "resampled",
        ("shared", "paper"),
    ),
    Group(
        "Further measures, native grid",
        "How far off the worst surfaces are, what is missed and what is invented, as volumes and as single lesions.",
        "native",
        ("further",),
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
        "For completeness; no published figure was measured like this.",
        "resampled",
        ("challenge", "further"),
        folded=True,
    ),
)


def grouped(names: Iterable[str]) -> list[tuple[Group, list[Measure]]]:
    """The columns of a table in the groups of the report, without empty groups.

    Args:
        names: of the columns with numbers; each appears, in one group at least, except those that describe the cases.

    Raises:
        ValueError: when nobody registered a column.
    """
    columns = [column(name) for name in names if name not in NO_NUMBERS]
    result, seen = [], set()
    for group in GROUPS:
        members: Sequence[Measure] = sorted(
            (known for known in columns if group.takes(known)), key=lambda known: group.definitions.index(known.group)
        )
        if any(known.name not in seen for known in members):
            result.append((group, list(members)))
            seen |= {known.name for known in members}
    return result


def case_columns(names: Iterable[str]) -> list[Measure]:
    """The columns that the report shows of each case: the size, everybody's measures, the baseline's, the volumes, the
    others on the native grid, and everybody's on the resampled one.

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
