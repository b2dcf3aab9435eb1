"""MSTA: sizes, the frozen towers at lambda 0, sharing, the constraint, and ViCLIP."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
import torch.nn.functional as F

import m2clip
from m2clip.cli import main
from m2clip.errors import InputError
from m2clip.methods.descriptions import BUNDLED, load_descriptions, write_template
from m2clip.methods.msta import consistency_loss
from m2clip.towers.viclip import build_viclip, load_viclip
from tests.clips import small_clip

NAMES = ["juggling", "a circle moving left", "yawning"]
CLASSES = ["a circle moving left", "a ring growing", "a star fading out"]


def make(clip=None, names=NAMES, frames=4, **options):
    torch.manual_seed(0)
    return m2clip.create_model("msta", clip or m2clip.load_clip("tiny"), names, frames, **{"width": 16, **options})


def video(model, clips=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(clips, model.num_frames, 3, *model.image_size, generator=generator)


def loss(model, **options):
    return model.loss(video(model), torch.tensor([0, 2]), **options)


@pytest.mark.parametrize("temporal_up", ["grouped", "dw_after_up"])
@pytest.mark.parametrize(
    ("preset", "size", "per_layer"), [("early", 1_744_000, 348_800), ("paper", 8_712_192, 726_016)]
)
def test_published_sizes(preset, size, per_layer, temporal_up):
    with torch.device("meta"):
        clip = m2clip.load_clip("ViT-B-16-quickgelu", None, device="meta")
        model = m2clip.create_model("msta", clip, NAMES, 8, preset=preset, temporal_up=temporal_up)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == size and trained % per_layer == 0


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"layers": "none"}])
def test_without_lambda_or_layers_it_is_frozen_clip_to_the_bit(options):
    clip = m2clip.load_clip("tiny")
    frozen = m2clip.create_model("clip", clip, NAMES, 4, prompt="a video of {}.")
    model = make(clip, **options)
    clips = video(model)
    assert torch.equal(model(clips).similarity, frozen(clips).similarity)
    assert torch.equal(model(clips).video_features, frozen(clips).video_features)


def test_an_untrained_model_is_close_to_frozen_clip_and_not_it():
    clip = m2clip.load_clip("tiny")
    model = make(clip)
    clips = video(model)
    out = model(clips).video_features
    with model.adapters_disabled():
        frozen = model(clips).video_features
    deviation = (out - frozen).norm() / frozen.norm()
    assert 0 < deviation < 0.05


@pytest.mark.parametrize("prenorm", ["ln_1", "none"])
def test_a_block_is_the_frozen_block_plus_the_adapter(prenorm):
    model = make(small_clip(), adapter_prenorm=prenorm, layers="1")
    block = model.visual.blocks[0]
    x = torch.randn(8, 1 + 4, model.visual.stem.width)
    with torch.no_grad():
        normalised = block.ln_1(x)
        plain = x + block.ls_1(block.attend(normalised, normalised))
        plain = block.mlp_half(plain)
        adapter = block.parallel
        read = normalised if prenorm == "ln_1" else x
        h = F.relu(adapter.shared(F.relu(adapter.down(read))))
        series = h.unflatten(0, (2, 4)).permute(0, 2, 3, 1).flatten(0, 1)
        over_time = adapter.conv(series).unflatten(0, (2, 5)).permute(0, 3, 1, 2).flatten(0, 1)
        expected = plain + 0.005 * (adapter.up(h) + over_time)
        torch.testing.assert_close(model.visual._block(block, x, 4, last=False), expected)


def test_towers_share_one_projection_a_depth_and_the_constraint_leaves_video_weights_alone():
    model = make(names=CLASSES, descriptions=BUNDLED[:2])
    pairs = [(len(model.visual.blocks) - i, len(model.text.blocks) - i) for i in (1, 2)]
    for visual, text in pairs:
        assert model.visual.blocks[visual].parallel.shared is model.text.blocks[text].parallel.shared
    shared = model.visual.blocks[-1].parallel.shared.weight
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    constraint = consistency_loss(model.text_features().float(), model.described_features())
    gradients = torch.autograd.grad(constraint, list(parameters.values()), allow_unused=True)
    touched = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    assert touched and not any(name.startswith("visual") and "shared" not in name for name in touched)
    assert any("shared" in name for name in touched)
    features = model.encode(video(model))[1]
    assert torch.autograd.grad(features.sum(), shared)[0].any()
    unshared = make(share=False)
    assert unshared.visual.blocks[-1].parallel.shared is not unshared.text.blocks[-1].parallel.shared


def test_towers_of_different_depth_are_tied_from_the_end():
    model = make(layers="all")  # the tiny CLIP's towers have 3 and 2 blocks
    depths = len(model.visual.blocks), len(model.text.blocks)
    assert depths == (3, 2)
    assert all(block.parallel is not None for block in (*model.visual.blocks, *model.text.blocks))
    partly = make(layers="3")
    assert [block.parallel is not None for block in partly.visual.blocks] == [False, False, True]
    assert [block.parallel is not None for block in partly.text.blocks] == [False, True]


@pytest.mark.parametrize("temporal_up", ["grouped", "dw_after_up"])
def test_the_order_of_frames_counts_through_the_outer_taps_alone(temporal_up):
    model = make(layers="3", temporal_up=temporal_up, scale=1.0)
    clips = video(model)
    shuffled = clips[:, [2, 0, 3, 1]]
    assert not torch.allclose(model.encode(clips)[1], model.encode(shuffled)[1], rtol=1e-3)
    with torch.no_grad():
        model.visual.blocks[-1].parallel.conv.weight[..., [0, 2]] = 0
    torch.testing.assert_close(model.encode(clips)[1], model.encode(shuffled)[1])


def test_the_constraint_is_zero_where_texts_are_parallel_to_both_means():
    w = torch.randn(5, 8)
    assert consistency_loss(w, torch.stack([w * 3, w * 0.1])).abs() < 1e-6
    other = torch.stack([w, -w])
    torch.testing.assert_close(consistency_loss(w, other), torch.tensor(2.0))
    with_constraint, without = (make(names=CLASSES, descriptions=BUNDLED[:2], alpha=alpha) for alpha in (1.0, 0.0))
    found, plain = loss(with_constraint), loss(without)
    assert set(found.parts) == {"ce", "cc"} and set(plain.parts) == {"ce"}
    torch.testing.assert_close(found.total, plain.total + found.parts["cc"])


def test_descriptions_are_means_of_unit_features_of_the_frozen_text_tower():
    model = make(names=CLASSES, descriptions=BUNDLED[:2], scale=1.0)
    sentences = load_descriptions("motion-temporal", CLASSES)[1]
    with torch.no_grad(), model.adapters_disabled("text"):
        prompts = model.tokenizer.batch([sentence.split() for sentence in sentences])
        features = model.text.project(model.text(prompts.tokens, prompts.positions)[:, 0])
    torch.testing.assert_close(model.described_features()[1, 1], F.normalize(features, dim=-1).mean(dim=0))


def test_training_without_descriptions_says_what_to_do():
    with pytest.raises(InputError, match="needs descriptions of the classes.*m2clip describe"):
        loss(make())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temporal_up": "dense"}, "temporal_up: 'dense' is none of grouped, dw_after_up"),
        ({"adapter_prenorm": "ln_2"}, "adapter_prenorm"),
        ({"towers": ("audio",)}, "towers: 'audio'"),
        ({"width": 0}, "width must be at least 1"),
        ({"rescale_adapter_grad": True, "scale": 0.0}, "divides by scale"),
        ({"descriptions": ("one",)}, "descriptions takes two files"),
        ({"layers": "2-9"}, "layers='2-9'"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(InputError, match=words):
        make(**options)


def test_rescaled_gradients_are_divided_by_lambda():
    plain, rescaled = (make(alpha=0.0, rescale_adapter_grad=rescale, layers="3") for rescale in (False, True))
    for model in (plain, rescaled):
        loss(model).total.backward()
    for (name, a), b in zip(plain.named_parameters(), rescaled.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad / 0.005, rtol=1e-4, atol=1e-6, msg=name)


def test_saved_and_loaded_it_says_the_same(tmp_path):
    model = make(names=CLASSES, descriptions=BUNDLED[:2], scale=0.5)
    folder = m2clip.save_adapters(model, tmp_path / "run")
    again = m2clip.load_adapters(folder)
    clips = video(model)
    assert torch.equal(again(clips).similarity, model.eval()(clips).similarity)
    assert again.config == model.config
    again.set_class_names(["something else", "a ring growing"])
    assert again(clips).similarity.shape == (2, 2)


# ---- descriptions ----


def test_descriptions_by_position_by_name_and_of_any_number(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"0": ["one", "two"], "1": "a single string", "2": ["x"]}))
    assert load_descriptions(path, NAMES) == [["one", "two"], ["a single string"], ["x"]]
    path.write_text(json.dumps({name: [name] for name in (*NAMES, "another")}))
    assert load_descriptions(path, NAMES) == [[name] for name in NAMES]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"0": ["a"], "1": ["b"]}', "describes 2 classes by position, and the label set has 3"),
        ('{"0": ["a"], "1": [], "2": [" "]}', "no sentence for 2 of 3 classes, among them 'a circle moving left'"),
        ('{"juggling": ["a"]}', "no sentence for 2 of 3 classes"),
        ('{"0": [1], "1": ["b"], "2": ["c"]}', "'0' must be a list of sentences"),
        ("[]", "must hold an object"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_descriptions_that_cannot_be_used(tmp_path, content, words):
    path = tmp_path / "d.json"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        load_descriptions(path, NAMES)
    with pytest.raises(InputError, match="does not exist"):
        load_descriptions(tmp_path / "none.json", NAMES)


@pytest.mark.parametrize("data_set", ["motion", "mocap"])
def test_the_bundled_files_describe_the_built_in_data_sets(data_set):
    classes = importlib.import_module(f"m2clip.data.built_in.{data_set}").CLASSES
    spatial, temporal = (source for source in BUNDLED if source.startswith(data_set))
    for source, different in ((spatial, 6), (temporal, len(classes))):
        found = load_descriptions(source, [c.name for c in classes])
        assert all(len(sentences) == 2 for sentences in found)
        assert len({tuple(sentences) for sentences in found}) >= different


def test_describe_writes_a_template_and_checks_a_filled_one(tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(NAMES))
    path = tmp_path / "spatial.json"
    assert main(["describe", str(path), "--classes", str(classes), "--sentences", "2"]) == 0
    assert json.loads(path.read_text()) == {name: ["", ""] for name in NAMES}
    assert main(["describe", str(path), "--classes", str(classes)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["describe", str(path), "--classes", str(classes), "--check"]) == 2
    assert "no sentence for 3 of 3 classes" in capsys.readouterr().err
    path.write_text(json.dumps({name: [f"a video about {name}"] for name in NAMES}))
    assert main(["describe", str(path), "--classes", str(classes), "--check"]) == 0
    assert "3 classes, 3 sentences" in capsys.readouterr().out
    with pytest.raises(InputError, match="is there already"):
        write_template(path, NAMES, 1)


# ---- ViCLIP ----


@pytest.fixture(scope="module")
def viclip():
    torch.manual_seed(0)
    clip = build_viclip("ViCLIP-B-16").eval()
    torch.nn.init.normal_(clip.visual.temporal_positional_embedding)
    return clip


def test_patches_are_ordered_with_time_running_fastest(viclip):
    model = make(viclip, frames=8)
    clips = torch.randn(1, 8, 3, 224, 224)
    with torch.no_grad():
        tokens = model.visual.embed_clips(clips)
        visual = viclip.visual
        frame, patch = 5, 3 * 14 + 2
        pixels = clips[0, frame, :, 3 * 16 : 4 * 16, 2 * 16 : 3 * 16]
        token = visual.conv1(pixels[None])[0, :, 0, 0] + visual.positional_embedding[1 + patch]
        token = visual.ln_pre(token + visual.temporal_positional_embedding[0, frame])
        assert tokens.shape == (1, 1 + 196 * 8, 768)
        torch.testing.assert_close(tokens[0, 1 + patch * 8 + frame], token, rtol=1e-4, atol=1e-4)
        start = visual.ln_pre(visual.class_embedding + visual.positional_embedding[0])
        torch.testing.assert_close(tokens[0, 0], start, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_joint_tower_is_open_clip_s_transformer_over_all_tokens(viclip):
    model = make(viclip, frames=2, layers="none")
    clips = torch.randn(1, 2, 3, 224, 224)
    with torch.no_grad():
        tokens = model.visual.embed_clips(clips)
        expected = viclip.visual.ln_post(viclip.visual.transformer(tokens)[:, 0]) @ viclip.visual.proj
        torch.testing.assert_close(model.encode(clips)[1], expected, rtol=1e-3, atol=1e-4)


def to_published(clip):
    """The state dict of a ViCLIP in the published form."""
    state = {}
    for name, tensor in clip.state_dict().items():
        if name == "logit_scale":
            state["temp"] = (-tensor).exp()
        elif name == "visual.conv1.weight":
            state["vision_encoder.conv1.weight"] = tensor.unsqueeze(2)
        else:
            vision = name.startswith("visual.")
            state[f"vision_encoder.{name[7:]}" if vision else f"text_encoder.{name}"] = tensor
    return state


def test_published_checkpoints_are_read_and_others_refused(viclip, tmp_path):
    state = to_published(viclip)
    assert state["vision_encoder.conv1.weight"].shape == (768, 3, 1, 16, 16)
    assert state["text_encoder.positional_embedding"].shape == (32, 512) and state["temp"].shape == ()
    path = tmp_path / "ViCLIP-B.pth"
    torch.save({"model": state}, path)
    again = m2clip.load_clip("ViCLIP-B-16", path)
    for name, tensor in viclip.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, msg=name)
    with pytest.raises(InputError, match="holds no ViCLIP-L-14"):
        load_viclip("ViCLIP-L-14", path)
    torch.save({"model": {"backbone.weight": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match="is no checkpoint of ViCLIP: it holds 'backbone.weight'"):
        load_viclip("ViCLIP-B-16", path)
    del state["text_encoder.ln_final.weight"]
    torch.save(state, path)
    with pytest.raises(InputError, match="1 tensors are missing, among them 'ln_final.weight'"):
        load_viclip("ViCLIP-B-16", path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="cannot be read as a file of tensors"):
        load_viclip("ViCLIP-B-16", path)
    with pytest.raises(InputError, match="does not exist"):
        load_viclip("ViCLIP-B-16", tmp_path / "none.pth")


def test_longer_embeddings_of_a_checkpoint_are_taken_over(viclip, tmp_path):
    state = to_published(viclip)
    state["vision_encoder.temporal_positional_embedding"] = torch.randn(1, 16, 768)
    state["text_encoder.positional_embedding"] = torch.randn(77, 512)
    torch.save(state, tmp_path / "long.pth")
    clip = load_viclip("ViCLIP-B-16", tmp_path / "long.pth")
    assert clip.context_length == 77 and clip.visual.temporal_positional_embedding.shape == (1, 16, 768)
    with torch.no_grad():
        assert clip.encode_text(torch.zeros(1, 77, dtype=torch.int64)).shape == (1, 512)
