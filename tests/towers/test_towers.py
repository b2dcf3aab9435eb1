"""The opened towers give what open_clip gives, with all their savings."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import m2clip
from m2clip.data.lists.label_sets import load_class_names
from m2clip.errors import InputError
from m2clip.towers import block as towers
from m2clip.towers.activations import quick_gelu
from m2clip.towers.block import layer_range
from m2clip.towers.prompts import PromptTokenizer, prompt_words
from m2clip.towers.text import TextTower
from m2clip.towers.vision import VisionTower
from tests.clips import NAMES, random_video, randomise, small_clip


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu", "ViT-L-14"])
def test_untrained_model_is_the_frame_average_of_its_clip(name):
    torch.manual_seed(0)
    clip = m2clip.load_clip(name, None)
    names = load_class_names("ucf101")[:8]
    presets = ("official", "paper")
    models = [m2clip.create_model("m2clip", clip, names, 2, preset=preset).eval() for preset in presets]
    video = random_video(1, 2, 224)
    tokens = open_clip.get_tokenizer(name)([" ".join(words) for words in prompt_words(names, "a video of {}")])
    with torch.no_grad():
        frames = clip.encode_image(video.flatten(0, 1))[None]
        text = clip.encode_text(tokens)
        for model in models:
            out = model(video)
            for ours, theirs in (
                (out.frame_features, frames),
                (out.video_features, frames.mean(dim=1)),
                (model.text_features(), text),
            ):
                assert relative(ours, theirs) <= 1e-6
        # What fp32 leaves open after up to 24 layers of rounding, fp64 decides. The models share their CLIP's weights.
        clip.double()
        exact = clip.encode_image(video.flatten(0, 1).double())[None]
        exact_text = clip.encode_text(tokens)
        for model in models:
            assert relative(model.visual.project(model.visual(video.double())), exact) <= 1e-13
            assert relative(model.text_features(), exact_text) <= 1e-13


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_vision_tower_takes_the_activation_from_the_model(quick_gelu):
    clip = small_clip(quick_gelu)
    video = random_video()
    with torch.no_grad():
        expected = clip.encode_image(video.flatten(0, 1)).unflatten(0, (2, 4))
        tower = VisionTower(clip.visual, {})
        assert relative(tower.project(tower(video)), expected) <= 1e-6


def test_quick_gelu_is_open_clips_with_the_right_gradient_and_half_the_memory():
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(quick_gelu(x), open_clip.transformer.QuickGELU()(x))
    assert torch.autograd.gradcheck(quick_gelu, (x,))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        quick_gelu(x * 1)
    assert sum(tensor.shape == x.shape for tensor in kept) == 1


class Shift(nn.Module):
    """Adds a trained vector to every token; takes the frame count as vision adapters do."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(dim))

    def forward(self, x: torch.Tensor, num_frames: int | None = None) -> torch.Tensor:
        return x + self.shift


def test_vision_adapters_act_at_their_places_and_only_there():
    clip = small_clip()
    torch.manual_seed(1)
    adapters = {1: {"pre_attn": Shift(32)}, 2: {"pre_attn": Shift(32), "pre_mlp": Shift(32)}}
    tower = VisionTower(clip.visual, adapters)
    video = random_video()
    x = tower.embed(video.flatten(0, 1))
    for i, block in enumerate(clip.visual.transformer.resblocks):
        places = adapters.get(i, {})
        x = places["pre_attn"](x) if "pre_attn" in places else x
        x = x + block.attention(block.ln_1(x))
        x = places["pre_mlp"](x) if "pre_mlp" in places else x
        x = x + block.mlp(block.ln_2(x))
    expected = x[:, 0].unflatten(0, (2, 4))
    actual = tower(video)
    assert relative(actual, expected) <= 1e-6
    expected.square().sum().backward()
    gradients = [adapter.shift.grad.clone() for places in adapters.values() for adapter in places.values()]
    tower.zero_grad()
    actual.square().sum().backward()
    for places in adapters.values():
        for adapter in places.values():
            assert relative(adapter.shift.grad, gradients.pop(0)) <= 1e-5


