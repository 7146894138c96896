"""Logged values of each step and the log line of each epoch."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, SupervisedTrainer
from torch.optim import Optimizer

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class StepValues:
    """Logged values of a step: ``loss`` (without the L1 term), ``l1_penalty``, ``grad_norm``, ``learning_rate``."""

    optimizer: Optimizer

    def __call__(self, output: Any) -> dict[str, Any]:
        step = output[0] if isinstance(output, list) else output
        return {
            "loss": step["loss"] - step["l1_penalty"],
            "l1_penalty": step["l1_penalty"],
            "grad_norm": step["grad_norm"],
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }


@dataclass(eq=False)
class EpochLine:
    """Log each epoch of a training in one line: mean loss without the L1 term, metrics, learning rate, seconds.

    Put it after the ``ValidationHandler`` of the ``validator``.
    """

    validator: Evaluator
    _losses: list[torch.Tensor] = field(default_factory=list, init=False)
    _started: float = field(default=0.0, init=False)

    def attach(self, engine: SupervisedTrainer) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def started(self, _: Engine) -> None:
        self._losses, self._started = [], time.monotonic()

    def step(self, engine: Engine) -> None:
        output: Any = engine.state.output
        output = output[0] if isinstance(output, list) else output
        self._losses.append(
            torch.as_tensor(output["loss"]).detach() - output.get("l1_penalty", 0.0)
        )  # no sync until the epoch ends

    def __call__(self, engine: SupervisedTrainer) -> None:
        state, validated = engine.state, self.validator.state
        loss = float(torch.stack(self._losses).cpu().double().mean()) if self._losses else 0.0
        parts = [f"loss {loss:.4f}"]
        parts += [f"{name} {value:.4f}" for name, value in state.metrics.items()]
        if validated.epoch == state.epoch:
            parts += [f"{name} {value:.4f}" for name, value in validated.metrics.items()]
            best = validated.best_metric_epoch
            parts.append("the best so far" if best == state.epoch else f"best {validated.best_metric:.4f} in {best}")
        parts += [f"lr {engine.optimizer.param_groups[0]['lr']:.3g}", f"{time.monotonic() - self._started:.1f} s"]
        logger.info("epoch %d/%d: %s", state.epoch, state.max_epochs, ", ".join(parts))
