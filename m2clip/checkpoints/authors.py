"""The authors' checkpoints of each method: their names and shapes of our tensors, and what they tell of a model.

M2-CLIP's and ST-Adapter's hold the trained tensors alone; AIM's, of mmaction2, hold CLIP's frozen ones as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from m2clip.data.lists.text_files import whole_number
from m2clip.errors import InputError
from m2clip.methods import VideoModel

_PART = {"down": "fc1", "conv": "conv", "up": "fc2"}
_AIM_ADAPTER = {"temporal_in": "T_Adapter_in", "temporal": "T_Adapter", "spatial": "S_Adapter", "joint": "MLP_Adapter"}
_AIM_PART = {"down": "D_fc1", "up": "D_fc2"}
_AIM_BLOCK = "backbone.transformer.resblocks"

Patterns = tuple[tuple[str, Callable[[re.Match[str]], str]], ...]


class Scheme(NamedTuple):
    """How the authors of a method write a model.

    Attributes:
        check: raises InputError for a model that has no form in their checkpoints.
        name: theirs of one of our trained parameters.
        shape: theirs of a tensor that we hold under their name.
        options: those of `create_model`, preset and num_frames among them, that their tensors show.
        classifier: name of the tensor that has a row per class.
        key: what the tensors are called in the file.
        frozen: CLIP's own tensors by their names, None where they are not in the file.
    """

    check: Callable[[VideoModel], None]
    name: Callable[[str, VideoModel], str]
    shape: Callable[[str, Tensor], tuple[int, ...]]
    options: Callable[[dict[str, Tensor]], dict[str, Any]]
    classifier: str
    key: str = "model"
    frozen: Callable[[VideoModel], dict[str, Tensor]] | None = None


def scheme(method: str) -> Scheme:
    """The scheme of a method.

    Raises:
        InputError: a method of which no authors' checkpoints are known.
    """
    if method not in _SCHEMES:
        raise InputError(f"method {method!r} has no form in authors' checkpoints; {', '.join(_SCHEMES)} have")
    return _SCHEMES[method]


def scheme_of(model: VideoModel) -> Scheme:
    """The scheme of a model's method.

    Raises:
        InputError: a method or a model that has no form in authors' checkpoints.
    """
    found = scheme(model.method)
    if model.visual.stem.facts or model.text.stem.facts:
        raise InputError("the authors' code is for open_clip's plain CLIPs, and this model is built on another one")
    found.check(model)
    return found


def authors_method(state: dict[str, Tensor]) -> str:
    """The method whose authors' names these are.

    Raises:
        InputError: names of none of them.
    """
    for method, pattern in (
        ("aim", r"backbone\..*\.[ST]_Adapter\."),
        ("m2clip", r"visual\.|mlm_adapter\."),
        ("st_adapter", r"transformer\.resblocks\.\d+\.adapter_pre_(attn|mlp)\.fc1\."),
    ):
        if any(re.match(pattern, name) for name in state):
            return method
    raise InputError("this is no checkpoint of M2-CLIP, ST-Adapter or AIM: it holds no adapters under their names")


def _renamed(name: str, patterns: Patterns, complaint: str) -> str:
    for pattern, rename in patterns:
        match = re.fullmatch(pattern, name)
        if match:
            return rename(match)
    raise InputError(f"the authors' checkpoints have no place for {name!r}; {complaint}")


# ---- M2-CLIP ----


def authors_name(name: str, text_layers: int) -> str:
    """The authors' name of one of our trained M2-CLIP parameters.

    Args:
        name: a name of :meth:`VideoModel.trained_state_dict`.
        text_layers: depth of the text tower; the authors number the masked-word layer behind the last one.
    """
    patterns: Patterns = (
        (r"visual\.blocks\.(\d+)\.(pre_attn|pre_mlp)\.(temporal|difference)\.(down|conv|up)\.(\w+)", _ted_name),
        (r"output_adapter\.temporal\.(down|conv|up)\.(\w+)", lambda m: f"visual.t_adapter.{_PART[m[1]]}.{m[2]}"),
        (r"vc\.fc\.(\w+)", lambda m: f"visual.adapter_fc.{m[1]}"),
        (r"text\.blocks\.(\d+)\.(pre_attn|pre_mlp)\.(down|up)\.(\w+)", lambda m: _text_name(*m.groups())),
        (r"cmlm\.adapter\.(down|up)\.(\w+)", lambda m: _text_name(text_layers, "pre_mlp", *m.groups())),
        (r"cmlm\.pre_attn\.(down|up)\.(\w+)", lambda m: _text_name(text_layers, "pre_attn", *m.groups())),
        (r"cmlm\.words\.dense\.(\w+)", lambda m: f"mlm_adapter.transform.dense.{m[1]}"),
        (r"cmlm\.words\.norm\.(\w+)", lambda m: f"mlm_adapter.transform.LayerNorm.{m[1]}"),
        (r"cmlm\.words\.decoder", lambda m: "mlm_adapter.decoder.weight"),
        (r"cmlm\.words\.bias", lambda m: "mlm_adapter.bias"),
    )
    return _renamed(name, patterns, "only preset 'official' converts")


def _ted_name(m: re.Match[str]) -> str:
    layer, place, branch, part, kind = m.groups()
    inner = "offset_adapter." if branch == "difference" else ""
    return f"visual.transformer.resblocks.{layer}.adapter_{place}.{inner}{_PART[part]}.{kind}"


def _text_name(layer: int | str, place: str, part: str, kind: str) -> str:
    return f"transformer.resblocks.{layer}.adapter_{place}.textad_{_PART[part]}.{kind}"


def _m2clip_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The authors keep the 3x3 convolution as a 3-D one over a single frame."""
    if name.endswith("offset_adapter.conv.weight"):
        return (tensor.shape[0], 1, 1, *tensor.shape[2:])
    return tuple(tensor.shape)


