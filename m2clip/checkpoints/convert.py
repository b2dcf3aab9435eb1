"""The authors' checkpoints and ours: the same tensors under other names and in other shapes.

An authors' checkpoint is a torch.save of a dict with the tensors under "model" (M2-CLIP, ST-Adapter) or "state_dict"
(AIM). Reading is strict: every tensor must be known and must fit.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2clip.checkpoints.adapters import load_adapters, read_adapter_config, save_adapters
from m2clip.checkpoints.authors import authors_method, authors_name, scheme, scheme_of, size_of
from m2clip.data.lists.label_sets import load_class_names
from m2clip.errors import InputError
from m2clip.files.disk import replacing
from m2clip.methods import VideoModel, create_model
from m2clip.methods.m2clip import PRESETS
from m2clip.towers.loading import load_clip
from m2clip.towers.prompts import checked_words, load_words, word_vocabulary
from m2clip.towers.weight_files import is_finite, plain_tensors, read_weights, state_dict_in

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
    state = authors_state(checkpoint)
    names = check_fit(model, state)
    own = model.trained_state_dict()
    model.load_trained_state_dict(
        {ours: state[theirs].float().reshape(own[ours].shape) for theirs, ours in names.items()}
    )


def check_fit(model: VideoModel, state: dict[str, Tensor]) -> dict[str, str]:
    """Our name of each of an authors' trained tensors.

    Raises:
        InputError: missing, unexpected or differently shaped tensors, or numbers that are not finite.
    """
    form = scheme_of(model)
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
        if theirs in names and not (own[names[theirs]].is_meta or is_finite(state[theirs])):
            raise InputError(f"the checkpoint's {theirs!r} holds values that are no finite floating-point numbers")
    return names


def authors_state(checkpoint: dict[str, Any] | str | Path) -> dict[str, Tensor]:
    """The tensors of an authors' checkpoint, given as a file, its dict or the state dict in it."""
    if isinstance(checkpoint, (str, Path)):
        return read_weights(checkpoint)
    return plain_tensors(state_dict_in(checkpoint, "the checkpoint"), "the checkpoint")


def authors_options(state: dict[str, Tensor]) -> dict[str, Any]:
    """What an authors' checkpoint shows, by names and shapes, of its model: keyword arguments of `create_model`.

    Raises:
        InputError: a checkpoint of no known method, or an incomplete one.
    """
    method = authors_method(state)
    try:
        return {"method": method, **scheme(method).options(state)}
    except InputError:
        raise
    except (IndexError, ValueError) as error:
        raise InputError("the checkpoint has adapters of impossible shapes") from error


def convert_from_authors(
    source: str | Path,
    folder: str | Path,
    clip_name: str = "ViT-B-16-quickgelu",
    num_frames: int | None = None,
    class_names: list[str] | None = None,
    pretrained: str | None = "openai",
    preset: str | None = None,
    words: Sequence[str] | str | Path | None = None,
) -> Path:
    """Write an authors' checkpoint of M2-CLIP, ST-Adapter or AIM as adapter_config.json and adapters.safetensors.

    Args:
        source: the authors' file.
        folder: where to write.
        clip_name: the CLIP the checkpoint was trained on; only its architecture is built here.
        pretrained: the weights of that CLIP.
        num_frames: T of the checkpoint; by default what its tensors tell, as AIM's do, or 8.
        class_names: names in the order of the labels; by default Kinetics-400's.
        preset: of what tensors do not tell. By default, for AIM, "ssv2" with two temporal adapters per block, "k400"
            otherwise, which sets the scale of the joint adapter to 1 and 0.5.
        words: for M2-CLIP, the words of its masked-word head in the order of their ids, or what
            :func:`m2clip.towers.prompts.load_words` takes; by default those of the class names. A checkpoint
            holds only how many there are.

    Raises:
        InputError: a checkpoint that does not fit the CLIP, the classes, the frames or the words.
    """
    state = authors_state(source)
    names = load_class_names("k400") if class_names is None else class_names
    options = {"num_frames": DEFAULT_FRAMES, **authors_options(state)}
    options |= {} if num_frames is None else {"num_frames": num_frames}
    options |= {} if preset is None else {"preset": preset}
    classes = size_of(state[scheme(options["method"]).classifier])
    if classes != len(names):
        raise InputError(
            f"the checkpoint has {classes} classes and the label set {len(names)}: name its own (--classes)"
        )
    if options["method"] == "m2clip":
        options["word_list"] = _word_list(state["mlm_adapter.bias"].numel(), names, words)
    elif words is not None:
        raise InputError(f"words are of M2-CLIP's masked-word head, and this is a checkpoint of {options['method']}")
    clip = load_clip(clip_name, None)
    with torch.device("meta"):  # where shapes that fit nothing cost no memory
        check_fit(create_model(clip=clip, class_names=names, **options), state)
    model = create_model(clip=clip, class_names=names, **options)
    load_authors_checkpoint(model, state)
    model.clip_source = {"name": clip_name, "pretrained": pretrained, "tokenizer": None}
    return save_adapters(model, folder)


def _word_list(size: int, names: Sequence[str], words: Sequence[str] | str | Path | None) -> tuple[str, ...]:
    """The words of a masked-word head of `size` words."""
    if words is None:
        found = tuple(word_vocabulary(names, PRESETS["official"]["prompt"], official=True))
        where, advice = "the class names give", "give the authors' word file (--words)"
    else:
        found = load_words(words) if isinstance(words, (str, Path)) else checked_words(words, "words")
        where, advice = "the word list has", "it is of other classes or another order"
    if len(found) != size:
        raise InputError(f"the checkpoint's masked-word head has {size} words and {where} {len(found)}: {advice}")
    return found


def convert_to_authors(folder: str | Path, target: str | Path) -> Path:
    """Write a saved model as a checkpoint file that the authors' code reads."""
    config = read_adapter_config(Path(folder))
    source = config["clip"]
    if not source:
        raise InputError(f"{folder} does not name its CLIP, so its architecture is unknown")
    form = scheme(config["method"])
    # Where CLIP's own weights are not in the file its architecture is enough.
    clip = load_clip(source["name"], None if form.frozen is None else source["pretrained"], offline=True)
    state = to_authors_state(load_adapters(folder, clip))
    target = Path(target)
    # In memory first: of a full disk torch tells with errors of many kinds.
    content = io.BytesIO()
    torch.save({form.key: state}, content)
    with replacing(target) as temporary:
        temporary.write_bytes(content.getbuffer())
    return target
