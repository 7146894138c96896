"""Handlers of MONAI's trainer: L1 penalty, clipping, seeding, checkpoints, early stopping, resume."""

from __future__ import annotations

import inspect
import logging
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines import Evaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointLoader as StockCheckpointLoader
from monai.utils import CommonKeys
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..io.weights import as_paths, check_recipe, read_state, read_weights, save_atomically, save_weights, weights_files
from ..moved import renamed
from ..runtime.distributed import from_first, is_first, unwrap_ddp
from ..runtime.errors import UserError
from ..runtime.recipe import Recipe, refuse_other_recipe

__all__ = [
    "BestModelSaver",
    "EpochSeed",
    "GradientClipping",
    "InitialWeights",
    "L1Penalty",
    "LastValidation",
    "PatienceHandler",
    "Resume",
    "WeightsLoader",
]
__getattr__ = partial(renamed, "training.handlers")

logger = logging.getLogger(__name__)


class L1Penalty:
    """Add ``weight`` · Σ|w| over the network's trainable parameters to the loss (paper: L1 regularisation, 1e-4).

    The step's output has it as ``l1_penalty``, for the log.

    Args:
        network: the network that is trained.
        weight: factor of the penalty, ≥ 0; 0 leaves the loss as it is.
    """

    def __init__(self, network: nn.Module, weight: float = 1e-4) -> None:
        self.network = network
        self.weight = weight

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act between the loss and its backward pass."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        if self.weight == 0:  # a sum over all weights, and its gradient, at every step
            engine.state.output["l1_penalty"] = torch.zeros(())
            return
        norms = [p.abs().sum(dtype=torch.float32) for p in self.network.parameters() if p.requires_grad]
        penalty = self.weight * torch.stack(norms).sum()
        engine.state.output["l1_penalty"] = penalty.detach()
        engine.state.output[CommonKeys.LOSS] = engine.state.output[CommonKeys.LOSS] + penalty


class GradientClipping:
    """Scale the gradients so that their joint 2-norm is at most ``max_norm`` (paper: max norm 1).

    With mixed precision the gradients are unscaled first; scaled ones would be clipped at almost every step. The step's
    output has the norm before clipping as ``grad_norm``.

    Args:
        network: the network that is trained.
        max_norm: largest allowed norm, > 0.
    """

    def __init__(self, network: nn.Module, max_norm: float = 1.0) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act between the backward pass and the optimiser's step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        if engine.amp and engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        engine.state.output["grad_norm"] = norm.detach()


