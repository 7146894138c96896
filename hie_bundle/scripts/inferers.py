"""How a trained network is run: at which precision, by PyTorch or OpenVINO, alone or averaged with others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import combinations
from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn

from .errors import choose
from .handlers import as_paths, read_weights

try:
    import openvino
except ImportError:
    openvino = None

__all__ = ["EnsembleInferer", "OpenVINOInferer", "TorchInferer"]

logger = logging.getLogger(__name__)

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


class OpenVINOInferer(Inferer):
    """The whole volume through the network by OpenVINO; both are on the CPU.

    A network is converted at its first call, and compiled once for each shape of input; it is taken to be in evaluation
    mode with its final weights by then. Where OpenVINO is not installed, a log line says so and PyTorch does the work.

    Args:
        precision: ``bfloat16``, for which the CPU needs instructions of its own: where it has none, a log line says so
            and the precision is ``float32``.

    Raises:
        UserError: when there is no such precision.
    """

    def __init__(self, precision: str = "bfloat16") -> None:
        choose(PRECISIONS, precision, "precision")
        self.hint = "bf16" if precision == "bfloat16" else "f32"
        self.fallback = TorchInferer()
        self._compiled: dict[tuple[nn.Module, torch.Size], Any] = {}
        if openvino is None:
            logger.warning(
                "The package 'openvino' is not installed: PyTorch runs the network, which is slower on a CPU "
                "(pip install openvino)."
            )
        elif self.hint == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            logger.warning("This CPU has no instructions for bfloat16: OpenVINO runs the network in float32.")
            self.hint = "f32"

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if openvino is None:
            return self.fallback(inputs, network, *args, **kwargs)
        assert isinstance(network, nn.Module)
        key = (network, inputs.shape)
        # a MetaTensor would pass through its dispatcher at each operation
        plain = inputs.as_subclass(torch.Tensor).float().contiguous()
        if key not in self._compiled:
            self._compiled[key] = self._compile(network, plain)
        return torch.from_numpy(self._compiled[key](plain.numpy())[0])

    def _compile(self, network: nn.Module, example: torch.Tensor) -> Any:
        with torch.no_grad():  # exported symbolically: nothing is computed
            program = torch.export.export(network, (example,))
        properties = {"INFERENCE_PRECISION_HINT": self.hint, "PERFORMANCE_HINT": "LATENCY"}
        return openvino.Core().compile_model(openvino.convert_model(program), "CPU", properties)


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
