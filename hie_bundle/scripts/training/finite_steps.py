"""Numbers that are none: noticed in the step in which they arise, never saved, never loaded, never made into a mask."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import distributed, nn

from ..runtime.errors import UserError, choose
from ..runtime.finite import not_finite

__all__ = [
    "FiniteSteps",
]

logger = logging.getLogger(__name__)

IN_A_ROW = 3  # steps that may be skipped one after the other
# a GradScaler begins at 2^16 and halves at each overflow, which is how it finds its scale
IN_A_ROW_SCALED = 20


class FiniteSteps:
    """Look at the loss, the gradient and the weights of each training step; a step that is not finite changes nothing.

    A step whose loss or gradient is not finite is skipped, the running statistics of normalisations included, and
    logged with its cases, the parts of its loss and the gradient's norm. With mixed precision the GradScaler skips
    steps whose gradient overflows, as it does to find its scale; more in a row than that takes end the training.
    Several processes skip together.

    Stand it after what changes the loss and the gradients in the trainer's handlers.

    Args:
        network: the network that is trained.
        on_nonfinite: ``skip``, at most three steps in a row; or ``stop`` at the first one.

    Raises:
        UserError: when the training has to end; or when weights are not finite after a step, which no skipping mends.
    """

    def __init__(self, network: nn.Module, on_nonfinite: str = "skip") -> None:
        self.network = network
        self.allowed = choose({"skip": IN_A_ROW, "stop": 0}, on_nonfinite, "on_nonfinite")
        self.in_a_row = 0
        self._buffers: list[torch.Tensor] = []

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act at the beginning of a step, between its backward pass and the optimiser, and at its end."""
        engine.add_event_handler(Events.ITERATION_STARTED, self.started)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.completed)

    def started(self, _: Engine) -> None:
        """Keep the buffers: the forward pass changes running statistics."""
        self._buffers = [buffer.clone() for buffer in self.network.buffers()]

    def __call__(self, engine: SupervisedTrainer) -> None:
        loss = engine.state.output[CommonKeys.LOSS].detach()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else loss.new_zeros(())
        fine = torch.isfinite(loss).all() & torch.isfinite(norm)
        if distributed.is_initialized():
            together = fine.to(torch.int32)
            distributed.all_reduce(together, distributed.ReduceOp.MIN)
            fine = together > 0
        if bool(fine):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        scaled = engine.amp and engine.scaler is not None
        only_overflow = scaled and bool(torch.isfinite(loss).all())
        told = f"Step {engine.state.iteration} (epoch {engine.state.epoch}) is not finite: {_told(engine, norm)}"
        if self.in_a_row > (IN_A_ROW_SCALED if only_overflow else self.allowed):
            raise UserError(
                f"{told}.\nThe training has ended; weights and state that were saved before are as they were. A lower "
                "--learning_rate, or --amp False, may help; cases that are named again and again are worth a look."
            )
        for buffer, before in zip(self.network.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        if scaled:  # which skips the step itself, and must see why
            if not only_overflow:
                logger.warning("%s. It is skipped.", told)
            return
        logger.warning("%s. It is skipped.", told)
        for parameter in self.network.parameters():
            parameter.grad = None

    def completed(self, engine: SupervisedTrainer) -> None:
        """Refuse to go on with weights that are none."""
        if bad := not_finite(self.network.state_dict()):
            raise UserError(
                f"After step {engine.state.iteration} (epoch {engine.state.epoch}) weights are not finite: {bad}. "
                f"{_told(engine)}. The training has ended; what was saved before is as it was. "
                "Is --learning_rate or --weight_decay too high?"
            )


def _told(engine: SupervisedTrainer, norm: torch.Tensor | None = None) -> str:
    """The step's cases, the parts of its loss and its gradient's norm, in words."""
    output: Any = engine.state.output
    batch: Any = engine.state.batch
    cases = batch.get("case") if isinstance(batch, Mapping) else [one.get("case") for one in batch or []]
    values = {"loss": output[CommonKeys.LOSS]}
    if "l1_penalty" in output:
        values["l1_penalty"] = output["l1_penalty"]
    values |= _parts(engine.loss_function, output)
    norm = output.get("grad_norm", norm)
    if norm is not None:
        values["gradient norm"] = norm
    shown = ", ".join(f"{name} {float(value.detach().float().mean()):.6g}" for name, value in values.items())
    return f"cases {', '.join(map(str, cases)) if cases else 'unknown'}; {shown}"


def _parts(loss_function: Any, output: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Each term of a compound loss by itself."""
    found: dict[str, torch.Tensor] = {}
    pred, label = output.get(CommonKeys.PRED), output.get(CommonKeys.LABEL)
    if not isinstance(loss_function, nn.Module) or not isinstance(pred, torch.Tensor):
        return found
    for name, part in loss_function.named_children():
        try:
            with torch.no_grad():
                value = part(pred.detach(), label)
        except Exception:  # not every module in a loss is a loss; the values above stand without it
            continue
        if isinstance(value, torch.Tensor):
            found[name] = value
    return found
