"""Gradients of gradients: through every operation they are those of the reference, on every way to a kernel."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from m2clip import kernels
from m2clip.adapters import MSTAAdapter
from m2clip.kernels import dispatch
from m2clip.kernels.native import extension as native
from m2clip.kernels.ops import masked_words
from m2clip.kernels.selfcheck_cases import Case, Tensors, all_cases
from tests.kernels.test_losses import loss_on

pytestmark = [
    pytest.mark.skipif(native.extension is None, reason=f"no compiled extension: {native.MISSING}"),
    # An operator without a derivative says so in a warning, and leaves it out.
    pytest.mark.filterwarnings("error:.*autograd kernel was not registered"),
]
COSTLY = 2**18  # values of the largest input, from which on a case shows nothing that a smaller one does not


def cheap(cases: list[Case]) -> list[Case]:
    return [case for case in cases if max(tensor.numel() for tensor in case.inputs().values()) < COSTLY]


CASES = {op: cheap(list(cases)) for op, cases in groupby(all_cases(), key=lambda case: case.op)}
NATIVE = [op for op in CASES if op != "bias_gelu"]


def penalised(case: Case, backend: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The gradient, to all inputs, of the squared gradient of a case whose operation comes last."""
    run = (case.reference if backend == "reference" else None) or case.run
    inputs: Tensors = {name: tensor.to(dtype).requires_grad_() for name, tensor in case.inputs().items()}
    output = run(inputs, "auto" if case.op == "masked_word_loss" and backend != "reference" else backend)
    leaves = list(inputs.values())
    slopes = torch.autograd.grad(output.sum(), leaves, create_graph=True, allow_unused=True)
    penalty = torch.stack([slope.square().sum() for slope in slopes if slope is not None]).sum()
    assert penalty.requires_grad
    second = torch.autograd.grad(penalty, leaves, allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in second if gradient is not None]).double()


@pytest.mark.parametrize("watched", [False, True], ids=["eager", "dispatched"])
@pytest.mark.parametrize("op", NATIVE)
def test_the_last_operation_may_be_differentiated_twice(op: str, watched: bool) -> None:
    for case in CASES[op]:
        exact = penalised(case, "reference", torch.float64)
        with FlopCounterMode(display=False) if watched else nullcontext():
            found = penalised(case, "native")
        assert (found - exact).norm() <= 1e-4 * exact.norm(), case.name


def test_the_operator_of_a_backward_pass_refuses_to_be_differentiated() -> None:
    v, w, labels, scale = features()
    arguments = (v, w, labels, scale, "native")
    saved = torch.ops.m2clip.cosine_cross_entropy(*arguments, True)[1]
    slope = torch.ones((), requires_grad=True)
    found = torch.ops.m2clip.cosine_cross_entropy_backward(slope, *arguments, saved, [True, True, False, True])
    with pytest.raises(RuntimeError, match="create_graph=True"):
        found[0].sum().backward()


def test_masked_words_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    (case, *_) = CASES["masked_word_loss"]
    exact = penalised(case, "reference", torch.float64)
    monkeypatch.setattr(masked_words, "CHUNK", 100)
    assert (penalised(case, "native") - exact).norm() <= 1e-5 * exact.norm()


