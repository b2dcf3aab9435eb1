"""What "auto" runs on a device whose kernels are verified, for which the CPU stands."""

from __future__ import annotations

import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import m2clip
from m2clip import kernels
from m2clip.adapters import STAdapter
from m2clip.kernels import dispatch, records
from m2clip.kernels.cuda import ted as cuda_ted
from m2clip.kernels.native import bottleneck as native_bottleneck
from m2clip.kernels.native import ted as native_ted
from m2clip.kernels.ops import bottleneck as bottleneck_op
from m2clip.kernels.tuning import store as tuning
from m2clip.kernels.verification import choices, plans, store
from m2clip.kernels.verification.store import Verdict

from .stand_in import CPU, call, key, needs_extension

pytestmark = needs_extension
ROWS = 2**14  # of 8 values each: enough for a kernel of bottleneck_adapter


@pytest.fixture
def native_calls(monkeypatch) -> list[str]:
    """The operations that ran natively."""
    seen: list[str] = []
    for name, module in (("ted_adapter", native_ted), ("bottleneck_adapter", native_bottleneck)):
        forward = module.forward
        noted = lambda *a, _name=name, _run=forward, **k: (seen.append(_name), _run(*a, **k))[1]  # noqa: E731
        monkeypatch.setattr(module, "forward", noted)
    return seen


def weights(dim: int = 8, width: int = 4) -> list[torch.Tensor]:
    return [torch.randn(width, dim), torch.randn(width), torch.randn(dim, width), torch.randn(dim)]


def test_the_first_call_verifies_for_real_and_later_ones_and_processes_do_not(cpu, native_calls, capfd):
    adapter = m2clip.TEDAdapter(8, 4, 2)
    x = torch.randn(4, 5, 8)
    assert kernels.explain("ted_adapter", x, width=4).reason == "it will be verified when it first runs"
    adapter(x)
    assert native_calls == ["ted_adapter"]
    told = capfd.readouterr().err
    assert told.startswith("m2clip: 1 kernel verified on cpu in ") and told.endswith(f"(kept in {cpu})\n")
    found = kernels.explain("ted_adapter", x, width=4)
    assert found.backend == "native" and found.reason.startswith("verified here, error ")
    assert kernels.choices() == {"ted_adapter (both, D=8, R=4, fp32)": "native"}
    choices.forget()
    adapter(x)  # as a later process
    assert native_calls == ["ted_adapter"] * 2 and capfd.readouterr().err == ""


def test_a_wrong_kernel_never_runs_and_is_told_of(judge, native_calls, capfd):
    judge.wrong = {"ted_adapter"}
    adapter, x = m2clip.TEDAdapter(8, 4, 2), torch.randn(4, 5, 8)
    for _ in range(2):
        adapter(x)
    assert native_calls == [] and len(judge.asked) == 1
    line = "ted_adapter on native in fp32 is off here: output: error 3.1x PyTorch's"
    assert capfd.readouterr().err == f"m2clip: {line}; PyTorch runs instead (m2clip selfcheck)\n"
    assert kernels.explain("ted_adapter", x, width=4).others["native"].startswith("native is off here")
    choices.forget()
    records._told.clear()
    adapter(x)  # a later process says so, too
    assert len(judge.asked) == 1 and line in capfd.readouterr().err


def test_a_choice_stays_for_the_process(judge, native_calls):
    adapter, x = m2clip.TEDAdapter(8, 4, 2), torch.randn(4, 5, 8)
    adapter(x)
    store.keep(judge.asked[0], Verdict(False, 3.1, "output is wrong", 1.0))
    adapter(x)
    assert native_calls == ["ted_adapter"] * 2


