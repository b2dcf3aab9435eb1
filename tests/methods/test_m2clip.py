"""M2-CLIP: sizes, agreement with the authors' formulation, heads, switches, saving."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

import m2clip
from benchmarks.authors import AuthorsM2CLIP, total_loss
from m2clip.checkpoints.convert import authors_name, to_authors_state
from m2clip.data.lists.label_sets import load_class_names
from m2clip.errors import InputError
from m2clip.towers.prompts import IGNORE
from tests.clips import NAMES, random_video, randomise, small_clip

LABELS = torch.tensor([3, 0])
SMALL = {"width": 8, "text_width": 8, "vc_dropout": 0.0}


def build(clip=None, **options):
    torch.manual_seed(3)
    return m2clip.create_model("m2clip", clip or small_clip(), NAMES, 4, **{**SMALL, **options})


def test_published_parameter_count():
    with torch.device("meta"):
        clip = m2clip.load_clip("ViT-B-16-quickgelu", None, device="meta")
        model = m2clip.create_model("m2clip", clip, load_class_names("k400"), 8, preset="official")
    trained = model.trained_state_dict()
    assert sum(tensor.numel() for tensor in trained.values()) == 16_138_136
    assert len(model.config.word_list) == 520
    assert sum(p.numel() for p in clip.parameters() if p.requires_grad) == 0
    by_part = {
        "visual.blocks.": 12 * 1_187_328,
        "output_adapter.": 263_936,
        "text.": 394_112,
        "cmlm.adapter.": 394_112,
        "cmlm.words.": 530_440,
        "vc.": 307_600,
    }
    for prefix, expected in by_part.items():
        assert sum(t.numel() for name, t in trained.items() if name.startswith(prefix)) == expected


def authors_inputs(model, clip, generator_seed: int):
    """What the authors' formulation is fed for the same masked words as model.loss draws."""
    import open_clip

    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    prompts = tokenizer([f"a video of {name}".replace("(", "").replace(")", "") for name in NAMES])
    uniform = torch.rand(2, model.masker.max_words, generator=torch.Generator().manual_seed(generator_seed))
    masked, targets = model.masker(LABELS.tolist(), uniform)
    words = torch.full((2, 77), IGNORE).scatter(1, masked.positions, targets)
    return prompts, prompts[LABELS], F.pad(masked.tokens, (0, 77 - masked.tokens.shape[1])), words


def authors_model(model, clip, everywhere):
    theirs = AuthorsM2CLIP(clip, 4, len(NAMES), len(model.config.word_list), 8, 8, everywhere)
    theirs.to(clip.logit_scale.dtype)
    theirs.load_state_dict(to_authors_state(model))
    return theirs


EVERYWHERE = {"placement": "both", "text_placement": "both", "text_layers": 3}
AUTHORS = pytest.mark.parametrize("options", [{}, EVERYWHERE], ids=["12x384", "24x384"])


@AUTHORS
def test_losses_and_gradients_agree_with_the_authors_formulation(options):
    clip = small_clip().double()
    model = build(clip, text_zero_init_up=False, **options).double()
    randomise(model)
    theirs = authors_model(model, clip, bool(options))
    video = random_video().double()
    inputs = authors_inputs(model, clip, 5)
    parts = theirs.losses(video, LABELS, *inputs, logit_scale=clip.logit_scale.exp().item())
    loss = model.loss(video, LABELS, torch.Generator().manual_seed(5))
    assert set(loss.parts) == set(parts)
    for name, part in parts.items():
        torch.testing.assert_close(loss.parts[name], part, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.total, total_loss(parts), rtol=1e-12, atol=0)

    loss.total.backward()
    total_loss(parts).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            other = expected[authors_name(name, 3)].grad.reshape(parameter.shape)
            scale = max(other.abs().max().item(), 1e-3)
            assert (parameter.grad - other).abs().max() <= 1e-10 * scale, name


