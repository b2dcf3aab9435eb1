"""Evaluation against a slow textbook version, with failures, shards and other label sets."""

from __future__ import annotations

import json
import math
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

import m2clip
from m2clip.config_fields import EvalConfig
from m2clip.data.lists.annotations import VideoItem
from m2clip.errors import InputError
from m2clip.evaluate.results import EvalResult
from m2clip.evaluate.scoring import evaluate_model, fuse_views, list_hash, rank_classes, score_views
from tests import clips
from tests.fake_model import PixelModel, PixelVideos
from tests.train.survival_run import PROCESSES

NAMES = [f"class {number}" for number in range(7)]


def videos(count: int = 23, classes: int = 7, views: int = 3, seed: int = 0, **options) -> PixelVideos:
    generator = torch.Generator().manual_seed(seed)
    # Half-integers: many equal scores, so that ties are part of every test.
    scores = torch.randint(-4, 5, (count, views, 2, classes), generator=generator) / 2
    labels = torch.randint(0, classes, (count,), generator=generator).tolist()
    return PixelVideos(scores, labels, None, **options)


def textbook(dataset: PixelVideos, head: int, broken_are_wrong: bool) -> dict:
    """Top-1, top-5, per-class accuracy and confusion, one video, view and class at a time."""
    classes = dataset.scores.shape[-1]
    confusion = [[0] * classes for _ in range(classes)]
    hits1 = hits5 = total = 0
    seen, right = [0] * classes, [0] * classes
    for index, item in enumerate(dataset.annotations.items):
        if index in dataset.broken:
            total += broken_are_wrong
            seen[item.label] += broken_are_wrong
            continue
        mean = [0.0] * classes
        for view in dataset.scores[index]:
            powers = [math.exp(value) for value in view[head].tolist()]
            for number in range(classes):
                mean[number] += powers[number] / sum(powers) / len(dataset.scores[index])
        order = sorted(range(classes), key=lambda number: (-round(mean[number], 12), number))
        total += 1
        seen[item.label] += 1
        hits1 += order[0] == item.label
        right[item.label] += order[0] == item.label
        hits5 += item.label in order[:5]
        confusion[item.label][order[0]] += 1
    per_class = [a / b if b else None for a, b in zip(right, seen, strict=True)]
    return {"top1": hits1 / total, "top5": hits5 / total, "per_class": per_class, "confusion": confusion}


@pytest.mark.parametrize("on_error", ["skip", "wrong"])
def test_metrics_equal_textbook(on_error: str) -> None:
    dataset = videos(broken=(2, 11))
    result = evaluate_model(PixelModel(NAMES), dataset, EvalConfig(clips=3, on_error=on_error))
    for number, scores in enumerate((result.supervised, result.zero_shot)):
        expected = textbook(dataset, number, on_error == "wrong")
        assert scores is not None
        assert scores.top1 == pytest.approx(expected["top1"], abs=1e-12)
        assert scores.top5 == pytest.approx(expected["top5"], abs=1e-12)
        assert scores.per_class == expected["per_class"]
        assert scores.confusion == expected["confusion"]
        seen = Counter(item.label for item in dataset.annotations.items)
        counted = [sum(row) + lost for row, lost in zip(scores.confusion, scores.unreadable, strict=True)]
        assert sum(scores.unreadable) == (2 if on_error == "wrong" else 0)
        assert on_error == "skip" or counted == [seen[label] for label in range(len(NAMES))]
        diagonal = sum(row[label] for label, row in enumerate(scores.confusion))
        assert diagonal / sum(counted) == scores.top1
        shares = [share for share in expected["per_class"] if share is not None]
        assert scores.mean_class == pytest.approx(sum(shares) / len(shares), abs=1e-12)
    assert result.supervised != result.zero_shot
    assert result.denominator == (23 if on_error == "wrong" else 21)
    assert [failure.index for failure in result.failures] == [2, 11]
    assert f"denominator: {result.denominator}" in result.settings_line()
    assert "failures: 2" in result.settings_line()


def test_raise_names_the_video() -> None:
    with pytest.raises(InputError, match=r"videos/2\.mp4: no video stream"):
        evaluate_model(PixelModel(NAMES), videos(broken=(2, 11)), EvalConfig(on_error="raise"))


