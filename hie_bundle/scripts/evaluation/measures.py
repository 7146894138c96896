"""Complete registry of measures, and the measure of each column.

This module imports every module that registers a measure (see :mod:`.measure`), which completes :data:`MEASURES`.
"""

from __future__ import annotations

import re
from dataclasses import replace

from . import calibration, metrics  # noqa: F401
from .measure import MEASURES, Measure

_NUMBERED = re.compile(r"(member|reader)_(\d+)_dice")


def column(name: str) -> Measure:
    """The :class:`Measure` of a column of the table of cases.

    Raises:
        ValueError: when the column is not registered.
    """
    known = MEASURES.get(name) or MEASURES.get(re.sub("^(native|resampled)_", "", name))
    if match := _NUMBERED.fullmatch(name):
        label, group = {"member": ("Dice of model", "baseline"), "reader": ("Dice against reader", "readers")}[match[1]]
        known = replace(MEASURES["dice"], label=f"{label} {match[2]}", group=group, in_cases=False)
    if known is None:
        raise ValueError(f"column '{name}' is not registered; see scripts.evaluation.measures.")
    return replace(known, name=name, grid="resampled" if name.startswith("resampled_") else "native")
