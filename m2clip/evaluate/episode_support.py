"""Support videos that cannot be read: which videos of their class stand in for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def with_stand_ins(
    support: Tensor, query: Tensor, unreadable: Tensor, labels: Sequence[int], sources: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Episodes whose unreadable support videos are replaced, so that they cost no query of others.

    In place of an unreadable video comes the next one of its class in the list (after the last the first) that can be
    read and is in no other place of the episode, nor another part of a video that is; where there is none, one of the
    class's readable support videos comes again. It depends on the list and on the episode alone.

    Args:
        support: (E, way, K) positions of videos.
        query: (E, way, Q) positions of videos, which stay.
        unreadable: (N,) bool, for each video of the list.
        labels: class of each video of the list.
        sources: file of each video of the list (`m2clip.data.episodes.sources`).

    Returns:
        (E, way, K) support; (E, way) bool, whether a class has no support video that can be read; (E,) bool, whether
        another video stands in.
    """
    bad = unreadable[support]
    lost = bad.all(dim=-1)
    replaced = torch.zeros(len(support), dtype=torch.bool)
    if not bad.any():
        return support, lost, replaced
    support = support.clone()
    of_class: dict[int, list[int]] = {}
    for video, label in enumerate(labels):
        if not unreadable[video]:
            of_class.setdefault(label, []).append(video)
    for episode, place in bad.any(dim=-1).nonzero().tolist():
        videos = support[episode, place].tolist()
        own = [video for video in videos if not unreadable[video]]
        used = {sources[video] for video in (*own, *query[episode, place].tolist())}
        readable = of_class.get(labels[videos[0]], [])
        for shot, video in enumerate(videos):
            if unreadable[video]:
                free = [other for other in readable if sources[other] not in used]
                found = next((other for other in free if other > video), next(iter(free), None))
                if found is None and own:
                    found = own[shot % len(own)]
                if found is None:
                    continue
                used.add(sources[found])
                support[episode, place, shot] = found
                replaced[episode] = True
        lost[episode, place] = bool(unreadable[support[episode, place]].all())
    return support, lost, replaced
