"""A second, small network that looks at single voxels of the native grid, beside the one that looks at volumes.

What a convolutional network sees on a coarse grid in large patches it knows by its context; where a small lesion ends
is said by the values at the voxel and around it, on the grid that they were acquired on. Each errs elsewhere, so the
mean of both probabilities is better than either (docs/recipes.md). Fitting takes about a minute for 50 cases.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.transforms import MapTransform
from numpy.typing import NDArray
from torch import nn

from ..data.checks import Limits
from ..data.training_voxels import draw_training_voxels
from ..geometry.brain import brain_of
from ..io.volumes import Volume
from ..io.weights import as_paths, read_part
from ..runtime.distributed import is_first
from ..runtime.errors import UserError
from ..transforms.voxel_features import NUMBER, features

__all__ = ["AddVoxelwised", "VoxelNetwork", "VoxelwiseFit"]

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]


class VoxelNetwork(nn.Module):
    """A perceptron on :func:`features` of single voxels; it keeps their mean and deviation in the training.

    Args:
        width: of its three hidden layers.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(NUMBER))
        self.register_buffer("deviation", torch.ones(NUMBER))
        sizes = [NUMBER, width, width, width]
        hidden = [
            layer
            for one, other in pairwise(sizes)
            for layer in (nn.Linear(one, other), nn.BatchNorm1d(other), nn.GELU())
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, 1))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Features, shape (voxels, 33), to the lesion's logit, shape (voxels,)."""
        return self.layers(((given - self.mean) / self.deviation).clamp(-6, 6))[:, 0]

    def probability(self, adc: NDArray[Any], zadc: NDArray[Any], grid: Volume) -> Floats:
        """Of lesion, (X, Y, Z), 0 outside the brain; arguments as those of :func:`features`."""
        brain = brain_of(adc)
        result = np.zeros(brain.shape, np.float32)
        with torch.no_grad():
            result[brain] = torch.sigmoid(self(torch.as_tensor(features(adc, zadc, grid)))).numpy()
        return result


