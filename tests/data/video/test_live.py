"""Video that is still coming, from files, pipes and addresses on this machine."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import m2clip
from m2clip.data.lists.annotations import load_annotations
from m2clip.data.video import live
from m2clip.data.video.live import Lag, LiveVideo
from m2clip.data.video.readers import VideoError, open_video
from m2clip.errors import InputError, LostSourceError
from tests.data.video_files import B_FRAMES, irregular_times, read_code, write_rotated, write_video


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty frames at 25 a second, the last frames of which a decoder gives only when it is flushed."""
    return write_video(tmp_path_factory.mktemp("live") / "film.ts", options=B_FRAMES)


def old(path: Path) -> Path:
    """The file, written long ago, so that nobody waits for more of it."""
    os.utime(path, (0, 0))
    return path


def codes(video: LiveVideo) -> list[int]:
    with video:
        return [read_code(torch.from_numpy(frame.pixels().copy())) for frame in video]


def test_age_is_counted_from_the_frame_that_came_earliest() -> None:
    lag = Lag()
    lag.note(0.0, 100.0)  # comes 100 s after its time, as the clock started elsewhere
    assert lag.age(0.0, 100.25) == pytest.approx(0.25)
    lag.note(0.5, 100.3)  # 0.2 s earlier for its time: what came before was late by that
    assert lag.age(0.5, 100.3) == pytest.approx(0, abs=0.002)
    assert lag.age(0.0, 100.3) == pytest.approx(0.5, abs=0.002)
    lag.note(0.9, 101.2)  # 0.5 s later than the earliest
    assert lag.age(0.9, 101.2) == pytest.approx(0.5, abs=0.002)


def test_a_source_that_pauses_begins_anew_unless_it_waited_for_us() -> None:
    for held, age in ((False, 0.0), (True, 10.0)):
        lag = Lag()
        lag.note(0.0, 100.0)
        lag.note(0.1, 110.1, held)
        assert lag.age(0.1, 110.1) == pytest.approx(age, abs=0.02)


def test_clocks_may_differ() -> None:
    # A sender whose hour is a second longer than ours: without a correction its frames would be a second old by then.
    lag = Lag()
    for second in range(3601):
        lag.note(float(second), second * (1 + 1 / 3600))
    assert lag.age(3600.0, 3601.0) < 0.01


@pytest.mark.parametrize("name", ["film.ts", "film.mkv", "film.mp4"])
def test_a_file_gives_all_its_frames(tmp_path: Path, name: str) -> None:
    path = old(write_video(tmp_path / name, options=B_FRAMES))
    video = LiveVideo(str(path), latency=None)
    with video:
        frames = [(frame.seconds, frame.pixels().copy()) for frame in video]
    with open_video(path) as expected:
        assert torch.equal(torch.stack([torch.from_numpy(pixels) for _, pixels in frames]), expected.read(range(40)))
        assert [seconds for seconds, _ in frames] == pytest.approx(expected.seconds(range(40)), abs=1e-3)
    assert (video.seen, video.dropped) == (40, 0)


def test_frames_are_shown_as_players_do(tmp_path: Path) -> None:
    path = old(write_rotated(tmp_path / "turned.mp4", write_video(tmp_path / "plain.mp4"), 90))
    with LiveVideo(str(path)) as video, open_video(path) as expected:
        first = next(iter(video)).pixels()
        assert torch.equal(torch.from_numpy(first.copy()), expected.read([0])[0])


def test_times_of_a_variable_rate(tmp_path: Path) -> None:
    path = old(write_video(tmp_path / "variable.mkv", 10, times=irregular_times(10)))
    with LiveVideo(str(path), latency=None) as video:
        assert [frame.seconds for frame in video] == pytest.approx([t / 100 for t in irregular_times(10)], abs=1e-3)


