"""Intervals, tests and rankings against SciPy, textbook values and brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scripts.evaluation import statistics

VALUES = [0.1, 0.5, 0.62, 0.0, 0.44, 0.9, 0.31]


def test_interval_is_that_of_studentised_resamples() -> None:
    described = statistics.describe(VALUES, seed=3)
    values = np.array(VALUES)
    draws = np.random.default_rng(99).choice(values, size=(200_000, len(values)))
    draws = draws[np.ptp(draws, axis=1) > 0]
    ratios = (draws.mean(axis=1) - values.mean()) / stats.sem(draws, axis=1)
    expected = values.mean() - np.quantile(ratios, [0.975, 0.025]) * stats.sem(values)
    assert described["mean"] == pytest.approx(np.mean(VALUES))
    assert described["std"] == pytest.approx(np.std(VALUES))
    assert (described["low"], described["high"]) == pytest.approx(tuple(expected), abs=1.5e-2)
    assert described == statistics.describe(VALUES, seed=3)
    assert described["low"] != statistics.describe(VALUES, seed=4)["low"]
    assert statistics.describe([0.0, 0.9, 0.95, 1.0], bounds=(0, 1))["high"] == 1.0


def _missed_or_found(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Dice-like: some lesions are missed altogether."""
    return np.where(rng.random(size) < 0.15, 0, rng.beta(2.5, 1.6, size))


SHAPES = {
    "symmetric Dice": (lambda rng, size: rng.beta(2, 2, size), 0.5),
    "Dice with misses": (_missed_or_found, 0.85 * 2.5 / 4.1),
    "high Dice": (lambda rng, size: rng.beta(5, 1, size), 5 / 6),
    "skewed distances": (lambda rng, size: rng.lognormal(0, 0.8, size), math.exp(0.32)),
    "gamma distances": (lambda rng, size: rng.gamma(1.5, 1, size), 1.5),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [9, 16])
def test_intervals_hold_what_they_promise(shape: str, count: int) -> None:
    """docs/statistics.md has the table; the percentile interval that was here covered 84 to 93 %."""
    draw, mean = SHAPES[shape]
    intervals = [statistics.describe(values, resamples=400) for values in draw(np.random.default_rng(1), (500, count))]
    coverage = np.mean([interval["low"] <= mean <= interval["high"] for interval in intervals])
    assert 0.90 - 0.02 <= coverage <= 0.97 + 0.015  # 500 draws leave that much to chance


