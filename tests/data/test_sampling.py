"""Frame sampling: the rules of the published recipes, for every length."""

import random

import pytest

from m2clip.data.sampling import dense_centre_indices, dense_indices, uniform_indices

LENGTHS = [1, 2, 7, 8, 9, 16, 40, 301]


@pytest.mark.parametrize(
    ("num_frames", "length", "expected"),
    [
        # Bounds of the segments: 0 2 5 8 10 12 14 18 20 (Python rounds 2.5 to 2 and 17.5 to 18).
        (21, 8, [1, 3, 6, 9, 11, 13, 16, 19]),
        (8, 8, [0, 1, 2, 3, 4, 4, 5, 6]),
        (301, 1, [150]),
        (100, 2, [25, 74]),
        (3, 5, [0, 1, 2, 2, 2]),
        (1, 1, [0]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_uniform_test_frames(num_frames: int, length: int, expected: list[int]) -> None:
    assert uniform_indices(num_frames, length) == expected


@pytest.mark.parametrize("length", [1, 4, 8, 32])
@pytest.mark.parametrize("num_frames", LENGTHS)
def test_every_rule_stays_inside_and_ascends(num_frames: int, length: int) -> None:
    rng = random.Random(0)
    results = [uniform_indices(num_frames, length), uniform_indices(num_frames, length, rng=rng)]
    results += [uniform_indices(num_frames, length, clip=clip, num_clips=3) for clip in range(3)]
    for stride in (1, 2, 16):
        results += [dense_indices(num_frames, length, stride), dense_indices(num_frames, length, stride, rng=rng)]
        results += [dense_indices(num_frames, length, stride, clip=clip, num_clips=4) for clip in range(4)]
    for indices in results:
        assert len(indices) == length
        assert indices == sorted(indices)
        assert indices[0] >= 0
        assert indices[-1] < num_frames


def test_uniform_training_reaches_every_frame_of_its_segment_and_no_other() -> None:
    rng = random.Random(0)
    draws = [uniform_indices(41, 4, rng=rng) for _ in range(400)]
    for segment in range(4):
        assert {draw[segment] for draw in draws} == set(range(10 * segment, 10 * segment + 11))


def test_uniform_test_clips_interleave() -> None:
    assert [uniform_indices(41, 4, clip=clip, num_clips=2) for clip in range(2)] == [[2, 12, 22, 32], [7, 17, 27, 37]]


def test_dense_test_clips_are_equally_spaced_over_the_spare_frames() -> None:
    starts = [dense_indices(300, 8, 16, clip=clip, num_clips=4)[0] for clip in range(4)]
    assert starts == [0, 62, 125, 187]
    assert dense_indices(300, 8, 16, clip=3, num_clips=4)[-1] == 299
    assert dense_indices(300, 8, 16) == list(range(93, 93 + 128 - 15, 16))


def test_dense_training_reaches_every_start() -> None:
    rng = random.Random(0)
    draws = [dense_indices(20, 4, 4, rng=rng) for _ in range(300)]
    assert {draw[0] for draw in draws} == set(range(8))
    assert all(draw == list(range(draw[0], draw[0] + 16, 4)) for draw in draws)


@pytest.mark.parametrize("rng", [None, random.Random(0)])
def test_dense_repeats_the_last_frame_of_a_short_video(rng: random.Random | None) -> None:
    assert dense_indices(10, 4, 4, rng=rng) == [0, 4, 8, 9]
    assert dense_indices(1, 4, 16, rng=rng) == [0, 0, 0, 0]


def test_the_authors_training_clip_of_a_short_video_repeats_its_last_frame_at_the_stride() -> None:
    for rng in (random.Random(0), random.Random(1)):
        assert dense_indices(20, 8, 16, rng=rng, authors=True) == [0, 16, 16, 16, 16, 16, 16, 16]
        assert dense_indices(10, 4, 4, rng=rng, authors=True) == [0, 4, 8, 8]
        assert dense_indices(13, 4, 4, rng=rng, authors=True) == [0, 4, 8, 12]
        assert dense_indices(1, 4, 16, rng=rng, authors=True) == [0, 0, 0, 0]
    # In testing they repeat the video's last frame.
    assert dense_indices(20, 8, 16, authors=True) == dense_indices(20, 8, 16) == [0, 16, 19, 19, 19, 19, 19, 19]


def authors_test_frames(num_frames: int, length: int, stride: int, clip: int, num_clips: int) -> list[int]:
    """The frames that the authors' code tests with: of a padded video, or by segments where the stride is 0."""
    if stride == 0:
        segment = (num_frames - 1) / length
        return [(round(segment * i) + round(segment * (i + 1))) // 2 for i in range(length)]
    padded = [*range(num_frames), *[num_frames - 1] * ((length - 1) * stride + 1 - num_frames)]
    spare = len(padded) - (length - 1) * stride - 1
    start = spare // 2 if num_clips == 1 else round(spare / (num_clips - 1) * clip)
    return padded[start : start + length * stride : stride]


@pytest.mark.parametrize("length", [1, 4, 7, 8, 12, 32])
def test_the_authors_test_frames(length: int) -> None:
    for num_frames in [*range(1, 80), 131, 250, 300]:
        for stride in (1, 4, 16):
            for num_clips in (1, 2, 3, 4, 6, 10):
                for clip in range(num_clips):
                    found = dense_indices(num_frames, length, stride, clip=clip, num_clips=num_clips, authors=True)
                    assert found == authors_test_frames(num_frames, length, stride, clip, num_clips)
        assert uniform_indices(num_frames, length, authors=True) == authors_test_frames(num_frames, length, 0, 0, 1)


def test_the_authors_segments_of_a_short_video_share_frames() -> None:
    # Bounds of the segments: 0 0 1 1 2 2 2 3 3.
    assert uniform_indices(4, 8, authors=True) == [0, 0, 1, 1, 2, 2, 2, 3]
    rng = random.Random(0)
    draws = [uniform_indices(4, 8, rng=rng, authors=True) for _ in range(200)]
    ends = list(zip([0, 0, 1, 1, 2, 2, 2, 3], [0, 1, 1, 2, 2, 2, 3, 3], strict=True))
    assert [{draw[i] for draw in draws} for i in range(8)] == [set(range(low, high + 1)) for low, high in ends]


def test_clips_in_the_middle_of_equal_parts() -> None:
    # 300 frames leave 173 starts to clips of 128: thirds of 57.67, whose middles are 28.8, 86.5 and 144.2.
    starts = [dense_centre_indices(300, 8, 16, clip=clip, num_clips=3)[0] for clip in range(3)]
    assert starts == [28, 86, 144]
    assert dense_centre_indices(300, 8, 16) == list(range(86, 86 + 128, 16))
    # A video too short starts anew, in training too; 128 frames leave one start.
    for rng in (None, random.Random(0)):
        assert dense_centre_indices(40, 8, 16, rng=rng) == [0, 16, 32, 8, 24, 0, 16, 32]
        assert dense_centre_indices(1, 3, 16, rng=rng) == [0, 0, 0]
        assert dense_centre_indices(128, 8, 16, rng=rng)[0] == 0
    rng = random.Random(0)
    draws = [dense_centre_indices(20, 4, 4, rng=rng) for _ in range(300)]
    assert {draw[0] for draw in draws} == set(range(5))
    assert all(draw == list(range(draw[0], draw[0] + 16, 4)) for draw in draws)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: uniform_indices(0, 8), "the video has 0"),
        (lambda: uniform_indices(8, 0), "the clip 0"),
        (lambda: dense_indices(8, 8, 0), "stride must be at least 1"),
        (lambda: dense_centre_indices(8, 8, 0), "stride must be at least 1"),
        (lambda: dense_indices(8, 8, 1, clip=2, num_clips=2), "clip must be one of 0 to 1, not 2"),
    ],
)
def test_impossible_request(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
