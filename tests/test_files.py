"""Only regular files are opened, files are whole or as they were, and damage is noticed."""

import errno
import json
import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest
import torch

from m2clip.errors import InputError
from m2clip.files import disk as files
from m2clip.files import kept_work
from m2clip.files.folders import LOCK, check_apart, locked
from m2clip.files.tensors import DamagedError, load_tensors, save_tensors
from m2clip.plots import style

READERS = [files.read_bytes, files.read_text, files.read_json, files.file_digest, files.check_regular, load_tensors]


@pytest.mark.parametrize("read", READERS)
def test_only_regular_files_are_opened(tmp_path: Path, read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    os.mkfifo("pipe")
    os.symlink("pipe", "link")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path, kind in (("pipe", "a pipe"), ("link", "a pipe"), ("socket", "a socket"), ("/dev/zero", "a device")):
            with pytest.raises(OSError, match=kind):
                read(Path(path))
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(9))
    assert files.read_bytes(path, 9) == bytes(9)
    with pytest.raises(OSError, match="more than 8 bytes"):
        files.read_bytes(path, 8)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a file with a hole, of no size on the disk
    with pytest.raises(OSError, match="more than"):
        files.read_bytes(path)
    with pytest.raises(OSError, match="more than"):
        files.file_digest(path, most=1 << 30)
    # Of no size by its status, and without an end.
    with pytest.raises(OSError, match="more than 1000 bytes"):
        files.read_bytes(Path("/proc/self/pagemap"), 1000)


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "{", "1" * 5000])
def test_json_of_any_form_is_a_value_or_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        files.parse_json(text)


def test_every_flipped_bit_of_a_sealed_record_is_noticed() -> None:
    record = {"steps": [1, 2.5, None], "name": "naïve", 3: (True, "x")}
    data = json.dumps(files.seal(record)).encode()
    whole = files.unseal(files.parse_json(data))
    assert whole == {"steps": [1, 2.5, None], "name": "naïve", "3": [True, "x"]}
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = files.unseal(files.parse_json(bytes(damaged)))
        except ValueError:
            continue
        # The same in other letters, or a flip in the word that names the digest.
        assert {name: found[name] for name in whole} == whole and len(found) <= len(whole) + 1


@pytest.mark.parametrize("value", [None, 3, [], "x", {"record_sha256": 3}, {"record_sha256": []}])
def test_what_was_not_sealed(value: object) -> None:
    with pytest.raises(ValueError, match="no record|digest"):
        files.unseal(value)
    assert files.unseal({"old": 1}) == {"old": 1}


def test_tensors_come_back_and_flipped_bits_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"w": torch.randn(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "none": torch.zeros(0, 4)}
    tensors["steps"] = torch.tensor(7)
    save_tensors(tensors, path, {"videos": ["x"]})
    found, facts = load_tensors(path)
    assert facts["videos"] == ["x"] and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)
    data = path.read_bytes()
    save_tensors(tensors, path, {"videos": ["x"]})
    assert path.read_bytes() == data
    for bit in range(0, 8 * len(data), 7):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found, facts = load_tensors(path)
        except DamagedError:
            continue
        # As above, in the name of the digest or of the entry that holds it.
        assert "sha256" not in facts and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    for text in ("one", "two"):
        with files.replacing(tmp_path / "link") as temporary:
            temporary.write_text(text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "there/file").read_text() == text
    assert os.listdir(tmp_path / "there") == ["file"]


