"""A thread in each process of a group that notices when another process is gone, and ends this one where it hangs.

Process 0 holds a connection to each of the others. On all of them both ends say once a second that they are there. A
connection that breaks is a process that died. One on which nothing comes is a process that is stopped, or a machine
that is gone. What a process computes meanwhile makes no difference: the thread speaks for the process.

A collective on a GPU waits for ever for a process that is gone, and no Python code runs in the meantime. So where the
main thread does not end by itself, the thread tells the loss in one line and ends the process.
"""

from __future__ import annotations

import hmac
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import Any

from m2clip.errors import LostProcessError
from m2clip.terminal import tell

# In seconds.
BEAT = 1.0  # between two signs of life
SETTLE = 0.5  # in which further processes may turn out to be lost together with the first
ROLL_CALL = 5.0  # in which processes whose collective failed say so
GRACE = 10.0  # for the main thread to end by itself

_KEY = "m2clip/watch"
_GONE = "is gone, killed or out of memory"
_SILENT = "did not answer in time"


class _Peer:
    """One end of a connection, which carries lines of text."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.heard = time.monotonic()
        self._rest = b""

    def send(self, line: str) -> None:
        # Whoever takes nothing is stopped or gone, which reading tells.
        with suppress(OSError):
            self.connection.send(" ".join(line.split()).encode()[:1000] + b"\n")

    def read(self) -> list[str] | None:
        """The lines that have come; None where the other end is closed."""
        try:
            found = self.connection.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not found:
            return None
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + found).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines if line]


class Watch:
    """This process's part in the watch over its group; returns when the group is connected.

    Args:
        rank: number of this process.
        size: number of processes.
        store: key-value store of the group, by which the others find process 0.
        limit: how long a process may be silent, and how long connecting may take, in seconds.

    Raises:
        TimeoutError: a process did not come in time.
    """

    def __init__(self, rank: int, size: int, store: Any, limit: float) -> None:
        self.rank, self.size, self.limit = rank, size, limit
        self._lost: dict[int, str] = {}
        self._left: set[int] = set()
        self._waiting: set[int] = set()  # for a collective that failed
        self._first_loss = self._first_waiting = 0.0
        self._stuck = self._told = False
        self._error: LostProcessError | None = None
        self._known, self._over = threading.Event(), threading.Event()
        end = time.monotonic() + limit
        self._peers = _accept(size, store, end) if rank == 0 else {0: _connect(rank, store, end)}
        # A decoding process that outlives this one must not keep its connections open.
        os.register_at_fork(after_in_child=self._close)
        # At the end of the interpreter, and of a process of multiprocessing, which runs nothing of atexit.
        Finalize(None, self._at_exit, exitpriority=0)
        threading.Thread(target=self._run, name="m2clip process watch", daemon=True).start()

    # ---- for the main thread ----

    def loss(self) -> LostProcessError:
        """Why a collective failed, as soon as it is known; at most a few seconds later."""
        self._stuck = True
        self._known.wait(3 * BEAT + SETTLE + ROLL_CALL)
        return self._error or self._loss({0: _SILENT})

    def tell(self, error: BaseException) -> None:
        """Tell the others that this process ends with an error, so that they end, too."""
        well = isinstance(error, LostProcessError) or (isinstance(error, SystemExit) and not error.code)
        if not well and not self._told:
            self._told = True
            self._broadcast(f"error {' '.join(str(error).split()) or type(error).__name__}")

    def leave(self) -> None:
        """Tell the others that this process needs them no more, and watch no longer."""
        self._broadcast("left")
        self._over.set()

    def _at_exit(self) -> None:
        error = sys.exc_info()[1] or getattr(sys, "last_value", None)
        if error is not None:
            self.tell(error)
        self.leave()

    # ---- for the thread ----

    def _run(self) -> None:
        due = 0.0
        with selectors.DefaultSelector() as selector:
            for number, peer in self._peers.items():
                selector.register(peer.connection, selectors.EVENT_READ, number)
            while self._error is None and not self._over.is_set():
                for key, _ in selector.select(BEAT / 4):
                    if not self._hear(key.data):
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                if now >= due:
                    due = now + BEAT
                    self._broadcast("here")
                self._judge(now)
                if self.rank > 0 and 0 in self._left and not self._lost:
                    break
        if self._error is not None:
            self._end(self._error)
        self._close()

    def _hear(self, number: int) -> bool:
        """Take note of what a process says; whether there may come more."""
        lines = self._peers[number].read()
        for line in lines or ():
            word, _, text = line.partition(" ")
            if word == "left":
                self._left.add(number)
            elif word == "error":
                self._lose(number, f"ended with: {text}")
            elif word == "waiting":
                self._first_waiting = self._first_waiting or time.monotonic()
                self._waiting.add(number)
            elif word == "lost":
                self._error = LostProcessError(text, silent=True)
        if lines is None and self._error is None and number not in self._left:
            self._lose(number, _GONE)
        return lines is not None

    def _lose(self, number: int, how: str) -> None:
        if number not in self._lost:
            self._lost[number] = how
            self._first_loss = self._first_loss or time.monotonic()

    def _judge(self, now: float) -> None:
        for number, peer in self._peers.items():
            if now - peer.heard > self.limit and number not in self._left:
                self._lose(number, _SILENT)
        if self._stuck and self.rank not in self._waiting:
            self._waiting.add(self.rank)
            self._first_waiting = self._first_waiting or now
            self._broadcast("waiting")
        if self._error is not None:
            return
        if self._lost:
            if now - self._first_loss >= SETTLE:
                self._error = self._loss(self._lost)
        elif self.rank == 0 and self._waiting:
            missing = set(range(self.size)) - self._waiting
            if not missing or now - self._first_waiting >= ROLL_CALL:
                self._error = self._loss({n: "has ended" if n in self._left else _SILENT for n in sorted(missing)})
        if self._error is not None:
            self._broadcast(f"lost {self._error}")

    def _loss(self, lost: dict[int, str]) -> LostProcessError:
        named = "; ".join(f"process {number} {how}" for number, how in sorted(lost.items()))
        # Without process 0, which tells it otherwise, one process of each machine does.
        first = self.rank == 0 or (0 in lost and (self.rank == 1 or os.environ.get("LOCAL_RANK") == "0"))
        return LostProcessError(
            f"{named or 'the connection between the processes broke'} (numbered 0 to {self.size - 1}): the others "
            "cannot go on without it; start again, and training resumes from its last checkpoint (torchrun "
            "--max-restarts 3 does so by itself)",
            silent=not first,
        )

    def _broadcast(self, line: str) -> None:
        for peer in self._peers.values():
            peer.send(line)

    def _end(self, error: LostProcessError) -> None:
        self._known.set()
        if self._over.wait(GRACE):
            return
        # Not in this thread: a stream whose reader takes nothing, or whose lock the main thread holds, lets nobody in.
        last = threading.Thread(target=_say, args=(error,), daemon=True)
        last.start()
        last.join(2.0)
        os._exit(error.exit_code)

    def _close(self) -> None:
        for peer in self._peers.values():
            peer.connection.close()


def _say(error: LostProcessError) -> None:
    if not error.silent:
        tell(str(error))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _accept(size: int, store: Any, end: float) -> dict[int, _Peer]:
    """Process 0's connections, by the number of the process at the other end."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    found: dict[int, _Peer] = {}
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=size) as server:
        token = secrets.token_hex(16)
        store.set(_KEY, f"{server.getsockname()[1]} {_own_address()} {token}")
        while len(found) < size - 1:
            server.settimeout(max(0.01, end - time.monotonic()))
            connection, _ = server.accept()
            # Whoever else comes here does not know the token.
            with suppress(OSError, ValueError):
                connection.settimeout(5)
                said = connection.recv(64, socket.MSG_WAITALL).split()
                if len(said) == 2 and hmac.compare_digest(said[0], token.encode()):
                    connection.sendall(token[:8].encode())
                    found[int(said[1])] = _Peer(connection)
                    continue
            connection.close()
    return found


def _connect(rank: int, store: Any, end: float) -> _Peer:
    """The connection to process 0, which may not be where the store is."""
    while True:
        port, address, token = store.get(_KEY).decode().split()
        for host in (os.environ["MASTER_ADDR"], address):
            with suppress(OSError):
                connection = socket.create_connection((host, int(port)), timeout=5)
                connection.sendall(f"{token} {rank}".ljust(64).encode())
                if connection.recv(8, socket.MSG_WAITALL) == token[:8].encode():
                    return _Peer(connection)
                connection.close()
        if time.monotonic() > end:
            raise TimeoutError(f"process 0 cannot be reached at {host}:{port}")
        time.sleep(0.1)


def _own_address() -> str:
    """The address of this machine on the way to the store."""
    family, kind, _, _, target = socket.getaddrinfo(os.environ["MASTER_ADDR"], 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])
