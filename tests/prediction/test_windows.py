"""Windows over long videos, against clips that are cut by hand."""

from __future__ import annotations

import csv
import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import m2clip
from m2clip.data.memory import LoadedVideo
from m2clip.data.transforms import EvalTransform
from m2clip.data.video.pyav import PyAVVideo
from m2clip.errors import InputError
from m2clip.methods.views import default_settings
from m2clip.prediction import windows as under_test
from m2clip.prediction.segments import Segment
from m2clip.prediction.timeline import Timeline, clock, segments_csv
from tests.data.video_files import write_video
from tests.fake_model import random_tiny_clip

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
SCENES = [("red", 2.0), ("green", 2.5), ("red", 1.5), ("blue", 3.0)]  # name, seconds


class ColourModel(torch.nn.Module):
    """Names the colour of a clip; its similarities are the mean of its channels, twenty-fold."""

    method, prompt, num_frames, image_size = "colour", "{}", 4, (8, 8)
    class_names = list(COLOURS)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(20.0))
        self.seen: list[torch.Tensor] = []

    def with_class_names(self, names):
        return self

    def forward(self, video: torch.Tensor):
        from types import SimpleNamespace

        self.seen.append(video)
        return SimpleNamespace(logits=None, similarity=self.weight * video.mean((1, 3, 4)))


def scenes(path: Path, moments: list[float], rate: int) -> Path:
    """A video whose frames, shown at these moments in seconds, have the colour of their scene."""
    edges = np.cumsum([seconds for _, seconds in SCENES])
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=rate, options={"crf": "10", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 600)
        for moment in moments:
            colour = COLOURS[SCENES[int(np.searchsorted(edges, moment, side="right"))][0]]
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), colour, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(moment * 600), Fraction(1, 600)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def steady(rate: int) -> list[float]:
    return [number / rate for number in range(9 * rate)]


def found(timeline: Timeline) -> list[tuple[str, float, float]]:
    return [(name, round(start, 3), round(end, 3)) for start, end, name, _ in timeline.rows()]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes(tmp_path_factory.mktemp("videos") / "30.mp4", steady(30), 30)


def test_scenes_are_found_within_a_step(video: Path) -> None:
    timeline = m2clip.predict(ColourModel(), video, window=1.0, step=0.25)
    assert timeline.duration == pytest.approx(9.0)
    edges = np.cumsum([0.0, *(seconds for _, seconds in SCENES)])
    assert [name for name, _, _ in found(timeline)] == [name for name, _ in SCENES]
    for number, (_, start, end) in enumerate(found(timeline)):
        assert abs(start - edges[number]) <= 0.25 and abs(end - edges[number + 1]) <= 0.25
    assert all(score > 0.9 for _, _, _, score in timeline.rows())


def test_frame_rates_agree(video: Path, tmp_path: Path) -> None:
    expected = found(m2clip.predict(ColourModel(), video, window=1.0, step=0.25))
    assert (
        found(m2clip.predict(ColourModel(), scenes(tmp_path / "60.mp4", steady(60), 60), window=1.0, step=0.25))
        == expected
    )
    # Of a variable rate: many frames in the first scene, few in the last, so that indices say nothing of the time.
    moments = [*np.arange(0, 2, 1 / 60), *np.arange(2, 6, 1 / 20), *np.arange(6, 9, 1 / 10)]
    variable = m2clip.predict(ColourModel(), scenes(tmp_path / "variable.mp4", moments, 60), window=1.0, step=0.25)
    # The last frame counts as long as the mean one, so that the video is some hundredths of a second shorter.
    assert [name for name, _, _ in found(variable)] == [name for name, _, _ in expected]
    given = [edge for _, *edges in found(variable) for edge in edges]
    assert given == pytest.approx([edge for _, *edges in expected for edge in edges], abs=0.1)


def test_a_window_has_the_frames_of_its_moments(tmp_path: Path) -> None:
    # 25 frames per second; a window of 0.8 s has a frame from the middle of each fifth of a second.
    path = write_video(tmp_path / "numbers.mp4", 40)
    model = ColourModel()
    m2clip.predict(model, path, window=0.8, step=0.4)
    with PyAVVideo(path) as opened:
        # Windows start at 0, 0.4 and 0.8 s: moments 0.1, 0.3, 0.5, 0.7 s later are frames 2, 7, 12, 17 and 10 more.
        transform = EvalTransform(default_settings(model).of_frames)
        expected = [transform(opened.read([first + 2, first + 7, first + 12, first + 17]))[0] for first in (0, 10, 20)]
    assert torch.equal(torch.cat(model.seen), torch.stack(expected))


def test_crops_of_a_window_are_averaged(video: Path) -> None:
    model = ColourModel()
    timeline = m2clip.predict(model, video, window=2.0, step=2.0, crops=3)
    # Windows start at 0, 2, 4, 6 and, with the end of the video, at 7 s.
    assert sum(len(batch) for batch in model.seen) == 3 * 5
    assert timeline.scores.sum(1) == pytest.approx(np.ones(5))


def test_frames_are_decoded_and_resized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scenes(tmp_path / "long.mp4", steady(30), 30)
    calls, resized, waiting = [], [], []
    each, cut = PyAVVideo._each_sorted, EvalTransform.cut
    monkeypatch.setattr(PyAVVideo, "_each_sorted", lambda self, indices: calls.append(indices) or each(self, indices))
    monkeypatch.setattr(EvalTransform, "cut", lambda self, frames: resized.append(len(frames)) or cut(self, frames))
    views = under_test._window_views

    def watched(video, indices, settings):
        made = views(video, indices, settings)
        for one in made:
            waiting.append(len(made.gi_frame.f_locals["waiting"]))
            yield one

    monkeypatch.setattr(under_test, "_window_views", watched)
    m2clip.predict(ColourModel(), path, window=1.0, step=0.25)
    (wanted,) = calls
    assert len(wanted) == len(set(wanted)) == sum(resized)
    # Four frames of a window and, as resizing takes up to eight at once, no more than those of the next.
    assert len(waiting) == 33 and max(waiting) <= 5


