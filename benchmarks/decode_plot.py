"""Picture of decode_speed.json: clips a core decodes in a second, a panel for each way of storing videos.

python benchmarks/decode_plot.py benchmarks/results/cpu/decode_speed.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2clip.plot_parts import FAINT, INK, QUIET, STRONG, figure, save


def draw(results: Mapping[str, Any], path: Path) -> Path:
    """Draw decode_speed.json into a PNG; returns its path."""
    forms = results["forms"]
    heights = [0.5 + 0.27 * len(form["readers"]) for form in forms.values()]
    most = max(own["clips_a_core_second"] for form in forms.values() for own in form["readers"].values())
    with figure(8.5, sum(heights) + 0.8) as drawn:
        rows = drawn.subplots(len(forms), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
        for axes, (name, form) in zip(rows, forms.items(), strict=True):
            readers = form["readers"]
            for place, (reader, numbers) in enumerate(readers.items()):
                rate, seconds = numbers["clips_a_core_second"], numbers["seconds"]
                spread = [[rate - 1 / seconds["p80"]], [1 / seconds["p20"] - rate]]
                colour = STRONG if reader.startswith("m2clip") else QUIET
                axes.barh(place, rate, height=0.68, color=colour, xerr=spread, error_kw={"ecolor": FAINT, "lw": 0.8})
                label = f"{rate:.0f}   {1e3 * seconds['median']:.1f} ms"
                end = (1 / seconds["p20"], place)
                axes.annotate(label, end, xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
            axes.set_yticks(range(len(readers)), list(readers), color=INK, fontsize=8.5)
            axes.set_ylim(len(readers) - 0.5, -0.5)
            axes.set_title(f"{name}, {form['bytes_a_video'] / 1e3:.0f} kB a video", fontsize=9)
            axes.tick_params(length=0, labelsize=8)
        rows[-1].set_xlim(0, 1.4 * most)
        rows[-1].set_xlabel("clips a second and core", fontsize=8)
        config = results["config"]
        drawn.suptitle(
            f"{config['frames']} frames of a video of {config['seconds']:g} s, {config['width']}x{config['height']}, "
            f"on {results['device'].split(',')[0]}",
            x=0.01,
            ha="left",
            fontsize=10,
            fontweight="bold",
        )
        return save(drawn, path)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(draw(json.loads(source.read_text()), source.with_suffix(".png")))
