"""Computing in this process: videos decoded by worker processes, one model. Under torchrun, one of several such."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2clip import distributed
from m2clip.at_scale.passes import assemble, pass_size, passes, read_video, score_pass
from m2clip.at_scale.settings import Outcome, Work
from m2clip.data.clips import ClipDataset
from m2clip.data.lists.annotations import Annotations
from m2clip.data.loading import load
from m2clip.errors import InputError
from m2clip.towers.precision import place


@dataclass(frozen=True)
class LocalProcess:
    """Decoding worker processes around the model in this process.

    Under torchrun every process takes parts of the list of its own. They exchange nothing: what one has not finished
    when it dies, the others do.

    Args:
        workers: decoding processes; 0 decodes in this process.
        device: "cpu", "cuda" or "cuda:N"; None takes this process's GPU where there is one, else the CPU.
    """

    workers: int = 2
    device: str | None = None

    @property
    def process(self) -> tuple[int, int]:
        """Number of this process and how many there are, as torchrun says."""
        number, count = (os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
        if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
            raise InputError(f"RANK is {number!r} and WORLD_SIZE {count!r}: start with torchrun, or unset both")
        return int(number), int(count)

    def take(self, missing: int) -> int:
        """Half of a fair share at a time: few starts of decoding processes, and all processes end together."""
        return -(-missing // (2 * self.process[1]))

    def compute(self, work: Work, parts: Sequence[int]) -> Generator[tuple[int, list[Outcome]], None, None]:
        """A part and the outcomes of some of its videos, for every forward pass, in order."""
        device = distributed.pick_device(self.device)
        model = place(work.model, device, work.settings.precision)
        size = pass_size(work.views, work.settings.batch_size)
        order = [index for number in parts for index in work.part(number)]
        items = load(_Videos(work), order, workers=self.workers)
        for number in parts:
            for positions in passes(work.part(number), size):
                batch, errors = assemble([next(items) for _ in positions], work.views, size)
                yield number, score_pass(work, model, batch, positions, errors)


class _Videos(ClipDataset):
    """(position, views or the reason why there are none) by position."""

    def __init__(self, work: Work) -> None:
        super().__init__(Annotations(tuple(work.items), None, "list", Path()), work.views)

    def __getitem__(self, index: Any) -> Any:
        return index, read_video(self.annotations.items[index], self.settings)
