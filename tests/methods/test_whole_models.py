"""Whole models of every method: exported, traced, pickled, copied, in other precisions."""

from __future__ import annotations

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn

from tests.clips import random_video
from tests.methods.whole_models import OPTIONS, build

MODELS = {method: build(method) for method in OPTIONS}
every_method = pytest.mark.parametrize("method", OPTIONS)


@torch.no_grad()
def assert_same(out, model, video, tolerance=2e-5):
    expected = model(video)
    for part in ("similarity", "logits", "video_features", "frame_features"):
        given, own = getattr(out, part), getattr(expected, part)
        assert (given is None) == (own is None), part
        if own is not None:
            assert (given.double() - own.double()).abs().max() <= tolerance * own.abs().max(), part


@every_method
def test_a_new_model_is_exported_for_batches_of_any_size(method):
    model = build(method)
    with torch.no_grad():
        program = torch.export.export(
            model, (random_video(2),), dynamic_shapes={"video": {0: torch.export.Dim("clips")}}, strict=False
        )
        for clips in (1, 5):
            assert_same(program.module()(random_video(clips)), model, random_video(clips))
    assert_same(model(random_video()), MODELS[method], random_video(), 0)  # exporting has left nothing behind


@pytest.mark.parametrize("method", ["m2clip", "aim"])
def test_strict_exports_are_saved_and_loaded(method):
    model, file = MODELS[method], io.BytesIO()
    with torch.no_grad():
        program = torch.export.export(
            model, (random_video(2),), dynamic_shapes={"video": {0: torch.export.Dim("clips")}}, strict=True
        )
        torch.export.save(program, file)
        file.seek(0)
        assert_same(torch.export.load(file).module()(random_video(5)), model, random_video(5))


class Similarity(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, video):
        return self.model(video).similarity


@every_method
def test_a_traced_model_takes_batches_of_any_size(method):
    model = MODELS[method]
    with torch.no_grad():
        traced = torch.jit.trace(Similarity(model), (random_video(2),), check_trace=False)
        for clips in (1, 5):
            expected = model(random_video(clips)).similarity
            assert (traced(random_video(clips)) - expected).abs().max() <= 2e-5 * expected.abs().max()


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_method
@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save])
def test_copies_are_models_of_their_own(method, make):
    model = MODELS[method]
    twin = make(model)
    assert_same(twin(random_video()), model, random_video(), 0)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
    twin.set_class_names(["yawning", "sneezing"])
    with torch.no_grad(), model.adapters_disabled():
        adapted = twin(random_video()).video_features
    with twin.adapters_disabled(), torch.no_grad():
        assert twin(random_video()).similarity.shape == (2, 2) and len(model.class_names) == 5
        assert (method == "clip") == torch.equal(twin(random_video()).video_features, adapted)


@every_method
def test_models_go_to_spawned_processes(method):
    sent = ForkingPickler.dumps(MODELS[method])  # as multiprocessing does, with tensors in shared memory
    assert_same(pickle.loads(sent)(random_video()), MODELS[method], random_video(), 0)


# Three blocks of about ten roundings each, of relative size 2^-11 (fp16) and 2^-8 (bf16), of numbers that layer norms
# keep near 1; two fp32 computations of the same are compared with fp64.
@every_method
@pytest.mark.parametrize(("dtype", "tolerance"), [("half", 30 / 2**11), ("bfloat16", 30 / 2**8), ("double", 1e-4)])
def test_whole_models_in_another_precision(method, dtype, tolerance):
    model = getattr(build(method), dtype)()
    kept = {"half": "fp16", "bfloat16": "bf16", "double": "fp64"}[dtype]
    assert model.precision == kept
    found = next(model.parameters()).dtype
    with torch.no_grad():
        for video in (random_video(), random_video().to(found)):
            out = model(video)
            assert out.similarity.dtype == (torch.float64 if dtype == "double" else torch.float32)
            assert_same(out, MODELS[method], random_video(), tolerance)
