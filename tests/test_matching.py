"""Distances between sequences of frames, against textbook versions in plain Python that look at one pair at a time."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from m2clip.matching import TRX, bi_mhm, frame_distances, otam, sinusoids


def soft_minimum(values, smoothing):
    least = min(values)
    if smoothing == 0:
        return least
    return least - smoothing * math.log(sum(math.exp((least - value) / smoothing) for value in values))


def one_way(distances, smoothing):
    """The recursion as it is written, cell by cell, zero columns included."""
    rows = [[0.0, *row, 0.0] for row in distances]
    last = len(rows[0]) - 1
    cost = [[0.0] * (last + 1) for _ in rows]
    for m in range(1, last + 1):
        cost[0][m] = rows[0][m] + cost[0][m - 1]
    for l in range(1, len(rows)):
        for m in range(1, last + 1):
            before = [cost[l - 1][m - 1], cost[l][m - 1]]
            if m in (1, last):
                before.append(cost[l - 1][m])
            cost[l][m] = rows[l][m] + soft_minimum(before, smoothing)
    return cost[-1][-1]


def textbook_otam(distances, smoothing):
    return one_way(distances.tolist(), smoothing) + one_way(distances.mT.tolist(), smoothing)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_distances(*shape, seed=0, dtype=torch.float64):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.01, 0.1, 0.5, 3.0])
def test_otam_is_the_textbook_recursion(smoothing):
    sizes = torch.randint(1, 13, (200, 2), generator=torch.Generator().manual_seed(round(100 * smoothing)))
    for seed, (frames, others) in enumerate(sizes.tolist()):
        distances = random_distances(frames, others, seed=seed) * 10.0 ** (seed % 4 - 1)  # up to 0.2, 2, 20, 200
        expected = textbook_otam(distances, smoothing)
        scale = distances.sum().item()
        assert otam(distances, smoothing).item() == pytest.approx(expected, rel=1e-12, abs=1e-13 * scale)
        assert otam(distances.float(), smoothing).item() == pytest.approx(expected, rel=2e-6, abs=5e-7 * scale)


def test_hand_computed():
    assert otam(torch.tensor([[0.3]])).item() == pytest.approx(0.6)
    # One row: all its cells; the same as a column: from any cell on, or only the first, and out below any of them.
    assert otam(torch.tensor([[1.0, 2.0]]), smoothing=0).item() == pytest.approx(3 + 1)
    assert otam(torch.tensor([[1.0, 2.0]]), smoothing=1).item() == pytest.approx(
        3 - math.log(2 * math.exp(-1) + math.exp(-3) + 2 * math.exp(-2)), rel=1e-6
    )


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_all_pairs_at_once(size):
    distances = random_distances(2, 3, 4, *size)
    together = otam(distances)
    assert together.shape == (2, 3, 4)
    alone = [otam(pair).item() for pair in distances.flatten(0, 2)]
    assert together.flatten().tolist() == pytest.approx(alone, rel=1e-14)
    torch.testing.assert_close(otam(distances.transpose(0, 1)), together.transpose(0, 1), rtol=1e-14, atol=0)


def test_symmetric_in_query_and_support():
    query, support = random(6, 8, 32), random(6, 5, 32, seed=1)
    there, back = frame_distances(query, support), frame_distances(support, query)
    for metric in (otam, bi_mhm, lambda distances: otam(distances, 0.0)):
        torch.testing.assert_close(metric(there), metric(back).mT, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_a_sequence_is_nearest_to_itself_and_not_to_its_reverse(smoothing):
    videos = random(6, 8, 512, seed=2)
    distances = otam(frame_distances(videos, videos), smoothing)
    assert torch.equal(distances.argmin(1), torch.arange(6))
    if smoothing == 0:
        assert distances.diagonal().abs().max() < 1e-12
    assert (otam(frame_distances(videos, videos.flip(1)), smoothing).diagonal() > distances.diagonal()).all()
    nearest = bi_mhm(frame_distances(videos, videos.flip(1))).diagonal()  # sees no order
    assert nearest.abs().max() < 1e-12


def test_small_smoothing_approaches_the_hard_minimum():
    distances = random_distances(50, 8, 6)
    hard = otam(distances, 0.0)
    alignments = math.exp(-otam(torch.zeros(8, 6, dtype=torch.float64), 1.0))  # product of both directions' numbers
    assert alignments == pytest.approx(round(alignments))
    for smoothing in (1.0, 0.1, 1e-2, 1e-4, 1e-8):
        below = hard - otam(distances, smoothing)
        assert below.min() > -1e-12 and below.max() <= smoothing * math.log(alignments)
    with_fp32 = otam(distances.float(), 1e-30)
    torch.testing.assert_close(with_fp32, hard.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("smoothing", [0.0, 1e-6, 0.5, 1e6])
def test_no_distance_overflows(factor, smoothing):
    distances = (random_distances(4, 12, 12, dtype=torch.float32) * factor).requires_grad_()
    total = otam(distances, smoothing)
    (gradient,) = torch.autograd.grad(total.sum(), distances)
    assert total.isfinite().all() and gradient.isfinite().all()
    assert gradient.min() >= 0 and gradient.sum((1, 2)).min() > 22  # a cell in every column, or row, but the first


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.5])
def test_gradients(size, smoothing):
    distances = random_distances(2, *size).requires_grad_()
    assert torch.autograd.gradcheck(lambda distances: otam(distances, smoothing), distances)
    assert torch.autograd.gradcheck(bi_mhm, distances)
    if smoothing:
        assert torch.autograd.gradgradcheck(lambda distances: otam(distances, smoothing), distances)
        ties = torch.zeros_like(distances, requires_grad=True)
        assert torch.autograd.gradcheck(lambda distances: otam(distances, smoothing), ties)


@pytest.mark.parametrize("metric", [bi_mhm, lambda distances: otam(distances, 0.0)])
def test_hard_minima_share_the_gradient_between_ties(metric):
    ties = torch.ones(5, 5, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(metric(ties), ties)[0]
    assert slope.min() >= 0 and slope.isfinite().all()
    total = metric(ties).item()
    assert (slope * ties).sum().item() == pytest.approx(total)  # of degree one: Euler's formula


def test_frame_distances_are_one_minus_cosine():
    query, support = random(2, 3, 4, 16), random(2, 5, 6, 16, seed=1) * 100
    distances = frame_distances(query, support)
    assert distances.shape == (2, 3, 5, 4, 6)
    expected = 1 - F.cosine_similarity(query[:, :, None, :, None], support[:, None, :, None], dim=-1)
    torch.testing.assert_close(distances, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        frame_distances(query, support[0]), frame_distances(query, support[:1].expand(2, 5, 6, 16))
    )


def test_frames_of_zeros_have_a_distance_and_a_gradient():
    query, support = torch.zeros(1, 2, 8, requires_grad=True), torch.zeros(1, 2, 8, requires_grad=True)
    distances = frame_distances(query, support)
    assert torch.equal(distances, torch.ones(1, 1, 2, 2))
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(otam(distances).sum(), (query, support)))


def test_bi_mhm_is_the_sum_of_nearest_distances():
    distances = random_distances(3, 4, 7, 5)
    for rows, total, mean in zip(
        distances.flatten(0, 1).tolist(),
        bi_mhm(distances).flatten(),
        bi_mhm(distances, mean=True).flatten(),
        strict=True,
    ):
        of_query, of_support = sum(min(row) for row in rows), sum(min(column) for column in zip(*rows, strict=True))
        assert total.item() == pytest.approx(of_query + of_support)
        assert mean.item() == pytest.approx(of_query / 7 + of_support / 5)


def textbook_trx(model, query, shots):
    """Distance of one query (T, D) to one class (K, T, D), tuple by tuple, with every vector written out."""
    frames, dim = query.shape
    wave = lambda t, d: (math.sin, math.cos)[d % 2](t / 10_000 ** ((d - d % 2) / dim))  # noqa: E731
    positions = 0.1 * torch.tensor([[wave(t, d) for d in range(dim)] for t in range(frames)], dtype=torch.float64)
    totals = []
    for tuples in model.tuples:
        members = list(combinations(range(frames), tuples.key.in_features // dim))
        side_by_side = [
            [torch.cat([(video + positions)[i] for i in own]) for own in members] for video in (query, *shots)
        ]
        own, others = side_by_side[0], [vector for video in side_by_side[1:] for vector in video]
        width = tuples.key.out_features
        keys = [F.layer_norm(tuples.key(vector), (width,), tuples.norm.weight, tuples.norm.bias) for vector in others]
        values = [tuples.value.weight @ vector for vector in others]
        total = 0.0
        for vector in own:
            ask = F.layer_norm(tuples.key(vector), (width,), tuples.norm.weight, tuples.norm.bias)
            weights = [math.exp((ask @ key).item() / math.sqrt(width)) for key in keys]
            prototype = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
            total += ((tuples.value.weight @ vector - prototype) ** 2).sum().item()
        totals.append(total / len(own))
    return sum(totals) / len(totals)


def make_trx(dim=10, frames=5, cardinalities=(2, 3), **options):
    torch.manual_seed(0)
    model = TRX(dim, frames, cardinalities, width=12, **options).double().eval()
    for tuples in model.tuples:
        torch.nn.init.normal_(tuples.norm.weight)
        torch.nn.init.normal_(tuples.norm.bias)
    return model


@pytest.mark.parametrize("cardinalities", [(2, 3), (1,), (2,), (4, 5)])
def test_trx_is_the_textbook_version(cardinalities):
    model = make_trx(cardinalities=cardinalities)
    query, support = random(2, 3, 5, 10), random(2, 2, 2, 5, 10, seed=1)
    distances = model(query, support)
    assert distances.shape == (2, 3, 2)
    for episode in range(2):
        for q in range(3):
            for c in range(2):
                expected = textbook_trx(model, query[episode, q], support[episode, c])
                assert distances[episode, q, c].item() == pytest.approx(expected, rel=1e-6)  # fp32 positions
    assert torch.equal(model(query, support[:, :, :1]), model(query, support[:, :, 0]))  # one shot, or merged ones
    torch.testing.assert_close(model(query, support.flip(2)), distances)  # shots are a set
    torch.testing.assert_close(model(query[0], support[0]), distances[0])


def test_trx_sees_the_order_of_frames_and_its_own_support():
    model = make_trx(dim=16)
    videos = 3 * random(4, 5, 16, seed=3)
    distances = model(videos, videos)
    assert torch.equal(distances.argmin(1), torch.arange(4))
    assert (model(videos.flip(1), videos).diagonal() > distances.diagonal()).all()


def test_trx_learns_with_every_parameter():
    model = make_trx()
    query, support = random(2, 5, 10).requires_grad_(), random(2, 2, 5, 10, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(model, (query, support), fast_mode=True)
    model(query, support)[0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.norm() > 1e-6 for parameter in model.parameters())
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_trx_drops_out_in_training_alone():
    query, support = random(2, 5, 10), random(2, 5, 10, seed=1)
    model = make_trx(dropout=0.5)
    assert torch.equal(model(query, support), make_trx(dropout=0.0).train()(query, support))
    model.train()
    assert not torch.equal(model(query, support), model(query, support))


def test_published_size_of_trx():
    model = TRX(2048, 8)
    assert model.tuples[0].members.shape == (2, 28) and model.tuples[1].members.shape == (3, 56)
    assert sum(parameter.numel() for parameter in model.tuples.parameters()) == 2 * 5 * 2048 * 1152 + 2 * 3 * 1152
    assert sinusoids(3, 7).shape == (3, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    query, support = random(3, 8, 64).to(dtype), random(2, 8, 64, seed=1).to(dtype)
    trx = TRX(64, width=16).eval()
    full = frame_distances(query.float(), support.float())
    expected = [full, otam(full), bi_mhm(full), trx(query.float(), support.float())]
    with torch.autocast("cpu", torch.bfloat16):
        autocast = frame_distances(query, support)
        found = [autocast, otam(autocast), bi_mhm(autocast), trx(query, support)]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)
    assert torch.equal(otam(full.to(dtype)), otam(full.to(dtype).float()))


@pytest.mark.parametrize(
    ("query", "support"), [((0, 8, 4), (5, 8, 4)), ((3, 8, 4), (0, 8, 4)), ((0, 3, 8, 4), (0, 5, 8, 4))]
)
def test_nothing_gives_nothing(query, support):
    query, support = torch.zeros(query, requires_grad=True), torch.zeros(support, requires_grad=True)
    distances = frame_distances(query, support)
    shape = (*query.shape[:-2], support.shape[-3])
    for result in (otam(distances), otam(distances, 0.0), bi_mhm(distances), TRX(4, width=8)(query, support)):
        assert result.shape == shape
        result.sum().backward(retain_graph=True)
    assert otam(distances[..., :5]).shape == shape


@pytest.mark.parametrize("size", [(4, 4), (2, 3)])
def test_compiles_in_one_graph(size):
    def run(query, support, smoothing):
        distances = frame_distances(query, support)
        return otam(distances, smoothing) + bi_mhm(distances)

    query, support = random(3, size[0], 16).requires_grad_(), random(2, size[1], 16, seed=1)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for smoothing in (0.5, 0.0):
        results = [function(query, support, smoothing) for function in (run, compiled)]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(torch.autograd.grad(result.sum(), query) for result in results))


def test_trx_compiles_in_one_graph():
    model = make_trx()
    query, support = random(3, 5, 10), random(2, 2, 5, 10, seed=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, support), model(query, support))


@pytest.mark.parametrize("metric", [otam, bi_mhm])
@pytest.mark.parametrize("shape", [(8,), (5, 0, 8), (5, 8, 0), ()])
def test_distances_that_are_none(metric, shape):
    with pytest.raises(ValueError, match=r"must be \(\.\.\., T, S\) with at least one frame each, got \("):
        metric(torch.zeros(shape))
    with pytest.raises(TypeError, match="must be a floating-point tensor, got torch.int64"):
        metric(torch.ones(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("smoothing", [-0.1, math.nan, math.inf, "0.5", None, True, torch.ones(2)])
def test_smoothing_that_is_none(smoothing):
    with pytest.raises((ValueError, TypeError), match="smoothing must"):
        otam(torch.zeros(2, 2), smoothing)


@pytest.mark.parametrize(("query", "support"), [((8, 4), (5, 8, 4)), ((3, 8, 4), (8, 4)), ((3, 8, 4), (5, 8, 5))])
def test_frames_that_do_not_fit(query, support):
    query, support = torch.zeros(query), torch.zeros(support)
    with pytest.raises(ValueError, match=r"frames must be \(\.\.\., Q, T, D\) .* got \("):
        frame_distances(query, support)
    with pytest.raises(ValueError, match=r"frames must be \(\.\.\., Q, 8, 4\) .* got \("):
        TRX(4)(query, support)


def test_trx_refuses_other_clips():
    for query, support in (((3, 7, 4), (5, 7, 4)), ((3, 8, 4), (5, 7, 4)), ((2, 3, 8, 4), (3, 5, 8, 4))):
        with pytest.raises(ValueError, match="K left out where shots are merged"):
            TRX(4)(torch.zeros(query), torch.zeros(support))
    for cardinalities in ((), (0, 2), (2, 9)):
        with pytest.raises(ValueError, match="cardinalities must be between 1 and num_frames = 8"):
            TRX(4, cardinalities=cardinalities)
