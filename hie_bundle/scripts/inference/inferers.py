"""How a trained network sees a volume, in layers that compose: backend, window, mirrored inputs, checkpoints.

A *backend* runs the network on one tensor; a *window* (a MONAI ``Inferer``, such as ``SlidingWindowInferer``) decides
what it is run on; and :class:`EnsembleInferer` averages over mirrorings and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
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

__all__ = ["PRECISIONS", "EnsembleInferer", "EnsembleMembers", "PrecisionInferer", "TorchBackend"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# network and input to logits
Backend = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class TorchBackend:
    """PyTorch runs the network, by default in float32, with bfloat16 under autocast.

    Args:
        precision: ``float32`` or ``bfloat16``. On CPUs PyTorch's bfloat16 is faster only with instructions for it
            (AMX, AVX512-BF16), and takes more memory; see docs/performance.md.

    Raises:
        UserError: when there is no such precision.
    """

    def __init__(self, precision: str = "float32") -> None:
        self.dtype = choose(PRECISIONS, precision, "precision")

    def __call__(self, network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        if self.dtype == torch.float32:
            return network(inputs)
        with torch.autocast(inputs.device.type, self.dtype):
            return network(inputs).float()


class PrecisionInferer(Inferer):
    """The whole input through the network at a precision: what training runs it with.

    In bfloat16 a step is faster on a CPU that has instructions for it, forward and backward; the weights, the
    loss and the optimiser stay float32. On CUDA the trainer's ``amp`` is for that.

    Args:
        precision: see :class:`TorchBackend`.

    Raises:
        UserError: when called, if the input has NaN.
    """

    def __init__(self, precision: str = "float32") -> None:
        self.backend = TorchBackend(precision)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        assert isinstance(network, nn.Module)
        _refuse_nan(inputs)
        return self.backend(network, inputs)


class EnsembleInferer(Inferer):
    """Mean lesion probability over checkpoints of one network and over mirrored inputs, as a logit.

    With one checkpoint and without mirroring the result is that of the one prediction. The engine's network must hold
    the first checkpoint's weights already, as :class:`.WeightsLoader` puts them; those of the others
    are read at the first call, into copies that stay in memory: as much as the network's weights for each.

    A network has one logit, the lesion's, or two, background's and lesion's, whose softmax is averaged.

    Args:
        checkpoints: file or files with weights, all for the same network.
        flips: spatial axes, 0 to 2, that are mirrored: every combination of them is predicted and mirrored back, so n
            axes take 2ⁿ predictions.
        window: what the network is run on at once; the whole volume if None.
        backend: what runs it; PyTorch in float32 if None.

    Attributes:
        members: after a call of several checkpoints or mirrorings, the lesion's logits of each checkpoint by itself,
            not mirrored, shape (B, checkpoints, X, Y, Z); otherwise None.

    Raises:
        UserError: when a checkpoint cannot be read or does not fit the network, naming the layers; when there are more
            than two logits to average; when called, if the input has NaN, or what the network says is not finite,
            naming the files.
    """

    def __init__(
        self,
        checkpoints: str | Sequence[str],
        flips: Sequence[int] = (),
        window: Inferer | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.checkpoints = as_paths(checkpoints)
        self.flips = tuple(flips)
        self.window = window or SimpleInferer()
        self.backend = backend or TorchBackend()
        self.members: torch.Tensor | None = None
        self._first: nn.Module | None = None
        self._others: list[nn.Module] = []

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        assert isinstance(network, nn.Module)
        _refuse_nan(inputs)
        self.members = None
        if len(self.checkpoints) == 1 and not self.flips:
            return self._predict(inputs, network)
        networks = self._networks(network)
        alone: list[torch.Tensor] = []
        total: torch.Tensor | float = 0.0
        for one in networks:
            for axes in self._mirrorings():
                logits = self._predict(inputs, one, axes).float()
                if not axes:
                    alone.append(_lesion_logit(logits))
                total = total + torch.sigmoid(_lesion_logit(logits))
        assert isinstance(total, torch.Tensor)
        self.members = torch.cat(alone, dim=1)
        # float32 rounding may carry a mean of ones above one
        mean = (total / (len(networks) * 2 ** len(self.flips))).clamp(0, 1)
        if logits.shape[1] == 1:
            return torch.logit(mean)
        return torch.cat([1 - mean, mean], dim=1).log()

    def _predict(self, inputs: torch.Tensor, network: nn.Module, axes: tuple[int, ...] = ()) -> torch.Tensor:
        spatial = [axis + 2 for axis in axes]
        seen = torch.flip(inputs, spatial) if axes else inputs
        logits = self.window(seen, partial(self.backend, network))
        require_finite_output(logits, inputs)
        return torch.flip(logits, spatial) if axes else logits

    def _mirrorings(self) -> Iterator[tuple[int, ...]]:
        for count in range(len(self.flips) + 1):
            yield from combinations(self.flips, count)

    def _networks(self, network: nn.Module) -> list[nn.Module]:
        if self._first is not network:
            self._others = []
            for path in self.checkpoints[1:]:
                other = deepcopy(network)
                other.load_state_dict(read_weights(path, other))
                self._others.append(other)
            self._first = network
        return [network, *self._others]


class EnsembleMembers:
    """Put what the members of an ensemble say by themselves beside its prediction, where post-processing sees it.

    Args:
        inferer: the evaluator's.
        key: under which the logits, shape (B, checkpoints, X, Y, Z), stand in the engine's output.
    """

    def __init__(self, inferer: EnsembleInferer, key: str) -> None:
        self.inferer = inferer
        self.key = key

    def attach(self, engine: Engine) -> None:
        """Act after the network has run."""
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
    """The logit whose sigmoid is the lesion's probability, shape (B, 1, X, Y, Z)."""
    if logits.shape[1] == 1:
        return logits
    if logits.shape[1] == 2:
        return logits[:, 1:] - logits[:, :1]
    raise UserError(
        f"The network has {logits.shape[1]} output channels; several checkpoints or mirrored inputs are averaged for "
        "networks with one logit (the lesion's) or two (background, lesion)."
    )
