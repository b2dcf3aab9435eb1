"""Prototypes of the classes of an episode: what their support videos say, with what their name says.

One transformer layer on the frame features of support and query videos. How the text of its class guides a support
video tells the text-guided module of MA-FSAR from its two alternatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GUIDANCE = ("tpcm", "multimodal", "unimodal")
NORMS = ("pre", "none")
FFN_RATIO = 4


class PrototypeLayer(nn.Module):
    """``H = q + MHA(q, k, k)``, ``V~ = H + FFN(H)`` on frame features V, with text f for support videos.

    Args:
        dim: width D_vl.
        guidance: what q and k are for a support video. "tpcm": q = V + f, k = [f; V]; "multimodal": q = V, k = [f; V],
            as where the text is one more token of a self-attention; "unimodal": q = k = V. Without text always q = k =
            V.
        heads: of the attention.
        norm: "pre", a layer norm on q and k inside the attention, whose projections have no bias then (CLIP-FSAR's
            block); "none", no norm and biases, as the paper's figure draws it.
        residual: "sum", the first residual leaves from q, or "frames", from V.
        attention_dropout: on the attention's output. ffn_dropout: after the FFN's activation and on its output.

    Shape: frames (..., T, D_vl), text (..., D_vl) or None -> (..., T, D_vl), computed in the dtype of the weights.

    Raises:
        ValueError: unknown guidance, norm or residual; heads that do not divide dim.

    Source: MA-FSAR (arXiv 2308.01532), Fig. 4 and Table 6; norm, heads and dropouts: CLIP-FSAR's code.
    """

    def __init__(
        self,
        dim: int,
        guidance: str = "tpcm",
        *,
        heads: int = 8,
        norm: str = "pre",
        residual: str = "sum",
        attention_dropout: float = 0.2,
        ffn_dropout: float = 0.05,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("guidance", guidance, GUIDANCE),
            ("norm", norm, NORMS),
            ("residual", residual, ("sum", "frames")),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide features of width {dim}")
        self.guidance, self.heads, self.residual = guidance, heads, residual
        self.norm: nn.Module = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()
        self.to_query = nn.Linear(dim, dim, bias=norm == "none")
        self.to_key_value = nn.Linear(dim, 2 * dim, bias=norm == "none")
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(attention_dropout)
        self.ffn = nn.Sequential(
            nn.Linear(dim, FFN_RATIO * dim),
            nn.GELU(),
            nn.Dropout(ffn_dropout),
            nn.Linear(FFN_RATIO * dim, dim),
            nn.Dropout(ffn_dropout),
        )

    def forward(self, frames: Tensor, text: Tensor | None = None) -> Tensor:
        frames = frames.to(self.to_out.weight.dtype)
        text = None if text is None else text.to(frames.dtype)
        query = context = frames
        if text is not None and self.guidance != "unimodal":
            context = torch.cat([text[..., None, :], frames], dim=-2)
            if self.guidance == "tpcm":
                query = frames + text[..., None, :]
        hidden = (query if self.residual == "sum" else frames) + self.attend(query, context)
        return hidden + self.ffn(hidden)

    def attend(self, query: Tensor, context: Tensor) -> Tensor:
        """Multi-head attention of (..., Q, D_vl) over (..., S, D_vl)."""
        q = self.to_query(self.norm(query))
        k, v = self.to_key_value(self.norm(context)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.dropout(self.to_out(mixed.transpose(-3, -2).flatten(-2)))
