"""Video that is still coming: cameras, addresses, pipes and files that grow.

Nothing else in m2clip opens an address. A thread takes what comes at once, so that the time of its coming is known;
whoever reads the frames decodes them. Frames that are too old by then are dropped.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m2clip.data.video.base import MAX_PIXELS, check_size
from m2clip.data.video.container import FORMATS, reason, video_streams
from m2clip.data.video.display import Upright, displayed_size
from m2clip.data.video.growing import open_growing
from m2clip.data.video.mp4_header import FIRST_BOXES
from m2clip.errors import InputError, LostSourceError

if TYPE_CHECKING:
    import av

# What an address may lead to, by its first word. A redirected page may be encrypted.
_WEB = "http,https,httpproxy,tcp,tls,crypto"
_PROTOCOLS = {
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsp,rtp,udp,tcp,tls,crypto",
    "rtp": "rtp,udp",
    "udp": "udp",
    "tcp": "tcp",
    "http": _WEB,
    "https": _WEB,
}
_WAITING = ("tcp", "http", "https")  # which send no faster than what they send is taken
_FORMATS = ",".join((*FORMATS, "rtsp", "rtp", "sdp", "mpjpeg", "live_flv"))
# Little is looked at before the first frame: a second, and a million bytes.
_OPTIONS = {"analyzeduration": "1000000", "probesize": "1000000"}
# Its table of contents is written last.
_UNFINISHED = "; an mp4 is no video before its end: record mkv, ts or fragmented mp4"
# Clocks differ: a sender's second may be so much longer than ours.
_DRIFT = 1e-3
# A source that sends nothing for so many seconds has paused.
_PAUSE = 1.0
# A pipe or a file is a recording if within so many seconds it gives so many more seconds of video than pass, or if,
# after what had waited in it, it is so many times as fast as the video.
_LOOK, _POURED, _FAST = 1.5, 10.0, 3.0


class Lag:
    """How old frames are, by the one that came earliest for its time; a source that pauses begins anew."""

    def __init__(self) -> None:
        self._least = math.inf
        self._last: tuple[float, float] | None = None

    def note(self, seconds: float, now: float, held: bool = False) -> None:
        """Something has come.

        Args:
            seconds: its time in the video.
            now: the time on the clock.
            held: whether it may have waited for us.
        """
        ahead = now - seconds
        if self._last is not None:
            passed = now - self._last[1]
            if not held and passed > seconds - self._last[0] + _PAUSE:
                self._least = ahead
            self._least += _DRIFT * passed
        self._least = min(self._least, ahead)
        self._last = seconds, now

    def age(self, seconds: float, now: float) -> float:
        """How many seconds after it could have come a frame is looked at; a recording may be ahead of its time."""
        return max(0.0, now - seconds - self._least)


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """A decoded frame.

    Attributes:
        seconds: its time, after the first frame.
        source: what it came from.
    """

    seconds: float
    source: LiveVideo
    _decoded: Any = field(repr=False)

    def pixels(self) -> np.ndarray:
        """(3, H, W) uint8, converted at each call: of most frames nobody asks for them."""
        return self.source._upright(self._decoded)

    def age(self) -> float:
        """Seconds since the frame came."""
        return self.source._lag.age(self.seconds, time.monotonic())


class LiveVideo:
    """A source of frames; use it in a `with` block, which begins to take what comes, and iterate over it once.

    What is too old when the first frame is asked for is dropped, unless the source is a recording: so enter the block
    before a model is loaded, lest a sender waits meanwhile and is late from then on.

    Args:
        source: the number of a camera or its device, an address (rtsp, rtp, udp, tcp, http), "-" for standard input, or
            a file that may still grow.
        latency: frames that are older than so many seconds are dropped; None drops none.
        timeout: seconds without anything after which a source counts as lost, and a file as complete.

    Attributes:
        name: what messages call it.
        dropped: frames that were dropped.
        seen: frames that were given.
    """

    def __init__(self, source: str, *, latency: float | None = 1.0, timeout: float = 10.0) -> None:
        self.name = "standard input" if source == "-" else source
        self.dropped = self.seen = 0
        self._source, self._latency, self._timeout = source, latency, timeout
        self._lag, self._shown = Lag(), Upright()
        self._first: float | None = None
        self._size: tuple[int, int] | None = None
        self._packets: deque[tuple[av.Packet | None, float]] = deque()
        self._changed = threading.Condition()
        self._started = self._asked = self._stopped = self._finished = False
        self._recording: bool | None = None
        self._began: float | None = None
        self._early: tuple[float, float] | None = None
        self._away = 0.0  # the longest time for which who reads was away since all was given
        self._error: Exception | None = None
        self._container: av.container.InputContainer | None = None

    # ---- what comes ----

    def _open(self, source: str) -> tuple[av.container.InputContainer, bool]:
        """The container, and whether what is not taken waits there, as in a pipe or a file."""
        import av

        options: dict[str, str] = {**_OPTIONS, "format_whitelist": _FORMATS}
        named: dict[str, Any] = {}
        scheme = re.match(r"([a-z]+)://", source)
        device = Path(f"/dev/video{source}" if source.isdecimal() else source)
        waits = False
        if scheme is not None:
            if scheme[1] not in _PROTOCOLS:
                raise InputError(f"{source}: of addresses only {', '.join(_PROTOCOLS)} are opened")
            options["protocol_whitelist"] = _PROTOCOLS[scheme[1]]
            if scheme[1].startswith("rtsp"):
                options["rtsp_flags"] = "prefer_tcp"
            opened: Any = source
            named["timeout"] = self._timeout
            waits = scheme[1] in _WAITING
        elif str(device).startswith("/dev/video"):
            if not device.exists():
                raise InputError(f"{device}: no such camera")
            opened, named["format"] = str(device), "v4l2"
            named["timeout"] = self._timeout
            del options["format_whitelist"]
        else:
            opened, waits = open_growing(source, self._timeout, lambda: self._stopped), True
        try:
            return av.open(opened, options=options, metadata_errors="replace", **named), waits
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, av.error.ExitError):
                raise InputError(f"{self.name}: nothing came for {self._timeout:g} s: is something sent?") from None
            unfinished = getattr(opened, "start", b"")[4:] in FIRST_BOXES
            raise InputError(f"{self.name}: no readable video ({reason(error)}){_UNFINISHED * unfinished}") from None

    def _run(self) -> None:
        """Open the source and take packets as they come, in a thread of its own: an interrupt does not wait for it."""
        try:
            self._container, waits = self._open(self._source)
            # Where nothing is dropped, all that waits is a recording.
            self._recording = False if not waits else True if self._latency is None else None
            self._choose(self._container)
            self._take(self._container)
        except Exception as error:  # who reads the frames is told
            self._error = error
        finally:
            with self._changed:
                self._packets.append((None, time.monotonic()))
                self._finished = True
                self._changed.notify_all()
                if self._stopped:
                    self._release()

    def _choose(self, container: av.container.InputContainer) -> None:
        """The stream that players show."""
        try:
            self._stream = video_streams(self.name, container)[0]
        except InputError as error:
            unfinished = "mp4" in container.format.name
            raise InputError(f"{error}{_UNFINISHED * unfinished}") from None
        self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self._stream.thread_count = 1
        # Frames may be looked at when the source is closed, and with it what it says of itself.
        self._unit = float(self._stream.time_base or 1)
        self._pixel_shape = float(self._stream.sample_aspect_ratio or 1)

    def _take(self, container: av.container.InputContainer) -> None:
        held = False
        for packet in container.demux(self._stream):
            now = time.monotonic()
            with self._changed:
                if packet.size:
                    if packet.pts is not None:
                        self._lag.note(self._since_first(self._seconds(packet.pts)), now, held)
                    self._packets.append((packet, now))
                    if packet.is_keyframe and not self._asked and self._too_old(*self._packets[0]):
                        self._skip_to_key()  # so that no more waits for the first frame to be asked for than is needed
                    self._changed.notify_all()
                if self._recording is None and packet.pts is not None:
                    self._recording = self._pours(self._since_first(self._seconds(packet.pts)), now)
                # A pipe or a file keeps what is not taken, so that a recording is not swallowed at once.
                held = False
                while self._recording and not self._stopped and self._is_ahead():
                    held = True
                    self._changed.wait(0.05)
                if self._stopped:
                    return

    def _release(self) -> None:
        if self._container is not None:
            self._container.close()

    def _since_first(self, seconds: float) -> float:
        if self._first is None:
            self._first = seconds
        return seconds - self._first

    def _pours(self, seconds: float, now: float) -> bool | None:
        """Whether a source gives a recording rather than what just happens; None while that is not known."""
        self._began = now if self._began is None else self._began
        passed = now - self._began
        if self._early is None and passed > _LOOK / 3:
            self._early = seconds, passed  # what waited in the pipe has come
        fast = self._early is not None and seconds - self._early[0] > _FAST * (passed - self._early[1])
        if seconds - passed > _POURED or (passed > _LOOK and fast):
            self._begin_anew(now)
            return True
        return False if passed > _LOOK else None

    def _begin_anew(self, now: float) -> None:
        """Take what waits of a recording as if it came now: none of it is late."""
        self._lag = Lag()
        self._packets = deque((packet, now) for packet, _ in self._packets)
        if self._packets and self._packets[0][0] is not None:
            self._lag.note(self._since_first(self._seconds(self._packets[0][0].pts or 0)), now)

    def _is_unknown(self) -> bool:
        """Whether it will soon be known how old frames are: what waited in a pipe before we came is read at once."""
        if self._latency is None or self._recording is not None or self._finished:
            return False
        return self._began is None or time.monotonic() - self._began <= _LOOK

    def _is_ahead(self) -> bool:
        """Whether what waits came faster than it is shown; where nothing is dropped, whether much waits."""
        times = [packet.pts for packet, _ in self._packets if packet and packet.pts is not None]
        if not times:
            return False
        waiting = self._seconds(max(times) - min(times))
        shown = self._asked and self._latency is not None
        passed = time.monotonic() - self._packets[0][1] if shown else 0.0
        return waiting - passed > (self._latency or 1.0) / 2

    def _seconds(self, time: int) -> float:
        """A time in the stream's unit."""
        return time * self._unit

    # ---- what is given ----

    def __iter__(self) -> Iterator[LiveFrame]:
        """The frames as they come.

        Raises:
            InputError: no such source, or no video in it.
            LostSourceError: a camera or an address gives nothing any more.
        """
        import av

        self._start()
        with self._changed:
            self._asked = True
            if self._recording:
                self._begin_anew(time.monotonic())
        late = False
        while True:
            with self._changed:
                while not self._packets or self._is_unknown():
                    self._away = 0.0  # all that came is given
                    self._changed.wait(0.1)  # so that an interrupt is noticed
                packet, arrived = self._packets.popleft()
                self._changed.notify_all()
                if packet is not None:
                    late = self._too_old(packet, arrived)
                    if late:
                        self._skip_to_key()
            if packet is None:
                self._ended()
            try:
                frames: Any = self._stream.codec_context.decode(packet)
            except av.FFmpegError:
                frames = ()  # of what is lost on the way a decoder can make nothing
            for frame in frames:
                if late:
                    self.dropped += 1
                    continue
                check_size(Path(self.name), frame.width, frame.height)
                seconds = arrived if frame.pts is None else self._seconds(frame.pts)
                self.seen += 1
                given = time.monotonic()
                yield LiveFrame(self._since_first(seconds), self, frame)
                self._away = max(self._away, time.monotonic() - given)
            if packet is None:
                return

    def _too_old(self, packet: av.Packet | None, arrived: float) -> bool:
        """Whether decoding does not keep up; what waits after a single long absence of who reads is soon decoded."""
        if packet is None or self._latency is None or self._recording is None:
            return False
        now = time.monotonic()
        age = now - arrived
        if packet.pts is not None:
            age = self._lag.age(self._since_first(self._seconds(packet.pts)), now)
        return age > self._latency + self._away

    def _skip_to_key(self) -> None:
        """Drop what is waiting before the last key frame that is: nothing after it refers to that."""
        keys = [place for place, (packet, _) in enumerate(self._packets) if packet and packet.is_keyframe]
        for _ in range(keys[-1] if keys else 0):
            self._packets.popleft()
            self.dropped += 1

    def _ended(self) -> None:
        """Raise what has gone wrong, unless the source has come to its end."""
        import av

        error = self._error
        if error is None or isinstance(error, av.error.EOFError) or self._stopped:
            return
        if not isinstance(error, (av.FFmpegError, OSError)):
            raise error
        if isinstance(error, av.error.ExitError):
            raise LostSourceError(f"{self.name}: lost: nothing came for {self._timeout:g} s")
        raise LostSourceError(f"{self.name}: lost: {reason(error)}")

    def _upright(self, frame: av.VideoFrame) -> np.ndarray:
        """(3, H, W) of a frame as it is shown, in the size of the first."""
        self._size = self._size or (frame.width, frame.height)
        width, height = displayed_size(*self._size, self._pixel_shape)
        check_size(Path(self.name), width, height)
        return self._shown(frame, width, height)

    def close(self) -> None:
        """Release the source: at once, or when its thread has ended after the next packet or the timeout."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            if self._finished:
                self._release()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="m2clip live video", daemon=True).start()

    def __enter__(self) -> LiveVideo:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
