"""Lists whose folders contradict their labels: videos of the folder `kick` that are labelled as another class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from m2clip.data.lists.class_names import match_key
from m2clip.data.lists.rows import Row

# Folders of these names may stand for parts of a data set, even where a class is called so.
_PARTS = frozenset(
    ("train", "training", "trainval", "val", "valid", "validation", "test", "testing", "dev", "eval", "data", "dataset")
    + ("video", "videos", "clip", "clips", "frames", "images", "rawframes")
)


@dataclass
class _Level:
    """The folders at one depth: how many rows with each label lie in each."""

    folders: dict[str, Counter[int]] = field(default_factory=dict)

    def names_classes(self, classes: dict[str, int]) -> bool:
        """Whether the folders of this depth are class folders, and not persons or parts that are named as a class."""
        names = self.folders.keys() - _PARTS
        named = [name for name in names if name in classes]
        # A folder that all rows share tells nothing.
        if len(self.folders) < 2 or 2 * len(named) < len(names) or not named:
            return False
        return 2 * len(named) > len(names) or all(self._fits(name, classes[name]) for name in named)

    def _fits(self, name: str, label: int) -> bool:
        """Whether a folder is of one class, as a class folder is, or mostly of the class that it names."""
        labels = self.folders[name]
        return len(labels) == 1 or 2 * labels[label] > labels.total()


def contradicted(rows: Sequence[Row], class_names: Sequence[str]) -> dict[int, str]:
    """The rows that lie in the folder of another class than their label's, and the class of the folder.

    A row passes where one of its folders has the name of its class, or none has the name of any. A folder counts only
    where most folders of its depth are named as classes; what all rows share, and `train`, `test` and the like, do not.

    Args:
        rows: of a list.
        class_names: in label order.
    """
    classes = {match_key(name): label for label, name in enumerate(class_names)}
    by_folder: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_folder.setdefault(str(row.path).rpartition(os.sep)[0], []).append(place)
    parts_of = {folder: os.path.join(os.path.abspath(folder), "").split(os.sep)[:-1] for folder in by_folder}
    keys = {folder: [match_key(part) for part in parts] for folder, parts in parts_of.items()}
    if not any(key in classes for parts in keys.values() for key in parts):
        return {}
    shared = len(os.path.commonprefix(list(parts_of.values())))
    levels: dict[int, _Level] = {}
    for folder, places in by_folder.items():
        labels = Counter(rows[place].label for place in places)
        for depth, key in enumerate(keys[folder][shared:]):
            levels.setdefault(depth, _Level()).folders.setdefault(key, Counter()).update(labels)
    of_classes = {depth for depth, level in levels.items() if level.names_classes(classes)}
    found = {}
    for folder, places in by_folder.items():
        parts = keys[folder][shared:]
        named = [classes[key] for depth, key in enumerate(parts) if depth in of_classes and key in classes]
        own = {classes[key] for key in parts if key in classes}
        for place in places if named else ():
            if rows[place].label not in own:
                found[place] = class_names[named[-1]]
    return dict(sorted(found.items()))
