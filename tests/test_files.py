import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scnf.errors import UserError
from scnf.files import atomic_write, map_private, sweep, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_text_makes_the_directory_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "note.txt"
    write_text(path, "old é")
    write_text(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert names(path.parent) == ["note.txt"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_atomic_write_changes_nothing_where_its_block_fails(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught, atomic_write(path) as file:
        file.write(b"half")
        raise error
    if expected is UserError:
        assert "cannot write" in str(caught.value) and "No space left on device" in str(caught.value)
    assert path.read_text() == "old" and names(tmp_path) == ["note.txt"]


def test_atomic_write_keeps_the_old_content_until_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_file_mode_is_that_of_the_umask_or_of_the_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    for mask, expected in ((0o027, 0o640), (0o022, 0o640)):  # the second one replaces the first
        with umask(mask):
            write_text(path, "text")
        assert stat.S_IMODE(path.stat().st_mode) == expected
    path.chmod(0o600)
    with atomic_write(path):  # while it is being written, too
        (temporary,) = set(tmp_path.iterdir()) - {path}
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600


def test_write_text_takes_names_of_255_characters(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "text")
    assert names(tmp_path) == ["n" * 255]


@contextmanager
def special_files(folder: Path) -> Iterator[dict[str, Path]]:
    """Files that are there and no regular ones, by what they are called; links lead to secret.txt and to nothing."""
    (folder / "secret.txt").write_text("secret")
    (folder / "link").symlink_to("secret.txt")
    (folder / "nowhere").symlink_to("nothing.txt")
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket"))  # at most 108 bytes
        yield {
            "link": folder / "link",
            "nowhere": folder / "nowhere",
            "FIFO": folder / "fifo",
            "directory": folder / "folder",
            "socket": folder / "socket",
            "device": Path("/dev/full"),
        }


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="special files are those of Linux")
def test_write_text_replaces_regular_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with special_files(tmp_path) as special:
        before = {path: (path.lstat().st_ino, path.lstat().st_mode) for path in special.values()}
        listed = names(tmp_path)
        for name, path in special.items():
            kind = "symbolic link" if name in ("link", "nowhere") else name
            with pytest.raises(UserError, match=rf"cannot write {path}: it is a {kind}, .*Choose another name"):
                write_text(path, "text")
        assert {path: (path.lstat().st_ino, path.lstat().st_mode) for path in special.values()} == before
        assert names(tmp_path) == listed and (tmp_path / "secret.txt").read_text() == "secret"


KILLED = """
import pathlib, sys, time
from scnf.files import atomic_write
with atomic_write(pathlib.Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_temporary_files_of_a_killed_process_are_swept(start: Callable[..., Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_text(run / "checkpoints" / "last", "old")
    write_text(run / ".hidden", "stays")
    (tmp_path / ".outside.tmp").write_text("stays")
    (run / f".{16 * '0'}.tmp").symlink_to(tmp_path / ".outside.tmp")
    process = start("-c", KILLED, run / "checkpoints" / "last")
    deadline = time.monotonic() + 30
    while not (left := list(run.rglob("*/.*.tmp"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(left) == 1 and (run / "checkpoints" / "last").read_text() == "old"
    sweep(run)
    assert names(run) == [".hidden", "checkpoints"] and names(run / "checkpoints") == ["last"]
    assert (tmp_path / ".outside.tmp").read_text() == "stays"
    sweep(tmp_path / "not there")


@pytest.mark.parametrize("place", ["file/note.txt", "directory"])
def test_write_text_to_an_impossible_place_is_a_user_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("a file, not a directory")
    (tmp_path / "directory" / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / place, "text")
    assert names(tmp_path) == ["directory", "file"] and (tmp_path / "file").read_text() == "a file, not a directory"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
def test_write_text_to_a_read_only_place_is_a_user_error() -> None:
    with pytest.raises(UserError, match="cannot write /proc/self/note"):
        write_text(Path("/proc/self/note.txt"), "text")


def test_map_private_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "numbers").write_bytes(b"0123456789")
    with (tmp_path / "numbers").open("rb") as file:
        content = map_private(file, 4)
    content[:2] = b"xx"
    assert content[:] == b"xx23" and (tmp_path / "numbers").read_bytes() == b"0123456789"


OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@pytest.mark.skipif(
    not OVERCOMMIT.exists() or OVERCOMMIT.read_text().strip() == "2", reason="the system reserves memory by its policy"
)
def test_map_private_takes_a_file_larger_than_memory(tmp_path: Path) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    memory = sum(int(line.split()[1]) for line in lines if line.startswith(("MemTotal", "SwapTotal")))
    with (tmp_path / "sparse").open("wb+") as file:
        file.truncate(2 * 1024 * memory)
        content = map_private(file, 2 * 1024 * memory)
    assert len(content) == 2 * 1024 * memory and content[-1] == 0
