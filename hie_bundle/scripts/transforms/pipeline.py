"""Pipelines of named stages, and base classes of transforms."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform

Stage = Mapping[str, Callable[..., Any]] | Sequence[Callable[..., Any]]


def pipeline(stages: Sequence[Stage]) -> Compose:
    """Compose stages in order; a stage is a list of transforms or a mapping from names to transforms."""
    return Compose([transform for stage in stages for transform in listed(stage)])


def listed(stage: Stage) -> list[Callable[..., Any]]:
    """The transforms of a stage."""
    return list(stage.values() if isinstance(stage, Mapping) else stage)


@dataclass(eq=False)
class Keyed(MapTransform):
    """MONAI's map transform as a dataclass; fields of subclasses are further arguments."""

    keys: KeysCollection  # type: ignore[assignment]  # a tuple after __post_init__
    allow_missing_keys: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__init__(self.keys, self.allow_missing_keys)


class EachImaged(Keyed):
    """Apply :meth:`change` to each image separately."""

    def change(self, image: Any) -> Any:
        raise NotImplementedError

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.change(result[key])
        return result


class FinestScaled(EachImaged):
    """Keep the finest scale of a deeply supervised prediction: (scales, C, X, Y, Z) becomes (C, X, Y, Z)."""

    def change(self, image: torch.Tensor) -> torch.Tensor:
        return image[0] if image.ndim == 5 else image