@pytest.mark.parametrize("places", [("pre_mlp",), ("pre_attn",), ("pre_attn", "pre_mlp")])
@pytest.mark.parametrize("adapted", [(), (2,), (1, 2), (0, 1, 2), (1,)])
def test_text_tower_equals_the_plain_tower_with_prompts_cut_and_layers_cached(adapted, places):
    clip = small_clip()
    torch.manual_seed(1)
    adapters = {i: {place: Shift(32) for place in places} for i in adapted}
    shifts = {(i, place): adapter for i, found in adapters.items() for place, adapter in found.items()}
    tower = TextTower(clip, adapters)
    words = prompt_words(NAMES, "a video of {}")
    prompts = PromptTokenizer(77).batch(words)
    tokens = open_clip.get_tokenizer("ViT-B-32")([" ".join(w) for w in words])
    assert prompts.tokens.shape[1] < 77
    assert torch.equal(prompts.tokens, tokens[:, : prompts.tokens.shape[1]])
    assert torch.equal(prompts.positions[:, 0], tokens.argmax(dim=1))

    x = clip.token_embedding(tokens) + clip.positional_embedding
    for i, block in enumerate(clip.transformer.resblocks):
        x = shifts[i, "pre_attn"](x) if (i, "pre_attn") in shifts else x
        x = x + block.attention(block.ln_1(x), attn_mask=clip.attn_mask)
        x = shifts[i, "pre_mlp"](x) if (i, "pre_mlp") in shifts else x
        x = x + block.mlp(block.ln_2(x))
    expected = clip.ln_final(x)[torch.arange(len(NAMES)), tokens.argmax(dim=1)] @ clip.text_projection
    cached = tower.frozen_part(prompts.tokens, prompts.positions)
    assert not cached.requires_grad
    actual = tower.project(tower.adapted_part(cached, prompts.tokens, prompts.positions)[:, 0])
    assert relative(actual, expected) <= 1e-6
    if adapted:
        expected.square().sum().backward()
        gradients = {place: adapter.shift.grad.clone() for place, adapter in shifts.items()}
        tower.zero_grad()
        actual.square().sum().backward()
        for place, adapter in shifts.items():
            assert relative(adapter.shift.grad, gradients[place]) <= 1e-5


def test_the_frozen_text_part_is_computed_once_a_label_set(monkeypatch):
    model = m2clip.create_model("m2clip", small_clip(), NAMES, 4, text_layers=2)
    calls = []
    frozen_part = model.text.frozen_part
    monkeypatch.setattr(model.text, "frozen_part", lambda *a: calls.append(1) or frozen_part(*a))
    first = model.text_features()
    model.text_features()
    assert len(calls) == 1
    model.set_class_names(NAMES[::-1])
    assert relative(model.text_features(), first.flip(0)) <= 1e-6
    assert len(calls) == 2


def test_towers_share_and_freeze_the_modules_of_their_clip():
    clip = small_clip()
    model = m2clip.create_model("m2clip", clip, NAMES, 4)
    assert model.visual.stem.conv1 is clip.visual.conv1
    assert sum(p.requires_grad for p in clip.parameters()) == 0
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in model.trained_state_dict().values()) > 0


def test_half_precision_keeps_trained_weights_in_fp32_and_stays_close():
    clip = small_clip()
    model = m2clip.create_model("m2clip", clip, NAMES, 4).eval()
    randomise(model, 0.05)
    video = random_video()
    with torch.no_grad():
        exact = model(video)
        model.set_precision("bf16")
        rounded = model(video)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert clip.visual.conv1.weight.dtype == torch.bfloat16
    assert model.visual(video).dtype == torch.bfloat16
    assert relative(rounded.video_features, exact.video_features) <= 0.03
    model.train()
    model.loss(video, torch.tensor([0, 3])).total.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("text", "expected"), [("all", [0, 1, 2, 3]), ("none", []), ("2-3", [1, 2]), ("4", [3])])
def test_layer_ranges(text, expected):
    assert layer_range(text, 4) == expected


@pytest.mark.parametrize("text", ["0-2", "3-2", "1-5", "last", "", "-2"])
def test_bad_layer_ranges_are_told(text):
    with pytest.raises(InputError, match="within 1-4"):
        layer_range(text, 4)


def test_other_architectures_are_refused_in_one_line():
    with pytest.raises(InputError, match="use a CLIP ViT"):
        m2clip.create_model("m2clip", m2clip.load_clip("RN50", None, device="meta"), NAMES, 4)


