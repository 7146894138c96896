"""Comparison of finished runs: per-case values, means, tests and ranks of each variant."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from ..evaluation.measures import column
from ..evaluation.statistics import describe, paired_tests, penalised, ranking
from ..report.groups import PAPER, Group, grouped
from ..report.tables import BASELINES, NO_NUMBERS, Rows, best_baseline, by_size_class, gain_over, read_rows
from .runs import Run
from .variants import Variant


@dataclass(frozen=True)
class Results:
    """Results of a study. Mappings are by the variant's name unless stated otherwise.

    ``cases`` has one row per case, in the same order: means over the runs with a defined value, infinite if one is.
    """

    variants: list[Variant]
    runs: Mapping[str, list[Run]]
    cases: Mapping[str, Rows]
    seeds: Mapping[str, Sequence[Rows]]  # rows of each seed, over all folds
    groups: Mapping[Group, list[str]]  # the study's tables and their columns

    @property
    def measures(self) -> list[str]:
        return list(dict.fromkeys(name for names in self.groups.values() for name in names))

    @property
    def lead(self) -> str:
        """The main measure: Dice on the native grid, if measured."""
        return "native_dice" if "native_dice" in self.measures else self.measures[0]

    @cached_property
    def epochs(self) -> dict[str, tuple[float, float]]:
        """Mean number of trained epochs and mean best epoch."""
        both = {
            of: [[run.record[key] for key in ("epochs", "best_epoch")] for run in runs]
            for of, runs in self.runs.items()
        }
        return {name: tuple(np.mean(values, axis=0).tolist()) for name, values in both.items()}

    @property
    def classes(self) -> dict[str, int]:
        """Number of cases in each lesion size class, ``all`` first, then from small to large."""
        rows = next(iter(self.cases.values()))
        return {"all": len(rows)} | {name: len(members) for name, members in by_size_class(rows).items()}

    @cached_property
    def summary(self) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
        """:func:`.describe` by variant, lesion size class and measure, with the variance between seeds."""

        def described(name: str, size: str, measure: str) -> dict[str, Any]:
            rows = [row for row in self.cases[name] if size in ("all", row["size_class"])]
            repeats = self._seed_differences(name, rows, measure)
            return describe([row[measure] for row in rows], bounds=column(measure).bounds, repeats=repeats)

        return {
            name: {size: {m: described(name, size, m) for m in self.measures} for size in self.classes}
            for name in self.cases
        }

    @cached_property
    def compared(self) -> dict[str, dict[str, list[float]]]:
        """Values for ranking and tests, by measure and variant; see :func:`.penalised`."""

        def values(rows: Rows, measure: str) -> list[float]:
            found, known = [float(row[measure]) for row in rows], column(measure)
            if known.better != "lower" or known.unit != "mm" or "largest_distance_mm" not in rows[0]:
                return found
            failed = [(row["lesion_ml"] == 0) != (row["predicted_ml"] == 0) for row in rows]
            return penalised(found, failed, [float(row["largest_distance_mm"]) for row in rows])

        return {m: {name: values(rows, m) for name, rows in self.cases.items()} for m in self.measures}

    @cached_property
    def tests(self) -> dict[str, list[dict[str, Any]]]:
        """:func:`.paired_tests` by measure."""
        return {measure: paired_tests(values) for measure, values in self.compared.items()}

    @cached_property
    def ranks(self) -> dict[str, dict[str, dict[str, float]]]:
        """:func:`.ranking` by measure."""
        return {m: ranking(values, column(m).better == "higher") for m, values in self.compared.items()}

    @cached_property
    def gains(self) -> dict[str, dict[str, dict[str, Any]]]:
        """:func:`.gain_over` by baseline and variant, for baselines measured with every variant."""
        found: dict[str, dict[str, Any]] = {}
        repeats = {name: self._seed_differences(name, rows, "native_dice") for name, rows in self.cases.items()}
        for baseline, label in BASELINES.items():
            gains = {name: gain_over(rows, baseline, repeats[name]) for name, rows in self.cases.items()}
            if all(gain and gain["mean"] is not None for gain in gains.values()):
                found[label] = gains
        return found

    def best(self, measure: str, size_class: str = "all") -> set[str]:
        """The variants with the best printed mean over the cases where all are finite; empty if all are equal.

        Variants with an infinite value, or an undefined value in a case where another is defined, are excluded.
        """
        known, rows = column(measure), next(iter(self.cases.values()))
        chosen = [size_class in ("all", row["size_class"]) for row in rows]
        values = np.array(list(self.compared[measure].values()), dtype=float)[:, chosen]
        values = values[:, np.isfinite(values).all(axis=0)]
        means = [round(float(mean), known.digits) for mean in values.mean(axis=1)] if values.size else [0.0]
        raw = np.array([[row[measure] for row in of] for of in self.cases.values()], dtype=float)[:, chosen]
        failed = (np.isinf(raw) | (np.isnan(raw) & np.isfinite(raw).any(axis=0))).any(axis=1)
        end = max(means) if known.better == "higher" else min(means)
        if len(set(means)) == 1:
            return set()
        return {name for name, mean, bad in zip(self.cases, means, failed, strict=True) if mean == end and not bad}

    def verdict(self) -> str:
        """A sentence with the variants that beat the best baseline, by the intervals of the Dice differences."""
        best = best_baseline([row for rows in self.cases.values() for row in rows])
        if best is None or (gains := self.gains.get(BASELINES[best])) is None:
            return ""
        what = f"{BASELINES[best]}, the best method without a deep network"
        if any(gain["low"] is None for gain in gains.values()):
            return f"Too few cases to say which variants beat {what}."
        winners = [variant.label for variant in self.variants if gains[variant.name]["low"] > 0]
        count = f"{len(winners)} of {len(self.variants)} variants beat" if winners else "No variant beats"
        return f"{count} {what}, beyond chance{': ' * bool(winners)}{', '.join(winners)}."

    def by_rank(self, measure: str) -> list[Variant]:
        """The variants, best first."""
        ranks = {name: of["rank"] for name, of in self.ranks[measure].items()}
        return sorted(self.variants, key=lambda v: math.inf if math.isnan(ranks[v.name]) else ranks[v.name])

    def _seed_differences(self, variant: str, rows: Rows, measure: str) -> list[float]:
        """Mean deviation of each seed's values from the means over seeds; NaN if none is defined."""
        means = {row["case"]: row.get(measure, math.nan) for row in rows}
        above = (
            [row.get(measure, math.nan) - means.get(row["case"], math.nan) for row in s] for s in self.seeds[variant]
        )
        return [_mean([value for value in of if math.isfinite(value)]) for of in above]


