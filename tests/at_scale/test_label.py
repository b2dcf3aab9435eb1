"""Labels of a long list: equal however they are computed, each video once whatever is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from m2clip import at_scale
from m2clip.at_scale import LocalProcess
from m2clip.at_scale.folder import JobFolder
from m2clip.data.clips import ClipSettings, load_views
from m2clip.errors import InputError
from m2clip.prediction.videos import predict_video
from tests.at_scale import scale
from tests.at_scale.scale import (
    BROKEN,
    NAMES,
    SETTINGS,
    VIDEOS,
    check_complete,
    content,
    in_process,
    killed,
    run,
    table,
)
from tests.commands.calls import call, one_line
from tests.data.video_files import write_video

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scale.write_list(tmp_path_factory.mktemp("scale"))


@pytest.fixture(scope="module")
def whole(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    run("label", listed, folder)
    return folder


def test_every_video_is_labelled_as_predict_does(listed: Path, whole: Path) -> None:
    check_complete(whole)
    model = scale.build_model().eval()
    for row, item in zip(table(whole, "labels.csv"), at_scale.read_videos(listed), strict=True):
        if row["error"]:
            assert row["name"] == "" and str(item.path) in row["error"]
            continue
        settings = ClipSettings(num_frames=scale.FRAMES, size=48)
        expected = predict_video(model, item.path, settings=settings).ranked
        names = [row["name"], *(row[f"name_{place}"] for place in range(2, len(NAMES) + 1))]
        scores = [float(row["score"]), *(float(row[f"score_{place}"]) for place in range(2, len(NAMES) + 1))]
        assert names == [name for name, _ in expected]
        assert scores == pytest.approx([score for _, score in expected], abs=1e-6)


def test_parts_are_json_lines(whole: Path) -> None:
    lines = (whole / "parts" / "label-00000.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["head"] == "zero-shot" and [NAMES[number] for number in rows[0]["classes"]] == rows[0]["names"]
    assert rows[3]["names"] == [] and "web page" in rows[3]["error"]


def test_workers_and_isolated_decoding_change_nothing(listed: Path, whole: Path, tmp_path: Path) -> None:
    isolated = ClipSettings(num_frames=scale.FRAMES, size=48, isolate=True)
    run("label", listed, tmp_path / "out", LocalProcess(workers=2, device="cpu"), views=isolated)
    assert content(tmp_path / "out") == content(whole)


@pytest.mark.parametrize("shard_size", [1, 5, 100])
def test_size_of_parts_changes_no_bit(listed: Path, whole: Path, tmp_path: Path, shard_size: int) -> None:
    run("label", listed, tmp_path / "out", settings=replace(SETTINGS, shard_size=shard_size))
    assert (tmp_path / "out" / "labels.csv").read_bytes() == (whole / "labels.csv").read_bytes()


def test_other_batch_size_and_threads_change_only_rounding(listed: Path, whole: Path, tmp_path: Path) -> None:
    rows = table(whole, "labels.csv")
    for batch_size in (1, 8):
        folder = tmp_path / str(batch_size)
        run("label", listed, folder, settings=replace(SETTINGS, batch_size=batch_size))
        for row, other in zip(rows, table(folder, "labels.csv"), strict=True):
            assert row["name"] == other["name"] and row["name_4"] == other["name_4"]
            assert row["error"] or float(row["score"]) == pytest.approx(float(other["score"]), abs=1e-6)


@pytest.mark.parametrize(("moment", "parts"), [("before", 0), ("during", 1), ("after", 2), ("during", 3)])
def test_killed_and_started_again(listed: Path, whole: Path, tmp_path: Path, moment: str, parts: int) -> None:
    folder = tmp_path / "out"
    killed(lambda: run("label", listed, folder), moment, parts)
    stored = list((folder / "parts").glob("label-*"))
    assert len(stored) == parts + (moment == "after")
    kept = {path: path.stat().st_mtime_ns for path in stored}
    run("label", listed, folder)
    assert content(folder) == content(whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_processes_share_the_work_and_take_over_from_a_dead_one(listed: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    ranks = [{"RANK": str(rank), "WORLD_SIZE": "3"} for rank in range(3)]

    def dies() -> None:
        scale.dying("during", 0)
        run("label", listed, folder)

    # The second holds its part when the first starts, and dies; the third, which has parts of its own, lives.
    processes = [in_process(dies, ranks[1]), in_process(lambda: run("label", listed, folder), ranks[2])]
    processes.append(in_process(lambda: run("label", listed, folder), ranks[0]))
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-9, 0, 0]
    assert content(folder) == content(whole)


def test_no_part_is_computed_twice_at_a_time(listed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    reading, writing = os.pipe()

    def waits() -> None:
        work = _work(listed)
        held = JobFolder(folder, work)
        assert held.claim(1, 2) == [1, 2]
        os.write(writing, b"x")
        time.sleep(600)

    process = in_process(waits)
    os.read(reading, 1)
    own = JobFolder(folder, _work(listed))
    assert own.claim(0, 9) == [0, 3]
    process.kill()
    process.join()
    # Own claims are locks as well, which the same process may take again.
    assert own.claim(1, 2) == [1, 2]
    own.close()


def _work(listed: Path) -> Any:
    from m2clip.at_scale.labels import LabelTask
    from m2clip.at_scale.settings import Work

    views = ClipSettings(num_frames=scale.FRAMES, size=48)
    return Work(LabelTask(), scale.build_model(), at_scale.read_videos(listed), views, SETTINGS)


def test_torchrun(listed: Path, whole: Path, tmp_path: Path) -> None:
    """Two real processes; the bundled CLIP, since the command line knows no random one."""
    words = ["label", listed, "--clip", "tiny", "--frames", scale.FRAMES, "--labels", *NAMES, "--shard-size", 4]
    words += ["--batch-size", 3, "--workers", 0, "--device", "cpu", "--no-isolate", "--json"]
    program = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "m2clip.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(program: list[str], output: Path) -> dict[str, Any]:
        line = [sys.executable, *program, *map(str, [words[0], words[1], output, *words[2:]])]
        found = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    summary = start(program, tmp_path / "two")
    assert summary["videos"] == VIDEOS and [failure["index"] for failure in summary["failures"]] == list(BROKEN)
    torch.set_num_threads(1)
    from m2clip import cli

    assert cli.main([str(word) for word in [words[0], words[1], tmp_path / "one", *words[2:]]]) == 0
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_other_settings_are_refused(listed: Path, whole: Path) -> None:
    before = content(whole)
    settings = replace(SETTINGS, shard_size=5)
    with pytest.raises(InputError) as caught:
        run("label", listed, whole, settings=settings, top=2, views=ClipSettings(num_frames=2, size=48, clips=2))
    message = str(caught.value)
    assert all(name in message for name in ("shard_size (4 there, 5 here)", "top (5 there", "views.clips"))
    assert "precision" not in message and "\n" not in message
    with pytest.raises(InputError, match="task"):
        run("features", listed, whole)
    assert content(whole) == before


def test_other_videos_are_refused(listed: Path, whole: Path, tmp_path: Path) -> None:
    fewer = listed.with_name("fewer.txt")
    fewer.write_text("".join(listed.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"list.sha256 .* list.videos \(13 there, 12 here\)"):
        run("label", fewer, whole)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files, such as thesis.txt"):
        run("label", listed, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_manifest_is_removed_as_the_message_says(listed: Path, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "out")
    (folder / "manifest.json").write_text("")
    with pytest.raises(
        InputError, match="manifest.json: cannot be read .*; remove it if the folder holds no other job"
    ):
        run("label", listed, folder)
    (folder / "manifest.json").unlink()
    run("label", listed, folder)
    assert content(folder) == content(whole)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "labels.csv").write_text("mine")
    with pytest.raises(InputError, match="holds other files, such as labels.csv"):
        run("label", listed, tmp_path / "mine")


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: "", lambda text: text.split("\n", 1)[1]])
def test_damaged_part_is_computed_again(listed: Path, whole: Path, tmp_path: Path, damage: Any) -> None:
    folder = tmp_path / "out"
    run("label", listed, folder)
    part = folder / "parts" / "label-00002.jsonl"
    part.write_text(damage(part.read_text()))
    run("label", listed, folder)
    assert content(folder) == content(whole)


def test_on_error_raise_names_the_first_and_keeps_the_rest(listed: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    settings = replace(SETTINGS, on_error="raise")
    with pytest.raises(InputError, match=r"03.mp4: a web page .* \(--on-error skip"):
        run("label", listed, folder, settings=settings)
    assert [path.name for path in (folder / "parts").glob("label-*")] == ["label-00000.jsonl"]
    run("label", listed, folder)
    assert content(folder) == content(whole)
    with pytest.raises(InputError, match="03.mp4"):  # also where nothing is left to be done
        run("label", listed, folder, settings=settings)


def test_retry_reads_repaired_videos(tmp_path: Path) -> None:
    for number in range(6):
        write_video(tmp_path / "videos" / f"{number}.mp4", num_frames=4)
    broken = tmp_path / "videos" / "4.mp4"
    content_of_it = broken.read_bytes()
    broken.write_bytes(b"")
    folder = tmp_path / "out"
    assert len(run("label", tmp_path / "videos", folder).failures) == 1
    broken.write_bytes(content_of_it)
    assert len(run("label", tmp_path / "videos", folder).failures) == 1
    kept = (folder / "parts" / "label-00000.jsonl").stat().st_mtime_ns
    assert run("label", tmp_path / "videos", folder, settings=replace(SETTINGS, retry_failed=True)).failures == []
    assert (folder / "parts" / "label-00000.jsonl").stat().st_mtime_ns == kept


def test_scores_that_are_no_numbers_fail_their_video_alone(
    listed: Path, whole: Path, tmp_path: Path, monkeypatch
) -> None:
    first = at_scale.read_videos(listed)[6].path

    def spoiled(item: Any, views: ClipSettings) -> torch.Tensor:
        return load_views(item, views) * (float("nan") if item.path == first else 1)

    monkeypatch.setattr("m2clip.at_scale.passes.load_views", spoiled)
    summary = run("label", listed, tmp_path / "out")
    assert [failure.index for failure in summary.failures] == [3, 6, 11]
    assert "not finite" in summary.failures[1].error
    pairs = zip(table(tmp_path / "out", "labels.csv"), table(whole, "labels.csv"), strict=True)
    assert [row == other for row, other in pairs] == [number != 6 for number in range(VIDEOS)]


def test_unexpected_errors_cost_one_video(listed: Path, tmp_path: Path, monkeypatch) -> None:
    second = at_scale.read_videos(listed)[2].path

    def fails(item: Any, views: ClipSettings) -> torch.Tensor:
        if item.path == second:
            raise ZeroDivisionError("no\nnumber")
        return load_views(item, views)

    monkeypatch.setattr("m2clip.at_scale.passes.load_views", fails)
    summary = run("label", listed, tmp_path / "out")
    assert summary.failures[0].error.endswith("02.mp4: ZeroDivisionError: no number")
    assert [failure.index for failure in summary.failures] == [2, 3, 11]


def test_views_of_a_video_are_averaged(listed: Path, tmp_path: Path) -> None:
    views = ClipSettings(num_frames=scale.FRAMES, size=48, clips=2, crops=3)
    run("label", listed, tmp_path / "out", views=views)
    expected = predict_video(scale.build_model().eval(), at_scale.read_videos(listed)[12].path, settings=views)
    row = table(tmp_path / "out", "labels.csv")[12]
    assert row["name"] == expected.ranked[0][0]
    assert float(row["score"]) == pytest.approx(expected.ranked[0][1], abs=1e-6)


def test_parquet(listed: Path, whole: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    killed(lambda: run("label", listed, tmp_path / "out", format="parquet"), "during", 2)
    run("label", listed, tmp_path / "out", format="parquet")
    assert (tmp_path / "out" / "labels.csv").read_bytes() == (whole / "labels.csv").read_bytes()
    rows = pq.read_table(tmp_path / "out" / "parts").to_pylist()
    assert [row["index"] for row in rows] == list(range(VIDEOS))
    assert rows[3]["scores"] == [] and "web page" in rows[3]["error"] and rows[4]["error"] is None


def test_lists_of_videos(listed: Path, tmp_path: Path) -> None:
    read = at_scale.read_videos
    paths = [listed.parent / "videos" / f"{number:02d}.mp4" for number in range(VIDEOS)]
    assert [item.path for item in read(listed)] == [item.path for item in read(listed.parent / "videos")] == paths
    told = "".join(f'"videos\\{number:02d}.mp4",\n' for number in range(VIDEOS))
    (tmp_path / "column.csv").write_text(f"# mine\nPath,\n{told}#videos/99.mp4\n,\n")
    assert [item.path for item in read(tmp_path / "column.csv", root=listed.parent)] == paths
    labelled = tmp_path / "labelled.txt"
    labelled.write_text("".join(f"videos/{number:02d}.mp4 {number}\n" for number in range(VIDEOS)))
    assert [item.path for item in read(labelled, root=listed.parent)] == paths
    (tmp_path / "twice.txt").write_text("a.mp4\nb.mp4\n\na.mp4\n")
    with pytest.raises(InputError, match=r"twice.txt, line 4: duplicate path .*a.mp4, already at line 1"):
        read(tmp_path / "twice.txt")
    (tmp_path / "empty").mkdir()
    for bad, said in (("empty", "holds no videos, found nothing"), ("absent", "no such list")):
        with pytest.raises(InputError, match=said):
            read(tmp_path / bad)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{list}", "{out}"), "which classes?"),
        (("{list}", "{out}", "--labels", "a", "b", "--address", "auto"), "add --ray"),
        (("{list}", "{out}", "--labels", "a", "b", "--ray", "--device", "cpu"), "--device is not for Ray"),
        (("{list}", "{out}", "--labels", "a", "b", "--shard-size", "0"), "0 is less than 1"),
        (("{list}x", "{out}", "--labels", "a", "b"), "no such list"),
        (("{list}", "{list}/out", "--labels", "a", "b"), "cannot be written"),
        (("{list}", "{out}", "--run", "nowhere"), "no such run folder"),
    ],
)
def test_bad_commands_fail_in_one_line(capfd, listed: Path, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    given = [word.format(list=listed, out=tmp_path / "out") for word in words]
    given += [] if "--run" in given else ["--clip", "tiny", "--workers", "0"]
    assert said in one_line(call(capfd, "label", *given))


def test_command_prints_what_failed(capfd, listed: Path, tmp_path: Path) -> None:
    words = ("label", listed, tmp_path / "out", "--clip", "tiny", "--frames", 2, "--labels", *NAMES)
    code, out, err = call(capfd, *words, "--workers", 0, "--device", "cpu", "--no-isolate")
    assert (code, err) == (0, "")
    assert "11 of 13 videos done, 2 failed" in out and "03.mp4: a web page" in out and "labels.csv" in out


@pytest.mark.parametrize(("module", "words"), [("ray", ["--ray"]), ("pyarrow", ["--output-format", "parquet"])])
def test_without_the_extra(capfd, monkeypatch, listed: Path, tmp_path: Path, module: str, words: list[str]) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    given = ("label", listed, tmp_path / "out", "--clip", "tiny", "--labels", "a", "b", *words)
    assert "pip install 'm2clip[" in one_line(call(capfd, *given))
    assert not (tmp_path / "out").exists()


def test_killed_at_any_moment(listed: Path, whole: Path, tmp_path: Path) -> None:
    """M2CLIP_KILLS says how often; every time one of the executors, chosen at random, is started and killed."""
    wanted, kills, finished, rng = int(os.environ.get("M2CLIP_KILLS", "3")), 0, 0, random.Random(0)
    while kills < wanted:
        folder, limit = tmp_path / str(finished), 1.0
        while not _complete(folder):
            work = partial(run, "label", listed, folder, LocalProcess(rng.choice((0, 1, 2)), "cpu"))
            size = rng.choice((1, 1, 2))
            ranks = [{"RANK": str(rank), "WORLD_SIZE": str(size)} for rank in range(size)]
            started = [in_process(work, rank) for rank in ranks]
            started[-1].join(timeout=rng.uniform(0.05, limit))
            limit *= 1.05  # so that a job comes to its end on the slowest machine as well
            for process in started:
                kills += process.is_alive()
                process.kill()
                process.join()
        finished += 1
        check_complete(folder)
        assert content(folder) == content(whole)
    print(f"{kills} kills, {finished} jobs of {VIDEOS} videos, none lost, none twice")


def _complete(folder: Path) -> bool:
    manifest = folder / "manifest.json"
    return manifest.exists() and json.loads(manifest.read_text())["complete"]