@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_of_several_trainings_hold_for_others(seeds: int) -> None:
    """Without the variance between trainings they cover 0.76 (two) and 0.81 (three) here."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        values = rng.beta(2, 2, 44) + rng.normal(0, 0.06, (seeds, 1)) + rng.normal(0, 0.08, (seeds, 44))
        means = values.mean(axis=0)
        interval = statistics.describe(list(means), resamples=200, repeats=list((values - means).mean(axis=1)))
        hits += interval["low"] <= 0.5 <= interval["high"]
    assert 0.87 <= hits / 300 <= 0.98


@pytest.mark.parametrize(
    "values", [[0.0] * 5 + [1.0], [0.55] * 5 + [0.56], [1.0] * 9 + [0.2], [0.857142857] * 43 + [0.9]]
)
def test_one_case_unlike_all_others_gives_a_finite_interval_around_the_mean(values: list[float]) -> None:
    """Resamples without it have no spread: rounding made the upper end millions, leaving them out made it the mean."""
    found = statistics.describe(values)
    assert [found["low"], found["high"]] == pytest.approx(
        stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    )


def test_a_variant_that_misses_most_lesions_does_not_win_by_its_easy_cases() -> None:
    found = [2.0, 3.0, 2.5, 4.0]
    missed = [1.0, math.nan, math.nan, math.nan]  # empty masks where there is a lesion
    failed = [False, True, True, True]
    values = {"found": found, "missed": statistics.penalised(missed, failed, [80.0] * 4)}
    assert values["missed"] == [1.0, 80.0, 80.0, 80.0]
    ranks = statistics.ranking(values, higher_is_better=False)
    assert ranks["found"]["rank"] == 1
    both_empty = statistics.penalised([math.nan], [False], [80.0])
    assert math.isnan(both_empty[0])


def test_smallest_p_is_wilcoxons_own() -> None:
    for cases in (4, 6, 9):
        p = stats.wilcoxon(np.arange(1, cases + 1, dtype=float)).pvalue
        assert statistics.smallest_p(cases, 1) == pytest.approx(p)
    assert statistics.smallest_p(4, 15) == 1.0


def test_undefined_and_infinite_values_stay_visible() -> None:
    described = statistics.describe([*VALUES, math.nan, math.inf])
    clean = statistics.describe(VALUES)
    assert (described["defined"], described["undefined"], described["infinite"]) == (7, 1, 1)
    assert described["mean_as_printed"] == "Inf"
    assert clean["mean_as_printed"] == "0.4100"
    assert {k: described[k] for k in ("mean", "low", "high")} == {k: clean[k] for k in ("mean", "low", "high")}


@pytest.mark.parametrize(
    ("values", "interval", "printed"),
    [
        ([], (None, None), "-"),
        ([0.5], (None, None), "0.5000"),
        ([2, 2, 2], (None, None), "2.0000"),
        ([2] * 4, (2, 2), "2.0000"),
    ],
)
def test_few_values(values: list[float], interval: tuple[float | None, ...], printed: str) -> None:
    described = statistics.describe(values)
    assert (described["low"], described["high"]) == interval
    assert described["mean_as_printed"] == printed


def test_paired_tests_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=25) + shift for name, shift in (("a", 0.0), ("b", 0.1), ("c", 1.0))}
    values["c"][3] = np.nan
    rows = {(row["a"], row["b"]): row for row in statistics.paired_tests(values)}
    assert list(rows) == [("a", "b"), ("a", "c"), ("b", "c")]
    for (a, b), row in rows.items():
        kept = np.isfinite(values[a]) & np.isfinite(values[b])
        expected = stats.wilcoxon(values[a][kept], values[b][kept])
        assert row["cases"] == kept.sum()
        assert row["p"] == pytest.approx(expected.pvalue)
        assert row["statistic"] == pytest.approx(expected.statistic)
        # without ties and zeros: r = 1 - 2 W / (n (n + 1) / 2), with the sign of the difference
        total = kept.sum() * (kept.sum() + 1) / 2
        assert abs(row["effect_size"]) == pytest.approx(1 - 2 * expected.statistic / total)
        assert np.sign(row["effect_size"]) == np.sign(row["median_difference"])
    smallest = min(rows.values(), key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(3 * smallest["p"])


def test_p_value_of_few_cases_is_exact() -> None:
    # all 2^6 signs are equally likely; the differences' ranks are distinct
    differences = np.array([0.1, 0.2, -0.3, 0.4, 0.5, 0.6])
    (row,) = statistics.paired_tests({"a": differences, "b": np.zeros(6)})
    ranks = stats.rankdata(np.abs(differences))
    observed = min((ranks * (differences > 0)).sum(), (ranks * (differences < 0)).sum())
    sums = [(ranks * np.array(signs)).sum() for signs in product([0, 1], repeat=6)]
    assert row["p"] == pytest.approx(np.mean([min(s, ranks.sum() - s) <= observed for s in sums]))


def test_equal_and_undefined_variants() -> None:
    rows = statistics.paired_tests({"a": VALUES, "b": VALUES, "c": [math.nan] * len(VALUES)})
    assert rows[0] | {"p": 1.0, "p_holm": 1.0, "effect_size": 0.0, "cases": 7} == rows[0]
    assert math.isnan(rows[1]["p"])
    assert math.isnan(rows[1]["p_holm"])
    assert rows[1]["cases"] == 0


def test_different_numbers_of_cases_are_refused() -> None:
    for function in (statistics.paired_tests, statistics.ranking):
        with pytest.raises(ValueError, match="same number of cases"):
            function({"a": [1, 2], "b": [1]})


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, math.nan, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, math.nan, 0.02], nan_ok=True
    )
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_between_the_p_value_and_bonferroni(p: list[float]) -> None:
    corrected = statistics.holm(p)
    for before, after in zip(p, corrected, strict=True):
        assert before <= after <= max(before, min(1.0, len(p) * max(p)))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_ranking_of_few_cases_equals_all_draws() -> None:
    values = {"good": [0.9, 0.2, 0.7], "poor": [0.1, 0.3, 0.6], "copy": [0.1, 0.3, 0.6]}
    ranks = statistics.ranking(values, resamples=100_000)
    wins = []
    for draw in product(range(3), repeat=3):
        means = {name: np.mean([v[i] for i in draw]) for name, v in values.items()}
        best = max(means.values())
        winners = [name for name in means if math.isclose(means[name], best)]
        wins.append({name: (name in winners) / len(winners) for name in values})
    for name in values:
        assert ranks[name]["share_of_draws_first"] == pytest.approx(np.mean([w[name] for w in wins]), abs=0.01)
    assert [ranks[name]["rank"] for name in values] == [1, 2.5, 2.5]
    assert ranks["good"]["low"] == 1
    assert ranks["good"]["high"] == 3  # the draw of the second case three times
    distances = statistics.ranking(values, higher_is_better=False)
    assert distances["good"]["rank"] == 3


def test_ranking_leaves_out_cases_that_some_variant_lacks() -> None:
    ranks = statistics.ranking({"a": [0.5, math.nan, 0.4], "b": [0.6, 0.9, math.inf]})
    assert ranks["b"]["rank"] == 1
    assert ranks["b"]["share_of_draws_first"] == 1
    nothing = statistics.ranking({"a": [math.nan], "b": [0.1]})
    assert all(math.isnan(v) for v in nothing["b"].values())
