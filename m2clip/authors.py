"""The authors' checkpoints of each method: their names and shapes of our tensors, and what they tell of a model.

M2-CLIP's and ST-Adapter's hold the trained tensors alone; AIM's, of mmaction2, hold CLIP's frozen ones as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from .errors import InputError
from .methods import VideoModel

_PART = {"down": "fc1", "conv": "conv", "up": "fc2"}
_AIM_ADAPTER = {"temporal_in": "T_Adapter_in", "temporal": "T_Adapter", "spatial": "S_Adapter", "joint": "MLP_Adapter"}
_AIM_PART = {"down": "D_fc1", "up": "D_fc2"}
_AIM_BLOCK = "backbone.transformer.resblocks"

Patterns = tuple[tuple[str, Callable[[re.Match[str]], str]], ...]


class Scheme(NamedTuple):
    """How the authors of a method write a model.

    check: raises InputError for a model that has no form in their checkpoints; name: theirs of one of our trained
    parameters; shape: theirs of a tensor that we hold under their name; options: those of `create_model`, preset and
    num_frames among them, that their tensors show; key: what the tensors are called in the file; frozen: CLIP's own
    tensors by their names, None where they are not in the file.
    """

    check: Callable[[VideoModel], None]
    name: Callable[[str, VideoModel], str]
    shape: Callable[[str, Tensor], tuple[int, ...]]
    options: Callable[[dict[str, Tensor]], dict[str, Any]]
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
        (r"text\.blocks\.(\d+)\.pre_mlp\.(down|up)\.(\w+)", lambda m: _text_name(int(m[1]), m[2], m[3])),
        (r"cmlm\.adapter\.(down|up)\.(\w+)", lambda m: _text_name(text_layers, m[1], m[2])),
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


def _text_name(layer: int, part: str, kind: str) -> str:
    return f"transformer.resblocks.{layer}.adapter_pre_mlp.textad_{_PART[part]}.{kind}"


def _m2clip_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The authors keep the 3x3 convolution as a 3-D one over a single frame."""
    if name.endswith("offset_adapter.conv.weight"):
        return (tensor.shape[0], 1, 1, *tensor.shape[2:])
    return tuple(tensor.shape)


def _m2clip_options(state: dict[str, Tensor]) -> dict[str, Any]:
    places = sorted({m[1] for name in state if (m := re.match(r"visual\..*\.adapter_(pre_attn|pre_mlp)\.fc1", name))})
    downs = [t for name, t in state.items() if re.search(r"visual\..*adapter_pre_(attn|mlp)\.fc1\.weight$", name)]
    texts = [t for name, t in state.items() if name.endswith("textad_fc1.weight")]
    if not downs or not texts or "mlm_adapter.bias" not in state or "visual.adapter_fc.weight" not in state:
        raise InputError("this is no M2-CLIP checkpoint: TED-Adapters, text adapters or heads are missing")
    return {
        "width": downs[0].shape[0],
        "placement": "both" if len(places) == 2 else places[0],
        "text_width": texts[0].shape[0],
        "text_layers": len(texts) - 1,  # one of them is the masked-word layer's
    }


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
    found = re.compile(r"transformer\.resblocks\.(\d+)\.adapter_(pre_attn|pre_mlp)\.fc1\.weight")
    matches = [m for name in state if (m := found.fullmatch(name))]
    if not matches or "fc.weight" not in state:
        raise InputError("this is no ST-Adapter checkpoint: adapters or the classifier are missing")
    layers, places = sorted({int(m[1]) for m in matches}), sorted({m[2] for m in matches})
    return {
        "width": state[matches[0][0]].shape[0],
        "placement": "both" if len(places) == 2 else places[0],
        "layers": f"{layers[0] + 1}-{layers[-1] + 1}",
    }


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
        "backbone." + re.sub(r"^blocks\.", "transformer.resblocks.", name): parameter.detach()
        for name, parameter in model.visual.named_parameters()
        if not parameter.requires_grad and not name.startswith(("proj", "ln_post."))
    }


def _aim_options(state: dict[str, Tensor]) -> dict[str, Any]:
    width = state.get(f"{_AIM_BLOCK}.0.S_Adapter.D_fc1.weight")
    frames = state.get("backbone.temporal_embedding")
    if width is None or frames is None or "cls_head.fc_cls.weight" not in state:
        raise InputError("this is no AIM checkpoint: adapters, temporal embedding or classifier are missing")
    two = f"{_AIM_BLOCK}.0.T_Adapter_in.D_fc1.weight" in state
    return {"preset": "ssv2" if two else "k400", "width": width.shape[0], "num_frames": frames.shape[1]}


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
        _check_m2clip, lambda name, model: authors_name(name, len(model.text.blocks)), _m2clip_shape, _m2clip_options
    ),
    "st_adapter": Scheme(lambda model: None, _st_name, _st_shape, _st_options),
    "aim": Scheme(
        _check_aim, _aim_name, lambda name, tensor: tuple(tensor.shape), _aim_options, "state_dict", _aim_frozen
    ),
}
