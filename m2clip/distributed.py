"""One process or many: start-up under torchrun, ranks, and the collectives that training and evaluation need."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from m2clip.errors import InputError, LostProcessError

# How long processes that have lost one wait to hear which of the others are still there, in seconds.
_ROLL_CALL = 5.0
_WAITING = "waiting"


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
        except RuntimeError as error:  # also where the store is reached, but not the other processes
            raise LostProcessError(
                f"the {size} processes of the group did not find each other within {timeout_seconds:g} s at "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({' '.join(str(error).split())[:200]}): "
                "start all of them, on machines that reach this address"
            ) from None
    return chosen


def _join(backend: str, timeout: timedelta) -> None:
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
    with losses_told():
        dist.all_gather_object(values, value)
    return values


@contextmanager
def losses_told() -> Iterator[None]:
    """Tells which process of the group is gone where one waits for it in vain; leaves a word for the others if this
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
            with suppress(Exception):
                _store().set(f"m2clip/{rank()}", f"ended with: {' '.join(str(error).split()) or type(error).__name__}")
            raise
        reason = " ".join(str(error).split())
    raise _call_the_roll("did not answer in time" if "imed out" in reason else "is gone, killed or out of memory")


def _is_loss(error: BaseException) -> bool:
    """Whether a collective failed for want of another process; gloo says so with a plain RuntimeError."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _call_the_roll(guess: str) -> LostProcessError:
    own, size = rank(), world_size()
    words: dict[int, str] = {own: _WAITING}
    try:
        store = _store()
        store.set_timeout(timedelta(seconds=_ROLL_CALL))
        store.set(f"m2clip/{own}", _WAITING)
        end = time.monotonic() + _ROLL_CALL
        while len(words) < size and time.monotonic() < end:
            for number in range(size):
                if number not in words and store.check([f"m2clip/{number}"]):
                    words[number] = store.get(f"m2clip/{number}").decode("utf-8", "replace")
            time.sleep(0.1)
    except (RuntimeError, OSError):
        guess = "is gone, or the process or machine that keeps the group together"
    here = [number for number, word in words.items() if word == _WAITING]
    lost = [f"process {number} {words.get(number, guess)}" for number in range(size) if number not in here]
    return LostProcessError(
        f"{'; '.join(lost) or 'the connection between the processes broke'} (numbered 0 to {size - 1}): the others "
        "cannot go on without it; start again, and training goes on from its last checkpoint (torchrun --max-restarts "
        "3 does so by itself)",
        silent=own != min(here),
    )


def _store() -> Any:
    """The key-value store that the group met at; it outlives single processes."""
    return dist.distributed_c10d._get_default_store()


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
        InputError: an unknown device, or a GPU that is not there.
    """
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
