"""MA-FSAR as a model: published sizes, what depends on text and time, losses, episodes, options, saving."""

from __future__ import annotations

from dataclasses import fields

import open_clip
import pytest
import torch
import torch.nn.functional as F

import m2clip
from m2clip.data.episodes import EpisodeShape
from m2clip.errors import InputError
from m2clip.matching import bi_mhm, frame_distances, otam
from m2clip.methods import METHODS
from m2clip.methods.ma_fsar import PRESETS, MAFSAROptions
from m2clip.towers import freeze
from tests.clips import NAMES, random_video, randomise, small_clip

T = 4
SHAPE = EpisodeShape(way=3, shots=2, queries=2)
CLASSES = [4, 0, 2]
LABELS = torch.tensor([c for c in CLASSES for _ in range(2)] * 2)  # support and queries of SHAPE


def make(clip=None, seed=0, **options):
    torch.manual_seed(seed)
    model = m2clip.create_model("ma_fsar", clip or small_clip(), NAMES, T, **{"tpcm_heads": 4, **options})
    model.episode = SHAPE
    return model


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def features(model, shape=SHAPE, episodes=3):
    """Random features of episodes: support, query, text."""
    generator, dim = torch.Generator().manual_seed(3), model.tower["joint_width"]
    sizes = (
        (episodes, shape.way, shape.shots, T, dim),
        (episodes, shape.way * shape.queries, T, dim),
        (episodes, shape.way, dim),
    )
    return tuple(torch.randn(size, generator=generator) for size in sizes)


# ---- sizes ----


@pytest.fixture(scope="module")
def clip_b32():
    clip = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
    freeze(clip)
    return clip


def counts(clip, frames=8, **options):
    model = m2clip.create_model("ma_fsar", clip, NAMES, frames, **options)
    return model, sum(p.numel() for p in trained(model).values()), sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("norm", "prototypes"), [("pre", 3_149_824), ("none", 3_150_336)])
def test_published_sizes(clip_b32, norm, prototypes):
    model, tuned, total = counts(clip_b32, tpcm_norm=norm)
    assert sum(parameter.numel() for parameter in model.prototype.parameters()) == prototypes
    assert tuned == 18_535_168 + (prototypes - 3_149_824)
    assert total == 151_277_313 + tuned
    assert (round(prototypes / 1e6, 2), round(tuned / 1e6, 2), round(total / 1e6, 2)) == (3.15, 18.54, 169.81)


def test_sizes_of_the_parts_and_their_readings(clip_b32):
    adapter, text_fc, embedding, prototypes = 295_872, 393_984, 6_144, 3_149_824

    def tuned(**options):
        return counts(clip_b32, **options)[1]

    plain = {"prototype": "none", "temporal_embedding": False}
    assert tuned(preset="tpcm") == prototypes
    assert tuned(preset="adaptation") == 18_535_168 - prototypes
    assert tuned(parts=("multimodal",), **plain) == 12 * (adapter + text_fc)
    assert tuned(parts=("multimodal",), text_fc="shared", **plain) == 12 * adapter + text_fc
    assert tuned(parts=("multimodal",), text_tokens=False, **plain) == 12 * adapter
    assert tuned(parts=("temporal",), **plain) == 12 * adapter
    assert tuned(parts=("temporal",), num_t_adapters=2, **plain) == 24 * adapter
    assert tuned(parts=("joint",), layers="7-12", **plain) == 6 * adapter
    assert tuned(parts=(), prototype="none") == embedding
    assert tuned(parts=("joint",), ratio=0.5, **plain) == 12 * (2 * 768 * 384 + 384 + 768)
    assert tuned(prototype="none", adapt=False, learn_tau=True) == 1
    assert tuned(preset="frozen") == 0


def test_frames_have_as_many_tokens_after_a_block_as_before(clip_b32):
    model = counts(clip_b32, frames=2, layers="1")[0]
    block = model.visual.blocks[0]
    asked = []
    attend = block.attend
    block.attend = lambda queries, context: (
        asked.append((tuple(queries.shape), tuple(context.shape))) or attend(queries, context)
    )
    x = torch.randn(2 * 2, 50, 768)  # a support video and a query, 49 patches and a class token a frame
    with torch.no_grad():
        assert block(x, 2, torch.randn(1, 512), False).shape == (4, 50, 768)
    assert asked == [((2, 2, 768), (2, 2, 768)), ((2, 50, 768), (2, 52, 768)), ((2, 50, 768), (2, 51, 768))]


