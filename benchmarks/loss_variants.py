"""What loss_speed.py times: cases of the losses, every way to compute them, the bare matrix products as their floor."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.adapter_variants import PASSES
from m2clip import kernels
from m2clip.kernels import reference
from m2clip.kernels.masked_words import IGNORE

Loss = Callable[..., Tensor]
EAGER, COMPILED, LINEAR, LIGER = "eager reference", "torch.compile", "linear_cross_entropy", "Liger"
DIM, SCALE = 512, 100.0
TOLERANCE = 2e-4  # of a tensor's norm: logits reach 100, and so do their rounding errors


@dataclass(frozen=True)
class Case:
    """rows: videos, or masked words; columns: classes, or words; frozen: the decoder needs no gradient."""

    name: str
    op: str
    rows: int
    columns: int
    frozen: bool = False

    @property
    def products(self) -> tuple[int, int]:
        """Matrix products of a forward pass, and of a forward and backward pass."""
        return 1, 2 if self.frozen else 3


CASES = (
    Case("k400", "cosine_cross_entropy", 64, 400),
    Case("ssv2", "cosine_cross_entropy", 64, 174),
    Case("k400-256", "cosine_cross_entropy", 256, 400),
    Case("many", "cosine_cross_entropy", 64, 20_000),
    Case("pairs", "soft_target_kl", 64, 64),
    Case("pairs-256", "soft_target_kl", 256, 256),
    Case("words", "masked_word_loss", 128, 520),
    Case("words-frozen", "masked_word_loss", 128, 49_408, frozen=True),
    Case("words-trained", "masked_word_loss", 128, 49_408),
)


@dataclass
class Problem:
    """Inputs of a case; what needs a gradient does."""

    case: Case
    device: torch.device
    inputs: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        generator, case = torch.Generator().manual_seed(0), self.case
        rows, columns = (torch.randn(size, DIM, generator=generator) for size in (case.rows, case.columns))
        labels = torch.randint(0, case.columns, (case.rows,), generator=generator)
        if case.op == "masked_word_loss":
            hidden = torch.randn(4 * case.rows, DIM, generator=generator)
            targets = torch.full((4 * case.rows,), IGNORE)
            targets[torch.randperm(4 * case.rows, generator=generator)[: case.rows]] = labels
            inputs = [hidden, columns * DIM**-0.5, torch.zeros(case.columns), targets]
        else:
            inputs = [rows, columns, labels, torch.tensor(SCALE)]
        self.inputs = [tensor.to(self.device) for tensor in inputs]
        for place, tensor in enumerate(self.inputs):
            tensor.requires_grad_(tensor.is_floating_point() and not (case.frozen and place == 1))

    def runs(self, loss: Loss) -> dict[str, Callable[[], object]]:
        """One call of each pass."""

        def forward() -> Tensor:
            with torch.no_grad():
                return loss(*self.inputs)

        return dict(zip(PASSES, (forward, lambda: self.gradients(loss, self.inputs)), strict=True))

    def floor_runs(self) -> dict[str, Callable[[], object]]:
        """The matrix products alone."""
        case = self.case
        a, b = torch.randn(case.rows, DIM, device=self.device), self.inputs[1].detach()
        slopes = torch.randn(case.rows, case.columns, device=self.device)

        def backward() -> None:
            torch.mm(a, b.t()), torch.mm(slopes, b)
            if not case.frozen:
                torch.mm(slopes.t(), a)

        return dict(zip(PASSES, (lambda: torch.mm(a, b.t()), backward), strict=True))

    @staticmethod
    def gradients(loss: Loss, inputs: list[Tensor]) -> list[Tensor]:
        """The loss and its gradients."""
        value = loss(*inputs)
        return [value, *torch.autograd.grad(value, [tensor for tensor in inputs if tensor.requires_grad])]

    def truth(self) -> list[Tensor]:
        """The reference in double precision."""
        doubles = [
            tensor.detach().double().requires_grad_(tensor.requires_grad) if tensor.is_floating_point() else tensor
            for tensor in self.inputs
        ]
        return [tensor.detach() for tensor in self.gradients(eager(self.case.op), doubles)]

    def worst_error(self, loss: Loss, truth: list[Tensor]) -> float:
        """Of the loss and all gradients, each as a share of the true tensor's norm."""
        found = self.gradients(loss, self.inputs)
        return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True))


def eager(op: str) -> Loss:
    """The reference in plain PyTorch."""
    if op != "masked_word_loss":
        return lambda *inputs: getattr(kernels, op)(*inputs, backend="reference")

    def words(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        masked = (targets != IGNORE).nonzero().squeeze(1)
        return reference.masked_word_loss(hidden[masked], weight, bias, targets[masked]) / masked.numel()

    return words


def _fused(op: str, product_and_loss: Loss) -> Loss:
    """A loss made of a fused linear cross-entropy (rows, weight, targets, bias): features are normalised before it."""
    if op == "cosine_cross_entropy":
        return lambda v, w, targets, scale: product_and_loss(
            scale * F.normalize(v, dim=-1), F.normalize(w, dim=-1), targets, None
        )

    def words(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        masked = (targets != IGNORE).nonzero().squeeze(1)
        return product_and_loss(hidden[masked], weight, targets[masked], bias)

    return words


def _liger() -> Loss:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return lambda rows, weight, targets, bias: liger_fused_linear_cross_entropy(rows, weight, targets, bias)


def variants(problem: Problem, compiled: bool) -> tuple[dict[str, Loss], dict[str, str]]:
    """Every way to compute a case's loss, and why the others are missing."""
    op, found, missing = problem.case.op, {EAGER: eager(problem.case.op)}, {}
    if compiled:
        found[COMPILED] = torch.compile(eager(op))
    else:
        missing[COMPILED] = "left out by --no-compile"
    if op != "soft_target_kl":
        if hasattr(F, "linear_cross_entropy"):
            found[LINEAR] = _fused(op, lambda x, w, t, b: F.linear_cross_entropy(x, w, t, linear_bias=b))
        else:
            missing[LINEAR] = f"torch {torch.__version__} has none"
        if problem.device.type != "cuda":
            missing[LIGER] = "it needs a GPU"
        elif importlib.util.find_spec("liger_kernel") is None:
            missing[LIGER] = "liger_kernel is not installed"
        else:
            found[LIGER] = _fused(op, _liger())
    if op == "masked_word_loss":
        found["m2clip"] = kernels.masked_word_loss
        return found, missing
    others = kernels.explain(op, problem.inputs[0], backend="reference").others
    for name in kernels.BACKENDS[1:]:
        try:
            kernels.explain(op, problem.inputs[0], backend=name)
        except ValueError:
            missing[f"m2clip {name}"] = others[name]
        else:
            found[f"m2clip {name}"] = lambda *inputs, name=name: getattr(kernels, op)(*inputs, backend=name)
    return found, missing
