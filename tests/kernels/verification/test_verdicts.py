"""What verifications found, as files."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch

from m2clip.kernels import records
from m2clip.kernels.triton.losses import KEPT_DOTS, MANY
from m2clip.kernels.verification import keys, store
from m2clip.kernels.verification.keys import DeviceFacts, Key, Software, ted_layout
from m2clip.kernels.verification.store import Verdict

from .stand_in import call, key

RIGHT = Verdict(True, 0.8, "", 1.5)
WRONG = Verdict(False, 3.1, "output: error 3.1x PyTorch's, allowed 2x", 1.5)
GPU = DeviceFacts("cuda", "NVIDIA Example 7", (9, 0), 570)
KEY = Key(call("ted_adapter", "both", 768, 384), "triton", GPU, Software("2.11.0", "3.6.0", "abc", ""))


@pytest.mark.parametrize("verdict", [RIGHT, WRONG])
def test_a_verdict_is_found_by_later_processes(cpu, verdict):
    store.keep(KEY, verdict)
    store.forget()
    assert store.known(KEY) == verdict
    assert [path.name for path in cpu.iterdir()] == [f"{KEY.name}.json"]
    assert store.all_known() == {KEY: verdict}


@pytest.mark.parametrize(
    "other",
    [
        KEY._replace(backend="triton/launches"),
        KEY._replace(backend="cuda"),
        *(
            KEY._replace(call=KEY.call._replace(**change))
            for change in ({"layout": "shared"}, {"dim": 769}, {"width": 8})
        ),
        KEY._replace(call=KEY.call._replace(dtype=torch.bfloat16)),
        KEY._replace(device=GPU._replace(name="NVIDIA Example 8")),
        KEY._replace(device=GPU._replace(driver=580)),
        *(KEY._replace(software=KEY.software._replace(**{field: "x"})) for field in Software._fields),
    ],
)
def test_it_holds_for_nothing_else(cpu, other):
    store.keep(KEY, RIGHT)
    store.forget()
    assert store.known(other) is None
    assert Key.of_record(json.loads(json.dumps(other.record()))) == other


def test_what_says_nothing_of_the_kernel_does_not_last(cpu):
    late = Verdict(False, 0.0, "there was no answer within 60 s", 1.0, lasting=False)
    store.keep(KEY, late)
    assert store.known(KEY) == late
    store.forget()
    assert store.known(KEY) is None and not cpu.exists()


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 100_000, "{}", '{"format": 1, "key": {}}', '{"format": 1, "key": 3, "passed": true}']
)
def test_a_file_of_no_use_is_told_of_once_and_counts_as_none(cpu, text, capfd):
    store.keep(KEY, RIGHT)
    path = cpu / f"{KEY.name}.json"
    path.write_text(text)
    store.forget()
    assert store.known(KEY) is None and store.known(KEY) is None
    told = capfd.readouterr().err
    assert told.startswith(f"m2clip: {path}: cannot be used (") and told.count("\n") == 1
    store.keep(KEY, WRONG)  # replaces it
    store.forget()
    assert store.known(KEY) == WRONG


def test_a_file_of_another_version_or_key_counts_as_none(cpu, capfd):
    for change in ({"format": 0}, {"key": KEY._replace(backend="cuda").record()}):
        content = {"format": store.FORMAT, "key": KEY.record(), **RIGHT._asdict()}
        del content["lasting"]
        records.write(cpu / f"{KEY.name}.json", {**content, **change})
        store.forget()
        assert store.known(KEY) is None
    assert capfd.readouterr().err == ""


def test_a_changed_verdict_is_no_verdict(cpu):
    store.keep(KEY, WRONG)
    path = cpu / f"{KEY.name}.json"
    path.write_text(path.read_text().replace('"passed": false', '"passed": true'))
    store.forget()
    assert store.known(KEY) is None


@pytest.mark.parametrize("reason", ["no home", "not a folder"])
def test_where_nothing_can_be_written_it_holds_for_the_process(cpu, reason, monkeypatch, capfd, tmp_path):
    if reason == "no home":
        monkeypatch.delenv(store.FOLDER)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(pathlib.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv(store.FOLDER, str(tmp_path / "file" / "below"))
    for verdict in (RIGHT, WRONG):
        with store.one_process(1.0):
            store.keep(KEY, verdict)
        assert store.known(KEY) == verdict
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and "holds for this process alone; name a folder with M2CLIP_VERIFIED" in told
    assert store.all_known() == {KEY: WRONG}


def test_layouts_name_what_decides_the_kernels():
    assert ted_layout(True, True) == "both"
    assert ted_layout(True, True, shared=True, class_token=False) == "shared no-class-token"
    assert ted_layout(True, False, shared=True, patches_only=True, sequential=True) == "temporal patches-only"
    assert ted_layout(False, True, num_frames=65) == "difference long"
    assert ted_layout(True, True, sequential=True) == "both sequential"
    assert (keys.MANY_COLUMNS, keys.MANY_COSINES) == (MANY, KEPT_DOTS)  # where the kernels change
    assert [keys.loss_layout(*sizes) for sizes in ((64, 400), (64, 1025), (2700, 400))] == ["few", "many", "many"]


def test_tf32_is_another_kernel():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert keys.with_precision("gelu", torch.float32, False) == "gelu"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert keys.with_precision("gelu", torch.float32, False) == "gelu tf32"
        assert keys.with_precision("gelu", torch.bfloat16, True) == "gelu autocast"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_a_key_follows_the_sources_and_the_measured_tiles(monkeypatch, tmp_path):
    before = key(call())
    monkeypatch.setattr(keys, "_sources", lambda backend: "other")
    assert key(call()) != before
    monkeypatch.undo()
    from m2clip.kernels.tuning import store as tuning

    monkeypatch.setenv(tuning.FOLDER, str(tmp_path))
    tuning.save("cpu", tuning.Measurements(configs={"mixer 4 2": [1, 2]}))
    try:
        assert key(call()) != before
    finally:
        monkeypatch.undo()
        tuning.forget()
    assert key(call()) == before
