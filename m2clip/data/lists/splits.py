"""Splits of a data set: base and novel halves of its classes, random halves, and lists of videos as files."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m2clip.data.lists.annotations import Annotations, load_annotations
from m2clip.data.lists.class_files import class_table
from m2clip.data.lists.lines import list_text
from m2clip.data.packs.frames import subset_text
from m2clip.errors import InputError
from m2clip.files.disk import write_text


@dataclass(frozen=True)
class WrittenList:
    """A list of videos in files, as a configuration names it.

    Attributes:
        path: the list; videos are named by absolute paths, those of a pack by their place in it.
        format: its annotation format: "list", "frames", or for videos of a pack "auto".
        classes: the class file, columns id and name.
    """

    path: Path
    format: str
    classes: Path


def frequent_half(annotations: Annotations) -> tuple[list[str], list[str]]:
    """Base and novel class names: the more frequent half of the classes is base, as in the ViFi-CLIP benchmark.

    Of an odd number the larger half is base; classes with equally many videos come in the order of their labels. Both
    halves keep that order.

    Args:
        annotations: training videos of all classes.

    Raises:
        InputError: no class names, or fewer than two classes.
    """
    names = _names(annotations)
    videos = Counter(item.label for item in annotations.items)
    order = sorted(range(len(names)), key=lambda label: (-videos[label], label))
    base = set(order[: (len(names) + 1) // 2])
    return [names[i] for i in range(len(names)) if i in base], [names[i] for i in range(len(names)) if i not in base]


def random_halves(class_names: Sequence[str], count: int, seed: int = 0) -> list[list[str]]:
    """Draw random halves of the classes, the smaller half of an odd number, in the order of the labels.

    Args:
        class_names: C names.
        count: how many halves.
        seed: of all draws.

    Raises:
        InputError: fewer than four classes, of which a half would leave nothing to choose from.
    """
    if len(class_names) < 4:
        raise InputError(f"random halves need four classes or more, there are {len(class_names)}")
    halves = []
    for number in range(count):
        chosen = set(random.Random(f"{seed}/{number}").sample(range(len(class_names)), len(class_names) // 2))
        halves.append([name for label, name in enumerate(class_names) if label in chosen])
    return halves


def write_episode_classes(folder: Path, every: int = 4) -> tuple[WrittenList, WrittenList]:
    """Write the lists episodes_train.txt and episodes_val.txt of a built-in data set's training clips.

    Each `every`-th base class is kept out of training, to choose weights by; its novel classes are for testing.

    Args:
        folder: what `m2clip.data.built_in.rendered_set.render_built_in` rendered into.
        every: 2 or more.

    Raises:
        InputError: not such a folder, or a list that cannot be written.
    """
    base = load_annotations(
        folder / "base_train.txt", root=folder, format="list", class_names=folder / "base_classes.csv"
    )
    names = _names(base)
    kept_out = names[every - 1 :: every]
    trained = [name for place, name in enumerate(names) if place % every != every - 1]
    return (
        write_list(base.select_classes(trained), folder / "episodes_train.txt"),
        write_list(base.select_classes(kept_out), folder / "episodes_val.txt"),
    )


def write_list(annotations: Annotations, path: Path) -> WrittenList:
    """Write a list and, beside it, its class names (<name>_classes.csv), each to a temporary name and then renamed.

    Args:
        annotations: the videos, with class names; video files, folders of frames or videos of one pack, nothing mixed.
        path: file to write.

    Raises:
        InputError: no class names, or files and folders mixed.
    """
    names = _names(annotations)
    items = annotations.items
    folders = {item.num_frames is not None for item in items}
    if len(folders) > 1:
        raise InputError(f"{annotations.source}: holds both video files and folders of frames; one list cannot")
    packed = any(item.sample is not None for item in items)
    if not packed and len({item.segment is None for item in items}) > 1:
        raise InputError(f"{annotations.source}: holds both whole videos and parts of videos; one list cannot")
    classes = path.with_name(f"{path.stem}_classes.csv")
    if packed:
        content = subset_text(items)
    else:
        content = list_text((str(item.path.absolute()), item.num_frames, item.segment, item.label) for item in items)
    for file, text in ((classes, class_table(names)), (path, content)):
        write_text(text, file)
    return WrittenList(path, "auto" if packed else "frames" if True in folders else "list", classes)


def _names(annotations: Annotations) -> list[str]:
    if annotations.class_names is None:
        raise InputError(f"{annotations.source}: gives class numbers but no names; name a label set or a class file")
    if len(annotations.class_names) < 2:
        raise InputError(f"{annotations.source}: has one class only")
    return list(annotations.class_names)
