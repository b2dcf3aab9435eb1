"""PyAV as a video reader, and the scan of a file's packets that defines its frames for every reader."""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m2clip.data.mp4_header import announced_frames
from m2clip.data.video_base import MAX_PIXELS, Video, VideoError, check_file, check_length, check_size, stack

if TYPE_CHECKING:
    import av

# Containers whose packets carry a presentation time and whose seeking lands on the key frame asked for.
_INDEXED_CONTAINERS = frozenset(["mov", "mp4", "matroska", "webm", "avi"])
# What is opened at all. FFmpeg knows other formats that name further files or addresses to be read, such as playlists.
_FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpeg", "mpegts", "mpegvideo", "asf", "flv", "ogg", "gif"),
    *("h261", "h263", "h264", "hevc", "vvc", "av1", "obu", "vc1", "m4v", "dv", "ivf", "mjpeg", "nut", "mxf", "wtv"),
    *("rm", "nsv", "apng", "cavsvideo", "yuv4mpegpipe", "jpeg_pipe", "png_pipe", "bmp_pipe", "webp_pipe", "swf"),
)
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)}


class PyAVVideo(Video):
    """PyAV. Files of well-behaved containers are sought by key frame; others are decoded from their start."""

    def __init__(self, path: Path) -> None:
        from av.video.reformatter import VideoReformatter

        self.path = path
        self._container, self._stream = _open_container(path)
        self._to_rgb = VideoReformatter()  # one for all frames, each of which would otherwise make its own
        try:
            self._scan()
        except BaseException:
            self.close()
            raise

    def _scan(self) -> None:
        import av

        stream = self._stream
        # Compact: ten hours of video have two million frames.
        shown, keys = array("q"), array("q")
        packets = 0
        timed = bool(_INDEXED_CONTAINERS & set(self._container.format.name.split(",")))
        last_key: int | None = None
        # Whether every packet of the only stream is a frame to show, none shown before the key frame it follows.
        self.plain = len(self._container.streams.video) == 1
        check_length(self.path, stream.frames)
        try:
            for packet in self._container.demux(stream):
                # An empty packet with a time stands for a frame that was left out when it was recorded.
                packets += packet.pts is not None or packet.size > 0
                if not packet.size:
                    continue
                if packets % 4096 == 0:
                    check_length(self.path, packets)
                if packet.is_corrupt and timed:
                    raise VideoError(f"{self.path}: truncated or damaged: a frame is incomplete")
                if packet.pts is None:
                    timed = False
                    continue
                if packet.is_keyframe:
                    last_key = packet.pts
                    keys.append(packet.pts)
                elif last_key is None or packet.pts < last_key:
                    self.plain = False
                if packet.is_discard:
                    self.plain = False
                else:
                    shown.append(packet.pts)
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: truncated or damaged: {_reason(error)}") from None
        check_length(self.path, packets)
        # A file that is cut just between two frames ends without an error; its index tells.
        if "mp4" in self._container.format.name and packets < len(stream.index_entries):
            raise VideoError(f"{self.path}: truncated or damaged: it ends after {packets} frames")
        shown, self._keys = _sorted(shown), _sorted(keys)
        self.times: array[int] | None = shown
        if not timed or not keys or not np.diff(np.frombuffer(shown, np.int64)).all():
            self.times, self.plain = None, False
            self.num_frames = self._count()
        else:
            self.num_frames = len(shown)
        if not self.num_frames:
            raise VideoError(f"{self.path}: has a video stream of 0 frames")
        self.fps = self._frame_rate(shown)
        self.declared = self._declared(shown, packets)

    def _count(self) -> int:
        """Frames that the decoder gives from start to end; the only safe count where packets carry no times."""
        import av

        self._rewind()
        try:
            return sum(1 for _ in self._decoded())
        except av.FFmpegError as error:
            raise VideoError(f"{self.path}: cannot be decoded: {_reason(error)}") from None

    def _declared(self, shown: array[int], packets: int) -> int | None:
        """How many frames there would be if the file held all that its header says."""
        stream, container = self._stream, self._container
        kinds = set(container.format.name.split(","))
        if self.num_frames == 1 or len(shown) != self.num_frames or stream.time_base is None:
            return None
        start, end = 0.0, None
        if "matroska" in kinds:
            # Its times count from the start of the file, wherever the first frame is.
            start, end = float(shown[0] * stream.time_base), _clock(stream.metadata.get("DURATION", ""))
            if end is None and container.duration and len(container.streams) == 1:
                end = container.duration / 1_000_000
        elif stream.duration:
            end = float(stream.duration * stream.time_base)
        if end is None or not 0 < (end - start) * self.fps < 1e9:
            return None
        declared = round((end - start) * self.fps)
        if not stream.frames:
            return declared
        # The number of frames is announced as well. That of mp4 counts frames that the edit list takes out, while the
        # duration counts a last frame that stands still for long as if it were many; the duration of AVI is guessed
        # from the size of the file.
        announced = self.num_frames + max(stream.frames - packets, 0)
        return min(declared, announced) if "mp4" in kinds else announced

    def _frame_rate(self, shown: array[int]) -> float:
        if self.num_frames == 1:
            return math.nan
        if len(shown) == self.num_frames and self._stream.time_base:
            seconds = float((shown[-1] - shown[0]) * self._stream.time_base)
            rate = (self.num_frames - 1) / seconds if seconds > 0 else 0.0
        else:
            rate = float(self._stream.average_rate or 0)
        if not rate > 0:
            raise VideoError(f"{self.path}: frame rate 0: its {self.num_frames} frames have no times of their own")
        return rate

    def _rewind(self) -> None:
        self._container.close()
        self._container, self._stream = _open_container(self.path)

    def _packets(self) -> closing[Any]:
        """The packets from the current position. PyAV must close what it leaves unfinished, or memory is lost."""
        packets: Any = self._container.demux(self._stream)
        return closing(packets)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Frames in presentation order from the current position; damaged packets give none."""
        import av

        with self._packets() as packets:
            for packet in packets:
                try:
                    yield from packet.decode()
                except av.error.InvalidDataError:
                    continue

    def _read_sorted(self, indices: list[int]) -> np.ndarray:
        import av

        try:
            if self.times is None:
                found = self._read_by_rank(indices)
            else:
                found = self._read_by_time([self.times[index] for index in indices])
        except (av.FFmpegError, ValueError) as error:
            # PyAV gives a ValueError where a pixel format cannot be converted to RGB.
            raise VideoError(f"{self.path}: cannot be decoded: {_reason(error)}") from None
        if len(found) < len(indices):
            missing = indices[len(found)]
            raise VideoError(f"{self.path}: damaged: frame {missing} of {self.num_frames} cannot be decoded")
        if len({frame.shape for frame in found}) > 1:
            raise VideoError(f"{self.path}: the frame size changes within the video")
        return stack(found)

    def _read_by_rank(self, indices: list[int]) -> list[np.ndarray]:
        self._rewind()
        wanted, last = set(indices), indices[-1]
        found = []
        for rank, frame in enumerate(self._decoded()):
            if rank in wanted:
                found.append(self._upright(frame))
            if rank >= last:
                break
        return found

    def _read_by_time(self, times: list[int]) -> list[np.ndarray]:
        """The frames at ascending presentation times, up to the first that cannot be found."""
        found: list[np.ndarray] = []
        while len(found) < len(times):
            before = len(found)
            key = self._key_before(times[before])
            # The run of wanted frames that no later key frame is closer to is decoded in one go.
            run = [time for time in times[before:] if self._key_before(time) == key]
            self._container.seek(self._keys[key], stream=self._stream, backward=True, any_frame=False)
            found += self._decode_run(run)
            if len(found) < before + len(run):
                # A seek may land late in a file with a broken index; the start of the file is always right.
                self._rewind()
                found[before:] = self._decode_run(run)
            if len(found) < before + len(run):
                break
        return found

    def _key_before(self, time: int) -> int:
        return max(bisect_right(self._keys, time) - 1, 0)

    def _decode_run(self, times: list[int]) -> list[np.ndarray]:
        import av

        wanted, found = set(times), []
        context = self._stream.codec_context
        with self._packets() as packets:
            for packet in packets:
                # Frames that no other frame refers to need not be decoded unless they are asked for.
                context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    continue
                for frame in frames:
                    if frame.pts in wanted:
                        found.append(self._upright(frame))
                    if frame.pts is not None and frame.pts >= times[-1]:
                        return found
        return found

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        """(3, H, W) uint8 of one decoded frame, turned as its display matrix says."""
        check_size(self.path, frame.width, frame.height)
        image = self._to_rgb.reformat(frame, format="rgb24").to_ndarray().transpose(2, 0, 1)
        return np.rot90(image, round(frame.rotation / 90) % 4, (1, 2))

    def seconds(self, indices: Sequence[int]) -> list[float] | None:
        if self.times is None or self._stream.time_base is None:
            return super().seconds(indices)
        return [float((self.times[index] - self.times[0]) * self._stream.time_base) for index in indices]

    def close(self) -> None:
        self._container.close()


def _open_container(path: Path) -> tuple[av.container.InputContainer, av.video.stream.VideoStream]:
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
        raise VideoError(f"{path}: not a readable video ({_reason(error)})") from None
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        sound = ", only sound" if container.streams.audio else ""
        container.close()
        raise VideoError(f"{path}: has no video stream{sound}")
    stream = streams[0]
    if stream.codec_context is None:
        container.close()
        raise VideoError(f"{path}: no decoder for its video stream")
    context = stream.codec_context
    try:
        check_size(path, context.width, context.height)
    except VideoError:
        container.close()
        raise
    # Pictures may be larger than the header says.
    context.options = {"max_pixels": str(MAX_PIXELS)}
    # One thread: many videos are decoded side by side in the loader's workers.
    stream.thread_count = 1
    return container, stream


def _is_cover(stream: av.video.stream.VideoStream) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def _sorted(times: array[int]) -> array[int]:
    np.frombuffer(times, np.int64).sort()
    return times


def _clock(text: str) -> float | None:
    """Seconds of "HH:MM:SS.fraction", None where it is something else."""
    match = re.fullmatch(r"(\d{1,6}):(\d\d):(\d\d(?:\.\d{1,12})?)", text)
    return None if match is None else 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])
