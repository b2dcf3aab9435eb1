"""Opens a video's container and picks the stream that players show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from m2clip.data.video.base import MAX_PIXELS, VideoError, check_file, check_size
from m2clip.data.video.mp4_header import announced_frames

if TYPE_CHECKING:
    import av

    Opened = tuple[av.container.InputContainer, av.video.stream.VideoStream]

# What is opened at all. FFmpeg knows other formats that name further files or addresses to be read, such as playlists.
FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpeg", "mpegts", "mpegvideo", "asf", "flv", "ogg", "gif"),
    *("h261", "h263", "h264", "hevc", "vvc", "av1", "obu", "vc1", "m4v", "dv", "ivf", "mjpeg", "nut", "mxf", "wtv"),
    *("rm", "nsv", "apng", "cavsvideo", "yuv4mpegpipe", "jpeg_pipe", "png_pipe", "bmp_pipe", "webp_pipe", "swf"),
)
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(FORMATS)}


def open_container(path: Path, choice: int = 0) -> Opened:
    """The container and its video stream.

    Args:
        path: the file.
        choice: 0 for the stream that players show, 1 for the next best, and so on.

    Raises:
        VideoError: no video, or a picture that is too large.
        IndexError: there are not so many streams.
    """
    import av

    check_file(path)
    frames = announced_frames(path)
    if frames > path.stat().st_size:
        raise VideoError(f"{path}: damaged: its header announces {frames} frames, more than the file has bytes")
    try:
        # Tags in another encoding than UTF-8 do no harm; and no name is taken for the address of something else.
        container = av.open(f"file:{path}", options=dict(_OPTIONS), metadata_errors="replace")
    except av.error.ArgumentError:
        raise VideoError(f"{path}: not a readable video (of no known format)") from None
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video ({reason(error)})") from None
    try:
        stream = video_streams(path, container)[choice]
        check_size(path, stream.codec_context.width, stream.codec_context.height)
    except BaseException:
        container.close()
        raise
    # Pictures may be larger than the header says.
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    # One thread: many videos are decoded side by side in the loader's workers.
    stream.thread_count = 1
    return container, stream


def video_streams(path: Path | str, container: av.container.InputContainer) -> list[av.video.stream.VideoStream]:
    """The streams that can be decoded: those marked as default first, then by the number of pixels.

    Args:
        path: of the file, or the address, for messages.
        container: what was opened.

    Raises:
        VideoError: there is none.
    """
    from av.stream import Disposition

    found = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not found:
        sound = ", only sound" if container.streams.audio else ""
        raise VideoError(f"{path}: has no video stream{sound}")
    # PyAV gives None where there is no decoder.
    decodable = [stream for stream in found if stream.codec_context is not None]
    if not decodable:
        raise VideoError(f"{path}: no decoder for its video stream")

    def rank(stream: av.video.stream.VideoStream) -> tuple[bool, int]:
        return not stream.disposition & Disposition.default, -stream.codec_context.width * stream.codec_context.height

    return sorted(decodable, key=rank)


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return str(getattr(error, "strerror", None) or error).splitlines()[0]
