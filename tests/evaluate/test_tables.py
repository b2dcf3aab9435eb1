"""What an evaluation found as tables: a row for each video in the order of the list, and the classes, worst first."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2clip.config_fields import EvalConfig
from m2clip.data.lists.rows import VideoItem
from m2clip.data.segment import Segment
from m2clip.errors import InputError
from m2clip.evaluate.results import EvalResult, HeadScores
from m2clip.evaluate.scoring import evaluate_model
from m2clip.evaluate.tables import class_scores, confident_mistakes, write_classes, write_predictions
from m2clip.files.kept_work import check_replaceable
from tests.fake_model import PixelModel, PixelVideos

NAMES = ['a "b", c', "跳舞 💃", "line\nbreak", "d", "e", "f"]


def scored(
    labels: list[int], says: list[int], on_error: str = "wrong", broken: tuple[int, ...] = ()
) -> tuple[EvalResult, tuple[VideoItem, ...]]:
    """Videos of which the head says one class with the score 2 / (2 + 5), the higher the later the video."""
    scores = torch.zeros(len(labels), 1, 2, len(NAMES))
    for number, label in enumerate(says):
        scores[number, 0, 0, label] = torch.tensor(2.0 + number).log()
    dataset = PixelVideos(scores, labels, NAMES, broken)
    result = evaluate_model(PixelModel(NAMES), dataset, EvalConfig(on_error=on_error))
    return result, dataset.annotations.items


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def test_predictions_have_a_row_for_each_video(tmp_path: Path) -> None:
    result, items = scored([1, 2, 0, 3], [1, 2, 1, 3], broken=(3,))
    rows = read(write_predictions(result, items, tmp_path / "p.csv"))
    assert [row["path"] for row in rows] == [str(item.path) for item in items]
    assert [row["true"] for row in rows] == [NAMES[1], NAMES[2], NAMES[0], NAMES[3]]
    assert [row["predicted"] for row in rows] == [NAMES[1], NAMES[2], NAMES[1], ""]
    assert [row["correct"] for row in rows] == ["1", "1", "0", "0"]
    assert float(rows[0]["score"]) == pytest.approx(2 / 7, abs=1e-6)
    assert float(rows[2]["true_score"]) == pytest.approx(1 / 9, abs=1e-6)
    # Equal scores come in the order of the classes.
    assert [rows[2][f"top{place}"] for place in range(1, 6)] == [NAMES[1], NAMES[0], *NAMES[2:5]]
    assert rows[2]["top1_score"] == rows[2]["score"] and rows[2]["top2_score"] == rows[2]["true_score"]
    assert [row["error"] for row in rows] == ["", "", "", "no video stream"]
    assert "start" not in rows[0]
    assert (tmp_path / "p.csv").read_bytes().count(b"\r\n") == 5

    zero_shot = read(write_predictions(result, items, tmp_path / "z.csv", "zero-shot"))
    assert {row["predicted"] for row in zero_shot[:3]} == {NAMES[0]}
    left_out, items = scored([0, 1], [0, 1], "skip", broken=(1,))
    assert [row["correct"] for row in read(write_predictions(left_out, items, tmp_path / "s.csv"))] == ["1", ""]


def test_parts_have_their_seconds_and_odd_names_are_escaped(tmp_path: Path) -> None:
    result, items = scored([0, 1], [0, 1])
    parts = [replace(item, path=Path("v\udcff.mp4"), segment=Segment(1.5 * n, 2 + n)) for n, item in enumerate(items)]
    rows = read(write_predictions(result, parts, tmp_path / "p.csv"))
    assert [(row["start"], row["end"]) for row in rows] == [("0", "2"), ("1.5", "3")]
    assert rows[0]["path"] == "v\\udcff.mp4"


def test_classes_come_worst_first(tmp_path: Path) -> None:
    result, _ = scored([0, 0, 0, 1, 1, 2, 3], [1, 1, 0, 1, 1, 3, 3], broken=(5,))
    found = class_scores(result.main, NAMES)
    assert [one.name for one in found] == [NAMES[2], NAMES[0], NAMES[1], "d", "e", "f"]
    assert [(one.videos, one.right, one.unreadable, one.confused) for one in found[:3]] == [
        (1, 0, 1, 0),
        (3, 1, 0, 2),
        (2, 2, 0, 0),
    ]
    assert found[1].confused_with == NAMES[1] and found[2].confused_with is None and found[4].accuracy is None
    assert result.main.mean_class == pytest.approx((0 + 1 / 3 + 1 + 1) / 4) and result.main.empty_classes == 2
    assert result.to_dict()["supervised"]["empty_classes"] == 2
    rows = read(write_classes(result, tmp_path / "c.csv"))
    assert [row["class"] for row in rows] == [one.name for one in found]
    assert (rows[1]["accuracy"], rows[1]["times"], rows[4]["accuracy"]) == ("0.333333", "2", "")


def test_equally_bad_classes_come_by_their_videos_and_names() -> None:
    scores = HeadScores(0.0, None, [0.0] * 3, [[0, 1, 0], [1, 0, 1], [0, 1, 0]], [0, 0, 0])
    found = class_scores(scores, ["z", "y", "x"])
    assert [(one.name, one.confused_with) for one in found] == [("y", "z"), ("x", "y"), ("z", "y")]


def test_mistakes_come_by_their_scores() -> None:
    result, _ = scored([0, 0, 0, 1, 1], [1, 0, 1, 1, 0], broken=(2,))
    assert [video.index for video in confident_mistakes(result)] == [4, 0]


def test_a_changed_table_is_not_replaced(tmp_path: Path) -> None:
    result, items = scored([0, 1], [0, 0])
    path = tmp_path / "p.csv"
    check_replaceable(path)
    write_predictions(result, items, path)
    check_replaceable(path)
    write_predictions(*scored([0, 1], [0, 1]), path)
    check_replaceable(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"my note\r\n")
    with pytest.raises(InputError, match=r"p\.csv is there already, and not as m2clip has written it"):
        check_replaceable(path)
    path.write_bytes(whole)
    check_replaceable(path)
