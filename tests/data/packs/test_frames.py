"""Reading packs: the same data set as the list that was packed, and damage told with its place."""

import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import m2clip
from m2clip.config import RunConfig
from m2clip.data import clips
from m2clip.data.clips import ClipDataset, ClipSettings, EpochSampler, collate, load_views
from m2clip.data.episode_clips import EpisodeVideos
from m2clip.data.lists.annotations import Annotations, detect_format, list_hash, load_annotations, packed_hash
from m2clip.data.lists.splits import write_list
from m2clip.data.packs import frames as shards
from m2clip.data.packs.frames import ShardVideo
from m2clip.data.packs.pack import pack
from m2clip.data.packs.settings import PackSettings
from m2clip.data.video.base import VideoError
from m2clip.errors import InputError
from m2clip.evaluate.episode_features import feature_settings
from m2clip.files.disk import seal, unseal
from m2clip.protocols.runs import ScoredSet, videos_identity
from m2clip.train.setup import run_identity
from tests.data.video_files import read_code, write_video

SETTINGS = ClipSettings(num_frames=4, size=48)
COUNTS = (10, 40, 23)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    folder = tmp_path_factory.mktemp("classes")
    for name in ("jump", "run", "walk"):
        for number, count in enumerate(COUNTS):
            write_video(folder / name / f"{number}.mp4", num_frames=count, size=(64, 48), options={"crf": "1"})
    return load_annotations(folder)


def packed(videos: Annotations, folder: Path, frames: int | None = 12) -> Annotations:
    pack(videos, folder, PackSettings(frames=frames, short_side=48, shard_videos=4, isolate=False), workers=1)
    return load_annotations(folder)


