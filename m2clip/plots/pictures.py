"""Pictures: filmstrips with their scores, comparison bars, training curves."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.errors import InputError
from m2clip.files.disk import read_text
from m2clip.plots.style import (
    CURVES,
    Ranked,
    draw_answers,
    draw_bars,
    draw_comparison,
    draw_few_shot,
    draw_frames,
    figure,
    model_shades,
    save,
    short,
    strip_grid,
)
from m2clip.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ExampleClip:
    """One clip of the demo picture.

    Attributes:
        frames: (T, 3, H, W) uint8.
        true_name: name of its class.
        frozen, adapted: the best (name, score) pairs of frozen CLIP and of M2-CLIP, best first; scores between 0 and 1.
    """

    frames: Tensor
    true_name: str
    frozen: Ranked
    adapted: Ranked


def filmstrip(
    frames: Tensor, ranked: Ranked, path: str | os.PathLike[str], title: str = "", true_name: str | None = None
) -> Path:
    """Draw the frames of a clip in a row, and below them a bar for each of its five best classes.

    Args:
        frames: (T, 3, H, W) uint8.
        ranked: (name, score) pairs, best first; scores between 0 and 1. Only the first five are drawn.
        path: PNG to write.
        title: above the frames.
        true_name: when given, its bar is drawn strong and the others quiet, otherwise the best bar is the strong one.
    """
    ranked = list(ranked)[:5]
    rows, columns = strip_grid(len(frames))
    width = 9.0
    cell = width / columns
    ratio = frames.shape[-2] / frames.shape[-1]
    strip_height, bars_height = rows * cell * ratio, 0.42 * len(ranked) + 0.35
    strip_height += 0.4 if title else 0.1
    with figure(width, strip_height + bars_height) as drawn:
        # Separate halves, so that long class names do not narrow the frames.
        above, below = drawn.subfigures(2, 1, height_ratios=[strip_height, bars_height])
        strip = above.add_subplot()
        draw_frames(strip, frames, rows, columns)
        strip.set_title(printable(title))
        draw_bars(below.add_subplot(), ranked, true_name or ranked[0][0])
        return save(drawn, path)


def comparison_bars(
    results: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike[str],
    title: str = "",
    chance: Mapping[str, float] | None = None,
) -> Path:
    """Draw grouped bars: one group a set of classes, one bar a model; the last model is the strong colour.

    Args:
        results: model name -> {set name -> accuracy between 0 and 1}.
        path: PNG to write.
        title: above the picture.
        chance: set name -> accuracy of guessing, drawn as a dotted line across the group.
    """
    with figure(6.0, 3.4) as drawn:
        axes = drawn.add_subplot()
        draw_comparison(axes, results, chance)
        axes.set_title(printable(title), pad=24)
        return save(drawn, path)


def few_shot_curves(
    results: Mapping[str, Mapping[int, tuple[float, float | None]]],
    path: str | os.PathLike[str],
    untrained: Mapping[str, float] | None = None,
    title: str = "",
    chance: float | None = None,
) -> Path:
    """Draw accuracy against the number of training videos per class; the last method is the strong colour.

    Args:
        results: method -> {K -> (mean accuracy between 0 and 1, deviation or None)}.
        path: PNG to write.
        untrained: name -> accuracy of what needs no training, drawn as a dashed line.
        title: above the picture.
        chance: accuracy of guessing, drawn as a dotted line.
    """
    with figure(5.4, 3.6) as drawn:
        axes = drawn.add_subplot()
        draw_few_shot(axes, results, untrained, chance)
        axes.set_title(printable(title))
        axes.legend(fontsize=8.5, handlelength=1.6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return save(drawn, path)


def comparison_overview(sets: Mapping[str, Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Draw base-to-novel and few-shot results of several data sets, a row each, with one legend.

    Args:
        sets: title -> {"bars": as `comparison_bars`' results, "chance": {"base": accuracy of guessing, ...}, "curves":
            as `few_shot_curves`' results, "untrained": as there}. All sets show the same methods.
        path: PNG to write.
    """
    with figure(10.5, 3.1 * len(sets) + 0.3) as drawn:
        panels = drawn.subplots(len(sets), 2, squeeze=False, width_ratios=[1.7, 1])
        for (left, right), (title, found) in zip(panels, sets.items(), strict=True):
            draw_comparison(left, found["bars"], found["chance"])
            left.get_legend().remove()
            left.set_title(f"{printable(title)}: base-to-novel", pad=8)
            names = list(found["bars"])  # one colour a method in both panels
            shades = dict(zip(names, model_shades(len(names)), strict=True))
            draw_few_shot(right, found["curves"], found["untrained"], found["chance"].get("base"), shades)
            right.set_title("few-shot, base classes", pad=8)
        handles, labels = panels[0][0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9, handlelength=1)
        return save(drawn, path)


