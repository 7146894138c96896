"""The bridge between MONAI's dictionaries of MetaTensors and TorchIO's subjects."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial

import numpy as np
import torch
import torchio
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple

from ..moved import renamed

__all__ = ["AugmentByTorchIOd"]
__getattr__ = partial(renamed, "transforms.bridge")


class AugmentByTorchIOd(Randomizable, MapTransform):
    """Apply a random TorchIO transform to images and labels together.

    ``monai.transforms.RandTorchIOd`` exists, but returns plain tensors without affine and metadata, hands TorchIO an
    identity affine (so that millimetres are voxels), treats labels as images, and draws from the global generator.
    Here instead

    - MONAI knows it as random, so a ``CacheDataset`` never caches its output;
    - labels are TorchIO label maps: moved with the image by spatial transforms (nearest neighbour), left alone by
      intensity transforms;
    - TorchIO sees the true affine, and the output is a ``MetaTensor`` with the input's metadata;
    - every call draws one seed from this transform's own random state and runs TorchIO under it, so that a run is
      reproducible with any number of workers, and the global generators stay as they were.

    Args:
        keys: image keys, each of shape (C, X, Y, Z); all channels of an image share the drawn parameters except where
            the TorchIO transform draws per channel (gamma).
        transform: a TorchIO transform, or several by name, applied in the order of the mapping.
        label_keys: keys of label maps, shape (1, X, Y, Z) on the images' grid.
        allow_missing_keys: do not raise when a key is missing.

    Raises:
        KeyError: when a key is missing and ``allow_missing_keys`` is false.
        RuntimeError: by TorchIO, when the volumes of one item have different shapes.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: torchio.Transform | Mapping[str, torchio.Transform],
        label_keys: KeysCollection = (),
        allow_missing_keys: bool = False,
    ) -> None:
        label_keys = ensure_tuple(label_keys)
        super().__init__((*ensure_tuple(keys), *label_keys), allow_missing_keys)
        if isinstance(transform, Mapping):
            transform = torchio.Compose(list(transform.values()))
        self.transform: torchio.Transform = transform
        self.label_keys = label_keys

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        result = dict(data)
        images = {
            key: (torchio.LabelMap if key in self.label_keys else torchio.ScalarImage)(
                tensor=_plain(result[key]), affine=_affine(result[key])
            )
            for key in self.key_iterator(result)
        }
        seed = int(self.R.randint(2**31))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            subject = self.transform(torchio.Subject({str(key): image for key, image in images.items()}))
        for key in images:
            image, before = subject.get_image(str(key)), result[key]
            after = MetaTensor(image.data.to(before.dtype), affine=torch.as_tensor(image.affine))
            if isinstance(before, MetaTensor):
                after.meta = {**before.meta, "affine": after.affine}
                after.applied_operations = list(before.applied_operations)
            result[key] = after
        return result


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def _affine(tensor: torch.Tensor) -> np.ndarray | None:
    return tensor.affine.cpu().numpy() if isinstance(tensor, MetaTensor) else None
