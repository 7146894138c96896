"""Gradient boosting on voxelwise features: the strongest method here without a deep network, as a peer to beat.

Its masks are files, which ``run scoring`` measures like those of any other tool.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from ..data.checks import Limits
from ..data.listfiles import as_native
from ..data.training_voxels import draw_training_voxels, read_maps
from ..geometry.brain import brain_of
from ..inference.voxelwise import features
from ..io.volumes import Volume, VolumeError
from ..runtime.errors import UserError
from ..transforms.masks import SaveMaskd
from .baselines import THRESHOLDS
from .metrics import dice

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingClassifier

__all__ = ["Boosting", "fit", "segment_split"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Boosting:
    """What was fitted.

    Attributes:
        model: scikit-learn's, from :func:`scripts.inference.voxelwise.features` to the lesion's probability.
        threshold: a voxel is lesion where the probability is above it.
    """

    model: HistGradientBoostingClassifier
    threshold: float

    def predict(self, adc: NDArray[Any], zadc: NDArray[Any], grid: Volume) -> NDArray[np.bool_]:
        """The mask, (X, Y, Z)."""
        mask = brain_of(adc)
        mask[mask] = self.model.predict_proba(features(adc, zadc, grid))[:, 1] > self.threshold
        return mask


def fit(
    items: Sequence[Mapping[str, Any]],
    limits: Limits | None = None,
    voxels: int = 5000,
    trees: int = 150,
    folds: int = 3,
    seed: int = 0,
) -> Boosting:
    """Fit on labelled cases; the threshold is the one with the best mean Dice of cases that were left out, by folds.

    Args:
        items: of the training split; of prepared cases the files that they were made from are taken.
        limits: of the sizes of files; the defaults if None.
        voxels: how many of each case's brain are drawn.
        trees: how many are added up.
        folds: into how many parts the cases fall, each left out once, to choose the threshold.
        seed: of the draw, and of the model.

    Raises:
        UserError: when there are fewer cases than folds, one that cannot be learnt from, or no lesion in any.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict

    limits = limits or Limits()
    if len(items) < folds:
        raise UserError(
            f"Boosting needs at least {folds} training cases, to choose its threshold by; here are {len(items)}."
        )
    try:
        drawn = list(draw_training_voxels(items, limits, features, voxels, seed))
    except (VolumeError, OSError, ValueError) as error:
        raise UserError(f"Boosting cannot be fitted: {error}") from error
    given = np.concatenate([one for one, _ in drawn])
    truth = np.concatenate([one for _, one in drawn])
    if truth.all() or not truth.any():
        raise UserError("The training split has no lesion and healthy brain to tell apart.")
    model = HistGradientBoostingClassifier(max_iter=trees, early_stopping=False, random_state=seed)
    cases = np.repeat(np.arange(len(drawn)), [len(one) for _, one in drawn])
    left_out = cross_val_predict(
        model, given, truth, groups=cases, cv=GroupKFold(folds), method="predict_proba"
    )[:, 1]  # fmt: skip
    scores = [
        np.mean([dice(left_out[cases == n] > threshold, one) for n, (_, one) in enumerate(drawn)])
        for threshold in THRESHOLDS
    ]
    best = int(np.argmax(scores))
    logger.info("Boosting: threshold %.2f, Dice of the voxels left out %.3f", THRESHOLDS[best], scores[best])
    return Boosting(model.fit(given, truth), float(THRESHOLDS[best]))


def segment_split(
    training: Sequence[Mapping[str, Any]],
    items: Sequence[Mapping[str, Any]],
    output_dir: str | Path,
    limits: Limits | None = None,
) -> None:
    """Fit on one split and write the masks of another, as ``<case>_lesion.nii.gz``.

    Args:
        training: see :func:`fit`.
        items: cases to segment; of prepared ones the files that they were made from are taken.
        output_dir: folder for the masks.
        limits: of the sizes of files; the defaults if None.

    Raises:
        UserError: see :func:`fit`; and when a case has no Z map.
    """
    limits = limits or Limits()
    fitted = fit(training, limits)
    save = SaveMaskd("mask", output_dir, print_log=False)
    for item in map(as_native, items):
        (adc, zadc), grid = read_maps(item, limits)
        if np.isnan(zadc).all():
            raise UserError(f"{item['case']} has no ZADC map, which boosting needs.")
        mask = torch.as_tensor(fitted.predict(adc, zadc, grid)[None])
        save({"case": item["case"], "mask": MetaTensor(mask, affine=torch.as_tensor(grid.affine))})
