"""What every method shares: towers, class names, text features, outputs, what is trained and saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2clip.errors import InputError
from m2clip.losses import Losses
from m2clip.text import Prompts, PromptTokenizer, prompt_words
from m2clip.towers import TextTower, VisionTower, tower_signature

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Output:
    """What a model says of B clips of T frames.

    logits: (B, C) of the visual classification head, None where there is none for the current class names.
    similarity: (B, C) scaled cosine of the video with every class text. video_features: (B, D_vl).
    frame_features: (B, T, D_vl).
    """

    logits: Tensor | None
    similarity: Tensor
    video_features: Tensor
    frame_features: Tensor


class VideoModel(nn.Module):
    """Base of all methods: CLIP's towers with adapters, and a label set in words.

    Args:
        clip: an open_clip CLIP; its modules are shared with this model and frozen.
        class_names: C names; the label of a video is an index into them.
        num_frames: T.
        prompt: template with "{}" for the class name.
        tokenizer: by default CLIP's own.

    Shape: video (B, T, 3, H, W), normalised with CLIP's mean and standard deviation -> :class:`Output`.
    """

    method: ClassVar[str]
    visual: VisionTower
    text: TextTower
    logit_scale: nn.Parameter

    def __init__(
        self,
        clip: Any,
        class_names: Sequence[str],
        num_frames: int,
        prompt: str,
        tokenizer: PromptTokenizer | None,
    ) -> None:
        super().__init__()
        self.precision = "fp32"  # what frozen weights are kept in, see set_precision
        if num_frames < 1:
            raise InputError(f"num_frames must be at least 1, got {num_frames}")
        self.num_frames, self.prompt = num_frames, prompt
        self.tower = tower_signature(clip)
        self.clip_source: dict[str, Any] | None = getattr(clip, "m2clip_source", None)
        self.tokenizer = tokenizer or PromptTokenizer(clip.context_length)
        self.logit_scale = clip.logit_scale.requires_grad_(False)
        self.trained_class_names = list(class_names)
        self._set_names(class_names)

    # ---- video ----

    def forward(self, video: Tensor) -> Output:
        frame_features, video_features, logits = self.encode(self._checked(video))
        similarity = self.similarity(video_features, self.text_features())
        return Output(logits, similarity, video_features, frame_features)

    def encode(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Frame features (B, T, D_vl), video features (B, D_vl) and classification logits (B, C) or None."""
        raise NotImplementedError

    def loss(
        self,
        video: Tensor,
        labels: Tensor,
        generator: torch.Generator | None = None,
        drawn: Sequence[Tensor] | None = None,
    ) -> Losses:
        """Training loss of clips (B, T, 3, H, W) with labels (B,) int64.

        drawn: what :meth:`draw` returned for these labels, on the device; None draws it here with the generator, for
        which a GPU has to be waited for.
        """
        raise NotImplementedError

    def draw(self, labels: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """The random part of the loss of labels (B,) on the CPU: CPU tensors whose shapes depend on B alone."""
        return ()

    def similarity(self, video_features: Tensor, text_features: Tensor) -> Tensor:
        """(B, C) cosine similarities times CLIP's logit scale."""
        scale = self.logit_scale.float().exp()
        return scale * F.normalize(video_features.float(), dim=-1) @ F.normalize(text_features.float(), dim=-1).T

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the frames the vision tower takes."""
        return self.visual.image_size

    def _checked(self, video: Tensor) -> Tensor:
        expected = ("B", self.num_frames, 3, *self.image_size)
        if video.dim() != 5 or tuple(video.shape[1:]) != expected[1:]:
            raise ValueError(f"video must be ({', '.join(map(str, expected))}), got {tuple(video.shape)}")
        if not video.is_floating_point():
            raise TypeError(f"video must hold normalised floats, got {video.dtype}")
        return video

    # ---- label set ----

    def set_class_names(self, names: Sequence[str]) -> None:
        """Exchange the label set: similarities are over the new names from now on.

        Raises:
            InputError: empty or repeated names.
        """
        self._set_names(names)

    @property
    def knows_labels(self) -> bool:
        """Whether the class names are those the model was built with, so that its classifier and losses apply."""
        return self.class_names == self.trained_class_names

    def text_features(self) -> Tensor:
        """(C, D_vl) features of the current class names, before normalisation."""
        prompts, hidden = self._frozen_text()
        return self.text.project(self.text.adapted_part(hidden, prompts.positions)[:, 0])

    def fill_caches(self) -> None:
        """Compute once what depends on frozen weights and the label set alone, so that no step has to."""
        self._frozen_text()

    def _set_names(self, names: Sequence[str]) -> None:
        words = prompt_words(names, self.prompt)
        self.class_names = list(names)
        self._prompts = self.tokenizer.batch(words)
        self._text_cache: tuple[Prompts, Tensor] | None = None

    def _frozen_text(self) -> tuple[Prompts, Tensor]:
        """The label set's prompts and hidden states up to the first text adapter, computed once."""
        weight = self.text.ln_final.weight
        cached = self._text_cache
        if cached is None or cached[1].device != weight.device or cached[1].dtype != weight.dtype:
            prompts = self._prompts.to(weight.device)
            cached = prompts, self.text.frozen_part(prompts.tokens, prompts.positions)
            self._text_cache = cached
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
        for parameter in self.parameters():
            if not parameter.requires_grad and parameter is not self.logit_scale:
                parameter.data = parameter.data.to(PRECISIONS[precision])
        self.precision = precision
        self._text_cache = None

    @contextmanager
    def adapters_disabled(self, *which: str) -> Iterator[None]:
        """Within the context the towers named "visual" and "text" (by default both) run without their adapters."""
        towers: dict[str, VisionTower | TextTower] = {"visual": self.visual, "text": self.text}
        unknown = [name for name in which if name not in towers]
        if unknown:
            raise InputError(f'adapters can be disabled in "visual" and "text", not in {unknown[0]!r}')
        chosen = [towers[name] for name in which or towers]
        before = [tower.adapters_enabled for tower in chosen]
        try:
            for tower in chosen:
                tower.adapters_enabled = False
            yield
        finally:
            for tower, enabled in zip(chosen, before, strict=True):
                tower.adapters_enabled = enabled

    def options(self) -> dict[str, Any]:
        """The method's options as plain values: what rebuilds this model."""
        raise NotImplementedError

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

    def is_text_adapter(self, name: str) -> bool:
        """Whether a parameter, by its name, belongs to the text adapters' group."""
        return name.startswith("text.")
