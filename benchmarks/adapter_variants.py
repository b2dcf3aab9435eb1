"""The TED-Adapter in every formulation that adapter_speed.py times, all of them on the same weights and tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.authors import TEDAdapter as AuthorsAdapter
from benchmarks.workloads import planned, plans
from m2clip import kernels
from m2clip.kernels import BranchWeights, TEDWeights

AUTHORS = "authors eager"
AUTHORS_NO_CUDNN = "authors no cuDNN"
AUTHORS_COMPILED = "authors compiled"
AUTHORS_AUTOTUNED = "authors autotuned"
SHIFT_AND_ADD = "shift-add compiled"
COMPILED = (AUTHORS_COMPILED, AUTHORS_AUTOTUNED, SHIFT_AND_ADD)
PASSES = ("forward", "forward+backward")
# Largest error over the largest value of a tensor; a wrong border, tap or bias shows with ten times as much and more.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}


@dataclass(frozen=True)
class Case:
    """One workload: B clips of T frames, a grid of patches and a class token of width D, bottleneck R."""

    name: str
    clips: int
    frames: int
    grid: tuple[int, int]
    dim: int
    width: int
    dtype: torch.dtype = torch.float32
    shared: bool = False

    @property
    def length(self) -> int:
        return self.grid[0] * self.grid[1] + 1

    @property
    def tokens(self) -> int:
        return self.clips * self.frames * self.length

    @property
    def hidden(self) -> int:
        """Columns of the down-projection: both branches' side by side, or the one they share."""
        return self.width if self.shared else 2 * self.width

    def flops(self, backward: bool) -> int:
        """Of the GEMMs, to which the convolutions add less than two per cent."""
        return (3 if backward else 1) * 2 * 2 * self.tokens * self.dim * self.hidden

    def least_bytes(self, backward: bool) -> int:
        """Traffic that nothing can avoid: x in, y out; with backward also dy and x in, dx out; and the weights."""
        rows, weights = self.tokens * self.dim, 2 * self.dim * self.hidden
        return ((5 if backward else 2) * rows + (3 if backward else 1) * weights) * self.dtype.itemsize


