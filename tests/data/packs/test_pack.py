"""Packing: nothing is lost, stopping is harmless, the same list gives the same bytes, and plain tools read them."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from m2clip import cli
from m2clip.data.lists.annotations import list_hash, load_annotations
from m2clip.data.packs.pack import pack
from m2clip.data.packs.samples import stored_indices
from m2clip.data.packs.settings import PackSettings
from m2clip.data.video.readers import open_video
from m2clip.errors import InputError
from m2clip.files.disk import unseal
from m2clip.files.folders import locked
from m2clip.train import trainer as train
from tests.data.video_files import read_code, write_rotated, write_video
from tests.train.training_run import CLASS_NAMES, build_clip, build_config, read_losses, write_videos

SETTINGS = PackSettings(frames=8, short_side=48, shard_videos=3, isolate=False)
VIDEOS = PackSettings("videos", short_side=48, shard_videos=3, keyframes=5, isolate=False)
ROUNDS = int(os.environ.get("M2CLIP_KILLS", "1"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    for name in ("jump", "run", "walk"):
        for number in range(3):
            write_video(folder / name / f"{number} ä.mp4", num_frames=10 + 7 * number, size=(96, 64))
    return folder


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_stored_frames_are_spread_from_the_first_to_the_last() -> None:
    assert stored_indices(5, 8) == stored_indices(5, 5) == stored_indices(5, None) == [0, 1, 2, 3, 4]
    assert stored_indices(7, 1) == [3]
    for frames in (9, 33, 250):
        indices = stored_indices(frames, 8)
        assert len(set(indices)) == 8 and indices == sorted(indices) and (indices[0], indices[-1]) == (0, frames - 1)
        assert all(abs(index - place * (frames - 1) / 7) <= 0.5 for place, index in enumerate(indices))


def test_manifest_tells_what_is_there(videos: Path, tmp_path: Path) -> None:
    annotations = load_annotations(videos)
    manifest = pack(annotations, tmp_path / "p", SETTINGS, workers=1)
    assert manifest == unseal(json.loads((tmp_path / "p" / "manifest.json").read_text()))
    assert manifest["counts"] == {"videos": 9, "packed": 9, "failed": 0, "frames": 72}
    assert manifest["class_names"] == ["jump", "run", "walk"]
    assert manifest["list"] == {"videos": 9, "sha256": list_hash(annotations.items)}
    assert (manifest["settings"]["frames"], manifest["failures"]) == (8, [])
    sums = tree(tmp_path / "p")
    assert [shard["sha256"] for shard in manifest["shards"]] == [sums[f"shard-{n:06d}.tar"] for n in range(3)]
    sizes = [(tmp_path / "p" / f"{shard['name']}.tar").stat().st_size for shard in manifest["shards"]]
    assert [shard["bytes"] for shard in manifest["shards"]] == sizes and sum(sizes) == manifest["bytes"]


def test_plain_tar_and_webdataset_read_the_shards(videos: Path, tmp_path: Path) -> None:
    import webdataset

    pack(load_annotations(videos), tmp_path / "p", SETTINGS, workers=1)
    shards = sorted((tmp_path / "p").glob("*.tar"))
    listed = [subprocess.check_output(["tar", "tf", shard], text=True).split() for shard in shards]
    names = []
    for shard in shards:
        with tarfile.open(shard) as archive:
            names.append(archive.getnames())
    assert names == listed and sum(len(each) for each in listed) == 9 * (1 + 8)
    samples = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False).decode("rgb8"))
    assert sorted(sample["__key__"] for sample in samples) == [f"{n:09d}" for n in range(9)]
    for sample in samples:
        facts = sample["json"]
        assert facts["path"] == f"{facts['class']}/{int(sample['__key__']) % 3} ä.mp4"
        assert (facts["label"], facts["fps"]) == (("jump", "run", "walk").index(facts["class"]), 25.0)
        assert facts["times"] == pytest.approx([frame / 25 for frame in facts["frames"]])
        assert facts["num_frames"] == 10 + 7 * (int(sample["__key__"]) % 3)
        images = [sample[f"{number:04d}.jpg"] for number in range(8)]
        assert {image.shape for image in images} == {(48, 72, 3)}
        assert facts["frames"] == stored_indices(facts["num_frames"], 8)


def test_shards_mix_the_classes(videos: Path, tmp_path: Path) -> None:
    pack(load_annotations(videos), tmp_path / "p", SETTINGS, workers=1)
    indexes = [json.loads(path.read_text()) for path in sorted((tmp_path / "p" / "index").iterdir())]
    assert any(len({sample["label"] for sample in index["samples"]}) > 1 for index in indexes)


@pytest.mark.parametrize("settings", [SETTINGS, VIDEOS], ids=["frames", "videos"])
def test_repetition_changes_nothing(videos: Path, tmp_path: Path, settings: PackSettings) -> None:
    pack(load_annotations(videos), tmp_path, settings, workers=1)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    pack(load_annotations(videos), tmp_path, settings, workers=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


def test_files_of_parts_tell_what_they_were_cut_from(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", num_frames=20)
    write_video(tmp_path / "b.mp4", num_frames=20)
    lines = ["path,start,end,label", "a.mp4,0,0.2,0", "a.mp4,0.2,0.4,1", "b.mp4,0,0.3,1"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    pack(load_annotations(tmp_path / "list.csv", class_names=["x", "y"]), tmp_path / "p", VIDEOS, workers=1)
    items = load_annotations(tmp_path / "p").items
    assert [item.path.name for item in items] == ["a_0-0.2.mp4", "a_0.2-0.4.mp4", "b_0-0.3.mp4"]
    assert [item.source for item in items] == [Path("a.mp4"), Path("a.mp4"), Path("b.mp4")]


def test_unreadable_videos_are_listed_and_tried_again_on_request(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "zeros.mp4").write_bytes(bytes(1000))
    lines = [f"{path} 0" for path in sorted((videos / "jump").iterdir())]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "missing.mp4 1", "zeros.mp4 2"]))
    annotations = load_annotations(tmp_path / "list.txt", class_names=["a", "b", "c"])
    manifest = pack(annotations, tmp_path / "p", SETTINGS, workers=1)
    assert manifest["counts"] == {"videos": 5, "packed": 3, "failed": 2, "frames": 24}
    assert [(each["position"], each["label"]) for each in manifest["failures"]] == [(3, 1), (4, 2)]
    assert "no such file" in manifest["failures"][0]["error"] and "zeros" in manifest["failures"][1]["error"]
    assert [item.label for item in load_annotations(tmp_path / "p").items] == [0, 0, 0]
    write_video(tmp_path / "missing.mp4", num_frames=9)
    assert pack(annotations, tmp_path / "p", SETTINGS, workers=1) == manifest
    again = pack(annotations, tmp_path / "p", SETTINGS, workers=1, retry_failed=True)
    assert [each["position"] for each in again["failures"]] == [4]
    pack(annotations, tmp_path / "fresh", SETTINGS, workers=1)
    assert tree(tmp_path / "fresh") == tree(tmp_path / "p")


def test_other_settings_or_lists_are_refused(videos: Path, tmp_path: Path) -> None:
    annotations = load_annotations(videos)
    pack(annotations, tmp_path / "p", SETTINGS, workers=1)
    before = tree(tmp_path / "p")
    with pytest.raises(InputError, match=r"holds a pack with other settings: frames \(8 there, 9 here\);"):
        pack(annotations, tmp_path / "p", PackSettings(frames=9, short_side=48, shard_videos=3))
    with pytest.raises(InputError, match=r"kind \('frames' there, 'videos' here\)"):
        pack(annotations, tmp_path / "p", VIDEOS)
    with pytest.raises(InputError, match=r"list \({'videos': "):
        pack(annotations.select_classes(["run"]), tmp_path / "p", SETTINGS)
    with pytest.raises(InputError, match="is a pack already"):
        pack(load_annotations(tmp_path / "p"), tmp_path / "q", SETTINGS)
    assert tree(tmp_path / "p") == before


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_folder_of_something_else_is_left_alone(videos: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"name": "a web page"}')
    with pytest.raises(InputError, match="give a new folder"):
        pack(load_annotations(videos), tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "change", [{"kind": "x"}, {"reader": "x"}, {"frames": 0}, {"quality": 96}, {"short_side": 4}, {"crf": 52}]
)
def test_bad_settings(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        PackSettings(**change)


def test_lost_and_truncated_files_are_made_again(videos: Path, tmp_path: Path) -> None:
    annotations = load_annotations(videos)
    pack(annotations, tmp_path, SETTINGS, workers=1)
    before = tree(tmp_path)
    (tmp_path / "shard-000000.tar").unlink()
    (tmp_path / "index" / "shard-000001.json").write_text('{"name": ')
    with (tmp_path / "shard-000002.tar").open("r+b") as file:
        file.truncate(5000)
    pack(annotations, tmp_path, SETTINGS, workers=1)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["frames", "videos"])
def test_killed_at_any_moment_it_goes_on(videos: Path, tmp_path: Path, kind: str) -> None:
    """kill -9 soon after the next part is done; what follows ends with the bytes of one process that was not killed."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    settings = replace(SETTINGS if kind == "frames" else VIDEOS, shard_videos=2)
    pack(load_annotations(videos), whole, settings, workers=1)
    options = ["--short-side", "48", "--shard-size", "2", "--workers", "2"]
    options += ["--frames", "8"] if kind == "frames" else ["--video", "--keyframes", "5"]
    command = [sys.executable, "-m", "m2clip.cli", "pack", str(videos), str(folder), *options]
    rng = random.Random(0)
    for _ in range(ROUNDS):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        done = len(list(folder.glob("index/shard-*.json")))
        while running.poll() is None and len(list(folder.glob("index/shard-*.json"))) <= done:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        running.kill()
        running.wait()
        wait_for_group(running.pid)
        if rng.random() < 0.5:  # lose what was done last, so that many rounds have something to do
            for path in list(folder.glob("index/shard-*.json"))[:2]:
                path.unlink()
    if not json.loads((folder / "manifest.json").read_text())["complete"]:
        with pytest.raises(InputError, match="run the same m2clip pack again"):
            load_annotations(folder)
    pack(load_annotations(videos), folder, settings, workers=1)
    assert tree(folder) == tree(whole)


