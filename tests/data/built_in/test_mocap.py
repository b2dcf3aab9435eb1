"""The motion-capture data set: names that fit the recordings, clips that need their order, splits that do not meet."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="pip install 'm2clip[mocap]'")

from m2clip.data.built_in import mocap, mocap_render, motion  # noqa: E402
from m2clip.data.built_in.mocap import (
    ACTIONS,
    BASE_CLASSES,
    CLASSES,
    NOVEL_CLASSES,
    draw_camera,
    draw_shares,
    render_clip,
)
from m2clip.data.built_in.mocap_render import SIZE, Camera, load_recording, render_person  # noqa: E402
from m2clip.data.built_in.rendered_set import render_built_in  # noqa: E402
from m2clip.errors import InputError  # noqa: E402


def one(recording: str, reverse: bool = False) -> mocap.MocapClass:
    return next(c for c in CLASSES if (c.action.recording, c.reverse) == (recording, reverse))


def heading(poses: np.ndarray) -> np.ndarray:
    """Degrees that the person has turned to its right since the first pose, where it is upright enough to tell."""
    w, x, y, z = poses[:, 3:7].T
    ahead_x, ahead_z = 1 - 2 * (y * y + z * z), 2 * (x * z - w * y)
    angle = np.unwrap(np.arctan2(ahead_z, ahead_x)[np.hypot(ahead_x, ahead_z) > 0.4])
    return np.rad2deg(angle - angle[0])


def test_thirty_classes_of_which_ten_are_novel_with_both_their_directions():
    assert len(ACTIONS) == 15 and len(BASE_CLASSES) == 20 and len(NOVEL_CLASSES) == 10
    assert len({c.name for c in CLASSES}) == len({c.slug for c in CLASSES}) == 30
    for classes in (BASE_CLASSES, NOVEL_CLASSES):
        assert [c.id for c in classes] == list(range(len(classes)))
        assert set(Counter(c.action.recording for c in classes).values()) == {2}
    directions = {"forwards", "backwards", "left", "right"}
    words = {word for c in BASE_CLASSES for word in c.name.split()}
    assert directions <= words
    assert {word for c in NOVEL_CLASSES for word in c.name.split()} - words <= {
        *("running", "rolling", "doing", "back", "turn", "with")
    }


def test_names_say_what_the_recordings_show():
    poses = {action.recording: load_recording(action.recording).poses for action in ACTIONS}
    travelled = {name: p[-1, :3] - p[0, :3] for name, p in poses.items()}
    for action in ACTIONS:
        if action.names[0].endswith("forwards") or action.names[0].startswith("stepping forwards"):
            assert travelled[action.recording][0] > 0.7, action
        if action.names[0].startswith("getting up"):
            assert travelled[action.recording][1] > 0.6, action
        if action.sided and action.recording != "cartwheel":
            turned = heading(poses[action.recording])[-1]
            assert abs(turned) > 300 and ("right" in action.names[0]) == (turned > 0), action
        assert action.sided == ("left" in " ".join(action.names))
    assert travelled["cartwheel"][2] < -2  # the right hand points towards z: this is to the left
    assert travelled["backflip"][0] < -1 and np.ptp(poses["dance_b"][:, 0]) < 0.5


def test_a_class_and_its_reverse_are_the_same_clip_backwards():
    for number, action in enumerate(ACTIONS):
        clip, reverse = (render_clip(one(action.recording, r), "train", number) for r in (False, True))
        assert clip.dtype == np.uint8 and clip.shape[1:] == (SIZE, SIZE, 3) and 16 <= len(clip) <= 24
        assert np.array_equal(clip[::-1], reverse) and not np.array_equal(clip, reverse)


def test_both_directions_show_the_recording_and_its_mirror_image(monkeypatch):
    shown = []

    def note(poses, camera, mirrored, rng):
        shown.append((poses[0, 0] < poses[-1, 0], mirrored))
        return np.arange(len(poses))[:, None]

    monkeypatch.setattr(mocap, "render_person", note)
    seen = {}
    for recording in ("walk", "spin"):
        for reverse in (False, True):
            shown.clear()
            clips = [render_clip(one(recording, reverse), "train", seed) for seed in range(60)]
            seen[recording, reverse] = {(bool(c[0, 0] == 0), m) for c, (_, m) in zip(clips, shown, strict=True)}
    # As (plays forwards, mirrored).
    assert seen["walk", False] == {(True, False), (True, True)}
    assert seen["walk", True] == {(False, False), (False, True)}
    assert seen["spin", False] == {(True, False), (False, True)}
    assert seen["spin", True] == {(False, False), (True, True)}


def test_splits_share_no_camera_and_no_speed():
    rng = np.random.default_rng(0)
    sectors, played = {}, {}
    for split in ("train", "val"):
        azimuths = np.array([draw_camera(split, rng).azimuth for _ in range(2000)])
        assert abs(np.mean(azimuths > 0) - 0.5) < 0.05 and np.abs(azimuths).max() <= np.pi
        # The mirror image of a view is the view of the mirror image from the opposite side.
        sectors[split] = set(np.floor(np.abs(azimuths) / np.pi * mocap.SECTORS).astype(int))
        shares = [draw_shares(split, 16, cyclic, rng) for cyclic in (True, False) for _ in range(1000)]
        played[split] = np.array([s[-1] - s[0] for s in shares])
        assert max(s[-1] for s in shares[1000:]) <= 1 + 1e-9 and min(s[0] for s in shares) >= 0
    assert sectors["train"] | sectors["val"] == set(range(mocap.SECTORS))
    assert not sectors["train"] & sectors["val"]
    low, high = played["val"].min(), played["val"].max()
    assert not ((played["train"] > low - 0.005) & (played["train"] < high + 0.005)).any()


def test_recordings_are_interpolated_and_go_on_after_their_end():
    walk = load_recording("walk")
    shares = walk.times / walk.times[-1]
    at = walk.at(shares, cyclic=False)
    assert np.allclose(at[:, :3], walk.poses[:, :3])
    same = np.abs((at[:, 3:7] * walk.poses[:, 3:7]).sum(axis=1))
    assert np.allclose(same, 1, rtol=0, atol=2e-6)  # what was recorded has unit length to 7e-7
    long = walk.at(np.linspace(0, 2.9, 200), cyclic=True)
    steps = np.diff(long[:, 0])
    assert steps.min() > 0 and steps.max() < 0.05
    assert np.allclose(long[:, 1].max(), walk.poses[:, 1].max(), atol=0.01)
    for start in mocap_render._quaternions():
        assert np.allclose(np.linalg.norm(long[:, start : start + 4], axis=1), 1)


def test_the_person_is_in_the_picture_and_turns_with_the_camera():
    poses = load_recording("walk").at(np.linspace(0, 0.5, 4), cyclic=True)
    pictures = {}
    for side in (-1, 1):
        for mirrored in (False, True):
            camera = Camera(azimuth=side * np.pi / 2, elevation=0.1, distance=2.8, follow=0.0)
            rng = np.random.default_rng(3)
            pictures[side, mirrored] = render_person(poses, camera, mirrored, rng).astype(int)
    shape = next(iter(pictures.values())).shape
    # The background is the same in all four, and brighter than 0.45 nowhere.
    figure = {key: (picture.max(axis=3) > 0.5 * 255) for key, picture in pictures.items()}
    across = np.arange(SIZE)
    moved = {}
    for key, mask in figure.items():
        assert 0.01 < mask.mean() < 0.3, key
        assert (mask.any(axis=2).sum(axis=1) > 40).all(), "the whole body is seen"
        centre = (mask.sum(axis=1) * across).sum(axis=1) / mask.sum(axis=(1, 2))
        moved[key] = centre[-1] - centre[0]
    assert shape == (4, SIZE, SIZE, 3)
    # Seen from its right side a person walks to the right of the picture.
    assert moved[1, False] > 5 and moved[-1, False] < -5 and moved[1, True] < -5 and moved[-1, True] > 5


@pytest.fixture(scope="module")
def small():
    return replace(mocap.DATA_SET, base=BASE_CLASSES[:2], novel=NOVEL_CLASSES[:1])


@pytest.fixture(scope="module")
def rendered(small, tmp_path_factory):
    return small.render(tmp_path_factory.mktemp("set"), {"train": 1, "val": 1}, seed=5, workers=0)


def test_lists_and_videos(rendered):
    import av

    for part, classes in (
        ("base_train", BASE_CLASSES[:2]),
        ("base_val", BASE_CLASSES[:2]),
        ("novel_val", CLASSES[20:21]),
    ):
        lines = [line.split(" ") for line in (rendered / f"{part}.txt").read_text().splitlines()]
        assert [line[1] for line in lines] == [str(c.id) for c in classes]
        for (path, _), c in zip(lines, classes, strict=True):
            assert path.split("/")[2] == c.slug
            with av.open(str(rendered / path)) as container:
                frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
            split = part.split("_")[1]
            clip = mocap.draw_clip(c, split, 0, 5)
            assert len(frames) == len(clip) and np.abs(np.stack(frames).astype(int) - clip).mean() < 8
    assert (rendered / "novel_classes.csv").read_text() == "id,name\n0,a person running forwards\n"


def test_a_stopped_rendering_goes_on_in_other_processes(small, rendered):
    clips = sorted(rendered.rglob("*.mp4"))
    assert len(clips) == 5
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in clips}
    for gone in clips[1:3]:
        gone.unlink()
    calls = []
    small.render(
        rendered,
        {"train": 1, "val": 1},
        seed=5,
        workers=2,
        progress=lambda done, all_: calls.append((done, all_)),
    )
    assert calls == [(3, 5), (5, 5)]
    assert {p: p.read_bytes() for p in clips} == {p: content for p, (_, content) in before.items()}
    assert all(p.stat().st_mtime_ns == before[p][0] for p in (clips[0], *clips[3:]))


def test_folders_of_another_set_and_unknown_sets_are_refused(rendered, tmp_path):
    counts = {"train": 1, "val": 1}
    with pytest.raises(InputError, match="another seed"):
        render_built_in("mocap", rendered, counts, seed=6)
    with pytest.raises(InputError, match=r"another data set .*mocap\.json"):
        motion.render_dataset(rendered, counts, seed=5)
    with pytest.raises(InputError, match="motion, mocap"):
        render_built_in("kinetics", tmp_path, counts)


def test_without_pybullet_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pybullet_data", None)
    load_recording.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'm2clip\[mocap\]'"):
        mocap.render_dataset(tmp_path / "set", {"train": 1, "val": 1})
    assert not (tmp_path / "set").exists()


def test_nothing_is_printed_and_pybullet_is_imported_late():
    code = (
        "import sys; from m2clip.data.built_in import mocap; assert 'pybullet' not in sys.modules;"
        "mocap.render_clip(mocap.CLASSES[0], 'val', 0); assert 'pybullet' in sys.modules; print('done')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("done\n", "")
