"""Every operation on every backend, forward and forward+backward, with pytest-benchmark.

    pytest benchmarks/ops
    pytest benchmarks/ops --benchmark-autosave --benchmark-storage=file://benchmarks/results/cpu/history
    pytest benchmarks/ops -k "ted_adapter and native" --benchmark-compare

Saved runs are the history that --benchmark-compare and benchmarks/compare.py read. A backend that cannot run an
operation here is skipped with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks import adapter_variants, framework
from benchmarks.measure import device_name, synchronise
from benchmarks.workloads import Workload, bottleneck, gelu, loss, masked_words, msta
from m2clip import kernels
from m2clip.kernels import TimeLayout


@dataclass(frozen=True)
class Case:
    dtype: str = "float32"


def _ted(clips: int, grid: tuple[int, int], dim: int, width: int, device: torch.device) -> framework.Problem:
    return adapter_variants.Problem(adapter_variants.Case("", clips, 8, grid, dim, width), device)


def _made(make: Callable[[], Workload], device: torch.device) -> framework.Problem:
    work = make()
    scalar = work.op in ("cosine_cross_entropy", "soft_target_kl", "masked_word_loss")
    return framework.Problem(Case(), device, work, output=() if scalar else None)


WORKLOADS: dict[str, Callable[[torch.device], framework.Problem]] = {
    "ted_adapter B/16 R=384": partial(_ted, 1, (14, 14), 768, 384),
    "ted_adapter B/16 R=64": partial(_ted, 1, (14, 14), 768, 64),
    "ted_adapter 2x2 R=16": partial(_ted, 1, (2, 2), 32, 16),
    "bottleneck_adapter 3152x768 R=384": partial(_made, lambda: bottleneck((3152, 768), 384)),
    "bottleneck_adapter 616x512 R=128": partial(_made, lambda: bottleneck((616, 512), 128)),
    "msta_adapter B/16 d=256": partial(_made, lambda: msta((8, 197, 768), 256, TimeLayout(8))),
    "msta_adapter ViCLIP B/16 d=256": partial(_made, lambda: msta((1, 1569, 768), 256, TimeLayout(8, joint=True))),
    "bias_gelu 3152x3072": partial(_made, lambda: gelu((3152, 3072))),
    "bias_gelu 616x2048": partial(_made, lambda: gelu((616, 2048))),
    "cosine_cross_entropy 64x400": partial(_made, lambda: loss("cosine_cross_entropy", 64, 400, 512)),
    "soft_target_kl 64x64": partial(_made, lambda: loss("soft_target_kl", 64, 64, 512)),
    "masked_word_loss 8 sentences of 4096 words": partial(_made, lambda: masked_words(8 * 77, 24, 4096, 512)),
}


@pytest.mark.parametrize("which", ["forward", "forward+backward"])
@pytest.mark.parametrize("backend", kernels.BACKENDS)
@pytest.mark.parametrize("workload", WORKLOADS)
def bench_op(benchmark: Any, device: torch.device, workload: str, backend: str, which: str) -> None:
    problem = WORKLOADS[workload](device)
    try:
        kernels.explain(workload.split()[0], next(iter(problem.leaves.values())), backend=backend)
    except ValueError as reason:
        pytest.skip(str(reason))
    run = problem.on(backend).runs()[which]

    def wait_for() -> None:
        run()
        synchronise(device)

    benchmark.group = f"{workload}, {which}"
    benchmark.extra_info.update(device=device_name(device), torch=torch.__version__, backend=backend)
    benchmark(wait_for)
