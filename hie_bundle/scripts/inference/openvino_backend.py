"""OpenVINO backend, in its own module because its import is slow."""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from torch import nn

from ..runtime.errors import choose
from .inferers import PRECISIONS, TorchBackend

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its import contacts a server
try:
    import openvino
except ImportError:
    openvino = None

logger = logging.getLogger(__name__)


class OpenVINOBackend:
    """Run the network with OpenVINO on the CPU, in ``float32`` or ``bfloat16``; others raise a UserError.

    The network is converted at the first call and compiled once per input shape; its weights must be final by then.
    Without the package it falls back to PyTorch, without bfloat16 instructions to float32, each with a warning.
    """

    def __init__(self, precision: str = "bfloat16") -> None:
        choose(PRECISIONS, precision, "precision")
        self.hint = "bf16" if precision == "bfloat16" else "f32"
        self.fallback = TorchBackend()
        self._compiled: dict[tuple[nn.Module, torch.Size], Any] = {}
        if openvino is None:
            logger.warning(
                "The package 'openvino' is not installed: PyTorch runs the network, which is slower on a CPU "
                "(pip install openvino)."
            )
        elif self.hint == "bf16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            logger.warning("This CPU has no instructions for bfloat16: OpenVINO runs the network in float32.")
            self.hint = "f32"

    def __call__(self, network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        if openvino is None:
            return self.fallback(network, inputs)
        key = (network, inputs.shape)
        # a MetaTensor dispatches every operation
        plain = inputs.as_subclass(torch.Tensor).float().contiguous()
        if key not in self._compiled:
            with torch.no_grad():  # symbolic export
                program = torch.export.export(network, (plain,))
            properties = {"INFERENCE_PRECISION_HINT": self.hint, "PERFORMANCE_HINT": "LATENCY"}
            self._compiled[key] = openvino.Core().compile_model(openvino.convert_model(program), "CPU", properties)
        return torch.from_numpy(self._compiled[key](plain.numpy())[0])
