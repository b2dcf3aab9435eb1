"""Results as a notebook shows them: HTML that needs no other file and no script."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from m2clip.plots.style import QUIET, STRONG, Ranked, strip_grid, tiled
from m2clip.terminal import printable

if TYPE_CHECKING:
    from torch import Tensor

_BOX = "font-family:sans-serif;font-size:13px;line-height:1.5;max-width:760px"


def prediction_html(path: str, head: str, frames: Tensor, ranked: Ranked) -> str:
    """A filmstrip with a bar for each class below it.

    Args:
        path: of the video.
        head: which scores these are.
        frames: (T, 3, H, W) uint8.
        ranked: (name, score), best first.
    """
    heading = f"<b>{_text(path)}</b> ({_text(head)})"
    rows, columns = strip_grid(len(frames))
    width = min(760, 180 * min(len(frames), columns))
    strip = (
        f'<img src="{data_uri(tiled(frames, rows, min(len(frames), columns)))}" style="width:{width}px" alt="frames">'
    )
    return f'<div style="{_BOX}"><div>{heading}</div>{strip}{_bars(ranked)}</div>'


def table_html(heading: str, picture: bytes | None, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table under a picture.

    Args:
        heading: above both.
        picture: PNG, or None.
        header: names of the columns.
        rows: cells.
    """
    shown = "" if picture is None else f'<img src="{_uri(picture)}" style="width:100%" alt="picture">'
    cells = "".join(f'<th style="text-align:left">{_text(name)}</th>' for name in header)
    body = "".join(
        "<tr>" + "".join(f'<td style="text-align:left">{_text(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div style="{_BOX}"><div><b>{_text(heading)}</b></div>{shown}{table}</div>'


def data_uri(pixels: object) -> str:
    """A data URI of the PNG of pixels (H, W, 3) uint8."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")  # type: ignore[arg-type]
    return _uri(file.getvalue())


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _bars(ranked: Ranked) -> str:
    lines = []
    for place, (name, score) in enumerate(ranked):
        bar = f"display:inline-block;height:11px;width:{300 * score:.0f}px;background:{QUIET if place else STRONG}"
        lines.append(
            f'<tr><td style="text-align:left">{_text(name)}</td><td style="text-align:left;white-space:nowrap">'
            f'<span style="{bar}"></span> {100 * score:.1f} %</td></tr>'
        )
    return f"<table>{''.join(lines)}</table>"


def _text(text: str) -> str:
    return html.escape(printable(text))
