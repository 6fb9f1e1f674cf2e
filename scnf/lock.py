"""Hold advisory locks between processes, which the system releases when their holder dies."""

import errno
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from scnf.errors import FileError
from scnf.files import sweep

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


@contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold an advisory lock during a block; the system releases it when the process dies in any way.

    The file at `path` names the holder and is removed afterwards. Where the system or the file system has no locks, the
    block runs without one. A file system without locks is reported in the log. Child processes do not hold the lock.

    Args:
        path: Path of the lock file, which serves the lock alone, in an existing directory.
        wait: Whether to wait until the holder releases the lock.

    Yields:
        True where the lock is held, and False where the system has no locks.

    Raises:
        BlockingIOError: another process, or another block of this process, holds the lock; the message names the holder
            where it is known.
        FileError: the lock file cannot be created.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / ".lock"
        >>> with lock(path):
        ...     print(path.read_text().split()[:2] == ["process", str(os.getpid())])
        True
        >>> path.exists()
        False
    """
    if fcntl is None:
        yield False
        return
    descriptor, locked = _acquire(path, wait)
    _descriptors.add(descriptor)
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        with suppress(OSError):  # on a full disk the lock works, but does not name its holder
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node() or 'this machine'} since {since}".encode())
        yield locked
    finally:
        if descriptor in _descriptors:  # not in a forked child
            _descriptors.discard(descriptor)
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


@contextmanager
def exclusive_folder(folder: Path, scratch: str, task: str) -> Iterator[None]:
    """Hold the lock of a folder, and first remove the temporary files of processes that were killed.

    Without locks nothing is removed, and other processes may work in the folder.

    Args:
        folder: Folder that the block has for itself, once no other process holds its lock.
        scratch: Prefix of the temporary directories that the block creates in the folder.
        task: Description of the work of another process in the folder, for the log.

    Raises:
        FileError: the folder is not writable.
    """
    with ExitStack() as stack:
        try:
            locked = stack.enter_context(lock(folder / ".lock"))
        except BlockingIOError as error:
            _log.info("%s %s: waiting until it ends", error.strerror or "another process", task)
            locked = stack.enter_context(lock(folder / ".lock", wait=True))
        if locked:
            sweep(folder)
            for directory in folder.glob(f"{scratch}*"):
                shutil.rmtree(directory, ignore_errors=True)
        yield


def _acquire(path: Path, wait: bool) -> tuple[int, bool]:
    """Return a descriptor of the file at `path`, and whether it holds the lock, which some file systems lack."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise FileError(
                f"cannot write {path}: {error.strerror or error}. Make its directory writable, or choose another."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):  # the previous holder may have removed the file
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor, True
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            raise BlockingIOError(errno.EWOULDBLOCK, "".join(filter(str.isprintable, holder))) from None
        except OSError as error:
            _log.info("%s: this file system has no locks (%s), so keep other processes away", path, error.strerror)
            return descriptor, False
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


_descriptors: set[int] = set()


def _close_in_child() -> None:
    """Close the descriptors of locks in a forked child, because a lock lasts until all its descriptors are closed."""
    while _descriptors:
        with suppress(OSError):
            os.close(_descriptors.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
