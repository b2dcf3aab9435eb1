"""The authors' checkpoints and ours: the same tensors under other names and in other shapes.

An authors' checkpoint is a torch.save of a dict with the tensors under "model" (M2-CLIP, ST-Adapter) or "state_dict"
(AIM). Reading is strict: every tensor must be known and must fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .authors import authors_method, authors_name, scheme, scheme_of
from .errors import InputError
from .files import replacing
from .methods import VideoModel, create_model

__all__ = [
    "authors_name",
    "authors_options",
    "authors_state",
    "convert_from_authors",
    "convert_to_authors",
    "load_authors_checkpoint",
    "to_authors_state",
]

DEFAULT_FRAMES = 8  # of checkpoints that do not tell theirs


def to_authors_state(model: VideoModel) -> dict[str, Tensor]:
    """A trained model's tensors under the authors' names and shapes; with AIM's, CLIP's frozen ones too."""
    form = scheme_of(model)
    state = {}
    for name, tensor in model.trained_state_dict().items():
        theirs = form.name(name, model)
        state[theirs] = tensor.cpu().reshape(form.shape(theirs, tensor)).clone()
    frozen = {} if form.frozen is None else form.frozen(model)
    return state | {name: tensor.cpu().clone() for name, tensor in frozen.items()}


def load_authors_checkpoint(model: VideoModel, checkpoint: dict[str, Any] | str | Path) -> None:
    """Load an authors' checkpoint into a model of the same method, strictly.

    Args:
        model: M2-CLIP (preset "official"), ST-Adapter or AIM, of the checkpoint's tower, classes and, for M2-CLIP,
            words.
        checkpoint: a path of a torch.save file (read with ``weights_only=True``), its dict, or the state dict in it.
            CLIP's frozen tensors in an AIM checkpoint must fit the model's, which are kept.

    Raises:
        InputError: missing, unexpected or differently shaped tensors, a file that cannot be read safely.
    """
    form = scheme_of(model)
    state = authors_state(checkpoint)
    own = model.trained_state_dict()
    names = {form.name(name, model): name for name in own}
    frozen = {} if form.frozen is None else form.frozen(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in frozen.items() if name in state}
    shapes |= {theirs: form.shape(theirs, own[ours]) for theirs, ours in names.items()}
    for problem, found in (("lacks", shapes.keys() - state.keys()), ("has unknown", state.keys() - shapes.keys())):
        if found:
            raise InputError(f"the checkpoint {problem} {len(found)} tensors, among them {sorted(found)[0]!r}")
    for theirs, expected in shapes.items():
        if tuple(state[theirs].shape) != expected:
            raise InputError(f"the checkpoint's {theirs!r} has shape {tuple(state[theirs].shape)}, expected {expected}")
    model.load_trained_state_dict(
        {ours: state[theirs].float().reshape(own[ours].shape) for theirs, ours in names.items()}
    )


def authors_state(checkpoint: dict[str, Any] | str | Path) -> dict[str, Tensor]:
    """The tensors of an authors' checkpoint, given as a file, its dict or the state dict in it."""
    if isinstance(checkpoint, (str, Path)):
        checkpoint = _load_file(Path(checkpoint))
    state = next((checkpoint[key] for key in ("model", "state_dict") if key in checkpoint), checkpoint)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError('the checkpoint holds no tensors under the key "model" or "state_dict"')
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def authors_options(state: dict[str, Tensor]) -> dict[str, Any]:
    """What an authors' checkpoint shows, by names and shapes, of its model: keyword arguments of `create_model`.

    Raises:
        InputError: a checkpoint of no known method, or an incomplete one.
    """
    method = authors_method(state)
    return {"method": method, **scheme(method).options(state)}


def convert_from_authors(
    source: str | Path,
    folder: str | Path,
    clip_name: str = "ViT-B-16-quickgelu",
    num_frames: int | None = None,
    class_names: list[str] | None = None,
    pretrained: str | None = "openai",
    preset: str | None = None,
) -> Path:
    """Write an authors' checkpoint of M2-CLIP, ST-Adapter or AIM as adapter_config.json and adapters.safetensors.

    Args:
        source: the authors' file.
        folder: where to write.
        clip_name, pretrained: the CLIP the checkpoint was trained on; only its architecture is built here.
        num_frames: T of the checkpoint; by default what its tensors tell, as AIM's do, or 8.
        class_names: names in the order of the labels; by default Kinetics-400's.
        preset: of what tensors do not tell. By default, for AIM, "ssv2" with two temporal adapters a block, and "k400"
            otherwise, which sets the scale of the joint adapter to 1 and 0.5.

    Raises:
        InputError: a checkpoint that does not fit the CLIP, the classes, the frames or the words.
    """
    from .checkpoint import save_adapters
    from .clip_loading import load_clip
    from .data.label_sets import load_class_names

    state = authors_state(source)
    names = load_class_names("k400") if class_names is None else class_names
    options = {"num_frames": DEFAULT_FRAMES, **authors_options(state)}
    options |= {} if num_frames is None else {"num_frames": num_frames}
    options |= {} if preset is None else {"preset": preset}
    model = create_model(clip=load_clip(clip_name, None), class_names=names, **options)
    load_authors_checkpoint(model, state)
    model.clip_source = {"name": clip_name, "pretrained": pretrained}
    return save_adapters(model, folder)


def convert_to_authors(folder: str | Path, target: str | Path) -> Path:
    """Write a saved model as a checkpoint file that the authors' code reads."""
    from .checkpoint import load_adapters, read_adapter_config
    from .clip_loading import load_clip

    config = read_adapter_config(Path(folder))
    source = config["clip"]
    if not source:
        raise InputError(f"{folder} does not name its CLIP, so its architecture is unknown")
    form = scheme(config["method"])
    # Where CLIP's own weights are not in the file its architecture is enough.
    clip = load_clip(source["name"], None if form.frozen is None else source["pretrained"])
    state = to_authors_state(load_adapters(folder, clip))
    target = Path(target)
    with replacing(target) as temporary:
        torch.save({form.key: state}, temporary)
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
