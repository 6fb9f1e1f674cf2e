"""Turn signals into exceptions, defer them where work must not be torn, and end child processes with this one.

While :func:`watch` lasts, a signal raises :class:`Interrupted` at the current line, so that cleanup code runs. Code
that must not be interrupted runs inside `Signals.deferred` and checks itself for signals.
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
"""Signals of this system by which users, terminals and schedulers end a process."""
_REPEAT_SECONDS = 1.0
"""Seconds during which another signal counts as a repeat, since `timeout` and closing terminals send theirs twice."""


class Interrupted(KeyboardInterrupt):
    """Exception that a signal raises; notes added to it tell how to continue the work.

    Args:
        number: Number of the signal.

    Example:
        >>> str(Interrupted(signal.SIGTERM))
        'SIGTERM'
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """Handler of signals, which records them and decides what the next one does; :func:`watch` creates it.

    The first signal raises `Interrupted`, or inside `deferred` only sets `received`. The second signal raises if the
    first has not; otherwise it kills the process, as it would without a handler.

    Attributes:
        received: Number of the latest signal; None before the first.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.raised = False
        self._deferring = False
        self._last_time = -math.inf
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a watched signal."""
        now, repeated = time.monotonic(), self.received is not None
        forked = os.getpid() != self._process
        if repeated and now - self._last_time < _REPEAT_SECONDS and not forked:
            return
        if self.raised or forked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        self.received, self._last_time = number, now
        if repeated or not self._deferring:
            self._raise(number)

    def _raise(self, number: int) -> NoReturn:
        self.raised = True
        for process in list(_children):  # a thread that waits for one would delay the exit
            _kill(process)
        raise Interrupted(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Make the first signal in a block only set `received`, which the block checks where it can end."""
        before, self._deferring = self._deferring, True
        try:
            yield
        finally:
            self._deferring = before

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Make signals raise at once in a block inside `deferred`, where an earlier signal raises at its start."""
        before, self._deferring = self._deferring, False
        try:
            if self.received is not None:
                self._raise(self.received)
            yield
        finally:
            self._deferring = before


_active: Signals | None = None
_children: set["subprocess.Popen[Any]"] = set()


@contextmanager
def watch() -> Iterator[Signals]:
    """Handle signals during a block; a nested block uses the handler of the outer block.

    Only signals with the default handler of the system or of Python are handled. Ignored signals, as under `nohup`,
    stay ignored, and an application's handlers stay in force. Outside the main thread no signal is handled.

    Raises:
        Interrupted: a signal came, even if a library has turned it into another exception.

    Example:
        >>> with watch() as signals, signals.deferred():
        ...     signal.raise_signal(signal.SIGINT)
        ...     print("the step is finished")
        the step is finished
        >>> signals.received == signal.SIGINT
        True
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or Signals()
        return
    signals = _active = Signals()
    before = {number: signal.getsignal(number) for number in WATCHED}
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    replaced = {number: handler for number, handler in before.items() if handler in defaults}
    try:
        for number in replaced:
            signal.signal(number, signals)
        yield signals
    except Exception as error:
        if signals.raised and signals.received is not None:  # a library has raised its own error instead
            raise Interrupted(signals.received) from error
        raise
    finally:
        _active = None
        for number, handler in replaced.items():
            signal.signal(number, handler)


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
"""Program that runs a command and forks a watcher, which kills its process group when the pipe `watched` closes."""


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """Start a process that is killed at the end of the block, with all its own child processes.

    The process is also killed when this process ends in any way, or when a signal raises `Interrupted` in any thread.
    (Windows guarantees the end of the block alone.) Signals of the terminal reach this process alone.

    Args:
        command: Program and arguments.
        options: Options of `subprocess.Popen`, except for standard input, which is empty.

    Yields:
        The running process.

    Example:
        >>> with child([sys.executable, "-c", "print(6 * 7)"], stdout=subprocess.PIPE, text=True) as process:
        ...     print(process.communicate()[0].strip())
        42
    """
    ends: tuple[int, ...] = ()
    if os.name == "posix":
        ends = os.pipe()  # closed on exec, so that no other child holds it
        command = [sys.executable, "-P", "-S", "-c", _GUARD, str(ends[0]), *command]
        options |= {"pass_fds": ends[:1], "start_new_session": True}
    process = None
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
        _children.add(process)
        if _active is not None and _active.raised and _active.received is not None:
            raise Interrupted(_active.received)
        yield process
    finally:
        if process is not None:
            _kill(process)
            _children.discard(process)
        for end in ends:
            os.close(end)  # this ends processes that the command has left behind
        if process is not None:
            process.wait()


def _kill(process: "subprocess.Popen[Any]") -> None:
    if process.poll() is not None:
        return
    with suppress(OSError):  # it may have ended meanwhile
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
