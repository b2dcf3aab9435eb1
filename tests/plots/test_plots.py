"""Every picture is written, has content, and changes with what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m2clip.errors import InputError, Notice
from m2clip.plots import pictures as plots
from m2clip.plots.confusion import confusion_matrix
from m2clip.plots.mistakes import Mistake, contact_sheet
from m2clip.plots.pictures import _in_words
from m2clip.plots.style import short
from m2clip.plots.timeline import _ticks

RANKED = [("a circle moving left", 0.6), ("a circle moving right", 0.3), ("a square growing", 0.1)]


def pixels(path: Path) -> torch.Tensor:
    import matplotlib.image

    return torch.from_numpy(matplotlib.image.imread(path))[..., :3].clone()


def ink(path: Path) -> float:
    """Share of pixels that are not white."""
    return float((pixels(path) < 0.99).any(dim=-1).float().mean())


def clip(frames: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, 16, 16), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("classes", [1, 2, 5, 32, 41, 400])
def test_confusion_matrix(tmp_path: Path, classes: int) -> None:
    confusion = torch.eye(classes, dtype=torch.int64) * 4
    confusion[0, -1] += 3
    names = [f"class number {number} with a name that is long" for number in range(classes)]
    path = confusion_matrix(confusion.tolist(), names, tmp_path / "new" / "c.png", "title")
    assert min(pixels(path).shape[:2]) > 400
    assert 0.005 < ink(path) < 0.9


def test_confusion_matrix_shows_the_counts(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    right = confusion_matrix([[9, 0, 0], [0, 9, 0], [0, 0, 9]], names, tmp_path / "r.png")
    wrong = confusion_matrix([[0, 9, 0], [0, 0, 9], [9, 0, 0]], names, tmp_path / "w.png")
    assert not torch.equal(pixels(right), pixels(wrong))


@pytest.mark.parametrize("classes", [2, 30, 101])
def test_unreadable_videos_have_a_red_column(tmp_path: Path, classes: int) -> None:
    names = [str(number) for number in range(classes)]

    def red(*unreadable: int) -> int:
        """Red pixels, those of the column and those of its name."""
        counts = [*unreadable, *[0] * (classes - len(unreadable))]
        found = pixels(confusion_matrix(torch.eye(classes) * 4, names, tmp_path / "c.png", "", counts))
        return int((found[..., 0] - found[..., 2] > 0.05).sum())

    cell = red(4, 4) - red(4)
    assert red() == 0 < cell
    assert red(*[4] * classes) - red(4) == pytest.approx((classes - 1) * cell, rel=0.2)
    with pytest.raises(InputError, match="1 numbers of unreadable videos"):
        confusion_matrix(torch.eye(classes), names, tmp_path / "c.png", "", [4])


def test_names_are_drawn_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.extend(texts(figure)))
    names = [r"$\frac$ and $x$", "\x1b[31mred\nline", "a_b^c"]
    confusion_matrix(torch.eye(3), names, tmp_path / "c.png", names[1])
    plots.filmstrip(clip(), [(name, 0.3) for name in names], tmp_path / "f.png", names[0])
    plots.comparison_bars({names[0]: {names[1]: 0.5}}, tmp_path / "b.png", names[0], {names[1]: 0.1})
    plots.few_shot_curves({names[1]: {1: (0.5, None)}}, tmp_path / "s.png", {names[0]: 0.2}, names[1])
    assert not {character for text in drawn for character in text if character < " " and character != "\n"}
    assert {names[0], r"\x1b[31mred\nline", "\\x1b[31mred\\nline\n(chance 10.0)"} <= set(drawn)


def texts(figure: object) -> list[str]:
    from matplotlib.text import Text

    figure.canvas.draw()  # type: ignore[attr-defined]  # which fails where a name is taken for a formula
    return [text.get_text() for text in figure.findobj(Text)]  # type: ignore[attr-defined]


def test_letters_without_a_font_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2clip.plots.style.FALLBACKS", ("No Such Font",))
    with pytest.warns(Notice, match=r"c\.png: 2 characters of its names are in no installed font"):
        confusion_matrix([[1]], ["數字數"], tmp_path / "c.png")


def test_confusion_matrix_of_another_size_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 class names"):
        confusion_matrix([[1, 0], [0, 1]], ["a", "b", "c"], tmp_path / "c.png")


@pytest.mark.parametrize("frames", [1, 8, 16])
def test_filmstrip_shows_the_frames(tmp_path: Path, frames: int) -> None:
    path = plots.filmstrip(clip(frames), RANKED, tmp_path / "f.png", "clip.mp4")
    other = plots.filmstrip(clip(frames, seed=1), RANKED, tmp_path / "g.png", "clip.mp4")
    assert ink(path) > 0.05
    assert not torch.equal(pixels(path), pixels(other))


def test_filmstrip_draws_five_bars_at_most(tmp_path: Path) -> None:
    many = [(f"class {number}", 0.1) for number in range(9)]
    nine = plots.filmstrip(clip(), many, tmp_path / "nine.png")
    five = plots.filmstrip(clip(), many[:5], tmp_path / "five.png")
    assert torch.equal(pixels(nine), pixels(five))


def test_contact_sheet_shows_the_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("a name of a class " * 9, "跳舞的人們" * 20, "\x1b[31mred\nline")
    mistakes = [
        Mistake(torch.zeros(1 + number, 3, 16, 12 + 4 * number, dtype=torch.uint8), "v.mp4", name, 0.1, names[0], 0.8)
        for number, name in enumerate(names)
    ]
    found = pixels(contact_sheet(mistakes, tmp_path / "m.png", "title"))
    black = (found < 0.1).all(dim=-1).float().mean()
    assert found.shape[1] < 1900 and black > 0.01
    drawn: list[str] = []
    monkeypatch.setattr("m2clip.plots.mistakes.save", lambda figure, path: drawn.extend(texts(figure)))
    contact_sheet(mistakes, tmp_path / "m.png", "title")
    assert {r"is \x1b[31mred\nline  10 %", "title"} <= set(drawn)


def test_names_are_cut_by_their_width() -> None:
    assert short("abcdef", 6) == "abcdef" and short("abcdefg", 6) == "abcde…"
    assert short("跳舞的", 6) == "跳舞的" and short("跳舞的人", 6) == "跳舞…"


def test_comparison_and_demo_picture(tmp_path: Path) -> None:
    results = {"frozen CLIP": {"base": 0.1, "novel": 0.2}, "M2-CLIP": {"base": 0.9, "novel": 0.6}}
    bars = plots.comparison_bars(results, tmp_path / "bars.png", "title", {"base": 0.05})
    example = plots.ExampleClip(clip(), RANKED[0][0], RANKED[::-1], RANKED)
    demo = plots.demo_picture(results, [example] * 3, tmp_path / "demo.png", {"base": 0.05, "novel": 0.1})
    strong = torch.tensor([0x1F, 0x5A, 0x8C]) / 255
    for path in (bars, demo):
        assert float(((pixels(path) - strong).abs() < 0.01).all(dim=-1).float().mean()) > 0.01
    assert pixels(demo).shape[1] > 1500
    with pytest.raises(InputError, match="at least one example"):
        plots.demo_picture(results, [], tmp_path / "none.png")


def test_few_shot_curves(tmp_path: Path) -> None:
    curves = {"MSTA": {2: (0.3, 0.05), 16: (0.6, None)}, "M2-CLIP": {2: (0.4, 0.02), 4: (0.5, 0.01), 16: (0.7, 0.0)}}
    path = plots.few_shot_curves(curves, tmp_path / "new" / "f.png", {"frozen CLIP": 0.2}, "top-1", 0.05)
    strong = torch.tensor([0x1F, 0x5A, 0x8C]) / 255
    assert float(((pixels(path) - strong).abs() < 0.01).all(dim=-1).float().mean()) > 0.001
    other = plots.few_shot_curves({**curves, "MSTA": {2: (0.3, 0.05), 16: (0.2, None)}}, tmp_path / "g.png")
    assert not torch.equal(pixels(path)[:300, :300], pixels(other)[:300, :300])


def test_comparison_overview_shows_every_set_and_every_method(tmp_path: Path) -> None:
    found = {
        "bars": {name: {"base": 0.5, "novel": 0.4, "harmonic mean": 0.44} for name in ("frozen CLIP", "M2-CLIP")},
        "chance": {"base": 0.1, "novel": 0.2},
        "curves": {"M2-CLIP": {2: (0.3, None), 16: (0.6, 0.05)}},
        "untrained": {"frozen CLIP": 0.2},
    }
    one = pixels(plots.comparison_overview({"shapes": found}, tmp_path / "one.png"))
    two = pixels(plots.comparison_overview({"shapes": found, "actions": found}, tmp_path / "two.png"))
    assert 1.7 < len(two) / len(one) < 2.1
    other = {**found, "curves": {"M2-CLIP": {2: (0.3, None), 16: (0.1, 0.05)}}}
    changed = pixels(plots.comparison_overview({"shapes": found, "actions": other}, tmp_path / "changed.png"))
    assert torch.equal(changed[: len(one) // 2], two[: len(one) // 2]) and not torch.equal(changed, two)


def test_training_curves(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("step,loss,loss_vc,lr,val_top1\n1,3.0,2.0,0.1,\n2,2.5,,0.2,0.5\n3,2.0,1.0,0.1,0.75\n")
    assert ink(plots.training_curves(metrics, tmp_path / "curves.png")) > 0.005
    metrics.write_text("step,loss\n")
    with pytest.raises(InputError, match="nothing to draw"):
        plots.training_curves(metrics, tmp_path / "curves.png")
    with pytest.raises(InputError, match="does not exist"):
        plots.training_curves(tmp_path / "absent.csv", tmp_path / "curves.png")


def test_legends_of_training_curves() -> None:
    columns = ("loss", "loss_cmc", "val_top1", "val_top1_zero_shot", "val_top5", "lr")
    assert [_in_words(name) for name in columns] == ["total", "cmc", "top-1", "zero-shot top-1", "top-5", "lr"]


def test_drawing_leaves_the_callers_matplotlib_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.filmstrip(clip(), RANKED, tmp_path / "f.png")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("seconds", "step"),
    [(0.5, 1), (9.9, 1), (10, 2), (59, 10), (61, 10), (599, 60), (600, 120), (7300, 900), (36001, 7200)],
)
def test_a_timeline_has_few_round_times(seconds: float, step: int) -> None:
    ticks = _ticks(seconds)
    assert ticks == list(range(0, int(seconds) + 1, step)) and len(ticks) <= 10
