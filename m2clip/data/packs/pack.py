"""`m2clip pack`: a data set as JPEG frames in tar shards or as re-encoded videos, for fast reading.

Packing can be stopped at any moment and resumes when the same call is repeated. A shard appears under its name when it
is complete, and its index file after it. Which video goes where depends on the list and the settings alone.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from typing import Any

from m2clip.data.lists.annotations import Annotations, VideoItem, list_hash
from m2clip.data.lists.label_sets import class_table
from m2clip.data.packs.frames import FORMAT, VERSION, is_pack, load_manifest
from m2clip.data.packs.samples import Entry, Part, write_part
from m2clip.data.packs.settings import PackSettings
from m2clip.errors import InputError
from m2clip.files.disk import read_json, seal, unseal, write_json, write_text, writing
from m2clip.files.folders import check_apart, locked
from m2clip.files.kept_work import MANIFEST, begin, check_same, remove_partial_files


def pack(
    annotations: Annotations,
    folder: str | os.PathLike[str],
    settings: PackSettings | None = None,
    *,
    workers: int | None = None,
    retry_failed: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Store the videos of a list in a folder that `load_annotations` reads in place of the list.

    Args:
        annotations: the videos.
        folder: where to write; new, empty, or left by an earlier call with the same list and settings, which is
            continued. A call that finds everything done changes nothing.
        settings: what to store.
        workers: processes; None for one per core. With more than one a script must call this under
            `if __name__ == "__main__":`.
        retry_failed: try again what could not be read by earlier calls.
        progress: called with (videos done, all videos).

    Returns:
        The manifest: "settings", "list", "class_names", "counts", "bytes", "shards" with their sizes and SHA-256, and
        "failures" with the path and the error of each video that could not be read.

    Raises:
        InputError: the folder holds something else, another call is writing to it, the disk is full, a process died.
    """
    folder, settings = Path(folder), settings or PackSettings()
    if any(item.sample is not None for item in annotations.items):
        raise InputError(f"{annotations.source}: is a pack already; pack the list of the original videos")
    parts = plan(annotations, settings)
    claim = _claim(annotations, settings)
    check_apart(folder, None if annotations.format == "list" else annotations.source)
    with locked(folder, "m2clip pack"), writing(folder):
        _check_claim(folder, claim)
        remove_partial_files(folder, deep=True)
        done = {part.name: _finished(folder, part, settings) for part in parts}
        if retry_failed:
            done = {name: index for name, index in done.items() if index and not index["failures"]}
        finished = {name: index for name, index in done.items() if index}
        report = progress or (lambda done, total: None)
        count = sum(len(part.entries) for part in parts if part.name in finished)
        report(count, len(annotations))
        for index in _work(folder, [part for part in parts if part.name not in finished], settings, workers):
            finished[index["name"]] = index
            count += len(index["samples"]) + len(index["failures"])
            report(count, len(annotations))
        manifest = _manifest(claim, [finished[part.name] for part in parts])
        if settings.kind == "videos":
            _write_list(folder, [finished[part.name] for part in parts], annotations.class_names)
        if unseal(read_json(folder / MANIFEST)) != manifest:
            write_json(seal(manifest), folder / MANIFEST)
    return manifest


def plan(annotations: Annotations, settings: PackSettings) -> list[Part]:
    """The parts of a pack. Videos are shuffled, always in the same way, so that a shard holds videos of all classes."""
    absolute = [os.path.abspath(item.path) for item in annotations.items]
    common = os.path.commonpath([os.path.dirname(path) for path in absolute])
    paths = [PurePosixPath(Path(os.path.relpath(path, common)).as_posix()) for path in absolute]
    files = [""] * len(paths)
    if settings.kind == "videos":
        files = _video_files([_part_path(path, item) for path, item in zip(paths, annotations.items, strict=True)])
    names = annotations.class_names
    entries = [
        Entry(position, item, str(path), names[item.label] if names else None, file)
        for position, (item, path, file) in enumerate(zip(annotations.items, paths, files, strict=True))
    ]
    random.Random(FORMAT).shuffle(entries)
    size = settings.shard_videos
    chunks = [entries[start : start + size] for start in range(0, len(entries), size)]
    return [Part(f"shard-{number:06d}", tuple(chunk)) for number, chunk in enumerate(chunks)]


def _part_path(path: PurePosixPath, item: VideoItem) -> PurePosixPath:
    """The path of a part of a video, as if it were a file of its own."""
    return path if item.segment is None else path.with_name(f"{path.stem}_{item.segment.tag}{path.suffix or '.mp4'}")


