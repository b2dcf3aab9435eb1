"""What one process of `packs.pack` does: write a shard of stored frames, or re-encode the videos of a part."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from m2clip.data.lists.rows import VideoItem
from m2clip.data.packs.frames import frame_name, sample_key
from m2clip.data.packs.settings import PackSettings
from m2clip.data.video.isolated import open_isolated
from m2clip.data.video.readers import Video, VideoError, open_video
from m2clip.files.disk import replacing, seal, write_json

# Decoded frames of one video that are in memory at a time.
_FRAME_BYTES = 2**28
_TICKS = 90_000  # a second, of the times in a re-encoded video
_FOLDER_FPS = 25  # of a folder of images, which has no times


@dataclass(frozen=True)
class Entry:
    """One video of a pack.

    Attributes:
        position: in the list.
        path: as text, below the folder that all videos have in common.
        class_name: if known.
        file: of the re-encoded video, below the folder of the pack.
    """

    position: int
    item: VideoItem
    path: str
    class_name: str | None
    file: str


@dataclass(frozen=True)
class Part:
    """A shard, or as many re-encoded videos: what is done by one process and marked as done by one file."""

    name: str
    entries: tuple[Entry, ...]


def write_part(folder: Path, part: Part, settings: PackSettings) -> dict[str, Any]:
    """Write a shard, or the videos of a part, and then the index file that says so; returns the index.

    Raises:
        OSError: the disk is full, or cannot be written to for another reason.
    """
    work = _write_shard if settings.kind == "frames" else _write_videos
    index = {"name": part.name, **work(folder, part, settings)}
    write_json(seal(index), folder / "index" / f"{part.name}.json")
    return index


def _write_shard(folder: Path, part: Part, settings: PackSettings) -> dict[str, Any]:
    samples, failures, size, digest = [], [], 0, hashlib.sha256()
    with replacing(folder / f"{part.name}.tar") as temporary, temporary.open("wb") as file:
        for entry in part.entries:
            try:
                frames, every, data = _sample(entry, settings)
            except VideoError as error:
                failures.append(_failure(entry, error))
                continue
            file.write(data)
            digest.update(data)
            place = {"offset": size, "length": len(data), "crc32": zlib.crc32(data)}
            samples.append({**_identity(entry), "frames": frames, "every_frame": every, **place})
            size += len(data)
        # Two empty blocks end an archive, whose length is a multiple of twenty blocks.
        end = bytes(2 * tarfile.BLOCKSIZE + -(size + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)
        file.write(end)
        digest.update(end)
    return {"bytes": size + len(end), "sha256": digest.hexdigest(), "samples": samples, "failures": failures}


def _identity(entry: Entry) -> dict[str, Any]:
    segment = {} if entry.item.segment is None else {"segment": list(entry.item.segment)}
    return {"position": entry.position, "path": entry.path, "label": entry.item.label, **segment}


def _failure(entry: Entry, error: VideoError) -> dict[str, Any]:
    return {**_identity(entry), "error": str(error)}


def _sample(entry: Entry, settings: PackSettings) -> tuple[int, bool, bytes]:
    """Number of stored frames, whether they are all of the video, and the sample as a piece of a tar archive."""
    with _open(entry.item, settings) as video:
        indices = stored_indices(video.num_frames, settings.frames)
        facts = {
            "label": entry.item.label,
            "class": entry.class_name,
            "path": entry.path,
            **({} if entry.item.segment is None else {"segment": list(entry.item.segment)}),
            "fps": None if math.isnan(video.fps) else video.fps,
            "num_frames": video.num_frames,
            "frames": indices,
            "times": video.seconds(indices),
        }
        images = [_jpeg(frame, settings.quality) for frame in _frames(video, indices, settings.short_side)]
        every = len(indices) == video.num_frames
    key = sample_key(entry.position)
    members = [_member(f"{key}.json", json.dumps(facts).encode())]
    members += [_member(frame_name(key, number), image) for number, image in enumerate(images)]
    return len(indices), every, b"".join(members)


def stored_indices(num_frames: int, count: int | None) -> list[int]:
    """`count` frames spread uniformly from the first to the last of a video, every one where it has no more."""
    if count is None or num_frames <= count:
        return list(range(num_frames))
    if count == 1:
        return [num_frames // 2]
    return [(2 * i * (num_frames - 1) + count - 1) // (2 * (count - 1)) for i in range(count)]


def _member(name: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def _jpeg(frame: Tensor, quality: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _open(item: VideoItem, settings: PackSettings) -> Video:
    opener = open_isolated if settings.isolate else open_video
    return opener(item.path, settings.reader, pattern=item.pattern, num_frames=item.num_frames, segment=item.segment)


def _frames(video: Video, indices: Sequence[int], short_side: int, even: bool = False) -> Iterator[Tensor]:
    """The frames as (3, h, w) uint8, shrunk to the short side; a long video is never in memory as a whole."""
    at_once = max(1, _FRAME_BYTES // video.read(indices[:1]).numel())
    for start in range(0, len(indices), at_once):
        yield from _shrunk(video.read(indices[start : start + at_once]), short_side, even)


def _shrunk(frames: Tensor, short_side: int, even: bool) -> Tensor:
    from torchvision.transforms.v2 import functional as F

    before = frames.shape[-2:]
    scale = min(short_side / min(before), 1.0)
    # H.264 with colours at half the resolution has no odd sizes.
    unit = 2 if even else 1
    size = [max(unit * round(extent * scale / unit), unit) for extent in before]
    return frames if size == list(before) else F.resize(frames, size, antialias=True)


def _write_videos(folder: Path, part: Part, settings: PackSettings) -> dict[str, Any]:
    samples, failures, size = [], [], 0
    for entry in part.entries:
        path = folder / entry.file
        try:
            if not path.exists():
                _encode(entry.item, path, settings)
        except VideoError as error:
            failures.append(_failure(entry, error))
            continue
        data = path.read_bytes()
        size += len(data)
        digest = hashlib.sha256(data).hexdigest()
        samples.append({**_identity(entry), "file": entry.file, "bytes": len(data), "sha256": digest})
    return {"bytes": size, "samples": samples, "failures": failures}


def _encode(item: VideoItem, path: Path, settings: PackSettings) -> None:
    """H.264 in mp4, all frames at their times, without sound."""
    import av

    # One thread, and no macroblock tree, whose result varies from run to run: one video always gives the same file.
    # B frames would be shown before the key frame they follow, or need a frame after them to be decoded.
    fixed = f"keyint={settings.keyframes}:min-keyint={settings.keyframes}:scenecut=0:mbtree=0:bframes=0"
    options = {"preset": "veryfast", "crf": str(settings.crf), "x264-params": fixed}
    with _open(item, settings) as video, replacing(path) as temporary:
        indices = range(video.num_frames)
        times = video.seconds(indices) or [index / _FOLDER_FPS for index in indices]
        with av.open(str(temporary), "w", format="mp4") as container:
            rate = _FOLDER_FPS if math.isnan(video.fps) else video.fps
            stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001), options=options)
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            stream.codec_context.time_base = Fraction(1, _TICKS)
            for seconds, image in zip(times, _frames(video, indices, settings.short_side, even=True), strict=True):
                if not stream.codec_context.is_open:
                    stream.height, stream.width = image.shape[1:]
                frame = av.VideoFrame.from_ndarray(image.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
                frame.pts, frame.time_base = round(seconds * _TICKS), Fraction(1, _TICKS)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
