"""The losses against plain PyTorch, torch.compile and fused linear cross-entropies: time of a call.

    python benchmarks/loss_speed.py
    python benchmarks/loss_speed.py --cases k400 pairs --quick --no-compile

All variants have the same inputs and take turns in one run. A variant that disagrees with the reference in double
precision is not timed, and the exit code is then 1. The floor is the matrix products alone: one forward, two more
backward, or one more where the decoder is frozen. Features are 512 wide and fp32. On a GPU every variant is timed once
more as a CUDA graph, recorded once and replayed: without any work of the processor. Writes loss_speed.json and
loss_speed.png.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command, framework, workloads
from benchmarks.framework import COMPILED, EAGER, PASSES, TURN_SECONDS
from benchmarks.measure import calls_for, interleave, launches, recorded, summary, waits
from benchmarks.workloads import Leaves
from m2clip.kernels.ops.masked_words import IGNORE, masked_word_reference

LINEAR, LIGER = "linear_cross_entropy", "Liger"
WORDS = "masked_word_loss"
DIM, SCALE = 512, 100.0
Fused = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # (rows, weight, targets, bias) -> loss


@dataclass(frozen=True)
class Case:
    """rows: videos, or masked words; columns: classes, or words; frozen: the decoder needs no gradient."""

    name: str
    op: str
    rows: int
    columns: int
    frozen: bool = False
    dtype: str = "float32"


CASES = (
    Case("k400", "cosine_cross_entropy", 64, 400),
    Case("ssv2", "cosine_cross_entropy", 64, 174),
    Case("k400-256", "cosine_cross_entropy", 256, 400),
    Case("many", "cosine_cross_entropy", 64, 20_000),
    Case("pairs", "soft_target_kl", 64, 64),
    Case("pairs-256", "soft_target_kl", 256, 256),
    Case("words", WORDS, 128, 520),
    Case("words-frozen", WORDS, 128, 49_408, frozen=True),
    Case("words-trained", WORDS, 128, 49_408),
)


class Problem(framework.Problem):
    what = "Losses"
    tolerance = {"float32": 2e-4}  # logits reach 100, and so do their rounding errors
    overwrites = ()
    memory_on = ()
    constants = {"dtype": "float32", "logit_scale": SCALE}

    def __init__(self, case: Case, device: torch.device) -> None:
        if case.op == WORDS:
            work = workloads.masked_words(4 * case.rows, case.rows, case.columns, DIM)
        else:
            work = workloads.loss(case.op, case.rows, case.columns, DIM, scale=SCALE)
        super().__init__(case, device, work, output=(), frozen=("weight",) if case.frozen else ())
        self.products = (1, 2 if case.frozen else 3)

    @staticmethod
    def title(case: Mapping[str, Any]) -> str:
        frozen = ", decoder frozen" if case["frozen"] else ""
        return f"{case['op']} {case['rows']}x{case['columns']}, D={case['dim']}{frozen}"

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "dim": DIM}

    def reference(self, leaves: Leaves) -> Tensor:
        if self.case.op != WORDS:
            return super().reference(leaves)
        hidden, weight, bias, targets = leaves.values()
        masked = (targets != IGNORE).nonzero().squeeze(1)
        return masked_word_reference(hidden[masked], weight, bias, targets[masked]) / masked.numel()

    def builders(self) -> tuple[dict[str, framework.Builder], dict[str, str]]:
        ours, missing = super().builders()
        found = {name: ours.pop(name) for name in (EAGER, COMPILED)}
        for name, (fused, why) in self.fused_losses().items():
            if fused is None:
                missing[name] = why
            else:
                found[name] = partial(self.variant, partial(self.of_fused, fused))
        if self.case.op == WORDS:
            ours = {"m2clip": partial(self.on, "auto")}
            missing = {name: why for name, why in missing.items() if not name.startswith("m2clip")}
        return found | ours, missing

    def fused_losses(self) -> dict[str, tuple[Fused | None, str]]:
        """Fused linear cross-entropies of other libraries, or why they are missing."""
        if self.case.op == "soft_target_kl":
            return {}
        found: dict[str, tuple[Fused | None, str]] = {}
        if hasattr(F, "linear_cross_entropy"):
            found[LINEAR] = (lambda x, w, t, b: F.linear_cross_entropy(x, w, t, linear_bias=b)), ""
        else:
            found[LINEAR] = None, f"torch {torch.__version__} has none"
        if self.device.type != "cuda":
            found[LIGER] = None, "it needs a GPU"
        elif importlib.util.find_spec("liger_kernel") is None:
            found[LIGER] = None, "liger_kernel is not installed"
        else:
            from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as liger

            found[LIGER] = (lambda x, w, t, b: liger(x, w, t, b)), ""
        return found

    def of_fused(self, fused: Fused) -> Tensor:
        """This loss by a fused linear cross-entropy: features are normalised before it."""
        if self.case.op == WORDS:
            hidden, weight, bias, targets = self.leaves.values()
            masked = (targets != IGNORE).nonzero().squeeze(1)
            return fused(hidden[masked], weight, targets[masked], bias)
        v, w, labels, scale = self.leaves.values()
        return fused(scale * F.normalize(v, dim=-1), F.normalize(w, dim=-1), labels, None)

    def forward_flops(self) -> int:
        return 2 * self.case.rows * self.case.columns * DIM

    def floor_runs(self) -> dict[str, Callable[[], object]]:
        case, b = self.case, list(self.leaves.values())[1].detach()
        a = torch.randn(case.rows, DIM, device=self.device)
        slopes = torch.randn(case.rows, case.columns, device=self.device)

        def backward() -> None:
            torch.mm(a, b.t()), torch.mm(slopes, b)
            if not case.frozen:
                torch.mm(slopes.t(), a)

        return dict(zip(PASSES, (lambda: torch.mm(a, b.t()), backward), strict=True))

    def time_more(self, variants: dict[str, Any], runs: Mapping[str, Callable[[], object]], rounds: int) -> None:
        """On a GPU, ours and what it is compared with as CUDA graphs, and the launches and waits of all."""
        if self.device.type != "cuda":
            return
        if self.case.op != WORDS:  # how many words are masked is read by the processor
            ours = [name for name in runs if name.startswith("m2clip") or name in self.baselines]
            graphs = {name: recorded(runs[name]) for name in ours}
            calls = {name: calls_for(graph, self.device, TURN_SECONDS) for name, graph in graphs.items()}
            for name, taken in interleave(graphs, rounds, self.device, calls=calls).items():
                variants[name]["graph_seconds"] = summary(taken)
        for name, run in runs.items():
            variants[name]["launches"], variants[name]["waits"] = launches(run), waits(run)


def main() -> None:
    command.run(__file__, __doc__, Problem, {"cpu": CASES, "cuda": CASES}, quick=("k400", "pairs", "words"))


if __name__ == "__main__":
    main()
