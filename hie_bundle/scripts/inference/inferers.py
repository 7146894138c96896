"""Inferers in layers: backend, window, test-time flips, checkpoints.

A backend runs the network on one tensor. A window (a MONAI ``Inferer``, such as ``SlidingWindowInferer``) chooses the
tensors. :class:`EnsembleInferer` averages over flips and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SimpleInferer
from torch import nn

from ..io.weights import as_paths, read_weights
from ..runtime.errors import UserError, choose
from ..runtime.finite import require_finite_output

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# network and input to logits
Backend = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class TorchBackend:
    """Run the network with PyTorch in ``float32`` or, under autocast, ``bfloat16``; others raise a UserError.

    On CPUs bfloat16 is faster only with AMX or AVX512-BF16, and needs more memory; see docs/performance.md.
    """

    def __init__(self, precision: str = "float32") -> None:
        self.dtype = choose(PRECISIONS, precision, "precision")

    def __call__(self, network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        if self.dtype == torch.float32:
            return network(inputs)
        with torch.autocast(inputs.device.type, self.dtype):
            return network(inputs).float()


class PrecisionInferer(Inferer):
    """Run the network on the whole input at a precision (:class:`TorchBackend`), for training; NaN raises a UserError.

    Weights, loss and optimiser stay float32. On CUDA use the trainer's ``amp`` instead.
    """

    def __init__(self, precision: str = "float32") -> None:
        self.backend = TorchBackend(precision)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        assert isinstance(network, nn.Module)
        _refuse_nan(inputs)
        return self.backend(network, inputs)


@dataclass(eq=False)
class EnsembleInferer(Inferer):
    """Mean lesion probability over checkpoints and test-time flips, as a logit.

    The network must hold the first checkpoint's weights; the others are read at the first call and kept in memory. Its
    output is one logit (lesion) or two (background, lesion), whose softmax is averaged.

    After a call ``members`` has the per-member predictions (logits without flips), shape (B, checkpoints, X, Y, Z), and
    ``agreement`` the intersection over union of the masks (probability ≥ 0.5) of all predictions, 1 if all are empty.
    Both are None for a single prediction.

    Raises:
        UserError: in a call, if a checkpoint does not fit the network, the input has NaN, or the output is not finite
            or has more than two channels.
    """

    checkpoints: str | Sequence[str]  # files with weights of the same network
    flips: Sequence[int] = ()  # spatial axes, 0 to 2; every combination is predicted, 2ⁿ predictions for n axes
    window: Inferer = field(default_factory=SimpleInferer)  # chooses the network's input
    backend: Backend = field(default_factory=TorchBackend)  # runs the network
    members: torch.Tensor | None = field(default=None, init=False)
    agreement: float | None = field(default=None, init=False)
    _first: nn.Module | None = field(default=None, init=False)
    _others: list[nn.Module] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._paths = as_paths(self.checkpoints)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        assert isinstance(network, nn.Module)
        _refuse_nan(inputs)
        self.members = self.agreement = None
        combined = [axes for count in range(len(self.flips) + 1) for axes in combinations(self.flips, count)]
        if len(self._paths) == len(combined) == 1:
            return self._predict(inputs, network)
        members: list[torch.Tensor] = []
        views: list[torch.Tensor] = []
        for one in self._networks(network):
            for axes in combined:
                logits = self._predict(inputs, one, axes).float()
                views.append(torch.sigmoid(_lesion_logit(logits)))
                if not axes:
                    members.append(_lesion_logit(logits))
        self.members = torch.cat(members, dim=1)
        stacked = torch.stack([view.as_subclass(torch.Tensor) for view in views])
        union = int((stacked >= 0.5).any(dim=0).sum())
        self.agreement = int((stacked >= 0.5).all(dim=0).sum()) / union if union else 1.0
        mean = (sum(views) / len(views)).clamp(0, 1)  # type: ignore[union-attr]  # rounding can give a mean above 1
        if logits.shape[1] == 1:
            return torch.logit(mean)
        return torch.cat([1 - mean, mean], dim=1).log()

    def _predict(self, inputs: torch.Tensor, network: nn.Module, axes: tuple[int, ...] = ()) -> torch.Tensor:
        spatial = [axis + 2 for axis in axes]
        seen = torch.flip(inputs, spatial) if axes else inputs
        logits = self.window(seen, partial(self.backend, network))
        require_finite_output(logits, inputs)
        return torch.flip(logits, spatial) if axes else logits

    def _networks(self, network: nn.Module) -> list[nn.Module]:
        if self._first is not network:
            self._others = []
            for path in self._paths[1:]:
                other = deepcopy(network)
                other.load_state_dict(read_weights(path, other))
                self._others.append(other)
            self._first = network
        return [network, *self._others]


@dataclass(eq=False)
class EnsembleMembers:
    """Add an ensemble's per-member predictions, logits of shape (B, checkpoints, X, Y, Z), to the engine's output."""

    inferer: EnsembleInferer
    key: str

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if self.inferer.members is not None:
            output: dict[str, Any] = engine.state.output  # type: ignore[assignment]
            output[self.key] = self.inferer.members


def _refuse_nan(inputs: torch.Tensor) -> None:
    if torch.isnan(inputs).any():
        raise UserError(
            "The network's input has NaN. Where a case has no ZADC map (limits#zadc: optional), a transform of the "
            "recipe must replace that channel; this recipe has none."
        )


def _lesion_logit(logits: torch.Tensor) -> torch.Tensor:
    """The logit of the lesion probability, shape (B, 1, X, Y, Z)."""
    if logits.shape[1] == 1:
        return logits
    if logits.shape[1] == 2:
        return logits[:, 1:] - logits[:, :1]
    raise UserError(
        f"The network has {logits.shape[1]} output channels; checkpoints and flipped inputs are averaged only for "
        "networks with one logit (the lesion's) or two (background, lesion)."
    )
