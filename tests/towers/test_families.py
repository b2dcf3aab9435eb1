"""One member of each family of CLIPs: features of the library, a step of each method, adapters saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import m2clip
from m2clip.data.episodes import EpisodeShape
from m2clip.errors import InputError
from m2clip.info import count_multiply_adds
from m2clip.methods import create_model
from m2clip.methods.losses import sigmoid_loss
from m2clip.towers.sources import open_text, open_vision
from tests.clips import NAMES, randomise
from tests.towers.families import FAMILIES, IMAGE, family, library_features

T = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "m2clip": {"width": 8, "text_width": 8, "vc_dropout": 0.0},
    "msta": {"width": 8, "alpha": 0.0, "scale": 0.1},
    "st_adapter": {"width": 8, "placement": "both", "dropout": 0.0},
    "aim": {"width": 8, "dropout": 0.0, "drop_path": 0.0},
    "ma_fsar": {"attention_dropout": 0.0, "ffn_dropout": 0.0},
    "clip": {},
}


def options_for(name: str, method: str) -> dict[str, Any]:
    """Options that a family's towers allow."""
    options = dict(OPTIONS[method])
    if name == "hub_text":  # whose text model is one whole
        options |= {
            "m2clip": {"text_layers": 0, "heads": ("contrastive", "cmc", "vc")},
            "msta": {"towers": ("visual",)},
        }.get(method, {})
    if method == "ma_fsar" and open_vision(family(name)).stem.num_prefix_tokens == 0:
        options["parts"] = ("multimodal", "joint")
    return options


def video(clips: int = 2) -> torch.Tensor:
    return torch.randn(clips, T, 3, *IMAGE, generator=torch.Generator().manual_seed(3))


def loss_of(model: Any) -> torch.Tensor:
    """The loss of a few clips; of one episode where a method is trained by episodes."""
    if model.method == "ma_fsar":
        model.episode = EpisodeShape(way=2, shots=1, queries=1)
        return model.loss(video(4), torch.tensor([0, 3, 0, 3])).total
    return model.loss(video(), torch.tensor([0, 3]), torch.Generator().manual_seed(0)).total


@pytest.mark.parametrize("name", FAMILIES)
def test_untrained_models_are_the_library_s_own(name: str) -> None:
    clip = family(name).double()
    model = create_model("clip", clip, NAMES, T)
    images = video().double()
    with torch.no_grad():
        found = model(images)
        expected, text = library_features(clip, images.flatten(0, 1), padded(model))
    torch.testing.assert_close(found.frame_features.flatten(0, 1), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.text_features(), text, rtol=1e-9, atol=1e-9)
    cosines = F.normalize(expected.unflatten(0, (2, T)).mean(1), dim=-1) @ F.normalize(text, dim=-1).T
    bias = getattr(clip, "logit_bias", None)
    torch.testing.assert_close(found.similarity, clip.logit_scale.exp() * cosines + (0 if bias is None else bias))


def padded(model: Any) -> torch.Tensor:
    """A model's prompts in the context length, as libraries want them."""
    tokens = model.label_set().prompts.tokens
    return F.pad(tokens, (0, model.tokenizer.context_length - tokens.shape[1]))


@pytest.mark.parametrize("method", [method for method in OPTIONS if method != "clip"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_each_method_reaches_all_that_is_trained_and_can_be_saved(
    name: str, method: str, tmp_path: Path
) -> None:
    clip, options = family(name), options_for(name, method)
    frozen = {key: tensor.clone() for key, tensor in clip.state_dict().items()}
    torch.manual_seed(0)
    model = create_model(method, clip, NAMES, T, **options)
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    randomise(model, 0.1)
    model.train()
    before = loss_of(model)
    before.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained.values())
    norm = torch.stack([parameter.grad.norm() for parameter in trained.values()]).norm()
    with torch.no_grad():
        for parameter in trained.values():
            parameter -= 1e-2 / norm * parameter.grad
    assert loss_of(model) < before
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in clip.state_dict().items())
    model.eval()
    saved = m2clip.save_adapters(model, tmp_path / "run")
    again = m2clip.load_adapters(saved, clip)
    with torch.no_grad():
        mine, other = model(video()), again(video())
    assert torch.equal(mine.similarity, other.similarity) and torch.equal(mine.frame_features, other.frame_features)


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_stays_close(name: str) -> None:
    model = create_model("clip", family(name), NAMES, T)
    with torch.no_grad():
        exact = model(video()).frame_features, model.text_features()
        model.set_precision("bf16")
        rounded = model(video()).frame_features, model.text_features()
    for ours, theirs in zip(rounded, exact, strict=True):
        # Some ten roundings of 2^-9 on the way, each of which may grow by a factor of a few.
        assert 0 < (ours - theirs).norm() / theirs.norm() < 0.1


