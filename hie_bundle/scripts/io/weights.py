"""Weights on disk: a file that knows what it was trained with, read only where it fits.

Training writes ``{"model": state_dict, "recipe": JSON, "training": JSON}``, and the state dict of the voxelwise network
as ``"voxelwise"`` where the recipe has one, which ``torch.load(weights_only=True)``, MONAI's ``CheckpointLoader`` and
MONAI Label take. Tools that want a bare state dict (the Model Zoo's ``ckpt_export``
without a key) get one from :func:`write_bare`, with the rest in a file beside it: ``model.json`` beside ``model.pt``.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runtime.distributed import unwrap_ddp
from ..runtime.errors import UserError
from ..runtime.finite import not_finite
from ..runtime.recipe import Recipe, refuse_other_recipe
from .files import atomic_path, sha256_of, write_json

__all__ = [
    "as_paths", "check_recipe", "load_weights", "read_part", "read_record", "read_state", "read_weights",
    "require_there", "save_atomically", "save_weights", "weights_files", "write_bare",
]  # fmt: skip

logger = logging.getLogger(__name__)

MODELS = Path(__file__).resolve().parents[2] / "models"


def as_paths(load_path: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path or several as a list; at least one.

    Raises:
        UserError: when there is none.
    """
    paths = [Path(load_path)] if isinstance(load_path, str | Path) else [Path(path) for path in load_path]
    if not paths:
        raise UserError("ckpt_path is an empty list; name at least one checkpoint.")
    return paths


