"""Tensors of weight files that others wrote, read without running anything that lies in them."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2clip.errors import InputError
from m2clip.files.disk import check_regular, open_regular

_LONGEST_NAME = 300  # far above any tensor's, so that a number in it stays one that Python converts
_DEEPEST, _MOST_TENSORS = 50, 100_000
_MOST_PICKLED = 1 << 28  # bytes of an archive's description, which holds no numbers of tensors
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
# TorchScript describes numbers by these names.
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file: safetensors, a torch.save file of tensors, or a TorchScript archive as OpenAI's.

    Of a dict with other things beside the tensors, such as those of a training, what is under "state_dict" or "model"
    is taken; "module." in front of all names is left out.

    Args:
        path: the file; its content, not its name, tells what it is.

    Returns:
        Tensors on the CPU by name, as `plain_tensors` lets pass.

    Raises:
        InputError: a missing or damaged file, one that holds more than tensors, or tensors that are refused.
    """
    path = Path(path)
    try:
        check_regular(path)
        if is_scripted(path):
            return plain_tensors(_scripted_tensors(path), str(path))
        content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # damaged files make the libraries raise errors of many kinds
        raise InputError(f"{path} cannot be read as a file of tensors: {first_line(error)}") from None
    state = plain_tensors(state_dict_in(content, str(path)), str(path))
    bare = next((name for name, tensor in state.items() if tensor.is_meta), None)
    if bare is not None:
        raise InputError(f"{path}: the tensor {bare!r} has a shape and no numbers (it is of the device meta)")
    return state


