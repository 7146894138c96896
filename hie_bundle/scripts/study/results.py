"""From the finished runs to figures: a value of each variant in every case, means, tests, ranks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.measures import Measure, column
from ..evaluation.statistics import describe, paired_tests, penalised, ranking
from ..report.columns import NO_NUMBERS
from ..report.tables import BASELINES, Rows, best_baseline, by_size_class, gain_over, read_rows
from ..runtime.errors import UserError
from .runs import Run
from .variants import Variant

__all__ = ["GROUPS", "Group", "Results", "collect", "describe_measure", "lead_measure", "results_groups"]


@dataclass(frozen=True)
class Group:
    """Measures that were defined by the same people and measured on the same grid.

    Attributes:
        title: for people.
        grid: ``native`` or ``resampled``.
        definitions: whose; see :data:`scripts.evaluation.measure.GROUPS`.
        explanation: what to know before comparing.
        published: whether a variant's published figures are shown, too.
    """

    title: str
    grid: str
    definitions: tuple[str, ...]
    explanation: str
    published: bool = False

    def columns(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """The columns of a table in this group."""
        known = [column(name) for name in rows[0] if name.startswith(f"{self.grid}_")]
        return [one.name for one in known if one.compared and one.group in self.definitions]

    def figure(self, measure: str) -> str:
        """The name of the published figure that a column compares with; "" if none does."""
        return column(measure).published if self.published else ""


GROUPS = (
    Group(
        "Paper’s protocol, resampled grid",
        "resampled",
        ("shared", "paper"),
        "MONAI’s metrics on the network’s grid, in mm. “Paper” is the figure printed in its Table 1, of four real "
        "validation cases, an unstated tolerance of the NSD, and distances that were probably counted in voxels, as "
        "its preprocessing lost the voxel size (inferred): compare the Dice, and the distances by the columns in "
        "voxels of each run’s report; an order of magnitude, no more.",
        published=True,
    ),
    Group(
        "Challenge’s definitions, native grid",
        "native",
        ("shared", "challenge"),
        "Masks compared on the grid of the label file, surfaces weighted by their area: the numbers of the BONBID-HIE "
        "challenge. The paper has no such figures.",
    ),
    Group(
        "Further measures, native grid",
        "native",
        ("further",),
        "Masks compared on the grid of the label file.",
    ),
)


@dataclass(frozen=True)
class Results:
    """What the runs of a study amount to.

    Attributes:
        variants: in the order of the study.
        runs: of each variant.
        cases: for each variant a row a case, in the same order; numbers are means over the runs that evaluated the
            case (over those where they are defined; infinite as soon as one is).
        epochs: of each variant: mean number trained and mean number of the best one, over its runs.
        measures: the columns of :data:`GROUPS` that there are.
        summary: for each variant, class of lesion size (``all`` first) and measure what
            :func:`.describe` says, with the variance between the seeds where there are several.
        compared: for each measure and variant the values that are ranked and tested: its value in each case, and where
            a distance does not exist because exactly one mask is empty, the case's largest possible one.
        tests: for each measure the rows of :func:`scripts.evaluation.statistics.paired_tests`.
        ranks: for each measure what :func:`scripts.evaluation.statistics.ranking` says.
        gains: for each baseline and variant what :func:`scripts.report.tables.gain_over` says.
    """

    variants: list[Variant]
    runs: dict[str, list[Run]]
    cases: dict[str, list[dict[str, Any]]]
    epochs: dict[str, tuple[float, float]]
    measures: list[str]
    summary: dict[str, dict[str, dict[str, dict[str, Any]]]]
    compared: dict[str, dict[str, list[float]]]
    tests: dict[str, list[dict[str, Any]]]
    ranks: dict[str, dict[str, dict[str, float]]]
    gains: dict[str, dict[str, dict[str, Any]]]

    @property
    def best_baseline(self) -> str | None:
        """The baseline with the highest mean Dice on these cases, over all variants' runs; None without any."""
        best = best_baseline([row for rows in self.cases.values() for row in rows]) if self.gains else None
        return best and BASELINES[best]

    @property
    def classes(self) -> dict[str, int]:
        """Number of cases in each class of lesion size, ``all`` first, then from small to large."""
        return _class_sizes(next(iter(self.cases.values())))

    def best(self, measure: str, size_class: str = "all") -> set[str]:
        """The variants with the best printed mean; empty where all are equal.

        A variant that is undefined or infinite in some case, or a measure that is left without a common case, has no
        winner in bold.
        """
        known = column(measure)
        table = np.array([self.compared[measure][variant.name] for variant in self.variants], dtype=float)
        rows = next(iter(self.cases.values()))
        chosen = [size_class in ("all", row["size_class"]) for row in rows]
        table = table[:, np.array(chosen) & np.isfinite(table).all(axis=0)]
        if len(self.variants) < 2 or not table.shape[1]:
            return set()
        means = {
            v.name: float(known.text(mean).replace("−", "-"))
            for v, mean in zip(self.variants, table.mean(axis=1), strict=True)
        }
        end = max(means.values()) if known.better == "higher" else min(means.values())
        first = {name for name, mean in means.items() if mean == end}
        figures = {name: self.summary[name][size_class][measure] for name in first}
        winners = {
            name for name in first if not figures[name]["infinite"] and not self.failures(name, measure, size_class)
        }
        return winners if len(first) < len(self.variants) else set()

    def failures(self, variant: str, measure: str, size_class: str = "all") -> int:
        """In how many cases a variant has no such figure where another one has."""
        rows = [row for row in self.cases[variant] if size_class in ("all", row["size_class"])]
        others = [
            [row for row in rows_of if size_class in ("all", row["size_class"])] for rows_of in self.cases.values()
        ]
        return sum(
            not math.isfinite(row[measure]) and any(math.isfinite(same[i][measure]) for same in others)
            for i, row in enumerate(rows)
        )

    def verdict(self) -> str:
        """Which variants beat the best method without a deep network, by the intervals of the differences of Dice.

        Empty where no baseline was measured.
        """
        if (best := self.best_baseline) is None:
            return ""
        gains = self.gains[best]
        what = f"{best}, the best method without a deep network"
        if any(gain["low"] is None for gain in gains.values()):
            return f"Too few cases to say which variants beat {what}."
        winners = [v.label for v in self.variants if gains[v.name]["low"] > 0]
        if not winners:
            return f"No variant beats {what}, beyond chance."
        return f"{len(winners)} of {len(self.variants)} variants beat {what}, beyond chance: {', '.join(winners)}."

    def by_rank(self, measure: str) -> list[Variant]:
        """The variants, best first."""
        return sorted(self.variants, key=lambda variant: _last_if_nan(self.ranks[measure][variant.name]["rank"]))


