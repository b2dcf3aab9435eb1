"""The task "features": the embedding of every video and of its frames."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2clip.at_scale.settings import Outcome, TableRow
from m2clip.at_scale.tables import has_segments, read_table, segment_columns, write_table
from m2clip.data.lists.rows import VideoItem
from m2clip.errors import InputError
from m2clip.evaluate.scoring import scoring_pass
from m2clip.files.disk import check_regular, parse_json

FORMATS = ("safetensors", "parquet")
FUSION = "mean over views of the features, which are not normalised"


@dataclass(frozen=True)
class FeaturesTask:
    """Features in the space that CLIP shares with text: of the video (D,), of its frames (T, D); means over views.

    A file holds those of one part of the list, fp32.

    * safetensors: "index" (n,) int64, positions in the list of the n videos that could be read; "video" (n, D);
      "frames" (n, T, D). The metadata's one entry "m2clip" is JSON: "paths" of these videos in the same order, and
      "failures", each with index, path and error. A list of parts of videos gives "segments" too, their [start, end].
    * parquet: a row for every video: "index", "path", "video" (list of D), "frames" (list of T lists of D), "error";
      the features of a video that failed are null. A list of parts of videos gives "start" and "end" in seconds too.

    Args:
        format: "safetensors" or "parquet".

    Raises:
        InputError: unknown format.
    """

    format: str = "safetensors"
    name = "features"
    table = "features.csv"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"features are written as {' or '.join(FORMATS)}, not {self.format!r}")

    @property
    def suffix(self) -> str:
        return self.format

    def identity(self, model: Any) -> dict[str, Any]:
        return {"format": self.format, "fusion": FUSION, "dim": model.tower["joint_width"]}

    def compute(self, model: Any, video: Tensor, batch_size: int, precision: str) -> list[dict[str, Any]]:
        videos, frames = embed_views(model, video.flatten(0, 1), batch_size, precision)
        of_video = videos.unflatten(0, video.shape[:2]).mean(dim=1).numpy()
        of_frames = frames.unflatten(0, video.shape[:2]).mean(dim=1).numpy()
        return [{"video": one, "frames": several} for one, several in zip(of_video, of_frames, strict=True)]

    def write(self, path: Path, items: Sequence[VideoItem], outcomes: Sequence[Outcome]) -> None:
        if self.format == "parquet":
            _write_parquet(path, items, outcomes)
            return
        from safetensors.numpy import save

        whole = [outcome for outcome in outcomes if outcome.error is None]
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        tensors = {"index": np.array([outcome.index for outcome in whole], dtype=np.int64)}
        if whole:
            tensors |= {name: np.stack([outcome.values[name] for outcome in whole]) for name in ("video", "frames")}
        segments = {"segments": [items[one.index].segment for one in whole]} if has_segments(items) else {}
        facts = {
            "paths": [str(items[outcome.index].path) for outcome in whole],
            **segments,
            "failures": [
                {"index": outcome.index, "path": str(items[outcome.index].path), "error": outcome.error}
                for outcome in failed
            ],
        }
        # One entry, since several are stored in a random order and equal features should give equal files.
        path.write_bytes(save(tensors, {"m2clip": json.dumps(facts, ensure_ascii=False)}))

    def read(self, path: Path) -> Iterator[TableRow]:
        if self.format == "parquet":
            for place, row in enumerate(read_table(path, ("index", "path", "error"))):
                yield TableRow(row["index"], row["path"], row["error"], [] if row["error"] else [path.name, str(place)])
            return
        from safetensors import SafetensorError, safe_open

        check_regular(path)
        try:
            with safe_open(path, framework="np") as file:
                facts = parse_json((file.metadata() or {})["m2clip"])
                index = file.get_tensor("index").tolist()
        except SafetensorError as error:
            raise ValueError(str(error)) from None
        rows = [
            TableRow(position, name, None, [path.name, str(place)])
            for place, (position, name) in enumerate(zip(index, facts["paths"], strict=True))
        ]
        rows += [TableRow(failed["index"], failed["path"], failed["error"], []) for failed in facts["failures"]]
        yield from sorted(rows, key=lambda row: row.index)

    def columns(self, model: Any) -> list[str]:
        return ["file", "row"]


def embed_views(model: Any, video: Tensor, batch_size: int, precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """Features of N views (N, D) and of their frames (N, T, D), fp32 on the CPU.

    Args:
        model: a video model in evaluation mode.
        video: (N, T, 3, H, W), normalised.
        batch_size: views a forward pass.
        precision: "fp32", "bf16" or "fp16"; autocast, unless the model's frozen weights are kept in it anyway.
    """
    device = next(model.parameters()).device
    videos, frames = [], []
    with scoring_pass(model, device, precision):
        for part in video.split(batch_size):
            of_frames, of_video, _ = model.encode(part.to(device, non_blocking=True))
            videos.append(of_video.float())
            frames.append(of_frames.float())
    return torch.cat(videos).cpu(), torch.cat(frames).cpu()


def _write_parquet(path: Path, items: Sequence[VideoItem], outcomes: Sequence[Outcome]) -> None:
    import pyarrow as pa

    failed = np.array([outcome.error is not None for outcome in outcomes])
    floats = pa.list_(pa.float32())

    def lists(name: str) -> Any:
        """An Arrow array of the values, nested as deeply as they have dimensions, null where there are none."""
        whole = [outcome.values[name] for outcome in outcomes if outcome.error is None]
        values: Any = pa.array(np.stack(whole).reshape(-1) if whole else np.zeros(0, np.float32))
        shape = whole[0].shape if whole else (0,)
        for length in shape[:0:-1]:
            values = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, length, dtype=np.int32), values)
        ends = np.cumsum(np.where(failed, 0, shape[0]), dtype=np.int32)
        return pa.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), values, mask=pa.array(failed))

    columns = {
        "index": [outcome.index for outcome in outcomes],
        "path": [str(items[outcome.index].path) for outcome in outcomes],
        "video": lists("video"),
        "frames": lists("frames") if not failed.all() else [None] * len(outcomes),
        "error": [outcome.error for outcome in outcomes],
    }
    kinds = (pa.int64(), pa.string(), floats, pa.list_(floats), pa.string())
    schema = list(zip(columns, kinds, strict=True))
    times = segment_columns([items[outcome.index] for outcome in outcomes], items)
    write_table(path, [*schema, *((name, pa.float64()) for name in times)], {**columns, **times})
