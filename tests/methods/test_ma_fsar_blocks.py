"""MA-FSAR's adapted block, tower and prototype layer against plain formulas, one token at a time."""

from __future__ import annotations

import math

import pytest
import torch

import m2clip
from m2clip.adapters import BottleneckAdapter
from m2clip.methods.prototypes import PrototypeLayer
from tests.clips import NAMES, random_video, randomise, small_clip

TOLERANCES = [(torch.float64, 1e-10), (torch.float32, 1e-5)]
T = 4
LAYOUTS = [
    {},
    {"num_t_adapters": 2},
    {"temporal_skip": True},
    {"temporal_residual": False},
    {"write_back": True},
    {"joint_scale": 0.5},
    {"text_tokens": False},
    {"parts": ("multimodal",)},
    {"parts": ("temporal",)},
    {"parts": ("joint",)},
    {"parts": ("multimodal", "joint")},
    {"parts": ("temporal", "joint"), "num_t_adapters": 2},
]


def make(**options):
    torch.manual_seed(0)
    model = m2clip.create_model("ma_fsar", small_clip(), NAMES, T, **{"tpcm_heads": 4, **options})
    return model.eval()


# ---- the block, written plainly ----


def adapter(module, x, skip):
    """Eq. of AIM's adapter, with the error function spelled out."""
    h = module.down.weight @ x + module.down.bias
    h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    y = module.scale * (module.up.weight @ h + module.up.bias)
    return x + y if skip else y


def attention(block, tokens):
    """Each token of a list attends to the whole list, head by head."""
    dim, heads = len(tokens[0]), block.num_heads
    size = dim // heads
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    projected = [weight @ token + bias for token in tokens]
    outputs = []
    for asking in projected:
        mixed = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            q = asking[:dim][part]
            keys = [token[dim : 2 * dim][part] for token in projected]
            values = [token[2 * dim :][part] for token in projected]
            scores = torch.stack([q @ key for key in keys]) / math.sqrt(size)
            weights = (scores - scores.max()).exp()
            weights = weights / weights.sum()
            mixed.append(sum(w * v for w, v in zip(weights, values, strict=True)))
        outputs.append(block.attn.out_proj.weight @ torch.cat(mixed) + block.attn.out_proj.bias)
    return outputs


def plain_block(block, clip, text, options):
    """One clip (T, L, D) with its class's text feature or None, through the steps (1) to (4)."""
    a, frames = block.adapters, [list(frame) for frame in clip]
    parts = options.get("parts", ("multimodal", "temporal", "joint"))
    extra = [[] for _ in frames]
    if "temporal" in parts:
        classes = [frame[0] for frame in frames]
        read = [block.ln_1(token) for token in classes]
        if options.get("num_t_adapters") == 2:
            read = [adapter(a.temporal_in, token, skip=True) for token in read]
        seen = [adapter(a.temporal, token, options.get("temporal_skip", False)) for token in attention(block, read)]
        if options.get("temporal_residual", True):
            seen = [c + s for c, s in zip(classes, seen, strict=True)]
        for t, token in enumerate(seen):
            extra[t].append(token)
            if options.get("write_back"):
                frames[t][0] = token
    if text is not None and "multimodal" in parts and options.get("text_tokens", True):
        for tokens in extra:
            tokens.append(a.text_fc.weight @ text + a.text_fc.bias)
    result = []
    for frame, more in zip(frames, extra, strict=True):
        mixed = attention(block, [block.ln_1(token) for token in [*frame, *more]])
        if "multimodal" in parts:
            mixed = [adapter(a.local, token, skip=True) for token in mixed]
        z = [x + m for x, m in zip([*frame, *more], mixed, strict=True)][: len(frame)]
        for i, token in enumerate(z):
            y = block.ln_2(token)
            z[i] = token + block.mlp(y)
            if "joint" in parts:
                z[i] = z[i] + adapter(a.joint, y, skip=False)
        result.append(torch.stack(z))
    return torch.stack(result)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=["fp64", "fp32"])
@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_a_block_is_the_plain_one(options, dtype, tolerance):
    model = make(**options)
    randomise(model)
    block = model.visual.blocks[1].to(dtype)
    clips = torch.randn(3, T, 5, 32, dtype=dtype)
    text = torch.randn(2, 32, dtype=dtype)  # the first two clips are support videos, the third is a query
    with torch.no_grad():
        found = block(clips.flatten(0, 1), T, text, False)
        expected = torch.cat([plain_block(block, clips[i], text[i] if i < 2 else None, options) for i in range(3)])
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        alone = block(clips.flatten(0, 1), T, text, True)
        torch.testing.assert_close(alone, expected[:, :1], rtol=tolerance, atol=tolerance)
        apart = torch.cat([block(clips[:2].flatten(0, 1), T, text, False), block(clips[2], T, None, False)])
        torch.testing.assert_close(apart, expected, rtol=tolerance, atol=tolerance)


def test_the_tower_is_its_blocks_in_turn_and_adds_time_before_the_first_norm():
    model = make()
    randomise(model)
    tower, clips, text = model.visual.double(), random_video(2, T).double(), torch.randn(1, 32, dtype=torch.float64)
    with torch.no_grad():
        rows = []
        for clip in range(2):
            x = []
            for t in range(T):
                patches = tower.stem.conv1(clips[clip, t][None])[0].flatten(1).T
                tokens = torch.cat([tower.stem.class_embedding[None], patches]) + tower.stem.positional_embedding
                x.append(tower.stem.ln_pre(tokens + tower.temporal_embedding[0, t]))
            x = torch.stack(x)
            for block in tower.blocks:
                x = plain_block(block, x, text[0] if clip == 0 else None, {})
            rows.append(x[:, 0])
        torch.testing.assert_close(tower(clips, text), torch.stack(rows), rtol=1e-10, atol=1e-10)


