"""Training and evaluation in several processes: start, shards, communication between ranks, errors."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import chain, zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from ignite.engine import Engine, Events
from torch import distributed, nn

from .errors import UserError, user_error

Item = TypeVar("Item")
_status: int | None = None  # exit status of this rank; None: set by Python


def start(device: str | torch.device, timeout_minutes: float = 60, place: Sequence[int] | None = None) -> None:
    """Join the process group of ``torchrun``, with NCCL on CUDA and Gloo on the CPU.

    Afterwards only rank 0 logs below the level of warnings, and only the first failing rank shows its exception, also
    in torchrun's table of failures.

    Args:
        device: device of this rank; becomes the current CUDA device.
        timeout_minutes: how long a rank waits for the others: while rank 0 checks the cases, and for the slowest rank
            at the end of an evaluation.
        place: rank and number of processes from the config; None for those of ``torchrun``.

    Raises:
        UserError: the process was not started by ``torchrun``, the config sets another rank, or there are too few CUDA
            devices.
    """
    if "LOCAL_RANK" not in os.environ:
        raise UserError(
            "multi_gpu_*.yaml need several processes. Start them with: torchrun --standalone --nproc_per_node=N "
            "-m monai.bundle run … (docs/scaling.md), or remove this config."
        )
    if place is not None and list(place) != [int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")]:
        raise UserError("--rank and --world_size are set by torchrun; remove them from the command.")
    device = torch.device(device)
    if on_cuda := device.type == "cuda":
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise UserError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes were started, but this machine has "
                f"{torch.cuda.device_count()} CUDA devices; lower --nproc_per_node."
            )
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if on_cuda else "gloo", timeout=timedelta(minutes=timeout_minutes))
    if not is_first():
        logging.disable(logging.INFO)
    _show_first_failure()
    atexit.register(_leave)


def stop() -> None:
    """Leave the group at the end of a run. The process then exits without Python's teardown.

    A Gloo thread may release a tensor during the teardown. Before Python 3.13 this aborts the process: "terminate
    called without an active exception".
    """
    global _status
    distributed.destroy_process_group()
    _status = 0


def _leave() -> None:
    """Exit, after the functions registered since :func:`start`."""
    if _status is not None:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status)


def is_first() -> bool:
    """Whether this process writes files: rank 0, or the only process."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def batch_share(batch_size: int, world_size: int) -> int:
    """Number of items of a batch on each rank.

    Raises:
        UserError: the batch cannot be divided evenly.
    """
    if batch_size % world_size:
        raise UserError(
            f"The total batch_size, {batch_size}, cannot be divided evenly among {world_size} processes; set "
            f"--batch_size to a multiple of {world_size}, or start another number of processes."
        )
    return batch_size // world_size


def shard(items: Sequence[Item], rank: int, world_size: int, copies: bool = True) -> list[Item]:
    """Every ``world_size``-th item, starting at ``rank``, without padding to equal sizes.

    With fewer items than ranks, each rank gets all of them, which does not change a mean over the ranks. (With an empty
    shard MONAI's engine would have no epoch, and the other ranks would wait for its metric.)

    Raises:
        UserError: there are fewer items than ranks, and ``copies`` is false.
    """
    if len(items) >= world_size:
        return list(items[rank::world_size])
    if items and not copies:
        raise UserError(f"There are {len(items)} cases for {world_size} processes; start at most {len(items)}.")
    return list(items)


def gather_interleaved(values: list[Item]) -> list[Item] | None:
    """The lists of all ranks in the order before :func:`shard`, on rank 0; None on the others."""
    if not distributed.is_initialized():
        return values
    parts: list[Any] | None = [None] * distributed.get_world_size() if is_first() else None
    distributed.gather_object(values, parts)
    if parts is None:
        return None
    absent = object()
    return [value for value in chain.from_iterable(zip_longest(*parts, fillvalue=absent)) if value is not absent]


def from_first(value: Item) -> Item:
    """Rank 0's value on every rank."""
    values = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(values)
    return values[0]


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over the ranks, as a constant without gradient."""
    return torch.stack(with_other_ranks(value.detach())).mean(dim=0)


def with_other_ranks(value: torch.Tensor) -> list[torch.Tensor]:
    """Gather tensors of equal shape from all ranks, in order; only this rank's tensor keeps its gradient."""
    if not distributed.is_initialized():
        return [value]
    parts = [torch.empty_like(value) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, value.detach().contiguous())
    parts[distributed.get_rank()] = value
    return parts


class SameBuffers:
    """Copy rank 0's buffers to all ranks before an evaluator runs.

    Without synchronised batch normalisation each rank has its own running statistics; rank 0's are saved.

    Args:
        network: the evaluated network, unwrapped.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Act when the evaluator starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _: Engine) -> None:
        for buffer in self.network.buffers() if distributed.is_initialized() else ():
            distributed.broadcast(buffer, src=0)


def _show_first_failure() -> None:
    """Let only the first failing rank call the current ``sys.excepthook``."""
    previous = sys.excepthook
    store = distributed.distributed_c10d._get_default_store()  # torchrun holds it, and outlives the ranks
    rank = distributed.get_rank()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        global _status
        _status = 1
        try:
            first = store.add("failed ranks", 1) == 1
        except RuntimeError:  # the store is gone
            first = True
        if first:
            previous(kind, error, trace)
            print(f"rank {rank} failed; the other ranks end with it", file=sys.stderr, flush=True)
            file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # torchrun repeats its message
            if file and (mistake := user_error(error)):
                Path(file).write_text(json.dumps({"message": str(mistake), "timestamp": str(int(time.time()))}))

    sys.excepthook = hook


def unwrap_ddp(network: nn.Module) -> nn.Module:
    """The network inside a ``DistributedDataParallel`` wrapper, whose state dict has no ``module.`` prefix."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
