"""How a trained network is run: at which precision, alone or averaged with others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import combinations
from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn

from .errors import choose
from .handlers import as_paths, read_weights

__all__ = ["PRECISIONS", "EnsembleInferer", "TorchInferer"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchInferer(Inferer):
    """The whole volume through the network by PyTorch, on its device.

    Args:
        precision: ``float32``, or ``bfloat16`` for automatic mixed precision with it, on CPUs and CUDA devices. Weights
            stay float32, and logits come back as float32.

    Raises:
        UserError: when there is no such precision.
    """

    def __init__(self, precision: str = "float32") -> None:
        self.dtype = choose(PRECISIONS, precision, "precision")

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.dtype == torch.float32:
            return network(inputs, *args, **kwargs)
        with torch.autocast(inputs.device.type, self.dtype):
            return network(inputs, *args, **kwargs).float()


class EnsembleInferer(Inferer):
    """Mean lesion probability over checkpoints of one network and over mirrored inputs, as a logit.

    Called as any inferer, with inputs (B, C, X, Y, Z) and the network, it gives logits (B, 1, X, Y, Z). With one
    checkpoint and no flips these are the network's own. The network is expected to hold the first checkpoint's weights
    (:class:`scripts.handlers.CheckpointLoader` sees to it); the others are read at the first call, into copies of it.

    Args:
        checkpoints: one file with the network's weights, or several.
        flips: spatial axes that are mirrored; predictions are averaged over every combination of them, so two axes
            cost four passes. Volumes are in RAS+ order here: axis 0 exchanges left and right.
        members: whether each checkpoint's own logit, without flips, follows the mean as a further channel. With one
            checkpoint and no flips there is nothing to add.
        inferer: how one network sees one input; by default a :class:`TorchInferer`.

    Raises:
        UserError: when a checkpoint does not exist, cannot be read, or does not fit the network.
    """

    def __init__(
        self,
        checkpoints: str | Sequence[str],
        flips: Sequence[int] = (),
        members: bool = False,
        inferer: Inferer | None = None,
    ) -> None:
        self.checkpoints = as_paths(checkpoints)
        self.flips = tuple(flips)
        self.members = members
        self.inferer = inferer or TorchInferer()
        self._first: Callable[..., Any] | None = None
        self._others: list[nn.Module] = []

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        def predict(one: Callable[..., Any], axes: tuple[int, ...] = ()) -> torch.Tensor:
            spatial = [axis + 2 for axis in axes]
            seen = torch.flip(inputs, spatial) if axes else inputs
            logit = self.inferer(seen, one, *args, **kwargs)
            return torch.flip(logit, spatial) if axes else logit

        if len(self.checkpoints) == 1 and not self.flips:
            return predict(network)
        networks = self._networks(network)
        own: list[torch.Tensor] = []
        total: torch.Tensor | float = 0.0
        for one in networks:
            for axes in self._mirrorings():
                logit = predict(one, axes).float()
                if not axes:
                    own.append(logit)
                total = total + torch.sigmoid(logit)
        assert isinstance(total, torch.Tensor)
        # float32 rounding may carry a mean of ones above one
        mean = (total / (len(networks) * 2 ** len(self.flips))).clamp(0, 1)
        return torch.cat([torch.logit(mean), *(own if self.members else [])], dim=1)

    def _mirrorings(self) -> Iterator[tuple[int, ...]]:
        for count in range(len(self.flips) + 1):
            yield from combinations(self.flips, count)

    def _networks(self, network: Callable[..., Any]) -> list[Callable[..., Any]]:
        if self._first is not network:
            self._others = []
            for path in self.checkpoints[1:]:
                assert isinstance(network, nn.Module)
                other = deepcopy(network)
                other.load_state_dict(read_weights(path, other))
                self._others.append(other)
            self._first = network
        return [network, *self._others]
