"""A small run, started as the command is but in processes that cost little to start, and what happens to them."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2clip.evaluate.tables import VALIDATION
from m2clip.files.kept_work import TABLES
from m2clip.train.state import list_checkpoints
from tests.train.training_run import read_losses

# Its server has imported everything already: a new process costs a fraction of a second and starts out clean.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["m2clip.train.trainer", "m2clip.cli", "open_clip", "torch.utils.tensorboard", "av"])
CLASSES, CLIPS = 4, 7
STEPS, EPOCHS = 21, 3


@dataclass(frozen=True)
class Accident:
    """Something that happens at the `count`-th time (from 1) that a process opens, renames or removes a file.

    Attributes:
        what: "kill" (-9), "SIGTERM", "SIGINT", "SIGSTOP", "full": no file can grow any more, or "wait": for ever and
            where no Python code runs, as for a collective on a GPU.
        where: a part of the file's path; "validation" is a forward pass of it, in place of a file.
        count: at which time.
    """

    what: str
    where: str
    count: int

    def happen(self, path: str) -> None:
        """Do it."""
        if self.what == "full":
            grows = path.endswith(("metrics.csv", "bad_videos.jsonl")) and os.path.isfile(path)
            size = os.path.getsize(path) if grows else 0
            # A few bytes more still go in, as on a disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        elif self.what == "wait":
            ctypes.CDLL(None).sleep(600)
        else:
            os.kill(os.getpid(), signal.SIGKILL if self.what == "kill" else signal.Signals[self.what])


def render(folder: Path) -> Path:
    """A few videos of four classes of the built-in set, two of them broken, and lists of them; returns the folder."""
    from m2clip.data.built_in.motion import BASE_CLASSES, draw_clip
    from m2clip.data.built_in.rendered_set import write_clip

    for split, clips in (("train", CLIPS), ("val", 2)):
        lines = []
        for label, of_class in enumerate(BASE_CLASSES[:CLASSES]):
            for number in range(clips):
                path = folder / f"{split}_{label}_{number}.mp4"
                write_clip(path, draw_clip(of_class, split, number, 0))
                lines.append(f"{path.name} {label}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    (folder / "train_1_3.mp4").write_bytes((folder / "train_1_3.mp4").read_bytes()[:200])
    (folder / "train_2_5.mp4").write_bytes(b"")
    (folder / "val_3_0.mp4").write_bytes(b"<html>not found</html>")
    names = [f"{label},{of_class.name}\n" for label, of_class in enumerate(BASE_CLASSES[:CLASSES])]
    (folder / "classes.csv").write_text("id,name\n" + "".join(names))
    return folder


def words(videos: Path, output: Path, *more: str) -> list[str]:
    """The command line: 3 epochs of 7 steps, a validation after each, a checkpoint after every second step."""
    chosen = {
        "data.train": videos / "train.txt",
        "data.val": videos / "val.txt",
        "data.classes": videos / "classes.csv",
        "data.num_frames": 2,
        "data.workers": 1,
        "model.options": "{width: 8, text_width: 8}",
        "optim.epochs": EPOCHS,
        "optim.batch_size": 4,
        "log_every": 1,
        "checkpoint_every": 2,
        "timeout": 60,
        "output": output,
    }
    return [
        *("train", "--config", "m2clip_demo", "--device", "cpu", "--json"),
        *(f"--{name}={value}" for name, value in chosen.items()),
        *(f"--{override}" for override in more),
    ]


def start(
    command: list[str], log: Path, accident: Accident | None = None, spoiled: tuple[int, ...] = (), **group: str
) -> Any:
    """A process that runs the command, with its output in a file.

    spoiled: training videos whose clips are not a number; group: what torchrun would tell the process.
    """
    process = PROCESSES.Process(target=_run, args=(command, log, accident, spoiled, group))
    process.start()
    return process


def run(command: list[str], log: Path, accident: Accident | None = None) -> int:
    """The exit code of a process that runs the command; minus a signal's number where that ended it."""
    process = start(command, log, accident)
    process.join(300)
    return int(process.exitcode)


def problems(log: Path) -> list[str]:
    """The lines that a run told, without its doubt that so few steps teach anything."""
    lines = log.read_text().splitlines()
    return [line for line in lines if "m2clip: " in line and "too few to learn from" not in line]