class VoxelwiseFit:
    """Fit a :class:`VoxelNetwork` on the training split when a training starts.

    The same cases and seed give the same network, also where a training goes on, and however many cores there are.
    Nothing else that is random moves.

    Args:
        items: of the training split; of prepared cases the files that they were made from are taken. Cases without a
            Z map are left out.
        limits: of the sizes of files; the defaults if None.
        voxels: how many of each case's brain are drawn.
        epochs: how often each of them is seen.
        batch_size: of voxels.
        learning_rate: the highest, of AdamW with one cycle.
        weight_decay: of AdamW.
        seed: of the draw, the weights and the order.
        wanted: whether to do it.

    Raises:
        UserError: when voxels, epochs or batch_size is no whole number from 1 on.

    Attributes:
        network: what was fitted, in evaluation mode; None before, or where there is nothing to be learnt from, which
            the log says.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        limits: Limits | None = None,
        voxels: int = 5000,
        epochs: int = 12,
        batch_size: int = 2048,
        learning_rate: float = 0.003,
        weight_decay: float = 0.01,
        seed: int = 0,
        wanted: bool = True,
    ) -> None:
        for name, count in (("voxels", voxels), ("epochs", epochs), ("batch_size", batch_size)):
            if type(count) is not int or count < 1:
                raise UserError(f"The voxelwise network's {name}: a whole number from 1 on, not {count!r}.")
        self.items = items
        self.limits = limits or Limits()
        self.voxels = voxels
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.seed = seed
        self.wanted = wanted
        self.network: VoxelNetwork | None = None

    def attach(self, engine: Engine) -> None:
        """Act when the trainer starts."""
        if self.wanted:
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _: Engine | None = None) -> None:
        if not is_first():  # which writes the weights
            return
        drawn = list(draw_training_voxels(self.items, self.limits, features, self.voxels, self.seed, skip=_warn))
        truth = np.concatenate([one for _, one in drawn]) if drawn else np.zeros(0, bool)
        if truth.all() or not truth.any():
            logger.warning("No voxelwise network: the training split has no lesion and healthy brain to tell apart.")
            return
        with torch.random.fork_rng(devices=[]), _one_thread():
            torch.manual_seed(self.seed)
            self.network = self._fit(torch.as_tensor(np.concatenate([one for one, _ in drawn])), torch.as_tensor(truth))
        logger.info("Voxelwise network: fitted on %d voxels of %d cases", len(truth), len(drawn))

    def _fit(self, given: torch.Tensor, truth: torch.Tensor) -> VoxelNetwork:
        network = VoxelNetwork()
        network.mean.copy_(given.mean(dim=0))
        network.deviation.copy_(given.std(dim=0).clamp_min(1e-6))
        optimizer = torch.optim.AdamW(network.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        size = min(self.batch_size, len(given))
        steps = len(given) // size
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=max(2, steps * self.epochs)
        )
        for _ in range(self.epochs):
            for batch in torch.randperm(len(given))[: steps * size].split(size):
                loss = nn.functional.binary_cross_entropy_with_logits(network(given[batch]), truth[batch].float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return network.eval()


class AddVoxelwised(MapTransform):
    """Average the volume network's probability with that of the voxelwise networks that its weights came with.

    Left as they are: probabilities of weights that have none (those that come with the bundle, the paper's), and of
    cases without a Z map or whose maps as they were acquired are not there.

    A server (MONAI Label) keeps this transform while a training replaces the files: they are read again when they are
    newer.

    Args:
        keys: of the lesion's probability on the native grid, shape (1, X, Y, Z).
        checkpoints: file or files with weights; several voxelwise networks are averaged.
        weight: share of the voxelwise probability, from 0 to 1; at 0 nothing is done.
        level: the mean, above 0 and below 1, that becomes 0.5: its odds are divided by those of the level. Below
            0.5 one network may find what the other doubts.
        native_key: of the maps as they were acquired, shape (2, X, Y, Z) and with their affine.
    """

    def __init__(
        self,
        keys: KeysCollection,
        checkpoints: str | Path | Sequence[str | Path],
        weight: float = 0.5,
        level: float = 0.5,
        native_key: str = "native_image",
    ) -> None:
        super().__init__(keys)
        self.checkpoints = checkpoints
        self.weight = weight
        self.level = level
        self.native_key = native_key
        self._networks: list[VoxelNetwork] = []
        self._read: list[tuple[Path, int]] = []  # which files they are from, and their times

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        if self.weight == 0 or self.native_key not in data:
            return result
        self._read_networks()
        maps = data[self.native_key]
        adc, zadc = maps.cpu().numpy().astype(np.float64)
        if not self._networks or np.isnan(zadc).all():
            return result
        grid = Volume(adc, maps.affine.cpu().numpy().astype(np.float64))
        alone = np.mean([network.probability(adc, zadc, grid) for network in self._networks], axis=0)
        for key in self.key_iterator(result):
            mean = (1 - self.weight) * result[key] + self.weight * torch.as_tensor(alone[None]).to(result[key])
            lesion, healthy = mean * (1 - self.level), (1 - mean) * self.level
            result[key] = lesion / (lesion + healthy)
        return result

    def _read_networks(self) -> None:
        paths = as_paths(self.checkpoints)
        there = [(path, path.stat().st_mtime_ns if path.is_file() else 0) for path in paths]
        if there != self._read:
            self._networks = [one for path in paths if (one := _network_of(path)) is not None]
            self._read = there


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a network gains nothing by several, which wait for each other at every step where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _warn(error: Exception) -> None:
    logger.warning("The voxelwise network learns nothing from a case: %s", error)


def _network_of(path: Path) -> VoxelNetwork | None:
    weights = read_part(path, "voxelwise")
    if weights is None:
        return None
    network = VoxelNetwork()
    network.load_state_dict(weights)
    return network.eval()
