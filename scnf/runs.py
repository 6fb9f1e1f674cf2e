"""A run directory, `logs/<id>-<date>-<name>/`: made, written and found again."""

import csv
import difflib
import io
import json
import numbers
import os
import platform
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import date, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from scnf import files
from scnf.errors import UserError
from scnf.lock import lock

_DIRECTORY = re.compile(r"(\d{6,})-\d{4}-\d{2}-\d{2}-(.+)")


class Run:
    """One run directory and everything that is written into it.

    Args:
        path: the directory; use `Run.create` for a new one and `Run.find` for an existing one.

    Example:
        >>> import tempfile
        >>> run = Run.create(Path(tempfile.mkdtemp()), "mnist scnf/fast")
        >>> run.id, run.name
        (1, 'mnist-scnf-fast')
        >>> run.write_json("summary.json", {"status": "finished"})
        >>> run.read_json("summary.json")
        {'status': 'finished'}
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []  # of metrics.csv, once this process has written it as a whole
        self._writer: Any = None
        self._locked = False

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def id(self) -> int:
        """The number at the start of the directory's name; 0 for a directory with a name of its own."""
        match = _DIRECTORY.fullmatch(self.path.resolve().name)
        return int(match[1]) if match else 0

    @property
    def name(self) -> str:
        """The directory's name without id and date."""
        directory = self.path.resolve().name
        match = _DIRECTORY.fullmatch(directory)
        return match[2] if match else directory

    @classmethod
    def create(cls, root: Path, name: str) -> "Run":
        """Make a new run directory with the next free id, also when many processes do so at once.

        Args:
            root: the directory of all runs; made when absent.
            name: what to call the run; characters other than `A-Za-z0-9._-` become `-`.

        Returns:
            the run, whose directory is empty.

        Raises:
            UserError: nothing can be written to `root`.
        """
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "run"
        try:
            root.mkdir(parents=True, exist_ok=True)
            number = max((run.id for run in runs_in(root)), default=0)
            while True:
                number += 1
                claim = root / f"{number:06d}"
                try:
                    claim.mkdir()  # atomic: of all who try, one succeeds
                except FileExistsError:
                    continue
                if any(root.glob(f"{claim.name}-*")):  # a faster process has claimed it and renamed it already
                    claim.rmdir()
                    continue
                return cls(claim.rename(root / f"{claim.name}-{date.today().isoformat()}-{slug}"))
        except OSError as error:
            reason = "it is a file, not a directory" if os.path.isfile(root) else error.strerror or error
            raise UserError(
                f"cannot make a run directory in {root}: {reason}. Choose a directory you can write to, "
                "or free some space."
            ) from error

    @classmethod
    def find(cls, root: Path, ref: str) -> "Run":
        """Find a run by what a person would call it.

        Args:
            root: the directory of all runs.
            ref: an id ("7", "000007"), "last", the name of a directory in `root`, or a path to a run directory.

        Raises:
            UserError: there is no such run, or there are several.
        """
        runs = runs_in(root)
        if ref == "last":
            found = runs[-1:]
        elif re.fullmatch(r"[0-9]{1,18}", ref):
            found = [run for run in runs if run.id == int(ref)]
        else:
            found = [run for run in runs if run.path.name == ref]
            if not found and os.path.isdir(ref):
                run = cls(Path(ref))
                found = [run] if run.id or os.path.isfile(run.path / "config.yaml") else []
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(
                f"several runs have the id {ref}: {', '.join(run.path.name for run in found)}. Give a name."
            )
        if not runs:
            raise UserError(f"there is no run {ref!r}: {root} holds no runs yet. `scnf train` makes one.")
        known = {key: run.path.name for run in runs for key in (run.name, run.path.name)}
        close = dict.fromkeys(known[key] for key in difflib.get_close_matches(Path(ref).name, known, n=3))
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        latest = ", ".join(run.path.name for run in runs[-3:])
        raise UserError(f"there is no run {ref!r} in {root}. {hint}The latest are {latest}; `scnf runs` lists all.")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing into this run while the block lasts; inside another such block, do nothing.

        Raises:
            UserError: another process holds the run, or nothing can be written to it.

        Example:
            >>> import tempfile
            >>> run = Run.create(Path(tempfile.mkdtemp()), "digits")
            >>> with run.locked(), run.locked():
            ...     run.write_text("note.txt", "nobody else writes here")
        """
        if self._locked:
            yield
            return
        with suppress(OSError):  # the lock says what is wrong with the directory
            self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(lock(self.path / ".lock"))
            except BlockingIOError as error:
                raise UserError(
                    f"{self.path} is in use: {error.strerror or 'another process'} writes into it. Wait for its end, "
                    "or stop it, which saves its work, and run this again"
                ) from error
            self._locked = True
            files.sweep(self.path)  # what writers that were killed have left
            try:
                yield
            finally:
                self._locked = False

    @property
    def key(self) -> str:
        """The key that binds checkpoints to the run, drawn when the run is made and kept in env.json; "" in older runs.

        Raises:
            UserError: env.json is missing or damaged.
        """
        about = self.read_json("env.json")
        key = about.get("key") if isinstance(about, dict) else None
        return key if isinstance(key, str) else ""

    def checkpoint(self, which: str) -> Path:
        """Where the checkpoint `which` ("last" or "best") is kept."""
        return self.path / "checkpoints" / f"{which}.safetensors"

    @property
    def weights(self) -> Path:
        """Where the weights of the finished model are kept."""
        return self.path / "model.safetensors"

    def write_text(self, name: str, text: str) -> None:
        """Write the file `name` of this run atomically."""
        files.write_text(self.path / name, text)

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` to the file `name` of this run atomically; numbers of numpy stay numbers, paths become text."""
        self.write_text(name, json.dumps(value, indent=2, default=_plain) + "\n")

    def read_json(self, name: str) -> Any:
        """Read the file `name` of this run.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            return json.loads(files.read_text(self.path / name))
        except OSError as error:
            raise UserError(f"cannot read {self.path / name}: {error.strerror}. Is this run complete?") from error
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self.path / name} is damaged ({error}). Restore the file or start the run anew."
            ) from error

    def log_metrics(self, row: Mapping[str, float | int | str]) -> None:
        """Append one row to `metrics.csv` and its numbers to the TensorBoard events in `tensorboard/`.

        Args:
            row: values by column. `step` is the x axis in TensorBoard. A row may lack a column or bring a new one.

        Raises:
            UserError: the row cannot be written; the rows before it are as they were.
        """
        if set(row) <= set(self._columns):
            self._append(row)
        else:  # the first row of this process, or a new column
            columns, rows = self._table()
            self._write_table(list(dict.fromkeys([*columns, *row])), [*rows, row])
        try:
            self._log_events(row)
        except OSError as error:
            raise self._cannot_write("tensorboard", error) from error

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows of `metrics.csv` after a number of steps, from where training goes on."""
        columns, rows = self._table()
        if columns:
            self._write_table(columns, [row for row in rows if not (parse_number(row.get("step")) or 0) > step])

    def read_metrics(self) -> list[dict[str, float]]:
        """Read `metrics.csv`: the numbers of every row; cells that are empty or no number are left out.

        Raises:
            UserError: the file cannot be read.
        """
        parsed = ({key: parse_number(cell) for key, cell in row.items()} for row in self._table()[1])
        return [{key: value for key, value in row.items() if value is not None} for row in parsed]

    def close(self) -> None:
        """Close the TensorBoard events. Logging another row opens them again."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                raise self._cannot_write("tensorboard", error) from error

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.csv"

    def _table(self) -> tuple[list[str], list[dict[str, str]]]:
        try:
            text = files.read_text(self._metrics)
            # A process that was killed may leave half a line at the end.
            lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        except FileNotFoundError:
            return [], []
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{self._metrics} is damaged ({error}). Move it away, or start the run anew.") from error
        return (lines[0], [dict(zip(lines[0], line, strict=False)) for line in lines[1:]]) if lines else ([], [])

    def _write_table(self, columns: list[str], rows: Sequence[Mapping[str, Any]]) -> None:
        files.write_text(self._metrics, _csv([columns, *([row.get(key, "") for key in columns] for row in rows)]))
        self._columns = columns

    def _append(self, row: Mapping[str, Any]) -> None:
        line = _csv([[row.get(key, "") for key in self._columns]]).encode()
        try:
            with open(self._metrics, "ab", buffering=0) as handle:
                size = handle.tell()
                try:
                    if handle.write(line) < len(line):
                        raise OSError("the disk is full")
                except OSError:
                    handle.truncate(size)
                    raise
        except OSError as error:
            raise self._cannot_write(self._metrics.name, error) from error

    def _log_events(self, row: Mapping[str, Any]) -> None:
        step = int(row.get("step", 0))
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an interrupted process wrote from this step on is hidden by what follows.
            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        for key, value in row.items():
            if key not in ("epoch", "step") and isinstance(value, numbers.Real):
                self._writer.add_scalar(key, float(value), step)
        self._writer.flush()

    def _cannot_write(self, name: str, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self.path / name}: {error.strerror or error}. Free some space or choose another directory; "
            "what was there before is unchanged."
        )


def environment(argv: Sequence[str], machine: Mapping[str, Any]) -> dict[str, Any]:
    """A new key, and what a run is made with: command, commit of the sources, versions, the machine (not its name).

    Args:
        argv: the command line.
        machine: what :func:`scnf.machine.description` says.
    """
    source = _git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in another repository
    commit = _git("rev-parse", "HEAD") if source is not None else None
    changes = _git("status", "--porcelain", ".") if commit else None
    return {
        "key": secrets.token_hex(16),
        "argv": list(argv),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **machine,
        "versions": {name: _version(name) for name in ("scnf", "torch", "torchvision", "numpy", "nflows")},
    }


def runs_in(root: Path) -> list[Run]:
    """All runs of a directory, in the order of their ids; none where there is no such directory."""
    try:
        found = [Run(path) for path in root.iterdir() if _DIRECTORY.fullmatch(path.name) and path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read {root}: {error.strerror}. Choose another directory of runs.") from error
    return sorted(found, key=lambda run: (run.id, run.path.name))


def parse_number(value: Any) -> float | None:
    """`value` as a number, or None if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if isinstance(value, bool) else number


def _plain(value: Any) -> Any:
    """What JSON does not know, as something that it knows."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
