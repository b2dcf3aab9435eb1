"""Parameter and multiply-add counts against numbers worked out by hand."""

from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import m2clip
from m2clip import info
from m2clip.commands.info import _verified_rows
from m2clip.errors import InputError
from m2clip.kernels.tuning import store as tuning
from m2clip.kernels.verification import choices, store
from m2clip.kernels.verification.keys import Call, device_facts
from m2clip.kernels.verification.store import Verdict
from tests.towers.families import FAMILIES, IMAGE, WIDTH, family, library_features


def test_multiply_adds_of_known_layers() -> None:
    linear = nn.Linear(5, 7)
    assert info.count_multiply_adds(lambda: linear(torch.zeros(3, 5))) == 3 * 5 * 7
    conv = nn.Conv2d(4, 6, kernel_size=3, padding=1)
    assert info.count_multiply_adds(lambda: conv(torch.zeros(2, 4, 8, 8))) == 2 * 8 * 8 * 4 * 6 * 9
    depthwise = nn.Conv1d(4, 4, kernel_size=3, padding=1, groups=4)
    assert info.count_multiply_adds(lambda: depthwise(torch.zeros(2, 4, 8))) == 2 * 8 * 4 * 3
    q = torch.zeros(2, 3, 10, 8, device="meta")
    assert info.count_multiply_adds(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 3 * 10 * 10 * 8)


def test_parameters_by_part() -> None:
    model = nn.Module()
    model.frozen, model.head = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2)
    model.again = model.frozen
    counts = info.count_parameters(model)
    assert counts == {
        "frozen": {"trained": 0, "frozen": 16},
        "head": {"trained": 10, "frozen": 0},
        "total": {"trained": 10, "frozen": 16},
    }


def test_frozen_vit_b16_costs_what_its_layers_cost() -> None:
    size = info.model_size("ViT-B-16", [1, 2], ["running", "jumping"], method="clip")
    dim, tokens, layers = 768, 197, 12
    embed = 196 * 768 * dim
    block = tokens * dim * dim * 4 + 2 * tokens * tokens * dim + tokens * dim * dim * 8
    # In the last block only the class token asks: keys and values of all tokens, everything else of one.
    last = tokens * dim * dim * 2 + 2 * dim * dim + 2 * tokens * dim + 8 * dim * dim
    one = embed + (layers - 1) * block + last + dim * 512
    assert [row["visual_per_view"] for row in size["multiply_adds"]] == [one, 2 * one]
    assert size["parameters"]["total"] == {"trained": 0, "frozen": 149_620_737}


def test_published_size_of_the_official_model() -> None:
    size = info.model_size("ViT-B-16", [8], info.label_set_of_size(400))
    parts = size["parameters"]
    # TED-Adapters in 12 layers, the text adapter, the output adapter and the classifier of 400 classes.
    assert parts["visual"]["trained"] == 12 * 1_187_328
    assert parts["text"]["trained"] == 394_112
    assert parts["output_adapter"]["trained"] == 263_936
    assert parts["vc"]["trained"] == 307_600
    assert parts["total"]["trained"] == 16_138_136
    # Projections of both branches in 11 blocks; in the last one, behind its attention, only the class token is left.
    # The rest (depthwise convolutions, output adapter, classifier) is less than half a per cent.
    frames, tokens, patches = 8, 197, 196
    projections = 2 * 768 * 384 * frames * (11 * (tokens + patches) + 1)
    frozen = info.model_size("ViT-B-16", [frames], ["a"], method="clip")["multiply_adds"][0]["visual_per_view"]
    added = size["multiply_adds"][0]["visual_per_view"] - frozen
    assert projections < added < 1.005 * projections


def test_bundled_clip_is_counted_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        size = info.model_size("tiny", [2, 4], ["a", "b"], width=8)
    two, four = (row["visual_per_view"] for row in size["multiply_adds"])
    assert 1.99 * two < four <= 2 * two
    assert size["parameters"]["visual"]["trained"] > 0


def test_label_sets_for_counting() -> None:
    assert len(info.label_set_of_size(101)) == 101
    assert info.label_set_of_size(3) == ["action 0", "action 1", "action 2"]
    with pytest.raises(InputError, match="at least one"):
        info.label_set_of_size(0)


def test_environment_names_versions_devices_and_backends() -> None:
    found = info.environment()
    assert found["versions"]["torch"] and found["versions"]["m2clip"]
    assert found["devices"][0].startswith("cpu")
    assert "reference" in found["backends"]


