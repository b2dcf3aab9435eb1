"""M2-CLIP in every formulation that train_speed.py and inference_speed.py time, on the same weights and inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import m2clip
from benchmarks.authors import AuthorsM2CLIP, total_loss
from m2clip import kernels
from m2clip.adapters import TEDAdapter
from m2clip.checkpoints.convert import to_authors_state
from m2clip.data.lists.label_sets import load_class_names
from m2clip.towers.prompts import IGNORE
from m2clip.train.setup import LossModule
from m2clip.train.stepping import RecordedPass, compile_loss, cuda_capture

AUTHORS, AUTHORS_COMPILED = "authors", "authors compiled"
REFERENCE, OURS = "m2clip reference", "m2clip"  # ours without and with accelerated kernels
COMPILED, GRAPH, COMPILED_GRAPH = "m2clip compiled", "m2clip CUDA graph", "m2clip compiled, CUDA graph"
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of losses and similarities that should be equal
LEARNING_RATE = 0.0  # the optimiser does all its work, and every step starts from the same weights


class Variant(NamedTuple):
    """How a formulation is run; backend: None for the authors', else whose kernels ours takes."""

    backend: str | None
    compiled: bool = False
    graphed: bool = False


VARIANTS = {
    AUTHORS: Variant(None),
    REFERENCE: Variant("reference"),
    "m2clip triton": Variant("triton"),
    "m2clip cuda": Variant("cuda"),
    OURS: Variant("auto"),
    GRAPH: Variant("auto", graphed=True),
    COMPILED: Variant("auto", compiled=True),
    AUTHORS_COMPILED: Variant(None, compiled=True),
    COMPILED_GRAPH: Variant("auto", compiled=True, graphed=True),
}
CPU_VARIANTS = (AUTHORS, REFERENCE, OURS)


def runnable(device: torch.device) -> tuple[list[str], dict[str, str]]:
    """Variants that a device can run, and why it cannot run each of the others."""
    states, found, not_run = kernels.backend_states(), [], {}
    for name, variant in VARIANTS.items():
        state = states.get(variant.backend or "")
        if variant.graphed and device.type != "cuda":
            not_run[name] = "a CUDA graph needs a GPU"
        elif state is not None and not state.available:
            not_run[name] = state.reason
        elif variant.backend in ("triton", "cuda") and device.type != "cuda":
            not_run[name] = "its kernels need a GPU"
        else:
            found.append(name)
    return found, not_run


