"""Small vision transformers of other libraries, with random weights: 2 blocks, pictures of 32x32, patches of 8x8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

SIZE, PATCH, DIM, FRAMES = 32, 8, 32, 3


class Family(NamedTuple):
    library: str
    prefix: int  # tokens in front of the patches
    build: Callable[[], nn.Module]
    grid: tuple[int, int] = (4, 4)

    def model(self) -> nn.Module:
        pytest.importorskip(self.library)
        torch.manual_seed(0)
        model = self.build().eval()
        with torch.no_grad():  # some begin with zeros, which would hide what comes before them
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        return model

    def pictures(self, clips: int = 2) -> Tensor:
        size = (self.grid[0] * PATCH, self.grid[1] * PATCH)
        return torch.randn(clips * FRAMES, 3, *size, generator=torch.Generator().manual_seed(1))


def timm_vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": DIM, "depth": 2, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**sizes, **options})


def timm_eva(**options: Any) -> nn.Module:
    from timm.models.eva import Eva

    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": DIM, "depth": 2, "num_heads": 2, "num_classes": 0}
    return Eva(**sizes, **options)


def timm_beit() -> nn.Module:
    from timm.models.beit import Beit

    return Beit(img_size=SIZE, patch_size=PATCH, embed_dim=DIM, depth=2, num_heads=2, use_rel_pos_bias=True)


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(SIZE, PATCH, num_layers=2, num_heads=2, hidden_dim=DIM, mlp_dim=2 * DIM, num_classes=5)


def of_transformers(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        if not hasattr(transformers, name):
            pytest.skip(f"this transformers has no {name}")
        sizes = {"hidden_size": DIM, "intermediate_size": 2 * DIM, "num_hidden_layers": 2, "num_attention_heads": 2}
        made = getattr(transformers, config)(image_size=SIZE, patch_size=PATCH, **sizes, **options)
        return getattr(transformers, name)(made)

    return build


def hugging(name: str, prefix: int, config: str | None = None, **options: Any) -> Family:
    return Family("transformers", prefix, of_transformers(name, config or name.replace("Model", "Config"), **options))


FAMILIES = {
    "timm ViT": Family("timm", 1, timm_vit),
    "timm ViT, registers": Family("timm", 5, lambda: timm_vit(reg_tokens=4, global_pool="avg")),
    "timm ViT, patches alone": Family("timm", 0, lambda: timm_vit(class_token=False, global_pool="avg")),
    "timm ViT, 32x48": Family("timm", 1, lambda: timm_vit(img_size=(32, 48)), (4, 6)),
    "timm EVA, registers": Family("timm", 5, lambda: timm_eva(num_reg_tokens=4, use_rot_pos_emb=True)),
    "timm BEiT": Family("timm", 1, timm_beit),
    "torchvision": Family("torchvision", 1, torchvision_vit),
    "ViT": hugging("ViTModel", 1),
    "ViT, classes": hugging("ViTForImageClassification", 1, "ViTConfig", num_labels=5),
    "DeiT": hugging("DeiTModel", 2),
    "CLIP": hugging("CLIPVisionModel", 1),
    "CLIP, projection": hugging("CLIPVisionModelWithProjection", 1, "CLIPVisionConfig", projection_dim=16),
    "MetaCLIP 2": hugging("MetaClip2VisionModel", 1),
    "SigLIP": hugging("SiglipVisionModel", 0),
    "DINOv2": hugging("Dinov2Model", 1),
    "DINOv2, registers": hugging("Dinov2WithRegistersModel", 5, num_register_tokens=4),
    "DINOv3": hugging("DINOv3ViTModel", 5, num_register_tokens=4),
}


def features(output: Any) -> Tensor:
    """What a model says of each frame, whatever it packs it in."""
    if isinstance(output, Tensor):
        return output
    names = ("logits", "image_embeds", "pooler_output")
    return next(getattr(output, name) for name in names if getattr(output, name, None) is not None)
