"""Videos for episodes: whole episodes as training batches, and single test clips whose features episodes share."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch

from m2clip.data.clips import ClipDataset, ClipSettings, collate, load_views
from m2clip.data.episodes import EpisodeShape, class_videos, draw_episode
from m2clip.data.lists.annotations import Annotations
from m2clip.data.video.readers import VideoError
from m2clip.errors import InputError
from m2clip.sizes import sides

# How many classes of an episode, and videos of a class, may turn out unreadable.
_SPARE_CLASSES, _SPARE_VIDEOS = 3, 5


class EpisodeClips(ClipDataset):
    """Training episodes over a list of videos, drawn anew in every epoch.

    Item (epoch, number) is a batch as `m2clip.data.clips.collate` makes them, "video" (videos, T, 3, size, size),
    "label" and "index" (videos,): first the way * shots support clips, class by class, then the way * queries query
    clips, class by class. Everything in it comes from (seed, epoch, number).

    A video that cannot be read is left out for the next one drawn from its class, which is in no other place of the
    episode; a class with too few readable videos is left out for another class. So support and query never share a
    video, and the clips of a class's places are of that class. "replaced" lists what was left out.

    Args:
        annotations: the videos.
        settings: how clips are cut and transformed.
        shape: of an episode.
        per_epoch: episodes of an epoch.
        seed: of all random choices.

    Raises:
        InputError: too few classes, or classes with too few videos, named.
    """

    def __init__(
        self, annotations: Annotations, settings: ClipSettings, shape: EpisodeShape, per_epoch: int, seed: int = 0
    ) -> None:
        super().__init__(annotations, settings, training=True, seed=seed)
        self.shape, self.per_epoch = shape, per_epoch
        self._videos = class_videos(annotations, shape)

    def __len__(self) -> int:
        return self.per_epoch

    def __getitem__(self, key: int | tuple[int, ...]) -> dict[str, Any]:
        epoch, number = key if isinstance(key, tuple) else (0, key)
        place, shape = f"{self.seed}/{epoch}/{number}", self.shape
        drawn = draw_episode(self._videos, shape, random.Random(place), _SPARE_CLASSES, _SPARE_VIDEOS)
        classes, failed = [], list[dict[str, str]]()
        for videos in drawn.values():
            if (clips := self._class_clips(place, videos, failed)) is not None:
                classes.append(clips)
            if len(classes) == shape.way:
                break
        else:
            raise InputError(
                f"{self.annotations.source}: an episode found {len(classes)} classes with readable videos enough, not "
                f"{shape.way}; check the root folder ({failed[0]['error']})"
            )
        support = [clip for clips in classes for clip in clips[: shape.shots]]
        batch = collate([*support, *(clip for clips in classes for clip in clips[shape.shots :])])
        return {**batch, "replaced": failed}

    def _class_clips(self, place: str, videos: list[int], failed: list[dict[str, str]]) -> list[dict[str, Any]] | None:
        """The first clips of these videos that can be read, as many as a class has; None if there are not enough."""
        clips: list[dict[str, Any]] = []
        for index in videos:
            item = self.annotations.items[index]
            try:
                video = self._random_clip(item, random.Random(f"{place}/{index}"))
            except VideoError as problem:
                failed.append({"path": item.name, "error": str(problem), "replaced_by": ""})
                continue
            for entry in failed:
                entry["replaced_by"] = entry["replaced_by"] or item.name
            clips.append({"video": video, "label": item.label, "index": index, "replaced": None})
            if len(clips) == self.shape.shots + self.shape.queries:
                return clips
        return None


class EpisodeVideos(ClipDataset):
    """One test clip of each video of a list, for features that many episodes share.

    Item `index` is {"video": float (T, 3, size, size), "label", "index", "error": None or str}; the video of an
    unreadable file is zeros.

    Args:
        annotations: the videos.
        settings: how the clip is cut and transformed; there is one clip and one crop of it, whatever they say.
        random_frames: a random frame of each segment, as some published code takes, in place of its centre.
        seed: of the random frames.
    """

    def __init__(
        self, annotations: Annotations, settings: ClipSettings, random_frames: bool = False, seed: int = 0
    ) -> None:
        super().__init__(annotations, replace(settings, clips=1, crops=1), seed=seed)
        self.random_frames = random_frames

    def __getitem__(self, key: int | tuple[int, ...]) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        settings, item, error = self.settings, self.annotations.items[index], None
        try:
            video = load_views(item, settings, random.Random(f"{self.seed}/{index}") if self.random_frames else None)[0]
        except VideoError as problem:
            video, error = torch.zeros(settings.num_frames, 3, *sides(settings.size)), str(problem)
        return {"video": video, "label": item.label, "index": index, "error": error}

    def describe_frames(self) -> str:
        """How many frames a clip has and how they are chosen."""
        settings = self.settings
        stride = f", stride {settings.stride}" if settings.sampling != "uniform" else ""
        return f"{settings.num_frames} {settings.sampling}{stride}, " + (
            f"at random (seed {self.seed})" if self.random_frames else "centred"
        )