class NoReader(PixelVideos):
    def __getitem__(self, key: tuple[int, int]) -> dict:
        raise InputError("the reader cannot be imported")


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_worker_is_one_line(workers: int) -> None:
    dataset = NoReader(torch.zeros(2, 1, 2, 7), [0, 1], NAMES)
    with pytest.raises(InputError) as caught:
        evaluate_model(PixelModel(NAMES), dataset, EvalConfig(), workers=workers)
    assert str(caught.value) == "the reader cannot be imported"


def test_nothing_readable_is_an_error() -> None:
    with pytest.raises(InputError, match="none of the 3 videos"):
        evaluate_model(PixelModel(NAMES), videos(3, broken=(0, 1, 2)), EvalConfig())


def test_scores_that_are_not_finite_are_failures() -> None:
    dataset = videos(5)
    dataset.scores[3] = float("nan")
    result = evaluate_model(PixelModel(NAMES), dataset, EvalConfig())
    assert [(failure.index, failure.error) for failure in result.failures] == [
        (3, "the model's scores are not finite numbers")
    ]
    assert result.denominator == 5


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 23])
def test_shards_hold_every_video_once(size: int, count: int) -> None:
    dataset = videos(count)
    seen: list[int] = []
    for rank in range(min(size, count)):
        part = evaluate_model(PixelModel(NAMES), dataset, EvalConfig(), shard=(rank, size))
        seen.append(sum(sum(row) for row in part.zero_shot.confusion))
        assert part.denominator == len(range(rank, count, size))
    assert sum(seen) == count


# Numbers of videos, broken ones, and what those do: more processes than videos, and numbers that they do not divide.
CASES = [(7, (4,), "wrong"), (23, (2, 11), "skip"), (23, (2, 11), "wrong"), (1, (), "wrong"), (2, (1,), "skip")]


class KilledOnce(PixelVideos):
    """The first process that loads video 3 is killed."""

    folder: Path

    def __getitem__(self, key: tuple[int, int]) -> dict:
        killed = self.folder / "killed"
        if key[1] == 3 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


