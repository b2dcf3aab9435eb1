"""Configuration: recipes, overrides, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m2clip.config import RunConfig, bundled_configs, flatten, load_config, save_config
from m2clip.data.label_sets import load_class_names
from m2clip.errors import InputError
from m2clip.optim import scaled_lr
from m2clip.train_setup import build_model


@pytest.mark.parametrize("name", bundled_configs())
def test_recipe_builds_its_model_without_memory(name: str) -> None:
    import open_clip

    import m2clip
    from m2clip.tiny import TINY_CONFIG
    from m2clip.train_setup import clip_settings

    config = load_config(name)
    names = load_class_names(config.data.classes) if config.data.classes else ["left", "right"]
    with torch.device("meta"):
        if config.model.clip == "tiny":
            clip = open_clip.CLIP(**TINY_CONFIG)
        else:
            clip = m2clip.load_clip(config.model.clip, None, device="meta")
        model = m2clip.create_model(
            config.model.method,
            clip,
            class_names=names,
            num_frames=config.data.num_frames,
            preset=config.model.preset,
            **config.model.options,
        )
    clip_settings(config, model.image_size)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if name.startswith("m2clip_k400"):
        assert trained == 16_138_136
    if name in ("msta_k400", "msta_zeroshot_k400", "msta_base_to_novel"):
        assert trained == 8_712_192
    if name in ("msta_fewshot", "msta_base_to_novel_early"):
        assert trained == (3_630_080 if name == "msta_fewshot" else 1_744_000)
    if name.startswith("m2clip_ssv2"):
        assert all(block.pre_attn is not None and block.pre_mlp is not None for block in model.visual.blocks)


@pytest.mark.parametrize("name", bundled_configs())
def test_recipe_holds_only_differences_and_names_its_source(name: str) -> None:
    import yaml

    text = (Path(__file__).parents[1] / "m2clip" / "configs" / f"{name}.yaml").read_text()
    assert any(
        source in text for source in ("AAAI 2024", "the authors' code", "the authors' training logs", "our choice")
    )
    given = [
        f"{section}.{field}" if isinstance(values, dict) else section
        for section, values in yaml.safe_load(text).items()
        for field in (values if isinstance(values, dict) else [""])
    ]
    default, recipe = flatten(RunConfig()), flatten(load_config(name))
    assert given and all(default[field] != recipe[field] for field in given)


def test_published_values() -> None:
    k400, ssv2 = load_config("m2clip_k400_b16_8f"), load_config("m2clip_ssv2_b16_8f")
    assert (k400.optim.epochs, ssv2.optim.epochs) == (12, 50)
    assert k400.optim.lr == 1e-3 and k400.optim.text_lr_scale == 0.5 and k400.optim.weight_decay == 1e-2
    assert (k400.model.options["placement"], ssv2.model.options["placement"]) == ("pre_mlp", "both")
    assert (k400.data.sampling, k400.data.stride, ssv2.data.sampling) == ("dense", 16, "uniform")
    assert (ssv2.data.augmentation, ssv2.data.flip, k400.data.flip) == ("randaugment", False, True)
    assert (k400.eval.clips, k400.eval.crops, ssv2.eval.clips, ssv2.eval.crops) == (4, 3, 1, 3)
    for frames in (8, 16, 32):
        optim = load_config(f"m2clip_k400_b16_{frames}f").optim
        assert optim.batch_size * optim.accumulate == 36


def test_published_values_of_msta() -> None:
    names = ("msta_base_to_novel", "msta_base_to_novel_early", "msta_fewshot", "msta_zeroshot_k400", "msta_k400")
    recipes = [load_config(name) for name in names]
    assert [recipe.optim.epochs for recipe in recipes] == [11, 50, 50, 10, 30]
    assert [recipe.optim.batch_size * 8 for recipe in recipes] == [32, 32, 32, 256, 256]
    peaks = [scaled_lr(recipe.optim.lr, 8 * recipe.optim.batch_size) for recipe in recipes]
    assert peaks == pytest.approx([1e-3, 1e-3, 1e-3, 8e-4, 8e-4], rel=1e-12)
    for recipe in recipes:
        optim, data = recipe.optim, recipe.data
        assert (optim.schedule, optim.lr_floor, optim.warmup_epochs) == ("cosine_under_warmup", 0.01, 5)
        assert (optim.beta2, optim.weight_decay, optim.precision) == (0.98, 1e-3, "fp32")
        assert (data.augmentation, data.normalize, data.num_frames) == ("multi_scale_crop", "imagenet", 8)
        assert (recipe.keep, recipe.validate_every) == ("best", 5)


def test_viclip_wants_a_path() -> None:
    with pytest.raises(InputError, match="model.pretrained is not set: give the path of a ViCLIP-B-16"):
        build_model(load_config("msta_fewshot"), ["a cat"])


def test_overrides_come_after_the_file_in_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lr: 1e-4, epochs: 3}\nmodel: {options: {width: 8}}\n")
    config = load_config(file, ["optim.lr=2e-4", "--optim.lr=3e-4", "model.options.text_width=4", "eval.crops=m2clip4"])
    assert (config.optim.lr, config.optim.epochs, config.eval.crops) == (3e-4, 3, "m2clip4")
    assert config.model.options == {"width": 8, "text_width": 4}
    assert load_config(None, ["optim.clip_grad=0.5", "optim.clip_grad=null"]).optim.clip_grad is None


def test_saved_configuration_reads_back(tmp_path: Path) -> None:
    config = load_config("m2clip_ssv2_b16_32f", ["optim.clip_grad=1", "data.train=a list.txt"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(tmp_path) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {num_frame: 8}", ("data.num_frame", "data.num_frames")),
        ("epochs: 3", ("epochs", "optim.epochs")),
        ("data: 3", ("data", "mapping")),
        ("optim: {epochs: many}", ("optim.epochs", "whole number", "many")),
        ("optim: {epochs: 1.5}", ("optim.epochs", "whole number")),
        ("optim: {epochs: 0}", ("optim.epochs", "1 or more")),
        ("optim: {lr: -1}", ("optim.lr", "above 0")),
        ("optim: {lr_floor: 1}", ("optim.lr_floor", "below 1")),
        ("optim: {lr_floor: -0.1}", ("optim.lr_floor", "0 or more")),
        ("optim: {beta2: 1.0}", ("optim.beta2", "below 1")),
        ("optim: {schedule: linear}", ("optim.schedule", "cosine_under_warmup", "linear")),
        ("episodes: {way: 1}", ("episodes.way", "2 or more")),
        ("episodes: {shots: 0}", ("episodes.shots", "1 or more")),
        ("episodes: {select_by: test}", ("episodes.select_by", "episodes.test is not set")),
        ("episodes: {way: five}", ("episodes.way", "whole number", "five")),
        ("optim: {lr: .nan}", ("optim.lr", "finite")),
        ("optim: {warmup_epochs: 20}", ("optim.warmup_epochs", "optim.epochs")),
        ("optim: {precision: fp8}", ("optim.precision", "bf16", "fp8")),
        ("data: {num_frames: 0}", ("data.num_frames", "1 or more")),
        ("data: {sampling: sparse}", ("data.sampling", "uniform, dense", "sparse")),
        ("data: {flip: sometimes}", ("data.flip", "true or false")),
        ("eval: {crops: 2}", ("eval.crops", "m2clip4")),
        ("model: {method: m3clip}", ("model.method", "m2clip")),
        ("model: {preset: mine}", ("model.preset", "official")),
        ("model: {options: {widht: 3}}", ("model.options.widht", "width")),
        ("model: {pretrained: 12}", ("model.pretrained", "text or null")),
        ("data: {num_frames: [1}", ("not a configuration",)),
        ("- 1", ("not a configuration",)),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text + "\n")
    with pytest.raises(InputError) as caught:
        load_config(file)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words)


@pytest.mark.parametrize("override", ["num_frames=3", "data.num_frames", "data.num_frames=x", "data=3", "a.b=1"])
def test_bad_overrides(override: str) -> None:
    with pytest.raises(InputError, match=override.partition("=")[0]):
        load_config(None, [override])


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="m2clip_k400_b16_8f"):
        load_config("m2clip_k401")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="x.yaml"):
        load_config(tmp_path / "x.yaml")
