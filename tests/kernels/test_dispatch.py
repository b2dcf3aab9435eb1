"""Which backend runs, what is said about it, and that none is taken silently for another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import m2clip
from m2clip import kernels
from m2clip.kernels import dispatch
from m2clip.kernels.native import extension as native
from m2clip.kernels.ops import operator

needs_extension = pytest.mark.skipif(native.extension is None, reason=f"no compiled extension: {native.MISSING}")


@pytest.fixture
def adapter() -> m2clip.TEDAdapter:
    return m2clip.TEDAdapter(8, 4, 2)


@pytest.fixture
def calls(monkeypatch) -> list[Tensor]:
    """The inputs of every call that reaches the native backend."""
    seen: list[Tensor] = []
    forward = native.Mixer.forward
    monkeypatch.setattr(native.Mixer, "forward", lambda self, h, u: (seen.append(h), forward(self, h, u))[1])
    return seen


@needs_extension
def test_auto_takes_native_on_the_cpu_and_reference_for_what_it_cannot(adapter, calls):
    x = torch.randn(4, 5, 8)
    adapter(x)
    assert len(calls) == 1
    assert kernels.explain("ted_adapter", x).backend == "native"
    adapter.double()(x.double())
    assert len(calls) == 1
    choice = kernels.explain("ted_adapter", x.double())
    assert choice.backend == "reference"
    assert "float64" in choice.others["native"]
    assert kernels.explain("ted_adapter", torch.empty(4, 5, 8, device="meta")).backend == "reference"
    assert kernels.explain("ted_adapter", x.half()).backend == "reference"


@needs_extension
def test_auto_leaves_small_bottlenecks_to_the_reference_and_says_why():
    small = kernels.explain("bottleneck_adapter", torch.randn(16, 32))
    assert small.backend == "reference"
    assert "slower than the reference on so little: 512 values" in small.others["native"]
    assert kernels.explain("bottleneck_adapter", torch.randn(400, 512)).backend == "native"
    assert kernels.explain("bottleneck_adapter", torch.randn(16, 32), backend="native").backend == "native"


@needs_extension
def test_a_block_sets_what_auto_means_and_ends(adapter, calls):
    x = torch.randn(4, 5, 8)
    with kernels.use_backend("reference"):
        adapter(x)
        assert kernels.explain("ted_adapter", x).reason == "asked for by name"
        with kernels.use_backend("native"):
            adapter(x)
        kernels.ted_adapter(x, adapter.weights(), 2, backend="native")  # a name beats the block
    assert len(calls) == 2
    with pytest.raises(RuntimeError, match="on purpose"), kernels.use_backend("reference"):
        raise RuntimeError("on purpose")
    adapter(x)
    assert len(calls) == 3


@needs_extension
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: x.double(), "no kernels for torch.float64"),
        (lambda x: x.half(), "no kernels for torch.float16"),
        (lambda x: x.to("meta"), "runs on a cpu device, and the tensors are on meta"),
    ],
)
def test_native_asked_for_by_name_says_why_it_cannot(adapter, make, words):
    x = make(torch.randn(4, 5, 8))
    adapter.to(x.device)
    with pytest.raises(ValueError, match=f"backend 'native' cannot run ted_adapter here: .*{words}"):
        kernels.ted_adapter(x, adapter.weights(), 2, backend="native")
    with kernels.use_backend("native"), pytest.raises(ValueError, match=words):
        kernels.ted_adapter(x, adapter.weights(), 2)


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_backends_that_are_not_there(adapter, name, monkeypatch):
    monkeypatch.setattr(dispatch, "_HAS_TRITON", False)
    x = torch.randn(4, 5, 8)
    with pytest.raises(ValueError, match=f"backend '{name}' cannot run ted_adapter here: "):
        kernels.ted_adapter(x, adapter.weights(), 2, backend=name)
    with pytest.raises(ValueError, match=f"backend '{name}' is not available here"), kernels.use_backend(name):
        pass
    assert name in kernels.explain("ted_adapter", x).others


def test_unknown_names(adapter):
    x = torch.randn(4, 5, 8)
    for call in (
        lambda: kernels.ted_adapter(x, adapter.weights(), 2, backend="warp"),
        lambda: kernels.use_backend("warp").__enter__(),
        lambda: kernels.explain("ted_adapter", x, backend="warp"),
    ):
        with pytest.raises(
            ValueError, match="unknown backend 'warp'; choose from auto, reference, native, triton, cuda"
        ):
            call()
    with pytest.raises(ValueError, match="unknown operation 'conv'; choose from ted_adapter"):
        kernels.explain("conv", x)


def test_without_the_extension_everything_runs_and_says_so(adapter, monkeypatch):
    monkeypatch.setattr(native, "extension", None)
    monkeypatch.setattr(native, "MISSING", "no compiler")
    x = torch.randn(4, 5, 8)
    assert adapter(x).shape == x.shape
    state = kernels.backend_states()["native"]
    assert not state.available and "no compiler" in state.reason
    with pytest.raises(ValueError, match="m2clip.kernels._native is missing"):
        kernels.ted_adapter(x, adapter.weights(), 2, backend="native")


def test_explanations_are_readable():
    text = str(kernels.explain("ted_adapter", torch.randn(4, 5, 8)))
    assert text.splitlines()[0].startswith("ted_adapter: ")
    assert "\n  not cuda: " in text
    assert set(kernels.backend_states()) == set(kernels.BACKENDS)


@needs_extension
def test_autocast_computes_in_its_dtype_and_keeps_the_residual(adapter, calls):
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(4, 5, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = adapter(x)
    assert calls[0].dtype == torch.bfloat16 and y.dtype == torch.float32
    y.sum().backward()
    assert x.grad.dtype == torch.float32 and adapter.temporal.down.weight.grad.dtype == torch.float32
    exact = adapter(x)
    assert 0 < (y - exact).abs().max() < 0.05 * (exact - x).abs().max()  # only the branch has been rounded
    with torch.autocast("cpu", dtype=torch.float16):
        assert kernels.explain("ted_adapter", x).backend == "reference"
        assert kernels.explain("cosine_cross_entropy", x[0]).backend == "native"  # losses are never below fp32


@needs_extension
def test_eager_calls_pass_by_the_dispatcher_unless_it_is_watched(adapter, monkeypatch):
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(4, 5, 8, requires_grad=True)
    direct = []
    forward = operator._Eager.forward
    counted = staticmethod(lambda *args: (direct.append(1), forward(*args))[1])
    monkeypatch.setattr(operator._Eager, "forward", counted)
    adapter(x).sum().backward()
    assert len(direct) == 1
    with FlopCounterMode(display=False) as counter:
        adapter(x).sum().backward()
    assert len(direct) == 1
    rows, dim, width = 4 * 5, 8, 4
    products, convolution = 2 * rows * dim * 2 * width, 18 * 4 * 4 * width
    assert counter.get_total_flops() == 6 * products + 4 * convolution


@needs_extension
def test_function_transforms_take_the_reference(adapter):
    x = torch.randn(3, 4, 5, 8)
    batched = torch.func.vmap(adapter)(x)
    torch.testing.assert_close(batched, torch.stack([adapter(part) for part in x]))
    with pytest.raises(ValueError, match="torch.func transform"):
        torch.func.vmap(lambda part: kernels.ted_adapter(part, adapter.weights(), 2, backend="native"))(x)


def test_towers_go_on_where_the_backend_in_force_has_no_kernel_for_a_part_of_them():
    x = torch.randn(4, 5, 8)
    assert not dispatch.has_kernel("bias_gelu", x)
    for name in ("reference", "native") if native.extension is not None else ("reference",):
        with kernels.use_backend(name):
            assert not dispatch.has_kernel("bias_gelu", x)
            assert dispatch.has_kernel("ted_adapter", x) == (name == "native")
