"""Loading the two maps of a case as the channels of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.config import PathLike
from monai.data import ImageReader, MetaTensor
from monai.transforms import LoadImage, LoadImaged
from monai.utils import MetaKeys

__all__ = ["LoadMapsd"]


class LoadMaps(LoadImage):
    """``monai.transforms.LoadImage`` that stacks files whose headers agree up to rounding.

    MONAI stacks files only if every number of their affines agrees to 1e-5 relative, zeros to 1e-8, so that a rounded
    direction cosine in one of two maps stops the run. Whether maps are on one grid is for
    :func:`scripts.bonbid.require_usable` to say, in millimetres, before anything is loaded.
    """

    def __call__(
        self, filename: Sequence[PathLike] | PathLike, reader: ImageReader | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, Any]]:
        """
        Args:
            filename: one file, loaded as MONAI does; or several of equal shape.
            reader: see the parent class.

        Returns:
            The image; several files are stacked along a new first axis, with the first one's metadata.

        Raises:
            RuntimeError: when a file cannot be read, or the shapes differ.
        """
        if isinstance(filename, (str, bytes)) or not isinstance(filename, Sequence) or len(filename) == 1:
            return super().__call__(filename, reader)
        images = [super(LoadMaps, self).__call__(name, reader) for name in filename]
        image = torch.stack([torch.as_tensor(one) for one in images])
        assert isinstance(images[0], MetaTensor)
        meta = {**images[0].meta, MetaKeys.ORIGINAL_CHANNEL_DIM: 0}
        return MetaTensor(image, meta=meta)


class LoadMapsd(LoadImaged):
    """Dictionary form of :class:`LoadMaps`, for image keys and label keys alike.

    Args:
        keys: keys of file names, or of lists of file names to be stacked as channels.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(self, keys: str | Sequence[str], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self._loader = LoadMaps(image_only=True)
