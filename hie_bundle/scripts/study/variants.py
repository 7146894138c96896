"""What is compared: variants of one config, each a name and the values it sets; their merged configs."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from ..runtime.errors import UserError, first_cause, user_error

__all__ = ["PUBLISHED", "Variant", "read_variants", "rehearse", "select", "variant_configs"]

# the figures that a variant may bring, each with what its publication leaves open
PUBLISHED = {"dice": "", "msd": "unit not stated, probably voxels", "nsd": "tolerance not stated", "epochs": ""}
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
# what a variant must not set: it would see other data, or the study itself sets it
_RESERVED = (
    "bundle_root", "dataset_dir", "datalist", "output_dir", "ckpt_dir", "ckpt_path", "seed", "fold", "num_folds",
    "split", "resume", "overwrite", "variants", "seeds", "cases", "train#dataset#data", "validate#dataset",
    "evaluate#dataset", "evaluate#cases",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One of the things that are compared.

    Attributes:
        name: of its folder.
        label: for people.
        overrides: the values it sets, by id.
        published: figures that someone else published for it, those of ``dice``, ``msd``, ``nsd`` and
            ``epochs`` that there are.
        mixins: configs that it puts last before its values, as on the command line: files, or names of configs of the
            bundle.
    """

    name: str
    label: str
    overrides: Mapping[str, Any]
    published: Mapping[str, float]
    mixins: Sequence[str] = ()


def read_variants(content: Any) -> list[Variant]:
    """Variants from the list in a config.

    Args:
        content: mappings with ``name``, perhaps ``label``, ``mixins``, ``overrides`` and ``published``.

    Raises:
        UserError: when it is another type, or a name is not a folder name or is repeated.
    """
    if not isinstance(content, list) or not content:
        raise UserError("variants must be a list of at least one mapping with a name and overrides.")
    variants = []
    for place, entry in enumerate(content):
        where = f"variants: number {place + 1}"
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise UserError(f"{where} is not a mapping with a name.")
        if unknown := set(entry) - {"name", "label", "mixins", "overrides", "published"}:
            raise UserError(f"{where} has unknown keys: {', '.join(sorted(map(str, unknown)))}.")
        name = str(entry["name"])
        if not _NAME.fullmatch(name):
            raise UserError(f"{where}: the name {name!r} cannot be a folder's; use letters, digits and . _ + -")
        overrides, published = entry.get("overrides") or {}, entry.get("published") or {}
        if not isinstance(overrides, Mapping) or not isinstance(published, Mapping):
            raise UserError(f"variant {name}: overrides and published must be mappings.")
        if unknown := set(published) - set(PUBLISHED):
            raise UserError(f"variant {name}: published knows only {', '.join(PUBLISHED)}; not {', '.join(unknown)}.")
        mixins = entry.get("mixins") or []
        if not isinstance(mixins, list) or not all(isinstance(file, str) for file in mixins):
            raise UserError(f"variant {name}: mixins must be a list of files.")
        _refuse_reserved(name, overrides)
        figures = {key: float(value) for key, value in published.items()}
        variants.append(Variant(name, str(entry.get("label", name)), dict(overrides), figures, tuple(mixins)))
    names = [variant.name.lower() for variant in variants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"variants: several are called {', '.join(sorted(twice))}.")
    return variants


def select(variants: Sequence[Variant], compare: Any) -> list[Variant]:
    """The variants that were asked for, in the order of the list.

    Args:
        variants: to choose from.
        compare: ``all``, or names as a text with commas or as a sequence.

    Raises:
        UserError: an unknown name, or none.
    """
    wanted = compare.split(",") if isinstance(compare, str) else compare
    wanted = [str(name).strip() for name in (wanted if isinstance(wanted, list | tuple) else [wanted])]
    names = [variant.name for variant in variants]
    if wanted == ["all"]:
        return list(variants)
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(f"--compare: there is no variant {name!r}{hint} Choose from: {', '.join(names)}; or all.")
    return [variant for variant in variants if variant.name in wanted]