def is_scripted(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, which beside tensors holds code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def plain_tensors(state: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    """A state dict of which every entry is a named tensor that stores its own numbers, without "module." in front.

    Args:
        state: what others saved.
        source: what to call it.

    Raises:
        InputError: a name that is no text or endless; a value that is no tensor, or one that is sparse, quantised,
            of eight-bit numbers, nested, complex, empty, or larger than what it stores.
    """
    for name, tensor in state.items():
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            kind = f"{len(name)} letters" if isinstance(name, str) else f"{type(name).__name__}, not text"
            raise InputError(f"{source} is no state dict of a model: a name in it is of {kind}")
        if not isinstance(tensor, Tensor):
            raise InputError(f"{source} is no state dict of a model: {name!r} is of {type(tensor).__name__}, no tensor")
        problem = _problem(tensor)
        if problem is not None:
            raise InputError(f"{source}: the tensor {name!r} {problem}; only plain tensors are read")
    wrapped = bool(state) and all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if wrapped else name: tensor.detach() for name, tensor in state.items()}


def release(module: nn.Module) -> None:
    """Free the memory of a module's weights, which have a shape and no numbers until `fill` gives them others."""
    module.load_state_dict({name: tensor.to("meta") for name, tensor in module.state_dict().items()}, assign=True)


def fill(module: nn.Module, state: dict[str, Tensor], complaint: str) -> None:
    """Give a module all its weights; nothing is changed unless all of them fit.

    Args:
        module: what they are for; the weights become its own without a copy, on the device where they are.
        state: tensors by the module's own names; is emptied.
        complaint: the beginning of an error's message.

    Raises:
        InputError: missing, unknown or differently shaped tensors, or values that are no finite numbers.
    """
    own = module.state_dict()
    for problem, names in (("are missing", own.keys() - state.keys()), ("are unknown", state.keys() - own.keys())):
        if names:
            raise InputError(f"{complaint}: {len(names)} tensors {problem}, among them {sorted(names)[0]!r}")
    for name, tensor in state.items():
        expected = own[name]
        if tensor.shape != expected.shape:
            shapes = f"has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}"
            raise InputError(f"{complaint}: {name!r} {shapes}")
        if expected.is_floating_point() and not is_finite(tensor, expected.dtype):
            raise InputError(f"{complaint}: {name!r} holds values that are no finite floating-point numbers")
    kept, storages = {}, set()
    for name, expected in own.items():
        # One at a time, so that weights of another precision are not there twice.
        tensor = state.pop(name).to(expected.dtype).contiguous()
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
        kept[name] = tensor if alone else tensor.clone()
        storages.add(storage.data_ptr())
    module.load_state_dict(kept, assign=True)


def is_finite(tensor: Tensor, stored: torch.dtype = torch.float32) -> bool:
    """Whether a tensor holds floating-point numbers, none of them infinite or NaN once they are of a dtype."""
    if not tensor.is_floating_point() or tensor.is_meta:
        return False
    # By the extremes, which take no memory and pass a NaN on.
    return all(bool(extreme.to(stored).isfinite()) for extreme in tensor.aminmax())


def _problem(tensor: Tensor) -> str | None:
    if tensor.is_nested:
        return "is nested"
    if tensor.layout != torch.strided:
        return "is sparse"
    if tensor.is_quantized:
        return "is quantised"
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return f"is of numbers of eight bits ({tensor.dtype})"
    if tensor.is_complex():
        return "is complex"
    if tensor.numel() == 0:
        return f"is empty, of shape {tuple(tensor.shape)}"
    if not tensor.is_meta and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"stores fewer numbers than its shape {tuple(tensor.shape)} tells"
    return None


def state_dict_in(content: Any, source: str) -> Mapping[Any, Any]:
    """The state dict that a checkpoint is, or that it has under "state_dict" or "model"; raises InputError."""
    found = content
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise InputError(f"{source} holds no state dict of a model")
    return found


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    state = {}
    with open_regular(path) as opened:
        same = f"/dev/fd/{opened.fileno()}"  # whatever takes the path's place meanwhile
        with safe_open(same, framework="pt") as file:
            names = file.keys()
        for name in names:
            # What was read of a file stays in memory, beside the copy, until the file is closed.
            with safe_open(same, framework="pt") as file:
                state[name] = file.get_tensor(name).clone()
    return state


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # torch's own message recommends to switch the safeguard off.
        reason = "it is damaged, or holds more than tensors"
        raise InputError(f"{path} cannot be read as a file of tensors only: {reason}") from error


# ---- TorchScript archives ----


class _Inert:
    """What stands for every class and function that a description names: it keeps its state and does nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Descriptions(pickle.Unpickler):
    """Reads the description of a TorchScript module: tensors, and inert objects in place of all others."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(_record(archive, f"{folder}data.pkl", _MOST_PICKLED)))
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        return _Inert

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype):
            raise ValueError("a tensor of an unknown kind of numbers")
        if key not in self.storages:
            size = count * dtype.itemsize
            data = _record(self.archive, f"{self.folder}data/{key}", size)
            if len(data) != size:
                raise ValueError("a tensor has fewer numbers than it tells")
            self.storages[key] = torch.frombuffer(bytearray(data), dtype=dtype) if size else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _record(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    if archive.getinfo(name).file_size > most:
        raise ValueError(f"{name} is larger than it should be")
    return archive.read(name)


def _rebuilt(storage: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    sizes = [offset, *shape, *stride]
    if len(shape) != len(stride) or any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError("a tensor's shape is no shape")
    count = torch.Size(shape).numel()
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if count > storage.numel() or (count and last >= storage.numel()):
        raise ValueError("a tensor is larger than its storage")
    return storage.as_strided(shape, stride, offset)


def _scripted_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a TorchScript module by name, without those that are no weights of a CLIP."""
    with zipfile.ZipFile(path) as archive:
        folder = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        root = _Descriptions(archive, folder).load()
    found = {name: tensor for name, tensor in _members(root) if name.rpartition(".")[2] not in _NO_WEIGHTS}
    if not found:
        raise InputError(f"{path} holds no state dict of a model")
    return found


def _members(root: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a module by name. One that contains itself would have endlessly many."""
    left, seen = [(root, "", 0)], 0
    while left:
        value, name, depth = left.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_TENSORS:
            raise ValueError("its modules are nested without an end")
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, _Inert) and isinstance(value.state, dict):
            left.extend((inner, f"{name}.{key}" if name else str(key), depth + 1) for key, inner in value.state.items())


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
