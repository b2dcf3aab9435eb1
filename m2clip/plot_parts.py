"""The house style of all pictures, and the parts that several of them share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.results import writing

if TYPE_CHECKING:
    from torch import Tensor

# One strong colour for what the reader came for, one grey for what it is compared with, one red for what is wrong.
STRONG, QUIET, WRONG = "#1f5a8c", "#aab2bb", "#b5483a"
INK, FAINT = "#22272e", "#6b7480"
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c9ced4",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
}
Ranked = Sequence[tuple[str, float]]


@contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """A figure of width x height inches in the house style, drawn without a screen."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        # A Figure of its own, not pyplot's: the caller's backend and open figures are left alone.
        made = Figure(figsize=(width, height), dpi=160, layout="constrained")
        FigureCanvasAgg(made)
        yield made


def save(drawn: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, making its folder; returns the path. InputError where that cannot be done."""
    path = Path(path)
    with writing(path):
        # Cut to what is drawn: names of any length are then never clipped at the edge.
        drawn.savefig(path, format="png", bbox_inches="tight", pad_inches=0.08)
    return path


def short(text: str, length: int) -> str:
    """The text, cut to a number of characters with an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def strip_grid(number: int) -> tuple[int, int]:
    """Rows and columns of a filmstrip: one row up to 8 frames, then rows of 8; very few frames are not blown up."""
    return -(-number // 8), min(number, 8) if number > 3 else 4


def draw_frames(axes: Any, frames: Tensor, rows: int, columns: int) -> None:
    """Draw frames (T, 3, H, W) uint8 in rows and columns with a thin gap."""
    import numpy as np

    pixels = frames.permute(0, 2, 3, 1).cpu().numpy()
    height, width = pixels.shape[1:3]
    gap = max(1, round(width * 0.03))
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for number, frame in enumerate(pixels):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = frame
    axes.imshow(canvas, interpolation="nearest" if height < 100 else "antialiased")
    axes.axis("off")


def draw_bars(axes: Any, ranked: Ranked, strong: str) -> None:
    """A bar a class: names left, percentages at the end of the bar, the class named `strong` in colour."""
    for row, (name, score) in enumerate(ranked):
        axes.barh(row, score, height=0.62, color=STRONG if name == strong else QUIET)
        axes.text(score + 0.01, row, f"{100 * score:.1f} %", va="center", fontsize=9.5)
    axes.set_yticks(range(len(ranked)), [short(name, 44) for name, _ in ranked], color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1)
    axes.set_xticks([])
    axes.spines[["bottom"]].set_visible(False)
    axes.tick_params(length=0)


def draw_answers(axes: Any, ranked: Ranked, true_name: str) -> None:
    """A model's best answers: the name inside its row, the score as a bar behind it, the true class in colour."""
    for row, (name, score) in enumerate(ranked):
        right = name == true_name
        axes.barh(row, score, height=0.26, color=STRONG if right else QUIET)
        axes.text(
            0,
            row - 0.2,
            short(name, 38),
            va="bottom",
            fontsize=8,
            color=STRONG if right else INK,
            fontweight="bold" if right else "normal",
        )
        axes.text(min(score, 1.0) + 0.02, row, f"{100 * score:.0f} %", va="center", fontsize=8, color=FAINT)
    axes.set_ylim(2.35, -0.75)
    axes.set_xlim(0, 1.18)
    axes.axis("off")


def model_shades(number: int) -> list[str]:
    """Colours of so many models: quiet ones, and the strong one for the last."""
    quiet = [QUIET, "#6fa3cc", "#d3d8dd", "#7d8894"]
    return [quiet[place % len(quiet)] for place in range(number - 1)] + [STRONG]


def draw_comparison(axes: Any, results: Mapping[str, Mapping[str, float]], chance: Mapping[str, float] | None) -> None:
    """Grouped bars with their values in per cent; dotted lines at chance."""
    models = list(results)
    sets = list(dict.fromkeys(name for scores in results.values() for name in scores))
    width = 0.8 / len(models)
    for number, (model, shade) in enumerate(zip(models, model_shades(len(models)), strict=True)):
        for place, name in enumerate(sets):
            if name in results[model]:
                score = results[model][name]
                x = place + (number - (len(models) - 1) / 2) * width
                axes.bar(x, score, width=width * 0.92, color=shade, label=model if place == 0 else None)
                axes.text(x, score + 0.015, f"{100 * score:.1f}", ha="center", fontsize=9.5)
    chance = chance or {}
    for place, name in enumerate(sets):
        if name in chance:
            axes.plot([place - 0.46, place + 0.46], [chance[name]] * 2, color=INK, linewidth=1, linestyle=":")
    ticks = [f"{name}\n(chance {100 * chance[name]:.1f})" if name in chance else name for name in sets]
    axes.set_xticks(range(len(sets)), ticks, color=INK)
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.5, 1], labels=["0", "50", "100 %"])
    axes.tick_params(length=0)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=len(models),
        fontsize=9,
        handlelength=1,
        borderpad=0.2,
        columnspacing=1.2,
        borderaxespad=0.2,
    )


def draw_few_shot(
    axes: Any,
    results: Mapping[str, Mapping[int, tuple[float, float | None]]],
    untrained: Mapping[str, float] | None,
    chance: float | None,
    shades: Mapping[str, str] | None = None,
) -> None:
    """Accuracy against the number of training videos a class; what needs no training dashed, chance dotted."""
    shots = sorted({k for curve in results.values() for k in curve})
    shades = shades or dict(zip(results, model_shades(len(results)), strict=True))
    for name, accuracy in (untrained or {}).items():
        axes.axhline(accuracy, color=shades.get(name, QUIET), linewidth=1.6, linestyle="--", label=name)
    if chance is not None:
        axes.axhline(chance, color=INK, linewidth=1, linestyle=":", label="chance")
    for name, curve in results.items():
        ks = sorted(curve)
        axes.errorbar(
            [shots.index(k) for k in ks],
            [curve[k][0] for k in ks],
            yerr=[curve[k][1] or 0.0 for k in ks],
            color=shades[name],
            linewidth=1.8,
            marker="o",
            markersize=4,
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(len(shots)), [str(k) for k in shots])
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100 %"])
    axes.set_xlabel("training videos a class")
    axes.grid(axis="y", color="#eceff2")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
