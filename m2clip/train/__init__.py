"""Training: one run from its configuration to its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2clip.train.trainer import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    """Import the trainer at its first use: torch is not needed to read a configuration."""
    if name == "run":
        from m2clip.train.trainer import run

        return run
    raise AttributeError(f"module 'm2clip.train' has no attribute {name!r}")
