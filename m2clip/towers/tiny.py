"""The bundled tiny CLIP: it knows the built-in data set's shapes, for demonstrations and tests without a download.

The weight file stores float16 and only those rows of the token embedding that captions and class names of the built-in
data set use (`token_rows`: their ids, `token_values`: the rows). All other tokens get rows of fixed random numbers, so
that other class names are told apart too, though nothing is known about them.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from m2clip.towers.pictures import set_pictures
from m2clip.towers.sources import open_vision

if TYPE_CHECKING:
    import open_clip

TINY_CONFIG: dict = {
    "embed_dim": 64,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 48, "patch_size": 8, "width": 64, "layers": 3, "head_width": 16, "mlp_ratio": 4.0},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
TINY_WEIGHTS = Path(__file__).parent.parent / "assets" / "tiny_clip.safetensors"
EMBEDDING = "token_embedding.weight"


def build_tiny_clip(image_size: tuple[int, int] | None = None) -> open_clip.CLIP:
    """Build the tiny CLIP with random weights.

    Args:
        image_size: (height, width) of its images; None for those of TINY_CONFIG.

    Returns:
        An `open_clip.CLIP` of TINY_CONFIG.
    """
    import open_clip

    config = copy.deepcopy(TINY_CONFIG)
    if image_size is not None:
        config["vision_cfg"]["image_size"] = image_size
    clip = open_clip.CLIP(**config)
    set_pictures(clip, interpolation="bilinear")  # as it was trained
    return clip


def pack_state(state: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Turn a state dict into what the weight file stores.

    Args:
        state: state dict whose token embedding holds the wanted rows only, (len(rows), width).
        rows: int64 ids of these rows.

    Returns:
        Tensors by name, in float16 except for the row ids.
    """
    packed = {name: t.detach().to(torch.float16).contiguous() for name, t in state.items() if name != EMBEDDING}
    packed["token_rows"] = rows.to(torch.int32)
    packed["token_values"] = state[EMBEDDING].detach().to(torch.float16).contiguous()
    return packed


def unpack_state(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn what the weight file stores back into a full state dict.

    Args:
        packed: tensors by name, as from `pack_state`.

    Returns:
        A float32 state dict for the model of TINY_CONFIG.
    """
    state = {name: t.float() for name, t in packed.items() if name not in ("token_rows", "token_values")}
    values = packed["token_values"].float()
    size = (TINY_CONFIG["text_cfg"]["vocab_size"], values.shape[1])
    # The legacy generator's numbers are guaranteed never to change between numpy versions.
    table = torch.from_numpy(np.random.RandomState(0).standard_normal(size).astype(np.float32)) * values.std()
    table[packed["token_rows"].long()] = values
    state[EMBEDDING] = table
    return state


def tiny_clip(image_size: tuple[int, int] | None = None) -> open_clip.CLIP:
    """Load the bundled tiny CLIP.

    Args:
        image_size: (height, width) of its images, to which its position embedding is fitted; None for 48x48 pixels.

    Returns:
        An `open_clip.CLIP` in eval mode and float32, for images with CLIP's mean and deviation.
    """
    from open_clip.model import resize_pos_embed
    from safetensors.torch import load_file

    model = build_tiny_clip(image_size)
    open_vision(model)  # which refuses impossible sizes
    state = unpack_state(load_file(TINY_WEIGHTS))
    resize_pos_embed(state, model)
    model.load_state_dict(state)
    return model.eval()