def _m2clip_options(state: dict[str, Tensor]) -> dict[str, Any]:
    visual = _adapters(state, r"visual\.transformer\.resblocks\.(\d+)\.adapter_(pre_attn|pre_mlp)\.fc1\.weight")
    text = _adapters(state, r"transformer\.resblocks\.(\d+)\.adapter_(pre_attn|pre_mlp)\.textad_fc1\.weight")
    if visual is None or text is None or "mlm_adapter.bias" not in state or "visual.adapter_fc.weight" not in state:
        raise InputError("this is no M2-CLIP checkpoint: TED-Adapters, text adapters or heads are missing")
    return {
        "width": visual.width,
        "placement": visual.placement,
        "layers": visual.range,
        "text_width": text.width,
        "text_placement": text.placement,
        "text_layers": len(text.layers) - 1,  # the last one is the masked-word layer
    }


class _Adapters(NamedTuple):
    """A tower's adapters: their width, where they are in a layer, and in which layers from 0."""

    width: int
    placement: str
    layers: list[int]

    @property
    def range(self) -> str:
        return f"{self.layers[0] + 1}-{self.layers[-1] + 1}"


def _adapters(state: dict[str, Tensor], pattern: str) -> _Adapters | None:
    """The adapters whose first weight's name matches a pattern with the layer and the place, None where none does.

    Raises:
        InputError: layers between adapted ones without adapters, or with adapters elsewhere.
    """
    found = [(m, tensor) for name, tensor in state.items() if (m := re.fullmatch(pattern, name))]
    if not found:
        return None
    at = {(whole_number(m[1], "a layer of the checkpoint"), m[2]) for m, _ in found}
    layers, places = sorted({layer for layer, _ in at}), sorted({place for _, place in at})
    if len(at) != (layers[-1] - layers[0] + 1) * len(places):
        raise InputError(f"the checkpoint has adapters {' and '.join(places)} in only some of its layers")
    return _Adapters(size_of(found[0][1]), "both" if len(places) == 2 else places[0], layers)


def size_of(tensor: Tensor) -> int:
    """The first dimension of a tensor."""
    if tensor.dim() == 0:
        raise InputError("the checkpoint holds a single number where adapters have a matrix: it is damaged")
    return tensor.shape[0]


def _check_m2clip(model: VideoModel) -> None:
    if model.options()["shared_projection"] or not model.options()["output_adapter"]:
        raise InputError("only M2-CLIP with preset 'official' has a form in the authors' checkpoints")


# ---- ST-Adapter ----