@pytest.fixture(scope="module")
def some(videos: Annotations, tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    return packed(videos, tmp_path_factory.mktemp("pack") / "some")


@pytest.fixture(scope="module")
def every(videos: Annotations, tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    return packed(videos, tmp_path_factory.mktemp("pack") / "every", None)


@pytest.fixture
def damaged(videos: Annotations, tmp_path: Path) -> Annotations:
    return packed(videos, tmp_path / "damaged")


def opened(annotations: Annotations, position: int) -> ShardVideo:
    item = annotations.items[position]
    assert item.sample is not None
    return ShardVideo(item.path, item.sample)


def test_a_pack_is_the_list_that_was_packed(videos: Annotations, some: Annotations) -> None:
    assert detect_format(some.source) == detect_format(some.source / "manifest.json") == some.format == "shards"
    assert load_annotations(some.source / "manifest.json").items == some.items
    assert [str(item.path) for item in some.items] == [
        item.path.relative_to(videos.source).as_posix() for item in videos.items
    ]
    assert [item.label for item in some.items] == [item.label for item in videos.items]
    assert some.class_names == videos.class_names
    assert list_hash(some.items) == list_hash(videos.items)
    fewer = replace(some, items=some.items[1:])
    assert list_hash(fewer.items) != list_hash(some.items)


def test_what_is_computed_from_a_pack_is_kept_apart_from_that_of_videos_and_of_other_packs(
    videos: Annotations, some: Annotations, every: Annotations
) -> None:
    model = m2clip.create_model("clip", m2clip.load_clip("tiny"), videos.class_names, 4)
    assert packed_hash(videos.items) is None
    lists = (videos, some, every)
    kept = [feature_settings(model, EpisodeVideos(each, SETTINGS), "fp32") for each in lists]
    runs = [run_identity(RunConfig(), model, each)["training list"] for each in lists]
    parts = [videos_identity(ScoredSet("", each)) for each in lists]
    for found in (kept, runs, parts):
        assert len({str(each) for each in found}) == 3


def test_stored_frames_are_those_of_the_video(some: Annotations, every: Annotations) -> None:
    for annotations, limit in ((some, 12), (every, 1000)):
        for position in range(9):
            original = COUNTS[position % 3]
            count = min(original, limit)
            with opened(annotations, position) as video:
                assert (video.num_frames, video.original_frames) == (count, original)
                codes = [read_code(frame) for frame in video.read(range(count))]
                assert codes == [round(place * (original - 1) / max(count - 1, 1)) for place in range(count)]
                assert video.seconds(range(count)) == pytest.approx([code / 25 for code in codes])
                assert video.fps == pytest.approx(25 * (count - 1) / (original - 1))
                assert [read_code(frame) for frame in video.read([3, 0, 3])] == [codes[3], codes[0], codes[3]]


def test_views_are_near_those_of_the_original(videos: Annotations, some: Annotations, every: Annotations) -> None:
    settings = ClipSettings(num_frames=4, size=48, clips=2, crops=3)
    for position in range(9):
        original = load_views(videos.items[position], settings)
        same = load_views(every.items[position], settings)
        assert (same - original).abs().mean() < 0.05
        assert load_views(some.items[position], settings).shape == original.shape


def test_frames_of_a_uniform_clip_are_near_those_of_the_original(some: Annotations) -> None:
    with opened(some, 1) as video:
        stored = [read_code(frame) for frame in video.read(SETTINGS.indices(video.num_frames))]
    wanted = SETTINGS.indices(COUNTS[1])
    step = (COUNTS[1] - 1) / 11
    assert all(abs(a - b) <= step for a, b in zip(stored, wanted, strict=True))


def test_clips_at_a_stride_need_every_frame(videos: Annotations, some: Annotations, every: Annotations) -> None:
    settings = ClipSettings(num_frames=4, size=48, sampling="dense", stride=5)
    with pytest.raises(InputError, match="pack again with --frames all"):
        ClipDataset(some, settings)[1]
    ours = ClipDataset(every, settings, training=True, seed=1)
    theirs = ClipDataset(videos, settings, training=True, seed=1)
    assert (ours[(3, 1)]["video"] - theirs[(3, 1)]["video"]).abs().mean() < 0.05


@pytest.mark.parametrize("workers", [0, 2])
def test_each_sample_once_whatever_the_processes(some: Annotations, workers: int) -> None:
    """Two ranks, with workers forked after shards were opened here; resumed in the middle of the epoch."""
    dataset = ClipDataset(some, SETTINGS, training=True, seed=3)
    alone = [dataset[(5, index)] for index in range(9)]
    seen: list[int] = []
    for rank in range(2):
        options = {"seed": 3, "epoch": 5, "shuffle": True, "rank": rank, "world_size": 2}
        for start in (0, 2):
            sampler = EpochSampler(9, start=start, **options)
            loader = DataLoader(dataset, batch_size=2, sampler=sampler, num_workers=workers, collate_fn=collate)
            for batch in loader:
                for place, index in enumerate(batch["index"].tolist()):
                    assert torch.equal(batch["video"][place], alone[index]["video"])
                    seen += [index] if start == 0 else []
    assert sorted(seen) == list(range(9))


def test_names_of_the_caller_decide_the_labels(some: Annotations) -> None:
    other = load_annotations(some.source, class_names=["Walk", "swim", "run", "JUMP"])
    assert [item.label for item in other.items] == [3] * 3 + [2] * 3 + [0] * 3
    assert other.items[0].sample == some.items[0].sample
    with pytest.raises(InputError, match="class 'jump' is not among the 2 class names"):
        load_annotations(some.source, class_names=["walk", "run"])
    with pytest.raises(InputError, match="no splits"):
        load_annotations(some.source, split="train")


def test_a_part_of_a_pack_is_a_list_of_its_own(videos: Annotations, some: Annotations, tmp_path: Path) -> None:
    chosen = some.select_classes(["walk", "jump"]).few_shot(2, seed=1)
    written = write_list(chosen, tmp_path / "train.txt")
    again = load_annotations(written.path, format=written.format, class_names=written.classes)
    assert (again.items, again.class_names, again.format) == (chosen.items, ["walk", "jump"], "shards")
    assert list_hash(again.items) == list_hash(videos.select_classes(["walk", "jump"]).few_shot(2, seed=1).items)
    mixed = replace(chosen, items=(*chosen.items, videos.items[0]))
    with pytest.raises(InputError, match="from a pack and from files, cannot be written"):
        write_list(mixed, tmp_path / "mixed.txt")
    content = unseal(json.loads(written.path.read_text()))
    written.path.write_text(json.dumps(seal({**content, "samples": [[77, 0], *content["samples"]]})))
    with pytest.raises(InputError, match=r"video 78 is not in "):
        load_annotations(written.path)
    written.path.write_text(json.dumps(seal({**content, "pack": "/nowhere"})))
    with pytest.raises(InputError, match=r"its pack, /nowhere, is not there"):
        load_annotations(written.path)


def shard_of(annotations: Annotations, position: int) -> Path:
    sample = annotations.items[position].sample
    assert sample is not None
    return sample.shard


def test_damage_is_told_with_shard_and_key(damaged: Annotations) -> None:
    sample = damaged.items[4].sample
    assert sample is not None
    with sample.shard.open("r+b") as file:
        file.seek(sample.offset + sample.length // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    place = rf"{sample.shard.name}, sample 000000004 \(run/1\.mp4\): damaged"
    with pytest.raises(VideoError, match=place):
        load_views(damaged.items[4], SETTINGS)
    entry = ClipDataset(damaged, SETTINGS)[4]
    assert "sample 000000004" in entry["error"] and not entry["video"].any()
    training = ClipDataset(damaged, SETTINGS, training=True)[(0, 4)]
    assert training["replaced"]["replaced_by"] in ("run/0.mp4", "run/2.mp4")
    others = [n for n in range(9) if n != 4]
    assert all(ClipDataset(damaged, SETTINGS)[n]["error"] is None for n in others)


def test_any_flipped_bit_is_noticed(damaged: Annotations) -> None:
    sample = damaged.items[0].sample
    assert sample is not None
    whole, rng = sample.shard.read_bytes(), random.Random(0)
    for _ in range(int(os.environ.get("M2CLIP_FLIPS", "30"))):
        place = sample.offset + rng.randrange(sample.length)
        sample.shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        with pytest.raises(VideoError, match="sample 000000000"):
            load_views(damaged.items[0], SETTINGS)
    sample.shard.write_bytes(whole)
    assert load_views(damaged.items[0], SETTINGS).any()


def test_a_truncated_and_a_missing_shard(damaged: Annotations) -> None:
    shard = shard_of(damaged, 0)
    own = [item for item in damaged.items if item.sample is not None and item.sample.shard == shard]
    last = max(own, key=lambda item: item.sample.offset if item.sample else 0)
    assert last.sample is not None
    os.truncate(shard, last.sample.offset + 700)
    with pytest.raises(VideoError, match="truncated; delete"):
        load_views(last, SETTINGS)
    shards._open_shards.close(shard)
    shard.unlink()
    with pytest.raises(VideoError, match="cannot be read \\(No such file or directory\\)"):
        load_views(last, SETTINGS)
    os.mkfifo(shard)
    with pytest.raises(VideoError, match="cannot be read \\(it is a pipe"):
        load_views(last, SETTINGS)


def test_a_replaced_shard_is_opened_anew(damaged: Annotations) -> None:
    before = load_views(damaged.items[0], SETTINGS)
    shard = shard_of(damaged, 0)
    content = shard.read_bytes()
    os.truncate(shard, 100)  # the file that is open
    shard.unlink()
    shard.write_bytes(content)
    assert torch.equal(load_views(damaged.items[0], SETTINGS), before)


@pytest.fixture
def few_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[shards._OpenShards]:
    cache = shards._OpenShards()
    monkeypatch.setattr(shards, "_open_shards", cache)
    monkeypatch.setattr(shards, "_MOST_OPEN", 2)
    yield cache
    for path in list(cache._files):
        cache.close(path)


def test_few_shards_are_open_at_a_time(some: Annotations, few_open: shards._OpenShards) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(2):
        for position in range(9):
            opened(some, position)
    assert len({shard_of(some, position) for position in range(9)}) == 3
    assert list(few_open._files)[-1] == shard_of(some, 8)
    assert (len(few_open._files), descriptors()) == (2, before + 2)


def test_content_that_is_no_sample(damaged: Annotations) -> None:
    import zlib

    item = damaged.items[0]
    assert item.sample is not None
    shards._open_shards.close(item.sample.shard)
    data = bytearray(item.sample.shard.read_bytes())
    start, end = item.sample.offset, item.sample.offset + item.sample.length
    image = data.index(b"\xff\xd8", start)
    data[image : image + 2] = b"no"
    item.sample.shard.write_bytes(data)
    bad_image = replace(item.sample, crc32=zlib.crc32(data[start:end]))
    with ShardVideo(item.path, bad_image) as video, pytest.raises(VideoError, match="stored frame 0 is no JPEG image"):
        video.read([0])
    for change in ({"key": "x"}, {"offset": start + 512, "crc32": zlib.crc32(data[start + 512 : end + 512])}):
        with pytest.raises(VideoError, match="not a sample of a pack"):
            ShardVideo(item.path, replace(bad_image, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", {"complete": False}, "packing is unfinished; run the same m2clip pack again"),
        ("manifest.json", {"version": 2}, "a pack of version 2, this program reads 1"),
        ("index/shard-000001.json", {"samples": 3}, "not the index of a shard; delete it"),
        ("index/shard-000001.json", {"samples": [{}]}, "not the index of a shard; delete it"),
    ],
)
def test_bad_packs(damaged: Annotations, file: str, content: dict[str, object], message: str) -> None:
    path = damaged.source / file
    path.write_text(json.dumps(seal({**unseal(json.loads(path.read_text())), **content})))
    with pytest.raises(InputError, match=message):
        load_annotations(damaged.source)


def test_another_manifest_is_no_pack(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    assert detect_format(tmp_path) == "folder"
    with pytest.raises(InputError, match="not the manifest of a pack"):
        load_annotations(tmp_path, format="shards")
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json"):
        load_annotations(tmp_path, format="shards")


def test_an_order_by_shards_has_each_item_once_and_few_shards_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "SHARDS_AT_ONCE", 2)
    names = [random.Random(index).choice("abcdefg") for index in range(100)]
    options = {"seed": 4, "epoch": 2, "shuffle": True, "shards": names}
    order = [index for _, index in EpochSampler(100, **options)]
    assert sorted(order) == list(range(100)) and order != sorted(order)
    begun: list[str] = []
    for place, index in enumerate(order):
        if names[index] not in begun:
            left = [name for name in begun[: len(begun) // 2 * 2] if name in {names[later] for later in order[place:]}]
            assert not left, "a shard of an earlier pair is not finished"
            begun.append(names[index])
    parts = [[index for _, index in EpochSampler(100, rank=rank, world_size=3, **options)] for rank in range(3)]
    assert sorted(sum(parts, [])) == list(range(100)) and parts[1] == order[1::3]
    assert [index for _, index in EpochSampler(100, start=40, **options)] == order[40:]
    assert [index for _, index in EpochSampler(100, **{**options, "epoch": 3})] != order
