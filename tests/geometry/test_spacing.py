"""Resampling to a spacing: sizes, geometry, smoothing, and the way back, also as MONAI Label calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, CropForegroundd, Invertd, Orientationd

from scripts.transforms.resample import ResizeToSpacingd


def _resizer(spacing_mm: Sequence[float]) -> Callable[[Any], Any]:
    resize = ResizeToSpacingd("image", spacing_mm)
    return lambda image: resize({"image": image})["image"]


OBLIQUE = np.array([[-1.1, 0.3, 0.0, 40], [0.3, 1.0, 0.4, 25], [0.1, -0.4, 3.0, 7], [0, 0, 0, 1]], dtype=float)


def _ball(affine: np.ndarray, shape: tuple[int, ...] = (60, 56, 24), radius_mm: float = 16) -> MetaTensor:
    """A smooth ball in the middle of the volume."""
    world = np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices(shape).astype(float))
    centre = affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    distance = np.linalg.norm(world - centre[:, None, None, None], axis=0)
    return MetaTensor(torch.as_tensor(1 / (1 + np.exp(distance - radius_mm)))[None].float(),
                      affine=torch.as_tensor(affine))  # fmt: skip


def _centre_mm(image: MetaTensor) -> np.ndarray:
    weights = image.as_tensor().numpy()[0]
    index = np.array([(np.indices(weights.shape)[axis] * weights).sum() / weights.sum() for axis in range(3)])
    return (image.affine.numpy() @ [*index, 1])[:3]


@pytest.mark.parametrize("spacing_mm", [(2, 2, 3), (1, 1.5, 5), (0.7, 0.7, 0.9)])
def test_voxels_get_their_size_and_things_stay_where_they_are(spacing_mm: tuple[float, ...]) -> None:
    before = _ball(OBLIQUE)
    after = _resizer(spacing_mm)(before)
    sizes = np.linalg.norm(after.affine[:3, :3].numpy(), axis=0)
    assert np.all(np.abs(sizes / spacing_mm - 1) < 0.5 / np.array(after.shape[1:]) + 1e-6)
    np.testing.assert_allclose(_centre_mm(after), _centre_mm(before), atol=0.05)
    volume = float(after.sum() * np.prod(sizes)), float(before.sum() * np.linalg.norm(OBLIQUE[:3, :3], axis=0).prod())
    assert volume[0] == pytest.approx(volume[1], rel=0.01)


def test_a_small_lesion_is_not_skipped_over() -> None:
    """Two by two by one voxels of 0.9 mm between the points that a coarse grid would look at."""
    affine = torch.diag(torch.tensor([0.9, 0.9, 1.0, 1]))
    for shift in range(4):
        label = torch.zeros((1, 40, 40, 24))
        label[:, 18 + shift : 20 + shift, 17:19, 11] = 1
        after = _resizer((2.7, 2.7, 3))(MetaTensor(label, affine=affine))
        volumes = float(after.sum() * after.affine.det().abs()), float(label.sum() * 0.81)
        assert volumes[0] == pytest.approx(volumes[1], rel=0.35)


def test_noise_is_averaged_where_voxels_become_larger() -> None:
    noise = torch.randn((1, 64, 64, 16), generator=torch.Generator().manual_seed(0))
    after = _resizer((3, 3, 2))(MetaTensor(noise, affine=torch.diag(torch.tensor([1.0, 1, 2, 1]))))
    assert float(after.std()) < 0.4


@pytest.mark.parametrize("workers", [0, 2])
def test_the_way_back_ends_where_it_began(workers: int) -> None:
    image = _ball(OBLIQUE)
    steps = Compose([
        Orientationd(keys=["image", "label"], axcodes="RAS", labels=None),
        CropForegroundd(keys=["image", "label"], source_key="image", select_fn=lambda x: x > 0.5, margin=3,
                        allow_smaller=True, start_coord_key=None, end_coord_key=None),
        ResizeToSpacingd(keys=["image", "label"], spacing_mm=(2, 2, 3)),
    ])  # fmt: skip
    # MONAI Label's items hold a string whose name begins with that of the image
    item = {"image": image, "label": image.clone(), "image_path": "case.nii.gz"}
    batch = next(iter(DataLoader(Dataset([item], steps), batch_size=1, num_workers=workers)))
    assert batch["image"].shape[2:] < image.shape[1:]
    batch["pred"] = batch["image"].clone()
    back = Compose([Invertd(keys="pred", transform=steps, orig_keys="image", nearest_interp=False)])
    result = back(decollate_batch(batch)[0])["pred"]
    assert result.shape == image.shape
    np.testing.assert_allclose(result.affine.numpy(), OBLIQUE, atol=1e-5)
    inside = image.as_tensor() > 0.6  # what lies outside of the crop comes back as 0
    assert float((result.as_tensor() - image.as_tensor())[inside].abs().mean()) < 0.03


def test_threads_do_not_share_a_size() -> None:
    resize = _resizer((2, 2, 3))
    volumes = [_ball(np.diag([1, 1, 3, 1.0]), (20 + 2 * n, 24, 8)) for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        shapes = [tuple(result.shape) for result in pool.map(resize, volumes)]
    assert shapes == [(1, 10 + n, 12, 8) for n in range(24)]


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        _resizer((2, 0, 3))
    with pytest.raises(ValueError, match="affine"):
        _resizer((2, 2, 3))(torch.zeros((1, 4, 4, 4)))
