"""Episodes: what is drawn, what is kept in a file, and what a training episode does about unreadable videos."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from m2clip.data.clips import ClipSettings
from m2clip.data.episode_clips import EpisodeClips
from m2clip.data.episodes import EpisodeList, EpisodeShape, draw_episodes, load_episodes
from m2clip.data.lists.annotations import Annotations, VideoItem, load_annotations
from m2clip.errors import InputError
from tests.train.training_run import SIZE, write_videos

SHAPE = EpisodeShape(way=3, shots=2, queries=2)


def make_list(counts: tuple[int, ...] = (5, 6, 7, 8, 9)) -> Annotations:
    """Videos of several classes, interleaved."""
    items = [
        VideoItem(Path(f"{c}/{n}.mp4"), c) for n in range(max(counts)) for c in range(len(counts)) if n < counts[c]
    ]
    return Annotations(tuple(items), [f"class {c}" for c in range(len(counts))], "list", Path("list.txt"))


def same(a: EpisodeList, b: EpisodeList) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("classes", "support", "query"))


def test_shape() -> None:
    assert (SHAPE.support, SHAPE.videos) == (6, 12)
    for bad in ({"way": 1}, {"shots": 0}, {"queries": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            EpisodeShape(**bad)


def test_episodes_hold_different_videos_of_their_classes() -> None:
    annotations = make_list()
    drawn = draw_episodes(annotations, SHAPE, 200, seed=3)
    assert drawn.classes.shape == (200, 3) and drawn.support.shape == drawn.query.shape == (200, 3, 2)
    labels = torch.tensor([item.label for item in annotations.items])
    both = torch.cat([drawn.support, drawn.query], dim=2)
    assert torch.equal(labels[both], drawn.classes[:, :, None].expand_as(both))
    assert all(len(set(episode.flatten().tolist())) == SHAPE.videos for episode in both)
    assert all(len(set(classes.tolist())) == 3 for classes in drawn.classes)


def test_draws_are_uniform() -> None:
    drawn = draw_episodes(make_list((4, 4, 4, 8)), EpisodeShape(2, 1, 1), 3000, seed=1)
    # 3000 x 2 of 4 classes: 1500 each; five standard deviations are 137.
    assert all(abs(count - 1500) < 137 for count in Counter(drawn.classes.flatten().tolist()).values())
    # Whether a class stands first or second, and a video is support or query, is chance too.
    assert abs(int((drawn.classes[:, 0] == 3).sum()) - 750) < 119
    large = drawn.support[:, :, 0][drawn.classes == 3]
    assert all(abs(count - len(large) / 8) < 70 for count in Counter(large.tolist()).values())


def test_a_seed_fixes_every_episode_by_itself() -> None:
    annotations = make_list()
    drawn = draw_episodes(annotations, SHAPE, 50, seed=3)
    assert same(drawn, draw_episodes(annotations, SHAPE, 50, seed=3))
    assert not same(drawn, draw_episodes(annotations, SHAPE, 50, seed=4))
    fewer = draw_episodes(annotations, SHAPE, 20, seed=3)
    assert torch.equal(fewer.support, drawn.support[:20]) and fewer.sha256 != drawn.sha256


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_processes_share_every_episode_once(size: int) -> None:
    drawn = draw_episodes(make_list(), SHAPE, 50)
    shares = [drawn.share(rank, size) for rank in range(size)]
    assert sorted(number for share in shares for number in share.tolist()) == list(range(50))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ValueError, match="rank"):
        drawn.share(size, size)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (
            (5, 3, 7, 1, 9),
            r"the 4 videos of an episode \(2 support, 2 query\): 'class 1' \(3\), 'class 3' \(1\)$",
        ),
        ((5, 0, 7), "has videos of 2 classes, an episode of 3 ways needs 3"),
        ((1,) * 9, r"'class 4' \(1\) and 4 more$"),
        ((5, 5), "has videos of 2 classes, an episode of 3 ways needs 3"),
    ],
)
def test_too_few_videos_are_told_by_name(counts: tuple[int, ...], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        draw_episodes(make_list(counts), SHAPE, 10)
    assert "\n" not in str(caught.value)


def test_a_class_without_videos_is_in_no_episode() -> None:
    found = draw_episodes(make_list((5, 0, 7, 8)), SHAPE, 10)
    assert set(found.classes.flatten().tolist()) == {0, 2, 3}


def test_classes_without_names_are_told_by_number() -> None:
    annotations = Annotations(make_list((5, 5, 3)).items, None, "list", Path("list.txt"))
    with pytest.raises(InputError, match=r"query\): 2 \(3\)$"):
        draw_episodes(annotations, SHAPE, 10)
    with pytest.raises(InputError, match="1 or more, not 0"):
        draw_episodes(make_list(), SHAPE, 0)


def test_a_kept_list_reads_back(tmp_path: Path) -> None:
    annotations = make_list()
    drawn = draw_episodes(annotations, SHAPE, 25, seed=9)
    path = drawn.save(tmp_path / "new folder" / "episodes.jsonl")
    assert [file.name for file in path.parent.iterdir()] == ["episodes.jsonl"]
    read = load_episodes(path, annotations)
    assert same(read, drawn) and (read.shape, read.seed, read.sha256) == (SHAPE, 9, drawn.sha256)
    assert (read.list_hash, read.list_length) == (drawn.list_hash, len(annotations))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        drawn.save(tmp_path / "file" / "episodes.jsonl")


def change(path: Path, line: int, **values: object) -> None:
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({**json.loads(lines[line]), **values})
    path.write_text("\n".join(lines) + "\n")


def test_damaged_and_foreign_lists_are_refused(tmp_path: Path) -> None:
    annotations, path = make_list(), tmp_path / "episodes.jsonl"
    drawn = draw_episodes(annotations, SHAPE, 5, seed=9)
    whole = drawn.save(path).read_text()
    classes, support, query = (value[0].tolist() for value in (drawn.classes, drawn.support, drawn.query))
    swapped = [[query[0][0], support[0][1]], *support[1:]]

    def refused(said: str, other: Annotations = annotations) -> None:
        with pytest.raises(InputError, match=said) as caught:
            load_episodes(path, other)
        assert "\n" not in str(caught.value)
        path.write_text(whole)

    refused("of a list of 35 videos", make_list((5, 6, 7, 8, 8)))
    refused("of a list of 35 videos", make_list((6, 5, 7, 8, 9)))
    path.write_text(whole[: whole.rindex("\n", 0, -1) + 1])
    refused("holds 4 of its 5 episodes; draw it again with seed 9")
    path.write_text(whole[:-20])
    refused("line 6: is no episode of 3 classes, 2 shots, 2 queries")
    path.write_text("")
    refused("is no list of episodes")
    path.write_text("videos/x.mp4 3\n")
    refused("is no list of episodes")
    path.write_bytes(b"\xff\x00")
    refused("not valid UTF-8")
    path.unlink()
    refused("cannot be read")
    for line, values, said in (
        (0, {"version": 2}, "version 2, this program reads version 1"),
        (0, {"seed": None}, "line 1: seed"),
        (0, {"episodes": 0}, "line 1: a list of 0"),
        (0, {"way": 1}, "way of an episode"),
        (1, {"classes": [classes[0]] * 3}, "line 2: a class comes twice"),
        (1, {"classes": classes[:2]}, "line 2: is no episode"),
        (1, {"support": support[:2]}, "line 2: is no episode"),
        (1, {"support": [[*of_class, 1] for of_class in support]}, "line 2: is no episode"),
        (1, {"query": [[0.5, 1]] * 3}, "line 2: is no episode"),
        (1, {"query": None}, "line 2: is no episode"),
        (1, {"query": [*query[:2], [99, query[2][1]]]}, "line 2: video 99 is none of class"),
        (1, {"query": [*query[1:], query[0]]}, "line 2: video .* is none of class"),
        (1, {"support": swapped}, "line 2: a video of class .* comes twice"),
        (1, {"support": [of_class[::-1] for of_class in support]}, "was changed after it was written"),
        (0, {"seed": 10, "episodes_sha256": "0"}, "was changed after it was written"),
    ):
        change(path, line, **values)
        refused(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 videos of three classes; of class 0, v0, v3 and v6 cannot be read, of class 1 all but three."""
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder, count=24)
    for number in (0, 3, 6, *range(10, 24, 3)):
        for frame in (folder / f"v{number}").iterdir():
            frame.write_bytes(b"no picture")
    return folder


