"""What all operations share: how one becomes an operator of PyTorch with a gradient.

There are two ways to the same backend. Where somebody watches the dispatcher (torch.compile, torch.export, dispatch
modes, tensor subclasses) an operator with a registered gradient is called. In plain eager mode an autograd function
calls the backend directly, which saves a good part of the cost of a small call.

A kernel's gradients are plain numbers to autograd. Where a backward pass is itself recorded (`create_graph=True`,
gradient penalties) or batched (`is_grads_batched=True`), every operation takes the slopes of its reference instead.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..torch_private import batched, dispatch_mode, transformed

LIBRARY = torch.library.Library("m2clip", "FRAGMENT")
# By operation and backend the module with its `forward` and `backward`, of a loss with functions of its name. The
# reference is no entry: PyTorch differentiates it.
IMPLEMENTATIONS: dict[str, dict[str, str]] = {}


class Planned(NamedTuple):
    """A module of kernels that takes one of its plans, whatever its own choice would be."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


def implementation(op: str, backend: str) -> Any:
    """The module of an operation on a backend; after a slash, as in "triton/launches", the name of a plan."""
    name, _, plan = backend.partition("/")
    return _module(IMPLEMENTATIONS[op][name], plan)


@functools.cache
def _module(name: str, plan: str) -> Any:
    """Imported here, so that Triton is loaded where it is used."""
    module = importlib.import_module(f"..{name}", __package__)
    return Planned(functools.partial(module.forward, plan=plan), module.backward) if plan else module


