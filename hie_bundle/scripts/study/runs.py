"""What a study runs: one training and one evaluation of each variant, seed and fold; what is done already."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser

from ..data.checks import Limits
from ..data.gate import require_usable
from ..data.layout import as_native, item_files
from ..io.files import sha256_of, write_atomically, write_json
from ..runtime.conditions import differences, flat
from ..runtime.errors import UserError
from ..runtime.literals import literal
from .variants import Variant

__all__ = ["Cohort", "Run", "find_cases", "record_done", "refuse_other_conditions", "whole_numbers", "write_configs"]

TRAINING, EVALUATION = "train.yaml", "evaluate.yaml"  # the configs in a run's folder
INNER_FOLDS, ENOUGH_CASES = 5, 40  # one part of eight cases or more then chooses the weights
RUN_IDS = {TRAINING: "$@training", EVALUATION: "$@evaluating"}  # what plain `run` does with them
# where things are and how fast they go; everything else decides what comes out
_IRRELEVANT_ENDS = ("_dir", "_path", "_root")
_IRRELEVANT = ("device", "progress", "verbose", "resume", "overwrite", "cache_rate", "datalist", "anonymise_ids", "run")
_STUDY_KEYS = (
    "variants", "seeds", "parallel", "devices", "threads", "compare", "evaluation_config", "loss_study", "executor",
    "executor_options",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One variant, trained and evaluated with one seed on one fold.

    Attributes:
        variant: which.
        seed: of everything random.
        fold: which is held out; None for the official split.
        folder: where everything of this run lies.
    """

    variant: Variant
    seed: int
    fold: int | None
    folder: Path

    def __str__(self) -> str:
        return f"{self.variant.name}, seed {self.seed}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def done(self) -> bool:
        """Whether it has been trained and evaluated."""
        return (self.folder / "done.json").is_file() and (self.folder / "metrics.csv").is_file()

    @property
    def record(self) -> dict[str, Any]:
        """Of a run that is done: ``epochs`` that were trained, ``best_epoch``, ``best_val_dice``."""
        return json.loads((self.folder / "done.json").read_text())


@dataclass(frozen=True)
class Cohort:
    """The cases of one seed and fold.

    Attributes:
        items: MONAI data items of ``train``, ``val`` (which choose the weights) and ``evaluated``.
        fingerprint: the case ids of the three, and the SHA-256 of all files.
    """

    items: Mapping[str, list[dict[str, Any]]]
    fingerprint: Mapping[str, Any]


def whole_numbers(value: Any, what: str, least: int) -> list[int]:
    """Numbers from the command line: ``0,1,2`` as a text, a tuple, or one number.

    Raises:
        UserError: when one is not a whole number, is smaller than ``least``, or stands twice.
    """
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    numbers = []
    for part in parts:
        text = str(part).strip()
        if isinstance(part, bool) or not text.lstrip("-").isdigit() or int(text) < least:
            raise UserError(f"{what} takes whole numbers from {least} on, with commas between; not {value!r}.")
        numbers.append(int(text))
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError(f"{what} needs at least one number, and each once; not {value!r}.")
    return numbers


def find_cases(
    dataset_dir: Path,
    split: str,
    seeds: Sequence[int],
    num_folds: int | None,
    datalist: Callable[..., list[dict[str, Any]]],
    limits: Limits | None,
    inner_folds: Any = None,
) -> tuple[dict[tuple[int, int | None], Cohort], int | None]:
    """The cases of every seed and fold, checked, and in how many parts the training cases are divided.

    Args:
        dataset_dir: folder with the dataset.
        split: which cases are evaluated; ``val`` are those of the fold, if there are folds.
        seeds: of the folds.
        num_folds: how many; None for the official split.
        datalist: the config's ``cases``: :func:`scripts.data.datalists.datalist` with its settings.
        limits: what a usable case looks like.
        inner_folds: of how many parts of the training cases one chooses the weights; None: the split ``val`` does;
            ``auto``: 5 where ``val`` is evaluated and at least 40 cases train in every fold, else None.

    Raises:
        DatasetError: when there are none, or some are unusable; names each.
        UserError: when there are fewer patients than folds.
    """
    folds: Sequence[int | None] = [None]
    if num_folds is not None:
        (number,) = whole_numbers(num_folds, "--num_folds", 2)
        folds = range(number)
    if inner_folds == "auto":
        outer = partial(datalist, split="train", num_folds=num_folds, inner_folds=None)
        enough = split == "val" and all(len(outer(seed=s, fold=f)) >= ENOUGH_CASES for s in seeds for f in folds)
        inner_folds = INNER_FOLDS if enough else None
    elif inner_folds is not None:
        (inner_folds,) = whole_numbers(inner_folds, "--inner_folds", 2)
    cohorts = {}
    everything: dict[str, dict[str, Any]] = {}
    for seed in seeds:
        for fold in folds:
            items = {
                name: datalist(split=wanted, fold=fold, num_folds=num_folds, seed=seed, **options)
                for name, wanted, options in (
                    ("train", "train", {"inner_folds": inner_folds}),
                    ("val", "val", {"inner_folds": inner_folds}),
                    ("evaluated", split, {"inner_folds": None, "native": True}),
                )
            }
            if fold is not None and (not items["train"] or not items["val"]):
                pool = {item["case"] for item in items["train"] + items["val"]}
                if pool:  # no run at all is reported below
                    raise UserError(
                        f"The {len(pool)} cases of {dataset_dir} are too few patients for {num_folds} folds; "
                        "use a smaller --num_folds."
                    )
            for name, purpose in (("train", "training"), ("evaluated", f"evaluation on the split {split}")):
                if not items[name]:
                    require_usable(items[name], dataset_dir, purpose, limits)
            # the evaluated last: they know where prepared cases came from
            everything |= {item["case"]: item for name in ("train", "val", "evaluated") for item in items[name]}
            cohorts[seed, fold] = items
    require_usable(list(everything.values()), dataset_dir, "the study", limits)
    evaluated = {item["case"]: item for items in cohorts.values() for item in items["evaluated"]}
    require_usable(list(evaluated.values()), dataset_dir, "evaluation", limits, native="wanted")
    # of prepared cases also the files that they were made from
    files = {
        c: dict.fromkeys([*item_files(i).values(), *item_files(as_native(i)).values()]) for c, i in everything.items()
    }
    digests = {case: sha256_of(*paths) for case, paths in files.items()}
    return {
        key: Cohort(
            items,
            {name: [item["case"] for item in part] for name, part in items.items()}
            | {"sha256": _joined(digests[item["case"]] for part in items.values() for item in part)},
        )
        for key, items in cohorts.items()
    }, inner_folds


