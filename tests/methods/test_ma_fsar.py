"""MA-FSAR as a model: published sizes, what depends on text and time, losses."""

from __future__ import annotations

import open_clip
import pytest
import torch
import torch.nn.functional as F

import m2clip
from m2clip.errors import InputError
from m2clip.matching import bi_mhm, frame_distances, otam
from m2clip.towers.block import freeze
from tests.clips import NAMES, random_video, randomise, small_clip
from tests.methods.ma_fsar_models import CLASSES, LABELS, SHAPE, T, make, trained

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
    block.attend = lambda queries, context, **options: (
        asked.append((tuple(queries.shape), tuple(context.shape))) or attend(queries, context, **options)
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