def load_list(folder: Path, numbers: range = range(24)) -> Annotations:
    (folder / "some.txt").write_text("".join(f"v{n} 4 {n % 3}\n" for n in numbers))
    return load_annotations(folder / "some.txt", format="frames", class_names=["a", "b", "c"])


def test_training_episodes_are_laid_out_by_class_and_repeat(folder: Path) -> None:
    annotations = load_list(folder)
    clips = EpisodeClips(
        annotations, ClipSettings(num_frames=2, size=SIZE), EpisodeShape(2, 1, 2), per_epoch=10, seed=5
    )
    seen = set()
    for number in range(10):
        batch = clips[3, number]
        labels, index = batch["label"].tolist(), batch["index"].tolist()
        assert batch["video"].shape == (6, 2, 3, SIZE, SIZE) and len(set(index)) == 6
        assert labels == [labels[0], labels[1], labels[0], labels[0], labels[1], labels[1]] and labels[0] != labels[1]
        assert labels == [annotations.items[i].label for i in index]
        again = clips[3, number]
        assert torch.equal(again["video"], batch["video"]) and again["index"].tolist() == index
        seen.add(tuple(index))
    assert len(seen) == 10 and clips[4, 0]["index"].tolist() != clips[3, 0]["index"].tolist()
    assert len(clips) == 10


def test_unreadable_videos_never_mix_support_query_and_classes(folder: Path) -> None:
    annotations = load_list(folder)
    clips = EpisodeClips(annotations, ClipSettings(num_frames=2, size=SIZE), EpisodeShape(2, 1, 1), per_epoch=30)
    unreadable = {str(folder / f"v{n}") for n in (0, 3, 6, *range(10, 24, 3))}
    found: set[str] = set()
    for number in range(30):
        batch = clips[0, number]
        labels, index = batch["label"].tolist(), batch["index"].tolist()
        assert len(set(index)) == 4 and labels[:2] == labels[2:] and labels[0] != labels[1]
        paths = [str(annotations.items[i].path) for i in index]
        assert not unreadable & set(paths)
        for entry in batch["replaced"]:
            assert entry["path"] in unreadable and entry["replaced_by"] in paths and entry["error"]
            found.add(entry["path"])
    assert len(found) > 5


def test_a_class_that_cannot_be_read_gives_way_to_another(folder: Path) -> None:
    # Classes a and c have enough readable videos, b has three.
    shape = EpisodeShape(2, 2, 2)
    clips = EpisodeClips(load_list(folder), ClipSettings(num_frames=2, size=SIZE), shape, per_epoch=6)
    assert all(set(clips[0, number]["label"].tolist()) == {0, 2} for number in range(6))
    few = EpisodeClips(load_list(folder), ClipSettings(num_frames=2, size=SIZE), EpisodeShape(3, 2, 2), per_epoch=2)
    with pytest.raises(InputError, match="2 classes with readable videos enough, not 3; check the root folder") as told:
        few[0, 0]
    assert "\n" not in str(told.value)
