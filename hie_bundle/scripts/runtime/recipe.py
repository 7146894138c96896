"""Recipe of a network: stored with the weights, and compared when the weights are used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from .conditions import differences
from .errors import UserError
from .literals import plain
from .workflow import running_workflow

# the parts of a recipe that weights depend on: preprocessing and network
PARTS = ("in_channels", "input_size", "transforms", "network_def")
# values without effect after training
_IRRELEVANT = re.compile(r"(^|#)(limits|loaded|allow_missing_keys|prior|drop\w*)(#|$)")
_REFERENCE = re.compile(r"@([A-Za-z]\w*(?:(?:#|::)\w+)*)")

# transforms in version 0.10, and their present class
_FORMER = {"$lambda image: torch.nan_to_num(image) * (image[:1] > 0)": "scripts.transforms.ZeroBackgroundd"}

Recipe = Mapping[str, Any]


def describe(workflow: ConfigWorkflow | None = None) -> Recipe | None:
    """Recipe of the running workflow; None without a workflow, to skip recording and comparison."""
    workflow = workflow or running_workflow()  # configs of version 0.9 pass it
    return None if workflow is None else recipe_of(workflow.parser)


def recipe_of(parser: ConfigParser) -> Recipe:
    """Recipe of a config, unresolved: its :data:`PARTS` and everything they refer to, by id."""
    found: dict[str, Any] = {}
    names = [part for part in PARTS if part in parser]
    while names:
        name = names.pop()
        if name in found or _IRRELEVANT.search(name) or name not in parser:
            continue
        found[name] = json.loads(json.dumps(parser[name], default=str))
        names += references(found[name])
    return dict(sorted(found.items()))


def refuse_other_recipe(trained: Recipe | None, here: Recipe | None, owner: str, remedy: str) -> None:
    """Check that weights and config have the same recipe.

    Args:
        trained: recipe of the weights; None if unknown.
        here: recipe of the config; None if unknown.
        owner: of ``trained``, for the message, which ends with ``remedy``.

    Raises:
        UserError: lists every difference.
    """
    if trained is None or here is None or same_recipe(trained, here):
        return
    before, now = _renewed(trained), _renewed(here)
    if not all(isinstance(stage, Mapping) for one in (before, now) for stage in one.get("transforms", {}).values()):
        for recipe in (before, now):  # weights before 0.10 have unnamed transforms
            recipe["transforms"] = {name: _listed(stage) for name, stage in recipe.get("transforms", {}).items()}
    lines = [f"  {name}: {old} in the training, {new} here"
             for name, (old, new) in differences(before, now, _IRRELEVANT).items()]  # fmt: skip
    raise UserError(f"{owner} was trained with another recipe:\n" + "\n".join(lines) + f"\n{remedy}")


def same_recipe(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes are equal after references are resolved."""
    return _resolved(_renewed(one)) == _resolved(_renewed(other))


def references(content: Any) -> Iterator[str]:
    """Yield the ids that a part of a config refers to, with ``#`` between levels; skip irrelevant values."""
    if isinstance(content, dict):
        content = [value for name, value in content.items() if not _IRRELEVANT.search(name)]
    if isinstance(content, list):
        for value in content:
            yield from references(value)
    elif isinstance(content, str) and content[:1] in ("@", "$"):
        yield from (found.replace("::", "#") for found in _REFERENCE.findall(content))


def _renewed(content: Any) -> Any:
    if isinstance(content, Mapping):
        if content.get("func") in _FORMER:
            return {"_target_": _FORMER[content["func"]], "keys": content["keys"]}
        return {name: _renewed(value) for name, value in content.items()}
    return [_renewed(value) for value in content] if isinstance(content, list) else plain(content)


def _resolved(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe with references replaced by their values."""

    def resolve(content: Any) -> Any:
        content = _listed(content)
        if isinstance(content, dict):
            parts = {name: resolve(value) for name, value in content.items() if not _IRRELEVANT.search(name)}
            target = str(parts.get("_target_"))  # compared without module: classes of the bundle may move
            return parts | {"_target_": target.rpartition(".")[2]} if target.startswith("scripts.") else parts
        if isinstance(content, list):
            return [resolve(value) for value in content]
        if not isinstance(content, str) or content[:1] not in ("@", "$"):
            return content
        whole = _REFERENCE.fullmatch(content)
        if whole and whole[1].replace("::", "#") in recipe:
            return resolve(recipe[whole[1].replace("::", "#")])
        return _REFERENCE.sub(lambda match: json.dumps(resolve(recipe.get(match[1], match[0][1:]))), content)

    return {part: resolve(recipe[part]) for part in PARTS if part in recipe}


def _listed(content: Any) -> Any:
    """Named transforms as a list, as before version 0.10, without disabled ones."""
    named = isinstance(content, dict) and "_target_" not in content and content.values()
    if named and all(isinstance(value, dict) and "_target_" in value for value in named):
        content = list(named)
    if isinstance(content, list):
        return [one for one in content if not (isinstance(one, dict) and one.get("_disabled_") is True)]
    return content
