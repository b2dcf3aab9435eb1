"""`m2clip episodes` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import m2clip
from m2clip.data.lists.annotations import load_annotations
from m2clip.data.lists.splits import write_episode_classes
from m2clip.files.kept_work import read_record
from tests.commands.calls import call, one_line
from tests.fake_model import random_tiny_clip
from tests.train.training_run import write_videos

NAMES = ["a dog running", "a cat sleeping", "a man waving", "a bird flying", "a fish swimming"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2clip.towers.tiny.tiny_clip", random_tiny_clip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty videos of five classes, their list and class files, a configuration and a run folder."""
    folder = tmp_path_factory.mktemp("episodes")
    write_videos(folder, count=20)
    (folder / "test.txt").write_text("".join(f"v{n} 4 {n % 5}\n" for n in range(20)))
    for name, names in (("classes", NAMES), ("others", [f"action {n}" for n in range(5)])):
        (folder / f"{name}.csv").write_text("id,name\n" + "".join(f"{i},{n}\n" for i, n in enumerate(names)))
    (folder / "small.yaml").write_text(
        "model: {method: ma_fsar, clip: tiny, pretrained: null, options: {ratio: 0.25}}\n"
        "optim: {epochs: 1, warmup_epochs: 0}\n"
        "episodes: {way: 3, shots: 1, queries: 1, per_epoch: 2, val_episodes: 5}\n"
        f"data: {{train: {folder}/test.txt, classes: {folder}/classes.csv, format: frames, num_frames: 2,\n"
        "  workers: 0}\n"
    )
    torch.manual_seed(0)
    model = m2clip.create_model("ma_fsar", random_tiny_clip(), class_names=["one", "two"], num_frames=2, ratio=0.25)
    m2clip.save_adapters(model, folder / "run")
    return folder


def videos_of(folder: Path) -> tuple[object, ...]:
    return ("--list", folder / "test.txt", "--classes", folder / "classes.csv", "--format", "frames")


