"""Distance transforms against SciPy, on masks of every awkward kind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai import losses as stock
from scipy import ndimage

from scripts import losses
from scripts.geometry import distance
from scripts.geometry.distance import boundary_distance

# squared distances by the package of the CPU, and by the tensor operations of other devices
METHODS = {"edt": lambda mask: boundary_distance(mask, squared=True), "separable": distance.separable}


def scipy_distances(mask: torch.Tensor) -> np.ndarray:
    """outside + inside, zero where a mask is empty or full."""
    result = np.zeros(mask.shape)
    for index in np.ndindex(*mask.shape[:2]):
        one = mask[index].numpy()
        if one.any() and not one.all():
            inside = ndimage.distance_transform_edt(one)
            outside = ndimage.distance_transform_edt(~one)
            result[index] = outside + inside
    return result


def awkward_masks(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    random = torch.rand(shape, generator=generator)
    empty = torch.zeros(shape, dtype=torch.bool)
    single = empty.clone()
    single[tuple(n // 3 for n in shape)] = True
    corner = empty.clone()
    corner[(0,) * len(shape)] = True
    border = ~empty
    border[(slice(1, -1),) * len(shape)] = False
    thin = empty.clone()
    thin[shape[0] // 2] = True
    return {
        "sparse": random < 0.01,
        "half": random < 0.5,
        "dense": random < 0.99,
        "empty": empty,
        "full": ~empty,
        "single voxel": single,
        "all but one": ~single,
        "corner": corner,
        "border": border,
        "thin plane": thin,
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(17, 13, 7), (5, 19, 23), (1, 9, 8), (21, 16), (16, 21)])
def test_equals_scipy(method: str, shape: tuple[int, ...]) -> None:
    masks = awkward_masks(shape)
    batch = torch.stack(list(masks.values())).unflatten(0, (5, 2))
    squares, expected = METHODS[method](batch), scipy_distances(batch)
    assert squares.dtype == torch.float32
    np.testing.assert_allclose(squares.numpy(), expected**2, rtol=1e-5, atol=0)
    np.testing.assert_allclose(boundary_distance(batch).numpy(), expected, rtol=1e-5, atol=0)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_separable_and_edt_equal_scipy_for_any_mask(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    bits = data.draw(st.binary(min_size=(size := int(np.prod(shape))), max_size=size))
    mask = (torch.tensor(list(bits), dtype=torch.uint8) > data.draw(st.integers(0, 255))).reshape(1, 1, *shape)
    expected = scipy_distances(mask)
    for method in METHODS.values():
        np.testing.assert_allclose(method(mask).sqrt().numpy(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_layout_of_the_mask_in_memory_does_not_matter(method: str) -> None:
    mask = torch.rand(2, 1, 9, 8, 7, generator=torch.Generator().manual_seed(0)) < 0.2
    strided = mask.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)
    channels_last = mask.to(memory_format=torch.channels_last_3d)
    expected = METHODS[method](mask)
    assert torch.equal(METHODS[method](strided), expected)
    assert torch.equal(METHODS[method](channels_last), expected)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.rand(1, 1, 150, 140, 60, generator=torch.Generator().manual_seed(0)) < 0.001
    results = []
    for chunk_bytes in (4 << 30, 1 << 20):
        monkeypatch.setattr(distance, "CHUNK_BYTES", chunk_bytes)
        results.append(distance.separable(mask))
    assert torch.equal(*results)
    torch.testing.assert_close(results[0], boundary_distance(mask, squared=True), rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:single channel prediction")
@pytest.mark.parametrize("name", ["HausdorffDTLoss", "LogHausdorffDTLoss"])
@pytest.mark.parametrize("shape", [(2, 1, 9, 8, 7), (2, 3, 9, 8, 7), (2, 3, 11, 10)])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "other_act"])
def test_hausdorff_losses_equal_monai_with_all_arguments(name: str, shape: tuple[int, ...], activation: str) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    logits = torch.randn(shape, generator=generator)
    multi_label = (torch.rand(shape, generator=generator) > 0.7).float()
    multi_label[0, -1] = 0
    classes = torch.randint(shape[1], (shape[0], 1, *shape[2:]), generator=generator).float()
    combinations = itertools.product(("mean", "sum", "none"), (False, True), (False, True), (False, True), (1.0, 2.0))
    for reduction, batch, include_background, to_onehot_y, alpha in combinations:
        arguments = {
            "reduction": reduction,
            "batch": batch,
            "include_background": include_background,
            "to_onehot_y": to_onehot_y,
            "alpha": alpha,
            activation: torch.tanh if activation == "other_act" else True,
        }
        results = []
        for module in (losses, stock):
            x = logits.clone().requires_grad_()
            value = getattr(module, name)(**arguments)(x, classes if to_onehot_y else multi_label)
            value.sum().backward()
            results.append((value.detach(), x.grad))
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-8)


def test_hausdorff_loss_raises_what_monai_raises() -> None:
    ours, theirs = losses.HausdorffLoss(), stock.HausdorffDTLoss()
    for prediction, target, error in (
        (torch.zeros(2, 2, 5), torch.zeros(2, 2, 5), ValueError),
        (torch.zeros(2, 2, 5, 5), torch.zeros(2, 1, 5, 5), AssertionError),
    ):
        messages = []
        for loss in (ours, theirs):
            with pytest.raises(error) as raised:
                loss(prediction, target)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


def test_masks_without_boundary_cost_no_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], distance.edt.edt
    monkeypatch.setattr(distance.edt, "edt", lambda *a, **k: calls.append(1) or real(*a, **k))
    mask = torch.zeros(4, 1, 6, 6, 6, dtype=torch.bool)
    mask[1] = True
    mask[2, 0, 2:4] = True
    boundary_distance(mask)
    assert len(calls) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_stays_on_the_device_without_synchronising() -> None:
    mask = torch.rand(2, 1, 40, 33, 17, generator=torch.Generator().manual_seed(0)) < 0.01
    mask[1] = False
    on_device = mask.cuda()
    boundary_distance(on_device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = boundary_distance(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_cuda
    logits = torch.randn(on_device.shape, device="cuda", requires_grad=True)
    target = on_device.float()
    loss = losses.LogHausdorffLoss(sigmoid=True, include_background=True)
    loss(logits, target).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(logits, target).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = scipy_distances(mask)
    np.testing.assert_allclose(result.cpu().numpy(), expected, rtol=1e-4, atol=0)
