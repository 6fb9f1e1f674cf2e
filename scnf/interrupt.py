"""Signals: what they end, when they end it, and the child processes that end with it.

While :func:`watch` lasts, a signal raises :class:`Interrupted` where the program stands, so that what has been begun is
cleaned up on the way out. What must not be torn runs inside `Signals.deferred` and looks itself whether one came.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
WATCHED: tuple[signal.Signals, ...] = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""What people, terminals and schedulers send to end a process, as far as the system has it."""
_SAME = 1.0
"""Seconds in which another signal is the same request: `timeout` and terminals that close send theirs twice."""


class Interrupted(KeyboardInterrupt):
    """A signal, raised where it came. Notes that are added to it say how to go on.

    Args:
        number: of the signal.

    Example:
        >>> str(Interrupted(signal.SIGTERM))
        'SIGTERM'
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """The signals that came, and what the next one does; :func:`watch` makes it.

    The first signal raises `Interrupted`, or inside `deferred` sets `received`. The second one raises if the first has
    not, and else kills the process, as it would without a handler.

    Attributes:
        received: number of the latest signal, None before the first.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.raised = False
        self._waits = False
        self._since = -math.inf
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler of every signal that is watched."""
        now, again = time.monotonic(), self.received is not None
        forked = os.getpid() != self._process
        if again and now - self._since < _SAME and not forked:
            return
        if self.raised or forked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        self.received, self._since = number, now
        if again or not self._waits:
            self._raise(number)

    def _raise(self, number: int) -> NoReturn:
        self.raised = True
        for process in list(_children):  # or a thread that waits for one would be waited for
            _kill(process)
        raise Interrupted(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """The first signal inside only sets `received`: the block looks there and ends where it can."""
        before, self._waits = self._waits, True
        try:
            yield
        finally:
            self._waits = before

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside `deferred`: a signal in this block raises, and so does at its start one that came before."""
        before, self._waits = self._waits, False
        try:
            if self.received is not None:
                self._raise(self.received)
            yield
        finally:
            self._waits = before


_watching: Signals | None = None
_children: set["subprocess.Popen[Any]"] = set()


@contextmanager
def watch() -> Iterator[Signals]:
    """Handle signals while the block lasts; inside another such block, go on with that.

    Only signals whose handling is the system's or Python's own are taken: what is ignored, as under `nohup`, stays
    ignored, and an application's handler stays in force. Outside of the main thread none is taken.

    Raises:
        Interrupted: a signal came, also if it ended as another exception on its way.

    Example:
        >>> with watch() as signals, signals.deferred():
        ...     signal.raise_signal(signal.SIGINT)
        ...     print("the step is finished")
        the step is finished
        >>> signals.received == signal.SIGINT
        True
    """
    global _watching
    if _watching is not None or threading.current_thread() is not threading.main_thread():
        yield _watching or Signals()
        return
    signals = _watching = Signals()
    before = {number: signal.getsignal(number) for number in WATCHED}
    own = {number: how for number, how in before.items() if how in (signal.SIG_DFL, signal.default_int_handler)}
    try:
        for number in own:
            signal.signal(number, signals)
        yield signals
    except Exception as error:
        if signals.raised and signals.received is not None:  # a library has made it an error of its own
            raise Interrupted(signals.received) from error
        raise
    finally:
        _watching = None
        for number, how in own.items():
            signal.signal(number, how)


_GUARD = """
import os, signal, sys
watched = int(sys.argv[1])
if os.fork():
    os.close(watched)
    os.execvp(sys.argv[2], sys.argv[2:])
for stream in range(3):
    os.close(stream)
os.read(watched, 1)
os.killpg(0, signal.SIGKILL)
"""
"""Becomes a command, and leaves a watcher in its process group, which it kills at the end of the pipe `watched`."""


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Start a process that is killed, with all that it started, at the end of the block.

    It is killed as well when this process ends in any way, and when a signal raises `Interrupted` in any thread.
    (On Windows the end of the block alone is certain.) Signals of the terminal come to this process alone.

    Args:
        command: program and arguments.
        options: of `subprocess.Popen`, but for its standard input, which is empty.

    Yields:
        the process.

    Example:
        >>> with child([sys.executable, "-c", "print(6 * 7)"], stdout=subprocess.PIPE, text=True) as process:
        ...     print(process.communicate()[0].strip())
        42
    """
    ends: tuple[int, ...] = ()
    if os.name == "posix":
        ends = os.pipe()  # closed on exec: no other child holds it
        command = [sys.executable, "-P", "-S", "-c", _GUARD, str(ends[0]), *command]
        options |= {"pass_fds": ends[:1], "start_new_session": True}
    process = None
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
        _children.add(process)
        if _watching is not None and _watching.raised and _watching.received is not None:
            raise Interrupted(_watching.received)
        yield process
    finally:
        if process is not None:
            _kill(process)
            _children.discard(process)
        for end in ends:
            os.close(end)  # what the process has left behind ends now
        if process is not None:
            process.wait()


def _kill(process: "subprocess.Popen[Any]") -> None:
    if process.poll() is not None:
        return
    with suppress(OSError):  # it has ended since
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
