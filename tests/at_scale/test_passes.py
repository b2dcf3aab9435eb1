"""Which videos share a forward pass, and packs as lists of videos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m2clip.at_scale.passes import assemble, pass_shape, passes
from m2clip.data.clips import ClipSettings
from m2clip.errors import InputError
from tests.at_scale.scale import (
    run,
    table,
)
from tests.commands.calls import call
from tests.data.video_files import write_video


def test_a_video_keeps_its_place_in_a_pass() -> None:
    for size in (1, 3, 4):
        for part in (range(4), range(4, 8), range(8, 9), range(5, 6)):
            found = list(passes(part, size))
            assert [index for positions in found for index in positions] == list(part)
            for positions in found:
                assert len({index // size for index in positions}) == 1


def test_packs_are_read_and_told_from_their_videos(capfd, tmp_path: Path) -> None:
    for number in range(5):
        write_video(tmp_path / "videos" / "sport" / f"{number}.mp4", num_frames=4)
    assert call(capfd, "pack", tmp_path / "videos", tmp_path / "pack", "--workers", 1)[0] == 0
    for name in ("videos", "pack"):
        assert run("label", tmp_path / name, tmp_path / f"{name}_out").failures == []
        rows = table(tmp_path / f"{name}_out", "labels.csv")
        assert [Path(row["path"]).name for row in rows] == [f"{number}.mp4" for number in range(5)]
    with pytest.raises(InputError, match=r"other settings: list.packed \(None there, '\w+' here\);"):
        run("label", tmp_path / "pack", tmp_path / "videos_out")


def test_the_views_of_a_video_that_has_a_pass_to_itself_are_not_copied() -> None:
    views = ClipSettings(num_frames=2, size=4, clips=3)
    video = torch.rand(pass_shape(views, 1)[1:])
    batch, errors = assemble([(7, video)], views, 1)
    assert batch.data_ptr() == video.data_ptr() and batch.shape == pass_shape(views, 1) and not errors
    batch, errors = assemble([(7, "broken")], views, 1)
    assert not batch.any() and errors == {7: "broken"}
