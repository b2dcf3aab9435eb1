"""The authors' checkpoints and ours: the same tensors under other names and in other shapes.

An authors' checkpoint is a torch.save of {"model": {name: tensor}} with the trained tensors only. Reading is strict:
every tensor must be known and must fit.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .files import replacing
from .methods import VideoModel, create_model

_BRANCH = {"fc1": "down", "conv": "conv", "fc2": "up"}


def authors_name(name: str, text_layers: int) -> str:
    """The authors' name of one of our trained M2-CLIP parameters.

    Args:
        name: a name of :meth:`VideoModel.trained_state_dict`.
        text_layers: depth of the text tower; the authors number the masked-word layer behind the last one.
    """
    branch = {ours: theirs for theirs, ours in _BRANCH.items()}
    patterns = (
        (r"visual\.blocks\.(\d+)\.(pre_attn|pre_mlp)\.(temporal|difference)\.(down|conv|up)\.(\w+)", _ted_name),
        (r"output_adapter\.temporal\.(down|conv|up)\.(\w+)", lambda m: f"visual.t_adapter.{branch[m[1]]}.{m[2]}"),
        (r"vc\.fc\.(\w+)", lambda m: f"visual.adapter_fc.{m[1]}"),
        (r"text\.blocks\.(\d+)\.pre_mlp\.(down|up)\.(\w+)", lambda m: _text_name(int(m[1]), m[2], m[3])),
        (r"cmlm\.adapter\.(down|up)\.(\w+)", lambda m: _text_name(text_layers, m[1], m[2])),
        (r"cmlm\.words\.dense\.(\w+)", lambda m: f"mlm_adapter.transform.dense.{m[1]}"),
        (r"cmlm\.words\.norm\.(\w+)", lambda m: f"mlm_adapter.transform.LayerNorm.{m[1]}"),
        (r"cmlm\.words\.decoder", lambda m: "mlm_adapter.decoder.weight"),
        (r"cmlm\.words\.bias", lambda m: "mlm_adapter.bias"),
    )
    for pattern, rename in patterns:
        match = re.fullmatch(pattern, name)
        if match:
            return rename(match)
    raise InputError(f"the authors' checkpoints have no place for {name!r}; only preset 'official' converts")


def _ted_name(m: re.Match[str]) -> str:
    layer, place, branch, part, kind = m.groups()
    inner = "offset_adapter." if branch == "difference" else ""
    theirs = {ours: theirs for theirs, ours in _BRANCH.items()}[part]
    return f"visual.transformer.resblocks.{layer}.adapter_{place}.{inner}{theirs}.{kind}"


def _text_name(layer: int, part: str, kind: str) -> str:
    return f"transformer.resblocks.{layer}.adapter_pre_mlp.textad_{'fc1' if part == 'down' else 'fc2'}.{kind}"


def _authors_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The authors keep the 3x3 convolution as a 3-D one over a single frame."""
    if name.endswith("offset_adapter.conv.weight"):
        return (tensor.shape[0], 1, 1, *tensor.shape[2:])
    return tuple(tensor.shape)


def to_authors_state(model: VideoModel) -> dict[str, Tensor]:
    """A trained M2-CLIP's tensors under the authors' names and shapes."""
    _require_official(model)
    layers = len(model.text.blocks)
    state = {}
    for name, tensor in model.trained_state_dict().items():
        theirs = authors_name(name, layers)
        state[theirs] = tensor.cpu().reshape(_authors_shape(theirs, tensor)).clone()
    return state


def load_authors_checkpoint(model: VideoModel, checkpoint: dict[str, Any] | str | Path) -> None:
    """Load an authors' M2-CLIP checkpoint into a model, strictly.

    Args:
        model: M2-CLIP, preset "official", of the checkpoint's tower, classes and words.
        checkpoint: a path of a torch.save file (read with ``weights_only=True``), its dict, or the state dict in it.

    Raises:
        InputError: missing, unexpected or differently shaped tensors, a file that cannot be read safely.
    """
    _require_official(model)
    state = authors_state(checkpoint)
    layers = len(model.text.blocks)
    own = model.trained_state_dict()
    names = {authors_name(name, layers): name for name in own}
    for problem, found in (("lacks", names.keys() - state.keys()), ("has unknown", state.keys() - names.keys())):
        if found:
            raise InputError(f"the checkpoint {problem} {len(found)} tensors, among them {sorted(found)[0]!r}")
    tensors = {}
    for theirs, ours in names.items():
        expected = _authors_shape(theirs, own[ours])
        if tuple(state[theirs].shape) != expected:
            raise InputError(f"the checkpoint's {theirs!r} has shape {tuple(state[theirs].shape)}, expected {expected}")
        tensors[ours] = state[theirs].float().reshape(own[ours].shape)
    model.load_trained_state_dict(tensors)


