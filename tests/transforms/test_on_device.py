"""Batched augmentation of resident cases against TorchIO, SciPy and MONAI; run with the CPU as the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio
from monai.engines.utils import PrepareBatchDefault
from monai.transforms import RandCropByPosNegLabeld, RandFlipd, SpatialPadd
from monai.transforms.utils import map_binary_to_indices

from scripts.transforms import RandBatch, fast
from scripts.transforms.bridge import AugmentByTorchIOd
from scripts.transforms.on_device import PaperBatch, Parameters, PatchBatch, batched_form

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


def _batch(subject: torchio.Subject) -> tuple[torch.Tensor, torch.Tensor]:
    return subject.image.data[None].float(), subject.label.data[None].float()


def _apply(subject: torchio.Subject, **parameters: Any) -> tuple[torch.Tensor, torch.Tensor]:
    points = {"displacement_mm": np.zeros((7, 7, 7, 3), np.float32)}
    drawn = Parameters(**{**points, **parameters})
    image, label = PaperBatch.apply(*_batch(subject), torch.tensor([SPACING]), [drawn])
    return image[0], label[0]


def test_the_default_parameters_change_nothing() -> None:
    subject = _subject()
    image, label = _apply(subject)
    torch.testing.assert_close(image, subject.image.data, atol=1e-5, rtol=0)
    assert torch.equal(label, subject.label.data)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [1.2, 1.37, 2.0])
def test_anisotropy_is_that_of_the_host(axis: int, factor: float) -> None:
    subject = _subject()
    image, label = _apply(subject, axis=axis, downsampling=factor)
    torch.testing.assert_close(image, fast.coarsen(subject.image.data, axis + 1, factor), atol=1e-4, rtol=0)
    assert torch.equal(label, subject.label.data)


def test_anisotropy_blur_and_gamma_equal_torchio() -> None:
    subject = _subject()
    std, gamma = (1.0, 2.0, 3.0), [0.92, 1.08]
    subject.image.set_data(fast.coarsen(subject.image.data, 1, 1.4))
    expected = torchio.Gamma(gamma=gamma)(torchio.Blur(std=std)(subject)).image.data
    image, _ = _apply(_subject(), axis=0, downsampling=1.4, blur_mm=std, gamma=gamma)
    torch.testing.assert_close(image, expected, atol=1e-4, rtol=0)


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
    image, label = _apply(subject, displacement_mm=mm[::-1, ::-1] * (-1, -1, 1))
    difference = (image - expected.image.data).abs()
    assert difference.mean() < 1e-3
    assert (image - subject.image.data).abs().mean() > 0.1
    assert (label != expected.label.data).float().mean() < 0.005


def test_parameters_are_torchios_with_their_probabilities() -> None:
    torch.manual_seed(0)
    batch = PaperBatch(list(_paper().values()))
    drawn = [batch.draw(2) for _ in range(400)]
    on = {
        "noise": [one.std > 0 for one in drawn], "anisotropy": [one.downsampling > 1 for one in drawn],
        "blur": [max(one.blur_mm) > 0 for one in drawn], "gamma": [one.gamma[1] != 1 for one in drawn],
        "elastic": [bool(np.any(one.displacement_mm)) for one in drawn],
    }  # fmt: skip
    for name, applied in on.items():
        assert 0.4 < np.mean(applied) < 0.6, name
    assert max(one.std for one in drawn) <= 0.01
    assert {one.axis for one in drawn} == {0, 1, 2}
    assert 1.9 < max(one.downsampling for one in drawn) <= 2.0
    assert 2.8 < max(max(one.blur_mm) for one in drawn) <= 3.0


def _cases(count: int = 400) -> dict[str, Any]:
    label = torch.zeros(1, 20, 16, 12)
    label[:, 14:16, 8, 5] = 1
    return {
        "size": torch.tensor([[20, 16, 12]]).repeat(count, 1), "voxels": [map_binary_to_indices(label)] * count,
    }  # fmt: skip


def _patches(share: float = 0.5, crop: tuple[int, ...] = (8, 8, 8), **options: float) -> PatchBatch:
    cropper = RandCropByPosNegLabeld(["image", "label"], "label", crop, pos=share, neg=1 - share, allow_smaller=True)
    return PatchBatch(cropper, RandBatch((6, 6, 6), (1.0, 1.0, 1.0), **options))  # type: ignore[arg-type]


def test_half_of_the_patches_are_centred_on_lesions() -> None:
    torch.manual_seed(0)
    centres = _patches().draw_centres(_cases())
    lesion = torch.tensor([[13.5, 7.5, 4.5], [14.5, 7.5, 4.5]])
    assert 0.42 < (centres[:, None] == lesion).all(2).any(1).float().mean() < 0.58
    assert (centres >= 3.5).all()  # the crop lies within the case
    assert (centres <= torch.tensor([19, 15, 11]) - 3.5).all()
    assert not torch.equal(_patches().draw_centres(_cases()), centres)
    torch.manual_seed(0)
    assert torch.equal(_patches().draw_centres(_cases()), centres)


@pytest.mark.parametrize("size", [(20, 16, 12), (20, 5, 12)], ids=["whole", "smaller than the crop"])
def test_a_patch_is_what_monai_crops_there(size: tuple[int, int, int]) -> None:
    """The same voxel as the centre: the host's crop and padding, then RandBatch, against one resampling."""
    torch.manual_seed(3)
    x, y, z = size
    volume = torch.rand(1, 2, 20, 16, 12) + 0.5
    volume[:, :, x:], volume[:, :, :, y:], volume[:, :, :, :, z:] = 0, 0, 0
    label = torch.zeros(1, 1, 20, 16, 12)
    label[0, 0, 9, 3, 6] = 1
    item = {"image": volume[0, :, :x, :y, :z], "label": label[0, :, :x, :y, :z]}
    voxels = [map_binary_to_indices(item["label"])]
    image, truth = _patches(1.0)({"image": volume, "label": label, "size": torch.tensor([size]), "voxels": voxels})
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