class Problem:
    """Tokens x, a gradient dy of the output and weights of a case; no weight and no bias is zero.

    Attributes:
        x, dy: (B*T, L, D).
        weights: "temporal.down_weight" and so on -> tensor; shared projections are held once, under "temporal".
    """

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, scale: float) -> Tensor:
            return (torch.randn(*shape, generator=generator, device=device) * scale).to(case.dtype)

        dim, width = case.dim, case.width
        self.x = normal(case.clips * case.frames, case.length, dim, scale=1.0)
        self.dy = normal(*self.x.shape, scale=1.0)
        self.weights: dict[str, Tensor] = {}
        for branch, taps in (("temporal", (3,)), ("difference", (3, 3))):
            if branch == "temporal" or not case.shared:
                self.weights[f"{branch}.down_weight"] = normal(width, dim, scale=dim**-0.5)
                self.weights[f"{branch}.down_bias"] = normal(width, scale=0.3)
                self.weights[f"{branch}.up_weight"] = normal(dim, width, scale=width**-0.5)
                self.weights[f"{branch}.up_bias"] = normal(dim, scale=0.3)
            self.weights[f"{branch}.conv_weight"] = normal(width, 1, *taps, scale=0.4)
            self.weights[f"{branch}.conv_bias"] = normal(width, scale=0.3)

    def copies(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Trainable copies of the weights."""
        return {name: tensor.to(dtype, copy=True).requires_grad_() for name, tensor in self.weights.items()}

    def truth(self) -> list[Tensor]:
        """Output, gradient of x and gradients of the weights in the reference's double precision."""
        exact = m2clip_variant(self, "reference", torch.float64)
        return exact.results()


@dataclass
class Variant:
    """One formulation, ready to run.

    Attributes:
        call: x -> y.
        x, dy: in the formulation's own layout.
        parameters: trainable weights, in the order of Problem.weights.
        surroundings: context that every call runs in.
        length_first: whether tokens travel as (L, B*T, D).
    """

    call: Callable[[Tensor], Tensor]
    x: Tensor
    dy: Tensor
    parameters: list[Tensor]
    surroundings: Callable[[], Any] = field(default=nullcontext)
    length_first: bool = False

    def forward(self) -> Tensor:
        with torch.no_grad(), self.surroundings():
            return self.call(self.x)

    def backward(self) -> tuple[Tensor, ...]:
        """Output and all gradients."""
        with self.surroundings():
            y = self.call(self.x)
            return y, *torch.autograd.grad(y, [self.x, *self.parameters], self.dy)

    def runs(self) -> dict[str, Callable[[], Any]]:
        return dict(zip(PASSES, (self.forward, self.backward), strict=True))

    def results(self) -> list[Tensor]:
        """Output and gradients with tokens as (B*T, L, D)."""
        swap: Callable[[Tensor], Tensor] = lambda t: t.transpose(0, 1) if self.length_first else t  # noqa: E731
        y, dx, *rest = self.backward()
        return [swap(y), swap(dx), *rest]


def worst_error(variant: Variant, problem: Problem, truth: list[Tensor]) -> tuple[str, float]:
    """Name and error of the variant's least accurate tensor: its largest error over the largest true value."""
    y = variant.forward().clone()  # CUDA graphs write the next output over this one
    results = [y.transpose(0, 1) if variant.length_first else y, *variant.results()]
    names = ("y without gradients", "y", "dx", *(f"d {name}" for name in problem.weights))
    errors = {}
    for name, result, exact in zip(names, results, [truth[0], *truth], strict=True):
        error = (result.double().reshape(exact.shape) - exact).abs().max() / exact.abs().max()
        errors[name] = error.nan_to_num(float("inf")).item()
    worst = max(errors, key=lambda name: errors[name])
    return worst, errors[worst]


def ted_weights(weights: dict[str, Tensor], shared: bool) -> TEDWeights:
    """Weights named as in Problem.weights, in the form the kernels take."""
    branches = []
    for branch in ("temporal", "difference"):
        names = (f"{branch}.{name}" for name in BranchWeights._fields)
        own = (name if name in weights else name.replace("difference", "temporal") for name in names)
        branches.append(BranchWeights(*(weights[name] for name in own)))
    return TEDWeights(*branches, shared)


def m2clip_variant(
    problem: Problem, backend: str, dtype: torch.dtype | None = None, plan: str | None = None
) -> Variant:
    """This library's operation on one of its backends, by one of its plans where it has several."""
    case, dtype = problem.case, dtype or problem.case.dtype
    copies = problem.copies(dtype)
    weights = ted_weights(copies, case.shared)

    def call(x: Tensor) -> Tensor:
        return kernels.ted_adapter(x, weights, case.frames, grid=case.grid, backend=backend)

    x = problem.x.to(dtype, copy=True).requires_grad_()
    surroundings = nullcontext if plan is None else partial(planned, backend, plan)
    return Variant(call, x, problem.dy.to(dtype), list(copies.values()), surroundings)


def plans_of(problem: Problem, backend: str) -> list[str]:
    """The plans of a backend for a case, its own choice first."""
    case, weights = problem.case, ted_weights(problem.weights, problem.case.shared)
    return plans(backend, problem.x, weights, case.frames, case.grid)


_THEIR_NAMES = {"down": "fc1", "conv": "conv", "up": "fc2"}


def authors_variant(problem: Problem, cudnn: bool = True, mode: str | None = None) -> Variant:
    """The authors' module; compiled where a mode of torch.compile is given."""
    case = problem.case
    module = AuthorsAdapter(case.dim, case.width, case.frames)
    if case.shared:  # both branches' projections are one, and the up-projection's bias enters once
        module.offset_adapter.fc1 = module.fc1
        module.offset_adapter.fc2 = nn.Linear(case.width, case.dim, bias=False)
    parameters = []
    for name, tensor in problem.copies(case.dtype).items():
        branch, rest = name.split(".")
        part, kind = rest.split("_")
        owner = getattr(module if branch == "temporal" else module.offset_adapter, _THEIR_NAMES[part])
        parameters.append(nn.Parameter(tensor.detach().reshape(getattr(owner, kind).shape)))
        setattr(owner, kind, parameters[-1])
    if case.shared:
        module.offset_adapter.fc2.weight = module.fc2.weight
    x = problem.x.transpose(0, 1).contiguous().requires_grad_()
    dy = problem.dy.transpose(0, 1).contiguous()
    if mode is None:
        call, surroundings = module, nullcontext if cudnn else _without_cudnn
    else:
        call = torch.compile(module, dynamic=False, mode=mode)
        surroundings = _graph_step if mode == "max-autotune" and problem.device.type == "cuda" else nullcontext
    return Variant(call, x, dy, parameters, surroundings, length_first=True)


@contextmanager
def _without_cudnn() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=False):
        yield


@contextmanager
def _graph_step() -> Iterator[None]:
    """Tells CUDA graphs that the outputs of the call before may be overwritten."""
    torch.compiler.cudagraph_mark_step_begin()
    yield


def shift_and_add_variant(problem: Problem) -> Variant:
    """What a compiler can fuse best: two stacked GEMMs, and between them sums of shifted slices."""
    case, copies = problem.case, problem.copies(problem.case.dtype)
    call = torch.compile(lambda x: _shift_and_add(x, ted_weights(copies, case.shared), case), dynamic=False)
    return Variant(call, problem.x.clone().requires_grad_(), problem.dy, list(copies.values()))


