"""Training by episodes through the one trainer: batches, resume, rates, validation on other classes, bad videos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import m2clip
from m2clip import distributed
from m2clip.config import RunConfig
from m2clip.data.episodes import EpisodeShape
from m2clip.errors import InputError
from m2clip.methods.ma_fsar import MAFSAR
from m2clip.train import trainer as train
from m2clip.train.optim import scaled_lr
from m2clip.train.setup import datasets, epoch_batches, training_list
from m2clip.train.state import Progress, load_newest
from tests.train.test_resume import Killed, assert_same_run, kill_after
from tests.train.test_train import start_processes
from tests.train.training_run import CLASS_NAMES, SIZE, build_clip, build_config, read_losses, write_videos

SHAPE = EpisodeShape(way=2, shots=1, queries=2)
SHAPED: Any = SimpleNamespace(image_size=(SIZE, SIZE), num_frames=2)
OTHER_NAMES = ["a bird flying", "a fish swimming", "a horse standing"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in another order are no equal runs, and workers take threads away from training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    listed = write_videos(tmp_path_factory.mktemp("videos"))
    rows = "".join(f"{label},{name}\n" for label, name in enumerate(OTHER_NAMES))
    (listed.parent / "others.csv").write_text("id,name\n" + rows)
    return listed


def overrides_of(*overrides: str) -> tuple[str, ...]:
    return (
        "model.method=ma_fsar",
        "model.options={}",  # those of the shared configuration are another method's
        "model.options={ratio: 0.5, tpcm_heads: 2}",
        "episodes.train=true",
        "episodes.way=2",
        "episodes.queries=2",
        "episodes.per_epoch=5",
        "episodes.val_episodes=20",
        "optim.epochs=2",
        "optim.lr=0.01",
        "optim.schedule=steps",
        *overrides,
    )


def config_of(videos: Path, output: Path, *overrides: str) -> RunConfig:
    """2 epochs of 5 episodes of 6 clips, in steps of 2, 2 and 1 episodes."""
    return build_config(videos, output, *overrides_of(*overrides))


def run(config: RunConfig, **named: Any) -> Path:
    return train.run(config, clip=build_clip(), device="cpu", quiet=True, **named)


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config_of(videos, tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (2, 0), (4, 2)])
def test_resume_is_exact(videos: Path, whole: Path, tmp_path: Path, step: int, workers: int) -> None:
    config = config_of(videos, tmp_path, f"data.workers={workers}", "checkpoint_every=1")
    with pytest.raises(Killed):
        run(config, on_step=kill_after(step))
    torch.rand(5)
    run(config)
    assert len(read_losses(tmp_path)) == 6
    assert_same_run(tmp_path, whole)


def test_a_method_of_episodes_is_not_trained_by_batches(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="method ma_fsar is trained by episodes: use m2clip episodes train"):
        run(config_of(videos, tmp_path, "episodes.train=false"))


def test_the_model_sees_whole_episodes(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    original = MAFSAR.loss

    def loss(self: MAFSAR, video: torch.Tensor, labels: torch.Tensor, *args: Any, **named: Any) -> Any:
        assert self.episode == SHAPE and video.shape == (6, 2, 3, SIZE, SIZE)
        seen.append(labels.tolist())
        return original(self, video, labels, *args, **named)

    monkeypatch.setattr(MAFSAR, "loss", loss)
    run(config_of(videos, tmp_path, "optim.accumulate=4"))
    assert len(seen) == 10
    assert all(a != b and [a, b, c, d, e, f] == [a, b, a, a, b, b] for a, b, c, d, e, f in seen)
    rows = read_losses(tmp_path)
    # Two steps per epoch, of 4 and of 1 episodes.
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"] and "loss_q2s" in rows[0]


def test_the_rate_is_that_of_the_clips_of_a_step(videos: Path, whole: Path) -> None:
    peak = scaled_lr(0.01, SHAPE.videos * 2)
    factors = [1 / 2, 1, 1, 1, 0.1, 0.01]
    assert [float(row["lr"]) for row in read_losses(whole)] == pytest.approx([peak * factor for factor in factors])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_take_different_episodes(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    config = config_of(videos, tmp_path)
    annotations, names = training_list(config)
    dataset, _ = datasets(config, annotations, names, SHAPED)
    alone = [batch["index"].tolist() for batch in epoch_batches(config, dataset, torch.device("cpu"), 1, 0)]
    monkeypatch.setattr(distributed, "world_size", lambda: size)
    shares = []
    for rank in range(size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append([batch["index"].tolist() for batch in epoch_batches(config, dataset, torch.device("cpu"), 1, 0)])
        rest = epoch_batches(config, dataset, torch.device("cpu"), 1, 1)
        assert [batch["index"].tolist() for batch in rest] == shares[rank][1:]
    used = 5 - 5 % size
    assert {len(share) for share in shares} == {used // size}
    assert sorted(batch for share in shares for batch in share) == sorted(alone[:used])


def test_two_processes_train_as_one(videos: Path, tmp_path: Path) -> None:
    # Two episodes a step: one after the other, or side by side. Dropout would differ.
    drawn = "model.options={ratio: 0.5, tpcm_heads: 2, attention_dropout: 0.0, ffn_dropout: 0.0}"
    options = (drawn, "episodes.per_epoch=4", "optim.epochs=1", "timeout=60")
    alone = read_losses(run(config_of(videos, tmp_path / "one", *options)))
    overrides = overrides_of(*options, "optim.accumulate=1")
    assert start_processes(2, str(videos), str(tmp_path / "two"), "99", *overrides) == [0, 0]
    together = read_losses(tmp_path / "two")
    assert len(alone) == len(together) == 2
    for name in ("loss", "loss_q2s", "loss_q2t", "loss_s2t", "grad_norm", "lr"):
        assert float(together[0][name]) == pytest.approx(float(alone[0][name]), rel=1e-5), name
    assert float(together[1]["loss"]) == pytest.approx(float(alone[1]["loss"]), rel=1e-3)


def test_weights_are_chosen_by_other_classes(videos: Path, whole: Path, tmp_path: Path) -> None:
    others = (f"data.val={videos}", f"episodes.val_classes={videos.parent / 'others.csv'}", "keep=best")
    folder = run(config_of(videos, tmp_path, *others))
    rows = [row for row in read_losses(folder) if row["val_top1"]]
    assert [(row["step"], row["epoch"]) for row in rows] == [("3", "1"), ("6", "2")]
    for number, row in enumerate(rows, start=1):
        result = json.loads((folder / f"eval_epoch_{number:03d}.json").read_text())
        assert float(row["val_top1"]) == float(row["val_top1_fused"]) == result["heads"]["fused"]["mean"]
        assert (result["way"], result["shots"], result["queries"], result["episodes"]) == (2, 1, 1, 20)
    # The same episodes each time; training computes what it would without validation.
    files = sorted(folder.glob("eval_epoch_*.json"))
    assert len({json.loads(file.read_text())["episodes_hash"] for file in files}) == 1
    trained = [{name: row[name] for name in read_losses(whole)[0]} for row in read_losses(folder) if row["loss"]]
    assert trained == read_losses(whole)
    model = m2clip.load_adapters(folder, build_clip())
    assert model.class_names == CLASS_NAMES
    scores = [float(row["val_top1"]) for row in rows]
    last = load_newest(folder / "checkpoints")
    assert last is not None
    is_last = all(torch.equal(last.tensors[f"model.{n}"], t) for n, t in model.trained_state_dict().items())
    assert is_last == (scores[1] >= scores[0])  # of equally good ones the later


def test_choosing_by_test_videos_is_said(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = f"episodes.test_classes={videos.parent / 'others.csv'}"
    config = config_of(videos, tmp_path, f"episodes.test={videos}", names, "episodes.select_by=test", "optim.epochs=1")
    train.run(config, clip=build_clip(), device="cpu")
    out = capsys.readouterr().out
    assert "chosen by test videos (episodes.select_by=test): their accuracy will be too good" in out
    assert "of 20 test episodes" in out


def test_unreadable_videos_are_listed(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos")
    for frame in (tmp_path / "videos" / "v3").iterdir():
        frame.write_bytes(b"no picture")
    folder = run(config_of(videos, tmp_path / "run", "data.workers=2", "episodes.per_epoch=12", "optim.epochs=1"))
    (entry,) = (json.loads(line) for line in (folder / "bad_videos.jsonl").read_text().splitlines())
    # v3 is of class 0, as are all whose number 3 divides.
    assert Path(entry["path"]).name == "v3" and int(Path(entry["replaced_by"]).name[1:]) % 3 == 0


def test_other_methods_train_on_episodes_too(videos: Path, tmp_path: Path) -> None:
    steps: list[int] = []

    def on_step(progress: Progress) -> None:
        steps.append(progress.step)

    options = ("model.method=m2clip", "model.options={}", "model.options={width: 8, text_width: 8}", "optim.epochs=1")
    run(config_of(videos, tmp_path, *options), on_step=on_step)
    assert steps == [1, 2, 3]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("episodes.way=4",), "has videos of 3 classes, an episode of 4 ways needs 4"),
        (("episodes.shots=3",), r"fewer than the 5 videos of an episode \(3 support, 2 query\): 'a man waving' \(4\)$"),
        (("data.val={videos}", "data.classes={classes}"), "gives class numbers but no names: set episodes.val_classes"),
        (("data.val={videos}", "episodes.val_classes={classes}"), "'a dog running' of .* is trained on, too"),
        (("data.val={videos}", "episodes.val_classes={others}", "episodes.val_shots=4"), r"\(4 support, 1 query\)"),
    ],
)
def test_impossible_runs(videos: Path, tmp_path: Path, overrides: tuple[str, ...], words: str) -> None:
    places = {"videos": videos, "classes": videos.parent / "classes.csv", "others": videos.parent / "others.csv"}
    config = config_of(videos, tmp_path, *(text.format(**places) for text in overrides))
    with pytest.raises(InputError, match=words) as caught:
        run(config)
    assert "\n" not in str(caught.value)


def test_fewer_episodes_than_processes(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from m2clip.train.setup import batches_per_epoch

    config = config_of(videos, tmp_path)
    dataset, _ = datasets(config, *training_list(config), SHAPED)
    monkeypatch.setattr(distributed, "world_size", lambda: 6)
    with pytest.raises(InputError, match="episodes.per_epoch is 5, fewer than the 6 processes"):
        batches_per_epoch(config, dataset)
