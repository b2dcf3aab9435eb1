"""Episodes of few-shot recognition: N classes, K support videos of each, and queries to be told apart by them."""

from __future__ import annotations

from dataclasses import dataclass

from m2clip.errors import InputError


@dataclass(frozen=True)
class EpisodeShape:
    """How many videos an episode has.

    Args:
        way: classes, N, 2 or more.
        shots: support videos of a class, K, 1 or more.
        queries: query videos of a class, 1 or more.

    Raises:
        InputError: a number below its least.
    """

    way: int = 5
    shots: int = 1
    queries: int = 1

    def __post_init__(self) -> None:
        for name, least in (("way", 2), ("shots", 1), ("queries", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} of an episode must be {least} or more, not {getattr(self, name)}")

    @property
    def support(self) -> int:
        """Support videos of an episode."""
        return self.way * self.shots

    @property
    def videos(self) -> int:
        """Support and query videos of an episode."""
        return self.way * (self.shots + self.queries)