def demo_picture(
    results: Mapping[str, Mapping[str, float]],
    strips: Sequence[ExampleClip],
    path: str | os.PathLike[str],
    chance: Mapping[str, float] | None = None,
) -> Path:
    """Example clips with the three best answers of both models, and the accuracies beside them.

    Args:
        results: model name -> {set name -> accuracy between 0 and 1}, frozen CLIP first, M2-CLIP last.
        strips: example clips; three to five read well.
        path: PNG to write.
        chance: set name -> accuracy of guessing.

    Raises:
        InputError: no example clip.
    """
    if not strips:
        raise InputError("the demo picture needs at least one example clip")
    names = list(results)
    with figure(13.0, 1.42 * len(strips) + 0.35) as drawn:
        left, right = drawn.subfigures(1, 2, width_ratios=[3.5, 1], wspace=0.03)
        grid = left.subplots(len(strips), 3, width_ratios=[2.7, 1, 1], squeeze=False)
        for number, (axes, clip) in enumerate(zip(grid, strips, strict=True)):
            draw_frames(axes[0], clip.frames, *strip_grid(len(clip.frames)))
            axes[0].set_title(short(clip.true_name, 60), fontsize=10)
            for panel, ranked, heading in ((axes[1], clip.frozen, names[0]), (axes[2], clip.adapted, names[-1])):
                draw_answers(panel, list(ranked)[:3], clip.true_name)
                if number == 0:
                    panel.set_title(f"{heading} says", fontsize=10)
        chart = right.add_subplot()
        draw_comparison(chart, results, chance)
        chart.set_title("top-1 accuracy", fontsize=10, pad=24)
        return save(drawn, path)


def training_curves(metrics: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Draw the losses, the accuracies in per cent and the learning rate of a metrics.csv against the training step.

    Args:
        metrics: csv file written by training.
        path: PNG to write.

    Raises:
        InputError: the file is missing or has no number to draw.
    """
    columns = _read_metrics(Path(metrics))
    step = next((name for name in ("step", "epoch") if name in columns), None)
    groups = {
        "loss": [name for name in columns if "loss" in name],
        "accuracy": [name for name in columns if "top1" in name or "top5" in name],
        "learning rate": [name for name in columns if name == "lr" or name.startswith(("lr/", "lr_"))],
    }
    # Where each head has its column, the column of the main head would hide one of them.
    by_head = [name for name in groups["accuracy"] if not name.endswith(("top1", "top5"))]
    groups["accuracy"] = by_head or groups["accuracy"]
    groups = {title: names for title, names in groups.items() if names}
    if step is None or not groups:
        raise InputError(
            f"{metrics} has no step column or nothing to draw: it must be the metrics.csv of a training run"
        )
    with figure(4.2 * len(groups), 3.0) as drawn:
        for axes, (title, names) in zip(drawn.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
            for shade, name in zip(cycle(CURVES), names, strict=False):
                unit = 100 if title == "accuracy" else 1
                points = [
                    (x, unit * y)
                    for x, y in zip(columns[step], columns[name], strict=True)
                    if x is not None and y is not None
                ]
                axes.plot(
                    *zip(*points, strict=True),
                    color=shade,
                    linewidth=1.6,
                    marker="o" if len(points) < 30 else None,
                    markersize=3,
                    label=_in_words(name),
                )
            axes.set(xlabel=step, title="validation accuracy, %" if title == "accuracy" else title)
            axes.grid(axis="y", color="#eceff2")
            axes.set_axisbelow(True)
            if title == "accuracy":
                axes.set_ylim(0, 102)
            if len(names) > 1:
                axes.legend(fontsize=8, handlelength=1.2)
        return save(drawn, path)


def _in_words(column: str) -> str:
    """A column of metrics.csv as a legend has it: "loss_vc" as "vc", "val_top1_zero_shot" as "zero-shot top-1"."""
    kind, _, rest = column.removeprefix("val_").partition("_")
    if kind in ("top1", "top5"):
        return f"{rest.replace('_', '-')} top-{kind[-1]}".strip()
    return (rest or "total") if kind == "loss" else column


def _read_metrics(path: Path) -> dict[str, list[float | None]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the metrics.csv of a training run")
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: is no metrics.csv of a training run ({error})") from None
    columns: dict[str, list[float | None]] = {}
    for name in filter(None, rows[0] if rows else ()):
        values = [_number(row.get(name)) for row in rows]
        if any(value is not None for value in values):
            columns[name] = values
    return columns


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
