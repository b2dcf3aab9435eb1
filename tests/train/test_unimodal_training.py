"""ST-Adapter and AIM: what trains, stochastic depth, class names, precision, saving and options."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import m2clip
from m2clip.adapters.unimodal import StochasticDepth
from m2clip.errors import InputError
from m2clip.train.setup import LossModule
from tests.clips import NAMES, random_video, randomise, small_clip
from tests.methods.unimodal_models import METHODS, SHARED, VARIANTS, build, trained

LABELS = torch.tensor([3, 0])

# ---- what trains ----


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_gradients_are_where_they_should_be_alone(method, options):
    model = build(method, **options, **({"drop_path": 0.0} if method == "aim" else {}))
    randomise(model, 0.05)
    losses = model.loss(random_video(), LABELS)
    assert set(losses.parts) == {"vc"}
    losses.total.backward()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    words = ("pre_attn.", "pre_mlp.", "adapters.", "temporal_embedding", "vc.fc.", "ln_post.")
    assert all(any(word in name for word in words) and "text." not in name for name in names)
    assert ("ln_post.weight" in names) == (options.get("preset") in ("k400", "ssv2") or options == VARIANTS[-1][1])
    assert not any(name.startswith("visual.ln_post") for name in names)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in names), name
    silent = {name for name, parameter in model.named_parameters() if name in names and not parameter.grad.any()}
    # Nothing reads patch tokens behind the last block.
    idle = {name for name in names if name.startswith("visual.blocks.2.pre_mlp.")}
    assert silent == idle and len(idle) == (6 if options.get("placement") in ("pre_mlp", "both") else 0)
    assert all(parameter.grad is None for parameter in SHARED.parameters())


@pytest.mark.parametrize("method", list(METHODS))
def test_the_loss_is_the_cross_entropy_of_the_logits(method):
    model = build(method, dropout=0.0).eval()
    randomise(model, 0.1)
    video = random_video()
    loss = model.loss(video, LABELS)
    torch.testing.assert_close(loss.total, F.cross_entropy(model(video).logits, LABELS))
    smooth = build(method, dropout=0.0, label_smoothing=0.2).eval()
    smooth.load_trained_state_dict(model.trained_state_dict())
    expected = 0.8 * loss.total - 0.2 * model(video).logits.log_softmax(-1).mean()
    torch.testing.assert_close(smooth.loss(video, LABELS).total, expected)


def test_training_aim_leaves_the_clip_it_is_built_on_as_it_is():
    clip = SHARED
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    model = build("aim", preset="k400")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.loss(random_video(), LABELS).total.backward()
    optimizer.step()
    assert not torch.equal(model.ln_post.weight, clip.visual.ln_post.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.state_dict().items())


def test_parameter_groups_follow_the_recipes():
    st = {group["name"]: group for group in build("st_adapter").parameter_groups()}
    assert {name: group["weight_decay"] for name, group in st.items()} == {"main": True, "main_bias": False}
    aim = {group["name"]: group for group in build("aim", preset="k400").parameter_groups()}
    assert {name: group["weight_decay"] for name, group in aim.items()} == {"main": True, "ln_post": False}
    assert [tuple(p.shape) for p in aim["ln_post"]["params"]] == [(32,), (32,)]
    assert [group["name"] for group in build("aim", preset="paper").parameter_groups()] == ["main"]
    for method in METHODS:
        groups = build(method).parameter_groups()
        assert sum(p.numel() for group in groups for p in group["params"]) == trained(build(method))
        assert all(group["lr_scale"] == 1.0 for group in groups)


@pytest.mark.slow
@pytest.mark.parametrize("method", list(METHODS))
def test_a_step_compiles_as_one_graph_with_the_same_gradients(method):
    model = build(method, dropout=0.0, **({"drop_path": 0.0} if method == "aim" else {}))
    randomise(model, 0.1)
    model.fill_caches()
    loss, found = LossModule(model), []
    for step in (loss, torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")):
        model.zero_grad()
        step(random_video(), LABELS)[0].backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


# ---- stochastic depth ----


def test_stochastic_depth_leaves_out_whole_clips_or_whole_places():
    torch.manual_seed(0)
    branch = torch.ones(400 * 3, 50, 2)
    by_clip, by_token = (StochasticDepth(0.2, per)(branch, 3) for per in ("clip", "token"))
    for found, groups in ((by_clip.unflatten(0, (400, 3)), 400), (by_token.transpose(0, 1), 50)):
        values = found.flatten(1)
        assert values.shape[0] == groups and (values == values[:, :1]).all()
        assert set(values[:, 0].tolist()) == {0.0, 1.25}
    assert abs((by_clip == 0).float().mean().item() - 0.2) < 0.06  # three deviations of 400 draws
    layer = StochasticDepth(0.2).eval()
    assert layer(branch, 3) is branch and StochasticDepth(0.0)(branch, 3) is branch
    for rate, per in ((1.0, "clip"), (-0.1, "clip"), (0.2, "frame")):
        with pytest.raises(ValueError, match="rate must be"):
            StochasticDepth(rate, per)


@pytest.mark.parametrize("per", ["clip", "token"])
def test_the_temporal_and_the_joint_branch_are_what_is_left_out(per):
    model = build("aim", drop_path_per=per)
    randomise(model, 0.3)
    block = model.visual.blocks[1]
    x = torch.randn(8, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        block.adapters.drop_path = StochasticDepth(1 - 1e-6, per)
        left_out = block.train()(x, 4, False)
        assert not torch.allclose(left_out, block.eval()(x, 4, False), rtol=1e-2)
        for adapter in (block.adapters.temporal, block.adapters.joint):
            adapter.up.weight.zero_()
            adapter.up.bias.zero_()
        torch.testing.assert_close(left_out, block(x, 4, False))


def test_the_rate_grows_from_block_to_block_and_the_draw_follows_the_seed():
    model = build("aim", preset="k400", dropout=0.0, drop_path=0.5)
    assert [block.adapters.drop_path.rate for block in model.visual.blocks] == [0.0, 0.25, 0.5]
    randomise(model, 0.3)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model.train().loss(random_video(), LABELS).total.item())
    assert found[0] == found[1] != found[2]
    assert model.eval().loss(random_video(), LABELS).total.item() == model.loss(random_video(), LABELS).total.item()


# ---- class names, precision, saving ----


@pytest.mark.parametrize("method", list(METHODS))
def test_the_classifier_holds_for_the_names_it_was_built_with(method):
    model = build(method).eval()
    randomise(model)
    video = random_video()
    known = model(video)
    assert known.logits.shape == (2, 5)
    model.set_class_names(["yawning", "sneezing"])
    out = model(video)
    assert out.similarity.shape == (2, 2) and out.logits is None
    with pytest.raises(InputError, match="class names were exchanged"):
        model.loss(video, LABELS)
    model.set_class_names(NAMES)
    assert torch.equal(model(video).logits, known.logits)


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_in_half_precision_what_trains_stays_full_precision(method, options):
    model = build(method, small_clip(), **options)
    randomise(model, 0.05)
    expected = model.eval()(random_video()).logits
    model.set_precision("bf16")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.visual.parameters() if not p.requires_grad} == {torch.bfloat16}
    out = model(random_video())
    assert out.logits.dtype == torch.float32
    assert (out.logits - expected).norm() < 0.05 * expected.norm()
    model.train().loss(random_video(), LABELS).total.backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("method", "options"), VARIANTS)
def test_saved_adapters_rebuild_the_model(tmp_path, method, options):
    model = build(method, **options).eval()
    randomise(model)
    m2clip.save_adapters(model, tmp_path)
    again = m2clip.load_adapters(tmp_path, SHARED, class_names=NAMES, num_frames=4)
    assert again.config == model.config
    assert torch.equal(again(random_video()).logits, model(random_video()).logits)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("st_adapter", {"placement": "after"}, "placement: 'after' is none of pre_attn, pre_mlp, both"),
        ("st_adapter", {"width": 0}, "width must be at least 1"),
        ("st_adapter", {"dropout": 1.0}, "dropout is 1.0: it must be from 0 to below 1"),
        ("st_adapter", {"preset": "8x384"}, "no preset '8x384'; choose from 12x384, 24x384"),
        ("st_adapter", {"layers": "2-9"}, "within 1-3"),
        ("aim", {"num_t_adapters": 3}, "num_t_adapters: 3 is none of 1, 2"),
        ("aim", {"drop_path_per": "frame"}, "drop_path_per: 'frame' is none of clip, token"),
        ("aim", {"drop_path": 1.0}, "drop_path is 1.0"),
        ("aim", {"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ("aim", {"width": 0}, "a quarter of the token width"),
        ("aim", {"heads": ("vc",)}, "has no option 'heads'"),
    ],
)
def test_bad_options_are_told(method, options, message):
    with pytest.raises(InputError, match=message):
        build(method, **options)


def test_widths_and_layers():
    assert build("aim", width=None).visual.blocks[0].adapters.spatial.down.weight.shape == (8, 32)
    model = build("aim", layers="2")
    assert [block.adapters is not None for block in model.visual.blocks] == [False, True, False]
    assert model.visual.first_adapted == 0 and build("aim", layers="2", temporal_embedding=False).visual.first_adapted
    assert trained(build("st_adapter", layers="none")) == 5 * 33
