"""What the columns of the table of cases are called, measured in and good for: the one place that knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["GROUPS", "Column", "Group", "column", "grouped"]

NO_NUMBERS = ("case", "size_class")


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        name: as in ``metrics.csv``.
        label: for people, without unit and grid.
        unit: of the values; empty for ratios.
        better: ``higher``, ``lower``, ``zero`` (closer to it) or empty.
        digits: decimals that are worth printing.
        meaning: one sentence for the glossary.
    """

    name: str
    label: str
    unit: str = ""
    better: str = ""
    digits: int = 3
    meaning: str = ""

    @property
    def bare(self) -> str:
        """The name without the grid."""
        return self.name.removeprefix("native_").removeprefix("resampled_")

    @property
    def origin(self) -> str:
        """By whose definition, and on which grid if that is not the native one."""
        by = "paper’s" if self.bare.startswith("paper_") else "challenge’s" if self.bare in ("masd_mm", "nsd") else ""
        return ", ".join(part for part in (by, "resampled" if self.name.startswith("resampled_") else "") if part)

    @property
    def heading(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float | None) -> str:
        """A value as it is printed; "–" where there is none, "∞" where it is infinite."""
        if value is None or value != value:
            return "–"
        if value in (float("inf"), float("-inf")):
            return "∞" if value > 0 else "−∞"
        return f"{value:.{self.digits}f}".replace("-", "−")

    def interval(self, figures: Mapping[str, Any]) -> str:
        """The ``low`` and ``high`` of :func:`scripts.statistics.describe` as they are printed; empty without any."""
        return "" if figures["low"] is None else f"{self.text(figures['low'])} to {self.text(figures['high'])}"


