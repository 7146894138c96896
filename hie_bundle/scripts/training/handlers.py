"""Handlers of MONAI's trainer: L1 penalty, clipping, seeding, checkpoints, early stopping, resume."""

from __future__ import annotations

import inspect
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines import Evaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..io.weights import (
    as_paths,
    check_recipe,
    load_weights,
    read_state,
    read_weights,
    save_atomically,
    save_weights,
    weights_files,
)
from ..runtime.distributed import from_first, is_first, unwrap_ddp
from ..runtime.errors import UserError
from ..runtime.recipe import Recipe, refuse_other_recipe

logger = logging.getLogger(__name__)


class _Handler:
    event: Any = Events.EPOCH_COMPLETED

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(self.event, self)

    def __call__(self, engine: Any) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class L1Penalty(_Handler):
    """Add ``weight`` · Σ|w| over the network's trainable parameters to the loss (paper: L1 regularisation, 1e-4).

    The step's output has the penalty as ``l1_penalty``.
    """

    network: nn.Module
    weight: float = 1e-4
    event = IterationEvents.LOSS_COMPLETED

    def __call__(self, engine: SupervisedTrainer) -> None:
        output = engine.state.output
        if self.weight == 0:  # saves time
            output["l1_penalty"] = torch.zeros(())
            return
        norms = [p.abs().sum(dtype=torch.float32) for p in self.network.parameters() if p.requires_grad]
        penalty = self.weight * torch.stack(norms).sum()
        output["l1_penalty"] = penalty.detach()
        output[CommonKeys.LOSS] = output[CommonKeys.LOSS] + penalty


