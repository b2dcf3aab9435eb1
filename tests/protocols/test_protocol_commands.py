"""`m2clip fewshot`, `base-to-novel` and `zeroshot` over several splits, from the outside."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch

import m2clip
from m2clip.data import BUILT_IN
from m2clip.data.lists.annotations import load_annotations
from m2clip.files.kept_work import read_record
from tests.commands.calls import call, one_line
from tests.fake_model import random_tiny_clip
from tests.train.training_run import write_videos

NAMES = ["a dog running", "a cat sleeping", "a man waving", "a bird flying"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2clip.towers.tiny.tiny_clip", random_tiny_clip)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lists of videos of four classes, class files, a configuration and a run folder."""
    folder = tmp_path_factory.mktemp("protocols")
    write_videos(folder, count=16)
    for name, numbers in (("train", range(12)), ("val1", range(16)), ("val2", range(3, 12)), ("val3", range(8))):
        (folder / f"{name}.txt").write_text("".join(f"v{n} 4 {n % 4}\n" for n in numbers))
    for name, names in (("classes", NAMES), ("others", [f"action {n}" for n in range(4)])):
        (folder / f"{name}.csv").write_text("id,name\n" + "".join(f"{i},{n}\n" for i, n in enumerate(names)))
    (folder / "small.yaml").write_text(
        "model: {clip: tiny, pretrained: null, options: {width: 8, text_width: 8}}\n"
        "optim: {epochs: 1, warmup_epochs: 0, batch_size: 2}\n"
        f"data: {{train: {folder}/train.txt, val: {folder}/val1.txt, classes: {folder}/classes.csv, format: frames,\n"
        "  num_frames: 2, workers: 0}\n"
    )
    torch.manual_seed(0)
    model = m2clip.create_model("m2clip", random_tiny_clip(), class_names=NAMES, num_frames=2, width=8)
    m2clip.save_adapters(model, folder / "run")
    return folder


