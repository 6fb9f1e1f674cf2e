"""Show all runs as a table, and one run on a page."""

import difflib
import math
import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scnf.errors import UserError
from scnf.runs import Run, parse_number, runs_in
from scnf.streams import printable
from scnf.strict_yaml import read_yaml

_MISSING = "-"


def list_runs(root: Path) -> list[dict[str, Any]]:
    """Return one row per run directory of `root`, in the order of ids, with None for unknown values.

    Accuracy (a fraction) and bits/dim come from the test metrics in the run's summary. Without test metrics, they are
    the latest validation metrics from one draw of the noise, and `provisional` names the column. A run without a
    summary is "unfinished", because it is still running or was killed.
    """
    return [_overview(run) for run in runs_in(root)]


COLUMNS: dict[str, Callable[[Any], str]] = {
    "id": "{:06d}".format,
    "name": str,
    "recipe": str,
    "data": str,
    "labels": str,
    "epochs": "{:g}".format,
    "accuracy": lambda value: f"{100 * value:.2f} %",
    "bits_per_dim": "{:.3f}".format,
    "minutes": "{:.1f}".format,
    "status": str,
}
_LEFT = ("name", "recipe", "data", "status")
_STARRED = ("accuracy", "bits_per_dim")  # end in a star where they come from the validation split
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
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
    """Format rows of `list_runs` as a plain text table.

    Args:
        rows: Rows of `list_runs`.
        sort: Column to sort by; rows without a value come last in either order.
        reverse: Whether the largest values come first.
        where: Conditions that all rows of the table meet, such as "recipe=scnf-fast", "accuracy>0.9", "accuracy>90%".

    Raises:
        UserError: a column is unknown, or a condition cannot be read.

    Example:
        >>> rows = [{"id": 1, "recipe": "m2", "accuracy": 0.8}, {"id": 2, "recipe": "scnf", "accuracy": 0.9342}]
        >>> print(format_table(rows, where=["accuracy>90%"]))
            id  name  recipe  data  labels  epochs  accuracy   bits_per_dim   minutes  status
        000002  -     scnf    -          -       -   93.42 %              -         -  -
    """
    column, conditions = _column(sort), [_condition(text) for text in where]
    selection = [row for row in rows if all(holds(row) for holds in conditions)]
    complete = [row for row in selection if row.get(column) is not None]
    complete.sort(key=lambda row: _order(row[column]), reverse=reverse)
    ordered = complete + [row for row in selection if row.get(column) is None]
    if not ordered:
        return "no runs" + (" where " + " and ".join(where) if where else "")
    cells = [{key: key + " " * (key in _STARRED) for key in COLUMNS}]
    cells += [{key: _cell(row, key) for key in COLUMNS} for row in ordered]
    widths = {key: max(len(row[key]) for row in cells) for key in COLUMNS}
    lines = [
        "  ".join(row[key].ljust(width) if key in _LEFT else row[key].rjust(width) for key, width in widths.items())
        for row in cells
    ]
    footnote = (
        ["* validation, one draw of the noise, not finished"] if any(row.get("provisional") for row in ordered) else []
    )
    return "\n".join([*map(str.rstrip, lines), *footnote])


def describe(run: Run) -> str:
    """Describe one run on one page by its status, settings, summary, last metrics, and files with sizes."""
    row = _overview(run)
    config, metrics = _flatten(_read_yaml(run.path / "config.yaml")), _read_or(run.read_metrics, [])
    settings = {"recipe": row["recipe"], "data": row["data"], "labels": row["labels"]}
    settings |= {key: config[key] for key in ("train.epochs", "train.batch_size", "train.lr", "seed") if key in config}
    sections = {
        "settings": settings,
        "summary": _flatten(_read_or(lambda: run.read_json("summary.json"), {})),
        "last metrics": metrics[-1] if metrics else {},
        "files": {path.relative_to(run.path).as_posix(): _size(path) for path in _files(run.path)},
    }
    lines = [printable(str(run.path)), f"status: {printable(row['status'])}"]
    for title, section in sections.items():
        entries = {printable(str(key)): value for key, value in section.items()}
        width = max(map(len, entries), default=0)
        lines += ["", title, *(f"  {key:<{width}}  {_show(value)}" for key, value in entries.items())]
        lines += [] if entries else [f"  {_MISSING}"]
    return "\n".join(lines)


