"""Training and evaluation in several processes: start, shards, exchange between ranks, errors."""

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
_status: int | None = None  # with which this rank ends; None: as any program


def start(device: str | torch.device, timeout_minutes: float = 60, place: Sequence[int] | None = None) -> None:
    """Join the process group of a ``torchrun``: NCCL where the device is CUDA, Gloo on the CPU.

    From then on rank 0 alone logs what is not a warning, and the first rank that fails alone shows its exception, also
    in torchrun's table of failures.

    Args:
        device: of this rank; the current one of CUDA from then on.
        timeout_minutes: how long a rank waits for the others: while rank 0 checks the cases, and at the end of an
            evaluation for the slowest.
        place: rank and number of processes, as the config has them; None: those of ``torchrun``.

    Raises:
        UserError: when the process was not started by ``torchrun``, was given another rank, or has no CUDA device
            of its own.
    """
    if "LOCAL_RANK" not in os.environ:
        raise UserError(
            "multi_gpu_*.yaml are for several processes. Start them with: torchrun --standalone --nproc_per_node=N "
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
    """Leave the group after the work. The process then ends without Python's teardown.

    A thread of Gloo may release a tensor during the teardown. Before Python 3.13 this aborts the process: "terminate
    called without an active exception".
    """
    global _status
    distributed.destroy_process_group()
    _status = 0


def _leave() -> None:
    """At exit, after the functions that were registered since :func:`start`."""
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
        UserError: when they cannot all take the same number.
    """
    if batch_size % world_size:
        raise UserError(
            f"The batch_size of all processes together, {batch_size}, cannot be divided evenly among "
            f"{world_size}; set --batch_size to a multiple of it, or start another number of processes."
        )
    return batch_size // world_size


def shard(items: Sequence[Item], rank: int, world_size: int, copies: bool = True) -> list[Item]:
    """Every ``world_size``-th item from ``rank`` on; no item is repeated to make the shards even.

    With fewer items than ranks each gets all of them, which leaves a mean over all ranks the same. (With an empty shard
    MONAI's engine would have no epoch, and the others would wait for its metric.)

    Raises:
        UserError: with fewer items than ranks where there may be no ``copies``.
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
    """Tensors of one shape of all ranks, in order; this rank's own with its gradient, the others' as constants."""
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
        network: the network that is evaluated, not wrapped.
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
    """Show the exception of the first rank that fails, and of no other, by the present ``sys.excepthook``."""
    previous = sys.excepthook
    store = distributed.distributed_c10d._get_default_store()  # kept by torchrun, which outlives the ranks
    rank = distributed.get_rank()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        global _status
        _status = 1
        try:
            first = store.add("failed ranks", 1) == 1
        except RuntimeError:  # nobody is left to ask
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
