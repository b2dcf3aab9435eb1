"""CLIPs by their names: folders and repositories of two libraries, images of other sizes, and what is refused first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import m2clip
from m2clip.errors import InputError
from m2clip.methods import create_model
from m2clip.towers import weight_sources
from m2clip.towers.vision import VisionTower
from tests.clips import NAMES
from tests.towers.families import family
from tests.towers.small_architectures import SMALL, add_architectures

PICTURES = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
T = 2


@pytest.fixture(scope="module", autouse=True)
def known(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_architectures(tmp_path_factory.mktemp("architectures"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that are asked for, none of which answers."""
    asked: list[str] = []
    monkeypatch.setattr(weight_sources, "reachable", lambda address: bool(asked.append(address)))
    return asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with open_clip's configuration and weights."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(**SMALL)
    made = tmp_path / "small"
    made.mkdir()
    (made / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": PICTURES}))
    save_file(
        {name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, made / "open_clip_model.safetensors"
    )
    return made


def features(clip: Any, images: torch.Tensor) -> torch.Tensor:
    tower = VisionTower(clip, {})
    with torch.no_grad():
        return tower.project(tower(images[None]))[0]


def images_of(height: int, width: int) -> torch.Tensor:
    return torch.randn(T, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schema", ["local-dir:", "hf-hub:"])
def test_a_repository_of_open_clip_brings_weights_and_pictures(
    schema: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = f"local-dir:{folder}"
    if schema == "hf-hub:":
        name, kept = "hf-hub:someone/small", weight_sources.kept_file
        monkeypatch.setattr(
            weight_sources,
            "kept_file",
            lambda place, file: kept(str(folder) if place == "someone/small" else place, file),
        )
    clip = m2clip.load_clip(name, offline=True)
    theirs = open_clip.create_model(f"local-dir:{folder}")
    images = images_of(16, 16)
    torch.testing.assert_close(features(clip, images), theirs.encode_image(images), rtol=1e-5, atol=1e-6)
    model = create_model("st_adapter", clip, NAMES, T, width=8)
    assert model.views["normalize"] == ((0.5,) * 3, (0.25,) * 3)
    assert model.views["interpolation"] == "bilinear" and model.views["resize"] == "squash"
    saved = m2clip.save_adapters(model, tmp_path / "run")
    assert m2clip.load_adapters(saved).clip_source == {"name": name, "pretrained": "openai", "tokenizer": None}


def test_a_folder_of_transformers_is_opened_with_its_pictures(tmp_path: Path) -> None:
    theirs = family("transformers_clip")
    theirs.save_pretrained(tmp_path / "clip")
    processor = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "resample": 2, "size": {"height": 32, "width": 32}}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(processor))
    clip = m2clip.load_clip(f"local-dir:{tmp_path / 'clip'}", image_size="32x48", offline=True)
    images = images_of(32, 48)
    expected = theirs.get_image_features(pixel_values=images, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(features(clip, images), expected, rtol=1e-4, atol=1e-5)
    model = create_model("clip", clip, NAMES, T)
    assert model.views["normalize"] == ((0.1,) * 3, (0.2,) * 3)
    assert model.views["interpolation"] == "bilinear" and model.views["resize"] == "squash"
    saved = m2clip.save_adapters(model, tmp_path / "run")
    again = m2clip.load_adapters(saved)
    assert again.image_size == (32, 48) and again.tower == model.tower


def test_models_of_transformers_without_their_processor_want_what_siglip_wants() -> None:
    for name, interpolation in (("transformers_siglip", "bicubic"), ("transformers_siglip2", "bilinear")):
        views = create_model("clip", family(name), NAMES, T).views
        assert views["normalize"] == ((0.5,) * 3, (0.5,) * 3)
        assert views["interpolation"] == interpolation and views["resize"] == "squash"


@pytest.mark.parametrize(("name", "size"), [("small-ViT", (16, 32)), ("PE-Core-T-16-384", (64, 96))])
def test_position_embeddings_are_fitted_to_other_images_as_the_library_does(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    state = open_clip.create_model(name).state_dict()
    torch.save(state, tmp_path / "weights.pt")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": False}}))
    clip = m2clip.load_clip(name, tmp_path / "weights.pt", image_size=size)
    theirs = open_clip.create_model(name, str(tmp_path / "weights.pt"), force_image_size=size)
    images = images_of(*size)
    with torch.no_grad():
        torch.testing.assert_close(features(clip, images), theirs.encode_image(images), rtol=1e-4, atol=1e-5)
    assert clip.m2clip_source["image_size"] == f"{size[0]}x{size[1]}"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("RN50", {}, "RN50 cannot be used: vision models of type ModifiedResNet are not supported"),
        ("convnext_base", {"pretrained": "laion400m_s13b_b51k"}, "convnext_base of timm is not supported"),
        ("hf-hub:nobody/nothing", {}, "no open_clip_config.json and no config.json"),
        ("nobody/nothing", {}, "no open_clip_config.json and no config.json"),
        ("local-dir:/nowhere/at/all", {}, "there is no such folder"),
        ("ViT-B/16", {}, "unknown CLIP 'ViT-B/16'; did you mean ViT-B-16"),
        ("hf-hub:../..", {}, "no open_clip_config.json and no config.json"),
        ("roberta-ViT-B-32", {}, "has a tokenizer of its own, roberta-base"),
        ("nllb-clip-base", {}, "has a tokenizer of its own, facebook/nllb-200-distilled-600M"),
        ("ViT-B-16-SigLIP", {"pretrained": "webli"}, "has a tokenizer of its own, timm/ViT-B-16-SigLIP"),
        ("ViT-B-32", {"pretrained": None, "image_size": "wide"}, "write one number, or height and width"),
        ("ViT-B-32", {"pretrained": None, "image_size": 0}, "height and width must be from 1 to 8192 pixels"),
        ("ViT-B-32", {"pretrained": None, "image_size": (64, 16)}, "images of 64x16 pixels are smaller than a patch"),
        ("PE-Core-T-16-384", {"pretrained": None, "image_size": 8}, "timm cannot fit it to images of 8x8 pixels"),
        ("tiny", {"image_size": (4, 48)}, "images of 4x48 pixels are smaller than a patch"),
        ("ViCLIP-B-16", {"pretrained": None, "image_size": 32}, "takes images of one size"),
    ],
)
def test_names_that_cannot_be_used_are_refused_in_one_line_before_a_download(
    name: str, options: dict[str, Any], message: str, no_network: list[str]
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        m2clip.load_clip(name, **options)
    assert "\n" not in str(refused.value)
    assert all("huggingface" in address for address in no_network)  # of weights nothing was asked


def test_folders_of_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="models of transformers may be clip, metaclip_2, siglip, siglip2"):
        m2clip.load_clip(f"local-dir:{tmp_path}", offline=True)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(InputError, match="is no configuration of open_clip"):
        m2clip.load_clip(f"local-dir:{tmp_path}", offline=True)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}))
    with pytest.raises(InputError, match="open_clip cannot build it"):
        m2clip.load_clip(f"local-dir:{tmp_path}", offline=True)


@pytest.mark.parametrize("name", ["RN50", "convnext_base", "MobileCLIP-S1"])
def test_what_is_no_transformer_is_refused_without_the_library(name: str) -> None:
    """Whose import takes seconds, and that of transformers, which it imports, some more."""
    code = f"""
import sys, m2clip
try:
    m2clip.load_clip({name!r})
except m2clip.InputError as error:
    print(error, [library for library in ("open_clip", "transformers", "timm") if library in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "is not supported" in done.stdout or "are not supported" in done.stdout
    assert done.stdout.endswith(" []\n")
