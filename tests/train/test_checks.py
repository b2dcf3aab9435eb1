"""What training says about a schedule that cannot work, mirrored classes of left and right, and a loss that rose."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2clip.config import RunConfig, load_config
from m2clip.data.lists.label_sets import load_class_names
from m2clip.errors import InputError, Notice
from m2clip.train import trainer as train
from m2clip.train.checks import MIN_STEPS, check_flip, check_loss, check_schedule
from tests.train.training_run import build_clip, build_config, write_videos


def schedule(config: RunConfig, videos: int, processes: int = 1) -> str | None:
    optim = config.optim
    samples = optim.batch_size * optim.accumulate * processes
    per_epoch = videos // samples
    warmup = round(optim.warmup_epochs * per_epoch)
    return check_schedule(
        config, total_steps=per_epoch * optim.epochs, warmup_steps=warmup, samples_per_step=samples, videos=videos
    )


def test_a_published_recipe_on_a_small_folder() -> None:
    config = load_config("m2clip_k400_b16_8f")
    line = schedule(config, videos=40)
    assert line == (
        "12 optimiser steps in all, 2 of them warm-up (36 clips per step): too few to learn from; use optim.epochs=100 "
        "or optim.batch_size=4 for about 100 steps or more"
    )
    for override in ("optim.epochs=100", "optim.batch_size=4"):
        assert schedule(load_config("m2clip_k400_b16_8f", [override]), videos=40) is None
    # With two processes and two passes, a step takes four batches.
    config = load_config("m2clip_k400_b16_8f", ["optim.batch_size=9", "optim.accumulate=2"])
    assert "optim.batch_size=2 for" in str(schedule(config, videos=72, processes=2))
    assert schedule(load_config("m2clip_k400_b16_8f"), videos=240_000, processes=2) is None
    # Too few videos for any batch size.
    assert "use optim.epochs=100 for" in str(schedule(load_config(None, ["optim.batch_size=2"]), videos=3))


@pytest.mark.parametrize(("steps", "warmup", "fine"), [(MIN_STEPS, 50, True), (MIN_STEPS, 51, False), (99, 0, False)])
def test_where_a_schedule_begins_to_be_doubtful(steps: int, warmup: int, fine: bool) -> None:
    found = check_schedule(RunConfig(), total_steps=steps, warmup_steps=warmup, samples_per_step=36, videos=900)
    assert (found is None) == fine


def test_a_schedule_of_warm_up_alone_is_refused(tmp_path: Path) -> None:
    config = build_config(write_videos(tmp_path), tmp_path / "run", "optim.epochs=1", "optim.warmup_epochs=1")
    with pytest.raises(InputError, match=r"^4 optimiser steps in all, 4 of them warm-up .*: none is left to train"):
        train.run(config, device="cpu", clip=build_clip(), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "names",
    [
        ["turn left", "stop"],
        ["TurnRight", "TurnAround"],
        ["swipe_left", "swipe_right"],
        ["Moving something away", "Pushing [something] from LEFT to right"],
        ["left-handed serve", "serve"],
        ["lefthand wave", "wave"],
        ["walking leftwards", "walking"],
        ["stirring counter-clockwise", "stirring"],
        ["turning anticlockwise", "turning"],
        ["wave L", "wave R"],
        ["arm_r_up", "arm_l_up"],
    ],
)
def test_classes_of_left_and_right_while_clips_are_mirrored(names: list[str]) -> None:
    line = check_flip(RunConfig(), names)
    assert line is not None and "\n" not in line and "data.flip=false" in line
    assert check_flip(load_config(None, ["data.flip=false"]), names) is None
    assert check_flip(load_config(None, ["data.augmentation=randaugment"]), names) is None
    assert check_flip(load_config(None, ["data.augmentation=multi_scale_crop"]), names) is not None


def test_classes_without_left_and_right() -> None:
    names = ["eating leftovers", "bright light", "playing upright bass", "copyright", "stand up", "plan R", "vitamin L"]
    assert check_flip(RunConfig(), names) is None
    assert check_flip(RunConfig(), load_class_names("k400")) is None
    assert check_flip(RunConfig(), load_class_names("ucf101")) is None
    assert "and 5 more" in str(check_flip(RunConfig(), load_class_names("ssv2")))


def rows(*losses: tuple[int, float]) -> list[dict[str, str]]:
    return [{"step": str(step), "loss": str(loss), "val_top1": ""} for step, loss in losses]


def test_a_loss_that_rose_or_fell() -> None:
    # Lines of unequal numbers of steps: 10 at 2.0, then 5 at 1.0 and so on; fifths of 25 steps are 5 steps.
    fell = rows((10, 2.0), (15, 1.0), (25, 1.5)) + [{"step": "25", "loss": "", "val_top1": "0.5"}]
    assert check_loss(fell) is None
    assert check_loss(rows((10, 2.0), (15, 1.0), (25, 2.5))) == (
        "the loss did not fall: 2 over the first 5 of 25 steps, 2.5 over the last 5; look at the labels, then try "
        "another optim.lr or more optim.epochs"
    )
    # One good or bad step at an end does not decide.
    level = [5.0] * 20
    assert check_loss(rows(*enumerate([*level[:-1], 4.0], 1))) is None
    assert check_loss(rows(*enumerate([9.0, *[5.0] * 18, 6.0], 1))) is None
    assert check_loss(rows(*enumerate([1.0, *level, 2.0], 1))) is not None
    assert check_loss(rows((1, 3.0))) is None
    assert check_loss([]) is None


def test_warnings_are_told_and_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    videos = write_videos(tmp_path)
    (tmp_path / "classes.csv").write_text("id,name\n0,turn left\n1,turn right\n2,stop\n")
    # So high a rate that the loss rises.
    overrides = ("optim.lr=1000", "optim.clip_grad=1.0", "optim.warmup_epochs=0", "checkpoint_every=0")
    config = build_config(videos, tmp_path / "run", *overrides)
    for _ in range(2):  # the second time only says again what is known
        with pytest.warns(Notice) as told:
            folder = train.run(config, device="cpu", clip=build_clip(), quiet=True)
        kept = (folder / "warnings.txt").read_text().splitlines()
        assert capfd.readouterr().out == "" and [str(warning.message) for warning in told] == kept
        starts = ("12 optimiser steps in all", "half of the clips are mirrored", "the loss did not fall")
        assert [next(start for start in starts if line.startswith(start)) for line in kept] == list(starts)
