"""Named stages of transforms as one pipeline, and what several transforms share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import Compose, MapTransform

__all__ = ["Eachd", "FinestScaled", "Stage", "listed", "pipeline"]

Stage = Mapping[str, Callable[..., Any]] | Sequence[Callable[..., Any]]


def pipeline(stages: Sequence[Stage]) -> Compose:
    """Join stages in their order.

    Args:
        stages: each a mapping from names to transforms, applied in the order of the mapping; or a list.
    """
    return Compose([transform for stage in stages for transform in listed(stage)])


def listed(stage: Stage) -> list[Callable[..., Any]]:
    """The transforms of a stage."""
    return list(stage.values() if isinstance(stage, Mapping) else stage)


class Eachd(MapTransform):
    """A transform that changes each image by itself."""

    def change(self, image: Any) -> Any:
        raise NotImplementedError

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.change(result[key])
        return result


class FinestScaled(Eachd):
    """Keep the full resolution of a deeply supervised prediction: (scales, C, X, Y, Z) becomes (C, X, Y, Z).

    Args:
        keys: of predictions; those of shape (C, X, Y, Z) stay as they are.
    """

    def change(self, image: torch.Tensor) -> torch.Tensor:
        return image[0] if image.ndim == 5 else image
