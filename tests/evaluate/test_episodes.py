"""Scoring by episodes: accuracies known beforehand, unreadable videos, kept features, several processes."""

from __future__ import annotations

import copy
import json
import math
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import m2clip
from m2clip import distributed
from m2clip.config_fields import EvalConfig
from m2clip.data.clips import ClipSettings
from m2clip.data.episode_clips import EpisodeVideos
from m2clip.data.episodes import EpisodeShape, draw_episodes
from m2clip.data.lists.annotations import Annotations, VideoItem, load_annotations
from m2clip.errors import InputError
from m2clip.evaluate import episode_features
from m2clip.evaluate.episode_results import Accuracy, EpisodeResult, accuracy, by_shots
from m2clip.evaluate.episodes import FrameMatching, evaluate_episodes
from m2clip.matching import frame_distances, otam
from tests.clips import randomise
from tests.train.training_run import CLASS_NAMES, SIZE, build_clip, write_videos

FRAMES, DIM = 2, 3 * 4 * 4


class Copied(nn.Module):
    """A video model whose frame features are the pixels of 4x4 frames, and class c's text is the c-th unit vector."""

    method, prompt, num_frames, image_size, precision = "copied", "a {}", FRAMES, (4, 4), "fp32"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.class_names = ["something else"]
        self.counts: list[int] = []

    def with_class_names(self, names: list[str] | None) -> Copied:
        twin = copy.copy(self)
        twin.class_names = self.class_names if names is None else list(names)
        return twin

    @property
    def read(self) -> int:
        return sum(self.counts)

    def options(self) -> dict[str, Any]:
        return {}

    def forward(self, video: Tensor) -> Any:
        assert not self.training and not torch.is_grad_enabled()
        self.counts.append(len(video))
        return SimpleNamespace(frame_features=video.flatten(2) * self.scale)

    def text_features(self) -> Tensor:
        return torch.eye(DIM)[: len(self.class_names)]


class Answering(Copied):
    """The same with an answer of its own: class texts, and support videos that hold the number of their class."""

    def encode_query(self, video: Tensor) -> Tensor:
        return self(video).frame_features

    def encode_support(self, video: Tensor, labels: Tensor) -> Tensor:
        return self(video).frame_features * 0 + torch.eye(DIM)[labels][:, None]

    def score(self, support: Tensor, query: Tensor, text: Tensor) -> Any:
        assert torch.equal(support.mean(dim=(2, 3)), text)
        distances = otam(frame_distances(query, support.mean(dim=2)))
        return SimpleNamespace(probabilities=distances.softmax(-1), distances=distances, text_logits=-distances)


class HandMade(EpisodeVideos):
    """Videos (N, T, DIM) of given labels; those in `broken` cannot be read."""

    def __init__(self, features: Tensor, labels: list[int], broken: tuple[int, ...] = (), root: str = "v") -> None:
        items = tuple(VideoItem(Path(f"{root}/{index}.mp4"), label) for index, label in enumerate(labels))
        names = [f"class {c}" for c in range(max(labels) + 1)]
        annotations = Annotations(items, names, "list", Path("list.txt"))
        super().__init__(annotations, ClipSettings(num_frames=FRAMES, size=4))
        self.features, self.broken = features, broken

    def __getitem__(self, key: Any) -> dict[str, Any]:
        item = self.annotations.items[key]
        error = f"{item.path}: no video stream" if key in self.broken else None
        video = self.features[key] if error is None else torch.zeros(FRAMES, DIM)
        return {"video": video.unflatten(-1, (3, 4, 4)), "label": item.label, "index": key, "error": error}


def perfect(classes: int = 4, videos: int = 6, broken: tuple[int, ...] = ()) -> HandMade:
    """Every frame of a video is the unit vector of its class."""
    labels = [c for _ in range(videos) for c in range(classes)]
    return HandMade(torch.eye(DIM)[labels][:, None].expand(-1, FRAMES, -1), labels, broken)