def _evaluate_as_one_of(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    for number, (count, broken, on_error) in enumerate(CASES):
        result = evaluate_model(PixelModel(NAMES), videos(count, broken=broken), EvalConfig(on_error=on_error))
        result.save(Path(folder) / f"{number}_{rank}.json")
        (Path(folder) / f"{number}_{rank}.txt").write_text(repr(result.videos))
    killed = KilledOnce(videos(23).scores, [item.label for item in videos(23).annotations.items], None)
    killed.folder = Path(folder)
    evaluate_model(PixelModel(NAMES), killed, EvalConfig(), workers=1).save(Path(folder) / f"killed_{rank}.json")
    for dataset, settings, words in (
        (videos(7, broken=(size,)), EvalConfig(on_error="raise"), f"videos/{size}.mp4: no video stream"),
        (NoReader(torch.zeros(2, 1, 2, 7), [0, 1], NAMES), EvalConfig(), "the reader cannot be imported"),
    ):
        # Some processes have nothing to do with the video that fails, and must learn of it.
        with pytest.raises(InputError, match=words):
            evaluate_model(PixelModel(NAMES), dataset, settings)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_equal_one(tmp_path: Path, size: int) -> None:
    started = [PROCESSES.Process(target=_evaluate_as_one_of, args=(rank, size, str(tmp_path))) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * size
    for number, (count, broken, on_error) in enumerate(CASES):
        alone = evaluate_model(PixelModel(NAMES), videos(count, broken=broken), EvalConfig(on_error=on_error))
        for rank in range(size):
            found = json.loads((tmp_path / f"{number}_{rank}.json").read_text())
            assert found == json.loads(json.dumps(alone.to_dict())), (number, rank)
            assert (tmp_path / f"{number}_{rank}.txt").read_text() == repr(alone.videos), (number, rank)
    alone = evaluate_model(PixelModel(NAMES), videos(23), EvalConfig())
    for rank in range(size):
        assert json.loads((tmp_path / f"killed_{rank}.json").read_text()) == json.loads(json.dumps(alone.to_dict()))
    assert (tmp_path / "killed").exists()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_changes_nothing(batch_size: int) -> None:
    model = PixelModel(NAMES)
    result = evaluate_model(model, videos(), EvalConfig(batch_size=batch_size))
    assert result == evaluate_model(PixelModel(NAMES), videos(), EvalConfig())
    assert max(model.batches) <= batch_size
    assert sum(model.batches) == 23 * 3


def test_other_label_set_is_scored_by_similarity_alone() -> None:
    model = PixelModel(NAMES).train()
    dataset = videos(classes=4)
    others = ["a", "b", "c", "d"]
    result = evaluate_model(model, dataset, EvalConfig(), class_names=others)
    assert result.supervised is None and result.class_names == others
    assert result.zero_shot.top1 == pytest.approx(textbook(dataset, 1, True)["top1"], abs=1e-12)
    assert result.zero_shot.top5 is None
    assert model.class_names == NAMES
    assert model.training


def test_model_without_head_has_no_supervised_score() -> None:
    result = evaluate_model(PixelModel(NAMES, with_head=False), videos(), EvalConfig())
    assert list(result.heads) == ["zero-shot"]
    assert result.top1 == result.zero_shot.top1


def test_adapters_are_switched_off_and_recorded() -> None:
    model = PixelModel(NAMES)
    result = evaluate_model(model, videos(3), EvalConfig(), adapters_off=["visual"])
    assert model.switched_off == [("visual",)]
    assert "adapters off: visual" in result.settings_line()


def test_label_outside_class_names_is_an_error() -> None:
    dataset = videos(5)
    dataset.annotations = dataset.annotations.__class__((VideoItem(Path("x.mp4"), 7),), None, "list", Path("l"))
    with pytest.raises(InputError, match=r"x\.mp4 has label 7, but there are 7 class names"):
        evaluate_model(PixelModel(NAMES), dataset, EvalConfig())


def test_ties_go_to_the_smaller_number() -> None:
    assert rank_classes(torch.tensor([0.1, 0.4, 0.1, 0.4], dtype=torch.float64)).tolist() == [1, 3, 0, 2]


def test_views_are_fused_after_softmax() -> None:
    logits = torch.tensor([[100.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
    expected = (1 + 2 / (2 + math.exp(2))) / 3
    assert float(fuse_views(logits)[0]) == pytest.approx(expected, abs=1e-7)
    assert int(fuse_views(logits).argmax()) == 1
    assert int(logits.mean(dim=0).argmax()) == 0


def test_list_hash_depends_on_content_not_on_place(tmp_path: Path) -> None:
    def items(root: Path, labels: tuple[int, ...]) -> list[VideoItem]:
        return [VideoItem(root / f"{index}.mp4", label) for index, label in enumerate(labels)]

    first = list_hash(items(tmp_path / "a", (0, 1)))
    assert first == list_hash(items(Path("b"), (0, 1)))
    assert first != list_hash(items(tmp_path / "a", (1, 0)))
    assert len(first) == 16


def test_saved_result_holds_the_protocol(tmp_path: Path) -> None:
    result = evaluate_model(PixelModel(NAMES), videos(5), EvalConfig())
    saved = json.loads(result.save(tmp_path / "deep" / "eval.json").read_text())
    assert set(saved) == set(EvalResult.__dataclass_fields__) - {"videos"}
    assert (saved["clips"], saved["crops"], saved["list_length"]) == (3, 1, 5)
    assert os.listdir(tmp_path / "deep") == ["eval.json"]


def test_a_model_in_bf16_is_scored_as_it_is_and_others_by_autocast() -> None:
    model = m2clip.create_model("m2clip", clips.small_clip(), clips.NAMES, 4, width=8, text_width=8).eval()
    video, cpu = clips.random_video(3), torch.device("cpu")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cast = model(video[:2])
    logits, similarity = score_views(model, video.split(2), cpu, "bf16")
    assert torch.equal(logits[:2], cast.logits.float()) and torch.equal(similarity[:2], cast.similarity.float())
    model.set_precision("bf16")
    with torch.no_grad():
        kept = model(video[:2])
    logits, similarity = score_views(model, video.split(2), cpu, "bf16")
    assert torch.equal(logits[:2], kept.logits) and torch.equal(similarity[:2], kept.similarity)
    assert not torch.equal(kept.similarity, cast.similarity.float())