def test_frames_that_come_again_replace_the_first(video: Path) -> None:
    from m2clip.data.video.readers import open_video

    with open_video(video) as opened:
        wrong, right = np.zeros((3, 16, 32), np.uint8), dict(opened.each(range(270)))

        class Restarted:
            def each(self, indices):
                yield from ((index, wrong) for index in indices[:20])
                yield from ((index, right[index]) for index in indices)

        indices = np.array([[0, 2, 4, 6], [2, 4, 6, 8], [30, 32, 34, 36]])
        found = dict(under_test._window_views(Restarted(), indices, default_settings(ColourModel())))
        again = dict(under_test._window_views(opened, indices, default_settings(ColourModel())))
    assert found.keys() == again.keys() == {0, 1, 2}
    assert all(torch.equal(found[number], again[number]) for number in found)


def test_arrays_need_a_rate(video: Path) -> None:
    frames, seconds = m2clip.load_video(video)
    expected = found(m2clip.predict(ColourModel(), video, window=1.0, step=0.25))
    assert found(m2clip.predict(ColourModel(), LoadedVideo(frames, seconds), window=1.0, step=0.25)) == expected
    assert found(m2clip.predict(ColourModel(), frames, window=1.0, step=0.25, fps=30)) == expected
    with pytest.raises(InputError, match="frames: its frames have no times"):
        m2clip.predict(ColourModel(), frames, window=1.0)
    with pytest.raises(InputError, match="no times"):
        m2clip.predict(ColourModel(), frames[:1], window=1.0, fps=30)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"stride": 2}, "'stride' says nothing of windows"),
        ({"step": 2.0}, "the step must be"),
        ({"step": "1"}, "windows and steps are numbers of seconds, not '1'"),
        ({"threshold": 0.2, "low": 0.3}, "0 < low <= high"),
        ({"min_length": -1}, "0 s or more"),
    ],
)
def test_impossible_windows_are_one_line(video: Path, named: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        m2clip.predict(ColourModel(), video, window=1.0, **named)


def test_the_model_itself_scores_windows(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 40)
    model = m2clip.create_model("clip", random_tiny_clip(), class_names=["a", "b"], num_frames=4).eval()
    done: list[tuple[float, float]] = []
    timelines = m2clip.predict(model, [path], ["c", "d", "e"], window=0.8, progress=lambda *now: done.append(now))
    whole = m2clip.predict(model, m2clip.load_video(path, end=0.8), ["c", "d", "e"])
    assert timelines[0].class_names == ["c", "d", "e"]
    # A window of 0.8 s and a video of 0.8 s differ in the frames that they have of each fifth.
    assert timelines[0].scores[0] == pytest.approx([dict(whole.ranked)[name] for name in "cde"], abs=0.05)
    assert done[-1] == pytest.approx((1.6, 1.6))


def timeline() -> Timeline:
    segments = [Segment(0.0, 2.25, 0, 0.912), Segment(3605.5, 3611.04, 1, 0.5)]
    middles = np.arange(10) * 361.0
    return Timeline(
        path="videos/a.mp4",
        head="zero-shot",
        class_names=["a, b", "<c>"],
        duration=3611.04,
        windows=np.stack([middles - 1, middles + 1], 1),
        scores=np.random.default_rng(0).dirichlet([1, 1], 10).astype(np.float32),
        segments=segments,
        frames=torch.zeros(3, 3, 16, 16, dtype=torch.uint8),
        frame_seconds=[10.0, 1800.0, 3600.0],
    )


def test_a_timeline_is_written_in_all_forms(tmp_path: Path) -> None:
    one = timeline()
    assert json.loads(json.dumps(one.to_dict()))["segments"][0] == {
        "start": 0.0,
        "end": 2.25,
        "name": "a, b",
        "score": 0.912,
    }
    rows = list(csv.reader(io.StringIO(segments_csv([one, one]))))
    assert rows[0] == ["path", "start", "end", "class", "score"] and len(rows) == 5
    assert rows[2] == ["videos/a.mp4", "3605.500", "3611.040", "<c>", "0.500000"]
    assert one.to_srt() == (
        "1\n00:00:00,000 --> 00:00:02,250\na, b (91 %)\n\n2\n01:00:05,500 --> 01:00:11,040\n<c> (50 %)\n"
    )
    assert repr(one).splitlines() == [
        "Timeline of videos/a.mp4 (zero-shot, 1:00:11.0)",
        "  0:00.0 - 0:02.2   91.20 %  a, b",
        "  1:00:05.5 - 1:00:11.0   50.00 %  <c>",
    ]
    text = one._repr_html_()
    assert "&lt;c&gt;" in text and text.count('src="data:image/png;base64,') == 1
    with Image.open(one.plot(tmp_path / "timeline.png")) as picture:
        assert picture.width > 1000 and picture.height > 200


def test_times_are_told_as_clocks_do() -> None:
    assert [clock(seconds) for seconds in (0, 59.96, 61.25, 3600)] == ["0:00.0", "1:00.0", "1:01.2", "1:00:00.0"]
