"""The study as one command."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from ..data.checks import Limits
from ..data.layout import as_native
from ..io.files import write_json
from ..runtime.cores import available_cores
from ..runtime.errors import UserError
from ..runtime.machine import available_memory, network_memory
from ..runtime.mixins import bundle_version
from ..runtime.options import OPTIONS
from ..runtime.workflow import running_workflow
from .jobs import Cluster, Job, Processes, exclusive, run_jobs
from .results import collect
from .runs import Run, conditions_of, find_cases, read_seeds
from .study_page import write_study
from .variants import Variant, listed_names, read_variants, rehearse, select, variant_configs

logger = logging.getLogger(__name__)
# constants of --parallel auto
MEMORY_SHARE = 0.9
MOST_A_DEVICE = 4  # more runs on one GPU gain nothing
CORES_A_RUN = 2
CONTEXT_BYTES = 800_000_000  # CUDA context and cuDNN's workspaces
STEP_MARGIN = 1.5  # fragmentation


def loss_study(
    bundle_root: str,
    dataset_dir: str,
    output_dir: str,
    cases: Callable[..., list[dict[str, Any]]],
    compare: Any = "all",
    seeds: Any = 0,
    num_folds: int | None = None,
    fold: int | None = None,
    split: str = "val",
    datalist: str | None = None,
    anonymise_ids: str | None = None,
    inner_folds: Any = "auto",
    limits: Limits | None = None,
    parallel: Any = 1,
    devices: Any = None,
    threads: int | None = None,
    executor: str | None = None,
    executor_options: Mapping[str, Any] | None = None,
    evaluation_config: str | Path = "configs/evaluate.yaml",
    adc_window: Sequence[float] = (0, 2500),
    workflow: ConfigWorkflow | None = None,
) -> None:
    """Train and evaluate every variant of a config under the same conditions, then compare them.

    Each run (a variant with a seed on a fold) has its folder ``output_dir/<variant>/seed_<s>[/fold_<f>]`` with its
    configs, log, weights and evaluation. A finished run is not repeated; an interrupted one resumes.

    Args are the keys of ``study.yaml``, which explains them, and of ``train.yaml``. In addition:
        cases: :func:`scripts.data.datalists.datalist` with the config's settings.
        workflow: its merged config, including options, is the base of every variant; the running one by default.

    Raises:
        UserError: before any run: for unknown variants or keys, invalid numbers, unusable data, or a folder with
            results under other conditions. After writing the page of the other variants: when runs failed.
    """
    workflow = workflow or running_workflow()
    assert workflow is not None
    config = {key: value for key, value in workflow.parser.get().items() if key != "_meta_"}
    chosen = select(read_variants(config.get("variants")), compare)
    if fold is not None:
        raise UserError("The study runs every fold; remove --fold.")
    if executor is not None and devices is not None:
        raise UserError("--devices are devices of this machine, --executor jobs have their own; remove --devices.")
    all_seeds, places = read_seeds(seeds), _devices(devices)
    configs = rehearsed_configs(config, chosen, evaluation_config)
    at_once = _fitting(configs, places) if parallel == "auto" else parallel
    cohorts, inner = find_cases(Path(dataset_dir), split, all_seeds, num_folds, cases, limits, inner_folds)
    folder, root = Path(output_dir).resolve(), Path(bundle_root).resolve()
    paths = {"dataset_dir": dataset_dir, "datalist": datalist, "anonymise_ids": anonymise_ids}
    common: dict[str, Any] = {name: path and str(Path(path).resolve()) for name, path in paths.items()}
    common |= {"bundle_root": str(root), "num_folds": num_folds, "inner_folds": inner, "split": split}
    runs = [
        Run(variant, seed, one, folder / variant.name / f"seed_{seed}" / ("" if one is None else f"fold_{one}"))
        for seed, one in cohorts
        for variant in chosen  # innermost, so that an unfinished study compares equal seeds and folds
    ]
    with exclusive(folder) as lock:
        conditions = [
            conditions_of(run, configs[run.variant.name], common, cohorts[run.seed, run.fold], bundle_version())
            for run in runs
        ]
        for run, written in zip(runs, conditions, strict=True):
            if not run.done:
                write_json(run.folder / "conditions.json", written, indent=1)
                run.write_configs(configs[run.variant.name], common)
        jobs = [_job(run, root, devices is not None) for run in runs if not run.done]
        done = len(runs) - len(jobs)
        logger.info("%d variants, %d runs, %d done, %d at a time", len(chosen), len(runs), done, at_once)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if threads is not None or "OMP_NUM_THREADS" not in environment:
            environment["OMP_NUM_THREADS"] = str(threads or max(1, available_cores() // at_once))
        started = time.monotonic()
        failures = run_jobs(
            jobs,
            Processes(at_once, places, environment, lock)
            if executor is None
            else Cluster(executor, executor_options or {}, at_once, folder / "jobs", environment),
        )
        if jobs:
            logger.info("%d runs took %.1f min", len(jobs), (time.monotonic() - started) / 60)
        finished = [variant for variant in chosen if variant.name not in failures]
        if finished:
            results = collect(finished, [run for run in runs if run.variant in finished])
            info = {**common, "seeds": all_seeds, "version": bundle_version()}
            info["failed"] = {variant.label: failures[variant.name] for variant in chosen if variant.name in failures}
            evaluated = {item["case"]: as_native(item) for of in cohorts.values() for item in of.items["evaluated"]}
            write_study(results, evaluated, folder, info, adc_window)
            logger.info("Wrote study.html, study.csv and study.md to %s", folder)
    if failures:
        again = "The same command, started again, resumes where this one stopped."
        raise UserError("\n".join([*failures.values(), again]))


def rehearsed_configs(
    config: Mapping[str, Any], variants: Sequence[Variant], evaluation_config: str | Path
) -> dict[str, dict[str, ConfigParser]]:
    """The merged configs of each variant by file name, after :func:`.rehearse`."""
    configs = {}
    for variant in variants:
        training, evaluation = variant_configs(config, variant, evaluation_config)
        rehearse(training, variant)
        configs[variant.name] = {"train.yaml": training, "evaluate.yaml": evaluation}
    return configs


def _fitting(configs: Mapping[str, Mapping[str, ConfigParser]], devices: Sequence[str]) -> int:
    """Number of parallel trainings: as many as fit on the GPUs with the largest variant; one per device if unknown."""
    training = [ConfigParser({**config["train.yaml"].get()}) for config in configs.values()]
    names = devices if devices != [""] else [training[0].get_parsed_content("device")]
    places = [torch.device(name) for name in names]
    if any(place.type != "cuda" for place in places):
        return len(places)
    try:
        steps = []
        for parser in training:
            parts = ("network_def", "in_channels", "input_size", "batch_size")
            network, channels, size, batch = (parser.get_parsed_content(part) for part in parts)
            steps.append(network_memory(network, (batch, channels, *size), training=True))
    except (NotImplementedError, RuntimeError) as error:
        logger.warning("--parallel auto: the memory of a training cannot be estimated (%s); one per device", error)
        return len(places)
    needed = CONTEXT_BYTES + STEP_MARGIN * max(steps)
    fit = min(int(MEMORY_SHARE * available_memory(place) / needed) for place in places)
    return max(len(places), min(len(places) * min(fit, MOST_A_DEVICE), available_cores() // CORES_A_RUN))


def _job(run: Run, bundle_root: Path, with_device: bool) -> Job:
    configs = bundle_root / "configs"
    commands = []
    for run_id, config in (("training", "train.yaml"), ("evaluating", "evaluate.yaml")):
        words = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(run.folder / config)]
        words += ["--meta_file", str(configs / "metadata.json"), "--logging_file", str(configs / "logging.conf")]
        commands.append((run_id, [*words, *(["--device", "{device}"] if with_device else [])]))
    return Job(str(run), run.variant.name, run.folder / "log.txt", commands, run.record_done)


def _devices(devices: Any) -> list[str]:
    """Validated device names; "" for the device of the config."""
    if devices is None:
        return [""]
    for name in listed_names(devices):
        try:
            OPTIONS["device"].read(name)
        except ValueError as error:
            raise UserError(f"--devices: {name!r} cannot be used; write {OPTIONS['device']}.") from error
    return listed_names(devices)