def authors_state(checkpoint: dict[str, Any] | str | Path) -> dict[str, Tensor]:
    """The tensors of an authors' checkpoint, given as a file, its dict or the state dict in it."""
    if isinstance(checkpoint, (str, Path)):
        checkpoint = _load_file(Path(checkpoint))
    state = checkpoint.get("model", checkpoint)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError('the checkpoint holds no tensors under the key "model"')
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def authors_options(state: dict[str, Tensor]) -> dict[str, Any]:
    """The options of :class:`M2CLIPOptions` that an authors' checkpoint shows by its names and shapes."""
    places = sorted({m[1] for name in state if (m := re.match(r"visual\..*\.adapter_(pre_attn|pre_mlp)\.fc1", name))})
    downs = {name: t for name, t in state.items() if re.search(r"visual\..*adapter_pre_(attn|mlp)\.fc1\.weight$", name)}
    texts = [t for name, t in state.items() if name.endswith("textad_fc1.weight")]
    if not downs or not texts or "mlm_adapter.bias" not in state or "visual.adapter_fc.weight" not in state:
        raise InputError("this is no M2-CLIP checkpoint: TED-Adapters, text adapters or heads are missing")
    return {
        "width": next(iter(downs.values())).shape[0],
        "placement": "both" if len(places) == 2 else places[0],
        "text_width": texts[0].shape[0],
        "text_layers": len(texts) - 1,  # one of them is the masked-word layer's
    }


def convert_from_authors(
    source: str | Path,
    folder: str | Path,
    clip_name: str = "ViT-B-16-quickgelu",
    num_frames: int = 8,
    class_names: list[str] | None = None,
    pretrained: str | None = "openai",
) -> Path:
    """Write an authors' checkpoint as adapter_config.json and adapters.safetensors.

    Args:
        source: the authors' file.
        folder: where to write.
        clip_name, pretrained: the CLIP the checkpoint was trained on; only its architecture is built here.
        num_frames: T of the checkpoint, which its tensors do not tell.
        class_names: names in the order of the labels; by default Kinetics-400's.

    Raises:
        InputError: a checkpoint that does not fit the CLIP, the classes or their words.
    """
    from .checkpoint import save_adapters
    from .clip_loading import load_clip
    from .data.label_sets import load_class_names

    state = authors_state(source)
    names = load_class_names("k400") if class_names is None else class_names
    model = create_model("m2clip", load_clip(clip_name, None), names, num_frames, **authors_options(state))
    load_authors_checkpoint(model, state)
    model.clip_source = {"name": clip_name, "pretrained": pretrained}
    return save_adapters(model, folder)


def convert_to_authors(folder: str | Path, target: str | Path) -> Path:
    """Write a saved M2-CLIP as a checkpoint file that the authors' code reads."""
    from .checkpoint import load_adapters, read_adapter_config
    from .clip_loading import load_clip

    source = read_adapter_config(Path(folder))["clip"]
    if not source:
        raise InputError(f"{folder} does not name its CLIP, so its architecture is unknown")
    model = load_adapters(folder, load_clip(source["name"], None))
    target = Path(target)
    with replacing(target) as temporary:
        torch.save({"model": to_authors_state(model)}, temporary)
    return target


def _load_file(path: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except Exception as error:  # torch raises many kinds for files that are damaged or hold more than tensors
        raise InputError(f"{path} cannot be read as a file of tensors only: damaged, or no torch checkpoint") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds a {type(loaded).__name__}, expected a dict of tensors")
    return loaded


def _require_official(model: VideoModel) -> None:
    if model.method != "m2clip" or model.options()["shared_projection"] or not model.options()["output_adapter"]:
        raise InputError("only M2-CLIP with preset 'official' has a form in the authors' checkpoints")
