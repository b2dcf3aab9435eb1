"""Folders of videos: what is taken, in which order, what is left out and said, and what is refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from m2clip.at_scale import read_videos
from m2clip.data.lists.annotations import Annotations, load_annotations
from m2clip.data.lists.class_names import natural_key
from m2clip.data.lists.suffixes import CONTAINERS, VIDEO_SUFFIXES
from m2clip.data.video.readers import open_video
from m2clip.errors import InputError, Notice


def make(top: Path, *names: str) -> Path:
    """Empty files, and folders where a name ends in a slash."""
    for name in names:
        path = top / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return top


def pairs(found: Annotations, top: Path) -> list[tuple[str, int]]:
    return [(item.path.relative_to(top).as_posix(), item.label) for item in found.items]


def noticed(read: Callable[[], object]) -> tuple[object, list[Notice]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read()
    return found, [one.message for one in caught if isinstance(one.message, Notice)]


pytestmark = pytest.mark.filterwarnings("ignore::m2clip.errors.Notice")

# ---- what is taken ----

# How to write each container: FFmpeg's name of the writer, the codec, and a picture size that it has.
WRITERS = {
    "mov": ("mp4", "mpeg4"),
    "matroska": ("matroska", "mpeg4"),
    "avi": ("avi", "mpeg4"),
    "mpegts": ("mpegts", "mpeg2video"),
    "mpeg": ("vob", "mpeg2video"),
    "mpegvideo": ("mpeg2video", "mpeg2video"),
    "asf": ("asf", "msmpeg4"),
    "flv": ("flv", "flv"),
    "ogg": ("ogg", "libvpx"),
    "gif": ("gif", "gif"),
    "apng": ("apng", "apng"),
    "dv": ("dv", "dvvideo"),
    "mxf": ("mxf", "mpeg2video"),
    "rm": ("rm", "rv10"),
    "nut": ("nut", "mpeg4"),
    "wtv": ("wtv", "mpeg2video"),
    "swf": ("swf", "flv"),
    "ivf": ("ivf", "libvpx"),
    "mjpeg": ("mjpeg", "mjpeg"),
    "yuv4mpegpipe": ("yuv4mpegpipe", "rawvideo"),
    "h261": ("h261", "h261"),
    "h263": ("h263", "h263"),
    "h264": ("h264", "libx264"),
    "hevc": ("hevc", "libx265"),
    "obu": ("obu", "libsvtav1"),
}
NOT_WRITTEN = {"nsv", "vc1", "vvc"}  # FFmpeg reads them only
PIXELS = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p"}
SIZES = {"h261": (176, 144), "h263": (176, 144), "dv": (720, 576)}


def test_every_container_has_a_writer_or_cannot_be_written() -> None:
    assert set(WRITERS) | NOT_WRITTEN == set(CONTAINERS) and not set(WRITERS) & NOT_WRITTEN


@pytest.mark.parametrize("container", WRITERS)
def test_the_reader_opens_every_suffix(tmp_path: Path, container: str) -> None:
    writer, codec = WRITERS[container]
    size = SIZES.get(container, (64, 64))
    first = tmp_path / f"first{CONTAINERS[container][0]}"
    with av.open(str(first), "w", format=writer) as output:
        stream = output.add_stream(codec, 25, options={"x265-params": "log-level=none"} if codec == "libx265" else {})
        stream.width, stream.height, stream.pix_fmt = *size, PIXELS.get(container, "yuv420p")
        for seed in range(5):
            picture = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    for suffix in CONTAINERS[container]:
        with open_video(first.rename(tmp_path / f"clip{suffix.upper()}")) as video:
            first = video.path
            assert video.num_frames == 5 and video.read([0, 4]).shape[:3] == (2, 3, size[1])


def test_all_suffixes_in_any_case(tmp_path: Path) -> None:
    names = [f"jump/{number}{suffix.upper()}" for number, suffix in enumerate(sorted(VIDEO_SUFFIXES))]
    found = load_annotations(make(tmp_path, *names, "run/v.mp4"))
    assert len(found) == len(VIDEO_SUFFIXES) + 1
    assert len(read_videos(tmp_path)) == len(found)


def test_pictures_that_move_are_videos(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 90, 180)]
    make(tmp_path, "jump/", "run/v1/", "run/v2/")
    pictures[0].save(tmp_path / "jump/a.webp", save_all=True, append_images=pictures[1:])
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"run/v1/{number}.webp")
        picture.save(tmp_path / f"run/v2/{number}.jpg")
    expected = [("jump/a.webp", 0), ("run/v1", 1), ("run/v2", 1)]
    assert pairs(load_annotations(tmp_path), tmp_path) == expected
    assert [item.path for item in read_videos(tmp_path)] == [tmp_path / name for name, _ in expected]


def test_nested_and_mixed(tmp_path: Path) -> None:
    names = (
        "jump/v.mp4",
        "jump/p1/v.mp4",
        "jump/p1/day/w.mp4",
        "jump/p2/f/0001.jpg",
        "jump/p2/f/0002.jpg",
        "run/v.avi",
    )
    found = load_annotations(make(tmp_path, *names, "jump/cover.png", "jump/p1/cover.png"))
    taken = ["jump/p1/day/w.mp4", "jump/p1/v.mp4", "jump/p2/f", "jump/v.mp4", "run/v.avi"]
    assert pairs(found, tmp_path) == [(name, int(name.startswith("run"))) for name in taken]
    assert [item.path for item in read_videos(tmp_path)] == [tmp_path / name for name in taken]


def test_frames_of_one_video_and_of_several(tmp_path: Path) -> None:
    make(tmp_path, "v0/0001.jpg", "v0/thumbs/0001.jpg", "v1/0001.jpg", "cover.jpg")
    assert [item.path for item in read_videos(tmp_path)] == [tmp_path / "v0", tmp_path / "v1"]
    assert [item.path for item in read_videos(tmp_path / "v1")] == [tmp_path / "v1"]


# ---- classes ----


@pytest.mark.parametrize(
    "names",
    [
        ["0", "1", "2", "10", "11"],
        ["class1", "class2", "class10"],
        ["a", "a1b9", "a1b10", "a2", "ab"],
        ["01", "1", "2"],
        ["Zumba", "apply eye", "jump"],  # without numbers as Python sorts them
    ],
)
def test_natural_order(tmp_path: Path, names: list[str]) -> None:
    assert sorted(set(names), key=natural_key) == names
    if names[0] == "01":
        return
    found = load_annotations(make(tmp_path, *(f"{name}/v.mp4" for name in names)))
    assert found.class_names == names and [item.label for item in found.items] == list(range(len(names)))


def test_names_decide_where_they_are_given(tmp_path: Path) -> None:
    make(tmp_path, "10/v.mp4", "2/v.mp4", "Wave_Hand/v.mp4", "notes/read.txt")
    found = load_annotations(tmp_path, class_names=["wave hand", "10", "2", "none of it"])
    assert pairs(found, tmp_path) == [("2/v.mp4", 2), ("10/v.mp4", 1), ("Wave_Hand/v.mp4", 0)]
    with pytest.raises(InputError, match="class '10' is not among the 1 class names"):
        load_annotations(tmp_path, class_names=["2"])


def test_a_class_without_videos_keeps_its_number(tmp_path: Path) -> None:
    make(tmp_path, "a/v.mp4", "b/", "c/.DS_Store", "d/v.mp4")
    found, notices = noticed(lambda: load_annotations(tmp_path))
    assert isinstance(found, Annotations)
    assert found.class_names == ["a", "b", "c", "d"] and pairs(found, tmp_path) == [("a/v.mp4", 0), ("d/v.mp4", 3)]
    assert [str(one) for one in notices] == [
        f"{tmp_path}: left out hidden or system files (1); classes without a video: b, c"
    ]


def test_a_split_is_a_folder_above(tmp_path: Path) -> None:
    make(tmp_path, "train/run/a.mp4", "val/run/b.mp4", "val/walk/c.mp4")
    assert pairs(load_annotations(tmp_path, split="val"), tmp_path) == [("val/run/b.mp4", 0), ("val/walk/c.mp4", 1)]


# ---- what is left out ----

LITTER = (
    "._v.mp4",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "__MACOSX/a/v.mp4",
    "@eaDir/v.mp4/t.jpg",
    "#recycle/w.mp4",
)
LITTER += ("$RECYCLE.BIN/w.mp4", "lost+found/w.mp4", ".ipynb_checkpoints/w.mp4", "System Volume Information/w.mp4")


@pytest.mark.parametrize("where", ["", "jump/", "jump/p1/"])
def test_litter_is_counted_and_no_class(tmp_path: Path, where: str) -> None:
    make(tmp_path, "jump/v.mp4", "run/v.mp4", *(where + name for name in LITTER))
    for read in (lambda: load_annotations(tmp_path).items, lambda: read_videos(tmp_path)):
        found, notices = noticed(read)
        assert [item.path.parent.name for item in found] == ["jump", "run"]  # type: ignore[attr-defined]
        assert [str(one) for one in notices] == [f"{tmp_path}: left out hidden or system files ({len(LITTER)})"]
        assert notices[0].facts["left_out"]["counts"] == {"hidden or system files": len(LITTER)}  # type: ignore[index]


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    make(tmp_path, "a/v.mp4", "a/v.JSON", "a/w.json", "a/README", "a/cover.jpg", "b/v.mp4", "loose.mp4", "list.csv")
    found, notices = noticed(lambda: load_annotations(tmp_path))
    assert len(found) == 2  # type: ignore[arg-type]
    said = str(notices[0])
    for part in (
        ".json (2)",
        "files without suffix (1)",
        "pictures (1)",
        "outside of class folders (1)",
        ".csv (1)",
    ):
        assert part in said
    assert (
        "\n" not in said and noticed(lambda: load_annotations(make(tmp_path / "clean", "a/v.mp4", "b/v.mp4")))[1] == []
    )


def test_links_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "pool/w.mp4", "set/a/v.mp4", "set/b/deep/x.mp4")
    top = tmp_path / "set"
    for link, target in {
        "set/a/pool": "pool",  # videos elsewhere
        "set/c": "pool",  # a class elsewhere
        "set/b/up": "set",  # a loop
        "set/b/again": "set/b/deep",  # the same twice
        "set/loop": "set",
        "pool/home": "set",  # a loop through a linked folder
    }.items():
        (tmp_path / link).symlink_to(tmp_path / target, target_is_directory=True)
    (top / "a/self.mp4").symlink_to(top / "a/self.mp4")
    (top / "a/self").symlink_to("self")
    found, notices = noticed(lambda: load_annotations(top))
    # A link that leads to nothing is a video that cannot be read, as of a data set that was not fetched.
    taken = [("a/pool/w.mp4", 0), ("a/self.mp4", 0), ("a/v.mp4", 0), ("b/deep/x.mp4", 1), ("c/w.mp4", 2)]
    assert pairs(found, top) == taken  # type: ignore[arg-type]
    assert "folders linked again (5)" in str(notices[0])
    assert [item.path.relative_to(top).as_posix() for item in read_videos(top)] == [
        name for name, _ in taken if not name.startswith("c/")
    ]


# ---- what is refused ----

REFUSED = {
    "nothing": ([], "found nothing"),
    "videos without classes": (
        ["a.mp4", "b.mp4"],
        r"found videos outside of class folders \(2\).*m2clip label",
    ),
    "splits": (["train/run/a.mp4", "val/run/b.mp4"], "folders train, val are named as splits.*--split train"),
    "folds": (["fold1/run/a.mp4", "fold_2/run/b.mp4"], "folders fold1, fold_2 are named as splits"),
    "a split beside classes": (["val/run/a.mp4", "run/a.mp4", "walk/b.mp4"], "folders val are named as splits"),
    "one split": (["test/run/a.mp4", "test/walk/b.mp4"], "named as splits"),
    "numbered splits": (["train_256/a/v.mp4", "val_256/a/v.mp4", "info/x.csv"], "named as splits"),
    "a folder too high": (
        ["UCF-101/a/v.mp4", "UCF-101/b/v.mp4", "info/x.txt"],
        "if these are the classes, give .*UCF-101",
    ),
    "frames too high": (["ucf/a/v/1.jpg", "ucf/b/v/1.jpg"], "if these are the classes, give .*ucf"),
    "frames without classes": (["v0/1.jpg", "v1/1.jpg"], r"folders \(v0, v1\) hold pictures themselves"),
    "no videos": (["a/x.npy", "b/y.npy", "b/.z"], r"no videos in its 2 class folders, found .npy \(2\), hidden"),
    "alike": (["Run/v.mp4", "run/v.mp4"], "'Run' and 'run' differ only in case"),
    "not UTF-8": ([os.fsdecode(b"a/\xff.mp4")], "is not UTF-8; rename it"),
    "a class not UTF-8": ([os.fsdecode(b"\xff/v.mp4")], "is not UTF-8; rename it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    names, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        load_annotations(make(tmp_path, *names))
    assert "\n" not in str(caught.value)


def test_paths_that_are_not_utf8(tmp_path: Path) -> None:
    make(tmp_path, os.fsdecode(b"b/\xff/v.mp4"), os.fsdecode(b"\xfe/a/v.mp4"))
    for read in (load_annotations, read_videos):
        for top in (tmp_path, tmp_path / os.fsdecode(b"\xfe")):
            with pytest.raises(InputError, match="file name b'.x..' is not UTF-8; rename it"):
                read(top)


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    make(tmp_path, "train/v.mp4", "bus/v.mp4")
    assert load_annotations(tmp_path).class_names == ["bus", "train"]
    make(tmp_path, "test/v.mp4")
    assert len(load_annotations(tmp_path, class_names=["train", "test", "bus"])) == 3


@pytest.mark.parametrize("closed", ["", "a", "a/p"])
def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
    make(tmp_path, "a/v.mp4", "a/p/v.mp4", "b/v.mp4")
    opened = os.scandir

    def scandir(path: Path) -> object:  # root may read everything
        if Path(path) == tmp_path / closed:
            raise PermissionError(13, "Permission denied")
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for read in (load_annotations, read_videos):
        with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
            read(tmp_path)


@pytest.mark.parametrize("read", [load_annotations, read_videos])
def test_paths_that_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for name, said in {
        "loop": "Too many levels",
        "none": "no such",
        "file/deep": "no such",
        "x" * 300: "File name too long",
        "a\0b": "no file has such a name",
    }.items():
        with pytest.raises(InputError, match=said) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        read(tmp_path)