def test_threads_verify_once(judge):
    adapter, x = m2clip.TEDAdapter(8, 4, 2), torch.randn(4, 5, 8)
    threads = [threading.Thread(target=adapter, args=(x,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(judge.asked) == 1


def test_every_layout_dtype_and_size_is_verified_by_itself(judge):
    x = torch.randn(4, 5, 8)
    m2clip.TEDAdapter(8, 4, 2)(x)
    m2clip.TEDAdapter(8, 4, 2, shared_projection=True)(x)
    m2clip.TEDAdapter(8, 4, 2, difference=False)(x)
    STAdapter(8, 4, 2)(x)
    m2clip.TEDAdapter(8, 5, 2)(x)
    m2clip.TEDAdapter(8, 4, 2).bfloat16()(x.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        m2clip.TEDAdapter(8, 4, 2)(x)
    m2clip.TEDAdapter(8, 4, 4)(x)  # frames, tokens and clips make no difference
    m2clip.TEDAdapter(8, 4, 2)(torch.randn(2, 10, 8))
    layouts = [(one.call.layout, one.call.width, one.call.dtype) for one in judge.asked]
    assert layouts == [
        ("both", 4, torch.float32),
        ("shared", 4, torch.float32),
        ("temporal", 4, torch.float32),
        ("temporal patches-only", 4, torch.float32),
        ("both", 5, torch.float32),
        ("both", 4, torch.bfloat16),
        ("both autocast", 4, torch.bfloat16),
    ]


def test_what_has_no_kernel_is_not_asked_about(judge):
    x = torch.randn(4, 5, 8)
    m2clip.TEDAdapter(8, 4, 2).double()(x.double())
    kernels.bias_gelu(x, torch.randn(8))
    with kernels.use_backend("reference"):
        m2clip.TEDAdapter(8, 4, 2)(x)
    kernels.ted_adapter(x, m2clip.TEDAdapter(8, 4, 2).weights(), 2, backend="native")  # asked for by name
    assert judge.asked == []


def test_little_goes_to_the_reference_by_a_static_rule(judge, native_calls):
    kernels.bottleneck_adapter(torch.randn(ROWS - 1, 8), *weights())
    assert judge.asked == [] and native_calls == []
    assert "launches cost more" in kernels.explain("bottleneck_adapter", torch.randn(4, 8), width=4).reason
    kernels.bottleneck_adapter(torch.randn(ROWS, 8), *weights())
    assert native_calls == ["bottleneck_adapter"]
    m2clip.TEDAdapter(8, 4, 2)(torch.randn(2, 5, 8))  # saves a dozen launches however little it is
    assert native_calls == ["bottleneck_adapter", "ted_adapter"]


def test_verification_off_uses_what_is_known(judge, native_calls, monkeypatch, capfd):
    monkeypatch.setenv(choices.SWITCH, "0")
    adapter, x = m2clip.TEDAdapter(8, 4, 2), torch.randn(4, 5, 8)
    adapter(x)
    assert judge.asked == [] and native_calls == [] and capfd.readouterr().err == ""
    assert "M2CLIP_VERIFY is 0" in kernels.explain("ted_adapter", x, width=4).reason
    choices.forget()
    store.keep(key(call("ted_adapter", "both", 8, 4)), Verdict(True, 0.5, "", 1.0))
    adapter(x)
    assert judge.asked == [] and native_calls == ["ted_adapter"]


# ---- where nothing can be verified ----

UNPREPARED = "PyTorch runs instead; call m2clip.kernels.prepare(model) before"


def test_during_a_capture_what_is_known_counts_and_stays(judge, native_calls, monkeypatch, capfd):
    monkeypatch.setattr(dispatch, "obstacle", lambda x: ("a CUDA graph is captured", True))
    adapter, x = m2clip.TEDAdapter(8, 4, 2), torch.randn(4, 5, 8)
    adapter(x)
    told = capfd.readouterr().err
    assert UNPREPARED in told and "while a CUDA graph is captured" in told and told.count("\n") == 1
    monkeypatch.undo()
    dispatch_cpu(monkeypatch)
    adapter(x)  # a graph and what runs beside it use the same
    assert judge.asked == [] and native_calls == []


def test_a_capture_is_seen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = torch.randn(2, 2)
    assert dispatch.obstacle(x) == ("", True)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda", 0))
    assert dispatch.obstacle(x) == ("a CUDA graph is captured", True)


def test_fake_tensors_decide_nothing(judge, native_calls, capfd):
    with FakeTensorMode():
        m2clip.TEDAdapter(8, 4, 2)(torch.randn(4, 5, 8))
    assert judge.asked == [] and UNPREPARED in capfd.readouterr().err and kernels.choices() == {}
    m2clip.TEDAdapter(8, 4, 2)(torch.randn(4, 5, 8))
    assert len(judge.asked) == 1 and native_calls == ["ted_adapter"]


def test_function_transforms_ask_nothing(judge, native_calls, capfd):
    adapter = m2clip.TEDAdapter(8, 4, 2)
    torch.func.vmap(adapter)(torch.randn(3, 4, 5, 8))
    assert judge.asked == [] and native_calls == [] and capfd.readouterr().err == ""


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_a_compiled_call_takes_what_is_known_without_a_graph_break(judge, native_calls, capfd, dynamic, known):
    x, parts = torch.randn(ROWS, 8), weights()
    kernels.bottleneck_adapter(torch.randn(ROWS, 16), *weights(16))  # others are known
    judge.asked.clear()
    native_calls.clear()
    if known:
        store.keep(key(call("bottleneck_adapter", "gelu", 8, 4)), Verdict(True, 0.5, "", 1.0))
    torch._dynamo.reset()
    run = torch.compile(kernels.bottleneck_adapter, fullgraph=True, dynamic=dynamic, backend="eager")
    capfd.readouterr()
    for rows in (x, torch.randn(2 * ROWS, 8)):
        torch.testing.assert_close(run(rows, *parts), kernels.bottleneck_adapter(rows, *parts, backend="reference"))
    assert native_calls == (["bottleneck_adapter"] * 2 if known else []) and judge.asked == []
    told = capfd.readouterr().err
    assert told == "" if known else (UNPREPARED in told and "while the call is traced" in told)


def test_an_exported_program_holds_what_is_known(judge):
    store.keep(key(call("ted_adapter", "both", 8, 4)), Verdict(True, 0.5, "", 1.0))
    program = torch.export.export(m2clip.TEDAdapter(8, 4, 2), (torch.randn(4, 5, 8),))
    assert "m2clip.ted_adapter" in str(program.graph) and judge.asked == []


# ---- what was measured ----


def test_a_measured_winner_is_verified_as_well_and_a_measured_loser_does_not_run(judge, native_calls, monkeypatch):
    measured = {"ted_adapter": "native", "bottleneck_adapter": "reference"}
    monkeypatch.setattr(choices, "measured_winner", lambda call, device: measured[call.op])
    m2clip.TEDAdapter(8, 4, 2)(torch.randn(4, 5, 8))
    kernels.bottleneck_adapter(torch.randn(ROWS, 8), *weights())
    assert [one.call.op for one in judge.asked] == ["ted_adapter"] and native_calls == ["ted_adapter"]
    assert "measured fastest" in kernels.explain("ted_adapter", torch.randn(4, 5, 8), width=4).reason
    slow = kernels.explain("bottleneck_adapter", torch.randn(ROWS, 8), width=4)
    assert slow.backend == "reference" and "measured faster than all kernels" in slow.reason


def test_a_gpu_s_measurements_are_asked_for(monkeypatch):
    monkeypatch.setattr(tuning, "winner", lambda *asked: f"{asked}")
    asked = call("ted_adapter", "both", 8, 4)
    assert choices.measured_winner(asked, torch.device("cuda", 1)) == "(1, 'ted_adapter', torch.float32, 4)"
    assert choices.measured_winner(asked, CPU) == ""


# ---- plans ----


def test_a_plan_takes_the_place_of_the_backend_s_own_choice(judge, monkeypatch):
    taken = []
    forward = native_bottleneck.forward
    monkeypatch.setattr(
        native_bottleneck, "forward", lambda *a, plan=None: (taken.append(plan), forward(*a))[1], raising=False
    )
    monkeypatch.setattr(choices, "fallbacks", lambda call, backend, device: ["quick", "sure"])
    monkeypatch.setattr(choices, "_tell_of_wrong", lambda *_: None)

    def wrong(keys, index, end, found, command=()):
        for one in keys:
            judge.asked.append(one)
            passed = one.backend.endswith("sure")
            found(one, Verdict(passed, 1.0, "" if passed else "output is wrong", 1.0))

    monkeypatch.setattr(choices.runner, "verify", wrong)
    x, parts = torch.randn(ROWS, 8, requires_grad=True), weights()
    y = kernels.bottleneck_adapter(x, *parts)
    y.sum().backward()
    assert [one.backend for one in judge.asked] == ["native", "native/quick", "native/sure"]
    assert taken == ["sure"]
    torch.testing.assert_close(
        y, bottleneck_op.bottleneck_reference(x, *parts, activation="gelu", scale=1.0, residual=True)
    )


def test_a_plan_that_refuses_some_addresses_takes_no_other_s_place(monkeypatch):
    monkeypatch.setattr(cuda_ted, "why_not_one_launch", lambda *_: None)
    asked = call("ted_adapter", "both", 64, 64)._replace(dtype=torch.bfloat16)
    assert plans.plans_of(asked, "cuda", CPU) == ["launches", "one_launch"]
    assert plans.fallbacks(asked, "cuda", CPU) == ["launches"]
    assert plans.fallbacks(asked, "triton", CPU) == plans.plans_of(asked, "triton", CPU)
    assert len(plans.fallbacks(asked, "triton", CPU)) > 1


# ---- a backend for the whole process ----


def test_a_process_may_be_told_its_backend(tmp_path):
    import os
    import subprocess
    import sys

    code = (
        "import torch; from m2clip import kernels\n"
        "x = torch.randn(2**14, 8)\n"
        "print(kernels.explain('bottleneck_adapter', x).backend)\n"
    )
    said = {}
    for name in ("reference", "native", "auto", "", "warp"):
        environment = {**os.environ, dispatch.IN_FORCE: name}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        said[name] = done.stdout.strip() or done.stderr.splitlines()[-1]
    assert said.pop("warp").startswith("ValueError: unknown backend 'warp' in $M2CLIP_BACKEND; choose from auto, ")
    assert said == {"reference": "reference", "native": "native", "auto": "native", "": "native"}


def test_rocm_is_told_whose_kernels_these_are(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    state = kernels.backend_states()["triton"]
    assert not state.available and "Triton kernels are for NVIDIA GPUs" in state.reason


def dispatch_cpu(monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "VERIFIED", {"cpu": ("native",)})
