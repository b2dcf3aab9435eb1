"""What a pack holds: how many frames of a video, of which size and quality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from m2clip.data.video.readers import check_reader
from m2clip.errors import InputError

KINDS = ("frames", "videos")


@dataclass(frozen=True)
class PackSettings:
    """What a pack holds; all of it decides its bytes.

    Args:
        kind: "frames" (JPEG images in tar shards) or "videos" (re-encoded mp4 files).
        frames: stored frames of a video, uniformly spread from its first to its last; None for every frame.
        short_side: of the frames, in pixels; smaller videos are not enlarged.
        quality: of the JPEG images, 1 to 95.
        keyframes: frames from one key frame to the next in a re-encoded video.
        crf: x264's constant rate factor, 0 (lossless) to 51.
        shard_videos: videos of a shard, or of a part of the work.
        reader: which library decodes, as in `m2clip.data.video.readers`.
        isolate: decode in a child process, which a video may crash or hang (`m2clip.data.video.isolated`).

    Raises:
        InputError: a choice that does not exist, or a number out of range.
    """

    kind: str = "frames"
    frames: int | None = 32
    short_side: int = 256
    quality: int = 90
    keyframes: int = 16
    crf: int = 20
    shard_videos: int = 128
    reader: str = "auto"
    isolate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        check_reader(self.reader)
        limits = {"short_side": (16, 4096), "quality": (1, 95), "keyframes": (1, 10_000), "crf": (0, 51)}
        limits |= {"shard_videos": (1, 100_000), "frames": (1, 9_999)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} must be between {least} and {most}, not {value}")

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide the content of this kind of pack."""
        names = {"frames": ("frames", "short_side", "quality"), "videos": ("short_side", "keyframes", "crf")}
        return {name: getattr(self, name) for name in (*names[self.kind], "shard_videos", "reader")}
