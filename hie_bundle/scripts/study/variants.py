"""Variants of a config (a name and overrides) and their merged configs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..runtime.errors import UserError, choose, did_you_mean, first_cause, user_error

# published values of a variant, with details missing in the paper
PUBLISHED = {"dice": "", "msd": "unit not stated, probably voxels", "nsd": "tolerance not stated", "epochs": ""}
# keys that a variant must not set: the study sets them, or they choose the data
_RESERVED = (
    "bundle_root", "dataset_dir", "datalist", "output_dir", "ckpt_dir", "ckpt_path", "seed", "fold", "num_folds",
    "split", "resume", "overwrite", "variants", "seeds", "cases", "train#dataset#data", "validate#dataset",
    "evaluate#dataset", "evaluate#cases",
)  # fmt: skip


@dataclass(frozen=True, config={"extra": "forbid", "coerce_numbers_to_str": True})
class Variant:
    """A variant of a config."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]  # of its folder
    label: str = ""  # in tables; the name by default
    overrides: Mapping[str, Any] = Field(default_factory=dict)  # values by id, applied after the mixins
    published: Mapping[str, float] = Field(default_factory=dict)  # published values, with keys of `PUBLISHED`
    mixins: Sequence[str] = ()  # files, or names of configs of the bundle

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        _refuse_reserved(self.name, self.overrides)
        if unknown := set(self.published) - set(PUBLISHED):
            raise UserError(f"published takes only {', '.join(PUBLISHED)}, not {', '.join(unknown)}.")


def read_variants(content: Any) -> list[Variant]:
    """Variants from the list in a config.

    Raises:
        UserError: for another type, an invalid or repeated name, or a reserved key.
    """
    if not content:
        raise UserError("variants must be a list of at least one mapping with a name and overrides.")
    try:
        variants = TypeAdapter(list[Variant]).validate_python(content)
    except ValidationError as error:
        lines = ["#".join(map(str, ["variants", *one["loc"]])) + f": {one['msg']}" for one in error.errors()]
        raise UserError("\n".join(lines)) from error
    for what in ("name", "label"):
        given = [getattr(variant, what).lower() for variant in variants]
        if twice := {one for one in given if given.count(one) > 1}:
            raise UserError(f"variants: these {what}s occur twice: {', '.join(sorted(twice))}; rename one.")
    return variants


def listed_names(value: Any) -> list[str]:
    """A list from the command line: ``a,b`` as a string, a sequence, or one value."""
    values = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    return [str(one).strip() for one in values]


def select(variants: Sequence[Variant], compare: Any) -> list[Variant]:
    """The variants named in ``compare`` (``all``, or several names), in the order of the list.

    Raises:
        UserError: for an unknown name.
    """
    wanted, names = listed_names(compare), [variant.name for variant in variants]
    if wanted == ["all"]:
        return list(variants)
    for name in wanted:
        if name not in names:
            there = f"Choose from: {', '.join(names)}; or all."
            hint = did_you_mean(name, {known: known for known in names})
            raise UserError(f"--compare: there is no variant {name!r}{hint} {there}")
    return [variant for variant in variants if variant.name in wanted]


def variant_configs(
    config: Mapping[str, Any], variant: Variant, evaluation_config: str | Path
) -> tuple[ConfigParser, ConfigParser]:
    """The configs of a variant's training and evaluation.

    The mixins are merged into ``config``, then the overrides. An override applies to each config that has its key.
    Mixins are also searched in the folder of ``evaluation_config``.

    Raises:
        UserError: when a key exists in neither config, or a mixin is missing or sets a reserved key.
    """
    training = ConfigParser(_copy(config))
    evaluation = ConfigParser({**ConfigParser.load_config_file(str(evaluation_config)), **_copy(config)})
    folder = Path(evaluation_config).parent
    for file in variant.mixins:
        path = next((path for path in (Path(file), folder / file) if path.is_file()), None)
        if path is None:
            raise UserError(f"variant {variant.name}: there is no mixin {file}, here or in {folder}.")
        content = ConfigParser.load_config_file(str(path))
        _refuse_reserved(variant.name, content)
        for parser in (training, evaluation):
            for name, value in content.items():
                merge_kv(parser, name, _copy(value))
    for name, value in variant.overrides.items():
        name = name.replace("::", "#")
        accepting = [parser for parser in (training, evaluation) if _accepts(parser, name)]
        if not accepting:
            parent, _, last = name.rpartition("#")
            siblings = evaluation.get(parent, None)
            names = map(str, siblings) if isinstance(siblings, Mapping) else ()
            hint = did_you_mean(last, {known: f"{parent}#{known}".lstrip("#") for known in names})
            raise UserError(f"variant {variant.name}: {name}: the config has no such key{hint}")
        for parser in accepting:
            parser[name] = _copy(value)
    return training, evaluation


def rehearse(config: ConfigParser, variant: Variant) -> None:
    """Create a variant's loss, network and transforms once, to find mistakes before any training.

    Raises:
        UserError: when one cannot be created, with the first cause.
    """
    parser = ConfigParser(_copy(config.get()))
    for part in ("loss", "network_def", "transforms", "augment"):
        try:
            if part == "loss" and isinstance(losses := parser.get("losses"), Mapping):
                choose(losses, parser.get("loss_name"), "loss_name")
            parser.get_parsed_content(part)
        except Exception as error:
            cause = user_error(error) or first_cause(error)
            raise UserError(f"variant {variant.name}: its {part} cannot be created: {cause}") from error


def _refuse_reserved(variant: str, values: Mapping[str, Any]) -> None:
    for key in values:
        name = str(key).lstrip("+").replace("::", "#")
        if taken := next((r for r in _RESERVED if name == r or name.startswith(r + "#")), ""):
            raise UserError(
                f"variant {variant} sets {key}; {taken} must be the same for all variants, so that they are comparable."
            )


def _accepts(parser: ConfigParser, name: str) -> bool:
    """Whether the id exists, or would be a new argument of a component."""
    parent = parser.get(name.rpartition("#")[0], None) if "#" in name else None
    return name in parser or (isinstance(parent, Mapping) and "_target_" in parent)


def _copy(content: Any) -> Any:
    """A deep copy with tuples as lists, as read from a file."""
    return json.loads(json.dumps(content))
