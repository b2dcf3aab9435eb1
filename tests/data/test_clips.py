"""Clips: items that depend on nothing but their address, bad videos replaced or reported, each video seen once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from m2clip.data.clips import ClipDataset, ClipSettings, EpochSampler, collate, load_views
from m2clip.data.lists.annotations import Annotations, VideoItem, load_annotations
from m2clip.data.transforms import EvalTransform
from m2clip.data.video.isolated import open_isolated
from m2clip.data.video.readers import PyAVVideo, Video, VideoError, open_video
from m2clip.errors import InputError
from tests.data.video_files import code_image, read_code, write_audio_only, write_timeless, write_video

SETTINGS = ClipSettings(num_frames=4, size=48)
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def codes(video: torch.Tensor) -> list[int]:
    return [read_code(frame) for frame in (video * STD + MEAN) * 255]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    folder = tmp_path_factory.mktemp("classes")
    for name in ("jump", "run", "walk"):
        for number in range(3):
            write_video(folder / name / f"{number}.mp4", num_frames=20 + number, size=(64, 48))
    return load_annotations(folder)


def with_bad(videos: Annotations, *paths: Path, label: int = 0) -> Annotations:
    """The bad files come first, then the good videos."""
    return Annotations(
        tuple(VideoItem(path, label) for path in paths) + videos.items, videos.class_names, "list", videos.source
    )


def test_training_item(videos: Annotations) -> None:
    item = ClipDataset(videos, SETTINGS, training=True)[(0, 4)]
    assert (item["video"].shape, item["video"].dtype) == ((4, 3, 48, 48), torch.float32)
    assert (item["label"], item["index"], item["replaced"]) == (1, 4, None)


def test_training_frames_come_one_from_each_segment(videos: Annotations) -> None:
    settings = ClipSettings(num_frames=4, size=48, augmentation="none")
    dataset = ClipDataset(
        Annotations((VideoItem(square(videos), 0),), None, "list", videos.source), settings, training=True
    )
    drawn = [codes(dataset[(epoch, 0)]["video"]) for epoch in range(30)]
    assert len({tuple(draw) for draw in drawn}) > 20
    for draw in drawn:
        assert all(10 * segment <= code <= 10 * segment + 10 for segment, code in enumerate(draw))


def square(videos: Annotations) -> Path:
    path = Path(videos.source) / "square.mp4"
    return path if path.exists() else write_video(path, num_frames=41, size=(48, 48))


def test_evaluation_views_are_clips_by_crops(videos: Annotations) -> None:
    settings = ClipSettings(num_frames=4, size=48, sampling="dense", stride=2, clips=2, crops=3)
    item = VideoItem(square(videos), 2)
    dataset = ClipDataset(Annotations((item,), None, "list", videos.source), settings)
    entry = dataset[0]
    assert entry["video"].shape == (6, 4, 3, 48, 48)
    assert (entry["label"], entry["index"], entry["error"]) == (2, 0, None)
    starts = [codes(view)[0] for view in entry["video"]]
    assert starts == [0, 0, 0, 34, 34, 34]
    assert codes(entry["video"][3]) == [34, 36, 38, 40]
    assert torch.equal(load_views(item.path, settings), entry["video"])


@pytest.mark.parametrize("transform", ["standard", "authors"])
@pytest.mark.parametrize(
    ("sampling", "stride", "clips"), [("uniform", 1, 7), ("dense", 3, 9), ("dense", 30, 2), ("dense_centres", 4, 5)]
)
@pytest.mark.parametrize("isolate", [False, True])
def test_views_are_those_of_whole_clips_and_each_frame_is_read_once(
    videos: Annotations,
    monkeypatch: pytest.MonkeyPatch,
    sampling: str,
    stride: int,
    clips: int,
    transform: str,
    isolate: bool,
) -> None:
    options = {"sampling": sampling, "stride": stride, "clips": clips, "transform": transform, "isolate": isolate}
    settings = ClipSettings(num_frames=4, size=40, crops=3, **options)
    path = videos.items[0].path
    with open_video(path) as video:
        chosen = [settings.indices(video.num_frames, clip=clip, num_clips=clips) for clip in range(clips)]
        cut = EvalTransform(settings.of_frames)
        expected = torch.cat([cut(video.read(indices)) for indices in chosen])
    read: list[int] = []
    each = Video.each

    def counted(self: Video, indices: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        for index, frame in each(self, indices):
            read.append(index)
            yield index, frame

    monkeypatch.setattr(Video, "each", counted)
    assert torch.equal(load_views(path, settings), expected)
    assert read == sorted({index for indices in chosen for index in indices})


def test_overlapping_clips_decode_from_each_key_frame_once(
    videos: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int | None] = []
    decoded_from = PyAVVideo._decoded_from

    def noted(self: PyAVVideo, key: int | None, wanted: set[int] | None = None) -> Any:
        starts.append(key)
        return decoded_from(self, key, wanted)

    with PyAVVideo(videos.items[0].path):  # opening may decode, too
        pass
    monkeypatch.setattr(PyAVVideo, "_decoded_from", noted)
    load_views(videos.items[0], ClipSettings(num_frames=8, size=16, clips=20))
    assert len(starts) == len(set(starts)) == 2  # 20 frames, a key frame every 12


@pytest.mark.parametrize("reader", ["pyav", "decord", "isolated", "frames"])
def test_frames_one_after_another(videos: Annotations, tmp_path: Path, reader: str) -> None:
    path = videos.items[0].path
    if reader == "decord":
        pytest.importorskip("decord")
    if reader == "frames":
        for number in range(20):
            Image.fromarray(code_image(number, 64, 48)).save(tmp_path / f"{number:03d}.png")
        path = tmp_path
    with open_isolated(path) if reader == "isolated" else open_video(path, reader) as video:
        wanted = [*range(0, 20, 2), 19, 3, 3]
        found = list(video.each(wanted))
        assert [index for index, _ in found] == sorted(set(wanted))
        assert all(np.array_equal(frame, video.read_array([index])[0]) for index, frame in found)
        # Left early, and read again.
        frames = video.each(range(12))
        assert [next(frames)[0] for _ in range(3)] == [0, 1, 2]
        frames.close()
        assert np.array_equal(video.read_array([5])[0], video.read_array([5, 6])[0])
        with pytest.raises(IndexError, match="frame 20 of"):
            next(video.each([0, 20]))


def test_frame_folders_are_read(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "a").mkdir()
    for number in range(1, 10):
        Image.fromarray(code_image(number, 48, 48)).save(tmp_path / "a" / f"img_{number:05d}.jpg")
    (tmp_path / "list.txt").write_text("a 9 0\n")
    dataset = ClipDataset(load_annotations(tmp_path / "list.txt"), SETTINGS)
    assert codes(dataset[0]["video"][0]) == [2, 4, 6, 8]


@pytest.mark.parametrize("augmentation", ["crop_flip", "randaugment"])
def test_items_do_not_depend_on_the_worker(videos: Annotations, augmentation: str) -> None:
    settings = ClipSettings(num_frames=4, size=48, augmentation=augmentation)
    dataset = ClipDataset(videos, settings, training=True, seed=3)
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(len(dataset), seed=3, epoch=5, shuffle=True)
        loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=collate)
        batches.append(list(loader))
    for alone, shared in zip(*batches, strict=True):
        assert torch.equal(alone["video"], shared["video"])
        assert torch.equal(alone["index"], shared["index"])


def test_items_differ_between_epochs_and_seeds(videos: Annotations) -> None:
    dataset = ClipDataset(videos, SETTINGS, training=True, seed=0)
    other = ClipDataset(videos, SETTINGS, training=True, seed=1)
    first = dataset[(0, 0)]["video"]
    assert torch.equal(dataset[(0, 0)]["video"], first)
    assert torch.equal(dataset[0]["video"], first)
    assert not torch.equal(dataset[(1, 0)]["video"], first)
    assert not torch.equal(other[(0, 0)]["video"], first)


def bad_files(folder: Path) -> list[Path]:
    folder.mkdir()
    whole = write_video(folder / "whole.mp4", container_options={"movflags": "faststart"}).read_bytes()
    for name, content in {
        "empty.mp4": b"",
        "truncated.mp4": whole[: len(whole) // 2],
        "page.mp4": b"<html>not found</html>",
        "zeros.mp4": bytes(4096),
    }.items():
        (folder / name).write_bytes(content)
    names = ["missing.mp4", "empty.mp4", "truncated.mp4", "page.mp4", "zeros.mp4"]
    return [folder / name for name in names] + [
        write_audio_only(folder / "sound.mp4"),
        write_timeless(folder / "timeless.mp4"),
    ]


def test_bad_video_is_replaced_by_one_of_its_class_in_training(videos: Annotations, tmp_path: Path) -> None:
    bad = bad_files(tmp_path / "bad")
    for path in bad:
        dataset = ClipDataset(with_bad(videos, path, label=1), SETTINGS, training=True)
        item = dataset[(0, 0)]
        assert item["label"] == 1
        assert item["index"] == 0
        assert item["video"].abs().sum() > 0
        assert item["replaced"]["path"] == str(path)
        assert str(path) in item["replaced"]["error"]
        assert Path(item["replaced"]["replaced_by"]).parent.name == "run"
        assert torch.equal(dataset[(0, 0)]["video"], item["video"])


def test_class_of_bad_videos_borrows_from_another_and_takes_its_label(videos: Annotations, tmp_path: Path) -> None:
    annotations = with_bad(videos, *(tmp_path / f"{number}.mp4" for number in range(4)), label=3)
    item = ClipDataset(annotations, SETTINGS, training=True)[(0, 0)]
    replacement = Path(item["replaced"]["replaced_by"])
    assert replacement.parent.name == videos.class_names[item["label"]]


def test_list_of_bad_videos_is_an_error_after_a_few_tries(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{number}.mp4 {number % 2}\n" for number in range(100)))
    dataset = ClipDataset(load_annotations(tmp_path / "list.txt"), SETTINGS, training=True)
    with pytest.raises(InputError, match=r"11 videos in a row cannot be read; check the root folder \(.*no such file"):
        dataset[(0, 0)]


def test_lone_bad_video_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    with pytest.raises(InputError, match="1 videos in a row"):
        ClipDataset(load_annotations(tmp_path / "list.txt"), SETTINGS, training=True)[0]


def test_bad_video_is_reported_in_evaluation(videos: Annotations, tmp_path: Path) -> None:
    settings = ClipSettings(num_frames=4, size=48, clips=2, crops="m2clip4")
    bad = bad_files(tmp_path / "bad")
    dataset = ClipDataset(with_bad(videos, *bad), settings)
    for index, path in enumerate(bad):
        item = dataset[(0, index)]
        assert str(path) in item["error"]
        assert "\n" not in item["error"]
        assert torch.equal(item["video"], torch.zeros(8, 4, 3, 48, 48))
    assert dataset[len(bad)]["error"] is None
    with pytest.raises(VideoError, match=r"missing\.mp4: no such file"):
        load_views(bad[0], settings)


def test_one_frame_video_is_repeated(tmp_path: Path) -> None:
    path = write_video(tmp_path / "one.mp4", num_frames=1, size=(48, 48))
    views = load_views(path, SETTINGS)
    assert torch.equal(views[0], views[0, :1].expand(4, -1, -1, -1))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 7, 9, 10])
@pytest.mark.parametrize("shuffle", [False, True])
def test_shards_cover_every_index_exactly_once(length: int, world_size: int, shuffle: bool) -> None:
    shards = [
        EpochSampler(length, seed=1, epoch=2, shuffle=shuffle, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    drawn = [pair for shard in shards for pair in shard]
    assert sorted(drawn) == [(2, index) for index in range(length)]
    assert [len(list(shard)) for shard in shards] == [len(shard) for shard in shards]
    if not shuffle:
        assert [index for _, index in shards[-1]] == list(range(world_size - 1, length, world_size))


def test_sharded_evaluation_sees_each_video_once(videos: Annotations, tmp_path: Path) -> None:
    dataset = ClipDataset(with_bad(videos, tmp_path / "missing.mp4"), SETTINGS)
    seen, errors = [], 0
    for rank in range(3):
        sampler = EpochSampler(len(dataset), rank=rank, world_size=3)
        for batch in DataLoader(dataset, batch_size=3, sampler=sampler, collate_fn=collate):
            seen += batch["index"].tolist()
            errors += sum(error is not None for error in batch["errors"])
    assert sorted(seen) == list(range(10))
    assert errors == 1


def test_drop_last_gives_all_processes_equally_many() -> None:
    shards = [list(EpochSampler(11, shuffle=True, rank=rank, world_size=4, drop_last=True)) for rank in range(4)]
    assert [len(shard) for shard in shards] == [2, 2, 2, 2]
    assert len({index for shard in shards for _, index in shard}) == 8


def test_an_epoch_of_several_passes_is_these_passes_in_a_row() -> None:
    single = [list(EpochSampler(5, seed=4, epoch=epoch, shuffle=True)) for epoch in range(6)]
    for epoch in range(2):
        whole = list(EpochSampler(5, seed=4, epoch=epoch, shuffle=True, repeat=3))
        assert whole == [pair for number in range(3) for pair in single[3 * epoch + number]]
        options = {"seed": 4, "epoch": epoch, "shuffle": True, "repeat": 3, "world_size": 2, "drop_last": True}
        assert [list(EpochSampler(5, rank=rank, **options)) for rank in range(2)] == [whole[0:14:2], whole[1:14:2]]
        assert list(EpochSampler(5, rank=1, start=4, **options)) == whole[9:14:2]


@pytest.mark.parametrize("drop_last", [False, True])
def test_sampler_resumes_where_it_stopped(drop_last: bool) -> None:
    options = {"seed": 4, "epoch": 1, "shuffle": True, "rank": 1, "world_size": 3, "drop_last": drop_last}
    whole = list(EpochSampler(20, **options))
    for start in range(len(whole) + 1):
        rest = EpochSampler(20, start=start, **options)
        assert list(rest) == whole[start:]
        assert len(rest) == len(whole) - start


def test_order_depends_on_seed_and_epoch() -> None:
    orders = [
        tuple(index for _, index in EpochSampler(50, seed=seed, epoch=epoch, shuffle=True))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


def test_collate(videos: Annotations, tmp_path: Path) -> None:
    annotations = with_bad(videos, tmp_path / "missing.mp4")
    training = ClipDataset(annotations, SETTINGS, training=True)
    batch = collate([training[0], training[5]])
    assert batch["video"].shape == (2, 4, 3, 48, 48)
    assert (batch["label"].dtype, batch["label"].tolist()) == (torch.int64, [0, 1])
    assert batch["index"].tolist() == [0, 5]
    assert batch["replaced"][0]["path"] == str(tmp_path / "missing.mp4")
    assert batch["replaced"][1] is None
    testing = ClipDataset(annotations, SETTINGS)
    assert collate([testing[0], testing[5]])["errors"][1] is None
    assert "missing.mp4" in collate([testing[0], testing[5]])["errors"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "random"}, "sampling must be one of uniform, dense, dense_centres, not 'random'"),
        ({"reader": "opencv"}, "unknown video reader 'opencv'"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"clips": 0}, "clips must be at least 1"),
        ({"crops": 5}, "crops must be one of 1, 3, m2clip4, not 5"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClipSettings(**options)
