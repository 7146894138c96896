"""Options before anything starts: one that nobody reads, or with a value that is not allowed, is refused by name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from .errors import UserError
from .literals import literal, plain
from .option_types import Device, Flag, Kind, Number, Numbers, Text
from .recipe import references

_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # by libyaml, where PyYAML was built with it

__all__ = ["OPTIONS", "refuse_unknown"]

# lists of parts that may be empty: a network that gives probabilities, no resampling, nothing to keep of the brain
_MAY_BE_EMPTY = {"activate", "transforms#grid", "brain"}

_COUNT, _SHARE, _ABOVE = Number(1, whole=True), Number(0, 1), Number(0, above=True)
_FROM_0 = Number(0, whole=True)
# what the values at the top of the configs may be; one that is computed ($…) or refers to another (@…) is not looked at
OPTIONS: dict[str, Kind] = {
    **dict.fromkeys(("dataset_dir", "ckpt_dir", "bundle_root"), Text(path=True)),
    **dict.fromkeys(("output_dir", "datalist", "anonymise_ids", "init_weights"), Text(path=True, null=True)),
    **dict.fromkeys(("predictions_dir", "threshold_from", "output_file", "report_file"), Text(path=True, null=True)),
    **dict.fromkeys(("brain_file", "stripped_file", "adc_file", "adc_source"), Text(path=True, null=True)),
    **dict.fromkeys(("atlas_mean", "atlas_std", "mask_file", "capture_file"), Text(path=True, null=True)),
    "ckpt_path": Text(path=True, several=True),
    "patient_pattern": Text(null=True),
    **dict.fromkeys(("loss_name", "augmentation", "training_precision", "precision"), Text()),
    **dict.fromkeys(("base_url", "dataset_name"), Text()),
    "label_mode": Text(of=("nearest-exact", "nearest", "trilinear", "area")),
    "on_nonfinite": Text(),
    "device": Device(),
    **dict.fromkeys(("amp", "cudnn_benchmark", "progress", "verbose", "overwrite"), Flag()),
    **dict.fromkeys(("other_recipe", "sync_batch_norm", "labels", "limit_to_brain", "secondary_capture"), Flag()),
    "resume": Flag(also=("force",)),
    **dict.fromkeys(("epochs", "steps", "batch_size", "val_interval", "patience"), _COUNT),
    **dict.fromkeys(("steps_per_epoch", "validations"), _COUNT),
    **dict.fromkeys(("in_channels", "parallel", "tries", "least_cases", "feature_size", "max_archive_bytes"), _COUNT),
    **dict.fromkeys(("seed", "num_train", "num_val", "num_test", "num_healthy", "num_cases"), _FROM_0),
    **dict.fromkeys(("first_case", "rounds", "train_seed", "val_seed"), _FROM_0),
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
    **dict.fromkeys(("timeout_minutes", "timeout_s", "fine_mm", "atlas_step_mm", "step_mm"), _ABOVE),
    **dict.fromkeys(("pause_s", "registration_mm", "mirror_sigma_mm"), Number(0)),
    **dict.fromkeys(("lr_power", "region_weight", "boundary_weight"), Number(0)),
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
    **dict.fromkeys(("input_size", "patch_size", "crop_size"), Numbers(_COUNT, 3)),
    "age_days": Numbers(Number(0), 2, null=True),
    "matrix_sizes": Numbers(_COUNT),
    "slice_range": Numbers(_COUNT, 2),
    **dict.fromkeys(("spacing_range_mm", "slice_thickness_range_mm"), Numbers(_ABOVE, 2)),
    "spacing_mm": Numbers(_ABOVE, 3),
    "rotation": Numbers(Number(0), 3),
    **dict.fromkeys(("scaling", "intensity_factor"), Number(0, 0.9)),
    "intensity_shift": Number(0),
    "loaded": Text(several=True),
    "features": Numbers(_COUNT),
    "dropout": Numbers(Number(0, 1, below=True)),
    "flips": Numbers(Number(0, 2, whole=True), each_once=True),
    **dict.fromkeys(("adc_window", "zadc_window", "prompt_window"), Numbers(Number(), 2, each_once=True)),
}


def refuse_unknown(workflow: ConfigWorkflow | None) -> None:
    """Stop where a value at the top of a config, or of the command line, is none that a config of the bundle has.

    And where it is none that :data:`OPTIONS` allows, at the top or in the place of ``@name`` in a component; where a
    number, a flag, a section or a list of parts is none any more. ``false`` as a text becomes what it means. A mixin
    may bring values of its own, as long as the config refers to them (``@name``), and sections.

    Args:
        workflow: that runs the config; None for tools that have none.

    Raises:
        UserError: naming every such value, and the nearest one that there is, or what is allowed.
    """
    if workflow is None:
        return
    config: Mapping[str, Any] = workflow.parser.get()
    own: dict[str, list[Any]] = {}  # what the configs of the bundle have under each id
    components: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}  # and those with the same arguments
    for file in workflow.config_root_path.glob("*.yaml"):
        for name, value in _ids(yaml.load(file.read_text(encoding="utf-8"), _FAST)):
            own.setdefault(name, []).append(value)
            if _is_component(value):
                components.setdefault(_signature(value), []).append(value)
    known = own.keys() | {str(workflow.init_id), str(workflow.run_id), str(workflow.final_id)}
    named = set(references("$" + json.dumps(config, default=str)))
    lines = []
    run_id = str(workflow.run_id)
    if run_id not in workflow.parser and run_id != "run":  # MONAI's own name, which tools have not set
        near = difflib.get_close_matches(run_id, config, 1)
        lines.append(f"  {run_id}: no config has this to run" + (f"; did you mean {near[0]}?" if near else "."))
    for name in _unread(config, known, named):
        near = difflib.get_close_matches(name, sorted(one for one in known if one.count("#") == name.count("#")), 1)
        lines.append(f"  --{name}: no config has such a value" + (f"; did you mean --{near[0]}?" if near else "."))
    if lines:
        raise UserError("There are options that nothing would read; nothing was started.\n" + "\n".join(lines))
    lines = []
    foreign = {"variants"}  # below these ids no place is the bundle's: variants, arguments of other classes
    for name, value in _ids(config):
        above = name.rpartition("#")[0]
        targets = [one["_target_"] for one in own.get(name, []) if _is_component(one)]
        if above in foreign or (_is_component(value) and value["_target_"] not in targets):
            foreign.add(name)
        if above not in foreign and (name, "variants" in config) != ("losses", True):  # --compare before 0.3
            lines += _no_part(name, value, own.get(name, []))
        like = components.get(_signature(value), []) if _is_component(value) else []
        for argument in list(value) if like else ():
            lines += _no_argument(name, value, argument, like)
    _refuse_values(workflow.parser, config, lines)


def _ids(content: Mapping[str, Any] | list[Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Each value with its id, of all levels."""
    for name, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        levels = str(name).lstrip("+").split("#")  # a mixin's key may name a part of a section: transforms#grid
        yield from ((above + "#".join(levels[:count]), {}) for count in range(1, len(levels)))
        id = above + "#".join(levels)
        yield id, value
        if isinstance(value, Mapping | list):
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


