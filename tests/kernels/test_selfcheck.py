"""`m2clip selfcheck` passes on right kernels, and fails on wrong ones, naming them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from typing import Any

import pytest

from m2clip.cli import main
from m2clip.kernels import selfcheck
from m2clip.kernels.build_info import instruction_sets
from m2clip.kernels.dispatch import OPERATIONS
from m2clip.kernels.native import extension as native
from m2clip.kernels.native import ted as native_ted
from m2clip.kernels.ops.operator import IMPLEMENTATIONS

needs_native = pytest.mark.skipif(native.extension is None, reason="no compiled extension here")


@pytest.fixture
def only_small_ted_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case for case in selfcheck.all_cases() if case.op == "ted_adapter"][1:3]
    monkeypatch.setattr(selfcheck, "all_cases", lambda: iter(cases))


def test_every_operation_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    before = native.extension and native.extension.instruction_set()
    assert main(["selfcheck", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and all(check["passed"] for check in found["checks"])
    assert {"triton", "cuda"} <= set(found["not_checked"])
    assert (native.extension and native.extension.instruction_set()) == before
    if native.extension is not None:
        able = {op for op in OPERATIONS if "native" in IMPLEMENTATIONS.get(op, ())}
        assert {check["op"] for check in found["checks"]} == {*able, "masked_word_loss"}
        labels = {check["backend"] for check in found["checks"] if check["op"] == "ted_adapter"}
        assert labels == {f"native {name}" for name in instruction_sets()}
    tensors = {check["tensor"] for check in found["checks"] if check["op"] == "masked_word_loss"}
    assert tensors == {"output", "gradient of hidden", "gradient of weight", "gradient of bias"}


def crashing_check(work: tuple[int, str], backends: Sequence[str]) -> list[selfcheck.Check]:
    """In a process of the pool: the second case ends it."""
    if work[0] == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return [selfcheck.Check("op", backend, work[1], f"case {work[0]}", "output", 0.0, 1.0) for backend in backends]


def test_a_kernel_that_ends_its_process_is_named_and_the_others_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "_check_number", crashing_check)
    work = [(number, "fp32") for number in range(4)]
    found = list(selfcheck._in_parallel(work, ["triton", "cuda"]))
    assert [[check.passed for check in checks] for checks in found] == [[True] * 2, [False] * 2, [True] * 2, [True] * 2]
    wrong = found[1]
    assert [check.backend for check in wrong] == ["triton", "cuda"]
    assert {(check.case, check.message) for check in wrong} == {
        (list(selfcheck.all_cases())[1].name, "its process was ended")
    }


@needs_native
def test_tables(only_small_ted_cases: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selfcheck", "--backend", "native"]) == 0
    out = capsys.readouterr().out
    assert "native portable" in out and "bf16" in out and "all right" in out and "not checked: cuda" in out
    assert "fp16" not in out


@needs_native
@pytest.mark.parametrize("factor", [1 + 1e-5, float("nan")])
def test_a_wrong_output_is_named(
    only_small_ted_cases: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], factor: float
) -> None:
    forward = native_ted.forward

    def wrong(*args: Any) -> Any:
        y, h = forward(*args)
        return y * factor, h

    monkeypatch.setattr(native_ted, "forward", wrong)
    with pytest.raises(SystemExit) as end:
        main(["selfcheck"])
    out = capsys.readouterr().out
    assert end.value.code == 1
    assert "WRONG: ted_adapter, native portable, fp32, T=1, 4x4" in out and "output is off by" in out


@needs_native
def test_a_wrong_gradient_is_named(
    only_small_ted_cases: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backward = native_ted.backward

    def wrong(*args: Any) -> Any:
        dx, gradients = backward(*args)
        gradients[2] = gradients[2].flip(-1)
        return dx, gradients

    monkeypatch.setattr(native_ted, "backward", wrong)
    with pytest.raises(SystemExit) as end:
        main(["selfcheck", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert end.value.code == 1 and not found["passed"]
    wrong_ones = {check["tensor"] for check in found["checks"] if not check["passed"]}
    assert wrong_ones == {"gradient of temporal.conv_weight"}


@needs_native
def test_a_kernel_that_raises_is_wrong(
    only_small_ted_cases: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(native_ted, "forward", broken)
    with pytest.raises(SystemExit) as end:
        main(["selfcheck"])
    assert end.value.code == 1 and "RuntimeError: no memory left" in capsys.readouterr().out


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(native, "extension", None)
    assert main(["selfcheck"]) == 0
    out = capsys.readouterr().out
    assert "not checked: native" in out and "masked_word_loss" in out and "ted_adapter" not in out


@pytest.mark.parametrize("options", [("--backend", "cuda"), ("--backend", "reference"), ("--backend", "x"), ("--y",)])
def test_bad_options(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["selfcheck", *options])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and options[-1] in err
