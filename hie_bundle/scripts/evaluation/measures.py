"""All measured figures: what tables, plots, pages and the study know of a column.

Importing this module imports every module that registers a measure (:mod:`.measure` has the mechanism), so that
:data:`MEASURES` is complete after this import.
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
        ValueError: the column is not registered.
    """
    known = MEASURES.get(name) or MEASURES.get(re.sub("^(native|resampled)_", "", name))
    if match := _NUMBERED.fullmatch(name):
        label, group = {"member": ("Dice of model", "baseline"), "reader": ("Dice against reader", "readers")}[match[1]]
        known = replace(MEASURES["dice"], label=f"{label} {match[2]}", group=group, in_cases=False)
    if known is None:
        raise ValueError(f"column '{name}' is not registered; see scripts.evaluation.measures.")
    return replace(known, name=name, grid="resampled" if name.startswith("resampled_") else "native")
