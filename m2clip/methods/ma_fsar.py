"""MA-FSAR (also MA-CLIP): few-shot recognition by episodes, with the text of a class in its support videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2clip.adapters.ma_fsar import BlockLayout, MultimodalAdapters
from m2clip.data.episodes import EpisodeShape
from m2clip.errors import InputError
from m2clip.kernels import cosine_cross_entropy
from m2clip.matching import TRX, bi_mhm, frame_distances, otam
from m2clip.methods.base import VideoModel, placed
from m2clip.methods.options import check_choices
from m2clip.methods.prototypes import GUIDANCE, NORMS, PrototypeLayer
from m2clip.methods.results import LabelSet
from m2clip.towers.block import layer_range
from m2clip.towers.multimodal import PLACE, MultimodalVisionTower
from m2clip.towers.precision import at_least_fp32
from m2clip.towers.prompts import PromptTokenizer
from m2clip.towers.sources import open_vision
from m2clip.towers.text import TextTower

PARTS = ("multimodal", "temporal", "joint")
ACTIONCLIP_SHARPNESS = 10.0  # of the soft targets in ActionCLIP's code


@dataclass
class MAFSAROptions:
    """Everything that distinguishes one MA-FSAR from another; defaults follow the paper's figures.

    Attributes:
        adapt: whether the encoder is adapted at all.
        parts: which adaptations a block has (Table 4): "multimodal", "temporal", "joint".
        text_tokens: whether support videos have a text token (Table 5).
        layers: "all", "none" or a 1-based range of blocks such as "7-12".
        ratio: bottleneck width over token width.
        num_t_adapters: 1, or 2 (AIM's for Something-Something v2).
        temporal_skip: see :class:`m2clip.adapters.ma_fsar.BlockLayout`.
        temporal_residual: see there.
        write_back: see there.
        text_fc: "per_block" or "shared".
        normalize_text: whether Text FC and prototypes are given unit text features.
        joint_scale: s.
        temporal_embedding: whether there is AIM's, of (T, D) numbers.
        prototype: "tpcm", the alternatives of Table 6, "multimodal" and "unimodal", or "none" for frame features as
            they are.
        tpcm_norm: see :class:`m2clip.methods.prototypes.PrototypeLayer`.
        tpcm_residual: see there.
        tpcm_heads: see there.
        attention_dropout: see there.
        ffn_dropout: see there.
        merge: shots of a class become one by the mean of their "features", in front of the prototypes, or of their
            "distances".
        metric: "otam", "bi_mhm" or "trx" (Table 7).
        smoothing: OTAM's lambda, 0 for the hard minimum.
        alpha: weight of what compares with text, 0 to 1.
        tau: temperature of the cosines, None for CLIP's own.
        learn_tau: whether its inverse is trained.
        kl: text losses with "one_hot" targets, or those of "actionclip"'s code, which are soft and whose divergence is
            summed over the videos and divided by the classes.
        text_classes: the classes that these losses tell apart: those of the "episode" or "all".
        prompt: template of the class texts.
    """

    adapt: bool = True
    parts: tuple[str, ...] = PARTS
    text_tokens: bool = True
    layers: str = "all"
    ratio: float = 0.25
    num_t_adapters: int = 1
    temporal_skip: bool = False
    temporal_residual: bool = True
    write_back: bool = False
    text_fc: str = "per_block"
    normalize_text: bool = False
    joint_scale: float = 1.0
    temporal_embedding: bool = True
    prototype: str = "tpcm"
    tpcm_norm: str = "pre"
    tpcm_residual: str = "sum"
    tpcm_heads: int = 8
    attention_dropout: float = 0.2
    ffn_dropout: float = 0.05
    merge: str = "features"
    metric: str = "otam"
    smoothing: float = 0.5
    alpha: float = 0.5
    tau: float | None = None
    learn_tau: bool = False
    kl: str = "one_hot"
    text_classes: str = "episode"
    prompt: str = "a photo of {}"

    def __post_init__(self) -> None:
        self.parts = tuple(self.parts)
        check_choices(
            *(("parts", part, PARTS) for part in self.parts),
            ("num_t_adapters", self.num_t_adapters, (1, 2)),
            ("text_fc", self.text_fc, ("per_block", "shared")),
            ("prototype", self.prototype, (*GUIDANCE, "none")),
            ("tpcm_norm", self.tpcm_norm, NORMS),
            ("tpcm_residual", self.tpcm_residual, ("sum", "frames")),
            ("merge", self.merge, ("features", "distances")),
            ("metric", self.metric, ("otam", "bi_mhm", "trx")),
            ("kl", self.kl, ("one_hot", "actionclip")),
            ("text_classes", self.text_classes, ("episode", "all")),
        )
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha must lie between 0 and 1, not {self.alpha}")
        if self.smoothing < 0 or self.ratio <= 0 or (self.tau is not None and self.tau <= 0):
            raise InputError("ratio and tau must be above 0, smoothing at least 0")
        if self.tpcm_heads < 1:
            raise InputError(f"tpcm_heads must be at least 1, not {self.tpcm_heads}")
        if not (0 <= self.attention_dropout < 1 and 0 <= self.ffn_dropout < 1):
            raise InputError("attention_dropout and ffn_dropout must be at least 0 and below 1")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # Table 3: both parts, each alone, and neither, which is frozen CLIP with OTAM.
    "tpcm": {"adapt": False},
    "adaptation": {"prototype": "none"},
    "frozen": {"adapt": False, "prototype": "none", "alpha": 0.0},
}


class EpisodeScores(NamedTuple):
    """What a model says of the Q queries of E episodes, each (E, Q, way).

    Attributes:
        probabilities: of the classes of the episode.
        distances: of query and prototypes.
        text_logits: scaled cosines with the class texts.
    """

    probabilities: Tensor
    distances: Tensor
    text_logits: Tensor


class MAFSAR(VideoModel):
    """MA-FSAR. See :class:`MAFSAROptions` and, for shapes of single videos, :class:`VideoModel`.

    Attributes:
        episode: how many videos a training batch has of what; its layout is that of :mod:`m2clip.data.episodes`.

    Source: MA-FSAR (arXiv 2308.01532; Pattern Recognition 2025), called MA-CLIP in its first version.
    """

    method = "ma_fsar"
    visual: MultimodalVisionTower
    inverse_tau: Tensor | None  # None where CLIP's logit scale stands

    def __init__(
        self,
        clip: Any,
        class_names: Sequence[str],
        num_frames: int,
        options: MAFSAROptions,
        tokenizer: PromptTokenizer | None = None,
    ) -> None:
        super().__init__(clip, class_names, num_frames, options, tokenizer)
        self.episode = EpisodeShape(way=5, shots=1, queries=5)
        embedding = num_frames if options.adapt and options.temporal_embedding else None
        self.visual = MultimodalVisionTower(clip, _adapters(clip, options), embedding)
        self.text = TextTower(clip, {})
        dim = self.visual.stem.feature_width
        try:
            self.prototype = None if options.prototype == "none" else _prototype_layer(dim, options)
            self.trx = TRX(dim, num_frames) if options.metric == "trx" else None
        except ValueError as error:
            raise InputError(f"the options of ma_fsar do not fit: {error}") from None
        inverse_tau = None if options.tau is None else torch.tensor(1 / options.tau)
        if options.learn_tau:
            start = self.cosine_scale.detach().clone() if inverse_tau is None else inverse_tau
            self.inverse_tau = nn.Parameter(start)
        else:
            self.register_buffer("inverse_tau", inverse_tau, persistent=False)

    # ---- videos ----

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        frame_features = self._frame_features(video, None)
        return frame_features, frame_features.mean(dim=1), None

    def encode_query(self, video: Tensor) -> Tensor:
        """Frame features (M, T, D_vl) of query videos (M, T, 3, H, W)."""
        return self._frame_features(self._checked(video), None)

    def encode_support(self, video: Tensor, labels: Tensor) -> Tensor:
        """Frame features (M, T, D_vl) of support videos (M, T, 3, H, W), each read with the text of its class.

        Args:
            video: (M, T, 3, H, W).
            labels: (M,) int64, indices into the current class names.
        """
        return self._frame_features(self._checked(video), self.text_features()[labels])

    def _frame_features(self, video: Tensor, text: Tensor | None) -> Tensor:
        """(V, T, D_vl), with the text features (S, D_vl) of the classes of the first S videos."""
        text = None if text is None else self._guide(text)
        return at_least_fp32(self.visual.project(self.visual(video, text)))

    def _guide(self, text: Tensor) -> Tensor:
        """Text features as Text FC and prototypes read them."""
        return F.normalize(at_least_fp32(text), dim=-1) if self.config.normalize_text else at_least_fp32(text)

    # ---- episodes ----

    def score(self, support: Tensor, query: Tensor, text: Tensor) -> EpisodeScores:
        """Classify the queries of E episodes at once.

        Args:
            support: frame features (E, way, shots, T, D_vl) of :meth:`encode_support`.
            query: frame features (E, Q, T, D_vl) of :meth:`encode_query`.
            text: features (E, way, D_vl) of the classes, from :meth:`text_features`.

        Raises:
            ValueError: tensors that do not fit together.
        """
        (episodes, way), dim = support.shape[:2], support.shape[-1]
        fits = support.dim() == 5 and query.dim() == 4 and support.shape[-2:] == query.shape[-2:]
        if not fits or len(query) != episodes or text.shape != (episodes, way, dim):
            raise ValueError(
                "score takes support (E, way, shots, T, D), query (E, Q, T, D) and text (E, way, D), "
                f"not {tuple(support.shape)}, {tuple(query.shape)} and {tuple(text.shape)}"
            )
        distances = self.distances(support, query, text)
        text_logits = self.similarity(query.mean(dim=-2), text)
        alpha = self.config.alpha
        by_support, by_text = (-distances).softmax(dim=-1), text_logits.softmax(dim=-1)
        return EpisodeScores(alpha * by_text + (1 - alpha) * by_support, distances, text_logits)

    def distances(self, support: Tensor, query: Tensor, text: Tensor) -> Tensor:
        """(..., Q, way) from each query to each class, of support (..., way, shots, T, D_vl), query (..., Q, T, D_vl)
        and text (..., way, D_vl)."""
        way, shots = support.shape[-4:-2]
        text = self._guide(text)
        if self.config.merge == "features":
            support = support.mean(dim=-3)
        else:
            support = support.flatten(-4, -3)
            text = text.repeat_interleave(shots, dim=-2)
        if self.prototype is not None:
            support, query = self.prototype(support, text), self.prototype(query)
        distances = self._distances(query, support)
        return distances if self.config.merge == "features" else distances.unflatten(-1, (way, shots)).mean(dim=-1)

    def _distances(self, query: Tensor, support: Tensor) -> Tensor:
        """(..., Q, N), of query (..., Q, T, D_vl) and support (..., N, T, D_vl)."""
        if self.trx is not None:
            return self.trx(query, support)
        frames = frame_distances(query, support)
        return otam(frames, self.config.smoothing) if self.config.metric == "otam" else bi_mhm(frames)

    def similarity(self, video_features: Tensor, text_features: Tensor) -> Tensor:
        """(..., Q, C) cosines of video features (..., Q, D_vl) and text features (..., C, D_vl), over tau."""
        v, w = (F.normalize(at_least_fp32(features), dim=-1) for features in (video_features, text_features))
        return self._text_scale() * v @ w.transpose(-2, -1)

    def _text_scale(self) -> Tensor:
        """1 / tau, 0-d."""
        return self.cosine_scale if self.inverse_tau is None else self.inverse_tau

    # ---- training ----

    def _loss(
        self, video: Tensor, labels: Tensor, names: LabelSet, drawn: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Loss of one episode: ``alpha * (L_S2T + L_Q2T) / 2 + (1 - alpha) * L_Q2S``.

        The videos are those of an episode, support first, as `episode` and :mod:`m2clip.data.episodes` lay them out;
        another number is a ValueError. Labels are indices into the current class names.
        """
        shape = self.episode
        if len(video) != shape.videos:
            raise ValueError(f"an episode has {shape.videos} videos ({shape}), got {len(video)}")
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise InputError('these options leave nothing to train: set adapt to true or prototype to "tpcm"')
        class_texts = self.text_features(names)
        classes, of_support = labels[: shape.support : shape.shots], labels[: shape.support]
        frames = self._frame_features(video, class_texts[of_support])
        support, query = frames[: shape.support], frames[shape.support :]

        places = torch.arange(shape.way, device=labels.device)
        asked = places.repeat_interleave(shape.queries)
        distances = self.distances(support.unflatten(0, (shape.way, shape.shots)), query, class_texts[classes])
        if self.config.text_classes == "all":
            texts, support_targets, query_targets = class_texts, of_support, labels[shape.support :]
        else:
            texts, support_targets, query_targets = class_texts[classes], places.repeat_interleave(shape.shots), asked
        parts = {
            "q2s": F.cross_entropy(-distances, asked),
            "q2t": self._text_loss(query, texts, query_targets),
            "s2t": self._text_loss(support, texts, support_targets),
        }
        alpha = self.config.alpha
        total = alpha * (parts["s2t"] + parts["q2t"]) / 2 + (1 - alpha) * parts["q2s"]
        return parts, total

    @property
    def loss_kernels(self) -> tuple[str, ...]:
        return ("cosine_cross_entropy",) if self.config.kl == "one_hot" else ()

    def _loss_labels(self) -> LabelSet:
        return self._labels  # episodes are of whatever classes there are now

    def _text_loss(self, frames: Tensor, texts: Tensor, targets: Tensor) -> Tensor:
        """KL(y || p) of videos (B, T, D_vl) over class texts (C, D_vl); with one-hot y it is the cross-entropy."""
        features, texts = frames.mean(dim=1), at_least_fp32(texts)
        if self.config.kl == "one_hot":
            return cosine_cross_entropy(features, texts, targets, self._text_scale())
        classes = torch.arange(len(texts), device=targets.device)
        soft = (ACTIONCLIP_SHARPNESS * (targets[:, None] == classes).float()).softmax(dim=-1)
        predicted = self.similarity(features, texts).log_softmax(dim=-1)
        return F.kl_div(predicted, soft, reduction="sum") / len(texts)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.one_group()  # as in CLIP-FSAR's code


def _adapters(clip: Any, options: MAFSAROptions) -> dict[int, dict[str, nn.Module]]:
    if not options.adapt or not options.parts:
        return {}
    stem, blocks = open_vision(clip)
    if "temporal" in options.parts and stem.num_prefix_tokens == 0:
        raise InputError(
            'ma_fsar\'s part "temporal" compares the class tokens of frames, which this vision tower has not: set '
            'parts to "multimodal" and "joint"'
        )
    layout = BlockLayout(
        **{part: part in options.parts for part in PARTS},
        text=options.text_tokens,
        temporal_adapters=options.num_t_adapters,
        temporal_skip=options.temporal_skip,
        temporal_residual=options.temporal_residual,
        write_back=options.write_back,
        joint_scale=options.joint_scale,
    )

    def text_fc() -> nn.Linear:
        return nn.Linear(stem.feature_width, stem.width)

    shared = text_fc() if options.text_fc == "shared" else None
    width = max(1, round(stem.width * options.ratio))
    return placed(
        layer_range(options.layers, len(blocks)),
        (PLACE,),
        lambda block: MultimodalAdapters(stem.width, width, layout, shared or text_fc()),
    )


def _prototype_layer(dim: int, options: MAFSAROptions) -> PrototypeLayer:
    return PrototypeLayer(
        dim,
        options.prototype,
        heads=options.tpcm_heads,
        norm=options.tpcm_norm,
        residual=options.tpcm_residual,
        attention_dropout=options.attention_dropout,
        ffn_dropout=options.ffn_dropout,
    )
