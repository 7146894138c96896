"""A promptable model in a network's place: boxes around regions of negative ZADC, slices as a video (medsam2.yaml)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import nn

from ..geometry.brain import brain_of
from ..geometry.components import components, without_small
from ..geometry.spacing import spacing_of
from ..runtime.errors import UserError

__all__ = ["BoxPrompted", "Prompt", "prompts", "sam2_predictor"]

NO_LESION = -1024.0  # the logit outside of what the model was asked for; SAM 2's own where there is no object


@dataclass(frozen=True)
class Prompt:
    """One region as a promptable model is asked for it; voxel indices, the last ones included.

    Attributes:
        box: first column, first row, last column, last row: along X, Y, X, Y.
        key: the slice that the box is in.
        first: the first slice of the region.
        last: the last one.
    """

    box: tuple[int, int, int, int]
    key: int
    first: int
    last: int


def prompts(mask: NDArray[np.bool_], margin: int = 0) -> list[Prompt]:
    """The connected regions of a mask (26 neighbours), each with its box in the slice where it is largest.

    Args:
        mask: bool, shape (X, Y, Z); slices are along Z.
        margin: voxels that a box is wider on each side, within the image.
    """
    labels, _ = components(mask)
    found = []
    for number, place in enumerate(ndimage.find_objects(labels.astype(np.int32)), start=1):
        region = labels[place] == number
        key = int(region.sum(axis=(0, 1)).argmax())
        ends = []
        for axis in (0, 1):
            inside = np.flatnonzero(region[:, :, key].any(axis=1 - axis)) + place[axis].start
            ends.append((max(int(inside[0]) - margin, 0), min(int(inside[-1]) + margin, mask.shape[axis] - 1)))
        (x_first, x_last), (y_first, y_last) = ends
        slices = place[2]
        found.append(
            Prompt((x_first, y_first, x_last, y_last), slices.start + key, int(slices.start), int(slices.stop) - 1)
        )
    return found


class BoxPrompted(nn.Module):
    """A video predictor of SAM 2's kind as a network: two maps in, the lesion's logit out.

    Each region of low ZADC is an object. Its box in the slice where it is largest is the prompt, and the predictor
    follows it from there through the slices that the region spans. What it sees is ADC as grey values. Where several
    objects meet, the highest logit counts; where nothing was asked, there is no lesion.

    Its weights are the predictor's, by the names that they are published under. It is not trained here.

    Args:
        predictor: ``SAM2VideoPredictor``, or what has its ``init_state``, ``reset_state``, ``add_new_points_or_box``
            and ``propagate_in_video``.
        z_threshold: a region is where ZADC is below this, in the brain.
        smallest_mm3: smaller regions are not asked for.
        margin: voxels that a box is wider on each side.
        window: ADC shown as black and as white, 1e-6 mm²/s.
    """

    def __init__(
        self,
        predictor: nn.Module,
        z_threshold: float = -2.0,
        smallest_mm3: float = 0.0,
        margin: int = 0,
        window: Sequence[float] = (0, 2500),
    ) -> None:
        super().__init__()
        self.predictor: Any = predictor
        self.z_threshold = z_threshold
        self.smallest_mm3 = smallest_mm3
        self.margin = margin
        self.window = window

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """
        Args:
            maps: a MetaTensor: ADC in 1e-6 mm²/s and ZADC, as they are in the files; shape (B, 2, X, Y, Z), X from
                right to left, Y from front to back, so that slices are upright.

        Returns:
            Logits, float32, shape (B, 1, X, Y, Z).

        Raises:
            UserError: in training.
        """
        if self.training:
            raise UserError("A prompted model is not trained here: it evaluates and segments, with weights of yours.")
        cases = maps.detach().cpu().numpy()
        found = [self._case(case, float(np.prod(spacing_of(maps, item)))) for item, case in enumerate(cases)]
        return torch.stack(found).to(maps.device)

    def _case(self, maps: NDArray[np.float32], voxel_mm3: float) -> torch.Tensor:
        adc, zadc = maps
        below = brain_of(adc) & (zadc < self.z_threshold)
        asked = prompts(without_small(below, self.smallest_mm3 / voxel_mm3), self.margin)
        logits = torch.full((1, *adc.shape), NO_LESION)
        if not asked:
            return logits
        with TemporaryDirectory() as folder:  # it takes a video as files only
            write_slices(adc, self.window, Path(folder))
            state = self.predictor.init_state(folder)
        for prompt in asked:
            self.predictor.reset_state(state)
            self.predictor.add_new_points_or_box(state, frame_idx=prompt.key, obj_id=1, box=np.array(prompt.box))
            for reverse, steps in ((False, prompt.last - prompt.key), (True, prompt.key - prompt.first)):
                followed = self.predictor.propagate_in_video(
                    state, start_frame_idx=prompt.key, max_frame_num_to_track=steps, reverse=reverse
                )
                for index, _, scores in followed:  # (1, 1, rows, columns), on the slices' own grid
                    one = logits[0, :, :, index]
                    one.copy_(torch.maximum(one, scores[0, 0].float().cpu().T))
        return logits

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The predictor's."""
        return self.predictor.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """The predictor's."""
        return self.predictor.load_state_dict(*args, **options)


def write_slices(adc: NDArray[np.float32], window: Sequence[float], folder: Path) -> None:
    """The slices of a volume as grey JPEG files, ``00000.jpg`` …, with little loss; columns along X, rows along Y."""
    black, white = window
    grey = np.clip((adc - black) / (white - black), 0, 1) * 255
    for index in range(adc.shape[2]):
        Image.fromarray(grey[:, :, index].T.round().astype(np.uint8)).save(folder / f"{index:05d}.jpg", quality=100)


def sam2_predictor(config: str, overrides: Sequence[str] = ()) -> nn.Module:
    """The video predictor of the package ``sam2``, with random weights, on the CPU.

    Args:
        config: one of the package's: ``configs/sam2.1/sam2.1_hiera_t.yaml`` …
        overrides: of values in it, as Hydra writes them: ``++model.image_size=512`` …

    Raises:
        UserError: when the package is not installed.
    """
    try:
        from sam2 import build_sam, sam2_video_predictor
        from sam2.utils import misc
    except ImportError as error:
        raise UserError(
            f"MedSAM-2 needs the package sam2 ({error}): docs/prompts.md says how it is installed."
        ) from error
    for module in (sam2_video_predictor, misc):
        module.tqdm = partial(module.tqdm, disable=True)  # a bar for each region
    predictor: Any = build_sam.build_sam2_video_predictor(config, device="cpu", hydra_overrides_extra=list(overrides))
    predictor.fill_hole_area = 0  # filling holes of a few pixels takes a CUDA extension that may not have been built
    return predictor
