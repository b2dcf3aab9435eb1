"""The built-in data set: what its clips show, what they must not give away, and how they are written."""

from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pytest
import torch

from m2clip.data.built_in import motion
from m2clip.data.built_in.motion import (
    BASE_CLASSES,
    CLASSES,
    MOTIONS,
    NOVEL_CLASSES,
    SHAPES,
    MotionClass,
    clip_seed,
    draw_path,
    render_clip,
    render_dataset,
)
from m2clip.data.built_in.rendered_set import FPS, write_clip
from m2clip.errors import InputError

REVERSED = [
    ("moving left", "moving right"),
    ("moving up", "moving down"),
    ("growing", "shrinking"),
    ("spinning clockwise", "spinning counterclockwise"),
    ("fading in", "fading out"),
]


def one(shape: str, motion_name: str) -> MotionClass:
    return next(c for c in CLASSES if (c.shape, c.motion) == (shape, motion_name))


def shape_mask(clip: np.ndarray) -> np.ndarray:
    """Pixels brighter than any background (its brightest channel stays below 0.45)."""
    return clip.max(axis=3) > 0.5 * 255


@pytest.mark.parametrize("forward, backward", REVERSED)
def test_reverse_motion_is_the_clip_backwards(forward, backward):
    for seed, shape in enumerate(SHAPES):
        clip, reverse = (render_clip(one(shape, name), seed) for name in (forward, backward))
        assert np.array_equal(clip[::-1], reverse)
        assert not np.array_equal(clip, reverse)


def test_motions_go_where_their_names_say():
    at = np.arange(motion.SIZE)
    for seed in range(4):
        for name, axis, sign in (
            ("moving left", 1, -1),
            ("moving right", 1, 1),
            ("moving up", 0, -1),
            ("moving down", 0, 1),
        ):
            # A seed with an opaque shape: its pixels can be told from the background by brightness.
            clips = (render_clip(one("circle", name), 100 * seed + i) for i in range(100))
            mask = next(m for m in map(shape_mask, clips) if m.sum(axis=(1, 2)).min() > 100)
            profile = mask.sum(axis=2 - axis)
            centre = (profile * at).sum(axis=1) / profile.sum(axis=1)
            # Parts of the shape beyond the frame's edge pull the visible centre inwards.
            assert sign * (centre[-1] - centre[0]) > 0.3 * motion.SIZE
        clips = (render_clip(one("square", "growing"), 100 * seed + i) for i in range(100))
        mask = next(m for m in map(shape_mask, clips) if m.sum(axis=(1, 2)).min() > 60)
        area = mask.sum(axis=(1, 2))
        assert area[-1] > 2 * area[0]


def test_clockwise_turns_the_dot_clockwise_on_the_screen():
    look = motion.draw_looks(np.random.default_rng(0), np.array([0]))
    look.colour[:] = 1.0
    look.stripes[:] = 0.0
    angle = np.deg2rad([0.0, 90.0])
    rest = {name: np.full(2, value) for name, value in (("x", 32.0), ("y", 32.0), ("radius", 20.0), ("alpha", 1.0))}
    frames = motion.render(look, motion.Pose(**rest, angle=angle, drift_x=np.zeros(2), drift_y=np.zeros(2)))
    inside = np.hypot(*np.mgrid[-31.5:32.5, -31.5:32.5]) < 16
    dark = [np.argwhere(inside & (frame.max(axis=2) < 60)).mean(axis=0) - 31.5 for frame in frames]
    assert dark[0][1] > 5 and abs(dark[0][0]) < 1
    assert dark[1][0] > 5 and abs(dark[1][1]) < 1
    start, end = draw_path("angle", np.random.default_rng(0), 1000)
    assert (end > start).all()


def test_paths_are_long_enough_to_see_and_short_enough_to_follow():
    rng = np.random.default_rng(0)
    for axis in ("x", "y"):
        start, end = draw_path(axis, rng, 5000)
        assert (end - start).min() >= 0.4 * motion.SIZE
        assert start.min() >= 12 and end.max() <= motion.SIZE - 12
    start, end = draw_path("radius", rng, 5000)
    assert (end / start).min() >= 1.7
    start, end = draw_path("angle", rng, 5000)
    assert np.rad2deg(end - start).min() >= 150
    # A square seen in eight frames must not seem to turn the other way.
    assert np.rad2deg(end - start).max() / 7 <= 30
    start, end = draw_path("alpha", rng, 5000)
    assert (end - start).min() >= 0.4 and start.min() >= 0.35 and end.max() <= 1