def test_fewshot_prints_a_table_and_draws_it(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    words = ("fewshot", "--config", f"M2-CLIP={folder / 'small.yaml'}", folder / "small.yaml", "--shots", 1, 2)
    words += ("--seeds", 0, 1, "--output", tmp_path, "--optim.lr", "1e-2")
    code, out, _ = call(capfd, *words)
    assert code == 0
    cells = {line.strip()[:11].strip(): line for line in out.splitlines()}
    assert "K=1" in out and "K=2" in out and "denominator: 16" in out and "seeds 0, 1" in out
    assert "±" in cells["M2-CLIP"] and "±" in cells["small"] and "±" not in cells["frozen CLIP"]
    assert (tmp_path / "few_shot.png").stat().st_size > 10_000
    code, out, err = call(capfd, *words, "--json")
    results = json.loads(out)
    assert code == 0 and err.count("12 are in both lists") == 1 == len(err.splitlines())
    assert results.pop("in_both") == [12] and results == read_record(tmp_path / "results.json")
    shown = results["methods"]["M2-CLIP"]["2"]["top1"]
    assert f"{100 * shown['mean']:.1f} ± {100 * shown['std']:.1f}" in cells["M2-CLIP"]
    # The same settings under two names give the same numbers.
    assert results["methods"]["M2-CLIP"] == results["methods"]["small"]


def test_base_to_novel_prints_both_halves_and_their_harmonic_mean(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    for name, names in (("base", NAMES[1:3]), ("novel", [NAMES[0], NAMES[3]])):
        (tmp_path / f"{name}.txt").write_text("\n".join(names) + "\n")
    words = ("base-to-novel", "--config", folder / "small.yaml", "--shots", 2, "--seeds", 1, 2, "--output", tmp_path)
    words += ("--base-classes", tmp_path / "base.txt", "--novel-classes", tmp_path / "novel.txt")
    code, out, _ = call(capfd, *words)
    assert code == 0 and "2 base classes" in out and "2 novel classes" in out and "harmonic mean" in out
    assert (tmp_path / "base_to_novel.png").stat().st_size > 10_000
    results = read_record(tmp_path / "results.json")
    assert results["classes"]["novel"] == [NAMES[0], NAMES[3]]
    (row,) = (line for line in out.splitlines() if line.strip().startswith("small  "))
    assert row.split()[-1] == f"{100 * results['methods']['small']['harmonic_mean']:.1f}"


def test_built_in_videos_are_rendered_and_taken(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    words = ("base-to-novel", "--built-in", "motion", "--train-clips", 1, "--val-clips", 1, "--shots", 1, "--json")
    words += ("--config", folder / "small.yaml", "--seeds", 3, "--output", tmp_path, "--optim.batch_size", 20)
    code, out, err = call(capfd, *words)
    assert code == 0, err
    results = json.loads(out)
    assert len(results["classes"]["base"]) == 40 and len(results["classes"]["novel"]) == 20
    assert results["methods"]["small"]["novel"]["videos"] == [20]
    config = (tmp_path / "runs" / "small" / "shots1_seed3" / "config.yaml").read_text()
    assert "flip: false" in config
    said = one_line(call(capfd, *words, "--novel-classes", "ucf101-novel"))
    assert "--built-in brings its own" in said
    assert BUILT_IN == ("motion", "mocap")


def test_zeroshot_over_lists_gives_mean_and_deviation(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    lists = [folder / f"val{n}.txt" for n in (1, 2, 3)]
    words = ("--classes", folder / "others.csv", "--format", "frames", "--workers", 0, "--output", tmp_path)
    words = ("zeroshot", folder / "run", "--list", *lists, *words, "--with-frozen")
    code, out, _ = call(capfd, *words)
    assert code == 0 and "mean of 3" in out and "val1" in out and "±" in out and "frozen CLIP" in out
    code, again, _ = call(capfd, *words, "--json")
    results = json.loads(again)
    assert results["splits"] == ["val1", "val2", "val3"]
    stem = "zeroshot_others_val1_3_splits"
    assert results == read_record(tmp_path / f"{stem}.json")
    assert (tmp_path / f"{stem}.png").stat().st_size > 5000
    single = [
        json.loads(call(capfd, *words[:3], path, *words[6:], "--json")[1])["results"][0]["zero_shot"]["top1"]
        for path in lists
    ]
    top1 = results["models"]["M2-CLIP"]["top1"]
    assert top1["values"] == single and top1["mean"] == pytest.approx(statistics.fmean(single))
    assert top1["std"] == pytest.approx(statistics.stdev(single))
    # Adapters switched off: other numbers, in other files.
    code, out, _ = call(capfd, *words, "--adapters-off", "visual", "text", "--json")
    assert json.loads(out)["models"]["M2-CLIP"]["evaluation"][0].endswith("adapters off: visual, text")


def test_zeroshot_on_random_halves(capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    words = ("zeroshot", "frozen", "--clip", "tiny", "--frames", 2, "--list", folder / "val1.txt", "--halves", 5)
    words += ("--classes", folder / "classes.csv", "--format", "frames", "--workers", 0, "--output", tmp_path)
    code, out, _ = call(capfd, *words, "--json")
    results = json.loads(out)
    assert code == 0 and results["splits"] == [f"half {n}" for n in range(1, 6)] and results["classes"] == [2] * 5
    assert "list: 8 videos" in results["models"]["frozen CLIP"]["evaluation"][0]
    code, out, _ = call(capfd, *words)
    assert code == 0 and "mean of 5" in out
    assert "list: 8 videos" in out and "half 2" not in out


def test_zeroshot_with_class_lists_of_their_own(
    capfd: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    words = ("zeroshot", folder / "run", "--list", folder / "val1.txt", "--format", "frames", "--workers", 0, "--json")
    words += ("--output", tmp_path, "--classes", folder / "classes.csv", folder / "others.csv")
    code, out, _ = call(capfd, *words)
    assert code == 0 and json.loads(out)["splits"] == ["classes", "others"]
    assert "once or as often" in one_line(call(capfd, *words, "--list", *[folder / f"val{n}.txt" for n in (1, 2, 3)]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fewshot",), "--config"),
        (("fewshot", "--config", "no_such_recipe"), "no_such_recipe"),
        (("fewshot", "--config", "m2clip_demo", "--shots", "0"), "--shots"),
        (("fewshot", "--config", "m2clip_demo", "--optim.speed", "3"), "optim.speed"),
        (("fewshot", "--config", "m2clip_demo"), "data.val is not set"),
        (("fewshot", "--config", "m2clip_demo", "x=m2clip_demo", "X=m2clip_demo"), "name 'x' is taken"),
        (("base-to-novel", "--config", "m2clip_demo", "--built-in", "kinetics"), "kinetics"),
        (("base-to-novel", "--config", "m2clip_demo", "--base-classes", "ucf101-bases"), "ucf101-base"),
        (("zeroshot", "frozen", "--list", "l", "--classes", "ucf101", "--halves", "0"), "--halves"),
    ],
)
def test_bad_commands_fail_in_one_line(capfd: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    assert said in one_line(call(capfd, *words))


def test_lists_of_a_protocol_read_like_any_other(
    folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, _ = call(capfd, "fewshot", "--config", folder / "small.yaml", "--shots", 3, "--output", tmp_path, "--json")
    assert code == 0
    drawn = load_annotations(tmp_path / "lists" / "train_shots3_seed0.txt", format="frames")
    assert sorted(item.label for item in drawn.items) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
