"""Counts what the launches of a function read, write and compute: PyTorch's by their tensors, Triton's as they run.

Triton kernels run in Triton's interpreter (TRITON_INTERPRET=1), which is asked for the address of every value that is
loaded or stored: what is read twice by the same launch is counted once under `read` and twice under `requested`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Calls that start nothing on a device: they make a tensor, or another view of one.
_NO_LAUNCH = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "alias", "set_")
_OVERWRITES = ("copy_", "fill_", "zero_")  # their result's old values are not read
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
_ADDRESSES = 2**22  # kept before they are merged


@dataclass
class Launch:
    """One launch: bytes that it touches, bytes that its programs ask for, and FLOPs of matrix products."""

    name: str
    read: float = 0
    written: float = 0
    requested: float = 0
    flops: float = 0

    @property
    def moved(self) -> float:
        return self.read + self.written

    def times(self, factor: float, other: Launch) -> Launch:
        """This launch plus `factor` times the difference to another one."""
        fields = ("read", "written", "requested", "flops")
        values = {each: getattr(self, each) + factor * (getattr(other, each) - getattr(self, each)) for each in fields}
        return replace(self, **values)


def count(run: Callable[[], Any]) -> list[Launch]:
    """Every launch of a call, in order; autograd's as well."""
    launches: list[Launch] = []
    with _PyTorchLaunches(launches), _triton_launches(launches):
        run()
    return launches


def for_clips(launches: Callable[[int], list[Launch]], clips: int, start: int = 1) -> list[Launch]:
    """The launches for many clips, from those for `start` and for one more: each grows in proportion.

    Raises:
        ValueError: what is launched depends on the number of clips.
    """
    some, more = launches(start), launches(start + 1)
    if [launch.name for launch in some] != [launch.name for launch in more]:
        raise ValueError(f"{start} and {start + 1} clips start different launches")
    return [first.times(clips - start, second) for first, second in zip(some, more, strict=True)]


class _PyTorchLaunches(TorchDispatchMode):
    """Counts a tensor's own values once: what is broadcast is read once, a slice is not its whole tensor."""

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name, mutable = func.overloadpacket.__name__, func._schema.is_mutable
        given, returned = ([t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in ((args, kwargs), out))
        pointers = {tensor.data_ptr() for tensor in given}
        # Some views are not declared as such.
        is_view = func.is_view or (not mutable and all(tensor.data_ptr() in pointers for tensor in returned))
        written = sum(map(_bytes, returned))
        if name in _NO_LAUNCH or is_view or not written:
            return out
        kept = {id(tensor) for tensor in returned} if name in _OVERWRITES or "out" in kwargs else set()
        read = sum(_bytes(tensor) for tensor in given if id(tensor) not in kept)
        formula = flop_registry.get(func.overloadpacket) if name in _PRODUCTS else None
        flops = formula(*args, **kwargs, out_val=out) if formula else 0
        self.launches.append(Launch(name, read, written, read, flops))
        return out


def _bytes(tensor: Tensor) -> int:
    own = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        own *= size if stride else min(size, 1)
    return own * tensor.element_size()


@dataclass
class _Addresses:
    """A set of addresses and the size of the values there, in bytes."""

    parts: list[np.ndarray] = field(default_factory=list)
    sizes: list[np.ndarray] = field(default_factory=list)
    held: int = 0
    asked: int = 0

    def add(self, addresses: np.ndarray, size: int) -> None:
        self.asked += addresses.size * size
        own = np.unique(addresses)
        self.parts.append(own)
        self.sizes.append(np.full(own.shape, size, dtype=np.uint8))
        self.held += own.size
        if self.held > _ADDRESSES:
            self._merge()

    def _merge(self) -> None:
        addresses, first = np.unique(np.concatenate(self.parts), return_index=True)
        self.sizes = [np.concatenate(self.sizes)[first]]
        self.parts, self.held = [addresses], 0

    def bytes(self) -> int:
        if not self.parts:
            return 0
        self._merge()
        return int(self.sizes[0].sum(dtype=np.int64))


@contextmanager
def _triton_launches(launches: list[Launch]) -> Iterator[None]:
    """Count launches in Triton's interpreter; where Triton is not installed there are none."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        yield
        return
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    before = builder.create_masked_load, builder.create_masked_store, builder.create_dot, executor.__call__
    load, store, dot, call = before
    read, written, flops = _Addresses(), _Addresses(), [0]

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        read.add(pointers.data[mask.data.astype(bool)], pointers.get_element_ty().primitive_bitwidth // 8)
        return load(self, pointers, mask, *rest, **more)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        written.add(pointers.data[mask.data.astype(bool)], pointers.get_element_ty().primitive_bitwidth // 8)
        return store(self, pointers, value, mask, *rest, **more)

    def counted_dot(self: Any, a: Any, b: Any, *rest: Any, **more: Any) -> Any:
        flops[0] += 2 * a.data.size * b.data.shape[-1]
        return dot(self, a, b, *rest, **more)

    def counted_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal read, written
        read, written, flops[0] = _Addresses(), _Addresses(), 0
        with _disable_current_modes():  # the interpreter's own work with tensors
            out = call(self, *args, **kwargs)
        launches.append(Launch(self.fn.__name__, read.bytes(), written.bytes(), read.asked, flops[0]))
        return out

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    builder.create_dot, executor.__call__ = counted_dot, counted_call
    try:
        yield
    finally:
        builder.create_masked_load, builder.create_masked_store, builder.create_dot, executor.__call__ = before
