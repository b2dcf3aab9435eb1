"""The task "label": the most probable classes of every video."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from m2clip.at_scale.settings import Outcome, TableRow
from m2clip.at_scale.tables import read_table, segment_columns, write_table
from m2clip.data.lists.rows import VideoItem
from m2clip.errors import InputError
from m2clip.evaluate.scoring import fuse_views, rank_classes, score_views
from m2clip.files.disk import parse_json, read_text

FORMATS = ("jsonl", "parquet")


@dataclass(frozen=True)
class LabelTask:
    """The classes with the highest probabilities, the mean over views of the softmax over classes.

    Args:
        top: how many classes are stored.
        format: "jsonl" or "parquet".

    Raises:
        InputError: unknown format, or top below 1.
    """

    top: int = 5
    format: str = "jsonl"
    name = "label"
    table = "labels.csv"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"labels are written as {' or '.join(FORMATS)}, not {self.format!r}")
        if self.top < 1:
            raise InputError(f"top must be at least 1, not {self.top}")

    @property
    def suffix(self) -> str:
        return self.format

    def identity(self, model: Any) -> dict[str, Any]:
        return {"top": self.top, "format": self.format, "classes": list(model.class_names), "prompt": model.prompt}

    def compute(self, model: Any, video: Tensor, batch_size: int, precision: str) -> list[dict[str, Any]]:
        device = next(model.parameters()).device
        supervised, similarity = score_views(model, video.flatten(0, 1).split(batch_size), device, precision)
        head = "zero-shot" if supervised is None else "supervised"
        scores = similarity if supervised is None else supervised
        found = []
        for views in scores.unflatten(0, video.shape[:2]):
            fused = fuse_views(views)
            best = rank_classes(fused)[: self.top]
            names = [model.class_names[number] for number in best]
            found.append({"head": head, "classes": best.numpy(), "names": names, "scores": fused[best].numpy()})
        return found

    def write(self, path: Path, items: Sequence[VideoItem], outcomes: Sequence[Outcome]) -> None:
        rows = [_row(items, outcome) for outcome in outcomes]
        times = segment_columns([items[outcome.index] for outcome in outcomes], items)
        if self.format == "parquet":
            write_table(path, _schema(times), {**{name: [row[name] for row in rows] for name in _COLUMNS}, **times})
            return
        for row, *pair in zip(rows, *times.values(), strict=True):
            row.update(zip(times, pair, strict=True))
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

    def read(self, path: Path) -> Iterator[TableRow]:
        if self.format == "parquet":
            rows = read_table(path, _COLUMNS)
        else:
            rows = (parse_json(line) for line in read_text(path).split("\n") if line)
        for row in rows:
            best = zip(row["names"], row["scores"], strict=True)
            yield TableRow(row["index"], row["path"], row["error"], [str(cell) for pair in best for cell in pair])

    def columns(self, model: Any) -> list[str]:
        count = min(self.top, len(model.class_names))
        ranks = ["", *(f"_{place}" for place in range(2, count + 1))]
        return [f"{what}{rank}" for rank in ranks for what in ("name", "score")]


_COLUMNS = ("index", "path", "head", "classes", "names", "scores", "error")


def _row(items: Sequence[VideoItem], outcome: Outcome) -> dict[str, Any]:
    values = outcome.values
    return {
        "index": outcome.index,
        "path": str(items[outcome.index].path),
        "head": values.get("head"),
        "classes": values["classes"].tolist() if values else [],
        "names": values["names"] if values else [],
        "scores": values["scores"].tolist() if values else [],
        "error": outcome.error,
    }


def _schema(times: Iterable[str]) -> list[tuple[str, Any]]:
    import pyarrow as pa

    kinds = (pa.int64(), pa.string(), pa.string(), pa.list_(pa.int64()), pa.list_(pa.string()), pa.list_(pa.float64()))
    return [*zip(_COLUMNS, (*kinds, pa.string()), strict=True), *((name, pa.float64()) for name in times)]
