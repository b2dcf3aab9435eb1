"""A model's kernels are verified in one go before it runs; processes of a group run the same."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
import torch

import m2clip
from m2clip import kernels
from m2clip.errors import InputError
from m2clip.files.disk import read_json, seal, unseal
from m2clip.kernels import dispatch, preparation
from m2clip.kernels.verification import choices
from m2clip.towers.precision import place, prepare_kernels
from m2clip.towers.tiny import tiny_clip
from m2clip.train import trainer
from m2clip.train.state import other_kernels
from tests.train.training_run import build_clip, build_config, write_videos

from .stand_in import call, needs_extension

NAMES = ["juggling", "riding a horse", "cooking"]
METHODS = ("m2clip", "msta", "ma_fsar", "st_adapter", "aim")


@pytest.fixture
def asked(judge, monkeypatch):
    """Every call that a kernel is verified for, on a device that has a kernel of every operation, all of them wrong."""
    monkeypatch.setattr(dispatch, "VERIFIED", {"cpu": ("triton",)})
    monkeypatch.setattr(dispatch, "FEW_VALUES", {})  # models are small here
    missing = dispatch._missing
    monkeypatch.setattr(dispatch, "_missing", lambda name: None if name == "triton" else missing(name))
    monkeypatch.setattr(choices, "fallbacks", lambda *_: [])
    judge.wrong = set(dispatch.OPERATIONS)
    return judge.asked


def model(method: str = "m2clip"):
    options = {"alpha": 0.0} if method == "msta" else {}  # without descriptions of the classes
    return m2clip.create_model(method, tiny_clip(), class_names=NAMES, num_frames=2, **options)


def video(built):
    return torch.randn(2, 2, 3, *built.image_size)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_prepared_for_all_that_its_passes_call(asked, method, precision):
    built = model(method).eval()
    if precision == "bf16":
        built.set_precision("bf16")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        found = kernels.prepare(built)
        calls = [one.call for one in asked]
        assert found == kernels.choices() and len(calls) == len(found) == len(set(calls)) > 0
        assert any(one.op == "bias_gelu" for one in calls)
        asked.clear()
        built(video(built))
        assert asked == []
        built.train()
        kernels.prepare(built)
        assert {one.call.op for one in asked} == set(built.loss_kernels)
        asked.clear()
        if method != "ma_fsar":  # which trains by episodes
            built.loss(video(built), torch.tensor([0, 1])).total.backward()
    assert asked == []


def test_the_first_pass_prepares_all_at_once_and_later_ones_do_not_look(asked, monkeypatch):
    prepared = []
    prepare = preparation.prepare
    monkeypatch.setattr(preparation, "prepare", lambda *a, **k: (prepared.append(k), prepare(*a, **k)))
    built = model().eval()
    for _ in range(2):
        built(video(built))
    assert prepared == [{"agree": False}] and asked
    built.train()  # a loss needs more
    built.loss(video(built), torch.tensor([0, 1]))
    assert len(prepared) == 2
    built.with_class_names(["walking"])(video(built))
    assert len(prepared) == 2


def test_a_pass_in_a_capture_prepares_nothing(asked, monkeypatch):
    monkeypatch.setattr(dispatch, "obstacle", lambda x: ("a CUDA graph is captured", True))
    built = model().eval()
    built(video(built))
    assert asked == []


def test_calls_of_a_library_user(asked):
    words = "ted_adapter (both, D=8, R=4, fp32)"
    assert kernels.prepare([call("ted_adapter", "both", 8, 4)] * 2, "cpu") == {words: "reference"}
    assert len(asked) == 1
    assert kernels.prepare(m2clip.TEDAdapter(8, 4, backend="reference")) == {}
    assert kernels.prepare(m2clip.TEDAdapter(8, 4).bfloat16())
    assert asked[1].call == call("ted_adapter", "both", 8, 4)._replace(dtype=torch.bfloat16)


def test_on_a_cpu_there_is_nothing_to_do():
    assert kernels.prepare(model()) == {}


def test_placing_a_model_prepares_it(asked):
    place(model(), torch.device("cpu"), "fp32")
    assert asked and not any(one.call.op in dispatch._LOSSES for one in asked)


@pytest.mark.parametrize(
    ("name", "words"), [("warp", "unknown backend 'warp'"), ("triton", "'triton' is not available here")]
)
def test_a_backend_that_there_is_not_is_one_line(monkeypatch, name, words):
    monkeypatch.setattr(preparation, "backend_in_force", lambda: name)
    monkeypatch.setattr(dispatch, "_HAS_TRITON", False)
    with pytest.raises(InputError, match=words):
        prepare_kernels(model())


# ---- training ----


def test_a_resume_says_in_one_line_that_kernels_have_changed(asked, tmp_path, capsys):
    config = build_config(write_videos(tmp_path), tmp_path / "run", "optim.epochs=1")
    trainer.run(config, device="cpu", clip=build_clip())
    paths = list((tmp_path / "run" / "checkpoints").glob("*/state.json"))
    contents = [unseal(read_json(path), digest="state_sha256") for path in paths]
    assert contents[0]["kernels"] == kernels.choices() and set(kernels.choices().values()) == {"reference"}
    (name,) = (name for name in kernels.choices() if name.startswith("soft_target_kl"))
    for path, content in zip(paths, contents, strict=True):
        content["kernels"][name] = "triton"
        path.write_text(json.dumps(seal(content, "state_sha256")))
    capsys.readouterr()
    trainer.run(config, device="cpu", clip=build_clip())
    out = capsys.readouterr().out
    assert out.count("kernels have changed") == 1
    assert f"last digits of losses: {name} ran on triton and now on reference\n" in out


def test_runs_without_a_note_and_unchanged_ones_say_nothing():
    assert other_kernels({}, {"a": "triton"}) == ""
    assert other_kernels({"kernels": {"a": "triton", "b": "cuda"}}, {"a": "triton", "c": "cuda"}) == ""


# ---- groups of processes ----

GROUP = """
import pathlib
import sys
import torch.distributed as dist
from m2clip import kernels
from m2clip.kernels import dispatch
from m2clip.kernels.verification import choices, runner
from m2clip.kernels.verification.store import Verdict
from tests.kernels.verification.stand_in import CPU, call

