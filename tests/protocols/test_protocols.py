"""Few-shot, base-to-novel and zero-shot: what is trained on what, what is reported, and what is not done twice."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import m2clip
from m2clip.checkpoints.adapters import read_adapter_config
from m2clip.config import RunConfig, load_config
from m2clip.data.lists.annotations import load_annotations
from m2clip.errors import InputError
from m2clip.evaluate.results import EvalResult, HeadScores
from m2clip.files.folders import locked
from m2clip.files.kept_work import read_record
from m2clip.protocols import comparisons as protocols
from m2clip.protocols.runs import Contender, Reporter, ScoredSet
from m2clip.train import trainer as train
from tests.fake_model import random_tiny_clip
from tests.train.training_run import write_videos

NAMES = ["a dog running", "a cat sleeping", "a man waving", "a bird flying"]
QUIET = {"device": "cpu"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2clip.towers.tiny.tiny_clip", random_tiny_clip)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen videos of four classes, 3, 4, 3 and 4 of them."""
    path = write_videos(tmp_path_factory.mktemp("videos"))
    labels = (0, 1, 2, 3, 1, 3, 0, 1, 2, 3, 1, 3, 0, 2)
    path.write_text("".join(f"v{number} 4 {label}\n" for number, label in enumerate(labels)))
    (path.parent / "classes.csv").write_text("id,name\n" + "".join(f"{i},{n}\n" for i, n in enumerate(NAMES)))
    return path


def config(videos: Path, *overrides: str) -> RunConfig:
    small = ["model.clip=tiny", "model.pretrained=null", "model.options={width: 8, text_width: 8}"]
    data = [f"data.train={videos}", f"data.val={videos}", f"data.classes={videos.parent / 'classes.csv'}"]
    short = ["data.num_frames=2", "data.workers=0", "optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=2"]
    return load_config(None, [*small, *data, *short, "data.format=frames", *overrides])