@AUTHORS
def test_forward_agrees_with_the_authors_formulation(options):
    clip = small_clip()
    model = build(clip, **options).eval()
    randomise(model)
    theirs = authors_model(model, clip, bool(options))
    video = random_video(3)
    out = model(video)
    tokens, frames = theirs.encode_video(video)
    scores = theirs.visual.adapter_fc(clip.visual.ln_post(tokens.mean(dim=1)))
    for ours, expected in ((out.frame_features, frames), (out.logits, scores)):
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize(
    "heads", [("vc",), ("contrastive",), ("cmc",), ("cmlm",), ("contrastive", "cmc", "cmlm", "vc")]
)
@pytest.mark.parametrize("placement", ["pre_attn", "pre_mlp", "both"])
def test_every_trained_parameter_gets_a_gradient_whatever_the_heads(preset, heads, placement):
    model = build(preset=preset, heads=heads, placement=placement)
    randomise(model, 0.05)
    loss = model.loss(random_video(), LABELS, torch.Generator().manual_seed(0))
    assert set(loss.parts) == set(heads)
    loss.total.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_every_part_of_the_model_learns_when_all_heads_are_on():
    model = build()
    randomise(model, 0.05)
    model.loss(random_video(), LABELS, torch.Generator().manual_seed(0)).total.backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and not p.grad.any()]
    # Nothing reads patch tokens after the last block, so its difference branch alone stays without a gradient.
    assert silent and all(name.startswith("visual.blocks.2.pre_mlp.difference") for name in silent)


def test_total_is_the_weighted_sum_of_the_heads():
    weights = {"contrastive": 0.3, "cmc": 0.7, "cmlm": 0.2, "vc": 1.5}
    model = build(head_weights=weights)
    randomise(model, 0.05)
    loss = model.loss(random_video(), LABELS, torch.Generator().manual_seed(0))
    expected = sum(weight * loss.parts[name] for name, weight in weights.items())
    torch.testing.assert_close(loss.total.detach(), expected)


def test_a_batch_without_masked_words_adds_exactly_zero():
    model = build(mask_rate=0.0)
    randomise(model, 0.05)
    loss = model.loss(random_video(), LABELS)
    assert loss.parts["cmlm"].item() == 0
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    assert not model.cmlm.words.decoder.grad.any()


def test_masking_follows_its_generator():
    model = build()
    randomise(model, 0.2)
    video = random_video()
    first, again, other = (
        model.loss(video, LABELS, torch.Generator().manual_seed(seed)).parts["cmlm"].item() for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("vocabulary", ["words", "official", "clip"])
def test_vocabularies(vocabulary):
    model = build(vocabulary=vocabulary)
    size = model.cmlm.words.bias.numel()
    assert size == {"words": 17, "official": 18, "clip": 49408}[vocabulary]
    assert (model.cmlm.words.decoder is None) == (vocabulary == "clip")
    model.loss(random_video(), LABELS).total.backward()


def test_adapters_switch_off_each_by_itself_and_come_back():
    clip = small_clip()
    model = build(clip).eval()
    randomise(model)
    frozen = m2clip.create_model("clip", clip, NAMES, 4, prompt=model.prompt)
    video = random_video()
    with torch.no_grad():
        adapted, plain = model(video), frozen(video)
        with model.adapters_disabled("visual"):
            torch.testing.assert_close(model(video).video_features, plain.video_features)
            assert not torch.allclose(model.text_features(), frozen.text_features())
        with model.adapters_disabled("text"):
            torch.testing.assert_close(model.text_features(), frozen.text_features())
            torch.testing.assert_close(model(video).video_features, adapted.video_features)
        with model.adapters_disabled():
            torch.testing.assert_close(model(video).similarity, plain.similarity)
        assert torch.equal(model(video).similarity, adapted.similarity)
    with pytest.raises(InputError, match="'audio'"), model.adapters_disabled("audio"):
        pass


def test_class_names_can_be_exchanged_after_training():
    model = build().eval()
    randomise(model)
    video = random_video()
    known = model(video)
    model.set_class_names(["yawning", "sneezing"])
    out = model(video)
    assert out.similarity.shape == (2, 2) and out.logits is None
    with pytest.raises(InputError, match="class names were exchanged"):
        model.loss(video, LABELS)
    model.set_class_names(NAMES)
    assert torch.equal(model(video).similarity, known.similarity)
    assert torch.equal(model(video).logits, known.logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ("vc", "rank")}, "heads: 'rank' is none of"),
        ({"heads": ()}, "heads must not be empty"),
        ({"placement": "after"}, "placement: 'after'"),
        ({"head_weights": {"vc": 1.0}}, "no weight for 'contrastive'"),
        ({"depth": 3}, "no option 'depth'"),
        ({"preset": "best"}, "no preset 'best'"),
        ({"text_layers": 9}, "text tower has 3 layers"),
        ({"layers": "2-9"}, "within 1-3"),
        ({"layers": 2}, "option layers must be text, got 2"),
        ({"heads": 3}, "option heads must be a list of texts, got 3"),
        ({"head_weights": 1.0}, "option head_weights must map names to numbers"),
        ({"width": "8"}, "option width must be an integer, got '8'"),
        ({"width": 2**70}, "option width must be at most"),
        ({"text_layers": True}, "option text_layers must be an integer, got True"),
        ({"output_adapter": "no"}, "option output_adapter must be True or False, got 'no'"),
        ({"vc_dropout": float("nan")}, "option vc_dropout must be finite"),
        ({"vc_dropout": 2.0}, "method 'm2clip': dropout probability"),
    ],
)
def test_bad_options_are_told(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)


