"""What is written to be read again: flipped bits, values of other types and deep nesting are noticed.

Records that can be made again are; others are refused in one line.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m2clip import at_scale
from m2clip.at_scale.embeddings import FeaturesTask
from m2clip.at_scale.folder import JobFolder
from m2clip.at_scale.labels import LabelTask
from m2clip.at_scale.settings import Outcome, Task, Work
from m2clip.data.check.files import Depth, FileFacts, Record
from m2clip.data.clips import ClipSettings
from m2clip.data.lists.annotations import VideoItem, load_annotations
from m2clip.data.packs.pack import pack
from m2clip.data.packs.settings import PackSettings
from m2clip.errors import InputError
from m2clip.evaluate import episode_features
from m2clip.files.disk import unseal
from m2clip.plots import pictures as plots
from m2clip.protocols.runs import kept
from m2clip.train.log import RunLog
from m2clip.train.state import Progress, load_newest, save_checkpoint
from tests.at_scale import scale
from tests.train.training_run import CLASS_NAMES, write_videos

DEEP = "[" * 100_000
# Whole files in place of a record in JSON.
WRONG = ("", "null", "3", '"x"', "[]", "{}", "[[]]", DEEP, '{"settings": ' + DEEP, "\xff\xfe", "9" * 5000, '{"a": NaN')


def flips(path: Path, step: int) -> Iterator[int]:
    """Put a file with another bit flipped in its place, again and again; at the end it is as it was."""
    whole = path.read_bytes()
    # The name of a digest is left alone: without it a checkpoint is one of an earlier version.
    name = whole.find(b"state_sha256")
    for bit in range(0, 8 * len(whole), step):
        if name <= bit // 8 < name + len(b"state_sha256"):
            continue
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        yield bit
    path.write_bytes(whole)


def others(path: Path) -> Iterator[str]:
    """Put other contents in the place of a file, and last a pipe; at the end it is as it was."""
    whole = path.read_bytes()
    for text in WRONG:
        path.write_bytes(text.encode("latin-1"))
        yield text[:20]
    path.unlink()
    os.mkfifo(path)
    yield "a pipe"
    path.unlink()
    path.write_bytes(whole)


def one_line(work: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as told:
        work()
    assert "\n" not in str(told.value)
    return str(told.value)


def test_kept_features(tmp_path: Path) -> None:
    part = {"query": torch.randn(2, 3, 4), "support": torch.randn(2, 3, 4)}
    episode_features._write(tmp_path, 0, (part, {}), "videos")
    path = tmp_path / "features_00000.safetensors"

    def read() -> Any:
        return episode_features._read(tmp_path, 0, "videos")

    assert read()[0].keys() == part.keys() and torch.equal(read()[0]["query"], part["query"])
    for _ in chain(flips(path, 7), others(path)):
        assert read() is None
    assert read() is not None and episode_features._read(tmp_path, 0, "other videos") is None
    episode_features._write(tmp_path, 0, (part, {1: "unreadable"}), "videos")
    assert read() is None


def work_of(task: Task) -> Work:
    items = tuple(VideoItem(Path(f"{number}.mp4"), 0) for number in range(2))
    return Work(task, scale.build_model(), items, ClipSettings(num_frames=2, size=48), at_scale.JobSettings())


VALUES = {
    "label": {"head": "zero-shot", "classes": np.array([1, 0]), "names": ["a", "b"], "scores": np.array([0.75, 0.25])},
    "features": {"video": np.ones(4, np.float32), "frames": np.ones((2, 4), np.float32)},
}


@pytest.mark.parametrize("task", [LabelTask(), FeaturesTask(), FeaturesTask("parquet")], ids=lambda task: task.suffix)
def test_parts_of_a_job(tmp_path: Path, task: Task) -> None:
    if task.suffix == "parquet":
        pytest.importorskip("pyarrow")
    work = work_of(task)
    folder = JobFolder(tmp_path, work)
    folder.write(0, [Outcome(0, VALUES[task.name]), Outcome(1, {}, "unreadable")])
    part = folder.part_file(0)
    beside = part.with_name(f".{part.name}.sha256")

    def missing() -> list[int]:
        folder._known.clear()
        return folder.missing()

    assert missing() == []
    for _ in chain(flips(part, 41), others(beside), others(part)):
        assert missing() == [0]
    beside.unlink()  # a part of an earlier version
    assert missing() == []
    for _ in others(part):
        assert missing() == [0]
    folder.close()


def test_manifest_of_a_job(tmp_path: Path) -> None:
    work = work_of(LabelTask())
    JobFolder(tmp_path, work).close()
    manifest = tmp_path / "manifest.json"
    whole = unseal(json.loads(manifest.read_text()))
    for _ in flips(manifest, 103):
        try:
            JobFolder(tmp_path, work).close()
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert {name: unseal(json.loads(manifest.read_bytes())).get(name) for name in whole} == whole
    for content in others(manifest):
        assert "manifest.json: cannot be read" in one_line(lambda: JobFolder(tmp_path, work)), content
    for settings in (3, [], None, "x"):
        manifest.write_text(json.dumps({"settings": settings}))
        assert "manifest.json: cannot be read" in one_line(lambda: JobFolder(tmp_path, work))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    listed = write_videos(folder / "videos", count=3, frames=2)
    videos = load_annotations(listed, class_names=CLASS_NAMES, format="frames")
    pack(videos, folder / "packed", PackSettings(short_side=16, shard_videos=3, isolate=False), workers=1)
    return folder / "packed"


@pytest.mark.parametrize("name", ["manifest.json", "index/shard-000000.json"])
def test_records_of_a_pack(packed: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(packed, tmp_path / "packed")
    whole = load_annotations(folder, format="shards")
    noticed = 0
    for _ in flips(folder / name, 31):
        try:
            assert load_annotations(folder, format="shards") == whole
        except InputError as error:
            assert "\n" not in str(error)
            noticed += 1
    assert noticed > 50
    for _ in others(folder / name):
        one_line(lambda: load_annotations(folder, format="shards"))


def test_a_damaged_index_is_made_again(packed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(packed, tmp_path / "packed")
    listed = packed.parent / "videos" / "train.txt"
    videos = load_annotations(listed, class_names=CLASS_NAMES, format="frames")
    index = folder / "index" / "shard-000000.json"
    whole = index.read_text()
    index.write_text(whole.replace('"label": 1', '"label": 2'))
    pack(videos, folder, PackSettings(short_side=16, shard_videos=3, isolate=False), workers=1)
    assert index.read_text() == whole


def test_scores_of_a_protocol(tmp_path: Path) -> None:
    path, done = tmp_path / "scores.json", []

    def work() -> dict[str, Any]:
        done.append(1)
        return {"base": {"top1": 0.5}}

    def again() -> int:
        done.clear()
        assert kept(path, {"seed": 0}, work) == {"base": {"top1": 0.5}}
        return len(done)

    assert (again(), again()) == (1, 0)
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 13):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        assert again() == 1
    for text in (*WRONG, '{"settings": {"seed": 0}, "scores": 3}'):
        path.write_bytes(text.encode("latin-1"))
        assert again() == 1


def test_records_of_a_check(tmp_path: Path) -> None:
    path, facts = tmp_path / "files.jsonl", FileFacts([1, 2], "parts", frames=3)

    def known() -> FileFacts | None:
        record = Record(path, Depth())
        record.close()
        return record.known("a", [1, 2])

    record = Record(path, Depth())
    record.add("a", facts)
    record.close()
    assert known() == facts
    whole = path.read_bytes()
    for bit in range(0, 8 * (len(whole) - 1), 13):
        path.write_bytes(whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :])
        assert known() is None
    for text in WRONG:
        path.write_bytes(text.encode("latin-1") + b"\n" + whole)
        assert known() == facts
    path.unlink()
    os.mkfifo(path)
    assert "a pipe" in one_line(known)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_checkpoints(tmp_path: Path, name: str) -> None:
    state = {"identity": {}, "scaler": {}, "rng": []}
    for step in (1, 2):
        save_checkpoint(tmp_path, {"w": torch.full((3,), float(step))}, Progress(step), state, keep=2)
    (tmp_path / "step-²").mkdir()  # no step of ours
    damaged = tmp_path / "step-000000002" / name
    for _ in chain(flips(damaged, 7), others(damaged)):
        found = load_newest(tmp_path, lambda line: None)
        assert found is not None and found.progress.step == 1
    for field in state:
        path = tmp_path / "step-000000002" / "state.json"
        content = json.loads(path.read_text())
        content.pop("state_sha256", None)  # as of an earlier version
        path.write_text(json.dumps({**content, field: 3}))
        found = load_newest(tmp_path, lambda line: None)
        assert found is not None and found.progress.step == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("bad_videos.jsonl", text + "\n") for text in ("[]", "3", "null", "{}", DEEP, '{"path": "a", "step": "x"}')),
        ("bad_videos.jsonl", "\xff\n"),
        ("metrics.csv", "step,epoch\nx,1\n"),
        ("metrics.csv", "epoch\n1\n"),
        ("metrics.csv", "step,epoch\n1,1,1\n"),
        ("metrics.csv", "step,epoch\n1\n"),
        ("metrics.csv", "step,val_top1\n1,many\n"),
        ("metrics.csv", "step\n\x00\n"),
        ("metrics.csv", "step\n" + "1" * 200_000 + "\n"),
        ("metrics.csv", "\xff\n"),
    ],
)
def test_records_of_a_run(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    assert f"{name}: is no record of this run" in one_line(lambda: RunLog(tmp_path, 9, 2, quiet=True))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert "a pipe" in one_line(lambda: RunLog(tmp_path, 9, 2, quiet=True))


@pytest.mark.parametrize("text", ["\xff", "a\n\x00\n", "a\n" + "1" * 200_000])
def test_curves_of_what_is_no_record(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode("latin-1"))
    one_line(lambda: plots.training_curves(path, tmp_path / "curves.png"))
