"""CLIP's two towers, opened: the blocks of an open_clip model with places for adapters.

The towers hold the very modules of the open_clip model they are built from, frozen; they copy no weight and edit no
foreign function. Two savings change no output: the last block computes only the tokens that are read afterwards, and
what no adapter has touched is computed without a graph, for the text side once per label set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2clip.kernels import TimeLayout, bias_gelu
from m2clip.kernels.dispatch import has_kernel

from .errors import InputError


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid(1.702 * x).mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(1.702 * x)
        return (gate + 1.702 * x * gate * (1 - gate)).mul_(gradients[0])


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), OpenAI's activation; the gate is computed again in the backward pass, not stored."""
    return _QuickGELU.apply(x)


def _open_clip_quick_gelu() -> type:
    from open_clip.transformer import QuickGELU

    return QuickGELU


def _fused_name(activation: nn.Module) -> str | None:
    """What `bias_gelu` calls an activation, None where it does not know it."""
    if isinstance(activation, _open_clip_quick_gelu()):
        return "quick_gelu"
    return "gelu" if isinstance(activation, nn.GELU) and activation.approximate == "none" else None


class Block(nn.Module):
    """A frozen pre-norm transformer block of open_clip with places for adapters.

    "pre_attn" and "pre_mlp" are before its halves. "parallel" is beside the whole block: such an adapter takes what it
    reads, the block's output to add to, and where the frames are; it says with `prenorm` whether it reads the block's
    input after the first norm.
    """

    ln_1: nn.Module
    ls_1: nn.Module
    ln_2: nn.Module
    mlp: Any  # the Sequential of c_fc, gelu and c_proj
    ls_2: nn.Module
    pre_attn: nn.Module | None
    pre_mlp: nn.Module | None
    parallel: Any  # a module, or None

    def __init__(self, block: Any, adapters: Mapping[str, nn.Module]) -> None:
        super().__init__()
        attention = getattr(block, "attn", None)
        if not isinstance(attention, nn.MultiheadAttention) or hasattr(block, "ln_attn"):
            raise InputError(
                f"transformer blocks of type {type(block).__name__} are not supported: use a CLIP ViT model"
            )
        self.ln_1, self.attn, self.ls_1 = block.ln_1, attention, block.ls_1
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2
        self.num_heads = attention.num_heads
        # The model's own activation, QuickGELU in a form that keeps one wide tensor for the backward pass, not two.
        self.activation = quick_gelu if isinstance(block.mlp.gelu, _open_clip_quick_gelu()) else block.mlp.gelu
        self.fused_activation = _fused_name(block.mlp.gelu)
        self.pre_attn, self.pre_mlp = adapters.get("pre_attn"), adapters.get("pre_mlp")
        self.parallel = adapters.get("parallel")

    def attend(self, queries: Tensor, context: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """Multi-head attention of normalised (N, Q, D) queries over normalised (N, S, D) context tokens.

        mask: (N, 1, Q, S) bool, True where a query may look; causal: queries are the context itself, seeing their past.
        """
        weight, bias, dim = self.attn.in_proj_weight, self.attn.in_proj_bias, queries.shape[-1]
        if queries is context:
            q, k, v = F.linear(queries, weight, bias).chunk(3, dim=-1)
        else:
            q = F.linear(queries, weight[:dim], bias[:dim])
            k, v = F.linear(context, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.attn.out_proj(mixed.transpose(1, 2).flatten(2))

    def beside(self, x: Tensor, normalised: Tensor, output: Tensor, time: TimeLayout | None) -> Tensor:
        """The block's output with the parallel adapter's added, which reads the block's input or that after ln_1."""
        return self.parallel(normalised if self.parallel.prenorm else x, output, time)

    def mlp_half(self, x: Tensor) -> Tensor:
        """x + MLP(LN(x))."""
        return x + self.ls_2(self.mlp.c_proj(self._expand(self.ln_2(x))))

    def _expand(self, x: Tensor) -> Tensor:
        layer, name = self.mlp.c_fc, self.fused_activation
        # A compiler fuses bias and activation by itself; without one, and without a kernel, the bias belongs into the
        # matrix product.
        if name is None or torch.compiler.is_compiling() or not has_kernel("bias_gelu", x):
            return self.activation(layer(x))
        return bias_gelu(F.linear(x, layer.weight), layer.bias, name)


class VisionTower(nn.Module):
    """A CLIP vision transformer over the frames of clips.

    Args:
        visual: the ``visual`` module of an open_clip CLIP; its weights are shared and frozen.
        adapters: per block index (0-based) the adapters by place, see :class:`Block`; those before a half take (tokens,
            num_frames).

    Raises:
        InputError: a vision model that is no plain CLIP ViT with a class token.
    """

    conv1: nn.Conv2d
    ln_pre: nn.Module
    ln_post: nn.Module
    class_embedding: nn.Parameter
    positional_embedding: nn.Parameter
    proj: nn.Parameter
    blocks: Any  # an nn.ModuleList of block_type
    block_type: type[Block] = Block  # methods whose adapters go elsewhere bring their own

    def __init__(self, visual: Any, adapters: Mapping[int, Mapping[str, nn.Module]]) -> None:
        super().__init__()
        _require_plain_vit(visual)
        self.conv1, self.ln_pre, self.ln_post = visual.conv1, visual.ln_pre, visual.ln_post
        self.class_embedding, self.positional_embedding = visual.class_embedding, visual.positional_embedding
        self.proj = visual.proj
        freeze(self)
        blocks = visual.transformer.resblocks
        for block in blocks:
            freeze(block)
        self.blocks = nn.ModuleList(self.block_type(block, adapters.get(i, {})) for i, block in enumerate(blocks))
        self.first_adapted = min((i for i, places in adapters.items() if places), default=len(blocks))
        self.image_size: tuple[int, int] = tuple(visual.image_size)
        self.grid: tuple[int, int] = tuple(visual.grid_size)
        self.width = self.conv1.out_channels
        self.adapters_enabled = True

    def forward(self, video: Tensor) -> Tensor:
        """Class tokens (B, T, D) after the last block, of a normalised video (B, T, 3, H, W)."""
        clips, frames = video.shape[:2]
        with torch.no_grad():
            x = self.embed(video.flatten(0, 1).to(self.conv1.weight.dtype))
        return self.run_blocks(x, frames)[:, 0].unflatten(0, (clips, frames))

    def run_blocks(self, x: Tensor, frames: int) -> Tensor:
        """The class token of each sequence, (S, 1, D), after the last block, of the first one's tokens (S, L, D)."""
        for i, block in enumerate(self.blocks):
            with torch.set_grad_enabled(torch.is_grad_enabled() and i >= self.first_adapted):
                x = self._block(block, x, frames, last=i == len(self.blocks) - 1)
        return x

    def embed(self, images: Tensor) -> Tensor:
        """Tokens (N, 1 + H*W, D) entering the first block, of images (N, 3, height, width)."""
        return self.ln_pre(self._tokens(images) + self.positional_embedding)

    def _tokens(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(images), 1, -1), patches], dim=1)

    def _block(self, block: Block, x: Tensor, frames: int, last: bool) -> Tensor:
        x = self._adapt(block.pre_attn, x, frames)
        queries = normalised = block.ln_1(x)
        if last:  # only the class token is read after the last block, so only it asks
            x, queries = x[:, :1], normalised[:, :1]
        mixed = x + block.ls_1(block.attend(queries, normalised))
        output = block.mlp_half(self._adapt(block.pre_mlp, mixed, frames))
        if block.parallel is None or not self.adapters_enabled:
            return output
        return block.beside(x, queries, output, self.time(frames))

    def time(self, frames: int) -> TimeLayout:
        """Where the frames of a clip are among the tokens of a block."""
        return TimeLayout(frames)

    def _adapt(self, adapter: nn.Module | None, x: Tensor, frames: int) -> Tensor:
        return adapter(x, frames) if adapter is not None and self.adapters_enabled else x

    def project(self, class_tokens: Tensor) -> Tensor:
        """Features (..., D_vl) in the joint space, of class tokens (..., D)."""
        return self.ln_post(class_tokens) @ self.proj


