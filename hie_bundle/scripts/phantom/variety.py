"""Settings of one simulated case, and families of ranges that they are drawn from anew for each case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..runtime.errors import UserError

Rule = Any  # [low, high] | {log: [low, high]} | {odds: p, range: [low, high]} | {choose: {value: weight}} | a number


@dataclass(frozen=True)
class CaseSettings:
    """One case's scanner, newborn, injury, confounders, atlas and annotator; the defaults are the plain middle.

    Lengths are in mm, ADC is relative where no unit stands. Shares and odds lie in 0..1.
    """

    # scan
    field_of_view_mm: float = 170.0  # in plane
    in_plane_mm: float = 1.5
    thickness_mm: float = 3.0
    gap: float = 0.0  # between slices, as a share of their distance
    tilt_deg: float = 5.0  # standard deviation of the scan's obliqueness
    mirrored: float = 0.0  # above 0.5: an axis is stored the other way round
    cut_off_mm: float = 0.0  # of the brain's bottom (below 0) or top (above 0), beyond the field of view
    b_value: float = 1000.0
    noise: float = 0.025  # relative to white matter's signal at b = 0
    directions: float = 6.0
    blur_mm: float = 0.7
    bias: float = 0.01  # amplitude of the coil's relative error of ADC
    bias_scale_mm: float = 30.0
    adc_level: float = 1.0  # the scanner's, and a cooled newborn's
    motion_mm: float = 0.0  # between the images
    slice_motion_mm: float = 0.0  # between slices
    lost_slices: float = 0.0  # share with signal loss
    dropout: float = 0.0  # signal lost near air, share
    distortion_mm: float = 0.0  # near air
    # newborn
    size: float = 1.0
    aspect: float = 0.0  # longer and narrower (above 0), shorter and wider (below)
    asymmetry: float = 0.0  # left half larger (above 0)
    rotation_deg: float = 5.0  # standard deviation
    warp_mm: float = 2.5  # amplitude of the head's own shape
    warp_scale_mm: float = 22.0
    own_folding: float = 0.35
    cortex_mm: float = 2.6
    fluid_mm: float = 0.0  # more fluid around the brain
    ventricle_mm: float = 0.0  # wider ventricles
    white_level: float = 1.0  # of ADC: maturity
    grey_level: float = 1.0
    tract_level: float = 0.9  # of myelinating tracts, against deep grey matter
    # injury
    kind: str = "focal"
    size_class: str = "small"  # none, tiny, small, middle, large or huge: see SIZES
    reduction: float = 0.4  # of ADC in the core
    patchiness: float = 0.15  # variation of the reduction inside
    softness_mm: float = 0.8  # of the injury's border
    # confounders, never labelled
    haemorrhages: float = 0.0  # count
    old_injuries: float = 0.0  # count, with raised ADC
    low_rim_mm: float = 0.0  # depth of patches of low ADC along the skull strip's border
    # atlas and Z map
    registration_mm: float = 1.35
    registration_scale_mm: float = 12.0
    atlas_shift: float = 0.0  # of its mean, share
    atlas_shift_local: float = 0.0  # the same, varying over the brain
    atlas_width: float = 1.0  # factor on its standard deviation
    z_smoothing_mm: float = 2.0
    z_clip: float = 10.0
    # skull strip
    strip_mm: float = 0.6  # how far inside its border runs
    strip_error_mm: float = 0.5
    # annotator
    outline_at: float = 0.44  # share of injury that is still drawn: below 0.4 generous, above 0.5 tight
    outline_smoothing_mm: float = 0.9
    outline_shift_mm: float = 0.25
    missed_slices: float = 0.0  # share of lesion slices left out
    ignored_voxels: float = 0.0  # connected lesions smaller than this are left out, while a larger one is drawn
    drawn_whole: float = 0.0  # above 0.5: in three dimensions at once instead of slice by slice


SIZES = {  # share of the brain's volume, drawn log-uniformly
    "none": (0.0, 0.0),
    "tiny": (0.0002, 0.001),
    "small": (0.001, 0.01),
    "middle": (0.01, 0.05),
    "large": (0.05, 0.2),
    "huge": (0.2, 0.7),
}


def draw_settings(family: Mapping[str, Rule], rng: np.random.Generator) -> CaseSettings:
    """One case's settings, drawn from a family; a setting that the family does not name keeps its default.

    A rule is a range ``[low, high]`` (uniform), ``{log: [low, high]}``, ``{odds: p, range: [low, high]}`` (else the
    default), ``{choose: {value: weight}}``, or a number.

    Raises:
        UserError: if a name or a rule is unknown.
    """
    defaults: dict[str, Any] = {field.name: field.default for field in fields(CaseSettings)}
    unknown = family.keys() - defaults.keys()
    if unknown:
        raise UserError(f"The simulator has no setting {', '.join(sorted(unknown))}; it has {', '.join(defaults)}.")
    # One stream a setting: a new setting, or another range, leaves the others as they were drawn.
    streams = rng.spawn(len(defaults))
    return CaseSettings(
        **{
            name: apply_rule(name, family[name], default, stream) if name in family else default
            for (name, default), stream in zip(defaults.items(), streams, strict=True)
        }
    )


def apply_rule(name: str, rule: Rule, default: Any, rng: np.random.Generator) -> Any:
    """Draw one value by its rule; see :func:`draw_settings`."""
    try:
        if isinstance(rule, int | float):
            return float(rule)
        if not isinstance(rule, Mapping):
            low, high = map(float, rule)
            return float(rng.uniform(low, high))
        if rule.keys() == {"log"}:
            low, high = map(math.log, rule["log"])
            return math.exp(rng.uniform(low, high))
        if rule.keys() == {"odds", "range"}:
            low, high = map(float, rule["range"])
            drawn = float(rng.uniform(low, high))
            return drawn if rng.random() < rule["odds"] else default
        if rule.keys() == {"choose"}:
            values = list(rule["choose"])
            weights = np.array([float(rule["choose"][value]) for value in values])
            return type(default)(values[int(rng.choice(len(values), p=weights / weights.sum()))])
    except (TypeError, ValueError) as error:
        raise UserError(f"The rule of the simulator's {name}, {rule!r}, cannot be used: {error}.") from error
    raise UserError(
        f"The rule of the simulator's {name} is {rule!r}; it takes [low, high], log, odds and range, or choose."
    )


def reachable(family: Mapping[str, Rule], name: str) -> tuple[float, float] | set[str]:
    """All values that ``name`` can take in a family: (least, greatest) without the default of ``odds``, or a set."""
    rule = family.get(name, next(field.default for field in fields(CaseSettings) if field.name == name))
    if isinstance(rule, Mapping) and "choose" in rule:
        return {str(value) for value in rule["choose"]}
    if isinstance(rule, Mapping):
        rule = rule.get("log") or rule["range"]
    if isinstance(rule, str):
        return {rule}
    low, high = (rule, rule) if isinstance(rule, int | float) else rule
    return float(low), float(high)
