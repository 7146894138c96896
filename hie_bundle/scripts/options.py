"""Options before anything starts: one that nobody reads, or with a value that is not allowed, is refused by name."""

from __future__ import annotations

import difflib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from .errors import UserError
from .recipe import references

_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # by libyaml, where PyYAML was built with it

__all__ = ["OPTIONS", "refuse_unknown"]


@dataclass(frozen=True)
class Number:
    """A finite number.

    Attributes:
        least: the smallest that is allowed.
        most: the largest.
        whole: no fractions.
        above: ``least`` itself is not allowed.
        below: ``most`` itself is not allowed.
        null: None is allowed, too.
        also: words that are allowed, too.
    """

    least: float = -math.inf
    most: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    null: bool = False
    also: tuple[str, ...] = ()

    def read(self, value: Any) -> Any:
        """The value as it is used.

        Raises:
            ValueError: when it is not allowed.
        """
        if (value is None and self.null) or (isinstance(value, str) and value in self.also):
            return value
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise ValueError
        if self.whole and value != int(value):
            raise ValueError
        if not self.least <= value <= self.most:
            raise ValueError
        if (self.above and value == self.least) or (self.below and value == self.most):
            raise ValueError
        return int(value) if self.whole else value

    def __str__(self) -> str:
        text = "a whole number" if self.whole else "a number"
        if self.least == self.most:
            text = f"{self.least:g}"
        elif self.least > -math.inf and self.most < math.inf:
            text += f" {'above' if self.above else 'from'} {self.least:g}"
            text += f"{' and below' if self.below else ' to'} {self.most:g}"
        elif self.least > -math.inf:
            text += f" above {self.least:g}" if self.above else f" from {self.least:g} on"
        return text + "".join(f", or {word}" for word in (*self.also, *(["null"] if self.null else [])))


@dataclass(frozen=True)
class Numbers:
    """A list of numbers.

    Attributes:
        of: what each of them may be.
        count: how many; any number of them if None.
        each_once: none stands twice.
        null: None is allowed, too.
    """

    of: Number
    count: int | None = None
    each_once: bool = False
    null: bool = False

    def read(self, value: Any) -> Any:
        """See :meth:`Number.read`."""
        if value is None and self.null:
            return value
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError
        values = [self.of.read(one) for one in value]
        if self.count not in (None, len(values)) or (self.each_once and len(set(values)) < len(values)):
            raise ValueError
        return values

    def __str__(self) -> str:
        text = f"a list of {self.count or 'any'} numbers, each {self.of}"
        return text + (", none twice" if self.each_once else "") + (", or null" if self.null else "")


@dataclass(frozen=True)
class Flag:
    """True or false; the words, too, which a shell passes as texts, of which every one would count as true.

    Attributes:
        also: words that are allowed, too.
    """

    also: tuple[str, ...] = ()

    def read(self, value: Any) -> bool | str:
        """See :meth:`Number.read`."""
        if isinstance(value, bool) or value in self.also:
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise ValueError

    def __str__(self) -> str:
        return " or ".join(("true", "false", *self.also))


@dataclass(frozen=True)
class Text:
    """A text, such as a path.

    Attributes:
        path: it is one, and no longer than the file system takes.
        null: None is allowed, too.
        several: a list of them is allowed, too.
        of: those that are allowed; empty: any.
    """

    path: bool = False
    null: bool = False
    several: bool = False
    of: tuple[str, ...] = ()

    def read(self, value: Any) -> Any:
        """See :meth:`Number.read`."""
        if self.several and isinstance(value, list | tuple) and value:
            return [Text(self.path).read(one) for one in value]
        if value is None and self.null:
            return value
        if not isinstance(value, str | os.PathLike) or (self.of and value not in self.of):
            raise ValueError
        if self.path:
            try:
                Path(value).lstat()  # which also refuses what no path may contain
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    raise ValueError from error
        return value

    def __str__(self) -> str:
        text = "a path" if self.path else " or ".join(self.of) or "a text"
        return text + (", or a list of them" if self.several else "") + (", or null" if self.null else "")


class Device:
    """What PyTorch calls a device, and this machine has."""

    def read(self, value: Any) -> Any:
        """See :meth:`Number.read`."""
        try:
            device = torch.device(value)
        except (RuntimeError, TypeError) as error:
            raise ValueError from error
        if device.type not in ("cpu", "cuda", "mps"):
            raise ValueError
        if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
            raise ValueError
        return value

    def __str__(self) -> str:
        count = torch.cuda.device_count()
        return "cpu" + (f" or cuda:0 to cuda:{count - 1}" if count else "; this machine has no CUDA device")


