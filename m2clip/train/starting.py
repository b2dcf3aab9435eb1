"""Starting a run from the trained weights of another one, for the same or for other classes."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from m2clip.checkpoints.adapters import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    check_equal,
    check_tower,
    read_adapter_config,
    read_adapter_weights,
    weights_hash,
)
from m2clip.data.transforms import NORMALIZATION
from m2clip.errors import InputError
from m2clip.files.kept_work import plain
from m2clip.methods import VideoModel
from m2clip.train.averaging import PREFIX as AVERAGE
from m2clip.train.state import MODEL, is_checkpoint, load_checkpoint

_CLASSIFIER, _WORDS = ("vc.",), ("cmlm.words.decoder", "cmlm.words.bias")  # how names of tensors of classes begin
# Options of losses, heads and training; with other ones the adapters are what they were.
_OF_TRAINING = {
    *("heads", "head_weights", "vc_dropout", "cmc_scale", "vocabulary", "word_list", "mask_rate", "text_zero_init_up"),
    *("prompt", "alpha", "descriptions", "rescale_adapter_grad", "drop_path", "drop_path_per", "dropout"),
    *("label_smoothing", "attention_dropout", "ffn_dropout", "kl", "text_classes", "metric", "smoothing", "merge"),
}
# Those that say something of the classes, or need what does.
_OF_CLASSES = {"vocabulary", "word_list", "descriptions", "alpha", "text_classes"}


def place_of(source: str | Path) -> Path:
    """The folder of saved adapters or of a checkpoint that a source names.

    Args:
        source: a run folder, a folder of :func:`m2clip.save_adapters`, a checkpoint of a run, or a file in one of them.

    Raises:
        InputError: no such file or folder, or a file of something else.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if not path.exists():
        raise InputError(f"{path}: no such run, checkpoint or saved adapters to start from")
    if path.name in (CONFIG_FILE, WEIGHTS_FILE) or is_checkpoint(path.parent):
        return path.parent
    raise InputError(
        f"{path}: not what a run starts from: a run folder, a checkpoint in it, or {WEIGHTS_FILE} beside its "
        f"{CONFIG_FILE}; m2clip convert makes these of an authors' checkpoint"
    )


def read_start(source: str | Path) -> dict[str, Any]:
    """The configuration of the adapters that a source names, as `adapter_config.json` holds it.

    Raises:
        InputError: as `place_of`, or damaged files.
    """
    folder = place_of(source)
    # The options of a run do not change, so that they are those of its checkpoints.
    return read_adapter_config(folder.parents[1] if is_checkpoint(folder) else folder)


def fields_to_agree(source: str | Path, given: Collection[str], whole: bool) -> list[str]:
    """What a configuration takes over from a run to start from it, as `m2clip.config.load_config` takes it.

    That is its CLIP, the size of pictures, frames, and the options of its adapters.

    Args:
        source: as for `place_of`.
        given: names of fields that the user has given; they are left out.
        whole: also take its method and all options that do not depend on the classes, and how clips are drawn.

    Raises:
        InputError: as `read_start`; a CLIP that is not on this machine, which only who names it has downloaded.
    """
    config = read_start(source)
    fields = _clip_fields(source, config["clip"], given) | {"data.num_frames": config["num_frames"]}
    left = _OF_CLASSES if whole else _OF_TRAINING
    fields |= {f"model.options.{name}": value for name, value in config["options"].items() if name not in left}
    if whole:
        views = config["views"]
        fields |= {"model.method": config["method"]}
        fields |= {f"data.{name}": views[name] for name in ("sampling", "stride", "transform") if name in views}
        statistics = plain(NORMALIZATION["inception"])
        fields |= {"data.normalize": "inception"} if views.get("normalize") == statistics else {}
    return [f"{name}={_text(value)}" for name, value in fields.items() if name not in given]


def check_method(source: str | Path, method: str, who: str) -> None:
    """Refuse to start from a run of another method.

    Args:
        source: as for `place_of`.
        method: what is to be trained.
        who: what says so, for the message.

    Raises:
        InputError: naming both, or as `read_start`.
    """
    own = read_start(source)["method"]
    if own != method:
        raise InputError(f"{source} is a run of {own}, and {who} says {method}, which has other adapters")


