"""Ignite handlers for what MONAI's trainer leaves to the user: L1 penalty, clipping, seeding, checkpoints, resume.

They attach like MONAI's own (``handler.attach(engine)``) and stand in a config's handler list.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
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

from .distributed import from_first, is_first
from .errors import UserError
from .files import atomic_path

__all__ = [
    "BestModelSaver",
    "CheckpointLoader",
    "EarlyStopping",
    "EpochSeed",
    "GradientClipping",
    "L1Penalty",
    "Resume",
    "as_paths",
    "read_weights",
    "save_atomically",
]

logger = logging.getLogger(__name__)


class L1Penalty:
    """Add ``weight`` · Σ|w| over the network's trainable parameters to the loss (paper: L1 regularisation, 1e-4).

    The penalty alone is also put into the iteration's output as ``l1_penalty`` so that it can be logged on its own.

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
        norms = [p.abs().sum(dtype=torch.float32) for p in self.network.parameters() if p.requires_grad]
        penalty = self.weight * torch.stack(norms).sum()
        engine.state.output["l1_penalty"] = penalty.detach()
        engine.state.output[CommonKeys.LOSS] = engine.state.output[CommonKeys.LOSS] + penalty


class GradientClipping:
    """Scale the gradients so that their joint 2-norm is at most ``max_norm`` (paper: max norm 1).

    With mixed precision the gradients are unscaled first: clipping scaled ones would clip almost every step.
    The norm before clipping is put into the iteration's output as ``grad_norm``.

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
    """Seed everything random from (seed, epoch) at the start of every epoch of the trainer.

    Shuffling, augmentation and dropout of an epoch then depend on nothing but these two numbers (and the number of
    workers, which share the samples among them): variants that consume random numbers differently still see the same
    data, and a resumed run goes on as if it had not stopped.

    Args:
        seed: the run's seed.
        rank: added to the spawn key, so that distributed processes draw different augmentations and dropout.
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


class CheckpointLoader(StockCheckpointLoader):
    """``monai.handlers.CheckpointLoader`` that says what is wrong with a checkpoint before anything runs on it.

    ``load_path`` may be a list, of an ensemble: the first is loaded, all are looked at.

    Raises:
        UserError: when a path does not exist or is no checkpoint, or its weights do not fit the network, naming the
            layers.
    """

    def __init__(self, load_path: str | Sequence[str], load_dict: dict[str, Any], **options: Any) -> None:
        self.paths = as_paths(load_path)
        super().__init__(str(self.paths[0]), load_dict, **options)

    def __call__(self, engine: Engine) -> None:
        for path in self.paths:
            for name, item in self.load_dict.items():
                if isinstance(item, nn.Module):
                    read_weights(path, item, name)
        super().__call__(engine)


def as_paths(load_path: str | Sequence[str]) -> list[Path]:
    """One path or several as a list; at least one.

    Raises:
        UserError: when there is none.
    """
    paths = [Path(load_path)] if isinstance(load_path, str) else [Path(path) for path in load_path]
    if not paths:
        raise UserError("ckpt_path is an empty list; name at least one checkpoint.")
    return paths


