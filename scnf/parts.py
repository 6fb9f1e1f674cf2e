"""Import the user's parts, which are Python files that register recipes, networks, transforms, data sets or commands.

A command imports a file with `--import my_parts.py`. A training copies the file into its run, so that every command can
load the run later. Loading runs the code of the file, and somebody else may have made the run. :func:`admit` therefore
runs a file only where its digest is known.
"""

import hashlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from scnf import files
from scnf.errors import InvalidArgument, UserError

FOLDER = "parts"
"""Directory in a run with the Python files that the run needs."""
_CHECKSUMS = "SHA256SUMS"

_imported: dict[str, tuple[str, bytes]] = {}  # digest -> name and content of each file that this process has run
_trusts_all = False


def trust() -> None:
    """Allow this process to run the parts of every run that it loads."""
    global _trusts_all
    _trusts_all = True


def import_file(path: Path) -> None:
    """Run a Python file that registers parts, once in each process.

    Raises:
        UserError: The file cannot be read, fails, or registers a name that is taken.
    """
    try:
        content = files.read_bytes(path)
    except OSError as error:
        raise UserError(f"cannot read the parts {path}: {error.strerror or error}") from error
    _run(path, content)


def keep(run: Path) -> None:
    """Copy all imported files into a run, and record on this machine that the user trusts them."""
    checksums = ""
    for number, (digest, (name, content)) in enumerate(_imported.items(), start=1):
        file_name = f"{number:02d}-{name}"  # the number preserves the order of the imports
        files.write_bytes(run / FOLDER / file_name, content)
        checksums += f"{digest}  {file_name}\n"
        with suppress(OSError, UserError):  # without the marker, loading the run needs --trust-parts
            files.write_text(_marker(digest), f"{run.resolve()}\n")
    if checksums:
        files.write_text(run / FOLDER / _CHECKSUMS, checksums)


def admit(directory: Path) -> None:
    """Import the parts that a run stores, if it stores any.

    A file runs in three cases. This process has imported the same file, this process trusts every run (:func:`trust`),
    or this user made a run with the file on this machine.

    Raises:
        UserError: A file is not trusted, and no file is run. Or a file fails.
    """
    paths = sorted((directory / FOLDER).glob("*.py"))
    if not paths:
        return
    contents = [files.read_bytes(path) for path in paths]
    _check_digests(directory / FOLDER / _CHECKSUMS, dict(zip((path.name for path in paths), contents, strict=True)))
    untrusted = [
        f"{path} (sha256 {digest[:12]}...)"
        for path, digest in zip(paths, map(_digest, contents), strict=True)
        if not (_trusts_all or digest in _imported or _marker(digest).is_file())
    ]
    if untrusted:
        raise UserError(
            f"{directory} needs code of its own, which this command would run: {', '.join(untrusted)}. Read the code "
            "first; then add --trust-parts, or pass the same file with --import"
        )
    for path, content in zip(paths, contents, strict=True):
        _run(path, content)


def _check_digests(path: Path, contents: Mapping[str, bytes]) -> None:
    """Refuse files that differ from the files with which the run was made (UserError)."""
    lines = files.read_text(path).splitlines() if path.is_file() else []
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name, content in contents.items():
        if expected.get(name) != _digest(content):
            raise UserError(
                f"{path.parent / name} is not what the run was made with, according to {path}: restore both files"
            )


def _run(path: Path, content: bytes) -> None:
    digest = _digest(content)
    if digest in _imported:
        return
    module_name = f"scnf_parts_{digest[:12]}"
    spec = importlib.util.spec_from_loader(module_name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[module_name] = module  # dataclasses look up their module there
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise UserError(f"cannot import the parts {path}: {_where(error, path)}") from error
    _imported[digest] = (re.sub(r"^\d\d-", "", path.name), content)


def _where(error: BaseException, path: Path) -> str:
    """Return the message of an error, with the line of the file that raised it."""
    if isinstance(error, InvalidArgument):
        message = str(error)
    else:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"line {lines[-1]}: {message}" if lines else message


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _marker(digest: str) -> Path:
    """Return the path of a file outside all runs, whose existence says that this user made a run with the digest."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(files.expand(state)) / "scnf" / FOLDER / digest


def take(words: Sequence[str]) -> list[str]:
    """Apply `--import FILE` and `--trust-parts` among the words of a command, and return the other words.

    Raises:
        UserError: `--import` has no value, or :func:`import_file` refuses the file.
    """
    rest: list[str] = []
    pending = iter(words)
    for word in pending:
        name, equals, value = word.partition("=")
        if name == "--trust-parts" and not equals:
            trust()
        elif name == "--import":
            value = value if equals else next(pending, "")
            if not value or value.startswith("--"):
                raise UserError("--import needs a value: a Python file")
            import_file(Path(files.expand(value)))
        else:
            rest.append(word)
    return rest