_COUNT, _SHARE, _ABOVE = Number(1, whole=True), Number(0, 1), Number(0, above=True)
_FROM_0 = Number(0, whole=True)
# what the values at the top of the configs may be; one that is computed ($…) or refers to another (@…) is not looked at
OPTIONS: dict[str, Number | Numbers | Flag | Text | Device] = {
    **dict.fromkeys(("dataset_dir", "ckpt_dir", "bundle_root"), Text(path=True)),
    **dict.fromkeys(("output_dir", "datalist", "anonymise_ids", "init_weights"), Text(path=True, null=True)),
    **dict.fromkeys(("predictions_dir", "threshold_from"), Text(path=True, null=True)),
    "ckpt_path": Text(path=True, several=True),
    "patient_pattern": Text(null=True),
    **dict.fromkeys(("loss_name", "augmentation", "training_precision", "precision"), Text()),
    "label_mode": Text(of=("nearest-exact", "nearest", "trilinear", "area")),
    "on_nonfinite": Text(),
    "device": Device(),
    **dict.fromkeys(("amp", "cudnn_benchmark", "progress", "verbose", "overwrite"), Flag()),
    **dict.fromkeys(("other_recipe", "sync_batch_norm", "labels", "limit_to_brain"), Flag()),
    "resume": Flag(also=("force",)),
    **dict.fromkeys(("epochs", "steps", "batch_size", "val_interval", "patience"), _COUNT),
    **dict.fromkeys(("steps_per_epoch", "validations"), _COUNT),
    **dict.fromkeys(("in_channels", "parallel", "tries"), _COUNT),
    **dict.fromkeys(("seed", "num_train", "num_val", "num_test", "num_healthy", "num_cases"), _FROM_0),
    "rank": Number(0, 0, whole=True),  # of several processes each computes its own
    "num_workers": Number(0, 256, whole=True, null=True),
    "threads": Number(1, whole=True, null=True),
    "fold": Number(0, whole=True, null=True),
    "num_folds": Number(2, whole=True, null=True),
    "inner_folds": Number(2, whole=True, null=True, also=("auto",)),
    **dict.fromkeys(
        (
            "cache_rate",
            "threshold",
            "voxelwise_weight",
            "augmentation_probability",
            "lesion_overlap",
            "artefact_probability",
            "lesion_share",
            "flip_probability",
            "zadc_dropout",
        ),
        _SHARE,
    ),
    "learning_rate": Number(0, 10, above=True),
    "weight_decay": Number(0, 10),
    "lr_gamma": Number(0, 1, above=True),
    "l1_weight": Number(0, 10),
    "clip_norm": _ABOVE,
    "prior": Number(0, 1, above=True, below=True, null=True),
    "voxelwise_level": Number(0.01, 0.99),
    "tolerance_mm": Number(0),
    "baseline_threshold": Number(),
    **dict.fromkeys(("timeout_minutes", "timeout_s", "fine_mm", "atlas_step_mm"), _ABOVE),
    **dict.fromkeys(("pause_s", "registration_mm"), Number(0)),
    **dict.fromkeys(("smallest_lesion_mm3", "prompt_smallest_mm3"), Number(0)),
    "prompt_below": Number(),
    "prompt_margin": _FROM_0,
    "sam2_image_size": _COUNT,
    "loading_timeout_s": Number(0, 86400, above=True),
    "noise": Number(0, null=True),
    "noise_floor": Number(0),
    "adc_scale": Number(0, above=True, null=True),
    "deformable": Flag(),
    **dict.fromkeys(("least_std", "clip"), _ABOVE),
    "smoothing_mm": Number(0),
    "b_values": Numbers(Number(0), null=True),
    "series": Numbers(_FROM_0, each_once=True),
    "spatial_size": Numbers(_COUNT, 3, null=True),
    **dict.fromkeys(("input_size", "patch_size"), Numbers(_COUNT, 3)),
    "spacing_mm": Numbers(_ABOVE, 3),
    "rotation": Numbers(Number(0), 3),
    **dict.fromkeys(("scaling", "intensity_factor"), Number(0, 0.9)),
    "intensity_shift": Number(0),
    "features": Numbers(_COUNT),
    "dropout": Numbers(Number(0, 1, below=True)),
    "flips": Numbers(Number(0, 2, whole=True), each_once=True),
    **dict.fromkeys(("adc_window", "zadc_window", "prompt_window"), Numbers(Number(), 2, each_once=True)),
}


