"""What the built-in data sets share: clips into mp4 files, lists, class files, and a call that can be repeated."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from m2clip.data import BUILT_IN
from m2clip.data.lists.class_files import class_table
from m2clip.errors import InputError
from m2clip.files.disk import read_json, replacing, write_json, write_text

SPLITS = ("train", "val")
FPS = 12
_CHUNK = 8


class RenderedClass:
    """One class of a built-in data set; `id` is its position among the base or among the novel classes."""

    id: int

    @property
    def name(self) -> str:
        """English class name."""
        raise NotImplementedError

    @property
    def slug(self) -> str:
        """Class name as a folder name."""
        return self.name.replace(" ", "_")


@dataclass(frozen=True)
class RenderedSet:
    """A data set that is rendered when it is wanted.

    Attributes:
        name: of the file <name>.json that marks a folder as holding this data set.
        format: number of the version; clips of two versions do not mix in one folder.
        base, novel: classes to train on, and classes to meet only as words.
        draw: (class, split, number, seed of the data set) -> uint8 (T, H, W, 3), a function that processes can share.
        require: raises InputError where something that drawing needs is not installed.
    """

    name: str
    format: int
    base: tuple[Any, ...]
    novel: tuple[Any, ...]
    draw: Callable[[Any, str, int, int], np.ndarray]
    require: Callable[[], object] = lambda: None

    def render(
        self,
        folder: str | os.PathLike,
        clips_per_class: dict[str, int],
        seed: int = 0,
        workers: int = 2,
        progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Render the data set into a folder; clips that are already there are kept, so a stopped call can be repeated.

        Args:
            folder: where to write; created if needed. Clips go to videos/<split>/<class>/NNNN.mp4, the lists to
                base_train.txt, base_val.txt and novel_val.txt (one "path id" per line), the class names to
                base_classes.csv and novel_classes.csv (columns id, name).
            clips_per_class: {"train": clips of each base class, "val": clips of each base and each novel class}.
            seed: non-negative integer that fixes every clip.
            workers: number of processes; 0 or 1 renders in this process. With more, a script that calls this must do so
                under `if __name__ == "__main__":`, as for any new Python process.
            progress: called with (clips done, clips wanted) after every few clips.

        Returns:
            The folder.

        Raises:
            InputError: a count is missing or not positive, the folder holds another data set or that of another seed,
                or something that drawing needs is not installed.
        """
        self.require()
        counts = {split: clips_per_class.get(split, 0) for split in SPLITS}
        if set(clips_per_class) - set(counts) or min(counts.values()) < 1:
            raise InputError(
                f"clips_per_class must give a positive number for 'train' and for 'val', not {clips_per_class}"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _claim(self, folder, seed)

        lists = {
            "base_train.txt": ("train", self.base),
            "base_val.txt": ("val", self.base),
            "novel_val.txt": ("val", self.novel),
        }
        clips: list[tuple[str, RenderedClass, int]] = []
        for name, (split, classes) in lists.items():
            of_list = [(split, c, number) for c in classes for number in range(counts[split])]
            write_text("".join(f"{_clip_path(*clip)} {clip[1].id}\n" for clip in of_list), folder / name)
            clips += of_list
            for c in classes:
                (folder / "videos" / split / c.slug).mkdir(parents=True, exist_ok=True)
        for name, classes in (("base_classes.csv", self.base), ("novel_classes.csv", self.novel)):
            write_text(class_table([c.name for c in classes]), folder / name)

        missing = [clip for clip in clips if not (folder / _clip_path(*clip)).exists()]
        done = len(clips) - len(missing)
        report = progress or (lambda done, wanted: None)
        report(done, len(clips))
        chunks = [missing[i : i + _CHUNK] for i in range(0, len(missing), _CHUNK)]
        if workers <= 1:
            for chunk in chunks:
                done += _render_chunk(self.draw, str(folder), seed, chunk)
                report(done, len(clips))
            return folder
        import multiprocessing

        # A forked copy of a process that has used torch's threads can hang, so the workers start afresh.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            jobs = [pool.submit(_render_chunk, self.draw, str(folder), seed, chunk) for chunk in chunks]
            try:
                for future in as_completed(jobs):
                    done += future.result()
                    report(done, len(clips))
            finally:
                # After an error or Ctrl-C the clips not begun would be waited for otherwise.
                for job in jobs:
                    job.cancel()
        return folder


def render_built_in(name: str, folder: str | os.PathLike, clips_per_class: dict[str, int], **options: Any) -> Path:
    """Render the built-in data set of this name, "motion" or "mocap"; further arguments as in `RenderedSet.render`."""
    if name not in BUILT_IN:
        raise InputError(f"there is no built-in data set {name!r}: choose from {', '.join(BUILT_IN)}")
    data_set: RenderedSet = importlib.import_module(f"m2clip.data.built_in.{name}").DATA_SET
    return data_set.render(folder, clips_per_class, **options)


def write_clip(path: Path, clip: np.ndarray) -> None:
    """Write one clip as H.264 in mp4, 12 frames per second; the file appears only when complete.

    Args:
        path: file to write.
        clip: uint8 (T, H, W, 3) RGB with even H and W.
    """
    import av

    # Thousands of clips that can be rendered again need not outlive a power failure.
    with replacing(path, durable=False) as partial, av.open(str(partial), "w", format="mp4") as container:
        # Without the macroblock tree, whose result varied from run to run, one clip always gives the same file.
        options = {"preset": "veryfast", "crf": "18", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for image in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def _render_chunk(
    draw: Callable[[Any, str, int, int], np.ndarray], folder: str, seed: int, chunk: list[tuple[str, Any, int]]
) -> int:
    for split, of_class, number in chunk:
        write_clip(Path(folder) / _clip_path(split, of_class, number), draw(of_class, split, number, seed))
    return len(chunk)


def _clip_path(split: str, of_class: RenderedClass, number: int) -> str:
    return f"videos/{split}/{of_class.slug}/{number:04d}.mp4"


def _kept(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _claim(data_set: RenderedSet, folder: Path, seed: int) -> None:
    """Keep clips of two data sets or two seeds from mixing in one folder."""
    facts = {"format": data_set.format, "seed": seed}
    path = folder / f"{data_set.name}.json"
    others = [folder / f"{name}.json" for name in BUILT_IN if name != data_set.name]
    taken = next((other for other in others if other.exists()), None)
    if taken is not None:
        raise InputError(f"{folder} holds another data set ({taken}): choose another folder")
    if path.exists() and _kept(path) != facts:
        raise InputError(f"{folder} holds a data set of another seed or version ({path}): choose another folder")
    write_json(facts, path)