def define(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    flops: Callable[..., int] | None = None,
    keys: Sequence[str] = ("CPU", "CUDA"),
    tags: Sequence[torch.Tag] = (),
) -> Any:
    """Register an operator under torch.ops.m2clip.

    Args:
        schema: its name, arguments and results.
        run: what computes it.
        fake: its results without their values, for compilers.
        flops: products and convolutions, as torch's own formulas count them, of shapes in place of tensors.
        keys: of the dispatcher, on which it runs.
        tags: what compilers must know of it.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=tags)
    for key in keys:
        # Products write into given memory, which autograd's bookkeeping forbids even where nothing is recorded.
        LIBRARY.impl(name, torch.no_grad()(run), key)
    torch.library.register_fake(f"m2clip::{name}", fake, lib=LIBRARY)
    operator = getattr(torch.ops.m2clip, name)
    if flops is not None:
        register_flop_formula(operator)(flops)
    return operator


def watched(*tensors: Tensor) -> bool:
    """Whether a call has to go through the dispatcher: somebody traces, counts or fakes it."""
    return (
        torch.compiler.is_compiling()
        or dispatch_mode() is not None
        or any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors)
    )


def recorded(slope: Tensor) -> bool:
    """Whether the backward pass that asks, for a gradient of its output, is recorded or that gradient batched."""
    return torch.is_grad_enabled() or transformed() or batched(slope)


def reference_gradients(
    run: Callable[..., Tensor], inputs: Sequence[Tensor], needs: Sequence[bool], slope: Tensor
) -> list[Tensor | None]:
    """Gradients of an operation's reference, which can be differentiated again.

    Args:
        run: the reference, a function of the inputs alone.
        inputs: tensors, those that need a gradient floating-point.
        needs: for each of them, whether its gradient is wanted.
        slope: gradient of the output.

    Returns:
        The gradient of every input, None where it is not wanted.
    """
    if not any(needs):
        return [None] * len(needs)
    again = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(slope.device.type, enabled=False):
        # One input may have been computed from another: of a view of each, the gradient is the partial one.
        views = [x.view_as(x) if need else x for x, need in zip(inputs, needs, strict=True)]
        chosen = [view for view, need in zip(views, needs, strict=True) if need]
        output = run(*views)
        found = iter(torch.autograd.grad(output, chosen, slope.to(output.dtype), create_graph=again))
    return [next(found) if need else None for need in needs]


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off, which would round products of fp32 tensors, for what is in the right dtypes already."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


class Operator:
    """An operation that backends compute, as torch.ops.m2clip.NAME and NAME_backward; calling it gives its output.

    Its arguments are tensors, perhaps a list of weights after them, options, and the backend's name. In the functions
    `run` is the backend's module, and `arguments` are all but the backend's name.

    Args:
        name: of the operation.
        arguments: their schema, without the backend's name.
        backends: modules of kernels by backend.
        reference: the output of `*arguments` in plain PyTorch.
        forward: the output and what the backward pass wants to find again, of `run, *arguments, keep`; without keep
            the latter is not looked at.
        backward: the gradients of the leading tensors, each empty unless needed, and those of all weights, or none, of
            `run, slope, saved, needs, *arguments`; needs has an entry for each leading tensor and one for the weights.
        like: as forward, but without values, of `run, *arguments`.
        flops: of the forward pass, of `*arguments`.
        backward_flops: of the backward pass, of `needs, *arguments`.
        check: raises a ValueError or TypeError where what `*arguments` say of each other does not fit together; of what
            is called through torch.ops, as public functions check more than that.
        added: which leading tensor, if any, is added to the output as it is. Its gradient is the output's; it is not
            kept, and where it is asked for again the first tensor stands in its place.
        memory_format: of the leading tensors' gradients.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        backends: dict[str, str],
        *,
        reference: Callable[..., Tensor],
        forward: Callable[..., Sequence[Tensor]],
        backward: Callable[..., list[Tensor]],
        like: Callable[..., Sequence[Tensor]],
        flops: Callable[..., int] | None = None,
        backward_flops: Callable[..., int] | None = None,
        check: Callable[..., object],
        added: int | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        IMPLEMENTATIONS[name] = backends
        self.name, self.leading, self.has_weights = name, arguments.count("Tensor "), "Tensor[]" in arguments
        self.reference, self.forward, self.backward, self.like = reference, forward, backward, like
        self.check, self.added, self.memory_format = check, added, memory_format
        self.operator = define(
            f"{name}({arguments}, str backend, bool keep) -> (Tensor, Tensor[])",
            self._checked_run,
            self._fake,
            flops and (lambda *shapes, **_: flops(*shapes[:-2])),
        )
        self.backward_operator = define(
            f"{name}_backward(Tensor slope, {arguments}, str backend, Tensor[] saved, bool[] needs) -> Tensor[]",
            self._checked_run_backward,
            self._backward_fake,
            backward_flops and (lambda slope, *shapes, **_: backward_flops(shapes[-1], *shapes[:-3])),
        )
        torch.library.register_autograd(
            f"m2clip::{name}", self._registered_gradient, setup_context=self._registered_context, lib=LIBRARY
        )
        torch.library.register_autograd(f"m2clip::{name}_backward", self._no_second_gradient, lib=LIBRARY)

    def __call__(self, *arguments: Any) -> Tensor:
        """The output with its gradient; the backend's name comes last."""
        tensors, options = self._split(arguments)
        train = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        if watched(*tensors):
            return self.operator(*arguments, train)[0]
        if train:
            return _Eager.apply(self, options, *tensors)
        return self.run(*arguments, False)[0]

    def run(self, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
        """The operator: the output, and what the backward pass takes, if it is kept."""
        *own, backend, keep = arguments
        with _on_device_of(own[0]), full_precision(own[0]):
            output, *saved = self.forward(implementation(self.name, backend), *own, keep)
        return output, saved if keep else []

    def run_backward(self, slope: Tensor, *arguments: Any) -> list[Tensor]:
        """The operator of the backward pass."""
        *own, backend, saved, needs = arguments
        with _on_device_of(own[0]), full_precision(slope):
            return self.backward(implementation(self.name, backend), slope, saved, needs, *own)

    def _checked_run(self, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
        self.check(*arguments[:-2])
        return self.run(*arguments)

    def _checked_run_backward(self, slope: Tensor, *arguments: Any) -> list[Tensor]:
        self.check(*arguments[:-3])
        return self.run_backward(slope, *arguments)

    def _no_second_gradient(self, *_: Any) -> None:
        raise RuntimeError(
            f"m2clip::{self.name}_backward has no gradient: differentiate m2clip::{self.name} with create_graph=True"
        )

    def _fake(self, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
        *own, backend, keep = arguments
        output, *saved = self.like(implementation(self.name, backend), *own)
        return output, saved if keep else []

    def _backward_fake(self, slope: Tensor, *arguments: Any) -> list[Tensor]:
        needs = arguments[-1]
        gradients = [
            torch.empty_like(tensor, memory_format=self.memory_format) if need else tensor.new_empty(0)
            for tensor, need in zip(arguments[: self.leading], needs, strict=False)
        ]
        if self.has_weights and needs[-1]:
            gradients += [torch.empty_like(tensor) for tensor in arguments[self.leading]]
        return gradients

    def _split(self, arguments: Sequence[Any]) -> tuple[list[Tensor], Sequence[Any]]:
        """All tensors in a row, and the options."""
        if self.has_weights:
            return [*arguments[: self.leading], *arguments[self.leading]], arguments[self.leading + 1 :]
        return list(arguments[: self.leading]), arguments[self.leading :]

    def _joined(self, tensors: Sequence[Tensor], options: Sequence[Any]) -> tuple[Any, ...]:
        """What `_split` has taken apart."""
        if self.has_weights:
            return *tensors[: self.leading], list(tensors[self.leading :]), *options
        return *tensors, *options

    def save(self, ctx: Any, tensors: Sequence[Tensor], options: Sequence[Any], saved: Sequence[Tensor]) -> None:
        """Keep what `gradients` takes."""
        if self.added is not None:
            tensors = (*tensors[: self.added], *tensors[self.added + 1 :])
        ctx.save_for_backward(*tensors, *saved)
        ctx.options = options

    def gradients(
        self, ctx: Any, slope: Tensor, needs: Sequence[bool], keep: bool, backward: Callable[..., list[Tensor]]
    ) -> list[Tensor | None]:
        """Of all tensors in a row, None unless needed.

        Args:
            ctx: where `save` has kept them.
            slope: gradient of the output.
            needs: for each tensor, whether its gradient is needed.
            keep: whether the forward pass has kept what the backward pass takes.
            backward: the operator of the backward pass, or what it runs.
        """
        kept, added = ctx.saved_tensors, self.added
        if added is not None:
            kept = (*kept[:added], kept[0], *kept[added:])
            need_added, needs = needs[added], (*needs[:added], False, *needs[added + 1 :])
        tensors, saved = kept[: len(needs)], list(kept[len(needs) :])
        found: list[Tensor | None]
        if recorded(slope):
            options = ctx.options[:-1]
            found = reference_gradients(lambda *own: self.reference(*self._joined(own, options)), tensors, needs, slope)
        else:
            arguments = self._joined(tensors, ctx.options)
            if not keep:  # called for inference, and differentiated after all
                saved = self.operator(*arguments, True)[1]
            wanted = list(needs[: self.leading])
            if self.has_weights:
                wanted.append(any(needs[self.leading :]))
            found = [*backward(slope, *arguments, saved, wanted)]
            for index in range(self.leading):
                if not needs[index]:
                    found[index] = None
            found += [None] * (len(needs) - len(found))
        if added is not None and need_added:
            found[added] = slope
        return found

    def _registered_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
        *arguments, ctx.keep = inputs
        self.save(ctx, *self._split(arguments), output[1])

    def _registered_gradient(self, ctx: Any, slope: Tensor, _: Any) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[: self.leading]
        if self.has_weights:
            needs = (*needs, *ctx.needs_input_grad[self.leading])
        found = self.gradients(ctx, slope, needs, ctx.keep, self.backward_operator)
        return *self._joined(found, [None] * len(ctx.options)), None  # type: ignore[arg-type]


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: Operator, options: Sequence[Any], *tensors: Tensor) -> Tensor:
        output, saved = operator.run(*operator._joined(tensors, options), True)
        ctx.operator = operator
        operator.save(ctx, tensors, options, saved)
        return output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        operator = ctx.operator
        return None, None, *operator.gradients(ctx, slope, ctx.needs_input_grad[2:], True, operator.run_backward)


def _on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Kernels are launched on the current GPU, which on a machine with several need not be the tensors' own."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
