"""Names of files that are taken for videos, and those that are left out of every folder."""

from __future__ import annotations

from pathlib import Path

from m2clip.files.disk import open_regular

# Container, as FFmpeg names what reads it -> the suffixes of its files.
# `m2clip.data.video.container` opens these containers and no others.
CONTAINERS: dict[str, tuple[str, ...]] = {
    "mov": (".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".ismv", ".mj2"),
    "matroska": (".mkv", ".webm", ".mk3d"),
    "avi": (".avi", ".divx", ".xvid"),
    "mpegts": (".ts", ".mts", ".m2ts", ".m2t", ".tod", ".trp"),
    "mpeg": (".mpg", ".mpeg", ".mpe", ".m2p", ".mod", ".vob", ".vro"),
    "mpegvideo": (".m1v", ".m2v", ".mpv"),
    "asf": (".asf", ".wmv"),
    "flv": (".flv",),
    "ogg": (".ogv", ".ogm"),
    "gif": (".gif",),
    "apng": (".apng",),
    "dv": (".dv", ".dif"),
    "mxf": (".mxf",),
    "rm": (".rm", ".rmvb"),
    "nut": (".nut",),
    "wtv": (".wtv",),
    "nsv": (".nsv",),
    "swf": (".swf",),
    "ivf": (".ivf",),
    "mjpeg": (".mjpg", ".mjpeg"),
    "yuv4mpegpipe": (".y4m",),
    "h261": (".h261",),
    "h263": (".h263",),
    "h264": (".h264", ".264", ".avc"),
    "hevc": (".hevc", ".h265", ".265"),
    "vvc": (".vvc", ".h266", ".266"),
    "obu": (".obu",),
    "vc1": (".vc1",),
}
VIDEO_SUFFIXES = frozenset(suffix for suffixes in CONTAINERS.values() for suffix in suffixes)

# What systems and programs put into folders, beside names that begin with a dot.
_LITTER = frozenset(
    ["__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found"]
    + ["system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"]
)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or made by a system for itself."""
    return name.startswith(".") or name.lower() in _LITTER


def is_animation(path: Path) -> bool:
    """Whether a WebP or AVIF file says in its first bytes that it has several frames."""
    try:
        with open_regular(path) as file:
            head = file.read(21)
    except OSError:
        return False
    # WebP: the animation bit of the extended header. AVIF: the brand of image sequences.
    return (head[:4] + head[8:16] == b"RIFFWEBPVP8X" and bool(head[20:] and head[20] & 2)) or head[4:12] == b"ftypavis"
