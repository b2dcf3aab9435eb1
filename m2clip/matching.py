"""How far apart two sequences of frames are: OTAM, Bi-MHM and TRX, for all queries and classes of all episodes at once.

Q: queries, N: classes, K: shots, T and S: frames of a query and of a class, D: feature width; leading dimensions "..."
(episodes) are free. Half-precision input is computed in fp32, and so is the result; fp64 stays fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2clip.kernels.ops.checks import check_count, check_flag, check_float, check_number
from m2clip.towers.precision import at_least_fp32


def frame_distances(query: Tensor, support: Tensor) -> Tensor:
    """1 - cosine of every frame of every query with every frame of every class.

    Args:
        query: (..., Q, T, D). support: (..., N, S, D), one sequence a class; leading dimensions broadcast.

    Returns:
        (..., Q, N, T, S), between 0 and 2. A frame of zeros is at distance 1 from all others.

    Raises:
        ValueError: other shapes. TypeError: integers.
    """
    for name, frames in (("query", query), ("support", support)):
        check_float(name, frames, rows=False)
    if min(query.dim(), support.dim()) < 3 or query.shape[-1] != support.shape[-1]:
        raise ValueError(
            "frames must be (..., Q, T, D) for the queries and (..., N, S, D) for the classes, "
            f"got {tuple(query.shape)} and {tuple(support.shape)}"
        )
    with torch.autocast(query.device.type, enabled=False):
        sides = [at_least_fp32(frames).flatten(-3, -2) for frames in (query, support)]
        # Cosines are scaled and not the features, which are far larger and would be written and kept a second time.
        scales = [torch.linalg.vector_norm(side, dim=-1).clamp_min(1e-12).reciprocal() for side in sides]
        cosines = sides[0] @ sides[1].mT * scales[0].unsqueeze(-1) * scales[1].unsqueeze(-2)
    sizes = (*query.shape[-3:-1], *support.shape[-3:-1])
    return (1 - cosines).unflatten(-1, sizes[2:]).unflatten(-3, sizes[:2]).transpose(-3, -2)


def otam(distances: Tensor, smoothing: float = 0.5) -> Tensor:
    """Ordered temporal alignment: the soft minimum over all alignments of a query's frames with a class's, in order.

    An alignment pays the distance of every cell it visits. It takes every frame of the class in turn, each with the
    same frame of the query as the one before or with the next; a column of zeros on both sides lets it begin and end at
    any frame of the query. In the first column, and in the zeros at the end, the soft minimum has three terms: there an
    alignment may go on to the query's next frame and stay with the class's; elsewhere it has two. The result is the sum
    of both directions, query to class and class to query.

    Args:
        distances: (..., T, S), finite, also over the smoothing. smoothing: lambda, in units of the distances; 0 takes
            the hard minimum.

    Returns:
        (...). Below the hard minimum, also below zero, by up to lambda times the logarithm of the number of alignments.

    Raises:
        ValueError: fewer than two dimensions or no frames; a smoothing that is negative or not finite.
        TypeError: integers.

    Source: Cao et al., "Few-Shot Video Classification via Temporal Alignment" (CVPR 2020); the edges and
    smoothing = 0.5 as in CLIP-FSAR's code.
    """
    distances = _checked(distances)
    smoothing = check_number("smoothing", smoothing)
    if smoothing < 0:
        raise ValueError(f"smoothing must not be negative, got {smoothing}")
    soft = smoothing > 0
    # Weights of alignments are kept as logarithms, which neither overflow nor vanish. The axis over which the recursion
    # runs comes first: what each of its steps reads and writes is contiguous.
    logs = (distances / -smoothing if soft else -distances).movedim((-1, -2), (0, 1))
    both = (logs, logs.transpose(0, 1))
    if len(both[0]) == len(both[1]):
        total = _alignments(torch.stack(both, dim=2), soft).sum(0)
    else:
        total = _alignments(both[0].contiguous(), soft) + _alignments(both[1].contiguous(), soft)
    return total * (-smoothing if soft else -1)


def _alignments(logs: Tensor, soft: bool) -> Tensor:
    """Logarithm of the sum (hard: the greatest) of the weights of all alignments; logs of the cells (S, T, ...).

    All frames of the query take a step at once: inside the matrix a cell's two predecessors lie in the column before.
    Only in the first column do they lie below each other, and the last is a sum whose terms are known.
    """
    merge = torch.logaddexp if soft else torch.maximum
    first, *columns = logs.unbind(0)
    start, *rows = first.unbind(0)
    cells = [start]
    entry = start.new_full((), math.log(2) if soft else 0.0)  # from the zeros beside the cell and those above them
    for row in rows:
        cells.append(row + merge(cells[-1], entry))
    ends = torch.stack(cells)  # (T, ...), alignments that end with the query's frame t
    for column in columns:
        ends = column + torch.cat([ends[:1], merge(ends[1:], ends[:-1])])
    if not soft:
        return ends.amax(0)
    # A large result has lost the digits behind the point, which logsumexp's gradient needs.
    most = ends.amax(0).detach()
    ways = torch.cat([ends, ends[:-1]])  # two lead out of every row but the last
    return most + torch.logsumexp(ways - most, 0)


def bi_mhm(distances: Tensor, mean: bool = False) -> Tensor:
    """Bidirectional mean Hausdorff distance: every frame, of either side, pays the distance to its nearest one.

    Args:
        distances: (..., T, S). mean: average over a side's frames, as in the paper, instead of the sum, as in the code.

    Returns:
        (...).

    Raises:
        ValueError: fewer than two dimensions or no frames. TypeError: integers.

    Source: Wang et al., "Hybrid Relation Guided Set Matching for Few-shot Action Recognition" (CVPR 2022).
    """
    distances = _checked(distances)
    check_flag("mean", mean)
    nearest = distances.amin(-1), distances.amin(-2)
    return nearest[0].mean(-1) + nearest[1].mean(-1) if mean else nearest[0].sum(-1) + nearest[1].sum(-1)


def _checked(distances: Tensor) -> Tensor:
    check_float("distances", distances, rows=False)
    if distances.dim() < 2 or 0 in distances.shape[-2:]:
        raise ValueError(f"distances must be (..., T, S) with at least one frame each, got {tuple(distances.shape)}")
    return at_least_fp32(distances)


class TRX(nn.Module):
    """Temporal-relational cross-transformers: tuples of a query's frames rebuilt from a class's tuples.

    Every ordered tuple of frames, its features side by side, has a key and a value. A query's tuple attends to all
    tuples of all shots of a class; the attended mean of their values is its prototype. The distance to the class is the
    squared distance of the query's values to their prototypes, averaged over its tuples and over the cardinalities.

    Args:
        dim: D.
        num_frames: T, of queries and shots alike.
        cardinalities: frames in a tuple.
        width: of keys and values.
        dropout: of frame features after their positions were added, in training.

    Shape: query (..., Q, T, D), support (..., N, T, D) with shots merged or (..., N, K, T, D) with each on its own ->
    (..., Q, N). Told apart by the number of dimensions; leading dimensions are those of the query.

    Raises:
        ValueError: cardinalities that are none, or not between 1 and num_frames; at the call, other shapes.
        TypeError: sizes that are not integers.

    Source: Perrett et al., "Temporal-Relational CrossTransformers for Few-Shot Action Recognition" (CVPR 2021). As read
    here: sinusoidal positions of the frames, times 0.1, and the average over cardinalities, which the paper sums, are
    those of the authors' code, as are one key map for queries and support, layer norm on keys alone, width and dropout.
    The value map has no bias, because it would cancel: prototypes are means.
    """

    position: Tensor

    def __init__(
        self,
        dim: int,
        num_frames: int = 8,
        cardinalities: Sequence[int] = (2, 3),
        *,
        width: int = 1152,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        dim, width = check_count("dim", dim), check_count("width", width)
        num_frames = check_count("num_frames", num_frames)
        if isinstance(cardinalities, str) or not isinstance(cardinalities, Sequence):
            raise TypeError(f"cardinalities must be integers in a list, got {cardinalities!r}")
        if not cardinalities or not all(
            1 <= check_count("a cardinality", size, least=0) <= num_frames for size in cardinalities
        ):
            raise ValueError(
                f"cardinalities must be between 1 and num_frames = {num_frames}, got {tuple(cardinalities)}"
            )
        self.num_frames = num_frames
        self.register_buffer("position", 0.1 * sinusoids(num_frames, dim), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.tuples = nn.ModuleList(FrameTuples(dim, num_frames, cardinality, width) for cardinality in cardinalities)

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        if support.dim() == query.dim():
            support = support.unsqueeze(-3)
        frames, leading = (self.num_frames, self.position.shape[1]), query.shape[:-3]
        shaped = query.dim() >= 3 and support.dim() == query.dim() + 1
        if not shaped or (query.shape[-2:], support.shape[-2:], support.shape[:-4]) != (frames, frames, leading):
            raise ValueError(
                f"frames must be (..., Q, {frames[0]}, {frames[1]}) for the queries and (..., N, K, {frames[0]}, "
                f"{frames[1]}), K left out where shots are merged, got {tuple(query.shape)} and {tuple(support.shape)}"
            )
        with torch.autocast(query.device.type, enabled=False):
            query, support = (self.dropout(side.to(self.position.dtype) + self.position) for side in (query, support))
            distances = [
                prototype_distances(*tuples(query), *(of_shots.flatten(-3, -2) for of_shots in tuples(support)))
                for tuples in self.tuples
            ]
            return torch.stack(distances).mean(0)


class FrameTuples(nn.Module):
    """Keys and values of the P ordered tuples of so many frames: (..., T, D) -> two of (..., P, width)."""

    members: Tensor

    def __init__(self, dim: int, num_frames: int, cardinality: int, width: int) -> None:
        super().__init__()
        self.key = nn.Linear(cardinality * dim, width)
        self.value = nn.Linear(cardinality * dim, width, bias=False)
        self.norm = nn.LayerNorm(width)
        members = torch.tensor(list(combinations(range(num_frames), cardinality)))
        self.register_buffer("members", members.T.contiguous(), persistent=False)  # (cardinality, P)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(self._mapped(frames, self.key)), self._mapped(frames, self.value)

    def _mapped(self, frames: Tensor, layer: nn.Linear) -> Tensor:
        """The layer's output for the tuples: each frame is multiplied once for each place, not once for each tuple."""
        places = zip(layer.weight.chunk(len(self.members), dim=1), self.members, strict=True)
        parts = [F.linear(frames, weight).index_select(-2, member) for weight, member in places]
        total = parts[0] if layer.bias is None else parts[0] + layer.bias
        for part in parts[1:]:
            total = total + part
        return total