def frame_features(frames: np.ndarray) -> np.ndarray:
    """Tiny-CLIP features and 8x8 pixels of single frames, standardised, with a constant."""
    from m2clip.towers.tiny import tiny_clip

    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    small = torch.nn.functional.interpolate(images, size=(48, 48), mode="bilinear", antialias=True)
    model = tiny_clip()
    with torch.inference_mode():
        embedded = torch.cat([model.encode_image(part) for part in (4 * small - 2).split(500)])
    pixels = torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)
    x = torch.cat([embedded, pixels], 1).double().numpy()
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def ridge_accuracy(x: np.ndarray, labels: np.ndarray, train: int) -> float:
    targets = np.eye(labels.max() + 1)[labels]
    gram = x[:train].T @ x[:train] + 10.0 * np.eye(x.shape[1])
    scores = x[train:] @ np.linalg.solve(gram, x[:train].T @ targets[:train])
    return float((scores.argmax(axis=1) == labels[train:]).mean())


def test_a_single_frame_does_not_tell_the_motion_though_it_tells_the_shape():
    rng = np.random.default_rng(0)
    clips, train = 1600, 1100
    picked = rng.integers(len(CLASSES), size=clips)
    frames = []
    for seed, index in enumerate(picked):
        clip = render_clip(CLASSES[index], seed)
        frames.append(clip[rng.integers(len(clip))])
    x = frame_features(np.stack(frames))
    motions = np.array([MOTIONS.index(CLASSES[i].motion) for i in picked])
    shapes = np.array([SHAPES.index(CLASSES[i].shape) for i in picked])
    chance, tested = 1 / len(MOTIONS), clips - train
    # The 99.9 % quantile of the binomial distribution, in its normal approximation.
    bound = chance + 3.09 * np.sqrt(chance * (1 - chance) / tested)
    assert ridge_accuracy(x, motions, train) < bound
    assert ridge_accuracy(x, shapes, train) > 0.5


def test_poses_of_random_frames_have_one_distribution_for_all_motions(monkeypatch):
    """Compare each quantity's distribution when it is animated with the one when it rests."""
    poses = []
    monkeypatch.setattr(motion, "render", lambda look, pose: poses.append(pose) or np.zeros((len(pose.x), 1)))
    rng = np.random.default_rng(0)
    for quantity in motion.QUANTITIES:
        samples = {}
        for name in ("moving right", "moving down", "growing", "spinning clockwise", "fading in"):
            poses.clear()
            for seed in range(800):
                render_clip(one("circle", name), seed)
            values = [getattr(p, quantity) for p in poses]
            samples[name] = np.array([v[rng.integers(len(v))] for v in values])
            if quantity == "angle":
                samples[name] = samples[name] % (2 * np.pi)
            moves = np.mean([np.ptp(v) > 0 for v in values])
            assert moves == (motion._ANIMATES[name][0] == quantity)
        animated = next(n for n in samples if motion._ANIMATES[n][0] == quantity)
        for name in samples.keys() - {animated}:
            a, b = np.sort(samples[animated]), np.sort(samples[name])
            grid = np.concatenate([a, b])
            gap = np.abs(np.searchsorted(a, grid, "right") - np.searchsorted(b, grid, "right")).max() / len(a)
            # Kolmogorov-Smirnov at the 0.01 % level: twenty comparisons are made.
            assert gap < 2.23 * np.sqrt(2 / len(a)), (quantity, name)


