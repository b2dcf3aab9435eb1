"""How the attention modules of other libraries hold their weights, so that a block can put its own questions to them.

Nothing here has a state: a block keeps the module itself, under the name that the library's block has for it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = tuple[Tensor, Tensor | None]  # of a linear layer: (out, in) and (out,)


class Attention:
    """Attention whose projections to queries, keys and values are one matrix; the base of the other kinds."""

    def joint(self, attention: Any) -> Weights | None:
        """The weights of queries, keys and values together, None where a module has them apart."""
        raise NotImplementedError

    def apart(self, attention: Any) -> tuple[Weights, Weights, Weights]:
        """The weights of queries, keys and values."""
        weight, bias = self.joint(attention) or (None, None)
        assert weight is not None  # a kind that has none says itself where they are
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        q, k, v = zip(weight.chunk(3), biases, strict=True)
        return q, k, v

    def project(self, attention: Any, queries: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, Q, A), keys and values (N, S, A), in as few matrix products as the weights allow."""
        joint = self.joint(attention)
        if joint is None:
            return self.project_apart(attention, queries, context)
        weight, bias = joint
        if queries is context:
            q, k, v = F.linear(queries, weight, bias).chunk(3, dim=-1)
            return q, k, v
        width = weight.shape[0] // 3
        q = F.linear(queries, weight[:width], None if bias is None else bias[:width])
        k, v = F.linear(context, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
        return q, k, v

    def project_apart(self, attention: Any, queries: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same with queries, keys and values of their own in memory."""
        of_query, of_key, of_value = self.apart(attention)
        return F.linear(queries, *of_query), F.linear(context, *of_key), F.linear(context, *of_value)

    def norm(self, attention: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (..., head width), normalised where the module does that."""
        return q, k

    def rotate(self, attention: Any, x: Tensor, rotary: Tensor) -> Tensor:
        """Queries or keys (N, heads, H*W, head width) turned by their places."""
        raise NotImplementedError

    def out(self, attention: Any, mixed: Tensor) -> Tensor:
        """(N, Q, D), of the heads' results side by side (N, Q, A)."""
        raise NotImplementedError


class TorchAttention(Attention):
    """`nn.MultiheadAttention`, which open_clip has."""

    def joint(self, attention: Any) -> Weights | None:
        return attention.in_proj_weight, attention.in_proj_bias

    def out(self, attention: Any, mixed: Tensor) -> Tensor:
        return attention.out_proj(mixed)


class TransformersAttention(Attention):
    """Four linear layers, as in CLIP and SigLIP of transformers."""

    def joint(self, attention: Any) -> Weights | None:
        return None

    def apart(self, attention: Any) -> tuple[Weights, Weights, Weights]:
        q, k, v = ((layer.weight, layer.bias) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
        return q, k, v

    def out(self, attention: Any, mixed: Tensor) -> Tensor:
        return attention.out_proj(mixed)


class TimmAttention(TransformersAttention):
    """timm's attention of ViT, and that of EVA with its rotary embedding and its biases beside the matrix."""

    def joint(self, attention: Any) -> Weights | None:
        if attention.qkv is None:
            return None
        if getattr(attention, "q_bias", None) is None:
            return attention.qkv.weight, attention.qkv.bias
        return attention.qkv.weight, torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])

    def apart(self, attention: Any) -> tuple[Weights, Weights, Weights]:
        return super().apart(attention) if attention.qkv is None else Attention.apart(self, attention)

    def norm(self, attention: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return attention.q_norm(q), attention.k_norm(k)

    def rotate(self, attention: Any, x: Tensor, rotary: Tensor) -> Tensor:
        from timm.layers import apply_rot_embed_cat

        return apply_rot_embed_cat(x, rotary, half=attention.rotate_half).to(x.dtype)

    def out(self, attention: Any, mixed: Tensor) -> Tensor:
        return attention.proj(attention.norm(mixed))


def timm_attention_problem(attention: nn.Module) -> str | None:
    """Why a timm attention cannot be asked by blocks of this package; None where it can."""
    from timm.layers import Attention as Plain
    from timm.layers import AttentionRope
    from timm.models.eva import EvaAttention

    if type(attention) not in (Plain, EvaAttention, AttentionRope):
        return f"its attention is of type {type(attention).__name__}"
    if getattr(attention, "gate", None) is not None:
        return "its attention has gates"
    return "its queries share keys" if getattr(attention, "num_kv_groups", 1) != 1 else None
