"""Pictures: confusion matrices, filmstrips with their scores, comparison bars, training curves."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.errors import InputError
from m2clip.plot_parts import (
    FAINT,
    INK,
    QUIET,
    STRONG,
    WRONG,
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

if TYPE_CHECKING:
    from torch import Tensor

LABELLED_CLASSES = 40


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


def confusion_matrix(confusion: Any, class_names: Sequence[str], path: str | os.PathLike[str], title: str = "") -> Path:
    """Draw a confusion matrix as shares of each true class; names where they fit, the worst pairs where not.

    Args:
        confusion: (C, C) counts, rows true and columns predicted.
        class_names: C names.
        path: PNG to write.
        title: above the picture.

    Raises:
        InputError: the matrix is not (C, C).
    """
    import numpy as np
    from matplotlib.colors import PowerNorm

    counts = np.asarray(confusion, dtype=float)
    number = len(class_names)
    if counts.shape != (number, number):
        raise InputError(f"confusion matrix has shape {counts.shape}, but there are {number} class names")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    named = number <= LABELLED_CLASSES
    with figure(*_matrix_size(number)) as drawn:
        # With hundreds of classes a share of a few per cent is one pale pixel: a square-root scale keeps it visible.
        norm = PowerNorm(1.0 if named else 0.5, vmin=0, vmax=1)
        drawing, beside = (drawn, None) if named else drawn.subfigures(1, 2, width_ratios=[2.3, 1])
        axes = drawing.add_subplot()
        image = axes.imshow(
            shares, cmap=_blues(), norm=norm, interpolation="nearest" if number <= 100 else "antialiased"
        )
        if beside is not None:
            _worst_pairs(beside.add_subplot(), counts, shares, class_names)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(title)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if named:
            names = [short(name, 36) for name in class_names]
            axes.set_xticks(range(number), names, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(number), names)
            axes.tick_params(labelsize=9 if number <= 24 else 7.5, labelcolor=INK)
        if number <= 16:
            for row, column in np.argwhere(counts > 0):
                share = shares[row, column]
                axes.text(
                    column,
                    row,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=9 if number <= 10 else 7.5,
                    color="white" if share > 0.55 else INK,
                )
        bar = drawing.colorbar(image, ax=axes, fraction=0.04, pad=0.02, shrink=0.6)
        bar.outline.set_visible(False)
        bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
        bar.ax.tick_params(length=0, labelsize=8)
        return save(drawn, path)


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
        strip.set_title(title)
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
        axes.set_title(title, pad=24)
        return save(drawn, path)


def few_shot_curves(
    results: Mapping[str, Mapping[int, tuple[float, float | None]]],
    path: str | os.PathLike[str],
    untrained: Mapping[str, float] | None = None,
    title: str = "",
    chance: float | None = None,
) -> Path:
    """Draw accuracy against the number of training videos a class; the last method is the strong colour.

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
        axes.set_title(title)
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
            left.set_title(f"{title}: base-to-novel", pad=8)
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
    """Draw every column of a metrics.csv that is a loss, an accuracy or a learning rate, against the training step.

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
    shades = [STRONG, "#6fa3cc", QUIET, "#5e6b78", WRONG, "#d8a49b"]
    with figure(4.2 * len(groups), 3.0) as drawn:
        for axes, (title, names) in zip(drawn.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
            for shade, name in zip(shades * (1 + len(names) // len(shades)), names, strict=False):
                points = [
                    (x, y) for x, y in zip(columns[step], columns[name], strict=True) if x is not None and y is not None
                ]
                axes.plot(
                    *zip(*points, strict=True),
                    color=shade,
                    linewidth=1.6,
                    marker="o" if len(points) < 30 else None,
                    markersize=3,
                    label=name,
                )
            axes.set(xlabel=step, title=title)
            axes.grid(axis="y", color="#eceff2")
            axes.set_axisbelow(True)
            if title == "accuracy":
                axes.set_ylim(0, 1.02)
            if len(names) > 1:
                axes.legend(fontsize=8, handlelength=1.2)
        return save(drawn, path)


def _blues() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("m2clip", ["#ffffff", "#b9d2e8", STRONG, "#12324d"])


def _matrix_size(number: int) -> tuple[float, float]:
    if number > LABELLED_CLASSES:
        return 11.0, 7.0
    side = max(4.8, 3.2 + 0.2 * number)
    return side + 0.8, side


def _worst_pairs(axes: Any, counts: Any, shares: Any, names: Sequence[str]) -> None:
    """List the pairs of classes most often taken for each other, where the matrix has no room for names."""
    import numpy as np

    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:12]
    axes.axis("off")
    axes.set_title("most confused (true → predicted)", fontsize=10)
    for line, (row, column) in enumerate(zip(*np.unravel_index(order, wrong.shape), strict=True)):
        if wrong[row, column] == 0:
            break
        y = 0.97 - line * 0.08
        axes.text(0, y, f"{short(names[row], 44)}", fontsize=8.5, transform=axes.transAxes, va="top")
        axes.text(
            0,
            y - 0.031,
            f"→ {short(names[column], 30)}  {wrong[row, column]:.0f}× ({100 * shares[row, column]:.0f} %)",
            fontsize=8,
            color=FAINT,
            transform=axes.transAxes,
            va="top",
        )


def _read_metrics(path: Path) -> dict[str, list[float | None]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist: give the metrics.csv of a training run")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, list[float | None]] = {}
    for name in rows[0] if rows else ():
        values = [_number(row.get(name)) for row in rows]
        if any(value is not None for value in values):
            columns[name] = values
    return columns


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
