"""The state of a training run on disk: checkpoints that are whole or absent, and all that an exact resume needs."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2clip.errors import InputError
from m2clip.files.disk import file_digest, flush, read_json, seal, unseal

_TENSORS, _STATE, _PREFIX = "tensors.safetensors", "state.json", "step-"
MODEL = "model."  # how names of trained tensors begin
_OWN_DIGEST = "state_sha256"
_FIELDS = {"identity": dict, "scaler": dict, "rng": list, "kernels": dict}


@dataclass
class Progress:
    """How far training has come.

    Attributes:
        step: optimiser steps done, skipped ones included.
        epoch: epochs finished.
        batches: batches of each process that the current epoch has used up.
        bad_steps: steps in a row, up to now, whose loss or gradient was not finite.
        sums: sums of the logged numbers since the last line of metrics.csv.
        summed_steps: how many steps are in them.
    """

    step: int = 0
    epoch: int = 0
    batches: int = 0
    bad_steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    summed_steps: int = 0


@dataclass
class Checkpoint:
    """What a checkpoint folder held.

    Attributes:
        folder: where it is.
        tensors: trained tensors ("model.NAME") and optimiser moments ("optimizer.NAME.MOMENT").
        state: everything else, as JSON values.
    """

    folder: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def progress(self) -> Progress:
        """How far training had come."""
        return Progress(**self.state["progress"])


def save_checkpoint(
    folder: str | os.PathLike[str], tensors: dict[str, Tensor], progress: Progress, state: dict[str, Any], keep: int
) -> Path:
    """Write a checkpoint under a temporary name, flush it to disk, rename it, and only then drop the oldest ones.

    Args:
        folder: holds all checkpoints of the run, one sub-folder each.
        tensors: tensors to store.
        progress: how far training has come.
        state: other JSON values to store.
        keep: how many of the newest checkpoints stay, 1 or more.

    Returns:
        The new sub-folder.

    Raises:
        InputError: it could not be written; the checkpoints that were there before are untouched.
    """
    folder = Path(folder)
    target = folder / f"{_PREFIX}{progress.step:09d}"
    temporary = folder / f".writing-{target.name}"
    discarded = folder / f".old-{target.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in (*folder.glob(".writing-*"), *folder.glob(".old-*")):
            shutil.rmtree(left)
        temporary.mkdir()
        _write_tensors(tensors, temporary / _TENSORS)
        whole = {**state, "progress": asdict(progress), "sha256": file_digest(temporary / _TENSORS)}
        (temporary / _STATE).write_text(json.dumps(seal(whole, _OWN_DIGEST)), encoding="utf-8")
        for path in (temporary / _TENSORS, temporary / _STATE, temporary):
            flush(path)
        if target.exists():
            os.rename(target, discarded)
        os.rename(temporary, target)
        flush(folder)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # safetensors reports a full disk with an exception of its own, which is no OSError.
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            reason = " ".join(str(error).split())
            raise InputError(
                f"{target}: checkpoint could not be written ({reason}); make room and start again: "
                "training resumes from the checkpoint before"
            ) from None
        raise
    shutil.rmtree(discarded, ignore_errors=True)
    # Later ones than this are damaged: the run has gone on from before them.
    later = [path for path in list_checkpoints(folder) if _step(path) > progress.step]
    for old in (*later, *list_checkpoints(folder)[len(later) + keep :]):
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Checkpoint folders of a run, newest first; whether they are intact is not checked."""
    found = [
        path for path in Path(folder).glob(f"{_PREFIX}*") if path.name[len(_PREFIX) :].isdecimal() and path.is_dir()
    ]
    return sorted(found, key=_step, reverse=True)


