"""The readers that the decoding benchmark compares: ours, and what users of the libraries write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import reason
from m2clip.data.lists.rows import VideoItem
from m2clip.data.packs.frames import ShardVideo
from m2clip.data.sampling import uniform_indices
from m2clip.data.video.readers import open_video

FRAMES = 8
OURS, OURS_DECORD, OURS_TORCHCODEC = "m2clip", "m2clip, decord", "m2clip, torchcodec"
DECORD, TORCHCODEC, SEQUENTIAL = "plain decord", "plain torchcodec", "authors' loader"

# (n, 3, H, W) uint8, FRAMES of them spread uniformly over a video.
Reader = Callable[[VideoItem], Tensor]


def _ours(reader: str) -> Reader:
    def read(item: VideoItem) -> Tensor:
        with open_video(item.path, reader) as video:
            return video.read(uniform_indices(video.num_frames, FRAMES))

    return read


def stored(item: VideoItem) -> Tensor:
    """From a shard."""
    assert item.sample is not None
    with ShardVideo(item.path, item.sample) as video:
        return video.read(uniform_indices(video.num_frames, FRAMES))


def plain_decord(item: VideoItem) -> Tensor:
    """As decord's own example does it."""
    import decord

    video = decord.VideoReader(str(item.path))
    return torch.from_numpy(video.get_batch(uniform_indices(len(video), FRAMES)).asnumpy()).permute(0, 3, 1, 2)


def plain_torchcodec(item: VideoItem) -> Tensor:
    """As torchcodec's own example does it."""
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(str(item.path))
    count = video.metadata.num_frames
    assert count is not None
    return video.get_frames_at(uniform_indices(count, FRAMES)).data


def sequential(item: VideoItem) -> Tensor:
    """PyAV as the loaders of published code use it: every frame is decoded, then some are picked and converted."""
    import av

    with av.open(str(item.path)) as container:
        frames = list(container.decode(video=0))
    picked = [frames[index].to_ndarray(format="rgb24") for index in uniform_indices(len(frames), FRAMES)]
    return torch.stack([torch.from_numpy(frame) for frame in picked]).permute(0, 3, 1, 2)


FILE_READERS: dict[str, Reader] = {
    OURS: _ours("auto"),
    OURS_DECORD: _ours("decord"),
    OURS_TORCHCODEC: _ours("torchcodec"),
    DECORD: plain_decord,
    TORCHCODEC: plain_torchcodec,
    SEQUENTIAL: sequential,
}


def usable(
    readers: dict[str, Reader], items: Sequence[VideoItem]
) -> tuple[dict[str, Reader], dict[str, str], list[str]]:
    """Readers whose frames are those of the first one, why others are not timed, and complaints of wrong ones."""
    found, missing, complaints = {}, {}, []
    truth = [next(iter(readers.values()))(item) for item in items]
    for name, read in readers.items():
        try:
            frames = [read(item) for item in items]
        except Exception as met:  # a library that is missing: told, not hidden
            missing[name] = reason(met)
            continue
        # Libraries round colours in their own ways; the next frame differs by far more.
        errors = [(a.float() - b.float()).abs().mean().item() for a, b in zip(frames, truth, strict=True)]
        if max(errors) > 1.0:
            missing[name] = f"wrong: frames differ by {max(errors):.1f} grey levels"
            complaints.append(f"{Path(items[0].path).parent.name}: {name} is {missing[name]}")
            continue
        found[name] = read
    return found, missing, complaints
