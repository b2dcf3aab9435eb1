"""Pictures of confusion matrices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2clip.errors import InputError
from m2clip.plots.style import FAINT, INK, STRONG, WRONG, figure, save, short
from m2clip.terminal import printable

LABELLED_CLASSES = 40
UNREADABLE = "unreadable"  # the column of videos without a prediction


def confusion_matrix(
    confusion: Any,
    class_names: Sequence[str],
    path: str | os.PathLike[str],
    title: str = "",
    unreadable: Sequence[int] = (),
) -> Path:
    """Draw a confusion matrix as shares of each true class; names where they fit, the worst pairs where not.

    Args:
        confusion: (C, C) counts, rows true and columns predicted.
        class_names: C names.
        path: PNG to write.
        title: above the picture.
        unreadable: (C,) videos of each class without a prediction; a column of their own, if there are any.

    Raises:
        InputError: the matrix is not (C, C), or there are not C numbers of unreadable videos.
    """
    import numpy as np
    from matplotlib.colors import PowerNorm

    counts = np.asarray(confusion, dtype=float)
    number = len(class_names)
    if counts.shape != (number, number) or len(unreadable) not in (0, number):
        raise InputError(
            f"confusion matrix has shape {counts.shape} and {len(unreadable)} numbers of unreadable videos, "
            f"but there are {number} class names"
        )
    if any(unreadable):
        counts = np.column_stack([counts, np.asarray(unreadable, dtype=float)])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    named = number <= LABELLED_CLASSES
    with figure(*_matrix_size(number)) as drawn:
        # With hundreds of classes a share of a few per cent is one pale pixel: a square-root scale keeps it visible.
        norm = PowerNorm(1.0 if named else 0.5, vmin=0, vmax=1)
        drawing, beside = (drawn, None) if named else drawn.subfigures(1, 2, width_ratios=[2.3, 1])
        axes = drawing.add_subplot()
        image = axes.imshow(
            shares[:, :number], cmap=_blues(), norm=norm, interpolation="nearest" if number <= 100 else "antialiased"
        )
        if beside is not None:
            _worst_pairs(beside.add_subplot(), counts[:, :number], shares, class_names)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(printable(title))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        ticks = [short(name, 36) for name in class_names]
        if named:
            axes.set_xticks(range(number), ticks, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(number), ticks)
            axes.tick_params(labelsize=9 if number <= 24 else 7.5, labelcolor=INK)
        if counts.shape[1] > number:
            _unreadable_column(axes, shares[:, number], norm, named)
        if number <= 16:
            for row, column in np.argwhere(counts > 0):
                share = shares[row, column]
                axes.text(
                    column if column < number else _beside(number),
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


def _blues() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("m2clip", ["#ffffff", "#b9d2e8", STRONG, "#12324d"])


def _beside(number: int) -> float:
    """Where the middle of the column of unreadable videos is, a gap beside those of so many classes."""
    return number - 0.5 + 1.2 * max(1.0, number / 30)


def _unreadable_column(axes: Any, shares: Any, norm: Any, named: bool) -> None:
    """A red column (C, 1) of unreadable videos at the right of a matrix of classes, wide enough to be seen."""
    from matplotlib.colors import LinearSegmentedColormap

    number, middle = len(shares), _beside(len(shares))
    half = max(1.0, number / 30) / 2
    reds = LinearSegmentedColormap.from_list("unreadable", ["#ffffff", "#e9c5bf", WRONG, "#5a1f17"])
    extent = (middle - half, middle + half, number - 0.5, -0.5)
    axes.imshow(shares[:, None], cmap=reds, norm=norm, extent=extent, interpolation="nearest", aspect="equal")
    axes.set_xlim(-0.5, middle + half)
    axes.set_ylim(number - 0.5, -0.5)
    axes.annotate(
        UNREADABLE,
        (middle, number - 0.5 if named else -0.5),
        xytext=(3, -5) if named else (0, 3),
        textcoords="offset points",
        rotation=45 if named else 0,
        ha="right" if named else "center",
        va="top" if named else "bottom",
        rotation_mode="anchor",
        fontsize=9 if number <= 24 else 7.5,
        color=WRONG,
    )


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