def collect(variants: Sequence[Variant], runs: Sequence[Run]) -> Results:
    """Read the results of runs on the same cases."""
    of_variant = {variant.name: [run for run in runs if run.variant.name == variant.name] for variant in variants}
    cases, seeds = {}, {}
    for name, members in of_variant.items():
        seeds[name] = [
            [row for run in members if run.seed == seed for row in read_rows(run.folder / "metrics.csv")]
            for seed in sorted({run.seed for run in members})
        ]
        by_case: dict[str, list[dict[str, Any]]] = {}
        for row in chain.from_iterable(seeds[name]):
            by_case.setdefault(row["case"], []).append(row)
        cases[name] = [
            {key: value if key in NO_NUMBERS else _mean([row[key] for row in same]) for key, value in same[0].items()}
            for _, same in sorted(by_case.items())
        ]
    first = next(iter(cases.values()))
    common = [key for key in first[0] if all(key in rows[0] for rows in cases.values())]
    groups = {group: [one.name for one in of if one.compared] for group, of in grouped(common) if group.compared}
    order = sorted(groups, key=lambda group: group is not PAPER)
    return Results(list(variants), of_variant, cases, seeds, {group: groups[group] for group in order if groups[group]})


def _mean(values: Sequence[float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all values are NaN
        return float(np.nanmean(values))
