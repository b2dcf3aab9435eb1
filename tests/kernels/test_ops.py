"""The adapters as operators: opcheck, torch.compile, torch.export, checkpointing, CUDA-free dispatch modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import m2clip
from m2clip import kernels
from m2clip.kernels.dispatch import OPERATIONS
from m2clip.kernels.native import extension as native
from m2clip.kernels.operands import Branches
from m2clip.kernels.ops.operator import IMPLEMENTATIONS
from m2clip.kernels.selfcheck_cases import all_cases
from tests.kernels.proof import assert_operator_is_sound

pytestmark = pytest.mark.skipif(native.extension is None, reason=f"no compiled extension: {native.MISSING}")

# Fails on the reference of both branches with gradients: "cannot determine truth value of Relational".
SORTS_SYMBOLS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15)
LAYOUTS = {
    "both": {},
    "shared": {"shared_projection": True},
    "temporal": {"difference": False},
    "difference": {"temporal": False},
    "sequential": {"sequential": True},
    "registers": {"num_prefix_tokens": 3, "grid": (1, 2)},
}


class Adapters(nn.Module):
    """One adapter of either kind, with random weights, as a model would call them."""

    def __init__(self, **layout) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = m2clip.TEDAdapter(12, 8, 2, **layout)
        self.text = m2clip.adapters.TextAdapter(12, 8, backend="native")  # by itself it would take the reference
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.text(self.visual(x))


def results(model, x: Tensor, parameters) -> list[Tensor]:
    """Output and gradients, to the input and to all parameters."""
    x = x.detach().requires_grad_()
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *parameters])]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("layout", ["both", "shared", "temporal", "difference"])
@pytest.mark.parametrize("patches_only", [False, True])
def test_opcheck_of_ted_adapter(layout, patches_only):
    branches = Branches.of(Adapters(**LAYOUTS[layout]).visual.weights(), torch.float32)
    x = torch.randn(4, 5, 12)
    arguments = (x, [*branches.temporal, *branches.difference], len(branches.temporal), 2, [2, 2], True, patches_only)
    needs = ([True, True], [True, False], [False, True])
    assert_operator_is_sound("ted_adapter", (*arguments, True, "native"), needs)


def test_opcheck_of_bottleneck_adapter():
    text = Adapters().text
    weights = [text.down.weight, text.down.bias, text.up.weight, text.up.bias]
    arguments = (torch.randn(6, 12), weights, "gelu", 0.5, True, "native")
    assert_operator_is_sound("bottleneck_adapter", arguments, ([True, True], [False, True]))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_equals_eager_without_a_graph_break(layout):
    model, x = Adapters(**LAYOUTS[layout]), torch.randn(4, 5, 12)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_equal(results(compiled, x, model.parameters()), results(model, x, model.parameters()))
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


@pytest.mark.slow
def test_inductor_takes_dynamic_shapes():
    model, x = Adapters(), torch.randn(4, 5, 12)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for batch in (x, torch.randn(8, 5, 12), torch.randn(4, 10, 12)):
        assert_equal(results(compiled, batch, model.parameters()), results(model, batch, model.parameters()))


@pytest.mark.parametrize(
    "compiler",
    [
        "aot_eager",
        pytest.param(
            "inductor", marks=pytest.mark.skipif(SORTS_SYMBOLS, reason="this Inductor sorts symbolic strides")
        ),
    ],
)
def test_a_backend_chosen_outside_is_compiled_anew(compiler, monkeypatch):
    calls = []
    forward = native.Mixer.forward
    monkeypatch.setattr(native.Mixer, "forward", lambda self, h, u: (calls.append(1), forward(self, h, u))[1])
    model, x = Adapters(), torch.randn(4, 5, 12)
    model.text.backend = "auto"
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=compiler)
    torch.testing.assert_close(compiled(x), model(x))
    before = len(calls)
    assert before > 0
    with kernels.use_backend("reference"):
        torch.testing.assert_close(compiled(x), model(x))  # the choice is a guard
    assert len(calls) == before


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_run_and_train(strict):
    model, x = Adapters(), torch.randn(4, 5, 12)
    program = torch.export.export(model, (x,), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes}
    assert "m2clip.ted_adapter.default" in targets and "m2clip.bottleneck_adapter.default" in targets
    module = program.module()
    found = results(module, x, module.parameters())
    expected = results(model, x, [model.get_parameter(name) for name, _ in module.named_parameters()])
    assert_equal(found, expected)


def test_a_program_exported_for_inference_can_still_be_differentiated():
    model, x = Adapters(), torch.randn(4, 5, 12)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
    module = program.module()
    own = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(module(own).square().sum(), own)
    assert torch.equal(found, results(model, x, model.parameters())[1])


def test_checkpointing_and_saved_tensors():
    model, x = Adapters(), torch.randn(4, 5, 12)
    plain = results(model, x, model.parameters())
    recomputed = results(lambda x: checkpoint(model, x, use_reentrant=False), x, model.parameters())
    assert_equal(recomputed, plain)
    saved: list[Tensor] = []
    weights = [parameter.data_ptr() for parameter in model.parameters()]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = model.visual(x.requires_grad_())
    assert y.requires_grad
    activations = [tensor.shape for tensor in saved if tensor.data_ptr() not in weights]
    assert activations == [(4, 5, 12), (4, 5, 16)]  # x and h, nothing else


def test_changing_an_input_in_place_before_backward_is_an_error():
    adapter, x = m2clip.TEDAdapter(12, 8, 2), torch.randn(4, 5, 12)
    y = adapter(x)
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.skipif(native.extension is None, reason="no compiled extension here")
@pytest.mark.parametrize("op", [op for op in OPERATIONS if "native" in IMPLEMENTATIONS.get(op, ["native"])])
def test_a_backward_pass_under_autocast_is_that_outside(op: str) -> None:
    case = next(case for case in all_cases() if case.op == op)
    gradients = []
    for autocast in (False, True):
        leaves = {name: tensor.float().requires_grad_() for name, tensor in case.inputs().items()}
        output = case.run(leaves, "native")
        slope = case.output_gradient(output)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            gradients.append(torch.autograd.grad(output, list(leaves.values()), slope))
    assert all(torch.equal(inside, outside) for inside, outside in zip(*gradients, strict=True))
