"""One process or many: start-up under torchrun, ranks, and the collectives that training and evaluation need."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from m2clip.errors import InputError, LostProcessError
from m2clip.files.folders import locked
from m2clip.kernels.torch_private import default_store
from m2clip.process_watch import Watch

_watch: Watch | None = None  # over the group that `init` has joined


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
        LostProcessError: another process did not come in time.
    """
    global _watch
    chosen = pick_device(device)
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
        try:
            _join(backend, timedelta(seconds=timeout_seconds))
            _watch = Watch(rank(), size, default_store(), timeout_seconds)
        except (RuntimeError, OSError) as error:  # also where the store is reached, but not the other processes
            raise LostProcessError(
                f"the {size} processes of the group did not find each other within {timeout_seconds:g} s at "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({' '.join(str(error).split())[:200]}): "
                "start all of them, on machines that reach this address"
            ) from None
    return chosen


def _join(backend: str, timeout: timedelta) -> None:
    if backend == "nccl":
        # After an error, end the collective and not the process, so that the loss can be told (2 is CleanUpOnly).
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        dist.init_process_group(backend, timeout=timeout)
        return
    # torchrun keeps its store over restarts, and with it the addresses of processes that are dead: what is agreed upon
    # anew needs names of its own. On several machines each counts its restarts by itself, so the count is no name.
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(f"restart{restart}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def shutdown() -> None:
    """Leave the process group, if there is one; where an error is on its way, the other processes learn of it."""
    global _watch
    if _watch is not None and (error := sys.exc_info()[1]) is not None:
        _watch.tell(error)
    if is_distributed():
        dist.destroy_process_group()
    if _watch is not None:
        _watch.leave()
        _watch = None


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
        return _OwnRows.apply(grads[0], ctx.rows)


class _OwnRows(torch.autograd.Function):
    """This process's rows of a sum over all processes; each of the two functions is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int) -> Tensor:
        # gloo has no reduce_scatter on every supported version, so sum everything and keep our rows.
        total = x.contiguous().clone()
        dist.all_reduce(total)
        first = dist.get_rank() * rows
        return total[first : first + rows]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _AllGather.apply(grads[0].contiguous()), None


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
    with report_lost_processes():
        dist.all_gather_object(values, value)
    return values


def by_main(work: Callable[[], Any]) -> None:
    """Work of the main process alone, which the others wait for.

    Raises:
        InputError: in every process, where the work raised it; the others would wait for the main one until the
            timeout.
    """
    error = None
    if is_main():
        try:
            work()
        except InputError as problem:
            error = str(problem)
    error = gather_objects(error)[0]
    if error is not None:
        raise InputError(error)


@contextmanager
def locked_by_main(folder: str | os.PathLike[str], what: str) -> Iterator[None]:
    """A folder for the processes of this group alone; the main one holds its lock (`m2clip.files.folders.locked`).

    Raises:
        InputError: in all of them, where another call holds the folder or it cannot be written to.
    """
    with ExitStack() as held:
        by_main(lambda: held.enter_context(locked(folder, what)))
        yield


@contextmanager
def report_lost_processes() -> Iterator[None]:
    """Tells which process of the group is gone, where this one waits for it; leaves a word for the others if this
    one ends with an error itself.

    Raises:
        LostProcessError: another process died, ended with an error, or did not answer within the group's timeout.
    """
    try:
        yield
        return
    except LostProcessError:
        raise
    except BaseException as error:
        if not is_distributed() or world_size() == 1:
            raise
        if not _is_loss(error):
            if _watch is not None:
                _watch.tell(error)
            raise
        reason = " ".join(str(error).split())
    raise (
        _watch.loss()
        if _watch is not None
        else LostProcessError(f"another process is gone or did not answer in time ({reason[:200]}): start again")
    )


def _is_loss(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone; gloo says so with a plain RuntimeError."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _environment_int(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise InputError(f"environment variable {name} is {text!r}, not a whole number: start with torchrun") from None


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device "cpu", "cuda" or "cuda:N"; None is this process's GPU where there is one, else the CPU.

    Raises:
        InputError: an unknown device, one that is not there, or one that does not compute.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except (RuntimeError, ValueError, TypeError, OverflowError):
        raise InputError(f"device {str(device)!r} is unknown: use cpu, cuda or cuda:0, cuda:1, ...") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count()
        index = chosen.index if chosen.index is not None else local_rank()
        if index >= count:
            raise InputError(f"device cuda:{index} does not exist: this machine has {count} GPU(s)")
        return torch.device("cuda", index)
    try:
        torch.ones(1, device=chosen).add(1).item()
    except Exception:  # what a device that is not there raises differs with its type and with the version of torch
        raise InputError(
            f"device {str(device)!r} does not compute here: use cpu, or cuda on a machine with a GPU"
        ) from None
    return chosen
