"""Create, write and find run directories, `logs/<id>-<date>-<name>/`."""

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
    """A run directory with methods that read and write its files.

    Args:
        path: Run directory; use `Run.create` to create one and `Run.find` to find an existing one.
        events: Whether metrics are written for TensorBoard, too.

    Example:
        >>> import tempfile
        >>> run = Run.create(Path(tempfile.mkdtemp()), "mnist scnf/fast")
        >>> run.id, run.name
        (1, 'mnist-scnf-fast')
        >>> run.write_json("summary.json", {"status": "finished"})
        >>> run.read_json("summary.json")
        {'status': 'finished'}
    """

    def __init__(self, path: Path, events: bool = True) -> None:
        self.path, self._events = path, events
        self._columns: list[str] = []  # of metrics.csv, once this process has written the whole file
        self._writer: Any = None
        self._locked = False

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def id(self) -> int:
        """Number at the start of the directory's name; 0 for a directory of any other name."""
        match = _DIRECTORY.fullmatch(self.path.resolve().name)
        return int(match[1]) if match else 0

    @property
    def name(self) -> str:
        """Name of the directory without id and date."""
        directory = self.path.resolve().name
        match = _DIRECTORY.fullmatch(directory)
        return match[2] if match else directory

    @classmethod
    def create(cls, root: Path, name: str) -> "Run":
        """Create a run directory with the next free id, which is safe when many processes do so at once.

        Args:
            root: Directory of all runs, created when absent.
            name: Name of the run; characters other than `A-Za-z0-9._-` become `-`.

        Returns:
            A run whose directory is empty.

        Raises:
            UserError: `root` is not writable.
        """
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "run"
        try:
            root.mkdir(parents=True, exist_ok=True)
            number = max((run.id for run in runs_in(root)), default=0)
            while True:
                number += 1
                claim = root / f"{number:06d}"
                try:
                    claim.mkdir()  # atomic, so only one process succeeds
                except FileExistsError:
                    continue
                if any(root.glob(f"{claim.name}-*")):  # another process has claimed and renamed it already
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
        """Find a run by its id, name or path.

        Args:
            root: Directory of all runs.
            ref: Id ("7", "000007"), "last", name of a directory in `root`, or path to a run directory.

        Raises:
            UserError: no run or more than one run matches.
        """
        runs = runs_in(root)
        if ref == "last":
            matches = runs[-1:]
        elif re.fullmatch(r"[0-9]{1,18}", ref):
            matches = [run for run in runs if run.id == int(ref)]
        else:
            matches = [run for run in runs if run.path.name == ref]
            if not matches and os.path.isdir(ref):
                run = cls(Path(ref))
                matches = [run] if run.id or os.path.isfile(run.path / "config.yaml") else []
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise UserError(
                f"several runs have the id {ref}: {', '.join(run.path.name for run in matches)}. Give a name."
            )
        if not runs:
            raise UserError(f"there is no run {ref!r}: {root} holds no runs yet. `scnf train` makes one.")
        directories = {key: run.path.name for run in runs for key in (run.name, run.path.name)}
        keys = difflib.get_close_matches(Path(ref).name, directories, n=3)
        close = dict.fromkeys(directories[key] for key in keys)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        latest = ", ".join(run.path.name for run in runs[-3:])
        raise UserError(f"there is no run {ref!r} in {root}. {hint}The latest are {latest}; `scnf runs` lists all.")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock this run against writes of other processes during a block; a nested block does nothing.

        Raises:
            UserError: another process has locked the run, or its directory is not writable.

        Example:
            >>> import tempfile
            >>> run = Run.create(Path(tempfile.mkdtemp()), "digits")
            >>> with run.locked(), run.locked():
            ...     run.write_text("note.txt", "nobody else writes here")
        """
        if self._locked:
            yield
            return
        with suppress(OSError):  # the lock reports what is wrong with the directory
            self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(self.path / ".lock"))
            except BlockingIOError as error:
                raise UserError(
                    f"{self.path} is in use: {error.strerror or 'another process'} writes into it. Wait until it "
                    "ends, or stop it, which saves its work. Then run this again"
                ) from error
            self._locked = True
            files.sweep(self.path)  # temporary files of writers that were killed
            try:
                yield
            finally:
                self._locked = False

    @property
    def key(self) -> str:
        """Random key in env.json that binds checkpoints to the run; "" in older runs.

        Raises:
            UserError: env.json is missing or damaged.
        """
        env = self.read_json("env.json")
        key = env.get("key") if isinstance(env, dict) else None
        return key if isinstance(key, str) else ""

    def checkpoint(self, name: str) -> Path:
        """Return the path of the checkpoint `name`, "last" or "best"."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    @property
    def weights(self) -> Path:
        """Path of the weights of the finished model."""
        return self.path / "model.safetensors"

    def write_text(self, name: str, text: str) -> None:
        """Write the file `name` of this run atomically."""
        files.write_text(self.path / name, text)

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as JSON to the file `name` of this run atomically; numpy numbers become numbers, paths text."""
        self.write_text(name, json.dumps(value, indent=2, default=_plain) + "\n")

    def read_json(self, name: str) -> Any:
        """Read the JSON file `name` of this run.

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
            row: Values by column. `step` is the x axis in TensorBoard. A row may lack a column or add a new one.

        Raises:
            UserError: the row cannot be written; earlier rows are unchanged.
        """
        if set(row) <= set(self._columns):
            self._append(row)
        else:  # the first row of this process, or a new column
            columns, rows = self._table()
            self._write_table(list(dict.fromkeys([*columns, *row])), [*rows, row])
        try:
            if self._events:
                self._log_events(row)
        except OSError as error:
            raise self._cannot_write("tensorboard", error) from error

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows of `metrics.csv` after `step`, where a resumed training continues."""
        columns, rows = self._table()
        if columns:
            self._write_table(columns, [row for row in rows if not (parse_number(row.get("step")) or 0) > step])

    def read_metrics(self) -> list[dict[str, float]]:
        """Read the numbers of each row of `metrics.csv`, without cells that are empty or not a number.

        Raises:
            UserError: the file cannot be read.
        """
        parsed = ({key: parse_number(cell) for key, cell in row.items()} for row in self._table()[1])
        return [{key: value for key, value in row.items() if value is not None} for row in parsed]

    def close(self) -> None:
        """Close the TensorBoard event file, which the next logged row opens again."""
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
            # A killed process may leave an incomplete last line.
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

            # This hides the events that an interrupted process wrote from this step on.
            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
        for key, value in row.items():
            if key not in ("epoch", "step") and isinstance(value, numbers.Real):
                self._writer.add_scalar(key, float(value), step)
        self._writer.flush()

    def _cannot_write(self, name: str, error: OSError) -> UserError:
        return UserError(
            f"cannot write {self.path / name}: {error.strerror or error}. Free some space or choose another directory; "
            "earlier contents are unchanged."
        )


def environment(argv: Sequence[str], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the environment of a new run by command, commit, versions and machine, with a new random key.

    The name of the machine is left out.

    Args:
        argv: Command line.
        machine: Result of :func:`scnf.machine.description`.
    """
    source = _git("ls-files", "--error-unmatch", Path(__file__).name)  # fails for a copy in another repository
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
    """Return all runs of a directory in the order of their ids, and none where the directory does not exist."""
    try:
        runs = [Run(path) for path in root.iterdir() if _DIRECTORY.fullmatch(path.name) and path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read {root}: {error.strerror}. Choose another directory of runs.") from error
    return sorted(runs, key=lambda run: (run.id, run.path.name))


def parse_number(value: Any) -> float | None:
    """Return `value` as a number, or None where it is not a number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if isinstance(value, bool) else number


def _plain(value: Any) -> Any:
    """Convert a value that JSON cannot encode into a list, number or text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _git(*arguments: str) -> str | None:
    try:
        process = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