def spy_on_attention(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Notes what every attention was called with."""
    calls: list[dict[str, Any]] = []
    original = F.scaled_dot_product_attention

    def spied(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append({"tensors": (q, k, v), **options})
        return original(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spied)
    return calls


def test_attention_is_called_in_forms_that_flash_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = small_clip()
    model = m2clip.create_model("m2clip", clip, NAMES, 4, width=8, text_width=8)
    calls = spy_on_attention(monkeypatch)
    model.visual(random_video())
    vision = len(calls)
    model.text_features()
    text = calls[vision:]
    assert vision == len(text) == 3
    assert all(call["attn_mask"] is None for call in calls[:-1])
    assert [call["is_causal"] for call in calls] == [False] * 3 + [True] * 2 + [False]
    # The last text layer asks for single positions of each prompt, which is a mask of its own for every one of them.
    mask = text[-1]["attn_mask"]
    assert mask.dtype == torch.bool and mask.shape[2] == text[-1]["tensors"][0].shape[2] == 1
    for call in calls:
        assert all(tensor.stride(-1) == 1 and tensor.shape[-1] == 16 for tensor in call["tensors"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_flash_attention_changes_nothing(precision: str) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    clip = small_clip()
    model = m2clip.create_model("m2clip", clip, NAMES, 4, width=8, text_width=8, vc_dropout=0.0)
    randomise(model, 0.05)
    video, labels = random_video(), torch.tensor([0, 3])

    def learned(backend: SDPBackend) -> torch.Tensor:
        model.label_set().frozen = None
        with sdpa_kernel(backend):
            loss = model.loss(video, labels, torch.Generator().manual_seed(0)).total
            gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        return torch.cat([loss[None], *(gradient.flatten() for gradient in gradients)])

    exact = learned(SDPBackend.MATH)
    if precision == "fp32":
        assert (learned(SDPBackend.FLASH_ATTENTION) - exact).norm() <= 1e-5 * exact.norm()
        return
    model.set_precision(precision)
    plain, flash = ((learned(how) - exact).norm() for how in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION))
    assert 0 < flash <= 1.5 * plain <= 0.1 * exact.norm()  # some thousand roundings each: their norms vary little


def measured(model: Any, video: torch.Tensor, labels: torch.Tensor, autocast: bool) -> dict[str, torch.Tensor]:
    """What a model says and how it would learn, in fp64 numbers."""
    model.zero_grad()
    model.label_set().frozen = None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(video)
        texts, total = model.text_features(), model.loss(video, labels, torch.Generator().manual_seed(0)).total
    total.backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    found = {"frames": out.frame_features, "logits": out.logits, "texts": texts, "loss": total, "gradients": gradients}
    return {name: value.detach().double() for name, value in found.items()}


@pytest.mark.parametrize("name", ["tiny", "random"])
def test_towers_in_bf16_are_about_as_exact_as_autocast(name: str) -> None:
    clip = small_clip() if name == "random" else m2clip.load_clip("tiny")
    torch.manual_seed(0)
    model = m2clip.create_model("m2clip", clip, NAMES, 4, width=8, text_width=8, vc_dropout=0.0)
    randomise(model, 0.05)
    inputs = (random_video(4, 4, model.image_size[0]), torch.tensor([0, 3, 1, 2]))
    exact, autocast = (measured(model, *inputs, autocast=enabled) for enabled in (False, True))
    model.set_precision("bf16")
    ours = measured(model, *inputs, autocast=False)
    for part, truth in exact.items():
        error, allowed = ((found[part] - truth).norm() / truth.norm() for found in (ours, autocast))
        # Autocast keeps the residual stream in fp32, at twice the memory.
        assert error <= 4 * allowed + torch.finfo(torch.bfloat16).eps / 2, part
        assert error > 0, part


@pytest.mark.parametrize("quick", [True, False])
def test_a_kernel_for_bias_and_activation_changes_nothing(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = m2clip.create_model("m2clip", small_clip(quick), NAMES, 4, width=8, text_width=8).eval()
    video, calls = random_video(), []
    fused = towers.bias_gelu
    monkeypatch.setattr(towers, "bias_gelu", lambda *inputs: calls.append(inputs[2]) or fused(*inputs))
    plain = model(video)
    assert not calls  # no kernel for it on a CPU
    monkeypatch.setattr(towers, "has_kernel", lambda *asked: True)
    other = model(video)
    assert set(calls) == {"quick_gelu" if quick else "gelu"} and len(calls) == 4
    assert relative(other.video_features, plain.video_features) <= 1e-6
    assert relative(other.similarity, plain.similarity) <= 1e-6
