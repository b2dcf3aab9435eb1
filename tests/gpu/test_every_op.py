"""What holds for every operation on a GPU: the same bits always, graphs, compilers, autocast, no waiting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from benchmarks.workloads import DEVICE, in_double, loss, ted, ted_weights
from m2clip.kernels.operands import Branches
from tests.gpu.workloads import BACKENDS, DTYPES, SMALL, SMALL_CALLS, require
from tests.kernels.proof import assert_as_exact, assert_operator_is_sound
from tests.kernels.test_native_ted import LAYOUTS

every_call = pytest.mark.parametrize(("make", "backend"), SMALL_CALLS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@every_dtype
@every_call
def test_five_runs_give_the_same_bits(make, backend, dtype):
    require(backend)
    work = make()
    leaves = work.placed(dtype)
    first = work.results(leaves, backend)
    for _ in range(4):
        assert_equal(work.results(leaves, backend), first)


@pytest.mark.parametrize("backend", BACKENDS["ted_adapter"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_five_runs_on_many_multiprocessors_give_the_same_bits(layout, backend):
    require(backend)
    work = ted(8, 8, (14, 14), 768, 384, layout)
    leaves = work.placed(torch.bfloat16)
    first = work.results(leaves, backend)
    for _ in range(4):
        assert_equal(work.results(leaves, backend), first)


@contextmanager
def memory_of_nan() -> Iterator[None]:
    """Memory that is handed out uninitialised holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@every_dtype
@every_call
@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_every_element_is_written(make, backend, dtype):
    require(backend)
    work = make()
    leaves = work.placed(dtype)
    expected = work.results(leaves, backend)
    with memory_of_nan():
        assert_equal(work.results(leaves, backend), expected)


@pytest.mark.parametrize("backend", BACKENDS["ted_adapter"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_every_element_of_every_layout_is_written(layout, backend):
    require(backend)
    for width, class_token in ((19, True), (64, False)):
        work = ted(2, 3, (5, 9), 40, width, layout, class_token=class_token)
        leaves = work.placed(torch.bfloat16)
        with memory_of_nan():
            assert all(tensor.isfinite().all() for tensor in work.results(leaves, backend))


@every_call
def test_a_cuda_graph_replays_on_new_inputs(make, backend):
    require(backend)
    work = make()
    leaves = work.placed(torch.float16)
    static = {name: leaf.clone() for name, leaf in leaves.items()}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        slope = work.slope(work.call(static, backend))
        work.results(static, backend, slope)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work.results(static, backend, slope)
    for factor in (1.0, 0.5):
        for name, leaf in leaves.items():
            static[name].copy_(leaf * factor if leaf.is_floating_point() else leaf)
        graph.replay()
        assert_equal(captured, work.results(static, backend, slope))


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@every_call
def test_compiled_without_a_graph_break(make, backend, compiler):
    require(backend)
    work = make()
    leaves = work.placed(torch.bfloat16)
    expected = work.results(leaves, backend)
    torch._dynamo.reset()
    compiled = torch.compile(work.call, fullgraph=True, backend=compiler)
    found = work._replace(call=compiled).results(leaves, backend)
    assert_equal(found, expected)  # the same kernels, whoever calls them
    with torch.no_grad():
        assert_equal([compiled(leaves, backend)], found[:1])


@every_call
def test_autocast_computes_in_half_and_returns_the_dtype_of_the_input(make, backend):
    require(backend)
    work = make()
    leaves = work.placed(torch.float32)
    exact = work.results(in_double(leaves), "reference")
    with torch.autocast(DEVICE.type, torch.bfloat16):
        eager, ours = (work.results(leaves, name) for name in ("reference", backend))
    assert all(tensor.dtype == torch.float32 for tensor in ours)
    if "labels" in leaves:
        assert_equal(ours, work.results(leaves, backend))  # a loss stays in full precision
    else:
        assert_as_exact(exact, eager, ours)


@every_call
def test_nothing_waits_for_the_gpu(make, backend):
    require(backend)
    work = make()
    leaves = work.placed(torch.bfloat16)
    slope = work.slope(work.call(leaves, backend))
    work.results(leaves, backend, slope)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work.results(leaves, backend, slope)
        with torch.no_grad():
            work.call(leaves, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@every_call
def test_runs_on_the_gpu_of_its_tensors(make, backend):
    require(backend)
    work = make()
    expected = work.results(work.placed(torch.bfloat16), backend)
    with torch.cuda.device(0):
        found = work.results(work.placed(torch.bfloat16, torch.device("cuda", 1)), backend)
    assert_equal([tensor.to(DEVICE) for tensor in found], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS["ted_adapter"])
def test_opcheck_of_ted_adapter(backend, layout):
    require(backend)
    leaves = ted(2, 2, (2, 2), 16, 16, layout).placed(torch.float32)
    x, *_ = leaves.values()
    temporal, difference = Branches.of(ted_weights(leaves, layout), torch.float32)
    options = (len(temporal), 2, [2, 2], True, False, True, backend)
    needs = ([True, True], [True, False], [False, True])
    assert_operator_is_sound("ted_adapter", (x, [*temporal, *difference], *options), needs)


@pytest.mark.parametrize("backend", BACKENDS["bottleneck_adapter"])
def test_opcheck_of_bottleneck_adapter(backend):
    require(backend)
    x, *weights = SMALL["bottleneck_adapter"]().placed(torch.float32).values()
    arguments = (x.flatten(0, 1), weights, "gelu", 0.5, True, backend)
    assert_operator_is_sound("bottleneck_adapter", arguments, ([True, True], [False, True]))


@pytest.mark.parametrize("backend", BACKENDS["bias_gelu"])
def test_opcheck_of_bias_gelu(backend):
    require(backend)
    h, bias = SMALL["bias_gelu"]().placed(torch.float32).values()
    assert_operator_is_sound("bias_gelu", (h, bias, "gelu", backend), ([True, True],))


@pytest.mark.parametrize("backend", BACKENDS["soft_target_kl"])
def test_losses_of_a_large_batch_are_finite_in_every_dtype(backend):
    require(backend)
    for op, columns in (("cosine_cross_entropy", 3000), ("soft_target_kl", 700)):
        work = loss(op, 700, columns, 512)
        for dtype in DTYPES:
            assert all(tensor.isfinite().all() for tensor in work.results(work.placed(dtype), backend))