def _shift_and_add(x: Tensor, weights: TEDWeights, case: Case) -> Tensor:
    te, td = weights.temporal, weights.difference
    assert te is not None and td is not None
    shape = (case.clips, case.frames, case.length)
    if case.shared:
        h_te = h_td = F.linear(x, te.down_weight).view(*shape, -1)
    else:
        hidden = F.linear(x, torch.cat([te.down_weight, td.down_weight]))
        h_te, h_td = hidden.view(*shape, -1).chunk(2, dim=-1)
    u_te, u_td = shifted_mix(h_te + te.down_bias, h_td, td.down_bias, te, td, case.grid)
    patch = torch.arange(case.length, device=x.device)[:, None] > 0
    if case.shared:
        return x + F.linear((u_te + u_td).reshape(*x.shape[:2], -1), te.up_weight, te.up_bias)
    mixed = torch.cat([u_te, u_td], dim=-1).reshape(*x.shape[:2], -1)
    up = F.linear(mixed, torch.cat([te.up_weight, td.up_weight], dim=1))
    return x + up + te.up_bias + torch.where(patch, td.up_bias, 0)


def shifted_mix(
    h_te: Tensor, h_td: Tensor, td_bias: Tensor, te: BranchWeights, td: BranchWeights, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The mixer as sums of shifted slices: hidden (B, T, L, R) of both branches -> (u_e, u_d); u_d's class row is 0."""
    frames = F.pad(h_te, (0, 0, 0, 0, 1, 1))
    before, here, after = te.conv_weight[:, 0].unbind(-1)
    u_te = frames[:, :-2] * before + h_te * here + frames[:, 2:] * after + te.conv_bias
    patches = h_td[:, :, 1:]
    change = F.pad(patches[:, 1:] - patches[:, :-1], (0, 0, 0, 0, 1, 0)) + td_bias
    height, width = grid
    image = F.pad(change.unflatten(2, grid), (0, 0, 1, 1, 1, 1))
    total = td.conv_bias
    for row in range(3):
        for column in range(3):
            shifted = image[:, :, row : row + height, column : column + width]
            total = total + shifted * td.conv_weight[:, 0, row, column]
    return u_te, F.pad(total.flatten(2, 3), (0, 0, 1, 0))


def floor_runs(problem: Problem) -> dict[str, Callable[[], Any]]:
    """The bare GEMMs of a case at the same shapes, on plain tensors: two forward, four more backward."""
    case, weights = problem.case, problem.weights
    stack = {
        name: [weights[f"{branch}.{name}"] for branch in (("temporal",) if case.shared else ("temporal", "difference"))]
        for name in ("down_weight", "down_bias", "up_weight", "up_bias")
    }
    down, down_bias = torch.cat(stack["down_weight"]), torch.cat(stack["down_bias"])
    up, up_bias = torch.cat(stack["up_weight"], dim=1), stack["up_bias"][0]
    x, dy = problem.x.flatten(0, 1), problem.dy.flatten(0, 1)
    u = torch.randn(case.tokens, case.hidden, device=problem.device).to(case.dtype)
    dh = torch.randn(case.tokens, case.hidden, device=problem.device).to(case.dtype)

    def forward() -> Any:
        with torch.no_grad():
            return torch.addmm(down_bias, x, down.T), torch.addmm(up_bias, u, up.T)

    def backward() -> Any:
        return *forward(), dy @ up, dy.T @ u, dh @ down, dh.T @ x

    return dict(zip(PASSES, (forward, backward), strict=True))


Builder = Callable[[Problem], Variant]


def builders(
    device: torch.device, compiled: bool, problem: Problem | None = None
) -> tuple[dict[str, Builder], dict[str, str]]:
    """Variants that may run on a device, in the order of the tables, and why each of the others does not.

    With a problem, the plans that its backends do not choose themselves are among them.
    """
    found: dict[str, Builder] = {AUTHORS: authors_variant}
    left_out: dict[str, str] = {}
    if device.type == "cuda":
        found[AUTHORS_NO_CUDNN] = lambda problem: authors_variant(problem, cudnn=False)
    found[AUTHORS_COMPILED] = lambda problem: authors_variant(problem, mode="default")
    found[AUTHORS_AUTOTUNED] = lambda problem: authors_variant(problem, mode="max-autotune")
    found[SHIFT_AND_ADD] = shift_and_add_variant
    if not compiled:
        left_out = dict.fromkeys(COMPILED, "left out by --no-compile")
        found = {name: builder for name, builder in found.items() if name not in left_out}
    for backend, reason in backend_reasons().items():
        if reason:
            left_out[f"m2clip {backend}"] = reason
        else:
            found[f"m2clip {backend}"] = lambda problem, backend=backend: m2clip_variant(problem, backend)
            for plan in plans_of(problem, backend)[1:] if problem is not None and backend != "reference" else ():
                found[f"m2clip {backend} {plan}"] = partial(m2clip_variant, backend=backend, plan=plan)
    return found, left_out


def backend_reasons() -> dict[str, str]:
    """Why each of the library's backends cannot run; an empty text where it can."""
    return {name: "" if state.available else state.reason for name, state in kernels.backend_states().items()}
