"""The decoding benchmark: all readers give the same frames, a wrong one is told, and a run writes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import decode_readers, decode_speed
from m2clip.data.lists.annotations import Annotations


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Annotations]:
    return decode_speed.generate(tmp_path_factory.mktemp("videos"), 2, 0.6)


def test_the_same_videos_in_every_form(lists: dict[str, Annotations]) -> None:
    original = [decode_readers.FILE_READERS[decode_readers.OURS](item) for item in lists[decode_speed.FAR].items]
    assert not original[0].equal(original[1])
    for name, found in lists.items():
        read = decode_speed.readers_of(name)[decode_readers.OURS]
        for item, frames in zip(found.items, original, strict=True):
            assert (read(item).float() - frames).abs().mean() < 6
    assert len({decode_speed.bytes_of(found) for found in lists.values()}) == 6


def test_every_reader_gives_the_same_frames(lists: dict[str, Annotations]) -> None:
    ready, missing, wrong = decode_readers.usable(decode_readers.FILE_READERS, lists[decode_speed.FAR].items)
    assert [*ready, *missing] and not wrong
    always = (decode_readers.OURS, decode_readers.OURS_DECORD, decode_readers.DECORD, decode_readers.SEQUENTIAL)
    assert set(always) <= set(ready) and all("torchcodec" in name for name in missing)


def test_a_wrong_reader_is_not_timed(lists: dict[str, Annotations]) -> None:
    readers = dict(decode_readers.FILE_READERS)
    right = readers[decode_readers.DECORD]
    readers[decode_readers.DECORD] = lambda item: right(item).flip(0)
    ready, missing, wrong = decode_readers.usable(readers, lists[decode_speed.FAR].items)
    assert decode_readers.DECORD not in ready and missing[decode_readers.DECORD].startswith("wrong: frames differ by")
    assert len(wrong) == 1


def test_a_run_writes_table_json_and_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(decode_speed, "MEMORY_OF", ((decode_speed.SHARDS, decode_readers.OURS),))
    monkeypatch.setattr(decode_speed, "WORKERS", (0, 1))
    options = ["--videos", "2", "--seconds", "0.4", "--rounds", "2", "--decodes", "20", "--clips", "2"]
    monkeypatch.setattr("sys.argv", ["decode_speed.py", *options, "--out", str(tmp_path)])
    decode_speed.main()
    assert "shards over the original by plain decord" in capsys.readouterr().out
    content = json.loads((tmp_path / "decode_speed.json").read_text())
    assert [len(form["readers"]) > 1 for form in content["forms"].values()] == [True, True, True, True, True, False]
    assert all(value["median"] > 0 for value in content["ratios"].values())
    (memory,) = content["memory"].values()
    assert memory["decodes"] == 20 and len(memory["mb"]) == 11 and memory["peak_mb"] >= max(memory["mb"]) - 1
    assert list(content["loaders"]) == [decode_speed.FAR, decode_speed.ENCODED, decode_speed.SHARDS]
    for entry in content["loaders"].values():
        assert [rate["median"] > 0 for rate in entry["clips_a_second_by_workers"].values()] == [True, True]
        cost = entry["processor_seconds_a_clip"]["median"]
        assert entry["cores_for_clips_a_second"]["1000"] == pytest.approx(1000 * cost, abs=0.1)
    assert (tmp_path / "decode_speed.png").stat().st_size > 10_000
