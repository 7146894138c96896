"""The bridge between MONAI's dictionaries of MetaTensors and TorchIO's subjects."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial

import torch
import torchio
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple

from ..moved import lookup

__all__ = ["AugmentByTorchIOd"]
__getattr__ = partial(lookup, "transforms.bridge")


class AugmentByTorchIOd(Randomizable, MapTransform):
    """Apply a random TorchIO transform to images and labels together.

    ``monai.transforms.RandTorchIOd`` loses affine and metadata, hands TorchIO an identity affine (so that millimetres
    are voxels), treats labels as images, and draws from the global generator. Here a ``CacheDataset`` never caches the
    output; intensity transforms leave labels alone; TorchIO sees the true affine; and each call draws one seed from
    this transform's own random state, so that a run is reproducible with any number of workers.

    Args:
        keys: image keys, each of shape (C, X, Y, Z); the channels share the drawn parameters except where the TorchIO
            transform draws per channel (gamma).
        transform: a TorchIO transform, or several by name, applied in the order of the mapping.
        label_keys: keys of label maps, shape (1, X, Y, Z) on the images' grid.

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
        self.label_keys = ensure_tuple(label_keys)
        super().__init__((*ensure_tuple(keys), *self.label_keys), allow_missing_keys)
        if isinstance(transform, Mapping):
            transform = torchio.Compose(list(transform.values()))
        self.transform: torchio.Transform = transform

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        result = dict(data)
        images = {}
        for key in self.key_iterator(result):
            kind, image = torchio.LabelMap if key in self.label_keys else torchio.ScalarImage, result[key]
            affine = image.affine.cpu().numpy() if isinstance(image, MetaTensor) else None
            images[str(key)] = kind(tensor=image.as_subclass(torch.Tensor), affine=affine)
        seed = int(self.R.randint(2**31))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            subject = self.transform(torchio.Subject(images))
        for key in self.key_iterator(result):
            moved, before = subject.get_image(str(key)), result[key]
            after = MetaTensor(moved.data.to(before.dtype), affine=torch.as_tensor(moved.affine))
            if isinstance(before, MetaTensor):
                after.meta = {**before.meta, "affine": after.affine}
                after.applied_operations = list(before.applied_operations)
            result[key] = after
        return result
