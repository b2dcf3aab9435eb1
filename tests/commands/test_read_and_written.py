"""What commands read is not written to, and what is no regular file is not opened."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.commands.calls import call, one_line

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("eval {run} --list {list}", "run/eval_val.json"),
        ("eval {run} --list {list} --output {out}", "out/eval_val_confusion.png"),
        ("eval {run} --list {list} --output {out}", "out/eval_val_predictions.csv"),
        ("compare {table} {table} --out {out}/changed.csv", "out/changed.csv"),
        ("zeroshot {run} --list {list} --classes {classes} --output {out}", "out/zeroshot_classes_val.json"),
        (
            "zeroshot {run} --list {list} --classes {classes} --halves 2 --output {out}",
            "out/zeroshot_classes_val_2_halves.png",
        ),
        ("predict {video} --run {run} --filmstrip {out}/strip.png", "out/strip.png"),
        ("convert {run} {out}/authors.pth --to authors", "out/authors.pth"),
        ("fewshot --config m2clip_demo --built-in motion --output {out}", "out/results.json"),
        ("fewshot --config m2clip_demo --built-in motion --output {out}", "out/few_shot.png"),
        ("base-to-novel --config m2clip_demo --built-in motion --output {out}", "out/results.json"),
        ("demo --output {out}", "out/demo.png"),
    ],
)
def test_no_file_of_somebody_else_is_replaced(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, words: str, name: str
) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / name).write_text("years of work")
    places = {"run": run, "out": tmp_path / "out", "list": folder / "val.txt", "classes": folder / "classes.csv"}
    places["video"] = folder / "videos" / "0.mp4"
    places["table"] = tmp_path / "predictions.csv"
    places["table"].write_text("path,true,predicted\na,b,b\n")
    said = one_line(call(capfd, *(word.format(**places) for word in words.split())))
    assert f"{tmp_path / name} is there already" in said and "move it away, or give another" in said
    assert (tmp_path / name).read_text() == "years of work"


@pytest.mark.parametrize(
    "words",
    [
        ("check", "{videos}", "--output", "{videos}/checked"),
        ("label", "{videos}", "{videos}/labels", "--labels", "a", "b"),
        ("label", "{videos}", "{videos}", "--labels", "a", "b"),
        ("features", "{videos}", "{videos}/features"),
        ("pack", "{videos}", "{videos}/pack"),
        ("eval", "{run}", "--list", "{videos}", "--output", "{videos}/scores"),
        ("zeroshot", "frozen", "--clip", "tiny", "--list", "{videos}", "--classes", "k400", "--output", "{videos}/x"),
        ("predict", "{videos}/a/0.mp4", "--labels", "a", "b", "--clip", "tiny", "--filmstrip", "{videos}/a/0.mp4"),
        ("episodes", "list", "--list", "{list}", "--way", "1", "--shots", "1", "--output", "{list}"),
        ("train", "--config", "m2clip_demo", "--data.train", "{videos}", "--output", "{videos}/run"),
        (
            "fewshot",
            "--config",
            "m2clip_demo",
            "--data.train",
            "{videos}",
            "--data.val",
            "{list}",
            "--output",
            "{videos}/x",
        ),
        ("convert", "{run}", "{run}/adapters.safetensors", "--to", "authors"),
        ("compare", "{list}", "{list}", "--out", "{list}"),
    ],
    ids=lambda words: words[0],
)
def test_nothing_is_written_into_what_is_read(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    videos, listed = tmp_path / "videos", tmp_path / "list.txt"
    for name in ("a", "b"):
        (videos / name).mkdir(parents=True)
        (videos / name / "0.mp4").write_bytes((folder / "videos" / "0.mp4").read_bytes())
    listed.write_text("videos/a/0.mp4 0\nvideos/b/0.mp4 1\n")
    run = shutil.copytree(folder / "run", tmp_path / "run")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = one_line(call(capfd, *(word.format(videos=videos, list=listed, run=run) for word in words)))
    assert "is what is read from" in said or "which is read from" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("device", [False, True], ids=["pipe", "device"])
@pytest.mark.parametrize(
    "words",
    [
        ("eval", "{run}", "--list", "{odd}"),
        ("eval", "{run}", "--list", "{list}", "--classes", "{odd}"),
        ("label", "{odd}", "{out}", "--labels", "a", "b", "--clip", "tiny"),
        ("check", "{odd}", "--output", "{out}"),
        ("pack", "{odd}", "{out}"),
        ("train", "--config", "{odd}"),
        ("train", "--config", "m2clip_demo", "--data.train", "{odd}", "--output", "{out}"),
        ("predict", "{odd}", "--labels", "a", "b", "--clip", "tiny"),
        ("predict", "{video}", "--classes", "{odd}", "--clip", "tiny"),
        ("convert", "{odd}", "{out}"),
        ("describe", "{odd}", "--classes", "k400", "--check"),
        ("describe", "{odd}", "--classes", "k400"),
        ("eval", "{odd_weights}", "--list", "{list}"),
        ("eval", "{odd_config}", "--list", "{list}"),
        ("episodes", "eval", "frozen", "--clip", "tiny", "--list", "{list}", "--stored", "{odd}"),
    ],
    ids=lambda words: " ".join(words[:4]),
)
def test_pipes_and_devices_are_not_opened(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, words: tuple[str, ...], device: bool
) -> None:
    def odd(path: Path) -> Path:
        path.unlink(missing_ok=True)
        if device:
            path.symlink_to("/dev/zero")
        else:
            os.mkfifo(path)
        return path

    def late(*_: object) -> None:
        raise TimeoutError("it hangs")

    run = {name: shutil.copytree(folder / "run", tmp_path / name) for name in ("weights", "config")}
    odd(run["weights"] / "adapters.safetensors")
    odd(run["config"] / "adapter_config.json")
    places = {"run": folder / "run", "list": folder / "val.txt", "video": folder / "videos" / "0.mp4"}
    places |= {"odd": odd(tmp_path / "odd"), "odd_weights": run["weights"], "odd_config": run["config"]}
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        one_line(call(capfd, *(word.format(**places, out=tmp_path / "out") for word in words)))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_pipe_among_the_videos_is_one_unreadable_video(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "list.txt").write_text(f"pipe.mp4 0\n{folder / 'videos' / '0.mp4'} 0\n")
    code, out, _ = call(capfd, "check", tmp_path / "list.txt", "--json", "--workers", 1)
    report = json.loads(out)
    assert code == 1 and [(found["kind"], Path(found["path"]).name) for found in report["problems"]] == [
        ("unreadable", "pipe.mp4")
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--config", "m2clip_demo", "--output", ""),
        ("fewshot", "--config", "m2clip_demo", "--output="),
        ("check", "videos", "--output", ""),
        ("label", "videos", ""),
        ("pack", "videos", ""),
        ("convert", "authors.pth", ""),
        ("demo", "--output", ""),
        ("episodes", "list", "--list", "list.txt", "--output", ""),
    ],
    ids=lambda words: words[0],
)
def test_an_empty_output_is_not_the_current_folder(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "output is empty: " in one_line(call(capfd, *words))
    assert not list(tmp_path.iterdir())
