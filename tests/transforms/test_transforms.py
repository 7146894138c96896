"""The TorchIO bridge: random for the cache, geometry kept, labels handled as labels, reproducible."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import torchio
from conftest import BUNDLE, as_checked
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.data.utils import set_rnd
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from scripts.runtime.errors import UserError
from scripts.transforms.bridge import AugmentByTorchIOd
from scripts.transforms.fast import FastAnisotropy, FastElasticDeformation
from scripts.transforms.loading import LoadMapsd

OBLIQUE = np.array([[1.1, 0.3, 0.0, -40], [-0.3, 1.0, 0.4, 25], [0.1, -0.4, 3.0, 7], [0, 0, 0, 1]], dtype=float)
FLIPPED = np.diag([-1.5, 1.5, 4.0, 1.0])


def _item(affine: np.ndarray = OBLIQUE, seed: int = 0) -> dict[str, MetaTensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (24, 20, 12)
    image = torch.rand((2, *shape), generator=generator) + 1
    label = torch.zeros((1, *shape))
    label[:, 8:16, 6:14, 4:8] = 1
    meta = {"filename_or_obj": "case.mha", "note": "kept"}
    return {
        "image": MetaTensor(image, affine=torch.as_tensor(affine), meta=dict(meta)),
        "label": MetaTensor(label, affine=torch.as_tensor(affine), meta=dict(meta)),
        "case": "A",
    }


def _bridge(*transforms: torchio.Transform) -> AugmentByTorchIOd:
    return AugmentByTorchIOd(keys="image", label_keys="label", transform=torchio.Compose(list(transforms)))


INTENSITY = [
    torchio.RandomNoise(std=(0.1, 0.2)),
    torchio.RandomAnisotropy(downsampling=(1.5, 2)),
    torchio.RandomBlur(std=(1, 2)),
    torchio.RandomGamma(log_gamma=(0.2, 0.3)),
]
ELASTIC = torchio.RandomElasticDeformation(max_displacement=6, num_control_points=6)


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED], ids=["oblique", "flipped"])
@pytest.mark.parametrize("transform", [*INTENSITY, ELASTIC], ids=lambda t: type(t).__name__)
def test_metadata_geometry_and_types_survive(transform: torchio.Transform, affine: np.ndarray) -> None:
    before = _item(affine)
    after = _bridge(transform)(before)
    for key in ("image", "label"):
        assert isinstance(after[key], MetaTensor)
        assert after[key].shape == before[key].shape
        assert after[key].dtype == before[key].dtype
        assert after[key].meta["note"] == "kept"
        np.testing.assert_allclose(after[key].affine, affine, atol=1e-9)
    assert not torch.equal(after["image"].as_tensor(), before["image"].as_tensor())
    assert after["case"] == "A"


@pytest.mark.parametrize(
    "transform", [FastAnisotropy(downsampling=2), FastElasticDeformation(max_displacement=2)], ids=lambda t: t.name
)
def test_a_label_may_be_a_rounding_off_the_image(transform: torchio.Transform) -> None:
    item, off = _item(), _item(OBLIQUE + 1e-3 * np.eye(4, k=3))
    pairs = (item, {**item, "label": off["label"]})
    expected, after = (_bridge(transform).set_random_state(0)(one) for one in pairs)
    assert torch.equal(after["label"].as_tensor(), expected["label"].as_tensor())


@pytest.mark.parametrize("transform", INTENSITY, ids=lambda t: type(t).__name__)
def test_intensity_transforms_leave_the_label_alone(transform: torchio.Transform) -> None:
    before = _item()
    after = _bridge(transform)(before)
    assert torch.equal(after["label"].as_tensor(), before["label"].as_tensor())


def test_elastic_moves_image_and_label_together() -> None:
    # the label is the image's own bright box: after the same deformation they must still agree
    item = _item(FLIPPED)
    item["image"] = MetaTensor(item["label"].repeat(2, 1, 1, 1), affine=item["label"].affine)
    bridge = _bridge(ELASTIC)
    for seed in range(5):
        bridge.set_random_state(seed)
        after = bridge(item)
        label = after["label"].as_tensor() > 0.5
        assert set(np.unique(after["label"])) <= {0.0, 1.0}
        image = after["image"].as_tensor()[:1] > 0.5
        overlap = 2 * (label & image).sum() / (label.sum() + image.sum())
        moved = 2 * (label & (item["label"].as_tensor() > 0.5)).sum() / (label.sum() + item["label"].sum())
        assert overlap > 0.95
        assert moved < overlap


def test_torchio_sees_the_true_spacing() -> None:
    # a blur of 2 mm is 2 voxels at 1 mm and half a voxel at 4 mm: with a lost affine both would blur alike
    impulse = torch.zeros(1, 21, 21, 21)
    impulse[0, 10, 10, 10] = 1
    blur = AugmentByTorchIOd(keys="image", transform=torchio.RandomBlur(std=(2, 2)))
    out = blur({"image": MetaTensor(impulse, affine=torch.diag(torch.tensor([1.0, 4.0, 1.0, 1.0])))})["image"][0]
    axis = torch.arange(21) - 10.0
    widths = [float((out.sum(dim=other) * axis**2).sum() / out.sum()) ** 0.5 for other in ((1, 2), (0, 2))]
    assert widths[0] == pytest.approx(2.0, rel=0.1)
    assert widths[1] == pytest.approx(0.5, rel=0.15)


def test_plain_tensors_are_accepted() -> None:
    out = AugmentByTorchIOd(keys="image", transform=torchio.RandomNoise())({"image": torch.zeros(1, 4, 4, 4)})
    assert isinstance(out["image"], MetaTensor)


def test_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    _bridge(*INTENSITY, ELASTIC)(_item())
    assert torch.equal(torch.rand(3), expected)


def test_missing_key_is_named() -> None:
    with pytest.raises(KeyError, match="label"):
        _bridge(INTENSITY[0])({"image": _item()["image"]})


def _files(folder, count: int = 6) -> list[dict]:
    import nibabel

    items = []
    for k in range(count):
        paths = {}
        for key, seed in (("image", k), ("label", 0)):
            path = folder / f"{key}{k}.nii"
            nibabel.save(nibabel.Nifti1Image(_item(seed=seed)[key].numpy()[0].astype(np.float32), FLIPPED), path)
            paths[key] = str(path)
        items.append(paths)
    return items


def _epochs(items: list[dict], num_workers: int, seed: int, count: int = 2) -> list[list[torch.Tensor]]:
    """Images of some epochs, through the cache and the loader, seeded as the trainer does (handlers.EpochSeed)."""
    dataset = CacheDataset(
        items,
        Compose(
            [LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"]), _bridge(*INTENSITY, ELASTIC)]
        ),
        progress=False,
    )
    loader = DataLoader(dataset, num_workers=num_workers, batch_size=2, shuffle=True)
    epochs = []
    for epoch in range(count):
        torch.manual_seed(seed + epoch)
        set_rnd(dataset, seed + epoch)
        epochs.append([batch["image"].as_tensor().clone() for batch in loader])
    return epochs


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_is_new_in_every_epoch_and_equal_for_equal_seeds(tmp_path, num_workers: int) -> None:
    items = _files(tmp_path)
    first = _epochs(items, num_workers, seed=3)
    again = _epochs(items, num_workers, seed=3)
    other = _epochs(items, num_workers, seed=30)
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    # no volume comes back, neither in the next epoch nor under another seed nor from the other worker
    volumes = [volume for epochs in (first, other) for epoch in epochs for batch in epoch for volume in batch]
    assert len({volume.numpy().tobytes() for volume in volumes}) == len(volumes)


def test_each_transform_is_applied_with_its_probability() -> None:
    bridge = AugmentByTorchIOd(keys="image", transform=torchio.RandomNoise(p=0.5))
    bridge.set_random_state(0)
    image = torch.zeros(1, 2, 2, 2)
    applied = sum(bool(bridge({"image": image})["image"].any()) for _ in range(400))
    assert 160 < applied < 240  # 4 standard deviations


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([0], "1 channel; a stacked"),
        ([0, 1, 1], "3 channels"),
        ([1, 0], "are swapped"),
        ([0, 1], ""),
    ],
)
@pytest.mark.parametrize("stacked", [True, False])
def test_maps_that_would_give_a_wrong_mask_are_refused(
    channels: list[int], message: str, stacked: bool, tmp_path: Path
) -> None:
    """For tools that call the transforms without the workflow and its checks."""
    adc = np.zeros((9, 8, 7), np.float32)
    adc[2:7, 2:6, 1:6] = np.random.default_rng(0).uniform(600, 2000, (5, 4, 5))
    maps = [adc, np.where(adc > 0, (adc - 1300) / 300, 0).astype(np.float32)]
    if stacked:
        image: Any = str(tmp_path / "stack.nii.gz")
        nibabel.save(nibabel.Nifti1Image(np.stack([maps[c] for c in channels], -1).squeeze(), np.eye(4)), image)
    else:
        image = [str(tmp_path / f"{position}.nii.gz") for position in range(len(channels))]
        for path, c in zip(image, channels, strict=True):
            nibabel.save(nibabel.Nifti1Image(maps[c], np.eye(4)), path)
    load = LoadMapsd("image")
    if not message:
        loaded = EnsureChannelFirstd("image")(load({"image": image}))["image"]
        np.testing.assert_array_equal(loaded.numpy(), np.stack(maps))
        load._loader.image_only = False  # as MONAI Label sets it
        assert set(load({"image": image})) == {"image", "image_meta_dict"}
        return
    with pytest.raises(UserError, match=message) as error:
        load({"image": image})
    assert str(tmp_path) in str(error.value)


def test_maps_that_nobody_has_checked_are_checked_when_they_are_loaded(tmp_path: Path) -> None:
    """Of a server for annotation, which calls the transforms alone."""
    adc = np.zeros((9, 8, 7), np.float32)
    adc[2:7, 2:6, 1:6] = np.random.default_rng(0).uniform(600, 2000, (5, 4, 5))
    zadc, affine = np.where(adc > 0, (adc - 1300) / 300, 0).astype(np.float32), np.diag([1.0, 1, 3, 1])
    faults = {"another unit": (adc / 1000, zadc, affine), "another grid": (adc, zadc, np.diag([1.1, 1, 3, 1]))}
    for fault, (first, second, other) in faults.items():
        files = [str(tmp_path / f"{fault}_{name}.nii.gz") for name in ("adc", "zadc")]
        nibabel.save(nibabel.Nifti1Image(first, affine), files[0])
        nibabel.save(nibabel.Nifti1Image(second, other), files[1])
        with pytest.raises(UserError, match="is not an ADC map in 1e-6" if "unit" in fault else "is on another grid"):
            LoadMapsd("image")({"image": files})
        as_checked(*files)
        assert LoadMapsd("image")({"image": files})["image"].shape == (2, 9, 8, 7)


@pytest.mark.parametrize(("mode", "shift_mm", "within"), [("nearest-exact", -1.0, 0.2), ("trilinear", 0.0, 0.06)])
def test_how_far_labels_move_against_images(mode: str, shift_mm: float, within: float) -> None:
    """From 64 slices of 2 mm to 32: nearest neighbour, the paper's, rounds every tie to one side."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.yaml"))
    parser.update({"spatial_size": [64, 64, 32], "label_mode": mode})
    grid = Compose(list(parser.get_parsed_content("transforms#grid").values()))
    affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64))
    places = torch.stack(torch.meshgrid(*(torch.arange(n) + 0.5 for n in (64, 64, 64)), indexing="ij"))
    step = torch.tensor([1.0, 1.0, 2.0]).view(3, 1, 1, 1)
    for centre in (60.0, 61.0, 63.3):
        ball = ((places * step - torch.tensor([30.0, 33.0, centre]).view(3, 1, 1, 1)) ** 2).sum(0) < 15**2
        label = MetaTensor(ball[None].float(), affine=affine)
        moved = grid({"image": label.repeat(2, 1, 1, 1), "label": label})["label"]
        assert set(moved.unique().tolist()) == {0.0, 1.0}
        before = (torch.nonzero(ball)[:, 2] + 0.5).mean() * 2
        after = (torch.nonzero(moved[0])[:, 2] + 0.5).mean() * 4
        assert float(after - before) == pytest.approx(shift_mm, abs=within)
