"""The study as one command."""

from __future__ import annotations

import json
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
from ..data.layout import SPLITS, as_native
from ..io.files import write_json
from ..runtime.cores import available_cores
from ..runtime.errors import UserError, choose
from ..runtime.machine import available_memory, network_memory
from ..runtime.workflow import running_workflow
from .jobs import Cluster, Executor, Job, Processes, exclusive, run_jobs
from .results import collect
from .runs import (
    EVALUATION,
    TRAINING,
    Run,
    find_cases,
    record_done,
    refuse_other_conditions,
    whole_numbers,
    write_configs,
)
from .study_page import write_study
from .variants import Variant, read_variants, rehearse, select, variant_configs

__all__ = ["loss_study"]

logger = logging.getLogger(__name__)
# of --parallel auto
MEMORY_SHARE = 0.9
MOST_A_DEVICE = 4  # more share a GPU's time without a gain
CORES_A_RUN = 2
CONTEXT_BYTES = 800_000_000  # CUDA context and cuDNN's workspaces
STEP_MARGIN = 1.5  # the allocator's fragments, and what lies below PyTorch


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
    configs, log, weights and evaluation. A finished run is not repeated; an interrupted one resumes. At the
    end ``study.html``, ``study.csv``, ``study.md``, ``study_cases.csv``, ``study_tests.csv`` and ``figure_2.png`` are
    written.

    Args:
        bundle_root: folder with ``configs`` and ``scripts``.
        dataset_dir: the dataset.
        output_dir: of the study.
        cases: :func:`scripts.data.datalists.datalist` with the config's settings.
        compare: names of the variants, or ``all``.
        seeds: of everything random; each variant runs with each.
        num_folds: cross-validate with that many folds; every case is then evaluated by the run that did not see it.
        fold: must be None: the study runs every fold.
        split: which cases are evaluated: ``val`` (with folds: the fold's), ``test`` or ``train``.
        datalist: the data list that ``cases`` takes instead of a search in ``dataset_dir``.
        anonymise_ids: file with the key of the ids that ``cases`` gives, for the runs.
        inner_folds: of how many parts of the training cases one chooses the weights, so that evaluated cases do not;
            None: the split ``val`` chooses them; ``auto``: 5 where the evaluated cases would choose them otherwise, and
            at least 40 cases train in every fold.
        limits: what a usable case looks like.
        parallel: how many runs at a time; ``auto``: on a GPU as many as fit into its memory, at most four.
        devices: such as ``cuda:0,cuda:1``, given to the runs in turn; None leaves the config's ``device``.
        threads: CPU threads of each run; None divides the cores, unless OMP_NUM_THREADS is set.
        executor: what runs them: None, processes of this command; ``slurm`` or ``local``, jobs that submitit submits.
        executor_options: what each job needs, by submitit's names.
        evaluation_config: what adds an evaluation to a training.
        adc_window: ADC shown as black and as white in Figure 2.
        workflow: whose merged config, options included, every variant starts from; the running one by default.

    Raises:
        UserError: before anything starts: unknown variants or keys, bad numbers, unusable data, a folder with results
            of other conditions. At the end: when runs failed, after the page of the other variants was written.
    """
    workflow = workflow or running_workflow()
    assert workflow is not None
    config = {key: value for key, value in workflow.parser.get().items() if key != "_meta_"}
    chosen = select(read_variants(config.get("variants")), compare)
    if fold is not None:
        raise UserError("The study runs every fold; leave out --fold.")
    choose(dict.fromkeys(SPLITS), split, "split")
    all_seeds = whole_numbers(seeds, "--seeds", 0)
    if parallel != "auto":
        (parallel,) = whole_numbers(parallel, "--parallel", 1)
    places = _devices(devices)
    if executor is not None and devices is not None:
        raise UserError("--devices are of this machine; with --executor a job has its own: leave them out.")
    configs = _configs(config, chosen, evaluation_config)
    at_once = _fitting(configs, places) if parallel == "auto" else parallel
    environment = _environment(threads, at_once)
    cohorts, inner = find_cases(Path(dataset_dir), split, all_seeds, num_folds, cases, limits, inner_folds)
    folder = Path(output_dir).resolve()
    root = Path(bundle_root).resolve()
    common = {
        "bundle_root": str(root),
        "dataset_dir": str(Path(dataset_dir).resolve()),
        "datalist": None if datalist is None else str(Path(datalist).resolve()),
        "anonymise_ids": None if anonymise_ids is None else str(Path(anonymise_ids).resolve()),
        "num_folds": num_folds,
        "inner_folds": inner,
        "split": split,
    }
    runs = [
        Run(variant, seed, one, folder / variant.name / f"seed_{seed}" / ("" if one is None else f"fold_{one}"))
        for seed, one in cohorts
        for variant in chosen  # of each seed and fold first all variants: an unfinished study compares like with like
    ]
    version = json.loads((root / "configs" / "metadata.json").read_text())["version"]
    with exclusive(folder) as lock:
        conditions = {
            run.folder: refuse_other_conditions(
                run, configs[run.variant.name], common, cohorts[run.seed, run.fold], version
            )
            for run in runs
        }
        left = [run for run in runs if not run.done]
        logger.info(
            "%d variants, %d runs, %d done, %d at a time", len(chosen), len(runs), len(runs) - len(left), at_once
        )
        for run in left:
            write_json(run.folder / "conditions.json", conditions[run.folder], indent=1)
            write_configs(run, configs[run.variant.name], common)
        started = time.monotonic()
        jobs = [_job(run, root, devices is not None) for run in left]
        runner: Executor = (
            Processes(at_once, places, environment, lock)
            if executor is None
            else Cluster(executor, executor_options or {}, at_once, folder / "jobs", environment)
        )
        failures = run_jobs(jobs, runner)
        if left:
            logger.info("%d runs took %.1f min", len(left), (time.monotonic() - started) / 60)
        finished = [variant for variant in chosen if variant.name not in failures]
        if not finished:
            raise UserError(_failed(failures))
        results = collect(finished, [run for run in runs if run.variant in finished])
        info = {**common, "seeds": all_seeds, "version": version}
        info["failed"] = {variant.label: failures[variant.name] for variant in chosen if variant.name in failures}
        evaluated = {item["case"]: as_native(item) for cohort in cohorts.values() for item in cohort.items["evaluated"]}
        write_study(results, evaluated, folder, info, adc_window)
    logger.info("Wrote study.html, study.csv and study.md to %s", folder)
    if failures:
        raise UserError(_failed(failures))


def _failed(failures: Mapping[str, str]) -> str:
    again = "The same command, started again, goes on where this one stopped."
    return "\n".join([*failures.values(), again])


def _fitting(configs: Mapping[str, Mapping[str, ConfigParser]], devices: Sequence[str]) -> int:
    """How many trainings fit side by side: on a GPU by the memory of the largest variant, on a CPU one.

    Most networks here leave most of a GPU idle. Where a network cannot be measured, each device gets one.
    """
    training = [ConfigParser({**config[TRAINING].get()}) for config in configs.values()]
    names = devices if devices != [""] else [training[0].get_parsed_content("device")]
    places = [torch.device(name) for name in names]
    if any(place.type != "cuda" for place in places):
        return len(places)
    try:
        needed = max(_training_memory(parser) for parser in training)
    except (NotImplementedError, RuntimeError) as error:
        logger.warning("--parallel auto: the memory of a training cannot be estimated (%s); one a device", error)
        return len(places)
    fit = min(int(MEMORY_SHARE * available_memory(place) / needed) for place in places)
    cores = max(1, available_cores() // CORES_A_RUN)
    return max(len(places), min(len(places) * min(fit, MOST_A_DEVICE), cores))


def _training_memory(parser: ConfigParser) -> int:
    """Bytes on the device of one training: the context, and the largest step."""
    network, channels, size, batch = (
        parser.get_parsed_content(name) for name in ("network_def", "in_channels", "input_size", "batch_size")
    )
    return CONTEXT_BYTES + int(STEP_MARGIN * network_memory(network, (batch, channels, *size), training=True))


def _configs(
    config: Mapping[str, Any], variants: Sequence[Variant], evaluation_config: str | Path
) -> dict[str, dict[str, ConfigParser]]:
    """The merged configs of each variant, by the name of their file, once each has been tried."""
    configs = {}
    for variant in variants:
        training, evaluation = variant_configs(config, variant, evaluation_config)
        rehearse(training, variant)
        configs[variant.name] = {TRAINING: training, EVALUATION: evaluation}
    return configs


def _job(run: Run, bundle_root: Path, with_device: bool) -> Job:
    def command(run_id: str, config: str) -> list[str]:
        words = [
            sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(run.folder / config),
            "--meta_file", str(bundle_root / "configs" / "metadata.json"),
            "--logging_file", str(bundle_root / "configs" / "logging.conf"),
        ]  # fmt: skip
        return [*words, "--device", "{device}"] if with_device else words

    commands = [("training", command("training", TRAINING)), ("evaluating", command("evaluating", EVALUATION))]
    return Job(str(run), run.variant.name, run.folder / "log.txt", commands, lambda: record_done(run))


def _devices(devices: Any) -> list[str]:
    """Names of devices as PyTorch knows them, those that are there.

    Raises:
        UserError: when one is unknown or absent.
    """
    if devices is None:
        return [""]
    names = devices.split(",") if isinstance(devices, str) else devices
    names = [str(name).strip() for name in (names if isinstance(names, list | tuple) else [names])]
    for name in names:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--devices: {name!r} cannot be used ({reason}). Write cpu, or cuda:0,cuda:1.") from error
    return names


def _environment(threads: int | None, parallel: int) -> dict[str, str]:
    environment: Mapping[str, str] = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if threads is None and "OMP_NUM_THREADS" in environment:
        return dict(environment)
    number = max(1, available_cores() // parallel) if threads is None else whole_numbers(threads, "--threads", 1)[0]
    return {**environment, "OMP_NUM_THREADS": str(number)}
