"""MA-FSAR as a model: scores of episodes, options, saving."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F

import m2clip
from m2clip.data.episodes import EpisodeShape
from m2clip.errors import InputError
from m2clip.methods import METHODS
from m2clip.methods.ma_fsar import PRESETS, MAFSAROptions
from tests.clips import NAMES, random_video, randomise, small_clip
from tests.methods.ma_fsar_models import CLASSES, LABELS, SHAPE, T, features, make, trained

# ---- scores ----


@pytest.mark.parametrize("options", [{}, {"merge": "distances"}, {"metric": "bi_mhm"}, {"metric": "trx"}], ids=str)
def test_many_episodes_at_once_are_scored_like_one_by_one(options):
    model = make(**options).eval()
    support, query, text = features(model)
    with torch.no_grad():
        found = model.score(support, query, text)
        alone = [model.score(support[i : i + 1], query[i : i + 1], text[i : i + 1]) for i in range(len(support))]
    for name in found._fields:
        values = getattr(found, name)
        assert values.shape == (3, 6, 3)
        torch.testing.assert_close(values, torch.cat([getattr(one, name) for one in alone]), rtol=1e-4, atol=1e-5)


def test_a_score_is_the_loss_s_view_of_the_same_videos():
    model = make().eval()
    randomise(model, 0.1)
    video = random_video(SHAPE.videos, T)
    with torch.no_grad():
        support = model.encode_support(video[:6], LABELS[:6]).unflatten(0, (3, 2))
        query, text = model.encode_query(video[6:]), model.text_features()[CLASSES]
        scores, losses = model.score(support[None], query[None], text[None]), model.loss(video, LABELS)
    asked = torch.tensor([0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(F.cross_entropy(-scores.distances[0], asked), losses.parts["q2s"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(F.cross_entropy(scores.text_logits[0], asked), losses.parts["q2t"], rtol=1e-4, atol=1e-5)


def test_alpha_weighs_text_against_support():
    scores = {}
    for alpha in (0.0, 0.3, 1.0):
        model = make(alpha=alpha).eval()
        with torch.no_grad():
            scores[alpha] = model.score(*features(model))
        torch.testing.assert_close(scores[alpha].probabilities.sum(dim=-1), torch.ones(3, 6))
    support, mixed, text = (scores[alpha].probabilities for alpha in (0.0, 0.3, 1.0))
    torch.testing.assert_close(support, (-scores[0.0].distances).softmax(dim=-1))
    torch.testing.assert_close(text, scores[1.0].text_logits.softmax(dim=-1))
    torch.testing.assert_close(mixed, 0.3 * text + 0.7 * support)


def test_shots_are_merged_before_the_prototypes_or_by_their_distances():
    shape = EpisodeShape(3, 3, 2)
    models = {merge: make(merge=merge).eval() for merge in ("features", "distances")}
    support, query, text = features(models["features"], shape)
    with torch.no_grad():
        found = {merge: model.distances(support, query, text) for merge, model in models.items()}
        merged = models["features"].distances(support.mean(dim=2, keepdim=True), query, text)
        single = torch.stack([models["distances"].distances(support[:, :, i : i + 1], query, text) for i in range(3)])
    torch.testing.assert_close(found["features"], merged)
    torch.testing.assert_close(found["distances"], single.mean(dim=0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["features"], found["distances"], atol=1e-3)
    with torch.no_grad():
        one_shot = [model.distances(support[:, :, :1], query, text) for model in models.values()]
    torch.testing.assert_close(*one_shot, rtol=1e-4, atol=1e-5)


def test_features_that_do_not_fit_are_refused():
    model = make()
    support, query, text = features(model)
    for wrong in ((support[:, 0], query, text), (support, query[:2], text), (support, query, text[:, :2])):
        with pytest.raises(ValueError, match="score takes support"):
            model.score(*wrong)


# ---- options ----

ALTERNATIVES = {
    "adapt": False,
    "parts": ("temporal",),
    "text_tokens": False,
    "layers": "2",
    "ratio": 0.5,
    "num_t_adapters": 2,
    "temporal_skip": True,
    "temporal_residual": False,
    "write_back": True,
    "text_fc": "shared",
    "normalize_text": True,
    "joint_scale": 0.5,
    "temporal_embedding": False,
    "prototype": "multimodal",
    "tpcm_norm": "none",
    "tpcm_residual": "frames",
    "tpcm_heads": 2,
    "attention_dropout": 0.5,
    "ffn_dropout": 0.5,
    "merge": "distances",
    "metric": "bi_mhm",
    "smoothing": 0.1,
    "alpha": 0.2,
    "tau": 0.5,
    "learn_tau": True,
    "kl": "actionclip",
    "text_classes": "all",
    "prompt": "a video of {}",
}


def behaviour(**options):
    """What a model with weights away from their start says in training, and how many there are."""
    model = make(**options)
    randomise(model)
    torch.manual_seed(5)  # of dropout
    found = model.loss(random_video(SHAPE.videos, T), LABELS)
    values = [part.item() for part in (found.total, *found.parts.values())]
    return values, sum(parameter.numel() for parameter in trained(model).values())


@pytest.mark.parametrize("name", [field.name for field in fields(MAFSAROptions)])
def test_every_option_changes_something(name):
    assert name in ALTERNATIVES, "give the new option another value here"
    assert ALTERNATIVES[name] != getattr(MAFSAROptions(), name)
    values, count = behaviour()
    again, _ = behaviour()
    assert again == values
    others, other_count = behaviour(**{name: ALTERNATIVES[name]})
    assert other_count != count or max(abs(a - b) for a, b in zip(values, others, strict=True)) > 1e-4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"parts": ("local",)}, "parts: 'local' is none of multimodal, temporal, joint"),
        ({"num_t_adapters": 3}, "num_t_adapters: 3 is none of 1, 2"),
        ({"prototype": "mean"}, "prototype: 'mean' is none of tpcm, multimodal, unimodal, none"),
        ({"metric": "dtw"}, "metric: 'dtw' is none of otam, bi_mhm, trx"),
        ({"alpha": 1.5}, "alpha must lie between 0 and 1, not 1.5"),
        ({"tau": 0.0}, "tau must be above 0"),
        ({"ffn_dropout": 1.0}, "ffn_dropout must be at least 0 and below 1"),
        ({"tpcm_heads": 5}, "5 heads do not divide features of width 32"),
        ({"layers": "2-9"}, "layers='2-9'"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(InputError, match=words):
        make(**options)


def test_trx_needs_frames_for_its_tuples():
    with pytest.raises(InputError, match="cardinalities must be between 1 and num_frames = 2"):
        m2clip.create_model("ma_fsar", small_clip(), NAMES, 2, metric="trx", tpcm_heads=4)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_score_episodes(preset):
    model = make(preset=preset).eval()
    with torch.no_grad():
        assert model.score(*features(model)).probabilities.isfinite().all()


# ---- the model as the others are ----


def test_it_says_of_a_video_what_the_others_say():
    model = make().eval()
    video = random_video(2, T)
    with torch.no_grad():
        out = model(video)
        torch.testing.assert_close(out.frame_features, model.encode_query(video))
    assert out.logits is None and out.similarity.shape == (2, len(NAMES))
    torch.testing.assert_close(out.video_features, out.frame_features.mean(dim=1))
    with pytest.raises(ValueError, match="video must be"):
        model.encode_support(video[:, :2], LABELS[:2])


def test_new_class_names_are_those_of_support_videos_too():
    model = make().eval()
    video = random_video(2, T)
    with torch.no_grad():
        before = model.encode_support(video, torch.tensor([3, 0]))
        model.set_class_names([NAMES[0], "sword fighting", NAMES[3]])
        torch.testing.assert_close(model.encode_support(video, torch.tensor([2, 0])), before)
        assert model(video).similarity.shape == (2, 3)


@pytest.mark.parametrize(
    "options", [{}, {"text_fc": "shared", "learn_tau": True, "parts": ("multimodal", "joint")}], ids=str
)
def test_saved_and_loaded_it_says_the_same(tmp_path, options):
    model = make(m2clip.load_clip("tiny"), **options)
    randomise(model, 0.05)
    folder = m2clip.save_adapters(model, tmp_path / "run")
    again = m2clip.load_adapters(folder)
    assert again.config == model.config and METHODS["ma_fsar"].model is type(again)
    assert trained(again).keys() == trained(model).keys()
    video = random_video(SHAPE.videos, T, 48)
    again.episode = SHAPE
    assert again.loss(video, LABELS).total.item() == model.eval().loss(video, LABELS).total.item()


def test_half_precision_towers_stay_close_and_train():
    clips = [small_clip(), small_clip()]
    full, half = (make(clip).eval() for clip in clips)
    for model in (full, half):
        randomise(model, 0.05)
    half.set_precision("bf16")
    video = random_video(SHAPE.videos, T)
    assert half.visual.stem.conv1.weight.dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in trained(half).values())
    with torch.no_grad():
        expected, found = (model.encode_support(video[:2], LABELS[:2]) for model in (full, half))
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.02 * expected.norm()
    loss = half.loss(video, LABELS)
    assert loss.total.dtype == torch.float32
    loss.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in trained(half).values())


@pytest.mark.parametrize("options", [{}, {"write_back": True, "temporal_residual": False}], ids=str)
def test_autocast_stays_close(options):
    model = make(**options).eval()
    randomise(model, 0.05)
    video = random_video(2, T)
    with torch.no_grad():
        expected = model.encode_support(video, LABELS[:2])
        with torch.autocast("cpu", torch.bfloat16):
            found = model.encode_support(video, LABELS[:2])
    assert 0 < (found - expected).norm() < 0.02 * expected.norm()


def test_weights_of_the_clip_are_shared_not_copied():
    clip = small_clip()
    model = make(clip)
    own = {parameter.data_ptr() for parameter in clip.parameters()}
    assert all(parameter.data_ptr() in own for parameter in model.parameters() if not parameter.requires_grad)
    assert not own & {parameter.data_ptr() for parameter in trained(model).values()}
