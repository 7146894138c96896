"""Registry of measures: name, unit, direction and meaning, for tables, plots, pages and the study.

A measure is registered where it is computed: by :func:`measured_by` for a function of two masks (:mod:`.metrics`), by
:func:`register` for a whole case. An unregistered column of a table is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

DIRECTIONS = ("higher", "lower", "zero", "")
# origin of the definition; `shared`: common to all, `case`: describes the case, not a prediction
GROUPS = ("shared", "challenge", "paper", "further", "readers", "baseline", "case")


def printed(value: float | None, digits: int, signed: bool = False) -> str:
    """A formatted value; "–" if undefined, "∞" if infinite; ``signed``: with a plus sign above 0."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}".replace("inf", "∞").replace("-", "−")
    return f"+{text}" if signed and value > 0 else text


@dataclass(frozen=True)
class Measure:
    """A measure, or a column of the table of cases (from :func:`.column`).

    Attributes:
        name: key in the result of its function; the column has the prefix ``native_`` or ``resampled_``.
        label: display name, without unit and grid.
        meaning: its definition for the glossary, including its value for empty masks.
        unit: empty for ratios.
        better: ``higher``, ``lower``, ``zero`` (closer to it) or empty.
        digits: decimals to print.
        group: one of :data:`GROUPS`, which selects its tables.
        in_cases: whether the report's table of cases shows it.
        compared: whether the study compares variants by it.
        grid: ``native`` or ``resampled`` for a column; ``resampled`` for a measure of that grid only.
        published: name of the corresponding published value (resampled grid) in a study's variants.
    """

    name: str
    label: str
    meaning: str
    unit: str = ""
    better: str = ""
    digits: int = 3
    group: str = "further"
    in_cases: bool = False
    compared: bool = True
    published: str = ""
    grid: str = ""

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest possible value."""
        if self.better == "higher" and not self.unit:
            return 0.0, 1.0
        return (0.0 if self.better == "lower" else -math.inf), math.inf

    @property
    def origin(self) -> str:
        """Origin of the definition, and the grid if it is not the native one."""
        by = [f"{self.group}’s"] if self.group in ("paper", "challenge") else []
        return ", ".join([*by, "resampled"] if self.grid == "resampled" else by)

    @property
    def title(self) -> str:
        """The label with the grid."""
        return f"{self.label} ({self.grid} grid)"

    @property
    def heading(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def arrow(self) -> str:
        """Arrow in the direction of better values."""
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")

    def text(self, value: float | None) -> str:
        """A printed value; "–" if undefined, "∞" if infinite."""
        return printed(value, self.digits)

    def with_unit(self, value: float | None) -> str:
        """A printed value with its unit, if it has one."""
        text = self.text(value)
        return f"{text} {self.unit}" if self.unit and text not in "–∞" else text

    def interval(self, figures: Mapping[str, Any]) -> str:
        """Printed interval (``low`` and ``high`` of :func:`.describe`); empty if there is none."""
        return "" if figures["low"] is None else f"{self.text(figures['low'])} to {self.text(figures['high'])}"


class Family(NamedTuple):
    """A function of two masks that gives several measures at once.

    It takes ``pred`` and ``truth`` and some of the options of :func:`.case_metrics`, and returns the measures by name.
    It is measured on both grids, or on ``grid`` alone.
    """

    function: Callable[..., Mapping[str, float]]
    names: tuple[str, ...]
    grid: str


MEASURES: dict[str, Measure] = {}
FAMILIES: list[Family] = []


def register(*measures: Measure) -> None:
    """Add measures to the registry.

    Raises:
        ValueError: when a name is taken, or a direction or a group is unknown.
    """
    for measure in measures:
        if measure.name in MEASURES:
            raise ValueError(f"measure '{measure.name}' is already registered.")
        if measure.better not in DIRECTIONS or measure.group not in GROUPS or not measure.meaning:
            raise ValueError(f"measure '{measure.name}': better or group is unknown, or meaning is empty.")
        MEASURES[measure.name] = measure


def measured_by(*measures: Measure) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the measures of a function of two masks, and the function itself for every case."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        register(*measures)
        (grid,) = {measure.grid for measure in measures}  # one per function
        FAMILIES.append(Family(function, tuple(measure.name for measure in measures), grid))
        return function

    return decorate


register(
    Measure("site", "Site", "Hospital, by the case’s name or the data list; empty if unknown.", group="case"),
    Measure("size_class", "Size", "Size class by lesion share of the brain volume.", group="case", in_cases=True),
    Measure("lesion_fraction", "Lesion by brain volume", "True lesion volume by brain volume.", digits=4, group="case"),
    Measure("brain_ml", "Brain volume", "Volume with ADC above zero.", "ml", digits=1, group="case"),
    Measure("lesion_ml", "Lesion volume", "Volume of the truth.", "ml", digits=2, group="case", in_cases=True),
    Measure("predicted_ml", "Predicted volume", "Prediction’s volume.", "ml", digits=2, group="case", in_cases=True),
    Measure("largest_distance_mm", "Largest distance",
            "Diagonal of the box around brain and both masks: no two surfaces can be further apart.", "mm", digits=1,
            group="case"),
    Measure("volume_difference_ml", "Volume difference", "Prediction minus truth.", "ml", "zero", 2, compared=False),
    Measure(
        "relative_volume_difference", "Relative volume difference",
        "Volume difference by lesion volume; infinite where only the truth is empty, 0 where both masks are.",
        "", "zero", 2, compared=False,
    ),
    Measure(
        "baseline_dice", "Dice of the challenge’s threshold",
        "Dice of the challenge's baseline: lesion is ZADC below a fixed threshold (−2).",
        better="higher", group="baseline", compared=False,
    ),
    Measure(
        "threshold_dice", "Dice of the tuned threshold",
        "Dice of the ZADC threshold with the best mean Dice on the training cases.",
        better="higher", group="baseline", compared=False,
    ),
    Measure(
        "smoothed_dice", "Dice of the smoothed threshold",
        "Dice of a threshold on ZADC smoothed within the brain (Gaussian, standard deviation 2 mm): the best on the "
        "training cases, or −2 without training cases.",
        better="higher", group="baseline", in_cases=True, compared=False,
    ),
    Measure(
        "regression_dice", "Dice of the voxelwise regression",
        "Dice of a voxelwise logistic regression on ADC and ZADC, raw and smoothed by 2 mm, fitted on the training "
        "cases.",
        better="higher", group="baseline", in_cases=True, compared=False,
    ),
)  # fmt: skip