class Problem:
    """Weights and inputs that all variants share; every variant has trained tensors of its own.

    Args:
        clip: open_clip architecture; its weights are random, because time does not depend on them.
        frames: T. batch: B, clips. classes: a label set.
        device: where everything is.
        dtype: "float32", or "bfloat16": the frozen weights are kept in it, and what the authors train is autocast.
    """

    def __init__(self, clip: str, frames: int, batch: int, classes: str, device: torch.device, dtype: str) -> None:
        torch.manual_seed(0)
        self.frames, self.device, self.precision = frames, device, PRECISIONS[dtype]
        self.names = load_class_names(classes)
        self.clip = m2clip.load_clip(clip, None).to(device)
        model = self._build()
        with torch.no_grad():  # away from the start, where convolutions are zeros, which multiply faster than numbers
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        self.state = {name: tensor.to("cpu", copy=True) for name, tensor in model.trained_state_dict().items()}
        self.word_count = 0 if model.config.word_list is None else len(model.config.word_list)
        self.prompts = model.label_set().prompts.tokens
        self.video = torch.randn(batch, frames, 3, *model.image_size, device=device)
        self.labels = torch.arange(batch, device=device) % len(self.names)
        drawn = model.draw(self.labels.cpu(), torch.Generator().manual_seed(0))
        self.drawn = tuple(tensor.to(device) for tensor in drawn)

    def step(self, name: str) -> Callable[[], Tensor]:
        """A training step: forward, backward and AdamW; returns the loss."""
        variant = VARIANTS[name]
        return self._authors_step(variant) if variant.backend is None else self._our_step(variant)

    def forward(self, name: str) -> Callable[[], Tensor]:
        """A forward pass for evaluation; returns the similarities (B, C)."""
        variant = VARIANTS[name]
        return self._authors_forward(variant) if variant.backend is None else self._our_forward(variant)

    # ---- ours ----

    def model(self) -> Any:
        """An M2-CLIP of its own adapters on the shared CLIP."""
        model = self._build()
        model.load_trained_state_dict(self.state)
        return model

    def _build(self) -> Any:
        model = m2clip.create_model("m2clip", self.clip, self.names, self.frames, vc_dropout=0.0).to(self.device)
        if self.precision != "fp32":
            model.set_precision(self.precision)
        return model

    def _our_step(self, variant: Variant) -> Callable[[], Tensor]:
        model = self.model().train()
        loss, inputs = LossModule(model), (self.video, self.labels, *self.drawn)
        if variant.compiled:
            compile_loss(loss, "default", variant.graphed)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

        def run_pass(inputs: Any, share: Tensor | float) -> Tensor:
            total, _ = loss(*inputs)
            (total * share).backward()
            return total.detach()

        run = RecordedPass(run_pass, trained, cuda_capture) if variant.graphed else run_pass

        def step() -> Tensor:
            with backend_of(model, variant):
                total = run(inputs, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=not variant.graphed)
            return total

        return step

    def _our_forward(self, variant: Variant) -> Callable[[], Tensor]:
        model = self.model().eval()
        if variant.compiled:
            with torch.no_grad():
                model.text_features()
            model.compile(dynamic=False, fullgraph=True)

        def forward() -> Tensor:
            with torch.no_grad(), backend_of(model, variant):
                return model(self.video).similarity

        return recorded_forward(forward) if variant.graphed else forward

    # ---- the authors' ----

    def _theirs(self) -> AuthorsM2CLIP:
        theirs = AuthorsM2CLIP(self.clip, self.frames, len(self.names), self.word_count).to(self.device)
        theirs.load_state_dict(to_authors_state(self.model()))
        return theirs

    def _autocast(self) -> Any:
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device.type, torch.bfloat16)

    def _whole(self, tokens: Tensor) -> Tensor:
        """Token ids of prompts at their full length."""
        return F.pad(tokens, (0, self.clip.context_length - tokens.shape[1])).to(self.device)

    def _authors_step(self, variant: Variant) -> Callable[[], Tensor]:
        theirs, labels, dtype = self._theirs(), self.labels, self.clip.visual.conv1.weight.dtype
        tokens, positions, targets = self.drawn
        classes, masked = self._whole(self.prompts), self._whole(tokens)
        words = torch.full_like(masked, IGNORE).scatter(1, positions, targets)
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=LEARNING_RATE, fused=True)
        scale = self.clip.logit_scale.exp().item()
        losses = torch.compile(theirs.losses, dynamic=False) if variant.compiled else theirs.losses

        def step() -> Tensor:
            with self._autocast():
                parts = losses(self.video.to(dtype), labels, classes, classes[labels], masked, words, scale)
            total = total_loss(parts)
            total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return total.detach()

        return step

    def _authors_forward(self, variant: Variant) -> Callable[[], Tensor]:
        """With the class texts computed once, as nobody would do otherwise."""
        theirs, dtype = self._theirs().eval(), self.clip.visual.conv1.weight.dtype
        with torch.no_grad(), self._autocast():
            texts = F.normalize(theirs.encode_text(self._whole(self.prompts))[1].float(), dim=-1)
        scale = self.clip.logit_scale.exp().item()

        def similarities(video: Tensor) -> Tensor:
            return scale * F.normalize(theirs.encode_video(video)[1].mean(dim=1).float(), dim=-1) @ texts.T

        run = torch.compile(similarities, dynamic=False) if variant.compiled else similarities

        def forward() -> Tensor:
            with torch.no_grad(), self._autocast():
                return run(self.video.to(dtype)).float()

        return forward


@contextmanager
def backend_of(model: Any, variant: Variant) -> Iterator[None]:
    """Kernels of a variant; those in CUDA C++ are of the vision adapters alone, and Triton's stand beside them."""
    for module in model.modules():
        if isinstance(module, TEDAdapter):
            module.backend = "cuda" if variant.backend == "cuda" else "auto"
    with kernels.use_backend("triton" if variant.backend == "cuda" else str(variant.backend)):
        yield


def recorded_forward(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A forward pass as a CUDA graph."""
    found: list[Tensor] = []

    def run() -> None:
        found[:] = [forward()]

    replay = cuda_capture(run)

    def again() -> Tensor:
        replay()
        return found[0].clone()

    return again
