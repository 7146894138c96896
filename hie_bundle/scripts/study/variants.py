"""What is compared: variants of one config, each a name and the values it sets; their merged configs."""

from __future__ import annotations

import difflib
import json
import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.scripts import run as bundle_run
from monai.bundle.scripts import update_kwargs

from ..errors import UserError, first_cause, user_error

__all__ = ["PUBLISHED", "Source", "Variant", "invocation", "read_variants", "rehearse", "select", "variant_configs"]

PUBLISHED = ("dice", "msd_mm", "nsd", "epochs")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_RUN_ARGUMENTS = ("run_id", "init_id", "final_id", "meta_file", "logging_file", "tracking")  # of `monai.bundle run`
# what a variant must not set: it would see other data, or the study itself sets it
_RESERVED = (
    "bundle_root", "dataset_dir", "datalist", "output_dir", "ckpt_dir", "ckpt_path", "seed", "fold", "num_folds",
    "split", "resume", "variants", "seeds", "train#dataset#data", "validate#dataset",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A config as the user put it together.

    Attributes:
        files: merged in this order.
        overrides: values set on top, by id, as on the command line.
    """

    files: tuple[str, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def parser(self, extra: Sequence[str] = ()) -> ConfigParser:
        """The merged files before macros are expanded, without the overrides; ``extra`` ones stand after the first."""
        parser = ConfigParser()
        parser.read_config([self.files[0], *extra, *self.files[1:]])
        return parser


@dataclass(frozen=True)
class Variant:
    """One of the things that are compared.

    Attributes:
        name: of its folder.
        label: for people.
        overrides: the values it sets, by id.
        published: figures that someone else published for it, those of ``dice``, ``msd_mm`` (mm), ``nsd`` and
            ``epochs`` that there are.
    """

    name: str
    label: str
    overrides: Mapping[str, Any]
    published: Mapping[str, float]


def invocation() -> Source:
    """The config files and values that the running ``python -m monai.bundle run`` was given.

    MONAI keeps neither: its parser holds the merged config with its macros expanded, in which a variant's value would
    no longer reach the places that repeat it. Its ``run`` is still on the stack and knows both.

    Raises:
        RuntimeError: when there is no such command.
    """
    for frame, _ in traceback.walk_stack(None):
        if frame.f_code is bundle_run.__code__:
            given = frame.f_locals
            arguments = update_kwargs(
                args=given["args_file"], config_file=given["config_file"], **given["override"]
            )  # as `run` merges them itself
            files = arguments.pop("config_file")
            for name in (*_RUN_ARGUMENTS, "losses"):  # --losses chooses variants, the config's losses stay
                arguments.pop(name, None)
            if isinstance(files, str):
                files = [files] if Path(files).is_file() else files.split(",")
            return Source(tuple(str(file) for file in files), arguments)
    raise RuntimeError("the study starts from `python -m monai.bundle run`, or from a Source.")


def read_variants(content: Any) -> list[Variant]:
    """Variants from the list in a config.

    Args:
        content: mappings with ``name`` and ``overrides``, perhaps ``label`` and ``published``.

    Raises:
        UserError: when it is no such list, or a name cannot be that of a folder, or stands twice.
    """
    if not isinstance(content, list) or not content:
        raise UserError("variants must be a list of at least one mapping with a name and overrides.")
    variants = []
    for place, entry in enumerate(content):
        where = f"variants: number {place + 1}"
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise UserError(f"{where} is not a mapping with a name.")
        if unknown := set(entry) - {"name", "label", "overrides", "published"}:
            raise UserError(f"{where} has unknown keys: {', '.join(sorted(map(str, unknown)))}.")
        name = str(entry["name"])
        if not _NAME.fullmatch(name):
            raise UserError(f"{where}: the name {name!r} cannot be a folder's; use letters, digits and . _ + -")
        overrides, published = entry.get("overrides") or {}, entry.get("published") or {}
        if not isinstance(overrides, Mapping) or not isinstance(published, Mapping):
            raise UserError(f"variant {name}: overrides and published must be mappings.")
        if unknown := set(published) - set(PUBLISHED):
            raise UserError(f"variant {name}: published knows only {', '.join(PUBLISHED)}; not {', '.join(unknown)}.")
        for key in overrides:
            if taken := next((r for r in _RESERVED if str(key).replace("::", "#").startswith(r + "#") or key == r), ""):
                raise UserError(
                    f"variant {name} sets {key}; {taken} must be the same for all variants, or they would not be "
                    "comparable."
                )
        figures = {key: float(value) for key, value in published.items()}
        variants.append(Variant(name, str(entry.get("label", name)), dict(overrides), figures))
    names = [variant.name.lower() for variant in variants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"variants: several are called {', '.join(sorted(twice))}.")
    return variants


def select(variants: Sequence[Variant], losses: Any) -> list[Variant]:
    """The variants that were asked for, in the order of the list.

    Args:
        variants: to choose from.
        losses: ``all``, or names as a text with commas or as a sequence. A mapping, which the config's own ``losses``
            are, counts as ``all``: nothing was asked for.

    Raises:
        UserError: an unknown name, or none.
    """
    if isinstance(losses, Mapping):
        return list(variants)
    wanted = losses.split(",") if isinstance(losses, str) else losses
    wanted = [str(name).strip() for name in (wanted if isinstance(wanted, list | tuple) else [wanted])]
    names = [variant.name for variant in variants]
    if wanted == ["all"]:
        return list(variants)
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise UserError(f"--losses: there is no variant {name!r}{hint} Choose from: {', '.join(names)}; or all.")
    return [variant for variant in variants if variant.name in wanted]


def variant_configs(
    source: Source, variant: Variant, evaluation_configs: Sequence[str]
) -> tuple[ConfigParser, ConfigParser]:
    """The merged configs of one variant, of its training and of its evaluation.

    A value is set in both, or where its key exists: those of the evaluation alone are unknown to the training.

    Args:
        source: what all variants share.
        variant: what this one sets.
        evaluation_configs: files that, after the first, turn a training into an evaluation.

    Raises:
        UserError: when a key exists in neither.
    """
    parsers = source.parser(), source.parser(evaluation_configs)
    given = [(f"--{name}", name, value) for name, value in source.overrides.items()]
    given += [(f"variant {variant.name}: {name}", name, value) for name, value in variant.overrides.items()]
    for what, name, value in given:
        name = name.replace("::", "#")
        takers = [parser for parser in parsers if _takes(parser, name)]
        if not takers:
            raise UserError(f"{what}: the config has no such key{_hint(parsers[1], name)}")
        for parser in takers:
            parser[name] = _copy(value)
    return parsers


def rehearse(config: ConfigParser, variant: Variant) -> None:
    """Make a variant's loss, network and augmentation once, so that a mistake shows before others have trained.

    Raises:
        UserError: when that fails, with the first cause.
    """
    parser = ConfigParser(_copy(config.get()))
    for part in ("loss", "network_def", "train#random_transforms"):
        try:
            parser.get_parsed_content(part)
        except Exception as error:
            cause = user_error(error) or first_cause(error)
            raise UserError(f"variant {variant.name}: its {part} cannot be made: {cause}") from error


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
