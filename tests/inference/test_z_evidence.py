"""Evidence of the Z map: its formula, and its average with the network's probability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from scipy.special import expit

from scripts.inference.z_evidence import AddZEvidenced, z_evidence
from scripts.transforms import ThresholdLesionsd

SPACING = (1.0, 2.0, 3.0)


@pytest.fixture
def maps() -> np.ndarray:
    """ADC and Z of an ellipsoid with a lesion; Z outside the brain is nonsense, as some maps have it."""
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in (30, 24, 12)), indexing="ij"))
    centre = np.array([14, 12, 6]).reshape(3, 1, 1, 1)
    brain = (((grid - centre) / np.array([12, 9, 5]).reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < 1
    adc = np.where(brain, 1300.0, 0)
    zadc = np.where(brain, np.random.default_rng(0).normal(0, 1, brain.shape), 50)
    zadc[12:17, 10:14, 5:8] = -6
    return np.stack([adc, zadc]).astype(np.float32)


def test_the_formula_by_the_whole_volume(maps: np.ndarray) -> None:
    adc, zadc = maps.astype(float)
    brain = adc > 0
    sigma = 1.5 / np.array(SPACING)
    z = np.where(brain, zadc, 0)
    smooth = ndimage.gaussian_filter(z, sigma, mode="constant") / np.maximum(
        ndimage.gaussian_filter(brain.astype(float), sigma, mode="constant"), 1e-9
    )
    expected = np.where(brain, (expit(-(z + 3) / 0.7) + expit(-(smooth + 2.2) / 0.6)) / 2, 0)
    found = z_evidence(zadc, brain, SPACING)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not z_evidence(zadc, np.zeros_like(brain), SPACING).any()


def _item(maps: np.ndarray, probability: float) -> dict[str, Any]:
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    return {
        "pred": MetaTensor(torch.full((1, *maps.shape[1:]), probability), affine=affine),
        "native_image": MetaTensor(torch.as_tensor(maps), affine=affine),
    }


def test_the_mean_at_its_operating_point_is_one_half(maps: np.ndarray) -> None:
    evidence = z_evidence(maps[1], maps[0] > 0, SPACING)
    found = AddZEvidenced("pred", weight=0.25, level=0.4)(_item(maps, 0.6))["pred"]
    mean = 0.75 * 0.6 + 0.25 * evidence
    np.testing.assert_allclose(found[0].numpy(), mean * 0.6 / (mean * 0.6 + (1 - mean) * 0.4), atol=1e-5)
    assert np.array_equal(found[0].numpy() >= 0.5, mean >= 0.4)
    neutral = AddZEvidenced("pred", weight=0.25, level=0.5)(_item(maps, 0.6))["pred"]
    np.testing.assert_allclose(neutral[0].numpy(), mean, atol=1e-6)


def test_without_a_native_z_map_the_network_is_alone(maps: np.ndarray) -> None:
    add = AddZEvidenced(["pred", "members"], weight=0.5, allow_missing_keys=True)
    no_z = _item(np.stack([maps[0], np.full_like(maps[1], np.nan)]), 0.6)
    normalised = _item((maps - maps.mean(axis=(1, 2, 3), keepdims=True)) / maps.std(axis=(1, 2, 3), keepdims=True), 0.6)
    no_maps = {"pred": no_z["pred"]}
    for item in (no_z, normalised, no_maps):
        assert torch.equal(add(item)["pred"], item["pred"])
    item = _item(maps, 0.6)
    assert torch.equal(AddZEvidenced("pred", weight=0)(item)["pred"], item["pred"])


def test_a_lesion_without_a_peak_is_removed() -> None:
    probability = torch.zeros(2, 8, 8, 4)
    probability[:, 1:3, 1:3, 1] = 0.6
    probability[:, 5:7, 5:7, 2] = 0.6
    probability[0, 5, 5, 2] = 0.8
    affine = torch.eye(4, dtype=torch.float64)
    item = {"pred": MetaTensor(probability, affine=affine)}
    plain = ThresholdLesionsd("pred", 0.5)(item)["pred"]
    assert plain.sum() == 16
    found = ThresholdLesionsd("pred", 0.5, peak=0.75)(item)["pred"]
    assert found[0].sum() == 4
    assert found[0, 5, 5, 2] == 1
    assert found[1].sum() == 0
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(found.affine, affine)
    assert ThresholdLesionsd("pred", 0.9, peak=0.75)(item)["pred"].sum() == 0
