"""Print to standard streams that may be full, closed or without a reader, and escape unprintable text."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from scnf.errors import UserError

_MOVES = re.compile(r"(?:[\r\n ]|\x1b\[A)*")


def printable(text: str, keep: str = "") -> str:
    r"""Replace unprintable characters of `text`, such as codes that move the cursor, with escapes.

    Args:
        text: Any text, for example from a file.
        keep: Characters that stay unchanged.

    Example:
        >>> print(printable("run\x1b[2J\n"))
        run\x1b[2J\n
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class Stream:
    r"""A standard stream that escapes unprintable text, and whose failure is an error only where it is needed.

    Line ends and tabs stay unchanged. So do the control codes of progress bars, which are a carriage return at the
    start of a text and texts of cursor moves alone. Characters that the stream's encoding lacks become escapes.

    Args:
        stream: Wrapped stream; None where it is closed, as after `>&-`.
        name: Name of the stream in messages.
        required: Whether a failed write raises an error; otherwise all later text is dropped.

    Attributes:
        required: Whether a failed write raises an error.
        failure: Error that ended the stream; None while it works.

    Example:
        >>> from io import StringIO
        >>> buffer = StringIO()
        >>> print("caf\xe9 \x1b[2J", file=Stream(buffer, "standard output"))
        >>> buffer.getvalue()
        'café \\x1b[2J\n'
    """

    def __init__(self, stream: TextIO | None, name: str, required: bool = True) -> None:
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self._name = name
        self._reported = False
        self.required = required
        self.failure = OSError(errno.EBADF, "it is closed") if stream is None else None

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)

    def write(self, text: str) -> int:
        """Write `text` with escapes for unprintable characters."""
        start = text if _MOVES.fullmatch(text) else text[: text.startswith("\r")]
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        escaped = start + printable(text[len(start) :], keep="\n\t")
        self._attempt(self._stream.write, escaped.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the buffer of the stream."""
        self._attempt(self._stream.flush)

    def _attempt(self, operation: Callable[..., Any], *arguments: str) -> None:
        if self.failure is None:
            try:
                operation(*arguments)
                return
            except ValueError:  # Python raises it where the stream has been closed
                self.failure = OSError(errno.EBADF, "it is closed")
            except OSError as error:
                self.failure = error
                self._discard_buffer()
        if self.required:
            if isinstance(self.failure, BrokenPipeError):
                raise self.failure
            raise UserError(
                f"cannot write to {self._name}: {self.failure.strerror or self.failure}. Redirect it elsewhere"
            )
        if not self._reported:
            self._reported = True
            other = sys.stderr if self is sys.stdout else sys.stdout
            if isinstance(other, Stream) and not other.required:
                print(f"note: {self._name} is lost ({self.failure.strerror or self.failure})", file=other, flush=True)

    def _discard_buffer(self) -> None:
        """Redirect buffered text to the null device, since the interpreter would report it at exit."""
        with suppress(OSError, ValueError):
            if (number := self._stream.fileno()) in (1, 2):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, number)
                os.close(null)


@contextmanager
def guarded() -> Iterator[None]:
    """Wrap the standard streams in a :class:`Stream` each during a block, where only standard output is needed.

    A closed descriptor leads to the null device from then on, because the next file to be opened would take its number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, Stream(sys.stdout, "standard output"))
    sys.stderr = cast(TextIO, Stream(sys.stderr, "standard error", required=False))
    try:
        yield
    finally:
        with suppress(UserError, OSError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def make_output_optional() -> None:
    """Let the work continue from here on when standard output fails."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.required = False


def print_error(text: str, keep: str = "") -> None:
    """Print a line on standard error, or on standard output as a fallback; `keep` is passed to :func:`printable`."""
    print(printable(text, keep), file=sys.stderr, flush=True)
    if isinstance(sys.stderr, Stream) and sys.stderr.failure:
        with suppress(UserError, OSError):
            print(printable(text, keep), flush=True)


def print_line(line: str) -> None:
    """Print a line on standard output, above the progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()


def no_line(line: str) -> None:
    """Print nothing, in place of :func:`print_line`."""
