"""Features of every video of a list, computed once for all episodes, and kept on disk where a folder is given."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from m2clip import distributed
from m2clip.checkpoints.adapters import weights_hash
from m2clip.config_fields import deciding
from m2clip.data.episode_clips import EpisodeVideos
from m2clip.data.lists.annotations import list_hash, packed_hash
from m2clip.data.loading import load
from m2clip.errors import InputError
from m2clip.evaluate.scoring import scoring_pass
from m2clip.files.disk import write_json
from m2clip.files.kept_work import plain
from m2clip.files.tensors import DamagedError, load_tensors, save_tensors

CHUNK = 64  # videos of a file
_VERSION = 2


class Encoder(Protocol):
    """What reads videos: `m2clip.methods.ma_fsar.MAFSAR`, or `evaluate.episodes.FrameMatching` around any model."""

    def encode_support(self, video: Tensor, labels: Tensor) -> Tensor:
        """Frame features (M, T, D) of support videos (M, T, 3, H, W) of the classes `labels` (M,)."""

    def encode_query(self, video: Tensor) -> Tensor:
        """Frame features (M, T, D) of query videos (M, T, 3, H, W)."""


@dataclass(frozen=True)
class VideoFeatures:
    """Frame features of the N videos of a list, fp32 on the CPU.

    Attributes:
        support, query: (N, T, D) as support with the text of its own class, and as query; zeros where there is an
            error. One tensor where the model reads both alike.
        errors: why a video could not be read or has no finite features, by its position.
    """

    support: Tensor
    query: Tensor
    errors: dict[int, str]


def video_features(
    model: Any,
    encoder: Encoder,
    videos: EpisodeVideos,
    *,
    roles: bool,
    batch_size: int,
    device: torch.device,
    workers: int = 0,
    precision: str = "fp32",
    on_error: str = "wrong",
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VideoFeatures:
    """Compute the features of all videos, each process its share, or read those that an earlier call has kept.

    Files are of CHUNK videos each, written under a temporary name first, in a folder named by all that decides them:
    weights, options and class names of the model, list, frames, precision. A call that was stopped resumes with the
    missing ones, and with those of which a video could not be read or is another file by now.

    Args:
        model: the video model, in evaluation mode and with the class names of the list.
        encoder: reads the videos for it.
        videos: the list, with labels among the model's class names.
        roles: whether support and query videos have features of their own.
        batch_size: videos of a forward pass.
        device: where the model is.
        workers: decoding processes of this process.
        precision: "fp32", "bf16" or "fp16"; autocast, unless the model's frozen weights are kept in it.
        on_error: "raise" ends at the first video that cannot be read.
        cache: a folder that all processes can read, holding a folder for each model and list; None keeps nothing.
        progress: called with (videos done, videos of this process).

    Raises:
        InputError: a file cannot be written; with on_error "raise", a video that cannot be read.
    """
    total = len(videos)
    chunks = [range(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK)]
    folder = None
    if cache is not None:
        settings = feature_settings(model, videos, precision)
        folder = cache / _key(settings)
        if distributed.is_main():
            write_json(settings, folder / "settings.json")
    own = [number for number in range(len(chunks)) if number % distributed.world_size() == distributed.rank()]
    states = {number: _state(videos, chunks[number]) for number in own} if folder is not None else {}
    found = {number: _read(folder, number, state) for number, state in states.items()} if folder is not None else {}
    kept = {number: part for number, part in found.items() if part is not None}
    problem = None
    try:
        missing = [(number, chunks[number]) for number in own if number not in kept]
        done, share = sum(len(chunks[number]) for number in kept), sum(len(chunks[number]) for number in own)
        if progress is not None:
            progress(done, share)
        computed = _compute(encoder, videos, missing, roles, batch_size, device, workers, precision, model)
        for number, part in computed:
            if part[1] and on_error == "raise":
                raise InputError(f"{next(iter(part[1].values()))} (--on-error skip or wrong continues without it)")
            kept[number] = part
            if folder is not None:
                _write(folder, number, part, states[number])
            done += len(chunks[number])
            if progress is not None:
                progress(done, share)
    except InputError as error:
        problem = str(error)
    # All processes must learn of a failure, or the others would wait for this one until the timeout.
    problem = next((text for text in distributed.gather_objects(problem) if text), None)
    if problem is not None:
        raise InputError(problem)
    parts = {number: part for of_process in distributed.gather_objects(kept) for number, part in of_process.items()}
    ordered = [parts[number] for number in range(len(chunks))]
    query = torch.cat([tensors["query"] for tensors, _ in ordered])
    support = torch.cat([tensors["support"] for tensors, _ in ordered]) if roles else query
    return VideoFeatures(support, query, {index: text for _, errors in ordered for index, text in errors.items()})


def feature_settings(model: Any, videos: EpisodeVideos, precision: str) -> dict[str, Any]:
    """All that decides the features, as JSON values."""
    items = videos.annotations.items
    return {
        "version": _VERSION,
        "model": {"method": model.method, "options": plain(model.options()), "prompt": model.prompt},
        "weights_sha256": weights_hash(model.state_dict()),
        "classes": list(model.class_names),
        "list": {"videos": len(items), "sha256": list_hash(items), "packed": packed_hash(items)},
        "views": plain(deciding(videos.settings, "clip", "views")),
        "random_frames": videos.seed if videos.random_frames else None,
        "precision": [precision, getattr(model, "precision", "fp32")],
    }


Part = tuple[dict[str, Tensor], dict[int, str]]


def _compute(
    encoder: Encoder,
    videos: EpisodeVideos,
    chunks: Sequence[tuple[int, range]],
    roles: bool,
    batch_size: int,
    device: torch.device,
    workers: int,
    precision: str,
    model: Any,
) -> Iterator[tuple[int, Part]]:
    """The features and errors of whole chunks, in order."""
    order = [index for _, chunk in chunks for index in chunk]
    items = load(videos, order, workers=workers)

    def encode(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        video = torch.stack([item["video"] for item in batch]).to(device, non_blocking=True)
        with scoring_pass(model, device, precision):
            features = {"query": encoder.encode_query(video)}
            if roles:
                labels = torch.tensor([int(item["label"]) for item in batch], device=device)
                features["support"] = encoder.encode_support(video, labels)
        return {role: tensor.float() for role, tensor in features.items()}

    for number, chunk in chunks:
        encoded: list[dict[str, Tensor]] = []
        pending: list[dict[str, Any]] = []
        errors: dict[int, str] = {}
        for index in chunk:
            item = next(items)
            pending.append(item)
            if item["error"]:
                errors[index] = str(item["error"])
            if len(pending) == batch_size or index == chunk[-1]:
                encoded.append(encode(pending))
                pending = []
        whole = {role: torch.cat([part[role] for part in encoded]).cpu() for role in encoded[0]}
        finite = torch.stack([tensor.isfinite().flatten(1).all(1) for tensor in whole.values()]).all(0).tolist()
        for index, good in zip(chunk, finite, strict=True):
            if not good:
                name = videos.annotations.items[index].name
                errors.setdefault(index, f"{name}: the model's features of this video are not finite numbers")
            if index in errors:
                for tensor in whole.values():
                    tensor[index - chunk.start] = 0
        yield number, (whole, errors)


def _key(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _state(videos: EpisodeVideos, chunk: range) -> str:
    """A digest of which files a chunk's videos are: names, sizes and times of change, and the parts of them."""
    digest = hashlib.sha256()
    for index in chunk:
        item = videos.annotations.items[index]
        path, part = item.path, "" if item.segment is None else f" {item.segment}"
        try:
            found = os.stat(path)
            facts = f"{found.st_size} {found.st_mtime_ns}"
        except OSError:
            facts = "missing"
        digest.update(f"{os.path.abspath(path)} {facts}{part}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _file(folder: Path, number: int) -> Path:
    return folder / f"features_{number:05d}.safetensors"


def _write(folder: Path, number: int, part: Part, state: str) -> None:
    tensors, errors = part
    save_tensors(tensors, _file(folder, number), {"failures": len(errors), "videos": state})


def _read(folder: Path, number: int, state: str) -> Part | None:
    """The features in a file; None without one, with a damaged one, with other videos or some that failed."""
    try:
        tensors, facts = load_tensors(_file(folder, number))
    except (OSError, DamagedError):
        return None
    fits = "sha256" in facts and (facts.get("failures"), facts.get("videos")) == (0, state)
    return (tensors, {}) if fits else None
