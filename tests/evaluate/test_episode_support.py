"""Which videos stand in for support videos that cannot be read."""

from __future__ import annotations

import torch

from m2clip.evaluate.episode_support import with_stand_ins


def test_stand_ins_are_in_no_other_place_of_the_episode() -> None:
    labels = [0] * 6 + [1] * 6
    unreadable = torch.zeros(12, dtype=torch.bool)
    unreadable[[1, 2, 5, 6, 7, 8, 9, 10, 11]] = True
    support = torch.tensor([[[1, 0], [6, 7]], [[5, 2], [8, 9]], [[0, 3], [10, 11]], [[5, 4], [6, 7]]])
    query = torch.tensor([[[3], [8]], [[0], [6]], [[1], [6]], [[0], [8]]])
    sources = list(range(12))
    found, lost, replaced = with_stand_ins(support, query, unreadable, labels, sources)
    # The next of the class that can be read and is not there yet; after the last the first.
    assert found[:, 0].tolist() == [[4, 0], [3, 4], [0, 3], [3, 4]]
    assert torch.equal(found[:, 1], support[:, 1])
    assert lost.tolist() == [[False, True]] * 4 and replaced.tolist() == [True, True, False, True]
    unreadable[4] = True
    # Where 3 and 4 are parts of one file, 4 does not stand in beside 3.
    parts = with_stand_ins(support, query, unreadable, labels, [0, 1, 2, 3, 3, *sources[5:]])[0]
    assert parts[:2, 0].tolist() == [[0, 0], [3, 2]]
    found, lost, replaced = with_stand_ins(support, query, unreadable, labels, sources)
    assert found[0, 0].tolist() == [0, 0] and not lost[0, 0] and replaced[0]  # nothing else is left: once again
    whole = with_stand_ins(support, query, torch.zeros(12, dtype=torch.bool), labels, sources)
    assert whole[0] is support and not whole[1].any() and not whole[2].any()