dist.init_process_group("gloo")
dispatch.VERIFIED = {"cpu": ("native",)}
asked = []

def judge(keys, index, end, found, command=()):
    for key in keys:
        asked.append(key.call.op)
        found(key, Verdict(True, 0.5, "", 1.0))

runner.verify = judge
calls = [call("ted_adapter", "both", 8, 4), call("bottleneck_adapter", "gelu", 8, 4)]
if sys.argv[1] == "differ" and dist.get_rank() == 1:
    choices._chosen["cpu", 0, calls[0]] = choices.Decision("reference", "it ran so before")
found = kernels.prepare(calls, "cpu")
pathlib.Path(sys.argv[2], f"rank{dist.get_rank()}").write_text(f"{sorted(found.values())} {len(asked)}")
dist.barrier()
"""


@needs_extension
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("case", "backends"), [("agree", ["native", "native"]), ("differ", ["native", "reference"])])
def test_one_process_verifies_and_all_run_the_same(tmp_path, monkeypatch, case, backends, kept):
    (tmp_path / "file").touch()
    monkeypatch.setenv("M2CLIP_VERIFIED", str(tmp_path / ("verified" if kept else "file/below")))
    script, root = tmp_path / "group.py", pathlib.Path(__file__).parents[3]
    script.write_text(GROUP)
    monkeypatch.setenv("PYTHONPATH", str(root))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        script,
        case,
        tmp_path,
    ]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == [f"{backends} 2", f"{backends} 0"]
    assert done.stderr.count("do not all run the same kernel") == (case == "differ")
