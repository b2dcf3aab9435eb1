"""Scores of models: of videos, and of few-shot episodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2clip.evaluate.scoring import evaluate_model

__all__ = ["evaluate_model"]


def __getattr__(name: str) -> Any:
    """Import the scoring at its first use: results are read without torch."""
    if name == "evaluate_model":
        from m2clip.evaluate.scoring import evaluate_model

        return evaluate_model
    raise AttributeError(f"module 'm2clip.evaluate' has no attribute {name!r}")
