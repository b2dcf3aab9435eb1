"""Starting a run from another run's adapters, for the same or for other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m2clip.checkpoints.adapters import (
    check_equal,
    check_tower,
    read_adapter_config,
    read_adapter_weights,
    weights_hash,
)
from m2clip.errors import InputError
from m2clip.files.kept_work import plain
from m2clip.methods import VideoModel

_CLASSIFIER, _WORDS = ("vc.",), ("cmlm.words.decoder", "cmlm.words.bias")  # how names of tensors of classes begin
# Options of losses, heads and training; with other ones the adapters are what they were.
_OF_TRAINING = {
    *("heads", "head_weights", "vc_dropout", "cmc_scale", "vocabulary", "word_list", "mask_rate", "text_zero_init_up"),
    *("prompt", "alpha", "descriptions", "rescale_adapter_grad", "drop_path", "drop_path_per", "dropout"),
    *("label_smoothing", "attention_dropout", "ffn_dropout", "kl", "text_classes", "metric", "smoothing", "merge"),
}


def start_from(model: VideoModel, folder: str | Path) -> str:
    """Give a new model the adapters of a run; what belongs to the run's classes only where they are the same.

    The classifier is taken with equal class names, the masked-word head's decoder with an equal word list; where they
    differ, or where the run has no such head, they stay new.

    Args:
        model: as built; its ``started_from`` becomes the digest of the run's weights.
        folder: the run's, or any that :func:`m2clip.save_adapters` wrote.

    Returns:
        One line that tells what was taken and what is new.

    Raises:
        InputError: damaged files; another method, tower, tokenizer or other options of the adapters, which are named.
    """
    folder = Path(folder)
    config = read_adapter_config(folder)
    tensors = read_adapter_weights(folder, config)
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


def _of_classes(model: VideoModel, config: dict[str, Any], options: dict[str, Any]) -> tuple[str, ...]:
    """How the names of tensors begin that belong to other classes than the model's."""
    other = () if config["class_names"] == model.class_names else _CLASSIFIER
    return other if config["options"].get("word_list") == options.get("word_list") else other + _WORDS


def _line(model: VideoModel, folder: Path, config: dict[str, Any], taken: int, new: set[str]) -> str:
    names = {"vc": "the classifier", "cmlm": "words of the masked-word head"}
    heads = [f"{what} ({head})" for head, what in names.items() if any(name.startswith(f"{head}.") for name in new)]
    line = f"started from {folder}: {taken} tensors taken, "
    line += f"{len(new)} new: {' and '.join(heads)}" if new else "none is new"
    if config["clip"] != model.clip_source and config["clip"] and model.clip_source:
        before, now = ({**clip, "tokenizer": None} for clip in (config["clip"], model.clip_source))
        if before != now:
            told = " instead of ".join(f"{clip['name']} ({clip['pretrained']})" for clip in (now, before))
            line += f"; the CLIP is {told}"
    return line
