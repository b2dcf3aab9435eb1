"""What every method shares: towers, class names, text features, outputs, what is trained and saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2clip.data.lists.class_names import name_list
from m2clip.data.memory import FrameTransform
from m2clip.errors import InputError
from m2clip.kernels import Call
from m2clip.kernels.preparation import prepare_once
from m2clip.methods.losses import Losses
from m2clip.methods.results import LabelSet, Output, same_weights
from m2clip.methods.views import default_settings
from m2clip.towers.block import switched_off
from m2clip.towers.parts import VisionStem
from m2clip.towers.pictures import pictures
from m2clip.towers.precision import PRECISIONS, at_least_fp32
from m2clip.towers.prompts import Prompts, PromptTokenizer, prompt_words
from m2clip.towers.text import TextTower
from m2clip.towers.tokenizers import tokenizer_of
from m2clip.towers.vision import VisionTower, tower_signature

_M = TypeVar("_M", bound=nn.Module)

# Where adapters in front of a block's halves may be, by the option `placement`.
PLACEMENTS = {"pre_attn": ("pre_attn",), "pre_mlp": ("pre_mlp",), "both": ("pre_attn", "pre_mlp")}


def placed(blocks: Iterable[int], places: Iterable[str], make: Callable[[int], _M]) -> dict[int, dict[str, _M]]:
    """Adapters by block and place, as towers take them.

    Args:
        blocks: 0-based indices of the blocks that have adapters.
        places: names of the places in each of them.
        make: makes the adapter of a block, whose index it is given.
    """
    places = tuple(places)
    return {block: {place: make(block) for place in places} for block in blocks}


def layout_of(stem: VisionStem) -> dict[str, Any]:
    """How the tokens of a frame lie in a vision tower, as adapters take it."""
    return {"grid": stem.grid, "num_prefix_tokens": stem.num_prefix_tokens}


class VideoModel(nn.Module):
    """Base of all methods: CLIP's towers with adapters, and a label set in words.

    Args:
        clip: a CLIP of open_clip or transformers; its modules are shared with this model and frozen.
        class_names: C names; the label of a video is an index into them.
        num_frames: T.
        options: the method's options, a dataclass with at least `prompt`, the template with "{}" for the class name.
        tokenizer: by default the CLIP's own.

    Threads may share a model: a call reads the label set once, and `adapters_disabled` holds for its own thread. What
    changes the model itself is for one thread alone: training, `train` and `eval`, `set_precision`, moving it. A thread
    that needs a label set or a mode of its own takes one with :meth:`with_class_names`.

    Shape: video (B, T, 3, H, W), normalised with CLIP's mean and standard deviation -> :class:`Output`.
    """

    method: ClassVar[str]
    config: Any  # the method's options
    visual: VisionTower
    text: TextTower
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None
    class_weights: Tensor | None = None  # (C,) factors on the loss of each class's videos, of mean 1 over the videos

    @property
    def weighs_classes(self) -> bool:
        """Whether any of its losses has the factors `class_weights`."""
        return False

    @property
    def loss_kernels(self) -> tuple[str, ...]:
        """The operations among the kernels that the loss takes, of features in fp32."""
        return ()

    def __init__(
        self,
        clip: Any,
        class_names: Sequence[str],
        num_frames: int,
        options: Any,
        tokenizer: PromptTokenizer | None = None,
    ) -> None:
        super().__init__()
        if num_frames < 1:
            raise InputError(f"num_frames must be at least 1, got {num_frames}")
        self.config, self.num_frames, self.prompt = options, num_frames, options.prompt
        self.tower = tower_signature(clip)
        self.started_from: str | None = None  # digest of the trained weights it started from, see m2clip.train.starting
        self.views = pictures(clip)  # how it is shown videos where nobody says otherwise: fields of ClipSettings
        self.clip_source: dict[str, Any] | None = getattr(clip, "m2clip_source", None)
        self.tokenizer = tokenizer_of(clip, tokenizer)
        self.logit_scale = clip.logit_scale.requires_grad_(False)
        bias = getattr(clip, "logit_bias", None)
        self.logit_bias = None if bias is None else bias.requires_grad_(False)
        self.trained_class_names = name_list(class_names)
        prompts = self.tokenizer.batch(prompt_words(self.trained_class_names, self.prompt))
        self._labels = LabelSet(self.trained_class_names, prompts)

    # ---- video ----

    def forward(self, video: Tensor, class_names: Sequence[str] | LabelSet | None = None) -> Output:
        """What the model says of clips.

        Args:
            video: (B, T, 3, H, W).
            class_names: the label set of this call, as names or, which spares their computation in the next call, what
                :meth:`label_set` made of them; None takes the model's.

        Raises:
            InputError: empty or repeated names.
        """
        labels = self.label_set(class_names)
        frame_features, video_features, logits = self.encode(self._checked(video))
        similarity = self.similarity(video_features, self.text_features(labels))
        return Output(logits if self._trained_on(labels) else None, similarity, video_features, frame_features)

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Frame features (B, T, D_vl), video features (B, D_vl) and the classifier's logits, None without one.

        The logits (B, C) are over the classes the model was built with, whatever its class names are now.
        """
        raise NotImplementedError

    def loss(
        self,
        video: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        drawn: Sequence[Tensor] | None = None,
    ) -> Losses:
        """Training loss of clips.

        Args:
            video: (B, T, 3, H, W).
            labels: (B,) int64, indices into the class names.
            generator: CPU generator of what is drawn; in several processes all must pass generators of the same state.
            drawn: what :meth:`draw` returned for these labels, on the device; None draws it here, for which a GPU has
                to be waited for.

        Raises:
            InputError: if the class names were exchanged, because heads and labels would no longer agree; options that
                leave nothing to train.
        """
        names = self._loss_labels()
        video = self._checked(video)
        drawn = self.draw(labels, generator) if drawn is None else drawn
        parts, total = self._loss(video, labels, names, [part.to(labels.device) for part in drawn])
        return Losses(total, {name: part.detach() for name, part in parts.items()})

    def _loss(
        self, video: Tensor, labels: Tensor, names: LabelSet, drawn: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The parts of the loss by name, and the total; arguments as :meth:`loss` has checked them."""
        raise NotImplementedError

    def draw(self, labels: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """The random part of the loss of labels (B,): CPU tensors whose shapes depend on B alone."""
        return ()

    def similarity(self, video_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, C) cosine similarities times CLIP's logit scale, plus its logit bias where it has one."""
        v, w = (F.normalize(at_least_fp32(features), dim=-1) for features in (video_features, text_features))
        scaled = self.cosine_scale * v @ w.T
        return scaled if self.logit_bias is None else scaled + at_least_fp32(self.logit_bias).reshape(())

    @property
    def cosine_scale(self) -> Tensor:
        """What CLIP multiplies cosines with, 0-d."""
        return at_least_fp32(self.logit_scale).exp().reshape(())

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the frames the vision tower takes."""
        return self.visual.image_size

    @property
    def transform(self) -> FrameTransform:
        """What makes clips of frames: (N, H, W, 3) uint8 of a video -> (views, T, 3, H, W) as the model takes them."""
        return FrameTransform(default_settings(self))

    def kernel_calls(self, dtype: torch.dtype) -> list[Call]:
        """What its loss, which no evaluation needs, asks of the kernels (:func:`m2clip.kernels.prepare`)."""
        if not self.training:
            return []
        features = self.visual.stem.feature_width
        return [Call(op, "few", features, 0, torch.float32) for op in self.loss_kernels]

    def _checked(self, video: Tensor) -> Tensor:
        prepare_once(self, video)
        expected = ("B", self.num_frames, 3, *self.image_size)
        if video.dim() != 5 or tuple(video.shape[1:]) != expected[1:]:
            raise ValueError(f"video must be ({', '.join(map(str, expected))}), got {tuple(video.shape)}")
        if not video.is_floating_point():
            raise TypeError(f"video must hold normalised floats, got {video.dtype}")
        return video

    # ---- label set ----

    @property
    def class_names(self) -> list[str]:
        """The C names that similarities are over."""
        return list(self._labels.names)

    def set_class_names(self, names: Sequence[str]) -> None:
        """Exchange the label set, for all threads: similarities are over the new names from now on.

        Raises:
            InputError: empty or repeated names, or something else than a list of texts.
        """
        self._labels = self.label_set(names)

    def with_class_names(self, names: Sequence[str] | None = None) -> VideoModel:
        """A model of the very same weights with class names, and a mode (`train`, `eval`), of its own.

        It costs milliseconds and next to no memory, so that threads can ask one model about label sets of their own.

        Args:
            names: the class names; None for this model's.

        Raises:
            InputError: empty or repeated names.
        """
        labels = self.label_set(names)
        twin = same_weights(self, {})
        twin._labels = labels
        return twin

    def label_set(self, names: Sequence[str] | LabelSet | None = None) -> LabelSet:
        """Class names as the model reads them, for many calls about them.

        Args:
            names: class names; None for the model's own.

        Raises:
            InputError: empty or repeated names.
        """
        if isinstance(names, LabelSet):
            return names
        own = self._labels
        if names is None or (names := name_list(names)) == list(own.names):
            return own
        return LabelSet(names, self.tokenizer.batch(prompt_words(names, self.prompt)))

    @property
    def knows_labels(self) -> bool:
        """Whether the class names are those the model was built with, so that its classifier and losses apply."""
        return self._trained_on(self._labels)

    def text_features(self, class_names: Sequence[str] | LabelSet | None = None) -> Tensor:
        """(C, D_vl) features of class names, as :meth:`forward` takes them, before normalisation."""
        prompts, hidden = self._frozen_text(self.label_set(class_names))
        return self.text.project(self.text.adapted_part(hidden, prompts.tokens, prompts.positions)[:, 0])

    def fill_caches(self) -> None:
        """Compute once what depends on frozen weights and the label set alone, so that no step has to."""
        self._frozen_text(self._labels)

    def _trained_on(self, labels: LabelSet) -> bool:
        return list(labels.names) == self.trained_class_names

    def _loss_labels(self) -> LabelSet:
        """The label set, which a loss needs to be that of the heads."""
        labels = self._labels
        if not self._trained_on(labels):
            raise InputError("the class names were exchanged; training needs those the model was built with")
        return labels

    def _frozen_text(self, labels: LabelSet) -> tuple[Prompts, Tensor]:
        """A label set's prompts and hidden states up to the first text adapter, computed once."""
        device, cached = self.text.stem.device, labels.frozen
        if cached is None or cached[1].device != device or cached[1].dtype != self.text.stem.dtype:
            prompts = labels.prompts.to(device)
            # What one call's autocast has rounded would stay for all others.
            with nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False):
                cached = prompts, self.text.frozen_part(prompts.tokens, prompts.positions)
            if not torch.compiler.is_compiling():  # what is computed there are no numbers
                labels.frozen = cached
        return cached

    # ---- training and saving ----

    def set_precision(self, precision: str) -> None:
        """Keep frozen weights, and so all tower activations, in "fp32", "bf16" or "fp16"; trained weights stay fp32.

        Half the memory of autocast and no weight to be cast in a step, but the residual stream is rounded too: in bf16
        the features' error is about twice that of autocast. Layer norms and softmax still compute in fp32, adapters
        accumulate in fp32, heads and losses are fp32. What was rounded stays so, also after "fp32".

        Raises:
            InputError: an unknown precision.
        """
        if precision not in PRECISIONS:
            raise InputError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
        batch_norms = (module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
        # Batch norms need weights of the type of their statistics, which are fp32.
        kept = {id(parameter) for norm in batch_norms for parameter in norm.parameters()}
        kept |= {id(self.logit_scale), id(self.logit_bias)}
        for parameter in self.parameters():
            if not parameter.requires_grad and id(parameter) not in kept:
                parameter.data = parameter.data.to(PRECISIONS[precision])
        self._labels = LabelSet(self._labels.names, self._labels.prompts)  # of the new weights nothing is computed yet

    def recompute(self, blocks: int) -> None:
        """Compute blocks again in the backward pass, whose activations then need not be kept: less memory, more time.

        Losses and gradients stay the same, bit for bit, unless a compiler fuses them in another way.

        Args:
            blocks: how many of each tower, counted from the first block that has a gradient; more than there are: all.
        """
        self.visual.recomputed = self.text.recomputed = blocks

    @property
    def precision(self) -> str:
        """What frozen weights are kept in: "fp32", "bf16", "fp16", or "fp64"."""
        dtype = self.visual.dtype
        return next((name for name, own in PRECISIONS.items() if own == dtype), "fp64")

    def adapters_disabled(self, *which: str) -> AbstractContextManager[None]:
        """Within the context the towers named "visual" and "text" (by default both) run without their adapters.

        That holds for the thread that is in the context, and for calls of the model itself and of models that
        :meth:`with_class_names` made of it.

        Raises:
            InputError: another name.
        """
        towers: dict[str, VisionTower | TextTower] = {"visual": self.visual, "text": self.text}
        unknown = [name for name in which if name not in towers]
        if unknown:
            raise InputError(f'adapters can be disabled in "visual" and "text", not in {unknown[0]!r}')
        return switched_off([towers[name].switch for name in which or towers])

    def options(self) -> dict[str, Any]:
        """The method's options as plain values: what rebuilds this model."""
        return asdict(self.config)

    def trained_state_dict(self) -> dict[str, Tensor]:
        """Exactly the tensors that training changes."""
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}

    def load_trained_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over trained tensors; nothing is changed unless all of them fit.

        Raises:
            InputError: missing, unexpected or differently shaped tensors, named.
        """
        own = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        for problem, names in (("missing", own.keys() - tensors.keys()), ("unexpected", tensors.keys() - own.keys())):
            if names:
                raise InputError(f"{len(names)} {problem} tensors, among them {sorted(names)[0]!r}")
        for name, parameter in own.items():
            if tensors[name].shape != parameter.shape:
                raise InputError(f"{name!r} has shape {tuple(tensors[name].shape)}, expected {tuple(parameter.shape)}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])

    def print_trainable_parameters(self) -> None:
        """Print how many parameters training changes, of how many."""
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters()]
        trained, total = sum(count for count, wanted in counts if wanted), sum(count for count, _ in counts)
        print(f"{trained:,} of {total:,} parameters are trained ({100 * trained / max(total, 1):.2f} %)")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of the authors' recipe: text adapters learn at half the rate, biases do not decay."""
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                kind = "text_adapter" if self.is_text_adapter(name) else "main"
                groups.setdefault((kind, not name.endswith("bias")), []).append(parameter)
        return [
            {
                "name": kind if decay else f"{kind}_bias",
                "params": params,
                "lr_scale": 0.5 if kind == "text_adapter" else 1.0,
                "weight_decay": decay,
            }
            for (kind, decay), params in groups.items()
        ]

    def one_group(self) -> list[dict[str, Any]]:
        """One group for :meth:`parameter_groups`: everything learns at one rate and decays, biases too."""
        params = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"name": "main", "params": params, "lr_scale": 1.0, "weight_decay": True}]

    def is_text_adapter(self, name: str) -> bool:
        """Whether a parameter, by its name, belongs to the text adapters' group."""
        return name.startswith("text.")
