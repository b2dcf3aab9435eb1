"""Computing on Ray Data: decoding in tasks on all CPUs of a cluster, the model in actors that load it once.

A row is a forward pass: what travels are the paths of its videos, then their frames as one tensor, then the results.
The program that was started collects these and writes the files; whatever Ray loses it computes again by itself.
"""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from m2clip.at_scale.passes import assemble, pass_shape, pass_size, passes, read_video, score_pass
from m2clip.at_scale.settings import Outcome, Work
from m2clip.data.clips import ClipSettings
from m2clip.errors import InputError
from m2clip.towers.precision import place


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster that is running, or one on this machine that is started for the job and ended with it.

    Where Ray is connected already, it is used as it is.

    Args:
        address: of a running cluster, on whose machines m2clip is installed and the videos can be read; "auto" finds
            it; None starts one here.
        actors: the most actors that hold the model; None has one for every GPU, or for every second CPU without GPUs.
        num_cpus: CPUs that the Ray that is started here may use; None leaves the choice to Ray.
        object_store_memory: bytes that it has for what travels; None leaves the choice to Ray.

    Raises:
        InputError: Ray is not installed, or nobody listens at the address.
    """

    address: str | None = None
    actors: int | None = None
    num_cpus: int | None = None
    object_store_memory: int | None = None

    def __post_init__(self) -> None:
        try:
            import ray.data  # noqa: F401
        except ImportError:
            raise InputError("Ray is not installed: pip install 'm2clip[ray]', or leave out --ray") from None
        if self.address is not None:
            _check_reachable(self.address)

    @property
    def process(self) -> tuple[int, int]:
        """One process; the others are Ray's."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("use either torchrun or Ray: Ray distributes the work by itself")
        return 0, 1

    def take(self, missing: int) -> int:
        """All: the actors load the model once."""
        return missing

    def compute(self, work: Work, parts: Sequence[int]) -> Generator[tuple[int, list[Outcome]], None, None]:
        """A part and the outcomes of some of its videos, for every forward pass, as Ray finishes them."""
        import ray

        size = pass_size(work.views, work.settings.batch_size)
        rows = [_row(work, number, positions) for number in parts for positions in passes(work.part(number), size)]
        # What Ray tells of its workers, it prints on standard output, which belongs to the results.
        with redirect_stdout(sys.stderr), _HeldBack() as held, self._connected():
            gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
            most = min(self.actors or gpus or max(1, cpus // 2), len(rows))
            frames = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _decode,
                fn_kwargs={"views": work.views, "size": size},
                batch_size=1,
                batch_format="numpy",
                num_cpus=1,
                # Tells Ray what the frames take, and so keeps it from moving the decoding into the actors.
                memory=4 * math.prod(pass_shape(work.views, size)),
            )
            results = frames.map_batches(
                _Scorer,
                # As bytes in Ray's store: every actor reads it once, and the tensors are copied once.
                fn_constructor_args=([ray.put(_packed(work))],),
                batch_size=1,
                batch_format="numpy",
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
                **({"num_gpus": 1} if gpus else {"num_cpus": 1}),
            )
            try:
                for row in results.iter_rows():
                    held.release()
                    yield row["part"], pickle.loads(row["outcomes"])
            except ray.exceptions.RayError as error:
                raise _cause(error) from error

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Ray, with nothing but its errors printed; what is started here is ended here."""
        import ray

        _quieten()
        ours = not ray.is_initialized()
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if ours and self.address is None:
                ray.init(
                    address="local",
                    num_cpus=self.num_cpus or max(2, os.cpu_count() or 2),  # one for decoding, one for the model
                    object_store_memory=self.object_store_memory,
                    include_dashboard=False,
                    **quiet,
                )
            elif ours:
                ray.init(address=self.address, **quiet)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"no Ray cluster at {self.address}: {' '.join(str(error).split())}") from None
        try:
            yield
        finally:
            if ours:
                ray.shutdown()


def _check_reachable(address: str) -> None:
    """InputError where nobody listens at host:port, for which Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"no Ray cluster at {address}: {error.strerror or error}") from None


def _row(work: Work, part: int, positions: range) -> dict[str, Any]:
    items = pickle.dumps([work.items[index] for index in positions])
    return {"part": part, "start": positions.start, "items": items}


def _packed(work: Work) -> bytes:
    """The job without its list."""
    return pickle.dumps(replace(work, items=()))


def _decode(batch: dict[str, np.ndarray], views: ClipSettings, size: int) -> dict[str, Any]:
    """The frames of one forward pass, (1, size, V, T, 3, H, W), and the errors as JSON."""
    start = int(batch["start"][0])
    items = pickle.loads(batch["items"][0])
    read = [(start + place, read_video(item, views)) for place, item in enumerate(items)]
    video, errors = assemble(read, views, size)
    return {
        "part": batch["part"],
        "start": batch["start"],
        "count": np.array([len(items)]),
        "video": video[None].numpy(),
        "errors": np.array([json.dumps(list(errors.items()))]),
    }


class _Scorer:
    """The model in an actor."""

    def __init__(self, shared: list[Any]) -> None:
        import ray

        self._work: Work = pickle.loads(ray.get(shared[0]))
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        self._model = place(self._work.model, device, self._work.settings.precision)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        # The actor was given one CPU. In the constructor it would be said for another thread than this one.
        torch.set_num_threads(1)
        start, count = int(batch["start"][0]), int(batch["count"][0])
        video = torch.tensor(batch["video"][0])  # a copy, as Ray's memory may be read only
        errors = dict(json.loads(str(batch["errors"][0])))
        outcomes = score_pass(self._work, self._model, video, range(start, start + count), errors)
        return {"part": batch["part"], "outcomes": np.array([pickle.dumps(outcomes)], dtype=object)}


class _HeldBack:
    """Keeps what libraries write to standard error while Ray starts, and prints it only if that fails.

    Ray's own part in C++ writes there of everything that it could do better, and cannot be told not to.
    """

    def __enter__(self) -> _HeldBack:
        sys.stderr.flush()
        self._error: int | None = os.dup(2)
        self._kept = tempfile.TemporaryFile()
        os.dup2(self._kept.fileno(), 2)
        return self

    def release(self) -> None:
        """Standard error as it was."""
        if self._error is not None:
            sys.stderr.flush()
            os.dup2(self._error, 2)
            os.close(self._error)
            self._error = None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        started = self._error is None
        self.release()
        if kind is not None and not started and not issubclass(kind, InputError):
            self._kept.seek(0)
            sys.stderr.write(self._kept.read().decode(errors="replace"))
        self._kept.close()


def _quieten() -> None:
    import ray.data

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _cause(error: BaseException) -> BaseException:
    """What a worker raised: of bad input only the line that says what is wrong, without Ray's account of where."""
    cause: Any = error
    while cause is not None:
        if isinstance(cause, InputError) and type(cause).__module__.startswith("m2clip."):
            return InputError(str(cause))
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error
