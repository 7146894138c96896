"""Checkpoints with a record of recipe and training; loading checks the recipe.

A training writes ``{"model": state_dict, "recipe": JSON, "training": JSON}``, which ``torch.load(weights_only=True)``,
MONAI's ``CheckpointLoader`` and MONAI Label read. :func:`write_bare` writes a bare state dict for other tools (the
Model Zoo's ``ckpt_export``), with the record as ``model.json`` next to ``model.pt``.
"""

from __future__ import annotations

import json
import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runtime.distributed import unwrap_ddp
from ..runtime.errors import UserError
from ..runtime.finite import not_finite
from ..runtime.recipe import Recipe, refuse_other_recipe
from .files import atomic_path, sha256_of, stamp_of, write_json

logger = logging.getLogger(__name__)

MODELS = Path(__file__).resolve().parents[2] / "models"
DAMAGED = "It is truncated, damaged, or holds more than weights; get it again from its source."


def as_paths(load_path: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path or several as a list; an empty list raises a UserError."""
    paths = [Path(load_path)] if isinstance(load_path, str | Path) else [Path(path) for path in load_path]
    if not paths:
        raise UserError("ckpt_path is an empty list; name at least one checkpoint.")
    return paths


def weights_files(weights: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of ``simulated`` (the bundle's own weights), or the given paths."""
    if weights != "simulated":
        return as_paths(weights)
    folder = MODELS / "simulated"
    files = sorted(folder.glob("model*.pt"), key=lambda path: (len(path.name), path.name))
    if not files:
        raise UserError(f"This copy of the bundle has no weights ({folder}/model.pt is missing); name a checkpoint.")
    return files


def require_checkpoint(path: Path) -> None:
    """Raise a UserError if the checkpoint does not exist."""
    if not path.is_file():
        raise UserError(
            f"There is no checkpoint at {path.absolute()}. Train first (`run training`), "
            "or point --ckpt_dir (evaluation) or --ckpt_path (inference) to the weights."
        )


def load_weights(network: nn.Module, paths: Sequence[Path], recipe: Recipe | None, other_recipe: bool = False) -> None:
    """Load the first checkpoint; raise a UserError unless all match the network and the recipe."""
    for path in reversed(paths):
        if not other_recipe:
            check_recipe(path, recipe)
        weights = read_weights(path, network)
    unwrap_ddp(network).load_state_dict(weights)


def check_recipe(
    path: Path,
    recipe: Recipe | None,
    remedy: str = "Use the configs and options of the training; --other_recipe True loads the weights anyway.",
) -> None:
    """Raise a UserError with the differences and the remedy if a checkpoint has another recipe.

    A checkpoint without a record logs a warning. ``recipe`` (:func:`scripts.runtime.recipe.describe`) None skips the
    check.
    """
    if recipe is None:
        return
    trained = read_record(path).get("recipe")
    if trained is None:
        logger.warning("%s has no record of its recipe; the recipe of the config is used.", path)
    refuse_other_recipe(trained, recipe, str(path), remedy)


def read_weights(path: Path, network: nn.Module) -> Mapping[str, Any]:
    """Read the state dict of a checkpoint; raise a UserError unless it is finite and matches the network."""
    weights = _state_dict(path)
    if "voxelwise" in _read(path):
        logger.warning(
            "The voxelwise network in %s is not used: version 0.10 has soft thresholds on ZADC instead.", path
        )
    if problems := _misfits(weights, unwrap_ddp(network).state_dict()):
        raise UserError(
            f"The weights in {path} do not fit the network; were they trained with other `features`?\n"
            + "\n".join(problems)
        )
    if bad := not_finite(weights):
        raise UserError(f"The weights in {path} are not finite: {bad}. Use other weights.")
    return weights


def read_record(path: Path) -> dict[str, Any]:
    """``recipe`` and ``training`` of a checkpoint; empty without a record.

    Raises:
        UserError: the checkpoint or the record cannot be read, or the JSON file belongs to other weights.
    """
    content, beside = _read(path), path.with_suffix(".json")
    try:
        if "recipe" in content:
            record = {name: json.loads(content[name]) for name in ("recipe", "training") if name in content}
        elif beside.is_file():
            record = json.loads(beside.read_text(encoding="utf-8"))
            if record["sha256"] != sha256_of(path):
                raise UserError(
                    f"{beside} describes other weights than {path.name}; remove it or replace it with the right one."
                )
        else:
            return {}
        if not all(isinstance(record.get(name, {}), Mapping) for name in ("recipe", "training")):
            raise TypeError("the recipe or the training is not a mapping")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        file = path if "recipe" in content else beside
        raise UserError(f"{file} does not state what {path.name} was trained with ({error!r}). {DAMAGED}") from error
    return record


def read_state(path: Path) -> Mapping[str, Any]:
    """The state of a training, as :class:`scripts.training.handlers.Resume` writes it."""
    remedy = "The training cannot resume from it. The saved weights are intact; --overwrite True starts from scratch."
    state = _load(path, remedy)
    if missing := {"objects", "epoch", "iteration", "scaler", "best_metric", "best_metric_epoch"} - state.keys():
        raise UserError(f"{path} is not the state of a training: it has no {', '.join(sorted(missing))}. {remedy}")
    return state


def save_weights(network: nn.Module, path: Path, recipe: Any = None, training: Mapping[str, Any] | None = None) -> None:
    """Write a network's weights atomically; raise a UserError without writing if they are not finite.

    The record holds ``recipe`` (:func:`scripts.runtime.recipe.describe`; None: no record) and ``training`` (loss,
    epoch, seed …; plain values).
    """
    content: dict[str, Any] = {"model": unwrap_ddp(network).state_dict()}
    if bad := not_finite(content["model"]):
        raise UserError(f"The weights are not finite ({bad}) and were not saved; {path} is unchanged.")
    if recipe is not None:
        content |= {"recipe": json.dumps(recipe), "training": json.dumps(training or {})}
    save_atomically(content, path)


def write_bare(path: str | Path, target: str | Path) -> None:
    """Write a checkpoint as a bare state dict, with its record next to it as ``.json``."""
    path, target = Path(path), Path(target)
    save_atomically(_state_dict(path), target)
    write_json(target.with_suffix(".json"), {**read_record(path), "sha256": sha256_of(target)}, indent=1)


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """``torch.save`` to a temporary name, then rename. The same content gives the same bytes."""
    try:  # a file object, since PyTorch writes the name of a path, here a random one, into the file
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError without a reason if the disk is full
        why = getattr(error, "strerror", None) or "is the disk full?"
        raise UserError(f"{path} cannot be written ({why}); an earlier file is unchanged.") from error


def _read(path: Path) -> Mapping[str, Any]:
    """Content of a checkpoint; cached while the file does not change."""
    require_checkpoint(path)
    return _cached(path, *stamp_of(path))


@lru_cache(maxsize=8)
def _cached(path: Path, *_: int) -> Mapping[str, Any]:
    return _load(path, DAMAGED)


def _load(path: Path, remedy: str) -> Mapping[str, Any]:
    require_checkpoint(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:  # PyTorch writes no compressed entries, but would inflate a zip bomb
                if any(info.compress_type != zipfile.ZIP_STORED for info in file.infolist()):
                    raise ValueError("it is compressed")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch's own message advises weights_only=False, which runs code from the file
        reason = re.split(r"(?<=\w)[.:]\s", " ".join(str(error).split()), maxsplit=1)[0][:120]
        raise UserError(f"{path} is not a checkpoint that PyTorch can read safely ({reason}). {remedy}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict.")
    return content


def _state_dict(path: Path) -> Mapping[str, Any]:
    """State dict of a checkpoint: its entry ``model``, or all of it."""
    content = _read(path)
    weights = content.get("model", content)
    if not isinstance(weights, Mapping):
        raise UserError(f"{path} holds a {type(weights).__name__} as 'model', not a state dict.")
    return weights


def _misfits(weights: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """One line per parameter that is missing, unexpected, or of another shape or type."""
    lines = [f"  missing: {name}" for name in expected if name not in weights]
    lines += [f"  not in the network: {name}" for name in weights if name not in expected]
    for name in filter(weights.__contains__, expected):
        value, shape = weights[name], tuple(expected[name].shape)
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
            found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            lines.append(f"  {name}: {found} in the file, {shape} in the network")
        elif value.is_complex() != expected[name].is_complex():
            lines.append(f"  {name}: {value.dtype} in the file, {expected[name].dtype} in the network")
    return lines