def variant_configs(
    config: Mapping[str, Any], variant: Variant, evaluation_config: str | Path
) -> tuple[ConfigParser, ConfigParser]:
    """The configs of one variant, of its training and of its evaluation.

    A value is set in both, or where its key exists: those of the evaluation alone are unknown to the training.

    Args:
        config: what all variants share: the merged config of the study, with the values of the command line.
        variant: what this one sets; its mixins' values go over those of the command line, its own over the mixins'.
        evaluation_config: adds an evaluation to a training; existing values stay. The same folder has the
            mixins that are named without a folder.

    Raises:
        UserError: when a key exists in neither, a mixin is not there, or sets what all variants share.
    """
    training = ConfigParser(_copy(config))
    evaluation = ConfigParser({**ConfigParser.load_config_file(str(evaluation_config)), **_copy(config)})
    for file in variant.mixins:
        content = _load_mixin(file, variant, Path(evaluation_config).parent)
        for parser in (training, evaluation):
            for name, value in content.items():
                merge_kv(parser, name, _copy(value))
    for name, value in variant.overrides.items():
        name = name.replace("::", "#")
        takers = [parser for parser in (training, evaluation) if _takes(parser, name)]
        if not takers:
            hint = _hint(evaluation, name)
            raise UserError(f"variant {variant.name}: {name}: the config has no such key{hint}")
        for parser in takers:
            parser[name] = _copy(value)
    return training, evaluation


def rehearse(config: ConfigParser, variant: Variant) -> None:
    """Make a variant's loss, network and augmentation once, so that a mistake shows before others have trained.

    Raises:
        UserError: when that fails, with the first cause.
    """
    parser = ConfigParser(_copy(config.get()))
    losses, name = parser.get("losses"), parser.get("loss_name")
    if isinstance(losses, Mapping) and name not in losses:
        raise UserError(
            f"variant {variant.name}: its loss cannot be made: loss_name '{name}' is unknown; choose one of: "
            f"{', '.join(losses)}."
        )
    for part in ("loss", "network_def", "transforms", "augment"):
        try:
            parser.get_parsed_content(part)
        except Exception as error:
            cause = user_error(error) or first_cause(error)
            raise UserError(f"variant {variant.name}: its {part} cannot be made: {cause}") from error


def _refuse_reserved(variant: str, values: Mapping[str, Any]) -> None:
    for key in values:
        name = str(key).lstrip("+").replace("::", "#")
        if taken := next((r for r in _RESERVED if name == r or name.startswith(r + "#")), ""):
            raise UserError(
                f"variant {variant} sets {key}; {taken} must be the same for all variants, or they would not be "
                "comparable."
            )


def _load_mixin(file: str, variant: Variant, folder: Path) -> Mapping[str, Any]:
    paths = [path for path in (Path(file), folder / file) if path.is_file()]
    if not paths:
        raise UserError(f"variant {variant.name}: there is no mixin {file}, here or in {folder}.")
    content = ConfigParser.load_config_file(str(paths[0]))
    _refuse_reserved(variant.name, content)
    return content


def _takes(parser: ConfigParser, name: str) -> bool:
    """Whether a value of this name exists, or would be a new argument of something that is instantiated."""
    parent = parser.get(name.rpartition("#")[0], None) if "#" in name else None
    return name in parser or (isinstance(parent, Mapping) and "_target_" in parent)


def _hint(parser: ConfigParser, name: str) -> str:
    parent, _, last = name.rpartition("#")
    siblings = parser.get(parent, None)
    near = difflib.get_close_matches(last, [str(key) for key in siblings] if isinstance(siblings, Mapping) else [], 1)
    return f"; did you mean {'#'.join(filter(None, [parent, near[0]]))}?" if near else "."


def _copy(content: Any) -> Any:
    """A copy that shares nothing, tuples as lists, as from a file."""
    return json.loads(json.dumps(content))