def _overview(run: Run) -> dict[str, Any]:
    config = _flatten(_read_yaml(run.path / "config.yaml"))
    summary = _flatten(_read_or(lambda: run.read_json("summary.json"), {}))
    metrics: list[dict[str, float]] | None = _read_or(run.read_metrics, None)
    last = {key: value for row in metrics or [] for key, value in row.items()}
    scores: dict[str, float | None] = {}
    provisional = []
    for key in _STARRED:
        test_score, validation = _finite(summary.get(f"test.{key}")), f"validation.{key}"
        scores[key] = _finite(test_score, summary.get(validation), last.get(validation))
        if test_score is None and scores[key] is not None:
            provisional.append(key)
    epochs = _finite(summary.get("epochs"), last.get("epoch"), None if metrics is None else 0)
    return {
        "id": run.id,
        "name": run.name,
        "recipe": config.get("model.recipe"),
        "data": _data_of(config, run),
        "labels": _labels_of(config, run),
        "epochs": epochs,
        "epochs_planned": config.get("train.epochs"),
        **scores,
        "minutes": _finite(summary.get("minutes"), last.get("minutes")),
        "status": str(summary.get("status") or "unfinished"),
        "provisional": provisional,
    }


def _data_of(config: Mapping[str, Any], run: Run) -> Any:
    """Return the name of the data, which is that of the folder or file for data of one's own."""
    name, root = config.get("data.name"), config.get("data.root")
    if name not in ("folder", "npz") or not isinstance(root, str):
        return name
    return "arrays" if os.path.dirname(root) == os.path.abspath(run.path) else os.path.basename(root.rstrip("/"))


def _labels_of(config: Mapping[str, Any], run: Run) -> Any:
    """Return the number of labels, which the split knows where all are taken."""
    number = config.get("data.num_labels")
    split = _read_or(lambda: run.read_json("split.json"), None) if number == "all" else None
    labelled = split.get("labelled") if isinstance(split, dict) else None
    return len(labelled) if isinstance(labelled, list) else number


def _cell(row: Mapping[str, Any], column: str) -> str:
    value, planned = row.get(column), row.get("epochs_planned")
    text = _MISSING if value is None else printable(COLUMNS[column](value))
    if column in _STARRED:
        return text + ("*" if column in row.get("provisional", ()) else " ")
    if column == "epochs" and value is not None and isinstance(planned, int) and row.get("status") != "finished":
        return f"{text}/{planned}"
    return text


def _order(value: Any) -> tuple[bool, float, str]:
    number = _finite(value)  # numbers sort before words
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
    column, sign, operand = _column(match[1]), match[2], match[3]
    percent = parse_number(operand[:-1]) if operand.endswith("%") else None
    number = percent / 100 if percent is not None else parse_number(operand)
    if number is None and sign not in ("=", "!="):
        raise UserError(f"cannot read the condition {text!r}: {operand!r} is not a number.")

    def holds(row: Mapping[str, Any]) -> bool:
        value = row.get(column)
        if number is not None and (actual := parse_number(value)) is not None:
            return _OPERATORS[sign](actual, number)
        if sign in ("=", "!="):
            return _OPERATORS[sign](_MISSING if value is None else str(value), operand)
        return False

    return holds


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one with dotted keys, and leave out lists and any other kind of tree.

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
        return read_yaml(path)
    except (OSError, ValueError):
        return None


def _read_or(read: Callable[[], Any], default: Any) -> Any:
    try:
        return read()
    except UserError:
        return default


def _finite(*values: Any) -> float | None:
    """Return the first of `values` that is a finite number."""
    parsed = (parse_number(value) for value in values)
    return next((number for number in parsed if number is not None and math.isfinite(number)), None)


def _show(value: Any) -> str:
    return _MISSING if value is None else f"{value:.6g}" if isinstance(value, float) else printable(str(value))


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("[!.]*") if path.is_file())  # without locks and temporary files


def _size(path: Path) -> str:
    try:
        size = float(path.stat().st_size)
    except OSError:  # removed since it was listed
        return _MISSING
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
