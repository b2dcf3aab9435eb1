"""Seeds of what is drawn in one place of a run, or for one clip of a data set, and nowhere else."""

from __future__ import annotations

import numpy as np


def mix_seeds(*numbers: int) -> int:
    """One seed of 63 bits from several whole numbers that are not negative, unrelated for neighbouring ones."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
