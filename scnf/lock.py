"""Advisory locks between processes, which the system releases when their holder dies."""

import errno
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from scnf.errors import UserError
from scnf.files import sweep

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


@contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold an advisory lock while the block lasts; the system releases it when the process dies, however it does.

    The file at `path` says who holds the lock, and is gone afterwards. Where the system or the file system knows no
    locks, there is none, with a line in the log for a file system. Child processes do not hold it.

    Args:
        path: a file for the lock alone, in a directory that is there.
        wait: until whoever holds the lock releases it.

    Yields:
        whether there is a lock.

    Raises:
        BlockingIOError: another process, or another block of this one, holds the lock; says which, where that is known.
        UserError: the file cannot be made.

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
    descriptor, locked = _locked(path, wait)
    _held.add(descriptor)
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        with suppress(OSError):  # a full disk: nobody knows who, and the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node() or 'this machine'} since {since}".encode())
        yield locked
    finally:
        if descriptor in _held:  # not in a forked child
            _held.discard(descriptor)
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


@contextmanager
def alone_in(folder: Path, scratch: str, task: str) -> Iterator[None]:
    """Hold the folder's lock, and remove first what was left by processes that were killed while they held it.

    Where there are no locks nothing is removed, and others may be there.

    Args:
        folder: the block waits until no other process is in it.
        scratch: how directories begin that the block makes in the folder and removes at its end.
        task: what another process is doing there, for the log.

    Raises:
        UserError: nothing can be written to the folder.
    """
    with ExitStack() as held:
        try:
            locked = held.enter_context(lock(folder / ".lock"))
        except BlockingIOError as error:
            _log.info("%s %s: waiting for it", error.strerror or "another process", task)
            locked = held.enter_context(lock(folder / ".lock", wait=True))
        if locked:
            sweep(folder)
            for left in folder.glob(f"{scratch}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield


def _locked(path: Path, wait: bool) -> tuple[int, bool]:
    """A descriptor of the file at `path`, and whether it holds the lock, which not every file system has."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}. Make its directory writable, or choose another."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):  # else whoever held the lock has removed the file by now
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor, True
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            raise BlockingIOError(errno.EWOULDBLOCK, "".join(filter(str.isprintable, holder))) from None
        except OSError as error:
            _log.info("%s: this file system knows no locks (%s), so keep other processes away", path, error.strerror)
            return descriptor, False
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


_held: set[int] = set()


def _let_go() -> None:
    """What a forked child does first: a lock lasts as long as any process has its descriptor."""
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