def test_only_the_layers_asked_for_are_adapted():
    model = make(layers="2-3", temporal_embedding=False)
    assert [block.adapters is not None for block in model.visual.blocks] == [False, True, True]
    assert model.visual.first_adapted == 1
    assert make(layers="2-3").visual.first_adapted == 0  # the temporal embedding learns through all blocks


def test_an_adapter_starts_at_zero_and_its_down_projection_small():
    module = BottleneckAdapter(512, 128)
    x = torch.randn(3, 512)
    assert torch.equal(module(x), x)
    assert not BottleneckAdapter(8, 2, residual=False)(torch.randn(3, 8)).any()
    assert not (module.up.weight.any() or module.up.bias.any() or module.down.bias.any())
    assert module.down.weight.std().item() == pytest.approx(0.02, rel=0.05)


# ---- prototypes ----


def plain_prototypes(layer, frames, text, residual="sum"):
    """One video (T, D) with its class's text feature or None."""
    queries, context = list(frames), list(frames)
    if text is not None and layer.guidance != "unimodal":
        context = [text, *context]
        if layer.guidance == "tpcm":
            queries = [frame + text for frame in frames]
    dim, size = frames.shape[1], frames.shape[1] // layer.heads
    rows = []
    for frame, query in zip(frames, queries, strict=True):
        q = layer.to_query(layer.norm(query))
        kv = [layer.to_key_value(layer.norm(token)) for token in context]
        mixed = []
        for h in range(layer.heads):
            part = slice(h * size, (h + 1) * size)
            weights = torch.stack([q[part] @ token[:dim][part] for token in kv]).div(math.sqrt(size)).exp()
            weights = weights / weights.sum()
            mixed.append(sum(w * token[dim:][part] for w, token in zip(weights, kv, strict=True)))
        hidden = (query if residual == "sum" else frame) + layer.to_out(torch.cat(mixed))
        wide = layer.ffn[0](hidden)
        rows.append(hidden + layer.ffn[3](wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))))
    return torch.stack(rows)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=["fp64", "fp32"])
@pytest.mark.parametrize("norm", ["pre", "none"])
@pytest.mark.parametrize("guidance", ["tpcm", "multimodal", "unimodal"])
@pytest.mark.parametrize("residual", ["sum", "frames"])
def test_prototypes_are_the_plain_ones(guidance, norm, residual, dtype, tolerance):
    torch.manual_seed(0)
    layer = PrototypeLayer(16, guidance, heads=4, norm=norm, residual=residual).to(dtype).eval()
    frames, text = torch.randn(2, 3, 5, 16, dtype=dtype), torch.randn(2, 3, 16, dtype=dtype)
    with torch.no_grad():
        for given in (text, None):
            found = layer(frames, given)
            for i in range(2):
                for j in range(3):
                    one = None if given is None else given[i, j]
                    expected = plain_prototypes(layer, frames[i, j], one, residual)
                    torch.testing.assert_close(found[i, j], expected, rtol=tolerance, atol=tolerance)


def test_the_alternatives_of_the_prototypes_differ_in_the_text_alone():
    torch.manual_seed(0)
    layers = {guidance: PrototypeLayer(16, guidance, heads=4).eval() for guidance in ("tpcm", "multimodal", "unimodal")}
    for layer in layers.values():
        layer.load_state_dict(layers["tpcm"].state_dict())
    frames, text = torch.randn(2, 5, 16), torch.randn(2, 16)
    without = [layer(frames) for layer in layers.values()]
    assert all(torch.equal(other, without[0]) for other in without[1:])
    found = {guidance: layer(frames, text) for guidance, layer in layers.items()}
    assert torch.equal(found["unimodal"], without[0])
    assert not torch.allclose(found["multimodal"], without[0], atol=1e-3)
    assert not torch.allclose(found["tpcm"], found["multimodal"], atol=1e-3)


def test_self_attention_over_the_appended_text_token_is_the_multimodal_alternative():
    torch.manual_seed(0)
    layer = PrototypeLayer(16, "multimodal", heads=4, norm="none").eval()
    module = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.cat([layer.to_query.weight, layer.to_key_value.weight]))
        module.in_proj_bias.copy_(torch.cat([layer.to_query.bias, layer.to_key_value.bias]))
        module.out_proj.load_state_dict(layer.to_out.state_dict())
        frames, text = torch.randn(2, 5, 16), torch.randn(2, 16)
        tokens = torch.cat([frames, text[:, None]], dim=1)
        hidden = tokens + module(tokens, tokens, tokens)[0]
        expected = (hidden + layer.ffn(hidden))[:, :5]
        torch.testing.assert_close(layer(frames, text), expected, rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_alone():
    layer = PrototypeLayer(16, heads=4)
    frames = torch.randn(2, 5, 16)
    assert not torch.equal(layer(frames), layer(frames))
    layer.eval()
    assert torch.equal(layer(frames), layer(frames))
    dry = PrototypeLayer(16, heads=4, attention_dropout=0.0, ffn_dropout=0.0)
    assert torch.equal(dry(frames), dry(frames))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"guidance": "audio"}, "unknown guidance 'audio'"),
        ({"norm": "post"}, "unknown norm 'post'"),
        ({"residual": "text"}, "unknown residual 'text'"),
        ({"heads": 3}, "3 heads do not divide features of width 16"),
    ],
)
def test_prototypes_that_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words):
        PrototypeLayer(16, **arguments)
