"""Skipping and logging of training steps with NaN or Inf."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import distributed, nn
from torch.optim import Adam

from ..runtime.errors import UserError, choose
from ..runtime.finite import not_finite

logger = logging.getLogger(__name__)

IN_A_ROW = 3  # consecutive steps that may be skipped
# a GradScaler starts at 2^16 and halves its scale at each overflow
IN_A_ROW_SCALED = 20


@dataclass(eq=False)
class FiniteSteps:
    """Skip steps with a non-finite loss or gradient, on all ranks; end the training after several such steps.

    A skipped step does not change weights, optimiser or running statistics. (Ignite's ``TerminateOnNan`` ends the
    training.) With mixed precision the GradScaler skips overflowing steps, which is normal at the start. Put this
    handler after the handlers that change loss and gradients.

    With ``read_every`` above 1 no step waits for the device: a fused Adam skips the step on the device, and the next
    reading logs it.

    Raises:
        UserError: when the training ends, or weights are not finite after a step.
    """

    network: nn.Module
    on_nonfinite: str = "skip"  # at most three consecutive steps; or "stop"
    read_every: int = 1  # steps between readings
    in_a_row: int = field(default=0, init=False)
    _buffers: list[torch.Tensor] = field(default_factory=list, init=False)
    _unread: list[tuple[torch.Tensor, str]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.allowed = choose({"skip": IN_A_ROW, "stop": 0}, self.on_nonfinite, "on_nonfinite")

    def attach(self, engine: SupervisedTrainer) -> None:
        if self.read_every > 1:
            engine.add_event_handler(Events.STARTED, self.fuse)
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.mark_loss)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.read)
        engine.add_event_handler(Events.ITERATION_STARTED, self.keep_buffers)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self.completed)

    def fuse(self, engine: SupervisedTrainer) -> None:
        """Let the optimiser skip steps on the device (Adam and AdamW only)."""
        if not isinstance(engine.optimizer, Adam):
            self.read_every = 1
            return
        for group in engine.optimizer.param_groups:
            group |= {"fused": True, "foreach": False}
        vars(engine.optimizer)["_step_supports_amp_scaling"] = True  # as in its constructor for fused=True

    def keep_buffers(self, _: Engine) -> None:
        """Copy the buffers: the forward pass changes running statistics."""
        self._buffers = [buffer.clone() for buffer in self.network.buffers()]

    def mark_loss(self, engine: SupervisedTrainer) -> None:
        """Make the gradient of a non-finite loss NaN, which the optimiser detects."""
        if self.read_every > 1:
            loss = engine.state.output[CommonKeys.LOSS]
            engine.state.output[CommonKeys.LOSS] = loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)

    def __call__(self, engine: SupervisedTrainer) -> None:
        loss = engine.state.output[CommonKeys.LOSS].detach()
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else loss.new_zeros(())
        finite = torch.isfinite(loss).all() & torch.isfinite(norm)
        if distributed.is_initialized():
            together = finite.to(torch.int32)
            distributed.all_reduce(together, distributed.ReduceOp.MIN)
            finite = together > 0
        scaled = engine.amp and engine.scaler is not None  # a GradScaler detects and skips the step itself
        for buffer, before in zip(self.network.buffers(), self._buffers, strict=True):
            buffer.copy_(torch.where(finite, buffer, before))
        if self.read_every > 1:
            if not scaled:
                vars(engine.optimizer)["found_inf"] = (~finite).to(torch.float32)
        elif not scaled and not bool(finite):
            self.network.zero_grad(set_to_none=True)
        self._unread.append((torch.stack([finite.float(), loss.float().mean(), norm.float()]), _step(engine)))
        if len(self._unread) >= self.read_every:
            self.read(engine)

    def read(self, engine: SupervisedTrainer) -> None:
        """Read the steps since the last reading from the device."""
        unread, self._unread = self._unread, []
        values = torch.stack([one for one, _ in unread]).tolist() if unread else []
        for (finite, loss, norm), (_, step) in zip(values, unread, strict=True):
            self.in_a_row = 0 if finite else self.in_a_row + 1
            if finite:
                continue
            overflow = engine.amp and engine.scaler is not None and math.isfinite(loss)
            text = f"Not finite: {step}, loss {loss:.6g}, gradient norm {norm:.6g}"
            if self.in_a_row > (IN_A_ROW_SCALED if overflow else self.allowed):
                raise UserError(
                    f"{text}.\nThe training has ended; weights and state saved before are unchanged. A "
                    "lower --learning_rate, or --amp False, may help. Check cases that are named repeatedly."
                )
            if not overflow:
                logger.warning("%s. The step is skipped.", text)
        if unread and self.read_every > 1:
            self._require_finite_weights(engine)

    def completed(self, engine: SupervisedTrainer) -> None:
        if self.read_every == 1:
            self._require_finite_weights(engine)

    def _require_finite_weights(self, engine: SupervisedTrainer) -> None:
        if bad := not_finite(self.network.state_dict()):
            raise UserError(
                f"Weights are not finite after {_step(engine)}: {bad}. The training has ended; files saved before are "
                "unchanged. Is --learning_rate or --weight_decay too high?"
            )


def _step(engine: SupervisedTrainer) -> str:
    """A step's number, epoch and cases."""
    batch: Any = engine.state.batch
    cases = batch.get("case") if isinstance(batch, Mapping) else [one.get("case") for one in batch or []]
    named = ", ".join(map(str, cases)) if cases else "unknown"
    return f"step {engine.state.iteration} (epoch {engine.state.epoch}, cases {named})"