def prototype_distances(query_key: Tensor, query_value: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Mean squared distance of a query's values to what its keys attend to among a class's M tuples.

    Args:
        query_key: (..., Q, P, W).
        query_value: (..., Q, P, W).
        key: (..., N, M, W).
        value: (..., N, M, W).

    Returns:
        (..., Q, N). The square is multiplied out, so that no prototype (Q * N * P * W numbers) is ever stored; rounding
        may leave a distance of zero slightly negative.
    """
    sizes = key.shape[-3:-1]
    queries, keys, values = query_key.flatten(-3, -2), key.flatten(-3, -2), value.flatten(-3, -2)
    attention = (keys @ queries.mT).unflatten(-2, sizes).mul(key.shape[-1] ** -0.5).softmax(-2)  # (..., N, M, Q * P)
    products = (values @ query_value.flatten(-3, -2).mT).unflatten(-2, sizes)
    prototypes = (attention * (value @ value.mT @ attention - 2 * products)).sum(-2)  # |p|^2 - 2 p u, (..., N, Q * P)
    squares = prototypes.unflatten(-1, query_key.shape[-3:-1]) + query_value.square().sum(-1).unsqueeze(-3)
    return squares.mean(-1).mT


def sinusoids(num_frames: int, dim: int) -> Tensor:
    """(T, D) sines (even channels) and cosines (odd) of the frame's number, of wavelengths from 2 pi to 20000 pi."""
    channels = torch.arange(dim)
    angles = torch.arange(num_frames)[:, None] * 10_000.0 ** (-(channels - channels % 2) / dim)
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos())
