"""What benchmarks/byte_model.py counts, against sizes that are known otherwise."""

from __future__ import annotations

import pytest
import torch

from benchmarks import byte_model, traffic
from benchmarks.workloads import msta
from m2clip.kernels import MSTAWeights, TimeLayout
from m2clip.kernels.operands import Geometry
from m2clip.kernels.ops.operator import implementation
from m2clip.kernels.triton.mixer import Mixer


def test_an_element_wise_kernel_reads_and_writes_once():
    h, bias = torch.randn(100, 96, dtype=torch.float16), torch.randn(96, dtype=torch.float16)
    (launch,) = traffic.count(lambda: implementation("bias_gelu", "triton").forward(h, bias, "gelu"))
    assert (launch.read, launch.written) == (h.nbytes + bias.nbytes, h.nbytes)
    assert launch.requested >= launch.read


def test_the_mixer_reads_and_writes_its_rows_once_and_neighbours_again():
    weights = [torch.randn(32, 1, 3), torch.randn(32)], [torch.randn(32, 1, 3, 3), torch.randn(32), torch.randn(32)]
    mixer = Mixer(*weights, False, Geometry(3, (7, 6), True))
    h = torch.randn(2 * 3, 43, 64, dtype=torch.float16)
    u = torch.empty_like(h)
    tables, temporal, difference = traffic.count(lambda: mixer.forward(h, u))
    assert tables.written == (4 + 25) * 32 * 4
    assert temporal.written == difference.written == h.nbytes // 2
    least = h.nbytes // 2 - 6 * 32 * 2  # the difference branch reads no class token
    assert h.nbytes // 2 <= temporal.read <= h.nbytes // 2 + 4 * 32 * 4
    assert least <= difference.read <= least + 25 * 32 * 4
    assert difference.requested > 3 * h.nbytes // 2


def test_the_convolution_over_frames_costs_no_launch_and_no_row_read_twice():
    work = msta((6, 10, 48), 16, TimeLayout(3))
    leaves = {name: leaf.half() for name, leaf in work.leaves.items()}
    x, base, *weights = leaves.values()
    run = implementation("msta_adapter", "triton")
    slope, packed = torch.randn_like(x), MSTAWeights(*weights)
    launches = traffic.count(lambda: run.forward(x, base, packed, TimeLayout(3), 1.0, False))
    assert [launch.name for launch in launches] == ["hidden_kernel", "hidden_kernel", "up_kernel"]
    hidden, up = 6 * 10 * 16 * 2, sum(tensor.nbytes for tensor in weights[4:])
    assert (launches[2].read, launches[2].written) == (hidden + up + base.nbytes, base.nbytes)
    assert launches[2].requested > launches[2].read + hidden
    assert launches[2].flops >= 2 * 60 * 48 * 16
    _, first, second = run.forward(x, base, packed, TimeLayout(3), 1.0, True)
    launches = traffic.count(lambda: run.backward(slope, x, first, second, packed, TimeLayout(3), 1.0, True, True))
    (convolution,) = (launch for launch in launches if launch.name == "time_backward_kernel")
    assert convolution.read == slope.nbytes + hidden + weights[6].nbytes
    assert convolution.written >= hidden


def test_products_of_pytorch_are_counted_by_their_tensors():
    linear, x = torch.nn.Linear(96, 32), torch.randn(50, 96, requires_grad=True)
    launches = traffic.count(lambda: torch.autograd.grad(linear(x).sum(), [x, *linear.parameters()]))
    products = [launch for launch in launches if launch.flops]
    assert [launch.flops for launch in products] == [2 * 50 * 96 * 32] * 3
    size = 4 * (50 * 96 + 96 * 32 + 32)
    assert (products[0].name, products[0].read, products[0].written) == ("addmm", size, 4 * 50 * 32)


def test_views_empty_memory_and_what_is_overwritten():
    x = torch.randn(8, 16)

    def run() -> None:
        x.t().reshape(8, 16)  # copies
        y = torch.empty_like(x).view(-1)
        y.copy_(x.view(-1))
        x.unsqueeze(0).expand(5, 8, 16).sum()

    launches = traffic.count(run)
    assert [(launch.name, launch.read, launch.written) for launch in launches] == [
        ("clone", 512, 512),
        ("copy_", 512, 512),
        ("sum", 512, 4),
    ]


def test_many_clips_are_extended_from_two():
    weight = torch.randn(16, 24)

    def launches(clips: int) -> list[traffic.Launch]:
        return traffic.count(lambda: torch.randn(clips * 10, 24) @ weight.t())

    extended, counted = traffic.for_clips(launches, 7), launches(7)
    assert extended == counted
    with pytest.raises(ValueError, match="different launches"):
        traffic.for_clips(lambda clips: launches(1) * clips, 7)


def test_the_longer_of_bytes_and_products_counts():
    launch = traffic.Launch("", 3e9, 1e9, 3e9, 1e12)
    assert byte_model.seconds(launch, 4.0, 1000.0) == (pytest.approx(1e-3), "memory")
    assert byte_model.seconds(launch, 4.0, 500.0) == (pytest.approx(2e-3), "compute")


@pytest.mark.parametrize("name", ["tiny", "k400", "msta-tiny"])
def test_every_variant_moves_at_least_what_must_be_moved(name):
    shape = byte_model.shapes()[name]
    for which, (least, _) in shape.floor.items():
        assert set(shape.variants) > {byte_model.EAGER}
        for variant in shape.variants:
            launches = shape.launches(variant, which, shape.units)
            assert sum(launch.moved for launch in launches) >= least, (variant, which)
