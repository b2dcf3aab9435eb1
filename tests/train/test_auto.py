"""The rule of the recipe `auto`, by value."""

from __future__ import annotations

import json

import pytest

from m2clip.config import load_config
from m2clip.train import auto
from m2clip.train.auto import Machine, Tower

GIB = 1 << 30
B16, L14, TINY = Tower(197, 768, 12), Tower(257, 1024, 24), Tower(37, 64, 3)
LAPTOP, H200 = Machine("cpu", 8 * GIB, 2), Machine("cuda", 100 * GIB, 16, bf16=True)


@pytest.mark.parametrize(
    ("machine", "precision"),
    [(LAPTOP, "fp32"), (H200, "bf16"), (Machine("cuda", GIB, 4, bf16=False), "fp16")],
)
def test_precision(machine: Machine, precision: str) -> None:
    assert auto.precision_of(machine) == precision


@pytest.mark.parametrize(
    ("videos", "clips"),
    [(1, 8), (6, 8), (16, 8), (17, 16), (1000, 16), (1001, 32), (10_000, 32), (10_001, 64), (240_000, 64)],
)
def test_clips_of_a_step(videos: int, clips: int) -> None:
    assert auto.clips_per_step(videos) == clips


def test_memory_of_a_clip_is_what_was_measured() -> None:
    """benchmarks/results/cpu/step_memory.json: 638 MB, 2,274 MB, and 61 MB with all blocks computed again."""
    assert auto.clip_bytes(B16, 8, "fp32", recomputed=False) == pytest.approx(637_976_884, rel=0.02)
    assert auto.clip_bytes(L14, 8, "fp32", recomputed=False) == pytest.approx(2_273_651_396, rel=0.03)
    assert auto.clip_bytes(B16, 8, "fp32", recomputed=True) == pytest.approx(60_716_276, rel=0.06)
    assert auto.clip_bytes(B16, 16, "bf16", recomputed=False) == auto.clip_bytes(B16, 8, "fp32", recomputed=False)


@pytest.mark.parametrize(
    ("clips", "fitting", "passes"),
    [(16, 100, (16, 1)), (16, 16, (16, 1)), (16, 15, (8, 2)), (16, 5, (4, 4)), (16, 1, (1, 16)), (16, 0, (1, 16))],
)
def test_passes_of_a_step(clips: int, fitting: int, passes: tuple[int, int]) -> None:
    assert auto.passes_of_a_step(clips, fitting) == passes


@pytest.mark.parametrize(
    ("videos", "classes", "clips", "steps"),
    [
        (240_000, 400, 64, 45_000),  # 12 passes
        (9_537, 101, 32, 8_011),  # 26.9 passes
        (400, 100, 16, 1_485),
        (30, 4, 16, 213),
        (6, 4, 8, 200),
        (100, 100, 16, 1_000),  # for the classes
    ],
)
def test_steps(videos: int, classes: int, clips: int, steps: int) -> None:
    assert auto.steps_of(videos, classes, clips) == steps


@pytest.mark.parametrize(
    ("steps", "videos", "clips", "found"),
    [
        (300, 30, 16, (16, 10)),  # 30 steps of each epoch
        (300, 6, 8, (40, 10)),
        (45_000, 240_000, 64, (1, 12)),
        (1_485, 400, 16, (6, 9)),
        (1, 30, 16, (1, 1)),
        (5, 6, 64, (11, 5)),  # an epoch has a step at least
    ],
)
def test_epochs(steps: int, videos: int, clips: int, found: tuple[int, int]) -> None:
    assert auto.epochs_of(steps, videos, clips) == found


def test_steps_that_fit_into_a_time() -> None:
    # A minute of 10 clips per second, less 11 validations of 10 videos, is 490 clips.
    assert auto.steps_in(60, 0.1, 16, 10) == 30
    assert auto.steps_in(10, 0.1, 16, 10) < 1


@pytest.mark.parametrize(
    ("machine", "light", "workers"),
    [(LAPTOP, True, 1), (LAPTOP, False, 0), (H200, True, 8), (Machine("cuda", 0, 1), False, 1)],
)
def test_decoding_processes(machine: Machine, light: bool, workers: int) -> None:
    assert auto.workers_of(machine, light) == workers


