"""Advisory locks between processes, which the system releases when their holder dies."""

import errno
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from scnf.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


@contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold an advisory lock while the block lasts; the system releases it when the process dies, however it does.

    The file at `path` says who holds the lock, and is gone afterwards. Where the system or the file system knows no
    locks, there is none, with a line in the log for a file system. Child processes do not hold it.

    Args:
        path: a file for the lock alone, in a directory that is there.
        wait: until whoever holds the lock releases it.

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
        yield
        return
    descriptor = _locked(path, wait)
    _held.add(descriptor)
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        with suppress(OSError):  # a full disk: nobody knows who, and the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {platform.node() or 'this machine'} since {since}".encode())
        yield
    finally:
        if descriptor in _held:  # not in a forked child
            _held.discard(descriptor)
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)


def _locked(path: Path, wait: bool) -> int:
    """A descriptor of the file at `path` that holds the lock."""
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
                    return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            raise BlockingIOError(errno.EWOULDBLOCK, "".join(filter(str.isprintable, holder))) from None
        except OSError as error:
            _log.info("%s: this file system knows no locks (%s), so keep other processes away", path, error.strerror)
            return descriptor
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
