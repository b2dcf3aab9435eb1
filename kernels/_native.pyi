"""The compiled extension, see csrc/cpu/module.cpp. Tensors are addresses of contiguous memory, which nobody checks.

Sizes that no kernel can have are a ValueError.
"""

from typing import TypeAlias

_Address: TypeAlias = int  # 0 for what is left out

compiler: str
flags: str

class MixerShape:
    def __init__(
        self,
        clips: int,
        frames: int,
        tokens: int,
        height: int,
        width: int,
        channels: int,
        h_columns: int,
        class_token: bool,
        temporal: bool,
        difference: bool,
        shared: bool,
        /,
    ) -> None: ...

class MixerParameters:
    def __init__(
        self,
        temporal_weight: _Address,
        temporal_bias: _Address,
        difference_weight: _Address,
        difference_bias: _Address,
        down_bias: _Address,
        /,
    ) -> None: ...

class MixerGradients:
    def __init__(
        self,
        temporal_weight: _Address,
        temporal_bias: _Address,
        temporal_down_bias: _Address,
        difference_weight: _Address,
        difference_bias: _Address,
        difference_down_bias: _Address,
        /,
    ) -> None: ...

def mixer_forward(
    dtype: str, shape: MixerShape, parameters: MixerParameters, h: _Address, u: _Address, threads: int, /
) -> None: ...
def mixer_backward(
    dtype: str,
    shape: MixerShape,
    parameters: MixerParameters,
    h: _Address,
    du: _Address,
    dh: _Address,
    gradients: MixerGradients,
    threads: int,
    /,
) -> None: ...
def add_bias(
    dtype: str,
    x: _Address,
    class_bias: _Address,
    patch_bias: _Address,
    out: _Address,
    frames: int,
    tokens: int,
    class_token: bool,
    columns: int,
    threads: int,
    /,
) -> None: ...
def copy_and_sum(
    dtype: str,
    x: _Address,
    out: _Address,
    class_sums: _Address,
    patch_sums: _Address,
    frames: int,
    tokens: int,
    class_token: bool,
    columns: int,
    threads: int,
    /,
) -> None: ...
def activation_forward(
    dtype: str, name: str, h: _Address, g: _Address, rows: int, columns: int, threads: int, /
) -> None: ...
def activation_backward(
    dtype: str,
    name: str,
    h: _Address,
    dg: _Address,
    g: _Address,
    dh: _Address,
    sums: _Address,
    rows: int,
    columns: int,
    threads: int,
    /,
) -> None: ...

class FrameConvShape:
    def __init__(
        self, clips: int, frames: int, positions: int, lead: int, joint: bool, channels: int, columns: int, /
    ) -> None: ...

def frame_conv(
    dtype: str,
    shape: FrameConvShape,
    h: _Address,
    base: _Address,
    taps: _Address,
    bias: _Address,
    lead_bias: _Address,
    lead_tap: float,
    out: _Address,
    threads: int,
    /,
) -> None: ...
def frame_conv_backward(
    dtype: str,
    shape: FrameConvShape,
    h: _Address,
    dy: _Address,
    taps: _Address,
    lead_tap: float,
    dh: _Address,
    sums: _Address,
    threads: int,
    /,
) -> None: ...

class CosineProblem:
    def __init__(
        self,
        rows: int,
        columns: int,
        dots: _Address,
        row_inverse: _Address,
        column_inverse: _Address,
        scale: _Address,
        /,
    ) -> None: ...

class CosineGradients:
    def __init__(self, slopes: _Address, row_pull: _Address, column_pull: _Address, scale: _Address, /) -> None: ...

def inverse_lengths(x: _Address, rows: int, size: int, stride: int, out: _Address, threads: int, /) -> None: ...
def cross_entropy_forward(
    problem: CosineProblem, targets: _Address, loss: _Address, row_softmax: _Address, threads: int, /
) -> None: ...
def cross_entropy_backward(
    problem: CosineProblem,
    targets: _Address,
    row_softmax: _Address,
    loss_gradient: _Address,
    out: CosineGradients,
    threads: int,
    /,
) -> None: ...
def soft_target_forward(
    problem: CosineProblem,
    labels: _Address,
    target_scale: float,
    loss: _Address,
    row_softmax: _Address,
    column_softmax: _Address,
    threads: int,
    /,
) -> None: ...
def soft_target_backward(
    problem: CosineProblem,
    labels: _Address,
    target_scale: float,
    row_softmax: _Address,
    column_softmax: _Address,
    loss_gradient: _Address,
    out: CosineGradients,
    threads: int,
    /,
) -> None: ...
def softmax_minus_target(logits: _Address, rows: int, columns: int, targets: _Address, threads: int, /) -> float: ...
def use_openmp_of(library: str, /) -> bool: ...
def instruction_set() -> str: ...
def select_instruction_set(name: str, /) -> bool: ...
