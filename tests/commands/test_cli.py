"""The program from the outside: help, exit codes, one-line errors, JSON and the files it writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import m2clip
from m2clip import cli
from tests.commands.calls import NAMES, call, one_line
from tests.data.video_files import write_audio_only, write_video

pytestmark = pytest.mark.usefixtures("tiny")


COMMANDS = [name for names in cli.GROUPS.values() for name in names]


def test_starts_without_heavy_libraries() -> None:
    heavy = ["torch", "torchvision", "open_clip", "matplotlib", "av", "decord", "tensorboard"]
    heavy += ["yaml", "rich", "numpy"]
    code = f"import sys, m2clip.cli; m2clip.cli.build_parser(); print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capfd: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = call(capfd, command, "--help")
    assert code == 0
    assert f"  m2clip {command}" in out[out.index("example:") :]


def test_help_lists_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capfd, "--help")
    assert code == 0
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert call(capfd, "--version")[1].strip() == f"m2clip {m2clip.__version__}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "COMMAND"),
        (("juggle",), "juggle"),
        (("eval", "runs/none"), "--list"),
        (("predict", "x.mp4", "--labels", "a", "--top", "0"), "--top"),
        (("predict", "x.mp4", "--labels", "a", "--top", "1000001"), "--top: 1000001 is more than 1000000"),
        (("predict", "x.mp4", "--labels", "a", "--clips", 10**12), "--clips: 1000000000000 is more than 10000"),
        (("predict", "x.mp4", "--labels", "a", "--frames", 10**12), "is more than 10000"),
        (("eval", "run", "--list", "l", "--workers", 10**6), "--workers: 1000000 is more than 1024"),
        (("label", "l", "out", "--batch-size", 10**12), "is more than 100000"),
        (("check", "l", "--workers", "0"), "0 is less than 1"),
        (("eval", "run", "--list", "l", "--crops", "2"), "1, 3, m2clip4"),
        (("eval", "run", "--list", "l", "--color", "2"), "--color"),
        (("info", "--clip", "ViT-B-17"), "ViT-B-17"),
        (("train", "--config", "no_such_recipe"), "no_such_recipe"),
        (("train", "--config", "m2clip_demo", "--optim.speed", "3"), "optim.speed"),
        (("train", "--config", "m2clip_demo", "--optim.lr"), "--optim.lr has no value"),
        (("train", "--config", "m2clip_demo", "5"), "'5' belongs to no option"),
        (("convert", "absent.pth", "out"), "absent.pth"),
        (("eval", "absent_run", "--list", "l"), "absent_run"),
        (("zeroshot", "frozen", "--list", "l", "--classes", "ucf102"), "ucf102"),
        (("zeroshot", "frozen", "--list", "l", "--classes", "ucf101", "--adapters-off", "text"), "--adapters-off"),
        (("predict", "absent.mp4", "--labels", "a", "b"), "absent.mp4"),
        (("predict", "absent.mp4"), "--labels"),
        (("predict", "absent.mp4", "--labels", "a", "--classes", "f"), "not allowed with"),
        (("predict", "absent.mp4", "--labels-file", "f"), "--labels-file is now --classes"),
        (("label", "list.txt", "out", "--list-format=paths"), "--list-format is now --format"),
        (("label", "list.txt", "out", "--format", "parquet"), "--output-format parquet"),
    ],
)
def test_bad_commands_fail_in_one_line(capfd: pytest.CaptureFixture[str], words: tuple[object, ...], said: str) -> None:
    assert said in one_line(call(capfd, *words))


def test_info_json(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capfd, "info", "--clip", "tiny", "--frames", 2, 4, "--classes", 3, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    two, four = (row["visual_per_view"] for row in found["model"]["multiply_adds"])
    assert 1.99 * two < four <= 2 * two
    code, out, _ = call(capfd, "info", "--clip", "tiny", "--classes", "k400")
    assert code == 0 and "400 classes" in out and "kernel backends" in out


def test_eval_prints_and_writes(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    words = ("eval", folder / "run", "--list", folder / "val.txt", "--output", tmp_path, "--workers", 0)
    code, out, _ = call(capfd, *words, "--clips", 2, "--crops", 3, "--with-frozen")
    assert code == 0
    assert "M2-CLIP" in out and "frozen CLIP" in out and "supervised" in out
    assert "views: 2 clips x 3 crops" in out and "denominator: 6" in out and "failures: 1" in out
    assert "5.mp4" in out and "class, worst first" in out and "mean class %" in out
    saved = json.loads((tmp_path / "eval_val.json").read_text())["results"]
    assert [result["name"] for result in saved] == ["M2-CLIP", "frozen CLIP"]
    assert saved[1]["supervised"] is None
    assert saved[0]["supervised"]["mean_class"] == sum(saved[0]["supervised"]["per_class"]) / 5
    assert (tmp_path / "eval_val_confusion.png").stat().st_size > 5000
    # At most one class is right of a random model's five videos, so there are mistakes to draw.
    assert (tmp_path / "eval_val_mistakes.png").stat().st_size > 5000
    rows = (tmp_path / "eval_val_predictions.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(folder / "videos" / f"{number}.mp4") for number in range(6)]
    assert len((tmp_path / "eval_val_classes.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(NAMES)
    assert all(str(path) in out for path in tmp_path.iterdir() if not path.name.startswith("."))


def test_eval_json_is_all_that_is_printed(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    words = ("eval", folder / "run", "--list", folder / "val.txt", "--output", tmp_path, "--workers", 0, "--json")
    for on_error, denominator in (("wrong", 6), ("skip", 5)):
        code, out, _ = call(capfd, *words, "--on-error", on_error)
        (result,) = json.loads(out)["results"]
        assert (code, result["denominator"], len(result["failures"])) == (0, denominator, 1)
    assert "5.mp4" in one_line(call(capfd, *words, "--on-error", "raise"))


def test_splits_do_not_replace_each_other(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    rows = "".join(f"{folder}/videos/{n}.mp4,{n},{'even' if n % 2 == 0 else 'odd'}\n" for n in range(4))
    (tmp_path / "l.csv").write_text(f"path,label,split\n{rows}")
    for command, more in (("eval", ()), ("zeroshot", ("--classes", folder / "classes.csv"))):
        for split in ("even", "odd"):
            words = (command, folder / "run", "--list", tmp_path / "l.csv", "--split", split, "--output", tmp_path)
            assert call(capfd, *words, *more, "--workers", 0)[0] == 0
    found = {path.stem: json.loads(path.read_text())["results"][0]["denominator"] for path in tmp_path.glob("*.json")}
    assert found == {f"{name}_l_{split}": 2 for name in ("eval", "zeroshot_classes") for split in ("even", "odd")}


def test_eval_reads_views_from_the_run(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    from m2clip.config import load_config, save_config

    run = tmp_path / "run"
    m2clip.save_adapters(m2clip.load_adapters(folder / "run"), run)
    save_config(load_config(None, ["data.sampling=dense", "data.stride=2", "eval.clips=2"]), run / "config.yaml")
    words = ("eval", run, "--list", folder / "val.txt", "--workers", 0, "--json")
    result = json.loads(call(capfd, *words)[1])["results"][0]
    assert (result["clips"], result["crops"], result["frames"]) == (2, 1, "4 dense, stride 2")
    result = json.loads(call(capfd, *words, "--clips", 1, "--sampling", "uniform")[1])["results"][0]
    assert (result["clips"], result["frames"]) == (1, "4 uniform")
    assert (run / "eval_val.json").is_file()


def test_class_file_that_disagrees_names_both(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    words = ("eval", folder / "run", "--list", folder / "val.txt", "--classes", folder / "others.csv")
    assert "5 classes" in (said := one_line(call(capfd, *words))) and "6" in said


def test_output_that_cannot_be_written(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ("eval", folder / "run", "--list", folder / "val.txt", "--workers", 0)
    assert "cannot be written" in one_line(call(capfd, *words, "--output", tmp_path / "file" / "out"))
    words = ("predict", folder / "videos" / "0.mp4", "--run", folder / "run")
    assert "cannot be written" in one_line(call(capfd, *words, "--filmstrip", tmp_path / "file" / "out.png"))
    assert "ends with .png" in one_line(call(capfd, *words, "--filmstrip", tmp_path / "file"))
    assert not (tmp_path / "file").read_bytes()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("videos/1.mp4", "line 2"),
        ("videos/1.mp4 9", "label 9"),
        ("videos/0.mp4 1", "duplicate"),
    ],
)
def test_bad_list_lines(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, line: str, said: str) -> None:
    listed = tmp_path / "bad.txt"
    listed.write_text(f"videos/0.mp4 0\n{line}\n")
    assert said in one_line(call(capfd, "eval", folder / "run", "--list", listed))


def test_damaged_run_folder(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    m2clip.save_adapters(m2clip.load_adapters(folder / "run"), run)
    weights = (run / "adapters.safetensors").read_bytes()
    (run / "adapters.safetensors").write_bytes(weights[: len(weights) // 2])
    words = ("eval", run, "--list", folder / "val.txt")
    assert "adapters.safetensors" in one_line(call(capfd, *words))
    (run / "adapter_config.json").unlink()
    assert "adapter_config.json" in one_line(call(capfd, *words))


def test_zeroshot_of_run_and_frozen_clip(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    words = ("--list", folder / "val.txt", "--classes", folder / "others.csv", "--output", tmp_path, "--workers", 0)
    code, out, _ = call(capfd, "zeroshot", folder / "run", *words, "--adapters-off", "visual", "text", "--with-frozen")
    assert code == 0
    assert "adapters off: visual, text" in out and "supervised" not in out
    assert (tmp_path / "zeroshot_others_val_no_visual_no_text.json").is_file()
    code, out, _ = call(capfd, "zeroshot", "frozen", *words, "--clip", "tiny", "--frames", 3, "--json")
    (result,) = json.loads(out)["results"]
    assert code == 0
    assert result["name"] == "frozen CLIP" and result["supervised"] is None and result["frames"] == "3 uniform"
    assert len(result["zero_shot"]["confusion"]) == 6


def test_predict_with_labels(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    video, strip = folder / "videos" / "0.mp4", tmp_path / "strip.png"
    words = ("predict", video, folder / "videos" / "1.mp4", "--labels", "a dog", "a cat", "--clip", "tiny")
    code, out, err = call(capfd, *words, "--filmstrip", strip, "--json")
    both = json.loads(out)
    assert (code, err) == (0, "")
    assert [entry["path"] for entry in both] == [str(folder / "videos" / f"{n}.mp4") for n in (0, 1)]
    assert both[0]["head"] == "zero-shot"
    assert sum(prediction["score"] for prediction in both[0]["predictions"]) == pytest.approx(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["strip_1.png", "strip_2.png"]
    code, out, _ = call(capfd, "predict", video, "--labels", "a dog", "a cat", "--clip", "tiny")
    assert code == 0 and "a dog" in out and "frozen CLIP, zero-shot" in out


def test_predict_with_a_run(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    words = ("predict", folder / "videos" / "0.mp4", "--run", folder / "run", "--json")
    (own,) = json.loads(call(capfd, *words, "--top", 2)[1])
    assert own["head"] == "supervised" and len(own["predictions"]) == 2
    assert own["predictions"][0]["name"] in NAMES
    (other,) = json.loads(call(capfd, *words, "--classes", folder / "others.csv")[1])
    assert other["head"] == "zero-shot" and len(other["predictions"]) == 5


def bad_videos(folder: Path) -> dict[str, Path]:
    """Files that are no videos, by what is wrong with them."""
    good = write_video(folder / "good.mp4", num_frames=12).read_bytes()
    files = {
        "empty": b"",
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "zeros": bytes(len(good)),
        "truncated": good[: len(good) // 3],
        "damaged": good[:40] + bytes(len(good) - 40),
    }
    paths = {"missing": folder / "missing.mp4", "audio": write_audio_only(folder / "audio.mp4"), "folder": folder}
    for name, content in files.items():
        paths[name] = folder / f"{name}.mp4"
        paths[name].write_bytes(content)
    return paths


def test_predict_answers_bad_videos_in_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for path in bad_videos(tmp_path).values():
        said = one_line(call(capfd, "predict", path, "--labels", "a", "b", "--clip", "tiny"))
        assert path.name in said


def test_predict_goes_on_after_a_bad_video(capfd: pytest.CaptureFixture[str], folder: Path) -> None:
    bad, good = folder / "videos" / "5.mp4", folder / "videos" / "0.mp4"
    result = call(capfd, "predict", bad, good, "--labels", "a", "b", "--clip", "tiny", "--json")
    assert "5.mp4" in (said := one_line(result)) and "1 of 2 videos" in said
    failed, found = json.loads(result[1])
    assert failed == {
        "path": str(bad),
        "error": said.removeprefix("m2clip: ").removesuffix(" (1 of 2 videos failed)\n"),
    }
    assert found["path"] == str(good) and len(found["predictions"]) == 2
    result = call(capfd, "predict", good, folder / "absent.mp4", "--labels", "a", "b", "--clip", "tiny", "--json")
    assert "no such video file (1 of 2 videos failed)" in one_line(result)
    assert [list(entry) for entry in json.loads(result[1])] == [list(found), ["path", "error"]]


def test_predict_takes_all_videos_of_a_folder(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    for name in ("a/0.mp4", "a/deep/1.mp4", "a/._0.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "videos" / "0.mp4", tmp_path / name)
    words = ("--labels", "a", "b", "--clip", "tiny", "--json")
    code, out, err = call(capfd, "predict", tmp_path, folder / "videos" / "1.mp4", *words)
    assert (code, err) == (0, f"m2clip: {tmp_path}: left out hidden or system files (1)\n")
    taken = [tmp_path / "a/0.mp4", tmp_path / "a/deep/1.mp4", folder / "videos" / "1.mp4"]
    assert [entry["path"] for entry in json.loads(out)] == list(map(str, taken))
    assert "m2clip label takes lists" in one_line(call(capfd, "predict", folder / "val.txt", *words))
    (tmp_path / "empty").mkdir()
    assert "holds no videos, found nothing" in one_line(call(capfd, "predict", tmp_path / "empty", *words))


@pytest.mark.parametrize("command", ["predict", "label"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--labels", "FOLDER/classes.csv", "juggling"),
            "'FOLDER/classes.csv' names a file or a label set, not a class",
        ),
        (("--labels", "juggling", "ucf101"), "'ucf101' names a file or a label set"),
        (("--labels", "clases.txt"), "clases.txt: neither a built-in label list nor a file"),
        (("--labels", "juggling", "clases.yaml"), "'clases.yaml' names a file"),
        (("--labels", "FOLDER/videos"), "FOLDER/videos"),
        (("--labels", "a", "a"), "repeated: a"),
        (("--labels", "a,b"), "'a,b' is one class; put blanks between classes"),
        (("--labels", "a", "b", "--pretrained", "openai"), "--pretrained says nothing with the CLIP 'tiny'"),
        (("--run", "FOLDER/run", "--pretrained", "openai"), "--pretrained says nothing with the CLIP 'tiny'"),
        (("--run", "FOLDER/run", "--frames", "4"), "--frames is for frozen CLIP"),
        (("--run", "FOLDER/run", "--image-size", "48"), "--image-size is for frozen CLIP"),
        (("--labels", "a", "b", "--image-size", "32x"), "--image-size: the size is '32x': write one number"),
        (("--labels", "a", "b", "--image-size", "4"), "images of 4x4 pixels are smaller than a patch"),
        *((("--labels", "a", "b", "--device", name), name) for name in ("mps", "xpu", "meta", "cuda:99", "none", "")),
    ],
)
def test_options_that_cannot_be_meant(
    capfd: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    command: str,
    words: tuple[str, ...],
    said: str,
) -> None:
    if words[-1] in ("mps", "xpu") and getattr(torch, words[-1]).is_available():
        pytest.skip("the device is there")
    given = [word.replace("FOLDER", str(folder)) for word in words]
    where = [folder / "videos" / "0.mp4"] if command == "predict" else [folder / "videos", tmp_path / "out"]
    clip = [] if "--run" in words else ["--clip", "tiny"]
    assert said.replace("FOLDER", str(folder)) in one_line(call(capfd, command, *where, *given, *clip))


@pytest.mark.parametrize("source", ["FOLDER/classes.csv", "UCF101"])
def test_labels_may_be_one_file_or_label_set(capfd: pytest.CaptureFixture[str], folder: Path, source: str) -> None:
    words = ("predict", folder / "videos" / "0.mp4", "--clip", "tiny", "--json", "--top", 200)
    code, out, _ = call(capfd, *words, "--labels", source.replace("FOLDER", str(folder)))
    found = {prediction["name"] for prediction in json.loads(out)[0]["predictions"]}
    assert code == 0 and (found == set(NAMES) if "FOLDER" in source else len(found) == 101)


READ_ONLY = {"eval": (), "zeroshot": ("--classes", "CLASSES"), "zeroshot ": ("--classes", "CLASSES", "CLASSES")}


@pytest.mark.parametrize("command", READ_ONLY)
def test_a_run_that_cannot_be_written_is_scored_all_the_same(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, command: str
) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    before = sorted(run.rglob("*"))
    make = tempfile.TemporaryFile

    def refuse(*args: object, dir: object = None, **named: object) -> object:  # root may write anywhere
        if dir == run:
            raise OSError(30, "Read-only file system")
        return make(*args, dir=dir, **named)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    more = [str(folder / "classes.csv") if word == "CLASSES" else word for word in READ_ONLY[command]]
    words = (command.strip(), run, "--list", folder / "val.txt", *more, "--workers", 0)
    code, out, err = call(capfd, *words)
    assert code == 0 and "top-1 %" in out and "written" not in out
    assert err == (
        f"m2clip: {run} cannot be written: Read-only file system; give another folder with --output; the results are "
        "printed, but not kept\n"
    )
    assert json.loads(call(capfd, *words, "--json")[1])["not_kept"] == [str(run)]
    assert sorted(run.rglob("*")) == before
    assert "give another folder" in one_line(call(capfd, *words, "--output", run))


def test_overrides_reach_the_configuration(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    seen = {}

    def run(config: object, **options: object) -> Path:
        seen.update(config=config, options=options)
        return Path("runs/x")

    monkeypatch.setattr("m2clip.train.trainer.run", run)
    words = ("--optim.lr", "1e-3", "--eval.crops=3", "--output", "runs/x", "--data.flip", "false")
    code, out, _ = call(capfd, "train", "--config", "m2clip_demo", *words, "--json", "--fresh")
    assert (code, json.loads(out)) == (0, {"run": "runs/x"})
    config = seen["config"]
    assert (config.optim.lr, config.eval.crops, config.output, config.data.flip) == (1e-3, 3, "runs/x", False)
    assert seen["options"]["resume"] is False


def test_interrupt_and_unexpected_errors(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> None:
        def environment() -> None:
            raise error

        monkeypatch.setattr("m2clip.info.environment", environment)

    fail(KeyboardInterrupt())
    assert call(capfd, "info") == (130, "", "m2clip: interrupted\n")
    fail(ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError, match="a defect"):
        cli.main(["info"])


def test_program_exit_code_and_stderr() -> None:
    words = [sys.executable, "-m", "m2clip.cli", "predict", "absent.mp4", "--labels", "a"]
    found = subprocess.run(words, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "m2clip: absent.mp4: no such video file\n"