def test_eval_prints_a_table_by_shots_and_keeps_everything(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    words = ("episodes", "eval", folder / "run", *videos_of(folder), "--workers", 0, "--shots", 1, 3)
    words += ("--episodes", 40, "--way", 3, "--seed", 5, "--output", tmp_path, "--with-frozen")
    code, out, err = call(capfd, *words)
    assert code == 0, err
    assert "3-way accuracy %" in out and "1-shot" in out and "3-shot" in out and "±" in out and "frozen CLIP" in out
    for said in ("1.96 s / sqrt(E)", "prompt: 'a photo of {}'", "list: 20 videos of 5 classes", "denominator: 40"):
        assert said in out
    value = read_record(tmp_path / "episodes_test.json")
    assert [result["shots"] for result in value["results"]] == [1, 3, 1, 3]
    assert [list(result["heads"]) for result in value["results"]] == [["fused", "matching", "text"]] * 2 + [
        ["matching", "text"]
    ] * 2
    mean = value["results"][1]["heads"]["fused"]
    assert f"{100 * mean['mean']:.2f} ± {100 * mean['interval']:.2f}" in out
    files = sorted(path.name for path in (tmp_path / "episodes").iterdir())
    assert len(files) == 2 and files[0].startswith("3way_1shot_1q_40_seed5_")
    assert len(list((tmp_path / "features").iterdir())) == 2
    # The second call asks the kept episodes, with the kept features.
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*.safetensors")}
    code, out, err = call(capfd, *words, "--json")
    assert (code, err) == (0, "") and json.loads(out) == value
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/*.safetensors")} == kept


def test_list_and_eval_of_a_stored_list(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    stored = tmp_path / "mine.jsonl"
    words = ("episodes", "list", *videos_of(folder), "--way", 4, "--shots", 2, "--episodes", 15, "--seed", 3)
    code, out, _ = call(capfd, *words, "--output", stored)
    assert code == 0 and "15 episodes, 4-way 2-shot, of 20 videos" in out
    code, out, _ = call(capfd, *words, "--output", tmp_path / "again.jsonl", "--json")
    facts = json.loads(out)
    assert (tmp_path / "again.jsonl").read_text() == stored.read_text()
    evaluate = ("episodes", "eval", "frozen", "--clip", "tiny", "--frames", 2, *videos_of(folder), "--workers", 0)
    evaluate += ("--output", tmp_path / "out", "--metric", "bi_mhm", "--random-frames", "--stored")
    code, out, err = call(capfd, *evaluate, stored, "--json")
    (result,) = json.loads(out)["results"]
    assert (code, result["episodes_hash"], result["episodes"], result["seed"]) == (0, facts["sha256"], 15, 3), err
    assert result["frames"] == "2 uniform, at random (seed 0)"
    assert "differ in their shots" in one_line(call(capfd, *evaluate, stored, stored))
    stored.write_text(stored.read_text()[:-30])
    assert "mine.jsonl, line 16: is no episode" in one_line(call(capfd, *evaluate, stored))


def test_train_writes_a_run_that_eval_scores(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    words = ("episodes", "train", "--config", folder / "small.yaml", "--output", tmp_path, "--device", "cpu")
    words += ("--data.val", folder / "test.txt", "--episodes.val_classes", folder / "others.csv")
    code, out, err = call(capfd, *words)
    assert code == 0, err
    assert "3-way 1-shot" in out and "of 5 val episodes" in out and f"m2clip episodes eval {tmp_path}" in out
    assert (tmp_path / "curves.png").stat().st_size > 5000
    code, out, _ = call(capfd, *words, "--json")
    assert code == 0 and json.loads(out) == {"run": str(tmp_path)}
    words = ("episodes", "eval", tmp_path, *videos_of(folder), "--workers", 0, "--episodes", 5, "--shots", 1, "--json")
    code, out, err = call(capfd, *words, "--way", 3)
    assert code == 0 and json.loads(out)["results"][0]["frames"] == "2 uniform, centred", err


def test_built_in_videos(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    words = ("--built-in", "motion", "--videos", tmp_path / "videos", "--device", "cpu", "--json")
    train = ("episodes", "train", "--config", folder / "small.yaml", "--output", tmp_path / "run", *words)
    code, _, err = call(capfd, *train, "--train-clips", 2, "--val-clips", 2)
    assert code == 0, err
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "flip: false" in config and "episodes_val_classes.csv" in config
    words = ("episodes", "eval", "frozen", "--clip", "tiny", "--frames", 2, *words, "--output", tmp_path / "out")
    code, out, err = call(capfd, *words, "--shots", 1, "--episodes", 20)
    assert code == 0, err
    (result,) = json.loads(out)["results"]
    assert (result["classes"], result["list_length"], result["way"]) == (20, 40, 5) and not result["failures"]
    assert "classes with fewer than the 6 videos" in one_line(call(capfd, *words))
    # Two clips a class in the folder: as many were taken, and the lists of the training are as they were.
    assert len((tmp_path / "videos" / "base_train.txt").read_text().splitlines()) == 80


def test_validation_classes_of_the_built_in_sets(tmp_path: Path) -> None:
    (tmp_path / "base_classes.csv").write_text("id,name\n" + "".join(f"{i},class {i}\n" for i in range(9)))
    (tmp_path / "base_train.txt").write_text("".join(f"videos/{c}/{n}.mp4 {c}\n" for c in range(9) for n in range(2)))
    train, val = write_episode_classes(tmp_path)
    read = [load_annotations(part.path, class_names=part.classes) for part in (train, val)]
    assert read[1].class_names == ["class 3", "class 7"] and len(read[1]) == 4
    assert read[0].class_names == [f"class {n}" for n in (0, 1, 2, 4, 5, 6, 8)] and len(read[0]) == 14
    assert all(f"class {item.path.parent.name}" == part.class_names[item.label] for part in read for item in part.items)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "TASK"),
        (("score",), "invalid choice: 'score'"),
        (("train",), "--config"),
        (("train", "--config", "no_such_recipe"), "no_such_recipe"),
        (("train", "--config", "{folder}/small.yaml", "--episodes.ways", "3"), "episodes.way?"),
        (("train", "--config", "{folder}/small.yaml", "--episodes.way", "1"), "episodes.way is 1"),
        (("train", "--config", "{folder}/small.yaml", "--built-in", "kinetics"), "kinetics"),
        (("eval", "{folder}/run"), "either --list"),
        (("eval", "{folder}/run", "--list", "{folder}/test.txt", "--built-in", "motion"), "either --list"),
        (("eval", "{folder}/nothing", "--built-in", "motion"), "no such run folder"),
        (("eval", "{folder}/run", "--list", "{folder}/test.txt", "--shots", "0"), "0 is less than 1"),
        (("eval", "{folder}/run", "--list", "{folder}/test.txt"), "give their names with --classes"),
        (("eval", "{folder}/run", "--list", "{folder}/nothing.txt"), "no such annotation file"),
        (("list", "--list", "{folder}/test.txt", "--output", "x", "--way", "1"), "way of an episode must be 2"),
        (("list", "--list", "{folder}/test.txt", "--output", "x", "--shots", "4"), "(4 support, 1 query): 0 (4)"),
        (("list", "--list", "{folder}/test.txt", "--output", "x", "--way", "6"), "an episode of 6 ways needs 6"),
        (("list", "--list", "{folder}/test.txt"), "--output"),
        (("list", "--list", "{folder}/test.txt", "--output", "{folder}/test.txt/x"), "cannot be written"),
    ],
)
def test_bad_commands_fail_in_one_line(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    where = ("--output", tmp_path) if words[:1] == ("eval",) else ()
    assert said in one_line(call(capfd, "episodes", *(word.format(folder=folder) for word in words), *where))


@pytest.mark.parametrize("task", ["train", "eval", "list"])
def test_every_task_has_an_example(capfd: pytest.CaptureFixture[str], task: str) -> None:
    code, out, _ = call(capfd, "episodes", task, "--help")
    assert code == 0 and f"  m2clip episodes {task}" in out[out.index("example:") :]
