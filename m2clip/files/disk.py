"""All opening, writing and locking of files: only regular files are opened, and a file is whole or as it was before.

What is written to be read again carries a digest (`seal`, `m2clip.files.tensors`), so that damage is noticed.
"""

from __future__ import annotations

import errno
import json
import os
import reprlib
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from m2clip.errors import InputError

# Far above any list or record, far below what fills a memory; the kernel has "regular" files of many terabytes.
MOST_BYTES = 1 << 31
_BLOCK = 1 << 20
DIGEST = "record_sha256"
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_ADVICE = {
    errno.ENOSPC: "make room there or choose another place, and run the same command again",
    errno.EDQUOT: "make room there or choose another place, and run the same command again",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "choose a place that you may write to",
    errno.EPERM: "choose a place that you may write to",
    errno.EIO: "look at the disk, or choose another place",
    errno.EEXIST: "a file is where a folder should be; choose another place",
    errno.ENOTDIR: "a file is where a folder should be; choose another place",
    errno.EISDIR: "a folder has this name; choose another",
}

Path_ = str | os.PathLike[str]


# ---- reading ----


def check_regular(path: Path_) -> os.stat_result:
    """The status of a regular file, for those that other libraries open.

    Raises:
        OSError: there is none, or it is a folder, a pipe, a socket or a device, which can hang who opens it.
    """
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    kind = next((name for test, name in _KINDS if test(found.st_mode)), None)
    if kind is not None:
        raise OSError(errno.EINVAL, f"it is {kind}; only regular files are read", os.fspath(path))
    return found


def is_file(path: Path_) -> bool:
    """Whether there is a file of this name, which may be meant as a name of something else.

    Raises:
        InputError: it cannot be looked up, as a name that is too long.
    """
    try:
        return Path(path).is_file()
    except OSError as error:
        raise InputError(f"{reprlib.repr(os.fspath(path))} cannot be looked up: {error.strerror}") from None


def open_regular(path: Path_) -> BinaryIO:
    """A regular file, open for reading bytes.

    Raises:
        OSError: as for `check_regular`, or it may not be read.
    """
    check_regular(path)
    # A pipe may have taken the file's place meanwhile, and some files of the kernel wait for what is not there.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_bytes(path: Path_, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        OSError: as for `open_regular`, or it has more bytes.
    """
    data = bytearray()
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Files of the kernel tell no size, or one of many terabytes.
        while size <= most and len(data) <= most and (block := file.read(_BLOCK)):
            data += block
    if max(size, len(data)) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", os.fspath(path))
    return bytes(data)


def read_text(path: Path_, most: int = MOST_BYTES) -> str:
    """The text of a regular UTF-8 file.

    Raises:
        OSError: as for `read_bytes`.
        ValueError: it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or it is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path_) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: as for `read_bytes`.
        ValueError: it is no JSON, or nested too deeply.
    """
    return parse_json(read_text(path))


def file_digest(path: Path_, most: int | None = None) -> str:
    """SHA-256 of a regular file's content, as 64 hex digits.

    Args:
        path: the file.
        most: bytes that it may have; not more are read than it had at the beginning.

    Raises:
        OSError: as for `open_regular`, or it has more bytes.
    """
    from hashlib import sha256

    digest = sha256()
    with open_regular(path) as file:
        left = os.fstat(file.fileno()).st_size
        if most is not None and left > most:
            raise OSError(errno.EFBIG, f"it has more than {most} bytes", os.fspath(path))
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


# ---- digests ----


def seal(record: dict[str, Any], digest: str = DIGEST) -> dict[str, Any]:
    """The record with a digest of all its fields in one more field, which `unseal` checks."""
    return {**record, digest: _digest_of(record)}


def unseal(value: Any, required: bool = False, digest: str = DIGEST) -> dict[str, Any]:
    """The record without its digest.

    Args:
        value: what was read.
        required: whether it must have a digest; else one without, of an earlier version, is taken as it is.
        digest: the field that the digest is in.

    Raises:
        ValueError: it is no record, or not what was sealed.
    """
    if not isinstance(value, dict):
        raise ValueError("it is no record")
    record = {name: field for name, field in value.items() if name != digest}
    if value[digest] != _digest_of(record) if digest in value else required:
        raise ValueError("it is damaged or was changed: its digest is wrong")
    return record


def _digest_of(record: dict[str, Any]) -> str:
    # As it is read again: JSON has no keys but text, and no tuples.
    read = json.loads(json.dumps(record))
    from hashlib import sha256

    return sha256(json.dumps(read, sort_keys=True).encode()).hexdigest()


# ---- writing ----


@contextmanager
def writing(path: Path_) -> Iterator[None]:
    """Makes the folder of a file that is about to be written, and tells in one line why it could not be written.

    Raises:
        InputError: the folder or the file cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise cannot_write(path, error) from None
    except Exception as error:
        # How safetensors tells of a full disk; the library is not imported for its name alone.
        if type(error).__name__ != "SafetensorError":
            raise
        raise cannot_write(path, error) from None


@contextmanager
def replacing(path: Path_, durable: bool = True, first: bool = False) -> Iterator[Path]:
    """A temporary name to write to; it takes the file's place when the block ends without an error.

    Args:
        path: the file to be written or replaced; its folder is created. Where it is a link, the link stays.
        durable: flush to the disk before the renaming, so that the new content outlives a power failure as well.
        first: leave a file that is there, or that another process has written meanwhile, as it is.

    Raises:
        InputError: it cannot be written, or a folder, a device or a pipe has its name; the old file is untouched.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with writing(path):
        try:
            if target.exists():
                _check_replaceable(target)
            yield temporary
            if durable:
                flush(temporary)
            if not (first and _taken(temporary, target)):
                os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _taken(temporary: Path, target: Path) -> bool:
    """Whether another file has the name; else the new one gets it, where the file system has hard links."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return True
    except OSError:  # it has none
        return target.exists()
    return False


def write_text(text: str, path: Path_, first: bool = False) -> Path:
    """Write a text as UTF-8 under a temporary name, then rename it; returns the path.

    Args:
        text: the content.
        path: the file.
        first: leave a file that is there as it is.

    Raises:
        InputError: the file cannot be written.
    """
    with replacing(path, first=first) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(value: Any, path: Path_, first: bool = False) -> Path:
    """Write a value as indented JSON; further arguments, result and errors as for `write_text`."""
    return write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", path, first)


def _check_replaceable(path: Path) -> None:
    try:
        check_regular(path)
    except IsADirectoryError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {str(error.strerror).split(';')[0]}, no file") from None


def cannot_write(path: Path_, error: Exception) -> InputError:
    """What to tell where a file or folder cannot be written: why, and what to do."""
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    advice = _ADVICE.get(getattr(error, "errno", None) or 0)
    return InputError(f"{os.fspath(path)} cannot be written: {reason}" + (f"; {advice}" if advice else ""))


def flush(path: Path_) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