class EpochSeed:
    """Seed everything random from (seed, epoch) at the start of every epoch.

    Shuffling, augmentation and dropout of an epoch depend on these two numbers and the number of workers alone.
    Variants of a study see the same data, and a resumed training equals an uninterrupted one.

    Args:
        seed: the run's seed.
        rank: of this process; each draws its own augmentation and dropout.
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act before the data loader's iterator of the epoch is made."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        state = np.random.SeedSequence([self.seed, engine.state.epoch, self.rank])
        epoch_seed = int(state.generate_state(1)[0])
        random.seed(epoch_seed)
        np.random.seed(epoch_seed)  # noqa: NPY002 -- libraries that draw from the global generator
        torch.manual_seed(epoch_seed)  # also the loader's shuffling and the seeds of its workers
        # without workers MONAI seeds the dataset's transforms only once, when the loader is made
        set_rnd(engine.data_loader.dataset, epoch_seed)  # type: ignore[union-attr]


class WeightsLoader(StockCheckpointLoader):
    """``monai.handlers.CheckpointLoader`` that checks every checkpoint of an ensemble, and loads the first.

    Args:
        load_path: file or files with weights.
        load_dict: see the parent class.
        recipe: the config's, see :func:`scripts.runtime.recipe.describe`; None compares nothing.
        other_recipe: accept weights of another recipe.
        options: see the parent class.

    Raises:
        UserError: when a path does not exist or is no checkpoint, its weights do not fit the network, naming the
            layers, or were trained with another recipe, naming what differs.
    """

    def __init__(
        self,
        load_path: str | Sequence[str],
        load_dict: dict[str, Any],
        recipe: Recipe | None = None,
        other_recipe: bool = False,
        **options: Any,
    ) -> None:
        self.paths = as_paths(load_path)
        self.recipe = recipe
        self.other_recipe = other_recipe
        super().__init__(str(self.paths[0]), load_dict, **options)

    def __call__(self, engine: Engine) -> None:
        for path in self.paths:
            if not self.other_recipe:
                check_recipe(path, self.recipe)
            for name, item in self.load_dict.items():
                if isinstance(item, nn.Module):
                    read_weights(path, item, name)
        super().__call__(engine)


class InitialWeights:
    """Fine-tune: start from existing weights.

    Put it before :class:`Resume`, which overrides it when a training is resumed.

    Args:
        network: the network that is trained.
        weights: ``simulated`` for the bundle's own (the first of an ensemble), or a checkpoint.
        recipe: the config's, see :func:`scripts.runtime.recipe.describe`; None compares nothing.

    Raises:
        UserError: when there are none, they do not fit the network, or were trained with another recipe, naming what
            differs.
    """

    def __init__(self, network: nn.Module, weights: str, recipe: Recipe | None = None) -> None:
        self.network = network
        self.weights = weights
        self.recipe = recipe

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act when the trainer starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _: Engine) -> None:
        path = weights_files(self.weights)[0]
        remedy = "Train with its configs and options (strong.yaml and strong_cpu.yaml for those that come along)."
        check_recipe(path, self.recipe, remedy)
        unwrap_ddp(self.network).load_state_dict(read_weights(path, unwrap_ddp(self.network)))
        logger.info("Training starts from the weights in %s", path)


class LastValidation:
    """Validate after the last epoch, where the interval of MONAI's ``ValidationHandler`` leaves it out.

    Where the learning rate falls to 0, the last weights are usually the best.

    Put it after the ``ValidationHandler`` in the trainer's handlers.

    Args:
        validator: the evaluator.
        interval: epochs between the other's validations.
    """

    def __init__(self, validator: Evaluator, interval: int) -> None:
        self.validator = validator
        self.interval = interval

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act after the last epoch of the trainer."""

        def left_out(engine: Engine, epoch: int) -> bool:
            return epoch == engine.state.max_epochs and epoch % self.interval != 0

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=left_out), self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        self.validator.run(engine.state.epoch)


