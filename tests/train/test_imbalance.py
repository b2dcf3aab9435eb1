"""Classes of unequal size, label smoothing, and the moving average of the trained weights."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import m2clip
from m2clip.data.clips import EpochSampler, balanced_order
from m2clip.data.lists.annotations import load_annotations
from m2clip.errors import InputError
from m2clip.methods.losses import classification_loss, cosine_loss
from m2clip.train import trainer as train
from m2clip.train.imbalance import class_weights
from m2clip.train.state import Progress, list_checkpoints
from tests.methods.whole_models import OPTIONS
from tests.train.test_resume import Killed, assert_same_run, kill_after
from tests.train.training_run import CLASS_NAMES, build_clip, build_config, write_videos

CLASSES = [0] * 50 + [1] * 8 + [2] * 2


def drawn(classes: list[int], root: bool = False, seed: int = 0) -> list[tuple[int, ...]]:
    return balanced_order(classes, random.Random(seed), root=root)


@pytest.mark.parametrize(("root", "counts"), [(False, {0: 20, 1: 20, 2: 20}), (True, {0: 37, 1: 15, 2: 8})])
def test_classes_are_drawn_evenly(root: bool, counts: dict[int, int]) -> None:
    order = drawn(CLASSES, root)  # the roots are 7.07, 2.83 and 1.41 of 11.31: shares of 37.5, 15 and 7.5
    found = Counter(CLASSES[address[0]] for address in order)
    assert len(order) == len(set(order)) == 60
    assert all(abs(found[label] - count) <= 1 for label, count in counts.items())
    for label in range(3):  # no video a second time more often than another of its class
        times = Counter(address[0] for address in order if CLASSES[address[0]] == label)
        every = [times[index] for index in range(60) if CLASSES[index] == label]
        assert max(every) - min(every) <= 1
    for index, *repetition in order:
        assert not repetition or 1 <= repetition[0] < 10 and CLASSES[index] != 0


def test_each_epoch_draws_others_and_processes_share_them() -> None:
    options: dict[str, Any] = {"shuffle": True, "classes": CLASSES, "drop_last": True}
    epochs = [list(EpochSampler(60, epoch=epoch, **options)) for epoch in (0, 1)]
    large = [{index for _, index, *_ in epoch if CLASSES[index] == 0} for epoch in epochs]
    assert large[0] != large[1]
    parts = [list(EpochSampler(60, rank=rank, world_size=3, **options)) for rank in range(3)]
    assert sorted(address for part in parts for address in part) == sorted(epochs[0])
    assert list(EpochSampler(60, start=7, **options)) == epochs[0][7:]


def test_repetitions_are_other_clips(tmp_path: Path) -> None:
    from m2clip.data.clips import ClipDataset, ClipSettings

    annotations = load_annotations(write_videos(tmp_path), class_names=CLASS_NAMES, format="frames")
    dataset = ClipDataset(annotations, ClipSettings(num_frames=2, size=16), training=True)
    first, again, other = (dataset[address]["video"] for address in ((1, 3), (1, 3), (1, 3, 1)))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_class_weights(tmp_path: Path) -> None:
    annotations = load_annotations(write_videos(tmp_path), class_names=CLASS_NAMES, format="frames")  # 5, 5, 4
    assert class_weights(annotations, 3, "none") is None
    found = class_weights(annotations, 4, "classes")
    torch.testing.assert_close(found, torch.tensor([14 / 15, 14 / 15, 14 / 12, 0.0]))
    found = class_weights(annotations, 3, "sqrt")
    assert found is not None
    assert float(found[2] / found[0]) == pytest.approx((5 / 4) ** 0.5)
    assert float(found @ torch.tensor([5.0, 5.0, 4.0])) == pytest.approx(14)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighed", [False, True])
def test_losses_by_their_definition(smoothing: float, weighed: bool) -> None:
    torch.manual_seed(0)
    video, text, labels = torch.randn(6, 8), torch.randn(4, 8), torch.tensor([0, 1, 1, 3, 2, 0])
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0]) if weighed else None
    logits = 20 * F.normalize(video, dim=-1) @ F.normalize(text, dim=-1).T
    expected = torch.zeros(())
    for row, label in zip(logits.log_softmax(-1), labels, strict=True):
        target = torch.full((4,), smoothing / 4)
        target[label] += 1 - smoothing
        expected += -(target * row).sum() * (1 if weights is None else weights[label]) / 6
    torch.testing.assert_close(classification_loss(logits, labels, smoothing, weights), expected)
    torch.testing.assert_close(cosine_loss(video, text, labels, torch.tensor(20.0), smoothing, weights), expected)


@pytest.mark.parametrize("method", ["m2clip", "msta", "st_adapter", "aim"])
def test_every_method_takes_both(method: str) -> None:
    def parts(smoothing: float, weights: torch.Tensor | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        options = {**OPTIONS[method], "label_smoothing": smoothing} | ({"alpha": 0.0} if method == "msta" else {})
        model = m2clip.create_model(method, build_clip(), CLASS_NAMES, 2, **options)
        model.class_weights = weights
        video, labels = torch.randn(3, 2, 3, 16, 16), torch.tensor([0, 1, 2])
        torch.manual_seed(1)
        return model.loss(video, labels, torch.Generator().manual_seed(0)).parts

    plain, smooth, ones = parts(0.0, None), parts(0.2, None), parts(0.0, torch.ones(3))
    twice = parts(0.0, torch.full((3,), 2.0))
    for name in {"cmc", "vc", "ce"} & plain.keys():
        assert not torch.isclose(plain[name], smooth[name])
        torch.testing.assert_close(ones[name], plain[name])
        torch.testing.assert_close(twice[name], 2 * plain[name])
    with pytest.raises(InputError, match="label_smoothing is 1"):
        parts(1.0, None)


def test_kernels_are_prepared_for_losses_that_take_them() -> None:
    def asked(smoothing: float, weights: torch.Tensor | None, method: str, **options: Any) -> tuple[str, ...]:
        built = m2clip.create_model(method, build_clip(), CLASS_NAMES, 2, label_smoothing=smoothing, **options)
        built.class_weights = weights
        return built.loss_kernels

    methods: dict[str, dict[str, Any]] = {"m2clip": {}, "msta": {"alpha": 0.0}}
    for method, options in methods.items():
        assert "cosine_cross_entropy" in asked(0.0, None, method, **options)
        assert "cosine_cross_entropy" not in asked(0.1, None, method, **options)
        assert "cosine_cross_entropy" not in asked(0.0, torch.ones(3), method, **options)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


EVEN = ("data.balance=classes", "optim.ema=0.5", "model.options.label_smoothing=0.1")


def test_a_run_with_all_of_it_resumes_exactly(videos: Path, tmp_path: Path) -> None:
    for name, step in (("whole", 99), ("cut", 5)):
        config = build_config(videos, tmp_path / name, *EVEN)
        try:
            train.run(config, clip=build_clip(), device="cpu", quiet=True, on_step=kill_after(step))
        except Killed:
            train.run(config, clip=build_clip(), device="cpu", quiet=True)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_the_average_is_one_and_is_what_is_kept(videos: Path, tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def on_step(progress: Progress) -> None:
        seen.append(load_file(list_checkpoints(tmp_path / "checkpoints")[0] / "tensors.safetensors"))

    overrides = ("optim.ema=0.6", "optim.class_weights=sqrt", "checkpoint_every=1", "optim.epochs=2")
    train.run(build_config(videos, tmp_path, *overrides), clip=build_clip(), device="cpu", quiet=True, on_step=on_step)
    names = [name.removeprefix("average.") for name in seen[0] if name.startswith("average.")]
    assert len(seen) == 8 and names
    average = {name: seen[0][f"average.{name}"] for name in names}
    for steps, tensors in enumerate(seen[1:], start=2):
        decay = min(0.6, (1 + steps) / (10 + steps))
        average = {name: decay * value + (1 - decay) * tensors[f"model.{name}"] for name, value in average.items()}
    kept = load_file(tmp_path / "adapters.safetensors")
    assert set(kept) == set(names)
    for name in names:
        torch.testing.assert_close(kept[name], average[name])
    assert any(not torch.equal(kept[name], seen[-1][f"model.{name}"]) for name in names)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("data.balance=classes", "optim.class_weights=sqrt"), "twice: use one of them"),
        (("data.balance=classes", "data.shuffle=shards"), "data.shuffle=shards from a few"),
        (("data.balance=sqrt", "model.method=ma_fsar", "episodes.train=true"), "episodes have equally many"),
    ],
)
def test_what_cannot_go_together(videos: Path, tmp_path: Path, overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        config = build_config(videos, tmp_path / "run", "model.options={}", *overrides)
        train.run(config, clip=build_clip(), device="cpu", quiet=True)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_would_do_nothing_is_refused(videos: Path, tmp_path: Path) -> None:
    options = "model.options={width: 8, text_width: 8, heads: [contrastive]}"
    with pytest.raises(InputError, match="use data.balance"):
        config = build_config(videos, tmp_path / "run", options, "optim.class_weights=sqrt")
        train.run(config, clip=build_clip(), device="cpu", quiet=True)
    with pytest.raises(InputError, match="heads has neither"):
        m2clip.create_model("m2clip", build_clip(), CLASS_NAMES, 2, heads=("contrastive",), label_smoothing=0.1)
