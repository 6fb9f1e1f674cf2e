"""What people are told about an exception that no other module has put into words."""

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
from scnf.parts import place_of

_NO_MEMORY = re.compile(  # PyTorch says so on a CPU and a GPU, by a RuntimeError without a type of its own
    "out of memory|can't allocate memory|cannot allocate memory|not enough memory|unable to allocate|alloc_failed"
    "|size calculation overflowed|multiplication overflowed|invalid buffer size",
    re.IGNORECASE,
)


class UnexpectedError(Exception):
    """A bug: the message names the file that holds its traceback."""


def explain(error: Exception, directory: Path | None = None) -> UserError | UnexpectedError:
    """The error that people are told in place of `error`.

    Args:
        error: any exception.
        directory: where the traceback of a bug is left, as `error.txt`; a temporary file by default.

    Returns:
        what is a UserError or an UnexpectedError as it is; a UserError where memory ended, a file could not be used or
        torch.compile failed; an UnexpectedError otherwise.

    Example:
        >>> str(explain(FileNotFoundError(2, "No such file or directory", "weights")))
        'No such file or directory: weights'
    """
    if isinstance(error, UserError | UnexpectedError):
        return error
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or _NO_MEMORY.search(said):
        return UserError(
            f"the memory does not suffice ({said[:200] or type(error).__name__}). Lower train.batch_size, "
            "train.eval_batch_size or model.channels, set model.class_chunk to 1, or train.reversible to true"
        )
    if isinstance(error, OSError):
        return UserError(f"{error.strerror or said}: {error.filename}" if error.filename else said)
    if any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(error).__mro__):
        return UserError(f"torch.compile failed ({said[:300]}). Set train.compile to false")
    if place := place_of(error):
        where = _left_behind(error, directory)
        return UserError(
            f"your own code failed in {place}: {type(error).__name__}: {said[:300]} (the traceback {where})"
        )
    what = f"this is a bug in scnf, please report it: {type(error).__name__}: {said[:200]}"
    return UnexpectedError(f"{what} (the traceback {_left_behind(error, directory)})")


@contextmanager
def traceback_in(directory: Path) -> Iterator[None]:
    """Explain what goes wrong inside, see :func:`explain`; a bug leaves its traceback in `error.txt` of `directory`."""
    try:
        yield
    except (UserError, BrokenPipeError):
        raise
    except Exception as error:
        raise explain(error, directory) from error


def _left_behind(error: Exception, directory: Path | None) -> str:
    """Where the traceback is: in a file, or where none can be written in the message itself."""
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