def test_kernels_that_were_verified_on_this_gpu_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = {0: ("NVIDIA H200", (9, 0)), 1: ("NVIDIA A100", (8, 0))}
    monkeypatch.setenv(store.FOLDER, str(tmp_path))
    monkeypatch.setattr(tuning, "gpu", gpus.__getitem__)
    monkeypatch.setattr(tuning, "winner", lambda *asked: "cuda")
    device_facts.cache_clear()
    store.forget()
    call = Call("ted_adapter", "both", 768, 384, torch.bfloat16)
    keys = [choices.key_of(call, backend, torch.device("cuda", 0)) for backend in ("cuda", "triton")]
    store.keep(keys[0], Verdict(True, 0.8, "", 1e9))
    store.keep(keys[1], Verdict(False, 3.1, "output: two runs differ", 1e9))
    store.keep(
        choices.key_of(call, "cuda", torch.device("cuda", 1)), Verdict(True, 0.5, "", 1e9)
    )  # not in this machine
    store.keep(keys[0]._replace(software=keys[0].software._replace(sources="older")), Verdict(True, 0.5, "", 1e9))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = info._verified()
    device_facts.cache_clear()
    store.forget()
    when = "2001-09-09T01:46:40+00:00"
    assert _verified_rows(found) == [
        ("ted_adapter (both, D=768, R=384, bf16)", "cuda", "0.8x\nmeasured: cuda is fastest", when),
        (
            "ted_adapter (both, D=768, R=384, bf16)",
            "triton",
            "off: output: two runs differ\nmeasured: cuda is fastest",
            when,
        ),
    ]


def test_unknown_architecture_is_one_line() -> None:
    with pytest.raises(InputError, match="ViT-B-17"):
        info.model_size("ViT-B-17", [8], ["a"])


def test_architectures_are_listed_with_their_methods_and_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    names = ["ViT-B-32", "ViT-B-16-SigLIP", "mt5-base-ViT-B-32", "RN50"]
    monkeypatch.setattr(open_clip, "list_models", lambda: names)
    found = {row["clip"]: row for row in info.list_clips()}
    assert list(found) == names
    assert set(found["ViT-B-32"]["methods"].values()) == {None} and found["ViT-B-32"]["refused"] is None
    siglip, whole = found["ViT-B-16-SigLIP"]["methods"], found["mt5-base-ViT-B-32"]["methods"]
    assert [method for method, reason in siglip.items() if reason is not None] == ["ma_fsar"]
    assert "which this vision tower has not" in siglip["ma_fsar"]
    assert {method for method, reason in whole.items() if reason is not None} == {"m2clip", "msta"}
    assert not found["RN50"]["methods"] and "ModifiedResNet" in found["RN50"]["refused"]


@pytest.mark.parametrize("name", FAMILIES)
def test_families_cost_what_their_own_library_counts(name: str) -> None:
    clip, tokens = family(name), torch.arange(1, 21)[None]
    model = m2clip.create_model("clip", clip, ["a"], num_frames=1).eval()
    counted = info.count_multiply_adds(lambda: model.encode(torch.zeros(1, 1, 3, *IMAGE)))
    # Prompts cost the same in both. PyTorch's counter knows neither the fused attention of a CPU nor that of a whole
    # module, which is switched off.
    torch.backends.mha.set_fastpath_enabled(False)
    one, two = (
        info.count_multiply_adds(partial(library_features, clip, torch.zeros(number, 3, *IMAGE), tokens))
        for number in (1, 2)
    )
    torch.backends.mha.set_fastpath_enabled(True)
    stem, block = model.visual.stem, model.visual.blocks[-1]
    saved = 0
    if stem.reads_class_token:
        # In the last block all tokens but the class token are keys and values alone.
        length, width = stem.num_prefix_tokens + math.prod(stem.grid), stem.width
        mlp = sum(layer.weight.numel() for layer in block.mlp.modules() if isinstance(layer, nn.Linear))
        saved = (length - 1) * (2 * width * width + mlp)
    if name == "coca":
        saved = 3 * 2 * WIDTH * WIDTH  # of the four queries of its pooling the first alone is asked
    assert counted == two - one - saved


def test_a_wide_size_costs_as_many_tokens_as_it_has() -> None:
    sizes = {size: info.model_size("ViT-B-32", [1], ["a"], "clip", image_size=size) for size in (224, "224x320")}
    square, wide = (size["multiply_adds"][0]["visual_per_view"] for size in sizes.values())
    assert [size["image_size"] for size in sizes.values()] == ["224x224", "224x320"]

    def cost(tokens: int, dim: int = 768) -> int:
        block = 12 * tokens * dim * dim + 2 * tokens * tokens * dim
        last = 2 * tokens * dim * dim + 2 * dim * dim + 2 * tokens * dim + 8 * dim * dim
        return (tokens - 1) * 3 * 32 * 32 * dim + 11 * block + last + dim * 512

    assert (square, wide) == (cost(1 + 7 * 7), cost(1 + 7 * 10))
