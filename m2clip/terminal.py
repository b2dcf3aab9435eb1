"""Text on its way to a terminal: no name acts on it, and no stream that is closed or narrow ends a command."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from m2clip.errors import Notice

# Control characters (escape sequences begin with one), line separators, marks that reverse the direction of writing,
# and halves of characters, as which Python reads file names that are not UTF-8.
_UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

told: list[Notice] = []  # in the command that runs


def printable(text: str, keep: str = "") -> str:
    """The text with every character that could act on a terminal written as an escape, such as \\x1b.

    Args:
        text: any text.
        keep: characters to leave as they are, such as a line break.
    """
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def json_text(value: Any, indent: int | None = 1) -> str:
    """A value as JSON that standard output can encode, unsafe characters as JSON writes them.

    Args:
        value: of JSON types.
        indent: of each level; None puts everything on one line.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent)
    return _UNSAFE.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def tell(line: str) -> None:
    """One line on standard error, written at once: several processes may share the stream."""
    sys.stderr.write(f"m2clip: {printable(' '.join(line.split()))}\n")
    sys.stderr.flush()


def prepare_streams() -> None:
    """Open what was closed, and let what a stream cannot encode be written as an escape."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Takes the lowest free number, this one: a file that is opened later must not, or it would get the output.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A stream that was a file and became a pipe cannot be changed; it stays as it is.
        with suppress(OSError):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")


def silence(stream: Any) -> None:
    """Let what is still buffered for a stream go nowhere, once it cannot be written."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def notices(shown: bool) -> Iterator[None]:
    """Tell each `Notice` in one line on standard error, and keep it in `told` for the command's JSON."""
    told.clear()
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.simplefilter("always", Notice)

        def show_notice(message: Warning | str, category: type[Warning], *where: Any, **named: Any) -> None:
            if not isinstance(message, Notice):
                show(message, category, *where, **named)
            elif str(message) not in {str(other) for other in told}:
                told.append(message)
                if shown:
                    tell(str(message))

        warnings.showwarning = show_notice
        yield
