"""The runs of a study (a training and an evaluation of each variant, seed and fold) and their conditions."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from monai.bundle import ConfigParser

from ..data.checks import Limits
from ..data.gate import require_usable
from ..data.layout import as_native, item_files
from ..io.files import sha256_of, write_atomically, write_json
from ..runtime.conditions import differences, listed
from ..runtime.errors import UserError
from ..runtime.literals import literal
from .variants import Variant, listed_names

RUN_IDS = {"train.yaml": "$@training", "evaluate.yaml": "$@evaluating"}  # configs in a run's folder
INNER_FOLDS, ENOUGH_CASES = 5, 40  # at least 8 cases choose the weights
# paths and speed; all other settings change results
_IRRELEVANT = re.compile(
    r"^\w+\.yaml#(\w+_(dir|path|root)|device|progress|verbose|resume|overwrite|cache_rate|datalist|anonymise_ids|run)(#|$)"
)
_STUDY_KEYS = (
    "_meta_", "variants", "seeds", "parallel", "devices", "threads", "compare", "evaluation_config", "loss_study",
    "executor", "executor_options",
)  # fmt: skip
_ADVICE = (
    "Results are comparable only under the same conditions: choose another --output_dir, or remove that folder to "
    "repeat the run."
)


@dataclass(frozen=True)
class Run:
    """One variant, trained and evaluated with one seed on one fold (None: the official split), in its folder."""

    variant: Variant
    seed: int
    fold: int | None
    folder: Path

    def __str__(self) -> str:
        return f"{self.variant.name}, seed {self.seed}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def done(self) -> bool:
        """Whether the run has been trained and evaluated."""
        return (self.folder / "done.json").is_file() and (self.folder / "metrics.csv").is_file()

    @property
    def record(self) -> dict[str, Any]:
        """``epochs`` and ``best_epoch`` of a run that is done."""
        return json.loads((self.folder / "done.json").read_text(encoding="utf-8"))

    def config_of(self, parser: ConfigParser, common: Mapping[str, Any]) -> dict[str, Any]:
        """A variant's merged config with the settings of all runs (``common``) and of this run."""
        models = self.folder / "models"
        content = json.loads(json.dumps({k: value for k, value in parser.get().items() if k not in _STUDY_KEYS}))
        own = {"output_dir": str(self.folder), "ckpt_dir": str(models), "ckpt_path": str(models / "model.pt"),
               "seed": self.seed, "fold": self.fold, "resume": True}  # fmt: skip
        return content | literal({**common, **own})

    def write_configs(self, configs: Mapping[str, ConfigParser], common: Mapping[str, Any]) -> None:
        """Write the configs, by file name, to the run's folder, so that MONAI can repeat the run."""
        for name, parser in configs.items():
            content = self.config_of(parser, common) | {"run": RUN_IDS[name]}
            write_atomically(self.folder / name, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def record_done(self) -> None:
        """Mark the run as trained and evaluated."""
        state = torch.load(self.folder / "models" / "resume_state.pt", map_location="cpu", weights_only=True)
        record = {"epochs": state["epoch"], "best_epoch": state["best_metric_epoch"]}
        write_json(self.folder / "done.json", record)


class Cohort(NamedTuple):
    """The cases of one seed and fold: in ``train``, ``val`` (to choose the weights) and ``evaluated``."""

    items: Mapping[str, list[dict[str, Any]]]  # MONAI data items
    fingerprint: Mapping[str, str]  # number and SHA-256 of the ids and files of each part


def read_seeds(value: Any) -> list[int]:
    """Distinct non-negative integers from the command line: ``0,1,2`` as a string, a tuple, or one number.

    Raises:
        UserError: for anything else.
    """
    texts = listed_names(value)
    if not all(text.isdecimal() for text in texts or [""]) or len(set(texts)) < len(texts):
        raise UserError(f"--seeds takes distinct non-negative integers, separated by commas, not {value!r}.")
    return [int(text) for text in texts]


def find_cases(
    dataset_dir: Path,
    split: str,
    seeds: Sequence[int],
    num_folds: int | None,
    datalist: Callable[..., list[dict[str, Any]]],
    limits: Limits | None,
    inner_folds: Any = None,
) -> tuple[dict[tuple[int, int | None], Cohort], int | None]:
    """The checked cases of every seed and fold, and the number of inner folds.

    Args:
        dataset_dir: for messages.
        split: of the evaluated cases; with folds, ``val`` is the fold.
        seeds: of the folds.
        num_folds: None for the official split.
        datalist: :func:`scripts.data.datalists.datalist` with the config's settings.
        limits: of a usable case.
        inner_folds: split the training cases into this number of folds, one of which chooses the weights; None: the
            split ``val`` does; ``auto``: 5 if ``val`` is evaluated and every fold has 40 training cases, else None.

    Raises:
        DatasetError: when there are no cases, or unusable ones; names each.
        UserError: when there are fewer patients than folds.
    """
    places = [(seed, fold) for seed in seeds for fold in ([None] if num_folds is None else range(num_folds))]
    listed = partial(datalist, num_folds=num_folds, inner_folds=None)
    if inner_folds == "auto":
        enough = all(len(listed(split="train", seed=s, fold=f)) >= ENOUGH_CASES for s, f in places)
        inner_folds = INNER_FOLDS if split == "val" and enough else None
    found: dict[tuple[int, int | None], dict[str, list[dict[str, Any]]]] = {}
    for seed, fold in places:
        here = partial(listed, seed=seed, fold=fold)
        items = {part: here(split=part, inner_folds=inner_folds) for part in ("train", "val")}
        items["evaluated"] = here(split=split, native=True)
        pool = {item["case"] for item in items["train"] + items["val"]}
        if fold is not None and pool and not (items["train"] and items["val"]):
            raise UserError(
                f"The {len(pool)} cases of {dataset_dir} are too few patients for {num_folds} folds; "
                "use a smaller --num_folds."
            )
        for part, purpose in (("train", "training"), ("evaluated", f"evaluation on the split {split}")):
            if not items[part]:
                require_usable([], dataset_dir, purpose, limits)
        found[seed, fold] = items
    # evaluated items are last, since those of prepared cases have the native files
    every = {item["case"]: item for part in ("train", "val", "evaluated") for of in found.values() for item in of[part]}
    evaluated = {item["case"]: item for of in found.values() for item in of["evaluated"]}
    require_usable(list(every.values()), dataset_dir, "the study", limits)
    require_usable(list(evaluated.values()), dataset_dir, "evaluation", limits, native="wanted")
    files = {c: dict.fromkeys([*item_files(i).values(), *item_files(as_native(i)).values()]) for c, i in every.items()}
    digests = {case: f"{case} {sha256_of(*paths)}" for case, paths in files.items()}

    def fingerprint(items: Sequence[Mapping[str, Any]]) -> str:
        text = "\n".join(digests[item["case"]] for item in items)
        return f"{len(items)}, SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"

    return {
        key: Cohort(of, {f"{part} cases": fingerprint(i) for part, i in of.items()}) for key, of in found.items()
    }, inner_folds


def conditions_of(
    run: Run, configs: Mapping[str, ConfigParser], common: Mapping[str, Any], cohort: Cohort, version: str
) -> dict[str, Any]:
    """The conditions of a run: version, cases, and every value of its configs.

    Raises:
        UserError: when the folder holds a run under other conditions; names the differences.
    """
    settings = {name: run.config_of(parser, common) for name, parser in configs.items()}
    conditions = json.loads(json.dumps({"version": version, **cohort.fingerprint, **settings}))
    path = run.folder / "conditions.json"
    if not path.is_file():
        return conditions
    try:
        changed = differences(json.loads(path.read_text(encoding="utf-8")), conditions, _IRRELEVANT)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as the conditions of a run ({error!r}). {_ADVICE}") from error
    pairs = {re.sub(r"^\w+\.yaml#", "", name): pair for name, pair in changed.items()}  # settings of both configs once
    if lines := [f"  {name} was {old}, is {new}" for name, (old, new) in pairs.items()]:
        raise UserError(f"{run.folder} holds a run under other conditions:\n{listed(lines)}\n{_ADVICE}")
    return conditions
