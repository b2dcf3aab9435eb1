"""Adapters go into a vision transformer of another library.

An adapter becomes a child `adapter` of its block and a hook in front of it. So a model keeps its type, its functions,
and the names of its parameters.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from m2clip.adapters import STAdapter, TEDAdapter
from m2clip.drop_in.models import Places, find_places
from m2clip.errors import InputError
from m2clip.kernels.preparation import prepare_once
from m2clip.sizes import AnySize, sides, size_text
from m2clip.towers.block import layer_range

_ADAPTERS: dict[str, Any] = {"ted": TEDAdapter, "st": STAdapter}
_OPTIONS = {"ted": ("temporal", "difference", "shared_projection", "sequential"), "st": ()}
_M = TypeVar("_M", bound=nn.Module)


def adapt(
    model: _M,
    num_frames: int = 8,
    adapter: str = "ted",
    *,
    width: int = 384,
    layers: str = "all",
    image_size: AnySize | None = None,
    backend: str = "auto",
    **options: bool,
) -> _M:
    """Freeze a vision transformer and put adapters, which mix the frames of a clip, in front of its blocks.

    Until it is trained the model computes what it did before, exactly. It takes frames as pictures (B*T, 3, H, W), the
    T frames of a clip adjacent, through any of its functions, or, when it is called, clips (B, T, 3, H, W) as well.
    What it returns is about frames in both cases, (B*T, ...); ``.unflatten(0, (-1, T)).mean(1)`` is about clips.

    Args:
        model: a ViT, EVA or BEiT of timm, a ViT of torchvision, or a vision model of transformers: ViT, DeiT, CLIP,
            MetaCLIP 2, SigLIP, DINOv2, also with registers, DINOv3.
        num_frames: T.
        adapter: "ted" or "st", see :class:`m2clip.TEDAdapter` and :class:`m2clip.adapters.STAdapter`.
        width: bottleneck width R.
        layers: which blocks have one: "all" or a 1-based range such as "7-12".
        image_size: of the pictures, one number or (height, width), in pixels; None is the size that the model says. It
            is for models that take any size.
        backend: kernel backend, see :func:`m2clip.kernels.ted_adapter`.
        options: switches of TEDAdapter: temporal, difference, shared_projection, sequential.

    Returns:
        The same model. What trains it is :func:`trained_parameters`; a head that is to be trained as well has to be
        added, or its `requires_grad_()` called, afterwards.

    Raises:
        InputError: another model, one that has adapters already, an unknown adapter or option, or values out of range.
    """
    if adapter not in _ADAPTERS:
        raise InputError(
            f"adapter {adapter!r} is none of {', '.join(_ADAPTERS)}: other methods use a model's attention themselves, "
            "and m2clip.create_model has them for CLIPs"
        )
    for name in options.keys() - set(_OPTIONS[adapter]):
        known = ", ".join(_OPTIONS[adapter]) or "none"
        raise InputError(f"adapter {adapter!r} has no option {name!r}; its options are {known}")
    places = find_places(model, None if image_size is None else sides(image_size))
    foreign: Any = model
    if any(hasattr(block, "adapter") for block in places.blocks):
        raise InputError("the model has adapters already: build it again to have others")
    if not isinstance(layers, str) or not (chosen := layer_range(layers, len(places.blocks))):
        raise InputError(f'layers={layers!r}: write "all" or a range such as "7-12"')
    layout = {"grid": places.grid, "num_prefix_tokens": places.num_prefix_tokens, "backend": backend, **options}
    try:
        made = [_ADAPTERS[adapter](places.width, width, num_frames, **layout) for _ in chosen]
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from None
    model.requires_grad_(False)
    for index, own in zip(chosen, made, strict=True):
        block: Any = places.blocks[index]
        block.adapter = own.to(next(block.parameters()).device)
        block.register_forward_pre_hook(_adapt_tokens, with_kwargs=True)
    patches: Any = places.patches
    patches.m2clip_image_size = places.image_size
    patches.register_forward_pre_hook(_check_pictures)
    record = {"num_frames": num_frames, "adapter": adapter, "width": width, "layers": layers}
    foreign.m2clip_record = {
        "adapt": {**record, "image_size": list(places.image_size), **options},
        "model": shape_of(model, places),
    }
    model.register_forward_pre_hook(_frames_of_clips, with_kwargs=True)
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What an optimiser should get: the parameters that are not frozen, by name.

    Args:
        model: of :func:`adapt`.
    """
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def record_of(model: nn.Module) -> dict[str, Any] | None:
    """What a model was adapted with and what it is, as JSON values; None where it was not adapted."""
    return getattr(model, "m2clip_record", None)


def shape_of(model: nn.Module, places: Places) -> dict[str, Any]:
    """What a model must have in common with one whose adapters it takes over."""
    return {
        "model": type(model).__name__,
        "blocks": len(places.blocks),
        "width": places.width,
        "num_prefix_tokens": places.num_prefix_tokens,
        "grid": list(places.grid),
    }


# ---- hooks: functions of modules alone, so that models can be copied and pickled ----


def _adapt_tokens(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    tokens = args[0] if args else kwargs["hidden_states"]
    adapted = block.adapter(tokens)
    if adapted.stride() != tokens.stride():
        # In another order of memory the block's products would round in another way.
        adapted = torch.empty_like(tokens).copy_(adapted)
    return ((adapted, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": adapted})


def _check_pictures(patches: Any, args: tuple[Any, ...]) -> None:
    size = patches.m2clip_image_size
    if args and tuple(args[0].shape[-2:]) != size:
        raise ValueError(
            f"the adapters are for pictures of {size_text(size)}, got {tuple(args[0].shape)}: "
            "say another size in m2clip.adapt(image_size=...)"
        )


def _frames_of_clips(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    frames = model.m2clip_record["adapt"]["num_frames"]

    def apart(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() != 5:
            return value
        if value.shape[1] != frames:
            raise ValueError(f"video must be (B, {frames}, 3, H, W), got {tuple(value.shape)}")
        return value.flatten(0, 1)

    args, kwargs = tuple(map(apart, args)), {name: apart(value) for name, value in kwargs.items()}
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point():
            prepare_once(model, value)
            break
    return args, kwargs