# ---- what depends on what ----


def test_without_the_added_tokens_an_untrained_encoder_is_frozen_clip():
    clip = small_clip()
    frozen = m2clip.create_model("clip", clip, NAMES, T, prompt="a photo of {}")
    video = random_video(3, T)
    with torch.no_grad():
        expected = frozen(video).frame_features
        model = make(clip, parts=("multimodal", "joint"), text_tokens=False)
        torch.testing.assert_close(model.encode_query(video), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.encode_support(video, LABELS[:3]), expected, rtol=1e-5, atol=1e-5)
        full = make(clip)
        assert (full.encode_query(video) - expected).abs().max() > 1e-3  # the copied class token joins the softmax
        with full.adapters_disabled():
            torch.testing.assert_close(full.encode_query(video), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(full(video).similarity, frozen(video).similarity, rtol=1e-4, atol=1e-4)
        assert torch.equal(make(clip, preset="frozen").encode_query(video), expected)


def test_the_frozen_preset_is_frozen_clip_with_otam():
    clip = small_clip()
    model = make(clip, preset="frozen").eval()
    video = random_video(12, T)
    with torch.no_grad():
        features = m2clip.create_model("clip", clip, NAMES, T)(video).frame_features
        support, query = features[:6].unflatten(0, (3, 2)), features[6:]
        found = model.score(support[None], query[None], model.text_features()[CLASSES][None])
        expected = otam(frame_distances(query, support.mean(dim=1)))
    torch.testing.assert_close(found.distances[0], expected)
    torch.testing.assert_close(found.probabilities[0], (-expected).softmax(dim=-1))
    with pytest.raises(InputError, match="leave nothing to train"):
        model.loss(video, LABELS)


def test_text_reaches_support_videos_alone():
    model = make()
    randomise(model)
    video = random_video(2, T)
    text_fc = [block.adapters.text_fc.weight for block in model.visual.blocks]
    query = model.encode_query(video).square().sum()
    assert torch.autograd.grad(query, text_fc, allow_unused=True) == (None, None, None)
    support = model.encode_support(video, torch.tensor([0, 1])).square().sum()
    assert all(gradient.any() for gradient in torch.autograd.grad(support, text_fc))
    with torch.no_grad():
        one, other = (model.encode_support(video[:1], torch.tensor([label])) for label in (0, 1))
        assert not torch.allclose(one, other, atol=1e-3)
        both = model.encode_support(video[:1].expand(2, -1, -1, -1, -1), torch.tensor([0, 1]))
        torch.testing.assert_close(both, torch.cat([one, other]), rtol=1e-4, atol=1e-4)
        together = model._frame_features(video, model.text_features()[[0]])
        torch.testing.assert_close(together, torch.cat([one, model.encode_query(video[1:])]), rtol=1e-4, atol=1e-4)


def test_frames_meet_in_the_temporal_attention_alone_and_are_told_apart_by_the_embedding():
    order = [2, 0, 3, 1]
    video = random_video(1, T)
    other = video.clone()
    other[:, 3] += 1.0

    def first_frames(change=other, **options):
        model = make(**options)
        randomise(model)
        with torch.no_grad():
            return model.encode_query(video), model.encode_query(video[:, order]), model.encode_query(change)

    plain, shuffled, changed = first_frames(parts=("multimodal", "joint"), temporal_embedding=False)
    torch.testing.assert_close(shuffled, plain[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(changed[:, :3], plain[:, :3], rtol=1e-4, atol=1e-5)
    plain, shuffled, changed = first_frames(temporal_embedding=False)
    torch.testing.assert_close(shuffled, plain[:, order], rtol=1e-4, atol=1e-5)  # attention over time has no order
    assert not torch.allclose(changed[:, :3], plain[:, :3], atol=1e-3)
    plain, shuffled, changed = first_frames(parts=("multimodal", "joint"))
    assert not torch.allclose(shuffled, plain[:, order], atol=1e-3)
    torch.testing.assert_close(changed[:, :3], plain[:, :3], rtol=1e-4, atol=1e-5)


# ---- loss ----


def plain_loss(model, video, labels):
    """The equations, video by video; returns total and parts."""
    options, shape = model.config, model.episode
    text = model.text_features().float()
    classes = labels[: shape.support].tolist()[:: shape.shots]
    scale = model.logit_scale.exp() if options.tau is None else 1 / options.tau

    def kl(features, label):
        over = range(len(NAMES)) if options.text_classes == "all" else classes
        logits = torch.stack([scale * F.cosine_similarity(features.mean(dim=0), text[c], dim=0) for c in over])
        hit = torch.tensor([float(c == label) for c in over])
        y = hit if options.kl == "one_hot" else (10 * hit).softmax(dim=0)
        log_p = logits.log_softmax(dim=0)
        return sum(y[i] * (y[i].log() - log_p[i]) for i in range(len(over)) if y[i] > 0), len(over)

    support = [model.encode_support(video[i][None], labels[i][None])[0] for i in range(shape.support)]
    query = [model.encode_query(video[i][None])[0] for i in range(shape.support, shape.videos)]
    guides = F.normalize(text, dim=-1) if options.normalize_text else text
    q2s = []
    for number, q in enumerate(query):
        distances = []
        for place, c in enumerate(classes):
            shots = support[place * shape.shots : (place + 1) * shape.shots]
            if options.merge == "features":
                shots = [sum(shots) / len(shots)]
            found = []
            for shot in shots:
                asked = q
                if model.prototype is not None:
                    shot, asked = model.prototype(shot, guides[c]), model.prototype(q)
                cells = torch.stack([torch.stack([1 - F.cosine_similarity(a, b, dim=0) for b in shot]) for a in asked])
                found.append(bi_mhm(cells) if options.metric == "bi_mhm" else otam(cells, options.smoothing))
            distances.append(sum(found) / len(found))
        q2s.append(-(-torch.stack(distances)).log_softmax(dim=0)[number // shape.queries])

    def text_loss(videos, labels):
        found = [kl(features, label) for features, label in zip(videos, labels, strict=True)]
        divisor = len(found) if options.kl == "one_hot" else found[0][1]
        return sum(value for value, _ in found) / divisor

    parts = {
        "q2s": sum(q2s) / len(q2s),
        "q2t": text_loss(query, labels[shape.support :].tolist()),
        "s2t": text_loss(support, labels[: shape.support].tolist()),
    }
    return options.alpha * 0.5 * (parts["s2t"] + parts["q2t"]) + (1 - options.alpha) * parts["q2s"], parts


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"merge": "distances"},
        {"kl": "actionclip", "alpha": 0.3},
        {"text_classes": "all", "tau": 0.1},
        {"kl": "actionclip", "text_classes": "all", "normalize_text": True},
        {"metric": "bi_mhm", "prototype": "multimodal"},
        {"prototype": "none", "smoothing": 0.1},
    ],
    ids=str,
)
def test_the_loss_is_the_equations(options):
    model = make(**options).eval()
    randomise(model, 0.1)
    video = random_video(SHAPE.videos, T)
    with torch.no_grad():
        found = model.loss(video, LABELS)
        total, parts = plain_loss(model, video, LABELS)
    torch.testing.assert_close(found.total, total, rtol=1e-4, atol=1e-4)
    assert set(found.parts) == {"q2s", "q2t", "s2t"}
    for name, part in parts.items():
        torch.testing.assert_close(found.parts[name], part, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("options", [{}, {"metric": "trx", "num_t_adapters": 2, "learn_tau": True}], ids=str)
def test_gradients_reach_all_that_is_trained_and_nothing_else(options):
    model = make(**options)
    randomise(model)
    model.loss(random_video(SHAPE.videos, T), LABELS).total.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.any(), name
        else:
            assert parameter.grad is None, name
    assert not any(name.startswith(("text.", "logit_scale")) for name in trained(model))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_the_ends_of_alpha_everything_trained_still_takes_part(alpha):
    model = make(alpha=alpha)
    found = model.loss(random_video(SHAPE.videos, T), LABELS)
    texts = (found.parts["s2t"] + found.parts["q2t"]) / 2
    torch.testing.assert_close(found.total.detach(), texts if alpha else found.parts["q2s"])
    found.total.backward()
    assert all(parameter.grad is not None for parameter in trained(model).values())


def test_an_episode_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"an episode has 12 videos .*got 11"):
        make().loss(random_video(11, T), LABELS[:11])


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
    assert half.visual.conv1.weight.dtype == torch.bfloat16
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
