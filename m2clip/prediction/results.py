"""What a model says of a video, for programs, terminals and notebooks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from m2clip.terminal import printable


@dataclass(frozen=True, repr=False)
class Prediction:
    """A video's classes; a notebook shows it with its frames.

    Attributes:
        path: the video.
        head: which scores these are: "supervised" (VC head) or "zero-shot" (text similarity).
        ranked: (name, score) of every class, best first; the scores are probabilities and sum to 1.
        frames: (T, 3, height, width) uint8, the middle clip as the model saw it.
        top: how many classes are shown.
    """

    path: str
    head: str
    ranked: list[tuple[str, float]]
    frames: Tensor = field(compare=False)
    top: int = 5

    @property
    def label(self) -> str:
        """Name of the best class."""
        return self.ranked[0][0]

    @property
    def score(self) -> float:
        """Score of the best class."""
        return self.ranked[0][1]

    def to_dict(self, top: int | None = None) -> dict[str, Any]:
        """The best `top` classes as JSON types."""
        best = [{"name": name, "score": score} for name, score in self.ranked[: top or self.top]]
        return {"path": self.path, "head": self.head, "predictions": best}

    def __repr__(self) -> str:
        shown = self.ranked[: self.top]
        width = max(len(printable(name)) for name, _ in shown)
        lines = [f"  {printable(name):<{width}}  {100 * score:6.2f} %" for name, score in shown]
        return "\n".join([f"Prediction of {printable(self.path)} ({self.head})", *lines])

    def _repr_html_(self) -> str:
        from m2clip.plots.notebook import prediction_html

        return prediction_html(self.path, self.head, self.frames, self.ranked[: self.top])