def test_devices_pipes_and_folders_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name, words in (("pipe", "a pipe, no file"), ("null", "a device, no file"), (".", "a folder has this name")):
        with pytest.raises(InputError, match=words), files.replacing(tmp_path / name):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file is where a folder should be"), files.replacing(tmp_path / "file/a"):
        pass
    assert Path("/dev/null").is_char_device() and sorted(os.listdir(tmp_path)) == ["file", "null", "pipe"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_ends_a_writer_is_told_in_one_line(tmp_path: Path, number: int) -> None:
    path = _written(tmp_path / "a", b"old")
    words = f"cannot be written: {os.strerror(number)}; "
    with pytest.raises(InputError, match=words) as told, files.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(number, os.strerror(number))
    assert "\n" not in str(told.value) and path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def _hold(folder: Path, taken, forked) -> None:
    with locked(folder, "test"):
        # What a training process forks may outlive it.
        context = multiprocessing.get_context("fork")
        child = context.Process(target=signal.pause)
        child.start()
        forked.value = child.pid
        taken.set()
        signal.pause()


def test_a_folder_is_locked_until_its_process_ends(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    taken, forked = context.Event(), context.Value("i")
    holder = context.Process(target=_hold, args=(tmp_path, taken, forked))
    holder.start()
    assert taken.wait(30)
    with pytest.raises(InputError, match="another m2clip test is writing"), locked(tmp_path, "m2clip test"):
        pass
    holder.kill()
    holder.join()
    try:
        with locked(tmp_path, "m2clip test"):
            with pytest.raises(InputError, match="another"), locked(tmp_path, "m2clip test"):
                pass
            assert os.listdir(tmp_path) == [LOCK]
        assert os.listdir(tmp_path) == []
    finally:
        os.kill(forked.value, signal.SIGKILL)


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    with locked(tmp_path, "m2clip test"):
        pass
    assert "has no locks (No locks available)" in capsys.readouterr().err


def test_an_output_is_apart_from_what_is_read(tmp_path: Path) -> None:
    videos, text = tmp_path / "videos", tmp_path / "list.txt"
    (videos / "run").mkdir(parents=True)
    text.write_text("")
    (tmp_path / "link").symlink_to(videos)
    (tmp_path / "hard.txt").hardlink_to(text)
    check_apart(tmp_path / "out", videos, text, None, tmp_path / "none")
    check_apart(tmp_path, videos, text)
    for output, source in ((text, text), (videos, videos), (tmp_path / "hard.txt", text), (tmp_path / "link", videos)):
        with pytest.raises(InputError, match="is what is read from"):
            check_apart(output, source)
    for output in (videos / "run", videos / "new" / "x", tmp_path / "link" / "new"):
        with pytest.raises(InputError, match="lies within"):
            check_apart(output, None, videos)


def test_a_folder_is_bound_to_one_work(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    kept_work.begin(folder, {"size": 3}, own=("parts",))
    first = (folder / kept_work.MANIFEST).read_bytes()
    (folder / "parts").mkdir()
    kept_work.begin(folder, {"size": 4}, own=("parts",))
    assert (folder / kept_work.MANIFEST).read_bytes() == first
    assert kept_work.read_record(folder / kept_work.MANIFEST) == {"size": 3, "complete": False}
    kept_work.check_same({"size": 3, "list": [1]}, {"size": 3, "list": [1]}, folder)
    with pytest.raises(InputError, match=r"holds a run with other settings: list \(\[1\] there, None here\); size \(3"):
        kept_work.check_same({"size": 3, "list": [1]}, {"size": 4}, folder)
    (folder / kept_work.MANIFEST).unlink()
    kept_work.begin(folder, {"size": 4}, own=("parts",))
    (folder / kept_work.MANIFEST).rename(folder / "other.json")
    with pytest.raises(InputError, match=r"holds other files, such as other\.json"):
        kept_work.begin(folder, {"size": 4}, own=("parts",))


@pytest.mark.parametrize("links", [True, False])
def test_of_two_works_that_begin_at_once_one_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def begin_another(record: dict[str, object]) -> dict[str, object]:
        files.write_json(files.seal({"size": 4, "complete": False}), tmp_path / kept_work.MANIFEST)
        return files.seal(record)

    def no_links(*paths: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(kept_work, "seal", begin_another)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    kept_work.begin(tmp_path, {"size": 3})
    assert kept_work.read_record(tmp_path / kept_work.MANIFEST) == {"size": 4, "complete": False}
    assert [path.name for path in tmp_path.iterdir()] == [kept_work.MANIFEST]


def test_a_damaged_record_is_an_empty_one(tmp_path: Path) -> None:
    path = files.write_json(files.seal({"a": (1, 2)}), tmp_path / "record.json")
    assert kept_work.read_record(path) == kept_work.plain({"a": (1, 2)}) == {"a": [1, 2]}
    path.write_text(path.read_text().replace("2", "3"))
    assert kept_work.read_record(path) == kept_work.read_record(tmp_path / "none") == {}


def test_what_killed_processes_leave_is_removed(tmp_path: Path) -> None:
    left = [tmp_path / ".a.1.partial", tmp_path / "in" / ".b.2.partial"]
    left[1].parent.mkdir()
    for path in (*left, tmp_path / "a.partial"):
        path.touch()
    kept_work.remove_partial_files(tmp_path)
    assert [path.exists() for path in left] == [False, True]
    kept_work.remove_partial_files(tmp_path, deep=True)
    assert not left[1].exists() and (tmp_path / "a.partial").exists()


def test_results_are_replaced_and_nothing_else(tmp_path: Path) -> None:
    record, picture = tmp_path / "eval.json", tmp_path / "eval.png"
    kept_work.check_replaceable(record, picture)
    kept_work.write_result({"top1": 0.5}, record)
    with style.figure(1, 1) as drawn:
        style.save(drawn, picture)
    kept_work.check_replaceable(record, picture)
    assert kept_work.read_record(record) == {"top1": 0.5}
    changed = json.loads(record.read_text()) | {"top1": 0.9}
    for path, content in (
        (record, json.dumps(changed).encode()),
        (record, b'{"top1": 0.5}'),
        (record, b"[1]"),
        (picture, b"\x89PNG\r\n\x1a\nSoftwareGIMP"),
        (picture, b""),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"{path.name} is there already.*give another --output"):
            kept_work.check_replaceable(tmp_path / "none.json", path)
        assert path.read_bytes() == content
    picture.unlink()
    picture.symlink_to("nowhere")
    with pytest.raises(InputError, match="is there already"):
        kept_work.check_replaceable(picture)