def test_the_word_head_needs_equal_widths():
    with pytest.raises(InputError, match="cmlm head needs frame features"):
        build(small_clip(joint=24))
    build(small_clip(joint=24), heads=("contrastive", "cmc", "vc")).loss(random_video(), LABELS)


@pytest.mark.parametrize(
    ("video", "error", "message"),
    [
        (torch.zeros(2, 3, 3, 32, 32), ValueError, r"\(B, 4, 3, 32, 32\)"),
        (torch.zeros(2, 4, 3, 64, 64), ValueError, r"\(B, 4, 3, 32, 32\)"),
        (torch.zeros(2, 4, 3, 32, 32, dtype=torch.uint8), TypeError, "normalised floats"),
    ],
)
def test_bad_videos_are_told(video, error, message):
    with pytest.raises(error, match=message):
        build()(video)


# ---- saving ----


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_saved_adapters_rebuild_the_model(tmp_path, preset):
    clip = small_clip()
    model = build(clip, preset=preset, layers="2-3").eval()
    randomise(model)
    m2clip.save_adapters(model, tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["adapter_config.json", "adapters.safetensors"]
    loaded = m2clip.load_adapters(tmp_path / "run", clip, class_names=NAMES, num_frames=4)
    video = random_video()
    assert torch.equal(loaded(video).similarity, model(video).similarity)
    assert torch.equal(loaded(video).logits, model(video).logits)


def test_loading_checks_tower_frames_names_and_files(tmp_path):
    clip = small_clip()
    folder = m2clip.save_adapters(build(clip), tmp_path)
    with pytest.raises(InputError, match="joint_width 32 .given: 24."):
        m2clip.load_adapters(folder, small_clip(joint=24))
    with pytest.raises(InputError, match="activation 'QuickGELU'"):
        m2clip.load_adapters(folder, small_clip(quick_gelu=False))
    with pytest.raises(InputError, match="4 frames per clip, not 8"):
        m2clip.load_adapters(folder, clip, num_frames=8)
    with pytest.raises(InputError, match="class 0 is 'juggling balls'"):
        m2clip.load_adapters(folder, clip, class_names=["diving", *NAMES[1:]])
    with pytest.raises(InputError, match="5 classes, the given label set has 4"):
        m2clip.load_adapters(folder, clip, class_names=NAMES[:4])
    with pytest.raises(InputError, match="does not name its CLIP"):
        m2clip.load_adapters(folder)
    config = folder / "adapter_config.json"
    saved = json.loads(config.read_text())
    other = build(clip, width=16)
    m2clip.save_adapters(other, tmp_path / "other")
    weights = folder / "adapters.safetensors"
    config.write_text((tmp_path / "other" / "adapter_config.json").read_text())
    with pytest.raises(InputError, match="was not saved together with the adapter_config.json beside it"):
        m2clip.load_adapters(folder, clip)
    config.write_text(json.dumps(saved)[:-20])
    with pytest.raises(InputError, match="cannot read"):
        m2clip.load_adapters(folder, clip)
    config.write_text(json.dumps(saved))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"adapters\.safetensors is damaged"):
        m2clip.load_adapters(folder, clip)
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        m2clip.load_adapters(tmp_path / "nowhere", clip)


def test_an_interrupted_save_leaves_the_earlier_one_readable(tmp_path, monkeypatch):
    clip = small_clip()
    model = build(clip)
    m2clip.save_adapters(model, tmp_path)
    before = model.trained_state_dict()["vc.fc.weight"].clone()
    randomise(model)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(InputError, match="No space left"):
        m2clip.save_adapters(model, tmp_path)
    assert torch.equal(m2clip.load_adapters(tmp_path, clip).trained_state_dict()["vc.fc.weight"], before)
    assert not list(tmp_path.glob(".*"))


def test_unknown_clips_and_weights_are_told(tmp_path):
    with pytest.raises(InputError, match="did you mean ViT-B-16"):
        m2clip.load_clip("ViT-B-61", None)
    with pytest.raises(InputError, match="neither a file nor one of the tags"):
        m2clip.load_clip("ViT-B-32", "openia")
    (tmp_path / "page.pt").write_text("<html>")
    with pytest.raises(InputError, match="cannot be read as a file of tensors"):
        m2clip.load_clip("ViT-B-32", tmp_path / "page.pt")