def _st_name(name: str, model: VideoModel) -> str:
    patterns: Patterns = (
        (
            r"visual\.blocks\.(\d+)\.(pre_attn|pre_mlp)\.(down|conv|up)\.(\w+)",
            lambda m: f"transformer.resblocks.{m[1]}.adapter_{m[2]}.{_PART[m[3]]}.{m[4]}",
        ),
        (r"vc\.fc\.(\w+)", lambda m: f"fc.{m[1]}"),
    )
    return _renamed(name, patterns, "only adapters and classifier convert")


def _st_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The authors keep the convolution over frames as a 3-D one over single patches."""
    return (*tensor.shape, 1, 1) if name.endswith(".conv.weight") else tuple(tensor.shape)


def _st_options(state: dict[str, Tensor]) -> dict[str, Any]:
    found = _adapters(state, r"transformer\.resblocks\.(\d+)\.adapter_(pre_attn|pre_mlp)\.fc1\.weight")
    if found is None or "fc.weight" not in state:
        raise InputError("this is no ST-Adapter checkpoint: adapters or the classifier are missing")
    return {"width": found.width, "placement": found.placement, "layers": found.range}


# ---- AIM ----


def _aim_name(name: str, model: VideoModel) -> str:
    patterns: Patterns = (
        (
            r"visual\.blocks\.(\d+)\.adapters\.(\w+)\.(down|up)\.(\w+)",
            lambda m: f"{_AIM_BLOCK}.{m[1]}.{_AIM_ADAPTER[m[2]]}.{_AIM_PART[m[3]]}.{m[4]}",
        ),
        (r"visual\.temporal_embedding", lambda m: "backbone.temporal_embedding"),
        (r"ln_post\.(\w+)", lambda m: f"backbone.ln_post.{m[1]}"),
        (r"vc\.fc\.(\w+)", lambda m: f"cls_head.fc_cls.{m[1]}"),
    )
    return _renamed(name, patterns, "only adapters, temporal embedding, ln_post and classifier convert")


def _aim_frozen(model: VideoModel) -> dict[str, Tensor]:
    """CLIP's tensors: all but the projection into the joint space, and but ln_post, which is trained."""
    return {
        "backbone." + re.sub(r"^blocks\.", "transformer.resblocks.", name.removeprefix("stem.")): parameter.detach()
        for name, parameter in model.visual.named_parameters()
        if not parameter.requires_grad and not name.startswith(("stem.proj", "stem.ln_post."))
    }


def _aim_options(state: dict[str, Tensor]) -> dict[str, Any]:
    width = state.get(f"{_AIM_BLOCK}.0.S_Adapter.D_fc1.weight")
    frames = state.get("backbone.temporal_embedding")
    if width is None or frames is None or "cls_head.fc_cls.weight" not in state:
        raise InputError("this is no AIM checkpoint: adapters, temporal embedding or classifier are missing")
    if frames.dim() != 3:
        raise InputError(f"the checkpoint's temporal embedding has shape {tuple(frames.shape)}, expected (1, T, D)")
    two = f"{_AIM_BLOCK}.0.T_Adapter_in.D_fc1.weight" in state
    return {"preset": "ssv2" if two else "k400", "width": size_of(width), "num_frames": frames.shape[1]}


def _check_aim(model: VideoModel) -> None:
    everywhere = all(block.adapters is not None for block in model.visual.blocks)
    options = model.options()
    if not (everywhere and options["temporal_embedding"] and options["train_ln_post"]):
        raise InputError(
            "only AIM with adapters in all layers, a temporal embedding and a trained ln_post, such as presets k400 "
            "and ssv2, has a form in the authors' checkpoints"
        )


_SCHEMES = {
    "m2clip": Scheme(
        _check_m2clip,
        lambda name, model: authors_name(name, len(model.text.blocks)),
        _m2clip_shape,
        _m2clip_options,
        "visual.adapter_fc.weight",
    ),
    "st_adapter": Scheme(lambda model: None, _st_name, _st_shape, _st_options, "fc.weight"),
    "aim": Scheme(
        _check_aim,
        _aim_name,
        lambda name, tensor: tuple(tensor.shape),
        _aim_options,
        "cls_head.fc_cls.weight",
        "state_dict",
        _aim_frozen,
    ),
}