def test_rates() -> None:
    assert auto.rate_of("m2clip", auto.demo_of("m2clip"), 16) == pytest.approx(1e-2)
    assert auto.rate_of("m2clip", None, 256) == pytest.approx(1e-3)
    assert auto.rate_of("m2clip", None, 16) == pytest.approx(2.5e-4)
    assert auto.rate_of("aim", None, 16) == pytest.approx(1.5e-4)
    assert auto.rate_of("of another package", None, 64) == pytest.approx(5e-4)


def chosen(machine: Machine, tower: Tower, videos: int, names: list[str], *overrides: str) -> dict:
    given = {override.partition("=")[0] for override in overrides}
    config = load_config("auto", overrides)
    found = auto.choose(config, given, videos, names, machine, tower)
    assert not given & found.keys()
    written = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in found.items()]
    load_config("auto", [*overrides, *written])  # it is a configuration
    return found


def test_few_videos_on_a_laptop() -> None:
    found = chosen(LAPTOP, TINY, 30, ["jump", "run", "sit", "stand"])
    assert found["optim.precision"] == "fp32" and found["data.flip"] is True
    assert (found["optim.batch_size"], found["optim.accumulate"], found["optim.checkpointing"]) == (16, 1, 0)
    assert found["optim.lr"] * 16 / 256 == pytest.approx(1e-2)
    assert found["model.options.width"] == 64
    assert chosen(LAPTOP, TINY, 30, ["turn left", "turn right"])["data.flip"] is False
    found = chosen(LAPTOP, TINY, 30, ["a", "b"], "model.method=msta")
    assert found["model.options.alpha"] == 0 and "model.options.descriptions" not in found


def test_a_real_clip_on_a_gpu() -> None:
    found = chosen(H200, B16, 100_000, [f"class {number}" for number in range(400)], "model.clip=ViT-B-16-quickgelu")
    assert (found["optim.batch_size"], found["optim.accumulate"], found["optim.precision"]) == (64, 1, "bf16")
    assert (found["data.repeat"], found["optim.epochs"], found["optim.warmup_epochs"]) == (1, 14, pytest.approx(1.4))
    assert found["optim.lr"] * 64 / 256 == pytest.approx(5e-4)
    assert not any(name.startswith("model.") for name in found)


def test_little_memory() -> None:
    small = Machine("cuda", 4 * GIB, 8, bf16=True)
    found = chosen(small, B16, 300, ["a", "b"], "model.clip=ViT-B-16-quickgelu")
    assert (found["optim.batch_size"], found["optim.accumulate"], found["optim.checkpointing"]) == (6, 3, 0)
    found = chosen(small, L14, 300, ["a", "b"], "model.clip=ViT-L-14-quickgelu", "data.num_frames=32")
    assert (found["optim.batch_size"], found["optim.accumulate"], found["optim.checkpointing"]) == (4, 4, 24)


def test_what_the_user_gives_stays_and_decides_the_rest() -> None:
    found = chosen(LAPTOP, TINY, 32, ["a", "b"], "optim.batch_size=4", "optim.epochs=3", "data.flip=true")
    assert found["optim.lr"] * 4 / 256 == pytest.approx(1e-2)
    assert found["optim.warmup_epochs"] == pytest.approx(0.3)
    assert chosen(LAPTOP, TINY, 32, ["a", "b"], "optim.epochs=1")["optim.warmup_epochs"] == pytest.approx(0.1)


def test_several_processes_share_a_step() -> None:
    group = Machine("cuda", 100 * GIB, 8, bf16=True, processes=8)
    found = chosen(group, B16, 240_000, ["a", "b"], "model.clip=ViT-B-16-quickgelu")
    assert found["optim.batch_size"] == 8 and found["optim.lr"] * 64 / 256 == pytest.approx(5e-4)


def test_all_steps_of_a_run() -> None:
    config = load_config("auto", ["optim.batch_size=4", "optim.accumulate=3", "optim.epochs=5", "data.repeat=3"])
    # 30 clips of 3 passes over 10 videos: 7 batches, 3 steps.
    assert auto.steps_in_all(config, 10, processes=1) == 15
    assert auto.steps_in_all(config, 10, processes=2) == 5
