"""TED-Adapters in other libraries' image towers: a timm ViT and Hugging Face's CLIPVisionModel see motion.

    python examples/drop_in.py

The towers have random weights here, so that nothing is downloaded; `timm.create_model(..., pretrained=True)` and
`CLIPVisionModel.from_pretrained(...)` go through the same functions. Frames travel as images, (B*T, 3, H, W) with the T
frames of a clip adjacent. A new adapter is the identity: until it is trained the tower computes what it did before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from m2clip import TEDAdapter


class AdaptedBlock(nn.Module):
    """A transformer block that gets its tokens through an adapter, which mixes the frames of a clip."""

    def __init__(self, block: nn.Module, adapter: TEDAdapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.block = block

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.block(self.adapter(tokens), *args, **kwargs)


def adapt_timm(tower: nn.Module, num_frames: int, width: int = 384) -> nn.Module:
    """Freeze a timm VisionTransformer and put an adapter before each of its blocks.

    Args:
        tower: with a class token or without, and no register tokens.
        num_frames: T, frames per clip.
        width: bottleneck width R.
    """
    tower.requires_grad_(False)
    grid, class_token = tower.patch_embed.grid_size, tower.num_prefix_tokens == 1
    for place, block in enumerate(tower.blocks):
        adapter = TEDAdapter(tower.embed_dim, width, num_frames, grid=grid, class_token=class_token)
        tower.blocks[place] = AdaptedBlock(block, adapter)
    return tower


def adapt_clip(tower: nn.Module, num_frames: int, width: int = 384) -> nn.Module:
    """Freeze a transformers.CLIPVisionModel and put an adapter before each of its layers.

    Args:
        tower: any vision model of transformers built on CLIPEncoder.
        num_frames: T, frames per clip.
        width: bottleneck width R.
    """
    from transformers.models.clip.modeling_clip import CLIPEncoder

    tower.requires_grad_(False)
    encoder = next(module for module in tower.modules() if isinstance(module, CLIPEncoder))
    for place, layer in enumerate(encoder.layers):
        encoder.layers[place] = AdaptedBlock(layer, TEDAdapter(layer.embed_dim, width, num_frames))
    return tower


def trained_parameters(tower: nn.Module) -> dict[str, nn.Parameter]:
    """What an optimiser should get: the parameters that are not frozen."""
    return {name: parameter for name, parameter in tower.named_parameters() if parameter.requires_grad}


def random_timm() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=64, patch_size=16, embed_dim=96, depth=2, num_heads=3, num_classes=0)


def random_clip() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=16
    )
    return CLIPVisionModel(config)


def main() -> None:
    torch.manual_seed(0)
    clips, num_frames = 2, 8
    images = torch.randn(clips * num_frames, 3, 64, 64)
    for title, build, adapt in (("timm", random_timm, adapt_timm), ("transformers", random_clip, adapt_clip)):
        try:
            tower = build()
        except ImportError as error:
            print(f"{title}: left out, {error}")
            continue
        output = adapt(tower, num_frames, width=32)(images)
        features = output if isinstance(output, Tensor) else output.pooler_output
        trained = trained_parameters(tower)
        count, total = (sum(p.numel() for p in group) for group in (trained.values(), tower.parameters()))
        print(f"{title}: features {tuple(features.shape)}; trained: {count} of {total} parameters, all in adapters:")
        print("\n".join(f"  {name} {tuple(p.shape)}" for name, p in trained.items() if ".0.adapter." in name))
        print("  ... and the same names in every other block")


if __name__ == "__main__":
    main()
