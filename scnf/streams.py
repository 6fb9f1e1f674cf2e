"""Standard output and error, which may be full, closed or without a reader, and texts that come from files."""

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
    r"""`text` with escapes in place of what is no printable character, such as the codes that move a cursor.

    Args:
        text: any text; one from a file may hold anything.
        keep: characters that stay as they are.

    Example:
        >>> print(printable("run\x1b[2J\n"))
        run\x1b[2J\n
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class Stream:
    r"""A standard stream that shows every text, and whose end is an error only where its text is needed.

    Of what is not printable only line ends and tabs are shown as they are, and what progress bars write: a carriage
    return at the start, and moves of the cursor alone. Characters that the stream's encoding lacks become escapes.

    Args:
        stream: the stream itself; None where there is none, as after `>&-`.
        name: what people call it.
        needed: whether a write that fails raises an error; else, what is written from then on is dropped.

    Attributes:
        needed: as above.
        gone: why nothing can be written any more; None while all is well.

    Example:
        >>> from io import StringIO
        >>> shown = StringIO()
        >>> print("caf\xe9 \x1b[2J", file=Stream(shown, "standard output"))
        >>> shown.getvalue()
        'café \\x1b[2J\n'
    """

    def __init__(self, stream: TextIO | None, name: str, needed: bool = True) -> None:
        self._stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream  # noqa: SIM115
        self._name = name
        self._told = False
        self.needed = needed
        self.gone = OSError(errno.EBADF, "it is closed") if stream is None else None

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)

    def write(self, text: str) -> int:
        """Write `text`; see the class."""
        start = text if _MOVES.fullmatch(text) else text[: text.startswith("\r")]
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        shown = start + printable(text[len(start) :], keep="\n\t")
        self._attempt(self._stream.write, shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Write what the stream holds back."""
        self._attempt(self._stream.flush)

    def _attempt(self, operation: Callable[..., Any], *arguments: str) -> None:
        if self.gone is None:
            try:
                operation(*arguments)
                return
            except ValueError:  # of Python's own, when somebody has closed the stream
                self.gone = OSError(errno.EBADF, "it is closed")
            except OSError as error:
                self.gone = error
                self._forget()
        if self.needed:
            if isinstance(self.gone, BrokenPipeError):
                raise self.gone
            raise UserError(f"cannot write to {self._name}: {self.gone.strerror or self.gone}. Send it elsewhere")
        if not self._told:
            self._told = True
            other = sys.stderr if self is sys.stdout else sys.stdout
            if isinstance(other, Stream) and not other.needed:
                print(f"note: {self._name} is lost ({self.gone.strerror or self.gone})", file=other, flush=True)

    def _forget(self) -> None:
        """Let what the stream still holds back go nowhere: the interpreter complains of it at its end otherwise."""
        with suppress(OSError, ValueError):
            if (number := self._stream.fileno()) in (1, 2):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


@contextmanager
def guarded() -> Iterator[None]:
    """Make the standard streams a :class:`Stream` each while the block lasts; only standard output is needed.

    A descriptor that is closed leads nowhere from then on, for the next file that is opened would have its number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, Stream(sys.stdout, "standard output"))
    sys.stderr = cast(TextIO, Stream(sys.stderr, "standard error", needed=False))
    try:
        yield
    finally:
        with suppress(UserError, OSError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


def go_on_without() -> None:
    """From here on the work is worth more than what is printed of it."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.needed = False


def complain(text: str, keep: str = "") -> None:
    """Print a line on standard error, or on standard output where that is gone; `keep` is for :func:`printable`."""
    print(printable(text, keep), file=sys.stderr, flush=True)
    if isinstance(sys.stderr, Stream) and sys.stderr.gone:
        with suppress(UserError, OSError):
            print(printable(text, keep), flush=True)
