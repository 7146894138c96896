"""Plausibility of a mask: volumes by hand, phrases, and the agreement of an ensemble's predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scripts.inference.inferers import EnsembleInferer
from scripts.inference.plausibility import plausibility_of
from scripts.io.volumes import Volume

ML = 0.008  # of a voxel


@pytest.fixture
def adc() -> Volume:
    array = np.zeros((40, 40, 20), np.float32)
    array[4:36, 4:36, 2:18] = 1300
    return Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]))


def test_a_mask_where_z_is_low_is_plausible(adc: Volume) -> None:
    zadc = np.zeros_like(adc.array)
    zadc[10:16, 10:16, 6:12] = -5
    found = plausibility_of(zadc < -2, adc, zadc, 0.9)
    assert found.not_low_ml == 0
    assert found.low_outside_ml is not None
    assert found.low_outside_ml < 0.5  # the smoothed border
    assert found.line == "plausible"
    assert found.figures["agreement"] == 0.9


def test_what_is_not_low_and_what_is_left_out_are_named_with_their_volumes(adc: Volume) -> None:
    zadc = np.zeros_like(adc.array)
    zadc[6:20, 6:20, 4:14] = -6
    mask = np.zeros(adc.array.shape, np.uint8)
    mask[24:30, 24:30, 8:12] = 1
    found = plausibility_of(mask, adc, zadc, 0.31)
    assert found.not_low_ml == pytest.approx(6 * 6 * 4 * ML)
    assert found.low_outside_ml == pytest.approx(14 * 14 * 10 * ML, rel=0.15)
    assert found.line.startswith("look: 1.2 ml marked where Z is not low; 1")
    assert "ml of low Z not marked" in found.line
    assert found.line.endswith("flipped predictions share 31 % of their lesions")


def test_without_a_z_map_only_the_predictions_are_compared(adc: Volume) -> None:
    mask = np.ones(adc.array.shape, np.uint8)
    for zadc in (None, np.full_like(adc.array, np.nan)):
        found = plausibility_of(mask, adc, zadc, None)
        assert (found.not_low_ml, found.low_outside_ml, found.line) == (None, None, "plausible")


class _Left(nn.Module):
    """Lesion in the first ``count`` planes."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = torch.full_like(image, -9.0)
        logits[:, :, : self.count] = 9
        return logits


@pytest.mark.parametrize(("planes", "agreement"), [(8, 1.0), (6, 0.5), (3, 0.0), (0, 1.0)])
def test_agreement_is_intersection_by_union(planes: int, agreement: float) -> None:
    inferer = EnsembleInferer("weights.pt", flips=[0])
    inferer(torch.zeros(1, 1, 8, 4, 4), _Left(planes))
    assert inferer.agreement == agreement
    alone = EnsembleInferer("weights.pt")
    alone(torch.zeros(1, 1, 8, 4, 4), _Left(planes))
    assert alone.agreement is None