def collect(variants: Sequence[Variant], runs: Iterable[Run]) -> Results:
    """Read what the runs measured and compare the variants.

    Raises:
        UserError: when the variants were not evaluated on the same cases.
    """
    of_variant: dict[str, list[Run]] = {variant.name: [] for variant in variants}
    for run in runs:
        of_variant[run.variant.name].append(run)
    cases = {name: _mean_over_runs(members) for name, members in of_variant.items()}
    of_seeds = {name: _of_seeds(members) for name, members in of_variant.items()}
    _refuse_other_cases(cases)
    first = next(iter(cases.values()))
    common = [{name: None for name in first[0] if all(name in rows[0] for rows in cases.values())}]
    measures = [name for group in GROUPS for name in group.columns(common)]
    classes = _class_sizes(first)
    summary = {
        name: {
            size: {measure: _described(rows, of_seeds[name], measure, size) for measure in measures} for size in classes
        }
        for name, rows in cases.items()
    }
    values = {measure: {name: _comparable(rows, measure) for name, rows in cases.items()} for measure in measures}
    epochs = {}
    for name, members in of_variant.items():
        records = [run.record for run in members]
        epochs[name] = (
            float(np.mean([record["epochs"] for record in records])),
            float(np.mean([record["best_epoch"] for record in records])),
        )
    return Results(
        list(variants),
        of_variant,
        cases,
        epochs,
        measures,
        summary,
        values,
        {measure: paired_tests(of) for measure, of in values.items()},
        {measure: ranking(of, column(measure).better == "higher") for measure, of in values.items()},
        _gains(cases, of_seeds),
    )