def score(model: Any, videos: HandMade, shape: EpisodeShape, count: int = 30, **named: Any) -> EpisodeResult:
    settings = EvalConfig(batch_size=named.pop("batch_size", 5), on_error=named.pop("on_error", "wrong"))
    episodes = draw_episodes(videos.annotations, shape, count, seed=7)
    (result,) = evaluate_episodes(model, videos, [episodes], settings, **named)
    return result


def test_mean_and_interval() -> None:
    # Deviations 1/4, -3/4, 1/4, 1/4: s^2 = (3/16 + 9/16) / 3 = 1/4; 1.96 x 0.5 / sqrt(4).
    found = accuracy(torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert found == Accuracy(0.75, pytest.approx(0.49, rel=1e-12)) and str(found) == "75.00 ± 49.00"
    assert accuracy(torch.tensor([0.5])) == Accuracy(0.5, None)


def test_accuracies_known_beforehand() -> None:
    model, videos, shape = Copied(), perfect(), EpisodeShape(3, 2, 2)
    result = score(model, videos, shape)
    assert result.heads == {"matching": Accuracy(1.0, 0.0), "text": Accuracy(1.0, 0.0)}
    assert model.training and model.class_names == ["something else"]
    # All videos alike: of each episode's classes the first is answered, whichever that is.
    videos.features = torch.ones(24, FRAMES, DIM)
    result = score(model, videos, shape)
    assert result.main == Accuracy(pytest.approx(1 / 3, rel=1e-12), pytest.approx(0.0, abs=1e-12))
    # Videos of class 0 look like class 1: right where 1 is absent, by video or by text; else one class of the two is
    # answered for both, and by text no query of class 0 is right.
    looks = torch.tensor([item.label for item in videos.annotations.items])
    videos.features = torch.eye(DIM)[looks.where(looks != 0, 1)][:, None].expand(-1, FRAMES, -1)
    episodes = draw_episodes(videos.annotations, shape, 30, seed=7).classes
    both = ((episodes == 0).any(1) & (episodes == 1).any(1)).double()
    result = score(model, videos, shape)
    assert result.heads["matching"].mean == pytest.approx(1 - float(both.mean()) / 3, rel=1e-12)
    # 0 without 1: its text is as far from the videos as all others, and the first of them is answered.
    first = ((episodes[:, 0] == 0) & ~(episodes == 1).any(1)).double()
    absent = (~(episodes == 0).any(1)).double()
    assert result.heads["text"].mean == pytest.approx(float((absent + first + (1 - absent - first) * 2 / 3).mean()))


@pytest.mark.parametrize("metric", ["otam", "bi_mhm"])
def test_large_calls_equal_one_query_at_a_time(metric: str) -> None:
    torch.manual_seed(3)
    labels = [c for _ in range(7) for c in range(5)]
    centres = torch.randn(5, FRAMES, DIM)
    videos = HandMade(centres[labels] + 1.5 * torch.randn(len(labels), FRAMES, DIM), labels)
    shape = EpisodeShape(4, 3, 2)
    result = score(Copied(), videos, shape, 25, episode_batch=4, metric=metric)
    from m2clip.evaluate.episodes import METRICS

    episodes = draw_episodes(videos.annotations, shape, 25, seed=7)
    shares, by_text = [], []
    for classes, support, query in zip(episodes.classes, episodes.support, episodes.query, strict=True):
        prototypes = [videos.features[shots].mean(dim=0) for shots in support]
        right, text = 0, 0
        for true, of_class in enumerate(query):
            for video in videos.features[of_class]:
                distances = [float(METRICS[metric](frame_distances(video[None], p[None]))[0, 0]) for p in prototypes]
                right += distances.index(min(distances)) == true
                mean = video.mean(dim=0)
                cosines = [float(mean[c] / mean.norm()) for c in classes]
                text += cosines.index(max(cosines)) == true
        shares.append(right / 8)
        by_text.append(text / 8)
    assert 0.3 < result.main.mean < 1 and result.main.mean == pytest.approx(sum(shares) / 25, abs=1e-12)
    assert result.heads["text"].mean == pytest.approx(sum(by_text) / 25, abs=1e-12)
    spread = sum((share - sum(shares) / 25) ** 2 for share in shares) / 24
    assert result.main.interval == pytest.approx(1.96 * math.sqrt(spread / 25), rel=1e-9)


def test_a_model_that_answers_itself_reads_both_roles() -> None:
    model = Answering()
    result = score(model, perfect(), EpisodeShape(3, 2, 1), batch_size=7)
    # Its probabilities prefer the farthest class, to tell its own answer from the other two.
    assert list(result.heads) == ["fused", "matching", "text"] and model.read == 2 * 24
    assert [found.mean for found in result.heads.values()] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("shots", [1, 2])
def test_an_unreadable_video_costs_no_query_but_itself(shots: int) -> None:
    shape, broken = EpisodeShape(3, shots, 2), (4, 9)
    videos = perfect(broken=broken)
    episodes = draw_episodes(videos.annotations, shape, 30, seed=7)
    queries = [set(broken) & set(query) for query in episodes.query.flatten(1).tolist()]
    supports = [set(broken) & set(support) for support in episodes.support.flatten(1).tolist()]
    assert any(queries) and any(supports) and any(s and not q for s, q in zip(supports, queries, strict=True))
    result = score(Copied(), videos, shape)
    shares = [1 - len(lost) / 6 for lost in queries]
    assert result.main.mean == pytest.approx(sum(shares) / 30, abs=1e-12) and result.denominator == 30
    assert [failure.index for failure in result.failures] == [4, 9]
    assert result.stand_ins == sum(map(bool, supports)) > 0
    assert "failures: 2 (wrong as queries; as support, another video of the class" in result.settings_line()
    assert f"support video for an unreadable one: {result.stand_ins}" in result.settings_line()
    skipped = score(Copied(), videos, shape, on_error="skip")
    left = sum(not lost for lost in queries)
    assert skipped.main == Accuracy(1.0, 0.0) and skipped.denominator == left < 30
    assert f"denominator: {left} episodes" in skipped.settings_line()


@pytest.mark.parametrize("classes", [1, 4])
def test_a_class_without_a_readable_support_video(classes: int) -> None:
    """One video a class can be read, and it is a query: its class is no answer, for none of the queries."""
    labels = [c for _ in range(2) for c in range(4)]
    videos = HandMade(torch.eye(DIM)[labels][:, None].expand(-1, FRAMES, -1), labels, tuple(range(classes)))
    episodes = draw_episodes(videos.annotations, EpisodeShape(4, 1, 1), 20, seed=1)
    lost = (episodes.support < classes).flatten(1)
    asked = (episodes.query < classes).flatten(1)
    (result,) = evaluate_episodes(Copied(), videos, [episodes], EvalConfig())
    expected = {"matching": ~lost & ~asked, "text": ~asked}
    for head, right in expected.items():
        assert result.heads[head].mean == pytest.approx(float(right.double().mean()), abs=1e-12)
    assert result.stand_ins == 0


def test_unreadable_videos_that_end_it_all() -> None:
    shape, videos = EpisodeShape(3, 1, 2), perfect(broken=(4, 9))
    with pytest.raises(InputError, match="4.mp4: no video stream .--on-error skip or wrong"):
        score(Copied(), videos, shape, on_error="raise")
    with pytest.raises(InputError, match="none of the 30 episodes could be scored; the first: v/0.mp4"):
        score(Copied(), perfect(broken=tuple(range(24))), shape, on_error="skip")
    with pytest.raises(InputError, match="on_error is 'ignore'"):
        score(Copied(), videos, shape, on_error="ignore")


def test_features_and_scores_that_are_no_numbers() -> None:
    videos = perfect()
    videos.features = videos.features.clone()
    videos.features[3, 1, 0] = float("nan")
    result = score(Copied(), videos, EpisodeShape(3, 1, 1))
    assert [failure.index for failure in result.failures] == [3] and result.main.mean < 1
    assert "not finite" in result.failures[0].error and result.not_finite == 0

    class Diverged(Answering):
        def score(self, support: Tensor, query: Tensor, text: Tensor) -> Any:
            found = super().score(support, query, text)
            found.text_logits[:, 0] = float("nan")
            return found

    result = score(Diverged(), perfect(), EpisodeShape(3, 1, 1), 10)
    assert result.not_finite == 10 and result.heads["matching"].mean == pytest.approx(2 / 3)
    assert "without finite scores: 10" in result.settings_line()
    with pytest.raises(InputError, match="10 queries have no finite scores"):
        score(Diverged(), perfect(), EpisodeShape(3, 1, 1), 10, on_error="raise")
    with pytest.raises(InputError, match="none of the 10 episodes"):
        score(Diverged(), perfect(), EpisodeShape(3, 1, 1), 10, on_error="skip")


def test_results_tell_how_they_were_found(tmp_path: Path) -> None:
    videos = perfect()
    lists = [draw_episodes(videos.annotations, EpisodeShape(3, k, 1), 9, seed=2) for k in (5, 1)]
    results = evaluate_episodes(Copied(), videos, lists, EvalConfig(), name="mine")
    assert by_shots(results) == (
        [1, 5],
        [("mine", head, {1: Accuracy(1.0, 0.0), 5: Accuracy(1.0, 0.0)}) for head in ("matching", "text")],
    )
    line = results[0].settings_line()
    for said in (
        "3-way 5-shot, 1 query a class",
        f"episodes: 9, seed 2, sha256 {lists[0].sha256}",
        "1.96 s / sqrt(E)",
        "views: 1 clip x 1 crop",
        "frames: 2 uniform, centred",
        "normalisation: clip",
        "prompt: 'a {}'",
        f"list: 24 videos of 4 classes, sha256 {lists[0].list_hash}",
        "failures: 0",
    ):
        assert said in line
    saved = json.loads(results[0].save(tmp_path / "result.json").read_text())
    assert saved["heads"]["matching"] == {"mean": 1.0, "interval": 0.0} and "sqrt(E)" in saved["interval"]


@pytest.mark.parametrize("size", [2, 3])
def test_processes_find_what_one_finds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int) -> None:
    torch.manual_seed(5)
    labels = [c for _ in range(5) for c in range(4)]
    features = torch.eye(DIM)[labels][:, None] + 0.2 * torch.randn(len(labels), FRAMES, DIM)
    monkeypatch.setattr(episode_features, "CHUNK", 3)
    shape = EpisodeShape(3, 2, 1)
    alone = score(Copied(), HandMade(features, labels, broken=(2,)), shape, 17, episode_batch=4)
    place, meeting, box = threading.local(), threading.Barrier(size, timeout=30), {}

    def gather(value: Any) -> list[Any]:
        box[place.rank] = value
        meeting.wait()
        values = [box[rank] for rank in range(size)]
        meeting.wait()
        return values

    monkeypatch.setattr(distributed, "rank", lambda: place.rank)
    monkeypatch.setattr(distributed, "world_size", lambda: size)
    monkeypatch.setattr(distributed, "gather_objects", gather)
    found: dict[int, EpisodeResult] = {}
    models = [Copied() for _ in range(size)]

    def work(rank: int) -> None:
        place.rank = rank
        videos = HandMade(features, labels, broken=(2,))
        found[rank] = score(models[rank], videos, shape, 17, episode_batch=4, cache=tmp_path)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == dict.fromkeys(range(size), alone) and 0.3 < alone.main.mean < 1
    assert sum(model.read for model in models) == 20 and len(list(tmp_path.glob("*/features_*.safetensors"))) == 7