class BestModelSaver:
    """Save the weights with their recipe after every validation that is the best so far.

    A training without a validation result (no validation cases, say) saves its last weights at the end. The write is
    atomic. The first of several processes writes. :mod:`scripts.io.weights` has the format. MONAI's
    ``CheckpointSaver`` saves state dicts without a recipe, and nothing where there is no validation.

    Put it after the ``ValidationHandler`` in the trainer's handlers.

    Args:
        network: the network that is trained.
        path: where the weights go, e.g. ``ckpt_dir/model.pt``.
        validator: the evaluator whose key metric chooses.
        recipe: the config's, see :func:`scripts.runtime.recipe.describe`; written beside the weights.
        training: facts kept with the weights (loss, seed); the epoch and its key metric are added.
    """

    def __init__(
        self,
        network: nn.Module,
        path: str,
        validator: Evaluator,
        recipe: Recipe | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.path = Path(path).resolve()
        self.validator = validator
        self.recipe = recipe
        self.training = training or {}

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act after each epoch of the trainer, and at its end."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def __call__(self, engine: SupervisedTrainer) -> None:
        if self.validator.state.best_metric_epoch == engine.state.epoch:
            self._save(engine.state.epoch, float(self.validator.state.best_metric))

    def completed(self, engine: SupervisedTrainer) -> None:
        """Save the last weights when no validation chose any."""
        if self.validator.state.best_metric_epoch == -1:
            logger.warning("No validation result to choose by: saving the last weights.")
            self._save(engine.state.epoch)

    def _save(self, epoch: int, validation: float | None = None) -> None:
        if not is_first():
            return
        training = {**self.training, "epoch": epoch, self.validator.state.key_metric_name or "validation": validation}
        save_weights(self.network, self.path, self.recipe, training)
        logger.debug("Saved %s", self.path)


class PatienceHandler:
    """Stop after ``patience`` epochs without a better key metric of the validator.

    MONAI's ``EarlyStopHandler`` counts validations instead of epochs, loses its count when a training is
    resumed, and needs a reference from the validator back to the trainer, which a config cannot express.

    Put it after the ``ValidationHandler`` in the trainer's handlers.

    Args:
        validator: the evaluator whose key metric is watched.
        patience: number of epochs, ≥ 1.
    """

    def __init__(self, validator: Evaluator, patience: int) -> None:
        self.validator = validator
        self.patience = patience

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act after each epoch of the trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        best_epoch = self.validator.state.best_metric_epoch
        if best_epoch != -1 and engine.state.epoch - best_epoch >= self.patience:
            logger.info(
                "Stopping early: no better %s since epoch %d.", self.validator.state.key_metric_name, best_epoch
            )
            engine.terminate()


class Resume:
    """Save the state of a training after every epoch, and resume from it.

    With :class:`EpochSeed` a resumed training ends with the weights of an uninterrupted one (same machine, CPU).
    With more epochs than before it follows the learning rates of that many. The first of several processes
    writes and reads, and sends the state to the others, which may not see the same files.

    Put it last in the trainer's handlers.

    Args:
        path: where the state is kept.
        objects: with a ``state_dict``: network, optimiser, scheduler. The trainer's epoch, its gradient scaler and the
            validator's best metric are added.
        validator: the validator whose best metric is kept.
        resume: continue from ``path`` if it exists; otherwise start anew and overwrite it.
        recipe: the config's, see :func:`scripts.runtime.recipe.describe`; kept, and compared in a resumed run.

    Raises:
        UserError: when the state has another recipe, cannot be read or does not fit.
    """

    def __init__(
        self,
        path: str,
        objects: Mapping[str, Any],
        validator: Evaluator,
        resume: bool | str = False,
        recipe: Recipe | None = None,
    ) -> None:
        self.recipe = recipe
        self.path = Path(path)
        self.objects = objects
        self.validator = validator
        self.resume = resume

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act when the trainer starts and after each of its epochs."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def load(self, engine: SupervisedTrainer) -> None:
        """Restore the state, if wanted and present."""
        if not self.resume:
            return
        state = None
        if is_first() and self.path.is_file():
            state = read_state(self.path)
        state = from_first(state)
        if state is None:
            return
        remedy = "Resume with the options that it was started with, or choose another --ckpt_dir."
        refuse_other_recipe(state.get("recipe"), self.recipe, f"The run in {self.path}", remedy)
        for name, item in self.objects.items():
            try:
                if isinstance(item, LRScheduler):
                    _go_on_with_schedule(item, state["objects"][name], self.path)
                elif isinstance(item, Optimizer):
                    _go_on_with_optimizer(item, state["objects"][name])
                else:
                    (unwrap_ddp(item) if isinstance(item, nn.Module) else item).load_state_dict(state["objects"][name])
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

    def save(self, engine: SupervisedTrainer) -> None:
        """Keep the state after an epoch."""
        if not is_first():
            return
        scaler = engine.scaler
        state = {
            "objects": {
                name: (unwrap_ddp(item) if isinstance(item, nn.Module) else item).state_dict()
                for name, item in self.objects.items()
            },
            "scaler": None if scaler is None else scaler.state_dict(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "best_metric": float(self.validator.state.best_metric),
            "best_metric_epoch": self.validator.state.best_metric_epoch,
            "stopped": bool(engine.should_terminate),
            "recipe": self.recipe,
            "saved": time.time(),  # what curves have from later on is written again
        }
        save_atomically(state, self.path)


def _go_on_with_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Restore moments and learning rates; keep the config's other settings (weight decay), which PyTorch would not."""
    configured = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(dict(state))
    for group, own in zip(optimizer.param_groups, configured, strict=True):
        group.update(own)


def _go_on_with_schedule(scheduler: LRScheduler, state: Mapping[str, Any], path: Path) -> None:
    """Restore the position of a schedule; keep the config's settings of it, which PyTorch would not.

    A schedule of 40 epochs, restored in a training of 80, would otherwise stay at its end. Rates of changed
    schedules are computed in closed form.
    """
    names = {"base_lrs", *inspect.signature(type(scheduler)).parameters} - {"optimizer", "last_epoch"}
    configured = {name: vars(scheduler)[name] for name in sorted(names & vars(scheduler).keys())}
    scheduler.load_state_dict(dict(state))
    changed = {name: value for name, value in configured.items() if vars(scheduler)[name] != value}
    if not changed:
        return
    if not hasattr(scheduler, "_get_closed_form_lr"):
        differences = ", ".join(
            f"{name} {vars(scheduler)[name]} in the run, {new} here" for name, new in changed.items()
        )
        raise UserError(
            f"The training in {path.parent} cannot go on with another {type(scheduler).__name__} ({differences}). "
            f"Start a new one from its weights: another --ckpt_dir, and --init_weights {path.parent / 'model.pt'}."
        )
    vars(scheduler).update(changed)
    rates = scheduler._get_closed_form_lr()
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
