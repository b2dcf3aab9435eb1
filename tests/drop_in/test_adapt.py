"""m2clip.adapt: other libraries' vision transformers stay what they are, and their adapters sit where they should."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import m2clip
from m2clip import InputError, drop_in
from m2clip.adapters import STAdapter, TEDAdapter
from tests.drop_in.vision_models import DIM, FAMILIES, FRAMES, features, of_transformers, timm_vit

of_each_family = pytest.mark.parametrize("family", FAMILIES)


def adapted(family: str, **options: Any) -> nn.Module:
    return m2clip.adapt(FAMILIES[family].model(), FRAMES, width=8, **options)


def adapters(model: nn.Module) -> list[Any]:
    return [part for part in model.modules() if isinstance(part, (TEDAdapter, STAdapter))]


def trained(model: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    for adapter in adapters(model):
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("adapter", ["ted", "st"])
@of_each_family
def test_new_adapters_change_nothing(family: str, adapter: str) -> None:
    model, pictures = FAMILIES[family].model(), FAMILIES[family].pictures()
    names = list(model.state_dict())
    with torch.no_grad():
        before = features(model(pictures))
        same = m2clip.adapt(model, FRAMES, adapter, width=8)
        assert same is model and torch.equal(features(model(pictures)), before)
        assert torch.equal(features(model(pictures.unflatten(0, (-1, FRAMES)))), before)
        if FAMILIES[family].library == "transformers":
            assert torch.equal(features(model(pixel_values=pictures.unflatten(0, (-1, FRAMES)))), before)
    assert [name for name in model.state_dict() if ".adapter." not in name] == names


@of_each_family
def test_adapters_know_how_tokens_lie(family: str) -> None:
    model, pictures = trained(adapted(family)), FAMILIES[family].pictures()
    seen: list[tuple[Tensor, Tensor]] = []
    for adapter in adapters(model):
        adapter.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        model(pictures)
        (height, width), prefix = FAMILIES[family].grid, FAMILIES[family].prefix
        assert len(seen) == 2
        for adapter, (tokens, output) in zip(adapters(model), seen, strict=True):
            assert tokens.shape == (len(pictures), prefix + height * width, DIM)
            expected = m2clip.kernels.ted_adapter(
                tokens, adapter.weights(), FRAMES, grid=(height, width), num_prefix_tokens=prefix, backend="reference"
            )
            torch.testing.assert_close(output, expected)


@of_each_family
def test_patch_tokens_are_those_that_the_pictures_decide(family: str) -> None:
    """Which shows that the tokens in front are counted right, and that the grid is not turned."""
    model, pictures = adapted(family), FAMILIES[family].pictures(clips=1)
    seen: list[Tensor] = []
    adapters(model)[0].register_forward_hook(lambda _, args, output: seen.append(args[0]))
    (height, width), prefix = FAMILIES[family].grid, FAMILIES[family].prefix
    changed = pictures.clone()
    changed[:, :, :8, 8:16] += 1.0  # row 0, column 1
    with torch.no_grad():
        model(pictures), model(changed)
    moved = (seen[0] != seen[1]).any(dim=2).all(dim=0)
    assert moved.tolist() == [token == prefix + 1 for token in range(prefix + height * width)]


@of_each_family
def test_frames_of_a_clip_are_mixed_and_no_others(family: str) -> None:
    model, pictures = trained(adapted(family)), FAMILIES[family].pictures()
    changed = pictures.clone()
    changed[0] += 1.0
    with torch.no_grad():
        reached = (features(model(pictures)) != features(model(changed))).any(dim=1)
    assert reached.tolist() == [True] * FRAMES + [False] * FRAMES


@of_each_family
def test_adapters_alone_are_trained(family: str) -> None:
    model, pictures = adapted(family), FAMILIES[family].pictures()
    features(model(pictures)).square().sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == drop_in.trained_parameters(model).keys()
    assert all(".adapter." in name for name in with_gradient)
    moved = [name for name in with_gradient if model.get_parameter(name).grad.abs().max() > 0]
    assert sum(name.endswith("temporal.conv.weight") for name in moved) == 2


@of_each_family
def test_saved_and_loaded(family: str, tmp_path: Any) -> None:
    model, pictures = trained(adapted(family, layers="2", sequential=True)), FAMILIES[family].pictures()
    path = drop_in.save(model, tmp_path / "adapters.safetensors")
    with torch.no_grad():
        expected = features(model(pictures))
        other = drop_in.load(FAMILIES[family].model(), path)
        assert torch.equal(features(other(pictures)), expected)
        assert drop_in.trained_parameters(other).keys() == drop_in.trained_parameters(model).keys()
        again = drop_in.load(adapted(family, layers="2", sequential=True), path)
        assert torch.equal(features(again(pictures)), expected)


def test_a_head_that_is_trained_is_saved_too(tmp_path: Any) -> None:
    model = adapted("timm ViT")
    model.head.requires_grad_()
    path = drop_in.save(model, tmp_path / "adapters.safetensors")
    other = FAMILIES["timm ViT"].model()
    nn.init.zeros_(other.head.weight)
    drop_in.load(other, path)
    assert torch.equal(other.head.weight, model.head.weight) and other.head.weight.requires_grad
    with pytest.raises(InputError, match=r"has no parameter 'head\.\w+' of shape \(5,"):
        drop_in.load(timm_vit(num_classes=0), path)


def test_an_optimiser_step_trains_them() -> None:
    model, pictures = adapted("timm ViT, registers"), FAMILIES["timm ViT, registers"].pictures()
    target, losses = torch.randn(2, 5, generator=torch.Generator().manual_seed(3)), []
    optimiser = torch.optim.AdamW(drop_in.trained_parameters(model).values(), lr=1e-2)
    for _ in range(5):
        loss = (model(pictures).unflatten(0, (-1, FRAMES)).mean(1) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", ["timm ViT, registers", "torchvision", "SigLIP", "DINOv2, registers"])
def test_models_are_compiled_copied_and_pickled(family: str) -> None:
    model, pictures = trained(adapted(family)), FAMILIES[family].pictures()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = features(model(pictures))
        for other in (compiled, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(features(other(pictures)), expected)


def test_pictures_of_another_size() -> None:
    model = m2clip.adapt(timm_vit(dynamic_img_size=True), FRAMES, width=8, image_size=(48, 32))
    assert adapters(model)[0].grid == (6, 4)
    model(torch.randn(FRAMES, 3, 48, 32))
    with pytest.raises(ValueError, match=r"the adapters are for pictures of 48x32, got \(3, 3, 32, 48\): say another"):
        model(torch.randn(FRAMES, 3, 32, 48))
    model = m2clip.adapt(FAMILIES["DINOv2"].model(), FRAMES, width=8, image_size=48)
    model(torch.randn(FRAMES, 3, 48, 48))
    with pytest.raises(ValueError, match="the adapters are for pictures of 48x48"):
        model.embeddings(torch.randn(FRAMES, 3, 16, 144))  # as many patches


def test_clips_that_do_not_fit_are_refused() -> None:
    model = adapted("timm ViT")
    with pytest.raises(ValueError, match=r"video must be \(B, 3, 3, H, W\), got \(1, 4, 3, 32, 32\)"):
        model(torch.randn(1, 4, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(4\) is not a multiple of num_frames \(3\)"):
        model(torch.randn(4, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"adapter": "aim"}, "adapter 'aim' is none of ted, st"),
        ({"adapter": "st", "temporal": True}, "adapter 'st' has no option 'temporal'; its options are none"),
        ({"grid": (4, 4)}, "adapter 'ted' has no option 'grid'"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"width": "8"}, "width must be an integer"),
        ({"temporal": False, "difference": False}, "at least one of its branches"),
        ({"layers": "3"}, "write"),
        ({"layers": "none"}, "write"),
        ({"layers": 2}, "write"),
        ({"image_size": 48}, "the model takes pictures of 32x32, not 48x48: build it with timm"),
        ({"image_size": "32x48"}, "the model takes pictures of 32x32, not 32x48: build it with timm"),
        ({"image_size": (48, 0)}, "image_size: height and width must be from 1 to 8192 pixels each"),
        ({"image_size": (4, 0, 4)}, "image_size: write one number, or height and width as in 224x320"),
    ],
)
def test_mistakes_are_told_in_one_line_and_change_nothing(options: dict[str, Any], told: str) -> None:
    model = timm_vit()
    with pytest.raises(InputError, match=told) as caught:
        m2clip.adapt(model, **options)
    assert "\n" not in str(caught.value)
    assert all(parameter.requires_grad for parameter in model.parameters()) and not adapters(model)


def test_models_that_are_none_are_refused() -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("timm")
    import torchvision
    from timm.models.resnet import BasicBlock, ResNet

    sides = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=sides, vision_config=sides))
    bert = transformers.BertModel(transformers.BertConfig(**sides))
    for model, told in (
        (ResNet(BasicBlock, (1, 1, 1, 1)), r"timm\.models\.resnet\.ResNet is not supported: give a VisionTransformer"),
        (torchvision.models.resnet18(), r"resnet\.ResNet is not supported"),
        (clip, "CLIPModel of transformers is a whole CLIP: use m2clip.create_model"),
        (bert, "BertModel of transformers is not supported"),
        ("vit", "not into str"),
        (adapted("timm ViT"), "has adapters already"),
    ):
        with pytest.raises(InputError, match=told) as caught:
            m2clip.adapt(model)
        assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_are_refused(tmp_path: Any) -> None:
    path = drop_in.save(adapted("timm ViT"), tmp_path / "adapters.safetensors")
    for model, told in (
        (timm_vit(depth=3), r"is of another model: blocks 2 \(given: 3\)"),
        (FAMILIES["timm ViT, registers"].model(), r"num_prefix_tokens 1 \(given: 5\)"),
        (adapted("timm ViT", layers="1"), r"layers 'all' \(given: '1'\)"),
        (nn.Linear(2, 2), "is not supported"),
    ):
        with pytest.raises(InputError, match=told) as caught:
            drop_in.load(model, path)
        assert "\n" not in str(caught.value)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:-4] + b"abcd")
    for file, told in ((damaged, "is damaged"), (tmp_path / "none", "cannot be read"), (tmp_path, "cannot be read")):
        with pytest.raises(InputError, match=told):
            drop_in.load(timm_vit(), file)
    with pytest.raises(InputError, match=r"no adapters: m2clip\.adapt puts them in"):
        drop_in.save(timm_vit(), path)


def test_the_snippet_of_the_page_runs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    (snippet,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "drop_in" in block)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    assert len(adapters(scope["vit"])) == 12 and len(list(tmp_path.iterdir())) == 1


def test_a_hugging_face_model_in_half_precision() -> None:
    model = m2clip.adapt(of_transformers("Dinov2Model", "Dinov2Config")().to(torch.bfloat16), FRAMES, width=8)
    assert all(parameter.dtype == torch.float32 for parameter in drop_in.trained_parameters(model).values())
    pictures = torch.randn(FRAMES, 3, 32, 32).to(torch.bfloat16)
    assert features(model(pictures)).dtype == torch.bfloat16
