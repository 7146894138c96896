"""The losses as train.yaml declares them: against hand-computed values, against MONAI, on empty masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import (
    BoundaryLoss,
    DiceFocalLoss,
    DiceLoss,
    HausdorffDTLoss,
    LogHausdorffDTLoss,
    TverskyLoss,
)
from scipy.ndimage import distance_transform_edt, label

from scripts import losses
from scripts.runtime.errors import choose

NAMES = ["dice", "dice_focal", "tversky", "hausdorff", "dice_focal_hausdorff", "tversky_hausdorff"]
BEYOND = ["dice_ce", "generalized_dice", "unified_focal", "generalized_dice_boundary", "component_dice"]


@pytest.fixture(scope="module")
def declared() -> dict[str, torch.nn.Module]:
    parser = ConfigParser()
    parser.read_config(str(Path(losses.__file__).parents[1] / "configs" / "train.yaml"))
    return parser.get_parsed_content("losses")


def _example(seed: int = 0, shape: tuple[int, ...] = (2, 1, 12, 10, 6)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    target = (torch.rand(shape, generator=generator) > 0.7).double()
    return logits, target


def _by_hand(name: str, logits: torch.Tensor, target: torch.Tensor) -> float:
    """The formulas of the paper (with the corrections of its own code) in NumPy, item by item."""
    values = []
    for x, g in zip(logits.numpy()[:, 0], target.numpy()[:, 0], strict=True):
        p = 1 / (1 + np.exp(-x))
        eps = 1e-5
        dice = 1 - (2 * (p * g).sum() + eps) / (p.sum() + g.sum() + eps)
        tp, fp, fn = (p * g).sum(), (p * (1 - g)).sum(), ((1 - p) * g).sum()
        tversky = 1 - (tp + eps) / (tp + 0.3 * fp + 0.7 * fn + eps)
        p_true = np.where(g == 1, p, 1 - p)
        focal = (-((1 - p_true) ** 2) * np.log(p_true)).mean()

        def field(mask: np.ndarray) -> np.ndarray:
            if mask.all() or not mask.any():
                return np.zeros(mask.shape)
            return distance_transform_edt(mask) + distance_transform_edt(~mask)

        hausdorff = ((p - g) ** 2 * (field(p > 0.5) ** 2 + field(g > 0.5) ** 2)).mean()
        values.append({"dice": dice, "dice_focal": dice + focal, "tversky": tversky, "hausdorff": hausdorff})
    mean = {key: np.mean([v[key] for v in values]) for key in values[0]}
    if name.endswith("_hausdorff"):
        return 0.9 * mean[name.removesuffix("_hausdorff")] + 0.1 * np.log1p(mean["hausdorff"])
    return mean[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_value_by_hand(declared: dict, name: str, seed: int) -> None:
    logits, target = _example(seed)
    assert float(declared[name](logits, target)) == pytest.approx(_by_hand(name, logits, target), rel=1e-5)


MONAI = {
    "dice": DiceLoss(sigmoid=True),
    "dice_focal": DiceFocalLoss(sigmoid=True, gamma=2.0),
    "tversky": TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7),
    "hausdorff": HausdorffDTLoss(sigmoid=True, include_background=True),
}
LOG_HAUSDORFF = LogHausdorffDTLoss(sigmoid=True, include_background=True)


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_monai(declared: dict, name: str) -> None:
    logits, target = (t.float() for t in _example(2))

    def stock(x: torch.Tensor) -> torch.Tensor:
        if name in MONAI:
            return MONAI[name](x, target)
        return 0.9 * MONAI[name.removesuffix("_hausdorff")](x, target) + 0.1 * LOG_HAUSDORFF(x, target)

    results = []
    for loss in (lambda x: declared[name](x, target), stock):
        x = logits.clone().requires_grad_()
        value = loss(x)
        value.backward()
        results.append((value.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", NAMES + BEYOND)
@pytest.mark.parametrize("target_is", ["empty", "full", "usual"])
@pytest.mark.parametrize("logit", [-30.0, 30.0, None])
def test_empty_and_full_masks_stay_finite(declared: dict, name: str, target_is: str, logit: float | None) -> None:
    x, target = (t.float() for t in _example(3))
    if logit is not None:
        x = torch.full_like(x, logit)
    if target_is != "usual":
        target = torch.full_like(target, float(target_is == "full"))
    x.requires_grad_()
    value = declared[name](x, target)
    value.backward()
    assert torch.isfinite(value)
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", NAMES + BEYOND)
def test_a_better_mask_has_a_lower_loss(declared: dict, name: str) -> None:
    # Eq. 2 and 4-6 as printed would prefer the worse one
    target = torch.zeros(1, 1, 24, 24, 8)
    target[..., 8:14, 8:14, 2:6] = 1
    values = []
    for shift in (0, 2, 6):
        logits = torch.roll(target, shift, dims=2) * 12 - 6
        values.append(float(declared[name](logits, target)))
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", ["stock", "ours"])
def test_hausdorff_alone_prefers_nothing_to_a_small_lesion_four_voxels_off(name: str) -> None:
    """MONAI's definition, and why that loss leaves masks empty: an empty prediction has no distances of its own."""
    loss = {"stock": HausdorffDTLoss, "ours": losses.HausdorffLoss}[name](include_background=True)
    grid = torch.stack(torch.meshgrid(*[torch.arange(32) - 15.5] * 3, indexing="ij"))
    truth = ((grid**2).sum(0) < 25).float()[None, None]
    nothing, shifted = loss(torch.zeros_like(truth), truth), loss(torch.roll(truth, 4, 2), truth)
    assert float(nothing) == pytest.approx(0.058, abs=0.001)
    assert float(shifted) == pytest.approx(0.141, abs=0.001)


