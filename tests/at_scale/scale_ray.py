"""Jobs on one Ray, one after another, in a program of their own: `python -m tests.at_scale.scale_ray LIST FOLDER`.

Prints a JSON object of what happened before the last job, in which it is killed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2clip import cli
from m2clip.at_scale import RayCluster
from m2clip.data.clips import ClipSettings
from m2clip.errors import InputError
from tests.at_scale import scale

VIEWS = ClipSettings(num_frames=scale.FRAMES, size=48, clips=2)


class Killer:
    """As `progress`: kills all of Ray's workers, once, when the first videos are done."""

    def __init__(self) -> None:
        self.killed: list[str] = []
        self.begun: int | None = None  # videos that were done before

    def __call__(self, done: int, total: int) -> None:
        self.begun = done if self.begun is None else self.begun
        if self.killed or done == self.begun:
            return
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if title.startswith(("ray::IDLE", "ray::Map")) and _is_ours(int(folder.name)):
                os.kill(int(folder.name), signal.SIGKILL)
                self.killed.append(title.strip("\0 "))


def _is_ours(pid: int) -> bool:
    """Whether a process descends from this one."""
    while pid > 1:
        if pid == os.getpid():
            return True
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pid = int(fields[1])
    return False


def run_command(listed: Path, folder: Path) -> int:
    """`m2clip label --ray`, which starts a Ray of its own and ends it; what is printed goes to two files."""
    words = ["label", listed, folder / "command", "--clip", "tiny", "--frames", scale.FRAMES, "--labels", *scale.NAMES]
    words += ["--shard-size", 4, "--batch-size", 3, "--no-isolate", "--json", "--ray"]
    kept = [os.dup(number) for number in (1, 2)]
    for number, name in ((1, "out.txt"), (2, "err.txt")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    try:
        return cli.main([str(word) for word in words])
    finally:
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)


def main(listed: Path, folder: Path) -> None:
    import ray

    facts: dict[str, Any] = {"code": run_command(listed, folder), "ended": not ray.is_initialized()}
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    cluster = RayCluster()
    facts["pids"] = [process.process.pid for process in _processes()]

    # What another executor had begun, with the workers for decoding and for the model killed in between.
    killer = Killer()
    scale.run("label", listed, folder / "begun", cluster, progress=killer)
    facts["killed"] = killer.killed
    scale.run("features", listed, folder / "features", cluster, views=VIEWS)
    try:
        settings = replace(scale.SETTINGS, on_error="raise")
        scale.run("label", listed, folder / "raised", cluster, settings=settings)
    except InputError as error:
        facts["raised"] = str(error)
    facts["still connected"] = ray.is_initialized()
    print(json.dumps(facts), flush=True)
    scale.dying("during", 2)
    scale.run("label", listed, folder / "killed", cluster)


def _processes() -> list[Any]:
    """The server processes of the Ray that was started here."""
    import ray

    started = ray._private.worker._global_node.all_processes
    return [process for several in started.values() for process in several]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
