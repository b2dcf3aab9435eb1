"""The projection kernel against plain products in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from m2clip.kernels.triton import projection
from m2clip.kernels.triton.projection import (
    Biases,
    ProjectionConfig,
    project,
    project_and_sum,
    projection_candidates,
    projection_config,
)
from tests.gpu.workloads import SMALL
from tests.kernels.proof import assert_as_exact

SHAPES = (((1, 1, 8), 8), ((3, 5, 24), 16), ((2, 50, 70), 37), ((4, 33, 16), 130), ((0, 3, 8), 8))
FP32_CONFIGS, FP16_CONFIGS = (
    dict.fromkeys(config for columns in (16, 64, 768) for config in projection_candidates(columns, 768, dtype, 90))
    for dtype in (torch.float32, torch.float16)
)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_torch(a: Tensor, b: Tensor, residual: Tensor | None, biases: Biases | None, *options) -> Tensor:
    class_token, scale = options
    out = a @ b
    bias, patch_bias = biases or (None, None)
    if bias is not None:
        out = out + bias
    if patch_bias is not None:
        patches = torch.arange(a.shape[-2])[:, None] >= class_token
        out = out + torch.where(patches, patch_bias, 0)
    return out * scale + (0 if residual is None else residual)


@pytest.mark.parametrize(("shape", "columns"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("residual", "biases", "class_token", "scale"),
    [
        (True, (0, 1), True, 1.0),
        (True, (0, 1), False, 0.3),
        (False, (None, 1), True, 1.0),
        (True, (0, None), True, 1.0),
        (True, None, False, 1.0),
    ],
)
def test_project_is_as_exact_as_torch(shape, columns, dtype, transposed, residual, biases, class_token, scale):
    a, b, rest = values(*shape), values(shape[-1], columns, seed=1), values(*shape[:-1], columns, seed=2)
    if transposed:
        b = b.t().contiguous().t()
    own = values(2, columns, seed=3)

    def run(dtype: torch.dtype, how) -> Tensor:
        chosen = biases and tuple(None if i is None else own[i].to(dtype) for i in biases)
        return how(a.to(dtype), b.to(dtype), rest.to(dtype) if residual else None, chosen, class_token, scale)

    assert_as_exact([run(torch.float64, by_torch)], [run(dtype, by_torch)], [run(dtype, project)])


def assert_deep_product_is_exact(dtype: torch.dtype) -> None:
    a, b = values(20, 1024), values(1024, 64, seed=1)

    def run(dtype: torch.dtype, how, of=torch.clone) -> list[Tensor]:
        return [how(of(a.to(dtype)), of(b.to(dtype)), None, None, False, 1.0)]

    terms = run(torch.float64, by_torch, torch.abs)
    assert_as_exact(run(torch.float64, by_torch), run(dtype, by_torch), run(dtype, project), terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_sums_of_many_products(dtype):
    assert_deep_product_is_exact(dtype)


def test_sums_in_half_precision_would_be_seen(monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    dot = InterpreterBuilder.create_dot

    def rounded(*arguments):
        sums = dot(*arguments)
        sums.data = sums.data.astype("float16").astype("float32")
        return sums

    monkeypatch.setattr(InterpreterBuilder, "create_dot", rounded)
    with pytest.raises(AssertionError, match="usual"):
        assert_deep_product_is_exact(torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_sums_of_the_residual_are_those_of_all_rows(dtype):
    a, b, residual = (values(*shape, seed=i).to(dtype) for i, shape in enumerate(((2, 70, 20), (20, 50), (2, 70, 50))))
    out, sums = project_and_sum(a, b, residual)
    total = sums.sum(dim=0)
    assert torch.equal(out, project(a, b, residual, None, False))
    assert sums.dtype == torch.float32 and len(sums) > 1
    exact = residual.double().sum(dim=(0, 1))
    torch.testing.assert_close(total.double(), exact, rtol=0, atol=1e-6 * residual.abs().sum(dim=(0, 1)).max().item())
    out, sums = project_and_sum(a[:0], b, residual[:0])
    assert out.shape == (0, 70, 50) and sums.shape == (0, 50)


@pytest.mark.parametrize("config", [*FP32_CONFIGS, *FP16_CONFIGS], ids=str)
def test_every_configuration_gives_the_same(config: ProjectionConfig):
    dtype = torch.float32 if config in FP32_CONFIGS else torch.float16
    shapes = (140, 40), (40, 150), (140, 150), (150,)
    a, b, residual, bias = (values(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes))
    expected = by_torch(*(tensor.float() for tensor in (a, b, residual)), (bias.float(), None), False, 0.5)
    torch.testing.assert_close(project(a, b, residual, (bias, None), False, 0.5, config), expected.to(dtype))
    out, sums = project_and_sum(a, b, residual, config)
    torch.testing.assert_close(out, (a.float() @ b.float() + residual).to(dtype))
    torch.testing.assert_close(sums.sum(dim=0), residual.float().sum(dim=0))


def test_a_bias_may_have_another_dtype():
    a, weight, bias = values(6, 20).half(), values(9, 20, seed=1).half(), values(9, seed=2).float()
    out = project(a, weight.t(), None, (bias, None), False)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, (a.double() @ weight.t().double() + bias).half())


@pytest.mark.parametrize("op", ["ted_adapter", "bottleneck_adapter", "msta_adapter"])
def test_fp32_products_are_pytorchs_whose_user_says_how_precise_they_are(op, monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    dot, factors = InterpreterBuilder.create_dot, []

    def noted(builder, a, *others):
        factors.append(a.dtype.is_fp32())
        return dot(builder, a, *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", noted)
    work = SMALL[op]()
    work.results(work.placed(torch.float32), "triton")
    assert not factors
    work.results(work.placed(torch.float16), "triton")
    assert factors and not any(factors)


def test_a_product_that_tensor_cores_would_cut_to_tf32_is_refused(monkeypatch):
    monkeypatch.setattr(projection, "factors", lambda a, b: (a, b))
    with pytest.raises(Exception, match="tensor cores would cut fp32 to tf32"):
        project(values(4, 16).float(), values(16, 16).float(), None, None, False)


def test_wide_tiles_are_never_larger_than_shared_memory():
    for architecture, limit in ((80, 163), (86, 99), (90, 227), (100, 227), (120, 99)):
        for dtype in (torch.float32, torch.bfloat16):
            for columns in (16, 64, 384, 768):
                for config in projection_candidates(columns, 768, dtype, architecture):
                    assert config.pipeline(dtype) <= limit * 1024
    assert projection_config(768, 384, torch.bfloat16, 90).columns == 128