def refuse_unknown(workflow: ConfigWorkflow | None) -> None:
    """Stop where a value at the top of a config, or of the command line, is none that a config of the bundle has.

    And where it is none that :data:`OPTIONS` allows; ``false`` as a text becomes what it means. A mixin may bring
    values of its own, as long as the config refers to them (``@name``), and sections.

    Args:
        workflow: that runs the config; None for tools that have none.

    Raises:
        UserError: naming every such value, and the nearest one that there is, or what is allowed.
    """
    if workflow is None:
        return
    config: Mapping[str, Any] = workflow.parser.get()
    own: dict[str, list[Any]] = {}  # what the configs of the bundle have under each id
    for file in workflow.config_root_path.glob("*.yaml"):
        for name, value in _ids(yaml.load(file.read_text(encoding="utf-8"), _FAST)):
            own.setdefault(name, []).append(value)
    known = own.keys() | {str(workflow.init_id), str(workflow.run_id), str(workflow.final_id)}
    named = set(references("$" + json.dumps(config, default=str)))
    lines = []
    for name in _unread(config, known, named):
        near = difflib.get_close_matches(name, sorted(one for one in known if one.count("#") == name.count("#")), 1)
        lines.append(f"  --{name}: no config has such a value" + (f"; did you mean --{near[0]}?" if near else "."))
    if lines:
        raise UserError("There are options that nothing would read; nothing was started.\n" + "\n".join(lines))
    lines = [
        f"  --{name} {value}: a part of the config; a section, or an expression ($…)"
        for name, value in config.items()
        if _is_plain(value) and (name == "network" or any(map(_is_part, own.get(name, []))))
        if name not in OPTIONS and not any(map(_is_plain, own[name]))
        if (name, "variants" in config) != ("losses", True)  # the name of a study's --compare before 0.3
    ]
    _refuse_values(workflow.parser, config, lines)


def _ids(content: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Each value with its id, of all levels."""
    for name, value in content.items():
        id = f"{above}{str(name).lstrip('+')}"
        levels = id.split("#")
        yield from (("#".join(levels[:count]), {}) for count in range(1, len(levels)))
        yield id, value
        if isinstance(value, Mapping):
            yield from _ids(value, f"{id}#")


def _unread(content: Mapping[str, Any], known: Set[str], named: Set[str], above: str = "") -> Iterator[str]:
    """The ids of what nobody can want: no config has them, and nothing refers to them or to what they are part of.

    Components may be a mixin's own, and sections at the top; arguments of components are for these to judge, and a
    section that nothing refers into is for what reads it whole (a study's variants).
    """
    for name, value in content.items():
        id = f"{above}{name}"
        section = isinstance(value, Mapping)
        if str(name).startswith("_") or id in named or (section and "_target_" in value):
            continue
        referred = any(other.startswith(f"{id}#") for other in named)
        if id not in known and not referred and not (section and not above):
            yield id
        elif section and referred:
            yield from _unread(value, known, named, f"{id}#")


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(one, Mapping) for one in value))


def _is_plain(value: Any) -> bool:
    """Whether a value is no part of a config: a number, a word; null is everything's."""
    return not (value is None or isinstance(value, Mapping | list | tuple) or _is_computed(value))


def _refuse_values(parser: ConfigParser, config: Mapping[str, Any], lines: list[str]) -> None:
    """Stop where values are not allowed; put what is meant in the place of texts and of whole numbers like 1e2.

    Args:
        parser: of the config.
        config: what it holds.
        lines: what is not allowed already.
    """
    for name, allowed in OPTIONS.items():
        if name not in config or _is_computed(config[name]):
            continue
        try:
            value = allowed.read(config[name])
            if value is None and name == "output_dir" and "run_folder" in config:  # elsewhere a place of its own
                raise ValueError
        except ValueError:
            lines.append(f"  --{name} {config[name]}: {allowed}")
            continue
        if value is not config[name]:
            parser.get()[name] = value
            if name in parser.ref_resolver.items:  # setting it by the parser would forget what was resolved so far
                parser.ref_resolver.items[name].update_config(value)
    if lines:
        raise UserError("There are options with values that are not allowed; nothing was started.\n" + "\n".join(lines))


def _is_computed(value: Any) -> bool:
    return (isinstance(value, Mapping) and "_target_" in value) or (
        isinstance(value, str) and value[:1] in ("$", "@", "%")
    )