def weights_files(weights: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files with weights by what a user calls them.

    Args:
        weights: ``simulated`` for those that come with the bundle, in ``models/simulated``; one path or several.

    Raises:
        UserError: when there are none.
    """
    if weights != "simulated":
        return as_paths(weights)
    folder = MODELS / "simulated"
    files = sorted(folder.glob("model*.pt"), key=lambda path: (len(path.name), path.name))
    if not files:
        raise UserError(
            f"No weights have come with this copy of the bundle (there is no {folder}/model.pt); name some."
        )
    return files


def require_there(path: Path) -> None:
    """
    Raises:
        UserError: when there is no such file.
    """
    if not path.is_file():
        raise UserError(
            f"There is no checkpoint at {path.absolute()}. Train first (`run training`), "
            "or point --ckpt_dir (evaluation) or --ckpt_path (inference) to where the weights are."
        )


def load_weights(network: nn.Module, paths: Sequence[Path], recipe: Recipe | None, other_recipe: bool = False) -> None:
    """Put the first checkpoint's weights into the network, once it is sure that all fit it and the recipe.

    Raises:
        UserError: when they do not, or cannot be read.
    """
    for path in reversed(paths):
        if not other_recipe:
            check_recipe(path, recipe)
        weights = read_weights(path, network)
    unwrap_ddp(network).load_state_dict(weights)


def check_recipe(
    path: Path,
    recipe: Recipe | None,
    remedy: str = "Give the training's configs and options here, too; or, if you mean it, --other_recipe True.",
) -> None:
    """Stop where a checkpoint was trained with another recipe than the config's; warn where it does not say.

    Args:
        path: of the checkpoint.
        recipe: the config's, see :func:`scripts.runtime.recipe.describe`; None compares nothing.
        remedy: what to do about it, for the message.

    Raises:
        UserError: naming what differs.
    """
    if recipe is None:
        return
    trained = read_record(path).get("recipe")
    if trained is None:
        logger.warning("%s does not say what it was trained with; the config's recipe is taken.", path)
    refuse_other_recipe(trained, recipe, str(path), remedy)


def read_weights(path: Path, network: nn.Module, name: str = "model") -> Mapping[str, Any]:
    """The weights in a checkpoint, under ``name`` or bare, once it is sure that they fit the network.

    Raises:
        UserError: when they do not, are not all finite, or cannot be read.
    """
    content = _read(path)
    weights = content.get(name, content)
    if problems := _misfits(weights, unwrap_ddp(network).state_dict()):
        raise UserError(
            f"The weights in {path} do not fit the network; were they trained with other `features`?\n"
            + "\n".join(problems)
        )
    if bad := not_finite(weights):
        raise UserError(f"The weights in {path} are not finite: {bad}. They give no masks; take others.")
    return weights


def read_part(path: Path, name: str) -> Mapping[str, Any] | None:
    """What a checkpoint holds beside the network's weights under a name; None if it does not.

    Raises:
        UserError: when the checkpoint cannot be read, or what it holds there is not finite.
    """
    part = _read(path).get(name)
    if part is not None and (bad := not_finite(part)):
        raise UserError(f"What {path} holds as {name} is not finite: {bad}. It gives no masks; take other weights.")
    return part


def read_record(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: ``recipe`` and ``training``, or nothing.

    Raises:
        UserError: when the checkpoint cannot be read, or the file beside it is of other weights.
    """
    content = _read(path)
    if "recipe" in content:
        return {name: json.loads(content[name]) for name in ("recipe", "training") if name in content}
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        record = json.loads(beside.read_text())
        of = record["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{beside} does not say what {path.name} was trained with ({error!r}); remove it.") from error
    if of != sha256_of(path):
        raise UserError(f"{beside} tells of other weights than those in {path.name}; remove it, or get the right one.")
    return record


def read_state(path: Path) -> Mapping[str, Any]:
    """What :class:`scripts.training.handlers.Resume` keeps of a training.

    Raises:
        UserError: when it cannot be read.
    """
    remedy = "The training cannot go on from it. Weights that were saved are whole; --overwrite True starts anew."
    state = _read(path, remedy)
    if missing := {"objects", "epoch", "iteration", "scaler", "best_metric", "best_metric_epoch"} - state.keys():
        raise UserError(f"{path} is not the state of a training: it has no {', '.join(sorted(missing))}. {remedy}")
    return state


def save_weights(
    network: nn.Module,
    path: Path,
    recipe: Any = None,
    training: Mapping[str, Any] | None = None,
    voxelwise: nn.Module | None = None,
) -> None:
    """Write a network's weights with what is known of them, replacing what was there at once.

    Args:
        network: perhaps inside a ``DistributedDataParallel`` wrapper.
        path: the file to be.
        recipe: see :func:`scripts.runtime.recipe.describe`; left out if None.
        training: loss, epoch, seed …; plain values.
        voxelwise: the network of :mod:`scripts.inference.voxelwise` that belongs to it, if there is one.

    Raises:
        UserError: when weights are not finite; what stood there before is as it was.
    """
    if bad := not_finite(unwrap_ddp(network).state_dict()):
        raise UserError(f"The weights are not finite ({bad}): they are not saved, {path} is as it was.")
    content: dict[str, Any] = {"model": unwrap_ddp(network).state_dict()}
    if recipe is not None:
        content |= {"recipe": json.dumps(recipe), "training": json.dumps(training or {})}
    if voxelwise is not None:
        if bad := not_finite(voxelwise.state_dict()):
            raise UserError(f"The voxelwise network's weights are not finite ({bad}): nothing is saved.")
        content["voxelwise"] = voxelwise.state_dict()
    save_atomically(content, path)


def write_bare(path: str | Path, target: str | Path) -> None:
    """A checkpoint as a bare state dict, and what it says of itself beside it, as ``.json``.

    There is no place for a voxelwise network in it: that is left out, and said.
    """
    path, target = Path(path), Path(target)
    content = _read(path)
    if "voxelwise" in content:
        logger.warning("%s has no place for the voxelwise network of %s: its masks are those without it.", target, path)
    save_atomically(content.get("model", content), target)
    write_json(target.with_suffix(".json"), {**read_record(path), "sha256": sha256_of(target)}, indent=1)


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """``torch.save`` to a neighbouring name, then rename: readers see the old file or the new one, never a part.

    The same content gives the same bytes. (Given a path PyTorch writes the file's name, here a random one, into it.)

    Raises:
        UserError: when it cannot be written; what stood there before is as it was.
    """
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # of a full disk PyTorch raises the second, without saying why
        why = getattr(error, "strerror", None) or "is the disk full?"
        raise UserError(f"{path} cannot be written ({why}); what stood there before is as it was.") from error


def _read(
    path: Path,
    remedy: str = "It is cut short, damaged, or holds more than weights; take it from where it came again.",
) -> Mapping[str, Any]:
    require_there(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own message goes on to advise weights_only=False, which would run whatever code the file holds
        raise UserError(
            f"{path} is not a checkpoint that PyTorch can read safely ({_first_sentence(error)}). {remedy}"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not the weights of a network by layer.")
    return content


def _first_sentence(error: Exception) -> str:
    return re.split(r"(?<=\w)[.:]\s", " ".join(str(error).split()), maxsplit=1)[0][:120]


def _misfits(weights: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """One line for each layer that is missing, superfluous or of another shape."""
    lines = [f"  missing: {name}" for name in expected if name not in weights]
    lines += [f"  not in the network: {name}" for name in weights if name not in expected]
    for name in expected:
        shape = tuple(getattr(weights.get(name), "shape", ()))
        if name in weights and shape != tuple(expected[name].shape):
            lines.append(f"  {name}: {shape} in the file, {tuple(expected[name].shape)} in the network")
    return lines
