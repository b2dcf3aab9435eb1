"""The published checkpoints of ST-Adapter and AIM, rebuilt from their parameter names: read, written and refused."""

from __future__ import annotations

import json

import pytest
import torch

import m2clip
from m2clip.checkpoints.convert import authors_options, convert_from_authors, convert_to_authors, to_authors_state
from m2clip.cli import main
from m2clip.data.lists.label_sets import load_class_names
from m2clip.errors import InputError
from m2clip.towers.prompts import PromptTokenizer
from tests.clips import NAMES, random_video, randomise, small_clip

CLIP = small_clip()
TOKENIZER = PromptTokenizer(CLIP.context_length)


def build(method, clip=CLIP, names=NAMES, frames=4, **options):
    torch.manual_seed(3)
    return m2clip.create_model(method, clip, names, frames, tokenizer=TOKENIZER, **options)


def st_adapter_shapes(places, classes, dim=768, width=384, layers=12):
    """Names and shapes of a checkpoint that ST-Adapter's training script writes, under "model"."""
    shapes = {"fc.weight": (classes, dim), "fc.bias": (classes,)}
    for i in range(layers):
        for place in places:
            start = f"transformer.resblocks.{i}.adapter_{place}"
            shapes |= {f"{start}.fc1.weight": (width, dim), f"{start}.fc1.bias": (width,)}
            shapes |= {f"{start}.conv.weight": (width, 1, 3, 1, 1), f"{start}.conv.bias": (width,)}
            shapes |= {f"{start}.fc2.weight": (dim, width), f"{start}.fc2.bias": (dim,)}
    return shapes


def aim_shapes(adapters, classes, frames=8, dim=768, width=192, layers=12, patch=16, tokens=197):
    """Names and shapes of a checkpoint that mmaction2 writes of AIM, under "state_dict"."""
    shapes = {
        "cls_head.fc_cls.weight": (classes, dim),
        "cls_head.fc_cls.bias": (classes,),
        "backbone.class_embedding": (dim,),
        "backbone.positional_embedding": (tokens, dim),
        "backbone.temporal_embedding": (1, frames, dim),
        "backbone.conv1.weight": (dim, 3, patch, patch),
    }
    norms = ["backbone.ln_pre", "backbone.ln_post"]
    for i in range(layers):
        block = f"backbone.transformer.resblocks.{i}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        shapes |= {f"{block}.attn.in_proj_weight": (3 * dim, dim), f"{block}.attn.in_proj_bias": (3 * dim,)}
        shapes |= {f"{block}.attn.out_proj.weight": (dim, dim), f"{block}.attn.out_proj.bias": (dim,)}
        shapes |= {f"{block}.mlp.c_fc.weight": (4 * dim, dim), f"{block}.mlp.c_fc.bias": (4 * dim,)}
        shapes |= {f"{block}.mlp.c_proj.weight": (dim, 4 * dim), f"{block}.mlp.c_proj.bias": (dim,)}
        for adapter in adapters:
            shapes |= {f"{block}.{adapter}.D_fc1.weight": (width, dim), f"{block}.{adapter}.D_fc1.bias": (width,)}
            shapes |= {f"{block}.{adapter}.D_fc2.weight": (dim, width), f"{block}.{adapter}.D_fc2.bias": (dim,)}
    return shapes | {f"{name}.{kind}": (dim,) for name in norms for kind in ("weight", "bias")}


AIM_ADAPTERS = ("MLP_Adapter", "S_Adapter", "T_Adapter")
PUBLISHED = [
    ("k400", st_adapter_shapes(["pre_mlp"], 400), {"placement": "pre_mlp"}, 7_110_144),
    ("ssv2", st_adapter_shapes(["pre_attn", "pre_mlp"], 174), {"placement": "both"}, 14_220_288),
    ("k400", aim_shapes(AIM_ADAPTERS, 400), {"num_t_adapters": 1, "joint_scale": 0.5}, 10_659_072),
    ("k400", aim_shapes(AIM_ADAPTERS, 400, frames=32), {"num_t_adapters": 1}, 10_677_504),
    ("ssv2", aim_shapes((*AIM_ADAPTERS, "T_Adapter_in"), 174), {"num_t_adapters": 2, "joint_scale": 1.0}, 14_209_536),
]


