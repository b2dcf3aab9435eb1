"""Packs whose manifest, index or shards were damaged: the stored frames, or one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2clip.data.clips import ClipSettings, load_views
from m2clip.data.lists.annotations import load_annotations
from m2clip.data.packs.frames import subset_text
from m2clip.data.packs.pack import pack
from m2clip.data.packs.settings import PackSettings
from tests.data.video_files import write_video
from tests.fuzz.mutations import attempt, cases, mutated, mutated_json

SETTINGS = ClipSettings(num_frames=2, size=16)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packs")
    for name in ("jump", "run"):
        write_video(folder / "videos" / name / "0.mp4", num_frames=6, size=(48, 32))
    pack(load_annotations(folder / "videos"), folder / "whole", PackSettings(frames=3, shard_videos=1), workers=1)
    items = load_annotations(folder / "whole").items
    (folder / "whole" / "subset.json").write_text(subset_text(items))
    return folder / "whole"


@cases(0.08)
@given(st.data())
def test_damaged_packs(packed: Path, data: st.DataObject) -> None:
    made = packed.with_name("copy")
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(packed, made)
    files = sorted(path.relative_to(packed) for path in packed.rglob("*") if path.is_file())
    name = data.draw(st.sampled_from(files))
    content = (packed / name).read_bytes()
    changes = mutated((content,))
    if name.suffix == ".json":
        changes = mutated_json((json.loads(content),)) | changes
    (made / name).write_bytes(data.draw(changes))
    source = made / name if name.name == "subset.json" else made

    def reading() -> None:
        for item in load_annotations(source, format="shards").items:
            assert load_views(item, SETTINGS).shape == (1, 2, 3, 16, 16)

    attempt("packs", reading)