_CHALLENGE = "challenge's definition (surface elements weighted by area)"
_PAPER = "paper's definition (MONAI, border voxels)"
_METRICS = {
    "dice": Column("dice", "Dice", "", "higher", 3, "2·|P∩T| / (|P|+|T|); 1 when both masks are empty, 0 when one is."),
    "masd_mm": Column(
        "masd_mm", "MASD", "mm", "lower", 2,
        f"Mean of the two directed average surface distances, {_CHALLENGE}; 0 when both masks are empty, undefined "
        "when one is.",
    ),
    "nsd": Column(
        "nsd", "NSD", "", "higher", 3,
        f"Share of the surfaces within the tolerance, {_CHALLENGE}; 1 when both masks are empty, 0 when one is.",
    ),
    "hd95_mm": Column("hd95_mm", "HD95", "mm", "lower", 2, "95th percentile of the surface distances (Hausdorff)."),
    "precision": Column("precision", "Precision", "", "higher", 3, "Share of the prediction that is lesion."),
    "sensitivity": Column("sensitivity", "Sensitivity", "", "higher", 3, "Share of the lesion that is predicted."),
    "paper_msd_mm": Column(
        "paper_msd_mm", "MSD", "mm", "lower", 2,
        f"Mean of the two directed average surface distances (Eq. 7), {_PAPER}; infinite when one mask is empty, "
        "undefined when both are.",
    ),
    "paper_nsd": Column(
        "paper_nsd", "NSD", "", "higher", 3,
        f"Share of the border voxels within the tolerance (Eq. 8), {_PAPER}; 0 when one mask is empty, undefined when "
        "both are.",
    ),
    "lesions": Column("lesions", "Lesions, truth", "", "", 1, "Connected components (26 neighbours) of the truth."),
    "predicted_lesions": Column("predicted_lesions", "Lesions, predicted", "", "", 1, "Those of the prediction."),
    "lesion_sensitivity": Column(
        "lesion_sensitivity", "Lesion sensitivity", "", "higher", 3, "Share of the lesions that are found."
    ),
    "lesion_false_positives": Column(
        "lesion_false_positives", "False-positive lesions", "", "lower", 1, "Predicted components that meet no lesion."
    ),
    "lesion_f1": Column("lesion_f1", "Lesion F1", "", "higher", 3, "F1 score of the lesions as objects."),
    "baseline_dice": Column(
        "baseline_dice", "Dice of the ZADC threshold", "", "higher", 3,
        "Dice of the challenge's baseline, which calls lesion what lies below a threshold in ZADC.",
    ),
    "size_class": Column("size_class", "Size", meaning="Class of the lesion’s share of the brain’s volume."),
    "lesion_fraction": Column("lesion_fraction", "Lesion by brain volume", "", "", 4, "Annotated lesion by brain."),
    "brain_ml": Column("brain_ml", "Brain volume", "ml", "", 1, "Where a map is not exactly zero."),
    "lesion_ml": Column("lesion_ml", "Lesion volume", "ml", "", 2, "Of the truth."),
    "predicted_ml": Column("predicted_ml", "Predicted volume", "ml", "", 2, "Of the prediction."),
    "volume_difference_ml": Column(
        "volume_difference_ml", "Volume difference", "ml", "zero", 2, "Prediction minus truth."
    ),
    "relative_volume_difference": Column(
        "relative_volume_difference", "Relative volume difference", "", "zero", 2,
        "Volume difference by lesion volume; infinite where only the truth is empty, 0 where both masks are.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Columns that stand in one table: under which heading, how they were measured, and whether the page folds it."""

    title: str
    explanation: str
    columns: tuple[str, ...]
    folded: bool = False


GROUPS = (
    Group(
        "Challenge’s definitions, native grid",
        "Masks compared on the grid of the label file; surfaces are weighted by their area. The numbers of the "
        "BONBID-HIE challenge.",
        ("native_dice", "native_masd_mm", "native_nsd"),
    ),
    Group(
        "Paper’s definitions, native grid",
        "The same masks, measured with MONAI’s metrics as in the paper, which count border voxels.",
        ("native_dice", "native_paper_msd_mm", "native_paper_nsd"),
    ),
    Group(
        "Paper’s protocol, resampled grid",
        "The paper’s definitions on the grid that the network works on, with the label resampled to it. The numbers "
        "that compare with the paper’s Table 1.",
        ("resampled_dice", "resampled_paper_msd_mm", "resampled_paper_nsd"),
    ),
    Group(
        "Further measures, native grid",
        "How far off the worst surfaces are, what is missed and what is invented, as volumes and as single lesions.",
        (
            "native_hd95_mm", "native_precision", "native_sensitivity", "volume_difference_ml",
            "relative_volume_difference", "native_lesions", "native_predicted_lesions", "native_lesion_sensitivity",
            "native_lesion_false_positives", "native_lesion_f1",
        ),
    ),
    Group(
        "Baseline and single models, native grid",
        "Dice of the threshold that needs no training and, for an ensemble, of each member alone.",
        ("native_dice", "baseline_dice"),
    ),
    Group(
        "Challenge’s and further measures, resampled grid",
        "For completeness; no published figure was measured like this.",
        (),
        folded=True,
    ),
    Group("Other columns", "As measured; this report knows no more about them.", ()),
)  # fmt: skip
_DESCRIPTIVE = ("lesion_fraction", "brain_ml", "lesion_ml", "predicted_ml")  # of the cases, not of the prediction
_MEMBER = re.compile(r"member_(\d+)_dice")


def column(name: str) -> Column:
    """What is known about a column of the table; of an unknown one, its name."""
    if match := _MEMBER.fullmatch(name):
        return replace(_METRICS["dice"], name=name, label=f"Dice of model {match[1]}")
    bare = name.removeprefix("native_").removeprefix("resampled_")
    known = _METRICS.get(name) or _METRICS.get(bare)
    return replace(known, name=name) if known else Column(name, name.replace("_", " "))


def grouped(names: Iterable[str]) -> list[tuple[Group, list[Column]]]:
    """The columns of a table in the groups of the report, empty groups left out.

    Args:
        names: of the columns with numbers; each appears, in one group at least, whether it is known or not, except
            those that describe the cases.
    """
    rest = [name for name in names if name not in (*NO_NUMBERS, *_DESCRIPTIVE)]
    present = set(rest)
    placed = {name for group in GROUPS for name in group.columns}
    extra: dict[str, list[str]] = {group.title: [] for group in GROUPS}
    baseline, resampled, other = (group.title for group in GROUPS[-3:])
    further = GROUPS[3].title
    for name in rest:
        if name not in placed:
            kind = (
                baseline if _MEMBER.fullmatch(name)
                else resampled if name.startswith("resampled_")
                else further if name.startswith("native_")
                else other
            )  # fmt: skip
            extra[kind].append(name)
    result = []
    for group in GROUPS:
        members: Sequence[str] = [name for name in group.columns if name in present] + extra[group.title]
        if members and (group is GROUPS[0] or members != ["native_dice"]):
            result.append((group, [column(name) for name in members]))
    return result
