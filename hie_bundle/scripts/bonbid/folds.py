"""Folds for cross-validation: stratified by lesion size, no patient on two sides."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .checks import Limits
from .layout import Case
from .remembered import check_items

__all__ = ["SIZE_CLASSES", "fold_of_case", "size_class"]

# Upper ends of the lesion-size classes, as fractions of the brain's volume; an empty label is a class of its own.
SIZE_CLASSES = {"<1 %": 0.01, "1–5 %": 0.05, "5–20 %": 0.2, ">20 %": float("inf")}


def size_class(fraction: float | None) -> str:
    """Class of a lesion by its share of the brain's volume, 0..1; ``unknown`` where there is no label."""
    if fraction is None:
        return "unknown"
    if fraction == 0:
        return "empty"
    return next(name for name, end in SIZE_CLASSES.items() if fraction < end)


def fold_of_case(cases: Sequence[Case], num_folds: int, seed: int = 0, limits: Limits | None = None) -> dict[str, int]:
    """Assign cases to folds that are alike in their lesion sizes.

    Patients are shuffled within each size class (that of their largest lesion) and dealt out to the folds in turn, so
    that two folds differ by at most one patient in total and at most one in each class. (scikit-learn's
    ``StratifiedGroupKFold`` promises neither, and would deal the cases of every seed anew.) Reads the cases' labels.

    Args:
        cases: to be divided.
        num_folds: at least 1.
        seed: of the shuffling.
        limits: what a case may look like; the defaults if None.

    Returns:
        Fold, 0 to ``num_folds`` - 1, by case id.
    """
    reports = check_items([case.item() for case in cases], limits)
    largest: dict[str, float] = {}
    for case, report in zip(cases, reports, strict=True):
        fraction = -1.0 if report.lesion_fraction is None else report.lesion_fraction
        largest[case.patient] = max(fraction, largest.get(case.patient, -1.0))
    classes: dict[str, list[str]] = {}
    for patient, fraction in sorted(largest.items()):
        classes.setdefault(size_class(None if fraction < 0 else fraction), []).append(patient)
    order = []
    for _, patients in sorted(classes.items()):
        random.Random(seed).shuffle(patients)
        order += patients
    fold = {patient: place % num_folds for place, patient in enumerate(order)}
    return {case.case: fold[case.patient] for case in cases}
