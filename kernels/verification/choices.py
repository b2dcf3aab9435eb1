"""Which backend runs each call in this process: decided once for a device, and the same from then on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from .. import records
from ..tuning import store as tuning
from . import runner, store
from .decide import REFERENCE, Decision, candidates, decide
from .keys import Call, Key, device_facts, short, software
from .plans import fallbacks
from .store import Verdict

SWITCH = "M2CLIP_VERIFY"  # 0 starts no verification
TRACED = "the call is traced"
OFF = f"{SWITCH} is 0"
# The kernels that this installation has for a call on a device.
Able = Callable[[Call, torch.device], Sequence[str]]

_chosen: dict[tuple[str, int, Call], Decision] = {}
_deciding = threading.RLock()


def chosen(call: Call, device: torch.device) -> Decision | None:
    """What was decided for a call, None where nothing was."""
    return _chosen.get((device.type, device.index or 0, call))


def settle(
    calls: Iterable[Call], device: torch.device, able: Able, obstacle: str = "", freeze: bool = True
) -> dict[Call, Decision]:
    """Decide how calls run, and verify what that takes.

    Args:
        calls: what is decided already stays as it is.
        device: with its number.
        able: the kernels that there are.
        obstacle: why nothing can be verified now.
        freeze: whether what is decided in spite of an obstacle stays.
    """
    off = os.environ.get(SWITCH) == "0"
    with _deciding:
        calls = list(dict.fromkeys(calls))
        rest = [call for call in calls if chosen(call, device) is None]
        start = time.monotonic()
        verified: dict[Key, Verdict] = {}
        while True:
            decisions = {call: _decide(call, device, able, OFF if off else obstacle) for call in rest}
            missing = [key_of(call, one.missing, device) for call, one in decisions.items() if one.missing]
            if not missing:
                break
            _verify(missing, device, start + runner.allowed_seconds(), verified)
        if freeze:
            for call, decision in decisions.items():
                _chosen[device.type, device.index or 0, call] = decision
        if verified:
            _tell_of(verified, time.monotonic() - start)
        for call, decision in decisions.items():
            _tell_of_wrong(call, decision, device, able)
            if decision.open and not off:
                tell_unprepared(call.op, call.dtype, obstacle)
        return {call: chosen(call, device) or decisions[call] for call in calls}


def foreseen(call: Call, device: torch.device, able: Able) -> Decision:
    """What will run a call, as far as that is known without verifying anything."""
    found = chosen(call, device) or _decide(call, device, able, OFF if os.environ.get(SWITCH) == "0" else "")
    return Decision(found.missing, "it will be verified when it first runs") if found.missing else found


def tell_unprepared(op: str, dtype: torch.dtype, obstacle: str) -> None:
    """That a kernel is not used although there is one."""
    what = f"no kernel of {op} in {short(dtype)} is verified yet, and none can be while {obstacle}"
    records.tell(f"{what}: PyTorch runs instead; call m2clip.kernels.prepare(model) before")


def _verify(keys: list[Key], device: torch.device, end: float, verified: dict[Key, Verdict]) -> None:
    def found(key: Key, verdict: Verdict) -> None:
        store.keep(key, verdict)
        verified[key] = verdict

    with store.one_process(end - time.monotonic()):
        # Another process may have answered while this one waited for it.
        runner.verify([key for key in keys if store.known(key) is None], device.index or 0, end, found)


def key_of(call: Call, backend: str, device: torch.device) -> Key:
    """The verification of a backend for a call on a device."""
    return Key(call, backend, device_facts(device.type, device.index or 0), software(backend, device))


def _decide(call: Call, device: torch.device, able: Able, obstacle: str) -> Decision:
    measured = measured_winner(call, device)
    wanted = candidates(able(call, device), measured, lambda backend: fallbacks(call, backend, device))
    return decide(wanted, measured, lambda name: store.known(key_of(call, name, device)), obstacle)


def measured_winner(call: Call, device: torch.device) -> str:
    """The backend that was measured to be fastest for an operation, dtype and width; empty where none was."""
    if device.type != "cuda":
        return ""
    return tuning.winner(device.index or 0, call.op, call.dtype, call.width)


def known_choices(op: str, layout: str, dtype: torch.dtype, device: torch.device, able: Able) -> str:
    """What runs calls of all widths that are decided or verified, as "768 384=triton;768 64=reference".

    One plain string, so that a compiler can ask without the numbers, which may be symbols to it.
    """
    facts = device_facts(device.type, device.index or 0)
    calls = {call for kind, index, call in _chosen if (kind, index) == (device.type, device.index or 0)}
    calls |= {key.call for key in store.all_known() if key.device == facts}
    parts = []
    for call in calls:
        if (call.op, call.layout, call.dtype) == (op, layout, dtype):
            decision = chosen(call, device) or _decide(call, device, able, TRACED)
            parts.append(f"{call.dim} {call.width}={decision.backend}")
    return ";".join(sorted(parts))


def agree(proposals: Sequence[dict[Call, str]], device: torch.device) -> None:
    """Run a call by the reference where the processes of a group, whose choices these are, do not run it alike."""
    for call, backend in proposals[0].items():
        if any(other.get(call) != backend for other in proposals[1:]):
            decision = Decision(REFERENCE, "the processes of the group do not all run the same kernel")
            _chosen[device.type, device.index or 0, call] = decision
            records.tell(f"{call}: {decision.reason}; PyTorch runs instead in all of them")


def choices() -> dict[str, str]:
    """The backend of every call that was decided in this process, by the call in words."""
    return {str(call): decision.backend for (_, _, call), decision in sorted(_chosen.items(), key=str)}


def forget() -> None:
    """Decide anew, and read the files again; for tests, and after the files were removed."""
    _chosen.clear()
    store.forget()


def _tell_of(verified: dict[Key, Verdict], seconds: float) -> None:
    right = [key for key, verdict in verified.items() if verdict.passed]
    if right:
        count = f"{len(right)} kernel{'s' if len(right) > 1 else ''}"
        records.tell(f"{count} verified on {right[0].device.name} in {seconds:.0f} s (kept in {store.folder()})")


def _tell_of_wrong(call: Call, decision: Decision, device: torch.device, able: Able) -> None:
    """Why what comes first does not run."""
    measured = measured_winner(call, device)
    if measured == REFERENCE:
        return
    instead = "PyTorch" if decision.backend == REFERENCE else decision.backend
    for name in candidates(able(call, device), measured, lambda backend: ()):
        verdict = store.known(key_of(call, name, device))
        if name == decision.backend or verdict is None:
            return
        if not verdict.passed:
            where = f"{call.op} on {name} in {short(call.dtype)} is off here: {verdict.message}"
            records.tell(f"{where}; {instead} runs instead (m2clip selfcheck)")
