"""Explain exceptions that no other module has turned into a message for users."""

import errno
import os
import re
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scnf.errors import UserError
from scnf.files import write_text
from scnf.parts import location_of

_NO_MEMORY = re.compile(  # PyTorch reports these by a plain RuntimeError, on a CPU and a GPU
    "out of memory|can't allocate memory|cannot allocate memory|not enough memory|unable to allocate|alloc_failed"
    "|size calculation overflowed|multiplication overflowed|invalid buffer size",
    re.IGNORECASE,
)


class UnexpectedError(Exception):
    """Exception of a bug, whose message names the file of the traceback."""


def explain(error: Exception, directory: Path | None = None) -> UserError | UnexpectedError:
    """Return the error that users see in place of `error`.

    Args:
        error: Any exception.
        directory: Directory of the file `error.txt` with the traceback of a bug; a temporary file by default.

    Returns:
        The same error if it is a UserError or an UnexpectedError. Exhausted memory, unusable files and failures of
        torch.compile become a UserError, and all other exceptions an UnexpectedError.

    Example:
        >>> str(explain(FileNotFoundError(2, "No such file or directory", "weights")))
        'No such file or directory: weights'
    """
    if isinstance(error, UserError | UnexpectedError):
        return error
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or _NO_MEMORY.search(message):
        return UserError(
            f"the memory does not suffice ({message[:200] or type(error).__name__}). Lower train.batch_size, "
            "train.eval_batch_size or model.channels, set model.class_chunk to 1, or train.reversible to true"
        )
    if isinstance(error, OSError):
        return UserError(f"{error.strerror or message}: {error.filename}" if error.filename else message)
    if any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__):
        return UserError(f"torch.compile failed ({message[:300]}). Set train.compile to false")
    if place := location_of(error):
        report = f"your own code failed in {place}: {type(error).__name__}: {message[:300]}"
        return UserError(f"{report} (the traceback {_write_traceback(error, directory)})")
    report = f"this is a bug in scnf, please report it: {type(error).__name__}: {message[:200]}"
    return UnexpectedError(f"{report} (the traceback {_write_traceback(error, directory)})")


@contextmanager
def traceback_in(directory: Path) -> Iterator[None]:
    """Explain exceptions of a block, see :func:`explain`; a bug leaves its traceback in `error.txt` of `directory`."""
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        raise explain(error, directory) from error


def _write_traceback(error: Exception, directory: Path | None) -> str:
    """Write the traceback to a file, and return a phrase with its path, or with the traceback where that fails."""
    text = "".join(traceback.format_exception(error))
    try:
        if directory is None:
            handle, name = tempfile.mkstemp(prefix="scnf-error-", suffix=".txt")
            os.close(handle)
            path = Path(name)
        else:
            path = directory / "error.txt"
        write_text(path, text)
    except (OSError, UserError):
        return f"cannot be written to a file:\n{text}"
    return f"is in {path}"