def features(rows: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    v, w = torch.randn(2, rows, 12, generator=generator)
    return v, w, torch.arange(rows) // 2, torch.tensor(4.0)


@pytest.mark.parametrize("name", ["cosine_cross_entropy", "soft_target_kl"])
def test_an_input_computed_from_another_is_differentiated_along_each_way_once(name: str) -> None:
    v, _, labels, scale = features()

    def penalty(backend: str) -> Tensor:
        leaf = v.clone().requires_grad_()
        loss = loss_on(name, backend)(leaf, leaf.tanh() * 2, labels, scale)
        (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return torch.autograd.grad(slope.square().sum() + loss, leaf)[0]

    torch.testing.assert_close(penalty("native"), penalty("reference"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cosine_cross_entropy", "soft_target_kl"])
@pytest.mark.parametrize("vectorize", [False, True])
def test_the_hessian(name: str, vectorize: bool) -> None:
    v, w, labels, scale = features(3)
    found, expected = (
        torch.autograd.functional.hessian(
            lambda v, w, scale, loss=loss: loss(v, w, labels, scale), (v, w, scale), vectorize=vectorize
        )
        for loss in (loss_on(name, "native"), loss_on(name, "reference"))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_torch_func_takes_the_reference_twice() -> None:
    v, w, labels, scale = features(3)
    found, expected = (
        torch.func.hessian(lambda v, loss=loss: loss(v, w, labels, scale))(v)
        for loss in (loss_on("soft_target_kl", "auto"), loss_on("soft_target_kl", "reference"))
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("op", NATIVE)
def test_slopes_of_several_gradients_at_once(op: str) -> None:
    """A backward pass under vmap, which no kernel could take."""
    case = CASES[op][-1]
    leaves = [tensor.float().requires_grad_() for tensor in case.inputs().values()]
    inputs = dict(zip(case.inputs(), leaves, strict=True))
    y = case.run(inputs, "auto" if op == "masked_word_loss" else "native")
    slopes = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(y, leaves, slopes, is_grads_batched=True, retain_graph=True)
    for index, slope in enumerate(slopes):
        for batched, alone in zip(found, torch.autograd.grad(y, leaves, slope, retain_graph=True), strict=True):
            assert (batched[index] - alone).norm() <= 1e-5 * alone.norm()


def test_no_gradient_of_msta_but_its_streams() -> None:
    """What is recorded of the operation is then nothing: its slope is that of the stream."""
    (case, *_) = CASES["msta_adapter"]
    inputs: Tensors = {name: tensor.float() for name, tensor in case.inputs().items()}
    leaf = inputs["base"].requires_grad_()
    (slope,) = torch.autograd.grad(case.run({**inputs, "base": leaf**2}, "native").sum(), leaf, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(slope.sum(), leaf)[0], torch.full_like(leaf, 2.0))


@pytest.mark.parametrize("recorded", [False, True])
def test_forward_mode_takes_the_reference(recorded: bool) -> None:
    """A kernel gives plain numbers: the tangent would be lost without a word."""
    v, w, labels, scale = features()
    v.requires_grad_(recorded)
    run = partial(kernels.soft_target_kl, w=w, labels=labels, logit_scale=scale)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(run(forward_ad.make_dual(v, w))).tangent
        with pytest.raises(ValueError, match="forward-mode"):
            run(forward_ad.make_dual(v, w), backend="native")
    torch.testing.assert_close(found, torch.autograd.functional.jvp(run, v.detach(), w)[1])


def test_rescaled_gradients_under_torch_func() -> None:
    adapter = MSTAAdapter(12, nn.Linear(4, 4), temporal_up="none", scale=0.5, rescale_gradient=True)
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    weight = adapter.up.weight

    def loss(weight: Tensor) -> Tensor:
        return torch.func.functional_call(adapter, {"up.weight": weight}, (x, x)).square().sum()

    (expected,) = torch.autograd.grad(loss(weight), weight)
    torch.testing.assert_close(torch.func.grad(loss)(weight.detach()), expected)
    batched = torch.func.vmap(torch.func.grad(loss))(torch.stack([weight.detach(), weight.detach()]))
    torch.testing.assert_close(batched[1], expected)
    tangent = torch.func.jvp(loss, (weight.detach(),), (torch.ones_like(weight),))[1]
    torch.testing.assert_close(tangent, expected.sum(), rtol=1e-4, atol=1e-5)


def adapters() -> nn.Module:
    import m2clip

    torch.manual_seed(0)
    adapter = m2clip.TEDAdapter(12, 8, 2, backend="native")
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    return adapter


@pytest.mark.parametrize("way", ["plain", "checkpoint", "autocast"])
def test_a_penalty_trains_an_adapter_as_the_reference_does(way: str) -> None:
    found = []
    for backend in ("native", "reference"):
        adapter: Any = adapters()
        adapter.backend = backend
        x = torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
        call = partial(checkpoint, adapter, use_reentrant=False) if way == "checkpoint" else adapter
        with torch.autocast("cpu", torch.bfloat16) if way == "autocast" else nullcontext():
            y = call(x)
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (slope.square().sum() + y.sum()).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in adapter.parameters()]))
    assert (found[0] - found[1]).norm() <= (0.05 if way == "autocast" else 1e-5) * found[1].norm()


@pytest.mark.skipif(
    not dispatch._FOLLOWS_CONTEXT, reason="torch before 2.14 refuses torch.func inside of torch.compile"
)
def test_a_compiled_gradient_of_a_gradient() -> None:
    """torch.func inside of what is compiled: the operator's own derivative is traced, and traced again."""
    v, w, labels, scale = features(3)

    def slope(v: Tensor) -> Tensor:
        return torch.func.grad(lambda v: kernels.soft_target_kl(v, w, labels, scale))(v)

    def twice(v: Tensor) -> Tensor:
        return torch.func.grad(lambda v: slope(v).square().sum())(v)

    torch._dynamo.reset()
    compiled = torch.compile(twice, backend="aot_eager")
    torch.testing.assert_close(compiled(v), twice(v), rtol=1e-4, atol=1e-6)
