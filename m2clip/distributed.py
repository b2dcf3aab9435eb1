"""One process or many: start-up under torchrun, ranks, and the collectives that training and evaluation need."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from m2clip.errors import InputError


def is_distributed() -> bool:
    """Whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0 when alone."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes, 1 when alone."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes files."""
    return rank() == 0


def local_rank() -> int:
    """Number of this process on its machine, as torchrun numbers them; 0 when alone."""
    return _environment_int("LOCAL_RANK", 0)


def init(timeout_seconds: float = 1800.0, device: str | torch.device | None = None) -> torch.device:
    """Join the process group described by torchrun's environment, if there is one, and return this process's device.

    Args:
        timeout_seconds: how long a collective may wait for the other processes before it fails, in seconds.
        device: "cpu", "cuda" or "cuda:N"; None takes this process's GPU where there is one, else the CPU.
            The group uses nccl on GPUs and gloo on CPUs.

    Raises:
        InputError: torchrun's environment is incomplete, or a GPU was asked for that is not there.
    """
    chosen = _pick_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    size = _environment_int("WORLD_SIZE", 1)
    if size > 1 and not is_distributed():
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise InputError(
                f"WORLD_SIZE is {size} but {', '.join(missing)} is not set: start with torchrun, or unset WORLD_SIZE"
            )
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    return chosen


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process has come here; nothing when alone."""
    if is_distributed():
        dist.barrier()


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # gloo has no reduce_scatter on every supported version, so sum everything and keep our rows.
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.rows
        return total[first : first + ctx.rows]


def all_gather_with_grad(x: Tensor) -> Tensor:
    """Concatenate x of every process along its first dimension, in rank order, keeping the gradient.

    The gradient of a row is the sum over all processes of their gradients for that row. With a loss that every process
    computes over the whole gathered batch, averaging parameter gradients (as DistributedDataParallel does) gives
    exactly the gradient of that loss.

    Args:
        x: (B, ...), the same shape and type on every process.

    Returns:
        (world size * B, ...); x itself when alone.
    """
    return _AllGather.apply(x.contiguous()) if world_size() > 1 else x


def all_gather(x: Tensor) -> Tensor:
    """`all_gather_with_grad` without the gradient: x (B, ...), same shape on every process -> (world size * B, ...)."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def sum_in_place(values: Tensor) -> None:
    """Replace numbers by their sums over the processes, without waiting for the device; nothing when alone."""
    if world_size() > 1:
        dist.all_reduce(values)


def gather_objects(value: Any) -> list[Any]:
    """The value of every process, in rank order, on every process; pickled, but only between our own processes."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def _environment_int(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise InputError(f"environment variable {name} is {text!r}, not a whole number: start with torchrun") from None


def _pick_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"device {str(device)!r} is unknown: use cpu, cuda or cuda:0, cuda:1, ...") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        index = chosen.index if chosen.index is not None else local_rank()
        if index >= count:
            raise InputError(f"device cuda:{index} does not exist: this machine has {count} GPU(s)")
        return torch.device("cuda", index)
    return chosen