def test_kept_features_are_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(episode_features, "CHUNK", 4)
    root, cache = tmp_path / "videos", tmp_path / "features"
    root.mkdir()
    labels = [c for _ in range(3) for c in range(3)]
    torch.manual_seed(6)
    features = torch.randn(9, FRAMES, DIM)
    for index in range(9):
        (root / f"{index}.mp4").write_text("whole")
    shape = EpisodeShape(2, 1, 1)

    def again(model: Copied | None = None, broken: tuple[int, ...] = (), **named: Any) -> tuple[int, EpisodeResult]:
        model = model or Copied()
        result = score(model, HandMade(features, labels, broken, str(root)), shape, cache=cache, **named)
        return model.read, result

    read, first = again()
    assert read == 9 and again() == (0, first)
    assert [len(list(folder.iterdir())) for folder in cache.iterdir()] == [4]
    (folder,) = cache.iterdir()
    assert json.loads((folder / "settings.json").read_text())["views"]["num_frames"] == FRAMES
    # A stopped call, a damaged file, another video under the name of one: only that file is made again.
    (folder / "features_00002.safetensors").unlink()
    assert again() == (1, first)
    damaged = folder / "features_00001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert again() == (4, first)
    os.utime(root / "8.mp4", (1, 1))
    assert again() == (1, first)
    (root / "0.mp4").write_text("another one")
    read, spoiled = again(broken=(0,))
    assert read == 4 and [failure.index for failure in spoiled.failures] == [0]
    assert again() == (4, first)
    # What decides the features decides where they are kept.
    changed = Copied()
    changed.scale.data.mul_(2)
    assert again(changed)[0] == 9 and again(precision="bf16")[0] == 9 and len(list(cache.iterdir())) == 3
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file"
    with pytest.raises(InputError, match="cannot be written"):
        again()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    videos = write_videos(tmp_path_factory.mktemp("videos"), count=15, frames=6)
    return load_annotations(videos, class_names=CLASS_NAMES, format="frames")


