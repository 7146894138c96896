"""Mistakes in settings, kinds of injury, and structures that the atlas contains, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts import phantom
from scripts.phantom import case as module
from scripts.phantom.disease import Disease
from scripts.phantom.settings import Settings
from scripts.runtime.errors import UserError

KINDS = (
    "focal",
    "multifocal",
    "basal_ganglia_thalamus",
    "watershed",
    "territorial",
    "near_total",
    "cortical",
    "patches",
)
TINY: dict[str, Any] = {
    "matrix_sizes": (48,), "slice_range": (16, 16), "fine_mm": 4.0, "atlas_step_mm": 4.0, "num_healthy": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"finemm": 1}, "no setting finemm"),
        ({"fine_mm": "much"}, "fine_mm"),
        ({"registration_mm": -1}, "registration_mm"),
        ({"slice_range": [20, 10]}, "slice_range"),
    ],
)
def test_mistakes_in_settings_are_refused_before_anything_is_written(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        phantom.write_cohort(tmp_path / "none", progress=False, **values)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_injury_can_be_drawn(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "draw_disease", lambda *_: Disease(kind, 0.1, 0.5))
    case = phantom.simulate_case(4, 2, Settings(**TINY))
    share = (case.label > 0).sum() / case.brain.sum()
    assert case.kind == kind
    assert 0.0002 < share < 0.9


def test_the_atlas_knows_the_known_structures() -> None:
    """They lower ADC without a label, and Z hardly moves; an injury as deep would be far below."""
    cases = [
        phantom.simulate_case(4, number, Settings(**{**TINY, "known_structures": mean}), counterfactual=True)
        for number in range(6)
        for mean in (0.0, 6.0)
    ]
    lowered, moved = [], []
    for without, having in zip(cases[::2], cases[1::2], strict=True):
        assert without.healthy_adc is not None
        assert having.healthy_adc is not None
        there = (having.healthy_adc < 0.9 * without.healthy_adc) & (without.extent == 0) & (having.extent == 0)
        lowered.append(there.sum() / without.brain.sum())
        moved.append(having.zadc[there].mean() - without.zadc[there].mean())
    assert np.mean(lowered) > 0.005
    assert np.nanmean(moved) > -1