def _video_files(paths: Sequence[PurePosixPath]) -> list[str]:
    """A file for each video, its own name with the suffix .mp4; where two would be the same, with .mp4 added."""
    short = [path.with_suffix(".mp4") for path in paths]
    often = Counter(short)
    longer = [path.with_name(f"{path.name}.mp4") for path in paths]
    files = [long if often[target] > 1 else target for target, long in zip(short, longer, strict=True)]
    both, times = Counter(files).most_common(1)[0]
    if times > 1:
        raise InputError(f"two videos of the list would become {both}: rename one")
    for file in files:
        if str(file).strip(' ,"\t') != str(file) or "\n" in str(file) or "\r" in str(file):
            raise InputError(f"{str(file)!r} cannot stand in a list: rename it")
    return [f"videos/{file}" for file in files]


def _claim(annotations: Annotations, settings: PackSettings) -> dict[str, Any]:
    """What a folder is bound to from the first call on."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": settings.kind,
        "settings": settings.identity,
        "list": {"videos": len(annotations), "sha256": list_hash(annotations.items)},
        "class_names": annotations.class_names,
    }


def _check_claim(folder: Path, claim: dict[str, Any]) -> None:
    if (folder / MANIFEST).exists() and not is_pack(folder):
        raise InputError(f"{folder}: holds another program's {MANIFEST}; give a new folder")
    begin(folder, claim)
    check_same(_decisive(load_manifest(folder)), _decisive(claim), folder, "pack")


def _decisive(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**{name: manifest[name] for name in ("kind", "list", "class_names")}, **manifest["settings"]}


def _finished(folder: Path, part: Part, settings: PackSettings) -> dict[str, Any] | None:
    """The index of a part that is complete on the disk."""
    try:
        index = unseal(read_json(folder / "index" / f"{part.name}.json"))
        if settings.kind == "frames":
            whole = (folder / f"{part.name}.tar").stat().st_size == index["bytes"]
        else:
            whole = all((folder / each["file"]).stat().st_size == each["bytes"] for each in index["samples"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


def _work(folder: Path, parts: Sequence[Part], settings: PackSettings, workers: int | None) -> Iterator[dict[str, Any]]:
    workers = min(len(parts), workers or len(os.sched_getaffinity(0)))
    if workers <= 1:
        for part in parts:
            yield write_part(folder, part, settings)
        return
    # A forked copy of a process that has used torch's threads can hang, so the workers start afresh.
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with, initargs=(watched,)) as pool:
        try:
            jobs = [pool.submit(write_part, folder, part, settings) for part in parts]
            for job in as_completed(jobs):
                yield job.result()
        except BrokenProcessPool:
            raise InputError(
                f"{folder}: a packing process was killed or crashed; run the same command again: it resumes where it "
                "stopped (if memory ran out, with fewer --workers)"
            ) from None
        except BaseException:
            held.close()
            raise
    held.close()


def _end_with(watched: Connection) -> None:
    """Make this process end as soon as the one that started it lets go of its end of the pipe, or dies."""

    import torch

    def wait() -> None:
        watched.poll(None)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which lets go
    threading.Thread(target=wait, daemon=True).start()
    torch.set_num_threads(1)


def _manifest(claim: dict[str, Any], indexes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    failures = sorted(
        (failure for index in indexes for failure in index["failures"]), key=lambda failure: failure["position"]
    )
    packed = [sample for index in indexes for sample in index["samples"]]
    counts = {"videos": len(packed) + len(failures), "packed": len(packed), "failed": len(failures)}
    if claim["kind"] == "frames":
        counts["frames"] = sum(sample["frames"] for sample in packed)
    known = ("bytes", "sha256") if claim["kind"] == "frames" else ("bytes",)
    shards = [
        {"name": index["name"], "videos": len(index["samples"]), **{name: index[name] for name in known}}
        for index in indexes
    ]
    total = sum(index["bytes"] for index in indexes)
    return {**claim, "complete": True, "counts": counts, "bytes": total, "shards": shards, "failures": failures}


def _write_list(folder: Path, indexes: Sequence[dict[str, Any]], class_names: Sequence[str] | None) -> None:
    """list.txt and classes.csv, for programs that do not know packs."""
    samples = sorted((sample for index in indexes for sample in index["samples"]), key=lambda each: each["position"])
    texts = {"list.txt": "".join(f"{sample['file']} {sample['label']}\n" for sample in samples)}
    if class_names:
        texts["classes.csv"] = class_table(class_names)
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(text, path)
