"""Parquet files, which need pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m2clip.data.lists.rows import VideoItem
from m2clip.errors import InputError
from m2clip.files.disk import check_regular


def require_pyarrow() -> None:
    """InputError where pyarrow is not installed, before any work is done."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise InputError(
            "parquet needs pyarrow: pip install 'm2clip[parquet]', or choose another --output-format"
        ) from None


def write_table(path: Path, schema: Sequence[tuple[str, Any]], columns: Mapping[str, Any]) -> None:
    """Write columns (lists or Arrow arrays by name) as one row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [pa.array(columns[name], type=kind) for name, kind in schema]
    pq.write_table(pa.table(arrays, schema=pa.schema(schema)), path)


def read_table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a file, of some columns; ValueError or OSError where it is damaged."""
    import pyarrow.parquet as pq

    check_regular(path)
    yield from pq.read_table(path, columns=list(columns)).to_pylist()


def has_segments(items: Sequence[VideoItem]) -> bool:
    """Whether a list is one of parts of videos; no list holds both parts and whole videos."""
    return items[0].segment is not None


def segment_columns(videos: Iterable[VideoItem], items: Sequence[VideoItem]) -> dict[str, list[float]]:
    """Columns "start" and "end" of some videos of a list, in seconds; none where the list is of whole videos."""
    if not has_segments(items):
        return {}
    starts, ends = zip(*(video.segment for video in videos if video.segment is not None), strict=True)
    return {"start": list(starts), "end": list(ends)}