class TimedVisionTower(VisionTower):
    """A CLIP vision transformer that can tell the frames of a clip by a trained temporal embedding.

    Args:
        visual, adapters: see :class:`VisionTower`.
        num_frames: T of the embedding, which is added to all tokens of a frame in front of the first norm and starts at
            zero; None for none.

    Source: AIM (ICLR 2023); the place of the embedding is that of its code.
    """

    def __init__(self, visual: Any, adapters: Mapping[int, Mapping[str, nn.Module]], num_frames: int | None) -> None:
        super().__init__(visual, adapters)
        self.temporal_embedding: nn.Parameter | None = None
        if num_frames is not None:
            self.temporal_embedding = nn.Parameter(torch.zeros(1, num_frames, self.width))
            self.first_adapted = 0

    def forward(self, video: Tensor) -> Tensor:
        return self.run_blocks(self.embed_clips(video), video.shape[1])[:, 0].unflatten(0, video.shape[:2])

    def embed_clips(self, video: Tensor) -> Tensor:
        """Tokens (B*T, 1 + H*W, D) entering the first block, of clips (B, T, 3, height, width)."""
        images = video.flatten(0, 1).to(self.conv1.weight.dtype)
        if self.temporal_embedding is None or not self.adapters_enabled:
            with torch.no_grad():
                return self.embed(images)
        tokens = self._tokens(images)
        # Place and time are added to each other first: one pass over the tokens, as without time.
        place_and_time = (self.positional_embedding + self.temporal_embedding[0, :, None]).to(tokens.dtype)
        return self.ln_pre((tokens.unflatten(0, video.shape[:2]) + place_and_time).flatten(0, 1))


