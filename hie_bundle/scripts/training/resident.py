"""Training on cases in device memory, without loading processes and loops over items."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ignite.metrics import Metric
from monai.transforms import Activationsd
from monai.transforms.utils import map_binary_to_indices
from nibabel.affines import voxel_sizes
from torch.utils.data import DataLoader, Dataset

from ..data.layout import case_of
from ..data.loaders import CaseLoader
from ..runtime.errors import UserError
from ..runtime.machine import GB, available_memory, cache_memory
from ..transforms.on_device import batched_form
from ..transforms.pipeline import listed

logger = logging.getLogger(__name__)

SHARE = 0.4  # share of the free memory for the cases; the network needs the rest
READ_EVERY = 10  # steps between readings of logged values, since a reading waits for the device


class Placement:
    """Place of the augmentation: loading processes on the host, or the device.

    ``data_on`` is ``device``, ``host``, or ``auto``: the device on CUDA, if the augmentation has a batched form and the
    cases fit. ``cases`` is their number. Attributes: ``on_device`` is the choice; ``augment`` and ``prepare_batch`` are
    the recipe's, changed for the device; ``read_every`` is the number of steps between readings of logged values.

    Raises:
        UserError: for ``device``, when the augmentation has no batched form, or not all cases are cached.
    """

    def __init__(
        self,
        data_on: str,
        device: str | torch.device,
        augment: Mapping[str, Any],
        prepare_batch: Any,
        activate: Mapping[str, Any],
        cases: float,
        all_cached: bool,
        volume_size: Any,
        in_channels: int,
    ) -> None:
        batched = batched_form(augment, prepare_batch)
        self.on_device = data_on == "device"
        if data_on == "auto" and torch.device(device).type == "cuda" and batched and all_cached and cases:
            needed, free = cache_memory(cases, volume_size, in_channels), available_memory(device)
            self.on_device = needed < SHARE * free
            text = "Cases need %.1f of %.1f GB on %s and are augmented on the %s."
            logger.info(text, needed / GB, free / GB, device, "device" if self.on_device else "host")
        if self.on_device and not (batched and all_cached):
            why = "this recipe's augmentation has no batched form" if all_cached else "--cache_rate is below 1"
            raise UserError(f"--data_on device: {why}. Choose --data_on host.")
        self.augment = {} if self.on_device else augment
        self.prepare_batch = batched if self.on_device else prepare_batch
        self.read_every = READ_EVERY if self.on_device else 1
        steps = listed(activate)
        self._one_sigmoid = len(steps) == 1 and isinstance(steps[0], Activationsd)

    def training_metric(self, host: Any, threshold: float) -> Any:
        """The trainer's key metric: ``host`` itself, its batched form on the device, or None if there is none."""
        if not self.on_device:
            return host
        if not self._one_sigmoid:
            return None
        metric = BatchDice(threshold, output_transform=lambda output: (output["pred"], output["label"]))
        return dict.fromkeys(host, metric)


class BatchDice(Metric):
    """``monai.metrics.DiceMetric(ignore_empty=False)`` of the thresholded sigmoid of one logit, read once per epoch."""

    def __init__(self, threshold: float = 0.5, **options: Any) -> None:
        self.threshold = threshold
        super().__init__(**options)

    def reset(self) -> None:
        self._values: list[torch.Tensor] = []

    def update(self, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Add logits and labels, both (B, 1, X, Y, Z)."""
        pred = (output[0].detach().float().sigmoid() > self.threshold).flatten(1).float()
        truth = (output[1] > 0.5).flatten(1).float()
        both, total = (pred * truth).sum(1), pred.sum(1) + truth.sum(1)
        self._values.append(torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0))

    def compute(self) -> float:
        return float(torch.cat(self._values).mean()) if self._values else 0.0


class ResidentCases(Dataset[int]):
    """Indices of cached cases in device memory; :meth:`batch` collates cases and uploads all at its first call."""

    def __init__(self, dataset: Dataset[Any], device: str | torch.device = "cpu") -> None:
        self.dataset = dataset
        self.device = torch.device(device)
        self._cases: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, indices: list[int]) -> dict[str, Any]:
        """Cases by their indices, padded at the end of each axis to one size.

        ``image`` (B, C, X, Y, Z) and ``label`` (B, 1, X, Y, Z) are on the device. On the host: ``size`` (B, 3) without
        padding, ``spacing_mm`` (B, 3), ``voxels`` (flat indices of lesion and background of each case), and ``case``
        (names).
        """
        if not self._cases:
            self._upload()

        def chosen(of: Any) -> Any:
            if isinstance(of, torch.Tensor):
                return of[torch.tensor(indices).to(of.device, non_blocking=True)]
            return [of[index] for index in indices]

        return {key: chosen(of) for key, of in self._cases.items()}

    def _upload(self) -> None:
        items = [self.dataset[index] for index in range(len(self))]
        sizes = torch.tensor([item["image"].shape[1:] for item in items])
        spacing = [voxel_sizes(item["image"].affine.cpu().numpy()) for item in items]
        voxels = [map_binary_to_indices(item["label"].as_subclass(torch.Tensor)) for item in items]
        self._cases = {
            "size": sizes,
            "spacing_mm": torch.from_numpy(np.array(spacing)).float(),
            "voxels": [(torch.as_tensor(lesion).int(), torch.as_tensor(rest).int()) for lesion, rest in voxels],
            "case": [case_of(item) for item in items],
        }
        for key in ("image", "label"):
            shape = (len(items), len(items[0][key]), *sizes.amax(dim=0).tolist())
            self._cases[key] = torch.zeros(shape, device=self.device)
            for target, item in zip(self._cases[key], items, strict=True):
                x, y, z = item[key].shape[1:]
                target[:, :x, :y, :z] = item[key].as_subclass(torch.Tensor)


def training_loader(
    dataset: Dataset[Any], placement: Placement, device: str | torch.device, **options: Any
) -> DataLoader[Any]:
    """The training loader; ``options`` are those of :class:`scripts.data.loaders.CaseLoader`."""
    if not placement.on_device:
        return CaseLoader(dataset, **options)
    cases = ResidentCases(dataset, device)
    own = {name: options[name] for name in ("batch_size", "sampler", "shuffle") if name in options}
    return DataLoader(cases, collate_fn=cases.batch, **own)