def results_groups(results: Results) -> list[tuple[Group, list[str]]]:
    """The groups with those of their measures that there are."""
    pairs = [(group, group.columns([dict.fromkeys(results.measures)])) for group in GROUPS]
    return [(group, measures) for group, measures in pairs if measures]


def lead_measure(results: Results) -> str:
    """The measure that decides: Dice on the native grid, if it was measured."""
    return "native_dice" if "native_dice" in results.measures else results.measures[0]


def describe_measure(known: Measure) -> str:
    """A measure with its grid and definition."""
    grid = "resampled grid" if known.name.startswith("resampled_") else "native grid"
    return f"{known.label} ({grid})"


def _comparable(rows: Sequence[Mapping[str, Any]], measure: str) -> list[float]:
    """A variant's values as they are compared; see :func:`scripts.evaluation.statistics.penalised`."""
    values = [float(row[measure]) for row in rows]
    known = column(measure)
    if known.better != "lower" or known.unit != "mm" or "largest_distance_mm" not in rows[0]:
        return values
    failed = [(row["lesion_ml"] == 0) != (row["predicted_ml"] == 0) for row in rows]
    return penalised(values, failed, [float(row["largest_distance_mm"]) for row in rows])


def _described(rows: Rows, of_seeds: Sequence[Rows], measure: str, size: str) -> dict[str, Any]:
    """A variant's mean over the cases of a class; its interval with the variance between seeds."""
    chosen = [row for row in rows if size in ("all", row["size_class"])]
    repeats = _above(chosen, of_seeds, measure)
    return describe([row[measure] for row in chosen], bounds=column(measure).bounds, repeats=repeats)


def _gains(cases: Mapping[str, Rows], of_seeds: Mapping[str, Sequence[Rows]]) -> dict[str, dict[str, dict[str, Any]]]:
    if not all("native_dice" in rows[0] for rows in cases.values()):
        return {}
    gains = {
        baseline: {
            name: gain_over(rows, known, _above(rows, of_seeds[name], "native_dice")) for name, rows in cases.items()
        }
        for known, baseline in BASELINES.items()
    }
    return {
        baseline: {name: gain for name, gain in of.items() if gain is not None}
        for baseline, of in gains.items()
        if all(gain is not None and gain["mean"] is not None for gain in of.values())
    }


def _above(rows: Rows, of_seeds: Sequence[Rows], measure: str) -> list[float]:
    """How much each seed's values are above the cases' means, on average; NaN where none is defined."""
    means = {row["case"]: row[measure] for row in rows}
    return [
        _mean([above for row in seed if math.isfinite(above := row[measure] - means.get(row["case"], math.nan))])
        for seed in of_seeds
    ]


def _of_seeds(runs: Sequence[Run]) -> list[Rows]:
    """The rows that a variant's runs with each seed measured, those of all folds together."""
    seeds = sorted({run.seed for run in runs})
    return [
        [row for run in runs if run.seed == seed for row in read_rows(run.folder / "metrics.csv")] for seed in seeds
    ]


def _mean_over_runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for row in read_rows(run.folder / "metrics.csv"):
            rows.setdefault(row["case"], []).append(row)
    return [
        {name: value if name in NO_NUMBERS else _mean([row[name] for row in same]) for name, value in same[0].items()}
        for _, same in sorted(rows.items())
    ]


def _mean(values: Sequence[float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing but NaN
        return float(np.nanmean(values))


def _refuse_other_cases(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    first, *others = cases
    expected = {row["case"]: row["lesion_ml"] for row in cases[first]}
    for name in others:
        found = {row["case"]: row["lesion_ml"] for row in cases[name]}
        if odd := sorted(set(expected) ^ set(found)):
            raise UserError(
                f"{first} and {name} were not evaluated on the same cases; only one has {', '.join(odd[:5])}."
            )
        if odd := [case for case in expected if not math.isclose(expected[case], found[case], rel_tol=1e-6)]:
            raise UserError(f"{first} and {name} were evaluated against other labels in {', '.join(odd[:5])}.")


def _class_sizes(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {"all": len(rows)} | {name: len(members) for name, members in by_size_class(rows).items()}


def _last_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value
