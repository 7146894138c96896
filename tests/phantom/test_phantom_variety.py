"""Other settings of the simulator, and structures that the atlas contains, too."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from conftest import BUNDLE
from scipy import ndimage

from scripts import phantom
from scripts.phantom.disease import outline
from scripts.phantom.settings import KINDS, Settings, varied
from scripts.runtime.errors import UserError

FAMILIES = yaml.safe_load((BUNDLE / "configs" / "variety.yaml").read_text())
TINY: dict[str, Any] = {
    "matrix_sizes": (48,), "slice_range": (16, 16), "fine_mm": 4.0, "atlas_step_mm": 4.0, "num_healthy": 3,
}  # fmt: skip


def test_other_settings_differ_from_the_plain_cohort_and_each_other() -> None:
    settings = [Settings(), *(varied({}, family) for family in FAMILIES.values())]
    for first, second in combinations(settings, 2):
        assert not first.kinds.keys() & second.kinds.keys()
        for name in ("softness_mm", "warp_scale_mm", "bias_scale_mm", "registration_scale_mm", "z_smoothing_mm"):
            one, other = getattr(first, name), getattr(second, name)
            assert max(one, other) > 1.25 * min(one, other), name
        for name in ("drawn_at", "outline_smoothing_mm"):
            (low, high), (least, most) = getattr(first, name), getattr(second, name)
            assert high < least or most < low, name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"softnes_mm": 1}, "no setting softnes_mm"),
        ({"softness_mm": "much"}, "softness_mm"),
        ({"softness_mm": -1}, "softness_mm"),
        ({"z_clip": 0}, "z_clip"),
        ({"drawn_at": [0.5, 0.3]}, "drawn_at"),
        ({"kinds": {"spot": 1}}, "spot"),
    ],
)
def test_mistakes_in_other_settings_are_refused_before_anything_is_written(
    tmp_path: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        phantom.write_cohort(tmp_path / "none", variety="mine", varieties={"mine": values}, progress=False)
    with pytest.raises(UserError, match="none, shifted, foreign"):
        phantom.write_cohort(tmp_path / "none", variety="narrow", varieties=FAMILIES, progress=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("number", range(4))
def test_a_case_of_other_settings_is_a_case(family: str, number: int) -> None:
    settings = varied(TINY, FAMILIES[family])
    case = phantom.simulate_case(4, number, settings)
    brain, label = case.adc > 0, case.label > 0
    assert np.array_equal(brain, case.brain)
    assert not label[~brain].any()
    assert not case.zadc[~brain].any()
    assert np.isfinite(case.zadc).all()
    assert np.abs(case.zadc).max() <= settings.z_clip
    assert label.any() == (case.kind != "none")
    assert case.kind in {"none", *settings.kinds}
    assert ndimage.label(ndimage.binary_dilation(brain))[1] == 1
    assert 250 < brain.sum() * np.prod(case.spacing_mm) / 1000 < 700


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_injury_can_be_drawn(kind: str) -> None:
    case = phantom.simulate_case(4, 2, Settings(**TINY, kinds={kind: 1}))  # the third case has a large injury
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


def test_a_cohort_of_other_settings_is_not_mixed_with_another(tmp_path: Path) -> None:
    phantom.write_cohort(tmp_path, 1, 0, 1, 4, 1, "shifted", FAMILIES, progress=False, **TINY)
    case = phantom.simulate_case(4, 1, varied(TINY, FAMILIES["shifted"]))
    for name, values in (("MGHNICU_002-*ss", case.adc), ("Zmap_MGHNICU_002-*", case.zadc), ("*002*lesion", case.label)):
        image = sitk.ReadImage(str(next(tmp_path.rglob(f"{name}.mha"))))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), values)
    with pytest.raises(UserError, match="other settings"):
        phantom.write_cohort(tmp_path, 1, 0, 1, 4, 1, "foreign", FAMILIES, progress=False, **TINY)


def test_annotators_habits() -> None:
    position = np.indices((40, 40, 10)).astype(float)
    radius = np.sqrt(((position - np.array([18.0, 20.0, 5.0])[:, None, None, None]) ** 2).sum(0))
    extent = np.clip((9 - radius) / 6, 0, 1).astype(np.float32)  # a soft border

    def draw(**habits: Any) -> np.ndarray:
        return outline(extent, np.ones(3), np.random.default_rng(0), Settings(**habits))

    usual, generous, tight = draw(), draw(drawn_at=(0.15, 0.2)), draw(drawn_at=(0.6, 0.65))
    assert generous.sum() > 1.3 * usual.sum()
    assert tight.sum() < 0.8 * usual.sum()
    assert draw(drawn_whole=True).any()
