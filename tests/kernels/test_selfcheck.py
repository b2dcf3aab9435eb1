"""`m2clip selfcheck` passes on right kernels, and fails on wrong ones, naming them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from m2clip.cli import main
from m2clip.kernels import native, native_ted, selfcheck
from m2clip.kernels.build_info import instruction_sets
from m2clip.kernels.dispatch import OPERATIONS
from m2clip.kernels.implementations import implemented

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
        able = {op for op in OPERATIONS if implemented(op, "native")}
        assert {check["op"] for check in found["checks"]} == {*able, "masked_word_loss"}
        labels = {check["backend"] for check in found["checks"] if check["op"] == "ted_adapter"}
        assert labels == {f"native {name}" for name in instruction_sets()}
    tensors = {check["tensor"] for check in found["checks"] if check["op"] == "masked_word_loss"}
    assert tensors == {"output", "gradient of hidden", "gradient of weight", "gradient of bias"}


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


def test_an_error_where_the_truth_is_zero() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    assert selfcheck._error(zero.float(), zero) == 0 and selfcheck._error(zero + 1e-3, zero) == 1e-3
