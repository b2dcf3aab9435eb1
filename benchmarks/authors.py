"""The authors' formulation of M2-CLIP, preset "official", as the baseline of correctness and speed.

Parameter names are those of the authors' checkpoints. Tokens travel as (L, B*T, D), the convolutions work on permuted
copies, the frame difference is taken on full-width tokens, and every step runs all prompts at 77 tokens through the
whole text tower.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OffsetAdapter(nn.Module):
    """TD: projected difference of neighbouring frames, 3x3 convolution, up-projection; patch tokens only."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, width)
        self.conv = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1), groups=width)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        length, batch, dim = x.shape
        clips, patches = batch // frames, length - 1
        side = int(patches**0.5)
        tokens = x[1:].view(patches, clips, frames, dim).permute(1, 2, 0, 3)  # clips, frames, patches, dim
        previous = tokens[:, [0, *range(frames - 1)]]
        hidden = self.fc1(tokens - previous)
        grid = hidden.view(clips, frames, side, side, -1).permute(0, 4, 1, 2, 3).contiguous()
        hidden = self.conv(grid).permute(0, 2, 3, 4, 1).contiguous().view(clips, frames, patches, -1)
        out = self.fc2(hidden).permute(2, 0, 1, 3).reshape(patches, batch, dim)
        return torch.cat([torch.zeros_like(x[:1]), out])


