"""Files: written so that a reader sees the old content or the new, and read without waiting or guessing."""

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from scnf.errors import UserError

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file in the directory of `path`, which replaces `path` when the block ends without an error.

    The new file has the mode of the one that it replaces. When the block has ended, file and directory are on disk.

    Args:
        path: the file to write; its directory is made when absent.

    Yields:
        the file to write to, open for bytes.

    Raises:
        UserError: the file cannot be written (disk full, read-only), or `path` is no regular file but a directory, a
            symbolic link, a FIFO or a device; `path` is then as it was.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_write(target) as file:
        ...     _ = file.write(b"whole or not at all")
        >>> target.read_text()
        'whole or not at all'
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _replaceable(path)
        with os.fdopen(os.open(temporary, _NEW, 0o666), "w+b") as file:
            if mode is not None:
                os.chmod(temporary, mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. Free some space or choose another directory; "
            "what was there before is unchanged."
        ) from error
    finally:
        with suppress(OSError):  # the directory itself is gone or read-only: nothing to tidy
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8; what it does not have, halves of surrogate pairs, as escapes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def require_file(path: Path) -> None:
    """Refuse what is no regular file before it is opened: opening a pipe waits for whoever writes to it.

    Raises:
        OSError: there is nothing, or a directory, a pipe or a device.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}", str(path))


def read_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: the file cannot be read; see :func:`require_file`.
    """
    require_file(path)
    return path.read_bytes()


def read_text(path: Path) -> str:
    """The content of a regular file as UTF-8, whatever the locale.

    Raises:
        OSError: as of :func:`read_bytes`.
        ValueError: the content is no UTF-8.
    """
    return read_bytes(path).decode("utf-8")


def expand(path: str) -> str:
    """`path` with the home directory in place of a leading `~` or `~user`.

    Raises:
        UserError: the path is empty, or nobody knows that home directory.

    Example:
        >>> expand("data/~") == "data/~", expand("~/data") == str(Path.home() / "data")
        (True, True)
    """
    if not path:
        raise UserError("a path is empty: if it comes from a variable of the shell, that is not set")
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise UserError(
            f"cannot tell which directory {Path(path).parts[0]} is, of {path}: there is no such user, or HOME is not "
            "set. Write the path in full"
        ) from error


def sweep(directory: Path) -> None:
    """Remove what :func:`atomic_write` left in `directory` and below when its process was killed.

    Only for whoever holds the lock on `directory`: what another process is still writing would go, too.
    """
    for folder, _, names in os.walk(directory):
        for name in names:
            if _TEMPORARY.fullmatch(name):
                with suppress(OSError):  # a read-only file system: it stays
                    os.unlink(os.path.join(folder, name))


def _replaceable(path: Path) -> int | None:
    """The mode of the regular file at `path`, None where there is nothing; UserError where there is something else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise UserError(
            f"cannot write {path}: it is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}, and only a regular file "
            "is ever replaced. Choose another name."
        )
    return stat.S_IMODE(mode)


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):  # not all systems can; the file itself is on disk
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