@dataclass(eq=False)
class GradientClipping(_Handler):
    """Scale the gradients so that their joint 2-norm is at most ``max_norm`` (paper: max norm 1).

    The step's output has the norm before clipping as ``grad_norm``.
    """

    network: nn.Module
    max_norm: float = 1.0
    event = IterationEvents.BACKWARD_COMPLETED

    def __call__(self, engine: SupervisedTrainer) -> None:
        if engine.amp and engine.scaler is not None:  # mixed precision
            engine.scaler.unscale_(engine.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        engine.state.output["grad_norm"] = norm.detach()


@dataclass(eq=False)
class EpochSeed(_Handler):
    """Seed shuffling, augmentation and dropout from (seed, epoch, rank) at the start of every epoch.

    Thus variants of a study train on the same data, and a resumed training equals an uninterrupted one.
    """

    seed: int
    rank: int = 0
    event = Events.EPOCH_STARTED

    def __call__(self, engine: SupervisedTrainer) -> None:
        state = np.random.SeedSequence([self.seed, engine.state.epoch, self.rank])
        epoch_seed = int(state.generate_state(1)[0])
        random.seed(epoch_seed)
        np.random.seed(epoch_seed)  # noqa: NPY002 -- libraries that draw from the global generator
        torch.manual_seed(epoch_seed)  # also the loader's shuffling and the seeds of its workers
        # without workers MONAI seeds the dataset's transforms only when the loader is created
        set_rnd(engine.data_loader.dataset, epoch_seed)  # type: ignore[union-attr]


@dataclass(eq=False)
class WeightsLoader(_Handler):
    """Check every checkpoint of an ensemble, and load the first.

    Raises:
        UserError: when a checkpoint is missing or damaged, does not fit the network, or has another recipe.
    """

    load_path: str | Sequence[str]  # file or files with weights
    load_dict: Mapping[str, nn.Module]  # networks by their name in the checkpoint
    recipe: Recipe | None = None  # the config's, see :func:`scripts.runtime.recipe.describe`; None: not compared
    other_recipe: bool = False  # accept weights of another recipe
    map_location: Any = None  # unused; in configs up to version 0.10
    event = Events.STARTED

    def __call__(self, _: Engine) -> None:
        for network in self.load_dict.values():
            load_weights(network, as_paths(self.load_path), self.recipe, self.other_recipe)


@dataclass(eq=False)
class InitialWeights(_Handler):
    """Start from existing weights (fine-tuning). Put it before :class:`Resume`, which overrides it.

    Raises:
        UserError: as in :class:`WeightsLoader`.
    """

    network: nn.Module
    weights: str  # ``simulated`` for the bundle's own (the first of an ensemble), or a checkpoint
    recipe: Recipe | None = None  # the config's; None: not compared
    event = Events.STARTED

    def __call__(self, _: Engine) -> None:
        path = weights_files(self.weights)[0]
        remedy = "Train with its configs and options (strong.yaml and strong_cpu.yaml for the shipped weights)."
        check_recipe(path, self.recipe, remedy)
        unwrap_ddp(self.network).load_state_dict(read_weights(path, self.network))
        logger.info("Training starts from the weights in %s", path)


@dataclass(eq=False)
class LastValidation(_Handler):
    """Validate after the last epoch, if the ``interval`` of MONAI's ``ValidationHandler`` skips it.

    Put it after the ``ValidationHandler``.
    """

    validator: Evaluator
    interval: int

    def __call__(self, engine: SupervisedTrainer) -> None:
        if engine.state.epoch == engine.state.max_epochs and engine.state.epoch % self.interval:
            self.validator.run(engine.state.epoch)


@dataclass(eq=False)
class BestModelSaver(_Handler):
    """Save the weights and their recipe after each new best validation; without validation, the last weights.

    Rank 0 writes atomically. Put it after the ``ValidationHandler``. (MONAI's ``CheckpointSaver`` saves no recipe.)
    """

    network: nn.Module
    path: str  # of the weights; :mod:`scripts.io.weights` has the format
    validator: Evaluator  # its key metric selects the weights
    recipe: Recipe | None = None  # the config's
    training: Mapping[str, Any] = field(default_factory=dict)  # saved facts (loss, seed); epoch and metric are added

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def __call__(self, engine: SupervisedTrainer) -> None:
        if self.validator.state.best_metric_epoch == engine.state.epoch:
            self._save(engine.state.epoch, float(self.validator.state.best_metric))

    def completed(self, engine: SupervisedTrainer) -> None:
        if self.validator.state.best_metric_epoch == -1:
            logger.warning("No validation result: saving the last weights.")
            self._save(engine.state.epoch)

    def _save(self, epoch: int, validation: float | None = None) -> None:
        if is_first():
            metric = self.validator.state.key_metric_name or "validation"
            training = {**self.training, "epoch": epoch, metric: validation}
            save_weights(self.network, Path(self.path).resolve(), self.recipe, training)


@dataclass(eq=False)
class PatienceHandler(_Handler):
    """Stop after ``patience`` epochs without a better key metric of the validator.

    Put it after the ``ValidationHandler``. (MONAI's ``EarlyStopHandler`` counts validations instead of epochs, and
    loses its count when a training resumes.)
    """

    validator: Evaluator
    patience: int

    def __call__(self, engine: SupervisedTrainer) -> None:
        state = self.validator.state
        if state.best_metric_epoch != -1 and engine.state.epoch - state.best_metric_epoch >= self.patience:
            logger.info("Stopping early: no better %s since epoch %d.", state.key_metric_name, state.best_metric_epoch)
            engine.terminate()


@dataclass(eq=False)
class Resume(_Handler):
    """Save the state of a training after every epoch, and resume from it. Put it last.

    With :class:`EpochSeed` a resumed training ends with the weights of an uninterrupted one (same machine, CPU). Rank 0
    reads and writes the state, and sends it to the other ranks.

    Raises:
        UserError: when the state has another recipe, cannot be read or does not fit.
    """

    path: str  # of the state
    objects: Mapping[str, Any]  # network, optimiser, scheduler; epoch, gradient scaler and best metric are saved too
    validator: Evaluator  # its best metric is saved
    resume: bool | str = False  # continue from ``path`` if it exists; False: overwrite it
    recipe: Recipe | None = None  # the config's; saved, and compared in a resumed run

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.load)
        super().attach(engine)

    def load(self, engine: SupervisedTrainer) -> None:
        """Restore the state, if ``resume`` is set and the file exists."""
        if not self.resume:
            return
        state = from_first(read_state(Path(self.path)) if is_first() and Path(self.path).is_file() else None)
        if state is None:
            return
        remedy = "Resume with the options that it was started with, or choose another --ckpt_dir."
        refuse_other_recipe(state.get("recipe"), self.recipe, f"The run in {self.path}", remedy)
        for name, item in self.objects.items():
            try:
                before = state["objects"][name]
                if isinstance(item, LRScheduler):
                    _restore_schedule(item, before, Path(self.path))
                elif isinstance(item, Optimizer):
                    _restore_optimizer(item, before)
                else:
                    (unwrap_ddp(item) if isinstance(item, nn.Module) else item).load_state_dict(before)
            except UserError:
                raise
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.path} does not fit this training's {name} ({' '.join(str(error).split())[:200]}). {remedy}"
                ) from error
        if state["scaler"] is not None and engine.scaler is not None:
            engine.scaler.load_state_dict(state["scaler"])
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        self.validator.state.best_metric = state["best_metric"]
        self.validator.state.best_metric_epoch = state["best_metric_epoch"]
        logger.info("Resumed after epoch %d from %s", engine.state.epoch, self.path)
        if state["stopped"]:
            engine.terminate()

    def __call__(self, engine: SupervisedTrainer) -> None:
        if not is_first():
            return
        plain = {name: unwrap_ddp(one) if isinstance(one, nn.Module) else one for name, one in self.objects.items()}
        state = {
            "objects": {name: item.state_dict() for name, item in plain.items()},
            "scaler": None if engine.scaler is None else engine.scaler.state_dict(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "best_metric": float(self.validator.state.best_metric),
            "best_metric_epoch": self.validator.state.best_metric_epoch,
            "stopped": bool(engine.should_terminate),
            "recipe": self.recipe,
            "saved": time.time(),  # a resumed run replaces later points of the curves
        }
        save_atomically(state, Path(self.path))


def _restore_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Restore moments and learning rates, but keep the config's other settings (weight decay), unlike PyTorch."""
    own = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def _restore_schedule(scheduler: LRScheduler, state: Mapping[str, Any], path: Path) -> None:
    """Restore the position of a schedule, but keep the config's settings, unlike PyTorch.

    Otherwise a schedule of 40 epochs, resumed with 80, would stay at its end. Changed schedules need a closed form.
    """
    names = {"base_lrs", *inspect.signature(type(scheduler)).parameters} - {"optimizer", "last_epoch"}
    configured = {name: vars(scheduler)[name] for name in sorted(names & vars(scheduler).keys())}
    scheduler.load_state_dict(dict(state))
    before = {name: vars(scheduler)[name] for name, value in configured.items() if vars(scheduler)[name] != value}
    if not before:
        return
    if not hasattr(scheduler, "_get_closed_form_lr"):
        differences = ", ".join(f"{name} {old} in the run, {configured[name]} here" for name, old in before.items())
        raise UserError(
            f"The training in {path.parent} cannot continue with another {type(scheduler).__name__} ({differences}). "
            f"Start a new one from its weights: another --ckpt_dir, and --init_weights {path.parent / 'model.pt'}."
        )
    vars(scheduler).update(configured)
    rates = scheduler._get_closed_form_lr()
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