class TEDAdapter(nn.Module):
    """TE on every token, TD beside it, residual. Shape (L, B*T, D)."""

    def __init__(self, dim: int, width: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.fc1 = nn.Linear(dim, width)
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.fc2 = nn.Linear(width, dim)
        self.offset_adapter = OffsetAdapter(dim, width)

    def forward(self, x: Tensor) -> Tensor:
        length, batch, dim = x.shape
        clips = batch // self.frames
        hidden = self.fc1(x).view(length * clips, self.frames, -1).transpose(1, 2).contiguous()
        hidden = self.conv(hidden).transpose(1, 2).contiguous().view(length, batch, -1)
        return x + self.fc2(hidden) + self.offset_adapter(x, self.frames)


class FrameAdapter(nn.Module):
    """The output temporal adapter on (B, T, D_vl)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = dim // 2
        self.fc1 = nn.Linear(dim, width)
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.conv(self.fc1(x).transpose(1, 2)).transpose(1, 2))


class TextAdapter(nn.Module):
    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.textad_fc1 = nn.Linear(dim, width)
        self.textad_fc2 = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.textad_fc2(F.gelu(self.textad_fc1(x)))


class Block(nn.Module):
    """A CLIP block with the authors' places for adapters."""

    def __init__(self, frozen: nn.Module, pre_mlp: nn.Module | None, pre_attn: nn.Module | None = None) -> None:
        super().__init__()
        self.frozen = [frozen]  # in a list: not a sub-module, so that state dicts hold trained tensors only
        self.adapter_pre_attn, self.adapter_pre_mlp = pre_attn, pre_mlp

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        block = self.frozen[0]
        if self.adapter_pre_attn is not None:
            x = self.adapter_pre_attn(x)
        query = block.ln_1(x)
        source = query if context is None else block.ln_1(context)
        swap: Callable[[Tensor], Tensor] = lambda t: t.transpose(0, 1)  # noqa: E731
        attended = block.attn(swap(query), swap(source), swap(source), need_weights=False, attn_mask=mask)[0]
        x = x + swap(attended)
        if self.adapter_pre_mlp is not None:
            x = self.adapter_pre_mlp(x)
        return x + block.mlp(block.ln_2(x))


class AuthorsM2CLIP(nn.Module):
    """The whole model; load it with :func:`m2clip.checkpoints.convert.to_authors_state`.

    Args:
        clip: open_clip CLIP. frames: T. num_classes: C. words: vocabulary size. width, text_width: bottlenecks.
        everywhere: 24x384, adapters before attention and FFN of all layers of both towers, in place of 12x384.
    """

    def __init__(
        self,
        clip: nn.Module,
        frames: int,
        num_classes: int,
        words: int,
        width: int = 384,
        text_width: int = 384,
        everywhere: bool = False,
    ) -> None:
        super().__init__()
        self.clip = [clip]
        self.frames = frames
        vision, text = clip.visual.transformer.resblocks, clip.transformer.resblocks
        dim, joint, text_dim = clip.visual.conv1.out_channels, clip.visual.proj.shape[1], clip.ln_final.weight.shape[0]
        self.visual = nn.Module()
        self.visual.transformer = nn.Module()
        self.visual.transformer.resblocks = nn.ModuleList(
            Block(b, TEDAdapter(dim, width, frames), TEDAdapter(dim, width, frames) if everywhere else None)
            for b in vision
        )
        self.visual.t_adapter = FrameAdapter(joint)
        self.visual.adapter_fc = nn.Linear(dim, num_classes)
        self.transformer = nn.Module()
        layers = []
        for i, block in enumerate([*text, text[-1]]):  # the last one is the masked-word layer
            adapted = everywhere or i >= len(text) - 1
            before_mlp = TextAdapter(text_dim, text_width) if adapted else None
            layers.append(Block(block, before_mlp, TextAdapter(text_dim, text_width) if everywhere else None))
        self.transformer.resblocks = nn.ModuleList(layers)
        self.mlm_adapter = nn.Module()
        self.mlm_adapter.transform = nn.Module()
        self.mlm_adapter.transform.dense = nn.Linear(text_dim, text_dim)
        self.mlm_adapter.transform.LayerNorm = nn.LayerNorm(text_dim, eps=1e-12)
        self.mlm_adapter.decoder = nn.Linear(text_dim, words, bias=False)
        self.mlm_adapter.bias = nn.Parameter(torch.zeros(words))

    def encode_video(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens (B, T, D) and frame features (B, T, D_vl) of (B, T, 3, H, W)."""
        visual = self.clip[0].visual
        clips = video.shape[0]
        x = visual.conv1(video.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
        x = visual.ln_pre(x).permute(1, 0, 2)
        for block in self.visual.transformer.resblocks:
            x = block(x)
        tokens = x[0].view(clips, self.frames, -1)
        return tokens, self.visual.t_adapter(visual.ln_post(tokens) @ visual.proj)

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states (77, N, D_l) and features (N, D_vl) of token ids (N, 77)."""
        clip = self.clip[0]
        x = (clip.token_embedding(tokens) + clip.positional_embedding).permute(1, 0, 2)
        for block in self.transformer.resblocks[:-1]:
            x = block(x, mask=clip.attn_mask)
        ends = clip.ln_final(x).permute(1, 0, 2)[torch.arange(len(tokens)), tokens.argmax(dim=-1)]
        return x, ends @ clip.text_projection

    def losses(
        self,
        video: Tensor,
        labels: Tensor,
        class_tokens: Tensor,
        label_tokens: Tensor,
        masked_tokens: Tensor,
        words: Tensor,
        logit_scale: float,
    ) -> dict[str, Tensor]:
        """The four heads' losses; token ids are (C, 77) of all classes, (B, 77) of the labels, plain and masked.

        words: (B, 77) target word at masked positions, -100 elsewhere.
        """
        tokens, frames = self.encode_video(video)
        v = F.normalize(frames.mean(dim=1), dim=-1)
        w_label = F.normalize(self.encode_text(label_tokens)[1], dim=-1)
        w_class = F.normalize(self.encode_text(class_tokens)[1], dim=-1)
        target = F.softmax(10.0 * (labels[:, None] == labels[None]).to(v.dtype), dim=1)
        logits = logit_scale * v @ w_label.T
        kl = [F.kl_div(F.log_softmax(part, dim=1), target, reduction="batchmean") for part in (logits, logits.T)]
        clip = self.clip[0]
        hidden, _ = self.encode_text(masked_tokens)
        hidden = self.transformer.resblocks[-1](hidden, context=frames.permute(1, 0, 2))
        hidden = clip.ln_final(hidden).permute(1, 0, 2)
        head = self.mlm_adapter
        hidden = head.transform.LayerNorm(F.gelu(head.transform.dense(hidden)))
        word_logits = head.decoder(hidden) + head.bias
        scores = self.visual.adapter_fc(clip.visual.ln_post(tokens.mean(dim=1)))
        return {
            "contrastive": (kl[0] + kl[1]) / 2,
            "cmc": F.cross_entropy(100.0 * v @ w_class.T, labels),
            "cmlm": F.cross_entropy(word_logits.flatten(0, 1), words.flatten(), ignore_index=-100),
            "vc": F.cross_entropy(scores, labels),
        }


def total_loss(parts: dict[str, Tensor]) -> Tensor:
    """The authors' weighting of the four losses."""
    return (parts["contrastive"] + parts["cmc"]) / 2 + parts["vc"] + parts["cmlm"] / 10
