"""Labels and features on Ray: the same files as without it, whatever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from m2clip.at_scale import RayCluster
from m2clip.errors import InputError
from tests.at_scale import scale
from tests.at_scale.scale import VIDEOS, content, killed, run
from tests.at_scale.scale_ray import VIEWS

# Ray starts in seconds, but not on a machine that is busy with something else.
pytestmark = pytest.mark.timeout(900)
pytest.importorskip("ray", reason="Ray is not installed")
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scale.write_list(tmp_path_factory.mktemp("scale"))


@pytest.fixture(scope="module")
def session(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder in which `tests.at_scale.scale_ray` worked until it was killed, and what it told."""
    folder = tmp_path_factory.mktemp("ray")
    killed(lambda: run("label", listed, folder / "begun"), "during", 1)
    line = [sys.executable, "-m", "tests.at_scale.scale_ray", str(listed), str(folder)]
    found = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert found.returncode == -9, found.stderr
    return folder, json.loads(found.stdout)


@pytest.fixture(scope="module")
def whole(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without Ray."""
    folder = tmp_path_factory.mktemp("whole")
    run("label", listed, folder / "label")
    run("features", listed, folder / "features", views=VIEWS)
    return folder


def test_ray_finishes_what_another_began(session: tuple[Path, Any], whole: Path) -> None:
    folder, facts = session
    assert any("_Scorer" in title for title in facts["killed"])  # the actor died on the way
    assert content(folder / "begun") == content(whole / "label")


def test_features_are_equal_to_the_bit(session: tuple[Path, Any], whole: Path) -> None:
    assert content(session[0] / "features") == content(whole / "features")


def test_another_finishes_what_ray_began(session: tuple[Path, Any], whole: Path, listed: Path) -> None:
    folder = session[0] / "killed"
    assert len(list((folder / "parts").glob("label-*"))) == 2
    run("label", listed, folder)
    assert content(folder) == content(whole / "label")


def test_on_error_raise(session: tuple[Path, Any]) -> None:
    facts = session[1]
    assert "--on-error skip continues" in facts["raised"] and "\n" not in facts["raised"]
    assert facts["still connected"]  # a Ray that others have started is not ended


def test_a_killed_program_leaves_no_ray_behind(session: tuple[Path, Any]) -> None:
    pids = session[1]["pids"]
    assert pids
    end = time.monotonic() + 60
    while alive := [pid for pid in pids if _alive(pid)]:
        assert time.monotonic() < end, alive
        time.sleep(0.2)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_command_starts_ray_itself_and_prints_nothing_of_it(session: tuple[Path, Any]) -> None:
    folder, facts = session
    assert (facts["code"], facts["ended"]) == (0, True)
    assert (folder / "err.txt").read_text() == ""
    assert json.loads((folder / "out.txt").read_text())["videos"] == VIDEOS
    scale.check_complete(folder / "command")


def test_ray_and_torchrun_exclude_each_other(listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="either torchrun or Ray"):
        run("label", listed, tmp_path / "out", RayCluster())
    assert not (tmp_path / "out").exists()


def test_address_without_a_cluster() -> None:
    with pytest.raises(InputError, match=r"no Ray cluster at 127.0.0.1:9: Connection refused"):
        RayCluster("127.0.0.1:9")
