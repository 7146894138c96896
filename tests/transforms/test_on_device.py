"""Batched augmentation of resident cases against TorchIO, SciPy and MONAI; run with the CPU as the device."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio
from monai.engines.utils import PrepareBatchDefault
from monai.transforms import RandCropByPosNegLabeld, RandFlipd, SpatialPadd
from scipy import ndimage

from scripts.transforms import RandBatch, fast
from scripts.transforms.bridge import AugmentByTorchIOd
from scripts.transforms.on_device import PaperBatch, PatchBatch, anisotropy_matrix, batched_form, blur_matrix

SHAPE, SPACING = (24, 20, 12), (1.5, 1.2, 4.0)


def _paper(**probability: float) -> dict[str, torchio.Transform]:
    p = {"p": 0.5, **probability}
    return {
        "noise": torchio.RandomNoise(std=0.01, **p),
        "anisotropy": fast.FastAnisotropy(downsampling=(1.2, 2.0), **p),
        "blur": fast.FastBlur(std=(0.0, 3.0), **p),
        "gamma": torchio.RandomGamma(log_gamma=(-0.1, 0.1), **p),
        "elastic": fast.FastElasticDeformation(**p),
    }


def _subject() -> torchio.Subject:
    affine = np.diag([*SPACING, 1.0])
    image = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    label = (image[:1] > 0.5).float()
    return torchio.Subject(
        image=torchio.ScalarImage(tensor=image, affine=affine), label=torchio.LabelMap(tensor=label, affine=affine)
    )


def _unchanged(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = {
        "noise_mean": torch.zeros(1), "noise_std": torch.zeros(1), "axis": torch.tensor([-1]), "factor": torch.ones(1),
        "blur_std": torch.zeros(1, 3), "gamma": torch.ones(1, 2), "points": torch.zeros(1, 7, 7, 7, 3),
    }  # fmt: skip
    return parameters | changed


def _batch(subject: torchio.Subject) -> tuple[torch.Tensor, torch.Tensor]:
    return subject.image.data[None].float(), subject.label.data[None].float()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [1.2, 1.37, 2.0])
def test_anisotropy_equals_torchio(axis: int, factor: float) -> None:
    subject = _subject()
    expected = fast.coarsen(subject.image.data, axis + 1, factor)
    parameters = _unchanged(axis=torch.tensor([axis]), factor=torch.tensor([factor], dtype=torch.float64))
    image, label = PaperBatch.apply(*_batch(subject), parameters)
    torch.testing.assert_close(image[0], expected, atol=1e-4, rtol=0)
    assert torch.equal(label[0], subject.label.data)


def test_blur_and_gamma_equal_torchio() -> None:
    subject = _subject()
    std, gamma = (1.0, 2.0, 3.0), [0.92, 1.08]
    expected = torchio.Gamma(gamma=gamma)(torchio.Blur(std=std)(subject)).image.data
    parameters = _unchanged(blur_std=torch.tensor([std]) / torch.tensor(SPACING), gamma=torch.tensor([gamma]))
    image, _ = PaperBatch.apply(*_batch(subject), parameters)
    torch.testing.assert_close(image[0], expected, atol=1e-4, rtol=0)


def test_elastic_deformation_equals_torchio() -> None:
    subject = _subject()
    torch.manual_seed(1)
    random = torchio.RandomElasticDeformation(max_displacement=(3.0, 3.0, 5.0))
    points = random.get_params((7, 7, 7), (3.0, 3.0, 5.0), 2)
    transform = torchio.ElasticDeformation(control_points=points, max_displacement=(3.0, 3.0, 5.0))
    expected = transform(subject)
    # ITK's lattice runs along LPS, ours along the voxels of a RAS image: x and y are reversed, displacements too
    spline = transform.get_bspline_transform(subject.image.as_sitk())
    transform.parse_free_form_transform(spline, transform.max_displacement)
    mm = np.stack([sitk.GetArrayViewFromImage(one).transpose() for one in spline.GetCoefficientImages()], axis=-1)
    voxels = mm[::-1, ::-1].copy() / (-SPACING[0], -SPACING[1], SPACING[2])
    image, label = PaperBatch.apply(*_batch(subject), _unchanged(points=torch.from_numpy(voxels).float()[None]))
    difference = (image[0] - expected.image.data).abs()
    assert difference.mean() < 1e-3
    assert (image[0] - subject.image.data).abs().mean() > 0.1
    assert (label[0] != expected.label.data).float().mean() < 0.005


def test_blur_matrix_is_scipys() -> None:
    values = np.random.default_rng(0).normal(size=20)
    for std in (0.3, 1.2, 2.5):
        expected = ndimage.gaussian_filter1d(values, std)
        assert blur_matrix(torch.tensor([std]), 20)[0].double().numpy() @ values == pytest.approx(expected, abs=1e-5)
    assert torch.equal(blur_matrix(torch.zeros(1), 5)[0], torch.eye(5))
    assert torch.equal(anisotropy_matrix(torch.ones(1), 5)[0], torch.eye(5))


def test_parameters_have_torchios_distributions() -> None:
    torch.manual_seed(0)
    count = 2000
    spacing = torch.tensor([SPACING]).repeat(count, 1)
    drawn = PaperBatch(list(_paper().values())).draw(torch.zeros(count, 2, 4, 4, 4), spacing)
    on = {
        "noise_std": drawn["noise_std"] > 0, "axis": drawn["axis"] >= 0, "blur_std": drawn["blur_std"].sum(1) > 0,
        "gamma": drawn["gamma"][:, 0] != 1, "points": drawn["points"].abs().amax((1, 2, 3, 4)) > 0,
    }  # fmt: skip
    for name, applied in on.items():
        assert 0.45 < applied.float().mean() < 0.55, name
    assert drawn["noise_std"].max() <= 0.01
    assert drawn["noise_std"][on["noise_std"]].mean() == pytest.approx(0.005, rel=0.1)
    assert (drawn["factor"].min(), drawn["factor"].max()) == (
        pytest.approx(1.2, abs=0.01),
        pytest.approx(2.0, abs=0.01),
    )
    assert (drawn["blur_std"].amax(0) * torch.tensor(SPACING)).tolist() == pytest.approx([3.0] * 3, rel=0.02)
    assert drawn["gamma"].log().abs().max() == pytest.approx(0.1, rel=0.02)
    largest = (drawn["points"].abs().amax((0, 1, 2, 3)) * torch.tensor(SPACING)).tolist()
    assert largest == pytest.approx([7.5] * 3, rel=0.01)
    assert not drawn["points"][:, :2].any()  # locked
    assert not drawn["points"][:, :, -2:].any()
    assert [int((drawn["axis"] == axis).sum()) for axis in range(3)] == pytest.approx([count / 6] * 3, rel=0.2)


def _cases(count: int = 400) -> dict[str, torch.Tensor]:
    image = torch.zeros(count, 1, 20, 16, 12)
    label = torch.zeros_like(image)
    label[:, :, 14:16, 8, 5] = 1
    return {
        "image": image, "label": label, "size": torch.tensor([[20, 16, 12]]).repeat(count, 1),
        "lesion_voxel": torch.tensor([[14, 8, 5]]).repeat(count, 1), "has_lesion": torch.ones(count, dtype=torch.bool),
    }  # fmt: skip


def _patches(share: float = 0.5, crop: tuple[int, ...] = (8, 8, 8), **options: float) -> PatchBatch:
    cropper = RandCropByPosNegLabeld(["image", "label"], "label", crop, pos=share, neg=1 - share, allow_smaller=True)
    return PatchBatch(cropper, RandBatch((6, 6, 6), (1.0, 1.0, 1.0), **options))  # type: ignore[arg-type]


def test_half_of_the_patches_are_centred_on_lesions() -> None:
    torch.manual_seed(0)
    centres = _patches().draw_centres(_cases())
    assert 0.42 < (centres == torch.tensor([13.5, 7.5, 4.5])).all(1).float().mean() < 0.58
    assert (centres >= 3.5).all()  # the crop lies within the case
    assert (centres <= torch.tensor([19, 15, 11]) - 3.5).all()
    without = _cases() | {"has_lesion": torch.zeros(400, dtype=torch.bool)}
    assert not (_patches(1.0).draw_centres(without) == torch.tensor([13.5, 7.5, 4.5])).all(1).any()


@pytest.mark.parametrize("size", [(20, 16, 12), (20, 5, 12)], ids=["whole", "smaller than the crop"])
def test_a_patch_is_what_monai_crops_there(size: tuple[int, int, int]) -> None:
    """The same voxel as the centre: the host's crop and padding, then RandBatch, against one resampling."""
    torch.manual_seed(3)
    x, y, z = size
    volume = torch.rand(1, 2, 20, 16, 12) + 0.5
    volume[:, :, x:], volume[:, :, :, y:], volume[:, :, :, :, z:] = 0, 0, 0
    label = torch.zeros(1, 1, 20, 16, 12)
    label[0, 0, 9, 3, 6] = 1
    cases = {
        "image": volume, "label": label, "size": torch.tensor([size]), "lesion_voxel": torch.tensor([[9, 3, 6]]),
        "has_lesion": torch.tensor([True]),
    }  # fmt: skip
    image, truth = _patches(1.0)(cases)
    item = {"image": volume[0, :, :x, :y, :z], "label": label[0, :, :x, :y, :z]}
    crop = RandCropByPosNegLabeld(["image", "label"], "label", (8, 8, 8), pos=1, neg=0, allow_smaller=True)
    (cropped,) = crop(item)  # type: ignore[misc]
    padded = SpatialPadd(["image", "label"], (8, 8, 8))(cropped)
    expected = RandBatch((6, 6, 6), (1.0, 1.0, 1.0))({key: padded[key][None] for key in ("image", "label")}, "cpu")
    torch.testing.assert_close(image, expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(truth, expected[1], atol=1e-4, rtol=0)


def test_a_recipe_without_a_batched_form_stays_on_the_host() -> None:
    default, patches = PrepareBatchDefault(), RandBatch((6, 6, 6), (1.0, 1.0, 1.0))
    paper = {"paper": AugmentByTorchIOd("image", _paper(), "label")}
    crop = RandCropByPosNegLabeld(["image", "label"], "label", (8, 8, 8))
    pad = SpatialPadd(["image", "label"], (8, 8, 8))
    assert isinstance(batched_form(paper, default), PaperBatch)
    assert isinstance(batched_form({}, default), PaperBatch)
    assert isinstance(batched_form({"crop": crop, "padding": pad}, patches), PatchBatch)
    assert batched_form({**paper, "flip": RandFlipd("image")}, default) is None
    assert batched_form({"crop": crop, "padding": pad}, default) is None
    assert batched_form({"paper": AugmentByTorchIOd("image", torchio.RandomFlip(), "label")}, default) is None
    assert batched_form({"crop": crop, "flip": RandFlipd("image"), "padding": pad}, patches) is None