def test_ma_fsar_from_kept_features_equals_whole_episodes(folder: Annotations) -> None:
    torch.manual_seed(0)
    model = m2clip.create_model("ma_fsar", build_clip(), ["one", "two"], 2, ratio=0.5, tpcm_heads=2, alpha=0.3)
    randomise(model)
    videos = EpisodeVideos(folder, ClipSettings(num_frames=2, size=SIZE))
    shape = EpisodeShape(3, 2, 1)
    episodes = draw_episodes(folder, shape, 12, seed=1)
    (result,) = evaluate_episodes(model, videos, [episodes], EvalConfig(batch_size=4), episode_batch=5)
    assert model.class_names == ["one", "two"]
    model.eval().set_class_names(CLASS_NAMES)
    shares = []
    with torch.no_grad():
        for classes, support, query in zip(episodes.classes, episodes.support, episodes.query, strict=True):
            shots = torch.stack([videos[index]["video"] for index in support.flatten().tolist()])
            asked = torch.stack([videos[index]["video"] for index in query.flatten().tolist()])
            read = model.encode_support(shots, classes.repeat_interleave(2)).unflatten(0, (3, 2))
            text = model.text_features()[classes]
            answer = model.score(read[None], model.encode_query(asked)[None], text[None]).probabilities[0]
            shares.append(float((answer.argmax(-1) == torch.arange(3)).float().mean()))
    assert result.main.mean == pytest.approx(sum(shares) / 12, abs=1e-7)
    assert list(result.heads) == ["fused", "matching", "text"]


def test_frozen_clip_and_random_frames(folder: Annotations) -> None:
    model = m2clip.create_model("clip", build_clip(), ["one", "two"], 2)
    settings = ClipSettings(num_frames=2, size=SIZE, clips=3, crops=3)
    centred, random = EpisodeVideos(folder, settings), EpisodeVideos(folder, settings, random_frames=True, seed=4)
    assert centred[3]["video"].shape == (2, 3, SIZE, SIZE) and torch.equal(random[3]["video"], random[3]["video"])
    assert not all(torch.equal(centred[index]["video"], random[index]["video"]) for index in range(15))
    results = [
        evaluate_episodes(model, videos, [draw_episodes(folder, EpisodeShape(2, 1, 1), 20)], EvalConfig())[0]
        for videos in (centred, random)
    ]
    assert [result.frames for result in results] == ["2 uniform, centred", "2 uniform, at random (seed 4)"]
    # Brightness tells these classes apart.
    assert min(result.main.mean for result in results) > 0.6
    with pytest.raises(InputError, match="otam or bi_mhm"):
        FrameMatching(model, "trx")
