"""Where the blocks of other libraries' vision transformers are, and how the tokens of a frame lie in them.

Nothing of a library is changed or copied: what is found here are the very modules of a model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from torch import nn

from m2clip.errors import InputError
from m2clip.sizes import sides, size_text

# Vision transformers of transformers by the name of their configuration, with their prefix tokens besides registers.
_TRANSFORMERS = {
    "vit": 1,
    "deit": 2,
    "ijepa": 0,
    "clip_vision_model": 1,
    "metaclip_2_vision_model": 1,
    "siglip_vision_model": 0,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
}
_OF_A_CLIP = {"clip", "metaclip_2", "siglip", "siglip2"}
_SUPPORTED = (
    "give a VisionTransformer, Eva or Beit of timm, a VisionTransformer of torchvision, or of transformers one of the "
    f"kinds {', '.join(_TRANSFORMERS)}"
)


class Places(NamedTuple):
    """A vision transformer, as far as adapters need to know it.

    Attributes:
        blocks: its blocks, each a function of tokens (N, P + H*W, D) first of all.
        patches: what makes patch tokens of pictures (N, 3, height, width).
        width: D.
        num_prefix_tokens: P, the tokens in front of the patch tokens.
        image_size: (height, width) of the pictures.
        grid: (H, W) of the patch tokens.
    """

    blocks: Sequence[nn.Module]
    patches: nn.Module
    width: int
    num_prefix_tokens: int
    image_size: tuple[int, int]
    grid: tuple[int, int]


def find_places(model: nn.Module, image_size: tuple[int, int] | None = None) -> Places:
    """Where a vision transformer has its blocks.

    Args:
        model: of timm, torchvision or transformers.
        image_size: (height, width) of its pictures; None is what the model says.

    Raises:
        InputError: another model, or pictures of a size that it does not take.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"adapters go into a vision transformer, not into {type(model).__name__}: {_SUPPORTED}")
    for find in (_timm, _torchvision, _transformers):
        found = find(model, image_size)
        if found is not None:
            if 0 in found.grid:
                raise InputError(f"pictures of {size_text(found.image_size)} are smaller than a patch of the model")
            return found
    raise InputError(f"{type(model).__module__}.{type(model).__name__} is not supported: {_SUPPORTED}")


def _timm(model: Any, image_size: tuple[int, int] | None) -> Places | None:
    if "timm" not in sys.modules:
        return None
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, (VisionTransformer, Eva, Beit)):
        return None
    patches, own = cast(Any, model.patch_embed), model.patch_embed.img_size
    size = _size(
        image_size, own, free=getattr(model, "dynamic_img_size", False), hint="timm.create_model(img_size=...)"
    )
    grid = patches.grid_size if size == own else patches.dynamic_feat_size(size)
    return Places(
        cast(Any, model.blocks), patches, model.embed_dim, model.num_prefix_tokens, size, (int(grid[0]), int(grid[1]))
    )


def _torchvision(model: Any, image_size: tuple[int, int] | None) -> Places | None:
    if "torchvision" not in sys.modules:
        return None
    from torchvision.models import VisionTransformer

    if not isinstance(model, VisionTransformer):
        return None
    own, patch = (model.image_size, model.image_size), model.patch_size
    size = _size(image_size, own, hint="torchvision.models.vit_b_16(image_size=...), for square ones")
    blocks = cast(Any, model.encoder.layers)
    return Places(blocks, model.conv_proj, model.hidden_dim, 1, size, (size[0] // patch, size[1] // patch))


def _transformers(model: Any, image_size: tuple[int, int] | None) -> Places | None:
    library = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return None
    config, name = model.config, type(model).__name__
    if config.model_type in _OF_A_CLIP:
        raise InputError(f"{name} of transformers is a whole CLIP: use m2clip.create_model, or give its vision model")
    if config.model_type not in _TRANSFORMERS:
        raise InputError(f"{name} of transformers is not supported: {_SUPPORTED}")
    lists = (part for part in model.modules() if isinstance(part, nn.ModuleList))
    blocks: Any = next(part for part in lists if len(part) == config.num_hidden_layers)
    size, patch = _size(image_size, sides(config.image_size), free=True), sides(config.patch_size)
    prefix = _TRANSFORMERS[config.model_type] + getattr(config, "num_register_tokens", 0)
    grid = (size[0] // patch[0], size[1] // patch[1])
    return Places(blocks, model.get_input_embeddings(), config.hidden_size, prefix, size, grid)


def _size(asked: tuple[int, int] | None, own: Any, free: bool = False, hint: str = "") -> tuple[int, int]:
    """The size of the pictures, where a model takes that; free are models that take any."""
    if asked is None and own is None:
        raise InputError("the model takes pictures of any size: say which with image_size=")
    if asked is None:
        return int(own[0]), int(own[1])
    if not free and asked != tuple(own):
        raise InputError(f"the model takes pictures of {size_text(own)}, not {size_text(asked)}: build it with {hint}")
    return asked
