"""Small CLIPs of open_clip's own architecture with random weights, for tests."""

from __future__ import annotations

import open_clip
import torch

NAMES = ["juggling balls", "surfing water", "playing the flute", "tying a bow tie", "petting animal (not cat)"]


def small_clip(quick_gelu: bool = True, joint: int = 32, seed: int = 0) -> open_clip.CLIP:
    """Three vision and three text layers of width 32, images of 32x32 in 2x2 patches, real tokenizer."""
    torch.manual_seed(seed)
    clip = open_clip.CLIP(
        joint,
        {"image_size": 32, "patch_size": 16, "width": 32, "layers": 3, "head_width": 16},
        {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
        quick_gelu=quick_gelu,
    )
    return clip.eval()


def random_video(clips: int = 2, frames: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randn(clips, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def randomise(model: torch.nn.Module, std: float = 0.2) -> None:
    """Move every trained parameter, biases included, away from its start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
