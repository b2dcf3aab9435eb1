"""The activations between two projections, and their slopes; ops.bottleneck.ACTIVATIONS defines them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def value_and_slope(b_h, KIND: tl.constexpr):
    """act(h) and act'(h) of fp32 values; what is not used of the two is not computed."""
    if KIND == "gelu":
        b_share = 0.5 + 0.5 * tl.erf(b_h * 0.7071067811865476)  # of a normal distribution below h
        b_slope = b_share + b_h * 0.3989422804014327 * tl.exp(-0.5 * b_h * b_h)
        b_value = b_h * b_share
    elif KIND == "quick_gelu":
        b_gate = tl.sigmoid(1.702 * b_h)
        b_slope = b_gate + 1.702 * b_h * b_gate * (1 - b_gate)
        b_value = b_h * b_gate
    elif KIND == "relu":
        b_slope = tl.where(b_h <= 0, 0.0, 1.0)
        b_value = tl.where(b_h <= 0, 0.0, b_h)  # keeps what is not a number
    else:
        tl.static_assert(KIND == "none")
        b_slope = tl.full(b_h.shape, 1.0, tl.float32)
        b_value = b_h
    return b_value, b_slope