def test_base_and_novel_classes_are_balanced():
    assert len(CLASSES) == 60 and len(BASE_CLASSES) == 40 and len(NOVEL_CLASSES) == 20
    assert set(Counter(c.motion for c in BASE_CLASSES).values()) == {4}
    assert set(Counter(c.motion for c in NOVEL_CLASSES).values()) == {2}
    assert set(Counter(c.shape for c in BASE_CLASSES).values()) <= {6, 7}
    assert set(Counter(c.shape for c in NOVEL_CLASSES).values()) <= {3, 4}
    assert len({c.name for c in CLASSES}) == 60
    assert [c.id for c in BASE_CLASSES] == list(range(40)) and [c.id for c in NOVEL_CLASSES] == list(range(20))


def test_seeds_are_all_different():
    seeds = {clip_seed(0, split, c, n) for split in ("train", "val") for c in CLASSES for n in range(50)}
    assert len(seeds) == 2 * 60 * 50
    assert min(seeds) >= 0 and max(seeds) < 2**63


def test_a_written_clip_decodes_to_what_was_rendered(tmp_path):
    av = pytest.importorskip("av")
    for c in CLASSES[::13]:
        clip = render_clip(c, 3)
        path = tmp_path / f"{c.slug}.mp4"
        write_clip(path, clip)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
            assert stream.average_rate == FPS
            decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
        assert decoded.shape == clip.shape and 16 <= len(clip) <= 24
        # yuv420p halves the resolution of the colours, which is most of this error.
        assert np.abs(decoded.astype(int) - clip).mean() < 8
    assert len(list(tmp_path.iterdir())) == 5


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    pytest.importorskip("av")
    return render_dataset(tmp_path_factory.mktemp("set"), {"train": 1, "val": 1}, seed=5, workers=0)


def test_lists_name_existing_clips_of_the_right_class(rendered):
    for name, classes in (("base", BASE_CLASSES), ("novel", NOVEL_CLASSES)):
        with (rendered / f"{name}_classes.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(int(r["id"]), r["name"]) for r in rows] == [(c.id, c.name) for c in classes]
        for split in ("train", "val") if name == "base" else ("val",):
            lines = [line.split(" ") for line in (rendered / f"{name}_{split}.txt").read_text().splitlines()]
            assert len(lines) == len(classes)
            for path, label in lines:
                assert (rendered / path).is_file()
                assert path.split("/")[1:3] == [split, classes[int(label)].slug]


def test_rendering_again_restores_missing_clips_only(rendered):
    clips = sorted(rendered.rglob("*.mp4"))
    assert len(clips) == 40 + 40 + 20
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in clips}
    lists = {p: p.read_bytes() for p in rendered.glob("*.*")}
    clips[7].unlink()
    calls = []
    render_dataset(
        rendered, {"train": 1, "val": 1}, seed=5, workers=0, progress=lambda done, all_: calls.append((done, all_))
    )
    assert calls == [(99, 100), (100, 100)]
    assert clips[7].read_bytes() == before[clips[7]][1]
    assert all(p.stat().st_mtime_ns == before[p][0] for p in clips if p != clips[7])
    assert sorted(rendered.rglob("*.mp4")) == clips
    assert {p: p.read_bytes() for p in rendered.glob("*.*")} == lists


def test_a_stopped_write_leaves_no_clip(tmp_path):
    pytest.importorskip("av")
    clip = render_clip(CLASSES[0], 0).astype(np.float64)
    with pytest.raises(Exception, match="float64|dtype"):
        write_clip(tmp_path / "clip.mp4", clip)
    assert not (tmp_path / "clip.mp4").exists()


def test_processes_render_the_same_clips(rendered, tmp_path):
    for path in rendered.rglob("*.mp4"):
        copy = tmp_path / path.relative_to(rendered)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    again = sorted(tmp_path.rglob("*.mp4"))[::25]
    for path in again:
        path.unlink()
    render_dataset(tmp_path, {"train": 1, "val": 1}, seed=5, workers=2)
    for path in again:
        assert path.read_bytes() == (rendered / path.relative_to(tmp_path)).read_bytes()


def test_bad_requests_are_refused(rendered, tmp_path):
    with pytest.raises(InputError, match="another seed"):
        render_dataset(rendered, {"train": 1, "val": 1}, seed=6, workers=0)
    for counts in ({"train": 1}, {"train": 0, "val": 1}, {"train": 1, "val": 1, "test": 1}):
        with pytest.raises(InputError, match="positive number"):
            render_dataset(tmp_path, counts)
