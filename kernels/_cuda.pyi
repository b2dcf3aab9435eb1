"""The compiled CUDA extension, see csrc/cuda/module.cpp. Tensors are addresses of contiguous memory on the current GPU,
which nobody checks; sizes that no kernel can have are a ValueError, and a launch that fails is a RuntimeError."""

from typing import TypeAlias

_Address: TypeAlias = int  # 0 for what is left out

compiler: str
flags: str
architectures: str

class MixerShape:
    def __init__(
        self,
        clips: int,
        frames: int,
        tokens: int,
        height: int,
        width: int,
        channels: int,
        class_token: bool,
        temporal: bool,
        difference: bool,
        shared: bool,
        /,
    ) -> None: ...

class MixerWeights:
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

def mixer_workspace(dtype: str, shape: MixerShape, rows: int, /) -> int: ...
def mixer_forward(
    dtype: str, shape: MixerShape, weights: MixerWeights, h: _Address, u: _Address, rows: int, stream: _Address, /
) -> None: ...
def mixer_backward(
    dtype: str,
    shape: MixerShape,
    weights: MixerWeights,
    h: _Address,
    du: _Address,
    u: _Address,
    dh: _Address,
    workspace: _Address,
    gradients: MixerGradients,
    rows: int,
    stream: _Address,
    /,
) -> None: ...
def add_residual(
    dtype: str,
    out: _Address,
    residual: _Address,
    class_bias: _Address,
    patch_bias: _Address,
    rows: int,
    columns: int,
    tokens: int,
    class_token: bool,
    stream: _Address,
    /,
) -> None: ...
def driver_version() -> int: ...

class HopperAdapterArgs:
    """Only where sm_90a is among `architectures`; csrc/cuda/hopper_adapter.h says what the fields are."""

    x: _Address
    y: _Address
    h: _Address
    u: _Address
    counters: _Address
    down_weight: _Address
    up_weight: _Address
    down_bias: _Address
    class_bias: _Address
    patch_bias: _Address
    temporal_taps: _Address
    temporal_bias: _Address
    difference_taps: _Address
    difference_bias: _Address
    difference_down_bias: _Address
    clips: int
    frames: int
    grid_height: int
    grid_width: int
    width: int
    bottleneck: int
    class_token: bool
    shared: bool
    residual: bool
    half: bool

    def __init__(self) -> None: ...

def hopper_adapter_forward(args: HopperAdapterArgs, stream: _Address, /) -> None: ...
