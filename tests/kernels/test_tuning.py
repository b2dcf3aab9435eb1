"""Measurements of a GPU as files, and that "auto" follows them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from m2clip import kernels
from m2clip.kernels import dispatch, tuning
from m2clip.kernels.tuning import Tuned, TuningError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(tuning.FOLDER, str(tmp_path))
    tuning.forget()
    yield tmp_path
    tuning.forget()


def winner(width, dtype=torch.bfloat16, op="ted_adapter"):
    """What "auto" would take on the made-up GPU."""
    return dispatch._winner(op, SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype), width)


@pytest.fixture
def gpu(monkeypatch):
    """A made-up GPU, as far as questions about it go."""
    monkeypatch.setattr(tuning, "_gpu", lambda index: ("NVIDIA Example 7", (9, 0)))
    monkeypatch.setattr(tuning, "_number", lambda index: index or 0)


def test_nothing_is_known_without_a_file(gpu):
    assert winner(384) == "reference"
    assert tuning.of(torch.device("cuda", 0)).config("mixer_forward", 384, torch.bfloat16) is None


def test_saved_measurements_are_read_again_and_added_to(gpu, folder):
    first = Tuned({"ted_adapter bfloat16 384": "triton"}, {"mixer_forward 384 bfloat16": [8, 64, 4]})
    path = tuning.save("NVIDIA Example 7", first)
    assert path == folder / "nvidia-example-7.json"
    tuning.save("NVIDIA Example 7", Tuned({"ted_adapter bfloat16 64": "cuda"}))
    assert winner(384) == "triton"
    assert winner(64) == "cuda"
    assert winner(384, torch.float16) == "reference"
    assert tuning.of(torch.device("cuda", 0)).config("mixer_forward", 384, torch.bfloat16) == [8, 64, 4]
    assert json.loads(path.read_text())["device"] == "NVIDIA Example 7"


def test_own_measurements_come_before_those_of_the_architecture(gpu, monkeypatch):
    known = Tuned({"ted_adapter bfloat16 384": "cuda", "soft_target_kl float32 0": "triton"})
    monkeypatch.setitem(tuning.OF_ARCHITECTURE, (9, 0), known)
    assert winner(384) == "cuda"
    tuning.save("NVIDIA Example 7", Tuned({"ted_adapter bfloat16 384": "triton"}))
    assert winner(384) == "triton"
    assert winner(0, torch.float32, "soft_target_kl") == "triton"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "holds no measurements of m2clip"),
        ("[]", "holds no measurements of m2clip"),
        ('{"format": 0, "winners": {}, "configs": {}}', "another version of m2clip"),
    ],
)
def test_files_that_are_none_of_ours(gpu, folder, text, words):
    path = folder / "nvidia-example-7.json"
    path.write_text(text)
    with pytest.raises(TuningError, match=words) as raised:
        winner(384)
    assert str(path) in str(raised.value) and "m2clip tune" in str(raised.value)


def test_the_answers_are_constants_to_a_compiler():
    marked = torch.compiler.assume_constant_result(lambda: None)
    for question in (tuning.winners, tuning.too_old):
        assert vars(marked).items() <= vars(question).items()


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_call_asks_without_a_graph_break(gpu, monkeypatch, dynamic):
    asked = []

    def winners(index, op, dtype):
        asked.append((op, dtype))
        return "8=cuda 4=native"

    winners._dynamo_marked_constant = True
    monkeypatch.setattr(tuning, "winners", winners)
    # As on a GPU, but with tensors that are here.
    on_a_gpu = dispatch._winner
    stand_in = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    monkeypatch.setattr(dispatch, "_winner", lambda op, x, width: on_a_gpu(op, stand_in, width))
    weights = [torch.randn(4, 8), torch.randn(4), torch.randn(8, 4), torch.randn(8)]
    torch._dynamo.reset()
    run = torch.compile(kernels.bottleneck_adapter, fullgraph=True, dynamic=dynamic, backend="eager")
    for rows in (2**14, 2**15):
        x = torch.randn(rows, 8)
        assert torch.equal(run(x, *weights), kernels.bottleneck_adapter(x, *weights))
    assert ("bottleneck_adapter", torch.float32) in asked
