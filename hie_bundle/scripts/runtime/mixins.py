"""Recipes shipped with the bundle, by name: config files that override ``train.yaml`` or ``inference.yaml``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES: dict[str, tuple[str, ...]] = {
    "paper": (),
    "strong": ("strong",),
    "strong_cpu": ("strong", "strong_cpu"),
}


def bundle_version() -> str:
    """The version in ``metadata.json``."""
    return str(json.loads((CONFIGS / "metadata.json").read_text(encoding="utf-8"))["version"])


def mixins(recipe: str | Sequence[str | Path]) -> list[Path]:
    """The config files of a recipe: one of :data:`RECIPES`, or a list (also comma-separated) of the bundle's configs
    and of other files.

    Raises:
        UserError: a file does not exist.
    """
    names = RECIPES.get(recipe, recipe.split(",")) if isinstance(recipe, str) else recipe
    files = []
    for name in map(str, names):
        known = CONFIGS / f"{name}.yaml"
        file = known if known.is_file() else Path(name)
        if not file.is_file():
            raise UserError(f"There is no recipe '{name}'; choose one of {', '.join(RECIPES)}, or name config files.")
        files.append(file)
    return files
