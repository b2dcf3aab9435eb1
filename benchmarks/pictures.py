"""Pictures of the benchmarks' JSON files: a bar for each variant.

python benchmarks/pictures.py benchmarks/results/cpu/adapter_speed.json
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tables import digits, unit_for
from m2clip.plots.style import FAINT, INK, QUIET, STRONG, figure, save

COMPILED_SHADE, REFERENCE_SHADE = "#d8c08a", "#9dbdd8"
LEGEND = {"others' code": QUIET, "torch.compile": COMPILED_SHADE, "reference": REFERENCE_SHADE, "m2clip": STRONG}


class Bar(NamedTuple):
    """A variant's bar: what stands at its end, and the span of its spread; without a value its place is left free."""

    name: str
    value: float | None
    text: str = ""
    spread: tuple[float, float] | None = None


def shade(name: str) -> str:
    """Colour of a variant's bar."""
    if "compile" in name or "autotuned" in name:
        return COMPILED_SHADE
    if "reference" in name:
        return REFERENCE_SHADE
    return STRONG if name.startswith("m2clip") else QUIET


def draw_bars(axes: Any, bars: Sequence[Bar], unit: str, limit: float | None = None) -> None:
    """Bars from top to bottom, named at the left; limit: of the axis (default: with room for the texts)."""
    limit = limit or 1.3 * max(bar.value for bar in bars if bar.value is not None)
    for place, (name, value, text, spread) in enumerate(bars):
        if value is None:
            continue
        low, high = spread or (value, value)
        error = [[value - low], [high - value]] if spread else None
        axes.barh(place, value, height=0.68, color=shade(name), xerr=error, error_kw={"ecolor": FAINT, "lw": 0.8})
        axes.annotate(
            text,
            (min(max(value, high), 0.82 * limit), place),  # a wild spread is cut, its number stays
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars], color=INK, fontsize=8.5)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, limit)
    axes.set_xlabel(unit, fontsize=8, labelpad=1)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[["left"]].set_visible(False)


def headline(drawn: Any, text: str) -> None:
    drawn.suptitle(text, x=0.01, ha="left", fontsize=10.5, fontweight="bold")


