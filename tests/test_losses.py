"""The six losses as train.yaml declares them: against hand-computed values, against MONAI, on empty masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceFocalLoss, DiceLoss, HausdorffDTLoss, LogHausdorffDTLoss, TverskyLoss
from scipy.ndimage import distance_transform_edt

from scripts import losses
from scripts.errors import choose

NAMES = ["dice", "dice_focal", "tversky", "hausdorff", "dice_focal_hausdorff", "tversky_hausdorff"]


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


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_a_better_mask_has_a_lower_loss(declared: dict, name: str) -> None:
    # Eq. 2 and 4-6 as printed would prefer the worse one
    target = torch.zeros(1, 1, 24, 24, 8)
    target[..., 8:14, 8:14, 2:6] = 1
    values = []
    for shift in (0, 2, 6):
        logits = torch.roll(target, shift, dims=2) * 12 - 6
        values.append(float(declared[name](logits, target)))
    assert values[0] < values[1] < values[2]


def test_hausdorff_is_computed_in_float32_from_half() -> None:
    logits, target = (t.float() for t in _example(4, (1, 1, 40, 40, 12)))
    loss = losses.HausdorffDTLoss(sigmoid=True, include_background=True)
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