def load_newest(folder: str | os.PathLike[str], report: Callable[[str], None] = print) -> Checkpoint | None:
    """Read the newest intact checkpoint; None where there is none at all.

    Args:
        folder: holds all checkpoints of the run.
        report: told one line about each damaged checkpoint that was passed over.

    Raises:
        InputError: there are checkpoints but every one is damaged.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            return _load(path)
        except _Damaged as damage:
            report(f"{path}: checkpoint is damaged ({damage}), using the one before")
    if paths:
        raise InputError(f"{folder}: no checkpoint can be read; remove this folder to start the run again")
    return None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one that `save_checkpoint` wrote."""
    return (folder / _STATE).is_file() and (folder / _TENSORS).is_file()


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        InputError: it is damaged.
    """
    try:
        return _load(folder)
    except _Damaged as damage:
        raise InputError(f"{folder}: checkpoint is damaged ({damage})") from None


def collect_tensors(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Trained tensors and optimiser moments, named by their parameters; contiguous copies on the CPU."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {f"{MODEL}{name}": value for name, value in model.trained_state_dict().items()}
    for parameter, moments in optimizer.state.items():
        for moment, value in moments.items():
            tensors[f"optimizer.{names[id(parameter)]}.{moment}"] = torch.as_tensor(value)
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}


def restore_tensors(model: Any, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `collect_tensors` collected.

    Raises:
        InputError: the tensors are those of another model.
    """
    model.load_trained_state_dict(
        {name[len(MODEL) :]: value for name, value in tensors.items() if name.startswith(MODEL)}
    )
    moments: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            parameter, _, moment = name[len("optimizer.") :].rpartition(".")
            moments.setdefault(parameter, {})[moment] = value
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for moment, value in moments.get(names[id(parameter)], {}).items():
                # A fused AdamW keeps its step counts beside the parameter too.
                device = parameter.device if moment != "step" or group.get("fused") else "cpu"
                optimizer.state[parameter][moment] = value.to(device)


def other_kernels(state: dict[str, Any], kernels: dict[str, str]) -> str:
    """One line where a run goes on with other kernels than a checkpoint was trained with; empty where it does not.

    Args:
        state: of the checkpoint.
        kernels: the backend of each call now (:func:`m2clip.kernels.prepare`).
    """
    saved = state.get("kernels", {})  # which earlier runs did not note
    other = {call: own for call, own in kernels.items() if saved.get(call, own) != own}
    changed = "; ".join(f"{call} ran on {saved[call]} and now on {own}" for call, own in other.items())
    return changed and f"kernels have changed, and with them the last digits of losses: {changed}"


def rng_state() -> dict[str, Any]:
    """The random number generators of torch (CPU and this process's GPU), numpy and Python, as JSON values."""
    import numpy

    # The global generator, old style, because that is the one other libraries draw from.
    drawn = numpy.random.get_state(legacy=False)  # noqa: NPY002
    kind, keys, position = drawn["bit_generator"], drawn["state"]["key"], drawn["state"]["pos"]
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": _encode(torch.get_rng_state()),
        "numpy": [kind, keys.tolist(), position, drawn["has_gauss"], drawn["gauss"]],
        "python": [version, list(numbers), gauss],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = _encode(torch.cuda.get_rng_state())
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    import numpy

    torch.set_rng_state(_decode(state["torch"]))
    kind, keys, position, has_gauss, cached = state["numpy"]
    keys = numpy.array(keys, dtype=numpy.uint32)
    numpy.random.set_state((kind, keys, position, has_gauss, cached))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_decode(state["cuda"]))


class _Damaged(Exception):
    """A checkpoint that cannot be used, and why."""


def _step(path: Path) -> int:
    return int(path.name[len(_PREFIX) :])


def _load(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = unseal(read_json(path / _STATE), digest=_OWN_DIGEST)
        if file_digest(path / _TENSORS) != state["sha256"]:
            raise _Damaged(f"{_TENSORS} is not what was written")
        checkpoint = Checkpoint(path, load_file(path / _TENSORS), state)
        if not all(type(number) is int for number in astuple(checkpoint.progress)[:4]):
            raise _Damaged(f"{_STATE} tells no progress")
        if not all(isinstance(state.get(name, kind()), kind) for name, kind in _FIELDS.items()):
            raise _Damaged(f"{_STATE} is no state of a run")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise _Damaged(" ".join(f"{type(error).__name__}: {error}".split())) from None
    return checkpoint


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def _encode(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _decode(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
