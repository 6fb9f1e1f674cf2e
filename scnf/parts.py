"""Parts from outside: Python files that register recipes, networks, transforms, data sets or commands.

A command reads such a file with `--import my_parts.py`. A training copies it into its run, so that every command can
read the run later. That runs the code of the file, and a run may come from somebody else: so it is read only where its
digest is known, see :func:`admit`.
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
"""Directory in a run with the files that it needs."""
_SUMS = "SHA256SUMS"

_imported: dict[str, tuple[str, bytes]] = {}  # name and content of what this process has run, by digest
_trusting = False


def trust() -> None:
    """Have this process run the parts of every run that it reads."""
    global _trusting
    _trusting = True


def import_file(path: Path) -> None:
    """Run a Python file, which registers parts; one that has run in this process is not run again.

    Raises:
        UserError: the file cannot be read, fails, or registers a name that is taken.
    """
    try:
        content = files.read_bytes(path)
    except OSError as error:
        raise UserError(f"cannot read the parts {path}: {error.strerror or error}") from error
    _run(path, content)


def keep(run: Path) -> None:
    """Copy all that this process has imported into a run, and remember that this user may read it from there."""
    sums = ""
    for number, (digest, (name, content)) in enumerate(_imported.items(), start=1):
        kept = f"{number:02d}-{name}"  # in the order in which they are imported
        files.write_bytes(run / FOLDER / kept, content)
        sums += f"{digest}  {kept}\n"
        with suppress(OSError, UserError):  # then the run is read with --trust-parts
            files.write_text(_marker(digest), f"{run.resolve()}\n")
    if sums:
        files.write_text(run / FOLDER / _SUMS, sums)


def admit(directory: Path) -> None:
    """Import the parts that a run needs, if it does.

    They are run where this process has imported the same files, or trusts all (:func:`trust`), or where this user made
    a run with them on this machine.

    Raises:
        UserError: none of these holds, and nothing is run; or a file fails.
    """
    found = sorted((directory / FOLDER).glob("*.py"))
    if not found:
        return
    contents = [files.read_bytes(path) for path in found]
    _check_sums(directory / FOLDER / _SUMS, dict(zip((path.name for path in found), contents, strict=True)))
    unknown = [
        f"{path} (sha256 {digest[:12]}...)"
        for path, digest in zip(found, map(_digest, contents), strict=True)
        if not (_trusting or digest in _imported or _marker(digest).is_file())
    ]
    if unknown:
        raise UserError(
            f"{directory} needs code of its own, which this would run: {', '.join(unknown)}. Read it first; then say "
            "--trust-parts, or give the same file with --import"
        )
    for path, content in zip(found, contents, strict=True):
        _run(path, content)


def _check_sums(path: Path, contents: Mapping[str, bytes]) -> None:
    """Refuse files that are not those which the run was made with (UserError)."""
    lines = files.read_text(path).splitlines() if path.is_file() else []
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name, content in contents.items():
        if expected.get(name) != _digest(content):
            raise UserError(f"{path.parent / name} is not what the run was made with, by {path}: restore both files")


def _run(path: Path, content: bytes) -> None:
    digest = _digest(content)
    if digest in _imported:
        return
    module_name = f"scnf_parts_{digest[:12]}"
    spec = importlib.util.spec_from_loader(module_name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise UserError(f"cannot import the parts {path}: {_where(error, path)}") from error
    _imported[digest] = (re.sub(r"^\d\d-", "", path.name), content)


def _where(error: BaseException, path: Path) -> str:
    """What went wrong, and in which line of the file."""
    if isinstance(error, InvalidArgument):
        said = str(error)
    else:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"line {lines[-1]}: {said}" if lines else said


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _marker(digest: str) -> Path:
    """What says that this user has made a run with a file of that digest: it lies outside of all runs."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(files.expand(state)) / "scnf" / FOLDER / digest


def take(words: Sequence[str]) -> list[str]:
    """Act on `--import FILE` and `--trust-parts` among the words of a command, and return the others.

    Raises:
        UserError: a file is not named, or see :func:`import_file`.
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