def read_weights(path: Path, network: nn.Module, name: str = "model") -> Mapping[str, Any]:
    """The weights in a checkpoint, under ``name`` or bare, once it is sure that they fit the network.

    Raises:
        UserError: when they do not, or cannot be read.
    """
    if not path.is_file():
        raise UserError(
            f"There is no checkpoint at {path.absolute()}. Train first (`run training`), "
            "or point --ckpt_dir (evaluation) or --ckpt_path (inference) to where the weights are."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is not a checkpoint that PyTorch can read safely: {error}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not the weights of a network by layer.")
    weights = content.get(name, content)
    if problems := _misfits(weights, _bare(network).state_dict()):
        raise UserError(
            f"The weights in {path} do not fit the network; were they trained with other `features`?\n"
            + "\n".join(problems)
        )
    return weights


class BestModelSaver:
    """Write ``{"model": state_dict}`` to ``path`` after every validation that was the best so far.

    When training ends without a validation result (no validation cases, say) the last weights are written, so that a
    finished run always leaves a model. The file is written under another name and renamed: an interrupted run neither
    leaves half a file nor loses the one before. It holds plain tensors under the key ``model``, as other tools expect.

    Of several processes the first one writes.

    Stand it after the ``ValidationHandler`` in the trainer's handlers.

    Args:
        network: the network that is trained.
        path: where the weights go, e.g. ``ckpt_dir/model.pt``.
        validator: the evaluator whose key metric chooses.
    """

    def __init__(self, network: nn.Module, path: str, validator: Evaluator) -> None:
        self.network = network
        self.path = Path(path).resolve()
        self.validator = validator

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act after each epoch of the trainer, and at its end."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def __call__(self, engine: SupervisedTrainer) -> None:
        if self.validator.state.best_metric_epoch == engine.state.epoch:
            self._save()

    def completed(self, engine: SupervisedTrainer) -> None:
        """Save the last weights when no validation chose any."""
        if self.validator.state.best_metric_epoch == -1:
            logger.warning("No validation result to choose by: saving the last weights.")
            self._save()

    def _save(self) -> None:
        if not is_first():
            return
        save_atomically({"model": _bare(self.network).state_dict()}, self.path)
        logger.info("Saved %s", self.path)


class EarlyStopping:
    """Stop the trainer after ``patience`` epochs without a better key metric of the validator.

    MONAI's ``EarlyStopHandler`` counts validations instead of epochs, and needs a reference from the validator's
    handlers back to the trainer, which a config cannot express.

    Stand it after the ``ValidationHandler`` in the trainer's handlers.

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
    """Save the whole state of a run after every epoch; go on from it when the run is started again.

    With :class:`EpochSeed` a run that was stopped and resumed ends with the same weights as one that was not (same
    machine, CPU). Resuming a run that had finished does nothing. Of several processes the first one writes and reads,
    and gives the others what it read: all go on from the same epoch, also where they do not see the same files.

    Stand it last in the trainer's handlers.

    Args:
        path: where the state is kept.
        objects: what has a ``state_dict``: network, optimiser, scheduler. The trainer's epoch, its gradient scaler and
            the validator's best metric are added here.
        validator: the validator whose best metric is kept.
        resume: whether to go on from ``path`` if it exists; otherwise the run starts afresh and overwrites it.
    """

    def __init__(self, path: str, objects: Mapping[str, Any], validator: Evaluator, resume: bool = False) -> None:
        self.path = Path(path)
        self.objects = objects
        self.validator = validator
        self.resume = resume

    def attach(self, engine: SupervisedTrainer) -> None:
        """Act when the trainer starts and after each of its epochs."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def load(self, engine: SupervisedTrainer) -> None:
        """Restore the state if asked to and if there is one."""
        if not self.resume:
            return
        state = None
        if is_first() and self.path.is_file():
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        state = from_first(state)
        if state is None:
            return
        for name, item in self.objects.items():
            (_bare(item) if isinstance(item, nn.Module) else item).load_state_dict(state["objects"][name])
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
                name: (_bare(item) if isinstance(item, nn.Module) else item).state_dict()
                for name, item in self.objects.items()
            },
            "scaler": None if scaler is None else scaler.state_dict(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "best_metric": float(self.validator.state.best_metric),
            "best_metric_epoch": self.validator.state.best_metric_epoch,
            "stopped": bool(engine.should_terminate),
        }
        save_atomically(state, self.path)


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """``torch.save`` to a neighbouring name, then rename: readers see the old file or the new one, never a part."""
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _misfits(weights: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """One line for each layer that is missing, superfluous or of another shape."""
    lines = [f"  missing: {name}" for name in expected if name not in weights]
    lines += [f"  not in the network: {name}" for name in weights if name not in expected]
    for name in expected:
        shape = tuple(getattr(weights.get(name), "shape", ()))
        if name in weights and shape != tuple(expected[name].shape):
            lines.append(f"  {name}: {shape} in the file, {tuple(expected[name].shape)} in the network")
    return lines


def _bare(network: nn.Module) -> nn.Module:
    """The network inside a ``DistributedDataParallel`` wrapper, whose state dict has no ``module.`` prefix."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