def reporter(said: list[str]) -> Reporter:
    return Reporter(quiet=True, say=said.append)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that were trained."""
    seen: list[RunConfig] = []
    real = train.run

    def run(config: RunConfig, **options: Any) -> Path:
        seen.append(config)
        return real(config, **options)

    monkeypatch.setattr(train, "run", run)
    return seen


def test_few_shot_compares_methods_and_repeats_nothing(videos: Path, tmp_path: Path, trained: list[RunConfig]) -> None:
    contenders = [
        Contender("M2-CLIP", config(videos)),
        Contender("wide", config(videos, "model.options={width: 16, text_width: 8}")),
    ]
    said: list[str] = []
    results = protocols.few_shot(contenders, tmp_path, shots=(1, 2), seeds=(0, 5), reporter=reporter(said), **QUIET)
    assert len(trained) == 8 and sum("training" in line for line in said) == 8
    for run in trained:
        shots, seed = (
            int(word[5:] if word.startswith("shots") else word[4:]) for word in Path(run.output).name.split("_")
        )
        drawn = load_annotations(run.data.train, format=run.data.format, class_names=run.data.classes)
        assert run.seed == seed and run.data.val is None
        whole = load_annotations(videos, format="frames", class_names=videos.parent / "classes.csv")
        assert drawn.items == whole.few_shot(shots, seed).items
    assert [Path(run.output).parent.name for run in trained[:2]] == ["m2-clip", "wide"]
    for name, folder in (("M2-CLIP", "m2-clip"), ("wide", "wide")):
        for k in ("1", "2"):
            found = results["methods"][name][k]
            one = [
                json.loads((tmp_path / "runs" / folder / f"shots{k}_seed{s}" / "eval_val.json").read_text())
                for s in (0, 5)
            ]
            top1 = [run["supervised"]["top1"] for run in one]
            assert found["top1"]["values"] == top1 and found["top1"]["mean"] == pytest.approx(sum(top1) / 2)
            assert found["top1"]["std"] == pytest.approx(statistics.stdev(top1))
            assert found["heads"]["zero-shot"]["values"] == [run["zero_shot"]["top1"] for run in one]
    assert results["chance"] == 0.25 and results["frozen"].keys() == {"frozen CLIP"}
    assert read_record(tmp_path / "results.json") == results

    # A run that is gone is trained again and the others are not.
    shutil.rmtree(tmp_path / "runs" / "wide" / "shots2_seed5")
    trained.clear()
    said.clear()
    assert (
        protocols.few_shot(contenders, tmp_path, shots=(1, 2), seeds=(0, 5), reporter=reporter(said), **QUIET)
        == results
    )
    assert [Path(run.output).name for run in trained] == ["shots2_seed5"]
    assert sum("finished before" in line for line in said) == 7


def test_a_stopped_protocol_goes_on(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    contenders = [Contender("M2-CLIP", config(videos, "optim.epochs=2"))]
    whole = protocols.few_shot(contenders, tmp_path / "whole", shots=(2,), reporter=reporter([]), **QUIET)
    real = train.run

    def interrupted(config: RunConfig, **options: Any) -> Path:
        def interrupt(progress: Any) -> None:
            if progress.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

        return real(config, **options, on_step=interrupt)

    monkeypatch.setattr(train, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        protocols.few_shot(contenders, tmp_path / "cut", shots=(2,), reporter=reporter([]), **QUIET)
    folder = tmp_path / "cut" / "runs" / "m2-clip" / "shots2_seed0"
    assert not (folder / "scores.json").exists() and not (tmp_path / "cut" / "results.json").exists()
    monkeypatch.setattr(train, "run", real)
    steps = []
    monkeypatch.setattr(
        train, "run", lambda config, **options: real(config, **options, on_step=lambda p: steps.append(p.step))
    )
    again = protocols.few_shot(contenders, tmp_path / "cut", shots=(2,), reporter=reporter([]), **QUIET)
    assert steps[0] > 2 and steps[-1] == 8
    assert again == whole


def test_other_settings_in_the_same_folder(videos: Path, tmp_path: Path, trained: list[RunConfig]) -> None:
    def run(*overrides: str) -> dict[str, Any]:
        mine = [Contender("M2-CLIP", config(videos, *overrides))]
        return protocols.few_shot(mine, tmp_path, shots=(2,), reporter=reporter([]), **QUIET)

    first = run()
    with pytest.raises(InputError, match="optim.lr"):
        run("optim.lr=0.5")
    # Other views need no other training: the run is scored anew, and its adapters carry the new views.
    folder = tmp_path / "runs" / "m2-clip" / "shots2_seed0"
    before, steps = load_file(folder / "adapters.safetensors"), (folder / "metrics.csv").read_bytes()
    twice = run("eval.clips=2")
    assert "2 clips" in twice["evaluation"] and "1 clip " in first["evaluation"]
    after = load_file(folder / "adapters.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) and after.keys() == before.keys()
    assert (folder / "metrics.csv").read_bytes() == steps
    assert read_adapter_config(folder)["views"]["clips"] == 2
    trained.clear()
    assert run("eval.clips=2", "data.workers=1", "log_every=7") == twice and not trained


def test_published_lists_are_taken_as_they_are(videos: Path, tmp_path: Path, trained: list[RunConfig]) -> None:
    lines = videos.read_text().splitlines()
    for shots, numbers in ((1, (0, 1, 3, 8)), (2, (0, 1, 2, 3, 4, 5, 6, 8))):
        (videos.parent / f"train1_few_shot_{shots}.txt").write_text("".join(lines[n] + "\n" for n in numbers))
    published = config(videos, f"data.train={videos.parent}/train1_few_shot_{{shots}}.txt")
    protocols.few_shot([Contender("x", published)], tmp_path, shots=(1, 2), reporter=reporter([]), **QUIET)
    drawn = [load_annotations(run.data.train, format="frames", class_names=NAMES) for run in trained]
    assert [[item.path.name for item in found.items] for found in drawn] == [
        ["v0", "v1", "v3", "v8"],
        [f"v{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8)],
    ]


def test_base_to_novel_trains_on_the_frequent_half_only(videos: Path, tmp_path: Path, trained: list[RunConfig]) -> None:
    contenders = [Contender("M2-CLIP", config(videos))]
    results = protocols.base_to_novel(contenders, tmp_path, shots=2, seeds=(1, 2), reporter=reporter([]), **QUIET)
    frequent, rare = [NAMES[1], NAMES[3]], [NAMES[0], NAMES[2]]
    assert results["classes"] == {"base": frequent, "novel": rare}
    assert results["chance"] == {"base": 0.5, "novel": 0.5}
    for run in trained:
        drawn = load_annotations(run.data.train, format="frames", class_names=run.data.classes)
        assert drawn.class_names == frequent and [item.label for item in drawn.items].count(1) == 2
        assert {item.path.name for item in drawn.items} <= {f"v{n}" for n in (1, 3, 4, 5, 7, 9, 10, 11)}
    found = results["methods"]["M2-CLIP"]
    assert found["base"]["heads"].keys() == {"supervised", "zero-shot"}
    assert found["novel"]["heads"].keys() == {"zero-shot"}
    assert found["novel"]["videos"] == [6, 6] and found["base"]["videos"] == [8, 8]
    means = [found[part]["top1"]["mean"] for part in ("base", "novel")]
    assert found["harmonic_mean"] == pytest.approx(2 * means[0] * means[1] / max(sum(means), 1e-9))
    assert list(results["methods"]) == ["frozen CLIP", "M2-CLIP"]
    # The harmonic mean is that of the means and not the mean of harmonic means.
    assert protocols.harmonic_mean([0.5, 0.25]) == pytest.approx(1 / 3) and protocols.harmonic_mean([0.9, 0]) == 0


def test_base_to_novel_with_chosen_classes_and_with_lists_of_their_own(
    videos: Path, tmp_path: Path, trained: list[RunConfig]
) -> None:
    mine = [Contender("x", config(videos))]
    halves = {"base_classes": ["A_man_waving", NAMES[0]], "novel_classes": [NAMES[1], NAMES[3]]}
    chosen = protocols.base_to_novel(
        mine, tmp_path / "a", shots=1, seeds=(1,), **halves, reporter=reporter([]), **QUIET
    )
    assert chosen["classes"] == {"base": ["A_man_waving", NAMES[0]], "novel": [NAMES[1], NAMES[3]]}
    folder = tmp_path / "lists"
    folder.mkdir()
    root = videos.parent
    (folder / "fs_base_s7_train.txt").write_text("v0 4 0\nv2 4 1\n")
    (folder / "base_val.txt").write_text("v6 4 0\nv8 4 1\nv13 4 1\n")
    (folder / "novel_val.txt").write_text("v1 4 0\nv3 4 1\n")
    (folder / "base.csv").write_text(f"id,name\n0,{NAMES[0]}\n1,{NAMES[2]}\n")
    own = config(
        *(videos, f"data.train={folder}/fs_base_s{{seed}}_train.txt", f"data.val={folder}/base_val.txt"),
        *(f"data.classes={folder}/base.csv", f"data.root={root}"),
    )
    novel = {"novel_list": str(folder / "novel_val.txt"), "novel_classes": [NAMES[1], NAMES[3]]}
    found = protocols.base_to_novel(
        [Contender("x", own)], tmp_path / "b", shots=1, seeds=(7,), **novel, reporter=reporter([]), **QUIET
    )
    assert found["methods"]["x"]["base"]["videos"] == [3] and found["methods"]["x"]["novel"]["videos"] == [2]
    drawn = load_annotations(trained[-1].data.train, format="frames", class_names=trained[-1].data.classes)
    assert [item.path.name for item in drawn.items] == ["v0", "v2"]


def test_best_weights_are_chosen_on_the_validation_list(videos: Path, tmp_path: Path, trained: list[RunConfig]) -> None:
    mine = [Contender("x", config(videos, "keep=best", "optim.epochs=2"))]
    protocols.base_to_novel(mine, tmp_path, shots=1, seeds=(1,), reporter=reporter([]), **QUIET)
    val = load_annotations(trained[0].data.val, format="frames", class_names=trained[0].data.classes)
    assert len(val.items) == 8 and val.class_names == [NAMES[1], NAMES[3]]
    assert (tmp_path / "runs" / "x" / "shots1_seed1" / "eval_epoch_001.json").is_file()


@pytest.mark.parametrize(
    ("overrides", "names", "said"),
    [
        ((), (), "no configuration"),
        ((), ("a", "A"), "name 'a' is taken"),
        ((), ("frozen CLIP",), "name 'frozen CLIP' is taken"),
        (("model.method=clip", "model.options={}"), ("a",), "always shown beside"),
        (("keep=best", "validate_every=0"), ("a",), "validate_every"),
        (("data.train=null",), ("a",), "data.train is not set"),
        (("data.val=null",), ("a",), "data.val is not set"),
        (("data.classes=null",), ("a",), "no names"),
        (("data.train={shots}.txt",), ("a",), "9.txt: no such"),
        ((), ("a",), "9 shots"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    videos: Path, tmp_path: Path, overrides: tuple[str, ...], names: tuple[str, ...], said: str
) -> None:
    contenders = [Contender(name, config(videos, *overrides)) for name in names]
    with pytest.raises(InputError, match=said.replace("{", r"\{")):
        protocols.few_shot(contenders, tmp_path, shots=(9,), reporter=reporter([]), **QUIET)


def test_halves_that_cannot_be_scored_are_refused(videos: Path, tmp_path: Path) -> None:
    def run(contenders: list[Contender], **classes: Any) -> None:
        protocols.base_to_novel(contenders, tmp_path, shots=1, seeds=(1,), reporter=reporter([]), **classes, **QUIET)

    mine = [Contender("x", config(videos))]
    with pytest.raises(InputError, match="both base and novel"):
        run(mine, base_classes=NAMES[:2])
    with pytest.raises(InputError, match="'a cat sleeping' is base and novel"):
        run(mine, base_classes=NAMES[:2], novel_classes=NAMES[1:])
    with pytest.raises(InputError, match="one novel class only"):
        run(mine, base_classes=NAMES[:3], novel_classes=NAMES[3:])
    with pytest.raises(InputError, match="needs its class names"):
        run(mine, novel_list=str(videos))
    other = config(videos, f"data.val={videos.parent / 'other.txt'}")
    with pytest.raises(InputError, match="data.val differs"):
        run([*mine, Contender("y", other)])


def test_zero_shot_means_over_splits_and_keeps_finished_ones(videos: Path, tmp_path: Path) -> None:
    whole = load_annotations(videos, format="frames", class_names=NAMES)
    parts = [
        ScoredSet("one", whole),
        ScoredSet("two", whole.select_classes(NAMES[:2])),
        ScoredSet("three", whole.few_shot(2, 0)),
    ]
    asked: list[tuple[str, str]] = []
    values = {"one": 0.5, "two": 0.25, "three": 0.75}

    def score(name: str, model: Any, part: ScoredSet) -> EvalResult:
        asked.append((name, part.name))
        if len(asked) == 3:
            raise KeyboardInterrupt
        head = HeadScores(values[part.name], None, [], [], [])
        views = ("wrong", 1, 1, "2 uniform", "mean", "clip", "a {}", "0", len(part.annotations))
        return EvalResult(part.class_names, HeadScores(0.9, None, [], [], []), head, 4, [], *views)

    torch.manual_seed(0)
    model = m2clip.create_model("m2clip", random_tiny_clip(), NAMES, 2, width=8)

    def run(**settings: Any) -> dict[str, Any]:
        return protocols.zero_shot({"M2-CLIP": model}, parts, score, tmp_path, settings)

    with pytest.raises(KeyboardInterrupt):
        run(clips=1)
    found = run(clips=1)
    assert asked == [("M2-CLIP", name) for name in ("one", "two", "three", "three")]
    top1 = found["models"]["M2-CLIP"]["top1"]
    assert top1 == {"mean": 0.5, "std": pytest.approx(0.25), "values": [0.5, 0.25, 0.75]}
    assert found["splits"] == ["one", "two", "three"] and found["classes"] == [4, 2, 4]
    assert run(clips=1) == found and len(asked) == 4
    # Other views, or other weights, are other numbers.
    run(clips=2)
    assert len(asked) == 7
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1)
    run(clips=2)
    assert len(asked) == 10


def test_two_protocols_in_one_folder(videos: Path, tmp_path: Path) -> None:
    contenders = [Contender("M2-CLIP", config(videos))]
    with locked(tmp_path, "test"), pytest.raises(InputError, match="another comparison is writing"):
        protocols.few_shot(contenders, tmp_path, shots=(2,), reporter=reporter([]), **QUIET)
