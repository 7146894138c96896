"""TorchIO transforms for MONAI's dictionaries of MetaTensors."""

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

__getattr__ = partial(lookup, "transforms.bridge")


class AugmentByTorchIOd(Randomizable, MapTransform):
    """Apply a random TorchIO transform to images and labels together.

    In contrast to ``monai.transforms.RandTorchIOd``, TorchIO gets the true affine, intensity transforms do not change
    labels, metadata are kept, and each call has a seed from this transform's random state, so that runs are
    reproducible with any number of workers.

    Args:
        keys: of images, (C, X, Y, Z).
        transform: a TorchIO transform, or several by name, applied in the order of the mapping.
        label_keys: of label maps on the images' grid, (1, X, Y, Z).
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: Mapping[str, torchio.Transform] | torchio.Transform,
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
        images, affine = {}, None  # of the first image: others may differ by rounding, which TorchIO refuses
        for key in self.key_iterator(result):
            kind, image = torchio.LabelMap if key in self.label_keys else torchio.ScalarImage, result[key]
            if affine is None and isinstance(image, MetaTensor):
                affine = image.affine.cpu().numpy()
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