def _clip_fields(source: str | Path, clip: dict[str, Any] | None, given: Collection[str]) -> dict[str, Any]:
    """The fields that name the CLIP; those alone that are not given."""
    if {"model.clip", "model.pretrained"} & set(given):
        return {}
    if clip is None:
        raise InputError(f"{source} does not name its CLIP: give --clip")
    from m2clip.towers.loading import load_clip

    try:
        load_clip(**clip, device="meta", offline=True)
    except InputError as error:
        raise InputError(f"{source} is built on the CLIP {clip['name']}: {error}; --clip has it downloaded") from None
    found = {f"model.{field}": clip.get(field) for field in ("pretrained", "tokenizer", "image_size")}
    return {"model.clip": clip["name"], **found}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def start_from(model: VideoModel, source: str | Path) -> str:
    """Give a new model the adapters of a run; what belongs to the run's classes only where they are the same.

    The classifier is taken with equal class names, the masked-word head's decoder with an equal word list; where they
    differ, or where the run has no such head, they stay new.

    Args:
        model: as built; its ``started_from`` becomes the digest of the run's weights.
        source: as for `place_of`.

    Returns:
        One line that tells what was taken and what is new.

    Raises:
        InputError: damaged files; another method, tower, tokenizer or other options of the adapters, which are named.
    """
    folder, config = place_of(source), read_start(source)
    tensors = _checkpoint_weights(folder) if is_checkpoint(folder) else read_adapter_weights(folder, config)
    if config["method"] != model.method:
        raise InputError(f"model.init: {folder} is a run of {config['method']}, not of {model.method}")
    check_tower(folder, config["tower"], model.tower)
    check_equal(folder, "tokenizer", config["tokenizer"], model.tokenizer.identity)
    options = plain(model.options())
    adapters = {name: value for name, value in options.items() if name not in _OF_TRAINING}
    check_equal(folder, "model (model.options)", config["options"], adapters)
    apart = _of_classes(model, config, options)
    own = model.trained_state_dict()
    taken = {name: tensor for name, tensor in tensors.items() if name in own and not name.startswith(apart)}
    new = {name for name in own if name not in taken}
    for name in sorted(own.keys() ^ tensors.keys()):
        if not name.startswith(("vc.", "cmlm.")):
            raise InputError(f"model.init: {folder} and this model have other adapters: only one has {name!r}")
    for name, tensor in taken.items():
        if tensor.shape != own[name].shape:
            frames = f"; it was trained on {config['num_frames']} frames per clip, this model takes {model.num_frames}"
            raise InputError(
                f"model.init: {name!r} has shape {tuple(tensor.shape)} in {folder}, expected {tuple(own[name].shape)}"
                + (frames if config["num_frames"] != model.num_frames else "")
            )
    model.load_trained_state_dict({**own, **taken})
    model.started_from = weights_hash(tensors)
    return _line(model, folder, config, len(taken), new)


def _checkpoint_weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights in a checkpoint: their average over the steps, where the run has one."""
    tensors = load_checkpoint(folder).tensors
    prefix = AVERAGE if any(name.startswith(AVERAGE) for name in tensors) else MODEL
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _of_classes(model: VideoModel, config: dict[str, Any], options: dict[str, Any]) -> tuple[str, ...]:
    """How the names of tensors begin that belong to other classes than the model's."""
    other = () if config["class_names"] == model.class_names else _CLASSIFIER
    return other if config["options"].get("word_list") == options.get("word_list") else other + _WORDS


def _line(model: VideoModel, folder: Path, config: dict[str, Any], taken: int, new: set[str]) -> str:
    names = {"vc": "the classifier", "cmlm": "words of the masked-word head"}
    heads = [f"{what} ({head})" for head, what in names.items() if any(name.startswith(f"{head}.") for name in new)]
    line = f"started from {folder}, {model.method} of {config['num_frames']} frames: {taken} tensors taken, "
    line += f"{len(new)} new: {' and '.join(heads)}" if new else "none is new"
    line += "; optimiser and epochs begin anew"
    if config["clip"] != model.clip_source and config["clip"] and model.clip_source:
        before, now = ({**clip, "tokenizer": None} for clip in (config["clip"], model.clip_source))
        if before != now:
            told = " instead of ".join(f"{clip['name']} ({clip['pretrained']})" for clip in (now, before))
            line += f"; the CLIP is {told}"
    return line