@pytest.mark.parametrize(("classes", "shapes", "options", "size"), PUBLISHED)
def test_names_and_shapes_of_published_models(classes, shapes, options, size):
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    found = {"num_frames": 8, **authors_options(state)}
    names = load_class_names(classes)
    with torch.device("meta"):
        clip = m2clip.load_clip("ViT-B-16-quickgelu", None, device="meta")
        model = m2clip.create_model(clip=clip, class_names=names, **found)
    assert {name: model.options()[name] for name in options} == options
    trained = sum(tensor.numel() for name, tensor in model.trained_state_dict().items() if not name.startswith("vc."))
    assert trained == size
    m2clip.load_authors_checkpoint(model, {"model" if model.method == "st_adapter" else "state_dict": state})


MODELS = [
    ("st_adapter", {"width": 8}),
    ("st_adapter", {"width": 8, "preset": "24x384"}),
    ("aim", {"width": 6, "preset": "k400"}),
    ("aim", {"width": 6, "preset": "ssv2"}),
]


@pytest.mark.parametrize(("method", "options"), MODELS)
def test_checkpoints_convert_both_ways(tmp_path, monkeypatch, method, options):
    monkeypatch.setattr("m2clip.towers.loading._open_clip_model", lambda *a: small_clip())
    clip = m2clip.load_clip("ViT-B-32", None)
    model = build(method, clip, **options).eval()
    randomise(model)
    folder = m2clip.save_adapters(model, tmp_path / "ours")
    file = convert_to_authors(folder, tmp_path / "theirs.pth")
    content = torch.load(file, weights_only=True)
    if method == "st_adapter":
        places = ["pre_attn", "pre_mlp"] if options.get("preset") == "24x384" else ["pre_mlp"]
        assert content.keys() == {"model"}
        shapes = st_adapter_shapes(places, 5, dim=32, width=8, layers=3)
    else:
        adapters = (*AIM_ADAPTERS, "T_Adapter_in") if options["preset"] == "ssv2" else AIM_ADAPTERS
        assert content.keys() == {"state_dict"}
        shapes = aim_shapes(adapters, 5, frames=4, dim=32, width=6, layers=3, tokens=5)
    (state,) = content.values()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    back = convert_from_authors(file, tmp_path / "back", "ViT-B-32", 4, NAMES)
    again = m2clip.load_adapters(back, clip)
    assert torch.equal(again(random_video()).logits, model(random_video()).logits)


def test_tensors_end_up_where_their_names_say():
    model = build("aim", width=6, preset="ssv2")
    randomise(model)
    state = to_authors_state(model)
    adapters = model.visual.blocks[1].adapters
    for theirs, ours in (
        ("T_Adapter_in", adapters.temporal_in),
        ("T_Adapter", adapters.temporal),
        ("S_Adapter", adapters.spatial),
        ("MLP_Adapter", adapters.joint),
    ):
        assert torch.equal(state[f"backbone.transformer.resblocks.1.{theirs}.D_fc1.weight"], ours.down.weight)
        assert torch.equal(state[f"backbone.transformer.resblocks.1.{theirs}.D_fc2.bias"], ours.up.bias)
    assert torch.equal(state["backbone.ln_post.weight"], model.ln_post.weight)
    assert torch.equal(state["backbone.ln_pre.weight"], CLIP.visual.ln_pre.weight)
    assert torch.equal(state["cls_head.fc_cls.bias"], model.vc.fc.bias)
    model = build("st_adapter", width=8, preset="24x384")
    randomise(model)
    state, block = to_authors_state(model), model.visual.blocks[2]
    start = "transformer.resblocks.2.adapter"
    assert torch.equal(state[f"{start}_pre_attn.fc1.weight"], block.pre_attn.down.weight)
    assert torch.equal(state[f"{start}_pre_mlp.conv.weight"][:, :, :, 0, 0], block.pre_mlp.conv.weight)
    assert torch.equal(state["fc.weight"], model.vc.fc.weight)


