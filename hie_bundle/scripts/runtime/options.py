"""Options of all workflows: one schema for the checks before a run, the help and the reference."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter

from .errors import UserError, did_you_mean
from .literals import literal, plain
from .recipe import references
from .workflow import running_workflow

# options of earlier versions, and their replacements
GONE = {
    "variety": "the simulator has one cohort; docs/phantom.md has the results of the former settings",
    "augmentation": "only the fast augmentation remains; a config file may use TorchIO's classes instead",
    **dict.fromkeys(
        ("voxelwise_weight", "voxelwise_level"),
        "soft thresholds on ZADC replace the voxelwise network (z_evidence_weight, docs/recipes.md)",
    ),
}


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("a number is needed")
    return value


def _flag(value: Any) -> Any:
    """Convert ``"true"`` and ``"false"`` from a shell; any non-empty text would count as true."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _path(value: str) -> str:
    try:
        Path(value).lstat()  # raises ValueError for a NUL character
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError("the name is too long") from error
    return value


def _device(value: Any) -> Any:
    import torch

    try:
        device = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError("not a device") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError("not a supported device")
    if device.type == "cuda" and not (device.index or 0) < torch.cuda.device_count():
        raise ValueError("not a device of this machine")
    return value


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("a value is given twice")
    return values


def _real(**limits: Any) -> Any:
    return Annotated[float, Field(allow_inf_nan=False, **limits), BeforeValidator(_number)]


def _whole(**limits: Any) -> Any:
    return Annotated[int, Field(**limits), BeforeValidator(_number)]


def _list(of: Any, count: int | None = None, distinct: bool = False) -> Any:
    values: Any = Annotated[list[of], Field(min_length=count, max_length=count)]  # type: ignore[valid-type]
    unique = Field(json_schema_extra={"uniqueItems": True})
    return Annotated[values, AfterValidator(_distinct), unique] if distinct else values


class Option:
    """Allowed values of an option, as a type for pydantic."""

    def __init__(self, type: Any) -> None:
        self.type = type

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:  # most commands use few of them
        return TypeAdapter(self.type)

    def read(self, value: Any) -> Any:
        """Validate and convert a value: ``"false"`` becomes False, 1e2 becomes 100 for an integer option.

        Raises:
            ValueError: the value is not allowed.
        """
        return self._adapter.validate_python(value)

    @property
    def is_text(self) -> bool:
        """Whether the option is a text, even if its value looks like a number."""
        schema = self._adapter.json_schema()
        return any(one.get("type") == "string" for one in schema.get("anyOf", [schema]))

    def __str__(self) -> str:
        return _describe(self._adapter.json_schema())


