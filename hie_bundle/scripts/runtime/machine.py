"""Resources of the machine: worker processes, precision, and a memory check before the run."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .cores import available_cores
from .distributed import unwrap_ddp
from .errors import UserError

logger = logging.getLogger(__name__)

GB = 1e9
MOST_WORKERS = 8  # enough for one GPU with batches of four
CPU_WORKERS = 2  # enough to hide loading; training on the CPU needs the other cores
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # PyTorch's names of the instructions, on x86 and ARM
PROCESS_BYTES = 0.5 * GB  # Python, PyTorch and MONAI without data


def workers(device: str | torch.device) -> int:
    """Number of loading processes: on CUDA one per core, divided among torchrun's ranks, at most eight; else two."""
    if torch.device(device).type != "cuda":
        return CPU_WORKERS
    return max(1, min(MOST_WORKERS, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def cpu_precision() -> str:
    """``bfloat16`` if the CPU has instructions for it, which halves the time per step; else ``float32``."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # absent in older PyTorch
    return "bfloat16" if any(map(capabilities.get, BFLOAT16)) else "float32"


def available_memory(device: str | torch.device = "cpu", cgroup: str | Path = "/sys/fs/cgroup") -> int:
    """Free bytes of a device; on the CPU without swapping and within a container's limit.

    Args:
        device: ``cpu`` or a CUDA device.
        cgroup: Linux folder with a container's limits (version 2: memory.max; version 1: memory/).
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    for names in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        files = [Path(cgroup) / name for name in names]
        limit, usage = (file.read_text().strip() if file.is_file() else "" for file in files)
        if limit.isdigit() and usage.isdigit():
            available = min(available, max(0, int(limit) - int(usage)))
    return available


def cache_memory(cases: float, volume_size: Sequence[int], in_channels: int) -> int:
    """Bytes of cached cases in float32: image channels and one label channel."""
    return int(4 * cases * (in_channels + 1) * torch.Size(volume_size).numel())


def network_memory(network: nn.Module, shape: Sequence[int], training: bool) -> int:
    """Peak bytes of the network's tensors in a training step or a prediction, float32.

    The network runs on PyTorch's meta device, which tracks the bytes of live tensors. Training adds backward pass,
    gradients and AdamW's two moments. Workspace memory of libraries such as cuDNN is not included.

    Args:
        network: not changed.
        shape: shape of the input, (B, C, X, Y, Z).
        training: True for a training step, False for a prediction.
    """
    shadow = deepcopy(network).to("meta").train(training)
    weights = sum(p.numel() * p.element_size() for p in shadow.parameters())
    with _PeakMemory() as memory, torch.set_grad_enabled(training):
        output = shadow(torch.empty(tuple(shape), device="meta").contiguous(memory_format=torch.channels_last_3d))
        if training:
            torch.sigmoid(output).mean().backward()
    return memory.peak + weights + 2 * weights * training  # the peak includes the gradients


def require_memory(
    network: nn.Module,
    input_size: Sequence[int],
    in_channels: int,
    batch_size: int,
    device: str | torch.device,
    training: bool = True,
    volume_size: Sequence[int] | None = None,
    cached: Mapping[str, float] | None = None,
) -> None:
    """Check before the run that the network and the cached cases fit in memory.

    Processes on one machine share its memory, and wait for each other here.

    Args:
        network: the network, with or without a ``DistributedDataParallel`` wrapper.
        input_size: size of its input, (X, Y, Z).
        in_channels: channels of its input.
        batch_size: total over all processes.
        device: device of the network.
        training: True for training, False for predictions.
        volume_size: size of a cached case, (X, Y, Z); ``input_size`` if None.
        cached: number of cases cached by this process, by split.

    Raises:
        UserError: memory is insufficient; states the estimate, the available memory, and options to lower.
    """
    together, on_cpu = distributed.is_initialized(), torch.device(device).type == "cpu"
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if together else 1
    if together and not on_cpu:
        batch_size //= distributed.get_world_size()
    cached = {split: count * processes for split, count in (cached or {}).items()}
    cases = sum(cached.values())
    cache = cache_memory(cases, volume_size or input_size, in_channels)
    try:
        step = network_memory(unwrap_ddp(network), (batch_size, in_channels, *input_size), training)
    except (NotImplementedError, RuntimeError) as error:  # data-dependent control flow or custom kernels
        logger.warning("The memory of the network could not be estimated: %s", error)
        step = 0
    note = f" and {cases:g} cached cases ({cache / GB:.1f} GB)" if cases else ""
    if cases:
        of = ", ".join(f"{count:g} {split}" for split, count in cached.items())
        logger.info("Keeping %.1f GB of preprocessed cases in memory (%s).", cache / GB, of)
    work = f"{'a training step' if training else 'a prediction'} at batch size {batch_size}, "
    work += f"{'×'.join(map(str, input_size))} ({step / GB:.1f} GB)"
    needs = {"cpu": (PROCESS_BYTES + cache + step * on_cpu, (work if on_cpu else "the process") + note)}
    if not on_cpu:
        needs[str(device)] = (step, work)
    for place, (needed, what) in needs.items():
        if needed > (available := available_memory(place)):
            lower = ["--spatial_size", *["--batch_size"] * (batch_size > 1), "--features"]
            lower += ["--cache_rate"] * bool(cases and place == "cpu")
            raise UserError(
                f"{what} would need about {needed / GB:.1f} GB of memory on {place}; {available / GB:.1f} GB are "
                f"available. Nothing was started. Lower {' or '.join(lower)}."
            )
    if together:
        distributed.barrier()


class _PeakMemory(TorchDispatchMode):
    """Peak bytes of the tensors created in the context."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, weakref.finalize[Any, Any]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._made, result)
        return result

    def _made(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive:  # views share a storage
            self.alive[key] = weakref.finalize(storage, self._freed, key, storage.nbytes())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int) -> None:
        del self.alive[key]
        self.now -= size
