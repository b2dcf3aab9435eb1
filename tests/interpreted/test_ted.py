"""The Triton kernels of ted_adapter against the reference in fp64.

bf16 is left to a GPU: the interpreter's tl.dot is wrong in it.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
import torch

from benchmarks import traffic
from m2clip import kernels
from m2clip.kernels.operands import Branches, Geometry
from m2clip.kernels.triton import ted
from m2clip.kernels.triton.mixer import Mixer, MixerConfig
from tests.kernels.proof import assert_proven
from tests.kernels.test_native_ted import FRAMES, GRIDS, LAYOUTS, case, ted_weights, tensors

# The interpreter is slow: long clips on small grids, large grids in short clips.
SHAPES = [(frames, grid) for frames in FRAMES for grid in GRIDS if frames * grid[0] * grid[1] <= 400]
PLANS = {"launches": torch.float32, "narrow": torch.float16, "wide": torch.float16}  # one launch is for 16 bits


def force(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan in ted.plans(Branches.of(ted_weights(leaves("both"), "both"), PLANS[plan]), ANY, PLANS[plan])
    monkeypatch.setattr(ted, "plans", lambda *_: [plan])


def leaves(layout: str, dim: int = 24, width: int = 16) -> dict[str, torch.Tensor]:
    return tensors(dim, width, layout, torch.Generator().manual_seed(0))


ANY = Geometry(2, (3, 3), True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("frames", "grid"), SHAPES, ids=str)
def test_triton_is_as_exact_as_eager(frames, grid, layout, monkeypatch):
    turn = FRAMES.index(frames) + GRIDS.index(grid) + LAYOUTS.index(layout)  # the other options take turns
    options = {"prefix": (1, 0, 5)[turn // 2 % 3], "sequential": turn % 3 == 0, "strided": turn % 5 == 0}
    plan, dtype = [*PLANS.items(), ("launches", torch.float16)][turn % 4]
    force(plan, monkeypatch)
    run = case(frames, grid, layout, 1, width=(19, 32)[turn // 4 % 2], **options)
    assert_proven(run, dtype, "triton")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_plan_on_several_clips(layout, plan, monkeypatch):
    force(plan, monkeypatch)
    for prefix, dtype in ((1, torch.float16), (0, PLANS[plan]), (5, PLANS[plan])):
        run = case(2, (5, 9), layout, 3, width=32, prefix=prefix)
        assert_proven(run, dtype, "triton")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_class_tokens_that_are_left_out(layout, plan, monkeypatch):
    force(plan, monkeypatch)
    dtype = (torch.float16, PLANS[plan])[LAYOUTS.index(layout) % 2]
    for sequential in {False, layout in ("both", "shared")}:
        run = cache(case(3, (3, 4), layout, 2, dim=24, sequential=sequential, patches_only=True))
        assert_proven(run, dtype, "triton")
        for tensor, same in zip(run(dtype, "triton")[:2], run(dtype, "reference"), strict=False):  # y, gradient of x
            assert torch.equal(tensor[:, 0], same[:, 0])


@pytest.mark.parametrize("plan", PLANS)
def test_tiles_of_one_clip_depend_on_each_other_across_frames(plan, monkeypatch):
    """More rows than a tile of a product, more columns than one, more tokens than a tile of the mixer."""
    force(plan, monkeypatch)
    run = case(3, (7, 10), "both", 2, dim=72, width=40)
    assert_proven(run, torch.float16, "triton")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_is_written_and_bits_repeat(layout, plan, monkeypatch):
    """Memory that is handed out uninitialised holds NaN."""
    force(plan, monkeypatch)
    run = case(3, (2, 5), layout, clips=2)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        first, second = run(PLANS[plan], "triton"), run(PLANS[plan], "triton")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(tensor.isfinite().all() for tensor in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_hidden_rows_are_the_same_whatever_the_plan():
    branches = Branches.of(ted_weights(leaves("both"), "both"), torch.float16)
    x, geometry = torch.randn(4, 10, 24).half(), ANY
    kept = [ted.forward(x, branches, geometry, True, True, plan)[1] for plan in ted.plans(branches, geometry, x.dtype)]
    assert len(kept) == 3
    for h in kept:
        torch.testing.assert_close(h, kept[0], rtol=1e-3, atol=1e-3)
    assert ted.forward(x, branches, geometry, True, False)[1].numel() == 0


def test_plans_follow_the_width_and_the_dtype():
    def first(layout: str, width: int, dtype: torch.dtype) -> list[str]:
        return ted.plans(Branches.of(ted_weights(leaves(layout, 24, width), layout), dtype), ANY, dtype)

    assert first("both", 64, torch.bfloat16)[0] == "narrow"
    assert first("shared", 128, torch.float16)[0] == "narrow"
    assert first("both", 65, torch.bfloat16)[0] == "launches"
    assert first("both", 64, torch.float32) == ["launches"]
    assert "narrow" not in first("both", 129, torch.bfloat16)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_change_the_order_of_sums_alone(layout):
    """Whatever the tile of the mixer, a partial sum too few or one twice would show."""
    branches = Branches.of(ted_weights(leaves(layout, width=8), layout), torch.float32)
    mixer = Mixer.of(branches, Geometry(2, (3, 3), True))
    columns = branches.hidden_shape(torch.empty(4, 10, 24))
    h, du = (torch.randn(columns, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    results = []
    for tokens, channels, adjacent in ((4, 8, 1), (4, 4, 2), (32, 8, 4)):
        config = MixerConfig(tokens, channels, 4, adjacent)
        u, again, dh, alone = (torch.full_like(h, torch.nan) for _ in range(4))
        mixer.forward(h, u, config)
        results.append([u, dh, *mixer.backward(h, du, dh, again, True, config)])
        assert torch.equal(again, u)
        assert mixer.backward(h, du, alone, None, False, config) == []
        assert torch.equal(alone, dh)
        gradients = mixer.backward(h, du, alone, None, True, config)
        assert all(torch.equal(*pair) for pair in zip(gradients, results[-1][2:], strict=True))
    for result in results[1:]:
        for ours, others in zip(result, results[0], strict=True):
            torch.testing.assert_close(ours, others, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "numbers"), [("both", (5, 3, 10)), ("shared", (4, 3, 8)), ("difference", (4, 3, 8))]
)
def test_one_launch_prepares_all_weights(layout, numbers):
    """Launches of a forward pass in steps and in one, and of a backward pass: the start of each takes its time."""
    branches = Branches.of(ted_weights(leaves(layout), layout), torch.float16)
    x, geometry = torch.randn(4, 10, 24).half(), ANY
    steps, one = (
        traffic.count(lambda plan=plan: ted.forward(x, branches, geometry, True, False, plan))
        for plan in ("launches", "narrow")
    )
    h = ted.forward(x, branches, geometry, True, True)[1]
    back = traffic.count(lambda: ted.backward(x, x, h, branches, geometry, True, True, True))
    assert tuple(map(len, (steps, one, back))) == numbers


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_another_dtype_are_rounded_on_the_way_and_get_gradients_of_their_own(layout):
    """As weights that are rounded first, but for taps and small biases, which are not rounded at all."""
    whole = Branches.of(ted_weights(leaves(layout), layout), torch.float32)
    half = Branches(*([tensor.half() for tensor in part] for part in whole))
    x, results = torch.randn(4, 10, 24).half(), []
    for branches in (whole, half):
        y, h = ted.forward(x, branches, ANY, True, True)
        dx, gradients = ted.backward(y, x, h, branches, ANY, True, True, True)
        dtypes = {gradient.dtype for gradient in gradients}
        assert (dtypes, y.dtype, dx.dtype) == ({branches.projections()[0][0].dtype}, x.dtype, x.dtype)
        results.append([y, dx, *gradients])
    for ours, rounded in zip(*results, strict=True):
        torch.testing.assert_close(ours.float(), rounded.float(), rtol=2e-2, atol=2e-2 * float(rounded.abs().max()))


def test_weights_that_are_not_contiguous():
    plain = Branches.of(ted_weights(leaves("both"), "both"), torch.float32)
    spread = Branches(*([torch.stack([t, t], dim=-1)[..., 0] for t in part] for part in plain))
    x, results = torch.randn(4, 10, 24), []
    for branches in (plain, spread):
        y, h = ted.forward(x, branches, ANY, True, True)
        dx, gradients = ted.backward(y, x, h, branches, ANY, True, True, True)
        results.append([y, dx, *gradients])
        for gradient in gradients:
            assert gradient.untyped_storage().nbytes() == gradient.nbytes  # no view of something larger
    assert not any(tensor.is_contiguous() for part in spread for tensor in part)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batches(layout):
    y, *gradients = case(2, (3, 3), layout, clips=0)(torch.float32, "triton")
    assert y.shape == (0, 10, 21)
    assert not any(gradient.any() for gradient in gradients)


def test_only_what_is_needed_gets_a_gradient():
    branches = leaves("both", 6, 4)
    x = torch.randn(4, 5, 6)
    for need_x, need_w in product((False, True), repeat=2):
        own = {name: leaf.float().requires_grad_(need_w) for name, leaf in branches.items()}
        own_x = x.clone().requires_grad_(need_x)
        y = kernels.ted_adapter(own_x, ted_weights(own, "both"), 2, backend="triton")
        assert y.requires_grad == (need_x or need_w)
        if y.requires_grad:
            y.sum().backward()
        assert (own_x.grad is not None) == need_x
        assert all((leaf.grad is not None) == need_w for leaf in own.values())


def test_not_a_number_spreads_no_further_than_it_should(monkeypatch):
    weights = ted_weights({name: leaf.half() for name, leaf in leaves("both", 12, 8).items()}, "both")
    x = torch.randn(4, 26, 12).half()
    x[3, 1] = torch.nan  # last frame, first patch
    expected = torch.zeros(4, 26, dtype=torch.bool)
    expected[2:, 1] = True  # temporal convolution
    expected[3, [1, 2, 6, 7]] = True  # the patch and its neighbours in a 5x5 grid
    for plan in PLANS:
        force(plan, monkeypatch)
        assert torch.equal(kernels.ted_adapter(x, weights, 4, backend="triton").isnan().any(dim=-1), expected), plan
        monkeypatch.undo()
