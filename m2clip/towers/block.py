"""The blocks of CLIP's two towers, with places for adapters.

The towers hold the very modules of the model they are built from, frozen; they copy no weight and edit no foreign
function. Two savings change no output: the last block computes only the tokens that are read afterwards, and what no
adapter has touched is computed without a graph, for the text side once per label set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m2clip.errors import InputError
from m2clip.kernels import TimeLayout, bias_gelu
from m2clip.kernels.dispatch import has_kernel
from m2clip.kernels.verification.keys import Call
from m2clip.towers.activations import known_name, quick_gelu
from m2clip.towers.parts import BlockParts


class Block(nn.Module):
    """A frozen transformer block with places for adapters.

    "pre_attn" and "pre_mlp" are before its halves. "parallel" is beside the whole block: such an adapter takes what it
    reads, the block's output to add to, and where the frames are; it says with `prenorm` whether it reads the block's
    input after the first norm.

    Args:
        block: the parts of a foreign block, which are shared.
        adapters: by place.
    """

    rotary: Tensor | None
    pre_attn: nn.Module | None
    pre_mlp: nn.Module | None
    parallel: Any  # a module, or None

    def __init__(self, block: BlockParts, adapters: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ls_1 = block.ln_1, block.attn, block.ls_1
        self.ln_2, self.mlp, self.ls_2 = block.ln_2, block.mlp, block.ls_2
        self.num_heads, self.kind, self.prefix = block.num_heads, block.kind, block.prefix
        self.register_buffer("rotary", block.rotary, persistent=False)
        self.mlp_names, self.fused_activation = block.mlp_names, None
        if block.mlp_names is not None:
            own = getattr(block.mlp, block.mlp_names[1])
            # The model's own activation, QuickGELU in a form that keeps one wide tensor for the backward pass, not two.
            name = known_name(own)
            self.activation = quick_gelu if name == "quick_gelu" else own
            self.fused_activation = name if getattr(block.mlp, block.mlp_names[0]).bias is not None else None
        self.pre_attn, self.pre_mlp = adapters.get("pre_attn"), adapters.get("pre_mlp")
        self.parallel = adapters.get("parallel")

    def attend(
        self,
        queries: Tensor,
        context: Tensor,
        causal: bool = False,
        mask: Tensor | None = None,
        placed: bool = True,
    ) -> Tensor:
        """Multi-head attention of normalised (N, Q, D) queries over normalised (N, S, D) context tokens.

        Args:
            queries: (N, Q, D).
            context: (N, S, D).
            causal: whether queries, which are the context itself, see their past alone.
            mask: (N, 1, Q, S) bool, True where a query may look.
            placed: whether a sequence that is long enough begins with the tokens of an image, which a rotary embedding
                turns by their places; what is behind them has no place.
        """
        heads = (self.num_heads, -1)
        q, k, v = (x.unflatten(-1, heads).transpose(1, 2) for x in self.kind.project(self.attn, queries, context))
        q, k = self.kind.norm(self.attn, q, k)
        if self.rotary is not None and placed:
            q, k = self._turned(q), self._turned(k)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.kind.out(self.attn, mixed.transpose(1, 2).flatten(2))

    def _turned(self, x: Tensor) -> Tensor:
        """Queries or keys (N, heads, L, head width), those of patch tokens turned by their places."""
        assert self.rotary is not None
        patches = len(self.rotary)
        if x.shape[2] < self.prefix + patches:
            return x
        front, middle, behind = x.split([self.prefix, patches, x.shape[2] - self.prefix - patches], dim=2)
        return torch.cat([front, self.kind.rotate(self.attn, middle, self.rotary), behind], dim=2)

    def beside(self, x: Tensor, normalised: Tensor, output: Tensor, time: TimeLayout | None) -> Tensor:
        """The block's output with the parallel adapter's added, which reads the block's input or that after ln_1."""
        return self.parallel(normalised if self.parallel.prenorm else x, output, time)

    def mlp_half(self, x: Tensor) -> Tensor:
        """x + MLP(LN(x))."""
        return x + self.feed_forward(self.ln_2(x))

    def feed_forward(self, normalised: Tensor) -> Tensor:
        """What the MLP makes of tokens (..., D) that ln_2 has normalised."""
        if self.mlp_names is None:
            return self.ls_2(self.mlp(normalised))
        first, _, last = self.mlp_names
        return self.ls_2(getattr(self.mlp, last)(self._expand(getattr(self.mlp, first), normalised)))

    def kernel_calls(self, dtype: torch.dtype) -> list[Call]:
        """What its frozen part asks of the kernels for tokens of a dtype (:func:`m2clip.kernels.prepare`)."""
        name = self.fused_activation
        if name is None or self.mlp_names is None:
            return []
        return [Call("bias_gelu", name, len(getattr(self.mlp, self.mlp_names[0]).weight), 0, dtype)]

    def _expand(self, layer: Any, x: Tensor) -> Tensor:
        name = self.fused_activation
        # A compiler fuses bias and activation by itself; without one, and without a kernel, the bias belongs into the
        # matrix product.
        if name is None or torch.compiler.is_compiling() or not has_kernel("bias_gelu", x, name, len(layer.weight)):
            return self.activation(layer(x))
        return bias_gelu(F.linear(x, layer.weight), layer.bias, name)


class Switch:
    """Whether a tower's adapters take part, which a thread, or an asyncio task, can deny for itself alone."""

    @property
    def on(self) -> bool:
        return not any(switch is self for switch in _switched_off.get())


_switched_off: ContextVar[tuple[Switch, ...]] = ContextVar("m2clip_switched_off", default=())


@contextmanager
def switched_off(switches: Sequence[Switch]) -> Iterator[None]:
    """Within the context, in this thread, these switches are off."""
    token = _switched_off.set((*_switched_off.get(), *switches))
    try:
        yield
    finally:
        _switched_off.reset(token)


class Tower(nn.Module):
    """The blocks of one side of a CLIP, frozen, with the adapters in them."""

    blocks: Any  # an nn.ModuleList of block_type
    block_type: type[Block] = Block  # methods whose adapters go elsewhere bring their own
    recomputed = 0  # blocks that are computed again in the backward pass, from the first that has a gradient

    def add_blocks(self, blocks: Sequence[BlockParts], adapters: Mapping[int, Mapping[str, nn.Module]]) -> None:
        """Take the blocks of a transformer; these and all that the tower holds so far are frozen."""
        freeze(self)
        for block in blocks:
            for part in (block.ln_1, block.attn, block.ls_1, block.ln_2, block.mlp, block.ls_2):
                freeze(part)
        self.blocks = nn.ModuleList(self.block_type(block, adapters.get(i, {})) for i, block in enumerate(blocks))
        self.first_adapted = min((i for i, places in adapters.items() if places), default=len(blocks))
        self.switch = Switch()

    def keep_or_recompute(self, index: int, compute: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """What a block computes; of the `recomputed` ones nothing but the arguments is kept for the backward pass."""
        if not torch.is_grad_enabled() or not 0 <= index - self.first_adapted < self.recomputed:
            return compute(*arguments)
        if not torch.compiler.is_compiling():
            # The backward pass may be in another thread, or after the context that chose a backend.
            arguments = (compute, *arguments)
            compute = copy_context().run
        return checkpoint(compute, *arguments, use_reentrant=False)

    def adapt(self, adapter: nn.Module | None, x: Tensor, *layout: int) -> Tensor:
        """What an adapter in front of half a block makes of the tokens; the tokens without one, or switched off."""
        return adapter(x, *layout) if adapter is not None and self.switch.on else x


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
