"""Checkpoints are whole or absent, and a resumed run equals one that never stopped, to the last bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from m2clip.config import config_text, load_config
from m2clip.errors import InputError
from m2clip.train import state as run_state
from m2clip.train import trainer as train
from m2clip.train.log import RunLog
from m2clip.train.state import Progress, list_checkpoints, load_newest, save_checkpoint
from tests.train.training_run import build_clip, build_config, read_losses, write_videos


class Killed(Exception):
    """Stands for a process that ends without a word."""


def kill_after(step: int) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return on_step


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def uninterrupted(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    return train.run(build_config(videos, folder), clip=build_clip(), device="cpu", quiet=True)


def assert_same_run(folder: Path, other: Path) -> None:
    assert read_losses(folder) == read_losses(other)
    first, second = (load_newest(path / "checkpoints") for path in (folder, other))
    assert first is not None and second is not None
    assert first.progress == second.progress and first.state["rng"] == second.state["rng"]
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (3, 0), (4, 0), (7, 2)])
def test_resume_is_exact(videos: Path, uninterrupted: Path, tmp_path: Path, step: int, workers: int) -> None:
    config = build_config(videos, tmp_path, f"data.workers={workers}")
    with pytest.raises(Killed):
        train.run(config, clip=build_clip(), device="cpu", quiet=True, on_step=kill_after(step))
    torch.rand(5)  # whatever else the new process draws must not matter
    train.run(config, clip=build_clip(), device="cpu", quiet=True)
    assert len(read_losses(tmp_path)) == 12
    assert_same_run(tmp_path, uninterrupted)


def test_blocks_that_are_computed_again_change_nothing(videos: Path, uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train.run(build_config(videos, tmp_path), clip=build_clip(), device="cpu", quiet=True, on_step=kill_after(5))
    config = build_config(videos, tmp_path, "optim.checkpointing=2")
    train.run(config, clip=build_clip(), device="cpu", quiet=True)
    assert_same_run(tmp_path, uninterrupted)


def test_sums_between_two_log_lines_survive(videos: Path, tmp_path: Path) -> None:
    for name, step in (("whole", 99), ("cut", 5)):
        config = build_config(videos, tmp_path / name, "log_every=3", "optim.epochs=2")
        try:
            train.run(config, clip=build_clip(), device="cpu", quiet=True, on_step=kill_after(step))
        except Killed:
            train.run(config, clip=build_clip(), device="cpu", quiet=True)
    assert [row["step"] for row in read_losses(tmp_path / "cut")] == ["3", "4", "6", "8"]
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_damaged_newest_checkpoint_falls_back(
    videos: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = build_config(videos, tmp_path)
    with pytest.raises(Killed):
        train.run(config, clip=build_clip(), device="cpu", quiet=True, on_step=kill_after(6))
    newest = list_checkpoints(tmp_path / "checkpoints")[0]
    tensors = newest / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-10])
    train.run(config, clip=build_clip(), device="cpu")
    lines = [line for line in capsys.readouterr().out.splitlines() if "checkpoint is damaged" in line]
    assert len(lines) == 1 and newest.name in lines[0]
    assert_same_run(tmp_path, uninterrupted)


def test_finished_run_is_left_alone(videos: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_losses(uninterrupted)
    train.run(build_config(videos, uninterrupted), clip=build_clip(), device="cpu")
    assert read_losses(uninterrupted) == before
    assert "trained 12 steps" in capsys.readouterr().out


def test_other_settings_are_refused(videos: Path, uninterrupted: Path) -> None:
    config = build_config(videos, uninterrupted, "optim.batch_size=1", "data.num_frames=3", "seed=4")
    with pytest.raises(InputError) as caught:
        train.run(config, clip=build_clip(), device="cpu", quiet=True)
    message = str(caught.value)
    assert all(name in message for name in ("optim.batch_size (2 there, 1 here)", "data.num_frames", "seed"))
    assert "optim.lr" not in message and "\n" not in message
    with pytest.raises(InputError, match="already holds a run"):
        train.run(build_config(videos, uninterrupted), clip=build_clip(), device="cpu", resume=False, quiet=True)


def test_a_checkpoint_from_before_a_field_existed(videos: Path, uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    for file in tmp_path.glob("run/checkpoints/*/state.json"):
        state = json.loads(file.read_text())
        for name in (
            "optim.schedule",
            "optim.lr_floor",
            "optim.beta2",
            "model.options.text_placement",
            "frozen weights",
        ):
            del state["identity"][name]
        del state["state_sha256"]
        file.write_text(json.dumps(state))
    train.run(build_config(videos, tmp_path / "run"), clip=build_clip(), device="cpu", quiet=True)
    assert_same_run(tmp_path / "run", uninterrupted)
    with pytest.raises(InputError, match=r"optim.schedule \('cosine_after_warmup' there, 'cosine_under_warmup' here\)"):
        other = build_config(videos, tmp_path / "run", "optim.schedule=cosine_under_warmup")
        train.run(other, clip=build_clip(), device="cpu", quiet=True)


def test_another_clip_below_the_adapters_is_refused(videos: Path, uninterrupted: Path) -> None:
    clip = build_clip()
    with torch.no_grad():
        clip.visual.conv1.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(InputError, match=r"other settings: frozen weights \('sha256 [0-9a-f]{16}' there, "):
        train.run(build_config(videos, uninterrupted), clip=clip, device="cpu", quiet=True)


def test_other_class_names_are_refused(videos: Path, uninterrupted: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes.csv"
    classes.write_text("id,name\n0,one\n1,two\n2,three\n")
    with pytest.raises(InputError, match="class names"):
        train.run(
            build_config(videos, uninterrupted, f"data.classes={classes}"), clip=build_clip(), device="cpu", quiet=True
        )


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(folder, {"x": torch.full((3,), float(step))}, Progress(step=step), {"a": 1}, keep)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000010", "step-000000002"]


def test_damaged_later_checkpoints_do_not_push_out_the_new_one(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step, keep=4)
    for step in (6, 8):
        (tmp_path / f"step-{step:09d}" / "state.json").write_text("{")
    checkpoint = load_newest(tmp_path, lambda line: None)
    assert checkpoint is not None and checkpoint.progress.step == 4
    save(tmp_path, 5)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000005", "step-000000004"]


@pytest.mark.parametrize("part", ["tensors", "state", "rename"])
def test_failure_while_writing_leaves_the_previous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    save(tmp_path, 1)

    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    def half_then_no_space(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        no_space()

    with monkeypatch.context() as patch:
        if part == "tensors":
            patch.setattr(run_state, "_write_tensors", half_then_no_space)
        elif part == "state":
            patch.setattr(Path, "write_text", no_space)
        else:
            patch.setattr(run_state.os, "rename", no_space)
        with pytest.raises(InputError, match="No space left"):
            save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    checkpoint = load_newest(tmp_path)
    assert checkpoint is not None and checkpoint.tensors["x"].tolist() == [1.0] * 3


def test_killed_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    # What a killed process leaves: a part of a checkpoint under its temporary name.
    (tmp_path / ".writing-step-000000002").mkdir()
    (tmp_path / ".writing-step-000000002" / "tensors.safetensors").write_bytes(b"half")
    checkpoint = load_newest(tmp_path)
    assert checkpoint is not None and checkpoint.progress.step == 1
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000003"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "no state", "bad json", "no progress"])
def test_every_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    tensors, state = newest / "tensors.safetensors", newest / "state.json"
    if damage == "flip":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:5])
    elif damage == "no state":
        state.unlink()
    elif damage == "bad json":
        state.write_text(state.read_text()[:-4])
    else:
        state.write_text(state.read_text().replace('"progress"', '"progres"'))
    lines: list[str] = []
    checkpoint = load_newest(tmp_path, lines.append)
    assert checkpoint is not None and checkpoint.progress.step == 1
    assert len(lines) == 1 and "\n" not in lines[0] and newest.name in lines[0]
    (tmp_path / "step-000000001" / "state.json").unlink()
    with pytest.raises(InputError, match="no checkpoint can be read"):
        load_newest(tmp_path, lines.append)


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "nothing") is None


def test_generators_come_back() -> None:
    import random

    import numpy

    state = run_state.rng_state()
    drawn = torch.rand(3).tolist(), numpy.random.rand(3).tolist(), random.random()  # noqa: NPY002
    run_state.set_rng_state(state)
    assert drawn == (torch.rand(3).tolist(), numpy.random.rand(3).tolist(), random.random())  # noqa: NPY002


def test_log_drops_later_rows_and_adds_columns(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 10, quiet=True)
    for step in (1, 2, 3):
        log.write(step, 1, {"loss": 0.1 * step})
    log.close()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4")
    log = RunLog(tmp_path, 10, step=2, quiet=True)
    log.write(3, 1, {"loss": 9.0})
    log.write(3, 1, {"val_top1": 0.5})
    log.record_bad_videos([{"path": "x.mp4", "error": "empty", "replaced_by": "y.mp4"}] * 2, 3)
    log.close()
    assert [(row["step"], row["loss"], row["val_top1"]) for row in log.rows()] == [
        ("1", "0.1", ""),
        ("2", "0.2", ""),
        ("3", "9.0", ""),
        ("3", "", "0.5"),
    ]
    assert len((tmp_path / "bad_videos.jsonl").read_text().splitlines()) == 1


def test_lines_that_were_cut_off_are_dropped(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 20, quiet=True)
    for step in (1, 2, 12):
        log.write(step, 1, {"loss": 0.5})
        log.record_bad_videos([{"path": f"{step}}}", "error": "empty", "replaced_by": "y.mp4"}], step - 1)
    log.close()
    # What was left of step 12 reads like a line of step 1; of the video, like the end of an entry.
    metrics, bad = tmp_path / "metrics.csv", tmp_path / "bad_videos.jsonl"
    metrics.write_text(metrics.read_text().replace("12,1,0.5\n", "1"))
    bad.write_text(bad.read_text().partition("12}")[0] + "12}")
    log = RunLog(tmp_path, 20, step=12, quiet=True)
    assert [row["step"] for row in log.rows()] == ["1", "2"]
    log.record_bad_videos([{"path": "2}", "error": "empty", "replaced_by": "y.mp4"}], 12)
    log.close()
    assert [json.loads(line)["path"] for line in bad.read_text().splitlines()] == ["1}", "2}"]


def test_bad_videos_of_later_steps_are_met_again(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 20, quiet=True)
    for step in (0, 3, 4):
        log.record_bad_videos([{"path": f"{step}.mp4", "error": "empty", "replaced_by": "y.mp4"}], step)
    log.close()
    before = (tmp_path / "bad_videos.jsonl").read_text()
    log = RunLog(tmp_path, 20, step=3, quiet=True)
    assert len((tmp_path / "bad_videos.jsonl").read_text().splitlines()) == 1
    for step in (3, 4):
        log.record_bad_videos([{"path": f"{step}.mp4", "error": "empty", "replaced_by": "y.mp4"}], step)
    log.close()
    assert (tmp_path / "bad_videos.jsonl").read_text() == before


def test_two_trainings_in_one_folder(videos: Path, tmp_path: Path) -> None:
    config = build_config(videos, tmp_path / "run")

    def start_another(progress: Progress) -> None:
        with pytest.raises(InputError, match="another training is writing to it"):
            train.run(config, clip=build_clip(), device="cpu", quiet=True)
        raise Killed

    with pytest.raises(Killed):
        train.run(config, clip=build_clip(), device="cpu", quiet=True, on_step=start_another)
    assert (tmp_path / "run" / "config.yaml").exists() and not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize(
    ("output", "field"),
    [("videos", "data.train"), ("videos/new", "data.val"), ("videos/runs/x", "episodes.test"), ("", "data.classes")],
)
def test_a_run_does_not_mix_with_what_it_reads(videos: Path, tmp_path: Path, output: str, field: str) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "metrics.csv").write_text("id,name\n0,a\n")
    read = tmp_path / ("metrics.csv" if field == "data.classes" else "videos")
    config = build_config(videos, tmp_path / output, f"{field}={read}")
    with pytest.raises(InputError, match=r"give another output$"):
        train.run(config, clip=build_clip(), device="cpu", quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "videos"]
    assert (tmp_path / "metrics.csv").read_text() == "id,name\n0,a\n" and not list((tmp_path / "videos").iterdir())


@pytest.mark.parametrize(
    "files",
    [
        {"config.yaml": "# my notes\n{config}"},
        {"config.yaml": "{other}"},
        {"metrics.csv": "mine,1\n"},
        {"config.yaml": "{config}", "metrics.csv": "step\n", "notes.txt": "mine"},
        {"adapters.safetensors": "weights of a run whose checkpoints were removed"},
    ],
    ids=lambda files: "-".join(files),
)
def test_a_new_run_spares_the_files_of_others(videos: Path, tmp_path: Path, files: dict[str, str]) -> None:
    config, other = (build_config(videos, tmp_path, *more) for more in ((), ("optim.lr=0.2",)))
    texts = {name: text.format(config=config_text(config), other=config_text(other)) for name, text in files.items()}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(
        InputError, match=rf"holds no checkpoint, but .* {sorted(files)[-1]}; give a new output folder$"
    ):
        train.run(config, clip=build_clip(), device="cpu", quiet=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == texts


def test_a_run_without_a_checkpoint_begins_again_with_other_settings(videos: Path, tmp_path: Path) -> None:
    def die(progress: Progress) -> None:
        raise Killed

    with pytest.raises(Killed):
        train.run(build_config(videos, tmp_path), clip=build_clip(), device="cpu", quiet=True, on_step=die)
    assert not list_checkpoints(tmp_path / "checkpoints")
    other = build_config(videos, tmp_path, "optim.lr=0.05", "optim.epochs=1")
    train.run(other, clip=build_clip(), device="cpu", quiet=True)
    assert load_config(tmp_path) == other