def test_a_file_that_grows(film: Path, tmp_path: Path) -> None:
    data, path = film.read_bytes(), tmp_path / "growing.ts"
    path.write_bytes(data[: len(data) // 2])

    def write() -> None:
        with path.open("ab") as file:
            for start in range(len(data) // 2, len(data), 5000):
                time.sleep(0.05)
                file.write(data[start : start + 5000])
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    assert codes(LiveVideo(str(path), latency=None, timeout=2)) == list(range(40))
    writer.join()


@pytest.fixture
def pipe(film: Path, tmp_path: Path) -> Iterator[Path]:
    """A named pipe into which the film is written."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(film.read_bytes()), daemon=True)
    writer.start()
    yield path
    writer.join(10)


def test_a_pipe_waits_for_who_reads_it(pipe: Path) -> None:
    assert codes(LiveVideo(str(pipe), latency=5)) == list(range(40))


def test_frames_that_are_too_old_are_dropped(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(LiveVideo, "_pours", lambda *_: False)  # as of an address
    shown = []
    with LiveVideo(str(pipe), latency=2) as video:
        for frame in video:
            while not video._finished:
                time.sleep(0.01)
            shown.append(read_code(torch.from_numpy(frame.pixels().copy())))
            clock.now += 6  # for each frame, of which there are 25 in a second: it cannot be kept up with
    # After one absence of 6 s frames of 2 + 6 s are not yet too old; after the next they are older.
    assert shown == [0, 1]
    assert (video.seen, video.dropped) == (2, 38)


def test_one_long_absence_drops_nothing(pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock.now))
    ages = []
    with LiveVideo(str(pipe), latency=0.5) as video:
        for frame in video:
            ages.append(frame.age())
            if len(ages) == 10:
                clock.now += 60
    assert (video.seen, video.dropped) == (40, 0)
    assert max(ages[:10]) <= 2 and min(ages[10:]) >= 58


@pytest.mark.parametrize(("recording", "seen"), [(True, 40), (False, 0)])
def test_what_came_while_a_model_was_loaded(
    recording: bool, seen: int, pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(LiveVideo, "_pours", lambda *_: recording)
    with LiveVideo(str(pipe), latency=2) as video:
        while not (video._packets if recording else video._finished):
            time.sleep(0.01)
        clock.now += 60
        ages = [frame.age() for frame in video]
    assert (video.seen, video.dropped) == (seen, 40 - seen)
    assert max(ages, default=0) <= 2


@pytest.mark.parametrize(
    ("came", "recording"),
    [
        # Seconds of video that had come after seconds of time.
        ([(0.0, 0.0), (12.0, 0.1)], True),
        ([(0.0, 0.0), (5.0, 0.2), (6.0, 0.6), (8.0, 1.0), (10.0, 1.6)], True),  # 4 s in the last second
        ([(0.0, 0.0), (5.0, 0.2), (5.4, 0.6), (5.8, 1.0), (6.4, 1.6)], False),  # 5 s had waited
        ([(0.0, 0.0), (0.4, 0.4), (0.9, 0.9), (1.6, 1.6)], False),
        ([(0.0, 0.0), (0.9, 0.9), (1.4, 1.4)], None),
    ],
)
def test_what_a_pipe_gives_is_known_by_its_speed(came: list[tuple[float, float]], recording: bool | None) -> None:
    video = LiveVideo("-")
    assert [video._pours(seconds, 100 + passed) for seconds, passed in came] == [None] * (len(came) - 1) + [recording]


def test_of_a_recording_nothing_is_dropped(tmp_path: Path) -> None:
    # Fifteen seconds of video that come at once, of which a second is read ahead: none is late.
    path = old(write_video(tmp_path / "film.ts", 150, times=range(0, 1500, 10)))
    ages = []
    with LiveVideo(str(path), latency=1) as video:
        for frame in video:
            ages.append(frame.age())
    assert (video.seen, video.dropped) == (150, 0)
    assert video._recording is True


def test_an_early_end_is_one(pipe: Path) -> None:
    with LiveVideo(str(pipe), latency=None) as video:
        for _ in video:
            break
    taken = [thread for thread in threading.enumerate() if thread.name == "m2clip live video"]
    for thread in taken:
        thread.join(10)
        assert not thread.is_alive()


class Web:
    """A server that counts who asks; /film.ts is the film, /list.m3u8 a playlist that names it."""

    def __init__(self, film: Path) -> None:
        asked = self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfilm.ts\n#EXT-X-ENDLIST\n"
                body = film.read_bytes() if self.path == "/film.ts" else playlist
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def web(film: Path) -> Iterator[Web]:
    made = Web(film)
    yield made
    made.server.shutdown()


def test_an_address_is_opened_here(web: Web) -> None:
    assert codes(LiveVideo(f"{web.address}/film.ts", latency=None)) == list(range(40))
    assert web.asked


def test_an_address_is_opened_nowhere_else(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{web.address}/film.ts"
    monkeypatch.chdir(tmp_path)
    for reader in ("auto", "pyav"):
        with pytest.raises(VideoError, match="no such file"):
            open_video(address, reader)
    with pytest.raises(InputError):
        m2clip.load_video(address)
    Path("list.txt").write_text(f"{address} 0\n")
    (item,) = load_annotations("list.txt").items
    with pytest.raises(VideoError):
        open_video(item.path)
    # Nor by a file that is the playlist of addresses.
    for name in ("list.m3u8", "film.mp4"):
        Path(name).write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{address}\n#EXT-X-ENDLIST\n")
        for open_it in (open_video, lambda path: list(LiveVideo(path))):
            os.utime(name, (0, 0))
            with pytest.raises(InputError):
                open_it(name)
    assert web.asked == []


def test_playlists_are_not_followed(web: Web) -> None:
    with pytest.raises(InputError, match="no readable video"):
        list(LiveVideo(f"{web.address}/list.m3u8"))
    assert "/film.ts" not in web.asked


def test_an_address_that_sends_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match="nothing came for 0.5 s"):
        list(LiveVideo(f"udp://127.0.0.1:{port}", timeout=0.5))


def test_an_address_that_sends_nothing_any_more(film: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send() -> None:
            connection, _ = server.accept()
            connection.sendall(film.read_bytes())
            ended.wait(20)
            connection.close()

        ended = threading.Event()
        threading.Thread(target=send, daemon=True).start()
        with LiveVideo(f"tcp://127.0.0.1:{server.getsockname()[1]}", latency=None, timeout=1) as video:
            frames = iter(video)
            with pytest.raises(LostSourceError, match="lost: nothing came for 1 s"):
                for _ in frames:
                    pass
        ended.set()
        assert video.seen >= 30


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("absent.ts", "No such file"),
        ("99", "/dev/video99: no such camera"),
        ("/dev/video99", "no such camera"),
        ("file:///etc/passwd", "of addresses only rtsp, rtsps, rtp, udp, tcp, http, https are opened"),
        ("concat://a|b", "of addresses only"),
        ("/dev/null", "neither a pipe nor a file"),
        (".", "neither a pipe nor a file"),
        ("a\0b", "no such file"),
    ],
)
def test_sources_that_are_none(source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        list(LiveVideo(source))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_video(tmp_path: Path) -> None:
    text = tmp_path / "a.mp4"
    text.write_text("nothing to see")
    with pytest.raises(InputError, match=r"no readable video \([^;]*$"):
        list(LiveVideo(str(old(text))))
    # An mp4 that is being recorded has its table of contents still to come, or is amid writing it.
    whole = write_video(tmp_path / "whole.mp4").read_bytes()
    contents = whole.rindex(b"moov")
    for end in (64, contents - 20, contents + 60):
        half = tmp_path / f"{end}.mp4"
        half.write_bytes(whole[:end])
        with pytest.raises(InputError, match="record mkv, ts or fragmented mp4"):
            list(LiveVideo(str(old(half))))
