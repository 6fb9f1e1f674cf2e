"""Write files atomically, so that readers get the old or the new content, and read regular files alone."""

import errno
import hashlib
import mmap
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from scnf.errors import FileError, UserError

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_NO_RESERVE = 0x4000
"""MAP_NORESERVE of Linux, which Python's mmap does not name."""
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
    """Yield a temporary file in the directory of `path`, which replaces `path` when the block ends without an error.

    The new file takes the mode of the file that it replaces. At the end of the block, file and directory are synced to
    disk.

    Args:
        path: Path of the file; its directory is created when absent.

    Yields:
        A temporary file that is open for bytes.

    Raises:
        FileError: the file cannot be written (disk full, read-only), or `path` is not a regular file but a directory, a
            symbolic link, a FIFO or a device; `path` is unchanged.

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
        raise FileError(
            f"cannot write {path}: {error.strerror or error}. Free some space or choose another directory; "
            "earlier contents are unchanged."
        ) from error
    finally:
        with suppress(OSError):  # the directory may be gone or read-only
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically as UTF-8, with escapes for lone surrogates, which UTF-8 cannot encode."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def require_file(path: Path) -> None:
    """Raise an OSError unless `path` is a regular file, since opening a pipe would wait for its writer.

    Raises:
        OSError: the file does not exist, or is a directory, a pipe or a device.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}", str(path))


def read_bytes(path: Path) -> bytes:
    """Read the content of a regular file.

    Raises:
        OSError: the file cannot be read or is not regular, see :func:`require_file`.
    """
    require_file(path)
    return path.read_bytes()


def map_private(file: BinaryIO, length: int) -> mmap.mmap:
    """Map the start of an open file to memory copy on write, so that what is written stays in this process.

    The file may be larger than memory. Linux would refuse to map it, unless it reserves no memory for copies.

    Args:
        file: File that is open for reading; it may be closed afterwards.
        length: Number of bytes, 1 or more.

    Raises:
        OSError: The file cannot be mapped.
    """
    if sys.platform == "linux":
        flags, access = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(file.fileno(), length, flags, access)
    return mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY)


def read_text(path: Path) -> str:
    """Read the content of a regular file as UTF-8, independent of the locale.

    Raises:
        OSError: the file cannot be read or is not regular, see :func:`require_file`.
        ValueError: the content is not valid UTF-8.
    """
    return read_bytes(path).decode("utf-8")


def expand(path: str) -> str:
    """Expand a leading `~` or `~user` of `path` to the home directory.

    Raises:
        UserError: the path is empty, or the home directory is unknown.

    Example:
        >>> expand("data/~") == "data/~", expand("~/data") == str(Path.home() / "data")
        (True, True)
    """
    if not path:
        raise UserError("a path is empty: check whether the shell variable behind it is set")
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise UserError(
            f"cannot tell which directory {Path(path).parts[0]} is, of {path}: there is no such user, or HOME is not "
            "set. Write the path in full"
        ) from error


def cache_folder(name: str = "") -> Path:
    """Return the folder of all caches, `$XDG_CACHE_HOME/scnf` (`~/.cache/scnf`), which exists, or a path in it.

    Raises:
        OSError: There is no home directory, or it cannot be written.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scnf"
    except RuntimeError as error:
        raise OSError(f"{error}: set HOME or XDG_CACHE_HOME") from error
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # kernels are refused where others may write to this folder
    return folder / name


CHECKSUM_MARK = "#sha256="
"""The separator between the path of a file and its checksum, in the settings of a run that has read the file."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(directory: Path) -> None:
    """Remove temporary files below `directory` that :func:`atomic_write` left when its process was killed.

    Call it only with the lock on `directory`, because it would also remove files that another process is writing.
    """
    for folder, _, names in os.walk(directory):
        for name in names:
            if _TEMPORARY.fullmatch(name):
                with suppress(OSError):  # the file stays on a read-only file system
                    os.unlink(os.path.join(folder, name))


def _replaceable(path: Path) -> int | None:
    """Return the mode of the regular file at `path`, or None without one; raise a FileError for any other kind."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise FileError(
            f"cannot write {path}: it is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}, and only "
            "regular files are replaced. Choose another name."
        )
    return stat.S_IMODE(mode)


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):  # some systems cannot sync directories; the file itself is on disk
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def name_in(folder: Path, path: Path) -> str:
    """Return the name of a file relative to a folder, or the whole path where it lies elsewhere.

    Example:
        >>> name_in(Path("photos"), Path("photos/cat/1.png")), name_in(Path("photos"), Path("/1.png"))
        ('cat/1.png', '/1.png')
    """
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
