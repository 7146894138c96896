"""A promptable model in place of the network: boxes around regions of low ZADC, slices as a video (medsam2.yaml)."""

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

from scripts.geometry.brain import brain_of
from scripts.geometry.components import components, without_small
from scripts.geometry.spacing import spacing_of
from scripts.runtime.errors import UserError

__all__ = ["BoxPrompted", "Prompt", "prompts", "sam2_predictor"]

NO_LESION = -1024.0  # logit outside the prompted regions; SAM 2's own value for "no object"


@dataclass(frozen=True)
class Prompt:
    """The prompt for one region; voxel indices, inclusive.

    Attributes:
        box: first column, first row, last column, last row (X, Y, X, Y).
        key: slice of the box.
        first: first slice of the region.
        last: last slice of the region.
    """

    box: tuple[int, int, int, int]
    key: int
    first: int
    last: int


def prompts(mask: NDArray[np.bool_], margin: int = 0) -> list[Prompt]:
    """One prompt per connected component (26-neighbourhood): its box in the slice where it is largest.

    Args:
        mask: bool, shape (X, Y, Z); slices are along Z.
        margin: voxels added on each side of a box, within the image.
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
    """A SAM 2 video predictor as a network: two maps to the lesion logit.

    Each region of low ZADC is an object. Its box in its largest slice is the prompt. The predictor propagates it
    through the slices of the region. It sees ADC as grey values. Where objects overlap, the highest logit counts.
    Outside the prompted regions there is no lesion. State dict: the predictor's. Inference only.

    Args:
        predictor: ``SAM2VideoPredictor``, or an object with its ``init_state``, ``reset_state``,
            ``add_new_points_or_box`` and ``propagate_in_video``.
        z_threshold: regions are brain voxels with ZADC below this.
        smallest_mm3: smallest region that is prompted.
        margin: voxels added on each side of a box.
        window: ADC of black and white, 1e-6 mm²/s.
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
            maps: a MetaTensor, ADC in 1e-6 mm²/s and ZADC in the files' units; shape (B, 2, X, Y, Z), axes LPS.

        Returns:
            Logits, float32, shape (B, 1, X, Y, Z).

        Raises:
            UserError: in training mode.
        """
        if self.training:
            raise UserError("A prompted model is not trained here; use it for evaluation or segmentation.")
        cases = maps.detach().cpu().numpy()
        logits = [self._case(case, float(np.prod(spacing_of(maps, item)))) for item, case in enumerate(cases)]
        return torch.stack(logits).to(maps.device)

    def _case(self, maps: NDArray[np.float32], voxel_mm3: float) -> torch.Tensor:
        adc, zadc = maps
        below = brain_of(adc) & (zadc < self.z_threshold)
        found = prompts(without_small(below, self.smallest_mm3 / voxel_mm3), self.margin)
        logits = torch.full((1, *adc.shape), NO_LESION)
        if not found:
            return logits
        with TemporaryDirectory() as folder:  # it reads videos from files only
            write_slices(adc, self.window, Path(folder))
            state = self.predictor.init_state(folder)
        for prompt in found:
            self.predictor.reset_state(state)
            self.predictor.add_new_points_or_box(state, frame_idx=prompt.key, obj_id=1, box=np.array(prompt.box))
            for reverse, steps in ((False, prompt.last - prompt.key), (True, prompt.key - prompt.first)):
                propagated = self.predictor.propagate_in_video(
                    state, start_frame_idx=prompt.key, max_frame_num_to_track=steps, reverse=reverse
                )
                for index, _, scores in propagated:  # (1, 1, rows, columns), on the slices' own grid
                    one = logits[0, :, :, index]
                    one.copy_(torch.maximum(one, scores[0, 0].float().cpu().T))
        return logits

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """See the predictor."""
        return self.predictor.state_dict(*args, **options)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        """See the predictor."""
        return self.predictor.load_state_dict(*args, **options)


def write_slices(adc: NDArray[np.float32], window: Sequence[float], folder: Path) -> None:
    """Write a volume's slices as grey JPEG files ``00000.jpg`` …; columns along X, rows along Y."""
    black, white = window
    grey = np.clip((adc - black) / (white - black), 0, 1) * 255
    for index in range(adc.shape[2]):
        Image.fromarray(grey[:, :, index].T.round().astype(np.uint8)).save(folder / f"{index:05d}.jpg", quality=100)


def sam2_predictor(config: str, overrides: Sequence[str] = ()) -> nn.Module:
    """The video predictor of the package ``sam2``, with random weights, on the CPU.

    Args:
        config: of the package: ``configs/sam2.1/sam2.1_hiera_t.yaml`` …
        overrides: Hydra overrides: ``++model.image_size=512`` …

    Raises:
        UserError: when the package is not installed.
    """
    try:
        from sam2 import build_sam, sam2_video_predictor
        from sam2.utils import misc
    except ImportError as error:
        raise UserError(f"MedSAM-2 needs the package sam2 ({error}); see integrations/medsam2/README.md.") from error
    for module in (sam2_video_predictor, misc):
        module.tqdm = partial(module.tqdm, disable=True)  # one bar per region
    predictor: Any = build_sam.build_sam2_video_predictor(config, device="cpu", hydra_overrides_extra=list(overrides))
    predictor.fill_hole_area = 0  # needs a CUDA extension that may not be built
    return predictor
