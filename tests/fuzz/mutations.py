"""Inputs that are nearly right, and what is expected of everything that reads them.

The normal test run takes a small, fixed part of the cases. M2CLIP_FUZZ=N runs about N of them, drawn anew each time:

    M2CLIP_FUZZ=2000 python -m pytest tests/fuzz
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from m2clip.errors import InputError

FULL = int(os.environ.get("M2CLIP_FUZZ", "0"))
_NORMAL = 200
Result = TypeVar("Result")

# Number of cases by target and by what became of them.
outcomes: Counter[tuple[str, str]] = Counter()


def cases(share: float) -> Callable[[Any], Any]:
    """Settings of a test that takes this share of all cases."""
    return settings(
        max_examples=max(round(share * (FULL or _NORMAL)), 1),
        derandomize=not FULL,
        database=None,
        # A limit against hanging, not on speed.
        deadline=timedelta(seconds=100),
        suppress_health_check=list(HealthCheck),
        print_blob=bool(FULL),
    )


def attempt(target: str, read: Callable[[], Result]) -> Result | None:
    """The result, or None where the input was refused in one line; anything else fails the test."""
    try:
        result = read()
    except InputError as error:
        message = str(error)
        assert message.strip()
        assert "\n" not in message, message
        outcomes[target, "refused"] += 1
        return None
    outcomes[target, "read"] += 1
    return result


TOKENS = (
    *(b"", b" ", b"\n", b"\r\n", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"'", b",", b";"),
    *(b"0", b"-1", b"1", b"2", b"007", b"1.5", b"1e999", b"nan", b"NaN", b"Infinity", b"null", b"true", b"9" * 30),
    *(b"9" * 5000, "²".encode(), "٣".encode(), "é".encode(), "\u2028".encode(), b"[" * 30_000, b"{", b"}", b"{}"),
    *(b"]", b":", b"..", b"../..", b"/", b"//", b"%s", b"{:d}", b"{0}", b"a" * 300, b"#", b"- ", b"&a *a", b"!!python"),
    *(b"!!python/object/apply:os.system ['touch pwned']", b"label", b"id,name", b"train0/", b"split1", b".mp4"),
)


@st.composite
def mutated(draw: st.DrawFn, documents: tuple[bytes, ...]) -> bytes:
    """One of the documents with up to five changes: bits, tokens, and stretches taken out, doubled or swapped."""
    data = bytearray(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(data)))
        stop = min(start + draw(st.integers(0, 12)), len(data))
        kind = draw(st.sampled_from(("bit", "token", "token", "cut", "double", "swap", "end", "bytes")))
        if kind == "bit" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "token":
            data[start:stop] = draw(st.sampled_from(TOKENS))
        elif kind == "cut":
            del data[start:stop]
        elif kind == "double":
            data[start:start] = data[start:stop] * draw(st.integers(1, 3))
        elif kind == "swap":
            data[:] = data[start:] + data[:start]
        elif kind == "end":
            del data[start:]
        elif kind == "bytes":
            data[start:stop] = draw(st.binary(max_size=8))
    return bytes(data)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2, 8, 10**9, 2**63, 10**30, 0.5, float("nan"), float("inf")])
    | st.sampled_from(["", "a", "0", "-1", "é", "\0", "tiny", "../x", "a" * 300, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "0", ""]), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def mutated_json(draw: st.DrawFn, values: tuple[Any, ...]) -> bytes:
    """One of the JSON values with up to three parts of it replaced, taken out or named otherwise."""
    value = json.loads(json.dumps(draw(st.sampled_from(values))))
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = [value]
        place: Any = 0
        while isinstance(holder[place], (dict, list)) and holder[place] and draw(st.integers(0, 4)):
            holder = holder[place]
            place = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        kind = draw(st.sampled_from(("replace", "replace", "remove", "rename")))
        if holder == [value] and place == 0:
            value = draw(VALUES) if not draw(st.integers(0, 5)) else value
        elif kind == "replace":
            holder[place] = draw(VALUES)
        elif kind == "remove":
            del holder[place]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(["", "x", "0", "1"]))] = holder.pop(place)
    return json.dumps(value).encode()
