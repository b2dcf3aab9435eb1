"""The heads of the multi-task decoder that own parameters: masked words and visual classification.

A head computes in the dtype of its own weights, and gives at least fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2clip.adapters import TextAdapter
from m2clip.kernels import masked_word_loss
from m2clip.towers.block import Block
from m2clip.towers.precision import at_least_fp32
from m2clip.towers.prompts import IGNORE


class WordPredictionHead(nn.Module):
    """BERT's masked-word head: Linear, GELU, LayerNorm, decoder to the vocabulary with bias.

    Args:
        dim: token width D_l.
        vocab_size: number of words.
        tied: a frozen (V, D_l) embedding to decode with; by default the decoder is trained.

    Source: M2-CLIP (AAAI 2024) after Eq. 12; BERT (Devlin et al. 2018).
    """

    def __init__(self, dim: int, vocab_size: int, tied: nn.Embedding | None = None) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.decoder = nn.Parameter(nn.Linear(dim, vocab_size, bias=False).weight.detach()) if tied is None else None
        self.tied = tied
        self.bias = nn.Parameter(self.dense.weight.new_zeros(vocab_size))

    def loss(self, hidden: Tensor, targets: Tensor, divisor: Tensor | float | None = None) -> Tensor:
        """Cross-entropy of hidden states (..., D_l) at positions with word targets (...), -100 elsewhere."""
        hidden = self.norm(F.gelu(self.dense(hidden.to(self.dense.weight.dtype))))
        weight = self.decoder if self.tied is None else self.tied.weight
        assert weight is not None  # the decoder is left out only where it is tied
        if hidden.device.type == "cpu":
            return masked_word_loss(hidden, weight, self.bias, targets, divisor=divisor)
        return _loss_of_all_positions(hidden, weight, self.bias, targets, divisor)


def _loss_of_all_positions(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, divisor: Tensor | float | None
) -> Tensor:
    """masked_word_loss without dropping positions first, for which a GPU would have to be waited for.

    The model sends a sample's few masked words alone, so nearly every position carries one anyway.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden.float(), weight.float(), bias.float()).flatten(0, -2)
        total = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / ((targets != IGNORE).sum().clamp_min(1) if divisor is None else divisor)


class CrossModalWordHead(nn.Module):
    """Predicts masked words of a label text from the text and the frames of its video (CMLM).

    ``w* = z + CA(LN(z), LN([v_1 .. v_T])); w_hat = A(w*); w_m = w_hat + MLP(LN(w_hat))``, where CA, LN and MLP are
    those of the last text block, frozen, and only the adapter A is trained; then ln_final and the word prediction. In
    the authors' models with text adapters before attention, z has gone through one more adapter.

    Args:
        block: the last block of the text tower, shared.
        ln_final: the text tower's final layer norm, shared.
        adapter: the adapter before the FFN, None for none.
        words: the prediction head.
        pre_attn: the adapter before the cross-attention, None for none.

    Raises:
        ValueError: at the call, where frame features are not as wide as text tokens.

    Source: M2-CLIP (AAAI 2024), Eq. 12.
    """

    def __init__(
        self,
        block: Block,
        ln_final: nn.Module,
        adapter: TextAdapter | None,
        words: WordPredictionHead,
        pre_attn: TextAdapter | None = None,
    ) -> None:
        super().__init__()
        self.block, self.ln_final, self.words = block, ln_final, words
        self.adapter, self.pre_attn = adapter, pre_attn

    def forward(self, hidden: Tensor, frame_features: Tensor) -> Tensor:
        """Features (B, K, D_l) before the word prediction, from text states (B, K, D_l) and frames (B, T, D_vl).

        Text tokens look at frames only, never at each other, so it is enough to send the masked ones.
        """
        if frame_features.shape[-1] != hidden.shape[-1]:
            raise ValueError(
                f"frame features are {frame_features.shape[-1]} wide and text tokens {hidden.shape[-1]}: "
                "cross-modal masked language modelling needs equal widths"
            )
        block = self.block
        if self.pre_attn is not None:
            hidden = self.pre_attn(hidden)
        hidden = hidden + block.ls_1(block.attend(block.ln_1(hidden), block.ln_1(frame_features)))
        return self.ln_final(block.mlp_half(hidden if self.adapter is None else self.adapter(hidden)))


class ClassificationHead(nn.Module):
    """Dropout and a linear classifier on a video feature (VC). Source: M2-CLIP (AAAI 2024), visual classification head.

    Args:
        dim: feature width. num_classes: C. dropout: probability.

    Shape: (B, dim) -> (B, C).
    """

    def __init__(self, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return at_least_fp32(self.fc(self.dropout(features.to(self.fc.weight.dtype))))