def test_hausdorff_is_computed_in_float32_from_half() -> None:
    logits, target = (t.float() for t in _example(4, (1, 1, 40, 40, 12)))
    loss = losses.HausdorffLoss(sigmoid=True, include_background=True)
    exact = loss(logits, target)
    half = loss(logits.to(torch.bfloat16), target.to(torch.bfloat16))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=1e-2, atol=0)


def test_unknown_name_lists_the_known_ones(declared: dict) -> None:
    with pytest.raises(ValueError, match="'dcie'.*" + ", ".join(NAMES)):
        choose(declared, "dcie", "loss_name")


def test_compound_weights_are_used() -> None:
    logits, target = _example(5)
    region, boundary = DiceLoss(sigmoid=True), LOG_HAUSDORFF
    compound = losses.CompoundLoss(region, boundary, region_weight=0.6, boundary_weight=0.4)
    expected = 0.6 * region(logits, target) + 0.4 * boundary(logits, target)
    torch.testing.assert_close(compound(logits, target), expected)


# --- losses beyond the study's ------------------------------------------------------------------------------------


def _two_class_dice(p: np.ndarray, g: np.ndarray) -> float:
    """Sudre et al. 2017, with MONAI's smoothing: class weights 1 / volume², an absent class weighted as the other."""
    numerator = denominator = 0.0
    volumes = [(1 - g).sum(), g.sum()]
    for q, t, volume in zip((1 - p, p), (1 - g, g), volumes, strict=True):
        weight = 1 / (volume or max(volumes)) ** 2
        numerator += 2 * weight * (q * t).sum()
        denominator += weight * (q.sum() + t.sum())
    return 1 - (numerator + 1e-5) / (denominator + 1e-5)


def _unified_focal(p: np.ndarray, g: np.ndarray) -> float:
    """Yeung et al. 2022, asymmetric, with λ = 0.5, γ = 0.5, δ = 0.7: lesion weighted by δ, background by 1 - δ."""
    focal = (-0.7 * g * np.log(p) - 0.3 * (1 - g) * p**0.5 * np.log(1 - p)).mean() / 2

    def tversky(q: np.ndarray, t: np.ndarray) -> float:
        both = (q * t).sum()
        return both / (both + 0.7 * ((1 - q) * t).sum() + 0.3 * (q * (1 - t)).sum())

    region = ((1 - tversky(1 - p, 1 - g)) + (1 - tversky(p, g)) ** 0.5) / 2
    return 0.5 * focal + 0.5 * region


def _boundary(p: np.ndarray, g: np.ndarray) -> float:
    """Kervadec et al. 2019, Eq. 5 with a mean over the voxels."""
    if g.all() or not g.any():
        return 0.0
    outside, inside = distance_transform_edt(g == 0), distance_transform_edt(g)
    return (p * np.where(g == 1, 1 - inside, outside)).mean()


def _component_dice(p: np.ndarray, g: np.ndarray) -> float:
    """Each voxel's nearest lesion by comparing all of their distances."""
    labels, count = label(g, structure=np.ones((3, 3, 3)))
    if count == 0:
        return 1 - 1e-5 / (p.sum() + 1e-5)
    nearest = np.argmin([distance_transform_edt(labels != i + 1) for i in range(count)], axis=0)
    parts = [(p[nearest == i], g[nearest == i]) for i in range(count)]
    return float(np.mean([1 - (2 * (q * t).sum() + 1e-5) / (q.sum() + t.sum() + 1e-5) for q, t in parts]))


