"""M2-CLIP (AAAI 2024): TED-Adapters in the vision tower, text adapters, and a decoder of four heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.adapters import FrameFeatureAdapter, TEDAdapter, TextAdapter
from m2clip.distributed import rank, world_size
from m2clip.errors import InputError
from m2clip.heads import ClassificationHead, CrossModalWordHead, WordPredictionHead
from m2clip.kernels import cosine_cross_entropy
from m2clip.losses import Losses, contrastive_loss, word_divisor
from m2clip.text import VOCABULARIES, PromptTokenizer, WordMasker, prompt_words, word_vocabulary
from m2clip.towers import TextTower, VisionTower, layer_range

from .base import VideoModel

HEADS = ("contrastive", "cmc", "cmlm", "vc")
PLACEMENTS = {"pre_attn": ("pre_attn",), "pre_mlp": ("pre_mlp",), "both": ("pre_attn", "pre_mlp")}


@dataclass
class M2CLIPOptions:
    """Everything that distinguishes one M2-CLIP from another; defaults follow the paper's equations.

    Vision: width R of the TED-Adapters; placement "pre_attn", "pre_mlp" or "both"; layers "all", "none" or a 1-based
    range such as "7-12"; temporal, difference, sequential, shared_projection as in TEDAdapter; output_adapter: one more
    temporal adapter on the frame features.
    Text: text_layers, the number of last layers with an adapter; text_width; text_zero_init_up.
    Decoder: heads; head_weights of their losses; vc_input "video" (mean of the frame features) or "class_token"
    (ln_post of the mean class token); vc_dropout; cmc_scale, None for CLIP's own logit scale; vocabulary "words",
    "official" or "clip"; word_list, an explicit vocabulary; mask_rate; prompt, the template of class texts.
    """

    width: int = 384
    placement: str = "pre_attn"
    layers: str = "all"
    temporal: bool = True
    difference: bool = True
    sequential: bool = False
    shared_projection: bool = True
    output_adapter: bool = False
    text_layers: int = 1
    text_width: int = 384
    text_zero_init_up: bool = True
    heads: tuple[str, ...] = HEADS
    head_weights: dict[str, float] = field(
        default_factory=lambda: {"contrastive": 0.5, "cmc": 0.5, "cmlm": 0.1, "vc": 1.0}
    )
    vc_input: str = "video"
    vc_dropout: float = 0.5
    cmc_scale: float | None = None
    vocabulary: str = "words"
    word_list: tuple[str, ...] | None = None
    mask_rate: float = 0.15
    prompt: str = "a video of {}"

    def __post_init__(self) -> None:
        self.heads = tuple(self.heads)
        self.word_list = None if self.word_list is None else tuple(self.word_list)
        if not self.heads:
            raise InputError(f"heads must not be empty; choose from {', '.join(HEADS)}")
        for name, value, allowed in (
            *(("heads", head, HEADS) for head in self.heads),
            *(("head_weights", head, HEADS) for head in self.head_weights),
            ("placement", self.placement, tuple(PLACEMENTS)),
            ("vc_input", self.vc_input, ("video", "class_token")),
            ("vocabulary", self.vocabulary, VOCABULARIES),
        ):
            if value not in allowed:
                raise InputError(f"{name}: {value!r} is none of {', '.join(allowed)}")
        missing = [head for head in self.heads if head not in self.head_weights]
        if missing:
            raise InputError(f"head_weights names no weight for {missing[0]!r}")
        if self.width < 1 or self.text_width < 1 or self.text_layers < 0:
            raise InputError("width and text_width must be at least 1, text_layers at least 0")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official": {
        "placement": "pre_mlp",
        "shared_projection": False,
        "output_adapter": True,
        "vc_input": "class_token",
        "cmc_scale": 100.0,
        "vocabulary": "official",
    },
}


class M2CLIP(VideoModel):
    """M2-CLIP. See :class:`M2CLIPOptions` for the options and :class:`VideoModel` for shapes.

    Source: M2-CLIP (AAAI 2024), Fig. 3; preset "paper" follows the equations, "official" the authors' code.
    """

    method = "m2clip"

    def __init__(
        self,
        clip: Any,
        class_names: Sequence[str],
        num_frames: int,
        options: M2CLIPOptions,
        tokenizer: PromptTokenizer | None = None,
    ) -> None:
        super().__init__(clip, class_names, num_frames, options.prompt, tokenizer)
        self.config = options
        self.visual = VisionTower(clip.visual, _ted_adapters(clip.visual, num_frames, options))
        self.text = TextTower(clip, _text_adapters(clip, options))
        dim = self.visual.proj.shape[1]
        self.output_adapter = FrameFeatureAdapter(dim) if options.output_adapter else None
        self.vc: ClassificationHead | None = None
        self.cmlm: CrossModalWordHead | None = None
        self.masker: WordMasker | None = None
        if "vc" in options.heads:
            width = self.visual.width if options.vc_input == "class_token" else dim
            self.vc = ClassificationHead(width, len(self.class_names), options.vc_dropout)
        if "cmlm" in options.heads:
            self.cmlm = self._word_head(options)

    # ---- Eqs. 1-3: video to features ----

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        class_tokens = self.visual(video)
        frame_features = self.visual.project(class_tokens).float()
        if self.output_adapter is not None and self.visual.adapters_enabled:
            frame_features = self.output_adapter(frame_features)
        video_features = frame_features.mean(dim=1)  # Eq. 3
        logits = None
        if self.vc is not None and self.knows_labels:
            if self.config.vc_input == "class_token":
                logits = self.vc(self.visual.ln_post(class_tokens.mean(dim=1)).float())
            else:
                logits = self.vc(video_features)
        return frame_features, video_features, logits

    # ---- Eqs. 10-12 and VC: the multi-task decoder ----

    def loss(
        self,
        video: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        drawn: Sequence[Tensor] | None = None,
    ) -> Losses:
        """Weighted sum of the heads' losses.

        Args:
            video: (B, T, 3, H, W). labels: (B,) int64. generator: CPU generator of the masked words; in several
                processes all must pass generators of the same state.
            drawn: masked words drawn before (:meth:`draw`), on the device; None draws them here, for which a GPU has to
                be waited for.

        Raises:
            InputError: if the class names were exchanged, because heads and labels would no longer agree.
        """
        if not self.knows_labels:
            raise InputError("the class names were exchanged; training needs those the model was built with")
        heads = self.config.heads
        frame_features, video_features, logits = self.encode(self._checked(video))
        parts: dict[str, Tensor] = {}
        if "contrastive" in heads or "cmc" in heads:
            text_features = self.text_features().float()
            scale = self.logit_scale.float().exp()
            if "contrastive" in heads:
                parts["contrastive"] = contrastive_loss(video_features, text_features, labels, scale)
            if "cmc" in heads:
                fixed = self.config.cmc_scale
                cmc_scale = scale if fixed is None else torch.full_like(scale, fixed)
                parts["cmc"] = cosine_cross_entropy(video_features, text_features, labels, cmc_scale)
        if self.cmlm is not None:
            drawn = self.draw(labels.cpu(), generator) if drawn is None else drawn
            parts["cmlm"] = self._masked_word_loss(frame_features, *(part.to(labels.device) for part in drawn))
        if logits is not None:
            parts["vc"] = nn.functional.cross_entropy(logits, labels)
        terms = [self.config.head_weights[name] * part for name, part in parts.items()]
        terms.extend(parameter.flatten()[0] * 0 for parameter in self._without_gradient())
        total = sum(terms, start=video_features.new_zeros(()))
        return Losses(total, {name: part.detach() for name, part in parts.items()})

    def draw(self, labels: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Prompts with masked words: token ids (B, S), positions of the words (B, K) and their targets (B, K)."""
        if self.masker is None:
            return ()
        uniform = torch.rand(world_size() * len(labels), self.masker.max_words, generator=generator)
        own = uniform[rank() * len(labels) :][: len(labels)]  # as if one process had drawn for the whole batch
        prompts, targets = self.masker(labels.tolist(), own)
        return prompts.tokens, prompts.positions, targets

    def _masked_word_loss(self, frame_features: Tensor, tokens: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        assert self.cmlm is not None
        hidden = self.text(tokens, positions)
        features = self.cmlm(hidden, frame_features.to(hidden.dtype))
        return self.cmlm.words.loss(features.float(), targets, word_divisor(targets))

    def _word_head(self, options: M2CLIPOptions) -> CrossModalWordHead:
        if self.visual.proj.shape[1] != self.text.width:
            raise InputError(
                f"the cmlm head needs frame features ({self.visual.proj.shape[1]}) as wide as text tokens "
                f"({self.text.width}); leave it out with heads=('contrastive', 'cmc', 'vc')"
            )
        words = None
        if options.vocabulary != "clip":
            words = options.word_list or tuple(
                word_vocabulary(self.class_names, options.prompt, official=options.vocabulary == "official")
            )
            options.word_list = words
        self.masker = WordMasker(
            self.tokenizer, prompt_words(self.class_names, options.prompt), options.mask_rate, words
        )
        tied = self.text.token_embedding if words is None else None
        head = WordPredictionHead(self.text.width, self.text.vocab_size if words is None else len(words), tied)
        adapter = TextAdapter(self.text.width, options.text_width, zero_init_up=options.text_zero_init_up)
        return CrossModalWordHead(self.text.blocks[-1], self.text.ln_final, adapter, head)

    def _without_gradient(self) -> list[nn.Parameter]:
        """Trained parameters no head's loss reaches; they take part with weight 0, so that DDP waits for none in vain.

        The difference branch in front of the last FFN never reaches the class token, which alone is read after it.
        """
        heads = self.config.heads
        modules: list[nn.Module | None] = []
        last = self.visual.blocks[-1].pre_mlp
        if last is not None:
            modules.append(last.difference)
        if not {"contrastive", "cmc", "cmlm"} & set(heads):
            modules.extend(block.pre_mlp for block in self.text.blocks)
        if not {"contrastive", "cmc", "cmlm"} & set(heads) and self.config.vc_input == "class_token":
            modules.append(self.output_adapter)
        if self.cmlm is not None and self.config.mask_rate == 0:
            modules.append(self.cmlm.adapter)
        return [parameter for module in modules if module is not None for parameter in module.parameters()]

    def options(self) -> dict[str, Any]:
        return asdict(self.config)

    def is_text_adapter(self, name: str) -> bool:
        return name.startswith(("text.", "cmlm.adapter."))


def _ted_adapters(visual: Any, num_frames: int, options: M2CLIPOptions) -> dict[int, dict[str, nn.Module]]:
    dim, blocks = visual.conv1.out_channels, len(visual.transformer.resblocks)
    return {
        i: {
            place: TEDAdapter(
                dim,
                options.width,
                num_frames,
                grid=tuple(visual.grid_size),
                temporal=options.temporal,
                difference=options.difference,
                shared_projection=options.shared_projection,
                sequential=options.sequential,
            )
            for place in PLACEMENTS[options.placement]
        }
        for i in layer_range(options.layers, blocks)
    }


def _text_adapters(clip: Any, options: M2CLIPOptions) -> dict[int, dict[str, nn.Module]]:
    dim, blocks = clip.token_embedding.embedding_dim, len(clip.transformer.resblocks)
    if options.text_layers > blocks:
        raise InputError(f"text_layers={options.text_layers}, but the text tower has {blocks} layers")
    return {
        i: {"pre_mlp": TextAdapter(dim, options.text_width, zero_init_up=options.text_zero_init_up)}
        for i in range(blocks - options.text_layers, blocks)
    }
