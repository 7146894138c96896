"""Loading the two maps of a case as the channels of one image."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import ImageReader, MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImage,
    LoadImaged,
    MapTransform,
    Transform,
)
from monai.utils import ImageMetaKey, MetaKeys
from nibabel.affines import voxel_sizes

from ..data.adc_level import adc_level
from ..data.checks import Limits, grid_difference, require_checked
from ..geometry.brain import are_normalised, clear_background
from ..io.images import metatensor_of
from ..io.volumes import Volume, VolumeError, read_checked
from ..runtime.errors import UserError
from .pipeline import EachImaged
from .resample import on_grid_of

# each MONAI loader warns that NVIDIA's DICOM decoder is missing; not needed here
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


class LoadMaps(LoadImage):
    """``monai.transforms.LoadImage`` for one or several files, with the checks of
    :func:`scripts.io.volumes.read_volume`.

    MONAI stacks files only if their affines agree to a relative 1e-5, which rounded direction cosines exceed.
    :func:`scripts.data.gate.require_usable` compares grids in millimetres.
    """

    def __call__(
        self, filename: Sequence[PathLike] | PathLike | MetaTensor, reader: ImageReader | None = None
    ) -> MetaTensor | tuple[MetaTensor, dict[str, Any]]:  # type: ignore[override]
        """Load one file, or stack files of equal shape along a new first axis, with the metadata of the first file.

        An image in memory is returned unchanged. Without ``image_only`` (MONAI Label) returns image and metadata.

        Raises:
            UserError: when a file cannot be read, or the shapes differ.
        """
        image = filename if isinstance(filename, MetaTensor) else self._read(filename)
        return image if self.image_only else (image, image.meta)

    @staticmethod
    def _read(filename: Sequence[PathLike] | PathLike) -> MetaTensor:
        files = [str(filename)] if isinstance(filename, str | os.PathLike) else list(map(str, filename))
        volumes = []
        for file in files:
            try:
                volumes.append(read_checked(file))
            except FileNotFoundError as error:
                raise UserError(f"{file} is missing.") from error
            except VolumeError as error:
                raise UserError(f"{file} {error}.") from error
        if len({volume.array.shape for volume in volumes}) > 1:
            raise UserError(f"{' and '.join(files)}: the volumes have different shapes.")
        return metatensor_of(volumes, files[0])


class LoadMapsd(LoadImaged):
    """Load the two maps of a case and its label.

    Maps that were not checked in this process yet, as in MONAI Label and notebooks, are checked here.

    With ``zadc: optional`` in ``limits`` a case without a ZADC map gets a second channel of NaN, which the recipe must
    replace, and its ADC is scaled to a newborn's level (:func:`scripts.data.adc_level.adc_level`).

    Args:
        keys: of file names, or of lists of file names to be stacked as channels.
        maps_key: the key of the maps.
        limits: of a usable case; None: the defaults.

    Raises:
        UserError: in a call, if the case is unusable by ``limits``; names each problem.
    """

    def __init__(
        self,
        keys: str | Sequence[str],
        maps_key: str = "image",
        limits: Limits | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "NvImgCodecPydicomReader", UserWarning)
            super().__init__(keys, allow_missing_keys=allow_missing_keys)
            self._loader = LoadMaps(image_only=True)
        self.maps_key = maps_key
        self.limits = limits or Limits()

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        files = data.get(self.maps_key) if self.maps_key in self.keys else None
        if files is not None and not isinstance(files, MetaTensor):
            require_checked({"image": files}, self.limits)
        loaded = super().__call__(data, reader)
        if files is not None:
            loaded[self.maps_key] = self._two_channels(loaded[self.maps_key])
        return loaded

    def _two_channels(self, image: MetaTensor) -> MetaTensor:
        axis = image.meta.get(MetaKeys.ORIGINAL_CHANNEL_DIM)
        maps = image.as_tensor().numpy()
        if isinstance(axis, int | float) and not math.isnan(axis):  # NaN: MONAI's "no_channel"
            maps = np.moveaxis(maps, int(axis), 0)
            if len(maps) > 1:
                clear_background(maps[0], maps[1])
                return image
            maps = maps[0]
        level = 1.0 if are_normalised(maps) else adc_level(maps, voxel_sizes(np.asarray(image.affine))).factor
        both = torch.stack([torch.as_tensor(maps * level), torch.full(maps.shape, torch.nan)])
        return MetaTensor(both, meta={**image.meta, MetaKeys.ORIGINAL_CHANNEL_DIM: 0})


@dataclass(eq=False)
class AppendMapd(EachImaged):
    """Append a further acquired map, such as the image with b = 1000. Put it last in ``transforms#load``.

    ``keys`` are images (C, X, Y, Z) whose first channel is ADC, loaded from its own file.

    Raises:
        UserError: in a call, if the file does not exist or is on another grid.
    """

    replace: Mapping[str, str]  # replacements that turn the path of the ADC map into that of the further map

    def change(self, image: Any) -> torch.Tensor:
        adc = file = str(image.meta[ImageMetaKey.FILENAME_OR_OBJ])
        for old, new in self.replace.items():
            file = file.replace(old, new)
        if file == adc:
            raise UserError(f"The path {adc} has no {' or '.join(self.replace)} to replace for a further map.")
        added: Any = LoadMaps(image_only=True)(file)
        first, second = (Volume(one.numpy(), one.affine.numpy()) for one in (image[0], added))
        if difference := grid_difference(first, second, Limits().grid_tolerance_mm):
            raise UserError(f"{file} is not on the grid of {adc}: {difference}.")
        return torch.cat([image, added[None]])


class KeepNatived(Transform):
    """Add ``native_image`` and ``native_label``, maps and mask as acquired. Put it directly after loading.

    For preprocessed cases it loads the files that the item has under these keys. For other cases it copies image and
    label, unless the maps are normalised. ``limits`` are those of a usable case.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        names = ["native_image", "native_label"]
        load = LoadMapsd(names, maps_key="native_image", limits=limits, allow_missing_keys=True)
        self._load = Compose([load, EnsureChannelFirstd(names, allow_missing_keys=True)])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if "native_image" in data:
            return dict(self._load(data))  # type: ignore[arg-type]
        maps = data["image"][:2].clone()  # without further acquired channels
        adc, zadc = maps.numpy()
        if are_normalised(adc, zadc):
            return dict(data)
        label: dict[Hashable, Any] = {"native_label": data["label"].clone()} if "label" in data else {}
        return {**data, "native_image": maps, **label}


class ToNatived(MapTransform):
    """Resample probabilities linearly to the grid of ``native_image``, if the item has it.

    Put it after ``Invertd``, which returns to the grid of the loaded files.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result) if "native_image" in result else ():
            result[key] = on_grid_of(result["native_image"], result[key], mode="bilinear", padding_mode="border")
        return result
