"""Rolling clips of frames that come one after the other, against windows of the same frames in a file."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import m2clip
from m2clip.data.video.readers import open_video
from m2clip.errors import InputError
from m2clip.methods.views import default_settings
from m2clip.prediction.streams import RollingClip
from m2clip.prediction.windows import WindowSettings
from tests.data.video_files import irregular_times, write_video
from tests.fake_model import random_tiny_clip

NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def model() -> m2clip.methods.VideoModel:
    return m2clip.create_model("clip", random_tiny_clip(), class_names=NAMES, num_frames=4).eval()


@pytest.fixture(scope="module", params=["steady", "variable"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    times = irregular_times(60) if request.param == "variable" else None
    return write_video(tmp_path_factory.mktemp("videos") / f"{request.param}.mp4", 60, times=times)


@pytest.mark.parametrize("step", [0.2, 0.3, 0.8])
def test_results_are_those_of_windows_of_the_file(model, path: Path, step: float) -> None:
    frames, seconds = m2clip.load_video(path)
    pairs = zip(seconds.tolist(), frames, strict=True)
    found = list(m2clip.stream(model, pairs, window=0.8, step=step, smoothing=0))
    timeline = m2clip.predict(model, path, window=0.8, step=step)
    assert len(found) >= 2
    for one in found:
        # Of frames that are far apart the last window of several counts.
        window = int(np.abs(timeline.windows[:, 1] - one.seconds).argmin())
        assert timeline.windows[window, 1] == pytest.approx(one.seconds)
        scores = dict(one.ranked)
        assert timeline.scores[window] == pytest.approx([scores[name] for name in NAMES], abs=1e-6)


def test_only_the_frames_of_windows_are_converted(path: Path, model) -> None:
    windows = WindowSettings(0.8, 0.2)
    clip = RollingClip(windows, default_settings(model))
    with open_video(path) as opened:
        times = opened.seconds(range(60))
        converted = []

        def pixels(index: int) -> np.ndarray:
            converted.append(index)
            return opened.read([index])[0].numpy()

        ends = [clip.add(seconds, lambda index=index: pixels(index)) for index, seconds in enumerate(times)]
    # The middles of the quarters of 0.8 s, at any step, are at 0.1, 0.3, 0.5 ... s.
    moments = np.arange(0.1, times[-1] - 1e-6, 0.2)
    assert converted == sorted(set((np.searchsorted(times, moments + 1e-6, side="right") - 1).tolist()))
    assert [round(end, 6) for end in ends if end is not None][0] == 0.8
    assert len(clip._kept) <= 5


def test_frames_are_smoothed_over_time(model) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    plain = [dict(one.ranked) for one in m2clip.stream(model, frames, window=1, step=0.5, fps=10, smoothing=0)]
    smooth = [dict(one.ranked) for one in m2clip.stream(model, frames, window=1, step=0.5, fps=10, smoothing=2)]
    assert len(plain) == 4 and smooth[0] == plain[0]
    kept, expected = math.exp(-0.5 / 2), plain[0]
    for given, new in zip(smooth[1:], plain[1:], strict=True):
        expected = {name: kept * expected[name] + (1 - kept) * new[name] for name in NAMES}
        assert given == pytest.approx(expected)


def test_labels_and_number_of_classes(model) -> None:
    frames = np.zeros((20, 16, 16, 3), np.float32)
    (first, *_) = m2clip.stream(model, frames, ["x", "y"], window=1, fps=10, top=1)
    assert {name for name, _ in first.ranked} == {"x", "y"}
    assert first.seconds == pytest.approx(1.0) and first.latency is None
    assert first.label == first.ranked[0][0] and first.score == first.ranked[0][1]
    assert len(first.to_dict()["predictions"]) == 1 and first.label in repr(first)
    assert model.class_names == NAMES


def test_without_times_frames_come_when_they_come(model, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("m2clip.prediction.streams.time", SimpleNamespace(monotonic=lambda: clock.now))

    def frames():
        for _ in range(20):
            yield np.zeros((8, 8, 3), np.uint8)
            clock.now += 0.25

    ends = [one.seconds for one in m2clip.stream(model, frames(), window=1, step=0.5)]
    assert ends == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5])


def test_a_source_that_begins_anew(model) -> None:
    frame = np.zeros((8, 8, 3), np.uint8)
    times = [*np.arange(0, 2.05, 0.1), *np.arange(0, 1.25, 0.1)]
    ends = [one.seconds for one in m2clip.stream(model, [(at, frame) for at in times], window=1, step=0.5)]
    # It goes on a step after the last frame, at 2.5 s, and has a whole window a second later.
    assert ends == pytest.approx([1.0, 1.5, 2.0, 3.5])
    # So it does after an absence; a frame that comes twice, or late, is passed over.
    times = [0, 0.5, 0.5, 0.4, 1.0, 100.0, 100.5, 101.0]
    ends = [one.seconds for one in m2clip.stream(model, [(at, frame) for at in times], window=1, step=0.5)]
    assert ends == pytest.approx([1.0, 2.5])


class Aged:
    """A frame of which the time and the age are known."""

    pixels = staticmethod(lambda: np.zeros((3, 8, 8), np.uint8))

    def __init__(self, seconds: float, age: float) -> None:
        self.seconds, self._age = seconds, age

    def age(self) -> float:
        return self._age


@pytest.fixture
def aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames may be `Aged`, and the model takes no time."""
    monkeypatch.setattr("m2clip.prediction.streams.LiveFrame", Aged)
    monkeypatch.setattr("m2clip.prediction.streams.time", SimpleNamespace(monotonic=lambda: 0.0))


def test_results_that_would_be_late_are_left_out(model, aged: None) -> None:
    ages = [0.0, 0.0, 0.1, 0.9, 0.6, 0.1]  # the model takes no time
    frames = [Aged(number / 2, age) for number, age in enumerate(ages)]
    found = list(m2clip.stream(model, frames, window=1, step=0.5, latency=0.5))
    assert [(one.seconds, one.skipped, one.latency) for one in found] == [(1.0, 0, 0.1), (2.5, 2, 0.1)]
    assert len(list(m2clip.stream(model, frames, window=1, step=0.5))) == 4


def test_late_results_come_where_nothing_fresher_can_be_had(model, aged: None) -> None:
    frames = [Aged(number / 2, 0.4) for number in range(12)]
    found = list(m2clip.stream(model, frames, window=1, step=0.5, latency=0.3))
    # One step shows that the age does not fall.
    assert [(one.seconds, one.skipped) for one in found] == [(1.5, 1), (2.5, 1), (3.5, 1), (4.5, 1), (5.5, 1)]


@pytest.mark.parametrize(
    ("frames", "named", "said"),
    [
        ([], {"smoothing": -1}, "smoothing must be 0 s or more"),
        ([], {"fps": 0}, "fps must be above 0"),
        ([], {"window": 1, "step": 2}, "the step must be"),
        ([], {"clips": 2}, "'clips' says nothing of windows"),
        ([(1.0, 2, 3)], {}, "not as 3 values"),
        ([np.zeros((8, 8), np.uint8)], {}, r"must be \(T, H, W, 3\)"),
        ([np.full((8, 8, 3), 2.0)], {}, "must be in 0 ... 1"),
    ],
)
def test_bad_requests_are_one_line(model, frames: list, named: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        list(m2clip.stream(model, frames, **named))
    assert "\n" not in str(caught.value)
