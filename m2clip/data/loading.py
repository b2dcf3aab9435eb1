"""Items and batches from decoding processes that may die: loading starts anew where it was, and nothing is lost."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.popen_fork import Popen
from types import FrameType
from typing import TYPE_CHECKING, Any

from m2clip.data.shared_memory import Piped, hand_over, no_processes, take_over
from m2clip.errors import InputError
from m2clip.terminal import tell

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from torch.utils.data import DataLoader

    from m2clip.data.clips import ClipDataset

TIMEOUT = 300.0  # seconds
_TRIES = 3  # how often loading starts in one place
_AHEAD = 2  # items that every process has in work beyond the one it was asked for
_GRACE = 5.0  # seconds that a process gets to end by itself

Say = Callable[[str], None]
Collate = Callable[[list[Any]], Any]


_said: set[str] = set()


def _say_once(line: str, say: Say) -> None:
    """Say what is so for the whole program, and not again in every epoch; numbers may differ."""
    kind = re.sub(r"[\d.]+", "", line)
    if kind not in _said:
        _said.add(kind)
        say(line)


class _DiedError(Exception):
    """A decoding process died, or none of them answered in time; the message says how."""


def load(
    dataset: ClipDataset,
    keys: Sequence[Any],
    *,
    workers: int = 0,
    collate: Collate | None = None,
    pin_memory: bool = False,
    timeout: float = TIMEOUT,
    say: Say = tell,
) -> Iterator[Any]:
    """The items of a data set in the order of their keys.

    A decoding process that dies (out of memory, a fault in a decoder, kill -9) or hangs costs some time: all are
    started anew at the item that was waited for. If that item fails again, the data set is set to decode every video
    in a process of its own (`ClipSettings.isolate`), so that a file which breaks its decoder is one unreadable video,
    and the doubtful items are loaded one by one. At the third time loading ends with an error that names the item.
    Where shared memory is too small, as in many containers, items come through pipes, or are made in this process.

    Args:
        dataset: items by key.
        keys: what to load; with `collate` each is a list of keys, and their items become one batch.
        workers: decoding processes; 0 decodes in this one, without protection.
        collate: makes a batch of a list of items.
        pin_memory: put tensors into page-locked memory, for a GPU.
        timeout: how long an item may take, in seconds, before the processes count as hung.
        say: receives a line for each time that processes were started anew.

    Raises:
        InputError: an item that cannot be made, or that has ended its process three times.
    """
    if workers and (problem := no_processes(workers)):
        _say_once(problem, say)
        dataset.settings, workers = replace(dataset.settings, isolate=True), 0
    if workers == 0:
        yield from _loader(dataset, keys, 0, 0, collate, pin_memory)
        return
    done = failures = careful_until = 0
    while done < len(keys):
        careful, problem = done < careful_until, None
        size = (1, 1) if careful else (workers, _AHEAD)
        pool = _Pool(_loader(dataset, keys[done:], *size, collate, pin_memory), len(keys) - done, timeout)
        try:
            for item in pool:
                done, failures = done + 1, 0
                if isinstance(item, Piped):
                    _say_once(item.reason, say)
                    item = take_over(item)  # noqa: PLW2901
                yield item
                if careful and done == careful_until:
                    break
        except _DiedError as death:
            problem = str(death)
        finally:
            pool.close()
        if problem is None:
            continue
        failures += 1
        if failures == 1:
            say(f"{problem}; decoding starts anew where it was")
        elif failures < _TRIES:
            careful_until = done + workers * _AHEAD + 1
            dataset.settings = replace(dataset.settings, isolate=True)
            say(
                f"{problem}, again at {_names(dataset, keys[done], collate)} or soon after: "
                "from now on every video is decoded in a process of its own"
            )
        else:
            raise InputError(
                f"decoding has ended {_TRIES} times in a row ({problem}) at {_names(dataset, keys[done], collate)}: "
                "take what is named out of the list, or give decoding more memory (fewer workers)"
            )


def _loader(
    dataset: Any,
    keys: Sequence[Any],
    workers: int,
    ahead: int,
    collate: Collate | None,
    pin_memory: bool,
) -> DataLoader[Any]:
    import torch
    from torch.utils.data import DataLoader

    order: dict[str, Any] = {"batch_size": None, "sampler": keys} if collate is None else {"batch_sampler": keys}
    finish = collate or _as_it_is
    return DataLoader(
        dataset,
        num_workers=workers,
        prefetch_factor=ahead or None,
        pin_memory=pin_memory,
        worker_init_fn=_prepare,
        # Its own generator: starting processes would otherwise draw from the one that dropout draws from.
        generator=torch.Generator(),
        # The parent is told of the death of a child that it has forked, not of one that a server has.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=(lambda made: hand_over(finish(made))) if workers else finish,
        **order,
    )


def _as_it_is(item: Any) -> Any:
    return item


class _Pool:
    """Decoding processes and what comes from them; iterated over once."""

    def __init__(self, loader: DataLoader[Any], count: int, timeout: float) -> None:
        self.loader, self.count, self.timeout = loader, count, timeout
        self.in_main = threading.current_thread() is threading.main_thread()
        self.iterator: list[Iterator[Any]] = []
        self.processes: list[BaseProcess] = []
        self.late = False
        # torch has its own handler, which raises in whatever the main thread is doing, such as a training step.
        self.handler = signal.getsignal(signal.SIGCHLD)

    def __iter__(self) -> Iterator[Any]:
        others = set(multiprocessing.active_children())
        self.iterator.append(_attempt(lambda: iter(self.loader)))
        self.processes = [process for process in multiprocessing.active_children() if process not in others]
        self._set_handler(signal.SIG_DFL)
        for _ in range(self.count):
            yield self._next()

    def _next(self) -> Any:
        # The loader has a time limit too, but waits without one for a process that stops while it hands over an item.
        watch = threading.Timer(self.timeout, self._end)
        watch.start()
        self._set_handler(self._look)
        try:
            self._look()
            return _attempt(lambda: next(self.iterator[0]))
        except _DiedError:
            # What was noticed first may be a closed connection; the process at its other end tells more.
            ending = multiprocessing.connection.wait([process.sentinel for process in self.processes], timeout=1)
            for process in self.processes:
                if process.sentinel in ending:
                    process.join()
            self._look()
            raise
        finally:
            self._set_handler(signal.SIG_DFL)
            watch.cancel()

    def close(self) -> None:
        """End the processes, by force if they do not end by themselves."""
        # In another thread, because a process that died at a bad moment may have left a lock behind.
        ending = threading.Thread(target=self.iterator.clear, daemon=True)
        ending.start()
        ending.join(_GRACE)
        for process in self.processes:
            process.kill()
            process.join(_GRACE)
        ending.join(_GRACE)
        self._set_handler(self.handler)

    def _end(self) -> None:
        self.late = True
        for process in self.processes:
            process.kill()

    def _look(self, _: Any = None, frame: FrameType | None = None) -> None:
        """_DiedError where a process has ended; also the handler of the signal that says so, at any moment."""
        if _asks_for_an_end(frame):
            # An error would lose what was just heard of a process, which would then count as alive for ever.
            threading.Timer(0.01, lambda: os.kill(os.getpid(), signal.SIGCHLD)).start()
            return
        for process in self.processes:
            if not process.is_alive() and self.late:
                raise _DiedError(f"a decoding process gave no answer for {self.timeout:g} s")
            if not process.is_alive():
                raise _DiedError(_describe(process.exitcode))

    def _set_handler(self, handler: Any) -> None:
        if self.in_main:
            signal.signal(signal.SIGCHLD, handler)


def _asks_for_an_end(frame: FrameType | None) -> bool:
    """Whether code that was interrupted at a frame has asked the system whether a process has ended."""
    while frame is not None and frame.f_code is not Popen.poll.__code__:
        frame = frame.f_back
    return frame is not None


def _prepare(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which often reach a whole group of processes, to the one that is decoded for.

    A worker whose parent was killed says nothing of the connections that this breaks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent, told = os.getppid(), sys.excepthook

    def tell(*error: Any) -> None:
        time.sleep(0.2)  # its connections are closed before it is gone
        if os.getppid() == parent:
            told(*error)

    sys.excepthook = tell


def _attempt(work: Callable[[], Any]) -> Any:
    """The result; tells the death of a process from an error of the data set, and makes the latter one line again."""
    try:
        return work()
    except InputError as error:
        # A worker's error comes back with its whole traceback as the message.
        last = str(error).strip().splitlines()[-1]
        raise InputError(re.sub(r"^[\w.]*Error: ", "", last)) from None
    except (RuntimeError, MemoryError, OSError, EOFError, pickle.UnpicklingError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        no_memory = isinstance(error, MemoryError) or "can't allocate memory" in text
        if text.startswith("Caught ") and not no_memory:
            raise
    # Out here, where nothing refers to the loader's frames: it ends its processes when the last reference goes.
    raise _DiedError("a decoding process ran out of memory" if no_memory else text)


def _describe(code: int | None) -> str:
    if code is None or code >= 0:
        return f"a decoding process ended with code {code}"
    hints = {signal.SIGKILL: " (out of memory?)", signal.SIGBUS: " (/dev/shm full?)"}
    name = signal.Signals(-code)
    return f"a decoding process was ended by {name.name}{hints.get(name, '')}"


def _names(dataset: Any, key: Any, collate: Any) -> str:
    """What a key stands for: the videos' paths, or the number of an episode."""
    from m2clip.data.episode_clips import EpisodeClips

    parts = [key] if collate is None else key
    if isinstance(dataset, EpisodeClips):
        return ", ".join(f"episode {number} of epoch {epoch + 1}" for epoch, number in parts)
    indices = [part[1] if isinstance(part, tuple) else part for part in parts]
    return ", ".join(dataset.annotations.items[index].name for index in indices)
