"""Checkpoints and adapters are what was saved, or refused in one line; nothing that lies in them is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import m2clip
from m2clip.checkpoints.convert import authors_state
from m2clip.train.state import Progress, load_newest, rng_state, save_checkpoint
from tests.clips import NAMES, small_clip
from tests.fuzz.mutations import attempt, cases, mutated, mutated_json

CLIP = small_clip()


class Harmful:
    """What unpickles to the execution of a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("fuzz")
    yield made
    assert not list(made.rglob("pwned"))


@pytest.fixture(scope="module")
def adapters(folder: Path) -> Path:
    torch.manual_seed(0)
    return m2clip.save_adapters(m2clip.create_model("m2clip", CLIP, NAMES, 4, width=8, text_width=8), folder / "saved")


@pytest.fixture(scope="module")
def harmful(folder: Path) -> list[bytes]:
    """Pickles, as such and as torch writes them."""
    found = [pickle.dumps({"model": Harmful(folder / "pwned")})]
    for old in (True, False):
        buffer = io.BytesIO()
        torch.save({"model": Harmful(folder / "pwned")}, buffer, _use_new_zipfile_serialization=old)
        found.append(buffer.getvalue())
    return found


def copy_of(adapters: Path) -> Path:
    made = adapters.with_name("copy")
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(adapters, made)
    return made


@cases(0.06)
@given(st.data())
def test_adapter_configurations(adapters: Path, data: st.DataObject) -> None:
    made = copy_of(adapters)
    content = (adapters / "adapter_config.json").read_bytes()
    changed = data.draw(mutated_json((json.loads(content),)) | mutated((content,)))
    (made / "adapter_config.json").write_bytes(changed)
    model = attempt("adapter_config.json", lambda: m2clip.load_adapters(made, CLIP))
    if model is not None:
        saved = m2clip.load_adapters(adapters, CLIP).trained_state_dict()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in model.trained_state_dict().items())


@cases(0.06)
@given(st.data())
def test_adapter_weights(adapters: Path, harmful: list[bytes], data: st.DataObject) -> None:
    made = copy_of(adapters)
    content = (adapters / "adapters.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        changed = data.draw(mutated((content, *harmful)))
    else:
        # The header by itself, with its length put right.
        head = data.draw(mutated_json((json.loads(content[8:header]),)))
        changed = len(head).to_bytes(8, "little") + head + content[header:]
    (made / "adapters.safetensors").write_bytes(changed)
    model = attempt("adapters.safetensors", lambda: m2clip.load_adapters(made, CLIP))
    if model is not None:
        assert all(parameter.dtype == torch.float32 for parameter in model.trained_state_dict().values())


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    tensors = {"model.a": torch.arange(6.0).view(2, 3), "optimizer.a.step": torch.tensor(3.0)}
    state = {"rng": [rng_state()["torch"][:40]], "identity": {"seed": 0}, "scaler": {}}
    return save_checkpoint(folder / "checkpoints", tensors, Progress(step=3, epoch=1, batches=2), state, keep=1)


@cases(0.06)
@given(st.data())
def test_training_states(folder: Path, checkpoint: Path, harmful: list[bytes], data: st.DataObject) -> None:
    made = folder / "damaged" / checkpoint.name
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(checkpoint, made)
    name = data.draw(st.sampled_from(("state.json", "state.json", "tensors.safetensors")))
    content = (checkpoint / name).read_bytes()
    changed = mutated((content, *harmful))
    if name == "state.json":
        changed = mutated_json((json.loads(content),)) | changed
    (made / name).write_bytes(data.draw(changed))
    found = attempt("training states", lambda: load_newest(made.parent, report=lambda line: None))
    if found is not None:
        assert found.progress.step == 3
        assert torch.equal(found.tensors["model.a"], torch.arange(6.0).view(2, 3))


@cases(0.04)
@given(st.data())
def test_authors_checkpoints(folder: Path, harmful: list[bytes], data: st.DataObject) -> None:
    buffer = io.BytesIO()
    torch.save({"model": {"module.a": torch.ones(3)}}, buffer)
    path = folder / "authors.pth"
    path.write_bytes(data.draw(mutated((buffer.getvalue(), *harmful))))
    state = attempt("authors' checkpoints", lambda: authors_state(path))
    if state is not None:
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


def test_pickles_are_refused_wherever_they_lie(
    folder: Path, adapters: Path, checkpoint: Path, harmful: list[bytes]
) -> None:
    for content in harmful:
        made = copy_of(adapters)
        for name in ("adapters.safetensors", "adapter_config.json"):
            (made / name).write_bytes(content)
            assert attempt("pickles", lambda made=made: m2clip.load_adapters(made, CLIP)) is None
        (folder / "authors.pth").write_bytes(content)
        assert attempt("pickles", lambda: authors_state(folder / "authors.pth")) is None
        state = folder / "pickled" / checkpoint.name
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(checkpoint, state)
        (state / "tensors.safetensors").write_bytes(content)
        read = attempt("pickles", lambda state=state: load_newest(state.parent, report=lambda line: None))
        assert read is None
    # The pickles do what they are said to do where they are not refused.
    marker = folder / "pwned"
    pickle.loads(harmful[0])
    assert marker.exists()
    marker.unlink()
