"""Criteria of folds: lesion size, and patient ids from case ids, a pattern or a data list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..runtime.errors import DatasetError

# Upper ends of the lesion-size classes, as fractions of the brain's volume; empty labels are a separate class.
SIZE_CLASSES = {"<1 %": 0.01, "1–5 %": 0.05, "5–20 %": 0.2, ">20 %": float("inf")}


def size_class(fraction: float | None) -> str:
    """Class of a lesion by its share of the brain's volume, 0..1; ``unknown`` without a label."""
    if fraction is None:
        return "unknown"
    if fraction == 0:
        return "empty"
    return next(name for name, end in SIZE_CLASSES.items() if fraction < end)


_BIDS = re.compile(r"(sub-[a-z0-9]+)(?:_|$)", re.IGNORECASE)
# suffixes of a visit, after a separator; plain numbers are excluded, since patients are numbered as well
_VISIT = re.compile(
    r"(?P<patient>.+?)[-_. ]+(?:"
    r"(?:visit|vis|session|ses|scan|exam|mri|timepoint|tp|follow[-_]?up|fu|day|week|month)[-_. ]?\d+"  # VISIT_01, ses-2
    r"|ses-[a-z0-9]+"  # ses-acute
    r"|[vtd]\d+(?![a-z0-9])"  # V1, T0, D3
    r"|(?:acute|subacute|chronic|baseline|follow[-_]?up|fu|pre|post|early|late|initial|first|second|repeat|rescan)"
    r"(?![a-z])"
    r"|(?:19|20)\d\d[-_]?\d\d[-_]?\d\d(?!\d)"  # 2024-05-31
    r")",
    re.IGNORECASE,
)


def patient_of(case: str) -> str:
    """Patient id: the case id without a recognised visit, or the subject of a BIDS name (``sub-01_ses-acute``).

    Visits are ``MGHNICU_010-VISIT_01``, ``P1-V1``, ``P1_day3``, ``P1_followup`` and the like, not numbers (``P1_2``).
    """
    match = _BIDS.match(case) or _VISIT.match(case)
    return match[1] if match else case


def patients_of(cases: Iterable[str], pattern: str | None = None) -> dict[str, str]:
    """Patient by case id.

    ``pattern`` is a regular expression; the patient's id is its group ``patient``, else its first group, else the
    whole match. None selects :func:`patient_of`.

    Raises:
        DatasetError: the pattern is not a valid regular expression, or a case id does not match.
    """
    cases = list(cases)
    if pattern is None:
        return {case: patient_of(case) for case in cases}
    try:
        expression = re.compile(str(pattern))
    except re.error as error:
        raise DatasetError(f"--patient_pattern {pattern!r} is not a valid regular expression: {error}.") from error
    group: str | int = "patient" if "patient" in expression.groupindex else min(expression.groups, 1)
    found = {case: match[group] for case in cases if (match := expression.search(case)) and match[group]}
    if missing := [case for case in cases if case not in found]:
        shown = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise DatasetError(f"--patient_pattern {pattern!r} finds no patient in the names of these cases: {shown}.")
    return found


def patients_in_list(entries: Iterable[Mapping[str, Any]], pattern: str | None = None) -> dict[str, str]:
    """Patient by case id of a data list: its field ``patient``, or else derived from the case id."""
    entries = list(entries)
    stated = {str(entry["case"]): str(entry["patient"]) for entry in entries if entry.get("patient") is not None}
    return {**patients_of([case for e in entries if (case := str(e["case"])) not in stated], pattern), **stated}


def count_of_patients(cases: int, patients: int) -> str:
    """``40 cases of 34 patients``."""
    return f"{cases} case{'s'[: cases != 1]} of {patients} patient{'s'[: patients != 1]}"
