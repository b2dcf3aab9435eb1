"""Picture of adapter_speed.json: a bar a variant, a panel a case and pass, the floor as a dotted line.

python benchmarks/adapter_plot.py benchmarks/results/cpu/adapter_speed.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.adapter_table import digits, title, unit_for
from benchmarks.adapter_variants import COMPILED, PASSES
from m2clip.plot_parts import FAINT, INK, QUIET, STRONG, figure, save

COMPILED_SHADE, REFERENCE_SHADE = "#d8c08a", "#9dbdd8"
LEGEND = {
    "authors eager": QUIET,
    "torch.compile": COMPILED_SHADE,
    "m2clip reference": REFERENCE_SHADE,
    "m2clip accelerated": STRONG,
}


def shade(name: str) -> str:
    """Colour of a variant's bar."""
    if name.startswith("m2clip"):
        return REFERENCE_SHADE if name == "m2clip reference" else STRONG
    return COMPILED_SHADE if name in COMPILED else QUIET


def draw(results: Mapping[str, Any], path: Path) -> Path:
    """Draw all cases of adapter_speed.json into a PNG; returns its path."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    cases = results["cases"]
    bars = [len(case["passes"][PASSES[0]]["variants"]) for case in cases]
    heights = [0.75 + 0.27 * number for number in bars]
    with figure(11.5, sum(heights) + 1.0) as drawn:
        grid = drawn.subplots(len(cases), len(PASSES), squeeze=False, height_ratios=heights)
        for row, case in zip(grid, cases, strict=True):
            for axes, which in zip(row, PASSES, strict=True):
                panel(axes, case["passes"][which], "authors", shade)
                axes.set_title(which, loc="right", fontsize=9, fontweight="normal", color=FAINT)
            row[0].set_title(f"{case['name']}  ", fontsize=10)
            row[1].set_title(title(case["shape"]), fontsize=9, fontweight="normal", color=FAINT)
            row[1].set_yticks([])
        present = {shade(name) for case in cases for name in case["passes"][PASSES[0]]["variants"]}
        handles: list[Any] = [Patch(color=colour, label=name) for name, colour in LEGEND.items() if colour in present]
        handles.append(Line2D([], [], color=INK, linestyle=":", label="floor: the bare GEMMs"))
        drawn.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=9, handlelength=1.4)
        drawn.suptitle(
            f"TED-Adapter: time of a call on {results['device']}, and times faster than the authors' code",
            x=0.01,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
        return save(drawn, path)


def panel(axes: Any, numbers: Mapping[str, Any], baseline: str, shade: Callable[[str], str]) -> None:
    """Bars of one pass, each with its time and its speed relative to a baseline."""
    names = list(numbers["variants"])
    unit, factor = unit_for(numbers)
    limit = 1.3 * max(own["seconds"]["median"] for own in numbers["variants"].values()) * factor
    for place, name in enumerate(names):
        own = numbers["variants"][name]
        seconds, over = own["seconds"], own["speedup_over"].get(baseline)
        value = seconds["median"] * factor
        spread = [[value - seconds["p20"] * factor], [seconds["p80"] * factor - value]]
        axes.barh(place, value, height=0.68, color=shade(name), xerr=spread, error_kw={"ecolor": FAINT, "lw": 0.8})
        text = digits(value) + (f"  {over['median']:.2f}x" if over else "")
        end = min(max(value, seconds["p80"] * factor), 0.82 * limit)  # a wild spread is cut, its number stays
        axes.annotate(
            text,
            (end, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    axes.axvline(numbers["floor"]["seconds"]["median"] * factor, color=INK, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(names)), names, color=INK, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(0, limit)
    axes.set_xlabel(unit, fontsize=8, labelpad=1)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[["left"]].set_visible(False)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(draw(json.loads(source.read_text()), source.with_suffix(".png")))
