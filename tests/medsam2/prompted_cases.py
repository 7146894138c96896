"""A stand-in for SAM 2's video predictor whose answers are known: it fills its box in every slice that it is led to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import nn


class FillsItsBox(nn.Module):
    """The four methods of ``SAM2VideoPredictor`` that are used, with its arguments and results."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(8.0))
        self.seen: list[dict[str, Any]] = []

    def init_state(self, video_path: str) -> dict[str, Any]:
        files = sorted(Path(video_path).glob("*.jpg"), key=lambda file: int(file.stem))
        state = {"frames": [np.asarray(Image.open(file).convert("RGB")) for file in files], "boxes": {}}
        self.seen.append(state)
        return state

    def reset_state(self, state: dict[str, Any]) -> None:
        state["boxes"].clear()

    def add_new_points_or_box(self, state: dict[str, Any], frame_idx: int, obj_id: int, box: NDArray[Any]) -> None:
        state["boxes"][obj_id] = (frame_idx, box)

    def propagate_in_video(
        self, state: dict[str, Any], start_frame_idx: int, max_frame_num_to_track: int, reverse: bool
    ) -> Iterator[tuple[int, list[int], torch.Tensor]]:
        last = start_frame_idx + max_frame_num_to_track * (-1 if reverse else 1)
        for index in range(start_frame_idx, last + (-1 if reverse else 1), -1 if reverse else 1):
            scores = torch.full((1, 1, *state["frames"][index].shape[:2]), -float(self.logit))
            ((_, (left, top, right, bottom)),) = state["boxes"].values()
            scores[0, 0, top : bottom + 1, left : right + 1] = float(self.logit)
            yield index, [1], scores


def filled(below: NDArray[np.bool_], least: float, margin: int) -> NDArray[np.bool_]:
    """What it makes of the regions of a mask (X, Y, Z) of at least so many voxels, by SciPy and loops."""
    labels, count = ndimage.label(below, structure=np.ones((3, 3, 3)))
    mask = np.zeros(below.shape, bool)
    for number in range(1, count + 1):
        x, y, z = np.nonzero(labels == number)
        if len(x) < least:
            continue
        key = max(range(z.min(), z.max() + 1), key=lambda index: np.sum(z == index))
        x, y = x[z == key], y[z == key]
        for index in range(z.min(), z.max() + 1):
            mask[
                max(x.min() - margin, 0) : x.max() + margin + 1, max(y.min() - margin, 0) : y.max() + margin + 1, index
            ] = True
    return mask
