"""ted_adapter on the native backend against the reference in fp64, in every layout, shape and instruction set."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import m2clip
from m2clip import kernels
from m2clip.kernels import BranchWeights, TEDWeights
from m2clip.kernels.native import extension as native
from m2clip.kernels.operands import Geometry
from tests.kernels.proof import Run, assert_proven

pytestmark = pytest.mark.skipif(native.extension is None, reason=f"no compiled extension: {native.MISSING}")

FRAMES = (1, 2, 3, 8, 16, 32)
GRIDS = ((1, 1), (7, 7), (14, 14), (16, 16), (5, 9))
LAYOUTS = ("both", "shared", "temporal", "difference")
INSTRUCTION_SETS = ("avx512", "avx2", "portable")


def tensors(dim: int, width: int, layout: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Random fp64 leaves, by field; shared projections appear once."""
    shapes = {"down_weight": (width, dim), "down_bias": (width,), "up_weight": (dim, width), "up_bias": (dim,)}
    conv = {"temporal": (width, 1, 3), "difference": (width, 1, 3, 3)}
    leaves: dict[str, tuple[int, ...]] = {}
    for branch in conv:
        if layout in ("both", branch) or (layout == "shared" and branch == "temporal"):
            leaves |= {f"{branch}.{field}": shape for field, shape in shapes.items()}
        if layout in ("both", "shared", branch):
            leaves |= {f"{branch}.conv_weight": conv[branch], f"{branch}.conv_bias": (width,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        * (shape[-1] ** -0.5 if "down" in name else 1)
        for name, shape in leaves.items()
    }


def ted_weights(leaves: dict[str, Tensor], layout: str) -> TEDWeights:
    def branch(name: str) -> BranchWeights | None:
        if f"{name}.conv_weight" not in leaves:
            return None
        source = "temporal" if layout == "shared" else name
        fields = BranchWeights._fields
        return BranchWeights(*(leaves[f"{name if field.startswith('conv') else source}.{field}"] for field in fields))

    return TEDWeights(branch("temporal"), branch("difference"), layout == "shared")


def case(
    frames: int,
    grid: tuple[int, int],
    layout: str,
    clips: int = 1,
    dim: int = 21,
    width: int = 19,
    prefix: int = 1,
    sequential: bool = False,
    strided: bool = False,
    patches_only: bool = False,
) -> Run:
    """A function of dtype and backend that returns the output and all gradients, on the same random numbers."""
    generator = torch.Generator().manual_seed(0)
    shape = (clips * frames, grid[0] * grid[1] + prefix, dim)
    x, dy = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    leaves = tensors(dim, width, layout, generator)

    def run(dtype: torch.dtype, backend: str, of: Callable[[Tensor], Tensor] = Tensor.detach) -> list[Tensor]:
        place = (lambda t: t.transpose(0, 2).contiguous().transpose(0, 2)) if strided else (lambda t: t)
        own_x = place(of(x).to(dtype)).requires_grad_()
        own = {name: of(leaf).to(dtype).requires_grad_() for name, leaf in leaves.items()}
        options = {"grid": grid, "num_prefix_tokens": prefix, "patches_only": patches_only, "sequential": sequential}
        y = kernels.ted_adapter(own_x, ted_weights(own, layout), frames, **options, backend=backend)
        return [y.detach(), *torch.autograd.grad(y, [own_x, *own.values()], place(of(dy).to(dtype)))]

    return run


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("frames", FRAMES)
def test_native_is_as_exact_as_eager(frames, grid, layout):
    turn = FRAMES.index(frames) + GRIDS.index(grid) + LAYOUTS.index(layout)  # the other options take turns
    clips = 3 if frames * grid[0] * grid[1] < 1000 else 1
    options = {"prefix": (1, 0, 5)[turn // 2 % 3], "sequential": turn % 3 == 0, "strided": turn % 5 == 0}
    run = case(frames, grid, layout, clips, **options)
    for dtype in (torch.float32, torch.bfloat16):
        assert_proven(run, dtype, "native")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("frames", "grid"), [(1, (1, 1)), (3, (5, 9)), (8, (7, 7)), (16, (14, 14))], ids=str)
def test_class_tokens_that_are_left_out(frames, grid, layout):
    turn = frames + LAYOUTS.index(layout)
    clips = 3 if frames * grid[0] * grid[1] < 1000 else 1
    options = {"prefix": (1, 5)[turn // 2 % 2], "sequential": turn % 2 == 0, "strided": turn % 3 == 0}
    run = case(frames, grid, layout, clips, **options, patches_only=True)
    for dtype in (torch.float32, torch.bfloat16):
        assert_proven(run, dtype, "native")


def test_class_tokens_that_are_left_out_pass_untouched_and_teach_nothing():
    for layout, dtype in itertools.product(LAYOUTS, (torch.float32, torch.bfloat16)):
        leaves = tensors(12, 8, layout, torch.Generator().manual_seed(0))
        own = {name: leaf.to(dtype).requires_grad_() for name, leaf in leaves.items()}
        x, dy = torch.randn(2, 6, 10, 12).to(dtype)
        gradients = []
        for class_token in (x[:, :1], x[:, :1] * 3):
            tokens = torch.cat([class_token, x[:, 1:]], dim=1).requires_grad_()
            weights = ted_weights(own, layout)
            y = kernels.ted_adapter(tokens, weights, 3, patches_only=True, backend="native")
            gradients.append(torch.autograd.grad(y, [tokens, *own.values()], dy))
            assert torch.equal(y[:, 0], tokens[:, 0]) and torch.equal(gradients[-1][0][:, 0], dy[:, 0])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            y = kernels.ted_adapter(x.float(), weights, 3, patches_only=True, backend="native")
        assert y.dtype == torch.float32 and torch.equal(y[:, 0], x[:, 0].float())


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("width", [3, 8, 16, 35])
def test_every_instruction_set_and_width(name, width):
    before = native.extension.instruction_set()
    if not native.extension.select_instruction_set(name):
        pytest.skip(f"this processor has no {name}")
    try:
        for layout, dtype in itertools.product(LAYOUTS, (torch.float32, torch.bfloat16)):
            assert_proven(case(3, (9, 2), layout, clips=2, width=width), dtype, "native")
    finally:
        native.extension.select_instruction_set(before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_long_clips_and_many_of_them_are_worked_through_in_parts(layout):
    for frames, grid, clips in ((40, (8, 8), 2), (8, (7, 7), 13)):  # longer than a part; parts that are not all alike
        assert_proven(case(frames, grid, layout, clips=clips, width=8), torch.float32, "native")


def test_empty_batches():
    for layout in LAYOUTS:
        for y, *gradients in (case(2, (3, 3), layout, clips=0)(torch.float32, "native"),):
            assert y.shape == (0, 10, 21)
            assert gradients[0].shape == (0, 10, 21)
            assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_the_run_or_on_the_threads(layout):
    """The mixer's; matrix products are torch's own, so one thread is compared with more on the mixer alone."""
    run = case(8, (14, 14), layout, clips=2, width=32)
    first = run(torch.float32, "native")
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(first, run(torch.float32, "native"), strict=True))
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            results.append(mix(layout))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def mix(layout: str) -> list[Tensor]:
    """Everything that the mixer computes for a fixed input."""
    generator = torch.Generator().manual_seed(0)
    make = partial(torch.randn, generator=generator)
    width, frames, grid = 64, 4, (14, 14)
    temporal = [make(width, 1, 3), make(width)] if layout != "difference" else []
    difference = [make(width, 1, 3, 3), make(width), make(width)] if layout != "temporal" else []
    mixer = native.Mixer(temporal, difference, layout == "shared", Geometry(frames, grid, True))
    h, du = (make(2 * frames, 197, width * (2 if layout == "both" else 1)) for _ in range(2))
    u, dh = torch.empty_like(h), torch.empty_like(h)
    mixer.forward(h, u)
    gradients = mixer.backward(h, du, dh)
    return [u, dh, *gradients]


def test_every_element_is_written():
    """Memory that is handed out uninitialised holds NaN, kept workspaces too."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        for layout in LAYOUTS:
            native.forget_workspaces()
            assert all(tensor.isfinite().all() for tensor in case(3, (5, 9), layout, clips=2)(torch.float32, "native"))
    finally:
        torch.use_deterministic_algorithms(False)
        native.forget_workspaces()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_what_is_needed_gets_a_gradient(layout):
    leaves = tensors(6, 4, layout, torch.Generator().manual_seed(0))
    leaves = {name: leaf.float() for name, leaf in leaves.items()}
    x = torch.randn(4, 5, 6)
    for trained in ([], ["x"], [name for name in leaves if "down" in name], list(leaves)):
        own = {name: leaf.clone().requires_grad_(name in trained) for name, leaf in leaves.items()}
        own_x = x.clone().requires_grad_("x" in trained)
        y = kernels.ted_adapter(own_x, ted_weights(own, layout), 2, backend="native")
        assert y.requires_grad == bool(trained)
        if trained:
            y.sum().backward()
        for name, leaf in (("x", own_x), *own.items()):
            assert (leaf.grad is not None) == (name in trained)


def test_gradients_have_the_strides_of_their_parameters():
    adapter = m2clip.TEDAdapter(12, 8, 2, backend="native")
    adapter(torch.randn(4, 5, 12)).sum().backward()
    for parameter in adapter.parameters():
        assert parameter.grad.stride() == parameter.stride()
        assert parameter.grad.untyped_storage().nbytes() == parameter.grad.nbytes  # no view of something larger


def test_class_tokens_alone_and_no_tokens_at_all():
    adapter = m2clip.TEDAdapter(12, 8, 2)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 1, 12)
    results = []
    for backend in ("reference", "native"):
        adapter.backend = backend
        results.append(adapter(x))
    torch.testing.assert_close(*results)
    for backend in ("reference", "native"):
        assert kernels.ted_adapter(x[:, :0], adapter.weights(), 2, class_token=False, backend=backend).shape == (
            4,
            0,
            12,
        )


def test_not_a_number_stays_one_and_spreads_no_further_than_it_should():
    adapter = m2clip.TEDAdapter(12, 8, 4, backend="native")
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 26, 12)
    x[3, 1] = float("nan")  # last frame, first patch
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            bad = adapter.to(dtype)(x.to(dtype)).isnan().any(dim=-1)
        expected = torch.zeros(4, 26, dtype=torch.bool)
        expected[2:, 1] = True  # temporal convolution
        expected[3, [1, 2, 6, 7]] = True  # the patch and its neighbours in a 5x5 grid
        assert torch.equal(bad, expected)