def _no_part(name: str, value: Any, own: Sequence[Any]) -> Iterator[str]:
    """What to say where a part of a config (a section, a component, a list of them) is none any more.

    Args:
        name: its id.
        value: what it is now.
        own: what the configs of the bundle have there.
    """
    shapes = {shape for shape in map(_shape, own) if shape}
    if name == "network":  # an expression in all of them
        shapes.add(_SECTION)
    if name in OPTIONS or any(map(_stands_for, own)) or not shapes & {_SECTION, _PARTS}:
        return  # judged as the option
    if name in _MAY_BE_EMPTY and value == []:
        return
    if _shape(value) in {None, *shapes} or (name.endswith("dataset#data") and isinstance(value, list)):
        return  # cases may be handed in
    yield f"  --{name} {value}: a part of the config; {' or '.join(sorted(shapes))}, or an expression ($…)"


def _no_argument(id: str, component: dict[str, Any], name: str, like: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What to say where an argument of a component is none; put what is meant in its place.

    It has to be what the option may be in whose place it stands; in the place of a number or of a flag it has to be
    one. Of any other the component judges.

    Args:
        id: of the component.
        component: as the config has it.
        name: of the argument.
        like: components of the bundle's configs of the same class, with the same arguments. Others are a user's own,
            who may know more of the class than is used here.
    """
    value, own = component[name], [one[name] for one in like]
    if _is_computed(value) or any(type(value) is type(one) and value == one for one in own):
        return
    options = [(OPTIONS[one[name][1:]], one) for one in like if _stands_for(one[name])]
    kinds = [kind for kind, one in options if isinstance(kind, Flag) or _is_version(component, one, name)]
    types = {type(one) for one in own}
    if not kinds and types == {bool} and not isinstance(value, list):  # MONAI's transforms take one for each key, too
        kinds = [Flag()]
    elif not kinds and types and types <= {int, float} and isinstance(value, str | bool):
        kinds = [Number()]
    for kind in kinds:
        try:
            component[name] = kind.read(value)
            return
        except ValueError:
            continue
    if kinds:
        yield f"  --{id}#{name} {value}: {', or '.join(map(str, dict.fromkeys(kinds)))}"


def _is_version(component: Mapping[str, Any], ours: Mapping[str, Any], changed: str) -> bool:
    """Whether a component is one of the bundle's with another value of one argument, so that the option's range holds.

    A library's class takes more than the option (``pos: 2``, ``spatial_size: [64, 64, -1]``), and where other arguments
    differ, too, it is a user's own. The bundle's classes take no more.
    """
    same = all(_as_written(component[name]) == value for name, value in ours.items() if name != changed)
    return same or str(ours["_target_"]).startswith("scripts.")


def _as_written(value: Any) -> Any:
    """As the files have it; MONAI has ``::`` in references, for the ``#`` there."""
    return value.replace("::", "#") if isinstance(value, str) else value


def _stands_for(value: Any) -> bool:
    """Whether it is ``@name`` of an option."""
    return isinstance(value, str) and value[:1] == "@" and value[1:] in OPTIONS


_SECTION, _PARTS, _LIST, _VALUE = "a section", "a list of parts", "a list", "a value"


def _shape(value: Any) -> str | None:
    """What a value is in a config; None of what is computed, and of null, which is everything's."""
    if value is None or (_is_computed(value) and not isinstance(value, Mapping)):
        return None
    if isinstance(value, Mapping):
        return _SECTION
    if not isinstance(value, list | tuple):
        return _VALUE
    if any(map(_is_component, value)):
        return _PARTS
    return None if any(map(_is_computed, value)) else _LIST


def _refuse_values(parser: ConfigParser, config: Mapping[str, Any], lines: list[str]) -> None:
    """Stop where values are not allowed; put what is meant in the place of texts and of whole numbers like 1e2.

    Args:
        parser: of the config.
        config: what it holds.
        lines: what is not allowed already.
    """
    for name, allowed in OPTIONS.items():
        if name not in config:
            continue
        given = plain(config[name])
        if _is_computed(given) and given == config[name]:
            continue
        try:
            value = allowed.read(given)
            if value is None and name == "output_dir" and "run_folder" in config:  # elsewhere a place of its own
                raise ValueError
        except ValueError:
            lines.append(f"  --{name} {given}: {allowed}")
            continue
        if value is not given:
            value = literal(value)
            parser.get()[name] = value
            if name in parser.ref_resolver.items:  # setting it by the parser would forget what was resolved so far
                parser.ref_resolver.items[name].update_config(value)
    if lines:
        raise UserError("There are options with values that are not allowed; nothing was started.\n" + "\n".join(lines))


def _is_component(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _signature(component: Mapping[str, Any]) -> tuple[str, ...]:
    return str(component["_target_"]), *sorted(component)


def _is_computed(value: Any) -> bool:
    return _is_component(value) or (isinstance(value, str) and value[:1] in ("$", "@", "%"))
