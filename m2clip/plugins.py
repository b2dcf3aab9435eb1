"""What other packages add to m2clip: objects that they register as entry points."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from m2clip.errors import InputError


def registered(group: str, name: str, kind: Any, what: str, own: Iterable[str]) -> Any:
    """The object that an installed package registers under a name.

    Args:
        group: of the entry points, such as "m2clip.methods".
        name: the entry point's.
        kind: the type that the object must have; `callable` for a function.
        what: what messages call it.
        own: names that m2clip itself has, for the message.

    Raises:
        InputError: no package registers the name, or it cannot be imported or is something else.
    """
    found: list[EntryPoint] = list(entry_points(group=group))
    point = next((point for point in found if point.name == name), None)
    if point is None:
        names = [*own, *(point.name for point in found)]
        raise InputError(f"unknown {what} {name!r}; choose from {', '.join(names)}")
    try:
        thing = point.load()
    except (Exception, SystemExit) as error:  # whatever a foreign package does when it is imported
        raise InputError(f"{what} {name!r} ({point.value}) cannot be imported: {error}") from error
    if not (callable(thing) if kind is callable else isinstance(thing, kind)):
        wanted = "a function" if kind is callable else f"a {kind.__module__}.{kind.__name__}"
        raise InputError(f"{what} {name!r} ({point.value}) is not {wanted}")
    return thing