def _describe(schema: Mapping[str, Any]) -> str:
    """Describe a JSON schema."""
    if "description" in schema:
        return str(schema["description"])
    if "anyOf" in schema:
        return ", or ".join(map(_describe, schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = schema["type"]
    if kind == "array":
        items = schema["items"]
        if items["type"] == "string":
            return f"a list of {items.get('format', 'text')}s"
        text = f"a list of {schema.get('maxItems', 'any')} numbers, each {_describe(items)}"
        return text + (", without duplicates" if schema.get("uniqueItems") else "")
    if kind not in ("integer", "number"):
        return {"boolean": "true or false", "null": "null", "string": f"a {schema.get('format', 'text')}"}[kind]
    text = "a whole number" if kind == "integer" else "a number"
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if least is not None and least == most:
        return f"{least:g}"
    text += f" from {least:g}" if least is not None else f" above {above:g}" if above is not None else ""
    if most is not None or below is not None:
        return text + (f" to {most:g}" if most is not None else f" and below {below:g}")
    return text + (" on" if least is not None else "")


_COUNT, _FROM_0 = _whole(ge=1), _whole(ge=0)
_SHARE, _ABOVE, _NOT_NEGATIVE = _real(ge=0, le=1), _real(gt=0), _real(ge=0)
_FLAG = Annotated[bool, Field(strict=True), BeforeValidator(_flag)]
_TEXT = Annotated[str, BeforeValidator(_text)]
_PATH = Annotated[str, BeforeValidator(_text), AfterValidator(_path), Field(json_schema_extra={"format": "path"})]

# types of the configs' top-level values; expressions ($…) and references (@…) of config files are not checked
_TYPES: list[tuple[Any, str]] = [
    (_PATH, "dataset_dir ckpt_dir bundle_root"),
    (
        _PATH | None,
        "output_dir datalist anonymise_ids init_weights predictions_dir threshold_from output_file report_file "
        "brain_file stripped_file adc_file adc_source atlas_mean atlas_std mask_file capture_file segmented outcomes "
        "regions rtstruct_file",
    ),
    (_PATH | Annotated[list[_PATH], Field(min_length=1)], "ckpt_path weights"),
    (_PATH | list[_PATH] | None, "images"),
    (_PATH | _FLAG | None, "list"),
    (_TEXT | Annotated[list[_TEXT], Field(min_length=1)], "loaded"),
    (_TEXT | None, "patient_pattern test_site id_column outcome_column"),
    (_PATH | list[_PATH], "readers"),
    (list[_TEXT] | None, "volumes"),
    (_TEXT, "loss_name base_url dataset_name"),
    (Literal["float32", "bfloat16"], "training_precision precision"),
    (Literal["skip", "stop"], "on_nonfinite"),
    (Literal["fit", "apply"] | None, "calibration"),
    (Literal["auto", "device", "host"], "data_on"),
    (Literal[".nii.gz", ".nii", ".mha"], "output_ext"),
    (Literal["nearest-exact", "nearest", "trilinear", "area"], "label_mode"),
    (
        _FLAG,
        "amp cudnn_benchmark progress verbose overwrite other_recipe sync_batch_norm labels limit_to_brain "
        "secondary_capture rtstruct deformable",
    ),
    (_FLAG | Literal["force"], "resume"),
    (
        _COUNT,
        "epochs steps batch_size val_interval patience steps_per_epoch validations in_channels tries least_cases "
        "feature_size max_archive_bytes",
    ),
    (_COUNT | None, "threads"),
    (_FROM_0, "seed num_train num_val num_test num_healthy num_cases first_case rounds train_seed val_seed"),
    (_FROM_0 | None, "fold"),
    (_whole(ge=0, le=0), "rank"),  # computed by each process
    (_whole(ge=0, le=256) | None, "num_workers"),
    (_whole(ge=2) | None, "num_folds"),
    (_whole(ge=1) | Literal["auto"], "parallel"),
    (_whole(ge=2) | Literal["auto"] | None, "inner_folds"),
    (
        _SHARE,
        "cache_rate threshold z_evidence_weight lesion_peak augmentation_probability lesion_overlap lesion_iou "
        "artefact_probability lesion_share flip_probability zadc_dropout",
    ),
    (_real(gt=0, le=10), "learning_rate"),
    (_real(ge=0, le=10), "weight_decay l1_weight"),
    (_real(gt=0, le=1), "lr_gamma"),
    (_real(gt=0, lt=1) | None, "prior"),
    (_real(ge=0.01, le=0.99), "z_evidence_level"),
    (_real(ge=0, le=0.9), "scaling intensity_factor"),
    (_real(gt=0, le=86400), "loading_timeout_s"),
    (_real(), "baseline_threshold"),
    (_ABOVE, "clip_norm timeout_minutes timeout_s fine_mm atlas_step_mm step_mm least_std clip"),
    (_ABOVE | None, "adc_scale"),
    (
        _NOT_NEGATIVE,
        "tolerance_mm pause_s registration_mm mirror_sigma_mm lr_power region_weight boundary_weight "
        "smallest_lesion_mm3 noise_floor smoothing_mm intensity_shift",
    ),
    (_NOT_NEGATIVE | None, "noise"),
    (_list(_NOT_NEGATIVE) | None, "b_values"),
    (_list(_FROM_0, distinct=True), "series"),
    (_list(_COUNT, 3) | None, "spatial_size"),
    (_list(_COUNT, 3), "input_size patch_size crop_size"),
    (_list(_NOT_NEGATIVE, 2) | None, "age_days"),
    (_list(_COUNT), "matrix_sizes features"),
    (_list(_COUNT, 2), "slice_range"),
    (_list(_ABOVE, 2), "spacing_range_mm slice_thickness_range_mm"),
    (_list(_ABOVE, 3), "spacing_mm"),
    (_list(_NOT_NEGATIVE, 3), "rotation"),
    (_list(_real(ge=0, lt=1)), "dropout"),
    (_list(_whole(ge=0, le=2), distinct=True), "flips"),
    (_list(_real(), 2, distinct=True), "adc_window zadc_window"),
    (Annotated[list[Any], Field(description="a list of values")], "adverse"),
    (
        Annotated[Any, AfterValidator(_device), Field(description="cpu, or cuda:N of a CUDA device of this machine")],
        "device",
    ),
]
OPTIONS = {name: option for type, names in _TYPES for option in [Option(type)] for name in names.split()}

# lists of components that may be empty: a network with probabilities as output, no resampling, no brain mask
_MAY_BE_EMPTY = {"activate", "augment", "brain", "transforms#grid", "transforms#values"}
# options that may be null unless the config has the given part
_NEEDED_BY = {"output_dir": "run_folder", "num_workers": "network_def", "spatial_size": "transforms#grid#size"}
_A_FLAG, _A_NUMBER = Option(_FLAG), Option(_real())
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def refuse_unknown(workflow: ConfigWorkflow | None = None) -> None:
    """Check before the run that all options are known and have allowed values.

    The check covers names at the top level and in sections, values of :data:`OPTIONS` (including arguments that refer
    to an option as ``@name``), and the type of sections and component lists. A config file may add sections, and values
    that the config refers to. Values are converted: ``"false"`` to False.

    Args:
        workflow: None for the running workflow; without one nothing is checked.

    Raises:
        UserError: lists every invalid option with the closest name or the allowed values.
    """
    workflow = workflow or running_workflow()
    if workflow is None:
        return
    parser = workflow.parser
    config: Mapping[str, Any] = parser.get()
    _refuse("that this version no longer has", [f"{name}: {why}." for name, why in GONE.items() if name in config])
    shipped: dict[str, list[Any]] = {}  # values in the bundle's configs by id
    for file in workflow.config_root_path.glob("*.yaml"):
        for name, value in _ids(yaml.load(file.read_text(encoding="utf-8"), _YAML)):
            shipped.setdefault(name, []).append(value)
    run_id = str(workflow.run_id)
    known = {*shipped, str(workflow.init_id), run_id, str(workflow.final_id)}
    named = set(references("$" + json.dumps(config, default=str)))
    lines = []
    for name in _unread(config, known, named):
        near = {one: f"--{one}" for one in sorted(known) if one.count("#") == name.count("#")}
        lines.append(f"{name}: no config has such a value" + did_you_mean(name, near))
    if run_id not in parser and run_id != "run":  # MONAI's default, which tools keep
        lines.append(f"run_id {run_id}: no config has this workflow" + did_you_mean(run_id, {n: n for n in config}))
    _refuse("that no config uses", lines)
    _refuse("with values that are not allowed", list(_wrong(parser, shipped)))


def _refuse(which: str, lines: Sequence[str]) -> None:
    if lines:
        shown = "\n".join(f"  --{line}" for line in lines)
        raise UserError(f"There are options {which}; nothing was started.\n{shown}")


def _ids(content: Mapping[str, Any] | list[Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of all levels with their ids."""
    for name, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        levels = str(name).lstrip("+").split("#")  # a config's key may name a part of a section: transforms#grid
        yield from ((above + "#".join(levels[:count]), {}) for count in range(1, len(levels)))
        id = above + "#".join(levels)
        yield id, value
        if isinstance(value, Mapping | list):
            yield from _ids(value, f"{id}#")


def _unread(content: Mapping[str, Any], known: set[str], named: set[str], above: str = "") -> Iterator[str]:
    """Yield ids that no config of the bundle has and nothing refers to.

    Config files may add components and top-level sections. Components check their own arguments.
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


def _wrong(parser: ConfigParser, shipped: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Yield messages on wrong values, and convert the others. Components added by config files are skipped."""
    config = parser.get()
    values = dict(_ids(config))
    foreign = {"variants"}
    for id, value in values.items():
        above, _, name = id.rpartition("#")
        owner = values[above] if above else config
        ours = shipped.get(id, [])
        targets = [one["_target_"] for one in ours if _is_component(one)]
        if above in foreign or (_is_component(value) and value["_target_"] not in targets):
            foreign.add(id)
        if above in foreign:
            continue
        options = [OPTIONS[id]] if id in OPTIONS else _options_of(owner, name, shipped.get(above, []))
        given = plain(value)
        if options and not (_is_computed(given) and given == value):
            yield from _wrong_value(parser, id, owner, given, options)
        elif not options and not any(map(_option_of, ours)):
            yield from _wrong_part(id, value, ours)
    losses, loss = config.get("losses"), plain(config.get("loss_name"))
    if isinstance(losses, Mapping) and loss == config.get("loss_name") and loss not in losses:
        yield f"loss_name '{loss}' is unknown; choose one of: {', '.join(losses)}."


def _wrong_value(parser: ConfigParser, id: str, owner: Any, given: Any, options: Sequence[Option]) -> Iterator[str]:
    """Yield a message if no option allows a value; else convert the value in ``owner``."""
    allowed = ", ".join(dict.fromkeys(map(str, options)))
    for option in options:
        try:
            value = option.read(given)
        except ValueError:
            continue
        if value is None and (part := _NEEDED_BY.get(id)) and parser.get(part) is not None:
            allowed = allowed.removesuffix(", or null")
            continue
        if value != given or type(value) not in (type(given), float):
            owner[id.rpartition("#")[2]] = literal(value)  # parser.update would discard resolved values
            if item := parser.ref_resolver.get_item(id):
                item.update_config(literal(value))
        return
    yield f"{id} {given}: {allowed}"


def _options_of(component: Any, name: str, shipped: Sequence[Any]) -> list[Option]:
    """The options that validate a changed argument of a component; empty if its class checks the argument.

    An argument that is ``@option`` in the bundle's configs must be valid for that option; a number must stay a number,
    and a flag a flag. A library class may accept more than the option: if other arguments changed too, the class checks
    them.
    """
    if not _is_component(component) or name not in component:
        return []
    value, target = component[name], component["_target_"]
    ours = [
        one for one in shipped if _is_component(one) and (one["_target_"], one.keys()) == (target, component.keys())
    ]
    if any(type(value) is type(one[name]) and value == one[name] for one in ours):
        return []
    own_class = str(target).startswith("scripts.")
    same = [one for one in ours if own_class or all(_same(component[k], one[k]) for k in one if k != name)]
    types = {type(one[name]) for one in ours}
    if options := [option for one in same if (option := _option_of(one[name]))]:
        return options
    if types == {bool} and not isinstance(value, list):
        return [_A_FLAG]
    return [_A_NUMBER] if ours and types <= {int, float} and isinstance(value, str | bool) else []


def _wrong_part(id: str, value: Any, ours: Sequence[Any]) -> Iterator[str]:
    """Yield a message on a value that replaces a section, a component or a component list."""
    if value in ({}, []) and "#" not in id and ours and all(map(_is_computed, ours)):
        yield f"{id} {value}: a component, or an expression ($…)"
    shapes = {shape for shape in map(_shape, ours) if shape} | ({_SECTION} if id == "network" else set())
    if not shapes & {_SECTION, _PARTS}:
        return
    empty = id in _MAY_BE_EMPTY and value in ([], {})
    cases = id.endswith("dataset#data") and isinstance(value, list)  # programs pass cases as a list
    null = value is None and None not in ours
    if null or (not empty and not cases and _shape(value) not in {None, *shapes}):
        yield f"{id} {value}: a part of the config; {' or '.join(sorted(shapes))}, or an expression ($…)"


_SECTION, _PARTS, _LIST, _VALUE = "a section", "a list of parts", "a list", "a value"


def _shape(value: Any) -> str | None:
    """Type of a value in a config; None for expressions and null."""
    if isinstance(value, Mapping):
        named = not _is_component(value) and value.values()
        return _PARTS if named and all(map(_is_component, named)) else _SECTION
    if value is None or _is_computed(value):
        return None
    if not isinstance(value, list):
        return _VALUE
    return _PARTS if any(map(_is_component, value)) else None if any(map(_is_computed, value)) else _LIST


def _same(value: Any, written: Any) -> bool:
    """Whether a value equals the file's; MONAI writes ``#`` in references as ``::``."""
    return (value.replace("::", "#") if isinstance(value, str) else value) == written


def _option_of(value: Any) -> Option | None:
    """The option to which a value refers; None for other values."""
    return OPTIONS.get(value[1:]) if isinstance(value, str) and value[:1] == "@" else None


def _is_component(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _is_computed(value: Any) -> bool:
    return _is_component(value) or (isinstance(value, str) and value[:1] in ("$", "@", "%"))
