"""The adapters as modules: identity at the start, parameter counts, agreement with the authors' formulation."""

from __future__ import annotations

import pytest
import torch

from benchmarks import authors
from m2clip import TEDAdapter, TextAdapter
from m2clip.adapters import FrameFeatureAdapter, STAdapter


def randomise(module: torch.nn.Module) -> None:
    """Every parameter, biases included, away from zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("shared", [False, True])
def test_untrained_adapters_are_the_identity(shared):
    torch.manual_seed(0)
    x = torch.randn(4, 10, 16)
    assert torch.equal(TEDAdapter(16, 8, 2, shared_projection=shared)(x), x)
    assert torch.equal(TextAdapter(16, 8)(x), x)
    assert torch.equal(FrameFeatureAdapter(16)(x), x)
    assert not torch.equal(TextAdapter(16, 8, zero_init_up=False)(x), x)


def test_parameter_counts():
    assert count(TEDAdapter(768, 384)) == 1_187_328
    assert count(TEDAdapter(768, 384, shared_projection=True)) == 1_187_328 - 295_296 - 295_680
    assert count(TextAdapter(512, 384)) == 394_112
    assert count(FrameFeatureAdapter(512)) == 263_936


@pytest.mark.parametrize(("frames", "side", "clips"), [(8, 7, 2), (4, 14, 1), (1, 7, 2)])
def test_ted_adapter_agrees_with_the_authors_formulation(frames, side, clips):
    torch.manual_seed(0)
    theirs, ours = authors.TEDAdapter(48, 24, frames), TEDAdapter(48, 24, frames)
    randomise(theirs)
    with torch.no_grad():
        for branch, source in ((ours.temporal, theirs), (ours.difference, theirs.offset_adapter)):
            for mine, other in ((branch.down, source.fc1), (branch.conv, source.conv), (branch.up, source.fc2)):
                mine.weight.copy_(other.weight.reshape(mine.weight.shape))
                mine.bias.copy_(other.bias)
    x = torch.randn(clips * frames, 1 + side * side, 48, requires_grad=True)
    gradient = torch.randn_like(x)
    y = ours(x)
    y.backward(gradient)
    mine, x.grad = x.grad, None
    expected = theirs(x.permute(1, 0, 2)).permute(1, 0, 2)
    expected.backward(gradient)
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (mine - x.grad).abs().max() <= 1e-5 * x.grad.abs().max()
    difference = ours.difference.conv.weight.grad - theirs.offset_adapter.conv.weight.grad.squeeze(2)
    assert difference.abs().max() <= 1e-4 * ours.difference.conv.weight.grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_lie_in_memory_as_their_parameters_do(shared, dtype):
    # DistributedDataParallel copies gradients of other strides, and warns, even where the odd dimension has size 1.
    for adapter in (TEDAdapter(16, 8, 2, shared_projection=shared), TextAdapter(16, 8)):
        randomise(adapter)
        adapter(torch.randn(4, 10, 16, dtype=dtype)).sum().backward()
        for name, parameter in adapter.named_parameters():
            assert parameter.grad.stride() == parameter.stride(), name


def test_class_tokens_alone_get_what_they_get_among_patches():
    torch.manual_seed(0)
    adapter = TEDAdapter(16, 8, 3, grid=(2, 2))
    randomise(adapter)
    x = torch.randn(6, 5, 16)
    torch.testing.assert_close(adapter(x[:, :1]), adapter(x)[:, :1])


@pytest.mark.parametrize(
    "options", [{}, {"sequential": True}, {"temporal": False}, {"difference": False}, {"shared_projection": True}]
)
def test_each_token_in_front_of_the_patches_is_a_class_token(options):
    torch.manual_seed(0)
    adapters = [TEDAdapter(16, 8, 3, grid=(2, 3), num_prefix_tokens=prefix, **options) for prefix in (4, 1)]
    randomise(adapters[0])
    adapters[1].load_state_dict(adapters[0].state_dict())
    many, one = adapters
    x = torch.randn(6, 4 + 6, 16)
    found = many(x)
    for token in range(4):
        expected = one(torch.cat([x[:, token : token + 1], x[:, 4:]], dim=1))
        torch.testing.assert_close(found[:, [token]], expected[:, :1])
        torch.testing.assert_close(found[:, 4:], expected[:, 1:])
    torch.testing.assert_close(many(x[:, :1]), found[:, :1])  # as a tower's last block sends it


def test_st_adapters_leave_the_tokens_in_front_of_the_patches_alone():
    torch.manual_seed(0)
    adapter = STAdapter(16, 8, 3, grid=(2, 3), num_prefix_tokens=4)
    randomise(adapter)
    without = STAdapter(16, 8, 3, grid=(2, 3), num_prefix_tokens=0)
    without.load_state_dict(adapter.state_dict())
    x = torch.randn(6, 4 + 6, 16)
    assert torch.equal(adapter(x)[:, :4], x[:, :4])
    torch.testing.assert_close(adapter(x)[:, 4:], without(x[:, 4:]))


def test_an_adapter_without_branches_is_refused():
    with pytest.raises(ValueError, match="at least one of its branches"):
        TEDAdapter(16, 8, temporal=False, difference=False)


def test_shared_projections_stay_shared_through_a_state_dict():
    adapter = TEDAdapter(16, 8, 2, shared_projection=True)
    randomise(adapter)
    other = TEDAdapter(16, 8, 2, shared_projection=True)
    other.load_state_dict(adapter.state_dict())
    x = torch.randn(4, 5, 16)
    assert torch.equal(other(x), adapter(x))
    assert other.difference.down is other.temporal.down
