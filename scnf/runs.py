"""A run directory, `logs/<id>-<date>-<name>/`: made, written, found again and listed as a table."""

import csv
import difflib
import io
import json
import math
import numbers
import operator
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from scnf import files
from scnf.errors import UserError

_DIRECTORY = re.compile(r"(\d{6,})-\d{4}-\d{2}-\d{2}-(.+)")
_MISSING = "-"


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
            number = max((run.id for run in _runs(root)), default=0)
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
        runs = _runs(root)
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
        """Write `value` to the file `name` of this run atomically; what JSON does not know is written as text."""
        self.write_text(name, json.dumps(value, indent=2, default=str) + "\n")

    def read_json(self, name: str) -> Any:
        """Read the file `name` of this run.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
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

    def truncate_metrics(self, epoch: int) -> None:
        """Drop the rows of `metrics.csv` after `epoch`, from where training goes on."""
        columns, rows = self._table()
        if columns:
            self._write_table(columns, [row for row in rows if not (_parse(row.get("epoch")) or 0) > epoch])

    def read_metrics(self) -> list[dict[str, float]]:
        """Read `metrics.csv`: the numbers of every row; cells that are empty or no number are left out.

        Raises:
            UserError: the file cannot be read.
        """
        parsed = ({key: _parse(cell) for key, cell in row.items()} for row in self._table()[1])
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
            text = self._metrics.read_text(encoding="utf-8")
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


def environment(argv: Sequence[str], device: str) -> dict[str, Any]:
    """What a run was made with: the command, the commit of the sources, versions and the machine (not its name).

    Args:
        argv: the command line.
        device: a torch device, such as "cpu" or "cuda:0".
    """
    source = _git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in another repository
    commit = _git("rev-parse", "HEAD") if source is not None else None
    changes = _git("status", "--porcelain", ".") if commit else None
    device_name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        import torch

        device_name = torch.cuda.get_device_name(device)
    return {
        "argv": list(argv),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": device,
        "device_name": device_name,
        "versions": {name: _version(name) for name in ("scnf", "torch", "torchvision", "numpy", "nflows")},
    }


def list_runs(root: Path) -> list[dict[str, Any]]:
    """One row per run directory of `root`, in the order of their ids; None for what is not known.

    Accuracy (a fraction) and bits/dim are those of the test split; before there are any, the latest of the validation
    split, and then `provisional` names the column. A run without a summary is "unfinished": still going, or killed.
    """
    return [_overview(run) for run in _runs(root)]


COLUMNS: dict[str, Callable[[Any], str]] = {
    "id": "{:06d}".format,
    "name": str,
    "recipe": str,
    "data": str,
    "labels": str,
    "epochs": str,
    "accuracy": lambda value: f"{100 * value:.2f} %",
    "bits_per_dim": "{:.3f}".format,
    "minutes": "{:.1f}".format,
    "status": str,
}
_LEFT = ("name", "recipe", "data", "status")
_STARRED = ("accuracy", "bits_per_dim")  # may come from the validation split, and then end in a star
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


def format_table(
    rows: Sequence[Mapping[str, Any]], sort: str = "id", reverse: bool = False, where: Sequence[str] = ()
) -> str:
    """Rows of `list_runs` as a plain text table.

    Args:
        rows: what `list_runs` returned.
        sort: the column to sort by; rows without a value come last either way.
        reverse: largest first.
        where: conditions that all hold, such as "recipe=scnf-fast", "accuracy>0.9", "accuracy>90%".

    Raises:
        UserError: a column is unknown, or a condition cannot be read.

    Example:
        >>> rows = [{"id": 1, "recipe": "m2", "accuracy": 0.8}, {"id": 2, "recipe": "scnf", "accuracy": 0.9342}]
        >>> print(format_table(rows, where=["accuracy>90%"]))
            id  name  recipe  data  labels  epochs  accuracy   bits_per_dim   minutes  status
        000002  -     scnf    -          -       -   93.42 %              -         -  -
    """
    column, conditions = _column(sort), [_condition(text) for text in where]
    chosen = [row for row in rows if all(holds(row) for holds in conditions)]
    known = [row for row in chosen if row.get(column) is not None]
    known.sort(key=lambda row: _order(row[column]), reverse=reverse)
    ordered = known + [row for row in chosen if row.get(column) is None]
    if not ordered:
        return "no runs" + (" where " + " and ".join(where) if where else "")
    cells = [{key: key + " " * (key in _STARRED) for key in COLUMNS}]
    cells += [{key: _cell(row, key) for key in COLUMNS} for row in ordered]
    widths = {key: max(len(row[key]) for row in cells) for key in COLUMNS}
    lines = [
        "  ".join(row[key].ljust(width) if key in _LEFT else row[key].rjust(width) for key, width in widths.items())
        for row in cells
    ]
    footnote = ["* validation, not finished"] if any(row.get("provisional") for row in ordered) else []
    return "\n".join([*map(str.rstrip, lines), *footnote])


def describe(run: Run) -> str:
    """Everything about one run on one page: status, settings, figures, the last metrics, and its files with sizes."""
    row = _overview(run)
    config, metrics = _flatten(_read_yaml(run.path / "config.yaml")), _or(run.read_metrics, [])
    settings = {"recipe": row["recipe"], "data": row["data"], "labels": row["labels"]}
    settings |= {key: config[key] for key in ("train.epochs", "train.batch_size", "train.lr", "seed") if key in config}
    sections = {
        "settings": settings,
        "summary": _flatten(_or(lambda: run.read_json("summary.json"), {})),
        "last metrics": metrics[-1] if metrics else {},
        "files": {path.relative_to(run.path).as_posix(): _size(path) for path in _files(run.path)},
    }
    lines = [str(run.path), f"status: {row['status']}"]
    for title, entries in sections.items():
        width = max(map(len, entries), default=0)
        lines += ["", title, *(f"  {key:<{width}}  {_show(value)}" for key, value in entries.items())]
        lines += [] if entries else [f"  {_MISSING}"]
    return "\n".join(lines)


def _runs(root: Path) -> list[Run]:
    try:
        found = [Run(path) for path in root.iterdir() if _DIRECTORY.fullmatch(path.name) and path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read {root}: {error.strerror}. Choose another directory of runs.") from error
    return sorted(found, key=lambda run: (run.id, run.path.name))


def _overview(run: Run) -> dict[str, Any]:
    config = _flatten(_read_yaml(run.path / "config.yaml"))
    summary = _flatten(_or(lambda: run.read_json("summary.json"), {}))
    metrics: list[dict[str, float]] | None = _or(run.read_metrics, None)
    last = {key: value for row in metrics or [] for key, value in row.items()}
    figures: dict[str, float | None] = {}
    provisional = []
    for key in _STARRED:
        tested, validated = _finite(summary.get(f"test.{key}")), f"validation.{key}"
        figures[key] = _finite(tested, summary.get(validated), last.get(validated))
        if tested is None and figures[key] is not None:
            provisional.append(key)
    done = _finite(summary.get("epochs"), last.get("epoch"), None if metrics is None else 0)
    return {
        "id": run.id,
        "name": run.name,
        "recipe": config.get("model.recipe"),
        "data": config.get("data.name"),
        "labels": config.get("data.num_labels"),
        "epochs": None if done is None else int(done),
        "epochs_planned": config.get("train.epochs"),
        **figures,
        "minutes": _finite(summary.get("minutes"), last.get("minutes")),
        "status": str(summary.get("status") or "unfinished"),
        "provisional": provisional,
    }


def _cell(row: Mapping[str, Any], column: str) -> str:
    value, planned = row.get(column), row.get("epochs_planned")
    text = _MISSING if value is None else COLUMNS[column](value)
    if column in _STARRED:
        return text + ("*" if column in row.get("provisional", ()) else " ")
    if column == "epochs" and value is not None and isinstance(planned, int) and row.get("status") != "finished":
        return f"{text}/{planned}"
    return text


def _order(value: Any) -> tuple[bool, float, str]:
    number = _finite(value)  # numbers before words
    return number is None, number or 0.0, str(value)


def _column(name: str) -> str:
    if name in COLUMNS:
        return name
    close = difflib.get_close_matches(name, COLUMNS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(f"there is no column {name!r}.{hint} The columns are {', '.join(COLUMNS)}.")


def _condition(text: str) -> Callable[[Mapping[str, Any]], bool]:
    match = re.fullmatch(r"\s*([^<>=!\s]+)\s*(<=|>=|!=|=|<|>)=?\s*(.*?)\s*", text)
    if not match:
        raise UserError(f"cannot read the condition {text!r}. Write for example recipe=scnf-fast or accuracy>0.9.")
    column, sign, wanted = _column(match[1]), match[2], match[3]
    percent = _parse(wanted[:-1]) if wanted.endswith("%") else None
    number = percent / 100 if percent is not None else _parse(wanted)
    if number is None and sign not in ("=", "!="):
        raise UserError(f"cannot read the condition {text!r}: {wanted!r} is not a number.")

    def holds(row: Mapping[str, Any]) -> bool:
        value = row.get(column)
        if number is not None and (actual := _parse(value)) is not None:
            return _COMPARE[sign](actual, number)
        if sign in ("=", "!="):
            return _COMPARE[sign](_MISSING if value is None else str(value), wanted)
        return False

    return holds


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists and other trees are left out.

    >>> _flatten({"test": {"accuracy": 0.9}, "test.nll": 1.2})
    {'test.accuracy': 0.9, 'test.nll': 1.2}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            flat[f"{prefix}{key}"] = value
    return flat


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _or(read: Callable[[], Any], default: Any) -> Any:
    try:
        return read()
    except UserError:
        return default


def _parse(value: Any) -> float | None:
    """`value` as a number, or None if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if isinstance(value, bool) else number


def _finite(*values: Any) -> float | None:
    """The first of `values` that is a finite number."""
    parsed = (_parse(value) for value in values)
    return next((number for number in parsed if number is not None and math.isfinite(number)), None)


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _show(value: Any) -> str:
    return _MISSING if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _size(path: Path) -> str:
    try:
        size = float(path.stat().st_size)
    except OSError:  # gone since it was listed
        return _MISSING
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


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
