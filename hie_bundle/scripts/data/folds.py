"""Folds for cross-validation: stratified by lesion size, no patient on two sides."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from .check_cache import case_of, check_items
from .checks import Limits

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


def fold_of_case(
    items: Sequence[Mapping[str, Any]],
    patients: Mapping[str, str],
    num_folds: int,
    seed: int = 0,
    limits: Limits | None = None,
) -> dict[str, int]:
    """Assign cases to folds that are alike in their lesion sizes.

    Patients are shuffled within each size class (that of their largest lesion) and dealt out to the folds in turn, so
    that two folds differ by at most one patient in total and at most one in each class. (scikit-learn's
    ``StratifiedGroupKFold`` promises neither, and would deal the cases of every seed anew.) Reads the cases' labels.

    Args:
        items: MONAI data items to be divided.
        patients: of each case, by its id.
        num_folds: at least 1.
        seed: of the shuffling.
        limits: what a case may look like; the defaults if None.

    Returns:
        Fold, 0 to ``num_folds`` - 1, by case id.
    """
    largest: dict[str, float] = {}
    for report in check_items(items, limits):
        fraction = -1.0 if report.lesion_fraction is None else report.lesion_fraction
        patient = patients[report.case]
        largest[patient] = max(fraction, largest.get(patient, -1.0))
    classes: dict[str, list[str]] = {}
    for patient, fraction in sorted(largest.items()):
        classes.setdefault(size_class(None if fraction < 0 else fraction), []).append(patient)
    order = []
    for _, members in sorted(classes.items()):
        random.Random(seed).shuffle(members)
        order += members
    fold = {patient: place % num_folds for place, patient in enumerate(order)}
    return {case: fold[patients[case]] for case in map(case_of, items)}