def write_configs(run: Run, configs: Mapping[str, ConfigParser], common: Mapping[str, Any]) -> None:
    """Write a run's configs to its folder: with them MONAI repeats the run by hand.

    Args:
        run: which.
        configs: merged configs, by the name of the file.
        common: values that all runs share: where the bundle, the data are, the folds.
    """
    for name, parser in configs.items():
        content = _settled(run, parser, common) | {"run": RUN_IDS[name]}
        write_atomically(run.folder / name, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def refuse_other_conditions(
    run: Run, configs: Mapping[str, ConfigParser], common: Mapping[str, Any], cohort: Cohort, version: str
) -> dict[str, Any]:
    """Make sure that what an earlier study left in a run's folder was made under the same conditions.

    Returns:
        The conditions, to be written to the folder before the run starts.

    Raises:
        UserError: when they differ, with what differs.
    """
    conditions = {
        "version": version,
        "data": dict(cohort.fingerprint),
        "settings": {name: flat(_relevant(_settled(run, parser, common))) for name, parser in configs.items()},
    }
    conditions = json.loads(json.dumps(conditions))
    path = run.folder / "conditions.json"
    if not path.is_file():
        return conditions
    advice = (
        "Results are comparable only under the same conditions: choose another --output_dir, or remove that folder "
        "to run it anew."
    )
    try:
        before = json.loads(path.read_text())
        data = before["data"]
        changed: dict[str, str] = {}
        for name in configs:
            for key, (old, new) in differences(before["settings"][name], conditions["settings"][name]).items():
                changed.setdefault(key, f"{key} was {old}, is {new}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as the conditions of a run ({error!r}). {advice}") from error
    if data != conditions["data"]:
        parts = [part for part in ("train", "val", "evaluated") if data.get(part) != conditions["data"][part]]
        what = f"other cases ({', '.join(parts)})" if parts else "cases of the same names in other files"
        raise UserError(f"{run.folder} holds a run on {what}. {advice}")
    if changed:
        shown = "; ".join(list(changed.values())[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")
        raise UserError(f"{run.folder} holds a run with other settings: {shown}. {advice}")
    if before.get("version") != version:
        raise UserError(f"{run.folder} holds a run of version {before.get('version')}; this is {version}. {advice}")
    return conditions


def record_done(run: Run) -> None:
    """Note that a run has been trained and evaluated, and for how long it trained."""
    state = torch.load(run.folder / "models" / "resume_state.pt", map_location="cpu", weights_only=True)
    best = float(state["best_metric"])
    write_json(
        run.folder / "done.json",
        {
            "epochs": state["epoch"],
            "best_epoch": state["best_metric_epoch"],
            "best_val_dice": best if math.isfinite(best) else None,
        },
    )


def _settled(run: Run, parser: ConfigParser, common: Mapping[str, Any]) -> dict[str, Any]:
    """A merged config with everything that the study decides set."""
    content = json.loads(
        json.dumps({key: value for key, value in parser.get().items() if key not in ("_meta_", *_STUDY_KEYS)})
    )
    content |= literal(
        {
            **common,
            "output_dir": str(run.folder),
            "ckpt_dir": str(run.folder / "models"),
            "ckpt_path": str(run.folder / "models" / "model.pt"),
            "seed": run.seed,
            "fold": run.fold,
            "resume": True,
        }
    )
    return content


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in config.items() if key not in _IRRELEVANT and not key.endswith(_IRRELEVANT_ENDS)
    }


def _joined(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
