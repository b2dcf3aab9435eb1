"""ST-Adapter and AIM: sizes, the frozen tower at the start, both blocks written out once more, space and time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import m2clip
from m2clip import info
from m2clip.adapters import STAdapter
from m2clip.kernels import use_backend
from tests.clips import NAMES, random_video, randomise, small_clip
from tests.methods.unimodal_models import SHARED, TOKENIZER, VARIANTS, build

# ---- sizes ----


@pytest.mark.parametrize(
    ("method", "preset", "classes", "adapters", "rest"),
    [
        ("st_adapter", "12x384", 400, 12 * 592_512, 0),  # 7,110,144
        ("st_adapter", "24x384", 174, 24 * 592_512, 0),  # 14,220,288
        ("aim", "k400", 400, 12 * 3 * 295_872, 8 * 768 + 2 * 768),  # 10,659,072 with the embedding and ln_post
        ("aim", "ssv2", 174, 12 * 4 * 295_872, 8 * 768 + 2 * 768),  # 14,209,536
        ("aim", "paper", 400, 12 * 3 * 295_872, 8 * 768),
    ],
)
def test_published_sizes(method, preset, classes, adapters, rest):
    parts = info.model_size("ViT-B-16", [8], info.label_set_of_size(classes), method, preset)["parameters"]
    assert parts["vc"]["trained"] == classes * 769
    assert parts["total"]["trained"] - parts["vc"]["trained"] == adapters + rest
    assert parts["total"]["frozen"] == 149_620_737


def test_multiply_adds_are_those_of_the_frozen_tower_and_of_what_is_added():
    frames, tokens, patches, dim = 8, 197, 196, 768
    count = {
        method: info.model_size("ViT-B-16", [frames], ["a"], method)["multiply_adds"][0]["visual_per_view"]
        for method in ("clip", "st_adapter", "aim")
    }
    # The last of the twelve adapters gets class tokens alone, and the classifier reads one feature.
    assert count["st_adapter"] - count["clip"] == 11 * frames * patches * 2 * dim * 384 + dim
    rows, last = frames * tokens, frames
    over_time = rows * 4 * dim * dim + 2 * rows * frames * dim
    adapter = 2 * dim * 192
    added = 12 * (over_time + rows * adapter) + 11 * rows * 2 * adapter + last * 2 * adapter + dim
    assert count["aim"] - count["clip"] == added


# ---- the frozen tower at the start ----


def frozen_clip():
    return m2clip.create_model("clip", SHARED, NAMES, 4, tokenizer=TOKENIZER)


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_untrained_it_is_the_mean_of_frozen_frames(method, options):
    clip = SHARED
    model, frozen = build(method, **options).eval(), frozen_clip()
    video = random_video()
    out, expected = model(video), frozen(video)
    torch.testing.assert_close(out.video_features, expected.video_features, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.frame_features, expected.frame_features, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.similarity, expected.similarity, rtol=1e-4, atol=1e-4)
    tokens = frozen.visual(video)
    mean = clip.visual.ln_post(tokens.mean(1)) if method == "st_adapter" else clip.visual.ln_post(tokens).mean(1)
    torch.testing.assert_close(out.logits, model.vc.fc(mean), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_adapters_switch_off_and_come_back(method, options):
    model, frozen = build(method, **options).eval(), frozen_clip()
    randomise(model)
    video = random_video()
    adapted = model(video)
    with model.adapters_disabled():
        assert torch.equal(model(video).similarity, frozen(video).similarity)
    assert not torch.allclose(adapted.video_features, frozen(video).video_features, rtol=1e-2)
    assert torch.equal(model(video).logits, adapted.logits)


# ---- both methods written out once more, in fp64, token by token ----


def norm(x, layer):
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias)


def plain_attention(block, x):
    """Attention over the rows of x (S, D), head by head."""
    heads, dim = block.num_heads, x.shape[1]
    q, k, v = (x @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, dim=1)
    out = []
    for h in range(heads):
        part = slice(h * dim // heads, (h + 1) * dim // heads)
        weights = (q[:, part] @ k[:, part].T / (dim // heads) ** 0.5).softmax(-1)
        out.append(weights @ v[:, part])
    return torch.cat(out, 1) @ block.attn.out_proj.weight.T + block.attn.out_proj.bias


def plain_mlp(block, y):
    h = y @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
    return (h * torch.sigmoid(1.702 * h)) @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias


def plain_bottleneck(adapter, x):
    h = x @ adapter.down.weight.T + adapter.down.bias
    h = h * (1 + torch.erf(h / 2**0.5)) / 2
    return h @ adapter.up.weight.T + adapter.up.bias


def plain_st_adapter(adapter, x):
    """x (T, 1 + N, D) of one clip."""
    y = x.clone()
    h = x @ adapter.down.weight.T + adapter.down.bias
    kernel = adapter.conv.weight.flatten(1)  # (R, 3)
    for t in range(len(x)):
        for n in range(1, x.shape[1]):
            u = adapter.conv.bias.clone()
            for tap in range(3):
                if 0 <= t + tap - 1 < len(x):
                    u = u + kernel[:, tap] * h[t + tap - 1, n]
            y[t, n] = x[t, n] + adapter.up.weight @ u + adapter.up.bias
    return y


def plain_st_block(block, x):
    if block.pre_attn is not None:
        x = plain_st_adapter(block.pre_attn, x)
    x = x + torch.stack([plain_attention(block, norm(frame, block.ln_1)) for frame in x])
    if block.pre_mlp is not None:
        x = plain_st_adapter(block.pre_mlp, x)
    return x + plain_mlp(block, norm(x, block.ln_2))


def plain_aim_block(block, x):
    a = block.adapters
    normalised = norm(x, block.ln_1)
    if a.temporal_in is not None:
        normalised = normalised + plain_bottleneck(a.temporal_in, normalised)
    over_time = torch.stack([plain_attention(block, normalised[:, n]) for n in range(x.shape[1])], 1)
    x = x + plain_bottleneck(a.temporal, over_time)
    seen = torch.stack([plain_attention(block, norm(frame, block.ln_1)) for frame in x])
    x = x + seen + plain_bottleneck(a.spatial, seen)
    y = norm(x, block.ln_2)
    scale = 0.5 if a.temporal_in is None else 1.0  # Kinetics, Something-Something
    return x + plain_mlp(block, y) + scale * plain_bottleneck(a.joint, y)


def plain_features(model, clip_of_frames):
    """Class tokens (T, D) of one clip (T, 3, H, W), without any of the model's shortcuts."""
    visual, stem = model.visual, model.visual.stem
    patches = F.conv2d(clip_of_frames, stem.conv1.weight, stride=stem.conv1.stride).flatten(2).transpose(1, 2)
    x = torch.cat([stem.class_embedding.expand(len(patches), 1, -1), patches], 1) + stem.positional_embedding
    if model.method == "aim" and visual.temporal_embedding is not None:
        x = x + visual.temporal_embedding[0, :, None]
    x = norm(x, stem.ln_pre)
    for block in visual.blocks:
        adapted = model.method == "aim" and block.adapters is not None
        x = plain_aim_block(block, x) if adapted else plain_st_block(block, x)
    return x[:, 0]


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_it_is_what_the_paper_says_token_by_token(method, options):
    clip = small_clip().double()
    model = build(method, clip, **options).eval()
    randomise(model, 0.3)
    model.double()
    own = getattr(model, "ln_post", None) or clip.visual.ln_post
    video = random_video().double()
    with torch.no_grad():
        tokens = torch.stack([plain_features(model, frames) for frames in video])
        torch.testing.assert_close(model.visual(video), tokens, rtol=1e-10, atol=1e-10)
        out = model(video)
        feature = norm(tokens.mean(1), own) if method == "st_adapter" else norm(tokens, own).mean(1)
        logits = feature @ model.vc.fc.weight.T + model.vc.fc.bias
        torch.testing.assert_close(out.logits, logits, rtol=1e-10, atol=1e-10)
        features = norm(tokens, clip.visual.ln_post) @ clip.visual.proj
        torch.testing.assert_close(out.frame_features, features, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(out.video_features, features.mean(1), rtol=1e-5, atol=1e-5)


# ---- layout of space and time ----


def test_the_st_adapter_leaves_class_tokens_alone_and_their_gradient_too():
    adapter = STAdapter(16, 4, num_frames=4)
    randomise(adapter, 1.0)
    for backend in ("auto", "reference"):
        x = torch.randn(8, 10, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        with use_backend(backend):
            y = adapter(x)
            y[:, 0].sum().backward()
        assert torch.equal(y[:, 0], x[:, 0]) and not torch.allclose(y[:, 1:], x[:, 1:])
        assert torch.equal(x.grad, F.pad(torch.ones(8, 1, 16), (0, 0, 0, 9)))
        for parameter in adapter.parameters():
            assert parameter.grad is None or not parameter.grad.any()
    assert torch.equal(adapter(x[:, :1]), x[:, :1])


def test_the_st_adapter_mixes_a_patch_with_its_own_place_in_neighbouring_frames_alone():
    adapter = STAdapter(16, 4, num_frames=4)
    randomise(adapter, 1.0)
    x = torch.randn(8, 10, 16, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[4 + 1, 3] += 1.0  # second clip, second frame, third token
    moved = (adapter(changed) - adapter(x)).abs().amax(-1) > 1e-6
    assert moved.nonzero().tolist() == [[4, 3], [5, 3], [6, 3]]
    without = STAdapter(16, 4, num_frames=4, class_token=False)
    without.load_state_dict(adapter.state_dict())
    torch.testing.assert_close(without(x[:, 1:]), adapter(x)[:, 1:])


@pytest.mark.parametrize("preset", ["k400", "ssv2"])
def test_attention_over_time_stays_at_its_place_and_follows_the_frames(preset):
    model = build("aim", preset=preset).eval()
    randomise(model, 0.3)
    block, order = model.visual.blocks[1], torch.tensor([2, 0, 3, 1])
    x = torch.randn(2 * 4, 5, 32, generator=torch.Generator().manual_seed(0))
    frames = x.unflatten(0, (2, 4))
    with torch.no_grad():
        seen = block.attend_over_time(x, 4)
        shuffled = block.attend_over_time(frames[:, order].flatten(0, 1), 4)
        torch.testing.assert_close(shuffled, seen.unflatten(0, (2, 4))[:, order].flatten(0, 1), rtol=1e-5, atol=1e-5)
        changed = x.clone()
        changed[4 + 1, 3] += 1.0
        moved = (block.attend_over_time(changed, 4) - seen).abs().amax(-1) > 1e-7
        assert moved.nonzero().tolist() == [[t, 3] for t in range(4, 8)]
        # The block computes class tokens alone at the end, the same ones.
        torch.testing.assert_close(block(x, 4, True), block(x, 4, False)[:, :1], rtol=1e-5, atol=1e-5)


def test_aim_tells_the_order_of_frames_by_its_temporal_embedding_alone():
    video, order = random_video(), [2, 0, 3, 1]
    for embedding in (True, False):
        model = build("aim", temporal_embedding=embedding).eval()
        randomise(model, 0.3)
        same = torch.allclose(model(video).logits, model(video[:, order]).logits, rtol=1e-4, atol=1e-4)
        assert same != embedding


def test_attention_over_time_copies_no_tokens():
    """Every tensor of tokens that is made is one that is needed: queries, keys, values, their mixture, the output."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Made(TorchDispatchMode):
        copies = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = function.name()
            self.copies += any(word in name for word in ("clone", "copy", "contiguous", "::cat", "::stack"))
            return function(*args, **(kwargs or {}))

    block = build("aim").visual.blocks[0]
    with Made() as made, torch.no_grad():
        block.attend_over_time(torch.randn(8, 5, 32), 4)
    assert made.copies == 0