def legend(drawn: Any, shades: set[str], limit: str) -> None:
    """What the colours that are there mean, and the dotted line."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in LEGEND.items() if colour in shades]
    handles.append(Line2D([], [], color=INK, linestyle=":", label=limit))
    drawn.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=9, handlelength=1.4)


def draw_cases(results: Mapping[str, Any], path: Path, what: str, title: Callable[[Mapping[str, Any]], str]) -> Path:
    """Draw a benchmark of an operation into a PNG, a panel for each case and pass; returns its path."""
    cases = [case for case in results["cases"] if all(each["variants"] for each in case["passes"].values())]
    heights = [0.75 + 0.27 * max(len(each["variants"]) for each in case["passes"].values()) for case in cases]
    with figure(11.5, sum(heights) + 1.0) as drawn:
        grid = drawn.subplots(len(cases), 2, squeeze=False, height_ratios=heights)
        for row, case in zip(grid, cases, strict=True):
            for axes, (which, numbers) in zip(row, case["passes"].items(), strict=True):
                draw_pass(axes, numbers)
                axes.set_title(which, loc="right", fontsize=9, fontweight="normal", color=FAINT)
            row[0].set_title(f"{case['name']}  ", fontsize=10)
            row[1].set_title(title(case), fontsize=9, fontweight="normal", color=FAINT)
            row[1].set_yticks([])
        passes = [each for case in cases for each in case["passes"].values()]
        limit = "floor: the bare GEMMs" if all("floor" in each for each in passes) else "a copy of the same bytes"
        legend(drawn, {shade(name) for each in passes for name in each["variants"]}, limit)
        firsts = {title: None for each in passes for own in each["variants"].values() for title in baselines(own)[:1]}
        faster = "".join(f", and times faster than {title}" for title in firsts)
        headline(drawn, f"{what}: time of a call on {results['device']}{faster}")
        return save(drawn, path)


def baselines(own: Mapping[str, Any]) -> list[str]:
    """What a variant is compared with."""
    return list(own.get("speedup_over", ()))


def draw_pass(axes: Any, numbers: Mapping[str, Any]) -> None:
    """Bars of one pass, each with its time and its speed relative to the first baseline."""
    unit, factor = unit_for(numbers)
    bars = []
    for name, own in numbers["variants"].items():
        middle, low, high = (own["seconds"][key] * factor for key in ("median", "p20", "p80"))
        faster = [f"{own['speedup_over'][title]['median']:.2f}x" for title in baselines(own)[:1]]
        bars.append(Bar(name, middle, "  ".join([digits(middle), *faster]), (low, high)))
    draw_bars(axes, bars, unit)
    limit = numbers.get("floor") or numbers["copy"]
    axes.axvline(limit["seconds"]["median"] * factor, color=INK, linewidth=1, linestyle=":")


def draw_decoding(results: Mapping[str, Any], path: Path) -> Path:
    """Draw decode_speed.json into a PNG, a panel for each way of storing videos; returns its path."""
    forms, config = results["forms"], results["config"]
    heights = [0.5 + 0.27 * len(form["readers"]) for form in forms.values()]
    limit = 1.4 * max(own["clips_a_core_second"] for form in forms.values() for own in form["readers"].values())
    with figure(8.5, sum(heights) + 0.8) as drawn:
        rows = drawn.subplots(len(forms), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for axes, (name, form) in zip(rows, forms.items(), strict=True):
            bars = []
            for reader, own in form["readers"].items():
                rate, seconds = own["clips_a_core_second"], own["seconds"]
                text = f"{rate:.0f}   {1e3 * seconds['median']:.1f} ms"
                bars.append(Bar(reader, rate, text, (1 / seconds["p80"], 1 / seconds["p20"])))
            draw_bars(axes, bars, "clips per second and core" if axes is rows[-1] else "", limit)
            axes.set_title(f"{name}, {form['bytes_a_video'] / 1e3:.0f} kB per video", fontsize=9)
        what = f"{config['frames']} frames of a video of {config['seconds']:g} s, {config['width']}x{config['height']}"
        headline(drawn, f"{what}, on {results['device'].split(',')[0]}")
        return save(drawn, path)


def draw_training(results: Mapping[str, Any], path: Path) -> Path:
    """Draw train_speed.json into a PNG: seconds and memory of a step; returns its path."""
    setting, times = results["setting"], {name: each["median"] for name, each in results["seconds"].items()}
    first = next(iter(times.values()))
    steps = [
        Bar(name, seconds, f"{seconds:.1f}" if seconds >= 1 else f"{1e3 * seconds:.0f} ms")
        for name, seconds in times.items()
    ]
    steps = [bar._replace(text=f"{bar.text}  {first / times[bar.name]:.2f}x") for bar in steps]
    memory = {name: results["memory"][name]["steps_gb"] for name in times}
    with figure(9.5, 1.2 + 0.4 * len(times)) as drawn:
        left, right = drawn.subplots(1, 2)
        draw_bars(left, steps, "seconds per step")
        unit = "GB per step above the loaded model"
        draw_bars(right, [Bar(name, size, f"{size:.2f}") for name, size in memory.items()], unit)
        right.set_yticks([])
        what = f"{setting['clip']}, {setting['batch']} clips of {setting['frames']} frames, {setting['classes']}"
        headline(drawn, f"One training step, {what}, on {results['device']}")
        return save(drawn, path)


def draw_inference(results: Mapping[str, Any], path: Path) -> Path:
    """Draw inference_speed.json into a PNG, a panel for each batch size; returns its path."""
    setting, cases = results["setting"], results["cases"]
    names = list(dict.fromkeys(name for case in cases for name in case["variants"]))
    with figure(max(9.0, 3.2 * len(cases)), 1.2 + 0.4 * len(names)) as drawn:
        panels = drawn.subplots(1, max(1, len(cases)), squeeze=False)[0]
        for axes, case in zip(panels, cases, strict=True):
            rates = {name: own["throughput"] for name, own in case["variants"].items()}
            bars = [Bar(name, rates.get(name), f"{rates.get(name, 0):.1f}") for name in names]
            draw_bars(axes, bars, f"clips per second, {case['batch']} at a time")
            if axes is not panels[0]:
                axes.set_yticks([])
        what = f"{setting['clip']}, {setting['frames']} frames, {setting['classes']}"
        headline(drawn, f"Forward pass, {what}, on {results['device']}")
        return save(drawn, path)


WHOLE = {"decode_speed": draw_decoding, "train_speed": draw_training, "inference_speed": draw_inference}


def draw(results: Mapping[str, Any], path: Path) -> Path:
    """Draw any benchmark's JSON into a PNG; returns its path."""
    name = results["benchmark"]
    if name in WHOLE:
        return WHOLE[name](results, path)
    problem = importlib.import_module(f"benchmarks.{name}").Problem
    return draw_cases(results, path, problem.what, problem.title)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(draw(json.loads(source.read_text()), source.with_suffix(".png")))
