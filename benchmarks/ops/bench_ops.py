"""Every operation on every backend, forward and forward+backward, with pytest-benchmark.

    pytest benchmarks/ops
    pytest benchmarks/ops --benchmark-autosave --benchmark-storage=file://benchmarks/results/cpu/history
    pytest benchmarks/ops -k "ted_adapter and native" --benchmark-compare

Saved runs are the history that --benchmark-compare and benchmarks/compare.py read. A backend that cannot run an
operation here is skipped with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.adapter_variants import Case, Problem, ted_weights
from benchmarks.measure import device_name, synchronise
from m2clip import kernels
from m2clip.kernels.gelu_ops import bias_gelu

# The operation on a backend, and its inputs that are differentiated.
Made = tuple[Callable[[str], Tensor], list[Tensor]]


def _ted(name: str, clips: int, grid: tuple[int, int], dim: int, width: int) -> Callable[[torch.device], Made]:
    def make(device: torch.device) -> Made:
        problem = Problem(Case(name, clips, 8, grid, dim, width), device)
        weights = problem.copies(torch.float32)
        x = problem.x.requires_grad_()
        taken = ted_weights(weights, shared=False)
        return lambda backend: kernels.ted_adapter(x, taken, 8, grid=grid, backend=backend), [x, *weights.values()]

    return make


def _bottleneck(tokens: int, dim: int, width: int) -> Callable[[torch.device], Made]:
    def make(device: torch.device) -> Made:
        x, *weights = _leaves(device, (tokens, dim), (width, dim), (width,), (dim, width), (dim,))
        return lambda backend: kernels.bottleneck_adapter(x, *weights, backend=backend), [x, *weights]

    return make


def _msta(shape: tuple[int, int, int], width: int, joint: bool) -> Callable[[torch.device], Made]:
    def make(device: torch.device) -> Made:
        dim = shape[2]
        sizes = ((width, dim), (width,), (width, width), (width,), (dim, width), (dim,), (dim, 1, 3), (dim,))
        x, base, *tensors = _leaves(device, shape, shape, *sizes)
        weights, time = kernels.MSTAWeights(*tensors), kernels.TimeLayout(8, joint)
        return lambda backend: kernels.msta_adapter(x, base, weights, time, backend=backend), [x, base, *tensors]

    return make


def _bias_gelu(tokens: int, columns: int) -> Callable[[torch.device], Made]:
    def make(device: torch.device) -> Made:
        h, bias = _leaves(device, (tokens, columns), (columns,))
        return lambda backend: bias_gelu(h, bias, backend=backend), [h, bias]

    return make


def _cosine(videos: int, classes: int, dim: int) -> Callable[[torch.device], Made]:
    def make(device: torch.device) -> Made:
        v, w, scale = _leaves(device, (videos, dim), (classes, dim), ())
        labels = torch.arange(videos, device=device) % classes
        return lambda backend: kernels.cosine_cross_entropy(v, w, labels, scale, backend=backend), [v, w, scale]

    return make


def _soft_target(videos: int, dim: int) -> Callable[[torch.device], Made]:
    def make(device: torch.device) -> Made:
        v, w, scale = _leaves(device, (videos, dim), (videos, dim), ())
        labels = torch.arange(videos, device=device) // 2
        return lambda backend: kernels.soft_target_kl(v, w, labels, scale, backend=backend), [v, w, scale]

    return make


def _masked_words(sentences: int, dim: int, words: int) -> Callable[[torch.device], Made]:
    def make(device: torch.device) -> Made:
        hidden, weight, bias = _leaves(device, (sentences, 77, dim), (words, dim), (words,))
        targets = torch.full((sentences, 77), -100, device=device)
        targets[:, 3:6] = torch.arange(3, device=device)
        return lambda backend: kernels.masked_word_loss(hidden, weight, bias, targets), [hidden, weight, bias]

    return make


def _leaves(device: torch.device, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(shape, generator=generator, device=device).requires_grad_() for shape in shapes]


WORKLOADS = {
    "ted_adapter B/16 R=384": _ted("b16-r384", 1, (14, 14), 768, 384),
    "ted_adapter B/16 R=64": _ted("b16-r64", 1, (14, 14), 768, 64),
    "ted_adapter 2x2 R=16": _ted("tiny", 1, (2, 2), 32, 16),
    "bottleneck_adapter 3152x768 R=384": _bottleneck(3152, 768, 384),
    "bottleneck_adapter 616x512 R=128": _bottleneck(616, 512, 128),
    "msta_adapter B/16 d=256": _msta((8, 197, 768), 256, joint=False),
    "msta_adapter ViCLIP B/16 d=256": _msta((1, 1569, 768), 256, joint=True),
    "bias_gelu 3152x3072": _bias_gelu(3152, 3072),
    "bias_gelu 616x2048": _bias_gelu(616, 2048),
    "cosine_cross_entropy 64x400": _cosine(64, 400, 512),
    "soft_target_kl 64x64": _soft_target(64, 512),
    "masked_word_loss 8 sentences of 4096 words": _masked_words(8, 512, 4096),
}


@pytest.mark.parametrize("which", ["forward", "forward+backward"])
@pytest.mark.parametrize("backend", kernels.BACKENDS)
@pytest.mark.parametrize("workload", WORKLOADS)
def bench_op(benchmark: Any, device: torch.device, workload: str, backend: str, which: str) -> None:
    call, inputs = WORKLOADS[workload](device)
    try:
        kernels.explain(workload.split()[0], inputs[0], backend=backend)
    except ValueError as reason:
        pytest.skip(str(reason))
    ones = torch.ones_like(call(backend))

    def forward() -> None:
        with torch.no_grad():
            call(backend)
        synchronise(device)

    def forward_and_backward() -> None:
        torch.autograd.grad(call(backend), inputs, ones)
        synchronise(device)

    benchmark.group = f"{workload}, {which}"
    benchmark.extra_info.update(device=device_name(device), torch=torch.__version__, backend=backend)
    benchmark(forward if which == "forward" else forward_and_backward)