def test_adapters_of_another_family_are_refused(tmp_path: Path) -> None:
    saved = m2clip.save_adapters(create_model("st_adapter", family("eva"), NAMES, T, width=8), tmp_path / "run")
    for other in ("clip", "registers", "transformers_clip"):
        with pytest.raises(InputError, match="was trained on another CLIP: .*vision_model"):
            m2clip.load_adapters(saved, family(other))


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("hub_text", "m2clip", "set text_layers to 0 and leave out the head cmlm"),
        ("hub_text", "msta", "set towers to visual"),
        ("siglip", "ma_fsar", 'set parts to "multimodal" and "joint"'),
    ],
)
def test_what_a_tower_lacks_is_told_in_one_line(name: str, method: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        create_model(method, family(name), NAMES, T)
    assert "\n" not in str(refused.value)


def test_siglip_s_loss_is_that_of_its_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    clips, texts = (torch.randn(size, 8, generator=generator, dtype=torch.float64) for size in (4, 3))
    labels, scale, bias = torch.tensor([0, 2, 1, 0]), torch.tensor(5.0), torch.tensor(-3.0)
    expected = 0.0
    for i, own in enumerate(labels):
        for other in labels:
            z = 1 if own == other else -1
            logit = scale * F.cosine_similarity(clips[i], texts[other], dim=0) + bias
            expected -= torch.log(1 / (1 + torch.exp(-z * logit))) / len(labels)
    torch.testing.assert_close(sigmoid_loss(clips, texts, labels, scale, bias), expected)


def test_m2clip_can_be_trained_by_siglip_s_loss_where_there_is_a_bias() -> None:
    options = {**OPTIONS["m2clip"], "contrastive": "sigmoid", "heads": ("contrastive",)}
    model = create_model("m2clip", family("siglip"), NAMES, T, **options)
    labels = torch.tensor([0, 3])
    video_features, texts = model.encode(video())[1], model.text_features()
    expected = sigmoid_loss(video_features, texts, labels, model.logit_scale.exp(), model.logit_bias)
    torch.testing.assert_close(model.loss(video(), labels).parts["contrastive"], expected.detach())
    with pytest.raises(InputError, match="needs a CLIP with a logit bias"):
        create_model("m2clip", family("clip"), NAMES, T, **options)


def test_attention_over_time_is_the_same_with_tokens_turned_by_their_places() -> None:
    block = create_model("aim", family("eva"), NAMES, T, **OPTIONS["aim"]).visual.blocks[0]
    tokens = torch.randn(2 * T, 1 + 6, 32, generator=torch.Generator().manual_seed(0))
    found = block.attend_over_time(tokens, T)
    for place in range(7):
        over_time = tokens[:, place].unflatten(0, (2, T))
        q, k, v = (
            y.unflatten(-1, (2, -1)).transpose(1, 2) for y in block.kind.project(block.attn, over_time, over_time)
        )
        if place > 0:  # a patch, turned by where it is
            q, k = (block.kind.rotate(block.attn, y, block.rotary[place - 1 : place]) for y in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        expected = block.kind.out(block.attn, mixed).flatten(0, 1)
        torch.testing.assert_close(found[:, place], expected, rtol=1e-4, atol=1e-5)


def test_stems_compute_as_in_evaluation_while_adapters_are_trained() -> None:
    clip = family("hub_text")
    model = create_model("clip", clip, NAMES, T).train()
    assert not model.text.stem.encoder.training and not model.visual.stem.training
    with torch.no_grad():
        first = model.text_features()
        model.label_set().frozen = None
        assert torch.equal(model.text_features(), first)  # its dropout of 0.1 is off


def test_text_that_is_one_whole_is_not_there_twice() -> None:
    text = open_text(family("hub_text"))
    assert text.blocks == () and text.stem.feature_width == 32


@pytest.mark.parametrize("name", ["siglip", "pe", "gap", "eva", "registers"])
def test_multiply_adds_are_those_of_the_library_and_of_the_equations(name: str) -> None:
    with torch.device("meta"):  # where attention is counted, too
        clip = family(name).to("meta")
        model = create_model("clip", clip, NAMES, T)
        images = torch.empty(1, T, 3, *IMAGE)
        stem, d = model.visual.stem, 32
        length, mlp = stem.num_prefix_tokens + 6, 8 if name != "eva" else 12
        saved = 0
        if stem.reads_class_token:  # which alone has a query, an output and an MLP in the last block
            saved = T * (length - 1) * (2 * d * d + 2 * length * d + mlp * d * d)
        assert count_multiply_adds(lambda: model.encode(images)) + saved == count_multiply_adds(
            lambda: clip.encode_image(images[0])
        )
        s = model.text.stem.context_length if model.text.stem.padded else model.label_set().prompts.tokens.shape[1]
        whole = s * 12 * d * d + 2 * s * s * d
        last = 2 * s * d * d + 2 * d * d + 2 * s * d + 8 * d * d
        assert count_multiply_adds(model.text_features) == len(NAMES) * (whole + last + d * d)
