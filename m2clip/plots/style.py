"""The house style of all pictures, and the parts that several of them share."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2clip.errors import Notice
from m2clip.files.disk import replacing
from m2clip.terminal import printable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# One strong colour for what the reader came for, one grey for what it is compared with, one red for what is wrong.
STRONG, QUIET, WRONG = "#1f5a8c", "#aab2bb", "#b5483a"
INK, FAINT = "#22272e", "#6b7480"
CURVES = (STRONG, "#6fa3cc", QUIET, "#5e6b78", WRONG, "#d8a49b")  # of a run, in this order
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    # Names are no formulas: a dollar sign is one.
    "text.parse_math": False,
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
FONT = "DejaVu Sans"
# For letters that it lacks, those of these that are installed.
FALLBACKS = ("Noto Sans", "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei", "Arial Unicode MS")
Ranked = Sequence[tuple[str, float]]


@contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """A figure of width x height inches in the house style, drawn without a screen."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    fonts = [FONT, *(name for name in FALLBACKS if name in installed)]
    with matplotlib.rc_context({**STYLE, "font.family": fonts}):
        # A Figure of its own, not pyplot's: the caller's backend and open figures are left alone.
        made = Figure(figsize=(width, height), dpi=160, layout="constrained")
        FigureCanvasAgg(made)
        yield made


def save(drawn: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, making its folder; returns the path. InputError where that cannot be done."""
    path = Path(path)
    with replacing(path) as temporary, warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", "Glyph")
        # Cut to what is drawn: names of any length are then never clipped at the edge.
        metadata = {"Software": "m2clip"}  # by which `m2clip.files.kept_work` knows it again
        drawn.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.08, metadata=metadata)
    glyphs = [one for one in caught if str(one.message).startswith("Glyph")]
    for one in caught:
        if one not in glyphs:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if missing := {str(one.message) for one in glyphs}:
        what = f"{len(missing)} characters of its names are in no installed font"
        warnings.warn(Notice(f"{path}: {what}; install one that has them, such as Noto Sans"), stacklevel=2)
    return path


def short(text: str, length: int) -> str:
    """The text on one line, cut with an ellipsis to what so many narrow characters take; East Asian ones are wide."""
    text = printable(text)
    widths = [2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text]
    if sum(widths) <= length:
        return text
    fitting = sum(width <= length - 1 for width in accumulate(widths))
    return text[:fitting].rstrip() + "…"


def strip_grid(number: int) -> tuple[int, int]:
    """Rows and columns of a filmstrip: one row up to 8 frames, then rows of 8; very few frames are not blown up."""
    return -(-number // 8), min(number, 8) if number > 3 else 4


def tiled(frames: Tensor, rows: int, columns: int) -> np.ndarray:
    """Frames (T, 3, H, W) uint8 in rows and columns with a thin white gap, (height, width, 3)."""
    import numpy as np

    pixels = frames.permute(0, 2, 3, 1).cpu().numpy()
    height, width = pixels.shape[1:3]
    gap = max(1, round(width * 0.03))
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for number, frame in enumerate(pixels):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = frame
    return canvas


def draw_frames(axes: Any, frames: Tensor, rows: int, columns: int) -> None:
    """Draw frames (T, 3, H, W) uint8 in rows and columns with a thin gap."""
    axes.imshow(tiled(frames, rows, columns), interpolation="nearest" if frames.shape[-2] < 100 else "antialiased")
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
                axes.bar(x, score, width=width * 0.92, color=shade, label=printable(model) if place == 0 else None)
                axes.text(x, score + 0.015, f"{100 * score:.1f}", ha="center", fontsize=9.5)
    chance = chance or {}
    for place, name in enumerate(sets):
        if name in chance:
            axes.plot([place - 0.46, place + 0.46], [chance[name]] * 2, color=INK, linewidth=1, linestyle=":")
    ticks = [printable(name) + (f"\n(chance {100 * chance[name]:.1f})" if name in chance else "") for name in sets]
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
    """Accuracy against the number of training videos per class; what needs no training dashed, chance dotted."""
    shots = sorted({k for curve in results.values() for k in curve})
    shades = shades or dict(zip(results, model_shades(len(results)), strict=True))
    for name, accuracy in (untrained or {}).items():
        axes.axhline(accuracy, color=shades.get(name, QUIET), linewidth=1.6, linestyle="--", label=printable(name))
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
            label=printable(name),
        )
    axes.set_xticks(range(len(shots)), [str(k) for k in shots])
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100 %"])
    axes.set_xlabel("training videos per class")
    axes.grid(axis="y", color="#eceff2")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
