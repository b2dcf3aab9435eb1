"""The compiled CPU kernels refuse sizes that no tensor has before they touch any memory: every address here is 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from m2clip.kernels.native import extension as native

pytestmark = pytest.mark.skipif(native.extension is None, reason=f"no compiled extension: {native.MISSING}")

MIXER = {"clips": 2, "frames": 3, "tokens": 17, "height": 4, "width": 4, "channels": 8, "h_columns": 16}


def mixer(temporal: bool = True, difference: bool = True, **changed: int) -> Any:
    return native.extension.MixerShape(*{**MIXER, **changed}.values(), True, temporal, difference, False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clips": -1}, "clips must be at least 0, got -1"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"channels": -8}, "channels must be at least 1, got -8"),
        ({"height": -4, "width": -4}, "grid height must be at least 1, got -4"),
        ({"width": 0, "tokens": 1}, "grid width must be at least 1, got 0"),
        ({"height": 2**31, "width": 2**33}, "grid height must be at most 2147483647, got 2147483648"),
        ({"tokens": 16}, "a grid of 4x4 and a class token are not 16 tokens"),
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"h_columns": 15}, "columns of h must be at least 16, got 15"),
        ({"temporal": False, "difference": False}, "branches must be at least 1, got 0"),
    ],
)
def test_a_mixer_of_no_size(changed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^mixer: {message}$"):
        mixer(**changed)


def test_class_tokens_alone_have_a_grid_of_nothing() -> None:
    mixer(difference=False, tokens=1, height=0, width=0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, 2, 3, 0, False, 4, 8), "clips must be at least 0, got -1"),
        ((1, 0, 3, 0, False, 4, 8), "frames must be at least 1, got 0"),
        ((1, 2, -3, 0, False, 4, 8), "positions must be at least 0, got -3"),
        ((1, 2, 3, -1, True, 4, 8), "tokens without a time must be at least 0, got -1"),
        ((1, 2, 3, 0, False, 0, 8), "channels must be at least 1, got 0"),
        ((1, 2, 3, 0, False, 4, 3), "columns must be at least 4, got 3"),
        ((1, 2, 3, 0, False, 4, 9), "9 columns are no multiple of 4 channels"),
    ],
)
def test_a_convolution_over_frames_of_no_size(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^frame_conv: {message}$"):
        native.extension.FrameConvShape(*sizes)


def _cosines(rows: int, columns: int) -> Any:
    return native.extension.CosineProblem(rows, columns, 0, 0, 0, 0)


CALLS: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: native.extension.add_bias("float32", 0, 0, 0, 0, -1, 5, True, 8, 1),
        "add_bias: frames must be at least 0, got -1",
    ),
    (
        lambda: native.extension.add_bias("float32", 0, 0, 0, 0, 2, 0, True, 8, 1),
        "add_bias: tokens must be at least 1, got 0",
    ),
    (
        lambda: native.extension.copy_and_sum("float32", 0, 0, 0, 0, 2, 5, True, 0, 1),
        "copy_and_sum: columns must be at least 1, got 0",
    ),
    (
        lambda: native.extension.activation_forward("float32", "gelu", 0, 0, -3, 8, 1),
        "activation: rows must be at least 0, got -3",
    ),
    (
        lambda: native.extension.activation_backward("float32", "gelu", 0, 0, 0, 0, 0, 3, -8, 1),
        "activation: columns must be at least 1, got -8",
    ),
    (
        lambda: native.extension.inverse_lengths(0, -2, 8, 8, 0, 1),
        "inverse_lengths: rows must be at least 0, got -2",
    ),
    (
        lambda: native.extension.softmax_minus_target(0, 2, 0, 0, 1),
        "softmax_minus_target: columns must be at least 1, got 0",
    ),
    (lambda: _cosines(2, -1), "cosine logits: columns must be at least 0, got -1"),
    (
        lambda: native.extension.soft_target_forward(_cosines(2, 3), 0, 10.0, 0, 0, 0, 1),
        "soft targets: 2 rows and 3 columns are not the same samples",
    ),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message for _, message in CALLS])
def test_passes_over_rows_of_no_size(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        call()
