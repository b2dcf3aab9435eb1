"""One optimiser step on a device: forward and backward passes, clipping, update. No part of it waits for the device.

What a step found is read later, and an update that must not happen, because a loss or the gradient is not finite, is
left out by the device itself. So a GPU computes while the host prepares what comes next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m2clip import distributed
from m2clip.config_fields import OptimConfig
from m2clip.errors import InputError

Inputs = Sequence[Tensor]  # of the loss module: video, labels and whatever the loss has drawn
Capture = Callable[[Callable[[], None]], Callable[[], None]]  # records a function, returns what repeats it
WARM_UP_PASSES = 3


@dataclass(frozen=True)
class Findings:
    """What a step found.

    Attributes:
        losses: "loss" and "loss_HEAD", means over the step's passes and over the processes.
        grad_norm: norm of all gradients together, before clipping.
        finite: whether the step counts: losses finite in all processes and the gradient too, or its overflow only a
            sign of too high an fp16 loss scale.
        bad_loss: whether a loss was not finite in any process; bad_passes: this process's passes of which that is true.
        counts: the counts given to the step, summed over the processes.
    """

    losses: dict[str, float]
    grad_norm: float
    finite: bool
    bad_loss: bool
    bad_passes: list[int]
    counts: dict[str, float]


class Pending:
    """The findings of a step that may still be running."""

    def __init__(self, values: Tensor, losses: Sequence[str], counts: Sequence[str]) -> None:
        # The copy's own event: reading the tensor itself would wait for everything launched since, too.
        self._values = values.to("cpu", non_blocking=True)
        self._losses, self._counts = losses, counts
        self._copied = torch.cuda.Event() if values.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def read(self) -> Findings:
        """Wait for the step, and for no later one."""
        if self._copied is not None:
            self._copied.synchronize()
        values = self._values.tolist()
        means, counts = values[: len(self._losses)], values[len(self._losses) :][: len(self._counts)]
        bad, norm, overflow, *passes = values[len(self._losses) + len(self._counts) :]
        return Findings(
            losses=dict(zip(self._losses, means, strict=True)),
            grad_norm=norm,
            finite=not bad and (math.isfinite(norm) or bool(overflow)),
            bad_loss=bool(bad),
            bad_passes=[number for number, spoiled in enumerate(passes) if spoiled],
            counts=dict(zip(self._counts, counts, strict=True)),
        )


@dataclass(frozen=True)
class Launched:
    """A step that was launched and not taken note of yet.

    Attributes:
        step: optimiser steps before it.
        lr: its learning rate.
        pending: what it finds.
        videos: positions in the training list, batch by batch.
        replaced: unreadable videos of its batches.
    """

    step: int
    lr: float
    pending: Pending
    videos: list[list[int]]
    replaced: list[dict[str, Any]]


class Stepper:
    """Takes optimiser steps.

    Args:
        loss: `m2clip.train.setup.LossModule`, or DistributedDataParallel around it; takes video, labels and what was
            drawn, returns the total and the parts.
        optimizer: a fused one (`m2clip.train.optim.build_optimizer`).
        scaler: of fp16 losses; a disabled one otherwise.
        clip_grad: largest norm of all gradients together; None does not clip.
        device: where the model is.
        capture: None launches every pass anew; `cuda_capture` records the first one and replays it on the others.
        keep_gradients: zero the gradients' memory after a step and use it again, as whoever records passes must.
    """

    def __init__(
        self,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        clip_grad: float | None,
        device: torch.device,
        capture: Capture | None = None,
        keep_gradients: bool = False,
    ) -> None:
        self.loss: Any = loss
        self.optimizer: Any = optimizer
        self.scaler, self.device = scaler, device
        self.max_norm = clip_grad or math.inf
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.recorded = None if capture is None else RecordedPass(self._run_pass, self.parameters, capture)
        self.keep_gradients = keep_gradients or capture is not None
        self.names: tuple[str, ...] = ()

    def __call__(self, batches: Sequence[Inputs], counts: dict[str, float]) -> Pending:
        """Take one step.

        Args:
            batches: inputs of one pass each, on the CPU and in pinned memory where they go to a GPU.
            counts: numbers to be summed over the processes along with the losses.
        """
        share = 1 / len(batches)
        found = torch.stack([self._pass(batch, share, last=batch is batches[-1]) for batch in batches])
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        bad = ~found[:, 0].isfinite()

        means = (found * share).sum(dim=0).double() / distributed.world_size()
        summed = torch.cat([means, self._on_device(list(counts.values())), bad.any().double()[None]])
        distributed.sum_in_place(summed)
        usable = (summed[-1] == 0) & norm.isfinite()
        overflow = self.scaler.scale(norm.new_ones(())) > 1.0

        self.optimizer.found_inf = (~usable).float()
        self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=not self.keep_gradients)
        values = torch.cat([summed, torch.stack([norm.double(), overflow.double()]), bad.double()])
        return Pending(values, self.names, list(counts))

    def _pass(self, inputs: Inputs, share: float, last: bool) -> Tensor:
        if self.recorded is not None:
            return self.recorded([self._to_device(tensor) for tensor in inputs], share)
        alone = not isinstance(self.loss, nn.parallel.DistributedDataParallel)
        with nullcontext() if last or alone else self.loss.no_sync():
            return self._run_pass([self._to_device(tensor) for tensor in inputs], share)

    def _run_pass(self, inputs: Inputs, share: float | Tensor) -> Tensor:
        """Add the gradients of a share of the loss; returns the total and the parts, (1 + heads,)."""
        total, parts = self.loss(*inputs)
        self.names = ("loss", *(f"loss_{name}" for name in parts))
        self.scaler.scale(total * share).backward()
        return torch.stack([total.detach().float(), *(part.float() for part in parts.values())])

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _on_device(self, numbers: list[float]) -> Tensor:
        values = torch.tensor(numbers, dtype=torch.float64)
        return self._to_device(values.pin_memory() if self.device.type == "cuda" else values)


class RecordedPass:
    """A pass recorded at the first call and repeated at the others, on whatever its input buffers then hold.

    Args:
        run_pass: (inputs, share) -> findings, adding to the parameters' gradients.
        parameters: what gets gradients; their memory stays the same from the first call on.
        capture: `cuda_capture`, or in a test a function that repeats without a GPU.
    """

    def __init__(
        self,
        run_pass: Callable[[Inputs, Tensor], Tensor],
        parameters: Sequence[nn.Parameter],
        capture: Capture,
    ) -> None:
        self.run_pass, self.parameters, self.capture = run_pass, parameters, capture
        self.repeat: Callable[[], None] | None = None

    def __call__(self, inputs: Inputs, share: float) -> Tensor:
        """The findings of a pass over these inputs, whose shapes must be those of the first call.

        Raises:
            ValueError: inputs of other shapes.
        """
        if self.repeat is None:
            self._record(inputs)
        assert self.repeat is not None
        for buffer, tensor in zip(self.inputs, inputs, strict=True):
            if buffer.shape != tensor.shape:
                raise ValueError(
                    f"a pass recorded for inputs {tuple(buffer.shape)} was given {tuple(tensor.shape)}: record another"
                )
            buffer.copy_(tensor)
        self.share.fill_(share)
        self.repeat()
        return self.found.clone()  # the next repetition writes into the same memory

    def _record(self, inputs: Inputs) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.share = torch.ones((), device=inputs[0].device)
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, before, strict=True):
            if gradient is None:
                parameter.grad = torch.zeros_like(parameter)
        self.repeat = self.capture(self._run)
        for parameter, gradient in zip(self.parameters, before, strict=True):  # what the warm-up has added
            assert parameter.grad is not None
            parameter.grad.zero_() if gradient is None else parameter.grad.copy_(gradient)

    def _run(self) -> None:
        self.found = self.run_pass(self.inputs, self.share)


def cuda_capture(run: Callable[[], None]) -> Callable[[], None]:
    """Record a function as a CUDA graph after a few warm-up calls; returns what replays it.

    Random numbers are the same as without a graph: the warm-up draws, but its draws are taken back, and a replay moves
    the generator on by as much as a call.

    Args:
        run: must launch the same kernels on the same memory at each call, and wait for nothing.
    """
    generator = torch.cuda.get_rng_state()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_PASSES):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as the one that pins batches, may go on with what they do meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    torch.cuda.set_rng_state(generator)
    return graph.replay


def compile_loss(loss: Any, mode: str, graphed: bool) -> None:
    """Let torch.compile compile a `LossModule` in place.

    Args:
        loss: the module, its model on its device and in its precision.
        mode: "default", "reduce-overhead" or "max-autotune".
        graphed: whether the passes are recorded as a CUDA graph anyway, so that the compiler need not do it.
    """
    loss.model.fill_caches()  # which is no business of the compiler
    if graphed and mode == "max-autotune":
        mode = "max-autotune-no-cudagraphs"
    # Batches are all of one size (the last one of an epoch is dropped) and what is drawn is too: nothing is dynamic.
    loss.compile(mode=mode, dynamic=False, fullgraph=distributed.world_size() == 1)


def check_step_options(optim: OptimConfig, device: torch.device) -> None:
    """Refuse ways to run a step that cannot work here.

    Raises:
        InputError: fp16 or a CUDA graph without a GPU; a CUDA graph in several processes, around a compiler that makes
            its own, or with blocks that are computed again.
    """
    if optim.precision == "fp16" and device.type == "cpu":
        raise InputError("optim.precision is fp16, which needs a GPU: use bf16 or fp32 on the CPU")
    if not optim.cuda_graph:
        return
    if device.type != "cuda":
        raise InputError(f"optim.cuda_graph needs a GPU, and this run is on the {device.type}: set it to false")
    if distributed.world_size() > 1:
        raise InputError("optim.cuda_graph works in one process: set it to false, or train without torchrun")
    if optim.compile == "reduce-overhead":
        raise InputError("optim.compile=reduce-overhead records CUDA graphs itself: set optim.cuda_graph to false")
    if optim.checkpointing > 0:  # which reads the generator's state, and no graph can
        raise InputError("optim.checkpointing works without optim.cuda_graph: set one of them to 0 or false")