def wait_for_group(group: int) -> None:
    """Until no process of a killed one's session runs; the test's own time limit ends a wait without end."""
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)


def test_two_calls_for_one_folder(videos: Path, tmp_path: Path) -> None:
    with locked(tmp_path, "test"), pytest.raises(InputError, match="another m2clip pack is writing"):
        pack(load_annotations(videos), tmp_path, SETTINGS, workers=1)
    assert pack(load_annotations(videos), tmp_path, SETTINGS, workers=1)["complete"]


def test_a_worker_that_dies_is_told(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2clip.data.packs.pack.write_part", die)
    with pytest.raises(InputError, match="killed or crashed; run the same command again"):
        pack(load_annotations(videos), tmp_path, SETTINGS, workers=2)
    monkeypatch.undo()
    assert pack(load_annotations(videos), tmp_path, SETTINGS, workers=1)["counts"]["packed"] == 9


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_full_disk_is_told(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("m2clip.files.disk.os.fsync", full)
    with pytest.raises(InputError, match="No space left on device.*run the same command again"):
        pack(load_annotations(videos), tmp_path, SETTINGS, workers=1)


def test_reencoded_videos_keep_their_frames_and_times(tmp_path: Path) -> None:
    times = [0, 3, 7, 20, 21, 30, 45, 46, 50, 61, 70, 80]
    write_video(tmp_path / "v" / "a.mp4", num_frames=12, size=(96, 64), times=times)
    write_video(tmp_path / "v" / "a.mkv", num_frames=23, size=(50, 38), gop=50)
    write_rotated(tmp_path / "v" / "b.mp4", write_video(tmp_path / "plain.mp4", num_frames=6, size=(96, 64)), 90)
    (tmp_path / "list.txt").write_text("v/a.mp4 0\nv/a.mkv 1\nv/b.mp4 0\n")
    manifest = pack(load_annotations(tmp_path / "list.txt"), tmp_path / "p", VIDEOS, workers=1)
    assert manifest["counts"] == {"videos": 3, "packed": 3, "failed": 0}
    assert (tmp_path / "p" / "list.txt").read_text().split("\n")[1] == "videos/a.mkv.mp4 1"
    for annotations in (load_annotations(tmp_path / "p"), load_annotations(tmp_path / "p" / "list.txt")):
        assert [(item.path.name, item.label) for item in annotations.items] == [
            ("a.mp4.mp4", 0),
            ("a.mkv.mp4", 1),
            ("b.mp4", 0),
        ]
    sizes = {"a.mp4.mp4": (48, 72), "a.mkv.mp4": (38, 50), "b.mp4": (72, 48)}
    for item, count in zip(annotations.items, (12, 23, 6), strict=True):
        with open_video(item.path, "pyav") as video:
            assert video.num_frames == count
            frames = video.read(range(count))
            assert frames.shape[2:] == sizes[item.path.name]
            if item.path.name != "b.mp4":
                assert [read_code(frame) for frame in frames] == list(range(count))
            if item.path.name == "a.mp4.mp4":
                assert video.seconds(range(12)) == pytest.approx([time / 100 for time in times], abs=1e-4)
            keys = video._keys  # type: ignore[attr-defined]
            assert len(keys) == -(-count // VIDEOS.keyframes)


def test_names_that_would_meet(tmp_path: Path) -> None:
    from m2clip.data.packs.pack import plan

    (tmp_path / "list.txt").write_text("a.avi 0\na.mkv 0\na.avi.mp4 0\n")
    with pytest.raises(InputError, match=r"two videos of the list would become a\.avi\.mp4"):
        plan(load_annotations(tmp_path / "list.txt"), VIDEOS)


def test_long_videos_are_read_in_pieces(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations = load_annotations(videos)
    pack(annotations, tmp_path / "whole", SETTINGS, workers=1)
    monkeypatch.setattr("m2clip.data.packs.samples._FRAME_BYTES", 3 * 96 * 64 * 3)
    pack(annotations, tmp_path / "pieces", SETTINGS, workers=1)
    assert tree(tmp_path / "pieces") == tree(tmp_path / "whole")


def test_a_crashing_decoder_costs_its_video_only(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2clip.data.video.isolated._CHILD", "from tests.data.video.hostile_child import main")
    monkeypatch.setattr("m2clip.data.video.isolated._own", threading.local())
    good = sorted((videos / "jump").iterdir())
    (tmp_path / "list.txt").write_text("\n".join(f"{path} 0" for path in (good[0], "read_segfault.bad", *good[1:])))
    settings = replace(SETTINGS, isolate=True)
    manifest = pack(load_annotations(tmp_path / "list.txt"), tmp_path / "p", settings, workers=1)
    assert manifest["counts"]["packed"] == 3 and "crashed" in manifest["failures"][0]["error"]


class TestCommand:
    def test_packs_and_reports(self, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "bad.mp4").write_bytes(b"")
        lines = [f"{path} 0" for path in sorted((videos / "jump").iterdir())]
        (tmp_path / "list.txt").write_text("\n".join([*lines, "bad.mp4 1"]))
        options = ["--frames", "all", "--short-side", "32", "--quality", "50", "--workers", "1"]
        assert cli.main(["pack", str(tmp_path / "list.txt"), str(tmp_path / "p"), *options]) == 0
        printed = capsys.readouterr().out
        assert "3 videos, 51 frames" in printed and "1 of 4 videos could not be read" in printed
        assert "bad.mp4: the file is empty" in printed
        assert cli.main(["pack", str(tmp_path / "list.txt"), str(tmp_path / "p"), *options, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["settings"]["frames"] is None and shown["counts"]["packed"] == 3

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--video", "--quality", "3"], "--quality says nothing with --video"),
            (["--crf", "3"], "--crf says nothing without --video"),
            (["--quality", "96"], "quality must be between 1 and 95"),
        ],
    )
    def test_bad_arguments(
        self, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
    ) -> None:
        assert cli.main(["pack", str(videos), str(tmp_path / "p"), *options]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "p").exists()


def test_a_run_trains_and_validates_on_packs(tmp_path: Path) -> None:
    originals = load_annotations(write_videos(tmp_path / "v"), class_names=CLASS_NAMES, format="frames")
    settings = PackSettings(quality=95, short_side=16, shard_videos=5, isolate=False)
    pack(originals, tmp_path / "p", settings, workers=1)
    overrides = ["data.format=auto", "data.classes=null", f"data.val={tmp_path / 'p' / 'manifest.json'}"]
    config = build_config(tmp_path / "p", tmp_path / "run", *overrides, "data.shuffle=shards")
    train.run(config, clip=build_clip(), device="cpu", quiet=True)
    assert sum(bool(line["loss"]) for line in read_losses(tmp_path / "run")) == 12
    again = build_config(tmp_path / "v" / "train.txt", tmp_path / "run")
    with pytest.raises(InputError, match="training list"):
        train.run(again, clip=build_clip(), device="cpu", quiet=True)
    files = build_config(tmp_path / "v" / "train.txt", tmp_path / "other", "data.shuffle=shards")
    with pytest.raises(InputError, match="data.shuffle=shards is for clips from the shards"):
        train.run(files, clip=build_clip(), device="cpu", quiet=True)
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["class_names"] == CLASS_NAMES