@pytest.mark.parametrize(("method", "options"), MODELS)
def test_loading_is_strict(method, options):
    model = build(method, **options)
    state = to_authors_state(model)
    before = {name: tensor.clone() for name, tensor in model.trained_state_dict().items()}
    some = next(name for name in state if "dapter" in name)
    fc = "fc.bias" if method == "st_adapter" else "cls_head.fc_cls.bias"
    with pytest.raises(InputError, match=r"lacks 1 tensors, among them '.*dapter"):
        m2clip.load_authors_checkpoint(model, {name: tensor for name, tensor in state.items() if name != some})
    with pytest.raises(InputError, match="has unknown 1 tensors, among them 'backbone.extra'"):
        m2clip.load_authors_checkpoint(model, {**state, "backbone.extra": torch.zeros(1)})
    with pytest.raises(InputError, match=r"has shape \(3,\), expected \(5,\)"):
        m2clip.load_authors_checkpoint(model, {**state, fc: torch.zeros(3)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.trained_state_dict().items())


def test_clip_s_own_tensors_may_be_left_out_and_must_fit():
    model = build("aim", width=6)
    state = to_authors_state(model)
    name = "backbone.transformer.resblocks.0.mlp.c_fc.weight"
    with pytest.raises(InputError, match=r"c_fc.weight' has shape \(1, 1\), expected \(128, 32\)"):
        m2clip.load_authors_checkpoint(model, {**state, name: torch.zeros(1, 1)})
    del state[name]
    m2clip.load_authors_checkpoint(model, state)


def test_models_and_checkpoints_without_a_counterpart_are_told():
    for options in ({"layers": "2"}, {"temporal_embedding": False}, {"train_ln_post": False}):
        with pytest.raises(InputError, match="adapters in all layers, a temporal embedding and a trained ln_post"):
            to_authors_state(build("aim", **options))
    with pytest.raises(InputError, match="method 'clip' has no form in authors' checkpoints; m2clip, st_adapter, aim"):
        to_authors_state(build("clip"))
    for state, message in (
        ({"conv1.weight": torch.zeros(1)}, "no checkpoint of M2-CLIP, ST-Adapter or AIM"),
        ({"transformer.resblocks.0.adapter_pre_mlp.fc1.weight": torch.zeros(8, 32)}, "classifier are missing"),
        ({"backbone.transformer.resblocks.0.S_Adapter.D_fc1.weight": torch.zeros(6, 32)}, "this is no AIM checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            authors_options(state)


def test_the_command_reads_frames_and_method_from_the_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("m2clip.towers.loading._open_clip_model", lambda *a: small_clip())
    file, classes = tmp_path / "aim.pth", tmp_path / "classes.txt"
    classes.write_text("\n".join(NAMES))
    torch.save({"meta": {"epoch": 30}, "state_dict": to_authors_state(build("aim", frames=6, preset="ssv2"))}, file)
    arguments = ["convert", str(file), str(tmp_path / "run"), "--clip", "ViT-B-32", "--classes", str(classes)]
    assert main(arguments) == 0
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (config["method"], config["num_frames"]) == ("aim", 6)
    assert config["options"]["num_t_adapters"] == 2 and config["options"]["joint_scale"] == 1.0
    capsys.readouterr()
    arguments[2] = str(tmp_path / "another")  # an earlier run is not written over
    assert main([*arguments, "--frames", "8"]) == 2
    assert "'backbone.temporal_embedding' has shape (1, 6, 32), expected (1, 8, 32)" in capsys.readouterr().err
    torch.save({"state_dict": to_authors_state(build("aim", preset="k400"))}, file)
    assert main([*arguments, "--preset", "paper"]) == 2
    assert "such as presets k400" in capsys.readouterr().err