class TextTower(nn.Module):
    """CLIP's text transformer, reading hidden states at chosen positions.

    Args:
        clip: an open_clip CLIP; its text weights are shared and frozen.
        adapters: per block index (0-based) the adapters at "pre_mlp", taking tokens, or "parallel", see :class:`Block`.

    The forward pass is cut in two at the first adapter: :meth:`frozen_part` depends on the tokens alone and may be
    cached, :meth:`adapted_part` is what training changes.

    Raises:
        InputError: a text model that is no plain CLIP text transformer.
    """

    token_embedding: nn.Embedding
    positional_embedding: nn.Parameter
    ln_final: nn.LayerNorm
    text_projection: nn.Parameter | nn.Linear | None
    blocks: Any  # an nn.ModuleList of Block

    def __init__(self, clip: Any, adapters: Mapping[int, Mapping[str, nn.Module]]) -> None:
        super().__init__()
        if getattr(clip, "text_pool_type", None) not in ("argmax", "eos") or not hasattr(clip, "transformer"):
            raise InputError("the text side of this model is no CLIP text transformer: use a CLIP model of open_clip")
        self.token_embedding, self.positional_embedding = clip.token_embedding, clip.positional_embedding
        self.ln_final, self.text_projection = clip.ln_final, clip.text_projection
        freeze(self)
        blocks = clip.transformer.resblocks
        for block in blocks:
            freeze(block)
        self.blocks = nn.ModuleList(Block(block, adapters.get(i, {})) for i, block in enumerate(blocks))
        self.first_adapted = min(adapters, default=len(blocks))
        self.context_length: int = clip.context_length
        self.vocab_size: int = clip.token_embedding.num_embeddings
        self.width: int = clip.token_embedding.embedding_dim
        self.adapters_enabled = True

    @torch.no_grad()
    def frozen_part(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Hidden states in front of the first adapter; a constant of the tokens.

        Args:
            tokens: token ids (N, S), S up to the context length; prompts may be cut behind their longest, because
                attention is causal.
            positions: (N, K), which positions are read after the last block.

        Returns:
            (N, S, D), or (N, K, D) where the last block's attention is part of it.
        """
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = x.to(self.ln_final.weight.dtype)
        for block in self.blocks[: self.first_adapted]:
            x = block.mlp_half(self._attention(block, x, positions)[2])
        return self._attention(self.blocks[self.first_adapted], x, positions)[2] if self._attention_is_frozen else x

    def adapted_part(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Last-block hidden states (N, K, D), before ln_final, of what :meth:`frozen_part` returned."""
        for i, block in enumerate(self.blocks[self.first_adapted :]):
            x = queries = mixed = hidden
            if i > 0 or not self._attention_is_frozen:
                x, queries, mixed = self._attention(block, hidden, positions)
            if block.pre_mlp is not None and self.adapters_enabled:
                mixed = block.pre_mlp(mixed)
            hidden = block.mlp_half(mixed)
            if block.parallel is not None and self.adapters_enabled:
                hidden = block.beside(x, queries, hidden, None)
        return hidden

    @property
    def _attention_is_frozen(self) -> bool:
        """Whether the first adapter comes after its block's attention, which is then part of the frozen part."""
        return self.first_adapted < len(self.blocks) and self.blocks[self.first_adapted].parallel is None

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Last-block hidden states (N, K, D) at the positions (N, K) of token ids (N, S)."""
        return self.adapted_part(self.frozen_part(tokens, positions), positions)

    def project(self, hidden: Tensor) -> Tensor:
        """Features (..., D_vl) in the joint space, of last-block hidden states (..., D)."""
        hidden = self.ln_final(hidden)
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(hidden)
        return hidden if self.text_projection is None else hidden @ self.text_projection

    def _attention(self, block: Block, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the tokens that are read afterwards: the block's input, that after ln_1, and x + MSA(LN(x))."""
        normalised = block.ln_1(x)
        if block is not self.blocks[-1]:
            return x, normalised, x + block.ls_1(block.attend(normalised, normalised, causal=True))
        mask = positions[:, None, :, None] >= torch.arange(x.shape[1], device=x.device)
        queries, x = gather_tokens(normalised, positions), gather_tokens(x, positions)
        return x, queries, x + block.ls_1(block.attend(queries, normalised, mask=mask))


def gather_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """Tokens (N, K, D) of x (N, S, D) at the positions (N, K)."""
    return x.gather(1, positions[:, :, None].expand(-1, -1, x.shape[-1]))


def freeze(module: nn.Module) -> None:
    """Take every parameter of a module out of training."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def layer_range(layers: str, count: int) -> list[int]:
    """0-based block indices of "all", "none" or a 1-based inclusive range such as "7-12" or "12".

    Raises:
        InputError: a range that is malformed or outside 1..count.
    """
    if layers in ("all", "none"):
        return list(range(count)) if layers == "all" else []
    first, _, last = layers.partition("-")
    if not first.isdigit() or not (last or first).isdigit() or not 1 <= int(first) <= int(last or first) <= count:
        raise InputError(f'layers={layers!r}: write "all", "none" or a range within 1-{count} such as "7-{count}"')
    return list(range(int(first) - 1, int(last or first)))


def tower_signature(clip: Any) -> dict[str, Any]:
    """What a CLIP's towers must have in common with those the adapters were trained on."""
    visual = clip.visual
    _require_plain_vit(visual)
    activation = type(visual.transformer.resblocks[0].mlp.gelu).__name__
    return {
        "image_size": list(visual.image_size),
        "patch_size": list(visual.patch_size),
        "vision_width": visual.conv1.out_channels,
        "vision_layers": len(visual.transformer.resblocks),
        "text_width": clip.token_embedding.embedding_dim,
        "text_layers": len(clip.transformer.resblocks),
        "joint_width": visual.proj.shape[1],
        "activation": activation,
    }


def _require_plain_vit(visual: Any) -> None:
    names = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "ln_post", "proj")
    plain = all(hasattr(visual, name) for name in names) and getattr(visual, "attn_pool", None) is None
    if not plain or visual.proj is None or visual.pool_type != "tok":
        raise InputError(
            f"vision models of type {type(visual).__name__} are not supported: use a CLIP ViT of open_clip"
        )
