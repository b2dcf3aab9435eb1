"""Features of a long list: those of the model, equal to the bit however they are computed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from m2clip import at_scale
from m2clip.at_scale import LocalProcess
from m2clip.data.clips import ClipSettings, load_views
from m2clip.errors import InputError
from tests.at_scale import scale
from tests.at_scale.scale import BROKEN, SETTINGS, VIDEOS, check_complete, content, in_process, killed, run, table
from tests.commands.calls import call

VIEWS = ClipSettings(num_frames=scale.FRAMES, size=48, clips=2)
GOOD = [number for number in range(VIDEOS) if number not in BROKEN]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scale.write_list(tmp_path_factory.mktemp("scale"))


@pytest.fixture(scope="module")
def whole(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    run("features", listed, folder, views=VIEWS)
    return folder


def read_all(folder: Path) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for path in sorted((folder / "parts").glob("*.safetensors")):
        tensors = load_file(path)
        for place, index in enumerate(tensors["index"].tolist()):
            assert index not in found
            found[index] = tensors["video"][place], tensors["frames"][place]
    return found


def test_features_are_the_models_mean_over_views(listed: Path, whole: Path) -> None:
    check_complete(whole, "features.csv")
    model = scale.build_model().eval()
    found = read_all(whole)
    assert sorted(found) == GOOD
    for index, item in enumerate(at_scale.read_videos(listed)):
        if index in BROKEN:
            continue
        with torch.no_grad():
            out = model(load_views(item, VIEWS))
        video, frames = found[index]
        assert video.shape == (64,) and frames.shape == (scale.FRAMES, 64) and video.dtype == np.float32
        np.testing.assert_allclose(video, out.video_features.mean(0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(frames, out.frame_features.mean(0), rtol=0, atol=1e-5)


def test_files_tell_whose_features_they_hold(listed: Path, whole: Path) -> None:
    with safe_open(whole / "parts" / "features-00000.safetensors", framework="np") as file:
        facts = json.loads(file.metadata()["m2clip"])
    assert [Path(path).name for path in facts["paths"]] == ["00.mp4", "01.mp4", "02.mp4"]
    (failure,) = facts["failures"]
    assert failure["index"] == 3 and "web page" in failure["error"]
    found = read_all(whole)
    for index, row in enumerate(table(whole, "features.csv")):
        if not row["error"]:
            tensors = load_file(whole / "parts" / row["file"])
            assert np.array_equal(tensors["video"][int(row["row"])], found[index][0])
    assert "mean over views" in json.loads((whole / "manifest.json").read_text())["settings"]["fusion"]


@pytest.mark.parametrize("shard_size", [1, 5, 100])
def test_size_of_parts_changes_no_bit(listed: Path, whole: Path, tmp_path: Path, shard_size: int) -> None:
    run("features", listed, tmp_path / "out", views=VIEWS, settings=replace(SETTINGS, shard_size=shard_size))
    assert_equal(read_all(tmp_path / "out"), read_all(whole))


def assert_equal(found: dict[int, Any], expected: dict[int, Any]) -> None:
    assert found.keys() == expected.keys()
    for index, pair in expected.items():
        assert all(np.array_equal(one, other) for one, other in zip(found[index], pair, strict=True)), index


def test_companions_change_no_bit(listed: Path, whole: Path, tmp_path: Path, monkeypatch) -> None:
    """All other videos of the list are others: what shares a forward pass with a video does not matter."""
    kept = at_scale.read_videos(listed)[7].path

    def noise(item: Any, views: ClipSettings) -> torch.Tensor:
        video = load_views(item, views)
        return video if item.path == kept else torch.randn_like(video) * 50

    monkeypatch.setattr("m2clip.at_scale.passes.load_views", noise)
    run("features", listed, tmp_path / "out", views=VIEWS)
    found, expected = read_all(tmp_path / "out"), read_all(whole)
    assert_equal({7: found[7]}, {7: expected[7]})
    assert not np.array_equal(found[6][0], expected[6][0])


def test_killed_and_two_processes(listed: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    killed(lambda: run("features", listed, folder, views=VIEWS), "during", 1)
    ranks = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    local = LocalProcess(workers=1, device="cpu")
    processes = [in_process(lambda: run("features", listed, folder, local, views=VIEWS), rank) for rank in ranks]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert content(folder) == content(whole)


def test_parquet_holds_the_same(listed: Path, whole: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = tmp_path / "out"
    killed(lambda: run("features", listed, folder, views=VIEWS, format="parquet"), "during", 2)
    run("features", listed, folder, views=VIEWS, format="parquet")
    rows = pq.read_table(folder / "parts").to_pylist()
    assert [row["index"] for row in rows] == list(range(VIDEOS))
    assert [row["index"] for row in rows if row["video"] is None and row["frames"] is None and row["error"]] == list(
        BROKEN
    )
    found = {
        row["index"]: (np.array(row["video"], np.float32), np.array(row["frames"], np.float32))
        for row in rows
        if row["error"] is None
    }
    assert_equal(found, read_all(whole))


@pytest.mark.parametrize("format", ["safetensors", "parquet"])
def test_a_part_of_broken_videos_only(tmp_path: Path, format: str) -> None:
    (tmp_path / "videos").mkdir()
    for number in range(3):
        (tmp_path / "videos" / f"{number}.mp4").write_bytes(b"")
    for _ in range(2):
        summary = run("features", tmp_path / "videos", tmp_path / "out", format=format)
        assert [failure.index for failure in summary.failures] == [0, 1, 2] and len(summary.parts) == 1


def test_half_precision_is_another_job(listed: Path, whole: Path) -> None:
    with pytest.raises(InputError, match="precision"):
        run("features", listed, whole, views=VIEWS, settings=replace(SETTINGS, precision="bf16"))


def test_command(capfd, listed: Path, tmp_path: Path) -> None:
    words = ("features", listed, tmp_path / "out", "--clip", "tiny", "--frames", 2, "--workers", 0, "--device", "cpu")
    code, out, err = call(capfd, *words, "--json", "--no-isolate")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert summary["videos"] == VIDEOS and [failure["index"] for failure in summary["failures"]] == list(BROKEN)
    assert len(read_all(tmp_path / "out")) == len(GOOD)
