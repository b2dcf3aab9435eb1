"""M2-CLIP (AAAI 2024): TED-Adapters in the vision tower, text adapters, and a decoder of four heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.adapters import FrameFeatureAdapter, TEDAdapter, TextAdapter
from m2clip.distributed import rank, world_size
from m2clip.errors import InputError
from m2clip.methods.base import PLACEMENTS, VideoModel, layout_of, placed
from m2clip.methods.heads import ClassificationHead, CrossModalWordHead, WordPredictionHead
from m2clip.methods.losses import (
    classification_loss,
    contrastive_loss,
    cosine_loss,
    is_plain,
    sigmoid_loss,
    word_divisor,
)
from m2clip.methods.options import check_choices, check_shares
from m2clip.methods.results import LabelSet
from m2clip.towers.block import layer_range
from m2clip.towers.precision import at_least_fp32
from m2clip.towers.prompts import (
    VOCABULARIES,
    PromptTokenizer,
    WordMasker,
    checked_words,
    load_words,
    prompt_words,
    word_vocabulary,
)
from m2clip.towers.sources import open_text, open_vision
from m2clip.towers.text import TextTower
from m2clip.towers.vision import VisionTower

HEADS = ("contrastive", "cmc", "cmlm", "vc")


@dataclass
class M2CLIPOptions:
    """Everything that distinguishes one M2-CLIP from another; defaults follow the paper's equations.

    Attributes:
        width: bottleneck width R of the TED-Adapters.
        placement: where they are in a block: "pre_attn", "pre_mlp" or "both".
        layers: blocks with a TED-Adapter: "all", "none" or a 1-based range such as "7-12".
        temporal: as in TEDAdapter.
        difference: as in TEDAdapter.
        sequential: as in TEDAdapter.
        shared_projection: as in TEDAdapter.
        output_adapter: whether there is one more temporal adapter on the frame features.
        text_layers: number of last text layers with adapters.
        text_placement: "pre_attn", "pre_mlp" or "both", there and in the masked-word head.
        text_width: bottleneck width of the text adapters.
        text_zero_init_up: whether text adapters start as the identity.
        heads: of "contrastive", "cmc", "cmlm" and "vc".
        head_weights: of their losses.
        contrastive: "softmax" (Eq. 10), or "sigmoid", the loss of SigLIP, for CLIPs with a logit bias.
        vc_input: what the classifier reads: "video" (mean of the frame features) or "class_token" (ln_post of the mean
            class token, or of what else stands for a frame).
        vc_dropout: in front of the classifier.
        cmc_scale: scale of the cosines; None for CLIP's own logit scale.
        vocabulary: of the masked-word head: "words", "official" or "clip".
        word_list: an explicit vocabulary in its place: words, or what :func:`m2clip.towers.prompts.load_words` takes.
        mask_rate: share of the words that are masked.
        label_smoothing: of the heads "cmc" and "vc".
        prompt: template of the class texts.
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
    text_placement: str = "pre_mlp"
    text_width: int = 384
    text_zero_init_up: bool = True
    heads: tuple[str, ...] = HEADS
    head_weights: dict[str, float] = field(
        default_factory=lambda: {"contrastive": 0.5, "cmc": 0.5, "cmlm": 0.1, "vc": 1.0}
    )
    contrastive: str = "softmax"
    vc_input: str = "video"
    vc_dropout: float = 0.5
    cmc_scale: float | None = None
    vocabulary: str = "words"
    word_list: Sequence[str] | str | None = None
    mask_rate: float = 0.15
    label_smoothing: float = 0.0
    prompt: str = "a video of {}"

    def __post_init__(self) -> None:
        self.heads = tuple(self.heads)
        if isinstance(self.word_list, str):
            self.word_list = load_words(self.word_list)
        self.word_list = None if self.word_list is None else checked_words(self.word_list, "word_list")
        if not self.heads:
            raise InputError(f"heads must not be empty; choose from {', '.join(HEADS)}")
        check_choices(
            *(("heads", head, HEADS) for head in self.heads),
            *(("head_weights", head, HEADS) for head in self.head_weights),
            ("placement", self.placement, tuple(PLACEMENTS)),
            ("text_placement", self.text_placement, tuple(PLACEMENTS)),
            ("contrastive", self.contrastive, ("softmax", "sigmoid")),
            ("vc_input", self.vc_input, ("video", "class_token")),
            ("vocabulary", self.vocabulary, VOCABULARIES),
        )
        missing = [head for head in self.heads if head not in self.head_weights]
        if missing:
            raise InputError(f"head_weights names no weight for {missing[0]!r}")
        check_shares(self, "label_smoothing")
        if self.label_smoothing and not {"cmc", "vc"} & set(self.heads):
            raise InputError("label_smoothing is of the heads cmc and vc, and heads has neither: leave it out")
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
        "prompt": "a video of {plain}",  # the authors' label file writes "hurling sport", not "hurling (sport)"
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
        super().__init__(clip, class_names, num_frames, options, tokenizer)
        if options.contrastive == "sigmoid" and self.logit_bias is None:
            raise InputError(
                'contrastive="sigmoid" needs a CLIP with a logit bias, such as SigLIP: set it to "softmax"'
            )
        self.visual = VisionTower(clip, _ted_adapters(clip, num_frames, options))
        text = open_text(clip)
        blocks = len(text.blocks)
        if blocks == 0 and (options.text_layers or "cmlm" in options.heads):
            raise InputError(
                "this CLIP's text model is one whole without places for adapters: set text_layers to 0 and leave out "
                "the head cmlm"
            )
        if options.text_layers > blocks:
            raise InputError(f"text_layers={options.text_layers}, but the text tower has {blocks} layers")
        adapted = range(blocks - options.text_layers, blocks)
        self.text = TextTower(text, _text_adapters(text.stem.width, adapted, options))
        dim = self.visual.stem.feature_width
        self.output_adapter = FrameFeatureAdapter(dim) if options.output_adapter else None
        self.vc: ClassificationHead | None = None
        self.cmlm: CrossModalWordHead | None = None
        self.masker: WordMasker | None = None
        if "vc" in options.heads:
            width = self.visual.stem.pooled_width if options.vc_input == "class_token" else dim
            self.vc = ClassificationHead(width, len(self.class_names), options.vc_dropout)
        if "cmlm" in options.heads:
            self.cmlm = self._word_head(options)

    @property
    def loss_kernels(self) -> tuple[str, ...]:
        kernels = {"contrastive": "soft_target_kl"}
        if is_plain(self.config.label_smoothing, self.class_weights):
            kernels["cmc"] = "cosine_cross_entropy"
        return tuple(kernel for head, kernel in kernels.items() if head in self.config.heads)

    @property
    def weighs_classes(self) -> bool:
        return not {"cmc", "vc"}.isdisjoint(self.config.heads)

    # ---- Eqs. 1-3: video to features ----

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        pooled = self.visual(video)
        frame_features = at_least_fp32(self.visual.project(pooled))
        if self.output_adapter is not None and self.visual.switch.on:
            frame_features = self.output_adapter(frame_features)
        video_features = frame_features.mean(dim=1)  # Eq. 3
        logits = None
        if self.vc is not None:
            if self.config.vc_input == "class_token":
                logits = self.vc(self.visual.norm(pooled.mean(dim=1)))
            else:
                logits = self.vc(video_features)
        return frame_features, video_features, logits

    # ---- Eqs. 10-12 and VC: the multi-task decoder ----

    def _loss(
        self, video: Tensor, labels: Tensor, names: LabelSet, drawn: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Weighted sum of the heads' losses."""
        heads = self.config.heads
        frame_features, video_features, logits = self.encode(video)
        parts: dict[str, Tensor] = {}
        how = self.config.label_smoothing, self.class_weights
        if "contrastive" in heads or "cmc" in heads:
            text_features = at_least_fp32(self.text_features(names))
            scale = self.cosine_scale
            if "contrastive" in heads:
                parts["contrastive"] = self._contrastive_loss(video_features, text_features, labels, scale)
            if "cmc" in heads:
                fixed = self.config.cmc_scale
                cmc_scale = scale if fixed is None else torch.full_like(scale, fixed)
                parts["cmc"] = cosine_loss(video_features, text_features, labels, cmc_scale, *how)
        if self.cmlm is not None:
            parts["cmlm"] = self._masked_word_loss(frame_features, *drawn)
        if logits is not None:
            parts["vc"] = classification_loss(logits, labels, *how)
        terms = [self.config.head_weights[name] * part for name, part in parts.items()]
        terms.extend(parameter.flatten()[0] * 0 for parameter in self._without_gradient())
        return parts, sum(terms, start=video_features.new_zeros(()))

    def _contrastive_loss(self, video: Tensor, text: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        if self.config.contrastive == "softmax":
            return contrastive_loss(video, text, labels, scale)
        assert self.logit_bias is not None  # without one the option is refused
        return sigmoid_loss(video, text, labels, scale, at_least_fp32(self.logit_bias).reshape(()))

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
        return self.cmlm.words.loss(features, targets, word_divisor(targets))

    def _word_head(self, options: M2CLIPOptions) -> CrossModalWordHead:
        if self.visual.stem.feature_width != self.text.width:
            raise InputError(
                f"the cmlm head needs frame features ({self.visual.stem.feature_width}) as wide as text tokens "
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
        stem = self.text.stem
        tied = stem.token_embedding if words is None else None
        head = WordPredictionHead(stem.width, stem.vocab_size if words is None else len(words), tied)
        adapters = _text_adapters(self.text.width, range(1), options)[0]
        return CrossModalWordHead(
            self.text.blocks[-1], stem.ln_final, adapters.get("pre_mlp"), head, adapters.get("pre_attn")
        )

    def _without_gradient(self) -> list[nn.Parameter]:
        """Trained parameters no head's loss reaches; they take part with weight 0, so that DDP does not wait for it.

        The difference branch in front of the last FFN never reaches the class token, which in most towers is all that
        is read after it.
        """
        heads = self.config.heads
        modules: list[nn.Module | None] = []
        last = self.visual.blocks[-1].pre_mlp
        if last is not None and self.visual.stem.reads_class_token:
            modules.append(last.difference)
        if not {"contrastive", "cmc", "cmlm"} & set(heads):
            modules.extend(adapter for block in self.text.blocks for adapter in (block.pre_attn, block.pre_mlp))
        if not {"contrastive", "cmc", "cmlm"} & set(heads) and self.config.vc_input == "class_token":
            modules.append(self.output_adapter)
        if self.cmlm is not None and self.config.mask_rate == 0:
            modules.extend((self.cmlm.adapter, self.cmlm.pre_attn))
        return [parameter for module in modules if module is not None for parameter in module.parameters()]

    def is_text_adapter(self, name: str) -> bool:
        return name.startswith(("text.", "cmlm.adapter.", "cmlm.pre_attn."))


def _ted_adapters(clip: Any, num_frames: int, options: M2CLIPOptions) -> dict[int, dict[str, TEDAdapter]]:
    stem, blocks = open_vision(clip)

    def adapter(block: int) -> TEDAdapter:
        return TEDAdapter(
            stem.width,
            options.width,
            num_frames,
            **layout_of(stem),
            temporal=options.temporal,
            difference=options.difference,
            shared_projection=options.shared_projection,
            sequential=options.sequential,
        )

    return placed(layer_range(options.layers, len(blocks)), PLACEMENTS[options.placement], adapter)


def _text_adapters(dim: int, blocks: range, options: M2CLIPOptions) -> dict[int, dict[str, TextAdapter]]:
    return placed(
        blocks,
        PLACEMENTS[options.text_placement],
        lambda block: TextAdapter(dim, options.text_width, zero_init_up=options.text_zero_init_up),
    )
