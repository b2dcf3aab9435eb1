"""A tiny CLIP of SigLIP's kind learns motions of the built-in data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import nn

from m2clip.data.built_in.motion import BASE_CLASSES, draw_clip
from m2clip.methods import create_model
from m2clip.towers.tokenizers import byte_pairs

SIZE, WIDTH, T = 48, 64, 8
MOTIONS = ("moving left", "moving right", "growing", "spinning clockwise")
CLASSES = [next(found for found in BASE_CLASSES if found.motion == motion) for motion in MOTIONS]


def videos(split: str, clips: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of each class, (N, T, 3, SIZE, SIZE), and their labels."""
    drawn = [draw_clip(of_class, split, number, 0) for of_class in CLASSES for number in range(clips)]
    frames = [torch.from_numpy(clip[np.linspace(0, len(clip) - 1, T).astype(int)]) for clip in drawn]
    pixels = torch.cat(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    sized = F.interpolate(pixels, SIZE, mode="bilinear").unflatten(0, (-1, T))
    return sized, torch.arange(len(CLASSES)).repeat_interleave(clips)


def tiny_siglip() -> Any:
    """No class token, attention pooling, a text tower that reads its last padding, and a logit bias."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": SIZE, "patch_size": 8, "embed_dim": WIDTH, "depth": 3, "num_heads": 4, "num_classes": 0}
    text = {"context_length": 20, "vocab_size": 49408, "width": WIDTH, "heads": 4, "layers": 2}
    text |= {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    torch.manual_seed(0)
    vision = {"image_size": SIZE, "patch_size": 8, "width": WIDTH, "layers": 1, "head_width": 16}
    clip = open_clip.CustomTextCLIP(WIDTH, vision, text, init_logit_bias=-5)
    clip.visual = open_clip.timm_model.TimmModel("test_vit", WIDTH, SIZE, pool="token", proj="linear")
    clip.visual.trunk = VisionTransformer(**sizes, class_token=False, global_pool="map")
    clip.visual.head = nn.Sequential()
    with torch.no_grad():
        for parameter in clip.visual.parameters():
            if parameter.dim() > 1:  # so that frames are told apart without any training
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    clip.m2clip_tokenizer = byte_pairs(clip)
    return clip.eval()


def test_its_loss_falls_and_it_tells_motions_apart() -> None:
    (clips, labels), (unseen, expected) = videos("train", 24), videos("val", 12)
    clip = tiny_siglip()
    torch.manual_seed(0)
    model = create_model(
        "m2clip",
        clip,
        [of_class.name for of_class in CLASSES],
        T,
        width=32,
        text_width=16,
        heads=("contrastive", "cmc"),
        contrastive="sigmoid",
    )
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(80):
        batch = torch.randperm(len(labels), generator=generator)[:16]
        loss = model.train().loss(clips[batch], labels[batch], generator).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        accuracy = (model.eval()(unseen).similarity.argmax(1) == expected).float().mean()
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    # By chance a quarter of 48 videos is right, with a deviation of one sixteenth.
    assert accuracy > 0.25 + 3 / 16