def _lesions(shape: tuple[int, ...], *boxes: tuple[slice, ...]) -> torch.Tensor:
    target = torch.zeros((1, 1, *shape), dtype=torch.float64)
    for box in boxes:
        target[(0, 0, *box)] = 1
    return target


SHAPES = {
    "two lesions": _lesions((13, 9, 8), (slice(1, 3),) * 3, (slice(8, 13), slice(5, 9), slice(3, 7))),
    # even gaps along each axis: no voxel is as near to one lesion as to another
    "three, one a voxel": _lesions((16, 7, 5), (slice(0, 2),) * 3, (slice(6, 7),) * 3, (slice(12, 15), slice(0, 4))),
    "one at the border": _lesions((8, 8, 8), (slice(5, 8), slice(0, 8), slice(0, 1))),
    "none": _lesions((6, 7, 8)),
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("name", ["generalized_dice", "unified_focal", "generalized_dice_boundary", "component_dice"])
def test_value_of_a_later_loss_by_hand(declared: dict, name: str, case: str) -> None:
    target = SHAPES[case]
    logits = 3 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p, g = torch.sigmoid(logits).numpy()[0, 0], target.numpy()[0, 0]
    expected = {
        "generalized_dice": _two_class_dice,
        "unified_focal": _unified_focal,
        "generalized_dice_boundary": lambda p, g: _two_class_dice(p, g) + 0.01 * _boundary(p, g),
        "component_dice": _component_dice,
    }[name](p, g)
    assert float(declared[name](logits, target)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 12, 10, 6), (1, 3, 9, 17), (1, 1, 4, 4, 4)])
def test_boundary_loss_equals_monai(shape: tuple[int, ...]) -> None:
    logits, target = _example(6, shape)
    target[0] = float(shape[1] == 3)  # empty or full
    results = []
    for loss in (losses.SignedDistanceLoss(sigmoid=True), BoundaryLoss(sigmoid=True)):
        x = logits.clone().requires_grad_()
        value = loss(x, target)
        value.backward()
        results.append((value.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1])


def test_a_missed_small_lesion_costs_as_much_as_a_large_one(declared: dict) -> None:
    target = SHAPES["two lesions"]
    small, large = target.clone(), target.clone()
    small[..., 4:, :, :] = 0
    large[..., :4, :, :] = 0
    missed = {name: [float(declared[name](24 * found - 12, target)) for found in (small, large)]
              for name in ("dice", "component_dice")}  # fmt: skip
    assert missed["component_dice"] == pytest.approx([0.5, 0.5], abs=0.01)
    assert missed["dice"] == pytest.approx([1 - 16 / 96, 1 - 160 / 168], abs=0.01)  # 8 and 80 voxels


def test_losses_of_two_classes_and_of_lesions_need_the_one_logit(declared: dict) -> None:
    two = torch.zeros(1, 2, 8, 8, 8)
    for name in ("generalized_dice", "component_dice"):
        with pytest.raises(ValueError, match="one channel"):
            declared[name](two, two)


@pytest.mark.parametrize("name", BEYOND)
def test_later_losses_from_half_are_those_of_float32(declared: dict, name: str) -> None:
    logits, target = (t.float() for t in _example(7))
    half = logits.half()
    torch.testing.assert_close(declared[name](half, target).float(), declared[name](half.float(), target),
                               rtol=2e-2, atol=0)  # fmt: skip


def test_deep_supervision_is_a_mean_over_scales() -> None:
    logits, target = _example(8, (2, 1, 8, 8, 8))
    stacked = torch.stack([logits, 0.5 * logits, -logits], dim=1)
    loss = losses.ScaleMeanLoss(DiceLoss(sigmoid=True))
    parts = [float(DiceLoss(sigmoid=True)(x.float(), target)) for x in stacked.unbind(1)]
    expected = (4 * parts[0] + 2 * parts[1] + parts[2]) / 7
    assert float(loss(stacked, target)) == pytest.approx(expected)
    coarse = [logits, logits[..., ::2, ::2, ::2]]  # nearest-exact takes the second of each two voxels
    parts = [float(DiceLoss(sigmoid=True)(coarse[0].float(), target)),
             float(DiceLoss(sigmoid=True)(coarse[1].float(), target[..., 1::2, 1::2, 1::2]))]  # fmt: skip
    assert float(loss(coarse, target)) == pytest.approx((2 * parts[0] + parts[1]) / 3)
    assert float(loss(logits, target)) == pytest.approx(float(DiceLoss(sigmoid=True)(logits.float(), target)))
