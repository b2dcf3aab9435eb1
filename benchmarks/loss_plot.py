"""Picture of loss_speed.json: a bar a variant, a panel a case and pass, the floor as a dotted line.

python benchmarks/loss_plot.py benchmarks/results/cpu/loss_speed.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.adapter_plot import COMPILED_SHADE, REFERENCE_SHADE, panel
from benchmarks.adapter_variants import PASSES
from benchmarks.loss_variants import COMPILED, EAGER
from m2clip.plot_parts import FAINT, QUIET, STRONG, figure, save


def title(case: Mapping[str, Any]) -> str:
    """A case in one line."""
    frozen = ", decoder frozen" if case["frozen"] else ""
    return f"{case['op']} {case['rows']}x{case['columns']}, D={case['dim']}{frozen}"


def shade(name: str) -> str:
    """Colour of a variant's bar."""
    if name.startswith("m2clip"):
        return STRONG
    return {EAGER: REFERENCE_SHADE, COMPILED: COMPILED_SHADE}.get(name, QUIET)


def draw(
    results: Mapping[str, Any], path: Path, what: str = "Losses", title: Callable[[Mapping[str, Any]], str] = title
) -> Path:
    """Draw all timed cases of loss_speed.json, or of a file of the same form, into a PNG; returns its path."""
    cases = [case for case in results["cases"] if all(case["passes"][which]["variants"] for which in PASSES)]
    heights = [0.75 + 0.27 * len(case["passes"][PASSES[0]]["variants"]) for case in cases]
    with figure(11.5, sum(heights) + 0.7) as drawn:
        grid = drawn.subplots(len(cases), len(PASSES), squeeze=False, height_ratios=heights)
        for row, case in zip(grid, cases, strict=True):
            for axes, which in zip(row, PASSES, strict=True):
                panel(axes, case["passes"][which], EAGER, shade)
                axes.set_title(which, loc="right", fontsize=9, fontweight="normal", color=FAINT)
            row[0].set_title(f"{case['name']}  ", fontsize=10)
            row[1].set_title(title(case), fontsize=9, fontweight="normal", color=FAINT)
            row[1].set_yticks([])
        drawn.suptitle(
            f"{what}: time of a call on {results['device']}, and times faster than eager PyTorch; "
            "dotted: the bare GEMMs",
            x=0.01,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
        return save(drawn, path)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(draw(json.loads(source.read_text()), source.with_suffix(".png")))