def let_compute(process: Any, seconds: float) -> float:
    """Wait until a process has computed for so long, or has ended; returns how long it has computed, in seconds."""
    used = 0.0
    while process.is_alive() and used < seconds:
        with suppress(OSError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        time.sleep(0.002)
    return used


def assert_same_result(folder: Path, other: Path) -> None:
    """Both runs ended with the same weights, to the last bit, the same rows, bad videos and validations."""
    assert read_losses(folder) == read_losses(other)
    for name in ("adapters.safetensors", "adapter_config.json", "bad_videos.jsonl"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    evaluations = sorted(path.name for path in other.glob("eval_*.json"))
    assert sorted(path.name for path in folder.glob("eval_*.json")) == evaluations and len(evaluations) == EPOCHS
    for name in evaluations:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    left = [path for path in folder.rglob("*") if path.name.endswith(".partial") or path.name.startswith(".")]
    # What tells the table of predictions from one that a user has changed.
    assert left == [folder / TABLES]
    assert (folder / VALIDATION).read_bytes() == (other / VALIDATION).read_bytes()


def _run(
    command: list[str], log: Path, accident: Accident | None, spoiled: tuple[int, ...], group: dict[str, str]
) -> None:
    import torch

    from m2clip import cli

    torch.set_num_threads(1)
    os.environ.update(group)
    _redirect(log)
    if accident is not None and accident.what == "full":
        sys.exit(_run_beside_a_log(command, accident))
    if accident is not None:
        _watch(accident, str(_output(command)))
    if spoiled:
        _spoil(spoiled)
    sys.exit(cli.main(command))


def _run_beside_a_log(command: list[str], accident: Accident) -> int:
    """Run the command with its output going through another process, whose files may grow."""
    from m2clip import cli

    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        for descriptor in (1, 2):
            os.dup2(writer.stdin.fileno(), descriptor)
        _watch(accident, str(_output(command)))
        try:
            code = cli.main(command)
            sys.stdout.flush()
        finally:
            # The other process ends with its input.
            for descriptor in (1, 2):
                os.close(descriptor)
    return code


def _spoil(indices: tuple[int, ...]) -> None:
    from m2clip.data.clips import ClipDataset

    original = ClipDataset._training_item

    def item(self: ClipDataset, epoch: int, index: int) -> dict[str, Any]:
        found = original(self, epoch, index)
        return {**found, "video": found["video"] * math.nan} if index in indices else found

    ClipDataset._training_item = item  # type: ignore[method-assign]


def _watch(accident: Accident, folder: str) -> None:
    main, seen = os.getpid(), 0
    if accident.where == "validation":
        from m2clip.evaluate import scoring as evaluate

        original = evaluate.score_views

        def score_views(*arguments: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == accident.count:
                accident.happen("")
            return original(*arguments)

        evaluate.score_views = score_views
        return

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") or os.getpid() != main:
            return
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes, os.PathLike)) else ""
        if path.startswith(folder) and accident.where in path:
            seen += 1
            if seen == accident.count:
                accident.happen(path)

    sys.addaudithook(hook)


def run_elastic(command: list[str], log: Path, deaths: list[int]) -> int:
    """The exit code of a process that runs the command in two processes under torchrun's agent, restarting them.

    Before the i-th restart process 1 kills itself where the run has a checkpoint of step `deaths[i]` or later.
    """
    process = PROCESSES.Process(target=_launch, args=(command, log, deaths))
    process.start()
    process.join(300)
    return int(process.exitcode)


def _launch(command: list[str], log: Path, deaths: list[int]) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _redirect(log)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        max_restarts=len(deaths),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        start_method="forkserver",
    )
    elastic_launch(config, _run_restarted)(command, log, deaths)


def _run_restarted(command: list[str], log: Path, deaths: list[int]) -> None:
    restart = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if os.environ["RANK"] == "1" and restart < len(deaths):
        threading.Thread(target=_die_after, args=(_output(command), deaths[restart]), daemon=True).start()
    _run(command, log, None, (), {})


def _die_after(folder: Path, step: int) -> None:
    wait_for(folder, step)
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(folder: Path, step: int, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until a run has a checkpoint of this step or a later one; its process must be alive until then."""
    while not any(_step(path) >= step for path in list_checkpoints(folder / "checkpoints")):
        assert alive()
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _output(command: list[str]) -> Path:
    return Path(next(word for word in command if word.startswith("--output="))[len("--output=") :])


def _redirect(log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
