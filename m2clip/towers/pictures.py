"""The pictures that a CLIP was trained on: their statistics, interpolation and way of resizing."""

from __future__ import annotations

from typing import Any

# What open_clip takes where weights say nothing else: OpenAI's.
_DEFAULTS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize_mode": "squash"}  # of SigLIP's
_BY_KIND = {"siglip": _HALF, "siglip2": {**_HALF, "interpolation": "bilinear"}}
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def pictures(clip: Any) -> dict[str, Any]:
    """How a CLIP's weights want pictures, by the names of `m2clip.data.transforms.TransformSettings`.

    Args:
        clip: a CLIP of open_clip, which remembers it in ``visual.preprocess_cfg``, one of transformers, whose
            `m2clip.load_clip` does, or one built by hand, which does not.
    """
    visual = getattr(clip, "visual", None)
    told = getattr(clip, "m2clip_pictures", None) or getattr(visual, "preprocess_cfg", None)
    if told is None:
        told = _BY_KIND.get(getattr(getattr(clip, "config", None), "model_type", ""), {})
    mean, std, interpolation, resize = (told.get(name, default) for name, default in _DEFAULTS.items())
    return {
        "normalize": (tuple(mean), tuple(std)),
        "interpolation": interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
        "resize": "squash" if resize == "squash" else "shortest",
    }


def set_pictures(clip: Any, **told: Any) -> None:
    """Let a CLIP remember mean, std, interpolation and resize_mode of its weights as open_clip's do."""
    from open_clip.model import get_model_preprocess_cfg, set_model_preprocess_cfg

    set_model_preprocess_cfg(clip, {**_DEFAULTS, **get_model_preprocess_cfg(clip), **told})


def set_processor_pictures(clip: Any, told: dict[str, Any]) -> None:
    """Let a CLIP of transformers remember what the configuration of its image processor tells."""
    found = dict(_BY_KIND.get(clip.config.model_type, {}))
    found |= {ours: tuple(told[name]) for ours, name in (("mean", "image_mean"), ("std", "image_std")) if name in told}
    if told.get("resample") in _INTERPOLATIONS:
        found["interpolation"] = _INTERPOLATIONS[told["resample"]]
    size = told.get("size")
    if isinstance(size, dict):
        found["resize_mode"] = "shortest" if "shortest_edge" in size else "squash"
    clip.m2clip_pictures = found
