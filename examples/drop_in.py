"""Adapters in other libraries' image towers: ViTs of timm, torchvision and transformers see motion, in one line each.

    python examples/drop_in.py

The towers have random weights here, so that nothing is downloaded; `timm.create_model(..., pretrained=True)` and
`Dinov2WithRegistersModel.from_pretrained(...)` go through the same function. Frames travel as pictures, (B*T, 3, H, W)
with the T frames of a clip adjacent, or as clips (B, T, 3, H, W). A new adapter is the identity: until it is trained
the tower computes what it did before.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import m2clip
from m2clip import drop_in


def timm_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=64, patch_size=16, embed_dim=96, depth=2, num_heads=3, num_classes=0)


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 16, num_layers=2, num_heads=3, hidden_dim=96, mlp_dim=384, num_classes=96)


def dinov2_with_registers() -> nn.Module:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=96, num_hidden_layers=2, num_attention_heads=3, image_size=64, patch_size=16
    )
    return Dinov2WithRegistersModel(config)


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "timm": timm_vit,
    "torchvision": torchvision_vit,
    "transformers": dinov2_with_registers,
}


def main() -> None:
    torch.manual_seed(0)
    video = torch.randn(2, 8, 3, 64, 64)
    for library, build in TOWERS.items():
        try:
            tower = build()
        except ImportError as error:
            print(f"{library}: left out, {error}")
            continue
        tower = m2clip.adapt(tower, num_frames=8, width=32)
        output = tower(video)
        features = output if isinstance(output, Tensor) else output.pooler_output
        trained = drop_in.trained_parameters(tower)
        count, total = (sum(p.numel() for p in group) for group in (trained.values(), tower.parameters()))
        print(f"{library}: features {tuple(features.shape)}; trained: {count} of {total} parameters, all in adapters:")
        print("\n".join(f"  {name} {tuple(p.shape)}" for name, p in trained.items() if "0.adapter." in name))
        print("  ... and the same names in the other block")


if __name__ == "__main__":
    main()
