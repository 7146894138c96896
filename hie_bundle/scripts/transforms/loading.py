"""Loading the two maps of a case as the channels of one image."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
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
    ResampleToMatch,
    Transform,
)
from monai.utils import MetaKeys
from numpy.typing import NDArray

from ..data.checks import Limits, are_swapped, like_adc
from ..geometry.brain import are_normalised, clear_background
from ..io.images import metatensor_of
from ..io.volumes import Volume, VolumeError, read_volume
from ..runtime.errors import UserError

__all__ = ["KeepNatived", "LoadMapsd", "ToNatived"]

# Where pydicom is installed, MONAI warns with each loader that NVIDIA's decoder for it is not; no DICOM is loaded here.
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


class LoadMaps(LoadImage):
    """``monai.transforms.LoadImage`` with the checks of :func:`scripts.io.volumes.read_volume`.

    MONAI stacks files only if every number of their affines agrees to 1e-5 relative, zeros to 1e-8, so that a rounded
    direction cosine in one of two maps stops the run. Whether maps are on one grid is for
    :func:`scripts.data.gate.require_usable` to decide, in millimetres, before anything is loaded.
    """

    def __call__(
        self, filename: Sequence[PathLike] | PathLike | MetaTensor, reader: ImageReader | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, Any]]:
        """
        Args:
            filename: one file; or several of equal shape; or an image in memory, which stays as it is.
            reader: not used.

        Returns:
            The image; several files are stacked along a new first axis, with the first one's metadata.

        Raises:
            UserError: when a file cannot be read, or the shapes differ.
        """
        image = filename
        if not isinstance(filename, MetaTensor):
            files = [str(filename)] if isinstance(filename, str | os.PathLike) else [str(file) for file in filename]
            volumes = [self._read(file) for file in files]
            if len({volume.array.shape for volume in volumes}) > 1:
                raise UserError(f"{' and '.join(files)}: the volumes have different shapes.")
            image = metatensor_of(volumes, files[0])
        return image if self.image_only else (image, image.meta)  # type: ignore[return-value, union-attr]

    @staticmethod
    def _read(file: str) -> Volume:
        try:
            return read_volume(file)
        except FileNotFoundError as error:
            raise UserError(f"{file} is missing.") from error
        except VolumeError as error:
            raise UserError(f"{file} {error}.") from error


class LoadMapsd(LoadImaged):
    """Dictionary form of :class:`LoadMaps`, for image keys and label keys alike.

    Tools that call the transforms without the workflow (MONAI Label, a notebook) pass no check of their cases: what
    would give a wrong mask without an error is refused here.

    Of a case without a ZADC map the image is the ADC map alone: a list of one file, or one file with one channel. Where
    ``limits`` say ``zadc: optional`` (``limits#zadc`` in the configs, for a whole recipe) it is loaded with a second
    channel of NaN, in the background too, which a transform of the recipe must replace before anything computes with
    it; it comes after :class:`EnsureChannelFirstd` as any other. Where they say ``zadc: required`` it is refused.

    Args:
        keys: keys of file names, or of lists of file names to be stacked as channels.
        maps_key: the key that holds the two maps.
        limits: what the maps may look like; the defaults if None.
        allow_missing_keys: do not raise when a key is missing.

    Raises:
        UserError: when called, if the image does not have the channels that ``limits`` allow, or they can only be ZADC
            and ADC instead of ADC and ZADC, by their values; or if a lone map has no values of an ADC map.
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
        loaded = super().__call__(data, reader)
        if self.maps_key in self.keys and self.maps_key in loaded:
            loaded[self.maps_key] = self._two_maps(data[self.maps_key], loaded[self.maps_key])
        return loaded

    def _two_maps(self, files: Any, image: MetaTensor) -> MetaTensor:
        axis = image.meta.get(MetaKeys.ORIGINAL_CHANNEL_DIM)
        maps = image.as_tensor().numpy()
        if not isinstance(axis, (int, float)) or math.isnan(axis):  # MONAI's "no_channel"
            axis, maps = 0, maps[None]
        channels = maps.shape[int(axis)]
        if isinstance(files, MetaTensor):
            files = "the image"
        name = str(files) if isinstance(files, str | Path) else " and ".join(map(str, files))
        if channels == 1 and self.limits.zadc == "optional":
            return self._with_missing(name, np.moveaxis(maps, int(axis), 0)[0], image)
        if channels != 2:
            raise UserError(f"{name}: {channels} channel{'s' * (channels != 1)}, not the two maps ADC and ZADC.")
        adc, zadc = maps.swapaxes(0, int(axis))
        if are_swapped(adc, zadc, self.limits):
            raise UserError(f"{name}: the channels are ZADC and ADC by their values; ADC must come first.")
        clear_background(adc, zadc)
        return image

    def _with_missing(self, name: str, adc: NDArray[Any], image: MetaTensor) -> MetaTensor:
        if not are_normalised(adc) and not like_adc(adc, self.limits):
            raise UserError(f"{name}: one map, which by its values is no ADC map in 1e-6 mm²/s.")
        maps = torch.stack([torch.as_tensor(adc), torch.full(adc.shape, torch.nan)])
        return MetaTensor(maps, meta={**image.meta, MetaKeys.ORIGINAL_CHANNEL_DIM: 0})


class KeepNatived(Transform):
    """``native_image`` and ``native_label``: the maps and the mask as they were acquired, for what is measured there.

    Comes when image and label have been loaded and not been changed yet. Of cases that preprocessing put on another
    grid it loads the files that the item names under these keys; where it names none and the maps have been normalised
    there are none, and the keys are absent. Otherwise they are copies.

    Args:
        limits: what the maps may look like; the defaults if None.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        names = ["native_image", "native_label"]
        load = LoadMapsd(names, maps_key="native_image", limits=limits, allow_missing_keys=True)
        self._load = Compose([load, EnsureChannelFirstd(names, allow_missing_keys=True)])

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        if "native_image" in data:
            return dict(self._load(data))  # type: ignore[arg-type]
        adc, zadc = data["image"][:2].numpy()
        if are_normalised(adc, None if np.isnan(zadc).all() else zadc):
            return dict(data)
        return {**data, **{f"native_{key}": data[key].clone() for key in ("image", "label") if key in data}}


class ToNatived(MapTransform):
    """Predictions on the grid of ``native_image``, by linear interpolation where they are on that of prepared maps.

    Comes after ``Invertd``, which goes back to the grid of the files that were loaded; what lies on the native grid
    then, as it does for maps as they were acquired, is left as it is. So is everything where there is no native image.

    Args:
        keys: of probabilities.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(self, keys: str | Sequence[str], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self._resample = ResampleToMatch(mode="bilinear", padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        if "native_image" not in data:
            return result
        target = data["native_image"]
        for key in self.key_iterator(result):
            image = result[key]
            if image.shape[1:] != target.shape[1:] or not torch.allclose(image.affine, target.affine, atol=1e-3):
                result[key] = self._resample(image, target)
        return result
