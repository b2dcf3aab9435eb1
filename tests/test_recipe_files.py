"""The bundled recipes: each builds its model, names its source and holds the published values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m2clip.config import RunConfig, bundled_configs, flatten, load_config
from m2clip.data.lists.label_sets import load_class_names
from m2clip.errors import InputError
from m2clip.train.optim import scaled_lr
from m2clip.train.setup import build_model


@pytest.mark.parametrize("name", bundled_configs())
def test_recipe_builds_its_model_without_memory(name: str) -> None:
    import open_clip

    import m2clip
    from m2clip.towers.tiny import TINY_CONFIG
    from m2clip.train.setup import clip_settings

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
    clip_settings(config, model)
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
    for frames in (8, 32):
        optim = load_config(f"m2clip_ssv2_b16_{frames}f").optim
        assert scaled_lr(optim.lr, 4 * optim.batch_size * optim.accumulate) == pytest.approx(5e-4, rel=1e-12)


def test_what_follows_the_authors_code() -> None:
    recipes = {name: load_config(name) for name in bundled_configs()}
    authors = {name for name, recipe in recipes.items() if recipe.data.transform == "authors"}
    prefixes = ("m2clip_", "st_adapter_")
    assert authors == {name for name in recipes if name.startswith(prefixes) and not name.endswith("_demo")}
    aim = recipes["aim_k400_b16_8f"]
    assert (aim.data.sampling, aim.data.stride, aim.eval.clips, aim.eval.crops) == ("dense_centres", 16, 3, 1)
    assert scaled_lr(aim.optim.lr, 8 * aim.optim.batch_size) == pytest.approx(3e-4, rel=1e-12)


def test_published_values_of_ma_fsar() -> None:
    names = {"hmdb51": 5000, "ucf101": 3000, "k100": 1000, "ssv2_small": 20_000, "ssv2_full": 60_000}
    for name, episodes in names.items():
        recipe = load_config(f"ma_fsar_{name}")
        optim, shape = recipe.optim, recipe.episodes
        assert optim.epochs * shape.per_epoch == episodes
        assert optim.weight_decay == (5e-4 if name == "k100" else 5e-5)
        clips = shape.way * (shape.shots + shape.queries) * optim.accumulate
        assert scaled_lr(optim.lr, clips) == pytest.approx(2e-4, rel=1e-3)


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
