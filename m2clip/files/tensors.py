"""Tensors and facts about them in one safetensors file, with a digest over all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.files.disk import check_regular, parse_json, replacing

if TYPE_CHECKING:
    from torch import Tensor

_ENTRY, _DIGEST = "m2clip", "sha256"


class DamagedError(ValueError):
    """A file is not what was written; the message says how, without the file's name."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write tensors of any device; equal tensors and facts give equal files.

    Args:
        tensors: by name.
        path: is replaced when the new file is complete.
        facts: JSON values to keep with them; the name "sha256" is taken.

    Raises:
        InputError: the file cannot be written.
    """
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    kept = {**(facts or {}), _DIGEST: _digest(whole, facts or {})}
    # One entry, since several are stored in a random order.
    content = save(whole, {_ENTRY: json.dumps(kept, ensure_ascii=False)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors on the CPU and the facts that `save_tensors` wrote.

    A file without a digest, of an earlier version or of another program, is read as well; its facts then lack "sha256".

    Raises:
        OSError: there is no such file, or it is no regular one.
        DamagedError: it is no safetensors file, or not what was written.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            facts = parse_json((file.metadata() or {}).get(_ENTRY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedError(" ".join(str(error).split())) from None
    except (ValueError, TypeError, KeyError, RuntimeError, MemoryError) as error:
        raise DamagedError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
    if not isinstance(facts, dict):
        raise DamagedError("its metadata are no record")
    told = {name: value for name, value in facts.items() if name != _DIGEST}
    if _DIGEST in facts and facts[_DIGEST] != _digest(tensors, told):
        raise DamagedError("its digest is wrong")
    return tensors, facts


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    import torch

    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # Bytes as they are: bf16 has no numpy type.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
