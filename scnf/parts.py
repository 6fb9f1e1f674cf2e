"""Import the user's parts, which are Python files that register recipes, networks, transforms, datasets or commands.

A command imports a file with `--import my_parts.py`. A training copies the file into its run, so that every command can
load the run later. Loading runs the code of the file, and somebody else may have made the run. :func:`admit` therefore
runs a file only where its digest is known.
"""

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from scnf import files
from scnf.errors import InvalidArgument, UserError
from scnf.registry import REGISTRATIONS, Registration

FOLDER = "parts"
"""Directory in a run with the Python files that the run needs."""
_CHECKSUMS = "SHA256SUMS"
_MODULE = "scnf_parts_"  # starts the names of the modules that the files become


class _File(NamedTuple):
    """A file that this process has run."""

    name: str
    content: bytes
    registrations: list[Registration]


_files: dict[str, _File] = {}  # by digest
_session: list[str] = []  # digests of the files that new runs of this process need
_trusts_all = False


def trust() -> None:
    """Allow this process to run the parts of every run that it loads."""
    global _trusts_all
    _trusts_all = True


def import_file(path: Path) -> None:
    """Run a Python file that registers parts, once in each process.

    Raises:
        UserError: The file cannot be read or fails, or registers the same name as another file of the command.
    """
    if path.suffix != ".py":
        raise UserError(f"--import needs a Python file, whose name ends in .py, not {path}")
    try:
        content = files.read_bytes(path)
    except OSError as error:
        raise UserError(f"cannot read the parts {path}: {error.strerror or error}") from error
    digest = _run(path, content)
    names = _names(digest)
    for other in _session:
        if other != digest and (clashes := names & _names(other)):
            raise UserError(f"{path} and {_files[other].name} both register {clashes.pop()[1]!r}: rename one of them")
    _session.append(digest)


def save(run: Path) -> None:
    """Copy the imported files into a run, and record on this machine that the user trusts them."""
    checksums = ""
    for number, digest in enumerate(dict.fromkeys(_session), start=1):
        file = _files[digest]
        file_name = f"{number:02d}-{file.name}"  # the number preserves the order of the imports
        files.write_bytes(run / FOLDER / file_name, file.content)
        checksums += f"{digest}  {file_name}\n"
        with suppress(OSError, UserError):  # without the marker, loading the run needs --trust-parts
            files.write_text(_marker(digest), f"{run.resolve()}\n")
    if checksums:
        files.write_text(run / FOLDER / _CHECKSUMS, checksums)


def admit(directory: Path, adopt: bool = False) -> None:
    """Import the parts that a run stores, if it stores any. Their names then mean the parts of this run.

    A file runs in three cases. This process has imported the same file, this process trusts every run (:func:`trust`),
    or this user made a run with the file on this machine.

    Args:
        directory: Directory of the run.
        adopt: Whether new runs of this process need the parts, too. Files that the command imports then go first.

    Raises:
        UserError: A file is not trusted, or the directory differs from the list of its files, and no file is run. Or a
            file fails.
    """
    contents = _contents(directory / FOLDER)
    untrusted = [
        f"{path} (sha256 {digest[:12]}...)"
        for path, (digest, _) in contents.items()
        if not (_trusts_all or digest in _files or _marker(digest).is_file())
    ]
    if untrusted:
        other = "; a file that --import names differs from it" if _session else ""
        raise UserError(
            f"{directory} needs code of its own, which this command would run: {', '.join(untrusted)}{other}. Read the "
            "code first; then add --trust-parts, or pass the same file with --import"
        )
    imported = list(_session)
    names = set().union(*map(_names, imported))
    for path, (digest, content) in contents.items():
        _run(path, content)
        if adopt and not _names(digest) <= names:
            _session.append(digest)
        if not adopt and digest not in imported and (clashes := _names(digest) & names):
            print(f"note: {directory} is read with its own {clashes.pop()[1]!r}, of {path}", file=sys.stderr)
    for digest in imported if adopt else []:  # what somebody names goes before what the run brings
        _activate(digest)


def location_of(error: BaseException) -> str | None:
    """Return the file, line and function of the parts in which an error arose; None for an error elsewhere."""
    place, at = None, error.__traceback__
    while isinstance(at, TracebackType):
        frame = at.tb_frame
        if str(frame.f_globals.get("__name__")).startswith(_MODULE):
            place = f"{frame.f_code.co_filename}, line {at.tb_lineno}, in {frame.f_code.co_name}"
        at = at.tb_next
    return place


def _contents(folder: Path) -> dict[Path, tuple[str, bytes]]:
    """Return digest and content of each file of a run, which must be the files of its list (UserError)."""
    if not folder.is_dir():
        return {}
    path = folder / _CHECKSUMS
    try:
        lines = files.read_text(path).removesuffix("\n").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}, the list of the parts of the run: restore it") from error
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    names = {each.name for each in folder.iterdir()} - {_CHECKSUMS}
    if names != expected.keys():
        name = sorted(names ^ expected.keys())[0]
        problem = "is not in the list of the parts of the run" if name in names else "is missing"
        raise UserError(f"{folder / name} {problem}, {path}: restore the directory")
    contents = {}
    for name, digest in sorted(expected.items()):
        content = files.read_bytes(folder / name)
        if hashlib.sha256(content).hexdigest() != digest:
            raise UserError(
                f"{folder / name} is not what the run was made with, according to {path}: restore both files"
            )
        contents[folder / name] = digest, content
    return contents


def _run(path: Path, content: bytes) -> str:
    """Run a file, or register its parts again where it has run; return its digest."""
    digest = hashlib.sha256(content).hexdigest()
    if digest in _files:
        _activate(digest)
        return digest
    module_name, count = f"{_MODULE}{digest[:12]}", len(REGISTRATIONS)
    spec = importlib.util.spec_from_loader(module_name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[module_name] = module  # dataclasses look up their module there
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except BaseException as error:
        _withdraw(count)
        del sys.modules[module_name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserError(f"cannot import the parts {path}: {_message(error)}") from error
    name = re.sub(r"[^A-Za-z0-9._-]", "-", re.sub(r"^\d\d-", "", path.name))[-80:]
    _files[digest] = _File(name, content, REGISTRATIONS[count:])
    return digest


def _activate(digest: str) -> None:
    """Let the names that a file registered mean its parts, whatever registered them since."""
    for each in _files[digest].registrations:
        each.table[each.name] = each.part


def _withdraw(count: int) -> None:
    """Take back all registrations but the first `count`."""
    while len(REGISTRATIONS) > count:
        last = REGISTRATIONS.pop()
        earlier = [each for each in REGISTRATIONS if each.table is last.table and each.name == last.name]
        if earlier:
            last.table[last.name] = earlier[-1].part
        else:
            last.table.pop(last.name, None)


def _names(digest: str) -> set[tuple[int, str]]:
    return {(id(each.table), each.name) for each in _files[digest].registrations}


def _message(error: BaseException) -> str:
    """Return what an error says, with its type and the line of the parts in which it arose."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "its text cannot be made"
    text = text if isinstance(error, InvalidArgument) else f"{type(error).__name__}: {text}"
    place = location_of(error)
    return f"{text} ({place})" if place else text


def _marker(digest: str) -> Path:
    """Return the path of a file outside all runs, whose existence says that this user made a run with the digest."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = Path(state) if os.path.isabs(state) else Path(files.expand("~/.local/state"))
    return home / "scnf" / FOLDER / digest


def apply_options(words: Sequence[str]) -> list[str]:
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
