"""Lesions as wholes: one function, whoever asks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from conftest import BUNDLE
from scipy import ndimage

from scripts.components import components


@pytest.mark.parametrize("shape", [(31, 27, 19), (8, 40, 5), (1, 9, 9)])
@pytest.mark.parametrize("order", ["C", "F", "mirrored"])
def test_components_are_scipys_in_number_and_order(shape: tuple[int, int, int], order: str) -> None:
    noise = np.random.default_rng(0).normal(size=shape)
    mask = ndimage.gaussian_filter(noise, 1) > 0.2
    mask = mask[::-1, :, ::-1] if order == "mirrored" else np.asarray(mask, order=order)
    for rank, connectivity in ((1, 6), (2, 18), (3, 26)):
        labels, count = components(mask, connectivity)
        expected, number = ndimage.label(mask, ndimage.generate_binary_structure(3, rank))
        assert count == number > 1
        np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(components(mask)[0], labels)


def test_an_empty_mask_has_none() -> None:
    labels, count = components(np.zeros((4, 4, 4), dtype=bool))
    assert count == 0
    assert not labels.any()


def test_nothing_else_looks_for_components_or_says_what_brain_is() -> None:
    """But for the simulation of annotators, whose pieces join at faces."""
    for file in (BUNDLE / "scripts").rglob("*.py"):
        code = re.sub(r'""".*?"""|#.*', "", file.read_text(), flags=re.S)
        if file.name != "components.py" and file.parent.name != "phantom":
            assert not re.search(r"ndimage\.label|import cc3d", code), file
        assert not re.search(r"\b(adc|maps\[:1\]|image\[0\]\S*) > 0\b", code), file
