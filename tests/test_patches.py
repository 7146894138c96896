"""Training patches lie on small lesions as often as on large ones."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from scripts.transforms import RandCropByLesiond


def _case() -> dict[str, torch.Tensor]:
    label = torch.zeros(1, 40, 40, 20)
    label[0, 4:16, 4:16, 4:16] = 1  # 1728 voxels
    label[0, 30, 30, 10] = 0.4  # one, in part
    return {"image": torch.arange(label.numel(), dtype=torch.float32).reshape(label.shape), "label": label}


def _crops(share: float, case: dict[str, torch.Tensor], count: int = 200) -> list[dict[str, torch.Tensor]]:
    crop = RandCropByLesiond(
        keys=["image", "label"], label_key="label", spatial_size=[5, 5, 5], pos=share, neg=1 - share, allow_smaller=True
    )
    crop.set_random_state(0)
    return [crop(case)[0] for _ in range(count)]


def test_half_of_the_patches_on_lesion_lie_on_the_small_one() -> None:
    crops = _crops(1.0, _case())
    small = [bool(((one["label"] > 0) & (one["label"] < 1)).any()) for one in crops]
    large = [bool((one["label"] == 1).any()) for one in crops]
    assert all(a != b for a, b in zip(small, large, strict=True))
    assert 80 <= sum(small) <= 120  # 100 ± 2.8 standard deviations; by voxels it would be 0.1


def test_the_rest_lies_elsewhere_and_image_and_label_move_together() -> None:
    case = _case()
    on_lesion = 0
    for one in _crops(0.5, case):
        centre = tuple(size // 2 for size in one["image"].shape[1:])
        index = np.unravel_index(int(one["image"][0][centre]), case["image"].shape[1:])
        assert one["label"][0][centre] == case["label"][0][index]
        on_lesion += bool(one["label"][0][centre] > 0)
    assert 75 <= on_lesion <= 125


def test_a_case_without_lesion_gives_patches_too() -> None:
    case = _case()
    case["label"].zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(one["image"].shape == (1, 5, 5, 5) for one in _crops(0.5, case, 10))
