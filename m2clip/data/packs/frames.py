"""Reading packs: the sampled frames of many videos, stored as JPEG images in tar files (see `m2clip.data.packs.pack`).

A pack is a folder: manifest.json, shard-NNNNNN.tar and, for each shard, index/shard-NNNNNN.json. In a shard a sample is
one stretch of bytes, KEY.json and KEY.0000.jpg, KEY.0001.jpg, ..., so that one read fetches all of it.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from m2clip.data.lists.formats import ClassLookup
from m2clip.data.lists.rows import Parsed, Row, ShardSample, Source, VideoItem
from m2clip.data.lists.text_files import read_json
from m2clip.data.segment import Segment
from m2clip.data.video.base import Video, VideoError
from m2clip.errors import InputError
from m2clip.files.disk import check_regular, open_regular, parse_json, seal, unseal
from m2clip.files.kept_work import MANIFEST

FORMAT, VERSION = "m2clip pack", 1
SUBSET = "m2clip pack subset"
_BLOCK = 512  # bytes, of a tar archive
_MOST_OPEN = 32


class ShardVideo(Video):
    """The stored frames of one video, numbered from 0; only those that are asked for are decompressed.

    `fps` is the rate of the stored frames. `original_frames` is the number of frames of the video they come from.

    Raises:
        VideoError: the shard is missing, or the sample in it is damaged.
    """

    def __init__(self, path: Path, sample: ShardSample) -> None:
        self.path, self._sample = path, sample
        data = _read_sample(path, sample)
        try:
            members = _members(data)
            facts = parse_json(bytes(members[f"{sample.key}.json"]))
            self.times: list[float] | None = facts["times"]
            self.original_frames: int = facts["num_frames"]
            self.num_frames = len(facts["frames"])
            self._images = [members[frame_name(sample.key, number)] for number in range(self.num_frames)]
            self.fps = math.nan
            if self.times is not None and self.times[-1] > self.times[0]:
                self.fps = (self.num_frames - 1) / (self.times[-1] - self.times[0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise VideoError(f"{_place(path, sample)}: not a sample of a pack ({type(error).__name__})") from None

    def seconds(self, indices: Sequence[int]) -> list[float] | None:
        return None if self.times is None else [self.times[index] for index in indices]

    def _read_sorted(self, indices: list[int]) -> np.ndarray:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        frames = []
        for index in indices:
            # A copy: torch does not want memory that cannot be written to.
            data = torch.frombuffer(bytearray(self._images[index]), dtype=torch.uint8)
            try:
                frames.append(decode_jpeg(data, ImageReadMode.RGB).numpy().transpose(1, 2, 0))
            except RuntimeError:
                raise VideoError(f"{_place(self.path, self._sample)}: stored frame {index} is no JPEG image") from None
        if len({frame.shape for frame in frames}) > 1:
            raise VideoError(f"{_place(self.path, self._sample)}: its frames differ in size")
        # In the order of the decoder's memory, a tenth of the time of the other.
        return np.stack(frames).transpose(0, 3, 1, 2)


def frame_name(key: str, number: int) -> str:
    """Name of a stored frame in its shard."""
    return f"{key}.{number:04d}.jpg"


class _OpenShards:
    """A few open shards; the one used longest ago is closed first.

    Reads give their own position, so that processes forked from this one can share the open files.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[Path, FileIO] = OrderedDict()

    def read(self, sample: ShardSample) -> bytes:
        file = self._files.pop(sample.shard, None)
        if file is None:
            check_regular(sample.shard)
            file = FileIO(sample.shard)
        self._files[sample.shard] = file
        if len(self._files) > _MOST_OPEN:
            self.close(next(iter(self._files)))
        # A damaged index may ask for more than there is memory for.
        length = min(sample.length, os.fstat(file.fileno()).st_size)
        return os.pread(file.fileno(), length, sample.offset)

    def close(self, shard: Path) -> None:
        if (file := self._files.pop(shard, None)) is not None:
            file.close()


_open_shards = _OpenShards()


