"""Augmentation of whole batches: what it does to places and values, by closed form, SciPy and MONAI."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandCropByPosNegLabeld
from scipy import ndimage
from scipy.spatial.transform import Rotation

from scripts.runtime.errors import UserError
from scripts.transforms.batches import RandBatch

SIZE, SPACING = (12, 16, 10), (1.2, 1.2, 2.4)


def _batch(count: int = 3, channels: int = 4, size: tuple[int, ...] = (24, 26, 18)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(count, channels, *size, generator=generator)
    image[:, :, :, :4] = 0  # background
    label = (torch.rand(count, 1, *size, generator=generator) > 0.7).float()
    return {"image": image, "label": label}


def _middle(volume: torch.Tensor, size: tuple[int, ...] = SIZE) -> torch.Tensor:
    starts = [(n - m) // 2 for n, m in zip(volume.shape[2:], size, strict=True)]
    return volume[(..., *(slice(a, a + m) for a, m in zip(starts, size, strict=True)))]


def test_without_anything_random_it_cuts_out_the_middle() -> None:
    batch = _batch()
    image, label = RandBatch(SIZE, SPACING)(batch, "cpu")
    torch.testing.assert_close(image, _middle(batch["image"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(label, _middle(batch["label"]), atol=1e-5, rtol=0)


def test_mirrored_is_left_to_right_for_image_and_label_alike() -> None:
    batch = _batch()
    image, label = RandBatch(SIZE, SPACING, flip_probability=1.0)(batch, "cpu")
    torch.testing.assert_close(image, _middle(batch["image"]).flip(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(label, _middle(batch["label"]).flip(2), atol=1e-5, rtol=0)
    torch.manual_seed(0)
    mirrored = RandBatch(SIZE, SPACING, flip_probability=0.5).draw_matrices(2000, SIZE)[:, 2, 2] < 0
    assert 0.46 < mirrored.float().mean() < 0.54


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.2, 1.2, 2.4), (2.0, 1.0, 3.0)])
def test_a_turned_and_scaled_patch_is_what_scipy_samples_in_millimetres(spacing: tuple[float, ...]) -> None:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (30, 28, 24)), indexing="ij")
    smooth = np.exp(-((x - 0.1) ** 2) / 0.2 - (y + 0.15) ** 2 / 0.1 - z**2 / 0.3)
    batch = {"image": torch.as_tensor(smooth[None, None]).float(), "label": torch.zeros(1, 1, *smooth.shape)}
    torch.manual_seed(3)
    augmentation = RandBatch(SIZE, spacing, rotation=(0.3, 0.2, 0.4), scaling=0.2)
    image, _ = augmentation(batch, "cpu")

    torch.manual_seed(3)
    angles = (2 * torch.rand(1, 3) - 1)[0].numpy() * (0.3, 0.2, 0.4)
    zoom = 1 / (1 + 0.2 * (2 * torch.rand(1, 3) - 1)[0].numpy())
    # about x, y, z one after the other; torch turns the second axis the other way round than a right-handed system
    turn = Rotation.from_euler("XYZ", angles * (1, -1, 1)).as_matrix()
    step = np.array(spacing)
    out = np.indices(SIZE).reshape(3, -1) - (np.array(SIZE)[:, None] - 1) / 2
    from_mm = turn @ (zoom[:, None] * step[:, None] * out)
    index = from_mm / step[:, None] + (np.array(smooth.shape)[:, None] - 1) / 2
    expected = ndimage.map_coordinates(smooth, index, order=1, mode="grid-constant").reshape(SIZE)
    np.testing.assert_allclose(image[0, 0], expected, atol=2e-5)


def test_outside_of_what_comes_in_is_background() -> None:
    batch = {"image": torch.ones(1, 2, *SIZE), "label": torch.ones(1, 1, *SIZE)}
    torch.manual_seed(0)
    image, label = RandBatch(SIZE, SPACING, rotation=(0.5, 0.5, 0.5))(batch, "cpu")
    corners = image[0, 0, [0, 0, 0, 0, -1, -1, -1, -1], [0, 0, -1, -1] * 2, [0, -1] * 4]
    assert (corners == 0).any()
    torch.testing.assert_close(label[0, 0], image[0, 0])
    assert image[0, 0, 6, 8, 5] == pytest.approx(1)


def test_intensities_change_by_channel_and_patch_and_the_background_stays_0() -> None:
    batch = _batch(count=200)
    given = _middle(batch["image"])
    torch.manual_seed(0)
    image, label = RandBatch(SIZE, SPACING, intensity_factor=0.1, intensity_shift=0.2)(batch, "cpu")
    torch.testing.assert_close(label, _middle(batch["label"]), atol=1e-5, rtol=0)
    inside = given.abs() > 1e-4
    assert (image[given == 0] == 0).all()
    for patch in (0, 1):
        for channel in (0, 3):
            known = inside[patch, channel]
            slope, offset = np.polyfit(given[patch, channel][known], image[patch, channel][known], 1)
            assert 0.9 <= slope <= 1.1
            assert -0.2 <= offset <= 0.2
            np.testing.assert_allclose(
                image[patch, channel][known], slope * given[patch, channel][known] + offset, atol=1e-4
            )
    shifts = (image - given)[:, 0].flatten(1).mean(dim=1)
    assert shifts.std() > 0.03  # drawn anew for each


def test_noise_of_half_the_patches_is_at_most_what_is_said() -> None:
    batch = {"image": torch.ones(400, 1, *SIZE), "label": torch.zeros(400, 1, *SIZE)}
    torch.manual_seed(0)
    deviations = RandBatch(SIZE, SPACING, noise=0.3)(batch, "cpu")[0].flatten(1).std(dim=1)
    assert 0.42 < (deviations > 1e-3).float().mean() < 0.58
    assert 0.26 < deviations.max() < 0.32


def test_channels_are_left_out_of_the_share_of_patches_that_is_wanted() -> None:
    batch = {"image": torch.ones(600, 4, *SIZE), "label": torch.zeros(600, 1, *SIZE)}
    torch.manual_seed(0)
    image, _ = RandBatch(SIZE, SPACING, intensity_shift=0.1, noise=0.1, dropout=0.25, dropped=[1, 2])(batch, "cpu")
    gone = (image == 0).flatten(2).all(dim=2)
    assert not gone[:, [0, 3]].any()
    assert torch.equal(gone[:, 1], gone[:, 2])
    assert 0.2 < gone[:, 1].float().mean() < 0.3


@pytest.mark.parametrize("dropped", ["x", [-1], [1.0], [True]])
def test_channels_to_leave_out_are_numbers(dropped: object) -> None:
    with pytest.raises(UserError, match="dropped"):
        RandBatch([4, 4, 4], [1.0, 1.0, 1.0], dropped=dropped)  # type: ignore[arg-type]


def test_equal_seeds_give_equal_batches_and_metadata_are_left_behind() -> None:
    batch = {name: MetaTensor(value, affine=torch.eye(4)) for name, value in _batch().items()}
    augmentation = RandBatch(
        SIZE,
        SPACING,
        (0.2, 0.2, 0.2),
        scaling=0.1,
        flip_probability=0.5,
        intensity_factor=0.1,
        intensity_shift=0.1,
        noise=0.1,
    )
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(augmentation(batch, "cpu"))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][0], results[2][0])
    assert not isinstance(results[0][0], MetaTensor)


def test_a_case_without_lesion_is_cropped_without_a_warning() -> None:
    case = {"image": torch.ones(1, 20, 20, 20), "label": torch.zeros(1, 20, 20, 20)}
    crop = RandCropByPosNegLabeld(["image", "label"], label_key="label", spatial_size=[5, 5, 5], pos=1, neg=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "Num foregrounds 0, Num backgrounds")
        assert crop(case)[0]["image"].shape == (1, 5, 5, 5)
    assert not caught  # MONAI's words are those that scripts.transforms leaves out
