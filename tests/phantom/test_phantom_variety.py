"""Settings drawn anew for each simulated case: their families, and what a case makes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from conftest import BUNDLE
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import ndimage

from scripts import phantom
from scripts.phantom.disease import Annotator, outline
from scripts.phantom.shapes import SHAPES
from scripts.phantom.variety import SIZES, reachable
from scripts.runtime.errors import UserError

FAMILIES = yaml.safe_load((BUNDLE / "configs" / "variety.yaml").read_text())
SCANS: dict[str, Any] = {"fine_mm": 4.0, "atlas_step_mm": 4.0, "num_healthy": 3}
COARSE = phantom.Settings(**SCANS)
# Coarse voxels for speed; everything else is the family's.
QUICK = {name: {**family, "in_plane_mm": 4.0, "thickness_mm": [5, 6]} for name, family in FAMILIES.items()}
PLAIN_KINDS = {"focal", "multifocal", "basal_ganglia_thalamus", "watershed", "territorial", "near_total"}


@given(family=st.sampled_from(sorted(FAMILIES)), seed=st.integers(0, 2**32 - 1))
@examples(max_examples=60, deadline=None)
def test_drawn_settings_stay_in_their_family(family: str, seed: int) -> None:
    rules = FAMILIES[family]
    drawn = phantom.draw_settings(rules, np.random.default_rng(seed))
    assert drawn == phantom.draw_settings(rules, np.random.default_rng(seed))
    for field in dataclasses.fields(drawn):
        value, allowed = getattr(drawn, field.name), reachable(rules, field.name)
        rule = rules.get(field.name)
        if value == field.default and (rule is None or (isinstance(rule, dict) and "odds" in rule)):
            continue
        if isinstance(allowed, set):
            assert value in allowed or float(value) in {float(v) for v in allowed}, field.name
        else:
            assert allowed[0] - 1e-9 <= value <= allowed[1] + 1e-9, field.name


def test_held_out_families_do_not_meet_the_one_trained_on() -> None:
    for first, second in (("wide", "shifted"), ("wide", "foreign"), ("shifted", "foreign")):
        assert not reachable(FAMILIES[first], "kind") & reachable(FAMILIES[second], "kind")
        assert not reachable(FAMILIES[first], "z_clip") & reachable(FAMILIES[second], "z_clip")
        for name in (
            "bias_scale_mm", "warp_scale_mm", "softness_mm", "registration_scale_mm", "z_smoothing_mm", "outline_at",
            "outline_smoothing_mm",
        ):  # fmt: skip
            (low, high), (least, most) = (reachable(FAMILIES[family], name) for family in (first, second))
            assert high < least or most < low, (first, second, name)


def test_families_name_shapes_and_sizes_that_exist() -> None:
    kinds = [reachable(family, "kind") for family in FAMILIES.values()]
    assert set.union(*kinds) == set(SHAPES) | PLAIN_KINDS
    assert all(reachable(family, "size_class") == set(SIZES) for family in FAMILIES.values())


def test_a_setting_does_not_move_the_others() -> None:
    wide = FAMILIES["wide"]
    one, other = (phantom.draw_settings(rules, np.random.default_rng(5)) for rules in (wide, {**wide, "noise": 0.5}))
    assert other == dataclasses.replace(one, noise=0.5)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"nois": [0, 1]}, "no setting nois"),
        ({"noise": {"odd": 1}}, "noise"),
        ({"noise": [1]}, "noise"),
        ({"noise": {"log": [0, 1]}}, "noise"),
        ({"kind": "spots"}, "kind"),
    ],
)
def test_mistakes_in_a_family_are_said_before_anything_is_written(
    tmp_path: Path, rules: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        phantom.write_cohort(tmp_path / "none", variety="mine", varieties={"mine": rules}, progress=False)
    with pytest.raises(UserError, match="wide, shifted, foreign"):
        phantom.write_cohort(tmp_path / "none", variety="narrow", varieties=FAMILIES, progress=False)
    assert not (tmp_path / "none").exists()


@given(family=st.sampled_from(sorted(QUICK)), number=st.integers(0, 500))
@examples(max_examples=14, deadline=None, derandomize=True)
def test_a_varied_case_is_a_case(family: str, number: int) -> None:
    case = phantom.simulate_case(4, number, COARSE, QUICK[family])
    assert case.settings is not None
    brain, label = case.adc > 0, case.label > 0
    assert np.array_equal(brain, case.brain)
    assert not label[~brain].any()
    assert not case.zadc[~brain].any()
    assert np.isfinite(case.zadc).all()
    assert np.abs(case.zadc).max() <= case.settings.z_clip
    assert label.any() == (case.kind != "none") == (case.settings.size_class != "none")
    assert ndimage.label(ndimage.binary_dilation(brain))[1] == 1
    np.testing.assert_allclose(case.direction @ case.direction.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(case.spacing_mm[2], case.settings.thickness_mm, atol=1e-4)
    assert 180 < brain.sum() * np.prod(case.spacing_mm) / 1000 < 800
    if case.kind != "none":
        high = SIZES[case.settings.size_class][1]
        assert label.sum() / brain.sum() < 2.5 * high + 12 / brain.sum()
    # In plane the whole head is seen; only the first and last slices may cut it.
    assert not brain[[0, -1]].any()
    assert not brain[:, [0, -1]].any()


def test_every_shape_of_injury_can_be_drawn() -> None:
    for number, kind in enumerate(SHAPES):
        rules = {**QUICK["wide"], "kind": {"choose": {kind: 1}}, "size_class": {"choose": {"middle": 1}}}
        case = phantom.simulate_case(4, number, COARSE, rules, counterfactual=number == 0)
        share = (case.label > 0).sum() / case.brain.sum()
        assert 0.002 < share < 0.12, (kind, share)


def test_confounders_change_adc_and_are_not_labelled() -> None:
    bare = {"in_plane_mm": 4.0, "thickness_mm": 5.0, "size_class": {"choose": {"none": 1}}}
    plain = phantom.simulate_case(4, 0, COARSE, bare)
    for name, value in (("haemorrhages", 4.0), ("old_injuries", 4.0), ("low_rim_mm", 2.5), ("dropout", 0.95)):
        case = phantom.simulate_case(4, 0, COARSE, {**bare, name: value})
        assert not case.label.any()
        np.testing.assert_array_equal(case.brain, plain.brain)
        change = case.adc[case.brain].astype(float) - plain.adc[case.brain]
        assert (np.abs(change) > 120).sum() > 4, name
        if name == "old_injuries":
            assert change.min() > -150
            assert change.max() > 150
        if name == "low_rim_mm":
            assert change.min() < -400
            assert change.max() < 150


def test_a_varied_cohort_depends_on_seed_number_and_family_only(tmp_path: Path) -> None:
    phantom.write_cohort(tmp_path, 1, 0, 1, 4, 1, "wide", QUICK, False, **SCANS)
    case = phantom.simulate_case(4, 1, COARSE, QUICK["wide"])
    for name, values in (("MGHNICU_002-*ss", case.adc), ("Zmap_MGHNICU_002-*", case.zadc), ("*002*lesion", case.label)):
        image = sitk.ReadImage(str(next(tmp_path.rglob(f"{name}.mha"))))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), values)
    with pytest.raises(UserError, match="other settings"):
        phantom.write_cohort(tmp_path, 1, 0, 1, 4, 1, "shifted", QUICK, False, **SCANS)


def test_annotators_habits() -> None:
    position = np.indices((40, 40, 10)).astype(float)
    radius = np.sqrt(((position - np.array([18.0, 20.0, 5.0])[:, None, None, None]) ** 2).sum(0))
    extent = np.clip((9 - radius) / 6, 0, 1).astype(np.float32)  # a soft border
    extent[34:36, 34:36, 5] = 1  # a speck
    spacing = np.ones(3)

    def draw(**habits: object) -> np.ndarray:
        return outline(extent, spacing, np.random.default_rng(0), annotator=Annotator(**habits))  # type: ignore[arg-type]

    usual, generous, tight = draw(), draw(drawn_at=(0.15, 0.2)), draw(drawn_at=(0.6, 0.65))
    assert generous.sum() > 1.3 * usual.sum()
    assert tight.sum() < 0.8 * usual.sum()
    assert usual[34:36, 34:36].any()
    assert not draw(ignored_voxels=30)[34:36, 34:36].any()
    assert draw(ignored_voxels=30)[18, 20, 5]
    fewer = draw(missed_slices=0.5).any((0, 1)).sum()
    assert 0 < fewer < usual.any((0, 1)).sum()
    assert draw(whole=True).any()