def _read_sample(path: Path, sample: ShardSample) -> bytes:
    for _ in range(2):
        try:
            data = _open_shards.read(sample)
        except OSError as error:
            raise VideoError(f"{_place(path, sample)}: cannot be read ({error.strerror})") from None
        if len(data) == sample.length and zlib.crc32(data) == sample.crc32:
            return data
        # The file may have been replaced since it was opened.
        _open_shards.close(sample.shard)
    short = "truncated" if len(data) < sample.length else "damaged (its checksum is wrong)"
    raise VideoError(f"{_place(path, sample)}: {short}; delete {sample.shard.name} and its file in index, pack again")


def _place(path: Path, sample: ShardSample) -> str:
    return f"{sample.shard}, sample {sample.key} ({path})"


def _members(data: bytes) -> dict[str, memoryview]:
    """The files in a piece of a tar archive by name; the module tarfile would take a tenth of the time of a clip."""
    view, members, offset = memoryview(data), {}, 0
    while offset < len(data):
        name = data[offset : offset + 100].rstrip(b"\0").decode()
        size = int(data[offset + 124 : offset + 135], 8)
        offset += _BLOCK
        members[name] = view[offset : offset + size]
        offset += -(-size // _BLOCK) * _BLOCK
    return members


def is_pack(path: Path) -> bool:
    """Whether a path is the folder of a pack, its manifest.json, or a file that `subset_text` gave."""
    try:
        with open_regular(path / MANIFEST if path.is_dir() else path) as file:
            # The first field names the format; other programs have a manifest.json as well.
            return re.match(rb'\{\s*"format": "m2clip pack', file.read(100)) is not None
    except OSError:
        return False  # whoever reads it tells why it cannot be read


def load_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a pack, given its folder or that file.

    Raises:
        InputError: it is unfinished, of another version, or not readable.
    """
    manifest = path / MANIFEST if path.is_dir() else path
    content = read_json(manifest)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{manifest}: not the manifest of a pack")
    if content.get("version") != VERSION:
        raise InputError(f"{manifest}: a pack of version {content.get('version')}, this program reads {VERSION}")
    content = _unsealed(content, manifest, "restore it from a copy, or pack into a new folder")
    # Absent is not the same as null, which says that no names are known.
    names, shards = content.get("class_names", ""), content.get("shards")
    for field, fits in (
        ("complete", isinstance(content.get("complete"), bool)),
        ("kind", content.get("kind") in ("frames", "videos")),
        ("class_names", names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))),
        (
            "shards",
            content.get("complete") is False  # they are listed at the end
            or (isinstance(shards, list) and all(_names_file(shard, "name") for shard in shards)),
        ),
    ):
        if not fits:
            raise InputError(f"{manifest}: {field} is not what it should be: the file is damaged or was changed")
    return content


def _names_file(entry: Any, field: str) -> bool:
    """Whether a field of an entry is the name of a file in the pack, and of none elsewhere."""
    name = entry.get(field) if isinstance(entry, dict) else None
    return isinstance(name, str) and bool(name) and ".." not in Path(name).parts and not Path(name).is_absolute()


def parse_shards(source: Source) -> Parsed:
    """The folder of a pack, or its manifest.json: videos in the order of the packed list. Or a subset of one."""
    if not source.path.is_dir() and source.path.name != MANIFEST:
        return _parse_subset(source)
    folder = source.path if source.path.is_dir() else source.path.parent
    manifest = load_manifest(source.path)
    if not manifest["complete"]:
        raise InputError(f"{folder}: packing is unfinished; run the same m2clip pack again to resume")
    names: list[str] | None = manifest["class_names"]
    lookup = ClassLookup(source.class_names) if source.class_names is not None and names is not None else None
    stored: list[tuple[int, Row]] = []
    for shard in manifest["shards"]:
        index = folder / "index" / f"{shard['name']}.json"
        try:
            content = _unsealed(read_json(index), index, "delete it and run m2clip pack again")
            samples = content["samples"]
            found = [_row(folder, manifest["kind"], shard["name"], sample) for sample in samples]
            if lookup is not None and names is not None:
                found = [
                    (position, replace(row, label=lookup.label(names[row.label], row.where))) for position, row in found
                ]
            stored += found
        except (KeyError, TypeError, IndexError):
            raise InputError(f"{index}: not the index of a shard; delete it and run m2clip pack again") from None
    rows = [row for _, row in sorted(stored, key=lambda entry: entry[0])]
    return Parsed(rows, source.class_names or names)


def subset_text(items: Sequence[VideoItem]) -> str:
    """Some videos of a pack, with labels of their own, as the content of a file that is read in place of the pack.

    Raises:
        InputError: they are not all of one pack.
    """
    samples = [item.sample for item in items]
    folders = {sample.shard.parent.absolute() if sample else None for sample in samples}
    if len(folders) != 1 or None in folders:
        raise InputError("a list of videos from several packs, or from a pack and from files, cannot be written")
    chosen = [[int(sample.key), item.label] for item, sample in zip(items, samples, strict=True) if sample]
    content = {"format": SUBSET, "version": VERSION, "pack": str(folders.pop()), "samples": chosen}
    return json.dumps(seal(content)) + "\n"


def _parse_subset(source: Source) -> Parsed:
    content = read_json(source.path)
    if not isinstance(content, dict) or content.get("format") != SUBSET:
        raise InputError(f"{source.path}: neither the manifest of a pack nor a subset of one")
    content = _unsealed(content, source.path, "write the list again")
    samples = content.get("samples")
    if not isinstance(content.get("pack"), str) or not isinstance(samples, list) or not all(map(_is_choice, samples)):
        raise InputError(f"{source.path}: not a subset of a pack: the file is damaged or was changed")
    pack = Path(content["pack"])
    if not os.path.isdir(pack) or not is_pack(pack):
        raise InputError(f"{source.path}: its pack, {pack}, is not there")
    rows = {row.sample.key: row for row in parse_shards(Source(pack, pack, None, None)).rows if row.sample}
    missing = next((position for position, _ in samples if sample_key(position) not in rows), None)
    if missing is not None:
        raise InputError(f"{source.path}: video {missing + 1} is not in {pack}")
    chosen = [replace(rows[sample_key(position)], label=label) for position, label in samples]
    return Parsed(chosen, source.class_names)


def _unsealed(content: Any, path: Path, advice: str) -> dict[str, Any]:
    try:
        return unseal(content)
    except ValueError as error:
        raise InputError(f"{path}: {error}; {advice}") from None


def _is_choice(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(map(_is_count, entry))


def _is_count(number: Any) -> bool:
    """Whether a value of a JSON file is a count, a position or a label."""
    return type(number) is int and 0 <= number < 1 << 62


def _row(folder: Path, kind: str, shard: str, sample: dict[str, Any]) -> tuple[int, Row]:
    counts = ["position", "label"] if kind == "videos" else ["position", "label", "offset", "length", "crc32"]
    fits = _names_file(sample, "file") if kind == "videos" else isinstance(sample["path"], str)
    fits = fits and (isinstance(sample["path"], str) if kind == "videos" else isinstance(sample["every_frame"], bool))
    if not fits or not all(_is_count(sample[name]) for name in counts):
        raise TypeError("a sample's fields are not what they should be")
    position: int = sample["position"]
    where = f"{folder}, video {position + 1}"
    if kind == "videos":
        cut_from = Path(sample["path"]) if "segment" in sample else None
        return position, Row(where, folder / sample["file"], sample["label"], cut_from=cut_from)
    stored = ShardSample(
        folder / f"{shard}.tar",
        sample_key(position),
        sample["offset"],
        sample["length"],
        sample["crc32"],
        sample["every_frame"],
    )
    segment = None if "segment" not in sample else _segment(sample["segment"])
    return position, Row(where, Path(sample["path"]), sample["label"], sample=stored, segment=segment)


def _segment(value: Any) -> Segment:
    if not isinstance(value, list) or len(value) != 2 or not all(type(number) in (int, float) for number in value):
        raise TypeError("a sample's segment is not what it should be")
    return Segment(*map(float, value))


def sample_key(position: int) -> str:
    """Key of the sample of the video at a position of the list."""
    return f"{position:09d}"
